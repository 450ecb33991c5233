"""Recorded runs are held against the rules of the protocol; a run that breaks one is refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.harness.explore.recorded_run import Damaged, Event, RecordedRun, Refused, read
from tests.harness.mutants import ROOT
from tests.harness.recorded import RecordedSimulation
from tests.harness.simulator import PROFILES


def simulated(profile: str, seed: int, proposing: str = "own-logs") -> list[Event]:
    simulation = RecordedSimulation(seed, replace(PROFILES[profile], proposing=proposing), 100_000)
    simulation.run()
    return read(simulation.recording.lines())


@pytest.fixture(scope="module")
def good() -> list[Event]:
    return simulated("lossy", 17)


def index(events: list[Event], **wanted: Any) -> int:
    """Where the last event with these fields is."""
    found = [n for n, event in enumerate(events) if all(event.get(k) == v for k, v in wanted.items())]
    return found[-1]


@pytest.mark.parametrize(
    ("profile", "proposing"),
    [
        ("lossy", "own-logs"), ("compacting", "own-logs"), ("wiped", "own-logs"), ("crash-loops", "own-logs"),
        ("lossy", "classic"), ("lossy", "leader"), ("wiped", "leader"),
    ],
)  # fmt: skip
def test_what_the_simulator_has_recorded_is_allowed(profile: str, proposing: str) -> None:
    run = RecordedRun(simulated(profile, 7, proposing))
    checked = run.check()
    assert run.complete
    assert (
        min(checked[kind] for kind in ("sent", "delivered", "durable", "accepted", "chosen", "applied")) > 0
    )


def test_an_old_copy_of_a_disk_that_is_put_back_is_noticed() -> None:
    with pytest.raises(Refused, match=r"by what (it was|others heard) it had"):
        RecordedRun(simulated("put-back", 7)).check()


def test_a_vote_before_its_entry_is_durable_is_refused(good: list[Event]) -> None:
    vote = index(good, kind="sent", message="Accepted", vote="accepted")
    longer = good[vote] | {"length": good[vote]["length"] + 9}
    refused([*good[:vote], longer, *good[vote + 1 :]], "leaves before it is durable")


def test_a_frame_that_never_was_durable_is_missed(good: list[Event]) -> None:
    refused([event for event in good if event["kind"] != "durable"], "leaves before")


def test_two_entries_at_one_ballot_are_refused(good: list[Event]) -> None:
    accepted = next(n for n, event in enumerate(good) if event["kind"] == "accepted" and event["entries"])
    other = good[accepted] | {"entries": [[entry[0], "put other=1"] for entry in good[accepted]["entries"]]}
    refused([*good[:accepted], other, *good[accepted + 1 :]], "and elsewhere")


def test_what_no_quorum_has_accepted_is_not_chosen(good: list[Event]) -> None:
    learned = index(good, kind="learned")
    more = good[learned] | {"length": good[learned]["length"] + 5}
    refused([*good[: learned + 1], more, *good[learned + 1 :]], "said to be chosen|is replaced")


def test_what_is_applied_in_another_order_is_refused(good: list[Event]) -> None:
    first, second = [n for n, e in enumerate(good) if e["kind"] == "applied" and e["node"] == 1][:2]
    swapped = list(good)
    swapped[first], swapped[second] = good[second], good[first]
    refused(swapped, "is applied after")


def test_a_message_that_nobody_has_sent_is_refused(good: list[Event]) -> None:
    refused([e for e in good if not (e["kind"] == "sent" and e["message"] == "Promise")], "has not sent this")


def test_a_leader_without_a_quorum_of_promises_is_refused(good: list[Event]) -> None:
    leads = index(good, kind="leads")
    alone = good[leads] | {"promises": good[leads]["promises"][:2]}
    refused([*good[:leads], alone, *good[leads + 1 :]], "no quorum")


def refused(events: list[Event], why: str) -> None:
    with pytest.raises(Refused, match=why):
        RecordedRun(events).check()


@pytest.mark.parametrize(
    "spoil", [lambda line: line[:-3], lambda line: "[]", lambda line: "{}"], ids=["cut", "list", "empty"]
)
def test_what_is_no_recording_is_told_in_one_line(spoil: Callable[[str], str], tmp_path: Path) -> None:
    line = '{"id": 1, "node": 1, "kind": "state", "logs": [], "leads": []}'
    with pytest.raises(Damaged, match="line 2 is no event"):
        read([line, spoil(line)])
    path = tmp_path / "run.jsonl"
    path.write_text(f"{line}\n{spoil(line)}\n")
    done = command(path)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1


def test_the_command_says_what_it_has_checked(good: list[Event], tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text("\n".join(map(json.dumps, good)))
    done = command(path)
    assert done.returncode == 0 and "events are allowed" in done.stdout
    path.write_text("\n".join(json.dumps(event) for event in good if event["kind"] != "durable"))
    done = command(path)
    assert done.returncode == 1 and done.stdout.startswith("NOT ALLOWED: event ")


def command(path: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, ROOT / "scripts" / "explore.py", "--check-trace", path]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)
