"""What the ways with one log have in common: one entry of this node is under way, known by its origin."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from paxoskv.multipaxos import Proposer, node_of
from paxoskv.protocol.way import Parts, Way
from paxoskv.wire.structs import Barrier, Entry, Origin


@dataclass(slots=True)
class UnderWay:
    """An entry of this node that is not applied yet."""

    origin: Origin  # of our latest entry
    payload: bytes | None = None  # it contains the origin; None: nothing is under way
    token: Any = None
    timestamp: int = 0  # of the entry that we have appended last, perhaps another node's


@dataclass(slots=True)
class Still:
    """When to finish what somebody else has left half done: nothing has gone on for a while."""

    jitter: float
    progress: tuple[int, int] = (0, 0)  # the ballot promised, and how much is chosen
    since: float = 0.0  # since when it has been so, while somebody waits for more
    waits: bool = False  # whether somebody does
    asked_at: float = 0.0  # when all were asked last whether they live


class OneLog(Way):
    """All nodes append to one log, in turn or through its leader.

    The order is that of the slots. Timestamps only label the entries, and no frontier is waited for.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.acceptor = self.acceptors[self.own.log]
        self.begun = False  # whether this node takes part: it is not rejoining
        self.entry = UnderWay(Origin(self.me, 0, 0))
        self.still = Still(self.random.random())
        self.waiting: list[Any] = []  # reads that nothing has been done for
        self.dated: list[tuple[int, list[Any]]] = []  # reads, by how much of the log is to be executed first

    @property
    def in_flight(self) -> int:
        return int(self.entry.payload is not None)

    @property
    def has_room(self) -> bool:
        return self.entry.payload is None

    @property
    def busy(self) -> bool:
        under_way = self.entry.payload is not None or self.own.preparing or bool(self.own.entries)
        return under_way or self.still.waits or any(self.reads())

    def origin(self, life: int) -> Origin:
        self.entry.origin = Origin(self.me, life, self.entry.origin.number + 1)
        return self.entry.origin

    def propose(self, payload: bytes, token: Any) -> None:
        self.entry.payload, self.entry.token = payload, token

    def read(self, token: Any) -> None:
        self.waiting.append(token)

    def forget_reads(self, tokens: Collection[Any]) -> None:
        for reads in self.reads():
            reads[:] = [read for read in reads if read not in tokens]

    def applied(self, timestamp: int, owner: int, payload: bytes) -> Any:
        return self._done() if payload == self.entry.payload else None

    def promised(self, log: int, now: float) -> None:
        """The candidate may finish our entry as well."""

    def covered(self, position: tuple[int, int]) -> None:
        self._lost()

    def lead(self, proposer: Proposer) -> None:
        for entry in proposer.entries:
            self.clock.see_entry(entry)

    def answer_reads(self, now: float, more: bool) -> None:
        executed = self.learner.logs[self.own.log].executed
        while self.dated and self.dated[0][0] <= executed:
            self.outbox.ready.reads += self.dated.pop(0)[1]

    def watch(self, now: float) -> None:
        """Stand where nothing goes on, though it should: one node after the other, as in revocation."""
        still = self.still
        still.waits = self._is_held_up(now)
        if still.waits and now - still.asked_at >= self.revocation.patience(now) / 4:
            still.asked_at = now  # gossip is too rare to tell who lives
            for peer in self.peers:
                self.outbox.send(peer, Barrier(0, 0))
        progress = (self.acceptor.promised, self.learner.logs[self.own.log].chosen)
        if not still.waits or not self._is_in_contact(now) or progress != still.progress:
            still.progress, still.since, still.jitter = progress, now, self.random.random()
        elif not self.own.preparing and not self.own.leading and self._is_our_turn(now):
            still.since = now
            self.revocations += 1
            self.stand(self.own.log, 0, now)

    def _is_in_contact(self, now: float) -> bool:
        """Whether a quorum is heard of: a node that was cut off deposes nobody when it comes back (N11)."""
        return self.contacts.reached(self.revocation.patience(now) / 2, now) >= self.own.quorum

    def _is_held_up(self, now: float) -> bool:
        """Whether somebody has left entries unfinished."""
        return self.acceptor.length > self.learner.logs[self.own.log].chosen

    def _is_our_turn(self, now: float) -> bool:
        return self.revocation.is_our_turn(self._holder(), self.still.since, self.still.jitter, now)

    def _holder(self) -> int:
        """The node that has stood last; if none has, the first one."""
        node = node_of(self.acceptor.promised)
        return node if node in self.own.nodes else self.own.nodes[0]

    def _append(self, payload: bytes) -> None:
        """Put an entry at the end of the log that we lead."""
        self.entry.timestamp = self.clock.stamp(self.learner.last_timestamp(self.own))
        self.own.append(Entry(self.entry.timestamp, payload))

    def _is_in(self, unchosen: Sequence[Entry]) -> bool:
        """Whether our entry is in a log: among these, or chosen there, and not yet applied.

        What is applied is no longer under way. So a node that appends an entry only to a log that lacks it
        puts it into no log twice. One log is chosen, so nothing is applied twice.
        """
        unapplied = self.acceptor.from_slot(self.learner.logs[self.own.log].executed, self.acceptor.chosen)
        return any(entry.payload == self.entry.payload for entry in [*unapplied, *unchosen])

    def _done(self) -> Any:
        """Our entry is no longer under way: its token."""
        token, self.entry.payload, self.entry.token = self.entry.token, None, None
        return token

    def _lost(self) -> None:
        """Our entry's fate will not be known here: it may be applied."""
        if self.entry.payload is not None:
            self.outbox.ready.lost.append(self._done())

    def reads(self) -> Iterator[list[Any]]:
        """All reads that are not answered."""
        yield self.waiting
        for _, reads in self.dated:
            yield reads
