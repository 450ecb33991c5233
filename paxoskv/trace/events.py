"""One event, and the ring that events are kept in; docs/trace.md says what each kind means."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from json import dumps
from typing import Any, Final, NamedTuple

from paxoskv.kvstore import ttypes
from paxoskv.wire.codec import decode
from paxoskv.wire.structs import (
    Accept,
    Accepted,
    Barrier,
    Batch,
    Command,
    Entry,
    Fetch,
    Fetched,
    Forward,
    Forwarded,
    Learn,
    Outcome,
    Prepare,
    Promise,
    Reading,
    Result,
    Transaction,
    Verb,
)

KEPT: Final = 20_000  # events in a ring
SHOWN: Final = 60  # characters of a command
CUT: Final = "…"  # what the end of a longer one is replaced by
LARGE: Final = 4096  # bytes of entries that are not kept as they are
MANY: Final = 8  # entries of an event whose bytes are counted
HEAVY: Final = 32 << 20  # bytes of these in a ring, about; for more, the oldest events are let go
COMMANDS: Final = 50  # of an entry, and results, are shown
VERSION: Final = 1


def _named(numbers: Any, blank: str = " ") -> dict[int, str]:
    """The words for the values of an enumeration of kvstore.thrift."""
    return {value: name.lower().replace("_", blank) for value, name in numbers._VALUES_TO_NAMES.items()}


WORDS: Final = _named(ttypes.Verb) | {Verb.COMPARE_AND_SET: "cas"}
VERDICTS: Final = _named(ttypes.Verdict)
VOTES: Final = _named(ttypes.Vote, "_")
OUTCOMES: Final = _named(ttypes.Outcome) | {Outcome.OK: "OK"}

# As a ring keeps an event, because tuples are made in no time: the fields of Event; or, of an event with a
# message, (id, time, node, kind, cause, message, peer, because).
Raw = tuple[Any, ...]
OF_MESSAGE: Final = 8  # fields


class Event(NamedTuple):
    """Something that happened at one node; `about` has what else JSON shows."""

    id: int
    time: float  # seconds
    node: int  # 0: at none of them
    kind: str
    cause: int = 0  # the event that made it; 0: none that is known
    log: int | None = None
    slot: int | None = None
    ballot: int = 0
    about: dict[str, Any] = {}

    def as_json(self) -> str:
        """One line of a trace; fields that say nothing are left out."""
        fields: dict[str, Any] = {
            "id": self.id,
            "time": round(self.time, 6),
            "node": self.node,
            "kind": self.kind,
        }
        if self.cause:
            fields["cause"] = self.cause
        if self.log is not None:
            fields["log"] = self.log
        if self.slot is not None:
            fields["slot"] = self.slot
        if self.ballot:
            fields["ballot"] = dotted(self.ballot)
        fields |= self.about
        if "entries" in fields:
            fields["entries"] = [
                (timestamp, payload if isinstance(payload, str) else commands(payload))
                for timestamp, payload in fields["entries"]
            ]
        return dumps(fields, ensure_ascii=False)


class Trace:
    """The last events of one node, or of a whole simulated cluster."""

    def __init__(self, clock: Callable[[], float], kept: int = KEPT) -> None:
        self.clock = clock
        self.ring: deque[Raw] = deque(maxlen=kept)
        self.small: Any = None  # the last message that was: one goes to many
        self.last = 0
        self.heavy: deque[tuple[int, int]] = deque()  # events with many entries: (id, bytes)
        self.weight = 0  # of these

    @property
    def events(self) -> list[Event]:
        """All that are kept."""
        return list(self.after(0))

    def add(
        self,
        node: int,
        kind: str,
        cause: int = 0,
        log: int | None = None,
        slot: int | None = None,
        ballot: int = 0,
        **about: Any,
    ) -> int:
        """Keep an event; returns its id."""
        self.last += 1
        self.ring.append((self.last, self.clock(), node, kind, cause, log, slot, ballot, about))
        if "entries" in about and len(about["entries"]) > MANY:
            self._weigh(about["entries"])
        return self.last

    def _weigh(self, entries: Iterable[tuple[int, bytes | str]]) -> None:
        """The last event has so many entries: if that is too much, the oldest go."""
        self.heavy.append((self.last, size(entries)))
        self.weight += self.heavy[-1][1]
        while self.weight > HEAVY and len(self.heavy) > 1:
            oldest, weight = self.heavy.popleft()
            self.weight -= weight
            while self.ring and self.ring[0][0] <= oldest:
                self.ring.popleft()

    def carry(
        self, node: int, kind: str, cause: int, message: Any, peer: int, because: list[int] | None = None
    ) -> int:
        """Keep a message that was sent or arrived; returns the event's id.

        What it says is put into words when somebody asks, if the message is small.
        """
        self.last += 1
        raw: Raw = (self.last, self.clock(), node, kind, cause, message, peer, because)
        if message is not self.small and not is_small(message):
            event = event_of(raw)
            self.ring.append(tuple(event))
            self._weigh(event.about.get("entries", ()))
            return self.last
        self.small = message
        self.ring.append(raw)
        return self.last

    def after(self, last: int) -> Iterator[Event]:
        """The events behind the one with this id."""
        first = self.last - len(self.ring)  # the id before all that are kept
        return map(event_of, islice(self.ring, max(last - first, 0), None))

    def lines(self, **header: Any) -> Iterator[str]:
        """All of it in JSON Lines: first what it is, then an event in each line."""
        yield dumps({"format": "paxoskv-trace", "version": VERSION, **header}, ensure_ascii=False)
        for event in self.after(0):
            yield event.as_json()


# Messages that a ring keeps as they are; of others, only if what they carry is little.
SMALL: Final = frozenset({Accepted, Prepare, Learn, Barrier, Reading, Fetch, Forwarded})


def event_of(raw: Raw) -> Event:
    """The event with what its message says."""
    if len(raw) != OF_MESSAGE:
        return Event(*raw)
    id_, time, node, kind, cause, message, peer, because = raw
    log, slot, ballot, about = described(message)
    if because:
        about["because"] = because
    about["to" if kind == "sent" else "from"] = peer
    return Event(id_, time, node, kind, cause, log, slot, ballot, about)


def is_small(message: Any) -> bool:
    """Whether a ring may keep the message as it is: a ring must not fill the memory."""
    kind = message.__class__
    if kind in SMALL:
        return True
    if kind is Accept or kind is Promise or kind is Fetched:
        return size(message.entries) <= LARGE
    return kind is Forward and len(message.payload) <= LARGE


def size(entries: Iterable[tuple[int, bytes | str]]) -> int:
    """About what they take, in bytes."""
    total = 0
    for _, payload in entries:
        total += 64 + len(payload)
    return total


def dotted(ballot: int) -> str:
    """A ballot as people write it: round.node."""
    return f"{ballot >> 8}.{ballot & 255}"


def spoken(command: Command) -> str:
    """A command in a few words."""
    if command.transaction is not None:
        return "; ".join(_parts(command.transaction))
    text = WORDS.get(command.verb, "?")
    if command.key is not None:
        text += f" {command.key}"
    if command.expected is not None:
        text += f" {command.expected} to"
    if command.value is not None:
        text += f" {command.value}" if command.expected is not None else f"={command.value}"
    if command.delta is not None:
        text += f" by {command.delta}"
    return cut(text)


def cut(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + CUT


def some(found: Sequence[Any], words: Callable[[Any], str]) -> list[str]:
    """The first of many in words, because a ring must not fill the memory."""
    more = [f"and {len(found) - COMMANDS} more"] if len(found) > COMMANDS else []
    return [words(one) for one in found[:COMMANDS]] + more


def _parts(transaction: Transaction) -> Iterator[str]:
    """A transaction in a few words: its actions, each like a command, of either case."""
    yield f"transaction, if {len(transaction.compares or ())} hold"
    cases = (("then", transaction.then_do or ()), ("else", transaction.else_do or ()))
    parts = [(case, action) for case, actions in cases for action in actions]
    for case, action in parts[:COMMANDS]:
        done = Command(action.verb, action.key, action.value, None, action.delta)
        yield f"{case}-{spoken(done)}"
    if len(parts) > COMMANDS:
        yield f"and {len(parts) - COMMANDS} more"


@lru_cache(64)
def commands(payload: bytes) -> str:
    """What an entry holds: its first commands."""
    return "; ".join(some(decode(Batch, payload).commands, spoken)) if payload else "no-op"


def kept(entries: list[Entry]) -> Sequence[tuple[int, bytes | str]]:
    """What is kept of entries: decoding can wait until somebody asks, but a ring must not fill the memory."""
    if size(entries) <= LARGE:
        return entries
    return [
        (timestamp, commands(payload) if len(payload) > LARGE else payload) for timestamp, payload in entries
    ]


def outcome(value: Any) -> str:
    """An answer to a client in a few words."""
    if isinstance(value, BaseException):
        return type(value).__name__
    if isinstance(value, list):
        return "; ".join(some(value, outcome))
    if isinstance(value, Result):
        return OUTCOMES[value.outcome] + (f" {cut(value.value)}" if value.value is not None else "")
    return "OK" if value is None else type(value).__name__


def described(message: Any) -> tuple[int | None, int | None, int, dict[str, Any]]:
    """The log, slot and ballot that a message is about, and what else it says."""
    about: dict[str, Any] = {"message": message.__class__.__name__}
    if isinstance(message, Accept):
        about.update(entries=kept(message.entries), sync=message.sync)
        if message.lazy:
            about["lazy"] = list(message.lazy)
        return message.log, message.start, message.ballot, about
    if isinstance(message, Accepted):
        about.update(vote=VOTES[message.vote], promised=dotted(message.promised), length=message.length)
        return message.log, None, message.ballot, about
    if isinstance(message, Promise):
        about.update(verdict=VERDICTS[message.verdict], promised=dotted(message.promised))
        about.update(accepted=dotted(message.accepted), entries=kept(message.entries))
        return message.log, message.from_slot, message.ballot, about
    if isinstance(message, Prepare):
        return message.log, message.from_slot, message.ballot, about
    if isinstance(message, Fetched):
        about.update(entries=kept(message.entries))
        return message.log, message.from_slot, message.evidence, about
    if isinstance(message, Forward):
        about.update(entries=kept([Entry(0, message.payload)]))
        return None, None, message.ballot, about
    if isinstance(message, Forwarded):
        about.update(taken=message.taken, number=message.origin.number)
        return None, None, message.ballot, about
    if isinstance(message, Learn):
        about.update(chosen=[[fact.log, fact.chosen] for fact in message.facts if fact.chosen])
    return getattr(message, "log", None), getattr(message, "from_slot", None), 0, about
