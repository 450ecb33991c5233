"""What of a node's state is journaled, and what of it is durable."""

from typing import Final

from paxoskv.multipaxos import Acceptor, Learner, Proposer
from paxoskv.protocol.clock import Clock
from paxoskv.protocol.outbox import Outbox
from paxoskv.wire.structs import Chosen, Held, LogBallot, Position, Record, Recovered

NOTE_AFTER: Final = 0.2  # seconds without a frame, after which what was applied since the last one is noted


class Persisted:
    """A node's message to itself, behind the records of one turn: they are durable now."""

    __slots__ = ("held", "reservation", "turn")

    def __init__(self, turn: int, reservation: int, held: list[tuple[int, int, int]]) -> None:
        """`held`: (log, ballot, length) of the logs that the records are about."""
        self.turn = turn
        self.reservation = reservation
        self.held = held


class Persistence:
    """Follows records until they are durable, and says what a new segment and a frame must hold besides."""

    def __init__(
        self,
        me: int,
        acceptors: dict[int, Acceptor],
        proposers: dict[int, Proposer],
        learner: Learner,
        clock: Clock,
        outbox: Outbox,
    ) -> None:
        self.me = me
        self.acceptors = acceptors
        self.proposers = proposers
        self.learner = learner
        self.clock = clock
        self.outbox = outbox
        # By log: the ballot and the length of the log that a restart would find.
        self.durable = dict.fromkeys(acceptors, (0, 0))
        self.turn = 0  # how many turns had records
        self.persisted_turn = 0  # up to which of them all records are durable
        self.journaled_at = 0.0  # when the last of them was
        # What the journal, or its next frame, says: how much of each log is chosen, in the order of the
        # acceptors; and up to where we have applied.
        self.noted_chosen = [0] * len(acceptors)
        self.noted_position = (0, 0)
        self.replayed_position = (0, 0)  # up to where it said so when this life began
        self.chosen_in_frame = self.noted_chosen  # as the last frame says it
        self.chosen_durable = self.noted_chosen  # as the last durable frame does: a restart would know it
        self.executed_in_frame = self.noted_chosen  # how much of each log was executed at the last frame

    @property
    def waits(self) -> bool:
        """Whether records are not durable yet."""
        return self.turn > self.persisted_turn

    def end_turn(self, now: float) -> None:
        """Send ourselves a message that leaves when the records of this turn are durable."""
        self.turn += 1
        self.journaled_at = now
        logs: set[int] = set()
        for record in self.outbox.ready.journal:
            if record.held is not None:
                logs.add(record.held.log)
            elif record.installed is not None:
                logs.update(self.acceptors)
        held = [(log, self.acceptors[log].accepted, self.acceptors[log].length) for log in sorted(logs)]
        self.outbox.send_after(self.me, Persisted(self.turn, self.clock.reserving, held))

    def on_persisted(self, message: Persisted) -> None:
        self.persisted_turn = max(self.persisted_turn, message.turn)
        self.clock.persisted(message.reservation)
        for log, ballot, length in message.held:
            self.durable[log] = (ballot, length)
        self.chosen_durable = self.chosen_in_frame

    def tick(self, now: float) -> None:
        """If no frame is written anyway, journal what is chosen and applied in a frame of its own.

        A restart that does not know that an entry was chosen and acknowledged cannot tell when it meets nodes
        that have lost it (N25).
        """
        idle = not self.waits and now - self.journaled_at >= NOTE_AFTER
        if idle and self.learner.position > self.noted_position:
            first = len(self.outbox.ready.journal)
            self.outbox.ready.journal += self._notes()
            self.outbox.defer_from(first)

    def journal_notes(self, number: int) -> None:
        """Journal what is to be noted before a checkpoint is installed as this number.

        Replaying it after the checkpoint would find other entries held.
        """
        self.outbox.ready.journal += [*self._notes(), Record(installed=number)]

    def notes(self) -> list[Record]:
        """What need not be durable soon, for the frame written next: how much is chosen, and applied."""
        records = self._notes()
        self._frame()
        return records

    def state(self) -> list[Record]:
        """All logs and ballots, for the first frame of a new segment.

        Entries that were executed when the frame before was written are left to the checkpoint.
        """
        records = []
        for (log, acceptor), executed in zip(self.acceptors.items(), self.executed_in_frame, strict=True):
            start = max(acceptor.base, executed)
            records += [
                Record(held=Held(log, acceptor.accepted, start, acceptor.from_slot(start))),
                Record(promised=LogBallot(log, acceptor.promised)),
                Record(chosen=Chosen(log, acceptor.chosen, acceptor.evidence)),
            ]
        records += [Record(candidate=LogBallot(log, p.highest)) for log, p in self.proposers.items()]
        records.append(Record(applied=Position(*self.learner.position)))
        self._noted()
        self._frame()
        return records

    def recovered(self) -> list[Recovered]:
        """What this start has found of each log."""
        return [
            Recovered(
                log, acceptor.promised, acceptor.accepted, acceptor.length, acceptor.chosen,
                self.proposers[log].highest if log in self.proposers else 0,
            )
            for log, acceptor in self.acceptors.items()
        ]  # fmt: skip

    def begin_life(self) -> None:
        """What was replayed is durable. What was applied before is applied once more."""
        for timestamp, owner, payload in self.learner.recover(
            max(self.replayed_position, self.learner.position)
        ):
            self.outbox.apply(timestamp, owner, payload, None)
        self._noted()
        self.executed_in_frame = [learned.executed for learned in self.learner.logs.values()]
        self.durable = {log: (acceptor.accepted, acceptor.length) for log, acceptor in self.acceptors.items()}

    def _notes(self) -> list[Record]:
        records = []
        for index, acceptor in enumerate(self.acceptors.values()):
            if acceptor.chosen > self.noted_chosen[index]:
                records.append(Record(chosen=Chosen(acceptor.log, acceptor.chosen, acceptor.evidence)))
        if self.learner.position > self.noted_position:
            records.append(Record(applied=Position(*self.learner.position)))
        self._noted()
        return records

    def _noted(self) -> None:
        """What is chosen and applied now is in the journal, or joins its next frame."""
        self.noted_chosen = [acceptor.chosen for acceptor in self.acceptors.values()]
        self.noted_position = self.learner.position

    def _frame(self) -> None:
        """A frame is about to be written, with all that is noted."""
        self.chosen_in_frame = self.noted_chosen
        self.executed_in_frame = [learned.executed for learned in self.learner.logs.values()]
