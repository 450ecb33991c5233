"""Leader: one log, and one node that leads it for all. It is textbook multi-Paxos.

    node 4                   node 1, the leader              the others
      | Forward(commands) ---> |                               |
      | <-------- Forwarded    | Accept(1.1, 7, entry) ------> |   phase 2 alone, for node 4 as well
      |                        | <----------------- Accepted   |   a quorum: chosen
      | <------- Learn(chosen) |                               |   node 4 applies it, and answers its client

Phase 1 comes once for each leader. The first node that stands keeps the log until it makes no progress: then
the next in turn stands for all that is not chosen. What node 4 had handed to the leader before is in the log
of the new one, or node 4 hands it over again; either way the log has it once.

A read asks all nodes. Say the leader of a ballot has answered with the length that it knows to be chosen,
and a quorum that it has promised no higher ballot. All answers were given after the read came. So nothing
had been chosen by then at a higher ballot, and the leader knew the rest: the read waits until that much of
the log is executed here. (The leader must be established: only then does it know what older ballots chose.)
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from paxoskv.multipaxos import RESEND_AFTER, Proposer, node_of
from paxoskv.protocol.one_log import OneLog
from paxoskv.protocol.revocation import TURN
from paxoskv.protocol.way import Parts
from paxoskv.wire.structs import Barrier, Forward, Forwarded, Reading

CUT_OFF: Final = 1.0  # seconds: a leader that is silent for less, if patience is short, may still be there


@dataclass(slots=True)
class Handed:
    """What has become of our entry under way."""

    ballot: int = 0  # whose log has it, or whose leader it was handed to last; 0: none
    taken: bool = False  # whether that log has it
    at: float = 0.0  # when it was handed over last
    refused: int = 0  # the ballot that nobody leads any more, as its leader has said


@dataclass(slots=True)
class ReadRound:
    """What nodes are asked for these reads, and what they have said."""

    round: int  # its number
    asking: list[Any] = field(default_factory=list)  # the reads
    asked_at: float = 0.0
    promises: dict[int, int] = field(default_factory=dict)  # by node: the ballot that it has promised
    best: tuple[int, int] = (0, 0)  # the highest ballot that is led, and what its leader knows to be chosen


class Leader(OneLog):
    """Leads the log, or hands commands to the node that does; stands when nothing goes on."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.handed = Handed()
        # As the leader.
        self.adopted = 0  # how long our log was when our ballot began
        self.takes: dict[int, tuple[int, int]] = {}  # by node: the last (life, number) that we have taken
        self.stand_at: float | None = None  # when to stand: a life begins, and nobody leads yet
        self.cut_off = False  # whether the leader has been silent for so long that we take no commands
        # So that an earlier life's answers fit no round:
        self.reading = ReadRound(self.random.getrandbits(48) << 12)

    @property
    def busy(self) -> bool:
        return self.stand_at is not None or super().busy

    @property
    def ready(self) -> bool:
        return self.begun and not self.cut_off and self.acceptor.accepted > 0

    def begin(self, now: float) -> None:
        """Ask the last leader to lead again; in a new cluster, one node after the other may try."""
        self.begun = True
        if node_of(self.acceptor.promised) in (0, self.me):
            self.stand_at = now + (0 if self.acceptor.promised else TURN * self.own.nodes.index(self.me))

    # ------------------------------------------------------------------------------ the log and its entries

    def lead(self, proposer: Proposer) -> None:
        super().lead(proposer)
        self.adopted = proposer.end
        self.takes.clear()
        self.stand_at = None

    def lose(self, proposer: Proposer, promised: int, now: float) -> None:
        proposer.step_down(promised)

    def end_turn(self, now: float) -> None:
        """Our entry goes into our own log, or to the leader, unless it is there already.

        A leader is asked by the ballot whose log we hold; while a higher one is promised, we wait for that.
        """
        payload, handed, leads = self.entry.payload, self.handed, self.own.leading
        ballot = self.own.ballot if leads else self.acceptor.accepted
        if payload is None or ballot < self.acceptor.promised or ballot == handed.refused:
            return
        if ballot != handed.ballot:
            handed.ballot, handed.taken, handed.at = ballot, False, float("-inf")
        if handed.taken or now - handed.at < RESEND_AFTER:
            return
        handed.at = now
        # It is looked up anew each time, because our copy of the log may have grown.
        handed.taken = self._is_in(
            self.own.entries if leads else self.acceptor.from_slot(self.acceptor.chosen)
        )
        if leads and not handed.taken:
            self._append(payload)
            handed.taken = True
        elif not handed.taken:
            forward = Forward(ballot, self.entry.origin, payload, self.acceptor.length)
            self.outbox.send(node_of(ballot), forward)

    def propose(self, payload: bytes, token: Any) -> None:
        super().propose(payload, token)
        self.handed.ballot = 0

    def on_forward(self, sender: int, message: Forward | Forwarded, call: Any) -> None:
        """Take a peer's entry into our log, once; or hear whether ours was taken.

        A peer that does not hold all that we have adopted cannot know that its entry is not in there.
        """
        if isinstance(message, Forwarded):
            if message.origin == self.entry.origin and message.ballot == self.handed.ballot:
                self.handed.taken = self.handed.taken or message.taken
                self.handed.refused = self.handed.refused if message.taken else message.ballot
            return
        leads = self.own.leading and self.own.ballot == message.ballot
        origin = (message.origin.life, message.origin.number)
        if leads and origin > self.takes.get(sender, (0, 0)):
            if message.held < self.adopted or not self.own.has_room():
                return  # the peer will ask again
            self.takes[sender] = origin
            self._append(message.payload)
            self.gossip.awaits(sender, self.entry.timestamp)
        self.outbox.send(sender, Forwarded(message.ballot, message.origin, leads), call)

    # --------------------------------------------------------------------------------------- when to stand

    def watch(self, now: float) -> None:
        """Stand if nothing goes on: nobody leads, or the leader is silent, or it cannot finish anything."""
        self._look_at_leader(now)
        super().watch(now)
        if self.own.preparing and not self._is_in_contact(now):
            self.own.step_down()

    def promised(self, log: int, now: float) -> None:
        self.stand_at = None

    def _is_held_up(self, now: float) -> bool:
        leader, accepted = self._holder(), self.acceptor.accepted
        if leader == self.me:
            nobody = not self.own.leading
        else:
            nobody = accepted in (0, self.handed.refused) or self.contacts.is_silent(leader, now)
        waits = nobody or accepted < self.acceptor.promised or self.entry.payload is not None
        return waits or any(self.reads()) or super()._is_held_up(now)

    def _is_our_turn(self, now: float) -> bool:
        return super()._is_our_turn(now) if self.stand_at is None else now >= self.stand_at

    def _look_at_leader(self, now: float) -> None:
        """If others reach a leader that we do not reach, they serve clients better."""
        leader, patience = self._holder(), max(2 * self.revocation.patience(now), CUT_OFF)
        silent = leader != self.me and now - self.contacts.heard[leader] > patience
        if silent and not self.cut_off:
            self._lost()
        self.cut_off = silent

    # ----------------------------------------------------------------------------------------------- reads

    def ballots(self) -> tuple[int, ...]:
        return (self.acceptor.promised, self.own.ballot if self.own.established else 0)

    def answer_reads(self, now: float, more: bool) -> None:
        if self.waiting and not self.reading.asking:
            self.reading.asking, self.waiting = self.waiting, []
            self._ask(now)
        super().answer_reads(now, more)

    def tick(self, now: float) -> None:
        if self.reading.asking and now - self.reading.asked_at >= max(
            RESEND_AFTER, 2 * self.round_trips.longest(now)
        ):
            self._ask(now)

    def on_reading(self, sender: int, message: Reading, now: float) -> None:
        if message.promised is None:
            return
        if self.own.leading and message.promised > self.own.ballot:
            self.lose(self.own, message.promised, now)
        if message.round != self.reading.round or not self.reading.asking:
            return
        self.reading.promises[sender] = message.promised
        for fact in message.facts:
            if message.leads and fact.log == self.own.log:
                self.reading.best = max(self.reading.best, (message.leads, fact.chosen))
        self._date()

    def forget(self, peer: int) -> None:
        self.takes.pop(peer, None)
        self.reading.promises.pop(peer, None)

    def _ask(self, now: float) -> None:
        """Begin a round: no older answer counts."""
        self.reading.round += 1
        self.reading.asked_at = now
        self.reading.promises = {self.me: self.acceptor.promised}
        known = (self.own.ballot, self.learner.logs[self.own.log].chosen)
        self.reading.best = known if self.own.established else (0, 0)
        for peer in self.peers:
            self.outbox.send(peer, Barrier(self.reading.round, 0))
        self._date()

    def _date(self) -> None:
        """A quorum has promised nothing above the ballot that is led: the reads know what they wait for."""
        ballot, chosen = self.reading.best
        holds = sum(promised <= ballot for promised in self.reading.promises.values())
        if ballot and holds >= self.own.quorum:
            self.dated.append((chosen, self.reading.asking))
            self.reading.asking = []

    def reads(self) -> Iterator[list[Any]]:
        yield self.reading.asking
        yield from super().reads()
