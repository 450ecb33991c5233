"""Runs a file of operations against a cluster, from several processes, and measures each operation.

    run(rows, Settings) -> Run          rows.py reads them, report.py makes tables and files of the result

The rows are split into contiguous parts, one for each process. All processes are connected and have their
sessions before the clock starts. A process sends its rows in order: one at a time, or `in_flight` at a time,
and then neighboring rows may overtake one another. Each process writes the outcome of each row into memory
that it shares with the parent. So the parent can draw progress without asking, and if a process dies, its
outcomes are still known.

Without a rate the loop is closed: an operation starts when one before it has ended. So a cluster that stalls
is asked less, and the operations that would have met the stall are in no percentile. With a rate the loop is
open: each operation is due at a moment of its own, whatever became of those before it, and its latency counts
from then on, even if it could be sent only later. With a duration, the rows are repeated until it is over.
"""

import asyncio
import contextlib
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from ctypes import c_bool, c_int8, c_int16, c_int32, c_int64
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.sharedctypes import RawArray, RawValue
from typing import Any, Final, NamedTuple

from paxoskv.client.aio import AsyncClient
from paxoskv.client.base import addresses_of
from paxoskv.client.operations import AnyOperation, Calls, ClientError, NoNodeReachable, UnknownOutcome
from paxoskv.client.rows import Row
from paxoskv.client.sync import Client
from paxoskv.config import Cluster
from paxoskv.wire.connection import new_event_loop

MAX_ERRORS: Final = 3  # error messages that each process reports
POLL_S: Final = 0.1  # seconds between two looks of the parent at the outcomes
STOP_S: Final = 2.0  # seconds that processes may take to stop on Ctrl-C before they are killed
MAX_OPERATIONS: Final = 4_000_000  # of a run with a duration: their outcomes are kept in memory
FASTEST: Final = 25_000  # operations per second that a process could do at most


# --------------------------------------------------------------------------------------------------- one run


class Settings(NamedTuple):
    """How to run a workload; `timeout` is that of one operation, in seconds."""

    cluster: Cluster | str
    processes: int = 2
    in_flight: int = 1
    read: str = "linearizable"
    timeout: float = 10.0
    answers: bool = False  # keep the answers to reads
    rate: float = 0.0  # operations per second that are due in all processes together; 0: a closed loop
    duration: float = 0.0  # seconds after the warm-up; 0: until all rows are done
    warmup: float = 0.0  # seconds at the beginning that do not count


class Done(NamedTuple):
    """The outcome of one row; times are in ns, by the monotonic clock, which all processes share."""

    number: int  # of the row; the first is 0
    process: int
    lane: int  # which of the operations that the process keeps under way
    row: Row
    node: str  # of the last attempt; empty if none was sent
    started: int
    ended: int  # 0: it did not end
    outcome: str  # "ok", "not_found", "failed" or "unknown"
    attempts: int
    answer: Any  # GET: the value. DELETE: whether the key existed. None also if it is not known
    due: int = 0  # when it was to start; 0: whenever it did

    @property
    def answered(self) -> bool:
        """Tell whether a node has answered it."""
        return self.outcome in ("ok", "not_found")

    @property
    def latency_s(self) -> float:
        """Return the seconds from when it was due, or started, to its end."""
        return (self.ended - (self.due or self.started)) / 1e9


@dataclass(slots=True)
class Run:
    """A workload that was run; `epoch_ns` added to a time gives ns since 1970."""

    operations: list[Done] = field(default_factory=list)
    epoch_ns: int = 0
    began: int = 0  # ns, as the times of Done
    measured: int = 0  # when the warm-up was over, by the same clock
    errors: list[str] = field(default_factory=list)  # at most MAX_ERRORS of each process
    dead: list[str] = field(default_factory=list)  # the processes that ended before their work was done
    interrupted: bool = False
    unreachable: str | None = None  # the reason, if no node could be reached


# The codes that a process writes for its rows. 0: the row has no outcome yet.
_OK, _NOT_FOUND, _FAILED, _UNKNOWN, _UNREACHABLE = 1, 2, 3, 4, 5
_NAMES = ("", "ok", "not_found", "failed", "unknown", "failed")


class _Outcomes:
    """The outcomes of a process's rows, in memory that it shares with the parent."""

    def __init__(self, size: int) -> None:
        self.started = RawArray(c_int64, size)
        self.ended = RawArray(c_int64, size)
        self.outcome = RawArray(c_int8, size)
        self.node = RawArray(c_int16, size)
        self.attempts = RawArray(c_int32, size)
        self.lane = RawArray(c_int16, size)
        self.began = RawValue(c_int64, 0)
        self.stop = RawValue(c_bool, False)


class _Part(NamedTuple):
    """The part of the work that one process does."""

    process: int
    start: int  # index of its first row
    rows: list[Row]
    settings: Settings
    board: _Outcomes
    size: int  # how many operations: more than the rows where these are repeated
    processes: int

    def row(self, i: int) -> Row:
        """Return the row of the process's i-th operation."""
        return self.rows[i % len(self.rows)]

    def due(self, i: int) -> int:
        """Return when the i-th operation is to start; 0 in a closed loop."""
        rate = self.settings.rate
        return self.board.began.value + int((i * self.processes + self.process) * 1e9 / rate) if rate else 0


class _Rest(NamedTuple):
    """What a process sends when it ends: the results that do not fit the shared memory."""

    answers: dict[int, str | None]
    errors: list[str]


def parts(rows: list[Row], processes: int) -> list[tuple[int, list[Row]]]:
    """Cut the rows into contiguous parts of about the same size; return each with its first row's index."""
    count = min(processes, len(rows))
    cuts = [len(rows) * i // count for i in range(count + 1)]
    return [(start, rows[start:end]) for start, end in pairwise(cuts)]


def operations(rows: int, settings: Settings) -> int:
    """Return how many operations so many rows may become at most."""
    if not settings.duration:
        return rows
    rate = settings.rate or FASTEST * settings.processes
    return min(math.ceil((settings.warmup + settings.duration) * rate), MAX_OPERATIONS)


def run(rows: list[Row], settings: Settings, progress: Callable[[list[Done]], None] | None = None) -> Run:
    """Run the rows; there must be at least one.

    `progress` is called several times a second with what has ended since. KeyboardInterrupt ends the run
    early; the result tells what was done.
    """
    # Spawned, because a forked process gets copies of locks that nobody will release.
    context = multiprocessing.get_context("spawn")
    work: list[_Part] = []
    pipes: list[Connection] = []
    processes: list[SpawnProcess] = []
    result = Run(epoch_ns=time.time_ns() - time.monotonic_ns())
    rest: dict[int, _Rest] = {}
    try:
        with _interrupts_held():
            cut = parts(rows, settings.processes)
            for start, part in cut:
                ours, theirs = context.Pipe()
                size = operations(len(part), settings) // (len(cut) if settings.duration else 1)
                work.append(_Part(len(work), start, part, settings, _Outcomes(size), size, len(cut)))
                process = context.Process(target=_work, args=(work[-1], theirs), daemon=True)
                process.start()
                theirs.close()
                processes.append(process)
                pipes.append(ours)
        result.unreachable = _start(work, pipes)
        result.began = work[0].board.began.value
        result.measured = result.began + int(settings.warmup * 1e9)
        if result.unreachable is None:
            _watch(work, pipes, rest, progress)
        else:
            _stop(work, pipes, rest)
    except KeyboardInterrupt:
        result.interrupted = True
        _stop(work, pipes, rest)
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(STOP_S)
            if process.is_alive():
                process.kill()
                process.join()
    if result.unreachable is None:
        _collect(result, settings, work, rest, processes)
    return result


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back; a process that is started meanwhile never gets it: its parent tells it to stop."""
    resource_tracker.ensure_running()  # its start would end the holding back
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(work: list[_Part], pipes: list[Connection]) -> str | None:
    """Let all processes begin, once all have connected; if none could, return the reason and send nothing."""
    reasons = []
    for pipe in pipes:
        try:
            reasons.append(pipe.recv())
        except EOFError:
            reasons.append("")  # the process died: _collect() reports it
    if all(reasons):
        return str(reasons[0])
    began = time.monotonic_ns()
    for part in work:
        part.board.began.value = began
    _go(pipes)
    return None


def _go(pipes: list[Connection]) -> None:
    for pipe in pipes:
        with contextlib.suppress(OSError):  # the process died: _collect() reports it
            pipe.send("go")


def _watch(
    work: list[_Part],
    pipes: list[Connection],
    rest: dict[int, _Rest],
    progress: Callable[[list[Done]], None] | None,
) -> None:
    """Wait until all processes are done or dead."""
    names = _names(work[0].settings)
    seen = [_Seen(part) for part in work]
    waiting = dict(zip(pipes, range(len(work)), strict=True))
    while waiting:
        for pipe in wait(list(waiting), POLL_S):
            assert isinstance(pipe, Connection)
            process = waiting.pop(pipe)
            with contextlib.suppress(EOFError, OSError):
                rest[process] = pipe.recv()
        if progress:
            progress([_done(one.part, i, names, {}) for one in seen for i in one.ended()])


class _Seen:
    """What the parent has seen of a process: operations begin in order, and end in any."""

    def __init__(self, part: _Part) -> None:
        self.part = part
        self.begun = 0
        self.under_way: list[int] = []

    def ended(self) -> list[int]:
        """Return the operations that have ended since."""
        board = self.part.board
        first = self.begun
        while self.begun < self.part.size and board.started[self.begun]:
            self.begun += 1
        looked_at = [*self.under_way, *range(first, self.begun)]
        self.under_way = [i for i in looked_at if not board.outcome[i]]
        return [i for i in looked_at if board.outcome[i]]


def _names(settings: Settings) -> list[str]:
    nodes = addresses_of(settings.cluster)
    return [str(node) if node.id is None else str(node.id) for node in nodes]


def _stop(work: list[_Part], pipes: list[Connection], rest: dict[int, _Rest]) -> None:
    """Tell the processes to stop, and wait at most STOP_S seconds for what they still have to send."""
    for part in work:
        part.board.stop.value = True
    _go(pipes)  # for those that have not begun
    deadline = time.monotonic() + STOP_S
    for process, pipe in enumerate(pipes):
        if process in rest:
            continue
        while pipe.poll(max(0.0, deadline - time.monotonic())):
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                break
            if isinstance(message, _Rest):
                rest[process] = message
                break


def _collect(
    result: Run, settings: Settings, work: list[_Part], rest: dict[int, _Rest], processes: list[SpawnProcess]
) -> None:
    """Gather the outcomes of all processes in the result."""
    names, codes = _names(settings), set()
    for part, process in zip(work, processes, strict=True):
        if part.process not in rest and not result.interrupted:
            result.dead.append(
                f"process {part.process} ended before its work was done (exit code {process.exitcode})"
            )
        answers, errors = rest.get(part.process, _Rest({}, []))
        result.errors += errors
        for i in range(part.size):
            if not part.board.started[i] and (result.interrupted or part.settings.duration):
                break  # operations begin in order
            result.operations.append(_done(part, i, names, answers))
            codes.add(part.board.outcome[i])
    if codes == {_UNREACHABLE}:
        result.unreachable = "no node could be reached"


def _done(part: _Part, i: int, names: list[str], answers: dict[int, str | None]) -> Done:
    board, row = part.board, part.row(i)
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
    number, node = part.start + i % len(part.rows), names[board.node[i]] if sent else ""
    return Done(number, part.process, board.lane[i], row, node, started, ended, outcome, board.attempts[i],
                answer, part.due(i))  # fmt: skip


# ------------------------------------------------------------------------------------------- in each process


class _Worker:
    """The state of one process: its rows, and their outcomes so far."""

    def __init__(self, part: _Part) -> None:
        self.part, self.board, self.read = part, part.board, part.settings.read
        self.answers: dict[int, str | None] | None = {} if part.settings.answers else None
        self.errors: list[str] = []
        self.writes = any(row.verb != "GET" for row in part.rows)
        self.parent = os.getppid()

    @property
    def over(self) -> bool:
        """Tell whether to stop: the parent said so, or was killed, or the time is over."""
        if self.board.stop.value or os.getppid() != self.parent:
            return True
        duration, warmup = self.part.settings.duration, self.part.settings.warmup
        return duration > 0 and time.monotonic_ns() > self.board.began.value + (warmup + duration) * 1e9

    def wait_for(self, i: int) -> bool:
        """Sleep until the operation is due; return False if it is all over."""
        while not self.over:
            left = (self.part.due(i) - time.monotonic_ns()) / 1e9
            if left <= 0:
                return True
            time.sleep(min(left, POLL_S))
        return False

    def begin(self, calls: Calls, i: int) -> AnyOperation:
        """Start the clock of row i, and return its operation."""
        verb, key, value = self.part.row(i)
        self.board.started[i] = time.monotonic_ns()
        if verb == "PUT":
            return calls.put(key, value)
        return calls.get(key, self.read) if verb == "GET" else calls.delete(key)

    def end(self, i: int, operation: AnyOperation, answer: Any) -> None:
        """Note that row i was answered; a put is answered by None, and so is a get that finds nothing."""
        verb = self.part.row(i).verb
        self._ended(
            i, operation, _NOT_FOUND if answer is False or (answer is None and verb == "GET") else _OK
        )
        if self.answers is not None and verb == "GET":
            self.answers[i] = answer

    def fail(self, i: int, operation: AnyOperation, error: ClientError) -> None:
        """Note that row i was not answered."""
        known = _UNREACHABLE if isinstance(error, NoNodeReachable) else _FAILED
        self._ended(i, operation, _UNKNOWN if isinstance(error, UnknownOutcome) else known)
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(str(error))

    def _ended(self, i: int, operation: AnyOperation, outcome: int) -> None:
        board = self.board
        board.ended[i] = time.monotonic_ns()
        board.node[i] = max(operation.node, 0)
        board.attempts[i] = operation.attempts
        board.outcome[i] = outcome


def _work(part: _Part, pipe: Connection) -> None:
    """Do the work of one process, from its start to its end."""
    worker = _Worker(part)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent waits no longer
        if part.settings.in_flight == 1:
            _one_at_a_time(part, worker, pipe)
        else:
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                runner.run(_many_at_a_time(part, worker, pipe))
        pipe.send(_Rest(worker.answers or {}, worker.errors))
        # Wait for all others, because the end of a process takes time and would disturb their measurements.
        pipe.recv()


@contextlib.contextmanager
def _connecting(pipe: Connection) -> Iterator[None]:
    """Tell the parent what came of connecting, then wait until all may begin."""
    refused = ""
    try:
        yield
    except NoNodeReachable as error:
        refused = str(error)
    except ClientError:
        pass  # the first write tries again
    pipe.send(refused)
    pipe.recv()


def _one_at_a_time(part: _Part, worker: _Worker, pipe: Connection) -> None:
    settings = part.settings
    with Client(settings.cluster, timeout=settings.timeout, first=part.process) as client:
        with _connecting(pipe):
            client.connect()
            if worker.writes:
                client.open_session()
        calls = client.calls
        for i in range(part.size):
            if not worker.wait_for(i):
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
        with _connecting(pipe):
            await client.connect()
            if worker.writes:
                await client.open_session()
        numbers = iter(range(part.size))
        loop, due = asyncio.get_running_loop(), asyncio.Semaphore(0)

        def pace() -> None:  # in a thread, because a loop's timers are late by up to a millisecond
            for i in range(part.size):
                worker.wait_for(i)
                loop.call_soon_threadsafe(due.release)

        async def lane(number: int) -> None:
            for i in numbers:
                if settings.rate:
                    await due.acquire()
                if worker.over:
                    break
                board.lane[i] = number
                operation = worker.begin(client.calls, i)
                try:
                    answer = await client.run(operation)
                except ClientError as error:
                    worker.fail(i, operation, error)
                else:
                    worker.end(i, operation, answer)

        pacing = [asyncio.to_thread(pace)] if settings.rate else []
        await asyncio.gather(*pacing, *(lane(number) for number in range(min(settings.in_flight, part.size))))
