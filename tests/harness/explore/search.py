"""Visits every state that a small world can reach, breadth first: the first breach has the fewest steps.

Each process of several has its share of the states, by their hashes. After each level of the search they
exchange what they have found for each other. Numbers are a process's own: with states, it sends what the
numbers in them mean.
"""

import gc
import time
from collections.abc import Callable, Hashable, Iterator
from itertools import combinations
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from tests.harness.explore.engine import HISTORY, Explorer, bits
from tests.harness.explore.forgetting import Checker
from tests.harness.explore.tables import Array, Table
from tests.harness.explore.world import World, told

CHUNK = 16384  # states that are stepped at once: what is made of them fits a processor's cache


class Verdict(NamedTuple):
    """How an exploration ended. `schedule` is that of the breach, if there was one."""

    exhausted: bool
    states: int
    transitions: int
    depth: int
    seconds: float
    processor_seconds: float  # of all workers
    seen: frozenset[Hashable] = frozenset()  # all histories
    breach: str | None = None
    schedule: tuple[str, ...] = ()
    events: tuple[
        tuple[int, str | tuple[int, Any]], ...
    ] = ()  # the same: (process, name or (sender, message))


class Found(NamedTuple):
    """States with their hashes, and those of the states from which they were first reached."""

    states: Array
    codes: Array
    parents: Array


class Numbering:
    """What another worker's numbers mean here."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.kinds = list(dict.fromkeys(explorer.kinds))
        self.told = [[0, 0] for _ in self.kinds]
        self.told_sets = [dict.fromkeys(kind.sets, 0) for kind in self.kinds]
        self.told_histories = 0
        self.states: list[list[int]] = [[] for _ in self.kinds]
        self.messages: list[list[int]] = [[] for _ in self.kinds]
        self.sets: list[dict[int, list[int]]] = [{sender: [] for sender in kind.sets} for kind in self.kinds]
        self.histories: list[int] = []

    def news(self) -> Any:
        """What was numbered here since the last time."""
        kinds = []
        for kind, known, known_sets in zip(self.kinds, self.told, self.told_sets, strict=True):
            masks = {sender: sets.masks[known_sets[sender] :] for sender, sets in kind.sets.items()}
            kinds.append((kind.states[known[0] :], kind.messages[known[1] :], masks))
            known[:] = len(kind.states), len(kind.messages)
            for sender, sets in kind.sets.items():
                known_sets[sender] = len(sets.masks)
        histories = self.explorer.histories[self.told_histories :]
        self.told_histories = len(self.explorer.histories)
        return kinds, histories

    def learn(self, news: Any) -> None:
        kinds, histories = news
        for number, (kind, (states, messages, masks)) in enumerate(zip(self.kinds, kinds, strict=True)):
            heard = self.messages[number]
            self.states[number] += [kind.take_state(*state) for state in states]
            heard += [kind.message(*message) for message in messages]
            for sender, sets in masks.items():
                self.sets[number][sender] += [
                    kind.sets[sender].number(sum(1 << heard[bit] for bit in bits(mask))) for mask in sets
                ]
        self.histories += map(self.explorer.history, histories)

    def translate(self, states: Array) -> None:
        explorer = self.explorer
        numbers = [self.kinds.index(kind) for kind in explorer.kinds]
        for process, number in enumerate(numbers):
            states[process] = np.array(self.states[number], np.int32)[states[process]]
        for (sender, receiver), row in explorer.rows.items():
            states[row] = np.array(self.sets[numbers[receiver]][sender], np.int32)[states[row]]
        states[HISTORY] = np.array(self.histories, np.int32)[states[HISTORY]]


class Part:
    """One worker's share of the states."""

    def __init__(self, explorer: Explorer, me: int, workers: int, check: bool) -> None:
        self.explorer = explorer
        self.me = me
        self.workers = workers
        self.checker = Checker(explorer) if check else None
        self.seen = Table()
        self.levels: list[tuple[Array, Array]] = []  # the states' codes, and their parents'
        self.level: Array
        self.transitions = 0
        self.fresh: list[Found] = []
        self.foreign: list[list[Found]] = []
        self.passed: list[Table] = []

    def start(self) -> None:
        states = self.level = self.explorer.begin()
        self.turn()
        self.take(Found(states, self.explorer.codes(states), np.zeros(1, np.uint64)))

    def turn(self) -> None:
        """Begin a level."""
        self.fresh = []
        self.foreign = [[] for _ in range(self.workers)]
        self.passed = [Table() for _ in range(self.workers)]

    def take(self, found: Found) -> None:
        """Keep what belongs to this worker and is new; have the rest ready for the others."""
        owners = found.codes % np.uint64(self.workers)
        for worker in range(self.workers):
            mine = np.flatnonzero(owners == worker) if self.workers > 1 else np.arange(len(found.codes))
            codes = found.codes[mine]
            new = mine[(self.seen if worker == self.me else self.passed[worker]).add(codes)]
            if new.size:
                into = self.fresh if worker == self.me else self.foreign[worker]
                into.append(Found(found.states[:, new], found.codes[new], found.parents[new]))

    def advance(self) -> int:
        """Close the level: what was found is what is to be stepped next. Return how much it is."""
        nothing = np.zeros(0, np.uint64)
        self.level = np.concatenate([self.level[:, :0], *[f.states for f in self.fresh]], axis=1)
        codes = np.concatenate([nothing, *[f.codes for f in self.fresh]])
        parents = np.concatenate([nothing, *[f.parents for f in self.fresh]])
        self.levels.append((codes, parents))
        self.turn()
        return len(codes)

    def expand(self, until: float, most: int) -> tuple[bool, Any]:
        """Step every state of the level: (whether all were, a breach)."""
        codes, _ = self.levels[-1]
        for start in range(0, len(codes), CHUNK):
            states = self.level[:, start : start + CHUNK]
            for process, events, origins, new in self.explorer.successors(states):
                if isinstance(new, str):
                    return False, (int(codes[start + origins]), process, events, new)
                self.transitions += len(origins)
                if self.checker:
                    self.checker.check(process, states, origins, new)
                self.take(Found(new, self.explorer.codes(new), codes[start + origins]))
            if time.perf_counter() > until or self.seen.count > most:
                return False, None
        return True, None

    def parent(self, level: int, code: int) -> int | None:
        """From which state this one was first reached."""
        if level >= len(self.levels):
            return None
        codes, parents = self.levels[level]
        at = np.flatnonzero(codes == np.uint64(code))
        return int(parents[at[0]]) if at.size else None


def exchange(part: Part, peers: dict[int, Connection], numberings: dict[int, Numbering]) -> None:
    """Give the others what belongs to them, pair by pair in one order, so that nobody waits in a circle."""

    def give(peer: int) -> None:
        peers[peer].send((numberings[peer].news(), foreign[peer]))

    def get(peer: int) -> None:
        news, found = peers[peer].recv()
        numberings[peer].learn(news)
        for states, codes, parents in found:
            numberings[peer].translate(states)
            part.take(Found(states, codes, parents))

    foreign = part.foreign
    for first, second in combinations(range(part.workers), 2):
        if part.me == first:
            give(second)
            get(second)
        elif part.me == second:
            get(first)
            give(first)


def work(part: Part, end: Connection, peers: dict[int, Connection], until: float, most: int) -> None:
    """A worker: steps its levels as long as it is told to go on; then it answers who came from where."""
    gc.disable()  # many tuples, and no cycles
    numberings = {peer: Numbering(part.explorer) for peer in peers}
    part.start()
    exchange(part, peers, numberings)
    while True:
        fresh = part.advance()
        end.send((fresh, part.seen.count, part.transitions))
        if not end.recv():
            break
        done, breach = part.expand(until, most)
        end.send((done, breach))
        if not end.recv():
            break
        exchange(part, peers, numberings)
    end.send((frozenset(part.explorer.history_numbers), time.process_time()))
    while (question := end.recv()) is not None:
        end.send(part.parent(*question))


def explore(
    world: World,
    seconds: float = 60.0,
    most: int = 20_000_000,
    workers: int = 1,
    check: bool = False,
    **options: bool,
) -> Verdict:
    """Visit every state, level by level, until a breach, or the time or the number of states is used up.

    check: leave out no message, and check that those which would be left out can change nothing.
    Other options: those of Explorer.
    """
    began = time.perf_counter()
    fork = get_context("fork")
    explorer = Explorer(world, **options | ({"forget": False} if check else {}))
    try:
        explorer.begin()
    except Exception as error:  # a breach, or the core raises something, which it must not
        return Verdict(False, 0, 0, 0, 0.0, 0.0, breach=told(error))
    between = {pair: fork.Pipe() for pair in combinations(range(workers), 2)}
    ends, processes = [], []
    for me in range(workers):
        peers = {a + b - me: pipe[b == me] for (a, b), pipe in between.items() if me in (a, b)}
        here, there = fork.Pipe()
        part = Part(explorer, me, workers, check)
        process = fork.Process(
            target=work, args=(part, there, peers, began + seconds, most // workers), daemon=True
        )
        process.start()
        there.close()
        ends.append(here)
        processes.append(process)
    depth, found, exhausted = -1, None, False
    while True:
        fresh, states, transitions = map(sum, zip(*ask(ends), strict=True))
        exhausted = not fresh
        tell(ends, not exhausted)
        if exhausted:
            break
        depth += 1
        results = ask(ends)
        found = next((breach for _, breach in results if breach), None)
        going = found is None and all(done for done, _ in results)
        tell(ends, going)
        if not going:
            break
    histories, processor = zip(*ask(ends), strict=True)
    seen = frozenset().union(*histories)
    verdict = Verdict(exhausted, states, transitions, depth, 0.0, sum(processor), seen)
    if found:
        verdict = explain(explorer, verdict, found, lambda *question: tell(ends, question) or ask(ends))
    tell(ends, None)
    for process in processes:
        process.join()
    return verdict._replace(seconds=time.perf_counter() - began)


def tell(ends: list[Connection], what: Any) -> None:
    for end in ends:
        end.send(what)


def ask(ends: list[Connection]) -> list[Any]:
    """What each worker says."""
    try:
        return [end.recv() for end in ends]
    except EOFError:
        raise RuntimeError("a worker has ended; it has said why") from None


def explain(explorer: Explorer, verdict: Verdict, breach: Any, parents: Callable[..., list[Any]]) -> Verdict:
    """Add the shortest schedule that leads to the breach."""
    code, *_, text = breach
    codes = [code]
    for level in range(verdict.depth, 0, -1):
        codes.append(next(found for found in parents(level, codes[-1]) if found is not None))
    steps = []
    state = explorer.begin()
    for wanted in reversed(codes[:-1]):
        step, state = next(found for found in followers(explorer, state) if found[2] == wanted)[:2]
        steps.append(step)
    # The last step was found by a worker, whose numbers are its own.
    steps.append(next(step for step, after, _ in followers(explorer, state) if after is None))
    schedule = tuple(explorer.told(*step) for step in steps)
    events = tuple(explorer.event(*step) for step in steps)
    return verdict._replace(depth=len(steps), breach=text, schedule=schedule, events=events)


def followers(explorer: Explorer, state: Array) -> Iterator[tuple[tuple[int, int], Any, int]]:
    """Each step from the state: ((process, event), the state after, its hash); at a breach None, and 0."""
    for process, events, _, new in explorer.successors(state):
        if isinstance(new, str):
            yield (process, int(events)), None, 0
            continue
        for index, (event, found) in enumerate(
            zip(events.tolist(), explorer.codes(new).tolist(), strict=True)
        ):
            yield (process, event), new[:, index : index + 1], found
