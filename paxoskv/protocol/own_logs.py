"""Own logs: every node leads a log of its own, and finishes the log of a node that holds the others up."""

from collections import deque
from collections.abc import Collection
from typing import Any, ClassVar, Final

from paxoskv.multipaxos import RESEND_AFTER, Proposer
from paxoskv.protocol.commands import Commands
from paxoskv.protocol.reads import Reads
from paxoskv.protocol.revocation import Advice
from paxoskv.protocol.way import Parts, Way
from paxoskv.wire.structs import Barrier, Entry, Reading

FORGIVEN: Final = 60.0  # seconds after which the loss of our log no longer counts


class OwnLogs(Way):
    """Stands for our own log when it is not led, and for another's when it holds us up (R1)."""

    owners: ClassVar[bool] = True

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.voters = parts.voters
        own, learner, outbox = parts.own, parts.learner, parts.outbox
        self.commands = Commands(own, learner, parts.clock)
        self.reads = Reads(
            own.me, self.peers, own.quorum, learner, parts.clock, parts.contacts, outbox, parts.random
        )
        self.retake_at: float | None = None  # when to stand for our own log
        self.losses: deque[float] = deque()  # when our log was taken from us

    @property
    def ready(self) -> bool:
        return self.own.established

    @property
    def in_flight(self) -> int:
        return len(self.commands.pending)

    @property
    def has_room(self) -> bool:
        return self.commands.has_room

    @property
    def busy(self) -> bool:
        waiting = self.commands.pending or self.reads.busy or self.revocation.waiting
        return bool(waiting) or self.retake_at is not None

    def begin(self, now: float) -> None:
        self.retake_at = now

    def propose(self, payload: bytes, token: Any) -> None:
        assert self.own.established, "the caller looks first"
        self.reads.proposed(self.commands.propose(payload, token))

    def read(self, token: Any) -> None:
        self.reads.ask(token)

    def forget_reads(self, tokens: Collection[Any]) -> None:
        self.reads.give_up(tokens)

    def promised(self, log: int, now: float) -> None:
        self.revocation.wait_anew(log, now)

    def applied(self, timestamp: int, owner: int, payload: bytes) -> Any:
        if owner != self.me:
            return None
        self.reads.applied(timestamp)
        return self.commands.applied(timestamp)

    def covered(self, position: tuple[int, int]) -> None:
        self.outbox.ready.lost += self.commands.covered(position)
        self.reads.log_lost()

    def end_turn(self, now: float) -> None:
        """Propose again what others have dropped from our log."""
        if self.commands.unsure or self.commands.backlog:
            self.commands.end_turn()

    def answer_reads(self, now: float, more: bool) -> None:
        if self.reads.waiting or self.reads.dated:
            self.reads.end_turn(now, more and self.own.established)

    def on_reading(self, sender: int, message: Reading, now: float) -> None:
        self.reads.on_reading(sender, message)

    def forget(self, peer: int) -> None:
        self.reads.forget(peer)

    def lead(self, proposer: Proposer) -> None:
        """A quorum has promised: finish what was adopted; in another's log, add a skip."""
        for entry in proposer.entries:
            self.clock.see_entry(entry)
        if proposer is not self.own:
            self._skip(proposer)
            return
        self.voters.begin_ballot()
        self.retake_at = None
        self.commands.log_led()

    def _skip(self, proposer: Proposer) -> None:
        """A no-op far ahead of everything, so that the log's frontier is out of everyone's way."""
        proposer.append(Entry(self.clock.stamp_skip(self.learner.last_timestamp(proposer)), b""))
        self.revocations += 1

    def watch(self, now: float) -> None:
        """Stand for our own log when it is time; revoke the logs that hold us up."""
        idle = not self.own.preparing and not self.own.leading
        if idle and self.retake_at is not None and now >= self.retake_at:
            self.stand(self.me, 0, now)
        for advice, log, needed in self.revocation.watch(self.reads.awaited, now):
            if advice == Advice.ASK:
                for peer in self.peers:
                    self.outbox.send(peer, Barrier(0, needed))
            elif advice == Advice.REVOKE:
                self._revoke(self.proposer(log), needed, now)
            elif log in self.proposers and log != self.me and self.proposers[log].preparing:
                self.proposers[log].step_down()

    def _revoke(self, proposer: Proposer, needed: int, now: float) -> None:
        """Finish another's log, and take it out of our way."""
        if proposer.leading:
            if not proposer.entries:
                self._skip(proposer)
        elif not proposer.preparing:
            self.stand(proposer.log, needed, now)

    def lose(self, proposer: Proposer, promised: int, now: float) -> None:
        """Step down.

        The owner tries again at once, unless it was skipped often: then the owner itself may be slow.
        """
        led = proposer.leading
        proposer.step_down(promised)
        if proposer is not self.own:
            self.revocation.wait_anew(proposer.log, now)
            return
        pause = self.random.uniform(0.5, 1) * RESEND_AFTER
        self.reads.log_lost()
        if led:
            self.losses.append(now)
            while self.losses[0] < now - FORGIVEN:
                self.losses.popleft()
            pause = 0.0 if len(self.losses) < 3 else min(FORGIVEN, 2.0 ** (len(self.losses) - 3))
        self.retake_at = max(self.retake_at or 0.0, now + pause)

    def tick(self, now: float) -> None:
        self.reads.tick(now)
