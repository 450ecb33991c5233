"""The mark: a file that names the last frame which was durable when it was written.

    mark:  magic 8 | running number of a frame 8 | segment number 8 | the segment's check 4 | check 4

The mark is overwritten in place after each fdatasync and before write() returns. It survives the end of the
process at once, in the page cache. It becomes durable when the node is idle, see maintain(), or when the
kernel writes it; it is never durable before the frame that it names. So what a power cut leaves of it is a
lower bound, and the last frame before a power cut under load is as good as without it: a torn tail there and
a damaged sector there look the same. The mark bears the check of its segment: one of another directory is
noticed.
"""

import contextlib
import struct
import zlib
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from paxoskv.storage.files import Damaged, Files, Unreadable, make_file
from paxoskv.storage.segments import Segment

SYNCED: Final = "synced"
MARK: Final = struct.Struct(">8sQQI")
CHECK: Final = struct.Struct(">I")
MARK_MAGIC: Final = b"synced_1"


class Mark(NamedTuple):
    """How far the journal was durable: up to this frame, 0: none, which is in this segment."""

    number: int
    segment: int
    check: int  # of the segment


def mark_bytes(number: int, segment: int, check: int) -> bytes:
    """The content of the file `synced`. It lies in one sector, so no power cut can tear it."""
    content = MARK.pack(MARK_MAGIC, number, segment, check)
    return content + zlib.crc32(content).to_bytes(4, "big")


def read_mark(data: bytes) -> Mark | None:
    """The mark in the content of `synced`; None if it is none of this version."""
    if len(data) != MARK.size + CHECK.size:
        return None
    magic, *fields = MARK.unpack_from(data)
    (check,) = CHECK.unpack_from(data, MARK.size)
    return Mark(*fields) if magic == MARK_MAGIC and check == zlib.crc32(data[: MARK.size]) else None


def is_of_another_version(data: bytes) -> bool:
    """Whether this is an intact mark, but in a format that is not known here."""
    (check,) = CHECK.unpack(data[-CHECK.size :]) if len(data) >= CHECK.size else (-1,)
    same = data[: len(MARK_MAGIC)] == MARK_MAGIC
    return not same and data.startswith(MARK_MAGIC[:-1]) and check == zlib.crc32(data[: -CHECK.size])


def load_mark(files: Files, directory: Path) -> Mark | None:
    """The mark of a data directory; None if it is missing. Damaged if it cannot be read."""
    path = directory / SYNCED
    if not files.exists(path):
        return None
    data = files.read(path)
    mark = read_mark(data)
    if mark is None and is_of_another_version(data):
        raise Unreadable(path, 0, "is intact, but no mark of a version known here")
    if mark is None:
        raise Damaged(path, 0, "is no mark, or its check does not match: it was changed")
    return mark


def check_owner(mark: Mark | None, directory: Path, segment: Segment) -> None:
    """Damaged if the mark names this segment, but of another directory."""
    if mark is not None and mark.segment == segment.number and mark.check != segment.check:
        reason = f"names segment {segment.number} of another directory: it was not written by this journal"
        raise Damaged(directory / SYNCED, 0, reason)


def check_mark(
    mark: Mark | None, directory: Path, last: int, stop: tuple[Path, int], torn: tuple[Path, int] | None
) -> None:
    """Compare the mark with what a journal holds. Damaged if a frame that was durable cannot be read.

    last: the number of its last valid frame. stop: the file and offset where that ends. torn: where something
    that is no frame follows, if anything does.
    """
    if mark is None and torn:
        reason = (
            f"frame {last + 1} was never durable, or is damaged: {directory / SYNCED}, which would tell, is "
            "missing (data of a version that made no such file: start it once with that version)"
        )
        raise Unreadable(*torn, reason)
    if mark is not None and mark.number > last:
        reason = (
            f"frame {last + 1} cannot be read, but {directory / SYNCED} says that frame {mark.number} was "
            "durable: it is damaged, or this is a copy made while the node was running"
        )
        raise Damaged(*(torn or stop), reason)


class MarkFile:
    """The mark of a journal that is being written.

    A failure to write it is final, as one to write a frame is: OSError.
    """

    def __init__(self, files: Files, directory: Path) -> None:
        self._files = files
        self._path = directory / SYNCED
        self._handle: int | None = None
        self._last = 0  # the frame that it names
        self._seen = 0  # the frame that it named when maintain() looked last
        self._durable = 0  # the frame that it names durably, at least
        self._syncing: Future[None] | None = None  # it is being made durable

    def open(self, found: Mark | None, number: int, segment: Segment) -> None:
        """Begin to write it. Recovery found the one, if any; what the other names is durable now."""
        now = Mark(number, segment.number, segment.check)
        if found is None:  # data of an earlier version
            make_file(self._files, self._path, iter([mark_bytes(*now)]))
        self._handle = self._files.open(self._path)
        if found != now:
            self.set(number, segment)
        self._last = number

    def set(self, number: int, segment: Segment) -> None:
        """Name this frame of this segment. It is durable: what comes back now may be acknowledged."""
        assert self._handle is not None, "only an open mark is written"
        self._files.pwrite(self._handle, mark_bytes(number, segment.number, segment.check), 0)
        self._last = number

    def maintain(self) -> None:
        """About once a second: where nothing was written since the last call, begin to make it durable."""
        if self._syncing is not None and self._syncing.done():
            syncing, self._syncing = self._syncing, None
            syncing.result()
        idle = self._last == self._seen and self._last != self._durable
        if idle and self._syncing is None and self._handle is not None:
            self._durable = self._last
            self._syncing = self._files.background(partial(self._files.fdatasync, self._handle))
        self._seen = self._last

    def close(self) -> None:
        """Make it durable, and close it. Where that fails, it is as after a crash."""
        with contextlib.suppress(OSError):
            if self._syncing:
                self._syncing.result()
            if self._handle is not None:
                self._files.fdatasync(self._handle)
        if self._handle is not None:
            self._files.close(self._handle)
            self._handle = None
