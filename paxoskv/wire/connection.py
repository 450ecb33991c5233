"""Connections: frames over asyncio.

A Connection cuts the bytes that arrive into frames, and collects the frames that leave until its owner
flushes it. A Link is a connection to a peer that is made again whenever it is lost. A peer that sends bytes
that are no messages loses its connection; nobody else notices. The owner of the connections runs this loop:

    on_message(connection, kind, name, sequence, frame, offset):
        arguments = METHODS[name].arguments(frame, offset)
        ...
        connection.send(METHODS[name].reply(sequence, result))
    at the end of each turn of the event loop: flusher.flush_all()
    every second: connection.stale(loop.time()) for all connections and links
"""

import asyncio
import importlib
import importlib.util
import ipaddress
import socket
import ssl
from collections.abc import Callable, Coroutine
from math import inf
from struct import Struct
from typing import Any, Final, cast

from paxoskv.wire.codec import Malformed
from paxoskv.wire.methods import header

# Bytes that a connection may have unsent: to a client, and to a node (a sync of each of five logs, and more).
MAX_CLIENT_OUTPUT: Final = 16 << 20
MAX_NODE_OUTPUT: Final = 32 << 20
# Seconds that a peer may take: for the TLS handshake, and from there to its first frame; from the first byte
# of a later frame to its last, or to read answers; to read the rest when we close the connection.
GREETING_S, FRAME_S, GOODBYE_S = 10.0, 30.0, 10.0
# Seconds for which a link tries to connect; its first pause before the next attempt, and its longest: each is
# twice as long as the one before.
CONNECT_S, FIRST_PAUSE_S, LAST_PAUSE_S = 2.0, 0.02, 1.0
BACKLOG: Final = 100  # connections that wait to be accepted, as asyncio has it
# What a connection may do before the others have their turn: messages passed on, bytes of answers buffered.
MESSAGES_AT_ONCE: Final = 64
OUTPUT_AT_ONCE: Final = 64 << 10

_LENGTH: Final = Struct(">i")


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's event loop, which takes half the time; asyncio's own where uvloop is not installed."""
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = importlib.import_module("uvloop").new_event_loop()
    return loop


class TlsUnexpected(Malformed):
    """What has arrived begins like TLS, where none is spoken."""

    def __init__(self) -> None:
        super().__init__("it speaks TLS, and this side does not")


class Flusher:
    """The connections that have something to send; their owner calls flush_all() once in each turn."""

    __slots__ = ("dirty",)

    def __init__(self) -> None:
        self.dirty: list[Connection] = []

    def flush_all(self) -> None:
        """Send what the connections hold, each with one write."""
        for connection in self.dirty:
            connection.flush()
        self.dirty.clear()


class Connection(asyncio.Protocol):
    """A connection, opened by either side; whole messages go to on_message in the order of their arrival.

    A peer is cut off if it sends bytes that are no messages, is too slow, or (unless the connection is lossy)
    does not read our output. It is also cut off when on_message raises Malformed; other errors go to the
    event loop. on_lost is called once, when a connection that was made is gone; its error, if any, says why.

    Messages that came together are passed on in turns with those of other connections. While somebody holds
    the connection, none are passed on, nor more of them read.
    """

    __slots__ = (
        "_answers", "_deadline", "_fault", "_flusher", "_holds", "_lossy", "_max_output", "_needed",
        "_on_lost", "_on_made", "_on_message", "_out", "_partial", "_paused", "_room", "_transport", "heard",
        "max_frame", "methods", "open", "peer", "user",
    )  # fmt: skip

    def __init__(
        self,
        on_message: "Callable[[Connection, int, bytes, int, bytes, int], None]",
        on_lost: "Callable[[Connection, Exception | None], None]",
        max_frame: int,
        flusher: Flusher,
        *,
        on_made: "Callable[[Connection], None] | None" = None,
        max_output: int = MAX_CLIENT_OUTPUT,
        lossy: bool = False,
        answers: bool = False,
        user: Any = None,
    ) -> None:
        """Make a connection that takes no frames before `on_made` was called.

        `max_frame` is the bytes of the longest frame, without its length; it may be changed at any time.
        `max_output` bounds the unsent bytes: beyond it a lossy connection refuses frames, others are aborted.
        `answers`: what is sent answers what comes. A peer without a name (its `user` is None) that does not
        read the answers is not listened to meanwhile.
        """
        self.max_frame = max_frame
        self.peer = "?"
        self.user = user
        self.methods: Any = None  # what the peer may call; for the owner, like `user`
        self._on_message, self._on_lost, self._on_made = on_message, on_lost, on_made
        self._flusher, self._max_output, self._lossy = flusher, max_output, lossy
        self._answers = answers
        self._transport: asyncio.Transport | None = None
        self._partial = bytearray()  # the beginning of a frame, with its length
        self._needed = 0  # bytes that _partial must have before its first frame is complete
        self._holds = 0  # how many hold the connection
        self._paused = False  # nothing is read
        self._out: list[bytes] = []
        self._room = max_output  # bytes that certainly fit; _has_room() asks the transport for more
        self._deadline = inf  # by the event loop's clock
        self.heard = False  # the peer has sent a message
        self.open = False  # frames are accepted, and messages passed on
        self._fault: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # (uvloop's have another base class)
        self.open = True
        address = transport.get_extra_info("peername") or ("?", 0)
        self.peer = f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._deadline = asyncio.get_running_loop().time() + GREETING_S
        if self._on_made:
            self._on_made(self)

    def is_local(self) -> bool:
        """Whether the peer is a process of this machine."""
        ends = (
            [self._transport.get_extra_info(end) for end in ("peername", "sockname")]
            if self._transport
            else []
        )
        return (
            len(ends) == 2
            and all(ends)
            and (ends[0][0] == ends[1][0] or ipaddress.ip_address(ends[0][0].partition("%")[0]).is_loopback)
        )

    def certificate(self) -> Any:
        """Return the peer's certificate, as the ssl module describes it; None where there is no TLS."""
        return self._transport.get_extra_info("peercert") if self._transport else None

    def data_received(self, data: bytes) -> None:
        if not self.open:
            return
        if self._holds:
            self._partial += data
            self._pause()
            return
        if self._partial:
            self._partial += data
            if len(self._partial) < self._needed:
                return
            data = bytes(self._partial)
            self._partial.clear()
        self._take(data)

    def _take(self, data: bytes) -> None:
        try:
            start = self._messages(data)
        except Malformed as error:
            self._fault = Malformed(str(error))  # without the frames that it was raised in, which have us
            self.close()
            return
        if not self.open:
            return  # on_message has closed the connection
        if start == len(data):
            self._deadline = inf
        else:
            self._partial += data[start:] if start else data
            if self._holds:
                self._deadline = inf
            elif self.heard:
                self._deadline = asyncio.get_running_loop().time() + FRAME_S

    def _messages(self, data: bytes) -> int:
        """Pass on the whole messages in the data; return where those begin that have to wait."""
        start, size, last = 0, len(data), MESSAGES_AT_ONCE
        while start + 4 <= size:
            length = data[start] << 24 | data[start + 1] << 16 | data[start + 2] << 8 | data[start + 3]
            if not 0 < length <= self.max_frame:
                raise (
                    TlsUnexpected()
                    if data[start + 1] == 3 and data[start] in (0x15, 0x16)
                    else Malformed(f"a frame of {length} bytes (1 to {self.max_frame} are allowed)")
                )
            end = start + 4 + length
            if end > size:
                self._needed = end - start
                return start
            # The common case: the data is one frame, and need not be copied.
            frame = data if length + 4 == size else data[start:end]
            kind, name, sequence, offset = header(frame, 4)
            self.heard = True
            self._on_message(self, kind, name, sequence, frame, offset)
            if not self.open:
                return size
            start = end
            last -= 1
            if self._holds or not last or self._room < self._max_output - OUTPUT_AT_ONCE:
                if start < size and not self._holds:
                    self.hold()
                    asyncio.get_running_loop().call_soon(self.release)
                break
        self._needed = 4
        return start

    def hold(self) -> None:
        """Pass on no more messages until release() is called as often."""
        self._holds += 1

    def release(self) -> None:
        """Go on with what has arrived meanwhile, soon."""
        self._holds -= 1
        if not self._holds and (self._partial or self._paused):
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        if self.open and not self._holds:
            if self._paused and self._transport:
                self._paused = False
                self._transport.resume_reading()
            if len(self._partial) >= self._needed:
                data = bytes(self._partial)
                self._partial.clear()
                self._take(data)

    def _pause(self) -> None:
        if not self._paused and self._transport:
            self._paused = True
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        if self._answers and self.user is None:
            self._deadline = min(self._deadline, asyncio.get_running_loop().time() + FRAME_S)
            self.hold()

    def resume_writing(self) -> None:
        if self._answers and self.user is None:
            self._deadline = inf
            if self._partial and self._holds == 1:  # else somebody else makes what has come wait
                self._deadline = asyncio.get_running_loop().time() + FRAME_S
            self.release()

    def send(self, frame: bytes) -> bool:
        """Buffer a whole frame until the next flush; return False if the connection does not accept it."""
        if not self.open:
            return False
        self._room -= len(frame)
        if self._room < 0 and not self._has_room(len(frame)):
            return False
        if not self._out:
            self._flusher.dirty.append(self)
        self._out.append(frame)
        return True

    def _has_room(self, size: int) -> bool:
        """Tell whether a frame of this size fits; the transport may have sent some output meanwhile."""
        self._room = self._max_output - self._unsent() - sum(map(len, self._out)) - size
        if self._room >= 0:
            return True
        self._room += size
        if not self._lossy:
            self._fault = TimeoutError(f"{self._max_output - self._room} bytes of output are not read")
            self.abort()
        return False

    def waiting(self) -> int:
        """Bytes that wait for the rest of a frame, for a turn, or for the peer to read them."""
        return len(self._partial) + self._unsent() + sum(map(len, self._out))

    def _unsent(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport else 0

    def flush(self) -> None:
        """Write all that is buffered, with one write."""
        if self._out and self._transport:
            self._transport.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
            self._out.clear()
            self._room = self._max_output - self._unsent()

    def stale(self, now: float) -> bool:
        """Abort the connection if its peer is too slow, and tell whether it was; `now` is loop.time()."""
        if now < self._deadline:
            return False
        self._fault = self._fault or TimeoutError(
            "a frame did not arrive, or our output was not read, in time"
        )
        self.abort()
        return True

    def close(self) -> None:
        """Close the connection when all that is buffered has been sent; receive nothing from now on."""
        if self.open and self._transport:
            self.flush()
            self.open = False
            self._deadline = asyncio.get_running_loop().time() + GOODBYE_S
            self._transport.close()

    def abort(self) -> None:
        """Close the connection now, and drop what is unsent."""
        self.open = False
        self._deadline = inf
        self._out.clear()
        if self._transport:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        self._deadline = inf
        self._out.clear()
        self._partial.clear()
        self._transport = None  # which has us: garbage is collected seldom
        self._on_lost(self, self._fault or error)


class Link:
    """A connection to a peer that is made again whenever it is lost, until close(); messages may get lost.

    `refused` tells that the last attempt to connect found nobody listening, and `fault` why it could not
    agree on TLS with whoever listens. `tls` is for the next connections.
    """

    def __init__(
        self,
        host: str,
        port: int,
        flusher: Flusher,
        max_frame: int,
        *,
        on_up: "Callable[[Link], None]",
        on_message: Callable[[Connection, int, bytes, int, bytes, int], None],
        on_down: "Callable[[Link, Exception | None], None]",
        tls: ssl.SSLContext | None = None,
        user: Any = None,
    ) -> None:
        """Make a link; on_up and on_down alternate, and the link is the `user` of each of its connections."""
        self.host, self.port, self.user = host, port, user
        self.tls = tls
        self.refused = False
        self.fault: OSError | None = None
        self.connection: Connection | None = None  # while the link is up
        self._flusher, self._max_frame = flusher, max_frame
        self._on_up, self._on_message, self._on_down = on_up, on_message, on_down
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to connect, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._stay_connected())
        # An error that _stay_connected does not expect is a bug, and goes to the loop's exception handler.
        self._task.add_done_callback(lambda task: None if task.cancelled() else task.result())

    def send(self, frame: bytes) -> bool:
        """Buffer a whole frame; return False if the link is down, or too much is unsent."""
        return self.connection is not None and self.connection.send(frame)

    def stale(self, now: float) -> bool:
        """Do as Connection.stale; the link then connects again."""
        return self.connection is not None and self.connection.stale(now)

    def go_to(self, host: str, port: int) -> None:
        """Connect to this address from now on, and leave any other."""
        if (host, port) != (self.host, self.port):
            self.host, self.port = host, port
            if self.connection:
                self.connection.close()

    def close(self) -> None:
        """Close the connection for good."""
        if self._task:
            self._task.cancel()
        if self.connection:
            self.connection.close()

    async def _stay_connected(self) -> None:
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE_S
        while True:
            begun = loop.time()
            if await self._connect():
                await self._lost.wait()
            if loop.time() - begun > LAST_PAUSE_S:  # otherwise the pauses go on growing
                pause = FIRST_PAUSE_S
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE_S)

    async def _connect(self) -> bool:
        """Try the peer's addresses, one after the other; return whether a connection was made."""
        loop = asyncio.get_running_loop()
        name = self.host if self.tls else None
        errors: list[OSError] = []
        self._lost.clear()
        try:
            async with asyncio.timeout(CONNECT_S):
                found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
                for address in [str(info[4][0]) for info in found]:
                    try:
                        await loop.create_connection(
                            self._new_connection, address, self.port, ssl=self.tls, server_hostname=name
                        )
                        return True
                    except OSError as error:
                        errors.append(error)
                    except asyncio.CancelledError:
                        # A connection may have been made already, and uvloop would not report its loss.
                        if self.connection:
                            self.connection.abort()
                            self._down(self.connection, None)
                        raise
        except OSError as error:  # the name is unknown, or the time is over
            errors.append(error)
        self.refused = all(isinstance(error, ConnectionRefusedError) for error in errors)
        broken = (ssl.SSLError, ConnectionResetError, ConnectionAbortedError)
        self.fault = next((error for error in errors if self.tls and isinstance(error, broken)), None)
        return False

    def _new_connection(self) -> Connection:
        return Connection(
            self._on_message,
            self._down,
            self._max_frame,
            self._flusher,
            on_made=self._up,
            max_output=MAX_NODE_OUTPUT,
            lossy=True,
            user=self,
        )

    def _up(self, connection: Connection) -> None:
        self.connection, self.refused, self.fault = connection, False, None
        self._on_up(self)

    def _down(self, connection: Connection, error: Exception | None) -> None:
        if self.connection is connection:
            self.connection = None
            self._lost.set()
            self._on_down(self, error)


class TlsListener:
    """Accepts connections with TLS: each with what `context` gives then, so that it can be replaced.

    (The event loops' own servers keep to one context, and do not tell why a handshake has failed.)
    """

    def __init__(
        self,
        factory: Callable[[], Connection],
        context: Callable[[], ssl.SSLContext],
        on_failed: Callable[[str, Exception], None],
        most: int,
    ) -> None:
        """`on_failed` is told the host and the reason of each handshake that fails.

        `most`: handshakes under way; where there are more, the oldest is given up.
        """
        self.sockets: list[socket.socket] = []
        self._factory, self._context, self._on_failed = factory, context, on_failed
        self._most = most
        self._tasks: set[asyncio.Task[None]] = set()
        self._handshakes: dict[asyncio.Task[None], None] = {}  # oldest first

    async def listen(self, host: str, port: int) -> None:
        """Begin; raise OSError if the address is in use or not ours."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, *_, address in found:
            listening = socket.create_server(address[:2], family=family, backlog=BACKLOG)
            listening.setblocking(False)
            self.sockets.append(listening)
            self._begin(self._accept(listening))

    def close(self) -> None:
        """Accept no more connections."""
        for task in self._tasks:
            task.cancel()
        for listening in self.sockets:
            listening.close()

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError:  # it is gone already, or too many files are open
                await asyncio.sleep(FIRST_PAUSE_S)
            else:
                if len(self._handshakes) >= self._most:
                    oldest = next(iter(self._handshakes))
                    del self._handshakes[oldest]
                    oldest.cancel()
                handshake = self._begin(self._shake_hands(accepted, address[0]))
                self._handshakes[handshake] = None
                handshake.add_done_callback(lambda done: self._handshakes.pop(done, None))

    async def _shake_hands(self, accepted: socket.socket, host: str) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._factory, accepted, ssl=self._context(), ssl_handshake_timeout=GREETING_S
            )
        except OSError as error:
            self._on_failed(host, error)


async def listen(
    host: str,
    port: int,
    factory: Callable[[], Connection],
    context: Callable[[], ssl.SSLContext] | None = None,
    on_failed: Callable[[str, Exception], None] = lambda host, error: None,
    handshakes: int = 100,
) -> asyncio.Server | TlsListener:
    """Accept connections, each made by the factory; raise OSError if the address is in use or not ours.

    `context`, `on_failed`, `handshakes`: with TLS, see TlsListener.
    """
    if context is None:
        # Without reuse_port: with it two processes on one port would share the connections without an error.
        return await asyncio.get_running_loop().create_server(factory, host, port, reuse_address=True)
    listener = TlsListener(factory, context, on_failed, handshakes)
    await listener.listen(host, port)
    return listener


def tls_contexts(certificate: str, key: str, authority: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Make the contexts of the accepting and the connecting side; both demand certificates of the authority.

    The arguments are paths of PEM files. The certificate must name the host under which other nodes find this
    one. OSError (or its subclass ssl.SSLError): a file is missing or unusable.
    """
    contexts = (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    for context in contexts:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(authority)
    return contexts
