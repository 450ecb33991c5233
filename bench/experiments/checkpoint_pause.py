#!/usr/bin/env python3
"""How long a node's event loop stands still because of a checkpoint, measured from outside.

    .venv/bin/python bench/experiments/checkpoint_pause.py --keys 1000000 --size 100

Starts nodes of its own, fills them, then reads from one of them, one local read after the other, during a
checkpoint and for as long without one. What such a read takes at most is the pause, and what the machine
adds. Then two clients write and read while each node in turn makes a checkpoint, and after each for as long
without. Prints a table.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from frame import counted, experiment, loaded, ms, parse, started, tell, write_keys

from bench.systems import Paxos
from paxoskv import Client

NODE = 1  # whose reads are measured


def during(client: Client, work: Callable[[], object]) -> list[float]:
    """Seconds that each local read took, of those that were done while the work was."""
    thread, times = threading.Thread(target=work), []
    thread.start()
    while thread.is_alive():
        begun = time.perf_counter()
        client.get("key 0", "local", NODE)
        times.append(time.perf_counter() - begun)
    return times


def measure(nodes: Paxos, keys: int, size: int) -> Iterator[Sequence[str]]:
    with Client(nodes.where, timeout=600) as client, Client(nodes.where, timeout=600) as asker:
        write_keys(nodes.where, keys, size)
        for _ in range(2):  # the second one is made on top of the first
            begun = time.perf_counter()
            with_one = during(client, partial(asker.checkpoint, NODE))
            seconds = time.perf_counter() - begun
        without = during(client, partial(time.sleep, seconds))
        status = asker.status(NODE)
        what = f"{status.keys:,} keys, {status.memory_bytes >> 20} MiB, {seconds:.2f} s for a checkpoint"
        yield what, "reads", "p99, ms", "slowest, ms", "operations per second, two clients"
        idle, busy = operations(nodes, asker.checkpoint)
        yield "without a checkpoint", str(len(without)), *ms(without, "p99_s", "max_s"), f"{idle:.0f}"
        yield "during a checkpoint", str(len(with_one)), *ms(with_one, "p99_s", "max_s"), f"{busy:.0f}"
        yield "ratio", "", "", "", f"{busy / idle:.2f}"


def operations(nodes: Paxos, work: Callable[[int], object]) -> tuple[float, float]:
    """Operations per second of two clients: as long after each node's work, and while it does the work."""
    with loaded(nodes.where) as goods:

        def count(wait: Callable[[], object]) -> tuple[int, float]:
            before, begun = counted(goods), time.perf_counter()
            wait()
            return counted(goods) - before, time.perf_counter() - begun

        idle = busy = 0
        seconds = 0.0
        for node in nodes.nodes:
            done, took = count(partial(work, node))
            busy, seconds = busy + done, seconds + took
            idle += count(partial(time.sleep, took))[0]
        return idle / seconds, busy / seconds


def main() -> None:
    options = parse(
        keys=(1_000_000, "that are written first"), size=(100, "bytes of a value"), nodes=(1, "an odd number")
    )
    with started(nodes=options.nodes, checkpoint_mb=100_000) as nodes:
        tell(measure(nodes, options.keys, options.size))


if __name__ == "__main__":
    sys.exit(experiment(main))
