"""Disks that were lost: how a node comes back that forgot what it promised, voted, and said of its clock.

And copies of old disks, which are the same thing unannounced: those are refused.
"""

import json
from random import Random
from typing import Any

import pytest

from paxoskv.multipaxos import Covered, Cut, ballot_of
from paxoskv.protocol.faults import Failures
from paxoskv.protocol.incarnations import LIFE_BITS
from paxoskv.protocol.node import Node
from paxoskv.state.store import Store
from paxoskv.storage.checkpoint import state_of
from paxoskv.wire.codec import NotDone, encode
from paxoskv.wire.structs import (
    Accept,
    Accepted,
    Batch,
    Command,
    Entry,
    Fact,
    Fetched,
    Identity,
    Learn,
    Noted,
    Position,
    Prepare,
    Promise,
    Reading,
    Record,
    Rejoin,
    Rejoined,
    Verb,
)
from tests.harness.scenario import Cluster
from tests.protocol.test_checkpoints import compact, some_commands, started, tell

ALL = {1, 2, 3, 4, 5}


def of_log(log: int) -> Any:
    return lambda message: message.log == log


def of_phase_two(message: Rejoin | Rejoined) -> bool:
    return bool(message.incarnation)


def joined(cluster: Cluster, *nodes: int) -> bool:
    return all(cluster.core(node).joined for node in nodes)


def stand(cluster: Cluster, node: int, log: int) -> None:
    machine = cluster[node]
    machine.do(lambda: (machine.core.way.stand(log, 0, cluster.now), machine.replica.turn()))


# ------------------------------------------------------------------------------------------- the procedure


def test_a_node_that_lost_its_disk_rejoins_and_serves_again() -> None:
    cluster = Cluster()
    some_commands(cluster, 20, (1, 2, 3, 4, 5))
    cluster.wipe(5)
    some_commands(cluster, 10, (1, 2, 3, 4))
    cluster.restart(5)
    assert not cluster.core(5).ready
    cluster.run_until(lambda: joined(cluster, 5), within_s=2)
    cluster.run_until(lambda: cluster.core(5).ready, within_s=2)
    assert cluster.core(5).incarnations.incarnation == 3  # one for each time that it asked everybody
    assert all(cluster.core(peer).noted(5)[0] == 3 for peer in (1, 2, 3, 4))
    answer = cluster.put(5, "x", "5")
    cluster.run_until(answer.answered, within_s=2)
    cluster.assert_equal()
    assert cluster.get(5, "key 9") == "value 9"


def test_a_node_that_lost_its_disk_takes_a_checkpoint_where_entries_were_given_up() -> None:
    cluster = Cluster()
    some_commands(cluster, 40, (1, 2, 3, 4, 5))
    cluster.run(0.3)
    compact(cluster, 1, 2, 3, 4)
    cluster.wipe(5)
    cluster.restart(5)
    cluster.run_until(lambda: joined(cluster, 5), within_s=5)
    assert cluster[5].replica.installed >= 1
    cluster.assert_equal()


def test_a_node_that_lost_its_disk_comes_back_while_others_go_on_giving_up_what_it_does_not_lack() -> None:
    """Its checkpoint need not have all that was given up meanwhile: none ever would."""
    cluster = Cluster()
    some_commands(cluster, 50, (1,))
    cluster.run(2)
    for node in cluster.ids:
        cluster[node].checkpoint_takes = 1.0
        cluster[node].do(lambda replica=cluster[node].replica: (replica.roll(), replica.turn()))
    cluster.run(3)
    some_commands(cluster, 50, (1,))
    cluster.run(3)
    assert all(
        cluster.core(node).acceptors[1].base > cluster.core(node).compaction.checkpointed_to[1]
        for node in (2, 3, 4, 5)
    )
    cluster.wipe(1)
    for number in range(200):  # the clients have gone to node 2, whose log was empty
        if number == 60:
            cluster.restart(1)
        cluster.put(2, f"key {number}", "value")
        cluster.run(0.05)
    assert joined(cluster, 1)
    assert cluster[1].replica.installed >= 1
    cluster.assert_equal()


def test_a_node_that_rejoins_has_no_part_in_anything_until_it_is_done() -> None:
    cluster = Cluster()
    some_commands(cluster, 10, (1, 2, 3, 4, 5))
    cluster.wipe(5)
    cluster.drop(Rejoined, sender={2}, where=of_phase_two)  # one is missing
    cluster.restart(5)
    before = len(cluster.sent)
    answer, read = cluster.put(5, "x", "1"), cluster.read(5, "x")
    cluster.run(1)
    assert isinstance(answer.value, NotDone) and isinstance(read.value, NotDone)
    stand(cluster, 1, log=2)
    cluster.get(1, "key 1")
    cluster.crash(4)
    some_commands(cluster, 5, (1, 2, 3))
    kinds = {e.message.__class__ for e in cluster.sent[before:] if e.sender == 5}
    assert kinds.isdisjoint({Accept, Accepted, Prepare, Promise, Reading})
    asked = [e.message for e in cluster.sent[before:] if e.sender == 5 and isinstance(e.message, Rejoin)]
    assert {message.log for message in asked if message.incarnation} == ALL
    assert not joined(cluster, 5)
    cluster.crash(3)
    stuck = cluster.put(1, "y", "1")
    cluster.run(2)
    assert not stuck.answered(), "1 and 2 are no quorum, and 5 counts as down"
    cluster.heal()
    cluster.restart(3)
    cluster.run_until(stuck.answered, within_s=3)
    cluster.restart(4)
    cluster.run_until(lambda: joined(cluster, 5), within_s=3)
    cluster.assert_equal()


def test_every_other_node_must_answer() -> None:
    """N3. A quorum would not do: the fourth has counted the promise that was lost."""
    cluster = Cluster()
    some_commands(cluster, 5, (1, 2))
    to_three = cluster.hold(Prepare, sender={4}, to={3})
    to_four = cluster.hold(Prepare, sender={4}, to={4})
    cluster.drop(Prepare, sender={4}, to={1, 2})
    stand(cluster, 4, log=1)
    cluster.run(0.01)  # of all others only 5 has promised
    cluster.wipe(5)
    silent = cluster.drop(Rejoin, to={4}, where=of_phase_two)
    cluster.restart(5)
    cluster.run(1)
    assert not joined(cluster, 5)
    first = cluster.put(1, "x", "W")
    cluster.run_until(first.answered, within_s=3)
    silent.lift()
    to_three.release()
    to_four.release()
    cluster.heal()
    cluster.run_until(lambda: joined(cluster, 5), within_s=3)
    cluster.assert_equal()
    for node in ALL:
        assert cluster.get(node, "x") == "W"


def test_a_promise_of_the_lost_disk_does_not_count_once_its_successor_is_noted() -> None:
    cluster = Cluster()
    some_commands(cluster, 5, (1, 2))
    cluster.drop(Prepare, sender={4}, to={1, 2, 3})
    cluster.crash(4)
    cluster.restart(4)
    candidate = cluster.core(4).own
    cluster.run_until(lambda: set(candidate.promises) == {4, 5}, within_s=1)
    ballot = candidate.ballot
    cluster.wipe(5)
    cluster.drop(Rejoined, sender={2}, where=of_phase_two)
    cluster.restart(5)
    cluster.run_until(lambda: cluster.core(4).noted(5)[0] == 2, within_s=2)
    assert set(candidate.promises) == {4}
    cluster.gates.pop()
    cluster.run_until(lambda: joined(cluster, 5), within_s=2)
    assert cluster.core(5).acceptors[4].promised >= ballot, "it has promised it again"
    cluster.heal()
    cluster.assert_equal()


def test_a_vote_of_the_lost_disk_does_not_count_once_its_successor_is_noted() -> None:
    cluster = Cluster()
    cluster.drop(Accept, sender={1}, to={2, 3, 4}, where=lambda message: bool(message.entries))
    answer = cluster.put(1, "x", "1")
    cluster.run_until(lambda: cluster.core(1).own.lengths[5] == 1, within_s=0.1)
    ballot = cluster.core(1).own.ballot
    cluster.wipe(5)
    gate = cluster.drop(Rejoined, sender={2}, where=of_phase_two)
    cluster.restart(5)
    cluster.run_until(lambda: cluster.core(1).noted(5)[0] == 2, within_s=2)
    assert 5 not in cluster.core(1).own.lengths
    gate.lift()
    cluster.run_until(lambda: joined(cluster, 5), within_s=2)
    assert cluster.core(5).acceptors[1].accepted == ballot
    assert cluster.core(5).acceptors[1].length == 1, "1 has told what it proposed"
    cluster.heal()
    cluster.run_until(answer.answered, within_s=3)
    cluster.assert_equal()


def test_what_a_leader_proposed_and_has_not_voted_for_is_told() -> None:
    cluster = Cluster()
    cluster.core(1).faults.failures = Failures(probability=1.0)
    cluster.drop(Accept, sender={1}, to={2, 3, 4})
    cluster.put(1, "x", "1")
    cluster.run(0.01)
    assert cluster.core(1).acceptors[1].length == 0
    cluster.wipe(5)
    cluster.restart(5)
    cluster.run_until(lambda: joined(cluster, 5), within_s=2)
    assert cluster.core(5).acceptors[1].length == 1
    cluster.core(1).faults.failures = Failures()
    cluster.heal()
    cluster.assert_equal()


def test_the_clock_of_a_node_that_rejoined_lies_above_all_that_the_lost_one_said() -> None:
    cluster = Cluster()
    cluster.hear_clock(5, 10_000)
    cluster.run(0.3)  # 5 has told its frontier
    frontier = cluster.core(1).learner.logs[5].known
    assert frontier >= 10_000
    cluster.wipe(5)
    cluster.restart(5)
    cluster.run_until(lambda: cluster.core(5).ready, within_s=3)
    assert cluster.core(5).clock.time >= frontier
    answer = cluster.put(5, "x", "1")
    cluster.run_until(answer.answered, within_s=2)
    assert cluster.order[-1][0] > frontier
    cluster.assert_equal()


def test_two_nodes_that_rejoin_at_once_wait_for_the_three_that_know() -> None:
    cluster = Cluster()
    some_commands(cluster, 10, (1, 2, 3, 4, 5))
    cluster.wipe(4)
    cluster.wipe(5)
    gate = cluster.drop(Rejoined, sender={1})
    cluster.restart(4)
    cluster.restart(5)
    cluster.run(0.2)
    gate.lift()
    cluster.run_until(lambda: joined(cluster, 4, 5), within_s=3)
    told = [e.message.rejoining for e in cluster.sent_messages(Rejoined, 4, 5)]
    assert any(told), "4 had nothing to tell"
    cluster.assert_equal()
    assert cluster.get(5, "key 9") == "value 9"


def test_three_of_five_that_lost_their_disks_do_not_make_up_a_state() -> None:
    cluster = Cluster()
    some_commands(cluster, 10, (1, 2, 3, 4, 5))
    for node in (3, 4, 5):
        cluster.wipe(node)
    for node in (3, 4, 5):
        cluster.restart(node)
    cluster.run(5)
    assert not any(joined(cluster, node) for node in (3, 4, 5))


def test_a_node_that_crashes_while_it_rejoins_begins_again() -> None:
    for moment in range(1, 40, 3):
        cluster = Cluster(seed=moment)
        some_commands(cluster, 5, (1, 2, 3))
        cluster.wipe(5)
        cluster.restart(5)
        cluster.run(moment * 0.0005)
        cluster.crash(5)
        cluster.run(0.05)
        cluster.restart(5)
        core = cluster.core(5)
        cluster.run_until(lambda core=core: core.ready, within_s=3)
        assert cluster.core(5).incarnations.incarnation in (2, 3)
        answer = cluster.put(5, "x", "1")
        cluster.run_until(answer.answered, within_s=2)
        cluster.assert_equal()


def test_a_node_that_rejoined_stays_so_over_restarts_and_segments() -> None:
    cluster = Cluster()
    cluster.wipe(5)
    cluster.restart(5)
    cluster.run_until(lambda: cluster.core(5).ready, within_s=3)
    some_commands(cluster, 5, (5, 1))
    compact(cluster, 5)
    cluster.crash(5)
    cluster.restart(5)
    assert joined(cluster, 5)
    assert cluster.core(5).incarnations.incarnation == 3
    cluster.wipe(5)
    cluster.restart(5)
    cluster.run_until(lambda: joined(cluster, 5), within_s=3)
    assert cluster.core(5).incarnations.incarnation == 5
    cluster.assert_equal()


def test_one_of_three_rejoins_when_both_others_answer() -> None:
    cluster = Cluster(nodes=3)
    some_commands(cluster, 5, (1, 2, 3))
    cluster.wipe(3)
    cluster.crash(2)
    cluster.restart(3)
    cluster.run(2)
    assert not joined(cluster, 3)
    cluster.restart(2)
    cluster.run_until(lambda: joined(cluster, 3), within_s=3)
    cluster.assert_equal()


def test_a_node_alone_cannot_rejoin() -> None:
    with pytest.raises(AssertionError, match="nobody who knows"):
        Node(1, (1,), Random(1), incarnation=0)


def test_a_segment_that_begins_while_a_node_rejoins_says_so() -> None:
    cluster = Cluster()
    some_commands(cluster, 5, (1, 2, 3))
    cluster.wipe(5)
    gate = cluster.drop(Rejoined, sender={2})
    cluster.restart(5)
    cluster.run(0.2)
    compact(cluster, 5)
    gate.lift()
    cluster.run_until(lambda: cluster.core(5).incarnations.incarnation == 2, within_s=1)
    gate = cluster.drop(Rejoined, sender={2})
    cluster.run(0.1)
    compact(cluster, 5)
    cluster.crash(5)
    cluster.restart(5)
    assert not joined(cluster, 5)
    gate.lift()
    cluster.run_until(lambda: joined(cluster, 5), within_s=2)
    cluster.assert_equal()


def test_a_segment_that_begins_with_the_end_of_a_rejoin_holds_it() -> None:
    cluster = Cluster()
    some_commands(cluster, 5, (1, 2, 3))
    cluster.wipe(5)
    gate = cluster.hold(Rejoined, sender={2}, where=lambda message: message.incarnation == 3)
    cluster.restart(5)
    machine = cluster[5]
    cluster.run(0.2)
    cluster.hold_disk(5)
    machine.do(
        lambda: (machine.core.note(1, *machine.core.noted(1)), machine.replica.turn())
    )  # being written
    gate.release()
    cluster.run_until(lambda: machine.core.rejoining.turn > 0, within_s=1)
    assert any(record.rejoined for record in machine.replica.records)
    assert not joined(cluster, 5), "not before that is durable"
    machine.replica.roll()
    cluster.sync(5)
    cluster.run_until(lambda: joined(cluster, 5), within_s=1)
    cluster.crash(5)
    cluster.restart(5)
    assert joined(cluster, 5)


# ------------------------------------------------------------------------------------- what a peer answers


def rejoining() -> Node:
    """Node 1, at time 1, on a new disk."""
    made = Node(1, (1, 2, 3), Random(1), incarnation=0)
    made.start(1.0)
    made.drain(1.0)
    return made


def told(sender: int, incarnation: int, noted: int = 1) -> Rejoined:
    return Rejoined(1, incarnation, noted, False, 0, 0, 0, [], Fact(1, 0, 0, 0), 0)


def test_the_new_incarnation_lies_above_all_that_were_noted() -> None:
    made = rejoining()
    tell(made, 2, told(2, 0, noted=7))
    tell(made, 2, told(2, 0, noted=7))
    assert made.incarnations.incarnation == 0
    journal = tell(made, 3, told(3, 0, noted=4)).journal
    assert made.incarnations.incarnation == 8
    assert Record(incarnation=8) in journal
    tell(made, 3, told(3, 7))
    assert made.rejoining is not None and not any(made.rejoining.answers.values()), "of an earlier attempt"
    made.tick(1.0)
    ready = made.drain(1.0)
    assert [to for to, message, _ in ready.send_after if message.__class__ is Rejoin] == [2, 2, 2, 3, 3, 3]


def test_the_clock_is_raised_to_the_highest_that_is_told() -> None:
    made = rejoining()
    for peer in (2, 3):
        tell(made, peer, told(peer, 0))
    for incarnation in (2, 3):  # it asks twice
        for peer in (2, 3):
            for log in (1, 2, 3):
                ours = (log, incarnation, incarnation)
                tell(made, peer, Rejoined(*ours, False, 0, 0, 0, [], Fact(log, 0, 0, 0), 5000 * peer))
        assert made.clock.time == 15_000
        made.tick(float(incarnation))
        assert (Record(rejoined=True) in made.drain(2.0).journal) == (incarnation == 3)


def test_a_skip_that_is_taken_over_raises_no_clock() -> None:
    """N18."""
    made = rejoining()
    for peer in (2, 3):
        tell(made, peer, told(peer, 0))
    for incarnation in (2, 3):
        for peer in (2, 3):
            for log in (1, 2, 3):
                entries = [Entry(50, b"x"), Entry(10**6, b"")] if log == 3 else []
                ours = (log, incarnation, incarnation)
                tell(made, peer, Rejoined(*ours, False, 256, 256, 0, entries, Fact(log, 0, 0, 0), 7))
        made.tick(float(incarnation))
    assert made.acceptors[3].length == 2
    assert (made.clock.time, made.clock.highest) == (50, 10**6)


def test_a_peer_that_lost_its_disk_is_noted_and_forgotten() -> None:
    made = started()
    made.step(2, Reading(0, 5, []), 1.0)
    made.read("token")
    made.drain(1.0)
    assert made.way.reads.round is not None
    made.way.reads.round.clocks[2] = 5
    ready = tell(made, 2, Rejoin(2, 3))
    assert Record(noted=Noted(2, 3, 0)) in ready.journal
    assert 2 not in made.way.reads.round.clocks
    (answer,) = [message for _, message, _ in ready.send_after if message.__class__ is Rejoined]
    assert (answer.incarnation, answer.noted, answer.rejoining) == (3, 3, False)
    ready = tell(made, 2, Rejoin(2, 2))
    (answer,) = [message for _, message, _ in ready.send_after if message.__class__ is Rejoined]
    assert (answer.incarnation, answer.noted, answer.rejoining) == (2, 3, True), "of an earlier attempt"
    assert tell(made, 2, Rejoin(2, 3)).journal == []


def test_a_node_whose_incarnation_is_too_low_takes_a_higher_one_and_begins_anew() -> None:
    """A late message of a disk that rejoined before, and was lost too, has raised what a peer noted."""
    made = rejoining()
    for peer in (2, 3):
        tell(made, peer, told(peer, 0))
    nothing = (0, 0, 0, [], Fact(1, 0, 0, 0), 0)
    for log in (1, 2, 3):
        tell(made, 2, Rejoined(log, 2, 2, False, *nothing))
    ready = tell(made, 3, Rejoined(1, 2, 4, True, *nothing))
    assert Record(incarnation=5) in ready.journal
    made.tick(3.0)
    asked = [(to, message) for to, message, _ in made.drain(3.0).send_after if message.__class__ is Rejoin]
    assert asked == [(peer, Rejoin(log, 5)) for peer in (2, 3) for log in (1, 2, 3)]
    for incarnation in (5, 6):
        for peer in (2, 3):
            for log in (1, 2, 3):
                tell(made, peer, Rejoined(log, incarnation, incarnation, False, *nothing))
        made.tick(float(incarnation))
        assert (Record(rejoined=True) in made.drain(7.0).journal) == (incarnation == 6)


def test_a_peer_tells_the_highest_ballot_that_it_ever_stood_with() -> None:
    """Its own acceptor may have failed on purpose when it stood."""
    ballot = ballot_of(9, 1)
    made = started()
    made.way.proposer(2).highest = ballot
    ready = tell(made, 3, Rejoin(2, 5))
    (answer,) = [message for _, message, _ in ready.send_after if message.__class__ is Rejoined]
    assert answer.promised == ballot


# -------------------------------------------------------------------------------------------- stale copies


def test_yesterdays_backup_is_refused() -> None:
    cluster = Cluster()
    some_commands(cluster, 5, (1, 2, 3, 4, 5))
    backup = cluster.backup(5)
    for _ in range(2):
        cluster.crash(5)
        cluster.restart(5)
        cluster.run(0.3)
    some_commands(cluster, 5, (1, 2, 3, 4, 5))
    cluster.run(0.3)
    cluster.crash(5)
    cluster.restore(5, backup)
    cluster.run(2)
    for peer in (1, 2, 3, 4):
        assert "stale copy" in cluster[peer].refused[5]
        assert "--rejoin" in cluster[peer].refused[5]
    assert not cluster.core(5).ready
    cluster.wipe(5)
    cluster.restart(5)
    cluster.run_until(lambda: cluster.core(5).ready, within_s=3)
    cluster.assert_equal()


def test_a_copy_of_a_disk_that_was_replaced_is_refused() -> None:
    cluster = Cluster()
    some_commands(cluster, 5, (1, 2, 3, 4, 5))
    backup = cluster.backup(5)
    cluster.wipe(5)
    cluster.restart(5)
    cluster.run_until(lambda: cluster.core(5).ready, within_s=3)
    cluster.crash(5)
    cluster.restore(5, backup)
    cluster.run(1)
    assert set(cluster[1].refused) == {5}
    assert not cluster.core(5).ready


def test_which_processes_may_speak_for_a_node() -> None:
    def life(count: int, chance: int = 0) -> int:
        return count << LIFE_BITS | chance

    def greet(node: int, incarnation: int, start: int) -> str | None:
        return made.greet(Identity("", "", node, incarnation, start))

    made = started()
    assert greet(2, 1, life(3, 7)) is None
    assert made.noted(2) == (1, life(3, 7))
    assert greet(2, 1, life(3, 7)) is None, "the same process"
    for incarnation, start in ((1, life(2, 9)), (1, life(3, 6)), (1, life(3, 8))):
        assert greet(2, incarnation, start) is not None
    assert greet(2, 0, life(1)) is None, "it is rejoining"
    assert made.noted(2) == (1, life(3, 7))
    assert greet(2, 1, life(4)) is None
    assert greet(2, 2, life(1)) is None, "another disk"
    assert greet(2, 1, life(9)) is not None
    noted = [record.noted for record in made.drain(1.0).journal if record.noted]
    assert noted == [Noted(2, 1, life(3, 7)), Noted(2, 1, life(4)), Noted(2, 2, life(1))]


def test_gossip_of_a_disk_that_was_lost_tells_what_is_held_no_more() -> None:
    made = started()
    tell(made, 2, Learn(0, [], [4, 4, 4], Position(0, 0), 0))
    assert made.compaction.held_by[2] == [4, 4, 4]
    made.note(2, 2, 0)
    assert made.compaction.held_by[2] == [0, 0, 0]


# ------------------------------------------------------------------------- everybody is asked a second time


def test_a_vote_of_a_lost_disk_that_was_counted_after_others_had_answered_is_not_lost() -> None:
    """Node 1 counts the old 5, and 2, which had told the new 5 its state before; then 1 loses its disk.

    From its new disk, 1 answers 5 that it has nothing to tell; 2, which knows, is cut off, and dies.
    """
    cluster = Cluster()
    only_five = cluster.drop(Accept, sender={1}, to={2, 3, 4}, where=lambda message: bool(message.entries))
    answer = cluster.put(1, "x", "W")
    cluster.run_until(lambda: cluster.core(1).own.lengths[5] == 1, within_s=0.1)
    assert not answer.answered()
    cluster.wipe(5)
    cluster.restart(5)
    cluster.run_until(lambda: cluster.core(5).incarnations.incarnation == 2, within_s=2)
    cluster.cut(1, 5)
    cluster.run_until(lambda: all(cluster.core(5).rejoining.tells(p) for p in (2, 3, 4)), within_s=2)
    for other in (3, 4):
        cluster.cut(1, other)
    only_five.lift()
    cluster.run_until(answer.answered, within_s=2)
    assert answer.ok
    cluster.wipe(1)
    cluster.heal()
    for other in (3, 4, 5):
        cluster.cut(2, other)
    cluster.drop(Learn, Fetched, Promise, sender={2})
    cluster.drop(Rejoined, sender={2}, where=of_phase_two)
    cluster.restart(1)
    cluster.run_until(lambda: cluster.core(1).incarnations.incarnation == 2, within_s=2)
    cluster.crash(2)
    cluster.heal()
    cluster.run(1)
    cluster.put(3, "y", "2")
    cluster.run(5)
    cluster.restart(2)
    cluster.run(5)
    assert cluster.get(3, "x") == "W"
    cluster.assert_equal()


def test_a_vote_of_a_lost_disk_counted_by_a_leader_without_a_vote_of_its_own_is_not_lost() -> None:
    """Its acceptor fails on purpose, and it crashes before it has journaled that the entry is chosen."""
    cluster = Cluster()
    cluster.core(1).faults.failures = Failures(probability=1.0)
    only_five = cluster.drop(Accept, sender={1}, to={2, 3, 4}, where=lambda message: bool(message.entries))
    answer = cluster.put(1, "x", "W")
    cluster.run_until(lambda: cluster.core(1).own.lengths[5] == 1, within_s=0.1)
    cluster.wipe(5)
    cluster.restart(5)
    cluster.run_until(lambda: cluster.core(5).incarnations.incarnation == 2, within_s=2)
    cluster.cut(1, 5)
    cluster.run_until(lambda: all(cluster.core(5).rejoining.tells(p) for p in (2, 3, 4)), within_s=2)
    cluster.cut(1, 4)
    cluster.hold_disk(1)
    cluster.drop(Learn, sender={1})
    only_five.lift()
    cluster.run_until(answer.answered, within_s=2)
    assert answer.ok
    cluster.crash(1)
    cluster.heal()
    for one in (2, 3):
        for other in (1, 4, 5):
            cluster.cut(one, other)
    cluster.restart(1)
    cluster.run(2)
    second = cluster.put(4, "y", "2")
    cluster.run(3)
    cluster.heal()
    cluster.run_until(lambda: joined(cluster, 5), within_s=3)
    cluster.run_until(second.answered, within_s=3)
    assert cluster.get(4, "x") == "W"
    cluster.assert_equal()


def test_a_node_that_rejoins_a_restored_cluster_has_what_was_restored() -> None:
    backup = Store("unused")
    backup.apply(100, 1, encode(Batch([Command(Verb.PUT, "old", "kept")])))
    cluster = Cluster(nodes=5, start=())
    logs = {log: Covered(1, 0, 1000) for log in cluster.ids}  # as checkpoint.restore() makes it
    state = state_of(backup, Cut(backup.position, logs, 1000))
    for node in cluster.ids:
        cluster[node].files.checkpoints[1] = json.dumps(state).encode()
        cluster[node].files.newest = 1
        cluster.restart(node)
    cluster.run_until(lambda: all(cluster.core(node).ready for node in cluster.ids), within_s=3)
    assert all(cluster.get(node, "old") == "kept" for node in cluster.ids)
    cluster.run_until(cluster.put(1, "x", "1").answered, within_s=2)
    cluster.wipe(5)
    cluster.restart(5)
    cluster.run_until(lambda: joined(cluster, 5), within_s=5)
    assert cluster.get(5, "old") == "kept"
    cluster.assert_equal()
