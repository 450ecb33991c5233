"""The traces of several live nodes as one, and what of it is about one slot.

Messages have no number on the wire. So an arrival is joined to the last message that was sent before with the
same content and has not arrived yet. The nodes' clocks order the events: hosts must agree on the time.
"""

from collections.abc import Iterable
from typing import Any, Final

from paxoskv.page.words import Event
from paxoskv.trace.events import CUT

APART: Final = frozenset({"id", "time", "node", "kind", "cause", "because", "from", "to"})  # not of a message
PHASE_1: Final = frozenset({"stands", "promised", "leads", "released"})  # what a ballot begins and ends with


def joined(traces: Iterable[list[Event]]) -> list[Event]:
    """All events in the order of their times, with new ids; arrivals are caused by what was sent."""
    events = sorted(
        (event for trace in traces for event in trace),
        key=lambda event: (event["time"], event["kind"] == "delivered"),
    )
    ids = {(event["node"], event["id"]): number for number, event in enumerate(events, 1)}
    under_way: dict[Any, list[int]] = {}
    found = []
    for number, event in enumerate(events, 1):
        node = event["node"]
        new = event | {"id": number, "cause": ids.get((node, event.get("cause", 0)), 0)}
        if "because" in event:
            new["because"] = [ids[node, id_] for id_ in event["because"] if (node, id_) in ids]
        content = repr([(name, event[name]) for name in sorted(event) if name not in APART])
        if event["kind"] == "sent":
            under_way.setdefault((node, event["to"], content), []).append(number)
        elif event["kind"] == "delivered":
            sent = under_way.get((event["from"], node, content))
            new["cause"] = sent.pop() if sent else 0
        found.append(new)
    return found


def holds(event: Event, slot: int) -> bool:
    """Whether an event is about this slot of its log."""
    first = event.get("slot")
    if first is None:
        return False
    return bool(first <= slot < (event.get("length") or first + len(event.get("entries", ()))))


def written(events: Iterable[Event], key: str) -> tuple[int, int] | None:
    """The log and slot of the last entry with a command on this key; None if there is none.

    Of a slot counts what was accepted there at the highest ballot: what it held before may be lost.
    """
    slots: dict[tuple[int, int], tuple[list[int], int, str]] = {}
    for event in events:
        if event["kind"] in ("accepted", "held"):
            ballot = [int(number) for number in event["ballot"].split(".")]
            for slot, (timestamp, text) in enumerate(event["entries"], event["slot"]):
                place = event["log"], slot
                if place not in slots or slots[place][0] <= ballot:
                    slots[place] = ballot, timestamp, text
    found = [
        (timestamp, place)
        for place, (_, timestamp, text) in slots.items()
        if any(_names(command, key) for command in str(text).split("; "))
    ]
    return max(found)[1] if found else None


def _names(command: str, key: str) -> bool:
    _, _, rest = command.partition(" ")
    if rest.endswith(CUT) and len(key) >= len(rest):  # a long key is not shown whole
        return key.startswith(rest[: -len(CUT)])
    return rest == key or rest.startswith((f"{key}=", f"{key} "))


class Instance:
    """What happened to one slot of one log; the events are taken one after the other."""

    def __init__(self, log: int, slot: int) -> None:
        self.log = log
        self.slot = slot
        self.kept: dict[int, Event] = {}
        self.voted: set[tuple[int, str]] = set()  # nodes, and at which ballot
        self.chosen = False  # afterwards, whoever has voted speaks of later slots

    def take(self, event: Event) -> None:
        """Keep the event if it is about the slot."""
        here = event.get("log") == self.log and event["kind"] != "proposed"
        if here and event["kind"] == "sent" and event["message"] == "Accepted":
            keeps = self._votes(event) or event["cause"] in self.kept
        else:
            keeps = (here and holds(event, self.slot)) or self._follows(event)
        if keeps:
            self.kept[event["id"]] = event
            self.chosen = self.chosen or event["kind"] == "chosen"

    def _votes(self, event: Event) -> bool:
        """Whether it is a vote for the slot; its length says so for ever after."""
        if event["length"] <= self.slot:
            return False
        voter = (event["node"], event["ballot"])
        first = voter not in self.voted
        self.voted.add(voter)
        return first or not self.chosen

    def _follows(self, event: Event) -> bool:
        """Whether it is what becomes of an event that is kept: on its way to the disk, or arriving."""
        kind = event["kind"]
        if kind == "journaled":
            return not self.kept.keys().isdisjoint(event["because"])
        vote = kind == "delivered" and event["message"] == "Accepted"
        return (vote or kind in ("durable", "lost", "duplicated")) and event["cause"] in self.kept

    def ballots(self) -> set[str]:
        """At which ballots the slot was accepted."""
        return {event["ballot"] for event in self.kept.values() if event["kind"] == "accepted"}


def about(events: list[Event], log: int, slot: int) -> list[Event]:
    """What happened to one slot: who proposed it, each message and vote, and what came of it."""
    instance = Instance(log, slot)
    for event in events:
        instance.take(event)
    origins = _origins(events, instance)
    ids = instance.kept.keys() | origins
    ballots = instance.ballots()
    for event in events:
        if event["kind"] == "stands" and event["log"] == log and not origins.isdisjoint(event["because"]):
            ballots.add(event["ballot"])  # that the proposer has tried
        phase_1 = event.get("log") == log and event.get("ballot") in ballots and _phase_1(event)
        answers = event["kind"] == "answered" and not origins.isdisjoint(event["because"])
        if phase_1 or answers or _written(event, ids):
            ids.add(event["id"])
    return [event for event in events if event["id"] in ids]


def _origins(events: list[Event], instance: Instance) -> set[int]:
    """The events by which what was accepted came there: it was asked for, proposed, and perhaps forwarded."""
    by_id = {event["id"]: event for event in events}
    accepted = [event for event in instance.kept.values() if event["kind"] == "accepted"]
    values = {event["entries"][instance.slot - event["slot"]][1] for event in accepted}
    todo, found = accepted, set[int]()
    while todo:
        event = todo.pop()
        for id_ in {event["cause"], *event.get("because", ())} & by_id.keys() - found:
            reason = by_id[id_]
            proposes = reason["kind"] == "proposed" or reason.get("message") == "Forward"
            if reason["kind"] == "asked" or (proposes and reason["entries"][0][1] in values):
                found.add(id_)
                todo.append(reason)
    return found


def _written(event: Event, ids: set[int]) -> bool:
    """Whether it says that one of these events is written, or is on the disk."""
    if event["kind"] == "journaled":
        return not ids.isdisjoint(event["because"])
    return event["kind"] == "durable" and event["cause"] in ids


def standing(events: list[Event], log: int, end: int) -> list[Event]:
    """How a log stood at each node that has said it, before the event with the id `end`: `state` events."""
    rows: dict[int, list[Any]] = {}
    leads: dict[int, list[int]] = {}
    for event in events:
        kind, node = event["kind"], event["node"]
        if event["id"] >= end:
            break
        if kind == "state":
            rows.update((node, list(row)) for row in event["logs"] if row[0] == log)
            leads[node] = [log] if log in event["leads"] else []
        elif event.get("log") != log or node not in rows:
            continue
        elif kind == "promised":
            rows[node][1] = event["ballot"]
        elif kind == "accepted":
            rows[node][1:4] = event["ballot"], event["ballot"], event["slot"] + len(event["entries"])
        elif kind in ("chosen", "learned"):
            rows[node][4] = event["length"]
        elif kind in ("leads", "deposed"):
            leads[node] = [log] if kind == "leads" else []
    return [
        {"id": at - len(rows), "node": node, "kind": "state", "logs": [rows[node]], "leads": leads[node]}
        for at, node in enumerate(sorted(rows))
    ]


def _phase_1(event: Event) -> bool:
    return event["kind"] in PHASE_1 or event.get("message") in ("Prepare", "Promise")
