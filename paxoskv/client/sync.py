"""The client that blocks: it carries out the steps of an operation over plain sockets.

    with Client(load("cluster.json")) as client:
        client.put("key", "value")
        client.get("key")                               # "value"

It keeps one connection to each node, made when it is first needed, and has one call under way at a time.
After an error it closes the connection, because a late answer would be taken for the answer to the next call.
A client must not be shared between threads or processes.
"""

import select
import socket
import ssl
import time
import zlib
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Any, Final, Self

from paxoskv.client.base import ATTEMPT_TIMEOUT_S, HARMLESS, MAX_ANSWER, Address, BaseClient, described
from paxoskv.client.locks import TTL_S, Lock
from paxoskv.client.operations import (
    FAILURES,
    Answer,
    Attempt,
    ClientError,
    Greeting,
    Lost,
    NotSent,
    Operation,
    ReadName,
    Stranger,
)
from paxoskv.client.transactions import Committed
from paxoskv.client.watching import Watching
from paxoskv.wire.codec import Malformed, Status
from paxoskv.wire.methods import header
from paxoskv.wire.structs import Action, Change, Command, Compare, Place, Range, Result

# Seconds after which an idle connection is checked before it is used: the node may have closed it.
IDLE_S: Final = 0.05
# Seconds that a node has at least to say who it is: 0 would make a socket that does not wait.
MIN_PATIENCE_S: Final = 0.001

_LENGTH: Final = Struct(">i")


class Client(BaseClient):
    """A client that blocks; its methods raise NotDoneError, UnknownOutcome or another ClientError.

    A method that takes `node`, an id, makes a single attempt at that node if one is given.
    """

    def _begin(self) -> None:
        self._open: list[_Socket | None] = [None] * len(self.nodes)

    def _moved(self, node: int) -> None:
        self._drop(node)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; the client may be used again."""
        for node in range(len(self._open)):
            self._drop(node)

    def connect(self, timeout: float = ATTEMPT_TIMEOUT_S) -> None:
        """Connect to all nodes now, within `timeout` seconds each; raise NoNodeReachable if all fail.

        At least one node has then said who it is.
        """
        errors: dict[int, Exception] = {}
        asked: dict[int, int] = {}  # from the socket's number to the node
        poll = select.poll()
        for node in range(len(self.nodes)):
            try:
                connection = self._connection(node, timeout)
            except NotSent as error:
                errors[node] = error
                continue
            if connection.unknown:
                asked[connection.fileno()] = node
                poll.register(connection, select.POLLIN)
        known = len(errors) + len(asked) < len(self.nodes)
        deadline = time.monotonic() + timeout
        while asked and not known:
            left = max(deadline - time.monotonic(), MIN_PATIENCE_S)
            for number in [ready for ready, _ in poll.poll(left * 1000)] or [*asked]:
                node = asked.pop(number)
                poll.unregister(number)
                try:
                    self._connection(node, timeout).greet(left)
                    known = True
                except NotSent as error:
                    errors[node] = error
                    self._drop(node)
        self._check_reachable([errors[node] for node in sorted(errors)])

    def run(self, operation: Operation[Answer]) -> Answer:
        """Carry out an operation of `calls`, and return its result."""
        steps = operation.steps
        try:
            step = next(steps)
            while True:
                if not isinstance(step, Attempt):
                    time.sleep(step.seconds)
                    step = steps.send(None)
                    continue
                try:
                    answer = self._attempt(step)
                except FAILURES as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            result: Answer = end.value
            return result
        finally:
            steps.close()  # after an interruption the command counts as given up

    def _attempt(self, attempt: Attempt) -> Any:
        connection = self._open[attempt.node]
        try:
            if connection is None or connection.closed_meanwhile():
                self._drop(attempt.node)
                connection = self._connection(attempt.node, attempt.patience)
            kind, frame, offset = connection.call(attempt)
            return attempt.answer(kind, frame, offset)
        except HARMLESS:
            raise
        except BaseException:  # also after an interruption: the answer may still come
            self._drop(attempt.node)
            raise

    def _connection(self, node: int, timeout: float) -> "_Socket":
        connection = self._open[node]
        if connection is None:
            greeting = self.greeting(node)
            connection = self._open[node] = _Socket(self.nodes[node], self._tls, timeout, greeting)
        return connection

    def _drop(self, node: int) -> None:
        connection = self._open[node]
        if connection is not None:
            self._open[node] = None
            connection.close()

    def open_session(self) -> None:
        """Open the session for writes now; otherwise the first write opens it."""
        self.run(self.calls.open_session())

    def put(self, key: str, value: str, ttl: float | None = None) -> None:
        """Set the key; `ttl`: the nodes remove it after this many seconds, unless it was written again."""
        self.run(self.calls.put(key, value, ttl))

    def get(self, key: str, read: ReadName = "linearizable", node: int | None = None) -> str | None:
        """Return the key's value, or None if there is none."""
        return self.run(self.calls.get(key, read, self._index(node)))

    def delete(self, key: str) -> bool:
        """Remove the key; return whether it existed."""
        return self.run(self.calls.delete(key))

    def compare_and_set(self, key: str, expected: str | None, value: str) -> tuple[bool, str | None]:
        """Set the key if it has the expected value; None expects that the key does not exist.

        Return (whether the key was set, the value that the key has now).
        """
        return self.run(self.calls.compare_and_set(key, expected, value))

    def increment(self, key: str, delta: int = 1) -> int:
        """Add to the integer at the key (0 if absent) and return the sum; NotANumber if it is no integer."""
        return self.run(self.calls.increment(key, delta))

    def transaction(
        self, compares: Sequence[Compare], then: Sequence[Action], otherwise: Sequence[Action] = ()
    ) -> Committed:
        """Do `then` if all comparisons hold, else `otherwise`: all of it or nothing, with nothing in between.

        paxoskv.transactions makes comparisons and actions. NotANumber: nothing was done, because an increment
        found no integer.
        """
        return self.run(self.calls.transaction(compares, then, otherwise))

    def execute(self, commands: Sequence[Command]) -> list[Result]:
        """Do the commands in order, with no other command between; see Calls.execute for the limits."""
        return self.run(self.calls.execute(commands))

    def lock(self, key: str, ttl: float = TTL_S, wait: float | None = None) -> Lock:
        """Return a lock to be taken, by `with`: see paxoskv.client.locks.

        Its holder has it for `ttl` seconds, and may renew that. Others wait for it: at most `wait` seconds
        (None: without end), then there is NotDoneError.
        """
        return Lock(self.run, self.calls, key, ttl, wait)

    def count(
        self,
        prefix: str = "",
        read: ReadName = "linearizable",
        node: int | None = None,
        *,
        start: str | None = None,
        end: str | None = None,
    ) -> int:
        """Return how many keys begin with the prefix, and lie from `start` to below `end`."""
        return self.run(self.calls.count(Range(prefix, start, end), read, self._index(node)))

    def watch(self, prefix: str = "", after: Place | None = None) -> "Watch":
        """Return the changes of keys that begin with the prefix, in their order, as they come; it never ends.

        They are those after this place, of an earlier change or watch; None: after now. Iterating waits for
        the next one, and raises CompactedError if it is gone.
        """
        return Watch(self, prefix, after)

    def status(self, node: int | None = None, digest: bool = False) -> Status:
        """Return what a node says of itself; with `digest` also the hash of its store."""
        return self.run(self.calls.status(self._index(node), digest))

    def trace(
        self, node: int | None = None, on: bool | None = None, held: bool = False
    ) -> tuple[bool, list[str]]:
        """Let a node record what happens, or stop; return whether it does now, and its events, as JSON.

        With `held`, the events are the last entries that the node's journal has, recorded or not.
        """
        events: list[str] = []
        last = -1 if held else 0
        while True:
            traced = self.run(self.calls.trace(self._index(node), on, last))
            events += traced.events.split("\n") if traced.events else []
            last = traced.last
            if on is not None or not traced.more:
                return traced.on, events

    def replace_node(self, node: int, address: str) -> None:
        """Let the node with this id be at this address, HOST:PORT, from now on: all nodes agree on it.

        Its process there starts with its data, or with --rejoin; one at the old address is refused.
        """
        self.run(self.calls.replace_node(node, address))

    def checkpoint(self, node: int | None = None) -> int:
        """Let a node make a checkpoint; return its number when it is durable."""
        return self.run(self.calls.checkpoint(self._index(node)))

    def read_checkpoint(self, node: int | None = None) -> Iterator[bytes]:
        """Return the pieces of a node's newest checkpoint; none if it has no checkpoint.

        ClientError: the checkpoint was replaced meanwhile, or is damaged. Then the pieces are worthless.
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


class Watch(Watching):
    """Iterates over changes; after an error it may be asked for the next one again."""

    def __init__(self, client: Client, prefix: str, after: Place | None) -> None:
        super().__init__(client.calls, prefix, after)
        self._client = client
        if after is None:
            self._fetch()

    def _fetch(self) -> None:
        operation = self._operation()
        self._took(operation, self._client.run(operation))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Change:
        """Return the next change, when there is one."""
        while not self._come:
            self._fetch()
        return self._take()


class _Socket:
    """One connection to one node, with one call under way at a time; after Lost it must not be used again."""

    __slots__ = ("_greeting", "_patience", "_poll", "_sequence", "_socket", "_used")

    def __init__(
        self, node: Address, tls: ssl.SSLContext | None, timeout: float, greeting: Greeting | None
    ) -> None:
        """Connect within `timeout` seconds, and send the greeting; raise NotSent if that fails."""
        try:
            self._socket = socket.create_connection((node.host, node.port), timeout)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls:
                self._socket = tls.wrap_socket(self._socket, server_hostname=node.host)
            if greeting:
                self._socket.sendall(greeting.frame(0))
        except OSError as error:
            raise NotSent(described("cannot connect", error)) from None
        self._greeting = greeting  # until its answer has been read, just before the first call
        self._patience = timeout  # the present timeout of the socket, in seconds
        self._sequence = 0
        self._used = time.monotonic()
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def closed_meanwhile(self) -> bool:
        """Tell whether the node closed the connection, or sent something unasked, while it was idle.

        NotSent: it has answered the greeting, and it is another node.
        """
        now = time.monotonic()
        idle, self._used = now - self._used, now
        if idle <= IDLE_S or not self._poll.poll(0):
            return False
        if self._greeting:
            try:
                self.greet(self._patience)
            except Stranger:
                raise
            except NotSent:
                return True
        return bool(self._poll.poll(0))

    def call(self, attempt: Attempt) -> tuple[int, bytes, int]:
        """Send the call; return its answer's kind, frame and offset of the struct.

        Unfit: the call cannot be sent. Lost: it was sent. NotSent: the node has not said that it is the right
        one.
        """
        self._sequence = sequence = self._sequence + 1 & 0x7FFFFFFF
        frame = attempt.frame(sequence)
        patience = attempt.patience
        if self._greeting:
            patience -= self.greet(patience)
        return self._exchange(frame, sequence, patience)

    @property
    def unknown(self) -> bool:
        """Tell whether it is still unknown who the node is."""
        return self._greeting is not None

    def fileno(self) -> int:
        """Return the socket's number, for poll."""
        return self._socket.fileno()

    def greet(self, patience: float) -> float:
        """Read the answer to the greeting; return the seconds that it took, or raise NotSent."""
        began = time.monotonic()
        greeting = self._greeting
        assert greeting is not None, "greeted already"
        try:
            answer = self._exchange(b"", 0, patience)
        except Lost as error:
            raise NotSent(f"it did not say who it is: {error}") from None
        greeting.answer(*answer)
        self._greeting = None
        return min(time.monotonic() - began, patience / 2)

    def _exchange(self, frame: bytes, sequence: int, patience: float) -> tuple[int, bytes, int]:
        """Send the frame, and receive the answer to this sequence; raise Lost."""
        try:
            if patience != self._patience:
                self._patience = patience
                self._socket.settimeout(patience)
            self._socket.sendall(frame)
            answer = self._receive()
            kind, _, echoed, offset = header(answer, 4)
        except TimeoutError:
            raise Lost(f"no answer within {patience:.3g} s") from None
        except OSError as error:
            raise Lost(described("connection lost", error)) from None
        except Malformed as error:
            raise Lost(f"a malformed answer: {error}") from None
        if echoed != sequence:
            raise Lost("an answer to another call")
        return kind, answer, offset

    def _receive(self) -> bytes:
        """Receive a whole frame, its length included; raise OSError or Malformed."""
        data = self._some()
        if len(data) >= 4 and len(data) == 4 + _LENGTH.unpack_from(data)[0]:
            return data  # the common case: the frame came in one piece
        buffer = bytearray(data)
        deadline = time.monotonic() + self._patience
        while len(buffer) < 4 or len(buffer) < 4 + _checked(_LENGTH.unpack_from(buffer)[0]):
            self._patience = deadline - time.monotonic()
            if self._patience <= 0:
                raise TimeoutError
            self._socket.settimeout(self._patience)
            buffer += self._some()
        if len(buffer) > 4 + _LENGTH.unpack_from(buffer)[0]:
            raise Malformed("more than one answer")
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
