"""Files of operations: reading them, running them in processes of their own, and what is written about it."""

import csv
import gzip
import io
import json
import multiprocessing
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from paxoskv.client import cli as command_line
from paxoskv.client import report, workload
from paxoskv.client.rows import VERBS, Row, WrongFile, parse
from paxoskv.client.workload import Done, Run
from paxoskv.wire.codec import NotDone
from paxoskv.wire.validation import MAX_KEY_BYTES, MAX_VALUE_BYTES
from tests.harness.fake_node import DO_AND_CLOSE, IGNORE, FakeCluster
from tests.harness.linearizability import check, load

ROOT = Path(__file__).resolve().parents[2]

# -------------------------------------------------------------------------------------------------- the file


def rows(text: str | bytes) -> list[Row]:
    """The rows of a file without malformed ones."""
    found, malformed = parse(text.encode() if isinstance(text, str) else text)
    assert malformed == []
    return found


def test_the_three_kinds_of_rows_are_read_and_a_value_is_kept_for_puts_only() -> None:
    assert rows("PUT,k,v\nGET,k\nGET,k,v\nDELETE,k\nDELETE,k,v\n") == [
        Row("PUT", "k", "v"),
        Row("GET", "k", ""),
        Row("GET", "k", ""),
        Row("DELETE", "k", ""),
        Row("DELETE", "k", ""),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "put,k,v\nGet,k",
        "\ufeffPUT,k,v\nGET,k\n",
        "PUT,k,v\r\nGET,k\r\n",
        "PUT,k,v\rGET,k\r",
        "\n\nPUT,k,v\n\r\n   \nGET,k\n\n",
        '# put, "k\nPUT,k,v\n  # and then, "\nGET,k\n#',
        "verb,key,value\nPUT,k,v\nGET,k\n",
        'PUT,"k","v"\n"GET",k\n',
        " PUT ,k,v\nget ,k\n",
        "PUT, k, v\nGET, k\n",
        "PUT\t,\tk\t,\tv\t\n GET , k \n",
        ' "PUT" , "k" , "v" \nGET , "k"\n',
        "PUT,k,v,\nGET,k,,,\n",
        "PUT,k,v,,,,\r\nGET,k,\r\n",
        "\u2009\nPUT,k,v\nGET,k\n",
    ],
)
def test_variations_of_form_make_no_difference(text: str) -> None:
    assert rows(text) == [Row("PUT", "k", "v"), Row("GET", "k", "")]


def test_quoted_fields_hold_anything() -> None:
    assert rows('PUT,"a,b","line 1\r\n# line 2\n\n""x"" "\nPUT," ","" \n'.replace('"" \n', '""\n')) == [
        Row("PUT", "a,b", 'line 1\r\n# line 2\n\n"x" '),
        Row("PUT", " ", ""),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("FROB,k,v", "unknown verb 'FROB'"),
        (",k,v", "unknown verb"),
        ("verb,key,value", "unknown verb"),  # only the first row may be a header
        ("PUT", "without a key"),
        ("GET,", "without a key"),
        ("DELETE", "without a key"),
        ("PUT,k", "without a value"),
        ("PUT,k,v,w", "4 fields"),
        ("GET,k,v,w", "4 fields"),
        (b"PUT,k,\xff\xfe", "not UTF-8"),
        (b"GET,k,\xc3", "not UTF-8"),
        ("PUT," + "k" * (MAX_KEY_BYTES + 1) + ",v", "a key of 4,097 bytes"),
        ("GET," + "ü" * (MAX_KEY_BYTES // 2 + 1), "a key of 4,098 bytes"),
        ("PUT,k," + "v" * (MAX_VALUE_BYTES + 1), "a value of 524,289 bytes"),
        ('PUT,k,"v"w', "not CSV"),
    ],
)
def test_a_malformed_row_is_told_with_its_line_and_the_rest_is_read(row: str | bytes, reason: str) -> None:
    data = row if isinstance(row, bytes) else row.encode()
    found, malformed = parse(b'# one\nPUT,a,"1\n2"\n' + data + b"\nGET,a\n")
    assert [bad.line for bad in malformed] == [4]
    assert reason in malformed[0].reason
    assert found == [Row("PUT", "a", "1\n2"), Row("GET", "a", "")]


def test_a_quote_that_is_never_closed_is_told_where_it_begins() -> None:
    found, malformed = parse(b'PUT,a,1\nPUT,b,"2\nPUT,c,3\n')
    assert found == [Row("PUT", "a", "1")]
    assert [bad.line for bad in malformed] == [2]


@pytest.mark.parametrize(
    ("text", "line", "lost"),
    [
        ('PUT,a,1\nPUT,b,"2\nPUT,c,3\nPUT,d,4\n', 2, 3),
        ('PUT,a,1\r\nPUT,b,"2\r\nPUT,c,3', 2, 2),
        ('PUT,a,1\nPUT,"b\nb","2 ""more""\nPUT,c,3\n', 3, 3),  # the row begins in line 2, the quote in line 3
        ('PUT,a,1\n# "\nPUT,b, "2""\n"", and more\n', 3, 2),
        ('PUT,a,1\nPUT,b,"', 2, 1),
    ],
)
def test_a_quote_that_nothing_closes_is_told_where_it_opens_and_what_it_swallows(
    text: str, line: int, lost: int
) -> None:
    found, malformed = parse(text.encode())
    assert found == [Row("PUT", "a", "1")]
    assert [(bad.line, bad.lines) for bad in malformed] == [(line, lost)]
    assert f"a quote opens here that nothing closes: {lost} lines are lost" in malformed[0].reason


def test_a_quote_that_another_row_closes_is_told_where_it_opens_and_the_rest_is_read() -> None:
    found, malformed = parse(b'PUT,a,"1\nPUT,b,2\nPUT,c,"3"\nPUT,d,4\n')
    assert found == [Row("PUT", "d", "4")]
    assert [(bad.line, bad.lines) for bad in malformed] == [(1, 3)]
    assert "text behind a quoted field, in line 3; its quote opens here" in malformed[0].reason


def test_blanks_belong_to_a_field_in_quotes_only_and_other_white_space_always_does() -> None:
    assert rows('PUT," k "," v "\nPUT, a b , c d \nPUT,\u00a0,\u2009\n') == [
        Row("PUT", " k ", " v "),
        Row("PUT", "a b", "c d"),
        Row("PUT", "\u00a0", "\u2009"),
    ]
    assert parse(b"PUT, ,v\n")[1][0].reason == "PUT without a key"
    assert rows("PUT,k,\nPUT,l, ,\n") == [Row("PUT", "k", ""), Row("PUT", "l", "")]


def test_a_quote_within_a_field_is_a_part_of_it() -> None:
    assert rows('PUT,size,5"\nPUT,k,a"b"\n') == [Row("PUT", "size", '5"'), Row("PUT", "k", 'a"b"')]


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        ("PUT,k,v\nGET,k\n".encode("utf-16"), "UTF-16: save it as UTF-8"),
        ("PUT,k,v\nGET,k\n".encode("utf-16-le"), "zero bytes: if it is UTF-16"),
        (b"PUT;k;v\nGET;k\n", "separated by semicolons"),
        (b'# mine\nverb;key;value\nPUT;k;"a,b"\n', "separated by semicolons"),
        (b'"PUT";"k";"v"\n', "separated by semicolons"),
        (b"PUT\tk\tv\nGET\tk\n", "separated by tabs"),
        (b"put|k|v\n", "separated by bars"),
        (b"PUT k v\nGET k\n", "separated by blanks"),
        (b'{"verb": "PUT", "key": "k"}\n', "JSON"),
        (b"PK\3\4" + bytes(50), "zip"),
        (b"BZh9" + bytes(50), "unpack it first"),
        (b"\xfd7zXZ\0" + bytes(50), "unpack it first"),
    ],
)
def test_a_file_of_another_kind_is_told_with_one_hint(data: bytes, hint: str) -> None:
    with pytest.raises(WrongFile, match=re.escape(hint)):
        parse(data)


def test_one_row_of_operations_is_enough_for_no_hint() -> None:
    found, malformed = parse(b"PUT;k;v\nGET,k\n")
    assert (found, len(malformed)) == ([Row("GET", "k", "")], 1)


def test_keys_and_values_of_exactly_the_limit_are_fine() -> None:
    assert len(rows("PUT," + "k" * MAX_KEY_BYTES + "," + "v" * MAX_VALUE_BYTES)) == 1


@pytest.mark.parametrize(("count", "processes"), [(150, 2), (7, 3), (2, 5), (1, 1), (9, 256)])
def test_parts_are_contiguous_and_even_and_none_is_empty(count: int, processes: int) -> None:
    everything = [Row("GET", str(i), "") for i in range(count)]
    parts = workload.parts(everything, processes)
    assert [row for _, part in parts for row in part] == everything
    assert all(everything[start] == part[0] for start, part in parts)
    sizes = [len(part) for _, part in parts]
    assert len(sizes) == min(count, processes)
    assert max(sizes) - min(sizes) <= 1


# ----------------------------------------------------------------------------------------------- the results


def done(outcome: str, seconds: float, verb: str = "PUT") -> Done:
    start = 1_000_000_000
    end = start + round(seconds * 1e9)
    return Done(0, 0, 0, Row(verb, "k", "v"), "1", start, end, outcome, 1, None)


def test_percentiles_are_by_nearest_rank() -> None:
    statistics = report.latency([i / 100 for i in range(100, 0, -1)])
    assert statistics == pytest.approx(
        {
            "mean_s": 0.505,
            "stddev_s": 0.290115,
            "p50_s": 0.5,
            "p95_s": 0.95,
            "p99_s": 0.99,
            "p999_s": 1.0,
            "max_s": 1.0,
        },
        rel=1e-4,
    )
    assert report.latency([2.0])["stddev_s"] == 0.0
    assert set(report.latency([]).values()) == {None}


def test_what_started_in_the_warm_up_is_counted_and_is_in_no_figure() -> None:
    slow, fast = done("ok", 9), done("ok", 1)._replace(started=5_000_000_000, ended=6_000_000_000)
    totals = report.summary(Run([slow, fast], measured=2_000_000_000), malformed=0)
    assert (totals["operations"], totals["warmup_operations"], totals["seconds"]) == (1, 1, 1.0)
    assert totals["latency"]["max_s"] == 1.0


def test_latency_counts_from_when_an_operation_was_due() -> None:
    late = done("ok", 1)._replace(due=500_000_000)
    assert late.latency_s == 1.5
    assert report.summary(Run([late]), malformed=0)["seconds"] == 1.5


def test_a_timeseries_has_a_line_for_each_second_with_all_nodes() -> None:
    dones = [done(*what) for what in (("ok", 0.5), ("failed", 0.6), ("ok", 2.1))]
    file = io.StringIO()
    report.write_timeseries(file, Run([*dones[:2], dones[2]._replace(node="2")], began=1_000_000_000))
    first, second, third = csv.DictReader(file.getvalue().splitlines())
    assert (first["operations"], first["ok"], first["failed"], first["p50_s"]) == ("2", "1", "1", "0.500000")
    assert (first["node_1"], first["node_2"], third["node_1"], third["node_2"]) == ("2", "0", "0", "1")
    assert (second["second"], second["operations"], second["p50_s"]) == ("1", "0", "")


def test_the_live_line_says_rate_percentiles_failures_and_each_node() -> None:
    dones = [done("ok", 0.001), done("ok", 0.003), done("failed", 1)._replace(node="2")]
    assert report.live(dones, 0.5) == "6/s  p50 1.0 ms  p99 3.0 ms  1 failed  by node 1: 4 2: 2"
    assert report.live([], 1.0).startswith("0/s")


def test_failures_are_counted_but_are_no_part_of_latencies_or_throughput() -> None:
    result = Run([done("ok", 1), done("not_found", 3, "GET"), done("failed", 10), done("unknown", 10)])
    totals = report.summary(result, malformed=5)
    assert [totals[name] for name in ("operations", "ok", "not_found", "failed", "unknown", "malformed")] == [
        4, 1, 1, 1, 1, 5,
    ]  # fmt: skip
    assert (totals["seconds"], totals["throughput_ops_s"]) == (10.0, 0.2)
    assert totals["latency"]["max_s"] == 3.0
    assert totals["verbs"]["PUT"]["latency"]["max_s"] == 1.0
    assert totals["verbs"]["DELETE"]["latency"]["mean_s"] is None
    assert "4 operations, 1 failed, 1 unknown, 5 malformed" in report.table(totals)


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (Run([done("ok", 1), done("not_found", 1)]), 0),
        (Run([done("ok", 1), done("failed", 1)]), 1),
        (Run([done("failed", 1), done("unknown", 1)]), 4),
        (Run([done("unknown", 1)], dead=["process 0"]), 1),
        (Run(unreachable="refused"), 3),
        (Run([done("unknown", 1)], interrupted=True), 130),
    ],
)
def test_the_exit_code_tells_the_worst(result: Run, code: int) -> None:
    assert report.exit_code(result) == code


# ------------------------------------------------------------------------------------------------------ runs


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[FakeCluster]:
    cluster = FakeCluster(tmp_path)
    yield cluster
    cluster.close()


class Shell:
    """Runs `client.py run` on a file, in this process."""

    def __init__(self, fakes: FakeCluster, directory: Path, captured: Callable[[], Any]) -> None:
        self.directory, self.captured = directory, captured
        self.file, self.cluster = directory / "w.csv", directory / "cluster.json"
        self.out, self.history = directory / "out" / "here", directory / "history.jsonl"
        nodes = [{"id": node.number, "host": "127.0.0.1", "port": node.port} for node in fakes.nodes]
        self.cluster.write_text(json.dumps({"name": "fake", "nodes": nodes}))

    def words(self, *options: str) -> list[str]:
        return ["run", str(self.file), "--cluster", str(self.cluster), "--out", str(self.out),
                "--history", str(self.history), *options]  # fmt: skip

    def run(self, text: str | bytes, *options: str) -> tuple[int, str, str]:
        self.file.write_bytes(text.encode() if isinstance(text, str) else text)
        code = command_line.main(self.words(*options))
        captured = self.captured()
        return code, captured.out, captured.err

    def operations(self) -> list[dict[str, str]]:
        with (self.out / "operations.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def summary(self) -> Any:
        return json.loads((self.out / "summary.json").read_text())


@pytest.fixture
def shell(fakes: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(fakes, tmp_path, capsys.readouterr)


MIXED = (
    "".join(f"PUT,k{i % 7},v{i}\nGET,k{i % 5}\n" for i in range(60)) + "DELETE,k0\nDELETE,absent\nGET,k0\n"
)


@pytest.mark.parametrize("in_flight", [1, 8])
def test_a_run_does_every_row_and_records_it(shell: Shell, fakes: FakeCluster, in_flight: int) -> None:
    code, out, err = shell.run(MIXED, "--processes", "3", "--in-flight", str(in_flight))
    assert (code, err) == (0, "")
    assert "123 operations, 0 failed" in out
    records = shell.operations()
    assert [record["index"] for record in records] == [str(i) for i in range(123)]
    assert [(r["verb"], r["key"]) for r in records] == [(row.verb, row.key) for row in rows(MIXED)]
    assert {record["process"] for record in records} == {"0", "1", "2"}
    assert {record["node"] for record in records} == {"1", "2", "3"}
    assert {record["attempts"] for record in records} == {"1"}
    assert {record["outcome"] for record in records} == {"ok", "not_found"}
    now = time.time_ns()
    assert all(
        abs(now - int(record["start_ns"])) < 600e9 and float(record["latency_s"]) > 0 for record in records
    )
    totals = shell.summary()
    assert (totals["operations"], totals["failed"], totals["unknown"]) == (123, 0, 0)
    assert totals["ok"] + totals["not_found"] == 123
    assert sum(totals["verbs"][verb]["operations"] for verb in VERBS) == 123
    assert totals["throughput_ops_s"] == pytest.approx(123 / totals["seconds"])
    history = load(shell.history)
    assert len(history) == 123
    assert check(history) is None
    assert fakes.calls().count("open_session") == 3


def test_each_process_keeps_the_order_of_its_rows_and_begins_at_another_node(
    shell: Shell, fakes: FakeCluster
) -> None:
    text = "".join(f"PUT,a,{i}\n" for i in range(30)) + "".join(f"PUT,b,{i}\n" for i in range(30))
    assert shell.run(text)[0] == 0
    assert fakes.content == {"a": "29", "b": "29"}
    records = shell.operations()
    # The session is opened first, at the process's own node.
    assert [record["node"] for record in records[:4]] == ["2", "3", "1", "2"]
    assert [record["node"] for record in records[30:34]] == ["3", "1", "2", "3"]
    starts = [int(record["start_ns"]) for record in records]
    assert starts[:30] == sorted(starts[:30]) and starts[30:] == sorted(starts[30:])


def test_a_process_that_is_done_stays_until_all_are(fakes: FakeCluster) -> None:
    """Its end would take a processor away from those that are still measured."""
    part = workload._Part(
        0, 0, rows("GET,k\n"), workload.Settings(fakes.cluster), workload._Outcomes(1), 1, 1
    )
    ours, theirs = multiprocessing.Pipe()
    ended, early = threading.Event(), []

    def parent() -> None:
        ours.recv()
        ours.send("go")
        assert isinstance(ours.recv(), workload._Rest)
        early.append(ended.wait(0.5))
        ours.close()

    interrupts = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=parent)
    thread.start()
    try:
        workload._work(part, theirs)
    finally:
        ended.set()
        signal.signal(signal.SIGINT, interrupts)
        thread.join()
    assert early == [False]


def test_faults_of_single_nodes_fail_no_operation_and_repeats_are_counted(
    shell: Shell, fakes: FakeCluster
) -> None:
    for node in fakes.nodes:
        node.script.extend([None] * 9 + [NotDone("busy", False), None, None, DO_AND_CLOSE])
    assert shell.run(MIXED)[0] == 0
    assert sum(int(record["attempts"]) for record in shell.operations()) == 123 + 6
    assert check(load(shell.history)) is None


def test_a_refused_operation_is_failed_and_the_rest_goes_on(shell: Shell, fakes: FakeCluster) -> None:
    fakes.nodes[1].script.extend([None, NotDone("no such luck", True)])
    code, out, err = shell.run("PUT,a,1\nPUT,b,2\nPUT,c,3\nPUT,d,4\nPUT,e,5\n", "--processes", "1")
    assert code == 1
    assert "no such luck" in err
    assert "5 operations, 1 failed, 0 unknown" in out
    assert [record["outcome"] for record in shell.operations()].count("failed") == 1
    assert len(load(shell.history)) == 5


def test_an_operation_without_an_answer_is_unknown(shell: Shell, fakes: FakeCluster) -> None:
    for node in fakes.nodes[1:]:
        node.always = IGNORE
    fakes.nodes[0].script.append(None)  # opens the session
    fakes.nodes[0].always = IGNORE
    code, _, err = shell.run("PUT,a,1\nGET,a\n", "--processes", "1", "--timeout", "0.3")
    assert code == 4
    assert [record["outcome"] for record in shell.operations()] == ["unknown", "failed"]
    assert shell.summary()["latency"]["max_s"] is None
    written = [json.loads(line) for line in shell.history.read_text().splitlines()]
    assert [line["return_ns"] is None for line in written] == [True, False]
    assert "outcome unknown" in err


def test_malformed_rows_are_told_counted_and_skipped(shell: Shell, fakes: FakeCluster) -> None:
    code, out, err = shell.run("PUT,a,1\nFROB,x\nPUT,b\nPUT,c,3\n")
    assert code == 65
    assert [line.split(": ")[0] for line in err.splitlines()] == [
        f"{shell.file}:2", f"{shell.file}:3", "client.py",
    ]  # fmt: skip
    assert err.endswith("2 malformed rows left out\n")
    assert "2 operations, 0 failed, 0 unknown, 2 malformed" in out
    assert fakes.content == {"a": "1", "c": "3"}


def test_with_strict_a_malformed_row_means_that_nothing_is_sent(shell: Shell, fakes: FakeCluster) -> None:
    code, out, err = shell.run("PUT,a,1\nFROB,x\n", "--strict")
    assert (code, out) == (65, "")
    assert f"{shell.file}:2: unknown verb" in err and "1 malformed row; nothing was sent" in err
    assert fakes.calls() == []
    assert not shell.out.exists()


def test_with_keep_going_malformed_rows_are_told_and_are_no_failure(shell: Shell, fakes: FakeCluster) -> None:
    code, out, err = shell.run("PUT,a,1\nFROB,x\n", "--keep-going")
    assert (code, shell.summary()["malformed"]) == (0, 1)
    assert "1 malformed row left out" in err and "1 malformed" in out
    assert fakes.content == {"a": "1"}


def test_rows_that_a_quote_swallowed_are_counted(shell: Shell, fakes: FakeCluster) -> None:
    code, _, err = shell.run('PUT,a,1\nPUT,b,"2\n' + "PUT,c,3\n" * 30)
    assert (code, shell.summary()["malformed"], fakes.content) == (65, 31, {"a": "1"})
    assert err.splitlines() == [
        f"{shell.file}:2: a quote opens here that nothing closes: 31 lines are lost",
        f"client.py: {shell.file}: 31 malformed rows left out",
    ]


def test_of_many_malformed_rows_the_first_are_told_and_all_are_counted(shell: Shell) -> None:
    code, _, err = shell.run("PUT,a,1\n" + "FROB,x\n" * 500)
    assert code == 65
    assert len(err.splitlines()) == 21 and err.endswith("500 malformed rows left out\n")


def test_a_file_of_another_kind_is_told_in_one_line_and_nothing_is_sent(
    shell: Shell, fakes: FakeCluster
) -> None:
    code, out, err = shell.run("PUT;k;v\n" * 1000, "--keep-going")
    assert (code, out) == (65, "")
    reason = "its fields are separated by semicolons: separate them by commas"
    assert err == f"client.py: {shell.file}: {reason}\n"
    code, _, err = shell.run(gzip.compress(b"PUT,k,v\n")[:-9])
    assert code == 65 and err.count("\n") == 1 and "damaged gzip" in err
    assert fakes.calls() == []


def test_a_file_that_gzip_packed_is_read(shell: Shell, fakes: FakeCluster) -> None:
    assert shell.run(gzip.compress(b"PUT,k,v\n"))[0] == 0
    assert fakes.content == {"k": "v"}


def test_an_outcome_that_is_unknown_weighs_more_than_a_malformed_row(
    shell: Shell, fakes: FakeCluster
) -> None:
    fakes.nodes[0].script.append(None)  # opens the session
    for node in fakes.nodes:
        node.always = IGNORE
    assert shell.run("PUT,a,1\nFROB,x\n", "--processes", "1", "--timeout", "0.3")[0] == 4


@pytest.mark.parametrize("data", [b"PUT,k,v\n", gzip.compress(b"PUT,k,v\n", mtime=0)], ids=["plain", "gzip"])
def test_a_dash_reads_the_rows_from_stdin(
    shell: Shell, fakes: FakeCluster, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert command_line.main(["run", "-", "--cluster", str(shell.cluster)]) == 0
    assert fakes.content == {"k": "v"}


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "\ufeff"])
def test_a_file_without_operations_is_told_in_one_line(shell: Shell, fakes: FakeCluster, text: str) -> None:
    code, out, err = shell.run(text)
    assert (code, out, err) == (2, "", f"client.py: {shell.file}: no operations in it\n")
    assert fakes.calls() == []


def test_results_that_cannot_be_written_are_told_before_anything_is_sent(
    shell: Shell, fakes: FakeCluster
) -> None:
    (shell.directory / "out").write_text("a file, where a directory should be")
    code, _, err = shell.run("PUT,a,1\n")
    assert code == 74
    assert "operations.csv" in err
    assert fakes.calls() == []


def test_without_any_node_a_run_exits_with_3(shell: Shell, fakes: FakeCluster) -> None:
    fakes.close()
    code, out, err = shell.run("PUT,a,1\n", "-o", "json", "--timeout", "0.3")
    assert code == 3
    assert json.loads(out)["error"] == "unreachable"
    assert "node 3" in err


def test_nodes_that_all_vanish_before_anything_is_done_are_told_as_unreachable(
    shell: Shell, fakes: FakeCluster
) -> None:
    def vanish() -> None:
        for node in reversed(fakes.nodes):  # the one that was asked at last: nobody is left to be asked next
            node.stop()

    fakes.nodes[0].script.append(vanish)  # the process has connected and opens its session
    code, out, _ = shell.run("PUT,a,1\n", "--processes", "1", "--timeout", "0.3")
    # Was the last of the nodes still there when the PUT left? Then nobody knows what became of it.
    assert (code, "1 operations, 1 failed" in out) in [(3, True), (4, False)]


def test_json_for_machines_is_the_summary(shell: Shell) -> None:
    code, out, _ = shell.run("PUT,a,1\n", "-o", "json")
    assert code == 0
    assert json.loads(out) == shell.summary()


@pytest.mark.parametrize("in_flight", ["1", "4"])
def test_a_process_that_dies_is_told_and_its_rows_are_accounted_for(
    shell: Shell, fakes: FakeCluster, in_flight: str
) -> None:
    def die() -> str:
        for process in multiprocessing.active_children():
            os.kill(process.pid or 0, signal.SIGKILL)
        return IGNORE

    fakes.nodes[1].script.extend([None, None, die])
    text = "".join(f"PUT,k{i},v\n" for i in range(40))
    code, _, err = shell.run(text, "--processes", "1", "--in-flight", in_flight)
    assert code == 1
    assert "process 0 ended before its work was done (exit code -9)" in err
    outcomes = [record["outcome"] for record in shell.operations()]
    assert len(outcomes) == 40
    assert 1 <= outcomes.count("unknown") <= int(in_flight)
    assert outcomes.count("ok") >= 1
    assert outcomes[-1] == "failed"
    assert len(load(shell.history)) == outcomes.count("ok") + outcomes.count("unknown")


@pytest.mark.parametrize("in_flight", ["1", "8"])
def test_with_a_rate_operations_are_due_at_even_times_and_latency_counts_from_then(
    shell: Shell, fakes: FakeCluster, in_flight: str
) -> None:
    """A closed loop would show one slow operation for each lane, and hide those that had to wait for it."""
    for node in fakes.nodes:
        node.always = lambda: stall() or None
    stalls = iter([None] * 10 + [IGNORE] * int(in_flight))

    def stall() -> str | None:
        return next(stalls, None)

    text = "".join(f"PUT,k{i},v\n" for i in range(120))
    assert shell.run(text, "--processes", "1", "--in-flight", in_flight, "--rate", "100")[0] == 0
    records = shell.operations()
    starts = [int(record["start_ns"]) for record in records]
    assert {b - a for a, b in pairwise(starts)} <= {9_999_999, 10_000_000, 10_000_001}
    waited = [record for record in records if float(record["latency_s"]) > 0.5]
    assert len(waited) > 30  # an attempt takes a second; what was due in its first half had to wait longer


def test_two_processes_share_a_rate(fakes: FakeCluster) -> None:
    settings = workload.Settings(fakes.cluster, rate=100.0)
    one, two = (
        workload._Part(i, 0, rows("GET,a\nGET,b\n"), settings, workload._Outcomes(3), 3, 2) for i in (0, 1)
    )
    assert [part.due(i) for i in range(3) for part in (one, two)] == [i * 10_000_000 for i in range(6)]
    assert [one.row(i).key for i in range(3)] == ["a", "b", "a"]


@pytest.mark.parametrize("more", [(), ("--rate", "200")])
def test_with_a_duration_the_rows_are_repeated_and_a_warm_up_is_left_out(
    shell: Shell, more: tuple[str]
) -> None:
    assert shell.run("PUT,a,1\nGET,a\nGET,b\n", "--duration", "0.5", "--warmup", "0.5", *more)[0] == 0
    records, totals = shell.operations(), shell.summary()
    assert len(records) > 3 and {record["index"] for record in records} == {"0", "1", "2"}
    assert (
        totals["operations"] + totals["warmup_operations"] == len(records) >= totals["warmup_operations"] > 0
    )
    if more:
        assert len(records) <= 200
    with (shell.out / "timeseries.csv").open() as file:
        assert sum(int(row["operations"]) for row in csv.DictReader(file)) == len(records)
    assert check(load(shell.history)) is None


def test_a_run_of_too_many_operations_or_of_none_per_second_is_refused(shell: Shell) -> None:
    code, _, err = shell.run("PUT,a,1\n", "--duration", "86400", "--rate", "1e6")
    assert code == 2 and "4,000,000 operations or more" in err
    for words in (["--rate", "0"], ["--rate", "nan"], ["--duration=-1"], ["--warmup", "x"]):
        assert shell.run("PUT,a,1\n", *words)[0] == 2


@pytest.mark.parametrize("in_flight", ["1", "4"])
def test_ctrl_c_ends_the_wait_for_an_operation_that_is_not_due_yet(
    shell: Shell, fakes: FakeCluster, in_flight: str
) -> None:
    shell.file.write_text("PUT,a,1\n" * 4)
    words = [*shell.words("--rate", "0.01", "--in-flight", in_flight, "--processes", "1")]
    process = subprocess.Popen([sys.executable, str(ROOT / "client.py"), *words], stdout=subprocess.PIPE)
    wait_for(lambda: "put" in fakes.calls())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert len(shell.operations()) == 1


def test_ctrl_c_stops_the_run_and_what_was_done_is_written(shell: Shell, fakes: FakeCluster) -> None:
    for node in fakes.nodes:
        node.script.extend([None] * 8)
        node.always = IGNORE
    shell.file.write_text("".join(f"PUT,k{i},v\n" for i in range(200)))
    words = [sys.executable, str(ROOT / "client.py"), *shell.words("--timeout", "0.5")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(fakes.calls()) > 24)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "(interrupted)" in out
    outcomes = [record["outcome"] for record in shell.operations()]
    assert outcomes.count("ok") == 22  # 24 calls, two of which opened sessions
    assert len(outcomes) < 200
    assert shell.summary()["interrupted"] is True


def test_the_progress_bar_and_the_live_line_are_drawn_on_a_terminal_and_nowhere_else(shell: Shell) -> None:
    shell.file.write_text(MIXED)
    ours, theirs = pty.openpty()
    words = [sys.executable, str(ROOT / "client.py"), *shell.words("--rate", "80")]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "150"}
    )
    os.close(theirs)
    drawn = b""
    try:
        while part := os.read(ours, 65536):
            drawn += part
    except OSError:  # the terminal's other side is closed
        pass
    finally:
        os.close(ours)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert b"operations" in drawn and b"p99" in drawn and b"by node" in drawn
    assert b"\x1b" not in out


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
