#!/usr/bin/env python3
"""One node of a PySyncObj cluster, which also drives it: PySyncObj has no clients, its nodes are the program.

usage: pysyncobj_node.py SELF OTHER,OTHER,... JOURNAL

Prints "ready" when the cluster is. Then each line on stdin is a job, {"file": F, "part": 0, "parts": 2,
"in_flight": 1}: do this part of the rows of F (PUT, GET, DELETE; contiguous parts, as `client.py run` makes
them), so many at a time. The answer is a line of JSON: when the first operation began and the last one ended
(seconds by the monotonic clock, which all processes share), the latency of each that was answered, and how
many failed. Ends with its stdin.

Reads are commands in the log, as linearizable reads have to be here: PySyncObj has no other.
"""

import csv
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pysyncobj import SyncObj, SyncObjConf, SyncObjException, replicated

TIMEOUT_S = 10.0  # of one operation, as client.py has it
TICK_S = 0.001  # how often a node looks at its queue: what it takes at most for a command to leave


class Store(SyncObj):  # type: ignore[misc]
    """Keys and values."""

    def __init__(self, own: str, others: list[str], journal: str) -> None:
        super().__init__(
            own,
            others,
            SyncObjConf(journalFile=journal, autoTickPeriod=TICK_S, appendEntriesPeriod=TICK_S),
        )
        self._values: dict[str, str] = {}

    @replicated
    def put(self, key: str, value: str) -> None:
        """Set the key."""
        self._values[key] = value

    @replicated
    def read(self, key: str) -> str | None:
        """The key's value."""
        return self._values.get(key)

    @replicated
    def delete(self, key: str) -> bool:
        """Remove the key; whether it existed."""
        return self._values.pop(key, None) is not None


def lane(store: Store, rows: Iterator[list[str]], take: threading.Lock, spans: list[Any]) -> None:
    """Do one row after the other until there is none left; adds (begin, end) or an error for each."""
    while True:
        with take:
            row = next(rows, None)
        if row is None:
            return
        begin = time.monotonic()
        try:
            if row[0] == "PUT":
                store.put(row[1], row[2], sync=True, timeout=TIMEOUT_S)
            else:
                (store.read if row[0] == "GET" else store.delete)(row[1], sync=True, timeout=TIMEOUT_S)
        except SyncObjException as error:
            spans.append(repr(error))
        else:
            spans.append((begin, time.monotonic()))


def work(store: Store, job: dict[str, Any]) -> dict[str, Any]:
    """Do a job, and say what came of it."""
    with Path(job["file"]).open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    part, parts = job["part"], job["parts"]
    mine = iter(rows[len(rows) * part // parts : len(rows) * (part + 1) // parts])
    take, spans = threading.Lock(), []
    began = time.monotonic()
    lanes = [
        threading.Thread(target=lane, args=(store, mine, take, spans), daemon=True)
        for _ in range(job["in_flight"])
    ]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join()
    errors = [span for span in spans if isinstance(span, str)]
    return {
        "began": began,
        "ended": time.monotonic(),
        "latencies_s": [end - begin for begin, end in (s for s in spans if not isinstance(s, str))],
        "failed": len(errors),
        "reason": errors[0] if errors else "",
    }


def main() -> None:
    """Serve until stdin ends."""
    own, others, journal = sys.argv[1:]
    store = Store(own, others.split(","), journal)
    while not store.isReady():
        time.sleep(0.05)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(work(store, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
