"""Classic: one log, and a ballot for every command. A node with a command takes the log and lets go again.

    node 1                          the others
      | Prepare(1.1, from slot 7) ---> |  phase 1, from the first slot that node 1 does not know to be chosen
      | <------- Promise(entries)      |  a quorum: adopt the best log, and append one command to it
      | Accept(1.1, 7, entries) -----> |  phase 2
      | <------- Accepted              |  a quorum: chosen; node 1 gives its ballot up

It costs two round trips and three fsyncs, one after the other. Where two nodes stand at the same time, the
higher ballot goes through, and the other one is refused: a duel. So a node that was refused waits before it
stands again, for a random time below a limit that doubles with each refusal. The limit grows until one of
the candidates gets its command through in between. A read is a ballot, too: what had been chosen when it was
asked is in the log that this ballot adopts, or the ballot is refused.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Final

from paxoskv.multipaxos import Proposer
from paxoskv.protocol.one_log import OneLog
from paxoskv.protocol.way import Parts
from paxoskv.wire.structs import Reading

SHORTEST: Final = 0.001  # seconds: a round trip that was not measured, at least
LONGEST: Final = 64  # times the first limit: the last one, enough for many times as many nodes


class Classic(OneLog):
    """Stands for each command and each read, one at a time, and gives the ballot up when it is chosen."""

    batch: ClassVar[int] = 1

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.limit = 0.0  # seconds: the next pause is shorter
        self.stand_at = 0.0  # not earlier
        self.for_read = False  # whether our ballot is a read's
        self.riding: list[Any] = []  # the read that our ballot is for

    @property
    def ready(self) -> bool:
        return self.begun

    @property
    def due(self) -> float | None:
        return self.stand_at if self._wants_to_stand() else None

    def begin(self, now: float) -> None:
        self.begun = True

    def leads(self) -> frozenset[int]:
        return frozenset()

    def lead(self, proposer: Proposer) -> None:
        """Append what we stand for, unless somebody has done so: then what was adopted is finished."""
        super().lead(proposer)
        if self.for_read:
            self.riding, self.waiting = self.waiting[:1], self.waiting[1:]
        elif self.entry.payload is not None and not self._is_in(proposer.entries):
            self._append(self.entry.payload)

    def lose(self, proposer: Proposer, promised: int, now: float) -> None:
        """Wait: the candidate with the higher ballot is to have its time."""
        proposer.step_down(promised)
        self.waiting[:0], self.riding = self.riding, []
        first = 2 * max(self.round_trips.longest(now), SHORTEST)
        self.limit = min(max(2 * self.limit, first), LONGEST * first)
        self.stand_at = now + self.limit * self.random.random()

    def end_turn(self, now: float) -> None:
        own = self.own
        if own.established and self.learner.logs[self.own.log].chosen >= own.end:
            self._give_up(own.end)

    def answer_reads(self, now: float, more: bool) -> None:
        """Stand for what is still wanted."""
        super().answer_reads(now, more)
        if now >= self.stand_at and self._wants_to_stand():
            self.for_read = bool(self.waiting) and (self.entry.payload is None or not self.for_read)
            self.stand(self.own.log, 0, now)

    def tick(self, now: float) -> None:
        """No read asks anything: it has its ballot."""

    def on_reading(self, sender: int, message: Reading, now: float) -> None:
        """Nobody was asked."""

    def forget(self, peer: int) -> None:
        """What it had promised no longer counts: the Proposer sees to that."""

    def _wants_to_stand(self) -> bool:
        idle = not self.own.leading and not self.own.preparing
        return idle and (self.entry.payload is not None or bool(self.waiting))

    def _give_up(self, end: int) -> None:
        """All of our log is chosen: tell everybody, and leave the log to the next that wants it."""
        if self.riding:
            self.dated.append((end, self.riding))
            self.riding = []
        self.limit = 0.0
        self.gossip.tell_all = True
        self.own.step_down()

    def reads(self) -> Iterator[list[Any]]:
        yield self.riding
        yield from super().reads()
