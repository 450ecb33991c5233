"""Lab 1: how far a quorum has accepted the log. The text is 01-majority.md."""

from collections.abc import Iterable


def quorum_length(lengths: Iterable[int], quorum: int) -> int:
    """How far the log is chosen: `lengths` has, for each node that has voted, how much it has accepted."""
    return max(lengths, default=0)  # what any node has accepted is chosen: really?
