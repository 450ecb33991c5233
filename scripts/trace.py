#!/usr/bin/env python3
"""Records a run of the real code, and shows it: as text, as a diagram, or as a page to step through.

    scripts/trace.py --list                                the scenarios
    scripts/trace.py put --text                            in words
    scripts/trace.py leader-dies --html leader.html        a page: open it in a browser
    scripts/trace.py two-proposers --proposing classic     another way to propose
    scripts/trace.py put --svg put.svg --mermaid put.mmd   pictures
    scripts/trace.py --seed 17 --profile lossy --html seed.html
    scripts/trace.py put --json put.jsonl                  the events themselves: docs/trace.md has the format

A scenario runs on the nodes' own code, in simulated time, with a scripted network; a seed is a run of
scripts/simulate.py. Of a long run the last events are shown (--last). A run that breaks a rule ends there.

FILE may be -, for stdout.

Exit status: 0 done; 1 the run broke a rule (it was still drawn); 2 usage; 74 a file cannot be written.
"""

import _signal  # what `signal` is made of: it takes no time to import
import sys

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is not _signal.SIG_IGN:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # while it imports, too: there is nothing to tidy up

import argparse
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from paxoskv import program

program.begin(*program.PACKAGES)

from paxoskv.page.draw import FORMS, Drawing
from paxoskv.program import positive
from paxoskv.protocol.node import WAYS
from paxoskv.trace.events import Trace
from scripts.simulate import profile_of, selection, setting_of
from tests.harness.recorded import RecordedSimulation
from tests.harness.simulator import PROFILES, Violation
from tests.harness.stories import STORIES

LAST = 10_000  # events
BEFORE = 50_000  # events before those that are shown: they tell how all stood then


def lines_of(trace: Trace, last: int, text: str, **header: Any) -> list[str]:
    """The lines of a trace, and what to say if its beginning is not shown."""
    events = trace.events
    before = max(0, len(events) - last)
    first = events[before]
    if first.id > 1:
        text += (
            f" The beginning is cut off: the {first.id - 1:,} events before {first.time * 1000:,.0f} ms "
            "are not shown, only how all stood then (--last N shows more)."
        )
    return list(trace.lines(text=text, before=before, **header))


def of_scenario(name: str, last: int, way: str | None) -> list[str]:
    """The lines of a scenario's trace."""
    story = STORIES[name]
    cluster = story.play(way)
    command, title, text = f"scripts/trace.py {name}", story.title, story.text
    if cluster.proposing != story.way:
        command += f" --proposing {cluster.proposing}"
        title += f" ({cluster.proposing})"
        text = f"The same script with another way to propose; without --proposing it is told for {story.way}."
    return lines_of(cluster.trace, last, text, title=title, command=command, nodes=cluster.ids)


def of_seed(found: argparse.Namespace) -> tuple[list[str], str | None]:
    """The lines of a run of the simulator, and the rule that it broke, if any."""
    profile = profile_of(found.profile, found.nodes, found.settings)
    simulation = RecordedSimulation(found.seed, profile, found.last + BEFORE)
    failure = None
    try:
        simulation.run()
    except Violation as violation:
        failure = str(violation).splitlines()[0]
    options = selection(found.profile, found.nodes, found.settings)
    command = f"scripts/trace.py --seed {found.seed} {options}"
    title = f"Seed {found.seed} of the simulator, profile {found.profile}"
    text = failure or "No rule was broken."
    return lines_of(
        simulation.recording, found.last, text, title=title, command=command, nodes=simulation.nodes
    ), failure


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Record a run of the real code, and show it.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("scenario", nargs="?", choices=STORIES, metavar="SCENARIO", help=", ".join(STORIES))
    what.add_argument("--seed", type=int, metavar="N", help="a run of the simulator")
    what.add_argument("--list", action="store_true", help="what each scenario is about")
    parser.add_argument("--proposing", choices=WAYS, help="another way to propose (default: the scenario's)")
    run = parser.add_argument_group("with --seed")
    run.add_argument("--profile", choices=sorted(PROFILES), metavar="P", help="how hard life is (default)")
    run.add_argument("--nodes", type=int, choices=range(1, 16, 2), metavar="N", help="another number, odd")
    run.add_argument("--set", type=setting_of, action="append", dest="settings", metavar="NAME=VALUE")
    parser.add_argument(
        "--last", type=positive, default=LAST, metavar="N", help=f"show this many events (default: {LAST:,})"
    )
    parser.add_argument(
        "--all", action="store_true", help="show gossip and timers, too (the page always can)"
    )
    parser.add_argument("--text", action="store_true", help="print it in words (default)")
    for form in FORMS:
        parser.add_argument(f"--{form}", metavar="FILE")
    found = parser.parse_args(arguments)
    if found.seed is None and (found.profile or found.nodes or found.settings):
        parser.error("--profile, --nodes and --set are for --seed")
    if found.list and (found.proposing or found.text or any(vars(found)[form] for form in FORMS)):
        parser.error("--list shows no run")
    found.profile, found.settings = found.profile or "default", dict(found.settings or ())
    if found.seed is not None and found.proposing:
        found.settings["proposing"] = found.proposing
    return found


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    found = parse(arguments)
    if found.list:
        for story in STORIES.values():
            print(f"{story.name}: {story.title}\n    {story.text}")
        return 0
    if found.scenario is not None:
        lines, failure = of_scenario(found.scenario, found.last, found.proposing), None
    else:
        lines, failure = of_seed(found)
    drawing = Drawing(lines, found.all)
    if not drawing.save(vars(found), sys.stdout.write) or found.text:
        print(drawing.text(), end="")
    if failure is not None:
        print(failure, file=sys.stderr)
    return int(failure is not None)


if __name__ == "__main__":
    sys.exit(main())
