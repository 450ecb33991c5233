"""Nodes that die at every place where dying could matter, under load: nothing is lost.

A node of crashing_server.py is told at which named place to die, and at which pass.
When it is dead it is started again, told the next place: so each start recovers from the death before. All
the while clients write and read; then the stores must be equal and the history, with the stores' content as
its last reads, linearizable: a lost write, one applied twice and a stale read are all found by that.
"""

import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from paxoskv.config import WAYS
from tests.harness.linearizability import check
from tests.harness.processes import (
    DEADLINE_S,
    LOG_LINES,
    POLL_S,
    PROJECT,
    Clients,
    RealCluster,
    eventually,
    final_reads,
)

pytestmark = pytest.mark.slow

CRASHING = PROJECT / "tests" / "harness" / "crashing_server.py"
CHECKPOINT_MB = 0.1  # of journal: less than a second of load

# Where to die, and at which pass. The first passes are those of the start: recovery writes the last
# frame again, for example.
FRAMES = [
    "before-pwrite-segment:1",
    "after-fdatasync-segment:1",
    "before-pwrite-segment:40",
    "during-pwrite-segment:40",
    "before-cut:1",
    "after-cut:1",
    "during-pwrite-segment:50",
    "after-pwrite-segment:40",
    "before-fdatasync-segment:40",
    "after-fdatasync-segment:40",
    "before-send:200",
    "after-send:200",
    "before-flush:200",
    "after-flush:200",
    "before-answer:30",
    "after-answer:30",
]
SEGMENTS = [
    "before-create-new-segment:2",
    "after-create-new-segment:2",
    "before-pwrite-new-segment:2",
    "during-pwrite-new-segment:2",
    "after-pwrite-new-segment:2",
    "before-fdatasync-new-segment:2",
    "after-fdatasync-new-segment:2",
    "before-rename-new-segment:2",
    "after-rename-new-segment:2",
    "before-sync-journal:2",
    "after-sync-journal:2",
    "before-open-segment:12",
    "after-open-segment:12",
    "before-remove-segment:1",
    "after-remove-segment:1",
]
CHECKPOINTS = [
    "before-save-checkpoint:1",
    "after-save-checkpoint:1",
    "before-fdatasync-checkpoint:1",
    "after-fdatasync-checkpoint:1",
    "before-rename-checkpoint:1",
    "after-rename-checkpoint:1",
    "before-create-manifest:1",
    "after-create-manifest:1",
    "during-pwrite-manifest:1",
    "after-pwrite-manifest:1",
    "after-fdatasync-manifest:1",
    "before-rename-manifest:1",
    "after-rename-manifest:1",
    "before-sync-directory:1",
    "after-sync-directory:2",
    "before-remove-checkpoint:1",
    "after-remove-checkpoint:1",
    "before-read-checkpoint:1",
    "before-install:1",
    "after-install:1",
]
# The node's disk is lost before each of these: it fetches a checkpoint of another node.
TRANSFER = [
    "before-create-incoming:1",
    "after-create-incoming:1",
    "before-pwrite-incoming:1",
    "after-pwrite-incoming:1",
    "before-fdatasync-incoming:1",
    "after-fdatasync-incoming:1",
    "after-create-sum:1",
    "during-pwrite-sum:1",
    "before-rename-sum:1",
    "after-rename-sum:1",
    "before-rename-incoming:1",
    "after-rename-incoming:1",
    "after-sync-directory:6",  # (four are the data directory's)
    "before-install:1",
    "after-install:1",
    "before-rename-identity:1",
    "after-rename-identity:1",
]

# Where all nodes die at about the same time: what was acknowledged must be on disks, not in memory only.
EVERYWHERE = [
    "before-pwrite-segment:60",
    "during-pwrite-segment:60",
    "before-fdatasync-segment:60",
    "after-fdatasync-segment:60",
    "before-flush:200",
    "after-flush:200",
    "after-send:300",
    "after-answer:10",
    "before-rename-new-segment:1",
    "after-rename-manifest:1",
]


def test_the_places_are_many_and_none_is_named_twice() -> None:
    groups = (FRAMES, SEGMENTS, CHECKPOINTS, TRANSFER, EVERYWHERE)
    assert len({place.partition(":")[0] for group in groups for place in group}) >= 50
    for places in (FRAMES + SEGMENTS + CHECKPOINTS, TRANSFER, EVERYWHERE):
        assert len(places) == len(set(places))


def start(cluster: RealCluster, node: int, place: str, *options: str) -> None:
    """Start a node that will die there."""
    process, notes = cluster.nodes[node], cluster.directory / f"notes-{node}"
    notes.unlink(missing_ok=True)
    process.environment = {"CRASH_AT": place, "CRASH_NOTES": str(notes)}
    process.start(*options)


def expect_death(cluster: RealCluster, node: int, place: str) -> None:
    """The node has ended: it must have been there."""
    process, notes = cluster.nodes[node], cluster.directory / f"notes-{node}"
    code = process.wait()
    assert code == -signal.SIGKILL, f"{place}: exit code {code}:\n{process.log(LOG_LINES)}"
    assert notes.read_text() == place.partition(":")[0] + "\n"


def dying(cluster: RealCluster, node: int, place: str, *options: str) -> Iterator[bool]:
    """Start the node; then True for as long as it has not died there."""
    start(cluster, node, place, *options)
    deadline = time.monotonic() + DEADLINE_S
    while cluster.nodes[node].running:
        assert time.monotonic() < deadline, f"node {node} did not come to {place} within {DEADLINE_S:g} s"
        yield True
    expect_death(cluster, node, place)


def goes_on(cluster: RealCluster, node: int, *options: str) -> None:
    """Start the node for good, and wait until it takes commands."""
    cluster.nodes[node].environment = {}
    cluster.nodes[node].start(*options)
    cluster.wait_until_ready([node])


def judge(cluster: RealCluster, clients: Clients) -> None:
    """No operation failed, all nodes hold the same, and that is what the clients were told."""
    assert not clients.failures
    store = cluster.wait_until_stores_are_equal()
    violation = check([*clients.operations, *final_reads(store, clients.operations)])
    assert violation is None, str(violation)
    print(f"{len(clients.operations):,} operations: none failed, linearizable")


@pytest.mark.parametrize(
    ("places", "way"),
    [
        (FRAMES, "own-logs"),
        (SEGMENTS, "own-logs"),
        (CHECKPOINTS, "own-logs"),
        (FRAMES, "classic"),
        (FRAMES, "leader"),
    ],
    ids=["frames", "segments", "checkpoints", "frames-classic", "frames-leader"],
)
def test_a_node_that_dies_at_any_place_loses_nothing(tmp_path: Path, places: Sequence[str], way: str) -> None:
    """Two nodes at the same time, each with one half of the places, in their order."""
    with RealCluster(tmp_path, program=CRASHING, checkpoint_mb=CHECKPOINT_MB, proposing=way) as cluster:

        def one_after_the_other(node: int, places: Sequence[str]) -> Iterator[bool]:
            cluster.kill(node)
            for place in places:
                yield from dying(cluster, node, place)
            goes_on(cluster, node)

        half = len(places) // 2
        with Clients(cluster) as clients:
            clients.progress(100)
            lanes = [one_after_the_other(2, places[:half]), one_after_the_other(4, places[half:])]
            within_s = len(places) * DEADLINE_S
            eventually(lambda: not sum(next(lane, False) for lane in lanes), "all died", within_s)
            clients.progress(100)
        judge(cluster, clients)


def test_a_node_that_dies_while_it_takes_anothers_checkpoint_loses_nothing(tmp_path: Path) -> None:
    with RealCluster(tmp_path, program=CRASHING, checkpoint_mb=CHECKPOINT_MB) as cluster:
        with Clients(cluster) as clients:
            manifests = [cluster.data / f"node-{node}" / "manifest.json" for node in cluster.ids]
            eventually(lambda: all(path.exists() for path in manifests), "all have a checkpoint")
            disk = cluster.data / "node-3"
            for place in TRANSFER:
                if cluster.nodes[3].running:
                    cluster.kill(3)
                shutil.rmtree(disk)
                for _ in dying(cluster, 3, place, "--rejoin"):
                    time.sleep(POLL_S)
                if (disk / "identity.json").exists():
                    goes_on(cluster, 3)
                else:  # what is half made is no data directory
                    shutil.rmtree(disk)
                    goes_on(cluster, 3, "--rejoin")
            clients.progress(100)
        judge(cluster, clients)


@pytest.mark.parametrize("way", WAYS)
def test_when_all_nodes_die_at_one_place_nothing_acknowledged_is_lost(tmp_path: Path, way: str) -> None:
    """When three of the five are dead, the others may not come there any more: they are killed."""
    with RealCluster(tmp_path, program=CRASHING, checkpoint_mb=CHECKPOINT_MB, proposing=way) as cluster:
        with Clients(cluster) as clients:
            clients.progress(100)
            cluster.kill(*cluster.ids)
            for place in EVERYWHERE:
                for node in cluster.ids:
                    start(cluster, node, place)

                def dead() -> list[int]:
                    return [node for node in cluster.ids if not cluster.nodes[node].running]

                eventually(lambda: len(dead()) >= 3, f"three nodes died: {place}")
                for node in cluster.ids:
                    if cluster.nodes[node].running:
                        cluster.nodes[node].end()
                    else:
                        expect_death(cluster, node, place)
            for node in cluster.ids:
                cluster.nodes[node].environment = {}
            cluster.restart(*cluster.ids)
            clients.progress(100)
        judge(cluster, clients)
