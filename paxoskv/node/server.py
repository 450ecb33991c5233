"""One node as a process: its event loop, and its life: start, serve, drain, stop.

What a node does is decided in replica.py and by its core; here their messages become frames and back. One
turn of the event loop: all that has arrived is handed in, then Replica.turn() runs once, then every
connection with something to send is written to once.
"""

import asyncio
import gc
import ipaddress
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, Final, cast

from paxoskv.multipaxos import Diverged
from paxoskv.node.checkpointing import Checkpointing
from paxoskv.node.eventlog import EXIT_BUG, Usage, end, log
from paxoskv.node.formats import PATIENCE
from paxoskv.node.health import Health
from paxoskv.node.inbox import Inbox
from paxoskv.node.metrics import Page as MetricsPage
from paxoskv.node.replica import Replica
from paxoskv.node.status import VERSION, StatusReport
from paxoskv.node.switches import Switches
from paxoskv.node.turns import TICK_BUSY, Turns
from paxoskv.node.writer import Writer
from paxoskv.wire.connection import Connection, Flusher, TlsListener, listen
from paxoskv.wire.validation import MAX_CLIENT_FRAME

TEXT: Final = "plain" if __file__.endswith(".py") else "compiled"
SWEEP: Final = 1.0  # seconds between two looks for clients and requests that are late
STOOD_STILL: Final = 0.5  # seconds more than a sweep takes: the process, or the machine, was stopped
DRAIN: Final = 3.0  # seconds that a stopping node gives its clients' requests
HANDSHAKES: Final = 8  # connections that there may be, for each TLS handshake that may be under way
# Allocations, and rounds, between two collections: entries are kept, and hardly anything has cycles.
GARBAGE: Final = (50_000, 50, 100)


@dataclass(eq=False)
class Server:
    """Runs the parts of one node, which its maker has put together."""

    replica: Replica
    turns: Turns
    flusher: Flusher
    writer: Writer
    inbox: Inbox
    checkpointing: Checkpointing
    health: Health
    status: StatusReport
    request_timeout_s: float
    switches: Switches | None = None

    def __post_init__(self) -> None:
        self.loop = self.turns.loop
        self.peers = self.inbox.peers
        self.formats = self.peers.formats
        self.watches = self.status.watches
        self.connections = self.status.connections
        self.trust = self.peers.trust

    async def run(self, host: str, port: int, origin: str, metrics_port: int | None = None) -> None:
        """Serve until SIGTERM or SIGINT, then finish what was begun.

        Usage if an address cannot be had; `origin` says where they were given.
        """
        await self._start()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, stop.set)
        self.loop.add_signal_handler(signal.SIGHUP, self._reload)
        listener, page = await self._listen(host, port, origin, metrics_port)
        sweeper = await self._serve()
        await stop.wait()
        log("stopping", pending=self.replica.pending)
        listener.close()
        await self._drain()
        if page:
            page.close()
        sweeper.cancel()
        self._stop()

    # --------------------------------------------------------------------------------------------- life cycle

    async def _start(self) -> None:
        """Begin this life. Nobody hears of it before it is durable: the next one has another."""
        self.loop.set_exception_handler(_bug)
        self.writer.start(self._durable)
        self.checkpointing.start(self.replica.roll)
        self.turns.start(self._turn, self._tick)
        self._turn()
        while self.replica.writing:
            await asyncio.sleep(TICK_BUSY / 10)

    async def _listen(
        self, host: str, port: int, origin: str, metrics_port: int | None
    ) -> tuple[asyncio.Server | TlsListener, MetricsPage | None]:
        page = self.status.page() if metrics_port else None
        wanted, certificates = port, self.trust.certificates
        try:
            accepting = certificates.accepting if certificates else None
            handshakes = self.connections.most // HANDSHAKES
            listener = await listen(host, port, self._accepted, accepting, self.peers.handshake, handshakes)
            if page and metrics_port:
                wanted = metrics_port
                await page.listen(host, metrics_port)
        except OSError as error:
            raise unusable(origin, host, wanted, error) from error
        log("listening", address=f"{host}:{port}", metrics=metrics_port, pid=os.getpid(), version=VERSION,
            text=TEXT)  # fmt: skip
        sockets = cast(Any, listener).sockets  # (uvloop has a list of them, asyncio a tuple)
        if not ipaddress.ip_address(sockets[0].getsockname()[0]).is_loopback:
            who = "has a certificate" if certificates else "can connect"
            log("reachable", "warning", address=f"{host}:{port}", reason=f"whoever {who} can read and write")
        return listener, page

    async def _serve(self) -> asyncio.Task[None]:
        """Connect to the peers, and begin to tick. Returns the task that sweeps."""
        if self.switches:
            self.switches.look()
        self.peers.start(self.inbox.answer)
        await self.peers.introduce()
        self.health.look_at_rejoin()
        self._tick()
        sweeper = self.loop.create_task(self._sweep())
        sweeper.add_done_callback(lambda task: None if task.cancelled() else task.result())  # a bug ends us
        gc.freeze()
        gc.set_threshold(*GARBAGE)
        gc.enable()
        return sweeper

    async def _drain(self) -> None:
        """Take no more commands, and give the others a little time."""
        self.health.stopping = True
        self.watches.refuse("this node is stopping")
        self.formats.expire(inf, "this node is stopping")
        self.checkpointing.close()
        deadline = self.loop.time() + DRAIN
        while self.replica.pending and self.loop.time() < deadline:
            await asyncio.sleep(TICK_BUSY)

    def _stop(self) -> None:
        """Finish what was begun on the disk, and hang up."""
        self.turns.stop()
        self.checkpointing.stop()
        self.writer.stop()
        self.flusher.flush_all()
        self.connections.close()
        self.peers.close()
        self.writer.journal.close()
        log("stopped")

    # ---------------------------------------------------------------------------------------------- the loop

    def _turn(self) -> None:
        if self.formats.waiting:
            self.formats.look()
        self.replica.turn()
        self._carry_out()

    def _carry_out(self) -> None:
        """Send what may leave at once, then write the journal, then go on with what waited for it."""
        self.flusher.flush_all()
        while (done := self.writer.work()) is not None:
            done()
            self.flusher.flush_all()
        self.inbox.service.let_in()
        self.watches.look()
        self.flusher.flush_all()
        self.turns.plan(self.replica.core.busy, self.replica.turn_due)

    def _durable(self, done: Callable[[], None]) -> None:
        """The writer's thread has written a frame."""
        if self.turns.running:  # else the journal is being closed
            done()
            self._carry_out()

    def _tick(self) -> None:
        self.peers.tick()
        self.formats.expire(self.loop.time() - min(PATIENCE, self.request_timeout_s))
        self.watches.tick()
        self.replica.tick()
        self._turn()

    async def _sweep(self) -> None:
        """About once a second: look for what is late, or has changed."""
        now = self.loop.time()
        while True:
            await asyncio.sleep(SWEEP)
            before, now = now, self.loop.time()
            if now - before > SWEEP + STOOD_STILL:
                log("stood-still", "warning", seconds=round(now - before - SWEEP, 3))
                self.health.stood_still()
            self.connections.sweep(now)
            if self.health.must_ask():
                self.replica.read(self.health.answered, lambda: None)
            self.health.look()
            self.watches.sweep(self.health.refuses_reads())
            if self.switches:
                self.switches.look()
            self.peers.sweep(now)
            self.replica.expire(now - self.request_timeout_s)
            self.writer.maintain()
            self.checkpointing.sweep()
            self.turns.wake()

    # ------------------------------------------------------------------------- connections that others made

    def _accepted(self) -> Connection:
        return Connection(
            self.inbox.call, self._lost, MAX_CLIENT_FRAME, self.flusher, on_made=self._made, answers=True
        )

    def _made(self, connection: Connection) -> None:
        self.connections.made(connection)
        connection.methods = self.inbox.service.methods[self.trust.role(connection)]

    def _lost(self, connection: Connection, error: Exception | None) -> None:
        self.connections.lost(connection, error)
        self.peers.lost(connection, error)

    def _reload(self) -> None:
        """SIGHUP: certificates were replaced. Connections of nodes are made again; those of clients stay."""
        certificates = self.trust.certificates
        if certificates is None:
            log("reload", reason="there are no certificates")
            return
        try:
            certificates.load()
        except OSError as error:
            log("reload", "error", reason=f"the certificates stay as they were: {error}")
            return
        log("reload", expires_s=certificates.seconds())
        self.peers.renew()


def unusable(origin: str, host: str, port: int, error: OSError) -> Usage:
    """What is wrong with an address, which stands at `origin`."""
    reason = os.strerror(error.errno).lower() if error.errno and error.errno > 0 else error
    return Usage(f"{origin}: {host}:{port}: {reason}")


def _bug(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An error nobody expected: a node that goes on with a broken core could do harm."""
    error = context.get("exception")
    if isinstance(error, Diverged):
        end(EXIT_BUG, "diverged", reason=error)
    stack = "".join(traceback.format_exception(error)) if error else None
    end(EXIT_BUG, "bug", reason=f"{context.get('message')}: {type(error).__name__}: {error}", stack=stack)
