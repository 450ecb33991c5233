"""Records what happens at this node, in memory, while somebody wants it."""

import time
from typing import Final

from paxoskv.node.replica import Replica
from paxoskv.trace.events import Trace
from paxoskv.trace.recorder import Recorder
from paxoskv.wire.structs import Traced

PAGE: Final = 16 << 10  # characters of events in one answer, about: a millisecond of work


class Tracing:
    """The node's recording; while it is off, nothing is kept and nothing is done for it."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.trace = Trace(time.time)

    def switch(self, on: bool) -> None:
        """Begin anew, or stop; what was recorded before is gone."""
        if on and self.replica.recorder is None:
            self.trace = Trace(time.time)
            self.replica.recorder = Recorder(self.trace, self.replica.core, brief=True)
        elif not on:
            self.replica.recorder = None
            self.trace = Trace(time.time)

    def after(self, last: int) -> Traced:
        """The events after the one with this id, as many as fit an answer."""
        events: list[str] = []
        size = 0
        for event in self.trace.after(last):
            if size > PAGE:
                break
            events.append(event.as_json())
            size += len(events[-1])
            last = event.id
        return Traced(self.replica.recorder is not None, "\n".join(events), last, last < self.trace.last)
