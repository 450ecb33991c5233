#!/usr/bin/env python3
"""How long a node's event loop is busy with one page of a scan, by the kind of scan.

    .venv/bin/python bench/experiments/scan_pages.py --keys 1000000 --size 100 --pages 1000

In one process, on the code that the node runs: the store finds the page, and the answer is encoded. Pages
begin at random keys. The first scan of a node puts the keys in order, in pieces, which are told as `sort`.
Prints a table: milliseconds of a processor, at the median, at 99 of 100, and at most. What others take of
the processor meanwhile is not counted.
"""

import gc
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from frame import experiment, ms, parse, tell

from paxoskv import compiled

compiled.use()

from paxoskv.state.store import Store
from paxoskv.wire.codec import encode
from paxoskv.wire.methods import METHODS
from paxoskv.wire.structs import Batch, Command, Page, Position, Range, Verb
from paxoskv.wire.validation import MAX_CLIENT_FRAME

BATCH = 1000
PAGE = 1000  # items


def filled(keys: int, size: int) -> Store:
    """A store with so many keys, put in no order, of values of so many characters."""
    store, order = Store("never-written.json"), list(range(keys))
    random.shuffle(order)
    for first in range(0, keys, BATCH):
        commands = [Command(Verb.PUT, key_of(number), "v" * size) for number in order[first : first + BATCH]]
        store.apply(first + 1, 1, encode(Batch(commands)))
    return store


def key_of(number: int) -> str:
    return f"key/{number:09d}"


def steps(work: Iterable[object]) -> Iterator[float]:
    """Seconds of a processor that each step takes."""
    began = time.thread_time()
    for _ in work:
        yield time.thread_time() - began
        began = time.thread_time()


def measure(keys: int, size: int, pages: int) -> Iterator[list[str]]:
    columns = ("p50_s", "p99_s", "max_s")
    yield [f"{keys:,} keys of {size} characters", "p50, ms", "p99, ms", "at most, ms"]
    store = filled(keys, size)
    gc.freeze()
    gc.disable()
    yield ["sort", *ms([*steps(store.sort())], *columns)]
    method = METHODS[b"scan_range"]

    def page(wanted: Range) -> bytes:
        count = store.count(wanted) if wanted.counted else None
        found = store.page(wanted, PAGE, MAX_CLIENT_FRAME) if count is None else ([], False)
        return method.reply(1, Page(*found, store.position[0], Position(*store.position), count))

    def anywhere() -> str:
        return key_of(random.randrange(keys))

    kinds: dict[str, Callable[[], Range]] = {
        "forward": lambda: Range("key/", after=anywhere()),
        "reverse": lambda: Range("key/", after=anywhere(), reverse=True),
        "range": lambda: Range(start=anywhere(), below=anywhere()),
        "keys_only": lambda: Range("key/", after=anywhere(), keys_only=True),
        "count": lambda: Range(start=anywhere(), counted=True),
    }
    for name, make in kinds.items():
        yield [name, *ms([*steps(page(make()) for _ in range(pages))], *columns)]


def main() -> None:
    options = parse(
        keys=(1_000_000, "of the store"), size=(100, "characters of each value"), pages=(1000, "of each kind")
    )
    tell(measure(options.keys, options.size, options.pages))


if __name__ == "__main__":
    sys.exit(experiment(main))
