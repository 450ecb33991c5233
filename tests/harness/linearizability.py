"""Decides whether a recorded history is linearizable.

A history is what clients saw: operations, each with the times of its call and its return. It is linearizable
if every operation can be given one instant between the two, so that the answers are those of one store that
does the operations in that order. Linearizability is local, so each key is judged alone.
Keys that transactions join are judged together, by a plainer search (Joint).

    check(load("history.jsonl"))    -> None, or the Violation, whose str() is a timeline

The search is Wing and Gong's ("Testing and Verifying Concurrent Objects", 1993) with the memory of Lowe's
("Testing for Linearizability", 2017): take an operation that no other, still untaken, one precedes; look
whether its answer fits; go on; step back when stuck; never look twice at the same (operations taken, state),
nor at one from which only less can be done. What keeps it small:

- An operation that fits and could never change anything is taken at once: it might as well come first.
- A value that somebody has yet to see, and nobody will write again, is not overwritten.
- A write whose value nobody can see is put just before another write, where it makes no difference.
- An operation of unknown outcome is taken only where something sees its effect right after; where it is not
  needed, it is left out. Those that do the same are used in the order of their calls.

The problem is NP-complete all the same. Many clients on one key that mix deletes and increments with
operations of unknown outcome can exceed the limit; the verdict is then Undecided, never a guess.

Format of a history, one JSON object on each line:

    {"client": 3, "operation": "cas", "key": "x", "arguments": {"expected": null, "value": "1"},
     "answer": {"done": false, "actual": "7"}, "call_ns": 120, "return_ns": 450, "outcome": "mismatch"}

    operation  arguments             answer                       outcomes besides failed and unknown
    put        value                 null                         ok
    get                              the value or null            ok, not_found
    delete                           whether the key existed      ok, not_found
    cas        expected (or null),   done; actual: what the key   ok, mismatch
               value                 held if it was not done
    incr       delta                 the sum, decimal, or null    ok, not_a_number
    transaction compare, then, else  a list, one for each action  ok (then), mismatch (else), not_a_number

The key of a transaction is "". A comparison is [key, relation, value or null]; the relations are equals,
differs, exists, absent, less, greater. An action is [operation, key, value or null], with put, get, delete,
or incr, whose value is the delta in decimal; its answer is that of the operation.

`failed`: certainly not done. `unknown`: done at some time after the call, or never; its answer and return are
ignored.
Where one operation returns in the nanosecond in which another is called, the two count as concurrent.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from operator import itemgetter, le
from pathlib import Path
from typing import Any, Final, NamedTuple

MIN_NUMBER: Final = -(1 << 63)
MAX_NUMBER: Final = (1 << 63) - 1
NEVER: Final = float("inf")  # the return of an operation that has not returned

DEFAULT_LIMIT: Final = 3_000_000  # configurations of one key: about 1 GB of memory
JOINT_LIMIT: Final = 300_000  # configurations of keys that transactions join: about 500 MB
EXPLAIN_LIMIT: Final = 200_000  # configurations of one attempt at making a counterexample smaller
EXPLAIN_ATTEMPTS: Final = 400
MAX_ROWS: Final = 40  # operations in a timeline
MAX_SHOWN: Final = 24  # characters of a value in a timeline

OUTCOMES: Final = {
    "put": ("ok",),
    "get": ("ok", "not_found"),
    "delete": ("ok", "not_found"),
    "cas": ("ok", "mismatch"),
    "incr": ("ok", "not_a_number"),
    "transaction": ("ok", "mismatch", "not_a_number"),
}
ARGUMENTS: Final = {
    "put": {"value"},
    "get": set(),
    "delete": set(),
    "cas": {"expected", "value"},
    "incr": {"delta"},
    "transaction": {"compare", "then", "else"},
}
RELATIONS: Final = ("equals", "differs", "exists", "absent", "less", "greater")
ACTIONS: Final = ("put", "get", "delete", "incr")
FIELDS: Final = {"client", "operation", "key", "arguments", "answer", "call_ns", "return_ns", "outcome"}

State = str | None  # what a key holds; None: it does not exist


class Malformed(ValueError):
    """This is not a history. The text says where and why: `file:line: reason`."""


class Undecided(Exception):
    """The search grew beyond its limit: the history may be linearizable or not."""


class Changes(NamedTuple):
    """What a transaction compares: (key, relation, value); and its actions: (operation, key, value)."""

    compare: tuple[tuple[str, str, str | None], ...]
    then: tuple[tuple[str, str, str | None], ...]
    otherwise: tuple[tuple[str, str, str | None], ...]

    def keys(self) -> set[str]:
        """All keys that it looks at or changes."""
        return {key for key, _, _ in self.compare} | {key for _, key, _ in self.then + self.otherwise}

    def writes(self) -> bool:
        """Whether it may change anything."""
        return any(kind != "get" for kind, _, _ in self.then + self.otherwise)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What one client saw of one operation. Times are in ns, of one clock for the whole history."""

    client: int
    kind: str  # put, get, delete, cas, incr, transaction
    key: str
    value: str | None = None  # put, cas: what to set
    expected: str | None = None  # cas: what the key must hold; None: it must not exist
    delta: int = 0  # incr
    outcome: str  # ok, not_found, mismatch, not_a_number, failed, unknown
    answer: str | None = None  # get: the value; cas with mismatch: what the key held; incr: the sum
    call: int
    return_: int | None = None  # None: never returned
    changes: Changes | None = None  # transaction
    answers: tuple[Any, ...] = ()  # transaction: those of its actions


# -------------------------------------------------------------------------------------------------- the files


def load(path: str | Path) -> list[Operation]:
    """The operations of a file. Malformed names the first line that is none; OSError if unreadable."""
    return list(_parsed(Path(path)))


def _parsed(path: Path) -> Iterator[Operation]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield parse(line)
            except (ValueError, RecursionError) as error:
                raise Malformed(f"{path}:{number}: {error}") from error


def dump(operations: Iterable[Operation], path: str | Path) -> None:
    """Write a history, replacing the file."""
    with Path(path).open("w", encoding="ascii") as file:
        file.writelines(to_json(operation) + "\n" for operation in operations)


def to_json(operation: Operation) -> str:
    """One line of a history, without its end."""
    if operation.changes is not None:
        arguments = dict(zip(("compare", "then", "else"), operation.changes, strict=True))
    else:
        arguments = {name: getattr(operation, name) for name in sorted(ARGUMENTS[operation.kind])}
    return json.dumps(
        {
            "client": operation.client,
            "operation": operation.kind,
            "key": operation.key,
            "arguments": arguments,
            "answer": _answer(operation),
            "call_ns": operation.call,
            "return_ns": operation.return_,
            "outcome": operation.outcome,
        }
    )


def _answer(operation: Operation) -> Any:
    if operation.outcome in ("failed", "unknown"):
        return None
    if operation.kind == "transaction":
        return list(operation.answers)
    if operation.kind == "delete":
        return operation.outcome == "ok"
    if operation.kind == "cas":
        return {"done": operation.outcome == "ok", "actual": operation.answer}
    return operation.answer


def parse(line: str | bytes) -> Operation:
    """One line of a history. ValueError says what is wrong with it."""
    text = line.decode("utf-8") if isinstance(line, bytes) else line
    fields = json.loads(text, object_pairs_hook=_without_duplicates)
    _expect_names("an operation", fields, FIELDS)
    kind, arguments, outcome = fields["operation"], fields["arguments"], fields["outcome"]
    if not isinstance(kind, str) or kind not in OUTCOMES:
        raise ValueError(f"operation: {_shown(kind)} is none of {', '.join(OUTCOMES)}")
    _expect_names("arguments", arguments, ARGUMENTS[kind])
    if not isinstance(outcome, str):
        raise ValueError(f"outcome: {_shown(outcome)} is not a string")
    if kind == "transaction":
        return _parsed_transaction(fields)
    operation = Operation(
        client=_integer("client", fields["client"]),
        kind=kind,
        key=_string("key", fields["key"]),
        value=_string("arguments.value", arguments["value"]) if "value" in arguments else None,
        expected=_optional_string("arguments.expected", arguments.get("expected")),
        delta=_integer("arguments.delta", arguments.get("delta", 0)),
        outcome=outcome,
        answer=_parsed_answer(kind, outcome, fields["answer"]),
        call=_integer("call_ns", fields["call_ns"]),
        return_=None if fields["return_ns"] is None else _integer("return_ns", fields["return_ns"]),
    )
    if (fault := defect(operation)) is not None:
        raise ValueError(fault)
    return operation


def _parsed_transaction(fields: dict[str, Any]) -> Operation:
    parts = [
        tuple(_triple(f"arguments.{name}", item, names, place) for item in fields["arguments"][name])
        for name, names, place in (("compare", RELATIONS, 1), ("then", ACTIONS, 0), ("else", ACTIONS, 0))
    ]
    operation = Operation(
        client=_integer("client", fields["client"]),
        kind="transaction",
        key=_string("key", fields["key"]),
        outcome=fields["outcome"],
        call=_integer("call_ns", fields["call_ns"]),
        return_=None if fields["return_ns"] is None else _integer("return_ns", fields["return_ns"]),
        changes=Changes(*parts),
        answers=tuple(fields["answer"] or ()),
    )
    if (fault := defect(operation)) is not None:
        raise ValueError(fault)
    return operation


def _triple(where: str, item: Any, names: tuple[str, ...], place: int) -> tuple[str, str, str | None]:
    """A comparison or an action; at this place stands what it is, one of the names."""
    if not isinstance(item, list) or len(item) != 3 or item[place] not in names:
        raise ValueError(f"{where}: {_shown(item)} is none")
    return _string(where, item[0]), _string(where, item[1]), _optional_string(where, item[2])


def defect(operation: Operation) -> str | None:
    """Why this cannot be what a client saw, whatever the store did; None if it can."""
    kind, outcome, answer = operation.kind, operation.outcome, operation.answer
    if kind not in OUTCOMES:
        return f"operation: {_shown(kind)} is none of {', '.join(OUTCOMES)}"
    if operation.return_ is not None and operation.return_ < operation.call:
        return f"return_ns: {operation.return_} is before call_ns: {operation.call}"
    if not MIN_NUMBER <= operation.delta <= MAX_NUMBER:
        return f"arguments.delta: {operation.delta} does not fit 64 bits"
    if (kind == "transaction") != (operation.changes is not None):
        return "arguments: only a transaction has changes"
    if kind in ("put", "cas") and operation.value is None:
        return f"arguments.value: a {kind} has one"
    if outcome in ("failed", "unknown"):
        return None
    if outcome not in OUTCOMES[kind]:
        return f"outcome: a {kind} has {', '.join(OUTCOMES[kind])}, failed or unknown, not {_shown(outcome)}"
    if operation.return_ is None:
        return f"return_ns: null, although the outcome is {outcome}"
    if operation.changes is not None:
        wanted = {"ok": operation.changes.then, "mismatch": operation.changes.otherwise}.get(outcome, ())
        right = len(operation.answers) == len(wanted) and operation.key == ""
        return None if right else f"answer: it has {len(wanted)} actions, and the key is empty"
    answers = outcome == "ok" and kind in ("get", "incr")
    if outcome != "mismatch" and (answer is not None) != answers:  # a mismatch may have met a missing key
        return f"answer: {_shown(answer)} does not go with {outcome}"
    return None


def _parsed_answer(kind: str, outcome: str, answer: Any) -> str | None:
    if outcome in ("failed", "unknown"):
        return None
    if kind == "cas":
        _expect_names("answer", answer, {"done", "actual"})
        if answer["done"] is not (outcome == "ok"):
            raise ValueError(f"answer.done: {_shown(answer['done'])} does not go with {_shown(outcome)}")
        actual = _optional_string("answer.actual", answer["actual"])
        return None if outcome == "ok" else actual
    if kind == "delete":
        if answer is not (outcome == "ok"):
            raise ValueError(f"answer: {_shown(answer)} does not go with {_shown(outcome)}")
        return None
    return _optional_string("answer", answer)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a field stands there twice")
    return fields


def _expect_names(where: str, fields: Any, names: set[str]) -> None:
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: {_shown(fields)} is not an object")
    if missing := sorted(names - fields.keys()):
        raise ValueError(f"{where}: {missing[0]} is missing")
    if unknown := sorted(fields.keys() - names):
        raise ValueError(f"{where}: unknown field {_shown(unknown[0])}")


def _integer(where: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{where}: {_shown(value)} is not an integer")
    return value


def _string(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: {_shown(value)} is not a string")
    return value


def _optional_string(where: str, value: Any) -> str | None:
    return None if value is None else _string(where, value)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 4] + '..."'


# ---------------------------------------------------------------------------- what an operation asks and does


class Demand(Enum):
    """What an operation says about the state that it met."""

    ANYTHING = 0
    EXACTLY = 1  # `before`
    SOMETHING = 2  # the key existed
    ZERO = 3  # missing or "0"
    NO_SUM = 4  # not a number, or the sum with `delta` does not fit
    A_SUM = 5  # only of unknown outcome: a number, and the sum fits; the state is the sum then
    IMPOSSIBLE = 6


class Refused(Enum):
    """What comes of a step in a state that it does not fit."""

    REFUSED = 0


REFUSED: Final = Refused.REFUSED
ANYTHING, EXACTLY, SOMETHING, ZERO, NO_SUM, A_SUM, IMPOSSIBLE = Demand


class Step(NamedTuple):
    """An operation as the search sees it."""

    demand: Demand
    before: State = None
    changes: bool = False
    after: State = None
    delta: int = 0

    @property
    def is_idle(self) -> bool:
        """Whether it changes nothing, wherever it fits."""
        return not self.changes or (self.demand is EXACTLY and self.before == self.after)

    @property
    def makes_its_own(self) -> bool:
        """Whether it leaves behind `after` where something else was."""
        return (
            self.changes
            and self.demand is not A_SUM
            and (self.demand is not EXACTLY or self.before != self.after)
        )


def number(state: State) -> int | None:
    """The number that an increment finds; None if there is none. Only canonical decimals of 64 bits count."""
    if state is None:
        return 0
    if not 0 < len(state) <= 20:  # the longest is -9223372036854775808
        return None
    try:
        found = int(state)
    except ValueError:
        return None
    return found if str(found) == state and MIN_NUMBER <= found <= MAX_NUMBER else None


def sum_with(state: State, delta: int) -> str | None:
    """What an increment makes of the state; None where it changes nothing."""
    found = number(state)
    if found is None or not MIN_NUMBER <= found + delta <= MAX_NUMBER:
        return None
    return str(found + delta)


def result(step: Step, state: State) -> State | Refused:
    """The state after the step, or REFUSED if the step does not fit this one."""
    demand = step.demand
    if demand is EXACTLY:
        if state != step.before:
            return REFUSED
    elif demand is SOMETHING:
        if state is None:
            return REFUSED
    elif demand is ZERO:
        if state is not None and state != "0":
            return REFUSED
    elif demand is NO_SUM:
        if sum_with(state, step.delta) is not None:
            return REFUSED
    elif demand is A_SUM:
        total = sum_with(state, step.delta)
        return REFUSED if total is None else total
    elif demand is IMPOSSIBLE:
        return REFUSED
    return step.after if step.changes else state


def step_of(operation: Operation) -> Step:
    """What the operation says of the states before and after it. ValueError if it contradicts itself."""
    if (fault := defect(operation)) is not None:
        raise ValueError(f"{fault}: {operation}")
    kind, outcome, answer = operation.kind, operation.outcome, operation.answer
    if kind == "put":
        return Step(ANYTHING, changes=True, after=operation.value)
    if kind == "get":
        return Step(EXACTLY, before=answer)
    if kind == "delete":
        if outcome == "unknown":
            return Step(ANYTHING, changes=True)
        return Step(SOMETHING, changes=True) if outcome == "ok" else Step(EXACTLY)
    if kind == "cas":
        if outcome != "mismatch":
            return Step(EXACTLY, before=operation.expected, changes=True, after=operation.value)
        return Step(IMPOSSIBLE) if answer == operation.expected else Step(EXACTLY, before=answer)
    if outcome == "unknown":
        return Step(A_SUM, changes=True, delta=operation.delta)
    if outcome == "not_a_number":
        return Step(NO_SUM, delta=operation.delta)
    return _step_of_sum(answer, operation.delta)


def _step_of_sum(answer: State, delta: int) -> Step:
    total = number(answer)
    if total is None or not MIN_NUMBER <= total - delta <= MAX_NUMBER:
        return Step(IMPOSSIBLE)
    if total == delta:
        return Step(ZERO, changes=True, after=answer)
    return Step(EXACTLY, before=str(total - delta), changes=True, after=answer)


# ------------------------------------------------------------------------------------------------- the search


class Census:
    """What the operations not yet taken can still see and make."""

    __slots__ = ("deltas", "makers", "need", "nosums", "somethings", "sums", "useful")

    def __init__(self) -> None:
        self.need: Counter[State] = Counter()  # returned operations that must meet exactly this value
        self.useful: Counter[State] = (
            Counter()
        )  # operations, returned or not, that tell this value from others
        self.makers: Counter[State] = Counter()  # operations that can leave this value behind
        self.somethings = self.nosums = self.sums = 0  # operations with these demands
        self.deltas = (0, 0)  # the least and the largest that a NO_SUM ever had

    def count(self, step: Step, times: int, returned: bool) -> None:
        """Add the step (times = 1) or take it away (times = -1)."""
        demand = step.demand
        if demand is EXACTLY:
            self.useful[step.before] += times
            if returned:
                self.need[step.before] += times
        elif demand is SOMETHING:
            self.somethings += times
        elif demand is ZERO:
            self.useful[None] += times
            self.useful["0"] += times
        elif demand is NO_SUM:
            self.nosums += times
            self.deltas = (min(self.deltas[0], step.delta), max(self.deltas[1], step.delta))
        elif demand is A_SUM:
            self.sums += times
        if step.makes_its_own:
            self.makers[step.after] += times

    def told_apart(self, state: State) -> bool:
        """Whether anything needs this very value; not only whether it is one, or a number."""
        return self.useful[state] > 0 or (self.sums > 0 and number(state) is not None)

    def stops_sums(self, state: State) -> bool:
        """Whether an increment yet to come may fit because this value cannot be added to."""
        return self.nosums > 0 and not self.always_adds(state)

    def always_adds(self, state: State) -> bool:
        """Whether every increment would find a number here whose sum fits."""
        found = number(state)
        return found is not None and MIN_NUMBER - self.deltas[0] <= found <= MAX_NUMBER - self.deltas[1]

    def missed(self, state: State) -> bool:
        """Whether this value, once gone, would be missed for good."""
        if not self.need[state] or self.makers[state]:
            return False
        return not (self.sums and state is not None and number(state) is not None)


class Chain(NamedTuple):
    """Operations of unknown outcome that all do the same."""

    step: Step
    calls: list[int]


class Choice(NamedTuple):
    """One way on: operations that are taken one after the other, and the state after them."""

    state: State
    known: tuple[int, ...]
    chain: int | None = None


class Frame(NamedTuple):
    """Where to go on after stepping back: what was taken here, and what it looked like before."""

    choices: Iterator[Choice]
    taken: list[int]
    chain: int | None
    before: tuple[int, int, State, bool]


class Search:
    """The search for an order of the operations of one key.

    A configuration is: which returned operations are taken (all below `low`, and those whose bits are set in
    `mask`, bit 0 being `low`), how many of each chain, the state, and whether the last one taken was of
    unknown outcome (`owing`: its effect must be seen by the next, or it could have been left out).
    """

    def __init__(self, operations: Iterable[Operation], limit: int = DEFAULT_LIMIT) -> None:
        relevant = [operation for operation in operations if _matters(operation)]
        known = sorted((o for o in relevant if o.outcome != "unknown"), key=lambda o: o.call)
        self.calls = [o.call for o in known]
        self.returns = [o.return_ for o in known if o.return_ is not None]
        self.steps = [step_of(o) for o in known]
        self.idle = [step.is_idle for step in self.steps]
        unknown = [(o.call, step_of(o)) for o in relevant if o.outcome == "unknown"]
        self.census = Census()
        for step in self.steps:
            self.census.count(step, 1, returned=True)
        for _, step in unknown:
            self.census.count(step, 1, returned=False)
        self.chains = self._chained(unknown)
        self.deadlines = self._deadlines()
        self.limit = limit
        self.low = self.mask = 0
        self.used = [0] * len(self.chains)
        self.state: State = None
        self.owing = False
        self.horizon: float = NEVER
        self.seen: dict[tuple[int, int, State], list[tuple[tuple[int, ...], bool]]] = {}
        self.configurations = 0

    def _chained(self, unknown: list[tuple[int, Step]]) -> list[Chain]:
        """Group the unknown operations by what they do; values that nobody can tell apart count as one."""
        chains: dict[Step, list[int]] = defaultdict(list)
        stand_ins: dict[bool, State] = {}  # by whether one can add to it
        for call, step in sorted(unknown, key=lambda pair: pair[0]):
            kind = step
            if step.demand is ANYTHING and self._is_nobodys(step.after):
                kind = step._replace(after=stand_ins.setdefault(number(step.after) is not None, step.after))
                self.census.makers[step.after] -= 1
                self.census.makers[kind.after] += 1
            chains[kind].append(call)
        return [Chain(step, calls) for step, calls in chains.items()]

    def _is_nobodys(self, state: State) -> bool:
        if state is None or self.census.told_apart(state):
            return False
        return number(state) is None or self.census.always_adds(state)

    def _deadlines(self) -> list[float]:
        """When each operation, or one that needs its value and no other's, returns: whom to try first."""
        first: dict[State, float] = {}
        for step, end in zip(self.steps, self.returns, strict=True):
            if step.demand is EXACTLY:
                first[step.before] = min(end, first.get(step.before, NEVER))
        return [
            min(end, first.get(step.after, NEVER))
            if step.changes and self.census.makers[step.after] == 1
            else end
            for step, end in zip(self.steps, self.returns, strict=True)
        ]

    def succeeds(self) -> bool:
        """Whether there is an order. To be called once. Undecided beyond the limit."""
        if self._is_hopeless():
            return False
        frames = [self._enter(Choice(None, ()))]
        while frames and self.low < len(self.steps):
            choice = next(frames[-1].choices, None)
            if choice is None:
                self._leave(frames.pop())
                continue
            frame = self._enter(choice)
            frames.append(frame)
            if self.configurations > self.limit:
                raise Undecided(f"more than {self.limit:,} configurations")
        return bool(frames)

    def _is_hopeless(self) -> bool:
        """Whether some answer cannot be right whatever the order: nobody wrote that value."""
        if any(step.demand is IMPOSSIBLE for step in self.steps):
            return True
        return any(state is not None and self.census.missed(state) for state in list(self.census.need))

    def _enter(self, choice: Choice) -> Frame:
        """Take what the choice names, then all that is idle. There are no choices if that leads nowhere."""
        before = (self.low, self.mask, self.state, self.owing)
        taken: list[int] = []
        for index in choice.known:
            self._take(index, taken)
        if choice.chain is not None:
            self.used[choice.chain] += 1
            self.census.count(self.chains[choice.chain].step, -1, returned=False)
        self.owing = choice.chain is not None
        dead = choice.state != self.state and self.census.missed(self.state)
        self.state = choice.state
        choices: list[Choice] = []
        if not dead:
            open_ = self._absorb(taken)
            if self._is_new():
                choices = self._choices(open_)
        return Frame(iter(choices), taken, choice.chain, before)

    def _is_new(self) -> bool:
        """Note the configuration. False if one was seen from which at least as much is possible.

        That is one with the same operations taken and the same state that has used no operation of unknown
        outcome that this one has not used, too: it can do all that this one can.
        """
        seen = self.seen.setdefault((self.low, self.mask, self.state), [])
        used = tuple(self.used)
        for other, owing in seen:
            if owing <= self.owing and all(map(le, other, used)):
                return False
        seen.append((used, self.owing))
        self.configurations += 1
        return True

    def _leave(self, frame: Frame) -> None:
        for index in frame.taken:
            self.census.count(self.steps[index], 1, returned=True)
        if frame.chain is not None:
            self.used[frame.chain] -= 1
            self.census.count(self.chains[frame.chain].step, 1, returned=False)
        self.low, self.mask, self.state, self.owing = frame.before

    def _take(self, index: int, taken: list[int]) -> None:
        self.mask |= 1 << (index - self.low)
        while self.mask & 1:
            self.mask >>= 1
            self.low += 1
        self.census.count(self.steps[index], -1, returned=True)
        taken.append(index)

    def _open(self) -> list[int]:
        """The returned operations that may come next: none untaken returned before their call."""
        found = []
        self.horizon = NEVER
        mask = self.mask
        for index in range(self.low, len(self.steps)):
            if self.calls[index] > self.horizon:
                break
            if not mask & 1:
                found.append(index)
                self.horizon = min(self.horizon, self.returns[index])
            mask >>= 1
        return found

    def _absorb(self, taken: list[int]) -> list[int]:
        """Take all that fits and never changes anything, until nothing more does. What may come next then.

        A put of the value that the key holds anyway is not of that kind: it may be needed later.
        """
        while True:
            open_ = self._open()
            idle = [index for index in open_ if self.idle[index] and self._fits(index)]
            if not idle:
                return open_
            for index in idle:
                self._take(index, taken)
            self.owing = False

    def _fits(self, index: int) -> bool:
        return result(self.steps[index], self.state) is not REFUSED

    def _choices(self, open_: list[int]) -> list[Choice]:
        """All ways on that must be tried, the most urgent first.

        How urgent: when it returns itself, or the first of those that wait for the value that it makes.
        """
        waiting: dict[State, float] = {}
        for index in open_:
            step = self.steps[index]
            if step.demand is EXACTLY:
                waiting[step.before] = min(self.returns[index], waiting.get(step.before, NEVER))
        ranked = [
            (min(self.deadlines[c.known[-1]], waiting.get(c.state, NEVER)), c)
            for c in self._known_choices(open_)
        ]
        ranked += [(waiting.get(c.state, NEVER), c) for c in self._unknown_choices()]
        return [choice for _, choice in sorted(ranked, key=itemgetter(0))]

    def _known_choices(self, open_: list[int]) -> Iterator[Choice]:
        hidden = [index for index in open_ if self._can_hide(index)]
        for index in open_:
            step = self.steps[index]
            if step.demand is not ANYTHING:
                after = result(step, self.state)
                if after is not REFUSED:
                    yield Choice(after, (index,))
            elif not self.owing and (index not in hidden or index == hidden[0]):
                others = tuple(other for other in hidden if other != index)
                yield Choice(step.after, (*others, index))

    def _can_hide(self, index: int) -> bool:
        """Whether this put may as well come just before another one: nobody can see its value.

        Only whether there is a value might be seen; and there is one without it, too, unless something that
        can come before it removes the key.
        """
        step = self.steps[index]
        if step.demand is not ANYTHING or self.census.told_apart(step.after):
            return False
        if self.census.stops_sums(step.after):
            return False
        return not self.census.somethings or not self._may_vanish(self.returns[index])

    def _may_vanish(self, until: int) -> bool:
        """Whether the key can be removed by an operation that was called up to this time."""
        if not self.census.makers[None]:
            return False
        for position, chain in enumerate(self.chains):
            left = chain.calls[self.used[position] :]
            if chain.step.after is None and chain.step.makes_its_own and left and left[0] <= until:
                return True
        mask = self.mask
        for index in range(self.low, len(self.steps)):
            if self.calls[index] > until:
                return False
            step = self.steps[index]
            if not mask & 1 and step.makes_its_own and step.after is None:
                return True
            mask >>= 1
        return False

    def _unknown_choices(self) -> Iterator[Choice]:
        for position, (step, calls) in enumerate(self.chains):
            if self.used[position] == len(calls) or calls[self.used[position]] > self.horizon:
                continue
            after = result(step, self.state)
            if after is REFUSED or after == self.state:
                continue
            if self.owing and step.demand is ANYTHING:
                continue
            if self._would_be_seen(after):
                yield Choice(after, (), position)

    def _would_be_seen(self, after: State) -> bool:
        """Whether it can make a difference that this state follows the present one."""
        if self.census.told_apart(after) or (self.state is None and self.census.somethings > 0):
            return True
        return self.census.stops_sums(after) and number(self.state) is not None


# --------------------------------------------------------------------------------------- several keys at once


States = tuple[State, ...]  # of the keys, in their order


class Taken(NamedTuple):
    """A configuration: all of the first `low` operations are taken, those after them by `mask`, and so on."""

    states: States
    low: int = 0
    mask: int = 0
    unknown: int = 0  # a mask of those of unknown outcome


class Joint:
    """Looks for an order of operations on several keys, some of which are transactions.

    It is the same search without what keeps Search small: only what can change nothing is taken at once.
    """

    def __init__(self, operations: Iterable[Operation], limit: int = DEFAULT_LIMIT) -> None:
        self.limit = min(limit, JOINT_LIMIT)
        ordered = sorted((o for o in operations if _matters(o)), key=lambda operation: operation.call)
        self.known = [o for o in ordered if o.outcome != "unknown"]
        self.unknown = [o for o in ordered if o.outcome == "unknown"]
        keys = {key for o in ordered for key in keys_of(o)}
        self.places = {key: place for place, key in enumerate(sorted(keys))}
        self.steps = {id(o): step_of(o) for o in ordered if o.changes is None}
        self.returns = [NEVER if o.return_ is None else o.return_ for o in self.known]
        self.idle = [
            not o.changes.writes() if o.changes is not None else self.steps[id(o)].is_idle for o in self.known
        ]

    def succeeds(self) -> bool:
        """Whether there is an order. Undecided beyond the limit."""
        seen: set[Taken] = set()
        stack = [iter([Taken((None,) * len(self.places))])]
        while stack:
            taken = next(stack[-1], None)
            if taken is None:
                stack.pop()
                continue
            taken, open_, horizon = self._absorb(taken)
            if taken.low == len(self.known):
                return True
            if taken not in seen:
                seen.add(taken)
                if len(seen) > self.limit:
                    raise Undecided(f"more than {self.limit:,} configurations")
                stack.append(self._choices(taken, open_, horizon))
        return False

    def _open(self, taken: Taken) -> tuple[list[int], float]:
        """Those that may come next: none untaken returned before their call. And when the first returns."""
        found, horizon, mask = [], NEVER, taken.mask
        for index in range(taken.low, len(self.known)):
            if self.known[index].call > horizon:
                break
            if not mask & 1:
                found.append(index)
                horizon = min(horizon, self.returns[index])
            mask >>= 1
        return found, horizon

    def _absorb(self, taken: Taken) -> tuple[Taken, list[int], float]:
        while True:
            open_, horizon = self._open(taken)
            fits = (i for i in open_ if self.idle[i] and self._after(self.known[i], taken.states) is not None)
            index = next(fits, None)
            if index is None:
                return taken, open_, horizon
            taken = self._take(taken, index, taken.states)

    def _take(self, taken: Taken, index: int, states: States) -> Taken:
        low, mask = taken.low, taken.mask | 1 << (index - taken.low)
        while mask & 1:
            low, mask = low + 1, mask >> 1
        return taken._replace(states=states, low=low, mask=mask)

    def _choices(self, taken: Taken, open_: list[int], horizon: float) -> Iterator[Taken]:
        for index in sorted(open_, key=self.returns.__getitem__):
            states = self._after(self.known[index], taken.states)
            if states is not None:
                yield self._take(taken, index, states)
        for index, operation in enumerate(self.unknown):
            if operation.call <= horizon and not taken.unknown >> index & 1:
                states = self._after(operation, taken.states)
                if states is not None and states != taken.states:
                    yield taken._replace(states=states, unknown=taken.unknown | 1 << index)

    def _after(self, operation: Operation, states: States) -> States | None:
        """The states after the operation; None if it cannot have met these."""
        if operation.changes is not None:
            return self._transacted(operation, operation.changes, states)
        place = self.places[operation.key]
        after = result(self.steps[id(operation)], states[place])
        return None if after is REFUSED else (*states[:place], after, *states[place + 1 :])

    def _transacted(self, operation: Operation, changes: Changes, states: States) -> States | None:
        held = all(_compares(states[self.places[key]], *test) for key, *test in changes.compare)
        after, answers = list(states), []
        for kind, key, value in changes.then if held else changes.otherwise:
            place = self.places[key]
            present: Any = after[place]
            if kind == "incr":
                after[place] = present = sum_with(present, int(value or "0"))
                if present is None:
                    return states if operation.outcome in ("not_a_number", "unknown") else None
            elif kind == "delete":
                after[place], present = None, present is not None
            elif kind == "put":
                after[place], present = value, None
            answers.append(present)
        outcome = "ok" if held else "mismatch"
        if operation.outcome != "unknown" and (operation.outcome, operation.answers) != (
            outcome,
            (*answers,),
        ):
            return None
        return (*after,)


def _compares(state: State, relation: str, value: str | None) -> bool:
    """Whether a comparison holds."""
    if relation in ("less", "greater"):
        found, bound = (None if text is None else number(text) for text in (state, value))
        return (
            found is not None
            and bound is not None
            and (found < bound if relation == "less" else found > bound)
        )
    if relation in ("exists", "absent"):
        return (state is None) == (relation == "absent")
    return (state == value) == (relation == "equals")


def keys_of(operation: Operation) -> set[str]:
    """The keys that an operation is about."""
    return {operation.key} if operation.changes is None else operation.changes.keys()


def _joined(operations: Iterable[Operation]) -> Iterator[tuple[list[str], list[Operation]]]:
    """Each set of keys that transactions join, or that one key is alone, and the operations on them."""
    group: dict[str, list[str]] = {}  # by key: those that it is joined with; they share one list
    history: dict[int, list[Operation]] = defaultdict(list)  # by the id of that list
    listed = list(operations)
    for operation in listed:
        keys = sorted(keys_of(operation))
        for key in keys:
            first, other = group.setdefault(keys[0], [keys[0]]), group.setdefault(key, [key])
            if other is not first:
                first += other
                group.update(dict.fromkeys(other, first))
    for operation in listed:
        keys = sorted(keys_of(operation))
        if keys:
            history[id(group[keys[0]])].append(operation)
    for keys in {id(joined): joined for joined in group.values()}.values():
        yield keys, history[id(keys)]


def _search(operations: Sequence[Operation], limit: int) -> Search | Joint:
    """The search for an order of operations on one key, or on several that transactions join."""
    return (Joint if any(o.changes is not None for o in operations) else Search)(operations, limit)


def _matters(operation: Operation) -> bool:
    if operation.changes is not None and not operation.changes.writes() and operation.outcome == "unknown":
        return False
    return operation.outcome != "failed" and not (operation.outcome == "unknown" and operation.kind == "get")


# ------------------------------------------------------------------------------------------------ the verdict


@dataclass(frozen=True, slots=True)
class Violation:
    """Why a history is not linearizable. str() draws it."""

    key: str
    prefix: tuple[
        Operation, ...
    ]  # the key's shortest failing prefix; what was under way at its end is `unknown`
    core: tuple[Operation, ...]  # operations of it that fail by themselves; see _smaller

    def __str__(self) -> str:
        head = f"key {_shown(self.key)} is not linearizable: of its first {len(self.prefix)} operations, "
        return head + f"these {len(self.core)} have no order:\n{timeline(self.core)}"


def check(operations: Iterable[Operation], limit: int = DEFAULT_LIMIT) -> Violation | None:
    """None if the history is linearizable, else what is wrong with the first key that is not.

    ValueError if an operation contradicts itself. Undecided if a key needs more than `limit` configurations
    and no other key is in the wrong.
    """
    undecided: Undecided | None = None
    for keys, history in _joined(operations):
        key = ", ".join(sorted(keys))
        try:
            fine = _search(history, limit).succeeds()
        except Undecided as error:
            undecided = Undecided(f"key {_shown(key)}: {error}")
            continue
        if not fine:
            prefix = _shortest_failing_prefix([operation for operation in history if _matters(operation)])
            joined = any(operation.changes is not None for operation in prefix)
            return Violation(key, tuple(prefix), tuple(prefix if joined else _smaller(prefix)))
    if undecided is not None:
        raise undecided
    return None


def _fails(operations: Sequence[Operation]) -> bool:
    """Whether these certainly have no order."""
    try:
        return not _search(operations, EXPLAIN_LIMIT).succeeds()
    except Undecided:
        return False


def _shortest_failing_prefix(history: list[Operation]) -> list[Operation]:
    """Cut a failing history after the first return at which it fails; every later cut fails, too."""
    ordered = sorted(history, key=lambda operation: operation.call)
    ends = sorted({o.return_ for o in ordered if o.return_ is not None and o.outcome != "unknown"})
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        if _fails(_cut(ordered, ends[middle])):
            high = middle
        else:
            low = middle + 1
    return _cut(ordered, ends[high])


def _cut(ordered: list[Operation], end: int) -> list[Operation]:
    cut = (
        o if o.return_ is not None and o.return_ <= end else _forgotten(o) for o in ordered if o.call <= end
    )
    return [operation for operation in cut if _matters(operation)]


def _forgotten(operation: Operation) -> Operation:
    """The operation, had nobody heard of its end."""
    return replace(operation, outcome="unknown", answer=None, return_=None, answers=())


def _smaller(operations: list[Operation]) -> list[Operation]:
    """Fewer operations that fail as well; usually few enough to see why.

    Whatever is done here keeps a linearizable history linearizable, so what fails in the end proves that the
    whole does: leave out what changes nothing; forget the answers of deletes and compare-and-sets; leave out
    writes that nobody sees.
    """
    attempts = iter(range(EXPLAIN_ATTEMPTS))
    size = -1
    while size != len(operations):
        size = len(operations)
        operations = _thinned(operations, _idle, lambda operation: None, attempts)
        operations = _thinned(operations, _forgettable, _forgotten, attempts)
        operations = _thinned(operations, _unseen_among(operations), lambda operation: None, attempts)
    return operations


def _idle(operation: Operation) -> bool:
    return operation.outcome != "unknown" and step_of(operation).is_idle


def _forgettable(operation: Operation) -> bool:
    return operation.outcome == "ok" and operation.kind in ("delete", "cas")


def _unseen_among(operations: list[Operation]) -> Callable[[Operation], bool]:
    census = Search(operations).census

    def unseen(operation: Operation) -> bool:
        blind = operation.kind == "put" or (
            operation.kind in ("delete", "cas") and operation.outcome == "unknown"
        )
        after = step_of(operation).after
        return blind and not (census.somethings or census.told_apart(after) or census.stops_sums(after))

    return unseen


def _thinned(
    operations: list[Operation],
    eligible: Callable[[Operation], bool],
    change: Callable[[Operation], Operation | None],
    attempts: Iterator[int],
) -> list[Operation]:
    """Change (or drop: None) as many eligible ones as possible, in ever smaller groups."""
    slots: list[Operation | None] = list(operations)
    left = [index for index, operation in enumerate(operations) if eligible(operation)]
    group = len(left)
    while group:
        kept: list[int] = []
        for start in range(0, len(left), group):
            members = left[start : start + group]
            trial = slots.copy()
            for index in members:
                trial[index] = change(operations[index])
            if next(attempts, None) is not None and _fails([o for o in trial if o is not None]):
                slots = trial
            else:
                kept += members
        left, group = kept, group // 2
    return [operation for operation in slots if operation is not None]


# ------------------------------------------------------------------------------------------------ the picture


def timeline(operations: Sequence[Operation]) -> str:
    """One row for each operation, in the order of the calls; bars that overlap are concurrent.

    `>` is an end that nobody knows. The columns are the calls and returns in their order, not in proportion
    to the time between them.
    """
    ordered = sorted(operations, key=lambda operation: operation.call)
    shown = ordered[-MAX_ROWS:]
    labels = [_label(operation) for operation in shown]
    columns = _columns(shown)
    first = shown[0].call if shown else 0
    width = max(map(len, labels), default=0)
    rows = [f"({len(ordered) - len(shown)} earlier ones not shown)"] if len(shown) < len(ordered) else []
    rows.append(f"{'client':>6}  {'operation':{width}}  from us (first call: {first} ns)")
    for operation, label in zip(shown, labels, strict=True):
        bar = _bar(operation, columns)
        start = f"{(operation.call - first) / 1000:>12.3f}"
        rows.append(f"{operation.client:>6}  {label:{width}}  {start}  {bar}")
    return "\n".join(rows)


def _columns(operations: Sequence[Operation]) -> dict[tuple[int, bool], int]:
    """The column of each (time, whether it is a return). At equal times calls come first."""
    events = {(o.call, False) for o in operations}
    events |= {(o.return_, True) for o in operations if o.return_ is not None and o.outcome != "unknown"}
    step = 3 if len(events) <= 24 else 1
    return {event: step * rank for rank, event in enumerate(sorted(events))}


def _bar(operation: Operation, columns: dict[tuple[int, bool], int]) -> str:
    start = columns[operation.call, False]
    if operation.return_ is None or operation.outcome == "unknown":
        return " " * start + "|" + "-" * (max(columns.values()) - start + 2) + ">"
    return " " * start + "|" + "-" * (columns[operation.return_, True] - start - 1) + "|"


def _label(operation: Operation) -> str:
    arguments = ""
    if operation.kind == "put":
        arguments = " " + _shown(operation.value)
    elif operation.kind == "cas":
        arguments = f" {_shown(operation.expected)} to {_shown(operation.value)}"
    elif operation.kind == "incr":
        arguments = f" {operation.delta:+d}"
    elif operation.changes is not None:
        arguments = " " + ", ".join(sorted(operation.changes.keys())) + f" -> {list(operation.answers)}"
    return operation.kind + arguments + _ending(operation)


def _ending(operation: Operation) -> str:
    if operation.outcome in ("unknown", "failed", "not_found", "not_a_number"):
        return f": {operation.outcome}"
    if operation.outcome == "mismatch":
        return f": mismatch, {_shown(operation.answer)}"
    return f": {_shown(operation.answer)}" if operation.answer is not None else ""
