"""The journal's writer: in the event loop while the disk is fast, in a thread of its own while it is slow."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final, NoReturn

from paxoskv.node.eventlog import EXIT_BUG, EXIT_DISK, end, log
from paxoskv.node.metrics import Histogram
from paxoskv.storage.files import Full, JournalError
from paxoskv.storage.journal import Journal
from paxoskv.wire.structs import Record

STALL: Final = 0.05  # seconds: a frame that takes longer keeps the node from gossiping in time
SLOW: Final = 0.003  # seconds for a frame, on average: the event loop has better things to do meanwhile
WARY_FOR: Final = 60.0  # seconds for which the thread writes after a stall
SLOW_FOR: Final = 5.0  # seconds for which it writes after the average was slow
ROOM_AGAIN: Final = 1.0  # seconds: a full disk is looked at again


@dataclass(slots=True, eq=False)
class Waiting:
    """What Replica hands over to be written."""

    records: list[Record]
    done: Callable[[], None]
    new_segment: bool


class Writer:
    """Writes one frame of the journal after the other.

    A thread costs two switches and several wake-ups for each frame, more than a fast fdatasync takes. A slow
    one would keep the node from gossiping: after a stall, and while they are slow, the thread has them.

    A frame for which there is no room waits until there is: to the rest of the node, the disk hangs.
    """

    def __init__(self, journal: Journal, loop: asyncio.AbstractEventLoop, took: Histogram) -> None:
        """`took` counts how long frames took, in microseconds."""
        self.journal = journal
        self.took = took
        self.loop = loop
        self.frame: Waiting | None = None  # not begun
        self.threaded = False  # the thread has a frame, and the journal with it
        self.full: str | None = None  # why there is no room, as last seen
        self.average = 0.0  # seconds that the last frames took
        self.slow_until = 0.0
        self.room_at = 0.0  # when to look for room again
        self.frames: SimpleQueue[Waiting | None] = SimpleQueue()
        self.thread: threading.Thread | None = None

    def start(self, finished: Callable[[Callable[[], None]], None]) -> None:
        """Start the thread. `finished` gets, in the event loop, the `done` of a frame that it has written."""
        self.thread = threading.Thread(target=self._run, args=(finished,), name="journal", daemon=True)
        self.thread.start()

    def write(self, records: list[Record], done: Callable[[], None], new_segment: bool) -> None:
        """Hand in one frame; work() writes it, when what may leave before it is durable has left."""
        self.frame = Waiting(records, done, new_segment)

    def work(self) -> Callable[[], None] | None:
        """Write the frame; return its `done` if that is to be called now.

        None if `finished` will get it; or if there is no room: then the frame is tried again later.
        """
        frame = self.frame
        if frame is None or (now := self.loop.time()) < self.room_at:
            return None
        self.frame = None
        if now < self.slow_until:
            self.threaded = True
            self.frames.put(frame)
            return None
        if self._write(frame):
            return frame.done
        self.frame = frame
        return None

    def maintain(self) -> None:
        """Do about once a second what the journal's next segment needs.

        Take it if it is made; try again to make it if there was no room.
        """
        if not self.threaded:
            try:
                self.journal.maintain()
            except (OSError, JournalError) as error:
                disk_failed(error)
            self._look_at_room()

    def prepare(self) -> bool:
        """Have the next segment made, in the background; return whether it is there.

        Then a frame can begin it without making the event loop wait.
        """
        self.maintain()
        if self.threaded or self.journal.full:
            return False
        if not self.journal.has_spare:
            self.journal.prepare()
            return False
        return True

    def stop(self) -> None:
        """Finish what was begun."""
        self.frames.put(None)
        if self.thread:
            self.thread.join()

    def _run(self, finished: Callable[[Callable[[], None]], None]) -> None:
        while (frame := self.frames.get()) is not None:
            try:
                written = self._write(frame)
            except BaseException as error:  # this thread must not die alone: nobody would vote any more
                end(EXIT_BUG, "bug", reason=f"{type(error).__name__}: {error}")
            self.loop.call_soon_threadsafe(self._returned, frame, written, finished)

    def _returned(
        self, frame: Waiting, written: bool, finished: Callable[[Callable[[], None]], None]
    ) -> None:
        self.threaded = False
        if written:
            finished(frame.done)
        else:
            self.frame = frame

    def _write(self, frame: Waiting) -> bool:
        """True: it is durable; False: there is no room for it."""
        begun = time.perf_counter()
        try:
            self.journal.write(frame.records, frame.new_segment)
        except Full:
            self.room_at = self.loop.time() + ROOM_AGAIN
            return False
        except (OSError, JournalError) as error:
            disk_failed(error)
        took = time.perf_counter() - begun
        self.took.add(int(took * 1e6))
        self.average += (took - self.average) / 16
        if took > STALL:
            self.slow_until = self.loop.time() + WARY_FOR
            log("disk-stalled", "warning", seconds=round(took, 3))
        elif self.average > SLOW:
            self.slow_until = max(self.slow_until, self.loop.time() + SLOW_FOR)
        return True

    def _look_at_room(self) -> None:
        if self.journal.full != self.full:
            self.full = self.journal.full
            if self.full:
                log("disk-full", "warning", reason=self.full)
            else:
                log("disk-has-room")


def disk_failed(error: OSError | JournalError) -> NoReturn:
    """End the process at once: nobody knows what is on the disk now."""
    end(EXIT_DISK, "disk-failed", reason=error)
