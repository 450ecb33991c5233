"""The learner: facts merge, and the logs merge into one order."""

from itertools import permutations, product
from random import Random

import pytest

from paxoskv.multipaxos import Acceptor, Covered, Cut, Diverged, Learner
from paxoskv.wire.structs import (
    Accept,
    Chosen,
    Entry,
    Fact,
    Held,
    Record,
)

LOGS = (1, 2, 3)
NOTHING = Fact(1, 0, 0, 0)
BALLOT = 300


def learner() -> Learner:
    return Learner({log: Acceptor(log, lambda record: None) for log in LOGS})


def hold(made: Learner, log: int, entries: list[Entry], ballot: int = BALLOT) -> None:
    """The log's acceptor accepts these entries behind those that it has."""
    acceptor = made.acceptors[log]
    start = acceptor.length if acceptor.accepted == ballot else 0
    acceptor.on_accept(Accept(log, ballot, start, entries, True, NOTHING, []))


def choose(made: Learner, log: int, *timestamps: int, frontier: int = 0) -> None:
    """Commands with these timestamps are held and chosen; a negative one is a no-op."""
    hold(made, log, [Entry(abs(t), b"" if t < 0 else b"%d" % t) for t in timestamps])
    made.learn(log, made.acceptors[log].length, BALLOT, frontier)
    made.settle(log)


def applied(made: Learner) -> list[tuple[int, int]]:
    return [(timestamp, owner) for timestamp, owner, _ in made.apply()]


# ------------------------------------------------------------------------------------------------------ facts


def test_facts_merge_to_the_same_in_every_order_and_however_often() -> None:
    facts = [Fact(1, *values) for values in ((1, 1, 5), (1, 2, 0), (2, 1, 3), (0, 0, 9))]
    for order in permutations(facts):
        made = learner()
        for fact in (*order, *order):
            made.learn(fact.log, fact.chosen, fact.evidence, fact.frontier)
        assert made.fact(1) == Fact(1, 2, 1, 9)


def test_chosen_and_evidence_stay_a_pair() -> None:
    pairs = list(product(range(3), range(3)))
    for first, second in product(pairs, repeat=2):
        made = learner()
        made.learn(1, *first, 0)
        made.learn(1, *second, 0)
        assert made.fact(1) == Fact(1, *max(first, second), 0)


def test_a_fact_is_news_once() -> None:
    made = learner()
    for values in ((1, 1, 5), (1, 2, 5), (2, 1, 5), (2, 1, 6)):
        assert made.learn(1, *values)
        assert not made.learn(1, *values)
    assert not made.learn(1, 1, 9, 4)


def test_a_frontier_counts_only_when_the_entries_below_it_are_held() -> None:
    made = learner()
    made.learn(1, 2, BALLOT, 50)
    assert not made.settle(1)
    assert made.logs[1].frontier == 0
    hold(made, 1, [Entry(10, b"x")])
    assert made.settle(1)
    assert made.logs[1].frontier == 10  # what the chosen prefix held says by itself
    hold(made, 1, [Entry(20, b"y")])
    assert made.settle(1)
    assert made.logs[1].frontier == 50
    assert made.fact(1) == Fact(1, 2, BALLOT, 50)


def test_entries_of_a_lower_ballot_than_the_evidence_are_not_taken_for_the_chosen_ones() -> None:
    made = learner()
    hold(made, 1, [Entry(10, b"x")], ballot=BALLOT - 1)
    made.learn(1, 1, BALLOT, 0)
    assert not made.settle(1)
    hold(made, 1, [Entry(10, b"z")])
    assert made.settle(1)


def test_a_skip_moves_the_frontier_that_is_told_to_others() -> None:
    made = learner()
    choose(made, 1, 10, -1000)
    assert made.fact(1).frontier == 1000


# ------------------------------------------------------------------------------------------------------ order


def test_commands_are_applied_by_timestamp_and_then_by_owner() -> None:
    made = learner()
    choose(made, 3, 10, 20, frontier=99)
    choose(made, 1, 10, 30, frontier=99)
    choose(made, 2, 5, 10, frontier=99)
    assert applied(made) == [(5, 2), (10, 1), (10, 2), (10, 3), (20, 3), (30, 1)]
    assert applied(made) == []
    assert made.position == (30, 1)
    assert made.next() is None


@pytest.mark.parametrize(("log", "enough"), [(1, 10), (3, 9)])
def test_a_command_waits_until_no_log_can_bring_an_earlier_one(log: int, enough: int) -> None:
    """Log 1 sorts before log 2 at the same timestamp, log 3 behind it."""
    made = learner()
    other = 4 - log
    choose(made, 2, 10)
    choose(made, other, frontier=99)
    choose(made, log, frontier=enough - 1)
    assert applied(made) == []
    assert made.waits_on(0) == {log: enough}
    choose(made, log, frontier=enough)
    assert made.waits_on(0) == {}
    assert applied(made) == [(10, 2)]


def test_no_ops_are_passed_over_and_wait_for_nothing() -> None:
    made = learner()
    choose(made, 2, -10, -20, 30, -40)
    assert made.next() == (30, 2)
    assert made.logs[2].executed == 2
    choose(made, 1, frontier=30)
    choose(made, 3, frontier=29)
    assert applied(made) == [(30, 2)]
    assert made.logs[2].executed == 4
    assert made.next() is None


def test_a_read_waits_on_logs_too() -> None:
    made = learner()
    choose(made, 1, frontier=10)
    assert made.waits_on(0) == {}
    assert made.waits_on(10) == {2: 10, 3: 10}
    choose(made, 3, 4, frontier=20)
    assert made.waits_on(10) == {2: 10}
    assert made.waits_on(2) == {2: 4}


def test_whatever_arrives_when_the_order_is_the_same() -> None:
    for seed in range(50):
        random = Random(seed)
        made = learner()
        logs: dict[int, list[int]] = {log: sorted(random.sample(range(1, 40), 6)) for log in LOGS}
        order: list[tuple[int, int]] = []
        left: dict[int, list[int]] = {log: list(timestamps) for log, timestamps in logs.items()}
        while any(left.values()):
            log = random.choice([log for log in LOGS if left[log]])
            choose(made, log, left[log].pop(0) * random.choice((1, 1, -1)))
            order += applied(made)
        for log in LOGS:
            choose(made, log, frontier=100)
        order += applied(made)
        commands = {
            (entry.timestamp, log) for log in LOGS for entry in made.acceptors[log].entries if entry.payload
        }
        assert order == sorted(commands)


def test_no_command_is_applied_out_of_order() -> None:
    made = learner()
    for log in LOGS:
        choose(made, log, frontier=100)
    choose(made, 2, 50)
    assert applied(made) == [(50, 2)]
    choose(made, 1, 40)  # a fact was not true
    with pytest.raises(Diverged, match=r"command 40 of log 1 is chosen, after \(50, 2\) was applied"):
        applied(made)


# --------------------------------------------------------------------------------------------------- recovery


def restarted(made: Learner) -> Learner:
    again = learner()
    for log, acceptor in made.acceptors.items():
        hold(again, log, list(acceptor.entries))
        again.acceptors[log].learn(acceptor.chosen, acceptor.evidence)
    return again


@pytest.mark.parametrize("count", range(7))
def test_after_a_restart_the_applied_commands_come_again_in_the_same_order(count: int) -> None:
    made = learner()
    choose(made, 3, 10, -15, 20, frontier=99)
    choose(made, 1, 10, 30, -35, frontier=99)
    choose(made, 2, 5, 10, frontier=99)
    whole = list(made.apply())
    position = whole[count - 1][:2] if count else (0, 0)

    again = restarted(made)
    assert list(again.recover(position)) == whole[:count]
    assert again.position == position
    for log, frontier in ((1, 35), (2, 10), (3, 20)):
        assert again.logs[log].frontier == frontier  # of what is held; the rest was volatile
        again.learn(log, 0, 0, 99)
        again.settle(log)
    assert list(again.apply()) == whole[count:]
    assert again.fact(1).evidence == BALLOT


def test_a_restart_on_a_checkpoint_applies_what_lies_beyond_it() -> None:
    made = learner()
    choose(made, 1, 10, 20)
    choose(made, 2, -10)
    cut = Cut((10, 1), {1: Covered(1, BALLOT, 10), 2: Covered(1, BALLOT, 10), 3: Covered(0, 0, 0)}, 0)
    again = learner()
    assert again.install(cut)
    for log in LOGS:
        acceptor = again.acceptors[log]
        acceptor.replay(Record(held=Held(log, BALLOT, 0, made.acceptors[log].entries)))
        acceptor.replay(Record(chosen=Chosen(log, made.acceptors[log].chosen, BALLOT)))
    assert list(again.recover((20, 1))) == [(20, 1, b"20")]
    assert [again.logs[log].executed for log in LOGS] == [2, 1, 0]
    assert again.position == (20, 1)
    assert again.cut(7) == Cut(
        (20, 1), {1: Covered(2, BALLOT, 20), 2: Covered(1, BALLOT, 10), 3: Covered(0, 0, 0)}, 7
    )


# ------------------------------------------------------------------------------------------------ checkpoints


def test_a_checkpoint_takes_the_place_of_what_is_applied_only_if_it_lies_beyond() -> None:
    made = learner()
    choose(made, 1, 10, 20)
    choose(made, 2, frontier=99)
    choose(made, 3, frontier=99)
    assert applied(made) == [(10, 1), (20, 1)]
    assert not made.install(Cut((10, 1), {1: Covered(1, BALLOT, 10)}, 0))
    assert made.position == (20, 1)
    assert made.logs[1].executed == 2
    assert made.install(Cut((30, 1), {1: Covered(3, BALLOT, 30)}, 0))
    assert made.position == (30, 1)
    assert made.logs[1].executed == 3
    choose(made, 1, 40)
    assert applied(made) == [(40, 1)]


def test_positions_merge_log_by_log() -> None:
    """No-ops are passed over early: each of two nodes may have passed what the other has not."""
    made = learner()
    choose(made, 1, 10, -20)
    choose(made, 2, 15)
    choose(made, 3, frontier=99)
    assert applied(made) == [(10, 1), (15, 2)]
    assert [made.logs[log].executed for log in LOGS] == [2, 1, 0]
    made.acceptors[1].drop(2)
    cut = Cut((16, 3), {1: Covered(1, BALLOT, 10), 2: Covered(1, BALLOT, 15), 3: Covered(2, BALLOT, 90)}, 0)
    assert made.install(cut)
    assert [made.logs[log].executed for log in LOGS] == [2, 1, 2]
    assert made.position == (16, 3)
    assert [made.logs[log].frontier for log in LOGS] == [20, 16, 99]
    assert made.fact(3) == Fact(3, 2, BALLOT, 99)


def test_an_entry_chosen_and_not_in_the_checkpoint_is_applied_after_it() -> None:
    made = learner()
    choose(made, 1, 10, 20, 30)
    assert made.install(Cut((20, 1), {1: Covered(2, BALLOT, 20)}, 0))
    choose(made, 2, frontier=99)
    choose(made, 3, frontier=99)
    assert applied(made) == [(30, 1)]


def test_a_checkpoint_says_how_far_all_logs_have_come() -> None:
    made = learner()
    made.install(Cut((50, 2), {log: Covered(1, BALLOT, 40) for log in LOGS}, 0))
    assert [made.logs[log].frontier for log in LOGS] == [50, 50, 49]


def test_a_skip_that_was_given_up_still_counts() -> None:
    """Otherwise an owner that recovers would stamp below it, where others no longer wait."""
    made = learner()
    choose(made, 1, 10, -1000)
    choose(made, 2, frontier=50)
    choose(made, 3, frontier=50)
    assert applied(made) == [(10, 1)]
    made.acceptors[1].drop(2)
    cut = made.cut(0)
    assert cut.logs[1] == Covered(2, BALLOT, 1000)
    again = learner()
    again.install(cut)
    assert again.fact(1).frontier == 1000
    assert again.acceptors[1].last_timestamp == 1000
