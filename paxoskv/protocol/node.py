"""One node's protocol: the frame that joins the Acceptors, the Proposers, the Learner and the parts.

Nothing here does I/O or looks at a clock. The caller runs this loop, the same in the server and in the
simulator:

    node.step(sender, message, now), node.propose(...), node.read(...), node.tick(now)   any number of times
    ready = node.drain(now, more)              more: commands wait for the next entry
    send ready.send                            at once
    journal ready.journal + node.notes()       in one frame; it may wait for others unless ready.urgent
    send ready.send_after                      when that frame, and every frame before it, is durable
    apply ready.apply to the store, then answer ready.reads

Messages that a node addresses to itself go into its step() when they would leave.

Now and then the journal begins a new segment with node.state(), and a checkpoint is made of the segments
before it; node.checkpointed() then lets the entries that it covers be given up. Where ready.catch_up names a
peer, entries that we lack were given up there: the caller takes that peer's checkpoint, and node.install()
merges it.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from random import Random
from typing import Any, Final

from paxoskv.multipaxos import (
    FETCH_BYTES,
    RESEND_AFTER,
    UNCHOSEN_ENTRIES,
    Acceptor,
    Cut,
    Learner,
    Proposer,
    node_of,
    round_of,
)
from paxoskv.protocol.catch_up import CatchUp
from paxoskv.protocol.clock import Clock
from paxoskv.protocol.commands import Commands
from paxoskv.protocol.compaction import Compaction
from paxoskv.protocol.contacts import Contacts
from paxoskv.protocol.core import Core, Report
from paxoskv.protocol.divergence import Divergence
from paxoskv.protocol.faults import Failures, Faults
from paxoskv.protocol.gossip import Gossip
from paxoskv.protocol.incarnations import Incarnations
from paxoskv.protocol.outbox import Message, Outbox, Ready
from paxoskv.protocol.persistence import Persisted, Persistence
from paxoskv.protocol.reads import Reads
from paxoskv.protocol.revocation import Advice, Revocation
from paxoskv.protocol.round_trips import RoundTrips
from paxoskv.protocol.voters import Voters
from paxoskv.protocol.witness import Witness
from paxoskv.wire.structs import (
    Accept,
    Accepted,
    Barrier,
    Entry,
    Fact,
    Fetch,
    Fetched,
    Identity,
    Learn,
    LogStatus,
    Prepare,
    Promise,
    Reading,
    Record,
    Rejoin,
    Rejoined,
    Verdict,
    Vote,
)

TOO_MANY: Final = 1 << 40  # rounds: likewise


class Node(Core):
    """One node: an Acceptor for every log, a Proposer for its own and for those that it revokes, and a
    Learner.

    The caller owns time (seconds, any origin, never going back) and the random source, and obeys the loop in
    the module's docstring. After construction: replay() every journaled record, then start().
    """

    def __init__(
        self,
        me: int,
        nodes: Iterable[int],
        random: Random,
        revoke_after: float = 0.5,
        failures: Failures | None = None,
        incarnation: int = 1,
        voters: type[Voters] = Voters,
    ) -> None:
        self.me = me
        self.nodes = sorted(nodes)
        self.peers = [node for node in self.nodes if node != me]
        self.quorum = len(self.nodes) // 2 + 1
        self.random = random
        self.outbox = Outbox()
        self.faults = Faults(failures or Failures(), random)
        self.incarnations = Incarnations(self.peers, incarnation, self.outbox, random)
        self.divergence = Divergence(self.nodes, self.quorum)
        self.witness = Witness(self.peers, self.nodes)

        self.lamport = Clock(self.outbox)
        self.contacts = Contacts(self.peers)
        at = self.nodes.index(me)
        self.ring = self.nodes[at:] + self.nodes[:at]  # from us on
        self.acceptors = {log: Acceptor(log, self.outbox.journal) for log in self.nodes}
        self.learner = Learner(self.acceptors)
        self.round_trips = RoundTrips(self.learner)
        self.catch_up = CatchUp(self.peers, self.acceptors, self.learner, self.outbox, random)
        self.own = Proposer(me, me, self.nodes)
        self.proposers = {me: self.own}
        self.voters = voters(me, self.ring, self.own, self.contacts, self.round_trips)
        self.persistence = Persistence(
            me, self.acceptors, self.proposers, self.learner, self.lamport, self.outbox
        )
        self.commands = Commands(self.own, self.learner, self.lamport)
        self.reads = Reads(
            me, self.peers, self.quorum, self.learner, self.lamport, self.contacts, self.outbox, random
        )
        self.gossip = Gossip(
            me, self.peers, self.learner, self.lamport, self.persistence, self.divergence, self.outbox
        )
        self.revocation = Revocation(
            me, self.nodes, self.learner, self.contacts, self.round_trips, random, revoke_after
        )
        self.compaction = Compaction(self.peers, self.acceptors, self.learner, self.persistence.logs)

        self.retake_at: float | None = None
        self.losses: deque[float] = deque()

        self.revocations = 0

        assert incarnation or self.peers, "there is nobody who knows what this node has forgotten"
        self.rejoining = None if incarnation else Rejoining(self.peers, self.nodes)
        self.handlers = HANDLERS if incarnation else HANDLERS_REJOINING

    # ------------------------------------------------------------------------------- starting, and what lasts

    def replay(self, record: Record) -> None:
        """Recovery: one journaled record, in the order in which they were written.

        The caller resolves `installed` itself, by install(): it has the checkpoint.
        """
        if record.reservation is not None:
            self.lamport.persisted(record.reservation)
        elif record.applied:
            self.persistence.replayed_position = (record.applied.timestamp, record.applied.owner)
        elif record.candidate:
            proposer = self._proposer(record.candidate.log)
            proposer.highest = max(proposer.highest, record.candidate.ballot)
        elif record.noted or record.life is not None or record.incarnation is not None:
            self.incarnations.replay(record)
        elif record.rejoined:
            self._join()
        else:
            of = record.promised or record.held or record.chosen
            assert of, "a record without any field"
            self.acceptors[of.log].replay(record)

    def start(self, now: float) -> None:
        """Begin a life: the clock where the reservation ends, the applied commands once more, our own log
        prepared.
        """
        if self.rejoining is None:
            self.incarnations.found(self.persistence.recovered(), self.lamport.reserved)
        self.incarnations.begin_life()
        self.lamport.begin_life()
        self.persistence.begin_life()
        for acceptor in self.acceptors.values():
            self.lamport.see(acceptor.last_timestamp, 0)
        self.lamport.reserve()
        if self.rejoining is None:
            self.retake_at = now

    def notes(self) -> list[Record]:
        """What need not be durable soon, for the frame written next: how much is chosen, and applied."""
        return self.persistence.notes()

    # -------------------------------------------------------------------------------------------- checkpoints

    @property
    def drained(self) -> bool:
        """Whether all records have been handed out: then state() holds nothing that they do not."""
        return not self.outbox.records

    def state(self, pending: Sequence[Record] = ()) -> list[Record]:
        """All that must not be forgotten, for the first frame of a new segment (N13): it takes the place of
        all segments before it, together with a checkpoint made of them. Only while drained.

        Entries that were executed when the frame before was written are in that checkpoint. `pending` are
        records that were handed out but not written yet: all but `installed` are superseded.
        """
        assert self.drained, "what is journaled later must not be repeated"
        records = [record for record in pending if record.installed is not None]
        records += [Record(life=self.life), Record(reservation=self.lamport.reserving)]
        records += self.incarnations.state(self.rejoining is None or self.rejoining.turn > 0)
        return records + self.persistence.state()

    def cut(self) -> Cut:
        """Where a checkpoint stands that holds what is applied now."""
        return self.learner.cut(self.lamport.time)

    def install(self, cut: Cut, now: float = 0.0, number: int = 0) -> bool:
        """Merge a checkpoint: our own before replay() (then no `now` and no number), or that of another node,
        which was stored as this number. True: its state must take the place of the store's.

        Nothing goes back by it.
        """
        if number:
            self.persistence.journal_notes(number)
        newer = self.learner.install(cut)
        self.lamport.install(cut.clock)
        for log, covered in cut.logs.items():
            self.lamport.see(covered.last, 0)
            self._check_leader(log, now)
            self._check_evidence(log, covered.evidence, now)
            self._settle(log, now, self.me)
        if number:
            self.lamport.reserve()
        if newer:
            self.outbox.lost += self.commands.covered(cut.position)
            self.reads.log_lost()
        return newer

    def hashed(self, position: tuple[int, int], rolling: int) -> None:
        """The store has applied the entry at this position, or a checkpoint up to there; this is its hash."""
        self.divergence.hashed(position, rolling)

    def checkpointed(self, cut: Cut) -> None:
        """A durable checkpoint of our own covers this: its entries may be given up, by the next tick()."""
        self.compaction.checkpointed(cut)

    def overtook(self, peer: int) -> bool:
        """Whether entries that the peer lacks were given up, and no checkpoint of ours has them."""
        return self.compaction.overtook(peer)

    # -------------------------------------------------------------------------------------- what clients want

    @property
    def clock(self) -> int:
        """Where the Lamport clock stands."""
        return self.lamport.time

    @property
    def incarnation(self) -> int:
        """Which disk this node runs on."""
        return self.incarnations.incarnation

    @property
    def life(self) -> int:
        """Which start of the disk this is."""
        return self.incarnations.life

    @property
    def ready(self) -> bool:
        """Whether commands are taken: we lead our own log. (Clients of another node are told to try the next
        one.)
        """
        return self.own.established

    @property
    def joined(self) -> bool:
        """Whether this node may read: it is not rejoining."""
        return self.rejoining is None

    @property
    def in_flight(self) -> int:
        """Entries of ours that are not applied yet."""
        return len(self.commands.pending)

    @property
    def gathers(self) -> bool:
        return True

    @property
    def has_room(self) -> bool:
        return self.commands.has_room

    def propose(self, payload: bytes, token: Any) -> None:
        """Put one entry of commands into our log; `token` comes back when it is applied. Only while ready and
        has_room.
        """
        assert self.own.established and payload, "the caller looks first"
        self.reads.proposed(self.commands.propose(payload, token))

    def read(self, token: Any) -> None:
        """A linearizable read: `token` comes back when the store may be read. The round starts after it
        arrived (N17).
        """
        self.reads.ask(token)

    def forget_reads(self, tokens: Collection[Any]) -> None:
        """These reads have been given up: nobody wants their tokens back."""
        self.reads.give_up(tokens)

    # ----------------------------------------------------------------------------------------------- messages

    def step(self, sender: int, message: Message, now: float, call: Any = None) -> None:
        """A message arrived. `call` names the request to the caller, which gets it back with the answer."""
        if self.contacts.hear(sender, now):
            self._is_back(sender)
        handler = self.handlers.get(message.__class__)
        if handler is not None:
            handler(self, sender, message, now, call)

    def _on_accept(self, sender: int, message: Accept, now: float, call: Any) -> None:
        last = command = 0
        for entry in message.entries:
            last = max(last, entry.timestamp)
            if entry.payload:
                command = last
        if self.lamport.is_absurd(last) or self._is_absurd(message.log, message.ballot):
            return
        self.lamport.see(last, command)  # R6
        if sender != self.me:
            self.witness.stood(sender, message.log, message.ballot)
            self.gossip.awaits(sender, command)
            if command:
                self.contacts.proposed(sender)
        acceptor = self.acceptors[message.log]
        before = len(self.outbox.records)
        vote = Vote.WITHHELD if self.faults.fails(now) else acceptor.on_accept(message)
        progress = self.persistence.logs[message.log]
        lazy = self.me in message.lazy and progress.durable_ballot == message.ballot
        if lazy:
            self.outbox.defer_from(before)
        self._check_leader(message.log, now)
        self._learn(message.fact, now, sender)
        self._settle(message.log, now, sender)
        length = 0
        if vote == Vote.TAKEN:
            length = progress.durable_length if lazy else acceptor.length
        own = self._own_fact()
        answer = Accepted(message.log, message.ballot, acceptor.promised, vote, length, own)
        if vote == Vote.TAKEN and not lazy:
            self.gossip.tell_after(sender, answer, own, call)
        else:
            self.gossip.tell(sender, answer, own, call)

    def _on_accepted(self, sender: int, message: Accepted, now: float, call: Any) -> None:
        if sender != self.me:
            self.round_trips.on_accepted(sender, message, now)
            self._learn(message.fact, now, sender)
        proposer = self.proposers.get(message.log)
        if proposer is not None and message.vote == Vote.TAKEN and message.ballot <= proposer.highest:
            self.witness.voted(sender, message.log, message.ballot, message.length)
        if proposer is None or not proposer.leading or self._is_absurd(message.log, message.promised):
            return
        if message.promised > proposer.ballot:
            self._lose(proposer, message.promised, now)
        elif message.ballot == proposer.ballot:
            if proposer is self.own:
                self.voters.on_vote(sender, message.vote, now)
            chosen = proposer.on_accepted(sender, message, now)
            if chosen > self.learner.chosen[message.log]:
                self._choose(proposer, chosen, now)
            if message.vote == Vote.WITHHELD and proposer is self.own and sender in self.voters.at_once:
                self._ask_to_vote(self.voters.ask_deferred(sender, now))

    def _on_prepare(self, sender: int, message: Prepare, now: float, call: Any) -> None:
        acceptor = self.acceptors[message.log]
        if self._is_absurd(message.log, message.ballot):
            return
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
        self._check_leader(message.log, now)
        if message.ballot > before:
            self.revocation.wait_anew(message.log, now)  # once per ballot (N22)
        self.outbox.send_after(sender, promise, call)

    def _on_promise(self, sender: int, message: Promise, now: float, call: Any) -> None:
        if message.fact.log == message.log:
            self._learn(message.fact, now, sender)
        proposer = self.proposers.get(message.log)
        if proposer is None:
            return
        if message.verdict == Verdict.PROMISED and message.ballot <= proposer.highest:
            self.witness.promised(sender, message.log, message.ballot)
        if not proposer.preparing or message.ballot != proposer.ballot:
            return
        if self._is_absurd(message.log, message.promised):
            return
        if message.verdict == Verdict.NACK:
            self._lose(proposer, message.promised, now)
        elif message.verdict == Verdict.COVERED:
            proposer.step_down()
        elif message.verdict == Verdict.PROMISED and proposer.on_promise(sender, message):
            self._lead(proposer)

    def _on_learn(self, sender: int, message: Learn, now: float, call: Any) -> None:
        self.lamport.hear(message.clock)
        self.compaction.holds(sender, message.held)
        self.divergence.compare(sender, message.applied, message.hash, now)
        self.divergence.look_what_is_missing(sender, message, self.compaction.held(sender), now)
        if message.applied > self.learner.position and self.learner.has_passed(message.applied):
            self.divergence.applied_elsewhere(sender, message.applied, now)
        for fact in message.facts:
            self._learn(fact, now, sender)

    def _on_fetch(self, sender: int, message: Fetch, now: float, call: Any) -> None:
        self.catch_up.on_fetch(sender, message, call)

    def _on_fetched(self, sender: int, message: Fetched, now: float, call: Any) -> None:
        if not self.catch_up.on_fetched(sender, message, now):
            return
        for entry in message.entries:
            if self.lamport.is_absurd(entry.timestamp):
                return
            self.lamport.see_entry(entry)
        self.catch_up.installing(message.log)
        before = len(self.outbox.records)
        self._install(message.log, message.from_slot, message.entries, message.evidence, now, sender)
        self.outbox.defer_from(before)  # others hold them: nobody waits until we do
        self.catch_up.installed(message.log, sender, now)

    def _on_barrier(self, sender: int, message: Barrier, now: float, call: Any) -> None:
        self.lamport.hear(message.clock)
        self.gossip.awaits(sender, min(message.clock, self.lamport.time))
        own = self._own_fact()
        others = [
            self.learner.fact(log)
            for log in self.nodes
            if log != self.me and (self.learner.known[log] >= message.clock or not message.round)
        ]
        self.gossip.tell(sender, Reading(message.round, self.lamport.time, [own, *others]), own, call)

    def _on_reading(self, sender: int, message: Reading, now: float, call: Any) -> None:
        self.lamport.hear(message.clock)
        for fact in message.facts:
            self._learn(fact, now, sender)
        self.reads.on_reading(sender, message)

    def _on_persisted(self, sender: int, message: Persisted, now: float, call: Any) -> None:
        self.persistence.on_persisted(message)

    # ---------------------------------------------------------------------------------------- leading one log

    def _proposer(self, log: int) -> Proposer:
        if log not in self.proposers:
            self.proposers[log] = Proposer(log, self.me, self.nodes)
        return self.proposers[log]

    def _stand(self, log: int, wanted: int, now: float) -> None:
        """Become candidate for a log. Our ballot must be durable before anybody hears of it (N21)."""
        proposer = self._proposer(log)
        acceptor = self.acceptors[log]
        self.outbox.journal(proposer.prepare(acceptor.chosen, acceptor.promised, wanted))
        self._send_prepare(proposer, now)

    def _send_prepare(self, proposer: Proposer, now: float) -> None:
        message = proposer.message(now)
        for node in self.nodes:
            self.outbox.send_after(node, message)

    def _lead(self, proposer: Proposer) -> None:
        """A quorum has promised: finish what was adopted; in another's log, add a skip."""
        for entry in proposer.entries:
            self.lamport.see_entry(entry)
        if proposer is not self.own:
            self._skip(proposer)
            return
        self.voters.begin_ballot()
        self.retake_at = None
        self.commands.log_led()

    def _skip(self, proposer: Proposer) -> None:
        """A no-op far ahead of everything, so that the log's frontier is out of everyone's way."""
        proposer.append(Entry(self.lamport.stamp_skip(self.learner.last_timestamp(proposer)), b""))
        self.revocations += 1

    def _choose(self, proposer: Proposer, chosen: int, now: float) -> None:
        """A quorum holds our log this far: a new fact, made here and nowhere else."""
        log = proposer.log
        self.learner.learn(log, chosen, proposer.ballot, 0)
        acceptor = self.acceptors[log]
        if (
            acceptor.accepted < proposer.ballot or acceptor.length < chosen
        ):  # it failed on purpose, or is late
            entries = proposer.entries[: chosen - proposer.start]
            self._install(log, proposer.start, entries, proposer.ballot, now, self.me)
        else:
            self._settle(log, now, self.me)
        if log != self.me:
            self.gossip.tell_all = True

    def _check_leader(self, log: int, now: float) -> None:
        """A leader or candidate whose log's `promised` rises above its ballot has lost the log at that
        moment.
        """
        proposer = self.proposers.get(log)
        promised = self.acceptors[log].promised
        if proposer is not None and (proposer.leading or proposer.preparing) and promised > proposer.ballot:
            self._lose(proposer, promised, now)

    def _check_evidence(self, log: int, evidence: int, now: float) -> None:
        """Likewise a leader that hears of a higher ballot that was established."""
        proposer = self.proposers.get(log)
        if proposer is not None and proposer.leading and evidence > proposer.ballot:
            self._lose(proposer, evidence, now)

    def _lose(self, proposer: Proposer, promised: int, now: float) -> None:
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
            while self.losses[0] < now - 60:
                self.losses.popleft()
            pause = 0.0 if len(self.losses) < 3 else min(60.0, 2.0 ** (len(self.losses) - 3))
        self.retake_at = max(self.retake_at or 0.0, now + pause)

    # ----------------------------------------------------------------------------------------------- learning

    def fact(self, log: int) -> Fact:
        return self._own_fact() if log == self.me else self.learner.fact(log)

    def _own_fact(self) -> Fact:
        """The fact about our own log. The owner of an established ballot makes its frontier from its clock
        (R3, R4).
        """
        learner = self.learner
        if self.own.established:
            first = self.own.first_unchosen_command()
            frontier = self.lamport.frontier_limit()
            if first is not None:
                frontier = min(frontier, first - 1)
            if frontier > learner.known[self.me]:
                learner.known[self.me] = frontier
                learner.settle(self.me)
        return learner.fact(self.me)

    def _learn(self, fact: Fact, now: float, sender: int) -> None:
        log = fact.log
        known = self.learner.facts.get(log)
        if known is None:
            return  # no log of ours
        older = fact.chosen <= known.chosen and fact.frontier <= known.frontier
        if older and fact.evidence <= known.evidence:
            return
        if self.lamport.is_absurd(fact.frontier) or self._is_absurd(log, fact.evidence):
            return
        if self.learner.learn(log, fact.chosen, fact.evidence, fact.frontier):
            if sender == log:
                self.witness.claimed(sender, fact)
            self.round_trips.on_frontier(log, fact.frontier, now)
            self._check_evidence(log, fact.evidence, now)
            self._settle(log, now, sender)

    def _settle(self, log: int, now: float, sender: int) -> None:
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

    def _is_absurd(self, log: int, ballot: int) -> bool:
        """Whether a ballot is so far above all of ours that only a broken node can have sent it."""
        return round_of(ballot) > round_of(self.acceptors[log].promised) + TOO_MANY

    def _install(
        self, log: int, start: int, entries: list[Entry], evidence: int, now: float, sender: int
    ) -> None:
        acceptor = self.acceptors[log]
        self.learner.learn(log, start + len(entries), evidence, 0)
        acceptor.install(start, entries, evidence)
        self._check_leader(log, now)
        self._settle(log, now, sender)

    @property
    def fetch_due(self) -> float | None:
        """When the next Fetch is to leave, for which a turn must be made; None: nothing is fetched."""
        return self.catch_up.due

    # ----------------------------------------------------------------------------- the end of a turn

    def _send_accepts(self, now: float) -> None:
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
                    start, entries = self._entries(proposer, start)
                    lazy = self.voters.deferred() if proposer is self.own and not sync else []
                    messages[due] = Accept(log, proposer.ballot, start, entries, sync, self.fact(log), lazy)
                self._send_accept(node, messages[due], now)

    def _entries(self, proposer: Proposer, start: int) -> tuple[int, list[Entry]]:
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

    def _send_accept(self, node: int, message: Accept, now: float) -> None:
        if node == self.me:
            self._on_accept(self.me, message, now, None)
            return
        if message.entries:
            self.round_trips.sent(node, message, now)
        if message.log == self.me:
            self.gossip.tell(node, message, message.fact)
        else:
            self.outbox.send(node, message)

    def _ask_to_vote(self, nodes: list[int]) -> None:
        """Their votes were to wait, and now we wait for them: all are to say what they hold."""
        if nodes:
            message = Accept(self.me, self.own.ballot, self.own.end, [], False, self._own_fact(), [])
            for node in nodes:
                self.gossip.tell(node, message, message.fact)

    def drain(self, now: float, more: bool = False) -> Ready:
        """End a turn: what was collected, and what is better done once per turn than once per message.

        `more`: commands wait that will be proposed soon, and reads for their entry.
        """
        self.commands.end_turn()
        self._send_accepts(now)
        own = self._own_fact()
        if self.learner.moved:
            self._apply()
        self.reads.end_turn(now, more and self.own.established)
        self.gossip.end_turn(own, now)
        if self.catch_up.fetching:
            self.catch_up.send(now)
        urgent = self.outbox.is_urgent(now)
        if self.outbox.records:
            self.persistence.end_turn(now)
        return self.outbox.drain(urgent)

    def _apply(self) -> None:
        """The commands whose turn has come."""
        self.learner.moved = False
        for timestamp, owner, payload in self.learner.apply():
            token = self.commands.applied(timestamp) if owner == self.me else None
            self.outbox.apply(timestamp, owner, payload, token)
            if owner == self.me:
                self.reads.applied(timestamp)

    # --------------------------------------------------------------------------------------------------- time

    @property
    def busy(self) -> bool:
        """Whether tick() wants to be called every few milliseconds, not every GOSSIP_IDLE seconds."""
        waiting = (
            self.commands.pending or self.reads.busy or self.catch_up.fetching or self.revocation.waiting
        )
        return bool(waiting or self.gossip.news_at or self.learner.heads) or (
            self.retake_at is not None or self.persistence.waits or self.rejoining is not None
        )

    def tick(self, now: float) -> None:
        """Time has passed: repeat what was lost, gossip, and look for nodes that hold us up."""
        self.gossip.tick(self._own_fact(), now)
        self.reads.tick(now)
        self.outbox.tick(now)
        self.persistence.tick(now)
        if self.own.established:
            self._ask_to_vote(self.voters.tick(now))
        for proposer in self.proposers.values():
            proposer.fresh = True
            if proposer.preparing and now - proposer.prepared_at >= RESEND_AFTER * min(proposer.prepares, 8):
                self._send_prepare(proposer, now)
        idle = not self.own.preparing and not self.own.leading
        if idle and self.retake_at is not None and now >= self.retake_at:
            self._stand(self.me, 0, now)
        self.compaction.tick(now)
        self.divergence.tick(now)
        if self.rejoining is None:
            self._watch(now)
        else:
            self._rejoin(self.rejoining, now)

    def link(self, peer: int, refused: bool) -> None:
        """The transport reports whether a peer refuses connections (nothing listens there), as opposed to
        being silent.
        """
        self.contacts.link(peer, refused)

    def _is_back(self, peer: int) -> None:
        """A silent peer speaks again: what it lacks is sent soon, and its silence says nothing about round
        trips.
        """
        self.round_trips.forget(peer)
        for proposer in self.proposers.values():
            if peer in proposer.couriers:
                proposer.couriers[peer].silent = 0

    def _watch(self, now: float) -> None:
        """Revoke the logs that hold us up."""
        for advice, log, needed in self.revocation.watch(self.reads.awaited, now):
            if advice == Advice.ASK:
                for peer in self.peers:
                    self.outbox.send(peer, Barrier(0, needed))
            elif advice == Advice.REVOKE:
                self._revoke(self._proposer(log), needed, now)
            elif log in self.proposers and log != self.me and self.proposers[log].preparing:
                self.proposers[log].step_down()

    def _revoke(self, proposer: Proposer, needed: int, now: float) -> None:
        """Finish another's log, and take it out of our way."""
        if proposer.leading:
            if not proposer.entries:
                self._skip(proposer)
        elif not proposer.preparing:
            self._stand(proposer.log, needed, now)

    # ------------------------------------------------------------------------------ disks that were lost

    def noted(self, peer: int) -> tuple[int, int]:
        """The highest (incarnation, life) of a peer that was heard of. Messages of a lower incarnation must
        not be handed in: what that disk had promised is forgotten.
        """
        return self.incarnations.lives[peer]

    def note(self, peer: int, incarnation: int, life: int) -> None:
        """Remember, durably, which disk and which start of it a peer has."""
        if self.incarnations.note(peer, incarnation, life):
            self._forget(peer)

    def identify(self, identity: Identity) -> Identity:
        """What this node says to others of itself."""
        return self.incarnations.identify(identity, self.joined)

    def heard_at(self, peer: int) -> float:
        return self.contacts.heard[peer]

    def reached(self, seconds: float, now: float) -> int:
        return self.contacts.reached(seconds, now)

    def report(self) -> Report:
        logs = [
            LogStatus(
                log=log,
                leader=node_of(acceptor.promised),
                promised=acceptor.promised,
                accepted=acceptor.accepted,
                length=acceptor.length,
                chosen=acceptor.chosen,
                executed=self.learner.executed[log],
                frontier=self.learner.frontier[log],
            )
            for log, acceptor in self.acceptors.items()
        ]
        leads = frozenset(log for log, proposer in self.proposers.items() if proposer.leading)
        waits = self.rejoining.waits(self.incarnation, self.quorum) if self.rejoining else None
        return Report(
            self.clock, self.incarnation, self.life, self.in_flight, self.revocations, leads, logs, waits
        )

    def greet(self, identity: Identity) -> str | None:
        """A process says that it is this peer, started with this disk: why nobody may listen to it; None if
        one may. (Incarnation 0 is rejoining, and says nothing that counts.)

        A copy of an older state, which has forgotten votes, shows itself by its number, or by what its start
        has found: less than what an earlier start had let us know to be durable (N25).
        """
        peer, incarnation, life = identity.node, identity.incarnation, identity.life
        if not incarnation or (incarnation, life) == self.noted(peer):
            return None
        refusal = self.incarnations.refusal(peer, incarnation, life)
        if refusal is None and incarnation == self.noted(peer)[0]:
            lost = self.witness.missing(identity, self.compaction.held(peer), self.acceptors[peer])
            if lost is not None:
                refusal = f"node {peer} is a stale copy: {lost}: remove its data and start it with --rejoin"
        if refusal is None:
            self.note(peer, incarnation, life)
        return refusal

    def _forget(self, peer: int) -> None:
        """A peer has lost its disk: drop what the old one has said."""
        self.witness.forget(peer)
        for proposer in self.proposers.values():
            proposer.forget(peer)
        self.reads.forget(peer)
        self.round_trips.forget(peer)
        self.gossip.forget(peer)
        self.compaction.forget(peer)

    def _on_rejoin(self, sender: int, message: Rejoin, now: float, call: Any) -> None:
        """A peer has lost its disk. Once its new incarnation is noted, no quorum counts the old one here;
        what we tell it then is all that it may have had a part in. If a higher one is noted, it is told only
        that.
        """
        if message.incarnation > self.incarnations.lives[sender][0]:
            self.note(sender, message.incarnation, 0)
        acceptor, proposer = self.acceptors[message.log], self.proposers.get(message.log)
        promised, accepted = acceptor.promised, acceptor.accepted
        entries = acceptor.from_slot(acceptor.chosen)
        if proposer is not None:
            promised = max(promised, proposer.highest)
            if proposer.leading:
                accepted, entries = proposer.ballot, list(proposer.entries)
        noted = self.incarnations.lives[sender][0]
        mute = self.rejoining is not None or message.incarnation < noted
        if mute:
            promised, accepted, entries = 0, 0, []
        answer = Rejoined(
            message.log, message.incarnation, noted, mute,
            promised, accepted, acceptor.chosen, entries, self.fact(message.log), self.lamport.time,
        )  # fmt: skip
        self.outbox.send_after(sender, answer, call)

    def _rejoin(self, rejoining: "Rejoining", now: float) -> None:
        """Ask again who has not answered; when all have, join."""
        if not rejoining.turn and self.incarnation and rejoining.complete(self.quorum):
            if rejoining.noted_by_all:
                self._rejoin_logs(rejoining)
            else:  # (the new number tells the second answers from late first ones)
                rejoining.ask_again(noted_by_all=True)
                self.incarnations.take(self.incarnation + 1)
        if now - rejoining.asked_at < RESEND_AFTER:
            return
        rejoining.asked_at = now
        if not self.incarnation:
            for peer in self.peers:
                if peer not in rejoining.noted:
                    self.outbox.send(peer, Rejoin(self.me, 0))
        else:
            for peer, log in rejoining.missing():
                self.outbox.send_after(peer, Rejoin(log, self.incarnation))

    def _on_rejoined(self, sender: int, message: Rejoined, now: float, call: Any) -> None:
        rejoining = self.rejoining
        assert rejoining is not None, "nobody else listens to these"
        if message.incarnation != self.incarnation or rejoining.turn:
            return
        if not self.incarnation:
            rejoining.noted[sender] = message.noted
            if len(rejoining.noted) == len(self.peers):
                self.incarnations.take(max(2, 1 + max(rejoining.noted.values())))
                rejoining.asked_at = float("-inf")
            return
        if message.noted > self.incarnation:
            rejoining.ask_again(noted_by_all=False)
            self.incarnations.take(message.noted + 1)
            return
        rejoining.answers[sender][message.log] = message
        self.lamport.hear(message.clock)
        self._learn(message.fact, now, sender)

    def _rejoin_logs(self, rejoining: "Rejoining") -> None:
        """All have answered: take over what they say of all logs, in one durable step. Not before we hold
        what they say to be chosen.
        """
        for log, acceptor in self.acceptors.items():
            if acceptor.chosen < max(max(a.start, a.fact.chosen) for a in rejoining.of_log(log)):
                return
        for log, acceptor in self.acceptors.items():
            answers = rejoining.of_log(log)
            best = max(answers, key=lambda answer: (answer.accepted, answer.start + len(answer.entries)))
            promised = max(answer.promised for answer in answers)
            acceptor.rejoin(promised, best.accepted, best.entries[acceptor.chosen - best.start :])
            for entry in acceptor.from_slot(acceptor.chosen):
                self.lamport.see_entry(entry)
        self.lamport.raise_to(self.learner.known[self.me])
        self.outbox.journal(Record(rejoined=True))
        rejoining.turn = self.persistence.turn + 1

    def _on_persisted_rejoining(self, sender: int, message: Persisted, now: float, call: Any) -> None:
        self.persistence.on_persisted(message)
        if self.rejoining is not None and 0 < self.rejoining.turn <= message.turn:
            self._join()
            self.retake_at = now

    def _join(self) -> None:
        """From now on we vote."""
        self.rejoining = None
        self.handlers = HANDLERS


class Rejoining:
    """A node whose disk was lost asks what it may have promised, voted, and said of its clock.

    It must ask *every* other node: a promise that it forgot may have been counted by any of them (N3). First
    for the incarnations that they have noted; its own is to be higher than all. Once a node has noted that,
    no quorum there counts the lost disk, and its answer holds the ballots that it stood with, and the
    entries that it proposed, while that disk still counted. The highest is taken over.

    Whoever is rejoining itself has nothing to tell; a quorum must have. Until the end is durable a node
    neither votes, proposes nor reads, and says nothing of its clock that counts; but it learns, and fetches.
    """

    def __init__(self, peers: Sequence[int], logs: Sequence[int]) -> None:
        self.logs = logs
        self.noted: dict[int, int] = {}  # by peer: the incarnation of ours that it has noted
        self.answers: dict[int, dict[int, Rejoined]] = {peer: {} for peer in peers}  # by log
        self.asked_at = float("-inf")
        self.noted_by_all = False  # whether the answers were given after every node had noted us
        self.turn = 0  # with the records that end it

    def ask_again(self, noted_by_all: bool) -> None:
        """Ask everybody with a higher incarnation.

        Once everybody has noted us, the lost disk is counted nowhere any more. But some answers are older
        than that: a vote of the lost disk may have made a quorum since, at a node that has lost its own disk
        meanwhile and so tells nothing. Who gave the other votes tells of it when asked now.

        Else somebody has noted more than it said: a late message of a disk that rejoined before us, and was
        lost too. We begin anew.
        """
        self.noted_by_all = noted_by_all
        self.answers = {peer: {} for peer in self.answers}
        if noted_by_all:  # else two that believe to be one node would drive each other without a pause
            self.asked_at = float("-inf")

    def tells(self, peer: int) -> bool:
        """Whether this peer has told its state of all logs."""
        answers = self.answers[peer]
        return len(answers) == len(self.logs) and not any(answer.rejoining for answer in answers.values())

    def missing(self) -> list[tuple[int, int]]:
        """Which peers are to be asked for which logs; those that are rejoining, again."""
        return [
            (peer, log)
            for peer, answers in self.answers.items()
            for log in self.logs
            if log not in answers or answers[log].rejoining
        ]

    def complete(self, quorum: int) -> bool:
        """Whether all have answered, and a quorum has told its state."""
        everybody = all(len(answers) == len(self.logs) for answers in self.answers.values())
        return everybody and sum(self.tells(peer) for peer in self.answers) >= quorum

    def waits(self, incarnation: int, quorum: int) -> str:
        """Say what is waited for. `incarnation`: the one that the node has taken; 0: none yet."""
        silent, empty = [], []
        for peer, answers in self.answers.items():
            if len(answers) < len(self.logs) if incarnation else peer not in self.noted:
                silent.append(str(peer))
            elif any(answer.rejoining for answer in answers.values()):
                empty.append(str(peer))
        if not silent and len(self.answers) - len(empty) >= quorum:
            return "all other nodes have answered: catching up"
        waits = [f"no answer yet from {', '.join(silent)}"] if silent else []
        waits += [f"rejoining as well: {', '.join(empty)}"] if empty else []
        rule = f"all {len(self.answers)} other nodes must answer, {quorum} of them with their data"
        return f"{rule}; {'; '.join(waits)}"

    def of_log(self, log: int) -> list[Rejoined]:
        return [answers[log] for peer, answers in self.answers.items() if self.tells(peer)]


Handler = Callable[[Node, int, Any, float, Any], None]
HANDLERS: Final[dict[type, Handler]] = {
    Accept: Node._on_accept,
    Accepted: Node._on_accepted,
    Barrier: Node._on_barrier,
    Reading: Node._on_reading,
    Learn: Node._on_learn,
    Fetch: Node._on_fetch,
    Fetched: Node._on_fetched,
    Prepare: Node._on_prepare,
    Promise: Node._on_promise,
    Rejoin: Node._on_rejoin,
    Persisted: Node._on_persisted,
}
HANDLERS_REJOINING: Final[dict[type, Handler]] = {
    Learn: Node._on_learn,
    Fetch: Node._on_fetch,
    Fetched: Node._on_fetched,
    Rejoin: Node._on_rejoin,
    Rejoined: Node._on_rejoined,
    Persisted: Node._on_persisted_rejoining,
}
