"""The protocol under random schedules: what every change goes through. scripts/simulate.py runs more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from simulator import PROFILES, Profile, Report, Simulation

ROOT = Path(__file__).resolve().parent.parent
RUNS = 5  # of each profile

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", PROFILES)
def test_no_rule_is_broken_and_everything_comes_to_rest(name: str) -> None:
    reports = [Simulation(seed, PROFILES[name]).run() for seed in range(1, RUNS + 1)]
    assert sum(report.events for report in reports) > 1000 * RUNS
    assert sum(report.counts["answered"] for report in reports) > 10 * RUNS, (
        "where little was done, little shows"
    )


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


def test_a_seed_gives_the_same_events_whatever_the_hashes_are() -> None:
    code = "from simulator import *; print([Simulation(1, p).run().trace_hash for p in PROFILES.values()])"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": hashes},
            capture_output=True, text=True, check=True,
        ).stdout
        for hashes in ("0", "1")
    ]  # fmt: skip
    assert outputs[0] == outputs[1]


def test_different_seeds_give_different_runs() -> None:
    reports: list[Report] = [Simulation(seed, PROFILES["idle"]).run() for seed in (1, 2)]
    assert reports[0].trace_hash != reports[1].trace_hash
