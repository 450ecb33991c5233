"""A node's Lamport clock, and how far it is reserved on the disk."""

from typing import Final

from paxoskv.protocol.outbox import Outbox
from paxoskv.wire.structs import Entry, Record

RESERVE: Final = 1 << 20  # timestamps: how far ahead of the clock a reservation lies
SKIP: Final = 1 << 32  # timestamps: how far ahead of everything known a skip lies


class Clock:
    """Stands at or above the timestamp of every command seen. A restart begins where the reservation ends."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.time = 0
        self.reserved = 0  # durable: no frontier made from the clock exceeds it
        self.reserving = 0  # journaled, perhaps not yet durable
        self.highest = 0  # the largest timestamp of any entry seen, skips included

    @property
    def known(self) -> int:
        """The largest timestamp that we know of, skips included."""
        return self.time if self.time > self.highest else self.highest

    def raise_to(self, timestamp: int) -> None:
        if timestamp > self.time:
            self.time = timestamp
            self.reserve()

    def hear(self, time: int) -> None:
        """Another node's clock stands there."""
        self.raise_to(time)

    def see(self, last: int, command: int) -> None:
        """Note entries up to the timestamp `last`, and commands up to `command` (0: none).

        Only commands raise the clock: a skip lies far ahead.
        """
        if last > self.highest:
            self.highest = last
        self.raise_to(command)

    def see_entry(self, entry: Entry) -> None:
        self.see(entry.timestamp, entry.timestamp if entry.payload else 0)

    def stamp(self, last: int) -> int:
        """The timestamp of a new command of ours, above the clock and above the last of our log (R2)."""
        timestamp = max(self.time, last) + 1
        self.see(timestamp, timestamp)
        return timestamp

    def stamp_skip(self, last: int) -> int:
        """The timestamp of a no-op far ahead of everything."""
        self.highest = max(self.time, self.highest, last) + SKIP
        return self.highest

    def frontier_limit(self) -> int:
        """No frontier may be made from the clock beyond this: a restart would not know of it (R3)."""
        return min(self.time, self.reserved)

    def reserve(self) -> None:
        """Renew the reservation when half of it is used.

        So the frame of a vote holds one at or above the entry.
        """
        if self.time > self.reserving - RESERVE // 2:
            self.reserving = self.time + RESERVE
            self.outbox.journal(Record(reservation=self.reserving))

    def persisted(self, reservation: int) -> None:
        """This reservation is durable."""
        self.reserved = max(self.reserved, reservation)

    def begin_life(self) -> None:
        """After a restart: what an earlier life has promised not to exceed is where this one begins."""
        self.time, self.reserving = max(self.time, self.reserved), self.reserved

    def install(self, time: int) -> None:
        """A checkpoint's clock stood there; reserve() may have to follow."""
        self.time = max(self.time, time)
