"""A trace in words: a sentence for each event, and steps, which are what one node does in one go."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Event = dict[str, Any]  # as in a line of a trace

BEGIN: Final = frozenset({
    "state", "asked", "delivered", "timer", "durable", "crash", "restart", "cut", "heal", "pause", "resume",
    "wipe", "refused", "calm", "violation",
})  # fmt: skip  # kinds that a step begins with
MINOR: Final = frozenset({"state", "timer", "journaled", "duplicated"})  # kinds that tell no story
UNTOLD: Final = frozenset({"journaled", "proposed", "timer", "duplicated"})  # kinds that a caption leaves out
# Kinds that it begins with, because its end may be cut off, and those that it ends with; others lie between.
ORDER: Final = {"violation": 0, "chosen": 0, "leads": 0, "answered": 0, "delivered": 2}
NO_OP: Final = "no-op"
SKIP: Final = "a skip (no-op)"
TIMES: Final = {1: "", 2: " (twice)"}
GOSSIP: Final = frozenset({"Learn", "Barrier", "Reading", "Chunk", "FetchCheckpoint"})
NOTES: Final = "on disk: no promise, no vote"

# What each kind of event says: in a few words, and in a sentence; `facts` has the fields.
TEXTS: Final = {
    "state": ("state", "This is the state of node {node} now."),
    "asked": ("client: {what}", "A client asks node {node}: {what}."),
    "proposed": ("proposes", "Node {node} proposes it."),
    "stands": (
        "stands with {ballot}", "Node {node} stands for log {log} with ballot {ballot}: it wants to lead it.",
    ),
    "promised": (
        "promises {ballot}",
        "Node {node} promises ballot {ballot} for log {log}: it accepts nothing lower there any more. The "
        "promise is in memory, its disk does not have it yet.",
    ),
    "leads": (
        "LEADS log {log} with {ballot}",
        "Node {node} leads log {log} with ballot {ballot}: {who} have promised.",
    ),
    "rejoined": ("may vote again", "Node {node} has heard all others, and may vote again."),
    "deposed": (
        "leads log {log} no longer",
        "Node {node} leads log {log} no longer: another node has a higher ballot there.",
    ),
    "released": (
        "gives {ballot} up", "Node {node} gives ballot {ballot} up: what it stood for in log {log} is done.",
    ),
    "accepted": (
        "accepts {held}",
        "Node {node} accepts {held} in {place}, at ballot {ballot}: in memory, its disk does not have "
        "it yet.",
    ),
    "journaled": ("writes", "Node {node} writes to its journal; the disk is at work."),
    "held": (
        "has {held}",
        "The journal of node {node} has {held} in {place}, accepted at ballot {ballot}. Node {by} proposed "
        "it. {known}.",
    ),
    "durable": (NOTES, "The disk of node {node} has what was written; no promise and no vote is in it."),
    "sent": ("{brief} to {receiving}", "Node {node} sends to {receivers}: {said}."),
    "delivered": ("{brief} from {from}", "Node {node} gets from node {from}: {said}."),
    "lost": (
        "{message} {from} to {receiving} is lost",
        "{message} from node {from} to {receivers} is lost: {why}.",
    ),
    "duplicated": ("twice", "The network will deliver it {copies} times."),
    "chosen": (
        "CHOSEN: {held}",
        "CHOSEN: {held}. Node {node} has counted the votes of {who} at ballot {ballot}: {place} will "
        "never change.",
    ),
    "learned": ("learns", "Node {node} learns that {held} is chosen, in {place}."),
    "applied": (
        "applies {held}", "Node {node} applies {held} to its store: nothing earlier can come any more.",
    ),
    "answered": ("answers {answer}", "Node {node} answers its client: {answer}."),
    "crash": ("dies", "Node {node} dies: what is not on its disk is lost."),
    "restart": ("starts", "Node {node} starts, with what is on its disk."),
    "pause": ("is paused", "Node {node} is paused."),
    "resume": ("goes on", "Node {node} goes on."),
    "wipe": ("has an empty disk", "Node {node} gets an empty disk: it has forgotten its promises and votes."),
    "refused": ("is refused", "Node {node} is refused: its disk is older than what it has said."),
    "cut": ("{cut}", "{cut}."),
    "heal": ("the network works again", "The network works again."),
    "calm": ("all faults end", "All faults end."),
    "timer": ("timer", "A timer of node {node} goes off."),
    "violation": ("A RULE IS BROKEN", "A RULE IS BROKEN: {reason}."),
}  # fmt: skip
KNOWN: Final = {
    "applied": "Slot {slot} is chosen, and applied there",
    "chosen": "Slot {slot} is chosen, and waits for its turn there",
    "accepted": "Whether it is chosen, this node does not know",
}  # fmt: skip
CUTS: Final = {
    "broken": "the link between {who} is cut", "partition": "{who} cut off", "one-way": "{who} cannot send",
}  # fmt: skip
MESSAGES: Final = {
    "Prepare": "Prepare {ballot}", "Fetch": "Fetch from slot {slot}", "Fetched": "Fetched {held}",
    "Barrier": "Barrier of a read", "Forward": "Forward {held}: lead it for me",
    "Rejoin": "Rejoin: what do you know of log {log}?", "Rejoined": "Rejoined: all of log {log}",
    "Promise promised": "Promise {ballot}", "Promise nack": "No: {promised} is promised",
    "Promise behind": "No: you are behind", "Promise covered": "No need: it is known",
    "Accepted accepted": "Accepted: {length} on its disk", "Accepted refused": "No: {promised} is promised",
    "Accepted needs_sync": "Needs what came before", "Accepted withheld": "No vote",
}  # fmt: skip


@dataclass(slots=True)
class Step:
    """What one node does in one go: consecutive events, with a caption and a sentence for each."""

    node: int
    time: float
    events: list[Event] = field(default_factory=list)
    caption: list[tuple[str, str]] = field(default_factory=list)  # (kind, a few words)
    lines: list[str] = field(default_factory=list)
    minor: bool = True  # gossip, timers, and the like

    @property
    def timed(self) -> bool:
        """Whether it is known when it happened: a journal holds no times."""
        return self.events[0]["kind"] != "held"


def listed(numbers: Sequence[Any]) -> str:
    """1, 2 and 3."""
    texts = [str(number) for number in numbers]
    return " and ".join([", ".join(texts[:-1]), texts[-1]]) if len(texts) > 1 else "".join(texts)


def counted(numbers: Sequence[int]) -> list[str]:
    """Each of them once, and how often it comes."""
    times = Counter(numbers)
    return [f"{number}{TIMES.get(count, f' ({count} times)')}" for number, count in times.items()]


def nodes(numbers: Sequence[int]) -> str:
    return f"node{'s' if len(set(numbers)) > 1 else ''} {listed(counted(numbers))}"


def values(event: Event) -> str:
    """The commands of the entries that an event is about; of many, the first one's, and how many are none."""
    texts = [str(text) for _, text in event.get("entries", ())]
    more = texts[1:]
    skips = more.count(NO_OP)
    found = [SKIP if text == NO_OP else text for text in texts[:1]]
    if len(more) > skips:
        found.append(f"{len(more) - skips} more")
    if skips:
        found.append(SKIP if skips == 1 else f"{skips} skips (no-ops)")
    return listed(found)


def message(event: Event) -> str:
    """What a message says, in a few words."""
    kind, held = event["message"], values(event)
    answer = event.get("verdict", event.get("vote", ""))
    text = str(MESSAGES.get(f"{kind} {answer}".strip(), kind)).format_map({**event, "held": held})
    if kind == "Promise" and held:
        text += f", has {held} of {event['accepted']}"
    elif kind == "Accept":
        text += " " + (held or ("(nothing yet)" if event.get("sync") else "(how far are you?)"))
    elif kind == "Accepted" and answer == "accepted":
        text = f"Accepted: {on_disk(event)}"
    elif kind == "Learn" and event["chosen"]:
        text = "Learn what is chosen"
    elif kind == "Forwarded":
        text = "Forwarded: it is in the log" if event["taken"] else "No: this ballot no longer leads"
    return text


def on_disk(event: Event) -> str:
    """What a vote says: how much of the log its sender has on the disk, and whether that is enough."""
    length, asked = event["length"], event.get("asked")
    if not length:
        return "not on its disk yet"
    has = f"{length} {'entries are' if length > 1 else 'entry is'} on its disk"
    return has if asked is None or asked < length else f"slot {asked} is not on its disk yet, {has}"


def place(event: Event) -> str:
    """Which slots of which log."""
    first, count = event.get("slot", 0), len(event.get("entries", ()))
    slots = {0: "", 1: f"slot {first} of ", 2: f"slots {first} and {first + 1} of "}
    return slots.get(count, f"slots {first} to {first + count - 1} of ") + f"log {event.get('log')}"


def facts(event: Event) -> dict[str, Any]:
    """The fields of a text about an event."""
    fields = {**event, "held": values(event) or "the log as it is", "place": place(event)}
    fields["who"] = nodes(event.get("votes") or event.get("promises") or event.get("nodes") or ())
    fields["what"] = listed(event.get("commands", ()))
    if event["kind"] == "held":
        fields["known"] = known(event)
    if isinstance(event.get("to"), list):
        fields.update(receivers=nodes(event["to"]), receiving=listed(counted(event["to"])))
    if event["kind"] in ("sent", "delivered"):
        fields["said"] = message(event)
        if event.keys() >= {"ballot", "log"}:
            fields["said"] += f" (ballot {event['ballot']}, log {event['log']})"
        if event.get("lazy") and event.get("entries"):
            fields["said"] += f"; {nodes(event['lazy'])} may write later"
        fields["brief"] = briefly(event)
    if event["kind"] == "cut":
        text = CUTS[event["how"]].format_map(fields)
        fields["cut"] = text[0].upper() + text[1:]
    return fields


def known(event: Event) -> str:
    """What a node knows of an entry that its journal has."""
    state = "applied" if event["applied"] else "chosen" if event["length"] else "accepted"
    return KNOWN[state].format_map(event)


def briefly(event: Event) -> str:
    """What a message is, where there is little room."""
    if event["message"] == "Accept":
        return "Accept"
    if event.get("vote") == "accepted":
        late = not event["length"] or event["length"] <= event.get("asked", -1)
        return "no vote yet" if late else "vote"
    return message({**event, "entries": []})


def told(event: Event) -> tuple[str, str]:
    """What happened, in a few words and in a sentence."""
    fields = facts(event)
    brief, sentence = TEXTS.get(event["kind"], ("{kind}", "Node {node}: {kind}."))
    return brief.format_map(fields), sentence.format_map(fields)


class Memory:
    """Tells each step, with the help of those before it: what a disk was writing, for example."""

    def __init__(self, members: Sequence[int]) -> None:
        self.quorum = len(members) // 2 + 1
        self.waiting: dict[int, Event] = {}  # promises and votes that are not durable, by event
        self.frames: dict[int, list[int]] = {}
        # By node, log and slot: the entry accepted last.
        self.held: dict[tuple[int, int, int], list[Any]] = {}
        self.asked: dict[int, int] = {}  # by Accept and what answers it: the last slot that it is about
        self.having: dict[tuple[int, int, str], set[int]] = {}  # who has (log, slot, ballot) on the disk

    def tell(self, step: Step) -> None:
        """Find the words for a step."""
        written = [self.follow(event) for event in step.events]
        for event in merged(step.events):
            kind = event["kind"]
            if kind in ("chosen", "learned"):
                event = event | {"entries": self._entries(event)}
            brief, text = (written[0] if kind == "durable" else None) or told(event)  # a step begins with it
            step.minor = step.minor and (kind in MINOR or event.get("message") in GOSSIP or brief == NOTES)
            step.lines.append(text)
            if kind not in UNTOLD:
                step.caption.append((kind, brief))
        step.caption.sort(key=lambda words: ORDER.get(words[0], 1))

    def _entries(self, event: Event) -> list[Any]:
        """What its node holds where a log is chosen."""
        node, log = event["node"], event["log"]
        return [
            self.held.get((node, log, slot), [0, "an earlier entry"])
            for slot in range(event["slot"], event["length"])
        ]

    def follow(self, event: Event) -> tuple[str, str] | None:
        """Remember the event; return the words if it says that something is on a disk."""
        kind, node = event["kind"], event["node"]
        if kind in ("promised", "accepted", "stands"):
            self.waiting[event["id"]] = event
            for slot, entry in enumerate(event.get("entries", ()), event.get("slot", 0)):
                self.held[node, event["log"], slot] = entry
        elif kind == "journaled":
            self.frames[event["id"]] = event["because"]
        elif event.get("message") == "Accept" and event.get("entries"):
            self.asked[event["id"]] = event["slot"] + len(event["entries"]) - 1
        elif event.get("message") == "Accepted" and event.get("cause") in self.asked:
            self.asked[event["id"]] = event["asked"] = self.asked[event["cause"]]
        elif kind == "wipe":
            for disks in self.having.values():
                disks.discard(node)
        elif kind == "durable":
            ids = self.frames.pop(event.get("cause", 0), ())
            return self._written(node, [self.waiting.pop(id_) for id_ in ids if id_ in self.waiting])
        return None

    def _written(self, node: int, written: Iterable[Event]) -> tuple[str, str] | None:
        parts, chosen = [], ""
        for event in written:
            if event["kind"] != "accepted":
                parts.append(
                    f"{'its promise of' if event['kind'] == 'promised' else 'its ballot'} {event['ballot']}"
                )
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
            return None
        text = f"The disk of node {node} has {listed(parts)} now.{chosen}"
        return "on disk" + (": A MAJORITY HAS IT" if chosen else ""), text


def merged(events: Iterable[Event]) -> list[Event]:
    """The events of a step. Messages to several nodes become one if they say the same, or are all lost."""
    found: list[Event] = []
    places: dict[str, int] = {}
    for event in events:
        if event["kind"] not in ("sent", "lost"):
            found.append(event)
            continue
        key = repr([(name, event[name]) for name in event if name not in ("id", "time", "cause", "to")])
        if key in places:
            found[places[key]]["to"].append(event["to"])
        else:
            places[key] = len(found)
            found.append(event | {"to": [event["to"]]})
    return found


def parted(events: Iterable[Event]) -> list[Step]:
    """The events step by step; `lost` joins the step in which its message was sent, if it comes with it."""
    found: list[Step] = []
    for event in events:
        kind, node = event["kind"], event["node"]
        begins = kind in BEGIN or not found or (node and node != found[-1].node)
        if begins or (kind == "lost" and found[-1].events[-1]["id"] != event.get("cause")):
            found.append(Step(node, event["time"]))
        found[-1].events.append(event)
    return found


def steps(events: Iterable[Event], members: Sequence[int], before: Iterable[Event] = ()) -> list[Step]:
    """The whole trace, step by step, in words; what was before it is not told."""
    found = parted(events)
    memory = Memory(members)
    for event in before:
        memory.follow(event)
    for step in found:
        memory.tell(step)
    senders = {event["id"]: step for step in found for event in step.events if event["kind"] == "sent"}
    for step in found:
        first = step.events[0]
        if not step.minor and first["kind"] == "delivered" and first.get("cause") in senders:
            senders[first["cause"]].minor = False
    return found
