"""A way to propose: what all of them share. own_logs.py, classic.py and leader.py are the three."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from random import Random
from typing import Any, ClassVar, NamedTuple

from paxoskv.multipaxos import FETCH_BYTES, RESEND_AFTER, UNCHOSEN_ENTRIES, Learner, Proposer
from paxoskv.protocol.clock import Clock
from paxoskv.protocol.contacts import Contacts
from paxoskv.protocol.core import MANY
from paxoskv.protocol.gossip import Gossip
from paxoskv.protocol.outbox import Outbox
from paxoskv.protocol.revocation import Revocation
from paxoskv.protocol.round_trips import RoundTrips
from paxoskv.protocol.voters import Voters
from paxoskv.wire.structs import Entry, Forward, Forwarded, Origin, Reading


class Parts(NamedTuple):
    """What every way works with."""

    own: Proposer  # for the log that this node stands for of itself
    proposers: dict[int, Proposer]  # those of other logs are made when they are needed
    learner: Learner
    clock: Clock
    voters: Voters
    contacts: Contacts
    round_trips: RoundTrips
    revocation: Revocation
    gossip: Gossip
    outbox: Outbox
    random: Random


class Way(ABC):
    """Says who stands for a log, when, and what is appended to it: a policy, told of all that happens.

    It is told of commands, reads, promises, refusals, applied entries and time. It answers with stand(), with
    an entry appended to the Proposer, or with a message in the Outbox; or it waits. How a log is led,
    accepted, learned, journaled and fetched is the same for all ways.
    """

    owners: ClassVar[bool] = False  # whether each node owns a log, of which it makes frontiers
    batch: ClassVar[int] = MANY  # commands in one entry, at most, unless one request has more

    def __init__(self, parts: Parts) -> None:
        self.own = own = parts.own
        self.me = own.me
        self.peers = [node for node in own.nodes if node != own.me]
        self.proposers = parts.proposers
        self.learner = parts.learner
        self.acceptors = parts.learner.acceptors
        self.clock = parts.clock
        self.contacts = parts.contacts
        self.round_trips = parts.round_trips
        self.revocation = parts.revocation
        self.gossip = parts.gossip
        self.outbox = parts.outbox
        self.random = parts.random
        self.stands = 0  # how often this node has stood: each time with another ballot
        self.revocations = 0  # how often it has taken a log over from another node

    # ------------------------------------------------------------------------------- what is shared

    def proposer(self, log: int) -> Proposer:
        """Ours for this log."""
        if log not in self.proposers:
            self.proposers[log] = Proposer(log, self.me, self.own.nodes)
        return self.proposers[log]

    def stand(self, log: int, wanted: int, now: float) -> None:
        """Become candidate for a log. Our ballot must be durable before anybody hears of it (N21)."""
        proposer = self.proposer(log)
        acceptor = self.acceptors[log]
        self.stands += 1
        self.outbox.journal(proposer.prepare(acceptor.chosen, acceptor.promised, wanted))
        self.send_prepare(proposer, now)

    def send_prepare(self, proposer: Proposer, now: float) -> None:
        """Ask everybody for a promise, ourselves too."""
        message = proposer.message(now)
        for node in self.own.nodes:
            self.outbox.send_after(node, message)

    def entries(self, proposer: Proposer, start: int) -> tuple[int, list[Entry]]:
        """The leader's log from a slot on, with chosen entries if they are few; the peer fetches many."""
        chosen = proposer.start
        if start >= chosen:
            return start, proposer.entries[start - chosen :]
        acceptor = self.acceptors[proposer.log]
        if (
            start < max(acceptor.base, chosen - UNCHOSEN_ENTRIES)
            or acceptor.bytes_to_chosen(start) > FETCH_BYTES
        ):
            return chosen, list(proposer.entries)
        return start, acceptor.from_slot(start, chosen) + proposer.entries

    def is_back(self, peer: int) -> None:
        """Send soon what a peer lacks that speaks again after a long silence.

        Its silence says nothing about round trips.
        """
        self.round_trips.forget(peer)
        for proposer in self.proposers.values():
            if peer in proposer.couriers:
                proposer.couriers[peer].silent = 0

    def send_again(self, now: float) -> None:
        """Send again what may have been lost."""
        for proposer in self.proposers.values():
            proposer.fresh = True
            if proposer.preparing and now - proposer.prepared_at >= RESEND_AFTER * min(proposer.prepares, 8):
                self.send_prepare(proposer, now)

    # ------------------------------------------------------------------- what a way is asked, and told

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether commands are taken."""

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """How many entries of this node are not applied yet."""

    @property
    @abstractmethod
    def has_room(self) -> bool:
        """Whether another entry may be proposed now."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether something waits, so that tick() is to be called often."""

    def leads(self) -> frozenset[int]:
        """The logs that this node leads, for longer than for one command."""
        return frozenset(log for log, proposer in self.proposers.items() if proposer.leading)

    @abstractmethod
    def begin(self, now: float) -> None:
        """A life begins, or a rejoin has ended."""

    def origin(self, life: int) -> Origin | None:
        """What the next proposal is known by, if its payload must say that. `life`: this start of ours."""
        return None

    @property
    def due(self) -> float | None:
        """When a turn must be made, whatever happens until then; None: at no certain time."""
        return None

    @abstractmethod
    def propose(self, payload: bytes, token: Any) -> None:
        """A client's commands are to become an entry; `token` comes back with it."""

    @abstractmethod
    def read(self, token: Any) -> None:
        """A linearizable read has arrived."""

    @abstractmethod
    def forget_reads(self, tokens: Collection[Any]) -> None:
        """These reads are given up."""

    @abstractmethod
    def lead(self, proposer: Proposer) -> None:
        """A quorum has promised, and what was adopted is in the proposer."""

    @abstractmethod
    def lose(self, proposer: Proposer, promised: int, now: float) -> None:
        """A higher ballot is promised: step down."""

    @abstractmethod
    def promised(self, log: int, now: float) -> None:
        """We have promised to a candidate for the log: once per ballot (N22)."""

    @abstractmethod
    def applied(self, timestamp: int, owner: int, payload: bytes) -> Any:
        """An entry is applied: the token of its proposal; None if it is not one of ours."""

    @abstractmethod
    def covered(self, position: tuple[int, int]) -> None:
        """A checkpoint of others holds all up to the position: our entries may be among that."""

    @abstractmethod
    def end_turn(self, now: float) -> None:
        """A turn ends: append what is to leave with its Accepts."""

    @abstractmethod
    def answer_reads(self, now: float, more: bool) -> None:
        """All that can be applied in this turn is applied. `more`: commands wait for the next entry."""

    @abstractmethod
    def tick(self, now: float) -> None:
        """Time has passed: ask again what reads have asked."""

    @abstractmethod
    def watch(self, now: float) -> None:
        """Time has passed, and we are not rejoining: stand, if it is time."""

    def ballots(self) -> tuple[int, ...]:
        """What a Reading says of ballots, if anything: the one promised, the one led and established."""
        return ()

    @abstractmethod
    def on_reading(self, sender: int, message: Reading, now: float) -> None:
        """A node has answered a read's Barrier."""

    @abstractmethod
    def forget(self, peer: int) -> None:
        """A peer has lost its disk: what it has told no longer counts."""

    def on_forward(self, sender: int, message: Forward | Forwarded, call: Any) -> None:
        """A peer hands us commands, or answers what we have handed to it. Only the leader way takes any."""
        if isinstance(message, Forward):
            self.outbox.send(sender, Forwarded(message.ballot, message.origin, False), call)
