#!/usr/bin/env python3
"""Says in plain words what a data directory holds, whether it is whole, and up to where. Changes nothing.

    .venv/bin/python scripts/fsck.py data/node-1
    .venv/bin/python scripts/fsck.py --all data/node-1 data/node-2 data/node-3
    .venv/bin/python scripts/fsck.py data/node-1 --export FILE.gz

The nodes must not be running. With --all the directories are compared as well: where two nodes know the same
slot of a log to be chosen, they must hold the same entry; and where both have applied a command, all that
they had applied up to there must have the same rolling hash. So entries that a checkpoint has swallowed are
compared, too.

With --export, what the node had applied is written to a file as backup.sh would: restore.sh makes a new
cluster from it. That is for a cluster with two histories, see docs/operations.md.

Exit code 0: whole (and they agree); 1: damaged, or they do not; 2: not a data directory, or in use.
"""

import argparse
import gzip
import re
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from paxoskv import program

program.begin(*program.PACKAGES)

import orjson

from paxoskv.multipaxos import node_of
from paxoskv.protocol.core import Core
from paxoskv.protocol.node import OWN_LOGS, Node
from paxoskv.protocol.single import Single
from paxoskv.state.store import Store
from paxoskv.storage.checkpoint import checkpoint_path, cut_of, load, replay, state_of
from paxoskv.storage.data_dir import Manifest, load_manifest, read_identity
from paxoskv.storage.files import Damaged, Files, JournalError, Unreadable
from paxoskv.storage.journal import Reading
from paxoskv.storage.segments import FIRST
from paxoskv.wire.structs import Entry, Identity, Record

WHOLE, DAMAGED, UNUSABLE = 0, 1, 2


@dataclass
class Report:
    """What was found in one directory."""

    directory: Path
    identity: Identity
    lines: list[str] = field(default_factory=list)
    chosen: dict[tuple[int, int], Entry] = field(default_factory=dict)  # by log and slot
    hashes: dict[tuple[int, int], int] = field(default_factory=dict)  # by (timestamp, owner) applied
    damage: str | None = None
    state: dict[str, Any] = field(default_factory=dict)  # as a checkpoint would have it

    def say(self, line: str) -> None:
        self.lines.append(line)


def inspect(directory: Path) -> Report:
    """Everything about one directory. JournalError, OSError, ValueError if it is none."""
    files = Files()
    report = Report(directory, read_identity(files.read(directory / "identity.json")))
    identity = report.identity
    who = (
        f"node {identity.node} of cluster {identity.cluster!r}" if identity.node else "the standalone server"
    )
    report.say(f"{directory}: {who}, incarnation {identity.incarnation}")
    try:
        look(files, report)
    except Damaged as error:
        report.damage = str(error)
        report.say(f"  DAMAGED: {error}")
        report.say(
            "  the node does not vote with this; its peers have what it had, and it gets that by a rejoin:"
        )
        if isinstance(error, Unreadable):
            report.say(
                "  by itself it does not: another version may have written this, or a disk is not mounted"
            )
        else:
            report.say("  by itself (where self_repair is on), or when this is moved aside, with --rejoin")
    return report


def look(files: Files, report: Report) -> None:
    directory = report.directory
    manifest = load_manifest(files, directory)
    tell_checkpoints(files, report, manifest)
    reading, first = Reading(files, directory, manifest), manifest.frame if manifest else 1
    frames: list[list[Record]] = []
    segments = size = 0
    for part in reading.parts():
        frames += part.records()
        segments += 1
        size += part.scan.stop - FIRST
    core, store = recovered(files, report, manifest, frames)
    position = f"command {store.position[0]} of node {store.position[1]}"
    whole = f"{len(frames):,} frames in {segments} segments, {size:,} bytes, all intact"
    report.say(f"  journal: {whole}; frames {first} to {reading.number - 1}")
    if reading.suspect:
        path, offset = reading.suspect
        report.say(f"  {path}: offset {offset}: a torn frame, which the next start cuts")
    report.say(f"  state: {store.size():,} keys, applied up to {position}, rolling hash {store.hash:08x}")
    if isinstance(core, Node):
        tell_logs(report, core)


def tell_checkpoints(files: Files, report: Report, manifest: Manifest | None) -> None:
    directory = report.directory
    if manifest is None:
        report.say("  no checkpoint: the journal has everything")
        return
    for which, saved in (("current", manifest.checkpoint), ("previous", manifest.previous)):
        if saved is None:
            continue
        path = checkpoint_path(directory, saved.number)
        if which == "previous" and not files.exists(path):
            report.say(f"  previous checkpoint {saved.number}: removed, and not needed")
            continue
        try:
            cut = cut_of(load(files, path, saved))
        except Damaged as error:
            if which == "current":
                raise
            report.say(f"  previous checkpoint {saved.number}: damaged, and not needed: {error}")
            continue
        report.say(
            f"  {which} checkpoint {saved.number}: intact, {saved.size:,} bytes, up to command "
            f"{cut.position[0]} of node {cut.position[1]}"
        )


def recovered(
    files: Files, report: Report, manifest: Manifest | None, frames: list[list[Record]]
) -> tuple[Core, Store]:
    """Recover as a start does. Fills in what is chosen, and the hashes."""
    store = Store("unused")
    core: Core = Single()
    if report.identity.node:
        logs = {report.identity.node}
        if manifest:
            path = checkpoint_path(report.directory, manifest.checkpoint.number)
            logs |= set(cut_of(load(files, path, manifest.checkpoint)).logs)
        for record in (record for frame in frames for record in frame):
            about = record.promised or record.held or record.chosen or record.candidate
            if about:
                logs.add(about.log)
            if record.noted:
                logs.add(record.noted.node)
        proposing = report.identity.proposing or OWN_LOGS
        core = Node(report.identity.node, logs, Random(0), proposing=proposing)
    replay(core, store, files, report.directory, manifest, frames)
    report.hashes[store.position] = store.hash
    core.start(0.0)
    for applied in core.drain(0.0).apply:
        store.apply(applied.timestamp, applied.owner, applied.payload)
        report.hashes[store.position] = store.hash
    report.state = state_of(store, core.cut())
    return core, store


def tell_logs(report: Report, core: Node) -> None:
    for log, acceptor in core.acceptors.items():
        for slot, entry in enumerate(acceptor.from_slot(acceptor.base, acceptor.chosen), start=acceptor.base):
            report.chosen[log, slot] = entry
        report.say(
            f"  log {log}: {acceptor.chosen:,} entries chosen (from {acceptor.base:,} on in the journal), "
            f"{acceptor.length - acceptor.chosen:,} more accepted; led by node {node_of(acceptor.promised)}"
        )


def compare(reports: list[Report]) -> list[str]:
    """Contradictions between directories, and what was compared."""
    lines: list[str] = []
    for index, one in enumerate(reports):
        for other in reports[index + 1 :]:
            slots = one.chosen.keys() & other.chosen.keys()
            places = one.hashes.keys() & other.hashes.keys() - {(0, 0)}
            between = f"{one.directory} and {other.directory}"
            for log, slot in sorted(slots):
                if one.chosen[log, slot] != other.chosen[log, slot]:
                    both = [zlib.crc32(report.chosen[log, slot].payload) for report in (one, other)]
                    lines.append(f"CONTRADICTION: {between}: log {log}, slot {slot}: payloads with CRC-32 "
                                 f"{both[0]:08x} and {both[1]:08x}")  # fmt: skip
                    break
            for place in sorted(places):
                if one.hashes[place] != other.hashes[place]:
                    lines.append(f"CONTRADICTION: {between}: different states after command {place[0]} of "
                                 f"node {place[1]}")  # fmt: skip
                    break
            last = f", the last after command {max(places)[0]}" if places else ""
            lines.append(f"{between}: {len(slots):,} chosen entries in both, {len(places):,} states{last}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="fsck.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="a node's data directory")
    parser.add_argument("--all", action="store_true", help="compare them with one another")
    parser.add_argument(
        "--export", type=program.new_file, metavar="FILE.gz", help="write what it holds as a backup"
    )
    options = parser.parse_args()
    if options.export and len(options.directories) > 1:
        parser.error("--export: one directory at a time")
    reports = []
    files = Files()
    for directory in options.directories:
        try:
            if not files.exists(directory / "identity.json"):
                raise JournalError(f"{directory}: holds no identity.json: this is no data directory")
            lock = files.lock(directory / "lock")
            try:
                reports.append(inspect(directory))
            finally:
                files.close(lock)
        except BlockingIOError:
            print(f"fsck.py: {directory}: in use: stop the node first", file=sys.stderr)
            return UNUSABLE
        except (JournalError, OSError, ValueError) as error:
            text = str(error) if str(directory) in str(error) else f"{directory}: {error}"
            print(f"fsck.py: {text}", file=sys.stderr)
            return UNUSABLE
        print("\n".join(reports[-1].lines))
    bad = any(report.damage for report in reports)
    if options.export and not bad:
        try:
            with options.export.open("xb") as file:
                file.write(gzip.compress(orjson.dumps(reports[0].state), mtime=0))
        except FileExistsError:
            print(f"fsck.py: {options.export}: it is there already", file=sys.stderr)
            return UNUSABLE
        print(f"{options.export}: {len(reports[0].state) - 1:,} keys, as restore.sh takes them")
    if options.all:
        lines = strangers(reports) or compare(reports)
        bad = bad or any(line.startswith("CONTRADICTION") for line in lines)
        print("\n".join(lines))
    print("DAMAGED" if bad else "whole" + (", and they agree" if options.all else ""))
    return DAMAGED if bad else WHOLE


def strangers(reports: list[Report]) -> list[str]:
    """Directories that do not belong to one cluster cannot be compared."""
    names = {re.sub(r"\s", " ", f"{r.identity.cluster} {r.identity.digest}") for r in reports}
    return ["CONTRADICTION: the directories belong to different clusters"] if len(names) > 1 else []


if __name__ == "__main__":
    sys.exit(main())
