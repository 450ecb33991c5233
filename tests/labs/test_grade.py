"""The labs: the code itself has all points, a wrong answer fewer, and a failure has its page."""

import ast
import re
from pathlib import Path

import pytest

from labs import grade
from labs.exercises import LABS, Lab
from tests.harness import mutants

QUICK = (1, 4, 10)  # the others take longer
KNOWN = {mutant.name: mutant for mutant in mutants.everything()}


def numbers() -> list[object]:
    return [lab if lab.number in QUICK else pytest.param(lab, marks=pytest.mark.slow) for lab in LABS]


def answer(lab: Lab, source: str) -> str:
    """What a student would write who writes this source's function."""
    _, _, name = lab.function.partition(":")
    function = grade.function_in(ast.parse(source), name)
    assert function is not None
    skeleton = lab.skeleton.read_text()
    imports = [node for node in ast.parse(skeleton).body if isinstance(node, ast.Import | ast.ImportFrom)]
    lines = [grade.text_of(skeleton, node) for node in imports]
    body = grade.text_of(source, function).splitlines()
    return "\n".join([*lines, *[line[function.col_offset :] for line in body]]) + "\n"


def graded(lab: Lab, text: str, tmp_path: Path) -> int:
    return grade.grade(lab, grade.changed(lab, text, "answer.py"), tmp_path)


def source_of(lab: Lab) -> str:
    return mutants.path_of(lab.function.partition(":")[0]).read_text()


@pytest.mark.parametrize("lab", numbers(), ids=lambda lab: lab.name)
def test_the_code_itself_has_all_points(lab: Lab, tmp_path: Path) -> None:
    assert graded(lab, answer(lab, source_of(lab)), tmp_path) == 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lab", "mutant"),
    [(lab, name) for lab in LABS for name in lab.mutants],
    ids=lambda value: str(value)[:40],
)
def test_a_mutant_has_fewer(lab: Lab, mutant: str, tmp_path: Path) -> None:
    changed = mutants.source_of(KNOWN[mutant])
    text = answer(lab, changed[lab.function.partition(":")[0]])
    assert text != answer(lab, source_of(lab)), "the mutant is elsewhere"
    assert graded(lab, text, tmp_path) < 100


@pytest.mark.parametrize("lab", numbers(), ids=lambda lab: lab.name)
def test_a_skeleton_has_fewer_and_its_failure_has_a_page(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert grade.main([str(lab.number), "--pages", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert f"Lab {lab.number}: {lab.title}" in told and " of 100 points\n" in told
    assert "FAIL" in told
    pages = [line.partition("see it: ")[2] for line in told.splitlines() if "see it: " in line]
    for page in pages:
        assert "<svg" in Path(page).read_text() or "createElementNS" in Path(page).read_text()
    assert pages or lab.number == 4, "this skeleton breaks no rule in so few runs, but a test"


def test_all_labs_have_a_text_a_skeleton_and_a_place_in_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert [lab.number for lab in LABS] == list(range(1, 11))
    assert grade.main([]) == 0
    listed = capsys.readouterr().out.splitlines()
    for lab, line in zip(LABS, listed, strict=True):
        text = lab.text.read_text()
        assert lab.title in line and lab.text.name in line
        assert text.startswith(f"# Lab {lab.number}: {lab.title}\n")
        short = lab.function.rpartition(".")[2].rpartition(":")[2]
        assert f"{short}(" in text and f"`labs/grade.py {lab.number}`" in text
        assert all(name in KNOWN for name in lab.mutants)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "answer.py: No such file or directory"),
        ("def other():\n    pass\n", "has no function quorum_length()"),
        ("def quorum_length(:\n", "answer.py:1: "),
        (
            "import nosuch\ndef quorum_length(a, b):\n    return 0\n",
            "answer.py: ModuleNotFoundError: No module",
        ),
    ],
)
def test_what_cannot_be_graded_is_told_in_a_line(
    text: str | None, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "answer.py"
    if text is not None:
        path.write_text(text)
    assert grade.main(["1", "--answer", str(path)]) == 2
    told = capsys.readouterr()
    assert complaint in told.err and told.err.count("\n") == 1 and not told.out


@pytest.mark.parametrize("words", [["--answer", "mine.py"], ["--pages", "pages"], ["1", "--pages", "-"]])
def test_what_would_be_ignored_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        grade.main(words)
    assert ended.value.code == 2
    assert re.search("of which lab\\?|- would be stdout", capsys.readouterr().err)


def test_pages_that_cannot_be_written_are_no_fault_of_the_answer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(FileNotFoundError):
        grade.main(["1", "--pages", "/proc/nowhere"])
    assert "FAIL" not in capsys.readouterr().out


def test_an_answer_that_ends_the_process_or_means_nothing_has_no_points(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = "def quorum_length(lengths, quorum):\n"
    for body, reason in (("    import os; os._exit(3)\n", "it ended with 3"), ("    nothing\n", "NameError")):
        assert graded(LABS[0], begin + body, tmp_path) == 0
        assert reason in capsys.readouterr().out
