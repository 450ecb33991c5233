"""scripts/trace.py: each scenario in each form, and the run that broke a rule."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import simulate, trace
from tests.harness.simulator import PROFILES, Simulation
from tests.harness.stories import STORIES

SCRIPT = Path(trace.__file__)


def test_a_scenario_is_told_in_words_and_drawn_in_all_forms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {form: tmp_path / f"put.{form}" for form in ("html", "svg", "mermaid", "json")}
    options = [text for form, path in files.items() for text in (f"--{form}", str(path))]
    assert trace.main(["put", "--text", *options]) == 0
    assert (
        "CHOSEN: put color=green. Node 2 has counted the votes of nodes 2, 3 and 4" in capsys.readouterr().out
    )
    header, *events = map(json.loads, files["json"].read_text().splitlines())
    assert header["format"] == "paxoskv-trace" and header["nodes"] == [1, 2, 3, 4, 5]
    assert header["command"] == "scripts/trace.py put" and len(events) > 50
    assert files["mermaid"].read_text().startswith("sequenceDiagram")
    assert files["svg"].read_text().startswith("<svg")
    assert '"put color=green"' in files["html"].read_text()


def test_all_scenarios_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert trace.main(["--list"]) == 0
    told = capsys.readouterr().out
    assert all(f"{name}: {story.title}\n" in told and story.text in told for name, story in STORIES.items())


def test_a_scenario_is_played_in_another_way_to_propose(capsys: pytest.CaptureFixture[str]) -> None:
    assert trace.main(["put", "--proposing", "classic"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("A client puts a value (classic)\n")
    assert "CHOSEN: put color=green." in told and "Node 2 gives ballot 1.2 up" in told
    assert trace.main(["forwarded"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("A node hands a command to the leader\n")
    assert "Node 4 sends to node 1: Forward put color=green: lead it for me" in told


def test_a_run_that_breaks_a_rule_prints_the_command_of_its_page_which_shows_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Simulation, "_judge", lambda simulation: simulation.fail("a rule of this test"))
    result = simulate.run_one(7, "idle", 3, {"seconds": 0.5})
    assert result.failure is not None
    _, _, command = simulate.replay(result, 3, {"seconds": 0.5}).partition("see it: scripts/trace.py ")
    page = tmp_path / "page.html"
    arguments = command.split()
    assert arguments[-2:] == ["--html", "seed-7.html"]
    assert trace.main([*arguments[:-1], str(page), "--text"]) == 1
    told = capsys.readouterr()
    assert told.out.rstrip().endswith("A RULE IS BROKEN: a rule of this test.")
    assert "seed 7, profile idle" in told.err
    assert "a rule of this test" in page.read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["--seed", "x"],
        ["put", "--seed", "1"],
        ["put", "--last", "0"],
        ["put", "--nodes", "3"],
        ["--list", "--svg", "put.svg"],
    ],
)
def test_what_cannot_be_shown_is_refused_in_a_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        trace.main(arguments)
    assert ended.value.code == 2 and "Traceback" not in capsys.readouterr().err


def test_a_dash_stands_for_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for form, begin in (
        ("mermaid", "sequenceDiagram"),
        ("svg", "<svg"),
        ("json", "{"),
        ("html", "<!DOCTYPE"),
    ):
        assert trace.main(["put", f"--{form}", "-"]) == 0
        told = capsys.readouterr()
        assert told.out.startswith(begin) and told.err == ""
    assert not list(tmp_path.iterdir())


def test_what_is_written_is_told_and_a_long_run_says_that_its_beginning_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "seed.jsonl"
    assert trace.main(["--seed", "1", "--profile", "idle", "--last", "30", "--json", str(page)]) == 0
    assert capsys.readouterr().err == f"{page} is written\n"
    header, *events = map(json.loads, page.read_text().splitlines())
    assert header["before"] == len(events) - 30 > 0


def test_the_picture_in_the_documents_is_what_the_command_draws(tmp_path: Path) -> None:
    """Draw it again: scripts/trace.py put --svg docs/charts/put.svg."""
    drawn = tmp_path / "put.svg"
    assert trace.main(["put", "--svg", str(drawn)]) == 0
    assert drawn.read_text() == (SCRIPT.parent.parent / "docs" / "charts" / "put.svg").read_text()


def test_the_program_starts_as_it_is() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--list"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "put: " in done.stdout
    assert len(PROFILES) > 20
