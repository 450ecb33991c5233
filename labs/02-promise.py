"""Lab 2: phase 1b, the promise. The text is 02-promise.md."""

from paxoskv.multipaxos import FETCH_BYTES
from paxoskv.wire.structs import Fact, LogBallot, Prepare, Promise, Record, Verdict


def on_prepare(self, message: Prepare, fact: Fact) -> Promise:
    """Phase 1b: promise to accept nothing below the ballot, and show the entries that are accepted."""
    if message.from_slot < self.base or self.bytes_to_chosen(message.from_slot) > FETCH_BYTES:
        return self._promise(message, Verdict.BEHIND, [], fact)
    if message.ballot < self.promised:
        return self._promise(message, Verdict.NACK, [], fact)
    self.promised = message.ballot
    return self._promise(message, Verdict.PROMISED, self.from_slot(message.from_slot), fact)
