"""Which commands the nodes know: none may reach a node that is too old for it.

A node of an older version answers INVALID to what it does not know, while the others apply it: from then on
it would differ from them. So the store says INVALID to all commands above its format, on every node alike.
Its format rises by a command of its own, UPGRADE:

    each node says in its hello which format it knows          nothing of it: format 0
    a client wants a command of format 1, and all have said 1  UPGRADE goes before the client's command
    a client wants it, but one has said 0, or nothing so far   refused: nobody has proposed anything
    UPGRADE has been applied                                   whoever says less in a hello is refused

UPGRADE is for ever. By the last line, a node that was started with an older version again, or that comes back
after years, takes no part until it has a newer one.
"""

from collections.abc import Iterable

from paxoskv.state.store import Store
from paxoskv.wire.structs import Identity
from paxoskv.wire.validation import FORMAT


class Formats:
    """What the peers have said that they know, since this node was started."""

    def __init__(self, store: Store, peers: Iterable[int]) -> None:
        self.store = store
        self.heard: dict[int, int | None] = dict.fromkeys(peers)  # None: nothing so far

    def hear(self, identity: Identity) -> str | None:
        """A peer says who it is: note what it knows; say why nobody may listen to it, or None."""
        known, used = identity.format or 0, self.store.format
        self.heard[identity.node] = known
        if known < used:
            return (
                f"format: it knows that of version {known}, the cluster uses {used}: it needs newer software"
            )
        return None

    def hindrance(self, besides: int | None = None) -> str | None:
        """Say why the commands of our format may not be used; None if they may.

        `besides`: a peer that is to be replaced. It may be gone for ever; and if it comes back with an older
        version, it is refused.
        """
        for peer, known in self.heard.items():
            if peer == besides:
                continue
            if known is None:
                return f"node {peer} has not said yet whether its version knows this"
            if known < FORMAT:
                return f"node {peer} has an older version, which does not know this"
        return None
