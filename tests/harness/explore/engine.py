"""Steps the states that a small world can reach, many at once.

A step touches one process: it is a function of that process's state and of one event. So every process
state, message and history is numbered, the code under test runs once for each pair of them, and the rest is
looking numbers up, in arrays. The *seat* of a process is its state and what may be delivered to it, as one
number. A state of the world is a column of integers:

    the seat of each process
    the number of the history, which is what an observer has seen so far
    the number of the budgets that are left: how often a crash, a candidacy, ... may still happen

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
SEAT_BITS, SEND_BITS, HORIZON_BITS = 26, 20, 9  # of a key of a channel: seat, what is sent, two horizons

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


class Seats:
    """All seats of one process, or of all that are alike. States and messages have numbers here, too."""

    def __init__(self, world: World, process: int, names: Names) -> None:
        self.world = world
        self.process = process
        self.alike = process < world.alike
        self.names = names
        self.state_numbers: dict[Hashable, int] = {}
        self.states: list[tuple[Hashable, bytes]] = []
        self.state_codes: list[list[int]] = []  # of each: at each place, or under each renaming
        self.message_numbers: dict[Hashable, int] = {}
        self.messages: list[tuple[int, Any]] = []  # (sender, message)
        self.message_codes: list[list[int]] = []
        self.sent_by: dict[int, int] = {}  # by sender the bits of its messages
        self.numbers: dict[tuple[int, int], int] = {}
        self.pairs: list[tuple[int, int]] = []
        self.local = Column("i")
        self.places = range(world.alike if self.alike else len(names.orders))
        self.codes = [Column("Q") for _ in self.places]  # of each seat, likewise: the sum of its parts

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
            self.state_codes.append(codes)
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
            self.sent_by[sender] = self.sent_by.get(sender, 0) | 1 << number
        return number

    def seat(self, local: int, inbox: int, like: int | None = None) -> int:
        """The number of this seat. With another one that is much like it, its hash is found sooner."""
        number = self.numbers.get((local, inbox))
        if number is None:
            number = self.numbers[local, inbox] = len(self.pairs)
            if number >> SEAT_BITS:
                raise OverflowError("too many seats")
            self.pairs.append((local, inbox))
            self.local.append(local)
            codes, before = self.state_codes[local], 0
            if like is not None:
                of, before = self.pairs[like]
                old = self.state_codes[of]
                codes = [a - b + c.list[like] for a, b, c in zip(codes, old, self.codes, strict=True)]
            for message in bits(inbox & ~before):
                codes = [a + b for a, b in zip(codes, self.message_codes[message], strict=True)]
            for message in bits(before & ~inbox):
                codes = [a - b for a, b in zip(codes, self.message_codes[message], strict=True)]
            for column, found in zip(self.codes, codes, strict=True):
                column.append(found & WORD)
        return number


class Moves:
    """What one process can do from each of its seats."""

    def __init__(self, count: int) -> None:
        self.first = Column("i")  # by seat: its moves stand together,
        self.number = Column("i", -1)  # and are so many; -1: not known yet
        self.event = Column("i")
        self.after = Column("i")  # the seat; -1: a breach
        self.budget = Column("i")  # from 1; 0: the move needs none
        self.facts = Column("i")
        self.sends = [Column("i") for _ in range(count)]  # to each process
        self.outcomes: dict[tuple[int, int], Outcome | Breach | None] = {}
        self.inert: dict[int, int] = {}  # by state: messages that certainly do nothing
        self.sets: list[dict[int, int]] = [{0: 0} for _ in range(count)]  # numbers of what is sent to each
        self.masks: list[list[int]] = [[0] for _ in range(count)]


class Explorer:
    """Steps states of one world, and remembers what each step did."""

    def __init__(self, world: World, *, symmetry: bool = True, forget: bool = True) -> None:
        self.world = world
        self.forget = forget
        self.once = world.once
        self.count = count = len(world.names)
        orders = list(permutations(range(world.alike))) if symmetry else [tuple(range(world.alike))]
        self.names = Names(orders, [{old: new for new, old in enumerate(order)} for order in orders])
        roles = [0 if process < world.alike else process for process in range(count)]
        kinds = {role: Seats(world, role, self.names) for role in roles}
        self.kinds = list(kinds.values())
        self.seats = [kinds[role] for role in roles]
        self.moves = [Moves(count) for _ in world.names]
        self.pairs = [
            (i, j) for i, j in product(range(count), repeat=2) if i != j and max(i, j) >= world.alike
        ]
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
        self.fact_numbers: dict[tuple[Any, ...], int] = {}
        self.facts: list[tuple[Any, ...]] = [()]
        self.history_numbers: dict[Hashable, int] = {}
        self.histories: list[Hashable] = []
        self.history_codes = [Column("Q") for _ in orders]
        self.observed = Table()

    def begin(self) -> Array:
        """The first state: one column."""
        world = self.world
        states = [
            self.seats[process].seat(self.seats[process].state(state), 0)
            for process, state in enumerate(world.begin())
        ]
        return np.array([[*states, self.history(world.nothing_seen), len(self.lefts) - 1]], np.int32).T.copy()

    def history(self, history: Hashable) -> int:
        number = self.history_numbers.get(history)
        if number is None:
            number = self.history_numbers[history] = len(self.histories)
            self.histories.append(history)
            for to, column in zip(self.names.to, self.history_codes, strict=True):
                renamed = history if to is self.names.to[0] else self.world.renamed_history(history, to)
                column.append(code("history", renamed))
        return number

    def codes(self, states: Array) -> Array:
        """The hash of each state."""
        alike, count = self.world.alike, self.count
        places = [
            [self.seats[0].codes[place].values[states[process]] for process in range(alike)]
            for place in range(alike)
        ]
        left = self.left_codes[states[count + 1]]
        least: Array | None = None
        for number, order in enumerate(self.names.orders):
            found = left + self.history_codes[number].values[states[count]]
            for place, process in enumerate(order):
                found += places[place][process]
            for process in range(alike, count):
                found += self.seats[process].codes[number].values[states[process]]
            least = found if least is None else np.minimum(least, found)
        assert least is not None
        return np.maximum(least, np.uint64(1))  # 0 is an empty place of a table

    # -------------------------------------------------------------------------------------------- stepping

    def outcome(self, process: int, local: int, event: int) -> Outcome | Breach | None:
        """Run the code: a budgeted event is below 0, a message is its number. None: nothing changes."""
        seats = self.seats[process]
        state = seats.of_state(local)
        try:
            if event < 0:
                step = self.world.step(process, state, self.event_names[-1 - event], None)
            else:
                sender, message = seats.messages[event]
                step = self.world.step(process, state, message, sender)
        except Breach as breach:
            return breach
        except Exception as error:  # the core raises nothing
            return Breach(f"{self.world.names[process]}: {type(error).__name__}: {error}")
        if step is None:
            return None
        sends: dict[int, int] = {}
        for to, message in step.sends:
            sends[to] = sends.get(to, 0) | 1 << self.seats[to].message(process, message)
        after = seats.state(state)
        if event >= 0 and after == local and not sends and not step.facts:
            return None
        return after, sends, step.facts

    def remembered(self, process: int, local: int, event: int) -> Outcome | Breach | None:
        moves = self.moves[process]
        try:
            return moves.outcomes[local, event]
        except KeyError:
            found = moves.outcomes[local, event] = self.outcome(process, local, event)
            if found is None and event >= 0:
                moves.inert[local] = moves.inert.get(local, 0) | 1 << event
            return found

    def find_moves(self, process: int, seat: int) -> None:
        """Find what can happen in this seat."""
        moves, seats = self.moves[process], self.seats[process]
        local, inbox = seats.pairs[seat]
        names = self.world.events(process)
        events = [*bits(inbox & ~moves.inert.get(local, 0)), *[-1 - self.event_names.index(e) for e in names]]
        rows = []
        for event in events:
            found = self.remembered(process, local, event)
            if found is None:
                continue
            budget = -event if event < 0 and -event <= len(self.world.budgets) else 0
            if isinstance(found, Breach):
                rows.append((event, -1, budget, 0, [0] * self.count))
                continue
            after, sends, facts = found
            left = inbox ^ (1 << event) if event >= 0 and self.once else inbox
            numbers = [self.send_number(process, to, sends.get(to, 0)) for to in range(self.count)]
            number = 0
            if facts:
                number = self.fact_numbers.setdefault(facts, len(self.facts))
                if number == len(self.facts):
                    self.facts.append(facts)
            rows.append((event, seats.seat(after, left, seat), budget, number, numbers))
        moves.first.list[seat] = len(moves.event.list)
        moves.number.list[seat] = len(rows)
        for event, after, budget, facts_number, numbers in rows:
            moves.event.append(event)
            moves.after.append(after)
            moves.budget.append(budget)
            moves.facts.append(facts_number)
            for column, number in zip(moves.sends, numbers, strict=True):
                column.append(number)

    def send_number(self, process: int, to: int, mask: int) -> int:
        numbers, masks = self.moves[process].sets[to], self.moves[process].masks[to]
        number = numbers.setdefault(mask, len(masks))
        if number == len(masks):
            if number >> SEND_BITS:
                raise OverflowError("too many messages")
            masks.append(mask)
        return number

    def successors(
        self, states: Array
    ) -> Iterator[tuple[int, Array, Array, Array] | tuple[int, int, int, str]]:
        """What can happen next: (process, events, from which state, states after), or a breach.

        A breach is (process, event, in which state, what).
        """
        count = self.count
        for process in range(count):
            moves, here = self.moves[process], states[process]
            moves.first.reach(len(self.seats[process].pairs))
            moves.number.reach(len(self.seats[process].pairs))
            for seat in np.unique(here[moves.number.values[here] < 0]).tolist():
                self.find_moves(process, seat)
            numbers = moves.number.values[here]
            ends = np.cumsum(numbers)
            origins = np.repeat(np.arange(len(here)), numbers)
            which = np.arange(len(origins)) + np.repeat(moves.first.values[here] - (ends - numbers), numbers)
            left = self.spend[states[count + 1][origins], moves.budget.values[which]]
            if (left < 0).any():
                possible = np.flatnonzero(left >= 0)
                origins, which, left = origins[possible], which[possible], left[possible]
            if not which.size:
                continue
            new = np.take(states, origins, axis=1)
            new[process] = moves.after.values[which]
            new[count + 1] = left
            events = moves.event.values[which]
            worst = int(new[process].argmin())
            if new[process][worst] < 0:
                event, origin = int(events[worst]), int(origins[worst])
                found = self.remembered(process, int(self.seats[process].local.values[here[origin]]), event)
                yield process, event, origin, str(found)
                continue
            self.witness(new, moves.facts.values[which])
            worst = int(new[count].argmin())
            if new[count][worst] < 0:
                history = self.histories[states[count][origins[worst]]]
                facts = self.facts[moves.facts.values[which[worst]]]
                yield process, int(events[worst]), int(origins[worst]), self.breach_of(history, facts)
                continue
            self.send(process, states, origins, which, new)
            changed = self.changed(process, states, origins, new)
            yield process, events[changed], origins[changed], new[:, changed]

    def changed(self, process: int, states: Array, origins: Array, new: Array) -> Array:
        """Whether anything has changed, beside that a message was taken out of the inbox."""
        local = self.seats[process].local.values
        found = local[new[process]] != local[states[process]][origins]
        for row in range(self.count + 2):
            if row != process:
                found |= new[row] != states[row][origins]
        return found

    def witness(self, new: Array, facts: Array) -> None:
        """The histories after these facts; -1 where there is a breach."""
        some = np.flatnonzero(facts)
        if some.size:
            history = new[self.count]
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
        """Put what is sent into the inboxes, and take out of them what has become dead."""
        count, moves = self.count, self.moves[process]
        left = new[count + 1]
        moved = spent = np.zeros(0, bool)
        if self.forget:
            before = self.horizon(process, states[process], states[count + 1])[origins]
            moved = self.horizon(process, new[process], left) != before
            spent = np.flatnonzero(left != states[count + 1][origins])
        for other in range(count):
            if (process, other) not in self.channels:
                continue
            sent = moves.sends[other].values[which]
            rows = np.flatnonzero(moved | (sent != 0)) if self.forget else np.flatnonzero(sent)
            self.arrive(process, other, new, rows, sent[rows])
            if self.forget:
                self.arrive(other, process, new, np.flatnonzero(moved))
        if spent.size:  # a horizon may depend on what is left
            for one, other in self.pairs:
                self.arrive(one, other, new, spent)

    def arrive(self, sender: int, receiver: int, new: Array, rows: Array, sent: Array | None = None) -> None:
        """Change the receiver's seat in these states: what is sent comes, what is dead goes."""
        if not rows.size:
            return
        seats = new[receiver][rows]
        key = seats.astype(np.uint64) << np.uint64(SEND_BITS)
        if sent is not None:
            key |= sent.astype(np.uint64)
        key <<= np.uint64(2 * HORIZON_BITS)
        if self.forget:
            left = new[self.count + 1][rows]
            there = self.horizon(sender, new[sender][rows], left)
            here = self.horizon(receiver, seats, left)
            key |= ((there << HORIZON_BITS) | here).astype(np.uint64)
        else:
            key |= np.uint64(1)
        new[receiver][rows] = self.channels[sender, receiver].get(
            key, partial(self.deliver, sender, receiver)
        )

    def deliver(self, sender: int, receiver: int, key: int) -> int:
        """The receiver's seat with these messages, and without the sender's dead ones."""
        there, here = key >> HORIZON_BITS & ((1 << HORIZON_BITS) - 1), key & ((1 << HORIZON_BITS) - 1)
        seat = key >> SEND_BITS + 2 * HORIZON_BITS
        send = key >> 2 * HORIZON_BITS & ((1 << SEND_BITS) - 1)
        seats = self.seats[receiver]
        local, inbox = seats.pairs[seat]
        inbox |= self.moves[sender].masks[receiver][send]
        if self.forget:
            inbox &= ~self.dead(sender, there, receiver, here, inbox & seats.sent_by.get(sender, 0))
        return seats.seat(local, inbox, seat)

    def dead(self, sender: int, there: int, receiver: int, here: int, messages: int) -> int:
        """Which of these messages are dead, given the numbers of the horizons."""
        known, dead = self.deads.get((sender, there, receiver, here), (0, 0))
        if messages & ~known:
            source, target = self.horizon_values[sender][there], self.horizon_values[receiver][here]
            for number in bits(messages & ~known):
                message = self.seats[receiver].messages[number][1]
                dead |= self.world.dead(sender, source, receiver, target, message) << number
            self.deads[sender, there, receiver, here] = known | messages, dead
        return dead & messages

    def horizon(self, process: int, seats: Array, left: Array) -> Array:
        """The number of the horizon in each seat, with these budgets left."""
        local = self.seats[process].local.values[seats]
        places = local * len(self.lefts) + left
        column = self.horizon_of[process]
        column.reach(len(self.seats[process].states) * len(self.lefts))
        found = column.values[places]
        if not found.all():
            for place in np.unique(places[found == 0]).tolist():
                column.list[place] = self.horizon_number(process, *divmod(place, len(self.lefts)))
            found = column.values[places]
        return found

    def horizon_number(self, process: int, local: int, index: int) -> int:
        left = dict(zip(self.world.budgets, self.lefts[index], strict=True))
        horizon = self.world.horizon(process, self.seats[process].of_state(local), left)
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
        what = self.event_names[-1 - event] if event < 0 else self.seats[process].messages[event]
        return process, what

    def told(self, process: int, event: int) -> str:
        """An event, in words."""
        name = self.world.names[process]
        if event < 0:
            return f"{name}: {self.event_names[-1 - event]}"
        sender, message = self.seats[process].messages[event]
        return f"{name} gets from {self.world.names[sender]}: {message}"
