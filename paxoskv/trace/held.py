"""What a node's journal tells of the last entries: how a value was chosen that nobody has recorded."""

from collections import deque
from collections.abc import Iterable
from typing import Final

from paxoskv.multipaxos import Acceptor, Learner
from paxoskv.protocol.core import Core
from paxoskv.trace.events import Event, kept
from paxoskv.wire.codec import decode
from paxoskv.wire.structs import Batch, Entry, Record

HELD: Final = 1000  # entries, at most


class HeldEntries:
    """The last entries with commands that a journal has, with the ballot at which each was accepted."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, int, int], None] = {}  # (log, slot, ballot)
        self.rows: deque[tuple[int, int, int, Entry]] = deque(maxlen=HELD)

    def take(self, records: Iterable[Record]) -> None:
        """Take the records of a frame; they come in the order in which they were written."""
        for record in records:
            if record.held is None:
                continue
            log, ballot, start, entries = record.held
            for slot, entry in enumerate(entries, start):
                if entry.payload and (log, slot, ballot) not in self.found:
                    self.found[log, slot, ballot] = None
                    self.rows.append((log, slot, ballot, entry))

    def events(self, core: Core, now: float) -> list[Event]:
        """A `held` event for each of them, with what the node knows of it now."""
        acceptors: dict[int, Acceptor] = getattr(core, "acceptors", {})  # a core without peers has none
        learner: Learner | None = getattr(core, "learner", None)
        events = []
        for number, (log, slot, ballot, entry) in enumerate(self.rows, 1):
            chosen = log in acceptors and slot < acceptors[log].chosen
            applied = learner is not None and slot < learner.logs[log].executed
            about = {
                "entries": kept([entry]), "by": proposer(log, entry), "length": slot + 1 if chosen else 0,
                "applied": applied,
            }  # fmt: skip
            events.append(Event(number, now, core.me, "held", 0, log, slot, ballot, about))
        return events


def proposer(log: int, entry: Entry) -> int:
    """The node that proposed an entry: the log's owner, or, where all share one log, whom the entry names."""
    origin = decode(Batch, entry.payload).origin
    return origin.node if origin is not None else log
