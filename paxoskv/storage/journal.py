"""What a node must not forget: the journal, and the identity of its data directory.

    DIR/
      lock                            flock: one process at a time
      identity.json                   who the node is; made by --init, last of all
      manifest.json                   which checkpoint (see checkpoint.py) the journal stands on; absent: none
      synced                          the mark: which frame was durable when it was last written
      journal/0000000001.segment      frames, oldest first
      journal/0000000002.segment      the next segment, made ahead of need: a header, then zeros
      journal/0000000003.segment.new  not finished: removed by the next start

    segment:  magic 8 | segment number 8 | size of the file 8 | salt 8 | check 4 | frame | frame ... | zeros
    frame:    length of body 4 | running number 8 | segment number 8 | CRC-32 of body 4 | check 4 | body
    mark:     magic 8 | running number of a frame 8 | segment number 8 | the segment's check 4 | check 4

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
torn tail and is cut (overwritten with zeros, durably, before anything is written). Two things prove that a
frame which cannot be read was durable once, and so may have been acknowledged. That is damage, and never cut:

    a frame's header behind it, even if that frame's body is itself torn (the header has its own check)
    the mark, which names it or a later one

The mark is overwritten in place after each fdatasync and before write() returns. It survives the end of the
process at once, in the page cache. It becomes durable when the node is idle, see maintain(), or when the
kernel writes it; it is never durable before the frame that it names. So what a power cut leaves of it is a
lower bound, and the last frame before a power cut under load is as good as without it: a torn tail there and
a damaged sector there look the same. The mark bears the check of its segment: one of another directory is
noticed. A file that is shorter than it was made is damage as well.

The manifest names the segment and the frame, the first one in it, from which the journal is replayed on top
of its checkpoint. Segments before that one are not looked at: they are deleted, but only when the manifest is
durable, and whatever part of them a crash leaves is deleted later.

A full disk is noticed before it is reached: the next segment is made while half of this one is free. While
that fails for want of room, `full` says so, and it is tried again by every maintain(); the frames that still
fit are written. A frame that does not fit raises Full, with nothing written and nothing lost: the same frame
may be handed in again.

What recovery hands out must be durable, but a process that was killed may have left its last frame in the
page cache only, and after a failed fsync the kernel takes such pages for clean. So recovery writes the last
frame again, and syncs, before it hands it out.

    Journal.create(directory, identity)     # once: --init
    journal = Journal(directory)
    for records in journal.recover(): ...   # to its end
    journal.write(records)                  # durable when it returns
    journal.maintain()                      # about once a second
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
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from pickledb import PickleDB

from paxoskv.wire.codec import Malformed, decode, encode
from paxoskv.wire.structs import Frame, Identity, Record

SEGMENT_BYTES: Final = 16 << 20  # a new segment is rare, and made in well under a second
ZEROS: Final = bytes(1 << 20)  # synced piece by piece, so that no frame's fdatasync waits for a whole segment

MANIFEST: Final = "manifest.json"
SYNCED: Final = "synced"
MAGIC: Final = b"journal1"  # the last character is the version of the format
SEGMENT: Final = struct.Struct(">8sQQ8s")
HEADER: Final = struct.Struct(">IQQI")
CHECK: Final = struct.Struct(">I")
FIRST: Final = SEGMENT.size + CHECK.size  # where a segment's first frame begins
OVERHEAD: Final = HEADER.size + CHECK.size  # bytes of a frame before its body
SEGMENT_NUMBER: Final = struct.Struct(">Q")
SEGMENT_NUMBER_AT: Final = 12  # its offset in HEADER
MARK: Final = struct.Struct(">8sQQI")
MARK_MAGIC: Final = b"synced_1"

FORMAT: Final = 1  # of identity.json and manifest.json
NEVER: Final = sys.maxsize
# Errors that pass: when somebody removes something, or closes it.
NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)

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
        self.reason = reason


class Unreadable(Damaged):
    """Nobody knows that it is lost: another version of this program wrote it, or all of it is missing, as on
    a disk that is not mounted. Not to be given up without asking.
    """


class Full(JournalError):
    """There is no room on the disk for one more frame. Nothing was written: the journal is as it was."""


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


def is_of_another_version(data: bytes) -> bool:
    """Whether a segment with an intact header begins here, but in a format that is not known here."""
    if len(data) < FIRST:
        return False
    (check,) = CHECK.unpack_from(data, SEGMENT.size)
    same = data[: len(MAGIC)] == MAGIC
    return not same and data.startswith(MAGIC[:-1]) and check == zlib.crc32(data[: SEGMENT.size])


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
    records: list[Record] = decode(Frame, data[start + OVERHEAD : end]).records
    if any(record.count(None) != len(record) - 1 for record in records):
        raise Malformed("Frame: a record without exactly one field that is known here")
    return records


class Mark(NamedTuple):
    """How far the journal was durable: up to this frame, 0: none, which is in this segment."""

    number: int
    segment: int
    check: int  # of the segment


def mark_bytes(mark: Mark) -> bytes:
    """The content of the file `synced`. It lies in one sector, so no power cut can tear it."""
    content = MARK.pack(MARK_MAGIC, *mark)
    return content + CHECK.pack(zlib.crc32(content))


def read_mark(data: bytes) -> Mark | None:
    """The mark in the content of `synced`; None if it is none of this version."""
    if len(data) != MARK.size + CHECK.size:
        return None
    magic, *fields = MARK.unpack_from(data)
    (check,) = CHECK.unpack_from(data, MARK.size)
    return Mark(*fields) if magic == MARK_MAGIC and check == zlib.crc32(data[: MARK.size]) else None


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


# --------------------------------------------------------------------------------------------------- manifest


class Saved(NamedTuple):
    """A file that must be found as it was left."""

    number: int  # of the checkpoint
    size: int  # bytes
    check: int  # CRC-32 of all of them


@dataclass(frozen=True, slots=True)
class Manifest:
    """Where recovery begins: with this checkpoint, and then with this frame, the first of this segment."""

    checkpoint: Saved
    previous: Saved | None  # the one before it, kept for those who are reading it
    segment: int
    frame: int


def manifest_json(manifest: Manifest) -> str:
    """The content of manifest.json; its crc32 is that of the other lines."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "checkpoint": manifest.checkpoint._asdict(),
        "previous": manifest.previous and manifest.previous._asdict(),
        "segment": manifest.segment,
        "frame": manifest.frame,
    }
    content["crc32"] = zlib.crc32(json.dumps(content).encode())
    return json.dumps(content, indent=2) + "\n"


def read_manifest(data: bytes) -> Manifest:
    """The manifest in the content of manifest.json. ValueError, its reason in one line, if there is none.

    It is compared with what manifest_json() would have written: not a space can change unnoticed.
    """
    try:
        content = json.loads(data.decode("utf-8"))
        previous = content["previous"]
        manifest = Manifest(
            Saved(**content["checkpoint"]),
            previous and Saved(**previous),
            content["segment"],
            content["frame"],
        )
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"is not what a manifest is: {type(error).__name__}: {error}") from error
    if manifest_json(manifest).encode() != data:
        raise ValueError("crc32: does not match the other fields: the file was changed")
    return manifest


def load_manifest(files: "Files", directory: Path) -> Manifest | None:
    """The manifest of a data directory; None: there is none, nothing was ever deleted. Damaged, OSError."""
    path = directory / MANIFEST
    if not files.exists(path):
        return None
    data = files.read(path)
    try:
        return read_manifest(data)
    except ValueError as error:
        if is_manifest_of_another_version(data):
            raise Unreadable(path, 0, f"is intact, but {error}") from error
        raise Damaged(path, 0, str(error)) from error


def is_manifest_of_another_version(data: bytes) -> bool:
    """Whether this, which is no manifest that is known here, is whole: as manifest_json() writes, and as its
    crc32 says.
    """
    try:
        content = json.loads(data)
        written = (json.dumps(content, indent=2) + "\n").encode() == data
        check = content.pop("crc32")
        return written and check == zlib.crc32(json.dumps(content).encode())
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return False


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

    def size(self, path: Path) -> int:
        """Bytes in a file."""
        return path.stat().st_size

    def read_part(self, path: Path, offset: int, length: int) -> bytes:
        """So many bytes of a file from the offset on; fewer at its end."""
        with path.open("rb") as file:
            return os.pread(file.fileno(), length, offset)

    def save(self, path: Path, content: dict[str, Any]) -> None:
        """Make a file, or replace it, through pickledb. Durable after fdatasync and sync_directory.

        Not to be called from an event loop, where pickledb would return a coroutine.
        """
        database = PickleDB(str(path))
        database.db = content
        database.save()

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

    def drop_page_cache(self, handle: int, offset: int = 0, length: int = 0) -> None:
        """Let the next read of this part of a file see what the disk has, and begin to write the part.

        Offset and length are in bytes; length 0 means all that follows.
        """
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, offset, length, os.POSIX_FADV_DONTNEED)

    def close(self, handle: int) -> None:
        """Close a file; a lock that it carries is released."""
        os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, within one directory, in one step. Durable after sync_directory."""
        os.rename(old, new)

    def remove(self, path: Path) -> None:
        """Remove a file. Durable after sync_directory."""
        os.unlink(path)

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory. Durable after sync_directory of the parent."""
        os.rmdir(path)

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
            # Its directory may have been moved aside just now.
            if not os.path.samestat(os.fstat(handle), os.stat(path)):
                raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), str(path))
        except BaseException:
            os.close(handle)
            raise
        return handle

    def salt(self) -> bytes:
        """8 bytes that nobody can guess."""
        return os.urandom(8)

    def sleep(self, seconds: float) -> None:
        """Leave the processor and the disk to others, after a piece of long work in the background."""
        time.sleep(seconds)

    def background(self, work: Callable[[], T]) -> Future[T]:
        """Begin some work beside the caller's."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # not lost: it is raised where the result is asked for
                future.set_exception(error)

        threading.Thread(target=run, name="journal", daemon=True).start()
        return future


def make_file(files: Files, path: Path, pieces: Iterator[bytes]) -> None:
    """Write a file that has its name only once it is whole and durable; a file of this name is replaced.

    OSError: there is no such file, or the old one; where the disk was full, what was begun is removed.
    """
    unfinished = path.with_name(path.name + ".new")
    try:
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
    except OSError as error:
        if error.errno in NO_ROOM and files.exists(unfinished):
            files.remove(unfinished)
        raise


def zeros(count: int) -> Iterator[bytes]:
    """That many zero bytes, in pieces."""
    for start in range(0, count, len(ZEROS)):
        yield ZEROS[: count - start]


def segment_path(journal: Path, number: int) -> Path:
    """The file of a segment."""
    return journal / f"{number:010}.segment"


def segment_numbers(files: Files, journal: Path, first: int) -> list[int]:
    """The segments from the first one that is needed on, in order. Damaged if one is missing."""
    if not files.exists(journal):
        raise Unreadable(journal, 0, "the directory is missing")
    names = files.names(journal)
    found = sorted(int(name[:10]) for name in names if re.fullmatch(r"[0-9]{10}\.segment", name))
    numbers = [number for number in found if number >= first]
    for present, number in enumerate(numbers, start=first):
        if present != number:
            raise Damaged(segment_path(journal, present), 0, "the segment is missing")
    if not numbers:
        error = Damaged if found else Unreadable
        raise error(segment_path(journal, first), 0, "the segment is missing, and there is no later one")
    return numbers


def read_segment(files: Files, journal: Path, number: int) -> tuple[Segment, bytes]:
    """A segment and its bytes, which have the size that its header says. Damaged otherwise."""
    path = segment_path(journal, number)
    data = files.read(path)
    segment = read_segment_header(data)
    if segment is None or segment.number != number:
        error = Unreadable if is_of_another_version(data) else Damaged
        raise error(path, 0, f"no valid header of segment {number} of this version")
    if segment.size != len(data):
        offset = min(segment.size, len(data))
        raise Damaged(path, offset, f"{len(data)} bytes long, but made with {segment.size}")
    return segment, data


def load_mark(files: Files, directory: Path) -> Mark | None:
    """The mark of a data directory; None if it is missing. Damaged if it cannot be read."""
    path = directory / SYNCED
    if not files.exists(path):
        return None
    mark = read_mark(files.read(path))
    if mark is None:
        raise Damaged(path, 0, "is no mark of this version, or its check does not match: it was changed")
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
        raise Damaged(*torn, reason)
    if mark is not None and mark.number > last:
        reason = (
            f"frame {last + 1} cannot be read, but {directory / SYNCED} says that frame {mark.number} was "
            "durable: it is damaged, or this is a copy made while the node was running"
        )
        raise Damaged(*(torn or stop), reason)


def read_frame(path: Path, data: bytes, start: int, end: int, number: int) -> list[Record]:
    """The records of a valid frame. Unreadable if another version of this program must have written it."""
    try:
        return read_records(data, start, end)
    except Malformed as error:
        raise Unreadable(path, start, f"frame {number} is intact, but {error}") from error


def closed_frames(
    files: Files, directory: Path, begin: tuple[int, int], end: tuple[int, int]
) -> Iterator[list[Record]]:
    """The records of all frames of closed segments. Changes nothing; the node may go on writing behind them.

    `begin`, `end`: a segment and the number of the first frame in it; the latter must be durable, so that all
    before it is. Hence nothing here can be torn: whatever is missing is Damaged.
    """
    journal = directory / "journal"
    segment_number, expected = begin
    while segment_number < end[0]:
        path = segment_path(journal, segment_number)
        segment, data = read_segment(files, journal, segment_number)
        found = scan(data, segment, expected)
        if found.end > found.stop:
            raise Damaged(
                path, found.stop, f"frame {expected + len(found.frames)} is damaged: later ones exist"
            )
        for frame_start, frame_end in found.frames:
            yield read_frame(path, data, frame_start, frame_end, expected)
            expected += 1
        segment_number += 1
    if expected != end[1]:
        path = segment_path(journal, end[0])
        raise Damaged(path, FIRST, f"frame {end[1]} begins this segment, but {expected} should")


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
            segment = make_segment(files, journal, 1, segment_bytes)
            make_file(files, directory / SYNCED, iter([mark_bytes(Mark(0, segment.number, segment.check))]))
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

        A damaged manifest is told by recover(), while the lock is held: only its holder may repair anything.

        segment_bytes: size of the segments made from now on. sync=False: write() leaves out its fdatasync,
        and nothing is durable; for measurements only.
        """
        self._files = files or Files()
        self._directory = directory
        self._journal = directory / "journal"
        self._segment_bytes = segment_bytes
        self._sync = sync
        self.bytes = 0  # of all frames since the checkpoint that recovery begins with
        self.manifest: Manifest | None = None  # as of the last checkpoint
        self.rolled: tuple[int, int] | None = None  # segment and frame that a checkpoint could begin with
        self.installed: dict[int, int] = {}  # checkpoints of others in the journal, and the frame of each
        self.full: str | None = None  # why there is no room for the next segment, as far as is known
        self.torn: str | None = None  # what recovery cut, and where; one line
        self._ready = False  # recovered, not closed, and no write has failed
        self._handle: int | None = None  # of the segment that is written to
        self._mark_handle: int | None = None
        self._mark_seen = 0  # the frame that the mark named when maintain() looked last
        self._mark_synced = 0  # the frame that the durable mark names, at least
        self._syncing: Future[None] | None = None  # the mark is being made durable
        self._segment = Segment(0, 0, 0)
        self._offset = 0  # in it, of the next frame
        self._number = 1  # of the next frame
        self._newest = 0  # the highest segment number in use, also of a segment in the making
        self._spares: list[Segment] = []  # empty segments behind the one that is written to
        self._making: Future[Segment] | None = None  # the spare that is being made
        self._total = 0  # bytes of all frames recovered or written
        self._before_roll = 0  # what `_total` was when the frame `rolled` was written
        self._covered = 0  # bytes of frames that the checkpoint has
        self._make_at = NEVER  # from this offset on the next segment is made
        self._damage: Damaged | None = None  # of the manifest
        self._lock: int | None = None
        self.identity = self._take(directory)

    def _take(self, directory: Path) -> Identity:
        """Lock the directory, then read who we are."""
        files = self._files
        path = directory / "identity.json"
        try:
            if not files.exists(path):  # asked first: not even a lock is left in a directory that is not ours
                raise JournalError(
                    f"{path}: missing: this is no data directory: is its disk mounted? (--rejoin if the "
                    "node's disk was lost, --init for a new cluster only)"
                )
            self._lock = files.lock(directory / "lock")
            identity = read_identity(files.read(path))
            path = directory / MANIFEST
            self.manifest = load_manifest(files, directory)
            return identity
        except BlockingIOError as error:
            raise Locked(f"{directory / 'lock'}: another process uses this data directory") from error
        except Damaged as error:
            self._damage = error
            return identity
        except ValueError as error:
            self.close()
            raise JournalError(f"{path}: {error}") from error
        except OSError as error:
            self.close()
            raise JournalError(f"{error.filename or path}: {error.strerror or error}") from error

    @property
    def lock(self) -> int | None:
        """The open file that carries the lock: who inherits it shares the lock."""
        return self._lock

    def recover(self) -> Iterator[list[Record]]:
        """The records of every frame since the checkpoint of `manifest`, oldest first. At the end a torn tail
        is cut and the journal ready.

        Everything handed out is durable. Damaged may come late: act on nothing before the end. OSError if the
        disk fails.
        """
        if self._damage:
            raise self._damage
        files = self._files
        first, self._number = (self.manifest.segment, self.manifest.frame) if self.manifest else (1, 1)
        numbers = self._find_segments(first)
        mark = load_mark(files, self._directory)
        suspect: tuple[Path, int] | None = None  # where something that is no frame follows the last valid one
        cuts: list[tuple[Segment, Scan]] = []
        for number in numbers:
            segment, data = read_segment(files, self._journal, number)
            path = segment_path(self._journal, number)
            found = scan(data, segment, self._number)
            check_owner(mark, self._directory, segment)
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
            if number == first and self.manifest and not found.frames:
                raise Damaged(path, FIRST, f"frame {self._number} is damaged, for the manifest names it")
            if found.frames or number == first:
                self._segment, self._offset = segment, found.stop
            else:
                self._spares.append(segment)
            if found.frames:
                self._write_again(path, data, *found.frames[-1])
            yield from self._hand_out(path, data, found.frames)
        stop = segment_path(self._journal, self._segment.number), self._offset
        check_mark(mark, self._directory, self._number - 1, stop, suspect)
        for segment, found in cuts:
            self._cut(segment, found)
        self._newest = numbers[-1]
        self._handle = files.open(segment_path(self._journal, self._segment.number))
        self._make_at = NEVER if self._spares else self._segment.size // 2
        self._open_mark(mark)
        self._ready = True

    def _open_mark(self, mark: Mark | None) -> None:
        """What was recovered is durable now: say so."""
        path = self._directory / SYNCED
        now = Mark(self._number - 1, self._segment.number, self._segment.check)
        if mark is None:  # data of an earlier version
            make_file(self._files, path, iter([mark_bytes(now)]))
        self._mark_handle = self._files.open(path)
        if mark != now:
            self._files.pwrite(self._mark_handle, mark_bytes(now), 0)

    def _find_segments(self, first: int) -> list[int]:
        """The numbers of the segments that are needed, in order; what was not finished is removed."""
        files = self._files
        if files.exists(self._journal):
            for name in files.names(self._journal):
                if name.endswith(".segment.new"):
                    files.remove(self._journal / name)
            files.sync_directory(self._journal)  # a process that was killed may have left names not durable
        return segment_numbers(files, self._journal, first)

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
            records = read_frame(path, data, start, end, self._number)
            self._note(records)
            self._number += 1
            self._total += end - start
            self.bytes = self._total
            yield records

    def _note(self, records: list[Record]) -> None:
        """Frame `_number` holds these records: checkpoints that they name are needed from now on."""
        for record in records:
            if record.installed is not None:
                self.installed[record.installed] = self._number

    @property
    def leans(self) -> bool:
        """Whether it holds a checkpoint that another node made and none of our own covers yet. Until one
        does, what we have for our peers is older than what we know.
        """
        first = self.manifest.frame if self.manifest else 1
        return any(frame >= first for frame in self.installed.values())

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

    def write(self, records: list[Record], new_segment: bool = False) -> None:
        """Append one frame; durable when this returns. Blocks for as long as the disk takes.

        new_segment: the frame holds the node's whole state and begins a segment. `rolled` says which, and a
        checkpoint can be made of all that lies before it.

        Full: there is no room for it, and nothing has happened. Any other OSError is final: whether the frame
        will be there after a restart nobody knows, and the journal takes no further one (JournalError).
        ValueError, TypeError or OverflowError: the records do not fit their types, and nothing was written.
        """
        body = encode(Frame(records))
        if not self._ready:
            raise JournalError(f"{self._journal}: not recovered, or closed, or an earlier write failed")
        self._ready = False
        length = OVERHEAD + len(body)
        if new_segment or self._offset + length > self._segment.size:
            self._roll(length)
        handle = self._handle
        assert handle is not None, "ready without an open segment"
        self._files.pwrite(handle, frame(body, self._number, self._segment), self._offset)
        if self._sync:
            self._files.fdatasync(handle)
            self._set_mark()
        if new_segment:
            self.rolled = (self._segment.number, self._number)
            self._before_roll = self._total
        self._note(records)
        self._offset += length
        self._number += 1
        self._total += length
        self.bytes = self._total - self._covered
        if self._offset >= self._make_at:
            self._make_next()
        self._ready = True
        self._poll()

    def _set_mark(self) -> None:
        """Frame `_number` is durable: what comes back now may be acknowledged."""
        handle = self._mark_handle
        assert handle is not None, "ready without the mark"
        mark = Mark(self._number, self._segment.number, self._segment.check)
        self._files.pwrite(handle, mark_bytes(mark), 0)

    def checkpointed(self, manifest: Manifest) -> None:
        """A checkpoint of everything before the frame `rolled` is durable, and so is its manifest."""
        self.manifest = manifest
        if self.rolled == (manifest.segment, manifest.frame):
            self._covered = self._before_roll
            self.bytes = self._total - self._covered

    @property
    def has_spare(self) -> bool:
        """Whether the next segment is there, so that nobody waits for it to be made."""
        return bool(self._spares)

    def prepare(self) -> None:
        """Have the next segment made soon, whatever room there is in this one. See `has_spare`."""
        if self._ready and not self._spares and self._making is None:
            self._make_next()

    def maintain(self) -> None:
        """Take what was made in the background; where the disk was full, try again; where nothing has been
        written since the last call, begin to make the mark durable. Does not block.

        OSError is final, as in write().
        """
        self._sync_mark()
        if self._making is not None and self._making.done():
            with contextlib.suppress(Full):
                self._take_spare()
        elif self.full and self._making is None and self._ready:
            self._make_next()

    def _sync_mark(self) -> None:
        if self._syncing is not None and self._syncing.done():
            syncing, self._syncing = self._syncing, None
            syncing.result()
        handle, last = self._mark_handle, self._number - 1
        idle = self._ready and self._sync and last == self._mark_seen
        if idle and last != self._mark_synced and self._syncing is None and handle is not None:
            self._mark_synced = last
            self._syncing = self._files.background(partial(self._files.fdatasync, handle))
        self._mark_seen = last

    def _poll(self) -> None:
        """Take what was made in the background, or notice that there was no room for it: while what is under
        way still fits. Other errors are for whoever needs the segment.
        """
        if self._making is not None and self._making.done():
            error = self._making.exception()
            if error is None or (isinstance(error, OSError) and error.errno in NO_ROOM):
                with contextlib.suppress(Full):
                    self._take_spare()

    def _make_next(self) -> None:
        """Begin to make the next segment, while there is room for some time in this one."""
        self._make_at = NEVER
        number = self._newest + 1
        self._making = self._files.background(
            lambda: make_segment(self._files, self._journal, number, self._segment_bytes)
        )

    def _take_spare(self) -> None:
        """Wait for the segment in the making. Full if there is no room for it; _ready is as before then."""
        assert self._making is not None
        making, self._making = self._making, None
        self._spares.append(self._made(making.result))

    def _made(self, make: Callable[[], Segment]) -> Segment:
        """A new segment, with the number above all others. Only what became of it decides about `full`."""
        try:
            segment = make()
        except OSError as error:
            if error.errno not in NO_ROOM:
                self._ready = False
                raise
            self.full = error.strerror
            # It is tried again and again: each traceback would keep a frame alive until it is collected.
            error.__traceback__ = None
            raise Full(f"{self._journal}: no room for the next segment: {error.strerror}") from error
        self._newest += 1
        self.full = None
        return segment

    def _opened(self, number: int) -> int:
        """A segment, opened to be written. Full if that cannot be done now."""
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
        while self._spares and FIRST + length > self._spares[0].size:
            del self._spares[0]

    def _roll(self, length: int) -> None:
        """Go on in the next segment with room for so many bytes; smaller ones before it stay empty.

        Full: there is no room for such a segment, and the journal is ready as before.
        """
        try:
            self._skip_small(length)
            if not self._spares and self._making:
                self._take_spare()
                self._skip_small(length)
            if not self._spares:
                number, size = self._newest + 1, max(self._segment_bytes, FIRST + length)
                make = partial(make_segment, self._files, self._journal, number, size)
                self._spares.append(self._made(make))
            handle = self._opened(self._spares[0].number)
        except Full:
            self._ready = True
            raise
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
                making.result()
        with contextlib.suppress(OSError):  # without it the mark is as after a crash
            if self._syncing:
                self._syncing.result()
            if self._mark_handle is not None and self._sync:
                self._files.fdatasync(self._mark_handle)
        for handle in (self._handle, self._mark_handle, self._lock):
            if handle is not None:
                self._files.close(handle)
        self._handle = self._mark_handle = self._lock = None


# --------------------------------------------------------------------------------------------------- a repair


def replacement_path(directory: Path) -> Path:
    """Where the data directory is made that takes the place of a damaged one."""
    return directory.with_name(directory.name + ".rejoin.new")


def replace(
    directory: Path,
    aside: Path,
    identity: Identity,
    segment_bytes: int = SEGMENT_BYTES,
    files: Files | None = None,
) -> None:
    """Put an empty data directory in the place of a damaged one, which is kept as `aside`, a new name.

    The caller holds the lock of the damaged one; the identity is of incarnation 0, so that the node rejoins.
    Steps, each durable before the next, and what a crash after it leaves:

        make the new one beside     the damaged one in its place: the next start finds the damage again
        move the damaged one        none in its place, which only this does: finish_replacement() goes on here
        move the new one            what a start with --rejoin makes

    So there is never a moment at which a start finds an empty directory that may vote. JournalError: one of
    these states, too.
    """
    files = files or Files()
    new = replacement_path(directory)
    try:
        discard_replacement(directory, files)
        try:
            Journal.create(new, identity, segment_bytes, files)
            files.rename(directory, aside)
        except (OSError, JournalError):
            if files.exists(directory):
                discard_replacement(directory, files)
            raise
        files.sync_directory(directory.parent)
        files.rename(new, directory)
        files.sync_directory(directory.parent)
    except OSError as error:
        raise JournalError(f"{error.filename or new}: {error.strerror or error}") from error


def finish_replacement(directory: Path, files: Files | None = None) -> bool:
    """At each start, before the directory is opened: what a crash may have left of replace(). True: the
    damaged directory had been moved, and now the new one is in its place. JournalError if that fails.
    """
    files = files or Files()
    new = replacement_path(directory)
    if files.exists(directory / "identity.json") or not files.exists(new / "identity.json"):
        return False
    try:
        files.rename(new, directory)
        files.sync_directory(directory.parent)
    except OSError as error:
        raise JournalError(f"{directory}: {error.strerror or error}") from error
    return True


def discard_replacement(directory: Path, files: Files | None = None) -> None:
    """Remove a directory that replace() has made and not used. The caller holds the lock of the one in its
    place. OSError if there is anything in it that replace() does not make.

    The identity goes first, durably: without it nothing takes the rest for a data directory.
    """
    files = files or Files()
    new = replacement_path(directory)
    if not files.exists(new):
        return
    for name in ("identity.json", "identity.json.new", SYNCED, SYNCED + ".new"):
        if files.exists(new / name):
            files.remove(new / name)
    files.sync_directory(new)
    journal = new / "journal"
    if files.exists(journal):
        for name in (segment_path(journal, 1).name, segment_path(journal, 1).name + ".new"):
            if files.exists(journal / name):
                files.remove(journal / name)
        files.remove_directory(journal)
    files.remove_directory(new)
    files.sync_directory(directory.parent)
