"""All logs as one node holds, leads and learns them: what one role finds out, the others hear."""

from typing import Any

from paxoskv.multipaxos import Cut, Learner, Proposer, node_of
from paxoskv.protocol.catch_up import CatchUp
from paxoskv.protocol.clock import Clock
from paxoskv.protocol.contacts import Contacts
from paxoskv.protocol.faults import Faults
from paxoskv.protocol.gossip import Gossip
from paxoskv.protocol.outbox import Outbox
from paxoskv.protocol.persistence import Persistence
from paxoskv.protocol.round_trips import RoundTrips
from paxoskv.protocol.voters import Voters
from paxoskv.protocol.way import Way
from paxoskv.protocol.witness import Witness
from paxoskv.wire.structs import (
    Accept,
    Accepted,
    Barrier,
    Entry,
    Fact,
    Fetched,
    LogStatus,
    Prepare,
    Promise,
    Reading,
    Verdict,
    Vote,
)


class Logs:
    """Takes the messages of the algorithm, and keeps the Acceptors, Proposers and Learner in step."""

    def __init__(
        self,
        ring: list[int],
        way: Way,
        learner: Learner,
        clock: Clock,
        persistence: Persistence,
        contacts: Contacts,
        faults: Faults,
        voters: Voters,
        round_trips: RoundTrips,
        witness: Witness,
        gossip: Gossip,
        catch_up: CatchUp,
        outbox: Outbox,
    ) -> None:
        self.ring = ring
        self.way = way
        self.owners = way.owners
        self.proposers = way.proposers
        self.own = way.own
        self.me = way.me
        self.home = way.own.log
        self.acceptors = learner.acceptors
        self.learner = learner
        self.clock = clock
        self.persistence = persistence
        self.contacts = contacts
        self.faults = faults
        self.voters = voters
        self.round_trips = round_trips
        self.witness = witness
        self.gossip = gossip
        self.catch_up = catch_up
        self.outbox = outbox

    def on_accept(self, sender: int, message: Accept, now: float, call: Any) -> None:
        """Phase 2b: vote; the answer leaves when the vote is durable, or at once if the vote can wait."""
        self._hear_entries(sender, message)
        acceptor = self.acceptors[message.log]
        before = len(self.outbox.ready.journal)
        vote = Vote.WITHHELD if self.faults.fails(now) else acceptor.on_accept(message)
        ballot, durable = self.persistence.durable[message.log]
        deferred = self.me in message.lazy and ballot == message.ballot
        if deferred:
            self.outbox.defer_from(before)
        self.check_leader(message.log, now)
        self.learn(message.fact, now, sender)
        self.settle(message.log, now, sender)
        length = 0
        if vote == Vote.ACCEPTED:
            length = durable if deferred else acceptor.length
        own = self.own_fact()
        answer = Accepted(message.log, message.ballot, acceptor.promised, vote, length, own)
        if vote == Vote.ACCEPTED and not deferred:
            self.gossip.tell_after(sender, answer, own, call)
        else:
            self.gossip.tell(sender, answer, own, call)

    def _hear_entries(self, sender: int, message: Accept) -> None:
        """Raise our clock past the entries."""
        last = command = 0
        for entry in message.entries:
            last = max(last, entry.timestamp)
            if entry.payload:
                command = last
        self.clock.see(last, command)  # R6
        if sender != self.me:
            self.witness.stood(sender, message.log, message.ballot)
            if self.owners:
                self.gossip.awaits(sender, command)
            if command:
                self.contacts.proposed(sender)

    def on_accepted(self, sender: int, message: Accepted, now: float) -> None:
        """Count a vote, if the ballot is ours."""
        if sender != self.me:
            self.round_trips.on_accepted(sender, message, now)
            self.learn(message.fact, now, sender)
        proposer = self.proposers.get(message.log)
        if proposer is not None and message.vote == Vote.ACCEPTED and message.ballot <= proposer.highest:
            self.witness.voted(sender, message.log, message.ballot, message.length)
        if proposer is None or not proposer.leading:
            return
        if message.promised > proposer.ballot:
            self.way.lose(proposer, message.promised, now)
        elif message.ballot == proposer.ballot:
            self._count(proposer, sender, message, now)

    def _count(self, proposer: Proposer, sender: int, message: Accepted, now: float) -> None:
        if proposer is self.own:
            self.voters.on_vote(sender, message.vote, now)
        chosen = proposer.on_accepted(sender, message, now)
        if chosen > self.learner.logs[message.log].chosen:
            self.choose(proposer, chosen, now)
        if message.vote == Vote.WITHHELD and proposer is self.own and sender in self.voters.at_once:
            self.ask_to_vote(self.voters.ask_deferred(sender, now))

    def on_prepare(self, sender: int, message: Prepare, now: float, call: Any) -> None:
        acceptor = self.acceptors[message.log]
        self.witness.stood(sender, message.log, message.ballot)
        if message.wanted and self.fact(message.log).frontier >= message.wanted:
            fact = self.fact(message.log)
            ballots = (acceptor.promised, acceptor.accepted)
            covered = Promise(
                message.log, message.ballot, message.from_slot, Verdict.COVERED, *ballots, [], fact,
            )  # fmt: skip
            self.outbox.send(sender, covered, call)
            return
        if self.faults.fails(now):
            return
        before = acceptor.promised
        promise = acceptor.on_prepare(message, self.fact(message.log))
        if promise.verdict != Verdict.PROMISED:
            self.outbox.send(sender, promise, call)
            return
        self.check_leader(message.log, now)
        if message.ballot > before:
            self.way.promised(message.log, now)  # once per ballot (N22)
        self.outbox.send_after(sender, promise, call)

    def on_promise(self, sender: int, message: Promise, now: float) -> None:
        if message.fact.log == message.log:
            self.learn(message.fact, now, sender)
        proposer = self.proposers.get(message.log)
        if proposer is None:
            return
        if message.verdict == Verdict.PROMISED and message.ballot <= proposer.highest:
            self.witness.promised(sender, message.log, message.ballot)
        if not proposer.preparing or message.ballot != proposer.ballot:
            return
        if message.verdict == Verdict.NACK:
            self.way.lose(proposer, message.promised, now)
        elif message.verdict == Verdict.COVERED:
            proposer.step_down()
        elif message.verdict == Verdict.PROMISED and proposer.on_promise(sender, message):
            self.way.lead(proposer)

    def on_fetched(self, sender: int, message: Fetched, now: float) -> None:
        if not self.catch_up.on_fetched(sender, message, now):
            return
        for entry in message.entries:
            self.clock.see_entry(entry)
        self.catch_up.installing(message.log)
        before = len(self.outbox.ready.journal)
        self.install(message.log, message.from_slot, message.entries, message.evidence, now, sender)
        self.outbox.defer_from(before)  # others hold them: nobody waits until we do
        self.catch_up.installed(message.log, sender, now)

    def on_barrier(self, sender: int, message: Barrier, call: Any) -> None:
        self.clock.hear(message.clock)
        self.gossip.awaits(sender, min(message.clock, self.clock.time))
        own = self.own_fact()
        others = [
            self.learner.fact(log)
            for log in self.acceptors
            if log != self.home and (self.learner.logs[log].known >= message.clock or not message.round)
        ]
        self.gossip.tell(
            sender, Reading(message.round, self.clock.time, [own, *others], *self.way.ballots()), own, call
        )

    def send_accepts(self, now: float) -> None:
        for log, proposer in self.proposers.items():
            if not (proposer.leading and proposer.fresh):
                continue
            proposer.fresh = False
            if proposer is self.own:
                self.voters.choose(now)
            messages: dict[tuple[int, bool], Accept] = {}
            for node in self.ring:  # our own acceptor first: it shares the frame; then those who are to vote
                due = proposer.due(node, now) if proposer.leading else None
                if due is None:
                    continue
                if due not in messages:
                    start, sync = due
                    start, entries = self.way.entries(proposer, start)
                    deferred = self.voters.deferred() if proposer is self.own and not sync else []
                    messages[due] = Accept(
                        log, proposer.ballot, start, entries, sync, self.fact(log), deferred
                    )
                self._send_accept(node, messages[due], now)

    def _send_accept(self, node: int, message: Accept, now: float) -> None:
        if node == self.me:
            self.on_accept(self.me, message, now, None)
            return
        if message.entries:
            self.round_trips.sent(node, message, now)
        if message.log == self.home:
            self.gossip.tell(node, message, message.fact)
        else:
            self.outbox.send(node, message)

    def ask_to_vote(self, nodes: list[int]) -> None:
        """We now wait for votes that were deferred: ask these nodes what they hold."""
        if nodes:
            message = Accept(self.home, self.own.ballot, self.own.end, [], False, self.own_fact(), [])
            for node in nodes:
                self.gossip.tell(node, message, message.fact)

    def fact(self, log: int) -> Fact:
        """What is known of this log."""
        return self.own_fact() if log == self.home else self.learner.fact(log)

    def own_fact(self) -> Fact:
        """The fact about our own log.

        The owner of an established ballot makes its frontier from its clock (R3, R4). A log without an owner
        has none but that of its last chosen entry.
        """
        learner = self.learner
        learned, frontier = learner.logs[self.home], self.clock.frontier_limit()
        if frontier > learned.known and self.owners and self.own.established:
            first = self.own.first_unchosen_command()
            if first is not None:
                frontier = min(frontier, first - 1)
            if frontier > learned.known:
                learned.known = frontier
                learner.settle(self.home)
        return learner.fact(self.home)

    def learn(self, fact: Fact, now: float, sender: int) -> None:
        log = fact.log
        learned = self.learner.logs.get(log)
        if learned is None:
            return  # no log of ours
        if (
            fact.chosen <= learned.chosen
            and fact.frontier <= learned.known
            and fact.evidence <= learned.evidence
        ):
            return
        if fact.chosen > self.acceptors[log].length + self.catch_up.credit:
            self.catch_up.pursue(log, fact.chosen, sender, now)
            return
        if self.learner.learn(log, fact.chosen, fact.evidence, fact.frontier):
            if self.owners and sender == log:
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
                proposer.restart_at(chosen)
                self.way.send_prepare(proposer, now)
        if self.acceptors[log].chosen < self.learner.logs[log].chosen:
            self.catch_up.lacking(log, sender, now)

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
        if log != self.home:
            self.gossip.tell_all = True

    def check_leader(self, log: int, now: float) -> None:
        """Step down where our own acceptor has promised a higher ballot: the log is lost at that moment."""
        proposer = self.proposers.get(log)
        promised = self.acceptors[log].promised
        if proposer is not None and (proposer.leading or proposer.preparing) and promised > proposer.ballot:
            self.way.lose(proposer, promised, now)

    def check_evidence(self, log: int, evidence: int, now: float) -> None:
        """Step down also when a higher ballot is heard of that was established."""
        proposer = self.proposers.get(log)
        if proposer is not None and proposer.leading and evidence > proposer.ballot:
            self.way.lose(proposer, evidence, now)

    def install(
        self, log: int, start: int, entries: list[Entry], evidence: int, now: float, sender: int
    ) -> None:
        """Hold chosen entries that somebody has handed over, counted in the ballot `evidence`."""
        acceptor = self.acceptors[log]
        self.learner.learn(log, start + len(entries), evidence, 0)
        acceptor.install(start, entries, evidence)
        self.check_leader(log, now)
        self.settle(log, now, sender)

    def install_cut(self, cut: Cut, now: float) -> bool:
        """Merge a checkpoint. True if it has more than what is applied here. Nothing goes back by it."""
        newer = self.learner.install(cut)
        self.clock.install(cut.clock)
        for log, covered in cut.logs.items():
            self.clock.see(covered.last, 0)
            self.check_leader(log, now)
            self.check_evidence(log, covered.evidence, now)
            self.settle(log, now, self.me)
        return newer

    def status(self) -> list[LogStatus]:
        """How each log stands here."""
        return [
            LogStatus(
                log, node_of(acceptor.promised), acceptor.promised, acceptor.accepted, acceptor.length,
                acceptor.chosen, self.learner.logs[log].executed, self.learner.logs[log].frontier,
            )
            for log, acceptor in self.acceptors.items()
        ]  # fmt: skip
