"""Our own commands, from proposal to application."""

from collections import deque
from typing import Any

from paxoskv.multipaxos import Learner, Proposer
from paxoskv.protocol.clock import Clock
from paxoskv.wire.structs import Entry


class Commands:
    """Puts commands into our own log (R1), and again if the log was taken from us and lacks them."""

    def __init__(self, own: Proposer, learner: Learner, clock: Clock) -> None:
        self.own = own
        self.learner = learner
        self.clock = clock
        self.pending: dict[int, tuple[bytes, Any]] = {}  # by timestamp: not yet applied
        self.backlog: deque[tuple[bytes, Any]] = deque()  # to be proposed again
        self.unsure = False  # whether `pending` may hold commands that our log lacks

    @property
    def has_room(self) -> bool:
        return self.own.has_room() and not self.backlog

    def propose(self, payload: bytes, token: Any) -> int:
        """Append an entry to our log; its timestamp."""
        timestamp = self.clock.stamp(self.learner.last_timestamp(self.own))
        self.own.append(Entry(timestamp, payload))
        self.pending[timestamp] = (payload, token)
        return timestamp

    def applied(self, timestamp: int) -> Any:
        """An entry of ours is applied: the token of its proposal; None if that was in an earlier life."""
        return self.pending.pop(timestamp, (None, None))[1]

    def covered(self, position: tuple[int, int]) -> list[Any]:
        """A checkpoint holds all up to the position: the tokens of what it may hold of ours."""
        return [
            self.pending.pop(timestamp)[1]
            for timestamp in [t for t in self.pending if (t, self.own.log) <= position]
        ]

    def log_led(self) -> None:
        """We lead our log again: it may lack commands."""
        self.unsure = True

    def end_turn(self) -> None:
        """Propose again what has to be, as far as there is room."""
        if self.unsure and self.own.established:
            self._find_missing()
        while self.backlog and self.own.established and self.own.has_room():
            self.propose(*self.backlog.popleft())

    def _find_missing(self) -> None:
        """Find which of our commands the log of our established ballot lacks.

        They can never be chosen where they stood. Not earlier: promises alone leave a revoker free to find,
        on a node that we did not hear, an older ballot's log with such an entry, and the command would be
        applied twice.
        """
        self.unsure = False
        acceptor = self.learner.acceptors[self.own.log]
        unapplied = acceptor.from_slot(self.learner.logs[self.own.log].executed, acceptor.chosen)
        present = {entry.timestamp for entry in [*unapplied, *self.own.entries]}
        for timestamp in sorted(self.pending.keys() - present):
            self.backlog.append(self.pending.pop(timestamp))
