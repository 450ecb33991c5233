"""The two clients: they carry out the steps of failover.py's operations, over blocking sockets or asyncio.

    with Client(load("cluster.json")) as client:
        client.put("key", "value")
        client.get("key")                               # "value"

    async with AsyncClient("127.0.0.1:7001") as client:
        await asyncio.gather(*(client.put(f"key{i}", "value") for i in range(32)))

Both keep one connection per node, made when it is first needed. Client has one call under way at a time, and
throws a connection away after any error, for a late answer would be taken for the next call's. AsyncClient
has many under way on each connection, told apart by their sequence; an answer that comes too late is dropped.
Neither may be shared between threads or processes.
"""

import asyncio
import os
import select
import socket
import ssl
import sys
import time
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from struct import Struct
from typing import Any, NamedTuple, Self

from paxoskv.client.operations import (
    FAILURES,
    PAGE_ITEMS,
    Attempt,
    Calls,
    ClientError,
    Lost,
    NoNodeReachable,
    NotSent,
    Operation,
    ReadName,
    Unfit,
)
from paxoskv.config import Cluster
from paxoskv.wire.codec import (
    Expired,
    Forgotten,
    Malformed,
    NotDone,
    Status,
    Unknown,
)
from paxoskv.wire.connection import Connection, Flusher, tls_contexts
from paxoskv.wire.methods import header
from paxoskv.wire.structs import Command, Item, Page, Result

TIMEOUT_S = 10.0
ATTEMPT_TIMEOUT_S = 1.0

# No answer is longer. (A page of a scan fits a client's frame, but a batch of results may not.)
MAX_ANSWER = 64 << 20
# A connection that was idle for so long (seconds) is looked at before it is used: the node may have hung up.
IDLE_S = 0.05
# How often an AsyncClient looks for calls that got no answer in time, in seconds.
SWEEP_S = 0.05

# What a node may answer besides a result, and a call that was never sent: the connection is as good as ever.
ANSWERS = (NotDone, Unknown, Expired, Forgotten, Unfit)

_LENGTH = Struct(">i")


class Node(NamedTuple):
    """Where to find a node, and what to call it. A single address has no id."""

    id: int | None
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.id is None else f"node {self.id} ({host}:{self.port})"


def nodes_of(cluster: Cluster | str) -> list[Node]:
    """The nodes of a cluster, or the one at a single HOST:PORT. ValueError if that is no address."""
    if not isinstance(cluster, str):
        return [Node(member.id, member.host, member.port) for member in cluster.nodes]
    host, _, port = cluster.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{cluster!r} is not HOST:PORT")
    return [Node(None, host.removeprefix("[").removesuffix("]"), int(port))]


class _Base:
    """What the two clients share."""

    def __init__(
        self,
        cluster: Cluster | str,
        *,
        timeout: float = TIMEOUT_S,
        attempt_timeout: float = ATTEMPT_TIMEOUT_S,
        first: int = 0,
    ) -> None:
        """A client of a cluster, or of a single server at HOST:PORT. No connection is made yet.

        `timeout` is how long an operation may take, `attempt_timeout` how long one node is waited for before
        the next one is tried, both in seconds; `first` says at which node to begin (index, wraps).
        """
        self.nodes: Sequence[Node] = nodes_of(cluster)
        self.calls = Calls([str(node) for node in self.nodes], timeout, attempt_timeout, first)
        self._timeout = timeout
        tls = None if isinstance(cluster, str) else cluster.tls
        self._tls = tls_contexts(tls.certificate, tls.key, tls.authority)[1] if tls else None
        self._begin()

    def _begin(self) -> None:
        """Make what the driver needs besides."""
        raise NotImplementedError

    def _index(self, node: int | None) -> int | None:
        """Where the node with this id stands in the list. ValueError if there is none."""
        if node is None:
            return None
        for index, known in enumerate(self.nodes):
            if known.id == node:
                return index
        raise ValueError(f"there is no node {node}")


# ----------------------------------------------------------------------------------------------- synchronous


class Client(_Base):
    """A client that blocks. Every method raises NotDoneError, UnknownOutcome or another ClientError."""

    def _begin(self) -> None:
        self._open: list[_Blocking | None] = [None] * len(self.nodes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. The client may be used again."""
        for node in range(len(self._open)):
            self._drop(node)

    def connect(self, timeout: float = ATTEMPT_TIMEOUT_S) -> None:
        """Connect to all nodes now. NoNodeReachable if there is none to connect to; some suffice."""
        errors = []
        for node in range(len(self.nodes)):
            try:
                self._connection(node, timeout)
            except NotSent as error:
                errors.append(f"{self.nodes[node]}: {error}")
        if len(errors) == len(self.nodes):
            raise NoNodeReachable(f"no node can be reached: {'; '.join(errors)}")

    def run(self, operation: Operation) -> Any:
        """Carry an operation of `calls` out, and return its result."""
        steps = operation.steps
        try:
            step = next(steps)
            while True:
                if isinstance(step, Attempt):
                    try:
                        answer = self._attempt(step)
                    except FAILURES as error:
                        failure = error
                    else:
                        step = steps.send(answer)
                        continue
                    step = steps.throw(failure)
                else:
                    time.sleep(step.seconds)
                    step = steps.send(None)
        except StopIteration as end:
            return end.value
        finally:
            steps.close()  # interrupted or cancelled: the command counts as given up from now on

    def _attempt(self, attempt: Attempt) -> Any:
        connection = self._open[attempt.node]
        if connection is None or connection.closed_meanwhile():
            self._drop(attempt.node)
            connection = self._connection(attempt.node, attempt.patience)
        try:
            kind, frame, offset = connection.call(attempt)
            return attempt.answer(kind, frame, offset)
        except ANSWERS:
            raise
        except BaseException:  # an interruption too: its answer may still come
            self._drop(attempt.node)
            raise

    def _connection(self, node: int, timeout: float) -> "_Blocking":
        connection = self._open[node]
        if connection is None:
            connection = self._open[node] = _Blocking(self.nodes[node], self._tls, timeout)
        return connection

    def _drop(self, node: int) -> None:
        connection = self._open[node]
        if connection is not None:
            self._open[node] = None
            connection.close()

    def open_session(self) -> None:
        """Open the session for writes now; otherwise the first write does."""
        self.run(self.calls.open_session())

    def put(self, key: str, value: str) -> None:
        """Set the key."""
        self.run(self.calls.put(key, value))

    def get(self, key: str, read: ReadName = "linearizable", node: int | None = None) -> str | None:
        """The key's value; None if there is none. With `node` (an id), one attempt there."""
        value: str | None = self.run(self.calls.get(key, read, self._index(node)))
        return value

    def delete(self, key: str) -> bool:
        """Remove the key; whether it existed."""
        existed: bool = self.run(self.calls.delete(key))
        return existed

    def compare_and_set(self, key: str, expected: str | None, value: str) -> tuple[bool, str | None]:
        """Set the key if it holds `expected` (None: if it is absent); whether so, and what it holds now."""
        answer: tuple[bool, str | None] = self.run(self.calls.compare_and_set(key, expected, value))
        return answer

    def increment(self, key: str, delta: int = 1) -> int:
        """Add to the integer that the key holds (absent: 0); the sum. NotANumber if there is none."""
        total: int = self.run(self.calls.increment(key, delta))
        return total

    def execute(self, commands: Sequence[Command]) -> list[Result]:
        """Do the commands in order with nothing in between. ValueError if they are too many: see Calls."""
        results: list[Result] = self.run(self.calls.execute(commands))
        return results

    def scan(
        self,
        prefix: str = "",
        start_after: str = "",
        limit: int | None = None,
        read: ReadName = "linearizable",
        node: int | None = None,
    ) -> Iterator[Item]:
        """The items whose keys begin with the prefix and come after `start_after`, by key (by code point).

        At most `limit` of them; all, if that is None. They are fetched page by page as they are asked for:
        each page is as fresh as `read` says and has an operation's time; the whole is no snapshot.
        """
        left, index = sys.maxsize if limit is None else limit, self._index(node)
        while left > 0:
            page: Page = self.run(self.calls.page(prefix, start_after, min(left, PAGE_ITEMS), read, index))
            yield from page.items
            left = left - len(page.items) if page.more and page.items else 0
            start_after = page.items[-1].key if page.items else ""

    def status(self, node: int | None = None, digest: bool = False) -> Status:
        """The view that the node with this id (None: any) has of itself; `digest`: with its store's hash."""
        return self.run(self.calls.status(self._index(node), digest))

    def checkpoint(self, node: int | None = None) -> int:
        """Let the node with this id (None: any) make a checkpoint; its number, when it is durable."""
        return int(self.run(self.calls.checkpoint(self._index(node))))

    def read_checkpoint(self, node: int | None = None) -> Iterator[bytes]:
        """The node's newest checkpoint, in pieces; nothing if it has none.

        ClientError: it was replaced meanwhile, or is not as it should be; all pieces are worth nothing then.
        """
        number = offset = check = 0
        while True:
            chunk = self.run(self.calls.read_checkpoint(self._index(node), number, offset))
            if number and chunk.number != number:
                raise ClientError(f"checkpoint {number} has been replaced by newer ones")
            number = chunk.number
            check = zlib.crc32(chunk.data, check)
            offset += len(chunk.data)
            if chunk.data:
                yield chunk.data
            if not number:
                return
            if offset >= chunk.size:
                break
            if not chunk.data:
                raise ClientError(f"checkpoint {number} ends at byte {offset} of {chunk.size}")
        if check != chunk.check:
            raise ClientError(f"checkpoint {number} does not have the CRC-32 that it should have")


class _Blocking:
    """One connection to one node, with one call under way at a time. After Lost it must not be used again."""

    __slots__ = ("_patience", "_poll", "_sequence", "_socket", "_used")

    def __init__(self, node: Node, tls: ssl.SSLContext | None, timeout: float) -> None:
        """Connect within `timeout` seconds. NotSent if that fails."""
        try:
            self._socket = socket.create_connection((node.host, node.port), timeout)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls:
                self._socket = tls.wrap_socket(self._socket, server_hostname=node.host)
        except OSError as error:
            raise NotSent(_told("cannot connect", error)) from None
        self._patience = timeout  # what the socket's timeout is set to
        self._sequence = 0
        self._used = time.monotonic()
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def closed_meanwhile(self) -> bool:
        """Whether the node has hung up, or said something unasked, while the connection was idle."""
        now = time.monotonic()
        idle, self._used = now - self._used, now
        return idle > IDLE_S and bool(self._poll.poll(0))

    def call(self, attempt: Attempt) -> tuple[int, bytes, int]:
        """Send the call and wait for its answer: kind, frame, offset of the struct. Unfit or Lost."""
        self._sequence = sequence = self._sequence + 1 & 0x7FFFFFFF
        frame = attempt.frame(sequence)
        try:
            if attempt.patience != self._patience:
                self._patience = attempt.patience
                self._socket.settimeout(attempt.patience)
            self._socket.sendall(frame)
            answer = self._receive()
            kind, _, echoed, offset = header(answer, 4)
        except TimeoutError:
            raise Lost(f"no answer within {attempt.patience:.3g} s") from None
        except OSError as error:
            raise Lost(_told("connection lost", error)) from None
        except Malformed as error:
            raise Lost(f"an answer that makes no sense: {error}") from None
        if echoed != sequence:
            raise Lost("an answer to another call")
        return kind, answer, offset

    def _receive(self) -> bytes:
        """A whole frame, length included. OSError, or Malformed."""
        data = self._some()
        if len(data) >= 4 and len(data) == 4 + _LENGTH.unpack_from(data)[0]:
            return data  # as nearly always
        buffer = bytearray(data)
        deadline = time.monotonic() + self._patience
        while len(buffer) < 4 or len(buffer) < 4 + _checked(_LENGTH.unpack_from(buffer)[0]):
            self._patience = deadline - time.monotonic()
            if self._patience <= 0:
                raise TimeoutError
            self._socket.settimeout(self._patience)
            buffer += self._some()
        if len(buffer) > 4 + _LENGTH.unpack_from(buffer)[0]:
            raise Malformed("more than was asked for")
        return bytes(buffer)

    def _some(self) -> bytes:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("closed by the node")
        return data


def _checked(length: int) -> int:
    if not 0 < length <= MAX_ANSWER:
        raise Malformed(f"a frame of {length} bytes")
    return length


def _told(what: str, error: Exception) -> str:
    """What happened and why, in one line."""
    if isinstance(error, ConnectionError) and error.errno:
        return f"{what}: {os.strerror(error.errno)}"  # asyncio puts words of its own there
    return f"{what}: {getattr(error, 'strerror', None) or error or type(error).__name__}"


# ---------------------------------------------------------------------------------------------- asynchronous


class AsyncClient(_Base):
    """The same for asyncio, with as many operations under way at once as there are tasks that await them.

    To be made while the event loop runs.
    """

    def _begin(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._flusher = Flusher()
        self._channels = [_Channel(self, node) for node in self.nodes]
        self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections, for good. No operation may be under way."""
        self._sweeping.cancel()
        for channel in self._channels:
            channel.close("the client was closed")

    def _sweep(self) -> None:
        now = self._loop.time()
        for channel in self._channels:
            channel.sweep(now)
        self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)

    def flush_soon(self) -> None:
        """Send what the channels hold at the end of this turn of the event loop, each with one write."""
        if not self._flusher.dirty:
            self._loop.call_soon(self._flusher.flush_all)

    async def connect(self, timeout: float = ATTEMPT_TIMEOUT_S) -> None:
        """Connect to all nodes now. NoNodeReachable if there is none to connect to; some suffice."""
        results = await asyncio.gather(
            *(c.connected(timeout) for c in self._channels), return_exceptions=True
        )
        errors = [f"{n}: {e}" for n, e in zip(self.nodes, results, strict=True) if isinstance(e, NotSent)]
        if len(errors) == len(self.nodes):
            raise NoNodeReachable(f"no node can be reached: {'; '.join(errors)}")

    async def run(self, operation: Operation) -> Any:
        """Carry an operation of `calls` out, and return its result."""
        steps = operation.steps
        try:
            step = next(steps)
            while True:
                if isinstance(step, Attempt):
                    try:
                        answer = await self._channels[step.node].call(step)
                    except FAILURES as error:
                        failure = error
                    else:
                        step = steps.send(answer)
                        continue
                    step = steps.throw(failure)
                else:
                    await asyncio.sleep(step.seconds)
                    step = steps.send(None)
        except StopIteration as end:
            return end.value
        finally:
            steps.close()  # interrupted or cancelled: the command counts as given up from now on

    async def open_session(self) -> None:
        """Open the session for writes now; otherwise the first write does."""
        await self.run(self.calls.open_session())

    async def put(self, key: str, value: str) -> None:
        """Set the key."""
        await self.run(self.calls.put(key, value))

    async def get(self, key: str, read: ReadName = "linearizable", node: int | None = None) -> str | None:
        """The key's value; None if there is none. With `node` (an id), one attempt there."""
        value: str | None = await self.run(self.calls.get(key, read, self._index(node)))
        return value

    async def delete(self, key: str) -> bool:
        """Remove the key; whether it existed."""
        existed: bool = await self.run(self.calls.delete(key))
        return existed

    async def compare_and_set(self, key: str, expected: str | None, value: str) -> tuple[bool, str | None]:
        """Set the key if it holds `expected` (None: if it is absent); whether so, and what it holds now."""
        answer: tuple[bool, str | None] = await self.run(self.calls.compare_and_set(key, expected, value))
        return answer

    async def increment(self, key: str, delta: int = 1) -> int:
        """Add to the integer that the key holds (absent: 0); the sum. NotANumber if there is none."""
        total: int = await self.run(self.calls.increment(key, delta))
        return total

    async def execute(self, commands: Sequence[Command]) -> list[Result]:
        """Do the commands in order with nothing in between. ValueError if they are too many: see Calls."""
        results: list[Result] = await self.run(self.calls.execute(commands))
        return results

    async def scan(
        self,
        prefix: str = "",
        start_after: str = "",
        limit: int | None = None,
        read: ReadName = "linearizable",
        node: int | None = None,
    ) -> AsyncIterator[Item]:
        """As Client.scan."""
        left, index = sys.maxsize if limit is None else limit, self._index(node)
        while left > 0:
            page: Page = await self.run(
                self.calls.page(prefix, start_after, min(left, PAGE_ITEMS), read, index)
            )
            for item in page.items:
                yield item
            left = left - len(page.items) if page.more and page.items else 0
            start_after = page.items[-1].key if page.items else ""

    async def status(self, node: int | None = None, digest: bool = False) -> Status:
        """As Client.status."""
        return await self.run(self.calls.status(self._index(node), digest))


def _heed(task: "asyncio.Task[Any]") -> None:
    """A connection that fails when nobody waits for it any more is not worth a line in the log."""
    if not task.cancelled():
        task.exception()


class _Call(NamedTuple):
    """A call that waits for its answer. Times are the event loop's, in seconds."""

    attempt: Attempt
    answer: "asyncio.Future[Any]"
    since: float
    until: float


class _Channel:
    """The connection to one node, and the calls that wait for an answer on it."""

    __slots__ = ("_client", "_connecting", "_connection", "_heard", "_node", "_sequence", "_waiting")

    def __init__(self, client: AsyncClient, node: Node) -> None:
        self._client = client
        self._node = node
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[Connection] | None = None
        self._waiting: dict[int, _Call] = {}
        self._sequence = 0
        self._heard = 0.0  # when the node last answered

    async def connected(self, timeout: float) -> Connection:
        """The connection, made if there is none. NotSent if that fails, or takes over `timeout` seconds."""
        if self._connection is not None:
            return self._connection
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(_heed)
        try:
            # Shielded: others may wait for the same connection, and longer.
            return await asyncio.wait_for(asyncio.shield(self._connecting), timeout)
        except TimeoutError:
            raise NotSent(f"no connection within {timeout:.3g} s") from None
        except OSError as error:
            raise NotSent(_told("cannot connect", error)) from None

    async def _connect(self) -> Connection:
        client, node = self._client, self._node
        try:
            _, connection = await client._loop.create_connection(
                lambda: Connection(self._on_answer, self._on_lost, MAX_ANSWER, client._flusher),
                node.host, node.port, ssl=client._tls, server_hostname=node.host if client._tls else None,
            )  # fmt: skip
            self._connection = connection
            return connection
        finally:
            self._connecting = None

    async def call(self, attempt: Attempt) -> Any:
        """The answer to this attempt. Raises any of FAILURES."""
        connection = self._connection or await self.connected(attempt.patience)
        self._sequence = sequence = self._sequence + 1 & 0x7FFFFFFF
        frame = attempt.frame(sequence)
        self._client.flush_soon()
        if not connection.send(frame):
            raise NotSent("the connection is closed")
        now = self._client._loop.time()
        call = _Call(attempt, self._client._loop.create_future(), now, now + attempt.patience)
        self._waiting[sequence] = call
        return await call.answer

    def _on_answer(
        self, _: Connection, kind: int, __: bytes, sequence: int, frame: bytes, offset: int
    ) -> None:
        call = self._waiting.pop(sequence, None)
        self._heard = self._client._loop.time()
        if call is None or call.answer.done():
            return  # it came too late: somebody has tried elsewhere
        try:
            call.answer.set_result(call.attempt.answer(kind, frame, offset))
        except FAILURES as error:
            call.answer.set_exception(error)

    def _on_lost(self, connection: Connection, error: Exception | None) -> None:
        if self._connection is connection:
            self._connection = None
            self._fail(_told("connection lost", error) if error else "connection lost: closed by the node")

    def _fail(self, reason: str) -> None:
        calls, self._waiting = self._waiting, {}
        for call in calls.values():
            if not call.answer.done():
                call.answer.set_exception(Lost(reason))

    def sweep(self, now: float) -> None:
        """Give up the calls whose time is over; and the connection, if nothing came over it all the while."""
        silent = False
        for sequence, call in list(self._waiting.items()):
            if call.until <= now:
                del self._waiting[sequence]
                silent = silent or self._heard < call.since
                if not call.answer.done():
                    call.answer.set_exception(Lost(f"no answer within {call.attempt.patience:.3g} s"))
        if silent:
            self.close("nothing was heard any more")

    def close(self, reason: str) -> None:
        """Close the connection; what waits on it is lost."""
        if self._connecting is not None:
            self._connecting.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
        self._fail(reason)
