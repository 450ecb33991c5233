"""What a node must not forget: the journal, one frame for each turn of its event loop.

Torn or damaged. A frame is written only after the fdatasync of the one before has returned. So a power cut
can spoil the last frame and no other: what does not read as a frame, with no later frame behind it, is a
torn tail and is cut (overwritten with zeros, durably, before anything is written). Two things prove that a
frame which cannot be read was durable once, and so may have been acknowledged. That is damage, and never cut:

    a frame's header behind it, even if that frame's body is itself torn (the header has its own check)
    the mark, which names it or a later one

A file that is shorter than it was made is damage as well. The files and their bytes are drawn in data_dir.py,
segments.py and mark.py.

A full disk is noticed before it is reached: the next segment is made while half of this one is free. While
that fails for want of room, `full` says so, and it is tried again by every maintain(); the frames that still
fit are written. A frame that does not fit raises Full, with nothing written and nothing lost: the same frame
may be handed in again.

What recovery hands out must be durable, but a process that was killed may have left its last frame in the
page cache only, and after a failed fsync the kernel takes such pages for clean. So recovery writes the last
frame again, and syncs, before it hands it out.

    create(directory, identity)             # once: --init
    journal = Journal(directory)
    for records in journal.recover(): ...   # to its end
    journal.write(records)                  # durable when it returns
    journal.maintain()                      # about once a second
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from paxoskv.storage.data_dir import (
    MANIFEST,
    SEGMENT_BYTES,
    Manifest,
    check_not_condemned,
    load_manifest,
    read_identity,
)
from paxoskv.storage.files import Damaged, Files, Full, JournalError, Locked, zeros
from paxoskv.storage.mark import Mark, MarkFile, check_mark, check_owner, load_mark
from paxoskv.storage.segments import (
    FIRST,
    OVERHEAD,
    Scan,
    Segment,
    frame,
    read_frame,
    read_segment,
    scan,
    segment_numbers,
    segment_path,
)
from paxoskv.storage.spares import Spares
from paxoskv.wire.codec import encode
from paxoskv.wire.structs import Frame, Identity, Record

NEVER: Final = sys.maxsize


class Part(NamedTuple):
    """A segment as it was read; `number` is that of its first frame, or of the one that should be there."""

    path: Path
    segment: Segment
    data: bytes
    scan: Scan
    number: int

    def records(self) -> Iterator[list[Record]]:
        """The records of each frame."""
        for number, (start, end) in enumerate(self.scan.frames, start=self.number):
            yield read_frame(self.path, self.data, start, end, number)


class Reading:
    """Reads what was written since a checkpoint, as a start does, but changes nothing."""

    def __init__(self, files: Files, directory: Path, manifest: Manifest | None) -> None:
        self._files = files
        self._directory = directory
        self.first, self.number = (manifest.segment, manifest.frame) if manifest else (1, 1)
        self._empty_first = manifest is None  # whether the first segment may hold no frame
        self.torn: list[Part] = []  # where something that is no frame follows the last valid one
        self.mark: Mark | None = None

    def parts(self) -> Iterator[Part]:
        """The segments, oldest first. Damaged, at the latest behind the last one, if a frame is lost."""
        journal = self._directory / "journal"
        numbers = segment_numbers(self._files, journal, self.first)
        self.mark = load_mark(self._files, self._directory)
        stop = journal, 0  # where the last frame ends
        for number in numbers:
            segment, data = read_segment(self._files, journal, number)
            found = scan(data, segment, self.number)
            part = Part(segment_path(journal, number), segment, data, found, self.number)
            check_owner(self.mark, self._directory, segment)
            if found.frames:
                self.torn = []
            if found.frames or number == self.first:
                stop = part.path, found.stop
            if found.end > found.stop:
                self.torn.append(part)
            self._refuse_damage(part)
            self.number += len(found.frames)
            yield part
        check_mark(self.mark, self._directory, self.number - 1, stop, self.suspect)

    @property
    def suspect(self) -> tuple[Path, int] | None:
        """Where what is torn begins."""
        return (self.torn[0].path, self.torn[0].scan.stop) if self.torn else None

    def _refuse_damage(self, part: Part) -> None:
        """Raise Damaged where a later frame, or the manifest, shows that one is missing."""
        found = part.scan
        if found.stray is not None:
            lost = part.number + len(found.frames)
            reason = f"frame {lost} is damaged, because a later one is at {part.path}: offset {found.stray}"
            raise Damaged(*(self.suspect or (part.path, found.stop)), reason)
        if part.segment.number == self.first and not self._empty_first and not found.frames:
            raise Damaged(part.path, FIRST, f"frame {part.number} is damaged, because the manifest names it")


class Journal:
    """The journal of one node, in a data directory that `create` made.

    Used by one thread at a time: `recover` to its end, then `write`, at last `close`.
    """

    def __init__(
        self,
        directory: Path,
        segment_bytes: int = SEGMENT_BYTES,
        sync: bool = True,
        files: Files | None = None,
    ) -> None:
        """Lock the directory and read its identity. Locked or JournalError if that fails; nothing is held.

        A damaged manifest is told by recover(), while the lock is held: only its holder may repair anything.

        segment_bytes: size of the segments made from now on. sync=False: write() leaves out its fdatasync,
        and nothing is durable; for measurements only.
        """
        self._files = files or Files()
        self._directory = directory
        self._journal = directory / "journal"
        self._sync = sync
        self._mark = MarkFile(self._files, directory)
        self._spares = Spares(self._files, self._journal, segment_bytes)
        self.bytes = 0  # of all frames since the checkpoint that recovery begins with
        self.manifest: Manifest | None = None  # as of the last checkpoint
        self.rolled: tuple[int, int] | None = None  # segment and frame that a checkpoint could begin with
        self.installed: dict[int, int] = {}  # checkpoints of others in the journal, and the frame of each
        self.torn: str | None = None  # what recovery cut, and where; one line
        self._ready = False  # recovered, not closed, and no write has failed
        self._handle: int | None = None  # of the segment that is written to
        self._segment = Segment(0, 0, 0)
        self._offset = 0  # in it, of the next frame
        self._number = 1  # of the next frame
        self._total = 0  # bytes of all frames recovered or written
        self._before_roll = 0  # what `_total` was when the frame `rolled` was written
        self._covered = 0  # bytes of frames that the checkpoint has
        self._make_at = NEVER  # from this offset on the next segment is made
        self._damage: Damaged | None = None  # of the manifest
        self._lock: int | None = None
        self.identity = self._take(directory)

    def _take(self, directory: Path) -> Identity:
        """Lock the directory, then read who we are."""
        files = self._files
        path = directory / "identity.json"
        try:
            if not files.exists(path):  # asked first: not even a lock is left in a directory that is not ours
                raise JournalError(
                    f"{path}: missing: this is no data directory: is its disk mounted? (--rejoin if the "
                    "node's disk was lost, --init for a new cluster only)"
                )
            self._lock = files.lock(directory / "lock")
            identity = read_identity(files.read(path))
            path = directory / MANIFEST
            check_not_condemned(files, directory)
            self.manifest = load_manifest(files, directory)
            return identity
        except BlockingIOError as error:
            raise Locked(f"{directory / 'lock'}: another process uses this data directory") from error
        except Damaged as error:
            self._damage = error
            return identity
        except ValueError as error:
            self.close()
            raise JournalError(f"{path}: {error}") from error
        except OSError as error:
            self.close()
            raise JournalError(f"{error.filename or path}: {error.strerror or error}") from error

    @property
    def lock(self) -> int | None:
        """The open file that carries the lock: a process that inherits it shares the lock."""
        return self._lock

    @property
    def full(self) -> str | None:
        """Why there is no room for the next segment, as far as is known; None: there is."""
        return self._spares.full

    def recover(self) -> Iterator[list[Record]]:
        """Yield the records of every frame since the checkpoint of `manifest`, oldest first.

        At the end a torn tail is cut and the journal ready. Everything handed out is durable. Damaged may
        come late: act on nothing before the end. OSError if the disk fails.
        """
        if self._damage:
            raise self._damage
        files = self._files
        self._remove_unfinished()
        reading = Reading(files, self._directory, self.manifest)
        self._number = reading.number
        for part in reading.parts():
            frames = part.scan.frames
            if frames or part.segment.number == reading.first:
                self._segment, self._offset = part.segment, part.scan.stop
                self._spares.empty = []
            else:
                self._spares.empty.append(part.segment)
            if frames:
                self._write_again(part.path, part.data, *frames[-1])
            for records in part.records():
                self._note(records)
                self._number += 1
                yield records
            self._total += part.scan.stop - FIRST
            self._spares.newest = part.segment.number
        self.bytes = self._total
        for part in reading.torn:
            self._cut(part)
        self._handle = files.open(segment_path(self._journal, self._segment.number))
        self._make_at = NEVER if self._spares.empty else self._segment.size // 2
        self._mark.open(reading.mark, self._number - 1, self._segment)
        self._ready = True

    def _remove_unfinished(self) -> None:
        """Remove the segments that were in the making."""
        files = self._files
        if files.exists(self._journal):
            for name in files.names(self._journal):
                if name.endswith(".segment.new"):
                    files.remove(self._journal / name)
            files.sync_directory(self._journal)  # a process that was killed may have left names not durable

    def _write_again(self, path: Path, data: bytes, start: int, end: int) -> None:
        """Make the last frame of a segment durable, whatever the kernel thinks of its pages."""
        handle = self._files.open(path)
        try:
            self._files.pwrite(handle, data[start:end], start)
            self._files.fdatasync(handle)
        finally:
            self._files.close(handle)

    def _note(self, records: list[Record]) -> None:
        """Frame `_number` holds these records: checkpoints that they name are needed from now on."""
        for record in records:
            if record.installed is not None:
                self.installed[record.installed] = self._number

    @property
    def rests_on_foreign_checkpoint(self) -> bool:
        """Whether it holds a checkpoint that another node made and none of our own covers yet.

        Until one does, what we have for our peers is older than what we know.
        """
        first = self.manifest.frame if self.manifest else 1
        return any(frame >= first for frame in self.installed.values())

    def _cut(self, part: Part) -> None:
        """Overwrite a torn tail with zeros, durably: nothing of it may show beside what comes next."""
        offset, length = part.scan.stop, part.scan.end - part.scan.stop
        cut = f"{part.path}: offset {offset}: cut {length} bytes of frame {self._number}, which was torn"
        handle = self._files.open(part.path)
        try:
            for piece in zeros(length):
                self._files.pwrite(handle, piece, offset)
                offset += len(piece)
            self._files.fdatasync(handle)
        finally:
            self._files.close(handle)
        self.torn = f"{self.torn}; {cut}" if self.torn else cut

    def write(self, records: list[Record], new_segment: bool = False) -> None:
        """Append one frame; durable when this returns. Blocks for as long as the disk takes.

        new_segment: the frame holds the node's whole state and begins a segment. `rolled` says which, and a
        checkpoint can be made of all that lies before it.

        Full: there is no room for it, and nothing has happened. Any other OSError is final: whether the frame
        will be there after a restart nobody knows, and the journal takes no further one (JournalError).
        ValueError, TypeError or OverflowError: the records do not fit their types, and nothing was written.
        """
        body = encode(Frame(records))
        if not self._ready:
            raise JournalError(f"{self._journal}: not recovered, or closed, or an earlier write failed")
        self._ready = False
        length = OVERHEAD + len(body)
        if new_segment or self._offset + length > self._segment.size:
            self._roll(length)
        handle = self._handle
        assert handle is not None, "ready without an open segment"
        self._files.pwrite(handle, frame(body, self._number, self._segment), self._offset)
        if self._sync:
            self._files.fdatasync(handle)
            self._mark.set(self._number, self._segment)
        if new_segment:
            self.rolled = (self._segment.number, self._number)
            self._before_roll = self._total
        self._note(records)
        self._offset += length
        self._number += 1
        self._total += length
        self.bytes = self._total - self._covered
        if self._offset >= self._make_at:
            self._make_next()
        self._ready = True
        self._spares.poll()

    def checkpointed(self, manifest: Manifest) -> None:
        """A checkpoint of everything before the frame `rolled` is durable, and so is its manifest."""
        self.manifest = manifest
        if self.rolled == (manifest.segment, manifest.frame):
            self._covered = self._before_roll
            self.bytes = self._total - self._covered

    @property
    def has_spare(self) -> bool:
        """Whether the next segment is there, so that nobody waits for it to be made."""
        return bool(self._spares.empty)

    def prepare(self) -> None:
        """Have the next segment made soon, whatever room there is in this one. See `has_spare`."""
        if self._ready:
            self._make_next()

    def _make_next(self) -> None:
        self._make_at = NEVER
        self._spares.begin()

    def maintain(self) -> None:
        """Do what can wait: take what was made in the background, make the mark durable. Does not block.

        Where the disk was full, the next segment is tried again. OSError is final, as in write().
        """
        if not self._ready:
            return
        try:
            if self._sync:
                self._mark.maintain()
            self._spares.maintain()
        except OSError:
            self._ready = False
            raise

    def _roll(self, length: int) -> None:
        """Go on in the next segment with room for so many bytes.

        Full: there is no room for such a segment, and the journal is ready as before.
        """
        try:
            segment, handle = self._spares.next(length)
        except Full:
            self._ready = True
            raise
        if self._handle is not None:
            self._files.close(self._handle)
        self._handle, self._segment, self._offset = handle, segment, FIRST
        self._make_at = NEVER if self._spares.empty else self._segment.size // 2

    def close(self) -> None:
        """Give up the lock. Waits for a segment in the making; its failure no longer matters."""
        self._ready = False
        self._spares.close()
        self._mark.close()
        for handle in (self._handle, self._lock):
            if handle is not None:
                self._files.close(handle)
        self._handle = self._lock = None
