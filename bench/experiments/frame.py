"""What the experiments share: options, nodes of their own, clients that load these, pairs, and tables."""

import argparse
import multiprocessing
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from paxoskv import program

program.begin(*program.PACKAGES)

from bench.systems import BenchError, Paxos, beside, until
from bench.tables import Cell, lines
from paxoskv import Client, ClientError, Cluster, Command, Verb
from paxoskv.client.report import latency

KEYS = 100
WARM_UP = 50  # operations
BATCH = 1000
FAILURES: list[str] = []  # of good clients


def parse(**options: tuple[Any, ...]) -> argparse.Namespace:
    """The command line: each option has its default (False: it is a switch), its help, and perhaps a type."""
    parser = argparse.ArgumentParser(
        description=sys.modules["__main__"].__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, (default, what, *kind) in options.items():
        if default is False:
            parser.add_argument(f"--{name}", action="store_true", help=what)
        else:
            type_ = kind[0] if kind else program.positive if isinstance(default, int) else type(default)
            what = f"{what} (default: {default})"
            parser.add_argument(f"--{name}", type=type_, default=default, metavar="N", help=what)
    return parser.parse_args()


@contextmanager
def started(make: Callable[..., Paxos] = Paxos, **settings: Any) -> Iterator[Paxos]:
    """Nodes that take commands, and still do in the end; nothing is left of them."""
    with tempfile.TemporaryDirectory() as directory, make(Path(directory) / "nodes", **settings) as nodes:
        yield nodes
        until("all nodes take commands in the end", nodes.statuses)


def experiment(measure: Callable[[], object]) -> int:
    """Measure; returns the exit code: 1 if a node ended, or an operation of a good client failed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended
    try:
        measure()
    except (BenchError, ClientError, KeyboardInterrupt) as error:
        print(f"{program.name()}: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    for failure in FAILURES[:10]:
        print(failure, file=sys.stderr)
    return 1 if FAILURES else 0


# --------------------------------------------------------------------------------------------------- clients


class Good:
    """A client in a process of its own that writes and reads, and remembers when.

    So no other thread disturbs its times. `done` and `failures` are there once it has been stopped.
    """

    def __init__(self, settings: Cluster, index: int) -> None:
        self.done: list[tuple[float, float]] = []  # when each operation began, and when it was answered
        self.failures: list[str] = []
        context = multiprocessing.get_context("spawn")
        self._count, self._over = context.Value("L", 0, lock=False), context.Event()
        self._results, self._process = beside(_use, settings, index, self._count, self._over)

    @property
    def count(self) -> int:
        """Operations done so far."""
        return self._count.value

    def stop(self) -> None:
        self._over.set()
        if self._process.is_alive():
            try:
                self.done, self.failures = self._results.recv()
            except EOFError:
                self.failures.append("the client's process ended")
        self._process.join()
        FAILURES.extend(self.failures)


def _use(settings: Cluster, index: int, count: Any, over: Any) -> tuple[list[tuple[float, float]], list[str]]:
    source, done, failures = random.Random(index), [], []
    with Client(settings, first=index) as client:
        while not over.is_set():
            key, began = f"key {source.randrange(KEYS)}", time.monotonic()
            try:
                if len(done) % 2:
                    client.get(key)
                else:
                    client.put(key, str(began))
                done.append((began, time.monotonic()))
                count.value += 1
            except ClientError as error:
                failures.append(f"{type(error).__name__}: {error}")
    return done, failures


@contextmanager
def loaded(settings: Cluster, clients: int = 2) -> Iterator[list[Good]]:
    """So many good clients, which have had answers; they are stopped when the block is left."""
    goods: list[Good] = []
    try:
        goods += (Good(settings, index) for index in range(clients))
        until("the clients get answers", lambda: all(each.count > WARM_UP for each in goods))
        yield goods
    finally:
        for each in goods:
            each.stop()


def counted(goods: Iterable[Good]) -> int:
    """Operations of all of them so far."""
    return sum(each.count for each in goods)


def write_keys(settings: Cluster, count: int, size: int) -> None:
    """Put `key N` for so many numbers, with values of so many bytes."""
    with Client(settings, timeout=600, attempt_timeout=60) as client:
        for start in range(0, count, BATCH):
            keys = range(start, min(start + BATCH, count))
            client.execute([Command(Verb.PUT, f"key {key}", str(key).ljust(size, "x")) for key in keys])


# --------------------------------------------------------------------------------------------------- figures


def pairs(count: int, measure: Callable[[bool], float]) -> list[tuple[float, float]]:
    """What is measured without something and with it, so many times; which comes first alternates."""
    found = []
    for number in range(count):
        order = (number % 2 == 1, number % 2 == 0)
        values = {with_it: measure(with_it) for with_it in order}
        found.append((values[False], values[True]))
        print(f"pair {number + 1}: {values[False]:.4g} without, {values[True]:.4g} with", file=sys.stderr)
    return found


def ms(seconds: Sequence[float], *names: str) -> list[str]:
    """These of the statistics of latencies (p50_s, p99_s, max_s, ...), in milliseconds."""
    found = latency(seconds)
    return ["" if (value := found[name]) is None else f"{1000 * value:.2f}" for name in names]


def tell(rows: Iterable[Sequence[Cell]]) -> None:
    """Print a table, each row as soon as it is there; the first is the head."""
    for line in lines(rows):
        print(line, flush=True)
