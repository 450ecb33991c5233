"""A disk in memory that fails as disks do, in the place of journal.Files.

What was written is in the page cache; what was synced is on the disk. `kill` ends the process: the cache
survives. `power_cut` ends the machine: of what was not synced any part survives, in sectors of 512 bytes for
a file's content, and change by change for a directory. A chooser says which part: it gets the number n of
changes that one sector (or name, or file size) has seen since the last sync, and answers how many of them,
0 to n, reached the disk.

    disk = Disk()
    journal = Journal(Path("node"), files=disk)
    disk.crash_after(3)         # the fourth operation from here on raises Crash, half done: what lies in one
                                # sector is written whole or not at all
    disk.fail_next("fdatasync") # the next one raises OSError, and takes its pages for clean nevertheless
    disk.power_cut(some(random.Random(7)))
"""

import errno
import os
import random
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import orjson

from paxoskv.storage.files import Files

SECTOR = 512  # what a disk writes whole or not at all

Chooser = Callable[[int], int]
T = TypeVar("T")


def lost(changes: int) -> int:
    """Nothing that was not synced survives."""
    return 0


def kept(changes: int) -> int:
    """Everything survives."""
    return changes


def some(source: random.Random) -> Chooser:
    """Any part survives."""
    return lambda changes: source.randint(0, changes)


class Crash(BaseException):
    """The process, or the machine, ends here. No handler for ordinary errors may catch it."""


class Content:
    """A file: what programs see, what the disk holds, and the writes that lie between the two."""

    __slots__ = ("cached", "durable", "pending")

    def __init__(self) -> None:
        self.cached = bytearray()
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes]] = []

    def write(self, data: bytes, offset: int) -> None:
        self.pending.append((offset, data))
        overlay(self.cached, data, offset)

    def sync(self) -> None:
        for offset, data in self.pending:
            overlay(self.durable, data, offset)
        self.pending.clear()

    def settle(self, choose: Chooser) -> None:
        """Let the disk have as much of the pending writes as the chooser says; they are pending no more."""
        by_sector: dict[int, list[tuple[int, bytes]]] = {}
        for offset, data in self.pending:
            for sector in range(offset // SECTOR, (offset + len(data) - 1) // SECTOR + 1):
                start = max(offset, sector * SECTOR)
                end = min(offset + len(data), (sector + 1) * SECTOR)
                by_sector.setdefault(sector, []).append((start, data[start - offset : end - offset]))
        grown = len(self.cached) > len(self.durable)
        size = len(self.cached) if grown and choose(1) else len(self.durable)
        for sector in sorted(by_sector):
            pieces = by_sector[sector]
            for start, piece in pieces[: choose(len(pieces))]:
                overlay(self.durable, piece, start)
        self.durable = self.durable[:size].ljust(size, b"\0")
        self.pending.clear()


class Folder:
    """A directory: the names that programs see, those on the disk, and the changes between the two."""

    __slots__ = ("cached", "durable", "pending")

    def __init__(self) -> None:
        self.cached: dict[str, Content | Folder] = {}
        self.durable: dict[str, Content | Folder] = {}
        # One change: the name that goes, and the name that comes with what it stands for.
        self.pending: list[tuple[str | None, str | None, Content | Folder]] = []

    def change(self, gone: str | None, new: str | None, node: "Content | Folder") -> None:
        self.pending.append((gone, new, node))
        rename(self.cached, gone, new, node)

    def sync(self) -> None:
        self.settle(kept)

    def settle(self, choose: Chooser) -> None:
        """Let the disk have those changes that the chooser picks, one by one; they are pending no more."""
        for gone, new, node in self.pending:
            if choose(1):
                rename(self.durable, gone, new, node)
        self.pending.clear()


def overlay(target: bytearray, data: bytes, offset: int) -> None:
    """Write into the bytes; what lies between their end and the offset is zeros."""
    if offset > len(target):
        target.extend(bytes(offset - len(target)))
    target[offset : offset + len(data)] = data


def rename(
    names: dict[str, Content | Folder], gone: str | None, new: str | None, node: Content | Folder
) -> None:
    if gone is not None:
        names.pop(gone, None)
    if new is not None:
        names[new] = node


class Disk(Files):
    """The disk of one machine, and the open files of the one process that runs on it."""

    def __init__(self, salt: random.Random | None = None) -> None:
        self.operations = 0  # done so far: writes, syncs and changes of names
        self._salt = salt or random.Random(0)
        self._root = Folder()
        self._open: dict[int, Content] = {}
        self._locked: dict[int, Path] = {}
        self._next_handle = 1  # never used again: a handle of a dead process stays invalid
        self._crash_at: int | None = None
        self._errors: dict[str, tuple[int, Chooser]] = {}

    # What a test does.

    def crash_after(self, operations: int | None) -> None:
        """Let so many operations pass and raise Crash in the next; None: in none. A crash happens once."""
        self._crash_at = None if operations is None else self.operations + operations + 1

    def fail_next(self, operation: str, error: int = errno.EIO, choose: Chooser = lost) -> None:
        """Raise OSError in the next operation of this name (a method of Files that changes something).

        A sync that fails leaves on the disk what the chooser says, and its pages count as clean: as in Linux.
        """
        self._errors[operation] = (error, choose)

    def kill(self) -> None:
        """The process ends: its files are closed, its locks gone. The page cache stays."""
        self._open.clear()
        self._locked.clear()
        self._crash_at = None
        self._errors.clear()

    def power_cut(self, choose: Chooser = lost) -> None:
        """The machine ends: of what was not synced, the chooser's part is found on the disk afterwards."""
        self.kill()
        self._settle(self._root, choose)

    def _settle(self, folder: Folder, choose: Chooser) -> None:
        folder.settle(choose)
        folder.cached = dict(folder.durable)
        for node in folder.durable.values():
            if isinstance(node, Folder):
                self._settle(node, choose)
            else:
                node.settle(choose)
                node.cached = bytearray(node.durable)

    def content(self, path: Path) -> bytearray:
        """A file's bytes, as programs see them; changing them is damage that no sync repairs."""
        return self._file(path).cached

    # What the journal does.

    def exists(self, path: Path) -> bool:
        try:
            self._node(path)
        except FileNotFoundError:
            return False
        return True

    def names(self, directory: Path) -> list[str]:
        return list(self._folder(directory).cached)

    def read(self, path: Path) -> bytes:
        return bytes(self._file(path).cached)

    def size(self, path: Path) -> int:
        return len(self._file(path).cached)

    def read_part(self, path: Path, offset: int, length: int) -> bytes:
        return bytes(self._file(path).cached[offset : offset + length])

    def save(self, path: Path, content: dict[str, Any]) -> None:
        """As pickledb does it: another file, written at once, takes the name."""
        unfinished = path.with_name(path.name + ".tmp")
        if self.exists(unfinished):
            self.remove(unfinished)  # pickledb would overwrite it
        handle = self.create(unfinished)
        self.pwrite(handle, orjson.dumps(content), 0)
        self.close(handle)
        self.rename(unfinished, path)

    def drop_page_cache(self, handle: int, offset: int = 0, length: int = 0) -> None:
        self._opened(handle)

    def make_directory(self, path: Path) -> None:
        self._begin("make_directory")
        self._new(path, Folder())

    def open(self, path: Path) -> int:
        return self._handle(self._file(path))

    def create(self, path: Path) -> int:
        self._begin("create")
        content = Content()
        self._new(path, content)
        return self._handle(content)

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        content = self._opened(handle)
        try:
            self._begin("pwrite")
        except (Crash, OSError):
            content.write(data[: max((offset + len(data) - 1) // SECTOR * SECTOR - offset, 0)], offset)
            raise
        content.write(data, offset)

    def fdatasync(self, handle: int) -> None:
        content = self._opened(handle)
        choose = self._errors["fdatasync"][1] if "fdatasync" in self._errors else None
        try:
            self._begin("fdatasync")
        except OSError:
            assert choose is not None
            content.settle(choose)
            raise
        content.sync()

    def close(self, handle: int) -> None:
        if self._locked.pop(handle, None) is None:
            self._opened(handle)
            del self._open[handle]

    def rename(self, old: Path, new: Path) -> None:
        assert old.parent == new.parent, "the journal renames within one directory"
        self._begin("rename")
        self._folder(old.parent).change(old.name, new.name, self._node(old))

    def remove(self, path: Path) -> None:
        self._begin("remove")
        self._folder(path.parent).change(path.name, None, self._file(path))

    def remove_directory(self, path: Path) -> None:
        if self.names(path):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        self._begin("remove_directory")
        self._folder(path.parent).change(path.name, None, self._folder(path))

    def sync_directory(self, path: Path) -> None:
        folder = self._folder(path)
        self._begin("sync_directory")
        folder.sync()

    def lock(self, path: Path) -> int:
        if path in self._locked.values():
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), str(path))
        if not self.exists(path):
            self.close(self.create(path))
        handle = self._next_handle
        self._next_handle += 1
        self._locked[handle] = path
        return handle

    def salt(self) -> bytes:
        return self._salt.randbytes(8)

    def sleep(self, seconds: float) -> None:
        """Nobody waits for this processor."""

    def background(self, work: Callable[[], T]) -> Future[T]:
        """At once, so that a run depends on nothing but its seed. A Crash in it ends the caller too."""
        future: Future[T] = Future()
        try:
            future.set_result(work())
        except OSError as error:
            future.set_exception(error)
        return future

    def _begin(self, operation: str) -> None:
        self.operations += 1
        if self.operations == self._crash_at:
            raise Crash(f"in operation {self.operations}: {operation}")
        if operation in self._errors:
            error, _ = self._errors.pop(operation)
            raise OSError(error, os.strerror(error))

    def _handle(self, content: Content) -> int:
        handle = self._next_handle
        self._next_handle += 1
        self._open[handle] = content
        return handle

    def _opened(self, handle: int) -> Content:
        if handle not in self._open:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._open[handle]

    def _node(self, path: Path) -> Content | Folder:
        node: Content | Folder = self._root
        for part in path.parts:
            if not isinstance(node, Folder) or part not in node.cached:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            node = node.cached[part]
        return node

    def _folder(self, path: Path) -> Folder:
        node = self._node(path)
        if not isinstance(node, Folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        return node

    def _file(self, path: Path) -> Content:
        node = self._node(path)
        if not isinstance(node, Content):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        return node

    def _new(self, path: Path, node: Content | Folder) -> None:
        folder = self._folder(path.parent)
        if path.name in folder.cached:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        folder.change(None, path.name, node)
