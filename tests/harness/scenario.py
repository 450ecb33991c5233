"""A cluster whose network, disks and clocks are in the hands of a test: what happens is what the script says.

The nodes are the real Replica, Node and Store. Left alone, every message takes DELAY and every fsync takes
FSYNC of a virtual time that costs nothing, so that a script runs the same way each time. It then interferes:

    cluster = Cluster(nodes=5, seed=7)
    with cluster.deliver_only(Accept, to={1, 2}):   # a gate, as are drop() and hold(): it lasts as long as
        first = cluster.put(1, "x", "1")            # the block, or until lift(), release() or heal()
        cluster.run(0.05)
    cluster.crash(1)                                # what was not synced is lost
    cluster.run_until(first.answered, within_s=1)

While it runs, a cluster checks what must hold always: all nodes apply the same entries in the same order, no
slot is chosen with two values, and timestamps increase along a log. A breach is an AssertionError at the
moment at which it happens.
"""

import heapq
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from random import Random
from typing import Any, NamedTuple
from zlib import crc32

from paxoskv.multipaxos import Diverged
from paxoskv.node import replica
from paxoskv.protocol import node as protocol
from paxoskv.protocol import voters
from paxoskv.state import store
from paxoskv.storage import checkpoint
from paxoskv.wire.codec import decode, encode
from paxoskv.wire.structs import (
    Accept,
    Accepted,
    Chunk,
    Command,
    Entry,
    Frame,
    Identity,
    Learn,
    Outcome,
    Position,
    Record,
    Rejoin,
    RequestId,
    Result,
    Session,
    Verb,
)

DELAY = 0.001  # seconds that a message takes
FSYNC = 0.001  # seconds that an fsync takes
TICK = 0.005  # seconds between two ticks of a node
EVERYBODY_VOTES = "EVERYBODY_VOTES" in os.environ  # whether the stories are told with the reference
CHUNK = 100  # bytes of a checkpoint in one message

__all__ = ["DELAY", "FSYNC", "Accept", "Accepted", "Answer", "Cluster", "Envelope", "Gate", "Machine"]


class Envelope(NamedTuple):
    sender: int
    to: int
    message: Any
    who: Identity | None = None  # of the sender, as its connection has said
    disk: int = 0  # the receiver's, by number: a connection belongs to two processes
    event: int = 0  # of a recording, if there is one


class Answer:
    """What a client waits for."""

    def __init__(self) -> None:
        self.value: Any = None  # a Result, a list of them, or one of the interface's exceptions

    def __repr__(self) -> str:
        return f"Answer({self.value})"

    def answered(self) -> bool:
        return self.value is not None

    @property
    def ok(self) -> bool:
        return isinstance(self.value, Result) and self.value.outcome == Outcome.OK

    @property
    def text(self) -> str | None:
        """The value read or computed; None if there is none."""
        assert isinstance(self.value, Result), self.value
        return self.value.value


class Gate:
    """Messages of some kinds, from and to some nodes, are lost or held as long as this stands."""

    def __init__(
        self,
        cluster: "Cluster",
        kinds: tuple[type, ...],
        sender: Iterable[int] | None,
        to: Iterable[int] | None,
        where: Callable[[Any], bool] | None,
        holds: bool,
    ) -> None:
        self.cluster = cluster
        self.kinds = kinds
        self.sender = None if sender is None else frozenset(sender)
        self.to = None if to is None else frozenset(to)
        self.where = where
        self.holds = holds
        self.held: list[Envelope] = []
        cluster.gates.append(self)

    def takes(self, envelope: Envelope) -> bool:
        """Whether the message goes no further."""
        matches = (
            (not self.kinds or isinstance(envelope.message, self.kinds))
            and (self.sender is None or envelope.sender in self.sender)
            and (self.to is None or envelope.to in self.to)
            and (self.where is None or self.where(envelope.message))
        )
        if matches and self.holds:
            self.held.append(envelope)
        return matches

    def lift(self) -> None:
        if self in self.cluster.gates:
            self.cluster.gates.remove(self)

    def release(self) -> None:
        """Lift the gate, and deliver what it held."""
        self.lift()
        for envelope in self.held:
            self.cluster.deliver(envelope)
        self.held = []

    def __enter__(self) -> "Gate":
        return self

    def __exit__(self, *_: object) -> None:
        self.lift()


class Files:
    """The files of one node's checkpoints, and its closed segments; all of it durable."""

    def __init__(self, machine: "Machine") -> None:
        self.machine = machine
        self.checkpoints: dict[int, bytes] = {}
        self.newest = 0  # our own that recovery begins with
        self.closed: list[list[bytes]] = []  # segments behind it
        self.incoming = bytearray()
        self.broken = False  # whether what arrives is spoiled on the disk
        self.no_room = False

    # what recovery does

    def frames(self) -> list[bytes]:
        """Of all closed segments."""
        return [frame for segment in self.closed for frame in segment]

    def close_segment(self, frames: list[bytes]) -> None:
        self.closed.append(frames)

    def recover(self, core: Any, into: Any, frames: Sequence[bytes]) -> None:
        if self.newest:
            self._load(core, into, self.newest)
            core.checkpointed(core.cut())
        for frame in frames:
            for record in decode(Frame, frame).records:
                if record.installed is None:
                    core.replay(record)
                else:
                    self._load(core, into, record.installed)

    def _load(self, core: Any, into: Any, number: int) -> None:
        checkpoint.install(core, into, checkpoint.parse(self.checkpoints[number]))

    def make(self, core: Any, made: Any) -> None:
        """A checkpoint of all closed segments."""
        self.newest = self._add(json.dumps(checkpoint.state_of(made, core.cut())).encode())
        self.closed = []

    def _add(self, data: bytes) -> int:
        number = max(self.checkpoints, default=0) + 1
        self.checkpoints[number] = data
        return number

    # what replica.CheckpointFiles asks for

    def chunk(self, number: int, offset: int) -> Chunk:
        number = number or self.newest
        if number not in self.checkpoints:
            return Chunk(0, 0, 0, offset, b"")
        data = self.checkpoints[number]
        return Chunk(number, len(data), crc32(data), offset, data[offset : offset + CHUNK])

    def wanted(self) -> None:
        if self.machine.making_life != self.machine.life:
            self.machine.replica.roll()

    def begin(self, size: int) -> None:
        if self.no_room:
            raise OSError("no space left on device")
        self.incoming = bytearray(size)

    def write(self, offset: int, data: bytes) -> None:
        self.incoming[offset : offset + len(data)] = data

    def drop(self) -> None:
        self.incoming = bytearray()

    def finish(self, check: int, done: Callable[..., None], failed: Callable[[str], None]) -> None:
        data = bytes(self.incoming)
        if crc32(data) != check or self.broken:
            self.machine.later(FSYNC, lambda: failed("its CRC-32 is wrong"))
            return
        number, state = self._add(data), checkpoint.parse(data)
        cut = checkpoint.cut_of(state)
        self.machine.later(FSYNC, lambda: done(number, cut, state))


class Machine:
    """One node's computer: the disk survives a crash, the rest does not."""

    def __init__(self, cluster: "Cluster", me: int) -> None:
        self.cluster = cluster
        self.me = me
        self.life = 0
        self.disk = 0  # how many it had before
        self.incarnation = 1  # what its identity says
        self.refused: dict[int, str] = {}  # by peer: why
        self.running = False
        self.paused = False
        self.durable: list[bytes] = []  # the frames of the last segment
        self.files = Files(self)
        self.checkpoint_takes = FSYNC  # seconds
        self.making_life = 0  # the life in which a checkpoint is being made
        self.on_diverged: Callable[[int], Any] | None = None  # told of the node when it stops
        self.diverged: str | None = None  # why it did
        self.unsynced: deque[tuple[bytes, Callable[[], None], bool]] = deque()
        self.auto_sync = True
        self.fsync = FSYNC
        self.inbox: list[Callable[[], None]] = []  # what arrived while paused

    def start(self) -> None:
        self.life += 1
        self.running = True
        self.paused = False
        self.introduced = False  # whether this life is durable: no connection is made before
        cluster = self.cluster
        random = Random(f"{cluster.seed} {self.me} {self.life}")
        self.core = protocol.Node(
            self.me,
            cluster.ids,
            random,
            cluster.revoke_after,
            cluster.failures.get(self.me),
            self.incarnation,
            voters.EverybodyVotes if EVERYBODY_VOTES else voters.Voters,
            cluster.proposing,
        )
        self.store = store.Store("unused")
        self.checked = dict.fromkeys(self.core.acceptors, 0)
        self.files.recover(self.core, self.store, [*self.files.frames(), *self.durable])
        self.applied = self._order_up_to(self.store.position)
        self.core.start(cluster.now)
        self.replica = replica.Replica(
            self.core,
            self._recorded(self.store),
            lambda: cluster.now,
            self._send,
            self._write,
            self._answer,
            self.files,
            self.files.wanted,
        )
        self.begin()

    def begin(self) -> None:
        self.replica.turn()

    def stop(self) -> None:
        self.running = False
        self.unsynced.clear()
        self.inbox.clear()

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """In this life only; when resumed, if paused by then."""
        life = self.life
        self.cluster.at(self.cluster.now + seconds, lambda: self.do(action) if life == self.life else None)

    def do(self, action: Callable[[], None]) -> None:
        if self.paused:
            self.inbox.append(action)
        elif self.running:
            try:
                action()
            except Diverged as error:
                self.diverged = str(error)
                if self.on_diverged is None:
                    raise
                self.on_diverged(self.me)
                self.stop()
                return
            self.cluster.check_slots(self)

    def refuses(self, envelope: Envelope) -> bool:
        """What the shell decides when a peer says who it is."""
        if envelope.who is None or isinstance(envelope.message, Rejoin):
            return False
        reason = self.core.greet(envelope.who)
        if reason is not None:
            self.refused[envelope.sender] = reason
        return reason is not None

    def receive(self, sender: int, message: Any) -> None:
        self.replica.step(sender, message)
        self.replica.turn()

    def tick(self) -> None:
        self.replica.tick()
        self.replica.turn()

    def sync(self) -> None:
        """Complete the fsync under way, if there is one."""
        if self.unsynced:
            frame, done, new_segment = self.unsynced.popleft()
            if new_segment:
                self.files.close_segment(self.durable)
                self.durable = []
            self.durable.append(frame)
            self.introduced = True
            done()
            if new_segment:
                self.making_life = self.life
                self.later(self.checkpoint_takes, self.make_checkpoint)

    def _send(self, to: int, message: Any, call: Any) -> None:
        who = self.core.identify(Identity("", "", self.me, 0, 0))
        disk = self.cluster.machines[to].disk
        if not self.introduced:
            return
        self.cluster.post(Envelope(self.me, to, decode(type(message), encode(message)), who, disk))

    def _write(self, records: list[Record], done: Callable[[], None], new_segment: bool) -> None:
        assert not self.unsynced, "a frame is written only when the one before is durable"
        self.unsynced.append((encode(Frame(records)), done, new_segment))
        if self.auto_sync:
            self.later(self.fsync, self.sync)

    def _answer(self, answer: Answer, value: Any) -> None:
        assert answer.value is None, "a client is answered once"
        answer.value = value

    def make_checkpoint(self) -> None:
        """What the process does that makes checkpoints: recover the closed segments, save, let them go."""
        core = protocol.Node(self.me, self.cluster.ids, Random(1), proposing=self.cluster.proposing)
        made = store.Store("unused")
        self.files.recover(core, made, self.files.frames())
        core.start(0.0)
        for entry in core.drain(0.0).apply:
            made.apply(entry.timestamp, entry.owner, entry.payload)
        self.making_life = 0
        self.files.make(core, made)
        self.core.checkpointed(core.cut())

    def _order_up_to(self, position: tuple[int, int]) -> list[tuple[int, int]]:
        """What a checkpoint contains."""
        return [applied for applied in self.cluster.order if applied <= position]

    def _recorded(self, real: Any) -> Any:
        """The store, with what is applied compared with what the other nodes have applied."""
        apply, load = real.apply, real.load_state

        def recorded(timestamp: int, owner: int, payload: bytes) -> list[Result]:
            self.applied.append((timestamp, owner))
            self.cluster.check_order(self)
            results: list[Result] = apply(timestamp, owner, payload)
            return results

        def loaded(state: dict[str, Any]) -> None:
            load(state)
            self.applied = self._order_up_to(real.position)

        real.apply, real.load_state = recorded, loaded
        return real


class Cluster:
    """Nodes 1 to `nodes`, started and ready. `start`: only these run; the others join later, by restart()."""

    machine = Machine

    def __init__(
        self,
        nodes: int = 5,
        seed: int = 1,
        start: Iterable[int] | None = None,
        revoke_after: float = 0.5,
        delay: float = DELAY,
        failures: dict[int, Any] | None = None,
        proposing: str = "own-logs",
    ) -> None:
        self.seed = seed
        self.proposing = proposing
        self.ids = list(range(1, nodes + 1))
        self.revoke_after = revoke_after
        self.delay = delay
        self.failures = failures or {}
        self.now = 1.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = 0
        self.sent: list[Envelope] = []  # everything that was ever sent, lost or not
        self.gates: list[Gate] = []
        self.cuts: set[frozenset[int]] = set()
        self.order: list[tuple[int, int]] = []  # what has been applied anywhere, in order
        self.slots: dict[tuple[int, int], Entry] = {}  # what has been chosen, by log and slot
        self.two_histories = False  # whether the script has made some, which the nodes are to find out
        self.machines = {node: self.machine(self, node) for node in self.ids}
        running = self.ids if start is None else sorted(start)
        for node in running:
            self.machines[node].start()
        for node in self.ids:
            self._tick_later(node, TICK * node / nodes)
        self.run_until(lambda: all(self.core(node).ready for node in running), within_s=5 + 10 * delay)
        self.run(0.3)

    def __getitem__(self, node: int) -> Machine:
        return self.machines[node]

    def core(self, node: int) -> Any:
        return self.machines[node].core

    # --------------------------------------------------------------------------------------------------- time

    def at(self, when: float, action: Callable[[], None]) -> None:
        self.numbers += 1
        heapq.heappush(self.events, (when, self.numbers, action))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.events[0][0] <= end:
            self._next_event()
        self.now = end

    def run_until(self, condition: Callable[[], bool], within_s: float) -> None:
        """AssertionError if the condition does not come true in time."""
        end = self.now + within_s
        while not condition():
            assert self.events[0][0] <= end, f"not within {within_s} s"
            self._next_event()

    def _next_event(self) -> None:
        when, _, action = heapq.heappop(self.events)
        self.now = max(self.now, when)
        action()

    def _tick_later(self, node: int, seconds: float) -> None:
        def tick() -> None:
            machine = self.machines[node]
            if not machine.paused:
                machine.do(machine.tick)
            self._tick_later(node, TICK)

        self.at(self.now + seconds, tick)

    # ------------------------------------------------------------------------------------------------ network

    def post(self, envelope: Envelope) -> None:
        """What a node has sent."""
        self.sent.append(envelope)
        if frozenset((envelope.sender, envelope.to)) in self.cuts:
            return
        if not any(gate.takes(envelope) for gate in self.gates):
            self.deliver(envelope)

    def deliver(self, envelope: Envelope) -> None:
        """Let a message arrive after the usual delay, past all gates: also one that arrived before."""
        machine = self.machines[envelope.to]

        def arrive() -> None:
            if machine.disk == envelope.disk and not machine.refuses(envelope):
                machine.receive(envelope.sender, envelope.message)

        self.at(self.now + self.delay, lambda: machine.do(arrive))

    def sent_messages(
        self, kind: type, sender: int, to: int, where: Callable[[Any], bool] = lambda message: True
    ) -> list[Envelope]:
        """For deliver(), to repeat them late."""
        return [
            envelope
            for envelope in self.sent
            if isinstance(envelope.message, kind) and envelope[:2] == (sender, to) and where(envelope.message)
        ]

    def drop(
        self,
        *kinds: type,
        sender: Iterable[int] | None = None,
        to: Iterable[int] | None = None,
        where: Callable[[Any], bool] | None = None,
    ) -> Gate:
        """Lose such messages from now on (no kind: of all kinds; no sender, no receiver: any)."""
        return Gate(self, kinds, sender, to, where, holds=False)

    def hold(
        self,
        *kinds: type,
        sender: Iterable[int] | None = None,
        to: Iterable[int] | None = None,
        where: Callable[[Any], bool] | None = None,
    ) -> Gate:
        """Keep such messages until release()."""
        return Gate(self, kinds, sender, to, where, holds=True)

    def deliver_only(self, *kinds: type, to: Iterable[int], sender: Iterable[int] | None = None) -> Gate:
        """Lose messages of these kinds to all other nodes."""
        return self.drop(*kinds, sender=sender, to=set(self.ids) - set(to))

    def cut(self, one: int, other: int) -> None:
        """Break the link between two nodes."""
        self.cuts.add(frozenset((one, other)))

    def isolate(self, node: int) -> None:
        for other in self.ids:
            self.cut(node, other)

    def heal(self) -> None:
        """All links work, all gates are gone."""
        self.cuts.clear()
        self.gates.clear()

    # ------------------------------------------------------------------------------------- machines and disks

    def crash(self, node: int) -> None:
        self.machines[node].stop()

    def restart(self, node: int) -> None:
        self.machines[node].auto_sync = True
        self.machines[node].start()

    def wipe(self, node: int) -> None:
        """The machine gets a new disk, with a data directory that is to rejoin."""
        machine = self.machines[node]
        machine.stop()
        machine.disk += 1
        machine.incarnation = 0
        machine.durable, machine.files = [], Files(machine)

    def backup(self, node: int) -> tuple[int, list[bytes], Any, int]:
        """What is on the disk now, for restore()."""
        machine = self.machines[node]
        return machine.incarnation, list(machine.durable), copy(machine.files), machine.files.newest

    def restore(self, node: int, backup: tuple[int, list[bytes], Any, int]) -> None:
        """Put a copy back, and start it."""
        machine = self.machines[node]
        machine.stop()
        machine.incarnation, machine.durable, machine.files = backup[0], list(backup[1]), backup[2]
        machine.start()

    def pause(self, node: int) -> None:
        """As SIGSTOP does: what arrives waits."""
        self.machines[node].paused = True

    def resume(self, node: int) -> None:
        machine = self.machines[node]
        machine.paused = False
        inbox, machine.inbox = machine.inbox, []
        for action in inbox:
            machine.do(action)

    def hold_disk(self, node: int) -> None:
        """No fsync returns before sync() or a crash."""
        self.machines[node].auto_sync = False

    def sync(self, node: int) -> None:
        """Complete the fsync under way; those that follow complete by themselves."""
        machine = self.machines[node]
        machine.auto_sync = True
        machine.do(machine.sync)

    def hear_clock(self, node: int, clock: int) -> None:
        """The node is told that some other node's clock stands there."""
        machine = self.machines[node]
        other = next(peer for peer in self.ids if peer != node)
        machine.do(lambda: machine.receive(other, Learn(clock, [], [], Position(0, 0), 0)))

    # ------------------------------------------------------------------------------------------------ clients

    def submit(self, node: int, commands: Sequence[Command], batch: bool = False) -> Answer:
        answer = Answer()
        machine = self.machines[node]

        def submit() -> None:
            machine.replica.submit(answer, commands, batch)
            machine.replica.turn()

        machine.do(submit)
        return answer

    def put(self, node: int, key: str, value: str, request: RequestId | None = None) -> Answer:
        return self.submit(node, [Command(Verb.PUT, key, value, request=request)])

    def increment(self, node: int, key: str, request: RequestId | None = None) -> Answer:
        return self.submit(node, [Command(Verb.INCREMENT, key, delta=1, request=request)])

    def read(self, node: int, key: str) -> Answer:
        """A linearizable read."""
        answer = Answer()
        machine = self.machines[node]

        def read() -> None:
            machine.replica.read(answer, lambda: machine.store.get(key))
            machine.replica.turn()

        machine.do(read)
        return answer

    def get(self, node: int, key: str) -> str | None:
        """A linearizable read, waited for."""
        answer = self.read(node, key)
        self.run_until(answer.answered, within_s=5)
        return answer.text

    def open_session(self, node: int) -> Session:
        answer = self.submit(node, [Command(Verb.OPEN_SESSION)])
        self.run_until(answer.answered, within_s=5)
        assert answer.ok, answer
        session: Session = answer.value.session
        return session

    # ---------------------------------------------------------------------------------- what must hold always

    def check_order(self, machine: Machine) -> None:
        """All nodes apply the same entries in the same order."""
        if self.two_histories:
            return
        at = len(machine.applied) - 1
        if at == len(self.order):
            self.order.append(machine.applied[at])
        assert self.order[at] == machine.applied[at], f"node {machine.me} applies another order"

    def check_slots(self, machine: Machine) -> None:
        """No slot is chosen with two values, and timestamps increase along a log."""
        for log, acceptor in machine.core.acceptors.items() if not self.two_histories else ():
            for slot in range(max(machine.checked[log], acceptor.base), acceptor.chosen):
                entry = acceptor.entries[slot - acceptor.base]
                first = self.slots.setdefault((log, slot), entry)
                assert first == entry, (
                    f"node {machine.me}: slot {slot} of log {log} is chosen with two values"
                )
                before = self.slots.get((log, slot - 1))
                assert before is None or before.timestamp < entry.timestamp, (
                    f"log {log} goes back in slot {slot}"
                )
            machine.checked[log] = acceptor.chosen

    def assert_equal(self, within_s: float = 5) -> None:
        """All running nodes come to hold the same state, with all applied that was applied anywhere."""
        running = [machine for machine in self.machines.values() if machine.running]
        self.run_until(
            lambda: (
                all(machine.applied == self.order for machine in running)
                and not any(machine.core.in_flight for machine in running)
            ),
            within_s,
        )
        assert len({machine.store.state_digest() for machine in running}) == 1

    def revocations(self) -> int:
        return sum(machine.core.way.revocations for machine in self.machines.values() if machine.running)
