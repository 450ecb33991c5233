"""What the parts want done: collected over a turn, and carried out by the caller."""

from typing import Any, Final

from paxoskv.multipaxos import Applied
from paxoskv.wire.structs import Record

Message = Any  # one of the interface's structs between nodes, or Persisted

DEFER_AT_MOST: Final = 0.01  # seconds that records which nobody waits for may wait, to share an fsync


class Ready:
    """What the caller has to do, in this order.

    Messages are (receiver, message, call of the request answered).
    """

    __slots__ = ("apply", "checkpoint_from", "flush_now", "journal", "lost", "reads", "send", "send_after")

    def __init__(self) -> None:
        self.send: list[tuple[int, Message, Any]] = []
        self.journal: list[Record] = []
        self.flush_now = True  # whether anything waits for the journal; else it may gather records
        self.send_after: list[tuple[int, Message, Any]] = []  # when those records are durable
        self.apply: list[Applied] = []
        self.reads: list[Any] = []  # the tokens of those to be answered
        self.lost: list[Any] = []  # of own commands that a checkpoint covers: they may have been applied
        self.checkpoint_from: int | None = None  # a peer that has given up what we lack


class Outbox:
    """Where all parts put what is to be sent, journaled, applied and answered in this turn."""

    def __init__(self) -> None:
        self.ready = Ready()
        self.deferrable = 0  # how many of the records nobody waits for
        self.deferred_since: float | None = None  # since when such records wait for a frame
        self.waited_enough = False  # whether they have waited long enough

    def send(self, to: int, message: Message, call: Any = None) -> None:
        """Send it at once."""
        self.ready.send.append((to, message, call))

    def send_after(self, to: int, message: Message, call: Any = None) -> None:
        """Send it when all records of this turn, and of every turn before it, are durable."""
        self.ready.send_after.append((to, message, call))

    def journal(self, record: Record) -> None:
        self.ready.journal.append(record)

    def apply(self, timestamp: int, owner: int, payload: bytes, token: Any) -> None:
        self.ready.apply.append(Applied(timestamp, owner, payload, token))

    def defer_from(self, first: int) -> None:
        """Nobody waits for the records of this turn from the first-th on."""
        self.deferrable += len(self.ready.journal) - first

    def tick(self, now: float) -> None:
        if self.deferred_since is not None and now - self.deferred_since >= DEFER_AT_MOST:
            self.waited_enough = True

    def look_who_waits(self, now: float) -> None:
        """See whether anything waits for the journal. Called once in a turn, at its end."""
        ready = self.ready
        waited = self.waited_enough or bool(ready.send_after)
        ready.flush_now = waited or len(ready.journal) > self.deferrable
        if ready.flush_now:
            self.deferred_since = None
        elif ready.journal and self.deferred_since is None:
            self.deferred_since = now
        self.waited_enough, self.deferrable = False, 0

    def drain(self) -> Ready:
        """Hand everything over."""
        ready, self.ready = self.ready, Ready()
        return ready
