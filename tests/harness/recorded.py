"""Runs that are recorded: the simulator and the scripted cluster, with a Recorder at each node.

Both write into one Trace, in the order in which things happen. The network knows which message it carries, so
that a `delivered` event names the `sent` one, and it adds what no node can see: `lost` and `duplicated`. Who
breaks things adds `crash`, `restart`, `cut`, `heal`, `pause`, `resume`, `wipe` and `violation`.
"""

from collections.abc import Sequence
from typing import Any

from paxoskv.protocol.outbox import Message
from paxoskv.trace.events import Trace
from paxoskv.trace.recorder import Recorder
from tests.harness import scenario, simulator
from tests.harness.scenario import Envelope
from tests.harness.simulator import Profile, Violation

FAULTS = {
    "crash": "crash", "restart": "restart", "heal": "heal", "pause": "pause", "resume": "resume",
    "wiped": "wipe", "damaged": "wipe", "refused": "refused", "calm": "calm",
}  # fmt: skip


# --------------------------------------------------------------------------------------------- the simulator


class RecordedMachine(simulator.Machine):
    """A machine of the simulator whose node is recorded."""

    simulation: "RecordedSimulation"

    def turn(self) -> None:
        assert self.replica is not None
        if self.replica.recorder is None:
            self.replica.recorder = Recorder(self.simulation.recording, self.core)
        super().turn()

    def send(self, to: int, message: Message, call: Any) -> None:
        simulation = self.simulation
        simulation.sending, simulation.copies = simulation.recording.last, 0
        super().send(to, message, call)
        if simulation.copies == 0:
            simulation.lose(simulation.sending, self.node, to, message, "the network drops it")
        elif simulation.copies > 1:
            simulation.recording.add(0, "duplicated", simulation.sending, copies=simulation.copies)
        simulation.sending = 0

    def receive(self, sender: int, message: Message, call: Any, who: tuple[int, int]) -> None:
        self.simulation.received = True
        event = self.simulation.arriving
        if self.paused:
            self.stalled.append(lambda: self._arrives(event, sender, message, call, who))
            return
        self._arrives(event, sender, message, call, who)
        self._wake()

    def _arrives(self, event: int, sender: int, message: Message, call: Any, who: tuple[int, int]) -> None:
        assert self.replica is not None and self.replica.recorder is not None
        recorder = self.replica.recorder
        recorder.arriving = event
        self._step(sender, message, call, who)
        if recorder.arriving:
            recorder.arriving = 0
            self.simulation.lose(event, sender, self.node, message, "refused")


class RecordedSimulation(simulator.Simulation):
    """A run of the simulator, event for event the same as without a recording."""

    machine = RecordedMachine

    def __init__(self, seed: int, profile: Profile, kept: int) -> None:
        self.recording = Trace(lambda: self.now, kept)
        self.sending = self.arriving = self.copies = 0
        self.received = False
        super().__init__(seed, profile)

    def at(self, time: float, action: Any, *arguments: Any) -> None:
        if self.sending and action == self.network._deliver:
            self.copies += 1
            action, arguments = self._carried, (self.sending, *arguments)
        super().at(time, action, *arguments)

    def _carried(self, event: int, sender: int, to: int, message: Message, *more: Any) -> None:
        self.arriving, self.received = event, False
        self.network._deliver(sender, to, message, *more)
        if not self.received:
            down = self.machines[to].replica is None
            self.lose(event, sender, to, message, "the node is down" if down else "the link is cut")
        self.arriving = 0

    def lose(self, event: int, sender: int, to: int, message: Message, why: str) -> None:
        self.recording.add(
            0, "lost", event, to=to, why=why, message=message.__class__.__name__, **{"from": sender}
        )

    def note(self, what: str, node: int, *more: Any) -> None:
        super().note(what, node, *more)
        if what in FAULTS:
            self.recording.add(node, FAULTS[what])
        elif what in ("partition", "one-way", "broken"):
            self.recording.add(0, "cut", how=what, nodes=list(more[0]) if what != "broken" else [node, *more])

    def run(self) -> simulator.Report:
        try:
            return super().run()
        except Violation as violation:
            self.recording.add(0, "violation", reason=str(violation).splitlines()[0].partition(": ")[2])
            raise


# ---------------------------------------------------------------------------------- the scripted cluster


class ScriptedMachine(scenario.Machine):
    """A machine of the scripted cluster, whose node is recorded once the recording has begun."""

    cluster: "RecordedCluster"

    def begin(self) -> None:
        if self.cluster.recording is not None:
            self.observe()
        super().begin()

    def observe(self) -> None:
        self.replica.recorder = Recorder(self.cluster.recording, self.core)

    def arrives(self, envelope: Envelope) -> None:
        """A message is handed in, if this process listens to its sender."""
        if self.disk != envelope.disk or self.refuses(envelope):
            self.cluster.lose(envelope, "refused")
            return
        if self.replica.recorder is not None:
            self.replica.recorder.arriving = envelope.event
        self.receive(envelope.sender, envelope.message)


class RecordedCluster(scenario.Cluster):
    """A scripted cluster that is recorded from its beginning, or from record() on."""

    machine = ScriptedMachine

    def __init__(self, recorded: bool = False, **settings: Any) -> None:
        self.recording: Any = None  # a Trace, once it has begun
        self.trace = Trace(lambda: self.now - self.zero)
        self.zero = 1.0
        self.passed = False
        if recorded:
            self.recording = self.trace
        super().__init__(**settings)

    def record(self) -> None:
        """Begin: time 0 is now."""
        self.recording, self.zero = self.trace, self.now
        for machine in self.machines.values():
            if machine.running:
                machine.observe()

    def add(self, kind: str, node: int = 0, **about: Any) -> None:
        if self.recording is not None:
            self.recording.add(node, kind, **about)

    def lose(self, envelope: Envelope, why: str) -> None:
        self.add(
            "lost", cause=envelope.event, to=envelope.to, why=why,
            message=envelope.message.__class__.__name__, **{"from": envelope.sender},
        )  # fmt: skip

    def post(self, envelope: Envelope) -> None:
        if self.recording is not None:
            envelope = envelope._replace(event=self.recording.last)
        held = sum(len(gate.held) for gate in self.gates)
        self.passed = False
        super().post(envelope)
        if not self.passed and held == sum(len(gate.held) for gate in self.gates):
            cut = frozenset((envelope.sender, envelope.to)) in self.cuts
            self.lose(envelope, "the link is cut" if cut else "the network drops it")

    def deliver(self, envelope: Envelope) -> None:
        self.passed = True
        machine = self.machines[envelope.to]

        def arrive() -> None:
            if machine.running:
                machine.do(lambda: machine.arrives(envelope))
            else:
                self.lose(envelope, "the node is down")

        self.at(self.now + self.delay, arrive)

    def cut(self, one: int, other: int) -> None:
        super().cut(one, other)
        self.add("cut", how="broken", nodes=[one, other])

    def isolate(self, node: int) -> None:
        self.part([node])

    def part(self, side: Sequence[int]) -> None:
        """Cut these nodes off from all others."""
        self.cuts |= {frozenset((a, b)) for a in side for b in self.ids if b not in side}
        self.add("cut", how="partition", nodes=list(side))

    def heal(self) -> None:
        super().heal()
        self.add("heal")

    def crash(self, node: int) -> None:
        self.add("crash", node)
        super().crash(node)

    def restart(self, node: int) -> None:
        self.add("restart", node)
        super().restart(node)

    def wipe(self, node: int) -> None:
        self.add("wipe", node)
        super().wipe(node)

    def pause(self, node: int) -> None:
        self.add("pause", node)
        super().pause(node)

    def resume(self, node: int) -> None:
        self.add("resume", node)
        super().resume(node)
