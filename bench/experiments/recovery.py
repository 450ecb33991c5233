#!/usr/bin/env python3
"""How long nodes take to come back, measured: restart, cold start, catch-up, a wiped disk.

    .venv/bin/python bench/experiments/recovery.py

Starts nodes of its own, one of which is stopped at once, and writes entries. Then it measures, each time
until the node takes commands and has applied all that the others had when it was started:

    restart      of a node that was killed, from the records in its journal
    catch-up     of the node that was stopped, from its peers' entries
    cold start   of all nodes, killed at the same time
    wiped disk   of a node without its data directory, with --rejoin
    checkpoint   of a node that was stopped while a great many keys were written: it takes a peer's checkpoint

During catch-up and checkpoint two clients use the other nodes. How long their operations take (99th
percentile) is told for before, while the node's process starts (until it answers), and from then on. Prints
one line for each. It leaves nothing behind.
"""

import argparse
import itertools
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial

from nodes import Load, Nodes, experiment, p99, wait_for

from paxoskv import Client, ClientError, Cluster, Command, Verb

BATCH = 1000
WRITERS = 8  # so few that hardly any of their commands share an entry
LOOK_S = 0.1  # between two looks whether a node has caught up
BEFORE_S = 5.0  # of load, to compare with


@dataclass(frozen=True)
class Part(Cluster):
    """Some nodes of a cluster, and the digest of the whole: nodes answer to no other."""

    whole: str = ""

    @property
    def digest(self) -> str:
        return self.whole


def only(settings: Cluster, nodes: Sequence[int]) -> Part:
    """The cluster as somebody sees it who uses these nodes alone."""
    part = tuple(member for member in settings.nodes if member.id in nodes)
    same = {one.name: getattr(settings, one.name) for one in fields(settings) if one.name != "nodes"}
    return Part(**same, nodes=part, whole=settings.digest)


def applied(nodes: Nodes, node: int) -> tuple[int, int]:
    with Client(nodes.settings, timeout=5) as client:
        position = client.status(node).applied
        return position.timestamp, position.owner


def answers(client: Client, node: int) -> bool:
    try:
        return client.status(node) is not None
    except ClientError:
        return False


def caught_up(client: Client, node: int, target: tuple[int, int]) -> bool:
    try:
        status = client.status(node)
        return status.ready and (status.applied.timestamp, status.applied.owner) >= target
    except ClientError:
        return False


def wait_until_caught_up(nodes: Nodes, those: Sequence[int], target: tuple[int, int]) -> None:
    """With one client and not often: who looks takes the processors from those whose work is measured."""
    with Client(nodes.settings, timeout=1) as client:
        what = f"nodes {those} are back"
        wait_for(lambda: all(caught_up(client, node, target) for node in those), what, LOOK_S)


def write_entries(settings: Cluster, count: int) -> None:
    """Single commands, so many."""

    def write(index: int) -> None:
        with Client(settings, first=index, timeout=60) as client:
            for number in range(index, count, WRITERS):
                client.put(f"key {number}", str(number))

    threads = [threading.Thread(target=write, args=(index,)) for index in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def write_keys(settings: Cluster, count: int, size: int) -> None:
    with Client(settings, timeout=600, attempt_timeout=60) as client:
        for start in range(0, count, BATCH):
            keys = range(start, min(start + BATCH, count))
            client.execute([Command(Verb.PUT, f"big {key}", str(key).ljust(size, "x")) for key in keys])


def p99_ms(loads: Sequence[Load], begin: float, end: float) -> float:
    """Milliseconds that 99 of 100 operations took, of those answered between these times."""
    times = [answered - began for each in loads for began, answered in each.done if begin <= answered < end]
    return 1000 * p99(times) if times else float("nan")


def back(nodes: Nodes, node: int, target: tuple[int, int], *more: str) -> float:
    """Seconds from the start of a node until it has caught up."""
    began = time.monotonic()
    nodes.start(node, *more)
    wait_until_caught_up(nodes, [node], target)
    return time.monotonic() - began


def beside_load(nodes: Nodes, node: int, others: Sequence[int]) -> str:
    """Start a node while two clients use the others; what both took."""
    loads = [Load(only(nodes.settings, others), index) for index in range(2)]
    try:
        wait_for(lambda: all(each.count for each in loads), "the clients get answers")
        begin = time.monotonic()
        wait_for(lambda: time.monotonic() - begin >= BEFORE_S, "the clients work")
        middle = time.monotonic()
        target = max(applied(nodes, other) for other in others)
        nodes.start(node)
        with Client(nodes.settings, timeout=1) as client:
            wait_for(lambda: answers(client, node), f"node {node} answers")
        started = time.monotonic()
        wait_until_caught_up(nodes, [node], target)
        end = time.monotonic()
    finally:
        for each in loads:
            each.stop()
    spans = itertools.pairwise((begin, middle, started, end))
    before, starting, after = (p99_ms(loads, *span) for span in spans)
    failed = sum(len(each.failures) for each in loads)
    return (
        f"{end - middle:.2f} s; p99 of the others {before:.1f} ms before, {starting:.1f} while it started "
        f"({started - middle:.2f} s), {after:.1f} from then on, {failed} failed"
    )


def records(nodes: Nodes, node: int) -> str:
    """What the node's log says of its last recovery."""
    lines = (nodes.directory / f"node-{node}.log").read_text().splitlines()
    return next(line for line in reversed(lines) if "event=recovered" in line).partition("recovered ")[2]


def measure(nodes: Nodes, options: argparse.Namespace) -> None:
    away, killed, *_ = reversed(nodes.ids)
    rest = [node for node in nodes.ids if node != away]
    nodes.begin()
    nodes.kill(away)
    began = time.monotonic()
    write_entries(only(nodes.settings, rest), options.entries)
    with Client(nodes.settings) as client:
        entries = client.status(rest[0]).counters["entries_applied"]
    print(f"{entries:,} entries written in {time.monotonic() - began:.0f} s", flush=True)

    nodes.kill(killed)
    target = applied(nodes, rest[0])
    print(f"restart: {back(nodes, killed, target):.2f} s ({records(nodes, killed)})", flush=True)
    print(f"catch-up: {beside_load(nodes, away, rest)}", flush=True)

    target = applied(nodes, rest[0])
    for node in nodes.ids:
        nodes.kill(node)
    began = time.monotonic()
    for node in nodes.ids:
        nodes.start(node)
    wait_until_caught_up(nodes, nodes.ids, target)
    print(f"cold start: {time.monotonic() - began:.2f} s", flush=True)

    nodes.kill(killed)
    shutil.rmtree(nodes.directory / "data" / f"node-{killed}")
    print(f"wiped disk: {back(nodes, killed, target, '--rejoin'):.2f} s", flush=True)

    nodes.kill(away)
    write_keys(only(nodes.settings, rest[:1]), options.keys, options.size)
    with Client(nodes.settings, timeout=600, attempt_timeout=600) as client:
        for node in rest:
            client.checkpoint(node)
        keys = client.status(rest[0]).keys
    print(f"checkpoint: {beside_load(nodes, away, rest)} ({keys:,} keys)", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--entries", type=int, default=100_000, help="commands (default: %(default)s)")
    parser.add_argument("--keys", type=int, default=1_000_000, help="for `checkpoint` (default: %(default)s)")
    parser.add_argument("--size", type=int, default=100, help="bytes of their values (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=5, choices=(3, 5, 7), help="(default: %(default)s)")
    options = parser.parse_args()
    return experiment(partial(measure, options=options), options.nodes)


if __name__ == "__main__":
    sys.exit(main())
