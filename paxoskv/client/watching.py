"""What the two clients' watches share: where they are, and what has come but was not taken yet."""

import random
import re
from collections import deque
from typing import Final

from paxoskv.client.operations import WATCH_S, Calls, Operation
from paxoskv.wire.structs import Change, Place, Watched

_PLACE: Final = re.compile(r"([0-9]{1,18})\.([0-9]{1,9})(?:\.([0-9]{1,9}))?")


def place_text(place: Place) -> str:
    """Return a place as people write it: timestamp.owner, or timestamp.owner.change."""
    return ".".join(str(number) for number in place if number is not None)


def parse_place(text: str) -> Place:
    """Return the place that place_text() wrote; raise ValueError for other text."""
    found = _PLACE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a place: TIMESTAMP.OWNER or TIMESTAMP.OWNER.CHANGE")
    timestamp, owner, change = found.groups()
    return Place(int(timestamp), int(owner), None if change is None else int(change))


class Watching:
    """One watch. `place` is where another one would go on without a gap or a repeat, at any node."""

    def __init__(self, calls: Calls, prefix: str, after: Place | None) -> None:
        self.place = after  # None: the first operation finds it
        self._calls = calls
        self._prefix = prefix
        self._wait_s = random.uniform(*WATCH_S)
        self._node: int | None = None  # that answered last: the next operation begins there
        self._upto = after  # the place behind all that has come
        self._come: deque[Change] = deque()

    def _operation(self) -> Operation[Watched]:
        return self._calls.watch(self._prefix, self._upto, self._node, self._wait_s)

    def _took(self, operation: Operation[Watched], watched: Watched) -> None:
        self._node, self._upto = operation.node, watched.upto
        self._come.extend(watched.changes)
        if not self._come:
            self.place = self._upto

    def _take(self) -> Change:
        change = self._come.popleft()
        self.place = change.place if self._come else self._upto
        return change
