"""Export and import: everything comes back as it was, and both go on where they ended."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paxoskv import Client, Command, Verb
from paxoskv.client import cli, transfer
from paxoskv.client.transfer import MAX_LINE, item_of, last_key, line_of
from paxoskv.wire.codec import Unknown
from paxoskv.wire.structs import Item
from tests.harness.fake_node import CLOSE, FakeCluster

ODD = {"a NUL \0": "\0", "line\nend": "\r\n", "\U0001f600": "caf\u00e9", "empty": "", " ": " "}
ODD['q"uote\\'] = "\u2028\x7f\x1b[0m"


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[FakeCluster]:
    cluster = FakeCluster(tmp_path)
    yield cluster
    cluster.close()


@pytest.fixture
def shell(fakes: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    file = tmp_path / "cluster.json"
    nodes = [{"id": node.number, "host": "127.0.0.1", "port": node.port} for node in fakes.nodes]
    file.write_text(json.dumps({"name": "fake", "nodes": nodes}))

    def run(*words: object) -> tuple[int, str, str]:
        code = cli.main([*map(str, words), "--cluster", str(file)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def fill(fakes: FakeCluster, content: dict[str, str]) -> None:
    with Client(fakes.cluster) as client:
        items = [*content.items()]
        for first in range(0, len(items), 1000):
            client.execute([Command(Verb.PUT, *item) for item in items[first : first + 1000]])


@given(st.text(min_size=1, max_size=30), st.text(max_size=60))
def test_a_line_is_read_back_as_it_was_written(key: str, value: str) -> None:
    line = line_of(Item(key, value))
    assert "\n" not in line and line.isascii()
    assert item_of(line.encode()) == Item(key, value)


def test_no_line_is_longer_than_the_longest() -> None:
    assert len(line_of(Item("\0" * 4096, "\0" * (512 << 10)))) < MAX_LINE
    assert len(line_of(Item("\U0001f600" * 1024, "\x7f" * (512 << 10)))) < MAX_LINE


def test_what_was_exported_is_imported_as_it_was(shell: Any, fakes: FakeCluster, tmp_path: Path) -> None:
    content = ODD | {f"key {i}": str(i) for i in range(2500)}
    fill(fakes, content)
    assert shell("export", tmp_path / "all.jsonl") == (0, f"{len(content):,} keys\n", "")
    assert shell("export", tmp_path / "some.jsonl", "--prefix", "key 24", "-o", "json") == (
        0, '{"keys": 111, "of_one_state": true}\n', "",
    )  # fmt: skip
    for key in content:
        fakes.store._content.remove(key)
    assert shell("import", tmp_path / "some.jsonl") == (0, "111 keys\n", "")
    assert len(fakes.content) == 111
    assert shell("import", tmp_path / "all.jsonl", "-o", "json") == (0, '{"keys": 2506}\n', "")
    assert fakes.content == content


def test_an_export_goes_on_after_its_last_whole_line(shell: Any, fakes: FakeCluster, tmp_path: Path) -> None:
    content = {f"key {i:04}": "v" * 100 for i in range(1500)}
    fill(fakes, content)
    file = tmp_path / "all.jsonl"
    shell("export", file)
    whole = file.read_bytes()
    for size in (0, 5, len(whole) // 2, whole.rindex(b"\n", 0, -1) + 1, len(whole) - 1, len(whole)):
        file.write_bytes(whole[:size])
        assert shell("export", file, "--resume")[0] == 0
        assert file.read_bytes() == whole
    assert shell("export", "-") == (0, whole.decode(), "")


@pytest.mark.parametrize("wrong", ["not JSON\n", '{"key": "k"}\n', "x" * (2 * MAX_LINE + 1)])
def test_a_file_that_is_no_export_is_left_alone(shell: Any, tmp_path: Path, wrong: str) -> None:
    file = tmp_path / "other.txt"
    file.write_text(wrong)
    code, out, errors = shell("export", file, "--resume")
    assert (code, out) == (65, "") and errors.count("\n") == 1 and "it is no export" in errors
    assert file.read_text() == wrong


def test_an_export_leaves_alone_what_is_there(shell: Any, fakes: FakeCluster, tmp_path: Path) -> None:
    fill(fakes, {"key": "new"})
    file = tmp_path / "all.jsonl"
    file.write_text('{"key": "key", "value": "old"}\n')
    code, out, errors = shell("export", file)
    assert (code, out) == (2, "") and f"{file}: it is there already: --resume" in errors
    assert "old" in file.read_text()
    code, out, errors = shell("export", "/dev/null")
    assert (code, out) == (2, "") and "/dev/null: it is no regular file" in errors


def test_an_export_says_that_keys_were_written_meanwhile(
    shell: Any, fakes: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(fakes, {f"key {i:04}": "v" for i in range(1500)})
    lines = []

    def line(item: Item) -> str:
        lines.append(item)
        if len(lines) == 7:
            fill(fakes, {"new": "1"})
        return line_of(item)

    monkeypatch.setattr(transfer, "line_of", line)
    code, out, errors = shell("export", tmp_path / "all.jsonl")
    assert (code, out) == (0, "1,501 keys\n") and "not all of one state" in errors


def test_an_import_cannot_leave_out_more_than_there_is(shell: Any, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"key": "key", "value": "v"}\n')
    code, out, errors = shell("import", file, "--skip", "600")
    assert (code, out) == (65, "") and "the file ends here: there are no 600 lines to skip" in errors
    assert "go on with" not in errors


def test_an_import_says_where_it_goes_on(shell: Any, fakes: FakeCluster, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    lines = [line_of(Item(f"key {i:04}", "v")) for i in range(1500)]
    lines[1200] = '{"key": "k", "value": 7}'
    file.write_text("\n".join(lines))
    code, out, errors = shell("import", file)
    assert (code, out) == (65, "") and len(fakes.content) == 1200
    assert errors.splitlines()[0].endswith(f"1,200 lines of {file} are done: go on with --skip 1200")
    assert errors.splitlines()[1].endswith(f"{file}:1201: value: a text is needed")
    lines[1200] = line_of(Item("mended", "v"))
    file.write_text("\n".join(lines))
    assert shell("import", file, "--skip", "1200") == (0, "300 keys\n", "")
    assert len(fakes.content) == 1500


def test_an_import_whose_outcome_is_unknown_begins_again_with_what_is_not_certain(
    shell: Any, fakes: FakeCluster, tmp_path: Path
) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text("".join(line_of(Item(f"key {i:04}", "v")) + "\n" for i in range(2100)))
    calls = []

    def third() -> Any:
        calls.append(1)
        return Unknown("no quorum") if len(calls) > 3 else None  # the session, and two calls

    for node in fakes.nodes:
        node.always = third
    code, _, errors = shell("import", file, "--timeout", "0.5")
    assert code == 4 and "go on with --skip 2048" in errors
    for node in fakes.nodes:
        node.always = None
    assert shell("import", file, "--skip", "2048") == (0, "52 keys\n", "") and len(fakes.content) == 2100


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"[]", "it is not"),
        (b'{"key": "k", "value": "v", "ttl": 1}', "it is not"),
        (b'{"key": 1, "value": "v"}', "key: a text is needed"),
        (b'{"key": "k", "value": "\\ud800"}', "value: half a character"),
        (b'{"key": "k", "value": "\xff"}', "invalid start byte"),
        (b"[" * 100_000, "too deep"),
        (b"", "Expecting value"),
    ],
)
def test_a_line_that_is_no_key_and_value_is_told(line: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        item_of(line)


def test_a_line_that_is_too_long_is_not_read_whole() -> None:
    with pytest.raises(transfer.WrongLine, match="1: longer than"):
        next(transfer.batches(io.BytesIO(b"x" * (MAX_LINE + 2)), 0))


def test_batches_keep_within_what_a_call_takes() -> None:
    file = io.BytesIO(b"".join(line_of(Item(f"k{i}", "v" * 200_000)).encode() + b"\n" for i in range(7)))
    assert [(lines, len(items)) for lines, items in transfer.batches(file, 0)] == [
        (2, 2),
        (4, 2),
        (6, 2),
        (7, 1),
    ]


def test_the_last_key_of_a_file_without_lines_is_none() -> None:
    assert last_key(io.BytesIO()) is None
    torn = io.BytesIO(b'{"key": "k", ')
    assert last_key(torn) is None and torn.getvalue() == b""


def test_a_key_that_the_store_refuses_is_told(shell: Any, fakes: FakeCluster, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(line_of(Item("", "v")))
    fakes.nodes[0].script.append(CLOSE)
    code, _, errors = shell("import", file)
    assert (
        code == 1
        and "go on with --skip 0" in errors
        and "the store refused one of the lines 1 to 1" in errors
    )
