"""Faults on purpose, for teaching and trying: links that are cut, and acceptors that fail.

They are switched by a file that cluster.json names ("faults"), and by nothing that comes over the network:
no client can cut a cluster whose file names none.
"""

import os

from paxoskv.config import ClusterError, load_faults
from paxoskv.node.eventlog import log
from paxoskv.node.peers import Peers
from paxoskv.protocol.faults import Failures, Faults


class Switches:
    """Does to one node what the file says, whenever it has changed."""

    def __init__(self, path: str, node: int, faults: Faults, peers: Peers) -> None:
        self.path = path
        self.node = node
        self.peers = peers
        self.faults = faults
        self.usual = faults.failures
        self.seen: tuple[int, int] | None = None  # of the file that was read: which one, and of when

    def look(self) -> None:
        """Read the file if it is another one than before; one that cannot be read changes nothing."""
        try:
            found = os.stat(self.path)
            seen = (found.st_ino, found.st_mtime_ns)
        except OSError:
            seen = None
        if seen == self.seen:
            return
        self.seen = seen
        try:
            wanted = load_faults(self.path)
        except ClusterError as error:
            log("faults", "error", reason=error)
            return
        probability = wanted.acceptors.get(str(self.node))
        self.faults.change(self.usual if probability is None else Failures(probability))
        self.peers.cut(wanted.cut_off(self.node))
        log("faults", cut=sorted(self.peers.cut_off), acceptor=self.faults.failures.probability)
