#!/usr/bin/env python3
"""Grades the answer to a lab: your function takes the place of the real one, and has to pass the same tests.

    labs/grade.py                       the labs
    labs/grade.py 4                     grade labs/04-value.py
    labs/grade.py 4 --answer mine.py    grade another file

First come tests, then runs of the simulator, up to the first that breaks a rule: half of the 100 points each.
A failure gets a page to step through: what your code did, message by message. The text of a lab is
labs/NN-name.md. Your file has the function and what else it needs, at the top level; it can use all names of
the module that the function belongs to.

Exit status: 0 all points; 1 fewer; 2 usage, or the file has no such function, or an import in it fails; 74 a
page cannot be written.
"""

import argparse
import ast
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from paxoskv import program

program.begin(*program.PACKAGES)

from labs.exercises import LABS, Lab
from tests.harness import mutants

CASE_S: Final = 40  # seconds in which a test or a run must end
POINTS: Final = 50  # for all tests; as many for all runs
PAGES: Final = ROOT / "build" / "labs"


class Unusable(Exception):
    """The answer cannot be graded; in a line."""


# ------------------------------------------------------------------------------------------------- the answer


def function_in(tree: ast.Module, name: str) -> ast.FunctionDef | None:
    """The function of this name, "function" or "Class.function"."""
    body: list[ast.stmt] = tree.body
    *classes, last = name.split(".")
    for outer in classes:
        body = next(node.body for node in body if isinstance(node, ast.ClassDef) and node.name == outer)
    return next((node for node in body if isinstance(node, ast.FunctionDef) and node.name == last), None)


def first_line(node: ast.stmt) -> int:
    """Where a statement begins; a function, with its decorators."""
    return min([node.lineno, *[one.lineno for one in getattr(node, "decorator_list", ())]])


def text_of(source: str, node: ast.stmt) -> str:
    """The lines of a statement."""
    return "\n".join(source.splitlines()[first_line(node) - 1 : node.end_lineno])


def text_at(path: Path) -> str:
    """What stands in the file of an answer. Unusable if that cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Unusable(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def changed(lab: Lab, answer: str, origin: str) -> mutants.Mutant:
    """The code with the answer in the place of the real function. Unusable if there is none in it."""
    module, _, name = lab.function.partition(":")
    short = name.rpartition(".")[2]
    try:
        tree = ast.parse(answer, origin)
    except SyntaxError as error:
        raise Unusable(f"{origin}:{error.lineno}: {error.msg}") from None
    theirs = function_in(tree, short)
    if theirs is None:
        raise Unusable(f"{origin}: has no function {short}()")
    source = mutants.path_of(module).read_text()
    ours = function_in(ast.parse(source), name)
    assert ours is not None, f"{lab.function} is not there"
    lines = source.splitlines()
    text = textwrap.indent(textwrap.dedent(text_of(answer, theirs)), " " * ours.col_offset)
    more = [text_of(answer, node) for node in tree.body if node is not theirs]
    new = [*lines[: first_line(ours) - 1], text, *lines[ours.end_lineno :], *more, ""]
    return mutants.Mutant(origin, ((module, source, "\n".join(new)),))


# ---------------------------------------------------------------------------------------- tests and runs


def tasks(lab: Lab) -> list[tuple[str, str, int]]:
    """What an answer must stand: ("test", its name, 0) and ("run", profile, seed)."""
    found = [("test", case, 0) for case in lab.cases]
    for run in lab.runs:
        profile, _, seeds = run.partition(" ")
        first, _, last = seeds.partition("-")
        found += [("run", profile, seed) for seed in range(int(first), int(last) + 1)]
    return found


def try_here(task: str) -> None:
    """Run in the child: a JSON line that says why it cannot be imported, and one for each test and run."""
    directory, names, pages, todo = json.loads(task)
    output, sys.stdout = sys.stdout, sys.stderr
    reason: str | None = None
    try:
        mutants.use(directory, names)
    except Exception as error:  # of the student's code
        reason = f"{type(error).__name__}: {error}"
    print(json.dumps(reason), file=output, flush=True)
    if reason is not None:
        return
    for kind, what, seed in todo:
        signal.alarm(CASE_S)
        attempt = try_test if kind == "test" else try_run
        reason, page = attempt(what, seed, Path(pages))
        print(json.dumps([reason, page]), file=output, flush=True)
        if reason and kind == "run":
            return


def try_test(case: str, _: int, pages: Path) -> tuple[str | None, str | None]:
    """Why the test fails, and the page of what the cluster did, if there is one in it."""
    reason = mutants.hear(case)
    if reason is None:
        return None, None
    from tests.harness.recorded import RecordedCluster

    module_name, _, name = case.partition(".")
    module = next(module for key, module in sys.modules.items() if key.endswith(f".{module_name}"))
    if not hasattr(module, "Cluster") or getattr(module, name).__code__.co_argcount:
        return reason, None
    made: list[Any] = []

    class Watched(RecordedCluster):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            made.append(self)
            super().__init__(True, **dict(zip(("nodes", "seed"), arguments, strict=False)) | settings)

    with patch.object(module, "Cluster", Watched):
        mutants.hear(case)
    title = name.removeprefix("test_").replace("_", " ")
    return reason, page_of(
        made[-1].trace, made[-1].ids, title, reason, pages / f"{name}.html"
    ) if made else None


def try_run(profile: str, seed: int, pages: Path) -> tuple[str | None, str | None]:
    """Which rule a run breaks, and its page."""
    from scripts.trace import BEFORE, LAST
    from tests.harness.recorded import RecordedSimulation
    from tests.harness.simulator import PROFILES, Violation

    way, _, name = profile.rpartition("/")
    chosen = replace(PROFILES[name], patience=mutants.PATIENCE, proposing=way or "own-logs")
    simulation = RecordedSimulation(seed, chosen, LAST + BEFORE)
    try:
        simulation.run()
        return None, None
    except Violation as violation:
        reason = str(violation).partition("\n")[0]
    except Exception as error:  # of the student's code
        reason = f"{type(error).__name__}: {error}"
    path = pages / f"{profile.replace('/', '-')}-{seed}.html"
    title = f"Seed {seed} of the simulator, profile {profile}"
    return reason, page_of(simulation.recording, simulation.nodes, title, reason, path)


def page_of(trace: Any, nodes: list[int], title: str, reason: str, path: Path) -> str:
    """Write a page; its path."""
    from paxoskv.page.draw import Drawing
    from scripts.trace import LAST, lines_of

    path.parent.mkdir(parents=True, exist_ok=True)
    drawing = Drawing(lines_of(trace, LAST, reason, title=title, nodes=nodes))
    path.write_text(drawing.html(), encoding="utf-8")
    return str(path)


def outcomes(answer: mutants.Mutant, pages: Path, todo: list[tuple[str, str, int]]) -> Iterator[list[Any]]:
    """[why it failed, page] for one test and run after the other. Unusable if it cannot be imported."""
    with mutants.written(answer) as (directory, names):
        task = json.dumps([directory, names, str(pages), todo])
        command = [sys.executable, __file__, "--try", task]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PAXOSKV_INTERPRETED": "1"}
        with (
            tempfile.TemporaryFile("w+") as complaints,
            subprocess.Popen(
                command, env=environment, text=True, stdout=subprocess.PIPE, stderr=complaints
            ) as child,
        ):
            assert child.stdout
            if reason := json.loads(child.stdout.readline() or "null"):
                raise Unusable(f"{answer.name}: {reason}")
            for line in child.stdout:
                yield json.loads(line)
            status = child.wait()
            complaints.seek(0)
            last = [f"it ended with {status}", *complaints.read().splitlines()][-1]
        if status:
            yield [f"it does not end in {CASE_S} s" if status == -signal.SIGALRM else last, None]


# -------------------------------------------------------------------------------------------- for people


def grade(lab: Lab, answer: mutants.Mutant, pages: Path) -> int:
    """Grade an answer, and tell how it goes; the points. Unusable, and nothing told, as outcomes() is."""
    todo = tasks(lab)
    results = outcomes(answer, pages, todo)
    first = next(results, None)
    print(f"Lab {lab.number}: {lab.title} ({lab.function.partition(':')[2]}, {os.path.relpath(answer.name)})")
    passed = {"test": 0, "run": 0}
    for kind, what, seed in todo:
        reason, page = first or next(results, ("it was not reached", None))
        first = None
        passed[kind] += reason is None
        name = (
            what.partition(".test_")[2].replace("_", " ")
            if kind == "test"
            else f"simulator, {what}, seed {seed}"
        )
        print(f"{'ok  ' if reason is None else 'FAIL'}  {name}", flush=True)
        if reason is not None:
            print(f"      {reason.splitlines()[0][:200]}")
        if page is not None:
            print(f"      see it: {os.path.relpath(page)}")
        if reason is not None and kind == "run":
            break
    total = {kind: sum(one == kind for one, _, _ in todo) for kind in passed}
    return sum(POINTS * passed[kind] // total[kind] for kind in passed)


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "lab",
        nargs="?",
        type=int,
        choices=[lab.number for lab in LABS],
        metavar="N",
        help="which lab, from 1 to 10 (default: list them)",
    )
    parser.add_argument(
        "--answer", type=Path, metavar="FILE", help="your function (default: labs/NN-name.py)"
    )
    parser.add_argument(
        "--pages", type=program.new_file, metavar="DIR", help="of failures (default: build/labs)"
    )
    parser.add_argument("--try", dest="task", help=argparse.SUPPRESS)
    found = parser.parse_args(arguments)
    if found.task:
        try_here(found.task)
        return 0
    if found.lab is None:
        if found.answer or found.pages:
            parser.error("--answer and --pages: of which lab? its number is missing, from 1 to 10")
        for lab in LABS:
            print(f"{lab.number:2}  {lab.title:35}  {lab.text.relative_to(ROOT)}")
        return 0
    lab = LABS[found.lab - 1]
    path = found.answer or lab.skeleton
    try:
        answer = changed(lab, text_at(path), str(path))
        pages = (found.pages or PAGES) / f"{lab.number:02}"
        pages.mkdir(parents=True, exist_ok=True)  # now, because the child can tell nobody that it cannot
        points = grade(lab, answer, pages)
    except Unusable as unusable:
        print(f"{program.name()}: {unusable}", file=sys.stderr)
        return program.USAGE
    print(f"{points} of {2 * POINTS} points")
    return int(points < 2 * POINTS)


if __name__ == "__main__":
    sys.exit(main())
