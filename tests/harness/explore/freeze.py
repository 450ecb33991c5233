"""What an object graph is, as something that compares by content."""

from collections import deque
from collections.abc import Hashable
from typing import Any

ATOMS = frozenset({int, str, bytes, float, bool, type(None)})


class Freezer:
    """Walks from a root over everything that can be reached, but for the attributes that are left out.

    An object that is met a second time is named by when it was met first: so two graphs are equal if they
    have the same contents and the same sharing.
    """

    def __init__(self, left_out: frozenset[tuple[str, str]]) -> None:
        self.left_out = left_out  # (class, attribute)
        self.fields: dict[type, list[str]] = {}

    def __call__(self, root: Any) -> Hashable:
        self.met: dict[int, int] = {}
        return self.walk(root)

    def walk(self, thing: Any) -> Hashable:
        kind = thing.__class__
        if kind in ATOMS or isinstance(thing, int):
            return thing
        if isinstance(thing, tuple):
            return (kind.__name__, *[x if x.__class__ in ATOMS else self.walk(x) for x in thing])
        if callable(thing):
            return None  # a bound method of what is walked anyway
        before = self.met.setdefault(id(thing), len(self.met))
        if before != len(self.met) - 1:
            return "met", before
        if kind is list or kind is deque:
            return tuple([x if x.__class__ in ATOMS else self.walk(x) for x in thing])
        if isinstance(thing, dict):
            return tuple([(key, self.walk(thing[key])) for key in sorted(thing)])
        if kind is set or kind is frozenset:
            return tuple(sorted(thing))
        names = self.fields.get(kind)
        if names is None:
            found = vars(thing) if hasattr(thing, "__dict__") else kind.__slots__
            names = self.fields[kind] = [
                name for name in sorted(found) if (kind.__name__, name) not in self.left_out
            ]
        values = [getattr(thing, name) for name in names]
        return (kind.__name__, *[x if x.__class__ in ATOMS else self.walk(x) for x in values])
