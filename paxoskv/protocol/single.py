"""The unreplicated core: journal, then apply, then answer. One writer, no peers, log 0.

Single stands beside the other core, not with the server: the process that makes a checkpoint needs one, too.
"""

from typing import Any

from paxoskv.multipaxos import Applied, Cut
from paxoskv.protocol.core import Core, Report
from paxoskv.protocol.outbox import Message, Ready
from paxoskv.wire.structs import Entry, Held, Record


class Single(Core):
    """The same service as Node's without replication, for comparison."""

    def __init__(self) -> None:
        self.me = 0
        self.quorum = 1
        self.clock = 0
        self._in_flight = 0
        self._ready = Ready()

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def replay(self, record: Record) -> None:
        if record.held:
            for entry in record.held.entries:
                self.clock = entry.timestamp
                self._ready.apply.append(Applied(entry.timestamp, 0, entry.payload, None))

    def install(self, cut: Cut, now: float = 0.0, number: int = 0) -> bool:
        """Recovery: take a checkpoint. What was replayed before is in it; the rest comes with drain()."""
        self.clock = cut.clock
        self._ready.apply.clear()
        return True

    def cut(self) -> Cut:
        return Cut((self.clock, 0), {}, self.clock)

    def step(self, sender: int, message: Message, now: float, call: Any = None) -> None:
        """Take our own message: the entry in it is durable."""
        self._in_flight -= 1
        self._ready.apply.append(message)

    def propose(self, payload: bytes, token: Any) -> None:
        self.clock += 1
        self._in_flight += 1
        self._ready.journal.append(Record(held=Held(0, 0, self.clock - 1, [Entry(self.clock, payload)])))
        self._ready.send_after.append((0, Applied(self.clock, 0, payload, token), None))

    def read(self, token: Any) -> None:
        self._ready.reads.append(token)

    def drain(self, now: float, more: bool = False) -> Ready:
        ready, self._ready = self._ready, Ready()
        return ready

    def report(self) -> Report:
        return Report(self.clock, 1, 0, self._in_flight, 0, 0, frozenset(), 0, [], None, 0, (0, ""), {})
