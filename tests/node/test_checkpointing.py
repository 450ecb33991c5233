"""When a node makes a checkpoint of its own: the four states, and who is answered when."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paxoskv.multipaxos import Cut
from paxoskv.node.checkpointing import CHECKPOINT_AGAIN, Checkpointing, State
from paxoskv.storage.data_dir import Manifest, Saved
from paxoskv.wire.codec import NotDone

NOWHERE = Path("nowhere")


class Bench:
    """Checkpointing with a disk, a clock and a process that do what a test says."""

    def __init__(self) -> None:
        self.now = 100.0
        self.rolls = 0  # how often Replica was told to write the state
        self.made: list[tuple[int, int]] = []  # what checkpoints were begun with
        self.written: list[Callable[[], None]] = []  # what is called when a frame is durable
        self.answers: list[tuple[Any, Any]] = []
        self.timers: list[Callable[[], None]] = []
        self.spare = True
        self.took: list[int] = []
        self.covered: list[Cut] = []
        self.journal = SimpleNamespace(
            rolled=None,
            full=None,
            rests_on_foreign_checkpoint=False,
            bytes=0,
            checkpointed=lambda manifest: None,
        )
        writer = SimpleNamespace(
            journal=self.journal,
            prepare=lambda: self.spare and not self.journal.full,
            write=lambda records, done, new: self.written.append(done),
        )
        files = SimpleNamespace(directory=NOWHERE, remove_old=lambda: None)
        maker = SimpleNamespace(checkpoints=files, make=self._make, stop=lambda: None)
        turns = SimpleNamespace(
            loop=SimpleNamespace(time=lambda: self.now),
            wake=lambda: None,
            after=lambda seconds, call: self.timers.append(call),
        )
        parts: Any = (
            SimpleNamespace(checkpointed=self.covered.append), writer, maker, turns,
            lambda token, value: self.answers.append((token, value)), SimpleNamespace(add=self.took.append),
        )  # fmt: skip
        self.part = Checkpointing(*parts, 1000)
        self.part.start(self._roll)

    def _roll(self) -> None:
        self.rolls += 1

    def _make(self, begin: tuple[int, int], done: Callable[..., None], failed: Callable[[str], None]) -> None:
        self.made.append(begin)
        self.done, self.failed = done, failed

    def write_state(self) -> None:
        """Replica hands the state over to be written."""
        self.part.write([], lambda: None, True)

    def durable(self, *rolled: int) -> None:
        """The state is durable, and stands here."""
        self.journal.rolled = rolled
        self.written.pop()()

    def roll(self, *rolled: int) -> None:
        self.write_state()
        self.durable(*rolled)

    def finish(self, number: int) -> None:
        """The checkpoint is made."""
        self.done(Manifest(Saved(number, 1, 1), None, *self.made[-1]), Cut((number, 0), {}, 0))

    def refusals(self) -> list[tuple[Any, str]]:
        return [(token, value.reason) for token, value in self.answers if isinstance(value, NotDone)]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_checkpoint_goes_through_all_four_states(bench: Bench) -> None:
    bench.spare = False
    assert bench.part.state is State.IDLE
    bench.part.ask("backup")
    assert bench.part.state is State.PREPARING and bench.rolls == 0
    bench.spare = True
    bench.timers.pop()()
    assert bench.part.state is State.ROLLING and bench.rolls == 1
    bench.roll(2, 100)
    assert bench.part.state is State.MAKING and bench.made == [(2, 100)]
    bench.now += 3
    bench.finish(1)
    assert bench.part.state is State.IDLE
    assert bench.answers == [("backup", 1)] and bench.took == [3_000_000]
    assert bench.covered == [Cut((1, 0), {}, 0)]
    bench.now += 5
    assert bench.part.age() == 5


def test_a_frame_that_begins_no_segment_is_none_of_its_business(bench: Bench) -> None:
    called: list[str] = []
    bench.part.write([], lambda: called.append("done"), False)
    bench.written.pop()()
    assert called == ["done"] and bench.part.state is State.IDLE


def test_who_asks_while_one_is_being_made_waits_for_the_next(bench: Bench) -> None:
    """Not for one whose state was written before it asked."""
    bench.part.ask("first")
    bench.write_state()
    bench.part.ask("second")
    bench.durable(2, 100)
    bench.part.ask("third")
    bench.finish(1)
    assert bench.answers == [("first", 1)] and bench.part.state is State.ROLLING and bench.rolls == 2
    bench.roll(3, 200)
    bench.finish(2)
    assert bench.answers[1:] == [("second", 2), ("third", 2)] and bench.part.state is State.IDLE


def test_a_state_that_replica_writes_unasked_makes_a_checkpoint_that_answers_nobody(bench: Bench) -> None:
    """A checkpoint of another node was installed, while the segment for ours was being made."""
    bench.spare = False
    bench.part.ask("backup")
    bench.write_state()
    assert bench.part.state is State.ROLLING
    bench.spare = True
    bench.timers.pop()()
    assert bench.rolls == 0, "the timer comes too late"
    bench.durable(2, 100)
    bench.finish(1)
    assert bench.answers == [] and bench.part.state is State.ROLLING and bench.rolls == 1
    bench.roll(3, 200)
    bench.finish(2)
    assert bench.answers == [("backup", 2)]


def test_a_state_that_is_durable_while_a_checkpoint_is_made_is_made_one_of_afterwards(bench: Bench) -> None:
    bench.part.ask("backup")
    bench.roll(2, 100)
    bench.roll(3, 200)
    bench.part.ask("late")
    assert bench.made == [(2, 100)], "one at a time"
    bench.finish(1)
    assert bench.made == [(2, 100), (3, 200)] and bench.answers == [("backup", 1)]
    bench.finish(2)
    assert bench.part.state is State.ROLLING and len(bench.answers) == 1, "late asked after frame 200"


def test_a_state_that_is_still_being_written_when_the_checkpoint_is_made_is_waited_for(bench: Bench) -> None:
    """Else who asks now would be answered with the number of one that lacks what it was told before."""
    bench.part.ask("backup")
    bench.roll(2, 100)
    bench.write_state()
    bench.part.ask("late")
    bench.finish(1)
    assert bench.part.state is State.ROLLING and bench.rolls == 1
    bench.durable(3, 200)
    bench.finish(2)
    assert bench.answers == [("backup", 1)] and bench.rolls == 2
    bench.roll(4, 300)
    bench.finish(3)
    assert bench.answers[1:] == [("late", 3)]


def test_the_length_of_the_journal_and_a_foreign_checkpoint_begin_one_a_failure_delays_that(
    bench: Bench,
) -> None:
    bench.part.sweep()
    assert bench.part.state is State.IDLE
    bench.journal.bytes = 1001
    bench.part.sweep()
    assert bench.part.state is State.ROLLING
    bench.roll(2, 100)
    bench.failed("the process was killed")
    bench.part.sweep()
    bench.part.wanted()
    assert bench.part.state is State.IDLE, "not at once"
    bench.now += CHECKPOINT_AGAIN
    bench.journal.bytes, bench.journal.rests_on_foreign_checkpoint = 0, True
    bench.part.sweep()
    assert bench.part.state is State.ROLLING


def test_a_checkpoint_that_fails_is_told_and_whoever_asks_gets_another_try_at_once(bench: Bench) -> None:
    bench.part.ask("backup")
    bench.roll(2, 100)
    bench.part.ask("late")
    bench.failed("the process was killed")
    assert bench.refusals() == [("backup", "no checkpoint was made: the process was killed")]
    assert bench.part.state is State.ROLLING


def test_a_peer_that_needs_one_is_heard_as_long_as_none_has_failed(bench: Bench) -> None:
    bench.part.wanted()
    bench.part.wanted()
    assert bench.part.state is State.ROLLING and bench.rolls == 1


def test_a_full_disk_refuses_who_waits_for_a_segment_or_for_the_state_to_be_written(bench: Bench) -> None:
    bench.journal.full = "no room"
    bench.part.ask("first")
    assert bench.refusals() == [("first", "no checkpoint was made: disk full: no room")]
    assert bench.part.state is State.IDLE
    bench.journal.full = None
    bench.part.ask("second")
    bench.write_state()
    bench.journal.full = "no room"
    bench.part.sweep()
    assert bench.refusals()[1:] == [("second", "no checkpoint was made: disk full: no room")]
    bench.journal.full = None
    bench.durable(2, 100)
    bench.finish(1)
    assert len(bench.answers) == 2, "there is room again: it is made all the same"


def test_a_node_that_stops_begins_none_and_answers_all_who_wait(bench: Bench) -> None:
    bench.part.ask("making")
    bench.roll(2, 100)
    bench.part.ask("asking")
    bench.part.close()
    bench.finish(1)
    assert bench.part.state is State.IDLE
    bench.part.stop()
    assert bench.answers[0] == ("making", 1)
    assert bench.refusals() == [("asking", "this node is stopping")]
