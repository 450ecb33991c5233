"""What peers have told us is durable: one that starts with less must not be listened to."""

from collections.abc import Sequence
from typing import Final

from paxoskv.multipaxos import Acceptor, node_of
from paxoskv.protocol.incarnations import Incarnations
from paxoskv.wire.structs import Fact, Identity, Recovered

NOTHING: Final = Fact(0, 0, 0, 0)


class Witness:
    """What peers have told us is durable on their disks, in this life of ours.

    A promise, a vote, or a ballot that is stood with, leaves its node only when it is durable. So a later
    start of the same disk finds at least that, or the disk is a copy of an older state (or has lost what it
    had synced), and what it would vote now may contradict what it has voted before.
    """

    def __init__(self, peers: Sequence[int], logs: Sequence[int]) -> None:
        self.logs = logs
        self.promises = {peer: dict.fromkeys(logs, 0) for peer in peers}  # by log: the ballot
        self.votes = {peer: dict.fromkeys(logs, (0, 0)) for peer in peers}  # by log: the ballot, the length
        self.candidates = {peer: dict.fromkeys(logs, 0) for peer in peers}  # by log: the ballot
        self.claims = dict.fromkeys(peers, NOTHING)  # of its own log, with the highest frontier

    def promised(self, peer: int, log: int, ballot: int) -> None:
        if peer in self.promises and ballot > self.promises[peer][log]:
            self.promises[peer][log] = ballot

    def voted(self, peer: int, log: int, ballot: int, length: int) -> None:
        """At one ballot the length only grows; at a higher one, the log may be shorter."""
        votes = self.votes.get(peer)
        if votes is not None and (ballot, length) > votes[log]:
            votes[log] = (ballot, length)

    def stood(self, peer: int, log: int, ballot: int) -> None:
        candidates = self.candidates.get(peer)
        if candidates is not None and ballot > candidates[log] and node_of(ballot) == peer:
            candidates[log] = ballot

    def claimed(self, peer: int, fact: Fact) -> None:
        if peer in self.claims and fact.frontier > self.claims[peer].frontier:
            self.claims[peer] = fact

    def forget(self, peer: int) -> None:
        """The peer has another disk."""
        self.claims[peer] = NOTHING
        self.promises[peer] = dict.fromkeys(self.logs, 0)
        self.votes[peer] = dict.fromkeys(self.logs, (0, 0))
        self.candidates[peer] = dict.fromkeys(self.logs, 0)

    def refusal(
        self, identity: Identity, incarnations: Incarnations, held: list[int], acceptors: dict[int, Acceptor]
    ) -> str | None:
        """Say why a process that claims to be this peer is a copy of an older state; None if it is not.

        Such a copy has forgotten votes. It shows itself by its number, or by what its start has found: less
        than what an earlier start had let us know to be durable (N25).
        """
        peer, incarnation, life = identity.node, identity.incarnation, identity.life
        disk, last = incarnations.lives[peer]
        refusal = incarnations.refusal(peer, incarnation, life)
        if refusal is None and incarnation == disk > 0 and life != last:
            lost = self.missing(identity, held, acceptors)
            if lost is not None:
                refusal = (
                    f"node {peer} is a stale copy: {lost}: move its data aside and start it with --rejoin"
                )
        return refusal

    def missing(self, identity: Identity, held: list[int], acceptors: dict[int, Acceptor]) -> str | None:
        """What a start of a peer should have found on its disk, and has not; None if nothing is known.

        `held`: how much of each log it had said to hold. `acceptors`: ours. A frontier that its
        owner has made from its clock lies below what was reserved; any other is that of a chosen entry.
        """
        peer = identity.node
        for found in identity.recovered or []:
            if found.log in self.logs:
                lost = self._lost(peer, found, held[self.logs.index(found.log)])
                if lost is not None:
                    return lost
        _, chosen, _, frontier = self.claims[peer]
        acceptor = acceptors.get(peer)
        if identity.reserved is None or acceptor is None or acceptor.chosen < chosen:
            return None
        if frontier > max(identity.reserved, acceptor.timestamp_of(max(chosen, acceptor.base))):
            return f"its clock had reached {frontier}, and its data has {identity.reserved}"
        return None

    def _lost(self, peer: int, found: Recovered, chosen: int) -> str | None:
        """What this start of the peer should have found of a log, and has not.

        `chosen`: how many entries it had said it holds and knows to be chosen.
        """
        log = found.log
        promised, candidate = self.promises[peer][log], self.candidates[peer][log]
        ballot, length = self.votes[peer][log]
        if found.promised < promised:
            return f"in log {log} it had promised ballot {promised}, and its data has {found.promised}"
        if (found.accepted, found.length) < (ballot, length):
            return (
                f"in log {log} it had accepted {length} entries at ballot {ballot}, and its data has "
                f"{found.length} at {found.accepted}"
            )
        if found.candidate < candidate:
            return f"in log {log} it had stood with ballot {candidate}, and its data has {found.candidate}"
        if found.chosen < chosen:
            return f"in log {log} it had {chosen} chosen entries, and its data has {found.chosen}"
        return None
