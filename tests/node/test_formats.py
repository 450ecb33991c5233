"""When newer commands may be used: nobody proposes or applies them before all nodes know them."""

from types import SimpleNamespace
from typing import Any

import pytest

from paxoskv.node.formats import Formats
from paxoskv.node.service import Service
from paxoskv.state.store import Store, encode_batch
from paxoskv.wire.codec import NotDone, Unknown
from paxoskv.wire.structs import Action, Command, Identity, Outcome, Transaction, Verb
from paxoskv.wire.validation import FORMAT

CHANGES = Transaction([], [Action(Verb.PUT, "k", "v")], [])


def hello(node: int, format_: int | None) -> Identity:
    return Identity("test", "", node, 1, 1, format=format_)


class Bench:
    """The service of node 1 of three, with a store that applies at once what is submitted."""

    def __init__(self) -> None:
        self.store = Store("never-written.json")
        self.marks: list[int] = []
        self.formats = Formats(self.store, [2, 3], self.marks.append)
        self.entries: list[list[Command]] = []
        self.answers: list[Any] = []
        self.refusal: str | None = None  # of the node's health
        self.lost = False  # whether what is submitted is lost
        well: Any = SimpleNamespace(refuses_commands=lambda: self.refusal, status=None)
        replica: Any = SimpleNamespace(store=self.store, crowded=False, submit=self.submit)
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
        return self.answers.pop()


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
    Formats(other, [2, 3], bench.marks.append)
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
    formats = Formats(Store("never-written.json"), (2, 3), lambda *_: None)
    formats.heard[2] = FORMAT
    assert formats.hindrance() is not None and formats.hindrance(3) is None
    formats.heard[3] = FORMAT - 1
    assert "older version" in str(formats.hindrance(3))
