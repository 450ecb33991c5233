"""How long peers take to answer, their fsync included: else a slow cluster would revoke itself for ever."""

from typing import Final

from paxoskv.multipaxos import Learner
from paxoskv.wire.structs import Accept, Accepted, Vote

STALE_PROBE: Final = 5.0  # seconds: the answer to a measured Accept is not waited for any longer


class RoundTrips:
    """The largest recent round trip to each peer; a measurement halves with every second."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.measured: dict[int, tuple[float, float]] = {}  # by peer: seconds, and when measured
        self.probes: dict[int, tuple[Accept, float]] = {}  # by peer: whose answer is measured, since when

    def sent(self, node: int, message: Accept, now: float) -> None:
        """Measure how long we wait for its vote, or where that can wait, for its frontier.

        Not while another Accept is being measured.
        """
        if node in self.probes and now - self.probes[node][1] <= STALE_PROBE:
            return
        if not 0 < _frontier(node, message) <= self.learner.logs[node].known:
            self.probes[node] = (message, now)

    def on_accepted(self, sender: int, message: Accepted, now: float) -> None:
        if sender not in self.probes:
            return
        accept, at = self.probes[sender]
        if message.log != accept.log or sender in accept.lazy:
            return
        if message.vote != Vote.ACCEPTED or message.ballot != accept.ballot:
            del self.probes[sender]
        elif message.length >= accept.start + len(accept.entries):
            self._measure(sender, at, now)

    def on_frontier(self, log: int, frontier: int, now: float) -> None:
        """The log's owner has said that its frontier stands there."""
        if log in self.probes:
            accept, at = self.probes[log]
            if 0 < _frontier(log, accept) <= frontier:
                self._measure(log, at, now)

    def forget(self, peer: int) -> None:
        """What the peer was sent tells nothing about it: it had stopped, or been cut off."""
        self.probes.pop(peer, None)

    def longest(self, now: float) -> float:
        return max((seconds * 0.5 ** (now - at) for seconds, at in self.measured.values()), default=0.0)

    def shortest(self) -> float | None:
        return min([seconds for seconds, _ in self.measured.values()], default=None)

    def _measure(self, peer: int, since: float, now: float) -> None:
        before, when = self.measured.get(peer, (0.0, now))
        self.measured[peer] = (max(now - since, before * 0.5 ** (now - when)), now)
        del self.probes[peer]


def _frontier(node: int, message: Accept) -> int:
    """The frontier of this node by which we notice that it has the entries, if its vote can wait; else 0."""
    return message.entries[-1].timestamp if node in message.lazy else 0
