"""The journal: what it hands back after crashes, damage and failing disks."""

import contextlib
import errno
import gc
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from paxoskv.storage import files as files_module
from paxoskv.storage.data_dir import create, mark_format, read_identity
from paxoskv.storage.files import Damaged, Files, Full, JournalError, Locked, Unreadable
from paxoskv.storage.journal import Journal
from paxoskv.storage.mark import SYNCED, Mark, mark_bytes, read_mark
from paxoskv.storage.segments import (
    FIRST,
    OVERHEAD,
    Segment,
    find_stray,
    frame,
    read_frame_header,
    read_segment,
    read_segment_header,
    scan,
    segment_header,
    segment_path,
)
from paxoskv.wire import validation
from paxoskv.wire.codec import encode
from paxoskv.wire.structs import (
    Chosen,
    Entry,
    Frame,
    Held,
    Identity,
    LogBallot,
    Position,
    Record,
)
from tests.harness.disk import Crash, Disk, kept, lost, some

ROOT = Path(__file__).resolve().parents[2]
IDENTITY = Identity("test", "0123abcd", 3, 1, 0)
SMALL = 1024  # bytes of a segment in most tests
NODE = Path("node")  # the data directory on a simulated disk
T = TypeVar("T")


def held(payload: bytes, timestamp: int = 1) -> list[Record]:
    return [Record(held=Held(1, 257, 0, [Entry(timestamp, payload)]))]


def numbered(count: int, size: int = 100) -> list[list[Record]]:
    return [held(bytes([65 + number % 26]) * size, number) for number in range(1, count + 1)]


@contextlib.contextmanager
def opened(
    directory: Path, files: Files | None = None, segment_bytes: int = SMALL
) -> Iterator[tuple[Journal, list[list[Record]]]]:
    """A recovered journal, and the frames that it held."""
    with contextlib.closing(Journal(directory, segment_bytes, files=files)) as journal:
        frames = list(journal.recover())
        yield journal, frames


def make(
    directory: Path, frames: list[list[Record]], files: Files | None = None, segment_bytes: int = SMALL
) -> None:
    create(directory, IDENTITY, segment_bytes, files)
    with opened(directory, files, segment_bytes) as (journal, _):
        for records in frames:
            journal.write(records)


def recovered(directory: Path, files: Files | None = None) -> list[list[Record]]:
    with opened(directory, files) as (_, frames):
        return frames


def segments(directory: Path) -> list[Path]:
    return sorted((directory / "journal").glob("*.segment"))


def frames_of(path: Path, first: int) -> list[tuple[int, int]]:
    data = path.read_bytes()
    segment = read_segment_header(data)
    assert segment is not None
    return scan(data, segment, first).frames


def layout(directory: Path) -> list[tuple[Path, int, int]]:
    """Every frame of the journal: its file, where it begins, where it ends."""
    frames: list[tuple[Path, int, int]] = []
    for path in segments(directory):
        frames += [(path, start, end) for start, end in frames_of(path, len(frames) + 1)]
    return frames


def set_mark(directory: Path, number: int) -> None:
    """Let the mark name this frame, as if the write of the next one had not returned."""
    segment = read_segment_header(layout(directory)[max(number, 1) - 1][0].read_bytes())
    assert segment is not None
    overwrite(directory / SYNCED, mark_bytes(number, segment.number, segment.check))


# ---------------------------------------------------------------------------------------- segments and frames


def segment_of(number: int = 1, size: int = SMALL, salt: bytes = b"saltsalt") -> tuple[Segment, bytes]:
    header = segment_header(number, size, salt)
    segment = read_segment_header(header)
    assert segment is not None
    return segment, header


def test_a_segment_header_is_read_back_and_every_changed_bit_is_noticed():
    segment, header = segment_of(7, 4096)
    assert (segment.number, segment.size) == (7, 4096)
    for bit in range(len(header) * 8):
        changed = bytearray(header)
        changed[bit // 8] ^= 1 << bit % 8
        assert read_segment_header(bytes(changed)) is None
    assert all(read_segment_header(header[:length]) is None for length in range(len(header)))


def test_a_frame_is_read_back_and_every_changed_bit_of_it_is_noticed():
    segment, header = segment_of()
    whole = header + frame(b"body of the frame", 5, segment)
    assert scan(whole, segment, 5).frames == [(FIRST, len(whole))]
    for bit in range(FIRST * 8, len(whole) * 8):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        assert scan(bytes(changed), segment, 5).frames == []


def test_zeros_are_no_frame():
    segment, header = segment_of()
    assert scan(header.ljust(SMALL, b"\0"), segment, 1) == ([], FIRST, FIRST, None)


def test_a_scan_stops_at_a_frame_with_another_running_number_and_reports_it_as_a_stray():
    segment, header = segment_of()
    data = header + frame(b"one", 1, segment)
    for number in (1, 3, 1 << 40):
        found = scan(data + frame(b"another", number, segment) + bytes(100), segment, 1)
        assert found.frames == [(FIRST, len(data))]
        assert (found.stop, found.stray) == (len(data), len(data))


def test_a_torn_frame_alone_is_no_stray_whatever_part_of_it_is_there():
    segment, header = segment_of()
    torn = frame(bytes(range(1, 200)), 1, segment)
    for length in range(len(torn)):
        data = (header + torn[:length]).ljust(SMALL, b"\0")
        assert scan(data, segment, 1).frames == []
        assert scan(data, segment, 1).stray is None
        assert scan(data, segment, 1).end == FIRST + len(data[FIRST:].rstrip(b"\0"))


def test_a_torn_frame_behind_an_invalid_one_is_a_stray_as_soon_as_its_header_is_there():
    segment, header = segment_of()
    first, second = frame(b"first", 1, segment), frame(b"second", 2, segment)
    broken = header + b"x" + first[1:]
    for length in range(len(second) + 1):
        found = scan((broken + second[:length]).ljust(SMALL, b"\0"), segment, 1)
        assert found.stray == (len(broken) if length >= OVERHEAD else None)


def test_a_header_that_ends_in_zeros_is_found_although_nothing_but_zeros_follows():
    segment, header = segment_of()
    number = next(n for n in range(2, 10**6) if frame(b"", n, segment)[-1] == 0)
    data = (header + b"broken" + frame(b"", number, segment)).ljust(SMALL, b"\0")
    assert scan(data, segment, 1).stray == FIRST + 6


def test_a_frame_is_valid_in_its_own_segment_only():
    segment, _ = segment_of(1, salt=b"11111111")
    others = [segment_of(1, salt=b"22222222")[0], segment_of(2, salt=b"11111111")[0]]
    data = frame(b"body", 1, segment)
    assert read_frame_header(data, 0, segment) is not None
    assert all(read_frame_header(data, 0, other) is None for other in others)


def test_a_value_that_looks_like_a_frame_does_not_make_a_torn_frame_look_like_damage():
    segment, header = segment_of(1, salt=b"a secret")
    guessed, _ = segment_of(1, salt=b"guessed!")
    forged = b"".join(frame(b"forged", number, guessed) for number in range(1, 30))
    torn = frame(forged, 1, segment)[:-1]
    data = (header + torn).ljust(4096, b"\0")
    assert find_stray(data, segment, FIRST, len(header + torn), 1) is None
    assert scan(data, segment, 1).frames == []


# ---------------------------------------------------------------------------------------- writing and reading


def test_what_was_written_is_recovered_in_order_over_several_segments(tmp_path: Path):
    frames = numbered(40)
    make(tmp_path / "data", frames)
    assert len(segments(tmp_path / "data")) > 4
    assert recovered(tmp_path / "data") == frames


def test_every_kind_of_record_is_recovered(tmp_path: Path):
    records = [
        Record(promised=LogBallot(1, 513)),
        Record(held=Held(2, 514, 7, [])),
        Record(candidate=LogBallot(3, 515)),
        Record(reservation=1 << 62),
        Record(chosen=Chosen(4, 12, 516)),
        Record(applied=Position(99, 5)),
    ]
    make(tmp_path / "data", [records, []])
    assert recovered(tmp_path / "data") == [records, []]


def test_a_journal_goes_on_where_the_last_life_ended_however_often(tmp_path: Path):
    create(tmp_path / "data", IDENTITY, SMALL)
    frames = numbered(30, size=120)
    for life in range(10):
        with opened(tmp_path / "data") as (journal, found):
            assert found == frames[: life * 3]
            assert journal.torn is None
            for records in frames[life * 3 : life * 3 + 3]:
                journal.write(records)
    assert recovered(tmp_path / "data") == frames


def test_the_bytes_of_the_journal_are_those_of_its_frames(tmp_path: Path):
    frames = numbered(20)
    make(tmp_path / "data", frames)
    expected = sum(OVERHEAD + len(encode(Frame(records))) for records in frames)
    with opened(tmp_path / "data") as (journal, _):
        assert journal.bytes == expected
        journal.write([])
        assert journal.bytes == expected + OVERHEAD + len(encode(Frame([])))


def test_a_frame_larger_than_a_segment_gets_one_of_its_own_size(tmp_path: Path):
    frames = [held(b"a" * 100), held(b"b" * 5000), held(b"c" * 100), held(b"d" * 900), held(b"e" * 3000)]
    make(tmp_path / "data", frames)
    assert any(path.stat().st_size > 5000 for path in segments(tmp_path / "data"))
    assert recovered(tmp_path / "data") == frames


def test_a_spare_segment_too_small_for_a_frame_is_passed_over(tmp_path: Path):
    frames = [held(b"a" * 600), held(b"b" * 5000), held(b"c" * 100)]  # the first makes the spare
    make(tmp_path / "data", frames)
    assert [len(frames_of(path, 1)) for path in segments(tmp_path / "data")[:2]] == [1, 0]
    more = numbered(12, size=300)
    with opened(tmp_path / "data") as (journal, found):  # passed over by the next life as well
        assert found == frames
        for records in more:
            journal.write(records)
    assert recovered(tmp_path / "data") == frames + more


def test_a_frame_that_fills_a_segment_to_its_last_byte_is_recovered(tmp_path: Path):
    overhead = OVERHEAD + len(encode(Frame(held(b""))))
    frames = [held(b"f" * (SMALL - FIRST - overhead)), held(b"next")]
    make(tmp_path / "data", frames)
    assert layout(tmp_path / "data")[0][2] == SMALL
    assert recovered(tmp_path / "data") == frames


def test_the_next_segment_is_made_before_it_is_needed(tmp_path: Path):
    create(tmp_path / "data", IDENTITY, SMALL)
    journal = Journal(tmp_path / "data", SMALL)
    assert list(journal.recover()) == []
    assert len(segments(tmp_path / "data")) == 1
    journal.write(held(b"x" * 500))
    journal.close()  # waits for what is under way
    assert [path.stat().st_size for path in segments(tmp_path / "data")] == [SMALL, SMALL]


def test_a_segment_in_the_making_does_not_hold_up_writes(tmp_path: Path):
    class Slow(Files):
        """Makes nothing in the background until it is told to."""

        def __init__(self) -> None:
            self.go = threading.Event()

        def background(self, work: Callable[[], T]) -> Callable[[], T]:
            def later() -> T:
                assert self.go.wait(60)
                return work()

            return super().background(later)

    files = Slow()
    create(tmp_path / "data", IDENTITY, SMALL)
    frames = [held(b"x" * 500), held(b"y"), held(b"z"), held(b"w" * 500)]
    with opened(tmp_path / "data", files) as (journal, _):
        for records in frames[:3]:
            journal.write(records)
        assert len(segments(tmp_path / "data")) == 1
        files.go.set()
        journal.write(frames[3])  # needs the new segment, and waits for it
    assert recovered(tmp_path / "data") == frames


def test_records_that_do_not_fit_their_types_are_refused_and_the_journal_goes_on(tmp_path: Path):
    create(tmp_path / "data", IDENTITY, SMALL)
    with opened(tmp_path / "data") as (journal, _):
        for record in (Record(reservation=1 << 64), Record(reservation="x"), Record(held=Held(1, 1, 0, 5))):
            with pytest.raises((ValueError, TypeError, OverflowError)):
                journal.write([record])
        journal.write(held(b"good"))
    assert recovered(tmp_path / "data") == [held(b"good")]


def test_a_journal_takes_no_frame_before_it_is_recovered_to_the_end_or_after_it_is_closed(tmp_path: Path):
    make(tmp_path / "data", numbered(3))
    journal = Journal(tmp_path / "data", SMALL)
    with pytest.raises(JournalError, match="not recovered"):
        journal.write([])
    frames = journal.recover()
    next(frames)
    with pytest.raises(JournalError, match="not recovered"):
        journal.write([])
    list(frames)
    journal.write([])
    journal.close()
    with pytest.raises(JournalError, match="closed"):
        journal.write([])


def test_a_frame_that_no_version_known_here_wrote_is_refused_although_it_is_intact(tmp_path: Path):
    for name, records in (("no-field", [Record()]), ("two", [Record(reservation=1, applied=Position(1, 1))])):
        make(tmp_path / name, [held(b"x"), records])
        path, start, _ = layout(tmp_path / name)[1]
        with pytest.raises(Damaged, match="frame 2 is intact, but") as error, opened(tmp_path / name):
            pass
        assert (error.value.path, error.value.offset) == (path, start)


# -------------------------------------------------------------------------------------------- torn or damaged


SMALL_SEGMENT = 640  # bytes; room for two or three frames


class Unsynced(Files):
    """Real files without the wait for the disk: these tests recover thousands of times, and cut no power."""

    def fdatasync(self, handle: int) -> None:
        pass

    def sync_directory(self, path: Path) -> None:
        pass


def overwrite(path: Path, data: bytes) -> None:
    """Give a file this content in place. Emptied first, it would make some file systems sync."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


def small_journal(directory: Path) -> list[list[Record]]:
    """Frames in three segments, several in the last of them, and an empty segment."""
    sizes = (70, 60, 150, 40, 170, 30, 100, 80)
    frames = [held(bytes([97 + n]) * size, n) for n, size in enumerate(sizes)]
    make(directory, frames, segment_bytes=SMALL_SEGMENT)
    used = [path.name for path, _, _ in layout(directory)]
    assert len(set(used)) == 3
    assert used.count(used[0]) > 1
    assert used.count(used[-1]) > 1
    assert len(segments(directory)) == 4
    return frames


def outcome(directory: Path) -> tuple[list[list[Record]], Damaged | None]:
    """The frames handed out, and the damage if that is how it ended."""
    frames: list[list[Record]] = []
    with contextlib.closing(Journal(directory, SMALL_SEGMENT, files=Unsynced())) as journal:
        try:
            frames.extend(journal.recover())
        except Damaged as damage:
            return frames, damage
    return frames, None


@pytest.mark.parametrize("acknowledged", [True, False], ids=["the mark names all", "but the last"])
def test_every_flipped_byte_is_harmless_or_cut_as_a_torn_tail_or_named_as_damage(
    tmp_path: Path, acknowledged: bool
):
    frames = small_journal(tmp_path / "data")
    where = layout(tmp_path / "data")
    set_mark(tmp_path / "data", len(frames) - (not acknowledged))
    mark = (tmp_path / "data" / SYNCED).read_bytes()
    for path in segments(tmp_path / "data"):
        original = path.read_bytes()
        for offset in range(len(original)):
            changed = bytearray(original)
            changed[offset] ^= 0xFF
            overwrite(path, changed)
            overwrite(tmp_path / "data" / SYNCED, mark)
            got, damage = outcome(tmp_path / "data")
            hit = next((n for n, (p, s, e) in enumerate(where) if p == path and s <= offset < e), None)
            if offset < FIRST:
                assert damage is not None and (damage.path, damage.offset) == (path, 0)
            elif hit is None:
                assert (got, damage) == (frames, None)
            elif hit == len(frames) - 1 and not acknowledged:
                assert (got, damage) == (frames[:-1], None)
            else:
                assert damage is not None and (damage.path, damage.offset) == where[hit][:2]
                assert str(damage).startswith(f"{path}: offset {where[hit][1]}: frame {hit + 1} ")
                assert got == frames[: len(got)]
            overwrite(path, original)
    assert outcome(tmp_path / "data") == (frames, None)


def test_every_length_to_which_the_journal_is_cut_off_with_zeros_behind_gives_a_prefix(tmp_path: Path):
    frames = small_journal(tmp_path / "data")
    where = layout(tmp_path / "data")
    last = where[-1][0]
    original = last.read_bytes()
    for length in range(FIRST, len(original)):
        overwrite(last, original[:length].ljust(len(original), b"\0"))
        whole = sum(
            1 for path, _, end in where if path != last or len(original[:end].rstrip(b"\0")) <= length
        )
        # A frame ends in zeros (Thrift's stop bytes), so it may be whole a little before its end.
        overwrite(last, original)
        set_mark(tmp_path / "data", whole)
        mark = (tmp_path / "data" / SYNCED).read_bytes()
        overwrite(last, original[:length].ljust(len(original), b"\0"))
        got, damage = outcome(tmp_path / "data")
        assert (got, damage) == (frames[:whole], None)
        if whole < len(frames):
            overwrite(last, original)
            set_mark(tmp_path / "data", whole + 1)
            assert mark != (tmp_path / "data" / SYNCED).read_bytes()
            overwrite(last, original[:length].ljust(len(original), b"\0"))
            got, damage = outcome(tmp_path / "data")
            assert damage is not None and damage.path in segments(tmp_path / "data")[1:3]


def test_a_segment_cut_off_before_the_last_is_damage_wherever_it_loses_a_frame(tmp_path: Path):
    frames = small_journal(tmp_path / "data")
    where = layout(tmp_path / "data")
    first = where[0][0]
    original = first.read_bytes()
    used = max(len(original[:end].rstrip(b"\0")) for path, _, end in where if path == first)
    for length in range(FIRST, len(original)):
        overwrite(first, original[:length].ljust(len(original), b"\0"))
        got, damage = outcome(tmp_path / "data")
        if length >= used:
            assert (got, damage) == (frames, None)
        else:
            assert damage is not None
            assert got == frames[: len(got)]


def test_a_file_of_any_other_length_than_it_was_made_with_is_damage(tmp_path: Path):
    small_journal(tmp_path / "data")
    for path in segments(tmp_path / "data"):
        original = path.read_bytes()
        for length in [*range(len(original)), len(original) + 1]:
            overwrite(path, original[:length].ljust(length, b"\0"))
            _, damage = outcome(tmp_path / "data")
            assert damage is not None and damage.path == path
        overwrite(path, original)


def test_a_missing_segment_is_named(tmp_path: Path):
    small_journal(tmp_path / "data")
    paths = segments(tmp_path / "data")
    for path in paths[:-1]:
        hidden = path.rename(path.with_suffix(".hidden"))
        _, damage = outcome(tmp_path / "data")
        assert damage is not None and damage.path == path
        assert "missing" in str(damage)
        hidden.rename(path)
    for path in paths:
        path.unlink()
    _, damage = outcome(tmp_path / "data")
    assert damage is not None and damage.path == paths[0]
    paths[0].parent.rmdir()
    _, damage = outcome(tmp_path / "data")
    assert damage is not None and damage.path == paths[0].parent


def test_a_segment_in_another_ones_place_is_damage(tmp_path: Path):
    small_journal(tmp_path / "data")
    first, second = segments(tmp_path / "data")[:2]
    overwrite(second, first.read_bytes())
    _, damage = outcome(tmp_path / "data")
    assert damage is not None and (damage.path, damage.offset) == (second, 0)


def test_a_changed_byte_behind_a_full_segments_frames_is_neither_torn_nor_blamed_for_later_damage(
    tmp_path: Path,
):
    frames = small_journal(tmp_path / "data")
    first = segments(tmp_path / "data")[0]
    overwrite(first, first.read_bytes()[:-1] + b"x")
    with opened(tmp_path / "data") as (journal, found):
        assert (found, journal.torn) == (frames, None)
    path, start, _ = next(place for place in layout(tmp_path / "data") if place[0] != first)
    data = bytearray(path.read_bytes())
    data[layout(tmp_path / "data")[4][1]] ^= 1
    overwrite(path, data)
    _, damage = outcome(tmp_path / "data")
    assert damage is not None and damage.path == path
    assert damage.offset > start


def test_damage_changes_nothing_on_the_disk(tmp_path: Path):
    small_journal(tmp_path / "data")
    path, start, _ = layout(tmp_path / "data")[1]
    data = bytearray(path.read_bytes())
    data[start + 30] ^= 1
    overwrite(path, data)
    before = {file: file.read_bytes() for file in segments(tmp_path / "data")}
    for _ in range(2):
        assert outcome(tmp_path / "data")[1] is not None
    assert before == {file: file.read_bytes() for file in segments(tmp_path / "data")}


def test_a_damaged_frame_before_a_torn_one_is_damage_and_not_a_longer_torn_tail(tmp_path: Path):
    make(tmp_path / "data", [held(b"acknowledged"), held(b"torn" * 20)])
    set_mark(tmp_path / "data", 0)  # which a power cut leaves behind
    (path, start, _), (_, _, torn_end) = layout(tmp_path / "data")
    data = bytearray(path.read_bytes())
    data[start + OVERHEAD] ^= 1
    data[torn_end - 20] ^= 1
    overwrite(path, data)
    _, damage = outcome(tmp_path / "data")
    assert damage is not None and (damage.path, damage.offset) == (path, start)


def test_a_torn_tail_is_reported_overwritten_with_zeros_and_written_over(tmp_path: Path):
    frames = numbered(3)
    make(tmp_path / "data", frames)
    set_mark(tmp_path / "data", 2)
    path, start, _ = layout(tmp_path / "data")[-1]
    data = bytearray(path.read_bytes())
    data[start + 40] ^= 1
    overwrite(path, data)
    with opened(tmp_path / "data") as (journal, found):
        assert found == frames[:2]
        assert journal.torn is not None and journal.torn.startswith(f"{path}: offset {start}: cut ")
        assert not path.read_bytes()[start:].strip(b"\0")
        journal.write(held(b"instead"))
    with opened(tmp_path / "data") as (journal, found):
        assert found == [*frames[:2], held(b"instead")]
        assert journal.torn is None


def test_a_torn_first_frame_of_a_new_segment_is_cut_and_the_journal_goes_on(tmp_path: Path):
    frames = [held(b"a" * 300), held(b"b" * 300), held(b"c" * 600)]
    for byte in (0, 13, 27, OVERHEAD + 200):  # in its header and in its body
        directory = tmp_path / str(byte)
        make(directory, frames)
        set_mark(directory, 2)
        path, start, _ = layout(directory)[-1]
        assert (path.name, start) == ("0000000002.segment", FIRST)
        data = bytearray(path.read_bytes())
        data[start + byte] ^= 1
        path.write_bytes(data)
        more = numbered(12)
        with opened(directory) as (journal, found):
            assert found == frames[:2]
            assert journal.torn is not None and str(path) in journal.torn
            for records in more:
                journal.write(records)
        assert recovered(directory) == frames[:2] + more


def test_a_segment_that_a_crash_left_without_a_frame_is_used(tmp_path: Path):
    make(tmp_path / "data", [held(b"a" * 600)])  # makes the spare
    assert len(segments(tmp_path / "data")) == 2
    with opened(tmp_path / "data") as (journal, _):
        journal.write(held(b"b" * 600))
        assert len(frames_of(segments(tmp_path / "data")[1], 2)) == 1
    assert recovered(tmp_path / "data") == [held(b"a" * 600), held(b"b" * 600)]


def test_a_segment_that_was_not_finished_is_removed(tmp_path: Path):
    make(tmp_path / "data", [held(b"a" * 100)])
    unfinished = segment_path(tmp_path / "data" / "journal", 2).with_suffix(".segment.new")
    unfinished.write_bytes(b"half")
    with opened(tmp_path / "data") as (journal, _):
        assert not unfinished.exists()
        journal.write(held(b"b" * 900))
    assert recovered(tmp_path / "data") == [held(b"a" * 100), held(b"b" * 900)]


# -------------------------------------------------------------------------------- the mark of what is durable


def test_a_mark_is_read_back_and_every_changed_bit_and_length_is_noticed():
    data = mark_bytes(7, 3, 0xDEADBEEF)
    assert read_mark(data) == Mark(7, 3, 0xDEADBEEF)
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        assert read_mark(bytes(changed)) is None
    assert all(read_mark(data[:length]) is None for length in range(len(data)))
    assert read_mark(data + b"\0") is None


def test_a_frame_that_was_durable_and_cannot_be_read_is_damage_though_it_is_the_last(tmp_path: Path):
    """Whatever became of it: flipped, zeroed, or lost with its segment."""
    frames = [held(b"a" * 300), held(b"b" * 300), held(b"c" * 600)]

    def reason(spoil: Callable[[Path, int, int], None]) -> str:
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        make(directory, frames)
        path, start, end = layout(directory)[-1]
        spoil(path, start, end)
        before = {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()}
        for _ in range(2):  # it is not forgotten by being told
            with pytest.raises(Damaged, match="says that frame 3 was durable") as error:
                recovered(directory)
        assert before == {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()}
        return str(error.value)

    def flip(path: Path, start: int, end: int) -> None:
        data = bytearray(path.read_bytes())
        data[start + OVERHEAD + 5] ^= 1
        overwrite(path, data)

    def zero(path: Path, start: int, end: int) -> None:
        data = bytearray(path.read_bytes())
        data[start:end] = bytes(end - start)
        overwrite(path, data)

    def remove(path: Path, start: int, end: int) -> None:
        for segment in segments(path.parent.parent)[1:]:
            segment.unlink()

    assert f"0000000002.segment: offset {FIRST}: frame 3 cannot be read" in reason(flip)
    assert "0000000001.segment: offset" in reason(zero)
    assert "0000000001.segment: offset" in reason(remove)


def test_a_copy_that_was_made_of_a_running_node_with_a_later_mark_is_damage(tmp_path: Path):
    make(tmp_path / "data", numbered(3))
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    with opened(tmp_path / "data") as (journal, _):
        journal.write(held(b"x"))
    shutil.copy(tmp_path / "data" / SYNCED, tmp_path / "copy")
    with pytest.raises(Damaged, match="or this is a copy made while the node was running"):
        recovered(tmp_path / "copy")


def test_a_mark_of_another_directory_or_none_that_can_be_read_is_damage(tmp_path: Path):
    for name in ("data", "other"):
        make(tmp_path / name, numbered(3))
    other = (tmp_path / "other" / SYNCED).read_bytes()
    path = tmp_path / "data" / SYNCED
    flipped = other[:-1] + bytes([other[-1] ^ 1])
    for content, reason in ((other, "another directory"), (b"", "no mark"), (flipped, "no mark")):
        path.write_bytes(content)
        with pytest.raises(Damaged, match=reason) as error:
            recovered(tmp_path / "data")
        assert error.value.path == path


def test_without_a_mark_a_clean_journal_gets_one_and_a_torn_tail_is_damage(tmp_path: Path):
    make(tmp_path / "data", numbered(3))
    (tmp_path / "data" / SYNCED).unlink()
    assert recovered(tmp_path / "data") == numbered(3)
    mark = read_mark((tmp_path / "data" / SYNCED).read_bytes())
    assert mark is not None and mark.number == 3
    path, start, _ = layout(tmp_path / "data")[-1]
    (tmp_path / "data" / SYNCED).unlink()
    data = bytearray(path.read_bytes())
    data[start + 40] ^= 1
    overwrite(path, data)
    with pytest.raises(
        Unreadable, match=r"frame 3 was never durable, or is damaged: .*synced, which would tell"
    ):
        recovered(tmp_path / "data")


def test_an_intact_mark_of_another_version_is_not_given_up(tmp_path: Path):
    make(tmp_path / "data", numbered(3))
    path = tmp_path / "data" / SYNCED
    data = path.read_bytes()[:-4].replace(b"synced_1", b"synced_2")
    path.write_bytes(data + zlib.crc32(data).to_bytes(4, "big"))
    with pytest.raises(Unreadable, match="no mark of a version known here"):
        recovered(tmp_path / "data")


def spoil_last(disk: Disk) -> None:
    """Flip a bit of the last frame on the disk."""
    path = segment_path(NODE / "journal", 1)
    data = disk.read(path)
    segment = read_segment_header(data)
    assert segment is not None
    disk.content(path)[scan(data, segment, 1).frames[-1][1] - 5] ^= 1


def test_the_mark_survives_a_kill_and_a_power_cut_once_the_node_was_idle_or_stopped():
    for idle, stopped, cut in ((0, 0, 0), (1, 0, 1), (0, 1, 1)):
        disk, journal = failing_journal(numbered(2))
        journal.write(held(b"x"))
        for _ in range(2 * idle):
            journal.maintain()
        if stopped:
            journal.close()
        if cut:
            disk.power_cut(lost)
        else:
            disk.kill()
        spoil_last(disk)
        with pytest.raises(Damaged, match="says that frame 3 was durable"):
            recovered(NODE, disk)


def test_after_a_power_cut_under_load_a_damaged_last_frame_is_taken_for_torn():
    """What cannot be promised: the mark was not durable yet, and nothing else tells the two apart."""
    disk, journal = failing_journal(numbered(2))
    journal.write(held(b"x"))
    journal.maintain()  # saw that something was written since its last look
    disk.power_cut(lost)
    spoil_last(disk)
    assert recovered(NODE, disk) == numbered(2)


def test_the_mark_is_not_made_durable_while_frames_are_written():
    disk, journal = failing_journal([])
    for number in range(5):
        journal.write(held(b"x", number))
        before = disk.operations
        journal.maintain()
        assert disk.operations == before
    journal.maintain()
    assert disk.operations == before + 1


def test_a_mark_that_cannot_be_made_durable_ends_the_journal():
    disk, journal = failing_journal([])
    journal.write(held(b"x"))
    journal.maintain()
    disk.fail_next("fdatasync")
    journal.maintain()
    with pytest.raises(OSError, match="Input/output"):
        journal.maintain()


# ------------------------------------------------------------------------------ the data directory's identity


def test_a_new_data_directory_has_its_identity_and_an_empty_journal(tmp_path: Path):
    create(tmp_path / "not" / "there" / "yet", IDENTITY, SMALL)
    with opened(tmp_path / "not" / "there" / "yet") as (journal, frames):
        assert journal.identity == IDENTITY
        assert (frames, journal.bytes, journal.torn) == ([], 0, None)


def test_an_empty_directory_may_become_a_data_directory_and_any_other_is_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    create(tmp_path / "empty", IDENTITY, SMALL)
    with pytest.raises(JournalError, match="is a data directory already"):
        create(tmp_path / "empty", IDENTITY, SMALL)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    with pytest.raises(JournalError, match="is not empty"):
        create(tmp_path / "full", IDENTITY, SMALL)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="file: Not a directory"):
        create(tmp_path / "file", IDENTITY, SMALL)


def test_a_parent_directory_that_another_node_makes_at_the_same_time_is_shared(tmp_path: Path):
    class Late(Files):
        """Looks before the other node makes the directory, and comes to make it after."""

        def exists(self, path: Path) -> bool:
            return path != tmp_path / "data" and super().exists(path)

    (tmp_path / "data").mkdir()
    create(tmp_path / "data" / "node-1", IDENTITY, files=Late())
    assert recovered(tmp_path / "data" / "node-1") == []


def test_a_directory_without_an_identity_is_refused_and_left_as_it_was(tmp_path: Path):
    for name in ("there", "missing"):
        if name == "there":
            (tmp_path / name).mkdir()
        with pytest.raises(JournalError, match=r"identity\.json: missing") as error:
            Journal(tmp_path / name)
        assert "\n" not in str(error.value)
    assert list((tmp_path / "there").iterdir()) == []
    create(tmp_path / "there", IDENTITY, SMALL)  # still possible


def test_every_changed_byte_and_every_length_of_the_identity_is_noticed_or_harmless(tmp_path: Path):
    make(tmp_path / "data", [])
    path = tmp_path / "data" / "identity.json"
    original = path.read_bytes()
    variants = [original[:length] for length in range(len(original))]
    for offset in range(len(original)):
        for flip in (0x01, 0x20, 0xFF):
            changed = bytearray(original)
            changed[offset] ^= flip
            variants.append(bytes(changed))
    refused = 0
    for variant in variants:
        path.write_bytes(variant)
        try:
            Journal(tmp_path / "data").close()
        except JournalError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)
        else:  # white space
            assert json.loads(variant) == json.loads(original)
    assert refused > len(variants) * 3 // 4
    path.write_bytes(original)
    assert recovered(tmp_path / "data") == []  # no refusal has kept the lock


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"node": None}, "node: missing, or not of type int"),
        ({"node": True}, "node: missing, or not of type int"),
        ({"node": 1 << 40}, "holds what no identity holds"),
        ({"cluster": "\ud800"}, "holds what no identity holds"),
        ({"incarnation": "1"}, "incarnation: missing, or not of type int"),
        ({"digest": "other"}, "crc32: does not match"),
        ({"format": 2}, "format: 2 is not 1"),
        ({"extra": 1}, "'extra': unknown field"),
        ({"needs_newer_software": 1}, "crc32: does not match"),
        ({"needs_newer_software": "1"}, "needs_newer_software: missing, or not of type int"),
    ],
)
def test_an_identity_with_a_wrong_field_is_refused_with_the_field(
    tmp_path: Path, change: dict[str, object], reason: str
):
    make(tmp_path / "data", [])
    path = tmp_path / "data" / "identity.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(JournalError) as error:
        Journal(tmp_path / "data")
    assert str(error.value).startswith(f"{path}: {reason}")


def test_a_data_directory_with_newer_commands_is_refused_by_versions_that_do_not_know_them(tmp_path: Path):
    make(tmp_path / "data", [])
    path = tmp_path / "data" / "identity.json"
    before = read_identity(path.read_bytes())
    mark_format(path.parent, before, validation.FORMAT)
    marked = path.read_bytes()
    assert read_identity(marked) == before._replace(format=validation.FORMAT)
    new = set(json.loads(marked)) - {"format", "cluster", "digest", "node", "incarnation", "crc32"}
    assert new == {"needs_newer_software"}, "versions before refuse fields that they do not know"
    mark_format(path.parent, read_identity(marked), validation.FORMAT)
    assert path.read_bytes() == marked
    mark_format(path.parent, before, validation.FORMAT + 1)
    with pytest.raises(JournalError, match="commands of format 2, but this knows 1"):
        Journal(tmp_path / "data")


def test_an_identity_that_is_no_json_object_is_refused():
    for data in (b"", b"[]", b"\xff", b"[" * 100_000, b"1", b'"x"'):
        with pytest.raises(ValueError, match="is not"):
            read_identity(data)


def test_a_second_process_is_refused_until_the_first_one_ends(tmp_path: Path):
    make(tmp_path / "data", numbered(2))
    code = (
        "import sys; from pathlib import Path; from paxoskv.storage.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "data")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == b"locked\n"
        with pytest.raises(Locked, match="lock: another process uses this data directory"):
            Journal(tmp_path / "data")
    finally:
        other.kill()
        other.communicate()
    assert recovered(tmp_path / "data") == numbered(2)


def test_a_second_journal_of_the_same_process_is_refused_too(tmp_path: Path):
    make(tmp_path / "data", [])
    with opened(tmp_path / "data"), pytest.raises(Locked):
        Journal(tmp_path / "data")
    recovered(tmp_path / "data")


# ---------------------------------------------------------------------------------------------- failing disks


def failing_journal(frames: list[list[Record]]) -> tuple[Disk, Journal]:
    disk = Disk()
    make(NODE, frames, disk)
    journal = Journal(NODE, SMALL, files=disk)
    assert list(journal.recover()) == frames
    return disk, journal


@pytest.mark.parametrize("operation", ["pwrite", "fdatasync"])
def test_a_failed_write_is_final(operation: str):
    disk, journal = failing_journal(numbered(2))
    disk.fail_next(operation, errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        journal.write(held(b"x"))
    with pytest.raises(JournalError, match="an earlier write failed"):
        journal.write(held(b"y"))
    journal.close()


def test_what_recovery_hands_out_after_a_failed_sync_is_durable():
    disk, journal = failing_journal(numbered(2))
    disk.fail_next("fdatasync", choose=lost)  # the page cache has the frame, and takes it for written
    with pytest.raises(OSError, match="Input/output"):
        journal.write(held(b"x"))
    journal.close()
    assert recovered(NODE, disk) == [*numbered(2), held(b"x")]
    disk.power_cut(lost)
    assert recovered(NODE, disk) == [*numbered(2), held(b"x")]


def test_what_recovery_hands_out_after_a_kill_is_durable():
    disk, journal = failing_journal(numbered(2))
    disk.crash_after(1)
    with pytest.raises(Crash):
        journal.write(held(b"x"))
    disk.kill()
    assert recovered(NODE, disk) == [*numbered(2), held(b"x")]
    disk.power_cut(lost)
    assert recovered(NODE, disk) == [*numbered(2), held(b"x")]


def test_a_segment_whose_name_was_not_durable_when_the_process_was_killed_is_durable_after_recovery():
    disk, journal = failing_journal([])
    disk.fail_next("sync_directory", choose=lost)
    journal.write(held(b"x" * 500))  # makes the next segment: its name is there, and not yet durable
    disk.kill()
    with opened(NODE, disk) as (journal, _):
        journal.write(held(b"y" * 320))  # goes there, and makes no further one
    disk.power_cut(lost)
    assert recovered(NODE, disk) == [held(b"x" * 500), held(b"y" * 320)]


def test_a_torn_tail_that_was_cut_is_zeros_on_the_disk_before_anything_is_written():
    disk, journal = failing_journal(numbered(2))
    disk.crash_after(0)
    with pytest.raises(Crash):
        journal.write(held(b"x" * 300))
    disk.power_cut(kept)
    with opened(NODE, disk) as (journal, found):
        assert found == numbered(2)
        assert journal.torn is not None
    disk.power_cut(lost)
    with opened(NODE, disk) as (journal, found):
        assert found == numbered(2)
        assert journal.torn is None


def test_a_failure_in_the_background_is_raised_by_the_write_that_needs_the_segment():
    disk, journal = failing_journal([])
    disk.fail_next("create", errno.EIO)
    journal.write(held(b"x" * 500))
    journal.write(held(b"y"))
    with pytest.raises(OSError, match="Input/output"):
        journal.write(held(b"z" * 500))
    with pytest.raises(JournalError, match="an earlier write failed"):
        journal.write(held(b"y"))
    journal.close()
    assert recovered(NODE, disk) == [held(b"x" * 500), held(b"y")]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE])
@pytest.mark.parametrize("operation", ["create", "pwrite", "fdatasync", "rename", "sync_directory"])
def test_a_disk_that_is_full_refuses_the_frame_that_does_not_fit_and_takes_it_when_there_is_room(
    operation: str, error: int
):
    disk, journal = failing_journal([])
    frames = [held(b"x" * 300), held(b"y" * 100), held(b"z" * 100)]
    journal.write(frames[0])
    disk.fail_next(operation, error)
    journal.prepare()  # notices it, long before the segment is full
    journal.write(frames[1])
    assert journal.full is not None
    disk.fail_next(operation, error)
    journal.maintain()
    with pytest.raises(Full, match="no room for the next segment"):
        journal.write(held(b"w" * 500))
    journal.write(frames[2])  # what fits is still written
    assert journal.full is not None and not journal.has_spare
    journal.maintain()  # begins to make the segment
    journal.maintain()  # takes it
    assert journal.full is None and journal.has_spare
    journal.write(held(b"w" * 500))
    journal.close()
    disk.power_cut(lost)
    assert recovered(NODE, disk) == [*frames, held(b"w" * 500)]


def test_a_segment_that_cannot_be_opened_for_too_many_files_are_is_opened_later(
    monkeypatch: pytest.MonkeyPatch,
):
    disk, journal = failing_journal([])
    journal.write(held(b"x" * 500))
    with monkeypatch.context() as patch:

        def too_many(path: Path) -> int:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

        patch.setattr(disk, "open", too_many)
        for _ in range(2):
            with pytest.raises(Full, match="cannot be opened: Too many open files"):
                journal.write(held(b"y" * 500))
        assert journal.full is not None
    journal.write(held(b"y" * 500))
    assert journal.full is None
    journal.close()
    disk.power_cut(lost)
    assert recovered(NODE, disk) == [held(b"x" * 500), held(b"y" * 500)]


def test_a_spare_segment_is_used_although_no_further_one_can_be_made(monkeypatch: pytest.MonkeyPatch):
    disk, journal = failing_journal([])
    journal.write(held(b"x" * 500))
    assert journal.has_spare
    with monkeypatch.context() as patch:

        def too_many(path: Path) -> int:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

        patch.setattr(disk, "open", too_many)
        with pytest.raises(Full):
            journal.write(held(b"y" * 500))
    disk.fail_next("create", errno.ENOSPC)
    journal.maintain()  # tries to make a further one
    journal.write(held(b"y" * 500))
    journal.close()
    disk.power_cut(lost)
    assert recovered(NODE, disk) == [held(b"x" * 500), held(b"y" * 500)]


def test_a_frame_that_is_tried_again_and_again_leaves_no_garbage():
    disk, journal = failing_journal([])
    disk.fail_next("create", errno.ENOSPC)
    journal.write(held(b"x" * 500))
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            disk.fail_next("create", errno.ENOSPC)
            journal.prepare()
            with pytest.raises(Full):
                journal.write(held(b"y" * 500))
        frames = [thing for thing in gc.get_objects() if isinstance(thing, Full | OSError)]
        assert len(frames) < 5, "each would hold the frame that was not written"
    finally:
        gc.enable()
    journal.close()


def test_a_journal_that_is_closed_while_the_next_segment_fails_is_closed_all_the_same():
    disk, journal = failing_journal([])
    disk.fail_next("rename", errno.EIO)
    journal.write(held(b"x" * 500))
    journal.close()
    assert recovered(NODE, disk) == [held(b"x" * 500)]


def test_without_sync_a_write_survives_a_kill_and_not_a_power_cut():
    disk = Disk()
    create(NODE, IDENTITY, SMALL, disk)
    journal = Journal(NODE, SMALL, sync=False, files=disk)
    assert list(journal.recover()) == []
    journal.write(held(b"x"))
    disk.power_cut(lost)
    assert recovered(NODE, disk) == []


def test_making_a_data_directory_is_all_or_refused_wherever_the_power_fails():
    total = Disk()
    create(NODE / "data", IDENTITY, SMALL, total)
    for choose in (lost, kept, some(random.Random(1)), some(random.Random(2))):
        for crash in range(total.operations):
            disk = Disk()
            disk.crash_after(crash)
            with pytest.raises(Crash):
                create(NODE / "data", IDENTITY, SMALL, disk)
            disk.power_cut(choose)
            if disk.exists(NODE / "data" / "identity.json"):
                assert recovered(NODE / "data", disk) == []
            else:
                with pytest.raises(JournalError, match="missing"):
                    Journal(NODE / "data", files=disk)
    total.power_cut(lost)
    assert recovered(NODE / "data", total) == []


def test_every_crash_point_of_a_segment_roll_loses_nothing_and_invents_nothing():
    frames = numbered(12)
    whole = Disk()
    make(NODE, [], whole)
    before = whole.operations
    with opened(NODE, whole) as (journal, _):
        for records in frames:
            journal.write(records)
        operations = whole.operations - before
    for choose in (lost, kept, some(random.Random(3)), some(random.Random(4))):
        for crash in range(operations):
            disk = Disk()
            make(NODE, [], disk)
            written = 0
            disk.crash_after(crash)
            with pytest.raises(Crash):
                journal = Journal(NODE, SMALL, files=disk)
                list(journal.recover())
                for records in frames:
                    journal.write(records)
                    written += 1
            disk.power_cut(choose)
            found = recovered(NODE, disk)
            assert found in (frames[:written], frames[: written + 1])
            with opened(NODE, disk) as (journal, again):
                assert again == found
                for records in frames:
                    journal.write(records)
            disk.power_cut(lost)
            assert recovered(NODE, disk) == found + frames


def test_every_way_to_tear_a_frame_by_sectors_loses_only_that_frame():
    first, second = held(b"1" * 300), held(b"2" * 2000)
    for pattern in range(1 << 6):
        disk = Disk()
        make(NODE, [first], disk, segment_bytes=4096)
        journal = Journal(NODE, 4096, files=disk)
        list(journal.recover())
        disk.crash_after(1)
        with pytest.raises(Crash):
            journal.write(second)
        asked: list[int] = []

        def choose(changes: int, pattern: int = pattern, asked: list[int] = asked) -> int:
            asked.append(pattern >> len(asked) & 1)
            return asked[-1]

        disk.power_cut(choose)
        assert len(asked) == 6  # the name of the lock, then the sectors of the frame
        expected = [first, second] if all(asked[1:]) else [first]
        assert recovered(NODE, disk) == expected
        disk.power_cut(lost)
        assert recovered(NODE, disk) == expected


Step = tuple[str, int, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "write", "crash", "crash in recovery", "fail"]),
        st.integers(0, 1500),  # bytes of the payload
        st.integers(0, 40),  # operations until the crash
    ),
    max_size=40,
)


class Run:
    """Writes, crashes and recoveries against what must be there."""

    def __init__(self, seed: int) -> None:
        self.source = random.Random(seed)
        self.disk = Disk(random.Random(seed + 1))
        self.must: list[list[Record]] = []  # what a write() or a recovery has promised
        self.may: list[list[Record]] = []  # one more, under way when the crash came
        self.number = 0
        create(NODE, IDENTITY, 1024, self.disk)
        self.recover()

    def recover(self) -> None:
        self.journal = Journal(NODE, 1024, files=self.disk)
        found = []
        for records in self.journal.recover():
            found.append(records)
            if len(found) > len(self.must):  # handed out: from now on it must stay
                self.must += self.may
                self.may = []
            assert found == self.must[: len(found)]
        assert found == self.must
        self.may = []

    def write(self, size: int) -> None:
        self.number += 1
        records = held(self.source.randbytes(size), self.number)
        self.may = [records]
        self.journal.write(records)
        self.must.append(records)
        self.may = []

    def end(self) -> None:
        """The process ends, or the machine does."""
        choose = self.source.choice([None, lost, kept, some(self.source), some(self.source)])
        if choose is None:
            self.disk.kill()
        else:
            self.disk.power_cut(choose)

    def until_it_stops(self, work: Callable[[], None]) -> None:
        with contextlib.suppress(Crash, OSError):
            work()
        self.disk.crash_after(None)
        self.end()

    def writes(self, size: int) -> None:
        for _ in range(30):
            self.write(size)

    def step(self, kind: str, size: int, operations: int) -> None:
        if kind == "write":
            self.write(size)
            return
        if kind == "crash":
            self.disk.crash_after(operations)
            self.until_it_stops(lambda: self.writes(size))
        elif kind == "crash in recovery":
            self.end()
            self.disk.crash_after(operations)
            self.until_it_stops(self.recover)
        else:
            operation = self.source.choice(["pwrite", "fdatasync", "create", "rename", "sync_directory"])
            self.disk.fail_next(operation, choose=some(self.source))
            self.until_it_stops(lambda: self.writes(size))
        self.recover()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps, st.integers(0, 1 << 32))
@example([("write", 0, 0), ("crash", 900, 1), ("crash in recovery", 0, 1), ("write", 10, 0)], 0)
def test_no_sequence_of_writes_and_crashes_loses_a_frame_or_invents_one(sequence: list[Step], seed: int):
    run = Run(seed)
    for step in sequence:
        run.step(*step)
    run.end()
    run.recover()


# ----------------------------------------------------------------------------------------- the simulated disk


def test_the_simulated_disk_keeps_what_was_synced_and_nothing_else():
    disk = Disk()
    handle = disk.create(Path("file"))
    disk.pwrite(handle, b"durable", 0)
    disk.fdatasync(handle)
    disk.sync_directory(Path())
    disk.pwrite(handle, b"lost", 0)
    disk.close(disk.create(Path("lost")))
    assert disk.read(Path("file")) == b"lostble"
    disk.power_cut(lost)
    assert (disk.read(Path("file")), disk.exists(Path("lost"))) == (b"durable", False)


def test_the_simulated_disk_loses_a_rename_that_no_sync_of_the_directory_followed():
    for choose, name in ((lost, "old"), (kept, "new")):
        disk = Disk()
        handle = disk.create(Path("old"))
        disk.fdatasync(handle)
        disk.sync_directory(Path())
        disk.rename(Path("old"), Path("new"))
        disk.power_cut(choose)
        assert disk.names(Path()) == [name]


def test_the_simulated_disk_tears_a_write_at_its_sectors():
    seen = set()
    for seed in range(200):
        disk = Disk()
        handle = disk.create(Path("file"))
        disk.pwrite(handle, bytes(1536), 0)
        disk.fdatasync(handle)
        disk.sync_directory(Path())
        disk.pwrite(handle, b"x" * 1000, 100)
        disk.power_cut(some(random.Random(seed)))
        data = disk.read(Path("file"))
        seen.add(tuple(data[i : i + 512].count(b"x") for i in (0, 512, 1024)))
    assert seen == {(a, b, c) for a in (0, 412) for b in (0, 512) for c in (0, 76)}


def test_a_handle_of_a_process_that_was_killed_is_invalid():
    disk = Disk()
    handle = disk.create(Path("file"))
    disk.kill()
    with pytest.raises(OSError, match="Bad file descriptor"):
        disk.pwrite(handle, b"x", 0)


def test_a_short_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = Files()
    handle = files.create(tmp_path / "file")
    real = os.pwrite
    monkeypatch.setattr(files_module.os, "pwrite", lambda fd, data, offset: real(fd, data[:3], offset))
    files.pwrite(handle, b"0123456789", 2)
    monkeypatch.setattr(files_module.os, "pwrite", lambda fd, data, offset: 0)
    with pytest.raises(OSError, match="wrote nothing"):
        files.pwrite(handle, b"x", 0)
    files.close(handle)
    assert (tmp_path / "file").read_bytes() == b"\0\0" + b"0123456789"


def test_the_checks_are_those_of_zlib_so_that_other_tools_can_read_a_journal():
    segment, header = segment_of(1)
    assert segment.check == zlib.crc32(header[:-4])
    data = frame(b"body", 9, segment)
    assert int.from_bytes(data[20:24], "big") == zlib.crc32(b"body")
    assert int.from_bytes(data[24:28], "big") == zlib.crc32(data[:24], segment.check)


# ------------------------------------------------------------------------- each byte of a journal of 64 KiB


def large_journal() -> tuple[Disk, Path]:
    """One segment of 64 KiB, nearly full."""
    disk = Disk()
    make(NODE, numbered(59, size=1000), disk, 1 << 16)
    path = segment_path(NODE / "journal", 1)
    assert len(disk.read(path)) == 1 << 16
    return disk, path


@pytest.mark.slow
def test_no_truncation_of_a_journal_of_64_kib_is_accepted():
    disk, path = large_journal()
    whole = disk.read(path)
    for length in range(len(whole)):
        disk.content(path)[:] = whole[:length]
        with pytest.raises(Damaged) as error:
            read_segment(disk, NODE / "journal", 1)
        assert error.value.path == path
    disk.content(path)[:] = whole[:-1]
    with pytest.raises(Damaged, match="65535 bytes long"), opened(NODE, disk):
        pass


@pytest.mark.slow
def test_no_flipped_byte_of_a_journal_of_64_kib_is_accepted_in_silence():
    """A byte of the last frame, or behind it, may have been torn: that is cut, and told."""
    disk, path = large_journal()
    whole = disk.read(path)
    segment = read_segment_header(whole)
    assert segment is not None
    frames = scan(whole, segment, 1).frames
    assert len(frames) == 59
    last = frames[-1][0]
    changed = bytearray(whole)
    for at in range(len(whole)):
        changed[at] ^= 0x41
        if at < FIRST:
            assert read_segment_header(bytes(changed[:FIRST])) is None
        else:
            found = scan(changed, segment, 1)
            assert found.end > found.stop, f"byte {at} went unnoticed"
            assert (found.stray is not None) == (at < last), f"byte {at}"
        changed[at] ^= 0x41
    for at in (FIRST, last - 1, last, frames[-1][1]):  # and what the journal says to it
        disk.content(path)[at] ^= 0x41
        disk.content(NODE / SYNCED)[:] = mark_bytes(58, 1, segment.check)
        if at < last:
            with pytest.raises(Damaged, match="is damaged, because a later one"), opened(NODE, disk):
                pass
            disk.kill()
        else:
            with opened(NODE, disk) as (journal, found_frames):
                assert len(found_frames) == (58 if at < frames[-1][1] else 59)
                assert journal.torn is not None and f"offset {last if at == last else at}" in journal.torn
        disk.content(path)[:] = whole
