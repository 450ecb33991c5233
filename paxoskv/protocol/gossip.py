"""Which peers know how far our own log is chosen, which wait to hear of it, and what is told unasked."""

from collections.abc import Sequence
from typing import Any, Final

from paxoskv.multipaxos import Learner, Proposer
from paxoskv.protocol.clock import Clock
from paxoskv.protocol.contacts import GOSSIP_IDLE
from paxoskv.protocol.divergence import Divergence
from paxoskv.protocol.outbox import Message, Outbox
from paxoskv.protocol.persistence import Persistence
from paxoskv.protocol.witness import NOTHING
from paxoskv.wire.structs import Fact, Learn, Position

GOSSIP_NEWS: Final = 0.02  # seconds: news that no other message has brought to a peer by then is gossiped


class Gossip:
    """Lets every peer hear of our own fact soon, and at once if it waits for it."""

    def __init__(
        self,
        leader: Proposer,
        peers: Sequence[int],
        learner: Learner,
        clock: Clock,
        persistence: Persistence,
        divergence: Divergence,
        outbox: Outbox,
    ) -> None:
        self.me, self.own = leader.me, leader.log
        self.peers = peers
        self.learner = learner
        self.clock = clock
        self.persistence = persistence
        self.divergence = divergence
        self.outbox = outbox
        self.awaited = dict.fromkeys(peers, 0)  # by peer: the timestamp that it is known to wait for
        self.fact_sent = dict.fromkeys(peers, NOTHING)  # by peer: the own fact that it was sent last
        self.fact_sent_or_queued = dict.fromkeys(peers, NOTHING)  # also with answers that wait for an fsync
        self.news_at: dict[int, float] = {}  # by peer: since when there is news for it
        self.gossiped_at = dict.fromkeys(peers, float("-inf"))
        self.last: Learn | None = None  # the last that was sent
        self.seen: Fact | None = None  # our own fact at the end of the last turn
        self.tell_all = False  # whether everybody is to hear at once what we have learned

    def awaits(self, peer: int, timestamp: int) -> None:
        """A peer waits until our frontier has reached this."""
        self.awaited[peer] = max(self.awaited[peer], timestamp)

    def forget(self, peer: int) -> None:
        """The peer has lost its disk, and what it was told."""
        self.fact_sent[peer] = self.fact_sent_or_queued[peer] = NOTHING

    def tell(self, peer: int, message: Message, own: Fact, call: Any = None) -> None:
        """Send a message that carries our own fact."""
        self.outbox.send(peer, message, call)
        if peer != self.me:
            self.fact_sent[peer] = self.fact_sent_or_queued[peer] = own

    def tell_after(self, peer: int, message: Message, own: Fact, call: Any) -> None:
        """Send it when what it says is durable."""
        self.outbox.send_after(peer, message, call)
        if peer != self.me:
            self.fact_sent_or_queued[peer] = own

    def end_turn(self, own: Fact, now: float) -> None:
        """If our frontier has moved, tell at once the peers that are known to wait for it.

        All others hear of it with the next message.
        """
        if own is self.seen and not self.tell_all:
            return
        self.seen = own
        for peer in self.peers:
            told = self.fact_sent_or_queued[peer]
            if self.tell_all or (told.frontier < own.frontier and told.frontier < self.awaited[peer]):
                self._gossip(peer, own, now)
            elif told is not own and _differ(told, own):
                self.news_at.setdefault(peer, now)
        self.tell_all = False

    def tick(self, own: Fact, now: float) -> None:
        """Gossip news that has waited, and now and then without news."""
        # Votes that wait for a slow disk have told nobody anything yet.
        slow = self.persistence.waits and now - self.persistence.journaled_at >= GOSSIP_NEWS / 2
        told = self.fact_sent if slow else self.fact_sent_or_queued
        for peer in self.peers:
            if told[peer] is not own and _differ(told[peer], own):
                self.news_at.setdefault(peer, now)
            else:
                self.news_at.pop(peer, None)
            waited = now - self.news_at.get(peer, now)
            if waited >= GOSSIP_NEWS or now - self.gossiped_at[peer] >= GOSSIP_IDLE:
                self._gossip(peer, own, now)

    def _gossip(self, peer: int, own: Fact, now: float) -> None:
        facts = [own] + [self.learner.fact(log) for log in self.learner.acceptors if log != self.own]
        applied = Position(*self.divergence.position)
        held = self.persistence.chosen_durable
        message = Learn(self.clock.time, facts, held, applied, self.divergence.rolling)
        if message != self.last:
            self.last = message  # the same object for all peers: the caller encodes it once
        self.tell(peer, self.last, own)
        self.gossiped_at[peer] = now
        self.news_at.pop(peer, None)


def _differ(told: Fact, own: Fact) -> bool:
    """Whether there is news; evidence alone is none."""
    return told.frontier != own.frontier or told.chosen != own.chosen
