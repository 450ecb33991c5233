"""The loop around the core: one node's protocol, store and journal joined, without any socket, file or clock.

The server and the simulator both run it. The code that embeds a Replica gives it four things: a clock, `send`
(to a peer), `write` (a frame of records, made durable), `answer` (to a client). It calls step(), submit(),
read() and tick() as things happen, and turn() once when they have all been handed in:

    receive -> step the core -> send what may leave at once -> journal -> send the rest -> apply -> answer

The core is a Node, or Single: the same service without replication, for comparison.

Checkpoints are files, so the embedding has them: class CheckpointFiles says what it offers. Which are wanted
and how they come from one node to another is decided here.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from paxoskv.multipaxos import Applied, Cut
from paxoskv.node.expiry import MOST, Expiry
from paxoskv.protocol.core import Core
from paxoskv.protocol.outbox import Message
from paxoskv.state.store import Store
from paxoskv.trace.recorder import Recorder
from paxoskv.wire.codec import (
    Expired,
    Forgotten,
    NotDone,
    Unknown,
    encode,
)
from paxoskv.wire.structs import (
    Accept,
    Batch,
    Chunk,
    Command,
    FetchCheckpoint,
    Fetched,
    Outcome,
    Record,
    RequestId,
    Result,
    Session,
)
from paxoskv.wire.validation import MAX_BATCH, MAX_CLIENT_FRAME

WINDOW: Final = 1  # entries not applied yet; meanwhile, what arrives gathers in the next one
GATHER: Final = 0.005  # seconds: an entry waits no longer for more commands, however long the last one took
QUEUE: Final = 20_000  # commands that may wait for a place in an entry; beyond that the node is busy
CROWD: Final = 2_000  # commands or reads that wait; beyond that, a connection adds one call at a time
BACKLOG: Final = 10_000  # records that may wait for the disk
ENTRY_BYTES: Final = MAX_CLIENT_FRAME  # encoded commands in one entry, about: one client's largest frame
ASK_AGAIN: Final = 0.05  # seconds: a checkpoint's piece that has not come is asked for again; then doubled
ASK_AT_MOST: Final = 1.0  # seconds: the longest such pause
CHUNK_PAUSE: Final = 0.01  # seconds between two pieces: other processes get the processor meanwhile
GIVE_UP: Final = 5.0  # seconds without any piece: then another node may have a checkpoint

NOBODY: Final = object()  # whose commands are our own: no answer is due

Key = tuple[int, int, int, int]  # which command of which session


class CheckpointFiles(Protocol):
    """The files of checkpoints: those that this node hands out, and the one that it takes from another."""

    def chunk(self, number: int, offset: int) -> Chunk:
        """A piece of a checkpoint (0: the newest). Chunk.number is 0 if there is none such (any more)."""

    def begin(self, size: int) -> None:
        """Begin to take a checkpoint of this size; drop one that is being taken. OSError: no room."""

    def write(self, offset: int, data: bytes) -> None:
        """A piece of it. OSError: drop() it."""

    def drop(self) -> None:
        """Give up what is being taken."""

    def finish(
        self,
        check: int,
        done: Callable[[int, Cut, dict[str, Any]], None],
        failed: Callable[[str], None],
    ) -> None:
        """All pieces are there: verify them against the CRC-32 and store them durably.

        Then done(number, where it stands, state), or failed(reason): later, never from inside the call.
        """


class Request:
    """A client's request that waits for its answer. `token` belongs to the code that embeds the replica."""

    __slots__ = ("arrived", "batch", "commands", "key", "proposed", "token")

    def __init__(self, token: Any, commands: Sequence[Command], batch: bool, arrived: float) -> None:
        self.token = token
        self.commands = commands
        self.batch = batch  # whether the answer is a list of results
        self.arrived = arrived
        self.proposed = False
        self.key: Key | None = None  # (session, sequence) of a single command


class Read:
    """A read that waits for its turn. Two of them are never equal, whatever their tokens."""

    __slots__ = ("arrived", "question", "token")

    def __init__(self, token: Any, question: Callable[[], Any], arrived: float) -> None:
        self.token = token
        self.question = question
        self.arrived = arrived


class Gathering:
    """How long the next entry waits for more commands.

    The clients of an entry that was applied mostly ask again at once: let that join the next one. Where there
    were several, and fewer wait by now, the next entry waits until all are back, but no longer than the last
    one took: the same work is done with fewer entries under load.
    """

    def __init__(self, pays: bool) -> None:
        """`pays`: whether an entry costs so much that waiting can pay."""
        self.pays = pays
        self.proposed_at = 0.0  # when the last entry was
        self.expected = 0  # requests that the next entry may come to have
        self.until = 0.0  # how long it waits for them

    def applied(self, answered: int, waiting: int, now: float) -> None:
        """An entry of ours was applied: `answered` requests were in it, `waiting` others wait by now."""
        if self.pays:
            self.expected = waiting + answered if answered > max(waiting, 1) else 0
            self.until = now + min(now - self.proposed_at, GATHER)

    def waits(self, waiting: int, now: float) -> bool:
        """Whether the next entry waits for more than these requests."""
        return waiting < self.expected and now < self.until


class Download:
    """Takes a checkpoint from a peer: one piece at a time, asked for again until it comes.

    A piece that comes twice, or late, is known by its number and offset. If the peer has replaced the
    checkpoint meanwhile, the new one is taken from its beginning.
    """

    def __init__(self, checkpoints: CheckpointFiles, send: Callable[[int, Message, Any], None]) -> None:
        self.checkpoints = checkpoints
        self.send = send
        self.peer: int | None = None  # which node it is taken from; None: none is taken
        self.number = 0  # which; 0: the newest, which has not been begun
        self.size = 0
        self.check = 0
        self.offset = 0  # bytes of it that are there
        self.progress = 0.0  # when the last piece came
        self.ask_at: float | None = None  # when to ask for the next piece; None: it has been asked for
        self.asked = 0.0
        self.asks = 0  # for the same piece
        self.finishing = False  # all is there, and being verified
        self.taken = 0  # checkpoints, in this life, or how often one was replaced too soon

    def start(self, peer: int, now: float) -> None:
        """Take the peer's newest checkpoint, unless one is being taken."""
        if self.peer is None:
            self.peer = peer
            self._begin(now)

    def tick(self, now: float) -> None:
        """Ask again for what has not come; in the end, give up."""
        if self.peer is None or self.finishing:
            return
        if self.ask_at is not None:
            if now >= self.ask_at:
                self._ask(now)
        elif now - self.progress >= GIVE_UP:
            self.stop()
        elif now - self.asked >= min(ASK_AGAIN * (1 << self.asks), ASK_AT_MOST):
            self.asks = min(self.asks + 1, 5)
            self._ask(now)

    def on_chunk(self, sender: int, chunk: Chunk, now: float) -> bool:
        """A piece; True if it was the last one, and finish() is due."""
        if sender != self.peer or self.finishing:
            return False
        if self.number and chunk.number != self.number:
            if not chunk.number:  # it took too long
                self.taken += 1
                self._begin(now)
            return False  # else a late piece of a checkpoint that was given up
        if not chunk.number or chunk.size < self.offset + len(chunk.data) or not chunk.data:
            self.stop()
            return False
        if chunk.offset != self.offset or not self._keep(chunk):
            return False
        self.offset += len(chunk.data)
        self.progress, self.asks = now, 0
        self.finishing = self.offset == self.size
        if self.finishing:
            self.taken += 1
        elif self.taken:  # the others have left us behind again: no pauses this time
            self._ask(now)
        else:
            self.ask_at = now + CHUNK_PAUSE
        return self.finishing

    def stop(self) -> None:
        """Begin anew when the core asks for it, perhaps with another peer."""
        if self.number:
            self.checkpoints.drop()
        self.peer, self.number, self.offset, self.finishing = None, 0, 0, False

    def _keep(self, chunk: Chunk) -> bool:
        """Write it to the disk; False if there is no room, which ends the download."""
        try:
            if not self.number:
                self.number, self.size, self.check = chunk.number, chunk.size, chunk.check
                self.checkpoints.begin(chunk.size)
            self.checkpoints.write(chunk.offset, chunk.data)
        except OSError:
            self.stop()
            return False
        return True

    def _begin(self, now: float) -> None:
        self.number, self.offset, self.asks, self.progress = 0, 0, 0, now
        self._ask(now)

    def _ask(self, now: float) -> None:
        self.asked, self.ask_at = now, None
        self.send(self.peer or 0, FetchCheckpoint(self.number, self.offset), None)


class Replica:
    """One node without its sockets. See the module's docstring for who calls what."""

    def __init__(
        self,
        core: Core,
        store: Store,
        clock: Callable[[], float],
        send: Callable[[int, Message, Any], None],
        write: Callable[[list[Record], Callable[[], None], bool], None],
        answer: Callable[[Any, Any], None],
        checkpoints: CheckpointFiles | None = None,
        wanted: Callable[[], None] | None = None,
    ) -> None:
        """Join a core and a store.

        `write(frame, done, new_segment)` must call done() later, when the frame is durable, and never from
        inside the call. `new_segment`: the frame begins one, and when it is durable, a checkpoint can be made
        of all segments before it.
        `answer(token, value)`: the value is a Result, a list of them, whatever read()'s question returned, or
        one of the interface's exceptions.
        `wanted()`: a peer needs a newer checkpoint of ours: make one, soon, by roll(), unless one is being
        made. Without it roll() is called at once.
        """
        self.core = core
        self.store = store
        self.clock = clock
        self.send = send
        self.write = write  # in the server: Checkpointing.write, then Writer.write and Writer.work
        self.answer = answer
        self.window = WINDOW
        self.batch = min(core.batch, MAX_BATCH)  # commands in one entry, at most, unless of one request
        self.gathering = Gathering(core.gathers)
        self.queue: list[Request] = []
        self.queued = 0  # commands in `queue`
        self.open: dict[Request, None] = {}  # proposed or queued, in order of arrival
        self.repeats: dict[Key, list[Request]] = {}  # repeats that wait for the first attempt
        self.reading: dict[Read, None] = {}  # in order of arrival
        self.records: list[Record] = []  # for the next frame
        self.when_durable: list[tuple[int, Message, Any]] = []  # messages that wait for it
        self.flush_now = False  # whether somebody waits for the next frame; else it waits for more
        self.writing = False
        self.rolling = False  # whether a frame is to begin a segment, see roll()
        self.applied_is_journaled = False  # whether a frame was written since roll(): it says what is applied
        self.wanted = wanted or self.roll
        self.expiry = Expiry(store, core.me)
        self.download = Download(checkpoints, self._send) if checkpoints else None
        self.installed = 0  # checkpoints of others, in this life
        self.recorder: Recorder | None = None  # is told what happens; mostly None
        self.entries_applied = self.commands_applied = 0
        self.frames = 0
        self.batches = [0] * 65  # entries proposed, by the bit length of how many commands they hold
        self.batched = 0  # commands in all of them

    # -------------------------------------------------------------------------------------- what clients want

    def submit(self, token: Any, commands: Sequence[Command], batch: bool = False) -> None:
        """Take commands that are to be applied in order, with nothing in between.

        The answer comes through `answer`, perhaps at once.
        """
        if not self.core.ready:
            self.answer(
                token,
                NotDone(
                    "this node cannot propose now: it does not lead its log, or reaches no leader", False
                ),
            )
            return
        if self.queued + len(commands) > QUEUE or len(self.open) > QUEUE:
            self.answer(token, NotDone("busy: too many commands wait", False))
            return
        if self.recorder is not None:
            self.recorder.asked(token, commands)
        request = Request(token, commands, batch, self.clock())
        if not batch and commands[0].request is not None:
            identity: RequestId = commands[0].request
            session: Session = identity.session
            key = (session.timestamp, session.owner, session.index, identity.sequence)
            waiting = self.repeats.get(key)
            if waiting is not None:
                waiting.append(request)
                self.open[request] = None
                return
            self.repeats[key] = []
            request.key = key
        self.open[request] = None
        self.queue.append(request)
        self.queued += len(commands)

    def read(self, token: Any, question: Callable[[], Any]) -> None:
        """Ask the store when it holds everything that was answered before this call: a linearizable read."""
        if not self.core.joined:
            self.answer(token, NotDone("this node is rejoining the cluster", False))
            return
        if len(self.reading) >= QUEUE:
            self.answer(token, NotDone("busy: too many reads wait", False))
            return
        if self.recorder is not None:
            self.recorder.asked(token, ())
        read = Read(token, question, self.clock())
        self.reading[read] = None
        self.core.read(read)

    def expire(self, before: float) -> None:
        """Answer what arrived before this moment and still waits: nobody waits without end."""
        for request in [request for request in self.open if request.arrived < before]:
            if request.proposed or request not in self.queue:
                self._finish(request, Unknown("no quorum has answered in time"))
            else:
                self.queue.remove(request)
                self.queued -= len(request.commands)
                self._finish(request, NotDone("not proposed in time", False))
        late = dict.fromkeys(read for read in self.reading if read.arrived < before)  # a set has no order
        if late:
            self.core.forget_reads(late)
        for read in late:
            self._answer_read(read, NotDone("no quorum has answered in time", False))

    @property
    def crowded(self) -> bool:
        return self.queued > CROWD or len(self.reading) > CROWD

    @property
    def pending(self) -> int:
        return len(self.open) + len(self.reading)

    # ----------------------------------------------------------------------------------------------- the loop

    def step(self, sender: int, message: Message, call: Any = None) -> None:
        """A peer's message; turn() must follow.

        While the disk hangs, entries are dropped as if they had been lost: they would fill the memory.
        """
        if len(self.records) > BACKLOG and isinstance(message, Accept | Fetched):
            return
        if self.recorder is not None:
            self.recorder.delivered(sender, message)
        if message.__class__ in TRANSFER:
            self._transfer(sender, message, call)
        else:
            self.core.step(sender, message, self.clock(), call)

    def tick(self) -> None:
        """Time has passed; turn() must follow."""
        if self.recorder is not None:
            self.recorder.ticked()
        now = self.clock()
        self.core.tick(now)
        if self.download:
            self.download.tick(now)
        if self.core.ready and self.queued <= QUEUE - MOST and len(self.open) < QUEUE:
            over = self.expiry.tick(now)
            if over:
                self.submit(NOBODY, over, batch=True)

    def turn(self) -> None:
        """Carry out what the core wants, until it wants nothing more."""
        now = self.clock()
        again = True
        while again:
            if self.queue:
                self._propose(now)
            ready = self.core.drain(now, bool(self.queue))
            if self.recorder is not None:
                self.recorder.drained(ready)
            again = self._dispatch(ready.send, now)
            self.records += ready.journal
            self.when_durable += ready.send_after
            self.flush_now = self.flush_now or ready.flush_now
            if not self.writing:
                again |= self._begin_frame(now)
            for applied in ready.apply:
                self._apply(applied)
            for read in ready.reads:
                self._answer_read(read, read.question())
            for token in ready.lost:
                for request in token:
                    self._finish(request, Unknown("it was overtaken by a checkpoint, which may contain it"))
            if ready.checkpoint_from is not None and self.download:
                self.download.start(ready.checkpoint_from, now)

    @property
    def turn_due(self) -> float | None:
        """When a turn must follow, whatever happens until then; None: none must.

        It is for an entry that could leave, but waits for more commands, or to fetch the next piece.
        """
        due = self.core.turn_due
        if self.queue and self.core.in_flight < self.window:
            until = self.gathering.until
            return until if due is None else min(due, until)
        return due

    def _send(self, to: int, message: Message, call: Any) -> None:
        self._dispatch([(to, message, call)], 0.0)

    def _dispatch(self, messages: list[tuple[int, Message, Any]], now: float) -> bool:
        """Send; True if the core has had a message from itself."""
        own = False
        for to, message, call in messages:
            if to == self.core.me:
                self.core.step(to, message, now, call)
                own = True
            else:
                if self.recorder is not None:
                    self.recorder.sent(to, message)
                self.send(to, message, call)
        return own

    def _begin_frame(self, now: float) -> bool:
        """Write what is waited for, or a state; send what waits for no record. True: as _dispatch()."""
        if (self.records and self.flush_now) or (self.rolling and self.core.drained):
            self._write_frame()
        elif self.when_durable and not self.records:
            self.flush_now = False
            after, self.when_durable = self.when_durable, []
            return self._dispatch(after, now)
        return False

    def _write_frame(self) -> None:
        """Write one frame; the next follows when this one is durable, so that only the last can be torn."""
        new_segment = self.rolling and self.applied_is_journaled and self.core.drained
        self.applied_is_journaled = self.rolling
        if new_segment:
            self.rolling = False
            self.records = self.core.state(self.records)
        else:
            self.records += self.core.notes()
        records, self.records = self.records, []
        after, self.when_durable = self.when_durable, []
        self.writing, self.flush_now = True, False
        self.frames += 1
        if self.recorder is not None:
            self.recorder.journaled()
        self.write(records, lambda: self._durable(after), new_segment)

    def _durable(self, after: list[tuple[int, Message, Any]]) -> None:
        self.writing = False
        if self.recorder is not None:
            self.recorder.durable()
        self._dispatch(after, self.clock())
        self.turn()

    def _propose(self, now: float) -> None:
        """Gather what waits into one entry, unless enough are in flight, or more is expected.

        So batches grow by themselves under load.
        """
        core = self.core
        if not core.ready:
            for request in self.queue:
                self._finish(
                    request,
                    NotDone("this node cannot propose any more: it has lost its log, or the leader", False),
                )
            self.queue, self.queued = [], 0
        while self.queue and core.in_flight < self.window and core.has_room:
            if self.gathering.waits(len(self.queue), now):
                return
            self.gathering.proposed_at = now
            requests: list[Request] = []
            commands: list[Command] = []
            size = 0
            for request in self.queue:
                grows = _size(request.commands) if len(self.queue) > 1 else 0
                if requests and (
                    size + grows > ENTRY_BYTES or len(commands) + len(request.commands) > self.batch
                ):
                    break
                size += grows
                requests.append(request)
                commands += request.commands
                request.proposed = True
            del self.queue[: len(requests)]
            self.queued -= len(commands)
            self.batches[len(commands).bit_length()] += 1
            self.batched += len(commands)
            payload = encode(Batch(commands, core.origin()))
            if self.recorder is not None:
                self.recorder.proposed(payload, [request.token for request in requests])
            core.propose(payload, requests)

    def _apply(self, applied: Applied) -> None:
        if self.recorder is not None:
            self.recorder.applied(applied)
        results = self.store.apply(applied.timestamp, applied.owner, applied.payload)
        self.core.hashed(self.store.position, self.store.hash)
        self.entries_applied += 1
        self.commands_applied += len(results)
        if applied.token is None:
            return
        self.gathering.applied(len(applied.token), len(self.queue), self.clock())
        at = 0
        for request in applied.token:
            count = len(request.commands)
            self._finish(request, results[at : at + count] if request.batch else refusal(results[at]))
            at += count

    # -------------------------------------------------------------------------------------------- checkpoints

    def roll(self) -> None:
        """Let a frame begin a new segment, so that a checkpoint can be made; turn() must follow.

        The next frame notes what is applied now, so that the checkpoint has it. The frame after that begins
        the segment.
        """
        self.applied_is_journaled = False
        self.rolling = True

    def _transfer(self, sender: int, message: Message, call: Any) -> None:
        if not self.download:
            return
        checkpoints = self.download.checkpoints
        if message.__class__ is FetchCheckpoint:
            chunk = checkpoints.chunk(message.number, message.offset)
            if not message.number and (not chunk.number or self.core.overtook(sender)):
                chunk = Chunk(0, 0, 0, message.offset, b"")  # none that would help
                self.wanted()
            self._send(sender, chunk, call)
        elif self.download.on_chunk(sender, message, self.clock()):
            stop = self.download.stop
            checkpoints.finish(self.download.check, self._install, lambda reason: stop())

    def _install(self, number: int, cut: Cut, state: dict[str, Any]) -> None:
        """A checkpoint of another node is durable here, as this number: merge it.

        Nothing that rests on it leaves before the record is durable that tells a restart to do the same. A
        checkpoint of our own is due: until then the journal does not reach further back than this one.
        """
        assert self.download, "only what was asked for is installed"
        self.download.stop()
        self.installed += 1
        if self.core.install(cut, self.clock(), number):
            self.store.load_state(state)
            self.core.hashed(self.store.position, self.store.hash)
        self.roll()
        self.turn()

    def _answer_read(self, read: Read, value: Any) -> None:
        del self.reading[read]
        if self.recorder is not None:
            self.recorder.answered(read.token, value)
        self.answer(read.token, value)

    def _finish(self, request: Request, value: Any) -> None:
        if request in self.open:
            del self.open[request]
            if self.recorder is not None:
                self.recorder.answered(request.token, value)
            if request.token is not NOBODY:
                self.answer(request.token, value)
        if request.key is not None:
            for repeat in self.repeats.pop(request.key, ()):
                self._finish(repeat, value)


# Messages between replicas; all others are between cores.
TRANSFER: Final = frozenset({Chunk, FetchCheckpoint})


def refusal(result: Result) -> Result | Expired | Forgotten:
    """A single command's result, or the exception that says why it was not applied."""
    if result.outcome == Outcome.EXPIRED:
        return Expired("the session is not known (any more)")
    if result.outcome == Outcome.FORGOTTEN:
        return Forgotten("the client gave this result up before")
    return result


def _size(commands: Sequence[Command]) -> int:
    """Encoded bytes of the commands, about (four for each character: never too few)."""
    size = 0
    for command in commands:
        size += 64 + 4 * (_length(command.key) + _length(command.value) + _length(command.expected))
        if command.transaction is not None:
            for part in (part for parts in command.transaction for part in parts or ()):
                size += 64 + 4 * (len(part.key) + _length(part.value))
    return size


def _length(text: str | None) -> int:
    return 0 if text is None else len(text)
