"""Nodes to test clients against: threads, blocking sockets and a real Store, but no Paxos.

All nodes of a FakeCluster share one store, as if they always agreed. What a node does with its next calls can
be scripted: by default it does what it is asked and answers.
"""

import socket
import threading
from collections import deque
from pathlib import Path
from typing import Any

from paxoskv.config import Cluster, Member
from paxoskv.state.changes import at, place
from paxoskv.state.store import Store, encode_batch
from paxoskv.wire.codec import Compacted, Expired, Forgotten, NotDone, Status
from paxoskv.wire.methods import METHODS, header, unknown_method
from paxoskv.wire.structs import Command, Membership, Outcome, Page, Position, Verb, Watched
from paxoskv.wire.validation import FORMAT, invalid
from tests.harness.ports import free_port

# What a node may be told to do with one call; besides, an exception to raise, or a function that says what.
CLOSE = "hang up, and do nothing"
DO_AND_CLOSE = "do it, then hang up"
IGNORE = "do nothing, and say nothing"
DO_AND_IGNORE = "do it, and say nothing"
GARBAGE = "answer with bytes that make no sense"
TWICE = "answer, and answer again"
ANOTHER_CALL = "answer as if to another call"


class FakeNode:
    """One node. `calls` are the names of the methods that it was asked for, in order."""

    def __init__(self, cluster: "FakeCluster", number: int) -> None:
        self.number = number
        self.script: deque[Any] = deque()
        self.always: Any = None  # what is done once the script is over
        self.calls: list[str] = []
        self.claims = number  # who it says it is
        self.old = False  # of a version that cannot say
        self.unknown: frozenset[bytes] = frozenset()  # methods that its version does not know
        self.accepted = 0  # connections, since the beginning
        self._stopped = False
        self._cluster = cluster
        self.port = free_port()
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections, and hang up on those there are."""
        self._stopped = True
        _hang_up(self._listener)
        for connection in self._connections:
            _hang_up(connection)

    def start(self) -> None:
        """Listen again at the same port."""
        self._stopped = False
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.accepted += 1
            self._connections.append(connection)
            if self._stopped:  # meanwhile
                _hang_up(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        file = connection.makefile("rb")
        try:
            while length := file.read(4):
                self._call(connection, file.read(int.from_bytes(length, "big")))
        except (OSError, ValueError):
            return

    def greet(self, sequence: int) -> bytes:
        """Say who this is. The script has no part in it."""
        if self.old:
            return unknown_method(b"membership", sequence)
        cluster = self._cluster.cluster
        return METHODS[b"membership"].reply(sequence, Membership(cluster.name, cluster.digest, self.claims))

    def _call(self, connection: socket.socket, frame: bytes) -> None:
        _, name, sequence, offset = header(frame)
        method = METHODS[name]
        if name == b"membership":
            connection.sendall(self.greet(sequence))
            return
        self.calls.append(method.name)
        if name in self.unknown:
            connection.sendall(unknown_method(name, sequence))
            return
        todo = self.script.popleft() if self.script else self.always
        if callable(todo):
            todo = todo()
        if todo == ANOTHER_CALL:
            sequence, todo = sequence + 1, None
        if isinstance(todo, Exception):
            connection.sendall(method.fail(sequence, todo))
            return
        if todo == GARBAGE:
            connection.sendall(b"\0\0\0\4what")
            return
        if todo not in (CLOSE, IGNORE):
            try:
                answer = method.reply(sequence, self._cluster.do(self, name, method.arguments(frame, offset)))
            except (Compacted, NotDone, Expired, Forgotten) as error:
                answer = method.fail(sequence, error)
            if todo in (None, TWICE):
                connection.sendall(answer * (2 if todo == TWICE else 1))
        if todo in (CLOSE, DO_AND_CLOSE):
            _hang_up(connection)


class FakeCluster:
    """Some nodes with one store."""

    def __init__(self, directory: Path, size: int = 3) -> None:
        self.store = Store(str(directory / "store.json"))
        self.store.format = FORMAT
        self._lock = threading.Lock()
        self.nodes = [FakeNode(self, number + 1) for number in range(size)]

    @property
    def cluster(self) -> Cluster:
        """What its cluster.json says."""
        return Cluster("fake", tuple(Member(node.number, "127.0.0.1", node.port) for node in self.nodes))

    def close(self) -> None:
        """Stop all nodes."""
        for node in self.nodes:
            node.stop()

    @property
    def content(self) -> dict[str, str]:
        """The keys and values in the store."""
        items, _ = self.store.scan("", "", 1_000_000, 1 << 40)
        return {item.key: item.value for item in items}

    def calls(self) -> list[str]:
        """The names of all methods that were called, node by node."""
        return [name for node in self.nodes for name in node.calls]

    def do(self, node: FakeNode, name: bytes, arguments: tuple[Any, ...]) -> Any:
        """What the node answers to a call."""
        with self._lock:
            match name, arguments:
                case b"open_session", ():
                    return self._apply(Command(Verb.OPEN_SESSION)).session
                case b"put", (key, value, request):
                    return self._apply(Command(Verb.PUT, key, value, request=request))
                case b"get", (key, _):
                    return self.store.get(key)
                case b"delete", (key, request):
                    return self._apply(Command(Verb.DELETE, key, request=request))
                case b"compare_and_set", (key, expected, value, request):
                    return self._apply(Command(Verb.COMPARE_AND_SET, key, value, expected, request=request))
                case b"increment", (key, delta, request):
                    return self._apply(Command(Verb.INCREMENT, key, delta=delta, request=request))
                case b"transaction", (transaction, request):
                    return self._apply(Command(Verb.TRANSACTION, request=request, transaction=transaction))
                case b"execute", (commands,):
                    return self._apply_all(commands)
                case b"scan", (prefix, start_after, limit, _):
                    items, more = self.store.scan(prefix, start_after, limit, 1 << 19)
                    return Page(items, more, self.store.position[0], Position(*self.store.position))
                case b"watch", (prefix, after, limit, _):  # it does not wait
                    changes = self.store.changes
                    found, upto = changes.changes(
                        prefix, at(after) if after else changes.end, limit or 2, 1 << 19
                    )
                    return Watched(found, place(upto))
                case b"scan_range", (wanted, _):
                    counted = self.store.count(wanted) if wanted.counted else None
                    items, more = self.store.page(wanted, wanted.limit or 1000, 1 << 19)
                    where = self.store.position
                    return Page(items, more, where[0], Position(*where), counted)
                case b"status", (digest,):
                    return self._status(node, bool(digest))
        raise AssertionError(f"{name!r} is no method for clients")

    def _apply(self, command: Command) -> Any:
        reason = invalid(command)
        if reason is not None:
            raise NotDone(reason, True)
        result = self._apply_all([command])[0]
        if result.outcome == Outcome.EXPIRED:
            raise Expired("no such session")
        if result.outcome == Outcome.FORGOTTEN:
            raise Forgotten("given up")
        return result

    def _apply_all(self, commands: list[Command]) -> Any:
        return self.store.apply(self.store.position[0] + 1, 1, encode_batch(commands))

    def _status(self, node: FakeNode, digest: bool) -> Status:
        position = Position(*self.store.position)
        shown = self.store.digest() if digest else None
        return Status(node.number, "fake", "0", True, position.timestamp, position, self.store.size(), shown,
                      [], [], 0, 0, 0, 0.0, {})  # fmt: skip


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
    finally:
        connection.close()
