"""One node's protocol: the frame that joins the Acceptors, the Proposers, the Learner and the parts.

Nothing here does I/O or looks at a clock. The caller runs this loop, the same in the server and in the
simulator:

    node.step(sender, message, now), node.propose(...), node.read(...), node.tick(now)   any number of times
    ready = node.drain(now, more)              more: commands wait for the next entry
    send ready.send                            at once
    journal ready.journal + node.notes()       in one frame; it may wait for others unless ready.flush_now
    send ready.send_after                      when that frame, and every frame before it, is durable
    apply ready.apply to the store, then answer ready.reads

Messages that a node addresses to itself go into its step() when they would leave.

Now and then the journal begins a new segment with node.state(), and a checkpoint is made of the segments
before it; node.checkpointed() then lets the entries that it covers be given up. ready.checkpoint_from names
a peer that has given up entries that we lack: the caller takes that peer's checkpoint, and node.install()
merges it.
"""

from collections.abc import Collection, Iterable, Sequence
from random import Random
from typing import Any, Final

from paxoskv.multipaxos import (
    Acceptor,
    Cut,
    Learner,
    Proposer,
)
from paxoskv.protocol.catch_up import CatchUp
from paxoskv.protocol.claims import Claims
from paxoskv.protocol.classic import Classic
from paxoskv.protocol.clock import Clock
from paxoskv.protocol.compaction import Compaction
from paxoskv.protocol.contacts import Contacts
from paxoskv.protocol.core import Core, Report
from paxoskv.protocol.divergence import Divergence
from paxoskv.protocol.faults import Failures, Faults
from paxoskv.protocol.gossip import Gossip
from paxoskv.protocol.incarnations import Incarnations
from paxoskv.protocol.leader import Leader
from paxoskv.protocol.logs import Logs
from paxoskv.protocol.outbox import Message, Outbox, Ready
from paxoskv.protocol.own_logs import OwnLogs
from paxoskv.protocol.persistence import Persisted, Persistence
from paxoskv.protocol.rejoin import Rejoining, testimony
from paxoskv.protocol.revocation import Revocation
from paxoskv.protocol.round_trips import RoundTrips
from paxoskv.protocol.voters import EverybodyVotes, Voters
from paxoskv.protocol.way import Parts, Way
from paxoskv.protocol.witness import Witness
from paxoskv.wire.structs import (
    Accept,
    Accepted,
    Barrier,
    Fetch,
    Fetched,
    Identity,
    Learn,
    Origin,
    Prepare,
    Promise,
    Reading,
    Record,
    Rejoin,
    Rejoined,
)

# The messages that a rejoining node handles; it ignores all others.
WHILE_REJOINING: Final = frozenset({Learn, Fetch, Fetched, Rejoin, Rejoined, Persisted})

OWN_LOGS: Final = "own-logs"
ONE_LOG: Final = 1  # its number, where there is no more than one
WAYS: Final[dict[str, type[Way]]] = {OWN_LOGS: OwnLogs, "classic": Classic, "leader": Leader}


def logs_of(proposing: str, nodes: list[int]) -> list[int]:
    """The logs of a cluster with these nodes."""
    return nodes if WAYS[proposing].owners else [ONE_LOG]


def earliest(one: float | None, other: float | None) -> float | None:
    """The earlier of two times that may be missing."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


class Node(Core):
    """One node: an Acceptor for every log, Proposers, a Learner, and the parts.

    The caller owns time (seconds, any origin, never going back) and the random source, and obeys the loop in
    the module's docstring. After construction: replay() every journaled record, then start().
    """

    def __init__(
        self,
        me: int,
        members: Iterable[int],
        random: Random,
        revoke_after: float = 0.5,
        failures: Failures | None = None,
        incarnation: int = 1,
        voters: type[Voters] = Voters,
        proposing: str = OWN_LOGS,
    ) -> None:
        make = WAYS[proposing]
        self.me = me
        self.nodes = nodes = sorted(members)
        self.peers = peers = [node for node in nodes if node != me]
        self.quorum = quorum = len(nodes) // 2 + 1
        ring = nodes[nodes.index(me) :] + nodes[: nodes.index(me)]  # from us on
        self.outbox = outbox = Outbox()
        self.clock = clock = Clock(outbox)
        logs = logs_of(proposing, nodes)
        self.acceptors = acceptors = {log: Acceptor(log, outbox.journal) for log in logs}
        self.learner = learner = Learner(acceptors)
        self.own = own = Proposer(me if make.owners else ONE_LOG, me, nodes)
        self.contacts = contacts = Contacts(peers)
        self.round_trips = trips = RoundTrips(learner)
        self.voters = (voters if make.owners else EverybodyVotes)(me, ring, own, contacts, trips)
        self.revocation = Revocation(me, nodes, learner, contacts, trips, random, revoke_after)
        self.proposers = {own.log: own}
        self.persistence = persistence = Persistence(me, acceptors, self.proposers, learner, clock, outbox)
        self.compaction = Compaction(peers, acceptors, learner, self.persistence)
        self.divergence = Divergence(logs, quorum)
        self.witness = Witness(peers, logs)
        self.gossip = Gossip(own, peers, learner, clock, self.persistence, self.divergence, outbox)
        self.way = way = make(Parts(
            own, self.proposers, learner, clock, self.voters, contacts, trips, self.revocation,
            self.gossip, outbox, random,
        ))  # fmt: skip
        self.catch_up = CatchUp(peers, acceptors, learner, outbox, random)
        self.faults = Faults(failures or Failures(), random)
        self.logs = Logs(
            ring, way, learner, clock, self.persistence, contacts, self.faults, self.voters,
            trips, self.witness, self.gossip, self.catch_up, outbox,
        )  # fmt: skip
        self.incarnations = incarnations = Incarnations(peers, incarnation, outbox, random)
        self.claims = Claims(acceptors, self.proposers, clock, incarnations)
        self.rejoining: Rejoining | None = None
        if not incarnation:
            assert peers, "there is nobody who knows what this node has forgotten"
            self.rejoining = Rejoining(me, peers, quorum, learner, clock, incarnations, persistence, outbox)

    # ------------------------------------------------------------------------------- starting, and what lasts

    def replay(self, record: Record) -> None:
        """Recovery: one journaled record, in the order in which they were written.

        The caller resolves `installed` itself, by install(): it has the checkpoint.
        """
        if record.reservation is not None:
            self.clock.persisted(record.reservation)
        elif record.applied:
            self.persistence.replayed_position = (record.applied.timestamp, record.applied.owner)
        elif record.candidate:
            proposer = self.way.proposer(record.candidate.log)
            proposer.highest = max(proposer.highest, record.candidate.ballot)
        elif record.noted or record.life is not None or record.incarnation is not None:
            self.incarnations.replay(record)
        elif record.rejoined:
            self.rejoining = None
        else:
            of = record.promised or record.held or record.chosen
            assert of, "a record without any field"
            self.acceptors[of.log].replay(record)

    def start(self, now: float) -> None:
        """Begin a life: apply once more what was applied, and let the way to propose begin."""
        if self.rejoining is None:
            self.incarnations.found(self.persistence.recovered(), self.clock.reserved)
        self.incarnations.begin_life()
        self.clock.begin_life()
        self.persistence.begin_life()
        for acceptor in self.acceptors.values():
            self.clock.see(acceptor.last_timestamp, 0)
        self.clock.reserve()
        if self.rejoining is None:
            self.way.begin(now)

    def notes(self) -> list[Record]:
        return self.persistence.notes()

    # -------------------------------------------------------------------------------------------- checkpoints

    @property
    def drained(self) -> bool:
        return not self.outbox.ready.journal

    def state(self, pending: Sequence[Record] = ()) -> list[Record]:
        """All that must not be forgotten, for the first frame of a new segment (N13). Only while drained.

        It takes the place of all segments before it, together with a checkpoint made of them. Entries that
        were executed when the frame before was written are in that checkpoint. `pending` are records that
        were handed out but not written yet: all but `installed` are superseded.
        """
        assert self.drained, "what is journaled later must not be repeated"
        records = [record for record in pending if record.installed is not None]
        records += [Record(life=self.incarnations.life), Record(reservation=self.clock.reserving)]
        records += self.incarnations.state(self.rejoining is None or self.rejoining.turn > 0)
        return records + self.persistence.state()

    def cut(self) -> Cut:
        return self.learner.cut(self.clock.time)

    def install(self, cut: Cut, now: float = 0.0, number: int = 0) -> bool:
        """Merge a checkpoint. True: its state must take the place of the store's.

        It is our own, before replay() (then without `now` and number), or that of another node, which was
        stored as this number. Nothing goes back by it.
        """
        if number:
            self.persistence.journal_notes(number)
        newer = self.logs.install_cut(cut, now)
        if number:
            self.clock.reserve()
        if newer:
            self.way.covered(cut.position)
        return newer

    def hashed(self, position: tuple[int, int], rolling: int) -> None:
        self.divergence.hashed(position, rolling)

    def checkpointed(self, cut: Cut) -> None:
        self.compaction.checkpointed(cut)

    def overtook(self, peer: int) -> bool:
        return self.compaction.overtook(peer)

    # -------------------------------------------------------------------------------------- what clients want

    @property
    def ready(self) -> bool:
        return self.way.ready

    @property
    def joined(self) -> bool:
        return self.rejoining is None

    @property
    def in_flight(self) -> int:
        return self.way.in_flight

    @property
    def gathers(self) -> bool:
        return self.way.batch > 1

    @property
    def has_room(self) -> bool:
        return self.way.has_room

    @property
    def batch(self) -> int:
        return self.way.batch

    def origin(self) -> Origin | None:
        return self.way.origin(self.incarnations.life)

    def propose(self, payload: bytes, token: Any) -> None:
        """Propose an entry; `token` comes back when it is applied. Only while ready and has_room."""
        self.way.propose(payload, token)

    def read(self, token: Any) -> None:
        self.way.read(token)

    def forget_reads(self, tokens: Collection[Any]) -> None:
        self.way.forget_reads(tokens)

    # ----------------------------------------------------------------------------------------------- messages

    def step(self, sender: int, message: Message, now: float, call: Any = None) -> None:
        """A message arrived. `call` names the request to the caller, which gets it back with the answer."""
        if self.contacts.hear(sender, now):
            self.way.is_back(sender)
        kind = message.__class__
        if (self.rejoining is None or kind in WHILE_REJOINING) and not self.claims.refuses(sender, message):
            self._dispatch(kind, sender, message, now, call)

    def _dispatch(self, kind: type, sender: int, message: Message, now: float, call: Any) -> None:
        if kind is Accept:
            self.logs.on_accept(sender, message, now, call)
        elif kind is Accepted:
            self.logs.on_accepted(sender, message, now)
        elif kind is Persisted:
            self._on_persisted(message, now)
        elif kind is Learn:
            self._on_learn(sender, message, now)
        elif kind is Barrier:
            self.logs.on_barrier(sender, message, call)
        elif kind is Reading:
            self._on_reading(sender, message, now)
        elif kind is Prepare:
            self.logs.on_prepare(sender, message, now, call)
        elif kind is Promise:
            self.logs.on_promise(sender, message, now)
        elif kind is Fetch:
            self.catch_up.on_fetch(sender, message, call)
        elif kind is Fetched:
            self.logs.on_fetched(sender, message, now)
        elif kind is Rejoin:
            self._on_rejoin(sender, message, call)
        elif kind is Rejoined:
            self._on_rejoined(sender, message, now)
        else:
            self.way.on_forward(sender, message, call)

    def _on_persisted(self, message: Persisted, now: float) -> None:
        self.persistence.on_persisted(message)
        if self.rejoining is not None and self.rejoining.is_done(message.turn):
            self.rejoining = None
            self.way.begin(now)

    def _on_learn(self, sender: int, message: Learn, now: float) -> None:
        self.clock.hear(message.clock)
        self.compaction.holds(sender, message.held)
        self.divergence.compare(sender, message.applied, message.hash, now)
        self.divergence.look_what_is_missing(sender, message, self.compaction.held(sender), now)
        if message.applied > self.learner.position and self.learner.has_passed(message.applied):
            self.divergence.applied_elsewhere(sender, now)
        for fact in message.facts:
            self.logs.learn(fact, now, sender)

    def _on_reading(self, sender: int, message: Reading, now: float) -> None:
        self.clock.hear(message.clock)
        for fact in message.facts:
            self.logs.learn(fact, now, sender)
        self.way.on_reading(sender, message, now)

    @property
    def turn_due(self) -> float | None:
        return earliest(self.catch_up.due, self.way.due)

    # ----------------------------------------------------------------------------- the end of a turn

    def drain(self, now: float, more: bool = False) -> Ready:
        """End a turn: what was collected, and what is better done once per turn than once per message.

        `more`: commands wait that will be proposed soon, and reads for their entry.
        """
        self.way.end_turn(now)  # first, because what is proposed again leaves with this turn's Accepts
        self.logs.send_accepts(now)  # our own acceptor gets them here, so that its records join this frame
        own = self.logs.own_fact()  # it may move our own frontier, for which commands wait to be applied
        if self.learner.moved:
            self._apply()
        self.way.answer_reads(now, more)  # all frontiers of this turn are known
        self.gossip.end_turn(own, now)  # a peer that an Accept has told needs no gossip
        if self.catch_up.fetching:
            self.catch_up.send(now)
        self.outbox.look_who_waits(now)  # before the message to ourselves, for which nobody waits
        if self.outbox.ready.journal:
            self.persistence.end_turn(now)  # last, when it is known which logs the records are about
        return self.outbox.drain()

    def _apply(self) -> None:
        """The commands whose turn has come."""
        self.learner.moved = False
        for timestamp, owner, payload in self.learner.apply():
            token = self.way.applied(timestamp, owner, payload)
            self.outbox.apply(timestamp, owner, payload, token)

    # --------------------------------------------------------------------------------------------------- time

    @property
    def busy(self) -> bool:
        """Whether tick() wants to be called every few milliseconds, not every GOSSIP_IDLE seconds."""
        waiting = self.catch_up.fetching or self.gossip.news_at or self.learner.heads
        return bool(waiting) or self.way.busy or self.persistence.waits or self.rejoining is not None

    def tick(self, now: float) -> None:
        """Time has passed: repeat what was lost, gossip, and look for nodes that hold us up."""
        self.gossip.tick(self.logs.own_fact(), now)
        self.way.tick(now)
        self.outbox.tick(now)
        self.persistence.tick(now)
        if self.own.established:
            self.logs.ask_to_vote(self.voters.tick(now))
        self.way.send_again(now)
        self.compaction.tick(now)
        self.divergence.tick(now)
        if self.rejoining is None:
            self.way.watch(now)
        else:
            self.rejoining.tick(now)

    def link(self, peer: int, refused: bool) -> None:
        self.contacts.link(peer, refused)

    # ------------------------------------------------------------------------------ disks that were lost

    def noted(self, peer: int) -> tuple[int, int]:
        """The highest (incarnation, life) of a peer that was heard of.

        Messages of a lower incarnation must not be handed in: what that disk had promised is forgotten.
        """
        return self.incarnations.lives[peer]

    def note(self, peer: int, incarnation: int, life: int) -> None:
        """Remember, durably, which disk and which start of it a peer has."""
        if self.rejoining is not None and (incarnation, life) > self.noted(peer):
            self.rejoining.forget(peer)
        if self.incarnations.note(peer, incarnation, life):
            self._forget(peer)

    def identify(self, identity: Identity) -> Identity:
        return self.incarnations.identify(identity, self.joined)

    def heard_at(self, peer: int) -> float:
        return self.contacts.heard[peer]

    def reached(self, seconds: float, now: float) -> int:
        return self.contacts.reached(seconds, now)

    def report(self) -> Report:
        own, waits = self.incarnations, self.rejoining.waits() if self.rejoining else None
        return Report(
            self.clock.time, own.incarnation, own.life, self.in_flight, self.way.stands,
            self.way.revocations, self.way.leads(), self.me * self.way.owners, self.logs.status(), waits,
            self.claims.refused, self.claims.last, self.divergence.applied,
        )  # fmt: skip

    def greet(self, identity: Identity) -> str | None:
        refusal = self.refusal(identity)
        peer, incarnation, life = identity.node, identity.incarnation, identity.life
        if refusal is None and incarnation and (incarnation, life) != self.noted(peer):
            self.note(peer, incarnation, life)
        return refusal

    def refusal(self, identity: Identity) -> str | None:
        held = self.compaction.held(identity.node)
        stale = self.witness.refusal(identity, self.incarnations, held, self.acceptors)
        return self.claims.refusal(identity) or stale

    def _forget(self, peer: int) -> None:
        """A peer has lost its disk: drop what the old one has said."""
        self.witness.forget(peer)
        for proposer in self.proposers.values():
            proposer.forget(peer)
        self.way.forget(peer)
        self.round_trips.forget(peer)
        self.gossip.forget(peer)
        self.compaction.forget(peer)

    def _on_rejoin(self, sender: int, message: Rejoin, call: Any) -> None:
        """A peer has lost its disk: note its new incarnation, and tell what it may have had a part in."""
        if message.incarnation > self.noted(sender)[0]:
            self.note(sender, message.incarnation, 0)
        noted = self.noted(sender)[0]
        answer = testimony(
            message, noted, not self.joined or message.incarnation < noted, self.acceptors[message.log],
            self.proposers.get(message.log), self.logs.fact(message.log), self.clock.time,
            self.incarnations.told(self.me),
        )  # fmt: skip
        self.outbox.send_after(sender, answer, call)

    def _on_rejoined(self, sender: int, message: Rejoined, now: float) -> None:
        if self.rejoining is None:
            return
        for process in self.incarnations.newer(message.lives):
            self.note(*process)
        if self.rejoining.on_rejoined(sender, message):
            self.logs.learn(message.fact, now, sender)
