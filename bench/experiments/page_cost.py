#!/usr/bin/env python3
"""What an open live page costs, measured: processor time, throughput, and how soon a kill shows.

    .venv/bin/python bench/experiments/page_cost.py --pairs 5

Starts five nodes of its own and scripts/dashboard.py. Then spans without and with an open page take turns:
first while nothing else happens (processor time of nodes and dashboard.py), then under the load of clients
(operations). At last nodes are killed, and the time is taken until the page is told. Prints the medians, and
the lowest and highest. Exit codes: 0; 1 a node ended; 2 usage. It leaves nothing behind.
"""

import argparse
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from frame import PROJECT, counted, experiment, loaded, pairs, parse, started, tell

from bench.systems import Paxos, until
from bench.tables import Cell, spread


class Pinned(Paxos):
    """Each node stays at one processor."""

    def serve(self, node: int, *words: object) -> None:
        super().serve(node, "--cpu", node, *words)


class Page:
    """Reads what a page is told, as a browser does."""

    def __init__(self, link: str) -> None:
        self.news: dict[str, Any] = {}
        place, _, token = link.partition("#")
        self.stream = urlopen(f"{place}events?token={token}")
        self.thread = threading.Thread(target=self._read)
        self.thread.start()
        until("the page is told something", lambda: self.news)

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


def growth(value: Callable[[], float], seconds: float, link: str, with_page: bool) -> float:
    """How much the value grows per second, with an open page or without."""
    with closing(Page(link)) if with_page else nullcontext():
        begun, before = time.monotonic(), value()
        time.sleep(seconds)
        return (value() - before) / (time.monotonic() - begun)


def kills(nodes: Paxos, count: int, link: str) -> list[float]:
    """Seconds from the kill of a node until the page is told."""
    found = []
    with closing(Page(link)) as page:
        for number in range(count):
            node = nodes.nodes[number % len(nodes.nodes)]
            until("the page shows that it serves", lambda node=node: page.state(node) == "serving")
            time.sleep(random.random())
            begun = time.monotonic()
            nodes.kill(node)
            until("the page shows the kill", lambda node=node: page.state(node) == "unreachable", 0.001)
            found.append(time.monotonic() - begun)
            nodes.serve(node)
            nodes.wait(node)
    return found


def measure(nodes: Paxos, link: str, dashboard: int, options: argparse.Namespace) -> Iterator[list[Cell]]:
    pids = [dashboard, *(server.pid for server in nodes.servers.values())]
    yield ["an open page", "median (lowest-highest)"]
    idle = pairs(options.pairs, partial(growth, lambda: 100 * spent(pids), options.seconds, link))
    yield ["takes, % of a core, nodes and dashboard.py together", spread([b - a for a, b in idle])]
    with loaded(nodes.where, options.clients) as goods:
        busy = pairs(options.pairs, partial(growth, lambda: counted(goods), options.seconds, link))
    yield ["leaves, % of the operations under load", spread([100 * b / a for a, b in busy])]
    yield ["shows a kill after, s", spread(kills(nodes, options.kills, link))]


def main() -> None:
    options = parse(
        pairs=(5, "of spans, without and with"), seconds=(10.0, "that a span lasts"),
        clients=(2, "of the load"), kills=(10, "of nodes"),
    )  # fmt: skip
    with started(Pinned) as nodes:
        command = [PROJECT / "scripts" / "dashboard.py", *nodes.target, "--data", nodes.directory / "data"]
        dashboard = nodes.spawn("dashboard", sys.executable, *command, stdout=subprocess.PIPE)
        tell(measure(nodes, dashboard.stdout.readline().strip(), dashboard.pid, options))


if __name__ == "__main__":
    sys.exit(experiment(main))
