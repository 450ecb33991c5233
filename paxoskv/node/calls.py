"""Calls that have not been answered, and how clients' calls are answered."""

import time
from collections.abc import Callable
from typing import Any, Final

from paxoskv.kvstore import ttypes
from paxoskv.node.metrics import Counts
from paxoskv.state.commands import read_by
from paxoskv.wire.codec import NotDone, Unknown
from paxoskv.wire.connection import Connection
from paxoskv.wire.methods import Method
from paxoskv.wire.structs import Result

MAX_ANSWER: Final = 15_000_000  # bytes: standard Thrift clients take frames up to 16,384,000
OUTCOMES: Final = {number: name.lower() for number, name in ttypes.Outcome._VALUES_TO_NAMES.items()}


class Call:
    """A call of a client or a peer that has not been answered."""

    __slots__ = ("arrived", "connection", "method", "sequence")

    def __init__(self, connection: Connection, method: Method, sequence: int) -> None:
        self.connection = connection
        self.method = method
        self.sequence = sequence
        self.arrived = time.perf_counter()


class Answers:
    """Answers clients, and counts that."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts

    def answer(self, token: Call | Callable[[Any], None], value: Any) -> None:
        """Answer a client's call, or a question of this node's own parts. The value may be an exception."""
        if not isinstance(token, Call):  # one of our own questions
            token(value)
            return
        method, sequence = token.method, token.sequence
        if value.__class__ is list:
            size = sum([_length(result) for result in value])
            if size > MAX_ANSWER:  # not even encoded: it may be thousands of times as large
                value = Unknown(f"done, but the answer has {size} bytes or more")
        if isinstance(value, Exception):
            outcome = _failed(value)
            frame = method.fail(sequence, value)
        else:
            outcome = OUTCOMES.get(value.outcome, "?") if value.__class__ is Result else "ok"
            if method.name == "open_session":
                value = value.session
            frame = method.reply(sequence, value)
            if len(frame) > MAX_ANSWER:
                frame = method.fail(sequence, Unknown(f"done, but the answer has {len(frame)} bytes"))
        token.connection.send(frame)
        counts = self.counts
        counts.answered(method.name, outcome, time.perf_counter() - token.arrived)
        counts.frame(counts.sent, token.connection.user, method.name, len(frame))


def _length(result: Result) -> int:
    """Return how many characters a result holds."""
    return len(result.value or "") + read_by(result)


def _failed(error: Exception) -> str:
    """What the counters call this answer."""
    if isinstance(error, NotDone):
        return "refused" if error.permanent else "not_done"
    return type(error).__name__.lower()
