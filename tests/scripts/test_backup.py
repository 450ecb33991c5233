"""Backups of running clusters, new clusters made from them, and what fsck says about data directories."""

import gzip
import json
import shutil
import sys
from pathlib import Path

from paxoskv.storage.checkpoint import restore
from paxoskv.storage.segments import FIRST, segment_path
from paxoskv.wire.structs import Identity
from tests.harness.processes import PROJECT, RealCluster, finish

BACKUP, RESTORE = PROJECT / "scripts" / "backup.sh", PROJECT / "scripts" / "restore.sh"
FSCK = PROJECT / "scripts" / "fsck.py"


def fsck(*words: str | Path) -> tuple[int, str]:
    done = finish([sys.executable, FSCK, *words])
    return done.returncode, done.stdout + done.stderr


def test_a_backup_has_all_that_was_acknowledged_and_a_new_cluster_begins_with_it(tmp_path: Path) -> None:
    with RealCluster(tmp_path / "old", nodes=3, name="old") as old, old.client() as client:
        for i in range(50):
            client.put(f"key {i}", "ä\0" * i)
        client.increment("count", 7)
        done = finish([BACKUP, tmp_path / "b.gz", "--cluster", old.file])
        assert done.returncode == 0, done.stderr
        done = finish([BACKUP, "/proc/nowhere/b.gz", "--cluster", old.file])
        told = "backup: /proc/nowhere/b.gz: No such file or directory\n"
        assert (done.returncode, done.stderr) == (74, told)
        client.put("later", "is not in it")
    expected = {**{f"key {i}": "ä\0" * i for i in range(50)}, "count": "7"}
    content = json.loads(gzip.decompress((tmp_path / "b.gz").read_bytes()))
    assert content.pop("")["cluster"] == "old" and content == expected

    new = RealCluster(tmp_path / "new", nodes=5, name="new")
    done = finish([RESTORE, tmp_path / "b.gz", "--cluster", new.file, "--data", new.data])
    assert (done.returncode, done.stderr) == (0, "")
    done = finish([RESTORE, tmp_path / "b.gz", "--cluster", new.file, "--data", new.data])
    assert done.returncode == 1 and "nothing is overwritten" in done.stderr
    assert fsck("--all", *(new.data / f"node-{node}" for node in new.ids))[0] == 0
    try:
        new.restart(*new.ids)
        assert new.wait_until_stores_are_equal() == expected
        with new.client() as client:
            assert client.increment("count") == 8
            client.put("key 0", "new")
            assert client.checkpoint(1) == 2
        new.kill(1, 2)
        new.restart(1, 2)
        assert new.wait_until_stores_are_equal() == {**expected, "count": "8", "key 0": "new"}
        assert new.stop() == dict.fromkeys(new.ids, 0)
        code, said = fsck("--all", *(new.data / f"node-{node}" for node in new.ids))
        assert code == 0 and "whole, and they agree" in said, said
    finally:
        for process in new.all:
            process.end()


def test_a_backup_that_is_not_whole_or_goes_to_a_cluster_of_the_same_name_is_refused(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=1, name="same") as cluster:
        with cluster.client() as client:
            client.put("key", "value")
        finish([BACKUP, tmp_path / "b.gz", "--cluster", cluster.file]).check_returncode()
        done = finish([RESTORE, tmp_path / "b.gz", "--cluster", cluster.file, "--data", tmp_path / "other"])
        assert done.returncode == 1 and "name: 'same'" in done.stderr
        whole = (tmp_path / "b.gz").read_bytes()
        settings = cluster_named(tmp_path, "other")
        for damaged in (
            whole[:-1],
            whole[:40],
            b"",
            whole[:60] + b"x" + whole[61:],
            gzip.compress(b'{"a":"b"}'),
        ):
            (tmp_path / "bad.gz").write_bytes(damaged)
            done = finish([RESTORE, tmp_path / "bad.gz", "--cluster", settings, "--data", tmp_path / "other"])
            assert done.returncode == 1 and done.stderr.startswith(f"restore: {tmp_path / 'bad.gz'}: ")
            assert done.stderr.count("\n") == 1 and not (tmp_path / "other").exists()
    done = finish([BACKUP, tmp_path / "c.gz", "--cluster", cluster.file])
    assert done.returncode == 3 and not (tmp_path / "c.gz").exists() and not (tmp_path / "c.gz.new").exists()


def cluster_named(directory: Path, name: str) -> Path:
    path = directory / f"{name}.json"
    content = json.loads((directory / "cluster.json").read_text())
    path.write_text(json.dumps({**content, "name": name}))
    return path


def test_fsck_says_what_a_directory_holds_and_what_is_wrong_with_it(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=3, name="checked") as cluster:
        with cluster.client() as client:
            for i in range(20):
                client.put(f"key {i}", str(i))
            client.checkpoint(2)
            client.put("last", "x")
        cluster.wait_until_stores_are_equal()
        directories = [cluster.data / f"node-{node}" for node in cluster.ids]
        assert fsck(directories[0])[0] == 2  # in use
        assert cluster.stop() == dict.fromkeys(cluster.ids, 0)
    code, said = fsck("--all", *directories)
    assert code == 0 and " keys, applied up to" in said and "whole, and they agree" in said, said
    assert "no checkpoint" in said and "current checkpoint 1: intact" in said

    file = tmp_path / "history.gz"
    code, said = fsck(directories[0], "--export", file)
    assert code == 0 and f"{file}: 2" in said and " keys, as restore.sh takes them" in said, said
    state = json.loads(gzip.decompress(file.read_bytes()))
    assert state["key 7"] == "7"
    restore(tmp_path / "new" / "node-1", Identity("new", "d", 1, 1, 0), (1,), state)
    assert f"{len(state) - 1} keys" in fsck(tmp_path / "new" / "node-1")[1]
    assert fsck(directories[0], "--export", file)[0] == 2, "nothing is overwritten"

    other = shutil.copytree(directories[0], tmp_path / "other")
    path = segment_path(other / "journal", 1)
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    code, said = fsck(other)
    assert code == 1 and f"DAMAGED: {path}: offset" in said and "--rejoin" in said, said
    assert path.read_bytes() == data
    other = shutil.copytree(directories[1], tmp_path / "another")
    path = max(path for path in (other / "journal").iterdir() if len(path.read_bytes().rstrip(b"\0")) > FIRST)
    data = bytearray(path.read_bytes())
    data[len(data.rstrip(b"\0")) - 1] ^= 1
    path.write_bytes(data)
    code, said = fsck(other)
    assert code == 1 and f"DAMAGED: {path}: offset" in said and "synced says that frame" in said, said
    code, said = fsck(tmp_path)
    assert code == 2 and said.count("\n") == 1


def test_fsck_finds_two_nodes_that_hold_different_entries(tmp_path: Path) -> None:
    for node, value in enumerate("ab", start=1):
        stands = {"position": [9, 1], "sessions": [], "hash": ord(value), "logs": {}, "clock": 9}
        state = {"key": value, "": stands}
        restore(tmp_path / f"node-{node}", Identity("split", "d", node, 1, 0), (1, 2, 3), state)
    code, said = fsck("--all", tmp_path / "node-1", tmp_path / "node-2")
    assert code == 1 and "different states after command 9 of node 1" in said
    assert fsck(tmp_path / "node-1", tmp_path / "node-2")[0] == 0
