"""The last changes of keys, in the order in which they were applied: what watches are answered from.

A change's place is (timestamp, owner) of the entry that made it, and which change of that entry it was. All
nodes apply the same entries in the same order, so a change has the same place at every node, and whoever has
seen all changes up to a place can go on there at any other node.

The changes are kept in memory, as many as fit. After a restart there are those that were applied since the
checkpoint. `floor` says from which place on there is no gap: changes() refuses to begin before it.
"""

from bisect import bisect_left
from collections import deque
from itertools import islice
from typing import Final

from paxoskv.wire.codec import Compacted
from paxoskv.wire.structs import Change, Place

MAX_CHANGES: Final = 65_536  # that are kept: 10 MB, and a minute of a thousand changes a second
MAX_CHARACTERS: Final = 32 << 20  # of their keys and values; the newest change is kept whatever it has
SCAN: Final = 8192  # changes that are looked at in one piece: about a millisecond
CHANGE_OVERHEAD: Final = 48  # bytes that Thrift adds to the key and value of a Change in a list
LAST: Final = (1 << 31) - 1  # the number of an entry's last change, where nobody knows how many it has

At = tuple[int, int, int]  # timestamp, owner, which change of the entry
Kept = tuple[int, int, int, str, str | None]  # its place, the key, and its new value (None: removed)


def at(place: Place) -> At:
    """Return a place in a form that can be compared."""
    return (place.timestamp, place.owner, LAST if place.change is None else place.change)


def place(where: At) -> Place:
    """Return the struct for a place."""
    return Place(where[0], where[1], None if where[2] == LAST else where[2])


class Changes:
    """A bounded queue of changes: the oldest leave it when there is no room."""

    def __init__(self, most: int = MAX_CHANGES, characters: int = MAX_CHARACTERS) -> None:
        self.most = most
        self.most_characters = characters
        self.scan = SCAN
        self.looked = 0  # changes that changes() has looked at, in all: what it costs
        self.kept: deque[Kept] = deque()
        self.characters = 0  # in all that is kept
        self.floor: At = (0, 0, LAST)  # all changes after it are kept
        self.end: At = (0, 0, LAST)  # all changes up to it were applied: the last entry
        self._timestamp, self._owner, self._number = 0, 0, 0  # of the next change

    def begin(self, timestamp: int, owner: int) -> None:
        """The changes that follow are those of this entry."""
        self._timestamp, self._owner, self._number = timestamp, owner, 0
        self.end = (timestamp, owner, LAST)

    def add(self, key: str, value: str | None) -> None:
        """The key has this value now; None: it was removed."""
        self.kept.append((self._timestamp, self._owner, self._number, key, value))
        self._number += 1
        self.characters += len(key) + (len(value) if value is not None else 0)
        while len(self.kept) > self.most or (self.characters > self.most_characters and len(self.kept) > 1):
            timestamp, owner, number, old, was = self.kept.popleft()
            self.floor = (timestamp, owner, number)
            self.characters -= len(old) + (len(was) if was is not None else 0)

    def forget(self, timestamp: int, owner: int) -> None:
        """The state was replaced by one in which everything up to this entry is applied."""
        self.kept.clear()
        self.characters = 0
        self.floor = self.end = (timestamp, owner, LAST)

    def after(self, where: At) -> list[Kept]:
        """Return the changes after this place, in their order, at most `scan`. Compacted: some are gone."""
        if where < self.floor:
            raise Compacted(
                f"this node no longer has the changes after {where[0]}.{where[1]}: the oldest place from "
                f"which it can go on is {self.floor[0]}.{self.floor[1]}",
                place(self.floor),
            )
        kept, size = self.kept, 1
        following = (where[0], where[1], where[2] + 1)
        while size <= len(kept) and kept[-size] >= following:  # mostly it is one of the last
            size *= 2
        start = bisect_left(kept, following, max(len(kept) - size, 0))
        count = len(kept) - start
        if count > self.scan:
            return list(islice(kept, start, start + self.scan))
        newest = list(islice(reversed(kept), count))
        newest.reverse()
        return newest

    def changes(self, prefix: str, where: At, limit: int, max_bytes: int) -> tuple[list[Change], At]:
        """Return changes of keys with this prefix after the place, in their order, and how far was looked.

        There are at most `limit`, of at most `max_bytes` bytes when encoded; but one always comes. If it
        looked no further than some place before `end`, there may be more. Compacted: as after().
        """
        found: list[Change] = []
        looked = self.after(where)
        self.looked += len(looked)
        for timestamp, owner, number, key, value in looked:
            if not key.startswith(prefix):
                continue
            max_bytes -= len(key.encode()) + len((value or "").encode()) + CHANGE_OVERHEAD
            if len(found) == limit or (max_bytes < 0 and found):
                return found, at(found[-1].place)
            found.append(Change(key, Place(timestamp, owner, number), value))
        if len(looked) == self.scan:
            return found, looked[-1][:3]
        return found, max(where, self.end)
