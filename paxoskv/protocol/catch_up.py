"""Fetches entries that are known to be chosen and not held here, and hands ours to peers that fetch."""

from collections.abc import Sequence
from random import Random
from typing import Any, Final

from paxoskv.multipaxos import FETCH_BYTES, UNCHOSEN_ENTRIES, Acceptor, Learner, node_of
from paxoskv.protocol.outbox import Outbox
from paxoskv.wire.structs import Entry, Fetch, Fetched

FETCH_AFTER: Final = 0.02  # seconds: entries that others call chosen may still be on their way
FETCH_AGAIN: Final = 0.1  # seconds: a fetch unanswered goes to another node
FETCH_ENTRIES: Final = 44  # at most in one: they take a millisecond or two, in which nobody else is served
# How many entries that we do not hold may be called chosen, and be believed: a leader has half of them under
# way. Whether there are more is seen when they are fetched.
CREDIT: Final = 2 * UNCHOSEN_ENTRIES
FETCH_PAUSE: Final = 0.003  # seconds between two Fetches: other processes get the processor meanwhile


class CatchUp:
    """What is being fetched, and from whom."""

    def __init__(
        self,
        peers: Sequence[int],
        acceptors: dict[int, Acceptor],
        learner: Learner,
        outbox: Outbox,
        random: Random,
    ) -> None:
        self.peers = peers
        self.acceptors = acceptors
        self.learner = learner
        self.outbox = outbox
        self.random = random
        self.fetching: dict[int, tuple[float, int]] = {}  # by log: when to ask (again), whom
        self.fetch_at = 0.0  # not earlier
        self.credit = CREDIT
        self.pursued: dict[int, int] = {}  # by log: how many entries are said to be chosen, not yet believed

    @property
    def due(self) -> float | None:
        """When the next Fetch is to leave; None: nothing is fetched."""
        if not self.fetching:
            return None
        return max(self.fetch_at, min(at for at, _ in self.fetching.values()))

    def lacking(self, log: int, sender: int, now: float) -> None:
        """Note that chosen entries of this log are not held here, as `sender` says.

        The log's leader had sent them before, so that they were lost; others may speak of what is still on
        its way.
        """
        if log not in self.fetching:
            hearsay = sender != node_of(self.learner.logs[log].evidence)
            self.fetching[log] = (now + FETCH_AFTER if hearsay else now, sender)

    def pursue(self, log: int, chosen: int, sender: int, now: float) -> None:
        """A peer says that far more entries are chosen than we hold: fetch them, as long as they come."""
        self.pursued[log] = max(chosen, self.pursued.get(log, 0))
        self.lacking(log, sender, now)

    def _lacks(self, log: int) -> bool:
        """Whether there is anything to fetch."""
        wanted = max(self.learner.logs[log].chosen, self.pursued.get(log, 0))
        return self.acceptors[log].chosen < wanted

    def send(self, now: float) -> None:
        """Ask for what is due."""
        for log, (at, whom) in list(self.fetching.items()):
            if not self._lacks(log):
                del self.fetching[log]
                self.pursued.pop(log, None)
            elif now >= max(at, self.fetch_at) and self.peers:
                self.outbox.send(whom, self._fetch(log))
                self.fetch_at = now + FETCH_PAUSE
                self.fetching[log] = (now + FETCH_AGAIN, self._another(whom))

    def on_fetch(self, sender: int, message: Fetch, call: Any) -> None:
        """A peer lacks chosen entries: hand over some of them."""
        acceptor = self.acceptors[message.log]
        entries: list[Entry] = []
        if acceptor.base <= message.from_slot < acceptor.chosen:
            size = 0
            for entry in acceptor.from_slot(message.from_slot, acceptor.chosen):
                entries.append(entry)
                size += len(entry.payload) + 32
                if size >= FETCH_BYTES or len(entries) == FETCH_ENTRIES:
                    break
        fetched = Fetched(message.log, message.from_slot, entries, acceptor.evidence, acceptor.base)
        self.outbox.send(sender, fetched, call)

    def on_fetched(self, sender: int, message: Fetched, now: float) -> bool:
        """True if these are entries that were asked for; else another peer is asked.

        A peer that has given them up has a checkpoint instead.
        """
        if message.log not in self.fetching:
            return False
        if not message.entries:
            if message.base > self._fetch(message.log).from_slot:
                self.outbox.ready.checkpoint_from = sender
            else:
                self.pursued.pop(message.log, None)
            self.fetching[message.log] = (now + FETCH_AFTER, self._another(sender))
            return False
        return True

    def installing(self, log: int) -> None:
        """What was fetched is about to be installed."""
        del self.fetching[log]

    def installed(self, log: int, sender: int, now: float) -> None:
        """It is. If we lack more, there is more where these came from."""
        if log in self.fetching or self._lacks(log):
            self.fetching[log] = (now, sender)

    def _fetch(self, log: int) -> Fetch:
        acceptor = self.acceptors[log]
        sure = acceptor.length if acceptor.accepted >= self.learner.logs[log].evidence else acceptor.chosen
        return Fetch(log, sure)

    def _another(self, node: int) -> int:
        return self.random.choice([peer for peer in self.peers if peer != node] or self.peers)
