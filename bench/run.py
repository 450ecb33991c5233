#!/usr/bin/env python3
"""Measures the cluster beside the single server, and peers, and writes tables, charts and a report.

The plan is a list of groups, each of systems that are compared with one another. It is gone through once for
each repeat; in a group the systems take turns, so that what else happens on the machine touches all of them
alike. Each system is started afresh for its turn, warmed up, measured and ended (systems.py); only one
runs at any time. All samples are written to results.json, from which report.py makes the rest.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any, Final, NamedTuple

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from paxoskv import compiled, program

program.begin(*program.PACKAGES, "matplotlib", "markdown_it", called="bench.sh")

from bench import report as bench_report
from bench.systems import (
    BATCH,
    OWN,
    BenchError,
    Etcd,
    Floor,
    Load,
    Paxos,
    PySyncObj,
    Running,
    Sample,
    Single,
    System,
    build_etcd_load,
    build_floor,
    check_pysyncobj,
)
from paxoskv import config
from paxoskv.client import rows as row_files
from scripts import make_workload

WORKLOAD: Final = PROJECT / "workload.csv"
PARTS: Final = ("original", "tables", "scaling", "mix", "batches", "leader", "failures", "fault")
PEERS: Final = ("etcd", "pysyncobj")
FULL: Final = 150_000
LEVELS: Final = (1, 2, 4, 8, 16, 32, 64)  # outstanding operations
MIX_LEVEL: Final = 32
SHARES_OF_GETS: Final = (0.0, 0.5, 1.0)
PROBABILITIES: Final = (0.0, 0.01, 0.05, 0.2)
FAILING: Final = {"probability": 0.05, "silence_s": 1, "every_s": 10}  # acceptors, as in the original
KEYS: Final = 500  # of the files that we make here
FASTEST: Final = 6000  # operations per second of two closed-loop clients: a fault run must not end early
SETTLE_S: Final = 1.0  # after the warm-up: a new node still writes the zeros of its next journal segment
INTERRUPTED: Final = 130

Start = Callable[[Path], System]  # makes a system in a directory


class Task(NamedTuple):
    """One thing to measure on a running system, at one value of x."""

    x: float
    measure: Callable[[Any], Sample]


class Turn(NamedTuple):
    """What is measured on one system while it runs."""

    part: str
    system: str
    start: Start
    tasks: list[Task]


# ----------------------------------------------------------------------------------------------------- files


def mixed(rows: int, gets: float, seed: int) -> Iterator[make_workload.Row]:
    """So many rows, of which that share, evenly mixed, are GETs and the others PUTs, of KEYS keys."""
    source = random.Random(seed)
    verbs = ["GET"] * round(rows * gets) + ["PUT"] * (rows - round(rows * gets))
    source.shuffle(verbs)
    for number, verb in enumerate(verbs):
        key = f"key-{source.randrange(KEYS)}"
        yield ("GET", key) if verb == "GET" else ("PUT", key, f"value-{number}")


class Files:
    """The files of operations; each is made once. All keys begin with `own`."""

    def __init__(self, directory: Path, given: Path = WORKLOAD, own: str = "") -> None:
        self.directory = directory
        self.given = given
        self.own = own

    def original(self, rows: int) -> Path:
        """The given file, repeated as in the original experiment."""
        return self.made(f"original-{rows}", lambda: make_workload.repeat(self.given, rows))

    def mixed(self, rows: int, gets: float) -> Path:
        """With this share of GETs."""
        return self.made(f"mixed-{rows}-{gets:g}", lambda: mixed(rows, gets, seed=1))

    def warm_up(self) -> Load:
        """Every key is written once."""
        rows = [("PUT", f"key-{number}", "value") for number in range(KEYS)]
        in_flight = 16 if self.own else 2  # hosts may be far away
        return Load(self.made("warm-up", lambda: rows), KEYS, 2, in_flight)

    def made(self, name: str, rows: Callable[[], Iterable[make_workload.Row]]) -> Path:
        """The file of this name with these rows."""
        path = self.directory / f"{name}.csv"
        if not path.exists():
            with path.open("w", encoding="utf-8", newline="") as file:
                make_workload.write(file, ([verb, self.own + key, *rest] for verb, key, *rest in rows()))
        return path


def outstanding(level: int, file: Path, rows: int) -> Load:
    """So many operations at a time, from two processes if there are as many."""
    processes = min(level, 2)
    return Load(file, rows, processes, level // processes)


# ------------------------------------------------------------------------------------------------------ plan


def plan(options: argparse.Namespace, files: Files, peers: dict[str, Start]) -> list[list[Turn]]:
    """The groups to measure."""
    failing, healthy, ours = running(options) if options.cluster else started()
    rows = options.rows
    groups = []

    def group(part: str, who: dict[str, Start], tasks: list[Task]) -> None:
        if part in options.parts:
            groups.append([Turn(part, name, start, tasks) for name, start in who.items()])

    for size in options.sizes:
        tasks = [Task(size, methodcaller("run", Load(files.original(size), size)))]
        groups.append([
            Turn(part, name, start, tasks)
            for part, who in (("original", failing), ("tables", {**healthy, **ours, **peers}))
            for name, start in who.items()
            if part in options.parts
        ])  # fmt: skip
    tasks = [
        Task(level, methodcaller("run", outstanding(level, files.mixed(rows, 0.5), rows)))
        for level in options.levels
    ]
    others = {way: start for way, start in healthy.items() if way != "own-logs"}
    group("scaling", {**others, **ours, **peers}, tasks)
    tasks = [
        Task(gets, methodcaller("run", outstanding(MIX_LEVEL, files.mixed(rows, gets), rows)))
        for gets in SHARES_OF_GETS
    ]
    group("mix", ours, tasks)
    batches = max(rows * 20 // BATCH, 2)
    tasks = [Task(n, methodcaller("batches", batches, n)) for n in (1, 4, 32)]
    group("batches", ours, tasks)
    if options.cluster:
        return groups
    work = Load(files.mixed(rows, 0.5), rows)
    places = [Task(x, methodcaller("run_at", work, x)) for x in (1, 0)]
    group("leader", {"leader": healthy["leader"]}, places)
    if "failures" in options.parts:
        groups.append([
            Turn("failures", "paxos", partial(Paxos, acceptor_failures={"probability": chance}),
                 [Task(chance, methodcaller("run", work))])
            for chance in PROBABILITIES
        ])  # fmt: skip
    seconds = options.fault_seconds
    count = int(seconds * FASTEST)
    work = Load(files.mixed(count, 0.5), count) if "fault" in options.parts else Load(Path(), 0)
    group("fault", {"paxos": Paxos}, [Task(0, methodcaller("fault", work, seconds))])
    return groups


Systems = dict[str, Start]


def started() -> tuple[Systems, Systems, Systems]:
    """The ways to propose, with acceptors that fail and healthy, reads through the log; and the others."""
    healthy = {way: partial(Paxos, read="log", proposing=way) for way in config.WAYS}
    failing = {way: partial(start, acceptor_failures=FAILING) for way, start in healthy.items()}
    return failing, healthy, {"paxos": Paxos, "single": Single}


def running(options: argparse.Namespace) -> tuple[Systems, Systems, Systems]:
    """The same for a cluster that runs already, and perhaps a single server."""
    cluster = config.load(options.cluster)
    way = cluster.proposing
    start = partial(Running, where=cluster, target=["--cluster", options.cluster])
    through_log = {way: partial(start, read="log")}
    failing = any(value > 0 for value in dataclasses.astuple(cluster.acceptor_failures))
    ours: Systems = {"paxos": start} if way == "own-logs" else {}
    if options.single:
        ours["single"] = partial(Running, where=options.single, target=["--single", options.single])
    return (through_log, {}, ours) if failing else ({}, through_log, ours)


def installed(names: Sequence[str], directory: Path) -> dict[str, Start]:
    """The peers among these that can be measured; of the others, the reason is told on stderr."""
    found: dict[str, Start] = {}
    for name in names:
        try:
            if name == "etcd":
                found[name] = partial(Etcd, program=build_etcd_load(directory))
            elif name == "floor":
                found[name] = partial(Floor, program=build_floor(directory))
            else:
                check_pysyncobj()
                found[name] = PySyncObj
        except BenchError as error:
            print(f"{program.name()}: left out: {error}", file=sys.stderr)
    return found


# ----------------------------------------------------------------------------------------------------- going


def measure(groups: list[list[Turn]], repeats: int, directory: Path, warm_up: Load,
            tell: Callable[[Sample], None]) -> list[Sample]:  # fmt: skip
    """Carry the plan out. What cannot be measured gives a sample with a problem, and the rest goes on."""
    samples: list[Sample] = []
    for repeat in range(repeats):
        for group in groups:
            for turn in group:
                for x, sample in take(turn, directory / "system", warm_up):
                    head = {"part": turn.part, "system": turn.system, "x": x, "repeat": repeat}
                    samples.append({**head, **sample})
                    tell(samples[-1])
    return samples


def take(turn: Turn, directory: Path, warm_up: Load) -> list[tuple[float, Sample]]:
    """One turn's samples."""
    samples: list[tuple[float, Sample]] = []
    try:
        with turn.start(directory) as system:
            system.run(warm_up)
            time.sleep(SETTLE_S)
            for task in turn.tasks:
                samples.append((task.x, task.measure(system)))
    except BenchError as error:
        samples += [(task.x, {"problem": str(error)}) for task in turn.tasks[len(samples) :]]
    return samples


class Progress:
    """A line on stderr for each run that is done, of so many."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0

    def tell(self, sample: Sample) -> None:
        """One more is done."""
        self.done += 1
        result = sample["problem"] or f"{sample.get('throughput', 0):,.0f} operations/s"
        if sample.get("recovered_s") is not None:
            result = f"recovered after {sample['recovered_s']:.1f} s"
        what = f"{sample['part']} {sample['x']:g} {sample['system']}: {result}"
        print(f"{self.done}/{self.total} {what}", file=sys.stderr, flush=True)


# -------------------------------------------------------------------------------------------------- manifest


def manifest(options: argparse.Namespace, peers: Sequence[str]) -> dict[str, Any]:
    """What the numbers depend on."""
    interpreted = os.environ.get("PAXOSKV_INTERPRETED") or not compiled.directory().exists()
    nodes = "running already" if options.cluster else "interpreted" if interpreted else "compiled"
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "load_average_before": list(os.getloadavg()),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in ("thrift", "pickledb", "uvloop")},
        "nodes": nodes,
        "revision": _output("git", "rev-parse", "HEAD"),
        "dirty": bool(_output("git", "status", "--porcelain")),
        "settings": {
            name: getattr(options, name)
            for name in ("sizes", "repeat", "peers", "parts", "rows", "levels", "fault_seconds")
        },
    }
    if options.workload != WORKLOAD:
        found["settings"]["workload"] = options.workload.name
    if "etcd" in peers:
        found["etcd"] = _output("etcd", "--version").partition("\n")[0].rpartition(" ")[2]
    if "pysyncobj" in peers:
        found["packages"]["pysyncobj"] = importlib.metadata.version("pysyncobj")
    return found


def _field(path: str, name: str) -> str:
    """A field of one of the kernel's lists; empty if it is not there."""
    with contextlib.suppress(OSError):
        found = re.search(rf"^{name}\s*:\s*(.*)$", Path(path).read_text(), re.MULTILINE)
        return found[1] if found else ""
    return ""


def _output(*command: str) -> str:
    """What a program prints; empty if it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


# ----------------------------------------------------------------------------------------------- command line


def bench(options: argparse.Namespace) -> int:
    """Measure, and write the results. 1 if some runs failed."""
    options.out.mkdir(parents=True, exist_ok=True)
    run = PROJECT / "run"  # on the project's disk: the journals' fsyncs are what is measured
    run.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_if_empty, run)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=run)))
        peers = installed([] if options.cluster else [*options.peers, "floor"], directory)
        files = Files(directory, options.workload, OWN if options.cluster else "")
        groups = plan(options, files, peers)
        facts = manifest(options, [*peers])
        total = options.repeat * sum(len(turn.tasks) for group in groups for turn in group)
        samples = measure(groups, options.repeat, directory, files.warm_up(), Progress(total).tell)
    (options.out / "results.json").write_text(json.dumps(samples))
    (options.out / "manifest.json").write_text(json.dumps(facts, indent=2) + "\n")
    bench_report.write(options.out)
    for problem in bench_report.problems(samples):
        print(f"not used: {problem}", file=sys.stderr)
    if options.readme:
        bench_report.into_documents(options.out, PROJECT)
    print((options.out / "tables.md").read_text())
    print(f"{options.out / 'report.html'} shows all of it")
    return 1 if any(sample["problem"] for sample in samples) else 0


def _remove_if_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()


def compare(options: argparse.Namespace) -> int:
    """Print two results side by side."""
    results = []
    for name, directory in (("A", options.a), ("B", options.b)):
        results.append(json.loads((directory / "results.json").read_text()))
        facts = json.loads((directory / "manifest.json").read_text())
        dirty = " (dirty)" if facts["dirty"] else ""
        print(f"{name}: {directory}, {facts['date']}, {facts['revision'][:12]}{dirty}, {facts['cores']} x "
              f"{facts['processor']}, Python {facts['python']}")  # fmt: skip
    print(bench_report.compare(*results))
    return 0


def report(options: argparse.Namespace) -> int:
    """Make the report again."""
    bench_report.write(options.directory)
    if options.readme:
        bench_report.into_documents(options.directory, PROJECT)
    return 0


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers above 0, like 1,2,3")
    return numbers


def _levels(text: str) -> list[int]:
    numbers = _numbers(text)
    if any(number % 2 and number != 1 for number in numbers):
        raise argparse.ArgumentTypeError("two processes share the operations: 1, or even numbers")
    return numbers


def _some(known: Sequence[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        found = text.split(",")
        if unknown := set(found) - {*known}:
            raise argparse.ArgumentTypeError(f"{min(unknown)!r} is none of {','.join(known)}")
        return found

    return names


def _workload(text: str) -> Path:
    """A file of operations without malformed rows: not every system's client leaves these out."""
    try:
        rows, bad = row_files.parse(Path(text).read_bytes())
    except row_files.WrongFile as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from None
    if bad or not rows:
        reason = f"{bad[0].line}: {bad[0].reason}" if bad else " no operations in it"
        raise argparse.ArgumentTypeError(f"{text}:{reason}")
    return Path(text)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="bench.sh",
        description="Measure the cluster beside the single server, and write tables, charts and a report.",
        epilog="also: bench.sh compare A B (two results side by side); bench.sh report DIR (make the report "
               "of a result again)",
    )  # fmt: skip
    add = top.add_argument
    add("--sizes", type=_numbers, default=[150, 450, 1500, 15000], metavar="N,...",
        help="operations of the original tables (default: 150,450,1500,15000)")  # fmt: skip
    add("--full", action="store_true", help=f"and {FULL}")
    add("--workload", type=_workload, default=WORKLOAD, metavar="FILE",
        help="what to repeat for these sizes, as the original did (default: workload.csv)")  # fmt: skip
    add("--cluster", metavar="FILE",
        help=f"measure a cluster that runs already; only keys that begin with {OWN} are touched")  # fmt: skip
    add("--single", metavar="HOST:PORT", help="with --cluster: the single server that runs already")
    add("--repeat", type=program.positive, default=5, metavar="N", help="runs of each (default: %(default)s)")
    add("--out", type=program.new_file, default=Path("results"), metavar="DIR",
        help="where to write; what is there is replaced (default: %(default)s)")  # fmt: skip
    add("--peers", type=_some(PEERS), default=[], metavar="NAME,...",
        help=f"compare with these, where they are installed ({','.join(PEERS)})")  # fmt: skip
    add("--readme", action="store_true",
        help="put the tables into docs/performance.md, the shortest and a chart into README.md")  # fmt: skip
    add("--parts", type=_some(PARTS), default=[*PARTS], metavar="NAME,...",
        help=f"only these parts (default: {','.join(PARTS)})")  # fmt: skip
    add("--rows", type=program.positive, default=8000, metavar="N",
        help="operations of a run in the other parts than tables (default: %(default)s)")  # fmt: skip
    add("--levels", type=_levels, default=[*LEVELS], metavar="N,...",
        help=f"outstanding operations of the scaling (default: {','.join(map(str, LEVELS))})")  # fmt: skip
    add("--fault-seconds", type=float, default=12.0, metavar="S",
        help="length of the run in which a node is killed (default: %(default)g)")  # fmt: skip
    return top


def parse(words: list[str]) -> tuple[Callable[[argparse.Namespace], int], argparse.Namespace]:
    """What the words ask for."""
    if words[:1] == ["compare"]:
        two = argparse.ArgumentParser(
            prog="bench.sh compare",
            description="Two results side by side, the ratio of their medians, and whether they differ by "
                        "more than their spread: whether the ranges of their runs are apart.",
        )  # fmt: skip
        two.add_argument("a", type=Path, metavar="A", help="directory of a result")
        two.add_argument("b", type=Path, metavar="B", help="directory of another")
        return compare, two.parse_args(words[1:])
    if words[:1] == ["report"]:
        one = argparse.ArgumentParser(
            prog="bench.sh report", description="Make the report of a result again."
        )
        one.add_argument("directory", type=Path, metavar="DIR", help="where its results.json is")
        one.add_argument("--readme", action="store_true", help="put it into the documents as well")
        return report, one.parse_args(words[1:])
    options = parser().parse_args(words)
    if options.single and not options.cluster:
        parser().error("--single: only with --cluster")
    if options.cluster and (options.peers or options.readme):
        parser().error("--cluster: not with --peers or --readme")
    options.sizes += [FULL] if options.full and FULL not in options.sizes else []
    return bench, options


def _stop(*_: object) -> None:
    """The first Ctrl-C or SIGTERM; what is being cleaned up then shall not be interrupted by a second one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    command, options = parse(sys.argv[1:] if words is None else words)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        return command(options)
    except OSError as error:
        print(f"{program.name()}: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        missing = command is not bench and isinstance(error, FileNotFoundError)  # what it reads
        return program.USAGE if missing else program.OUTPUT
    except (BenchError, ValueError) as error:
        print(f"{program.name()}: {error}", file=sys.stderr)
        return program.USAGE
    except KeyboardInterrupt:
        print(f"{program.name()}: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
