"""Real nodes for tests: processes of server.py on free ports, that can be killed, paused and started again.

    with RealCluster(tmp_path) as cluster:
        cluster.kill(3)
        with cluster.client() as client:
            client.put("key", "value")
        cluster.restart(3)
        cluster.wait_until_stores_are_equal()

Whatever a test starts here is ended when the block is left, and if an error leaves it, the end of each
node's log is printed. Nothing waits for a fixed time: conditions are polled, with deadlines that a busy
machine can keep.
"""

import ctypes
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from paxoskv.client.operations import ClientError, NotDoneError
from paxoskv.client.sync import Client
from paxoskv.config import Cluster, load
from paxoskv.wire.codec import Status
from tests.harness.linearizability import Operation
from tests.harness.linearizability import load as load_history
from tests.harness.ports import free_ports

PROJECT = Path(__file__).resolve().parents[2]
SERVER = PROJECT / "server.py"
CLIENT = PROJECT / "client.py"
SCRIPTS = PROJECT / "scripts"

DEADLINE_S = 90.0  # for what takes a second or two on an idle machine
POLL_S = 0.02
PRCTL = ctypes.CDLL(None).prctl
PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>
LOG_LINES = 25  # that are shown of each node when a test fails


def eventually(condition: Callable[[], Any], what: str, within_s: float = DEADLINE_S) -> Any:
    """Poll until the condition gives something true, and return that. AssertionError at the deadline."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(POLL_S)


def passes(seconds: float) -> None:
    """Let time go by, where the test is about a span of time and not about something that happens in it."""
    end = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= end, "the end of the span", seconds + DEADLINE_S)


def cluster_file(directory: Path, nodes: int = 5, name: str = "test", **settings: Any) -> Path:
    """Write directory/cluster.json with ports that no other test has; `settings` are further fields of it."""
    command = [sys.executable, str(SCRIPTS / "make_cluster.py"), "--nodes", str(nodes), "--name", name]
    command += ["--port", str(free_ports(nodes)[0])]
    for field, value in settings.items():
        command += ["--set", f"{field}={json.dumps(value)}"]
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "cluster.json"
    path.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return path


def die_with_parent() -> None:
    """In a child before its program starts: it is killed when the tests are, however they end."""
    PRCTL(PR_SET_PDEATHSIG, signal.SIGKILL)


def finish(command: Sequence[str | Path], within_s: float = DEADLINE_S, **options: Any) -> Any:
    """Run a program to its end, and give what it printed and its exit code. Killed at the deadline."""
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, timeout=within_s, check=False, **options)


class Process:
    """One server, whatever its arguments; its output goes to a file."""

    def __init__(
        self, name: str, arguments: Sequence[str | Path], log: Path, prefix: Sequence[str] = ()
    ) -> None:
        """prefix: a command that becomes the one that follows it, elsewhere."""
        self.name = name
        self.prefix = prefix
        self.arguments = [str(word) for word in arguments]
        self.log_path = log
        self.child: subprocess.Popen[bytes] | None = None
        self.program = SERVER
        self.environment: dict[str, str] = {}  # what the next start has in it besides ours

    def start(self, *more: str) -> None:
        """Start it; it must not be running."""
        assert not self.running, f"{self.name} runs already"
        with self.log_path.open("ab") as log:
            self.child = subprocess.Popen(
                [*self.prefix, sys.executable, str(self.program), *self.arguments, *more],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=PROJECT, preexec_fn=die_with_parent,
                env={**os.environ, **self.environment},
            )  # fmt: skip

    @property
    def running(self) -> bool:
        return self.child is not None and self.child.poll() is None

    @property
    def pid(self) -> int:
        assert self.child is not None
        return self.child.pid

    def signal(self, number: int) -> None:
        """Send it a signal; it must be running."""
        assert self.running and self.child is not None, f"{self.name} does not run:\n{self.log(LOG_LINES)}"
        self.child.send_signal(number)

    def wait(self, within_s: float = DEADLINE_S) -> int:
        """Its exit code; negative: ended by that signal."""
        assert self.child is not None
        return self.child.wait(within_s)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def end(self) -> None:
        """Make sure that it is gone, in whatever state it is."""
        if self.running and self.child is not None:
            self.child.kill()  # ends a paused process too
            self.child.wait()

    def log(self, lines: int = 0) -> str:
        """What it has printed; with `lines`, the last so many."""
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return "\n".join(text.splitlines()[-lines:]) if lines else text


class Processes:
    """Ends what was started in it. What a failing test has to say is in the logs: they are printed."""

    def __init__(self) -> None:
        self.all: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.all:
            process.end()
        if kind is not None:
            for process in self.all:
                code = process.child.returncode if process.child else None
                print(f"--- {process.name} (exit code {code}), the end of its log:\n{process.log(LOG_LINES)}")


class RealCluster(Processes):
    """Some nodes of server.py, all of them started and ready when the block begins."""

    def __init__(
        self,
        directory: Path,
        nodes: int = 5,
        name: str = "test",
        file: Path | None = None,
        where: Callable[[int], Sequence[str]] = lambda node: (),
        program: Path = SERVER,
        **settings: Any,
    ) -> None:
        """Take a cluster.json (`file`), or make one.

        `where` is what each node's command begins with, and `program` runs in the place of server.py. Unless
        a test asks for it, no node repairs itself: a recovery that wrongly finds damage must be seen.
        """
        super().__init__()
        self.directory = directory
        self.file = file or cluster_file(directory, nodes, name, **{"self_repair": False, **settings})
        self.where = where
        self.program = program
        self.data = directory / "data"
        self.settings: Cluster = load(self.file)
        self.ids = [member.id for member in self.settings.nodes]
        self.nodes = {node: self._process(node) for node in self.ids}
        self.all += self.nodes.values()

    def _process(self, node: int) -> Process:
        arguments = ["--id", str(node), "--cluster", self.file, "--data", self.data]
        log = self.directory / f"node-{node}.log"
        process = Process(f"node {node}", arguments, log, self.where(node))
        process.program = self.program
        return process

    def __enter__(self) -> Self:
        try:
            for process in self.all:
                process.start("--init")
            self.wait_until_ready()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def client(self, timeout: float = DEADLINE_S, first: int = 0) -> Client:
        """A client of all nodes."""
        return Client(self.settings, timeout=timeout, first=first)

    def status(self, node: int, digest: bool = False) -> Status | None:
        """What the node says of itself; None if it does not answer."""
        with self.client(timeout=5) as client:
            try:
                return client.status(node, digest)
            except ClientError:
                return None

    def applied(self) -> int:
        """Commands that the node which is furthest has applied since it started."""
        told = [self.status(node) for node in self.ids if self.nodes[node].running]
        return max((status.counters["commands_applied"] for status in told if status), default=0)

    def wait_until_ready(self, nodes: Iterable[int] | None = None) -> None:
        """Until these nodes (default: all) take commands."""
        for node in self.ids if nodes is None else nodes:

            def ready(node: int = node) -> bool:
                assert self.nodes[node].running, f"node {node} ended:\n{self.nodes[node].log(LOG_LINES)}"
                status = self.status(node)
                return status is not None and status.ready

            eventually(ready, f"node {node} takes commands")

    def kill(self, *nodes: int) -> None:
        """kill -9, all of them at once."""
        for node in nodes:
            self.nodes[node].signal(signal.SIGKILL)
        for node in nodes:
            assert self.nodes[node].wait() == -signal.SIGKILL

    def pause(self, node: int) -> None:
        """SIGSTOP."""
        self.nodes[node].signal(signal.SIGSTOP)

    def resume(self, node: int) -> None:
        """SIGCONT."""
        self.nodes[node].signal(signal.SIGCONT)

    def restart(self, *nodes: int) -> None:
        """Start nodes that have ended; returns when they take commands."""
        for node in nodes:
            self.nodes[node].start()
        self.wait_until_ready(nodes)

    def stop(self) -> dict[int, int]:
        """SIGTERM to all nodes that run; their exit codes."""
        running = [node for node in self.ids if self.nodes[node].running]
        for node in running:
            self.nodes[node].signal(signal.SIGTERM)
        return {node: self.nodes[node].wait() for node in running}

    def store(self, node: int) -> dict[str, str] | None:
        """All that this node has, in its order; None if it does not answer."""
        with self.client(timeout=10) as client:
            try:
                return {item.key: item.value for item in client.scan(read="local", node=node)}
            except ClientError:
                return None

    def wait_until_stores_are_equal(self) -> dict[str, str]:
        """Until all nodes hold the same keys and values, byte for byte, in the same order; returns them."""
        contents: list[bytes] = []

        def equal() -> bool:
            stores = [self.store(node) for node in self.ids]
            contents[:] = [json.dumps(list(store.items())).encode() for store in stores if store is not None]
            return len(contents) == len(self.ids) and len(set(contents)) == 1

        eventually(equal, "all nodes hold the same")
        digests = {status.digest for node in self.ids if (status := self.status(node, digest=True))}
        assert len(digests) == 1, f"equal contents, but digests {digests}"
        return dict(json.loads(contents[0]))


class Load:
    """`client.py run` in the background: its exit code, summary and history.

    target: --cluster FILE or --single HOST:PORT. prefix: a command that runs it elsewhere.
    """

    def __init__(
        self,
        target: Sequence[str | Path],
        csv: Path,
        *options: str,
        timeout: float = 60.0,
        prefix: Sequence[str] = (),
    ) -> None:
        self.out = csv.with_suffix(".out")
        self.history = csv.with_suffix(".history")
        self.csv = csv
        words = ["run", csv, *target, "--out", self.out, "--history", self.history]
        words += ["--timeout", str(timeout), *options]
        self.child = subprocess.Popen(
            [*prefix, sys.executable, str(CLIENT), *map(str, words)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True, preexec_fn=die_with_parent,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.child.poll() is None:
            os.killpg(self.child.pid, signal.SIGKILL)  # its processes too
        self.child.communicate()

    @property
    def running(self) -> bool:
        return self.child.poll() is None

    def wait(self, within_s: float = 4 * DEADLINE_S) -> int:
        """Its exit code."""
        self.output, _ = self.child.communicate(timeout=within_s)
        return self.child.returncode

    def summary(self) -> dict[str, Any]:
        """summary.json."""
        value: dict[str, Any] = json.loads((self.out / "summary.json").read_text())
        return value

    def operations(self) -> list[Operation]:
        """The history."""
        return load_history(self.history)

    def expect_success(self) -> None:
        """It ends with exit code 0, all rows done and none failed."""
        code = self.wait()
        totals = self.summary()
        lost = {name: totals[name] for name in ("failed", "unknown", "malformed")}
        assert (code, lost) == (0, {"failed": 0, "unknown": 0, "malformed": 0}), self.output
        with self.csv.open() as rows:
            assert totals["operations"] == totals["ok"] + totals["not_found"] == sum(1 for _ in rows)


class Clients:
    """Clients in threads, for as long as the block lasts: their history, and what failed.

    A client is a new one after every CALLS operations, and begins at another node: all nodes have some. Keys
    change as time goes on, so that no key has a long history; every value is written once.
    """

    CALLS = 25
    PER_ERA, KEYS = 300, 8

    def __init__(
        self, cluster: RealCluster, count: int = 2, only: Sequence[int] = (), size: int = 200
    ) -> None:
        """only: the nodes at which clients begin (default: all); size: characters of a value."""
        self.cluster = cluster
        self.starts = [cluster.ids.index(node) for node in only or cluster.ids]
        self.size = size
        self.operations: list[Operation] = []
        self.failures: list[str] = []
        self.numbers = itertools.count()
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(count)]

    def __enter__(self) -> Self:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.over.set()
        if kind is None:  # a test that has failed does not wait for answers that may never come
            for thread in self.threads:
                thread.join()

    def _run(self, index: int) -> None:
        source = random.Random(index)
        while not self.over.is_set():
            with self.cluster.client(first=source.choice(self.starts)) as client:
                for _ in range(self.CALLS):
                    self._one(client, index, source)

    def _one(self, client: Client, index: int, source: random.Random) -> None:
        number = next(self.numbers)
        key = f"key-{number // self.PER_ERA}-{source.randrange(self.KEYS)}"
        kind = source.choices(("put", "get", "delete"), (60, 32, 8))[0]
        value = f"{number} ".ljust(self.size, "x") if kind == "put" else None
        answer, outcome, call = None, "ok", time.monotonic_ns()
        try:
            if value is not None:
                client.put(key, value)
            elif kind == "get":
                answer = client.get(key)
                outcome = "not_found" if answer is None else "ok"
            else:
                outcome = "ok" if client.delete(key) else "not_found"
        except ClientError as error:
            self.failures.append(f"{kind} {key}: {error}")
            outcome = "failed" if isinstance(error, NotDoneError) else "unknown"
        self.operations.append(
            Operation(
                client=index, kind=kind, key=key, value=value, answer=answer, call=call,
                return_=time.monotonic_ns(), outcome=outcome,
            )
        )  # fmt: skip

    def progress(self, operations: int) -> None:
        """Wait until so many more are done."""
        wanted = len(self.operations) + operations
        eventually(lambda: len(self.operations) >= wanted, f"{operations} more operations are done")


def contended(path: Path, rows: int, keys: int, seed: int) -> Path:
    """A file of operations on few keys, so that they meet; every value is written once."""
    source = random.Random(seed)
    with path.open("w") as file:
        for row in range(rows):
            key = f"key-{source.randrange(keys)}"
            verb = source.choices(("PUT", "GET", "DELETE"), (50, 42, 8))[0]
            file.write(f"PUT,{key},value-{row}\n" if verb == "PUT" else f"{verb},{key}\n")
    return path


def final_reads(store: dict[str, str], operations: Sequence[Operation]) -> list[Operation]:
    """What reads of all keys would have answered after everything else.

    With them, a history is wrong if an acknowledged write is not in the store.
    """
    now = time.monotonic_ns()
    keys = sorted({operation.key for operation in operations} | set(store))
    return [
        Operation(
            client=-1, kind="get", key=key, answer=store.get(key), call=now, return_=now,
            outcome="ok" if key in store else "not_found",
        )
        for key in keys
    ]  # fmt: skip
