"""Whether a node can serve, and why not. What changes in that is logged, once."""

import time
from dataclasses import dataclass, field
from typing import Any, Final

from paxoskv.node.eventlog import log
from paxoskv.protocol.core import Core
from paxoskv.storage.journal import Journal

MAJORITY_GONE: Final = 2.0  # seconds without a word from a majority, after which commands are refused
ASK_AFTER: Final = 0.5  # seconds without a word from a majority, after which the others are asked


@dataclass(eq=False)
class Health:
    """Looks at the core about once a second, and at each request if something was wrong then."""

    nodes: int  # how many there are
    core: Core
    journal: Journal
    stopping: bool = False
    alone: str | None = None  # why there is no majority, as last seen
    asking: bool = False  # whether a read asks if anybody is there
    alive_since: float = field(default_factory=lambda: time.monotonic())
    waits: str | None = None  # what a rejoin waits for, as last logged
    leads: frozenset[int] = frozenset()  # logs that this node leads, as last logged

    def state(self) -> str:
        """Return one word for how the node is: "serving", or why it does not take commands."""
        if self.stopping:
            return "stopping"
        if self.journal.full:
            return "disk-full"
        if not self.core.joined:
            return "rejoining"
        if not self.core.ready:
            return "starting"
        return "no-majority" if self.alone else "serving"

    def refuses_commands(self) -> str | None:
        """Return why commands are not taken now, or None."""
        if self.stopping:
            return "this node is stopping"
        if self.journal.full:
            return f"disk full: {self.journal.full}"
        return self.refuses_reads()

    def refuses_reads(self) -> str | None:
        """Return why linearizable reads are not taken now, or None."""
        if self.alone:  # asked for each request: only then are the nodes counted that were heard of
            self._look_at_majority()
        return self.alone

    def stood_still(self) -> None:
        """The process was stopped for a while: what others said meanwhile is still unread."""
        self.alive_since = time.monotonic()

    def must_ask(self) -> bool:
        """Say whether too few nodes were heard of: then the caller must begin a read, to hear who lives.

        When the read ends, answered() is called. A read's questions are answered; gossip is not, and the
        others may be unable to connect to us while we can connect to them.
        """
        core = self.core
        if not core.joined or self.asking:
            return False
        self.asking = core.reached(ASK_AFTER, time.monotonic()) < core.quorum
        return self.asking

    def answered(self, _: Any) -> None:
        """The read that must_ask() has asked for has ended."""
        self.asking = False

    def look(self) -> None:
        """Log what has changed."""
        self._look_at_majority()
        self._look_at_leads()
        self.look_at_rejoin()

    def _look_at_majority(self) -> None:
        """Whether enough nodes are heard of to do anything."""
        now = time.monotonic()
        heard = self.core.reached(MAJORITY_GONE, now)
        alone = None
        if heard < self.core.quorum and now - self.alive_since > MAJORITY_GONE:
            alone = f"no majority: this node hears of {heard} of {self.nodes} nodes, itself included"
        if bool(alone) != bool(self.alone):
            if alone:
                log("majority-lost", "warning", heard=heard, nodes=self.nodes)
            else:
                log("majority-back", heard=heard, nodes=self.nodes)
        self.alone = alone

    def _look_at_leads(self) -> None:
        """Which logs this node leads: its own, and those that it has revoked; or the one that all have."""
        report = self.core.report()
        leads, own = report.leads, report.own
        for other in sorted(leads - self.leads - {own}):
            if own:
                log("revoked", "warning", log=other)
            else:
                log("leads", log=other)
        for other in sorted(self.leads - leads - {own}):
            log("given-back" if own else "deposed", log=other)
        if own in self.leads - leads:
            log("deposed", "warning", reason="others have finished this node's log: it takes it back")
        elif own in leads - self.leads:
            log("leads", log=own)
        self.leads = leads

    def look_at_rejoin(self) -> None:
        """Log what a rejoining node waits for, whenever that changes: it may have to wait for ever."""
        waits = self.core.report().rejoin_waits
        if waits != self.waits:
            self.waits = waits
            if waits is None:
                log("rejoined")
            else:
                log("rejoining", "warning", reason=waits)
