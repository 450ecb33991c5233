"""What the measuring scripts share: nodes of their own as processes, and clients that load them."""

import multiprocessing
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from paxoskv import program

program.begin(*program.PACKAGES)

from paxoskv import Client, ClientError, Cluster, load

POLL_S = 0.02
START_S = 90.0  # a node that takes longer is broken
KEYS = 100


class Load:
    """A client in a process of its own that writes and reads, and remembers when.

    So no other thread disturbs its times. `done` and `failures` are there once it has been stopped.
    """

    def __init__(self, settings: Cluster, index: int) -> None:
        self.done: list[tuple[float, float]] = []  # when each operation began, and when it was answered
        self.failures: list[str] = []
        context = multiprocessing.get_context("spawn")
        self._count, self._over = context.Value("L", 0, lock=False), context.Event()
        self._results, results = context.Pipe(duplex=False)
        arguments = (settings, index, self._count, self._over, results)
        self._process = context.Process(target=_load, args=arguments, daemon=True)
        with signals_wait():
            self._process.start()
        results.close()

    @property
    def count(self) -> int:
        """Operations done so far."""
        return self._count.value

    def stop(self) -> None:
        self._over.set()
        if self._process.is_alive():
            try:
                self.done, self.failures = self._results.recv()
            except EOFError:
                self.failures.append("the client's process ended")
        self._process.join()


def _load(settings: Cluster, index: int, count: Any, over: Any, results: Any) -> None:
    """The process of a Load. It ends with the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, done, failures = random.Random(index), [], []
    with Client(settings, first=index) as client:
        while not over.is_set():
            key, began = f"key {source.randrange(KEYS)}", time.monotonic()
            try:
                if len(done) % 2:
                    client.get(key)
                else:
                    client.put(key, str(began))
                done.append((began, time.monotonic()))
                count.value += 1
            except ClientError as error:
                failures.append(f"{type(error).__name__}: {error}")
    results.send((done, failures))


class Nodes:
    """The processes, in a directory; `more` are words for scripts/make_cluster.py."""

    def __init__(self, directory: Path, count: int, *more: str) -> None:
        make = [sys.executable, PROJECT / "scripts" / "make_cluster.py", "--nodes", str(count), *more]
        self.directory, self.file = directory, directory / "cluster.json"
        self.file.write_text(subprocess.run(make, check=True, capture_output=True, text=True).stdout)
        self.settings = load(self.file)
        self.ids = [member.id for member in self.settings.nodes]
        self.children: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, node: int, *more: str, before: Callable[[], None] | None = None) -> None:
        """Start it; `before` is what its process does first."""
        command = [sys.executable, PROJECT / "server.py", "--id", str(node), "--cluster", self.file]
        with (self.directory / f"node-{node}.log").open("ab") as log, signals_wait():
            self.children[node] = subprocess.Popen(
                [*command, "--data", self.directory / "data", *more], stdout=log, stderr=log,
                preexec_fn=before,
                start_new_session=True,  # Ctrl-C is for us: the nodes end when the clients have
            )  # fmt: skip

    def begin(self, pinned: bool = False, before: dict[int, Callable[[], None]] | None = None) -> None:
        """Start all for the first time, and wait until they take commands; `pinned`: each to a processor."""
        for node in self.ids:
            cpu = ["--cpu", str(node)] if pinned else []
            self.start(node, "--init", *cpu, before=(before or {}).get(node))
        for node in self.ids:
            self.wait(node)

    def kill(self, node: int) -> None:
        self.children[node].kill()
        self.children[node].wait()

    def ready(self, node: int) -> bool:
        """Whether it takes commands. RuntimeError: it has ended, and why."""
        if self.children[node].poll() is not None:
            log = (self.directory / f"node-{node}.log").read_text().strip()
            raise RuntimeError(f"node {node} ended: {log.rpartition(chr(10))[2]}")
        with Client(self.settings, timeout=1) as client:
            try:
                return bool(client.status(node).ready)
            except ClientError:
                return False

    def wait(self, node: int) -> None:
        """Until it takes commands."""
        wait_for(lambda: self.ready(node), f"node {node} takes commands")

    def end(self) -> None:
        for child in self.children.values():
            child.kill()
        for child in self.children.values():
            child.wait()


def experiment(measure: Callable[[Nodes], int | None], count: int, *more: str) -> int:
    """Measure with so many nodes (`more`: as for Nodes), and leave nothing behind; returns the exit code."""
    end_by_signal()
    with tempfile.TemporaryDirectory() as directory:
        nodes = Nodes(Path(directory), count, *more)
        try:
            return measure(nodes) or 0
        except (RuntimeError, KeyboardInterrupt, ClientError) as error:
            print(f"{program.name()}: {str(error) or 'interrupted'}", file=sys.stderr)
            return 130 if isinstance(error, KeyboardInterrupt) else 1
        finally:
            nodes.end()


@contextmanager
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


def end_by_signal() -> None:
    """Let SIGTERM do what Ctrl-C does: KeyboardInterrupt, so that what was started is ended."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def wait_for(condition: Callable[[], bool], what: str, pause: float = POLL_S) -> None:
    deadline = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {START_S:g} s: {what}")
        time.sleep(pause)


def p99(values: Sequence[float]) -> float:
    """The 99th percentile, by nearest rank."""
    return sorted(values)[max(0, -(-len(values) * 99 // 100) - 1)]
