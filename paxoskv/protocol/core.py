"""What the loop, the recovery and the server need of a core: Node, or Single, the same without replication.

What is not abstract here is the answer of a core without peers; Node answers each of these itself.
Core is in this folder because Node derives from it, and the protocol imports nothing from node/.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

from paxoskv.multipaxos import Cut
from paxoskv.protocol.outbox import Message, Ready
from paxoskv.wire.structs import Identity, LogStatus, Origin, Record

MANY: Final = 1 << 30  # commands: more than any entry holds


class Report(NamedTuple):
    """What a core says of itself, for the status, the metrics and the log."""

    clock: int
    incarnation: int  # which disk; 0: it is not known yet
    life: int  # which start of that disk
    in_flight: int  # own entries that are not applied yet
    ballots: int  # how often this node has stood for a log
    revocations: int  # how often this node has stood for the log of another one
    leads: frozenset[int]  # the logs that this node leads
    own: int  # its own log; 0: no node has one
    logs: list[LogStatus]
    rejoin_waits: str | None  # what a rejoin waits for, in words; None: the node is not rejoining
    claims_refused: int  # how many messages of peers were implausible
    last_claim: tuple[int, str]  # who sent the last of them, and what was wrong
    applied: Mapping[int, tuple[int, int]]  # by peer: the last entry that it has told to have applied


class Core(ABC):
    """One node's protocol. It does no I/O; see node.py for the loop that drives it."""

    me: int
    quorum: int

    # the common questions, asked in every turn

    @property
    def ready(self) -> bool:
        """Whether commands are taken."""
        return True

    @property
    def joined(self) -> bool:
        """Whether this node may read: it is not rejoining."""
        return True

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """How many entries of this node are not applied yet."""

    @property
    def has_room(self) -> bool:
        """Whether the log takes another entry now."""
        return True

    @property
    def gathers(self) -> bool:
        """Whether an entry costs so much that it pays to wait for more commands."""
        return False

    @property
    def batch(self) -> int:
        """How many commands one entry may have, unless they are of one request."""
        return MANY

    @property
    def busy(self) -> bool:
        """Whether tick() is to be called every few milliseconds."""
        return False

    @property
    def drained(self) -> bool:
        """Whether all records have been handed out: then state() holds nothing that they do not."""
        return True

    @property
    def turn_due(self) -> float | None:
        """When a turn must be made, whatever happens until then; None: at no certain time."""
        return None

    # recovery, and what lasts

    @abstractmethod
    def replay(self, record: Record) -> None:
        """Recovery: take one journaled record; they come in the order in which they were written."""

    @abstractmethod
    def install(self, cut: Cut, now: float = 0.0, number: int = 0) -> bool:
        """Merge a checkpoint; True: its state must take the place of the store's."""

    def start(self, now: float) -> None:
        """Begin a life."""

    def state(self, pending: Sequence[Record] = ()) -> list[Record]:
        """Return all that must not be forgotten, for the first frame of a segment. Only while drained.

        Without peers: the records that wait. What was journaled before them is in the checkpoint.
        """
        return list(pending)

    def notes(self) -> list[Record]:
        """Return what need not be durable soon, for the frame that is written next."""
        return []

    @abstractmethod
    def cut(self) -> Cut:
        """Say where a checkpoint stands that holds what is applied now."""

    def checkpointed(self, cut: Cut) -> None:
        """Take note that a durable checkpoint of our own stands here."""

    # the loop

    @abstractmethod
    def step(self, sender: int, message: Message, now: float, call: Any = None) -> None:
        """Take a message of a node, this one included."""

    def tick(self, now: float) -> None:
        """Take note that time has passed."""

    def origin(self) -> Origin | None:
        """Name the next entry, if its payload must have a name."""
        return None

    @abstractmethod
    def propose(self, payload: bytes, token: Any) -> None:
        """Propose one entry; `token` comes back when it is applied. Only while ready and has_room."""

    @abstractmethod
    def read(self, token: Any) -> None:
        """Begin a linearizable read; `token` comes back when the store may be read."""

    def forget_reads(self, tokens: Collection[Any]) -> None:
        """Give these reads up. Without peers none waits."""

    @abstractmethod
    def drain(self, now: float, more: bool = False) -> Ready:
        """Hand out what is to be done; `more`: whether commands wait for the next entry."""

    def hashed(self, position: tuple[int, int], rolling: int) -> None:
        """Take note of the store's hash after the entry at this position."""

    # peers

    def identify(self, identity: Identity) -> Identity:
        """Complete what this node says to others of itself."""
        return identity

    def greet(self, identity: Identity) -> str | None:
        """Say why nobody may listen to this process, which says who it is; None if one may: then note it."""
        return "this server has no peers"

    def refusal(self, identity: Identity) -> str | None:
        """Say the same as greet(), and note nothing."""
        return "this server has no peers"

    def noted(self, peer: int) -> tuple[int, int]:
        """Return the highest (incarnation, life) of a peer that was heard of."""
        return (0, 0)

    def link(self, peer: int, refused: bool) -> None:
        """Take note of whether a peer refuses connections."""

    def overtook(self, peer: int) -> bool:
        """Say whether the peer lacks entries that were given up, and no checkpoint of ours has them."""
        return False

    def heard_at(self, peer: int) -> float:
        """Return when this peer was last heard of."""
        return float("-inf")

    def reached(self, seconds: float, now: float) -> int:
        """Count the nodes that said something in these last seconds, this one included."""
        return 1

    @abstractmethod
    def report(self) -> Report:
        """Return the state of the node, for people."""
