"""Acceptors that fail on purpose, as in the original experiment."""

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Failures:
    """How often a node's acceptors fail."""

    probability: float = 0.0  # of one message to be lost
    silence: float = 0.0  # seconds that a period of silence lasts
    every: float = 0.0  # seconds from the start of one such period to the next, on average; 0: never


class Faults:
    """Decides which messages to an acceptor count as lost."""

    def __init__(self, failures: Failures, random: Random) -> None:
        self.failures = failures
        self.random = random
        self.silent_until = 0.0
        self.silent_next: float | None = None  # when the next period of silence begins

    def change(self, failures: Failures) -> None:
        """Fail so from now on."""
        self.failures = failures
        self.silent_until, self.silent_next = 0.0, None

    def end(self) -> None:
        """No acceptor fails any more."""
        self.change(Failures())

    def fails(self, now: float) -> bool:
        """Whether this message counts as lost."""
        failures = self.failures
        if failures.every:
            if self.silent_next is None:
                self.silent_next = now + self.random.expovariate(1 / failures.every)
            if now >= self.silent_next:
                self.silent_until = now + failures.silence
                self.silent_next = now + self.random.expovariate(1 / failures.every)
            if now < self.silent_until:
                return True
        return failures.probability > 0 and self.random.random() < failures.probability
