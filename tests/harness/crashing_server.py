#!/usr/bin/env python3
"""server.py that dies at a named place: what tests/node/test_crash_points.py starts in its stead.

    CRASH_AT=after-rename-manifest:1 CRASH_NOTES=FILE tests/harness/crashing_server.py --id 1 ...

The name says when, what and on which kind of file (see kind_of); the number says at which pass. The
process writes the point into FILE and then kills itself as kill -9 does; so does one that makes a checkpoint,
and takes its node along. Without CRASH_AT it is a server like any other, with small segments, so that
everything that happens once in a segment happens soon, and one that tries again soon to make a checkpoint.

Nothing of this is in the node's own modules: there is no variable that could end a node in earnest, and
nothing is asked on the way of a request. The price is that the interpreted modules run here, never the
compiled ones, whose classes cannot be derived from.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from paxoskv.node import calls, checkpointing, opening, peers  # noqa: E402
from paxoskv.node import main as program  # noqa: E402
from paxoskv.protocol import node  # noqa: E402
from paxoskv.storage import checkpoint, checkpoint_process, data_dir, journal  # noqa: E402
from paxoskv.wire import connection  # noqa: E402

SEGMENT_BYTES = 32 << 10
T = TypeVar("T")

name, _, times = os.environ.get("CRASH_AT", "").partition(":")
left = int(times or 1)  # times that the point has yet to be passed
in_child = "--id" not in sys.argv  # this process makes a checkpoint


def point(here: str) -> None:
    """A named place: die, if it is the one."""
    global left
    if here == name:
        left -= 1
        if left == 0:
            die()


def die() -> None:
    """Leave a note, then end as if somebody had pulled the plug of this process."""
    with open(os.environ["CRASH_NOTES"], "a") as notes:
        notes.write(f"{name}\n")
    if in_child:
        os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def around(what: str) -> Iterator[None]:
    """Two named places, one on each side of what is done in here."""
    point(f"before-{what}")
    yield
    point(f"after-{what}")


def kind_of(path: Path) -> str:
    """What a file of a data directory is called in the name of a point; unfinished ones as the finished."""
    if path.suffix == ".segment":
        return "segment"
    if path.name.endswith(".segment.new"):
        return "new-segment"
    if path.name.startswith("checkpoint-"):
        return "sum" if ".sum" in path.name else "checkpoint"
    return path.name.partition(".")[0]  # manifest, identity, incoming, lock; journal, which is a directory


class Files(journal.Files):
    """All that is done to a disk, with a point before it and one after it."""

    def __init__(self) -> None:
        self.kinds: dict[int, str] = {}  # of the open files

    def _done(self, what: str, path: Path, do: Callable[..., T], *arguments: Any) -> T:
        with around(f"{what}-{kind_of(path)}"):
            return do(*arguments)

    def _opened(self, what: str, path: Path, do: Callable[[Path], int]) -> int:
        with around(f"{what}-{kind_of(path)}"):
            handle = do(path)
            self.kinds[handle] = kind_of(path)
        return handle

    def read(self, path: Path) -> bytes:
        return self._done("read", path, super().read, path)

    def read_part(self, path: Path, offset: int, length: int) -> bytes:
        return self._done("read", path, super().read_part, path, offset, length)

    def save(self, path: Path, content: dict[str, Any]) -> None:
        self._done("save", path, super().save, path, content)

    def open(self, path: Path) -> int:
        return self._opened("open", path, super().open)

    def create(self, path: Path) -> int:
        return self._opened("create", path, super().create)

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        what = f"pwrite-{self.kinds[handle]}"
        with around(what):
            if f"during-{what}" == name and left == 1:
                super().pwrite(handle, data[: len(data) // 2], offset)
            point(f"during-{what}")
            super().pwrite(handle, data, offset)

    def fdatasync(self, handle: int) -> None:
        with around(f"fdatasync-{self.kinds[handle]}"):
            super().fdatasync(handle)

    def rename(self, old: Path, new: Path) -> None:
        self._done("rename", old, super().rename, old, new)

    def remove(self, path: Path) -> None:
        self._done("remove", path, super().remove, path)

    def sync_directory(self, path: Path) -> None:
        with around("sync-journal" if path.name == "journal" else "sync-directory"):
            super().sync_directory(path)


class Journal(journal.Journal):
    """With small segments, and points around the cutting of a torn tail."""

    def __init__(self, directory: Path, sync: bool = True) -> None:
        super().__init__(directory, SEGMENT_BYTES, sync)

    def _cut(self, *arguments: Any) -> None:
        with around("cut"):
            super()._cut(*arguments)


class Node(node.Node):
    """With points around the merging of a checkpoint, a node's own or another's."""

    def install(self, *arguments: Any) -> bool:
        with around("install"):
            return super().install(*arguments)


class Flusher(connection.Flusher):
    """With points around the writing to sockets."""

    def flush_all(self) -> None:
        if self.dirty:
            with around("flush"):
                super().flush_all()


class Peers(peers.Peers):
    """With points around messages to peers; they leave with the flush."""

    def send(self, peer: int, message: Any, call: Any) -> None:
        with around("send"):
            super().send(peer, message, call)


class Answers(calls.Answers):
    """With points around answers to clients' commands; they leave with the flush."""

    def answer(self, token: Any, value: Any) -> None:
        if callable(token) or token.method.name not in ("put", "get", "delete"):
            super().answer(token, value)
        else:
            with around("answer"):
                super().answer(token, value)


def main() -> int:
    """Do what server.py does, or checkpoint_process.py where a node has started this to make a checkpoint."""
    replaced: Any = (data_dir, journal, checkpoint, opening, program)
    for module in replaced[:3]:
        module.Files = Files
    if in_child:
        return checkpoint_process.main()
    checkpoint_process.PROGRAM[1:] = [__file__]  # what a node starts to make a checkpoint
    checkpointing.CHECKPOINT_AGAIN = 1.0  # type: ignore[misc]
    replaced[3].Journal = Journal
    replaced[3].create = partial(data_dir.create, segment_bytes=SEGMENT_BYTES)
    for kind in (Node, Flusher, Peers, Answers):
        setattr(replaced[4], kind.__name__, kind)
    return program.main()


if __name__ == "__main__":
    sys.exit(main())
