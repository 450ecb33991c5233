"""What a world must tell, so that engine.py can explore it."""

from collections.abc import Hashable
from typing import Any, NamedTuple, Protocol


class Breach(Exception):
    """Something happened that must not: the text says what."""


def told(error: Exception) -> str:
    """What is wrong, in words: a breach, or whatever else was raised."""
    return str(error) if isinstance(error, Breach) else f"{type(error).__name__}: {error}"


class Step(NamedTuple):
    """What an event did: messages as (receiver, message), and facts for the observer."""

    sends: list[tuple[int, Any]]
    facts: tuple[Any, ...] = ()


class World(Protocol):
    """What is explored. Processes are numbered from 0; the first `alike` of them are interchangeable.

    Those that are alike keep nothing about each other. If there are any, they talk with the others only, and
    the others with them.
    """

    names: list[str]
    alike: int
    once: bool  # whether a message is delivered at most once; else it stays, and may come again
    budgets: dict[str, int]  # of events that do not come from a message; others, like "sync", have none
    nothing_seen: Hashable  # the observer's first history

    def begin(self) -> list[Any]:
        """Return the state of each process."""

    def events(self, process: int) -> list[str]:
        """Return which budgeted events can happen to the process."""

    def step(self, process: int, state: Any, event: Any, sender: int | None) -> Step | None:
        """Change the state by an event's name, or by a message of the sender. None: it cannot happen now."""

    def key(self, process: int, state: Any) -> Hashable:
        """Return what the state is: equal for two that behave alike."""

    def horizon(self, process: int, state: Any, left: dict[str, int]) -> Hashable:
        """Return what of the state decides whether a message to or from it is dead."""

    def dead(self, sender: int, source: Any, receiver: int, target: Any, message: Any) -> bool:
        """Whether this message can never again change anything, given the horizons of both ends."""

    def observe(self, history: Any, facts: tuple[Any, ...]) -> Hashable:
        """Return the history with these facts, or raise Breach."""

    def renamed(self, process: int, state: Any, to: dict[int, int]) -> Any:
        """Return the state of a process that is not alike, with the others renamed in it."""

    def renamed_history(self, history: Any, to: dict[int, int]) -> Hashable: ...


def frozen(message: Any) -> Hashable:
    """A message as something that compares by content."""
    kind = message.__class__
    if issubclass(kind, tuple):
        return (kind.__name__, *map(frozen, message))
    if kind is list:
        return tuple(map(frozen, message))
    return message
