#!/usr/bin/env python3
"""Sends batches of PUTs with `execute`, from one process, and measures them; for run.py.

Prints "ready" when it is connected and has its session, and begins when it gets a line on stdin. Then one
line of JSON: when the first batch was sent and the last one answered (seconds by the monotonic clock, which
all processes share), the latency of each batch, and how many failed.
"""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from paxoskv import program

program.begin(*program.PACKAGES)

from paxoskv import AsyncClient, ClientError, Command, Verb, load
from paxoskv.wire.connection import new_event_loop

KEYS = 500


async def run(options: argparse.Namespace) -> None:
    """All batches, so many under way at a time."""
    target = options.single or load(options.cluster)
    async with AsyncClient(target, timeout=30.0, first=options.first) as client:
        await client.connect()
        await client.open_session()
        print("ready", flush=True)
        sys.stdin.readline()
        latencies: list[float] = []
        errors: list[str] = []
        numbers = iter(range(options.batches))

        async def lane() -> None:
            for number in numbers:
                commands = [
                    Command(
                        Verb.PUT,
                        f"{options.own}key-{(number * options.size + i) % KEYS}",
                        f"value-{number}-{i}",
                    )
                    for i in range(options.size)
                ]
                begin = time.monotonic()
                try:
                    await client.execute(commands)
                except ClientError as error:
                    errors.append(str(error))
                else:
                    latencies.append(time.monotonic() - begin)

        began = time.monotonic()
        await asyncio.gather(*(lane() for _ in range(options.in_flight)))
        answer: dict[str, Any] = {"began": began, "ended": time.monotonic(), "latencies_s": latencies,
                                  "failed": len(errors), "reason": errors[0] if errors else ""}  # fmt: skip
        print(json.dumps(answer), flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Send batches of PUTs from one process, and measure them.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--cluster", metavar="FILE")
    where.add_argument("--single", metavar="HOST:PORT")
    parser.add_argument("--batches", type=int, default=100, help="how many (default: 100)")
    parser.add_argument("--size", type=int, default=100, help="commands in each (default: 100)")
    parser.add_argument("--in-flight", type=int, default=1, help="batches under way (default: 1)")
    parser.add_argument("--own", default="", help="how the keys begin")
    parser.add_argument("--first", type=int, default=0, help="index of the node to begin with (default: 0)")
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
