"""Checkpoints: what a journal's new segment begins with, what it covers, what is given up for it.

First the core by itself, then stories: a node that was down for long, a transfer that is disturbed.
"""

from random import Random
from typing import Any

import pytest

from paxoskv.multipaxos import Covered, Cut, ballot_of
from paxoskv.node.replica import GIVE_UP
from paxoskv.protocol.clock import RESERVE
from paxoskv.protocol.compaction import COMPACT_EVERY, KEEP_BYTES, KEEP_OVERHEAD
from paxoskv.protocol.divergence import DOUBT, RECENT
from paxoskv.protocol.incarnations import LIFE_BITS
from paxoskv.protocol.node import Node
from paxoskv.protocol.outbox import Ready
from paxoskv.protocol.persistence import Persisted
from paxoskv.wire.codec import Unknown
from paxoskv.wire.structs import (
    Accept,
    Accepted,
    Chosen,
    Chunk,
    Entry,
    Fact,
    Fetch,
    FetchCheckpoint,
    Fetched,
    Held,
    Learn,
    LogBallot,
    Noted,
    Outcome,
    Position,
    Prepare,
    Promise,
    Record,
    RequestId,
    Verdict,
    Vote,
)
from tests.harness.scenario import Cluster

NOTHING = Fact(2, 0, 0, 0)
BALLOT = ballot_of(1, 2)
LOGS = (1, 2, 3)


def fresh(me: int = 1) -> Node:
    return Node(me, LOGS, Random(1))


def started(*records: Record, me: int = 1) -> Node:
    """After a restart with these records; what it wanted to send is lost."""
    made = fresh(me)
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


def accept(log: int, start: int, *timestamps: int, chosen: int = 0, frontier: int = 0) -> Accept:
    """Commands of the log's owner in its first ballot; a negative timestamp is a no-op's."""
    ballot = ballot_of(1, log)
    entries = [Entry(abs(t), b"" if t < 0 else b"%d" % t) for t in timestamps]
    return Accept(
        log,
        ballot,
        start,
        entries,
        start == 0,
        Fact(log, chosen, ballot if chosen else 0, frontier),
        [],
    )


def holding(*held: int) -> Learn:
    return Learn(0, [], list(held), Position(0, 0), 0)


def with_entries() -> Node:
    """Log 2 has 10, 20 and 30 chosen; 10 and 20 are applied, 30 waits for log 3; 40 is not chosen."""
    made = started()
    tell(made, 2, accept(2, 0, 10, 20, 30, 40, chosen=3))
    for log in (1, 3):
        tell(made, log, Learn(0, [Fact(log, 0, 0, 25)], [], Position(0, 0), 0))
    assert made.learner.position == (20, 2)
    return made


# ------------------------------------------------------------------------------- the first frame of a segment


def test_a_segment_begins_with_all_that_must_not_be_forgotten() -> None:
    """N13."""
    made = with_entries()
    tell(made, 3, Prepare(2, ballot_of(7, 3), 3, 0))
    made.incarnations.lives[3] = (2, 5)
    made.notes()
    again = fresh()
    again.install(made.cut())
    for record in made.state():
        again.replay(record)
    again.start(2.0)
    assert again.drain(2.0).apply == []
    for log in LOGS:
        ours, theirs = again.acceptors[log], made.acceptors[log]
        assert (ours.promised, ours.accepted, ours.evidence) == (
            theirs.promised,
            theirs.accepted,
            theirs.evidence,
        )
        assert (ours.chosen, ours.length) == (theirs.chosen, theirs.length)
    assert again.acceptors[2].entries == made.acceptors[2].entries[2:]
    assert again.acceptors[2].promised == ballot_of(7, 3)
    assert again.learner.position == (20, 2)
    assert again.learner.next() == (30, 2)
    assert again.clock.time == made.clock.reserving
    assert again.incarnations.life >> LIFE_BITS == (made.incarnations.life >> LIFE_BITS) + 1
    assert again.incarnations.lives == made.incarnations.lives
    assert again.own.highest >= made.own.highest


def test_a_segments_first_frame_leaves_out_what_was_executed_when_the_frame_before_was_written() -> None:
    made = with_entries()
    starts = [record.held.start for record in made.state() if record.held]
    assert starts == [
        0,
        0,
        0,
    ]  # nothing was noted before: the closed segments say of nothing that it is executed
    made.notes()
    tell(made, 1, Learn(0, [Fact(3, 0, 0, 99), Fact(1, 0, 0, 99)], [], Position(0, 0), 0))
    assert made.learner.position == (30, 2)
    starts = [record.held.start for record in made.state() if record.held]
    assert starts == [0, 2, 0]


def test_older_segments_may_be_replayed_below_a_segments_first_frame() -> None:
    """As after a crash before the checkpoint was done."""
    made = with_entries()
    ballot = ballot_of(1, 2)
    entries = made.acceptors[2].entries
    older = [
        Record(held=Held(2, ballot, 0, entries)),
        Record(chosen=Chosen(2, 3, ballot)),
        Record(applied=Position(20, 2)),
    ]
    made.notes()
    again = fresh()
    for record in [*older, *made.state()]:
        again.replay(record)
    again.start(2.0)
    assert [applied.timestamp for applied in again.drain(2.0).apply] == [10, 20]
    assert again.acceptors[2].entries == entries


def test_a_candidates_ballot_outlives_the_segment_that_it_stands_in() -> None:
    made = started()
    made.tick(1.1)
    made.drain(1.1)
    assert made.own.ballot
    (candidate,) = [record.candidate for record in made.state() if record.candidate]
    assert candidate == LogBallot(1, made.own.ballot)


def test_what_a_checkpoint_covers_is_durable_with_it() -> None:
    """Else the log's leader would send it again and again to a node whose vote can wait."""
    made = started()

    def sync(ready: Ready) -> None:
        for to, message, call in ready.send_after:
            if to == made.me:
                made.step(made.me, message, 1.0, call)

    def length() -> int:
        ready = tell(made, 2, Accept(2, BALLOT, 8, [], False, NOTHING, [1]))
        (answer,) = [message for _, message, _ in ready.send if isinstance(message, Accepted)]
        assert answer.vote == Vote.ACCEPTED
        return int(answer.length)

    sync(tell(made, 2, Accept(2, BALLOT, 0, [Entry(10, b"10"), Entry(20, b"20")], True, NOTHING, [])))
    assert length() == 2
    made.install(Cut((80, 2), {2: Covered(8, BALLOT, 80)}, 0), 1.0, 1)
    ready = made.drain(1.0)
    assert length() == 2
    sync(ready)
    assert length() == 8


def test_a_segment_does_not_begin_with_what_is_still_to_be_journaled() -> None:
    made = started()
    made.step(2, accept(2, 0, 10), 1.0)
    assert not made.drained
    with pytest.raises(AssertionError, match="later"):
        made.state()
    made.drain(1.0)
    assert made.drained


def test_each_start_is_another_life() -> None:
    made = started(Record(life=6 << LIFE_BITS | 99))
    assert made.incarnations.life >> LIFE_BITS == 7
    made = fresh()
    made.start(1.0)
    assert [record.life for record in made.drain(1.0).journal if record.life] == [made.incarnations.life]
    assert made.incarnations.life >> LIFE_BITS == 1


def test_what_was_noted_of_a_peer_is_replayed() -> None:
    assert started(Record(noted=Noted(2, 1, 3)), Record(noted=Noted(2, 2, 1))).incarnations.lives[2] == (2, 1)


# ------------------------------------------------------------------------------- where a checkpoint stands


def test_a_checkpoint_stands_where_its_entries_are_executed() -> None:
    made = with_entries()
    nothing = Covered(0, 0, 0)
    assert made.cut() == Cut(
        (20, 2), {1: nothing, 2: Covered(2, ballot_of(1, 2), 20), 3: nothing}, made.clock.time
    )


def test_a_checkpoint_of_another_node_brings_nothing_back() -> None:
    """Positions, clock, promised and accepted only grow, whatever comes in which order."""
    cuts = [
        Cut((10, 2), {1: Covered(0, 0, 0), 2: Covered(1, BALLOT, 10), 3: Covered(5, 300, 400)}, 7),
        Cut((40, 2), {1: Covered(0, 0, 0), 2: Covered(4, BALLOT, 40), 3: Covered(1, 300, 20)}, 10**9),
        Cut((30, 2), {1: Covered(3, 700, 30), 2: Covered(3, BALLOT + 256, 30), 3: Covered(0, 0, 0)}, 8),
    ]
    for seed in range(20):
        made = with_entries()
        for cut in Random(seed).choices(cuts, k=6):
            before = made.cut()
            ballots = [(a.promised, a.accepted, a.chosen, a.base) for a in made.acceptors.values()]
            frontiers = {log: of.frontier for log, of in made.learner.logs.items()}
            newer = made.install(cut, 1.0, 1)
            after = made.cut()
            assert newer == (cut.position > before.position)
            assert after.position == max(before.position, cut.position)
            assert after.clock == max(before.clock, cut.clock)
            for log in LOGS:
                assert after.logs[log].executed >= max(before.logs[log].executed, cut.logs[log].executed)
                assert after.logs[log].last >= max(before.logs[log].last, cut.logs[log].last)
                assert made.learner.logs[log].frontier >= frontiers[log]
                if made.acceptors[log].chosen == cut.logs[log].executed:
                    assert made.acceptors[log].accepted >= made.acceptors[log].evidence
            for now, then in zip(made.acceptors.values(), ballots, strict=True):
                assert all(
                    x >= y
                    for x, y in zip((now.promised, now.accepted, now.chosen, now.base), then, strict=True)
                )
            made.drain(1.0)


def test_installing_journals_what_was_noted_before_and_then_the_checkpoint() -> None:
    made = with_entries()
    made.install(Cut((50, 2), {2: Covered(4, BALLOT, 50)}, 10**9), 1.0, 3)
    journal = made.drain(1.0).journal
    kinds = [next(name for name in record._fields if getattr(record, name) is not None) for record in journal]
    assert kinds == ["chosen", "applied", "installed", "reservation"]
    assert journal[2].installed == 3
    assert journal[3].reservation == 10**9 + RESERVE


def test_a_leader_whose_checkpoint_shows_a_later_ballot_has_lost_the_log() -> None:
    made = started()
    made.tick(1.1)
    made.drain(1.1)
    for peer in (1, 2):
        tell(
            made,
            peer,
            Promise(1, made.own.ballot, 0, Verdict.PROMISED, made.own.ballot, 0, [], Fact(1, 0, 0, 0)),
        )
    assert made.own.leading
    made.install(Cut((50, 2), {1: Covered(1, made.own.ballot + 256, 50)}, 60), 1.1, 1)
    assert not made.own.leading


def test_commands_of_ours_that_a_checkpoint_covers_may_have_been_applied() -> None:
    made = started()
    made.way.commands.pending = {10: (b"a", "first"), 30: (b"b", "second")}
    made.install(Cut((20, 2), {1: Covered(1, BALLOT, 10)}, 60), 1.0, 1)
    assert list(made.drain(1.0).lost) == ["first"]
    assert list(made.drain(1.0).lost) == []
    assert list(made.way.commands.pending) == [30]


def test_reads_that_rode_on_commands_that_a_checkpoint_covers_have_a_round() -> None:
    made = started()
    made.way.commands.pending, made.way.reads.riding = {10: (b"a", "first")}, {10: ["read"]}
    made.install(Cut((20, 2), {1: Covered(1, BALLOT, 10)}, 60), 1.0, 1)
    made.drain(1.0)
    assert made.way.reads.round is not None
    assert made.way.reads.round.reads == ["read"]
    assert not made.way.reads.riding


# ------------------------------------------------------------------------------------------- what is given up


def checkpointed(made: Node) -> None:
    made.checkpointed(made.cut())
    made.tick(1.0)


def test_an_entry_is_given_up_when_all_hold_it_and_a_frame_has_noted_it() -> None:
    made = with_entries()
    tell(made, 2, holding(0, 3, 0))
    tell(made, 3, holding(0, 1, 0))
    made.tick(1.0 + COMPACT_EVERY)
    assert made.acceptors[2].base == 0, "a checkpoint would lack it, and so would the segment behind that"
    made.notes()
    made.tick(1.0 + 2 * COMPACT_EVERY)
    assert made.acceptors[2].base == 1
    tell(made, 3, holding(0, 3, 0))
    made.tick(1.0 + 2.5 * COMPACT_EVERY)
    assert made.acceptors[2].base == 1, "looked at too often"
    made.tick(1.0 + 3 * COMPACT_EVERY)
    assert made.acceptors[2].base == 2, "30 is not executed"
    assert made.learner.next() == (30, 2)
    made.note(3, 2, 0)
    assert [made.overtook(peer) for peer in (2, 3)] == [False, True], "3 has another disk, without any entry"
    checkpointed(made)
    assert not made.overtook(3)


def test_a_node_says_that_it_holds_what_it_would_know_to_be_chosen_after_a_restart() -> None:
    """Else the others give up what it has to ask for again: it would need a checkpoint for a few entries."""
    made = with_entries()

    def held_when_durable(slot: int, timestamp: int) -> list[list[int]]:
        ready = tell(made, 2, accept(2, slot, timestamp))
        (persisted,) = [message for _, message, _ in ready.send_after if isinstance(message, Persisted)]
        tell(made, 1, persisted)
        made.tick(float(timestamp))
        return [learn.held for learn in sent(made.drain(float(timestamp)), Learn)]

    assert held_when_durable(4, 50) == [[0, 0, 0]] * 2
    made.notes()
    assert held_when_durable(5, 60) == [[0, 3, 0]] * 2


def test_a_peer_that_has_said_nothing_is_not_known_to_hold_anything() -> None:
    made = with_entries()
    tell(made, 2, holding(0, 3, 0))
    checkpointed(made)
    assert made.acceptors[2].base == 0
    tell(made, 3, holding(1, 2))  # of another number of logs
    checkpointed(made)
    assert made.acceptors[2].base == 0


def test_a_node_that_lags_too_far_keeps_nobody_from_giving_up_entries() -> None:
    made = started()
    big = b"x" * (KEEP_BYTES // 4 - KEEP_OVERHEAD)
    entries = [Entry(10 * number, big) for number in range(1, 7)]
    tell(made, 2, Accept(2, BALLOT, 0, entries, True, Fact(2, 6, BALLOT, 60), []))
    tell(made, 1, Learn(0, [Fact(3, 0, 0, 99), Fact(1, 0, 0, 99)], [], Position(0, 0), 0))
    for _ in range(2):
        checkpointed(made)
        assert made.acceptors[2].base == 2, "four fit"
    made.install(Cut((80, 2), {2: Covered(8, BALLOT, 80)}, 0), 1.0, 1)
    checkpointed(made)
    assert (made.acceptors[2].base, made.compaction.measured[2]) == (8, (8, 0))


def test_a_checkpoint_older_than_an_installed_one_gives_up_nothing_more() -> None:
    made = with_entries()
    ours = made.cut()
    made.install(Cut((80, 2), {2: Covered(8, BALLOT, 80)}, 0), 1.0, 1)
    tell(made, 2, Accept(2, BALLOT, 8, [Entry(90, b"90")], False, NOTHING, []))
    made.checkpointed(ours)
    made.tick(1.0)
    assert made.acceptors[2].length == 9


def test_who_lacks_what_a_peer_has_given_up_takes_a_checkpoint() -> None:
    made = started()
    tell(made, 2, Learn(0, [Fact(2, 3, BALLOT, 30)], [], Position(0, 0), 0))
    assert sent(made.drain(1.0), Fetch) == []
    assert tell(made, 3, Fetched(2, 0, [], BALLOT, 0)).checkpoint_from is None, "it holds as little as we do"
    assert tell(made, 2, Fetched(2, 0, [], BALLOT, 2)).checkpoint_from == 2
    assert made.drain(1.0).checkpoint_from is None
    made.install(Cut((20, 2), {2: Covered(2, BALLOT, 20)}, 0), 1.0, 1)
    assert tell(made, 2, Fetched(2, 0, [], BALLOT, 2)).checkpoint_from is None, "late"
    assert sent(tell(made, 2, Fetched(2, 2, [Entry(30, b"30")], BALLOT, 2)), Fetch) == []
    assert made.acceptors[2].chosen == 3


# ------------------------------------------------------------------------------------------------- stories


def some_commands(cluster: Cluster, count: int, nodes: tuple[int, ...]) -> None:
    for number in range(count):
        node = nodes[number % len(nodes)]
        answer = cluster.put(node, f"key {number % 40}", f"value {number}")
        cluster.run_until(answer.answered, within_s=3)


def compact(cluster: Cluster, *nodes: int) -> None:
    """These nodes make a checkpoint, and give up all entries that it has, as if a node lagged too far."""
    for node in nodes:
        machine = cluster[node]
        made = machine.files.newest + 1
        machine.do(lambda replica=machine.replica: (replica.roll(), replica.turn()))
        cluster.run_until(lambda files=machine.files, made=made: files.newest >= made, within_s=1)
        for log, acceptor in machine.core.acceptors.items():
            acceptor.drop(
                min(machine.core.compaction.checkpointed_to[log], machine.core.learner.logs[log].executed)
            )


def behind() -> Cluster:
    """Node 5 has been down for long: the others have given up what it lacks."""
    cluster = Cluster()
    some_commands(cluster, 10, (1, 2, 3, 4, 5))
    cluster.run(0.3)
    cluster.crash(5)
    some_commands(cluster, 50, (1, 2, 3, 4))
    cluster.run(0.3)
    compact(cluster, 1, 2, 3, 4)
    return cluster


def asked(cluster: Cluster, offset: int | None = None) -> list[FetchCheckpoint]:
    return [
        envelope.message
        for envelope in cluster.sent
        if isinstance(envelope.message, FetchCheckpoint)
        and (offset is None or envelope.message.offset == offset)
    ]


def test_a_node_that_was_down_for_long_takes_a_checkpoint_while_all_go_on_serving() -> None:
    cluster = behind()
    cluster.restart(5)
    before = cluster.core(5).acceptors[1].chosen
    cluster.run_until(lambda: cluster[5].replica.download.peer is not None, within_s=2)
    answer = cluster.put(1, "meanwhile", "1")
    cluster.run_until(answer.answered, within_s=2)
    cluster.run_until(lambda: cluster[5].replica.installed == 1, within_s=5)
    assert cluster.core(5).acceptors[1].base > before
    cluster.assert_equal()
    assert cluster.get(5, "key 9") == "value 49"
    cluster.run_until(lambda: cluster.core(5).ready, within_s=5)
    answer = cluster.put(5, "x", "5")
    cluster.run_until(answer.answered, within_s=2)
    assert cluster.get(2, "x") == "5"


def test_a_node_recovers_from_its_own_checkpoint_and_the_journal_behind_it() -> None:
    cluster = Cluster()
    session = cluster.open_session(3)
    request = RequestId(session, 1, 1)
    first = cluster.increment(3, "n", request)
    cluster.run_until(first.answered, within_s=1)
    some_commands(cluster, 20, (1, 2, 3))
    compact(cluster, *cluster.ids)
    some_commands(cluster, 20, (3, 4, 5))
    for node in cluster.ids:
        cluster.crash(node)
    for node in cluster.ids:
        cluster.restart(node)
        assert cluster[node].files.newest
    cluster.run_until(lambda: all(cluster.core(node).ready for node in cluster.ids), within_s=5)
    again = cluster.increment(4, "n", request)
    cluster.run_until(again.answered, within_s=2)
    assert again.text == "1", "sessions are part of the checkpoint"
    cluster.assert_equal()


def test_what_is_pending_when_a_segment_begins_is_not_forgotten() -> None:
    cluster = Cluster()
    cluster.hold_disk(2)
    cluster.run_until(
        cluster.put(1, "x", "1").answered, within_s=1
    )  # on the disks of 1, 3, 4 and 5; 2 writes it
    cluster[2].replica.roll()
    cluster.run_until(cluster.put(1, "y", "1").answered, within_s=1)  # 2 holds it, and its frame waits
    assert cluster[2].replica.records
    cluster.sync(2)
    cluster.run(0.1)
    assert cluster[2].files.newest == 1
    cluster.crash(2)
    cluster.restart(2)
    assert cluster.core(2).acceptors[1].length == 2
    cluster.assert_equal()


def test_a_candidate_that_lacks_what_was_given_up_catches_up_before_it_leads() -> None:
    """Behind: an entry that was given up never looks like one that was never accepted."""
    cluster = behind()
    cluster.restart(5)
    cluster.core(5).way.stand(1, 0, cluster.now)
    cluster.run_until(
        lambda: any(e.message.verdict == Verdict.BEHIND for e in cluster.sent_messages(Promise, 2, 5)),
        within_s=2,
    )
    assert not cluster.core(5).proposers[1].leading
    cluster.assert_equal()
    for node in cluster.ids:
        assert cluster.get(node, "key 9") == "value 49"


def test_a_download_goes_on_where_it_was_interrupted() -> None:
    cluster = behind()
    cluster.restart(5)
    cluster.run_until(lambda: cluster[5].replica.download.offset > 300, within_s=2)
    download = cluster[5].replica.download
    peer, offset = download.peer, download.offset
    cluster.cut(5, peer)
    cluster.run(1.0)
    assert (download.peer, download.offset) == (peer, offset)
    assert 2 <= len(asked(cluster, offset)) <= 8, "asked for again, at a bounded rate"
    cluster.heal()
    cluster.run_until(lambda: cluster[5].replica.installed == 1, within_s=5)
    assert len(asked(cluster, 0)) == 1, "not begun anew"
    cluster.assert_equal()


def test_a_download_from_a_node_that_died_is_begun_anew_with_another() -> None:
    cluster = behind()
    cluster.restart(5)
    cluster.run_until(lambda: cluster[5].replica.download.offset > 300, within_s=2)
    peer = cluster[5].replica.download.peer
    cluster.crash(peer)
    cluster.run_until(lambda: cluster[5].replica.installed == 1, within_s=GIVE_UP + 5)
    cluster.restart(peer)
    cluster.assert_equal()


def test_a_checkpoint_that_was_replaced_during_the_download_is_taken_from_its_beginning() -> None:
    cluster = behind()
    cluster.restart(5)
    cluster.run_until(lambda: cluster[5].replica.download.offset > 300, within_s=2)
    download = cluster[5].replica.download
    peer, number = download.peer, download.number
    with cluster.drop(Chunk):
        some_commands(cluster, 5, tuple(node for node in (1, 2, 3, 4) if node != peer))
        compact(cluster, peer)
        del cluster[peer].files.checkpoints[number]
    cluster.run_until(lambda: cluster[5].replica.installed == 1, within_s=5)
    assert len(asked(cluster, 0)) == 2
    assert download.number == 0
    cluster.assert_equal()


def test_pieces_that_are_lost_doubled_or_late_do_no_harm() -> None:
    cluster = behind()
    cluster.restart(5)
    random = Random(3)
    with cluster.drop(Chunk, FetchCheckpoint, where=lambda message: random.random() < 0.2):
        while not cluster[5].replica.installed:
            cluster.run(0.02)
            for sender in (1, 2, 3, 4):
                for envelope in cluster.sent_messages(Chunk, sender, 5)[-3:]:
                    cluster.deliver(envelope)
    cluster.assert_equal()
    assert cluster[5].replica.installed == 1


def test_a_checkpoint_that_was_spoiled_is_not_installed() -> None:
    cluster = behind()
    cluster[5].files.broken = True
    cluster.restart(5)
    cluster.run(2)
    assert len(asked(cluster, 0)) > 2
    assert cluster[5].replica.installed == 0
    assert cluster[5].store.get("key 39").outcome == Outcome.NOT_FOUND
    cluster[5].files.broken = False
    cluster.assert_equal()


def test_a_node_without_room_for_a_checkpoint_tries_again() -> None:
    cluster = behind()
    cluster[5].files.no_room = True
    cluster.restart(5)
    cluster.run(2)
    assert cluster[5].replica.installed == 0
    cluster[5].files.no_room = False
    cluster.assert_equal()
    assert cluster[5].replica.installed == 1


def test_who_has_no_checkpoint_yet_makes_one_when_it_is_asked_for() -> None:
    cluster = Cluster()
    machine = cluster[1]
    machine.do(lambda: (machine.replica.step(2, FetchCheckpoint(0, 0), None), machine.replica.turn()))
    assert cluster.sent_messages(Chunk, 1, 2)[-1].message.number == 0
    cluster.run(0.1)
    assert machine.files.newest == 1
    machine.do(lambda: (machine.replica.step(2, FetchCheckpoint(9, 0), None), machine.replica.turn()))
    cluster.run(0.1)
    assert machine.files.newest == 1, "it has one, though not that one"


def test_who_has_given_up_more_than_its_checkpoint_has_makes_a_new_one() -> None:
    cluster = Cluster()
    some_commands(cluster, 10, (1, 2, 3, 4, 5))
    compact(cluster, 1)
    some_commands(cluster, 10, (1, 2, 3, 4, 5))
    machine = cluster[1]
    cluster.run_until(
        lambda: cluster.core(1).acceptors[1].base > cluster.core(1).compaction.checkpointed_to[1], within_s=5
    )
    assert not cluster.core(1).overtook(2), "2 holds all"
    cluster.wipe(2)  # so that 1 does not hear from it
    cluster.core(1).note(2, 2, 0)
    assert cluster.core(1).overtook(2)

    def ask() -> Chunk:
        machine.do(lambda: (machine.replica.step(2, FetchCheckpoint(0, 0), None), machine.replica.turn()))
        answer: Chunk = cluster.sent_messages(Chunk, 1, 2)[-1].message
        return answer

    assert ask().number == 0
    cluster.run_until(lambda: machine.files.newest == 2, within_s=1)
    assert not cluster.core(1).overtook(2)
    assert ask().number == 2


def test_an_owner_that_a_checkpoint_overtakes_says_that_its_commands_may_have_been_done() -> None:
    """It was cut off with them, and others finished its log: whether they were applied, nobody knows."""
    cluster = Cluster()
    with cluster.deliver_only(Accept, to={1, 2}, sender={1}):
        answer = cluster.increment(1, "n")
        cluster.run(0.01)
    cluster.isolate(1)
    some_commands(cluster, 20, (2, 3, 4, 5))
    cluster.run(0.3)
    compact(cluster, 2, 3, 4, 5)
    cluster.heal()
    cluster.run_until(answer.answered, within_s=5)
    assert isinstance(answer.value, Unknown)
    cluster.assert_equal()
    assert cluster.get(1, "n") == "1", "it was, and once"


def test_what_rests_on_an_installed_checkpoint_leaves_when_that_is_durable() -> None:
    cluster = behind()
    cluster.restart(5)
    cluster.run_until(lambda: cluster[5].replica.download.offset > 300, within_s=2)
    cluster.hold_disk(5)
    cluster.run_until(lambda: cluster[5].replica.installed == 1, within_s=2)
    cluster.crash(5)
    cluster.restart(5)
    assert cluster.core(5).acceptors[1].base == 0, "forgotten, and nobody was told"
    cluster.assert_equal()


def test_a_checkpoint_that_came_too_late_leaves_the_store_alone() -> None:
    cluster = Cluster()
    some_commands(cluster, 10, (1, 2))
    cluster.run(0.3)
    machine = cluster[3]
    position, cut = machine.store.position, machine.core.cut()
    number = machine.files._add(b"{}")
    machine.do(lambda: machine.replica._install(number, cut._replace(position=(1, 1)), {}))
    assert machine.store.position == position


def test_a_restart_installs_again_what_was_installed() -> None:
    cluster = behind()
    cluster[5].checkpoint_takes = 100.0  # none of its own
    cluster.restart(5)
    cluster.run_until(lambda: cluster[5].replica.installed == 1, within_s=5)
    cluster.run(0.1)
    some_commands(cluster, 5, (1, 5))
    cluster.run(0.3)
    base = cluster.core(5).acceptors[2].base
    assert base > 0
    cluster.crash(5)
    cluster.restart(5)
    assert cluster.core(5).acceptors[2].base >= base
    cluster.assert_equal()


def test_a_segment_that_begins_with_an_installed_checkpoint_leaves_out_no_entry() -> None:
    """What was applied since the last frame is in no closed segment, though it has been noted."""
    made = with_entries()
    made.notes()
    closed = made.cut()
    tell(made, 1, Learn(0, [Fact(3, 0, 0, 99), Fact(1, 0, 0, 99)], [], Position(0, 0), 0))
    assert made.learner.position == (30, 2)
    other = Cut((20, 2), {1: Covered(0, 0, 0), 2: Covered(2, BALLOT, 20), 3: Covered(1, 300, 15)}, 7)
    made.install(other, 1.0, 9)
    frame = made.state(made.drain(1.0).journal)
    assert frame[0].installed == 9
    again = fresh()
    again.install(closed)
    again.install(other)
    for record in frame[1:]:
        again.replay(record)
    again.start(2.0)
    assert [applied.timestamp for applied in again.drain(2.0).apply] == [30]
    assert again.acceptors[2].length == 4


# ------------------------------------------------------------------------------------------ rolling hashes


def spoil(cluster: Cluster, *nodes: int) -> None:
    """A value changes in these nodes' memory, and then somebody compares it."""
    for node in nodes:
        cluster[node].store.database.db["n"] = "spoiled"


def stopped(cluster: Cluster, seconds: float) -> set[int]:
    """The nodes that stop within this time: their shells would end them."""
    found = set()
    for node in cluster.ids:
        cluster[node].on_diverged = found.add
    cluster.run(seconds)
    return found


@pytest.mark.parametrize(("nodes", "wrong", "stop"), [
    (5, (3,), {3}), (5, (3, 4), {3, 4}), (3, (2,), {2}),
])  # fmt: skip
def test_the_few_that_differ_stop(nodes: int, wrong: tuple[int, ...], stop: set[int]) -> None:
    cluster = Cluster(nodes=nodes)
    cluster.run_until(cluster.increment(1, "n").answered, within_s=1)
    cluster.run(0.3)
    spoil(cluster, *wrong)
    cluster.run_until(cluster.increment(1, "n").answered, within_s=1)
    assert stopped(cluster, 3) == stop


def test_the_few_that_differ_stop_case() -> None:
    """Without arguments, for tests/harness/mutants.py."""
    test_the_few_that_differ_stop(5, (3,), {3})


def test_where_as_many_differ_as_agree_none_goes_on_in_silence() -> None:
    cluster = Cluster(nodes=3)
    cluster.run_until(cluster.increment(1, "n").answered, within_s=1)
    cluster.run(0.3)
    cluster.crash(3)
    spoil(cluster, 2)
    cluster.run_until(cluster.increment(1, "n").answered, within_s=1)
    assert stopped(cluster, DOUBT / 2) == set()
    assert stopped(cluster, 3) == {1, 2}


def test_a_peer_that_agrees_again_is_no_longer_doubted() -> None:
    made = started()
    made.hashed((10, 2), 5)
    tell(made, 2, Learn(0, [], [], Position(10, 2), 6))
    tell(made, 3, Learn(0, [], [], Position(10, 2), 5))
    made.tick(5.0)
    assert made.divergence.doubt == 1.0
    tell(made, 2, Learn(0, [], [], Position(10, 2), 5))
    made.tick(6.0)
    assert made.divergence.doubt is None


def test_hashes_of_recent_entries_only_are_remembered() -> None:
    made = started()
    for timestamp in range(1, 4 * RECENT + 1):
        made.hashed((timestamp, 2), timestamp)
        assert len(made.divergence.hashes) + len(made.divergence.hashes_before) < 2 * RECENT
    tell(made, 2, Learn(0, [], [], Position(5, 2), 6))
    assert made.divergence.doubt is None
    tell(made, 2, Learn(0, [], [], Position(3 * RECENT + 1, 2), 6))
    assert made.divergence.doubt is not None


def test_the_hash_outlives_a_restart_and_a_checkpoint() -> None:
    cluster = behind()
    cluster.restart(5)
    cluster.run_until(lambda: cluster[5].replica.installed == 1, within_s=5)
    cluster.assert_equal()
    cluster.crash(4)
    cluster.restart(4)
    cluster.assert_equal()
    assert len({cluster[node].store.hash for node in cluster.ids}) == 1
    assert cluster[1].store.hash != 0


def test_a_healthy_node_that_is_a_little_behind_is_not_stopped_by_one_that_is_wrong() -> None:
    made = Node(1, (1, 2, 3, 4, 5), Random(1))
    made.start(1.0)
    now = 1.0
    for step in range(10, 400):
        now += 0.01
        made.hashed((step, 2), step)
        for peer in (2, 3, 4):
            made.step(peer, Learn(0, [], [], Position(step + 1, 2), step + 1), now)
        made.step(5, Learn(0, [], [], Position(step - 1, 2), 12345), now)
        made.tick(now)
        made.drain(now)


def test_a_node_knows_what_its_peers_have_told_to_have_applied() -> None:
    """A newer command waits for it, see formats.py."""
    cluster = Cluster(nodes=3)
    cluster.cut(1, 3)
    put = cluster.put(2, "k", "v")
    cluster.run_until(put.answered, within_s=1)
    cluster.run(0.5)
    applied = cluster.core(1).report().applied
    assert applied[2] == cluster[2].store.position > applied[3], "node 3 has told node 1 nothing since"
