"""Do all nodes apply the same? They compare hashes of what they have applied."""

from typing import Final

RECENT: Final = 2048  # applied entries whose hashes are remembered, at least: gossip is not older
DOUBT: Final = 1.0  # seconds in which all nodes have said what they have applied


class Diverged(Exception):
    """This node has applied something else than others, or is one of as many as have not: it must stop."""


class Divergence:
    """The hashes of what was applied here, and which peers have others."""

    def __init__(self, quorum: int) -> None:
        self.quorum = quorum
        self.position = (0, 0)  # of the last entry that the store has
        self.rolling = 0  # its hash there
        self.hashes: dict[tuple[int, int], int] = {}  # at each of the last entries applied
        self.hashes_before: dict[tuple[int, int], int] = {}  # and at RECENT before them
        self.doubt: float | None = None  # since when a peer's hash is not ours
        self.doubted = (0, 0)  # the first entry where it is not
        self.agrees: dict[int, bool] = {}  # by peer: whether its hash is ours, at that entry or later

    def hashed(self, position: tuple[int, int], rolling: int) -> None:
        """The store has applied the entry at this position, or a checkpoint up to there; this is its hash."""
        self.position, self.rolling = position, rolling
        self.hashes[position] = rolling
        if len(self.hashes) == RECENT:
            self.hashes, self.hashes_before = {}, self.hashes

    def compare(self, peer: int, position: tuple[int, int], rolling: int, now: float) -> None:
        """A peer says what its hash is at this position."""
        ours = self.hashes.get(position, self.hashes_before.get(position))
        if ours is None:
            return
        if ours != rolling and self.doubt is None:
            self.doubt, self.doubted = now, position
        if self.doubt is not None and position >= self.doubted:
            self.agrees[peer] = ours == rolling

    def tick(self, now: float) -> None:
        """Diverged if most differ from us, or if after a while as many do as agree: nobody knows then who is
        right, and none may go on in silence.
        """
        if self.doubt is None:
            return
        differ = [peer for peer, same in self.agrees.items() if not same]
        ours = 1 + sum(self.agrees.values())
        asked = len(self.agrees) + 1 >= self.quorum  # else it may be the only one that differs whom we hear
        late = now - self.doubt >= DOUBT
        if len(differ) >= self.quorum or (asked and late and len(differ) >= ours):
            raise Diverged(
                f"at {self.position} with hash {self.rolling:08x}: nodes {differ} have applied something else"
            )
        if not differ:
            self.doubt = None
            self.agrees.clear()
