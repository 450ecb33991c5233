"""Checkpoints: what recovery finds on top of one, whatever happened while it was made or taken."""

import contextlib
import errno
import json
import os
import random
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pickledb import PickleDB

from paxoskv.multipaxos import Cut
from paxoskv.node.replica import Replica
from paxoskv.protocol.node import Node
from paxoskv.protocol.single import Single
from paxoskv.state.store import RESERVED_KEY, Store, encode_batch
from paxoskv.storage.checkpoint import (
    CHUNK_BYTES,
    PIECE_ITEMS,
    SYNC_BYTES,
    Checkpoints,
    checkpoint_path,
    cut_of,
    encoded,
    make_checkpoint,
    parse,
    read_sum,
    recover,
    restore,
    state_of,
    sum_path,
)
from paxoskv.storage.data_dir import (
    MANIFEST,
    Manifest,
    Saved,
    create,
    manifest_json,
    read_identity,
    read_manifest,
)
from paxoskv.storage.files import Damaged, Files
from paxoskv.storage.journal import Journal
from paxoskv.storage.segments import segment_path
from paxoskv.wire import validation
from paxoskv.wire.codec import Malformed
from paxoskv.wire.structs import (
    Command,
    Identity,
    Outcome,
    Record,
    Result,
    Verb,
)
from tests.harness.disk import Disk, lost

IDENTITY = Identity("test", "0123abcd", 0, 1, 0)
NODE = Path("node")
SMALL = 1024  # bytes of a segment


class Server:
    """What a server does with its data directory, without sockets: open, apply, make checkpoints.

    The standalone server; or the only node of a cluster, which is its own quorum.
    """

    IDENTITY = IDENTITY

    def __init__(
        self, directory: Path, files: Files, nodes: Sequence[int] = (), segment_bytes: int = SMALL
    ) -> None:
        self.directory = directory
        self.files = files
        self.nodes = nodes
        self.core = self.new_core()
        self.store = Store("unused")
        self.journal = Journal(directory, segment_bytes, files=files)
        recover(self.journal, directory, self.core, self.store, files)
        self.core.start(0.0)
        self.frames: list[tuple[list[Record], Callable[[], None]]] = []
        self.answers: list[Any] = []
        self.replica = Replica(
            self.core,
            self.store,
            lambda: 0.0,
            lambda *message: None,
            lambda *frame: self.frames.append(frame[:2]),
            lambda token, value: self.answers.append((token, value)),
        )
        self.turn()
        self.replica.tick()
        self.turn()
        assert self.core.ready
        self.checkpoints = Checkpoints(directory, self.journal, lambda call: call(), files)

    def new_core(self) -> Any:
        return Node(self.nodes[0], self.nodes, Random(0)) if self.nodes else Single()

    def turn(self) -> None:
        self.replica.turn()
        while self.frames:
            records, done = self.frames.pop(0)
            self.journal.write(records)
            done()

    def put(self, key: str, value: str) -> None:
        """Returns when it is answered, and so durable."""
        self.put_all({key: value})

    def put_all(self, items: dict[str, str]) -> None:
        """All of them in one entry."""
        self.replica.submit(1, [Command(Verb.PUT, key, value) for key, value in items.items()], batch=True)
        self.turn()
        assert self.answers.pop() == (1, [Result(Outcome.OK)] * len(items))

    def roll(self) -> None:
        if notes := self.core.notes():
            self.journal.write(notes)
        self.journal.write(self.core.state(), new_segment=True)

    def checkpoint(self) -> None:
        assert self.journal.rolled is not None
        self.checkpoints.making = self.checkpoints.next_number()
        manifest, _ = make_checkpoint(
            self.directory, self.new_core(), Store("unused"), self.checkpoints.making, *self.journal.rolled,
            self.files,
        )  # fmt: skip
        self.journal.checkpointed(manifest)
        self.checkpoints.making = None
        self.checkpoints.remove_old().result()

    def content(self) -> dict[str, str]:
        return {key: value for key, value in self.store.save_state().items() if key != RESERVED_KEY}


@contextlib.contextmanager
def serving(files: Files, directory: Path = NODE, nodes: Sequence[int] = ()) -> Iterator[Server]:
    if not files.exists(directory):
        create(directory, IDENTITY, SMALL, files)
    server = Server(directory, files, nodes)
    yield server
    server.journal.close()


def content(files: Files, directory: Path = NODE, nodes: Sequence[int] = ()) -> dict[str, str]:
    """What a start finds."""
    with serving(files, directory, nodes) as server:
        return server.content()


def names(files: Files, directory: Path = NODE) -> set[str]:
    return set(files.names(directory)) - {"lock", "identity.json", "journal", "synced"}


# -------------------------------------------------------------------------------------------- the common case


@pytest.mark.parametrize("nodes", [(), (7,)])
def test_a_checkpoint_takes_the_place_of_the_segments_before_it(tmp_path: Path, nodes: tuple[int, ...]):
    for files, directory in ((Files(), tmp_path / "node"), (Disk(), NODE)):
        expected = {}
        with serving(files, directory, nodes) as server:
            for generation in range(4):
                for i in range(20):
                    expected[f"key {generation} {i}"] = f"value {i}"
                    server.put(f"key {generation} {i}", f"value {i}")
                server.roll()
                expected["between"] = str(generation)
                server.put("between", str(generation))
                server.checkpoint()
                segments = files.names(directory / "journal")
                assert f"{server.journal.rolled[0]:010}.segment" == min(segments)
        numbers = {"checkpoint-0000000003.json", "checkpoint-0000000004.json", MANIFEST}
        assert names(files, directory) == numbers
        assert content(files, directory, nodes) == expected
        assert content(files, directory, nodes) == expected


def test_the_file_of_a_checkpoint_is_plain_json_with_the_keys_as_they_are(tmp_path: Path):
    awkward = {"\0": "\0", 'a"b\\': "", "ключ": "\U0001f600", '","': '","', "\n": '{"":{}}'}
    with serving(Files(), tmp_path / "node") as server:
        for key, value in awkward.items():
            server.put(key, value)
        server.roll()
        server.checkpoint()
    loaded = PickleDB(str(checkpoint_path(tmp_path / "node", 1)))
    loaded.load()
    bookkeeping = loaded.db.pop("")
    assert loaded.db == awkward
    assert bookkeeping["position"] == [len(awkward), 0]
    assert content(Files(), tmp_path / "node") == awkward


def test_a_journal_counts_its_bytes_from_the_last_checkpoint_on():
    with serving(Disk()) as server:
        for i in range(30):
            server.put(str(i), "x" * 50)
        server.roll()
        before = server.journal.bytes
        server.put("after", "x")
        server.checkpoint()
        assert 0 < server.journal.bytes < before / 10
        left = server.journal.bytes
        server.journal.close()
        with serving(server.files) as again:
            assert again.journal.bytes == left


@pytest.mark.parametrize("nodes", [(), (7,)])
def test_a_state_frame_without_a_checkpoint_of_it_is_an_ordinary_frame(nodes: tuple[int, ...]):
    disk = Disk()
    with serving(disk, nodes=nodes) as server:
        for i in range(5):
            server.put(str(i), "x" * 50)
            server.roll()
        server.checkpoint()
        server.put("last", "y")
        server.roll()
    assert content(disk, nodes=nodes) == {**{str(i): "x" * 50 for i in range(5)}, "last": "y"}


# ----------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("name", [MANIFEST, "checkpoint-0000000002.json"])
def test_no_truncation_and_no_flipped_byte_of_a_manifest_or_checkpoint_is_accepted(name: str):
    disk = Disk()
    with serving(disk) as server:
        for generation in range(2):
            for i in range(20):
                server.put(f"key {i}", f"value {generation}")
            server.roll()
            server.checkpoint()
        server.put("last", "x")
    whole = disk.read(NODE / name)
    with_last = content(disk)
    listing = names(disk), set(disk.names(NODE / "journal"))

    def refused(data: bytes) -> None:
        disk.content(NODE / name)[:] = data
        with pytest.raises(Damaged) as error, serving(disk):
            pass
        assert error.value.path == NODE / name
        disk.kill()  # the lock of the failed start

    for length in range(len(whole)):
        refused(whole[:length])
    for at in range(len(whole)):
        for flip in (1, 0x20, 0x80, 0xFF):
            refused(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
    assert (names(disk), set(disk.names(NODE / "journal"))) == listing
    disk.content(NODE / name)[:] = whole
    assert content(disk) == with_last


def test_a_missing_checkpoint_first_segment_or_state_frame_is_damage():
    disk = Disk()
    with serving(disk) as server:
        server.put("a", "x")
        server.roll()
        server.checkpoint()
        server.put("b", "x")
        segment = server.journal.rolled[0]
    for path in (checkpoint_path(NODE, 1), segment_path(NODE / "journal", segment)):
        data = disk.read(path)
        disk.remove(path)
        with pytest.raises(Damaged, match="missing"), serving(disk):
            pass
        disk.kill()
        handle = disk.create(path)
        disk.pwrite(handle, data, 0)
        disk.close(handle)
    assert content(disk) == {"a": "x", "b": "x"}
    disk.content(segment_path(NODE / "journal", segment))[40:] = bytes(SMALL - 40)
    with pytest.raises(Damaged, match="the manifest names it"), serving(disk):
        pass


@pytest.mark.parametrize("older", ["journal", "manifest", "mark", "all but the mark", "no manifest"])
def test_parts_of_a_data_directory_of_different_ages_are_damage(tmp_path: Path, older: str):
    """Whatever is put back by itself: no start takes an older state for the last one in silence."""
    node, copy = tmp_path / "node", tmp_path / "copy"
    with serving(Files(), node) as server:
        for generation in range(4):
            for i in range(20):
                server.put(f"key {i}", f"value {generation} {i}")
            server.roll()
            server.checkpoint()
            if generation == 1:
                shutil.copytree(node, copy)
        server.put("last", "x")
    last = content(Files(), node)
    if older == "all but the mark":
        shutil.copy(node / "synced", copy)
        shutil.rmtree(node)
        shutil.copytree(copy, node)
    elif older == "journal":
        shutil.rmtree(node / "journal")
        shutil.copytree(copy / "journal", node / "journal")
    elif older == "manifest":
        shutil.copy(copy / MANIFEST, node)
    elif older == "no manifest":
        (node / MANIFEST).unlink()
    else:
        shutil.copy(copy / "synced", node)
    if older == "mark":
        assert content(Files(), node) == last, "a mark is a lower bound"
    else:
        with pytest.raises(Damaged):
            content(Files(), node)


def test_a_manifest_says_all_it_knows_and_reads_it_back():
    for previous in (None, Saved(6, 99, 1)):
        manifest = Manifest(Saved(7, 1 << 40, 0xFFFFFFFF), previous, 12, 1 << 50)
        assert read_manifest(manifest_json(manifest).encode()) == manifest
    for data in (b"", b"{}", b"[]", b"null", b"\xff", b'{"checkpoint": 3}', b"[" * 100_000):
        with pytest.raises(ValueError, match="is not what a manifest is"):
            read_manifest(data)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("operation", ["create", "pwrite", "fdatasync", "rename", "sync_directory"])
def test_a_checkpoint_that_fails_leaves_the_one_before_and_the_next_one_succeeds(operation: str, error: int):
    disk = Disk()
    with serving(disk) as server:
        server.put("a", "1")
        server.roll()
        server.checkpoint()
        server.put("b", "2")
        server.roll()
        disk.fail_next(operation, error)
        with pytest.raises(OSError, match=os.strerror(error)):
            server.checkpoint()
        server.checkpoints.making = None
        if error == errno.ENOSPC and operation != "sync_directory":
            assert not [name for name in names(disk) if ".new" in name]  # the room is needed
        server.put("c", "3")
        server.roll()
        server.checkpoint()
        server.put("d", "4")
    disk.power_cut(lost)
    assert content(disk) == {"a": "1", "b": "2", "c": "3", "d": "4"}
    assert names(disk) == {"checkpoint-0000000001.json", "checkpoint-0000000003.json", MANIFEST}


class Spoiling(Disk):
    """A disk on which what pickledb saves is changed."""

    spoil: Callable[[bytearray], None] = staticmethod(lambda data: None)

    def save(self, path: Path, content: dict[str, Any]) -> None:
        super().save(path, content)
        self.spoil(self.content(path))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.__setitem__(len(data) // 2, data[len(data) // 2] ^ 1),
        lambda data: data.append(ord(" ")),
        lambda data: data.pop(),
        bytearray.clear,
    ],
    ids=["a flipped bit", "a byte more", "a byte less", "nothing"],
)
def test_what_is_read_back_must_be_what_was_saved(spoil: Callable[[bytearray], None]):
    disk = Spoiling()
    with serving(disk) as server:
        server.put_all({str(key): "x" for key in range(PIECE_ITEMS + 1)})
        server.roll()
        disk.spoil = spoil
        with pytest.raises(Damaged, match="what was read back"):
            server.checkpoint()
    assert MANIFEST not in names(disk)


def test_the_bytes_that_a_file_must_have_are_those_that_pickledb_writes(tmp_path: Path):
    for size in (1, PIECE_ITEMS, PIECE_ITEMS + 1, 3 * PIECE_ITEMS):
        state: dict[str, Any] = {f'é" \0{key}': [key, None, "😀\\"] for key in range(size)}
        Files().save(tmp_path / "state", state)
        assert b"".join(encoded(state)) == (tmp_path / "state").read_bytes()


def test_closed_segments_that_are_damaged_make_no_checkpoint():
    disk = Disk()
    with serving(disk) as server:
        for i in range(30):
            server.put(str(i), "x" * 50)
        server.roll()
        path = segment_path(NODE / "journal", 2)
        disk.content(path)[100] ^= 1
        with pytest.raises(Damaged, match="frame"):
            server.checkpoint()
    assert names(disk) == set()


# ---------------------------------------------------------------------------------------------------- parsing


def test_a_state_is_parsed_piece_by_piece_to_what_it_is_at_once():
    source = random.Random(5)
    alphabet = ['"', "\\", ",", ":", "{", "}", "a", "\0", "é", '","', '":"']
    for size in (0, 1, 10, 3000, 30_000):
        state: dict[str, Any] = {
            "".join(source.choices(alphabet, k=source.randint(1, 9))): "".join(
                source.choices(alphabet, k=source.randint(0, 40))
            )
            for _ in range(size)
        }
        for bookkeeping in ({}, {"": {"sessions": [["a", "b"]] * size, "position": [1, 2]}}):
            whole = {**state, **bookkeeping}
            for data in (json.dumps(whole).encode(), json.dumps(whole, separators=(",", ":")).encode()):
                assert parse(data) == whole
                assert list(parse(data)) == list(whole)


def test_what_is_no_state_is_refused():
    for data in (b"", b"{", b"[]", b'{"a":}', b'{"a":"b",}', b'{"a":"b"}}', b'{"a":"b"} '):
        with pytest.raises(Malformed):
            parse(data)
    for state in (
        {},
        {"": {}},
        {"": {"position": [1]}},
        {"": {"position": [1, 2], "logs": {"x": []}, "clock": 1}},
        {"": {"position": [1, 2], "logs": {"1": [1, 2, 3]}, "clock": 1.8e19}},
        {"": {"position": [1.8e19, 2], "logs": {"1": [1, 2, 3]}, "clock": 1}},
        {"": {"position": [1, 2], "logs": {"1": [1, 2, 3.0]}, "clock": 1}},
    ):
        with pytest.raises(Malformed):
            cut_of(state)


# ------------------------------------------------------------------------------------ handing out, and taking


def chunks(checkpoints: Checkpoints, number: int = 0) -> bytes:
    data = b""
    while chunk := checkpoints.chunk(number, len(data)).data:
        data += chunk
    return data


def test_a_checkpoint_is_handed_out_in_pieces_and_taken_by_another_node(tmp_path: Path):
    with serving(Files(), tmp_path / "giver") as giver, serving(Files(), tmp_path / "taker") as taker:
        assert giver.checkpoints.chunk(0, 0).number == 0
        for i in range(8):
            giver.put(str(i), "x" * 400_000)
        giver.roll()
        giver.checkpoint()
        data = chunks(giver.checkpoints)
        first = giver.checkpoints.chunk(0, 0)
        assert (first.number, first.size, first.check) == (1, len(data), zlib.crc32(data))
        assert len(first.data) == CHUNK_BYTES
        assert giver.checkpoints.chunk(2, 0).number == 0

        taken: list[tuple[int, Cut, dict[str, Any]]] = []
        failures: list[str] = []
        calls: list[Callable[[], None]] = []
        taker.checkpoints.later = calls.append
        for check in (first.check ^ 1, first.check):
            taker.checkpoints.begin(len(data))
            for offset in range(0, len(data), 1 << 20):
                taker.checkpoints.write(offset, data[offset : offset + (1 << 20)])
            taker.checkpoints.finish(check, lambda *what: taken.append(what), failures.append)
            while not calls:
                pass
            calls.pop()()
        assert len(failures) == 1 and "CRC-32" in failures[0]
        ((number, cut, state),) = taken
        assert number == 2 and cut.position == (8, 0) and state == parse(data)
        assert disk_copy(tmp_path / "taker", number) == data


@pytest.mark.parametrize("fails", ["never", "write", "finish"])
def test_what_comes_in_is_synced_piece_by_piece_and_no_piece_may_fail(fails: str) -> None:
    disk = Disk()
    with serving(disk, NODE) as taker:
        own = taker.checkpoints
        failures: list[str] = []
        calls: list[Callable[[], None]] = []
        own.later = calls.append
        data = b"{" + b" " * (2 * SYNC_BYTES) + b"}"
        own.begin(len(data))
        before = disk.operations
        own.write(0, data[: SYNC_BYTES // 2])
        assert disk.operations == before + 1, "written, and not synced yet"
        if fails == "write":
            disk.fail_next("fdatasync")
        own.write(SYNC_BYTES // 2, data[SYNC_BYTES // 2 : SYNC_BYTES])
        assert disk.operations == before + 3
        if fails == "write":
            with pytest.raises(OSError, match="Input/output"):
                own.write(SYNC_BYTES, data[SYNC_BYTES:])
            return
        if fails == "finish":
            disk.fail_next("fdatasync")
        own.write(SYNC_BYTES, data[SYNC_BYTES:])
        own.finish(zlib.crc32(data), lambda *_: failures.append("none"), failures.append)
        calls.pop()()
        expected = "Input/output" if fails == "finish" else "does not say where it stands"
        assert expected in failures[0]


def disk_copy(directory: Path, number: int) -> bytes:
    saved = read_sum(sum_path(directory, number).read_bytes())
    data = checkpoint_path(directory, number).read_bytes()
    assert saved == Saved(number, len(data), zlib.crc32(data))
    return data


def restored_from(disk: Disk, *commands: Command) -> tuple[Store, Identity]:
    """What node 1 of a cluster has that is restored from a backup of one that applied these commands."""
    store = Store("never-written.json")
    store.apply(5, 1, encode_batch(commands))
    state = state_of(store, Cut(store.position, {}, 5))
    restore(Path("new"), Identity("new", "digest", 1, 1, 0), [1, 2, 3], state, disk)
    identity = read_identity(disk.read(Path("new/identity.json")))
    with contextlib.closing(Journal(Path("new"), identity, files=disk)) as journal:
        core, found = Node(1, [1, 2, 3], Random(0)), Store("never-written.json")
        recover(journal, Path("new"), core, found, disk)
    return found, identity


def test_a_restored_cluster_is_where_its_own_file_says() -> None:
    """The old cluster had moved node 3 twice: its hosts have no part in the new one."""
    moves = [Command(Verb.REPLACE_NODE, "3", f"10.0.0.{host}:7001") for host in (8, 9)]
    upgrade = Command(Verb.UPGRADE, delta=validation.FORMAT)
    store, _ = restored_from(Disk(), upgrade, *moves, Command(Verb.PUT, "k", "v"))
    assert store.get("k").value == "v" and store.format == validation.FORMAT and store.settled
    assert store.addresses == {} and store.former == {}


def test_an_older_version_may_not_start_on_what_is_restored_from_a_newer_one() -> None:
    _, identity = restored_from(Disk(), Command(Verb.PUT, "k", "v"))
    assert identity.format is None
    _, identity = restored_from(Disk(), Command(Verb.UPGRADE, delta=validation.FORMAT))
    assert identity.format == validation.FORMAT
