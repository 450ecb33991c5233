"""Gives up entries that nobody needs any more."""

from collections.abc import Sequence
from typing import Final

from paxoskv.multipaxos import Acceptor, Cut, Learner
from paxoskv.protocol.catch_up import CREDIT
from paxoskv.protocol.persistence import Persistence

COMPACT_EVERY: Final = 1.0  # seconds between two looks for entries that nobody needs any more
KEEP_BYTES: Final = 64 << 20  # of one log, for nodes that lag; further behind, they take a checkpoint
KEEP_OVERHEAD: Final = 64  # bytes that an entry costs besides its payload, about


class Compaction:
    """Knows how much of each log the peers hold, and how much our own checkpoint has."""

    def __init__(
        self,
        peers: Sequence[int],
        acceptors: dict[int, Acceptor],
        learner: Learner,
        persistence: Persistence,
    ) -> None:
        self.acceptors = acceptors
        self.learner = learner
        self.persistence = persistence
        self.checkpointed_to = dict.fromkeys(acceptors, 0)  # by log: how much of it our own checkpoint has
        self.measured = dict.fromkeys(acceptors, (0, 0))  # by log: up to which slot, bytes kept up to there
        self.nothing = [0] * len(acceptors)
        self.held_by = dict.fromkeys(peers, self.nothing)  # by peer: how much of each log it holds, in order
        self.keep_bytes = KEEP_BYTES
        self.compact_at = 0.0

    def holds(self, peer: int, lengths: list[int]) -> None:
        """A peer says how much of each log it holds, durably. Not much more than we hold is believed."""
        if len(lengths) == len(self.acceptors):
            acceptors = enumerate(self.acceptors.values())
            self.held_by[peer] = [min(lengths[at], acceptor.length + CREDIT) for at, acceptor in acceptors]

    def held(self, peer: int) -> list[int]:
        """How much of each log the peer has said to hold."""
        return self.held_by.get(peer, self.nothing)

    def forget(self, peer: int) -> None:
        """A peer has lost its disk."""
        self.held_by[peer] = self.nothing

    def checkpointed(self, cut: Cut) -> None:
        """A durable checkpoint of our own covers this: its entries may be given up, by the next tick()."""
        for log, covered in cut.logs.items():
            self.checkpointed_to[log] = covered.executed
        self.compact_at = 0.0

    def overtook(self, peer: int) -> bool:
        """Whether entries that the peer lacks were given up, and no checkpoint of ours has them.

        (Where it lacks nothing, we go on giving up entries: no checkpoint would ever have them all.)
        """
        return any(
            acceptor.base > max(self.checkpointed_to[log], held)
            for (log, acceptor), held in zip(self.acceptors.items(), self.held_by[peer], strict=True)
        )

    def tick(self, now: float) -> None:
        """Give up entries that all nodes hold, durably; and if there are too many, what our checkpoint has.

        Never what no frame has noted as executed: a checkpoint of all segments so far might lack it, and the
        next segment begins with what is kept.
        """
        if now < self.compact_at:
            return
        self.compact_at = now + COMPACT_EVERY
        for index, (log, acceptor) in enumerate(self.acceptors.items()):
            covered = max(acceptor.base, min(self.checkpointed_to[log], self.learner.logs[log].executed))
            noted = self.persistence.executed_in_frame[index]
            everywhere = min([noted, *(held[index] for held in self.held_by.values())])
            measured, size = self.measured[log]
            if measured < acceptor.base:  # a checkpoint has covered it meanwhile
                measured, size = acceptor.base, 0
            size += sum(len(entry.payload) + KEEP_OVERHEAD for entry in acceptor.from_slot(measured, covered))
            below = acceptor.base
            while below < covered and (below < everywhere or size > self.keep_bytes):
                size -= len(acceptor.entries[below - acceptor.base].payload) + KEEP_OVERHEAD
                below += 1
            below = max(below, everywhere)
            self.measured[log] = (max(measured, covered, below), size)
            acceptor.drop(below)
