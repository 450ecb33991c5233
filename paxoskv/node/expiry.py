"""Keys with a time to live: each node counts down, and any of them proposes that a key is to go.

No clock decides that a key is gone: what removes it is a command, a transaction that removes the key if its
time to live is still that which was set at a certain place. A newer value has another place, or none,
so it stays, whenever the command comes. And nobody proposes it before the time is over: a node counts from
when it has applied the command that set the time, after a client has sent it. A node that restarts begins
anew.

    the key goes     at the earliest   its time to live after the client has sent the command
                     as a rule         half a second later: ticks, TURN, and a command's way through the log
                     after a restart   of all nodes at once: up to its time to live later

The nodes have turns, by their ids, so that mostly one of them proposes it. If that is lost, others follow.
"""

import heapq
from typing import Final

from paxoskv.state.store import Store
from paxoskv.wire.structs import Action, Command, CommandPlace, Compare, Relation, Transaction, Verb

TURN: Final = 0.05  # seconds: how much longer than the node before it each of TURNS nodes waits
TURNS: Final = 8
AGAIN: Final = 1.0  # seconds after which a key that is still there is tried again
AT_ONCE: Final = 2000  # keys whose countdown begins in one tick: about two milliseconds
MOST: Final = 256  # commands that are proposed at once
SPARE: Final = 1000  # countdowns of keys that were written again, before these are given up


class Expiry:
    """What one node counts down."""

    def __init__(self, store: Store, node: int) -> None:
        self.store = store
        self.delay = TURN * (node % TURNS)  # seconds
        self.due: list[tuple[float, str, tuple[int, int, int]]] = []  # a heap: when, the key, the place

    def tick(self, now: float) -> list[Command]:
        """Return the commands that remove the keys whose time is over."""
        leases = self.store.leases
        if not leases:  # the common case
            self.due.clear()
            self.store.leased.clear()
            return []
        leased = self.store.leased
        for _ in range(min(len(leased), AT_ONCE)):
            key = leased.popleft()
            lease = leases.get(key)
            if lease is not None:
                heapq.heappush(self.due, (now + lease.ttl_ms / 1000 + self.delay, key, lease.place))
        if len(self.due) > 2 * len(leases) + SPARE:
            first: dict[str, tuple[float, str, tuple[int, int, int]]] = {}
            for countdown in sorted(self.due):
                if self._holds(*countdown[1:]):
                    first.setdefault(countdown[1], countdown)
            self.due = [*first.values()]  # sorted, as a heap may be
        commands: list[Command] = []
        while self.due and self.due[0][0] <= now and len(commands) < MOST:
            _, key, place = heapq.heappop(self.due)
            if self._holds(key, place):
                commands.append(expire(key, place))
                heapq.heappush(self.due, (now + AGAIN, key, place))
        return commands

    def _holds(self, key: str, place: tuple[int, int, int]) -> bool:
        """Whether the key still has the time to live that was set there."""
        lease = self.store.leases.get(key)
        return lease is not None and lease.place == place


def expire(key: str, place: tuple[int, int, int]) -> Command:
    """Return the command that removes the key if its time to live is still that which was set there."""
    compare = Compare(key, Relation.LEASED, None, CommandPlace(*place))
    return Command(Verb.TRANSACTION, transaction=Transaction([compare], [Action(Verb.DELETE, key)], []))
