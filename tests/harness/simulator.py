"""A whole cluster under one seeded scheduler: nodes, network, disks, clients; no sockets, threads or waiting.

    simulation = Simulation(seed=7, profile=PROFILES["default"])
    report = simulation.run()       # Violation if a rule is broken; its text has the seed and the last events

What runs is real: multipaxos.Node in a replica.Replica with a store.Store and a journal.Journal, driven as
server.py drives them. Simulated are time, the network, the disk (disk.py) and the clients. A run has
two phases: faults for Profile.seconds, then none at all, and everything must come to rest within
Profile.patience simulated seconds: every operation answered, all nodes holding the same.

The Oracle watches. From what is durable on the disks alone it works out which entries are chosen, and holds
against that everything that a node sends, believes or applies; see its methods for the rules.

The same seed gives the same run, event for event, under any PYTHONHASHSEED: Report.trace_hash tells. Nothing
here may depend on the order of a set, on id() or on the hash of a string.
"""

import heapq
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from paxoskv.multipaxos import UNCHOSEN_ENTRIES, Cut
from paxoskv.node.replica import Replica
from paxoskv.protocol.faults import Failures
from paxoskv.protocol.node import OWN_LOGS, Node, logs_of
from paxoskv.protocol.one_log import OneLog
from paxoskv.protocol.outbox import Message
from paxoskv.protocol.own_logs import OwnLogs
from paxoskv.protocol.voters import EverybodyVotes, Voters
from paxoskv.state.store import Store
from paxoskv.storage import checkpoint
from paxoskv.storage.data_dir import Manifest, create
from paxoskv.storage.files import Damaged
from paxoskv.storage.journal import Journal
from paxoskv.storage.segments import FIRST, read_frame_header, read_segment_header
from paxoskv.wire.codec import (
    Expired,
    Forgotten,
    NotDone,
    Unknown,
    decode,
    encode,
)
from paxoskv.wire.structs import (
    Accept,
    Accepted,
    Action,
    Barrier,
    Batch,
    Chunk,
    Command,
    Compare,
    Entry,
    Fact,
    Fetch,
    FetchCheckpoint,
    Fetched,
    Forward,
    Forwarded,
    Identity,
    Learn,
    Outcome,
    Prepare,
    Promise,
    Reading,
    Record,
    Rejoin,
    Rejoined,
    Relation,
    RequestId,
    Result,
    Session,
    Transaction,
    Verb,
    Verdict,
    Vote,
)
from paxoskv.wire.validation import FORMAT
from tests.harness.disk import Content, Crash, Disk, kept, lost, some
from tests.harness.leases import Leases
from tests.harness.linearizability import Changes, Operation, Undecided, check
from tests.harness.watchers import KEPT, Order, Watchers

CHUNK_BYTES = 300  # so that a transfer of a checkpoint has many pieces
TICK_BUSY = 0.01  # seconds, as in server.py
TICK_IDLE = 0.1
SWEEP = 0.25  # seconds between two looks for requests that have waited too long
DIRECTORY = Path("node")
SEGMENT_BYTES = 1 << 15  # small, so that segments are changed often
TRACE = 40  # events that a violation shows
WIRED = 50  # of so many messages one is really encoded and decoded
TO_REST = 0.1  # seconds between two looks whether everything has come to rest

ANSWER_TO = {
    Promise: Prepare, Accepted: Accept, Fetched: Fetch, Reading: Barrier, Chunk: FetchCheckpoint,
    Forwarded: Forward, Rejoined: Rejoin,
}  # fmt: skip

NUMBERS = ("n0", "n1", "n2")  # keys that hold numbers
TEXTS = ("a", "b", "c")  # keys that hold anything
JOINED = ("j0", "j1", "j2")  # keys of transactions: judged together, so the others have keys of their own


class Violation(AssertionError):
    """A rule was broken. The text has the seed, what broke, and the last events."""


class Unavoidable(Exception):
    """A disk has forgotten what nobody who could be asked knew: from here on nothing can be promised."""


NO_FAILURES = Failures()


@dataclass(frozen=True, slots=True)
class Profile:
    """How hard life is. Times are in simulated seconds; rates are per second, for the whole cluster."""

    name: str = "default"
    nodes: int = 5
    seconds: float = 3.0  # of the safety phase
    patience: float = 150.0  # for the liveness phase
    revoke_after: float = 0.2
    # the network
    loss: float = 0.05  # the largest; each link draws its own, and again with every fault
    duplicates: float = 0.05
    late_duplicates: float = 0.01  # of messages come a second time, up to 2 s later
    delay: float = 0.002  # mean
    slow_messages: float = 0.02  # of messages take up to 50 times as long
    fifo: float = 0.3  # of runs have connections that keep the order; a fault on one loses what is in flight
    learn_loss: float = 0.0  # of gossip, besides
    # disks
    sync: float = 0.001  # mean of one fsync
    slow_syncs: float = 0.01  # of syncs take up to 300 times as long
    # machines
    fault_rate: float = 3.0
    crashes: float = 4.0  # weights of the faults
    pauses: float = 2.0
    partitions: float = 2.0
    one_ways: float = 1.0
    broken_links: float = 2.0
    weather: float = 1.0  # another loss and delay for one link
    disk_troubles: float = 1.0
    outage: float = 0.5  # mean length of a fault
    checkpoints: float = 0.0  # that each node begins, per second
    keep: int = 2000  # bytes of a log that are kept for nodes that lag
    wipes: float = 0.0  # of restarts find a new disk
    flips: float = 0.0  # of restarts find a flipped bit in the last frame
    snapshots: float = 0.0  # of restarts find an older copy of the disk, made while the node ran
    failures: Failures = NO_FAILURES
    batching: float = 0.3  # of messages wait for others before the turn
    clocks: float = 2.0  # rates of clocks lie between 1 / this and this
    dead: int = 0  # nodes that never come back
    broken: bool = False  # whether one link between two others never heals
    proposing: str = OWN_LOGS
    everybody_votes: bool = False  # whether all nodes vote at once, as the reference does
    # clients
    clients: int = 4
    in_flight: int = 4  # operations of one client
    keys: int = 3  # of each kind: those of numbers, those of anything
    reads: float = 0.25  # of operations are linearizable reads without the log
    transactions: float = 0.0  # of operations are transactions, or others on their keys
    leases: float = 0.0  # of a transaction's puts have a time to live
    think: float = 0.02  # mean pause between an answer and the next operation
    request_timeout: float = 1.0  # the server gives up
    client_timeout: float = 0.6  # the client tries another node
    lost_requests: float = 0.05  # requests and answers between client and node


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in [
        Profile(),
        Profile(name="lossy", loss=0.3, duplicates=0.2, late_duplicates=0.05, revoke_after=0.05, fifo=0.0),
        Profile(name="slow-disks", sync=0.005, slow_syncs=0.05, fault_rate=6, crashes=10, outage=0.3),
        Profile(name="rare-gossip", learn_loss=0.9, fault_rate=4),
        Profile(name="failing-acceptors", failures=Failures(0.25), fault_rate=2),
        Profile(name="silent-acceptors", failures=Failures(0.05, 0.3, 1.0), fault_rate=2),
        Profile(name="partial-healing", dead=1, broken=True, seconds=2),
        Profile(name="barely-healing", dead=2, seconds=2),
        Profile(name="star-healing", dead=2, broken=True, seconds=2),
        Profile(name="busy", clients=8, in_flight=12, think=0.001, seconds=1.5, fault_rate=4),
        Profile(name="idle", clients=2, in_flight=1, think=0.4, seconds=8, fault_rate=1),
        Profile(name="crash-loops", fault_rate=15, crashes=10, outage=0.1, revoke_after=0.05),
        Profile(
            name="split",
            seconds=6,
            revoke_after=0.1,
            fault_rate=1.5,
            crashes=1,
            partitions=12,
            outage=1.0,
            think=0.08,
            in_flight=2,
            keys=1,
            reads=0.5,
        ),
        Profile(
            name="duels",
            loss=0.1,
            slow_messages=0.05,
            revoke_after=0.05,
            fault_rate=12,
            crashes=2,
            pauses=8,
            partitions=2,
            one_ways=8,
            broken_links=2,
            outage=0.25,
            fifo=0.0,
        ),
        Profile(
            name="impatient",
            request_timeout=0.05,
            client_timeout=0.4,  # so that the server gives up first
            sync=0.005,
            slow_syncs=0.05,
            fault_rate=6,
            outage=0.2,
        ),
        Profile(name="compacting", checkpoints=3, keep=500, crashes=8, outage=0.8),
        Profile(
            name="compacting-lossy",
            checkpoints=3,
            keep=0,
            loss=0.2,
            duplicates=0.2,
            late_duplicates=0.05,
            revoke_after=0.05,
            fifo=0.0,
            crashes=8,
            pauses=4,
        ),
        Profile(name="wiped", wipes=0.3, checkpoints=1, crashes=12, fault_rate=5, outage=0.3),
        Profile(
            name="wiped-lossy",
            wipes=0.3,
            loss=0.2,
            duplicates=0.2,
            late_duplicates=0.05,
            checkpoints=2,
            keep=200,
            revoke_after=0.05,
            fifo=0.0,
            crashes=12,
            fault_rate=8,
            outage=0.2,
        ),
        Profile(
            name="wiped-slow",
            wipes=0.3,
            checkpoints=1,
            sync=0.005,
            slow_syncs=0.05,
            fault_rate=8,
            crashes=12,
            outage=0.2,
        ),
        Profile(
            name="wiped-failing",
            wipes=0.3,
            checkpoints=1,
            failures=Failures(0.2),
            crashes=12,
            fault_rate=5,
            outage=0.3,
            partitions=4,
        ),
        Profile(
            name="wiped-three",
            nodes=3,
            wipes=0.5,
            checkpoints=2,
            keep=200,
            crashes=12,
            fault_rate=5,
            outage=0.3,
        ),
        Profile(name="flipped", flips=0.4, checkpoints=1, crashes=12, fault_rate=5, outage=0.3),
        Profile(name="put-back", snapshots=0.4, checkpoints=1, crashes=12, fault_rate=5, outage=0.3),
        Profile(
            name="forgetful-lossy",
            flips=0.2,
            snapshots=0.3,
            wipes=0.1,
            loss=0.2,
            duplicates=0.2,
            late_duplicates=0.05,
            checkpoints=2,
            keep=200,
            revoke_after=0.05,
            fifo=0.0,
            crashes=12,
            fault_rate=8,
            outage=0.2,
        ),
        Profile(
            name="forgetful-three", nodes=3, flips=0.3, snapshots=0.3, crashes=12, fault_rate=5, outage=0.3
        ),
        Profile(name="one", nodes=1, seconds=4),
        Profile(name="three", nodes=3),
        Profile(name="seven", nodes=7, seconds=2),
        Profile(name="transactions", transactions=0.5, checkpoints=1, crashes=8, in_flight=2),
        Profile(
            name="transactions-lossy",
            transactions=0.6,
            in_flight=2,
            loss=0.2,
            duplicates=0.2,
            late_duplicates=0.05,
            checkpoints=2,
            keep=200,
            wipes=0.2,
            revoke_after=0.05,
            fifo=0.0,
            crashes=12,
            fault_rate=8,
            outage=0.2,
        ),
        Profile(
            name="expiring", transactions=0.5, leases=0.7, checkpoints=1, crashes=8, in_flight=2, seconds=4
        ),
        Profile(name="everybody-votes", everybody_votes=True, checkpoints=1, wipes=0.2, crashes=8),
    ]
}


# -------------------------------------------------------------------------------------------- disks


class SlowDisk(Disk):
    """A disk on which the sync of a frame takes its time: write() returns at once, complete() comes later.

    What is written after that sync was asked for (the journal's mark) is written when it is complete.
    """

    def __init__(self, salt: Random) -> None:
        super().__init__(salt)
        self.late: list[Content] = []
        self.behind: list[tuple[int, bytes, int]] = []  # writes that wait for it
        self.slow = False
        self._made: set[int] = set()

    def create(self, path: Path) -> int:
        handle = super().create(path)
        self._made.add(handle)
        return handle

    def fdatasync(self, handle: int) -> None:
        if self.slow and handle not in self._made:
            self.late.append(self._opened(handle))
        else:
            super().fdatasync(handle)

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        if self.slow and self.late and handle not in self._made:
            self.behind.append((handle, data, offset))
        else:
            super().pwrite(handle, data, offset)

    def complete(self) -> None:
        """The frame is durable."""
        for content in self.late:
            content.sync()
        self.late.clear()
        for write in self.behind:
            super().pwrite(*write)
        self.behind.clear()

    def copied(self) -> "SlowDisk":
        """What a copy of all files now would hold."""
        copy = deepcopy(self)
        copy.power_cut(kept)
        return copy

    def last_frame(self) -> tuple[Content, int, int] | None:
        """The file with the journal's last whole frame, and where it begins and ends; None: there is none."""
        for name in sorted(self.names(DIRECTORY / "journal"), reverse=True):
            content = self._file(DIRECTORY / "journal" / name)
            data = bytes(content.cached)
            segment, start, end = read_segment_header(data), FIRST, FIRST
            while segment is not None and (header := read_frame_header(data, end, segment)):
                start, end = end, header[1]
            if end > FIRST:
                return content, start, end
        return None


# ------------------------------------------------------------------------------------------- oracle


class Held:
    """What is durable of one node's acceptor for one log."""

    __slots__ = ("accepted", "agreed", "candidate", "chosen", "entries", "promised")

    def __init__(self) -> None:
        self.promised = 0
        self.accepted = 0
        self.candidate = 0
        self.entries: list[Entry] = []
        self.chosen = 0  # so many does the node know to be chosen
        self.agreed = 0  # so many of the entries were found to be those that are chosen


class Told:
    """What a node's process was told by one peer of what is durable there, by log."""

    __slots__ = ("promised", "stood", "voted")

    def __init__(self, logs: Iterable[int]) -> None:
        self.promised = dict.fromkeys(logs, 0)
        self.voted = dict.fromkeys(logs, (0, 0))
        self.stood = dict.fromkeys(logs, 0)

    def hears(self, message: Message, sender: int, held: dict[int, Held]) -> None:
        """Note what a node hears. `held`: what is durable there.

        Of ballots that it has not stood with it counts nothing: an answer may come to a later disk of the
        node that had asked.
        """
        kind = message.__class__
        if (kind is Promise or kind is Accepted) and message.ballot > held[message.log].candidate:
            return
        if kind is Promise and message.verdict == Verdict.PROMISED:
            self.promised[message.log] = max(self.promised[message.log], message.ballot)
        elif kind is Accepted and message.vote == Vote.ACCEPTED:
            self.voted[message.log] = max(self.voted[message.log], (message.ballot, message.length))
        elif (kind is Prepare or kind is Accept) and message.ballot & 255 == sender:
            self.stood[message.log] = max(self.stood[message.log], message.ballot)

    def knows_better(self, found: dict[int, tuple[int, int, int, int]]) -> bool:
        """Whether a start that has found this (by log: promised, accepted, length, stood with) lacks any."""
        return any(
            promised < self.promised[log] or (accepted, length) < self.voted[log] or stood < self.stood[log]
            for log, (promised, accepted, length, stood) in found.items()
        )


class Truth:
    """What is true of one log."""

    __slots__ = ("ballots", "chosen", "claimed", "established", "frontier", "lengths", "lost", "seen")

    def __init__(self) -> None:
        self.chosen: list[Entry] = []
        self.ballots: dict[int, dict[int, Entry]] = {}  # by ballot, by slot: what was held at it
        self.lengths: dict[int, dict[int, int]] = {}  # by ballot, by node: how much it ever held of its log
        self.lost: dict[int, dict[int, int]] = {}  # likewise, of disks that are lost
        self.seen: Counter[int] = Counter()  # by ballot: how far its log was compared with what is chosen
        self.established: set[int] = {0}
        self.frontier = 0  # the largest that was ever claimed
        self.claimed: dict[int, tuple[int, int, int]] = {}  # by node: its last claim, checked


def same(one: Entry, other: Entry) -> bool:
    return one is other or (one.timestamp == other.timestamp and one.payload == other.payload)


class Oracle:
    """Knows what is durable everywhere, hence what is chosen, and what follows from that for everybody."""

    def __init__(self, nodes: Sequence[int], proposing: str, seed: int, fail: Callable[[str], None]) -> None:
        self.nodes = nodes
        self.owners = proposing == OWN_LOGS
        self.names = logs_of(proposing, list(nodes))  # of all logs
        self.quorum = len(self.nodes) // 2 + 1
        self.fail = fail
        self.held = {node: {log: Held() for log in self.names} for node in self.nodes}
        self.reserved = dict.fromkeys(self.nodes, 0)
        self.applied_to = dict.fromkeys(self.nodes, (0, 0))
        self.logs = {log: Truth() for log in self.names}
        self.clocks = dict.fromkeys(self.nodes, 0)  # by node: in this life
        self.frontiers = dict.fromkeys(self.nodes, 0)  # by node: of its own log, in this life
        self.applied: list[tuple[int, int, bytes]] = []
        self.results: list[list[Result]] = []
        self.hashes: list[int] = []  # of the store, behind each of them
        self.sessions: dict[tuple[int, int, int, int], Result] = {}  # by session and sequence: the one result
        self.puts: Counter[str] = Counter()  # of commands without session: how often each value was put
        self.submitted: Counter[tuple[int, int, int, int]] = Counter()  # likewise: how often to any node
        self.appeared: Counter[tuple[int, int, int, int]] = Counter()  # likewise: how often in the order
        self.skips = 0
        self.told = {node: {peer: Told(self.names) for peer in self.nodes} for node in self.nodes}
        self.order = Order()
        self.watchers = Watchers(seed, self.order, fail)

    # -- what is durable

    def durable(self, node: int, records: list[Record], cut: Callable[[int], Cut]) -> None:
        """A frame has become durable. Nothing goes back over a disk's life, and a slot is chosen once.

        What a node takes over when it rejoins is no vote at a ballot below its promise. A segment's first
        frame repeats. `cut` says where an installed checkpoint stands.
        """
        repeats = len([record for record in records if record.held]) >= len(self.names)
        if not self.owners:  # of one log, a state is known by its beginning
            repeats = repeats and any(record.life is not None for record in records)
        promises = {record.promised.log: record.promised.ballot for record in records if record.promised}
        rejoins = any(record.rejoined for record in records) and not repeats
        for record in records:
            if record.held is not None:
                log, ballot = record.held.log, record.held.ballot
                votes = not rejoins or ballot >= promises.get(log, 0)
                self._hold(node, record.held, votes)
            elif record.installed is not None:
                self._install(node, cut(record.installed))
            elif record.promised is not None:
                held = self.held[node][record.promised.log]
                if record.promised.ballot < held.promised:
                    self.fail(f"node {node} promised {record.promised} after {held.promised}")
                held.promised = record.promised.ballot
            elif record.candidate is not None:
                held = self.held[node][record.candidate.log]
                if record.candidate.ballot < held.candidate + (not repeats):
                    self.fail(f"node {node} stands with {record.candidate} after {held.candidate}")
                held.candidate = record.candidate.ballot
            elif record.reservation is not None:
                if record.reservation < self.reserved[node]:
                    self.fail(f"node {node} reserved {record.reservation} after {self.reserved[node]}")
                self.reserved[node] = record.reservation
            elif record.applied is not None:
                position = (record.applied.timestamp, record.applied.owner)
                if position < self.applied_to[node]:
                    self.fail(f"node {node} has applied up to {position} after {self.applied_to[node]}")
                self.applied_to[node] = position
            elif record.chosen is not None:
                chosen = record.chosen
                self._believe(node, chosen.log, chosen.chosen, chosen.evidence)
                held = self.held[node][chosen.log]
                held.chosen = max(held.chosen, chosen.chosen)

    def forgets(self, node: int) -> None:
        """Its disk is lost: what was chosen by its votes stays so; they count for nothing else."""
        for told in self.told.values():
            told[node] = Told(self.names)
        self.held[node] = {log: Held() for log in self.names}
        self.reserved[node] = 0
        self.applied_to[node] = (0, 0)
        for truth in self.logs.values():
            truth.claimed.pop(node, None)
            for ballot, lengths in truth.lengths.items():
                length = lengths.pop(node, 0)
                lost = truth.lost.setdefault(ballot, {})
                lost[node] = max(lost.get(node, 0), length)

    def _install(self, node: int, cut: Cut) -> None:
        """A checkpoint brings what is chosen, and raises the ballots to its evidence."""
        for log, (executed, evidence, _) in cut.logs.items():
            self._believe(node, log, executed, evidence)
            held = self.held[node][log]
            if executed > held.chosen:
                held.chosen = executed
                if held.accepted < evidence or executed > len(held.entries):
                    held.accepted = max(held.accepted, evidence)
                    held.promised = max(held.promised, held.accepted)
                    held.entries = self.logs[log].chosen[:executed]
                    held.agreed = executed

    def _hold(self, node: int, record: Any, votes: bool) -> None:
        held, truth = self.held[node][record.log], self.logs[record.log]
        ballot, start = record.ballot, record.start
        end = start + len(record.entries)
        if ballot == held.accepted and start <= len(held.entries) <= end:  # a segment's first frame repeats
            again = len(held.entries) - start
            if all(map(same, held.entries[start:], record.entries)):
                record = record._replace(start=len(held.entries), entries=record.entries[again:])
                start = record.start
                if not record.entries:
                    return
        if ballot < held.accepted or (
            ballot < held.promised and not self._installs(truth, ballot, start, record.entries)
        ):
            self.fail(f"node {node} accepts {ballot} in log {record.log} after promising {held.promised}")
        if start > len(held.entries):
            self.fail(f"node {node} leaves a gap in log {record.log}: {start} after {len(held.entries)}")
        if ballot == held.accepted and start != len(held.entries):
            self.fail(f"node {node} cuts log {record.log} at one ballot: {start} of {len(held.entries)}")
        if start < held.agreed and held.agreed > end:
            self.fail(f"node {node} cuts log {record.log} to {start}: {held.agreed} were chosen")
        known = truth.ballots.setdefault(ballot, {})
        last = held.entries[start - 1].timestamp if start else 0
        for slot, entry in enumerate(record.entries, start):
            other = known.setdefault(slot, entry)
            if not same(other, entry):
                self.fail(
                    f"two entries in slot {slot} of log {record.log} at ballot {ballot}: {other}, {entry}"
                )
            if entry.timestamp <= last:
                self.fail(f"log {record.log} slot {slot}: timestamp {entry.timestamp} after {last}")
            last = entry.timestamp
        del held.entries[start:]
        held.entries += record.entries
        held.accepted = ballot
        held.promised = max(held.promised, ballot)
        held.agreed = min(held.agreed, start)
        lengths = truth.lengths.setdefault(ballot, {})
        if votes:
            lengths[node] = len(held.entries)
            self._choose(record.log, ballot, lengths)

    def _installs(self, truth: Truth, ballot: int, start: int, entries: list[Entry]) -> bool:
        """Whether these are chosen: then an acceptor may take them whatever it has promised."""
        chosen = truth.chosen[start : start + len(entries)]
        return ballot in truth.established and len(chosen) == len(entries) and all(map(same, chosen, entries))

    def _recount(self, log: int, ballot: int) -> None:
        """A leader counts a lost disk's votes until it has noted that; so more may be chosen."""
        truth = self.logs[log]
        lengths = dict(truth.lengths.get(ballot, {}))
        for node, length in truth.lost.get(ballot, {}).items():
            lengths[node] = max(lengths.get(node, 0), length)
        self._choose(log, ballot, lengths)

    def _choose(self, log: int, ballot: int, lengths: dict[int, int]) -> None:
        """What a quorum has ever held durably at one ballot is chosen: votes stay cast."""
        truth = self.logs[log]
        if len(lengths) < self.quorum:
            return
        truth.established.add(ballot)
        length = sorted(lengths.values(), reverse=True)[self.quorum - 1]
        known = truth.ballots.get(ballot, {})
        for slot in range(truth.seen[ballot], length):
            if slot in known:  # else it was chosen before this ballot
                self._is_chosen(log, truth, slot, known[slot])
        truth.seen[ballot] = length
        for node in self.nodes:
            held = self.held[node][log]
            if held.accepted == ballot:
                end = min(length, len(held.entries))
                for slot in range(held.agreed, end):
                    self._is_chosen(log, truth, slot, held.entries[slot])
                held.agreed = max(held.agreed, end)

    def _is_chosen(self, log: int, truth: Truth, slot: int, entry: Entry) -> None:
        if slot == len(truth.chosen):
            self._append(log, truth, entry)
        elif slot > len(truth.chosen) or not same(truth.chosen[slot], entry):
            self.fail(
                f"slot {slot} of log {log} is chosen twice, or too early: {entry} of {len(truth.chosen)}"
            )

    def _append(self, log: int, truth: Truth, entry: Entry) -> None:
        if truth.chosen and entry.timestamp <= truth.chosen[-1].timestamp:
            self.fail(f"log {log}: timestamp {entry.timestamp} after {truth.chosen[-1].timestamp}")
        if entry.payload and entry.timestamp <= truth.frontier:
            self.fail(f"log {log}: {entry.timestamp} is chosen below the frontier {truth.frontier}")
        if not entry.payload:
            self.skips += 1
        truth.chosen.append(entry)

    # -- what nodes say

    def begins(self, node: int) -> None:
        """A new life: nothing is remembered but what is durable, the clock's reservation included."""
        self.frontiers[node] = 0
        self.clocks[node] = self.reserved[node]
        self.told[node] = {peer: Told(self.names) for peer in self.nodes}

    def sends(self, node: int, core: Node, message: Message) -> None:
        """A message says nothing that is not durable, and no fact that is not true."""
        kind = message.__class__
        if kind is Learn or kind is Reading:
            for fact in message.facts:
                self.claims(node, core, fact)
            if kind is Learn:
                for log, length in zip(self.names, message.held, strict=False):
                    if length > self.held[node][log].chosen:
                        self.fail(f"node {node} says that it holds what a restart would forget: {message}")
        elif kind is Accepted:
            self.claims(node, core, message.fact)
            if message.vote == Vote.ACCEPTED:
                held = self.held[node][message.log]
                if not (held.accepted > message.ballot or (
                    held.accepted == message.ballot and len(held.entries) >= message.length
                )):  # fmt: skip
                    self.fail(f"node {node} votes before it is durable: {message}")
                self._votes(node, core, message)
        elif kind is Accept:
            self.claims(node, core, message.fact)
            if self.held[node][message.log].candidate < message.ballot:
                self.fail(f"node {node} leads a ballot that is not durable: {message}")
        elif kind is Promise:
            self.claims(node, core, message.fact)
            if message.verdict == Verdict.PROMISED:
                held = self.held[node][message.log]
                if held.promised < message.ballot:
                    self.fail(f"node {node} promises before it is durable: {message}")
                end = message.from_slot + len(message.entries) if message.entries else 0
                if held.accepted < message.accepted or (
                    held.accepted == message.accepted and len(held.entries) < end
                ):
                    self.fail(f"node {node} shows entries that are not durable: {message}")
        elif kind is Prepare:
            if self.held[node][message.log].candidate < message.ballot:
                self.fail(f"node {node} stands with a ballot that is not durable: {message}")
        elif kind is Fetched and message.entries:
            end = message.from_slot + len(message.entries)
            self._believe(node, message.log, end, message.evidence)

    def _votes(self, node: int, core: Node, message: Accepted) -> None:
        """Who votes has joined, and its clock has passed what it holds (R6)."""
        if core.rejoining is not None:
            self.fail(f"node {node} votes, and has not rejoined: {message}")
        if self.owners:
            entries = core.acceptors[message.log].entries
            last = next((entry.timestamp for entry in reversed(entries) if entry.payload), 0)
            if core.clock.time < last:
                self.fail(f"node {node} votes at {core.clock.time}, and holds an entry of {last}")

    def claims(self, node: int, core: Node, fact: Fact) -> None:
        """A fact is true for ever: only the first `chosen` hold commands at or below the frontier."""
        truth = self.logs[fact.log]
        claim = (fact.chosen, fact.evidence, fact.frontier)
        if truth.claimed.get(node) == claim:
            return
        truth.claimed[node] = claim
        self._believe(node, fact.log, fact.chosen, fact.evidence)
        if self.owners and fact.log == node and fact.frontier > self.frontiers[node]:
            self._makes(node, core, fact.frontier)
        for entry in truth.chosen[fact.chosen :]:
            if entry.payload:
                if entry.timestamp <= fact.frontier:
                    self.fail(f"node {node} claims {fact}, but {entry.timestamp} is chosen beyond")
                break
        truth.frontier = max(truth.frontier, fact.frontier)

    def _believe(self, node: int, log: int, chosen: int, evidence: int) -> None:
        truth = self.logs[log]
        if chosen > len(truth.chosen) or evidence not in truth.established:
            self._recount(log, evidence)
        if chosen > len(truth.chosen):
            self.fail(
                f"node {node} takes {chosen} entries of log {log} for chosen, but {len(truth.chosen)} are"
            )
        if evidence not in truth.established or (chosen and not evidence):
            self.fail(f"node {node} names evidence {evidence} of log {log}, which is not established")

    # -- what nodes believe and do

    def believes(self, node: int, core: Node, checked: dict[int, int]) -> None:
        """A node's chosen prefixes are those that are chosen, its own frontier is rightly made.

        `checked`: by log, how far that was seen before.
        """
        if core.clock.time < self.clocks[node]:
            self.fail(f"node {node} has the clock {core.clock.time} after {self.clocks[node]}")
        self.clocks[node] = core.clock.time
        for log, acceptor in core.acceptors.items():
            chosen = acceptor.chosen
            seen = checked[log]
            if chosen == seen:
                continue
            self._believe(node, log, chosen, acceptor.evidence)
            truth = self.logs[log].chosen
            for slot in range(max(seen, acceptor.base), chosen):
                if not same(truth[slot], acceptor.entries[slot - acceptor.base]):
                    self.fail(
                        f"node {node} takes {acceptor.entries[slot - acceptor.base]} for slot {slot} of {log}"
                    )
            checked[log] = chosen
        frontier = core.learner.logs[node].known if self.owners else 0
        if frontier > self.frontiers[node]:
            self._makes(node, core, frontier)
        for log, proposer in core.proposers.items():
            known = max(core.acceptors[log].promised, core.learner.logs[log].evidence)
            if proposer.leading and known > proposer.ballot:
                self.fail(f"node {node} leads log {log} at {proposer.ballot}, and knows of {known}")
            if (proposer.leading or proposer.preparing) and proposer.start != core.acceptors[log].chosen:
                self.fail(
                    f"node {node} leads log {log} from {proposer.start}, not {core.acceptors[log].chosen}"
                )

    def _makes(self, node: int, core: Node, frontier: int) -> None:
        """A node's frontier of its own log has grown: by what is chosen, or from its clock (R3, R4)."""
        self.frontiers[node] = frontier
        truth = self.logs[node]
        if frontier <= truth.frontier or (truth.chosen and frontier <= truth.chosen[-1].timestamp):
            return
        if frontier > self.reserved[node]:
            self.fail(f"node {node} made the frontier {frontier} with {self.reserved[node]} reserved")
        if core.own.ballot not in truth.established:
            self._recount(node, core.own.ballot)
        if core.own.ballot not in truth.established:
            self.fail(f"node {node} made the frontier {frontier} in a ballot that is not established")
        self.claims(node, core, core.learner.fact(node))

    def loads(self, node: int, position: tuple[int, int], rolling: int) -> int:
        """A checkpoint contains what was applied up to its position: how many entries that is."""
        index = bisect_right(self.applied, position, key=lambda entry: entry[:2])
        if index and (self.applied[index - 1][:2] != position or self.hashes[index - 1] != rolling):
            self.fail(f"node {node} loads a checkpoint at {position} with hash {rolling}, which nobody had")
        return index

    def applies(
        self, node: int, index: int, entry: tuple[int, int, bytes], results: list[Result], rolling: int
    ) -> None:
        """Everybody applies the same entries in the same order, and they do the same."""
        if index < len(self.applied):
            if entry != self.applied[index] or results != self.results[index]:
                self.fail(f"node {node} applies {entry}, others {self.applied[index]}")
            if rolling != self.hashes[index]:
                self.fail(f"node {node} has another hash at {entry[:2]}")
            return
        timestamp, owner, payload = entry
        if self.applied and (timestamp, owner) <= self.applied[-1][:2]:
            self.fail(f"node {node} applies {(timestamp, owner)} after {self.applied[-1][:2]}")
        mine, truth = Entry(timestamp, payload), self.logs[owner]
        if not any(same(mine, other) for other in reversed(truth.chosen)):
            for ballot in truth.lost:
                if any(same(mine, other) for other in truth.ballots.get(ballot, {}).values()):
                    self._recount(owner, ballot)
        if not any(same(mine, other) for other in reversed(truth.chosen)):
            self.fail(f"node {node} applies {entry}, which is not chosen")
        self.applied.append(entry)
        self.results.append(results)
        self.hashes.append(rolling)
        commands = decode(Batch, payload).commands
        self.order.applied((timestamp, owner), commands, results)
        for command, result in zip(commands, results, strict=True):
            self._once(command, result)

    def is_due(self, node: int, core: Node, timestamp: int, owner: int) -> None:
        """No log can bring an earlier command any more. What was applied before a restart was due then."""
        if (timestamp, owner) <= self.applied_to[node]:
            return
        for log, of in core.learner.logs.items():
            if self.owners and of.frontier < timestamp - (log > owner):
                self.fail(f"node {node} applies {(timestamp, owner)}, and log {log} is at {of.frontier}")

    def _once(self, command: Command, result: Result) -> None:
        """A command of a session has one result for ever."""
        if command.request is not None:
            session = command.request.session
            key = (session.timestamp, session.owner, session.index, command.request.sequence)
            self.appeared[key] += 1
            if self.appeared[key] > self.submitted[key]:
                self.fail(f"{command} was submitted {self.submitted[key]} times, and proposed more often")
            if result.outcome == Outcome.EXPIRED:
                self.fail(f"a session expired: {command}")
            elif result.outcome != Outcome.FORGOTTEN and self.sessions.setdefault(key, result) != result:
                self.fail(f"{command} was applied twice: {self.sessions[key]}, {result}")
        elif command.verb == Verb.PUT:
            self.puts[command.value] += 1
            if self.puts[command.value] > 1:
                self.fail(f"{command} was applied twice")


# ----------------------------------------------------------------------------------------- machines


class WatchedStore(Store):
    """The real store; the oracle sees what is applied, and what comes of it."""

    def __init__(self, node: int, oracle: Oracle) -> None:
        super().__init__("simulated.json")
        self.node = node
        self.oracle = oracle
        self.core: Node | None = None  # while a process starts: what it replays was due
        self.index = 0
        self.changes.most = KEPT

    def apply(self, timestamp: int, owner: int, payload: bytes) -> list[Result]:
        if self.core is not None:
            self.oracle.is_due(self.node, self.core, timestamp, owner)
        results = super().apply(timestamp, owner, payload)
        self.oracle.applies(self.node, self.index, (timestamp, owner, payload), results, self.hash)
        self.index += 1
        self.oracle.watchers.look(self.node, self)
        return results

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.index = self.oracle.loads(self.node, self.position, self.hash)


class Machine:
    """One node's hardware, and the life of its process that runs just now, if any."""

    def __init__(self, simulation: "Simulation", node: int) -> None:
        self.simulation = simulation
        self.node = node
        self.disks = 0  # that it had
        self.new_disk()
        self.life = 0
        self.replica: Replica | None = None
        self.paused = False
        self.stalled: list[Callable[[], None]] = []  # what happens when it is resumed
        self.rate = 1.0
        self.offset = 0.0
        self.sync_factor = 1.0
        self.tick_at = 0.0
        self.tick_number = 0
        self.turning = False
        self.sweep_at = 0.0
        self.checked: dict[int, int] = {}
        self.copy: tuple[int, SlowDisk, int] | None = (
            None  # of the disk: which, as it was, frames durable then
        )
        self.identities: dict[int, Identity] = {}  # by life: what it says to others of itself

    def new_disk(self) -> None:
        """The first one is made with the cluster; a later one is to rejoin."""
        self.disks += 1
        self.incarnation = int(self.disks == 1)
        self.disk = SlowDisk(Random(f"{self.simulation.seed} disk {self.node} {self.disks}"))
        identity = Identity("simulated", "", self.node, self.incarnation, 0)
        create(DIRECTORY, identity, SEGMENT_BYTES, self.disk)
        self.frames = 0  # durable
        self.spoiled = False  # whether what it holds was changed behind the node's back
        self.forgetful = False  # whether it has lost what was durable
        self.lives: set[int] = set()  # with this disk
        self.lost = self.disks > 1  # whether it has forgotten what others may rely on

    def clock(self) -> float:
        return self.offset + self.rate * self.simulation.now

    def start(self) -> None:
        """A new process: recover the journal, then run. On a damaged disk it does not: it gets a new one."""
        try:
            self._start()
        except Damaged:
            if not (self.spoiled or self.forgetful):
                raise
            self.simulation.replace(self, "damaged")
            self._start()

    def _start(self) -> None:
        simulation = self.simulation
        self.life += 1
        self.offset = simulation.random.uniform(0, 1000)
        core = self.new_core()
        self.journal = Journal(DIRECTORY, SEGMENT_BYTES, files=self.disk)
        frames = list(self.journal.recover())
        first = self.journal.manifest.frame if self.journal.manifest else 1
        count = first - 1 + len(frames)
        if count < self.frames and not (self.spoiled or self.forgetful):
            simulation.fail(f"node {self.node} recovers {count} frames of {self.frames}")
        self.forgetful = self.forgetful or count < self.frames
        if self.forgetful and not self._has_joined(frames):  # it will rejoin, as with a new disk
            raise Damaged(DIRECTORY, 0, "it had not joined")
        self.spoiled = False
        if not self.forgetful:
            for records in frames[max(0, self.frames + 1 - first) :]:
                simulation.oracle.durable(self.node, records, self._cut)
            self.frames = count
        self.store = store = WatchedStore(self.node, simulation.oracle)
        checkpoint.replay(core, self.store, self.disk, DIRECTORY, self.journal.manifest, frames)
        checkpoint.discard(
            self.disk,
            [DIRECTORY / checkpoint.INCOMING, *checkpoint.old_files(self.disk, DIRECTORY, self.journal)],
        )
        self.files = checkpoint.Checkpoints(DIRECTORY, self.journal, self._later, self.disk, CHUNK_BYTES)
        self.recovered = {
            log: (
                a.promised,
                a.accepted,
                a.length,
                core.proposers[log].highest if log in core.proposers else 0,
            )
            for log, a in core.acceptors.items()
        }
        core.start(self.clock())
        self.identities[core.incarnations.life] = core.identify(Identity("", "", self.node, 0, 0))
        self.lives.add(core.incarnations.life)
        self.checked = dict.fromkeys(core.acceptors, 0)
        simulation.oracle.begins(self.node)
        self.core = store.core = core
        self.introduced = self.acquainted = False
        self.replica = Replica(core, self.store, self.clock, self.send, self.write, self.answer, self.files)
        self.tick_at = 0.0
        self.turning = False
        if self.journal.rests_on_foreign_checkpoint:
            self.replica.roll()
        self.turn()

    def new_core(self) -> Node:
        simulation, profile = self.simulation, self.simulation.profile
        failures = profile.failures if simulation.faulty else Failures()
        random = Random(f"{simulation.seed} node {self.node} life {self.life}")
        voters = EverybodyVotes if profile.everybody_votes else Voters
        core = Node(
            self.node, simulation.nodes, random, profile.revoke_after, failures, self.incarnation, voters,
            profile.proposing,
        )  # fmt: skip
        core.compaction.keep_bytes = profile.keep
        return core

    def _has_joined(self, frames: list[list[Record]]) -> bool:
        records = [record for records in frames for record in records]
        return self.incarnation > 0 or any(record.rejoined for record in records)

    def _cut(self, number: int) -> Cut:
        return checkpoint.cut_of(checkpoint.load_installed(self.disk, DIRECTORY, number))

    def _later(self, call: Callable[[], None]) -> None:
        """What the background has done is noticed a little later."""
        simulation, life = self.simulation, self.life
        pause = simulation.random.expovariate(1 / 0.01)

        def work() -> None:
            call()
            self._after_turn()

        def noticed() -> None:
            if life == self.life:
                self._when_running(work)

        simulation.at(simulation.now + pause, noticed)

    def _checkpoint(self, life: int, segment: int, frame: int) -> None:
        """Do what the checkpoint process does; it may die with the machine, at any of its steps."""
        if life != self.life or (segment, frame) != self.journal.rolled:
            return
        simulation, random = self.simulation, self.simulation.random
        core = Node(self.node, simulation.nodes, Random(0), proposing=simulation.profile.proposing)
        store = Store("checkpoint")
        number = self.files.next_number()
        if simulation.faulty and random.random() < 0.1:
            self.disk.crash_after(random.randint(0, 30))
        try:
            made: tuple[Manifest, Cut] = checkpoint.make_checkpoint(
                DIRECTORY, core, store, number, segment, frame, self.disk
            )
            self.journal.checkpointed(made[0])
            self.files.remove_old()
            self.disk.crash_after(None)
        except Crash:
            simulation.faults["crashed checkpoints"] += 1
            simulation.crash(self)
            return
        simulation.faults["checkpoints"] += 1
        self.core.checkpointed(made[1])

    def crash(self) -> None:
        """The power fails: of the frame that is being written any part survives."""
        random = self.simulation.random
        self.replica = None
        self.life += 1
        self.paused = False
        self.stalled.clear()
        self.disk.late.clear()
        self.disk.behind.clear()
        self.disk.slow = False
        self.disk.power_cut(random.choice([lost, kept, some(random)]))

    def resume(self) -> None:
        self.paused = False
        stalled, self.stalled = self.stalled, []
        for action in stalled:
            if self.replica is not None:
                action()
        if self.replica is not None:
            self.turn()

    # -- what the replica is given

    def send(self, to: int, message: Message, call: Any) -> None:
        simulation = self.simulation
        simulation.oracle.sends(self.node, self.core, message)
        if self.acquainted:
            simulation.network.send(self.node, to, message, call)

    def write(self, records: list[Record], done: Callable[[], None], new_segment: bool) -> None:
        simulation, profile = self.simulation, self.simulation.profile
        random = simulation.random
        self.disk.slow = True
        self.journal.write(records, new_segment)
        self.disk.slow = False
        pause = random.expovariate(1 / profile.sync) * self.sync_factor
        if simulation.faulty and random.random() < profile.slow_syncs:
            pause *= random.uniform(10, 300)
        rolled = self.journal.rolled if new_segment else None
        simulation.at(simulation.now + min(pause, 2.0), self._synced, self.life, records, done, rolled)

    def _synced(
        self, life: int, records: list[Record], done: Callable[[], None], rolled: tuple[int, int] | None
    ) -> None:
        if life != self.life:
            return
        self.simulation.note("synced", self.node, len(records))
        self.disk.complete()
        self.frames += 1
        self.introduced = True
        if not self.acquainted and not self.simulation.introduce(self):
            return
        self.acquainted = True
        self.simulation.oracle.durable(self.node, records, self._cut)
        if any(record.rejoined for record in records):
            self.simulation.faults["rejoined"] += self.lost
            self.lost = False
        self.simulation.faults["installed"] += sum(record.installed is not None for record in records)
        if rolled:
            pause = self.simulation.random.expovariate(1 / 0.02)
            self.simulation.at(self.simulation.now + pause, self._checkpoint, self.life, *rolled)
        self._when_running(self._durable, done)

    def _durable(self, done: Callable[[], None]) -> None:
        done()
        self._after_turn()

    def answer(self, token: Any, value: Any) -> None:
        client, operation, attempt = token
        self.simulation.network.answer(client, operation, attempt, value)

    # -- what happens to it

    def _when_running(self, action: Callable[..., None], *arguments: Any) -> None:
        if self.paused:
            self.stalled.append(lambda: action(*arguments))
        else:
            action(*arguments)

    def receive(self, sender: int, message: Message, call: Any, who: tuple[int, int]) -> None:
        if self.paused:
            self.stalled.append(lambda: self._step(sender, message, call, who))
            return
        self._step(sender, message, call, who)
        self._wake()

    def _step(self, sender: int, message: Message, call: Any, who: tuple[int, int]) -> None:
        """Hand it in, unless the sender has a later disk: connections of the older one are closed.

        (Late messages of earlier lives with the same disk are handed in, as is said of Network._deliver.)
        """
        noted = self.core.noted(sender)
        other = self.simulation.machines[sender]
        if message.__class__ is not Rejoin and who[0]:
            if who[0] < noted[0]:
                self.simulation.faults["refused"] += 1
                return
            if who > noted:
                reason = self.core.greet(other.identities[who[1]]._replace(incarnation=who[0]))
                if reason is not None and who[1] in other.lives:
                    self.simulation.fail(f"node {self.node} refuses: {reason}")
                if reason is not None:  # a late message of a disk that is lost
                    return
        if who[1] in other.lives and self.core.joined:  # else it listens to nobody yet
            oracle = self.simulation.oracle
            oracle.told[self.node][sender].hears(message, sender, oracle.held[self.node])
        if message.__class__ is Promise and message.verdict == Verdict.BEHIND:
            self.simulation.faults["behind"] += 1
        self.replica.step(sender, message, call)

    def serve(self, request: Callable[["Machine"], None]) -> None:
        """A client's request."""
        if self.paused:
            self.stalled.append(lambda: request(self))
            return
        request(self)
        self._wake()

    def _wake(self) -> None:
        """Run a turn, now or, as when more has arrived with it, a little later."""
        simulation = self.simulation
        if self.turning:
            return
        if simulation.random.random() < simulation.profile.batching:
            self.turning = True
            simulation.at(simulation.now + simulation.random.uniform(0, 0.001), self._late_turn, self.life)
        else:
            self.turn()

    def _late_turn(self, life: int) -> None:
        if life == self.life:
            self._when_running(self.turn)

    def turn(self) -> None:
        self.turning = False
        self.replica.turn()
        self._after_turn()

    def _after_turn(self) -> None:
        core = self.core
        simulation = self.simulation
        if self.acquainted or not self.forgetful:
            simulation.oracle.believes(self.node, core, self.checked)
        now = simulation.now
        at = now + (TICK_BUSY if core.busy else TICK_IDLE) / self.rate
        if at < self.tick_at - TICK_BUSY or now >= self.tick_at:
            self.tick_at = at
            self.tick_number += 1
            simulation.at(at, self._tick, self.life, self.tick_number)

    def _tick(self, life: int, number: int) -> None:
        if life == self.life and number == self.tick_number:
            self._when_running(self._ticked)

    def _ticked(self) -> None:
        simulation = self.simulation
        simulation.note("tick", self.node)
        self.tick_at = 0.0
        now = simulation.now
        if now >= self.sweep_at:
            self.sweep_at = now + SWEEP
            if not self.disk.late:
                self.journal.maintain()
                if simulation.random.random() < simulation.profile.snapshots:
                    self.copy = self.disks, self.disk.copied(), self.frames
            self.replica.expire(self.clock() - simulation.profile.request_timeout * self.rate)
            if simulation.random.random() < simulation.profile.checkpoints * SWEEP:
                self.replica.roll()
        self.replica.tick()
        self.turn()


# ------------------------------------------------------------------------------------------ network


@dataclass(slots=True)
class Link:
    """One direction between two nodes."""

    loss: float = 0.0
    delay: float = 0.0
    blocked: int = 0  # by so many faults
    epoch: int = 0  # of the connection, where the order is kept
    last: float = 0.0  # when its last message arrives


class Network:
    """Messages between nodes, and between clients and nodes."""

    def __init__(self, simulation: "Simulation") -> None:
        self.simulation = simulation
        random, profile = simulation.random, simulation.profile
        self.fifo = random.random() < profile.fifo
        self.links = {(a, b): Link() for a in simulation.nodes for b in simulation.nodes if a != b}
        for link in self.links.values():
            self.draw(link)

    def draw(self, link: Link) -> None:
        """Give a link other weather."""
        random, profile = self.simulation.random, self.simulation.profile
        link.loss = 0.0 if self.fifo else random.choice([0.0, random.uniform(0, profile.loss), profile.loss])
        link.delay = profile.delay * random.choice([0.2, 1, 1, 1, random.uniform(1, 20)])

    def reset(self, node: int) -> None:
        """All connections of a node are gone, with what is in flight."""
        if self.fifo:
            for pair, link in self.links.items():
                if node in pair:
                    link.epoch += 1

    def send(self, sender: int, to: int, message: Message, call: Any) -> None:
        simulation = self.simulation
        random, profile = simulation.random, simulation.profile
        kind = message.__class__
        request = ANSWER_TO.get(kind)
        if request is not None and call != (to, request):
            simulation.fail(f"node {sender} answers {call} with {message} to {to}")
        link = self.links[sender, to]
        core, machine = simulation.machines[sender].core, simulation.machines[to]
        incarnation = core.incarnations.incarnation if core.rejoining is None else 0
        ends = ((incarnation, core.incarnations.life), machine.disks, machine.life if kind is Rejoined else 0)
        pause = random.expovariate(1 / link.delay)
        if not simulation.faulty:
            simulation.at(simulation.now + pause, self._deliver, sender, to, message, link.epoch, ends)
            return
        if random.random() < profile.slow_messages:
            pause *= random.uniform(1, 50)
        if self.fifo:
            if link.blocked:
                return
            link.last = max(link.last, simulation.now + pause)
            simulation.at(link.last, self._deliver, sender, to, message, link.epoch, ends)
            return
        if random.random() < link.loss or (kind is Learn and random.random() < profile.learn_loss):
            return
        simulation.at(simulation.now + pause, self._deliver, sender, to, message, link.epoch, ends)
        chance = random.random()
        if chance < profile.duplicates:
            simulation.at(
                simulation.now + pause * 3 * chance / profile.duplicates,
                self._deliver,
                sender,
                to,
                message,
                0,
                ends,
            )
        if chance < profile.late_duplicates:
            simulation.at(simulation.now + random.uniform(0, 2), self._deliver, sender, to, message, 0, ends)

    def _deliver(
        self,
        sender: int,
        to: int,
        message: Message,
        epoch: int,
        ends: tuple[tuple[int, int], int, int],
    ) -> None:
        """`ends`: who sent it, with which disk; to which disk, and to which life if it matters.

        A connection belongs to two processes. Here messages may even come to a later one with the same disk,
        which is harder; but not to another disk, and what a rejoining node is told not to another life.
        """
        simulation = self.simulation
        link = self.links[sender, to]
        machine = simulation.machines[to]
        if link.blocked or link.epoch != epoch or machine.replica is None:
            return
        if machine.forgetful and not machine.acquainted:
            return  # it has no connections before it has said who it is
        who, disk, life = ends
        if disk != machine.disks or (life and life != machine.life):
            return
        simulation.note(message.__class__.__name__, to, sender, message)
        simulation.messages += 1
        if simulation.messages % WIRED == 0:
            copy = decode(message.__class__, encode(message))
            if copy != message:
                simulation.fail(f"{message} becomes {copy} on the wire")
            message = copy
        call = (
            None
            if message.__class__ in ANSWER_TO or message.__class__ is Learn
            else (sender, message.__class__)
        )
        machine.receive(sender, message, call, who)

    # -- clients

    def _pause(self) -> float:
        return self.simulation.random.expovariate(1 / 0.001)

    def _lost(self) -> bool:
        simulation = self.simulation
        return simulation.faulty and simulation.random.random() < simulation.profile.lost_requests

    def request(self, node: int, operation: "Pending", attempt: int) -> None:
        if not self._lost():
            self.simulation.at(self.simulation.now + self._pause(), self._serve, node, operation, attempt)

    def _serve(self, node: int, operation: "Pending", attempt: int) -> None:
        machine = self.simulation.machines[node]
        self.simulation.note("request", node, operation.number, attempt)
        if machine.replica is None:
            self.answer(operation.client, operation, attempt, NotDone("refused", False))
        else:
            machine.serve(lambda machine: operation.client.serve(machine, operation, attempt))

    def answer(self, client: "Client", operation: "Pending", attempt: int, value: Any) -> None:
        if not self._lost():
            self.simulation.at(
                self.simulation.now + self._pause(), self._answered, client, operation, attempt, value
            )

    def _answered(self, client: "Client", operation: "Pending", attempt: int, value: Any) -> None:
        self.simulation.note("answer", client.number, operation.number, attempt)
        client.answered(operation, attempt, value)


# ------------------------------------------------------------------------------------------ clients


class Pending:
    """An operation under way at a client."""

    __slots__ = (
        "attempt",
        "call",
        "client",
        "commands",
        "done",
        "kind",
        "maybe",
        "node",
        "number",
        "sequence",
    )

    def __init__(self, client: "Client", number: int, kind: str, commands: list[Command], call: int) -> None:
        self.client = client
        self.number = number
        self.kind = kind  # session, command, batch, read, local, open
        self.commands = commands
        self.call = call
        self.sequence = 0
        self.attempt = 0
        self.node = 0
        self.maybe = False  # an attempt may have been done
        self.done = False


NAMES = {
    Verb.PUT: "put",
    Verb.GET: "get",
    Verb.DELETE: "delete",
    Verb.COMPARE_AND_SET: "cas",
    Verb.INCREMENT: "incr",
}
RELATIONS = {
    Relation.EQUALS: "equals", Relation.DIFFERS: "differs", Relation.EXISTS: "exists",
    Relation.ABSENT: "absent", Relation.LESS: "less", Relation.GREATER: "greater",
}  # fmt: skip
OUTCOMES = {
    Outcome.OK: "ok", Outcome.NOT_FOUND: "not_found", Outcome.MISMATCH: "mismatch",
    Outcome.NOT_A_NUMBER: "not_a_number",
}  # fmt: skip


class Client:
    """Keeps several operations in flight, repeats them at other nodes, and writes down what it saw."""

    def __init__(self, simulation: "Simulation", number: int) -> None:
        self.simulation = simulation
        self.random = Random(f"{simulation.seed} client {number}")
        self.number = number
        self.home = simulation.nodes[number % len(simulation.nodes)]
        self.numbers = NUMBERS[: simulation.profile.keys]
        self.texts = TEXTS[: simulation.profile.keys]
        self.session: Session | None = None
        self.next_sequence = 1
        self.pending: dict[int, Pending] = {}  # by number
        self.positions: dict[tuple[int, int], tuple[int, int]] = {}

    def start(self) -> None:
        if self.simulation.profile.transactions and not self.simulation.upgraded:
            self._begin("upgrade", [Command(Verb.UPGRADE, delta=FORMAT)])
        else:
            self._begin("open", [Command(Verb.OPEN_SESSION)])

    def go_on(self) -> None:
        """Begin the next operation."""
        simulation, profile = self.simulation, self.simulation.profile
        if not simulation.faulty or len(self.pending) >= profile.in_flight:
            return
        random = self.random
        if profile.transactions and random.random() < profile.transactions:
            self._begin(*self._joined())
        elif random.random() < profile.reads:
            self._begin("read", [Command(Verb.GET, random.choice(self.numbers + self.texts))])
        elif (chance := random.random()) < 0.07:
            self._begin("local", [Command(Verb.GET, random.choice(self.numbers + self.texts))])
        elif chance < 0.20:
            self._begin("command", [self._command()])
        elif chance < 0.27:
            self._begin("batch", [self._command() for _ in range(random.randint(1, 4))])
        else:
            self._begin("session", [self._command()])
        simulation.at(simulation.now + random.expovariate(1 / profile.think), self.go_on)

    def _command(self) -> Command:
        random = self.random
        self.simulation.values += 1
        unique = str(self.simulation.values)
        if random.random() < 0.4:
            key = random.choice(self.numbers)
            return random.choice([
                Command(Verb.INCREMENT, key, delta=random.randint(-3, 9)),
                Command(Verb.INCREMENT, key, delta=self.simulation.values),
                Command(Verb.GET, key),
            ])  # fmt: skip
        key = random.choice(self.texts)
        seen = self.simulation.seen.get(key)
        return random.choice([
            Command(Verb.PUT, key, unique),
            Command(Verb.PUT, key, unique),
            Command(Verb.COMPARE_AND_SET, key, unique, seen),
            Command(Verb.DELETE, key),
            Command(Verb.GET, key),
        ])  # fmt: skip

    def _joined(self) -> tuple[str, list[Command]]:
        """A transaction, mostly, or a read or write of a key that others have transactions on."""
        random = self.random
        self.simulation.values += 1
        unique = str(self.simulation.values)
        chance = random.random()
        if chance < 0.2:
            return "read", [Command(Verb.GET, random.choice(JOINED))]
        if chance < 0.3:
            return "session", [Command(Verb.PUT, random.choice(JOINED), unique)]
        compares = []
        for key in random.sample(JOINED, random.randint(0, 2)):
            seen = self.simulation.seen.get(key)
            relation = random.choice([Relation.EQUALS, Relation.DIFFERS]) if seen else Relation.ABSENT
            relation = random.choice([relation, relation, Relation.EXISTS, Relation.LESS])
            value = {Relation.LESS: unique}.get(relation, seen) if relation != Relation.EXISTS else None
            compares.append(Compare(key, relation, value))
        lists = []
        for _ in range(2):
            keys = random.sample(JOINED, random.randint(1, 3))
            lists.append([
                random.choice([
                    Action(Verb.PUT, key, unique),
                    Action(Verb.PUT, key, unique),
                    Action(Verb.INCREMENT, key, None, 1),
                    Action(Verb.DELETE, key),
                    Action(Verb.GET, key),
                ])
                for key in keys
            ])  # fmt: skip
        if self.simulation.profile.leases:
            lists = [[self._leased(action) for action in actions] for actions in lists]
        command = Command(Verb.TRANSACTION, transaction=Transaction(compares, *lists))
        return ("session" if random.random() < 0.8 else "command"), [command]

    def _leased(self, action: Action) -> Action:
        if action.verb != Verb.PUT or self.random.random() >= self.simulation.profile.leases:
            return action
        return action._replace(ttl_ms=self.random.choice([1, 50, 300, 1000]))

    def _begin(self, kind: str, commands: list[Command]) -> None:
        simulation = self.simulation
        simulation.operations += 1
        pending = Pending(self, simulation.operations, kind, commands, simulation.nanoseconds())
        if kind == "session":
            pending.sequence = self.next_sequence
            self.next_sequence += 1
        self.pending[pending.number] = pending
        self._try(pending)

    def _try(self, pending: Pending) -> None:
        simulation = self.simulation
        pending.attempt += 1
        nodes = simulation.nodes
        if pending.attempt == 1:
            pending.node = self.home if self.random.random() < 0.7 else self.random.choice(nodes)
        else:
            pending.node = nodes[(nodes.index(pending.node) + 1) % len(nodes)]
        simulation.network.request(pending.node, pending, pending.attempt)
        timeout = simulation.profile.client_timeout * self.random.uniform(0.5, 1.5)
        simulation.at(simulation.now + timeout, self._timed_out, pending, pending.attempt)

    def serve(self, machine: Machine, pending: Pending, attempt: int) -> None:
        """The request has reached a node."""
        token = (self, pending, attempt)
        replica, store = machine.replica, machine.store
        key = pending.commands[0].key
        if pending.kind == "read":
            replica.read(token, lambda: store.get(key))
        elif pending.kind == "local":
            life = (machine.node, machine.life)
            if store.position < self.positions.get(life, (0, 0)):
                self.simulation.fail(f"node {machine.node} went back to {store.position}")
            self.positions[life] = store.position
            machine.answer(token, store.get(key))
        elif pending.kind == "session":
            first = min((p.sequence for p in self.pending.values() if p.sequence), default=self.next_sequence)
            request = RequestId(self.session, pending.sequence, min(first, pending.sequence))
            command = pending.commands[0]
            session = self.session
            key = (session.timestamp, session.owner, session.index, pending.sequence)
            self.simulation.oracle.submitted[key] += 1
            replica.submit(token, [command._replace(request=request)])
        else:
            replica.submit(token, pending.commands, pending.kind == "batch")

    def _timed_out(self, pending: Pending, attempt: int) -> None:
        if not pending.done and pending.attempt == attempt:
            pending.maybe = True
            self._again(pending)

    def _again(self, pending: Pending) -> None:
        """Repeat what may be repeated, until patience ends."""
        repeatable = pending.kind in ("session", "read", "local", "open", "upgrade")
        ends = pending.attempt >= 12 if self.simulation.faulty else pending.attempt >= 400
        if self.random.random() < 0.02 and pending.kind != "open":
            ends = True
        if ends or (pending.maybe and not repeatable):
            self._finish(pending, None)
        else:
            pause = self.random.uniform(0, 0.05)
            self.simulation.at(self.simulation.now + pause, self._retry, pending, pending.attempt)

    def _retry(self, pending: Pending, attempt: int) -> None:
        if not pending.done and pending.attempt == attempt:
            self._try(pending)

    def answered(self, pending: Pending, attempt: int, value: Any) -> None:
        if pending.done:
            return
        if isinstance(value, Expired | Forgotten):
            self.simulation.fail(f"an operation under way was refused: {value} to {pending.commands}")
        if isinstance(value, NotDone | Unknown):
            pending.maybe |= isinstance(value, Unknown)
            if attempt == pending.attempt:
                self._again(pending)
            return
        self._finish(pending, value)

    def _finish(self, pending: Pending, value: Any) -> None:
        simulation = self.simulation
        pending.done = True
        del self.pending[pending.number]
        if pending.kind == "upgrade":
            simulation.upgraded = simulation.upgraded or value is not None
            self.start()
            return
        if pending.kind == "open":
            if value is None:
                self.start()
                return
            self.session = value.session
            for _ in range(simulation.profile.in_flight):
                simulation.at(
                    simulation.now + self.random.expovariate(1 / simulation.profile.think), self.go_on
                )
            return
        if pending.kind != "local":
            self._record(pending, value)
        simulation.answered += value is not None
        simulation.given_up += value is None
        simulation.at(simulation.now + self.random.expovariate(1 / simulation.profile.think), self.go_on)

    def _record(self, pending: Pending, value: Any) -> None:
        simulation = self.simulation
        results = value if pending.kind == "batch" else [value]
        if value is None:
            results = [None] * len(pending.commands)
        if pending.kind == "session" and value is not None:
            session = self.session
            key = (session.timestamp, session.owner, session.index, pending.sequence)
            applied = simulation.oracle.sessions.get(key)
            if applied != value:
                simulation.fail(f"{pending.commands[0]} was answered with {value}, not {applied}")
        for command, result in zip(pending.commands, results, strict=True):
            if command.verb == Verb.TRANSACTION:
                self._record_transaction(pending, command.transaction, result)
                continue
            answer = None
            if result is None:
                outcome = "unknown" if pending.maybe else "failed"
            else:
                outcome = OUTCOMES[result.outcome]
                answer = result.value
                if command.verb == Verb.GET or outcome == "mismatch":
                    simulation.seen[command.key] = answer
            simulation.history.append(
                Operation(
                    client=self.number, kind=NAMES[command.verb], key=command.key, value=command.value,
                    expected=command.expected, delta=command.delta or 0, outcome=outcome, answer=answer,
                    call=pending.call, return_=None if outcome == "unknown" else simulation.nanoseconds(),
                )
            )  # fmt: skip

    def _record_transaction(self, pending: Pending, done: Transaction, result: Result | None) -> None:
        simulation = self.simulation
        changes = Changes(
            tuple((compare.key, RELATIONS[compare.relation], compare.value) for compare in done.compares),
            *(
                tuple(
                    (NAMES[verb], key, value if delta is None else str(delta))
                    for verb, key, value, delta, _ in part
                )
                for part in (done.then_do, done.else_do)
            ),
        )
        if result is None:
            outcome, answers = "unknown" if pending.maybe else "failed", ()
        else:
            outcome = OUTCOMES[result.outcome]
            actions = {"ok": done.then_do, "mismatch": done.else_do}.get(outcome, [])
            given = result.transacted.answers if result.transacted else []
            answers = tuple(
                answer.outcome == Outcome.OK if action.verb == Verb.DELETE else answer.value
                for action, answer in zip(actions, given, strict=True)
            )
            for action, answer in zip(actions, given, strict=True):
                if action.verb == Verb.GET:
                    simulation.seen[action.key] = answer.value
        simulation.history.append(
            Operation(
                client=self.number, kind="transaction", key="", outcome=outcome, call=pending.call,
                return_=None if outcome == "unknown" else simulation.nanoseconds(), changes=changes,
                answers=answers,
            )
        )  # fmt: skip


# --------------------------------------------------------------------------------------- simulation


class Report(NamedTuple):
    """What a run that broke no rule was like."""

    seed: int
    profile: str
    events: int
    trace_hash: int
    simulated: float  # seconds
    rest: float  # seconds from the end of all faults until everything was at rest
    counts: dict[str, int]


class Simulation:
    """One run. `faulty` says which phase it is in."""

    machine = Machine

    def __init__(self, seed: int, profile: Profile = PROFILES["default"]) -> None:
        self.seed = seed
        self.profile = profile
        self.random = Random(f"{seed} {profile.name}")
        self.nodes = list(range(1, profile.nodes + 1))
        self.now = 0.0
        self.began = 0.0  # when the phase without faults did
        self.faulty = True
        self.queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.scheduled = 0
        self.events = 0
        self.trace: deque[tuple[Any, ...]] = deque(maxlen=TRACE)
        self.trace_hash = 0
        self.messages = self.operations = self.answered = self.given_up = self.values = 0
        self.faults: Counter[str] = Counter()
        self.seen: dict[str, str | None] = {}  # by key: a value that was read, for compare-and-set to expect
        self.history: list[Operation] = []
        self.upgraded = False  # whether the store understands transactions
        self.oracle = Oracle(self.nodes, profile.proposing, seed, self.fail)
        if profile.leases:
            self.oracle.order.leases = Leases(lambda: self.now, profile.clocks, self.fail, self._expired)
        self.network = Network(self)
        self.machines = {node: self.machine(self, node) for node in self.nodes}
        self.clients = [Client(self, number) for number in range(profile.clients)]
        self.undo: list[Callable[[], None]] = []
        self.doomed: list[int] = self.random.sample(self.nodes, profile.dead)

    # -- the scheduler

    def at(self, time: float, action: Callable[..., None], *arguments: Any) -> None:
        self.scheduled += 1
        heapq.heappush(self.queue, (time, self.scheduled, action, arguments))

    def note(self, what: str, node: int, *more: Any) -> None:
        """Note an event in the trace and its hash, by numbers only: a string's hash differs between runs."""
        self.trace.append((self.now, what, node, *more))
        self.trace_hash = hash((self.trace_hash, self.now, node, len(what)))

    def nanoseconds(self) -> int:
        return int(self.now * 1e9)

    def run_until(self, until: float, stop: Callable[[], bool] | None = None) -> None:
        queue = self.queue
        look_at = self.now + TO_REST
        while queue and queue[0][0] <= until:
            time, _, action, arguments = heapq.heappop(queue)
            self.now = time
            self.events += 1
            action(*arguments)
            if stop is not None and time >= look_at:
                if stop():
                    return
                look_at = time + TO_REST
        self.now = max(self.now, until)

    def run(self) -> Report:
        """The whole run, or up to where nothing can be promised. Violation if a rule is broken."""
        try:
            self._run()
        except Violation:
            raise
        except Unavoidable:
            self.faults["unavoidable"] += 1
        except Exception as error:
            raise Violation(self._story(f"{type(error).__name__}: {error}")) from error
        return self._report()

    def _run(self) -> None:
        for machine in self.machines.values():
            machine.rate = self.random.choice([1.0, 1 / self.profile.clocks, self.profile.clocks])
            machine.start()
        for client in self.clients:
            client.start()
        self.at(self.random.expovariate(self.profile.fault_rate), self._fault)
        self.run_until(self.profile.seconds)
        self._calm()
        self.began = self.now
        self.run_until(self.now + self.profile.patience, self._at_rest)
        if not self._at_rest():
            self.fail(f"no rest within {self.profile.patience} s: {self._unrest()}")
        self._judge()

    def _expired(self, key: str, since: float) -> None:
        """A node's command has removed a key: the clients' history has to know."""
        self.faults["expired"] += 1
        self.history.append(
            Operation(
                client=-1, kind="delete", key=key, outcome="ok", call=int(since * 1e9),
                return_=self.nanoseconds(),
            )
        )  # fmt: skip

    def _report(self) -> Report:
        oracle = self.oracle
        applied = tuple((timestamp, owner, len(payload)) for timestamp, owner, payload in oracle.applied)
        self.trace_hash = hash((self.trace_hash, applied, self.random.random()))
        counts = {
            "messages": self.messages, "operations": self.operations, "answered": self.answered,
            "given up": self.given_up, "applied": len(oracle.applied), "skips": oracle.skips, **self.faults,
        }  # fmt: skip
        return Report(
            self.seed,
            self.profile.name,
            self.events,
            self.trace_hash,
            self.now,
            self.now - self.began,
            counts,
        )

    def fail(self, reason: str) -> None:
        raise Violation(self._story(reason))

    def _story(self, reason: str) -> str:
        lines = [
            f"seed {self.seed}, profile {self.profile.name}, {self.now:.6f} s, event {self.events}: {reason}"
        ]
        for time, what, *rest in self.trace:
            lines.append(f"  {time:11.6f} {what:9} " + " ".join(str(item) for item in rest))
        for node, machine in self.machines.items():
            lines.append(f"  node {node}: " + self._state(machine))
        for log, truth in self.oracle.logs.items():
            lines.append(f"  log {log}: {len(truth.chosen)} chosen; durable: " + self._held(log))
        return "\n".join(lines)

    def _held(self, log: int) -> str:
        """Tell who holds what of a log on its disk: length, ballot, and the last entries' timestamps."""
        parts = []
        from_slot = max(0, len(self.oracle.logs[log].chosen) - 2)
        for node in self.nodes:
            held = self.oracle.held[node][log]
            entries = " ".join(
                f"{entry.timestamp}{'' if entry.payload else '-'}" for entry in held.entries[from_slot:]
            )
            ballot = f"{held.accepted >> 8}.{held.accepted & 255}"
            parts.append(f"{node} has {len(held.entries)} at {ballot} [{entries}]")
        return ", ".join(parts)

    def _state(self, machine: Machine) -> str:
        if machine.replica is None:
            return "down"
        core = machine.core
        logs = " ".join(
            f"{log}:({a.promised >> 8}.{a.promised & 255} {a.accepted >> 8}.{a.accepted & 255}"
            f" {a.chosen}/{a.length} f{core.learner.logs[log].frontier})"
            for log, a in core.acceptors.items()
        )
        paused = "paused " if machine.paused else ""
        return f"{paused}clock {core.clock.time} of {core.clock.reserved} head {core.learner.next()} {logs}"

    # -- faults

    def _fault(self) -> None:
        """Break something for a while."""
        if not self.faulty:
            return
        random, profile = self.random, self.profile
        kinds = {
            self._crash: profile.crashes, self._pause: profile.pauses, self._partition: profile.partitions,
            self._one_way: profile.one_ways, self._broken_link: profile.broken_links,
            self._weather: profile.weather, self._disk_trouble: profile.disk_troubles,
        }  # fmt: skip
        fault = random.choices(list(kinds), list(kinds.values()))[0]
        self.faults[fault.__name__[1:]] += 1
        self.note("fault", self.nodes.index(random.choice(self.nodes)), fault.__name__)
        fault()
        self.at(self.now + random.expovariate(profile.fault_rate), self._fault)

    def _for_a_while(self, undo: Callable[[], None]) -> None:
        """Undo it after a time, or when all faults end."""
        self.undo.append(undo)
        self.at(self.now + self.random.expovariate(1 / self.profile.outage), self._undo, undo)

    def _undo(self, undo: Callable[[], None]) -> None:
        if undo in self.undo:
            self.undo.remove(undo)
            undo()

    def _crash(self) -> None:
        machine = self.machines[self.random.choice(self.nodes)]
        if machine.replica is None:
            return
        self.crash(machine)

    def crash(self, machine: Machine) -> None:
        self.note("crash", machine.node)
        machine.crash()
        self.network.reset(machine.node)
        self._tell_refused(machine.node, True)
        self._for_a_while(lambda: self._restart(machine))

    def _restart(self, machine: Machine) -> None:
        if machine.replica is None:
            if self.profile.wipes and self.random.random() < self.profile.wipes:
                self._wipe(machine)
            elif self.profile.flips and self.random.random() < self.profile.flips:
                self._flip(machine)
            elif self.profile.snapshots and self.random.random() < self.profile.snapshots:
                self._put_back(machine)
            self.note("restart", machine.node)
            machine.start()
            for other in self.machines.values():
                if other.replica is None:
                    machine.core.link(other.node, True)
                elif other is not machine:
                    other.core.link(machine.node, False)

    def _may_lose(self, machine: Machine) -> bool:
        """Whether its disk may be lost: not if a quorum could then have forgotten what it knew together."""
        others = [other for other in self.machines.values() if other is not machine]
        lost = sum(other.lost or other.spoiled or other.forgetful for other in others)
        return self.faulty and lost + 1 <= len(self.nodes) - self.oracle.quorum

    def _wipe(self, machine: Machine) -> None:
        if self._may_lose(machine):
            self.replace(machine, "wiped")

    def replace(self, machine: Machine, why: str) -> None:
        """A new disk."""
        self.note(why, machine.node)
        self.faults[why] += 1
        machine.new_disk()
        self.oracle.forgets(machine.node)

    def _flip(self, machine: Machine) -> None:
        """Flip a bit of the last frame on the disk, whoever knows of it."""
        frame = machine.disk.last_frame()
        if frame is not None and self._may_lose(machine):
            content, start, end = frame
            at, bit = self.random.randrange(start, end), 1 << self.random.randrange(8)
            content.cached[at] ^= bit
            content.durable[at] ^= bit
            machine.spoiled = True
            self.note("flip", machine.node)
            self.faults["flipped"] += 1

    def _put_back(self, machine: Machine) -> None:
        """The copy that was made of the disk takes its place."""
        if machine.copy is not None and machine.copy[0] == machine.disks and self._may_lose(machine):
            machine.disk = machine.copy[1].copied()
            machine.spoiled = True
            self.note("put back", machine.node)
            self.faults["put back"] += machine.copy[2] < machine.frames

    def introduce(self, machine: Machine) -> bool:
        """A process says who it is to everybody whom it reaches, before anything else.

        False: somebody refuses it, and it has ended. Whether it was to be refused, the oracle says by what
        each of them was told in its life. Unavoidable: nobody knew who could be asked.
        """
        links = self.network.links
        asked = [
            other
            for other in self.alive()
            if other is not machine
            and not other.paused
            and (other.acquainted or not other.forgetful)
            and not links[machine.node, other.node].blocked
            and not links[other.node, machine.node].blocked
        ]
        identity = machine.core.identify(Identity("", "", machine.node, 0, 0))
        reasons = [reason for other in asked if (reason := other.core.greet(identity)) is not None]
        if reasons:
            if not machine.forgetful:
                self.fail(f"refused, but nothing is lost: {reasons}")
            self.note("refused", machine.node)
            self.crash(machine)
            self.replace(machine, "refused copies")
            return False
        for other in asked:
            other._wake()
        if machine.forgetful:
            told = self.oracle.told
            better = [o.node for o in asked if told[o.node][machine.node].knows_better(machine.recovered)]
            if better:
                self.fail(f"node {machine.node} has forgotten what nodes {better} were told, and may vote")
            raise Unavoidable
        return True

    def _tell_refused(self, node: int, refused: bool) -> None:
        for other in self.machines.values():
            if other.replica is not None:
                other.core.link(node, refused)

    def _pause(self) -> None:
        machine = self.machines[self.random.choice(self.nodes)]
        if machine.replica is None or machine.paused:
            return
        self.note("pause", machine.node)
        machine.paused = True
        life = machine.life
        self._for_a_while(lambda: self._resume(machine, life))

    def _resume(self, machine: Machine, life: int) -> None:
        if machine.life == life and machine.paused:
            self.note("resume", machine.node)
            machine.resume()

    def _block(self, pairs: list[tuple[int, int]]) -> None:
        links = [self.network.links[pair] for pair in pairs]
        for link in links:
            link.blocked += 1
            link.epoch += self.network.fifo

        def heal() -> None:
            self.note("heal", 0)
            for (a, b), link in zip(pairs, links, strict=True):
                link.blocked -= 1
                if self.machines[a].replica is not None:
                    self.machines[a].core.link(b, self.machines[b].replica is None)

        self._for_a_while(heal)

    def _partition(self) -> None:
        side = self.random.sample(self.nodes, self.random.randint(0, len(self.nodes) // 2))
        self.note("partition", 0, side)
        self._block([(a, b) for a, b in self.network.links if (a in side) != (b in side)])

    def _one_way(self) -> None:
        side = self.random.sample(self.nodes, self.random.randint(0, len(self.nodes) - 1))
        self.note("one-way", 0, side)
        self._block([(a, b) for a, b in self.network.links if a in side and b not in side])

    def _broken_link(self) -> None:
        if len(self.nodes) < 2:
            return
        a, b = self.random.sample(self.nodes, 2)
        self.note("broken", a, b)
        if self.random.random() < 0.5:  # as by a firewall that rejects, which says nothing about the node
            for one, other in ((a, b), (b, a)):
                if self.machines[one].replica is not None:
                    self.machines[one].core.link(other, True)
        self._block([(a, b), (b, a)])

    def _weather(self) -> None:
        if self.network.links:
            self.network.draw(self.network.links[self.random.choice(list(self.network.links))])

    def _disk_trouble(self) -> None:
        machine = self.machines[self.random.choice(self.nodes)]
        machine.sync_factor = self.random.uniform(5, 200)

        def well() -> None:
            machine.sync_factor = 1.0

        self._for_a_while(well)

    # -- the end

    def _calm(self) -> None:
        """All faults end, but for those that never do."""
        self.note("calm", 0)
        self.faulty = False
        while self.undo:
            self.undo.pop(0)()
        for machine in self.machines.values():
            machine.sync_factor = 1.0
            if machine.node in self.doomed and machine.replica is not None:
                machine.crash()
                self._tell_refused(machine.node, True)
            elif machine.replica is not None:
                machine.core.faults.end()
        for link in self.network.links.values():
            link.delay = self.profile.delay
        if self.profile.broken:
            a, b = self.random.sample([node for node in self.nodes if node not in self.doomed], 2)
            self.network.links[a, b].blocked += 1
            self.network.links[b, a].blocked += 1

    def _reaches_quorum(self, node: int) -> bool:
        """Whether a node has links to a quorum, itself included: only then can it get anything done."""
        reached = [
            other
            for other in self.nodes
            if other != node
            and self.machines[other].replica is not None
            and not self.network.links[node, other].blocked
        ]
        return len(reached) + 1 >= self.oracle.quorum

    def _unrest(self) -> str:
        """What is still pending; empty if nothing is. Who reaches no quorum need not get anything done."""
        parts = [f"client {c.number}: {len(c.pending)} pending" for c in self.clients if c.pending]
        for machine in self.alive():
            core, replica = machine.core, machine.replica
            own = [len(queue) for queue in (replica.repeats, replica.open, replica.reading, replica.queue)]
            if isinstance(core.way, OwnLogs):
                commands, reads = core.way.commands, core.way.reads
                own += [len(commands.pending), len(commands.backlog), len(reads.waiting), len(reads.dated)]
                own.append(int(reads.round is not None))
            elif isinstance(core.way, OneLog):
                own += [core.way.in_flight, *map(len, core.way.reads())]
            if core.rejoining is not None:
                parts.append(f"node {machine.node}: rejoining")
            if any(own) and self._reaches_quorum(machine.node):
                parts.append(f"node {machine.node}: pending {own}")
            elif core.learner.heads:
                parts.append(f"node {machine.node}: chosen, not applied: {core.learner.heads}")
            elif machine.store.index != len(self.oracle.applied):
                parts.append(
                    f"node {machine.node}: applied {machine.store.index} of {len(self.oracle.applied)}"
                )
            elif machine.store.leases:
                parts.append(f"node {machine.node}: keys that have yet to expire: {[*machine.store.leases]}")
            elif any(
                core.acceptors[log].chosen != len(truth.chosen) for log, truth in self.oracle.logs.items()
            ):
                parts.append(f"node {machine.node}: does not hold all that is chosen")
        return "; ".join(parts)

    def alive(self) -> list[Machine]:
        return [machine for machine in self.machines.values() if machine.replica is not None]

    def _at_rest(self) -> bool:
        for client in self.clients:
            if client.pending:
                return False
        return not self._unrest()

    def _judge(self) -> None:
        """At rest: what clients saw is linearizable, all nodes hold the same, and nothing has piled up."""
        digests = {machine.store.state_digest() for machine in self.alive()}
        if len(digests) > 1:
            self.fail("the nodes' states differ")
        chosen = sum(1 for truth in self.oracle.logs.values() for entry in truth.chosen if entry.payload)
        if chosen != len(self.oracle.applied):
            self.fail(f"{chosen} commands are chosen, but {len(self.oracle.applied)} applied")
        for machine in self.alive():
            core = machine.core
            unchosen = max(acceptor.length - acceptor.chosen for acceptor in core.acceptors.values())
            if unchosen > UNCHOSEN_ENTRIES or len(core.round_trips.probes) > len(self.nodes):
                self.fail(f"node {machine.node} hoards")
        try:
            violation = check(self.history, 200_000)
        except Undecided:
            self.faults["undecided"] += 1
        else:
            if violation is not None:
                self.fail(str(violation))
