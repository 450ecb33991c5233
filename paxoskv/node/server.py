"""One node of the cluster, or the single, unreplicated server that it is compared with.

    python server.py --id 1                    one of the nodes in cluster.json
    python server.py --standalone              the same service without Paxos

This module is the shell: sockets, the journal's thread, signals, the clock. What a node does is decided in
replica.py and multipaxos.py; here their messages become frames and back. One turn of the event loop: all that
has arrived is handed in, then Replica.turn() runs once, then every connection with something to send is
written to once.
"""

import argparse
import asyncio
import contextlib
import ctypes
import gc
import ipaddress
import itertools
import json
import os
import re
import resource
import signal
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from random import Random
from typing import Any, Final, NamedTuple, NoReturn, cast

import uvloop
from thrift.Thrift import TApplicationException

from paxoskv import config as configuration
from paxoskv.kvstore import ttypes
from paxoskv.multipaxos import Cut, Diverged, node_of
from paxoskv.node.metrics import Collector, Counts, Histogram
from paxoskv.node.metrics import Page as MetricsPage
from paxoskv.node.replica import Replica, Single
from paxoskv.protocol.faults import Failures
from paxoskv.protocol.node import Node
from paxoskv.protocol.outbox import Message
from paxoskv.state.store import Store
from paxoskv.storage.checkpoint import Checkpoints, recover
from paxoskv.storage.checkpoint_process import CheckpointProcess
from paxoskv.storage.data_dir import (
    MANIFEST,
    Manifest,
    create,
    discard_replacement,
    finish_replacement,
    replace,
)
from paxoskv.storage.files import Damaged, Full, JournalError, Locked, Unreadable
from paxoskv.storage.journal import Journal
from paxoskv.wire.codec import (
    Malformed,
    NotDone,
    Refused,
    Status,
    Unknown,
)
from paxoskv.wire.connection import (
    Connection,
    Flusher,
    Link,
    listen,
    tls_contexts,
)
from paxoskv.wire.methods import (
    CALL,
    METHODS,
    ONEWAY,
    Method,
    unknown_method,
)
from paxoskv.wire.structs import (
    Accept,
    Accepted,
    Barrier,
    Chunk,
    Command,
    Fetch,
    FetchCheckpoint,
    Fetched,
    Identity,
    Item,
    Learn,
    LogStatus,
    Page,
    Position,
    Prepare,
    Promise,
    Reading,
    ReadMode,
    Record,
    Rejoin,
    Rejoined,
    Result,
    Verb,
    Verdict,
    Vote,
)
from paxoskv.wire.validation import MAX_BATCH, MAX_CLIENT_FRAME, MAX_NODE_FRAME, invalid

VERSION: Final = "0.1.0"
TEXT: Final = "plain" if __file__.endswith(".py") else "compiled"
TICK_BUSY: Final = 0.01  # seconds between ticks while the core waits for something
TICK_IDLE: Final = 0.1  # and while it does not
LINGER: Final = 0.001  # seconds: uvloop's timers know no less
STALL: Final = 0.05  # seconds: a frame that takes longer keeps the node from gossiping in time
SLOW: Final = 0.003  # seconds for a frame, on average: the event loop has better things to do meanwhile
WARY_FOR: Final = 60.0  # seconds for which the thread writes after a stall
SLOW_FOR: Final = 5.0  # seconds for which it writes after the average was slow
LOCKED_FOR: Final = 5.0  # seconds: so soon a process that makes a checkpoint ends when its node is killed
ROOM_AGAIN: Final = 1.0  # seconds: a full disk is looked at again
SPARE_AGAIN: Final = 0.02  # seconds: whether the next segment is there, which a checkpoint begins
CHECKPOINT_AGAIN: Final = 30.0  # seconds after one that failed, unless somebody asks for it
CHECKPOINT_MB: Final = 64.0  # of the standalone server's journal, between two checkpoints
MAJORITY_GONE: Final = 2.0  # seconds without a word from a majority, after which commands are refused
STOOD_STILL: Final = 0.5  # seconds more than a sweep takes: the process, or the machine, was stopped
SWEEP: Final = 1.0  # seconds between two looks for clients and requests that are late
DRAIN: Final = 3.0  # seconds that a stopping node gives its clients' requests
RECENT: Final = 5.0  # seconds for which a complaint counts: whoever is refused comes back each second
MAX_PROBLEMS, MAX_PROBLEM = 20, 300  # complaints that the status tells, and characters of each
MOST_CONNECTIONS: Final = 10_000  # of clients and peers, at most
OTHER_FILES: Final = 600  # that are kept free: journal, checkpoints, links to 254 peers, metrics
MAX_HUNG_UP: Final = 10  # connections in a second, of which each has a line in the log
MAX_COMPLAINTS: Final = 1000  # strangers and refusing peers that are remembered, so as to be logged once
# Allocations, and rounds, between two collections: entries are kept, and hardly anything has cycles.
GARBAGE: Final = (50_000, 50, 100)
M_MMAP_THRESHOLD: Final = -3  # <malloc.h>
LARGE_BLOCK: Final = 768 << 10  # bytes: more than any value has
MAX_SCAN: Final = 1000  # items in a page
MAX_ANSWER: Final = 15_000_000  # bytes: standard Thrift clients take frames up to 16,384,000
LEVELS: Final = ("info", "warning", "error")
MAX_LOGGED: Final = 4000  # characters of a value in the log
PLAIN: Final = re.compile(r"[A-Za-z0-9_.:/@%+,\[\]-]+")  # values that the log does not quote
# Before --cpu: a checkpoint is made where there is time for it.
PROCESSORS: Final = sorted(os.sched_getaffinity(0))
REPAIR: Final = (
    "; nothing was cut, and this node does not vote with it. If it has peers, they have what it held: move "
    "its data directory aside and start it with --rejoin"
)
ASIDE: Final = ".damaged-%Y%m%dT%H%M%SZ"  # after a data directory's name: when it was moved aside
BOTH_ALIVE: Final = 1.0  # seconds without a message from a process, after which another may take its place
STALE, ANOTHER = "is a stale copy", "another process with this id"  # refusals after which a node ends
EXIT_USAGE, EXIT_STALE, EXIT_BUG, EXIT_DISK = 2, 65, 70, 74  # exit codes; from the second on as in sysexits.h

REQUESTS: Final[dict[type, Method]] = {
    Accept: METHODS[b"accept"],
    Barrier: METHODS[b"barrier"],
    Fetch: METHODS[b"fetch"],
    FetchCheckpoint: METHODS[b"fetch_checkpoint"],
    Learn: METHODS[b"learn"],
    Prepare: METHODS[b"prepare"],
    Rejoin: METHODS[b"rejoin"],
}
ANSWERS: Final[frozenset[Any]] = frozenset({Accepted, Reading, Fetched, Promise, Chunk, Rejoined})
OF_ONE_LOG: Final[frozenset[Any]] = frozenset(k for k in (*REQUESTS, *ANSWERS) if hasattr(k, "log"))
EXECUTE: Final = b"execute"
TOO_MANY: Final = f"commands: a list of at most {MAX_BATCH} is needed"
OUTCOMES: Final = {number: name.lower() for number, name in ttypes.Outcome._VALUES_TO_NAMES.items()}


class Log:
    """One line on stderr for each event: time, level, node and event, always; then what the event has to say.

    As text, `name=value` with a space between, the value as a JSON string unless it is plain; or as one JSON
    object. In both, whatever is not printable ASCII is escaped, and values are bounded.
    """

    def __init__(self) -> None:
        self.node = 0
        self.as_json = False
        self.lowest = 0  # index into LEVELS

    def __call__(self, event: str, level: str = "info", **fields: object) -> None:
        if LEVELS.index(level) < self.lowest:
            return
        now = time.time_ns()
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9))
        line: dict[str, object] = {"time": f"{moment}.{now // 10**6 % 1000:03}Z", "level": level}
        line |= {"node": self.node, "event": event, **fields}
        shown = {name: _shown(value) for name, value in line.items()}
        if self.as_json:
            print(json.dumps(shown), file=sys.stderr, flush=True)
        else:
            text = " ".join(f"{name}={_quoted(value)}" for name, value in shown.items())
            print(text, file=sys.stderr, flush=True)


def _shown(value: object) -> str | int | float | None:
    """Numbers as they are, everything else as bounded text."""
    return value if value is None or isinstance(value, int | float) else str(value)[:MAX_LOGGED]


def _quoted(value: object) -> str:
    text = "-" if value is None else str(value)
    return text if PLAIN.fullmatch(text) else json.dumps(text)


log = Log()


class Frame(NamedTuple):
    """What Replica hands over to be written."""

    records: list[Record]
    done: Callable[[], None]
    new_segment: bool


class Call:
    """A call of a client or a peer that has not been answered."""

    __slots__ = ("arrived", "connection", "method", "sequence")

    def __init__(self, connection: Connection, method: Method, sequence: int) -> None:
        self.connection = connection
        self.method = method
        self.sequence = sequence
        self.arrived = time.perf_counter()


class Writer:
    """Writes the journal: in the event loop while the disk is fast, in a thread of its own while it is slow.

    A thread costs two switches and several wake-ups for each frame, more than a fast fdatasync takes. A slow
    one would keep the node from gossiping: after a stall, and while they are slow, the thread has them.

    A frame for which there is no room waits until there is: to the rest of the node, the disk hangs.
    """

    def __init__(
        self,
        journal: Journal,
        loop: asyncio.AbstractEventLoop,
        finished: Callable[[Callable[[], None]], None],
        took: Histogram,
    ) -> None:
        """`finished` is called in the event loop with the `done` of a frame that the thread has written.

        `took` counts how long frames took, in microseconds.
        """
        self.journal = journal
        self.took = took
        self.loop = loop
        self.finished = finished
        self.frame: Frame | None = None  # not begun
        self.threaded = False  # the thread has a frame, and the journal with it
        self.full: str | None = None  # why there is no room, as last seen
        self.average = 0.0  # seconds that the last frames took
        self.slow_until = 0.0
        self.room_at = 0.0  # when to look for room again
        self.frames: SimpleQueue[Frame | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self.thread.start()

    def write(self, records: list[Record], done: Callable[[], None], new_segment: bool) -> None:
        """Hand in one frame; work() writes it, when what may leave before it is durable has left."""
        self.frame = Frame(records, done, new_segment)

    def work(self) -> Callable[[], None] | None:
        """Write the frame; returns its `done` if that is to be called now, None if `finished` will get it, or
        if there is no room: then it is tried again later.
        """
        frame = self.frame
        if frame is None or self.loop.time() < self.room_at:
            return None
        self.frame = None
        if self.loop.time() < self.slow_until:
            self.threaded = True
            self.frames.put(frame)
            return None
        if self._write(frame):
            return frame.done
        self.frame = frame
        return None

    def maintain(self) -> None:
        """About once a second: take the next segment if it is made, try again to make it if there was no
        room.
        """
        if not self.threaded:
            try:
                self.journal.maintain()
            except (OSError, JournalError) as error:
                disk_failed(error)
            self._look_at_room()

    def stop(self) -> None:
        """Finish what was begun."""
        self.frames.put(None)
        self.thread.join()

    def _run(self) -> None:
        while (frame := self.frames.get()) is not None:
            try:
                written = self._write(frame)
            except BaseException as error:  # this thread must not die alone: nobody would vote any more
                log("bug", "error", reason=f"{type(error).__name__}: {error}")
                os._exit(EXIT_BUG)
            self.loop.call_soon_threadsafe(self._returned, frame, written)

    def _returned(self, frame: Frame, written: bool) -> None:
        self.threaded = False
        if written:
            self.finished(frame.done)
        else:
            self.frame = frame

    def _write(self, frame: Frame) -> bool:
        """True: it is durable; False: there is no room for it."""
        begun = time.perf_counter()
        try:
            self.journal.write(frame.records, frame.new_segment)
        except Full:
            self.room_at = self.loop.time() + ROOM_AGAIN
            return False
        except (OSError, JournalError) as error:
            disk_failed(error)
        took = time.perf_counter() - begun
        self.took.add(int(took * 1e6))
        self.average += (took - self.average) / 16
        if took > STALL:
            self.slow_until = self.loop.time() + WARY_FOR
            log("disk-stalled", "warning", seconds=round(took, 3))
        elif self.average > SLOW:
            self.slow_until = max(self.slow_until, self.loop.time() + SLOW_FOR)
        return True

    def _look_at_room(self) -> None:
        if self.journal.full != self.full:
            self.full = self.journal.full
            if self.full:
                log("disk-full", "warning", reason=self.full)
            else:
                log("disk-has-room")


def _too_many(frame: bytes, offset: int) -> bool:
    """Whether the arguments of execute are a longer list than is taken: then they are not even decoded."""
    return (
        frame.startswith(b"\x0f\0\1\x0c", offset)
        and int.from_bytes(frame[offset + 4 : offset + 8]) > MAX_BATCH
    )


def disk_failed(error: OSError | JournalError) -> NoReturn:
    """End the process at once: nobody knows what is on the disk now."""
    log("disk-failed", "error", reason=error)
    os._exit(EXIT_DISK)


class Server:
    """Sockets around one Replica."""

    def __init__(
        self,
        identity: Identity,
        core: Node | Single,
        store: Store,
        journal: Journal,
        peers: dict[int, configuration.Member],
        request_timeout_s: float,
        tls: configuration.Tls | None,
        checkpoints: Checkpoints,
        checkpoint_mb: float,
    ) -> None:
        self.identity = identity
        self.core = core
        self.store = store
        self.journal = journal
        self.request_timeout_s = request_timeout_s
        self.loop = asyncio.get_running_loop()
        self.counts = Counts()
        self.writer = Writer(journal, self.loop, self._durable, self.counts.fsync)
        checkpoints.later = self._later
        self.replica = Replica(
            core, store, time.monotonic, self._send, self._write, self._answer, checkpoints
        )
        self.flusher = Flusher()
        self.connections: dict[Connection, None] = {}  # that others made, oldest first
        self.silent: dict[Connection, None] = {}  # those of them that had said nothing when last looked at
        self.most = most_connections()
        self.crowded = 0  # of them hung up since the last sweep, for there were too many
        self.refused_at: float | None = None  # since when peers say that another process has our id
        self.processes: dict[Connection, tuple[int, tuple[int, int]]] = {}  # node, (incarnation, life)
        self.accept_tls: ssl.SSLContext | None = None
        connect_tls: ssl.SSLContext | None = None
        if tls:
            self.accept_tls, connect_tls = tls_contexts(tls.certificate, tls.key, tls.authority)
        self.logs = frozenset({identity.node, *peers})
        self.links = {peer: self._link(peer, member, connect_tls) for peer, member in peers.items()}
        self.checkpointer = Checkpointer(self, checkpoints, checkpoint_mb)
        checkpoints.wanted = self.checkpointer.wanted
        self.greeted: set[int] = set()  # peers that our link may be used to
        self.complaints: dict[tuple[str, object], tuple[object, float]] = {}  # reason, and when last heard
        self.hung_up = 0  # connections, since the last sweep
        self.sequence = 0
        self.encoded: tuple[Message, bytes] = (None, b"")  # the last request, which often goes to all peers
        self.turning = False
        self.turner: asyncio.TimerHandle | None = None  # makes a turn at turn_at, if none was made before
        self.turn_at = 0.0
        self.stopping = False  # takes no more commands
        self.waits: str | None = None  # what a rejoin waits for, as last logged
        self.alone: str | None = None  # that no majority is heard of, as last seen
        self.asking = False  # whether anybody is there
        self.alive_since = time.monotonic()
        self.leads: set[int] = set()  # logs that this node leads, as last logged
        self.stopped = False  # takes no more turns: the journal is being closed
        self.ticker: asyncio.TimerHandle | None = None
        self.tick_at = 0.0
        self.started = self.loop.time()
        self.clients: dict[bytes, Callable[[Any, tuple[Any, ...]], None]] = {
            b"put": self._put,
            b"get": self._get,
            b"delete": self._delete,
            b"compare_and_set": self._compare_and_set,
            b"increment": self._increment,
            b"execute": self._execute,
            b"open_session": self._open_session,
            b"scan": self._scan,
            b"checkpoint": self._checkpoint,
            b"read_checkpoint": self._read_checkpoint,
            b"status": self._status,
        }

    # --------------------------------------------------------------------------------------------- life cycle

    async def run(self, host: str, port: int, origin: str, metrics_port: int | None = None) -> None:
        """Serve until SIGTERM or SIGINT, then finish what was begun.

        Usage if an address cannot be had; `origin` says where they were given.
        """
        self.loop.set_exception_handler(self._bug)
        self._turn()
        while self.replica.writing:  # nobody hears of this life before it is durable: the next has another
            await asyncio.sleep(TICK_BUSY / 10)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, stop.set)
        page = self._page() if metrics_port else None
        wanted = port
        try:
            listener = await listen(host, port, self._accepted, self.accept_tls)
            if page and metrics_port:
                wanted = metrics_port
                await page.listen(host, metrics_port)
        except OSError as error:
            reason = os.strerror(error.errno).lower() if error.errno and error.errno > 0 else error
            raise Usage(f"{origin}: {host}:{wanted}: {reason}") from error
        log("listening", address=f"{host}:{port}", metrics=metrics_port, pid=os.getpid(), version=VERSION,
            text=TEXT)  # fmt: skip
        sockets = cast(Any, listener).sockets  # (uvloop has a list of them, asyncio a tuple)
        if not ipaddress.ip_address(sockets[0].getsockname()[0]).is_loopback:
            log("reachable", "warning", address=f"{host}:{port}", tls="on" if self.accept_tls else "off",
                reason="not a loopback address: whoever can connect can read and write")  # fmt: skip
        for link in self.links.values():
            link.start()
        self._tell_rejoin()
        self._tick()
        sweeper = self.loop.create_task(self._sweep())
        gc.freeze()
        gc.set_threshold(*GARBAGE)
        gc.enable()
        await stop.wait()
        log("stopping", pending=self.replica.pending)
        self.stopping = True
        listener.close()
        deadline = self.loop.time() + DRAIN
        while self.replica.pending and self.loop.time() < deadline:
            await asyncio.sleep(TICK_BUSY)
        self.stopped = True
        if page:
            page.close()
        sweeper.cancel()
        self.checkpointer.stop()
        self.writer.stop()
        self.flusher.flush_all()
        for connection in [*self.connections]:
            connection.close()
        for link in self.links.values():
            link.close()
        if self.ticker:
            self.ticker.cancel()
        self.journal.close()
        log("stopped")

    def _bug(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An error nobody expected: a node that goes on with a broken core could do harm."""
        error = context.get("exception")
        if isinstance(error, Diverged):
            log("diverged", "error", reason=error)
            os._exit(EXIT_BUG)
        stack = "".join(traceback.format_exception(error)) if error else None
        log("bug", "error", reason=f"{context.get('message')}: {type(error).__name__}: {error}", stack=stack)
        os._exit(EXIT_BUG)

    async def _sweep(self) -> None:
        now = self.loop.time()
        while True:
            await asyncio.sleep(SWEEP)
            before, now = now, self.loop.time()
            if now - before > SWEEP + STOOD_STILL:
                log("stood-still", "warning", seconds=round(now - before - SWEEP, 3))
                self.alive_since = time.monotonic()  # what others said meanwhile has yet to be read
            for connection in [*self.connections]:
                if connection.stale(now):
                    self.counts.refused("late_connection")
                    log("cut-off", "warning", address=connection.peer)
            if self.hung_up > MAX_HUNG_UP:
                log("hung-up-more", "warning", count=self.hung_up - MAX_HUNG_UP)
            self.hung_up = 0
            if self.crowded:
                log("too-many-connections", "warning", hung_up=self.crowded, limit=self.most)
                self.counts.refused("connection", self.crowded)
            self.crowded = 0
            self._ask_whether_anybody_is_there()
            self._look_at_majority()
            self._tell_led()
            for link in self.links.values():
                link.stale(now)
            self.replica.expire(now - self.request_timeout_s)
            self.writer.maintain()
            self.checkpointer.sweep()
            self._tell_rejoin()
            self._wake()

    def _ask_whether_anybody_is_there(self) -> None:
        """Where too few nodes say anything, ask them: a read's questions are answered. (Gossip is not, and
        they may be unable to connect to us while we can connect to them.)
        """
        core = self.core
        if not isinstance(core, Node) or not core.joined or self.asking:
            return
        now = time.monotonic()
        if 1 + sum(now - at <= SWEEP / 2 for at in core.contacts.heard.values()) < core.quorum:

            def answered(_: Any) -> None:
                self.asking = False

            self.asking = True
            self.replica.read(answered, lambda: None)

    def _look_at_majority(self) -> bool:
        """Whether enough nodes are heard of to do anything; log it whenever that changes."""
        if not isinstance(self.core, Node):
            return True
        now = time.monotonic()
        heard = 1 + sum(now - at <= MAJORITY_GONE for at in self.core.contacts.heard.values())
        alone = None
        if heard < self.core.quorum and now - self.alive_since > MAJORITY_GONE:
            alone = f"no majority: this node hears of {heard} of {len(self.logs)} nodes, itself included"
        if bool(alone) != bool(self.alone):
            if alone:
                log("majority-lost", "warning", heard=heard, nodes=len(self.logs))
            else:
                log("majority-back", heard=heard, nodes=len(self.logs))
        self.alone = alone
        return alone is None

    def _tell_led(self) -> None:
        """Log which logs this node leads, whenever that changes: its own, and those that it has revoked."""
        if not isinstance(self.core, Node):
            return
        leads = {log for log, proposer in self.core.proposers.items() if proposer.leading}
        mine = self.identity.node
        for other in sorted(leads - self.leads - {mine}):
            log("revoked", "warning", log=other)
        for other in sorted(self.leads - leads - {mine}):
            log("given-back", log=other)
        if mine in self.leads - leads:
            log("deposed", "warning", reason="others have finished this node's log: it takes it back")
        elif mine in leads - self.leads:
            log("leads", log=mine)
        self.leads = leads

    def _tell_rejoin(self) -> None:
        """Log what a rejoining node waits for, whenever that changes: it may have to wait for ever."""
        waits = _waits(self.core)
        if waits != self.waits:
            self.waits = waits
            if waits is None:
                log("rejoined")
            else:
                log("rejoining", "warning", reason=waits)

    def _tick(self) -> None:
        for peer, link in self.links.items():
            assert isinstance(self.core, Node)
            self.core.link(peer, link.refused)
        self.replica.tick()
        self._turn()

    def _wake(self) -> None:
        """Something was handed in: run one turn when everything that has arrived is."""
        if not self.turning:
            self.turning = True
            self.loop.call_soon(self._turn)

    def _turn(self) -> None:
        self.turning = False
        if self.stopped:
            return
        self.replica.turn()
        self._carry_out()
        self._set_timers()

    def _turn_due(self) -> None:
        self.turner = None
        self._turn()

    def _carry_out(self) -> None:
        """Send what may leave at once, then write the journal, then go on with what waited for it."""
        self.flusher.flush_all()
        while (done := self.writer.work()) is not None:
            done()
            self.flusher.flush_all()

    def _write(self, records: list[Record], done: Callable[[], None], new_segment: bool) -> None:
        """Replica wants a frame written."""
        if new_segment:
            self.checkpointer.begins()

            def rolled() -> None:
                self.checkpointer.rolled()
                done()

            self.writer.write(records, rolled, True)
        else:
            self.writer.write(records, done, False)

    def _set_timers(self) -> None:
        now = self.loop.time()
        at = now + (TICK_BUSY if self.core.busy else TICK_IDLE)
        if self.ticker is None or at < self.tick_at - TICK_BUSY or now >= self.tick_at:
            if self.ticker:
                self.ticker.cancel()
            self.tick_at = at
            self.ticker = self.loop.call_at(at, self._tick)
        due = self.replica.turn_due
        if due is not None and (self.turner is None or due < self.turn_at - LINGER):
            if self.turner:
                self.turner.cancel()
            self.turn_at = due
            self.turner = self.loop.call_later(max(due - time.monotonic(), LINGER), self._turn_due)

    def _later(self, call: Callable[[], None]) -> None:
        """Run something in the loop; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the node has stopped
            self.loop.call_soon_threadsafe(call)

    def _durable(self, done: Callable[[], None]) -> None:
        """The thread has written a frame."""
        if self.stopped:
            return
        done()
        self._carry_out()
        self._set_timers()

    # -------------------------------------------------------------------------------------------------- peers

    def _link(self, peer: int, member: configuration.Member, tls: ssl.SSLContext | None) -> Link:
        return Link(
            member.host,
            member.port,
            self.flusher,
            MAX_NODE_FRAME,
            on_up=self._link_up,
            on_message=self._link_message,
            on_down=self._link_down,
            tls=tls,
            user=peer,
        )

    def _link_up(self, link: Link) -> None:
        link.send(METHODS[b"hello"].call(0, self._who()))
        self.flusher.flush_all()

    def _link_down(self, link: Link, error: Exception | None) -> None:
        for connection in [other for other in self.processes if other.user is link]:
            del self.processes[connection]
        if link.user in self.greeted and not self.stopped:
            log("peer-lost", "warning", peer=link.user, reason=error or "it hung up")
        self.greeted.discard(link.user)

    def _link_message(
        self, connection: Connection, kind: int, name: bytes, sequence: int, frame: bytes, offset: int
    ) -> None:
        """An answer of a peer."""
        link: Link = connection.user
        method = METHODS.get(name)
        if method is None or method.oneway or method.service != "Node":
            raise Malformed("an answer to nothing that was asked")
        self.counts.frame(self.counts.received, link.user, method.name, len(frame))
        try:
            message = method.answer(kind, frame, offset)
        except (Refused, TApplicationException) as error:
            reason = getattr(error, "reason", error)
            self._complain("peer-refused", link.user, reason)
            if isinstance(error, Refused):
                self._is_refused(str(reason))
            connection.close()
            return
        if name == b"hello":
            self._greeted(link, message)
        elif link.user in self.greeted and message.__class__ in ANSWERS:
            self._step(link.user, message, None)

    def _is_refused(self, reason: str) -> None:
        """A stale copy must not go on; nor the second of two processes, when the first is surely alive."""
        now = self.loop.time()
        if ANOTHER in reason:
            self.refused_at = self.refused_at or now
            if now - self.refused_at < 2 * BOTH_ALIVE:
                return
        elif STALE not in reason:
            return
        log("refused", "error", reason=reason)
        os._exit(EXIT_STALE)

    def _who(self) -> Identity:
        """Who we are."""
        return self.core.identify(self.identity) if isinstance(self.core, Node) else self.identity

    def _listen_to(self, identity: Identity, connection: Connection) -> str | None:
        """A process has said who it is, on this connection: why it must not be listened to, or None.

        Of two processes with one id the newer is refused as long as the older one is heard of. When a later
        disk or start of a node has been noted, connections of the earlier ones are closed.
        """
        assert isinstance(self.core, Node), "only nodes have peers"
        node, who = identity.node, (identity.incarnation, identity.life)
        now = self.loop.time()
        for other, theirs in self.processes.items():
            alive = other is not connection and now - self.core.contacts.heard[node] < BOTH_ALIVE
            if alive and theirs[0] == node and theirs[1][1] != identity.life:
                return f"node {node}: {ANOTHER} is alive, at {other.peer}"
        reason = self.core.greet(identity)
        if reason is None:
            self.processes[connection] = (node, who)
            self._close_older(node)
            self._wake()
        return reason

    def _close_older(self, node: int, kept: int = 0) -> None:
        """What an earlier disk of a node says counts no more, nor what an earlier start of this one does.

        `kept`: an incarnation that is not closed. (0 is one that has begun to rejoin.)
        """
        assert isinstance(self.core, Node), "only nodes have peers"
        noted = self.core.noted(node)
        for connection, (peer, who) in [*self.processes.items()]:
            if peer == node and who[0] != kept and who < noted:
                connection.close()

    def _greeted(self, link: Link, identity: Identity) -> None:
        reason = self._stranger(identity)
        if reason is None and identity.node != link.user:
            reason = f"node: {identity.node} answers where {link.user} is expected"
        if reason is None and link.connection:
            reason = self._listen_to(identity, link.connection)
        if reason is not None:
            self._complain("peer-refused", link.user, reason)
            if link.connection:
                link.connection.close()
            return
        self.greeted.add(link.user)
        self.refused_at = None
        self.complaints.pop(("peer-refused", link.user), None)
        log("peer", peer=link.user)

    def _complain(self, event: str, whom: object, reason: object) -> None:
        """Log what is wrong with somebody, once: it will be tried again and again."""
        self.counts.refused(event)
        known = (event, whom) in self.complaints
        if not known and len(self.complaints) >= MAX_COMPLAINTS:
            return
        if not known or self.complaints[event, whom][0] != reason:
            log(event, "error", who=whom, reason=reason)
        self.complaints[event, whom] = (reason, self.loop.time())

    def _problems(self) -> list[str]:
        """What a rejoin waits for; who refuses us, or is refused by us, at this time, and why."""
        since = self.loop.time() - RECENT
        waits = _waits(self.core)
        refusals = [
            f"{event} {whom}: {reason}"[:MAX_PROBLEM]
            for (event, whom), (reason, when) in self.complaints.items()
            if when > since
        ]
        rejoin = [f"rejoining: {waits}"[:MAX_PROBLEM]] if waits else []
        return [*rejoin, *refusals][:MAX_PROBLEMS]

    def _stranger(self, identity: Identity) -> str | None:
        """Why this node does not belong to us, or None."""
        ours = self.identity
        if identity.cluster != ours.cluster:
            return f"cluster: {identity.cluster!r}, but this is {ours.cluster!r}"
        if identity.digest != ours.digest:
            digests = f"{identity.digest[:12]}, ours has {ours.digest[:12]}"
            return f"digest: its cluster.json differs from ours: its membership has {digests}"
        if identity.node not in self.links:
            return f"node: {identity.node} is no peer of node {ours.node}"
        return None

    def _step(self, peer: int, message: Message, call: Call | None) -> None:
        if message.__class__ in OF_ONE_LOG and message.log not in self.logs:
            raise Malformed("a message about no log of ours")
        self.replica.step(peer, message, call)
        self._wake()

    def _send(self, peer: int, message: Message, call: Call | None) -> None:
        """To a peer: the answer to its call, or a request. What cannot leave is lost; the core sends it
        again.
        """
        if call is not None:
            method = call.method
            frame = method.reply(call.sequence, message)
            call.connection.send(frame)
            kind = message.__class__
            if kind is Accepted and message.vote == Vote.REFUSED:
                self.counts.refused("accept")
            elif kind is Promise and message.verdict == Verdict.NACK:
                self.counts.refused("prepare")
        elif peer in self.greeted:
            method = REQUESTS[message.__class__]
            if self.encoded[0] is not message:
                self.sequence = self.sequence + 1 & 0x7FFFFFFF
                self.encoded = (message, method.call(self.sequence, message))
            frame = self.encoded[1]
            self.links[peer].send(frame)
        else:
            return
        self.counts.frame(self.counts.sent, peer, method.name, len(frame))

    # --------------------------------------------------------------------------- connections that others made

    def _accepted(self) -> Connection:
        return Connection(self._message, self._lost, MAX_CLIENT_FRAME, self.flusher, on_made=self._made)

    def _made(self, connection: Connection) -> None:
        """Where there are too many connections, a silent one leaves, or a client's: it comes back if need be.

        So nobody is kept out, no peer, and the journal has the files that it needs. (With TLS a
        connection counts from its handshake on, for which it has ten seconds.)
        """
        if len(self.connections) >= self.most:  # looked for before the new one is among them
            oldest = self._dispensable()
            if oldest is not None:
                del self.connections[oldest]
                self.silent.pop(oldest, None)
                self.crowded += 1
                oldest.abort()
        self.connections[connection] = self.silent[connection] = None

    def _dispensable(self) -> Connection | None:
        """The oldest connection that has never said anything; if there is none, the oldest of a client."""
        for connection in [*itertools.takewhile(lambda other: other.heard, self.silent)]:
            del self.silent[connection]
        for connection in self.silent:
            return connection
        return next((other for other in self.connections if other.user is None), None)

    def _lost(self, connection: Connection, error: Exception | None) -> None:
        self.connections.pop(connection, None)
        self.silent.pop(connection, None)
        self.processes.pop(connection, None)
        if isinstance(error, Malformed | TimeoutError):
            self.counts.refused("malformed" if isinstance(error, Malformed) else "slow_connection")
            self.hung_up += 1
            if self.hung_up <= MAX_HUNG_UP:
                log("hung-up", "warning", address=connection.peer, reason=error)

    def _message(
        self, connection: Connection, kind: int, name: bytes, sequence: int, frame: bytes, offset: int
    ) -> None:
        """A call, of a client or of a peer."""
        method = METHODS.get(name)
        if method is None or kind not in (CALL, ONEWAY):
            self.counts.refused("unknown_method")
            self._reply(connection, unknown_method(name, sequence))
            return
        self.counts.frame(self.counts.received, connection.user, method.name, len(frame))
        if name == EXECUTE and _too_many(frame, offset):
            self._answer(Call(connection, method, sequence), NotDone(TOO_MANY, True))
            self._wake()
            return
        try:
            arguments = method.arguments(frame, offset)
        except Malformed as error:
            self.counts.refused("malformed_call")
            self._reply(connection, method.fail(sequence, error))
            return
        handler = self.clients.get(name)
        if handler is not None:
            handler(Call(connection, method, sequence), arguments)
        elif name == b"hello":
            self._hello(connection, method, sequence, arguments[0])
        elif connection.user is None:
            raise Malformed("a message between nodes, but no hello")
        else:
            call = None if method.oneway else Call(connection, method, sequence)
            self._step(connection.user, arguments[0], call)
            if name == b"rejoin" and arguments[0].incarnation:
                self._rejoins(connection, arguments[0].incarnation)

    def _rejoins(self, connection: Connection, incarnation: int) -> None:
        """The process at the other end of this connection has taken a new incarnation."""
        node, (_, life) = self.processes[connection]
        self.processes[connection] = node, (incarnation, life)
        self._close_older(node, incarnation)

    def _hello(self, connection: Connection, method: Method, sequence: int, identity: Identity) -> None:
        reason = self._stranger(identity) or self._listen_to(identity, connection)
        if reason is not None:
            self._complain("stranger", connection.peer.rpartition(":")[0], reason)
            self._reply(connection, method.fail(sequence, Refused(reason)))
            return
        connection.user = identity.node
        connection.max_frame = MAX_NODE_FRAME
        self._reply(connection, method.reply(sequence, self._who()))

    def _reply(self, connection: Connection, frame: bytes) -> None:
        connection.send(frame)
        self._wake()

    # ------------------------------------------------------------------------------------------------ clients

    def _answer(self, token: Any, value: Any) -> None:
        if not isinstance(token, Call):  # one of our own questions
            token(value)
            return
        method, sequence = token.method, token.sequence
        if isinstance(value, Exception):
            outcome = _failed(value)
            frame = method.fail(sequence, value)
        else:
            outcome = OUTCOMES.get(value.outcome, "?") if value.__class__ is Result else "ok"
            if method.name == "open_session":
                value = value.session
            frame = method.reply(sequence, value)
            if len(frame) > MAX_ANSWER:
                frame = method.fail(sequence, Unknown(f"done, but the answer has {len(frame)} bytes"))
        token.connection.send(frame)
        counts = self.counts
        counts.answered(method.name, outcome, time.perf_counter() - token.arrived)
        counts.frame(counts.sent, token.connection.user, method.name, len(frame))

    def _submit(self, token: Any, commands: list[Command], batch: bool = False) -> None:
        for index, command in enumerate(commands):
            reason = invalid(command)
            if reason is not None:
                where = f"commands[{index}]: " if batch else ""
                self._answer(token, NotDone(where + reason, True))
                self._wake()
                return
        if self.stopping:
            self._answer(token, NotDone("this node is stopping", False))
        elif self.journal.full:
            self._answer(token, NotDone(f"disk full: {self.journal.full}", False))
        elif self.alone and not self._look_at_majority():
            self._answer(token, NotDone(self.alone or "", False))
        else:
            self.replica.submit(token, commands, batch)
        self._wake()

    def _put(self, token: Any, arguments: tuple[Any, ...]) -> None:
        key, value, request = arguments
        self._submit(token, [Command(Verb.PUT, key, value, None, None, request)])

    def _delete(self, token: Any, arguments: tuple[Any, ...]) -> None:
        key, request = arguments
        self._submit(token, [Command(Verb.DELETE, key, None, None, None, request)])

    def _compare_and_set(self, token: Any, arguments: tuple[Any, ...]) -> None:
        key, expected, value, request = arguments
        self._submit(token, [Command(Verb.COMPARE_AND_SET, key, value, expected, None, request)])

    def _increment(self, token: Any, arguments: tuple[Any, ...]) -> None:
        key, delta, request = arguments
        self._submit(token, [Command(Verb.INCREMENT, key, None, None, delta, request)])

    def _open_session(self, token: Any, arguments: tuple[Any, ...]) -> None:
        self._submit(token, [Command(Verb.OPEN_SESSION)])

    def _execute(self, token: Any, arguments: tuple[Any, ...]) -> None:
        commands = arguments[0]
        if commands is None or len(commands) > MAX_BATCH:
            self._answer(token, NotDone(TOO_MANY, True))
        elif not commands:
            self._answer(token, [])
        else:
            self._submit(token, commands, batch=True)
            return
        self._wake()

    def _get(self, token: Any, arguments: tuple[Any, ...]) -> None:
        key, mode = arguments
        if mode == ReadMode.LOG:
            self._submit(token, [Command(Verb.GET, key)])
            return
        reason = invalid(Command(Verb.GET, key))
        self._read(token, mode, reason, lambda: self.store.get(key), lambda: self._get_local(key))

    def _get_local(self, key: str) -> Result:
        result = self.store.get(key)
        return Result(result.outcome, result.value, None, self.store.position[0])

    def _scan(self, token: Any, arguments: tuple[Any, ...]) -> None:
        prefix, start_after, limit, mode = arguments
        reason = None if limit is None or 0 < limit <= MAX_SCAN else f"limit: {limit} is not 1 to {MAX_SCAN}"

        def question() -> Page:
            items: list[Item]
            items, more = self.store.scan(
                prefix or "", start_after or "", limit or MAX_SCAN, MAX_CLIENT_FRAME
            )
            return Page(items, more, self.store.position[0])

        # There is no scan command for the log: the two modes promise the same.
        mode = ReadMode.LINEARIZABLE if mode == ReadMode.LOG else mode
        self._read(token, mode, reason, question, question)

    def _read(
        self,
        token: Any,
        mode: int | None,
        reason: str | None,
        question: Callable[[], Any],
        local: Callable[[], Any],
    ) -> None:
        if reason is not None:
            self._answer(token, NotDone(reason, True))
        elif mode == ReadMode.LOCAL:
            self._answer(token, local())
        elif mode is not None and mode != ReadMode.LINEARIZABLE:
            self._answer(token, NotDone(f"mode: {mode} is unknown", True))
        elif self.alone and not self._look_at_majority():
            self._answer(token, NotDone(self.alone or "", False))
        else:
            self.replica.read(token, question)
        self._wake()

    # -------------------------------------------------------------------------------------------- checkpoints

    def _checkpoint(self, token: Any, arguments: tuple[Any, ...]) -> None:
        """Of all that was answered before, by any node: so the node catches up first."""

        def read(value: Any) -> None:
            if isinstance(value, Exception):
                self._answer(token, value)
            else:
                self.checkpointer.ask(token)

        self.replica.read(read, lambda: None)
        self._wake()

    def _read_checkpoint(self, token: Any, arguments: tuple[Any, ...]) -> None:
        number, offset = arguments
        if (number or 0) < 0 or (offset or 0) < 0:
            self._answer(token, NotDone("number and offset are not negative", True))
        else:
            self._answer(token, self.checkpointer.checkpoints.chunk(number or 0, offset or 0))
        self._wake()

    # ------------------------------------------------------------------------------------------------- status

    def _status(self, token: Any, arguments: tuple[Any, ...]) -> None:
        core, store = self.core, self.store
        connected = sorted(self.greeted)
        self._answer(
            token,
            Status(
                node=self.identity.node,
                cluster=self.identity.cluster,
                version=VERSION,
                ready=self._state() == "serving",
                clock=core.clock,
                applied=Position(*store.position),
                keys=store.size(),
                digest=store.digest() if arguments[0] else None,
                logs=_logs(core) if isinstance(core, Node) else [],
                connected=connected,
                pending=self.replica.pending,
                journal_bytes=self.journal.bytes,
                memory_bytes=_memory_bytes(),
                uptime_s=self.loop.time() - self.started,
                counters=self._counters(),
                hash=store.hash,
                checkpoint_age_s=self.checkpointer.age(),
                incarnation=self._who().incarnation,
                life=self._who().life,
                in_flight=core.in_flight,
                state=self._state(),
                problems=self._problems(),
            ),
        )
        self._wake()

    def _state(self) -> str:
        if self.stopping:
            return "stopping"
        if self.journal.full:
            return "disk-full"
        if not self.core.joined:
            return "rejoining"
        if not self.core.ready:
            return "starting"
        return "no-majority" if self.alone else "serving"

    def _counters(self) -> dict[str, int]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "entries_applied": self.replica.entries_applied,
            "commands_applied": self.replica.commands_applied,
            "fsyncs": self.replica.frames,
            **self.counts.totals(),
            "cpu_us": int((usage.ru_utime + usage.ru_stime) * 1e6),
            "revocations": self.core.revocations if isinstance(self.core, Node) else 0,
        }

    def _page(self) -> MetricsPage:
        """The page for Prometheus."""
        batches = Histogram()
        batches.buckets = self.replica.batches
        about = {
            "node": str(self.identity.node), "cluster": self.identity.cluster, "version": VERSION,
            "incarnation": str(self.identity.incarnation), "life": str(self.identity.life),
        }  # fmt: skip

        def now() -> dict[str, float]:
            batches.total = self.replica.batched
            return {**self._counters(), **self._gauges()}

        return MetricsPage(Collector(self.counts, batches, now, about), self._state)

    def _gauges(self) -> dict[str, float]:
        core, replica = self.core, self.replica
        return {
            "ready": float(self._state() == "serving"),
            "clock": core.clock,
            "keys": self.store.size(),
            "connected_peers": len(self.greeted),
            "connections": len(self.connections),
            "in_flight_entries": core.in_flight,
            "pending_requests": replica.pending,
            "queued_commands": replica.queued,
            "waiting_reads": len(replica.reading),
            "waiting_records": len(replica.records),
            "waiting_messages": len(replica.after),
            "journal_bytes": self.journal.bytes,
            "uptime_seconds": self.loop.time() - self.started,
        }


def _failed(error: Exception) -> str:
    """What the counters call this answer."""
    if isinstance(error, NotDone):
        return "refused" if error.permanent else "not_done"
    return type(error).__name__.lower()


class Checkpointer:
    """Decides when a node makes a checkpoint, and answers those who asked for one.

    First the next segment is made ready, in the background; then Replica writes the node's state as its first
    frame; when that is durable, a process makes the checkpoint of what lies before it.
    """

    def __init__(self, server: Server, checkpoints: Checkpoints, limit_mb: float) -> None:
        self.server = server
        self.checkpoints = checkpoints
        peers = len(server.links) + 1
        # Nodes of one cluster have the same load: they shall not all make one at the same moment.
        self.limit = int(limit_mb * (1 + server.identity.node % peers / (2 * peers)) * (1 << 20))
        nodes = sorted([*server.links, server.identity.node]) if isinstance(server.core, Node) else []
        self.maker = CheckpointProcess(checkpoints, nodes, PROCESSORS, server.journal.lock)
        self.asking: list[Any] = []  # tokens of those who want one that begins from now on
        self.rolling: list[Any] = []  # of those for whom a state is to be written
        self.written: list[Any] = []  # of those for whom the one that is being written is
        self.late: list[Any] = []  # of those whose state is durable, while a checkpoint is being made
        self.waiting: list[Any] = []  # and of those who wait for that
        self.writing = False  # a state
        self.preparing = False  # a segment is being made ready
        self.due = False  # a state was written while a checkpoint was being made
        self.retry_at = 0.0
        self.made_at = self._found()

    def _found(self) -> float | None:
        """When the checkpoint that was found was made, by this loop's clock."""
        try:
            age = time.time() - (self.checkpoints.directory / MANIFEST).stat().st_mtime
        except OSError:
            return None
        return self.server.loop.time() - max(age, 0.0)

    def age(self) -> float | None:
        """Seconds since the newest checkpoint was made."""
        return None if self.made_at is None else self.server.loop.time() - self.made_at

    @property
    def busy(self) -> bool:
        rolling = self.preparing or self.server.replica.rolling or self.writing
        return rolling or self.checkpoints.making is not None

    def ask(self, token: Any) -> None:
        """Somebody wants a checkpoint of what is applied now."""
        self.asking.append(token)
        self._begin()

    def wanted(self) -> None:
        """A peer needs one that is newer than ours."""
        if self.server.loop.time() >= self.retry_at:
            self._begin()

    def sweep(self) -> None:
        """About once a second: has the journal grown too long? Or was a checkpoint of another node installed,
        and ours that should follow was not made, for it failed or the process ended before?
        """
        journal = self.server.journal
        if journal.full and (self.rolling or self.written):  # the state waits for room
            tokens, self.rolling, self.written = [*self.rolling, *self.written], [], []
            self._refuse(tokens, f"disk full: {journal.full}")
        wanted = journal.bytes > self.limit or journal.leans
        if self.asking or (wanted and self.server.loop.time() >= self.retry_at):
            self._begin()

    def _begin(self) -> None:
        if not self.busy and not self.server.stopping:
            self.preparing = True
            self._prepare()

    def _prepare(self) -> None:
        """Have the next segment made: the event loop does not wait for it when the state is written."""
        server, journal = self.server, self.server.journal
        server.writer.maintain()
        if journal.full:
            self.preparing = False
            tokens, self.asking = self.asking, []
            self._failed(f"disk full: {journal.full}", tokens)
        elif not server.writer.threaded and journal.has_spare:
            self.preparing = False
            self.rolling += self.asking  # what they were told is applied will be noted before that state
            self.asking = []
            server.replica.roll()
            server._wake()
        else:
            if not server.writer.threaded:
                journal.prepare()
            server.loop.call_later(SPARE_AGAIN, self._prepare)

    def begins(self) -> None:
        """A state is being written; for those who asked before it was to be."""
        self.written, self.rolling = self.rolling, []
        self.writing = True

    def rolled(self) -> None:
        """The state is durable, as the first frame of a segment."""
        self.late += self.written
        self.written, self.writing = [], False
        if self.checkpoints.making is None:
            self._make()
        else:
            self.due = True

    def _make(self) -> None:
        rolled = self.server.journal.rolled
        assert rolled is not None, "a frame has begun a segment"
        self.waiting, self.late = self.late, []
        self.due = False
        self.began = self.server.loop.time()
        self.maker.make(rolled, self._made, self._not_made)

    def _made(self, manifest: Manifest, cut: Cut) -> None:
        server = self.server
        self.made_at = server.loop.time()
        server.counts.checkpoint.add(int((self.made_at - self.began) * 1e6))
        server.journal.checkpointed(manifest)
        server.core.checkpointed(cut)
        self.checkpoints.remove_old()
        saved = manifest.checkpoint
        seconds = round(self.made_at - self.began, 3)
        log("checkpoint", number=saved.number, bytes=saved.size, seconds=seconds)
        waiting, self.waiting = self.waiting, []
        for token in waiting:
            server._answer(token, saved.number)
        self._go_on()

    def _not_made(self, reason: str) -> None:
        waiting, self.waiting = self.waiting, []
        self._failed(reason, waiting)
        self._go_on()

    def _failed(self, reason: str, tokens: list[Any]) -> None:
        """None was made for these; the one before is as good as ever."""
        log("checkpoint-failed", "warning", reason=reason)
        self.retry_at = self.server.loop.time() + CHECKPOINT_AGAIN
        self._refuse(tokens, reason)

    def _refuse(self, tokens: list[Any], reason: str) -> None:
        for token in tokens:
            self.server._answer(token, NotDone(f"no checkpoint was made: {reason}", False))
        self.server._wake()

    def _go_on(self) -> None:
        if self.due:
            self._make()
        elif self.asking:
            self._begin()
        self.server._wake()

    def stop(self) -> None:
        """The node stops."""
        self.maker.stop()
        for token in [*self.asking, *self.rolling, *self.written, *self.late, *self.waiting]:
            self.server._answer(token, NotDone("this node is stopping", False))


def _waits(core: Node | Single) -> str | None:
    """What this node's rejoin waits for, in words; None if it is not rejoining."""
    if not isinstance(core, Node) or core.rejoining is None:
        return None
    rejoining = core.rejoining
    silent, empty = [], []
    for peer, answers in rejoining.answers.items():
        if len(answers) < len(rejoining.logs) if core.incarnation else peer not in rejoining.noted:
            silent.append(str(peer))
        elif any(answer.rejoining for answer in answers.values()):
            empty.append(str(peer))
    if not silent and len(rejoining.answers) - len(empty) >= core.quorum:
        return "all other nodes have answered: catching up"
    waits = [f"no answer yet from {', '.join(silent)}"] if silent else []
    waits += [f"rejoining as well: {', '.join(empty)}"] if empty else []
    rule = f"all {len(rejoining.answers)} other nodes must answer, {core.quorum} of them with their data"
    return f"{rule}; {'; '.join(waits)}"


def _logs(core: Node) -> list[LogStatus]:
    return [
        LogStatus(
            log=log,
            leader=node_of(acceptor.promised),
            promised=acceptor.promised,
            accepted=acceptor.accepted,
            length=acceptor.length,
            chosen=acceptor.chosen,
            executed=core.learner.executed[log],
            frontier=core.learner.frontier[log],
        )
        for log, acceptor in core.acceptors.items()
    ]


def _memory_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # too many files are open
        return 0
    return pages * resource.getpagesize()


# --------------------------------------------------------------------------------------------------- starting


class Usage(Exception):
    """The command line, a file or the environment is wrong: one line."""


def open_journal(directory: Path, identity: Identity, init: bool, fsync: bool) -> Journal:
    """The journal of this data directory, made first if asked to. Usage if it belongs to somebody else."""
    if finish_replacement(directory):
        log("repair-resumed", "warning", directory=directory, reason="ended while its data was moved aside")
    elif init:
        create(directory, identity)
    deadline = time.monotonic() + LOCKED_FOR
    while True:
        try:
            journal = Journal(directory, sync=fsync)
            break
        except Locked:
            if time.monotonic() > deadline:
                raise
            time.sleep(ROOM_AGAIN / 20)
    for name in ("cluster", "digest", "node"):
        ours, theirs = getattr(identity, name), getattr(journal.identity, name)
        if ours != theirs:
            if name == "digest":
                differs = f"made for nodes with other ids, hosts or ports: {theirs[:12]}, not {ours[:12]}"
                raise Usage(f"{directory}/identity.json: digest: {differs}")
            raise Usage(f"{directory}/identity.json: {name}: {theirs!r}, but the cluster's file has {ours!r}")
    return journal


def recovered(journal: Journal, directory: Path, core: Node | Single, store: Store) -> Checkpoints:
    """Bring core and store to where the last life ended."""
    began = time.monotonic()
    count = recover(journal, directory, core, store)
    if journal.torn:
        log("torn", "warning", reason=journal.torn)
    number = journal.manifest.checkpoint.number if journal.manifest else 0
    seconds = round(time.monotonic() - began, 3)
    log("recovered", checkpoint=number, records=count, bytes=journal.bytes, seconds=seconds)
    try:
        core.start(asyncio.get_running_loop().time())
    except Diverged as error:
        raise Damaged(directory / "journal", 0, f"contradicts itself: {error}") from error
    return Checkpoints(directory, journal, lambda call: call())


def repaired(journal: Journal, directory: Path, damage: Damaged, fsync: bool) -> Journal:
    """The journal of a new data directory, from which this node rejoins; the damaged one is kept beside it.

    The damage is raised again if that cannot be done. The old lock is held until the new one is.
    """
    moment = time.time()
    while (aside := directory.with_name(directory.name + time.strftime(ASIDE, time.gmtime(moment)))).exists():
        moment += 1
    identity = journal.identity._replace(incarnation=0)
    log("damaged", "error", file=damage.path, offset=damage.offset, reason=damage.reason, kept=aside,
        repair="this node gives up what it held, as with --rejoin: it votes and serves again when all other "
        "nodes have told it what they know, a majority of the cluster with its data")  # fmt: skip
    try:
        replace(directory, aside, identity)
    except JournalError as error:
        log("repair-failed", "error", reason=error)
        raise damage from error
    renewed = open_journal(directory, identity, False, fsync)
    journal.close()
    return renewed


def check_tls(tls: configuration.Tls, file: str) -> None:
    """Usage if a file cannot be used: errors of the ssl module do not name it."""
    for field in ("certificate", "key", "authority"):
        path = getattr(tls, field)
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise Usage(f"{file}: tls.{field}: {path}: {error.strerror}") from error
    try:
        tls_contexts(tls.certificate, tls.key, tls.authority)
    except OSError as error:
        raise Usage(f"{file}: tls: {error}") from error


async def serve_node(options: argparse.Namespace) -> None:
    """One node of the cluster."""
    settings = configuration.load(options.cluster)
    if settings.tls:
        check_tls(settings.tls, options.cluster)
    try:
        member = settings.member(options.id)
    except configuration.ClusterError as error:
        raise Usage(f"{options.cluster}: {error}") from error
    if options.rejoin and len(settings.nodes) == 1:
        raise Usage("--rejoin: a node alone cannot rejoin: nobody else knows what it has forgotten")
    identity = Identity(settings.name, settings.digest, options.id, int(not options.rejoin), 0)
    directory = configuration.data_directory(options.data, settings, options.cluster) / f"node-{options.id}"
    journal = open_journal(directory, identity, options.init or options.rejoin, settings.fsync)
    failing = settings.acceptor_failures

    def begin() -> tuple[Node, Store, Checkpoints]:
        core = Node(
            options.id, [node.id for node in settings.nodes], Random(os.urandom(16)), settings.revoke_after_s,
            Failures(failing.probability, failing.silence_s, failing.every_s), journal.identity.incarnation,
        )  # fmt: skip
        store = Store(str(directory / "store.json"))
        return core, store, recovered(journal, directory, core, store)

    try:
        core, store, checkpoints = begin()
        with contextlib.suppress(OSError):  # of no use, and in nobody's way
            discard_replacement(directory)
    except Damaged as damage:
        if isinstance(damage, Unreadable) or len(settings.nodes) == 1 or not settings.self_repair:
            raise
        journal = repaired(journal, directory, damage, settings.fsync)
        core, store, checkpoints = begin()
    peers = {node.id: node for node in settings.nodes if node.id != options.id}
    server = Server(
        journal.identity, core, store, journal, peers, settings.request_timeout_s, settings.tls, checkpoints,
        settings.checkpoint_mb,
    )  # fmt: skip
    origin = f"{options.cluster}: nodes: host and port of node {options.id}"
    await server.run(member.host, member.port, origin, member.metrics_port)


async def serve_standalone(options: argparse.Namespace) -> None:
    """The same service without replication."""
    host, _, port = options.listen.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise Usage(f"--listen: {options.listen!r} is not HOST:PORT")
    host = host.removeprefix("[").removesuffix("]")
    identity = Identity("standalone", "", 0, 1, 0)
    directory = Path(options.data or "data") / "standalone"
    journal = open_journal(directory, identity, options.init or not directory.exists(), True)
    core = Single()
    store = Store(str(directory / "store.json"))
    checkpoints = recovered(journal, directory, core, store)
    server = Server(journal.identity, core, store, journal, {}, 10.0, None, checkpoints, CHECKPOINT_MB)
    await server.run(host, int(port), "--listen")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="server.py", description="One node of the cluster, or the single server."
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--id", type=int, help="which node of the cluster to be")
    which.add_argument(
        "--standalone", action="store_true", help="the same service without Paxos, for comparison"
    )
    parser.add_argument(
        "--cluster", default="cluster.json", metavar="FILE", help="the cluster (default: %(default)s)"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="where data directories are (default: as cluster.json says)"
    )
    parser.add_argument(
        "--cpu",
        type=int,
        metavar="K",
        help="run on the K-th of the processors that this process may use, counted round and round: several "
        "nodes on one machine answer faster when each stays where it is",
    )
    parser.add_argument(
        "--init", action="store_true", help="make the data directory: once in a cluster's life"
    )
    parser.add_argument(
        "--rejoin",
        action="store_true",
        help="make the data directory anew, after the old one was lost: the node votes again when all other "
        "nodes have told it what it may have forgotten",
    )
    parser.add_argument(
        "--listen",
        default="127.0.0.1:7100",
        metavar="HOST:PORT",
        help="address with --standalone (default: %(default)s)",
    )
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="lines of name=value, or of JSON objects (default: text)",
    )
    parser.add_argument(
        "--log-level",
        choices=LEVELS,
        default="info",
        help="the least important events that are logged (default: info)",
    )
    return parser


def give_large_blocks_back() -> None:
    """Let memory of this size and more go back to the system when it is freed.

    So glibc begins, but after the first such block it keeps ever larger ones. A store that grows leaves one
    behind whenever its table is replaced by one of twice the size.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def most_connections() -> int:
    """How many connections of others this process can have, with files to spare for all else."""
    with contextlib.suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(min(files - OTHER_FILES, MOST_CONNECTIONS), files // 2)


def main() -> int:
    options = arguments().parse_args()
    give_large_blocks_back()
    log.node, log.as_json = options.id or 0, options.log_format == "json"
    log.lowest = LEVELS.index(options.log_level)
    if options.cpu is not None:
        os.sched_setaffinity(0, {PROCESSORS[options.cpu % len(PROCESSORS)]})
    serve = serve_standalone if options.standalone else serve_node
    gc.disable()  # until it serves: recovery makes very many objects, none of them garbage
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(options))
    except Damaged as damage:  # a name of its own: compiled, the other one would have this type as well
        print(f"server.py: {damage}{REPAIR}", file=sys.stderr)
        return EXIT_USAGE
    except (Usage, configuration.ClusterError, JournalError, OSError) as error:
        print(f"server.py: {error}", file=sys.stderr)
        return EXIT_USAGE
    return 0
