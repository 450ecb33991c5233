"""Times to live in the simulator: no key goes too early, none stays for ever, and a newer value never goes.

It follows from the order of all commands which time to live a key has, whatever a store says.
"""

from collections.abc import Callable
from typing import NamedTuple

from paxoskv.wire.structs import Command, Relation

At = tuple[int, int, int]


class Standing(NamedTuple):
    """A key's time to live."""

    place: At
    since: float  # simulated seconds: when a node has first applied it
    ttl_ms: int


class Leases:
    """Those that stand, by key."""

    def __init__(
        self, clock: Callable[[], float], fastest: float, fail: Callable[[str], None],
        expired: Callable[[str, float], None],
    ) -> None:  # fmt: skip
        """`fastest`: how much faster than the simulation a node's clock may run. `expired(key, since)`."""
        self.clock = clock
        self.fastest = fastest
        self.fail = fail
        self.expired = expired
        self.standing: dict[str, Standing] = {}
        self.count = 0  # of keys that have expired

    def expires(self, command: Command) -> bool:
        """Judge a command that was applied first now: whether a node has sent it to remove a key."""
        compares = command.transaction.compares if command.transaction is not None else []
        if command.request is not None or len(compares) != 1 or compares[0].relation != Relation.LEASED:
            return False
        key, now = compares[0].key, self.clock()
        lease = self.standing.get(key)
        if lease is None or lease.place != compares[0].place:
            self.fail(f"{key} was removed, as set at {compares[0].place}: it has {lease}")
        elif now - lease.since < lease.ttl_ms / 1000 / self.fastest:
            self.fail(f"{key} was removed after {now - lease.since} s: it has {lease}")
        else:
            self.count += 1
            self.expired(key, lease.since)
        return True

    def wrote(self, place: At, key: str, ttl_ms: int | None) -> None:
        """The key was written or removed."""
        self.standing.pop(key, None)
        if ttl_ms is not None:
            self.standing[key] = Standing(place, self.clock(), ttl_ms)
