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
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from statistics import median

from nodes import Nodes, experiment, p99, signals_wait

from paxoskv import AsyncClient, Client


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


def watching(address: str, count: int, same: bool, ready: Event, over: Event, results: "Queue[int]") -> None:
    results.put(asyncio.run(_watch(address, count, same, ready, over)))


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


def run(address: str, count: int, options: argparse.Namespace) -> float:
    """Measure once, with so many watches; print it, and return the p99."""
    context = multiprocessing.get_context("spawn")
    ready, over, results = context.Event(), context.Event(), context.Queue()
    told = 0
    if count:
        arguments = (address, count, options.same, ready, over, results)
        child = context.Process(target=watching, args=arguments, daemon=True)
        with signals_wait():
            child.start()
        ready.wait()
    times = latencies(address, options)
    if count:
        over.set()
        told = results.get()
        child.join()
    p50, slow = 1000 * median(times), p99(times)
    print(f"{count:5} watches: p50 {p50:6.2f} ms, p99 {1000 * slow:6.2f} ms, {told:,} told", flush=True)
    return slow


def measure(nodes: Nodes, options: argparse.Namespace) -> None:
    nodes.begin()
    member = nodes.settings.member(1)
    address = f"{member.host}:{member.port}"
    for _ in range(options.pairs):
        without = run(address, 0, options)
        print(f"p99: {run(address, options.watches, options) / without:.2f} times as long")


def main() -> int:
    parser = argparse.ArgumentParser(description="The latency of puts with watches and without.")
    parser.add_argument("--same", action="store_true", help="all watches have one prefix")
    parser.add_argument("--watches", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--rate", type=float, default=200.0, help="puts per second (default: 200)")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each run (default: 12)")
    parser.add_argument("--pairs", type=int, default=3, help="of runs (default: 3)")
    return experiment(partial(measure, options=parser.parse_args()), 3)


if __name__ == "__main__":
    sys.exit(main())
