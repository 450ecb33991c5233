"""The client for asyncio: it carries out the steps of many operations at the same time.

    async with AsyncClient("127.0.0.1:7001") as client:
        await asyncio.gather(*(client.put(f"key{i}", "value") for i in range(32)))

It keeps one connection to each node, made when it is first needed, and has many calls under way on each. The
sequence in an answer tells which call it belongs to; an answer that comes too late is dropped. A client must
not be shared between threads or processes.
"""

import asyncio
from collections.abc import Sequence
from math import inf
from typing import Any, Final, NamedTuple, Self

from paxoskv.client.base import ATTEMPT_TIMEOUT_S, MAX_ANSWER, BaseClient, described
from paxoskv.client.locks import TTL_S, AsyncLock
from paxoskv.client.operations import (
    FAILURES,
    Answer,
    Attempt,
    Greeting,
    Lost,
    NotSent,
    Operation,
    ReadName,
)
from paxoskv.client.transactions import Committed
from paxoskv.client.watching import Watching
from paxoskv.wire.codec import Status
from paxoskv.wire.connection import Connection, Flusher
from paxoskv.wire.structs import Action, Change, Command, Compare, Place, Range, Result

# Seconds that a node may take to say who it is, while others are tried.
GREETING_S: Final = 10.0
# Seconds between two searches for calls that got no answer in time.
SWEEP_S: Final = 0.05


class AsyncClient(BaseClient):
    """Client for asyncio: each task that awaits has its own operation under way.

    It must be made while the event loop runs. Its methods do and raise what those of Client do.
    """

    def _begin(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._flusher = Flusher()
        self._channels = [_Channel(self, index) for index in range(len(self.nodes))]
        self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)

    def _moved(self, node: int) -> None:
        self._channels[node].close("the node has another address")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections for good; no operation may be under way."""
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
        """Connect to all nodes now, within `timeout` seconds; raise NoNodeReachable if all fail."""
        results = await asyncio.gather(
            *(channel.connected(timeout) for channel in self._channels), return_exceptions=True
        )
        self._check_reachable([result for result in results if isinstance(result, NotSent)])

    async def run(self, operation: Operation[Answer]) -> Answer:
        """Carry out an operation of `calls`, and return its result."""
        steps = operation.steps
        try:
            step = next(steps)
            while True:
                if not isinstance(step, Attempt):
                    await asyncio.sleep(step.seconds)
                    step = steps.send(None)
                    continue
                try:
                    answer = await self._channels[step.node].call(step)
                except FAILURES as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            result: Answer = end.value
            return result
        finally:
            steps.close()  # after a cancellation the command counts as given up

    async def open_session(self) -> None:
        """Do as Client.open_session."""
        await self.run(self.calls.open_session())

    async def put(self, key: str, value: str, ttl: float | None = None) -> None:
        """Do as Client.put."""
        await self.run(self.calls.put(key, value, ttl))

    async def get(self, key: str, read: ReadName = "linearizable", node: int | None = None) -> str | None:
        """Do as Client.get."""
        return await self.run(self.calls.get(key, read, self._index(node)))

    async def delete(self, key: str) -> bool:
        """Do as Client.delete."""
        return await self.run(self.calls.delete(key))

    async def compare_and_set(self, key: str, expected: str | None, value: str) -> tuple[bool, str | None]:
        """Do as Client.compare_and_set."""
        return await self.run(self.calls.compare_and_set(key, expected, value))

    async def increment(self, key: str, delta: int = 1) -> int:
        """Do as Client.increment."""
        return await self.run(self.calls.increment(key, delta))

    async def transaction(
        self, compares: Sequence[Compare], then: Sequence[Action], otherwise: Sequence[Action] = ()
    ) -> Committed:
        """Do as Client.transaction."""
        return await self.run(self.calls.transaction(compares, then, otherwise))

    async def execute(self, commands: Sequence[Command]) -> list[Result]:
        """Do as Client.execute."""
        return await self.run(self.calls.execute(commands))

    def lock(self, key: str, ttl: float = TTL_S, wait: float | None = None) -> AsyncLock:
        """Do as Client.lock, for `async with`."""
        return AsyncLock(self.run, self.calls, key, ttl, wait)

    async def count(
        self,
        prefix: str = "",
        read: ReadName = "linearizable",
        node: int | None = None,
        *,
        start: str | None = None,
        end: str | None = None,
    ) -> int:
        """Do as Client.count."""
        return await self.run(self.calls.count(Range(prefix, start, end), read, self._index(node)))

    async def replace_node(self, node: int, address: str) -> None:
        """Do as Client.replace_node."""
        await self.run(self.calls.replace_node(node, address))

    async def watch(self, prefix: str = "", after: Place | None = None) -> "AsyncWatch":
        """Do as Client.watch, for `async for`; the place of now is known when this returns."""
        watch = AsyncWatch(self, prefix, after)
        if after is None:
            await watch.fetch()
        return watch

    async def status(self, node: int | None = None, digest: bool = False) -> Status:
        """Do as Client.status."""
        return await self.run(self.calls.status(self._index(node), digest))


class AsyncWatch(Watching):
    """Iterates over changes; after an error it may be asked for the next one again."""

    def __init__(self, client: AsyncClient, prefix: str, after: Place | None) -> None:
        super().__init__(client.calls, prefix, after)
        self._client = client

    async def fetch(self) -> None:
        """Wait some seconds for changes, and keep them until they are asked for."""
        operation = self._operation()
        self._took(operation, await self._client.run(operation))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        """Return the next change, when there is one."""
        while not self._come:
            await self.fetch()
        return self._take()


def _ignore_error(task: "asyncio.Task[Any]") -> None:
    """Keep asyncio from logging the error of a connection for which nobody waits any more."""
    if not task.cancelled():
        task.exception()


class _Call(NamedTuple):
    """A call that waits for its answer; `since` and `until` are seconds by the event loop's clock."""

    attempt: Attempt | Greeting
    answer: "asyncio.Future[Any]"
    since: float
    until: float


class _Channel:
    """The connection to one node, and the calls that wait for an answer on it."""

    __slots__ = (
        "_arriving", "_client", "_connecting", "_connection", "_heard", "_index", "_sequence", "_waiting",
    )  # fmt: skip

    def __init__(self, client: AsyncClient, index: int) -> None:
        self._client = client
        self._index = index  # of the node
        self._connection: Connection | None = None
        self._arriving: Connection | None = None  # until the node has said who it is
        self._connecting: asyncio.Task[Connection] | None = None
        self._waiting: dict[int, _Call] = {}
        self._sequence = 0
        self._heard = 0.0  # when the node last answered, by the event loop's clock

    async def connected(self, timeout: float) -> Connection:
        """Return the connection, made now if there is none; raise NotSent after `timeout` seconds."""
        if self._connection is not None:
            return self._connection
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(_ignore_error)
        connecting = self._connecting
        try:
            # Shielded, because others may wait for the same connection, and longer.
            return await asyncio.wait_for(asyncio.shield(connecting), timeout)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not connecting.cancelled() or (task is not None and task.cancelling()):
                raise
            raise NotSent("the connection was given up while it was made") from None
        except TimeoutError:
            what = "answer" if self._arriving else "connection"
            raise NotSent(f"no {what} within {timeout:.3g} s") from None
        except OSError as error:
            raise NotSent(described("cannot connect", error)) from None

    async def _connect(self) -> Connection:
        client, node = self._client, self._client.nodes[self._index]
        try:
            _, connection = await client._loop.create_connection(
                lambda: Connection(self._on_answer, self._on_lost, MAX_ANSWER, client._flusher),
                node.host, node.port, ssl=client._tls, server_hostname=node.host if client._tls else None,
            )  # fmt: skip
            await self._greet(connection)
            self._connection = connection
            return connection
        finally:
            self._connecting = None

    async def _greet(self, connection: Connection) -> None:
        """Ask the node who it is, if that matters; raise NotSent if it is another one or does not say."""
        greeting = self._client.greeting(self._index)
        if greeting is None:
            return
        self._arriving = connection
        try:
            async with asyncio.timeout(GREETING_S):
                await self._send(connection, greeting, inf)
        except Lost as error:
            raise NotSent(f"it did not say who it is: {error}") from None
        except BaseException:
            connection.abort()
            raise
        finally:
            self._arriving = None

    async def call(self, attempt: Attempt) -> Any:
        """Return the answer to this attempt; raise any of FAILURES."""
        connection = self._connection or await self.connected(attempt.patience)
        return await self._send(connection, attempt, attempt.patience)

    def _send(
        self, connection: Connection, attempt: Attempt | Greeting, patience: float
    ) -> "asyncio.Future[Any]":
        self._sequence = sequence = self._sequence + 1 & 0x7FFFFFFF
        frame = attempt.frame(sequence)
        self._client.flush_soon()
        if not connection.send(frame):
            raise NotSent("the connection is closed")
        now = self._client._loop.time()
        call = _Call(attempt, self._client._loop.create_future(), now, now + patience)
        self._waiting[sequence] = call
        return call.answer

    def _on_answer(
        self, _: Connection, kind: int, __: bytes, sequence: int, frame: bytes, offset: int
    ) -> None:
        call = self._waiting.pop(sequence, None)
        self._heard = self._client._loop.time()
        if call is None or call.answer.done():
            return  # the answer is late: the operation has tried another node
        try:
            call.answer.set_result(call.attempt.answer(kind, frame, offset))
        except FAILURES as error:
            call.answer.set_exception(error)

    def _on_lost(self, connection: Connection, error: Exception | None) -> None:
        if connection in (self._connection, self._arriving):
            self._connection = None
            self._fail(
                described("connection lost", error) if error else "connection lost: closed by the node"
            )

    def _fail(self, reason: str) -> None:
        calls, self._waiting = self._waiting, {}
        for call in calls.values():
            if not call.answer.done():
                call.answer.set_exception(Lost(reason))

    def sweep(self, now: float) -> None:
        """Give up the calls whose time is over, and the connection if it was silent for one of them."""
        silent = False
        for sequence, call in list(self._waiting.items()):
            if call.until <= now:
                del self._waiting[sequence]
                silent = silent or self._heard < call.since
                if not call.answer.done():
                    call.answer.set_exception(Lost(f"no answer within {call.until - call.since:.3g} s"))
        if silent:
            self.close("no answer to any call for too long")

    def close(self, reason: str) -> None:
        """Close the connection; the calls that wait on it are lost."""
        if self._connecting is not None:
            self._connecting.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
        self._fail(reason)
