"""Opening a data directory: whose it is, what the last life left in it, and what is done if it is damaged."""

import asyncio
import shutil
import time
from pathlib import Path
from typing import Final

from paxoskv.config import WAYS
from paxoskv.multipaxos import Diverged
from paxoskv.node.eventlog import Usage, log
from paxoskv.protocol.core import Core
from paxoskv.state.store import Store
from paxoskv.storage.checkpoint import recover
from paxoskv.storage.data_dir import SEGMENT_BYTES, create, finish_replacement, replace
from paxoskv.storage.files import Damaged, Full, JournalError, Locked
from paxoskv.storage.journal import Journal
from paxoskv.wire.structs import Identity

LOCKED_FOR: Final = 5.0  # seconds within which a process that makes a checkpoint ends when its node is killed
LOCKED_AGAIN: Final = 0.05  # seconds between two looks whether it has ended
ROOM: Final = 3 * SEGMENT_BYTES  # bytes: the first segment, the next one, and something to spare
ASIDE: Final = ".damaged-%Y%m%dT%H%M%SZ"  # after a data directory's name: when it was moved aside


def make(directory: Path, identity: Identity) -> None:
    """Make a data directory. Full if a node would not have enough room, JournalError if it cannot be made."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < ROOM:
        room = f"{free >> 20} MiB are free, a node needs {ROOM >> 20} MiB to begin with"
        raise Full(f"{directory}: disk full: {room}: make room, or name another place with --data")
    create(directory, identity)


def open_journal(directory: Path, identity: Identity, init: bool, fsync: bool) -> Journal:
    """The journal of this data directory, made first if asked to. Usage if it belongs to somebody else."""
    if finish_replacement(directory):
        log("repair-resumed", "warning", directory=directory, reason="ended while its data was moved aside")
    elif init:
        make(directory, identity)
    deadline = time.monotonic() + LOCKED_FOR
    while True:
        try:
            journal = Journal(directory, sync=fsync)
            break
        except Locked:
            if time.monotonic() > deadline:
                raise
            time.sleep(LOCKED_AGAIN)
    for name in ("cluster", "proposing", "digest", "node"):
        ours, theirs = getattr(identity, name), getattr(journal.identity, name)
        if ours != theirs:
            if name == "digest":
                differs = f"made for nodes with other ids, hosts or ports: {theirs[:12]}, not {ours[:12]}"
                raise Usage(f"{directory}/identity.json: digest: {differs}")
            if name == "proposing":
                differs = f"{theirs or WAYS[0]!r} is how this data was made, and it cannot change to"
                raise Usage(f"{directory}/identity.json: proposing: {differs} {ours or WAYS[0]!r}")
            raise Usage(f"{directory}/identity.json: {name}: {theirs!r}, but the cluster's file has {ours!r}")
    return journal


def recovered(journal: Journal, directory: Path, core: Core, store: Store) -> None:
    """Bring core and store to where the last life ended."""
    began = time.monotonic()
    count = recover(journal, directory, core, store)
    if journal.torn:
        log("torn", "warning", reason=journal.torn)
    number = journal.manifest.checkpoint.number if journal.manifest else 0
    seconds = round(time.monotonic() - began, 3)
    log("recovered", checkpoint=number, records=count, bytes=journal.bytes, seconds=seconds)
    try:
        core.start(asyncio.get_running_loop().time())
    except Diverged as error:
        raise Damaged(directory / "journal", 0, f"contradicts itself: {error}") from error


def repaired(journal: Journal, directory: Path, damage: Damaged, fsync: bool) -> Journal:
    """The journal of a new data directory, from which this node rejoins; the damaged one is kept beside it.

    The damage is raised again if that cannot be done. The old lock is held until the new one is.
    """
    moment = time.time()
    while (aside := directory.with_name(directory.name + time.strftime(ASIDE, time.gmtime(moment)))).exists():
        moment += 1
    identity = journal.identity._replace(incarnation=0)
    log("damaged", "error", file=damage.path, offset=damage.offset, reason=damage.reason, kept=aside,
        repair="this node gives up what it held, as with --rejoin: it votes and serves again when all other "
        "nodes have told it what they know, a majority of the cluster with its data")  # fmt: skip
    try:
        replace(directory, aside, identity)
    except JournalError as error:
        log("repair-failed", "error", reason=error)
        raise damage from error
    renewed = open_journal(directory, identity, False, fsync)
    journal.close()
    return renewed
