"""Lost disks, old copies of disks and two processes with one id: on real processes and files."""

import shutil
import sys
from pathlib import Path

import pytest

from paxoskv.node.eventlog import EXIT_STALE, EXIT_USAGE
from paxoskv.wire.codec import Refused
from paxoskv.wire.structs import Identity
from tests.harness.processes import RealCluster, eventually, finish
from tests.harness.stranger import raw, secret_of

pytestmark = pytest.mark.slow


def fill(cluster: RealCluster, count: int, prefix: str = "key") -> None:
    with cluster.client() as client:
        for number in range(count):
            client.put(f"{prefix} {number}", f"value {number}")


def test_a_node_that_lost_its_disk_rejoins_with_everything(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=3) as cluster:
        fill(cluster, 50)
        cluster.kill(3)
        shutil.rmtree(cluster.data / "node-3")
        fill(cluster, 20, "meanwhile")
        node = cluster.nodes[3]
        node.start()
        assert node.wait() == EXIT_USAGE, "it does not start without a data directory"
        node.start("--rejoin")
        cluster.wait_until_ready([3])
        status = cluster.status(3)
        assert status is not None and status.incarnation == 3
        assert len(cluster.wait_until_stores_are_equal()) == 70
        cluster.kill(3)
        cluster.restart(3)
        fill(cluster, 5, "afterwards")
        assert len(cluster.wait_until_stores_are_equal()) == 75


def test_an_empty_directory_is_refused_where_the_cluster_remembers_the_node(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=3) as cluster:
        fill(cluster, 5)
        cluster.kill(3)
        cluster.restart(3)
        cluster.kill(3)
        shutil.rmtree(cluster.data / "node-3")
        cluster.nodes[3].start("--init")
        assert cluster.nodes[3].wait() == EXIT_STALE
        assert "stale copy" in cluster.nodes[3].log(5)
        assert "--rejoin" in cluster.nodes[3].log(5)


def test_yesterdays_copy_of_a_disk_is_refused(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=3) as cluster:
        fill(cluster, 5)
        cluster.kill(2)
        copy = tmp_path / "copy"
        shutil.copytree(cluster.data / "node-2", copy)
        cluster.restart(2)
        fill(cluster, 5, "later")
        cluster.kill(2)
        shutil.rmtree(cluster.data / "node-2")
        shutil.copytree(copy, cluster.data / "node-2")
        cluster.nodes[2].start()
        assert cluster.nodes[2].wait() == EXIT_STALE
        assert "stale copy" in cluster.nodes[2].log(5)
        others = [cluster.nodes[node] for node in (1, 3)]  # whichever it asked first, perhaps both
        eventually(lambda: any("stale copy" in other.log() for other in others), "who saw it says so, too")
        shutil.rmtree(cluster.data / "node-2")
        cluster.nodes[2].start("--rejoin")
        cluster.wait_until_ready([2])
        assert len(cluster.wait_until_stores_are_equal()) == 10


def hello(cluster: RealCluster, to: int, identity: Identity) -> Identity:
    """What a node answers to a process that says who it is. Refused, if it does not like it."""
    with raw(cluster, to) as connection:
        return connection.greet(identity, secret_of(cluster))


def test_of_two_processes_with_one_id_the_newer_is_refused(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=3) as cluster:
        fill(cluster, 5)
        status = cluster.status(3)
        assert status is not None
        settings = cluster.settings
        second = Identity(settings.name, settings.digest, 3, 1, status.life + (5 << 20))
        with pytest.raises(Refused, match="another process with this id is alive"):
            hello(cluster, 1, second)
        eventually(lambda: "another process" in cluster.nodes[1].log(), "it is logged")
        fill(cluster, 5, "more")
        cluster.kill(3)
        later = Identity(settings.name, settings.digest, 3, 1, status.life + (1 << 20))
        assert hello(cluster, 1, later).node == 1, "the older one is gone"


def test_a_node_alone_does_not_rejoin(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=1) as cluster:
        command = [
            "server.py",
            "--id",
            "1",
            "--cluster",
            cluster.file,
            "--data",
            tmp_path / "new",
            "--rejoin",
        ]
        done = finish([sys.executable, *command], cwd=Path(__file__).parents[2])
        assert done.returncode == EXIT_USAGE
        assert "a node alone cannot rejoin" in done.stderr
