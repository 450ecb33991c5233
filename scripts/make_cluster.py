#!/usr/bin/env python3
"""Print a cluster file for nodes on this machine, on ports that are free now.

usage: make_cluster.py [--nodes N] [--port P] [--name NAME] [--set FIELD=JSON ...]
"""

import argparse
import contextlib
import json
import random
import socket
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from paxoskv import program

program.begin()

from paxoskv.config import ClusterError, load

PORTS = range(10_000, 32_768)  # Linux takes those of outgoing connections from 32,768 on


def free_ports(count: int) -> list[int]:
    """Different ports on loopback that nobody uses at this moment.

    Not from the range that outgoing connections take theirs from: while a node is down, one of them could
    take the node's port. (A connection to a dead node may even meet itself.)
    """
    ports: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        if len(ports) == count:
            break
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
    return ports


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Print a cluster file for nodes on this machine, on free ports."
    )
    parser.add_argument("--nodes", type=int, default=5, help="how many, an odd number (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, help="of node 1; the others have the next ones (default: any that are free now)"
    )
    parser.add_argument("--name", default="local", help="the cluster's name (default: %(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=JSON", help="another field of the file"
    )
    options = parser.parse_args()
    ports = free_ports(options.nodes)
    if options.port is not None:
        ports = list(range(options.port, options.port + options.nodes))
    cluster = {
        "name": options.name,
        "nodes": [{"id": i, "host": "127.0.0.1", "port": port} for i, port in enumerate(ports, start=1)],
    }
    for field in options.set:
        name, _, value = field.partition("=")
        try:
            cluster[name] = json.loads(value)
        except ValueError as error:
            print(f"make_cluster.py: --set {field}: {error}", file=sys.stderr)
            return 2
    if not {"tls", "insecure"} & set(cluster):  # the first node that starts makes the file
        cluster.setdefault("secret", f"{options.name}.secret")
    text = json.dumps(cluster, indent=2) + "\n"
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:  # by the rules of those who will read it
        file.write(text)
        file.flush()
        try:
            load(file.name)
        except ClusterError as error:
            print(f"make_cluster.py: {str(error).removeprefix(f'{file.name}: ')}", file=sys.stderr)
            return 2
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
