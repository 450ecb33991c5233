"""The protocol under random schedules: what every change goes through. scripts/simulate.py runs more."""

import importlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paxoskv import multipaxos
from paxoskv.protocol.catch_up import CatchUp
from tests.harness import golden
from tests.harness.simulator import PROFILES, Profile, Report, Simulation

ROOT = Path(__file__).resolve().parents[2]
CHUNKS = 34  # so that two processes, or more, can share them
SEEDS = 60  # in one chunk
BRIEF = (
    0.18  # most runs have this part of their profile's time with faults; in short runs, more begins and ends
)
WHOLE = 11  # of so many seeds one has all of it
EVENTS = 90_000  # in one chunk, at least: 3 million in all

pytestmark = pytest.mark.slow


def simulate(chunk: int) -> dict[str, float]:
    """Run one chunk's seeds; how many events there were, commands answered, and seconds of a processor."""
    began = time.process_time()
    profiles = list(PROFILES.values())
    events = answered = 0
    for seed in range(SEEDS * chunk, SEEDS * (chunk + 1)):
        profile = profiles[seed % len(profiles)]
        if seed % WHOLE:
            profile = replace(profile, seconds=profile.seconds * BRIEF)
        report = Simulation(seed, profile).run()
        events += report.events
        answered += report.counts["answered"]
    return {"events": events, "answered": answered, "seconds": time.process_time() - began}


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_rule_is_broken_and_everything_comes_to_rest(
    chunk: int, record_property: Callable[[str, object], None]
) -> None:
    """2,040 seeds, all profiles in turn. tests/conftest.py prints the sums.

    In a process of its own: there the core runs compiled, where it has been compiled (see simulate.py).
    """
    code = (
        "import json, scripts.simulate; from tests.simulation import test_simulation; "
        f"print(json.dumps(test_simulation.simulate({chunk})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    record_property("seeds", SEEDS)
    record_property("events", found["events"])
    record_property("seconds", found["seconds"])
    assert found["events"] > EVENTS
    assert found["answered"] > 10 * SEEDS, "where little was done, little shows"


def test_who_believes_little_of_what_is_said_to_be_chosen_breaks_no_rule_and_comes_to_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By itself no simulation is long enough for a node to fall so far behind."""
    pursued: list[int] = []
    begin, pursue = CatchUp.__init__, CatchUp.pursue

    def distrustful(self: CatchUp, *arguments: Any) -> None:
        begin(self, *arguments)
        self.credit = 2

    def seen(self: CatchUp, log: int, *arguments: Any) -> None:
        pursued.append(log)
        pursue(self, log, *arguments)

    monkeypatch.setattr(CatchUp, "__init__", distrustful)
    monkeypatch.setattr(CatchUp, "pursue", seen)
    for seed, profile in enumerate(PROFILES.values(), 501):
        Simulation(seed, replace(profile, seconds=profile.seconds * BRIEF)).run()
    assert len(pursued) > 50


def test_faults_of_every_kind_really_happen() -> None:
    reports = [Simulation(seed, Profile(fault_rate=20)).run() for seed in range(1, 6)]
    for fault in (
        "crash",
        "pause",
        "partition",
        "one_way",
        "broken_link",
        "weather",
        "disk_trouble",
        "skips",
    ):
        assert any(report.counts.get(fault) for report in reports), fault


def test_disks_forget_and_are_found_out_and_it_is_said_where_nobody_could_know() -> None:
    profiles = [name for name, profile in PROFILES.items() if profile.flips or profile.snapshots]
    counts: Counter[str] = Counter()
    for seed in range(1, 9):
        for name in profiles:
            counts.update(Simulation(seed, PROFILES[name]).run().counts)
    for fault in ("flipped", "damaged", "put back", "refused copies", "rejoined", "unavoidable"):
        assert counts[fault], fault
    assert counts["refused copies"] + counts["damaged"] > counts["unavoidable"]


def test_a_seed_gives_the_same_events_whatever_the_hashes_are() -> None:
    code = (
        "import scripts.simulate; from tests.harness.simulator import *; "
        "print([Simulation(1, profile).run().trace_hash for profile in PROFILES.values()])"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hashes},
            capture_output=True, text=True, check=True,
        ).stdout
        for hashes in ("0", "1")
    ]  # fmt: skip
    assert outputs[0] == outputs[1]


def test_nodes_do_what_they_did_when_the_golden_trace_was_recorded() -> None:
    """scripts/simulate.py --golden compares many more runs."""
    assert golden.differing(golden.traces(golden.FEW)) == []


def test_different_seeds_give_different_runs() -> None:
    reports: list[Report] = [Simulation(seed, PROFILES["idle"]).run() for seed in (1, 2)]
    assert reports[0].trace_hash != reports[1].trace_hash


def test_a_failure_is_shrunk_and_the_command_printed_shows_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate = importlib.import_module("scripts.simulate")
    monkeypatch.setattr(multipaxos, "quorum_length", lambda lengths, quorum: max(lengths, default=0))
    assert simulate.main(["--seeds", "3-3", "--profile", "lossy", "--jobs", "1"]) == 1
    shown = capsys.readouterr().out
    assert "durable: 1 has" in shown  # who held what
    command = shown.rpartition("replay: scripts/simulate.py ")[2].splitlines()[0]
    assert "--set clients=1" in command
    assert simulate.main(shlex.split(command)) == 1
    assert capsys.readouterr().out.splitlines()[0] in shown  # the same rule, at the same event
