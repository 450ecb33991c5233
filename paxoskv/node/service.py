"""What clients can ask of a node: one function for each method of the Thrift service KeyValue.

No call costs others more than a moment. What is more than a command or a read of one key is long work: done
in pieces, and of each connection only one at a time; what was sent behind it waits until it is answered.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from paxoskv.config import address_text, parse_address
from paxoskv.node.calls import Call
from paxoskv.node.checkpointing import Checkpointing
from paxoskv.node.formats import Formats
from paxoskv.node.health import Health
from paxoskv.node.long_work import Digests, LongWork, Work
from paxoskv.node.replica import Replica
from paxoskv.node.status import StatusReport
from paxoskv.node.tracing import Tracing
from paxoskv.node.watches import Watches
from paxoskv.state.changes import at, place
from paxoskv.state.store import Digested
from paxoskv.wire.codec import Compacted, NotDone
from paxoskv.wire.connection import Connection
from paxoskv.wire.structs import (
    Command,
    Membership,
    Page,
    Place,
    Position,
    Range,
    ReadMode,
    Result,
    Verb,
    Watched,
)
from paxoskv.wire.validation import FORMAT, MAX_BATCH, MAX_CLIENT_FRAME, MAX_KEY_BYTES, invalid

MAX_SCAN: Final = 1000  # items in a page
MAX_WAIT_MS: Final = 60_000  # that a watch waits
EXECUTE: Final = b"execute"
TOO_MANY: Final = f"commands: a list of at most {MAX_BATCH} is needed"


Methods = dict[bytes, Callable[[Any, tuple[Any, ...]], None]]


def too_many(frame: bytes, offset: int) -> bool:
    """Whether the arguments of execute are a longer list than is taken: then they are not even decoded."""
    return (
        frame.startswith(b"\x0f\0\1\x0c", offset)
        and int.from_bytes(frame[offset + 4 : offset + 8]) > MAX_BATCH
    )


@dataclass(eq=False)
class Service:
    """Checks what clients ask, and hands it to the replica; answers at once what needs no log."""

    replica: Replica
    checkpointing: Checkpointing
    health: Health
    status: StatusReport
    long_work: LongWork
    watches: Watches
    tracing: Tracing
    formats: Formats
    answer: Callable[[Any, Any], None]

    def __post_init__(self) -> None:
        self.store = self.replica.store
        self.paused: list[Connection] = []  # until fewer calls wait
        self.digests = Digests(self.store, self.long_work, self._digested)
        # By role: what gets the call and its arguments, by the method's name. A turn must follow.
        anybody: Methods = {b"membership": self._membership}
        reader: Methods = anybody | {
            b"get": self._get,
            b"scan": self._scan,
            b"scan_range": self._scan_range,
            b"watch": self._watch,
            b"status": self._status,
        }
        writer: Methods = reader | {
            b"put": self._put,
            b"delete": self._delete,
            b"compare_and_set": self._compare_and_set,
            b"increment": self._increment,
            b"transaction": self._transaction,
            b"execute": self._execute,
            b"open_session": self._open_session,
        }
        admin = writer | {
            b"checkpoint": self._checkpoint,
            b"read_checkpoint": self._read_checkpoint,
            b"trace": self._trace,
            b"replace_node": self._replace_node,
        }
        self.methods = {"reader": reader, "writer": writer, "admin": admin, None: anybody}

    def _digested(self, call: Call, made: Digested) -> None:
        self.answer(call, self.status.status(made))

    # ----------------------------------------------------------------------------------------------- commands

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

    def _transaction(self, token: Any, arguments: tuple[Any, ...]) -> None:
        transaction, request = arguments
        command = Command(Verb.TRANSACTION, None, None, None, None, request, transaction)
        self._submit_newer(token, [command], False)

    def _replace_node(self, token: Any, arguments: tuple[Any, ...]) -> None:
        node, address, request = arguments
        peers = self.status.peers
        addresses = peers.addresses
        if peers.trust.certificates is None and not token.connection.is_local():
            who = "without certificates only a process on a node's own machine may replace nodes"
            self.answer(token, NotDone(who, False))
            return
        try:
            text = address_text(*parse_address(address or ""))
        except ValueError as error:
            self.answer(token, NotDone(f"address: {error}", True))
            return
        if node not in addresses.members:
            self.answer(token, NotDone(f"node {node} is not another node of this cluster", False))
        elif (reason := addresses.taken(node, text)) is not None:
            self.answer(token, NotDone(reason, True))
        elif (why := peers.needs(node)) is not None:
            self.answer(token, NotDone(why, False))
        else:
            self._submit_newer(
                token, [Command(Verb.REPLACE_NODE, str(node), text, None, None, request)], False, node
            )

    def _execute(self, token: Any, arguments: tuple[Any, ...]) -> None:
        commands = arguments[0]
        if commands is None or len(commands) > MAX_BATCH:
            self.answer(token, NotDone(TOO_MANY, True))
        elif not commands:
            self.answer(token, [])
        elif _newer(commands):
            self._submit_newer(token, commands, True)
        else:
            self._submit(token, commands, batch=True)

    def _submit_newer(
        self, token: Any, commands: list[Command], batch: bool, besides: int | None = None
    ) -> None:
        """Submit commands that older versions do not know, when all nodes have applied an UPGRADE."""
        refusal = self._refusal(commands, batch)
        if batch and any(command.verb == Verb.REPLACE_NODE for command in commands):
            refusal = NotDone("only replace_node says REPLACE_NODE", True)
        elif any(command.verb == Verb.UPGRADE for command in commands):
            refusal = NotDone("only nodes say UPGRADE", True)
        if refusal is not None:
            self.answer(token, refusal)
        elif self.formats.settled:
            self._submit(token, commands, batch)
        elif (hindrance := self.formats.hindrance(besides)) is not None:
            self.answer(token, NotDone(hindrance, False))
        else:

            def proposed(reason: str | None) -> None:
                if reason is None:
                    self._submit(token, commands, batch)
                else:
                    self.answer(token, NotDone(reason, False))

            def upgraded(value: Any) -> None:
                if isinstance(value, Exception) or self.store.format < FORMAT:
                    proposed("the nodes did not agree in time that all know this")
                else:
                    self.formats.wait(proposed, besides, self.replica.clock())

            if self.store.format < FORMAT:
                self.replica.submit(upgraded, [Command(Verb.UPGRADE, delta=FORMAT)])
            else:
                upgraded(None)

    def _submit(self, token: Any, commands: list[Command], batch: bool = False) -> None:
        refusal = self._refusal(commands, batch)
        if refusal is not None:
            self.answer(token, refusal)
        else:
            self.replica.submit(token, commands, batch)
            self._hold_if_crowded(token)

    def _refusal(self, commands: list[Command], batch: bool) -> NotDone | None:
        """Why the commands are not submitted; None if they may be."""
        for index, command in enumerate(commands):
            reason = invalid(command)
            if reason is not None:
                where = f"commands[{index}]: " if batch else ""
                return NotDone(where + reason, True)
        refusal = self.health.refuses_commands()
        return None if refusal is None else NotDone(refusal, False)

    # -------------------------------------------------------------------------------------------------- reads

    def _get(self, token: Any, arguments: tuple[Any, ...]) -> None:
        key, mode = arguments
        if mode == ReadMode.LOG:
            self._submit(token, [Command(Verb.GET, key)])
            return
        reason = invalid(Command(Verb.GET, key))
        self._read(token, mode, reason, lambda: self.store.get(key), lambda: self._get_local(key))
        self._hold_if_crowded(token)

    def _hold_if_crowded(self, call: Call) -> None:
        """While too many calls wait, a connection that has added one is held, so that all get a turn."""
        if self.replica.crowded:
            call.connection.hold()
            self.paused.append(call.connection)

    def let_in(self) -> None:
        """A turn has been made: go on with the connections that are held if fewer calls wait now."""
        if self.paused and not self.replica.crowded:
            paused, self.paused = self.paused, []
            for connection in paused:
                connection.release()

    def _get_local(self, key: str) -> Result:
        result = self.store.get(key)
        return Result(result.outcome, result.value, None, self.store.position[0])

    def _scan(self, token: Call, arguments: tuple[Any, ...]) -> None:
        prefix, start_after, limit, mode = arguments
        self._page(token, Range(prefix, after=start_after, limit=limit), mode)

    def _scan_range(self, token: Call, arguments: tuple[Any, ...]) -> None:
        wanted, mode = arguments
        self._page(token, wanted or Range(), mode)

    def _page(self, token: Call, wanted: Range, mode: int | None) -> None:
        limit, store = wanted.limit, self.store
        reason = None if limit is None or 0 < limit <= MAX_SCAN else f"limit: {limit} is not 1 to {MAX_SCAN}"

        def page() -> Work:
            yield from store.sort()
            count = store.count(wanted) if wanted.counted else None
            found = store.page(wanted, limit or MAX_SCAN, MAX_CLIENT_FRAME) if count is None else ([], False)
            self._done(token, Page(*found, store.position[0], Position(*store.position), count))

        def fresh(value: Any) -> None:
            if isinstance(value, Exception):
                self._done(token, value)
            else:
                self.long_work.begin(page(), token)

        # There is no scan command for the log: the two modes promise the same.
        mode = ReadMode.LINEARIZABLE if mode == ReadMode.LOG else mode
        token.connection.hold()
        self._read(fresh, mode, reason, lambda: None, lambda: None)

    def _watch(self, token: Call, arguments: tuple[Any, ...]) -> None:
        prefix, after, limit, wait_ms = arguments
        limit, wait_ms = limit or MAX_SCAN, wait_ms or 0
        reason = None
        if not 0 < limit <= MAX_SCAN:
            reason = f"limit: {limit} is not 1 to {MAX_SCAN}"
        elif not 0 <= wait_ms <= MAX_WAIT_MS:
            reason = f"wait_ms: {wait_ms} is not 0 to {MAX_WAIT_MS}"
        elif prefix and len(prefix) > MAX_KEY_BYTES:
            reason = f"prefix: no key is longer than {MAX_KEY_BYTES} bytes"
        if after is None:  # from now on: whatever was answered before this call is not told
            changes = self.store.changes
            self._read(token, None, reason, lambda: Watched([], place(changes.end)), lambda: None)
        elif reason is not None:
            self.answer(token, NotDone(reason, True))
        elif (refusal := self.health.refuses_reads()) is not None:
            self.answer(token, NotDone(refusal, False))
        elif at(after) <= self.store.changes.end:
            self.watches.begin(token, prefix or "", at(after), limit, wait_ms / 1000)
        else:
            self._watch_ahead(token, prefix or "", after, limit, wait_ms / 1000)

    def _watch_ahead(self, token: Call, prefix: str, after: Place, limit: int, wait_s: float) -> None:
        """Begin a watch behind a place that this node has not reached: if others have, it does so first."""

        def fresh(value: Any) -> None:
            end = self.store.changes.end
            if isinstance(value, Exception):
                self.answer(token, value)
            elif at(after) > end:
                reason = (
                    f"nobody has come to {after.timestamp}.{after.owner} so far: it is none of this cluster"
                )
                self.answer(token, Compacted(reason, place(end)))
            else:
                self.watches.begin(token, prefix, at(after), limit, wait_s)

        self.replica.read(fresh, lambda: None)

    def _read(
        self,
        token: Any,
        mode: int | None,
        reason: str | None,
        question: Callable[[], Any],
        local: Callable[[], Any],
    ) -> None:
        if reason is not None:
            self.answer(token, NotDone(reason, True))
        elif mode == ReadMode.LOCAL:
            self.answer(token, local())
        elif mode is not None and mode != ReadMode.LINEARIZABLE:
            self.answer(token, NotDone(f"mode: {mode} is unknown", True))
        elif (refusal := self.health.refuses_reads()) is not None:
            self.answer(token, NotDone(refusal, False))
        else:
            self.replica.read(token, question)

    # ------------------------------------------------------------------------------------ checkpoints, status

    def _checkpoint(self, token: Call, arguments: tuple[Any, ...]) -> None:
        """Of all that was answered before, by any node: so the node catches up first."""

        def fresh(value: Any) -> None:
            if isinstance(value, Exception):
                self._done(token, value)
            else:
                self.checkpointing.ask(lambda value: self._done(token, value))

        token.connection.hold()
        self.replica.read(fresh, lambda: None)

    def _read_checkpoint(self, token: Call, arguments: tuple[Any, ...]) -> None:
        number, offset = arguments
        if (number or 0) < 0 or (offset or 0) < 0:
            self.answer(token, NotDone("number and offset are not negative", True))
        else:
            self._at_its_time(token, lambda: self.checkpointing.files.chunk(number or 0, offset or 0))

    def _membership(self, token: Any, arguments: tuple[Any, ...]) -> None:
        ours = self.status.identity
        self.answer(
            token, Membership(ours.cluster, ours.digest, ours.node, self.status.peers.addresses.moved())
        )

    def _status(self, token: Call, arguments: tuple[Any, ...]) -> None:
        if arguments[0]:
            self.digests.ask(token)
        else:
            self._at_its_time(token, self.status.status)

    def _trace(self, token: Call, arguments: tuple[Any, ...]) -> None:
        on, after = arguments
        if on is not None:
            self.tracing.switch(on)
        self._work(token, self.tracing.after(after or 0))

    # --------------------------------------------------------------------------------------------- long work

    def _at_its_time(self, token: Call, question: Callable[[], Any]) -> None:
        def work() -> Work:
            yield from ()
            return question()

        self._work(token, work())

    def _work(self, token: Call, work: Work) -> None:
        """Do this in pieces, and answer with what it returns."""

        def answered() -> Work:
            self._done(token, (yield from work))

        token.connection.hold()
        self.long_work.begin(answered(), token)

    def _done(self, token: Call, value: Any) -> None:
        """Answer a call for which its connection was held."""
        self.answer(token, value)
        token.connection.release()


def _newer(commands: list[Command]) -> bool:
    """Whether older versions do not know one of the commands."""
    for command in commands:  # noqa: SIM110 (any() would make a generator for each call)
        if (command.verb or 0) > Verb.OPEN_SESSION:
            return True
    return False
