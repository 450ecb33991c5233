#!/usr/bin/env python3
"""How long a node's event loop is busy with one page of a scan, by the kind of scan.

    .venv/bin/python bench/experiments/scan_pages.py --keys 1000000 --size 100 --pages 1000

In one process, on the code that the node runs: the store finds the page, and the answer is encoded. Pages
begin at random keys. The first scan of a node puts the keys in order, in pieces, which are told as `sort`.
Prints one line of JSON: milliseconds of a processor, at the median, at 99 of 100, and at most. What others
take of the processor meanwhile is not counted.
"""

import argparse
import gc
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from paxoskv import compiled, program

program.begin(*program.PACKAGES)
compiled.use()

from paxoskv.state.store import Store, encode_batch
from paxoskv.wire.methods import METHODS
from paxoskv.wire.structs import Command, Page, Position, Range, Verb
from paxoskv.wire.validation import MAX_CLIENT_FRAME

BATCH = 1000
PAGE = 1000  # items


def filled(keys: int, size: int) -> Store:
    """A store with so many keys, put in no order, of values of so many characters."""
    store, order = Store("never-written.json"), list(range(keys))
    random.shuffle(order)
    for first in range(0, keys, BATCH):
        commands = [Command(Verb.PUT, key_of(number), "v" * size) for number in order[first : first + BATCH]]
        store.apply(first + 1, 1, encode_batch(commands))
    return store


def key_of(number: int) -> str:
    return f"key/{number:09d}"


def told(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(1000 * second for second in seconds)
    ninety_nine = ordered[int(0.99 * (len(ordered) - 1))]
    return {
        "p50": round(ordered[len(ordered) // 2], 3),
        "p99": round(ninety_nine, 3),
        "max": round(ordered[-1], 3),
    }


def measured(pages: int, one: Callable[[], object]) -> dict[str, float]:
    seconds = []
    for _ in range(pages):
        began = time.thread_time()
        one()
        seconds.append(time.thread_time() - began)
    return told(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description="How long one page of a scan takes.")
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=100, help="characters of each value")
    parser.add_argument("--pages", type=int, default=1000, help="of each kind")
    options = parser.parse_args()
    store = filled(options.keys, options.size)
    gc.freeze()
    gc.disable()
    sorting = []
    pieces, began = store.sort(), time.thread_time()
    for _ in pieces:
        now = time.thread_time()
        sorting.append(now - began)
        began = time.thread_time()
    method = METHODS[b"scan_range"]

    def page(wanted: Range) -> bytes:
        keys = store.count(wanted) if wanted.counted else None
        found = store.page(wanted, PAGE, MAX_CLIENT_FRAME) if keys is None else ([], False)
        return method.reply(1, Page(*found, store.position[0], Position(*store.position), keys))

    def anywhere() -> str:
        return key_of(random.randrange(options.keys))

    kinds: dict[str, Callable[[], Range]] = {
        "forward": lambda: Range("key/", after=anywhere()),
        "reverse": lambda: Range("key/", after=anywhere(), reverse=True),
        "range": lambda: Range(start=anywhere(), below=anywhere()),
        "keys_only": lambda: Range("key/", after=anywhere(), keys_only=True),
        "count": lambda: Range(start=anywhere(), counted=True),
    }
    result: dict[str, object] = {"keys": options.keys, "size": options.size, "sort": told(sorting)}
    for name, make in kinds.items():
        result[name] = measured(options.pages, lambda make=make: page(make()))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
