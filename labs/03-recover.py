"""Lab 3: an acceptor reads its journal after a crash. The text is 03-recover.md."""

from paxoskv.wire.structs import Record


def replay(self, record: Record) -> None:
    """Recovery: do once more what was journaled. A record has one of: promised, held, chosen."""
    if record.held:
        self._replace(record.held.ballot, record.held.start, record.held.entries)
