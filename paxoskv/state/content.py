"""The keys and values of the store, and what goes through all of them: in pieces, while entries are applied.

Scans and digests need the keys in order. The order is made when it is first needed, and kept up to date from
then on: a node without scans and digests does not pay for it.
"""

import hashlib
import sys
from collections import deque
from collections.abc import Generator
from heapq import merge
from itertools import islice
from typing import Any, Final, NamedTuple

from sortedcontainers import SortedDict, SortedList

from paxoskv.wire.structs import Range

PIECE_KEYS: Final = 1000  # keys that are visited at once: about a millisecond
PIECE_BYTES: Final = 256 << 10  # of keys and values, with which a piece ends early

Pieces = Generator[None, None, None]


class Lease(NamedTuple):
    """A key's time to live."""

    ttl_ms: int
    place: tuple[int, int, int]  # of the command that has set it


class Content:
    """The keys and values. `values` is changed by put() and remove() alone."""

    def __init__(self, values: dict[str, str], changed: list[str | None]) -> None:
        """`changed` gets the key of each change, and its new value (None: removed)."""
        self.values = values
        self.changed = changed
        self.leases: dict[str, Lease] = {}  # of keys with a time to live; those set last are the last
        self.leased: deque[str] = deque()  # keys whose countdown has not begun
        self.order: Any = None  # a SortedList of all keys, by code point
        self.unordered: list[str] = []  # keys that are still to be put into it
        self.digests: list[Digest] = []  # that are being made
        self.piece_keys, self.piece_bytes = PIECE_KEYS, PIECE_BYTES

    def put(self, key: str, value: str) -> None:
        """Set the key."""
        if self.order is not None:
            for digest in self.digests:
                digest.keep(key, self.values.get(key))
            if key not in self.values:
                self.order.add(key)
        self.values[key] = value
        self.changed.append(key)
        self.changed.append(value)
        if self.leases:
            self.leases.pop(key, None)

    def lease(self, key: str, lease: Lease) -> None:
        """Give a key, which has just been put, a time to live."""
        self.leases[key] = lease
        self.leased.append(key)

    def remove(self, key: str) -> bool:
        """Remove the key; False if it is not there."""
        value = self.values.pop(key, None)
        if value is None:
            return False
        if self.order is not None:
            for digest in self.digests:
                digest.keep(key, value)
            self.order.discard(key)
        self.changed += (key, None)
        if self.leases:
            self.leases.pop(key, None)
        return True

    def sort(self) -> Pieces:
        """Put the keys in order, unless they are; all callers at the same time share the work."""
        if self.order is None:
            self.order, self.unordered = SortedList(), list(self.values)
        while self.unordered:
            for key in self.unordered[-self.piece_keys :]:
                if key in self.values and key not in self.order:  # else removed, or put again, meanwhile
                    self.order.add(key)
            del self.unordered[-self.piece_keys :]
            yield

    def after(self, key: str) -> Any:
        """Iterate over the keys after this one, in order; sort() must have ended."""
        return self.order.irange(key, None, (False, True))

    def within(self, wanted: Range) -> Any:
        """Iterate over the keys of a range, in the order that it wants; sort() must have ended."""
        low, high = _bounds(wanted)
        if not wanted.after:
            return self.order.irange(low, high, (True, False), bool(wanted.reverse))
        if wanted.reverse:
            high = wanted.after if high is None else min(high, wanted.after)
            return self.order.irange(low, high, (True, False), True)
        return self.order.irange(max(low, wanted.after), high, (wanted.after < low, False))

    def count(self, wanted: Range) -> int:
        """Count the keys of a range, without its `after`; sort() must have ended."""
        low, high = _bounds(wanted)
        end: int = len(self.order) if high is None else self.order.bisect_left(high)
        return max(end - self.order.bisect_left(low), 0)


def _bounds(wanted: Range) -> tuple[str, str | None]:
    """Return the lowest key that a range may have, and the lowest above all of them (None: there is none)."""
    prefix, end = wanted.prefix or "", wanted.below
    above = _above(prefix)
    if end is None or (above is not None and above < end):
        end = above
    return max(prefix, wanted.start or ""), end


def _above(prefix: str) -> str | None:
    """Return the lowest text above all that begin with the prefix; None if there is none."""
    while prefix:
        last = ord(prefix[-1]) + 1
        prefix = prefix[:-1]
        if last <= sys.maxunicode:
            return prefix + chr(last)
    return None


class Digest:
    """The SHA-256 of the content as it is now, whatever is put and removed until this is ready."""

    def __init__(self, content: Content) -> None:
        """Begin; the keys must be in order."""
        self.content = content
        self.sha = hashlib.sha256()
        self.done = ""  # all keys up to this one are hashed; no key is empty
        self.kept: Any = SortedDict()  # of later ones that were changed meanwhile: what they held, or None
        content.digests.append(self)

    def keep(self, key: str, value: str | None) -> None:
        """The key, which holds this value (None: it does not exist), is about to change."""
        if key > self.done and key not in self.kept:
            self.kept[key] = value

    def pieces(self) -> Pieces:
        """Hash all of it."""
        try:
            while self._piece():
                yield
        finally:
            self.content.digests.remove(self)

    def _piece(self) -> bool:
        """Hash the next keys; False if there are none."""
        room, before = self.content.piece_bytes, self.done
        values, kept = self.content.values, self.kept
        keys = merge(self.content.after(before), kept.irange(before, None, (False, True)))
        for key in islice(keys, self.content.piece_keys):
            if key == self.done:  # it comes from both
                continue
            self.done = key
            value = kept[key] if key in kept else values[key]
            if value is not None:
                for text in (key.encode(), value.encode()):
                    self.sha.update(len(text).to_bytes(8, "big"))
                    self.sha.update(text)
                    room -= len(text)
            if room < 0:
                break
        return self.done != before
