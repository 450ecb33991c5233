"""Disks that forget: a flipped bit in the last frame, an old copy put back, torn tails; on real processes."""

import shutil
from pathlib import Path

import pytest

from paxoskv import ClientError
from paxoskv.node.eventlog import EXIT_BUG, EXIT_STALE, EXIT_USAGE
from paxoskv.storage.mark import SYNCED, mark_bytes, read_mark
from paxoskv.storage.segments import frame, read_records, read_segment_header, scan
from paxoskv.wire.codec import encode
from paxoskv.wire.structs import Frame, Record
from tests.harness.processes import RealCluster, eventually

pytestmark = pytest.mark.slow


def last_frame(directory: Path) -> tuple[Path, int, int, int]:
    """The segment with a journal's last frame, where that begins and ends, and its number.

    There must be no checkpoint.
    """
    found, number = None, 0
    for path in sorted((directory / "journal").glob("*.segment")):
        data = path.read_bytes()
        segment = read_segment_header(data)
        assert segment is not None
        frames = scan(data, segment, number + 1).frames
        number += len(frames)
        if frames:
            found = path, *frames[-1]
    assert found is not None
    return *found, number


def notes(cluster: RealCluster, node: int) -> bool:
    """Whether the last frame notes all that the node has applied; then an idle node writes nothing more."""
    path, start, end, _ = last_frame(cluster.data / f"node-{node}")
    status = cluster.status(node)
    noted = [record.applied for record in read_records(path.read_bytes(), start, end) if record.applied]
    return bool(noted) and status is not None and tuple(noted[-1]) >= tuple(status.applied)


def copy_idle(cluster: RealCluster, node: int, copy: Path) -> None:
    """Copy the data of a running node while it writes nothing: else the copy may be damaged in itself."""
    eventually(lambda: notes(cluster, node), "it has noted what it applied")
    shutil.copytree(cluster.data / f"node-{node}", copy)


def flip_last_frame(directory: Path) -> Path:
    path, start, end, _ = last_frame(directory)
    data = bytearray(path.read_bytes())
    data[(start + end) // 2] ^= 4
    path.write_bytes(data)
    return path


def tear(directory: Path) -> None:
    """Leave the disk as a power cut does while a frame is written.

    Half of the frame is there, and the mark, which was in memory, is some frames old.
    """
    path, _, end, number = last_frame(directory)
    data = bytearray(path.read_bytes())
    segment = read_segment_header(bytes(data))
    mark = read_mark((directory / SYNCED).read_bytes())
    assert segment is not None and mark is not None and mark.number == number
    torn = frame(encode(Frame([Record(reservation=1 << 40)] * 20)), number + 1, segment)
    data[end : end + len(torn) // 2] = torn[: len(torn) // 2]
    path.write_bytes(data)
    (directory / SYNCED).write_bytes(mark_bytes(number - 3, mark.segment, mark.check))


def test_a_flipped_bit_in_the_last_frame_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=5, self_repair=True) as cluster:
        with cluster.client() as client:
            client.put("before", "1")
            cluster.kill(4, 5)
            client.put("k", "acknowledged")
        cluster.kill(1, 2, 3)
        path = flip_last_frame(cluster.data / "node-3")
        for node in (3, 4, 5):
            cluster.nodes[node].start()
        eventually(lambda: "damaged" in cluster.nodes[3].log(), "node 3 notices")
        assert str(path) in cluster.nodes[3].log() and "says that frame" in cluster.nodes[3].log()
        with cluster.client(timeout=2) as client, pytest.raises(ClientError):
            client.get("k")  # 3 waits for those who know what it had: there is no majority without them
        for node in (1, 2):
            cluster.nodes[node].start()
        cluster.wait_until_ready()
        assert cluster.wait_until_stores_are_equal() == {"before": "1", "k": "acknowledged"}


def test_a_copy_of_a_running_nodes_data_that_is_put_back_is_refused(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=5) as cluster:
        with cluster.client() as client:
            for number in range(20):
                client.put(f"key {number}", "before")
            cluster.wait_until_stores_are_equal()
            copy_idle(cluster, 3, tmp_path / "copy")
            for number in range(20):
                client.put(f"key {number}", "after")
        cluster.wait_until_stores_are_equal()
        cluster.kill(3)
        shutil.rmtree(cluster.data / "node-3")
        shutil.copytree(tmp_path / "copy", cluster.data / "node-3")
        cluster.nodes[3].start()
        assert cluster.nodes[3].wait() == EXIT_STALE
        log = cluster.nodes[3].log(5)
        assert "is a stale copy" in log and "--rejoin" in log and "its data has" in log
        cluster.kill(1, 2, 4, 5)  # whoever knew: the verdict must outlast them
        cluster.nodes[3].start()
        assert cluster.nodes[3].wait() == EXIT_USAGE
        assert "stale: offset 0: peers have refused this data" in cluster.nodes[3].log(1)
        cluster.restart(1, 2, 4, 5)
        shutil.rmtree(cluster.data / "node-3")
        cluster.nodes[3].start("--rejoin")
        cluster.wait_until_ready([3])
        assert cluster.wait_until_stores_are_equal() == {f"key {number}": "after" for number in range(20)}


def test_where_nobody_who_knows_is_alive_those_who_return_name_the_cause(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=5) as cluster:
        with cluster.client() as client:
            client.put("before", "1")
            cluster.wait_until_stores_are_equal()
            copy_idle(cluster, 3, tmp_path / "copy")
            cluster.kill(4, 5)
            client.put("k", "acknowledged")
            eventually(lambda: cluster.store(1) == cluster.store(2) == cluster.store(3), "all have it")
        for node in (1, 2):
            eventually(lambda node=node: notes(cluster, node), "it has noted what it applied")
        cluster.kill(1, 2, 3)
        shutil.rmtree(cluster.data / "node-3")
        shutil.copytree(tmp_path / "copy", cluster.data / "node-3")
        for node in (3, 4, 5):
            cluster.nodes[node].start()
        cluster.wait_until_ready([3, 4, 5])
        with cluster.client(first=3) as client:
            client.put("other", "2")
            assert client.get("k") is None, "nobody who is alive can know better"
        for node in (1, 2):
            cluster.nodes[node].start()

        def one_history_is_left() -> bool:
            running = [node for node in cluster.ids if cluster.nodes[node].running]
            stores = [cluster.store(node) for node in running]
            return len(running) < 5 and all(store == stores[0] for store in stores)

        eventually(one_history_is_left, "those end who contradict the others")
        for node in cluster.ids:
            if not cluster.nodes[node].running:
                assert cluster.nodes[node].wait() == EXIT_BUG
                log = cluster.nodes[node].log(5)
                assert "diverged" in log and "old copy of its data" in log and "docs/operations.md" in log
        for node in cluster.ids:
            assert "AssertionError" not in cluster.nodes[node].log()
            assert "Traceback" not in cluster.nodes[node].log()


def test_all_lose_power_with_torn_tails_at_three_and_come_back_by_themselves(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=5) as cluster:
        with cluster.client() as client:
            for number in range(50):
                client.put(f"key {number}", str(number))
        cluster.kill(*cluster.ids)
        for node in (1, 3, 5):
            tear(cluster.data / f"node-{node}")
        for node in cluster.ids:
            cluster.nodes[node].start()
        cluster.wait_until_ready()
        for node in cluster.ids:
            log = cluster.nodes[node].log()
            assert ("torn" in log) == (node in (1, 3, 5)) and "damaged" not in log
        assert cluster.wait_until_stores_are_equal() == {f"key {n}": str(n) for n in range(50)}
