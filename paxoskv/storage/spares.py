"""Segments made ahead of need, so that no frame waits for one to be made."""

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path

from paxoskv.storage.files import NO_ROOM, Files, Full
from paxoskv.storage.segments import FIRST, Segment, make_segment, segment_path


class Spares:
    """The empty segments behind the one that is written to, and the one that is being made.

    Each method may raise Full: there is no room now, and nothing has happened; or any other OSError: final.
    """

    def __init__(self, files: Files, journal: Path, segment_bytes: int) -> None:
        self._files = files
        self._journal = journal
        self._segment_bytes = segment_bytes
        self.empty: list[Segment] = []
        self.newest = 0  # the highest segment number in use
        self.making: Future[Segment] | None = None  # the segment after that
        self.full: str | None = None  # why there is no room for it, as far as is known

    def begin(self) -> None:
        """Begin to make one, unless one is there or being made."""
        if not self.empty and self.making is None:
            number = self.newest + 1
            self.making = self._files.background(
                partial(make_segment, self._files, self._journal, number, self._segment_bytes)
            )

    def poll(self) -> None:
        """Take the one that was made, or notice that there was no room: while what is under way still fits.

        Other errors are for whoever needs the segment.
        """
        if self.making is not None and self.making.done():
            error = self.making.exception()
            if error is None or (isinstance(error, OSError) and error.errno in NO_ROOM):
                with suppress(Full):
                    self._take()

    def maintain(self) -> None:
        """Take the one that was made; where there was no room, try again."""
        if self.making is not None and self.making.done():
            with suppress(Full):
                self._take()
        elif self.full and self.making is None:
            self.begin()

    def next(self, length: int) -> tuple[Segment, int]:
        """The next segment with room for so many bytes, and its handle; smaller ones before it stay empty."""
        self._skip_small(length)
        if not self.empty and self.making:
            self._take()
            self._skip_small(length)
        if not self.empty:
            number, size = self.newest + 1, max(self._segment_bytes, FIRST + length)
            self.empty.append(self._made(partial(make_segment, self._files, self._journal, number, size)))
        handle = self._opened(self.empty[0].number)
        return self.empty.pop(0), handle

    def close(self) -> None:
        """Wait for the one in the making. What a failure leaves behind is removed by the next start."""
        if self.making:
            making, self.making = self.making, None
            with suppress(OSError):
                making.result()

    def _take(self) -> None:
        """Wait for the segment in the making."""
        assert self.making is not None, "only what was begun is waited for"
        making, self.making = self.making, None
        self.empty.append(self._made(making.result))

    def _made(self, make: Callable[[], Segment]) -> Segment:
        """A new segment, with the number above all others. Only what became of it decides about `full`."""
        try:
            segment = make()
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self.full = error.strerror
            # It is tried again and again: each traceback would keep a frame alive until it is collected.
            error.__traceback__ = None
            room = f"no room for the next segment, {self._segment_bytes >> 20} MiB"
            raise Full(f"{self._journal}: {room}: {error.strerror}") from error
        self.newest += 1
        self.full = None
        return segment

    def _opened(self, number: int) -> int:
        """A segment, opened to be written."""
        try:
            handle = self._files.open(segment_path(self._journal, number))
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self.full = error.strerror
            raise Full(f"{self._journal}: segment {number} cannot be opened: {error.strerror}") from error
        self.full = None
        return handle

    def _skip_small(self, length: int) -> None:
        """Pass over empty segments in which there is no room for so many bytes."""
        while self.empty and FIRST + length > self.empty[0].size:
            del self.empty[0]
