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
import json
import random
import sys
import time
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import NamedTuple

from nodes import Load, Nodes, experiment, p99, wait_for

from paxoskv.program import positive


class Gap(NamedTuple):
    """What one kill cost, in seconds."""

    silence: float  # the longest time without an answer to anybody
    slowest: float  # the longest operation that was under way, or begun, meanwhile


def gap(loads: Sequence[Load], begin: float, end: float) -> Gap:
    """Of the time between these two; the answer before it counts, as does the lack of one until the end."""
    done = sorted((pair for each in loads for pair in each.done), key=lambda pair: pair[1])
    before = max((answered for _, answered in done if answered <= begin), default=begin)
    answers = [before, *(answered for _, answered in done if begin < answered <= end), end]
    silence = max(later - earlier for earlier, later in itertools.pairwise(answers))
    slowest = max(
        (answered - began for began, answered in done if answered > begin and began < end), default=0
    )
    return Gap(silence, max(slowest, silence))


def measure(nodes: Nodes, options: argparse.Namespace) -> tuple[list[Gap], list[Load]]:
    """Kill after kill, until told to stop. The clients have stopped when it returns."""
    source = random.Random(options.seed)
    loads = [Load(nodes.settings, index) for index in range(options.clients)]
    spans: list[tuple[float, float]] = []
    try:
        wait_for(lambda: all(each.count > 50 for each in loads), "the clients get answers")
        for number in range(1, options.kills + 1):
            node = source.choice(nodes.ids)
            begin = time.monotonic()
            nodes.kill(node)
            time.sleep(options.dead)
            nodes.start(node)
            nodes.wait(node)
            spans.append((begin, time.monotonic()))
            time.sleep(source.uniform(0.1, 0.5))  # the next one finds a cluster at work
            if number % 10 == 0:
                print(f"{number} kills", file=sys.stderr)
    except KeyboardInterrupt:
        print("failover.py: interrupted", file=sys.stderr)
    finally:
        for each in loads:
            each.stop()
    return [gap(loads, begin, end) for begin, end in spans], loads


def told(name: str, seconds: Sequence[float]) -> str:
    return f"{name}: median {median(seconds):.3f} s, p99 {p99(seconds):.3f} s, longest {max(seconds):.3f} s"


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=positive, default=100, help="how many (default: %(default)s)")
    parser.add_argument("--clients", type=positive, default=2, help="how many (default: %(default)s)")
    parser.add_argument("--nodes", type=positive, default=5, help="an odd number (default: %(default)s)")
    parser.add_argument("--dead", type=float, default=1.0, metavar="S",
                        help="seconds until the restart (default: %(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, help="chooses the nodes (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print each kill's figures, as JSON")
    return parser


def report(nodes: Nodes, options: argparse.Namespace) -> int:
    """Measure, and print what was found; returns the exit code."""
    nodes.begin()
    gaps, loads = measure(nodes, options)
    if not gaps:
        return 130
    failures = [failure for each in loads for failure in each.failures]
    operations = sum(len(each.done) for each in loads) + len(failures)
    if options.json:
        print(json.dumps({"gaps": [each._asdict() for each in gaps], "operations": operations,
                          "failed": len(failures)}))  # fmt: skip
    else:
        print(
            f"{len(gaps)} kills, {options.clients} clients, {operations:,} operations, {len(failures)} failed"
        )
        print(told("longest gap without any answer", [each.silence for each in gaps]))
        print(told("longest operation", [each.slowest for each in gaps]))
    for failure in failures[:10]:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def main() -> int:
    options = arguments().parse_args()
    if options.nodes < 3 or options.nodes % 2 == 0:
        print(
            "failover.py: --nodes: an odd number from 3 on, or there is nobody to fail over to",
            file=sys.stderr,
        )
        return 2
    return experiment(partial(report, options=options), options.nodes)


if __name__ == "__main__":
    sys.exit(main())
