"""Lab 4: what a new leader adopts. The text is 04-value.md."""

from collections.abc import Iterable

from paxoskv.wire.structs import Promise


def best_log(promises: Iterable[Promise]) -> Promise:
    """The promise whose log is adopted; each shows `accepted`, a ballot, and its `entries`."""
    return max(promises, key=lambda promise: len(promise.entries))
