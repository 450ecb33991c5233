"""The end of a journal, read while the node goes on writing it, to say what was accepted.

Nothing is locked, changed or repaired. What does not read as a frame ends its segment here: the node may be
writing it just now.
"""

import re
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from paxoskv.storage.files import Files
from paxoskv.storage.segments import FIRST, OVERHEAD, read_frame_header, read_records, read_segment_header
from paxoskv.wire.codec import Malformed
from paxoskv.wire.structs import Record

SEGMENTS: Final = 2  # are looked at: the one that is written to may just have begun
CHUNK: Final = 256 << 10  # bytes that are searched for frames in one go
LAST: Final = 2 << 20  # bytes of frames that are read, at most

Place = tuple[Path, int, int, int]  # of a frame: its file, where it begins and ends, and its body's CRC-32


def last_records(files: Files, directory: Path) -> Iterator[list[Record]]:
    """The records of the last frames; now and then an empty list, so that the caller can do other things."""
    journal = directory / "journal"
    names = sorted(name for name in files.names(journal) if re.fullmatch(r"[0-9]{10}\.segment", name))
    places: deque[Place] = deque()
    size = 0
    for name in names[-SEGMENTS:]:
        for place in _frames(files, journal / name):
            if place is None:
                yield []
                continue
            places.append(place)
            size += place[2] - place[1]
            while size > LAST and len(places) > 1:
                _, start, end, _ = places.popleft()
                size -= end - start
    for path, start, end, check in places:
        data = files.read_part(path, start, end - start)
        try:
            intact = len(data) == end - start and zlib.crc32(data[OVERHEAD:]) == check
            yield read_records(data, 0, len(data)) if intact else []
        except Malformed:  # of another version
            yield []


def _frames(files: Files, path: Path) -> Iterator[Place | None]:
    """Where the frames of a segment are, by their headers; None now and then."""
    base, data = 0, files.read_part(path, 0, CHUNK)
    segment = read_segment_header(data)
    offset = FIRST
    while segment is not None:
        if offset + OVERHEAD > base + len(data):
            yield None
            base, data = offset, files.read_part(path, offset, CHUNK)
        header = read_frame_header(data, offset - base, segment)
        if header is None:
            return
        _, end, check = header
        yield path, offset, base + end, check
        offset = base + end
