"""What a turn of a node has collected, until the caller carries it out."""

from collections.abc import Sequence
from typing import Any

from paxoskv.multipaxos import Applied
from paxoskv.wire.structs import Record

Message = Any  # one of the interface's structs between nodes, or Synced


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
