"""Which commands the nodes know: none may reach a node that is too old for it.

A node of an older version answers INVALID to what it does not know, while the others apply it: from then on
it would differ from them. So the store says INVALID to all commands above its format, on every node alike.
Its format rises by a command of its own, UPGRADE:

    each node says in its hello which format it knows          nothing of it: format 0
    a client wants a command of format 1, and all have said 1  UPGRADE goes before the client's command
    a client wants it, but one has said 0, or nothing so far   refused: nobody has proposed anything
    UPGRADE has been applied                                   a node that says less in a hello is refused,
                                                               and one that has said less hears nothing more

What a peer has said counts as long as it is connected: its next start may have another version. UPGRADE is
for ever. So a node that comes back with an older version takes no part until it has a newer one. And such a
version does not even start: the data directory says that it may not (data_dir.mark_format).
"""

from collections.abc import Callable, Iterable

from paxoskv.state.store import Store
from paxoskv.wire.structs import Identity
from paxoskv.wire.validation import FORMAT


class Formats:
    """What the peers that are connected have said that they know."""

    def __init__(self, store: Store, peers: Iterable[int], mark: Callable[[int], None]) -> None:
        """`mark(format)`: let no older version use our data, from now on."""
        self.store = store
        self.mark = mark
        self.heard: dict[int, int | None] = dict.fromkeys(peers)  # None: nothing so far
        self.old: frozenset[int] = frozenset()  # those that are too old for what is used, and still connected
        store.risen = self._risen
        if store.format:
            self._risen()

    def hear(self, identity: Identity) -> str | None:
        """A peer says who it is: note what it knows; say why nobody may listen to it, or None."""
        known, used = identity.format or 0, self.store.format
        self.heard[identity.node] = known
        self.old -= {identity.node}
        if known < used:
            return (
                f"format: it knows that of version {known}, the cluster uses {used}: it needs newer software"
            )
        return None

    def forget(self, peer: int) -> None:
        """The peer is not connected any more."""
        if peer in self.heard:
            self.heard[peer] = None
            self.old -= {peer}

    def _risen(self) -> None:
        """The cluster uses newer commands from now on."""
        self.mark(self.store.format)
        self.old = frozenset(
            peer for peer, known in self.heard.items() if known is not None and known < self.store.format
        )

    def hindrance(self, besides: int | None = None) -> str | None:
        """Say why the commands of our format may not be used; None if they may.

        `besides`: a peer that is to be replaced. It may be gone for ever; and if it comes back with an older
        version, it is refused.
        """
        for peer, known in self.heard.items():
            if peer == besides and known is None:
                continue
            if known is None:
                return f"node {peer} is not connected, and has not said whether its version knows this"
            if known < FORMAT:
                return f"node {peer} has an older version, which does not know this"
        return None
