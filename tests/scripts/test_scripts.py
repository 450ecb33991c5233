"""The scripts as users call them: cluster control, the demonstration, and the tools beside them."""

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from paxoskv import program
from paxoskv.client.sync import Client
from paxoskv.config import load
from paxoskv.node.opening import make
from paxoskv.wire.structs import Identity
from tests.harness.fake_node import FakeCluster
from tests.harness.ports import free_port
from tests.harness.processes import (
    CLIENT,
    DEADLINE_S,
    PROJECT,
    SCRIPTS,
    SERVER,
    Load,
    cluster_file,
    contended,
    eventually,
    finish,
)
from tests.project.test_docs import copied

sys.path.append(str(PROJECT / "deploy"))

import local

CLUSTER = SCRIPTS / "cluster.sh"
PROGRAMS = (
    "server.py",
    "client.py",
    *sorted(
        str(path.relative_to(PROJECT))
        for directory in ("scripts", "bench", "bench/experiments", "deploy", "tools", "labs")
        for path in (PROJECT / directory).iterdir()
        if path.is_file() and (os.access(path, os.X_OK) or path.name == "compile.py")
    ),
)
FAILOVER = PROJECT / "bench" / "experiments" / "failover.py"


def processes_with(text: str | Path) -> list[int]:
    """Ids of the processes whose command line holds this text."""
    found = []
    for directory in Path("/proc").iterdir():
        with suppress(OSError):
            if directory.name.isdecimal() and str(text).encode() in (directory / "cmdline").read_bytes():
                found.append(int(directory.name))
    return found


def state(pid: int) -> str:
    """R running, S sleeping, T stopped, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class Controlled:
    """A cluster of three, driven by cluster.sh."""

    def __init__(self, directory: Path) -> None:
        self.file = cluster_file(directory, 3)
        self.data = directory / "data"
        self.settings = load(self.file)

    def command(self, *words: str | int) -> list[Any]:
        return [CLUSTER, *words, "--cluster", self.file, "--data", self.data]

    def run(self, *words: str | int) -> Any:
        """cluster.sh with these words: what it printed, and its exit code."""
        environment = {**os.environ, "PYTHON": sys.executable}
        return finish(self.command(*words), 2 * DEADLINE_S, env=environment)

    def succeed(self, *words: str | int) -> str:
        done = self.run(*words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}{self.logs()}"
        return str(done.stdout)

    def fail(self, code: int, *words: str | int) -> str:
        """It ends with this code; what it said on stderr."""
        done = self.run(*words)
        assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}{self.logs()}"
        return str(done.stderr)

    def logs(self) -> str:
        return "".join(f"\n--- {path.name}\n{path.read_text()[-2000:]}" for path in self.data.glob("*.log"))

    def pid(self, node: int) -> int:
        """The process that was started last; see its log."""
        log = (self.data / f"node-{node}.log").read_text()
        return int(re.findall(r"event=listening .* pid=(\d+)", log)[-1])

    def client(self, timeout: float = DEADLINE_S) -> Client:
        return Client(self.settings, timeout=timeout)


@pytest.fixture
def controlled(tmp_path: Path) -> Iterator[Controlled]:
    cluster = Controlled(tmp_path / "a place")
    yield cluster
    for node in (1, 2, 3):
        cluster.run("kill", node)
    assert not processes_with(cluster.file)


# ------------------------------------------------------------------------------------------------ cluster.sh


@pytest.mark.slow
def test_the_cluster_starts_answers_keeps_its_data_over_a_restart_and_stops(controlled: Controlled) -> None:
    assert "3 nodes answer" in controlled.succeed("start")
    with controlled.client() as client:
        client.put("key", "value")
    status = controlled.succeed("status")
    assert len(re.findall(r"^node \d \(127\.0\.0\.1:\d+\) +serving ", status, re.MULTILINE)) == 3

    first = [controlled.pid(node) for node in (1, 2, 3)]
    assert controlled.succeed("start").count("runs already") == 3
    assert [controlled.pid(node) for node in (1, 2, 3)] == first

    assert "3 nodes answer" in controlled.succeed("restart")
    assert not set(first) & {controlled.pid(node) for node in (1, 2, 3)}
    with controlled.client() as client:
        assert client.get("key") == "value"

    controlled.succeed("stop")
    assert not processes_with(controlled.file)
    controlled.succeed("stop")  # nothing to do is no error
    assert controlled.run("status").returncode == 3


@pytest.mark.slow
def test_one_node_is_stopped_killed_started_paused_and_resumed(controlled: Controlled) -> None:
    controlled.succeed("start")
    with controlled.client() as client:
        pid = controlled.pid(2)
        assert controlled.succeed("kill", 2) == "node 2 killed\n"
        assert pid not in processes_with(controlled.file)
        client.put("key", "without 2")
        assert controlled.run("status").returncode == 1, "one of the nodes does not answer"
        controlled.succeed("start", 2)
        assert controlled.pid(2) != pid

        controlled.succeed("stop", 3)
        assert "event=stopped" in (controlled.data / "node-3.log").read_text()
        client.put("key", "without 3")
        controlled.succeed("start", 3)

        pid = controlled.pid(1)
        controlled.succeed("pause", 1)
        eventually(lambda: state(pid) == "T", "node 1 is paused")
        client.put("key", "without 1")
        controlled.succeed("resume", 1)
        eventually(lambda: state(pid) != "T", "node 1 goes on")
        assert client.get("key", node=1) == "without 1"

        pid = controlled.pid(1)
        controlled.succeed("restart", 1)
        assert controlled.pid(1) != pid
        assert client.get("key", node=1) == "without 1"

        controlled.succeed("pause", 1)
        controlled.succeed("stop")  # a paused node too
        assert not processes_with(controlled.file)


@pytest.mark.slow
def test_a_node_that_is_paused_down_or_elsewhere_is_said_to_be_so(controlled: Controlled) -> None:
    controlled.succeed("start")
    pid = controlled.pid(1)
    controlled.succeed("pause", 1)
    eventually(lambda: state(pid) == "T", "node 1 is paused")
    assert controlled.fail(1, "start", 1) == "cluster.sh: node 1 is paused: scripts/cluster.sh resume 1\n"
    controlled.succeed("resume", 1)

    controlled.succeed("kill", 3)
    assert controlled.succeed("stop", 3) == "node 3 did not run\n"
    at_first = f"127.0.0.1:{controlled.settings.member(3).port}"
    elsewhere = f"127.0.0.1:{free_port()}"
    with controlled.client() as client:
        client.replace_node(3, elsewhere)
        began = time.monotonic()
        told = controlled.fail(1, "start", 3)
        assert f"it is refused by the others: node 3 was replaced: it is at {elsewhere}" in told
        assert time.monotonic() - began < 50, "sooner than a minute"
        controlled.succeed("kill", 3)
        client.replace_node(3, at_first)
        controlled.succeed("start", 3)  # what it holds says that it is elsewhere
    with controlled.client() as client:
        assert client.get("none", node=3) is None


@pytest.mark.slow
def test_who_interrupts_a_rolling_restart_is_told_which_node_is_down(controlled: Controlled) -> None:
    controlled.succeed("start")
    pid = controlled.pid(1)
    environment = {**os.environ, "PYTHON": sys.executable}
    with subprocess.Popen(
        list(map(str, controlled.command("rolling"))), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, env=environment,
    ) as rolling:  # fmt: skip
        eventually(lambda: pid not in processes_with(controlled.file), "node 1 has ended")
        rolling.send_signal(signal.SIGINT)
        _, told = rolling.communicate(timeout=DEADLINE_S)
    assert rolling.returncode == 130
    assert "cluster.sh: interrupted: node 1 is down: scripts/cluster.sh start 1" in told
    controlled.succeed("start", 1)


@pytest.mark.slow
def test_a_rolling_restart_renews_every_node_and_fails_no_operation(controlled: Controlled) -> None:
    controlled.succeed("start")
    before = {controlled.pid(node) for node in (1, 2, 3)}
    csv = contended(controlled.file.parent / "load.csv", 3000, 30, seed=11)
    with Load(["--cluster", controlled.file], csv) as load:
        began = time.monotonic_ns()
        assert controlled.succeed("rolling").count("is back") == 3
        load.expect_success()
    assert any(operation.call > began for operation in load.operations())
    assert not before & {controlled.pid(node) for node in (1, 2, 3)}

    controlled.succeed("kill", 2)
    survivors = [controlled.pid(node) for node in (1, 3)]
    assert "node 2 does not run; start it first" in controlled.fail(1, "rolling")
    assert [controlled.pid(node) for node in (1, 3)] == survivors, "no majority was put at risk"


@pytest.mark.slow
def test_a_start_whose_port_is_taken_says_so_and_leaves_nothing_behind(controlled: Controlled) -> None:
    member = controlled.settings.member(2)
    with socket.create_server((member.host, member.port)):
        told = controlled.fail(1, "start")
        assert told.startswith(f"cluster.sh: node 2: port {member.port} of {member.host} is taken by another")
        assert not controlled.data.exists() and len(told.splitlines()) == 1
    assert "3 nodes answer" in controlled.succeed("start"), "the port is free now"
    controlled.succeed("stop")


@pytest.mark.slow
def test_a_false_start_takes_no_other_clusters_answers_for_its_own_and_leaves_nothing_behind(
    controlled: Controlled, tmp_path: Path
) -> None:
    controlled.succeed("start")
    before = [controlled.pid(node) for node in (1, 2, 3)]
    other = Controlled(tmp_path / "other")
    other.file.write_text(controlled.file.read_text().replace('"test"', '"other"'))
    told = other.fail(1, "start").splitlines()
    assert len(told) == 3 and all("is taken by another program" in line for line in told)
    assert not other.data.exists()

    other.file.write_text(controlled.file.read_text())  # the same cluster, as far as anybody can ask
    assert "is taken by another program" in other.fail(1, "start")
    assert not other.data.exists()
    # Without the look beforehand, as if the first cluster had been started at the same moment.
    words = argparse.Namespace(cluster=str(other.file), data=str(other.data), id=None)
    raced = local.Local(words)
    other.data.mkdir()
    raced.make()
    with pytest.raises(local.Failure, match=r"node 1: port .* is taken by another program: server.py"):
        raced.launch(fresh=True)
    assert not processes_with(other.file) and not list(other.data.glob("node-?"))
    assert [controlled.pid(node) for node in (1, 2, 3)] == before
    assert "3 nodes answer" in controlled.succeed("start")


@pytest.mark.slow
def test_data_that_was_moved_away_under_running_nodes_is_not_made_anew(controlled: Controlled) -> None:
    controlled.succeed("start")
    moved = controlled.data.with_name("moved")
    controlled.data.rename(moved)
    told = controlled.fail(1, "start").splitlines()
    assert len(told) == 3 and all("was it moved? move it back" in line for line in told)
    assert not controlled.data.exists()
    for node in (1, 2, 3):
        (moved / f"node-{node}").rename(moved / f"kept-{node}")
    moved.rename(controlled.data)
    assert "its data is no longer at" in controlled.fail(1, "start", 2)
    controlled.succeed("stop")
    assert not processes_with(controlled.file)


@pytest.mark.slow
def test_an_interrupted_start_leaves_nothing_running(controlled: Controlled) -> None:
    controlled.succeed("start")
    controlled.succeed("stop")
    command = [str(word) for word in controlled.command("start", 1)]  # alone it has no majority
    seen = (controlled.data / "node-1.log").read_text().count("event=listening")
    with subprocess.Popen(command, env={**os.environ, "PYTHON": sys.executable}) as child:
        eventually(
            lambda: (controlled.data / "node-1.log").read_text().count("event=listening") > seen,
            "node 1 is up, and waited for",
        )
        child.send_signal(signal.SIGINT)
        assert child.wait(DEADLINE_S) == 130
    assert not processes_with(controlled.file)


@pytest.mark.slow
def test_a_node_whose_data_is_gone_is_not_started_as_if_it_were_new(controlled: Controlled) -> None:
    controlled.succeed("start")
    controlled.succeed("stop")
    (controlled.data / "node-2").rename(controlled.data / "gone")
    for words in (("start",), ("start", 2)):
        told = controlled.fail(1, *words)
        assert "node 2: its data directory" in told and "is missing, but others have theirs" in told
    assert not (controlled.data / "node-2").exists()
    assert not processes_with(controlled.file), "no node is started where one cannot be"


def test_data_directories_are_made_for_all_nodes_or_for_none(tmp_path: Path) -> None:
    controlled = Controlled(tmp_path)
    assert "the first start is of all nodes" in controlled.fail(1, "start", 1)
    assert not controlled.data.exists()
    cannot = Path("/proc/kv")
    done = finish([CLUSTER, "start", "--cluster", controlled.file, "--data", cannot])
    assert (done.returncode, done.stderr) == (1, f"cluster.sh: {cannot}: No such file or directory\n")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ((), 2, "the following arguments are required: COMMAND"),
        (("fly",), 2, "invalid choice: 'fly'"),
        (("start", "9"), 2, "has no node 9"),
        (("start", "1", "2"), 2, "unrecognized arguments: 2"),
        (("start", "--force"), 2, "unrecognized arguments: --force"),
        (("start", "one"), 2, "invalid int value: 'one'"),
        (("kill",), 2, "kill needs a node's id"),
        (("pause",), 2, "pause needs a node's id"),
        (("resume",), 2, "resume needs a node's id"),
        (("kill", "1"), 1, "node 1 does not run"),
        (("pause", "1"), 1, "node 1 does not run"),
        (("resume", "1"), 1, "node 1 does not run"),
    ],
)
def test_misuse_is_told(tmp_path: Path, words: tuple[str, ...], code: int, told: str) -> None:
    assert told in Controlled(tmp_path).fail(code, *words)


def test_a_bad_cluster_file_is_told_before_anything_starts(tmp_path: Path) -> None:
    controlled = Controlled(tmp_path)
    document = json.loads(controlled.file.read_text())
    document["nodes"][1]["port"] = 0
    controlled.file.write_text(json.dumps(document))
    told = controlled.fail(2, "start")
    assert told.splitlines() == [
        f"cluster.sh: {controlled.file}: nodes[1].port: 0 is not a port (1 to 65535)"
    ]
    assert not controlled.data.exists()


def test_an_option_without_its_value_is_told() -> None:
    done = finish([CLUSTER, "start", "--cluster"])
    assert (
        done.returncode == 2
        and done.stderr == "cluster.sh: argument --cluster: expected one argument (see --help)\n"
    )


def test_help_is_on_stdout() -> None:
    done = finish([CLUSTER, "--help"])
    assert done.returncode == 0 and "usage: scripts/cluster.sh" in done.stdout
    for command in ("start", "stop", "status", "restart", "rolling", "kill ID", "pause ID", "resume ID"):
        assert command in done.stdout


def test_data_is_beside_the_clusters_file_wherever_a_command_is_given(tmp_path: Path) -> None:
    file = cluster_file(tmp_path / "cluster", 3)
    (tmp_path / "elsewhere").mkdir()
    done = finish([CLUSTER, "stop", "--cluster", file], cwd=tmp_path / "elsewhere")
    assert done.returncode == 0
    assert done.stdout == f"no node runs whose data is in {file.parent / 'data'}\n"
    done = finish([sys.executable, SERVER, "--id", "1", "--cluster", file], cwd=tmp_path / "elsewhere")
    assert f"server.py: {file.parent}/data/node-1/identity.json: missing" in done.stderr
    assert not list((tmp_path / "elsewhere").iterdir())
    old = tmp_path / "elsewhere" / "data" / "node-1"
    old.mkdir(parents=True)
    (old / "identity.json").write_text(json.dumps({"digest": load(file).digest}))
    done = finish([CLUSTER, "start", "--cluster", file], cwd=tmp_path / "elsewhere")
    assert done.returncode == 2 and "data/node-1 is here, but" in done.stderr, "no second cluster beside it"
    assert not (file.parent / "data").exists()
    (old / "identity.json").write_text(json.dumps({"digest": "another cluster's"}))
    done = finish([CLUSTER, "stop", "--cluster", file], cwd=tmp_path / "elsewhere")
    assert done.returncode == 0, "that of another cluster is in nobody's way"


# ------------------------------------------------------------------------------------------------------ demo


@pytest.mark.slow
def test_the_demonstration_does_150_operations_fails_none_and_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = finish([SCRIPTS / "demo.sh"], 4 * DEADLINE_S, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "150 operations, 0 failed, 0 unknown, 0 malformed" in done.stdout
    assert len(re.findall(r"^node \d: .* SHA-256", done.stdout, re.MULTILINE)) == 5
    assert "all stores are equal" in done.stdout
    assert not processes_with(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_demonstration_that_fails_says_so_and_leaves_nothing_behind(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    nothing = tmp_path / "nothing.csv"
    nothing.write_text("")
    environment = {**os.environ, "TMPDIR": str(run)}
    done = finish([SCRIPTS / "demo.sh", nothing], 4 * DEADLINE_S, env=environment, cwd=run)
    assert done.returncode == 2
    assert "nothing.csv" in done.stderr
    assert not processes_with(run)
    assert not list(run.iterdir())
    done = finish([SCRIPTS / "demo.sh", "no-such-file.csv"], env=environment, cwd=run)
    assert (done.returncode, done.stdout) == (2, ""), "told before anything is started"
    assert done.stderr == "demo.sh: no-such-file.csv: no such file\n"


def test_a_demonstration_with_an_unknown_option_starts_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = finish([SCRIPTS / "demo.sh", "--frob"], 4 * DEADLINE_S, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("demo.sh run: error: unrecognized arguments: --frob\n")
    done = finish([SCRIPTS / "demo.sh", "--in-flight", "2", "--help"], env=environment, cwd=tmp_path)
    assert done.returncode == 0 and "\nusage: scripts/demo.sh [FILE.csv]" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_demonstration_says_at_its_end_that_compiling_goes_on(tmp_path: Path) -> None:
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists() or not shutil.which("cc"):
        pytest.skip("no C compiler, or no headers of Python (Debian: apt-get install gcc python3-dev)")
    project = copied(tmp_path)
    (project / "build").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PAXOSKV_INTERPRETED"}
    with (project / "build" / "compiling").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as who compiles has it
        done = finish([project / "scripts" / "demo.sh"], 4 * DEADLINE_S, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    _, _, end = done.stdout.partition("all stores are equal\n")
    assert end.startswith("== the nodes stop; the busiest modules are still compiled in the background")


def test_setting_up_again_costs_nothing() -> None:
    for words in ((), ("--dev",), ()):
        finish([SCRIPTS / "setup.sh", *words], 4 * DEADLINE_S).check_returncode()
    began = time.monotonic()
    done = finish([SCRIPTS / "setup.sh"])
    assert done.returncode == 0 and done.stdout == done.stderr == ""
    assert time.monotonic() - began < 60


# ------------------------------------------------------------------------------------------------ small tools


@pytest.mark.parametrize(
    "script",
    sorted(
        str(path.relative_to(PROJECT))
        for directory in ("scripts", "bench", "bench/experiments", "deploy", "tools")
        for path in (PROJECT / directory).glob("*.py")
        if os.access(path, os.X_OK)
    ),
)
def test_a_script_runs_as_it_is_without_the_environments_python_in_the_path(script: str) -> None:
    done = finish([PROJECT / script, "--help"], env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    assert done.stdout and not done.stderr


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project without .venv, at a path with a blank; `bin` has a Python without any package."""
    project = tmp_path_factory.mktemp("bare") / "a project"
    kept = shutil.ignore_patterns(".*", "__pycache__", "build")
    shutil.copytree(PROJECT, project, symlinks=True, ignore=kept)
    (project / "bin").mkdir()
    python = project / "bin" / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys._base_executable} -S "$@"\n')  # type: ignore[attr-defined]
    python.chmod(0o755)
    return project


def exit_codes() -> dict[int, str]:
    """By code, who ends with it: from the table in the operations guide."""
    text = (PROJECT / "docs" / "operations.md").read_text()
    return {int(code): who for code, who in re.findall(r"^\| (\d+) \| .* \| (.*) \|$", text, re.MULTILINE)}


def test_every_program_is_named_beside_the_exit_codes() -> None:
    text = (PROJECT / "docs" / "operations.md").read_text()
    missing = [file for file in PROGRAMS if f"`{Path(file).name}`" not in text]
    assert not missing


@pytest.mark.parametrize(
    ("code", "command"),
    [
        (0, "scripts/compare_stores.py --help"),
        (0, "deploy/supervise.py --help"),
        (1, "scripts/cluster.sh kill 1 --cluster {cluster}"),
        (2, "server.py --id 9 --cluster {cluster}"),
        (2, "scripts/fsck.py {nowhere}"),
        (2, "scripts/check_history.py {nowhere}"),
        (2, "scripts/restore.sh {nowhere} --cluster {nowhere}"),
        (2, "scripts/demo.sh {nowhere}"),
        (2, "scripts/simulate.py --seeds none"),
        (2, "scripts/simulate.py --record"),
        (2, "scripts/explore.py --check-trace {nowhere} one-log"),
        (2, "scripts/test.sh --no-such-option"),
        (2, "scripts/bench.sh --no-such-option"),
        (2, "bench/experiments/failover.py --nodes 1"),
        (3, "client.py get key --timeout 0.1 --cluster {cluster}"),
        (3, "scripts/backup.sh {nowhere} --cluster {cluster}"),
        (3, "scripts/compare_stores.py --within 0 --cluster {cluster}"),
        (65, "client.py run {malformed} --timeout 0.1 --cluster {cluster}"),
        (65, "scripts/check_history.py {malformed}"),
        (74, "scripts/make_workload.py > /dev/full"),
        (74, "scripts/make_cluster.py > /dev/full"),
        (74, "server.py --help > /dev/full"),
        (74, "scripts/cluster.sh --help > /dev/full"),
        (74, "scripts/launch.sh --help > /dev/full"),
        (74, "bench/run.py --help > /dev/full"),
        (74, "scripts/make_workload.py -o /proc/nowhere"),
        (74, "scripts/make_certs.sh {cluster} /proc/nowhere"),
        (74, "scripts/trace.py put --svg /proc/nowhere"),
        (74, "scripts/trace.py put --svg - > /dev/full"),
        (74, "scripts/fsck.py {data} --export /proc/nowhere"),
        (74, "scripts/restore.sh {backup} --cluster {cluster} --data /proc/nowhere"),
        (74, "bench/run.py --out /proc/nowhere"),
        (74, "client.py run workload.csv --timeout 0.1 --cluster {cluster} --out /proc/nowhere"),
        (74, "client.py run workload.csv --timeout 0.1 --cluster {cluster} --history /proc/nowhere"),
        (74, "labs/grade.py 1 --pages /proc/nowhere"),
        (141, "scripts/make_workload.py --rows 99999 | head -n 1; exit ${{PIPESTATUS[0]}}"),
        (0, "PYTHONUNBUFFERED= scripts/make_cluster.py | true; exit ${{PIPESTATUS[0]}}"),
    ],
)
def test_programs_end_with_the_exit_codes_of_the_table(tmp_path: Path, code: int, command: str) -> None:
    who = exit_codes()[code]
    assert "every program" in who or f"`{Path(command.split()[0]).name}`" in who
    malformed = tmp_path / "malformed"
    malformed.write_text("PUT\n")
    named = {"cluster": cluster_file(tmp_path, 1), "nowhere": tmp_path / "nowhere", "malformed": malformed}
    if "{data}" in command or "{backup}" in command:
        named |= old_data(tmp_path / "old")
    words = command.format(**named)
    if command.startswith(("server.py", "client.py")):
        words = f"{sys.executable} {words}"
    done = finish(["bash", "-c", words], cwd=PROJECT, env={**os.environ, "PYTHON": sys.executable})
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    if code == 74:
        assert done.stderr.count("\n") == 1
        called = CALLED.get(command.split()[0], Path(command.split()[0]).name)
        assert done.stderr.startswith(f"{called}: ")


# What calls itself otherwise: by the script that users call, by the command of backup.py, or as mkdir does.
CALLED = {"bench/run.py": "bench.sh", "scripts/restore.sh": "restore", "scripts/make_certs.sh": "mkdir"}


def old_data(directory: Path) -> dict[str, Path]:
    """The data directory of the node of another cluster, and a backup of it."""
    found = {"data": directory / "node-1", "backup": directory / "old.gz"}
    make(found["data"], Identity("old", "digest", 1, 1, 0))
    finish([SCRIPTS / "fsck.py", found["data"], "--export", found["backup"]]).check_returncode()
    return found


@pytest.mark.parametrize(
    "command",
    [
        "client.py run workload.csv --out -",
        "client.py run workload.csv --history -",
        "scripts/backup.sh -",
        "scripts/fsck.py data/node-1 --export -",
        "bench/run.py --out -",
        "labs/grade.py 1 --pages -",
    ],
)
def test_a_dash_that_cannot_mean_stdout_is_refused(tmp_path: Path, command: str) -> None:
    file, *words = command.split()
    done = finish([sys.executable if file.endswith(".py") else "bash", PROJECT / file, *words], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].endswith(
        "- would be stdout: give a name (./- for one that is called so)"
    )
    assert not list(tmp_path.iterdir())


def test_an_interrupted_program_ends_quietly_as_the_signal_ends_it(tmp_path: Path) -> None:
    command = [SCRIPTS / "compare_stores.py", "--within", "600", "--cluster", cluster_file(tmp_path, 1)]
    with subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True) as child:
        eventually(lambda: len(processes_with(tmp_path)) > 1, "it asks a node")
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=DEADLINE_S)
    assert (child.returncode, errors) == (-signal.SIGINT, "")
    assert "130" in str(sorted(exit_codes()))


def test_the_packages_that_programs_look_for_are_those_that_are_installed() -> None:
    listed = [line.split("==")[0] for line in (PROJECT / "requirements.txt").read_text().split()]
    later = {"prometheus-client", "argcomplete", "pytest", "uvloop"}  # where they are asked for, if at all
    assert set(program.PACKAGES) == set(listed) - later


@pytest.mark.parametrize("file", PROGRAMS)
def test_help_works_where_nothing_is_installed_and_misuse_is_no_traceback(bare: Path, file: str) -> None:
    environment = {"PATH": f"{bare}/bin:/usr/bin:/bin"}
    command = [bare / file] if os.access(bare / file, os.X_OK) else ["python3", bare / file]
    done = finish([*command, "--help"], env=environment)
    assert (done.returncode, done.stderr) == (0, "") and "usage" in done.stdout.lower()
    assert not re.search("^#", done.stdout, re.MULTILINE), "a comment as it stands in the source"
    if file not in ("scripts/demo.sh", "scripts/bench.sh", "scripts/test.sh"):  # they install first
        done = finish([*command, "--no-such-option"], env=environment)
        assert done.returncode == 2 and done.stderr and "Traceback" not in done.stderr
    assert not (bare / ".venv").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--port", "65535"], "nodes[1].port: 65536 is not a port"),
        (["--nodes", "4"], "nodes: 4 is not an odd number of nodes"),
        (["--set", "foo=3"], "foo: 3 is in no known field"),
    ],
)
def test_a_cluster_that_nobody_would_read_is_not_made(words: list[str], told: str) -> None:
    done = finish([sys.executable, SCRIPTS / "make_cluster.py", *words])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"make_cluster.py: {told}")


def test_comparing_stores_tells_a_difference_and_a_node_that_does_not_answer(tmp_path: Path) -> None:
    """The nodes have two stores, and are of a version that cannot say which cluster it is."""
    compare = [sys.executable, SCRIPTS / "compare_stores.py", "--within", "1", "--cluster"]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with (
        contextlib.closing(FakeCluster(tmp_path / "a", 1)) as a,
        contextlib.closing(FakeCluster(tmp_path / "b", 1)) as b,
    ):
        mixed = tmp_path / "mixed.json"
        one, two = a.nodes[0].port, b.nodes[0].port
        a.nodes[0].old = b.nodes[0].old = True

        def write(host: str, third: int) -> None:
            places = [("127.0.0.1", one), ("127.0.0.1", two), (host, third)]
            nodes = [{"id": i, "host": h, "port": port} for i, (h, port) in enumerate(places, start=1)]
            mixed.write_text(json.dumps({"name": "mixed", "nodes": nodes}))

        write("127.0.0.1", load(cluster_file(tmp_path, 1)).nodes[0].port)
        done = finish([*compare, mixed])
        assert done.returncode == 3 and "node 3: no answer" in done.stdout

        write("localhost", one)
        assert finish([*compare, mixed]).returncode == 0, "two empty stores are equal"
        with Client(f"127.0.0.1:{two}") as client:
            client.put("key", "value")
        done = finish([*compare, mixed])
        assert done.returncode == 1 and "THE STORES DIFFER" in done.stdout


def test_a_made_cluster_file_has_free_ports_and_the_fields_asked_for(tmp_path: Path) -> None:
    settings = load(cluster_file(tmp_path, 7, "seven", revoke_after_s=2, fsync=False))
    assert settings.name == "seven" and len(settings.nodes) == 7
    assert settings.revoke_after_s == 2 and settings.fsync is False
    for member in settings.nodes:
        socket.create_server((member.host, member.port)).close()
    done = finish([SCRIPTS / "make_cluster.py", "--nodes", "3", "--port", "7001"])
    assert [node["port"] for node in json.loads(done.stdout)["nodes"]] == [7001, 7002, 7003]


def test_a_made_workload_is_the_same_for_the_same_seed_and_one_that_the_client_takes(tmp_path: Path) -> None:
    make = [sys.executable, SCRIPTS / "make_workload.py", "--rows", "450"]
    one, again = finish([*make, "--seed", "5"]).stdout, finish([*make, "--seed", "5"]).stdout
    assert one == again != finish([*make, "--seed", "6"]).stdout
    path = tmp_path / "load.csv"
    path.write_text(one)
    verbs = [line.split(",")[0] for line in one.splitlines()]
    assert [verbs.count(verb) for verb in ("PUT", "GET", "DELETE")] == [240, 180, 30]
    done = finish(
        [sys.executable, CLIENT, "run", path, "--strict", "--timeout", "1", "--cluster",
         cluster_file(tmp_path / "none", 1)]
    )  # fmt: skip
    assert done.returncode == 3 and "malformed" not in done.stderr, "taken, but no node is there"


# ------------------------------------------------------------------------------------------------ failover.py


@pytest.mark.slow
def test_failover_measures_kills_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, FAILOVER, "--kills", "2", "--nodes", "3", "--dead", "0.1"]
    done = finish(command, 2 * DEADLINE_S, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    head, _, *rows = done.stdout.splitlines()
    assert re.match(r"\| 2 kills, [0-9,]+ operations, 0 failed \|", head)
    names = ("longest gap without any answer", "longest operation")
    for name, row in zip(names, rows, strict=True):
        assert re.fullmatch(rf"\| {name} \| [0-9.]+ \| ([0-9.]+) \| \1 \|", row)
    assert not processes_with(tmp_path) and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_interrupted_failover_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, str(FAILOVER), "--nodes", "3", "--dead", "0.1"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as child:
        eventually(lambda: len(processes_with(tmp_path)) == 3, "the nodes are started")
        child.terminate()
        _, errors = child.communicate(timeout=DEADLINE_S)
    assert "failover.py: interrupted" in errors
    assert not processes_with(tmp_path) and not list(tmp_path.iterdir())


def test_failover_needs_somebody_to_fail_over_to() -> None:
    done = finish([sys.executable, FAILOVER, "--nodes", "1"])
    assert done.returncode == 2 and "an odd number" in done.stderr
