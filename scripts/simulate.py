#!/usr/bin/env python3
"""Runs many simulations of the whole cluster, each from its own seed, until one breaks a rule.

    scripts/simulate.py --seeds 1-1000                     every seed in one profile after the other
    scripts/simulate.py --seeds 1-100000 --minutes 60 --jobs 2
    scripts/simulate.py --seeds 17-17 --profile lossy      one run again
    scripts/simulate.py --seeds 17-17 --profile lossy --set seconds=0.5 --set clients=1
    scripts/simulate.py --golden [--record]                do nodes do what they did? (see golden.py)

The first 50 seeds are run twice, the second time in another process with other hashes, and must give the same
events.
tests/harness/simulator.py says what is simulated and what is checked.

A run that breaks a rule is shrunk: to a shorter time with faults, fewer clients, and fewer kinds of faults,
as long as some rule is still broken. The last messages of what remains are printed, and who held what.

Where scripts/setup.sh --fast has compiled it, the core runs compiled: the same events, in less time.

Exit status: 0 no rule was broken; 1 one was (replay commands and the last events are printed); 2 usage.
"""

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from paxoskv import compiled, program

program.begin(*program.PACKAGES)

# The compiled core runs the same events faster. Nothing else is compiled here: the simulator subclasses it.
if "paxoskv.wire.structs" not in sys.modules:  # else a test has imported this, and some are interpreted
    compiled.use(("paxoskv", "paxoskv.wire", "paxoskv.protocol"))

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from paxoskv.protocol.node import OWN_LOGS, WAYS
from tests.harness import golden
from tests.harness.simulator import PROFILES, Profile, Report, Simulation, Violation

TWICE = 50  # seeds that are run a second time
SHRINKING = 120.0  # seconds for which a failure is made smaller, about
SEEDS = 4  # that are tried when a smaller run is another one: all that is random in it comes out differently
SETTINGS = {
    field.name: field.type for field in fields(Profile) if field.name not in ("name", "nodes", "failures")
}
AHEAD = 4  # runs per job that are handed out ahead


class Result(NamedTuple):
    """What came of one run."""

    seed: int
    profile: str
    report: Report | None
    failure: str | None
    seconds: float  # of a core


def profile_of(name: str, nodes: int | None, settings: dict[str, Any] | None = None) -> Profile:
    """The profile, with another number of nodes: so few of them die that some node reaches a quorum."""
    profile = replace(PROFILES[name], **(settings or {}))
    if nodes is None:
        return profile
    broken = profile.broken and nodes > 2
    dead = min(profile.dead, nodes // 2, nodes - 3 if broken else nodes)
    return replace(profile, nodes=nodes, dead=dead, broken=broken)


def run_one(seed: int, name: str, nodes: int | None, settings: dict[str, Any] | None = None) -> Result:
    """One run. Its failure is text: a Violation need not be carried between processes."""
    began = time.process_time()
    try:
        report = Simulation(seed, profile_of(name, nodes, settings)).run()
    except Violation as violation:
        return Result(seed, name, None, str(violation), time.process_time() - began)
    return Result(seed, name, report, None, time.process_time() - began)


def seeds_of(text: str) -> range:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and (last or first).isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not A-B, or a number")
    seeds = range(int(first), int(last or first) + 1)
    if not seeds:
        raise argparse.ArgumentTypeError(f"{text}: there is no seed in it")
    return seeds


def setting_of(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    if name not in SETTINGS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SETTINGS)}")
    try:
        if SETTINGS[name] is bool:
            return name, {"True": True, "False": False}[value]
        return name, SETTINGS[name](value)
    except (KeyError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{name}: {value!r} is no {SETTINGS[name].__name__}") from error


def assignments(seeds: range, profiles: list[str]) -> Iterator[tuple[int, str]]:
    """Seed by seed, one profile after the other: each has its share, whenever the time is up."""
    for seed in seeds:
        yield seed, profiles[seed % len(profiles)]


class Tally:
    """What was seen so far."""

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.events = 0
        self.seconds = 0.0
        self.rest = 0.0
        self.hashes: dict[tuple[int, str], int] = {}

    def add(self, result: Result) -> None:
        report = result.report
        assert report is not None, "only runs that broke no rule are counted"
        self.runs[result.profile] += 1
        self.counts.update({name.replace("_", " "): count for name, count in report.counts.items()})
        self.events += report.events
        self.seconds += result.seconds
        self.rest = max(self.rest, report.rest)
        if len(self.hashes) < TWICE:
            self.hashes[result.seed, result.profile] = report.trace_hash

    def __str__(self) -> str:
        rate = self.events / self.seconds if self.seconds else 0
        return "\n".join([
            f"{self.runs.total():,} runs, {self.events:,} events, {rate:,.0f} events per second and core, "
            "no rule broken",
            f"at rest at the latest {self.rest:.1f} simulated seconds after the last fault",
            "runs      " + ", ".join(f"{count} {name}" for name, count in sorted(self.runs.items())),
            "of which  " + ", ".join(f"{count:,} {name}" for name, count in sorted(self.counts.items())),
        ])  # fmt: skip


def explore(arguments: argparse.Namespace, progress: Progress, tally: Tally) -> Result | None:
    """Run until the seeds or the minutes end. The first run that broke a rule, if any."""
    deadline = time.monotonic() + 60 * arguments.minutes if arguments.minutes else float("inf")
    todo = assignments(arguments.seeds, arguments.profiles)
    bar = progress.add_task("seeds", total=len(arguments.seeds), failures=0)
    with ProcessPoolExecutor(arguments.jobs) as pool:
        running: set[Future[Result]] = set()
        try:
            while True:
                while (
                    len(running) < AHEAD * arguments.jobs
                    and time.monotonic() < deadline
                    and (next_ := next(todo, None))
                ):
                    running.add(pool.submit(run_one, *next_, arguments.nodes, arguments.settings))
                if not running:
                    return None
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    result = future.result()
                    if result.failure is not None:
                        return result
                    tally.add(result)
                    rate = tally.events / tally.seconds
                    progress.update(
                        bar, advance=1, description=f"{tally.events:,} events, {rate:,.0f}/s and core"
                    )
        finally:
            for future in running:
                future.cancel()


def selection(profile: str, nodes: int | None, settings: dict[str, Any]) -> str:
    """The options that, with a seed, select a run: of this program and of scripts/trace.py."""
    more = "" if nodes is None else f" --nodes {nodes}"
    return f"--profile {profile}{more}" + "".join(
        f" --set {name}={value}" for name, value in settings.items()
    )


def replay(result: Result, nodes: int | None, settings: dict[str, Any]) -> str:
    """The commands that show this run again, and make its page."""
    seed, options = result.seed, selection(result.profile, nodes, settings)
    return (
        f"scripts/simulate.py --seeds {seed}-{seed} {options}\n"
        f"see it: scripts/trace.py --seed {seed} {options} --html seed-{seed}.html"
    )


def smaller(profile: Profile) -> Iterator[tuple[str, Any]]:
    """What may be left out of a run: (setting, value), one after the other."""
    for name, least in (("clients", 1), ("in_flight", 1), ("keys", 1)):
        yield from ((name, count) for count in range(least, getattr(profile, name)))
    for name in (
        "disk_troubles", "weather", "broken_links", "one_ways", "partitions", "pauses", "crashes",
        "late_duplicates", "duplicates", "loss", "slow_messages", "slow_syncs", "lost_requests",
        "batching", "reads",
    ):  # fmt: skip
        if getattr(profile, name):
            yield name, 0.0


def shrink(failed: Result, nodes: int | None, settings: dict[str, Any]) -> tuple[Result, dict[str, Any]]:
    """A smaller run that breaks a rule, and its settings; perhaps with another seed, and another rule."""
    deadline = time.monotonic() + SHRINKING

    def fails(settings: dict[str, Any], seeds: int = 1) -> Result | None:
        for seed in range(failed.seed, failed.seed + seeds):
            if time.monotonic() < deadline:
                result = run_one(seed, failed.profile, nodes, settings)
                if result.failure is not None:
                    return result
        return None

    for name, value in smaller(profile_of(failed.profile, nodes, settings)):
        if value >= getattr(profile_of(failed.profile, nodes, settings), name):
            continue
        if found := fails({**settings, name: value}, SEEDS):
            failed, settings = found, {**settings, name: value}
    enough = profile_of(failed.profile, nodes, settings).seconds
    too_short = 0.0
    while enough - too_short > 0.01:
        middle = round((enough + too_short) / 2, 4)
        if found := fails({**settings, "seconds": middle}):
            failed, settings, enough = found, {**settings, "seconds": middle}, middle
        else:
            too_short = middle
    return failed, settings


def differing(tally: Tally, nodes: int | None, settings: dict[str, Any]) -> list[str]:
    """The first runs once more in a process with other hashes: those whose events differ."""
    code = (
        "from scripts.simulate import run_one\n"
        f"for seed, profile in {list(tally.hashes)!r}:\n"
        f"    print(run_one(seed, profile, {nodes!r}, {settings!r}).report.trace_hash)\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    again = [int(line) for line in output.split()]
    return [
        f"seed {seed} profile {profile}"
        for (seed, profile), trace_hash in zip(tally.hashes, again, strict=True)
        if tally.hashes[seed, profile] != trace_hash
    ]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run many simulations of the whole cluster.")
    parser.add_argument("--seeds", type=seeds_of, default=range(1, 101), metavar="A-B", help="default: 1-100")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default: 2)")
    parser.add_argument(
        "--minutes", type=float, default=0, metavar="M", help="end after this time (default: with the seeds)"
    )
    parser.add_argument(
        "--nodes", type=int, choices=range(1, 16, 2), metavar="N", help="another number of nodes, odd"
    )
    parser.add_argument(
        "--profile", choices=sorted(PROFILES), metavar="P", help=f"one of {', '.join(sorted(PROFILES))}"
    )
    parser.add_argument(
        "--proposing", choices=WAYS, default=OWN_LOGS, help="how nodes propose (default: %(default)s)"
    )
    parser.add_argument(
        "--set", type=setting_of, action="append", default=[], dest="settings", metavar="NAME=VALUE",
        help=f"another value for one of {', '.join(SETTINGS)}",
    )  # fmt: skip
    parser.add_argument(
        "--golden", action="store_true", help="compare all runs with tests/harness/golden.txt"
    )
    parser.add_argument("--record", action="store_true", help="with --golden: write that file anew")
    found = parser.parse_args(arguments)
    if found.jobs < 1:
        parser.error("--jobs: at least 1")
    if found.record and not found.golden:
        parser.error("--record is for --golden")
    found.settings = dict(found.settings)
    if found.proposing != OWN_LOGS:
        found.settings["proposing"] = found.proposing
    found.profiles = [found.profile] if found.profile else list(PROFILES)
    return found


def compare(record: bool, jobs: int) -> int:
    """Do nodes do what they did when tests/harness/golden.txt was written? Returns the exit status."""
    if record:
        golden.write_down(jobs)
        return 0
    runs = golden.traces(golden.SEEDS, jobs)
    different = golden.differing(runs)
    print("\n".join([*different, f"{len(different)} of {len(runs):,} runs differ"]))
    return int(bool(different))


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line says; returns the exit status."""
    found = parse(arguments)
    if found.golden:
        return compare(found.record, found.jobs)
    console = Console(stderr=True)
    tally = Tally()
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        failure = explore(found, progress, tally)
    if failure is not None:
        print(f"{failure.failure}\nreplay: {replay(failure, found.nodes, found.settings)}\n", flush=True)
        small, settings = shrink(failure, found.nodes, found.settings)
        print(f"shrunk: {small.failure}\nreplay: {replay(small, found.nodes, settings)}")
        return 1
    if different := differing(tally, found.nodes, found.settings):
        print(f"not deterministic: {different[0]} gave other events in another process")
        return 1
    print(tally)
    print(f"{len(tally.hashes)} runs were repeated in another process: the same events")
    return 0


if __name__ == "__main__":
    sys.exit(main())
