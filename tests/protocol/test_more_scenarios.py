"""Stories that tests/harness/mutants.py asked for: each is about a rule that no other test would have missed.

As in test_scenarios.py: nodes 1 to 5; log 1 is owned by node 1; three are a quorum.
"""

from typing import Any

import pytest

from paxoskv.protocol.faults import Failures
from paxoskv.protocol.outbox import DEFER_AT_MOST
from paxoskv.protocol.voters import SLOW
from paxoskv.wire.codec import NotDone, Unknown
from paxoskv.wire.structs import (
    Accept,
    Accepted,
    Barrier,
    Command,
    Fetch,
    FetchCheckpoint,
    Fetched,
    Learn,
    Prepare,
    Promise,
    Reading,
    Verb,
    Vote,
)
from tests.harness.scenario import DELAY, FSYNC, Answer, Cluster


def answered(answers: list[Answer]) -> bool:
    return all(answer.answered() for answer in answers)


# ------------------------------------------------------------------------------------- messages lost and late


def test_an_accept_that_was_lost_is_sent_again() -> None:
    cluster = Cluster()
    with cluster.drop(Accept, sender={1}):
        answer = cluster.put(1, "x", "1")
        cluster.run(0.01)
    cluster.run_until(answer.answered, within_s=0.5)


def test_a_prepare_that_was_lost_is_sent_again() -> None:
    cluster = Cluster()
    cluster.crash(1)
    with cluster.drop(Prepare, sender={1}):
        cluster.restart(1)
        cluster.run(0.02)
    cluster.run_until(lambda: cluster.core(1).ready, within_s=1)
    assert cluster.put(1, "x", "1").value is None  # taken, not refused


def test_a_fetch_that_was_lost_goes_to_another_node() -> None:
    cluster = Cluster()
    cluster.drop(Accept, to={4})
    lost = cluster.drop(Fetch, sender={4})
    answer = cluster.put(1, "x", "1")
    cluster.run_until(lambda: bool(cluster.sent_messages(Fetch, 4, 1)), within_s=1)
    lost.lift()
    cluster.crash(1)
    assert answer.ok
    cluster.run_until(lambda: cluster[4].store.get("x").value == "1", within_s=1)


def test_a_reads_question_that_was_lost_is_sent_again() -> None:
    cluster = Cluster()
    with cluster.drop(Barrier, sender={1}):
        answer = cluster.read(1, "x")
        cluster.run(0.005)
    cluster.run_until(answer.answered, within_s=0.5)


def test_a_peer_that_lacks_what_the_leader_has_given_up_fetches_it() -> None:
    cluster = Cluster()
    lost = cluster.drop(Accept, sender={1}, to={5}, where=lambda message: bool(message.entries))
    unfetched = cluster.drop(Fetched, to={5})
    answers = [cluster.put(1, key, "1") for key in "abcd"]
    cluster.run_until(lambda: answered(answers), within_s=1)
    cluster.run(0.2)
    leader = cluster.core(1)
    assert leader.own.lengths[5] == 0
    leader.acceptors[1].drop(leader.acceptors[1].chosen - 1)  # as a checkpoint allows
    lost.lift()
    cluster.run(1.2)  # sent again, as far as the leader has it
    assert cluster.core(5).acceptors[1].length == 0, "what the leader has is not what comes next"
    unfetched.lift()
    with cluster.drop(Fetch, to={2, 3, 4}), cluster.drop(FetchCheckpoint):
        cluster.run(1)
    assert cluster.core(5).acceptors[1].length == 0, "what the leader has is not what was asked for"
    cluster.assert_equal()
    assert cluster.get(5, "a") == "1"


def test_a_promise_to_an_earlier_ballot_of_the_same_candidate_does_not_count() -> None:
    """Node 5 promised to 4, later to 1, and then accepted an entry: 4 must ask it again."""
    cluster = Cluster()
    candidate, owner = cluster[4], cluster.core(1)
    quiet = cluster.drop(Prepare, sender={4}, to={1, 2, 3})
    late = cluster.hold(Promise, sender={5}, to={4})
    candidate.do(lambda: (candidate.core.way.stand(1, 0, cluster.now), candidate.replica.turn()))
    cluster.run_until(lambda: bool(late.held), within_s=1)
    candidate.core.proposers[1].step_down()
    cluster.drop(Accept, sender={1}, to={2, 4}, where=lambda message: bool(message.entries))
    cluster.drop(Learn, sender={1, 3, 5})
    before = owner.own.ballot
    cluster.put(1, "x", "1")  # refused by 5: its owner takes a higher ballot than 4's
    cluster.run_until(lambda: owner.own.established and owner.own.ballot > before, within_s=1)
    cluster.run_until(lambda: owner.acceptors[1].chosen == 1, within_s=1)  # on 1, 3 and 5
    cluster.crash(1)

    quiet.lift()
    again = cluster.drop(Prepare, sender={4}, to={3, 5})
    last = cluster.put(4, "y", "1")
    cluster.run(0.02)  # it waits for log 1, else it would not stand for long
    candidate.core.proposers[1].highest = cluster.core(2).acceptors[1].promised
    candidate.do(lambda: (candidate.core.way.stand(1, 0, cluster.now), candidate.replica.turn()))
    late.release()
    cluster.run(0.2)
    again.lift()
    cluster.heal()
    cluster.run_until(last.answered, within_s=3)
    assert cluster.get(3, "x") == "1"


# --------------------------------------------------------------------------------------- clocks and frontiers


def test_nodes_with_nothing_to_do_follow_the_clocks_of_others() -> None:
    cluster = Cluster()
    cluster.hear_clock(1, 1000)
    cluster.run(0.5)
    for node in (1, 2, 3, 4, 5):
        assert min(log.frontier for log in cluster.core(node).learner.logs.values()) >= 1000
    assert cluster.revocations() == 0


def test_the_first_command_of_a_life_lies_above_the_frontiers_of_the_last() -> None:
    """Also if it arrives together with the votes that establish the ballot, and who heard them is silent."""
    cluster = Cluster()
    cluster.drop(Learn, Reading)
    cluster.hear_clock(4, 1000)
    cluster.run_until(cluster.put(4, "x", "1").answered, within_s=1)  # 4 has heard that log 1 is past it
    cluster.crash(1)
    cluster.drop(Promise, sender={4, 5})
    votes = cluster.hold(Accepted, to={1})
    cluster.restart(1)
    cluster.run_until(lambda: len(votes.held) >= 2, within_s=1)
    machine, answer = cluster[1], Answer()

    def establish() -> None:
        for vote in votes.held:
            machine.replica.step(vote.sender, vote.message)
        machine.replica.submit(answer, [Command(Verb.PUT, "x", "2")])
        machine.replica.turn()

    machine.do(establish)
    votes.lift()
    cluster.run_until(answer.answered, within_s=2)
    cluster.heal()
    assert cluster.get(3, "x") == "2"
    cluster.assert_equal()


def test_a_command_costs_one_round_trip_at_the_node_whose_turn_comes_last_too() -> None:
    """Its answers must bring frontiers that reach its timestamp, not only the one before."""
    cluster = Cluster(delay=0.02)
    for key in "abc":
        began = cluster.now
        answer = cluster.put(5, key, "1")
        cluster.run_until(answer.answered, within_s=1)
        assert cluster.now - began < 2 * 0.02 + FSYNC + 1e-9


def test_commands_of_all_nodes_at_once_are_answered_in_half_a_round_trip_more() -> None:
    cluster = Cluster(delay=0.02)
    for _ in range(3):
        began = cluster.now
        answers = [cluster.increment(node, "n") for node in (1, 2, 3, 4, 5)]
        cluster.run_until(lambda answers=answers: answered(answers), within_s=1)
        assert cluster.now - began < 3 * 0.02 + 2 * FSYNC + 1e-9
        cluster.run(0.5)


# ---------------------------------------------------------------------------------------- commands and reads


def test_no_command_is_taken_before_the_ballot_is_established() -> None:
    """A leader that nobody answers would keep its clients waiting; they do better to ask another node."""
    cluster = Cluster()
    cluster.crash(1)
    unsynced = cluster.drop(Accept, sender={1})
    cluster.restart(1)
    cluster.run_until(lambda: cluster.core(1).own.leading, within_s=1)
    cluster.run(0.02)
    refused = cluster.put(1, "x", "1")
    assert isinstance(refused.value, NotDone)
    assert not refused.value.permanent
    unsynced.lift()
    cluster.run_until(lambda: cluster.core(1).ready, within_s=1)


def write_unheard_of(cluster: Cluster, node: int, key: str) -> Answer:
    """A write at node 2 with a quorum that does not include this node, which hears nothing any more."""
    cluster.drop(to={node})
    cluster.hear_clock(2, cluster.core(node).clock.time + 1000)
    write = cluster.put(2, key, "new")
    cluster.run_until(write.answered, within_s=3)
    return write


def test_a_read_does_not_count_the_answers_to_an_earlier_round() -> None:
    cluster = Cluster()
    late = cluster.hold(Reading, sender={2, 3}, to={1})
    first = cluster.read(1, "x")
    cluster.run_until(first.answered, within_s=1)  # by the clocks of 1, 4 and 5
    assert len(late.held) >= 2
    write_unheard_of(cluster, 1, "x")
    second = cluster.read(1, "x")
    late.release()
    cluster.run(0.05)
    cluster.heal()
    cluster.run_until(second.answered, within_s=5)
    assert second.text == "new"


def test_a_read_does_not_count_the_answers_to_a_round_of_an_earlier_life() -> None:
    cluster = Cluster()
    late = cluster.hold(Reading, sender={2, 3}, to={1})
    cluster.read(1, "x")
    cluster.run(0.005)
    cluster.crash(1)
    late.lift()
    cluster.restart(1)
    cluster.run(1)  # it has its log again, and all clocks stand where its own does
    clock = cluster.core(1).clock.time
    assert min(log.frontier for log in cluster.core(1).learner.logs.values()) >= clock
    write_unheard_of(cluster, 1, "x")
    second = cluster.read(1, "x")
    late.release()
    cluster.run(0.05)
    cluster.heal()
    cluster.run_until(second.answered, within_s=5)
    assert second.text == "new"


def test_a_read_wakes_no_more_nodes_than_it_must() -> None:
    """Where all is chosen but the last write, its proposer and one more are enough."""
    cluster = Cluster()
    for owner in (2, 3, 4):
        cluster.run_until(cluster.put(owner, "x", str(owner)).answered, within_s=2)
        before = len([m for peer in range(2, 6) for m in cluster.sent_messages(Barrier, 1, peer)])
        read = cluster.read(1, "x")
        cluster.run_until(read.answered, within_s=0.01)
        assert read.text == str(owner)
        asked = [m for peer in range(2, 6) for m in cluster.sent_messages(Barrier, 1, peer)]
        assert len(asked) - before == 2


def asked_by(cluster: Cluster, node: int) -> int:
    """Questions for reads that the node has sent."""
    peers = [peer for peer in cluster.ids if peer != node]
    return sum(len(cluster.sent_messages(Barrier, node, peer, lambda m: m.round > 0)) for peer in peers)


def test_reads_ride_on_the_entry_that_leaves_next() -> None:
    cluster = Cluster()
    before = asked_by(cluster, 1)
    writes = [cluster.put(1, "x", "first"), cluster.put(1, "x", "second")]
    reads = [cluster.read(1, "x") for _ in range(3)]
    cluster.run_until(lambda: answered([*writes, *reads]), within_s=0.1)
    assert [read.text for read in reads] == ["second"] * 3
    assert asked_by(cluster, 1) == before


def test_a_read_that_no_command_waits_with_has_a_round() -> None:
    cluster = Cluster()
    before = asked_by(cluster, 1)
    write, read = cluster.put(1, "x", "1"), cluster.read(1, "x")
    cluster.run_until(lambda: answered([write, read]), within_s=0.1)
    assert read.text == "1"
    assert asked_by(cluster, 1) > before


def test_reads_that_were_given_up_while_they_rode_are_forgotten() -> None:
    cluster = Cluster()
    replica = cluster[1].replica
    lost = cluster.drop(Accept, sender={1}, where=lambda m: any(b"second" in e.payload for e in m.entries))
    first, second = cluster.put(1, "x", "first"), cluster.put(1, "x", "second")
    given_up = cluster.read(1, "x")
    cluster.run_until(lambda: bool(cluster.core(1).way.reads.riding), within_s=0.1)
    assert first.answered()
    cluster[1].do(lambda: replica.expire(cluster.now + 1))
    assert isinstance(given_up.value, NotDone)
    lost.lift()
    cluster.run_until(lambda: not cluster.core(1).way.commands.pending, within_s=1)
    assert isinstance(second.value, Unknown)
    assert cluster.get(1, "x") == "second"


def test_a_read_does_not_ride_on_an_entry_that_left_before_it_came() -> None:
    """The entry may lie below a write that was answered in between.

    Node 5 does not know yet that it may apply its own entry; node 2, whose write comes after it, knows.
    """
    cluster = Cluster()
    late = cluster.hold(sender={3}, to={5})
    cluster.drop(Learn, Reading, to={5})
    entry = cluster.put(5, "y", "1")
    cluster.run_until(lambda: cluster.core(5).acceptors[5].chosen == 1, within_s=0.1)
    write = cluster.put(2, "x", "new")
    cluster.run_until(write.answered, within_s=0.3)
    read = cluster.read(5, "x")
    assert not entry.answered()
    late.release()
    cluster.run(0.05)
    cluster.heal()
    cluster.run_until(lambda: answered([entry, read]), within_s=2)
    assert read.text == "new"


def test_a_read_whose_entry_is_stamped_anew_is_answered_all_the_same() -> None:
    cluster = Cluster()
    lost = cluster.drop(Accept, sender={1}, where=lambda m: any(b"second" in e.payload for e in m.entries))
    first, second = cluster.put(1, "x", "first"), cluster.put(1, "x", "second")
    read = cluster.read(1, "x")
    cluster.run_until(lambda: bool(cluster.core(1).way.reads.riding), within_s=0.1)
    assert first.answered()
    assert [*cluster.core(1).way.reads.riding] == [*cluster.core(1).way.commands.pending]
    with cluster.drop(Promise, sender={1}):  # else the revoker would adopt the entry from it
        cluster.run_until(cluster.put(2, "y", "1").answered, within_s=3)  # log 1 was revoked
    lost.lift()
    cluster.run_until(lambda: answered([second, read]), within_s=3)
    assert read.text in ("first", "second")


def test_a_read_asks_the_others_at_once_where_a_quorum_does_not_know_enough() -> None:
    cluster = Cluster()
    cluster.drop(Accepted)
    writes = [cluster.put(owner, "x", str(owner)) for owner in (2, 3, 4)]
    cluster.run(0.005)
    read = cluster.read(1, "x")
    cluster.run_until(
        lambda: all(cluster.sent_messages(Barrier, 1, peer) for peer in range(2, 6)), within_s=0.04
    )
    cluster.heal()
    cluster.run_until(read.answered, within_s=2)
    cluster.run_until(lambda: all(write.answered() for write in writes), within_s=2)


def test_a_read_goes_by_the_highest_clock_of_those_that_it_asked() -> None:
    """Of 1, 2 and 5, only 2 has seen the write."""
    cluster = Cluster()
    cluster.drop(to={5})
    write_unheard_of(cluster, 1, "x")
    cluster.gates = [
        cluster.drop(Reading, sender={3, 4}),
        cluster.drop(to={1}, where=lambda message: not isinstance(message, Reading)),
        cluster.drop(to={5}, where=lambda message: not isinstance(message, Barrier)),
    ]
    read = cluster.read(1, "x")
    cluster.run(0.01)
    cluster.heal()
    cluster.run_until(read.answered, within_s=5)
    assert read.text == "new"


def read_at_a_node_that_does_not_hear_that_others_finished_its_log(commands: int) -> None:
    cluster = Cluster()
    with cluster.deliver_only(Accept, to={1, 2}, sender={1}):
        for _ in range(commands):
            cluster.put(1, "x", "1")
        cluster.run(0.01)
    cluster.isolate(1)
    cluster.run_until(cluster.put(2, "y", "1").answered, within_s=2)
    assert cluster.get(3, "x") == "1"
    cluster.heal()
    cluster.drop(to={1}, where=lambda message: not isinstance(message, Reading | Fetched))
    read = cluster.read(1, "x")
    cluster.run_until(read.answered, within_s=2)
    assert read.text == "1"


def test_a_read_waits_for_its_own_nodes_log_too() -> None:
    """Others may have finished it, applied its entries, and shown them to their readers."""
    read_at_a_node_that_does_not_hear_that_others_finished_its_log(commands=1)


def test_a_read_does_not_wait_without_end_for_an_entry_to_ride_on() -> None:
    read_at_a_node_that_does_not_hear_that_others_finished_its_log(commands=2)


# --------------------------------------------------------------------------------------- votes that can wait


def put_within(cluster: Cluster, node: int, seconds: float) -> None:
    answer = cluster.put(node, "x", str(cluster.now))
    cluster.run_until(answer.answered, within_s=seconds)
    assert answer.ok


def messages(cluster: Cluster, kind: type, sender: int, to: int) -> list[Any]:
    """Those about node 1's log."""
    sent = [envelope.message for envelope in cluster.sent_messages(kind, sender, to)]
    return [message for message in sent if message.log == 1]


def frames(cluster: Cluster) -> list[int]:
    return [len(cluster[node].durable) for node in cluster.ids]


@pytest.mark.parametrize(("nodes", "quorum"), [(3, {1, 2}), (5, {1, 2, 3}), (7, {1, 2, 3, 4})])
def test_a_command_makes_only_a_quorum_fsync_at_once(nodes: int, quorum: set[int]) -> None:
    cluster = Cluster(nodes=nodes)
    cluster.run(1)
    put_within(cluster, 1, 1)  # (the first measures round trips)
    cluster.run(1)
    before = frames(cluster)
    put_within(cluster, 1, 2 * DELAY + FSYNC + 1e-9)
    assert {
        node for node, old, new in zip(cluster.ids, before, frames(cluster), strict=True) if new > old
    } == quorum
    cluster.run(3 * DEFER_AT_MOST)
    assert all(new > old for old, new in zip(before, frames(cluster), strict=True)), "the others soon do"
    cluster.assert_equal()


def test_votes_that_can_wait_share_a_frame() -> None:
    cluster = Cluster()
    cluster.run(1)
    before = len(cluster[5].durable)
    cluster.drop(to={5}, where=lambda message: not isinstance(message, Accept))
    for _ in range(3):
        put_within(cluster, 1, 1)
    assert len(cluster[5].durable) == before
    cluster.run(3 * DEFER_AT_MOST)
    assert len(cluster[5].durable) == before + 1
    assert cluster.core(5).acceptors[1].length == 3


def test_a_vote_that_can_wait_says_only_what_is_durable() -> None:
    cluster = Cluster()
    put_within(cluster, 1, 1)
    cluster.run(0.2)
    cluster.hold_disk(5)
    put_within(cluster, 1, 1)
    cluster.run(0.2)
    votes = messages(cluster, Accepted, 5, 1)
    assert [vote.length for vote in votes if vote.vote == Vote.ACCEPTED][-1] == 1
    assert cluster.core(5).acceptors[1].length == 2
    cluster.crash(5)
    cluster.restart(5)
    assert cluster.core(5).acceptors[1].length == 1
    cluster.assert_equal()


def test_a_vote_that_can_wait_does_not_take_an_older_ballots_entries_for_the_newer_ones() -> None:
    """Node 5 has durably only the log of node 1's first life when it is told that its vote can wait."""
    cluster = Cluster()
    for _ in range(3):
        put_within(cluster, 1, 1)
    cluster.run(0.2)
    cluster.crash(1)
    cluster.restart(1)
    cluster.hold_disk(5)
    cluster.run_until(lambda: cluster.core(1).ready, within_s=2)
    put_within(cluster, 1, 1)
    cluster.run(0.2)
    assert 5 not in cluster.core(1).own.lengths
    cluster.sync(5)
    cluster.run(0.1)
    assert cluster.core(1).own.lengths[5] == cluster.core(1).own.end


def test_when_one_of_the_voters_dies_the_others_are_asked_at_once() -> None:
    cluster = Cluster()
    for _ in range(3):
        put_within(cluster, 1, 1)
    assert cluster.core(1).voters.at_once == [1, 2, 3]
    cluster.hold_disk(2)
    put_within(cluster, 1, DEFER_AT_MOST * 3)
    put_within(cluster, 1, 2 * DELAY + FSYNC + 1e-9)
    assert cluster.core(1).voters.at_once == [1, 3, 4], "2 is not counted on for a while"
    cluster.sync(2)
    cluster.run(SLOW)
    put_within(cluster, 1, 1)
    assert cluster.core(1).voters.at_once == [1, 2, 3]
    cluster.assert_equal()


def test_a_voter_whose_acceptor_fails_on_purpose_is_replaced_at_once() -> None:
    cluster = Cluster()
    cluster.core(2).faults.failures = Failures(probability=1.0)
    put_within(cluster, 1, 4 * DELAY + 2 * FSYNC)
    assert 2 not in cluster.core(1).voters.at_once or cluster.core(1).voters.slow_until[2] > cluster.now


def test_a_node_that_does_not_vote_for_its_own_entries_asks_one_more() -> None:
    cluster = Cluster()
    cluster.core(1).faults.failures = Failures(probability=1.0)
    put_within(cluster, 1, 1)
    put_within(cluster, 1, 2 * DELAY + FSYNC + 1e-9)
    assert cluster.core(1).voters.at_once == [2, 3, 4]


def test_when_too_few_are_quick_everybody_is_to_vote_at_once() -> None:
    cluster = Cluster()
    put_within(cluster, 1, 1)
    for node in (2, 3, 4):
        cluster.core(1).voters.slow_until[node] = cluster.now + SLOW
    before = frames(cluster)
    put_within(cluster, 1, 1)
    cluster.run(0.002)
    assert all(new > old for old, new in zip(before, frames(cluster), strict=True))


def test_a_promise_says_what_is_held_but_not_durable_only_when_it_is() -> None:
    """Node 5 holds an entry whose vote can wait; a candidate that asks for its promise waits for both."""
    cluster = Cluster()
    cluster.run(1)
    cluster.hold_disk(5)
    put_within(cluster, 1, 1)
    machine = cluster[4]
    machine.do(lambda: (machine.core.way.stand(1, 0, cluster.now), machine.replica.turn()))
    cluster.run(0.02)
    assert not messages(cluster, Promise, 5, 4)
    cluster.sync(5)
    cluster.run(0.02)
    promised = [promise.from_slot + len(promise.entries) for promise in messages(cluster, Promise, 5, 4)]
    assert promised
    assert max(promised) == 1


@pytest.mark.parametrize("phase", range(5))
def test_a_voter_with_a_slow_disk_is_not_waited_for_again_and_again(phase: int) -> None:
    """It is quicker than DEFER_AT_MOST, but slower than the others. Its vote may come between two ticks."""
    cluster = Cluster()
    put_within(cluster, 1, 1)
    cluster[2].fsync = 7 * FSYNC
    cluster.run(phase / 1000)
    put_within(cluster, 1, 2 * DELAY + 7 * FSYNC + 1e-9)
    for _ in range(5):
        cluster.run(0.05)
        put_within(cluster, 1, 2 * DELAY + FSYNC + 1e-9)


def test_the_round_trips_of_nodes_whose_votes_can_wait_are_measured_by_their_frontiers() -> None:
    """N12 needs them: node 1, far away, is never one of node 3's voters."""
    cluster = Cluster()
    put_within(cluster, 3, 1)
    far = cluster.hold(sender={1})
    answer = cluster.put(3, "x", "1")
    cluster.run(0.2)
    assert not answer.answered()
    far.release()
    cluster.run_until(answer.answered, within_s=0.1)
    assert 1 not in cluster.core(3).voters.at_once
    assert cluster.core(3).round_trips.measured.get(1, (0.0, 0.0))[0] == pytest.approx(0.2, abs=0.05)
