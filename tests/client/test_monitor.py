"""status and health: what the table works out, and both commands against real nodes."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paxoskv.client import health
from paxoskv.client.base import Address
from paxoskv.client.operations import ClientError
from paxoskv.config import load
from paxoskv.wire.codec import Status
from paxoskv.wire.structs import LogStatus, Position
from tests.harness.processes import (
    CLIENT,
    DEADLINE_S,
    Process,
    Processes,
    RealCluster,
    cluster_file,
    eventually,
    finish,
)


def view(node: int, executed: int, applied: tuple[int, int] = (9, 1), *, hash: int = 5, **more: Any) -> Any:
    """A node of three; `leaders` says who leads which log, by whose promises."""
    leaders = more.pop("leaders", {})
    logs = [
        LogStatus(
            log, leaders.get(log, (log, 0))[0], 256 + leaders.get(log, (log, 0))[1], 0, 0, 0, executed, 0
        )
        for log in (1, 2, 3)
    ]
    status = Status(
        node=node, cluster="c", version="1", ready=True, clock=9, applied=Position(*applied), keys=1,
        logs=logs, connected=[], pending=0, journal_bytes=1 << 20, memory_bytes=1 << 20, uptime_s=1.0,
        counters={}, hash=hash, in_flight=0, state="serving", problems=[],
    )._replace(**more)  # fmt: skip
    return health.View(Address(node, "h", node), status, None)


def dead(node: int) -> Any:
    return health.View(Address(node, "h", node), None, ClientError(f"status: node {node} (h:{node}): gone"))


# ---------------------------------------------------------------------------------------- what is worked out


def test_the_lag_is_what_the_furthest_has_applied_more() -> None:
    assert [row.lag for row in health.rows([view(1, 10), dead(2), view(3, 7, (7, 1))])] == [0, None, 9]


def test_the_log_of_a_dead_node_is_led_by_whom_the_highest_ballot_says() -> None:
    views = [view(1, 5, leaders={2: (1, 10)}), dead(2), view(3, 5, leaders={2: (3, 20)})]
    assert [row.leader for row in health.rows(views)] == [1, 3, 3]
    assert "revoked by 3" in health.as_text(views)


def test_a_living_node_speaks_for_its_own_log() -> None:
    views = [view(1, 5, leaders={1: (2, 10)}), view(2, 5, leaders={1: (2, 10)})]
    assert [row.leader for row in health.rows(views)] == [2, 2]
    assert health.cells(views[0], health.rows(views)[0])[2] == "revoked by 2"
    assert health.cells(views[1], health.rows(views)[1])[2] == "leads"


def test_nodes_that_applied_the_same_and_hold_something_else_are_told_from_those_that_lag() -> None:
    assert [row.differs for row in health.rows([view(1, 5), view(2, 5, hash=6), view(3, 5)])] == [True] * 3
    assert [row.differs for row in health.rows([view(1, 5), view(2, 4, (8, 1), hash=6)])] == [False] * 2
    alike, unlike = {"digest": "a"}, {"digest": "b"}
    assert [row.differs for row in health.rows([view(1, 5, **alike), view(2, 5, **unlike)])] == [True] * 2
    assert "DIFFERS" in health.as_text([view(1, 5), view(2, 5, hash=6)])


def test_the_table_has_a_column_for_each_thing_asked_for_and_a_line_for_each_node() -> None:
    lines = health.as_text([view(1, 5, checkpoint_age_s=61.0), dead(2), view(3, 5)]).splitlines()
    columns = ("state", "its log", "clock", "applied", "lag", "in flight", "journal", "checkpoint", "memory",
               "version", "hash")  # fmt: skip
    assert all(name in lines[0] for name in columns)
    assert [line[:6] for line in lines[1:4]] == ["node 1", "node 2", "node 3"]
    assert "61 s" in lines[1] and "0000000000000005" in lines[1] and "none" in lines[3]
    assert lines[4] == "node 2 (h:2): gone"


def test_problems_that_nodes_tell_stand_below_the_table() -> None:
    lines = health.as_text([view(1, 5, problems=["stranger 10.0.0.9: digest"])]).splitlines()
    assert lines[-1] == "node 1 (h:1): stranger 10.0.0.9: digest"


def test_what_a_terminal_shows_says_the_same_as_the_text() -> None:
    from rich.console import Console

    views = [view(1, 5), dead(2), view(3, 5, hash=6)]
    console = Console(width=300, file=open(os.devnull, "w"), record=True)  # noqa: SIM115
    console.print(health.as_table(views))
    assert console.export_text().split() == health.as_text(views).split()


# ------------------------------------------------------------------------------------------- the real thing


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    with RealCluster(tmp_path_factory.mktemp("monitor"), nodes=3) as running:
        yield running


def command(cluster: RealCluster, *words: str) -> Any:
    return finish([sys.executable, CLIENT, words[0], "--cluster", cluster.file, *words[1:]])


def test_status_tells_of_all_nodes_and_health_finds_them_well(cluster: RealCluster) -> None:
    with cluster.client() as client:
        client.put("key", "value")
    cluster.wait_until_stores_are_equal()
    done = command(cluster, "status", "-o", "json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [each["node"] for each in told] == [each["leader"] for each in told] == [1, 2, 3]
    for each in told:
        assert (each["reachable"], each["ready"], each["lag"], each["differs"]) == (True, True, 0, False)
        assert each["memory_bytes"] > 1 << 20 and each["journal_bytes"] > 0 and each["version"]
    before = cluster.store(1)
    done = command(cluster, "health", "-o", "json", "--timeout", "60")
    assert done.returncode == 0, done.stderr
    checks = json.loads(done.stdout)
    assert len(checks) == 3 and all(check["ok"] and check["error"] is None for check in checks)
    assert all(check["write_s"] > 0 and check["read_s"] > 0 for check in checks)
    assert cluster.store(1) == before, "the check leaves nothing behind"


def test_health_of_one_node_asks_no_other(cluster: RealCluster) -> None:
    done = command(cluster, "health", "--node", "2", "--timeout", "60")
    assert done.returncode == 0 and done.stdout.count("\n") == 1 and done.stdout.startswith("node 2 (")
    done = command(cluster, "health", "--node", "9")
    assert done.returncode == 2 and "there is no node 9" in done.stderr


@pytest.mark.slow
def test_a_dead_and_a_hanging_node_are_named_with_their_reasons(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=5) as cluster:
        cluster.kill(2)
        cluster.pause(4)
        with cluster.client() as client:
            client.put("key", "value")
        eventually(
            lambda: {each["leader"] for each in json.loads(command(cluster, "status", "-o", "json").stdout)
                     if each["address"].startswith(("node 2", "node 4"))} <= {1, 3, 5},
            "somebody has taken their logs over",
        )  # fmt: skip
        done = command(cluster, "status")
        assert done.returncode == 1
        lines = done.stdout.splitlines()
        assert "unreachable" in lines[2] and "revoked by" in lines[2] and "revoked by" in lines[4]
        assert any(line.startswith("node 2 (") and line.endswith("Connection refused") for line in lines[6:])
        assert any(line.startswith("node 4 (") and "no answer within" in line for line in lines[6:])
        done = command(cluster, "health", "--timeout", "30", "--node", "2", "--node", "1")
        assert done.returncode == 1
        assert [line[:24] for line in done.stderr.splitlines()] == [
            f"client.py: node 2 ({_host(cluster, 2)}"[:24]
        ]
        assert "write: cannot connect: Connection refused" in done.stderr
        assert done.stdout.startswith("node 1 (") and done.stdout.count("\n") == 1
        done = command(cluster, "health", "--timeout", "0.5", "--node", "4")
        assert done.returncode == 1 and "node 4" in done.stderr
        assert "write: no answer within 0.5 s" in done.stderr
        cluster.resume(4)


def _host(cluster: RealCluster, node: int) -> str:
    return cluster.settings.member(node).host


@pytest.mark.slow
def test_without_a_quorum_health_says_which_step_failed(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=3) as cluster:
        cluster.kill(2, 3)
        done = command(cluster, "health", "--node", "1", "--timeout", "1")
        assert done.returncode == 1
        assert "node 1" in done.stderr and "write: " in done.stderr
        done = command(cluster, "status", "--node", "3")
        assert done.returncode == 3, "no node that was asked answers"


@pytest.mark.slow
def test_status_says_why_nodes_with_other_files_are_refused(tmp_path: Path) -> None:
    path = cluster_file(tmp_path, 3)
    document = json.loads(path.read_text())
    other = tmp_path / "other.json"
    spare = load(cluster_file(tmp_path / "spare", 1)).nodes[0].port
    document["nodes"][1]["port"] = spare
    other.write_text(json.dumps(document))
    with Processes() as processes:
        for node in (1, 2, 3):
            file = other if node == 3 else path
            words = ["--id", str(node), "--cluster", file, "--data", tmp_path / "data", "--init"]
            processes.all.append(Process(f"node {node}", words, tmp_path / f"{node}.log"))
            processes.all[-1].start()

        def told() -> str:
            done = finish([sys.executable, CLIENT, "status", "--cluster", path])
            return done.stdout if done.returncode == 1 else ""

        text = eventually(lambda: (t := told()).count("cluster.json differs") >= 3 and t, "status says why")
        assert any(
            line.startswith("node 1 (") and "peer-refused 3: digest: its cluster.json differs" in line
            for line in text.splitlines()
        )


def test_watching_shows_the_table_again_and_again_until_it_is_interrupted(cluster: RealCluster) -> None:
    words = [sys.executable, str(CLIENT), "status", "--cluster", str(cluster.file), "--watch", "0.1"]
    with subprocess.Popen([*words, "-o", "json"], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            for _ in range(3):
                assert [each["node"] for each in json.loads(child.stdout.readline())] == [1, 2, 3]
            child.send_signal(signal.SIGINT)
            assert child.wait(DEADLINE_S) == 130
        finally:
            child.kill()


def test_in_a_terminal_the_table_is_drawn_in_place(cluster: RealCluster) -> None:
    words = [sys.executable, str(CLIENT), "status", "--cluster", str(cluster.file), "--watch", "0.1"]
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "250", "LINES": "40"}
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as child:
        os.close(theirs)
        try:
            seen = b""
            while seen.count(b"serving") < 9:  # three nodes, three times
                seen += os.read(ours, 65536)  # OSError if it ends before
            assert b"\x1b[1A" in seen, "the cursor goes up to draw again"
            child.send_signal(signal.SIGINT)
            with contextlib.suppress(OSError):  # the end of what it had to say
                while os.read(ours, 65536):
                    pass
            assert child.wait(DEADLINE_S) == 130
        finally:
            child.kill()
            os.close(ours)
