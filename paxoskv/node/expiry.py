"""Keys with a time to live: each node counts down, and any of them proposes that a key is to go.

No clock decides that a key is gone: what removes it is a command, a transaction that removes the key if its
time to live is still that which was set at a certain position. A newer value has another position, or none,
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
from paxoskv.wire.structs import Action, Command, Compare, Position, Relation, Transaction, Verb

TURN: Final = 0.05  # seconds: how much longer than the node before it each of TURNS nodes waits
TURNS: Final = 8
AGAIN: Final = 1.0  # seconds after which a key that is still there is tried again
MOST: Final = 256  # commands that are proposed at once
SPARE: Final = 1000  # countdowns of keys that were written again, before these are given up


class Expiry:
    """What one node counts down."""

    def __init__(self, store: Store, node: int) -> None:
        self.store = store
        self.delay = TURN * (node % TURNS)  # seconds
        self.counted: tuple[int, int] = (0, 0)  # what was set up to this position is counted down
        self.due: list[tuple[float, str, tuple[int, int]]] = []  # a heap: when, the key, the position

    def tick(self, now: float) -> list[Command]:
        """Return the commands that remove the keys whose time is over."""
        leases = self.store.leases
        if not leases:  # the common case
            self.due.clear()
            return []
        for key in reversed(leases):  # those that were set last come first
            lease = leases[key]
            if lease.position <= self.counted:
                break
            heapq.heappush(self.due, (now + lease.ttl_ms / 1000 + self.delay, key, lease.position))
        self.counted = max(self.counted, leases[next(reversed(leases))].position)
        if len(self.due) > 2 * len(leases) + SPARE:
            self.due = [countdown for countdown in self.due if self._stands(*countdown[1:])]
            heapq.heapify(self.due)
        commands: list[Command] = []
        while self.due and self.due[0][0] <= now and len(commands) < MOST:
            _, key, position = heapq.heappop(self.due)
            if self._stands(key, position):
                commands.append(expire(key, position))
                heapq.heappush(self.due, (now + AGAIN, key, position))
        return commands

    def _stands(self, key: str, position: tuple[int, int]) -> bool:
        """Whether the key still has the time to live that was set there."""
        lease = self.store.leases.get(key)
        return lease is not None and lease.position == position


def expire(key: str, position: tuple[int, int]) -> Command:
    """Return the command that removes the key if its time to live is still that which was set there."""
    compare = Compare(key, Relation.LEASED, None, Position(*position))
    return Command(Verb.TRANSACTION, transaction=Transaction([compare], [Action(Verb.DELETE, key)], []))
