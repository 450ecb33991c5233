"""Disks that have forgotten what they had said to be durable: old copies put back, a last frame lost.

Peers that are alive and were told better refuse such a node. Where nobody of them is alive, the nodes find
out when the others return, and say so.
"""

from collections.abc import Callable
from random import Random

import pytest

from paxoskv.multipaxos import Acceptor, ballot_of
from paxoskv.protocol.incarnations import LIFE_BITS
from paxoskv.protocol.node import Node
from paxoskv.wire.structs import (
    Accept,
    Accepted,
    Entry,
    Fact,
    Identity,
    Learn,
    Noted,
    Position,
    Prepare,
    Promise,
    Record,
    Recovered,
    Rejoin,
    Verdict,
    Vote,
)
from tests.harness.scenario import Cluster
from tests.protocol.test_checkpoints import some_commands, started, tell

ALL = (1, 2, 3, 4, 5)


def test_a_copy_of_a_running_nodes_data_that_is_put_back_is_refused() -> None:
    cluster = Cluster()
    some_commands(cluster, 5, ALL)
    backup = cluster.backup(5)
    some_commands(cluster, 5, ALL)
    cluster.run(0.3)
    cluster.crash(5)
    cluster.restore(5, backup)
    cluster.run(1)
    for peer in (1, 2, 3, 4):
        reason = cluster[peer].refused.get(5, "it was not refused")
        assert "stale copy" in reason and "--rejoin" in reason
    assert not cluster.core(5).ready
    cluster.wipe(5)
    cluster.restart(5)
    cluster.run_until(lambda: cluster.core(5).ready, within_s=3)
    cluster.assert_equal()


def test_a_node_that_has_lost_its_last_vote_is_refused_by_whoever_counted_it() -> None:
    cluster = Cluster()
    some_commands(cluster, 5, ALL)
    cluster.crash(4)
    cluster.crash(5)
    cluster.run(0.5)
    first = cluster.put(1, "x", "1")
    cluster.run_until(first.answered, within_s=1)
    cluster.crash(3)
    del cluster[3].durable[-1]
    cluster.restart(3)
    cluster.run(1)
    assert "it had accepted" in cluster[1].refused[3]


def test_a_node_that_has_lost_nothing_is_not_refused() -> None:
    cluster = Cluster()
    for _ in range(5):
        some_commands(cluster, 3, ALL)
        for node in ALL:
            cluster.crash(node)
            cluster.restart(node)
            cluster.run(0.5)
    assert not any(cluster[node].refused for node in ALL)
    cluster.assert_equal()


def two_histories(more: int = 5, proposer: int = 1, second: bool = False) -> Cluster:
    """An entry is chosen by 1, 2 and 3; 3 gets an older copy of its data while 1 and 2 are down.

    3, 4 and 5 then execute so many other commands, and a `second` one in the slot of the first.
    """
    cluster = Cluster()
    some_commands(cluster, 3, ALL)
    cluster.run(0.5)
    backup = cluster.backup(3)
    for node in (4, 5):
        cluster.crash(node)
    cluster.run(1)
    lost = cluster.put(proposer, "x", "acknowledged")
    cluster.run_until(lost.answered, within_s=3)
    assert lost.ok
    cluster.run(0.5)
    for node in (1, 2, 3):
        cluster.crash(node)
    cluster.two_histories = True
    for node in ALL:
        cluster[node].on_diverged = lambda node: None
    cluster.restore(3, backup)
    for node in (4, 5):
        cluster.restart(node)
    cluster.run_until(lambda: all(cluster.core(node).ready for node in (3, 4, 5)), within_s=5)
    assert cluster.get(3, "x") is None, "nobody who is alive can know better"
    if second:
        cluster.run_until(cluster.put(proposer, "x", "second").answered, within_s=5)
    if more:
        some_commands(cluster, more, (3, 4, 5))
    cluster.run(2)
    return cluster


def test_two_histories_are_found_out_when_the_others_return() -> None:
    cluster = two_histories()
    for node in (2, 1):
        cluster.restart(node)
        cluster.run(3)
    ended = [node for node in ALL if not cluster[node].running]
    assert ended, "nobody has noticed"
    for node in ended:
        reason = cluster[node].diverged
        assert reason is not None
        assert "old copy of its data" in reason and '"Two histories" in docs/operations.md' in reason


def test_a_write_that_others_lack_is_found_out_without_any_further_command() -> None:
    cluster = two_histories(more=0)
    for node in (1, 2):
        cluster.restart(node)
    cluster.run_until(lambda: not (cluster[1].running or cluster[2].running), within_s=5)
    cluster.run(3)
    assert cluster[3].running and cluster[4].running and cluster[5].running, "most agree with them"


def test_two_histories_of_equal_length_are_found_out_without_any_further_command() -> None:
    """Both have another command in the same slot of log 3, and nobody sends it again."""
    cluster = two_histories(more=0, proposer=3, second=True)
    for node in (1, 2):
        cluster.restart(node)
    cluster.run_until(lambda: not (cluster[1].running or cluster[2].running), within_s=5)
    assert cluster[3].running and cluster[4].running and cluster[5].running, "most agree with them"


def test_a_checkpoint_of_the_other_history_is_found_out_too() -> None:
    cluster = two_histories()
    for node in (3, 4, 5):
        cluster[node].do(cluster[node].replica.roll)
    some_commands(cluster, 3, (3, 4, 5))
    cluster.run(2)
    for node in (1, 2):
        cluster.restart(node)
    cluster.run(5)
    assert any(cluster[node].diverged for node in ALL)


# ------------------------------------------------------------------------------------------ what peers know


def identity(start: int, *found: Recovered, reserved: int = 1 << 40) -> Identity:
    return Identity("", "", 2, 1, start << LIFE_BITS, list(found), reserved)


BALLOT = ballot_of(1, 1)  # of node 1, who is asked
THEIRS = ballot_of(1, 2)  # of node 2, who has forgotten
HELD = Recovered(1, BALLOT, BALLOT, 3, 1, 0)  # log, promised, accepted, length, chosen, candidate
OWN = Recovered(2, THEIRS, THEIRS, 0, 0, THEIRS)


def witness() -> Node:
    """Node 1, which leads its own log, and has heard all this from node 2."""
    made = started()
    assert made.greet(identity(1)) is None
    made.tick(1.0)
    made.drain(1.0)
    assert made.own.ballot == BALLOT
    nothing = Fact(1, 0, 0, 0)
    for sender in (1, 2):
        tell(made, sender, Promise(1, BALLOT, 0, Verdict.PROMISED, BALLOT, 0, [], nothing))
        tell(made, sender, Accepted(1, BALLOT, BALLOT, Vote.ACCEPTED, 0, nothing))
    made.tick(1.1)
    tell(made, 2, Accepted(1, BALLOT, BALLOT, Vote.ACCEPTED, 3, nothing))
    tell(made, 2, Prepare(2, THEIRS, 0, 0))
    tell(made, 2, Learn(0, [Fact(2, 0, 0, 1000)], [1, 0, 0], Position(0, 0), 0))
    return made


def test_what_a_start_has_found_is_compared_with_all_that_was_heard() -> None:
    assert witness().greet(identity(2, HELD, OWN)) is None
    higher = HELD._replace(promised=BALLOT + 256, accepted=BALLOT + 256, length=1)
    assert witness().greet(identity(2, higher, OWN)) is None, "a later ballot's log may be shorter"
    for forgotten, words in (
        (identity(2, HELD._replace(promised=BALLOT - 256), OWN), "had promised ballot"),
        (identity(2, HELD._replace(accepted=BALLOT - 256), OWN), "had accepted 3 entries"),
        (identity(2, HELD._replace(length=2), OWN), "had accepted 3 entries"),
        (identity(2, HELD._replace(chosen=0), OWN), "had 1 chosen entries"),
        (identity(2, HELD, OWN._replace(candidate=0)), "had stood with ballot"),
        (identity(2, HELD, OWN, reserved=999), "its clock had reached 1000"),
    ):
        made = witness()
        reason = made.greet(forgotten)
        assert reason is not None and words in reason and "is a stale copy" in reason, (forgotten, reason)
        assert made.noted(2) == (1, 1 << LIFE_BITS), "the next start is looked at as well"
        assert made.greet(forgotten) == reason


def test_what_a_life_has_found_is_asked_once_for_it_has_voted_since() -> None:
    made = witness()
    assert made.greet(identity(2, HELD, OWN)) is None
    tell(made, 2, Accepted(1, BALLOT, BALLOT, Vote.ACCEPTED, 5, Fact(1, 0, 0, 0)))
    assert made.greet(identity(2, HELD, OWN)) is None, "it found that much when it began"


def test_a_node_that_was_told_nothing_or_has_another_disk_is_not_refused() -> None:
    nothing = Recovered(1, 0, 0, 0, 0, 0)
    assert witness().greet(identity(2)) is None, "an earlier version does not say"
    assert witness().greet(identity(2, nothing)._replace(incarnation=2)) is None
    made = started()
    assert made.greet(identity(1)) is None
    assert made.greet(identity(2, nothing, reserved=0)) is None


def test_a_new_disk_is_not_held_to_what_the_lost_one_had_said() -> None:
    made = witness()
    tell(made, 2, Rejoin(2, 2))
    nothing = Recovered(1, 0, 0, 0, 0, 0)
    assert made.greet(identity(1, nothing, reserved=0)._replace(incarnation=2)) is None


def test_a_start_that_rejoins_says_nothing_of_what_it_found() -> None:
    made = Node(1, (1, 2, 3), Random(1), incarnation=0)
    made.start(1.0)
    assert made.identify(Identity("", "", 1, 0, 0)).recovered is None


def test_the_journal_of_another_node_is_noticed() -> None:
    """It has noted which disk its peers have, and we are one of them."""
    made = Node(1, (1, 2, 3), Random(1))
    with pytest.raises(Exception, match="the journal is that of another node"):
        made.replay(Record(noted=Noted(1, 1, 1 << LIFE_BITS)))


# ------------------------------------------------------------------- contradictions, and none is an assertion


def held(*timestamps: int) -> Acceptor:
    """An acceptor that holds these entries at ballot 257, all of them chosen."""
    made = Acceptor(1, lambda record: None)
    entries = [Entry(timestamp, b"x") for timestamp in timestamps]
    assert made.on_accept(Accept(1, 257, 0, entries, True, Fact(1, 0, 0, 0), [])) == Vote.ACCEPTED
    made.learn(len(entries), 257)
    return made


def test_another_entry_where_one_is_chosen_is_a_contradiction() -> None:
    nothing = Fact(1, 0, 0, 0)
    other = [Entry(9, b"y")]
    contradictions: list[Callable[[Acceptor], object]] = [
        lambda made: made.on_accept(Accept(1, 513, 0, other, True, nothing, [])),  # a sync
        lambda made: made.on_accept(Accept(1, 257, 0, other, False, nothing, [])),  # at the same ballot
        lambda made: made.install(0, [*other, Entry(11, b"z")], 513),  # fetched
    ]
    for contradict in contradictions:
        made = held(10)
        with pytest.raises(
            Exception, match="slot 0 of log 1 holds the entry of 10 here, and that of 9"
        ) as error:
            contradict(made)
        assert type(error.value).__name__ == "Diverged"
        assert made.chosen == 1 and made.entries == [Entry(10, b"x")]
