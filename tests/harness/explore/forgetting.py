"""Checks that messages which are left out because they are dead could really change nothing."""

import numpy as np

from tests.harness.explore.engine import LEFT, Explorer, bits
from tests.harness.explore.tables import SPREAD, Array, Table
from tests.harness.explore.world import Breach


class Checker:
    """Looks at what was sent between two processes, in every state of a world that forgets nothing."""

    def __init__(self, explorer: Explorer) -> None:
        assert not explorer.forget and not explorer.once
        self.explorer = explorer
        self.met = Table()
        self.checked: dict[tuple[int, ...], int] = {}  # by two processes before and after: messages

    def check(self, process: int, before: Array, origins: Array, after: Array) -> None:
        """Look at the dead messages before and after each of these steps of a process."""
        for (one, other), row in self.explorer.rows.items():
            if process not in (one, other):
                continue
            rows = [
                before[one][origins], before[other][origins], before[LEFT][origins],
                after[one], after[other], after[LEFT], before[row][origins],
            ]  # fmt: skip
            key = np.full(len(origins), one << 8 | other, np.uint64)
            for part in rows:
                key = (key ^ part.astype(np.uint64)) * SPREAD
                key ^= key >> np.uint64(29)
            new = np.flatnonzero(self.met.add(np.maximum(key, np.uint64(1))))
            for *pair, number in np.stack(rows)[:, new].T.tolist():
                messages = self.explorer.sets(one, other).masks[number]
                known = self.checked.get((one, other, *pair), 0)
                if messages & ~known:
                    self.checked[one, other, *pair] = known | messages
                    self.check_pair(one, other, pair[:3], pair[3:], messages & ~known)

    def check_pair(
        self, sender: int, receiver: int, before: list[int], after: list[int], messages: int
    ) -> None:
        dead = self.dead(sender, receiver, before, messages)
        for message in bits(dead & ~self.dead(sender, receiver, after, messages)):
            raise AssertionError(f"a dead message has come to life: {self.explorer.told(receiver, message)}")
        for message in bits(dead):
            self.changes_nothing(sender, receiver, before, message)

    def dead(self, sender: int, receiver: int, pair: list[int], messages: int) -> int:
        """Which of them are dead, with these states of both and these budgets left."""
        source, target, left = pair
        there = self.explorer.horizon_number(sender, source, left)
        here = self.explorer.horizon_number(receiver, target, left)
        return self.explorer.dead(sender, there, receiver, here, messages)

    def changes_nothing(self, sender: int, receiver: int, pair: list[int], message: int) -> None:
        """A dead message changes nothing, and is answered by dead messages only."""
        explorer = self.explorer
        source, target, left = pair
        outcome = explorer.remembered(receiver, target, message)
        if outcome is None:
            return
        told = explorer.told(receiver, message)
        assert not isinstance(outcome, Breach), outcome
        after, sends, facts = outcome
        assert after == target and not facts, told
        for to, answers in sends.items():
            assert to == sender, f"it is answered to somebody else: {told}"
            assert answers == self.dead(receiver, sender, [target, source, left], answers), told
