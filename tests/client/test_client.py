"""The client: its operations, without sockets; then both drivers and the command line, against fake nodes."""

import asyncio
import contextlib
import io
import json
import re
import signal
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paxoskv import AsyncClient, Client
from paxoskv.client import aio, operations
from paxoskv.client import cli as command_line
from paxoskv.client import transactions as t
from paxoskv.client.base import addresses_of
from paxoskv.client.operations import (
    Attempt,
    Calls,
    ClientError,
    CompactedError,
    Lost,
    NoNodeReachable,
    NotANumber,
    NotDoneError,
    NotSent,
    Operation,
    Pause,
    Router,
    Unfit,
    UnknownOutcome,
    WrongCluster,
)
from paxoskv.config import Cluster, Member
from paxoskv.wire.codec import Compacted, Expired, Forgotten, NotDone, Unknown
from paxoskv.wire.methods import METHODS
from paxoskv.wire.structs import (
    Command,
    Outcome,
    Place,
    ReadMode,
    Result,
    Session,
    Verb,
)
from paxoskv.wire.validation import MAX_RESULTS
from tests.harness.fake_node import (
    ANOTHER_CALL,
    CLOSE,
    DO_AND_CLOSE,
    DO_AND_IGNORE,
    GARBAGE,
    IGNORE,
    TWICE,
    FakeCluster,
)

SESSION, ANOTHER = Session(7, 1, 0), Session(9, 2, 0)
OK = Result(Outcome.OK)


class Stage:
    """Calls over nodes that do not exist, and a clock that only pauses and lost attempts move."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls = Calls(["n0", "n1", "n2"], 10.0, 1.0, clock=lambda: self.now)
        self.attempts: list[Attempt] = []
        self.pauses: list[float] = []

    def play(self, operation: Operation, *outcomes: Any) -> Any:
        """Let the attempts end with these outcomes, the last one again and again; the operation's result."""
        left = list(outcomes)
        steps = operation.steps
        try:
            step = next(steps)
            while True:
                if isinstance(step, Pause):
                    self.pauses.append(step.seconds)
                    self.now += step.seconds
                    step = steps.send(None)
                    continue
                self.attempts.append(step)
                outcome = left.pop(0) if len(left) > 1 else left[0]
                if isinstance(outcome, Lost):
                    self.now += step.patience
                step = steps.throw(outcome) if isinstance(outcome, Exception) else steps.send(outcome)
        except StopIteration as end:
            return end.value

    def methods(self) -> list[str]:
        return [attempt.method.name for attempt in self.attempts]

    def nodes(self) -> list[int]:
        return [attempt.node for attempt in self.attempts]

    def requests(self) -> list[Any]:
        """The request ids of the writes that were attempted."""
        return [a.arguments[-1] for a in self.attempts if a.method.name != "open_session"]


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def started() -> Stage:
    """With a session, and the first node's turn."""
    stage = Stage()
    stage.play(stage.calls.open_session(), SESSION)
    for _ in range(2):
        stage.play(stage.calls.get("x"), OK)
    stage.attempts.clear()
    return stage


# -------------------------------------------------------------------------------- operations without sockets


def test_operations_go_round_the_nodes(stage: Stage) -> None:
    for _ in range(4):
        stage.play(stage.calls.get("k"), Result(Outcome.OK, "v"))
    assert stage.nodes() == [0, 1, 2, 0]


def test_the_first_write_opens_a_session_and_numbers_begin_at_1(stage: Stage) -> None:
    stage.play(stage.calls.put("k", "v"), SESSION, OK)
    stage.play(stage.calls.put("k", "w"), OK)
    assert stage.methods() == ["open_session", "put", "put"]
    assert [(r.session, r.sequence, r.first_incomplete) for r in stage.requests()] == [
        (SESSION, 1, 1),
        (SESSION, 2, 2),
    ]


def test_a_read_needs_no_session(stage: Stage) -> None:
    assert stage.play(stage.calls.get("k", "log"), Result(Outcome.NOT_FOUND)) is None
    assert stage.attempts == [Attempt(0, METHODS[b"get"], ("k", ReadMode.LOG), 1.0)]


@pytest.mark.parametrize("error", [NotDone("busy", False), Unknown("?"), NotSent("refused"), Lost("timeout")])
def test_what_fails_is_repeated_at_the_next_node_under_the_same_number(
    started: Stage, error: Exception
) -> None:
    operation = started.calls.put("k", "v")
    started.play(operation, error, OK)
    assert started.nodes() == [0, 1]
    assert len(set(started.requests())) == 1
    assert (operation.attempts, operation.node) == (2, 1)


def test_a_write_that_every_node_refuses_is_not_done(started: Stage) -> None:
    with pytest.raises(NotDoneError) as caught:
        started.play(started.calls.put("k", "v"), NotDone("busy", False))
    assert not caught.value.permanent
    assert not isinstance(caught.value, NoNodeReachable)
    for part in ("put 'k'", "not done", "n0: busy", "n1: busy", "n2: busy"):
        assert part in str(caught.value)


def test_a_write_is_unknown_if_only_one_of_its_attempts_may_have_been_done(started: Stage) -> None:
    with pytest.raises(UnknownOutcome, match=r"put 'k': outcome unknown after .*n0: "):
        started.play(started.calls.put("k", "v"), Unknown("lost its log"), NotDone("busy", False))


@pytest.mark.parametrize("error", [Unknown("?"), Lost("timeout")])
def test_a_write_without_any_answer_is_unknown_at_the_deadline_and_not_later(
    started: Stage, error: Exception
) -> None:
    began = started.now
    with pytest.raises(UnknownOutcome):
        started.play(started.calls.put("k", "v"), error)
    assert began < started.now <= began + 10.0


def test_if_no_connection_can_be_made_the_error_says_so(started: Stage) -> None:
    with pytest.raises(NoNodeReachable, match="n2: refused"):
        started.play(started.calls.put("k", "v"), NotSent("refused"))


def test_a_refusal_and_a_missing_connection_together_are_not_done(started: Stage) -> None:
    with pytest.raises(NotDoneError) as caught:
        started.play(started.calls.put("k", "v"), NotDone("busy", False), NotSent("refused"))
    assert not isinstance(caught.value, NoNodeReachable)


@pytest.mark.parametrize("error", [NotDone("the key is too long", True), Unfit("1,100,000 bytes")])
def test_a_permanent_refusal_ends_a_write_at_once(started: Stage, error: Exception) -> None:
    with pytest.raises(NotDoneError) as caught:
        started.play(started.calls.put("k", "v"), error)
    assert caught.value.permanent
    assert started.nodes() == [0]


def test_a_permanent_refusal_does_not_end_the_doubt_about_an_earlier_attempt(started: Stage) -> None:
    with pytest.raises(UnknownOutcome):
        started.play(started.calls.put("k", "v"), Lost("timeout"), NotDone("the key is too long", True))


@pytest.mark.parametrize("error", [Expired("evicted"), Forgotten("given up")])
def test_an_expired_session_is_replaced_if_nothing_may_have_been_done(
    started: Stage, error: Exception
) -> None:
    started.play(started.calls.put("k", "v"), NotDone("busy", False), error, ANOTHER, OK)
    assert started.methods() == ["put", "put", "open_session", "put"]
    assert started.requests()[-1].session == ANOTHER
    started.play(started.calls.put("k", "v"), OK)
    assert (started.requests()[-1].session, started.requests()[-1].sequence) == (ANOTHER, 2)


@pytest.mark.parametrize("error", [Expired("evicted"), Forgotten("given up")])
def test_a_write_is_unknown_if_its_session_expires_after_a_doubtful_attempt(
    started: Stage, error: Exception
) -> None:
    with pytest.raises(UnknownOutcome, match="session"):
        started.play(started.calls.put("k", "v"), Lost("timeout"), error)
    started.play(started.calls.put("k", "v"), ANOTHER, OK)  # the next one does not use the old session again
    assert started.requests()[-1].session == ANOTHER


def test_a_write_whose_session_cannot_be_opened_is_not_done_even_if_nobody_knows_about_the_session(
    stage: Stage,
) -> None:
    with pytest.raises(NotDoneError, match="put 'k': not done"):
        stage.play(stage.calls.put("k", "v"), Lost("timeout"))
    assert set(stage.methods()) == {"open_session"}


@pytest.mark.parametrize("error", [Unknown("?"), Lost("timeout"), NotDone("busy", False)])
def test_a_read_that_fails_is_never_unknown(started: Stage, error: Exception) -> None:
    with pytest.raises(NotDoneError):
        started.play(started.calls.get("k"), error)


def test_a_command_that_was_given_up_holds_up_no_later_one(started: Stage) -> None:
    with pytest.raises(UnknownOutcome):
        started.play(started.calls.put("k", "v"), Lost("timeout"))
    started.play(started.calls.put("k", "w"), OK)
    last = started.requests()[-1]
    assert (last.sequence, last.first_incomplete) == (2, 2)


def test_first_incomplete_is_the_lowest_number_without_an_answer(started: Stage) -> None:
    slow = started.calls.put("slow", "v").steps
    next(slow)
    started.play(started.calls.put("k", "v"), OK)
    started.play(started.calls.put("k", "v"), OK)
    assert [(r.sequence, r.first_incomplete) for r in started.requests()] == [(2, 1), (3, 1)]
    with pytest.raises(StopIteration):
        slow.send(OK)
    started.play(started.calls.put("k", "v"), OK)
    assert started.requests()[-1].first_incomplete == 4


def test_a_session_whose_window_is_full_is_replaced(started: Stage) -> None:
    slow = started.calls.put("slow", "v").steps
    next(slow)
    for _ in range(MAX_RESULTS - 1):
        started.play(started.calls.put("k", "v"), OK)
    started.play(started.calls.put("k", "v"), ANOTHER, OK)
    ids = started.requests()
    assert all(r.sequence - r.first_incomplete < MAX_RESULTS for r in ids)
    assert (ids[-2].session, ids[-1].session, ids[-1].sequence) == (SESSION, ANOTHER, 1)


def test_of_two_operations_that_open_a_session_the_second_uses_that_of_the_first(stage: Stage) -> None:
    one, two = stage.calls.put("a", "1").steps, stage.calls.put("b", "2").steps
    opening = next(one), next(two)
    assert [isinstance(step, Attempt) and step.method.name for step in opening] == ["open_session"] * 2
    first, second = one.send(SESSION), two.send(ANOTHER)
    assert isinstance(first, Attempt) and isinstance(second, Attempt)
    assert (first.arguments[-1].session, first.arguments[-1].sequence) == (SESSION, 1)
    assert (second.arguments[-1].session, second.arguments[-1].sequence) == (SESSION, 2)


def test_after_each_round_over_all_nodes_there_is_a_pause_that_grows(started: Stage) -> None:
    with pytest.raises(NotDoneError):
        started.play(started.calls.put("k", "v"), NotDone("busy", False))
    assert started.pauses[:4] == [0.01, 0.02, 0.04, 0.08]
    assert max(started.pauses) == operations.MAX_PAUSE_S
    assert len(started.attempts) == 3 * (len(started.pauses) + 1)


def test_patience_doubles_with_each_round_and_never_goes_past_the_deadline(started: Stage) -> None:
    with pytest.raises(UnknownOutcome):
        started.play(started.calls.put("k", "v"), Lost("timeout"))
    assert [round(a.patience, 2) for a in started.attempts] == [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 0.97]


def test_a_node_that_failed_is_passed_over_for_a_while(started: Stage) -> None:
    started.play(started.calls.get("k"), NotSent("refused"), OK)  # node 0 fails, node 1 answers
    for _ in range(4):
        started.play(started.calls.get("k"), OK)
    assert started.nodes() == [0, 1, 2, 1, 2, 1]
    started.now += operations.SKIP_S
    started.play(started.calls.get("k"), OK)
    started.play(started.calls.get("k"), OK)
    assert 0 in started.nodes()[-2:]


def test_a_node_that_keeps_failing_is_passed_over_longer_up_to_a_limit() -> None:
    router = Router(2)
    now, waits = 0.0, []
    for _ in range(5):
        router.failed(0, now)
        began = now
        while router.pick(now) != 0:
            now += 0.5
        waits.append(now - began)
    assert waits == [1.0, 2.0, 4.0, 5.0, 5.0]
    router.answered(0)
    assert {router.pick(now), router.pick(now)} == {0, 1}


def test_only_one_operation_finds_out_whether_a_failed_node_is_back() -> None:
    router = Router(3)
    router.failed(0, 0.0)
    assert [router.pick(1.0) for _ in range(6)].count(0) == 1


def test_when_all_nodes_have_failed_the_oldest_failure_is_tried_first() -> None:
    router = Router(3)
    for node, now in ((1, 0.1), (0, 0.2), (2, 0.3)):
        router.failed(node, now)
    assert router.pick(0.4) == 1
    router.failed(1, 0.4)
    assert router.pick(0.5) == 0


def test_the_results_are_plain_values(started: Stage) -> None:
    calls, play = started.calls, started.play
    assert play(calls.put("k", "v"), OK) is None
    assert play(calls.get("k"), Result(Outcome.OK, "")) == ""
    assert play(calls.get("k"), Result(Outcome.NOT_FOUND)) is None
    assert play(calls.delete("k"), OK) is True
    assert play(calls.delete("k"), Result(Outcome.NOT_FOUND)) is False
    assert play(calls.compare_and_set("k", "a", "b"), OK) == (True, "b")
    assert play(calls.compare_and_set("k", "a", "b"), Result(Outcome.MISMATCH, "c")) == (False, "c")
    assert play(calls.compare_and_set("k", "a", "b"), Result(Outcome.MISMATCH)) == (False, None)
    assert play(calls.increment("k", -5), Result(Outcome.OK, "-4")) == -4
    with pytest.raises(NotANumber):
        play(calls.increment("k"), Result(Outcome.NOT_A_NUMBER))


def test_an_invalid_command_is_not_done_for_good(started: Stage) -> None:
    with pytest.raises(NotDoneError) as caught:
        started.play(started.calls.delete("k"), Result(Outcome.INVALID))
    assert caught.value.permanent


@pytest.mark.parametrize("outcome", [Outcome.MISMATCH, None, 99])
def test_an_answer_that_makes_no_sense_leaves_a_write_unknown(started: Stage, outcome: Any) -> None:
    with pytest.raises(UnknownOutcome):
        started.play(started.calls.put("k", "v"), Result(outcome))


def test_a_batch_takes_a_number_for_each_command(started: Stage) -> None:
    commands = [Command(Verb.PUT, "a", "1"), Command(Verb.GET, "a"), Command(Verb.INCREMENT, "a", delta=2)]
    results = [OK, Result(Outcome.OK, "1"), Result(Outcome.OK, "3")]
    assert started.play(started.calls.execute(commands), Unknown("?"), results) == results
    first, second = (attempt.arguments[0] for attempt in started.attempts)
    assert first == second
    assert [(c.request.sequence, c.request.first_incomplete) for c in first] == [(1, 1), (2, 1), (3, 1)]
    started.play(started.calls.put("k", "v"), OK)
    assert (started.requests()[-1].sequence, started.requests()[-1].first_incomplete) == (4, 4)


def test_a_batch_in_an_expired_session_is_repeated_in_a_new_one(started: Stage) -> None:
    commands = [Command(Verb.PUT, "a", "1"), Command(Verb.PUT, "b", "2")]
    expired = [Result(Outcome.EXPIRED)] * 2
    assert started.play(started.calls.execute(commands), expired, ANOTHER, [OK, OK]) == [OK, OK]
    assert [c.request.session for c in started.attempts[-1].arguments[0]] == [ANOTHER, ANOTHER]


def test_a_batch_of_reads_needs_no_session_and_a_batch_that_is_too_long_is_an_error(stage: Stage) -> None:
    found = [Result(Outcome.OK, "1")] * 2000
    assert stage.play(stage.calls.execute([Command(Verb.GET, "a")] * 2000), found) == found
    assert stage.methods() == ["execute"]
    with pytest.raises(ValueError, match="1,024"):
        stage.calls.execute([Command(Verb.PUT, "a", "1")] * 1025)


def test_where_a_node_is_given_only_that_one_is_asked_and_once(started: Stage) -> None:
    assert started.play(started.calls.get("k", "local", 2), Result(Outcome.OK, "v")) == "v"
    with pytest.raises(NoNodeReachable, match="n1: refused"):
        started.play(started.calls.status(1), NotSent("refused"))
    assert started.nodes() == [2, 1]


# ------------------------------------------------------------------------------------------- the two drivers


class Blocking:
    """AsyncClient behind the methods of Client, so that the same tests try both."""

    def __init__(self, cluster: Cluster | str, **settings: Any) -> None:
        self.runner = asyncio.Runner()
        self.client = self.runner.run(self._made(cluster, settings))

    async def _made(self, cluster: Cluster | str, settings: dict[str, Any]) -> AsyncClient:
        return AsyncClient(cluster, **settings)

    def __enter__(self) -> "Blocking":
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.get_loop().call_soon(self.client.close)
        self.runner.run(asyncio.sleep(0))
        self.runner.close()

    def scan(self, *arguments: Any) -> list[Any]:
        async def collect() -> list[Any]:
            return [item async for item in self.client.scan(*arguments)]

        return self.runner.run(collect())

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **named: self.runner.run(getattr(self.client, name)(*arguments, **named))


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[FakeCluster]:
    cluster = FakeCluster(tmp_path)
    yield cluster
    cluster.close()


both = pytest.mark.parametrize("kind", [Client, Blocking])


@both
def test_every_operation_works_over_sockets(fakes: FakeCluster, kind: Any) -> None:
    with kind(fakes.cluster) as client:
        client.put("k", "grüße \U0001f600")
        assert client.get("k") == "grüße \U0001f600"
        assert client.get("absent", "log") is None
        assert client.delete("k") is True
        assert client.delete("k") is False
        assert client.compare_and_set("c", None, "1") == (True, "1")
        assert client.compare_and_set("c", "0", "2") == (False, "1")
        assert client.increment("c", 41) == 42
        assert [r.outcome for r in client.execute([Command(Verb.PUT, "b", ""), Command(Verb.GET, "no")])] == [
            Outcome.OK,
            Outcome.NOT_FOUND,
        ]
        done = client.transaction([t.equals("c", "42"), t.less("c", 43)], [t.put("t", "1"), t.increment("c")])
        assert done.held and [answer.value for answer in done.answers] == [None, "43"]
        undone = client.transaction([t.absent("t")], [], [t.delete("t"), t.increment("c", -1)])
        assert not undone.held and undone.place > done.place
        with pytest.raises(NotANumber):
            client.transaction([t.exists("c"), t.differs("b", "x"), t.greater("c", 0)], [t.increment("b")])
        assert client.status(2).node == 2
        assert client.status(digest=True).digest == fakes.store.digest()
    assert fakes.content == {"c": "42", "b": ""}


@both
def test_a_scan_goes_on_over_all_pages(fakes: FakeCluster, kind: Any) -> None:
    with kind(fakes.cluster) as client:
        for start in range(0, 2500, 500):
            client.execute([Command(Verb.PUT, f"k{i:04}", str(i)) for i in range(start, start + 500)])
        client.put("other", "x")
        assert [item.value for item in client.scan("k")] == [str(i) for i in range(2500)]
        assert [item.key for item in client.scan("k", "k2497")] == ["k2498", "k2499"]
        assert [item.key for item in client.scan("k", "k0997", 3)] == ["k0998", "k0999", "k1000"]
        assert [item.value for item in client.scan("k", "", 1500)] == [str(i) for i in range(1500)]
        assert len(list(client.scan("", "", 5000))) == 2501 and list(client.scan("k", "", 0)) == []


@both
def test_a_watch_tells_each_change_once_and_another_goes_on_where_it_was(
    fakes: FakeCluster, kind: Any
) -> None:
    with kind(fakes.cluster) as client:
        client.put("k0", "before")
        watch = client.watch("k")
        for number in range(1, 8):
            client.execute([Command(Verb.PUT, f"k{number}", str(number)), Command(Verb.PUT, "other", "x")])
        client.delete("k3")
        first = take(client, watch, 3)
        assert [(change.key, change.value) for change in first] == [("k1", "1"), ("k2", "2"), ("k3", "3")]
        assert watch.place == first[-1].place, "what has come and was not taken is told by the next watch"
        fakes.nodes[0].stop()
        rest = take(client, client.watch("k", watch.place), 5)
        assert [change.key for change in rest] == ["k4", "k5", "k6", "k7", "k3"] and rest[-1].value is None


def take(client: Any, watch: Any, count: int) -> list[Any]:
    async def collect() -> list[Any]:
        return [await anext(watch) for _ in range(count)]

    if isinstance(client, Client):
        return [next(watch) for _ in range(count)]
    found: list[Any] = client.runner.run(collect())
    return found


@both
def test_a_watch_passes_over_nodes_that_have_forgotten_and_says_when_all_have(
    fakes: FakeCluster, kind: Any
) -> None:
    gone = Compacted("gone", Place(7, 1))
    with kind(fakes.cluster) as client:
        client.put("k", "1")
        place = client.watch("k").place
        client.put("k", "2")
        for node in fakes.nodes[:2]:
            node.always = gone
        assert take(client, client.watch("k", place), 1)[0].value == "2"
        fakes.nodes[2].always = Compacted("gone", Place(6, 1))
        with pytest.raises(CompactedError, match="gone") as error:
            take(client, client.watch("k", place), 1)
        assert error.value.oldest == Place(6, 1)


class Interruption(BaseException):
    pass


def test_an_interrupted_command_loses_its_connection_and_holds_up_no_later_one(fakes: FakeCluster) -> None:
    def interrupt(*_: object) -> None:
        raise Interruption

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Client(fakes.cluster, timeout=60, attempt_timeout=60) as client:
            client.put("a", "1")
            for node in fakes.nodes:
                node.script.append(IGNORE)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(Interruption):
                client.put("a", "2")
            assert fakes.nodes[2].accepted == 1 and client._open[2] is None
            assert client._open[0] and client._open[1], "the others' connections are as good as ever"
            for node in fakes.nodes:
                node.script.clear()
            client.put("a", "3")
            assert client.calls._numbers is not None and not client.calls._numbers._open
            assert client.get("a") == "3"
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_cancelled_command_holds_up_no_later_one(fakes: FakeCluster) -> None:
    async def cancel() -> None:
        async with AsyncClient(fakes.cluster, timeout=60, attempt_timeout=60) as client:
            await client.put("a", "1")
            for node in fakes.nodes:
                node.script.append(IGNORE)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.put("a", "2"), 0.1)
            assert client.calls._numbers is not None and not client.calls._numbers._open

    asyncio.run(cancel())


@both
def test_an_answer_that_trickles_in_is_given_up_at_the_deadline(kind: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(1000)
                connection.sendall(b"\0\0\1\0\x80\1\0\2")
                while True:
                    connection.sendall(b"\0")
                    time.sleep(0.05)

        threading.Thread(target=trickle, daemon=True).start()
        with kind(f"127.0.0.1:{listener.getsockname()[1]}", timeout=0.5, attempt_timeout=0.5) as client:
            began = time.monotonic()
            with pytest.raises(ClientError):
                client.get("key")
            assert time.monotonic() - began < 5  # (256 bytes take 12 s)


@both
@pytest.mark.parametrize(
    "fault", [CLOSE, DO_AND_CLOSE, IGNORE, DO_AND_IGNORE, GARBAGE, Unknown("?"), ValueError()]
)
def test_an_increment_is_applied_once_whatever_befalls_its_first_attempt(
    fakes: FakeCluster, kind: Any, fault: Any
) -> None:
    with kind(fakes.cluster, attempt_timeout=0.1) as client:
        client.open_session()
        for node in fakes.nodes:
            node.script.append(fault)
        for total in range(1, 5):
            assert client.increment("n") == total
    assert fakes.content == {"n": "4"}


@both
def test_a_client_goes_to_other_nodes_when_one_dies_and_comes_back_when_it_returns(
    fakes: FakeCluster, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "SKIP_S", 0.001)
    with kind(fakes.cluster) as client:
        client.connect()
        fakes.nodes[0].stop()
        for i in range(9):
            client.put(f"k{i}", "v")
        fakes.nodes[0].start()
        seen = len(fakes.nodes[0].calls)
        for _ in range(10_000):
            client.put("again", "v")
            if len(fakes.nodes[0].calls) > seen:
                break
        else:
            pytest.fail("the node that returned is never asked again")
    assert len(fakes.content) == 10


def test_a_connection_that_was_closed_while_idle_is_replaced_unnoticed(
    fakes: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paxoskv.client.sync.IDLE_S", 0.0)
    with Client(fakes.cluster) as client:
        client.connect()
        fakes.nodes[0].stop()
        fakes.nodes[0].start()
        assert client.status(1).node == 1  # a single attempt


def test_an_answer_that_was_not_asked_for_is_never_taken_for_the_next_calls(fakes: FakeCluster) -> None:
    fakes.nodes[0].always = TWICE
    with Client(fakes.cluster, attempt_timeout=0.5) as client:
        for i in range(20):
            client.put(f"k{i}", str(i))
            assert client.get(f"k{i}") == str(i)


def test_an_answer_to_another_call_is_no_answer(fakes: FakeCluster) -> None:
    with Client(fakes.cluster) as client:
        client.open_session()
        fakes.nodes[1].script.append(ANOTHER_CALL)
        operation = client.calls.increment("n")
        assert client.run(operation) == 1
        assert operation.attempts == 2


def test_an_async_client_repeats_at_once_what_a_closed_connection_lost(fakes: FakeCluster) -> None:
    async def run() -> int:
        async with (
            AsyncClient(fakes.cluster, timeout=300.0, attempt_timeout=300.0) as client,
            asyncio.timeout(60),
        ):
            await client.open_session()
            fakes.nodes[1].script.append(DO_AND_CLOSE)
            return await client.increment("n")

    assert asyncio.run(run()) == 1


def test_an_async_client_replaces_a_connection_that_has_gone_silent(fakes: FakeCluster) -> None:
    async def run() -> None:
        async with AsyncClient(fakes.cluster, attempt_timeout=0.1) as client:
            fakes.nodes[0].script.append(IGNORE)
            assert await client.get("k") is None
            assert (await client.status(1)).node == 1

    asyncio.run(run())
    assert fakes.nodes[0].accepted == 2


@both
def test_without_any_node_connecting_fails_and_names_them_all(tmp_path: Path, kind: Any) -> None:
    fakes = FakeCluster(tmp_path)
    fakes.close()
    with kind(fakes.cluster, timeout=0.2) as client:
        with pytest.raises(NoNodeReachable, match=r"node 1 \(.*node 2 \(.*node 3 \(.*refused"):
            client.connect()
        with pytest.raises(NoNodeReachable):
            client.put("k", "v")


@both
def test_a_deadline_is_kept_when_no_node_answers(fakes: FakeCluster, kind: Any) -> None:
    with kind(fakes.cluster, timeout=0.3, attempt_timeout=0.05) as client:
        client.open_session()
        for node in fakes.nodes:
            node.always = IGNORE
        with pytest.raises(UnknownOutcome, match="no answer within"):
            client.put("k", "v")
        with pytest.raises(NotDoneError):
            client.get("k")


@both
def test_what_does_not_fit_a_frame_or_the_interface_is_refused_for_good_and_the_client_lives_on(
    fakes: FakeCluster, kind: Any
) -> None:
    with kind(fakes.cluster) as client:
        for key, value in (("k", "v" * (1 << 20)), ("k", "\ud800"), ("k", "v" * 524_289), ("", "v")):
            with pytest.raises(NotDoneError) as caught:
                client.put(key, value)
            assert caught.value.permanent
        client.put("k", "v" * 524_288)
        assert client.get("k") == "v" * 524_288


def test_an_async_client_keeps_many_operations_under_way_and_survives_a_lost_connection(
    fakes: FakeCluster,
) -> None:
    async def run() -> list[int]:
        async with AsyncClient(fakes.cluster, attempt_timeout=0.2) as client:
            await client.open_session()
            fakes.nodes[1].script.extend([None] * 5 + [DO_AND_CLOSE])
            fakes.nodes[2].script.extend([None] * 3 + [DO_AND_IGNORE])
            return await asyncio.gather(*(client.increment("n") for _ in range(64)))

    assert sorted(asyncio.run(run())) == list(range(1, 65))


@both
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": "other"}, "it is a node of cluster 'fake', not of 'other'"),
        ({"nodes": 2}, "its file of cluster 'fake' has other nodes or addresses than this one"),
    ],
)
def test_nodes_of_another_cluster_are_sent_nothing(
    fakes: FakeCluster, kind: Any, change: dict[str, Any], reason: str
) -> None:
    nodes = fakes.cluster.nodes[: change.get("nodes", 3)]
    with kind(Cluster(change.get("name", "fake"), nodes)) as client:
        for command in (lambda: client.put("k", "v"), lambda: client.get("k"), lambda: client.status(1)):
            with pytest.raises(WrongCluster, match=re.escape(reason)):
                command()
    assert fakes.calls() == []


@both
def test_a_node_in_another_ones_place_is_sent_nothing_and_the_others_serve(
    fakes: FakeCluster, kind: Any
) -> None:
    fakes.nodes[1].claims = 3
    with kind(fakes.cluster) as client:
        for i in range(6):
            client.put(f"k{i}", "v")
        with pytest.raises(WrongCluster, match="it is node 3"):
            client.status(2)
    assert fakes.nodes[1].calls == []
    assert len(fakes.content) == 6


@both
def test_a_node_that_cannot_say_who_it_is_is_believed(fakes: FakeCluster, kind: Any) -> None:
    for node in fakes.nodes:
        node.old = True
    with kind(Cluster("any", fakes.cluster.nodes)) as client:
        client.put("k", "v")
    assert fakes.content == {"k": "v"}


@both
def test_a_node_that_does_not_say_who_it_is_is_not_used_and_nothing_is_doubtful(
    fakes: FakeCluster, kind: Any
) -> None:
    with contextlib.ExitStack() as sockets:
        silent = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        nodes = [Member(i + 1, *listener.getsockname()) for i, listener in enumerate(silent)]
        cluster = Cluster("mute", tuple(nodes))
        with kind(cluster, timeout=0.3, attempt_timeout=0.05) as client, pytest.raises(NoNodeReachable):
            client.put("k", "v")


def test_a_connection_given_up_while_it_is_made_cancels_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(cancel: bool) -> None:
        async with AsyncClient("127.0.0.1:1") as client:
            channel = aio._Channel(client, 0)
            monkeypatch.setattr(channel.__class__, "_connect", lambda self: asyncio.Event().wait())
            waiting = asyncio.create_task(channel.connected(60))
            while channel._connecting is None:
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            if cancel:
                waiting.cancel()
            channel.close("the node has moved")
            await waiting

    with pytest.raises(NotSent, match="given up"):
        asyncio.run(run(False))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run(True))


def test_addresses_are_understood_or_refused() -> None:
    assert [(n.host, n.port, str(n)) for n in addresses_of("[::1]:7001")] == [("::1", 7001, "[::1]:7001")]
    assert str(addresses_of("localhost:1")[0]) == "localhost:1"
    for wrong in ("localhost", ":1", "localhost:0", "localhost:65536", "localhost:x", ""):
        with pytest.raises(ValueError, match="HOST:PORT"):
            addresses_of(wrong)


def test_a_node_that_does_not_exist_is_an_error(fakes: FakeCluster) -> None:
    with Client(fakes.cluster) as client, pytest.raises(ValueError, match="no node 9"):
        client.get("k", "local", 9)


# ------------------------------------------------------------------------------------------ the command line


@pytest.fixture
def shell(fakes: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command; returns exit code, stdout and stderr."""
    file = tmp_path / "cluster.json"
    nodes = [{"id": node.number, "host": "127.0.0.1", "port": node.port} for node in fakes.nodes]
    file.write_text(json.dumps({"name": "fake", "nodes": nodes}))

    def run(*words: str) -> tuple[int, str, str]:
        where = [] if "--single" in words else ["--cluster", str(file)]
        try:
            code = command_line.main([words[0], *where, *words[1:]])
        except SystemExit as end:
            code = int(str(end.code))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_single_commands_print_their_answers(shell: Any) -> None:
    assert shell("put", "k", "v") == (0, "ok\n", "")
    assert shell("get", "k") == (0, "v\n", "")
    assert shell("get", "k", "--read", "local", "--node", "2") == (0, "v\n", "")
    assert shell("cas", "k", "v", "w") == (0, "ok\n", "")
    assert shell("cas", "new", "--absent", "1") == (0, "ok\n", "")
    assert shell("incr", "n", "-5") == (0, "-5\n", "")
    assert shell("scan", "n") == (0, "n\t-5\nnew\t1\n", "")
    assert shell("watch", "n", "--from", "0.0", "--count", "2") == (
        0,
        "6.1.0\tput\tnew\t1\n8.1.0\tput\tn\t-5\n",
        "",
    )
    assert shell("watch", "--from", "8.1", "--count", "0")[0] == 2
    assert shell("watch", "--from", "soon")[0] == 2
    assert shell("delete", "k") == (0, "ok\n", "")
    assert shell("watch", "k", "--from", "8.1.0", "--count", "1", "-o", "json") == (
        0,
        '{"place": "10.1.0", "key": "k", "value": null}\n',
        "",
    )
    assert shell("dump", "--node", "3") == (
        0,
        '{"key": "n", "value": "-5"}\n{"key": "new", "value": "1"}\n',
        "",
    )


MOVE = {
    "compare": [{"key": "stock", "greater": 0}, {"key": "order", "exists": False}],
    "then": [{"increment": "stock", "by": -1}, {"put": "order", "value": "book"}, {"delete": "cart"}],
    "else": [{"get": "stock"}, {"get": "order"}],
}


def test_a_transaction_is_read_from_a_file_or_stdin(
    shell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "move.json"
    file.write_text(json.dumps(MOVE))
    shell("put", "stock", "1")
    assert shell("transaction", str(file)) == (0, "then\nstock\t0\norder\tok\ncart\tnot_found\n", "")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    assert shell("transaction", "-") == (1, "else\nstock\t0\norder\tbook\n", "")
    code, out, _ = shell("transaction", str(file), "-o", "json")
    assert (code, json.loads(out)) == (
        1,
        {
            "outcome": "else",
            "answers": [
                {"key": "stock", "outcome": "ok", "value": "0"},
                {"key": "order", "outcome": "ok", "value": "book"},
            ],
        },
    )


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        ("{", 65, "line 1 column 2"),
        ("[]", 65, "an object is needed"),
        ('{"when": []}', 65, "unknown field 'when'"),
        ('{"then": {}}', 65, "then: a list is needed"),
        ('{"then": ["put"]}', 65, "then[0]: an object is needed"),
        ('{"then": [{}]}', 65, "then[0]: one of put, get, delete, increment is needed"),
        ('{"then": [{"put": "k"}]}', 65, "then[0]: value: a text is needed"),
        ('{"then": [{"put": 1, "value": "v"}]}', 65, "then[0]: put: a text is needed"),
        ('{"then": [{"get": "k", "value": "v"}]}', 65, "then[0]: unknown field 'value'"),
        ('{"then": [{"get": "k", "delete": "k"}]}', 65, "then[0]: one of"),
        ('{"else": [{"increment": "k", "by": 1.5}]}', 65, "else[0]: by: an integer is needed"),
        ('{"compare": [{"key": "k"}]}', 65, "compare[0]: one of equals,"),
        ('{"compare": [{"exists": true}]}', 65, "compare[0]: key: a text is needed"),
        ('{"compare": [{"key": "k", "exists": 1}]}', 65, "compare[0]: exists: true or false is needed"),
        ('{"compare": [{"key": "k", "less": true}]}', 65, "compare[0]: less: an integer is needed"),
        (
            '{"then": [{"put": "k", "value": "v", "ttl": 0}]}',
            65,
            "then[0]: ttl: a number of seconds is needed",
        ),
        ('{"then": [{"put": "k", "value": "v", "ttl": true}]}', 65, "then[0]: ttl: a number of seconds"),
        ('{"then": [{"get": "k", "ttl": 1}]}', 65, "then[0]: unknown field 'ttl'"),
        ("[" * 100_000, 65, "too deep"),
        ('{"then": [{"increment": "text"}]}', 1, "nothing was done: an increment found no 64-bit integer"),
        ('{"then": [{"increment": "n", "by": 9223372036854775808}]}', 1, "cannot be encoded"),
        (
            '{"compare": [{"key": "n", "less": 9223372036854775808}]}',
            1,
            "compares[0]: the value is no 64-bit",
        ),
        ('{"then": [{"put": "", "value": "v"}]}', 1, "then_do[0]: no key, or an empty one"),
        ('{"then": [{"get": "\\ud800"}]}', 1, "cannot be encoded"),
    ],
)
def test_a_transaction_that_makes_no_sense_is_told_in_one_line(
    shell: Any, tmp_path: Path, text: str, code: int, reason: str
) -> None:
    file = tmp_path / "wrong.json"
    file.write_text(text)
    shell("put", "text", "abc")
    done = shell("transaction", str(file))
    assert done[:2] == (code, "")
    assert reason in done[2] and done[2].count("\n") == 1
    assert code == 1 or str(file) in done[2]


def test_a_put_may_have_a_time_to_live(shell: Any, fakes: FakeCluster, tmp_path: Path) -> None:
    assert shell("put", "k", "v", "--ttl", "1.5") == (0, "ok\n", "")
    assert fakes.store.leases["k"].ttl_ms == 1500
    file = tmp_path / "leased.json"
    file.write_text('{"then": [{"put": "j", "value": "v", "ttl": 2}]}')
    assert shell("transaction", str(file))[0] == 0 and fakes.store.leases["j"].ttl_ms == 2000
    assert shell("put", "k", "v") == (0, "ok\n", "") and [*fakes.store.leases] == ["j"]
    assert shell("put", "k", "v", "--ttl", "0")[0] == 2


def test_a_file_that_is_not_there_is_told(shell: Any) -> None:
    assert shell("transaction", "none.json") == (2, "", "client.py: none.json: No such file or directory\n")


def test_nodes_of_a_version_without_transactions_say_so_and_nothing_is_in_doubt(
    shell: Any, fakes: FakeCluster, tmp_path: Path
) -> None:
    file = tmp_path / "move.json"
    file.write_text(json.dumps(MOVE))
    for node in fakes.nodes:
        node.unknown = frozenset({b"transaction"})
    code, out, errors = shell("transaction", str(file), "--timeout", "0.3")
    assert (code, out) == (1, "") and errors.count("\n") == 1
    assert "not done" in errors and "its version does not know transaction" in errors
    fakes.nodes[1].unknown = frozenset()
    assert shell("transaction", str(file))[0] == 1  # one of them has been upgraded


@pytest.mark.parametrize(
    ("method", "words"),
    [(b"watch", ("watch", "k")), (b"replace_node", ("replace", "3", "127.0.0.1:9"))],
)
def test_nodes_of_a_version_without_watches_or_replacement_say_so_in_one_line(
    shell: Any, fakes: FakeCluster, method: bytes, words: tuple[str, ...]
) -> None:
    for node in fakes.nodes:
        node.unknown = frozenset({method})
    code, out, errors = shell(*words, "--timeout", "0.3")
    assert (code, out) == (1, "") and errors.count("\n") == 1
    assert f"its version does not know {method.decode()}" in errors


def test_a_range_is_scanned_forward_and_backward_and_counted(shell: Any, fakes: FakeCluster) -> None:
    with Client(fakes.cluster) as client:
        client.execute([Command(Verb.PUT, f"{name}{i}", str(i)) for name in "ab" for i in range(5)])
    assert shell("scan", "a", "--start", "a1", "--end", "a4") == (0, "a1\t1\na2\t2\na3\t3\n", "")
    assert shell("scan", "a", "--reverse", "--limit", "2", "--keys-only") == (0, "a4\na3\n", "")
    assert shell("scan", "a", "--end", "a1", "-o", "json") == (0, '{"key": "a0", "value": "0"}\n', "")
    assert shell("scan", "a", "--end", "a1", "--keys-only", "-o", "json") == (0, '{"key": "a0"}\n', "")
    assert shell("scan", "--count") == (0, "10\n", "")
    assert shell("scan", "b", "--count", "--start", "b3", "-o", "json") == (0, '{"count": 2}\n', "")
    assert shell("scan", "--count", "--keys-only")[0] == 2


def test_pages_say_whether_they_are_of_one_state(fakes: FakeCluster) -> None:
    with Client(fakes.cluster) as client:
        for number in range(3):
            client.execute([Command(Verb.PUT, f"{number}{i:03}", "v") for i in range(800)])
        scan = client.scan(reverse=True)
        items = list(scan)
        assert len(items) == client.count() == 2400 and items == sorted(items, reverse=True)
        assert scan.of_one_state and len(scan.positions) == 3
        assert client.count("1", start="1400", end="1500") == 100
        changing, seen = client.scan(end="2"), []
        for item in changing:
            seen.append(item)
            if len(seen) == 5:
                client.put("0000", "changed")
        assert len(seen) == 1600 and not changing.of_one_state


def test_older_nodes_still_scan_and_say_what_they_lack(shell: Any, fakes: FakeCluster) -> None:
    shell("put", "k", "v")
    for node in fakes.nodes:
        node.unknown = frozenset({b"scan_range"})
    assert shell("scan", "k", "--limit", "3") == (0, "k\tv\n", "")
    code, out, errors = shell("scan", "k", "--reverse", "--timeout", "0.3")
    assert (code, out) == (1, "") and "its version does not know scan_range" in errors


def test_negative_answers_exit_with_1(shell: Any) -> None:
    shell("put", "k", "v")
    assert shell("get", "absent") == (1, "", "client.py: 'absent': not found\n")
    assert shell("delete", "absent")[0] == 1
    assert shell("cas", "k", "x", "y") == (1, "", "client.py: 'k': holds 'v'; nothing was set\n")
    assert shell("cas", "k", "--absent", "y")[0] == 1
    assert shell("incr", "k")[0] == 1
    assert shell("put", "", "v")[0] == 1


def test_answers_and_errors_are_json_on_request(shell: Any) -> None:
    def answer(*words: str) -> tuple[int, Any]:
        code, out, _ = shell(*words, "-o", "json")
        return code, json.loads(out)

    assert answer("put", "k", "v") == (0, {"outcome": "ok"})
    assert answer("get", "k") == (0, {"outcome": "ok", "value": "v"})
    assert answer("get", "no") == (1, {"outcome": "not_found"})
    assert answer("cas", "k", "x", "y") == (1, {"outcome": "mismatch", "value": "v"})
    assert answer("incr", "n") == (0, {"outcome": "ok", "value": 1})
    code, error = answer("incr", "k")
    assert (code, error["error"], error["exit_code"]) == (1, "not_done", 1)
    code, error = answer("get", "k", "--node", "9")
    assert (code, error["error"]) == (2, "usage")
    code, nodes = answer("status", "--digest")
    assert code == 0
    assert [node["node"] for node in nodes] == [1, 2, 3]
    assert len({node["digest"] for node in nodes}) == 1


def test_a_single_server_needs_no_cluster_file(shell: Any, fakes: FakeCluster) -> None:
    address = f"127.0.0.1:{fakes.nodes[0].port}"
    assert shell("put", "k", "v", "--single", address)[0] == 0
    assert shell("dump", "--single", address) == (0, '{"key": "k", "value": "v"}\n', "")
    assert shell("status", "--single", address)[0] == 0


def test_an_unknown_outcome_exits_with_4(shell: Any, fakes: FakeCluster) -> None:
    for node in fakes.nodes:
        node.always = IGNORE
    fakes.nodes[0].script.append(None)  # it opens the session
    code, out, err = shell("put", "k", "v", "--timeout", "0.3", "-o", "json")
    assert (code, json.loads(out)["error"]) == (4, "unknown")
    assert "no answer within" in err


def test_without_any_node_commands_exit_with_3_and_status_names_the_dead(
    shell: Any, fakes: FakeCluster
) -> None:
    fakes.nodes[1].stop()
    code, out, _ = shell("status")
    assert code == 1
    assert [line[:7] for line in out.splitlines() if "refused" in line] == ["node 2 "]
    for node in (fakes.nodes[0], fakes.nodes[2]):
        node.stop()
    assert shell("status")[0] == 3
    code, out, err = shell("put", "k", "v", "--timeout", "0.3")
    assert (code, out) == (3, "")
    assert "node 3" in err


@pytest.mark.parametrize(
    "words",
    [
        ("put", "k"),
        ("get", "k", "--read", "stale"),
        ("get", "k", "--node", "9"),
        ("get", "k", "--timeout", "-1"),
        ("get", "k", "--single", "nowhere"),
        ("cas", "k", "v"),
        ("cas", "k", "a", "b", "--absent"),
        ("cas", "k", "a", "b", "c"),
        ("incr", "k", "9223372036854775808"),
        ("dump",),
        ("run", "no-such-file.csv"),
        ("run", "x.csv", "--processes", "0"),
    ],
)
def test_usage_errors_exit_with_2_and_nothing_is_sent(shell: Any, fakes: FakeCluster, words: Any) -> None:
    code, out, err = shell(*words)
    assert (code, out) == (2, "")
    assert err
    assert fakes.calls() == []


def test_a_cluster_file_that_cannot_be_used_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["get", "k", "--cluster", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "put", "get", "delete", "cas", "incr", "status", "scan", "dump"])
def test_every_command_explains_itself_and_its_exit_codes(shell: Any, command: str) -> None:
    code, out, _ = shell(command, "--help")
    assert code == 0
    assert "exit codes" in out and "--cluster" in out


def test_every_error_of_the_library_is_a_client_error() -> None:
    for error in (NotDoneError, NoNodeReachable, WrongCluster, UnknownOutcome, NotANumber):
        assert issubclass(error, ClientError)


def test_a_server_that_speaks_something_else_is_told_from_a_node(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with Client(address, timeout=0.5) as client:
            client.connect()
            stranger, _ = listener.accept()
            stranger.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            with stranger, pytest.raises(NotDoneError, match="malformed"):
                client.run(client.calls.status(0))


def test_the_readme_shows_a_program_that_works(
    fakes: FakeCluster, shell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(command_line.__file__).parents[2] / "README.md").read_text()
    program = next(part for part in text.split("```python\n")[1:] if "import Client" in part).split("```", 1)[
        0
    ]
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(textwrap.dedent(program), {})
    assert int(said.getvalue()) > 0, "the lock's token"
    assert shell("get", "color")[1:] == ("blue\n", "")
    assert shell("get", "visits")[1:] == ("1\n", "")
