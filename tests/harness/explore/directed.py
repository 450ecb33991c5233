"""Runs a schedule of whole nodes in the simulator: its replicas, stores, journals, disks and oracle.

Nothing is left to chance there, and no time passes by itself: whatever happens is in the schedule. What the
explorer simplifies is so here, too: times are only those of nodes.py, a process needs no introduction, and a
frame is durable at once unless something has left before it. A schedule with checkpoints cannot be run, for
they take many steps in the simulator and one in the explorer.
"""

from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from typing import Any

from paxoskv.protocol.node import Node
from paxoskv.protocol.outbox import Message
from paxoskv.wire.structs import Learn, Record, Result
from tests.harness.explore.nodes import NOW, Chance, Nodes, command, number_rounds, stamp
from tests.harness.explore.world import World, frozen, told
from tests.harness.simulator import Machine, Profile, Simulation, Violation

Event = tuple[int, str | tuple[int, Any]]


class DirectedMachine(Machine):
    """A node without time and chance. Its disk syncs when it is told to, or at once."""

    simulation: "Directed"

    def __init__(self, simulation: Simulation, node: int) -> None:
        super().__init__(simulation, node)
        self.frame: tuple[Any, ...] | None = None  # being written
        self.leaked = False  # whether something has left in this turn that did not wait for the disk
        self.proposed = 0
        self.acknowledged: set[str] = set()

    def clock(self) -> float:
        return NOW

    def new_core(self) -> Node:
        life = (self.life + 1) // 2  # here a life begins and ends
        core = Node(
            self.node, self.simulation.nodes, Chance(life), incarnation=self.incarnation,
            proposing=self.simulation.profile.proposing,
        )  # fmt: skip
        number_rounds(core, life)
        self.frame = None
        drain = core.drain

        def watched(*arguments: Any) -> Any:
            ready = drain(*arguments)
            self.leaked = self.leaked or any(to != self.node for to, _, _ in ready.send)
            return ready

        core.drain = watched  # type: ignore[method-assign]
        core.origin = lambda: None  # type: ignore[method-assign]
        core.hashed = lambda *_: None  # type: ignore[method-assign]
        self.begun = False
        return core

    def turn(self) -> None:
        """A whole turn of the explorer's, in which nobody waits for more that could share a frame."""
        replica, fresh = self.replica, self.frame is None
        assert replica is not None
        replica.window = 1000
        self.leaked = False
        if not self.begun:
            self.begun = True
            replica.tick()
        super().turn()
        self.flush()
        if fresh and not self.leaked:
            self.sync()

    def flush(self) -> None:
        replica = self.replica
        while replica is not None and replica.records and self.frame is None:
            replica.flush_now = True
            super().turn()

    def send(self, to: int, message: Message, call: Any) -> None:
        self.simulation.oracle.sends(self.node, self.core, message)
        self.simulation.in_flight.setdefault((self.node, to, known_by(message)), []).append(message)

    def write(self, records: list[Record], done: Callable[[], None], new_segment: bool) -> None:
        self.disk.slow = True
        self.journal.write(records, new_segment)
        self.disk.slow = False
        self.frame = (self.life, records, done, None)

    def _step(self, sender: int, message: Message, call: Any, who: tuple[int, int]) -> None:
        if who[0] >= self.core.noted(sender)[0]:
            self.replica.step(sender, message, call)

    def answer(self, token: Any, value: Any) -> None:
        if isinstance(value, Result):
            self.acknowledged.add(token)
        elif isinstance(value, set) and (missing := token - value):
            self.simulation.fail(f"a read misses {sorted(missing)}, acknowledged before it began")

    # -- events

    def sync(self) -> None:
        """All that was written before is durable, and what follows from that, unless something has left."""
        due = 1 + bool(self.replica.records)
        while self.frame is not None and (due > 0 or not self.leaked):
            due, self.leaked = due - 1, False
            frame, self.frame = self.frame, None
            self._synced(*frame)
            self.flush()

    def tick(self) -> None:
        self.simulation.world.all_is_due(self.core)
        self.replica.tick()
        self.turn()

    def put(self) -> None:
        self.proposed += 1
        of = command(self.node, self.proposed)
        self.replica.submit(of.key, [of])
        self.turn()

    def read(self) -> None:
        everywhere = {key for machine in self.simulation.machines.values() for key in machine.acknowledged}
        self.replica.read(everywhere, lambda: {key for key in everywhere if self.store.get(key).value == key})
        self.turn()


class Impossible(Exception):
    """The schedule is none of the simulator's."""


class Directed(Simulation):
    """A simulation of which somebody else says what happens next."""

    machine = DirectedMachine

    def __init__(self, world: Nodes) -> None:
        self.world = world
        super().__init__(0, Profile("directed", len(world.ids), proposing=world.proposing, clients=0))
        self.random: Any = Chance(0)
        self.in_flight: dict[Hashable, list[Message]] = {}  # by sender, receiver and content

    def introduce(self, machine: Machine) -> bool:
        return True

    def happens(self, process: int, what: str | tuple[int, Any]) -> None:
        machine = self.machines[self.world.ids[process]]
        assert isinstance(machine, DirectedMachine)
        self.events += 1
        self.note(str(what), machine.node)
        if isinstance(what, tuple):
            sender, (incarnation, content) = what
            found = (self.world.ids[sender], machine.node, known_by(content))
            if not self.in_flight.get(found):
                raise Impossible(f"{found} was not sent")
            message = self.in_flight[found].pop()
            machine.receive(self.world.ids[sender], message, None, (incarnation, 0))
        elif what in ("crash", "wipe"):
            if machine.replica is not None:
                machine.crash()
            if what == "wipe":
                self.replace(machine, "wiped")
            machine.start()
        else:
            getattr(machine, what)()
        self.world.times(machine.core, stamp)


def known_by(message: Message) -> Hashable:
    """Its content, but for what it says of the sender's disk: which records share a frame may differ."""
    return frozen(message._replace(held=[]) if isinstance(message, Learn) else message)


def possible(world: World, events: Iterable[Event]) -> bool:
    return isinstance(world, Nodes) and all(what != "checkpoint" for _, what in events)


def direct(world: Nodes, events: Iterable[Event]) -> str | None:
    """What the simulator finds wrong after these events; None: nothing."""
    simulation = Directed(world)
    with suppress(Exception):  # there may be something wrong with the beginning
        world.begin()
    try:
        for event in (*world.prelude, *events):
            simulation.happens(*event)
    except Impossible:
        raise
    except Violation as violation:
        return str(violation).partition("\n")[0]
    except Exception as error:  # as in Simulation.run()
        return told(error)
    return None
