"""The unreplicated core: journal, then apply, then answer. One writer, no peers, log 0.

Single stands beside the other core, not with the server: the process that makes a checkpoint needs one, too.
"""

from collections.abc import Collection, Sequence
from typing import Any

from paxoskv.multipaxos import Applied, Cut
from paxoskv.protocol.core import MANY, Core, Report
from paxoskv.protocol.outbox import Message, Ready
from paxoskv.wire.structs import Entry, Held, Identity, Origin, Record


class Single(Core):
    """The same service as Node's without replication, for comparison."""

    def __init__(self) -> None:
        self.me = 0
        self.quorum = 1
        self.clock = 0
        self._in_flight = 0
        self._ready = Ready()

    @property
    def ready(self) -> bool:
        return True

    @property
    def joined(self) -> bool:
        return True

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def has_room(self) -> bool:
        return True

    @property
    def gathers(self) -> bool:
        return False

    @property
    def batch(self) -> int:
        return MANY

    @property
    def busy(self) -> bool:
        return False

    @property
    def drained(self) -> bool:
        return True

    @property
    def turn_due(self) -> float | None:
        return None

    def replay(self, record: Record) -> None:
        if record.held:
            for entry in record.held.entries:
                self.clock = entry.timestamp
                self._ready.apply.append(Applied(entry.timestamp, 0, entry.payload, None))

    def install(self, cut: Cut, now: float = 0.0, number: int = 0) -> bool:
        """Recovery: take a checkpoint. What was replayed before is in it."""
        self.clock = cut.clock
        self._ready.apply.clear()
        return True

    def start(self, now: float) -> None:
        """Begin a life: what was replayed comes with the next drain()."""

    def state(self, pending: Sequence[Record] = ()) -> list[Record]:
        """Return the records that wait: what was journaled before them is in the checkpoint."""
        return list(pending)

    def notes(self) -> list[Record]:
        return []

    def cut(self) -> Cut:
        return Cut((self.clock, 0), {}, self.clock)

    def checkpointed(self, cut: Cut) -> None:
        """There is nothing to give up."""

    def step(self, sender: int, message: Message, now: float, call: Any = None) -> None:
        """Take our own message: the entry in it is durable."""
        self._in_flight -= 1
        self._ready.apply.append(message)

    def tick(self, now: float) -> None:
        """There is nothing to repeat, because there are no peers."""

    def origin(self) -> Origin | None:
        return None

    def propose(self, payload: bytes, token: Any) -> None:
        self.clock += 1
        self._in_flight += 1
        self._ready.journal.append(Record(held=Held(0, 0, self.clock - 1, [Entry(self.clock, payload)])))
        self._ready.send_after.append((0, Applied(self.clock, 0, payload, token), None))

    def read(self, token: Any) -> None:
        self._ready.reads.append(token)

    def forget_reads(self, tokens: Collection[Any]) -> None:
        """None waits: a read is answered in the turn in which it arrived."""

    def drain(self, now: float, more: bool = False) -> Ready:
        ready, self._ready = self._ready, Ready()
        return ready

    def hashed(self, position: tuple[int, int], rolling: int) -> None:
        """There is nobody to compare it with."""

    def identify(self, identity: Identity) -> Identity:
        return identity

    def greet(self, identity: Identity) -> str | None:
        return "this server has no peers"

    def refusal(self, identity: Identity) -> str | None:
        return "this server has no peers"

    def noted(self, peer: int) -> tuple[int, int]:
        return (0, 0)

    def link(self, peer: int, refused: bool) -> None:
        """There are no links."""

    def overtook(self, peer: int) -> bool:
        return False

    def heard_at(self, peer: int) -> float:
        return float("-inf")

    def reached(self, seconds: float, now: float) -> int:
        return 1

    def report(self) -> Report:
        return Report(self.clock, 1, 0, self._in_flight, 0, 0, frozenset(), 0, [], None, 0, (0, ""), {})
