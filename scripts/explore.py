#!/usr/bin/env python3
"""Tries every schedule of a small world on the real code, and says whether any of them breaks a promise.

    scripts/explore.py one-log --stand 2 --crash 1       acceptors and candidates of one log
    scripts/explore.py nodes --put 1 --tick 1            three whole nodes
    scripts/explore.py --check-trace run.jsonl           was a recorded run one that the rules allow?

Messages come in any order, late or never, in one-log also twice; everything else has a budget: how
often a candidate stands, appends one more entry, sends again or crashes, how often a node takes a command or
a read, notices that time has passed, crashes, loses its disk, or makes a checkpoint. A breach is printed with
the fewest steps that lead to it.

Exit status: 0 every state was visited, or the recorded run is allowed; 1 a breach; 4 the time or the number
of states was used up; 2 usage.
"""

import argparse
import math
import os
import resource
import sys
from pathlib import Path

os.environ["PAXOSKV_INTERPRETED"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from paxoskv import program

program.begin(*program.PACKAGES, "numpy")

from paxoskv.config import WAYS
from tests.harness.explore.nodes import Nodes
from tests.harness.explore.one_log import OneLog
from tests.harness.explore.recorded_run import Damaged, RecordedRun, Refused, read
from tests.harness.explore.search import explore
from tests.harness.explore.world import World

BUDGETS = {
    "one-log": {"stand": 2, "append": 0, "resend": 0, "crash": 0},
    "nodes": {"put": 1, "read": 0, "tick": 0, "crash": 0, "wipe": 0, "checkpoint": 0},
}


def parser() -> argparse.ArgumentParser:
    what, _, rest = (__doc__ or "").partition("\n\n")
    found = argparse.ArgumentParser(
        description=what, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument(
        "--check-trace",
        type=Path,
        metavar="FILE",
        help="check what `client.py trace show` or `scripts/trace.py --json` has written",
    )
    layers = found.add_subparsers(dest="layer", metavar="LAYER")
    for layer, budgets in BUDGETS.items():
        sub = layers.add_parser(layer, help=f"budgets: {', '.join(budgets)}")
        for name, budget in budgets.items():
            sub.add_argument(
                f"--{name}", type=int, default=budget, metavar="N", help=f"how often (default: {budget})"
            )
        sub.add_argument(
            "--seconds", type=float, default=600, metavar="S", help="stop after so long (default: 600)"
        )
        sub.add_argument("--states", type=int, default=20_000_000, metavar="N", help="or this many states")
        sub.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
        if layer == "one-log":
            sub.add_argument("--acceptors", type=int, default=3, metavar="N", help="(default: 3)")
            sub.add_argument("--proposers", type=int, default=2, metavar="N", help="(default: 2)")
            sub.add_argument("--no-symmetry", action="store_true", help="tell acceptors apart")
            sub.add_argument("--no-forget", action="store_true", help="keep messages that can change nothing")
            sub.add_argument("--check", action="store_true", help="check that they cannot; keeps them, slow")
        else:
            sub.add_argument("--proposing", choices=WAYS, default=WAYS[0], help="(default: %(default)s)")
    return found


def check_trace(path: Path) -> int:
    """Say whether the recorded run is allowed; returns the exit status."""
    try:
        with path.open(encoding="utf-8") as lines:
            run = RecordedRun(read(lines))
        checked = run.check()
    except (OSError, UnicodeError, Damaged) as error:
        print(f"{path}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 2
    except Refused as refused:
        print(f"NOT ALLOWED: {refused}")
        return 1
    print(
        f"{sum(checked.values()):,} events are allowed: "
        + ", ".join(f"{n:,} {k}" for k, n in checked.items())
    )
    if not run.complete:
        print("the recording has gaps: whether all that is said to be chosen has a quorum was not checked")
    return 0


def main() -> int:
    found = parser()
    options = found.parse_args()
    if bool(options.check_trace) == bool(options.layer):
        found.error("say a LAYER, or --check-trace FILE")
    if options.check_trace:
        return check_trace(options.check_trace)
    budgets = {name: getattr(options, name) for name in BUDGETS[options.layer]}
    world: World
    flags = {}
    if options.layer == "one-log":
        world = OneLog(options.acceptors, options.proposers, **budgets)
        flags = {"symmetry": not options.no_symmetry, "forget": not options.no_forget, "check": options.check}
    else:
        world = Nodes(proposing=options.proposing, **budgets)
    verdict = explore(world, options.seconds, options.states, options.workers, **flags)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    ways = math.factorial(world.alike) if flags.get("symmetry") else 1
    speed, core = verdict.states / verdict.seconds, verdict.states / verdict.processor_seconds
    missed = ways * verdict.states**2 / 2**65
    print(
        f"{verdict.states:,} states, {verdict.transitions:,} steps, {verdict.depth} deep, "
        f"{verdict.seconds:.1f} s ({speed:,.0f} states/s; {core:,.0f} in a second of one core), "
        f"at most {memory} MiB in a process; probability that a state was missed: below {missed:.0e}"
    )
    if verdict.breach:
        print(
            f"BREACH: {verdict.breach}\n"
            + "\n".join(f"  {number:3} {step}" for number, step in enumerate(verdict.schedule, 1))
        )
        return 1
    print("exhausted: no breach" if verdict.exhausted else "not exhausted: no breach so far")
    return 0 if verdict.exhausted else 4


if __name__ == "__main__":
    sys.exit(main())
