"""Frames that are none: thousands of them at a real node, which goes on serving everybody else.

Each malformed frame goes over a connection of its own: for methods between nodes after a hello in the name
of a node of the cluster that does not run. The frames come from a seeded source.
"""

import contextlib
import random
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paxoskv.client.operations import ClientError
from paxoskv.client.sync import Client
from paxoskv.wire.codec import Malformed
from paxoskv.wire.methods import CALL, METHODS, ONEWAY, header
from paxoskv.wire.structs import (
    Accept,
    Barrier,
    Command,
    Entry,
    Fact,
    Fetch,
    FetchCheckpoint,
    Forward,
    Identity,
    Learn,
    Origin,
    Position,
    Prepare,
    Rejoin,
    RequestId,
    Session,
    Verb,
)
from tests.harness.processes import RealCluster, eventually

FRAMES = 10_000
SEED = 20_261
GROWTH = 16 << 20  # bytes of memory, at most
OUTPUT = 8 << 20  # bytes that a node keeps for a client that does not read, at most
GREETING_S = 10.0  # for the first frame of a connection

REQUEST = RequestId(Session(5, 1, 0), 3, 2)
FACT = Fact(3, 0, 0, 0)
CLIENT_CALLS: dict[bytes, tuple[Any, ...]] = {
    b"put": ("malformed/key", "value", REQUEST),
    b"get": ("malformed/key", 0),
    b"delete": ("malformed/key", REQUEST),
    b"compare_and_set": ("malformed/key", "old", "new", REQUEST),
    b"increment": ("malformed/number", 5, REQUEST),
    b"execute": (
        [
            Command(Verb.PUT, "malformed/key", "value", None, None, REQUEST),
            Command(Verb.GET, "malformed/key"),
        ],
    ),
    b"scan": ("malformed/", "malformed/a", 10, 0),
    b"status": (False,),
    b"membership": (),
}
NODE_CALLS: dict[bytes, tuple[Any, ...]] = {
    b"hello": (Identity("test", "0" * 64, 3, 1, 0),),
    b"prepare": (Prepare(3, 0, 0, 0),),
    b"accept": (Accept(3, 0, 0, [Entry(1, b"payload"), Entry(2, b"")], True, FACT, [1]),),
    b"learn": (Learn(1, [FACT, FACT], [0, 0, 0], Position(0, 0), 0),),
    b"fetch": (Fetch(3, 0),),
    b"barrier": (Barrier(1, 1),),
    b"forward": (Forward(257, Origin(1, 1, 1), b"x", 0),),
    b"fetch_checkpoint": (FetchCheckpoint(0, 0),),
    b"rejoin": (Rejoin(3, 0),),
}


# ----------------------------------------------------------------------------------- from a frame to a mutant


def flipped(frame: bytes, source: random.Random) -> bytes:
    """Some bits are other bits."""
    data = bytearray(frame)
    for _ in range(source.choice((1, 1, 2, 8))):
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return bytes(data)


def cut(frame: bytes, source: random.Random) -> bytes:
    """The end is missing, and the length says so."""
    body = frame[4 : source.randrange(5, len(frame))]
    return struct.pack(">i", len(body)) + body


def half(frame: bytes, source: random.Random) -> bytes:
    """The end is missing, and the length does not say so: the node must wait for more."""
    return frame[: source.randrange(1, len(frame))]


def forged(frame: bytes, source: random.Random) -> bytes:
    """The length is another one."""
    length = source.choice(
        (0, 1, 4, len(frame), len(frame) - 5, 2**20 + 1, 2**23 + 1, 2**31 - 1, -1, -(2**31))
    )
    return struct.pack(">i", length) + frame[4:]


def swollen(frame: bytes, source: random.Random) -> bytes:
    """A length within it is another one: of a string or a container, where the bytes happen to be one."""
    places = [at for at in range(8, len(frame) - 4) if frame[at : at + 2] == b"\0\0"] or [8]
    at = source.choice(places)
    count = source.choice((2**31 - 1, -1, 2**30, 2**24, len(frame), 2**16))
    return frame[:at] + struct.pack(">i", count) + frame[at + 4 :]


def retyped(frame: bytes, source: random.Random) -> bytes:
    """A byte that may be a field's type is another type, or none."""
    types = [at for at in range(8, len(frame)) if frame[at] in (2, 3, 6, 8, 10, 11, 12, 15)] or [8]
    data = bytearray(frame)
    data[source.choice(types)] = source.choice((1, 2, 3, 4, 6, 8, 10, 11, 12, 13, 14, 15, 16, 99, 255))
    return bytes(data)


def emptied(frame: bytes, source: random.Random) -> bytes:
    """The arguments' last fields are missing: the struct ends before them."""
    _, _, _, offset = header(frame, 4)
    body = frame[4 : source.randrange(offset, len(frame))] + b"\0" * source.choice((1, 2, 3))
    return struct.pack(">i", len(body)) + body


def garbage(frame: bytes, source: random.Random) -> bytes:
    """A frame of anything."""
    body = source.randbytes(source.randrange(1, 300))
    return struct.pack(">i", len(body)) + body


MUTATIONS = (flipped, cut, half, forged, swollen, retyped, emptied, garbage)


def malformed(frame: bytes) -> bool:
    """Whether these bytes do not begin with a call that a node could take for one of a peer's."""
    length = struct.unpack_from(">i", frame)[0] if len(frame) >= 4 else 0
    if not 0 < length <= len(frame) - 4:
        return True
    try:
        frame = frame[: 4 + length]
        kind, name, _, offset = header(frame, 4)
        if name not in METHODS or kind not in (CALL, ONEWAY):
            return True
        METHODS[name].arguments(frame, offset)
    except Malformed:
        return True
    return False


def mutants(calls: dict[bytes, tuple[Any, ...]], count: int, seed: int, only: bool) -> Iterator[bytes]:
    """So many mutants of all calls by all mutations. `only`: none that is a proper call after all.

    (Nodes believe their peers: a flipped bit that makes another proper Accept would be a lie, not a malformed
    frame.)
    """
    source = random.Random(seed)
    names = list(calls)
    made = 0
    while made < count:
        frame = METHODS[names[made % len(names)]].call(
            source.randrange(2**31), *calls[names[made % len(names)]]
        )
        mutant = source.choice(MUTATIONS)(frame, source)
        if not only or malformed(mutant):
            made += 1
            yield mutant


def test_each_mutation_makes_malformed_frames_of_every_call() -> None:
    source = random.Random(SEED)
    for name, arguments in {**CLIENT_CALLS, **NODE_CALLS}.items():
        frame = METHODS[name].call(7, *arguments)
        assert not malformed(frame)
        for mutation in MUTATIONS:
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


def send(cluster: RealCluster, frames: Iterator[bytes], first: bytes = b"") -> None:
    """Each frame over a connection of its own to node 1, after `first`; until the node hangs up."""
    member = cluster.settings.member(1)
    for frame in frames:
        with (
            socket.create_connection((member.host, member.port), 60) as connection,
            contextlib.suppress(OSError),  # it may hang up at any time
        ):
            connection.sendall(first + frame)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass


class Good:
    """A client that works on its own keys all the while, and fails at the first wrong answer."""

    def __init__(self, cluster: RealCluster) -> None:
        self.cluster = cluster
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
                    client.put("good", str(self.done))
                    assert client.get("good", node=1) == str(self.done)
                    assert client.increment("count") == self.done + 1
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


@pytest.mark.slow
def test_10000_malformed_frames_disturb_nobody_and_leave_nothing_behind(cluster: Bereaved) -> None:
    settings = cluster.settings
    hello = METHODS[b"hello"].call(1, Identity(settings.name, settings.digest, 3, 1, cluster.life))
    send(cluster, mutants(CLIENT_CALLS, 200, SEED, only=False))
    send(cluster, mutants(NODE_CALLS, 200, SEED, only=True), hello)
    member = cluster.settings.member(1)
    idle = [socket.create_connection((member.host, member.port)) for _ in range(20)]
    for connection in idle[:10]:
        connection.sendall(METHODS[b"status"].call(1, False)[:9])  # half a frame, and no more
    before = memory(cluster)
    with Good(cluster) as good:
        send(cluster, mutants(CLIENT_CALLS, FRAMES // 2, SEED + 1, only=False))
        send(cluster, mutants(NODE_CALLS, FRAMES // 2, SEED + 2, only=True), hello)
        done = good.done
        eventually(lambda: good.done > done + 5 or good.error, "the good client goes on")
    assert good.error is None
    for connection in idle:
        connection.settimeout(60)
        with contextlib.closing(connection), contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b"", "idle strangers and half-sent frames are cut off"
    grown = memory(cluster) - before
    print(f"{FRAMES} malformed frames, {good.done} good rounds meanwhile; memory grew by {grown >> 10} KiB")
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
