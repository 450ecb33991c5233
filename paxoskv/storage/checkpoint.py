"""Checkpoints: the applied state in a file, so that the journal before it can go.

    DIR/
      checkpoint-0000000007.json      the state, saved by pickledb: the user's keys and values as they are,
                                      and under "", which is no user's key, where it stands (see Store)
      checkpoint-0000000009.json      one that another node made (its number is in a journaled record)
      checkpoint-0000000009.sum       bytes and CRC-32 of that; for our own they are in the manifest
      incoming                        a checkpoint that is being fetched: removed by the next start
      manifest.json                   see journal.py

A node makes one without pausing. It writes its whole protocol state as the first frame of a new segment, and
when that frame is durable a separate process makes the checkpoint of what lies before it, by what a start
does: load the checkpoint before, replay the closed segments. So recovery is exercised every time. The process
rests after each piece of its work, for the nodes may share its processors. Steps, and what a crash between
two of them leaves:

    save through pickledb, sync      a file that nobody names: removed by the next start
    read it back, compare            likewise; what the disk has is read, not the cache
    give it its name, sync           likewise
    replace the manifest             the old one or the new one, each with all that it names
    remove what is older             some of it: the rest is removed after the next checkpoint, or by the next
                                     start, which has read what the manifest names before it removes anything

The process shares the lock of the data directory, and ends when the node does: so no process of an earlier
life ever replaces a manifest.

A checkpoint that another node made is merged into the state by a journaled record that holds its number. It
is durable, under its name and with its sum, before that record is written, and kept until a checkpoint of our
own covers the record.

    python -m paxoskv.storage.checkpoint DIR NUMBER SEGMENT FRAME --nodes 1,2,3,4,5     # what the node starts
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import orjson

from paxoskv.multipaxos import Covered, Cut, Diverged
from paxoskv.protocol.core import Core
from paxoskv.protocol.node import Node
from paxoskv.protocol.single import Single
from paxoskv.state.store import RESERVED_KEY, Store
from paxoskv.storage.journal import (
    MANIFEST,
    NO_ROOM,
    Damaged,
    Files,
    Journal,
    JournalError,
    Manifest,
    Saved,
    Unreadable,
    closed_frames,
    load_manifest,
    make_file,
    manifest_json,
    read_identity,
)
from paxoskv.wire.codec import Chunk, Identity, Malformed, Record

CHUNK_BYTES = 256 << 10  # what one Chunk carries
SYNC_BYTES = 1 << 20  # of what comes in are synced at once: others wait for the same disk
PIECE_BYTES = 64 << 10  # parsed at once: a millisecond, for which nothing else runs
PIECE_RECORDS = 256  # replayed at once, by the process that makes a checkpoint: likewise
PIECE_ENTRIES = 64  # and applied
PIECE_ITEMS = 2048  # and compared with what was read back
REST = (
    0.002  # seconds, after each such piece of a checkpoint that a node takes: about twice as long as it took
)
MAKER_REST = 0.004  # and after each piece of one that is made: nobody waits for that
MISSES = 8  # pieces that may fail to end where they seem to; then the rest is parsed at once
NICENESS = 10  # the process that makes a checkpoint has time
INCOMING = "incoming"
PROGRAM = [sys.executable, "-P", "-m", "paxoskv.storage.checkpoint"]  # what makes one, beside the node
EXIT_FAILED, EXIT_FULL = 1, 3  # exit codes of the process
OURS = re.compile(r"checkpoint-([0-9]{10})\.(json|sum)(\.new)?(\.tmp)?")


# ----------------------------------------------------------------------------------------- a state, as a file


def checkpoint_path(directory: Path, number: int) -> Path:
    """The file of a checkpoint."""
    return directory / f"checkpoint-{number:010}.json"


def sum_path(directory: Path, number: int) -> Path:
    """What must be found in the file of a checkpoint that another node made."""
    return directory / f"checkpoint-{number:010}.sum"


def state_of(store: Store, cut: Cut) -> dict[str, Any]:
    """What a checkpoint holds: the store, and where it stands in each log."""
    state = store.save_state()
    state[RESERVED_KEY] |= bookkeeping(cut)
    return state


def bookkeeping(cut: Cut) -> dict[str, Any]:
    """What a checkpoint says about where it stands."""
    logs = {str(log): list(covered) for log, covered in cut.logs.items()}
    return {"position": list(cut.position), "logs": logs, "clock": cut.clock}


def cut_of(state: dict[str, Any]) -> Cut:
    """Where a checkpoint stands. Malformed if it does not say so."""
    try:
        bookkeeping = state[RESERVED_KEY]
        timestamp, owner = bookkeeping["position"]
        logs = {int(log): Covered(*covered) for log, covered in bookkeeping["logs"].items()}
        clock = bookkeeping["clock"]
        numbers = [timestamp, owner, clock, *(number for covered in logs.values() for number in covered)]
        if not all(type(number) is int for number in numbers):  # of more than 64 bits orjson makes a float
            raise TypeError("a number that is none of 64 bits")
        return Cut((timestamp, owner), logs, clock)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Malformed(f"state: does not say where it stands: {type(error).__name__}: {error}") from error


def no_rest() -> None:
    """For work that somebody waits for."""


def parse(data: bytes | bytearray, rest: Callable[[], None] = no_rest) -> dict[str, Any]:
    """The state in the bytes of a checkpoint's file. Malformed if they are no JSON object.

    Piece by piece: parsed at once, a large file would stop all other threads for seconds. After each piece,
    rest() is called. A piece ends where a value seems to end; whether it does, its parsing tells, since a
    text up to there is an object only if it really does.
    """
    state: dict[str, Any] = {}
    start, end = 1, len(data) - 1
    if end < 1 or data[:1] != b"{" or data[end:] != b"}":
        raise Malformed("state: no JSON object")
    look, misses = start + PIECE_BYTES, 0
    while misses < MISSES and (found := data.find(b'","', look, end)) >= 0:
        try:
            state.update(orjson.loads(b"{%b}" % bytes(data[start : found + 1])))
        except ValueError:
            look, misses = found + 1, misses + 1
            continue
        start, look, misses = found + 2, found + 2 + PIECE_BYTES, 0
        rest()
    try:
        state.update(orjson.loads(b"{%b}" % bytes(data[start:end])))
    except ValueError as error:
        raise Malformed(f"state: {error}") from error
    return state


def load(files: Files, path: Path, saved: Saved, rest: Callable[[], None] = no_rest) -> dict[str, Any]:
    """The state in a checkpoint's file, which must be as it was left. Damaged otherwise; Unreadable if it is,
    but is no state that is known here. After each piece of the work, rest() is called.
    """
    if not files.exists(path):
        raise Damaged(path, 0, "the checkpoint is missing")
    data, check = bytearray(), 0
    while piece := files.read_part(path, len(data), SYNC_BYTES):
        data += piece
        check = zlib.crc32(piece, check)
        rest()
    if len(data) != saved.size:
        reason = f"{len(data)} bytes long, but made with {saved.size}"
        raise Damaged(path, min(len(data), saved.size), reason)
    if check != saved.check:
        raise Damaged(path, 0, "its CRC-32 is not the one that it was made with")
    try:
        return parse(data, rest)
    except Malformed as error:
        raise Unreadable(path, 0, f"is intact, but {error}") from error


def load_installed(
    files: Files, directory: Path, number: int, rest: Callable[[], None] = no_rest
) -> dict[str, Any]:
    """The state in a checkpoint that another node made. Damaged if it is not as it was left."""
    path = sum_path(directory, number)
    if not files.exists(path):
        raise Damaged(path, 0, "missing, but the journal names this checkpoint")
    try:
        saved = read_sum(files.read(path))
    except ValueError as error:
        raise Damaged(path, 0, str(error)) from error
    if saved.number != number:
        raise Damaged(path, 0, f"is about checkpoint {saved.number}")
    return load(files, checkpoint_path(directory, number), saved, rest)


def sum_json(saved: Saved) -> str:
    """The content of a .sum file."""
    content = saved._asdict()
    return json.dumps({**content, "crc32": zlib.crc32(json.dumps(content).encode())}) + "\n"


def read_sum(data: bytes) -> Saved:
    """The same, read. ValueError, its reason in one line, if it is anything else."""
    try:
        content = json.loads(data.decode("utf-8"))
        saved = Saved(content["number"], content["size"], content["check"])
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise ValueError(f"is not what a sum is: {type(error).__name__}: {error}") from error
    if sum_json(saved).encode() != data:
        raise ValueError("crc32: does not match the other fields: the file was changed")
    return saved


# --------------------------------------------------------------------------------------------------- recovery


def recover(journal: Journal, directory: Path, core: Core, store: Store, files: Files | None = None) -> int:
    """Bring a new core and an empty store to where the last life ended; core.start() must follow.

    Returns how many records were replayed. Damaged: what was durable cannot be read, and nothing was removed.
    """
    files = files or Files()
    try:
        count = replay(core, store, files, directory, journal.manifest, journal.recover())
    except Diverged as error:
        raise Damaged(directory / "journal", 0, f"contradicts itself: {error}") from error
    discard(files, [directory / INCOMING, *old_files(files, directory, journal)])
    return count


def replay(
    core: Core,
    store: Store,
    files: Files,
    directory: Path,
    manifest: Manifest | None,
    frames: Iterable[list[Record]],
    rest: Callable[[], None] = no_rest,
) -> int:
    """Load what the manifest names, then hand over the records; returns how many there were. After each piece
    of the work, rest() is called.
    """
    count = piece = 0
    if manifest:
        path = checkpoint_path(directory, manifest.checkpoint.number)
        state = load(files, path, manifest.checkpoint, rest)
        install(core, store, state)
        core.checkpointed(cut_of(state))
    for records in frames:
        for record in records:
            if record.installed is not None:
                install(core, store, load_installed(files, directory, record.installed, rest))
            else:
                core.replay(record)
        count += len(records)
        piece += len(records)
        if piece >= PIECE_RECORDS:
            piece = 0
            rest()
    return count


def install(core: Core, store: Store, state: dict[str, Any]) -> None:
    """Merge a checkpoint; its state replaces the store's if it stands further on."""
    if core.install(cut_of(state)):
        store.load_state(state)
        core.hashed(store.position, store.hash)


def old_files(files: Files, directory: Path, journal: Journal, keep: Iterable[int] = ()) -> list[Path]:
    """Segments and checkpoints that are needed no more, and what an earlier life left unfinished.

    Only after what the manifest names has been read, or has just been made. `keep`: checkpoints that are
    about to be journaled or made.
    """
    manifest = journal.manifest
    first, frame = (manifest.segment, manifest.frame) if manifest else (1, 1)
    needed = {*keep, *(number for number, at in list(journal.installed.items()) if at >= frame)}
    if manifest:
        needed.add(manifest.checkpoint.number)
        needed |= {manifest.previous.number} if manifest.previous else set()
    old = []
    for name in files.names(directory):
        found = OURS.fullmatch(name)
        if (found and int(found[1]) not in needed) or name.startswith(MANIFEST + "."):
            old.append(directory / name)
    segments = directory / "journal"
    for name in files.names(segments):
        if re.fullmatch(r"[0-9]{10}\.segment", name) and int(name[:10]) < first:
            old.append(segments / name)
    return old


# ---------------------------------------------------------------------------------------- making a checkpoint


def make_checkpoint(
    directory: Path,
    core: Core,
    store: Store,
    number: int,
    segment: int,
    frame: int,
    files: Files | None = None,
    rest: Callable[[], None] = no_rest,
) -> tuple[Manifest, Cut]:
    """Make a checkpoint of all frames before this one, which begins this segment and is durable. After each
    piece of the work, rest() is called.

    `core` and `store` are new ones. The number must not be in use. Damaged or OSError: the old manifest is
    still the current one, or nobody knows which; a start finds out, and each is good.
    """
    files = files or Files()
    old = load_manifest(files, directory)
    begin = (old.segment, old.frame) if old else (1, 1)
    frames = closed_frames(files, directory, begin, (segment, frame))
    replay(core, store, files, directory, old, frames, rest)
    core.start(0.0)
    for index, applied in enumerate(core.drain(0.0).apply):
        store.apply(applied.timestamp, applied.owner, applied.payload)
        if index % PIECE_ENTRIES == 0:
            rest()
    cut = core.cut()
    state = state_of(store, cut)
    state[RESERVED_KEY]["cluster"] = read_identity(files.read(directory / "identity.json")).cluster
    saved = save(files, directory, number, state, rest)
    manifest = Manifest(saved, old.checkpoint if old else None, segment, frame)
    write_manifest(files, directory, manifest)
    return manifest, cut


def save(
    files: Files, directory: Path, number: int, state: dict[str, Any], rest: Callable[[], None] = no_rest
) -> Saved:
    """Save a state, durably, as the checkpoint of this number, and read it back. Damaged if that differs."""
    path = checkpoint_path(directory, number)
    unfinished = path.with_name(path.name + ".new")
    try:
        files.save(unfinished, state)
        sync(files, unfinished, rest)
        saved = read_back(files, unfinished, number, state, rest)
        files.rename(unfinished, path)
        files.sync_directory(directory)
    except OSError as error:
        if error.errno in NO_ROOM:
            discard(files, [unfinished, unfinished.with_name(unfinished.name + ".tmp")])
        raise
    return saved


def read_back(
    files: Files, path: Path, number: int, state: dict[str, Any], rest: Callable[[], None]
) -> Saved:
    """What a file holds in which pickledb has saved this state. Damaged if that is anything else."""
    size = check = 0
    for piece in encoded(state):
        for at in range(0, len(piece), SYNC_BYTES):
            part = piece[at : at + SYNC_BYTES]
            if files.read_part(path, size, len(part)) != part:
                raise Damaged(path, size, "what was read back is not what was saved")
            size, check = size + len(part), zlib.crc32(part, check)
            rest()
    if files.size(path) != size:
        raise Damaged(path, size, "what was read back goes on after what was saved")
    return Saved(number, size, check)


def encoded(state: dict[str, Any]) -> Iterator[bytes]:
    """The bytes that pickledb makes of a state, which is not empty, in pieces: compared with these, a file
    need not be parsed, which takes ten times as long.
    """
    items, opening = iter(state.items()), b"{"
    while piece := dict(itertools.islice(items, PIECE_ITEMS)):
        yield opening + orjson.dumps(piece)[1:-1]
        opening = b","
    yield b"}"


def sync(files: Files, path: Path, rest: Callable[[], None] = no_rest) -> None:
    """Make a file's content durable, and let the next read see what the disk has. The disk is given a piece
    after the other, with a rest() after each: others wait for the same disk.
    """
    handle = files.open(path)
    try:
        for offset in range(0, files.size(path), SYNC_BYTES):
            files.uncache(handle, offset, SYNC_BYTES)
            rest()
        files.fdatasync(handle)
        files.uncache(handle)
    finally:
        files.close(handle)


def discard(files: Files, paths: Iterable[Path]) -> None:
    """Remove those of the files that exist. Errors are ignored: it is tried again by the next start."""
    for path in paths:
        with contextlib.suppress(OSError):
            if files.exists(path):
                files.remove(path)


def write_manifest(files: Files, directory: Path, manifest: Manifest) -> None:
    """Make this manifest the current one, durably: in one step, by its name."""
    path = directory / MANIFEST
    discard(files, [path.with_name(path.name + ".new")])
    make_file(files, path, iter([manifest_json(manifest).encode()]))


# ------------------------------------------------------------------------------------ handing out, and taking


def restore(
    directory: Path,
    identity: Identity,
    nodes: Iterable[int],
    state: dict[str, Any],
    files: Files | None = None,
) -> None:
    """Make the data directory of one of the nodes of a new cluster that begins with this state. All of its
    nodes must begin with the same. It is there whole or not at all. JournalError if it cannot be made.

    The logs begin anew, with one entry that nobody holds any more: it stands for all that was restored, so
    that a node without it (one that rejoins) must take a checkpoint. What follows will be stamped above the
    clock that the state has seen, so above all that was applied, and no session's id comes twice. Known
    sessions stay known: what a client repeats is not applied again, as far as the state has it. The cluster
    needs a name of its own: a node of the old one that joined would bring the old logs along.
    """
    files = files or Files()
    if state[RESERVED_KEY].get("cluster") == identity.cluster:
        reason = "the backup's cluster has this name, too: its nodes could join the new one"
        raise JournalError(f"name: {identity.cluster!r}: {reason}")
    if files.exists(directory):
        raise JournalError(f"{directory}: exists already: nothing is overwritten")
    cut = cut_of(state)
    clock = max(cut.clock, cut.position[0])
    logs = {log: Covered(1, 0, clock) for log in nodes}
    state = {**state, RESERVED_KEY: {**state[RESERVED_KEY], **bookkeeping(Cut(cut.position, logs, clock))}}
    Store("unused").load_state(state)  # raises what is wrong with it
    unfinished = directory.with_name(directory.name + ".new")
    Journal.create(unfinished, identity, files=files)
    journal = Journal(unfinished, files=files)
    try:
        for _ in journal.recover():
            raise AssertionError("a journal that has just been made is empty")
        journal.write([Record(reservation=clock)])
        saved = save(files, unfinished, 1, state)
        write_manifest(files, unfinished, Manifest(saved, None, 1, 1))
    except OSError as error:
        raise JournalError(f"{unfinished}: {error.strerror or error}") from error
    finally:
        journal.close()
    files.rename(unfinished, directory)
    files.sync_directory(directory.parent)


class Checkpoints:
    """The checkpoints of a running node: those that it hands out, and the one that it takes from another.

    Used by the event loop; `finish` works in the background, and calls back through `later`.
    """

    def __init__(
        self,
        directory: Path,
        journal: Journal,
        later: Callable[[Callable[[], None]], None],
        files: Files | None = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        """`later(call)` runs the call in the loop, soon; it may be called from another thread."""
        self.chunk_bytes = chunk_bytes
        self.directory = directory
        self.journal = journal
        self.later = later
        self.files = files or Files()
        self.wanted: Callable[[], None] = lambda: None  # see replica.Checkpoints: the embedding's answer
        self.received: set[int] = set()  # taken in this life: perhaps not journaled yet
        self.making: int | None = None
        names = self.files.names(directory)
        self.highest = max((int(found[1]) for name in names if (found := OURS.fullmatch(name))), default=0)
        self._handle: int | None = None  # of the incoming file
        self._size = 0
        self._unsynced = 0  # bytes of what came in
        self._syncing: Future[None] | None = None

    def next_number(self) -> int:
        """A number that no checkpoint of this directory has, or ever had as long as anybody knows."""
        self.highest += 1
        return self.highest

    def current(self) -> int:
        """The newest checkpoint; 0: there is none."""
        return self.journal.manifest.checkpoint.number if self.journal.manifest else 0

    def chunk(self, number: int, offset: int) -> Chunk:
        """A piece of a checkpoint; number 0: of the newest. Chunk.number is 0 if there is no such one."""
        manifest = self.journal.manifest
        kept = [saved for saved in (manifest.checkpoint, manifest.previous) if saved] if manifest else []
        for saved in kept:
            if number in (0, saved.number) and offset >= 0:
                path = checkpoint_path(self.directory, saved.number)
                try:
                    data = self.files.read_part(path, offset, self.chunk_bytes)
                except OSError:  # the one before the newest may have been removed
                    break
                return Chunk(saved.number, saved.size, saved.check, offset, data)
        return Chunk(0, 0, 0, offset, b"")

    def begin(self, size: int) -> None:
        """Take a checkpoint of so many bytes; whatever was being taken is dropped. OSError if there is no
        room.
        """
        self.drop()
        discard(self.files, [self.directory / INCOMING])
        self._handle = self.files.create(self.directory / INCOMING)
        self._size, self._unsynced, self._syncing = size, 0, None

    def write(self, offset: int, data: bytes) -> None:
        """A piece of it, in any order, any number of times. OSError: drop() it, and begin again later.

        It is synced in the background as it comes: at the end, all at once, it would stop the disk for all.
        """
        assert self._handle is not None, "write between begin and finish"
        self.files.pwrite(self._handle, data, offset)
        self._unsynced += len(data)
        if self._unsynced >= SYNC_BYTES and (self._syncing is None or self._syncing.done()):
            if self._syncing is not None:
                self._syncing.result()
            self._unsynced = 0
            self._syncing = self.files.background(partial(sync, self.files, self.directory / INCOMING))

    def drop(self) -> None:
        """Give up what is being taken."""
        if self._handle is not None:
            self.files.close(self._handle)
            self._handle = None

    def finish(
        self, check: int, done: Callable[[int, Cut, dict[str, Any]], None], failed: Callable[[str], None]
    ) -> None:
        """All pieces are there: make the checkpoint durable under a number of its own.

        Later, done(number, where it stands, its state) is called, or failed(reason); never from inside.
        """
        self.drop()
        number = self.next_number()
        self.received.add(number)
        saved, syncing = Saved(number, self._size, check), self._syncing

        def work() -> None:
            try:
                if syncing is not None:
                    syncing.result()
                state = self._keep(saved)
                cut = cut_of(state)
            except (OSError, JournalError, Malformed) as error:
                reason = str(error)
                self.later(lambda: failed(reason))
            else:
                self.later(lambda: done(number, cut, state))

        self.files.background(work)

    def _keep(self, saved: Saved) -> dict[str, Any]:
        """Sync, verify, and only then name what came in; its sum first, so that none is ever without."""
        files, incoming = self.files, self.directory / INCOMING
        sync(files, incoming)
        again = len(self.received) > 1  # the others have left us behind meanwhile: no pauses this time
        state = load(files, incoming, saved, no_rest if again else partial(files.rest, REST))
        make_file(files, sum_path(self.directory, saved.number), iter([sum_json(saved).encode()]))
        files.rename(incoming, checkpoint_path(self.directory, saved.number))
        files.sync_directory(self.directory)
        return state

    def remove_old(self) -> Future[None]:
        """After a new manifest: remove what it makes superfluous. In the background, for it takes time."""
        waiting = self.received - set(self.journal.installed)
        keep = waiting if self.making is None else {*waiting, self.making}
        old = old_files(self.files, self.directory, self.journal, keep)
        return self.files.background(lambda: discard(self.files, old))


# ------------------------------------------------------------------------------------------------ the process


class Maker:
    """Starts the process that makes a checkpoint, and waits for it. One at a time.

    The process works for seconds, at a low priority; the node goes on meanwhile.
    """

    def __init__(
        self, checkpoints: Checkpoints, nodes: Iterable[int], cpus: Iterable[int], lock: int | None
    ) -> None:
        """nodes: all ids; none: the standalone server. cpus: where the process may run. lock: see Journal."""
        self.checkpoints = checkpoints
        self.nodes = ",".join(map(str, nodes))
        self.cpus = ",".join(map(str, cpus))
        self.lock = lock
        self.child: subprocess.Popen[str] | None = None

    def make(
        self, begin: tuple[int, int], done: Callable[[Manifest, Cut], None], failed: Callable[[str], None]
    ) -> None:
        """Make a checkpoint of what lies before this (segment, frame). Later, one of the two is called."""
        own = self.checkpoints
        assert own.making is None, "one at a time"
        own.making = own.next_number()
        numbers = [str(number) for number in (own.making, *begin)]
        command = [*PROGRAM, str(own.directory), *numbers]
        command += ["--nodes", self.nodes, "--cpus", self.cpus]

        def run() -> None:
            try:
                tell = partial(done, *self._run(command))
            except (OSError, JournalError, ValueError, KeyError) as error:
                tell = partial(failed, str(error))
            own.later(partial(self._end, tell))

        own.files.background(run)

    def _run(self, command: list[str]) -> tuple[Manifest, Cut]:
        """Blocks until the process has ended. It shares our lock, and ends when its input does, as we do."""
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            pass_fds=[] if self.lock is None else [self.lock], start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )  # fmt: skip
        assert self.child.stdout and self.child.stderr and self.child.stdin
        with self.child:
            output, errors = self.child.stdout.read(), self.child.stderr.read()
        if self.child.returncode:
            last = errors.strip().rpartition("\n")[2]
            raise ValueError(f"{last or 'no reason given'} (exit code {self.child.returncode})")
        manifest = load_manifest(self.checkpoints.files, self.checkpoints.directory)
        if manifest is None or manifest.checkpoint.number != self.checkpoints.making:
            raise ValueError("the manifest does not name it")
        return manifest, cut_of(json.loads(output))

    def _end(self, call: Callable[[], None]) -> None:
        self.checkpoints.making = None
        self.child = None
        call()

    def stop(self) -> None:
        """The node stops: nobody waits for the checkpoint any more."""
        if self.child is not None:
            self.child.kill()


def end_with_parent() -> None:
    """End when the node that started this process does: it holds the other end of our input, and our lock."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os._exit(EXIT_FAILED)

    threading.Thread(target=watch, daemon=True).start()


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="checkpoint.py",
        description="Make a checkpoint of a node's closed segments; started by the node.",
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("number", type=int, help="of the checkpoint")
    parser.add_argument("segment", type=int, help="the first that the checkpoint does not cover")
    parser.add_argument("frame", type=int, help="the first one in it")
    parser.add_argument("--nodes", default="", help="their ids; none: the standalone server's directory")
    parser.add_argument("--cpus", default="", help="processors to run on")
    return parser


def main() -> int:
    options = arguments().parse_args()
    end_with_parent()
    os.nice(NICENESS)
    os.umask(0o077)  # as all files of a data directory are
    if options.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in options.cpus.split(",")})
    core: Core = Single()
    rest = no_rest  # the standalone server can write faster than one that rests reads
    try:
        if options.nodes:
            rest = partial(time.sleep, MAKER_REST)
            me = read_identity((options.directory / "identity.json").read_bytes()).node
            core = Node(me, [int(node) for node in options.nodes.split(",")], Random(0))
        where = (options.number, options.segment, options.frame)
        _, cut = make_checkpoint(options.directory, core, Store("unused"), *where, rest=rest)
    except OSError as error:
        print(f"{error.filename or options.directory}: {error.strerror or error}", file=sys.stderr)
        return EXIT_FULL if error.errno in NO_ROOM else EXIT_FAILED
    except (JournalError, ValueError) as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    print(json.dumps({RESERVED_KEY: bookkeeping(cut)}), flush=True)
    os._exit(0)  # without taking a state of a million keys apart


if __name__ == "__main__":
    sys.exit(main())
