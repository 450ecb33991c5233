"""How long peers take to answer, their fsync included: else a slow cluster would revoke itself for ever."""

from typing import Final, NamedTuple

from paxoskv.multipaxos import Learner
from paxoskv.wire.structs import Accept, Accepted, Vote

STALE_PROBE: Final = 5.0  # seconds: the answer to a measured Accept is not waited for any longer


class Probe(NamedTuple):
    """An Accept whose answer is measured."""

    log: int
    ballot: int
    length: int  # a vote for so much of the log answers it,
    frontier: int  # or if the vote can wait (else 0), a frontier up to here
    at: float  # when it was sent


class RoundTrips:
    """The largest recent round trip to each peer; a measurement halves with every second."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.measured: dict[int, tuple[float, float]] = {}  # by peer: seconds, and when measured
        self.probes: dict[int, Probe] = {}  # by peer

    def sent(self, node: int, message: Accept, now: float) -> None:
        """Measure how long we wait for its vote, or where that can wait, for its frontier.

        Not while another Accept is being measured.
        """
        frontier = message.entries[-1].timestamp if node in message.lazy else 0
        stale = node in self.probes and now - self.probes[node].at > STALE_PROBE
        if (stale or node not in self.probes) and not 0 < frontier <= self.learner.logs[node].known:
            end = message.start + len(message.entries)
            self.probes[node] = Probe(message.log, message.ballot, end, frontier, now)

    def on_accepted(self, sender: int, message: Accepted, now: float) -> None:
        probe = self.probes.get(sender)
        if probe is None or probe.frontier or message.log != probe.log:
            return
        if message.vote != Vote.ACCEPTED or message.ballot != probe.ballot:
            del self.probes[sender]
        elif message.length >= probe.length:
            self._measure(sender, probe.at, now)

    def on_frontier(self, log: int, frontier: int, now: float) -> None:
        """The log's owner has said that its frontier stands there."""
        probe = self.probes.get(log)
        if probe is not None and 0 < probe.frontier <= frontier:
            self._measure(log, probe.at, now)

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
