#!/usr/bin/env python3
"""How long clients hear nothing when a node dies, measured: kills of random nodes under load.

    .venv/bin/python bench/experiments/failover.py --kills 100

Starts nodes of its own and some clients, each with one operation under way at a time. Then, again and again,
kills one node as kill -9 does, leaves it dead for a while, starts it again and waits until it takes commands.
From one kill to the moment when that is so, the longest time is taken in which no client got any answer, and
the longest that one operation took. Prints the median and the 99th percentile of both, and the operations
that failed. Exit codes: 0; 1 operations failed; 2 usage. It leaves nothing behind.
"""

import argparse
import itertools
import random
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from frame import Good, experiment, loaded, ms, parse, started, tell

from bench.systems import Paxos
from paxoskv.program import positive


class Gap(NamedTuple):
    """What one kill cost, in seconds."""

    silence: float  # the longest time without an answer to anybody
    slowest: float  # the longest operation that was under way, or begun, meanwhile


def gap(goods: Sequence[Good], begin: float, end: float) -> Gap:
    """Of the time between these two; the answer before it counts, as does the lack of one until the end."""
    done = sorted((pair for each in goods for pair in each.done), key=lambda pair: pair[1])
    before = max((answered for _, answered in done if answered <= begin), default=begin)
    answers = [before, *(answered for _, answered in done if begin < answered <= end), end]
    silence = max(later - earlier for earlier, later in itertools.pairwise(answers))
    slowest = max(
        (answered - began for began, answered in done if answered > begin and began < end), default=0
    )
    return Gap(silence, max(slowest, silence))


def measure(nodes: Paxos, options: argparse.Namespace) -> tuple[list[Gap], list[Good]]:
    """Kill after kill. The clients have stopped when it returns."""
    source = random.Random(options.seed)
    spans: list[tuple[float, float]] = []
    with loaded(nodes.where, options.clients) as goods:
        for number in range(1, options.kills + 1):
            node = source.choice(nodes.nodes)
            begin = time.monotonic()
            nodes.kill(node)
            time.sleep(options.dead)
            nodes.serve(node)
            nodes.wait(node)
            spans.append((begin, time.monotonic()))
            time.sleep(source.uniform(0.1, 0.5))  # the next one finds a cluster at work
            if number % 10 == 0:
                print(f"{number} kills", file=sys.stderr)
    return [gap(goods, begin, end) for begin, end in spans], goods


def several(text: str) -> int:
    """The type of --nodes."""
    number = positive(text)
    if number < 3 or number % 2 == 0:
        raise argparse.ArgumentTypeError("an odd number from 3 on, or there is nobody to fail over to")
    return number


def main() -> None:
    options = parse(
        kills=(100, "how many"), clients=(2, "how many"), nodes=(5, "an odd number", several),
        dead=(1.0, "seconds until the restart"), seed=(1, "chooses the nodes"),
    )  # fmt: skip
    with started(nodes=options.nodes) as nodes:
        gaps, goods = measure(nodes, options)
    failed = sum(len(each.failures) for each in goods)
    operations = sum(len(each.done) for each in goods) + failed
    columns = ("p50_s", "p99_s", "max_s")
    tell([
        (f"{len(gaps)} kills, {operations:,} operations, {failed} failed",
         "median, ms", "p99, ms", "longest, ms"),
        ("longest gap without any answer", *ms([each.silence for each in gaps], *columns)),
        ("longest operation", *ms([each.slowest for each in gaps], *columns)),
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(experiment(main))
