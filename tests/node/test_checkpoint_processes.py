"""Checkpoints of real nodes: when they are made, what is left, and what a failure in between costs."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from paxoskv import Client
from paxoskv.storage.data_dir import read_manifest
from tests.harness.processes import PROJECT, Load, RealCluster, contended, eventually, finish

CLIENT = PROJECT / "client.py"


def manifest(cluster: RealCluster, node: int) -> int:
    """The number of the node's current checkpoint; 0: none."""
    path = cluster.data / f"node-{node}" / "manifest.json"
    return read_manifest(path.read_bytes()).checkpoint.number if path.exists() else 0


def fill(client: Client, count: int, size: int = 5000) -> None:
    for key in range(count):
        client.put(f"key {key}", f"{key} " + "x" * size)


def test_a_long_journal_is_replaced_by_a_checkpoint_and_nodes_start_from_it(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=3, checkpoint_mb=0.5) as cluster:
        with cluster.client() as client:
            fill(client, 300)
            eventually(lambda: all(manifest(cluster, node) for node in cluster.ids), "all have a checkpoint")
            fill(client, 20, size=10)
            for node in cluster.ids:
                status = eventually(
                    lambda node=node: (s := client.status(node)).journal_bytes < 1 << 20 and s,
                    "the journal is short",
                )
                assert status.checkpoint_age_s is not None and 0 <= status.checkpoint_age_s < 90
                segments = cluster.data / f"node-{node}" / "journal"
                eventually(
                    lambda segments=segments: not (segments / "0000000001.segment").exists(),
                    "segment 1 is gone",
                )
        cluster.kill(*cluster.ids)
        cluster.restart(*cluster.ids)
        content = cluster.wait_until_stores_are_equal()
        assert content == {f"key {key}": f"{key} " + "x" * (10 if key < 20 else 5000) for key in range(300)}
        for node in cluster.ids:
            assert re.search("event=recovered checkpoint=[1-9]", cluster.nodes[node].log())


def test_a_checkpoint_is_made_when_it_is_asked_for_and_can_be_read(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=3) as cluster, cluster.client() as client:
        with pytest.raises(ValueError, match="no node 9"):
            client.checkpoint(9)
        assert b"".join(client.read_checkpoint(1)) == b""
        fill(client, 3, size=500_000)
        done = finish([sys.executable, CLIENT, "checkpoint", "--cluster", cluster.file])
        assert (done.returncode, done.stdout) == (0, "".join(f"node {n}: checkpoint 1\n" for n in (1, 2, 3)))
        done = finish([sys.executable, CLIENT, "checkpoint", "--cluster", cluster.file, "--node", "2"])
        assert (done.returncode, done.stdout) == (0, "node 2: checkpoint 2\n")
        data = b"".join(client.read_checkpoint(2))
        assert len(data) > 1_500_000
        assert data == (cluster.data / "node-2" / "checkpoint-0000000002.json").read_bytes()
        cluster.kill(2)
        done = finish([sys.executable, CLIENT, "checkpoint", "--cluster", cluster.file, "--timeout", "20"])
        assert done.returncode != 0 and re.search(r"node 2 \(.*\): cannot connect", done.stderr)
        assert re.fullmatch(r"node 1: checkpoint 2\nnode 3: checkpoint 2\n", done.stdout), "the others go on"


def asking(cluster: RealCluster) -> subprocess.Popen[str]:
    """Somebody who waits for a checkpoint."""
    command = [sys.executable, str(CLIENT), "checkpoint", "--cluster", str(cluster.file)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def alive(pid: int) -> bool:
    """Whether there is a process of this id that is not a zombie."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The processes that make checkpoints for this node."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"paxoskv.storage.checkpoint_process" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def test_a_checkpoint_that_fails_costs_nothing_but_a_warning(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=1) as cluster, cluster.client() as client:
        fill(client, 20, size=200_000)
        assert client.checkpoint(1) == 1
        asked = asking(cluster)
        (child,) = eventually(lambda: children(cluster.nodes[1].pid), "it is being made")
        os.kill(child, signal.SIGKILL)
        _, error = asked.communicate(timeout=60)
        assert asked.returncode == 1 and "no checkpoint was made" in error
        assert manifest(cluster, 1) == 1
        assert "event=checkpoint-failed" in cluster.nodes[1].log()
        client.put("after", "x")
        assert client.checkpoint(1) == 3
        cluster.kill(1)
        cluster.restart(1)
        assert client.get("after") == "x" and client.get("key 7") == "7 " + "x" * 200_000


def test_a_node_killed_while_its_checkpoint_is_made_leaves_nobody_behind_and_starts_at_once(
    tmp_path: Path,
) -> None:
    with RealCluster(tmp_path, nodes=1) as cluster, cluster.client() as client:
        for round_ in range(3):
            fill(client, 10, size=200_000)
            asked = asking(cluster)
            (child,) = eventually(lambda: children(cluster.nodes[1].pid), "it is being made")
            cluster.kill(1)
            cluster.restart(1)
            assert not alive(child)
            asked.kill()
            asked.communicate()
            assert client.get("key 9") == "9 " + "x" * 200_000, round_


def test_checkpoints_under_load_lose_nothing_and_no_operation_fails(tmp_path: Path) -> None:
    csv = contended(tmp_path / "load.csv", rows=3000, keys=50, seed=11)
    with RealCluster(tmp_path, nodes=3, checkpoint_mb=0.05) as cluster:
        with Load(("--cluster", cluster.file), csv) as load_:
            load_.expect_success()
        eventually(lambda: all(manifest(cluster, node) > 1 for node in cluster.ids), "two checkpoints each")
        before = cluster.wait_until_stores_are_equal()
        cluster.kill(*cluster.ids)
        cluster.restart(*cluster.ids)
        assert cluster.wait_until_stores_are_equal() == before
