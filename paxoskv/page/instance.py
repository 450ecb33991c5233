"""The traces of several live nodes as one, and what of it is about one slot.

Messages have no number on the wire. So an arrival is joined to the last message that was sent before with the
same content and has not arrived yet. The nodes' clocks order the events: hosts must agree on the time.
"""

from collections.abc import Iterable
from typing import Any, Final

from paxoskv.page.words import Event

APART: Final = frozenset({"id", "time", "node", "kind", "cause", "because", "from", "to"})  # not of a message
PHASE_1: Final = frozenset({"stands", "promised", "leads"})


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
    return bool(first <= slot < event.get("length", first + len(event.get("entries", ()))))


def written(events: Iterable[Event], key: str) -> tuple[int, int] | None:
    """The log and slot of the last entry with a command on this key; None if there is none."""
    found = None
    for event in events:
        if event["kind"] == "accepted":
            for slot, (_, text) in enumerate(event["entries"], event["slot"]):
                if any(_names(command, key) for command in str(text).split("; ")):
                    found = event["log"], slot
    return found


def _names(command: str, key: str) -> bool:
    _, _, rest = command.partition(" ")
    return rest == key or rest.startswith((f"{key}=", f"{key} "))


def about(events: list[Event], log: int, slot: int) -> list[Event]:
    """What happened to one slot: who proposed it, each message and vote, and what came of it."""
    by_id = {event["id"]: event for event in events}
    kept: set[int] = set()
    voted: set[tuple[int, str]] = set()  # nodes, and at which ballot
    for event in events:
        here = event.get("log") == log
        if here and event.get("message") == "Accepted" and event["kind"] == "sent" and event["length"] > slot:
            voter = (event["node"], event["ballot"])
            if voter not in voted:
                kept.add(event["id"])
            voted.add(voter)
        elif (here and event["kind"] != "proposed" and holds(event, slot)) or _follows(event, kept):
            kept.add(event["id"])
    ballots = {by_id[id_]["ballot"] for id_ in kept if by_id[id_]["kind"] == "accepted"}
    kept |= {e["id"] for e in events if e.get("log") == log and _phase_1(e) and e["ballot"] in ballots}
    for id_ in sorted(kept):
        proposed = by_id.get(by_id[id_].get("cause", 0), {})
        if by_id[id_]["kind"] == "accepted" and proposed.get("kind") == "proposed":
            kept |= {proposed["id"], proposed["cause"], *proposed["because"]}
    asked = {id_ for id_ in kept if id_ in by_id and by_id[id_]["kind"] == "asked"}
    kept |= {e["id"] for e in events if e["kind"] == "answered" and not asked.isdisjoint(e["because"])}
    return [event for event in events if event["id"] in kept]


def _follows(event: Event, kept: set[int]) -> bool:
    """Whether it is what becomes of an event that is kept: on its way to the disk, or an answer to it."""
    kind = event["kind"]
    if kind == "journaled":
        return not kept.isdisjoint(event["because"])
    answer = kind in ("sent", "delivered") and event["message"] == "Accepted"
    return (answer or kind in ("durable", "lost", "duplicated")) and event["cause"] in kept


def _phase_1(event: Event) -> bool:
    return event["kind"] in PHASE_1 or event.get("message") in ("Prepare", "Promise")
