"""Every state in which a power cut can leave a data directory.

The journal is written, segments roll, checkpoints are made, another node's checkpoint is taken, and what is
old is removed. One run is recorded on the simulated disk. After each of its operations the power fails, and
of what was not synced then the disk has: nothing; everything; each beginning of what was written, sector by
sector; all but one sector; one sector alone; each set of the names that were changed, whatever their order
was. Each state is recovered. It must hold what had been acknowledged by then, and nothing that was never
asked for.

And after each operation the process is killed, so that the disk has everything, and a bit of the last frame
flips: what was acknowledged must be there, or the damage be told.
"""

import itertools
import json
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from paxoskv.multipaxos import Cut
from paxoskv.state.store import RESERVED_KEY
from paxoskv.storage.checkpoint import bookkeeping, cut_of
from paxoskv.storage.data_dir import create
from paxoskv.storage.files import Damaged
from paxoskv.storage.mark import SYNCED
from paxoskv.storage.segments import FIRST, read_frame_header, read_segment_header
from paxoskv.wire.structs import Record
from tests.harness.disk import SECTOR as SECTOR_BYTES
from tests.harness.disk import Content, Disk, Folder, overlay, rename
from tests.storage.test_checkpoint_files import NODE, Server

SEGMENT = 8 * 1024  # bytes: several frames of several sectors
VALUE = "v" * 1800
MOST_NAMES = 4  # of more changed names not every set is tried, but each beginning, each one, and all but one
ENOUGH = 20_000  # states


class Recording(Disk):
    """A disk that shows itself after each operation, with what had been acknowledged by then."""

    def __init__(self) -> None:
        super().__init__()
        self.acknowledged = -1  # the data directory is not there yet
        self.asked = 0
        self.states = 0
        self.noticed = 0

    def _begin(self, operation: str) -> None:
        self.look()  # before each operation is after the one before
        super()._begin(operation)

    def look(self) -> None:
        if self.acknowledged >= 0:
            for disk in crashes(self._root):
                self.states += 1
                check(disk, self.acknowledged, self.asked, thoroughly=self.states % 97 == 0)
            if spoiled := after_kill_and_damage(self._root):
                try:
                    check(spoiled, self.acknowledged, self.asked, thoroughly=False)
                except Damaged:
                    self.noticed += 1


def check(disk: Disk, acknowledged: int, asked: int, thoroughly: bool) -> None:
    server = Server(NODE, disk, segment_bytes=SEGMENT)
    found = server.content()
    number = int(found.get("number", "0"))
    assert acknowledged <= number <= asked, f"{acknowledged} were acknowledged, {number} are found"
    assert found == expected(number)
    if thoroughly:  # the next life goes on from it, and so does the one after that
        server.put("number", str(number + 1))
        server.journal.close()
        disk.power_cut()
        assert Server(NODE, disk, segment_bytes=SEGMENT).content()["number"] == str(number + 1)


def expected(number: int) -> dict[str, str]:
    """What the store holds after so many steps."""
    if not number:
        return {}
    content = {f"key {step % 3}": f"{step} {VALUE}" for step in range(1, number)}
    return {**content, "number": str(number)}


def crashes(root: Folder) -> Iterator[Disk]:
    """Every state that the disk can have after a power cut now."""
    files = list(pending_files(root, ()))
    sectors = [(path, at) for path, content in files for at in written(content)]
    names = [(path, i) for path, folder in pending_folders(root, ()) for i in range(len(folder.pending))]
    seen = set()
    for some_sectors, some_names in itertools.chain(
        ((part, subset) for part in parts(sectors) for subset in ([], names)),
        ((part, subset) for subset in subsets(names) for part in ([], sectors)),
    ):
        choice = (frozenset(some_sectors), frozenset(some_names))
        if choice not in seen:
            seen.add(choice)
            yield after_cut(root, *choice)


def parts(items: list[Any]) -> Iterator[list[Any]]:
    """Each beginning, each one, all but each one, everything."""
    for i in range(len(items) + 1):
        yield items[:i]
        if i < len(items):
            yield [items[i]]
            yield items[:i] + items[i + 1 :]


def subsets(items: list[Any]) -> Iterator[list[Any]]:
    if len(items) > MOST_NAMES:
        yield from parts(items)
        return
    for size in range(len(items) + 1):
        yield from map(list, itertools.combinations(items, size))


def written(content: Content) -> list[int]:
    """The sectors that were written since the last sync; -1 stands for the file's new size."""
    touched = {
        sector
        for offset, data in content.pending
        for sector in range(offset // SECTOR_BYTES, (offset + len(data) - 1) // SECTOR_BYTES + 1)
    }
    return ([-1] if len(content.cached) > len(content.durable) else []) + sorted(touched)


def pending_folders(folder: Folder, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Folder]]:
    if folder.pending:
        yield path, folder
    for name, node in folder.cached.items():
        if isinstance(node, Folder):
            yield from pending_folders(node, (*path, name))


def pending_files(folder: Folder, path: tuple[str, ...]) -> Iterator[tuple[int, Content]]:
    """By identity: a file may have another name on the disk than in the cache."""
    known: dict[int, Content] = {}
    nodes = [*folder.cached.values(), *folder.durable.values(), *(node for _, _, node in folder.pending)]
    for node in nodes:
        if isinstance(node, Folder):
            known.update(pending_files(node, path))
        elif node.pending:
            known[id(node)] = node
    yield from known.items()


def after_cut(root: Folder, sectors: frozenset[Any], names: frozenset[Any]) -> Disk:
    """A disk on which of the changes that were not synced these have survived."""
    copies: dict[int, Content] = {}

    def copied_file(content: Content) -> Content:
        if id(content) not in copies:
            copy = copies[id(content)] = Content()
            copy.durable[:] = content.durable
            for offset, data in content.pending:
                for sector in range(offset // SECTOR_BYTES, (offset + len(data) - 1) // SECTOR_BYTES + 1):
                    if (id(content), sector) in sectors:
                        start = max(offset, sector * SECTOR_BYTES)
                        end = min(offset + len(data), (sector + 1) * SECTOR_BYTES)
                        overlay(copy.durable, data[start - offset : end - offset], start)
            grown = (id(content), -1) in sectors
            size = len(content.cached) if grown else len(content.durable)
            copy.durable = copy.durable[:size].ljust(size, b"\0")
            copy.cached[:] = copy.durable
        return copies[id(content)]

    def copied(folder: Folder, path: tuple[str, ...]) -> Folder:
        copy = Folder()
        durable = dict(folder.durable)
        for i, (gone, new, node) in enumerate(folder.pending):
            if (path, i) in names:
                rename(durable, gone, new, node)
        for name, node in durable.items():
            copy.durable[name] = (
                copied(node, (*path, name)) if isinstance(node, Folder) else copied_file(node)
            )
        copy.cached = dict(copy.durable)
        return copy

    disk = Disk()
    disk._root = copied(root, ())
    return disk


def after_kill_and_damage(root: Folder) -> Disk | None:
    """A disk that has everything, but one bit of the last frame flipped; None if there is no frame."""
    sectors = frozenset((path, at) for path, content in pending_files(root, ()) for at in written(content))
    names = frozenset(
        (path, i) for path, folder in pending_folders(root, ()) for i in range(len(folder.pending))
    )
    disk = after_cut(root, sectors, names)
    for name in sorted(disk.names(NODE / "journal"), reverse=True):
        content = disk.content(NODE / "journal" / name)
        segment = read_segment_header(bytes(content))
        at, last = FIRST, 0
        while segment and (header := read_frame_header(bytes(content), at, segment)):
            at, last = header[1], at
        if last:
            content[(last + at) // 2] ^= 1
            return disk
    return None


@pytest.mark.slow
def test_no_state_that_a_power_cut_can_leave_loses_anything_acknowledged():
    disk = Recording()
    disk.make_directory(NODE)
    create(NODE, Server.IDENTITY, SEGMENT, disk)
    disk.remove(NODE / SYNCED)  # as an earlier version has left it
    disk.sync_directory(NODE)
    disk.acknowledged = 0
    server = Server(NODE, disk, segment_bytes=SEGMENT)

    def step() -> None:
        disk.asked += 1
        if disk.asked > 1:
            previous = disk.asked - 1
            server.put_all({f"key {previous % 3}": f"{previous} {VALUE}", "number": str(disk.asked)})
        else:
            server.put("number", "1")
        disk.acknowledged = disk.asked

    def take_another_nodes_checkpoint() -> None:
        """One that stands further on than we do."""
        disk.asked += 1
        clock = server.core.clock + 1
        cut = Cut((clock, 0), {}, clock)
        more = {"sessions": [], "hash": 7, **bookkeeping(cut)}
        data = json.dumps({**expected(disk.asked), RESERVED_KEY: more}).encode()
        server.checkpoints.begin(len(data))
        for offset in range(0, len(data), 1000):
            server.checkpoints.write(offset, data[offset : offset + 1000])
        taken: list[tuple[int, Cut, dict[str, Any]]] = []
        server.checkpoints.finish(zlib.crc32(data), lambda *what: taken.append(what), failed)
        ((number, _, state),) = taken
        server.journal.write([Record(installed=number)])
        disk.acknowledged = disk.asked
        server.core.install(cut_of(state))
        server.store.load_state(state)

    disk.acknowledged = 0
    for generation in range(17):
        for _ in range(9):
            step()
        server.roll()
        step()
        if generation % 4 == 1:
            take_another_nodes_checkpoint()
            step()
        server.checkpoint()
        step()
    server.journal.close()
    server = Server(NODE, disk, segment_bytes=SEGMENT)
    step()
    disk.look()
    print(f"{disk.states} states after {disk.operations} operations")
    assert server.content() == expected(disk.asked)
    assert disk.states >= ENOUGH
    assert disk.noticed >= disk.asked


def failed(reason: str) -> None:
    raise AssertionError(reason)


def test_a_journal_that_would_write_before_the_last_frame_is_durable_is_found_out():
    """The states are the right ones: without one sync, some of them lose what was acknowledged."""
    disk = Recording()
    disk.make_directory(NODE)
    create(NODE, Server.IDENTITY, SEGMENT, disk)
    server = Server(NODE, disk, segment_bytes=SEGMENT)
    server.journal._sync = False
    disk.asked = 1
    server.put("number", "1")
    disk.acknowledged = 1
    try:
        disk.look()
    except AssertionError as error:
        assert "1 were acknowledged, 0 are found" in str(error)
    else:
        raise AssertionError("nothing was noticed")
