"""The journal's segments and their frames, as bytes and as files.

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
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from paxoskv.storage.files import ZEROS, Damaged, Files, Unreadable, make_file, zeros
from paxoskv.wire.codec import Malformed, decode
from paxoskv.wire.structs import Frame, Record

MAGIC: Final = b"journal1"  # the last character is the version of the format
SEGMENT: Final = struct.Struct(">8sQQ8s")
HEADER: Final = struct.Struct(">IQQI")
CHECK: Final = struct.Struct(">I")
FIRST: Final = SEGMENT.size + CHECK.size  # where a segment's first frame begins
OVERHEAD: Final = HEADER.size + CHECK.size  # bytes of a frame before its body
SEGMENT_NUMBER: Final = struct.Struct(">Q")
SEGMENT_NUMBER_AT: Final = 12  # its offset in HEADER


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
    return header + zlib.crc32(header, segment.check).to_bytes(4, "big") + body


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
    """How long the data is without the zeros at its end."""
    end = len(data)  # piece by piece: rstrip looks at each byte
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
