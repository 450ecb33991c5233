"""What is recorded is what happened: as the nodes have it, and the simulator, and as without a recording."""

import json
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from paxoskv.page.draw import Drawing
from paxoskv.page.instance import about, joined, written
from paxoskv.page.words import TEXTS, message, nodes, values
from paxoskv.protocol.node import OWN_LOGS, WAYS, Node
from paxoskv.trace.events import HEAVY, OUTCOMES, VERDICTS, VOTES, WORDS, Trace, commands, kept, outcome
from paxoskv.trace.held import HeldEntries, proposer
from paxoskv.trace.recorder import Recorder
from paxoskv.wire.codec import decode, encode
from paxoskv.wire.structs import (
    Accept,
    Action,
    Batch,
    Command,
    Compare,
    Entry,
    Fact,
    Frame,
    Outcome,
    Page,
    Promise,
    Relation,
    Result,
    Transaction,
    Verb,
    Verdict,
    Vote,
)
from tests.harness import recorded
from tests.harness.recorded import RecordedCluster, RecordedSimulation
from tests.harness.simulator import PROFILES, Simulation
from tests.harness.stories import STORIES

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "trace.md"
PROFILES_TRIED = ["default", "lossy", "crash-loops", "wiped", "compacting", "forgetful-three"]

Event = dict[str, Any]


def events_of(trace: Trace) -> list[Event]:
    return [json.loads(event.as_json()) for event in trace.events]


def of_kind(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event["kind"] == kind]


@cache
def told(name: str, way: str | None = None) -> tuple[RecordedCluster, list[Event]]:
    cluster = STORIES[name].play(way)
    return cluster, events_of(cluster.trace)


in_all_ways = pytest.mark.parametrize(("name", "way"), [(name, way) for name in STORIES for way in WAYS])


def reasons(events: list[Event], event: Event) -> list[Event]:
    """All that an event rests on."""
    by_id = {one["id"]: one for one in events}
    found: dict[int, Event] = {}
    todo = [event["id"]]
    while todo:
        id_ = todo.pop()
        if id_ in by_id and id_ not in found:
            found[id_] = by_id[id_]
            todo += [by_id[id_].get("cause", 0), *by_id[id_].get("because", [])]
    return list(found.values())


def test_the_recording_of_a_put_tells_who_asked_who_voted_and_on_which_disks_it_was() -> None:
    _, events = told("put")
    (asked,), (chosen,), (answer,) = (of_kind(events, kind) for kind in ("asked", "chosen", "answered"))
    assert asked["commands"] == ["put color=green"] and answer["answer"] == "OK"
    assert (chosen["node"], chosen["log"], chosen["slot"], chosen["ballot"]) == (2, 2, 0, "1.2")
    rests_on = reasons(events, chosen)
    assert asked in rests_on
    disks = {event["node"] for event in rests_on if event["kind"] == "durable"}
    assert set(chosen["votes"]) == disks and len(disks) == 3
    assert asked in reasons(events, answer)
    assert {event["node"] for event in of_kind(events, "applied")} == {1, 2, 3, 4, 5}


@in_all_ways
def test_every_event_of_a_scenario_comes_after_its_causes_and_votes_come_after_their_disk(
    name: str, way: str
) -> None:
    _, events = told(name, way)
    ids = [event["id"] for event in events]
    assert ids == sorted(ids)
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)
    for event in events:
        assert all(cause < event["id"] for cause in [event.get("cause", 0), *event.get("because", ())])
    on_disk: dict[tuple[int, int, str], int] = {}
    frames = {event["id"]: event["because"] for event in of_kind(events, "journaled")}
    by_id = {event["id"]: event for event in events}
    for event in events:
        if event["kind"] == "durable":
            for written in map(by_id.get, frames.get(event.get("cause", 0), ())):
                if written and written["kind"] == "accepted":
                    key = (event["node"], written["log"], written["ballot"])
                    on_disk[key] = written["slot"] + len(written["entries"])
        elif event["kind"] == "sent" and event.get("vote") == "accepted" and event["length"]:
            key = (event["node"], event["log"], event["ballot"])
            assert event["length"] <= on_disk.get(key, event["length"])


@in_all_ways
def test_what_is_chosen_in_a_scenario_is_what_the_cluster_holds_to_be_chosen(name: str, way: str) -> None:
    cluster, events = told(name, way)
    held: dict[tuple[int, int, int], list[Any]] = {}
    for event in events:
        if event["kind"] == "accepted":
            for slot, entry in enumerate(event["entries"], event["slot"]):
                held[event["node"], event["log"], slot] = entry
        elif event["kind"] in ("chosen", "learned"):
            for slot in range(event["slot"], event["length"]):
                entry = held.get((event["node"], event["log"], slot))
                true = cluster.slots[event["log"], slot]
                assert entry is None or entry == [true.timestamp, commands(true.payload)]
    chosen = {(e["log"], slot) for e in of_kind(events, "chosen") for slot in range(e["slot"], e["length"])}
    assert chosen == set(cluster.slots)


@pytest.mark.parametrize(
    ("name", "way"),
    [*[(name, OWN_LOGS) for name in PROFILES_TRIED], ("lossy", "classic"), ("crash-loops", "leader")],
)
def test_a_run_of_the_simulator_is_the_same_whether_it_is_recorded_or_not(name: str, way: str) -> None:
    profile = replace(PROFILES[name], proposing=way)
    recorded = RecordedSimulation(3, profile, 1_000_000)
    assert recorded.run() == Simulation(3, profile).run()
    events = events_of(recorded.recording)
    oracle = [[timestamp, commands(payload)] for timestamp, _, payload in recorded.oracle.applied]
    for node in recorded.nodes:
        applied = [e["entries"][0] for e in of_kind(events, "applied") if e["node"] == node]
        assert all(entry in oracle for entry in applied)
    everywhere = {tuple(event["entries"][0]) for event in of_kind(events, "applied")}
    assert everywhere == {tuple(entry) for entry in oracle}
    arrived = {
        event["cause"] for event in events if event["kind"] in ("delivered", "lost") and event.get("cause")
    }
    sent = {event["id"] for event in of_kind(events, "sent")}
    assert arrived <= sent


def test_a_ring_keeps_the_last_events_and_says_again_and_again_how_the_logs_stand() -> None:
    simulation = RecordedSimulation(5, PROFILES["busy"], 10_000)
    simulation.run()
    events = events_of(simulation.recording)
    assert len(events) == 10_000 and events[0]["id"] > 1
    assert {event["node"] for event in of_kind(events, "state")} == {1, 2, 3, 4, 5}


def test_all_kinds_of_events_are_documented_and_have_words() -> None:
    documented = {line.split("`")[1] for line in SCHEMA.read_text().splitlines() if line.startswith("| `")}
    seen = {event["kind"] for name in STORIES for event in told(name)[1]}
    simulation = RecordedSimulation(5, PROFILES["forgetful-lossy"], 1_000_000)
    simulation.run()
    seen |= {event["kind"] for event in events_of(simulation.recording)}
    assert seen <= documented and seen <= set(TEXTS)
    assert set(TEXTS) <= documented


@pytest.mark.parametrize("name", STORIES)
def test_traces_of_single_nodes_are_joined_to_what_the_simulator_has_recorded(name: str) -> None:
    cluster, events = told(name)
    alone = [{**event, "cause": 0} if event["kind"] == "delivered" else event for event in events]
    whole = joined([[event for event in alone if event["node"] == node] for node in cluster.ids])
    messages = {(e["node"], e["id"]): e for e in events if e["kind"] in ("sent", "delivered")}
    assert len(whole) == sum(event["node"] > 0 for event in events)
    right = wrong = 0
    by_id = {event["id"]: event for event in whole}
    true = {
        (e["node"], e["from"], e["time"], e["message"], repr(e.get("entries"))): messages[
            e["from"], e["cause"]
        ]
        for e in events
        if e["kind"] == "delivered" and e.get("cause")
    }
    for event in whole:
        if event["kind"] == "delivered":
            key = (event["node"], event["from"], event["time"], event["message"], repr(event.get("entries")))
            match = by_id.get(event["cause"])
            assert match is not None and match["to"] == event["node"] and match["message"] == event["message"]
            right += match["time"] == true[key]["time"]
            wrong += match["time"] != true[key]["time"]
    assert right > 20 * wrong  # what is sent twice alike, and lost once, cannot be told apart


def test_the_words_name_skips_what_comes_twice_and_what_is_not_on_a_disk_yet() -> None:
    assert values({"entries": [[1, "put x=1"], [9, "no-op"]]}) == "put x=1 and a skip (no-op)"
    assert values({"entries": [[1, "no-op"]]}) == "a skip (no-op)"
    assert values({"entries": [[1, "put x=1"], [2, "get y"], [9, "no-op"]]}) == (
        "put x=1, 1 more and a skip (no-op)"
    )
    assert nodes([3, 3]) == "node 3 (twice)" and nodes([3, 4, 3]) == "nodes 3 (twice) and 4"
    vote = {"kind": "sent", "message": "Accepted", "vote": "accepted", "length": 25, "asked": 25}
    assert message(vote) == "Accepted: slot 25 is not on its disk yet, 25 entries are on its disk"
    assert message(vote | {"asked": 24}) == "Accepted: 25 entries are on its disk"
    assert message(vote | {"length": 0, "asked": 0}) == "Accepted: not on its disk yet"
    text = Drawing([json.dumps({"nodes": [1, 2, 3, 4, 5]}), *map(json.dumps, told("put")[1])]).text()
    assert "may write later" in text


@in_all_ways
def test_all_that_is_chosen_is_told_in_words(name: str, way: str) -> None:
    cluster, events = told(name, way)
    drawing = Drawing([json.dumps({"nodes": cluster.ids}), *map(json.dumps, events)], gossip=True)
    assert drawing.text().count("CHOSEN: ") == len(of_kind(events, "chosen"))
    assert "{" not in drawing.text() and "an earlier entry" not in drawing.text()


def test_large_events_take_the_oldest_along_so_that_a_ring_does_not_fill_the_memory() -> None:
    trace = Trace(lambda: 0.0)
    entries = [Entry(number, bytes([number % 256]) * 1000) for number in range(1, 2001)]  # 2 MB
    for number in range(100):
        trace.carry(1, "sent", 0, Accept(1, 256, number, entries, False, Fact(1, 0, 0, 0), []), 2)
        trace.add(1, "accepted", log=1, entries=kept(entries))
        trace.add(1, "timer")
    assert len(trace.ring) < 60 and trace.weight <= HEAVY
    assert [event.id for event in trace.after(0)] == [*range(301 - len(trace.ring), 301)]
    assert [event.id for event in trace.after(298)] == [299, 300]


def test_long_requests_and_answers_are_cut() -> None:
    big = "x" * 100_000
    assert len(outcome(Result(Outcome.OK, big))) < 100
    assert len(outcome([Result(Outcome.OK, big)] * 1000)) < 5000
    assert outcome([Result(Outcome.OK)] * 60).endswith("OK; and 10 more")
    assert outcome(Page([], False, 1)) == "Page" and outcome(None) == "OK"


def test_every_verb_outcome_verdict_and_vote_has_a_word_that_recordings_show() -> None:
    for texts, numbers in ((WORDS, Verb), (OUTCOMES, Outcome), (VERDICTS, Verdict), (VOTES, Vote)):
        assert set(texts) == {value for name, value in vars(numbers).items() if name.isupper()}


@in_all_ways
def test_what_is_told_of_a_slot_is_what_the_simulator_has_seen_of_it(name: str, way: str) -> None:
    cluster, events = told(name, way)
    for (log, slot), entry in cluster.slots.items():
        for event in events:
            event.setdefault("cause", 0)
        kept = about(events, log, slot)
        assert [e["id"] for e in of_kind(kept, "chosen")] == [
            e["id"] for e in of_kind(events, "chosen") if e["log"] == log and e["slot"] <= slot < e["length"]
        ]
        if not entry.payload:
            continue
        applied = [e for e in of_kind(events, "applied") if e["entries"][0][0] == entry.timestamp]
        known = [e for e in applied if e["log"] == log and "slot" in e]
        assert {e["id"] for e in known} <= {e["id"] for e in kept}
        asked = {text for e in of_kind(kept, "asked") for text in e["commands"]}
        assert set(commands(entry.payload).split("; ")) <= asked
        for chosen in of_kind(kept, "chosen"):
            assert set(chosen["because"]) <= {e["id"] for e in kept}


def last_of(cluster: RecordedCluster) -> dict[str, tuple[int, int]]:
    """By key: the log and slot of the last entry about it, as the cluster has seen them chosen."""
    found = {}
    for (log, slot), entry in sorted(cluster.slots.items(), key=lambda item: (item[1].timestamp, item[0])):
        for command in decode(Batch, entry.payload).commands if entry.payload else ():
            found[command.key] = (log, slot)
    return found


@in_all_ways
def test_what_is_explained_of_a_key_is_what_the_simulator_has_seen(name: str, way: str) -> None:
    cluster, events = told(name, way)
    alone = [
        {**event, "cause": 0 if event["kind"] == "delivered" else event.get("cause", 0)} for event in events
    ]
    whole = joined([[event for event in alone if event["node"] == node] for node in cluster.ids])
    for key, (log, slot) in last_of(cluster).items():
        assert written(whole, key) == (log, slot)
        kept = about(whole, log, slot)
        entry = cluster.slots[log, slot]
        shown = [entry.timestamp, commands(entry.payload)]
        by = proposer(log, entry)
        proposed = {e["node"]: e["entries"][0][1] for e in of_kind(kept, "proposed")}
        assert proposed.pop(by) == shown[1]
        assert {e["node"] for e in of_kind(kept, "asked")} == {by, *proposed}
        others = [e for e in of_kind(kept, "accepted") if shown not in e["entries"]]
        assert others or not proposed  # what was accepted there, and lost, is told as well
        assert {e["node"] for e in of_kind(kept, "answered")} <= {by, *proposed}
        applied = {e["node"] for e in of_kind(kept, "applied")}
        assert {node for node in cluster.ids if node in applied} == {
            e["node"] for e in of_kind(whole, "applied") if e["entries"] == [shown] and "slot" in e
        }
        for chosen in of_kind(kept, "chosen"):
            assert len(chosen["votes"]) >= 3
            for voter in chosen["votes"]:
                assert [
                    e
                    for e in of_kind(kept, "accepted")
                    if (e["node"], e["ballot"]) == (voter, chosen["ballot"])
                    and shown in [list(one) for one in e["entries"]]
                ]
        if way == "classic":  # one ballot for each command, and every attempt is told
            assert {e["ballot"] for e in of_kind(kept, "stands")} >= {
                e["ballot"] for e in of_kind(kept, "chosen")
            }


@in_all_ways
def test_what_live_nodes_record_explains_a_key_too(
    name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They leave out gossip; all else is as in the simulator."""
    monkeypatch.setattr(recorded, "Recorder", partial(Recorder, brief=True))
    cluster = STORIES[name].play(way)
    events, full = events_of(cluster.trace), told(name, way)[1]
    for event in [*events, *full]:
        event.setdefault("cause", 0)
    for key, (log, slot) in last_of(cluster).items():
        assert written(events, key) == (log, slot)
        kept, whole = about(events, log, slot), about(full, log, slot)
        for kind in ("asked", "proposed", "stands", "leads", "accepted", "chosen", "applied", "answered"):
            brief = [event | {"id": 0, "cause": 0, "because": []} for event in of_kind(kept, kind)]
            assert brief == [event | {"id": 0, "cause": 0, "because": []} for event in of_kind(whole, kind)]


@in_all_ways
def test_what_journals_have_is_what_is_chosen(name: str, way: str) -> None:
    cluster, _ = told(name, way)
    last = last_of(cluster)
    for machine in cluster.machines.values():
        if not machine.running:
            continue
        entries = HeldEntries()
        for frame in [*machine.files.frames(), *machine.durable]:
            entries.take(decode(Frame, frame).records)
        shown = [json.loads(event.as_json()) for event in entries.events(machine.core, 0.0)]
        assert shown or not machine.applied
        for event in shown:
            entry = cluster.slots.get((event["log"], event["slot"]))
            if entry is not None and event["entries"] == [[entry.timestamp, commands(entry.payload)]]:
                assert event["by"] == proposer(event["log"], entry)
            elif event["length"]:  # it was accepted there, and lost: another ballot has the chosen one
                ballots = [
                    e["ballot"] for e in shown if (e["log"], e["slot"]) == (event["log"], event["slot"])
                ]
                assert len(ballots) > 1 or not entry.payload
        if machine.applied == cluster.order and not machine.files.newest and not machine.disk:
            assert {key: written(shown, key) for key in last} == last


def test_what_a_transaction_writes_is_found_by_its_keys() -> None:
    wanted = Transaction(
        [Compare("guard", Relation.EXISTS)],
        [Action(Verb.PUT, "one", "1"), Action(Verb.INCREMENT, "two", None, 5)],
        [Action(Verb.DELETE, "three")],
    )
    payload = encode(Batch([Command(Verb.PUT, "a", "1"), Command(Verb.TRANSACTION, transaction=wanted)]))
    text = commands(payload)
    done = "then-put one=1; then-increment two by 5; else-delete three"
    assert text == f"put a=1; transaction, if 1 hold; {done}"
    event = {"kind": "held", "log": 2, "slot": 7, "ballot": "1.2", "entries": [[5, text]]}
    for key in ("a", "one", "two", "three"):
        assert written([event], key) == (2, 7)
    assert written([event], "guard") is None


def test_a_promise_behind_the_quorum_is_no_reason_to_lead() -> None:
    """Also in the same turn: what is adopted does not come from it."""
    core = Node(1, range(1, 6), Random(1))
    core.start(0.0)
    trace = Trace(lambda: 0.0)
    recorder = Recorder(trace, core)
    core.tick(0.0)
    recorder.drained(core.drain(0.0))
    ballot = core.own.ballot
    for sender in (2, 3, 4, 5):
        promise = Promise(1, ballot, 0, Verdict.PROMISED, ballot, 0, [], Fact(1, 0, 0, 0))
        recorder.delivered(sender, promise)
        core.step(sender, promise, 0.0)
    recorder.drained(core.drain(0.0))
    (leads,) = of_kind(events_of(trace), "leads")
    assert leads["promises"] == [2, 3, 4]
