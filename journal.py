"""What a node must not forget: the journal, and the identity of its data directory.

    DIR/
      lock                            flock: one process at a time
      identity.json                   who the node is; made by --init, last of all
      journal/0000000001.segment      frames, oldest first
      journal/0000000002.segment      the next segment, made ahead of need: a header, then zeros
      journal/0000000003.segment.new  not finished: removed by the next start

    segment:  magic 8 | segment number 8 | size of the file 8 | salt 8 | check 4 | frame | frame ... | zeros
    frame:    length of body 4 | running number 8 | segment number 8 | CRC-32 of body 4 | check 4 | body

Integers are big-endian. A body is an encoded struct Frame: the records of one turn of the event loop. A
segment's check is the CRC-32 of its header. A frame's check is that of its header, continued from the
segment's check: a frame is valid in its own segment only, and since the salt is random, nothing that a
client sends can look like a frame.

A segment gets its name when it is complete and durable, so its size and header are never in doubt. It is
filled with zeros, since an append that changes a file's size costs a metadata commit; it is never used
again. A frame that does not fit the rest of a segment begins the next one; a frame larger than a segment
gets one of its own size.

Torn or damaged. A frame is written only after the fdatasync of the one before has returned. So a power cut
can spoil the last frame and no other: what does not read as a frame, with no later frame behind it, is a
torn tail and is cut (overwritten with zeros, durably, before anything is written). A frame's header behind
it, even if that frame's body is itself torn, proves that more was durable once: that is damage, and never
cut. The header has a check of its own for this reason. A file that is shorter than it was made is damage as
well.

What recovery hands out must be durable, but a process that was killed may have left its last frame in the
page cache only, and after a failed fsync the kernel takes such pages for clean. So recovery writes the last
frame again, and syncs, before it hands it out.

    Journal.create(directory, identity)     # once: --init
    journal = Journal(directory)
    for records in journal.recover(): ...   # to its end
    journal.write(records)                  # durable when it returns
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from interface import Frame, Identity, Malformed, Record, decode, encode

SEGMENT_BYTES = 16 << 20  # a new segment is rare, and made in well under a second
ZEROS = bytes(1 << 20)  # synced piece by piece, so that no frame's fdatasync waits for a whole segment

MAGIC = b"journal1"  # the last character is the version of the format
SEGMENT = struct.Struct(">8sQQ8s")
HEADER = struct.Struct(">IQQI")
CHECK = struct.Struct(">I")
FIRST = SEGMENT.size + CHECK.size  # where a segment's first frame begins
OVERHEAD = HEADER.size + CHECK.size  # bytes of a frame before its body
SEGMENT_NUMBER = struct.Struct(">Q")
SEGMENT_NUMBER_AT = 12  # its offset in HEADER

FORMAT = 1  # of identity.json
NEVER = sys.maxsize

T = TypeVar("T")


class JournalError(Exception):
    """The data directory cannot be used as it is. One line that names the file and the reason."""


class Locked(JournalError):
    """Another process uses the data directory."""


class Damaged(JournalError):
    """What was durable once cannot be read any more. Nothing was cut."""

    def __init__(self, path: Path, offset: int, reason: str) -> None:
        super().__init__(f"{path}: offset {offset}: {reason}")
        self.path = path
        self.offset = offset


# --------------------------------------------------------------------------------- bytes: segments and frames


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of the journal. `check` is that of its header, from which those of its frames continue."""

    number: int
    size: int
    check: int


class Scan(NamedTuple):
    """What a segment holds, from the frame on that was expected."""

    frames: list[tuple[int, int]]  # where each valid frame begins and ends
    stop: int  # where the frame behind them would begin
    end: int  # from here on there are zeros only
    stray: int | None  # the first header at or behind `stop` of another frame than the one that belongs there


def segment_header(number: int, size: int, salt: bytes) -> bytes:
    """The first bytes of a segment. The salt has 8 bytes."""
    header = SEGMENT.pack(MAGIC, number, size, salt)
    return header + CHECK.pack(zlib.crc32(header))


def read_segment_header(data: bytes) -> Segment | None:
    """The segment that begins with these bytes; None if they are no segment's header of this version."""
    if len(data) < FIRST:
        return None
    magic, number, size, _ = SEGMENT.unpack_from(data)
    (check,) = CHECK.unpack_from(data, SEGMENT.size)
    if magic != MAGIC or check != zlib.crc32(data[: SEGMENT.size]):
        return None
    return Segment(number, size, check)


def frame(body: bytes, number: int, segment: Segment) -> bytes:
    """The bytes of one frame. struct.error if the body has 4 GiB or more."""
    header = HEADER.pack(len(body), number, segment.number, zlib.crc32(body))
    return header + CHECK.pack(zlib.crc32(header, segment.check)) + body


def read_frame_header(data: bytes, offset: int, segment: Segment) -> tuple[int, int, int] | None:
    """Running number, end of the frame, CRC-32 of the body; None if no frame of this segment begins here."""
    if offset + OVERHEAD > len(data):
        return None
    length, number, in_segment, body_check = HEADER.unpack_from(data, offset)
    (check,) = CHECK.unpack_from(data, offset + HEADER.size)
    if in_segment != segment.number:
        return None
    if check != zlib.crc32(data[offset : offset + HEADER.size], segment.check):
        return None
    return number, offset + OVERHEAD + length, body_check


def scan(data: bytes, segment: Segment, expected: int) -> Scan:
    """Read a segment whose first frame should have the running number `expected`."""
    view = memoryview(data)
    frames = []
    offset = FIRST
    while header := read_frame_header(data, offset, segment):
        number, end, body_check = header
        intact = end <= len(data) and zlib.crc32(view[offset + OVERHEAD : end]) == body_check
        if number != expected or not intact:
            break
        frames.append((offset, end))
        offset = end
        expected += 1
    used = max(offset, without_zeros(data))
    return Scan(frames, offset, used, find_stray(data, segment, offset, used, expected))


def without_zeros(data: bytes) -> int:
    """How long the data is without the zeros at its end. (Piece by piece: rstrip looks at each byte.)"""
    end = len(data)
    while end >= len(ZEROS) and data[end - len(ZEROS) : end] == ZEROS:
        end -= len(ZEROS)
    return len(data[:end].rstrip(b"\0"))


def find_stray(data: bytes, segment: Segment, start: int, end: int, expected: int) -> int | None:
    """Where the first frame header from `start` on lies, not counting that of frame `expected` at `start`.

    `end` is where the zeros begin: not in a header before its check, which is zero once in 2^32 frames.
    """
    pattern = SEGMENT_NUMBER.pack(segment.number)
    found = data.find(pattern, start + SEGMENT_NUMBER_AT, end)
    while found >= 0:
        offset = found - SEGMENT_NUMBER_AT
        header = read_frame_header(data, offset, segment)
        if header and not (offset == start and header[0] == expected):
            return offset
        found = data.find(pattern, found + 1, end)
    return None


def read_records(data: bytes, start: int, end: int) -> list[Record]:
    """The records of a valid frame. Malformed if another version of this program must have written it."""
    records: list[Record] | None = decode(Frame, data[start + OVERHEAD : end]).records
    if records is None or any(record.count(None) != len(record) - 1 for record in records):
        raise Malformed("Frame: a record without exactly one field that is known here")
    return records


# --------------------------------------------------------------------------------------------------- identity


def identity_json(identity: Identity) -> str:
    """The content of identity.json. Its crc32 is that of the encoded struct: so accidents are noticed."""
    content = {
        "format": FORMAT,
        "cluster": identity.cluster,
        "digest": identity.digest,
        "node": identity.node,
        "incarnation": identity.incarnation,
        "crc32": zlib.crc32(encode(identity)),
    }
    return json.dumps(content, indent=2) + "\n"


def read_identity(data: bytes) -> Identity:
    """The identity in the content of identity.json. ValueError, its reason in one line, if there is none."""
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError("is not a JSON object")
    if content.get("format") != FORMAT:
        raise ValueError(f"format: {content.get('format')!r:.40} is not {FORMAT}, the only one known here")
    types = {"format": int, "cluster": str, "digest": str, "node": int, "incarnation": int, "crc32": int}
    if unknown := sorted(set(content) - set(types)):
        raise ValueError(f"{unknown[0]!r:.40}: unknown field")
    for name, kind in types.items():
        if type(content.get(name)) is not kind:
            raise ValueError(f"{name}: missing, or not of type {kind.__name__}")
    identity = Identity(content["cluster"], content["digest"], content["node"], content["incarnation"], 0)
    try:
        check = zlib.crc32(encode(identity))
    except (OverflowError, ValueError) as error:  # a number that does not fit, half a surrogate pair
        raise ValueError(f"holds what no identity holds: {error}") from error
    if check != content["crc32"]:
        raise ValueError("crc32: does not match the other fields: the file was changed")
    return identity


# --------------------------------------------------------------------------------------------------- the disk


class Files:
    """All that the journal asks of the operating system. A test puts a simulated disk in its place.

    Every method may raise OSError. Handles are integers.
    """

    def exists(self, path: Path) -> bool:
        """Whether there is a file or directory of this name."""
        return path.exists()

    def names(self, directory: Path) -> list[str]:
        """The names in a directory, in no order."""
        return os.listdir(directory)

    def read(self, path: Path) -> bytes:
        """The whole file."""
        return path.read_bytes()

    def make_directory(self, path: Path) -> None:
        """Make a directory; its parent must exist. Durable after sync_directory of the parent."""
        path.mkdir(mode=0o700)

    def open(self, path: Path) -> int:
        """Open an existing file for writing."""
        return os.open(path, os.O_RDWR)

    def create(self, path: Path) -> int:
        """Make a new file and open it for writing."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        """Write all of the data at the offset."""
        written = os.pwrite(handle, data, offset)
        while written < len(data):
            more = os.pwrite(handle, data[written:], offset + written)
            if more == 0:
                raise OSError(errno.EIO, "a write wrote nothing")
            written += more

    def fdatasync(self, handle: int) -> None:
        """Make the file's content, and its size, durable."""
        os.fdatasync(handle)

    def close(self, handle: int) -> None:
        """Close a file; a lock that it carries is released."""
        os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, within one directory, in one step. Durable after sync_directory."""
        os.rename(old, new)

    def remove(self, path: Path) -> None:
        """Remove a file. Durable after sync_directory."""
        os.unlink(path)

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable."""
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def lock(self, path: Path) -> int:
        """Lock the file (made if need be) until closed or the process ends. BlockingIOError if taken."""
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(handle)
            raise
        return handle

    def salt(self) -> bytes:
        """8 bytes that nobody can guess."""
        return os.urandom(8)

    def background(self, work: Callable[[], T]) -> Callable[[], T]:
        """Begin some work beside the caller's. What is returned waits for its result, or raises its error."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # not lost: it is raised where the result is asked for
                future.set_exception(error)

        threading.Thread(target=run, name="journal", daemon=True).start()
        return future.result


def make_file(files: Files, path: Path, pieces: Iterator[bytes]) -> None:
    """Write a file that has its name only once it is whole and durable."""
    unfinished = path.with_name(path.name + ".new")
    handle = files.create(unfinished)
    try:
        offset = 0
        for piece in pieces:
            files.pwrite(handle, piece, offset)
            files.fdatasync(handle)
            offset += len(piece)
    finally:
        files.close(handle)
    files.rename(unfinished, path)
    files.sync_directory(path.parent)


def zeros(count: int) -> Iterator[bytes]:
    """That many zero bytes, in pieces."""
    for start in range(0, count, len(ZEROS)):
        yield ZEROS[: count - start]


def segment_path(journal: Path, number: int) -> Path:
    """The file of a segment."""
    return journal / f"{number:010}.segment"


def make_segment(files: Files, journal: Path, number: int, size: int) -> Segment:
    """Make an empty segment, durably. It is there with its whole size or not at all."""
    header = segment_header(number, size, files.salt())

    def pieces() -> Iterator[bytes]:
        yield header
        yield from zeros(size - len(header))

    make_file(files, segment_path(journal, number), pieces())
    segment = read_segment_header(header)
    assert segment is not None, "a header that this process made"
    return segment


# ------------------------------------------------------------------------------------------------ the journal


class Journal:
    """The journal of one node, in a data directory that `create` made.

    Used by one thread at a time: `recover` to its end, then `write`, at last `close`.
    """

    @classmethod
    def create(
        cls,
        directory: Path,
        identity: Identity,
        segment_bytes: int = SEGMENT_BYTES,
        files: Files | None = None,
    ) -> None:
        """Make a data directory, durably. JournalError if it exists and is not empty.

        The identity comes last: what a crash leaves half made is no data directory, and refused until
        removed.
        """
        files = files or Files()
        if segment_bytes < FIRST:
            raise ValueError(f"segment_bytes: {segment_bytes} is less than a segment's header")
        try:
            if files.exists(directory) and (names := files.names(directory)):
                reason = "is a data directory already" if "identity.json" in names else "is not empty"
                raise JournalError(f"{directory}: {reason}: --init overwrites nothing")
            missing = [path for path in (directory, *directory.parents) if not files.exists(path)]
            for path in reversed(missing):
                # Nodes that are started together on one machine share the parent, and one of them is first.
                with contextlib.suppress(FileExistsError):
                    files.make_directory(path)
                files.sync_directory(path.parent)
            files.sync_directory(directory.parent)  # also if somebody else has just made the directory
            journal = directory / "journal"
            files.make_directory(journal)  # of two processes that make one data directory, one fails here
            make_segment(files, journal, 1, segment_bytes)
            files.sync_directory(directory)  # an identity must never be there without its journal
            make_file(files, directory / "identity.json", iter([identity_json(identity).encode()]))
        except OSError as error:
            raise JournalError(f"{directory}: {error.strerror or error}") from error

    def __init__(
        self,
        directory: Path,
        segment_bytes: int = SEGMENT_BYTES,
        sync: bool = True,
        files: Files | None = None,
    ) -> None:
        """Lock the directory and read its identity. Locked or JournalError if that fails; nothing is held.

        segment_bytes: size of the segments made from now on. sync=False: write() leaves out its fdatasync,
        and nothing is durable; for measurements only.
        """
        self._files = files or Files()
        self._journal = directory / "journal"
        self._segment_bytes = segment_bytes
        self._sync = sync
        self.bytes = 0  # of all frames, those recovered included
        self.torn: str | None = None  # what recovery cut, and where; one line
        self._ready = False  # recovered, not closed, and no write has failed
        self._handle: int | None = None  # of the segment that is written to
        self._segment = Segment(0, 0, 0)
        self._offset = 0  # in it, of the next frame
        self._number = 1  # of the next frame
        self._newest = 0  # the highest segment number in use, also of a segment in the making
        self._spares: list[Segment] = []  # empty segments behind the one that is written to
        self._making: Callable[[], Segment] | None = None  # waits for the spare that is being made
        self._make_at = NEVER  # from this offset on the next segment is made
        self._lock: int | None = None
        self.identity = self._take(directory)

    def _take(self, directory: Path) -> Identity:
        """Lock the directory, then read who we are."""
        files = self._files
        path = directory / "identity.json"
        try:
            if not files.exists(path):  # asked first: not even a lock is left in a directory that is not ours
                raise JournalError(f"{path}: missing: this is no data directory (--init makes one)")
            self._lock = files.lock(directory / "lock")
            return read_identity(files.read(path))
        except BlockingIOError as error:
            raise Locked(f"{directory / 'lock'}: another process uses this data directory") from error
        except ValueError as error:
            self.close()
            raise JournalError(f"{path}: {error}") from error
        except OSError as error:
            self.close()
            raise JournalError(f"{error.filename or path}: {error.strerror or error}") from error

    def recover(self) -> Iterator[list[Record]]:
        """The records of every frame, oldest first. At the end a torn tail is cut and the journal ready.

        Everything handed out is durable. Damaged may come late: act on nothing before the end. OSError if the
        disk fails.
        """
        files = self._files
        numbers = self._find_segments()
        suspect: tuple[Path, int] | None = None  # where something that is no frame follows the last valid one
        cuts: list[tuple[Segment, Scan]] = []
        for number in numbers:
            segment, data = self._read_segment(number)
            path = segment_path(self._journal, number)
            found = scan(data, segment, self._number)
            if found.frames:
                suspect = None
                cuts = []
                self._spares = []
            if found.end > found.stop:
                suspect = suspect or (path, found.stop)
                cuts.append((segment, found))
            if found.stray is not None:
                lost = self._number + len(found.frames)
                reason = f"frame {lost} is damaged, for a later one is at {path}: offset {found.stray}"
                raise Damaged(*(suspect or (path, found.stop)), reason)
            if found.frames or number == 1:
                self._segment, self._offset = segment, found.stop
            else:
                self._spares.append(segment)
            if found.frames:
                self._write_again(path, data, *found.frames[-1])
            yield from self._hand_out(path, data, found.frames)
        for segment, found in cuts:
            self._cut(segment, found)
        self._newest = numbers[-1]
        self._handle = files.open(segment_path(self._journal, self._segment.number))
        self._make_at = NEVER if self._spares else self._segment.size // 2
        self._ready = True

    def _find_segments(self) -> list[int]:
        """The numbers of all segments, in order; what was not finished is removed."""
        files = self._files
        if not files.exists(self._journal):
            raise Damaged(self._journal, 0, "the directory is missing")
        names = files.names(self._journal)
        for name in names:
            if name.endswith(".segment.new"):
                files.remove(self._journal / name)
        files.sync_directory(self._journal)  # a process that was killed may have left names not durable
        numbers = sorted(int(name[:10]) for name in names if re.fullmatch(r"[0-9]{10}\.segment", name))
        for present, number in enumerate(numbers, start=1):
            if present != number:
                raise Damaged(segment_path(self._journal, present), 0, "the segment is missing")
        if not numbers:
            raise Damaged(segment_path(self._journal, 1), 0, "the segment is missing, and there is no other")
        return numbers

    def _read_segment(self, number: int) -> tuple[Segment, bytes]:
        """A segment and its bytes, which have the size that its header says."""
        path = segment_path(self._journal, number)
        data = self._files.read(path)
        segment = read_segment_header(data)
        if segment is None or segment.number != number:
            raise Damaged(path, 0, f"no valid header of segment {number} of this version")
        if segment.size != len(data):
            offset = min(segment.size, len(data))
            raise Damaged(path, offset, f"{len(data)} bytes long, but made with {segment.size}")
        return segment, data

    def _write_again(self, path: Path, data: bytes, start: int, end: int) -> None:
        """Make the last frame of a segment durable, whatever the kernel thinks of its pages."""
        handle = self._files.open(path)
        try:
            self._files.pwrite(handle, data[start:end], start)
            self._files.fdatasync(handle)
        finally:
            self._files.close(handle)

    def _hand_out(self, path: Path, data: bytes, frames: list[tuple[int, int]]) -> Iterator[list[Record]]:
        for start, end in frames:
            try:
                records = read_records(data, start, end)
            except Malformed as error:
                raise Damaged(path, start, f"frame {self._number} is intact, but {error}") from error
            self._number += 1
            self.bytes += end - start
            yield records

    def _cut(self, segment: Segment, found: Scan) -> None:
        """Overwrite a torn tail with zeros, durably: nothing of it may show beside what comes next."""
        path = segment_path(self._journal, segment.number)
        handle = self._files.open(path)
        try:
            offset = found.stop
            for piece in zeros(found.end - found.stop):
                self._files.pwrite(handle, piece, offset)
                offset += len(piece)
            self._files.fdatasync(handle)
        finally:
            self._files.close(handle)
        length = found.end - found.stop
        cut = f"{path}: offset {found.stop}: cut {length} bytes of frame {self._number}, which was torn"
        self.torn = f"{self.torn}; {cut}" if self.torn else cut

    def write(self, records: list[Record]) -> None:
        """Append one frame; durable when this returns. Blocks for as long as the disk takes.

        OSError is final: whether the frame will be there after a restart nobody knows, and the journal
        takes no further one (JournalError). ValueError, TypeError or OverflowError: the records do not fit
        their types, and nothing was written.
        """
        body = encode(Frame(records))
        if not self._ready:
            raise JournalError(f"{self._journal}: not recovered, or closed, or an earlier write failed")
        self._ready = False
        length = OVERHEAD + len(body)
        if self._offset + length > self._segment.size:
            self._roll(length)
        handle = self._handle
        assert handle is not None, "ready without an open segment"
        self._files.pwrite(handle, frame(body, self._number, self._segment), self._offset)
        if self._sync:
            self._files.fdatasync(handle)
        self._offset += length
        self._number += 1
        self.bytes += length
        if self._offset >= self._make_at:
            self._make_next()
        self._ready = True

    def _make_next(self) -> None:
        """Begin to make the next segment, while there is room for some time in this one."""
        self._make_at = NEVER
        self._newest += 1
        number = self._newest
        self._making = self._files.background(
            lambda: make_segment(self._files, self._journal, number, self._segment_bytes)
        )

    def _roll(self, length: int) -> None:
        """Go on in the next segment with room for so many bytes; smaller ones before it stay empty."""
        if self._making:
            making, self._making = self._making, None
            self._spares.append(making())
        while self._spares and FIRST + length > self._spares[0].size:
            del self._spares[0]
        if not self._spares:
            self._newest += 1
            size = max(self._segment_bytes, FIRST + length)
            self._spares.append(make_segment(self._files, self._journal, self._newest, size))
        handle = self._files.open(segment_path(self._journal, self._spares[0].number))
        if self._handle is not None:
            self._files.close(self._handle)
        self._handle = handle
        self._segment = self._spares.pop(0)
        self._offset = FIRST
        self._make_at = NEVER if self._spares else self._segment.size // 2

    def close(self) -> None:
        """Give up the lock. Waits for a segment in the making; its failure no longer matters."""
        self._ready = False
        if self._making:
            making, self._making = self._making, None
            with contextlib.suppress(OSError):  # what it left behind is removed by the next start
                making()
        for handle in (self._handle, self._lock):
            if handle is not None:
                self._files.close(handle)
        self._handle = self._lock = None
