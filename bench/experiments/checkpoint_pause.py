#!/usr/bin/env python3
"""How long a node's event loop stands still because of a checkpoint, measured from outside.

    .venv/bin/python bench/experiments/checkpoint_pause.py --keys 1000000 --size 100

Starts nodes of its own, fills them, then reads from one of them, one local read after the other, during a
checkpoint and for as long without one. What such a read takes at most is the pause, and what the machine
adds. Then two clients write and read while each node in turn makes a checkpoint, and after each for as long
without. Prints one line of JSON.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

from nodes import Load, Nodes, experiment, p99, wait_for

from paxoskv import Client, Cluster, Command, Verb

BATCH = 1000
WARM_UP = 500  # operations


def reads(client: Client, node: int | None, until: threading.Event) -> list[float]:
    """Seconds that each read took."""
    times = []
    while not until.is_set():
        begun = time.perf_counter()
        client.get("key 0", "local", node)
        times.append(time.perf_counter() - begun)
    return times


def during(client: Client, node: int | None, work: threading.Thread) -> list[float]:
    """The reads that were done while the thread ran."""
    over = threading.Event()
    work.start()
    threading.Thread(target=lambda: (work.join(), over.set()), daemon=True).start()
    return reads(client, node, over)


def told(times: list[float]) -> dict[str, float]:
    return {
        "reads": len(times),
        "p99_ms": round(1000 * p99(times), 2),
        "max_ms": round(1000 * max(times), 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=100, help="bytes of a value (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=1, help="how many (default: %(default)s)")
    options = parser.parse_args()

    def tell(nodes: Nodes) -> None:
        nodes.begin()
        print(json.dumps(measure(nodes.settings, options)))

    return experiment(tell, options.nodes, "--set", "checkpoint_mb=100000")


def measure(settings: Cluster, options: argparse.Namespace) -> dict[str, object]:
    node = settings.nodes[0].id
    with Client(settings, timeout=600, attempt_timeout=60) as client, Client(settings, timeout=600) as asker:
        for start in range(0, options.keys, BATCH):
            keys = range(start, min(start + BATCH, options.keys))
            client.execute(
                [Command(Verb.PUT, f"key {key}", str(key).ljust(options.size, "x")) for key in keys]
            )
        for _ in range(2):  # the second one is made on top of the first
            made = threading.Thread(target=lambda: asker.checkpoint(node))
            begun = time.perf_counter()
            with_one = during(client, node, made)
            seconds = time.perf_counter() - begun
        without = during(client, node, threading.Thread(target=lambda: time.sleep(seconds)))
        status = asker.status(node)
        loaded, unloaded = operations(settings, asker.checkpoint)
        return {
            "keys": status.keys,
            "nodes": options.nodes,
            "memory_mb": status.memory_bytes >> 20,
            "checkpoint_s": round(seconds, 2),
            "without": told(without),
            "during": told(with_one),
            "operations_per_s_without": round(unloaded),
            "operations_per_s_during": round(loaded),
            "ratio": round(loaded / unloaded, 3),
        }


def operations(settings: Cluster, work: Callable[[int], object]) -> tuple[float, float]:
    """Operations per second of two clients while each node in turn does the work, and as long after each."""
    loads = [Load(settings, index) for index in range(2)]

    def count(wait: Callable[[], object]) -> tuple[int, float]:
        before, begun = sum(each.count for each in loads), time.perf_counter()
        wait()
        return sum(each.count for each in loads) - before, time.perf_counter() - begun

    try:
        wait_for(lambda: all(each.count > WARM_UP for each in loads), "the clients get answers")
        done = [0, 0]
        seconds = 0.0
        for member in settings.nodes:
            loaded, took = count(partial(work, member.id))
            unloaded, _ = count(partial(time.sleep, took))
            done, seconds = [done[0] + loaded, done[1] + unloaded], seconds + took
        return done[0] / seconds, done[1] / seconds
    finally:
        for each in loads:
            each.stop()


if __name__ == "__main__":
    sys.exit(main())
