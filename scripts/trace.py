#!/usr/bin/env -S sh -c 'exec "$(dirname "$(readlink -f "$0")")/../.venv/bin/python" "$0" "$@"'
"""Records a run of the real code, and shows it: as text, as a diagram, or as a page to step through.

    scripts/trace.py --list                                the scenarios
    scripts/trace.py put --text                            in words
    scripts/trace.py leader-dies --html leader.html        a page: open it in a browser
    scripts/trace.py put --svg put.svg --mermaid put.mmd   pictures
    scripts/trace.py --seed 17 --profile lossy --html seed.html
    scripts/trace.py put --json put.jsonl                  the events themselves: docs/trace.md has the format

A scenario runs on the nodes' own code, in simulated time, with a scripted network; a seed is a run of
scripts/simulate.py. Of a long run the last events are shown (--last). A run that breaks a rule ends there.

Exit status: 0 done; 1 the run broke a rule (it was drawn all the same); 2 usage.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from paxoskv.page.draw import Drawing  # noqa: E402
from scripts.simulate import profile_of, selection, setting_of  # noqa: E402
from tests.harness.recorded import RecordedSimulation  # noqa: E402
from tests.harness.simulator import PROFILES, Violation  # noqa: E402
from tests.harness.stories import STORIES  # noqa: E402

LAST = 10_000  # events


def of_scenario(name: str, last: int) -> list[str]:
    """The lines of a scenario's trace."""
    story = STORIES[name]
    cluster = story.play()
    header, *events = cluster.trace.lines(
        title=story.title, text=story.text, command=f"scripts/trace.py {name}", nodes=cluster.ids
    )
    return [header, *events[-last:]]


def of_seed(found: argparse.Namespace) -> tuple[list[str], str | None]:
    """The lines of a run of the simulator, and the rule that it broke, if any."""
    profile = profile_of(found.profile, found.nodes, dict(found.settings))
    simulation = RecordedSimulation(found.seed, profile, found.last)
    failure = None
    try:
        simulation.run()
    except Violation as violation:
        failure = str(violation).splitlines()[0]
    options = selection(found.profile, found.nodes, dict(found.settings))
    command = f"scripts/trace.py --seed {found.seed} {options}"
    title = f"Seed {found.seed} of the simulator, profile {found.profile}"
    text = failure or "No rule was broken."
    return list(simulation.recording.lines(title=title, text=text, command=command, nodes=simulation.nodes)), failure


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Record a run of the real code, and show it.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("scenario", nargs="?", choices=STORIES, metavar="SCENARIO", help=", ".join(STORIES))
    what.add_argument("--seed", type=int, metavar="N", help="a run of the simulator")
    what.add_argument("--list", action="store_true", help="what each scenario is about")
    parser.add_argument("--profile", choices=sorted(PROFILES), default="default", metavar="P", help="of the simulator")
    parser.add_argument("--nodes", type=int, choices=range(1, 16, 2), metavar="N", help="with --seed: how many")
    parser.add_argument(
        "--set", type=setting_of, action="append", default=[], dest="settings", metavar="NAME=VALUE",
        help="with --seed: another setting of the profile",
    )  # fmt: skip
    parser.add_argument("--last", type=int, default=LAST, metavar="N", help=f"events shown (default: {LAST:,})")
    parser.add_argument("--all", action="store_true", help="show gossip and timers, too")
    parser.add_argument("--text", action="store_true", help="print it in words (default)")
    for form in ("html", "svg", "mermaid", "json"):
        parser.add_argument(f"--{form}", type=Path, metavar="FILE")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    found = parse(arguments)
    if found.list:
        for story in STORIES.values():
            print(f"{story.name}: {story.title}\n    {story.text}")
        return 0
    lines, failure = of_seed(found) if found.scenario is None else (of_scenario(found.scenario, found.last), None)
    drawing = Drawing(lines, found.all)
    files = {"html": drawing.html, "svg": drawing.svg, "mermaid": drawing.mermaid,
             "json": lambda: "\n".join(lines) + "\n"}  # fmt: skip
    wanted = {form: path for form in files if (path := getattr(found, form))}
    for form, path in wanted.items():
        path.write_text(files[form](), encoding="utf-8")
    if found.text or not wanted:
        print(drawing.text(), end="")
    if failure is not None:
        print(failure, file=sys.stderr)
    return int(failure is not None)


if __name__ == "__main__":
    sys.exit(main())
