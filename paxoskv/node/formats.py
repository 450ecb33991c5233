"""Which commands the nodes know: none may reach a node that is too old for it.

A node of an older version answers INVALID to what it does not know, while the others apply it: from then on
it would differ from them. So the store says INVALID to all commands above its format, on every node alike.
Its format rises by a command of its own, UPGRADE:

    each node says in its hello which format it knows          nothing of it: format 0
    a client wants a command of format 1, and all have said 1  UPGRADE goes before the client's command
    a client wants it, but one has said 0, or nothing so far   refused: nobody has proposed anything
    UPGRADE has been applied                                   a node that says less in a hello is refused,
                                                               and one that has said less hears nothing more
    all have told that they have applied it                    the client's command is proposed
    one has not told that in time                              refused: nobody has proposed any but UPGRADE

What a peer has said counts as long as it is connected: its next start may have another version. UPGRADE is
for ever. So a node that comes back with an older version takes no part until it has a newer one. And such a
version does not even start: the data directory says that it may not (data_dir.mark_format). Each node notes
that when it applies UPGRADE. Were a newer command proposed before all have, a majority could still go back to
the older version, with the command in its journals, and would say INVALID to what was acknowledged.

That all had noted it, everybody knows for ever from the first newer command that is applied (Store.settled).
"""

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from paxoskv.protocol.core import Report
from paxoskv.state.store import Store
from paxoskv.wire.structs import Identity
from paxoskv.wire.validation import FORMAT

# Seconds that a command waits for other nodes at most: they gossip far more often, and clients come again.
PATIENCE: Final = 0.5
WAITING: Final = 10_000  # commands that wait for other nodes; more are refused


class Waiting(NamedTuple):
    """A command that waits until all nodes have applied UPGRADE."""

    then: Callable[[str | None], None]  # is told why it may not be proposed; None: it may
    besides: int | None  # a peer that is not waited for
    since: float


class Formats:
    """What the peers that are connected have said that they know."""

    def __init__(
        self,
        store: Store,
        peers: Iterable[int],
        mark: Callable[[int], None],
        report: Callable[[], Report],
    ) -> None:
        """`mark(format)`: let no older version use our data, from now on.

        `report()`: what the core says of itself; what the peers have applied is in it.
        """
        self.store = store
        self.mark = mark
        self.report = report
        self.since = (0, 0)  # where UPGRADE stands in the order, or a later place
        self.all_applied = False  # whether all peers have told that they have applied it
        self.waiting: list[Waiting] = []
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
        self.since, self.all_applied = self.store.position, False
        self.old = frozenset(
            peer for peer, known in self.heard.items() if known is not None and known < self.store.format
        )

    def hindrance(self, besides: int | None = None) -> str | None:
        """Say why the commands of our format may not be used; None if they may.

        `besides`: a peer that is to be replaced. It may be gone for ever; and if it comes back with an older
        version, it is refused.
        """
        for peer, known in self.heard.items():
            if peer == besides and (known is None or known < self.store.format):
                continue
            if known is None:
                return f"node {peer} is not connected, and has not said whether its version knows this"
            if known < FORMAT:
                return f"node {peer} has an older version, which does not know this"
        return None

    @property
    def settled(self) -> bool:
        """Whether the commands of our format may be proposed at once."""
        return self.store.format >= FORMAT and (self.all_applied or self.store.settled)

    def wait(self, then: Callable[[str | None], None], besides: int | None, now: float) -> None:
        """UPGRADE is applied here: call then() when it is at all peers, or with the reason why it is not."""
        if len(self.waiting) >= WAITING:
            then("busy: too many commands wait")
        elif self._lack(besides) is None:
            self.all_applied |= besides is None
            then(None)
        else:
            self.waiting.append(Waiting(then, besides, now))

    def look(self) -> None:
        """Go on with the commands that need wait no longer."""
        lacks = {besides: self._lack(besides) for besides in {each.besides for each in self.waiting}}
        self.all_applied |= lacks.get(None, "") is None
        ready = [each for each in self.waiting if lacks[each.besides] is None]
        self.waiting = [each for each in self.waiting if lacks[each.besides] is not None]
        for each in ready:
            each.then(None)

    def expire(self, before: float, reason: str | None = None) -> None:
        """Refuse what waits since before this moment, with what it waits for, or for this reason."""
        late = [each for each in self.waiting if each.since < before]
        self.waiting = [each for each in self.waiting if each.since >= before]
        for each in late:
            each.then(reason or self._lack(each.besides))

    def _lack(self, besides: int | None) -> str | None:
        """Say who has yet to apply UPGRADE, which we have applied; None if nobody has."""
        hindrance, applied = self.hindrance(besides), self.report().applied
        for peer in self.heard if hindrance is None else ():
            if peer != besides and applied.get(peer, (0, 0)) < self.since:
                return f"node {peer} has not noted yet that all nodes know this"
        return hindrance
