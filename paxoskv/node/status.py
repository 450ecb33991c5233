"""What a node says of itself: the answer to status(), and the values of the metrics."""

import asyncio
import resource
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Final

from paxoskv.node.checkpointing import Checkpointing
from paxoskv.node.connections import Connections
from paxoskv.node.health import Health
from paxoskv.node.metrics import Collector, Counts, Histogram
from paxoskv.node.metrics import Page as MetricsPage
from paxoskv.node.peers import MAX_PROBLEM, Peers
from paxoskv.node.replica import Replica
from paxoskv.node.watches import Watches
from paxoskv.state.store import Digested
from paxoskv.storage.journal import Journal
from paxoskv.wire.codec import Status
from paxoskv.wire.structs import Identity, Position

VERSION: Final = "0.1.0"
MAX_PROBLEMS: Final = 20  # complaints in a status


@dataclass(eq=False)
class StatusReport:
    """Asks all other parts how things stand."""

    identity: Identity
    replica: Replica
    journal: Journal
    peers: Peers
    connections: Connections
    checkpointing: Checkpointing
    health: Health
    watches: Watches
    counts: Counts
    loop: asyncio.AbstractEventLoop

    def __post_init__(self) -> None:
        self.started = self.loop.time()

    def status(self, made: Digested | None = None) -> Status:
        """The answer to a client. `made`: a digest of the store, and what belongs to it."""
        store, report = self.replica.store, self.replica.core.report()
        state = self.health.state()
        shown = made or Digested(store.position, store.hash, store.size())
        return Status(
            node=self.identity.node,
            cluster=self.identity.cluster,
            version=VERSION,
            ready=state == "serving",
            clock=report.clock,
            applied=Position(*shown.position),
            keys=shown.keys,
            digest=shown.digest or None,
            logs=report.logs,
            connected=sorted(self.peers.greeted),
            pending=self.replica.pending,
            journal_bytes=self.journal.bytes,
            memory_bytes=_memory_bytes(),
            uptime_s=self.loop.time() - self.started,
            counters=self.counters() | self.counts.answer_times(),
            hash=shown.hash,
            checkpoint_age_s=self.checkpointing.age(),
            incarnation=report.incarnation,
            life=report.life,
            in_flight=report.in_flight,
            state=state,
            problems=self._problems(report.rejoin_waits),
            certificate_s=self._certificate_s(None),
        )

    def counters(self) -> dict[str, int]:
        """What only grows."""
        report, usage = self.replica.core.report(), resource.getrusage(resource.RUSAGE_SELF)
        return {
            "entries_applied": self.replica.entries_applied,
            "commands_applied": self.replica.commands_applied,
            "fsyncs": self.replica.frames,
            **self.counts.totals(),
            "cpu_us": int((usage.ru_utime + usage.ru_stime) * 1e6),
            "ballots": report.ballots,
            "revocations": report.revocations,
            "claims_refused": report.claims_refused,
        }

    def gauges(self) -> dict[str, float]:
        """What goes up and down."""
        report, replica = self.replica.core.report(), self.replica
        return {
            "ready": float(self.health.state() == "serving"),
            "clock": report.clock,
            "keys": replica.store.size(),
            "connected_peers": len(self.peers.greeted),
            "connections": len(self.connections.open),
            "in_flight_entries": report.in_flight,
            "pending_requests": replica.pending,
            "queued_commands": replica.queued,
            "waiting_reads": len(replica.reading),
            "watches": self.watches.count,
            "waiting_records": len(replica.records),
            "waiting_messages": len(replica.when_durable),
            "journal_bytes": self.journal.bytes,
            "certificate_seconds": self._certificate_s(inf) or 0.0,
            "uptime_seconds": self.loop.time() - self.started,
        }

    def page(self) -> MetricsPage:
        """The page for Prometheus."""
        batches = Histogram()
        batches.buckets = self.replica.batches
        about = {
            "node": str(self.identity.node), "cluster": self.identity.cluster, "version": VERSION,
            "incarnation": str(self.identity.incarnation), "life": str(self.identity.life),
        }  # fmt: skip

        def now() -> dict[str, float]:
            batches.total = self.replica.batched
            return {**self.counters(), **self.gauges()}

        return MetricsPage(Collector(self.counts, batches, now, about), self.health.state)

    def _certificate_s(self, without: float | None) -> float | None:
        """Seconds until our certificate expires, if others accept it; `without`: where there is none."""
        certificates = self.peers.trust.certificates
        return certificates.seconds() if certificates else without

    def _problems(self, waits: str | None) -> list[str]:
        """What a rejoin waits for; who refuses us, or is refused by us, at this time, and why."""
        rejoin = [f"rejoining: {waits}"[:MAX_PROBLEM]] if waits else []
        return [*rejoin, *self.peers.complaints.recent(self.loop.time())][:MAX_PROBLEMS]


def _memory_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:  # there is no /proc: what it had at most, on macOS in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    except OSError:  # too many files are open
        return 0
    return pages * resource.getpagesize()
