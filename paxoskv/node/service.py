"""What clients can ask of a node: one function for each method of the Thrift service KeyValue."""

from collections.abc import Callable
from typing import Any, Final

from paxoskv.node.checkpointing import Checkpointing
from paxoskv.node.health import Health
from paxoskv.node.replica import Replica
from paxoskv.node.status import StatusReport
from paxoskv.wire.codec import NotDone
from paxoskv.wire.structs import Command, Item, Page, ReadMode, Result, Verb
from paxoskv.wire.validation import MAX_BATCH, MAX_CLIENT_FRAME, invalid

MAX_SCAN: Final = 1000  # items in a page
EXECUTE: Final = b"execute"
TOO_MANY: Final = f"commands: a list of at most {MAX_BATCH} is needed"


Methods = dict[bytes, Callable[[Any, tuple[Any, ...]], None]]


def too_many(frame: bytes, offset: int) -> bool:
    """Whether the arguments of execute are a longer list than is taken: then they are not even decoded."""
    return (
        frame.startswith(b"\x0f\0\1\x0c", offset)
        and int.from_bytes(frame[offset + 4 : offset + 8]) > MAX_BATCH
    )


class Service:
    """Checks what clients ask, and hands it to the replica; answers at once what needs no log."""

    def __init__(
        self,
        replica: Replica,
        checkpointing: Checkpointing,
        health: Health,
        status: StatusReport,
        answer: Callable[[Any, Any], None],
    ) -> None:
        self.replica = replica
        self.store = replica.store
        self.checkpointing = checkpointing
        self.health = health
        self.status = status
        self.answer = answer
        # By role: what gets the call and its arguments, by the method's name. A turn must follow.
        reader: Methods = {b"get": self._get, b"scan": self._scan, b"status": self._status}
        writer: Methods = reader | {
            b"put": self._put,
            b"delete": self._delete,
            b"compare_and_set": self._compare_and_set,
            b"increment": self._increment,
            b"execute": self._execute,
            b"open_session": self._open_session,
        }
        admin = writer | {b"checkpoint": self._checkpoint, b"read_checkpoint": self._read_checkpoint}
        self.methods = {"reader": reader, "writer": writer, "admin": admin, None: {}}

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

    def _execute(self, token: Any, arguments: tuple[Any, ...]) -> None:
        commands = arguments[0]
        if commands is None or len(commands) > MAX_BATCH:
            self.answer(token, NotDone(TOO_MANY, True))
        elif not commands:
            self.answer(token, [])
        else:
            self._submit(token, commands, batch=True)

    def _submit(self, token: Any, commands: list[Command], batch: bool = False) -> None:
        for index, command in enumerate(commands):
            reason = invalid(command)
            if reason is not None:
                where = f"commands[{index}]: " if batch else ""
                self.answer(token, NotDone(where + reason, True))
                return
        refusal = self.health.refuses_commands()
        if refusal is not None:
            self.answer(token, NotDone(refusal, False))
        else:
            self.replica.submit(token, commands, batch)

    # -------------------------------------------------------------------------------------------------- reads

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

    def _checkpoint(self, token: Any, arguments: tuple[Any, ...]) -> None:
        """Of all that was answered before, by any node: so the node catches up first."""

        def read(value: Any) -> None:
            if isinstance(value, Exception):
                self.answer(token, value)
            else:
                self.checkpointing.ask(token)

        self.replica.read(read, lambda: None)

    def _read_checkpoint(self, token: Any, arguments: tuple[Any, ...]) -> None:
        number, offset = arguments
        if (number or 0) < 0 or (offset or 0) < 0:
            self.answer(token, NotDone("number and offset are not negative", True))
        else:
            self.answer(token, self.checkpointing.files.chunk(number or 0, offset or 0))

    def _status(self, token: Any, arguments: tuple[Any, ...]) -> None:
        self.answer(token, self.status.status(bool(arguments[0])))
