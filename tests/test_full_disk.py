"""Disks that are full, and disks that fail, under real nodes."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import RealCluster, eventually, finish

from client import Client, NotDoneError, UnknownOutcome

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


@pytest.mark.parametrize("call", ["fdatasync", "pwrite64"])
def test_a_disk_that_fails_ends_the_node_at_once_with_exit_code_74(tmp_path: Path, call: str) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed (Debian: apt-get install strace)")
    with RealCluster(tmp_path, nodes=3) as cluster, cluster.client() as client:
        client.put("key", "before")
        node = cluster.nodes[2]
        inject = [strace, "-f", "-q", "-p", str(node.pid), "-e", f"trace={call}", "-e"]
        tracer = subprocess.Popen(
            [*inject, f"inject={call}:error=EIO:when=1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            eventually(lambda: traced(node.pid) or tracer.poll() is not None, "strace is attached")
            if tracer.poll() is not None:
                pytest.skip("strace may not attach to a process here")
            for i in range(20):
                client.put(f"key {i}", "value")
                if not node.running:
                    break
            assert node.wait() == 74
        finally:
            tracer.kill()
            tracer.wait()
        last = node.log().rstrip().splitlines()[-1]
        assert "event=disk-failed" in last and "Input/output error" in last
        client.put("key", "after")
        cluster.restart(2)
        assert cluster.wait_until_stores_are_equal()["key"] == "after"


def traced(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_text()
    return False
