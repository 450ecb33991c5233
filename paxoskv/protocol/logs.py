"""All logs as one node holds, leads and learns them: what one of these roles finds out, the others hear."""

from collections import deque
from random import Random
from typing import Final

from paxoskv.multipaxos import FETCH_BYTES, RESEND_AFTER, UNCHOSEN_ENTRIES, Learner, Proposer, round_of
from paxoskv.protocol.catch_up import CatchUp
from paxoskv.protocol.clock import Clock
from paxoskv.protocol.commands import Commands
from paxoskv.protocol.gossip import Gossip
from paxoskv.protocol.outbox import Outbox
from paxoskv.protocol.reads import Reads
from paxoskv.protocol.revocation import Revocation
from paxoskv.protocol.round_trips import RoundTrips
from paxoskv.protocol.voters import Voters
from paxoskv.protocol.witness import Witness
from paxoskv.wire.structs import Entry, Fact

TOO_MANY: Final = 1 << 40  # rounds: no sane node's ballot is so far above all of ours
FORGIVEN: Final = 60.0  # seconds after which it does not count any more that our log was taken from us


class Logs:
    """Keeps the Acceptors, the Proposers and the Learner in step, and takes our own log back when it is lost.

    Proposers are made when they are needed: for our own log, and for those that we revoke.
    """

    def __init__(
        self,
        me: int,
        proposers: dict[int, Proposer],
        learner: Learner,
        clock: Clock,
        commands: Commands,
        reads: Reads,
        voters: Voters,
        round_trips: RoundTrips,
        witness: Witness,
        gossip: Gossip,
        revocation: Revocation,
        catch_up: CatchUp,
        outbox: Outbox,
        random: Random,
    ) -> None:
        self.me = me
        self.proposers = proposers
        self.own = proposers[me]
        self.acceptors = learner.acceptors
        self.learner = learner
        self.clock = clock
        self.commands = commands
        self.reads = reads
        self.voters = voters
        self.round_trips = round_trips
        self.witness = witness
        self.gossip = gossip
        self.revocation = revocation
        self.catch_up = catch_up
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
        self._send_prepare(proposer, now)

    def _send_prepare(self, proposer: Proposer, now: float) -> None:
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

    def choose(self, proposer: Proposer, chosen: int, now: float) -> None:
        """A quorum holds our log this far: a new fact, made here and nowhere else."""
        log = proposer.log
        self.learner.learn(log, chosen, proposer.ballot, 0)
        acceptor = self.acceptors[log]
        if acceptor.accepted < proposer.ballot or acceptor.length < chosen:  # it fails on purpose, or is late
            entries = proposer.entries[: chosen - proposer.start]
            self.install(log, proposer.start, entries, proposer.ballot, now, self.me)
        else:
            self.settle(log, now, self.me)
        if log != self.me:
            self.gossip.tell_all = True

    def check_leader(self, log: int, now: float) -> None:
        """A leader or candidate whose log's `promised` rises above its ballot has lost the log at that
        moment.
        """
        proposer = self.proposers.get(log)
        promised = self.acceptors[log].promised
        if proposer is not None and (proposer.leading or proposer.preparing) and promised > proposer.ballot:
            self.lose(proposer, promised, now)

    def check_evidence(self, log: int, evidence: int, now: float) -> None:
        """Likewise a leader that hears of a higher ballot that was established."""
        proposer = self.proposers.get(log)
        if proposer is not None and proposer.leading and evidence > proposer.ballot:
            self.lose(proposer, evidence, now)

    def lose(self, proposer: Proposer, promised: int, now: float) -> None:
        """Step down. The owner tries again at once, unless it was skipped often: then it may be it that is
        slow.
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

    def revoke(self, proposer: Proposer, needed: int, now: float) -> None:
        """Finish another's log, and take it out of our way."""
        if proposer.leading:
            if not proposer.entries:
                self._skip(proposer)
        elif not proposer.preparing:
            self.stand(proposer.log, needed, now)

    def fact(self, log: int) -> Fact:
        """What is known of this log."""
        return self.own_fact() if log == self.me else self.learner.fact(log)

    def own_fact(self) -> Fact:
        """The fact about our own log. The owner of an established ballot makes its frontier from its clock
        (R3, R4).
        """
        learner = self.learner
        if self.own.established:
            first = self.own.first_unchosen_command()
            frontier = self.clock.frontier_limit()
            if first is not None:
                frontier = min(frontier, first - 1)
            if frontier > learner.known[self.me]:
                learner.known[self.me] = frontier
                learner.settle(self.me)
        return learner.fact(self.me)

    def learn(self, fact: Fact, now: float, sender: int) -> None:
        log = fact.log
        known = self.learner.facts.get(log)
        if known is None:
            return  # no log of ours
        older = fact.chosen <= known.chosen and fact.frontier <= known.frontier
        if older and fact.evidence <= known.evidence:
            return
        if self.clock.is_absurd(fact.frontier) or self.is_absurd(log, fact.evidence):
            return
        if self.learner.learn(log, fact.chosen, fact.evidence, fact.frontier):
            if sender == log:
                self.witness.claimed(sender, fact)
            self.round_trips.on_frontier(log, fact.frontier, now)
            self.check_evidence(log, fact.evidence, now)
            self.settle(log, now, sender)

    def settle(self, log: int, now: float, sender: int) -> None:
        """Advance over what is held; fetch what is not."""
        if self.learner.settle(log):
            proposer = self.proposers.get(log)
            chosen = self.acceptors[log].chosen
            if proposer is not None and proposer.leading:
                proposer.advance(chosen)
            elif proposer is not None and proposer.preparing:
                proposer.catch_up(chosen)
                self._send_prepare(proposer, now)
        if self.acceptors[log].chosen < self.learner.chosen[log]:
            self.catch_up.lacking(log, sender, now)

    def is_absurd(self, log: int, ballot: int) -> bool:
        """Whether a ballot is so far above all of ours that only a broken node can have sent it."""
        return round_of(ballot) > round_of(self.acceptors[log].promised) + TOO_MANY

    def install(
        self, log: int, start: int, entries: list[Entry], evidence: int, now: float, sender: int
    ) -> None:
        """Hold chosen entries that somebody has handed over, counted in the ballot `evidence`."""
        acceptor = self.acceptors[log]
        self.learner.learn(log, start + len(entries), evidence, 0)
        acceptor.install(start, entries, evidence)
        self.check_leader(log, now)
        self.settle(log, now, sender)

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
        """A silent peer speaks again: what it lacks is sent soon, and its silence says nothing about round
        trips.
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
                self._send_prepare(proposer, now)
        idle = not self.own.preparing and not self.own.leading
        if idle and self.retake_at is not None and now >= self.retake_at:
            self.stand(self.me, 0, now)
