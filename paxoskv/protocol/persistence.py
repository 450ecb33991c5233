"""What of a node's state is journaled, and what of it is durable."""

from dataclasses import dataclass
from typing import Final, NamedTuple

from paxoskv.multipaxos import Acceptor, Learner, Proposer
from paxoskv.protocol.clock import Clock
from paxoskv.protocol.outbox import Outbox
from paxoskv.wire.structs import Chosen, Held, LogBallot, Position, Record, Recovered

NOTE_AFTER: Final = 0.2  # seconds without a frame, after which what was applied since the last one is noted


class Persisted(NamedTuple):
    """A node's message to itself, behind the records of one turn: they are durable now."""

    turn: int
    reservation: int
    held: list[tuple[int, int, int]]  # (log, ballot, length) of the logs that they are about


@dataclass(slots=True)
class LogProgress:
    """How far one log has come on its way to the disk."""

    durable_ballot: int = 0  # a restart would find the log of this ballot,
    durable_length: int = 0  # and so many entries of it
    noted_chosen: int = 0  # so many entries the journal, or its next frame, says to be chosen
    executed_in_frame: int = 0  # so many entries were executed when the last frame was written


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
        self.logs = {log: LogProgress() for log in acceptors}
        self.turn = 0  # how many turns had records
        self.persisted_turn = 0  # up to which of them all records are durable
        self.journaled_at = 0.0  # when the last of them was
        self.noted_position = (0, 0)  # up to where the journal, or its next frame, says that we have applied
        self.replayed_position = (0, 0)  # up to where it said so when this life began
        self.chosen_in_frame = [0] * len(acceptors)  # by log: how much is chosen, as the last frame notes it
        self.chosen_durable = self.chosen_in_frame  # as the last durable frame does: a restart would know it

    @property
    def waits(self) -> bool:
        """Whether records are not durable yet."""
        return self.turn > self.persisted_turn

    def end_turn(self, now: float) -> None:
        """Have us told when the records of this turn are durable."""
        self.turn += 1
        self.journaled_at = now
        logs: set[int] = set()
        for record in self.outbox.records:
            if record.held is not None:
                logs.add(record.held.log)
            elif record.installed is not None:
                logs.update(self.logs)
        held = [(log, self.acceptors[log].accepted, self.acceptors[log].length) for log in sorted(logs)]
        self.outbox.send_after(self.me, Persisted(self.turn, self.clock.reserving, held))

    def on_persisted(self, message: Persisted) -> None:
        self.persisted_turn = max(self.persisted_turn, message.turn)
        self.clock.persisted(message.reservation)
        for log, ballot, length in message.held:
            progress = self.logs[log]
            progress.durable_ballot, progress.durable_length = ballot, length
        self.chosen_durable = self.chosen_in_frame

    def tick(self, now: float) -> None:
        """Where no frame comes along to bring it, journal what is chosen and applied by itself.

        A restart that does not know that an entry was chosen and acknowledged cannot tell when it meets nodes
        that have lost it (N25).
        """
        idle = not self.waits and now - self.journaled_at >= NOTE_AFTER
        if idle and self.learner.position > self.noted_position:
            first = len(self.outbox.records)
            self.outbox.records += self._notes()
            self.outbox.defer_from(first)

    def journal_notes(self, number: int) -> None:
        """Journal what is to be noted before a checkpoint is installed as this number.

        Replaying it after the checkpoint would find other entries held.
        """
        self.outbox.records += [*self._notes(), Record(installed=number)]

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
        for log, acceptor in self.acceptors.items():
            start = max(acceptor.base, self.logs[log].executed_in_frame)
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
        for log, acceptor in self.acceptors.items():
            progress = self.logs[log]
            progress.executed_in_frame = self.learner.logs[log].executed
            progress.durable_ballot, progress.durable_length = acceptor.accepted, acceptor.length

    def _notes(self) -> list[Record]:
        records = []
        for log, acceptor in self.acceptors.items():
            if acceptor.chosen > self.logs[log].noted_chosen:
                records.append(Record(chosen=Chosen(log, acceptor.chosen, acceptor.evidence)))
        if self.learner.position > self.noted_position:
            records.append(Record(applied=Position(*self.learner.position)))
        self._noted()
        return records

    def _noted(self) -> None:
        """What is chosen and applied now is in the journal, or joins its next frame."""
        for log, acceptor in self.acceptors.items():
            self.logs[log].noted_chosen = acceptor.chosen
        self.noted_position = self.learner.position

    def _frame(self) -> None:
        """A frame is about to be written, with all that is noted."""
        self.chosen_in_frame = [progress.noted_chosen for progress in self.logs.values()]
        for log, progress in self.logs.items():
            progress.executed_in_frame = self.learner.logs[log].executed
