"""Frames that are none: thousands of them at a real node, which goes on serving everybody else.

Those of methods between nodes go after a hello in the name of a node of the cluster that does not run, or
without any. The frames come from a seeded source.
"""

import asyncio
import contextlib
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from paxoskv.client.operations import ClientError
from paxoskv.client.sync import Client
from paxoskv.wire.methods import METHODS
from paxoskv.wire.structs import Identity
from tests.harness.fuzz import (
    CLIENT_CALLS,
    MUTATIONS,
    NODE_CALLS,
    cut,
    flipped,
    forged,
    fuzz,
    garbage,
    groups,
    half,
    malformed,
)
from tests.harness.processes import RealCluster, eventually

FRAMES = 100_000
SEED = 20_261
GROWTH = 32 << 20  # bytes of memory, at most, beyond what the good client stores meanwhile
ALONE = 600  # rounds of the good client alone, to see what one stores
OUTPUT = 8 << 20  # bytes that a node keeps for a client that does not read, at most
GREETING_S = 10.0  # for the first frame of a connection


def test_each_mutation_makes_malformed_frames_of_every_call() -> None:
    source = random.Random(SEED)
    for name, arguments in {**CLIENT_CALLS, **NODE_CALLS}.items():
        frame = METHODS[name].call(7, *arguments)
        assert not malformed(frame)
        for mutation in MUTATIONS if arguments else (flipped, cut, half, forged, garbage):
            made = [mutation(frame, source) for _ in range(300)]
            assert any(malformed(mutant) for mutant in made), (name, mutation)


# ------------------------------------------------------------------------------------------- the real thing


class Bereaved(RealCluster):
    """`life` of node 3, which has ended: in another life's name the frames would make a stale copy of it."""

    life = 0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Bereaved]:
    """Three nodes, the third of which has ended: the malformed frames come in its name."""
    with Bereaved(tmp_path, nodes=3, insecure=True) as running:
        status = running.status(3)
        assert status is not None
        running.life = status.life
        running.kill(3)
        yield running


class Good:
    """A client that works on its own keys all the while, and fails at the first wrong answer."""

    def __init__(self, cluster: RealCluster, name: str = "good") -> None:
        self.cluster = cluster
        self.name = name
        self.done = 0
        self.error: Exception | None = None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Good":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _run(self) -> None:
        with self.cluster.client() as client:
            try:
                while not self.over.is_set():
                    client.put(self.name, str(self.done))
                    assert client.get(self.name, node=1) == str(self.done)
                    assert client.increment(f"{self.name}-count") == self.done + 1
                    self.done += 1
            except (ClientError, AssertionError) as error:
                self.error = error


def memory(cluster: RealCluster) -> int:
    status = cluster.status(1)
    assert status is not None
    return int(status.memory_bytes)


def healthy(cluster: RealCluster) -> None:
    for node in (1, 2):
        assert cluster.nodes[node].running, cluster.nodes[node].log(25)
        assert "level=error event=bug" not in cluster.nodes[node].log()
        assert " event=bug" not in cluster.nodes[node].log()
    with cluster.client() as client:
        client.put("after", "all")
        assert client.get("after", node=1) == client.get("after", node=2) == "all"


async def fuzz_all(cluster: Bereaved, frames: int, seed: int) -> int:
    """Send node 1 so many frames of all kinds."""
    settings = cluster.settings
    hello = METHODS[b"hello"].call(1, Identity(settings.name, settings.digest, 3, 1, cluster.life))
    large = {**CLIENT_CALLS, b"put": ("malformed/key", "x" * 100_000, None)}
    member = settings.member(1)
    address = (member.host, member.port)
    sent = await fuzz(address, groups(CLIENT_CALLS, frames // 2, seed))
    sent += await fuzz(address, groups(large, frames // 10, seed + 1))
    sent += await fuzz(address, groups(NODE_CALLS, frames // 10, seed + 2, only=True, most=1))
    return sent + await fuzz(address, groups(NODE_CALLS, frames * 3 // 10, seed + 3, only=True), hello)


@pytest.mark.slow
def test_100000_malformed_frames_disturb_nobody_and_leave_nothing_behind(cluster: Bereaved) -> None:
    asyncio.run(fuzz_all(cluster, 400, SEED))
    member = cluster.settings.member(1)
    idle = [socket.create_connection((member.host, member.port)) for _ in range(20)]
    for connection in idle[:10]:
        connection.sendall(METHODS[b"status"].call(1, False)[:9])  # half a frame, and no more
    before = memory(cluster)
    with Good(cluster, "alone") as alone:
        eventually(lambda: alone.done >= ALONE or alone.error, "the good client works alone")
    assert alone.error is None
    stored = (memory(cluster) - before) / alone.done
    before = memory(cluster)
    with Good(cluster) as good:
        assert asyncio.run(fuzz_all(cluster, FRAMES, SEED + 10)) == FRAMES
        done = good.done
        eventually(lambda: good.done > done + 5 or good.error, "the good client goes on")
    assert good.error is None
    for connection in idle:
        connection.settimeout(60)
        with contextlib.closing(connection), contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b"", "idle strangers and half-sent frames are cut off"
    grown = memory(cluster) - before - int(stored * good.done)
    print(f"{FRAMES} malformed frames, {good.done} good rounds meanwhile, of {stored:.0f} bytes each")
    print(f"memory grew by {grown >> 10} KiB beyond these")
    assert grown < GROWTH
    healthy(cluster)
    cluster.restart(3)
    cluster.wait_until_stores_are_equal()
    log = cluster.nodes[1].log()
    assert log.count("event=hung-up") < FRAMES / 5, "the log is not flooded either"


@pytest.mark.slow
def test_a_client_that_does_not_read_gets_few_answers_and_is_cut_off_in_the_end(cluster: RealCluster) -> None:
    with cluster.client() as client:
        client.put("large", "x" * 524_288)
        assert client.get("large", node=1)
        before = memory(cluster)
        member = cluster.settings.member(1)
        with socket.socket() as greedy:
            greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            greedy.connect((member.host, member.port))
            greedy.settimeout(60)
            calls = b"".join(METHODS[b"get"].call(number, "large", 2) for number in range(400))  # 200 MiB
            with contextlib.suppress(ConnectionError):
                greedy.sendall(calls)
            client.put("others", "are served")
            assert client.get("others", node=1) == "are served"
            peak = memory(cluster) - before
            eventually(lambda: "was not read, in time" in cluster.nodes[1].log(), "it is cut off")
            peak = max(peak, memory(cluster) - before)
        print(f"memory grew by {peak >> 10} KiB")
        assert peak < OUTPUT
    healthy(cluster)


def test_a_half_sent_frame_holds_up_nobody(cluster: RealCluster) -> None:
    member = cluster.settings.member(1)
    frame = METHODS[b"put"].call(1, "half", "sent" * 100, None)
    with socket.create_connection((member.host, member.port)) as slow, Client(cluster.settings) as client:
        slow.sendall(frame[:50])
        client.put("other", "value")
        assert client.get("other", node=1) == "value"
        slow.sendall(frame[50:])
        assert len(slow.recv(4)) > 0, "and is answered when the rest comes"
        assert client.get("half", node=1) == "sent" * 100
