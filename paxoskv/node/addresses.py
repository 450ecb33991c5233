"""Where the nodes are: as cluster.json says, unless the cluster has agreed that one was replaced.

REPLACE_NODE is a command like any other: all nodes apply it at one place of the order, and keep the address
in the state, so that a restart and a checkpoint know it. Who a node is does not change by that: its id, and
the rules about its disks and starts, stay what they were. So nothing of the protocol rests on addresses. They
say whom a link calls, and which of two processes with one id is the one that is meant:

    a process says in its hello where it listens    elsewhere than agreed: every node that knows it refuses
    a command is applied that moves a node          its connections to us end, our link calls the new address
"""

from paxoskv.config import Member, address_text, parse_address
from paxoskv.state.store import Store
from paxoskv.wire.structs import Identity, Moved


class Addresses:
    """Our own address, and those of the peers."""

    def __init__(self, store: Store, own: str | None, members: dict[int, Member]) -> None:
        """`own`: where we listen; None for the standalone server."""
        self.store = store
        self.own = own
        self.members = members
        self.seen: dict[int, Moved] = store.addresses  # as of the last look

    def of(self, peer: int) -> tuple[str, int]:
        """Return host and port of a peer."""
        moved = self.store.addresses.get(peer)
        member = self.members[peer]
        return (member.host, member.port) if moved is None else parse_address(moved.address)

    def moved(self) -> list[Moved] | None:
        """Say which nodes have been replaced, and where they are now; None: none has."""
        return sorted(self.store.addresses.values()) or None

    def look(self) -> list[int]:
        """Return the peers that have another address than when last looked at."""
        seen, self.seen = self.seen, self.store.addresses
        return [node for node in self.seen if node in self.members and seen.get(node) != self.seen[node]]

    def refusal(self, identity: Identity) -> str | None:
        """Say why a process is not the node that it says it is, by where it listens; None if it may be."""
        agreed = self.store.addresses.get(identity.node)
        if agreed is None or identity.address is None or identity.address == agreed.address:
            return None
        where = f"it is at {agreed.address}, and this process at {identity.address}"
        return f"node {identity.node} was replaced: {where}"

    def taken(self, node: int, address: str) -> str | None:
        """Say why this node cannot be moved to this address; None if it can."""
        for other, member in self.members.items():
            if other != node and address_text(*self.of(other)) == address:
                return f"{address} is the address of node {other}"
            if other != node and address_text(member.host, member.port) == address:
                return f"{address} was the address of node {other}"
        return f"{address} is the address of this node" if address == self.own else None
