"""Which nodes vote at once for entries of our own log, and whose votes can wait, so as to share an fsync.

All this is about speed only: a node always votes, if late. EverybodyVotes is the reference.
"""

from collections.abc import Sequence
from typing import Final

from paxoskv.multipaxos import RESEND_AFTER, Proposer
from paxoskv.protocol.catch_up import FETCH_ENTRIES
from paxoskv.protocol.contacts import Contacts
from paxoskv.protocol.round_trips import RoundTrips
from paxoskv.wire.structs import Vote

LATE: Final = 0.005  # seconds; a vote is late after these, or four usual round trips, whichever is longer
SLOW: Final = 1.0  # seconds for which nobody counts on a node that has kept others waiting


class Voters:
    """A quorum of the nodes votes at once, us included; the others are asked when one of those does not."""

    def __init__(
        self, me: int, ring: Sequence[int], own: Proposer, contacts: Contacts, round_trips: RoundTrips
    ) -> None:
        self.me = me
        self.ring = ring  # all nodes, from us on
        self.peers = sorted(node for node in ring if node != me)
        self.own = own
        self.contacts = contacts
        self.round_trips = round_trips
        self.at_once = ring  # the nodes that are to vote at once for what we sent last
        self.slow_until: dict[int, float] = {}  # by node that kept us waiting: avoided until when
        self.asked_up_to = 0  # up to which slot of our log all have been asked to vote at once

    def choose(self, now: float) -> None:
        """Choose which nodes are to vote at once for the entries that are about to leave.

        Not those that are silent, have been slow, or lack more of our log than one Fetched brings: they keep
        us waiting. If too few are left, everybody is to hurry.
        """
        voters: list[int] = []
        for node in self.ring:
            silent = node != self.me and self.contacts.is_silent(node, now)
            behind = self.own.lengths.get(node, -1) < self.own.start - FETCH_ENTRIES
            if not silent and not behind and now >= self.slow_until.get(node, now):
                voters.append(node)
                if len(voters) == self.own.quorum:
                    self.at_once = voters
                    return
        self.at_once = self.ring

    def deferred(self) -> list[int]:
        """The peers whose votes can wait (`lazy` in the Accept)."""
        return [peer for peer in self.peers if peer not in self.at_once]

    def begin_ballot(self) -> None:
        """We lead our log anew: nobody has been asked for anything."""
        self.asked_up_to = 0

    def on_vote(self, sender: int, vote: int, now: float) -> None:
        """Look whether a vote that has come, and was not counted yet, is late."""
        waited = now - self.own.couriers[sender].at
        if waited < LATE or vote != Vote.ACCEPTED or sender not in self.at_once:
            return  # the common case
        if waited >= self._late():
            self.slow_until[sender] = now + SLOW

    def ask_deferred(self, slow: int, now: float) -> list[int]:
        """One of those that were to vote at once does not: whom to ask now."""
        self.slow_until[slow] = now + SLOW
        own = self.own
        if self.asked_up_to >= own.end or not own.established:
            return []
        self.asked_up_to = own.end
        asked = [peer for peer in self.peers if peer != slow and own.lengths.get(peer, -1) < own.end]
        for peer in asked:
            own.couriers[peer].at = now
        return asked

    def tick(self, now: float) -> list[int]:
        """Whom to ask now, because our entries have waited for votes longer than they should."""
        late = self._late()
        asked: list[int] = []
        for node in self.at_once:
            courier = self.own.couriers[node]
            if self.own.lengths.get(node, -1) < courier.sent and now - courier.at >= late:
                asked += self.ask_deferred(node, now)
        return asked

    def _late(self) -> float:
        """Seconds after which a vote is late."""
        usual = self.round_trips.shortest()
        return RESEND_AFTER if usual is None else min(max(LATE, 4 * usual), RESEND_AFTER)


class EverybodyVotes(Voters):
    """The reference: all nodes vote at once, and nobody need be asked."""

    def choose(self, now: float) -> None:
        pass

    def deferred(self) -> list[int]:
        return []

    def on_vote(self, sender: int, vote: int, now: float) -> None:
        pass

    def ask_deferred(self, slow: int, now: float) -> list[int]:
        return []

    def tick(self, now: float) -> list[int]:
        return []
