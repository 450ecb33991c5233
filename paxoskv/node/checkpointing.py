"""When a node makes a checkpoint of its own, and who is answered when it is made.

Four states, one after the other:

    idle        nothing is being done
    preparing   the next segment is being made, in the background
    rolling     the node's state is to be written as the first frame of that segment, or is being written
    making      the state is durable: a process makes the checkpoint of what lies before it

    idle ---- somebody asks, or the journal is long ----> preparing
    preparing ----------------- the segment is there ----> rolling      (the disk is full: back to idle)
    rolling --------------------- the state is durable ----> making
    making ------------------------- made, or failed ----> preparing if somebody has asked meanwhile,
                                                           else idle

When a checkpoint of another node was installed, Replica writes the state unasked: what is idle or preparing
is rolling then. If that happens while a checkpoint is being made, another one is made after it, for nobody:
callers that have asked meanwhile wait for the next.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from paxoskv.multipaxos import Cut
from paxoskv.node.eventlog import log
from paxoskv.node.metrics import Histogram
from paxoskv.node.turns import Turns
from paxoskv.node.writer import Writer
from paxoskv.protocol.core import Core
from paxoskv.storage.checkpoint_process import CheckpointProcess
from paxoskv.storage.data_dir import MANIFEST, Manifest
from paxoskv.wire.codec import NotDone
from paxoskv.wire.structs import Record

SPARE_AGAIN: Final = 0.02  # seconds between two looks whether the next segment is there
CHECKPOINT_AGAIN: Final = 30.0  # seconds after one that failed, unless somebody asks for it


class State(Enum):
    """What is being done for a checkpoint."""

    IDLE = "idle"
    PREPARING = "preparing"
    ROLLING = "rolling"
    MAKING = "making"


@dataclass(eq=False)
class Checkpointing:
    """Decides when a node makes a checkpoint, and answers those who asked for one."""

    core: Core
    writer: Writer
    maker: CheckpointProcess
    turns: Turns
    answer: Callable[[Any, Any], None]  # gets a token and the checkpoint's number, or NotDone
    took: Histogram  # counts how long checkpoints took, in microseconds
    limit: int  # bytes of the journal: if it has more, a checkpoint is made

    def __post_init__(self) -> None:
        self.journal = self.writer.journal
        self.files = self.maker.checkpoints
        self.state = State.IDLE
        self.asking: list[Any] = []  # tokens of the callers that want one that begins from now on
        self.rolling: list[Any] = []  # of those that wait for the state to be written
        self.making: list[Any] = []  # of the callers for whom the checkpoint is being made
        self.writing = False  # the state is being written
        self.due = False  # a state was written while a checkpoint was being made
        self.closed = False
        self.retry_at = 0.0
        self.began = 0.0
        self.made_at = self._found()
        self._roll: Callable[[], None] | None = None

    def start(self, roll: Callable[[], None]) -> None:
        """Make checkpoints from now on; roll() lets a frame soon begin a segment with the node's state."""
        self._roll = roll

    def close(self) -> None:
        """Begin no more."""
        self.closed = True

    def stop(self) -> None:
        """The node stops: nobody waits any more."""
        self.maker.stop()
        for token in [*self.asking, *self.rolling, *self.making]:
            self.answer(token, NotDone("this node is stopping", False))

    def age(self) -> float | None:
        """Seconds since the newest checkpoint was made."""
        return None if self.made_at is None else self.turns.loop.time() - self.made_at

    # ------------------------------------------------------------------------------------------ who wants one

    def ask(self, token: Any) -> None:
        """Somebody wants a checkpoint of what is applied now."""
        self.asking.append(token)
        self._begin()

    def wanted(self) -> None:
        """A peer needs one that is newer than ours."""
        if self.turns.loop.time() >= self.retry_at:
            self._begin()

    def sweep(self) -> None:
        """Look about once a second whether a checkpoint is due.

        It is when the journal is long. It is, too, when a checkpoint of another node was installed and ours
        that should follow was not made, because it failed or the process ended before.
        """
        journal = self.journal
        if journal.full and self.rolling:  # the state waits for room
            tokens, self.rolling = self.rolling, []
            self._refuse(tokens, f"disk full: {journal.full}")
        wanted = journal.bytes > self.limit or journal.rests_on_foreign_checkpoint
        if self.asking or (wanted and self.turns.loop.time() >= self.retry_at):
            self._begin()

    def write(self, records: list[Record], done: Callable[[], None], new_segment: bool) -> None:
        """Replica wants a frame written; if it begins a segment, it is the node's state."""
        if not new_segment:
            self.writer.write(records, done, False)
            return

        def durable() -> None:
            self._state_is_durable()
            done()

        self.writing = True
        if self.state is not State.MAKING:
            self.state = State.ROLLING
        self.writer.write(records, durable, True)

    # --------------------------------------------------------------------------------- from state to state

    def _begin(self) -> None:
        if self.state is State.IDLE and not self.closed:
            self.state = State.PREPARING
            self._prepare()

    def _prepare(self) -> None:
        """Have the next segment made: the event loop does not wait for it when the state is written."""
        if self.state is not State.PREPARING:  # a state was written unasked, meanwhile
            return
        spare = self.writer.prepare()
        if self.journal.full:
            self.state = State.IDLE
            tokens, self.asking = self.asking, []
            self._failed(f"disk full: {self.journal.full}", tokens)
        elif spare:
            assert self._roll, "nobody asks before start()"
            self.state = State.ROLLING
            self.rolling, self.asking = self.asking, []  # all that they were told is applied will be in it
            self._roll()
            self.turns.wake()
        else:
            self.turns.after(SPARE_AGAIN, self._prepare)

    def _state_is_durable(self) -> None:
        self.writing = False
        if self.state is State.MAKING:
            self.due = True
        else:
            self._make()

    def _make(self) -> None:
        rolled = self.journal.rolled
        assert rolled is not None, "a frame has begun a segment"
        self.state = State.MAKING
        self.making, self.rolling = self.rolling, []
        self.due = False
        self.began = self.turns.loop.time()
        self.maker.make(rolled, self._made, self._not_made)

    def _made(self, manifest: Manifest, cut: Cut) -> None:
        self.made_at = self.turns.loop.time()
        self.took.add(int((self.made_at - self.began) * 1e6))
        self.journal.checkpointed(manifest)
        self.core.checkpointed(cut)
        self.files.remove_old()
        saved = manifest.checkpoint
        seconds = round(self.made_at - self.began, 3)
        log("checkpoint", number=saved.number, bytes=saved.size, seconds=seconds)
        tokens, self.making = self.making, []
        for token in tokens:
            self.answer(token, saved.number)
        self._go_on()

    def _not_made(self, reason: str) -> None:
        tokens, self.making = self.making, []
        self._failed(reason, tokens)
        self._go_on()

    def _failed(self, reason: str, tokens: list[Any]) -> None:
        """None was made for these; the one before stays."""
        log("checkpoint-failed", "warning", reason=reason)
        self.retry_at = self.turns.loop.time() + CHECKPOINT_AGAIN
        self._refuse(tokens, reason)

    def _refuse(self, tokens: list[Any], reason: str) -> None:
        for token in tokens:
            self.answer(token, NotDone(f"no checkpoint was made: {reason}", False))
        self.turns.wake()

    def _go_on(self) -> None:
        if self.due:
            self._make()
            return
        self.state = State.ROLLING if self.writing else State.IDLE
        if self.asking:
            self._begin()

    def _found(self) -> float | None:
        """When the checkpoint that was found was made, by this loop's clock."""
        try:
            age = time.time() - (self.files.directory / MANIFEST).stat().st_mtime
        except OSError:
            return None
        return self.turns.loop.time() - max(age, 0.0)
