"""Stories of the two ways with one log: who stands when, and what becomes of commands and reads meanwhile."""

import pytest

from paxoskv.multipaxos import node_of
from paxoskv.protocol.leader import Leader
from paxoskv.wire.codec import NotDone
from paxoskv.wire.structs import Accept, Accepted, Barrier, Forward, Forwarded, Learn, Prepare, Promise
from tests.harness.scenario import Answer, Cluster

FORWARDS = (Forward, Forwarded)


def classic(nodes: int = 5, **settings: float) -> Cluster:
    return Cluster(nodes, proposing="classic", **settings)  # type: ignore[arg-type]


def led(nodes: int = 5, **settings: float) -> Cluster:
    """A cluster with a leader, which is node 1."""
    cluster = Cluster(nodes, proposing="leader", **settings)  # type: ignore[arg-type]
    assert leaders(cluster) == [1]
    return cluster


def leaders(cluster: Cluster) -> list[int]:
    return [n for n in cluster.ids if cluster[n].running and cluster.core(n).own.established]


def another_leads(cluster: Cluster, old: int = 1) -> bool:
    return any(node != old for node in leaders(cluster))


def done(cluster: Cluster, *answers: Answer, within_s: float = 5) -> None:
    cluster.run_until(lambda: all(answer.answered() for answer in answers), within_s)


def number(cluster: Cluster, node: int, key: str) -> str | None:
    return cluster[node].store.get(key).value


# -------------------------------------------------------------------------------------------------- classic


def test_a_command_has_a_ballot_of_its_own_and_gives_it_up() -> None:
    cluster = classic()
    done(cluster, cluster.put(2, "a", "1"))
    first = cluster.core(2).own.ballot
    assert not cluster.core(2).own.leading
    done(cluster, cluster.put(2, "a", "2"))
    assert cluster.core(2).own.ballot > first
    assert len({e.message.ballot for e in cluster.sent_messages(Prepare, 2, 3)}) == 2
    cluster.assert_equal()


def test_a_classic_entry_holds_one_request() -> None:
    cluster = classic()
    answers = [cluster.put(2, f"k{number}", "1") for number in range(5)]
    done(cluster, *answers)
    assert cluster.core(2).acceptors[1].chosen == 5
    assert cluster.core(2).report().ballots == 5


def test_a_dead_nodes_entry_is_finished_though_nobody_asks_for_anything() -> None:
    cluster = classic()
    gate = cluster.deliver_only(Accept, to={1, 2})
    first = cluster.put(1, "a", "1")
    cluster.run_until(lambda: cluster.core(2).acceptors[1].length == 1, within_s=1)
    cluster.crash(1)
    cluster.gates.remove(gate)
    cluster.run_until(lambda: number(cluster, 3, "a") == "1", within_s=3)
    assert not first.answered()


def test_what_another_node_has_finished_is_not_appended_again() -> None:
    """Node 1 is refused; node 2 adopts its entry. Node 1 stands again, and there is nothing to do."""
    cluster = classic()
    hold = cluster.hold(Accept, sender={1}, to={3, 4, 5})
    first = cluster.increment(1, "n")
    cluster.run_until(lambda: cluster.core(2).acceptors[1].length == 1, within_s=1)
    second = cluster.increment(2, "n")
    done(cluster, first, second)
    hold.release()
    cluster.assert_equal()
    assert number(cluster, 3, "n") == "2"


def test_a_refused_candidate_waits_longer_each_time_and_not_for_ever() -> None:
    cluster = classic()
    way = cluster.core(1).way
    limits = []
    for _ in range(20):
        way.lose(way.own, 0, cluster.now)
        limits.append(way.limit)
        assert cluster.now <= way.stand_at < cluster.now + way.limit
    assert limits[1] == 2 * limits[0]
    assert limits[-1] == limits[-2] == 64 * limits[0]


def test_five_that_compete_all_get_on() -> None:
    """The duel does not last: at each of five nodes commands wait all the time, and each has its share."""
    cluster = classic()
    told = dict.fromkeys(cluster.ids, 0)
    waiting = {node: cluster.increment(node, "n") for node in cluster.ids}
    for _ in range(400):
        cluster.run(0.05)
        for node, answer in waiting.items():
            if answer.answered():
                assert answer.ok
                told[node] += 1
                waiting[node] = cluster.increment(node, "n")
    assert min(told.values()) >= 10, told
    done(cluster, *waiting.values(), within_s=20)
    cluster.assert_equal()
    assert number(cluster, 1, "n") == str(sum(told.values()) + 5)


def test_a_classic_read_sees_what_was_answered_before_it_came() -> None:
    """Node 5 has heard of nothing; its read takes a ballot, which finds the entry."""
    cluster = classic()
    blind = cluster.drop(Learn, Accept, to={5})
    done(cluster, cluster.put(1, "a", "1"))
    assert number(cluster, 5, "a") is None
    read = cluster.read(5, "a")
    cluster.gates.remove(blind)
    done(cluster, read)
    assert read.text == "1"


def test_a_classic_read_executes_what_its_ballot_adopts() -> None:
    """Nobody who lives knows that the entry is chosen, and that its client was answered."""
    cluster = classic()
    cluster.drop(Learn, sender={1})
    cluster.deliver_only(Accept, to={1, 2, 3}, sender={1})
    done(cluster, cluster.put(1, "a", "1"))
    cluster.crash(1)
    read = cluster.read(4, "a")
    done(cluster, read)
    assert read.text == "1"


def test_a_read_that_comes_while_a_ballot_is_led_waits_for_the_next_one() -> None:
    cluster = classic()
    hold = cluster.hold(Accepted, to={1})
    first = cluster.put(1, "a", "1")
    cluster.run_until(lambda: cluster.core(1).own.leading, within_s=1)
    read = cluster.read(1, "a")
    cluster.run(0.02)
    ballot = cluster.core(1).own.ballot
    hold.release()
    cluster.gates.clear()
    done(cluster, first, read)
    assert read.text == "1"
    assert cluster.core(1).own.ballot > ballot


def test_a_refused_read_is_asked_again_and_is_not_stale() -> None:
    """Node 1's read has adopted the log, and is held up; others write. Its ballot is too low by now."""
    cluster = classic()
    hold = cluster.hold(Accept, sender={1})
    read = cluster.read(1, "a")
    cluster.run_until(lambda: cluster.core(1).own.leading, within_s=1)
    done(cluster, cluster.put(2, "a", "2"))
    hold.release()
    cluster.gates.clear()
    done(cluster, read)
    assert read.text == "2"


# --------------------------------------------------------------------------------------------------- leader


def test_commands_are_handed_to_the_leader_and_cost_no_prepare() -> None:
    cluster = led()
    before = len(cluster.sent_messages(Prepare, 1, 2))
    done(cluster, *(cluster.increment(node, "n") for node in cluster.ids))
    cluster.assert_equal()
    assert number(cluster, 4, "n") == "5"
    assert len(cluster.sent_messages(Prepare, 1, 2)) == before
    assert not any(cluster.sent_messages(Prepare, node, 1) for node in (2, 3, 4, 5))


def test_who_has_handed_a_command_over_hears_at_once_that_it_is_chosen() -> None:
    cluster = led()
    for value in range(12):
        began = cluster.now
        done(cluster, cluster.put(4, "a", str(value)))
        assert cluster.now - began < 0.01  # gossip comes later, mostly
        cluster.run(0.037)


def test_a_forward_that_was_lost_is_sent_again() -> None:
    cluster = led()
    drop = cluster.drop(*FORWARDS)
    answer = cluster.increment(4, "n")
    cluster.run(0.03)
    cluster.gates.remove(drop)
    done(cluster, answer)
    assert number(cluster, 1, "n") == "1"


def test_a_forward_that_comes_twice_is_done_once() -> None:
    """Its answer is lost, so that it is repeated; and it comes once more long afterwards."""
    cluster = led()
    drop = cluster.drop(Forwarded, Learn, Accept, to={4})
    answer = cluster.increment(4, "n")
    cluster.run(0.2)
    assert len(cluster.sent_messages(Forward, 4, 1)) > 1
    cluster.gates.remove(drop)
    done(cluster, answer, cluster.increment(4, "n"))
    cluster.deliver(cluster.sent_messages(Forward, 4, 1)[0])
    cluster.run(0.2)
    cluster.assert_equal()
    assert number(cluster, 1, "n") == "2"


def test_a_dead_leader_is_replaced_and_what_it_had_taken_is_done_once() -> None:
    """No session is needed: node 4 holds the new leader's log, and sees whether its command is in there."""
    cluster = led()
    gate = cluster.deliver_only(Accept, to={1, 2})
    answer = cluster.increment(4, "n")
    cluster.run_until(lambda: cluster.core(2).acceptors[1].length == 1, within_s=1)
    cluster.crash(1)
    cluster.gates.remove(gate)
    done(cluster, answer)
    cluster.run(1)
    assert number(cluster, 4, "n") == "1"
    cluster.restart(1)
    cluster.assert_equal()


def test_a_new_leader_that_has_adopted_its_own_command_does_not_append_it_again() -> None:
    cluster = led()
    gate = cluster.deliver_only(Accept, to={1, 2})
    answer = cluster.increment(2, "n")
    cluster.run_until(lambda: cluster.core(2).acceptors[1].length == 1, within_s=1)
    cluster.crash(1)
    cluster.gates.remove(gate)
    done(cluster, answer)
    assert leaders(cluster) == [2]
    cluster.run(0.2)
    assert number(cluster, 4, "n") == "1"


def test_whether_the_leader_has_taken_a_command_is_seen_in_its_log() -> None:
    """Its answer is lost, and so is what it says of the entry being chosen."""
    cluster = led()
    cluster.drop(Forwarded, Learn, to={4})
    cluster.drop(Accepted, to={1})
    cluster.increment(4, "n")
    cluster.run(0.2)
    assert len(cluster.sent_messages(Forward, 4, 1)) == 1


def test_what_only_the_dead_leader_had_is_handed_to_the_new_one() -> None:
    cluster = led()
    gate = cluster.drop(Accept, sender={1})
    answer = cluster.increment(4, "n")
    cluster.run_until(lambda: cluster.core(1).acceptors[1].length == 1, within_s=1)
    cluster.crash(1)
    cluster.gates.remove(gate)
    done(cluster, answer)
    cluster.restart(1)
    done(cluster, cluster.increment(1, "n"))
    cluster.assert_equal()
    assert number(cluster, 4, "n") == "2"


def test_a_leader_takes_nothing_from_whom_its_adopted_log_is_not_known() -> None:
    """Node 4 cannot see that its command is in there."""
    cluster = led()
    done(cluster, cluster.put(1, "a", "1"))
    way = cluster.core(1).way
    way.adopted = 1
    cluster.hold(Forward)
    answer = cluster.increment(4, "n")
    cluster.run(0.01)
    (envelope,) = cluster.sent_messages(Forward, 4, 1)
    cluster.gates.clear()
    cluster.deliver(envelope._replace(message=envelope.message._replace(held=0)))
    cluster.run(0.02)
    assert not answer.answered() and cluster.core(1).acceptors[1].length == 1
    done(cluster, answer)


def test_a_leader_takes_nothing_for_a_ballot_that_it_does_not_lead() -> None:
    cluster = led()
    done(cluster, cluster.increment(4, "n"))
    late = cluster.sent_messages(Forward, 4, 1)[0]
    cluster.crash(1)
    cluster.restart(1)
    cluster.run_until(lambda: leaders(cluster) == [1], within_s=5)
    cluster.deliver(late._replace(message=late.message._replace(held=99)))
    cluster.run(0.2)
    assert number(cluster, 1, "n") == "1"


def test_a_paused_leader_reads_nothing_stale_when_it_resumes() -> None:
    """Its clients' read comes before it has heard that another one leads."""
    cluster = led()
    done(cluster, cluster.put(2, "a", "1"))
    cluster.pause(1)
    cluster.run_until(lambda: another_leads(cluster), within_s=5)
    done(cluster, cluster.put(2, "a", "2"))
    machine = cluster[1]
    machine.inbox.clear()  # all that had been sent to it is lost
    cluster.resume(1)
    assert cluster.core(1).own.established
    (new,) = set(leaders(cluster)) - {1}
    cluster.drop(Barrier, to={new})
    read = cluster.read(1, "a")
    cluster.run(0.04)
    assert not read.answered()
    cluster.heal()
    done(cluster, read)
    assert read.text == "2"


def test_a_new_leader_reads_nothing_before_it_is_established() -> None:
    """It has adopted an entry, and does not know yet that this is chosen, and was answered."""
    cluster = led()
    cluster.drop(Learn, sender={1})
    cluster.deliver_only(Accept, to={1, 2, 3}, sender={1})
    done(cluster, cluster.put(1, "a", "1"))
    cluster.crash(1)
    cluster.hold(Accept, sender={2})
    cluster.run_until(lambda: cluster.core(2).own.leading, within_s=5)
    read = cluster.read(2, "a")
    cluster.run(0.1)
    assert not read.answered()
    cluster.heal()
    done(cluster, read)
    assert read.text == "1"


def test_a_restarted_leader_does_not_vouch_for_its_old_ballot() -> None:
    """What it has counted last is not on its disk; it must not answer as the leader that it was."""
    cluster = led(3)
    done(cluster, cluster.put(1, "a", "1"))
    cluster.hold_disk(1)
    done(cluster, cluster.put(2, "a", "2"))
    cluster.drop(Prepare)  # so that nobody can lead
    cluster.crash(1)
    cluster.restart(1)
    core = cluster.core(1)
    cluster.run_until(lambda: core.contacts.reached(1, cluster.now) == 3, within_s=2)
    assert core.way.ballots()[1] == 0
    cluster.drop(Accept, Learn, to={3})
    read = cluster.read(3, "a")
    cluster.run(0.3)
    assert not read.answered()
    cluster.heal()
    done(cluster, read)
    assert read.text == "2"


def test_a_read_needs_a_quorum_that_has_promised_nothing_higher() -> None:
    """Node 1 leads as far as it knows, and one other node answers it."""
    cluster = led()
    for other in (3, 4, 5):
        cluster.cut(1, other)
    for other in (3, 4, 5):
        cluster.cut(2, other)
    cluster.run_until(lambda: another_leads(cluster), within_s=5)
    done(cluster, cluster.put(3, "a", "2"))
    read = cluster.read(1, "a")
    cluster.run(0.3)
    assert not read.answered()
    cluster.heal()
    done(cluster, read)
    assert read.text == "2"


def test_a_read_answered_by_the_leader_waits_until_so_much_is_executed_here() -> None:
    cluster = led()
    blind = cluster.drop(Learn, Accept, to={5})
    done(cluster, cluster.put(1, "a", "1"))
    read = cluster.read(5, "a")
    cluster.run_until(lambda: bool(cluster.core(5).way.dated), within_s=1)
    assert not read.answered()
    cluster.gates.remove(blind)
    done(cluster, read)
    assert read.text == "1"


def test_whoever_was_cut_off_deposes_nobody_on_healing() -> None:
    cluster = led()
    cluster.isolate(4)
    cluster.increment(4, "n")
    cluster.run(3)
    ballot = cluster.core(1).own.ballot
    cluster.heal()
    cluster.run(1)
    assert leaders(cluster) == [1] and cluster.core(1).own.ballot == ballot


def test_who_does_not_reach_the_leader_sends_clients_elsewhere_and_deposes_nobody() -> None:
    """As long as the others get on. Its command is given up: whether it was taken, it cannot know."""
    cluster = led()
    cluster.cut(1, 4)
    ballot = cluster.core(1).own.ballot
    first = cluster.increment(4, "n")
    for _ in range(40):
        done(cluster, cluster.put(2, "a", "1"))
        cluster.run(0.05)
    assert first.answered() and not first.ok
    refused = cluster.increment(4, "n")
    assert isinstance(refused.value, NotDone)
    assert cluster.core(1).own.ballot == ballot
    cluster.heal()
    cluster.run_until(lambda: bool(cluster.core(4).ready), within_s=2)


def test_a_leader_that_hears_of_a_higher_promise_leads_no_more_and_its_reads_end() -> None:
    """Node 4 does not reach it, and stands; node 1 hears of that from the others only."""
    cluster = led()
    done(cluster, cluster.put(2, "a", "1"))
    cluster.cut(1, 4)
    cluster.run_until(lambda: another_leads(cluster), within_s=5)
    read = cluster.read(1, "a")
    done(cluster, read)
    assert read.text == "1"


@pytest.mark.parametrize("patience", [0.05, 0.1])
@pytest.mark.parametrize("waits", [False, True])
def test_a_dead_leader_is_replaced_however_short_patience_is(patience: float, waits: bool) -> None:
    """Gossip is rarer than that, so whoever is held up asks who lives."""
    cluster = led(revoke_after=patience)
    cluster.crash(1)
    answer = cluster.increment(3, "n") if waits else None
    cluster.run_until(lambda: another_leads(cluster), within_s=3)
    if answer is not None:
        done(cluster, answer)
    ballots = {cluster.core(node).acceptors[1].promised for node in (2, 3, 4, 5)}
    cluster.run(3)
    assert {cluster.core(node).acceptors[1].promised for node in (2, 3, 4, 5)} == ballots, "and stays"
    assert all(cluster.core(node).ready for node in (2, 3, 4, 5))


def test_a_dead_nodes_entry_is_finished_however_short_patience_is() -> None:
    cluster = classic(revoke_after=0.05)
    gate = cluster.deliver_only(Accept, to={1, 2})
    cluster.put(1, "a", "1")
    cluster.run_until(lambda: cluster.core(2).acceptors[1].length == 1, within_s=1)
    cluster.crash(1)
    cluster.gates.remove(gate)
    cluster.run_until(lambda: number(cluster, 3, "a") == "1", within_s=3)


def test_a_leader_that_cannot_finish_anything_is_replaced_though_all_hear_it() -> None:
    """It hears nobody's votes."""
    cluster = led()
    cluster.drop(Accepted, to={1})
    answer = cluster.increment(4, "n")
    done(cluster, answer)
    assert another_leads(cluster)


def test_a_candidate_that_dies_before_it_leads_is_replaced() -> None:
    """All have promised to it, and nobody has a command."""
    cluster = led()
    cluster.drop(Promise)
    cluster.crash(1)
    cluster.run_until(lambda: any(cluster.core(n).own.preparing for n in (2, 3, 4, 5)), within_s=3)
    (candidate,) = [n for n in (2, 3, 4, 5) if cluster.core(n).own.preparing]
    cluster.run(0.05)
    cluster.crash(candidate)
    cluster.gates.clear()
    cluster.run_until(lambda: bool(set(leaders(cluster)) - {1, candidate}), within_s=5)


def test_the_leader_that_restarts_leads_again_with_a_higher_ballot() -> None:
    cluster = led()
    done(cluster, cluster.put(3, "a", "1"))
    ballot = cluster.core(1).own.ballot
    cluster.crash(1)
    cluster.restart(1)
    cluster.run_until(lambda: leaders(cluster) == [1], within_s=1)
    assert cluster.core(1).own.ballot > ballot
    done(cluster, cluster.put(3, "a", "2"))


def test_no_answer_of_an_older_round_counts_for_a_read() -> None:
    cluster = led()
    way = cluster.core(4).way
    assert isinstance(way, Leader)
    hold = cluster.hold(to={4}, where=lambda message: type(message).__name__ == "Reading")
    cluster.read(4, "a")
    cluster.run(0.02)
    first = way.reading.round
    cluster.run(0.1)
    assert way.reading.round > first
    cluster.gates.remove(hold)
    for sender in (1, 2, 3):
        for envelope in [e for e in cluster.sent if e.sender == sender and e.to == 4]:
            if getattr(envelope.message, "round", None) == first:
                way.on_reading(sender, envelope.message, cluster.now)
    assert len(way.reading.promises) == 1


def test_nodes_rejoin_and_catch_up_by_checkpoint_with_one_log() -> None:
    for proposing in ("classic", "leader"):
        cluster = Cluster(3, proposing=proposing)
        for value in range(5):
            done(cluster, cluster.put(2, "a", str(value)))
        cluster.wipe(3)
        cluster.restart(3)
        cluster.run_until(lambda cluster=cluster: cluster.core(3).joined, within_s=5)  # type: ignore[misc]
        done(cluster, cluster.put(3, "b", "1"), within_s=10)
        cluster.assert_equal()
        assert node_of(cluster.core(3).acceptors[1].promised) in (1, 2, 3)
