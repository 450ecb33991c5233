"""Multi-Paxos for a group of nodes that all propose: one log for each node, merged into one order.

Every node is the standing leader of its own log. It proposes in it straight away with phase 2; phase 1 is
needed only after a restart, and to finish the log of a node that has died. All learners merge the logs into
one order.

**One log** is Lamport's multi-Paxos on a growing sequence. A candidate picks a *ballot*, a number that no
other candidate has, and sends Prepare. An Acceptor promises to take nothing at a lower ballot, and hands over
the entries that it holds. With promises of a *quorum*, a majority of the nodes, the candidate adopts the log
of the highest (accepted ballot, length) among them. It now leads, and sends Accept: first its whole unchosen
log, the *sync*, later only what is new. What a quorum holds at the leader's ballot is *chosen*, and will
never change: any later candidate's quorum contains one of those acceptors, and no log beats theirs but one
that was adopted from it.

**All logs.** Each entry bears a *timestamp* of its proposer's Lamport clock, and commands are applied in the
order of (timestamp, owner). A learner may apply an entry once no log can bring an earlier one. It learns that
from *facts*: (chosen, evidence, frontier) says that the first `chosen` entries of a log are chosen, counted
in the established ballot `evidence`, and that every command of the log up to the timestamp `frontier` is
among them. Facts stay true for ever, so anybody may relay them, and they merge by taking the larger.

  R1  Only its owner puts commands into a log.  Others finish it and add no-ops.
  R2  The owner stamps an entry above its clock and above all that its log holds.
  R3  A frontier made from the clock never exceeds a durable reservation: a restart begins there.
  R4  Only the owner, its ballot established (a quorum took its sync), makes frontiers from its clock.
  R5  A client is answered when its command has been applied, not when it is chosen.
  R6  Who receives an entry raises its clock past it before it answers, so that the answer to an Accept brings
      the frontier that the proposer waits for: one round trip, and one fsync, for a command.

**A node that holds the others up** is revoked: another node becomes leader of its log, finishes it, and
appends a no-op stamped far ahead, a *skip*. The owner notices when its Accepts are refused, takes its log
back with a higher ballot, and proposes again what the log lacks.

**Reads** ask a quorum for its clocks; the highest is the read's timestamp, and when all logs' frontiers have
reached it and everything up to there is applied, the read is answered. Where an entry of the node's own
leaves at the same time, the read rides on it for nothing: everything answered before lies below that entry.

Nothing here does I/O or looks at a clock. The caller runs this loop, the same in the server and in the
simulator:

    node.step(sender, message, now), node.propose(...), node.read(...), node.tick(now)   any number of times
    ready = node.drain(now)                      (it says `more` if commands wait for the next entry)
    send ready.send                            at once
    journal ready.journal + node.notes()       in one frame; it may wait for others unless ready.urgent
    send ready.send_after                      when that frame, and every frame before it, is durable
    apply ready.apply to the store, then answer ready.reads


Messages that a node addresses to itself go into its step() when they would leave.

**Checkpoints.** Now and then the journal begins a new segment with node.state(), and a checkpoint is made of
the segments before it. Entries that all nodes hold are given up; for a node that lags far, only what such a
checkpoint has, see node.checkpointed(). Who lacks entries that its peers have given up (ready.catch_up) takes
a peer's checkpoint, and merges it by node.install(); where entries were given up since, a new one is made.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from random import Random
from typing import Any, Final, NamedTuple

from paxoskv.wire.structs import (
    Accept,
    Accepted,
    Barrier,
    Chosen,
    Entry,
    Fact,
    Fetch,
    Fetched,
    Held,
    Identity,
    Learn,
    LogBallot,
    Noted,
    Position,
    Prepare,
    Promise,
    Reading,
    Record,
    Recovered,
    Rejoin,
    Rejoined,
    Verdict,
    Vote,
)

Message = Any  # one of the generated structs above, or Synced

LAZY: Final = 0.01  # seconds that a vote which nobody waits for may wait for others, to share their fsync
NOTE_AFTER: Final = 0.2  # seconds without a frame, after which what was applied since the last one is noted
LATE: Final = 0.005  # seconds: a vote that takes longer, and four times the usual, is late
SLUGGISH: Final = 1.0  # seconds for which nobody counts on a node that has kept others waiting
RESEND_AFTER: Final = 0.05  # seconds: what is unanswered is sent again; doubled for a peer that stays silent
RESEND_AT_MOST: Final = 1.0  # seconds: the longest such pause
GOSSIP_NEWS: Final = 0.02  # seconds: news that no other message has brought to a peer by then is gossiped
GOSSIP_IDLE: Final = 0.1  # seconds: and of nothing new this often
ASK_AFTER: Final = 0.02  # seconds: whoever waits for a frontier this long asks everybody for it
FETCH_AFTER: Final = 0.02  # seconds: entries known by hearsay to be chosen may still be on their way
FETCH_AGAIN: Final = 0.1  # seconds: a fetch unanswered goes to another node
TURN: Final = 0.05  # seconds between two candidates' turns to revoke a node
REFUSED_AFTER: Final = 0.05  # seconds: enough to wait for a node that refuses connections
RESERVE: Final = 1 << 20  # timestamps: how far ahead of the clock a reservation lies
SKIP: Final = 1 << 32  # timestamps: how far ahead of everything known a skip lies
TOO_FAR: Final = 1 << 56  # timestamps: no sane node is so far ahead, even if we missed 16 million skips
TOO_MANY: Final = 1 << 40  # rounds: likewise
UNCHOSEN_ENTRIES: Final = 1024  # of a log at most, so that every sync and Promise fits one frame
UNCHOSEN_BYTES: Final = 4 << 20  # bytes: likewise
STALE_PROBE: Final = 5.0  # seconds: the answer to a measured Accept is not waited for any longer
FETCH_BYTES: Final = 1 << 20  # bytes in one Fetched, about
FETCH_ENTRIES: Final = 44  # at most in one: a millisecond or two of work, in which nobody else is served
FETCH_PAUSE: Final = 0.003  # seconds between two Fetches: who shares a processor with us works meanwhile
COMPACT_EVERY: Final = 1.0  # seconds between two looks for entries that nobody needs any more
KEEP_BYTES: Final = 64 << 20  # of one log, for nodes that lag; further behind, they take a checkpoint
KEEP_OVERHEAD: Final = 64  # bytes that an entry costs besides its payload, about
LIFE_BITS: Final = 20  # of a life's number are chance: starts of a disk's two copies never have the same
RECENT: Final = 2048  # applied entries whose hashes are remembered, at least: gossip is not older
DOUBT: Final = 1.0  # seconds in which all nodes have said what they have applied


def ballot_of(round_: int, node: int) -> int:
    """The ballot (round, node): integers compare as the pairs do."""
    return round_ << 8 | node


def round_of(ballot: int) -> int:
    return ballot >> 8


def node_of(ballot: int) -> int:
    return ballot & 255


class Diverged(Exception):
    """What a disk or a peer says contradicts what is chosen or applied here: this node must stop."""

    def __init__(self, what: str) -> None:
        super().__init__(what + TWO_HISTORIES)


TWO_HISTORIES: Final = (
    ": there are two histories: a node was started with an old copy of its data, or a disk has lost what it "
    'had said to be durable: see "Two histories" in docs/operations.md'
)


class Synced(NamedTuple):
    """A node's message to itself, behind the records of one drain: they are durable now."""

    number: int
    reservation: int
    held: Sequence[tuple[int, int, int]]  # (log, ballot, length) of the logs that they are about


class Applied(NamedTuple):
    """An entry whose turn has come. `token` is what this node's propose() was given, else None."""

    timestamp: int
    owner: int
    payload: bytes
    token: Any


class Ready:
    """What the caller has to do, in this order. Messages are (receiver, message, call of the request
    answered). `lost` are the tokens of own commands that a checkpoint covers: they may have been applied.
    """

    __slots__ = ("apply", "catch_up", "journal", "lost", "reads", "send", "send_after", "urgent")

    def __init__(
        self,
        send: list[tuple[int, Message, Any]],
        journal: list[Record],
        send_after: list[tuple[int, Message, Any]],
        apply: list[Applied],
        reads: list[Any],
        lost: Sequence[Any] = (),
        catch_up: int | None = None,
        urgent: bool = True,
    ) -> None:
        self.send = send
        self.journal = journal
        self.send_after = send_after
        self.apply = apply
        self.reads = reads
        self.lost = lost
        self.catch_up = catch_up  # a peer to take a checkpoint from: it no longer holds the entries we lack
        self.urgent = urgent  # whether anything waits for the journal; else it may gather records for a while


class Covered(NamedTuple):
    """A fact about one log, as a checkpoint has it: the first `executed` entries are chosen, in the
    established ballot `evidence`, and all of them are in the checkpoint; `last` is the timestamp of the last.

    (Without it the owner could stamp below a skip that nobody holds any more.)
    """

    executed: int
    evidence: int
    last: int


class Cut(NamedTuple):
    """Where a checkpoint stands: all entries up to `position` are applied, and of each log so many passed."""

    position: tuple[int, int]  # (timestamp, owner)
    logs: dict[int, Covered]
    clock: int


class Acceptor:
    """One node's vote in one log: what it has promised, and the entries that it has accepted.

    `promised`, `accepted`, and the length held at one `accepted`, never decrease; `evidence` <= `accepted` <=
    `promised`. The entries are always a prefix of the log of the ballot `accepted`, the first `chosen` of
    them known to be chosen. Every handler hands its changes to `journal` (a callable); the caller sends no
    answer that says PROMISED or TAKEN before they are durable.
    """

    def __init__(self, log: int, journal: Callable[[Record], None]) -> None:
        self.log = log
        self.journal = journal
        self.promised = 0
        self.accepted = 0
        self.base = 0  # entries below this slot have been given up: they are executed
        self.floor = 0  # the timestamp of the last of those
        self.entries: list[Entry] = []  # from slot `base` on
        self.chosen = 0
        self.evidence = 0

    @property
    def length(self) -> int:
        return self.base + len(self.entries)

    @property
    def last_timestamp(self) -> int:
        return self.timestamp_of(self.length)

    def timestamp_of(self, length: int) -> int:
        """The timestamp of the last of the first so many entries, which may have been given up."""
        return self.entries[length - self.base - 1].timestamp if length > self.base else self.floor

    def from_slot(self, slot: int, end: int | None = None) -> list[Entry]:
        return self.entries[slot - self.base : None if end is None else end - self.base]

    def on_prepare(self, message: Prepare, fact: Fact) -> Promise:
        """Phase 1b: promise to take nothing below the ballot, and show what is held.

        An entry that was given up must not look like one that was never accepted, so a candidate that lacks
        it is told that it is behind, and so is one that lacks more than fits a frame.
        """
        if message.from_slot < self.base or self.bytes_to_chosen(message.from_slot) > FETCH_BYTES:
            return self._promise(message, Verdict.BEHIND, [], fact)
        if message.ballot < self.promised:
            return self._promise(message, Verdict.NACK, [], fact)
        if message.ballot > self.promised:
            self.promised = message.ballot
            self.journal(Record(promised=LogBallot(self.log, message.ballot)))
        return self._promise(message, Verdict.PROMISED, self.from_slot(message.from_slot), fact)

    def on_accept(self, message: Accept) -> int:
        """Phase 2b: take the leader's entries unless a higher ballot has our promise. The answer is a Vote.

        Taking them is also a promise: an acceptor that voted at a ballot it had not yet promised could
        otherwise promise a lower one afterwards, and two leaders could choose differently.
        """
        if message.ballot < self.promised:
            return Vote.REFUSED
        if message.ballot > self.accepted:
            return self._take_sync(message)
        if message.start <= self.length:  # else there is a gap, and the vote says how much is held
            self._check_same(message.start, message.entries, self.length)
            self._hold(message.ballot, self.length, message.entries[self.length - message.start :])
        return (
            Vote.TAKEN
        )  # nothing is ever cut at one ballot: a late sync would cut entries that were counted (N1)

    def _take_sync(self, message: Accept) -> int:
        """A new ballot's log replaces ours from what is known to be chosen on."""
        if not message.sync or not message.start <= self.chosen <= message.start + len(message.entries):
            return Vote.NEEDS_SYNC
        self._check_same(message.start, message.entries, self.chosen)
        self._hold(message.ballot, self.chosen, message.entries[self.chosen - message.start :])
        return Vote.TAKEN

    def learn(self, chosen: int, evidence: int) -> None:
        """The first `chosen` entries are chosen: ours are the right ones if we hold the log of `evidence` or
        a later one.
        """
        if self.accepted >= evidence and min(chosen, self.length) > self.chosen:
            self.chosen = min(chosen, self.length)
            self.evidence = evidence

    def install(self, start: int, entries: list[Entry], evidence: int) -> None:
        """Take chosen entries from somebody who holds them, counted in the established ballot `evidence`.

        Where our log is of a lower ballot, what we hold beyond them is dropped: it cannot have been chosen,
        since the log of `evidence`, which a quorum took, contained all that could.
        """
        end = start + len(entries)
        self._check_same(start, entries, self.chosen)
        if self.accepted >= evidence:
            if start <= self.length < end:
                self._hold(self.accepted, self.length, entries[self.length - start :])
        elif start <= self.chosen < end:
            self._hold(evidence, self.chosen, entries[self.chosen - start :])
        self.learn(end, evidence)

    def cover(self, chosen: int, evidence: int, last: int) -> None:
        """A checkpoint has the first `chosen` entries, counted in `evidence`: as if we had fetched, executed
        and given them up. The ballots rise as by install(), for the same reason (N23).
        """
        if chosen <= self.chosen:
            return
        if self.accepted >= evidence and chosen <= self.length:
            self.learn(chosen, evidence)
            return
        self.accepted = max(self.accepted, evidence)
        self.promised = max(self.promised, self.accepted)
        self.base, self.floor, self.entries = chosen, last, []
        self.chosen, self.evidence = chosen, evidence

    def rejoin(self, promised: int, accepted: int, entries: list[Entry]) -> None:
        """Hold, beyond what is chosen, these entries, and promise: the disk that did so before is lost."""
        if accepted >= self.accepted:
            self._hold(accepted, self.chosen, entries)
        if promised > self.promised:
            self.promised = promised
            self.journal(Record(promised=LogBallot(self.log, promised)))

    def drop(self, below: int) -> None:
        """Give up executed entries: whoever lacks them needs a checkpoint."""
        assert below <= self.chosen, "only chosen entries can be given up"
        if below > self.base:
            self.floor = self.entries[below - self.base - 1].timestamp
            del self.entries[: below - self.base]
            self.base = below

    def replay(self, record: Record) -> None:
        """Recovery: what was journaled, once more."""
        if record.promised:
            self.promised = max(self.promised, record.promised.ballot)
        elif record.held:
            covered = max(self.chosen - record.held.start, 0)  # a checkpoint or an older segment has them
            self._replace(record.held.ballot, record.held.start + covered, record.held.entries[covered:])
        elif record.chosen:
            self.learn(record.chosen.chosen, record.chosen.evidence)

    def _hold(self, ballot: int, start: int, entries: list[Entry]) -> None:
        if not entries and ballot == self.accepted and start == self.length:
            return
        self._replace(ballot, start, entries)
        self.journal(Record(held=Held(self.log, ballot, start, entries)))

    def _check_same(self, start: int, entries: list[Entry], end: int) -> None:
        """Diverged if entries from slot `start` on are not ours up to slot `end`, where they cannot differ:
        of one ballot's log, or chosen.
        """
        for slot in range(max(start, self.base), min(start + len(entries), end)):
            ours, theirs = self.entries[slot - self.base], entries[slot - start]
            if ours != theirs:
                raise Diverged(
                    f"slot {slot} of log {self.log} holds the entry of {ours.timestamp} here, and that of "
                    f"{theirs.timestamp} elsewhere"
                )

    def _replace(self, ballot: int, start: int, entries: list[Entry]) -> None:
        if ballot < self.accepted or not self.chosen <= start <= self.length:
            raise Diverged(
                f"log {self.log} goes back, or has a gap: slot {start} of ballot {ballot} comes after slots "
                f"{self.chosen} to {self.length} of {self.accepted}"
            )
        self.accepted = ballot
        self.promised = max(self.promised, ballot)
        self.entries[start - self.base :] = entries

    def _promise(self, message: Prepare, verdict: int, entries: list[Entry], fact: Fact) -> Promise:
        ballots = (self.promised, self.accepted)
        return Promise(self.log, message.ballot, message.from_slot, verdict, *ballots, entries, fact)

    def bytes_to_chosen(self, slot: int) -> int:
        return (
            sum(len(entry.payload) + 16 for entry in self.from_slot(slot, self.chosen))
            if slot < self.chosen
            else 0
        )


def best_log(promises: Iterable[Promise]) -> Promise:
    """The promise whose log must be adopted: of the highest accepted ballot, and the longest of those."""
    return max(promises, key=lambda promise: (promise.accepted, len(promise.entries)))


def quorum_length(lengths: Iterable[int], quorum: int) -> int:
    """How far a quorum holds the log: the quorum-th largest length; 0 if there are fewer."""
    ordered = sorted(lengths)
    return ordered[-quorum] if len(ordered) >= quorum else 0


@dataclass(slots=True)
class Courier:
    """How far a leader has got with one peer."""

    sent: int = -1  # the log was sent up to this slot; -1: not even the sync
    at: float = 0.0  # since when what was sent is unanswered, or when it was last sent again
    silent: int = 0  # how often it was sent again without any answer since
    again: bool = False  # whether what its acceptor lost on purpose was sent once more since the last vote


class Proposer:
    """Candidate for one log, then its leader. Knows no other log, and no clock but its arguments.

    States: idle (neither flag), `preparing`, `leading`; a leader whose sync a quorum has taken is
    `established`.
    """

    def __init__(self, log: int, me: int, nodes: Sequence[int]) -> None:
        self.log = log
        self.me = me
        self.nodes = nodes
        self.quorum = len(nodes) // 2 + 1
        self.highest = 0  # the highest ballot seen, our own included: the next one lies above it
        self.ballot = 0
        self.preparing = False
        self.leading = False
        self.wanted = 0
        self.start = 0  # our chosen length: where `entries` begins
        self.entries: list[Entry] = []
        self.bytes = 0  # of payloads in `entries`
        self.promises: dict[int, Promise] = {}
        self.lengths: dict[int, int] = {}  # by node: how much of our ballot's log it holds, durably
        self.couriers: dict[int, Courier] = {}
        self.prepared_at = 0.0
        self.prepares = 0
        self.fresh = False  # whether something may be due to be sent

    @property
    def end(self) -> int:
        return self.start + len(self.entries)

    @property
    def established(self) -> bool:
        return self.leading and len(self.lengths) >= self.quorum

    def prepare(self, from_slot: int, promised: int, wanted: int) -> Record:
        """Phase 1a: stand with a ballot above all that were seen. The record must be durable before the
        Prepare leaves.
        """
        self.highest = max(self.highest, promised)
        self.ballot = self.highest = ballot_of(round_of(self.highest) + 1, self.me)
        self.preparing, self.leading, self.wanted = True, False, wanted
        self.lengths.clear()
        self.prepares = 0
        self.catch_up(from_slot)
        return Record(candidate=LogBallot(self.log, self.ballot))

    def catch_up(self, from_slot: int) -> None:
        """Our chosen length has grown: promises for another would be adopted at the wrong offset (N19)."""
        self.start = from_slot
        self.promises.clear()

    def message(self, now: float) -> Prepare:
        self.prepared_at = now
        self.prepares += 1
        return Prepare(self.log, self.ballot, self.start, self.wanted)

    def on_promise(self, sender: int, message: Promise) -> bool:
        """Count a promise; True when a quorum has promised and the best log is adopted: we lead."""
        if not self.preparing or message.ballot != self.ballot or message.from_slot != self.start:
            return False
        self.promises[sender] = message
        if len(self.promises) < self.quorum:
            return False
        self.preparing, self.leading = False, True
        self.entries = list(best_log(self.promises.values()).entries)
        self.bytes = sum(len(entry.payload) for entry in self.entries)
        self.couriers = {node: Courier() for node in self.nodes}
        self.promises.clear()
        self.fresh = True
        return True

    def step_down(self, promised: int = 0) -> None:
        """Somebody else has, or wants, the log. Our ballot, led or not, is never used again."""
        self.highest = max(self.highest, promised)
        self.preparing = self.leading = False
        self.entries, self.bytes = [], 0
        self.promises.clear()
        self.lengths.clear()

    def forget(self, peer: int) -> None:
        """The peer has lost its disk: what it promised and voted counts no more, and it lacks everything."""
        self.promises.pop(peer, None)
        self.lengths.pop(peer, None)
        if peer in self.couriers:
            self.couriers[peer] = Courier()
            self.fresh = True

    def append(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.bytes += len(entry.payload)
        self.fresh = True

    def has_room(self) -> bool:
        return len(self.entries) < UNCHOSEN_ENTRIES and self.bytes < UNCHOSEN_BYTES

    def first_unchosen_command(self) -> int | None:
        """Its timestamp."""
        for entry in self.entries:
            if entry.payload:
                return int(entry.timestamp)
        return None

    def on_accepted(self, sender: int, message: Accepted, now: float) -> int:
        """Count a vote at our ballot; returns how far the log is chosen now. Votes count per node, not per
        message.
        """
        courier = self.couriers[sender]
        if message.vote != Vote.TAKEN:
            courier.silent = 0
            if message.vote == Vote.NEEDS_SYNC:
                courier.sent = -1
            elif message.vote == Vote.WITHHELD and sender in self.lengths and not courier.again:
                courier.again = True
                courier.sent = min(courier.sent, self.lengths[sender])
                self.fresh = True
        elif message.length > self.lengths.get(sender, -1):  # else its disk hangs: it needs no more to write
            courier.silent, courier.again = 0, False
            courier.at = now
            self.lengths[sender] = min(message.length, self.end)
        return quorum_length(self.lengths.values(), self.quorum)

    def advance(self, chosen: int) -> None:
        """Entries below `chosen` are chosen, and held by our own acceptor: the leader's part is done."""
        done = self.entries[: chosen - self.start]
        self.bytes -= sum(len(entry.payload) for entry in done)
        del self.entries[: chosen - self.start]
        self.start = chosen

    def due(self, peer: int, now: float) -> tuple[int, bool] | None:
        """What to send to a peer now, up to the end: (start, sync), or None.

        The first Accept of a ballot is its sync. What stays unanswered is sent again from where the peer
        stands, which may lie below our chosen length.
        """
        courier = self.couriers[peer]
        held = self.lengths.get(peer, -1)
        if held >= self.end and courier.sent >= self.end:
            return None  # asked in every turn, and mostly so
        late = now - courier.at >= min(RESEND_AFTER * (1 << courier.silent), RESEND_AT_MOST)
        if late and held < courier.sent:
            start, sync = (held, False) if held >= 0 else (self.start, True)
            courier.silent = min(courier.silent + 1, 5)
        elif courier.sent < 0 and (late or not courier.at):
            start, sync = self.start, True
        elif 0 <= courier.sent < self.end:
            start, sync = courier.sent, False
        else:
            return None
        if late or held >= courier.sent:
            courier.at = now
        courier.sent = self.end
        return start, sync


class Learner:
    """Merges all logs into one order.

    `chosen`, `evidence` and `known` are the facts known of each log; `frontier` is that part of `known` whose
    entries the acceptor holds, as far as `held`; `executed` counts the entries passed; `heads` has the
    timestamp of the next command of each log.
    """

    def __init__(self, acceptors: dict[int, Acceptor]) -> None:
        self.acceptors = acceptors
        self.chosen = dict.fromkeys(acceptors, 0)
        self.evidence = dict.fromkeys(acceptors, 0)
        self.known = dict.fromkeys(acceptors, 0)
        self.frontier = dict.fromkeys(acceptors, 0)
        self.held = dict.fromkeys(acceptors, 0)
        self.executed = dict.fromkeys(acceptors, 0)
        self.heads: dict[int, int] = {}
        self.facts = {log: Fact(log, 0, 0, 0) for log in acceptors}
        self.position = (0, 0)
        self.moved = False  # whether a command may have become applicable

    def fact(self, log: int) -> Fact:
        fact = self.facts[log]
        chosen, evidence, known = self.chosen[log], self.evidence[log], self.known[log]
        if fact.frontier != known or fact.chosen != chosen or fact.evidence != evidence:
            fact = self.facts[log] = Fact(log, chosen, evidence, known)
        return fact

    def learn(self, log: int, chosen: int, evidence: int, frontier: int) -> bool:
        """Merge a fact; True if it said anything new. (chosen, evidence) is one pair, the frontier goes by
        itself.
        """
        news = False
        if chosen > self.chosen[log] or (chosen == self.chosen[log] and evidence > self.evidence[log]):
            self.chosen[log], self.evidence[log] = chosen, evidence
            news = True
        if frontier > self.known[log]:
            self.known[log] = frontier
            news = True
        return news

    def settle(self, log: int) -> bool:
        """Bring what is held and what is known together; True if the chosen prefix held has grown."""
        acceptor = self.acceptors[log]
        if acceptor.chosen < self.chosen[log]:
            acceptor.learn(self.chosen[log], self.evidence[log])
        before, chosen = self.held[log], acceptor.chosen
        if chosen > before:
            self.moved = True
            self.held[log] = chosen
            self.passed(log)
            if chosen > acceptor.base:  # else a checkpoint has just covered them all
                last = acceptor.timestamp_of(chosen)
                self.frontier[log] = max(self.frontier[log], last)
                self.known[log] = max(self.known[log], last)
        if chosen >= self.chosen[log] and self.known[log] > self.frontier[log]:
            self.moved = True
            self.frontier[log] = self.known[log]
        return chosen > before

    def passed(self, log: int) -> None:
        """Find the log's next command; no-ops are passed over, they carry nothing and wait for nothing."""
        acceptor = self.acceptors[log]
        slot = self.executed[log]
        while slot < acceptor.chosen:
            entry = acceptor.entries[slot - acceptor.base]
            if entry.payload:
                self.heads[log] = entry.timestamp
                break
            slot += 1
        else:
            self.heads.pop(log, None)
        self.executed[log] = slot

    def next(self) -> tuple[int, int] | None:
        """(timestamp, owner) of the earliest chosen command that is not applied yet."""
        first = None
        for log, timestamp in self.heads.items():
            if first is None or (timestamp, log) < first:
                first = (timestamp, log)
        return first

    def apply(self) -> Iterator[tuple[int, int, bytes]]:
        """The commands whose turn has come: (timestamp, owner, payload) each."""
        while (head := self.next()) is not None:
            timestamp, owner = head
            for log, frontier in self.frontier.items():
                if frontier < timestamp - (log > owner):
                    return
            if head <= self.position:
                raise Diverged(
                    f"command {timestamp} of log {owner} is chosen, after {self.position} was applied"
                )
            acceptor = self.acceptors[owner]
            payload = acceptor.entries[self.executed[owner] - acceptor.base].payload
            self.executed[owner] += 1
            self.position = head
            self.passed(owner)
            yield timestamp, owner, payload

    def waits_on(self, read: int) -> dict[int, int]:
        """The logs whose frontier the next command, or a read with this timestamp (0: none), waits for, and
        how far.
        """
        timestamp, owner = self.next() or (0, 0)
        waits = {}
        for log, frontier in self.frontier.items():
            needed = max(timestamp - (log > owner), read)
            if frontier < needed:
                waits[log] = needed
        return waits

    def install(self, cut: Cut) -> bool:
        """Stand at least where a checkpoint stands. True if its position lies beyond ours: then its state
        takes the place of what we have applied.

        Element by element, for no-ops are passed over early: of two nodes' positions neither need lie beyond
        the other's in all logs.
        """
        timestamp, owner = cut.position
        for log, (executed, evidence, last) in cut.logs.items():
            frontier = max(last, timestamp - (log > owner))
            self.acceptors[log].cover(executed, evidence, last)
            self.learn(log, executed, evidence, frontier)
            self.executed[log] = max(self.executed[log], executed)
            self.frontier[log] = max(self.frontier[log], frontier)
            self.passed(log)
        self.moved = True
        if cut.position <= self.position:
            return False
        self.position = cut.position
        return True

    def cut(self, clock: int) -> Cut:
        """Where a checkpoint stands that is made of what is applied now."""
        logs = {}
        for log, acceptor in self.acceptors.items():
            executed = self.executed[log]
            logs[log] = Covered(executed, acceptor.evidence, acceptor.timestamp_of(executed))
        return Cut(self.position, logs, clock)

    def recover(self, position: tuple[int, int]) -> Iterator[tuple[int, int, bytes]]:
        """After a restart: the commands that were applied up to the position, in the same order; without
        those that an installed checkpoint has.
        """
        logs = []
        covered = self.position  # by an installed checkpoint
        for log, acceptor in self.acceptors.items():
            self.learn(log, acceptor.chosen, acceptor.evidence, 0)
            entries = [
                e
                for e in acceptor.from_slot(self.executed[log], acceptor.chosen)
                if (e.timestamp, log) <= position
            ]
            self.executed[log] += len(entries)
            self.held[log] = acceptor.chosen
            logs.append([(e.timestamp, log, e.payload) for e in entries if e.payload])
            self.passed(log)
            if acceptor.chosen > acceptor.base:
                last = acceptor.timestamp_of(acceptor.chosen)
                self.frontier[log] = self.known[log] = max(self.known[log], last)
        self.position = max(self.position, position)
        self.moved = True
        for timestamp, owner, payload in merge(*logs):
            if (timestamp, owner) <= covered:
                raise Diverged(f"command {timestamp} of log {owner} is not in the checkpoint of {covered}")
            yield timestamp, owner, payload


@dataclass(frozen=True, slots=True)
class Failures:
    """Acceptors that fail on purpose, as in the original experiment."""

    probability: float = 0.0  # of one message to be lost
    silence: float = 0.0  # seconds that a period of silence lasts
    every: float = 0.0  # seconds from the start of one such period to the next, on average; 0: never


@dataclass(slots=True)
class Wait:
    """Something waits for a log's frontier."""

    frontier: int  # where it stands
    since: float  # since when it stands there
    jitter: float  # 0 to 1, so that two candidates differ
    asked: float  # when everybody was last asked for it
    asks: int = 0


class Probe(NamedTuple):
    """An Accept whose answer is measured."""

    log: int
    ballot: int
    length: int  # a vote for so much of the log answers it,
    frontier: int  # or if the vote can wait (else 0), a frontier up to here
    at: float  # when it was sent


@dataclass(slots=True)
class Round:
    """The clocks of a quorum are being asked for, for these reads."""

    number: int
    clock: int
    reads: list[Any]
    at: float
    clocks: dict[int, int]
    asked: Collection[int] = ()


class Node:
    """One node: an Acceptor for every log, a Proposer for its own and for those that it revokes, and a
    Learner.

    The caller owns time (seconds, any origin, never going back) and the random source, and obeys the loop in
    the module's docstring. After construction: replay() every journaled record, then start().
    """

    def __init__(
        self,
        me: int,
        nodes: Iterable[int],
        random: Random,
        revoke_after: float = 0.5,
        failures: Failures | None = None,
        incarnation: int = 1,
    ) -> None:
        self.me = me
        self.nodes = sorted(nodes)
        self.peers = [node for node in self.nodes if node != me]
        self.quorum = len(self.nodes) // 2 + 1
        self.random = random
        self.revoke_after = revoke_after
        self.failures = failures or Failures()

        self.clock = 0
        self.reserved = 0  # durable: no frontier made from the clock exceeds it
        self.reserving = 0  # journaled, perhaps not yet durable
        self.highest = 0  # the largest timestamp of any entry seen, skips included
        self.newest = list(self.peers)  # who sent the last command entry first
        at = self.nodes.index(me)
        self.ring = self.nodes[at:] + self.nodes[:at]  # from us on
        self.voters = self.ring  # who is to vote at once for what we sent last
        self.sluggish: dict[int, float] = {}  # who has kept our entries waiting: avoided until when
        self.urged = 0  # up to which slot of our log all have been asked to vote at once
        self.acceptors = {log: Acceptor(log, self._journal) for log in self.nodes}
        self.learner = Learner(self.acceptors)
        self.own = Proposer(me, me, self.nodes)
        self.proposers = {me: self.own}

        self.pending: dict[int, tuple[bytes, Any]] = {}  # by timestamp: own commands not yet applied
        self.backlog: deque[tuple[bytes, Any]] = deque()  # own commands to be proposed again
        self.unsure = False  # whether `pending` may hold commands that our log lacks
        self.reads: list[Any] = []  # waiting for the next round, or for an entry to ride on
        self.held = self.reads  # the same ones when tick() looked last,
        self.held_at = 0.0  # and first
        self.riding: dict[int, list[Any]] = {}  # by timestamp of our own entry that they are answered with
        self.round: Round | None = None
        self.rounds = random.getrandbits(48) << 12  # so that an earlier life's answers fit no round
        self.dated: deque[tuple[int, list[Any]]] = deque()  # reads that have their timestamp

        self.heard = dict.fromkeys(self.peers, float("-inf"))
        self.refusing: set[int] = set()
        self.round_trips: dict[int, tuple[float, float]] = {}  # by peer: seconds, and when measured
        self.probes: dict[int, Probe] = {}  # by peer
        self.waiting: dict[int, Wait] = {}
        self.fetching: dict[int, tuple[float, int]] = {}  # by log: when to ask (again), whom
        self.fetch_at = 0.0  # not earlier
        self.skip_needed: set[int] = set()
        self.retake_at: float | None = None
        self.losses: deque[float] = deque()
        self.silent_until = 0.0
        self.silent_next: float | None = None

        self.awaited = dict.fromkeys(self.peers, 0)  # by peer: the timestamp that it is known to wait for
        self.told = dict.fromkeys(self.peers, (0, 0))  # by peer: (chosen, frontier) of our own log as it left
        self.telling = dict.fromkeys(self.peers, (0, 0))  # likewise, counting answers that wait for an fsync
        self.news_at: dict[int, float] = {}
        self.gossiped = dict.fromkeys(self.peers, float("-inf"))
        self.gossip: Learn | None = None  # the last that was sent
        self.shown: Fact | None = None  # our own fact as it was when _tell_waiting looked
        self.broadcast = False

        self.journaled = 0  # drains that had records
        self.journaled_at = 0.0
        self.synced = 0
        self.durable = dict.fromkeys(self.nodes, (0, 0))  # by log: (ballot, length) that a restart would find
        self.lazy = 0  # records of this turn that nobody waits for
        self.lazy_at: float | None = None  # since when such records wait for a frame
        self.urgent = False  # whether they have waited long enough
        self.saved = dict.fromkeys(self.nodes, 0)  # by log: the chosen length that notes() last journaled
        self.passed = dict.fromkeys(self.nodes, 0)  # by log: how much was executed at the last frame
        self.saved_position = (0, 0)
        self.replayed = (0, 0)  # up to where the journal says that we had applied
        self.revocations = 0

        self.covered = dict.fromkeys(self.nodes, 0)  # by log: how much of it our own checkpoint has
        self.noting = [0] * len(self.nodes)  # by log: how much is chosen, as the last frame notes it
        self.stable = self.noting  # the same, of the last frame that is durable: a restart would know it
        self.measured = dict.fromkeys(self.nodes, (0, 0))  # by log: up to which slot, bytes held up to there
        self.holding = {peer: [0] * len(self.nodes) for peer in self.peers}  # theirs, as they said
        self.compact_at = 0.0
        self.keep_bytes = KEEP_BYTES
        self.catch_up: int | None = None
        self.lost: list[Any] = []
        self.applied = (0, 0), 0  # the last entry that the store has, and its hash there
        self.hashes: dict[tuple[int, int], int] = {}  # at each of the last entries applied
        self.hashes_before: dict[tuple[int, int], int] = {}  # and at RECENT before them
        self.doubt: float | None = None  # since when a peer's hash is not ours
        self.doubted = (0, 0)  # the first entry where it is not
        self.short: dict[int, tuple[float, Position]] = {}  # by peer: since when it stands where, see there
        self.agrees: dict[int, bool] = {}  # by peer: whether its hash is ours, at that entry or later

        self.incarnation = incarnation  # which disk; 0: a new one in place of one that was lost
        assert incarnation or self.peers, "there is nobody who knows what this node has forgotten"
        self.rejoining = None if incarnation else Rejoining(self.peers, self.nodes)
        self.handlers = HANDLERS if incarnation else HANDLERS_REJOINING
        self.life = 0  # which start of this disk; grows
        self.recovered: list[Recovered] | None = None  # what this start found; None: it had to rejoin
        self.recovered_clock: int | None = None  # likewise, the reservation
        self.witness = Witness(self.peers, self.nodes)
        self.lives: dict[int, tuple[int, int]] = dict.fromkeys(
            self.peers, (0, 0)
        )  # by peer, the highest seen

        self._records: list[Record] = []
        self._send: list[tuple[int, Message, Any]] = []
        self._after: list[tuple[int, Message, Any]] = []
        self._apply: list[Applied] = []
        self._answer: list[Any] = []

    # ------------------------------------------------------------------------------- starting, and what lasts

    def replay(self, record: Record) -> None:
        """Recovery: one journaled record, in the order in which they were written.

        The caller resolves `installed` itself, by install(): it has the checkpoint.
        """
        if record.reservation is not None:
            self.reserved = max(self.reserved, record.reservation)
        elif record.applied:
            self.replayed = (record.applied.timestamp, record.applied.owner)
        elif record.candidate:
            proposer = self._proposer(record.candidate.log)
            proposer.highest = max(proposer.highest, record.candidate.ballot)
        elif record.noted:
            if record.noted.node not in self.lives:
                raise Diverged(f"the journal of node {self.me} is that of another one")
            self.lives[record.noted.node] = (record.noted.incarnation, record.noted.life)
        elif record.life is not None:
            self.life = record.life
        elif record.incarnation is not None:
            self.incarnation = record.incarnation
        elif record.rejoined:
            self._join()
        else:
            of = record.promised or record.held or record.chosen
            assert of, "a record without any field"
            self.acceptors[of.log].replay(record)

    def start(self, now: float) -> None:
        """Begin a life: the clock where the reservation ends, the applied commands once more, our own log
        prepared.
        """
        if self.rejoining is None:
            self.recovered_clock = self.reserved
            self.recovered = [
                Recovered(
                    log, acceptor.promised, acceptor.accepted, acceptor.length, acceptor.chosen,
                    self.proposers[log].highest if log in self.proposers else 0,
                )
                for log, acceptor in self.acceptors.items()
            ]  # fmt: skip
        self.life = (self.life >> LIFE_BITS) + 1 << LIFE_BITS | self.random.getrandbits(LIFE_BITS)
        self._journal(Record(life=self.life))
        self.clock, self.reserving = max(self.clock, self.reserved), self.reserved
        for timestamp, owner, payload in self.learner.recover(max(self.replayed, self.learner.position)):
            self._apply.append(Applied(timestamp, owner, payload, None))
        for acceptor in self.acceptors.values():
            self.highest = max(self.highest, acceptor.last_timestamp)
        self._save()
        self.passed.update(self.learner.executed)
        self.durable = {log: (acceptor.accepted, acceptor.length) for log, acceptor in self.acceptors.items()}
        self._reserve()
        if self.rejoining is None:
            self.retake_at = now

    def notes(self) -> list[Record]:
        """What need not be durable soon, for the frame written next: how much is chosen, and applied."""
        self.passed.update(self.learner.executed)
        records = self._notes()
        self.noting = list(self.saved.values())
        return records

    def _notes(self) -> list[Record]:
        records = []
        for log, acceptor in self.acceptors.items():
            if acceptor.chosen > self.saved[log]:
                records.append(Record(chosen=Chosen(log, acceptor.chosen, acceptor.evidence)))
        if self.learner.position > self.saved_position:
            records.append(Record(applied=Position(*self.learner.position)))
        self._save()
        return records

    def _note_when_idle(self) -> None:
        """No frame comes along to bring it: journal what is chosen and applied by itself.

        A restart that does not know that an entry was chosen and acknowledged cannot tell when it meets nodes
        that have lost it (N25).
        """
        notes = self._notes()
        self._records += notes
        self.lazy += len(notes)

    def _save(self) -> None:
        """What is chosen and applied now is in the journal, or joins its next frame."""
        for log, acceptor in self.acceptors.items():
            self.saved[log] = acceptor.chosen
        self.saved_position = self.learner.position

    # -------------------------------------------------------------------------------------------- checkpoints

    @property
    def drained(self) -> bool:
        """Whether all records have been handed out: then state() holds nothing that they do not."""
        return not self._records

    def state(self, pending: Sequence[Record] = ()) -> list[Record]:
        """All that must not be forgotten, for the first frame of a new segment (N13): it takes the place of
        all segments before it, together with a checkpoint made of them. Only while drained.

        Entries that were executed when the frame before was written are in that checkpoint. `pending` are
        records that were handed out but not written yet: all but `installed` are superseded.
        """
        assert self.drained, "what is journaled later must not be repeated"
        records = [record for record in pending if record.installed is not None]
        records += [Record(life=self.life), Record(reservation=self.reserving)]
        if self.incarnation > 1:  # taken by a rejoin
            records.append(Record(incarnation=self.incarnation))
            if self.rejoining is None or self.rejoining.number:
                records.append(Record(rejoined=True))
        records += [Record(noted=Noted(peer, *lives)) for peer, lives in self.lives.items() if any(lives)]
        for log, acceptor in self.acceptors.items():
            start = max(acceptor.base, self.passed[log])
            records += [
                Record(held=Held(log, acceptor.accepted, start, acceptor.from_slot(start))),
                Record(promised=LogBallot(log, acceptor.promised)),
                Record(chosen=Chosen(log, acceptor.chosen, acceptor.evidence)),
            ]
        records += [Record(candidate=LogBallot(log, p.highest)) for log, p in self.proposers.items()]
        records.append(Record(applied=Position(*self.learner.position)))
        self._save()
        self.noting = list(self.saved.values())
        self.passed.update(self.learner.executed)
        return records

    def cut(self) -> Cut:
        """Where a checkpoint stands that holds what is applied now."""
        return self.learner.cut(self.clock)

    def install(self, cut: Cut, now: float = 0.0, number: int = 0) -> bool:
        """Merge a checkpoint: our own before replay() (then no `now` and no number), or that of another node,
        which was stored as this number. True: its state must take the place of the store's.

        Nothing goes back by it. What was noted before comes first in the journal: replaying it after the
        checkpoint would find other entries held.
        """
        if number:
            self._records += [*self._notes(), Record(installed=number)]
        newer = self.learner.install(cut)
        self.clock = max(self.clock, cut.clock)
        for log, covered in cut.logs.items():
            self.highest = max(self.highest, covered.last)
            self._check_leader(log, now)
            self._check_evidence(log, covered.evidence, now)
            self._settle(log, now, self.me)
        if number:
            self._reserve()
        if newer:
            for timestamp in [t for t in self.pending if (t, self.me) <= cut.position]:
                self.lost.append(self.pending.pop(timestamp)[1])
            self._end_rides()
        return newer

    def checkpointed(self, cut: Cut) -> None:
        """A durable checkpoint of our own covers this: its entries may be given up, by the next tick()."""
        for log, covered in cut.logs.items():
            self.covered[log] = covered.executed
        self.compact_at = 0.0

    def overtook(self, peer: int) -> bool:
        """Whether entries that the peer lacks were given up, and no checkpoint of ours has them.

        (Where it lacks nothing, we go on giving up entries: no checkpoint would ever have them all.)
        """
        return any(
            acceptor.base > max(self.covered[log], held)
            for (log, acceptor), held in zip(self.acceptors.items(), self.holding[peer], strict=True)
        )

    def _compact(self, now: float) -> None:
        """Give up entries that all nodes hold, durably; and if there are too many, what our checkpoint has.

        Never what no frame has noted as executed: a checkpoint of all segments so far might lack it, and the
        next segment begins with what is kept.
        """
        self.compact_at = now + COMPACT_EVERY
        for index, log in enumerate(self.nodes):
            acceptor = self.acceptors[log]
            covered = max(acceptor.base, min(self.covered[log], self.learner.executed[log]))
            everywhere = min([self.passed[log], *(held[index] for held in self.holding.values())])
            measured, size = self.measured[log]
            if measured < acceptor.base:  # a checkpoint has covered it meanwhile
                measured, size = acceptor.base, 0
            size += sum(len(entry.payload) + KEEP_OVERHEAD for entry in acceptor.from_slot(measured, covered))
            below = acceptor.base
            while below < covered and (below < everywhere or size > self.keep_bytes):
                size -= len(acceptor.entries[below - acceptor.base].payload) + KEEP_OVERHEAD
                below += 1
            below = max(below, everywhere)
            self.measured[log] = (max(measured, covered, below), size)
            acceptor.drop(below)

    # -------------------------------------------------------------------------------------- what clients want

    @property
    def ready(self) -> bool:
        """Whether commands are taken: we lead our own log. (Clients of another node are told to try the next
        one.)
        """
        return self.own.established

    @property
    def joined(self) -> bool:
        """Whether this node may read: it is not rejoining."""
        return self.rejoining is None

    @property
    def in_flight(self) -> int:
        """Entries of ours that are not applied yet."""
        return len(self.pending)

    @property
    def has_room(self) -> bool:
        return self.own.has_room() and not self.backlog

    def propose(self, payload: bytes, token: Any) -> None:
        """Put one entry of commands into our log; `token` comes back when it is applied. Only while ready and
        has_room.
        """
        assert self.own.established and payload, "the caller looks first"
        timestamp = self._append(payload)
        self.pending[timestamp] = (payload, token)
        if self.reads:
            self.riding[timestamp], self.reads = self.reads, []

    def read(self, token: Any) -> None:
        """A linearizable read: `token` comes back when the store may be read. The round starts after it
        arrived (N17).

        Or none does: an entry of ours that is proposed after the read arrived is stamped above everything
        that anybody had been answered by then (section 4), so that the read may ride on it, and is answered
        when the entry is applied. That costs no message, so while commands wait for the entry under way,
        reads wait with them: a round would make them wait for that entry as well, for our own clock counts.
        """
        self.reads.append(token)

    def forget_reads(self, tokens: Collection[Any]) -> None:
        """These reads have been given up: nobody wants their tokens back."""
        waiting = [
            self.reads,
            *[reads for _, reads in self.dated],
            *self.riding.values(),
            *([self.round.reads] if self.round else []),
        ]
        for reads in waiting:
            reads[:] = [read for read in reads if read not in tokens]
        self.dated = deque((timestamp, reads) for timestamp, reads in self.dated if reads)

    # ----------------------------------------------------------------------------------------------- messages

    def step(self, sender: int, message: Message, now: float, call: Any = None) -> None:
        """A message arrived. `call` names the request to the caller, which gets it back with the answer."""
        if sender in self.heard:
            if now - self.heard[sender] > GOSSIP_IDLE * 3:
                self._is_back(sender)
            self.heard[sender] = now
        handler = self.handlers.get(message.__class__)
        if handler is not None:
            handler(self, sender, message, now, call)

    def _on_accept(self, sender: int, message: Accept, now: float, call: Any) -> None:
        last = command = 0
        for entry in message.entries:
            last = max(last, entry.timestamp)
            if entry.payload:
                command = last
        if last > max(self.clock, self.highest) + TOO_FAR or self._is_absurd(message.log, message.ballot):
            return
        self.highest = max(self.highest, last)
        self._raise_clock(command)  # R6
        if sender != self.me:
            self.witness.stood(sender, message.log, message.ballot)
            self.awaited[sender] = max(self.awaited[sender], command)
            if command and sender != self.newest[0]:
                self.newest.remove(sender)
                self.newest.insert(0, sender)
        acceptor = self.acceptors[message.log]
        before = len(self._records)
        vote = Vote.WITHHELD if self._acceptor_fails(now) else acceptor.on_accept(message)
        ballot, durable = self.durable[message.log]
        lazy = self.me in message.lazy and ballot == message.ballot
        if lazy:
            self.lazy += len(self._records) - before
        self._check_leader(message.log, now)
        self._learn(message.fact, now, sender)
        self._settle(message.log, now, sender)
        length = 0
        if vote == Vote.TAKEN:
            length = durable if lazy else acceptor.length
        own = self._own_fact()
        answer = Accepted(message.log, message.ballot, acceptor.promised, vote, length, own)
        if vote == Vote.TAKEN and not lazy:
            self._after.append((sender, answer, call))
            if sender != self.me:
                self.telling[sender] = (own.chosen, own.frontier)
        else:
            self._tell(sender, answer, own, call)

    def _on_accepted(self, sender: int, message: Accepted, now: float, call: Any) -> None:
        if sender != self.me:
            self._measure(sender, message, now)
            self._learn(message.fact, now, sender)
        proposer = self.proposers.get(message.log)
        if proposer is not None and message.vote == Vote.TAKEN and message.ballot <= proposer.highest:
            self.witness.voted(sender, message.log, message.ballot, message.length)
        if proposer is None or not proposer.leading or self._is_absurd(message.log, message.promised):
            return
        if message.promised > proposer.ballot:
            self._lose(proposer, message.promised, now)
        elif message.ballot == proposer.ballot:
            late = now - proposer.couriers[sender].at >= self._late()
            if late and proposer is self.own and message.vote == Vote.TAKEN and sender in self.voters:
                self.sluggish[sender] = now + SLUGGISH
            chosen = proposer.on_accepted(sender, message, now)
            if chosen > self.learner.chosen[message.log]:
                self._choose(proposer, chosen, now)
            if message.vote == Vote.WITHHELD and proposer is self.own and sender in self.voters:
                self._urge(sender, now)

    def _on_prepare(self, sender: int, message: Prepare, now: float, call: Any) -> None:
        acceptor = self.acceptors[message.log]
        if self._is_absurd(message.log, message.ballot):
            return
        self.witness.stood(sender, message.log, message.ballot)
        if message.wanted and self.fact(message.log).frontier >= message.wanted:
            fact = self.fact(message.log)
            ballots = (acceptor.promised, acceptor.accepted)
            covered = Promise(
                message.log, message.ballot, message.from_slot, Verdict.COVERED, *ballots, [], fact,
            )  # fmt: skip
            self._send.append((sender, covered, call))
            return
        if self._acceptor_fails(now):
            return
        before = acceptor.promised
        promise = acceptor.on_prepare(message, self.fact(message.log))
        if promise.verdict != Verdict.PROMISED:
            self._send.append((sender, promise, call))
            return
        self._check_leader(message.log, now)
        if message.ballot > before and message.log in self.waiting:
            self.waiting[message.log].since = now  # let that candidate have its time, once per ballot (N22)
        self._after.append((sender, promise, call))

    def _on_promise(self, sender: int, message: Promise, now: float, call: Any) -> None:
        if message.fact.log == message.log:
            self._learn(message.fact, now, sender)
        proposer = self.proposers.get(message.log)
        if proposer is None:
            return
        if message.verdict == Verdict.PROMISED and message.ballot <= proposer.highest:
            self.witness.promised(sender, message.log, message.ballot)
        if not proposer.preparing or message.ballot != proposer.ballot:
            return
        if self._is_absurd(message.log, message.promised):
            return
        if message.verdict == Verdict.NACK:
            self._lose(proposer, message.promised, now)
        elif message.verdict == Verdict.COVERED:
            proposer.step_down()
        elif message.verdict == Verdict.PROMISED and proposer.on_promise(sender, message):
            self._lead(proposer)

    def _on_learn(self, sender: int, message: Learn, now: float, call: Any) -> None:
        self._hear_clock(message.clock)
        if len(message.held) == len(self.nodes):
            self.holding[sender] = message.held
        ours = self.hashes.get(message.applied, self.hashes_before.get(message.applied))
        if ours is not None:
            self._compare(sender, message.applied, ours == message.hash, now)
        self._look_what_is_missing(sender, message, now)
        for fact in message.facts:
            self._learn(fact, now, sender)

    def _on_fetch(self, sender: int, message: Fetch, now: float, call: Any) -> None:
        acceptor = self.acceptors[message.log]
        entries: list[Entry] = []
        if acceptor.base <= message.from_slot < acceptor.chosen:
            size = 0
            for entry in acceptor.from_slot(message.from_slot, acceptor.chosen):
                entries.append(entry)
                size += len(entry.payload) + 32
                if size >= FETCH_BYTES or len(entries) == FETCH_ENTRIES:
                    break
        self._send.append(
            (sender, Fetched(message.log, message.from_slot, entries, acceptor.evidence, acceptor.base), call)
        )

    def _on_fetched(self, sender: int, message: Fetched, now: float, call: Any) -> None:
        if message.log not in self.fetching:
            return
        if not message.entries:
            if message.base > self._fetch(message.log).from_slot:
                self.catch_up = sender
            self.fetching[message.log] = (now + FETCH_AFTER, self._another(sender))
            return
        for entry in message.entries:
            if entry.timestamp > max(self.clock, self.highest) + TOO_FAR:
                return
            self.highest = max(self.highest, entry.timestamp)
            if entry.payload:
                self._raise_clock(entry.timestamp)
        del self.fetching[message.log]
        before = len(self._records)
        self._install(message.log, message.from_slot, message.entries, message.evidence, now, sender)
        self.lazy += len(self._records) - before  # others hold them: nobody waits until we do
        if message.log in self.fetching:
            self.fetching[message.log] = (now, sender)  # there is more where these came from

    def _on_barrier(self, sender: int, message: Barrier, now: float, call: Any) -> None:
        self._hear_clock(message.clock)
        self.awaited[sender] = max(self.awaited[sender], min(message.clock, self.clock))
        own = self._own_fact()
        others = [
            self.learner.fact(log)
            for log in self.nodes
            if log != self.me and (self.learner.known[log] >= message.clock or not message.round)
        ]
        self._tell(sender, Reading(message.round, self.clock, [own, *others]), own, call)

    def _on_reading(self, sender: int, message: Reading, now: float, call: Any) -> None:
        self._hear_clock(message.clock)
        for fact in message.facts:
            self._learn(fact, now, sender)
        if self.round is not None and message.round == self.round.number:
            self.round.clocks[sender] = message.clock
            self._date_reads()

    def _on_synced(self, sender: int, message: Synced, now: float, call: Any) -> None:
        self.synced = max(self.synced, message.number)
        self.reserved = max(self.reserved, message.reservation)
        for log, ballot, length in message.held:
            self.durable[log] = (ballot, length)
        self.stable = self.noting

    # ---------------------------------------------------------------------------------------- leading one log

    def _proposer(self, log: int) -> Proposer:
        if log not in self.proposers:
            self.proposers[log] = Proposer(log, self.me, self.nodes)
        return self.proposers[log]

    def _stand(self, log: int, wanted: int, now: float) -> None:
        """Become candidate for a log. Our ballot must be durable before anybody hears of it (N21)."""
        proposer = self._proposer(log)
        acceptor = self.acceptors[log]
        self._journal(proposer.prepare(acceptor.chosen, acceptor.promised, wanted))
        self._send_prepare(proposer, now)

    def _send_prepare(self, proposer: Proposer, now: float) -> None:
        message = proposer.message(now)
        self._after += [(node, message, None) for node in self.nodes]

    def _lead(self, proposer: Proposer) -> None:
        """A quorum has promised: finish what was adopted; in another's log, add a skip."""
        for entry in proposer.entries:
            self.highest = max(self.highest, entry.timestamp)
            if entry.payload:
                self._raise_clock(entry.timestamp)
        if proposer is not self.own:
            self._skip(proposer)
            return
        self.urged = 0
        self.retake_at = None
        self.unsure = True

    def _propose_again(self) -> None:
        """Our ballot is established: which of our commands its log lacks can never be chosen where they
        stood.

        Not earlier: promises alone leave a revoker free to find, on a node that we did not hear, an older
        ballot's log with such an entry, and the command would be applied twice.
        """
        self.unsure = False
        acceptor = self.acceptors[self.me]
        unapplied = acceptor.from_slot(self.learner.executed[self.me], acceptor.chosen)
        present = {entry.timestamp for entry in [*unapplied, *self.own.entries]}
        for timestamp in sorted(self.pending.keys() - present):
            self.backlog.append(self.pending.pop(timestamp))

    def _append(self, payload: bytes) -> int:
        """A command into our own log (R1, R2); returns its timestamp."""
        timestamp = max(self.clock, self._last_timestamp(self.own)) + 1
        self.highest = max(self.highest, timestamp)
        self._raise_clock(timestamp)
        self.own.append(Entry(timestamp, payload))
        return timestamp

    def _skip(self, proposer: Proposer) -> None:
        """A no-op far ahead of everything, so that the log's frontier is out of everyone's way."""
        self.highest = max(self.clock, self.highest, self._last_timestamp(proposer)) + SKIP
        proposer.append(Entry(self.highest, b""))
        self.revocations += 1

    def _last_timestamp(self, proposer: Proposer) -> int:
        acceptor = self.acceptors[proposer.log]
        if proposer.entries:
            return int(proposer.entries[-1].timestamp)
        return max(self.learner.known[proposer.log], *[entry.timestamp for entry in acceptor.entries[-1:]], 0)

    def _choose(self, proposer: Proposer, chosen: int, now: float) -> None:
        """A quorum holds our log this far: a new fact, made here and nowhere else."""
        log = proposer.log
        self.learner.learn(log, chosen, proposer.ballot, 0)
        acceptor = self.acceptors[log]
        if (
            acceptor.accepted < proposer.ballot or acceptor.length < chosen
        ):  # it failed on purpose, or is late
            entries = proposer.entries[: chosen - proposer.start]
            self._install(log, proposer.start, entries, proposer.ballot, now, self.me)
        else:
            self._settle(log, now, self.me)
        if log != self.me:
            self.broadcast = True

    def _check_leader(self, log: int, now: float) -> None:
        """A leader or candidate whose log's `promised` rises above its ballot has lost the log at that
        moment.
        """
        proposer = self.proposers.get(log)
        promised = self.acceptors[log].promised
        if proposer is not None and (proposer.leading or proposer.preparing) and promised > proposer.ballot:
            self._lose(proposer, promised, now)

    def _check_evidence(self, log: int, evidence: int, now: float) -> None:
        """Likewise a leader that hears of a higher ballot that was established."""
        proposer = self.proposers.get(log)
        if proposer is not None and proposer.leading and evidence > proposer.ballot:
            self._lose(proposer, evidence, now)

    def _lose(self, proposer: Proposer, promised: int, now: float) -> None:
        """Step down. The owner tries again at once, unless it was skipped often: then it may be it that is
        slow.
        """
        led = proposer.leading
        proposer.step_down(promised)
        if proposer is not self.own:
            if proposer.log in self.waiting:
                self.waiting[proposer.log].since = now
            return
        pause = self.random.uniform(0.5, 1) * RESEND_AFTER
        self._end_rides()
        if led:
            self.losses.append(now)
            while self.losses[0] < now - 60:
                self.losses.popleft()
            pause = 0.0 if len(self.losses) < 3 else min(60.0, 2.0 ** (len(self.losses) - 3))
        self.retake_at = max(self.retake_at or 0.0, now + pause)

    # ----------------------------------------------------------------------------------------------- learning

    def fact(self, log: int) -> Fact:
        return self._own_fact() if log == self.me else self.learner.fact(log)

    def _own_fact(self) -> Fact:
        """The fact about our own log. The owner of an established ballot makes its frontier from its clock
        (R3, R4).
        """
        learner = self.learner
        if self.own.established:
            first = self.own.first_unchosen_command()
            frontier = min(self.clock, self.reserved)
            if first is not None:
                frontier = min(frontier, first - 1)
            if frontier > learner.known[self.me]:
                learner.known[self.me] = frontier
                learner.settle(self.me)
        return learner.fact(self.me)

    def _learn(self, fact: Fact, now: float, sender: int) -> None:
        log = fact.log
        known = self.learner.facts.get(log)
        if known is None:
            return  # no log of ours
        older = fact.chosen <= known.chosen and fact.frontier <= known.frontier
        if older and fact.evidence <= known.evidence:
            return
        if fact.frontier > max(self.clock, self.highest) + TOO_FAR or self._is_absurd(log, fact.evidence):
            return
        if self.learner.learn(log, fact.chosen, fact.evidence, fact.frontier):
            if sender == log:
                self.witness.claimed(sender, fact)
            probe = self.probes.get(log)
            if probe is not None and 0 < probe.frontier <= fact.frontier:
                self._measured(log, probe.at, now)
            self._check_evidence(log, fact.evidence, now)
            self._settle(log, now, sender)

    def _settle(self, log: int, now: float, sender: int) -> None:
        """Advance over what is held; fetch what is not, at once if the log's leader says so: it had sent it
        before.
        """
        if self.learner.settle(log):
            proposer = self.proposers.get(log)
            chosen = self.acceptors[log].chosen
            if proposer is not None and proposer.leading:
                proposer.advance(chosen)
            elif proposer is not None and proposer.preparing:
                proposer.catch_up(chosen)
                self._send_prepare(proposer, now)
        if self.acceptors[log].chosen < self.learner.chosen[log] and log not in self.fetching:
            hearsay = sender != node_of(self.learner.evidence[log])
            self.fetching[log] = (now + FETCH_AFTER if hearsay else now, sender)

    def _is_absurd(self, log: int, ballot: int) -> bool:
        """Whether a ballot is so far above all of ours that only a broken node can have sent it."""
        return round_of(ballot) > round_of(self.acceptors[log].promised) + TOO_MANY

    def _install(
        self, log: int, start: int, entries: list[Entry], evidence: int, now: float, sender: int
    ) -> None:
        acceptor = self.acceptors[log]
        self.learner.learn(log, start + len(entries), evidence, 0)
        acceptor.install(start, entries, evidence)
        self._check_leader(log, now)
        self._settle(log, now, sender)

    def _send_fetches(self, now: float) -> None:
        for log, (at, whom) in list(self.fetching.items()):
            if self.acceptors[log].chosen >= self.learner.chosen[log]:
                del self.fetching[log]
            elif now >= max(at, self.fetch_at) and self.peers:
                self._send.append((whom, self._fetch(log), None))
                self.fetch_at = now + FETCH_PAUSE
                self.fetching[log] = (now + FETCH_AGAIN, self._another(whom))

    @property
    def fetch_due(self) -> float | None:
        """When the next Fetch is to leave, for which a turn must be made; None: nothing is fetched."""
        if not self.fetching:
            return None
        return max(self.fetch_at, min(at for at, _ in self.fetching.values()))

    def _fetch(self, log: int) -> Fetch:
        acceptor = self.acceptors[log]
        sure = acceptor.length if acceptor.accepted >= self.learner.evidence[log] else acceptor.chosen
        return Fetch(log, sure)

    def _another(self, node: int) -> int:
        return self.random.choice([peer for peer in self.peers if peer != node] or self.peers)

    # ------------------------------------------------------------------------------ do all apply the same?

    def hashed(self, position: tuple[int, int], rolling: int) -> None:
        """The store has applied the entry at this position, or a checkpoint up to there; this is its hash."""
        self.applied = position, rolling
        self.hashes[position] = rolling
        if len(self.hashes) == RECENT:
            self.hashes, self.hashes_before = {}, self.hashes

    def _compare(self, peer: int, position: tuple[int, int], same: bool, now: float) -> None:
        if not same and self.doubt is None:
            self.doubt, self.doubted = now, position
        if self.doubt is not None and position >= self.doubted:
            self.agrees[peer] = same

    def _look_what_is_missing(self, peer: int, message: Learn, now: float) -> None:
        """A peer that holds all that is chosen, and knows that no earlier command can come, has applied what
        we have. If it stays short of that, it has lost something: that is another history.
        """
        (timestamp, owner), _ = self.applied
        stands = message.applied < (timestamp, owner) and all(
            fact.log in self.acceptors
            and fact.chosen <= self.holding[peer][self.nodes.index(fact.log)]
            and fact.frontier >= timestamp - (fact.log > owner)
            for fact in message.facts
        )
        if not stands:
            self.short.pop(peer, None)
            return
        since, before = self.short.get(peer, (now, message.applied))
        if before != message.applied:
            since = now
        self.short[peer] = since, message.applied
        if now - since >= DOUBT:
            self._compare(peer, (timestamp, owner), False, now)

    def _look_who_differs(self, now: float) -> None:
        """Diverged if most differ from us, or if after a while as many do as agree: nobody knows then who is
        right, and none may go on in silence.
        """
        differ = [peer for peer, same in self.agrees.items() if not same]
        ours = 1 + sum(self.agrees.values())
        asked = len(self.agrees) + 1 >= self.quorum  # else it may be the only one that differs whom we hear
        late = now - (self.doubt or 0.0) >= DOUBT
        if len(differ) >= self.quorum or (asked and late and len(differ) >= ours):
            position, rolling = self.applied
            raise Diverged(
                f"at {position} with hash {rolling:08x}: nodes {differ} have applied something else"
            )
        if not differ:
            self.doubt = None
            self.agrees.clear()

    # ---------------------------------------------------------------------------------------- clock and reads

    def _raise_clock(self, timestamp: int) -> None:
        if timestamp > self.clock:
            self.clock = timestamp
            self._reserve()

    def _hear_clock(self, clock: int) -> None:
        if clock <= max(self.clock, self.highest) + TOO_FAR:
            self._raise_clock(clock)

    def _reserve(self) -> None:
        """Renew the reservation when half of it is used; the frame of a vote so holds one at or above the
        entry.
        """
        if self.clock > self.reserving - RESERVE // 2:
            self.reserving = self.clock + RESERVE
            self._journal(Record(reservation=self.reserving))

    def _start_round(self, now: float) -> None:
        self.rounds += 1
        self.round = Round(self.rounds, self.clock, self.reads, now, {self.me: self.clock})
        self.reads = []
        self.round.asked = self._whom_to_ask(now)
        self._send_barriers(self.round.asked)
        self._date_reads()

    def _whom_to_ask(self, now: float) -> list[int]:
        """Those for a read who most probably know what it waits for, enough for a quorum; or everybody.

        Who has just proposed has had an answer from every node, and so knows all frontiers: half of the time
        no other needs to be woken. Otherwise the others are asked as soon as the read has its timestamp.
        """
        nodes = [peer for peer in self.newest if now - self.heard[peer] <= GOSSIP_IDLE * 1.5]
        return nodes[: self.quorum - 1] if len(nodes) >= self.quorum - 1 else self.peers

    def _send_barriers(self, peers: Iterable[int]) -> None:
        assert self.round is not None
        message = Barrier(self.round.number, self.clock)
        self._send += [(peer, message, None) for peer in peers]

    def _date_reads(self) -> None:
        """With a quorum's clocks the reads of the round have their timestamp; whoever is behind it is told
        so.
        """
        current = self.round
        if current is None or len(current.clocks) < self.quorum:
            return
        timestamp = max(current.clocks.values())
        self.dated.append((timestamp, current.reads))
        message = Barrier(current.number, timestamp)
        for peer in self.peers:
            told = peer in current.asked and timestamp <= current.clock
            if not told and self.learner.frontier[peer] < timestamp:
                self._send.append((peer, message, None))
        self.round = None

    def _look_at_held_reads(self, now: float) -> None:
        """They wait for an entry of ours that is not applied: others may have finished our log unheard."""
        if not self.reads or self.reads is not self.held:
            self.held, self.held_at = self.reads, now
        elif self.round is None and now - self.held_at >= RESEND_AFTER:
            self._start_round(now)

    def _end_rides(self) -> None:
        """Nobody knows any more how their entries will be stamped: these reads need a round."""
        for reads in self.riding.values():
            self.reads += reads
        self.riding.clear()

    def _answer_reads(self) -> None:
        frontier = min(self.learner.frontier.values())
        while self.dated and self.dated[0][0] <= frontier:
            self._answer += self.dated.popleft()[1]

    # ----------------------------------------------------------------------------- who is told what, and when

    def _tell(self, peer: int, message: Message, own: Fact, call: Any = None) -> None:
        """Send a message that carries our own fact."""
        self._send.append((peer, message, call))
        if peer != self.me:
            self.told[peer] = self.telling[peer] = (own.chosen, own.frontier)

    def _gossip(self, peer: int, own: Fact, now: float) -> None:
        facts = [own] + [self.learner.fact(log) for log in self.nodes if log != self.me]
        position, rolling = self.applied
        message = Learn(self.clock, facts, self.stable, Position(*position), rolling)
        if message != self.gossip:
            self.gossip = message  # the same object for all peers: the caller encodes it once
        self._tell(peer, self.gossip, own)
        self.gossiped[peer] = now
        self.news_at.pop(peer, None)

    def _send_accepts(self, now: float) -> None:
        for log, proposer in self.proposers.items():
            if not (proposer.leading and proposer.fresh):
                continue
            proposer.fresh = False
            if proposer is self.own:
                self._choose_voters(now)
            messages: dict[tuple[int, bool], Accept] = {}
            for node in self.ring:  # our own acceptor first: it shares the frame; then those who are to vote
                due = proposer.due(node, now) if proposer.leading else None
                if due is None:
                    continue
                if due not in messages:
                    start, sync = due
                    start, entries = self._entries(proposer, start)
                    lazy = self._lazy_voters() if proposer is self.own and not sync else []
                    messages[due] = Accept(log, proposer.ballot, start, entries, sync, self.fact(log), lazy)
                self._send_accept(node, messages[due], now)

    def _entries(self, proposer: Proposer, start: int) -> tuple[int, list[Entry]]:
        """The leader's log from a slot on, with chosen entries if they are few; the peer fetches many."""
        chosen = proposer.start
        if start >= chosen:
            return start, proposer.entries[start - chosen :]
        acceptor = self.acceptors[proposer.log]
        if (
            start < max(acceptor.base, chosen - UNCHOSEN_ENTRIES)
            or acceptor.bytes_to_chosen(start) > FETCH_BYTES
        ):
            return chosen, list(proposer.entries)
        return start, acceptor.from_slot(start, chosen) + proposer.entries

    def _send_accept(self, node: int, message: Accept, now: float) -> None:
        if node == self.me:
            self._on_accept(self.me, message, now, None)
            return
        if message.entries:
            self._probe(node, message, now)
        if message.log == self.me:
            self._tell(node, message, message.fact)
        else:
            self._send.append((node, message, None))

    def _choose_voters(self, now: float) -> None:
        """A quorum is to vote at once, us included; the others' votes can wait, and share an fsync. A node
        always votes late rather than never, so this is about speed only.

        Not those that are silent, have been slow, or lack more of our log than one Fetched brings: they keep
        us waiting. If too few are left, everybody is to hurry.
        """
        voters = []
        for node in self.ring:
            silent = node != self.me and now - self.heard[node] > GOSSIP_IDLE * 1.5
            behind = self.own.lengths.get(node, -1) < self.own.start - FETCH_ENTRIES
            if not silent and not behind and now >= self.sluggish.get(node, now):
                voters.append(node)
                if len(voters) == self.quorum:
                    break
        else:
            voters = self.ring
        self.voters = voters

    def _lazy_voters(self) -> list[int]:
        return [peer for peer in self.peers if peer not in self.voters]

    def _urge(self, node: int, now: float) -> None:
        """One of those that were to vote at once does not: all others are to, with what they hold."""
        self.sluggish[node] = now + SLUGGISH
        own = self.own
        if self.urged >= own.end or not own.established:
            return
        self.urged = own.end
        message = Accept(self.me, own.ballot, own.end, [], False, self._own_fact(), [])
        for peer in self.peers:
            if peer != node and own.lengths.get(peer, -1) < own.end:
                own.couriers[peer].at = now
                self._tell(peer, message, message.fact)

    def _urge_late(self, now: float) -> None:
        """Have our entries waited for votes longer than they should?"""
        late = self._late()
        for node in self.voters:
            courier = self.own.couriers[node]
            if self.own.lengths.get(node, -1) < courier.sent and now - courier.at >= late:
                self._urge(node, now)

    def _late(self) -> float:
        """Seconds after which a vote is late."""
        usual = [seconds for seconds, _ in self.round_trips.values()]
        return min(max(LATE, 4 * min(usual)), RESEND_AFTER) if usual else RESEND_AFTER

    def _tell_waiting(self, own: Fact, now: float) -> None:
        """Who is known to wait for our frontier hears at once that it has moved; all others with the next
        message.
        """
        for peer in self.peers:
            told = self.telling[peer][1]
            if self.broadcast or (told < own.frontier and told < self.awaited[peer]):
                self._gossip(peer, own, now)
            elif self.telling[peer] != (own.chosen, own.frontier):
                self.news_at.setdefault(peer, now)
        self.broadcast = False

    def drain(self, now: float, more: bool = False) -> Ready:
        """End a turn: what was collected, and what is better done once per turn than once per message.

        `more`: commands wait that will be proposed soon, and reads for their entry.
        """
        if self.unsure and self.own.established:
            self._propose_again()
        while self.backlog and self.own.established and self.own.has_room():
            payload, token = self.backlog.popleft()
            self.pending[self._append(payload)] = (payload, token)
        self._send_accepts(now)
        own = self._own_fact()
        if self.learner.moved:
            self.learner.moved = False
            for timestamp, owner, payload in self.learner.apply():
                _, token = self.pending.pop(timestamp, (None, None)) if owner == self.me else (None, None)
                self._apply.append(Applied(timestamp, owner, payload, token))
                if owner == self.me and timestamp in self.riding:
                    self._answer += self.riding.pop(timestamp)
        if self.reads and self.round is None and not (more and self.own.established):
            self._start_round(now)
        if self.dated:
            self._answer_reads()
        if own is not self.shown or self.broadcast:
            self.shown = own
            self._tell_waiting(own, now)
        if self.fetching:
            self._send_fetches(now)
        urgent = self.urgent or bool(self._after) or len(self._records) > self.lazy
        if self._records:
            self._note_journaled(now)
        if urgent:
            self.lazy_at = None
        ready = Ready(
            self._send,
            self._records,
            self._after,
            self._apply,
            self._answer,
            self.lost,
            self.catch_up,
            urgent,
        )
        self.urgent, self.lazy = False, 0
        self._send, self._records, self._after, self._apply, self._answer = [], [], [], [], []
        self.lost, self.catch_up = [], None
        return ready

    def _note_journaled(self, now: float) -> None:
        """Have us told when the records of this turn are durable."""
        self.journaled += 1
        self.journaled_at = now
        if self.lazy_at is None:
            self.lazy_at = now
        logs: set[int] = set()
        for record in self._records:
            if record.held is not None:
                logs.add(record.held.log)
            elif record.installed is not None:
                logs.update(self.nodes)
        held = [(log, self.acceptors[log].accepted, self.acceptors[log].length) for log in sorted(logs)]
        self._after.append((self.me, Synced(self.journaled, self.reserving, held), None))

    # --------------------------------------------------------------------------------------------------- time

    @property
    def busy(self) -> bool:
        """Whether tick() wants to be called every few milliseconds, not every GOSSIP_IDLE seconds."""
        waiting = self.pending or self.reads or self.dated or self.round or self.fetching or self.waiting
        return bool(waiting or self.news_at or self.learner.heads) or (
            self.retake_at is not None or self.journaled > self.synced or self.rejoining is not None
        )

    def tick(self, now: float) -> None:
        """Time has passed: repeat what was lost, gossip, and look for nodes that hold us up."""
        own = self._own_fact()
        # Votes that wait for a slow disk have told nobody anything yet.
        slow = self.journaled > self.synced and now - self.journaled_at >= GOSSIP_NEWS / 2
        for peer in self.peers:
            if (self.told if slow else self.telling)[peer] != (own.chosen, own.frontier):
                self.news_at.setdefault(peer, now)
            else:
                self.news_at.pop(peer, None)
            old = now - self.news_at.get(peer, now)
            if old >= GOSSIP_NEWS or now - self.gossiped[peer] >= GOSSIP_IDLE:
                self._gossip(peer, own, now)
        if self.round is not None and now - self.round.at >= RESEND_AFTER:
            self.round.at = now
            self._send_barriers(peer for peer in self.peers if peer not in self.round.clocks)
        self._look_at_held_reads(now)
        if self.lazy_at is not None and now - self.lazy_at >= LAZY:
            self.urgent = True
        idle = self.journaled == self.synced and now - self.journaled_at >= NOTE_AFTER
        if idle and self.learner.position > self.saved_position:
            self._note_when_idle()
        if self.own.established:
            self._urge_late(now)
        for proposer in self.proposers.values():
            proposer.fresh = True
            if proposer.preparing and now - proposer.prepared_at >= RESEND_AFTER * min(proposer.prepares, 8):
                self._send_prepare(proposer, now)
        idle = not self.own.preparing and not self.own.leading
        if idle and self.retake_at is not None and now >= self.retake_at:
            self._stand(self.me, 0, now)
        if now >= self.compact_at:
            self._compact(now)
        if self.doubt is not None:
            self._look_who_differs(now)
        if self.rejoining is None:
            self._watch(now)
        else:
            self._rejoin(self.rejoining, now)

    def link(self, peer: int, refused: bool) -> None:
        """The transport reports whether a peer refuses connections (nothing listens there), as opposed to
        being silent.
        """
        (self.refusing.add if refused else self.refusing.discard)(peer)

    def _is_back(self, peer: int) -> None:
        """A silent peer speaks again: what it lacks is sent soon, and its silence says nothing about round
        trips.
        """
        self.probes.pop(peer, None)
        for proposer in self.proposers.values():
            if peer in proposer.couriers:
                proposer.couriers[peer].silent = 0

    def _watch(self, now: float) -> None:
        """Revoke the logs that hold us up. Whoever has lost contact with a quorum deposes nobody (N11)."""
        waits = self.learner.waits_on(self.dated[-1][0] if self.dated else 0)
        half = self.patience(now) / 2
        if sum(now - heard <= half for heard in self.heard.values()) + 1 < self.quorum:
            waits = {}
        for log in self.nodes:
            needed, frontier = waits.get(log), self.learner.frontier[log]
            wait = self.waiting.get(log)
            if needed is None:
                self.waiting.pop(log, None)
                self._stop_standing(log)
            elif wait is None or wait.frontier != frontier:
                self.waiting[log] = Wait(frontier, now, self.random.random(), now)
            else:
                self._lose_patience(log, needed, wait, now)

    def _stop_standing(self, log: int) -> None:
        proposer = self.proposers.get(log)
        if proposer is not None and proposer is not self.own and proposer.preparing:
            proposer.step_down()

    def _lose_patience(self, log: int, needed: int, wait: Wait, now: float) -> None:
        if now - wait.asked >= min(ASK_AFTER * (1 << wait.asks), self.patience(now) / 4):
            wait.asked, wait.asks = now, min(wait.asks + 1, 3)
            self._send += [(peer, Barrier(0, needed), None) for peer in self.peers]
        if log == self.me:
            return  # we lead it, or take it back when it is time
        slot = max(TURN, 2 * self._round_trip(now))
        turn = (self.nodes.index(self.me) - self.nodes.index(log)) % len(self.nodes)
        patience = REFUSED_AFTER if log in self.refusing else self.patience(now)
        if now - wait.since < patience + slot * (turn + wait.jitter / 2):
            return
        proposer = self._proposer(log)
        if proposer.leading:
            if not proposer.entries:
                self._skip(proposer)
        elif not proposer.preparing:
            self._stand(log, needed, now)
        wait.since = now

    def patience(self, now: float) -> float:
        """Seconds that a log may hold us up: measured, or a uniformly slow cluster would revoke itself for
        ever (N12).
        """
        return max(self.revoke_after, 8 * self._round_trip(now))

    def _round_trip(self, now: float) -> float:
        """The largest recent round trip to any peer, its fsync included; a measurement halves with every
        second.
        """
        return max((seconds * 0.5 ** (now - at) for seconds, at in self.round_trips.values()), default=0.0)

    def _probe(self, node: int, message: Accept, now: float) -> None:
        """Measure how long we wait for its vote, or where that can wait, for its frontier; unless another
        Accept is being measured.
        """
        frontier = message.entries[-1].timestamp if node in message.lazy else 0
        stale = node in self.probes and now - self.probes[node].at > STALE_PROBE
        if (stale or node not in self.probes) and not 0 < frontier <= self.learner.known[node]:
            end = message.start + len(message.entries)
            self.probes[node] = Probe(message.log, message.ballot, end, frontier, now)

    def _measure(self, sender: int, message: Accepted, now: float) -> None:
        probe = self.probes.get(sender)
        if probe is None or probe.frontier or message.log != probe.log:
            return
        if message.vote != Vote.TAKEN or message.ballot != probe.ballot:
            del self.probes[sender]
        elif message.length >= probe.length:
            self._measured(sender, probe.at, now)

    def _measured(self, peer: int, since: float, now: float) -> None:
        before, when = self.round_trips.get(peer, (0.0, now))
        self.round_trips[peer] = (max(now - since, before * 0.5 ** (now - when)), now)
        del self.probes[peer]

    def _acceptor_fails(self, now: float) -> bool:
        """Whether this message to the acceptor counts as lost, on purpose."""
        failures = self.failures
        if failures.every:
            if self.silent_next is None:
                self.silent_next = now + self.random.expovariate(1 / failures.every)
            if now >= self.silent_next:
                self.silent_until = now + failures.silence
                self.silent_next = now + self.random.expovariate(1 / failures.every)
            if now < self.silent_until:
                return True
        return failures.probability > 0 and self.random.random() < failures.probability

    def _journal(self, record: Record) -> None:
        self._records.append(record)

    # ------------------------------------------------------------------------------ disks that were lost

    def noted(self, peer: int) -> tuple[int, int]:
        """The highest (incarnation, life) of a peer that was heard of. Messages of a lower incarnation must
        not be handed in: what that disk had promised is forgotten.
        """
        return self.lives[peer]

    def note(self, peer: int, incarnation: int, life: int) -> None:
        """Remember, durably, which disk and which start of it a peer has."""
        if incarnation > self.lives[peer][0]:
            self._forget(peer)
        self.lives[peer] = (incarnation, life)
        self._journal(Record(noted=Noted(peer, incarnation, life)))

    def identify(self, identity: Identity) -> Identity:
        """What this node says to others of itself: with a rejoin the incarnation rises, with each start the
        life.

        While it rejoins it says 0: others may not note an incarnation that is not durable yet.
        """
        return identity._replace(
            incarnation=self.incarnation if self.rejoining is None else 0,
            life=self.life,
            recovered=self.recovered,
            reserved=self.recovered_clock,
        )

    def greet(self, identity: Identity) -> str | None:
        """A process says that it is this peer, started with this disk: why nobody may listen to it; None if
        one may. (Incarnation 0 is rejoining, and says nothing that counts.)

        An older disk, or an earlier start of the same one, is a copy that was put back: it has forgotten
        votes. So it is if there was another start with the same count, and if a later start has found less
        than what an earlier one had let us know to be durable (N25).
        """
        peer, incarnation, life = identity.node, identity.incarnation, identity.life
        disk, last = self.lives[peer]
        older = life >> LIFE_BITS <= last >> LIFE_BITS and life != last
        if incarnation and (incarnation < disk or (incarnation == disk and older)):
            return (
                f"node {peer} is a stale copy: incarnation {incarnation}, start {life >> LIFE_BITS}, but "
                f"{disk} and {last >> LIFE_BITS} were seen: remove its data and start it with --rejoin"
            )
        lost = self._lost(identity) if incarnation == disk and life != last else None
        if incarnation and lost is not None:
            return f"node {peer} is a stale copy: {lost}: remove its data and start it with --rejoin"
        if incarnation and (incarnation, life) != (disk, last):
            self.note(peer, incarnation, life)
        return None

    def _lost(self, identity: Identity) -> str | None:
        """What a start of a peer should have found on its disk, and has not; None if nothing is known.

        A frontier that its owner has made from its clock lies below what was reserved; any other is that of a
        chosen entry.
        """
        peer = identity.node
        for found in identity.recovered or []:
            if found.log in self.acceptors:
                lost = self.witness.lost(peer, found, self.holding[peer][self.nodes.index(found.log)])
                if lost is not None:
                    return lost
        acceptor, (frontier, chosen) = self.acceptors[peer], self.witness.claims[peer]
        if identity.reserved is None or acceptor.chosen < chosen:
            return None
        if frontier > max(identity.reserved, acceptor.timestamp_of(max(chosen, acceptor.base))):
            return f"its clock had reached {frontier}, and its data has {identity.reserved}"
        return None

    def _forget(self, peer: int) -> None:
        """A peer has lost its disk: drop what the old one has said."""
        self.witness.forget(peer)
        for proposer in self.proposers.values():
            proposer.forget(peer)
        if self.round is not None:
            self.round.clocks.pop(peer, None)
        self.probes.pop(peer, None)
        self.told[peer] = self.telling[peer] = (0, 0)
        self.holding[peer] = [0] * len(self.nodes)

    def _on_rejoin(self, sender: int, message: Rejoin, now: float, call: Any) -> None:
        """A peer has lost its disk. Once its new incarnation is noted, no quorum counts the old one here;
        what we tell it then is all that it may have had a part in. If a higher one is noted, it is told only
        that.
        """
        if message.incarnation > self.lives[sender][0]:
            self.note(sender, message.incarnation, 0)
        acceptor, proposer = self.acceptors[message.log], self.proposers.get(message.log)
        promised, accepted = acceptor.promised, acceptor.accepted
        entries = acceptor.from_slot(acceptor.chosen)
        if proposer is not None:
            promised = max(promised, proposer.highest)
            if proposer.leading:
                accepted, entries = proposer.ballot, list(proposer.entries)
        noted = self.lives[sender][0]
        mute = self.rejoining is not None or message.incarnation < noted
        if mute:
            promised, accepted, entries = 0, 0, []
        answer = Rejoined(
            message.log, message.incarnation, noted, mute,
            promised, accepted, acceptor.chosen, entries, self.fact(message.log), self.clock,
        )  # fmt: skip
        self._after.append((sender, answer, call))

    def _rejoin(self, rejoining: "Rejoining", now: float) -> None:
        """Ask again who has not answered; when all have, join."""
        if not rejoining.number and self.incarnation and rejoining.complete(self.quorum):
            if rejoining.noted_by_all:
                self._rejoin_logs(rejoining)
            else:  # (the new number tells the second answers from late first ones)
                rejoining.ask_again(noted_by_all=True)
                self._take_incarnation(self.incarnation + 1)
        if now - rejoining.asked_at < RESEND_AFTER:
            return
        rejoining.asked_at = now
        if not self.incarnation:
            self._send += [(p, Rejoin(self.me, 0), None) for p in self.peers if p not in rejoining.noted]
        else:
            self._after += [(p, Rejoin(log, self.incarnation), None) for p, log in rejoining.missing()]

    def _on_rejoined(self, sender: int, message: Rejoined, now: float, call: Any) -> None:
        rejoining = self.rejoining
        assert rejoining is not None, "nobody else listens to these"
        if message.incarnation != self.incarnation or rejoining.number:
            return
        if not self.incarnation:
            rejoining.noted[sender] = message.noted
            if len(rejoining.noted) == len(self.peers):
                self._take_incarnation(max(2, 1 + max(rejoining.noted.values())))
                rejoining.asked_at = float("-inf")
            return
        if message.noted > self.incarnation:
            rejoining.ask_again(noted_by_all=False)
            self._take_incarnation(message.noted + 1)
            return
        rejoining.answers[sender][message.log] = message
        self._hear_clock(message.clock)
        self._learn(message.fact, now, sender)

    def _take_incarnation(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self._journal(Record(incarnation=incarnation))

    def _rejoin_logs(self, rejoining: "Rejoining") -> None:
        """All have answered: take over what they say of all logs, in one durable step. Not before we hold
        what they say to be chosen.
        """
        for log, acceptor in self.acceptors.items():
            if acceptor.chosen < max(max(a.start, a.fact.chosen) for a in rejoining.of_log(log)):
                return
        for log, acceptor in self.acceptors.items():
            answers = rejoining.of_log(log)
            best = max(answers, key=lambda answer: (answer.accepted, answer.start + len(answer.entries)))
            promised = max(answer.promised for answer in answers)
            acceptor.rejoin(promised, best.accepted, best.entries[acceptor.chosen - best.start :])
            for entry in acceptor.from_slot(acceptor.chosen):
                self.highest = max(self.highest, entry.timestamp)
                if entry.payload:
                    self._raise_clock(entry.timestamp)
        self._raise_clock(self.learner.known[self.me])
        self._journal(Record(rejoined=True))
        rejoining.number = self.journaled + 1

    def _on_synced_rejoining(self, sender: int, message: Synced, now: float, call: Any) -> None:
        self._on_synced(sender, message, now, call)
        if self.rejoining is not None and 0 < self.rejoining.number <= message.number:
            self._join()
            self.retake_at = now

    def _join(self) -> None:
        """From now on we vote."""
        self.rejoining = None
        self.handlers = HANDLERS


class Witness:
    """What peers have let us know to be durable on their disks, in this life of ours.

    A promise, a vote, or a ballot that is stood with, leaves its node only when it is durable. So a later
    start of the same disk finds at least that, or the disk is a copy of an older state (or has lost what it
    had synced), and what it would vote now may contradict what it has voted before.
    """

    def __init__(self, peers: Sequence[int], logs: Sequence[int]) -> None:
        self.logs = logs
        self.promises = {peer: dict.fromkeys(logs, 0) for peer in peers}  # by log: the ballot
        self.votes = {peer: dict.fromkeys(logs, (0, 0)) for peer in peers}  # by log: the ballot, the length
        self.candidates = {peer: dict.fromkeys(logs, 0) for peer in peers}  # by log: the ballot
        self.claims = dict.fromkeys(peers, (0, 0))  # of its own log: the frontier, how much is chosen

    def promised(self, peer: int, log: int, ballot: int) -> None:
        if peer in self.promises and ballot > self.promises[peer][log]:
            self.promises[peer][log] = ballot

    def voted(self, peer: int, log: int, ballot: int, length: int) -> None:
        """At one ballot the length only grows; at a higher one, the log may be shorter."""
        if peer in self.votes and (ballot, length) > self.votes[peer][log]:
            self.votes[peer][log] = (ballot, length)

    def stood(self, peer: int, log: int, ballot: int) -> None:
        if node_of(ballot) == peer and peer in self.candidates and ballot > self.candidates[peer][log]:
            self.candidates[peer][log] = ballot

    def claimed(self, peer: int, fact: Fact) -> None:
        if peer in self.claims and fact.frontier > self.claims[peer][0]:
            self.claims[peer] = (fact.frontier, fact.chosen)

    def forget(self, peer: int) -> None:
        """The peer has another disk."""
        self.claims[peer] = (0, 0)
        self.promises[peer] = dict.fromkeys(self.logs, 0)
        self.votes[peer] = dict.fromkeys(self.logs, (0, 0))
        self.candidates[peer] = dict.fromkeys(self.logs, 0)

    def lost(self, peer: int, found: Recovered, chosen: int) -> str | None:
        """What this start of the peer should have found of a log, and has not. `chosen`: so many entries it
        had said to hold and to know to be chosen.
        """
        log = found.log
        promised, candidate = self.promises[peer][log], self.candidates[peer][log]
        ballot, length = self.votes[peer][log]
        if found.promised < promised:
            return f"in log {log} it had promised ballot {promised}, and its data has {found.promised}"
        if (found.accepted, found.length) < (ballot, length):
            return (
                f"in log {log} it had accepted {length} entries at ballot {ballot}, and its data has "
                f"{found.length} at {found.accepted}"
            )
        if found.candidate < candidate:
            return f"in log {log} it had stood with ballot {candidate}, and its data has {found.candidate}"
        if found.chosen < chosen:
            return f"in log {log} it had {chosen} chosen entries, and its data has {found.chosen}"
        return None


class Rejoining:
    """A node whose disk was lost asks what it may have promised, voted, and said of its clock.

    It must ask *every* other node: a promise that it forgot may have been counted by any of them (N3). First
    for the incarnations that they have noted; its own is to be higher than all. Once a node has noted that,
    no quorum there counts the lost disk, and its answer holds the ballots that it stood with, and the
    entries that it proposed, while that disk still counted. The highest is taken over.

    Whoever is rejoining itself has nothing to tell; a quorum must have. Until the end is durable a node
    neither votes, proposes nor reads, and says nothing of its clock that counts; but it learns, and fetches.
    """

    def __init__(self, peers: Sequence[int], logs: Sequence[int]) -> None:
        self.logs = logs
        self.noted: dict[int, int] = {}  # by peer: the incarnation of ours that it has noted
        self.answers: dict[int, dict[int, Rejoined]] = {peer: {} for peer in peers}  # by log
        self.asked_at = float("-inf")
        self.noted_by_all = False  # whether the answers were given after every node had noted us
        self.number = 0  # of the drain with the records that end it

    def ask_again(self, noted_by_all: bool) -> None:
        """Ask everybody with a higher incarnation.

        Once everybody has noted us, the lost disk is counted nowhere any more. But some answers are older
        than that: a vote of the lost disk may have made a quorum since, at a node that has lost its own disk
        meanwhile and so tells nothing. Who gave the other votes tells of it when asked now.

        Else somebody has noted more than it said: a late message of a disk that rejoined before us, and was
        lost too. We begin anew.
        """
        self.noted_by_all = noted_by_all
        self.answers = {peer: {} for peer in self.answers}
        if noted_by_all:  # else two that believe to be one node would drive each other without a pause
            self.asked_at = float("-inf")

    def tells(self, peer: int) -> bool:
        """Whether this peer has told its state of all logs."""
        answers = self.answers[peer]
        return len(answers) == len(self.logs) and not any(answer.rejoining for answer in answers.values())

    def missing(self) -> list[tuple[int, int]]:
        """Which peers are to be asked for which logs; those that are rejoining, again."""
        return [
            (peer, log)
            for peer, answers in self.answers.items()
            for log in self.logs
            if log not in answers or answers[log].rejoining
        ]

    def complete(self, quorum: int) -> bool:
        """Whether all have answered, and a quorum has told its state."""
        everybody = all(len(answers) == len(self.logs) for answers in self.answers.values())
        return everybody and sum(self.tells(peer) for peer in self.answers) >= quorum

    def of_log(self, log: int) -> list[Rejoined]:
        return [answers[log] for peer, answers in self.answers.items() if self.tells(peer)]


Handler = Callable[[Node, int, Any, float, Any], None]
HANDLERS: Final[dict[type, Handler]] = {
    Accept: Node._on_accept,
    Accepted: Node._on_accepted,
    Barrier: Node._on_barrier,
    Reading: Node._on_reading,
    Learn: Node._on_learn,
    Fetch: Node._on_fetch,
    Fetched: Node._on_fetched,
    Prepare: Node._on_prepare,
    Promise: Node._on_promise,
    Rejoin: Node._on_rejoin,
    Synced: Node._on_synced,
}
HANDLERS_REJOINING: Final[dict[type, Handler]] = {
    Learn: Node._on_learn,
    Fetch: Node._on_fetch,
    Fetched: Node._on_fetched,
    Rejoin: Node._on_rejoin,
    Rejoined: Node._on_rejoined,
    Synced: Node._on_synced_rejoining,
}
