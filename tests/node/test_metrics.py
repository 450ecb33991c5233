"""What a node counts and logs: the page for Prometheus, /healthz and /readyz, and the lines of the log."""

import json
import re
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from paxoskv.config import load
from paxoskv.node.eventlog import LEVELS, MAX_LOGGED, Log
from paxoskv.node.metrics import COUNTERS, GAUGES, Collector, Counts, Histogram, Page
from paxoskv.node.status import VERSION
from paxoskv.wire.codec import NotDone
from paxoskv.wire.structs import Command, Verb
from tests.harness.processes import SERVER, Process, Processes, RealCluster, cluster_file, eventually, finish


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of a page, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(page: dict[Any, float], name: str, **labels: str) -> float:
    """One sample; 0 if it is not there."""
    return page.get((name, frozenset(labels.items())), 0.0)


def ask(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    """Status and body of an HTTP request."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def page(port: int) -> dict[Any, float]:
    status, text = ask(port, "/metrics")
    assert status == 200
    return samples(text)


class Measured(RealCluster):
    """Nodes with metrics; `ports` are those of the pages, by node."""

    def __init__(self, directory: Path, nodes: int = 3) -> None:
        super().__init__(directory, nodes)
        spare = load(cluster_file(directory / "spare", nodes)).nodes
        document = json.loads(self.file.read_text())
        taken = {node["port"] for node in document["nodes"]}
        free = [member.port for member in spare if member.port not in taken]
        free += [port + 1 for port in free]  # (should one of them be taken already)
        self.ports: dict[int, int] = {}
        for node in document["nodes"]:
            node["metrics_port"] = self.ports[node["id"]] = free.pop(0)
        self.file.write_text(json.dumps(document))
        self.settings = load(self.file)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    with Measured(tmp_path_factory.mktemp("metrics")) as running:
        yield running


# ------------------------------------------------------------------------------------------------- counting


def test_a_histogram_counts_each_number_once_and_in_the_bucket_of_its_size() -> None:
    histogram = Histogram()
    for number in (0, 1, 2, 3, 4, 2**40, 2**64 - 1):
        histogram.add(number)
    assert [histogram.buckets[bits] for bits in (0, 1, 2, 3, 41, 64)] == [1, 1, 2, 1, 1, 1]
    assert sum(histogram.buckets) == 7 and histogram.total == 10 + 2**40 + 2**64 - 1


def test_what_was_counted_is_what_prometheus_reads() -> None:
    counts, batches = Counts(), Histogram()
    for seconds in (0.00001, 0.0001, 0.02, 100.0):
        counts.answered("put", "ok", seconds)
    counts.answered("get", "not_found", 0.5)
    counts.answered("status", "ok", 9.0)  # no operation
    counts.frame(counts.received, None, "put", 100)
    counts.frame(counts.received, 3, "accept", 50)
    counts.frame(counts.sent, 3, "accept", 7)
    counts.frame(counts.sent, 3, "accept", 8)
    counts.refused("malformed")
    for size in (1, 1, 3, 4, 10_000):
        batches.add(size)
    registry = CollectorRegistry()
    now = dict.fromkeys([*COUNTERS, *GAUGES], 5.0)
    registry.register(Collector(counts, batches, lambda: now, {"node": "1"}))
    told = samples(generate_latest(registry).decode())
    assert value(told, "paxos_operations_total", verb="put", outcome="ok") == 4
    assert value(told, "paxos_operations_total", verb="get", outcome="not_found") == 1
    assert value(told, "paxos_frames_received_total", peer="client", method="put") == 1
    assert value(told, "paxos_bytes_received_total", peer="3", method="accept") == 50
    assert value(told, "paxos_frames_sent_total", peer="3", method="accept") == 2
    assert value(told, "paxos_bytes_sent_total", peer="3", method="accept") == 15
    assert value(told, "paxos_refusals_total", what="malformed") == 1
    assert value(told, "paxos_operation_seconds_count", verb="put") == 4
    assert value(told, "paxos_operation_seconds_sum", verb="put") == pytest.approx(100.02011)
    for limit, below in (("3.2e-05", 1), ("0.000128", 2), ("0.032768", 3), ("16.777216", 3), ("+Inf", 4)):
        assert value(told, "paxos_operation_seconds_bucket", verb="put", le=limit) == below
    for limit, below in (("1.0", 2), ("3.0", 3), ("7.0", 4), ("16383.0", 5), ("+Inf", 5)):
        assert value(told, "paxos_batch_commands_bucket", le=limit) == below, limit
    assert value(told, "paxos_batch_commands_sum") == 10_009
    assert value(told, "paxos_ready") == value(told, "paxos_fsyncs_total") == 5
    assert counts.totals() == {
        "frames_received": 2, "bytes_received": 150, "frames_sent": 2, "bytes_sent": 15,
        "prepares": 0, "accepts": 2, "refused": 0, "messages": 2, "message_bytes": 15,
        "answers": 5, "answers_us": 100_520_110,
    }  # fmt: skip
    times = counts.answer_times()
    assert sum(times.values()) == 5 and times["answers_below_134217728us"] == 1, "100 s are below 2 ** 27 us"


# ------------------------------------------------------------------------------------------- the real thing


def test_a_nodes_page_counts_what_clients_and_peers_did(cluster: Measured) -> None:
    with cluster.client() as client:
        before = page(cluster.ports[1])
        status = client.status(1)
        for number in range(5):
            assert client.get(f"absent-{number}", node=1) is None
        while client.status(1).counters["commands_applied"] < status.counters["commands_applied"] + 30:
            client.execute([Command(Verb.PUT, f"key-{number}", "value") for number in range(10)])
    after = page(cluster.ports[1])

    def grew(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert grew("paxos_operations_total", verb="get", outcome="not_found") == 5
    assert grew("paxos_operation_seconds_count", verb="get") == 5
    assert grew("paxos_frames_received_total", peer="client", method="get") == 5
    assert grew("paxos_frames_sent_total", peer="client", method="get") == 5
    assert grew("paxos_bytes_sent_total", peer="client", method="get") > 5 * 10
    assert grew("paxos_frames_received_total", peer="2", method="accept") > 0
    assert grew("paxos_bytes_sent_total", peer="3", method="accept") > 0
    assert grew("paxos_commands_applied_total") >= 30
    assert grew("paxos_fsync_seconds_count") == grew("paxos_fsyncs_total") > 0
    assert value(after, "paxos_fsync_seconds_sum") > 0
    assert grew("paxos_batch_commands_count") > 0
    assert value(after, "paxos_ready") == 1 and value(after, "paxos_keys") == 10
    peers = "paxos_connected_peers"  # of which one may have been starting until now
    eventually(lambda: value(page(cluster.ports[1]), peers) == 2, "both peers are connected")
    assert value(after, "process_resident_memory_bytes") > 1 << 20
    assert value(after, "paxos_node_info", node="1", cluster="test", version=VERSION,
                 incarnation="1", life=next(dict(labels)["life"] for name, labels in after
                                            if name == "paxos_node_info")) == 1  # fmt: skip


def test_refusals_of_clients_are_counted_by_kind(cluster: Measured) -> None:
    with cluster.client() as client, pytest.raises(Exception, match="key"):
        client.get("k" * 5000, node=2)
    with socket.create_connection(("127.0.0.1", cluster.settings.member(2).port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert stranger.recv(1) == b""
    told = page(cluster.ports[2])
    assert value(told, "paxos_operations_total", verb="get", outcome="refused") == 1
    assert value(told, "paxos_refusals_total", what="malformed") == 1


def test_bytes_are_in_the_status_too(cluster: Measured) -> None:
    status = cluster.status(3)
    assert status is not None
    counters = status.counters
    assert counters["bytes_received"] > 20 * counters["frames_received"] > 0
    assert counters["bytes_sent"] > 20 * counters["frames_sent"] > 0
    times = [count for name, count in counters.items() if name.startswith("answers_below_")]
    assert sum(times) == counters["answers"]


def test_the_other_pages_and_what_there_is_none_of(cluster: Measured) -> None:
    port = cluster.ports[1]
    assert ask(port, "/healthz") == (200, "alive\n")
    assert ask(port, "/readyz") == (200, "serving\n")
    assert ask(port, "/readyz?verbose=1") == (200, "serving\n")
    assert ask(port, "/metrics", "HEAD") == (200, "")
    assert ask(port, "/metrics", "POST")[0] == 405
    assert ask(port, "/")[0] == 404


@pytest.mark.slow
def test_a_scraper_that_dawdles_or_talks_nonsense_hurts_nobody(cluster: Measured) -> None:
    port = cluster.ports[1]
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(10)]
    try:
        idle[0].sendall(b"GET /metrics HT")
        for garbage in (b"\r\n\r\n", b"what\r\n\r\n", b"\xff" * 20_000, b"GET  / x y\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", port), 30) as stranger:
                stranger.sendall(garbage)
                assert stranger.recv(1) == b""
        assert ask(port, "/healthz")[0] == 200
        for connection in idle:  # each is hung up on by itself
            connection.settimeout(60)
            assert connection.recv(1) == b""
    finally:
        for connection in idle:
            connection.close()
    assert ask(port, "/metrics")[0] == 200


def test_a_node_that_cannot_serve_is_alive_and_not_ready(tmp_path: Path) -> None:
    cluster = Measured(tmp_path)
    with Processes() as processes:
        processes.all = cluster.all
        cluster.nodes[1].start("--init")  # alone it is no quorum: its ballot is never established

        def answer() -> Any:
            try:
                return ask(cluster.ports[1], "/readyz")
            except OSError:
                return None

        assert eventually(answer, "the page is served") == (503, "starting\n")
        assert ask(cluster.ports[1], "/healthz")[0] == 200


def test_a_metrics_port_that_is_taken_is_told_like_any_other(tmp_path: Path) -> None:
    cluster = Measured(tmp_path, nodes=1)
    with socket.create_server(("127.0.0.1", cluster.ports[1])):
        done = finish([sys.executable, SERVER, *cluster.nodes[1].arguments, "--init"])
    assert done.returncode == 2
    assert f"127.0.0.1:{cluster.ports[1]}: address already in use" in done.stderr.splitlines()[-1]


def test_without_a_metrics_port_the_library_is_not_even_loaded() -> None:
    code = "import sys, server; sys.exit('prometheus_client' in sys.modules)"
    assert finish([sys.executable, "-c", code], cwd=Path(SERVER).parent).returncode == 0


def test_an_error_in_making_the_page_is_answered_and_ends_nothing() -> None:
    shown = Page(Collector(Counts(), Histogram(), dict, {}), lambda: "serving")
    answer = shown._answer(["GET /metrics HTTP/1.1", "Accept: text/plain", ""])
    assert answer.startswith(b"HTTP/1.1 500 ") and b"KeyError" in answer


# ----------------------------------------------------------------------------------------------------- logs


TEXT = re.compile(
    r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=(?:info|warning|error) node=\d+ event=[a-z-]+"
    r'(?: \w+=(?:"(?:[^"\\]|\\.)*"|[^" =]+))*'
)
NASTY = "a\nb\tc\x1b[31m\x9b\u2028\u202e =\"'\\ \ud800 \U0001f600 " + "x" * 10_000


def test_whatever_is_logged_is_one_bounded_line_of_printable_ascii(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for as_json in (False, True):
        log = Log()
        log.node, log.as_json = 7, as_json
        log("stranger", "error", who=NASTY, reason=NotDone(NASTY, True), count=3, nothing=None, share=0.25)
        text = capsys.readouterr().err
        assert text.endswith("\n") and text.count("\n") == 1 and len(text) < 80_000
        assert all(" " <= character <= "~" for character in text[:-1])
        if as_json:
            line = json.loads(text)
            assert list(line)[:4] == ["time", "level", "node", "event"]
            assert (line["node"], line["count"], line["nothing"], line["share"]) == (7, 3, None, 0.25)
            assert line["who"] == NASTY[:MAX_LOGGED]
        else:
            assert TEXT.fullmatch(text[:-1]), text[:300]
            assert text.split()[1:4] == ["level=error", "node=7", "event=stranger"]
            assert text.rstrip().endswith(" count=3 nothing=- share=0.25")


def test_less_important_events_are_left_out_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log()
    log.lowest = LEVELS.index("warning")
    for level in LEVELS:
        log("event", level)
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == [
        "level=warning",
        "level=error",
    ]


def test_every_line_of_a_nodes_log_has_the_same_columns(cluster: Measured, tmp_path: Path) -> None:
    for node in cluster.ids:
        lines = cluster.nodes[node].log().splitlines()
        assert lines
        for line in lines:
            assert TEXT.fullmatch(line), line
            assert f" node={node} " in line
    other = RealCluster(tmp_path, nodes=1)
    for process in other.all:
        process.arguments += ["--log-format", "json"]
    with other:
        other.stop()
        lines = other.nodes[1].log().splitlines()
    events = [json.loads(line) for line in lines]
    assert {"recovered", "listening", "stopping", "stopped"} <= {event["event"] for event in events}
    assert all(list(event)[:4] == ["time", "level", "node", "event"] for event in events)


def test_a_node_that_strangers_can_reach_says_so(tmp_path: Path) -> None:
    with Processes() as processes:
        port = load(cluster_file(tmp_path, 1)).nodes[0].port
        arguments = ["--standalone", "--listen", f"0.0.0.0:{port}", "--data", tmp_path / "data"]
        process = Process("standalone", arguments, tmp_path / "log")
        processes.all.append(process)
        process.start()
        eventually(lambda: "event=reachable" in process.log(), "it says that it can be reached")
        line = next(line for line in process.log().splitlines() if "event=reachable" in line)
        assert "level=warning" in line and f"0.0.0.0:{port}" in line


def test_a_node_on_loopback_has_nothing_to_say_about_it(cluster: Measured) -> None:
    assert "event=reachable" not in cluster.nodes[1].log()


def test_a_checkpoint_and_its_duration_are_counted(cluster: Measured) -> None:
    with cluster.client() as client:
        client.put("before", "the checkpoint")
        before = page(cluster.ports[2])
        assert client.checkpoint(2) >= 1
    after = page(cluster.ports[2])
    assert (
        value(after, "paxos_checkpoint_seconds_count") == value(before, "paxos_checkpoint_seconds_count") + 1
    )
    assert value(after, "paxos_checkpoint_seconds_sum") > value(before, "paxos_checkpoint_seconds_sum")
    assert value(after, "paxos_operations_total", verb="checkpoint", outcome="ok") == 1
