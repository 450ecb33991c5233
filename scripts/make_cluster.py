#!/usr/bin/env python3
"""Print a cluster file for nodes on this machine, on ports that are free now.

usage: make_cluster.py [--nodes N] [--name NAME] [--set FIELD=JSON ...]
"""

import argparse
import json
import socket
import sys


def free_ports(count: int) -> list[int]:
    """Different ports on loopback that nobody uses at this moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Print a cluster file for nodes on this machine, on free ports."
    )
    parser.add_argument("--nodes", type=int, default=5, help="how many, an odd number (default: %(default)s)")
    parser.add_argument("--name", default="local", help="the cluster's name (default: %(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=JSON", help="another field of the file"
    )
    options = parser.parse_args()
    ports = free_ports(options.nodes)
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
    print(json.dumps(cluster, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
