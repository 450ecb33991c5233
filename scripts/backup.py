#!/usr/bin/env python3
"""Takes a backup of a running cluster into one file, or makes a new cluster's data directories from one.

    scripts/backup.sh FILE.gz [--cluster cluster.json] [--node ID]
    scripts/restore.sh FILE.gz --cluster new.json [--data DIR] [--id ID]

A backup is a checkpoint that one node makes now, compressed. All that was acknowledged before it was asked
for is in it. `zcat` shows it: JSON, the keys and values as they are. Its checksum is gzip's.

The new cluster needs a name of its own. Its nodes may be others than those of the old one, more or fewer.
On several machines, run restore.sh on each with the same file, and --id for the node that runs there.
"""

import argparse
import contextlib
import gzip
import os
import sys
import zlib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from paxoskv import program

program.begin(*program.PACKAGES)

from paxoskv import Client, ClientError, ClusterError, NoNodeReachable, load
from paxoskv.config import data_directory
from paxoskv.protocol.node import logs_of
from paxoskv.state.store import RESERVED_KEY
from paxoskv.storage.checkpoint import parse, restore
from paxoskv.storage.files import Files, JournalError
from paxoskv.wire.codec import Malformed
from paxoskv.wire.structs import Identity

TIMEOUT_S = 300.0  # for one node to make its checkpoint
DONE, FAILED, UNREACHABLE = 0, 1, 3


class Failed(Exception):
    """One line that says why."""


class Unreachable(Failed):
    """No node answers."""


class Unwritten(Failed):
    """The backup cannot be written."""


def backup(options: argparse.Namespace) -> str:
    """Ask one node after the other until one has made a checkpoint and handed it out."""
    settings = load(options.cluster)
    nodes = [node.id for node in settings.nodes if options.node in (None, node.id)]
    if not nodes:
        raise Failed(f"--node: there is no node {options.node}")
    errors: list[ClientError] = []
    with Client(settings, timeout=TIMEOUT_S) as client:
        for node in nodes:
            try:
                number = client.checkpoint(node)
                size = write(options.file, client, node)
                return f"{options.file}: checkpoint {number} of node {node}, {size:,} bytes"
            except ClientError as error:
                errors.append(error)
    kind = Unreachable if all(isinstance(error, NoNodeReachable) for error in errors) else Failed
    raise kind("; ".join(map(str, errors)))


def write(path: Path, client: Client, node: int) -> int:
    """The node's newest checkpoint into a file, which appears when it is whole and durable."""
    unfinished = path.with_name(path.name + ".new")
    size = 0
    try:
        with unfinished.open("wb") as file:
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
                for piece in client.read_checkpoint(node):
                    packed.write(piece)
                    size += len(piece)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
        Files().sync_directory(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        if isinstance(error, OSError):
            raise Unwritten(f"{path}: {error.strerror}") from error
        raise
    return size


def read(path: Path) -> dict[str, Any]:
    """The state in a backup. Failed if it is not one, or not whole."""
    try:
        state = parse(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, zlib.error, Malformed) as error:
        raise Failed(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    texts = all(isinstance(value, str) for key, value in state.items() if key != RESERVED_KEY)
    if not isinstance(state.get(RESERVED_KEY), dict) or not texts:
        raise Failed(f"{path}: is no backup of a cluster")
    return state


def make(options: argparse.Namespace) -> str:
    """The data directories of the new cluster's nodes, or of one."""
    settings = load(options.cluster)
    state = read(options.file)
    nodes = [node.id for node in settings.nodes if options.id in (None, node.id)]
    if not nodes:
        raise Failed(f"--id: there is no node {options.id}")
    logs = logs_of(settings.proposing, [node.id for node in settings.nodes])
    data = data_directory(options.data, settings, options.cluster)
    for node in nodes:
        if (data / f"node-{node}").exists():
            raise Failed(f"{data / f'node-{node}'}: exists already: nothing is overwritten")
    for node in nodes:
        identity = Identity(settings.name, settings.digest, node, 1, 0, proposing=settings.named_way)
        restore(data / f"node-{node}", identity, logs, dict(state))
    return f"{data}: {len(nodes)} of {len(settings.nodes)} nodes, {len(state) - 1:,} keys each"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="backup.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    out = commands.add_parser("backup")
    back = commands.add_parser("restore")
    out.add_argument("file", type=program.new_file, metavar="FILE.gz")
    back.add_argument("file", type=Path, metavar="FILE.gz")
    for command in (out, back):
        command.add_argument("--cluster", default="cluster.json", metavar="FILE")
    out.add_argument("--node", type=int, metavar="ID", help="of this node (default: of the first that can)")
    back.add_argument(
        "--data", metavar="DIR", help="where the data directories are (default: as --cluster says)"
    )
    back.add_argument("--id", type=int, metavar="ID", help="only this node (default: all)")
    options = parser.parse_args()
    try:
        done = backup(options) if options.command == "backup" else make(options)
    except (Failed, ClientError, JournalError, Malformed) as error:
        print(f"{options.command}: {error}", file=sys.stderr)
        if isinstance(error, Unreachable):
            return UNREACHABLE
        unwritten = isinstance(error, JournalError) and isinstance(error.__cause__, OSError)
        return program.OUTPUT if unwritten or isinstance(error, Unwritten) else FAILED
    except (ClusterError, OSError) as error:  # the certificates
        print(f"{options.command}: {error}", file=sys.stderr)
        return program.USAGE
    print(done)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
