"""All that storage asks of the operating system, and the errors that it raises.

A test puts a simulated disk in the place of Files.
"""

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, TypeVar

from pickledb import PickleDB

ZEROS: Final = bytes(1 << 20)  # synced piece by piece, so that no frame's fdatasync waits for a whole segment
# Errors that pass: when somebody removes something, or closes it.
NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)

T = TypeVar("T")


class JournalError(Exception):
    """The data directory cannot be used as it is. One line that names the file and the reason."""


class Locked(JournalError):
    """Another process uses the data directory."""


class Damaged(JournalError):
    """What was durable once cannot be read any more. Nothing was cut."""

    def __init__(self, path: Path, offset: int, reason: str) -> None:
        super().__init__(f"{path}: offset {offset}: {reason}")
        self.path = path
        self.offset = offset
        self.reason = reason


class Unreadable(Damaged):
    """Data that cannot be read, but may not be lost: it must not be given up without asking.

    Another version of this program wrote it, or all of it is missing, as on a disk that is not mounted.
    """


class Full(JournalError):
    """There is no room on the disk for what is to come next. Nothing was written: all is as it was."""


def sync(handle: int, whole: bool = False) -> None:
    """Make a file durable: its content and size, or `whole`, all that is known of it. OSError if that fails.

    On macOS fsync() leaves what it writes in the drive's cache, and F_FULLFSYNC asks for more; some file
    systems refuse that, and have no more to offer than fsync().
    """
    full: int | None = vars(fcntl).get("F_FULLFSYNC")  # getattr() makes an exception where it is missing
    if full is not None:
        try:
            fcntl.fcntl(handle, full)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENOTTY, errno.EINVAL):
                raise
    elif not whole and hasattr(os, "fdatasync"):
        os.fdatasync(handle)
        return
    os.fsync(handle)


class Files:
    """All that the journal asks of the operating system. A test puts a simulated disk in its place.

    Every method may raise OSError. Handles are integers.
    """

    def exists(self, path: Path) -> bool:
        """Whether there is a file or directory of this name."""
        return path.exists()

    def names(self, directory: Path) -> list[str]:
        """The names in a directory, in no order."""
        return os.listdir(directory)

    def read(self, path: Path) -> bytes:
        """The whole file."""
        return path.read_bytes()

    def size(self, path: Path) -> int:
        """Bytes in a file."""
        return path.stat().st_size

    def read_part(self, path: Path, offset: int, length: int) -> bytes:
        """This many bytes of a file from the offset on; fewer at its end."""
        with path.open("rb") as file:
            return os.pread(file.fileno(), length, offset)

    def save(self, path: Path, content: dict[str, Any]) -> None:
        """Make a file, or replace it, through pickledb. Durable after fdatasync and sync_directory.

        Not to be called from an event loop, where pickledb would return a coroutine.
        """
        database = PickleDB(str(path))
        database.db = content
        database.save()

    def make_directory(self, path: Path) -> None:
        """Make a directory; its parent must exist. Durable after sync_directory of the parent."""
        path.mkdir(mode=0o700)

    def open(self, path: Path) -> int:
        """Open an existing file for writing."""
        return os.open(path, os.O_RDWR)

    def create(self, path: Path) -> int:
        """Make a new file and open it for writing."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        """Write all of the data at the offset."""
        written = os.pwrite(handle, data, offset)
        while written < len(data):
            more = os.pwrite(handle, data[written:], offset + written)
            if more == 0:
                raise OSError(errno.EIO, "a write wrote nothing")
            written += more

    def fdatasync(self, handle: int) -> None:
        """Make the file's content, and its size, durable."""
        sync(handle)

    def drop_page_cache(self, handle: int, offset: int = 0, length: int = 0) -> None:
        """Let the next read of this part of a file see what the disk has, and begin to write the part.

        Offset and length are in bytes; length 0 means all that follows.
        """
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, offset, length, os.POSIX_FADV_DONTNEED)

    def close(self, handle: int) -> None:
        """Close a file; a lock that it carries is released."""
        os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, within one directory, in one step. Durable after sync_directory."""
        os.rename(old, new)

    def remove(self, path: Path) -> None:
        """Remove a file. Durable after sync_directory."""
        os.unlink(path)

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory. Durable after sync_directory of the parent."""
        os.rmdir(path)

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable."""
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            sync(handle, whole=True)
        finally:
            os.close(handle)

    def lock(self, path: Path) -> int:
        """Lock the file (made if need be) until closed or the process ends. BlockingIOError if taken."""
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its directory may have been moved aside just now.
            if not os.path.samestat(os.fstat(handle), os.stat(path)):
                raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), str(path))
        except BaseException:
            os.close(handle)
            raise
        return handle

    def salt(self) -> bytes:
        """8 bytes that nobody can guess."""
        return os.urandom(8)

    def sleep(self, seconds: float) -> None:
        """Leave the processor and the disk to others, after a piece of long work in the background."""
        time.sleep(seconds)

    def background(self, work: Callable[[], T]) -> Future[T]:
        """Begin some work beside the caller's."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # not lost: it is raised where the result is asked for
                future.set_exception(error)

        threading.Thread(target=run, name="journal", daemon=True).start()
        return future


def make_file(files: Files, path: Path, pieces: Iterator[bytes]) -> None:
    """Write a file that has its name only once it is whole and durable; a file of this name is replaced.

    OSError: there is no such file, or the old one; where the disk was full, what was begun is removed.
    """
    unfinished = path.with_name(path.name + ".new")
    try:
        if files.exists(unfinished):  # a crash has left it
            files.remove(unfinished)
        handle = files.create(unfinished)
        try:
            offset = 0
            for piece in pieces:
                files.pwrite(handle, piece, offset)
                files.fdatasync(handle)
                offset += len(piece)
        finally:
            files.close(handle)
        files.rename(unfinished, path)
        files.sync_directory(path.parent)
    except OSError as error:
        if error.errno in NO_ROOM and files.exists(unfinished):
            files.remove(unfinished)
        raise


def zeros(count: int) -> Iterator[bytes]:
    """That many zero bytes, in pieces."""
    for start in range(0, count, len(ZEROS)):
        yield ZEROS[: count - start]
