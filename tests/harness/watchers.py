"""Watchers in the simulator: what a node says of the changes must be the one order, without gap or repeat.

They look at nodes, and do nothing that a node notices: they have their own chance, so a run is the same with
and without them.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from paxoskv.state.changes import LAST, At
from paxoskv.state.store import Store
from paxoskv.wire.codec import Compacted
from paxoskv.wire.structs import Command, Outcome, Result, Verb
from tests.harness.leases import Leases

WRITES: Final = (Verb.PUT, Verb.COMPARE_AND_SET, Verb.INCREMENT, Verb.DELETE)
PREFIXES: Final = ("", "n", "a", "n1")
KEPT: Final = 40  # changes that a simulated node keeps: few, so that watchers meet what was dropped
LOOKS: Final = 0.2  # of applied entries have a watcher look at the node


class Order:
    """All changes in their order, as they follow from commands and results, whatever a store says."""

    def __init__(self) -> None:
        self.changes: list[tuple[At, str, str | None]] = []
        self.existing: set[str] = set()  # keys
        self.leases: Leases | None = None  # who is told of times to live
        self.done: set[tuple[int, ...]] = set()  # commands of sessions that were applied

    def applied(self, entry: tuple[int, int], commands: Sequence[Command], results: Sequence[Result]) -> None:
        """The next entry of the order was applied by the first node."""
        number = 0
        for index, (command, result) in enumerate(zip(commands, results, strict=True)):
            request = command.request
            if request is not None and result.outcome != Outcome.FORGOTTEN:
                session = request.session
                name = (session.timestamp, session.owner, session.index, request.sequence)
                if name in self.done:
                    continue
                self.done.add(name)
            after: dict[str, str | None] = {}
            ttls: dict[str, int | None] = {}
            if self.leases is not None and result.outcome == Outcome.OK:
                self.leases.expires(command)
            if result.transacted is not None:
                wanted, held = command.transaction, result.outcome == Outcome.OK
                done = wanted.then_do if held else wanted.else_do
                for action, answer in zip(done, result.transacted.answers, strict=True):
                    if action.verb != Verb.GET:
                        ttls[action.key] = action.ttl_ms
                        after[action.key] = answer.value if action.verb == Verb.INCREMENT else action.value
            elif command.verb in WRITES and result.outcome == Outcome.OK:
                after[command.key] = result.value if command.verb == Verb.INCREMENT else command.value
            for key, value in after.items():
                if value is not None:
                    self.existing.add(key)
                elif key in self.existing:
                    self.existing.remove(key)
                else:
                    continue
                if self.leases is not None:
                    self.leases.wrote((*entry, index), key, ttls.get(key))
                self.changes.append(((*entry, number), key, value))
                number += 1

    def between(self, prefix: str, after: At, upto: At) -> list[tuple[At, str, str | None]]:
        """Return the changes after the one place, up to the other."""
        low, high = (bisect_right(self.changes, at, key=lambda change: change[0]) for at in (after, upto))
        return [change for change in self.changes[low:high] if change[1].startswith(prefix)]


class Watchers:
    """One for each prefix; they go from node to node."""

    def __init__(self, seed: int, order: Order, fail: Callable[[str], None]) -> None:
        self.random = Random(f"{seed} watchers")
        self.order = order
        self.fail = fail
        self.places: dict[str, At] = dict.fromkeys(PREFIXES, (0, 0, LAST))
        self.seen = self.compacted = 0

    def look(self, node: int, store: Store) -> None:
        """Perhaps one of them reads on at this node, which has just applied something."""
        if self.random.random() >= LOOKS:
            return
        prefix = self.random.choice(PREFIXES)
        after = self.places[prefix]
        for _ in range(self.random.randint(1, 4)):
            limit = self.random.randint(1, 3)
            try:
                page, upto = store.changes.changes(prefix, after, limit, 1 << 20)
            except Compacted:
                self.compacted += 1
                if self.random.random() < 0.5:
                    after = store.changes.floor  # it reads anew; else it tries another node
                break
            told = [((*change.place[:2], change.place[2] or 0), change.key, change.value) for change in page]
            due = self.order.between(prefix, after, upto)
            if told != due:
                self.fail(f"node {node} tells a watch of {prefix!r} after {after} of {told}, not of {due}")
            self.seen += len(told)
            after = upto
        self.places[prefix] = after
