"""The operations of a client: which node to try, what to repeat, and what to report when nodes fail.

This module opens no socket. An Operation is one command on its way through the cluster. Its `steps` are a
generator. A client (sync.py, aio.py) carries out each step and sends the outcome back:

    step = next(operation.steps)
    while True:
        Attempt   call the node; wait at most `patience` seconds
                  the answer                         -> step = steps.send(answer)
                  NotDone, Unknown, Expired, Forgotten,
                  Compacted, NotSent, Lost, Unfit    -> step = steps.throw(error)
        Pause     wait `seconds`                     -> step = steps.send(None)
    StopIteration: its value is the operation's result.    ClientError: the operation failed.

An error from a node speaks of one attempt (docs/protocol.md, "Exactly once"). An operation speaks of all its
attempts, by these rules:

- Operations begin at different nodes, in turn. After a failure the next node is tried, until the deadline.
- A write carries (session, sequence), so that a repeated write is applied once. The first write opens the
  session.
- A write is reported as not done only if no attempt was done: each was refused with NotDone or had no
  connection. After Unknown, a lost connection or a timeout the attempt may have been done. Then only an
  answer ends the doubt: a repeat with the same number gets the first attempt's result. Without an answer
  the outcome is unknown at the deadline.
- After Expired or Forgotten the attempt was not applied. If no earlier attempt may have been, the write gets
  a number in a new session and is repeated. Otherwise the outcome is unknown.
- Reads and open_session change nothing that matters. They are repeated freely, and their failure is definite.
- An operation that was given up counts as answered. The session's next command tells the store so
  (first_incomplete), and from then on the store refuses late copies. So a command that was given up is
  applied before that moment or never, and it holds up no other command.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from secrets import token_hex
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

from thrift.Thrift import TApplicationException

from paxoskv.client import transactions
from paxoskv.client.transactions import Committed
from paxoskv.wire.codec import Compacted, Expired, Forgotten, Malformed, NotDone, Status, Unknown
from paxoskv.wire.methods import METHODS, Method
from paxoskv.wire.structs import (
    Action,
    Chunk,
    Command,
    Compare,
    Membership,
    Outcome,
    Page,
    Place,
    Range,
    ReadMode,
    RequestId,
    Result,
    Session,
    Traced,
    Transaction,
    Verb,
    Watched,
)
from paxoskv.wire.validation import MAX_BATCH, MAX_CLIENT_FRAME, MAX_RESULTS, MAX_TRANSACTED

ReadName = Literal["linearizable", "log", "local"]
READ_MODES: Final[dict[str, int]] = {
    "linearizable": ReadMode.LINEARIZABLE, "log": ReadMode.LOG, "local": ReadMode.LOCAL,
}  # fmt: skip

# Seconds for which a failed node is not tried: after its first failure, doubled by each failure, and at most.
SKIP_S, MAX_SKIP_S = 1.0, 5.0
# Seconds that an operation pauses when every node has failed: at first, doubled by each round, and at most.
PAUSE_S, MAX_PAUSE_S = 0.01, 0.5
# How often a round over all nodes doubles the time of an attempt, because a slow node is not a dead one.
MAX_DOUBLINGS: Final = 6
# Items that one page of a scan may have (kvstore.thrift).
PAGE_ITEMS: Final = 1000
# Seconds that a node waits for a change, at least and at most, before it answers a watch with none. Each
# watch has another time, or all that began together would ask again together.
WATCH_S: Final = (7.0, 10.0)
# Characters of a key that an error message shows.
MAX_SHOWN: Final = 40


# ---------------------------------------------------------------------------------------------------- errors


class ClientError(Exception):
    """An operation failed; the message names it, the nodes that were asked, and the reason of each node."""


class NotDoneError(ClientError):
    """The operation was not done, and will not be.

    If `permanent`, the operation itself is wrong (a key over the limit, for example): every node refuses it.
    """

    def __init__(self, reason: str, permanent: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.permanent = permanent


class NoNodeReachable(NotDoneError):
    """The operation was not done, because no node accepted a connection."""


class WrongCluster(NoNodeReachable):
    """The operation was not done: the nodes that answer are not those of the cluster's file."""


class UnknownOutcome(ClientError):
    """The operation may have been done already, or may still be done later."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NotANumber(ClientError):
    """The value to increment, or the sum, is not a 64-bit decimal integer; nothing was changed."""


class CompactedError(ClientError):
    """No node that answers has all changes any more from where the watch was to go on.

    `oldest` is the oldest place from which one of them can. Earlier changes have to be read anew.
    """

    def __init__(self, reason: str, oldest: Place) -> None:
        super().__init__(reason)
        self.oldest = oldest


class NotSent(Exception):
    """A client reports: it has no connection to the node, and it sent nothing."""


class Stranger(NotSent):
    """A client reports: the node is not that of the cluster's file, and the call was not sent to it."""


class Lost(Exception):
    """A client reports: it sent the call, and got no usable answer."""


class Unfit(Exception):
    """A client reports: the call cannot be encoded or exceeds a node's limit, and nothing was sent."""


# The errors with which an attempt can end.
FAILURES: Final = (NotDone, Unknown, Expired, Forgotten, Compacted, NotSent, Lost, Unfit)


# ----------------------------------------------------------------------------------------------------- steps


class Attempt(NamedTuple):
    """A step: call the node with this index in the client's list, and wait at most `patience` seconds."""

    node: int
    method: Method
    arguments: tuple[Any, ...]
    patience: float

    def frame(self, sequence: int) -> bytes:
        """Encode the call as a frame; raise Unfit if that is impossible, or the frame too long."""
        try:
            frame = self.method.call(sequence, *self.arguments)
        except (ValueError, TypeError, OverflowError) as error:
            raise Unfit(f"cannot be encoded: {error}") from None
        if len(frame) - 4 > MAX_CLIENT_FRAME:
            raise Unfit(
                f"{len(frame) - 4:,} bytes are more than the {MAX_CLIENT_FRAME:,} that a frame may have"
            )
        return frame

    def answer(self, kind: int, frame: bytes, offset: int) -> Any:
        """Decode the answer (its kind, frame, and offset of the struct); raise the node's error, or Lost."""
        try:
            return self.method.answer(kind, frame, offset)
        except TApplicationException as error:
            if error.type == TApplicationException.UNKNOWN_METHOD:
                raise NotDone(f"its version does not know {self.method.name}", False) from None
            raise Lost(f"the node failed: {error.message}") from None
        except Malformed as error:
            raise Lost(f"a malformed answer: {error}") from None


class Greeting(NamedTuple):
    """The first call on a connection: the node says who it is; `expected` is what the cluster's file says."""

    expected: Membership
    learn: Callable[[Membership], None]

    def frame(self, sequence: int) -> bytes:
        """Encode the call as a frame."""
        return _MEMBERSHIP.call(sequence)

    def answer(self, kind: int, frame: bytes, offset: int) -> None:
        """Decode the answer; raise Stranger if the node is another one, NotSent if it does not say."""
        try:
            found: Membership = _MEMBERSHIP.answer(kind, frame, offset)
        except TApplicationException as error:
            if error.type == TApplicationException.UNKNOWN_METHOD:
                return  # a node of a version that cannot say
            raise NotSent(f"the node failed: {error.message}") from None
        except Malformed as error:
            raise NotSent(f"a malformed answer: {error}") from None
        name, digest, node, _ = self.expected
        if found.cluster != name:
            raise Stranger(f"it is a node of cluster {found.cluster!r}, not of {name!r}")
        if found.digest != digest:
            raise Stranger(f"its file of cluster {name!r} has other nodes or addresses than this one")
        if found.node != node:
            raise Stranger(f"it is node {found.node}")
        self.learn(found)


class Pause(NamedTuple):
    """A step: do nothing for this number of seconds."""

    seconds: float


Steps = Generator[Attempt | Pause, Any, Any]


Answer = TypeVar("Answer")


class Operation(Generic[Answer]):
    """One command on its way: its steps, which end with its result, and the outcome of those so far."""

    __slots__ = (
        "attempts", "causes", "deadline", "doubt", "harmless", "name", "node", "reached", "steps", "subject",
    )  # fmt: skip

    def __init__(self, name: str, subject: str, deadline: float, harmless: bool) -> None:
        self.name = name
        self.subject = subject  # usually the key; for messages
        self.deadline = deadline  # seconds, by the client's clock
        self.harmless = harmless  # the operation changes nothing, whether it is done or not
        self.attempts = 0
        self.node = -1  # index of the node of the last attempt
        self.doubt = False  # an attempt may have been done
        self.reached = False  # an attempt reached a node
        self.causes: dict[str, Exception] | None = None  # the last failure of each node, by its name
        self.steps: Steps

    def note(self, node: str, error: Exception) -> None:
        """Remember that an attempt at the node failed."""
        if self.causes is None:
            self.causes = {}
        self.causes[node] = error
        if not isinstance(error, NotSent):
            self.reached = True
        if isinstance(error, Unknown | Lost):
            self.doubt = True

    @property
    def strangers(self) -> bool:
        """Tell whether no node was reached, and one that answers is of another cluster."""
        return not self.reached and any(isinstance(c, Stranger) for c in (self.causes or {}).values())

    def failure(self, why: str, permanent: bool = False) -> ClientError:
        """Make the error with which the operation ends."""
        subject = f" {self.subject[:MAX_SHOWN]!r}" if self.subject else ""
        causes = self.causes or {}
        nodes = "; ".join(f"{node}: {getattr(cause, 'reason', cause)}" for node, cause in causes.items())
        attempts = f" after {self.attempts} attempt{'s' * (self.attempts != 1)}"
        text = f"{self.name}{subject}: %s{attempts}: {why}{': ' * bool(nodes)}{nodes}"
        if self.doubt and not self.harmless:
            return UnknownOutcome(text % "outcome unknown")
        if self.attempts and not self.reached:
            return (WrongCluster if self.strangers else NoNodeReachable)(text % "not done")
        return NotDoneError(text % "not done", permanent)


AnyOperation = Operation[Any]
Finish = Callable[[AnyOperation, Any], Any]  # returns the result, given what a node has answered


# ---------------------------------------------------------------------------------------- nodes and sessions


class Router:
    """Chooses the next node to try: all in turn, without those that failed a short time ago."""

    __slots__ = ("_delay", "_failed_at", "_next", "size")

    def __init__(self, size: int, first: int = 0) -> None:
        self.size = size
        self._next = first % size
        self._delay = [0.0] * size  # seconds to skip each node after its failure; 0: no failure is known
        self._failed_at = [0.0] * size

    def pick(self, now: float) -> int:
        """Return the next node's index; if all failed a short time ago, that of the oldest failure."""
        for _ in range(self.size):
            node = self._next
            self._next = (node + 1) % self.size
            if not self._delay[node]:
                return node
            if self._failed_at[node] + self._delay[node] <= now:
                self._failed_at[node] = now  # this operation tries the node; meanwhile the others skip it
                return node
        return min(range(self.size), key=self._failed_at.__getitem__)

    def failed(self, node: int, now: float) -> None:
        """Skip the node for a time that grows with each failure."""
        self._delay[node] = min(2 * self._delay[node], MAX_SKIP_S) or SKIP_S
        self._failed_at[node] = now

    def answered(self, node: int) -> None:
        """Note that the node works."""
        self._delay[node] = 0.0


class _Numbers:
    """Numbers the commands of one session, and knows which of them have no answer yet."""

    __slots__ = ("_next", "_open", "session")

    def __init__(self, session: Session) -> None:
        self.session = session
        self._next = 1
        self._open: dict[int, None] = {}  # the first sequence of each call under way, ascending

    def room(self, count: int) -> bool:
        """Tell whether the session can remember `count` more commands."""
        return self._next + count - next(iter(self._open), self._next) <= MAX_RESULTS

    def begin(self, count: int) -> RequestId:
        """Return the id of the first of `count` commands; the sequences that follow are the others'."""
        sequence = self._next
        self._next += count
        self._open[sequence] = None
        return RequestId(self.session, sequence, next(iter(self._open)))

    def end(self, sequence: int) -> None:
        """Note that the call with this first sequence was answered or given up."""
        del self._open[sequence]


# ------------------------------------------------------------------------------------------------ operations

_OPEN_SESSION, _STATUS, _MEMBERSHIP = METHODS[b"open_session"], METHODS[b"status"], METHODS[b"membership"]
_PUT, _GET, _DELETE = METHODS[b"put"], METHODS[b"get"], METHODS[b"delete"]
_COMPARE_AND_SET, _INCREMENT = METHODS[b"compare_and_set"], METHODS[b"increment"]
_TRANSACTION, _REPLACE_NODE = METHODS[b"transaction"], METHODS[b"replace_node"]
_EXECUTE, _SCAN, _SCAN_RANGE = METHODS[b"execute"], METHODS[b"scan"], METHODS[b"scan_range"]
_CHECKPOINT, _READ_CHECKPOINT = METHODS[b"checkpoint"], METHODS[b"read_checkpoint"]
_TRACE, _WATCH = METHODS[b"trace"], METHODS[b"watch"]


class Calls:
    """Makes the operations of one client; they share its session and its knowledge of the nodes.

    A method that takes `node`, the index of a node, makes a single attempt there if one is given.
    """

    def __init__(
        self,
        names: Sequence[str],
        timeout: float,
        attempt_timeout: float,
        first: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make no call yet.

        `names` are the nodes' names in messages. An operation may take `timeout` seconds in all, and the
        first attempts `attempt_timeout` seconds each; `clock` tells the time in seconds. `first` is the index
        of the node to begin with.
        """
        self._names = names
        self._timeout = timeout
        self._attempt_timeout = attempt_timeout
        self._clock = clock
        self._router = Router(len(names), first)
        self._numbers: _Numbers | None = None
        # Gets what a node says of the others' addresses.
        self.learn: Callable[[Membership], None] | None = None
        self._lost_sight = False  # of a node: it may have been replaced

    def renamed(self, node: int, name: str) -> None:
        """The node with this index has another address, and with that another name; it is worth a try."""
        self._names = [*self._names[:node], name, *self._names[node + 1 :]]
        self._router.answered(node)

    def open_session(self) -> Operation[None]:
        """Open the session now, if there is none; otherwise the first write opens it."""
        operation: Operation[None] = Operation("open_session", "", self._clock() + self._timeout, True)
        operation.steps = self._session(operation)
        return operation

    def put(self, key: str, value: str, ttl: float | None = None) -> Operation[Any]:
        """Set the key, for `ttl` seconds if that is given; the result says nothing."""
        if ttl is not None:
            return self.transaction([], [transactions.put(key, value, ttl)])
        return self._writing("put", key, _PUT, (key, value), _done)

    def get(self, key: str, read: str = "linearizable", node: int | None = None) -> Operation[str | None]:
        """Read the key; the result is the value, or None if there is none."""
        return self._reading("get", key, _GET, (key, READ_MODES[read]), node, _value)

    def delete(self, key: str) -> Operation[bool]:
        """Remove the key; the result tells whether it existed."""
        return self._writing("delete", key, _DELETE, (key,), _existed)

    def compare_and_set(
        self, key: str, expected: str | None, value: str
    ) -> Operation[tuple[bool, str | None]]:
        """Set the key if it has the expected value; None expects that the key does not exist.

        The result is (whether the key was set, the value that the key has now).
        """

        def finish(operation: AnyOperation, result: Result) -> tuple[bool, str | None]:
            if result.outcome == Outcome.OK:
                return True, value
            return (False, result.value) if result.outcome == Outcome.MISMATCH else _refuse(operation, result)

        return self._writing("compare_and_set", key, _COMPARE_AND_SET, (key, expected, value), finish)

    def increment(self, key: str, delta: int = 1) -> Operation[int]:
        """Add to the integer at the key; the result is the sum, or NotANumber is raised."""
        return self._writing("increment", key, _INCREMENT, (key, delta), _sum)

    def transaction(
        self, compares: Sequence[Compare], then: Sequence[Action], otherwise: Sequence[Action] = ()
    ) -> Operation[Committed]:
        """Do `then` if all comparisons hold, else `otherwise`: all of it or nothing, nothing in between.

        NotANumber is raised if an increment finds no number.
        """
        wanted = Transaction(list(compares), list(then), list(otherwise))
        keys = dict.fromkeys(part.key for parts in wanted for part in parts)
        return self._writing("transaction", ", ".join(keys), _TRANSACTION, (wanted,), _committed)

    def execute(self, commands: Sequence[Command]) -> Operation[list[Result]]:
        """Do the commands in order, with no other command between; the result is a list of Results.

        A batch has at most MAX_BATCH commands if all are reads; if any of them writes, at most MAX_RESULTS. A
        longer batch raises ValueError. Request ids in the commands are replaced.
        """
        reads = all(command.verb == Verb.GET for command in commands)
        limit = MAX_BATCH if reads else MAX_RESULTS
        if len(commands) > limit:
            what = "only reads" if reads else "writes"
            raise ValueError(f"{len(commands):,} commands, but a batch that {what} may have {limit:,}")
        subject = f"{len(commands)} commands"
        if reads:
            plain = [Command(Verb.GET, command.key) for command in commands]
            return self._reading("execute", subject, _EXECUTE, (plain,), None, _results)
        return self._writing("execute", subject, _EXECUTE, tuple(commands), _results)

    def page(self, wanted: Range, read: str = "linearizable", node: int | None = None) -> Operation[Page]:
        """Read a page of a range of keys; the result is a Page.

        It is asked by the method `scan` if that suffices, because older nodes know no other.
        """
        prefix, mode = wanted.prefix or "", READ_MODES[read]
        if wanted == Range(wanted.prefix, after=wanted.after, limit=wanted.limit):
            return self._reading(
                "scan", prefix, _SCAN, (prefix, wanted.after or "", wanted.limit, mode), node
            )
        return self._reading("scan", prefix, _SCAN_RANGE, (wanted, mode), node)

    def count(self, wanted: Range, read: str = "linearizable", node: int | None = None) -> Operation[int]:
        """Count the keys of a range."""
        arguments = (wanted._replace(counted=True), READ_MODES[read])
        return self._reading("count", wanted.prefix or "", _SCAN_RANGE, arguments, node, _count)

    def status(self, node: int | None = None, digest: bool = False) -> Operation[Status]:
        """Read what a node says of itself; the result is a Status."""
        return self._reading("status", "", _STATUS, (digest,), node)

    def probe(self, node: int) -> Operation[None]:
        """Write at this node without changing anything; the result is None.

        The nodes agree on the write and journal it like any other. It would set a key if the key had a
        certain random value, which no key has.
        """
        nonce = token_hex(16)
        return self._reading("write", "", _COMPARE_AND_SET, ("health", nonce, nonce), node, _mismatch)

    def checkpoint(self, node: int | None) -> Operation[int]:
        """Let a node make a checkpoint; the result is its number."""
        return self._reading("checkpoint", "", _CHECKPOINT, (), node)

    def read_checkpoint(self, node: int | None, number: int, offset: int) -> Operation[Chunk]:
        """Read a piece of a node's checkpoint, of its newest if the number is 0; the result is a Chunk.

        `offset` is in bytes. A Chunk with number 0 says that the node has no such checkpoint.
        """
        return self._reading("read_checkpoint", "", _READ_CHECKPOINT, (number, offset), node)

    def replace_node(self, node: int, address: str) -> Operation[None]:
        """Move the node with this id to this address; the result is None."""
        return self._writing("replace_node", f"node {node}", _REPLACE_NODE, (node, address), _done)

    def trace(self, node: int | None, on: bool | None, after: int) -> Operation[Traced]:
        """Let a node record what happens, or stop (None: as it is); the result is Traced."""
        return self._reading("trace", "", _TRACE, (on, after), node)

    def watch(
        self, prefix: str, after: Place | None, node: int | None = None, wait_s: float = WATCH_S[0]
    ) -> Operation[Watched]:
        """Wait some seconds for changes of keys with this prefix, after this place; the result is Watched.

        `node`: the index of the node to begin with. `after`: None asks for the place of now. A node that no
        longer has the changes is passed over; CompactedError: all that answer are.
        """
        deadline = self._clock() + self._timeout + wait_s
        operation: Operation[Watched] = Operation("watch", prefix, deadline, True)
        operation.steps = self._watch(operation, (prefix, after, None, int(1000 * wait_s)), node, wait_s)
        return operation

    def _watch(
        self, operation: AnyOperation, arguments: tuple[Any, ...], node: int | None, wait_s: float
    ) -> Steps:
        oldest: dict[int, Place] = {}
        while True:
            try:
                return (yield from self._repeat(operation, _WATCH, arguments, node, wait_s))
            except Compacted as error:
                again = operation.node in oldest
                oldest[operation.node] = Place(
                    error.oldest.timestamp, error.oldest.owner, error.oldest.change
                )
                if again or len(oldest) == self._router.size:
                    raise CompactedError(
                        f"{self._names[operation.node]}: {error.reason}",
                        min(oldest.values(), key=lambda p: p[:2]),
                    ) from None
                node = None

    def _reading(self, name: str, subject: str, method: Method, arguments: tuple[Any, ...],
                 node: int | None, finish: Finish | None = None) -> AnyOperation:  # fmt: skip
        """Make an operation that changes nothing; without `finish`, the answer is its result."""
        operation: AnyOperation = Operation(name, subject, self._clock() + self._timeout, True)
        operation.steps = self._read(operation, method, arguments, node, finish)
        return operation

    def _writing(self, name: str, subject: str, method: Method, arguments: tuple[Any, ...],
                 finish: Finish) -> AnyOperation:  # fmt: skip
        operation: AnyOperation = Operation(name, subject, self._clock() + self._timeout, False)
        operation.steps = self._write(operation, method, arguments, finish)
        return operation

    def _read(self, operation: AnyOperation, method: Method, arguments: tuple[Any, ...],
              node: int | None, finish: Finish | None) -> Steps:  # fmt: skip
        if node is None:
            answer = yield from self._repeat(operation, method, arguments)
        else:
            answer = yield from self._once(operation, method, arguments, node)
        return finish(operation, answer) if finish else answer

    def _write(self, operation: AnyOperation, method: Method, arguments: tuple[Any, ...],
               finish: Finish) -> Steps:  # fmt: skip
        count = len(arguments) if method is _EXECUTE else 1
        while True:
            numbers = self._numbers
            while numbers is None or not numbers.room(count):
                yield from self._session(operation, count)
                numbers = self._numbers
            request = numbers.begin(count)
            try:
                numbered = (_number(arguments, request),) if method is _EXECUTE else (*arguments, request)
                return finish(operation, (yield from self._repeat(operation, method, numbered)))
            except (Expired, Forgotten) as error:
                if self._numbers is numbers:
                    self._numbers = None
                if operation.doubt:
                    raise operation.failure(
                        "an earlier attempt may have been done, and its session is gone"
                    ) from None
                operation.note(self._names[operation.node], error)
            finally:
                numbers.end(request.sequence)

    def _session(self, operation: AnyOperation, count: int = 1) -> Steps:
        """Open a session with room for `count` commands, unless another operation has just opened one."""
        if self._numbers is not None and self._numbers.room(count):
            return
        opening: AnyOperation = Operation("open_session", "", operation.deadline, harmless=True)
        try:
            session = yield from self._repeat(opening, _OPEN_SESSION, ())
        except NotDoneError as error:
            if operation.attempts == 0:
                reason = error.reason.removeprefix(f"{opening.name}: ")
                error.args = (f"{operation.name} {operation.subject[:MAX_SHOWN]!r}: {reason}",)
            raise
        if self._numbers is None or not self._numbers.room(count):
            self._numbers = _Numbers(session)

    def _repeat(self, operation: AnyOperation, method: Method, arguments: tuple[Any, ...],
                first: int | None = None, waits: float = 0.0) -> Steps:  # fmt: skip
        """Try one node after another until one answers; Expired, Forgotten, Compacted go to the caller.

        `first`: the node to begin with. `waits`: seconds that a node may take because it waits for something.
        """
        failures = 0
        while True:
            now = self._clock()
            rounds = failures // self._router.size
            patience = self._attempt_timeout * (1 << min(rounds, MAX_DOUBLINGS)) + waits
            left = operation.deadline - now
            if left <= 0:
                raise operation.failure("no time left")
            node = operation.node = self._router.pick(now) if first is None or failures else first
            operation.attempts += 1
            if self._lost_sight:
                yield from self._look_around(node, min(patience, left))
            try:
                answer = yield Attempt(node, method, arguments, patience if patience < left else left)
            except (Expired, Forgotten, Compacted):
                self._router.answered(node)
                raise
            except FAILURES as error:
                if self._note(operation, node, error):
                    raise operation.failure("refused", permanent=True) from None
            else:
                operation.reached = True
                self._router.answered(node)
                return answer
            failures += 1
            self._router.failed(node, self._clock())
            if failures % self._router.size == 0:
                yield Pause(self._pause(operation, failures // self._router.size))

    def _note(self, operation: AnyOperation, node: int, error: Exception) -> bool:
        """Remember that an attempt has failed; return whether every node would refuse the operation."""
        operation.note(self._names[node], error)
        self._lost_sight = self._lost_sight or isinstance(error, NotSent)
        return isinstance(error, Unfit) or (isinstance(error, NotDone) and error.permanent)

    def _look_around(self, node: int, patience: float) -> Steps:
        """Ask this node where the others are, because one could not be reached."""
        self._lost_sight = False
        if self.learn:
            with contextlib.suppress(*FAILURES):
                self.learn((yield Attempt(node, _MEMBERSHIP, (), patience)))

    def _pause(self, operation: AnyOperation, rounds: int) -> float:
        """Return the seconds to pause after this many rounds; fail if they reach the deadline."""
        if operation.strangers:
            raise operation.failure("this is another cluster")
        seconds = min(PAUSE_S * 2.0 ** min(rounds - 1, 16), MAX_PAUSE_S)
        if self._clock() + seconds >= operation.deadline:
            raise operation.failure(f"no node completed it within {self._timeout:g} s")
        return seconds

    def _once(self, operation: AnyOperation, method: Method, arguments: tuple[Any, ...], node: int) -> Steps:
        """Make one attempt, at this node."""
        operation.attempts, operation.node = 1, node
        try:
            return (yield Attempt(node, method, arguments, self._timeout))
        except FAILURES as error:
            permanent = self._note(operation, node, error)
            raise operation.failure("only this node was asked", permanent) from None


def _number(commands: tuple[Command, ...], first: RequestId) -> list[Command]:
    """Give the commands consecutive ids that begin with `first`."""
    session, sequence, incomplete = first.session, first.sequence, first.first_incomplete
    return [
        Command(
            c.verb, c.key, c.value, c.expected, c.delta,
            RequestId(session, sequence + index, incomplete), c.transaction,
        )
        for index, c in enumerate(commands)
    ]  # fmt: skip


# --------------------------------------------------------------------------------------------------- results


def _refuse(operation: AnyOperation, result: Result) -> Any:
    """Raise the error for an outcome that does not answer the operation."""
    if result.outcome == Outcome.EXPIRED:
        raise Expired("the session is no longer known")
    if result.outcome == Outcome.FORGOTTEN:
        raise Forgotten("the command was given up")
    if result.outcome == Outcome.INVALID:
        raise operation.failure("the store says that the command is invalid", permanent=True)
    operation.doubt = True
    raise operation.failure(f"a malformed answer: outcome {result.outcome}")


def _done(operation: AnyOperation, result: Result) -> None:
    if result.outcome != Outcome.OK:
        _refuse(operation, result)


def _mismatch(operation: AnyOperation, result: Result) -> None:
    if result.outcome != Outcome.MISMATCH:
        _refuse(operation, result)


def _value(operation: AnyOperation, result: Result) -> str | None:
    if result.outcome == Outcome.OK:
        return result.value
    return None if result.outcome == Outcome.NOT_FOUND else _refuse(operation, result)


def _existed(operation: AnyOperation, result: Result) -> bool:
    if result.outcome == Outcome.OK:
        return True
    return False if result.outcome == Outcome.NOT_FOUND else _refuse(operation, result)


def _sum(operation: AnyOperation, result: Result) -> int:
    if result.outcome == Outcome.OK and result.value is not None:
        return int(result.value)
    if result.outcome == Outcome.NOT_A_NUMBER:
        raise NotANumber(
            f"increment {operation.subject[:MAX_SHOWN]!r}: the value or the sum is not a 64-bit integer"
        )
    number: int = _refuse(operation, result)
    return number


def _count(operation: AnyOperation, page: Page) -> int:
    if page.keys is None:
        raise operation.failure("a malformed answer: a page without a count")
    return page.keys


def _committed(operation: AnyOperation, result: Result) -> Committed:
    if result.transacted is not None:
        return Committed(result.outcome == Outcome.OK, result.transacted.answers, result.transacted.place)
    if result.outcome == Outcome.NOT_A_NUMBER:
        raise NotANumber(
            "transaction: nothing was done: an increment found no 64-bit integer, or the sum is none"
        )
    if result.outcome == Outcome.TOO_LARGE:
        raise operation.failure(f"it, or all beside it, would read more than {MAX_TRANSACTED:,} characters")
    committed: Committed = _refuse(operation, result)
    return committed


def _results(operation: AnyOperation, results: list[Result]) -> list[Result]:
    """Return the results of a batch; its session is known to all of its commands or to none."""
    if results and results[0].outcome in (Outcome.EXPIRED, Outcome.FORGOTTEN):
        _refuse(operation, results[0])
    return results
