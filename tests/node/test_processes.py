"""What the cluster must show, with real processes: kills, pauses, restarts, failing acceptors, under load.

Each test judges the recorded history of what the clients saw, and then reads all keys once more: so a lost
write, a stale read and a write applied twice are all found by one check.
"""

import random
import socket
import sys
import time
from pathlib import Path

import pytest

from paxoskv.client.operations import Attempt, ClientError, NotDoneError, UnknownOutcome
from paxoskv.client.sync import Client
from paxoskv.storage.journal import Journal
from paxoskv.wire.codec import NotDone, Unknown
from paxoskv.wire.methods import METHODS
from tests.harness.linearizability import Operation, check
from tests.harness.processes import (
    SCRIPTS,
    Load,
    RealCluster,
    contended,
    eventually,
    final_reads,
    finish,
    passes,
)

pytestmark = pytest.mark.slow


def load_of(cluster: RealCluster, csv: Path, *options: str) -> Load:
    return Load(["--cluster", cluster.file], csv, *options)


def progresses(cluster: RealCluster, load: Load, commands: int) -> bool:
    """Wait until so many more commands have been applied; whether the load still runs then."""
    before = cluster.applied()
    eventually(
        lambda: not load.running or cluster.applied() >= before + commands,
        f"{commands} more commands applied",
    )
    return load.running


def wait_for_progress(cluster: RealCluster, load: Load, commands: int) -> None:
    """The same, where the load must still be running."""
    assert progresses(cluster, load, commands), f"the load ended too early: {load.wait()}\n{load.output}"


def judge(cluster: RealCluster, load: Load) -> list[Operation]:
    """The stores are equal, and everything that the clients saw and the stores now hold fits together."""
    store = cluster.wait_until_stores_are_equal()
    operations = load.operations()
    violation = check([*operations, *final_reads(store, operations)])
    assert violation is None, str(violation)
    return operations


def assert_in_the_middle(moment_ns: int, operations: list[Operation]) -> None:
    """Operations ended before this moment, and others began after it."""
    assert any(o.return_ is not None and o.return_ < moment_ns for o in operations)
    assert any(o.call > moment_ns for o in operations)


def assert_acknowledged(operations: list[Operation], after_ns: int, before_ns: int) -> None:
    """Some write that began after the one moment was acknowledged before the other."""
    assert any(
        o.kind != "get" and o.outcome in ("ok", "not_found") and after_ns < o.call
        and o.return_ is not None and o.return_ < before_ns
        for o in operations
    )  # fmt: skip


def test_after_a_run_the_five_stores_are_equal_byte_for_byte(tmp_path: Path) -> None:
    with RealCluster(tmp_path) as cluster:
        with load_of(cluster, contended(tmp_path / "load.csv", 600, 40, seed=1), "--in-flight", "8") as load:
            load.expect_success()
        judge(cluster, load)
        done = finish([sys.executable, SCRIPTS / "compare_stores.py", "--cluster", cluster.file])
        assert done.returncode == 0 and "all stores are equal" in done.stdout


@pytest.mark.parametrize("dead", [(1, 2), (3, 5)])
def test_two_nodes_killed_in_the_middle_of_a_run_fail_no_operation_and_catch_up(
    tmp_path: Path, dead: tuple[int, int]
) -> None:
    csv = tmp_path / "workload.csv"
    finish([sys.executable, SCRIPTS / "make_workload.py", "--rows", "1500", "-o", csv]).check_returncode()
    with RealCluster(tmp_path) as cluster:
        with load_of(cluster, csv) as load:
            wait_for_progress(cluster, load, 250)
            cluster.kill(*dead)
            killed = time.monotonic_ns()
            load.expect_success()
        cluster.restart(*dead)
        operations = judge(cluster, load)
        assert len(operations) == 1500
        assert_in_the_middle(killed, operations)


def test_nodes_that_come_back_while_others_go_take_over_from_them(tmp_path: Path) -> None:
    with RealCluster(tmp_path) as cluster:
        with load_of(cluster, contended(tmp_path / "load.csv", 2500, 30, seed=2)) as load:
            wait_for_progress(cluster, load, 150)
            for dead in ((1, 2), (3, 4), (5, 1)):
                cluster.kill(*dead)
                progresses(cluster, load, 50)
                cluster.restart(*dead)
                progresses(cluster, load, 50)
            load.expect_success()
        judge(cluster, load)


def test_a_history_under_random_kills_is_linearizable(tmp_path: Path) -> None:
    source = random.Random(3)
    with RealCluster(tmp_path) as cluster:
        csv = contended(tmp_path / "load.csv", 4000, 12, seed=3)
        with load_of(cluster, csv, "--in-flight", "4", "--processes", "3") as load:
            wait_for_progress(cluster, load, 100)
            for _ in range(5):
                dead = source.sample(cluster.ids, 2)
                cluster.kill(dead[0])
                cluster.kill(dead[1])
                cluster.restart(dead[1])
                cluster.restart(dead[0])
                if not progresses(cluster, load, source.randrange(50, 200)):
                    break
            load.expect_success()
        judge(cluster, load)


def call(client: Client, name: str) -> str:
    """One operation; what came of it."""
    try:
        if name == "put":
            client.put("key", "no quorum")
        else:
            client.get("key")
    except NotDoneError:
        return "not done"
    except UnknownOutcome:
        return "unknown"
    return "acknowledged"


def test_with_three_of_five_dead_nothing_is_acknowledged_until_one_returns(tmp_path: Path) -> None:
    with RealCluster(tmp_path, request_timeout_s=1) as cluster:
        with cluster.client() as client:
            client.put("key", "before")
        assert cluster.wait_until_stores_are_equal() == {"key": "before"}
        cluster.kill(2, 3, 5)

        timeout = 3.0
        for first in (0, 3):
            for name in ("put", "get"):
                with cluster.client(timeout, first) as client:
                    began = time.monotonic()
                    assert call(client, name) in ("not done", "unknown")
                    # (no more than the machine's slowness comes on top)
                    assert time.monotonic() - began < timeout + 30
        for node in (1, 4):
            status = cluster.status(node)
            assert status is not None and status.node == node, "the node itself still answers"
            assert (status.ready, status.state) == (False, "no-majority")
            assert "event=majority-lost" in cluster.nodes[node].log()
            with (
                cluster.client(timeout) as client,
                pytest.raises(ClientError, match="no majority: this node hears of 2 of 5 nodes"),
            ):
                client.put("key", "no quorum")
            assert cluster.store(node) == {"key": "before"}, "nothing without a quorum was applied"

        cluster.restart(3)
        with cluster.client() as client:
            assert client.get("key") in ("before", "no quorum")
            client.put("key", "after")
            assert client.get("key") == "after"
        assert "event=majority-back" in cluster.nodes[1].log()
        eventually(
            lambda: any(f"event=revoked log={dead}" in cluster.nodes[1].log() + cluster.nodes[4].log()
                        + cluster.nodes[3].log() for dead in (2, 5)), "a dead node's log was taken over",
        )  # fmt: skip
        cluster.restart(2, 5)
        assert cluster.wait_until_stores_are_equal() == {"key": "after"}


def test_a_plain_call_without_a_quorum_is_answered_with_an_error_that_says_whether_it_may_happen(
    tmp_path: Path,
) -> None:
    with RealCluster(tmp_path, nodes=3, request_timeout_s=1) as cluster:
        cluster.kill(1, 2)
        with cluster.client() as client:
            with pytest.raises((Unknown, NotDone)):
                client._attempt(Attempt(2, METHODS[b"put"], ("key", "value", None), 60.0))
            with pytest.raises(NotDone, match=r"quorum|majority|lead"):
                client._attempt(Attempt(2, METHODS[b"get"], ("key", None), 60.0))


def test_all_five_killed_at_once_under_load_lose_no_acknowledged_write(tmp_path: Path) -> None:
    with RealCluster(tmp_path) as cluster:
        csv = contended(tmp_path / "load.csv", 3000, 60, seed=4)
        with load_of(cluster, csv, "--in-flight", "8") as load:
            wait_for_progress(cluster, load, 300)
            cluster.kill(*cluster.ids)
            killed = time.monotonic_ns()
            cluster.restart(*cluster.ids)
            load.expect_success()
        assert_in_the_middle(killed, judge(cluster, load))


def test_all_five_killed_at_once_lose_nothing_that_clients_who_gave_up_had_been_told(tmp_path: Path) -> None:
    """As before, but the run ends while no node runs: some outcomes are unknown, all else must be there."""
    with RealCluster(tmp_path) as cluster:
        csv = contended(tmp_path / "load.csv", 4000, 2000, seed=5)
        with Load(["--cluster", cluster.file], csv, "--in-flight", "500", timeout=2) as load:
            wait_for_progress(cluster, load, 50)
            cluster.kill(*cluster.ids)
            assert load.wait() in (1, 3, 4), "operations failed, or their outcome is unknown"
        cluster.restart(*cluster.ids)
        operations = judge(cluster, load)
        assert any(o.kind == "put" and o.outcome == "ok" for o in operations)


def test_a_node_paused_for_two_seconds_under_load_fails_nothing_and_reads_nothing_stale(
    tmp_path: Path,
) -> None:
    with RealCluster(tmp_path) as cluster:
        csv = contended(tmp_path / "load.csv", 4000, 10, seed=6)
        with load_of(cluster, csv) as load:
            wait_for_progress(cluster, load, 200)
            cluster.pause(4)
            paused = time.monotonic_ns()
            passes(2)
            resumed = time.monotonic_ns()
            cluster.resume(4)
            # asked directly, at once, the node that slept must not answer from what it last knew
            with cluster.client() as client:
                client.put("fresh", "yes")
                assert client.get("fresh", node=4) == "yes"
                client.delete("fresh")
            eventually(lambda: "event=stood-still" in cluster.nodes[4].log(), "it is logged")
            assert "event=majority-lost" not in cluster.nodes[4].log(), "it has not listened, that is all"
            load.expect_success()
        operations = judge(cluster, load)
        assert_acknowledged(operations, after_ns=paused, before_ns=resumed)


def test_acceptors_that_fail_at_random_and_fall_silent_fail_no_operation(tmp_path: Path) -> None:
    failures = {"probability": 0.05, "silence_s": 1, "every_s": 4}
    with RealCluster(tmp_path, acceptor_failures=failures) as cluster:
        with load_of(cluster, contended(tmp_path / "load.csv", 3000, 40, seed=7)) as load:
            load.expect_success()
        judge(cluster, load)


def test_a_rolling_restart_under_load_fails_no_operation(tmp_path: Path) -> None:
    with RealCluster(tmp_path) as cluster:
        csv = contended(tmp_path / "load.csv", 4000, 30, seed=8)
        with load_of(cluster, csv, "--in-flight", "4") as load:
            wait_for_progress(cluster, load, 100)
            for node in cluster.ids:
                progresses(cluster, load, 50)
                assert cluster.nodes[node].stop() == 0, cluster.nodes[node].log(25)
                cluster.restart(node)
            load.expect_success()
        operations = judge(cluster, load)
        assert not [o for o in operations if o.outcome in ("failed", "unknown")]


def test_sigterm_answers_what_was_begun_exits_with_0_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with RealCluster(tmp_path) as cluster:
        csv = contended(tmp_path / "load.csv", 4000, 2000, seed=9)
        with Load(["--cluster", cluster.file], csv, "--in-flight", "500", timeout=2) as load:
            wait_for_progress(cluster, load, 50)
            assert cluster.stop() == dict.fromkeys(cluster.ids, 0)
            load.wait()
        for node in cluster.ids:
            log = cluster.nodes[node].log()
            assert "event=stopped" in log, log
            assert "Traceback" not in log and "level=error" not in log
            member = cluster.settings.member(node)
            with socket.create_server((member.host, member.port)):
                pass  # the port is free
            Journal(cluster.data / f"node-{node}").close()  # and so is the data directory

        for process in cluster.nodes.values():
            process.start()
        cluster.wait_until_ready()
        judge(cluster, load)


def test_sigterm_ends_a_node_that_waits_for_a_quorum_in_vain(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=3) as cluster:
        cluster.kill(1, 2)
        with cluster.client(timeout=1) as client, pytest.raises(ClientError):
            client.get("key", node=3)  # waits at the node for longer than here
        assert cluster.stop() == {3: 0}


@pytest.mark.parametrize("nodes", [1, 3])
def test_clusters_of_one_and_three_nodes_survive_kills_too(tmp_path: Path, nodes: int) -> None:
    with RealCluster(tmp_path, nodes=nodes) as cluster:
        csv = contended(tmp_path / "load.csv", 3000, 20, seed=nodes)
        with load_of(cluster, csv, "--in-flight", "4") as load:
            wait_for_progress(cluster, load, 100)
            cluster.kill(nodes)
            killed = time.monotonic_ns()
            cluster.restart(nodes)
            load.expect_success()
        assert_in_the_middle(killed, judge(cluster, load))
