"""How a client gets a command done by a cluster that may be failing: which node to try, and what to repeat.

No sockets here. An Operation is one command on its way. It has a generator of steps; the driver (drivers.py
has two) carries each step out and sends back what came of it:

    step = next(operation.steps)
    while True:
        Attempt   call the node; wait at most `patience` seconds
                  the answer                         -> step = steps.send(answer)
                  NotDone, Unknown, Expired, Forgotten,
                  NotSent, Lost, Unfit               -> step = steps.throw(error)
        Pause     wait `seconds`                     -> step = steps.send(None)
    StopIteration: its value is the operation's result.    ClientError: the operation failed.

The rules (section 7 of the design). Errors speak of one attempt; an operation speaks of all of them:

- Each operation begins at another node (round robin); what fails is tried at the next node until the
  deadline.
- Writes carry (session, sequence), so that a repeat is applied once. The first write opens the session.
- A write is reported as not done only if every attempt was: refused with NotDone, or no connection. If any
  attempt may have been done (Unknown, a lost connection, no answer in time), only an answer ends the doubt: a
  repeat under the same number gets the first attempt's result. At the deadline the outcome is unknown.
- Expired or Forgotten: the attempt was not applied. If no earlier one may have been, the write gets a number
  in a new session and is repeated; otherwise the outcome is unknown.
- Reads and open_session change nothing that matters and are repeated freely; their failure is always
  definite.
- A command that was given up counts as answered: the session's next command says so to the store
  (first_incomplete), which from then on refuses what is still under way of it. So it is applied before that,
  or never, and it blocks nobody.
"""

import time
from collections.abc import Callable, Generator, Sequence
from secrets import token_hex
from typing import Any, Final, Literal, NamedTuple

from thrift.Thrift import TApplicationException

from paxoskv.wire.codec import (
    MAX_BATCH,
    MAX_CLIENT_FRAME,
    Command,
    Expired,
    Forgotten,
    Malformed,
    NotDone,
    Outcome,
    Page,
    ReadMode,
    RequestId,
    Result,
    Session,
    Status,
    Unknown,
    Verb,
)
from paxoskv.wire.connection import METHODS, Method

ReadName = Literal["linearizable", "log", "local"]
READ_MODES: Final[dict[str, int]] = {
    "linearizable": ReadMode.LINEARIZABLE, "log": ReadMode.LOG, "local": ReadMode.LOCAL,
}  # fmt: skip

# A session remembers so many results: from the first sequence without an answer on, so many may be in use.
WINDOW: Final = 1024
# A node that failed is passed over for so long (seconds), doubling with each further failure up to the limit.
SKIP_S, MAX_SKIP_S = 1.0, 5.0
# When every node has failed in turn, the operation pauses so long (seconds), doubling up to the limit.
PAUSE_S, MAX_PAUSE_S = 0.01, 0.5
# Attempts get twice the time after each round over all nodes, so many times: slow is not dead.
MAX_DOUBLINGS: Final = 6
# How many items a page of a scan may have at most (kvstore.thrift).
PAGE_ITEMS: Final = 1000


# ---------------------------------------------------------------------------------------------------- errors


class ClientError(Exception):
    """What the library raises. The message names the operation, the nodes, and what each of them said."""


class NotDoneError(ClientError):
    """The operation was not done, and will not be.

    `permanent`: it is at fault itself (a key over the limit, say), and every node would refuse it.
    """

    def __init__(self, reason: str, permanent: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.permanent = permanent


class NoNodeReachable(NotDoneError):
    """The operation was not done: no node could be connected to."""


class UnknownOutcome(ClientError):
    """The operation may have been done, or may still be."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NotANumber(ClientError):
    """Increment: the value, or the sum, is not a 64-bit decimal integer. Nothing changed."""


class NotSent(Exception):
    """From the driver: there is no connection to the node, and nothing was sent."""


class Lost(Exception):
    """From the driver: something was sent, and no usable answer came."""


class Unfit(Exception):
    """From the driver: the call cannot be encoded, or is longer than a node takes. Nothing was sent."""


# What may come of an attempt but an answer.
FAILURES: Final = (NotDone, Unknown, Expired, Forgotten, NotSent, Lost, Unfit)


# ----------------------------------------------------------------------------------------------------- steps


class Attempt(NamedTuple):
    """Call this node; give up after `patience` seconds. The node is an index into the client's list."""

    node: int
    method: Method
    arguments: tuple[Any, ...]
    patience: float

    def frame(self, sequence: int) -> bytes:
        """The frame to send. Unfit if there can be none."""
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
        """The value in the answer to it; raises what the node declared, or Lost."""
        try:
            return self.method.answer(kind, frame, offset)
        except TApplicationException as error:
            raise Lost(f"the node failed: {error.message}") from None
        except Malformed as error:
            raise Lost(f"an answer that makes no sense: {error}") from None


class Pause(NamedTuple):
    """Do nothing for so many seconds."""

    seconds: float


Steps = Generator[Attempt | Pause, Any, Any]


class Operation:
    """One command on its way: its steps, and what has become of them so far."""

    __slots__ = (
        "attempts",
        "causes",
        "deadline",
        "doubt",
        "harmless",
        "name",
        "node",
        "reached",
        "steps",
        "subject",
    )

    def __init__(self, name: str, subject: str, deadline: float, harmless: bool) -> None:
        self.name = name
        self.subject = subject  # the key, mostly
        self.deadline = deadline  # on the client's clock, seconds
        self.harmless = harmless  # it changes nothing, done or not
        self.attempts = 0
        self.node = -1  # of the last attempt
        self.doubt = False  # an attempt may have been done
        self.reached = False  # an attempt got as far as a node
        self.causes: dict[str, str] | None = None  # the last failure, by node
        self.steps: Steps

    def note(self, node: str, error: Exception) -> None:
        """An attempt at the node failed."""
        if self.causes is None:
            self.causes = {}
        self.causes[node] = str(getattr(error, "reason", error))
        if not isinstance(error, NotSent):
            self.reached = True
        if isinstance(error, Unknown | Lost):
            self.doubt = True

    def failure(self, why: str, permanent: bool = False) -> ClientError:
        """The error that the operation ends with."""
        subject = f" {self.subject[:40]!r}" if self.subject else ""
        nodes = "; ".join(f"{node}: {cause}" for node, cause in (self.causes or {}).items())
        attempts = f" after {self.attempts} attempt{'s' * (self.attempts != 1)}"
        text = f"{self.name}{subject}: %s{attempts}: {why}{': ' * bool(nodes)}{nodes}"
        if self.doubt and not self.harmless:
            return UnknownOutcome(text % "outcome unknown")
        if self.attempts and not self.reached:
            return NoNodeReachable(text % "not done")
        return NotDoneError(text % "not done", permanent)


# ---------------------------------------------------------------------------------------- nodes and sessions


class Router:
    """Which node to try next: round robin, passing over those that failed a short while ago."""

    __slots__ = ("_delay", "_failed_at", "_next", "size")

    def __init__(self, size: int, first: int = 0) -> None:
        self.size = size
        self._next = first % size
        self._delay = [0.0] * size  # 0: it works, as far as is known
        self._failed_at = [0.0] * size

    def pick(self, now: float) -> int:
        """The next node in turn; when all have failed a short while ago, the one whose failure is oldest."""
        for _ in range(self.size):
            node = self._next
            self._next = (node + 1) % self.size
            if not self._delay[node]:
                return node
            if self._failed_at[node] + self._delay[node] <= now:
                self._failed_at[node] = now  # one operation finds out; the others pass it over meanwhile
                return node
        return min(range(self.size), key=self._failed_at.__getitem__)

    def failed(self, node: int, now: float) -> None:
        """Pass the node over for a while, longer each time."""
        self._delay[node] = min(2 * self._delay[node], MAX_SKIP_S) or SKIP_S
        self._failed_at[node] = now

    def answered(self, node: int) -> None:
        """It works."""
        self._delay[node] = 0.0


class _Numbers:
    """One session: numbers its commands, and knows which of them have no answer yet."""

    __slots__ = ("_next", "_open", "session")

    def __init__(self, session: Session) -> None:
        self.session = session
        self._next = 1
        self._open: dict[int, None] = {}  # first sequences of the calls under way, ascending

    def room(self, count: int) -> bool:
        """Whether `count` more commands fit what the session remembers."""
        return self._next + count - next(iter(self._open), self._next) <= WINDOW

    def begin(self, count: int) -> RequestId:
        """The id of the first of `count` commands; the others have the sequences that follow."""
        sequence = self._next
        self._next += count
        self._open[sequence] = None
        return RequestId(self.session, sequence, next(iter(self._open)))

    def end(self, sequence: int) -> None:
        """The call that began with this sequence has its answer, or was given up."""
        del self._open[sequence]


# ------------------------------------------------------------------------------------------------ operations

_OPEN_SESSION, _STATUS = METHODS[b"open_session"], METHODS[b"status"]
_PUT, _GET, _DELETE = METHODS[b"put"], METHODS[b"get"], METHODS[b"delete"]
_COMPARE_AND_SET, _INCREMENT = METHODS[b"compare_and_set"], METHODS[b"increment"]
_EXECUTE, _SCAN = METHODS[b"execute"], METHODS[b"scan"]
_CHECKPOINT, _READ_CHECKPOINT = METHODS[b"checkpoint"], METHODS[b"read_checkpoint"]


class Calls:
    """Makes the operations of one client, which share the session and what is known of the nodes.

    `names` are the nodes' names in messages. `timeout` is what an operation may take, `attempt_timeout` how
    long one node is waited for at first (both in seconds); `clock` tells seconds. Where a node is given (by
    its index), the operation is a single attempt there.
    """

    def __init__(
        self,
        names: Sequence[str],
        timeout: float,
        attempt_timeout: float,
        first: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._names = names
        self._timeout = timeout
        self._attempt_timeout = attempt_timeout
        self._clock = clock
        self._router = Router(len(names), first)
        self._numbers: _Numbers | None = None

    def open_session(self) -> Operation:
        """Open the session now, if there is none. (Otherwise the first write does.)"""
        operation = self._operation("open_session", "", harmless=True)
        operation.steps = self._session(operation)
        return operation

    def put(self, key: str, value: str) -> Operation:
        """Set the key. Result: None."""
        operation = self._operation("put", key)
        operation.steps = self._write(operation, _PUT, (key, value), _done)
        return operation

    def get(self, key: str, read: str = "linearizable", node: int | None = None) -> Operation:
        """Read the key. Result: the value, or None."""
        operation = self._operation("get", key, harmless=True)
        operation.steps = self._read(operation, _GET, (key, READ_MODES[read]), node, _value)
        return operation

    def delete(self, key: str) -> Operation:
        """Remove the key. Result: whether it existed."""
        operation = self._operation("delete", key)
        operation.steps = self._write(operation, _DELETE, (key,), _existed)
        return operation

    def compare_and_set(self, key: str, expected: str | None, value: str) -> Operation:
        """Set the key if it holds `expected` (None: if it is absent). Result: (done, what it holds now)."""

        def finish(operation: Operation, result: Result) -> tuple[bool, str | None]:
            if result.outcome == Outcome.OK:
                return True, value
            return (False, result.value) if result.outcome == Outcome.MISMATCH else _refuse(operation, result)

        operation = self._operation("compare_and_set", key)
        operation.steps = self._write(operation, _COMPARE_AND_SET, (key, expected, value), finish)
        return operation

    def increment(self, key: str, delta: int = 1) -> Operation:
        """Add to the integer that the key holds. Result: the sum; NotANumber if there is none."""
        operation = self._operation("increment", key)
        operation.steps = self._write(operation, _INCREMENT, (key, delta), _sum)
        return operation

    def execute(self, commands: Sequence[Command]) -> Operation:
        """Do the commands in order with nothing in between. Result: a list of Results, one for each.

        At most 10,000 reads, or 1,024 commands if any of them writes: as many as a session remembers;
        ValueError otherwise. Request ids of their own are replaced.
        """
        reads = all(command.verb == Verb.GET for command in commands)
        limit = MAX_BATCH if reads else WINDOW
        if len(commands) > limit:
            what = "only reads" if reads else "writes"
            raise ValueError(f"{len(commands):,} commands, but a batch that {what} may have {limit:,}")
        operation = self._operation("execute", f"{len(commands)} commands", harmless=reads)
        if reads:
            plain = [Command(Verb.GET, command.key) for command in commands]
            operation.steps = self._read(operation, _EXECUTE, (plain,), None, _results)
        else:
            operation.steps = self._write(operation, _EXECUTE, tuple(commands), _results)
        return operation

    def page(
        self, prefix: str, start_after: str, limit: int, read: str = "linearizable", node: int | None = None
    ) -> Operation:
        """Keys that begin with the prefix and come after `start_after`. Result: a Page."""
        operation = self._operation("scan", prefix, harmless=True)
        arguments = (prefix, start_after, limit, READ_MODES[read])
        operation.steps = self._read(operation, _SCAN, arguments, node, _as_it_is)
        return operation

    def status(self, node: int | None = None, digest: bool = False) -> Operation:
        """A node's view of itself (None: whichever answers). Result: a Status."""
        operation = self._operation("status", "", harmless=True)
        operation.steps = self._read(operation, _STATUS, (digest,), node, _as_it_is)
        return operation

    def probe(self, node: int) -> Operation:
        """A write at this node that is agreed on and journaled like any other, and changes nothing.

        It sets a key if the key holds a random text, which it does not. Result: None.
        """
        nonce = token_hex(16)
        operation = self._operation("write", "", harmless=True)
        operation.steps = self._read(operation, _COMPARE_AND_SET, ("health", nonce, nonce), node, _mismatch)
        return operation

    def checkpoint(self, node: int | None) -> Operation:
        """Let a node make a checkpoint. Result: its number."""
        operation = self._operation("checkpoint", "", harmless=True)
        operation.steps = self._read(operation, _CHECKPOINT, (), node, _as_it_is)
        return operation

    def read_checkpoint(self, node: int | None, number: int, offset: int) -> Operation:
        """A piece of a node's checkpoint (0: its newest). Result: a Chunk; number 0: there is none."""
        operation = self._operation("read_checkpoint", "", harmless=True)
        operation.steps = self._read(operation, _READ_CHECKPOINT, (number, offset), node, _as_it_is)
        return operation

    def _operation(self, name: str, subject: str, harmless: bool = False) -> Operation:
        return Operation(name, subject, self._clock() + self._timeout, harmless)

    def _read(
        self,
        operation: Operation,
        method: Method,
        arguments: tuple[Any, ...],
        node: int | None,
        finish: Callable[[Operation, Any], Any],
    ) -> Steps:
        attempts = self._repeat(operation, method, arguments) if node is None else self._once(
            operation, method, arguments, node)  # fmt: skip
        return finish(operation, (yield from attempts))

    def _write(
        self,
        operation: Operation,
        method: Method,
        arguments: tuple[Any, ...],
        finish: Callable[[Operation, Any], Any],
    ) -> Steps:
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

    def _session(self, operation: Operation, count: int = 1) -> Steps:
        """Make room for so many commands: in a new session, unless another operation made one meanwhile."""
        if self._numbers is not None and self._numbers.room(count):
            return
        opening = Operation("open_session", "", operation.deadline, harmless=True)
        try:
            session = yield from self._repeat(opening, _OPEN_SESSION, ())
        except NotDoneError as error:
            if operation.attempts == 0:
                error.args = (f"{operation.name} {operation.subject[:40]!r}: {error.reason}",)
            raise
        if self._numbers is None or not self._numbers.room(count):
            self._numbers = _Numbers(session)

    def _repeat(self, operation: Operation, method: Method, arguments: tuple[Any, ...]) -> Steps:
        """Try one node after the other until one answers. Expired and Forgotten are the caller's."""
        failures = 0
        while True:
            now = self._clock()
            rounds = failures // self._router.size
            patience = (
                self._attempt_timeout
                if not rounds
                else self._attempt_timeout * (1 << min(rounds, MAX_DOUBLINGS))
            )
            left = operation.deadline - now
            if left <= 0:
                raise operation.failure("no time left")
            node = operation.node = self._router.pick(now)
            operation.attempts += 1
            try:
                answer = yield Attempt(node, method, arguments, patience if patience < left else left)
            except (Expired, Forgotten):
                self._router.answered(node)
                raise
            except FAILURES as error:
                operation.note(self._names[node], error)
                if isinstance(error, Unfit) or (isinstance(error, NotDone) and error.permanent):
                    raise operation.failure("refused", permanent=True) from None
            else:
                operation.reached = True
                self._router.answered(node)
                return answer
            failures += 1
            self._router.failed(node, self._clock())
            if failures % self._router.size == 0:
                yield Pause(self._pause(operation, failures // self._router.size))

    def _pause(self, operation: Operation, rounds: int) -> float:
        """How long to pause after so many rounds over all nodes. Raises if that is past the deadline."""
        seconds = min(PAUSE_S * 2.0 ** min(rounds - 1, 16), MAX_PAUSE_S)
        if self._clock() + seconds >= operation.deadline:
            raise operation.failure(f"no node did it within {self._timeout:g} s")
        return seconds

    def _once(self, operation: Operation, method: Method, arguments: tuple[Any, ...], node: int) -> Steps:
        """One attempt, at this node."""
        operation.attempts, operation.node = 1, node
        try:
            return (yield Attempt(node, method, arguments, self._timeout))
        except FAILURES as error:
            operation.note(self._names[node], error)
            permanent = isinstance(error, Unfit) or (isinstance(error, NotDone) and error.permanent)
            raise operation.failure("only this node was asked", permanent) from None


def _number(commands: tuple[Command, ...], first: RequestId) -> list[Command]:
    """The commands with ids that begin at this one."""
    session, sequence, incomplete = first.session, first.sequence, first.first_incomplete
    return [
        Command(c.verb, c.key, c.value, c.expected, c.delta, RequestId(session, sequence + index, incomplete))
        for index, c in enumerate(commands)
    ]


# --------------------------------------------------------------------------------------------------- results


def _refuse(operation: Operation, result: Result) -> Any:
    """Raise the error for an outcome that is no answer to the operation."""
    if result.outcome == Outcome.EXPIRED:
        raise Expired("the session is not known any more")
    if result.outcome == Outcome.FORGOTTEN:
        raise Forgotten("the command was given up")
    if result.outcome == Outcome.INVALID:
        raise operation.failure("the store says that the command makes no sense", permanent=True)
    operation.doubt = True
    raise operation.failure(f"an answer that makes no sense: outcome {result.outcome}")


def _done(operation: Operation, result: Result) -> None:
    if result.outcome != Outcome.OK:
        _refuse(operation, result)


def _mismatch(operation: Operation, result: Result) -> None:
    if result.outcome != Outcome.MISMATCH:
        _refuse(operation, result)


def _value(operation: Operation, result: Result) -> str | None:
    if result.outcome == Outcome.OK:
        return result.value
    return None if result.outcome == Outcome.NOT_FOUND else _refuse(operation, result)


def _existed(operation: Operation, result: Result) -> bool:
    if result.outcome == Outcome.OK:
        return True
    return False if result.outcome == Outcome.NOT_FOUND else _refuse(operation, result)


def _sum(operation: Operation, result: Result) -> int:
    if result.outcome == Outcome.OK and result.value is not None:
        return int(result.value)
    if result.outcome == Outcome.NOT_A_NUMBER:
        raise NotANumber(
            f"increment {operation.subject[:40]!r}: the value or the sum is not a 64-bit integer"
        )
    number: int = _refuse(operation, result)
    return number


def _results(operation: Operation, results: list[Result]) -> list[Result]:
    """The results of a batch, whose commands are applied together: its session is known to all or to none."""
    if results and results[0].outcome in (Outcome.EXPIRED, Outcome.FORGOTTEN):
        _refuse(operation, results[0])
    return results


def _as_it_is(_operation: Operation, answer: Page | Status) -> Page | Status:
    return answer
