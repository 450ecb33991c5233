"""The process that makes a checkpoint, and the class that starts it.

The process does what a start does: it loads the checkpoint before, and replays the closed segments of the
journal. So every checkpoint exercises recovery. It pauses after each piece of its work, because the nodes may
share its processors. It shares the lock of the data directory, and ends when the node ends: so no process of
an earlier life ever replaces a manifest.

    python -m paxoskv.storage.checkpoint_process DIR NUMBER SEGMENT FRAME --nodes 1,2,3,4,5
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from random import Random

import paxoskv
from paxoskv.multipaxos import Cut
from paxoskv.protocol.core import Core
from paxoskv.protocol.node import OWN_LOGS, Node
from paxoskv.protocol.single import Single
from paxoskv.state.store import RESERVED_KEY, Store
from paxoskv.storage.checkpoint import Checkpoints, bookkeeping, cut_of, make_checkpoint, unthrottled
from paxoskv.storage.data_dir import Manifest, load_manifest, read_identity
from paxoskv.storage.files import NO_ROOM, JournalError

PROGRAM = [sys.executable, "-P", "-m", "paxoskv.storage.checkpoint_process"]  # this module, as a process
SOURCES = str(Path(str(paxoskv.__file__)).resolve().parents[1])  # __file__ may be the compiled module's
PAUSE_S = 0.004  # seconds after each piece of the work: nobody waits for the checkpoint
NICENESS = 10  # the process has time
EXIT_FAILED, EXIT_FULL = 1, 3  # exit codes of the process; EXIT_FULL: no room on the disk


class CheckpointProcess:
    """Starts the process that makes a checkpoint, and waits for it; there is one at a time.

    The process works for seconds at a low priority, while the node goes on.
    """

    def __init__(
        self, checkpoints: Checkpoints, nodes: Iterable[int], cpus: Iterable[int], lock: int | None
    ) -> None:
        """Take the ids of all nodes (none: a standalone server), the processors to use, and the lock."""
        self.checkpoints = checkpoints
        self.nodes = ",".join(map(str, nodes))
        self.cpus = ",".join(map(str, cpus))
        self.lock = lock
        self.child: subprocess.Popen[str] | None = None

    def make(
        self, begin: tuple[int, int], done: Callable[[Manifest, Cut], None], failed: Callable[[str], None]
    ) -> None:
        """Make a checkpoint of all before this (segment, frame); later `done` or `failed` is called."""
        own = self.checkpoints
        assert own.making is None, "one at a time"
        own.making = own.next_number()
        numbers = [str(number) for number in (own.making, *begin)]
        command = [*PROGRAM, str(own.directory), *numbers]
        command += ["--nodes", self.nodes, "--cpus", self.cpus]

        def run() -> None:
            try:
                report = partial(done, *self._run(command))
            except (OSError, JournalError, ValueError, KeyError) as error:
                report = partial(failed, str(error))
            own.later(partial(self._end, report))

        own.files.background(run)

    def _run(self, command: list[str]) -> tuple[Manifest, Cut]:
        """Run the process to its end; it shares our lock, and ends when its input ends because we do."""
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            pass_fds=[] if self.lock is None else [self.lock], start_new_session=True,
            env={**os.environ, "PYTHONPATH": SOURCES},
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

    def _end(self, report: Callable[[], None]) -> None:
        self.checkpoints.making = None
        self.child = None
        report()

    def stop(self) -> None:
        """Kill the process, because the node stops."""
        if self.child is not None:
            self.child.kill()


def end_with_parent() -> None:
    """End this process when the node ends that started it, which has the other end of our input."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os._exit(EXIT_FAILED)

    threading.Thread(target=watch, daemon=True).start()


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="checkpoint_process",
        description="Make a checkpoint of a node's closed segments; started by the node.",
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("number", type=int, help="the number of the checkpoint")
    parser.add_argument("segment", type=int, help="the first segment that the checkpoint does not cover")
    parser.add_argument("frame", type=int, help="the first frame of that segment")
    parser.add_argument("--nodes", default="", help="the ids of all nodes; none: the standalone server")
    parser.add_argument("--cpus", default="", help="processors to run on")
    return parser


def main() -> int:
    options = arguments().parse_args()
    end_with_parent()
    os.nice(NICENESS)
    os.umask(0o077)  # only the owner may read the files of a data directory
    if options.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in options.cpus.split(",")})
    core: Core = Single()
    throttle = unthrottled  # the standalone server writes faster than a throttled process can read
    try:
        if options.nodes:
            throttle = partial(time.sleep, PAUSE_S)
            identity = read_identity((options.directory / "identity.json").read_bytes())
            nodes = [int(node) for node in options.nodes.split(",")]
            core = Node(identity.node, nodes, Random(0), proposing=identity.proposing or OWN_LOGS)
        where = (options.number, options.segment, options.frame)
        _, cut = make_checkpoint(options.directory, core, Store("unused"), *where, throttle=throttle)
    except OSError as error:
        print(f"{error.filename or options.directory}: {error.strerror or error}", file=sys.stderr)
        return EXIT_FULL if error.errno in NO_ROOM else EXIT_FAILED
    except (JournalError, ValueError) as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    print(json.dumps({RESERVED_KEY: bookkeeping(cut)}), flush=True)
    os._exit(0)  # at once, because freeing a state of a million keys takes long


if __name__ == "__main__":
    sys.exit(main())
