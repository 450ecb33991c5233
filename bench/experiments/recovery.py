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
a table. It leaves nothing behind.
"""

import argparse
import itertools
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from frame import experiment, loaded, ms, parse, started, tell, write_keys

from bench.systems import Paxos, until
from paxoskv import Client, ClientError, Cluster

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


def applied(nodes: Paxos, node: int) -> tuple[int, int]:
    with nodes.client() as client:
        position = client.status(node).applied
        return position.timestamp, position.owner


def caught_up(client: Client, node: int, target: tuple[int, int]) -> bool:
    try:
        status = client.status(node)
        return status.ready and (status.applied.timestamp, status.applied.owner) >= target
    except ClientError:
        return False


def wait_until_caught_up(nodes: Paxos, those: Sequence[int], target: tuple[int, int]) -> None:
    """With one client and not often: who looks takes the processors from those whose work is measured."""
    with Client(nodes.where, timeout=1) as client:
        what = f"nodes {those} are back"
        until(what, lambda: all(caught_up(client, node, target) for node in those), LOOK_S)


def write_entries(settings: Cluster, count: int) -> None:
    """Single commands, so many."""

    def write(index: int) -> None:
        with Client(settings, first=index, timeout=60) as client:
            for number in range(index, count, WRITERS):
                client.put(f"entry {number}", str(number))

    threads = [threading.Thread(target=write, args=(index,)) for index in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def back(nodes: Paxos, node: int, target: tuple[int, int], *more: str) -> str:
    """Seconds from the start of a node until it has caught up."""
    began = time.monotonic()
    nodes.serve(node, *more)
    wait_until_caught_up(nodes, [node], target)
    return f"{time.monotonic() - began:.2f}"


def beside_load(nodes: Paxos, node: int, others: Sequence[int]) -> tuple[str, ...]:
    """Start a node while two clients use the others; how long it took, and the p99 of the clients."""
    with loaded(only(nodes.where, others)) as goods:
        begin = time.monotonic()
        time.sleep(BEFORE_S)
        middle = time.monotonic()
        target = max(applied(nodes, other) for other in others)
        nodes.serve(node)
        until(f"node {node} answers", lambda: nodes.status(node))
        answers = time.monotonic()
        wait_until_caught_up(nodes, [node], target)
        end = time.monotonic()
    done = [pair for each in goods for pair in each.done]
    spans = itertools.pairwise((begin, middle, answers, end))
    p99 = [ms([b - a for a, b in done if first <= b < last], "p99_s")[0] for first, last in spans]
    return f"{end - middle:.2f}", *p99, f"its process started in {answers - middle:.2f} s"


def records(nodes: Paxos, node: int) -> str:
    """What the node's log says of its last recovery."""
    lines = (nodes.directory / f"node-{node}.log").read_text().splitlines()
    return next(line for line in reversed(lines) if "event=recovered" in line).partition("recovered ")[2]


def measure(nodes: Paxos, options: argparse.Namespace) -> Iterator[Sequence[str]]:
    yield "what", "seconds", *(f"p99 of others, ms: {when}" for when in ("before", "start", "then")), ""
    away, killed, *_ = reversed(nodes.nodes)
    rest = [node for node in nodes.nodes if node != away]
    nodes.kill(away)
    began = time.monotonic()
    write_entries(only(nodes.where, rest), options.entries)
    with nodes.client() as client:
        entries = client.status(rest[0]).counters["entries_applied"]
    yield "writing", f"{time.monotonic() - began:.0f}", "", "", "", f"{entries:,} entries"

    nodes.kill(killed)
    target = applied(nodes, rest[0])
    yield "restart", back(nodes, killed, target), "", "", "", records(nodes, killed)
    yield "catch-up", *beside_load(nodes, away, rest)

    target = applied(nodes, rest[0])
    for node in nodes.nodes:
        nodes.kill(node)
    began = time.monotonic()
    for node in nodes.nodes:
        nodes.serve(node)
    wait_until_caught_up(nodes, nodes.nodes, target)
    yield "cold start", f"{time.monotonic() - began:.2f}", "", "", "", ""

    nodes.kill(killed)
    shutil.rmtree(nodes.directory / "data" / f"node-{killed}")
    yield "wiped disk", back(nodes, killed, target, "--rejoin"), "", "", "", ""

    nodes.kill(away)
    write_keys(only(nodes.where, rest[:1]), options.keys, options.size)
    with Client(nodes.where, timeout=600, attempt_timeout=600) as client:
        for node in rest:
            client.checkpoint(node)
        keys = client.status(rest[0]).keys
    *figures, what = beside_load(nodes, away, rest)
    yield "checkpoint", *figures, f"{what}; {keys:,} keys"


def main() -> None:
    options = parse(
        entries=(100_000, "commands"), keys=(1_000_000, "for `checkpoint`"),
        size=(100, "bytes of their values"), nodes=(5, "an odd number from 3 on"),
    )  # fmt: skip
    with started(nodes=options.nodes) as nodes:
        tell(measure(nodes, options))


if __name__ == "__main__":
    sys.exit(experiment(main))
