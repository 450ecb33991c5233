"""Do all nodes apply the same? They compare hashes of what they have applied."""

from collections.abc import Sequence
from typing import Final

from paxoskv.multipaxos import Diverged, needed
from paxoskv.wire.structs import Learn, Position

RECENT: Final = 2048  # applied entries whose hashes are remembered, at least: gossip is not older
DOUBT: Final = 1.0  # seconds in which all nodes have said what they have applied


class Divergence:
    """The hashes of what was applied here, and which peers have others.

    There are three signs of another history: a peer's hash at a position is not ours (compare), a peer stays
    behind what it should have applied (look_what_is_missing), or it has applied a command where we have none
    (applied_elsewhere).
    """

    def __init__(self, nodes: Sequence[int], quorum: int) -> None:
        self.nodes = nodes
        self.quorum = quorum
        self.position = (0, 0)  # of the last entry that the store has
        self.rolling = 0  # its hash there
        self.hashes: dict[tuple[int, int], int] = {}  # at each of the last entries applied
        self.hashes_before: dict[tuple[int, int], int] = {}  # at each of the RECENT entries before those
        self.doubt: float | None = None  # since when a peer's hash is not ours
        self.doubted = (0, 0)  # the first entry where it is not
        # By peer: since when it is behind what it should have applied, and at which position.
        self.behind_since: dict[int, tuple[float, Position]] = {}
        self.applied: dict[int, Position] = {}  # by peer: the last entry that it has told to have applied
        self.agrees: dict[int, bool] = {}  # by peer: whether its hash is ours, at that entry or later

    def hashed(self, position: tuple[int, int], rolling: int) -> None:
        """The store has applied the entry at this position, or a checkpoint up to there; this is its hash."""
        self.position, self.rolling = position, rolling
        self.hashes[position] = rolling
        if len(self.hashes) == RECENT:
            self.hashes, self.hashes_before = {}, self.hashes

    def compare(self, peer: int, position: Position, rolling: int, now: float) -> None:
        """A peer says what its hash is at this position, the last that it has applied."""
        self.applied[peer] = position
        ours = self.hashes.get(position, self.hashes_before.get(position))
        if ours is not None:
            self._judge(peer, position, ours == rolling, now)

    def look_what_is_missing(self, peer: int, message: Learn, held: list[int], now: float) -> None:
        """Find out whether a peer stays short of what it should have applied.

        A peer that holds all that is chosen, and knows that no earlier command can come, has applied what we
        have. If it stays short of that, it has lost something: that is another history.
        `held`: how much of each log it holds.
        """
        timestamp, owner = self.position
        is_behind = message.applied < (timestamp, owner) and all(
            fact.log in self.nodes
            and fact.chosen <= held[self.nodes.index(fact.log)]
            and fact.frontier >= needed(timestamp, owner, fact.log)
            for fact in message.facts
        )
        if not is_behind:
            self.behind_since.pop(peer, None)
            return
        since, before = self.behind_since.get(peer, (now, message.applied))
        if before != message.applied:
            since = now
        self.behind_since[peer] = since, message.applied
        if now - since >= DOUBT:
            self._judge(peer, self.position, False, now)

    def applied_elsewhere(self, peer: int, now: float) -> None:
        """A peer has applied a command at a position that we have passed without one: another history."""
        self._judge(peer, self.position, False, now)

    def _judge(self, peer: int, position: tuple[int, int], same: bool, now: float) -> None:
        if not same and self.doubt is None:
            self.doubt, self.doubted = now, position
        if self.doubt is not None and position >= self.doubted:
            self.agrees[peer] = same

    def tick(self, now: float) -> None:
        """Raise Diverged if most differ from us, or if after a while as many do as agree.

        Nobody knows then who is right, and none may go on in silence.
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
