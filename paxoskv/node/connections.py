"""The connections that others made: how many there may be, and which one leaves if there are too many."""

import contextlib
import itertools
import resource
from typing import Final

from paxoskv.node.eventlog import log
from paxoskv.node.metrics import Counts
from paxoskv.wire.codec import Malformed
from paxoskv.wire.connection import Connection

MOST_CONNECTIONS: Final = 10_000  # of clients and peers, at most
OTHER_FILES: Final = 600  # that are kept free: journal, checkpoints, links to 254 peers, metrics
MAX_WAITING: Final = 256 << 20  # bytes of clients' calls that have not come whole, and of unread answers
MAX_HUNG_UP: Final = 10  # connections in a second, of which each has a line in the log


class Connections:
    """The connections of clients and peers, as long as they last."""

    def __init__(self, counts: Counts, most: int) -> None:
        """`most`: how many there may be."""
        self.counts = counts
        self.most = most
        self.open: dict[Connection, None] = {}  # oldest first
        self.silent: dict[Connection, None] = {}  # those of them that had said nothing when last looked at
        self.crowded = 0  # of them hung up since the last sweep, because there were too many
        self.hung_up = 0  # that sent something else, or dawdled, since the last sweep

    def made(self, connection: Connection) -> None:
        """If there are too many connections, close a silent one, or a client's, which comes back if need be.

        So nobody is kept out, no peer, and the journal has the files that it needs. (With TLS a
        connection counts from its handshake on, for which it has ten seconds.)
        """
        if len(self.open) >= self.most:  # looked for before the new one is among them
            oldest = self._dispensable()
            if oldest is not None:
                del self.open[oldest]
                self.silent.pop(oldest, None)
                self.crowded += 1
                oldest.abort()
        self.open[connection] = self.silent[connection] = None

    def lost(self, connection: Connection, error: Exception | None) -> None:
        """A connection is gone; the error says why, if somebody is to blame."""
        self.open.pop(connection, None)
        self.silent.pop(connection, None)
        if isinstance(error, Malformed | TimeoutError):
            self.counts.refused("malformed" if isinstance(error, Malformed) else "slow_connection")
            self.hung_up += 1
            if self.hung_up <= MAX_HUNG_UP:
                log("hung-up", "warning", address=connection.peer, reason=error)

    def sweep(self, now: float) -> None:
        """About once a second: close connections that dawdle, and log what has happened."""
        for connection in [*self.open]:
            if connection.stale(now):
                self.counts.refused("late_connection")
                log("cut-off", "warning", address=connection.peer)
        self._relieve()
        if self.hung_up > MAX_HUNG_UP:
            log("hung-up-more", "warning", count=self.hung_up - MAX_HUNG_UP)
        self.hung_up = 0
        if self.crowded:
            log("too-many-connections", "warning", hung_up=self.crowded, limit=self.most)
            self.counts.refused("connection", self.crowded)
        self.crowded = 0

    def _relieve(self) -> None:
        """If too much waits, disconnect the clients with most of it."""
        clients = [(other.waiting(), other) for other in self.open if other.user is None]
        total = sum(size for size, _ in clients)
        if total > MAX_WAITING:
            for size, connection in sorted(clients, key=lambda client: client[0], reverse=True):
                connection.abort()
                self.counts.refused("memory")
                log("too-much-waits", "warning", address=connection.peer, bytes=size, total=total)
                total -= size
                if total <= MAX_WAITING:
                    break

    def close(self) -> None:
        """Hang up on everybody."""
        for connection in [*self.open]:
            connection.close()

    def _dispensable(self) -> Connection | None:
        """The oldest connection that has never said anything; if there is none, the oldest of a client."""
        for connection in [*itertools.takewhile(lambda other: other.heard, self.silent)]:
            del self.silent[connection]
        for connection in self.silent:
            return connection
        return next((other for other in self.open if other.user is None), None)


def most_connections() -> int:
    """How many connections of others this process can have, with files to spare for everything else."""
    with contextlib.suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(min(files - OTHER_FILES, MOST_CONNECTIONS), files // 2)
