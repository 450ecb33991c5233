#!/usr/bin/env python3
"""What watches cost whoever writes: puts at one of three nodes, with 1,000 watches there and without.

    bench/experiments/watchers.py                   each watch has a prefix of its own
    bench/experiments/watchers.py --same            all of them have one, so that each put is told 1,000 times

Each watch has a connection of its own; a process beside the nodes has all. Puts come at a fixed rate, and
runs without and with watches alternate. Exit codes: 0; 1 a node ended; 2 usage.
"""

import argparse
import asyncio
import multiprocessing
import sys
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.synchronize import Event

from frame import experiment, ms, pairs, parse, started, tell

from bench.systems import beside
from bench.tables import Cell, spread
from paxoskv import AsyncClient, Client
from paxoskv.client.report import latency


def prefix(number: int, same: bool) -> str:
    return "watched/" if same else f"watched {number}/"


async def _watch(address: str, count: int, same: bool, ready: Event, over: Event) -> int:
    """Keep so many watches; return how many changes they were told."""
    clients = [AsyncClient(address) for _ in range(count)]
    watches = [await client.watch(prefix(number, same)) for number, client in enumerate(clients)]
    told = [0] * count

    async def follow(number: int) -> None:
        async for _ in watches[number]:
            told[number] += 1

    tasks = [asyncio.create_task(follow(number)) for number in range(count)]
    ready.set()
    while not over.is_set():
        await asyncio.sleep(0.1)
    for task, client in zip(tasks, clients, strict=True):
        task.cancel()
        client.close()
    return sum(told)


def watching(*arguments: object) -> int:
    return asyncio.run(_watch(*arguments))  # type: ignore[arg-type]


def latencies(address: str, options: argparse.Namespace) -> list[float]:
    """Put at the rate for so long; return the seconds that each took."""
    times = []
    with Client(address) as client:
        client.put("warm", "up")
        began = time.perf_counter()
        for number in range(int(options.rate * options.seconds)):
            time.sleep(max(0.0, began + number / options.rate - time.perf_counter()))
            start = time.perf_counter()
            client.put(prefix(number % options.watches, options.same) + "key", "value")
            times.append(time.perf_counter() - start)
    return times


def run(address: str, options: argparse.Namespace, rows: list[list[Cell]], watched: bool) -> float:
    """Measure once, with watches or without; add a row, and return the p99."""
    told = 0
    if watched:
        context = multiprocessing.get_context("spawn")
        ready, over = context.Event(), context.Event()
        results, child = beside(watching, address, options.watches, options.same, ready, over)
        ready.wait()
    times = latencies(address, options)
    if watched:
        over.set()
        told = results.recv()
        child.join()
    rows.append([str(options.watches * watched), *ms(times, "p50_s", "p99_s"), f"{told:,}"])
    return latency(times)["p99_s"] or 0.0


def measure(address: str, options: argparse.Namespace) -> Iterator[list[Cell]]:
    yield ["watches", "p50, ms", "p99, ms", "changes told"]
    rows: list[list[Cell]] = []
    found = pairs(options.pairs, partial(run, address, options, rows))
    yield from rows
    yield ["times as long", "", spread([b / a for a, b in found]), ""]


def main() -> None:
    options = parse(
        same=(False, "all watches have one prefix"), watches=(1000, "how many"),
        rate=(200.0, "puts per second"), seconds=(12.0, "of each run"), pairs=(3, "of runs"),
    )  # fmt: skip
    with started(nodes=3) as nodes:
        tell(measure(f"127.0.0.1:{nodes.ports[0]}", options))


if __name__ == "__main__":
    sys.exit(experiment(main))
