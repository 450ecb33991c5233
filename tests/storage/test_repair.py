"""A node whose data is damaged: it keeps what is left aside and rejoins, and no crash in between costs more.

First the moving of directories, on a disk in memory with every crash; then real nodes with flipped bytes.
"""

import contextlib
import fcntl
import json
import random
import re
import shutil
import signal
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from paxoskv.node.eventlog import EXIT_USAGE
from paxoskv.node.main import REPAIR
from paxoskv.storage.checkpoint import checkpoint_path
from paxoskv.storage.data_dir import (
    MANIFEST,
    Manifest,
    Saved,
    condemn,
    create,
    discard_replacement,
    finish_replacement,
    load_manifest,
    manifest_json,
    read_identity,
    read_manifest,
    replace,
    replacement_path,
)
from paxoskv.storage.files import Damaged, Files, JournalError, Locked, Unreadable
from paxoskv.storage.journal import Journal
from paxoskv.storage.segments import FIRST, SEGMENT, segment_header, segment_path
from paxoskv.wire.structs import Identity, Record
from tests.harness.disk import Chooser, Crash, Disk, kept, lost, some
from tests.harness.processes import PROJECT, Process, RealCluster, eventually

CRASHING = PROJECT / "tests" / "harness" / "crashing_server.py"
DATA = Path("data")
NODE, ASIDE = DATA / "node-3", DATA / "node-3.damaged"
OLD, NEW = Identity("test", "0123abcd", 3, 1, 0), Identity("test", "0123abcd", 3, 0, 0)
SMALL = 1024  # bytes of a segment


# ----------------------------------------------------------------------------------------- moving directories


def damaged(disk: Disk) -> bytes:
    """Make a directory with three frames, the first of which is damaged; returns the segment's bytes."""
    disk.make_directory(DATA)
    create(NODE, OLD, SMALL, disk)
    disk.sync_directory(Path())
    journal = Journal(NODE, SMALL, files=disk)
    list(journal.recover())
    for number in range(3):
        journal.write([Record(reservation=number)])
    disk.kill()
    path = segment_path(NODE / "journal", 1)
    handle = disk.open(path)
    disk.pwrite(handle, b"?", FIRST + 40)
    disk.fdatasync(handle)
    disk.close(handle)
    return disk.read(path)


def repair(disk: Disk) -> None:
    """What a start does: finish what was begun; then, if the data is damaged, replace it."""
    finish_replacement(NODE, disk)
    journal = Journal(NODE, SMALL, files=disk)
    try:
        list(journal.recover())
        discard_replacement(NODE, disk)
    except Damaged:
        replace(NODE, ASIDE, journal.identity._replace(incarnation=0), SMALL, disk)


@pytest.mark.parametrize("choose", [lost, kept, *(some(random.Random(seed)) for seed in range(8))])
def test_a_crash_anywhere_in_a_repair_leaves_what_the_next_start_goes_on_with(choose: Chooser):
    crashes = 0
    while True:
        disk = Disk()
        content = damaged(disk)
        disk.crash_after(crashes)
        try:
            repair(disk)
        except Crash:
            pass
        else:
            break
        crashes += 1
        disk.power_cut(choose)
        moved = not disk.exists(NODE / "identity.json") or disk.exists(ASIDE)
        assert disk.read(segment_path((ASIDE if moved else NODE) / "journal", 1)) == content
        disk.crash_after(crashes % 3)  # and again, in the next start
        try:
            repair(disk)
        except Crash:
            disk.power_cut(choose)
            repair(disk)
        disk.kill()
        repair(disk)
        disk.kill()
        assert disk.read(segment_path(ASIDE / "journal", 1)) == content
        assert read_identity(disk.read(NODE / "identity.json")) == NEW, "it must not vote"
        journal = Journal(NODE, SMALL, files=disk)
        assert list(journal.recover()) == []
        assert sorted(disk.names(DATA)) == [NODE.name, ASIDE.name]
    assert crashes > 15


def test_a_replacement_that_was_not_used_is_gone_after_the_next_good_start(tmp_path: Path):
    node = tmp_path / "node-3"
    create(node, OLD, SMALL)
    create(replacement_path(node), NEW, SMALL)
    assert not finish_replacement(node), "the node's own data is there"
    discard_replacement(node)
    assert [path.name for path in tmp_path.iterdir()] == ["node-3"]
    assert read_identity((node / "identity.json").read_bytes()) == OLD


@pytest.mark.parametrize("choose", [lost, kept, *(some(random.Random(seed)) for seed in range(8))])
def test_a_replacement_that_is_being_removed_is_whole_or_has_no_identity(choose: Chooser):
    """Or else a later start could put it, without a journal, where a directory is missing."""
    crashes = 0
    while True:
        disk = Disk()
        disk.make_directory(DATA)
        disk.sync_directory(Path())
        create(replacement_path(NODE), NEW, SMALL, disk)
        disk.crash_after(crashes)
        try:
            discard_replacement(NODE, disk)
        except Crash:
            disk.power_cut(choose)
        else:
            break
        crashes += 1
        if finish_replacement(NODE, disk):
            assert list(Journal(NODE, SMALL, files=disk).recover()) == []
    assert crashes > 4 and not disk.names(DATA)


def test_a_half_made_replacement_is_never_taken_for_a_data_directory(tmp_path: Path):
    node = tmp_path / "node-3"
    (replacement_path(node) / "journal").mkdir(parents=True)
    assert not finish_replacement(node)
    assert not node.exists()


def test_a_directory_that_cannot_be_moved_stays_and_nothing_is_left_beside_it(tmp_path: Path):
    class Mounted(Files):
        """As if the node's directory were the place where a disk is mounted."""

        def rename(self, old: Path, new: Path) -> None:
            if old.name == "node-3":
                raise OSError(16, "Device or resource busy", str(old))
            super().rename(old, new)

    node = tmp_path / "node-3"
    create(node, OLD, SMALL)
    with pytest.raises(JournalError, match="node-3: Device or resource busy"):
        replace(node, tmp_path / "aside", NEW, SMALL, Mounted())
    assert [path.name for path in tmp_path.iterdir()] == ["node-3"]


def test_something_else_where_the_replacement_is_made_is_not_removed(tmp_path: Path):
    node = tmp_path / "node-3"
    create(node, OLD, SMALL)
    theirs = replacement_path(node) / "theirs"
    theirs.parent.mkdir()
    theirs.write_text("x")
    with pytest.raises(JournalError, match="not empty"):
        replace(node, tmp_path / "aside", NEW, SMALL)
    assert theirs.read_text() == "x" and node.exists()


def test_the_lock_of_a_directory_that_was_moved_aside_is_not_that_of_the_new_one(tmp_path: Path):
    """A process that has opened the old lock's file just before must not be let in by it."""
    node, aside = tmp_path / "node-3", tmp_path / "aside"
    create(node, OLD, SMALL)

    class Late(Files):
        """The directory is moved between the opening and the locking."""

        def lock(self, path: Path) -> int:
            flock = fcntl.flock

            def moved(handle: int, operation: int) -> None:
                replace(node, aside, NEW, SMALL)
                flock(handle, operation)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("paxoskv.storage.files.fcntl.flock", moved)
                return super().lock(path)

    with pytest.raises(JournalError, match="lock"):
        Journal(node, SMALL, files=Late())
    assert Journal(node, SMALL).identity == NEW


def test_a_damaged_manifest_is_told_while_the_lock_is_held(tmp_path: Path):
    create(tmp_path / "node", OLD, SMALL)
    (tmp_path / "node" / MANIFEST).write_bytes(b"{}")
    journal = Journal(tmp_path / "node", SMALL)
    with pytest.raises(Damaged, match="is not what a manifest is"):
        list(journal.recover())
    with pytest.raises(Locked):
        Journal(tmp_path / "node", SMALL)
    journal.close()


def test_what_another_version_wrote_and_what_is_missing_altogether_is_not_taken_for_lost(tmp_path: Path):
    def reason(change: Callable[[Path], None]) -> type[Damaged]:
        node = tmp_path / "node"
        create(node, OLD, SMALL)
        change(node)
        journal = Journal(node, SMALL)
        with pytest.raises(Damaged) as error:
            list(journal.recover())
        journal.close()
        shutil.rmtree(node)
        return error.type

    def header_of(magic: bytes, flip: int = 0) -> Callable[[Path], None]:
        def change(node: Path) -> None:
            path = segment_path(node / "journal", 1)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("paxoskv.storage.segments.MAGIC", magic)
                header = bytearray(segment_header(1, SMALL, bytes(8)))
            header[SEGMENT.size - 1] ^= flip
            path.write_bytes(header.ljust(SMALL, b"\0"))

        return change

    assert reason(header_of(b"journal2")) is Unreadable
    assert reason(header_of(b"journal2", flip=1)) is Damaged
    assert reason(header_of(b"journal1", flip=1)) is Damaged
    assert reason(lambda node: shutil.rmtree(node / "journal")) is Unreadable
    assert reason(lambda node: segment_path(node / "journal", 1).unlink()) is Unreadable


@pytest.mark.parametrize("more", [{"format": 2}, {"format": 1, "later": 5}])
def test_a_manifest_of_another_version_is_not_taken_for_damaged(more: dict[str, int]):
    disk = Disk()
    content = json.loads(manifest_json(Manifest(Saved(7, 9, 9), None, 3, 4))) | more
    del content["crc32"]
    content["crc32"] = zlib.crc32(json.dumps(content).encode())
    other = (json.dumps(content, indent=2) + "\n").encode()
    disk.make_directory(NODE.parent)
    disk.make_directory(NODE)
    disk.close(disk.create(NODE / MANIFEST))
    disk.content(NODE / MANIFEST)[:] = other
    with pytest.raises(Unreadable):
        load_manifest(disk, NODE)
    disk.content(NODE / MANIFEST)[:] = other.replace(b": 4", b": 5")
    with pytest.raises(Damaged) as error:
        load_manifest(disk, NODE)
    assert error.type is Damaged


# -------------------------------------------------------------------------------------------------- processes


def fill(cluster: RealCluster, count: int, prefix: str) -> dict[str, str]:
    """Write so much, all of it acknowledged, and say what it was."""
    items = {f"{prefix} {number}": f"value {number}" for number in range(count)}
    with cluster.client() as client:
        for key, value in items.items():
            client.put(key, value)
    return items


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


def damage_journal(node: Path) -> Path:
    """A byte inside the first frame that a start reads, behind which there are others."""
    manifest = read_manifest((node / MANIFEST).read_bytes())
    path = segment_path(node / "journal", manifest.segment)
    flip(path, FIRST + 60)
    return path


def damage_manifest(node: Path) -> Path:
    path = node / MANIFEST
    flip(path, path.stat().st_size // 2)
    return path


def damage_checkpoint(node: Path) -> Path:
    manifest = read_manifest((node / MANIFEST).read_bytes())
    path = checkpoint_path(node, manifest.checkpoint.number)
    flip(path, path.stat().st_size // 2)
    return path


def content_of(directory: Path) -> dict[str, bytes]:
    """All files, by their names (without those that were not finished, which a start removes)."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.suffix != ".new"]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def copies(cluster: RealCluster, node: int = 3) -> list[Path]:
    return [path for path in cluster.data.iterdir() if path.name.startswith(f"node-{node}.damaged-")]


DAMAGES = [damage_journal, damage_manifest, damage_checkpoint]


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_node_with_damaged_data_repairs_itself_and_keeps_the_damaged_copy(
    tmp_path: Path, damage: Callable[[Path], Path]
) -> None:
    with RealCluster(tmp_path, nodes=3, self_repair=True) as cluster:
        written = fill(cluster, 30, "before")
        with cluster.client() as client:
            client.checkpoint(3)
        written |= fill(cluster, 10, "behind the checkpoint")
        cluster.kill(3)
        written |= fill(cluster, 10, "meanwhile")
        path = damage(cluster.data / "node-3")
        before = content_of(cluster.data / "node-3")
        cluster.restart(3)
        log = cluster.nodes[3].log()
        (line,) = [line for line in log.splitlines() if "event=damaged" in line]
        (copy,) = copies(cluster)
        assert re.fullmatch(r"node-3\.damaged-\d{8}T\d{6}Z", copy.name)
        assert str(path) in line and "offset=" in line and str(copy) in line and "--rejoin" in line
        assert content_of(copy) == before, "nothing of it was changed"
        eventually(lambda: "event=rejoined" in cluster.nodes[3].log(), "the end of it is logged")
        status = cluster.status(3)
        assert status is not None and status.incarnation is not None and status.incarnation > 1
        written |= fill(cluster, 10, "after")
        assert cluster.wait_until_stores_are_equal() == written
        cluster.kill(3)
        cluster.restart(3)
        cluster.kill(1)  # the repaired node is one of a quorum now
        written |= fill(cluster, 5, "with two")
        cluster.restart(1)
        assert cluster.wait_until_stores_are_equal() == written
        assert copies(cluster) == [copy], "there was one repair"


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_node_that_may_not_repair_itself_ends_with_one_line_and_changes_nothing(
    tmp_path: Path, damage: Callable[[Path], Path]
) -> None:
    with RealCluster(tmp_path, nodes=3, self_repair=False) as cluster:
        fill(cluster, 10, "before")
        with cluster.client() as client:
            client.checkpoint(3)
        fill(cluster, 10, "after")
        cluster.kill(3)
        path = damage(cluster.data / "node-3")
        before = content_of(cluster.data / "node-3")
        cluster.nodes[3].start()
        assert cluster.nodes[3].wait() == EXIT_USAGE
        last = cluster.nodes[3].log(1)
        assert last.startswith(f"server.py: {path}: offset ") and last.endswith(REPAIR)
        assert content_of(cluster.data / "node-3") == before
        assert copies(cluster) == []


@pytest.mark.slow
def test_what_another_version_wrote_is_not_given_up(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=3, self_repair=True) as cluster:
        fill(cluster, 5, "before")
        cluster.kill(3)
        path = segment_path(cluster.data / "node-3" / "journal", 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("paxoskv.storage.segments.MAGIC", b"journal2")
            header = segment_header(1, path.stat().st_size, bytes(8))
        with path.open("r+b") as file:
            file.write(header)
        cluster.nodes[3].start()
        assert cluster.nodes[3].wait() == EXIT_USAGE
        assert "no valid header of segment 1 of this version" in cluster.nodes[3].log(1)
        assert copies(cluster) == []


@pytest.mark.slow
def test_of_two_processes_that_find_the_damage_one_repairs_it(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=3, self_repair=True) as cluster:
        written = fill(cluster, 10, "before")
        with cluster.client() as client:
            client.checkpoint(3)
        written |= fill(cluster, 10, "after")
        cluster.kill(3)
        damage_journal(cluster.data / "node-3")
        first = cluster.nodes[3]
        second = Process("second", first.arguments, tmp_path / "second.log")
        cluster.all.append(second)
        first.start()
        second.start()
        eventually(lambda: not (first.running and second.running), "one of them ends")
        loser, cluster.nodes[3] = (first, second) if second.running else (second, first)
        assert loser.wait() == EXIT_USAGE and "another process uses this data directory" in loser.log(1)
        cluster.wait_until_ready([3])
        assert len(copies(cluster)) == 1
        assert cluster.wait_until_stores_are_equal() == written


@pytest.mark.slow
def test_a_node_that_is_killed_while_it_repairs_itself_goes_on_with_that_when_it_starts(
    tmp_path: Path,
) -> None:
    places = {  # and how many copies there are when it dies there
        "after-rename-identity:1": 0,
        "before-rename-node-3:1": 0,
        "after-rename-node-3:1": 1,
        "before-rename-node-3:2": 1,
        "after-rename-node-3:2": 1,
    }
    with RealCluster(tmp_path, nodes=3, program=CRASHING, self_repair=True) as cluster:
        node = cluster.nodes[3]
        written = {}
        for place, count in places.items():
            with cluster.client() as client:
                client.checkpoint(3)
            written |= fill(cluster, 5, place)
            cluster.kill(3)
            damage_journal(cluster.data / "node-3")
            before = content_of(cluster.data / "node-3")
            node.environment = {"CRASH_AT": place, "CRASH_NOTES": str(tmp_path / "notes")}
            node.start()
            assert node.wait() == -signal.SIGKILL, place
            assert len(copies(cluster)) == count, place
            node.environment = {}
            cluster.restart(3)
            (copy,) = copies(cluster)
            assert content_of(copy) == before, place
            shutil.rmtree(copy)
            assert {path.name for path in cluster.data.iterdir()} == {"node-1", "node-2", "node-3"}
            assert cluster.wait_until_stores_are_equal() == written


@pytest.mark.slow
def test_a_node_that_waits_for_others_that_are_down_or_rejoin_as_well_says_so(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=3, self_repair=True) as cluster:
        written = fill(cluster, 10, "before")
        with cluster.client() as client:
            for node in (2, 3):
                client.checkpoint(node)
        written |= fill(cluster, 10, "after")
        cluster.kill(1, 2, 3)
        for node in (2, 3):
            shutil.copytree(cluster.data / f"node-{node}", tmp_path / f"whole-{node}")
            damage_journal(cluster.data / f"node-{node}")
        for node in (2, 3):
            cluster.nodes[node].start()
        rule = "all 2 other nodes must answer, 2 of them with their data"
        eventually(lambda: f"{rule}; no answer yet from 1" in cluster.nodes[3].log(), "it waits for node 1")
        cluster.nodes[1].start()
        eventually(lambda: f"{rule}; rejoining as well: 2" in cluster.nodes[3].log(), "and then for node 2")
        status = eventually(lambda: cluster.status(3), "it tells its status")
        assert status.state == "rejoining" and not status.ready
        assert any("rejoining as well: 2" in problem for problem in status.problems)
        assert "event=rejoined" not in cluster.nodes[2].log() + cluster.nodes[3].log()
        assert len(copies(cluster, 2)) == len(copies(cluster, 3)) == 1, "what they had is still there"


@pytest.mark.slow
def test_a_node_that_ended_before_its_own_checkpoint_followed_anothers_makes_it_later(tmp_path: Path) -> None:
    """And it tries again where that fails. No long journal and nobody's question makes it do so."""
    with RealCluster(tmp_path, nodes=3, program=CRASHING) as cluster:
        written = fill(cluster, 20, "before")
        with cluster.client() as client:
            for peer in (1, 2):
                client.checkpoint(peer)
        cluster.kill(3)
        directory = cluster.data / "node-3"
        shutil.rmtree(directory)
        node = cluster.nodes[3]
        node.environment = {"CRASH_AT": "before-save-checkpoint:1", "CRASH_NOTES": str(tmp_path / "notes")}
        node.start("--rejoin")
        assert node.wait() == -signal.SIGKILL
        node.environment = {}
        assert not (directory / MANIFEST).exists() and list(directory.glob("*.sum")), "it has another's only"
        obstacle = directory / f"{MANIFEST}.new"
        obstacle.mkdir()
        cluster.restart(3)
        eventually(lambda: "event=checkpoint-failed" in node.log(), "it has tried")
        obstacle.rmdir()
        eventually((directory / MANIFEST).exists, "it has made its own")
        cluster.kill(3)
        cluster.restart(3)
        assert cluster.wait_until_stores_are_equal() == written


def test_a_copy_that_was_refused_stays_refused_wherever_the_power_fails() -> None:
    for crash in range(8):
        disk = Disk()
        create(NODE, OLD, SMALL, disk)
        disk.crash_after(crash)
        with contextlib.suppress(Crash):
            condemn(NODE, "node 3 is a stale copy", disk)
        disk.power_cut(kept)
        condemn(NODE, "node 3 is a stale copy", disk)  # what the crash left is in nobody's way
        disk.power_cut(lost)
        with (
            contextlib.closing(Journal(NODE, SMALL, files=disk)) as journal,
            pytest.raises(Unreadable, match="peers have refused this data: node 3 is a stale copy"),
        ):
            list(journal.recover())
