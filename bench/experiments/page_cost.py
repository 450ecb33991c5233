#!/usr/bin/env python3
"""What an open live page costs, measured: processor time, throughput, and how soon a kill shows.

    .venv/bin/python bench/experiments/page_cost.py --pairs 5

Starts five nodes of its own and scripts/dashboard.py. Then spans without and with an open page take turns:
first while nothing else happens (processor time of nodes and dashboard.py), then under the load of two
clients (operations). At last nodes are killed, and the time is taken until the page is told. Prints the
medians, and the lowest and highest. Exit codes: 0; 1 a node ended; 2 usage. It leaves nothing behind.
"""

import argparse
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

from nodes import PROJECT, Load, Nodes, experiment, wait_for

from paxoskv.program import positive


class Page:
    """Reads what a page is told, as a browser does."""

    def __init__(self, link: str) -> None:
        self.news: dict[str, Any] = {}
        place, _, token = link.partition("#")
        self.stream = urlopen(f"{place}events?token={token}")
        self.thread = threading.Thread(target=self._read)
        self.thread.start()
        wait_for(lambda: bool(self.news), "the page is told something")

    def _read(self) -> None:
        for line in self.stream:
            if line.startswith(b'data: {"nodes"'):
                self.news = json.loads(line[6:])

    def state(self, node: int) -> str:
        return next((str(one["state"]) for one in self.news["nodes"] if one["id"] == node), "")

    def close(self) -> None:
        self.stream.fp.raw._sock.shutdown(2)
        self.thread.join()


def spent(pids: list[int]) -> float:
    """Seconds of processor time that these processes have taken, all their threads together."""
    files = [file for pid in pids for file in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


def pairs(
    count: int,
    seconds: float,
    beside: Callable[[], AbstractContextManager[object]],
    value: Callable[[], float],
    per: Callable[[], float] = time.monotonic,
) -> list[tuple[float, float]]:
    """How much the value grows per second, or per something else: without this beside it, and with it."""
    found = []
    for number in range(count):
        grown = {}
        for with_it in (number % 2 == 0, number % 2 == 1):
            with beside() if with_it else nullcontext():
                begun, before = per(), value()
                time.sleep(seconds)
                grown[with_it] = (value() - before) / (per() - begun)
        found.append((grown[False], grown[True]))
        print(f"pair {number + 1}: {grown[False]:.4g} without, {grown[True]:.4g} with", file=sys.stderr)
    return found


def kills(nodes: Nodes, count: int, link: str) -> list[float]:
    """Seconds from the kill of a node until the page is told."""
    page, found = Page(link), []
    try:
        for number in range(count):
            node = nodes.ids[number % len(nodes.ids)]
            wait_for(lambda node=node: page.state(node) == "serving", "the page shows that it serves")
            time.sleep(random.random())
            begun = time.monotonic()
            nodes.kill(node)
            wait_for(lambda node=node: page.state(node) == "unreachable", "the page shows the kill", 0.001)
            found.append(time.monotonic() - begun)
            nodes.start(node)
            nodes.wait(node)
    finally:
        page.close()
    return found


def told(values: list[float], unit: str) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f}) {unit}"


def measure(nodes: Nodes, link: str, dashboard: int, options: argparse.Namespace) -> None:
    pids = [dashboard, *(child.pid for child in nodes.children.values())]

    def page() -> AbstractContextManager[object]:
        return closing(Page(link))

    idle = pairs(options.pairs, options.seconds, page, lambda: 100 * spent(pids))
    print(
        "an open page takes", told([b - a for a, b in idle], "% of a core, nodes and dashboard.py together")
    )
    loads = [Load(nodes.settings, index) for index in range(options.clients)]
    try:
        wait_for(lambda: all(each.count > 50 for each in loads), "the clients get answers")
        busy = pairs(options.pairs, options.seconds, page, lambda: float(sum(each.count for each in loads)))
    finally:
        for each in loads:
            each.stop()
    print("under load it leaves", told([100 * b / a for a, b in busy], "% of the operations"))
    print("a kill shows after", told(kills(nodes, options.kills, link), "s"))


def beside_dashboard(nodes: Nodes, options: argparse.Namespace) -> None:
    """Measure while scripts/dashboard.py runs."""
    nodes.begin(pinned=True)
    words = ["--cluster", nodes.file, "--data", nodes.directory / "data"]
    command = [sys.executable, PROJECT / "scripts" / "dashboard.py", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as dashboard:
        try:
            assert dashboard.stdout is not None
            measure(nodes, dashboard.stdout.readline().strip(), dashboard.pid, options)
        finally:
            dashboard.terminate()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=positive, default=5, help="of spans, without and with (default: 5)")
    parser.add_argument("--seconds", type=float, default=10.0, help="that a span lasts (default: 10)")
    parser.add_argument("--clients", type=positive, default=2, help="of the load (default: 2)")
    parser.add_argument("--kills", type=positive, default=10, help="(default: 10)")
    return experiment(partial(beside_dashboard, options=parser.parse_args()), 5)


if __name__ == "__main__":
    sys.exit(main())
