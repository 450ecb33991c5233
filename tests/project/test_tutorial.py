"""The tutorial: its commands are run, in order, and print what it shows."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.harness.processes import DEADLINE_S, PROJECT, cluster_file
from tests.project.test_docs import FENCE, copied

TUTORIAL = PROJECT / "docs" / "tutorial.md"
ANYTHING = "..."


def steps() -> list[tuple[str, str | None]]:
    """Each block of commands, and what it prints; None if that is not shown."""
    found: list[tuple[str, str | None]] = []
    end = 0
    text = TUTORIAL.read_text()
    for fence in FENCE.finditer(text):
        language, body = fence.groups()
        if language == "sh":
            found.append((body, None))
        else:
            assert language == "text" and not text[end : fence.start()].strip(), "output follows its commands"
            found[-1] = found[-1][0], body
        end = fence.end()
    return found


def pattern(shown: str) -> str:
    """As a regular expression: a line with nothing but dots is any lines, dots in a line are any text."""
    lines = [
        r"(?:.*\n)*?"
        if line == ANYTHING
        else ".*".join(map(re.escape, line.rstrip().split(ANYTHING))) + r"[ ]*\n"
        for line in shown.splitlines()
    ]
    return "".join(lines)


@pytest.mark.slow
def test_the_commands_of_the_tutorial_print_what_it_shows(tmp_path: Path) -> None:
    project = copied(tmp_path)
    cluster_file(project, name="demo")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON"}

    def run(command: str) -> str:
        with (tmp_path / "output").open("w+") as output:  # a file: what runs on would keep a pipe open
            subprocess.run(
                ["bash", "-c", command], cwd=project, env=environment, stdout=output,
                stderr=subprocess.STDOUT, timeout=4 * DEADLINE_S,
            )  # fmt: skip
            output.seek(0)
            return output.read()

    try:
        for command, shown in steps():
            printed = run(command)
            if shown is not None:
                assert re.fullmatch(pattern(shown), printed), f"{command}\n{printed}"
    finally:
        run("scripts/cluster.sh stop")


def test_dots_stand_for_what_differs_and_nothing_else() -> None:
    assert re.fullmatch(pattern("a ... c\n...\nd\n"), "a b b c\nx\ny\nd\n")
    assert re.fullmatch(pattern("...\nd\n"), "d\n")
    assert not re.fullmatch(pattern("a ... c\nd\n"), "a b c\nx\nd\n")
    assert not re.fullmatch(pattern("a.c\n"), "abc\n")


def test_what_a_beginner_asks_is_answered() -> None:
    text = TUTORIAL.read_text()
    for question in (
        "When is a value chosen?",
        "What may a new leader propose?",
        "Why do two proposers block each other?",
        "Why a majority?",
        "Why the promise?",
    ):
        assert f"**{question}**" in text
    assert len([shown for _, shown in steps() if shown]) >= 12
