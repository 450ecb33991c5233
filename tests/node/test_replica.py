"""The loop around the core: batches, repeats, refusals, expiry; and the single, unreplicated core."""

from collections.abc import Callable
from typing import Any

import pytest

from paxoskv.multipaxos import Cut
from paxoskv.node import replica
from paxoskv.node.replica import CHUNK_PAUSE, GATHER, QUEUE, WINDOW, Download, Replica, refusal
from paxoskv.protocol.single import Single
from paxoskv.state.store import Store
from paxoskv.wire.codec import Expired, Forgotten, NotDone, Unknown, encode
from paxoskv.wire.structs import (
    Action,
    Batch,
    Chunk,
    Command,
    CommandPlace,
    Compare,
    FetchCheckpoint,
    Outcome,
    Record,
    Relation,
    RequestId,
    Result,
    Session,
    Transaction,
    Verb,
)
from paxoskv.wire.validation import MAX_BATCH, MAX_CLIENT_FRAME, MAX_NODE_FRAME
from tests.harness.scenario import Answer, Cluster


def increments(count: int) -> list[Command]:
    return [Command(Verb.INCREMENT, "n", delta=1)] * count


def crowd(cluster: Cluster, commands: list[list[Command]]) -> list[Answer]:
    """All of these arrive at node 1 in one turn."""
    machine = cluster[1]
    answers = [Answer() for _ in commands]

    def submit() -> None:
        for answer, batch in zip(answers, commands, strict=True):
            machine.replica.submit(answer, batch, batch=True)
        machine.replica.turn()

    machine.do(submit)
    return answers


def entries(cluster: Cluster) -> list[int]:
    """Sizes of the payloads in node 1's log."""
    return [len(entry.payload) for entry in cluster.core(1).acceptors[1].entries]


# ---------------------------------------------------------------------------------------------------- batches


def test_commands_that_arrive_together_share_an_entry() -> None:
    cluster = Cluster(nodes=3)
    answers = crowd(cluster, [increments(1)] * 50)
    cluster.run_until(lambda: all(answer.answered() for answer in answers), within_s=1)
    assert len(entries(cluster)) == 1
    assert [answer.value[0].value for answer in answers] == [str(number + 1) for number in range(50)]


def test_commands_gather_while_an_entry_is_in_flight() -> None:
    cluster = Cluster(nodes=3)
    answers = [cluster.increment(1, "n") for _ in range(20)]
    cluster.run_until(lambda: all(answer.answered() for answer in answers), within_s=1)
    assert len(entries(cluster)) == WINDOW + 1
    assert [answer.text for answer in answers] == [str(number + 1) for number in range(20)]


def test_the_next_entry_waits_for_those_who_have_just_been_answered() -> None:
    cluster = Cluster(nodes=3)
    answers = crowd(cluster, [increments(1)] * 4)
    cluster.run_until(lambda: all(answer.answered() for answer in answers), within_s=1)
    again = [cluster.increment(1, "n") for _ in range(3)]
    assert cluster[1].replica.turn_due == cluster[1].replica.gathering.until
    assert len(entries(cluster)) == 1
    again.append(cluster.increment(1, "n"))
    assert cluster[1].replica.turn_due is None
    cluster.run_until(lambda: all(answer.answered() for answer in again), within_s=1)
    assert len(entries(cluster)) == 2


def test_the_next_entry_waits_no_longer_than_the_last_one_took() -> None:
    cluster = Cluster(nodes=3)
    answers = crowd(cluster, [increments(1)] * 4)
    cluster.run_until(lambda: all(answer.answered() for answer in answers), within_s=1)
    alone = cluster.increment(1, "n")
    replica = cluster[1].replica
    assert cluster.now < replica.gathering.until <= cluster.now + min(cluster.now, GATHER)
    cluster.run_until(alone.answered, within_s=1)
    assert len(entries(cluster)) == 2


@pytest.mark.parametrize("count", [1, 4])
def test_an_entry_that_would_be_no_smaller_than_the_last_waits_for_nobody(count: int) -> None:
    cluster = Cluster(nodes=3)
    first = crowd(cluster, [increments(1)] * count)
    second = crowd(cluster, [increments(1)] * count)
    cluster.run_until(lambda: all(answer.answered() for answer in first), within_s=1)
    cluster.run_until(lambda: len(entries(cluster)) == 2, within_s=0.001)
    cluster.run_until(lambda: all(answer.answered() for answer in second), within_s=1)


def test_a_batch_is_answered_in_order_with_nothing_in_between() -> None:
    cluster = Cluster(nodes=3)
    first, second = crowd(cluster, [increments(3), increments(2)])
    cluster.run_until(second.answered, within_s=1)
    assert [result.value for result in first.value] == ["1", "2", "3"]
    assert [result.value for result in second.value] == ["4", "5"]


def test_an_entry_holds_a_limited_number_of_commands() -> None:
    cluster = Cluster(nodes=3)
    answers = crowd(cluster, [increments(MAX_BATCH - 1), increments(1), increments(1)])
    cluster.run_until(lambda: all(answer.answered() for answer in answers), within_s=5)
    assert len(entries(cluster)) == 2
    assert cluster.get(1, "n") == str(MAX_BATCH + 1)


@pytest.mark.parametrize("count", [6, 80])
def test_an_entry_holds_a_limited_number_of_bytes(count: int) -> None:
    cluster = Cluster(nodes=3)
    big = [Command(Verb.PUT, "key", "v" * (MAX_CLIENT_FRAME // 3))]
    answers = crowd(cluster, [big] * count)
    cluster.run_until(lambda: all(answer.answered() for answer in answers), within_s=5)
    assert max(entries(cluster)) <= MAX_CLIENT_FRAME
    assert 2 * max(entries(cluster)) < MAX_NODE_FRAME


# ---------------------------------------------------------------------------------------------------- repeats


def test_a_repeat_joins_the_first_attempt_that_still_waits() -> None:
    cluster = Cluster(nodes=3)
    request = RequestId(cluster.open_session(1), 1, 1)
    answers = [cluster.increment(1, "n", request) for _ in range(3)]
    assert cluster[1].replica.pending == 3
    cluster.run_until(lambda: all(answer.answered() for answer in answers), within_s=1)
    assert [answer.text for answer in answers] == ["1", "1", "1"]
    assert len(entries(cluster)) == 2  # the session's, and one for all three
    assert cluster[1].replica.pending == 0


def test_a_repeat_of_an_attempt_that_was_given_up_is_applied_once() -> None:
    cluster = Cluster(nodes=3)
    request = RequestId(cluster.open_session(1), 1, 1)
    lost = cluster.drop(sender={1})
    first = cluster.increment(1, "n", request)
    joined = cluster.increment(1, "n", request)
    cluster.run(0.1)
    cluster[1].replica.expire(cluster.now)
    assert isinstance(first.value, Unknown)
    assert isinstance(joined.value, Unknown)
    again = cluster.increment(1, "n", request)
    lost.lift()
    cluster.run_until(again.answered, within_s=2)
    assert again.text == "1"
    cluster.assert_equal()
    assert cluster.get(2, "n") == "1"


def test_an_unknown_session_is_expired_and_a_result_given_up_is_forgotten() -> None:
    cluster = Cluster(nodes=3)
    stranger = cluster.increment(1, "n", RequestId(Session(1, 2, 3), 1, 1))
    session = cluster.open_session(1)
    cluster.increment(1, "n", RequestId(session, 2, 2))
    late = cluster.increment(1, "n", RequestId(session, 1, 1))
    cluster.run_until(late.answered, within_s=1)
    assert isinstance(stranger.value, Expired)
    assert isinstance(late.value, Forgotten)


def test_other_outcomes_are_results() -> None:
    for outcome in (Outcome.OK, Outcome.NOT_FOUND, Outcome.MISMATCH, Outcome.NOT_A_NUMBER, Outcome.INVALID):
        assert refusal(Result(outcome)) == Result(outcome)


# ---------------------------------------------------------------------------------------- refusals and expiry


def test_a_node_that_does_not_lead_its_log_refuses() -> None:
    cluster = Cluster(nodes=3, start={1, 2})
    cluster.isolate(3)
    cluster.restart(3)
    answer = cluster.put(3, "x", "1")
    assert isinstance(answer.value, NotDone)
    assert not answer.value.permanent


def test_a_node_that_loses_its_log_refuses_what_it_has_not_proposed() -> None:
    cluster = Cluster(nodes=3)
    cluster.isolate(1)
    proposed = [cluster.increment(1, "n") for _ in range(WINDOW)]
    waiting = cluster.increment(1, "n")
    cluster.run_until(cluster.increment(2, "n").answered, within_s=3)
    assert not waiting.answered()
    cluster.heal()
    cluster.run_until(
        lambda: waiting.answered() and all(answer.answered() for answer in proposed), within_s=3
    )
    assert isinstance(waiting.value, NotDone)
    assert cluster.get(3, "n") == str(WINDOW + 1)
    assert cluster[1].replica.queued == 0


def test_a_busy_node_refuses() -> None:
    cluster = Cluster(nodes=3)
    cluster.isolate(1)
    for _ in range(WINDOW):
        cluster.increment(1, "n")
    half = cluster.submit(1, increments(QUEUE // 2), batch=True)
    full = cluster.submit(1, increments(QUEUE // 2), batch=True)
    over = cluster.increment(1, "n")
    assert isinstance(over.value, NotDone)
    assert not half.answered()
    assert not full.answered()


def test_a_node_with_too_many_reads_refuses_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "QUEUE", 2)
    cluster = Cluster(nodes=3)
    cluster.isolate(1)
    reads = [cluster.read(1, "x") for _ in range(3)]
    assert [read.answered() for read in reads] == [False, False, True]
    assert isinstance(reads[2].value, NotDone)
    assert not reads[2].value.permanent


def test_while_the_disk_hangs_what_waits_for_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "BACKLOG", 10)
    cluster = Cluster(nodes=3)
    cluster.hold_disk(3)
    for _ in range(30):
        answer = cluster.increment(1, "n")
        cluster.run_until(answer.answered, within_s=1)
    assert len(cluster[3].replica.records) <= 12
    cluster.sync(3)
    cluster.assert_equal()


def test_what_waits_too_long_is_answered_with_what_is_known() -> None:
    cluster = Cluster(nodes=3)
    cluster.isolate(1)
    proposed = [cluster.increment(1, "n") for _ in range(WINDOW)]
    queued = cluster.increment(1, "n")
    read = cluster.read(1, "n")
    cluster.run(0.2)
    young = cluster.increment(1, "n")
    node = cluster[1].replica
    node.expire(cluster.now - 0.1)
    assert all(isinstance(answer.value, Unknown) for answer in proposed)  # may be done later
    assert isinstance(queued.value, NotDone)
    assert isinstance(read.value, NotDone)
    assert not young.answered()
    assert node.pending == node.queued == 1
    cluster.heal()
    cluster.run_until(young.answered, within_s=3)
    cluster.assert_equal()
    assert cluster.get(2, "n") == str(WINDOW + 1)


def test_a_request_that_expired_with_its_first_attempt_is_answered_once() -> None:
    cluster = Cluster(nodes=3)
    request = RequestId(cluster.open_session(1), 1, 1)
    cluster.isolate(1)
    for _ in range(WINDOW):
        cluster.increment(1, "n")
    first, joined = cluster.increment(1, "n", request), cluster.increment(1, "n", request)
    cluster.run(0.1)
    cluster[1].replica.expire(cluster.now)
    assert isinstance(first.value, NotDone)
    assert isinstance(joined.value, NotDone)
    assert cluster[1].replica.pending == 0


# ----------------------------------------------------------------------------------------------------- single


class Disk:
    """One fsync at a time, when the test says so."""

    def __init__(self) -> None:
        self.frames: list[list[Record]] = []
        self.done: list[Callable[[], None]] = []
        self.rolled = False  # whether the last frame began a segment

    def write(self, records: list[Record], done: Callable[[], None], new_segment: bool) -> None:
        self.frames.append(records)
        self.rolled = new_segment
        self.done.append(done)

    def sync(self) -> None:
        self.done.pop(0)()


def alone(disk: Disk, core: Single) -> Replica:
    def answer(token: Answer, value: Any) -> None:
        token.value = value

    def send(*message: Any) -> None:
        raise AssertionError("there is nobody to send to")

    return Replica(core, Store("unused"), lambda: 0.0, send, disk.write, answer)


def test_the_single_core_answers_when_the_command_is_durable() -> None:
    disk = Disk()
    single = alone(disk, Single())
    put, read = Answer(), Answer()
    single.submit(put, [Command(Verb.PUT, "x", "1")])
    single.read(read, lambda: single.store.get("x"))
    single.turn()
    assert not put.answered()
    assert read.value.outcome == Outcome.NOT_FOUND
    disk.sync()
    assert put.ok
    again = Answer()
    single.read(again, lambda: single.store.get("x"))
    single.tick()
    single.turn()
    assert again.text == "1"
    assert len(disk.frames) == 1


def test_the_single_core_gathers_what_arrives_during_an_fsync() -> None:
    disk = Disk()
    single = alone(disk, Single())
    answers = [Answer() for _ in range(20)]
    for answer in answers:
        single.submit(answer, increments(1))
        single.turn()
    assert len(disk.frames) == 1
    disk.sync()
    disk.sync()
    assert len(disk.frames) == 2
    assert [answer.text for answer in answers] == [str(number + 1) for number in range(20)]
    assert single.core.in_flight == 0


def test_the_single_core_recovers_what_was_durable() -> None:
    disk = Disk()
    single = alone(disk, Single())
    for _ in range(3):
        single.submit(Answer(), increments(1))
        single.turn()
    disk.sync()
    core = Single()
    for record in disk.frames[0] + [Record(reservation=1)]:
        core.replay(record)
    again = alone(Disk(), core)
    again.turn()
    assert again.store.get("n").value == "1"
    assert again.store.position == (1, 0)


def test_what_waits_is_written_and_noted_before_a_segment_begins() -> None:
    disk = Disk()
    single = alone(disk, Single())
    answer = Answer()
    single.submit(answer, increments(1))
    single.roll()
    single.turn()
    assert not disk.rolled
    assert [record.held.start for record in disk.frames[0]] == [0]
    disk.sync()
    assert answer.text == "1"
    assert disk.rolled and disk.frames[1] == []
    disk.sync()
    single.submit(Answer(), increments(1))
    single.turn()
    assert not disk.rolled


def test_the_single_core_recovers_on_a_checkpoint() -> None:
    core = Single()
    core.install(Cut((7, 0), {}, 7))
    core.start(0.0)
    assert core.cut() == Cut((7, 0), {}, 7)
    core.tick(0.0)
    core.propose(b"x", None)
    assert core.clock == 8


def test_a_replica_without_files_for_checkpoints_neither_gives_nor_takes_them() -> None:
    single = alone(Disk(), Single())
    single.step(2, FetchCheckpoint(0, 0))
    single.step(2, Chunk(1, 1, 0, 0, b"x"))
    single.tick()


# --------------------------------------------------------------------------------------------------- download


class Taken:
    """Files for one download, in memory."""

    def __init__(self) -> None:
        self.data = b""
        self.dropped = 0
        self.full = False

    def begin(self, size: int) -> None:
        self.data = b""

    def write(self, offset: int, data: bytes) -> None:
        if self.full:
            raise OSError("no space left on device")
        assert offset == len(self.data)
        self.data += data

    def drop(self) -> None:
        self.dropped += 1


def downloading() -> tuple[Download, Taken, list[FetchCheckpoint]]:
    """A download from node 2 that has been begun at time 0."""
    taken = Taken()
    asked: list[FetchCheckpoint] = []
    download = Download(taken, lambda to, message, call: asked.append(message))  # type: ignore[arg-type]
    download.start(2, 0.0)
    download.start(3, 0.0)  # one at a time
    assert download.peer == 2
    return download, taken, asked


def piece(offset: int, data: bytes, number: int = 7, size: int = 6) -> Chunk:
    return Chunk(number, size, 99, offset, data)


def test_a_checkpoint_is_taken_piece_by_piece_and_each_piece_once() -> None:
    download, taken, asked = downloading()
    assert not download.on_chunk(2, piece(0, b"abc"), 0.1)
    download.tick(0.1 + CHUNK_PAUSE / 2)
    assert len(asked) == 1, "others have their turn first"
    download.tick(0.1 + CHUNK_PAUSE)
    for late in (piece(0, b"abc"), piece(0, b"zzz", number=6), piece(5, b"f")):
        assert not download.on_chunk(2, late, 0.1)
    assert not download.on_chunk(3, piece(3, b"def"), 0.1), "from another node"
    assert download.on_chunk(2, piece(3, b"def"), 0.1)
    assert not download.on_chunk(2, piece(3, b"def"), 0.1), "all is there"
    assert taken.data == b"abcdef"
    assert asked == [FetchCheckpoint(0, 0), FetchCheckpoint(7, 3)]
    download.tick(100.0)
    assert len(asked) == 2, "being verified"
    download.stop()
    download.tick(100.0)
    assert (len(asked), taken.dropped) == (2, 1)


def test_who_is_left_behind_again_takes_the_next_checkpoint_without_pauses() -> None:
    download, _, asked = downloading()
    download.on_chunk(2, piece(0, b"abc"), 0.1)
    download.tick(0.1 + CHUNK_PAUSE)
    assert download.on_chunk(2, piece(3, b"def"), 0.2)
    download.stop()
    download.start(3, 0.3)
    download.on_chunk(3, piece(0, b"abc", number=9), 0.3)
    assert asked[-1] == FetchCheckpoint(9, 3)


def test_a_piece_that_does_not_come_is_asked_for_less_and_less_often_and_then_given_up() -> None:
    download, taken, asked = downloading()
    download.on_chunk(2, piece(0, b"abc"), 0.0)
    times = []
    for step in range(1, 1000):
        before = len(asked)
        download.tick(step / 100)
        if len(asked) > before:
            times.append(step / 100)
    assert set(asked[1:]) == {FetchCheckpoint(7, 3)}
    assert times == pytest.approx([CHUNK_PAUSE, 0.06, 0.16, 0.36, 0.75, 1.55, 2.55, 3.55, 4.55], abs=0.06)
    assert download.peer is None
    assert taken.dropped == 1


@pytest.mark.parametrize(
    "wrong",
    [
        Chunk(0, 0, 0, 0, b""),  # it has none
        piece(0, b"abcdefg"),  # longer than the whole
        piece(0, b""),
    ],
)
def test_a_peer_with_nothing_to_give_is_left_alone(wrong: Chunk) -> None:
    download, taken, _ = downloading()
    assert not download.on_chunk(2, wrong, 0.1)
    assert download.peer is None
    assert taken.dropped == 0
    download.start(3, 0.2)
    assert download.peer == 3


def test_a_download_for_which_there_is_no_room_ends() -> None:
    download, taken, _ = downloading()
    download.on_chunk(2, piece(0, b"abc"), 0.1)
    taken.full = True
    assert not download.on_chunk(2, piece(3, b"def"), 0.1)
    assert download.peer is None
    assert taken.dropped == 1


# ----------------------------------------------------------------------------------------- what fits an entry

LONG = "v" * 3000
EVERY_VERB = [
    Command(Verb.PUT, "k", LONG),
    Command(Verb.GET, LONG),
    Command(Verb.DELETE, LONG),
    Command(Verb.COMPARE_AND_SET, "k", LONG, LONG),
    Command(Verb.INCREMENT, "k", delta=1),
    Command(Verb.OPEN_SESSION),
    Command(Verb.TRANSACTION, transaction=Transaction()),
    Command(
        Verb.TRANSACTION,
        request=RequestId(Session(1 << 60, 1, 0), 1, 1),
        transaction=Transaction(
            [
                Compare(LONG, Relation.EQUALS, LONG),
                Compare("k", Relation.LEASED, None, CommandPlace(1 << 60, 1, 9)),
            ],
            [Action(Verb.PUT, "k", "\U0001f600" * 100, None, 1000)] * 50,
            [Action(Verb.INCREMENT, "\u00e9" * 1000, None, 1 << 60)],
        ),
    ),
    Command(Verb.UPGRADE, delta=1),
    Command(Verb.REPLACE_NODE, "3", "host:1"),
]


def test_no_command_is_longer_than_what_is_counted_for_it() -> None:
    numbers = {number for number in vars(Verb).values() if isinstance(number, int)}
    assert {command.verb for command in EVERY_VERB} == numbers
    for command in EVERY_VERB:
        assert replica._size([command]) >= len(encode(Batch([command]))), command


def test_transactions_that_wait_do_not_gather_into_an_entry_that_no_frame_holds() -> None:
    payloads: list[bytes] = []
    core: Any = Single()
    core.propose = lambda payload, token: payloads.append(payload)
    part = Replica(core, Store("never-written.json"), lambda: 0.0, *[lambda *_: None] * 3)
    part.window = 100
    long = Transaction([], [Action(Verb.PUT, "k", "v" * 500_000)] * 2, [])
    for _ in range(20):
        part.submit(None, [Command(Verb.TRANSACTION, transaction=long)])
    part.turn()
    assert len(payloads) == 20 and max(map(len, payloads)) < MAX_NODE_FRAME / 2
