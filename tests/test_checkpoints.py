"""Checkpoints: what a journal's new segment begins with, what it covers, what is given up for it.

First the core by itself, then stories: a node that was down for long, a transfer that is disturbed.
"""

from random import Random
from typing import Any

import pytest

from interface import (
    Accept,
    Chosen,
    Entry,
    Fact,
    Fetch,
    Fetched,
    Held,
    Learn,
    LogBallot,
    Noted,
    Position,
    Prepare,
    Promise,
    Record,
    Verdict,
)
from multipaxos import (
    COMPACT_EVERY,
    KEEP_BYTES,
    KEEP_OVERHEAD,
    RESERVE,
    Covered,
    Cut,
    Node,
    Ready,
    ballot_of,
)

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
        log, ballot, start, entries, start == 0, Fact(log, chosen, ballot if chosen else 0, frontier)
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
    made.lives[3] = (2, 5)
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
    assert again.clock == made.reserving
    assert again.life == made.life + 1
    assert again.lives == made.lives
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


def test_a_segment_does_not_begin_with_what_is_still_to_be_journaled() -> None:
    made = started()
    made.step(2, accept(2, 0, 10), 1.0)
    assert not made.drained
    with pytest.raises(AssertionError, match="later"):
        made.state()
    made.drain(1.0)
    assert made.drained


def test_each_start_is_another_life() -> None:
    made = started(Record(life=6))
    assert made.life == 7
    made = fresh()
    made.start(1.0)
    assert [record.life for record in made.drain(1.0).journal if record.life] == [1]


def test_what_was_noted_of_a_peer_is_replayed() -> None:
    assert started(Record(noted=Noted(2, 1, 3)), Record(noted=Noted(2, 2, 1))).lives[2] == (2, 1)


# ------------------------------------------------------------------------------- where a checkpoint stands


def test_a_checkpoint_stands_where_its_entries_are_executed() -> None:
    made = with_entries()
    nothing = Covered(0, 0, 0)
    assert made.cut() == Cut(
        (20, 2), {1: nothing, 2: Covered(2, ballot_of(1, 2), 20), 3: nothing}, made.clock
    )


def test_a_checkpoint_of_another_node_brings_nothing_back() -> None:
    """Section 10: positions, clock, promised and accepted only grow, whatever comes in which order."""
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
            frontiers = dict(made.learner.frontier)
            newer = made.install(cut, 1.0, 1)
            after = made.cut()
            assert newer == (cut.position > before.position)
            assert after.position == max(before.position, cut.position)
            assert after.clock == max(before.clock, cut.clock)
            for log in LOGS:
                assert after.logs[log].executed >= max(before.logs[log].executed, cut.logs[log].executed)
                assert after.logs[log].last >= max(before.logs[log].last, cut.logs[log].last)
                assert made.learner.frontier[log] >= frontiers[log]
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
    made.pending = {10: (b"a", "first"), 30: (b"b", "second")}
    made.install(Cut((20, 2), {1: Covered(1, BALLOT, 10)}, 60), 1.0, 1)
    assert list(made.drain(1.0).lost) == ["first"]
    assert list(made.drain(1.0).lost) == []
    assert list(made.pending) == [30]


# ------------------------------------------------------------------------------------------- what is given up


def checkpointed(made: Node) -> None:
    made.checkpointed(made.cut())
    made.tick(1.0)


def test_an_entry_is_given_up_when_a_checkpoint_has_it_and_all_nodes_hold_it() -> None:
    made = with_entries()
    tell(made, 2, holding(0, 3, 0))
    tell(made, 3, holding(0, 1, 0))
    made.tick(1.0 + COMPACT_EVERY)
    assert made.acceptors[2].base == 0, "no checkpoint has it"
    checkpointed(made)
    assert made.acceptors[2].base == 1
    tell(made, 3, holding(0, 3, 0))
    made.tick(1.0 + COMPACT_EVERY / 2)
    assert made.acceptors[2].base == 1, "looked at too often"
    made.tick(2.0 + COMPACT_EVERY)
    assert made.acceptors[2].base == 2, "30 is not executed"
    assert made.learner.next() == (30, 2)


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
    tell(made, 2, Accept(2, BALLOT, 0, entries, True, Fact(2, 6, BALLOT, 60)))
    tell(made, 1, Learn(0, [Fact(3, 0, 0, 99), Fact(1, 0, 0, 99)], [], Position(0, 0), 0))
    for _ in range(2):
        checkpointed(made)
        assert made.acceptors[2].base == 2, "four fit"
    made.install(Cut((80, 2), {2: Covered(8, BALLOT, 80)}, 0), 1.0, 1)
    checkpointed(made)
    assert (made.acceptors[2].base, made.measured[2]) == (8, (8, 0))


def test_a_checkpoint_older_than_an_installed_one_gives_up_nothing_more() -> None:
    made = with_entries()
    ours = made.cut()
    made.install(Cut((80, 2), {2: Covered(8, BALLOT, 80)}, 0), 1.0, 1)
    tell(made, 2, Accept(2, BALLOT, 8, [Entry(90, b"90")], False, NOTHING))
    made.checkpointed(ours)
    made.tick(1.0)
    assert made.acceptors[2].length == 9


def test_who_lacks_what_a_peer_has_given_up_takes_a_checkpoint() -> None:
    made = started()
    tell(made, 2, Learn(0, [Fact(2, 3, BALLOT, 30)], [], Position(0, 0), 0))
    assert sent(made.drain(1.0), Fetch) == []
    assert tell(made, 3, Fetched(2, 0, [], BALLOT, 0)).catch_up is None, "it holds as little as we do"
    assert tell(made, 2, Fetched(2, 0, [], BALLOT, 2)).catch_up == 2
    assert made.drain(1.0).catch_up is None
    made.install(Cut((20, 2), {2: Covered(2, BALLOT, 20)}, 0), 1.0, 1)
    assert tell(made, 2, Fetched(2, 0, [], BALLOT, 2)).catch_up is None, "late"
    assert sent(tell(made, 2, Fetched(2, 2, [Entry(30, b"30")], BALLOT, 2)), Fetch) == []
    assert made.acceptors[2].chosen == 3
