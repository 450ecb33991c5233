"""Which logs hold us up, since when, and whose turn it is to finish them. Sends nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple

from paxoskv.multipaxos import Learner
from paxoskv.protocol.contacts import Contacts
from paxoskv.protocol.round_trips import RoundTrips

ASK_AFTER: Final = 0.02  # seconds: a node that waits for a frontier this long asks everybody for it
TURN: Final = 0.05  # seconds between two candidates' turns to revoke a node
REFUSED_AFTER: Final = 0.05  # seconds: enough to wait for a node that refuses connections


@dataclass(slots=True)
class Wait:
    """Something waits for a log's frontier."""

    frontier: int  # where it stands
    since: float  # since when it stands there
    jitter: float  # 0 to 1, so that two candidates differ
    asked: float  # when everybody was last asked for it
    asks: int = 0


class Advice:
    """What to do about a log that holds us up, or no longer does."""

    ASK: Final = 0  # everybody for its frontier
    REVOKE: Final = 1
    LET_GO: Final = 2  # a candidate for it may give up


class Step(NamedTuple):
    advice: int
    log: int
    needed: int  # the timestamp that its frontier has to reach


class Revocation:
    """Knows the logs that hold us up, and how patient to be."""

    def __init__(
        self,
        me: int,
        nodes: Sequence[int],
        learner: Learner,
        contacts: Contacts,
        round_trips: RoundTrips,
        random: Random,
        revoke_after: float,
    ) -> None:
        self.me = me
        self.nodes = nodes
        self.quorum = len(nodes) // 2 + 1
        self.learner = learner
        self.contacts = contacts
        self.round_trips = round_trips
        self.random = random
        self.revoke_after = revoke_after
        self.waiting: dict[int, Wait] = {}  # by log

    def wait_anew(self, log: int, now: float) -> None:
        """Another candidate for the log is to have its time, or ours has lost."""
        if log in self.waiting:
            self.waiting[log].since = now

    def patience(self, now: float) -> float:
        """Seconds that a log may hold us up.

        It is measured; otherwise a uniformly slow cluster would revoke itself for ever (N12).
        """
        return max(self.revoke_after, 8 * self.round_trips.longest(now))

    def watch(self, read: int, now: float) -> list[Step]:
        """What to do about the logs that hold us up; `read` is the timestamp of a read that waits (0: none).

        A node that has lost contact with a quorum deposes nobody (N11).
        """
        waits = self.learner.waits_on(read)
        if self.contacts.reached(self.patience(now) / 2, now) < self.quorum:
            waits = {}
        steps: list[Step] = []
        for log in self.nodes:
            needed, frontier = waits.get(log), self.learner.logs[log].frontier
            wait = self.waiting.get(log)
            if needed is None:
                if wait is not None:
                    del self.waiting[log]
                    steps.append(Step(Advice.LET_GO, log, 0))
            elif wait is None or wait.frontier != frontier:
                self.waiting[log] = Wait(frontier, now, self.random.random(), now)
            else:
                if now - wait.asked >= min(ASK_AFTER * (1 << wait.asks), self.patience(now) / 4):
                    wait.asked, wait.asks = now, min(wait.asks + 1, 3)
                    steps.append(Step(Advice.ASK, log, needed))
                if log != self.me and self.is_our_turn(log, wait.since, wait.jitter, now):
                    wait.since = now
                    steps.append(Step(Advice.REVOKE, log, needed))
        return steps

    def is_our_turn(self, owner: int, since: float, jitter: float, now: float) -> bool:
        """Whether to take over from a node that has held us up so long; candidates take turns, from it on.

        (Our own log we lead, or take back when it is time. `jitter`: from 0 to 1.)
        """
        slot = max(TURN, 2 * self.round_trips.longest(now))
        turn = (self.nodes.index(self.me) - self.nodes.index(owner)) % len(self.nodes)
        patience = REFUSED_AFTER if owner in self.contacts.refusing else self.patience(now)
        return now - since >= patience + slot * (turn + jitter / 2)
