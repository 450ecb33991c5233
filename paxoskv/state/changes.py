"""The last changes of keys, in the order in which they were applied: what watches are answered from.

A change's place is (timestamp, owner) of the entry that made it, and which change of that entry it was. All
nodes apply the same entries in the same order, so a change has the same place at every node, and a client
that has seen all changes up to a place can go on there at any other node.

The changes are kept in memory, as many as fit. After a restart there are those that were applied since the
checkpoint. `floor` says from which place on there is no gap: changes() refuses to begin before it.
"""

import marshal
from bisect import bisect_left
from collections import deque
from itertools import islice
from typing import Any, Final

from paxoskv.wire.codec import Compacted, decode
from paxoskv.wire.structs import Batch, Change, Place

MAX_CHANGES: Final = 65_536  # that are kept: a minute of a thousand changes a second
ROOM: Final = 16 << 20  # bytes for their keys and values: the largest entry has some 2 MB
SCAN: Final = 8192  # changes that are looked at in one piece: about a millisecond
BYTES: Final = 32  # of a large change count as one change
CHANGE_OVERHEAD: Final = 48  # bytes that Thrift adds to the key and value of a Change in a list
LAST: Final = (1 << 31) - 1  # the number of an entry's last change, where nobody knows how many it has
WITHOUT_REFERENCES: Final = 2  # version of marshal's format: it does not look for equal texts

At = tuple[int, int, int]  # timestamp, owner, which change of the entry
Kept = tuple[int, int, int, str, str | None]  # its place, the key, and its new value (None: removed)
# Timestamp, owner, where it is in the ring, its bytes, its changes, whether it is kept as its payload.
Entry = tuple[int, int, int, int, int, bool]


def at(place: Place) -> At:
    """Return a place in a form that can be compared."""
    return (place.timestamp, place.owner, LAST if place.change is None else place.change)


def _position(entry: Entry) -> tuple[int, int]:
    return entry[:2]


def _unpacked(packed: bytes, puts: bool) -> list[Any]:
    """Return the texts: of each change the key and its new value."""
    if not puts:
        texts: list[Any] = marshal.loads(packed)
        return texts
    return [text for command in decode(Batch, packed).commands for text in (command.key, command.value)]


def place(where: At) -> Place:
    """Return the struct for a place."""
    return Place(where[0], where[1], None if where[2] == LAST else where[2])


class Changes:
    """A bounded queue of entries with what they changed: the oldest leave it when there is no room.

    They are packed into one ring of bytes: of puts the payload, which says all; of others the texts. Very
    many small objects that stay, between others that go, would make the whole node slower.
    """

    def __init__(self, most: int = MAX_CHANGES, room: int = ROOM) -> None:
        self.most = most
        self.scan = SCAN
        self.looked = 0  # changes that after() has unpacked, in all: what it costs
        self.ring = bytearray(room)
        self.written = 0  # bytes, so far: the next go to this place, modulo the room
        self.entries: deque[Entry] = deque()  # those that have changed anything, and are in the ring
        self.count = 0  # changes in all of them
        self.floor: At = (0, 0, LAST)  # all changes after it are kept
        self.end: At = (0, 0, LAST)  # all changes up to it were applied: the last entry

    def add(self, timestamp: int, owner: int, texts: list[str | None], payload: bytes | None = None) -> None:
        """An entry was applied: of each change that it made, here are the key and its new value.

        `payload`: the entry's, if it has puts only, and all of them were applied.
        """
        self.end = (timestamp, owner, LAST)
        if not texts:
            return
        packed = marshal.dumps(texts, WITHOUT_REFERENCES) if payload is None else payload
        room = len(self.ring)
        length, at = len(packed), self.written % room
        if length > room:
            self.forget(timestamp, owner)
            return
        if at + length > room:  # no entry goes over the end of the ring
            self.written += room - at
            at = 0
        entries, overwritten = self.entries, self.written + length - room
        while entries and (self.count >= self.most or entries[0][2] < overwritten):
            gone, by, _, _, count, _ = entries.popleft()
            self.floor = (gone, by, LAST)
            self.count -= count
        self.ring[at : at + length] = packed
        count = len(texts) // 2
        entries.append((timestamp, owner, self.written, length, count, payload is not None))
        self.written += length
        self.count += count

    def forget(self, timestamp: int, owner: int) -> None:
        """The state was replaced by one in which everything up to this entry is applied."""
        self.entries.clear()
        self.count = 0
        self.floor = self.end = (timestamp, owner, LAST)

    def after(self, where: At) -> tuple[list[Kept], bool]:
        """Return the next changes after this place, in their order, and whether these are all that there are.

        One piece: there are at most `scan`, and where they are large, fewer. Compacted: some are gone.
        """
        if where < self.floor:
            raise Compacted(
                f"this node no longer has the changes after {where[0]}.{where[1]}: the oldest place from "
                f"which it can go on is {self.floor[0]}.{self.floor[1]}",
                place(self.floor),
            )
        entries, size, entry = self.entries, 1, where[:2]
        while size <= len(entries) and entries[-size][:2] >= entry:  # mostly it is one of the last
            size *= 2
        start = bisect_left(entries, entry, max(len(entries) - size, 0), key=_position)
        count = len(entries) - start
        newest = (
            [*islice(reversed(entries), count)][::-1] if count <= self.scan else islice(entries, start, None)
        )
        found: list[Kept] = []
        before = self.looked
        for timestamp, owner, written, length, many, puts in newest:
            first = where[2] + 1 if (timestamp, owner) == entry else 0
            if first >= many:
                continue
            if found and self.looked - before >= self.scan:
                return found, False
            at = written % len(self.ring)
            texts = _unpacked(bytes(self.ring[at : at + length]), puts)
            self.looked += max(many, length // BYTES)
            last = min(many, first + self.scan - len(found))
            for number in range(first, last):
                found.append((timestamp, owner, number, texts[2 * number], texts[2 * number + 1]))
            if last < many:
                return found, False
        return found, True

    def changes(self, prefix: str, where: At, limit: int, max_bytes: int) -> tuple[list[Change], At]:
        """Return changes of keys with this prefix after the place, in their order, and how far was looked.

        There are at most `limit`, of at most `max_bytes` bytes when encoded; but one always comes. If it
        looked no further than some place before `end`, there may be more. Compacted: as after().
        """
        found: list[Change] = []
        looked, all_of_them = self.after(where)
        for timestamp, owner, number, key, value in looked:
            if not key.startswith(prefix):
                continue
            max_bytes -= len(key.encode()) + len((value or "").encode()) + CHANGE_OVERHEAD
            if len(found) == limit or (max_bytes < 0 and found):
                return found, at(found[-1].place)
            found.append(Change(key, Place(timestamp, owner, number), value))
        return found, max(where, self.end) if all_of_them else looked[-1][:3]
