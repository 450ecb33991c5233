"""Watches of a real cluster: under kills, from node to node, and over what nodes have forgotten."""

from pathlib import Path

import pytest

from paxoskv.client.operations import CompactedError
from paxoskv.client.sync import Client
from paxoskv.wire.structs import Place
from tests.harness.linearizability import check
from tests.harness.processes import Load, RealCluster, contended, final_reads
from tests.harness.watching import Follower, judge_changes, replayed

pytestmark = pytest.mark.slow


def test_watches_under_kills_tell_the_one_order_without_a_gap_or_a_repeat(tmp_path: Path) -> None:
    csv = contended(tmp_path / "load.csv", 4000, 40, seed=11)
    with RealCluster(tmp_path) as cluster, cluster.client() as client:
        beginning = client.watch().place
        assert beginning is not None
        with (
            Follower(cluster, "", beginning, "z") as everything,
            Follower(cluster, "key-1", beginning, "key-1z") as some,
            Follower(cluster, "key-7", beginning, "key-7z") as few,
            Load(["--cluster", cluster.file], csv, "--in-flight", "4") as load,
        ):
            kills = 0
            while load.running:
                dead = [1 + kills % 5, 1 + (kills + 2) % 5]
                cluster.kill(*dead)
                kills += 1
                cluster.restart(*dead)
            load.expect_success()
            for last in ("key-1z", "key-7z", "z"):
                client.put(last, last)
        told = everything.result()
        assert some.result() == [change for change in told if change.key.startswith("key-1")]
        assert few.result() == [change for change in told if change.key.startswith("key-7")]
        assert kills > 1 and min(follower.clients for follower in (everything, some)) > 5
        store = cluster.wait_until_stores_are_equal()
        assert replayed(told) == store
        history = load.operations()
        ends = [change for change in told if change.key in ("key-1z", "key-7z", "z")]
        judge_changes([change for change in told if change not in ends], history)
        for last in ("key-1z", "key-7z", "z"):
            del store[last]
        violation = check([*history, *final_reads(store, history)])
        assert violation is None, str(violation)
        print(f"{len(told)} changes, {len(history)} operations, {2 * kills} kills: one order")


def test_a_place_that_nobody_has_come_to_is_refused_and_one_that_a_node_lags_behind_is_not(
    tmp_path: Path,
) -> None:
    with RealCluster(tmp_path, nodes=3) as cluster, cluster.client() as client:
        client.put("key", "1")
        with pytest.raises(CompactedError, match="nobody has come to"):
            client.run(client.calls.watch("key", Place(1 << 60, 1)))
        cluster.pause(3)
        for number in range(2, 20):
            client.put("key", str(number))
        place = client.watch("key").place
        client.put("key", "last")
        cluster.resume(3)
        member = cluster.settings.member(3)
        with Client(f"{member.host}:{member.port}") as late:
            assert next(late.watch("key", place)).value == "last"


def test_what_all_nodes_have_forgotten_is_said_with_the_oldest_place_to_go_on_from(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=3) as cluster, cluster.client() as client:
        beginning = client.watch().place
        client.put("key", "1")
        place = client.watch().place
        client.put("key", "2")
        for node in cluster.ids[1:]:
            client.checkpoint(node)
        cluster.kill(*cluster.ids[1:])
        cluster.restart(*cluster.ids[1:])
        assert next(client.watch("key", place)).value == "2", "one node has it still"
        client.checkpoint(cluster.ids[0])
        cluster.kill(cluster.ids[0])
        cluster.restart(cluster.ids[0])
        with pytest.raises(CompactedError, match="no longer has the changes") as error:
            next(client.watch("key", beginning))
        watch = client.watch("key", error.value.oldest)
        client.put("key", "3")
        assert next(watch).value == "3"
        assert isinstance(watch.place, Place)
