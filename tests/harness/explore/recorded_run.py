"""Says whether a recorded run is one that the rules of the protocol allow: docs/trace.md has the format.

Each event of a node is held against what the node has recorded before it: what it has promised and accepted,
in memory and on its disk. What the nodes say of a ballot, a slot and the order of commands is held against
each other, whichever of them is recorded first, for the clocks of two nodes need not agree.

A recording may begin in the middle of a run, and that of a process that was killed is lost. So it is only
held against a node what is recorded. What a node had told others before it was killed counts against what it
says of its disk when it is back.
"""

import json
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

Event = dict[str, Any]
Ballot = tuple[int, int]
NEVER: Ballot = (0, 0)
COUNTED = ("Prepare", "Promise", "Accept", "Accepted")  # messages by which something comes to be chosen


class Refused(Exception):
    """The run is none that the rules allow: the text says why."""


class Damaged(Exception):
    """This is no recording."""


def read(lines: Iterable[str]) -> list[Event]:
    """The events of a file in JSON Lines; a header is left out."""
    events = []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            if not isinstance(event, dict):
                raise ValueError("no object")
            if "format" not in event:
                events.append({"id": event["id"], "node": event["node"], "kind": event["kind"]} | event)
        except (ValueError, KeyError) as error:
            raise Damaged(f"line {number} is no event: {error!r}") from error
    if not events:
        raise Damaged("there is no event in it")
    return events


def ballot_of(text: str) -> Ballot:
    round_, _, node = text.partition(".")
    return int(round_), int(node)


def told(ballot: Ballot) -> str:
    return f"{ballot[0]}.{ballot[1]}"


class Log:
    """What one node has promised and accepted in one log."""

    def __init__(self, promised: Ballot = NEVER, accepted: Ballot = NEVER, length: int = 0) -> None:
        self.promised = promised
        self.accepted = accepted
        self.length = length

    def __str__(self) -> str:
        return f"{self.length} entries of {told(self.accepted)}, promised {told(self.promised)}"

    def copy(self) -> "Log":
        return Log(self.promised, self.accepted, self.length)

    def covers(self, ballot: Ballot, length: int) -> bool:
        """Whether so much of this ballot's log is accepted, or a later one's log is."""
        return self.accepted > ballot or (self.accepted == ballot and self.length >= length)


class Process:
    """One node, as far as its recording tells."""

    def __init__(self) -> None:
        self.logs: dict[int, Log] = defaultdict(Log)
        self.disk: dict[int, Log] = defaultdict(Log)
        self.chosen: dict[int, int] = defaultdict(int)
        self.frames: dict[int, tuple[dict[int, Log], set[tuple[int, Ballot]]]] = {}  # by `journaled` event
        self.stood: set[tuple[int, Ballot]] = set()  # candidacies that are recorded,
        self.stands: set[tuple[int, Ballot]] = set()  # and those that are durable
        self.last: tuple[int, int] | None = None  # what was applied last
        self.begun = self.alive = False


class RecordedRun:
    """Goes through the events of a run, in order, and refuses what the rules do not allow."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self.by_id = {event["id"]: event for event in events}
        self.nodes = sorted({event["node"] for event in events} - {0})
        members = {event[name] for event in events for name in ("to", "from") if name in event}
        self.quorum = len({*self.nodes, *members}) // 2 + 1
        self.processes = {node: Process() for node in self.nodes}
        self.places: dict[int, list[tuple[int, str]]] = defaultdict(list)  # by node: its events, and kinds
        for event in events:
            self.places[event["node"]].append((event["id"], event["kind"]))
        self.rejoined = {event["node"] for event in events if event["kind"] == "rejoined"}
        self.told: dict[int, dict[int, Log]] = defaultdict(lambda: defaultdict(Log))  # what others were told
        self.ballots: dict[tuple[int, Ballot], dict[int, Any]] = defaultdict(dict)  # by slot: the entry
        self.votes: dict[tuple[int, Ballot], dict[int, int]] = defaultdict(dict)
        self.claims: dict[tuple[int, Ballot], int] = {}  # so much was said to be chosen, and counted there
        self.applied: dict[tuple[int, int], Any] = {}  # by timestamp and log
        self.complete = True  # whether each recording begins with an empty disk
        self.checked: Counter[str] = Counter()

    def check(self) -> Counter[str]:
        """How many events of which kind are right; Refused at the first one that is not."""
        for event in self.events:
            handler = getattr(self, f"on_{event['kind']}", None)
            if handler is None or event["node"] not in self.processes:
                continue
            try:
                handler(self.processes[event["node"]], event)
            except Refused as refused:
                raise Refused(f"event {event['id']}, node {event['node']}: {refused}") from None
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise Damaged(f"event {event['id']} lacks something: {error!r}") from error
            self.checked[event["kind"]] += 1
        self.check_chosen()
        return self.checked

    # --------------------------------------------------------------------------------------- lives, and disks

    def on_state(self, process: Process, event: Event) -> None:
        """Where a life begins: nothing that was durable, or that others were told, is lost."""
        node = event["node"]
        rows = {log: (Log(ballot_of(p), ballot_of(a), length), chosen)
                for log, p, a, length, chosen, *_ in event["logs"]}  # fmt: skip
        if not process.alive:
            if any(now.length or now.promised > NEVER for now, _ in rows.values()):
                known = all(
                    process.logs[log].covers(now.accepted, now.length) for log, (now, _) in rows.items()
                )
                self.complete = self.complete and process.begun and known
            elif node in self.rejoined:
                self.on_wipe(process, event)
        for log, (now, chosen) in rows.items():
            before = process.logs if process.alive else process.disk
            for name, then in (("what it was", before[log]), ("what others heard", self.told[node][log])):
                right = now.promised >= then.promised and now.covers(then.accepted, then.length)
                self.require(right, f"log {log} is {now}; by {name} it had {then}")
            process.logs[log], process.chosen[log] = now, chosen
            if not process.alive:
                process.disk[log] = now.copy()
                self.vote(node, log, now.accepted, now.length)
        process.alive = process.begun = True

    def on_restart(self, process: Process, event: Event) -> None:
        process.alive, process.frames, process.last = False, {}, None
        process.stood = set(process.stands)

    on_crash = on_restart

    def on_wipe(self, process: Process, event: Event) -> None:
        process.__init__()  # type: ignore[misc]
        process.begun = True
        self.told.pop(event["node"], None)

    def on_journaled(self, process: Process, event: Event) -> None:
        logs = {log: of.copy() for log, of in process.logs.items()}
        process.frames = {event["id"]: (logs, set(process.stood))}

    def on_durable(self, process: Process, event: Event) -> None:
        logs, stood = process.frames.pop(event.get("cause", 0), (None, set()))
        if logs is not None:
            process.disk, process.stands = defaultdict(Log, logs), stood
            for log, of in logs.items():
                self.vote(event["node"], log, of.accepted, of.length)

    # ----------------------------------------------------------------------------------- acceptors, proposers

    def on_promised(self, process: Process, event: Event) -> None:
        log, ballot = process.logs[event["log"]], ballot_of(event["ballot"])
        self.require(ballot > log.promised, f"{event['ballot']} is promised after {told(log.promised)}")
        log.promised = ballot

    def on_accepted(self, process: Process, event: Event) -> None:
        """Nothing is cut at one ballot, nor what is chosen; only that may come below the promise."""
        number, slot, ballot = event["log"], event["slot"], ballot_of(event["ballot"])
        log, entries = process.logs[number], event["entries"]
        self.require(ballot >= log.accepted, f"{event['ballot']} is accepted after {told(log.accepted)}")
        self.require(slot <= log.length, f"slot {slot} comes after {log.length} entries")
        if ballot == log.accepted:
            self.require(slot == log.length, f"{event['ballot']} is cut from {log.length} entries to {slot}")
        self.require(slot >= process.chosen[number], f"slot {slot} is replaced, and is chosen")
        if ballot < log.promised:  # fetched: it must have been chosen
            self.claim(number, ballot, slot + len(entries))
        for at, entry in enumerate(entries, slot):
            self.holds(number, ballot, at, entry)
        log.accepted, log.length = ballot, slot + len(entries)
        log.promised = max(log.promised, ballot)

    def on_stands(self, process: Process, event: Event) -> None:
        process.stood.add((event["log"], ballot_of(event["ballot"])))

    def on_leads(self, process: Process, event: Event) -> None:
        """A quorum has promised, and the best log of their promises is adopted."""
        number, ballot = event["log"], ballot_of(event["ballot"])
        self.require(len(set(event["promises"])) >= self.quorum, f"{event['promises']} are no quorum")
        shown = []  # (accepted, first slot, entries) of each promise that is recorded
        for cause in event["because"]:
            promise = self.by_id.get(cause)
            if promise is not None and promise.get("message") == "Promise":
                right = promise["verdict"] == "promised" and ballot_of(promise["ballot"]) == ballot
                self.require(right, f"event {cause} is no promise to {told(ballot)}")
                shown.append((ballot_of(promise["accepted"]), promise["slot"], promise["entries"]))
        own = process.logs[number]
        best = max(shown, key=lambda promise: (promise[0], len(promise[2])), default=None)
        if best and (own.accepted, own.length) <= (best[0], best[1] + len(best[2])):
            for at, entry in enumerate(best[2], best[1]):
                self.holds(number, ballot, at, entry)

    # ----------------------------------------------------------------------------------------------- messages

    def on_sent(self, process: Process, event: Event) -> None:
        """Others count only on what is durable."""
        kind = event["message"]
        if kind not in COUNTED:
            return
        number, ballot = event["log"], ballot_of(event["ballot"])
        disk = process.disk[number]
        if kind in ("Prepare", "Accept"):
            candidacy = (number, ballot)
            durable = candidacy in process.stands or candidacy not in process.stood
            self.require(durable, f"{kind} of {told(ballot)} leaves before its ballot is durable")
        elif kind == "Promise" and event["verdict"] == "promised":
            self.require(
                disk.promised >= ballot, f"the promise of {told(ballot)} leaves before it is durable"
            )
            if event["entries"]:
                length, accepted = event["slot"] + len(event["entries"]), ballot_of(event["accepted"])
                self.require(disk.covers(accepted, length), "entries are shown before they are durable")
        elif kind == "Accepted" and event["vote"] == "accepted":
            durable = disk.covers(ballot, event["length"])
            self.require(
                durable, f"the vote for {event['length']} of {told(ballot)} leaves before it is durable"
            )
        if kind == "Accept":
            for at, entry in enumerate(event["entries"], event["slot"]):
                self.holds(number, ballot, at, entry)

    def on_delivered(self, process: Process, event: Event) -> None:
        """What is heard counts against the one who said it, when it is back from a crash."""
        sender, kind = event["from"], event["message"]
        if kind in COUNTED and self.complete and self.recorded_later(sender, event["id"]):
            sent = self.by_id.get(event.get("cause", 0), {})
            right = (sent.get("node"), sent.get("to"), sent.get("message")) == (sender, event["node"], kind)
            self.require(right, f"node {sender} has not sent this {kind}")
        if kind == "Accepted" and event["vote"] == "accepted":
            number, ballot, length = event["log"], ballot_of(event["ballot"]), event["length"]
            told = self.told[sender][number]
            if not told.covers(ballot, length):
                told.accepted, told.length = ballot, length
            told.promised = max(told.promised, ballot)
            self.vote(sender, number, ballot, length)
        elif kind == "Promise" and event["verdict"] == "promised":
            told = self.told[sender][event["log"]]
            told.promised = max(told.promised, ballot_of(event["ballot"]))

    def recorded_later(self, node: int, id_: int) -> bool:
        """Whether the node's recording goes on behind this event: of a killed process, the end is lost."""
        following = bisect_right(self.places[node], (id_, ""))
        return following < len(self.places[node]) and self.places[node][following][1] != "restart"

    # -------------------------------------------------------------------------------- what the nodes agree on

    def on_chosen(self, process: Process, event: Event) -> None:
        self.require(len(set(event["votes"])) >= self.quorum, f"{event['votes']} are no quorum")
        self.on_learned(process, event)

    def on_learned(self, process: Process, event: Event) -> None:
        number = event["log"]
        process.chosen[number] = max(process.chosen[number], event["length"])
        self.claim(number, ballot_of(event["ballot"]), event["length"])

    def on_applied(self, process: Process, event: Event) -> None:
        """All nodes apply the same commands, each node in the order of (timestamp, log)."""
        ((timestamp, commands),) = event["entries"]
        place = (timestamp, event["log"])
        known = self.applied.setdefault(place, commands)
        self.require(known == commands, f"{commands} is applied at {place}, and elsewhere {known}")
        if process.last is not None:
            self.require(place > process.last, f"{place} is applied after {process.last}")
        process.last = place

    def holds(self, log: int, ballot: Ballot, slot: int, entry: Any) -> None:
        """One ballot has one log."""
        known = self.ballots[log, ballot].setdefault(slot, entry)
        self.require(
            known == entry, f"slot {slot} of log {log} at {told(ballot)} is {entry}, and elsewhere {known}"
        )

    def vote(self, node: int, log: int, ballot: Ballot, length: int) -> None:
        votes = self.votes[log, ballot]
        votes[node] = max(votes.get(node, 0), length)

    def claim(self, log: int, ballot: Ballot, length: int) -> None:
        self.claims[log, ballot] = max(length, self.claims.get((log, ballot), 0))

    def check_chosen(self) -> None:
        """What is said to be chosen a quorum held, if all is recorded; no later ballot has anything else."""
        for (log, ballot), length in self.claims.items():
            votes = sorted(self.votes[log, ballot].values())
            if self.complete and (len(votes) < self.quorum or votes[-self.quorum] < length):
                raise Refused(
                    f"log {log}: {length} entries of {told(ballot)} are said to be chosen, and the votes are "
                    f"{self.votes[log, ballot]}"
                )
            for slot, entry in self.ballots[log, ballot].items():
                if slot >= length:
                    continue
                for (other, later), entries in self.ballots.items():
                    if other == log and later > ballot and entries.get(slot, entry) != entry:
                        raise Refused(
                            f"slot {slot} of log {log} is chosen at {told(ballot)}: {entry}; and at "
                            f"{told(later)} it is {entries[slot]}"
                        )
            self.checked["chosen slots"] += min(length, len(self.ballots[log, ballot]))

    def require(self, condition: bool, text: str) -> None:
        if not condition:
            raise Refused(text)
