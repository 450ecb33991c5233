"""The compiled modules (scripts/setup.sh --fast) do what their text says, and only as long as it says so."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from paxoskv import compiled

ROOT = Path(__file__).resolve().parents[2]
built = pytest.mark.skipif(
    not compiled.directory().exists(), reason="nothing is compiled (scripts/setup.sh --fast does it)"
)


def test_compiled_modules_belong_to_one_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in compiled.SOURCES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(compiled, "PROJECT", tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for package in map(importlib.import_module, compiled.PACKAGES):
        monkeypatch.setattr(package, "__path__", list(package.__path__))
    monkeypatch.delenv("PAXOSKV_INTERPRETED", raising=False)
    assert not compiled.use()
    before = compiled.directory()
    before.mkdir(parents=True)
    assert compiled.use()
    assert importlib.import_module("paxoskv.wire").__path__[0] == str(before / "paxoskv" / "wire")
    monkeypatch.setenv("PAXOSKV_INTERPRETED", "1")
    assert not compiled.use()
    monkeypatch.delenv("PAXOSKV_INTERPRETED")
    for name in compiled.SOURCES:
        text = tmp_path / name
        text.write_text(text.read_text() + "\n")
        assert not compiled.use(), f"{name} has changed"


def both(code: str) -> list[list[str]]:
    """What the code prints with interpreted modules and with compiled ones: its first word, and the rest."""
    answers = []
    for interpreted in ("1", ""):
        environment = {
            **os.environ,
            "PAXOSKV_INTERPRETED": interpreted,
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300
        )
        assert done.returncode == 0, done.stderr
        answers.append(done.stdout.split(" ", 1))
    return answers


@built
@pytest.mark.slow
def test_the_compiled_core_does_the_same_event_for_event() -> None:
    # (The simulator derives classes from those of store and journal, which only the interpreted ones allow.)
    code = (
        "from paxoskv import compiled; compiled.use(('paxoskv', 'paxoskv.wire', 'paxoskv.protocol'))\n"
        "from paxoskv import multipaxos; from tests.harness.simulator import PROFILES, Simulation\n"
        "print(multipaxos.__file__.endswith('.py'), "
        "[Simulation(2, profile).run().trace_hash for profile in PROFILES.values()])"
    )
    answers = both(code)
    assert [answer[0] for answer in answers] == ["True", "False"]
    assert answers[0][1] == answers[1][1]


@built
def test_compiled_calls_and_answers_are_those_of_the_text() -> None:
    code = (
        "from paxoskv import compiled; compiled.use()\n"
        "from paxoskv.wire import methods\n"
        "from paxoskv.wire.codec import Malformed, NotDone\n"
        "from paxoskv.wire.structs import Accepted, Fact, Vote\n"
        "def answer(name, make):\n"
        "    method = methods.METHODS[name]\n"
        "    frame = make(method)[4:]\n"
        "    kind, _, _, start = methods.header(frame)\n"
        "    try:\n"
        "        return frame, method.answer(kind, frame, start)\n"
        "    except Exception as error:\n"
        "        return frame, type(error).__name__, str(error)\n"
        "vote = Accepted(1, 2, 3, Vote.ACCEPTED, 4, Fact(1, 0, 0, 0))\n"
        "print(methods.__file__.endswith('.py'), answer(b'accept', lambda m: m.fail(3, Malformed('bad'))),\n"
        "      answer(b'accept', lambda m: m.reply(3, vote)),\n"
        "      answer(b'put', lambda m: m.fail(3, NotDone('busy', False))))\n"
    )
    answers = both(code)
    assert [answer[0] for answer in answers] == ["True", "False"]
    assert answers[0][1] == answers[1][1]
    assert "TApplicationException" in answers[0][1]
