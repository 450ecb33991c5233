"""What the two clients share: the addresses of the nodes, the settings, and the limits."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from paxoskv.client.operations import (
    Calls,
    Greeting,
    NoNodeReachable,
    Operation,
    ReadName,
    Stranger,
    Unfit,
    WrongCluster,
)
from paxoskv.client.scanning import Scan
from paxoskv.config import Cluster, address_text, parse_address, split_address
from paxoskv.wire.codec import Compacted, Expired, Forgotten, NotDone, Unknown
from paxoskv.wire.connection import tls_contexts
from paxoskv.wire.structs import Membership, Range

# Seconds for an operation, and for its first attempt at each node, unless the caller says otherwise.
TIMEOUT_S, ATTEMPT_TIMEOUT_S = 10.0, 1.0
# Bytes of the longest answer. (A page of a scan fits a client's frame, but the results of a batch may not.)
MAX_ANSWER = 64 << 20
# After these errors a connection can be used again: the node answered, or nothing was sent.
HARMLESS = (NotDone, Unknown, Expired, Forgotten, Compacted, Unfit)


class Address(NamedTuple):
    """The address of a node; its text is the node's name in messages. A single server has no id."""

    id: int | None
    host: str
    port: int

    def __str__(self) -> str:
        where = address_text(self.host, self.port)
        return where if self.id is None else f"node {self.id} ({where})"


def addresses_of(cluster: Cluster | str) -> list[Address]:
    """Return the nodes of a cluster, or the single server at HOST:PORT; raise ValueError for other text."""
    if not isinstance(cluster, str):
        return [Address(member.id, member.host, member.port) for member in cluster.nodes]
    return [Address(None, *split_address(cluster))]


class BaseClient:
    """The nodes, the operations and the settings of a client, of either kind."""

    def __init__(
        self,
        cluster: Cluster | str,
        *,
        timeout: float = TIMEOUT_S,
        attempt_timeout: float = ATTEMPT_TIMEOUT_S,
        first: int = 0,
    ) -> None:
        """Make a client of a cluster, or of a single server at HOST:PORT, without connecting it yet.

        On each connection to a node of a cluster it asks first whether this is that node of that cluster.
        An operation may take `timeout` seconds; after `attempt_timeout` seconds without an answer it tries
        the next node. `first` is the index, modulo the number of nodes, of the node to begin with.
        ValueError: no address. OSError: the certificates of the cluster cannot be used.
        """
        self.nodes = addresses_of(cluster)
        self.members = [] if isinstance(cluster, str) else [
            Membership(cluster.name, cluster.digest, member.id) for member in cluster.nodes
        ]  # fmt: skip
        self.calls = Calls([str(node) for node in self.nodes], timeout, attempt_timeout, first)
        self.calls.learn = self.learn if self.members else None
        self._since: dict[int, int] = {}  # by node: since when it is where we think it is
        self._timeout = timeout
        tls = None if isinstance(cluster, str) else cluster.tls
        own = tls and tls.of("client")
        self._tls = tls_contexts(own.certificate, own.key, own.authority)[1] if own else None
        self._begin()

    def _begin(self) -> None:
        """Prepare the connections, in the way of each kind of client."""
        raise NotImplementedError

    def run(self, operation: Operation[Any]) -> Any:
        """Carry out an operation, in the way of each kind of client."""
        raise NotImplementedError

    def scan(
        self,
        prefix: str = "",
        start_after: str = "",
        limit: int | None = None,
        read: ReadName = "linearizable",
        node: int | None = None,
        *,
        start: str | None = None,
        end: str | None = None,
        reverse: bool = False,
        keys_only: bool = False,
    ) -> Scan:
        """Return the items whose keys begin with the prefix and lie from `start` to below `end`, in order.

        They come by `for`, or from a client for asyncio by `async for`. Keys are ordered by code point;
        `reverse`: the last one comes first. They come after `start_after`, in that order. At most `limit`
        items come; None means all. `keys_only`: the values are empty. They are fetched page by page on
        demand. Each page is as fresh as `read` says and may take an operation's time. The whole is no
        snapshot, unless Scan.of_one_state says so.
        """
        wanted = Range(prefix, start, end, start_after or None, reverse or None, limit, keys_only or None)
        return Scan(self.run, self.calls, wanted, read, self._index(node))

    def greeting(self, node: int) -> Greeting | None:
        """Return the first call to the node with this index; None if any node will do."""
        return Greeting(self.members[node], self.learn) if self.members else None

    def learn(self, membership: Membership) -> None:
        """A node has said where the others are now: that takes precedence over the cluster's file.

        A node that was away may say what was so before: the latest agreement holds, and of itself a node is
        not believed, because it answers here.
        """
        for moved in membership.moved or ():
            if moved.node == membership.node or moved.since <= self._since.get(moved.node, 0):
                continue
            try:
                address = Address(moved.node, *parse_address(moved.address))
            except ValueError:  # of a later version, perhaps: what is known of the node holds
                continue
            self._since[moved.node] = moved.since
            for index, node in enumerate(self.nodes):
                if node.id == moved.node and node != address:
                    self.nodes[index] = address
                    self.calls.renamed(index, str(self.nodes[index]))
                    self._moved(index)

    def _moved(self, node: int) -> None:
        """Leave the connection to this node, which has another address, in the way of each kind of client."""
        raise NotImplementedError

    def _index(self, node: int | None) -> int | None:
        """Return the index of the node with this id; raise ValueError if there is none."""
        if node is None:
            return None
        for index, known in enumerate(self.nodes):
            if known.id == node:
                return index
        raise ValueError(f"there is no node {node}")

    def _check_reachable(self, errors: Sequence[BaseException]) -> None:
        """Raise NoNodeReachable if there is an error for each of the nodes, in their order."""
        if len(errors) < len(self.nodes):
            return
        for node, error in zip(self.nodes, errors, strict=True):
            if isinstance(error, Stranger):
                raise WrongCluster(f"{node}: {error}")
        reasons = [f"{node}: {error}" for node, error in zip(self.nodes, errors, strict=True)]
        raise NoNodeReachable(f"no node can be reached: {'; '.join(reasons)}")


def described(what: str, error: Exception) -> str:
    """Say what happened and why, in one line."""
    if isinstance(error, ConnectionError) and error.errno:
        return f"{what}: {os.strerror(error.errno)}"  # asyncio replaces the system's message by its own
    return f"{what}: {getattr(error, 'strerror', None) or error or type(error).__name__}"
