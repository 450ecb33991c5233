#!/usr/bin/env -S sh -c 'exec "$(dirname "$(readlink -f "$0")")/../../.venv/bin/python" "$0" "$@"'
"""What a node stands: overload, crowds of useless connections, few descriptors, malformed frames.

    .venv/bin/python bench/experiments/limits.py --seconds 10
    .venv/bin/python bench/experiments/limits.py --parts fuzz --frames 2000000

Each part starts nodes of its own, loads them with good clients, and prints a table: what was measured with
and without the trouble. Exit codes: 0; 1 a good client had an error, or a node ended; 2 usage.
"""

import argparse
import asyncio
import contextlib
import resource
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from frame import counted, experiment, loaded, ms, parse, started, tell

from bench.systems import BenchError, Paxos, beside
from paxoskv import Client, Cluster
from paxoskv.wire.methods import EXCEPTION, METHODS, header
from tests.harness.certificates import Authority
from tests.harness.fuzz import CLIENT_CALLS, NODE_CALLS, fuzz, groups

LEVELS = (64, 256, 768, 2304)  # operations under way
GENERATORS = 2  # processes that keep them under way
IDLE, SLOW = 5000, 500  # connections
DRIP_S = 0.5  # seconds between two bytes of a slow sender, and between two reads of a slow reader
FEW = 256  # descriptors
VALUE = "v" * 50
LARGE = "x" * 100_000


# --------------------------------------------------------------------------------------------------- overload


def _generate(settings: Cluster, level: int, seconds: float) -> tuple[list[float], int]:
    """Keep so many operations under way, each on a connection of its own; tell the times of the good ones."""
    calls = {True: METHODS[b"put"].call(1, "key", VALUE, None), False: METHODS[b"get"].call(1, "key", 0)}
    began: dict[socket.socket, tuple[float, bool]] = {}
    times, bad = [], 0
    with selectors.DefaultSelector() as selector:
        for number in range(level):
            member = settings.nodes[number % len(settings.nodes)]
            wire = socket.create_connection((member.host, member.port))
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(wire, selectors.EVENT_READ)
            began[wire] = (0.0, number % 2 == 0)
        start = time.monotonic() + 1
        for wire, (_, put) in began.items():
            began[wire] = (time.monotonic(), put)
            wire.sendall(calls[put])
        while (now := time.monotonic()) < start + seconds:
            for key, _ in selector.select(0.1):
                wire: Any = key.fileobj  # type: ignore[no-redef]
                frame = wire.recv(65536)
                at, put = began[wire]
                now = time.monotonic()
                if now > start:
                    if frame and header(frame, 4)[0] != EXCEPTION and frame[4 + 15 : 4 + 18] != b"\x0c\0\1":
                        times.append(now - at)
                    else:
                        bad += 1
                began[wire] = (now, not put)
                wire.sendall(calls[not put])
    return times, bad


def overload(options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Goodput by operations under way."""
    yield "operations under way", "good operations per second", "p50, ms", "p99, ms", "failed"
    with started(nodes=options.nodes) as nodes:
        for level in LEVELS:
            share = level // GENERATORS
            pipes = [beside(_generate, nodes.where, share, options.seconds)[0] for _ in range(GENERATORS)]
            told = [pipe.recv() for pipe in pipes]
            times = [t for part, _ in told for t in part]
            yield str(level), *summary(times, options.seconds), str(sum(bad for _, bad in told))


# ----------------------------------------------------------------------------------------------------- crowds


class Crowd:
    """Connections to one node that are of no use to anybody. drip() is to be called now and then."""

    def __init__(self, settings: Cluster, node: int) -> None:
        self.member = settings.member(node)
        self.idle: list[socket.socket] = []
        self.silent: list[socket.socket] = []
        self.senders: list[tuple[socket.socket, Iterator[int]]] = []
        self.readers: list[socket.socket] = []

    def connect(self) -> socket.socket:
        return socket.create_connection((self.member.host, self.member.port), 10)

    def add_idle(self, count: int) -> None:
        """They have said something once, and had their answer."""
        for _ in range(count):
            wire = self.connect()
            wire.sendall(METHODS[b"get"].call(1, "none", 2))
            wire.recv(1000)
            self.idle.append(wire)

    def add_others(self, count: int) -> None:
        calls = b"".join(METHODS[b"get"].call(number, "large", 2) for number in range(1000))
        frame = METHODS[b"put"].call(1, "slow", LARGE, None)
        for _ in range(count):
            self.silent.append(self.connect())
            self.senders.append((self.connect(), iter(frame)))
            reader = socket.socket()
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect((self.member.host, self.member.port))
            reader.setblocking(False)
            with contextlib.suppress(OSError):
                reader.send(calls)
            self.readers.append(reader)

    def drip(self) -> None:
        """The slow ones do a little. Whoever was hung up on comes again."""
        for place, (wire, frame) in enumerate(self.senders):
            try:
                wire.send(bytes([next(frame)]))
            except (OSError, StopIteration):
                wire.close()
                self.senders[place] = (self.connect(), iter(METHODS[b"put"].call(1, "slow", LARGE, None)))
        for wire in self.readers:
            with contextlib.suppress(OSError):
                wire.recv(100)
        for place, wire in enumerate(self.silent):
            wire.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                try:
                    over = not wire.recv(1)
                except ConnectionError:
                    over = True
                if over:
                    wire.close()
                    self.silent[place] = self.connect()

    def close(self) -> None:
        for wire in [*self.idle, *self.silent, *self.readers, *(wire for wire, _ in self.senders)]:
            wire.close()
        self.idle, self.silent, self.senders, self.readers = [], [], [], []

    def connected(self) -> int:
        """How many of the idle ones the node has not hung up on."""
        with selectors.DefaultSelector() as selector:
            for wire in self.idle:
                selector.register(wire, selectors.EVENT_READ)
            return len(self.idle) - len(selector.select(0))


def row(crowd: Crowd, nodes: Paxos, seconds: float, name: str) -> tuple[str, ...]:
    """What two good clients do beside it, and what node 1 has in memory then."""
    times = good(nodes.where, seconds, crowd.drip)
    return name, *summary(times, seconds), f"{memory(nodes) / 2**20:.1f}"


class WithTls(Paxos):
    """Its certificates are made when it starts."""

    def start(self) -> None:
        """All nodes."""
        self.settings["tls"] = Authority(self.directory / "certificates").cluster("bench", len(self.nodes))
        super().start()


def crowds(options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Good clients beside a crowd at node 1."""
    yield "beside two good clients, at node 1", "operations per second", "p50, ms", "p99, ms", "node 1, MiB"
    with started(nodes=options.nodes) as nodes:
        crowd = Crowd(nodes.where, 1)
        with Client(nodes.where) as client:
            client.put("large", LARGE)

        told = partial(row, crowd, nodes, options.seconds)
        try:
            yield told("nobody")
            yield told("nobody, once more")
            before = memory(nodes)
            crowd.add_idle(IDLE)
            yield told(f"{IDLE} idle connections ({(memory(nodes) - before) / IDLE / 1024:.1f} KiB each)")
            crowd.add_others(SLOW)
            yield told(f"and {SLOW} slow senders, {SLOW} slow readers, {SLOW} silent ones")
            connected = crowd.connected()
        finally:
            crowd.close()
        yield told(f"nobody again ({connected} of the idle ones were connected to the end)")


def handshakes(options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Good clients with TLS beside handshakes that somebody has begun with node 1, and says nothing more."""
    yield "beside two good clients, with TLS", "operations per second", "p50, ms", "p99, ms", "node 1, MiB"
    with started(WithTls, nodes=options.nodes) as nodes:
        crowd = Crowd(nodes.where, 1)
        told = partial(row, crowd, nodes, options.seconds)
        yield told("nobody")
        yield told("nobody, once more")
        for _ in range(SLOW):
            crowd.silent.append(crowd.connect())
        yield told(f"{SLOW} silent handshakes")
        crowd.close()
        yield told("nobody again")


# ------------------------------------------------------------------------------------------- few descriptors


class Few(Paxos):
    """Node 1 has few descriptors."""

    def serve(self, node: int, *words: object) -> None:
        """Start one node."""
        super().serve(node, *words)
        if node == 1:
            resource.prlimit(self.servers[node].pid, resource.RLIMIT_NOFILE, (FEW, FEW))


def files(options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """A node with few descriptors, and more connections than that."""
    yield f"node 1 has {FEW} descriptors", "operations per second", "p50, ms", "p99, ms", "node 1"
    with started(Few, nodes=options.nodes) as nodes:
        crowd = Crowd(nodes.where, 1)

        def row(name: str) -> tuple[str, ...]:
            times = good(nodes.where, options.seconds)
            with Client(nodes.where, timeout=10) as client:
                state = client.status(1).state
                client.checkpoint(1)
            return name, *summary(times, options.seconds), f"{state}, makes checkpoints"

        yield row("nobody")
        with contextlib.suppress(OSError):
            crowd.add_idle(2 * FEW)
        yield row(f"{2 * FEW} connections")
        crowd.close()
        yield row("nobody again")


# ------------------------------------------------------------------------------------------- malformed frames


def _fuzz(address: tuple[str, int], frames: int) -> int:
    calls = {**CLIENT_CALLS, b"put": ("malformed/large", LARGE, None)}
    sent = asyncio.run(fuzz(address, groups(CLIENT_CALLS, frames * 6 // 10, 1)))
    sent += asyncio.run(fuzz(address, groups(calls, frames * 2 // 10, 2)))
    return sent + asyncio.run(fuzz(address, groups(NODE_CALLS, frames * 2 // 10, 3, only=True, most=1)))


def malformed(options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Frames that are none, at node 1; and the same good load without them."""
    head = "beside two good clients, at node 1"
    yield head, "seconds", "operations", "p50, ms", "p99, ms", "memory, MiB", "grows by, MiB", "failed"
    wanted = 0  # operations of the good clients: as many without the frames as with them
    for frames in (options.frames, 0):
        with started(nodes=options.nodes) as nodes:
            good(nodes.where, 5)
            before, began = memory(nodes), time.monotonic()
            with loaded(nodes.where) as goods:
                if frames:
                    results, _ = beside(_fuzz, ("127.0.0.1", nodes.ports[0]), frames)
                    try:
                        name = f"{results.recv():,} malformed frames"
                    except EOFError:
                        raise BenchError("the malformed frames' process ended") from None
                    wanted = counted(goods)
                else:
                    while counted(goods) < wanted:
                        time.sleep(0.1)
                    name = "none"
                seconds = time.monotonic() - began
            times = [b - a for each in goods for a, b in each.done]
            grown = (memory(nodes) - before) / 2**20
            failed = str(sum(len(each.failures) for each in goods))
            figures = summary(times, 1)
            yield name, f"{seconds:.0f}", *figures, f"{before / 2**20:.1f}", f"{grown:.1f}", failed


# -------------------------------------------------------------------------------------------- what they share


def good(settings: Cluster, seconds: float, meanwhile: Callable[[], object] = lambda: None) -> list[float]:
    """Seconds that the operations took that two good clients did in so many seconds."""
    with loaded(settings) as goods:
        over = time.monotonic() + seconds
        while time.monotonic() < over:
            meanwhile()
            time.sleep(DRIP_S)
    return [b - a for each in goods for a, b in each.done if over - seconds <= a and b <= over]


def summary(times: Sequence[float], seconds: float) -> tuple[str, ...]:
    return f"{len(times) / seconds:,.0f}", *ms(times, "p50_s", "p99_s")


def memory(nodes: Paxos) -> int:
    with Client(nodes.where, timeout=10) as client:
        return int(client.status(1).memory_bytes)


PARTS = {"overload": overload, "crowds": crowds, "handshakes": handshakes, "files": files, "fuzz": malformed}


def some(text: str) -> list[str]:
    """The type of --parts."""
    if not set(text.split(",")) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"{text} is not of {','.join(PARTS)}")
    return text.split(",")


def main() -> None:
    options = parse(
        parts=(",".join(PARTS), "which", some), nodes=(3, "an odd number"), seconds=(10.0, "for each row"),
        frames=(100_000, "malformed ones"),
    )  # fmt: skip
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for part in options.parts:
        tell(PARTS[part](options))
        print()


if __name__ == "__main__":
    sys.exit(experiment(main))
