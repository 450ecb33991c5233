"""Runs a file of operations against a cluster, from several processes, and measures each operation.

A file is CSV (RFC 4180, UTF-8): PUT,key,value or GET,key[,expected] or DELETE,key[,ignored]. What is expected
is not compared: other processes write meanwhile. A byte-order mark, blank lines, # comments, a header row and
any kind of line end are fine.

The rows are split into contiguous parts, one for each process. The processes are started and connected, and
have their sessions, before the clock starts. A process sends its rows in order, one at a time, or keeps
`in_flight` of them under way (then neighbouring rows may overtake one another). What came of each row goes
into memory that the parent shares: so it can draw progress without asking, and still knows what was done when
a process dies.

    parse(bytes) -> rows, malformed rows
    run(rows, Settings) -> Run
    summary(Run) -> what summary.json holds; write_operations, write_history, table: its other forms
"""

import asyncio
import contextlib
import csv
import io
import json
import math
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from ctypes import c_bool, c_int8, c_int16, c_int32, c_int64
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.sharedctypes import RawArray, RawValue
from typing import Any, Final, NamedTuple, TextIO

import uvloop

from paxoskv.client.operations import Calls, ClientError, NoNodeReachable, Operation, UnknownOutcome
from paxoskv.client.sync import AsyncClient, Client, nodes_of
from paxoskv.config import Cluster
from paxoskv.wire.validation import MAX_KEY_BYTES, MAX_VALUE_BYTES

VERBS: Final = ("PUT", "GET", "DELETE")
OUTCOMES: Final = ("ok", "not_found", "failed", "unknown")

# How many errors each process tells in full.
TOLD_ERRORS = 3
# How often the parent looks at what was done, in seconds.
LOOK_S = 0.1
# How long processes may take to stop on Ctrl-C before they are killed, in seconds.
STOP_S = 2.0


# -------------------------------------------------------------------------------------------------- the file


class Row(NamedTuple):
    """One operation."""

    verb: str
    key: str
    value: str  # PUT only; else empty


class Malformed(NamedTuple):
    """A row that is none: the line it begins at, from 1, and why."""

    line: int
    reason: str


class _Lines:
    """Lines for csv.reader: comments between rows are left out, and it is known where a row began."""

    def __init__(self, text: str) -> None:
        self._lines = io.StringIO(text, newline="")
        self._line = 0
        self.row: int | None = None  # the line at which the present row began

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        for line in self._lines:
            self._line += 1
            if self.row is None and line.lstrip().startswith("#"):
                continue
            if self.row is None:
                self.row = self._line
            return line
        raise StopIteration


def parse(data: bytes) -> tuple[list[Row], list[Malformed]]:
    """The rows of a file, and those that are malformed."""
    # What is not UTF-8 becomes lone surrogates, so that only the rows that hold it are refused.
    lines = _Lines(data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape"))
    csv.field_size_limit(sys.maxsize)  # ours are checked below, with a better message
    reader = csv.reader(lines, strict=True)
    rows: list[Row] = []
    malformed: list[Malformed] = []
    first = True
    while True:
        lines.row = None
        try:
            fields = next(reader)
        except StopIteration:
            return rows, malformed
        except csv.Error as error:
            malformed.append(Malformed(lines.row or 1, f"not CSV: {error}"))
            continue
        if all(not part.strip() for part in fields[:1]) and len(fields) <= 1:
            continue  # a blank line
        header, first = first and _is_header(fields), False
        if header:
            continue
        row = _row(fields)
        if isinstance(row, str):
            malformed.append(Malformed(lines.row or 1, row))
        else:
            rows.append(row)


def _is_header(fields: Sequence[str]) -> bool:
    return len(fields) > 1 and fields[0].strip().upper() not in VERBS and fields[1].strip().lower() == "key"


def _row(fields: Sequence[str]) -> Row | str:
    """The row, or why it is none."""
    verb = fields[0].strip().upper()
    if verb not in VERBS:
        return f"unknown verb {_shown(fields[0])} (PUT, GET and DELETE are known)"
    if len(fields) < 2 or not fields[1]:
        return f"{verb} without a key"
    if len(fields) > 3:
        return f"{verb} with {len(fields)} fields (at most 3)"
    if verb == "PUT" and len(fields) < 3:
        return "PUT without a value"
    row = Row(verb, fields[1], fields[2] if verb == "PUT" else "")
    try:
        key, value = len(row.key.encode()), len(row.value.encode())
        "".join(fields).encode()
    except UnicodeEncodeError:
        return "not UTF-8"
    if key > MAX_KEY_BYTES:
        return f"a key of {key:,} bytes (at most {MAX_KEY_BYTES:,})"
    if value > MAX_VALUE_BYTES:
        return f"a value of {value:,} bytes (at most {MAX_VALUE_BYTES:,})"
    return row


def _shown(text: str) -> str:
    """On one line, escaped and bounded."""
    return ascii(text if len(text) <= 20 else text[:20] + "...")


# --------------------------------------------------------------------------------------------------- one run


class Settings(NamedTuple):
    """How to run a workload. `timeout` is that of one operation, in seconds."""

    cluster: Cluster | str
    processes: int = 2
    in_flight: int = 1
    read: str = "linearizable"
    timeout: float = 10.0
    answers: bool = False  # whether to keep what the reads answered


class Done(NamedTuple):
    """What came of one row. Times are in ns, by the monotonic clock, which all processes share."""

    number: int  # of the row, from 0
    process: int
    lane: int  # which of the process's in-flight operations
    row: Row
    node: str  # of the last attempt; empty if none was sent
    started: int
    ended: int  # 0: it never was
    outcome: str
    attempts: int
    answer: Any  # GET: the value. DELETE: whether the key existed. None also where it is not known


@dataclass(slots=True)
class Run:
    """A workload that was run. `epoch_ns` added to a time gives ns since 1970."""

    operations: list[Done] = field(default_factory=list)
    epoch_ns: int = 0
    errors: list[str] = field(default_factory=list)  # some of them
    dead: list[str] = field(default_factory=list)  # processes that ended before their work
    interrupted: bool = False
    unreachable: str | None = None  # no node ever was: why


# What a process writes for each row. 0: nothing came of it yet.
_OK, _NOT_FOUND, _FAILED, _UNKNOWN, _UNREACHABLE = 1, 2, 3, 4, 5
_NAMES = ("", "ok", "not_found", "failed", "unknown", "failed")


class _Board:
    """Memory that a process shares with the parent: what came of each of its rows."""

    def __init__(self, size: int) -> None:
        self.started = RawArray(c_int64, size)
        self.ended = RawArray(c_int64, size)
        self.outcome = RawArray(c_int8, size)
        self.node = RawArray(c_int16, size)
        self.attempts = RawArray(c_int32, size)
        self.lane = RawArray(c_int16, size)
        self.stop = RawValue(c_bool, False)


class _Part(NamedTuple):
    """The work of one process."""

    process: int
    start: int  # index of its first row
    rows: list[Row]
    settings: Settings
    board: _Board


class _Last(NamedTuple):
    """The last words of a process: what it cannot put on the board."""

    answers: dict[int, str | None]
    errors: list[str]


def parts(rows: list[Row], processes: int) -> list[tuple[int, list[Row]]]:
    """Contiguous parts, none empty, of sizes that differ by one at most; each with its first row's index."""
    count = min(processes, len(rows))
    cuts = [len(rows) * i // count for i in range(count + 1)]
    return [(start, rows[start:end]) for start, end in pairwise(cuts)]


def run(rows: list[Row], settings: Settings, progress: Callable[[int], None] | None = None) -> Run:
    """Run the rows, of which there must be some.

    `progress` is called several times a second with the number of rows done. KeyboardInterrupt ends the run
    early: what was done is in the result.
    """
    # Not forked: a process that begins with a copy of threads and locks of another may hang.
    context = multiprocessing.get_context("spawn")
    work: list[_Part] = []
    pipes: list[Connection] = []
    processes: list[SpawnProcess] = []
    result = Run(epoch_ns=time.time_ns() - time.monotonic_ns())
    last: dict[int, _Last] = {}
    try:
        for start, part in parts(rows, settings.processes):
            ours, theirs = context.Pipe()
            work.append(_Part(len(work), start, part, settings, _Board(len(part))))
            process = context.Process(target=_work, args=(work[-1], theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        result.unreachable = _start(pipes)
        if result.unreachable is None:
            _watch(work, pipes, last, progress)
        else:
            _stop(work, pipes, last)
    except KeyboardInterrupt:
        result.interrupted = True
        _stop(work, pipes, last)
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(STOP_S)
            if process.is_alive():
                process.kill()
                process.join()
    if result.unreachable is None:
        _collect(result, work, last, processes)
    return result


def _start(pipes: list[Connection]) -> str | None:
    """Let all processes begin, once all have connected. If none could connect: why; nothing was sent then."""
    answers = []
    for pipe in pipes:
        try:
            answers.append(pipe.recv())
        except EOFError:
            answers.append("")  # it died: that is told later
    if all(answers):
        return str(answers[0])
    _go(pipes)
    return None


def _go(pipes: list[Connection]) -> None:
    for pipe in pipes:
        with contextlib.suppress(OSError):  # it died: that is told later
            pipe.send("go")


def _watch(
    work: list[_Part], pipes: list[Connection], last: dict[int, _Last], progress: Callable[[int], None] | None
) -> None:
    """Wait until all processes are done or dead."""
    seen = [0] * len(work)
    waiting = dict(zip(pipes, range(len(work)), strict=True))
    while waiting:
        for pipe in wait(list(waiting), LOOK_S):
            assert isinstance(pipe, Connection)
            _hear(pipe, waiting.pop(pipe), last)
        if progress:
            for i, part in enumerate(work):
                outcome = part.board.outcome
                while seen[i] < len(part.rows) and outcome[seen[i]]:
                    seen[i] += 1
            progress(sum(seen))


def _hear(pipe: Connection, process: int, last: dict[int, _Last]) -> None:
    with contextlib.suppress(EOFError, OSError):
        last[process] = pipe.recv()


def _stop(work: list[_Part], pipes: list[Connection], last: dict[int, _Last]) -> None:
    """Tell the processes to stop, and hear their last words, but do not wait for ever."""
    for part in work:
        part.board.stop.value = True
    _go(pipes)  # to those that still wait for it
    deadline = time.monotonic() + STOP_S
    for process, pipe in enumerate(pipes):
        if process in last:
            continue
        while pipe.poll(max(0.0, deadline - time.monotonic())):
            try:
                word = pipe.recv()
            except (EOFError, OSError):
                break
            if isinstance(word, _Last):
                last[process] = word
                break


def _collect(result: Run, work: list[_Part], last: dict[int, _Last], processes: list[SpawnProcess]) -> None:
    """Read what the processes left."""
    names = [
        str(node.id) if node.id is not None else str(node) for node in nodes_of(work[0].settings.cluster)
    ]
    for part, process in zip(work, processes, strict=True):
        words = last.get(part.process)
        if words is None and not result.interrupted:
            result.dead.append(
                f"process {part.process} ended before its work was done (exit code {process.exitcode})"
            )
        result.errors += words.errors if words else []
        for i in range(len(part.rows)):
            if part.board.started[i] or not result.interrupted:
                result.operations.append(_done(part, i, names, words.answers if words else {}))
    if work and all(code == _UNREACHABLE for part in work for code in part.board.outcome):
        result.unreachable = "no node could be reached"


def _done(part: _Part, i: int, names: list[str], answers: dict[int, str | None]) -> Done:
    board, row = part.board, part.rows[i]
    code = board.outcome[i]
    started, ended = board.started[i], board.ended[i] if code else 0
    if code:
        outcome = _NAMES[code]
    else:  # the process died: a write that was under way may have been done
        outcome = "unknown" if started and row.verb != "GET" else "failed"
    sent = board.attempts[i] > 0
    answer: Any = answers.get(i) if row.verb == "GET" else None
    if row.verb == "DELETE" and code in (_OK, _NOT_FOUND):
        answer = code == _OK
    return Done(part.start + i, part.process, board.lane[i], row, names[board.node[i]] if sent else "",
                started, ended, outcome, board.attempts[i], answer)  # fmt: skip


# ------------------------------------------------------------------------------------------- in each process


class _Worker:
    """One process's side of it."""

    def __init__(self, part: _Part) -> None:
        self.rows, self.board, self.read = part.rows, part.board, part.settings.read
        self.answers: dict[int, str | None] | None = {} if part.settings.answers else None
        self.errors: list[str] = []
        self.writes = any(row.verb != "GET" for row in part.rows)
        self.parent = os.getppid()

    @property
    def stopped(self) -> bool:
        """Whether nobody wants the rest done: we were told, or the parent was killed."""
        return self.board.stop.value or os.getppid() != self.parent

    def begin(self, calls: Calls, i: int) -> Operation:
        """The operation of row i, whose clock starts now."""
        verb, key, value = self.rows[i]
        self.board.started[i] = time.monotonic_ns()
        if verb == "PUT":
            return calls.put(key, value)
        return calls.get(key, self.read) if verb == "GET" else calls.delete(key)

    def end(self, i: int, operation: Operation, answer: Any) -> None:
        """Row i was answered. (A put's answer is None, and so is that of a get that finds nothing.)"""
        board = self.board
        board.ended[i] = time.monotonic_ns()
        board.node[i] = operation.node
        board.attempts[i] = operation.attempts
        verb = self.rows[i].verb
        board.outcome[i] = _NOT_FOUND if answer is False or (answer is None and verb == "GET") else _OK
        if self.answers is not None and verb == "GET":
            self.answers[i] = answer

    def fail(self, i: int, operation: Operation, error: ClientError) -> None:
        """Row i was not answered."""
        board = self.board
        board.ended[i] = time.monotonic_ns()
        board.node[i] = max(operation.node, 0)
        board.attempts[i] = operation.attempts
        if isinstance(error, UnknownOutcome):
            board.outcome[i] = _UNKNOWN
        else:
            board.outcome[i] = _UNREACHABLE if isinstance(error, NoNodeReachable) else _FAILED
        if len(self.errors) < TOLD_ERRORS:
            self.errors.append(str(error))


def _work(part: _Part, pipe: Connection) -> None:
    """What a process does, from its start to its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and tells us to stop
    worker = _Worker(part)
    if part.settings.in_flight == 1:
        _one_at_a_time(part, worker, pipe)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_many_at_a_time(part, worker, pipe))
    pipe.send(_Last(worker.answers or {}, worker.errors))
    with contextlib.suppress(EOFError, OSError):
        pipe.recv()  # until all are done: to end takes time on a processor that the others are measured on


def _one_at_a_time(part: _Part, worker: _Worker, pipe: Connection) -> None:
    settings = part.settings
    with Client(settings.cluster, timeout=settings.timeout, first=part.process) as client:
        refused = ""
        try:
            client.connect()
            if worker.writes:
                client.open_session()
        except NoNodeReachable as error:
            refused = str(error)
        except ClientError:
            pass  # the first write tries again
        pipe.send(refused)
        pipe.recv()
        calls = client.calls
        for i in range(len(part.rows)):
            if worker.stopped:
                break
            operation = worker.begin(calls, i)
            try:
                answer = client.run(operation)
            except ClientError as error:
                worker.fail(i, operation, error)
            else:
                worker.end(i, operation, answer)


async def _many_at_a_time(part: _Part, worker: _Worker, pipe: Connection) -> None:
    settings, board = part.settings, part.board
    async with AsyncClient(settings.cluster, timeout=settings.timeout, first=part.process) as client:
        refused = ""
        try:
            await client.connect()
            if worker.writes:
                await client.open_session()
        except NoNodeReachable as error:
            refused = str(error)
        except ClientError:
            pass  # the first write tries again
        pipe.send(refused)
        pipe.recv()
        rows = iter(range(len(part.rows)))

        async def lane(number: int) -> None:
            for i in rows:
                if worker.stopped:
                    break
                board.lane[i] = number
                operation = worker.begin(client.calls, i)
                try:
                    answer = await client.run(operation)
                except ClientError as error:
                    worker.fail(i, operation, error)
                else:
                    worker.end(i, operation, answer)

        await asyncio.gather(*(lane(number) for number in range(min(settings.in_flight, len(part.rows)))))


# --------------------------------------------------------------------------------------------------- results


def latency(seconds: Sequence[float]) -> dict[str, float | None]:
    """Statistics of latencies; None where there are none. Percentiles are by nearest rank."""
    if not seconds:
        return dict.fromkeys(("mean_s", "stddev_s", "p50_s", "p95_s", "p99_s", "max_s"))
    ranked = sorted(seconds)

    def percentile(share: float) -> float:
        return ranked[max(math.ceil(share * len(ranked)), 1) - 1]

    return {
        "mean_s": statistics.fmean(ranked),
        "stddev_s": statistics.stdev(ranked) if len(ranked) > 1 else 0.0,
        "p50_s": percentile(0.50),
        "p95_s": percentile(0.95),
        "p99_s": percentile(0.99),
        "max_s": ranked[-1],
    }


def _tally(operations: Sequence[Done]) -> dict[str, Any]:
    """Counts, and the latencies of what was answered: failures would only blur them."""
    counts = {name: sum(done.outcome == name for done in operations) for name in OUTCOMES}
    answered = [(d.ended - d.started) / 1e9 for d in operations if d.outcome in ("ok", "not_found")]
    return {"operations": len(operations), **counts, "latency": latency(answered)}


def summary(result: Run, malformed: int) -> dict[str, Any]:
    """What summary.json holds. Seconds run from the first operation's start to the last one's end."""
    operations = result.operations
    total = _tally(operations)
    ends = [done.ended for done in operations if done.ended]
    seconds = (max(ends) - min(d.started for d in operations if d.started)) / 1e9 if ends else 0.0
    answered = total["ok"] + total["not_found"]
    overall = total.pop("latency")
    return {
        **total,
        "malformed": malformed,
        "seconds": seconds,
        "throughput_ops_s": answered / seconds if seconds else 0.0,
        "latency": overall,
        "verbs": {verb: _tally([d for d in operations if d.row.verb == verb]) for verb in VERBS},
        "interrupted": result.interrupted,
    }


def exit_code(result: Run) -> int:
    """0: all done. 130: interrupted. 3: no node reachable. 4: outcomes unknown. 1: other failures.

    A process that died is a failure, whatever came of the others' operations. Otherwise an unknown outcome
    beats a failure: a failed operation may simply be sent again, the other one may not.
    """
    outcomes = {done.outcome for done in result.operations}
    if result.interrupted:
        return 130
    if result.unreachable is not None:
        return 3
    if result.dead:
        return 1
    if "unknown" in outcomes:
        return 4
    return 1 if "failed" in outcomes else 0


def table(totals: dict[str, Any]) -> str:
    """The summary, to be read by people. Latencies in milliseconds."""
    head = f"{'':8}{'operations':>11}{'ok':>9}{'not found':>11}{'failed':>8}{'unknown':>9}"
    head += "".join(f"{name:>9}" for name in ("mean ms", "stddev", "p50", "p95", "p99", "max"))
    lines = [head]
    for name, part in [("all", totals), *totals["verbs"].items()]:
        line = f"{name:8}{part['operations']:>11}{part['ok']:>9}{part['not_found']:>11}"
        line += f"{part['failed']:>8}{part['unknown']:>9}"
        line += "".join(f"{'-' if s is None else f'{s * 1000:.3f}':>9}" for s in part["latency"].values())
        lines.append(line)
    lines.append(
        f"{totals['operations']} operations, {totals['failed']} failed, {totals['unknown']} unknown, "
        f"{totals['malformed']} malformed, in {totals['seconds']:.3f} s: "
        f"{totals['throughput_ops_s']:,.0f} operations per second"
        + (" (interrupted)" if totals["interrupted"] else "")
    )
    return "\n".join(lines)


def write_operations(file: TextIO, result: Run) -> None:
    """operations.csv: one line for each row that was sent, or should have been by a process that died."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["index", "process", "node", "verb", "key", "start_ns", "latency_s", "outcome", "attempts"]
    )
    for done in result.operations:
        start = done.started + result.epoch_ns if done.started else ""
        seconds = f"{(done.ended - done.started) / 1e9:.9f}" if done.ended else ""
        writer.writerow([done.number, done.process, done.node, done.row.verb, done.row.key, start, seconds,
                         done.outcome, done.attempts])  # fmt: skip


def write_history(file: TextIO, result: Run, in_flight: int) -> None:
    """JSON lines, for checkers of linearizability; times in ns by the monotonic clock.

    What never was sent is left out, and so are reads whose answer is not known: they say nothing. A write of
    unknown outcome has no return: it may still happen.
    """
    for done in result.operations:
        if not done.started or (done.row.verb == "GET" and not done.ended):
            continue
        unknown = done.outcome == "unknown"
        line = {
            "client": done.process * in_flight + done.lane,
            "operation": done.row.verb.lower(),
            "key": done.row.key,
            "arguments": {"value": done.row.value} if done.row.verb == "PUT" else {},
            "answer": done.answer,
            "call_ns": done.started,
            "return_ns": None if unknown else done.ended,
            "outcome": done.outcome,
        }
        file.write(json.dumps(line) + "\n")
