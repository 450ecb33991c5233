"""Which logs we lead or stand for: our own, and those of nodes that hold us up."""

from collections import deque
from random import Random
from typing import Final

from paxoskv.multipaxos import FETCH_BYTES, RESEND_AFTER, UNCHOSEN_ENTRIES, Learner, Proposer
from paxoskv.protocol.clock import Clock
from paxoskv.protocol.commands import Commands
from paxoskv.protocol.outbox import Outbox
from paxoskv.protocol.reads import Reads
from paxoskv.protocol.revocation import Advice, Revocation
from paxoskv.protocol.round_trips import RoundTrips
from paxoskv.protocol.voters import Voters
from paxoskv.wire.structs import Barrier, Entry

FORGIVEN: Final = 60.0  # seconds after which it does not count any more that our log was taken from us


class Leadership:
    """Stands for logs, leads them, and takes our own back when it is lost.

    Proposers are made when they are needed.
    """

    def __init__(
        self,
        proposers: dict[int, Proposer],
        own: Proposer,
        learner: Learner,
        clock: Clock,
        commands: Commands,
        reads: Reads,
        voters: Voters,
        round_trips: RoundTrips,
        revocation: Revocation,
        outbox: Outbox,
        random: Random,
    ) -> None:
        self.proposers = proposers
        self.own = own
        self.me = own.me
        self.peers = [node for node in own.nodes if node != own.me]
        self.acceptors = learner.acceptors
        self.learner = learner
        self.clock = clock
        self.commands = commands
        self.reads = reads
        self.voters = voters
        self.round_trips = round_trips
        self.revocation = revocation
        self.outbox = outbox
        self.random = random
        self.retake_at: float | None = None  # when to stand for our own log
        self.losses: deque[float] = deque()  # when our log was taken from us
        self.revocations = 0  # how often we have added a skip to another's log

    def proposer(self, log: int) -> Proposer:
        """Ours for this log."""
        if log not in self.proposers:
            self.proposers[log] = Proposer(log, self.me, self.own.nodes)
        return self.proposers[log]

    def stand(self, log: int, wanted: int, now: float) -> None:
        """Become candidate for a log. Our ballot must be durable before anybody hears of it (N21)."""
        proposer = self.proposer(log)
        acceptor = self.acceptors[log]
        self.outbox.journal(proposer.prepare(acceptor.chosen, acceptor.promised, wanted))
        self.send_prepare(proposer, now)

    def send_prepare(self, proposer: Proposer, now: float) -> None:
        """Ask everybody for a promise, ourselves too."""
        message = proposer.message(now)
        for node in self.own.nodes:
            self.outbox.send_after(node, message)

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
        """Revoke the logs that hold us up."""
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

        The owner tries again at once, unless it was skipped often: then it may be it that is slow.
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

    def entries(self, proposer: Proposer, start: int) -> tuple[int, list[Entry]]:
        """The leader's log from a slot on, with chosen entries if they are few; the peer fetches many."""
        chosen = proposer.start
        if start >= chosen:
            return start, proposer.entries[start - chosen :]
        acceptor = self.acceptors[proposer.log]
        if (
            start < max(acceptor.base, chosen - UNCHOSEN_ENTRIES)
            or acceptor.bytes_to_chosen(start) > FETCH_BYTES
        ):
            return chosen, list(proposer.entries)
        return start, acceptor.from_slot(start, chosen) + proposer.entries

    def is_back(self, peer: int) -> None:
        """Send soon what a peer lacks that speaks again after a long silence.

        Its silence says nothing about round trips.
        """
        self.round_trips.forget(peer)
        for proposer in self.proposers.values():
            if peer in proposer.couriers:
                proposer.couriers[peer].silent = 0

    def tick(self, now: float) -> None:
        """Send again what may have been lost; stand for our own log when it is time."""
        for proposer in self.proposers.values():
            proposer.fresh = True
            if proposer.preparing and now - proposer.prepared_at >= RESEND_AFTER * min(proposer.prepares, 8):
                self.send_prepare(proposer, now)
        idle = not self.own.preparing and not self.own.leading
        if idle and self.retake_at is not None and now >= self.retake_at:
            self.stand(self.me, 0, now)
