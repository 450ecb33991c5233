"""Machines that lack what Linux has, or this environment: what they lack is removed before a node starts."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from paxoskv.storage import files
from tests.harness.processes import CLIENT, PROJECT, SERVER, RealCluster, finish

# What every interpreter that is started runs first.
WITHOUT = """
import fcntl, importlib.util, os, sys
for name in ("sched_getaffinity", "sched_setaffinity", "fdatasync", "posix_fadvise"):
    delattr(os, name)
os.process_cpu_count = os.cpu_count  # so it is on macOS
fcntl.F_FULLFSYNC = 51  # which Linux refuses, as some file systems of macOS do
sys.modules["uvloop"] = None  # not even its import works
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "uvloop" else found(name, *more)
"""


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All programs that a test starts do without these functions, and so do those that they start."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WITHOUT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("PAXOSKV_INTERPRETED", "1")


def test_a_node_and_a_client_run_without_affinity_fdatasync_uvloop_and_the_compiler(tmp_path: Path) -> None:
    with RealCluster(tmp_path / "cluster", nodes=3) as cluster, cluster.client() as client:
        client.put("key", "value")
        assert client.get("key") == "value"
        assert client.checkpoint(1) > 0, "the process that makes it starts, too"
        assert client.status(2).memory_bytes > 0
        cluster.kill(3)
        cluster.restart(3)
        assert client.get("key", "linearizable", 3) == "value"
        rows = tmp_path / "rows.csv"
        rows.write_text("PUT,a,1\nPUT,b,1\n")
        run = ["run", rows, "--cluster", cluster.file, "--in-flight", "2", "-o", "json"]
        done = finish([sys.executable, CLIENT, *run])
        assert done.returncode == 0 and json.loads(done.stdout)["ok"] == 2, done.stderr


def test_what_is_taken_away_is_really_gone() -> None:
    asked = "import os; print(hasattr(os, 'fdatasync') or hasattr(os, 'sched_getaffinity')); import uvloop"
    done = finish([sys.executable, "-c", asked])
    assert done.stdout == "False\n" and "ModuleNotFoundError" in done.stderr


def test_a_processor_that_is_asked_for_where_there_is_no_choice_is_no_error(tmp_path: Path) -> None:
    done = finish([sys.executable, SERVER, "--id", "1", "--cpu", "1", "--cluster", tmp_path / "none"])
    assert done.returncode == 2 and done.stderr.endswith("No such file or directory\n")


class Asked:
    """What was asked of the system, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.error = 0
        monkeypatch.setattr(os, "fsync", lambda handle: self.calls.append("fsync"))
        if hasattr(os, "fdatasync"):
            monkeypatch.setattr(os, "fdatasync", lambda handle: self.calls.append("fdatasync"))
        monkeypatch.setattr(fcntl, "fcntl", self._fcntl)

    def _fcntl(self, handle: int, command: int) -> int:
        self.calls.append(f"fcntl {command}")
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        return 0


def test_on_linux_a_frame_is_synced_by_fdatasync_and_a_directory_by_fsync(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(fcntl, "F_FULLFSYNC", raising=False)
    monkeypatch.setattr(os, "fdatasync", None, raising=False)
    asked = Asked(monkeypatch)
    files.sync(7)
    files.sync(7, whole=True)
    assert asked.calls == ["fdatasync", "fsync"]


def test_on_macos_both_are_synced_through_the_cache_of_the_drive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.delattr(os, "fdatasync", raising=False)
    asked = Asked(monkeypatch)
    files.sync(7)
    files.sync(7, whole=True)
    assert asked.calls == ["fcntl 51", "fcntl 51"]


@pytest.mark.parametrize("refusal", [errno.ENOTSUP, errno.ENOTTY, errno.EINVAL])
def test_where_a_file_system_refuses_that_fsync_is_all_there_is(
    refusal: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    asked = Asked(monkeypatch)
    asked.error = refusal
    files.sync(7)
    assert asked.calls == ["fcntl 51", "fsync"]


def test_an_error_of_the_drive_is_an_error_and_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    asked = Asked(monkeypatch)
    asked.error = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        files.sync(7)
    assert asked.calls == ["fcntl 51"], "pages that failed are marked clean: fsync would lie"


def test_every_interpreter_that_is_named_is_one_that_the_package_takes() -> None:
    import tomllib

    project: dict[str, Any] = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    named = [text.rpartition(" ")[2] for text in project["classifiers"] if "Python :: 3" in text]
    assert project["requires-python"] == f">={named[0]}" and len(named) == 4
    tried = subprocess.run(
        [sys.executable, PROJECT / "tools/pythons.py", "--list"], capture_output=True, text=True
    )
    assert tried.stdout.split() == named
