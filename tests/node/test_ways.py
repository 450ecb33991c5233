"""The three ways to propose, with real processes: kill -9 under load, what is remembered, who is refused."""

import json
import random
from pathlib import Path

import pytest

from paxoskv.config import WAYS
from tests.harness.linearizability import check
from tests.harness.processes import (
    Clients,
    Load,
    RealCluster,
    contended,
    eventually,
    final_reads,
)

ROUNDS = 6
INCREMENTS = 8  # in each round, at least


@pytest.mark.parametrize("way", WAYS)
def test_a_run_does_all_and_the_stores_are_equal(tmp_path: Path, way: str) -> None:
    with RealCluster(tmp_path, proposing=way) as cluster:
        with Load(["--cluster", cluster.file], contended(tmp_path / "w.csv", 200, 10, 1)) as load:
            load.expect_success()
        history = load.operations()
        store = cluster.wait_until_stores_are_equal()
        assert check(history + final_reads(store, history)) is None
        status = cluster.status(cluster.ids[0])
        assert status is not None
        assert {log.log for log in status.logs} == ({1, 2, 3, 4, 5} if way == WAYS[0] else {1})


@pytest.mark.parametrize("way", WAYS[1:])
def test_no_acknowledged_increment_is_lost_or_done_twice_under_kills(tmp_path: Path, way: str) -> None:
    """The client repeats under its session what it had no answer for: the sum is what it has been told."""
    source = random.Random(way)
    with RealCluster(tmp_path, proposing=way) as cluster, cluster.client() as client:
        told = 0
        for _ in range(ROUNDS):
            victim = source.choice(cluster.ids)
            cluster.kill(victim)
            for _ in range(INCREMENTS):
                assert client.increment("n") == told + 1
                told += 1
            cluster.nodes[victim].start()
            assert client.increment("n") == told + 1
            told += 1
            cluster.wait_until_ready([victim])
        assert cluster.wait_until_stores_are_equal()["n"] == str(told)


@pytest.mark.parametrize("way", WAYS[1:])
def test_a_history_under_kills_is_linearizable(tmp_path: Path, way: str) -> None:
    source = random.Random(way)
    with RealCluster(tmp_path, proposing=way) as cluster:
        with Clients(cluster, 3) as clients:
            for _ in range(3):
                clients.progress(20)
                victim = source.choice(cluster.ids)
                cluster.kill(victim)
                clients.progress(20)
                cluster.restart(victim)
            clients.progress(20)
        store = cluster.wait_until_stores_are_equal()
        assert check(clients.operations + final_reads(store, clients.operations)) is None


def test_the_leader_that_is_killed_is_replaced_and_all_five_killed_lose_nothing(tmp_path: Path) -> None:
    with RealCluster(tmp_path, proposing="leader") as cluster, cluster.client() as client:
        client.put("a", "1")
        status = cluster.status(cluster.ids[0])
        assert status is not None
        leader = status.logs[0].leader
        cluster.kill(leader)
        client.put("b", "2")

        def another() -> bool:
            told = [cluster.status(node) for node in cluster.ids if node != leader]
            return all(status is not None and status.logs[0].leader != leader for status in told)

        eventually(another, "another node leads")
        cluster.restart(leader)
        cluster.kill(*cluster.ids)
        cluster.restart(*cluster.ids)
        assert client.get("a") == "1" and client.get("b") == "2"


def test_a_way_is_kept_and_nodes_of_different_ways_refuse_each_other(tmp_path: Path) -> None:
    with RealCluster(tmp_path, 3, proposing="classic") as cluster:
        with cluster.client() as client:
            client.put("a", "1")
        settings = json.loads(cluster.file.read_text())
        cluster.stop()
        cluster.file.write_text(json.dumps(settings | {"proposing": "leader"}))
        process = cluster.nodes[1]
        process.start()
        assert process.wait() != 0
        assert "identity.json: proposing: 'classic' is how this data was made" in process.log(3)

        other = tmp_path / "other.json"
        other.write_text(json.dumps(settings | {"proposing": "leader"}))
        cluster.file.write_text(json.dumps(settings))
        cluster.restart(2, 3)
        stranger = cluster._process(1)
        stranger.arguments = ["--id", "1", "--cluster", str(other), "--data", str(tmp_path / "else")]
        cluster.all.append(stranger)
        stranger.start("--init")
        refusal = "proposing: its cluster.json has 'leader', ours has 'classic'"
        eventually(lambda: refusal in cluster.nodes[2].log(), "it is refused by name")
