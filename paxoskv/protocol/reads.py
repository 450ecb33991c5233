"""Linearizable reads: each gets a timestamp that lies above all that was answered before the read came.

A round asks a quorum for its clocks; the highest is the timestamp of all reads that came before the round.
Or none is needed: an entry of ours that is proposed after the read came is stamped above everything that
anybody had been answered by then, so that the read may ride on it, and is answered when it is applied.
"""

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from paxoskv.multipaxos import RESEND_AFTER, Learner
from paxoskv.protocol.clock import Clock
from paxoskv.protocol.contacts import Contacts
from paxoskv.protocol.outbox import Outbox
from paxoskv.wire.structs import Barrier, Reading


@dataclass(slots=True)
class Round:
    """The clocks of a quorum are being asked for, for these reads."""

    number: int
    clock: int
    reads: list[Any]
    at: float
    clocks: dict[int, int]
    asked: Collection[int] = ()


class Reads:
    """Reads wait for a round or an entry to ride on, then for their timestamp, then are answered."""

    def __init__(
        self,
        me: int,
        peers: Sequence[int],
        quorum: int,
        learner: Learner,
        clock: Clock,
        contacts: Contacts,
        outbox: Outbox,
        random: Random,
    ) -> None:
        self.me = me
        self.peers = peers
        self.quorum = quorum
        self.learner = learner
        self.clock = clock
        self.contacts = contacts
        self.outbox = outbox
        self.waiting: list[Any] = []  # for the next round, or for an entry to ride on
        # Another list replaces `waiting` whenever its reads go on. So tick() knows by the list's identity
        # whether the same reads still wait, and since when.
        self.waited = self.waiting
        self.waited_since = 0.0
        self.riding: dict[int, list[Any]] = {}  # by timestamp of our own entry that they are answered with
        self.round: Round | None = None
        self.rounds = random.getrandbits(48) << 12  # so that an earlier life's answers fit no round
        # Reads that have their timestamp, in ascending order: each round begins with our clock, which is not
        # below the timestamp of the round before.
        self.dated: deque[tuple[int, list[Any]]] = deque()

    @property
    def awaited(self) -> int:
        """The timestamp that all frontiers must reach for all dated reads; 0: there are none."""
        return self.dated[-1][0] if self.dated else 0

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.dated or self.round)

    def ask(self, token: Any) -> None:
        """A read has come."""
        self.waiting.append(token)

    def give_up(self, tokens: Collection[Any]) -> None:
        """These reads are given up: they get no answer from here."""
        waiting = [
            self.waiting,
            *[reads for _, reads in self.dated],
            *self.riding.values(),
            *([self.round.reads] if self.round else []),
        ]
        for reads in waiting:
            reads[:] = [read for read in reads if read not in tokens]
        self.dated = deque((timestamp, reads) for timestamp, reads in self.dated if reads)

    def proposed(self, timestamp: int) -> None:
        """An entry of ours is about to leave: what waits rides on it."""
        if self.waiting:
            self.riding[timestamp], self.waiting = self.waiting, []

    def applied(self, timestamp: int) -> None:
        """An entry of ours is applied: the reads that rode on it are answered."""
        if timestamp in self.riding:
            self.outbox.ready.reads += self.riding.pop(timestamp)

    def log_lost(self) -> None:
        """Our entries may be stamped anew: reads that rode on one need a round."""
        for reads in self.riding.values():
            self.waiting += reads
        self.riding.clear()

    def on_reading(self, sender: int, message: Reading) -> None:
        """A node says where its clock stands."""
        if self.round is not None and message.round == self.round.number:
            self.round.clocks[sender] = message.clock
            self._date()

    def forget(self, peer: int) -> None:
        """The peer has lost its disk: its clock no longer counts."""
        if self.round is not None:
            self.round.clocks.pop(peer, None)

    def end_turn(self, now: float, entry_comes: bool) -> None:
        """Begin a round, unless an entry to ride on comes soon; answer the reads whose timestamp is reached.

        Node.drain has just applied all that the frontiers allow, so everything up to them is applied.
        """
        if self.waiting and self.round is None and not entry_comes:
            self._begin_round(now)
        if self.dated:
            frontier = min(log.frontier for log in self.learner.logs.values())
            while self.dated and self.dated[0][0] <= frontier:
                self.outbox.ready.reads += self.dated.popleft()[1]

    def tick(self, now: float) -> None:
        """Ask those again that have not said anything.

        A read that waits for an entry gets a round in the end: others may have finished our log unheard.
        """
        if self.round is not None and now - self.round.at >= RESEND_AFTER:
            self.round.at = now
            self._ask(peer for peer in self.peers if peer not in self.round.clocks)
        if not self.waiting or self.waiting is not self.waited:
            self.waited, self.waited_since = self.waiting, now
        elif self.round is None and now - self.waited_since >= RESEND_AFTER:
            self._begin_round(now)

    def _begin_round(self, now: float) -> None:
        self.rounds += 1
        self.round = Round(self.rounds, self.clock.time, self.waiting, now, {self.me: self.clock.time})
        self.waiting = []
        self.round.asked = self._whom_to_ask(now)
        self._ask(self.round.asked)
        self._date()

    def _whom_to_ask(self, now: float) -> Sequence[int]:
        """The nodes that most probably know what the reads wait for, enough for a quorum; or everybody.

        A node that has just proposed has had an answer from every node, and so knows all frontiers: half of
        the time no other need be woken. Otherwise the others are asked when the reads have their timestamp.
        """
        nodes = self.contacts.proposing(now)
        return nodes[: self.quorum - 1] if len(nodes) >= self.quorum - 1 else self.peers

    def _ask(self, peers: Iterable[int]) -> None:
        assert self.round is not None
        message = Barrier(self.round.number, self.clock.time)
        for peer in peers:
            self.outbox.send(peer, message)

    def _date(self) -> None:
        """Give the reads of the round their timestamp when a quorum has told its clocks.

        A peer whose frontier lies below it is told so.
        """
        current = self.round
        if current is None or len(current.clocks) < self.quorum:
            return
        timestamp = max(current.clocks.values())
        self.dated.append((timestamp, current.reads))
        message = Barrier(current.number, timestamp)
        for peer in self.peers:
            told = peer in current.asked and timestamp <= current.clock
            if not told and self.learner.logs[peer].frontier < timestamp:
                self.outbox.send(peer, message)
        self.round = None
