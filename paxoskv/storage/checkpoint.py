"""Checkpoints: the applied state in a file, so that the journal before it can be removed.

    DIR/
      checkpoint-0000000007.json      the state, saved by pickledb: the user's keys and values as they are,
                                      and under "", which is no user's key, its position (see Store)
      checkpoint-0000000009.json      a checkpoint of another node (a journaled record has its number)
      checkpoint-0000000009.sum       its size and CRC-32; for our own checkpoints the manifest has them
      incoming                        a checkpoint that is being fetched; the next start removes it
      manifest.json                   see journal.py

Making a checkpoint does not stop the node. The node writes its whole protocol state as the first frame of a
new segment. When that frame is durable, a separate process makes the checkpoint of everything before it
(make_checkpoint; checkpoint_process.py). Its steps, and what a crash after each of them leaves:

    save through pickledb, sync      a file that nothing names; the next start removes it
    read it back, compare            the same (the file is read from the disk, not from the page cache)
    give it its name, sync           the same
    replace the manifest             the old or the new manifest, each with all files that it names
    remove what is older             some old files; removed after the next checkpoint, or by the next start,
                                     which reads all that the manifest names before it removes anything

A checkpoint of another node is merged into the state by a journaled record with its number. The checkpoint is
durable, with its name and its sum, before that record is written. It is kept until a checkpoint of our own
covers the record.

Others need the same disk and processors. So long work is done in pieces, and `throttle()` is called after
each piece: it sleeps for a moment where nobody waits for the result.
"""

import contextlib
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from paxoskv.multipaxos import Covered, Cut, Diverged
from paxoskv.protocol.core import Core
from paxoskv.state.store import RESERVED_KEY, Store
from paxoskv.storage.data_dir import (
    MANIFEST,
    Manifest,
    Saved,
    create,
    load_manifest,
    manifest_json,
    read_identity,
)
from paxoskv.storage.files import NO_ROOM, Damaged, Files, JournalError, Unreadable, make_file
from paxoskv.storage.journal import Journal
from paxoskv.storage.segments import closed_frames
from paxoskv.wire.codec import Malformed
from paxoskv.wire.structs import Chunk, Identity, Record

CHUNK_BYTES = 256 << 10  # bytes in one Chunk
SYNC_BYTES = 1 << 20  # bytes synced or read at once
PIECE_BYTES = 64 << 10  # bytes parsed at once: about a millisecond, in which no other thread runs
PIECE_RECORDS = 256  # records replayed at once
PIECE_ENTRIES = 64  # entries applied at once
PIECE_ITEMS = 2048  # items encoded at once, to be compared with the file
RECEIVE_PAUSE_S = 0.002  # seconds after each piece of a checkpoint that a node receives: twice a piece's time
MISSES = 8  # times that a piece may end in the middle of a value; then all that is left is parsed at once
INCOMING = "incoming"
OURS = re.compile(r"checkpoint-([0-9]{10})\.(json|sum)(\.new)?(\.tmp)?")
Throttle = Callable[[], None]  # called after each piece of long work


# ----------------------------------------------------------------------------------------- a state, as a file


def checkpoint_path(directory: Path, number: int) -> Path:
    """Return the path of a checkpoint."""
    return directory / f"checkpoint-{number:010}.json"


def sum_path(directory: Path, number: int) -> Path:
    """Return the path of the size and CRC-32 of a checkpoint that another node made."""
    return directory / f"checkpoint-{number:010}.sum"


def state_of(store: Store, cut: Cut) -> dict[str, Any]:
    """Return the content of a checkpoint: the store, and the position in each log."""
    state = store.save_state()
    state[RESERVED_KEY] |= bookkeeping(cut)
    return state


def bookkeeping(cut: Cut) -> dict[str, Any]:
    """Return what a checkpoint says about its position."""
    logs = {str(log): list(covered) for log, covered in cut.logs.items()}
    return {"position": list(cut.position), "logs": logs, "clock": cut.clock}


def cut_of(state: dict[str, Any]) -> Cut:
    """Return the position of a checkpoint; raise Malformed if it has none."""
    try:
        bookkeeping = state[RESERVED_KEY]
        timestamp, owner = bookkeeping["position"]
        logs = {int(log): Covered(*covered) for log, covered in bookkeeping["logs"].items()}
        clock = bookkeeping["clock"]
        numbers = [timestamp, owner, clock, *(number for covered in logs.values() for number in covered)]
        if not all(type(number) is int for number in numbers):  # orjson reads larger numbers as floats
            raise TypeError("a number that is none of 64 bits")
        return Cut((timestamp, owner), logs, clock)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Malformed(f"state: does not say where it stands: {type(error).__name__}: {error}") from error


def unthrottled() -> None:
    """Do not pause, because somebody waits for the result."""


def parse(data: bytes | bytearray, throttle: Throttle = unthrottled) -> dict[str, Any]:
    """Parse the bytes of a checkpoint's file; raise Malformed if they are no JSON object.

    They are parsed in pieces, because parsing a large file at once would stop all other threads for seconds.
    A piece is cut where a value seems to end. Parsing tells whether it really ends there, because otherwise
    the piece is no object.
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
        throttle()
    try:
        state.update(orjson.loads(b"{%b}" % bytes(data[start:end])))
    except ValueError as error:
        raise Malformed(f"state: {error}") from error
    return state


def load(files: Files, path: Path, saved: Saved, throttle: Throttle = unthrottled) -> dict[str, Any]:
    """Load the state from a checkpoint's file, which must have the saved size and CRC-32.

    Damaged: it has not. Unreadable: it has, but its content is no state that this version knows.
    """
    if not files.exists(path):
        raise Damaged(path, 0, "the checkpoint is missing")
    data, check = bytearray(), 0
    while piece := files.read_part(path, len(data), SYNC_BYTES):
        data += piece
        check = zlib.crc32(piece, check)
        throttle()
    if len(data) != saved.size:
        reason = f"{len(data)} bytes long, but made with {saved.size}"
        raise Damaged(path, min(len(data), saved.size), reason)
    if check != saved.check:
        raise Damaged(path, 0, "its CRC-32 is not the one that it was made with")
    try:
        return parse(data, throttle)
    except Malformed as error:
        raise Unreadable(path, 0, f"is intact, but {error}") from error


def load_installed(
    files: Files, directory: Path, number: int, throttle: Throttle = unthrottled
) -> dict[str, Any]:
    """Load the state from a checkpoint that another node made; raise Damaged if the file has changed."""
    path = sum_path(directory, number)
    if not files.exists(path):
        raise Damaged(path, 0, "missing, but the journal names this checkpoint")
    try:
        saved = read_sum(files.read(path))
    except ValueError as error:
        raise Damaged(path, 0, str(error)) from error
    if saved.number != number:
        raise Damaged(path, 0, f"is about checkpoint {saved.number}")
    return load(files, checkpoint_path(directory, number), saved, throttle)


def sum_json(saved: Saved) -> str:
    """Return the content of a .sum file."""
    content = saved._asdict()
    return json.dumps({**content, "crc32": zlib.crc32(json.dumps(content).encode())}) + "\n"


def read_sum(data: bytes) -> Saved:
    """Read the content of a .sum file; raise ValueError, its reason in one line, if it is no such content."""
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

    Return the number of replayed records. Damaged: what was durable cannot be read, and nothing was removed.
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
    throttle: Throttle = unthrottled,
) -> int:
    """Load what the manifest names, then replay the records; return the number of records."""
    count = piece = 0
    if manifest:
        path = checkpoint_path(directory, manifest.checkpoint.number)
        state = load(files, path, manifest.checkpoint, throttle)
        install(core, store, state)
        core.checkpointed(cut_of(state))
    for records in frames:
        for record in records:
            if record.installed is not None:
                install(core, store, load_installed(files, directory, record.installed, throttle))
            else:
                core.replay(record)
        count += len(records)
        piece += len(records)
        if piece >= PIECE_RECORDS:
            piece = 0
            throttle()
    return count


def install(core: Core, store: Store, state: dict[str, Any]) -> None:
    """Merge a checkpoint into the core; its state replaces the store's if it is further on."""
    if core.install(cut_of(state)):
        store.load_state(state)
        core.hashed(store.position, store.hash)


def old_files(files: Files, directory: Path, journal: Journal, keep: Iterable[int] = ()) -> list[Path]:
    """Return the segments and checkpoints that are no longer needed, and unfinished files of an earlier life.

    Call it only after the files that the manifest names have been read, or have just been made. `keep` are
    the numbers of checkpoints that are about to be journaled or made.
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
    throttle: Throttle = unthrottled,
) -> tuple[Manifest, Cut]:
    """Make a checkpoint of all frames before this frame, which begins this segment and is durable.

    `core` and `store` must be new, and the number unused. Damaged or OSError: the current manifest is the old
    one, or perhaps the new one. The next start finds out; both are good.
    """
    files = files or Files()
    old = load_manifest(files, directory)
    begin = (old.segment, old.frame) if old else (1, 1)
    frames = closed_frames(files, directory, begin, (segment, frame))
    replay(core, store, files, directory, old, frames, throttle)
    core.start(0.0)
    for index, applied in enumerate(core.drain(0.0).apply):
        store.apply(applied.timestamp, applied.owner, applied.payload)
        if index % PIECE_ENTRIES == 0:
            throttle()
    cut = core.cut()
    state = state_of(store, cut)
    state[RESERVED_KEY]["cluster"] = read_identity(files.read(directory / "identity.json")).cluster
    saved = save(files, directory, number, state, throttle)
    manifest = Manifest(saved, old.checkpoint if old else None, segment, frame)
    write_manifest(files, directory, manifest)
    return manifest, cut


def save(
    files: Files, directory: Path, number: int, state: dict[str, Any], throttle: Throttle = unthrottled
) -> Saved:
    """Save a state durably as the checkpoint of this number; raise Damaged if it reads back differently."""
    path = checkpoint_path(directory, number)
    unfinished = path.with_name(path.name + ".new")
    try:
        files.save(unfinished, state)
        sync(files, unfinished, throttle)
        saved = read_back(files, unfinished, number, state, throttle)
        files.rename(unfinished, path)
        files.sync_directory(directory)
    except OSError as error:
        if error.errno in NO_ROOM:
            discard(files, [unfinished, unfinished.with_name(unfinished.name + ".tmp")])
        raise
    return saved


def read_back(files: Files, path: Path, number: int, state: dict[str, Any], throttle: Throttle) -> Saved:
    """Compare a file with the state that pickledb saved in it; raise Damaged if they differ."""
    size = check = 0
    for piece in encoded(state):
        for at in range(0, len(piece), SYNC_BYTES):
            part = piece[at : at + SYNC_BYTES]
            if files.read_part(path, size, len(part)) != part:
                raise Damaged(path, size, "what was read back is not what was saved")
            size, check = size + len(part), zlib.crc32(part, check)
            throttle()
    if files.size(path) != size:
        raise Damaged(path, size, "what was read back goes on after what was saved")
    return Saved(number, size, check)


def encoded(state: dict[str, Any]) -> Iterator[bytes]:
    """Return the bytes that pickledb makes of a state, in pieces; the state must not be empty.

    Comparing a file with these bytes takes a tenth of the time of parsing it.
    """
    items, opening = iter(state.items()), b"{"
    while piece := dict(itertools.islice(items, PIECE_ITEMS)):
        yield opening + orjson.dumps(piece)[1:-1]
        opening = b","
    yield b"}"


def sync(files: Files, path: Path, throttle: Throttle = unthrottled) -> None:
    """Make a file's content durable, and let the next read see what the disk has.

    The content is written in pieces, because others wait for the same disk.
    """
    handle = files.open(path)
    try:
        for offset in range(0, files.size(path), SYNC_BYTES):
            files.drop_page_cache(handle, offset, SYNC_BYTES)
            throttle()
        files.fdatasync(handle)
        files.drop_page_cache(handle)
    finally:
        files.close(handle)


def discard(files: Files, paths: Iterable[Path]) -> None:
    """Remove those of the files that exist; errors are ignored, because the next start tries again."""
    for path in paths:
        with contextlib.suppress(OSError):
            if files.exists(path):
                files.remove(path)


def write_manifest(files: Files, directory: Path, manifest: Manifest) -> None:
    """Make this manifest the current one, durably and in one step."""
    path = directory / MANIFEST
    discard(files, [path.with_name(path.name + ".new")])
    make_file(files, path, iter([manifest_json(manifest).encode()]))


# --------------------------------------------------------------------- restoring, serving and receiving them


def restore(
    directory: Path,
    identity: Identity,
    logs: Iterable[int],
    state: dict[str, Any],
    files: Files | None = None,
) -> None:
    """Make the data directory of one node of a new cluster, all of whose nodes must begin with this state.

    The directory appears as a whole or not at all; JournalError says why it cannot be made. Each log begins
    with one compacted entry, which stands for everything restored, so that a node without it (one that
    rejoins) must fetch a checkpoint. New entries are stamped above the state's clock and so above everything
    applied; no session id is used twice. The sessions stay known, so that repeated commands are recognized.
    The new cluster needs another name, because a node of the old one that joined would bring the old logs.
    Its own file says where its nodes are: the addresses that the old cluster has agreed on are dropped. Where
    the state is of a newer format, older versions may not start on it, as on the data that it came from.
    """
    files = files or Files()
    if state[RESERVED_KEY].get("cluster") == identity.cluster:
        reason = "the backup's cluster has this name, too: its nodes could join the new one"
        raise JournalError(f"name: {identity.cluster!r}: {reason}")
    if files.exists(directory):
        raise JournalError(f"{directory}: exists already: nothing is overwritten")
    cut = cut_of(state)
    clock = max(cut.clock, cut.position[0])
    cut = Cut(cut.position, {log: Covered(1, 0, clock) for log in logs}, clock)
    kept = {name: value for name, value in state[RESERVED_KEY].items() if name != "addresses"}
    state = {**state, RESERVED_KEY: {**kept, **bookkeeping(cut)}}
    store = Store("unused")
    store.load_state(state)  # raises what is wrong with it
    unfinished = directory.with_name(directory.name + ".new")
    create(unfinished, identity._replace(format=store.format or None), files=files)
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
    """The checkpoints of a running node: those that it serves to peers, and the one that it receives.

    The event loop calls the methods. `finish` works in the background, and calls back through `later`.
    """

    def __init__(
        self,
        directory: Path,
        journal: Journal,
        later: Callable[[Callable[[], None]], None],
        files: Files | None = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        """Read the directory; `later(call)` must run the call soon in the event loop, from any thread."""
        self.chunk_bytes = chunk_bytes
        self.directory = directory
        self.journal = journal
        self.later = later
        self.files = files or Files()
        self.wanted: Callable[[], None] = lambda: None  # what to do when a peer needs a newer one
        self.received: set[int] = set()  # numbers received in this life; they may not be journaled yet
        self.making: int | None = None  # the number of the checkpoint that a process makes now
        names = self.files.names(directory)
        self.highest = max((int(found[1]) for name in names if (found := OURS.fullmatch(name))), default=0)
        self._handle: int | None = None  # of the incoming file
        self._size = 0
        self._unsynced = 0  # bytes received since the last sync
        self._syncing: Future[None] | None = None

    def next_number(self) -> int:
        """Return a number that no checkpoint of this directory has."""
        self.highest += 1
        return self.highest

    def current(self) -> int:
        """Return the number of the newest checkpoint, or 0 if there is none."""
        return self.journal.manifest.checkpoint.number if self.journal.manifest else 0

    def chunk(self, number: int, offset: int) -> Chunk:
        """Return a piece of a checkpoint (0: the newest); Chunk.number is 0 if there is none."""
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
        """Begin to receive a checkpoint of this size in bytes, and drop any other; OSError: no room."""
        self.drop()
        discard(self.files, [self.directory / INCOMING])
        self._handle = self.files.create(self.directory / INCOMING)
        self._size, self._unsynced, self._syncing = size, 0, None

    def write(self, offset: int, data: bytes) -> None:
        """Write a piece of it; pieces may come in any order and repeatedly. OSError: drop() it, begin later.

        The pieces are synced in the background as they come. One sync at the end would block the disk for
        all.
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
        """Give up the checkpoint that is being received."""
        if self._handle is not None:
            self.files.close(self._handle)
            self._handle = None

    def finish(
        self, check: int, done: Callable[[int, Cut, dict[str, Any]], None], failed: Callable[[str], None]
    ) -> None:
        """Make the checkpoint durable, now that all pieces are there, with a number of its own.

        Later done(number, position, state) or failed(reason) is called, but never within this call.
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
        """Sync and verify the incoming file, then name it; its sum is made first, so that none lacks one."""
        files, incoming = self.files, self.directory / INCOMING
        sync(files, incoming)
        # A second one means that the first came too late for the peers' entries; so hurry.
        hurry = len(self.received) > 1
        state = load(files, incoming, saved, unthrottled if hurry else partial(files.sleep, RECEIVE_PAUSE_S))
        make_file(files, sum_path(self.directory, saved.number), iter([sum_json(saved).encode()]))
        files.rename(incoming, checkpoint_path(self.directory, saved.number))
        files.sync_directory(self.directory)
        return state

    def remove_old(self) -> Future[None]:
        """Remove in the background, after a new manifest, the files that it makes superfluous."""
        waiting = self.received - set(self.journal.installed)
        keep = waiting if self.making is None else {*waiting, self.making}
        old = old_files(self.files, self.directory, self.journal, keep)
        return self.files.background(lambda: discard(self.files, old))
