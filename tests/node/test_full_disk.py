"""Disks that are full, and disks that fail, under real nodes."""

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from paxoskv import Client, ClientError, NotDoneError, UnknownOutcome
from tests.harness.linearizability import Operation, check
from tests.harness.processes import (
    SCRIPTS,
    SERVER,
    Clients,
    Process,
    RealCluster,
    cluster_file,
    eventually,
    final_reads,
    finish,
)

SIZE_MB = 72  # three segments and a half for the node, and room to be filled by somebody else


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system of its own; skips where the rights do not allow it."""
    path.mkdir(parents=True)
    done = finish(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", path])
    if done.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path) -> Path:
    """Somebody else takes all the room."""
    ballast = path / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    return ballast


def test_a_first_start_on_a_full_disk_tells_how_much_is_needed_and_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        fill(disk)
        arguments = ["--cluster", cluster_file(tmp_path, 3), "--data", disk / "data"]
        told = re.compile(
            r"\w+.(py|sh): .*/node-1: disk full: 0 MiB are free, a node needs 48 MiB to begin with: .*\n"
        )
        done = finish([sys.executable, SERVER, "--id", "1", "--init", *arguments])
        assert done.returncode == 74 and told.fullmatch(done.stderr), done.stderr
        done = finish([SCRIPTS / "cluster.sh", "start", *arguments])
        assert done.returncode == 1 and told.fullmatch(done.stderr), done.stderr
        assert not list((disk / "data").glob("node-*"))


def test_a_full_disk_refuses_commands_and_answers_reads_until_there_is_room(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "cluster" / "data") as disk,
        RealCluster(tmp_path / "cluster", nodes=1, checkpoint_mb=1000) as cluster,
    ):
        with Client(cluster.settings, timeout=3) as client:
            client.put("key", "before")
            ballast = fill(disk)
            written = 0
            with pytest.raises(NotDoneError, match="disk full"):
                while True:
                    client.put(f"key {written}", "x" * 400_000)
                    written += 1
            assert written >= 5, "the room that was made ahead is used"
            assert client.get("key") == "before"  # linearizable
            assert client.get(f"key {written - 1}") == "x" * 400_000
            status = client.status(1)
            assert (status.state, status.ready) == ("disk-full", False)
            with pytest.raises(NotDoneError, match="disk full"):
                client.put("key", "refused")
            with pytest.raises(NotDoneError, match="disk full"):
                client.checkpoint(1)
            ballast.unlink()

            def served() -> bool:
                with contextlib.suppress(NotDoneError, UnknownOutcome):
                    client.put("key", "after")
                    return True
                return False

            eventually(served, "service resumes")
            assert client.status(1).state == "serving"
        log = cluster.nodes[1].log()
        assert "event=disk-full" in log and "event=disk-has-room" in log
        cluster.kill(1)
        cluster.restart(1)
        store = cluster.store(1)
        assert store is not None and store["key"] == "after" and len(store) == written + 1


@contextlib.contextmanager
def injected(process: Process, calls: str, fault: str) -> Iterator[None]:
    """System calls of a node that runs go wrong, as strace says it; skips where there is none.

    calls: names with commas between; those that this machine does not have may be among them, as ?name.
    """
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed (Debian: apt-get install strace)")
    command = [strace, "-f", "-q", "-p", str(process.pid), "-e", f"trace={calls}"]
    tracer = subprocess.Popen(
        [*command, "-e", f"inject={calls}:{fault}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        eventually(lambda: traced(process.pid) or tracer.poll() is not None, "strace is attached")
        if tracer.poll() is not None:
            pytest.skip("strace may not attach to a process here")
        yield
    finally:
        tracer.kill()
        tracer.wait()


def last_line(process: Process) -> str:
    return process.log().rstrip().splitlines()[-1]


@pytest.mark.parametrize("call", ["fdatasync", "pwrite64"])
def test_a_disk_that_fails_ends_the_node_at_once_with_exit_code_74(tmp_path: Path, call: str) -> None:
    with RealCluster(tmp_path, nodes=3) as cluster, cluster.client() as client:
        client.put("key", "before")
        node = cluster.nodes[2]
        with injected(node, call, "error=EIO:when=1"):
            for i in range(20):
                client.put(f"key {i}", "value")
                if not node.running:
                    break
            assert node.wait() == 74
        assert "event=disk-failed" in last_line(node) and "Input/output error" in last_line(node)
        client.put("key", "after")
        cluster.restart(2)
        assert cluster.wait_until_stores_are_equal()["key"] == "after"


def test_a_segment_that_cannot_be_named_ends_the_node_with_exit_code_74(tmp_path: Path) -> None:
    """The rename that ends the making of the next segment fails, in the background: a checkpoint needs it."""
    with RealCluster(tmp_path, nodes=3) as cluster, cluster.client() as client:
        client.put("key", "before")
        node = cluster.nodes[2]
        with injected(node, "?rename,?renameat,?renameat2", "error=EIO:when=1"):
            with Client(cluster.settings, timeout=30) as asker, pytest.raises(ClientError):
                asker.checkpoint(2)
            assert node.wait() == 74
        line = last_line(node)
        assert "event=disk-failed" in line and "Input/output error" in line and ".segment" in line
        client.put("key", "after")
        cluster.restart(2)
        assert client.checkpoint(2) > 0
        assert cluster.wait_until_stores_are_equal()["key"] == "after"


def p99_ms(operations: Sequence[Operation]) -> float:
    took = sorted((each.return_ or 0) - each.call for each in operations)
    return took[len(took) * 99 // 100] / 1e6


@pytest.mark.slow
def test_a_node_whose_every_fsync_takes_half_a_second_holds_nobody_up(tmp_path: Path) -> None:
    """Nor does one of five that is so slow cost an operation. How much slower the others get is printed."""
    with RealCluster(tmp_path) as cluster:
        with Clients(cluster, only=(1, 3, 4, 5)) as clients:
            clients.progress(400)
            without = clients.operations[100:]
            with injected(cluster.nodes[2], "fdatasync", "delay_enter=500000"):
                stalled = lambda: "event=disk-stalled" in cluster.nodes[2].log()  # noqa: E731
                eventually(stalled, "the node notices")
                begun = len(clients.operations)
                clients.progress(400)
                slow = clients.operations[begun:]
            clients.progress(50)
        assert not clients.failures
        store = cluster.wait_until_stores_are_equal()
        assert check([*clients.operations, *final_reads(store, clients.operations)]) is None
        usual, then = p99_ms(without), p99_ms(slow)
        print(f"p99 of the others: {usual:.1f} ms, with a slow node {then:.1f} ms: {then / usual:.2f} times")


def traced(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_text()
    return False
