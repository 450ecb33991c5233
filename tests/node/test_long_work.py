"""Work that takes long: in pieces, in turns, once for many askers. Counted, not timed."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from paxoskv.kvstore import KeyValue
from paxoskv.node import calls
from paxoskv.node.long_work import ANSWERS, SHARING, Digests, LongWork, Work
from paxoskv.node.metrics import Counts
from paxoskv.node.replica import CROWD, Replica
from paxoskv.node.service import Service
from paxoskv.state.store import Digested, Store, encode_batch
from paxoskv.wire.codec import Unknown
from paxoskv.wire.methods import METHODS, header
from paxoskv.wire.structs import (
    Action,
    Answer,
    Command,
    CommandPlace,
    Outcome,
    Range,
    Result,
    Transacted,
    Transaction,
    Verb,
)
from paxoskv.wire.validation import MAX_VALUE_BYTES
from tests.harness.processes import DEADLINE_S, PROJECT, RealCluster


class Turns:
    """What is due after a while; the test says when."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def after(self, _: float, call: Callable[[], None]) -> None:
        self.due.append(call)

    def run(self) -> int:
        """Let the time pass until nothing more is due. Returns how often it was."""
        count = 0
        while self.due:
            assert len(self.due) == 1, "one piece between two turns"
            self.due.pop()()
            count += 1
        return count


class Call:
    """A call, and its connection."""

    def __init__(self) -> None:
        self.connection: Any = self
        self.open = True
        self.holds = 0

    def hold(self) -> None:
        self.holds += 1

    def release(self) -> None:
        self.holds -= 1


def long(name: str, pieces: int, seen: list[str], result: Any = None) -> Work:
    for number in range(pieces):
        seen.append(f"{name}{number}")
        if number < pieces - 1:
            yield
    return result


def test_the_first_piece_is_done_at_once_and_then_all_take_turns() -> None:
    turns: Any = Turns()
    seen: list[str] = []
    part = LongWork(turns)
    part.begin(long("a", 3, seen))
    assert seen == ["a0"]
    for name, pieces in ("b", 1), ("c", 2):
        part.begin(long(name, pieces, seen))
    assert seen == ["a0"], "a turn lies between two pieces, whoever asks"
    turns.run()
    assert seen == ["a0", "a1", "b0", "c0", "a2", "c1"]
    part.begin(long("d", 1, seen))
    assert seen[-1] == "d0"


def test_what_nobody_waits_for_any_more_is_not_done() -> None:
    turns: Any = Turns()
    seen: list[str] = []
    part = LongWork(turns)
    calls: list[Any] = [Call() for _ in range(1000)]
    for call in calls:
        part.begin(long("a", 3, seen), call)
    for call in calls[1:-1]:
        call.open = False
    turns.run()
    assert seen == ["a0", "a1", "a0", "a2", "a1", "a2"]


class Asked:
    """Digests of a store of 40 keys, ten in a piece, and who was answered with which."""

    def __init__(self) -> None:
        self.turns: Any = Turns()
        self.store = Store("never-written.json")
        self.store._content.piece_keys = 10
        self.write(40)
        self.answers: list[tuple[Any, Digested]] = []
        self.part = Digests(self.store, LongWork(self.turns), lambda *answer: self.answers.append(answer))

    def write(self, keys: int) -> None:
        commands = [Command(Verb.PUT, str(key), str(self.store.position)) for key in range(keys)]
        self.store.apply(self.store.position[0] + 1, 1, encode_batch(commands))

    def ask(self, count: int) -> list[Any]:
        calls: list[Any] = [Call() for _ in range(count)]
        for call in calls:
            self.part.ask(call)
        return calls


@pytest.fixture
def asked() -> Asked:
    return Asked()


def test_300_who_ask_at_once_get_two_digests_though_the_store_changes_all_the_while(asked: Asked) -> None:
    calls = asked.ask(300)
    position = asked.store.position
    turns = 0
    while asked.turns.due:
        asked.write(40)
        asked.turns.due.pop()()
        turns += 1
    assert [call for call, _ in asked.answers] == calls
    assert asked.part.made == 2
    # 40 keys put in order, and hashed twice with what they held before: ten in a turn; and the answers.
    assert turns <= 40 / 10 + 2 * (40 + 40) / 10 + 2 + 300 / ANSWERS + 1
    assert all(made.position >= position for _, made in asked.answers)


def test_who_asks_while_one_is_made_gets_one_of_what_was_written_before(asked: Asked) -> None:
    list(asked.store.sort())
    asked.ask(1)
    asked.write(1)
    written = asked.store.position
    asked.ask(2)
    asked.turns.run()
    assert [made.position >= written for _, made in asked.answers] == [False, True, True]
    assert asked.answers[-1][1].digest == asked.store.digest()


def test_a_store_that_has_not_changed_is_not_read_again(asked: Asked) -> None:
    for _ in range(5):
        asked.ask(10)
        asked.turns.run()
    assert asked.part.made == 1 and len(asked.answers) == 50
    assert len({made for _, made in asked.answers}) == 1


def test_those_who_ask_too_much_say_nothing_more_until_they_are_answered(asked: Asked) -> None:
    calls = asked.ask(1 + SHARING + 3)  # the first one's digest is being made
    assert [call.holds for call in calls] == [0] * (SHARING + 1) + [1] * 3
    asked.turns.run()
    assert not any(call.holds for call in calls) and len(asked.answers) == len(calls)


# ------------------------------------------------------------------------------------- crowds, large answers


def test_in_a_crowd_each_connection_adds_one_call_at_a_time() -> None:
    nothing: Any = SimpleNamespace(refuses_commands=lambda: None, status=None)
    replica: Any = SimpleNamespace(store=None, crowded=False, submit=lambda *_: None)
    service = Service(
        replica, nothing, nothing, nothing, LongWork(nothing), nothing, nothing, nothing, lambda *_: None
    )
    asking: list[Any] = [Call() for _ in range(3)]
    service.methods["admin"][b"put"](asking[0], ("k", "v", None))
    replica.crowded = True
    for call in asking[1:]:
        service.methods["admin"][b"put"](call, ("k", "v", None))
    service.let_in()
    assert [call.holds for call in asking] == [0, 1, 1]
    replica.crowded = False
    service.let_in()
    assert not any(call.holds for call in asking)


def test_commands_and_reads_that_wait_are_a_crowd() -> None:
    core: Any = SimpleNamespace(me=1, batch=1000, gathers=False, ready=True, joined=True, read=lambda _: None)
    for submit in (True, False):
        replica = Replica(core, Store("never-written.json"), lambda: 0.0, *[lambda *_: None] * 3)
        for _ in range(CROWD + 1):
            assert not replica.crowded
            if submit:
                replica.submit(None, [Command(Verb.GET, "k")])
            else:
                replica.read(None, lambda: None)
        assert replica.crowded


def test_an_answer_that_is_far_too_large_is_not_even_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    connection: Any = SimpleNamespace(send=sent.append, user=None)
    call = calls.Call(connection, METHODS[b"execute"], 7)
    value = "v" * MAX_VALUE_BYTES
    done = Result(Outcome.OK, transacted=Transacted(CommandPlace(1, 1, 0), [Answer(Outcome.OK, value)] * 2))
    monkeypatch.setattr(METHODS[b"execute"].__class__, "reply", lambda *_: pytest.fail("it is encoded"))
    for result in (Result(Outcome.OK, value), done):
        sent.clear()
        calls.Answers(Counts()).answer(call, [result] * 10_000)  # five gigabytes, or ten
        kind, _, sequence, offset = header(sent[0], 4)
        assert sequence == 7
        with pytest.raises(Unknown, match="done, but the answer has"):
            METHODS[b"execute"].answer(kind, sent[0], offset)


# ------------------------------------------------------------------------------------------- the real thing


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """Three nodes with a store of 20,000 keys and 10 MB."""
    with RealCluster(tmp_path_factory.mktemp("cluster"), nodes=3) as running:
        with running.client() as client:
            for first in range(0, 20_000, 1000):
                keys = range(first, first + 1000)
                client.execute([Command(Verb.PUT, f"key {key}", "v" * 500) for key in keys])
            client.checkpoint(1)
        yield running


CALLS: dict[str, tuple[Any, ...]] = {
    "open_session": (),
    "put": ("many", "value", None),
    "get": ("key 7", None),
    "delete": ("none", None),
    "compare_and_set": ("many", "none", "value", None),
    "increment": ("many", 1, None),
    "transaction": (Transaction([], [Action(Verb.INCREMENT, "many", None, 1)]), None),
    "execute": ([Command(Verb.GET, "key 7")] * 10,),
    "scan": ("key", None, None, None),
    "scan_range": (Range("key", reverse=True), None),
    "watch": ("key", None, None, 0),
    "membership": (),
    "replace_node": (9, "127.0.0.1:1", None),
    "checkpoint": (),
    "read_checkpoint": (0, 0),
    "trace": (None, 0),
    "status": (True,),
}


class Wire:
    """A plain connection to a node."""

    def __init__(self, cluster: RealCluster, node: int) -> None:
        member = cluster.settings.member(node)
        self.socket = socket.create_connection((member.host, member.port), DEADLINE_S)
        self.file = self.socket.makefile("rb")

    def send(self, method: str, count: int, *arguments: Any) -> int:
        """Send so many calls, or as many as fit. Returns how many went out whole."""
        call = METHODS[method.encode()].call
        frames = [call(number, *arguments) for number in range(count)]
        self.socket.setblocking(False)
        sent = self.socket.send(b"".join(frames))
        self.socket.settimeout(DEADLINE_S)
        return sent // len(frames[0])

    def answer(self, method: str) -> Any:
        """Wait for the next answer; return its value."""
        frame = self.file.read(int.from_bytes(self.file.read(4), "big"))
        kind, _, _, offset = header(frame)
        return METHODS[method.encode()].answer(kind, frame, offset)

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def test_every_method_of_a_client_is_among_the_calls() -> None:
    assert set(CALLS) == {name for name in vars(KeyValue.Iface) if not name.startswith("_")}


@pytest.mark.slow
@pytest.mark.parametrize("method", CALLS)
def test_however_many_calls_one_connection_sends_another_has_its_turn(
    cluster: RealCluster, method: str
) -> None:
    """A node finds many calls on one connection and a call on another: it does few of the many before."""
    crowd, quiet = Wire(cluster, 1), Wire(cluster, 1)
    quiet.send("status", 1, False)
    before = quiet.answer("status").counters["frames_received"]
    process = cluster.nodes[1]
    os.kill(process.pid, signal.SIGSTOP)
    try:
        many = crowd.send(method, 2000, *CALLS[method])
        quiet.send("status", 1, False)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    received = quiet.answer("status").counters["frames_received"] - before
    print(f"{method}: of {many} calls, {received} or fewer had been passed on")
    assert many >= 600 and received < many / 2
    crowd.close()
    quiet.close()
    cluster.wait_until_ready()


@pytest.mark.slow
def test_300_digests_in_one_write_to_each_node_are_answered_and_writes_go_on(cluster: RealCluster) -> None:
    crowd = [Wire(cluster, node) for node in cluster.ids]
    with cluster.client() as client:
        for wire in crowd:
            assert wire.send("status", 300, True) == 300
        for number in range(100):
            client.put("key 7", str(number))
        for wire in crowd:
            assert all(len(wire.answer("status").digest) == 64 for _ in range(300))
            wire.close()
    cluster.wait_until_stores_are_equal()


def test_the_calls_of_clients_stand_in_the_manual_with_what_bounds_them() -> None:
    manual = (PROJECT / "docs" / "operations.md").read_text()
    for method in CALLS:
        assert f"| `{method}` |" in manual
