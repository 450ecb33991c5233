"""Records what happens at this node, in memory, while somebody wants it; and looks into the journal."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from paxoskv.node.long_work import Work
from paxoskv.node.replica import Replica
from paxoskv.storage.files import Files
from paxoskv.storage.last_frames import last_records
from paxoskv.trace.events import Event, Trace
from paxoskv.trace.held import HeldEntries
from paxoskv.trace.recorder import Recorder
from paxoskv.wire.codec import NotDone
from paxoskv.wire.structs import Traced

PAGE: Final = 16 << 10  # characters of events in one answer, about: a millisecond of work
PIECE: Final = 100  # records of the journal that are looked at in one go


class Tracing:
    """The node's recording; while it is off, nothing is kept and nothing is done for it."""

    def __init__(self, replica: Replica, directory: Path) -> None:
        """`directory`: where the journal is."""
        self.replica = replica
        self.directory = directory
        self.trace = Trace(time.time)
        self.held: list[Event] = []  # what was read of the journal last

    def switch(self, on: bool, restarted: bool = False) -> None:
        """Begin anew, or stop; what was recorded before is gone. `restarted`: the process begins here."""
        if on and self.replica.recorder is None:
            self.trace = Trace(time.time)
            if restarted:
                self.trace.add(self.replica.core.me, "restart")
            self.replica.recorder = Recorder(self.trace, self.replica.core, brief=True)
        elif not on:
            self.replica.recorder = None
            self.trace = Trace(time.time)

    def after(self, last: int) -> Work:
        """The events after the one with this id, as many as fit an answer.

        A negative number asks for what the journal has, recorded or not: -1 for the beginning, and so on.
        """
        if last == -1:
            try:
                yield from self._read()
            except OSError as error:
                return NotDone(f"{error.filename}: {error.strerror}", False)
        if last >= 0:
            return self._page(self.trace.after(last), last)
        page = self._page(self.held[-last - 1 :], -last - 1)
        return page._replace(last=-page.last - 1)

    def _read(self) -> Work:
        """Look into the journal; two callers at the same time both read it."""
        entries, looked_at = HeldEntries(), 0
        for records in last_records(Files(), self.directory):
            entries.take(records)
            looked_at += len(records)
            if not records or looked_at > PIECE:
                looked_at = 0
                yield
        self.held = entries.events(self.replica.core, time.time())

    def _page(self, found: Iterable[Event], last: int) -> Traced:
        events: list[str] = []
        size = 0
        more = False
        for event in found:
            if size > PAGE:
                more = True
                break
            events.append(event.as_json())
            size += len(events[-1])
            last = event.id
        return Traced(self.replica.recorder is not None, "\n".join(events), last, more)
