"""Watches one node at the boundary of its core, and writes down what happens there.

The loop (paxoskv/node/replica.py) tells it of everything that goes in, of what each turn wants done, and of
the disk. What the acceptors have promised and accepted stands in the records of the turn; what the node knows
to be chosen, its core reports.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from paxoskv.multipaxos import Acceptor, Applied, Proposer, node_of
from paxoskv.protocol.core import Core
from paxoskv.protocol.outbox import Message, Ready
from paxoskv.trace.events import Trace, dotted, kept, outcome, some, spoken
from paxoskv.wire.structs import (
    Accepted,
    Barrier,
    Command,
    Entry,
    Forward,
    Held,
    Learn,
    Promise,
    Reading,
    Record,
    Verdict,
    Vote,
)

STATE_EVERY: Final = 1000  # events of a node: a ring whose beginning is lost still shows how its logs stand
TALK: Final = frozenset({Learn, Barrier, Reading})  # most of it does not matter, and is not recorded
PROPOSALS: Final = 2000  # that are not applied yet are kept, at most; none of them stays for ever


class Counted(NamedTuple):
    """A promise or a vote that was counted."""

    ballot: int
    length: int  # of the log that is voted for; -1: a promise
    event: int


# What may have made a turn: an event (0: none yet), its log, and if it is gossip, the sender and that.
# A plain tuple, because one is made for each message.
Trigger = tuple[int, int | None, tuple[int, Message] | None]


class Recorder:
    """Writes the events of one node's life.

    An event's cause is what began the turn: of several things that came before it, the last one that is about
    the same log.
    """

    def __init__(self, trace: Trace, core: Core, brief: bool = False) -> None:
        """`brief`: leave out gossip and the questions of reads, unless something comes of them.

        They would fill a ring in minutes.
        """
        self.trace = trace
        self.brief = brief
        self.core = core
        self.me = core.me
        self.acceptors: dict[int, Acceptor] = getattr(core, "acceptors", {})  # a core without peers has none
        self.proposers: dict[int, Proposer] = getattr(core, "proposers", {})
        self.home = next(iter(self.proposers), self.me)  # the log that the node stands for of itself
        self.arriving = 0  # the `sent` event of what is delivered next, where the network knows it
        self.triggers: list[Trigger] = []  # of this turn
        self.last_about: dict[int | None, int] = {}  # by log: the index of its last trigger
        self.leads: dict[int, int] = {}  # by log: the ballot at which we lead it
        self.led: dict[int, int] = {}  # by log: our last such ballot
        self.over = True  # whether the turn has been drained: what comes begins another one
        self.votes: dict[int, dict[int, list[Counted]]] = {}  # by log and node: those that say more and more
        self.promises: dict[int, dict[int, Counted]] = {}
        self.slots: dict[tuple[int, int], tuple[int, int]] = {}  # by log and timestamp: (slot, event)
        self.unwritten: list[int] = []  # events whose records are not in a frame yet
        self.own: list[tuple[int, int, int]] = []  # own promises and votes: (log, ballot, length)
        self.frame: tuple[int, list[tuple[int, int, int]]] = (0, [])  # under way: its event, what of `own`
        self.asked_by: dict[int, int] = {}  # by id of the token: the `asked` event
        self.proposals: dict[bytes, int] = {}  # not applied yet, by payload: `proposed`, or a peer's Forward
        self.state()
        self.known = {log: acceptor.chosen for log, acceptor in self.acceptors.items()}
        self.leads = self._leading()
        self.led.update(self.leads)

    def state(self) -> None:
        """How all logs stand: where a recording begins, and now and then."""
        self.stated = self.trace.last
        logs = [
            [s.log, dotted(s.promised), dotted(s.accepted), s.length, s.chosen, s.executed]
            for s in self.core.report().logs
        ]
        self.trace.add(self.me, "state", logs=logs, leads=sorted(self._leading()))

    def _leading(self) -> dict[int, int]:
        return {log: proposer.ballot for log, proposer in self.proposers.items() if proposer.leading}

    # ------------------------------------------------------------------------------------------ what goes in

    def asked(self, token: Any, what: Sequence[Command]) -> None:
        """A client has sent commands, or asks for a linearizable read (none)."""
        event = self.trace.add(self.me, "asked", commands=some(what, spoken) or ["read"])
        self.asked_by[id(token)] = event
        self._begin(event, self.home)

    def delivered(self, sender: int, message: Message) -> None:
        if self.brief and message.__class__ in TALK:
            self._begin(0, None, (sender, message))
            return
        event = self._arrival(sender, message)
        self._begin(event, self.home if message.__class__ is Forward else getattr(message, "log", None))
        if message.__class__ is Forward:
            self._propose(message.payload, event)
        elif message.__class__ is Accepted and message.vote == Vote.ACCEPTED:
            self._count(sender, message.log, message.ballot, message.length, event)
        elif message.__class__ is Promise and message.verdict == Verdict.PROMISED:
            self._count(sender, message.log, message.ballot, -1, event)

    def _arrival(self, sender: int, message: Message) -> int:
        cause, self.arriving = self.arriving, 0
        return self.trace.carry(self.me, "delivered", cause, message, sender)

    def ticked(self) -> None:
        """Time has passed: an event only if something comes of it."""
        self._begin(0, None)

    def _begin(self, event: int, log: int | None, gossip: tuple[int, Message] | None = None) -> None:
        """Something may make a turn; event 0: it becomes one when something comes of it."""
        if self.over:
            self.triggers.clear()
            self.last_about.clear()
            self.over = False
        self._trigger(event, log, gossip)

    def _trigger(self, event: int, log: int | None, gossip: tuple[int, Message] | None = None) -> None:
        self.last_about[log] = len(self.triggers)
        self.triggers.append((event, log, gossip))

    def _count(self, node: int, log: int, ballot: int, length: int, event: int) -> None:
        """A promise (length -1) or a vote that counts now."""
        if length < 0:
            proposer = self.proposers.get(log)
            if proposer is None or not proposer.preparing or proposer.ballot != ballot:
                return  # enough have promised before it
            promises, counted = self.promises.setdefault(log, {}), Counted(ballot, length, event)
            promises[node] = max(counted, promises.get(node, counted))  # an older ballot's may come late
        elif self.leads.get(log) == ballot:
            self.votes.setdefault(log, {}).setdefault(node, []).append(Counted(ballot, length, event))

    def _cause(self, log: int | None) -> int:
        """What has made an event of this log, in this turn: the last that is about it, or else the last."""
        triggers = self.triggers
        if not triggers:
            return 0
        at = self.last_about.get(log, len(triggers) - 1)
        event, _, gossip = triggers[at]
        if not event:
            event = self._arrival(*gossip) if gossip else self.trace.add(self.me, "timer")
            triggers[at] = (event, None, None)
        return event

    # --------------------------------------------------------------------------------- what a turn wants done

    def proposed(self, payload: bytes, tokens: Sequence[Any]) -> None:
        """The node puts commands into an entry of its own."""
        causes = [self.asked_by[id(token)] for token in tokens if id(token) in self.asked_by]
        event = self.trace.add(
            self.me, "proposed", causes[0] if causes else 0, self.home, entries=kept([Entry(0, payload)]),
            because=causes[1:],
        )  # fmt: skip
        self._begin(event, self.home)
        self._propose(payload, event)

    def _propose(self, payload: bytes, event: int) -> None:
        self.proposals[payload] = event
        if len(self.proposals) > PROPOSALS:
            del self.proposals[next(iter(self.proposals))]

    def drained(self, ready: Ready) -> None:
        """What the records of the turn say, then what the node has come to know."""
        self.over = True
        for record in ready.journal:
            if record.held is None:
                self._ballots(record)
        if self._has_changed():
            self._compare(ready)
        else:  # the common case
            self._take(ready)
        if self.trace.last - self.stated > STATE_EVERY:
            self.state()

    def _has_changed(self) -> bool:
        """Whether more is chosen than we knew, or we lead another log, or at another ballot."""
        known, leads = self.known, self.leads
        for log, acceptor in self.acceptors.items():
            if acceptor.chosen != known[log]:
                return True
        for log, proposer in self.proposers.items():
            if (proposer.ballot if proposer.leading else 0) != leads.get(log, 0):
                return True
        return False

    def _compare(self, ready: Ready) -> None:
        """What has changed of the logs, in the order in which it can have come to be."""
        before, self.leads = self.leads, self._leading()
        for log, ballot in self.leads.items():
            if before.get(log) != ballot:
                self._leads(log, ballot)
        gone = {log: ballot for log, ballot in before.items() if self.leads.get(log) != ballot}
        lost = {log: ballot for log, ballot in gone.items() if self._is_lost(log, ballot)}
        for log, ballot in lost.items():
            self.trace.add(self.me, "deposed", self._cause(log), log, None, ballot)
        self._take(ready)
        for log, acceptor in self.acceptors.items():
            if acceptor.chosen > self.known[log]:
                self._chosen(acceptor)
        for log in gone.keys() - lost.keys():
            self.trace.add(self.me, "released", self._cause(log), log, None, gone[log])

    def _is_lost(self, log: int, ballot: int) -> bool:
        """Whether a higher ballot of another node has ended ours; else we gave ours up."""
        highest = max(self.acceptors[log].promised, self.proposers[log].highest)
        return highest > ballot and node_of(highest) != self.me

    def _take(self, ready: Ready) -> None:
        for record in ready.journal:
            if record.held is not None:
                self._accepts(record.held)

    def _ballots(self, record: Record) -> None:
        if record.candidate is not None:
            log, ballot = record.candidate
            because = list(self.proposals.values()) if log == self.home else []
            event = self.trace.add(self.me, "stands", self._cause(log), log, None, ballot, because=because)
            self.unwritten.append(event)
        elif record.promised is not None:
            log, ballot = record.promised
            event = self.trace.add(self.me, "promised", self._cause(log), log, None, ballot)
            self.unwritten.append(event)
            self.own.append((log, ballot, -1))
        elif record.rejoined is not None:
            self.trace.add(self.me, "rejoined", self._cause(None))
        elif record.installed is not None:  # a checkpoint has brought more than was accepted here
            self.state()

    def _leads(self, log: int, ballot: int) -> None:
        """A quorum has promised: which promises those are."""
        self.led[log] = ballot
        self.votes.pop(log, None)
        promises = self.promises.get(log, {})
        nodes = sorted(node for node, promise in promises.items() if promise.ballot == ballot)
        because = [promises[node].event for node in nodes]
        cause = self._cause(log)
        event = self.trace.add(self.me, "leads", cause, log, None, ballot, promises=nodes, because=because)
        self._trigger(event, log)  # of what is adopted now

    def _accepts(self, held: Held) -> None:
        cause = self._cause(held.log)
        event = self.trace.add(
            self.me, "accepted", cause, held.log, held.start, held.ballot,
            entries=kept(held.entries), because=self._reasons(held.log, held.entries, cause),
        )  # fmt: skip
        self.unwritten.append(event)
        self.own.append((held.log, held.ballot, held.start + len(held.entries)))
        for slot, entry in enumerate(held.entries, held.start):
            self.slots[held.log, entry.timestamp] = (slot, event)

    def _reasons(self, log: int, held: Iterable[Entry], cause: int = 0) -> list[int]:
        """The events in which these entries were accepted or proposed here before, if they were."""
        events = []
        for timestamp, payload in held:
            if before := self.slots.get((log, timestamp)):
                events.append(before[1])
            if payload in self.proposals and self.proposals[payload] != cause:
                events.append(self.proposals[payload])
        return sorted(set(events)) if events else events

    def _chosen(self, acceptor: Acceptor) -> None:
        """More of a log is known to be chosen.

        It was counted here, if the ballot that it was counted at is one that we have led; else others told.
        """
        log, evidence, length = acceptor.log, acceptor.evidence, acceptor.chosen
        first, self.known[log] = self.known[log], length
        if evidence != self.led.get(log):
            self.trace.add(self.me, "learned", self._cause(log), log, first, evidence, length=length)
            return
        votes: dict[int, int] = {}  # by node: the event of the first vote for all of it, or for the most
        for node, counted in sorted(self.votes.get(log, {}).items()):
            for vote in counted:
                if vote.ballot == evidence and vote.length > first:
                    votes[node] = vote.event
                    if vote.length >= length:
                        break
            counted[:] = [vote for vote in counted if vote.length > length]
        self.trace.add(
            self.me, "chosen", self._cause(log), log, first, evidence, length=length,
            votes=list(votes), because=list(votes.values()),
        )  # fmt: skip

    # ------------------------------------------------------------------------------------- carrying it out

    def sent(self, to: int, message: Message) -> None:
        if self.brief and message.__class__ in TALK:
            return
        kind = message.__class__
        log = self.home if kind is Forward else getattr(message, "log", None)
        because = None
        if kind is Promise:
            because = self._reasons(message.log, message.entries)
        elif kind is Forward and message.payload in self.proposals:
            because = [self.proposals[message.payload]]
        self.trace.carry(self.me, "sent", self._cause(log), message, to, because)

    def journaled(self) -> None:
        """A frame is being written."""
        event = self.trace.add(self.me, "journaled", self._cause(None), because=self.unwritten)
        self.frame = (event, self.own)
        self.unwritten, self.own = [], []

    def durable(self) -> None:
        """The frame is on the disk: own promises and votes in it count."""
        event = self.trace.add(self.me, "durable", self.frame[0])
        for log, ballot, length in self.frame[1]:
            self._count(self.me, log, ballot, length, event)
        self.frame = (0, [])
        self._begin(event, None)

    def applied(self, entry: Applied) -> None:
        slot, accepted = self.slots.pop((entry.owner, entry.timestamp), (None, 0))
        self.proposals.pop(entry.payload, None)
        self.trace.add(
            self.me, "applied", self._cause(entry.owner), entry.owner, slot,
            entries=kept([Entry(entry.timestamp, entry.payload)]), because=[accepted] if accepted else [],
        )  # fmt: skip

    def answered(self, token: Any, value: Any) -> None:
        asked = self.asked_by.pop(id(token), 0)
        self.trace.add(
            self.me, "answered", self._cause(None), answer=outcome(value), because=[asked] if asked else []
        )
