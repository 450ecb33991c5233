"""Implausible numbers are refused and counted, without effect; an honest node is never refused."""

from random import Random
from typing import Any

import pytest

from paxoskv.multipaxos import ballot_of
from paxoskv.protocol.claims import LAST, NUMBERS, is_too_high
from paxoskv.protocol.clock import SKIP
from paxoskv.protocol.node import Node
from paxoskv.wire.codec import encode
from paxoskv.wire.structs import (
    Accept,
    Accepted,
    Barrier,
    Entry,
    Fact,
    Fetched,
    Identity,
    Learn,
    Position,
    Prepare,
    Promise,
    Reading,
    Record,
    Rejoin,
    Rejoined,
    Verdict,
    Vote,
)
from tests.harness.scenario import Cluster

FAR = 1 << 56
MOST = (1 << 63) - 1
HIGH = ballot_of(1 << 48, 2)
NOTHING = Fact(2, 0, 0, 0)
NOW = 1.0


def started() -> Node:
    made = Node(1, (1, 2, 3), Random(1))
    made.start(NOW)
    made.drain(NOW)
    return made


SENSELESS = {
    "an entry": Accept(2, ballot_of(1, 2), 0, [Entry(FAR, b"x")], True, NOTHING, []),
    "a skip": Accept(2, ballot_of(1, 2), 0, [Entry(MOST, b"")], True, NOTHING, []),
    "a ballot to accept": Accept(2, HIGH, 0, [Entry(1, b"x")], True, NOTHING, []),
    "a ballot to promise": Prepare(2, MOST, 0, 0),
    "a frontier": Accept(2, ballot_of(1, 2), 0, [], True, Fact(2, 0, 0, FAR), []),
    "evidence": Learn(1, [Fact(2, 1, HIGH, 1)], [], Position(0, 0), 0),
    "a clock in gossip": Learn(FAR, [], [], Position(0, 0), 0),
    "a clock that is told": Reading(7, MOST, []),
    "a clock that asks": Barrier(7, FAR),
    "a ballot that was promised": Promise(2, 257, 0, Verdict.NACK, HIGH, 0, [], NOTHING),
    "a ballot that was accepted": Promise(2, 257, 0, Verdict.PROMISED, 257, HIGH, [], NOTHING),
    "an entry that was accepted": Promise(2, 257, 0, Verdict.PROMISED, 257, 257, [Entry(FAR, b"x")], NOTHING),
    "a ballot with a vote": Accepted(1, 257, HIGH, Vote.REFUSED, 0, NOTHING),
    "an entry that was asked for": Fetched(2, 0, [Entry(FAR, b"x")], 257, 0),
    "evidence that was asked for": Fetched(2, 0, [Entry(1, b"x")], HIGH, 0),
    "an incarnation": Rejoin(2, 1 << 62),
    "the last incarnation": Rejoin(2, MOST),
    "an incarnation that was noted": Rejoined(1, 0, MOST, False, 0, 0, 0, [], NOTHING, 1),
    "an entry for who rejoins": Rejoined(2, 0, 1, False, 0, 0, 0, [Entry(FAR, b"x")], NOTHING, 1),
    "a clock for who rejoins": Rejoined(1, 0, 1, False, 0, 0, 0, [], NOTHING, FAR),
}


@pytest.mark.parametrize("what", SENSELESS)
def test_what_nobody_can_have_come_to_is_refused_counted_and_changes_nothing(what: str) -> None:
    made = started()
    before = made.state()
    for count in range(1, 129):
        made.step(2, SENSELESS[what], NOW)
        ready = made.drain(NOW)
        assert not ready.journal and not ready.send and not ready.send_after
        report = made.report()
        assert report.claims_refused == count
    assert report.last_claim[0] == 2 and "implausibly high" in report.last_claim[1]
    assert made.state() == before and made.clock.time == made.clock.highest == 0


@pytest.mark.parametrize(
    "claim", [{"incarnation": 1 << 62}, {"incarnation": MOST}, {"life": 1 << 62}, {"life": MOST}]
)
def test_a_process_whose_disk_or_start_nobody_can_have_is_refused_and_not_noted(
    claim: dict[str, int],
) -> None:
    made = started()
    honest = Identity("ours", "digest", 2, 1, 1 << 20)
    assert made.greet(honest) is None
    made.drain(NOW)
    assert "implausibly high" in (made.greet(honest._replace(**claim)) or "")
    assert made.noted(2) == (1, 1 << 20) and not made.drain(NOW).journal
    assert made.greet(honest._replace(incarnation=5)) is None


def test_honest_steps_are_never_too_high_however_many_were_missed() -> None:
    for known in (0, 1, 1 << 32, 1 << 55, NUMBERS - 1, NUMBERS, LAST - SKIP):
        for step in (1, 2, 256, 1 << 20, SKIP):
            assert not is_too_high(known + step, known)
        assert not is_too_high(known, known) and not is_too_high(0, known) and not is_too_high(-5, known)
    assert not is_too_high(4_000_000 * SKIP, 0), "a node may have missed so many skips"


def test_false_claims_use_up_no_number_however_often_they_are_made() -> None:
    known = claims = 0
    while NUMBERS - known > SKIP << 8 and claims < 100_000:  # each as high as it can be
        known += NUMBERS - known >> 8
        claims += 1
    assert claims > 3000
    made = started()
    made.clock.raise_to(LAST)
    ready = made.drain(NOW)
    for record in ready.journal:
        encode(record)
    made.clock.stamp_skip(0)
    encode(Record(reservation=made.clock.highest))


def test_a_node_that_rejoins_can_count_on_from_every_incarnation_that_was_noted() -> None:
    """One beyond the last that peers note still fits, on the wire and in the journal."""
    rejoining = Node(3, (1, 2, 3), Random(1), incarnation=0)
    rejoining.start(NOW)
    for peer in (1, 2):
        rejoining.step(peer, Rejoined(3, 0, LAST, False, 0, 0, 0, [], Fact(3, 0, 0, 0), 0), NOW)
    ready = rejoining.drain(NOW)
    taken = [record.incarnation for record in ready.journal if record.incarnation is not None]
    assert taken == [LAST + 1]
    for record in ready.journal:
        encode(record)


# ------------------------------------------------------------------------------- more than anybody has chosen


def lie(log: int, evidence: int) -> Learn:
    return Learn(1, [Fact(log, 10**9, evidence, 1 << 30)], [0, 0, 0], Position(0, 0), 0)


@pytest.mark.parametrize("log", [1, 2, 3])
def test_writes_go_on_when_somebody_says_that_a_thousand_million_entries_are_chosen(log: int) -> None:
    cluster = Cluster(nodes=3, seed=3)
    first = cluster.put(1, "before", "1")
    cluster.run_until(first.answered, within_s=1)
    evidence = cluster.core(log).own.ballot
    for node in (1, 2):
        cluster[node].receive(3, lie(log, evidence))
    cluster.run(0.5)
    for node in (1, 2, 3):
        answer = cluster.put(node, f"after-{node}", "2")
        cluster.run_until(answer.answered, within_s=1)
    assert all(not cluster.core(node).catch_up.pursued for node in (1, 2, 3)), "nobody has such entries"
    refused = cluster.core(log).report().claims_refused
    assert refused == (1 if log != 3 else 0), "the leader knows that it has sent no such entries"


def test_a_node_far_behind_believes_what_it_is_told_as_it_fetches_it() -> None:
    cluster = Cluster(nodes=3, seed=4)
    cluster.run(0.1)
    cluster.crash(3)
    for number in range(60):
        answer = cluster.put(1, f"key-{number}", "x")
        cluster.run_until(answer.answered, within_s=2)
    cluster.restart(3)
    core = cluster.core(3)
    core.catch_up.credit = 2
    cluster.run_until(lambda: core.learner.position == cluster.core(1).learner.position, within_s=2)
    assert core.acceptors[1].chosen >= 60 and not core.catch_up.pursued
    answer = cluster.put(3, "back", "y")
    cluster.run_until(answer.answered, within_s=1)


def test_what_a_peer_claims_to_hold_is_not_believed_far_beyond_what_we_hold() -> None:
    made: Any = started()
    made.step(2, Learn(1, [], [10**9, 5, 0], Position(0, 0), 0), NOW)
    assert made.compaction.held(2) == [2048, 5, 0]
