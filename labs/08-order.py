"""Lab 8: which commands may be applied now. The text is 08-order.md."""

from paxoskv.multipaxos import Diverged


def apply(self) -> list[tuple[int, int, bytes]]:
    """The commands whose turn has come: (timestamp, owner, payload) each."""
    commands: list[tuple[int, int, bytes]] = []
    while (head := self.next()) is not None:
        timestamp, owner = head
        learned = self.logs[owner]
        payload = learned.acceptor.entries[learned.executed - learned.acceptor.base].payload
        learned.executed += 1
        self.position = head
        self.find_head(owner)
        commands.append((timestamp, owner, payload))
    return commands
