"""Lab 5: phase 2b, the vote. The text is 05-vote.md."""

from paxoskv.wire.structs import Accept, Vote


def on_accept(self, message: Accept) -> int:
    """Phase 2b: accept the leader's entries, or say why not. The answer is a Vote."""
    if message.ballot > self.accepted:
        return self._take_sync(message)
    start, length = message.start, self.length
    if start <= length:
        if start < length:
            self._check_same(start, message.entries, length)
        self._hold(message.ballot, length, message.entries[length - start :])
    return Vote.ACCEPTED
