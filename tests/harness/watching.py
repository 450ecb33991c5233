"""Followers of a real cluster's changes, and the judge of what they were told.

The changes that a watch tells are the writes in the one order. So a history of clients, whose values are
written once each, must fit it: see judge_changes().
"""

import threading
from collections import Counter
from typing import Self

from paxoskv.client.sync import Client
from paxoskv.wire.structs import Change, Place
from tests.harness.linearizability import Operation
from tests.harness.processes import DEADLINE_S, RealCluster


class Follower:
    """Follows the keys with a prefix, in a thread; every few changes with a new client, at another node."""

    EACH = 40  # changes that one client takes

    def __init__(self, cluster: RealCluster, prefix: str, after: Place, last: str) -> None:
        """It ends when the key `last` is told."""
        self.cluster, self.prefix, self.after, self.last = cluster, prefix, after, last
        self.changes: list[Change] = []
        self.clients = 0
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.join(DEADLINE_S)

    def result(self) -> list[Change]:
        """All changes that it was told, when it has ended."""
        self.thread.join(4 * DEADLINE_S)
        assert self.failure is None, f"{self.prefix}: {self.failure!r}"
        assert not self.thread.is_alive(), (
            f"{self.prefix}: told {len(self.changes)} changes, none of the last"
        )
        return self.changes

    def _run(self) -> None:
        try:
            while not (self.changes and self.changes[-1].key == self.last):
                with self.cluster.client(first=self.clients) as client:
                    self.clients += 1
                    self._follow(client)
        except BaseException as failure:
            self.failure = failure

    def _follow(self, client: Client) -> None:
        watch = client.watch(self.prefix, self.after)
        for _ in range(self.EACH):
            self.changes.append(next(watch))
            if self.changes[-1].key == self.last:
                return
        assert watch.place is not None
        self.after = watch.place


At = tuple[int, ...]


def judge_changes(changes: list[Change], operations: list[Operation]) -> None:
    """The changes are the order of the history's writes; AssertionError says what does not fit.

    Places ascend. A write that was answered is told once, one whose outcome nobody knows at most once, and
    nothing else is told. What ended before something else began, or was read by then, comes before it.
    """
    places = [_at(change.place) for change in changes]
    assert places == sorted(set(places)), "the places of changes ascend"
    values = [change.value for change in changes if change.value is not None]
    assert len(values) == len(set(values)), "no value is told twice"
    told = {change.value: _at(change.place) for change in changes if change.value is not None}
    puts = {operation.value: operation for operation in operations if operation.kind == "put"}
    for value in told:
        assert value in puts and puts[value].outcome != "failed", f"nobody has put {value!r}"
    for value, put in puts.items():
        assert put.outcome != "ok" or value in told, f"{value!r} was put, and not told"
    removals = Counter(change.key for change in changes if change.value is None)
    deletes = Counter(
        (operation.key, operation.outcome) for operation in operations if operation.kind == "delete"
    )
    for key in {operation.key for operation in operations}:
        done = deletes[key, "ok"]
        assert done <= removals[key] <= done + deletes[key, "unknown"], f"removals of {key}"
    _judge_times(told, operations)


def _judge_times(told: dict[str | None, At], operations: list[Operation]) -> None:
    """Calls and returns in the order of time: `last` is the greatest place that somebody has seen by then."""
    moments = [(operation.call, 1, operation) for operation in operations]
    moments += [(o.return_, 0, o) for o in operations if o.return_ is not None and o.outcome == "ok"]
    last: At = (0,)
    last_of: dict[str, At] = {}  # by key
    before: dict[int, tuple[At, At]] = {}  # by operation: both, when it began
    for _, begins, operation in sorted(moments, key=lambda moment: moment[:2]):
        if begins:
            before[id(operation)] = last, last_of.get(operation.key, (0,))
            continue
        place = told.get(operation.value if operation.kind == "put" else operation.answer)
        if place is None:  # a removal
            continue
        all_keys, this_key = before[id(operation)]
        if operation.kind == "put":
            assert place > all_keys, f"{operation} comes before what had ended when it began"
        assert place >= this_key, f"{operation} saw what had been replaced when it began"
        last = max(last, place)
        last_of[operation.key] = max(this_key, last_of.get(operation.key, (0,)), place)


def _at(place: Place) -> At:
    assert place.change is not None, "a change has a place of its own"
    return (place.timestamp, place.owner, place.change)


def replayed(changes: list[Change]) -> dict[str, str]:
    """What a store holds after these changes."""
    content: dict[str, str] = {}
    for change in changes:
        if change.value is None:
            del content[change.key]  # that of a key that is not there is no change
        else:
            content[change.key] = change.value
    return content
