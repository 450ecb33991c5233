#!/usr/bin/env python3
"""Measures five hosts from a sixth, with the delays of a data center or of five regions between them.

    distances.py [--regions] [-- OPTION OF bench.sh ...]

The hosts are network namespaces; `scripts/bench.sh --cluster` runs in the sixth. What holds the packets back
is a process between their tun devices, because not every kernel has netem. It takes a share of the processor,
so of short delays only comparisons in one run say something. Needs root and /dev/net/tun.

Before the tables it prints what the delays alone make of a PUT: the client's round trip to the node, and the
node's to the farthest other one, since own-logs waits for all live nodes.
"""

import argparse
import contextlib
import ctypes
import fcntl
import heapq
import itertools
import json
import os
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

PROJECT = Path(__file__).resolve().parents[2]
PYTHON: Final = PROJECT / ".venv" / "bin" / "python"

HOSTS: Final = (1, 2, 3, 4, 5)
CLIENT: Final = 6
NEAR_MS: Final = 0.2  # round trip in one data center
# Usual round trips in ms between Virginia, Oregon, Ireland, Tokyo and Sao Paulo; the client is in Virginia.
REGIONS: Final = {
    (1, 2): 68.0, (1, 3): 68.0, (1, 4): 150.0, (1, 5): 115.0, (2, 3): 125.0, (2, 4): 98.0, (2, 5): 175.0,
    (3, 4): 205.0, (3, 5): 178.0, (4, 5): 257.0,
}  # fmt: skip
CLONE_NEWNET: Final = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
PACKET: Final = 65536
SPIN_S: Final = 0.002  # epoll sleeps in whole milliseconds

RoundTrip = Callable[[int, int], float]  # ms between two machines


def near(_one: int, _other: int) -> float:
    """All in one data center."""
    return NEAR_MS


def far(one: int, other: int) -> float:
    """Each host in a region of its own."""
    one, other = sorted(1 if number == CLIENT else number for number in (one, other))
    return REGIONS.get((one, other), NEAR_MS)


def predicted_ms(round_trip: RoundTrip) -> float:
    """What the delays make of a PUT, on average over the nodes, which a client visits in turn."""
    return statistics.fmean(
        round_trip(CLIENT, node) + max(round_trip(node, other) for other in HOSTS if other != node)
        for node in HOSTS
    )


def ip(*words: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *words], check=True)


def tun(namespace: str) -> int:
    """Make the device tun0 in a namespace, and return what its packets are read from and written to."""
    libc = ctypes.CDLL(None, use_errno=True)
    here, there = os.open("/proc/self/ns/net", os.O_RDONLY), os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        if libc.setns(there, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))
    finally:
        libc.setns(here, CLONE_NEWNET)
        os.close(here)
        os.close(there)
    return device


def forward(devices: dict[int, int], round_trip: RoundTrip) -> None:
    """Hand each packet on when its time has come, for ever."""
    poll = select.epoll()
    for device in devices.values():
        poll.register(device, select.EPOLLIN)
    numbers = {device: number for number, device in devices.items()}
    held: list[tuple[float, int, int, bytes]] = []
    order = itertools.count()
    while True:
        wait = held[0][0] - time.monotonic() if held else -1
        for device, _ in poll.poll(wait if not held else max(wait - SPIN_S, 0)):
            with contextlib.suppress(BlockingIOError):
                packet = os.read(device, PACKET)
                to = packet[19] if packet[0] >> 4 == 4 else 0  # the last byte of an IPv4 destination
                if to in devices:
                    due = time.monotonic() + round_trip(numbers[device], to) / 2000
                    heapq.heappush(held, (due, next(order), devices[to], packet))
        while held and held[0][0] <= time.monotonic():
            with contextlib.suppress(BlockingIOError):
                os.write(held[0][2], held[0][3])
            heapq.heappop(held)


@contextlib.contextmanager
def network(round_trip: RoundTrip) -> Iterator[dict[int, str]]:
    """The namespaces of all machines by their numbers; they are gone when the block is left."""
    names = {number: f"distance{os.getpid()}-{number}" for number in (*HOSTS, CLIENT)}
    devices: dict[int, int] = {}
    forwarder = 0
    try:
        for number, name in names.items():
            ip("netns", "add", name)
            devices[number] = tun(name)
            ip("-n", name, "address", "add", f"10.0.0.{number}/24", "dev", "tun0")
            for device in ("lo", "tun0"):
                ip("-n", name, "link", "set", device, "up")
        forwarder = os.fork()
        if not forwarder:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            forward(devices, round_trip)
        yield names
    finally:
        if forwarder:
            os.kill(forwarder, signal.SIGKILL)
            os.waitpid(forwarder, 0)
        for device in devices.values():
            os.close(device)
        for name in names.values():
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def measure(round_trip: RoundTrip, options: Sequence[str], directory: Path) -> int:
    """Start the servers, run bench.sh in the client's namespace, and stop them; returns its exit code."""
    file = directory / "cluster.json"
    nodes = [{"id": number, "host": f"10.0.0.{number}", "port": 7001} for number in HOSTS]
    settings = {"revoke_after_s": 2, "insecure": True}
    file.write_text(json.dumps({"name": "distances", "nodes": nodes, "data": "data", **settings}))
    commands = {number: ["--cluster", str(file), "--id", str(number), "--init"] for number in HOSTS}
    single = ["--standalone", "--listen", "10.0.0.1:7100", "--data", str(directory / "single")]
    with network(round_trip) as names, contextlib.ExitStack() as stack:
        for number, words in [*commands.items(), (1, single)]:
            inside = ["ip", "netns", "exec", names[number]]
            command = [*inside, str(PYTHON), str(PROJECT / "server.py"), *words]
            log = stack.enter_context((directory / "servers.log").open("ab"))
            server = subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log)
            stack.callback(server.wait)
            stack.callback(server.kill)
        target = ["--cluster", str(file), "--single", "10.0.0.1:7100"]
        bench = [str(PYTHON), str(PROJECT / "bench" / "run.py"), *target, *options]
        return subprocess.run(["ip", "netns", "exec", names[CLIENT], *bench], check=False).returncode


def main() -> int:
    """Run the command line; returns the exit code."""
    what, _, how = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=how, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--regions", action="store_true", help="five regions instead of one data center")
    parser.add_argument("options", nargs="*", metavar="OPTION", help="of scripts/bench.sh, behind --")
    options = parser.parse_args()
    if os.geteuid() or not os.path.exists("/dev/net/tun"):
        print("distances.py: needs root and /dev/net/tun", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was made is removed
    round_trip = far if options.regions else near
    print(f"the delays alone make {predicted_ms(round_trip):.1f} ms of a PUT")
    with tempfile.TemporaryDirectory(prefix="distances-") as directory:
        try:
            return measure(round_trip, options.options, Path(directory))
        except KeyboardInterrupt:
            return 130


if __name__ == "__main__":
    sys.exit(main())
