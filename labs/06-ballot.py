"""Lab 6: a candidate takes a ballot. The text is 06-ballot.md."""

from paxoskv.multipaxos import ballot_of, round_of
from paxoskv.wire.structs import LogBallot, Record


def prepare(self, from_slot: int, promised: int, wanted: int) -> Record:
    """Phase 1a: stand with a ballot. What is returned is durable before the Prepare leaves."""
    if not self.ballot:
        self.ballot = self.highest = ballot_of(round_of(promised) + 1, self.me)
    self.preparing, self.leading, self.wanted = True, False, wanted
    self.lengths.clear()
    self.prepares = 0
    self.restart_at(from_slot)
    return Record(candidate=LogBallot(self.log, self.ballot))
