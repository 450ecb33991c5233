"""What run.py measures: our cluster, our single server, and peers. Each starts afresh and is always ended.

    with Paxos(directory) as system:
        system.run(Load(file, rows=1500, processes=2, in_flight=1))

A run gives a sample: a dict with `throughput` (operations per second), `mean_s`, `stddev_s`, `p50_s`,
`p95_s`, `p99_s`, `max_s`, `quantiles` (pairs of share and seconds) and, for our own servers, `cost` per
operation, by their own counters. `problem` is empty, or says why the sample must not be used.
"""

import asyncio
import contextlib
import csv
import importlib.util
import json
import math
import multiprocessing
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from paxoskv.client.aio import AsyncClient
from paxoskv.client.base import addresses_of
from paxoskv.client.operations import ClientError
from paxoskv.client.report import latency
from paxoskv.client.sync import Client
from paxoskv.config import Cluster, load
from paxoskv.wire.codec import Status
from paxoskv.wire.connection import new_event_loop
from paxoskv.wire.structs import Command, Verb
from scripts.make_cluster import free_ports

NODES: Final = 5
START_S = 60.0  # for what takes two seconds on an idle machine
POLL_S = 0.01
SLOWEST = 5.0  # operations per second: a run that is slower is given up
BIN_S = 0.1  # seconds: the resolution of throughput over time
BACK: Final = 0.9  # of the throughput before a fault: so much counts as recovered
BATCH: Final = 100  # commands
BATCH_KEYS: Final = 500
OWN: Final = "bench."  # how the keys begin that are written to a cluster that runs already
SHARES: Final = [i / 200 for i in range(1, 199)] + [0.995, 0.999, 0.9999, 1.0]  # of the quantiles

Sample = dict[str, Any]


class BenchError(Exception):
    """Something could not be measured: one line."""


class Load(NamedTuple):
    """A file of operations, and how it is sent."""

    file: Path
    rows: int
    processes: int = 2
    in_flight: int = 1


# --------------------------------------------------------------------------------------------------- samples


def measured(seconds: float, latencies: Sequence[float], expected: int, problem: str = "") -> Sample:
    """A sample: so many seconds for these answered operations, of so many that were to be done."""
    if not problem and len(latencies) != expected:
        problem = f"{expected - len(latencies)} of {expected} operations failed"
    return {
        "seconds": seconds,
        "operations": len(latencies),
        "throughput": len(latencies) / seconds if seconds else 0.0,
        **latency(latencies),
        "quantiles": quantiles(latencies),
        "problem": problem,
    }


def quantiles(latencies: Sequence[float]) -> list[tuple[float, float]]:
    """(share, seconds) by nearest rank, for a curve of the distribution."""
    ranked = sorted(latencies)
    return [(share, ranked[math.ceil(share * len(ranked)) - 1]) for share in SHARES] if ranked else []


def rates(ends: Sequence[float], seconds: float) -> list[float]:
    """Operations per second over time, in bins of BIN_S, of operations that ended at these seconds."""
    bins = [0] * round(seconds / BIN_S)
    for end in ends:
        if 0 <= end < len(bins) * BIN_S:
            bins[min(int(end / BIN_S), len(bins) - 1)] += 1
    return [count / BIN_S for count in bins]


def recovery(series: Sequence[float], fault: float, until: float) -> float | None:
    """Seconds from the fault until half a second runs at BACK of the median rate before it; None: never."""
    first, last, width = math.ceil(fault / BIN_S), round(until / BIN_S), round(0.5 / BIN_S)
    before = sorted(series[: int(fault / BIN_S)])
    if not before:
        return None
    enough = BACK * before[len(before) // 2]
    for start in range(first, last - width + 1):
        if sum(series[start : start + width]) / width >= enough:
            return max(start * BIN_S - fault, 0.0)
    return None


# --------------------------------------------------------------------------------------------------- systems


class System:
    """Some processes, in a directory that is removed with them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.children: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True)
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start, and return when it takes commands. BenchError if it does not."""
        raise NotImplementedError

    def run(self, work: Load) -> Sample:
        """Do the work, and measure it. BenchError if nothing came of it."""
        raise NotImplementedError

    def spawn(self, name: str, *command: object, **options: Any) -> "subprocess.Popen[str]":
        """Start a process of its own session, so that Ctrl-C reaches only us; stderr goes to a log."""
        with (self.directory / f"{name}.log").open("ab") as log, signals_wait():
            options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, **options}
            child = subprocess.Popen([*map(str, command)], start_new_session=True, text=True, **options)
            self.children.append(child)
        return child

    def finish(self, name: str, within_s: float, *command: object) -> tuple[int, str]:
        """Run a process to its end; its exit code and what it printed."""
        child = self.spawn(name, *command, stdout=subprocess.PIPE)
        try:
            output, _ = child.communicate(timeout=within_s)
        except subprocess.TimeoutExpired:
            self.end(child)
            raise BenchError(f"{name}: not done within {within_s:.0f} s") from None
        self.children.remove(child)
        return child.returncode, output

    def end(self, child: "subprocess.Popen[str]") -> None:
        """End a process, and those that it started; nothing in it is of any use any more."""
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()
        self.children.remove(child)

    def stop(self) -> None:
        """End all processes and remove all files."""
        for child in [*self.children]:
            self.end(child)
        shutil.rmtree(self.directory, ignore_errors=True)

    def log(self, name: str) -> str:
        """The last line of a process's log."""
        lines = (self.directory / f"{name}.log").read_text(errors="replace").splitlines()
        return lines[-1][:300] if lines else "nothing in its log"


def until(what: str, condition: Callable[[], Any], pause_s: float = POLL_S) -> Any:
    """Poll until the condition gives something true, and return that."""
    deadline = time.monotonic() + START_S
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise BenchError(f"not within {START_S:.0f} s: {what}")
        time.sleep(pause_s)
    return value


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """SIGINT and SIGTERM come when this is over: one in the middle of it would leave a process behind."""
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def beside(work: Callable[..., object], *arguments: object) -> tuple[Any, Any]:
    """Do the work in a process beside us: a connection from which its result is to be received, and it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, work, *arguments), daemon=True)
    with signals_wait():
        process.start()
    theirs.close()
    return ours, process


def _send(results: Any, work: Callable[..., object], *arguments: object) -> None:
    """The process beside us. It ends with the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    results.send(work(*arguments))


def patience(work: Load) -> float:
    """How long to wait for a run, in seconds."""
    return START_S + work.rows / SLOWEST


def conduct(
    system: System, players: "Sequence[subprocess.Popen[str]]", lines: Sequence[str], within_s: float
) -> list[Any]:
    """Give each process, all of which are ready, its line; what they answer, as JSON."""
    for player, line in zip(players, lines, strict=True):
        assert player.stdin is not None
        player.stdin.write(line + "\n")
        player.stdin.flush()
    return [json.loads(heard(system, player, within_s)) for player in players]


def heard(system: System, player: "subprocess.Popen[str]", within_s: float = START_S) -> str:
    """Return the next line that a process prints; it prints one at a time, so none is buffered already."""
    assert player.stdout is not None
    if not select.select([player.stdout], [], [], within_s)[0]:
        raise BenchError(f"a player says nothing for {within_s:.0f} s")
    line = player.stdout.readline()
    if not line:
        raise BenchError(f"a player ended: {system.log('player')}")
    return line


def together(answers: Sequence[dict[str, Any]], expected: int) -> Sample:
    """One sample of what several processes measured at the same time."""
    seconds = max(a["ended"] for a in answers) - min(a["began"] for a in answers)
    latencies = [s for a in answers for s in a["latencies_s"]]
    reasons = [a["reason"] for a in answers if a["failed"]]
    return measured(seconds, latencies, expected, reasons[0] if reasons else "")


# ------------------------------------------------------------------------------------------------------ ours


class Ours(System):
    """What our cluster and our single server have in common: client.py, and the counters in their status."""

    own = ""  # how the keys of batches begin
    read = "linearizable"  # how it is read from
    where: Cluster | str  # what a client of ours connects to
    target: list[str]  # where client.py finds it
    nodes: Sequence[int | None]  # the ids of its nodes

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.servers: dict[int | None, subprocess.Popen[str]] = {}  # by node
        self.asking: Client | None = None  # for the status of nodes

    def client(self) -> Client:
        """A client of it."""
        return Client(self.where, timeout=5.0)

    def stop(self) -> None:
        """End all processes and remove all files."""
        if self.asking is not None:
            self.asking.close()
        super().stop()

    def serve(self, node: int | None, *words: object) -> None:
        """Start the server of a node (None: the single server); these words are its options."""
        command = [sys.executable, PROJECT / "server.py", "--data", self.directory / "data", *words]
        self.servers[node] = self.spawn(f"node-{node}" if node else "server", *command)

    def status(self, node: int | None) -> Status | None:
        """What a node says of itself; None if it does not answer. BenchError: its process has ended."""
        server = self.servers.get(node)
        if server is not None and server.poll() is not None:
            name = f"node-{node}" if node else "server"
            raise BenchError(f"{name} ended (exit code {server.returncode}): {self.log(name)}")
        self.asking = self.asking or self.client()
        try:
            return self.asking.status(node)
        except ClientError:
            return None

    def statuses(self) -> list[Status] | None:
        """What each node says of itself; None if one of them does not answer, or takes no commands."""
        found = [status for node in self.nodes if (status := self.status(node)) and status.ready]
        return found if len(found) == len(self.nodes) else None

    def settled(self) -> list[Status]:
        """The same, when all nodes have applied the same and nobody waits."""

        def calm() -> list[Status] | None:
            found = self.statuses()
            if found is None or any(status.pending for status in found):
                return None
            return found if len({(s.applied.timestamp, s.applied.owner) for s in found}) == 1 else None

        found: list[Status] = until("all nodes have applied the same", calm)
        return found

    def command(self, work: Load) -> list[object]:
        """How to run the work with client.py."""
        return [
            sys.executable, PROJECT / "client.py", "run", work.file, *self.target, "--read", self.read,
            "--processes", work.processes, "--in-flight", work.in_flight, "--timeout", 30,
            "--out", self.directory / "out", "-o", "json",
        ]  # fmt: skip

    def run(self, work: Load) -> Sample:
        """Run the file with client.py, and take the numbers from its summary.json and operations.csv."""
        before = self.settled()
        code, output = self.finish("client", patience(work), *self.command(work))
        if code not in (0, 1, 4):
            raise BenchError(f"client.py: exit code {code}: {self.log('client')}")
        after = self.settled()
        summary = json.loads(output)
        problem = f"{summary['failed']} failed, {summary['unknown']} unknown"
        if code == summary["failed"] == summary["unknown"] == 0:
            problem = ""
        latencies = [end - start for start, end, outcome in self.operations() if outcome]
        sample = measured(summary["seconds"], latencies, work.rows, problem)
        return {
            **sample,
            "throughput": summary["throughput_ops_s"],
            **summary["latency"],
            "cost": cost(before, after, work.rows),
        }

    def operations(self) -> Iterator[tuple[float, float, bool]]:
        """Start and end (seconds since 1970) of each operation, and whether it was answered."""
        with (self.directory / "out" / "operations.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["latency_s"]:
                    start = int(row["start_ns"]) / 1e9
                    answered = row["outcome"] in ("ok", "not_found")
                    yield start, start + float(row["latency_s"]), answered

    def batches(self, batches: int, in_flight: int) -> Sample:
        """Batches of BATCH commands from two processes; the clock stops when all nodes have applied them.

        `throughput` counts commands, the latencies are those of batches.
        """
        before = self.settled()
        barrier = multiprocessing.get_context("spawn").Barrier(2)
        work = (send_batches, self.where, self.own, batches // 2, in_flight, barrier)
        players = [beside(*work, first) for first in (0, 1)]
        try:
            if not all(pipe.poll(patience(Load(Path(), batches))) for pipe, _ in players):
                raise BenchError("the batches take too long")
            answers = [pipe.recv() for pipe, _ in players]
        except EOFError:
            raise BenchError("a process that sends batches has ended") from None
        finally:
            for _, process in players:
                process.kill()
                process.join()
        after = self.settled()
        applied_at = time.monotonic()
        sample = together(answers, batches // 2 * 2)
        commands = sample["operations"] * BATCH
        seconds = applied_at - min(answer["began"] for answer in answers)
        applied = min(
            b.counters["commands_applied"] - a.counters["commands_applied"]
            for a, b in zip(before, after, strict=True)
        )
        if applied < commands and not sample["problem"]:
            sample["problem"] = f"a node has applied {applied} of {commands} commands"
        return {**sample, "seconds": seconds, "throughput": commands / seconds,
                "cost": cost(before, after, max(commands, 1))}  # fmt: skip


def send_batches(
    where: Cluster | str, own: str, batches: int, in_flight: int, barrier: Any, first: int
) -> dict[str, Any]:
    """Send batches of PUTs, so many under way at a time, and measure them; for together().

    It begins when the other process has its session, too. Keys begin with `own`; `first` is the index of the
    node to begin with.
    """
    latencies: list[float] = []
    errors: list[str] = []
    numbers = iter(range(batches))

    async def lane(client: AsyncClient) -> None:
        for number in numbers:
            keys = (f"{own}key-{(number * BATCH + i) % BATCH_KEYS}" for i in range(BATCH))
            commands = [Command(Verb.PUT, key, f"value-{number}-{i}") for i, key in enumerate(keys)]
            begin = time.monotonic()
            try:
                await client.execute(commands)
            except ClientError as error:
                errors.append(str(error))
            else:
                latencies.append(time.monotonic() - begin)

    async def send() -> dict[str, Any]:
        async with AsyncClient(where, timeout=30.0, first=first) as client:
            await client.connect()
            await client.open_session()
            barrier.wait(START_S)
            began = time.monotonic()
            await asyncio.gather(*(lane(client) for _ in range(in_flight)))
            return {"began": began, "ended": time.monotonic(), "latencies_s": latencies,
                    "failed": len(errors), "reason": errors[0] if errors else ""}  # fmt: skip

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(send())


def cost(before: Sequence[Status], after: Sequence[Status], operations: int) -> dict[str, float]:
    """What one operation cost all nodes together, by their counters; of memory, the node that grew most."""
    spent: dict[str, float] = {}
    for old, new in zip(before, after, strict=True):
        for name, value in {**new.counters, "journal_bytes": new.journal_bytes}.items():
            was = old.journal_bytes if name == "journal_bytes" else old.counters.get(name, 0)
            spent[name] = spent.get(name, 0) + (value - was) / operations
    growth = max(new.memory_bytes - old.memory_bytes for old, new in zip(before, after, strict=True))
    return {**spent, "memory_bytes": growth / operations}


class Paxos(Ours):
    """Our cluster. `read` is how it is read from; `settings` are further fields of its cluster.json."""

    def __init__(
        self, directory: Path, read: str = "linearizable", nodes: int = NODES, **settings: Any
    ) -> None:
        super().__init__(directory)
        self.read = read
        self.settings = settings
        self.file = directory / "cluster.json"
        self.target = ["--cluster", str(self.file)]
        self.nodes = range(1, nodes + 1)

    def start(self) -> None:
        """All nodes."""
        self.ports = free_ports(len(self.nodes))
        nodes = [{"id": i, "host": "127.0.0.1", "port": p} for i, p in enumerate(self.ports, start=1)]
        self.file.write_text(json.dumps({"name": "bench", "nodes": nodes, **self.settings}))
        self.where = load(self.file)
        for node in self.nodes:
            self.serve(node, "--init")
        until("all nodes take commands", self.statuses)

    def serve(self, node: int, *words: object) -> None:
        """Start one node."""
        super().serve(node, "--id", node, "--cluster", self.file, *words)

    def kill(self, node: int) -> None:
        """End one node as kill -9 does."""
        self.end(self.servers[node])

    def wait(self, node: int) -> None:
        """Return when a node that was started takes commands."""
        until(f"node {node} takes commands", lambda: (status := self.status(node)) and status.ready)

    def run_at(self, work: Load, leading: float) -> Sample:
        """Run the file with all clients at the node that leads the only log (1), or at the next one (0)."""
        logs = [log for status in self.settled() for log in status.logs]
        leader = max(logs, key=lambda log: log.promised).leader
        if not leader:
            raise BenchError("no node leads")
        everywhere = self.target
        self.target = ["--single", f"127.0.0.1:{self.ports[leader - 1 if leading else leader % NODES]}"]
        try:
            return self.run(work)
        finally:
            self.target = everywhere

    def fault(self, work: Load, seconds: float) -> Sample:
        """Throughput over time while one node is killed after a third of it, and returns after two.

        The work must be more than can be done in that time.
        """
        applied = self.settled()[0].counters["commands_applied"]
        load_process = self.spawn("client", *self.command(work), stdout=subprocess.DEVNULL)

        def begun() -> bool:
            found = self.statuses()
            return found is not None and found[0].counters["commands_applied"] > applied + 20

        until("the client has begun", begun)
        start = time.monotonic()
        offset = time.time() - start
        sleep_until(start + seconds / 3)
        victim = NODES
        killed = time.monotonic()
        self.kill(victim)
        sleep_until(start + seconds * 2 / 3)
        returned = time.monotonic()
        self.serve(victim)
        sleep_until(start + seconds)
        load_process.send_signal(signal.SIGINT)
        try:
            code = load_process.wait(START_S)
        except subprocess.TimeoutExpired:
            raise BenchError("the client does not stop") from None
        self.children.remove(load_process)
        done = [*self.operations()]
        problem = "" if code == 130 else "the file ended too early" if code == 0 else f"exit code {code}"
        failed = sum(not answered for _, _, answered in done)
        ends = sorted(end - offset - start for _, end, answered in done if answered)
        series = rates(ends, seconds)
        after = [killed - start, *(end for end in ends if killed < end + start < returned)]
        recovered = recovery(series, killed - start, returned - start)
        return {
            "rates": series,
            "bin_s": BIN_S,
            "killed_s": killed - start,
            "returned_s": returned - start,
            "gap_s": max((b - a for a, b in pairwise(after)), default=None),
            "recovered_s": recovered,
            "operations": len(ends),
            "problem": f"{failed} operations failed" if failed else problem,
        }


def sleep_until(moment: float) -> None:
    """Wait for a moment of the monotonic clock."""
    time.sleep(max(moment - time.monotonic(), 0.0))


class Single(Ours):
    """Our single server: the same service without Paxos."""

    def start(self) -> None:
        """The server."""
        self.where = f"127.0.0.1:{free_ports(1)[0]}"
        self.target = ["--single", self.where]
        self.nodes = [None]
        self.serve(None, "--standalone", "--listen", self.where)
        until("the server takes commands", self.statuses)


class Running(Ours):
    """A cluster (its file) or a single server (HOST:PORT) that runs already.

    Only keys that begin with OWN are written, and removed in the end. Nothing is, if there are such keys.
    """

    own = OWN

    def __init__(self, directory: Path, where: Cluster | str, target: list[str], read: str = "linearizable"):
        super().__init__(directory)
        self.where, self.target, self.read = where, target, read
        self.nodes = [address.id for address in addresses_of(where)]
        self.mine = False

    def start(self) -> None:
        """See that it takes commands, and that nobody has keys of these names."""
        until("all nodes take commands", self.statuses)
        with self.client() as client:
            for item in client.scan(OWN, limit=1):
                raise BenchError(f"{self.target[1]}: has a key {item.key!r}, and measuring overwrites {OWN}*")
        self.mine = True

    def stop(self) -> None:
        """Remove the keys that were measured with; the servers go on."""
        with contextlib.suppress(ClientError), self.client() as client:
            while self.mine and (items := [*client.scan(OWN, limit=1000)]):
                client.execute([Command(Verb.DELETE, item.key, "") for item in items])
        super().stop()


# ----------------------------------------------------------------------------------------------------- peers


def build_etcd_load(directory: Path) -> Path:
    """Compile our load generator for etcd. BenchError says what is missing."""
    for needed, package in (("etcd", "etcd-server"), ("go", "golang-go")):
        if shutil.which(needed) is None:
            raise BenchError(f"etcd: there is no {needed} (Debian: apt-get install {package})")
    sources = os.environ.get("GOPATH", "/usr/share/gocode")  # where Debian's packages put them
    if not Path(sources, "src/go.etcd.io/etcd/clientv3").is_dir():
        raise BenchError("etcd: no client for Go (Debian: apt-get install golang-etcd-server-dev)")
    environment = {"GO111MODULE": "off", "GOPATH": sources, "CGO_ENABLED": "0"}
    return _built("etcd", directory, "etcd_load.go", ["go", "build"], environment)


def build_floor(directory: Path) -> Path:
    """Compile the floor. BenchError says what is missing."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise BenchError("floor: there is no C compiler (Debian: apt-get install gcc)")
    return _built("floor", directory, "floor.c", [compiler, "-O2"], {})


def _built(peer: str, directory: Path, source: str, command: list[str], environment: dict[str, str]) -> Path:
    program = directory / Path(source).stem
    built = subprocess.run(
        [*command, "-o", program, PROJECT / "bench" / "peers" / source],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if built.returncode:
        raise BenchError(f"{peer}: {source} does not build: {built.stderr.strip().splitlines()[-1]}")
    return program


def check_pysyncobj() -> None:
    """BenchError if it is not installed."""
    if importlib.util.find_spec("pysyncobj") is None:
        raise BenchError("pysyncobj: not installed (.venv/bin/pip install pysyncobj)")


class Etcd(System):
    """Five members of etcd with their own defaults, and our load generator for it."""

    def __init__(self, directory: Path, program: Path) -> None:
        super().__init__(directory)
        self.program = program

    def start(self) -> None:
        """All members."""
        ports = free_ports(2 * NODES)
        clients = [f"127.0.0.1:{port}" for port in ports[:NODES]]
        peers = [f"http://127.0.0.1:{port}" for port in ports[NODES:]]
        members = ",".join(f"n{i}={peer}" for i, peer in enumerate(peers))
        self.endpoints = ",".join(clients)
        for i, (client, peer) in enumerate(zip(clients, peers, strict=True)):
            self.spawn(
                f"n{i}", "etcd", "--name", f"n{i}", "--data-dir", self.directory / f"n{i}",
                "--listen-client-urls", f"http://{client}", "--advertise-client-urls", f"http://{client}",
                "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                "--initial-cluster", members, "--log-level", "error",
            )  # fmt: skip
        first = self.directory / "first.csv"
        first.write_text("PUT,first,1\n")
        until("etcd takes commands", lambda: self.load(Load(first, 1, 1))[0] == 0)

    def load(self, work: Load) -> tuple[int, str]:
        """Run the load generator; its exit code and what it printed."""
        how = ["-clients", work.processes, "-in-flight", work.in_flight]
        where = ["-endpoints", self.endpoints, "-file", work.file]
        return self.finish("load", patience(work), self.program, *where, *how)

    def run(self, work: Load) -> Sample:
        """Run the file with as many clients as there would be processes."""
        code, output = self.load(work)
        if code:
            raise BenchError(f"etcd_load: {self.log('load')}")
        answer = json.loads(output)
        return measured(answer["seconds"], answer["latencies_s"], work.rows, answer["reason"])


class Floor(System):
    """The processes of bench/peers/floor.c, which are started for each run, before its clock."""

    def __init__(self, directory: Path, program: Path) -> None:
        super().__init__(directory)
        self.program = program

    def start(self) -> None:
        """Nothing yet."""

    def run(self, work: Load) -> Sample:
        """As many operations as the file has, with its share of GETs."""
        with work.file.open(encoding="utf-8") as file:
            gets = sum(line.startswith("GET") for line in file)
        code, output = self.finish(
            "floor", patience(work), self.program, NODES, work.processes, work.in_flight, work.rows,
            round(gets * 100 / work.rows), self.directory,
        )  # fmt: skip
        if code:
            raise BenchError(f"floor: {self.log('floor')}")
        answer = json.loads(output)
        sample = measured(answer["seconds"], answer["latencies_s"], work.rows)
        return {**sample, "cost": {"cpu_us": answer["cpu_us"]}}


class PySyncObj(System):
    """Five nodes of PySyncObj with journals; two of them send the operations."""

    def start(self) -> None:
        """All nodes."""
        addresses = [f"127.0.0.1:{port}" for port in free_ports(NODES)]
        program = PROJECT / "bench" / "peers" / "pysyncobj_node.py"
        self.players = [
            self.spawn(
                "player", sys.executable, program, own, ",".join(a for a in addresses if a != own),
                self.directory / f"journal-{i}", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )
            for i, own in enumerate(addresses)
        ]  # fmt: skip
        for player in self.players:
            heard(self, player)

    def run(self, work: Load) -> Sample:
        """Run the file from as many nodes as there would be processes."""
        jobs = [
            json.dumps(
                {"file": str(work.file), "part": i, "parts": work.processes, "in_flight": work.in_flight}
            )
            for i in range(work.processes)
        ]
        return together(conduct(self, self.players[: work.processes], jobs, patience(work)), work.rows)
