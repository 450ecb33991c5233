"""What the parts want done: collected over a turn, and carried out by the caller."""

from collections.abc import Sequence
from typing import Any, Final

from paxoskv.multipaxos import Applied
from paxoskv.wire.structs import Record

Message = Any  # one of the interface's structs between nodes, or Persisted

DEFER_AT_MOST: Final = 0.01  # seconds that records which nobody waits for may wait, to share an fsync


class Ready:
    """What the caller has to do, in this order.

    Messages are (receiver, message, call of the request answered). `lost` are the tokens of own commands that
    a checkpoint covers: they may have been applied.
    """

    __slots__ = ("apply", "catch_up", "flush_now", "journal", "lost", "reads", "send", "send_after")

    def __init__(
        self,
        send: list[tuple[int, Message, Any]],
        journal: list[Record],
        send_after: list[tuple[int, Message, Any]],
        apply: list[Applied],
        reads: list[Any],
        lost: Sequence[Any] = (),
        catch_up: int | None = None,
        flush_now: bool = True,
    ) -> None:
        self.send = send
        self.journal = journal
        self.send_after = send_after
        self.apply = apply
        self.reads = reads
        self.lost = lost
        self.catch_up = catch_up  # a peer to take a checkpoint from: it no longer holds the entries we lack
        self.flush_now = flush_now  # whether anything waits for the journal; else it may gather records


class Outbox:
    """Where all parts put what is to be sent, journaled, applied and answered; drain() makes the Ready."""

    def __init__(self) -> None:
        self.to_send: list[tuple[int, Message, Any]] = []
        self.records: list[Record] = []
        self.to_send_after: list[tuple[int, Message, Any]] = []
        self.to_apply: list[Applied] = []
        self.to_answer: list[Any] = []
        self.lost: list[Any] = []
        self.catch_up: int | None = None
        self.deferrable = 0  # how many of `records` nobody waits for
        self.deferred_since: float | None = None  # since when such records wait for a frame
        self.waited_enough = False  # whether they have waited long enough

    def send(self, to: int, message: Message, call: Any = None) -> None:
        """Send it at once."""
        self.to_send.append((to, message, call))

    def send_after(self, to: int, message: Message, call: Any = None) -> None:
        """Send it when all records of this turn, and of every turn before it, are durable."""
        self.to_send_after.append((to, message, call))

    def journal(self, record: Record) -> None:
        self.records.append(record)

    def apply(self, timestamp: int, owner: int, payload: bytes, token: Any) -> None:
        self.to_apply.append(Applied(timestamp, owner, payload, token))

    def defer_from(self, first: int) -> None:
        """Nobody waits for the records of this turn from the first-th on."""
        self.deferrable += len(self.records) - first

    def tick(self, now: float) -> None:
        if self.deferred_since is not None and now - self.deferred_since >= DEFER_AT_MOST:
            self.waited_enough = True

    def must_flush(self, now: float) -> bool:
        """Whether anything waits for the journal. Asked once in a turn, at its end."""
        flush_now = self.waited_enough or bool(self.to_send_after) or len(self.records) > self.deferrable
        if flush_now:
            self.deferred_since = None
        elif self.records and self.deferred_since is None:
            self.deferred_since = now
        self.waited_enough, self.deferrable = False, 0
        return flush_now

    def drain(self, flush_now: bool) -> Ready:
        """Hand everything over."""
        ready = Ready(
            self.to_send, self.records, self.to_send_after, self.to_apply, self.to_answer,
            self.lost, self.catch_up, flush_now,
        )  # fmt: skip
        self.to_send, self.records, self.to_send_after, self.to_apply, self.to_answer = [], [], [], [], []
        self.lost, self.catch_up = [], None
        return ready
