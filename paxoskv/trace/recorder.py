"""Watches one node at the boundary of its core, and writes down what happens there.

The loop (paxoskv/node/replica.py) tells it of everything that goes in, of what each turn wants done, and of
the disk. What the acceptors have promised and accepted stands in the records of the turn; what the node knows
to be chosen, its core reports.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from paxoskv.multipaxos import Applied
from paxoskv.protocol.core import Core
from paxoskv.protocol.outbox import Message, Ready
from paxoskv.trace.events import Trace, described, dotted, kept, outcome, spoken
from paxoskv.wire.structs import (
    Accept,
    Accepted,
    Command,
    Entry,
    Held,
    Learn,
    LogStatus,
    Promise,
    Record,
    Verdict,
    Vote,
)

STATE_EVERY: Final = 1000  # events of a node: a ring whose beginning is lost still shows how its logs stand


class Counted(NamedTuple):
    """A promise or a vote that was counted."""

    ballot: int
    length: int  # of the log that is voted for; -1: a promise
    event: int


class Trigger(NamedTuple):
    """What has made a turn, perhaps."""

    event: int  # 0: it is none yet
    log: int | None
    gossip: tuple[int, Learn] | None  # the sender, and what it will be an event of


class Recorder:
    """Writes the events of one node's life.

    An event's cause is what began the turn: of several things that came before it, the last one that is about
    the same log.
    """

    def __init__(self, trace: Trace, core: Core, brief: bool = False) -> None:
        """`brief`: leave out gossip that nothing comes of, which would fill a ring in minutes.

        Then who leads is looked at only where it is likely to have changed.
        """
        self.trace = trace
        self.brief = brief
        self.core = core
        self.me = core.me
        self.acceptors = list(getattr(core, "acceptors", {}).values())  # a core without peers has none
        self.arriving = 0  # the `sent` event of what is delivered next, where the network knows it
        self.triggers: list[Trigger] = []  # of this turn
        self.chosen: list[int] = []  # how much of each log
        self.unsure = True  # whether this turn may have changed who leads
        self.over = True  # whether the turn has been drained: what comes begins another one
        self.votes: dict[int, dict[int, Counted]] = {}  # by log and node
        self.promises: dict[int, dict[int, Counted]] = {}
        self.slots: dict[tuple[int, int], tuple[int, int]] = {}  # by log and timestamp: (slot, event)
        self.unwritten: list[int] = []  # events whose records are not in a frame yet
        self.own: list[tuple[int, int, int]] = []  # own promises and votes: (log, ballot, length)
        self.frame: tuple[int, list[tuple[int, int, int]]] = (0, [])  # under way: its event, what of `own`
        self.asked_by: dict[int, int] = {}  # by id of the token: the `asked` event
        self.state()

    def state(self) -> None:
        """How all logs stand: where a recording begins, and now and then."""
        report = self.core.report()
        self.known = {status.log: status.chosen for status in report.logs}
        self.leads = report.leads
        self.stated = self.trace.last
        logs = [
            [s.log, dotted(s.promised), dotted(s.accepted), s.length, s.chosen, s.executed]
            for s in report.logs
        ]
        self.trace.add(self.me, "state", logs=logs, leads=sorted(report.leads))

    # ------------------------------------------------------------------------------------------ what goes in

    def asked(self, token: Any, what: Sequence[Command]) -> None:
        """A client has sent commands, or asks for a linearizable read (none)."""
        texts = [spoken(command) for command in what] or ["read"]
        event = self.trace.add(self.me, "asked", commands=texts)
        self.asked_by[id(token)] = event
        self._begin(event, self.me)

    def delivered(self, sender: int, message: Message) -> None:
        if self.brief and message.__class__ is Learn:
            self._begin(0, None, (sender, message))
            return
        event = self._arrival(sender, message)
        self._begin(event, getattr(message, "log", None))
        if message.__class__ is Accepted and message.vote == Vote.ACCEPTED:
            self._count(sender, message.log, message.ballot, message.length, event)
        elif message.__class__ is not Accept or message.log in self.leads:
            self.unsure = True
        if message.__class__ is Promise and message.verdict == Verdict.PROMISED:
            self._count(sender, message.log, message.ballot, -1, event)

    def _arrival(self, sender: int, message: Message) -> int:
        log, slot, ballot, about = described(message)
        cause, self.arriving = self.arriving, 0
        return self.trace.add(self.me, "delivered", cause, log, slot, ballot, **{"from": sender}, **about)

    def ticked(self) -> None:
        """Time has passed: an event only if something comes of it."""
        self._begin(0, None)

    def _begin(self, event: int, log: int | None, gossip: tuple[int, Learn] | None = None) -> None:
        """Something may make a turn; event 0: it becomes one when something comes of it."""
        if self.over:
            self.triggers.clear()
            self.over = False
        self.triggers.append(Trigger(event, log, gossip))

    def _count(self, node: int, log: int, ballot: int, length: int, event: int) -> None:
        """A promise (length -1) or a vote that counts now."""
        counted = self.promises if length < 0 else self.votes
        counted.setdefault(log, {})[node] = Counted(ballot, length, event)

    def _cause(self, log: int | None) -> int:
        """What has made an event of this log, in this turn."""
        if not self.triggers:
            return 0
        index = len(self.triggers) - 1
        for at, trigger in enumerate(self.triggers):
            if trigger.log == log:
                index = at
        if not self.triggers[index].event:
            gossip = self.triggers[index].gossip
            event = self._arrival(*gossip) if gossip else self.trace.add(self.me, "timer")
            self.triggers[index] = Trigger(event, None, None)
        return self.triggers[index].event

    # --------------------------------------------------------------------------------- what a turn wants done

    def proposed(self, payload: bytes, tokens: Sequence[Any]) -> None:
        """The node puts commands into an entry of its own."""
        causes = [self.asked_by[id(token)] for token in tokens if id(token) in self.asked_by]
        event = self.trace.add(
            self.me, "proposed", causes[0] if causes else 0, self.me, entries=kept([Entry(0, payload)]),
            because=causes[1:],
        )  # fmt: skip
        self._begin(event, self.me)

    def drained(self, ready: Ready) -> None:
        """What the records of the turn say, then what the node has come to know."""
        self.over = True
        for record in ready.journal:
            self._ballots(record)
        chosen = [acceptor.chosen for acceptor in self.acceptors]
        if chosen != self.chosen or self.unsure or not self.brief:
            self._compare(ready)
            self.chosen, self.unsure = chosen, False
        else:  # the common case
            self._take(ready)
        if self.trace.last - self.stated > STATE_EVERY:
            self.state()

    def _compare(self, ready: Ready) -> None:
        """What has changed of the logs, in the order in which it can have come to be."""
        report = self.core.report()
        for log in sorted(report.leads - self.leads):
            self._leads(log)
        for log in sorted(self.leads - report.leads):
            self.trace.add(self.me, "deposed", self._cause(log), log)
        self._take(ready)
        for status in report.logs:
            if status.chosen > self.known[status.log]:
                self._chosen(status, status.log in report.leads)
        self.leads = report.leads

    def _take(self, ready: Ready) -> None:
        for record in ready.journal:
            if record.held is not None:
                self._accepts(record.held)

    def _ballots(self, record: Record) -> None:
        self.unsure = self.unsure or record.held is None
        if record.candidate is not None:
            log, ballot = record.candidate
            self.unwritten.append(self.trace.add(self.me, "stands", self._cause(log), log, None, ballot))
        elif record.promised is not None:
            log, ballot = record.promised
            event = self.trace.add(self.me, "promised", self._cause(log), log, None, ballot)
            self.unwritten.append(event)
            self.own.append((log, ballot, -1))
        elif record.rejoined is not None:
            self.trace.add(self.me, "rejoined", self._cause(None))

    def _leads(self, log: int) -> None:
        """A quorum has promised: which promises those are."""
        promises = self.promises.get(log, {})
        ballot = max([promise.ballot for promise in promises.values()], default=0)
        nodes = sorted(node for node, promise in promises.items() if promise.ballot == ballot)
        because = [promises[node].event for node in nodes]
        cause = self._cause(log)
        event = self.trace.add(self.me, "leads", cause, log, None, ballot, promises=nodes, because=because)
        self.triggers.append(Trigger(event, log, None))  # of what is adopted now

    def _accepts(self, held: Held) -> None:
        event = self.trace.add(
            self.me, "accepted", self._cause(held.log), held.log, held.start, held.ballot,
            entries=kept(held.entries), because=self._accepted(held.log, held.entries),
        )  # fmt: skip
        self.unwritten.append(event)
        self.own.append((held.log, held.ballot, held.start + len(held.entries)))
        for slot, entry in enumerate(held.entries, held.start):
            self.slots[held.log, entry.timestamp] = (slot, event)

    def _accepted(self, log: int, held: Iterable[Entry]) -> list[int]:
        """The events in which these entries were accepted here before, if they were."""
        events = [self.slots.get((log, entry.timestamp), (0, 0))[1] for entry in held]
        return sorted({event for event in events if event})

    def _chosen(self, status: LogStatus, leads: bool) -> None:
        """More of a log is known to be chosen: counted here, by its leader, or told by others."""
        log, first = status.log, self.known[status.log]
        self.known[log] = status.chosen
        if not leads:
            self.trace.add(
                self.me, "learned", self._cause(log), log, first, status.accepted, length=status.chosen
            )
            return
        votes = self.votes.get(log, {})
        nodes = sorted(
            node for node, vote in votes.items() if vote.ballot == status.accepted and vote.length > first
        )
        self.trace.add(
            self.me, "chosen", self._cause(log), log, first, status.accepted, length=status.chosen,
            votes=nodes, because=[votes[node].event for node in nodes],
        )  # fmt: skip

    # ------------------------------------------------------------------------------------- carrying it out

    def sent(self, to: int, message: Message) -> None:
        if self.brief and message.__class__ is Learn:
            return
        log, slot, ballot, about = described(message)
        if message.__class__ is Promise:
            about = {**about, "because": self._accepted(message.log, message.entries)}
        self.trace.add(self.me, "sent", self._cause(log), log, slot, ballot, to=to, **about)

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
            self.unsure = self.unsure or length < 0
        self.frame = (0, [])
        self._begin(event, None)

    def applied(self, entry: Applied) -> None:
        slot, accepted = self.slots.pop((entry.owner, entry.timestamp), (None, 0))
        self.trace.add(
            self.me, "applied", self._cause(entry.owner), entry.owner, slot,
            entries=kept([Entry(entry.timestamp, entry.payload)]), because=[accepted] if accepted else [],
        )  # fmt: skip

    def answered(self, token: Any, value: Any) -> None:
        asked = self.asked_by.pop(id(token), 0)
        self.trace.add(
            self.me, "answered", self._cause(None), answer=outcome(value), because=[asked] if asked else []
        )
