"""When newer commands may be used: nobody proposes or applies them before all nodes know them."""

import errno
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from paxoskv.node.formats import WAITING, Formats
from paxoskv.node.main import keep_older_out
from paxoskv.node.service import Service
from paxoskv.protocol.node import Node
from paxoskv.state.store import Store, encode_batch
from paxoskv.storage.data_dir import create, read_identity
from paxoskv.wire.codec import NotDone, Unknown
from paxoskv.wire.structs import Action, Command, Identity, Outcome, Transaction, Verb
from paxoskv.wire.validation import FORMAT
from tests.harness.disk import Disk

CHANGES = Transaction([], [Action(Verb.PUT, "k", "v")], [])


def hello(node: int, format_: int | None) -> Identity:
    return Identity("test", "", node, 1, 1, format=format_)


class Bench:
    """The service of node 1 of three, with a store that applies at once what is submitted."""

    def __init__(self) -> None:
        self.store = Store("never-written.json")
        self.marks: list[int] = []
        self.applied: dict[int, tuple[int, int]] = {}  # by the peers, if not all that we have
        self.formats = Formats(self.store, [2, 3], self.marks.append, self.report)
        self.entries: list[list[Command]] = []
        self.answers: list[Any] = []
        self.refusal: str | None = None  # of the node's health
        self.now = 0.0
        self.lost = False  # whether what is submitted is lost
        well: Any = SimpleNamespace(refuses_commands=lambda: self.refusal, status=None)
        replica: Any = SimpleNamespace(
            store=self.store, crowded=False, submit=self.submit, clock=lambda: self.now
        )
        self.service = Service(
            replica,
            well,
            well,
            well,
            well,
            well,
            well,
            self.formats,
            lambda _, value: self.answers.append(value),
        )

    def report(self) -> Any:
        return SimpleNamespace(applied={2: self.store.position, 3: self.store.position, **self.applied})

    def verbs(self) -> list[int]:
        """What was proposed since the last call."""
        entries, self.entries[:] = (
            [command.verb or 0 for commands in self.entries for command in commands],
            [],
        )
        return entries

    def submit(self, token: Any, commands: list[Command], batch: bool = False) -> None:
        self.entries.append(commands)
        if self.lost:
            token(Unknown("no quorum has answered in time"))
            return
        results = self.store.apply(self.store.position[0] + 1, 1, encode_batch(commands))
        if callable(token):
            token(results[0])
        else:
            self.answers.append(results if batch else results[0])

    def call(self, method: bytes, *arguments: Any) -> Any:
        self.service.methods["writer"][method]("token", arguments)
        return self.answers.pop() if self.answers else None


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_nothing_new_is_proposed_before_all_peers_have_said_that_they_know_it(bench: Bench) -> None:
    for said in (None, 2):
        if said is not None:
            assert bench.formats.hear(hello(said, FORMAT)) is None
        for method, arguments in (
            (b"transaction", (CHANGES, None)),
            (b"execute", ([Command(Verb.TRANSACTION, transaction=CHANGES)],)),
        ):
            refusal = bench.call(method, *arguments)
            assert isinstance(refusal, NotDone) and not refusal.permanent
            assert refusal.reason.startswith(f"node {3 if said else 2} is not connected, and has not said")
    assert bench.entries == []


def test_a_peer_of_an_older_version_is_named(bench: Bench) -> None:
    bench.formats.hear(hello(2, FORMAT))
    assert bench.formats.hear(hello(3, None)) is None, (
        "it may take part: nothing is used that it does not know"
    )
    assert bench.call(b"transaction", CHANGES, None).reason == (
        "node 3 has an older version, which does not know this"
    )
    assert bench.entries == []


def test_the_first_of_the_new_commands_has_an_upgrade_before_it_and_the_next_has_none(bench: Bench) -> None:
    bench.formats.hear(hello(2, FORMAT))
    bench.formats.hear(hello(3, FORMAT))
    assert bench.call(b"put", "k", "old", None).outcome == Outcome.OK
    assert bench.store.format == 0, "who uses none of it can go back to the version before"
    for _ in range(2):
        assert bench.call(b"transaction", CHANGES, None).outcome == Outcome.OK
    assert [[command.verb for command in commands] for commands in bench.entries] == [
        [Verb.PUT], [Verb.UPGRADE], [Verb.TRANSACTION], [Verb.TRANSACTION],
    ]  # fmt: skip


def test_after_the_upgrade_an_older_version_takes_no_part(bench: Bench) -> None:
    bench.store.format = FORMAT
    for said in (None, FORMAT - 1):
        reason = bench.formats.hear(hello(2, said))
        assert reason is not None and "needs newer software" in reason and "\n" not in reason
    assert bench.formats.hear(hello(2, FORMAT)) is None
    assert bench.formats.hear(hello(2, FORMAT + 1)) is None, "the next version tells the same story to us"


def test_a_peer_that_comes_back_with_an_older_version_before_the_upgrade_is_noticed(bench: Bench) -> None:
    for node, said in ((2, FORMAT), (3, FORMAT), (3, None)):
        bench.formats.hear(hello(node, said))
    assert "node 3 has an older version" in bench.call(b"transaction", CHANGES, None).reason


def test_what_an_ended_process_has_said_counts_no_more(bench: Bench) -> None:
    for node in (2, 3):
        bench.formats.hear(hello(node, FORMAT))
    bench.formats.forget(3)
    assert "node 3 is not connected" in bench.call(b"transaction", CHANGES, None).reason
    bench.formats.forget(0)  # nobody's connection
    assert bench.entries == []


def test_whoever_is_too_old_when_the_format_rises_is_told_nothing_more(bench: Bench) -> None:
    bench.formats.hear(hello(2, FORMAT))
    bench.formats.hear(hello(3, None))
    upgrade = Command(Verb.UPGRADE, delta=FORMAT)
    bench.store.apply(1, 1, encode_batch([upgrade]))
    assert bench.formats.old == {3} and bench.marks == [FORMAT]
    bench.formats.forget(3)
    assert bench.formats.old == frozenset()
    assert bench.formats.hear(hello(3, None)) is not None
    assert bench.formats.hear(hello(3, FORMAT)) is None and bench.formats.old == frozenset()
    bench.store.apply(2, 1, encode_batch([upgrade]))
    assert bench.marks == [FORMAT], "it has risen once"


def test_a_format_that_comes_with_a_checkpoint_or_the_journal_is_marked_too(bench: Bench) -> None:
    other = Store("other")
    other.apply(1, 2, encode_batch([Command(Verb.UPGRADE, delta=FORMAT)]))
    bench.store.load_state(other.save_state())
    assert bench.marks == [FORMAT]
    Formats(other, [2, 3], bench.marks.append, bench.report)
    assert bench.marks == [FORMAT, FORMAT]


@pytest.mark.parametrize("command", [Command(Verb.TRANSACTION), Command(77, "k"), Command(Verb.PUT, "")])
def test_a_request_that_makes_no_sense_causes_no_upgrade(bench: Bench, command: Command) -> None:
    for node in (2, 3):
        bench.formats.hear(hello(node, FORMAT))
    new = Command(Verb.TRANSACTION, transaction=CHANGES)
    refusal = bench.call(b"execute", [new, command])
    assert isinstance(refusal, NotDone) and refusal.permanent and refusal.reason.startswith("commands[1]: ")
    bench.refusal = "no majority"
    assert bench.call(b"transaction", CHANGES, None).reason == "no majority"
    assert bench.entries == [] and bench.store.format == 0


def test_a_command_whose_upgrade_is_lost_was_not_done_and_may_be_tried_again(bench: Bench) -> None:
    for node in (2, 3):
        bench.formats.hear(hello(node, FORMAT))
    bench.lost = True
    refusal = bench.call(b"transaction", CHANGES, None)
    assert isinstance(refusal, NotDone) and not refusal.permanent
    assert [[command.verb for command in commands] for commands in bench.entries] == [[Verb.UPGRADE]]


def test_clients_cannot_say_upgrade(bench: Bench) -> None:
    bench.formats.hear(hello(2, FORMAT))
    bench.formats.hear(hello(3, FORMAT))
    refusal = bench.call(b"execute", [Command(Verb.GET, "k"), Command(Verb.UPGRADE, delta=FORMAT)])
    assert isinstance(refusal, NotDone) and refusal.permanent
    assert bench.entries == []


def test_a_node_that_is_to_be_replaced_is_not_waited_for_unless_it_is_there_and_old() -> None:
    formats = Formats(
        Store("never-written.json"), (2, 3), lambda *_: None, Node(1, [1, 2, 3], Random(0)).report
    )
    formats.heard[2] = FORMAT
    assert formats.hindrance() is not None and formats.hindrance(3) is None
    formats.heard[3] = FORMAT - 1
    assert "older version" in str(formats.hindrance(3))


def test_a_node_that_was_refused_for_its_old_version_can_be_replaced(bench: Bench) -> None:
    both_know(bench)
    bench.store.apply(1, 1, encode_batch([Command(Verb.UPGRADE, delta=FORMAT)]))
    assert "needs newer software" in str(bench.formats.hear(hello(3, FORMAT - 1)))
    assert "older version" in str(bench.formats.hindrance())
    assert bench.formats.hindrance(besides=3) is None


def both_know(bench: Bench) -> None:
    for node in (2, 3):
        assert bench.formats.hear(hello(node, FORMAT)) is None


def test_a_newer_command_is_not_proposed_before_every_node_has_applied_the_upgrade(bench: Bench) -> None:
    """Else a majority could go back to the older version, with the command in its journals."""
    both_know(bench)
    bench.applied = {2: (0, 0), 3: (0, 0)}
    assert bench.call(b"transaction", CHANGES, None) is None, "it waits"
    assert bench.verbs() == [Verb.UPGRADE]
    assert bench.call(b"transaction", CHANGES, None) is None and bench.verbs() == [], "one UPGRADE is enough"
    for node in (2, 3):
        bench.formats.look()
        assert bench.verbs() == []
        bench.applied[node] = bench.store.position
    bench.formats.look()
    assert bench.verbs() == [Verb.TRANSACTION] * 2
    assert [answer.outcome for answer in bench.answers] == [Outcome.OK] * 2


def test_a_newer_command_that_waits_too_long_for_a_node_was_not_done(bench: Bench) -> None:
    both_know(bench)
    bench.applied = {3: (0, 0)}
    assert bench.call(b"transaction", CHANGES, None) is None
    bench.now = 1.0
    assert bench.call(b"transaction", CHANGES, None) is None
    bench.formats.expire(before=1.0)
    (refusal,) = bench.answers
    assert isinstance(refusal, NotDone) and not refusal.permanent
    assert refusal.reason == "node 3 has not noted yet that all nodes know this"
    bench.formats.expire(before=9.0, reason="this node is stopping")
    assert [answer.reason for answer in bench.answers[1:]] == ["this node is stopping"]
    bench.applied.clear()
    bench.formats.look()
    assert bench.verbs() == [Verb.UPGRADE], "what was refused is never proposed"


@pytest.mark.parametrize("gone", [True, False])
def test_a_node_that_goes_back_while_the_upgrade_is_under_way_is_waited_for(bench: Bench, gone: bool) -> None:
    both_know(bench)
    bench.applied = {3: (0, 0)}
    assert bench.call(b"transaction", CHANGES, None) is None
    bench.formats.forget(3)
    if not gone:
        assert bench.formats.hear(hello(3, None)) is not None
    bench.applied.clear()  # what was told before does not help
    bench.formats.look()
    assert bench.verbs() == [Verb.UPGRADE]
    bench.formats.expire(before=1.0)
    assert ("is not connected" if gone else "has an older version") in bench.answers[0].reason
    both_know(bench)
    assert bench.call(b"transaction", CHANGES, None).outcome == Outcome.OK


def test_what_all_have_applied_is_remembered_so_that_later_commands_wait_for_nobody(bench: Bench) -> None:
    both_know(bench)
    bench.refusal = None
    assert bench.call(b"transaction", CHANGES, None).outcome == Outcome.OK
    bench.formats.forget(3)
    bench.applied = {2: (0, 0), 3: (0, 0)}
    assert bench.call(b"transaction", CHANGES, None).outcome == Outcome.OK
    restarted = Bench()
    restarted.store.load_state(bench.store.save_state())
    restarted.applied = {2: (0, 0), 3: (0, 0)}
    assert restarted.call(b"transaction", CHANGES, None).outcome == Outcome.OK, "the state says so"


def test_a_node_that_starts_before_a_newer_command_was_applied_asks_the_others_once_more(
    bench: Bench,
) -> None:
    bench.store.apply(7, 1, encode_batch([Command(Verb.UPGRADE, delta=FORMAT)]))
    restarted = Bench()
    restarted.store.load_state(bench.store.save_state())
    assert "node 2 is not connected" in restarted.call(b"transaction", CHANGES, None).reason
    both_know(restarted)
    restarted.applied = {2: (7, 1), 3: (6, 5)}
    assert restarted.call(b"transaction", CHANGES, None) is None
    restarted.applied[3] = (7, 1)
    restarted.formats.look()
    assert restarted.verbs() == [Verb.TRANSACTION]


def test_a_node_that_is_replaced_need_not_have_applied_the_upgrade(bench: Bench) -> None:
    both_know(bench)
    bench.formats.forget(3)
    bench.store.apply(1, 1, encode_batch([Command(Verb.UPGRADE, delta=FORMAT)]))
    bench.applied = {2: (0, 0), 3: (0, 0)}
    told: list[str | None] = []
    bench.formats.wait(told.append, 3, 0.0)
    assert told == []
    bench.applied[2] = (1, 1)
    bench.formats.look()
    assert told == [None] and not bench.formats.settled, "the others' commands wait for it all the same"


def test_commands_that_wait_are_bounded(bench: Bench) -> None:
    told: list[str | None] = []
    for _ in range(WAITING + 1):
        bench.formats.wait(told.append, 0, 0.0)
    assert told == ["busy: too many commands wait"]


@pytest.mark.parametrize("operation", ["create", "pwrite", "fdatasync", "sync_directory"])
def test_a_full_disk_when_the_format_rises_ends_the_node_until_there_is_room(
    monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """Nobody hears that it has applied the upgrade; the next start finds what the journal holds."""
    ended: list[tuple[Any, ...]] = []

    def end(*told: Any, reason: object) -> None:
        ended.append((*told, str(reason)))
        raise SystemExit

    monkeypatch.setattr("paxoskv.node.writer.end", end)
    disk, directory = Disk(), Path("node-1")
    create(directory, hello(1, None)._replace(life=0), files=disk)
    identity = read_identity(disk.read(directory / "identity.json"))
    store = Store("never-written.json")
    core = Node(1, [1, 2, 3], Random(0))
    Formats(store, [2, 3], partial(keep_older_out, directory, identity, files=disk), core.report)
    disk.fail_next(operation, errno.ENOSPC)
    with pytest.raises(SystemExit):
        store.apply(1, 1, encode_batch([Command(Verb.UPGRADE, delta=FORMAT)]))
    reason = "node-1/identity.json: cannot note that all nodes know newer commands: No space left on device"
    assert ended == [(74, "disk-failed", reason)]
    assert not disk.exists(directory / "identity.json.new")
    Formats(store, [2, 3], partial(keep_older_out, directory, identity, files=disk), core.report)
    assert read_identity(disk.read(directory / "identity.json")).format == FORMAT
