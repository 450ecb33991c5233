#!/usr/bin/env python3
"""What recording costs, measured: processor time for an operation, and throughput.

    .venv/bin/python bench/experiments/trace_cost.py --pairs 5

Starts five nodes of its own, and clients that load them. Then spans without and with `trace on` take turns.
Prints the medians, and the lowest and highest. PAXOSKV_INTERPRETED=1 in the environment: without compiled
modules. Exit codes: 0; 1 a node ended; 2 usage. It leaves nothing behind.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from nodes import Load, Nodes, experiment, wait_for
from page_cost import pairs, spent, told

from paxoskv import Client
from paxoskv.program import positive


@contextmanager
def recording(nodes: Nodes) -> Iterator[None]:
    """All nodes record."""
    with Client(nodes.settings) as client:
        for on in (True, False):
            for node in nodes.ids:
                client.trace(node, on)
            if on:
                yield


def measure(nodes: Nodes, options: argparse.Namespace) -> None:
    nodes.begin(pinned=True)
    pids = [child.pid for child in nodes.children.values()]
    loads = [Load(nodes.settings, index) for index in range(options.clients)]

    def done() -> float:
        return float(sum(each.count for each in loads))

    try:
        wait_for(lambda: all(each.count > 50 for each in loads), "the clients get answers")
        work = pairs(
            options.pairs, options.seconds, lambda: recording(nodes), lambda: 1e3 * spent(pids), done
        )
        busy = pairs(options.pairs, options.seconds, lambda: recording(nodes), done)
    finally:
        for each in loads:
            each.stop()
    print("an operation takes", told([100 * (b / a - 1) for a, b in work], "% more processor time"))
    print("recording leaves", told([100 * b / a for a, b in busy], "% of the operations"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=positive, default=5, help="of spans, without and with (default: 5)")
    parser.add_argument("--seconds", type=float, default=5.0, help="that a span lasts (default: 5)")
    parser.add_argument("--clients", type=positive, default=2, help="of the load (default: 2)")
    return experiment(partial(measure, options=parser.parse_args()), 5)


if __name__ == "__main__":
    sys.exit(main())
