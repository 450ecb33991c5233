"""Arrays that grow, and a hash table that looks up many keys at once."""

from array import array
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
SPREAD = np.uint64(0x9E3779B97F4A7C15)  # odd; multiplied by it, neighbors lie far apart
FULL = 0.6  # of the places of a table, at most


class Column:
    """A list of integers of one size that grows, and is an array where it is looked at."""

    def __init__(self, kind: str, blank: int = 0) -> None:
        self.blank = blank
        self.list = array(kind)
        self.append = self.list.append
        self.type = np.dtype(kind)

    @property
    def values(self) -> Array:
        """All of them; not to be kept, because nothing can be appended meanwhile."""
        return np.frombuffer(self.list, self.type)

    def reach(self, length: int) -> None:
        """Make it at least so long."""
        if length > len(self.list):
            self.list.extend([self.blank] * (length - len(self.list)))


class Table:
    """64-bit keys, none of which is 0, with a 32-bit number each."""

    def __init__(self, bits: int = 12) -> None:
        self.count = 0
        self.resize(bits)

    def resize(self, bits: int) -> None:
        self.shift = np.uint64(64 - bits)
        self.mask = (1 << bits) - 1
        self.keys = np.zeros(1 << bits, np.uint64)
        self.values = np.zeros(1 << bits, np.int32)

    def find(self, keys: Array) -> tuple[Array, Array]:
        """Where each key is, or the empty place where it belongs; and what is there."""
        at = ((keys * SPREAD) >> self.shift).astype(np.int64)
        found = self.keys[at]
        going = np.flatnonzero(found != keys)
        going = going[found[going] != 0]
        while going.size:
            at[going] = following = (at[going] + 1) & self.mask
            found[going] = other = self.keys[following]
            going = going[(other != keys[going]) & (other != 0)]
        return at, found

    def add(self, keys: Array) -> Array:
        """Put in the keys that are not here; say of each whether it is a new one, the first of its kind."""
        self.make_room(len(keys))
        new = np.zeros(len(keys), bool)
        rest = np.arange(len(keys))
        while rest.size:
            at, found = self.find(keys[rest])
            free = found == 0
            rest, at = rest[free], at[free]
            self.values[at] = rest  # where several want one place, one of them stays
            won = self.values[at] == rest
            self.keys[at[won]] = keys[rest[won]]
            new[rest[won]] = True
            rest = rest[~won]
        self.count += int(new.sum())
        return new

    def put(self, keys: Array, values: Array) -> None:
        self.add(keys)
        self.values[self.find(keys)[0]] = values

    def get(self, keys: Array, make: Callable[[int], int]) -> Array:
        """The number of each key. `make` gives that of a key which is asked for the first time."""
        at, found = self.find(keys)
        missing = found == 0
        if missing.any():
            new = np.unique(keys[missing])
            self.put(new, np.array([make(key) for key in new.tolist()], np.int32))
            at, _ = self.find(keys)
        return self.values[at]

    def make_room(self, more: int) -> None:
        if self.count + more <= FULL * len(self.keys):
            return
        keys, values = self.keys[self.keys != 0], self.values[self.keys != 0]
        bits = int((self.count + more) / FULL).bit_length()
        self.count = 0
        self.resize(bits)
        self.put(keys, values)
