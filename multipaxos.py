"""Multi-Paxos: nodes that fail agree on one order of commands; every node proposes, in a log of its own.

**The problem.** Several nodes hold copies of one store. Each takes commands, messages are lost or come late,
and nodes stop, and return with what is on their disks. All copies must apply the same commands in the same
order, a command whose client was answered must never be lost, and a minority of dead nodes must stop nobody.
(Nodes that lie are not considered.)

**Eight words.**

  quorum    a majority of the nodes, counted by who they are. Any two quorums share at least one node.
  entry     what is decided for one slot, a place in a log: a timestamp, and commands; if none, a *no-op*.
  ballot    the number of one attempt to lead a log: (round, node), compared as a pair, never used twice.
  accepted  an acceptor has taken an entry, at its leader's ballot. It counts, as a *vote*, when on the disk.
  chosen    a quorum has voted for the entry at one and the same ballot: it keeps its slot for ever.
  clock     a counter of each node, raised to the timestamp of every command that it sees: order, not time.
  frontier  of a log: its commands up to this timestamp are chosen, and no other will ever come among them.
  applied   executed on a node's store, once the frontiers of all logs say that nothing earlier can come.

**One log** has an acceptor on every node, and a leader. A node *stands* for the log when it wants to lead it
(phase 1). The leader first sends what it has adopted from the acceptors, then entries of its own (phase 2).

  candidate                                    acceptors
     | Prepare(ballot, from_slot) -----------> |   phase 1, once for each leader
     | <--------- Promise(accepted, entries)   |   "I accept nothing of a lower ballot any more, and these
     | a quorum: adopt the best log, and lead  |    are the entries that I have accepted"
     | Accept(ballot, start, entries) -------> |   phase 2, for each entry; the first Accept of a ballot,
     | <----------- Accepted(vote, length)     |   its *sync*, has all that is adopted and not known as chosen
     | a quorum: chosen                        |   "so much of your log is on my disk"

The best log is that of the highest accepted ballot, and of those the longest. The two examples, which
tests/protocol/test_essay.py plays, have three nodes; 2.3 is round 2 of node 3. They show of each acceptor the
ballot that it has promised, and the entry that it has accepted, with the ballot.

**The entry survives its proposer.**        node 1         node 2         node 3
  1 stands with 1.1, and all promise        1.1, -         1.1, -         1.1, -
  1 sends x; what it sends to 3 is lost     1.1, x 1.1     1.1, x 1.1     1.1, -
  two votes at 1.1: x is chosen; 1 dies     dead           1.1, x 1.1     1.1, -
  3 stands with 2.3; 2 and 3 promise        dead           2.3, x 1.1     2.3, -
  3 adopts x, the best log, and sends it    dead           2.3, x 2.3     2.3, x 2.3
  two votes at 2.3: x is chosen once more   dead           2.3, x 2.3     2.3, x 2.3

**The entry is lost.** Only a minority had accepted it, so nobody was told that it was done.
  1 stands with 1.1, and all promise        1.1, -         1.1, -         1.1, -
  1 sends y to itself, and dies             dead           1.1, -         1.1, -
  3 stands with 2.3; 2 and 3 promise        dead           2.3, -         2.3, -
  3 adopts nothing, and sends a no-op, n    dead           2.3, n 2.3     2.3, n 2.3
  1 is back, hears of 2.3, stands with 3.1  3.1, y 1.1     3.1, n 2.3     3.1, n 2.3
  1 adopts n, the best log, and sends it    3.1, n 3.1     3.1, n 3.1     3.1, n 3.1

Had node 1 lived to promise 2.3, then 3 could have adopted y: until an entry is chosen, both ends are right.

**Why it is safe.** Two majorities share a node: of the nodes that promise to a later leader, one has accepted
the entry that is chosen. A promise stops lower ballots from finishing: that node accepted the entry before it
promised, since afterwards it would have refused, and so its Promise shows the entry. The votes that choose an
entry are of one ballot, and every later ballot adopts the entry in its turn: so the best log, which is picked
by its ballot, has it.

(Votes of two ballots choose nothing: of three nodes the first holds x of 1.1, the second x of 3.1, the third
z of 2.3. The first and the third are a quorum; their best log is z.)

**The duel.** Two candidates for one log can go on to stand above each other before either gets its votes:
safe, but nothing is chosen. So each node is the *owner* of a log, which it leads; it stands for another's
only in need.

**Five logs, one order.** Commands are applied in the order of (timestamp, owner of the log). Node 2 gets a
command d while its clock is 89. It stamps d with 90, and sends it to all.

  timestamp   38   71   88   90    the receiver's clock, and the frontier of its log that its answer brings
  log 1        a                   40 becomes 90; frontier 90: whatever comes later is stamped above
  log 2             b         d    (the sender)
  log 3                  c         88 becomes 90; frontier 87: c is not chosen yet
  log 4                            71 becomes 90; frontier 90
  log 5                            12 becomes 90; frontier 90

a and b are applied. d is *chosen* with the third vote, its own node's included: it can never be lost. d is
*applied* when c is, and the frontier of log 3 is 90: so on every node in the order a, b, c, d. Without c, one
round trip does both. What is known of a log travels as a *fact*, (chosen, evidence, frontier): the first
`chosen` entries are chosen, as was counted at the ballot `evidence`. A fact stays true whatever happens, so
anybody may pass it on. A ballot is *established* when a quorum has accepted its sync.

Six rules, and what breaks without them:

  R1  Only its owner puts commands into a log; others finish it, and add no-ops. Else a command comes below a
      frontier that the owner has given, after others have applied what lies above it.
  R2  The owner stamps an entry above its clock, and above all that its log holds. Else the same breaks.
  R3  A frontier made from the clock never exceeds a reservation on the disk, where the clock begins after a
      restart. Else a restarted owner stamps below a frontier that it has given.
  R4  Only the owner makes a frontier from its clock, and only while its ballot is established. Else a later
      leader may adopt the log of an older ballot, with commands below the frontier.
  R5  A client is answered when its command is applied, not when it is chosen. Else its next command, sent to
      a node with a lower clock, is stamped and applied before the one that was answered.
  R6  A node that receives an entry raises its clock to it before it answers. Else a read can miss a write
      that was answered (see below), and the proposer waits for another round trip.

**A dead node** gives no frontiers, so another one *revokes* it: stands for its log, finishes it, and appends
a *skip*, a no-op stamped far ahead. The owner, when it is back, stands for its log with a higher ballot.

**A read** asks a quorum for its clocks, and waits until all frontiers have reached the highest of them and
all up to there is applied. That is late enough: a write that was answered before was accepted by a quorum,
which raised its clocks to it (R6), and one node of that quorum is among those that the read has asked.

**Durability.** Whatever others rely on leaves when it is on the disk: a Prepare, PROMISED, ACCEPTED, and what
is said of a lost disk; everything else, at once. (It goes to `Acceptor.journal`; docs/architecture.md names
the functions from there to the disk.)

**Which function is which.**

  1a  stand            `Proposer.prepare`, then `message`
  1b  promise          `Acceptor.on_prepare`; the answer is a Verdict:
        PROMISED       nothing below this ballot is accepted any more
        NACK           a higher ballot is promised already
        BEHIND         the candidate must fetch chosen entries first: they were given up here, or are many
        COVERED        the frontier that a revoker waits for is known here: it need not stand (logs.py)
      adopt, and lead  `Proposer.on_promise`, with `best_log`
  2a  propose          `Proposer.append`, then `due`
  2b  accept           `Acceptor.on_accept`; the answer is a Vote:
        ACCEPTED       the first `length` entries of this ballot's log are on the disk here
        REFUSED        a higher ballot is promised already
        NEEDS_SYNC     the sync of this ballot, or a chosen entry below it, is missing here
        WITHHELD       no vote: this acceptor fails on purpose, as in an experiment
      count votes      `Proposer.on_accepted`, with `quorum_length`
      learn            `Learner.learn` (a fact), `Acceptor.learn` (what is chosen), `Learner.settle` (both)
      merge, and wait  `Learner.next`, `Learner.apply`; `Learner.waits_on`

**Three ways to propose.** All of the above is for own logs. Two more ways ("proposing" in cluster.json) have
one log, with the same Acceptor, Proposer and Learner; they differ in who stands when. One log needs no merge:
entries are applied in the order of their slots, and timestamps are only labels. Each way is a file in
paxoskv/protocol/, to be read beside the others: classic.py, leader.py, own_logs.py.

                       classic                     leader                    own logs
  stands for a log     for each command            when nobody leads it      for its own when it starts
  appends              one command, then gives     what all nodes hand       what its own clients send
                       its ballot up               to it
  a command costs      two round trips, three      one round trip, one       one round trip, one fsync
                       fsyncs one after another    fsync; elsewhere than     at every node; and the frontiers
                                                   at the leader, two        of all nodes that live
  two at a time        a duel: the one refused     wait for nothing          wait for nothing
                       waits at random, longer
                       each time
  a dead node          stops nobody                stops all for a while,    stops all for a while
                                                   if it led
  a read               takes a ballot              asks whether the leader   asks a quorum for its clocks
                                                   leads still

Classic shows what phase 1 is for, and what it costs: it comes before each command, and a higher ballot from
elsewhere undoes it. The leader keeps phase 1 for as long as it lives, but all work and all waiting are at one
node. With own logs every node has done phase 1 for ever, and no two compete; what that costs is the merge.

**Elsewhere** (paxoskv/protocol/ has the rest of a node; docs/protocol.md tells all of it in words):

  checkpoints     take the place of applied entries that are given up: compaction.py, `Acceptor.cover`
  deferred votes  of two of five nodes can wait: they answer with what is on their disk by then: voters.py
  reads           when a read may be answered; some *ride* on an entry instead of asking a quorum: reads.py
  rejoining       a node that has lost its disk asks all others before it votes again: docs/protocol.md,
                  "What survives"
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from typing import Any, Final, NamedTuple

from paxoskv.wire.structs import (
    Accept,
    Accepted,
    Entry,
    Fact,
    Held,
    LogBallot,
    Prepare,
    Promise,
    Record,
    Verdict,
    Vote,
)

RESEND_AFTER: Final = 0.05  # seconds until what is unanswered is sent again; doubled while a peer is silent
RESEND_AT_MOST: Final = 1.0  # seconds: the longest pause before that
UNCHOSEN_ENTRIES: Final = 1024  # in one log, at most: every sync and every Promise has to fit one frame
UNCHOSEN_BYTES: Final = 4 << 20  # bytes of them, at most, for the same reason
FETCH_BYTES: Final = 1 << 20  # bytes in one Fetched, about


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


class Applied:
    """An entry whose turn has come. `token` is what came with it, if this node proposed it; else None."""

    __slots__ = ("owner", "payload", "timestamp", "token")

    def __init__(self, timestamp: int, owner: int, payload: bytes, token: Any) -> None:
        self.timestamp = timestamp
        self.owner = owner
        self.payload = payload
        self.token = token


class Covered(NamedTuple):
    """How much of one log a checkpoint covers.

    The first `executed` entries are chosen, as was counted at the ballot `evidence`, and all of them are in
    the checkpoint. `last` is the timestamp of the last one: without it, the owner could stamp an entry below
    a skip that nobody holds any more.
    """

    executed: int
    evidence: int
    last: int


class Cut(NamedTuple):
    """Where a checkpoint stands: all entries up to `position` are applied; `logs` says how many of each."""

    position: tuple[int, int]  # (timestamp, owner)
    logs: dict[int, Covered]
    clock: int


class Acceptor:
    """One node's vote in one log: what it has promised, and the entries that it has accepted.

    The entries are always the beginning of the log of the ballot `accepted`; the first `chosen` of them are
    known to be chosen, as was counted at the ballot `evidence`. `promised`, `accepted`, and the number of
    entries at one `accepted`, never decrease; `evidence` <= `accepted` <= `promised`.

    Every handler gives its changes to `journal`, a callable. The caller sends PROMISED when the promise is on
    the disk, and ACCEPTED with a length when that many entries are. (So a vote that can wait leaves at once,
    with the length that is on the disk by then.)
    """

    def __init__(self, log: int, journal: Callable[[Record], None]) -> None:
        self.log = log
        self.journal = journal
        self.promised = 0
        self.accepted = 0
        self.base = 0  # entries below this slot are executed, and have been given up
        self.floor = 0  # the timestamp of the last entry that has been given up
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
        """The timestamp of the last one of the first `length` entries; it may have been given up."""
        return self.entries[length - self.base - 1].timestamp if length > self.base else self.floor

    def from_slot(self, slot: int, end: int | None = None) -> list[Entry]:
        return self.entries[slot - self.base : None if end is None else end - self.base]

    def on_prepare(self, message: Prepare, fact: Fact) -> Promise:
        """Phase 1b: promise to accept nothing below the ballot, and show the entries that are accepted.

        An entry that was given up must not look like one that was never accepted. So a candidate that needs
        it is told that it is behind, and so is one that lacks more chosen entries than fit one frame.
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
        """Phase 2b: accept the leader's entries unless a higher ballot is promised. The answer is a Vote.

        To accept is to promise as well: otherwise an acceptor that had not promised this ballot could promise
        a lower one afterwards, and two leaders could choose different entries.
        """
        if message.ballot < self.promised:
            return Vote.REFUSED
        if message.ballot > self.accepted:
            return self._take_sync(message)
        start, length = message.start, self.length
        if start <= length:  # else there is a gap, and the answer says how long our log is
            if start < length:
                self._check_same(start, message.entries, length)
            self._hold(message.ballot, length, message.entries[length - start :])
        # Nothing is ever cut at one ballot: a late sync would cut entries that were counted (N1).
        return Vote.ACCEPTED

    def _take_sync(self, message: Accept) -> int:
        """A new ballot's log replaces ours, except for the entries that we know to be chosen."""
        if not message.sync or not message.start <= self.chosen <= message.start + len(message.entries):
            return Vote.NEEDS_SYNC
        self._check_same(message.start, message.entries, self.chosen)
        self._hold(message.ballot, self.chosen, message.entries[self.chosen - message.start :])
        return Vote.ACCEPTED

    def learn(self, chosen: int, evidence: int) -> None:
        """The first `chosen` entries are chosen, as was counted at `evidence`: advance if ours are the same.

        They are if we have accepted the log of `evidence`, or a later one.
        """
        reached = min(chosen, self.length)
        if reached > self.chosen and self.accepted >= evidence:
            self.chosen, self.evidence = reached, evidence

    def install(self, start: int, entries: list[Entry], evidence: int) -> None:
        """Take chosen entries that another node has, and that were counted at the ballot `evidence`.

        Where our log is of a lower ballot, what it has beyond them is dropped. That cannot have been chosen:
        the log of `evidence`, which a quorum has accepted, contained all that could.
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
        """A checkpoint has the first `chosen` entries, which were counted at the ballot `evidence`.

        This is as if we had fetched, executed and given up those entries. The ballots rise as they do in
        install(), for the same reason (N23).
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
        """Accept these entries, and promise, in place of a disk that had done so and is lost."""
        if accepted >= self.accepted:
            self._hold(accepted, self.chosen, entries)
        if promised > self.promised:
            self.promised = promised
            self.journal(Record(promised=LogBallot(self.log, promised)))

    def drop(self, below: int) -> None:
        """Give up the executed entries below this slot: a node that lacks them needs a checkpoint."""
        assert below <= self.chosen, "only chosen entries can be given up"
        if below > self.base:
            self.floor = self.entries[below - self.base - 1].timestamp
            del self.entries[: below - self.base]
            self.base = below

    def replay(self, record: Record) -> None:
        """Recovery: do once more what was journaled."""
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
        """Raise Diverged if these entries, from slot `start` on, are not the same as ours below slot `end`.

        There they cannot differ, because both are chosen, or are the log of one ballot.
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
    """The promise whose log is adopted: that of the highest accepted ballot, and of those the longest."""
    return max(promises, key=lambda promise: (promise.accepted, len(promise.entries)))


def quorum_length(lengths: Iterable[int], quorum: int) -> int:
    """How far a quorum has accepted the log: the quorum-th largest length; 0 if there are fewer."""
    ordered = sorted(lengths)
    return ordered[-quorum] if len(ordered) >= quorum else 0


@dataclass(slots=True)
class Courier:
    """How far a leader has come with sending its log to one peer."""

    sent: int = -1  # the log was sent up to this slot; -1: not even the sync was
    at: float = 0.0  # since when what was sent is unanswered, or when it was last sent again
    silent: int = 0  # how often it was sent again, and no answer has come since
    again: bool = False  # whether a vote that was withheld has been asked for again since the last vote


class Proposer:
    """Candidate for one log, then its leader. It knows no other log, and no time but its arguments.

    It is idle, `preparing`, or `leading`. A leader is `established` when a quorum has accepted its sync.
    """

    def __init__(self, log: int, me: int, nodes: Sequence[int]) -> None:
        self.log = log
        self.me = me
        self.nodes = nodes
        self.quorum = len(nodes) // 2 + 1
        self.highest = 0  # the highest ballot seen, our own included: our next one lies above it
        self.ballot = 0
        self.preparing = False
        self.leading = False
        self.wanted = 0
        self.start = 0  # our chosen length: where `entries` begins
        self.entries: list[Entry] = []
        self.bytes = 0  # of payloads in `entries`
        self.promises: dict[int, Promise] = {}
        self.lengths: dict[int, int] = {}  # by node: how many entries of our ballot's log are on its disk
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
        """Phase 1a: stand with a ballot above all that were seen.

        The record that is returned must be durable before the Prepare leaves.
        """
        self.highest = max(self.highest, promised)
        self.ballot = self.highest = ballot_of(round_of(self.highest) + 1, self.me)
        self.preparing, self.leading, self.wanted = True, False, wanted
        self.lengths.clear()
        self.prepares = 0
        self.restart_at(from_slot)
        return Record(candidate=LogBallot(self.log, self.ballot))

    def restart_at(self, from_slot: int) -> None:
        """Our chosen length has grown: promises that begin elsewhere would be adopted one off (N19)."""
        self.start = from_slot
        self.promises.clear()

    def message(self, now: float) -> Prepare:
        self.prepared_at = now
        self.prepares += 1
        return Prepare(self.log, self.ballot, self.start, self.wanted)

    def on_promise(self, sender: int, message: Promise) -> bool:
        """Count a promise. True when a quorum has promised, and the best log is adopted: we lead."""
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
        """Another node leads the log, or wants to. Our ballot is never used again."""
        self.highest = max(self.highest, promised)
        self.preparing = self.leading = False
        self.entries, self.bytes = [], 0
        self.promises.clear()
        self.lengths.clear()

    def forget(self, peer: int) -> None:
        """The peer has lost its disk: its promise and its votes no longer count, and it lacks all entries."""
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
        """The timestamp of the first command of our log that is not chosen yet."""
        for entry in self.entries:
            if entry.payload:
                return int(entry.timestamp)
        return None

    def on_accepted(self, sender: int, message: Accepted, now: float) -> int:
        """Count a vote at our ballot; the result says how far the log is chosen now.

        A node counts once, however often it answers.
        """
        courier = self.couriers[sender]
        if message.vote != Vote.ACCEPTED:
            courier.silent = 0
            if message.vote == Vote.NEEDS_SYNC:
                courier.sent = -1
            elif message.vote == Vote.WITHHELD and sender in self.lengths and not courier.again:
                courier.again = True
                courier.sent = min(courier.sent, self.lengths[sender])
                self.fresh = True
        elif message.length > self.lengths.get(sender, -1):  # else its disk hangs: send it nothing more
            courier.silent, courier.again = 0, False
            courier.at = now
            self.lengths[sender] = min(message.length, self.end)
        return quorum_length(self.lengths.values(), self.quorum)

    def advance(self, chosen: int) -> None:
        """Our own acceptor knows the entries below `chosen` to be chosen: the leader lets go of them."""
        done = self.entries[: chosen - self.start]
        self.bytes -= sum(len(entry.payload) for entry in done)
        del self.entries[: chosen - self.start]
        self.start = chosen

    def due(self, peer: int, now: float) -> tuple[int, bool] | None:
        """Where to begin what is sent to a peer now, and whether it is the sync; None if nothing is due.

        The first Accept of a ballot is its sync. What stays unanswered is sent again from the length that the
        peer has answered, which may lie below our chosen length.
        """
        courier, end = self.couriers[peer], self.end
        held = self.lengths.get(peer, -1)
        if held >= end and courier.sent >= end:
            return None  # the common case: nothing to send
        late = now - courier.at >= min(RESEND_AFTER * (1 << courier.silent), RESEND_AT_MOST)
        if late and held < courier.sent:
            start, sync = (held, False) if held >= 0 else (self.start, True)
            courier.silent = min(courier.silent + 1, 5)
        elif courier.sent < 0 and (late or not courier.at):
            start, sync = self.start, True
        elif 0 <= courier.sent < end:
            start, sync = courier.sent, False
        else:
            return None
        if late or held >= courier.sent:
            courier.at = now
        courier.sent = end
        return start, sync


@dataclass(slots=True)
class Learned:
    """What a Learner knows of one log."""

    acceptor: Acceptor
    fact: Fact  # as it was told to others last
    chosen: int = 0  # how many entries are chosen, as far as was heard
    evidence: int = 0  # the ballot in which those were counted
    known: int = 0  # the highest frontier that was heard of
    held: int = 0  # how many chosen entries the acceptor has
    frontier: int = 0  # up to here, the acceptor has all commands of the log
    executed: int = 0  # how many entries are applied or, being no-ops, passed over


def needed(timestamp: int, owner: int, log: int) -> int:
    """The frontier that a log needs before the command of this timestamp and owner may be applied.

    The order is that of (timestamp, owner). So a log up to the owner's must have no command of this timestamp
    left. A later log may still bring one, which comes behind the command: one less is enough.
    """
    return timestamp - (log > owner)


class Learner:
    """Merges all logs into one order. `heads` has the timestamp of a log's next command, if one is chosen."""

    def __init__(self, acceptors: dict[int, Acceptor]) -> None:
        self.acceptors = acceptors
        self.logs = {log: Learned(acceptor, Fact(log, 0, 0, 0)) for log, acceptor in acceptors.items()}
        self.heads: dict[int, int] = {}
        self.position = (0, 0)
        self.moved = False  # whether a command may have become applicable

    def fact(self, log: int) -> Fact:
        learned = self.logs[log]
        fact, chosen, evidence, known = learned.fact, learned.chosen, learned.evidence, learned.known
        if fact.frontier != known or fact.chosen != chosen or fact.evidence != evidence:
            fact = learned.fact = Fact(log, chosen, evidence, known)
        return fact

    def last_timestamp(self, proposer: Proposer) -> int:
        """A timestamp that no entry of this leader's log lies above: its next entry is stamped above it."""
        if proposer.entries:
            return proposer.entries[-1].timestamp
        held = self.acceptors[proposer.log].entries[-1:]
        return max(self.logs[proposer.log].known, *[entry.timestamp for entry in held], 0)

    def learn(self, log: int, chosen: int, evidence: int, frontier: int) -> bool:
        """Merge a fact; True if it said anything new.

        (chosen, evidence) is one pair: the larger one stays. The frontier goes by itself.
        """
        learned = self.logs[log]
        news = False
        if chosen > learned.chosen or (chosen == learned.chosen and evidence > learned.evidence):
            learned.chosen, learned.evidence = chosen, evidence
            news = True
        if frontier > learned.known:
            learned.known = frontier
            news = True
        return news

    def settle(self, log: int) -> bool:
        """Bring the facts and the acceptor's entries together; True if more chosen entries are here now."""
        learned = self.logs[log]
        acceptor = learned.acceptor
        if acceptor.chosen < learned.chosen:
            acceptor.learn(learned.chosen, learned.evidence)
        before, chosen = learned.held, acceptor.chosen
        if chosen > before:
            self.moved = True
            learned.held = chosen
            self.find_head(log)
            if chosen > acceptor.base:  # else a checkpoint has just covered all of them
                last = acceptor.timestamp_of(chosen)
                learned.frontier = max(learned.frontier, last)
                learned.known = max(learned.known, last)
        if chosen >= learned.chosen and learned.known > learned.frontier:
            self.moved = True
            learned.frontier = learned.known
        return chosen > before

    def find_head(self, log: int) -> None:
        """Find the log's next command. No-ops count as executed at once: they wait for nothing."""
        learned = self.logs[log]
        acceptor, slot = learned.acceptor, learned.executed
        while slot < acceptor.chosen:
            entry = acceptor.entries[slot - acceptor.base]
            if entry.payload:
                self.heads[log] = entry.timestamp
                break
            slot += 1
        else:
            self.heads.pop(log, None)
        learned.executed = slot

    def next(self) -> tuple[int, int] | None:
        """The (timestamp, owner) of the earliest chosen command that is not applied yet."""
        first = None
        for log, timestamp in self.heads.items():
            if first is None or (timestamp, log) < first:
                first = (timestamp, log)
        return first

    def apply(self) -> list[tuple[int, int, bytes]]:
        """The commands whose turn has come: (timestamp, owner, payload) each."""
        commands: list[tuple[int, int, bytes]] = []
        while (head := self.next()) is not None:
            timestamp, owner = head
            for log, learned in self.logs.items():
                if learned.frontier < needed(timestamp, owner, log):
                    return commands
            if head <= self.position:
                raise Diverged(
                    f"command {timestamp} of log {owner} is chosen, after {self.position} was applied"
                )
            learned = self.logs[owner]
            payload = learned.acceptor.entries[learned.executed - learned.acceptor.base].payload
            learned.executed += 1
            self.position = head
            self.find_head(owner)
            commands.append((timestamp, owner, payload))
        return commands

    def has_passed(self, position: tuple[int, int]) -> bool:
        """Whether all commands up to this position are applied, and no other can come there any more."""
        timestamp, owner = position
        following = self.next()
        return (following is None or following > position) and all(
            learned.frontier >= needed(timestamp, owner, log) for log, learned in self.logs.items()
        )

    def waits_on(self, read: int) -> dict[int, int]:
        """The logs whose frontiers are waited for, each with the timestamp that it has to reach.

        The next command waits for them, or a read with the timestamp `read` (0: none).
        """
        timestamp, owner = self.next() or (0, 0)
        waits = {}
        for log, learned in self.logs.items():
            least = max(needed(timestamp, owner, log), read)
            if learned.frontier < least:
                waits[log] = least
        return waits

    def install(self, cut: Cut) -> bool:
        """Merge a checkpoint. True if its position lies beyond ours: then its state takes the place of ours.

        This goes log by log, because no-ops count early: of two nodes, each may have executed more entries
        than the other in some log.
        """
        timestamp, owner = cut.position
        for log, (executed, evidence, last) in cut.logs.items():
            frontier = max(last, needed(timestamp, owner, log))
            learned = self.logs[log]
            learned.acceptor.cover(executed, evidence, last)
            self.learn(log, executed, evidence, frontier)
            learned.executed = max(learned.executed, executed)
            learned.frontier = max(learned.frontier, frontier)
            self.find_head(log)
        self.moved = True
        if cut.position <= self.position:
            return False
        self.position = cut.position
        return True

    def cut(self, clock: int) -> Cut:
        """Where a checkpoint would stand that is made of what is applied now."""
        logs = {
            log: Covered(
                learned.executed, learned.acceptor.evidence, learned.acceptor.timestamp_of(learned.executed)
            )
            for log, learned in self.logs.items()
        }
        return Cut(self.position, logs, clock)

    def recover(self, position: tuple[int, int]) -> Iterator[tuple[int, int, bytes]]:
        """After a restart: the commands that had been applied up to the position, in the same order.

        Those that an installed checkpoint has are not among them.
        """
        logs = []
        covered = self.position  # by an installed checkpoint
        for log, learned in self.logs.items():
            acceptor = learned.acceptor
            self.learn(log, acceptor.chosen, acceptor.evidence, 0)
            unapplied = acceptor.from_slot(learned.executed, acceptor.chosen)
            entries = [entry for entry in unapplied if (entry.timestamp, log) <= position]
            learned.executed += len(entries)
            learned.held = acceptor.chosen
            logs.append([(entry.timestamp, log, entry.payload) for entry in entries if entry.payload])
            self.find_head(log)
            if acceptor.chosen > acceptor.base:
                last = acceptor.timestamp_of(acceptor.chosen)
                learned.frontier = learned.known = max(learned.known, last)
        self.position = max(self.position, position)
        self.moved = True
        for timestamp, owner, payload in merge(*logs):
            if (timestamp, owner) <= covered:
                raise Diverged(f"command {timestamp} of log {owner} is not in the checkpoint of {covered}")
            yield timestamp, owner, payload
