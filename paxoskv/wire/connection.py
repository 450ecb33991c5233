"""Thrift over asyncio: what stands between the sockets and the generated structs.

A message is a frame: its length (big-endian), then a header and a struct in Thrift's strict binary protocol.

    +--------+---------------+-----------------+--------------+----------------------------+
    | length | 80 01 00 kind | length and name | sequence     | struct: arguments / result |
    | i32    | i32           | i32, bytes      | i32          | fields ..., 00             |
    +--------+---------------+-----------------+--------------+----------------------------+
             `------------- constant per method ------------'

The first half of this module is the codec and knows no socket. A Method makes and reads the messages of one
method of the interface; the table METHODS is derived from the generated code. The second half moves frames: a
Connection cuts the bytes that arrive into frames and collects those that leave until its owner flushes; a
Link is a connection that comes back by itself. Answers may overtake one another: the sequence says which call
an answer belongs to.

Whoever sends bytes that are no messages loses its connection, and nobody else notices. What drives all this:

    on_message(connection, kind, name, sequence, frame, offset):
        arguments = METHODS[name].arguments(frame, offset)
        ...
        connection.send(METHODS[name].reply(sequence, result))
    at the end of each turn of the event loop: flusher.flush_all()
    every second: connection.stale(loop.time()) for all connections and links
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from math import inf
from struct import Struct
from struct import error as struct_error
from typing import Any, Final, cast

from thrift.Thrift import TApplicationException, TMessageType, TType

from paxoskv.kvstore import KeyValue, Node
from paxoskv.wire.codec import Malformed, decode, encode, named_tuple

CALL: Final[int] = TMessageType.CALL
REPLY: Final[int] = TMessageType.REPLY
EXCEPTION: Final[int] = TMessageType.EXCEPTION
ONEWAY: Final[int] = TMessageType.ONEWAY

# Longer than any method's name by far. It is echoed in the answer to an unknown method.
MAX_NAME_BYTES: Final = 128
# What a connection may have unsent, in bytes: a client's; a node's (a sync of each of five logs, and some).
MAX_CLIENT_OUTPUT: Final = 16 << 20
MAX_NODE_OUTPUT: Final = 32 << 20
# How long a peer may take, in seconds: for the TLS handshake, and from there to its first frame; from the
# first byte of any later frame to its last; to take the rest of our output when we hang up.
GREETING_S, FRAME_S, GOODBYE_S = 10.0, 30.0, 10.0
# A link tries to connect for so many seconds; then again after a pause, doubled from the first to the last.
CONNECT_S, FIRST_PAUSE_S, LAST_PAUSE_S = 2.0, 0.02, 1.0
# What an answer tells about an error that the interface does not declare, in characters.
MAX_REASON: Final = 200

_STRICT: Final = 0x8001  # the version of the strict binary protocol, first in every message
_START: Final = Struct(">HHi")  # version, kind, length of the name
_SEQUENCE: Final = Struct(">i")
_STOP: Final = b"\0"


# ------------------------------------------------------------------------------------------------------ codec


def header(frame: bytes, offset: int = 0) -> tuple[int, bytes, int, int]:
    """Kind, name, sequence, and offset of the struct, of the message at this offset. Malformed otherwise."""
    try:
        version, kind, length = _START.unpack_from(frame, offset)
        if version != _STRICT or not CALL <= kind <= ONEWAY or not 0 <= length <= MAX_NAME_BYTES:
            raise Malformed("not a message of the strict binary protocol")
        start = offset + 8
        end = start + length
        return kind, frame[start:end], _SEQUENCE.unpack_from(frame, end)[0], end + 4
    except struct_error:
        raise Malformed("a message that ends within its header") from None


# TApplicationException, which is no generated struct, for interface.encode and interface.decode.
_SPEC: Final = (None, (1, TType.STRING, "message", "UTF8", None), (2, TType.I32, "type", None, None))
_Failure: Final = named_tuple(type("TApplicationException", (), {"thrift_spec": _SPEC}))


def failure(name: bytes, sequence: int, kind: int, reason: str) -> bytes:
    """The frame of a TApplicationException; `kind` is one of its numbers."""
    text = reason.encode("utf-8", "backslashreplace").decode()
    body = encode(_Failure(text, kind))
    start = _START.pack(_STRICT, EXCEPTION, len(name)) + name + _SEQUENCE.pack(sequence)
    return _SEQUENCE.pack(len(start) + len(body)) + start + body


def unknown_method(name: bytes, sequence: int) -> bytes:
    """The frame that answers a call of a method that METHODS does not have."""
    reason = f"unknown method {name.decode('utf-8', 'backslashreplace')!r}"
    return failure(name, sequence, TApplicationException.UNKNOWN_METHOD, reason)


class Method:
    """One method of the interface: makes and reads its messages.

    `call`, `reply` and `fail` return whole frames, the 4-byte length included; sequences are signed 32-bit
    numbers. They raise ValueError, TypeError or OverflowError for values that do not fit the interface.
    """

    __slots__ = (
        "_call", "_call_start", "_plain", "_reply", "_reply_start", "_whole_argument",
        "_whole_result", "args", "name", "oneway", "result", "service", "throws",
    )  # fmt: skip

    def __init__(self, service: Any, name: str) -> None:
        self.name = name
        self.service: str = service.__name__.rpartition(".")[2]
        self.args: Any = named_tuple(getattr(service, f"{name}_args"))
        result = getattr(service, f"{name}_result", None)
        self.result: Any = result and named_tuple(result)
        self.oneway = result is None
        arguments = [field for field in self.args.thrift_spec if field]
        results = [field for field in getattr(self.result, "thrift_spec", ()) if field]
        self.throws: dict[type, int] = {field[3][0]: field[0] for field in results if field[0] != 0}
        self._whole_argument = _only_struct(arguments)
        self._whole_result = _only_struct([field for field in results if field[0] == 0])
        # Nodes always fill every field, and the core relies on it; clients may leave arguments out.
        self._plain = self.service != "Node"
        self._call, self._call_start = self._opening(ONEWAY if self.oneway else CALL, self._whole_argument)
        self._reply, self._reply_start = self._opening(REPLY, self._whole_result)

    def _opening(self, kind: int, whole: type | None) -> tuple[Struct, bytes]:
        """How a frame begins: a layout for (length, constant bytes, sequence, start of its only struct)."""
        name = self.name.encode()
        start = _START.pack(_STRICT, kind, len(name)) + name
        return Struct(f">i{len(start)}si{3 if whole else 0}s"), start

    def __repr__(self) -> str:
        return f"<Method {self.service}.{self.name}>"

    def call(self, sequence: int, *arguments: Any) -> bytes:
        """The frame that calls the method. Absent arguments are None."""
        start = self._call_start
        if self._whole_argument:
            body = encode(arguments[0])
            return self._call.pack(len(start) + 8 + len(body), start, sequence, _ARGUMENT) + body + _STOP
        body = encode(self.args(*arguments))
        return self._call.pack(len(start) + 4 + len(body), start, sequence, b"") + body

    def reply(self, sequence: int, value: Any) -> bytes:
        """The frame that answers a call with this value."""
        start = self._reply_start
        if self._whole_result:
            body = encode(value)
            return self._reply.pack(len(start) + 8 + len(body), start, sequence, _SUCCESS) + body + _STOP
        assert self.result is not None, "a oneway method has no reply"
        body = encode(self.result(value))
        return self._reply.pack(len(start) + 4 + len(body), start, sequence, b"") + body

    def fail(self, sequence: int, error: Exception) -> bytes:
        """The frame that answers a call with this error: as declared, or else a TApplicationException."""
        field = self.throws.get(type(error))
        if field is not None:
            body = b"\x0c" + field.to_bytes(2, "big") + encode(error) + _STOP
            start = self._reply_start + _SEQUENCE.pack(sequence)
            return _SEQUENCE.pack(len(start) + len(body)) + start + body
        kind, reason = TApplicationException.INTERNAL_ERROR, f"{type(error).__name__}: {error}"
        if isinstance(error, TApplicationException):
            kind, reason = error.type, str(error.message)
        elif isinstance(error, Malformed):
            kind, reason = TApplicationException.PROTOCOL_ERROR, str(error)
        return failure(self.name.encode(), sequence, kind, reason[:MAX_REASON])

    def arguments(self, frame: bytes, offset: int) -> tuple[Any, ...]:
        """The arguments of a call, whose struct begins at the offset and ends with the frame; absent: None.

        Malformed if the bytes are no arguments of this method, or a message between nodes lacks a field.
        """
        whole = self._whole_argument
        if whole and frame.startswith(_ARGUMENT, offset):
            values: tuple[Any, ...] = (decode(whole, frame, offset + 3),)
        else:
            values = decode(self.args, frame, offset)
        if self._plain or values[0] is not None:
            return values
        raise Malformed(f"{self.name}: a field is absent")

    def answer(self, kind: int, frame: bytes, offset: int) -> Any:
        """The value in an answer; `kind` is from its header. Raises the declared exception if it holds one.

        An answer of kind EXCEPTION raises TApplicationException; one without any field, and garbage,
        raise Malformed.
        """
        if kind != REPLY:
            raise self._exception(kind, frame, offset)
        whole = self._whole_result
        if whole and frame.startswith(_SUCCESS, offset):
            value = decode(whole, frame, offset + 3)
        else:
            value, *errors = decode(self.result, frame, offset)
            if value is None:
                declared = (error for error in errors if error is not None)
                raise next(declared, Malformed(f"{self.name}: empty reply"))
        return value

    def _exception(self, kind: int, frame: bytes, offset: int) -> Exception:
        if kind != EXCEPTION:
            return Malformed(f"{self.name}: an answer of kind {kind}")
        failure = decode(_Failure, frame, offset)
        error: Exception = TApplicationException(failure.type or 0, failure.message)
        return error


# How a struct begins whose only field is itself a struct: type 12, and the field's number. What follows the
# inner struct is the end of the outer one, or fields that this version does not know: nobody needs either.
_ARGUMENT, _SUCCESS = b"\x0c\0\1", b"\x0c\0\0"


def _only_struct(fields: list[Any]) -> type | None:
    """The type of the only field if that is a struct."""
    if len(fields) == 1 and fields[0][1] == TType.STRUCT:
        struct: type = fields[0][3][0]
        return struct
    return None


def _methods(*services: Any) -> dict[bytes, Method]:
    """Every method of the services, by its name on the wire."""
    methods: dict[bytes, Method] = {}
    for service in services:
        for name in vars(service.Iface):
            if not name.startswith("_"):
                assert name.encode() not in methods, f"two services have a method {name}"
                methods[name.encode()] = Method(service, name)
    return methods


METHODS: Final = _methods(KeyValue, Node)


# ------------------------------------------------------------------------------------------------ connections


class Flusher:
    """The connections that have something to send. Their owner calls flush_all() once per turn."""

    __slots__ = ("dirty",)

    def __init__(self) -> None:
        self.dirty: list[Connection] = []

    def flush_all(self) -> None:
        """One write per connection that has something to send."""
        for connection in self.dirty:
            connection.flush()
        self.dirty.clear()


class Connection(asyncio.Protocol):
    """One connection, whoever opened it. Complete messages go to on_message, in the order of their arrival.

    A peer that sends something else, that dawdles, or (unless the connection is lossy) does not read is cut
    off. on_lost is called once, when a connection that was made is gone; its error says why, if anybody is
    to blame. Malformed out of on_message cuts the peer off as well; other errors go to the event loop.
    """

    __slots__ = (
        "_deadline", "_fault", "_flusher", "_lossy", "_max_output", "_needed", "_on_lost",
        "_on_made", "_on_message", "_open", "_out", "_partial", "_room", "_transport", "heard", "max_frame",
        "peer", "user",
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
        user: Any = None,
    ) -> None:
        """`max_frame` in bytes, without the length; it may be changed at any time.

        `max_output` bounds what is unsent, in bytes. Beyond it a lossy connection refuses frames, others are
        aborted. `on_made` is called when the connection stands; only from then on does it take frames.
        """
        self.max_frame = max_frame
        self.peer = "?"
        self.user = user
        self._on_message, self._on_lost, self._on_made = on_message, on_lost, on_made
        self._flusher, self._max_output, self._lossy = flusher, max_output, lossy
        self._transport: asyncio.Transport | None = None
        self._partial = bytearray()  # the beginning of a frame, its length included
        self._needed = 0  # no frame is complete before _partial holds this many bytes
        self._out: list[bytes] = []
        self._room = max_output  # what may be added to _out without asking the transport what it holds
        self._deadline = inf
        self.heard = False
        self._open = False  # takes frames and hands out messages
        self._fault: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # (uvloop's have another base class)
        self._open = True
        address = transport.get_extra_info("peername") or ("?", 0)
        self.peer = f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._deadline = asyncio.get_running_loop().time() + GREETING_S
        if self._on_made:
            self._on_made(self)

    def data_received(self, data: bytes) -> None:
        if not self._open:
            return
        if self._partial:
            self._partial += data
            if len(self._partial) < self._needed:
                return
            data = bytes(self._partial)
            self._partial.clear()
        try:
            start = self._messages(data)
        except Malformed as error:
            self._fault = error
            self.close()
            return
        if not self._open:
            return  # the owner has hung up
        if start == len(data):
            self._deadline = inf
        else:
            self._partial += data[start:] if start else data
            if self.heard:
                self._deadline = asyncio.get_running_loop().time() + FRAME_S

    def _messages(self, data: bytes) -> int:
        """Hand out the complete messages at the beginning of the data; where the incomplete one begins."""
        start, size = 0, len(data)
        while start + 4 <= size:
            length = _SEQUENCE.unpack_from(data, start)[0]
            if not 0 < length <= self.max_frame:
                raise Malformed(f"a frame of {length} bytes (1 to {self.max_frame} are allowed)")
            end = start + 4 + length
            if end > size:
                self._needed = end - start
                return start
            # As most often there is nothing but one frame: no need to cut it out.
            frame = data if length + 4 == size else data[start:end]
            kind, name, sequence, offset = header(frame, 4)
            self.heard = True
            self._on_message(self, kind, name, sequence, frame, offset)
            if not self._open:
                return size
            start = end
        self._needed = 4
        return start

    def send(self, frame: bytes) -> bool:
        """Buffer a whole frame; it leaves with the next flush. False if the connection does not take it."""
        if not self._open:
            return False
        self._room -= len(frame)
        if self._room < 0 and not self._has_room(len(frame)):
            return False
        if not self._out:
            self._flusher.dirty.append(self)
        self._out.append(frame)
        return True

    def _has_room(self, size: int) -> bool:
        """Whether a frame of this size still fits, now that the transport has had time to send."""
        self._room = self._max_output - self._unsent() - sum(map(len, self._out)) - size
        if self._room >= 0:
            return True
        self._room += size
        if not self._lossy:
            self._fault = TimeoutError(f"{self._max_output - self._room} bytes of output are not read")
            self.abort()
        return False

    def _unsent(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport else 0

    def flush(self) -> None:
        """Write everything buffered, at once."""
        if self._out and self._transport:
            self._transport.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
            self._out.clear()
            self._room = self._max_output - self._unsent()

    def stale(self, now: float) -> bool:
        """Abort the connection if its peer keeps us waiting too long; whether it did. `now`: loop.time()."""
        if now < self._deadline:
            return False
        self._fault = self._fault or TimeoutError(
            "a frame did not arrive, or our output was not read, in time"
        )
        self.abort()
        return True

    def close(self) -> None:
        """Hang up once everything buffered is sent. Nothing is received any more."""
        if self._open and self._transport:
            self.flush()
            self._open = False
            self._deadline = asyncio.get_running_loop().time() + GOODBYE_S
            self._transport.close()

    def abort(self) -> None:
        """Hang up, whatever is unsent."""
        self._open = False
        self._deadline = inf
        self._out.clear()
        if self._transport:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._open = False
        self._deadline = inf
        self._out.clear()
        self._partial.clear()
        self._on_lost(self, self._fault or error)


class Link:
    """A connection to a peer that comes back by itself, until close(). Its messages may get lost.

    `refused`: nobody listened there, when it last tried to connect.
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
        """on_up and on_down alternate. The connection that on_message gets has the link as its `user`."""
        self.host, self.port, self.user = host, port, user
        self.refused = False
        self.connection: Connection | None = None  # while it is up
        self._flusher, self._max_frame, self._tls = flusher, max_frame, tls
        self._on_up, self._on_message, self._on_down = on_up, on_message, on_down
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to connect, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._stay_connected())
        # An error that _stay_connected does not expect is a bug: the loop's exception handler hears of it.
        self._task.add_done_callback(lambda task: None if task.cancelled() else task.result())

    def send(self, frame: bytes) -> bool:
        """Buffer a whole frame; False if the link is down, or its peer too far behind."""
        return self.connection is not None and self.connection.send(frame)

    def stale(self, now: float) -> bool:
        """As Connection.stale; the link connects again."""
        return self.connection is not None and self.connection.stale(now)

    def close(self) -> None:
        """Hang up for good."""
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
            if (
                loop.time() - begun > LAST_PAUSE_S
            ):  # (a peer that hangs up on us at once is not called at once)
                pause = FIRST_PAUSE_S
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE_S)

    async def _connect(self) -> bool:
        """Try the peer's addresses, one after the other; whether a connection was made."""
        loop = asyncio.get_running_loop()
        name = self.host if self._tls else None
        errors: list[OSError] = []
        self._lost.clear()
        try:
            async with asyncio.timeout(CONNECT_S):
                found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
                for address in [str(info[4][0]) for info in found]:
                    try:
                        await loop.create_connection(
                            self._new_connection, address, self.port, ssl=self._tls, server_hostname=name
                        )
                        return True
                    except OSError as error:
                        errors.append(error)
                    except asyncio.CancelledError:
                        # It may have been made already, and uvloop would not tell that it is lost.
                        if self.connection:
                            self.connection.abort()
                            self._down(self.connection, None)
                        raise
        except OSError as error:  # the name is not known, or the time is over
            errors.append(error)
        self.refused = all(isinstance(error, ConnectionRefusedError) for error in errors)
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
        self.connection, self.refused = connection, False
        self._on_up(self)

    def _down(self, connection: Connection, error: Exception | None) -> None:
        if self.connection is connection:
            self.connection = None
            self._lost.set()
            self._on_down(self, error)


async def listen(
    host: str, port: int, factory: Callable[[], Connection], ssl: ssl.SSLContext | None = None
) -> asyncio.Server:
    """Accept connections, each made by the factory. OSError if the address is in use or not ours."""
    # No reuse_port: of two processes on one port each would get half of the connections, and nobody an error.
    return await asyncio.get_running_loop().create_server(
        factory, host, port, ssl=ssl, reuse_address=True, ssl_handshake_timeout=GREETING_S if ssl else None
    )


def tls_contexts(certificate: str, key: str, authority: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of the accepting and the connecting side; each demands a certificate of the authority.

    The arguments are paths of PEM files. The certificate must name the host under which the node is called.
    OSError (or its ssl.SSLError) if a file is missing or something else.
    """
    contexts = (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    for context in contexts:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(authority)
    return contexts
