"""The measurements: what is made of the samples, and the whole program with next to nothing to do."""

import csv
import json
import re
import signal
import subprocess
import sys
from contextlib import suppress
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest

from bench import report, run, systems
from bench.systems import BenchError, Load, System
from bench.tables import Spread, markdown, shown, spread
from paxoskv.client.rows import parse
from tests.harness.network import CLIENT, HOSTS, Network, missing
from tests.harness.processes import PROJECT, die_with_parent, eventually, finish

BENCH = PROJECT / "bench" / "run.py"
MANIFEST = {"date": "2026-01-01", "revision": "0123456789abcdef", "dirty": False, "cores": 2,
            "processor": "<made up>", "nodes": "compiled", "python": "3.11",
            "settings": {"sizes": [20]}}  # fmt: skip


def sample(
    part: str, system: str, x: float, repeat: int, throughput: float, problem: str = ""
) -> dict[str, Any]:
    """A made-up sample; its times follow from its throughput."""
    if problem:
        return {"part": part, "system": system, "x": x, "repeat": repeat, "problem": problem}
    times = dict.fromkeys(("mean_s", "stddev_s", "p50_s", "p95_s", "p99_s", "max_s"), 2 / throughput)
    cost = {"fsyncs": 2.0, "cpu_us": 300.0, "of_another_version": 1.0}
    return {"part": part, "system": system, "x": x, "repeat": repeat, "problem": "", "throughput": throughput,
            **times, "quantiles": [[0.5, 1 / throughput], [1.0, 2 / throughput]], "cost": cost}  # fmt: skip


def experiment(faster: float = 1.0) -> list[dict[str, Any]]:
    """All parts, three repeats."""
    samples = []
    for repeat in range(3):
        samples += [sample("original", "own-logs", x, repeat, faster * 400) for x in (150, 450)]
        for part, xs in (("tables", (150, 450)), ("scaling", (1, 2, 64)), ("mix", (0.0, 0.5, 1.0)),
                         ("batches", (1, 4)), ("failures", (0.0, 0.05))):  # fmt: skip
            for x in xs:
                for system, speed in (("own-logs", 800), ("paxos", 1000), ("single", 2000), ("etcd", 700),
                                      ("floor", 4000)):  # fmt: skip
                    samples.append(sample(part, system, x, repeat, faster * (speed + 10 * repeat)))
        samples.append({"part": "fault", "system": "paxos", "x": 0, "repeat": repeat, "problem": "",
                        "rates": [100.0, 0.0, 90.0], "bin_s": 0.1, "killed_s": 0.1, "returned_s": 0.2,
                        "recovered_s": 0.1, "gap_s": 0.1})  # fmt: skip
    return samples


def results(directory: Path, samples: list[dict[str, Any]]) -> Path:
    """A directory with these results, as bench.sh leaves it before the report is made."""
    directory.mkdir()
    (directory / "results.json").write_text(json.dumps(samples))
    (directory / "manifest.json").write_text(json.dumps(MANIFEST))
    return directory


# ---------------------------------------------------------------------------------------------------- numbers


def test_a_spread_is_the_median_with_the_lowest_and_the_highest() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    assert spread([1.0, 4.0]) == Spread(2.5, 1.0, 4.0, 2)


def test_a_failed_run_is_counted_and_is_part_of_no_number() -> None:
    samples = [sample("tables", "paxos", 20, i, rate) for i, rate in enumerate((100, 110, 120))]
    samples.append({**sample("tables", "paxos", 20, 3, 9999), "problem": "1 failed"})
    cell = report.point(samples, "tables", "paxos", 20, "throughput")
    assert cell == Spread(110, 100, 120, 3, 1)
    assert shown(cell) == "110 (100-120) [1 failed]"
    assert report.distribution(samples)[-1] == (1.0, 2 / 110)


def test_a_point_of_which_all_runs_failed_says_so_and_one_not_measured_is_empty() -> None:
    samples = [sample("tables", "paxos", 20, 0, 0, "did not start")]
    assert report.point(samples, "tables", "paxos", 20, "throughput") == "failed"
    assert report.point(samples, "tables", "single", 20, "throughput") == ""


def test_ratios_are_taken_repeat_by_repeat_and_only_of_repeats_that_both_have() -> None:
    samples = [sample("tables", "paxos", 20, i, rate) for i, rate in enumerate((100, 10, 60))]
    samples += [sample("tables", "single", 20, i, rate) for i, rate in enumerate((200, 20))]
    samples.append(sample("tables", "single", 20, 2, 0, "1 failed"))
    cell = report.ratio(samples, ("tables", "paxos", 20), ("tables", "single", 20), "throughput")
    assert cell == Spread(0.5, 0.5, 0.5, 2)


def test_a_sample_with_fewer_answers_than_operations_has_a_problem() -> None:
    assert systems.measured(1.0, [0.1, 0.2], 2)["problem"] == ""
    assert systems.measured(1.0, [0.1], 2)["problem"] == "1 of 2 operations failed"
    assert systems.measured(1.0, [], 2, "refused")["problem"] == "refused"


def test_quantiles_are_by_nearest_rank_and_end_with_the_maximum() -> None:
    found = dict(systems.quantiles([float(i) for i in range(100, 0, -1)]))
    assert (found[0.01], found[0.5], found[0.99], found[1.0]) == (1.0, 50.0, 99.0, 100.0)


def test_rates_count_what_ended_in_each_tenth_of_a_second() -> None:
    assert systems.rates([-0.1, 0.05, 0.06, 0.25, 0.35, 99.0], 0.4) == [20.0, 0.0, 10.0, 10.0]


def test_recovery_is_when_half_a_second_runs_at_nine_tenths_of_before() -> None:
    series = [100.0] * 10 + [0.0] * 5 + [50.0] * 2 + [95.0] * 10
    assert systems.recovery(series, 1.0, 2.7) == pytest.approx(0.7)
    assert systems.recovery([100.0] * 20, 1.0, 2.0) == 0.0
    assert systems.recovery([100.0] * 10 + [50.0] * 10, 1.0, 2.0) is None


@pytest.mark.parametrize("gets", [0.0, 0.5, 1.0])
def test_a_mixed_file_has_its_share_of_gets_and_no_malformed_row(gets: float) -> None:
    lines = (",".join(row) for row in run.mixed(200, gets, seed=1))
    rows, malformed = parse("\n".join(lines).encode())
    assert (malformed, len(rows)) == ([], 200)
    assert sum(row.verb == "GET" for row in rows) == 200 * gets


# ----------------------------------------------------------------------------------------- tables and reports


ORIGINAL_MEANS = """
| 150 | 0.0195 | 0.0022 |
| 450 | 0.0254 | 0.0021 |
| 1500 | 0.0217 | 0.0022 |
| 15000 | 0.0302 | 0.0022 |
"""
ORIGINAL_DEVIATIONS = """
| 150 | 0.01339453 | 0.00111 |
| 450 | 0.01492 | 0.00113 |
| 1500 | 0.019149511 | 0.00110 |
| 15000 | 0.014405944 | 0.00110 |
"""
ORIGINAL_THROUGHPUTS = """
| 150 | 51.40310118 | 462.8916 |
| 450 | 39.41675866 | 472.0603 |
| 1500 | 46.07453089 | 451.8850 |
| 15000 | 33.15368483 | 455.6453 |
"""


def test_the_report_has_the_24_figures_of_the_original_with_all_their_digits(tmp_path: Path) -> None:
    samples = [sample("original", "own-logs", x, 0, 100) for x in (150, 450, 1500, 15000)]
    directory = results(tmp_path / "r", samples)
    report.write(directory)
    text, figures = (directory / "tables.md").read_text(), 0
    for name, lines in (("mean", ORIGINAL_MEANS), ("stddev", ORIGINAL_DEVIATIONS),
                        ("throughput", ORIGINAL_THROUGHPUTS)):  # fmt: skip
        for line in lines.split("\n")[1:-1]:
            size, paxos, rpc = line.strip("| ").split(" | ")
            with (directory / f"original-{name}.csv").open() as file:
                row = next(row for row in csv.DictReader(file) if row["DataLoad"] == size)
            assert (row["original's Paxos"], row["original's RPC"]) == (paxos, rpc)
            assert f" | {paxos} | {rpc} | " in text
            figures += 2
    assert figures == 24


def test_the_first_tables_have_the_originals_layout_and_ratio_beside_ratio() -> None:
    mean, stddev, throughput = report.all_tables(experiment())[:3]
    assert [row[:2] for row in stddev.rows[:3]] == [
        ["150", "fail at random"], ["150", "healthy"], ["450", "fail at random"]
    ]  # fmt: skip
    failing, healthy = (dict(zip(mean.head, map(shown, row), strict=True)) for row in mean.rows[:2])
    assert failing["own-logs"] == "0.00500 (0.00500-0.00500)"
    assert healthy["own-logs"] == "0.00247 (0.00244-0.00250)"
    assert failing["original's Paxos : RPC"] == "8.86" and healthy["original's Paxos : RPC"] == ""
    assert failing["own-logs : RPC"] == "5.03 (5.00-5.05)"
    row = dict(zip(throughput.head, map(shown, throughput.rows[1]), strict=True))
    assert row["own-logs"] == "405 (400-410)"  # of one of two processes
    assert row["own-logs, all processes"] == "810 (800-820)"


def test_a_listing_has_a_row_for_each_system_with_its_ratio_and_its_share_of_the_floor() -> None:
    table = next(table for table in report.all_tables(experiment()) if table.name == "scaling")
    text = markdown(table)
    assert "| 1 | RPC (single server) | 2,010 (2,000-2,020) |" in text
    row = dict(zip(table.head, map(shown, table.rows[1]), strict=True))
    assert (row["outstanding"], row["system"]) == ("1", "Paxos, own-logs, linearizable reads")
    assert row["share of the floor"] == "0.252 (0.250-0.254)"
    assert len(table.rows) == 3 * 5


def test_a_tables_csv_has_numbers_in_columns_of_their_own(tmp_path: Path) -> None:
    table = next(table for table in report.all_tables(experiment()) if table.name == "scaling")
    report.write_csv(table, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["system"] == report.NAMES["paxos"])
    found = [row["operations per second" + suffix] for suffix in ("", " low", " high", " runs", " failed")]
    assert [float(text) for text in found] == [1010, 1000, 1020, 3, 0]


def test_a_report_holds_all_tables_and_charts_and_needs_no_other_file(tmp_path: Path) -> None:
    samples = [*experiment(), sample("tables", "paxos", 150, 3, 0, "2 failed, <1> unknown")]
    directory = results(tmp_path / "r", samples)
    assert run.main(["report", str(directory)]) == 0
    page = (directory / "report.html").read_text()
    charts = {"mean", "stddev", "throughput", "cdf", "scaling", "fault", "failures"}
    assert {path.stem for path in directory.glob("*.png")} == charts
    assert {path.stem for path in directory.glob("*.svg")} == charts
    assert page.count('src="data:image/png;base64,') == len(charts)
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "color-scheme: light dark" in page
    assert "&lt;made up&gt;" in page and "2 failed, &lt;1&gt; unknown" in page
    for title in ("Average throughput", "The original's operations", "Scaling", "at 32 outstanding",
                  "batches of 100", "Cost per operation", "A node is killed", "Acceptors fail"):  # fmt: skip
        assert title in page and title in (directory / "tables.md").read_text(), title


def test_a_report_can_be_made_of_whatever_was_measured(tmp_path: Path) -> None:
    only = [sample("scaling", "paxos", 1, 0, 100), sample("tables", "paxos", 20, 0, 0, "did not start")]
    for number, samples in enumerate((only, only[:1], only[1:], [])):
        directory = results(tmp_path / str(number), samples)
        report.write(directory)
        assert "did not start" in (directory / "report.html").read_text() or samples in (only[:1], [])


# ------------------------------------------------------------------------------------------------- comparison


def test_the_documents_get_tables_and_charts_between_their_marks_and_keep_the_rest(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    readme, performance = documents = (tmp_path / "README.md", tmp_path / "docs" / "performance.md")
    for document in documents:
        document.write_text(f"before\n{report.BEGIN}\nold figures\n{report.END}\nafter\n")
    for faster in (1.0, 2.0):
        directory = results(tmp_path / f"{faster}", experiment(faster))
        report.into_documents(directory, tmp_path)
        for document, charts, title in (
            (readme, {report.CHART_IN_README}, "450 operations from two"),
            (performance, set(report.CHARTS_IN_PERFORMANCE), "### Average throughput"),
        ):
            text = document.read_text()
            assert text.startswith("before\n")
            assert text.endswith("\nafter\n")
            assert "old figures" not in text
            assert text.count(title) == 1
            assert f"{1010 * faster:,.0f}" in text
            shown = re.findall(r"\]\(([a-z/]+\.svg)\)", text)
            assert {Path(chart).stem for chart in shown} == charts
            assert all((document.parent / chart).stat().st_size > 1000 for chart in shown)
    assert "| Paxos, own-logs, linearizable reads | 2,020 (" in readme.read_text()
    before = readme.read_text()
    performance.write_text("no marks")
    with pytest.raises(ValueError, match=r"performance.md: no <!-- measured -->"):
        report.into_documents(results(tmp_path / "last", experiment()), tmp_path)
    assert readme.read_text() == before


def test_the_readme_names_the_command_that_measures_the_same_again() -> None:
    settings = {"sizes": [150, 450], "repeat": 3, "peers": [], "parts": ["tables"], "fault_seconds": 12.0}
    said = report.command(settings)
    assert said == "scripts/bench.sh --readme --sizes 150,450 --repeat 3 --parts tables --fault-seconds 12"
    run.parser().parse_args(said.split()[1:])


def test_a_difference_counts_if_the_ranges_of_the_runs_are_apart() -> None:
    slow, fast = Spread(100, 90, 110, 3), Spread(130, 111, 140, 3)
    assert report.verdict(slow, fast) == report.verdict(fast, slow) == "yes"
    assert report.verdict(slow, Spread(130, 110, 140, 3)) == "no"
    assert report.verdict(slow, Spread(500, 500, 500, 1)) == "one run"
    assert report.verdict(slow, "failed") == "-"


def test_compare_prints_both_results_with_ratio_and_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = results(tmp_path / "a", experiment())
    b = results(tmp_path / "b", [*experiment(2.0), sample("tables", "paxos", 9, 0, 1)])
    assert run.main(["compare", str(a), str(b)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "0123456789ab" in lines[0] and "0123456789ab" in lines[1]
    line = next(line for line in lines if re.match(r"tables +paxos +150 +ops/s", line))
    assert line.split()[3:] == ["ops/s", "1,010", "(1,000-1,020)", "2,020", "(2,000-2,040)", "2.00", "yes"]
    assert lines[-1] == "left out: 0 points that only A has, 1 of B"


def test_compare_tells_of_a_result_that_is_not_there_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# ------------------------------------------------------------------------------------------------------- plan


class Fake(System):
    """A system that needs no process; what it does is told to `told`."""

    told: list[str] = []
    breaks = False

    def start(self) -> None:
        self.told.append(f"start {self.directory.exists()}")

    def stop(self) -> None:
        self.told.append("stop")
        super().stop()

    def run(self, work: Load) -> dict[str, Any]:
        self.told.append(f"run {work.rows}")
        if self.breaks and work.rows == 2:
            raise BenchError("it broke")
        return {"throughput": 1.0, "problem": ""}


def measured(monkeypatch: pytest.MonkeyPatch, directory: Path, breaks: bool) -> list[dict[str, Any]]:
    """Two repeats of two systems, on each of which 1 row and 2 rows are run."""
    monkeypatch.setattr(run, "SETTLE_S", 0.0)
    monkeypatch.setattr(Fake, "told", [])
    monkeypatch.setattr(Fake, "breaks", breaks)
    tasks = [run.Task(rows, methodcaller("run", Load(Path(), rows))) for rows in (1, 2)]
    group = [run.Turn("tables", name, Fake, tasks) for name in ("paxos", "single")]
    return run.measure([group], 2, directory, Load(Path(), 0), lambda _: None)


def test_the_systems_take_turns_and_each_is_started_warmed_up_and_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    samples = measured(monkeypatch, tmp_path, breaks=False)
    turns = [(s["system"], s["x"], s["repeat"]) for s in samples]
    assert turns == [(name, x, r) for r in (0, 1) for name in ("paxos", "single") for x in (1, 2)]
    assert Fake.told == ["start True", "run 0", "run 1", "run 2", "stop"] * 4
    assert list(tmp_path.iterdir()) == []


def test_what_breaks_is_marked_and_the_rest_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    samples = measured(monkeypatch, tmp_path, breaks=True)
    assert [s["problem"] for s in samples] == ["", "it broke"] * 4
    assert Fake.told.count("start True") == Fake.told.count("stop") == 4


def test_a_peer_that_is_not_installed_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run.installed(["etcd"], tmp_path) == {}
    assert "left out: etcd: there is no etcd (Debian: apt-get install etcd-server)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--sizes", "0"],
        ["--peers", "raft"],
        ["--parts", "all"],
        ["--levels", "3"],
        ["--repeat", "x"],
        ["--single", "h:1"],
        ["--cluster", "c.json", "--readme"],
    ],
)
def test_arguments_that_make_no_sense_are_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        run.main(words)
    assert refused.value.code == 2


# --------------------------------------------------------------------------------------------------- for real


def leftovers() -> set[str]:
    """The directories of runs that are under way."""
    return {path.name for path in (PROJECT / "run").glob("bench-*")}


@pytest.mark.slow
def test_a_tiny_run_measures_every_part_and_leaves_nothing_behind(tmp_path: Path) -> None:
    before = leftovers()
    words = ["--sizes", "20", "--repeat", "1", "--rows", "20", "--levels", "2", "--fault-seconds", "3"]
    done = finish([sys.executable, BENCH, *words, "--out", tmp_path], 600)
    assert done.returncode == 0, done.stderr
    samples = json.loads((tmp_path / "results.json").read_text())
    assert {s["part"] for s in samples} == set(run.PARTS)
    paxos = report.chosen(samples, "tables", "paxos", 20)[0]
    assert paxos["operations"] == 20 and paxos["cost"]["fsyncs"] > 0 and paxos["throughput"] > 0
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert done.stderr.count("\n") == len(samples)  # a line for each, and no more
    assert leftovers() <= before


@pytest.mark.slow
def test_a_cluster_that_runs_already_is_measured_and_keeps_its_keys(tmp_path: Path) -> None:
    words = [
        "--sizes",
        "20",
        "--repeat",
        "1",
        "--rows",
        "20",
        "--levels",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]
    with systems.Paxos(tmp_path / "paxos") as system, systems.Single(tmp_path / "single") as single:
        words += ["--cluster", str(system.file), "--single", single.where]
        with system.client() as client, single.client() as other:
            client.put("theirs", "1")
            assert run.main(words) == 0
            samples = json.loads((tmp_path / "out" / "results.json").read_text())
            assert {s["part"] for s in samples} == {"tables", "scaling", "mix", "batches"}
            assert {s["system"] for s in samples} == {"own-logs", "paxos", "single"}
            assert [item.key for item in client.scan()] == ["theirs"] and not [*other.scan()]
            client.put("bench.theirs", "1")
            other.put("bench.theirs", "1")
            assert run.main(words) == 1
            assert [item.key for item in client.scan()] == ["bench.theirs", "theirs"]
            assert [item.key for item in other.scan()] == ["bench.theirs"]


@pytest.mark.slow
@pytest.mark.skipif(missing(ssh=False) is not None, reason=missing(ssh=False) or "")
def test_five_hosts_are_measured_from_a_sixth(tmp_path: Path) -> None:
    with Network(tmp_path, ssh=False) as network:
        file = network.cluster_file(tmp_path, data=str(tmp_path / "data"))
        command = [sys.executable, PROJECT / "server.py", "--cluster", file, "--init", "--id"]
        nodes = [
            subprocess.Popen(network.at(n, [*command, str(n)]), preexec_fn=die_with_parent) for n in HOSTS
        ]
        words = ["--sizes", "20", "--repeat", "1", "--parts", "tables", "--cluster", file]
        done = network.finish(CLIENT, [sys.executable, BENCH, *words, "--out", tmp_path / "out"], 300)
        for node in nodes:
            node.kill()
            node.wait()
    assert done.returncode == 0, done.stderr
    samples = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(s["system"], s["operations"]) for s in samples] == [("own-logs", 20), ("paxos", 20)]


@pytest.mark.slow
def test_ctrl_c_ends_what_was_started_and_removes_its_files(tmp_path: Path) -> None:
    before = leftovers()
    words = [sys.executable, str(BENCH), "--sizes", "100000", "--repeat", "1", "--out", str(tmp_path)]
    child = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        mine = eventually(lambda: leftovers() - before, "its directory").pop()

        def its_processes() -> list[str]:
            lines = []
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    lines.append(path.read_text(errors="replace"))
            return [line for line in lines if mine in line]

        eventually(lambda: any("client.py" in line for line in its_processes()), "it runs")
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert (child.returncode, errors) == (130, "bench.sh: interrupted; nothing was written\n")
    assert mine not in leftovers()
    assert its_processes() == []
