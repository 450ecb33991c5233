"""The golden trace: what nodes did in many simulated runs, as short hashes, to compare a later version with.

    scripts/simulate.py --golden              all 200 seeds of every profile; says which runs differ
    scripts/simulate.py --golden --record     writes the hashes down anew, after a change that is meant

Whoever changes how the core is written, and not what it does, must leave every hash equal. A hash covers, in
order and with their times, all that crosses the boundary of a node: the messages that it sends, the frames
that it journals, the answers that it gives, its turns, and the hash of what it has applied. It covers bytes
as they are encoded, never the name of a class or an attribute or a text for people. So it does not depend on
what the code is called, on PYTHONHASHSEED, or on whether the core is compiled.

tests/harness/golden.txt has a line for every 20 seeds of a profile, four hexadecimal digits for each seed.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from struct import pack
from typing import Any, Final
from zlib import crc32

from paxoskv.protocol.outbox import Message
from paxoskv.wire.codec import encode
from paxoskv.wire.structs import Frame, Record, Result
from tests.harness.simulator import PROFILES, Machine, Simulation

FILE: Final = Path(__file__).with_name("golden.txt")
SEEDS: Final = range(1, 201)
FEW: Final = range(1, 4)  # seeds of every profile that the test suite checks
A_LINE: Final = 20  # seeds
BRIEF: Final = 0.3  # of a profile's time with faults: in short runs, more begins and ends
WHOLE: Final = 10  # of so many seeds one has all of that time


def canonical(value: Any) -> bytes:
    """The bytes that stand for an answer to a client: its values, without the texts of exceptions."""
    if isinstance(value, BaseException):
        return type(value).__name__.encode()
    if isinstance(value, Result) and value.transacted is None:
        value = value[:4]  # as it was before there were transactions
    if isinstance(value, tuple | list):
        return b"(" + b",".join(canonical(item) for item in value) + b")"
    return repr(value).encode()


class RecordedMachine(Machine):
    """A machine that hashes what its node does into the simulation's hash."""

    simulation: "RecordedSimulation"

    def send(self, to: int, message: Message, call: Any) -> None:
        self.simulation.record(b"send", self.node, encode(message), to)
        super().send(to, message, call)

    def write(self, records: list[Record], done: Callable[[], None], new_segment: bool) -> None:
        self.simulation.record(b"write", self.node, encode(Frame(records)), new_segment)
        super().write(records, done, new_segment)

    def answer(self, token: Any, value: Any) -> None:
        client, operation, attempt = token
        self.simulation.record(b"answer", client.number, canonical(value), operation.number, attempt)
        super().answer(token, value)

    def _after_turn(self) -> None:
        self.simulation.record(b"turn", self.node, b"", *self.store.position, self.store.hash, self.core.busy)
        super()._after_turn()


class RecordedSimulation(Simulation):
    """A run whose nodes' doings are hashed."""

    machine = RecordedMachine
    golden = 0

    def record(self, what: bytes, node: int, data: bytes, *numbers: int) -> None:
        header = pack(f"<{len(numbers)}qd", *numbers, self.now)
        self.golden = crc32(data, crc32(header, crc32(what, self.golden ^ node)))


def trace(seed: int, profile: str) -> str:
    """The hash of one run. Violation if it breaks a rule."""
    settings = PROFILES[profile]
    if seed % WHOLE:
        settings = replace(settings, seconds=settings.seconds * BRIEF)
    simulation = RecordedSimulation(seed, settings)
    simulation.run()
    return f"{crc32(repr(simulation.random.random()).encode(), simulation.golden) & 0xFFFF:04x}"


def recorded() -> dict[tuple[str, int], str]:
    """The hashes that were written down, by profile and seed."""
    found: dict[tuple[str, int], str] = {}
    for line in FILE.read_text().splitlines():
        profile, first, *hashes = line.split()
        found.update({(profile, seed): value for seed, value in enumerate(hashes, int(first))})
    return found


def differing(found: dict[tuple[str, int], str]) -> list[str]:
    """Which of these runs are not as they were written down."""
    known = recorded()
    return [f"{profile} {seed}" for (profile, seed), value in found.items() if known[profile, seed] != value]


def traces(seeds: Sequence[int], jobs: int = 1) -> dict[tuple[str, int], str]:
    """The hashes of these seeds of every profile."""
    runs = [(profile, seed) for profile in PROFILES for seed in seeds]
    if jobs == 1:
        return {(profile, seed): trace(seed, profile) for profile, seed in runs}
    with ProcessPoolExecutor(jobs) as pool:
        hashes = pool.map(trace, [seed for _, seed in runs], [profile for profile, _ in runs], chunksize=20)
        return dict(zip(runs, hashes, strict=True))


def write_down(jobs: int) -> None:
    """Make tests/harness/golden.txt anew."""
    found = traces(SEEDS, jobs)
    lines = [
        f"{profile} {first} {' '.join(found[profile, seed] for seed in range(first, first + A_LINE))}\n"
        for profile in PROFILES
        for first in SEEDS[::A_LINE]
    ]
    FILE.write_text("".join(lines))
