#!/usr/bin/env python3
"""How long a node's event loop stands still because of a checkpoint, measured from outside.

    .venv/bin/python scripts/checkpoint_pause.py --keys 1000000 --size 100

Starts nodes of its own, fills them, then reads from one of them, one local read after the other, during a
checkpoint and for as long without one. What such a read takes at most is the pause, and what the machine
adds. Then two clients write and read while all nodes make a checkpoint, one after the other, and for as long
without. Prints one line of JSON.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from nodes import Load, Nodes, end_by_signal, wait_for

from client import Client, ClientError, Cluster, Command, Verb

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
    ordered = sorted(times)
    return {
        "reads": len(ordered),
        "p99_ms": round(1000 * ordered[len(ordered) * 99 // 100], 2),
        "max_ms": round(1000 * ordered[-1], 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=100, help="bytes of a value (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=1, help="how many (default: %(default)s)")
    options = parser.parse_args()
    end_by_signal()
    with tempfile.TemporaryDirectory() as name:
        nodes = Nodes(Path(name), options.nodes, "--name", "pause", "--set", "checkpoint_mb=100000")
        try:
            for node in nodes.ids:
                nodes.start(node, "--init")
            print(json.dumps(measure(nodes.settings, options)))
        except (RuntimeError, KeyboardInterrupt, ClientError) as error:
            print(f"checkpoint_pause.py: {str(error) or 'interrupted'}", file=sys.stderr)
            return 1
        finally:
            nodes.end()
    return 0


def measure(settings: Cluster, options: argparse.Namespace) -> dict[str, object]:
    node = settings.nodes[0].id
    with Client(settings, timeout=600, attempt_timeout=60) as client, Client(settings, timeout=600) as asker:
        while True:
            try:
                client.put("key 0", "x" * options.size)
                break
            except ClientError as error:
                print(f"waiting: {error}", file=sys.stderr)
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
        loaded = operations(settings, lambda: [asker.checkpoint(member.id) for member in settings.nodes])
        unloaded = operations(settings, lambda: time.sleep(loaded[1]))
        return {
            "keys": status.keys,
            "nodes": options.nodes,
            "memory_mb": status.memory_bytes >> 20,
            "checkpoint_s": round(seconds, 2),
            "without": told(without),
            "during": told(with_one),
            "operations_per_s_without": round(unloaded[0] / unloaded[1]),
            "operations_per_s_during": round(loaded[0] / loaded[1]),
        }


def operations(settings: Cluster, work: Callable[[], object]) -> tuple[int, float]:
    """How many operations two clients get done meanwhile, and how many seconds it takes."""
    loads = [Load(settings, index) for index in range(2)]
    try:
        wait_for(lambda: all(each.count > WARM_UP for each in loads), "the clients get answers")
        before, begun = sum(each.count for each in loads), time.perf_counter()
        work()
        return sum(each.count for each in loads) - before, time.perf_counter() - begun
    finally:
        for each in loads:
            each.stop()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
