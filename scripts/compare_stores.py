#!/usr/bin/env python3
"""Read every node's whole store over the wire, and compare them byte for byte.

Nodes learn of the last operations a moment later than the client does, so the comparison is repeated until
all stores are equal, for a limited time. Exit codes: 0 equal; 1 they differ; 3 a node does not answer.
"""

import argparse
import hashlib
import subprocess
import sys
import time
from pathlib import Path

CLIENT = Path(__file__).resolve().parent.parent / "client.py"
sys.path.insert(0, str(CLIENT.parent))

from paxoskv import program

program.begin(*program.PACKAGES)

from paxoskv import config as configuration


def dump(file: str, node: int) -> bytes | None:
    """A node's keys and values as JSON lines in order, or None if it does not answer."""
    command = [sys.executable, str(CLIENT), "dump", "--node", str(node), "--cluster", file]
    done = subprocess.run(command, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the nodes' stores byte for byte, over the wire.")
    parser.add_argument("--cluster", default="cluster.json", metavar="FILE", help="(default: %(default)s)")
    parser.add_argument(
        "--within", type=float, default=10, metavar="S", help="how long to wait until they are equal"
    )
    options = parser.parse_args()
    try:
        nodes = [node.id for node in configuration.load(options.cluster).nodes]
    except configuration.ClusterError as error:
        print(f"compare_stores.py: {error}", file=sys.stderr)
        return 2
    deadline = time.monotonic() + options.within
    while True:
        stores = {node: dump(options.cluster, node) for node in nodes}
        if len(set(stores.values())) == 1 and None not in stores.values():
            break
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    for node, store in stores.items():
        shown = "no answer"
        if store is not None:
            lines = store.count(b"\n")
            shown = f"{lines:6} keys  SHA-256 {hashlib.sha256(store).hexdigest()}"
        print(f"node {node}: {shown}")
    if None in stores.values():
        return 3
    equal = len(set(stores.values())) == 1
    print("all stores are equal" if equal else "THE STORES DIFFER")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
