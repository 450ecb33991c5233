"""Explores every state that a small world can reach, breadth first: the first breach has the fewest steps.

A step touches one process: it is a function of that process's state and of one event. So every process
state, message and history is numbered, the code under test runs once for each pair of them, and the rest is
looking numbers up. A state of the world is a flat tuple of integers:

    the number of each process's state
    of each process: the messages that may be delivered to it, one bit each
    the number of the history, which is what an observer has seen so far
    the budgets that are left, packed: how often a crash, a candidacy, ... may still happen

The network never forgets. A message that was sent may be delivered at any time, any number of times, or
never: that is delay, reordering, duplication and loss at once, without an event for any of them. (In a
world that says `once`, a message is gone when it was delivered and has changed something. What changes
nothing stays: it may be delivered later, and need not be.)

Two reductions; tests/simulation/test_explore.py compares the verdicts with and without each.

*Messages without a future.* The world says which messages can never again change anything, given the states
of both ends (`dead`). Without them, states that differ in nothing else are one. That it is right is checked
while exploring, for every state met: such a message, if delivered, changes nothing, and stays dead in the
following states of both ends (`check=True`).

*Symmetry.* Processes that are alike (acceptors that are not proposers) may be renamed: whatever follows
from one state follows from the other, renamed. So of all orders only the smallest is kept. (What a process
keeps about the others is renamed, too.)

States are kept as 64-bit hashes of their tuples: with n states, the probability that any is missed is below
n * n / 2**65; for ten million, 3 in a million.
"""

import gc
import itertools
import marshal
import pickle
import time
from array import array
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from itertools import permutations
from multiprocessing import Pipe, Process
from multiprocessing.connection import wait
from typing import Any, NamedTuple, Protocol

State = tuple[int, ...]
BUDGET_BITS = 4


class Breach(Exception):
    """Something happened that must not: the text says what."""


class Step(NamedTuple):
    """What an event did: messages as (receiver, message), and facts for the observer."""

    sends: list[tuple[int, Any]]
    facts: tuple[Any, ...] = ()


class World(Protocol):
    """What is explored. Processes are numbered from 0; the first `alike` of them are interchangeable."""

    names: list[str]
    alike: int
    once: bool  # whether a message is delivered at most once; else it stays, and may come again
    budgets: dict[str, int]  # of events that do not come from a message; others, like "sync", have none
    nothing_seen: Hashable  # the observer's first history

    def begin(self) -> list[Any]:
        """Return the state of each process."""

    def events(self, process: int) -> list[str]:
        """Return which budgeted events can happen to the process."""

    def step(self, process: int, state: Any, event: Any, sender: int | None) -> Step | None:
        """Change the state by an event's name, or by a message of the sender. None: it cannot happen now."""

    def key(self, process: int, state: Any) -> Hashable:
        """Return what the state is: equal for two that behave alike."""

    def dead(
        self, sender: int, source: Any, receiver: int, target: Any, message: Any, left: dict[str, int]
    ) -> bool:
        """Whether this message can never again change anything, with these budgets left."""

    def observe(self, history: Any, facts: tuple[Any, ...]) -> Hashable:
        """Return the history with these facts, or raise Breach."""

    def renamed(self, process: int, state: Any, to: dict[int, int]) -> Any:
        """Return the state of a process that is not alike, with the others renamed in it."""

    def renamed_history(self, history: Any, to: dict[int, int]) -> Hashable: ...


class Verdict(NamedTuple):
    """How an exploration ended. `schedule` is that of the breach, if there was one."""

    exhausted: bool
    states: int
    transitions: int
    depth: int
    seconds: float
    seen: frozenset[Hashable] = frozenset()  # all histories
    breach: str | None = None
    schedule: tuple[str, ...] = ()


class Numbers:
    """Numbers things in the order in which they are first met; `ask` may know a number already."""

    def __init__(self, ask: Callable[[Hashable, Any], int] | None = None) -> None:
        self.known: dict[Hashable, int] = {}
        self.things: dict[int, Any] = {}
        self.ask = ask

    def of(self, key: Hashable, thing: Any) -> int:
        number = self.known.get(key)
        if number is None:
            number = len(self.known) if self.ask is None else self.ask(key, thing)
            self.take(key, thing, number)
        return number

    def take(self, key: Hashable, thing: Any, number: int) -> None:
        self.known[key] = number
        self.things[number] = thing


Outcome = tuple[int, tuple[tuple[int, int], ...], tuple[Any, ...]]  # new state, (receiver, bits), facts


class Explorer:
    """Steps states of one world, and remembers what each step did."""

    def __init__(
        self,
        world: World,
        *,
        symmetry: bool = True,
        forget: bool = True,
        check: bool = False,
        ask: Callable[[str, Hashable, Any], int] | None = None,
    ) -> None:
        self.world = world
        self.count = len(world.names)
        self.alike = world.alike if symmetry else 0
        self.forget = forget
        self.once = world.once
        self.check = check
        roles = [str(max(process - world.alike + 1, 0)) for process in range(self.count)]
        kinds = [*[f"state {role}" for role in roles], *[f"message {role}" for role in roles], "history"]
        self.numbers = {kind: Numbers(partial(ask, kind) if ask else None) for kind in kinds}
        self.locals = [self.numbers[f"state {role}"] for role in roles]
        self.messages = [self.numbers[f"message {role}"] for role in roles]  # by receiver: (sender, message)
        self.histories = self.numbers["history"]
        self.between: dict[tuple[int, int], int] = {}  # (sender, receiver): the bits of all messages
        self.outcomes: list[dict[tuple[int, int], Outcome | Breach | None]] = [{} for _ in world.names]
        self.inert: list[dict[int, int]] = [{} for _ in world.names]  # by state: what certainly does nothing
        self.observed: dict[tuple[int, tuple[Any, ...]], int | Breach] = {}
        self.deads: list[dict[tuple[int, int, int], tuple[int, int, int]]] = [
            {} for _ in range(self.count * self.count)
        ]
        self.budget_names = list(world.budgets)
        self.event_names = list(
            dict.fromkeys([*world.budgets, *itertools.chain(*map(world.events, range(self.count)))])
        )
        self.events = [
            [(-1 - self.event_names.index(event), BUDGET_BITS * self.event_names.index(event)
              if event in world.budgets else None) for event in world.events(process)]
            for process in range(self.count)
        ]  # fmt: skip
        self.orders = list(permutations(range(self.alike)))
        self.canonical_rest: dict[tuple[Any, ...], State] = {}
        self.rename_memo: dict[tuple[Any, ...], int] = {}
        self.runs = 0
        self.checked: set[tuple[int, ...]] = set()

    # ------------------------------------------------------------------------------------------- numbering

    def local(self, process: int, state: Any) -> int:
        return self.locals[process].of(
            self.world.key(process, state), pickle.dumps(state, pickle.HIGHEST_PROTOCOL)
        )

    def state_of(self, process: int, number: int) -> Any:
        return pickle.loads(self.locals[process].things[number])

    def bit(self, sender: int, receiver: int, message: Any) -> int:
        bit = 1 << self.messages[receiver].of((sender, frozen(message)), (sender, message))
        between = self.between.get((sender, receiver), 0)
        if not between & bit:
            for other in range(self.world.alike) if receiver < self.world.alike else (receiver,):
                self.between[sender, other] = self.between.get((sender, other), 0) | bit
        return bit

    def take(self, kind: str, key: Hashable, thing: Any, number: int) -> None:
        """Somebody else has numbered this."""
        numbers = self.numbers[kind]
        if key not in numbers.known:
            numbers.take(key, thing, number)
            for receiver in range(self.count):
                if self.messages[receiver] is numbers:
                    self.bit(thing[0], receiver, thing[1])

    def begin(self) -> State:
        world = self.world
        left = sum(budget << BUDGET_BITS * index for index, budget in enumerate(world.budgets.values()))
        history = self.histories.of(world.nothing_seen, world.nothing_seen)
        locals_ = [self.local(process, state) for process, state in enumerate(world.begin())]
        return self.canonical([*locals_, *[0] * self.count, history, left])

    # -------------------------------------------------------------------------------------------- stepping

    def outcome(self, process: int, number: int, event: int) -> Outcome | Breach | None:
        """Run the code: a budgeted event is below 0, a message is its number. None: nothing changes."""
        self.runs += 1
        state = self.state_of(process, number)
        try:
            if event < 0:
                step = self.world.step(process, state, self.event_names[-1 - event], None)
            else:
                sender, message = self.messages[process].things[event]
                step = self.world.step(process, state, message, sender)
        except Breach as breach:
            return breach
        except Exception as error:  # the core raises nothing
            return Breach(f"{self.world.names[process]}: {type(error).__name__}: {error}")
        if step is None:
            return None
        bits: dict[int, int] = {}
        for to, message in step.sends:
            bits[to] = bits.get(to, 0) | self.bit(process, to, message)
        after = self.local(process, state)
        if event >= 0 and after == number and not bits and not step.facts:
            return None
        return after, tuple(bits.items()), step.facts

    def successors(self, state: State) -> Iterator[tuple[int, int, State | Breach]]:
        """What can happen next: (process, event, what the world is then)."""
        count = self.count
        left = state[-1]
        for process in range(count):
            local = state[process]
            outcomes = self.outcomes[process]
            inert = self.inert[process]
            rest = state[count + process] & ~inert.get(local, 0)
            while rest:
                low = rest & -rest
                rest ^= low
                key = (local, low)
                try:
                    outcome = outcomes[key]
                except KeyError:
                    outcome = outcomes[key] = self.outcome(process, local, low.bit_length() - 1)
                    if outcome is None:
                        inert[local] = inert.get(local, 0) | low
                if outcome is None:
                    continue
                if outcome.__class__ is Breach:
                    yield process, low.bit_length() - 1, outcome
                    continue
                after, sends, facts = outcome
                if after == local and not facts:
                    for to, bits in sends:
                        if bits & ~state[count + to]:
                            break
                    else:
                        continue
                new = self.after(state, process, after, sends, facts, 0, low if self.once else 0)
                if new.__class__ is Breach or new != state:
                    yield process, low.bit_length() - 1, new
            for event, shift in self.events[process]:
                if shift is not None and not left >> shift & ((1 << BUDGET_BITS) - 1):
                    continue
                key = (local, event)
                try:
                    outcome = outcomes[key]
                except KeyError:
                    outcome = outcomes[key] = self.outcome(process, local, event)
                if outcome is None:
                    continue
                if outcome.__class__ is Breach:
                    yield process, event, outcome
                    continue
                after, sends, facts = outcome
                spent = 0 if shift is None else 1 << shift
                yield process, event, self.after(state, process, after, sends, facts, spent)

    def after(
        self, state: State, process: int, local: int, sends: Any, facts: Any, spent: int = 0, taken: int = 0
    ) -> State | Breach:
        count = self.count
        new = list(state)
        changed = local != state[process]
        new[process] = local
        new[count + process] ^= taken
        for to, bits in sends:
            new[count + to] |= bits
        if facts:
            seen = self.observed.get((state[-2], facts))
            if seen is None:
                seen = self.observed[state[-2], facts] = self.observe(state[-2], facts)
            if seen.__class__ is Breach:
                return seen
            new[-2] = seen
        new[-1] -= spent
        if self.forget:
            if changed:
                for other in range(count):
                    if other != process:
                        if self.check:
                            self.check_stays_dead(state, new, process, other)
                        self.forget_dead(new, process, other)
            else:
                for to, _ in sends:
                    self.forget_dead(new, process, to)
        return self.canonical(new)

    def observe(self, history: int, facts: tuple[Any, ...]) -> int | Breach:
        try:
            after = self.world.observe(self.histories.things[history], facts)
        except Breach as breach:
            return breach
        return self.histories.of(after, after)

    # ------------------------------------------------------------------------------------------ reductions

    def forget_dead(self, new: list[int], one: int, other: int) -> None:
        """Leave out what was sent between these two and can change nothing any more."""
        if one > other:
            one, other = other, one
        count = self.count
        there, back = self.between.get((one, other), 0), self.between.get((other, one), 0)
        if not new[count + other] & there and not new[count + one] & back:
            return
        memo = self.deads[one * count + other]
        key = (new[one], new[other], new[-1])
        entry = memo.get(key)
        if entry is None or entry[2] != there + back:
            entry = memo[key] = self.find_dead(one, other, *key, there, back)
        new[count + other] &= ~entry[0]
        new[count + one] &= ~entry[1]

    def find_dead(
        self, one: int, other: int, first: int, second: int, packed: int, there: int, back: int
    ) -> tuple[int, int, int]:
        left = self.left(packed)
        source, target = self.state_of(one, first), self.state_of(other, second)
        masks = []
        for sender, a, receiver, b, bits in (
            (one, source, other, target, there),
            (other, target, one, source, back),
        ):
            mask, number = 0, 0
            while bits >> number:
                if bits >> number & 1:
                    message = self.messages[receiver].things[number][1]
                    if self.world.dead(sender, a, receiver, b, message, left):
                        mask |= 1 << number
                        if self.check:
                            self.check_dead(sender, a, receiver, b, number, left)
                number += 1
            masks.append(mask)
        return masks[0], masks[1], there + back

    def left(self, packed: int) -> dict[str, int]:
        return {
            name: packed >> BUDGET_BITS * index & ((1 << BUDGET_BITS) - 1)
            for index, name in enumerate(self.budget_names)
        }

    def check_stays_dead(self, state: State, new: list[int], process: int, other: int) -> None:
        one, two = min(process, other), max(process, other)
        there, back = self.between.get((one, two), 0), self.between.get((two, one), 0)
        key = (one, two, state[one], state[two], state[-1], new[one], new[two], new[-1], there, back)
        if key in self.checked:
            return
        self.checked.add(key)
        before = self.find_dead(one, two, state[one], state[two], state[-1], there, back)
        after = self.find_dead(one, two, new[one], new[two], new[-1], there, back)
        for receiver, alive in ((two, before[0] & ~after[0]), (one, before[1] & ~after[1])):
            told = self.told(receiver, alive.bit_length() - 1) if alive else ""
            assert not alive, f"a dead message has come to life: {told}"

    def check_dead(
        self, sender: int, source: Any, receiver: int, target: Any, number: int, left: dict[str, int]
    ) -> None:
        """A dead message changes nothing, and is answered by dead messages only."""
        local = self.local(receiver, target)
        outcome = self.outcome(receiver, local, number)
        if outcome is None or outcome.__class__ is Breach:
            assert outcome is None, outcome
            return
        after, sends, facts = outcome
        assert after == local and not facts, self.told(receiver, number)
        for to, bits in sends:
            answer = self.messages[to].things[bits.bit_length() - 1][1]
            assert to == sender and bits & (bits - 1) == 0, "it is answered to somebody else"
            assert self.world.dead(receiver, target, sender, source, answer, left), self.told(
                receiver, number
            )

    def canonical(self, new: list[int]) -> State:
        """The smallest of the states that differ in the names of those that are alike."""
        alike = self.alike
        if alike < 2:
            return tuple(new)
        count = self.count
        pairs = [(new[index], new[count + index]) for index in range(alike)]
        rest = (*new[alike:count], *new[count + alike : -1])
        ordered = sorted(pairs)
        pattern = tuple([ordered.index(pair) for pair in pairs])  # equal for those that are in the same state
        key = (rest, pattern)
        best = self.canonical_rest.get(key)
        if best is None:
            best = self.canonical_rest[key] = min(
                self.rename(rest, order)
                for order in self.orders
                if all(pattern[a] <= pattern[b] for a, b in itertools.pairwise(order))
            )
        others = count - alike
        return (
            *[pair[0] for pair in ordered], *best[:others],
            *[pair[1] for pair in ordered], *best[others:], new[-1],
        )  # fmt: skip

    def rename(self, rest: State, order: tuple[int, ...]) -> State:
        """The numbers of the others' states and inboxes, and the history, if order[i] is called i."""
        if order == self.orders[0]:
            return rest
        to = {old: new for new, old in enumerate(order)}
        others = range(self.alike, self.count)
        locals_ = [self.renamed_local(process, rest[process - self.alike], order, to) for process in others]
        inboxes = [
            self.renamed_inbox(process, rest[len(others) + process - self.alike], order, to)
            for process in others
        ]
        key = ("history", rest[-1], order)
        history = self.rename_memo.get(key)
        if history is None:
            renamed = self.world.renamed_history(self.histories.things[rest[-1]], to)
            history = self.rename_memo[key] = self.histories.of(renamed, renamed)
        return (*locals_, *inboxes, history)

    def renamed_local(self, process: int, number: int, order: tuple[int, ...], to: dict[int, int]) -> int:
        key = (process, number, order)
        found = self.rename_memo.get(key)
        if found is None:
            state = self.world.renamed(process, self.state_of(process, number), to)
            found = self.rename_memo[key] = self.local(process, state)
        return found

    def renamed_inbox(self, process: int, bits: int, order: tuple[int, ...], to: dict[int, int]) -> int:
        key = ("inbox", process, bits, order)
        found = self.rename_memo.get(key)
        if found is None:
            found, rest = 0, bits
            while rest:
                low = rest & -rest
                rest ^= low
                sender, message = self.messages[process].things[low.bit_length() - 1]
                found |= self.bit(to.get(sender, sender), process, message)
            self.rename_memo[key] = found
        return found

    # ----------------------------------------------------------------------------------------- for people

    def told(self, process: int, event: int) -> str:
        """An event, in words."""
        name = self.world.names[process]
        if event < 0:
            return f"{name}: {self.event_names[-1 - event]}"
        sender, message = self.messages[process].things[event]
        return f"{name} gets from {self.world.names[sender]}: {message}"


def frozen(message: Any) -> Hashable:
    """A message as something that compares by content."""
    kind = message.__class__
    if issubclass(kind, tuple):
        return (kind.__name__, *map(frozen, message))
    if kind is list:
        return tuple(map(frozen, message))
    return message


class Part:
    """One worker's share of the states: those whose hash falls to it."""

    def __init__(self, explorer: Explorer, me: int, workers: int) -> None:
        self.explorer = explorer
        self.me = me
        self.workers = workers
        self.seen: set[int] = set()
        self.level: list[State] = []
        self.hashes: list[array[int]] = []  # by level: of each state,
        self.parents: list[array[int]] = []  # and of the one from which it was first reached
        self.transitions = 0

    def take(self, states: list[tuple[State, int]]) -> None:
        """Begin a level with the states that nobody has seen: (state, hash of its parent) each."""
        self.level = []
        hashes, parents = array("q"), array("q")
        for state, parent in states:
            code = hash(state)
            if code not in self.seen:
                self.seen.add(code)
                self.level.append(state)
                hashes.append(code)
                parents.append(parent)
        self.hashes.append(hashes)
        self.parents.append(parents)

    def expand(self, until: float, most: int) -> tuple[bool, list[list[tuple[State, int]]], Any]:
        """Step every state of the level: (whether all were, by worker what follows, a breach)."""
        following: list[dict[int, tuple[State, int]]] = [{} for _ in range(self.workers)]
        for number, state in enumerate(self.level):
            origin = hash(state)
            for process, event, after in self.explorer.successors(state):
                self.transitions += 1
                if after.__class__ is Breach:
                    return False, [], (origin, process, event, str(after))
                code = hash(after)
                if code not in self.seen:
                    following[code % self.workers].setdefault(code, (after, origin))
            if not number & 1023 and (time.perf_counter() > until or len(self.seen) > most):
                return False, [], None
        return True, [list(states.values()) for states in following], None


def work(
    connection: Any, world: World, options: dict[str, bool], me: int, workers: int, until: float, most: int
) -> None:
    """A worker: whatever is new to it, the coordinator numbers."""

    def ask(kind: str, key: Hashable, thing: Any) -> int:
        connection.send(("number", kind, key, thing))
        return int(connection.recv())

    gc.disable()  # millions of tuples, and no cycles
    part = Part(Explorer(world, **options, ask=ask), me, workers)
    while True:
        numbered, states = connection.recv()
        if numbered is None:
            break
        for what in numbered:
            part.explorer.take(*what)
        part.take([pair for batch in states for pair in marshal.loads(batch)])
        done, following, breach = part.expand(until, most)
        batches = [marshal.dumps(batch) for batch in following]
        connection.send(("level", done, batches, breach, len(part.seen), part.transitions))
    connection.send((part.hashes, part.parents))


def explore(
    world: World, seconds: float = 60.0, most: int = 20_000_000, workers: int = 1, **options: bool
) -> Verdict:
    """Visit every state, level by level, until a breach, or the time or the number of states is used up.

    Options: those of Explorer.
    """
    began = time.perf_counter()
    explorer = Explorer(world, **options)
    start = explorer.begin()
    pipes = [Pipe() for _ in range(workers)]
    processes = [
        Process(
            target=work,
            args=(there, world, options, me, workers, began + seconds, most // workers),
            daemon=True,
        )
        for me, (_, there) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    ends = [here for here, _ in pipes]
    depth, told = 0, [0] * workers
    log = [
        (kind, key, numbers.things[number], number)
        for kind, numbers in explorer.numbers.items()
        for key, number in numbers.known.items()
    ]
    batches = [[marshal.dumps([(start, 0)])] if hash(start) % workers == me else [] for me in range(workers)]
    while True:
        for me, end in enumerate(ends):
            end.send((log[told[me] :], batches[me]))
            told[me] = len(log)
        results = serve(explorer, ends, processes, log)
        breach = next((result[2] for result in results if result[2]), None)
        states, transitions = sum(result[3] for result in results), sum(result[4] for result in results)
        batches = [[result[1][me] for result in results if result[1]] for me in range(workers)]
        if (
            breach
            or not all(result[0] for result in results)
            or not any(map(marshal.loads, itertools.chain(*batches)))
        ):
            break
        depth += 1
    exhausted = not breach and all(result[0] for result in results)
    for end in ends:
        end.send((None, None))
    shares = [end.recv() for end in ends]
    for process in processes:
        process.join()
    seen = frozenset(explorer.histories.known)
    verdict = Verdict(exhausted, states, transitions, depth, time.perf_counter() - began, seen)
    if not breach:
        return verdict
    for what in log:
        explorer.take(*what)
    code, process, event, text = breach
    schedule = (*retrace(explorer, start, code, shares), explorer.told(process, event))
    return verdict._replace(depth=len(schedule), breach=text, schedule=schedule)


def serve(explorer: Explorer, ends: list[Any], processes: list[Process], log: list[Any]) -> list[Any]:
    """Number what the workers ask for, until all have finished their level."""
    results: dict[int, Any] = {}
    while len(results) < len(ends):
        sentinels = {process.sentinel for process in processes}
        for end in wait([*sentinels, *[end for me, end in enumerate(ends) if me not in results]]):
            if end in sentinels:
                raise RuntimeError("a worker has ended; it has said why")
            kind, *what = end.recv()
            if kind == "level":
                results[ends.index(end)] = what
                continue
            name, key, thing = what
            numbers = explorer.numbers[name]
            known = len(numbers.known)
            number = numbers.of(key, thing)
            if number == known:
                log.append((name, key, thing, number))
            end.send(number)
    return [results[me] for me in range(len(ends))]


def retrace(explorer: Explorer, start: State, end: int, shares: Any) -> tuple[str, ...]:
    """The shortest schedule from the start to the state with this hash."""
    code, codes = end, [end]
    first = hash(start)
    for level in range(max(len(hashes) for hashes, _ in shares) - 1, 0, -1):
        for hashes, parents in shares:
            if level < len(hashes) and code in hashes[level]:
                code = parents[level][hashes[level].index(code)]
                codes.append(code)
                break
    assert code == first
    schedule, state = [], start
    for code in reversed(codes[:-1]):
        for process, event, after in explorer.successors(state):
            if after.__class__ is not Breach and hash(after) == code:
                schedule.append(explorer.told(process, event))
                state = after
                break
    return tuple(schedule)
