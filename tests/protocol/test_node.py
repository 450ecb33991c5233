"""What is left of Node when the stories are told: limits, small duties, messages that lie or come late."""

from random import Random
from typing import Any

import pytest

from paxoskv.multipaxos import FETCH_BYTES, ballot_of
from paxoskv.protocol.catch_up import FETCH_AFTER, FETCH_ENTRIES, FETCH_PAUSE
from paxoskv.protocol.clock import RESERVE
from paxoskv.protocol.core import Core
from paxoskv.protocol.faults import Failures
from paxoskv.protocol.node import Node
from paxoskv.protocol.outbox import DEFER_AT_MOST, Ready
from paxoskv.protocol.persistence import Persisted
from paxoskv.wire.structs import (
    Accept,
    Accepted,
    Barrier,
    Chosen,
    Entry,
    Fact,
    Fetch,
    Fetched,
    Held,
    Learn,
    LogBallot,
    Position,
    Prepare,
    Promise,
    Reading,
    Record,
    Verdict,
    Vote,
)
from tests.harness.scenario import DELAY, Cluster

NOTHING = Fact(2, 0, 0, 0)
POSITION = Position(0, 0)
FAR = 1 << 56
ABSURD = ballot_of(1 << 48, 2)


def node(nodes: int = 3, me: int = 1, records: tuple[Record, ...] = ()) -> Node:
    """Started, at time 1, after a restart with these records; what it wanted to send is lost."""
    made = Node(me, range(1, nodes + 1), Random(1))
    for record in records:
        made.replay(record)
    made.start(1.0)
    made.drain(1.0)
    return made


def tell(made: Node, sender: int, message: Any, now: float = 1.0) -> Ready:
    made.step(sender, message, now)
    return made.drain(now)


def sent(ready: Ready, kind: type) -> list[Any]:
    return [message for _, message, _ in ready.send + ready.send_after if isinstance(message, kind)]


# ---------------------------------------------------------------------------------------------------- restart


def test_a_node_answers_itself_whatever_a_core_without_peers_answers_otherwise() -> None:
    questions = {name for name in vars(Core) if not name.startswith("_")}
    assert questions and questions <= {*vars(Node)}


def test_a_restart_applies_again_what_was_applied_and_stands_with_a_new_ballot() -> None:
    ballot = ballot_of(3, 1)
    entries = [Entry(10, b"first"), Entry(20, b"second")]
    made = Node(1, (1, 2, 3), Random(1))
    for record in (
        Record(reservation=500),
        Record(reservation=400),
        Record(candidate=LogBallot(1, ballot)),
        Record(promised=LogBallot(1, ballot)),
        Record(held=Held(1, ballot, 0, entries)),
        Record(chosen=Chosen(1, 2, ballot)),
        Record(applied=Position(10, 1)),
    ):
        made.replay(record)
    made.start(1.0)
    ready = made.drain(1.0)
    assert [(entry.timestamp, entry.owner, entry.payload) for entry in ready.apply] == [(10, 1, b"first")]
    assert made.clock.time == 500
    assert made.logs.fact(1) == Fact(1, 2, ballot, 20)
    made.tick(1.1)
    (prepare,) = {message.ballot for message in sent(made.drain(1.1), Prepare)}
    assert prepare > ballot


def test_a_restarted_node_holds_what_it_had_applied() -> None:
    cluster = Cluster()
    for number in range(10):
        cluster.run_until(cluster.increment(1 + number % 5, "n").answered, within_s=1)
    cluster.run(0.2)
    cluster.crash(2)
    cluster.restart(2)
    assert len(cluster[2].applied) >= 5  # at once; what was applied since the last frame follows
    cluster.assert_equal()
    assert cluster.get(2, "n") == "10"
    answer = cluster.increment(2, "n")
    cluster.run_until(answer.answered, within_s=2)
    assert answer.text == "11"


def test_what_need_not_be_durable_soon_is_noted_once() -> None:
    made = node(nodes=1)
    made.step(1, Promise(1, 0, 0, Verdict.NACK, 0, 0, [], Fact(1, 0, 0, 0)), 1.0)  # no candidate yet
    made.tick(1.1)
    while not made.ready or made.way.commands.pending or not made.learner.position[0]:
        ready = made.drain(1.1)
        for _, message, call in ready.send + ready.send_after:
            made.step(1, message, 1.1, call)
        if made.ready and not made.learner.position[0] and not made.way.commands.pending:
            made.propose(b"command", None)
    notes = made.notes()
    assert [note.chosen.chosen for note in notes if note.chosen] == [1]
    assert [note.applied for note in notes if note.applied] == [Position(*made.learner.position)]
    assert made.notes() == []


def test_the_reservation_is_renewed_when_half_of_it_is_used() -> None:
    made = node(records=(Record(reservation=500),))
    assert made.clock.reserving == 500 + RESERVE
    assert made.clock.reserved == 500
    made.step(1, Persisted(1, 500 + RESERVE, []), 1.0)
    assert made.clock.reserved == 500 + RESERVE
    made.step(1, Persisted(0, 1, []), 1.0)
    assert made.clock.reserved == 500 + RESERVE
    assert tell(made, 2, Learn(500 + RESERVE // 2, [], [], POSITION, 0)).journal == []
    ready = tell(made, 2, Learn(501 + RESERVE // 2, [], [], POSITION, 0))
    assert [record.reservation for record in ready.journal] == [501 + RESERVE // 2 + RESERVE]


# -------------------------------------------------------------------------------------- lies and old messages


@pytest.mark.parametrize(
    "message",
    [
        Accept(2, ballot_of(1, 2), 0, [Entry(FAR, b"x")], True, NOTHING, []),
        Learn(FAR, [Fact(2, 0, 0, FAR)], [], POSITION, 0),
        Reading(0, FAR, [Fact(2, 0, 0, FAR)]),
        Barrier(1, FAR),
        Learn(1, [Fact(9, 1, 1, 1)], [], POSITION, 0),
        Reading(0, 1, [Fact(9, 1, 1, 1)]),
        Promise(2, 1, 0, Verdict.COVERED, 0, 0, [], Fact(9, 1, 1, 1)),
        Accepted(2, 1, 1, Vote.ACCEPTED, 7, NOTHING),
        Accepted(1, 1, 1, Vote.ACCEPTED, 7, NOTHING),
        Fetched(2, 0, [Entry(1, b"x")], 1, 0),
        Accept(2, ABSURD, 0, [Entry(1, b"x")], True, NOTHING, []),
        Prepare(2, ABSURD, 0, 0),
        Learn(1, [Fact(2, 1, ABSURD, 1)], [], POSITION, 0),
    ],
)
def test_what_lies_too_far_ahead_or_was_never_asked_for_changes_nothing(message: Any) -> None:
    made = node()
    tell(made, 2, message)
    assert made.clock.time <= 1
    assert made.clock.highest == 0
    assert all(acceptor.length == acceptor.promised == 0 for acceptor in made.acceptors.values())
    assert [made.learner.fact(log) for log in (1, 2, 3)] == [Fact(log, 0, 0, 0) for log in (1, 2, 3)]


def test_fetched_entries_too_far_ahead_are_not_installed() -> None:
    made = node()
    tell(made, 2, Learn(1, [Fact(2, 1, ballot_of(1, 2), 0)], [], POSITION, 0))
    tell(made, 2, Fetched(2, 0, [Entry(FAR, b"x")], ballot_of(1, 2), 0))
    assert made.acceptors[2].length == 0
    tell(made, 2, Fetched(2, 0, [Entry(5, b"x")], ballot_of(1, 2), 0))
    assert made.acceptors[2].chosen == 1
    assert made.clock.time == 5


def test_nobody_waits_until_fetched_entries_are_journaled() -> None:
    made = node()
    tell(made, 2, Learn(1, [Fact(2, 2, ballot_of(1, 2), 0)], [], POSITION, 0))
    assert tell(made, 2, Fetched(2, 0, [Entry(RESERVE, b"x")], ballot_of(1, 2), 0)).flush_now, "a reservation"
    ready = tell(made, 2, Fetched(2, 1, [Entry(RESERVE + 1, b"y")], ballot_of(1, 2), 0))
    assert [record.held for record in ready.journal] == [
        Held(2, ballot_of(1, 2), 1, [Entry(RESERVE + 1, b"y")])
    ]
    assert not ready.flush_now
    made.tick(1.0 + DEFER_AT_MOST)
    assert made.drain(1.0 + DEFER_AT_MOST).flush_now


def test_a_candidate_does_not_follow_into_absurd_ballots() -> None:
    made = node()
    made.tick(1.1)
    made.drain(1.1)
    assert made.own.preparing
    tell(made, 2, Promise(1, made.own.ballot, 0, Verdict.NACK, ABSURD, 0, [], Fact(1, 0, 0, 0)))
    assert made.own.preparing
    assert made.own.highest == made.own.ballot


def test_a_vote_at_an_older_ballot_does_not_count() -> None:
    cluster = Cluster(nodes=3)
    cluster.crash(1)
    cluster.restart(1)
    cluster.run_until(lambda: cluster.core(1).own.established, within_s=1)
    ballot = cluster.core(1).own.ballot
    cluster.drop(Accept, sender={1})
    answer = cluster.put(1, "x", "1")
    for peer in (2, 3):
        cluster[1].receive(
            peer, Accepted(1, ballot - 256, ballot, Vote.ACCEPTED, 1, cluster.core(peer).logs.fact(peer))
        )
    cluster.run(0.05)
    assert not answer.answered()


# --------------------------------------------------------------------------------------------------- fetching


def test_a_fetch_is_answered_with_chosen_entries_only() -> None:
    made = node()
    ballot = ballot_of(1, 2)
    big = b"x" * (FETCH_BYTES // 2)
    entries = [Entry(slot, big) for slot in range(1, 5)]
    tell(made, 2, Accept(2, ballot, 0, entries, True, NOTHING, []))
    assert sent(tell(made, 3, Fetch(2, 0)), Fetched) == [Fetched(2, 0, [], 0, 0)]
    tell(made, 2, Learn(1, [Fact(2, 3, ballot, 0)], [], POSITION, 0))
    assert sent(tell(made, 3, Fetch(2, 0)), Fetched) == [Fetched(2, 0, entries[:2], ballot, 0)]
    assert sent(tell(made, 3, Fetch(2, 2)), Fetched) == [Fetched(2, 2, entries[2:3], ballot, 0)]
    assert sent(tell(made, 3, Fetch(2, 3)), Fetched) == [Fetched(2, 3, [], ballot, 0)]
    made.acceptors[2].drop(1)
    assert sent(tell(made, 3, Fetch(2, 0)), Fetched) == [Fetched(2, 0, [], ballot, 1)]


def test_nobody_waits_for_the_vote_of_a_node_that_must_fetch_first() -> None:
    cluster = Cluster()
    answer = cluster.put(1, "a", "1")
    cluster.run_until(answer.answered, within_s=1)
    core = cluster.core(1)
    core.voters.choose(cluster.now)
    assert core.voters.at_once == [1, 2, 3]
    core.own.lengths[2] = core.own.start - FETCH_ENTRIES
    core.voters.choose(cluster.now)
    assert core.voters.at_once == [1, 2, 3]
    core.own.lengths[2] -= 1
    core.voters.choose(cluster.now)
    assert core.voters.at_once == [1, 3, 4]


def test_what_is_fetched_comes_in_small_pieces_with_pauses() -> None:
    giver, taker = node(), node(me=3)
    ballot, count = ballot_of(1, 2), FETCH_ENTRIES + 10
    entries = [Entry(slot, b"x") for slot in range(1, count + 1)]
    chosen = Learn(count, [Fact(2, count, ballot, 0), Fact(1, 1, ballot_of(1, 1), 0)], [], POSITION, 0)
    assert taker.turn_due is None
    tell(giver, 2, Accept(2, ballot, 0, entries, True, NOTHING, []))
    tell(giver, 2, chosen)
    (piece,) = sent(tell(giver, 3, Fetch(2, 0)), Fetched)
    assert piece.entries == entries[:FETCH_ENTRIES]

    assert sent(tell(taker, 2, chosen), Fetch) == [Fetch(2, 0)], "of log 1 it is hearsay, and may come yet"
    assert taker.turn_due == 1.0 + FETCH_AFTER
    assert sent(tell(taker, 2, piece, 1.001), Fetch) == []
    assert taker.turn_due == 1.0 + FETCH_PAUSE
    assert sent(taker.drain(1.0 + FETCH_PAUSE), Fetch) == [Fetch(2, FETCH_ENTRIES)]
    assert taker.turn_due == 1.0 + FETCH_AFTER
    assert sent(taker.drain(1.0 + FETCH_AFTER), Fetch) == [Fetch(1, 0)]


def test_who_lacks_more_than_fits_an_accept_is_left_to_fetch_it() -> None:
    cluster = Cluster()
    lost = cluster.drop(Accept, sender={1}, to={5}, where=lambda message: bool(message.entries))
    cluster.drop(Fetched, to={5})
    for number in range(4):
        answer = cluster.put(1, f"key {number}", "v" * (FETCH_BYTES // 3))
        cluster.run_until(answer.answered, within_s=1)
    lost.lift()
    before = len(cluster.sent_messages(Accept, 1, 5))
    cluster.run_until(lambda: len(cluster.sent_messages(Accept, 1, 5)) > before, within_s=2)
    again = cluster.sent_messages(Accept, 1, 5)[-1].message
    assert (again.start, again.entries) == (4, [])
    cluster.heal()
    cluster.assert_equal()


def test_a_fetch_that_is_refused_goes_to_another_node() -> None:
    cluster = Cluster()
    cluster.drop(Accept, sender={1}, to={4, 5})
    cluster.drop(Learn, Reading, sender={1, 2, 3}, to={5})
    cluster.drop(Fetched, to={4})
    answer = cluster.put(1, "x", "1")
    cluster.run_until(answer.answered, within_s=1)
    cluster.run_until(lambda: cluster.core(5).learner.logs[1].chosen == 1, within_s=1)  # by hearsay, from 4
    cluster.run_until(lambda: cluster[5].store.get("x").value == "1", within_s=1)
    assert cluster.sent_messages(Fetched, 4, 5, lambda message: not message.entries)


def test_who_finds_nobody_that_has_an_entry_asks_at_a_bounded_rate() -> None:
    cluster = Cluster()
    cluster.drop(Accept, sender={1}, to={4, 5})
    cluster.drop(Fetched, sender={1, 2, 3})
    answer = cluster.put(1, "x", "1")
    cluster.run_until(answer.answered, within_s=1)
    cluster.run(0.2)
    for dead in (1, 2, 3):
        cluster.crash(dead)
    before = len(cluster.sent)
    cluster.run(1)
    fetches = [envelope for envelope in cluster.sent[before:] if isinstance(envelope.message, Fetch)]
    assert 0 < len(fetches) <= 2 * 60


# ----------------------------------------------------------------------------------------------- small duties


def test_a_node_with_nothing_to_do_is_not_busy() -> None:
    cluster = Cluster()
    assert not any(cluster.core(number).busy for number in cluster.ids)
    answer = cluster.put(1, "x", "1")
    assert cluster.core(1).busy
    cluster.run_until(answer.answered, within_s=1)
    cluster.run(0.3)
    assert not any(cluster.core(number).busy for number in cluster.ids)


def test_an_owner_that_is_revoked_again_and_again_waits_longer_each_time() -> None:
    made = node()
    pauses = []
    now = 1.0
    for _ in range(12):
        made.own.leading = True
        now += 0.001
        made.way.lose(made.own, 0, now)
        assert made.way.retake_at is not None
        pauses.append(round(max(0.0, made.way.retake_at - now)))
        made.way.retake_at = None
    assert pauses == [0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    made.own.leading = True
    made.way.lose(made.own, 0, now + 61)
    assert made.way.retake_at == now + 61  # a minute later it is forgiven


def test_a_skip_that_runs_out_is_renewed_by_the_revoker_that_still_leads() -> None:
    cluster = Cluster(nodes=3)
    cluster.crash(3)
    cluster.hear_clock(1, 100)
    cluster.run_until(cluster.put(1, "x", "1").answered, within_s=2)
    (revoker,) = [number for number in (1, 2) if cluster.core(number).way.revocations]
    ballot = cluster.core(revoker).proposers[3].ballot
    for _ in range(2):
        cluster.hear_clock(revoker, cluster.core(revoker).learner.logs[3].frontier + 5)
        cluster.run_until(cluster.put(revoker, "x", "1").answered, within_s=3)
    assert cluster.core(revoker).way.revocations == 3
    assert cluster.core(revoker).proposers[3].ballot == ballot
    assert cluster.core(3 - revoker).way.revocations == 0


def test_a_revoker_that_cannot_finish_its_skip_adds_no_second_one() -> None:
    cluster = Cluster()
    cluster.crash(1)
    cluster.drop(Prepare, sender={3, 4, 5})
    cluster.drop(Accept, sender={2}, where=lambda message: message.log == 1)
    cluster.put(2, "x", "1")
    cluster.run(5)
    assert cluster.core(2).proposers[1].leading
    assert cluster.core(2).way.revocations == 1


def test_an_acceptor_is_silent_for_periods() -> None:
    made = node()
    made.faults.failures = Failures(silence=1.0, every=4.0)
    fails = [made.faults.fails(1.0 + step / 10) for step in range(40_000)]
    periods = [step for step in range(1, len(fails)) if fails[step] and not fails[step - 1]]
    assert 500 < len(periods) < 1200
    share = sum(fails) / len(fails)
    assert 0.15 < share < 0.3
    assert not any(fails[:5])


def test_a_silent_peer_is_sent_what_it_lacks_when_it_speaks_again() -> None:
    cluster = Cluster()
    for silent in (3, 4, 5):
        cluster.pause(silent)
    cluster.put(1, "x", "1")
    cluster.run(8)
    before = len(cluster.sent_messages(Accept, 1, 3))
    cluster.run_until(lambda: len(cluster.sent_messages(Accept, 1, 3)) > before, within_s=2)
    cluster.run(2 * DELAY)
    cluster[3].inbox.clear()  # lost; the next would come in a second
    cluster.resume(3)
    cluster.run_until(lambda: cluster.core(3).acceptors[1].length == 1, within_s=0.3)


def test_a_leader_whose_acceptor_promises_to_another_has_lost_the_log_at_that_moment() -> None:
    cluster = Cluster()
    leader = cluster[1]
    assert leader.core.ready
    leader.core.step(2, Prepare(1, leader.core.own.ballot + 256, 0, 0), cluster.now)
    assert not leader.core.ready


def test_a_leader_that_hears_of_a_later_ballots_evidence_has_lost_the_log_at_that_moment() -> None:
    cluster = Cluster()
    leader = cluster[1]
    leader.core.step(2, Learn(1, [Fact(1, 1, leader.core.own.ballot + 256, 0)], [], POSITION, 0), cluster.now)
    assert not leader.core.ready


def test_a_measured_round_trip_is_forgotten_in_time() -> None:
    made = node()
    made.round_trips.measured[2] = (2.0, 1.0)
    assert made.revocation.patience(1.0) == 16.0
    assert made.revocation.patience(2.0) == 8.0
    assert made.revocation.patience(20.0) == made.revocation.revoke_after


def test_round_trips_are_measured_from_the_first_accept_to_the_answer_that_covers_it() -> None:
    cluster = Cluster(delay=0.03)
    cluster.run_until(cluster.put(1, "x", "1").answered, within_s=1)
    cluster.run_until(lambda: len(cluster.core(1).round_trips.measured) == 4, within_s=0.1)
    measured = [seconds for seconds, _ in cluster.core(1).round_trips.measured.values()]
    assert all(0.06 <= seconds < 0.08 for seconds in measured)
