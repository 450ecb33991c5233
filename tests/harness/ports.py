"""Ports on loopback that one test has for itself, even while its nodes are down.

A port that nobody listens on is not free: the node that a test has killed will want it back. So a process
that runs tests locks the ports it takes, each a byte of one file that all test runs of this user share, and
the kernel unlocks them when it ends. make_cluster.py takes others, from 10,000 on.
"""

import contextlib
import fcntl
import os
import random
import socket
import tempfile
from functools import cache
from pathlib import Path

PORTS = range(2_000, 7_000)  # cluster.json has 7001 to 7005
TAKEN: set[int] = set()  # by this process: a lock does not keep us from our own


@cache
def locks() -> int:
    """The file of locks, open as long as this process lives: closing it once would unlock all."""
    path = Path(tempfile.gettempdir()) / f"paxoskv-test-ports-{os.getuid()}"
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def free_ports(count: int = 1) -> range:
    """So many ports in a row that nobody uses, and that no other test gets. OSError where there are none."""
    for first in random.sample(PORTS[: 1 - count or None], len(PORTS) - count + 1):
        ports = range(first, first + count)
        if TAKEN.isdisjoint(ports):
            with contextlib.suppress(OSError), contextlib.ExitStack() as listening:
                for port in ports:
                    fcntl.lockf(locks(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
                    listening.enter_context(socket.create_server(("127.0.0.1", port)))
                TAKEN.update(ports)
                return ports
    raise OSError(f"no {count} ports in a row are free")


def free_port() -> int:
    """One of them."""
    return free_ports()[0]
