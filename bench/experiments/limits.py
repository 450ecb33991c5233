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
import json
import resource
import selectors
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from nodes import Load, Nodes, end_by_signal, p99, signals_wait, wait_for

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


def _generate(settings: Cluster, level: int, seconds: float, results: Any) -> None:
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
    results.send((times, bad))


def overload(directory: Path, options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Goodput by operations under way."""
    yield "operations under way", "good operations per second", "p50, ms", "p99, ms", "failed"
    with running(directory, options.nodes) as nodes:
        for level in LEVELS:
            context = get_context("spawn")
            pipes, children = [], []
            with signals_wait():
                for _ in range(GENERATORS):
                    ours, theirs = context.Pipe(duplex=False)
                    arguments = (nodes.settings, level // GENERATORS, options.seconds, theirs)
                    child = context.Process(target=_generate, args=arguments, daemon=True)
                    child.start()
                    pipes.append(ours)
                    children.append(child)
            told = [pipe.recv() for pipe in pipes]
            for child in children:
                child.join()
            times = sorted(t for part, _ in told for t in part)
            failed = sum(bad for _, bad in told)
            rate = f"{len(times) / options.seconds:,.0f}"
            yield str(level), rate, ms(median(times)), ms(p99(times)), str(failed)


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


def beside(crowd: Crowd, nodes: Nodes, seconds: float, name: str) -> tuple[str, ...]:
    """What two good clients do beside it, and what node 1 has in memory then."""
    done = good(nodes.settings, seconds, lambda: (crowd.drip(), time.sleep(DRIP_S)))
    return name, *summary(done, seconds), f"{memory(nodes, 1) / 2**20:.1f}"


def crowds(directory: Path, options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Good clients beside a crowd at node 1."""
    yield "beside two good clients, at node 1", "operations per second", "p50, ms", "p99, ms", "node 1, MiB"
    with running(directory, options.nodes) as nodes:
        crowd = Crowd(nodes.settings, 1)
        with Client(nodes.settings) as client:
            client.put("large", LARGE)

        row = partial(beside, crowd, nodes, options.seconds)
        try:
            yield row("nobody")
            yield row("nobody, once more")
            before = memory(nodes, 1)
            crowd.add_idle(IDLE)
            yield row(f"{IDLE} idle connections ({(memory(nodes, 1) - before) / IDLE / 1024:.1f} KiB each)")
            crowd.add_others(SLOW)
            yield row(f"and {SLOW} slow senders, {SLOW} slow readers, {SLOW} silent ones")
            connected = crowd.connected()
        finally:
            crowd.close()
        yield row(f"nobody again ({connected} of the idle ones were connected to the end)")


def handshakes(directory: Path, options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Good clients with TLS beside handshakes that somebody has begun with node 1, and says nothing more."""
    yield "beside two good clients, with TLS", "operations per second", "p50, ms", "p99, ms", "node 1, MiB"
    with running(directory, options.nodes, tls=True) as nodes:
        crowd = Crowd(nodes.settings, 1)
        row = partial(beside, crowd, nodes, options.seconds)
        yield row("nobody")
        yield row("nobody, once more")
        for _ in range(SLOW):
            crowd.silent.append(crowd.connect())
        yield row(f"{SLOW} silent handshakes")
        crowd.close()
        yield row("nobody again")


# ------------------------------------------------------------------------------------------- few descriptors


def files(directory: Path, options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """A node with few descriptors, and more connections than that."""
    yield f"node 1 has {FEW} descriptors", "operations per second", "p50, ms", "p99, ms", "node 1"
    with running(directory, options.nodes, few=1) as nodes:
        crowd = Crowd(nodes.settings, 1)

        def row(name: str) -> tuple[str, ...]:
            done = good(nodes.settings, options.seconds, lambda: time.sleep(DRIP_S))
            with Client(nodes.settings, timeout=10) as client:
                state = client.status(1).state
                client.checkpoint(1)
            return name, *summary(done, options.seconds), f"{state}, makes checkpoints"

        yield row("nobody")
        with contextlib.suppress(OSError):
            crowd.add_idle(2 * FEW)
        yield row(f"{2 * FEW} connections")
        crowd.close()
        yield row("nobody again")


# ------------------------------------------------------------------------------------------- malformed frames


def _fuzz(address: tuple[str, int], frames: int, results: Any) -> None:
    calls = {**CLIENT_CALLS, b"put": ("malformed/large", LARGE, None)}
    sent = asyncio.run(fuzz(address, groups(CLIENT_CALLS, frames * 6 // 10, 1)))
    sent += asyncio.run(fuzz(address, groups(calls, frames * 2 // 10, 2)))
    sent += asyncio.run(fuzz(address, groups(NODE_CALLS, frames * 2 // 10, 3, only=True, most=1)))
    results.send(sent)


def malformed(directory: Path, options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Frames that are none, at node 1; and the same good load without them."""
    head = "beside two good clients, at node 1"
    yield head, "seconds", "operations", "p50, ms", "p99, ms", "memory, MiB", "grows by, MiB", "failed"
    wanted = 0  # operations of the good clients: as many without the frames as with them
    for frames in (options.frames, 0):
        with running(directory / str(frames), options.nodes) as nodes:
            member = nodes.settings.member(1)
            good(nodes.settings, 5, lambda: time.sleep(0.1))
            before, began = memory(nodes, 1), time.monotonic()
            context = get_context("spawn")
            ours, theirs = context.Pipe(duplex=False)
            arguments = ((member.host, member.port), frames, theirs)
            child = context.Process(target=_fuzz, args=arguments, daemon=True)
            loads = [Load(nodes.settings, index) for index in range(2)]
            if frames:
                with signals_wait():
                    child.start()
                theirs.close()
                try:
                    name = f"{ours.recv():,} malformed frames"
                except EOFError:
                    raise RuntimeError("the malformed frames' process ended") from None
                child.join()
                wanted = sum(each.count for each in loads)
            else:
                while sum(each.count for each in loads) < wanted:
                    time.sleep(0.1)
                name = "none"
            seconds = time.monotonic() - began
            count, p50, high = summary(stopped(loads), 1)
            grown = (memory(nodes, 1) - before) / 2**20
            failed = str(sum(len(each.failures) for each in loads))
            yield name, f"{seconds:.0f}", count, p50, high, f"{before / 2**20:.1f}", f"{grown:.1f}", failed


# -------------------------------------------------------------------------------------------- what they share


@contextmanager
def running(directory: Path, count: int, few: int = 0, tls: bool = False) -> Iterator[Nodes]:
    directory.mkdir(exist_ok=True)
    more = []
    if tls:
        more = ["--set", "tls=" + json.dumps(Authority(directory / "certificates").cluster("local", count))]
    nodes = Nodes(directory, count, *more)
    try:
        nodes.begin(before={few: _take_few})
        yield nodes
        for node in nodes.ids:
            wait_for(lambda node=node: nodes.ready(node), f"node {node} takes commands")  # type: ignore[misc]
    finally:
        nodes.end()


def _take_few() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, FEW))


def good(settings: Cluster, seconds: float, meanwhile: Callable[[], object]) -> list[tuple[float, float]]:
    """What two good clients did in so many seconds."""
    loads = [Load(settings, index) for index in range(2)]
    wait_for(lambda: all(each.count > 50 for each in loads), "the clients get answers")
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        meanwhile()
    done = stopped(loads)
    return [pair for pair in done if over - seconds <= pair[0] and pair[1] <= over]


def stopped(loads: Sequence[Load]) -> list[tuple[float, float]]:
    for each in loads:
        each.stop()
        if each.failures:
            FAILURES.extend(each.failures)
    return [pair for each in loads for pair in each.done]


def summary(done: Sequence[tuple[float, float]], seconds: float) -> tuple[str, str, str]:
    times = sorted(answered - began for began, answered in done)
    return f"{len(times) / seconds:,.0f}", ms(median(times)), ms(p99(times))


def memory(nodes: Nodes, node: int) -> int:
    with Client(nodes.settings, timeout=10) as client:
        return int(client.status(node).memory_bytes)


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f}"


FAILURES: list[str] = []
PARTS = {"overload": overload, "crowds": crowds, "handshakes": handshakes, "files": files, "fuzz": malformed}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    option = parser.add_argument
    option("--parts", default=",".join(PARTS), help="which (default: %(default)s)")
    option("--nodes", type=int, default=3, help="an odd number (default: %(default)s)")
    option("--seconds", type=float, default=10.0, help="for each row (default: %(default)s)")
    option("--frames", type=int, default=100_000, help="malformed ones (default: %(default)s)")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if not set(parts) <= set(PARTS):
        print(f"limits.py: --parts: {options.parts} is not of {','.join(PARTS)}", file=sys.stderr)
        return 2
    end_by_signal()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for part in parts:
        with tempfile.TemporaryDirectory() as name:
            try:
                for number, row in enumerate(PARTS[part](Path(name), options)):
                    print("| " + " | ".join(row) + " |", flush=True)
                    if not number:
                        print("|---" * len(row) + "|", flush=True)
            except (RuntimeError, KeyboardInterrupt) as error:
                print(f"limits.py: {str(error) or 'interrupted'}", file=sys.stderr)
                return 1
        print()
    for failure in FAILURES[:10]:
        print(failure, file=sys.stderr)
    return 1 if FAILURES else 0


if __name__ == "__main__":
    sys.exit(main())
