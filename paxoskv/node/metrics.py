"""What a node counts, and the page that shows it: /metrics for Prometheus, /healthz, /readyz.

Counting costs next to nothing: the server adds to the integers and lists of Counts as things happen, and only
when somebody asks for the page does Collector turn them into Prometheus' terms. Without "metrics_port" in
cluster.json nothing listens, and the prometheus-client library is not even loaded.

A duration or a size goes into the bucket of its bit length, so that finding the bucket is one operation:
bucket i holds what is below 2 ** i and not below 2 ** (i - 1).
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

# Buckets that are shown, as powers of two: durations from 32 microseconds to 17 seconds, sizes up to 16,383.
MICROSECONDS: Final = range(5, 25)
SIZES: Final = range(1, 15)
# What a scraper may take, in seconds, for its request and for reading the answer.
REQUEST_S: Final = 5.0
# Bytes of a request; answers that wait to be read. One scraper asks every few seconds.
MAX_REQUEST: Final = 8192
MAX_CONNECTIONS: Final = 16

# Methods whose answers clients wait for.
OPERATIONS: Final = ("put", "get", "delete", "compare_and_set", "increment", "transaction", "execute")

# What the server tells of itself when it is asked, with an explanation.
COUNTERS: Final = {
    "entries_applied": "Entries applied to the store.",
    "commands_applied": "Commands applied to the store.",
    "ballots": "Ballots that this node has stood with.",
    "prepares": "Prepares sent to peers.",
    "accepts": "Accepts sent to peers.",
    "refused": "Prepares and Accepts of others, refused for a higher ballot.",
    "messages": "Frames sent to peers, answers included.",
    "message_bytes": "Bytes of these frames.",
    "revocations": "Logs that this node set out to take over from nodes that made no progress.",
    "claims_refused": "Messages of nodes that were refused because they claim implausible numbers.",
    "fsyncs": "Frames of the journal written, each with one fdatasync.",
}
GAUGES: Final = {
    "ready": "Whether the node takes commands (1) or not (0).",
    "clock": "The Lamport clock.",
    "keys": "Keys in the store.",
    "connected_peers": "Peers that there is a working connection to.",
    "connections": "Connections that others made: clients and peers.",
    "in_flight_entries": "Entries of the node's own log that are not applied yet.",
    "pending_requests": "Client operations that wait for an answer.",
    "queued_commands": "Commands that wait for a place in an entry.",
    "watches": "Watches that wait for changes.",
    "waiting_reads": "Reads that wait for their turn.",
    "waiting_records": "Journal records that wait for the next frame.",
    "waiting_messages": "Messages that wait for the next frame to be durable.",
    "journal_bytes": "Bytes in the journal.",
    "certificate_seconds": "Seconds until the node's certificate expires; +Inf: it has none.",
    "uptime_seconds": "Seconds since the node began to serve.",
}


class Histogram:
    """Whole numbers, by their bit length. `total` is their sum."""

    __slots__ = ("buckets", "total")

    def __init__(self) -> None:
        self.buckets = [0] * 65
        self.total = 0

    def add(self, value: int) -> None:
        """Count a number from 0 to 2 ** 64 - 1."""
        self.buckets[value.bit_length()] += 1
        self.total += value


class Traffic:
    """Frames, and the bytes in them."""

    __slots__ = ("bytes", "frames")

    def __init__(self) -> None:
        self.frames = 0
        self.bytes = 0


By = dict[int, dict[str, Traffic]]  # by peer (0: clients) and method


class Counts:
    """What a node has counted since it started."""

    def __init__(self) -> None:
        self.operations: dict[str, dict[str, int]] = {}  # by method and outcome
        self.latency: dict[str, Histogram] = {}  # by method, microseconds from arrival to answer
        self.received: By = {}
        self.sent: By = {}
        self.fsync = Histogram()  # microseconds for each frame of the journal
        self.checkpoint = Histogram()  # microseconds for each checkpoint
        self.refusals: dict[str, int] = {}  # by what was refused

    def answered(self, method: str, outcome: str, seconds: float) -> None:
        """A client has its answer, so long after its call arrived."""
        outcomes = self.operations.get(method)
        histogram = self.latency.get(method)
        if outcomes is None or histogram is None:
            outcomes, histogram = self.operations[method], self.latency[method] = {}, Histogram()
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        histogram.add(int(seconds * 1e6))

    def frame(self, way: By, peer: int | None, method: str, size: int) -> None:
        """A frame came or went: `way` is `received` or `sent`, size is in bytes."""
        methods = way.get(peer or 0)
        if methods is None:
            methods = way[peer or 0] = {}
        traffic = methods.get(method)
        if traffic is None:
            traffic = methods[method] = Traffic()
        traffic.frames += 1
        traffic.bytes += size

    def refused(self, what: str, times: int = 1) -> None:
        """Somebody or something was turned away."""
        self.refusals[what] = self.refusals.get(what, 0) + times

    def answer_times(self) -> dict[str, int]:
        """How many answers to clients took less than this many microseconds, and at least half as many."""
        histograms = [self.latency[method].buckets for method in OPERATIONS if method in self.latency]
        counts = enumerate(map(sum, zip(*histograms, strict=True)))
        return {f"answers_below_{1 << bits}us": count for bits, count in counts if count}

    def totals(self) -> dict[str, int]:
        """Frames and bytes, all peers and methods together; and what a command costs between the nodes."""
        peers = [sent for peer, sent in self.sent.items() if peer]
        to_peers = [traffic for sent in peers for traffic in sent.values()]
        operations = [self.latency[method] for method in OPERATIONS if method in self.latency]
        return {
            "prepares": sum(sent["prepare"].frames for sent in peers if "prepare" in sent),
            "accepts": sum(sent["accept"].frames for sent in peers if "accept" in sent),
            "refused": self.refusals.get("prepare", 0) + self.refusals.get("accept", 0),
            "messages": sum(traffic.frames for traffic in to_peers),
            "message_bytes": sum(traffic.bytes for traffic in to_peers),
            "answers": sum(sum(latency.buckets) for latency in operations),
            "answers_us": sum(latency.total for latency in operations),
        } | {
            f"{what}_{name}": sum(
                getattr(traffic, what) for methods in way.values() for traffic in methods.values()
            )
            for name, way in (("received", self.received), ("sent", self.sent))
            for what in ("frames", "bytes")
        }


@dataclass(eq=False)
class Collector:
    """Tells Prometheus' library what was counted, each time it asks."""

    counts: Counts
    batches: Histogram
    now: Callable[[], Mapping[str, float]]  # tells the values of COUNTERS and GAUGES
    about: Mapping[str, str]  # who the node is: labels of `info`

    def collect(self) -> Iterator[Any]:
        """All metrics as they stand."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        counts, now = self.counts, self.now()
        yield InfoMetricFamily("paxos_node", "Who the node is.", value=dict(self.about))
        for name, text in COUNTERS.items():
            yield CounterMetricFamily(f"paxos_{name}", text, value=now[name])
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"paxos_{name}", text, value=now[name])
        operations = CounterMetricFamily(
            "paxos_operations", "Clients' calls that were answered.", labels=["verb", "outcome"]
        )
        for method, outcomes in counts.operations.items():
            for outcome, count in outcomes.items():
                operations.add_metric((method, outcome), count)
        yield operations
        refusals = CounterMetricFamily(
            "paxos_refusals", "Strangers, connections, ballots and commands turned away.", labels=["what"]
        )
        for what, count in counts.refusals.items():
            refusals.add_metric([what], count)
        yield refusals
        yield from _traffic(counts)
        yield _histogram(
            "paxos_operation_seconds", "From a call's arrival to its answer.", counts.latency, "verb"
        )
        yield _histogram("paxos_fsync_seconds", "Writing a frame of the journal.", {"": counts.fsync})
        yield _histogram("paxos_checkpoint_seconds", "Making a checkpoint.", {"": counts.checkpoint})
        yield _histogram("paxos_batch_commands", "Commands in an entry that was proposed.",
                         {"": self.batches}, limits=SIZES, unit=1)  # fmt: skip


def _traffic(counts: Counts) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily

    for name, way in (("received", counts.received), ("sent", counts.sent)):
        for what in ("frames", "bytes"):
            text = f"{what.capitalize()} {name}, by peer ('client': all clients) and method."
            family = CounterMetricFamily(f"paxos_{what}_{name}", text, labels=["peer", "method"])
            for peer, methods in way.items():
                for method, traffic in methods.items():
                    family.add_metric([str(peer or "client"), method], getattr(traffic, what))
            yield family


def _histogram(
    name: str,
    text: str,
    histograms: Mapping[str, Histogram],
    label: str | None = None,
    limits: Sequence[int] = MICROSECONDS,
    unit: float = 1e6,
) -> Any:
    """Histograms as one metric. `limits`: the bit lengths shown; `unit`: how many counted make one shown."""
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(name, text, labels=[label] if label else [])
    for key, histogram in histograms.items():
        buckets = []
        for bits in limits:
            # Durations were rounded down, so that they lie below the limit; sizes are whole: one less.
            limit = 2**bits / unit if unit != 1 else 2**bits - 1
            buckets.append((str(float(limit)), sum(histogram.buckets[: bits + 1])))
        buckets.append(("+Inf", sum(histogram.buckets)))
        family.add_metric([key] if label else [], buckets, sum_value=histogram.total / unit)
    return family


class Page:
    """The HTTP server, in the node's own event loop: what it shows is of one moment, and needs no lock."""

    def __init__(self, collector: Collector, state: Callable[[], str]) -> None:
        """`state` is "serving" when the node takes commands; anything else says why it does not."""
        from prometheus_client import CollectorRegistry
        from prometheus_client.process_collector import ProcessCollector

        self.state = state
        self.registry = CollectorRegistry()
        self.registry.register(collector)
        ProcessCollector(registry=self.registry)
        self.server: asyncio.Server | None = None
        self.open = 0

    async def listen(self, host: str, port: int) -> None:
        """Begin to serve. OSError if the address cannot be had."""
        self.server = await asyncio.start_server(self._serve, host, port, limit=MAX_REQUEST)

    def close(self) -> None:
        """Take no more requests."""
        if self.server:
            self.server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request. A client that dawdles, sends something else or does not read is disconnected."""
        self.open += 1
        # A malformed request, a lost connection, or one that took too long: it concerns nobody else.
        with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            try:
                async with asyncio.timeout(REQUEST_S):
                    if self.open <= MAX_CONNECTIONS:
                        head = await reader.readuntil(b"\r\n\r\n")
                        writer.write(self._answer(head.decode("latin-1").split("\r\n")))
                        await writer.drain()
                        writer.close()
                        await writer.wait_closed()
            finally:
                self.open -= 1
                writer.transport.abort()

    def _answer(self, lines: Sequence[str]) -> bytes:
        method, target, _ = lines[0].split(" ")
        path = target.partition("?")[0]
        if method not in ("GET", "HEAD"):
            answer = _response("405 Method Not Allowed", b"only GET and HEAD\n", more="Allow: GET, HEAD\r\n")
        elif path == "/metrics":
            answer = self._metrics(_accepted(lines[1:]))
        elif path == "/healthz":
            answer = _response("200 OK", b"alive\n")
        elif path == "/readyz":
            state = self.state()
            answer = _response(
                "200 OK" if state == "serving" else "503 Service Unavailable", f"{state}\n".encode()
            )
        else:
            answer = _response("404 Not Found", b"there are /metrics, /healthz and /readyz\n")
        return answer if method != "HEAD" else answer[: answer.index(b"\r\n\r\n") + 4]

    def _metrics(self, accept: str) -> bytes:
        from prometheus_client.exposition import choose_encoder

        try:
            encode, kind = choose_encoder(accept)
            return _response("200 OK", encode(self.registry), kind)
        except Exception as error:  # a page that cannot be shown is no reason to end the node
            reason = f"{type(error).__name__}: {error}\n"
            return _response("500 Internal Server Error", reason.encode("utf-8", "backslashreplace"))


def _accepted(lines: Iterable[str]) -> str:
    """The request's Accept header, or nothing."""
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() == "accept":
            return value.strip()
    return ""


def _response(status: str, body: bytes, kind: str = "text/plain; charset=utf-8", more: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
