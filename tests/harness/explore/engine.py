"""Steps the states that a small world can reach, many at once.

A step touches one process: it is a function of that process's state and of one event. So every process
state, message, set of messages and history is numbered, the code under test runs once for each pair of a
state and an event, and the rest is looking numbers up, in arrays. A state of the world is a column of
integers:

    the number of each process's state
    by sender and receiver the number of the set of messages that may be delivered
    the number of the history, which is what an observer has seen so far
    the number of the budgets that are left: how often a crash, a candidacy, ... may still happen

Each has few values, however many states of the world there are: what is looked up is in a processor's cache.

The network never forgets. A message that was sent may be delivered at any time, any number of times, or
never: that is delay, reordering, duplication and loss at once, without an event for any of them. (In a
world that says `once`, a message is gone when it was delivered and has changed something. What changes
nothing stays: it may be delivered later, and need not be.)

Two reductions; tests/simulation/test_explore.py compares the verdicts with and without each.

*Messages without a future.* The world says which messages can never again change anything (`dead`), given
the *horizons* of both ends: what of their states decides that. Without such messages, states that differ in
nothing else are one. That it is right is checked in worlds that leave nothing out, in every state: such a
message, if delivered, changes nothing, and stays dead in the following states of both ends (forgetting.py).

*Symmetry.* Processes that are alike (acceptors that are not proposers) may be renamed: whatever follows
from one state follows from the other, renamed. So a state is known by a hash that is the same under every
renaming: the least of the hashes of all renamings. (What a process keeps about the others is renamed, too.)

A state is known by 64 bits: the sum of the hashes of its parts, each by BLAKE2. With n states, the
probability that any was missed is below n * n / 2**65 without symmetry. With it, that bound is to be
multiplied by the number of renamings, six for three acceptors.
"""

import pickle
from collections.abc import Hashable, Iterator
from functools import partial
from hashlib import blake2b
from itertools import chain, permutations, product
from typing import Any, NamedTuple

import numpy as np

from tests.harness.explore.tables import Array, Column, Table
from tests.harness.explore.world import Breach, World, frozen

WORD = (1 << 64) - 1
HISTORY, LEFT = -2, -1  # rows of a state, from its end
SET_BITS, HORIZON_BITS = 22, 9  # of a key of a channel: two sets, two horizons
HORIZON = (1 << HORIZON_BITS) - 1

Outcome = tuple[int, dict[int, int], tuple[Any, ...]]  # state, by receiver the messages' bits, facts


def code(*parts: Any) -> int:
    """64 bits that depend on the content alone, and are the same in every process."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


def bits(mask: int) -> Iterator[int]:
    """The numbers of the bits that are set."""
    while mask:
        low = mask & -mask
        mask ^= low
        yield low.bit_length() - 1


class Names(NamedTuple):
    """The ways to rename processes that are alike: order[i] is called i."""

    orders: list[tuple[int, ...]]
    to: list[dict[int, int]]


class Kind:
    """The states of one process, or of all that are alike, and what may be delivered to it."""

    def __init__(self, world: World, process: int, names: Names) -> None:
        self.world = world
        self.process = process
        self.alike = process < world.alike
        self.names = names
        self.state_numbers: dict[Hashable, int] = {}
        self.states: list[tuple[Hashable, bytes]] = []
        self.places = range(world.alike if self.alike else len(names.orders))
        self.codes = Column("Q")  # of each state: at each place, or under each renaming
        self.message_numbers: dict[Hashable, int] = {}
        self.messages: list[tuple[int, Any]] = []  # (sender, message)
        self.message_codes: list[list[int]] = []  # of each, likewise
        self.sets = {sender: Sets(self) for sender in range(len(world.names)) if sender != process}

    def state(self, state: Any) -> int:
        key = self.world.key(self.process, state)
        number = self.state_numbers.get(key)
        return self.take_state(key, pickle.dumps(state, -1)) if number is None else number

    def take_state(self, key: Hashable, pickled: bytes) -> int:
        number = self.state_numbers.get(key)
        if number is None:
            number = self.state_numbers[key] = len(self.states)
            self.states.append((key, pickled))
            if self.alike:
                codes = [code(key, place) for place in self.places]
            else:
                codes = [code(self.renamed(key, pickled, to), self.process) for to in self.names.to]
            self.codes.list.extend(codes)
        return number

    def renamed(self, key: Hashable, pickled: bytes, to: dict[int, int]) -> Hashable:
        if to is self.names.to[0]:
            return key
        return self.world.key(self.process, self.world.renamed(self.process, pickle.loads(pickled), to))

    def of_state(self, number: int) -> Any:
        return pickle.loads(self.states[number][1])

    def message(self, sender: int, message: Any) -> int:
        content = frozen(message)
        number = self.message_numbers.get((sender, content))
        if number is None:
            number = self.message_numbers[sender, content] = len(self.messages)
            self.messages.append((sender, message))
            if self.alike:
                codes = [code(sender, content, place) for place in self.places]
            else:
                codes = [code(to.get(sender, sender), content, self.process) for to in self.names.to]
            self.message_codes.append(codes)
        return number


class Sets:
    """Sets of the messages that one sender has sent to one kind of process. A mask has a bit for each."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.numbers: dict[int, int] = {}
        self.masks: list[int] = []
        self.codes = Column("Q")  # of each set, as those of its messages: their sum
        self.number(0)

    def number(self, mask: int) -> int:
        number = self.numbers.get(mask)
        if number is None:
            number = self.numbers[mask] = len(self.masks)
            if number >> SET_BITS:
                raise OverflowError("too many sets of messages")
            self.masks.append(mask)
            codes = [self.kind.message_codes[message] for message in bits(mask)]
            self.codes.list.extend([sum(of[place] for of in codes) & WORD for place in self.kind.places])
        return number


class Moves:
    """What one process can do in each of its states, of its own accord or given a set of messages."""

    def __init__(self, row: int = 0, sets: Sets | None = None) -> None:
        self.row = row  # of a state: which set of messages
        self.sets = sets
        self.cases = Table()  # the numbers of (state, set)
        self.first = Column("i")  # by case: its moves stand together,
        self.number = Column("i")  # and are so many
        self.effect = Column("i")
        self.left = Column("i")  # the set that is left


class Effects:
    """What events do to one process, numbered."""

    def __init__(self, count: int) -> None:
        self.outcomes: dict[tuple[int, int], Outcome | Breach | None] = {}
        self.inert: dict[int, int] = {}  # by state: messages that certainly do nothing
        self.numbers: dict[tuple[int, int], int] = {}
        self.event = Column("i")
        self.after = Column("i")  # the state; -1: a breach
        self.budget = Column("i")  # from 1; 0: it needs none
        self.facts = Column("i")
        self.sends = [Column("i") for _ in range(count)]  # to each process, a set


class Explorer:
    """Steps states of one world, and remembers what each step did."""

    def __init__(self, world: World, *, symmetry: bool = True, forget: bool = True) -> None:
        self.world = world
        self.forget = forget
        self.once = world.once
        self.count = count = len(world.names)
        alike = world.alike
        orders = list(permutations(range(alike))) if symmetry else [tuple(range(alike))]
        self.names = Names(orders, [{old: new for new, old in enumerate(order)} for order in orders])
        roles = [0 if process < alike else process for process in range(count)]
        kinds = {role: Kind(world, role, self.names) for role in roles}
        self.kinds = [kinds[role] for role in roles]
        self.pairs = [
            (sender, receiver)
            for receiver, sender in permutations(range(count), 2)
            if not alike or (sender < alike) != (receiver < alike)
        ]
        self.rows = {pair: row for row, pair in enumerate(self.pairs, count)}
        self.effects = [Effects(count) for _ in world.names]
        self.moves = [[Moves()] for _ in world.names]
        for (sender, receiver), row in self.rows.items():
            self.moves[receiver].append(Moves(row, self.sets(sender, receiver)))
        self.channels = {pair: Table() for pair in self.pairs}
        self.deads: dict[tuple[int, int, int, int], tuple[int, int]] = {}
        self.horizons: list[dict[Hashable, int]] = [{} for _ in world.names]
        self.horizon_values: list[list[Any]] = [[None] for _ in world.names]
        self.event_names = list(dict.fromkeys([*world.budgets, *chain(*map(world.events, range(count)))]))
        self.lefts = list(product(*[range(budget + 1) for budget in world.budgets.values()]))
        numbers = {left: number for number, left in enumerate(self.lefts)}
        self.spend = np.full((len(self.lefts), len(world.budgets) + 1), -1, np.int32)
        for left, number in numbers.items():
            self.spend[number, 0] = number
            for index, budget in enumerate(left):
                if budget:
                    self.spend[number, index + 1] = numbers[(*left[:index], budget - 1, *left[index + 1 :])]
        self.left_codes = np.array([code("left", left) for left in self.lefts], np.uint64)
        self.horizon_of = [Column("i") for _ in world.names]
        self.fact_numbers: dict[tuple[Any, ...], int] = {(): 0}
        self.facts: list[tuple[Any, ...]] = [()]
        self.history_numbers: dict[Hashable, int] = {}
        self.histories: list[Hashable] = []
        self.history_codes = Column("Q")  # of each, under each renaming
        self.observed = Table()

    def begin(self) -> Array:
        """The first state: one column."""
        world = self.world
        states = [self.kinds[process].state(state) for process, state in enumerate(world.begin())]
        rest = [*[0] * len(self.pairs), self.history(world.nothing_seen), len(self.lefts) - 1]
        return np.array([[*states, *rest]], np.int32).T.copy()

    def sets(self, sender: int, receiver: int) -> Sets:
        return self.kinds[receiver].sets[sender]

    def history(self, history: Hashable) -> int:
        number = self.history_numbers.get(history)
        if number is None:
            number = self.history_numbers[history] = len(self.histories)
            self.histories.append(history)
            for to in self.names.to:
                renamed = history if to is self.names.to[0] else self.world.renamed_history(history, to)
                self.history_codes.append(code("history", renamed))
        return number

    def codes(self, states: Array) -> Array:
        """The hash of each state."""
        orders = self.names.orders
        found = np.take(self.history_codes.values.reshape(-1, len(orders)).T, states[HISTORY], axis=1)
        found += self.left_codes[states[LEFT]]
        parts = [(process, kind.codes, process) for process, kind in enumerate(self.kinds)]
        parts += [(row, self.sets(*pair).codes, pair[1]) for pair, row in self.rows.items()]
        for row, codes, process in parts:
            table = codes.values.reshape(-1, len(self.kinds[process].places)).T
            if process < self.world.alike:
                table = table[[order.index(process) for order in orders]]
            found += np.take(table, states[row], axis=1)
        return np.maximum(found.min(axis=0), np.uint64(1))  # 0 is an empty place of a table

    # -------------------------------------------------------------------------------------------- stepping

    def outcome(self, process: int, local: int, event: int) -> Outcome | Breach | None:
        """Run the code: a budgeted event is below 0, a message is its number. None: nothing changes."""
        kind = self.kinds[process]
        state = kind.of_state(local)
        try:
            if event < 0:
                step = self.world.step(process, state, self.event_names[-1 - event], None)
            else:
                sender, message = kind.messages[event]
                step = self.world.step(process, state, message, sender)
        except Breach as breach:
            return breach
        except Exception as error:  # the core raises nothing
            return Breach(f"{self.world.names[process]}: {type(error).__name__}: {error}")
        if step is None:
            return None
        sends: dict[int, int] = {}
        for to, message in step.sends:
            sends[to] = sends.get(to, 0) | 1 << self.kinds[to].message(process, message)
        after = kind.state(state)
        if event >= 0 and after == local and not sends and not step.facts:
            return None
        return after, sends, step.facts

    def remembered(self, process: int, local: int, event: int) -> Outcome | Breach | None:
        effects = self.effects[process]
        try:
            return effects.outcomes[local, event]
        except KeyError:
            found = effects.outcomes[local, event] = self.outcome(process, local, event)
            if found is None and event >= 0:
                effects.inert[local] = effects.inert.get(local, 0) | 1 << event
            return found

    def effect(self, process: int, local: int, event: int) -> int | None:
        """The number of what this event does; None: nothing."""
        effects = self.effects[process]
        number = effects.numbers.get((local, event))
        if number is not None:
            return number
        found = self.remembered(process, local, event)
        if found is None:
            return None
        number = effects.numbers[local, event] = len(effects.event.list)
        after, sends, facts = (-1, {}, ()) if isinstance(found, Breach) else found
        effects.event.append(event)
        effects.after.append(after)
        effects.budget.append(-event if event < 0 and -event <= len(self.world.budgets) else 0)
        effects.facts.append(self.fact_numbers.setdefault(facts, len(self.facts)))
        if effects.facts.list[-1] == len(self.facts):
            self.facts.append(facts)
        for to, column in enumerate(effects.sends):
            column.append(self.sets(process, to).number(sends[to]) if to in sends else 0)
        return number

    def find_moves(self, process: int, moves: Moves, key: int) -> int:
        """Find what can happen in this state, given these messages."""
        local, which = divmod(key - 1, 1 << 32)
        mask = 0
        if moves.sets is None:
            events = [-1 - self.event_names.index(name) for name in self.world.events(process)]
        else:
            mask = moves.sets.masks[which]
            events = [*bits(mask & ~self.effects[process].inert.get(local, 0))]
        moves.first.append(len(moves.effect.list))
        for event in events:
            effect = self.effect(process, local, event)
            if effect is not None:
                moves.effect.append(effect)
                if moves.sets is not None and self.once:
                    moves.left.append(moves.sets.number(mask ^ 1 << event))
        moves.number.append(len(moves.effect.list) - moves.first.list[-1])
        return len(moves.first.list) - 1

    def possible(self, process: int, states: Array) -> tuple[Array, Array, list[tuple[int, int, Array]]]:
        """What the process can do next: (from which state, which effect, what is left of the messages).

        The last: (row, the first column, sets).
        """
        effects = self.effects[process]
        parts: list[tuple[Array, Array]] = []
        taken, size = [], 0
        for moves in self.moves[process]:
            keys = states[process].astype(np.uint64) << np.uint64(32)
            if moves.sets:
                keys |= states[moves.row].astype(np.uint64)
            keys += np.uint64(1)
            case = moves.cases.get(keys, partial(self.find_moves, process, moves))
            numbers = moves.number.values[case]
            ends = np.cumsum(numbers)
            origins = np.repeat(np.arange(len(case)), numbers)
            at = np.arange(len(origins)) + np.repeat(moves.first.values[case] - (ends - numbers), numbers)
            which = moves.effect.values[at]
            if moves.sets is None:
                left = self.spend[states[LEFT][origins], effects.budget.values[which]]
                affordable = np.flatnonzero(left >= 0)
                origins, which = origins[affordable], which[affordable]
            elif self.once:
                taken.append((moves.row, size, moves.left.values[at]))
            parts.append((origins, which))
            size += len(which)
        origins, which = map(np.concatenate, zip(*parts, strict=True))
        return origins, which, taken

    def successors(
        self, states: Array
    ) -> Iterator[tuple[int, Array, Array, Array] | tuple[int, int, int, str]]:
        """What can happen next: (process, events, from which state, states after), or a breach.

        A breach is (process, event, in which state, what).
        """
        for process, effects in enumerate(self.effects):
            origins, which, taken = self.possible(process, states)
            if not which.size:
                continue
            new = np.take(states, origins, axis=1)
            new[process] = effects.after.values[which]
            new[LEFT] = self.spend[new[LEFT], effects.budget.values[which]]
            for row, first, sets in taken:
                new[row, first : first + len(sets)] = sets
            events = effects.event.values[which]
            worst = int(new[process].argmin())
            if new[process][worst] < 0:
                event, origin = int(events[worst]), int(origins[worst])
                found = self.remembered(process, int(states[process][origin]), event)
                yield process, event, origin, str(found)
                continue
            self.witness(new, effects.facts.values[which])
            worst = int(new[HISTORY].argmin())
            if new[HISTORY][worst] < 0:
                history = self.histories[states[HISTORY][origins[worst]]]
                facts = self.facts[effects.facts.values[which[worst]]]
                yield process, int(events[worst]), int(origins[worst]), self.breach_of(history, facts)
                continue
            self.send(process, states, origins, which, new)
            changed = self.changed(process, states, origins, new)
            yield process, events[changed], origins[changed], new[:, changed]

    def changed(self, process: int, states: Array, origins: Array, new: Array) -> Array:
        """Whether anything has changed, beside that a message may be delivered no more."""
        rows = [row for (sender, _), row in self.rows.items() if sender == process]
        found = np.zeros(len(origins), bool)
        for row in (process, *rows, HISTORY, LEFT):
            found |= new[row] != states[row][origins]
        return found

    def witness(self, new: Array, facts: Array) -> None:
        """The histories after these facts; -1 where there is a breach."""
        some = np.flatnonzero(facts)
        if some.size:
            history = new[HISTORY]
            keys = history[some].astype(np.uint64) << np.uint64(32) | facts[some].astype(np.uint64)
            history[some] = self.observed.get(keys, self.observe)

    def observe(self, key: int) -> int:
        try:
            return self.history(self.world.observe(self.histories[key >> 32], self.facts[key & 0xFFFFFFFF]))
        except Breach:
            return -1

    def breach_of(self, history: Hashable, facts: tuple[Any, ...]) -> str:
        try:
            self.world.observe(history, facts)
        except Breach as breach:
            return str(breach)
        raise AssertionError("what an observer says depends on something else")

    # ------------------------------------------------------------------------------------------- messages

    def send(self, process: int, states: Array, origins: Array, which: Array, new: Array) -> None:
        """Add what is sent to the sets of messages, and take out of them what has become dead."""
        effects = self.effects[process]
        moved = spent = np.zeros(0, bool)
        if self.forget:
            before = self.horizon(process, states[process], states[LEFT])[origins]
            moved = self.horizon(process, new[process], new[LEFT]) != before
            spent = np.flatnonzero(new[LEFT] != states[LEFT][origins])
        for pair in self.pairs:
            if pair[0] == process:
                sent = effects.sends[pair[1]].values[which]
                rows = np.flatnonzero(moved | (sent != 0)) if self.forget else np.flatnonzero(sent)
                self.arrive(pair, new, rows, sent[rows])
            elif pair[1] == process and self.forget:
                self.arrive(pair, new, np.flatnonzero(moved))
        if spent.size:  # a horizon may depend on what is left
            for pair in self.pairs:
                self.arrive(pair, new, spent)

    def arrive(self, pair: tuple[int, int], new: Array, rows: Array, sent: Array | None = None) -> None:
        """Change the set of messages between two in these states: what is sent comes, what is dead goes."""
        if not rows.size:
            return
        sender, receiver = pair
        sets = new[self.rows[pair]]
        key = sets[rows].astype(np.uint64) << np.uint64(SET_BITS)
        if sent is not None:
            key |= sent.astype(np.uint64)
        key <<= np.uint64(2 * HORIZON_BITS)
        if self.forget:
            left = new[LEFT][rows]
            there = self.horizon(sender, new[sender][rows], left)
            here = self.horizon(receiver, new[receiver][rows], left)
            key |= ((there << HORIZON_BITS) | here).astype(np.uint64)
        else:
            key |= np.uint64(1)
        sets[rows] = self.channels[pair].get(key, partial(self.deliver, pair))

    def deliver(self, pair: tuple[int, int], key: int) -> int:
        """The set with what is sent, and without what is dead."""
        sets = self.sets(*pair)
        mask = sets.masks[key >> SET_BITS + 2 * HORIZON_BITS]
        mask |= sets.masks[key >> 2 * HORIZON_BITS & ((1 << SET_BITS) - 1)]
        if self.forget:
            mask &= ~self.dead(pair[0], key >> HORIZON_BITS & HORIZON, pair[1], key & HORIZON, mask)
        return sets.number(mask)

    def dead(self, sender: int, there: int, receiver: int, here: int, messages: int) -> int:
        """Which of these messages are dead, given the numbers of the horizons."""
        known, dead = self.deads.get((sender, there, receiver, here), (0, 0))
        if messages & ~known:
            source, target = self.horizon_values[sender][there], self.horizon_values[receiver][here]
            for number in bits(messages & ~known):
                message = self.kinds[receiver].messages[number][1]
                dead |= self.world.dead(sender, source, receiver, target, message) << number
            self.deads[sender, there, receiver, here] = known | messages, dead
        return dead & messages

    def horizon(self, process: int, local: Array, left: Array) -> Array:
        """The number of the horizon in each state of the process, with these budgets left."""
        places = local * len(self.lefts) + left
        column = self.horizon_of[process]
        column.reach(len(self.kinds[process].states) * len(self.lefts))
        found = column.values[places]
        if not found.all():
            for place in np.unique(places[found == 0]).tolist():
                column.list[place] = self.horizon_number(process, *divmod(place, len(self.lefts)))
            found = column.values[places]
        return found

    def horizon_number(self, process: int, local: int, index: int) -> int:
        left = dict(zip(self.world.budgets, self.lefts[index], strict=True))
        horizon = self.world.horizon(process, self.kinds[process].of_state(local), left)
        values = self.horizon_values[process]
        number = self.horizons[process].setdefault(horizon, len(values))
        if number == len(values):
            if number >> HORIZON_BITS:
                raise OverflowError("too many horizons")
            values.append(horizon)
        return number

    # ----------------------------------------------------------------------------------------- for people

    def event(self, process: int, event: int) -> tuple[int, str | tuple[int, Any]]:
        """The process, and the event's name, or the message with its sender."""
        what = self.event_names[-1 - event] if event < 0 else self.kinds[process].messages[event]
        return process, what

    def told(self, process: int, event: int) -> str:
        """An event, in words."""
        name = self.world.names[process]
        if event < 0:
            return f"{name}: {self.event_names[-1 - event]}"
        sender, message = self.kinds[process].messages[event]
        return f"{name} gets from {self.world.names[sender]}: {message}"
