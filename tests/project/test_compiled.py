"""The compiled modules (scripts/setup.sh --fast) do what their text says, and only as long as it says so."""

import fcntl
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from paxoskv import compiled
from tools import compile as compile_it

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


class Machine:
    """A copy of the sources, whose setup.sh compiles as soon as it is let."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        for name in compiled.SOURCES:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
        monkeypatch.setattr(compiled, "PROJECT", root)
        monkeypatch.setattr(compile_it, "PROJECT", root)
        monkeypatch.setattr(sys, "prefix", str(root / ".venv"))
        monkeypatch.delenv("PAXOSKV_INTERPRETED", raising=False)
        (root / "scripts").mkdir()
        self.gate = root / "gate"
        os.mkfifo(self.gate)
        self.setup('mkdir -p "$1"', compiled.directory())

    def setup(self, does: str, target: Path) -> None:
        script = self.root / "scripts" / "setup.sh"
        script.write_text(f'#!/bin/sh\nset -- {target} "$@"\necho "asked for $2"\ncat {self.gate}\n{does}\n')
        script.chmod(0o755)

    def let(self) -> None:
        """Let setup.sh go on, and wait for its end, which gives the lock back."""
        self.gate.write_text("go on")
        with (self.root / "build" / "compiling").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_the_first_start_compiles_in_the_background_for_the_next_one(machine: Machine) -> None:
    assert compile_it.soon().startswith("interpreted; from now on they are compiled in the background")
    assert "they are being compiled" in compile_it.soon(), "once is enough"
    machine.let()
    assert compile_it.soon() == "compiled"
    log = (machine.root / "build" / "compile.log").read_text().splitlines()
    assert log[1] == "asked for --fast"
    text = machine.root / compiled.SOURCES[0]
    text.write_text(text.read_text() + "\n")
    assert "have changed since they were compiled" in compile_it.soon(), "who edits decides for himself"


def test_what_cannot_be_compiled_is_not_tried_again_and_again(machine: Machine) -> None:
    machine.setup("exit 1", compiled.directory())
    assert "in the background" in compile_it.soon()
    machine.let()
    assert f"compiling has failed: {machine.root / 'build' / 'compile.log'} says why" in compile_it.soon()


def test_who_cannot_or_will_not_compile_runs_the_text(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(machine.root))
        assert compile_it.soon().startswith("interpreted: the C compiler ")
    with monkeypatch.context() as patch:
        patch.setenv("PAXOSKV_INTERPRETED", "1")
        assert compile_it.soon() == "interpreted, as PAXOSKV_INTERPRETED asks for"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "prefix", "/usr")
        assert compile_it.soon().startswith("interpreted: this Python is not that of .venv")
    assert not (machine.root / "build" / "compile.log").exists()


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
