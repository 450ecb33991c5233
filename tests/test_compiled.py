"""The compiled modules (scripts/setup.sh --fast) do what their text says, and only as long as it says so."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import compiled

ROOT = Path(__file__).resolve().parent.parent
built = pytest.mark.skipif(
    not compiled.directory().exists(), reason="nothing is compiled (scripts/setup.sh --fast does it)"
)


def test_compiled_modules_belong_to_one_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in compiled.SOURCES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(compiled, "PROJECT", tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("MULTIPAXOS_PLAIN", raising=False)
    assert not compiled.use()
    before = compiled.directory()
    before.mkdir(parents=True)
    assert compiled.use()
    assert sys.path[0] == str(before)
    monkeypatch.setenv("MULTIPAXOS_PLAIN", "1")
    assert not compiled.use()
    monkeypatch.delenv("MULTIPAXOS_PLAIN")
    for name in compiled.SOURCES:
        text = tmp_path / name
        text.write_text(text.read_text() + "\n")
        assert not compiled.use(), f"{name} has changed"


@built
def test_a_project_that_was_moved_finds_its_generated_code_from_the_compiled() -> None:
    link = compiled.directory() / "gen-py"
    assert not link.readlink().is_absolute()
    assert link.resolve() == ROOT / "gen-py"


@built
@pytest.mark.slow
def test_the_compiled_core_does_the_same_event_for_event() -> None:
    # (The simulator derives classes from those of store and journal, which only the plain ones allow.)
    code = (
        "import sys; sys.path[:0] = sys.argv[1:2]; import multipaxos; sys.path[:0] = sys.argv[2:]; "
        "from simulator import PROFILES, Simulation; print(multipaxos.__file__.endswith('.py'), "
        "[Simulation(2, profile).run().trace_hash for profile in PROFILES.values()])"
    )
    answers = []
    for first in (ROOT, compiled.directory()):
        command = [sys.executable, "-c", code, str(first), str(ROOT), str(ROOT / "tests")]
        done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=300)
        assert done.returncode == 0, done.stderr
        answers.append(done.stdout.split(" ", 1))
    assert [answer[0] for answer in answers] == ["True", "False"]
    assert answers[0][1] == answers[1][1]


@built
def test_compiled_calls_and_answers_are_those_of_the_text() -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import rpc\n"
        "from interface import Fact, Malformed, NotDone, Vote, Accepted\n"
        "def answer(name, make):\n"
        "    method = rpc.METHODS[name]\n"
        "    frame = make(method)[4:]\n"
        "    kind, _, _, start = rpc.header(frame)\n"
        "    try:\n"
        "        return frame, method.answer(kind, frame, start)\n"
        "    except Exception as error:\n"
        "        return frame, type(error).__name__, str(error)\n"
        "print(rpc.__file__.endswith('.py'), answer(b'accept', lambda m: m.fail(3, Malformed('bad'))),\n"
        "      answer(b'accept', lambda m: m.reply(3, Accepted(1, 2, 3, Vote.TAKEN, 4, Fact(1, 0, 0, 0)))),\n"
        "      answer(b'put', lambda m: m.fail(3, NotDone('busy', False))))\n"
    )
    answers = []
    for path in (ROOT, compiled.directory()):
        command = [sys.executable, "-c", code, str(path), str(ROOT)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        answers.append(done.stdout.split(" ", 1))
    assert [answer[0] for answer in answers] == ["True", "False"]
    assert answers[0][1] == answers[1][1]
    assert "TApplicationException" in answers[0][1]
