"""Use the cluster from Python by nothing but Thrift: gen-py and TFramedTransport. See ../README.md.

usage: example.py PREFIX HOST:PORT...
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "gen-py"))

from kvstore import KeyValue
from kvstore.ttypes import Command, NotDone, Outcome, ReadMode, RequestId, Unknown, Verb
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.transport.TSocket import TSocket
from thrift.transport.TTransport import TFramedTransport, TTransportException

PATIENCE_MS = 2000  # for one call at one node
DEADLINE_S = 30  # for one call at all nodes together
LARGEST = "\N{HEDGEHOG}" * 131_072  # 524,288 bytes of UTF-8


class Cluster:
    """Calls one node until it fails, then the next."""

    def __init__(self, nodes):
        self.nodes = nodes
        self.node = 0
        self.transport = None
        self.session = self.call(lambda client: client.open_session())
        self.sequence = 0

    def client(self):
        if self.transport is None:
            host, _, port = self.nodes[self.node].rpartition(":")
            socket = TSocket(host, int(port))
            socket.setTimeout(PATIENCE_MS)
            transport = TFramedTransport(socket)
            transport.open()
            self.transport = transport
        return KeyValue.Client(TBinaryProtocol(self.transport))

    def next_node(self):
        if self.transport is not None:
            self.transport.close()
            self.transport = None
        self.node = (self.node + 1) % len(self.nodes)
        time.sleep(0.05)

    def call(self, call):
        """Do it at this node, or else at another."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                return call(self.client())
            except NotDone as error:
                if error.permanent or time.monotonic() > deadline:
                    raise
            except (Unknown, TTransportException, OSError):
                if time.monotonic() > deadline:
                    raise
            self.next_node()

    def write(self, call):
        """The same for a write: all attempts carry one number."""
        self.sequence += 1
        request = RequestId(self.session, self.sequence, self.sequence)
        return self.call(lambda client: call(client, request))

    def put(self, key, value):
        return self.write(lambda client, request: client.put(key, value, request)).outcome

    def get(self, key):
        return self.call(lambda client: client.get(key, ReadMode.LINEARIZABLE)).value


def check(name, holds):
    if not holds:
        sys.exit(f"{name}: FAILED")
    print(f"{name}: ok", flush=True)


def main(prefix, *nodes):
    cluster = Cluster(nodes)

    check("put", cluster.put(prefix + "key", "value") == Outcome.OK)
    check("get", cluster.get(prefix + "key") == "value")
    text = "\U0001f994 Zürich 漢字 \U00010348"
    check("unicode", cluster.put(prefix + text, text) == Outcome.OK and cluster.get(prefix + text) == text)
    check(
        "empty value", cluster.put(prefix + "empty", "") == Outcome.OK and cluster.get(prefix + "empty") == ""
    )
    check("absent", cluster.get(prefix + "absent") is None)
    stored = cluster.put(prefix + "largest", LARGEST) == Outcome.OK
    check("largest value", stored and cluster.get(prefix + "largest") == LARGEST)
    try:
        cluster.put(prefix + "larger", LARGEST + "x")
        check("one byte more", False)
    except NotDone as error:
        check("one byte more", error.permanent)

    def swap(expected, value):
        key = prefix + "key"
        return cluster.write(lambda client, request: client.compare_and_set(key, expected, value, request))

    mismatch = swap("something else", "new")
    check("compare", mismatch.outcome == Outcome.MISMATCH and mismatch.value == "value")
    check("set", swap("value", "new").outcome == Outcome.OK and cluster.get(prefix + "key") == "new")

    def add(delta):
        return cluster.write(lambda client, request: client.increment(prefix + "n", delta, request)).value

    check("increment", add(5) == "5" and add(-7) == "-2")
    commands = [
        Command(Verb.PUT, prefix + "batch", "1"),
        Command(Verb.INCREMENT, prefix + "batch", delta=2**40),
        Command(Verb.GET, prefix + "batch"),
        Command(Verb.DELETE, prefix + "batch"),
        Command(Verb.GET, prefix + "batch"),
    ]
    results = cluster.call(lambda client: client.execute(commands))
    check("batch", [result.outcome for result in results] == [0, 0, 0, 0, Outcome.NOT_FOUND])
    check("batch value", results[2].value == "1099511627777")

    print(f"waiting: end {nodes[cluster.node]}, then press Enter", flush=True)
    sys.stdin.readline()
    check("failover", add(10) == "8" and cluster.get(prefix + "n") == "8")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: example.py PREFIX HOST:PORT...")
    main(*sys.argv[1:])
