"""Stories of the cluster: what crashes, delays and repeats may do, and what must come out of it all the same.

N1 to N23 are the traces of docs/traces.md; tests/harness/rules.py names the rule of each, and test_rules.py
sees the story fail without it. Nodes 1 to 5; log 1 is owned by node 1; three are a quorum.
"""

from typing import Any

from paxoskv.multipaxos import node_of
from paxoskv.protocol.clock import SKIP
from paxoskv.protocol.faults import Failures
from paxoskv.wire.codec import Forgotten, NotDone
from paxoskv.wire.structs import (
    Accept,
    Accepted,
    Barrier,
    Fetch,
    Fetched,
    Learn,
    Prepare,
    Promise,
    Reading,
    RequestId,
    Vote,
)
from tests.harness.scenario import DELAY, FSYNC, Cluster

ALL = {1, 2, 3, 4, 5}


def of_log(log: int) -> Any:
    """Messages about this log."""
    return lambda message: message.log == log


def candidate_only(cluster: Cluster, node: int) -> None:
    """Nobody else gets a Prepare through."""
    cluster.drop(Prepare, sender=ALL - {node})


def stand(cluster: Cluster, node: int, log: int, wanted: int = 0) -> None:
    """Let a node become candidate for a log at once, as if its patience were at an end."""
    machine = cluster[node]
    machine.do(lambda: (machine.core.way.stand(log, wanted, cluster.now), machine.replica.turn()))


# ------------------------------------------------------------------------------------------- without failures


def test_a_command_costs_one_round_trip_and_one_fsync() -> None:
    cluster = Cluster(delay=0.02)
    for key in "abc":
        began = cluster.now
        answer = cluster.put(1, key, "1")
        cluster.run_until(answer.answered, within_s=1)
        assert answer.ok
        assert cluster.now - began < 2 * 0.02 + FSYNC + 1e-9


def test_commands_of_all_nodes_at_once_are_applied_in_one_order() -> None:
    cluster = Cluster()
    answers = [cluster.increment(node, "n") for node in (1, 2, 3, 4, 5) for _ in range(3)]
    cluster.run_until(lambda: all(answer.answered() for answer in answers), within_s=1)
    cluster.assert_equal()
    assert cluster.get(4, "n") == "15"
    assert cluster.revocations() == 0


def test_one_node_alone_is_a_cluster() -> None:
    cluster = Cluster(nodes=1)
    answer = cluster.put(1, "x", "1")
    cluster.run_until(answer.answered, within_s=1)
    assert cluster.get(1, "x") == "1"
    cluster.crash(1)
    cluster.restart(1)
    cluster.run_until(lambda: cluster.core(1).ready, within_s=1)
    assert cluster.get(1, "x") == "1"


def test_three_nodes_outlive_the_death_of_one() -> None:
    cluster = Cluster(nodes=3)
    cluster.crash(2)
    answers = [cluster.put(node, f"key {node}", "1") for node in (1, 3)]
    cluster.run_until(lambda: all(answer.answered() for answer in answers), within_s=2)
    cluster.restart(2)
    cluster.assert_equal()
    assert cluster.get(2, "key 3") == "1"


def test_two_of_five_may_be_down() -> None:
    cluster = Cluster()
    cluster.crash(4)
    cluster.crash(5)
    for number in range(5):
        answer = cluster.increment(1 + number % 3, "n")
        cluster.run_until(answer.answered, within_s=2)
        assert answer.ok
    cluster.restart(4)
    cluster.restart(5)
    cluster.assert_equal()
    assert cluster.get(5, "n") == "5"


def test_with_three_of_five_down_nothing_is_answered_until_one_returns() -> None:
    cluster = Cluster()
    for node in (3, 4, 5):
        cluster.crash(node)
    answer = cluster.put(1, "x", "1")
    cluster.run(3)
    assert not answer.answered()
    cluster.restart(3)
    cluster.run_until(answer.answered, within_s=5)
    assert cluster.get(3, "x") == "1"


def test_every_acknowledged_write_outlives_the_crash_of_all_nodes() -> None:
    cluster = Cluster()
    answers = [cluster.put(node, f"key {node}", "1") for node in ALL]
    cluster.run_until(lambda: all(answer.answered() for answer in answers), within_s=1)
    for node in ALL:
        cluster.crash(node)
    cluster.order.clear()  # what is applied after the restart is compared among the nodes
    for node in ALL:
        cluster.restart(node)
    cluster.run_until(lambda: all(cluster.core(node).ready for node in ALL), within_s=5)
    for node in ALL:
        assert cluster.get(node, f"key {6 - node}") == "1"


def test_a_slow_disk_holds_up_nobody_else() -> None:
    cluster = Cluster()
    cluster[5].fsync = 0.3
    for number in range(5):
        began = cluster.now
        answer = cluster.increment(1 + number % 4, "n")
        cluster.run_until(answer.answered, within_s=1)
        assert cluster.now - began < 0.1
        cluster.run(0.02)
    assert cluster.revocations() == 0
    cluster.assert_equal()


def test_acceptors_that_fail_on_purpose_cost_time_and_nothing_else() -> None:
    failures = {
        1: Failures(probability=0.1),
        2: Failures(probability=0.05),
        3: Failures(probability=0.05),
        4: Failures(probability=0.05),
        5: Failures(silence=0.5, every=1.0),
    }
    cluster = Cluster(seed=3, failures=failures)
    for number in range(60):
        answer = cluster.increment(1 + number % 5, "n")
        cluster.run_until(answer.answered, within_s=5)
        assert answer.ok
        cluster.run(0.05)
    for node in (1, 5):
        votes = [vote for peer in ALL for vote in cluster.sent_messages(Accepted, node, peer)]
        assert any(envelope.message.vote == Vote.WITHHELD for envelope in votes)
    cluster.assert_equal()
    assert cluster.get(1, "n") == "60"


# ---------------------------------------------------------------------------------------------------- crashes


def test_a_revoker_finishes_what_a_dead_owner_left_half_accepted() -> None:
    cluster = Cluster(seed=7)
    with cluster.deliver_only(Accept, to={1, 2}):  # two of five: not chosen
        first = cluster.put(1, "x", "1")
        cluster.run(0.05)
    assert not first.answered()
    cluster.crash(1)

    second = cluster.put(2, "y", "2")
    cluster.run_until(second.answered, within_s=1)  # nobody is stuck behind node 1

    assert cluster.get(3, "x") == "1"  # node 2 was asked, and had it
    assert cluster.get(4, "x") == cluster.get(3, "x")
    cluster.restart(1)
    cluster.assert_equal()


def test_what_no_living_node_has_accepted_is_skipped() -> None:
    cluster = Cluster()
    with cluster.drop(Accept, sender={1}):
        cluster.put(1, "x", "1")
        cluster.run(0.05)
    cluster.crash(1)
    second = cluster.put(2, "y", "2")
    cluster.run_until(second.answered, within_s=1)
    assert cluster.get(3, "x") is None
    cluster.restart(1)  # its own entry was durable, but never chosen: the log that it adopts lacks it
    cluster.assert_equal()
    assert cluster.get(1, "x") is None


def test_an_owner_that_was_wrongly_revoked_proposes_again_what_its_log_lacks() -> None:
    cluster = Cluster()
    cluster.isolate(1)
    first = cluster.increment(1, "n")
    second = cluster.increment(2, "n")
    cluster.run_until(second.answered, within_s=2)
    assert cluster.revocations() == 1
    assert cluster.core(1).ready  # it does not know yet

    cluster.heal()
    cluster.run_until(first.answered, within_s=2)
    assert first.ok
    assert first.text == "2"
    cluster.assert_equal()
    assert cluster.get(3, "n") == "2"
    assert cluster.core(1).own.established


def test_an_owner_that_was_wrongly_revoked_does_not_repeat_what_the_revoker_finished() -> None:
    cluster = Cluster()
    with cluster.deliver_only(Accept, to={1, 2}):
        first = cluster.increment(1, "n")
        cluster.run(0.01)
    cluster.isolate(1)
    second = cluster.increment(2, "n")
    cluster.run_until(second.answered, within_s=2)
    cluster.heal()
    cluster.run_until(first.answered, within_s=2)
    cluster.assert_equal()
    assert cluster.get(3, "n") == "2"


def test_a_command_is_proposed_again_only_when_its_first_entry_cannot_be_chosen_any_more() -> None:
    """Promises that lack it are not enough: before a quorum has taken the sync, a revoker may find it."""
    cluster = Cluster()
    owner = cluster.core(1)
    owner.faults.failures = Failures(probability=1.0)
    with cluster.deliver_only(Accept, to={2}, sender={1}):
        first = cluster.increment(1, "n")  # stands on 2 only
        cluster.run(0.01)
    cluster.drop(Accept, sender={1}, where=lambda message, led=owner.own.ballot: message.ballot > led)
    cluster.drop(Accept, sender={3}, where=of_log(1))
    cluster.drop(Prepare, sender={1, 3}, to={2})
    stand(cluster, 3, log=1)
    revoker = cluster.core(3)
    cluster.run_until(
        lambda: owner.own.leading and owner.own.ballot > revoker.proposers[1].ballot, within_s=1
    )
    cluster.run(0.01)  # it leads by the promises of 3, 4 and 5, which lack the entry; nobody takes its sync

    cluster.heal()
    cluster.isolate(1)
    cluster.isolate(3)
    second = cluster.increment(2, "n")  # node 2, 4 and 5 finish the log as they know it: with the entry
    cluster.run_until(second.answered, within_s=5)
    assert second.text == "2"
    owner.faults.failures = Failures()
    cluster.heal()
    cluster.run_until(first.answered, within_s=5)
    assert first.text == "1"
    cluster.assert_equal()
    assert cluster.get(3, "n") == "2"


def test_what_is_chosen_but_not_yet_applied_is_not_proposed_again() -> None:
    cluster = Cluster()
    cluster.crash(5)
    nobody = cluster.drop(Prepare, where=of_log(5))  # revokes node 5, for which all that follows waits
    cluster.hear_clock(1, 1000)
    with cluster.deliver_only(Accept, to={2}, sender={1}):
        first = cluster.increment(1, "n")
        cluster.run(0.01)
    cluster.isolate(1)
    second = cluster.increment(2, "n")
    cluster.run_until(lambda: cluster.core(2).acceptors[1].chosen == 2, within_s=3)  # with its skip
    cluster.cuts.clear()
    before = cluster.core(1).own.ballot
    cluster.run_until(lambda: cluster.core(1).own.ballot > before and cluster.core(1).ready, within_s=3)
    cluster.run(0.1)
    assert not first.answered()
    nobody.lift()
    cluster.run_until(lambda: first.answered() and second.answered(), within_s=3)
    cluster.assert_equal()
    assert cluster.get(3, "n") == "2"


def test_two_revokers_at_once_agree() -> None:
    cluster = Cluster()
    with cluster.deliver_only(Accept, to={1, 2}):
        cluster.put(1, "x", "1")
        cluster.run(0.01)
    cluster.crash(1)
    first = cluster.hold(Prepare, sender={2})
    second = cluster.hold(Accept, sender={3}, where=of_log(1))
    answers = [cluster.put(node, f"key {node}", "1") for node in (2, 3, 4, 5)]
    cluster.run_until(lambda: bool(second.held), within_s=2)  # 3 leads log 1, and its sync is on its way
    first.release()
    cluster.run(0.5)  # 2 has stood with a higher round
    second.release()
    cluster.run_until(lambda: all(answer.answered() for answer in answers), within_s=3)
    cluster.assert_equal()
    assert len({cluster.get(node, "x") for node in (2, 3, 4, 5)}) == 1


def test_an_entry_is_chosen_without_its_owners_disk_and_outlives_its_restart() -> None:
    cluster = Cluster()
    cluster.hold_disk(1)
    first = cluster.put(1, "x", "1")
    cluster.run_until(first.answered, within_s=1)  # 2 to 5 have it on their disks
    cluster.crash(1)
    cluster.restart(1)
    cluster.run_until(lambda: cluster.core(1).ready, within_s=2)
    second = cluster.put(1, "y", "2")  # does not take the slot of the first
    cluster.run_until(second.answered, within_s=2)
    cluster.assert_equal()
    assert cluster.get(1, "x") == "1"
    assert cluster.get(5, "y") == "2"


def test_a_promise_leaves_only_when_it_is_durable() -> None:
    cluster = Cluster()
    cluster.hold_disk(3)
    stand(cluster, 4, log=1)
    cluster.run(0.004)
    assert cluster.core(3).acceptors[1].promised == cluster.core(4).proposers[1].ballot
    assert not cluster.sent_messages(Promise, 3, 4, of_log(1))
    cluster.sync(3)
    assert cluster.sent_messages(Promise, 3, 4, of_log(1))


def test_a_candidate_whose_own_acceptor_fails_remembers_its_ballot_all_the_same() -> None:
    cluster = Cluster()
    cluster.crash(1)
    cluster.failures[1] = Failures(probability=1.0)
    cluster.restart(1)
    cluster.run_until(lambda: cluster.core(1).ready, within_s=1)
    with cluster.deliver_only(Accept, to={2}, sender={1}):
        cluster.put(1, "x", "1")
        cluster.run(0.01)
        cluster.crash(1)
    with cluster.drop(Prepare, sender={1}, to={2}):
        cluster.restart(1)
        cluster.run_until(lambda: cluster.core(1).ready, within_s=1)
    answer = cluster.put(1, "y", "1")
    cluster.run_until(answer.answered, within_s=2)
    cluster.assert_equal()
    assert cluster.get(2, "y") == "1"


def test_a_second_skip_lies_above_the_first() -> None:
    cluster = Cluster()
    cluster.crash(1)
    cluster.hear_clock(2, 1000)
    cluster.put(2, "x", "1")
    candidate_only(cluster, 2)
    only_four = cluster.drop(Accept, sender={2}, to={3, 5}, where=of_log(1))
    cluster.run_until(lambda: cluster.core(4).acceptors[1].length == 1, within_s=2)
    cluster.crash(2)
    only_four.lift()
    cluster.heal()
    candidate_only(cluster, 3)
    cluster.run_until(lambda: (1001, 2) in cluster.order, within_s=3)
    first, second = cluster.core(4).acceptors[1].entries
    assert second.timestamp >= first.timestamp + SKIP


def test_who_has_promised_to_a_revoker_lets_it_have_its_time() -> None:
    cluster = Cluster()
    cluster.crash(1)
    held = cluster.hold(Accept, sender={2}, where=of_log(1))
    answers = [cluster.put(node, f"key {node}", "1") for node in (2, 3, 4, 5)]
    cluster.run_until(lambda: bool(held.held), within_s=1)
    cluster.run(0.3)
    held.release()
    cluster.run_until(lambda: all(answer.answered() for answer in answers), within_s=1)
    assert not any(cluster.sent_messages(Prepare, node, 2, of_log(1)) for node in (3, 4, 5))
    assert cluster.revocations() == 1


def test_a_vote_leaves_only_when_it_is_durable() -> None:
    cluster = Cluster()
    for node in (3, 4, 5):
        cluster.hold_disk(node)
    first = cluster.put(1, "x", "1")
    cluster.run(0.2)
    assert not first.answered()
    for node in (3, 4, 5):
        cluster.crash(node)  # they forget it, and have not said otherwise
        cluster.restart(node)
    cluster.run_until(first.answered, within_s=2)
    cluster.assert_equal()


# ------------------------------------------------------------------------------------- messages lost and late


def test_an_old_fact_relayed_late_changes_nothing() -> None:
    cluster = Cluster()
    for key in "abc":
        cluster.run_until(cluster.put(1, key, "1").answered, within_s=1)
    cluster.run(0.3)
    before = {node: [cluster.core(node).learner.fact(log) for log in ALL] for node in ALL}
    clocks = {node: cluster.core(node).clock.time for node in ALL}
    for sender in ALL:
        for to in ALL - {sender}:
            for envelope in cluster.sent_messages(Learn, sender, to):
                cluster.deliver(envelope)
    cluster.run(DELAY)
    assert before == {node: [cluster.core(node).learner.fact(log) for log in ALL] for node in ALL}
    assert clocks == {node: cluster.core(node).clock.time for node in ALL}


def test_a_fact_of_a_dead_node_is_relayed_by_whoever_knows_it() -> None:
    cluster = Cluster()
    with cluster.deliver_only(Accept, Learn, to={2, 3}, sender={1}):
        first = cluster.put(1, "x", "1")
        cluster.run_until(first.answered, within_s=1)
        cluster.run(0.05)  # 2 and 3 hear that it is chosen; 4 and 5 have never seen the entry
        cluster.crash(1)
    cluster.run_until(lambda: cluster[4].store.get("x").value == "1", within_s=1)
    cluster.run_until(lambda: cluster[5].store.get("x").value == "1", within_s=1)


def test_a_gap_is_refused_and_filled() -> None:
    cluster = Cluster()
    with cluster.drop(Accept, to={3}):
        first = cluster.put(1, "x", "1")
        cluster.run(DELAY / 2)
    second = cluster.put(1, "y", "2")  # reaches 3, which lacks the first
    cluster.run(3 * DELAY)
    votes = [envelope.message for envelope in cluster.sent_messages(Accepted, 3, 1)]
    assert votes[-1].vote == Vote.ACCEPTED
    assert votes[-1].length == 0
    cluster.run_until(lambda: cluster.core(3).acceptors[1].length == 2, within_s=1)
    assert first.ok
    assert second.ok
    cluster.assert_equal()


def test_a_late_joiner_fetches_what_it_has_missed_and_takes_its_log_back() -> None:
    cluster = Cluster(start={1, 2, 3, 4})
    for number in range(8):
        answer = cluster.increment(1 + number % 4, "n")
        cluster.run_until(answer.answered, within_s=2)
    assert cluster.revocations() >= 1  # node 5 was skipped

    cluster.restart(5)
    cluster.assert_equal()
    assert any(cluster.sent_messages(Fetch, 5, to) for to in ALL - {5})
    cluster.run_until(lambda: cluster.core(5).own.established, within_s=5)
    answer = cluster.increment(5, "n")
    cluster.run_until(answer.answered, within_s=2)
    assert answer.text == "9"
    assert cluster.get(1, "n") == "9"


def test_a_long_log_is_fetched_in_pieces() -> None:
    cluster = Cluster(start={1, 2, 3, 4})
    value = "v" * 300_000
    for number in range(12):
        cluster.run_until(cluster.put(1, f"key {number}", value).answered, within_s=5)
    cluster.restart(5)
    cluster.assert_equal()
    pieces = [m for node in (1, 2, 3, 4) for m in cluster.sent_messages(Fetched, node, 5, of_log(1))]
    assert len(pieces) >= 3
    assert max(sum(len(entry.payload) for entry in piece.message.entries) for piece in pieces) < 2 << 20


def test_a_node_that_lacks_much_may_revoke_when_it_has_caught_up() -> None:
    cluster = Cluster(start={1, 2, 3, 4})
    value = "v" * 400_000
    for number in range(6):
        cluster.run_until(cluster.put(1, f"key {number}", value).answered, within_s=5)
    cluster.crash(1)
    candidate_only(cluster, 5)
    fetches = cluster.hold(Fetch, sender={5})
    cluster.restart(5)
    cluster.run(0.1)
    stand(cluster, 5, log=1, wanted=1)
    answer = cluster.put(2, "y", "1")
    cluster.run(0.1)
    assert not cluster.core(5).proposers[1].leading
    fetches.release()
    cluster.run_until(answer.answered, within_s=5)
    cluster.assert_equal()
    assert cluster.get(5, "key 3") == value


# ------------------------------------------------------------------------------------------------- traces


def test_a_sync_repeated_late_cuts_nothing() -> None:
    """N1."""
    cluster = Cluster()
    stalled = cluster.sent_messages(Accept, 1, 2, lambda message: message.sync)[0]  # of an empty log
    with cluster.deliver_only(Accept, to={2, 3}, sender={1}), cluster.drop(Learn, sender={1}):
        first = cluster.put(1, "x", "1")
        cluster.run_until(first.answered, within_s=1)
        cluster.deliver(stalled)
        cluster.run(0.02)
        cluster.crash(1)
    cluster.isolate(3)
    second = cluster.put(4, "y", "2")
    cluster.run_until(second.answered, within_s=3)
    assert cluster.get(5, "x") == "1"


def test_only_a_counted_quorum_is_evidence() -> None:
    """N2."""
    cluster = Cluster()
    cluster.run_until(cluster.put(1, "a", "1").answered, within_s=1)
    cluster.run_until(cluster.put(1, "b", "1").answered, within_s=1)
    cluster.run(0.2)
    cluster[1].replica.window = 2
    cluster.drop(Accept, sender={1}, to={4, 5})
    cluster.drop(Learn, to={2, 3, 5})
    cluster.drop(Reading, Learn, Accepted, Fetched, sender={4, 5}, to={2, 3})
    late = cluster.hold(Accepted, to={1}, where=lambda message: message.length == 4)
    third = cluster.put(1, "c", "1")
    lost = cluster.put(1, "w", "1")  # follows at once: its Accept does not say that the third is chosen
    cluster.run_until(lambda: cluster.core(4).learner.logs[1].chosen == 3, within_s=1)
    silent = cluster.drop(Learn, sender={1})
    late.release()
    cluster.run_until(lost.answered, within_s=1)
    assert third.ok
    assert lost.ok
    assert cluster.core(2).learner.logs[1].chosen == 2
    cluster.crash(1)
    silent.lift()

    candidate_only(cluster, 4)
    cluster.drop(Accept, sender={4}, where=of_log(1))  # it leads log 1 and votes for itself, no more
    cluster.put(4, "y", "1")
    cluster.run_until(lambda: node_of(cluster.core(4).acceptors[1].accepted) == 4, within_s=2)
    cluster.gates = [gate for gate in cluster.gates if gate.kinds == (Accept,)]
    cluster.drop(Learn, sender=ALL - {4})
    cluster.drop(Learn, Fetched, Reading, to={3, 5})
    cluster.run(0.2)  # it gossips that three are chosen; 2 installs the third
    assert cluster.core(2).acceptors[1].chosen == 3
    cluster.crash(4)

    cluster.heal()
    candidate_only(cluster, 5)
    cluster.isolate(3) if cluster.core(3).acceptors[1].length < 4 else None
    last = cluster.put(5, "z", "1")
    cluster.run_until(last.answered, within_s=3)
    assert cluster.get(5, "w") == "1"


def test_no_frontier_comes_from_a_ballot_that_is_not_established() -> None:
    """N4, R4."""
    cluster = Cluster()
    cluster.hold_disk(1)  # its own vote is lost in the crash
    with cluster.deliver_only(Accept, to={2}, sender={1}):
        cluster.put(1, "early", "1")
        cluster.run(0.005)
        cluster.crash(1)
    entry = cluster.core(2).acceptors[1].entries[0]
    cluster.drop(Prepare, sender={1}, to={2, 5})
    cluster.drop(Accept, sender={1})
    cluster.restart(1)
    cluster.run_until(lambda: cluster.core(1).own.leading, within_s=1)  # 1, 3 and 4 never saw the entry
    cluster.hear_clock(3, entry.timestamp + 10)
    later = cluster.put(3, "later", "1")
    cluster.run(0.2)
    cluster.crash(1)

    cluster.heal()
    candidate_only(cluster, 3)
    cluster.drop(Prepare, to={4})
    cluster.hear_clock(3, 1 << 22)
    last = cluster.put(3, "last", "1")
    cluster.run_until(lambda: later.answered() and last.answered(), within_s=3)
    assert cluster.order[0] == (entry.timestamp, 1)
    cluster.assert_equal()


def test_no_frontier_comes_from_a_clock_that_a_restart_would_forget() -> None:
    """N5, R3."""
    cluster = Cluster()
    far = cluster.core(1).clock.reserved + 10
    cluster.hold_disk(1)
    cluster.hear_clock(2, far)
    cluster.drop(sender={1}, where=lambda message: not isinstance(message, Barrier))  # tells no frontier
    write = cluster.put(2, "x", "first")
    cluster.run(0.02)
    read = cluster.read(1, "x")
    cluster.run(0.2)
    seen = read.answered()
    cluster.crash(1)

    cluster.heal()
    strangers = cluster.drop(to={1}, where=lambda message: not isinstance(message, Promise | Accepted))
    cluster.restart(1)
    cluster.run_until(lambda: cluster.core(1).ready, within_s=1)
    second = cluster.put(1, "x", "second")
    cluster.run(0.1)
    strangers.lift()
    cluster.run_until(lambda: write.answered() and second.answered(), within_s=3)
    cluster.assert_equal()
    assert not (seen and cluster.get(3, "x") == "first"), "the reader of the first wrote the second"


def test_a_command_whose_result_was_given_up_is_not_applied_again() -> None:
    """N6."""
    cluster = Cluster()
    session = cluster.open_session(3)
    cluster.isolate(1)
    attempt = cluster.increment(1, "n", RequestId(session, 7, 7))
    repeat = cluster.increment(2, "n", RequestId(session, 7, 7))
    cluster.run_until(repeat.answered, within_s=2)
    following = cluster.increment(2, "n", RequestId(session, 8, 8))
    cluster.run_until(following.answered, within_s=2)
    cluster.heal()
    cluster.run_until(attempt.answered, within_s=2)
    assert isinstance(attempt.value, Forgotten)
    cluster.assert_equal()
    assert cluster.get(1, "n") == "2"


def test_not_done_speaks_of_one_attempt_only() -> None:
    """N8."""
    cluster = Cluster()
    session = cluster.open_session(3)
    deaf = cluster.drop(to={1})
    cluster.crash(1)
    cluster.restart(1)  # cannot lead its log
    held = cluster.hold(sender={2})
    attempt = cluster.increment(2, "n", RequestId(session, 1, 1))
    cluster.run(0.05)
    refused = cluster.increment(1, "n", RequestId(session, 1, 1))
    assert isinstance(refused.value, NotDone)
    assert not refused.value.permanent
    repeat = cluster.increment(3, "n", RequestId(session, 1, 1))
    held.release()
    deaf.lift()
    cluster.run_until(lambda: attempt.answered() and repeat.answered(), within_s=3)
    assert attempt.text == repeat.text == "1"
    cluster.assert_equal()
    assert cluster.get(1, "n") == "1"


def test_a_read_that_waits_for_a_dead_node_gets_its_answer() -> None:
    """N9."""
    cluster = Cluster()
    with cluster.deliver_only(to={1}, sender={5}):
        cluster.put(5, "x", "1")
        cluster.run(0.002)
        cluster.crash(5)
    cluster.run(0.2)
    assert all(not cluster.core(node).learner.heads for node in (1, 2, 3, 4))  # no entry waits
    read = cluster.read(2, "x")
    cluster.run_until(read.answered, within_s=2)


def test_one_broken_link_deposes_nobody() -> None:
    """N10."""
    cluster = Cluster()
    cluster.cut(2, 5)
    cluster.core(2).link(5, refused=True)  # a firewall
    cluster.core(5).link(2, refused=True)
    for _ in range(5):
        answer = cluster.increment(2, "n")
        cluster.run_until(answer.answered, within_s=1)
        answer = cluster.increment(5, "n")
        cluster.run_until(answer.answered, within_s=1)
    assert cluster.revocations() == 0
    cluster.assert_equal()


def test_a_node_that_refuses_connections_is_revoked_sooner() -> None:
    cluster = Cluster()
    cluster.crash(5)
    for node in (1, 2, 3, 4):
        cluster.core(node).link(5, refused=True)
    cluster.hear_clock(1, 1000)
    began = cluster.now
    answer = cluster.put(1, "x", "1")
    cluster.run_until(answer.answered, within_s=1)
    assert cluster.now - began < 0.3
    for node in (1, 2, 3, 4):
        cluster.core(node).link(5, refused=False)


def test_a_revoker_that_is_merely_behind_deposes_nobody() -> None:
    """N11: `wanted`."""
    cluster = Cluster()
    cluster.cut(2, 5)
    deaf = cluster.drop(Learn, Reading, to={2})
    cluster.hear_clock(2, 1000)
    answer = cluster.put(2, "x", "1")  # 1, 3 and 4 know that log 5 is past it; 2 is not told
    for number in range(12):  # it stays in contact
        cluster.put((1, 3, 4)[number % 3], "y", "1")
        cluster.run(0.1)
    assert answer.ok
    assert cluster.sent_messages(Prepare, 2, 1, of_log(5))
    assert cluster.revocations() == 0
    assert cluster.core(5).own.established
    deaf.lift()
    cluster.assert_equal()


def test_a_healed_node_deposes_nobody() -> None:
    """N11: contact with a quorum."""
    cluster = Cluster()
    cluster.drop(sender={3}, where=lambda message: not isinstance(message, Reading))
    cluster.hear_clock(3, 1000)
    cluster.drop(Reading, to={5})
    cluster.drop(Barrier, sender={2}, where=lambda message: message.clock >= 1000)
    read = cluster.read(2, "x")
    cluster.run_until(lambda: bool(cluster.core(2).way.reads.dated), within_s=1)
    cluster.crash(3)
    cluster.heal()
    queue = cluster.hold(sender={2}, where=lambda message: isinstance(message, Prepare))
    lost = [cluster.drop(sender={2}), cluster.drop(to={2})]
    cluster.run(10)
    assert not read.answered()
    for gate in lost:
        gate.lift()
    queue.release()
    cluster.run_until(read.answered, within_s=3)
    for node in (1, 4, 5):
        assert not cluster.core(node).way.losses, f"{node} was deposed"


def test_a_uniformly_slow_cluster_deposes_nobody() -> None:
    """N12."""
    cluster = Cluster(delay=0.7)
    for warm_up in ALL:
        cluster.run_until(cluster.put(warm_up, "x", "1").answered, within_s=10)
    cluster.run(1)
    before = cluster.revocations()
    for _ in range(4):
        answers = [cluster.increment(node, "n") for node in sorted(ALL)]
        cluster.run_until(lambda answers=answers: all(answer.answered() for answer in answers), within_s=4)
    assert cluster.revocations() == before
    assert cluster.get(1, "n") == "20"


def test_results_are_kept_by_sequence() -> None:
    """N16."""
    cluster = Cluster()
    session = cluster.open_session(1)
    cluster.hear_clock(1, 1000)
    held = cluster.hold(sender={1})
    fifth = cluster.increment(1, "n", RequestId(session, 5, 5))  # stamped above 1000
    sixth = cluster.increment(2, "n", RequestId(session, 6, 5))
    cluster.run(0.05)
    held.release()
    cluster.run_until(lambda: fifth.answered() and sixth.answered(), within_s=2)
    assert sixth.text == "1"
    assert fifth.text == "2"
    assert cluster.get(3, "n") == "2"


def test_a_read_does_not_share_a_round_that_began_before_it() -> None:
    """N17."""
    cluster = Cluster()
    early = cluster.read(1, "x")
    cluster.pause(1)  # its round is on its way; the answers will wait for it
    cluster.run(0.05)
    write = cluster.put(2, "x", "1")
    cluster.run_until(write.answered, within_s=2)  # log 1 was revoked
    cluster[1].paused = False
    late = cluster.read(1, "x")  # arrives before the answers to the first round are looked at
    cluster.resume(1)
    cluster.run_until(lambda: early.answered() and late.answered(), within_s=2)
    assert late.text == "1"


def test_a_skip_does_not_drag_the_clocks_along() -> None:
    """N18."""
    cluster = Cluster()
    cluster.crash(5)
    for number in range(20):
        answer = cluster.increment(1 + number % 4, "n")
        cluster.run_until(answer.answered, within_s=2)
    assert cluster.revocations() <= 2
    assert max(cluster.core(node).clock.time for node in (1, 2, 3, 4)) < SKIP


def test_a_promise_for_an_older_start_is_not_adopted() -> None:
    """N19."""
    cluster = Cluster()
    no_fetch = cluster.drop(Fetched, to={4})
    cluster.drop(Accept, to={4}, sender={1})
    for key in "abc":
        cluster.run_until(cluster.put(1, key, "1").answered, within_s=1)
    cluster.run(0.02)
    cluster.crash(1)
    candidate_only(cluster, 4)
    last = cluster.put(4, "d", "1")
    cluster.run_until(lambda: cluster.core(4).acceptors[4].chosen == 1, within_s=0.2)  # it waits for log 1
    late = cluster.hold(Promise, sender={2}, to={4}, where=lambda message: message.from_slot == 0)
    cluster.drop(Promise, sender={2}, to={4})
    others = cluster.drop(Promise, sender={3, 5}, to={4})
    stand(cluster, 4, log=1)
    cluster.run(0.01)
    early = late.held[0]
    no_fetch.lift()
    cluster.run_until(lambda: cluster.core(4).proposers[1].start == 3, within_s=1)
    cluster.deliver(early)  # three entries for slot 0, when the candidate stands at slot 3
    cluster.run(0.02)
    others.lift()
    cluster.run_until(last.answered, within_s=5)
    cluster.heal()
    cluster.assert_equal()


def test_a_ballot_that_was_led_is_never_prepared_again() -> None:
    """N20."""
    cluster = Cluster()
    cluster.crash(1)
    revoker = cluster.core(2)
    revoker.faults.failures = Failures(probability=1.0)
    for node in (3, 4, 5):
        cluster.core(node).revocation.revoke_after = 60.0
    lost = cluster.drop(Accept, sender={2}, to={4, 5}, where=of_log(1))
    cluster.hear_clock(2, 1000)
    answer = cluster.put(2, "x", "1")
    cluster.run_until(lambda: cluster.core(3).acceptors[1].length == 1, within_s=2)  # the skip, on 3 alone
    cluster.drop(Prepare, to={3})
    for _ in range(300):
        cluster.run(0.005)
        if revoker.proposers[1].preparing:
            break
    revoker.faults.failures = Failures()  # its acceptor is back: a promise of its own would lack the skip
    lost.lift()
    cluster.run_until(answer.answered, within_s=3)
    cluster.heal()
    cluster.run(0.5)
    cluster.assert_equal()
    assert cluster.core(3).acceptors[1].entries == revoker.acceptors[1].entries


def test_a_ballot_is_durable_before_anybody_hears_of_it() -> None:
    """N21."""
    cluster = Cluster()
    cluster.crash(1)
    cluster.restart(1)
    cluster.hold_disk(1)
    cluster.drop(Accept, sender={1}, to={3, 4, 5}, where=lambda message: bool(message.entries))
    cluster.run(0.1)
    cluster.put(1, "x", "lost")  # refused, unless the ballot has gone out
    cluster.run(0.05)
    cluster.crash(1)

    cluster.heal()
    cluster.drop(Prepare, sender={1}, to={2})
    cluster.restart(1)
    cluster.run_until(lambda: cluster.core(1).ready, within_s=1)
    answer = cluster.put(1, "y", "1")
    cluster.run_until(answer.answered, within_s=2)
    cluster.heal()
    cluster.assert_equal()
    assert cluster.get(2, "x") is None


def test_a_candidate_that_cannot_finish_keeps_nobody_from_standing() -> None:
    """N22: once per ballot."""
    cluster = Cluster()
    cluster.crash(1)
    cluster.drop(Promise, to={2})
    answer = cluster.put(3, "x", "1")
    cluster.run_until(answer.answered, within_s=4)
    assert len(cluster.sent_messages(Prepare, 2, 3, of_log(1))) > 1  # it did try, again and again


def test_a_candidate_that_hears_nobody_gives_up() -> None:
    """N22: only in contact with a quorum."""
    cluster = Cluster()
    cluster.crash(1)
    cluster.put(3, "x", "1")
    cluster.run_until(
        lambda: 1 in cluster.core(2).proposers and cluster.core(2).proposers[1].preparing, within_s=2
    )
    cluster.drop(to={2})
    cluster.run(0.4)
    assert not cluster.core(2).proposers[1].preparing
    before = len(cluster.sent_messages(Prepare, 2, 3))
    cluster.run(3)
    assert len(cluster.sent_messages(Prepare, 2, 3)) == before
