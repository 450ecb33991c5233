"""The end of a journal, read while it is written: what is whole, in order."""

from pathlib import Path

import pytest

from paxoskv.storage import last_frames
from paxoskv.storage.data_dir import create
from paxoskv.storage.files import Files
from paxoskv.storage.journal import Journal
from paxoskv.storage.segments import segment_path
from paxoskv.wire.structs import Entry, Held, Identity, Record

SEGMENT = 64 << 10  # bytes


def record(number: int, size: int = 100) -> Record:
    return Record(held=Held(1, 257, number, [Entry(number + 1, bytes(size))]))


def slots(directory: Path) -> list[int]:
    return [
        one.held.start
        for records in last_frames.last_records(Files(), directory)
        for one in records
        if one.held is not None
    ]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    create(tmp_path / "data", Identity("c", "d", 1, 1, 0), SEGMENT)
    journal = Journal(tmp_path / "data", SEGMENT)
    assert not list(journal.recover())
    return journal


def test_all_frames_are_read_in_order_while_the_journal_is_open(journal: Journal, tmp_path: Path) -> None:
    assert slots(tmp_path / "data") == []
    for number in range(50):
        journal.write([record(number)])
    assert slots(tmp_path / "data") == list(range(50))
    journal.close()


def test_the_last_two_segments_are_read_and_of_them_the_last_bytes(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        journal.write([record(number, 10_000)])
        journal.maintain()
    found = slots(tmp_path / "data")
    assert 6 < len(found) <= 13 and found == list(range(40 - len(found), 40))
    monkeypatch.setattr(last_frames, "LAST", 25_000)
    assert slots(tmp_path / "data") == [38, 39]
    journal.close()


def test_a_segment_ends_where_a_frame_is_torn_and_headers_are_found_in_any_piece(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        journal.write([record(number)])
    journal.close()
    path = segment_path(tmp_path / "data" / "journal", 1)
    data = bytearray(path.read_bytes())
    end = len(data.rstrip(b"\0"))
    for size in (100, 150, 1000):
        monkeypatch.setattr(last_frames, "CHUNK", size)
        assert slots(tmp_path / "data") == list(range(20))
    data[end - 1] ^= 1  # in the last body
    path.write_bytes(data)
    assert slots(tmp_path / "data") == list(range(19))
