"""Implausible numbers: a process that sends one is broken, or no node, and its message is refused.

Ballots, timestamps, incarnations and lives grow by steps. A node that was away cannot know how far others
have come, so the bounds are wide; but not so wide that a few false claims use up all numbers.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

from paxoskv.multipaxos import Acceptor, Proposer
from paxoskv.protocol.clock import SKIP, Clock
from paxoskv.protocol.incarnations import Incarnations
from paxoskv.protocol.outbox import Message
from paxoskv.wire.structs import (
    Accept,
    Accepted,
    Barrier,
    Entry,
    Fact,
    Fetched,
    Identity,
    Learn,
    Prepare,
    Promise,
    Reading,
    Rejoin,
    Rejoined,
)

NUMBERS: Final = 1 << 62  # half of those that the wire and the journal have
# One claim may use up a part of 2 ** SHARE of the numbers that are left: 4 million skips at once, and it
# takes thousands of such claims before no more than honest steps are left.
SHARE: Final = 8
LAST: Final = (1 << 63) - (1 << 40)  # what is added to it by an honest step still has 63 bits


def is_too_high(claim: int, known: int) -> bool:
    """Tell whether a claim is implausibly high, when `known` is the last that we heard of."""
    return claim > known and (claim - known > max(NUMBERS - known >> SHARE, SKIP) or claim > LAST)


class Claims:
    """Looks at what peers say, before anything else does."""

    def __init__(
        self,
        acceptors: dict[int, Acceptor],
        proposers: dict[int, Proposer],
        clock: Clock,
        incarnations: Incarnations,
    ) -> None:
        self.acceptors = acceptors
        self.proposers = proposers
        self.clock = clock
        self.incarnations = incarnations
        self.checks: dict[type, Callable[[int, Any], str | None]] = {
            Accept: self._accept,
            Accepted: self._accepted,
            Barrier: self._barrier,
            Fetched: self._fetched,
            Learn: self._learn,
            Prepare: self._prepare,
            Promise: self._promise,
            Reading: self._learn,
            Rejoin: self._rejoin,
            Rejoined: self._rejoined,
        }
        self.refused = 0  # messages
        self.last = (0, "")  # whose was the last of them, and what was wrong

    def refuses(self, sender: int, message: Message) -> bool:
        """Say whether this message must not be heeded."""
        check = self.checks.get(message.__class__)
        reason = check(sender, message) if check is not None else None
        if reason is not None:
            self.refused += 1
            self.last = (sender, f"{message.__class__.__name__}: {reason}: implausibly high")
        return reason is not None

    def refusal(self, identity: Identity) -> str | None:
        """Say why nobody can be who this peer claims to be; None if one can."""
        disk, life = self.incarnations.lives[identity.node]
        if is_too_high(identity.incarnation, disk) or is_too_high(identity.life, life):
            return (
                f"node {identity.node}: incarnation {identity.incarnation}, life {identity.life}: "
                "implausibly high"
            )
        return None

    def _accept(self, sender: int, message: Accept) -> str | None:
        reason = self._ballot(message.log, message.ballot) or self._entries(message.entries)
        return reason or self._facts((message.fact,))

    def _accepted(self, sender: int, message: Accepted) -> str | None:
        return self._ballot(message.log, message.promised) or self._facts((message.fact,))

    def _barrier(self, sender: int, message: Barrier) -> str | None:
        return self._clock(message.clock)

    def _prepare(self, sender: int, message: Prepare) -> str | None:
        return self._ballot(message.log, message.ballot)

    def _learn(self, sender: int, message: Learn | Reading) -> str | None:
        return self._clock(message.clock) or self._facts(message.facts)

    def _fetched(self, sender: int, message: Fetched) -> str | None:
        return self._ballot(message.log, message.evidence) or self._entries(message.entries)

    def _promise(self, sender: int, message: Promise | Rejoined) -> str | None:
        ballot = self._ballot(message.log, max(message.promised, message.accepted))
        return ballot or self._entries(message.entries) or self._facts((message.fact,))

    def _rejoin(self, sender: int, message: Rejoin) -> str | None:
        too_high = is_too_high(message.incarnation, self.incarnations.lives[sender][0])
        return f"incarnation {message.incarnation}" if too_high else None

    def _rejoined(self, sender: int, message: Rejoined) -> str | None:
        noted = f"incarnation {message.noted}" if message.noted > LAST else None
        for node, incarnation, life in message.lives or ():
            disk, last = self.incarnations.lives.get(node, (0, 0))
            if is_too_high(incarnation, disk) or is_too_high(life, last):
                noted = f"incarnation {incarnation}, life {life} of node {node}"
        return noted or self._clock(message.clock) or self._promise(sender, message)

    def _ballot(self, log: int, ballot: int) -> str | None:
        known = self.acceptors[log].promised
        return f"ballot {ballot} of log {log}" if ballot > known and is_too_high(ballot, known) else None

    def _clock(self, timestamp: int) -> str | None:
        known = self.clock.known
        return f"timestamp {timestamp}" if timestamp > known and is_too_high(timestamp, known) else None

    def _entries(self, entries: list[Entry]) -> str | None:
        known = self.clock.known
        for entry in entries:
            if is_too_high(entry.timestamp, known):
                return f"timestamp {entry.timestamp}"
        return None

    def _facts(self, facts: Iterable[Fact]) -> str | None:
        known = self.clock.known
        for log, chosen, evidence, frontier in facts:
            acceptor = self.acceptors.get(log)
            if acceptor is None:
                continue
            if frontier > known and is_too_high(frontier, known):
                return f"frontier {frontier} of log {log}"
            if evidence > acceptor.promised and is_too_high(evidence, acceptor.promised):
                return f"ballot {evidence} of log {log}"
            leader = self.proposers.get(log)
            if leader is not None and leader.ballot == evidence and leader.leading and chosen > leader.end:
                return f"{chosen} entries of log {log} are chosen, of which we have sent {leader.end}"
        return None
