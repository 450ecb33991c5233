"""Lab 7: a candidate is refused, the classic way. The text is 07-duel.md."""

from paxoskv.multipaxos import Proposer
from paxoskv.protocol.classic import LONGEST, SHORTEST


def lose(self, proposer: Proposer, promised: int, now: float) -> None:
    """A higher ballot is promised: step down, and say when to stand again."""
    proposer.step_down(promised)
    self.waiting[:0], self.riding = self.riding, []
    self.stand_at = now + 0.001
