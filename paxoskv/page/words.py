"""A trace in words: a sentence for each event, and steps, which are what one node does in one go."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Event = dict[str, Any]  # as in a line of a trace

BEGIN: Final = frozenset({
    "state", "asked", "delivered", "timer", "durable", "crash", "restart", "cut", "heal", "pause", "resume",
    "wipe", "refused", "calm", "violation",
})  # fmt: skip  # what a step begins with
MINOR: Final = frozenset({"state", "timer", "journaled", "duplicated"})  # kinds that tell no story
NOTES: Final = "disk: notes"
GOSSIP: Final = frozenset({"Learn", "Barrier", "Reading", "Chunk", "FetchCheckpoint"})


@dataclass(slots=True)
class Step:
    """What one node does in one go: consecutive events, with a caption and a sentence for each."""

    node: int
    time: float
    events: list[Event] = field(default_factory=list)
    caption: list[tuple[str, str]] = field(default_factory=list)  # (kind, a few words)
    lines: list[str] = field(default_factory=list)
    minor: bool = True  # gossip, timers, and the like


def listed(numbers: Sequence[Any]) -> str:
    """1, 2 and 3."""
    texts = [str(number) for number in numbers]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}" if texts else "nobody"


def nodes(numbers: Sequence[Any]) -> str:
    return f"node{'s' if len(numbers) > 1 else ''} {listed(numbers)}"


def values(event: Event) -> str:
    """The commands of the entries that an event is about; of many, the first one."""
    texts = [text for _, text in event.get("entries", ())]
    if len(texts) > 1:
        return f"{texts[0]} and {len(texts) - 1} more"
    return texts[0] if texts else ""


def message(event: Event) -> str:
    """What a message says, in a few words."""
    kind, ballot, held = event["message"], event.get("ballot", ""), values(event)
    if kind == "Prepare":
        return f"Prepare {ballot}"
    if kind == "Promise":
        if event["verdict"] != "promised":
            answers = {"nack": f"No: {event['promised']} is promised", "behind": "No: you are behind",
                       "covered": "No need: it is known"}  # fmt: skip
            return answers[event["verdict"]]
        return f"Promise {ballot}" + (f", has {held} of {event['accepted']}" if held else "")
    if kind == "Accept":
        return f"Accept {held or ('(nothing yet)' if event['sync'] else '(how far are you?)')}"
    if kind == "Accepted":
        return {
            "accepted": "Accepted: " + (f"{event['length']} on its disk" if event["length"] else "not on its disk yet"),
            "refused": f"Refused: {event['promised']} is promised",
            "needs_sync": "Needs what came before",
            "withheld": "No vote",
        }[event["vote"]]
    if kind == "Fetch":
        return f"Fetch log {event['log']} from slot {event['slot']}"
    if kind == "Fetched":
        return f"Fetched {held}"
    if kind == "Learn" and event["chosen"]:
        return "Learn what is chosen"
    return {"Learn": "News", "Barrier": "Barrier of a read", "Reading": "Reading"}.get(kind, kind)


def brief(event: Event) -> str:
    """The message without the entries, which its receiver is said to accept."""
    return message({**event, "entries": []}) if event["message"] != "Accept" else "Accept"


def place(event: Event) -> str:
    """Which slots of which log."""
    count = len(event["entries"]) if "entries" in event else event.get("length", 0) - event.get("slot", 0)
    first = event.get("slot")
    if first is None or count < 1:
        return f"log {event['log']}"
    slots = f"slot {first}" if count == 1 else f"slots {first} {'and' if count == 2 else 'to'} {first + count - 1}"
    return f"{slots} of log {event['log']}"


def sentence(event: Event) -> str:
    """What happened, in plain English."""
    node, kind, ballot = event["node"], event["kind"], event.get("ballot", "")
    log = f"log {event['log']}" if "log" in event else ""
    about = f" (ballot {ballot}, {log})" if ballot else ""
    match kind:
        case "asked":
            what = listed(event["commands"])
            return f"A client asks node {node} {'for a read' if what == 'read' else f'to do: {what}'}."
        case "proposed":
            return f"Node {node} proposes it: {values(event)}."
        case "stands":
            return f"Node {node} stands for {log} with ballot {ballot}: it wants to lead it."
        case "promised":
            return (
                f"Node {node} promises ballot {ballot} for {log}: it accepts nothing lower there any more. "
                "Its disk does not have the promise yet."
            )
        case "leads":
            return f"{nodes(event['promises']).capitalize()} have promised: node {node} leads {log} with ballot {ballot}."
        case "deposed":
            return f"Node {node} leads {log} no longer."
        case "accepted":
            what = f"{values(event)} in {place(event)}" if event["entries"] else f"{log} as it is"
            return f"Node {node} accepts {what}, at ballot {ballot}: in memory, its disk does not have it yet."
        case "journaled":
            return f"Node {node} writes to its journal; the disk is at work."
        case "sent":
            return f"Node {node} sends to {nodes(event['to'])}: {message(event)}{about}."
        case "delivered":
            return f"Node {node} gets from node {event['from']}: {message(event)}{about}."
        case "lost":
            return f"{event['message']} from node {event['from']} to node {event['to']} is lost: {event['why']}."
        case "duplicated":
            return f"The network will deliver it {event['copies']} times."
        case "chosen":
            return (
                f"CHOSEN: {values(event) or 'an entry'}. Node {node} has counted the votes of {nodes(event['votes'])} "
                f"at ballot {ballot}: {place(event)} will never change."
            )
        case "learned":
            return f"Node {node} learns that {values(event) or 'an entry'} is chosen, in {place(event)}."
        case "applied":
            return f"Node {node} applies {values(event)} to its store: nothing earlier can come any more."
        case "answered":
            return f"Node {node} answers its client: {event['answer']}."
        case "cut":
            if event["how"] == "broken":
                return f"The link between {nodes(event['nodes'])} is cut."
            return f"{nodes(event['nodes']).capitalize()} {'cannot send' if event['how'] == 'one-way' else 'are cut off'}."
        case "violation":
            return f"A RULE IS BROKEN: {event['reason']}."
    return {
        "state": f"So it stands at node {node} now.",
        "timer": f"A timer of node {node} goes off.",
        "crash": f"Node {node} dies: what is not on its disk is lost.",
        "restart": f"Node {node} starts, with what is on its disk.",
        "heal": "The network works again.",
        "pause": f"Node {node} stands still.",
        "resume": f"Node {node} goes on.",
        "wipe": f"Node {node} gets an empty disk: it has forgotten its promises and votes.",
        "refused": f"Node {node} is refused: its disk is older than what it has said.",
        "calm": "All faults end.",
    }.get(kind, f"Node {node}: {kind}.")


def short(event: Event) -> str:
    """The same in a few words, for a diagram."""
    kind, held = event["kind"], values(event)
    match kind:
        case "asked":
            return f"client: {listed(event['commands'])}"
        case "delivered":
            return f"{brief(event)} from {event['from']}"
        case "sent":
            return f"{brief(event)} to {listed(event['to'])}"
        case "accepted":
            return f"accepts {held}" if held else "accepts"
        case "promised" | "stands":
            return f"{'promises' if kind == 'promised' else 'stands with'} {event['ballot']}"
        case "leads":
            return f"LEADS log {event['log']} with {event['ballot']}"
        case "chosen":
            return f"CHOSEN: {held or place(event)}"
        case "applied":
            return f"applies {held}"
        case "answered":
            return f"answers {event['answer']}"
        case "lost":
            return f"{event['message']} {event['from']} to {event['to']} is lost"
        case "violation":
            return "A RULE IS BROKEN"
        case "cut" | "heal" | "calm":
            return sentence(event).rstrip(".")
    return {"crash": "dies", "restart": "starts", "learned": "learns", "wipe": "has an empty disk"}.get(kind, kind)


class Memory:
    """What the events before say of the next: what was written when a disk is done, what stands in a slot."""

    def __init__(self, members: Sequence[int]) -> None:
        self.quorum = len(members) // 2 + 1
        self.waiting: dict[int, Event] = {}  # promises and votes, by event
        self.frames: dict[int, list[int]] = {}
        self.held: dict[tuple[int, int, int], list[Any]] = {}  # by node, log and slot: the entry accepted last
        self.having: dict[tuple[int, int, str], set[int]] = {}  # who has (log, slot, ballot) on the disk

    def complete(self, event: Event) -> Event:
        """A `chosen` or `learned` event with the entries that its node holds there."""
        if event["kind"] not in ("chosen", "learned"):
            return event
        slots = range(event["slot"], event["length"])
        places = [(event["node"], event["log"], slot) for slot in slots]
        return event | {"entries": [self.held.get(place, [0, "an earlier entry"]) for place in places]}

    def follow(self, event: Event) -> tuple[str, str] | None:
        """Look at an event; of a `durable` one, a few words and a sentence."""
        kind = event["kind"]
        if kind in ("promised", "accepted", "stands"):
            self.waiting[event["id"]] = event
            for slot, entry in enumerate(event.get("entries", ()), event.get("slot", 0)):
                self.held[event["node"], event["log"], slot] = entry
        elif kind == "journaled":
            self.frames[event["id"]] = event["because"]
        elif kind == "wipe":
            for disks in self.having.values():
                disks.discard(event["node"])
        elif kind == "durable":
            written = [self.waiting.pop(id_) for id_ in self.frames.pop(event.get("cause", 0), ()) if id_ in self.waiting]
            return self._written(event["node"], written)
        return None

    def _written(self, node: int, written: Iterable[Event]) -> tuple[str, str]:
        parts, chosen = [], ""
        for event in written:
            if event["kind"] != "accepted":
                parts.append(f"{'its promise of' if event['kind'] == 'promised' else 'its ballot'} {event['ballot']}")
                continue
            parts.append(f"{values(event) or f'''log {event['log']} as it is'''} at ballot {event['ballot']}")
            for slot in range(event["slot"], event["slot"] + len(event["entries"])):
                disks = self.having.setdefault((event["log"], slot, event["ballot"]), set())
                if len(disks) == self.quorum - 1 and node not in disks:
                    chosen += (
                        f" {self.quorum} disks have slot {slot} of log {event['log']} at this ballot: "
                        "a majority. It is chosen, whether anybody knows it or not."
                    )
                disks.add(node)
        if not parts:
            return NOTES, f"The disk of node {node} has what was noted."
        text = f"The disk of node {node} has {listed(parts)} now.{chosen}"
        return "on disk" + (": A MAJORITY HAS IT" if chosen else ""), text


def steps(events: Iterable[Event], members: Sequence[int]) -> list[Step]:
    """The whole trace, step by step; `lost` joins the step in which its message was sent, if it is there."""
    found: list[Step] = []
    memory = Memory(members)
    senders: dict[int, Step] = {}  # by `sent` event
    for event in events:
        kind, node = event["kind"], event["node"]
        alone = kind == "lost" and (not found or found[-1].events[-1]["id"] != event.get("cause"))
        if not found or kind in BEGIN or alone or (node and node != found[-1].node):
            found.append(Step(node, event["time"]))
        step = found[-1]
        written = memory.follow(event)
        _add(step, memory.complete(event), written)
        if kind == "sent":
            senders[event["id"]] = step
        quiet = kind in MINOR or event.get("message") in GOSSIP or (written is not None and written[0] == NOTES)
        step.minor = step.minor and quiet
    for step in found:
        step.caption.sort(key=lambda words: words[0] not in ("violation", "chosen", "leads"))
        first = step.events[0]
        if not step.minor and first["kind"] == "delivered" and first.get("cause") in senders:
            senders[first["cause"]].minor = False
    return found


def _add(step: Step, event: Event, written: tuple[str, str] | None) -> None:
    """One more event; messages that say the same to several nodes are one line."""
    kind = event["kind"]
    step.events.append(event)
    if kind == "sent":
        alike = [
            other
            for other in step.events[:-1]
            if other["kind"] == "sent"
            and all(other.get(name) == event.get(name) for name in event if name not in ("id", "to"))
        ]
        told = {**event, "to": [other["to"] for other in alike] + [event["to"]]}
        if alike:
            step.lines.pop()
            step.caption.pop()
        step.lines.append(sentence(told))
        step.caption.append((kind, short(told)))
        return
    step.lines.append(written[1] if written else sentence(event))
    if kind not in ("journaled", "proposed", "timer", "duplicated"):
        step.caption.append((kind, written[0] if written else short(event)))
