"""The acceptor, against every small combination of ballots and lengths: what it may and may not do."""

from collections.abc import Iterator
from itertools import product

import pytest

from paxoskv.multipaxos import FETCH_BYTES, Acceptor, Diverged
from paxoskv.wire.structs import (
    Accept,
    Chosen,
    Entry,
    Fact,
    Held,
    Prepare,
    Promise,
    Record,
    Verdict,
    Vote,
)

LOG = 1
BALLOTS = (1, 2, 3)
NOTHING = Fact(LOG, 0, 0, 0)
SHARED = Entry(10, b"chosen")
LOGS = {  # what the leader of each ballot proposes; the first entry may be chosen, so that all have it
    ballot: [SHARED, *(Entry(10 * slot + ballot, b"entry") for slot in (2, 3))] for ballot in BALLOTS
}
LENGTHS = range(4)


def acceptor(promised: int = 0, accepted: int = 0, length: int = 0, chosen: int = 0) -> Acceptor:
    """An acceptor in this state, which it has come to by messages."""
    made = Acceptor(LOG, [].append)
    if accepted:
        assert (
            made.on_accept(Accept(LOG, accepted, 0, LOGS[accepted][:length], True, NOTHING, []))
            == Vote.ACCEPTED
        )
    made.learn(chosen, accepted)
    if promised > accepted:
        made.on_prepare(Prepare(LOG, promised, 0, 0), NOTHING)
    assert state(made)[:2] == (promised, accepted)
    return made


def journal(made: Acceptor) -> list[Record]:
    """What it has journaled: it was made with the append of a list."""
    records: list[Record] = made.journal.__self__
    return records


def state(made: Acceptor) -> tuple[int, int, list[Entry], int, int]:
    return made.promised, made.accepted, list(made.entries), made.chosen, made.evidence


def states() -> Iterator[tuple[int, int, int, int]]:
    """All (promised, accepted, length, chosen) with one entry chosen at most."""
    for promised, accepted, length, chosen in product((0, *BALLOTS), (0, *BALLOTS), LENGTHS, (0, 1)):
        if accepted <= promised and (length == 0 or accepted > 0) and chosen <= length:
            yield promised, accepted, length, chosen


def replayed(made: Acceptor) -> Acceptor:
    """Return what a restart makes of the journal; `chosen` is noted by the node, not by the acceptor."""
    again = Acceptor(LOG, [].append)
    for record in journal(made):
        again.replay(record)
    return again


# ---------------------------------------------------------------------------------------------------- prepare


@pytest.mark.parametrize("ballot", BALLOTS)
def test_a_promise_is_given_unless_a_higher_ballot_has_it(ballot: int) -> None:
    for before in states():
        made = acceptor(*before)
        promise = made.on_prepare(Prepare(LOG, ballot, 0, 0), NOTHING)
        assert made.promised == promise.promised == max(ballot, before[0])
        assert promise.verdict == (Verdict.PROMISED if ballot >= before[0] else Verdict.NACK)
        assert state(made)[1:] == state(acceptor(*before))[1:], "a promise changes no entries"
        assert replayed(made).promised == made.promised


@pytest.mark.parametrize("from_slot", LENGTHS)
def test_a_promise_shows_all_that_is_held_from_the_slot_asked_for(from_slot: int) -> None:
    for before in states():
        promise = acceptor(*before).on_prepare(Prepare(LOG, 3, from_slot, 0), NOTHING)
        assert promise.accepted == before[1]
        assert promise.entries == (LOGS[before[1]][from_slot : before[2]] if before[1] else [])
        assert (promise.log, promise.ballot, promise.from_slot) == (LOG, 3, from_slot)


def test_a_refusal_shows_nothing() -> None:
    promise = acceptor(3, 3, 3).on_prepare(Prepare(LOG, 2, 0, 0), NOTHING)
    assert promise == Promise(LOG, 2, 0, Verdict.NACK, 3, 3, [], NOTHING)


def test_a_promise_repeated_is_journaled_once() -> None:
    made = acceptor()
    for _ in range(3):
        made.on_prepare(Prepare(LOG, 1, 0, 0), NOTHING)
    assert len(journal(made)) == 1


def test_an_entry_given_up_does_not_look_like_one_never_accepted() -> None:
    made = acceptor(2, 2, 3)
    made.learn(2, 2)
    made.drop(2)
    for from_slot in (0, 1):
        promise = made.on_prepare(Prepare(LOG, 3, from_slot, 0), NOTHING)
        assert promise.verdict == Verdict.BEHIND
        assert made.promised == 2
    promise = made.on_prepare(Prepare(LOG, 3, 2, 0), NOTHING)
    assert promise.verdict == Verdict.PROMISED
    assert promise.entries == LOGS[2][2:]


def test_who_lacks_more_chosen_entries_than_fit_a_frame_is_behind() -> None:
    made = Acceptor(LOG, [].append)
    half = Entry(1, b"x" * (FETCH_BYTES // 2))
    made.on_accept(Accept(LOG, 1, 0, [half, half, half], True, NOTHING, []))
    made.learn(3, 1)
    assert made.on_prepare(Prepare(LOG, 2, 0, 0), NOTHING).verdict == Verdict.BEHIND
    assert made.on_prepare(Prepare(LOG, 2, 2, 0), NOTHING).verdict == Verdict.PROMISED


# ----------------------------------------------------------------------------------------------------- accept


@pytest.mark.parametrize("ballot", BALLOTS)
@pytest.mark.parametrize("sync", [True, False])
def test_whatever_arrives_a_vote_says_only_what_is_true(ballot: int, sync: bool) -> None:
    """All states, all starts, all lengths."""
    for before, start, count in product(states(), LENGTHS, LENGTHS):
        if start + count > 3:
            continue
        made = acceptor(*before)
        promised, accepted, entries, chosen, evidence = state(made)
        vote = made.on_accept(
            Accept(LOG, ballot, start, LOGS[ballot][start : start + count], sync, NOTHING, [])
        )
        case = f"{before} ballot {ballot} start {start} count {count} sync {sync}: {vote}"
        if ballot < promised:
            assert vote == Vote.REFUSED, case
        if vote == Vote.ACCEPTED:
            assert made.accepted == ballot <= made.promised, case
            assert made.entries == LOGS[ballot][: made.length], f"not a prefix of its leader's log: {case}"
        else:
            assert state(made) == (promised, accepted, entries, chosen, evidence), (
                f"refused, and changed: {case}"
            )
        if accepted == ballot:
            assert made.length >= len(entries), f"cut at one ballot: {case}"
        assert made.promised >= promised
        assert made.accepted >= accepted
        assert made.entries[:chosen] == entries[:chosen], f"chosen entries changed: {case}"
        assert state(replayed(made))[:3] == state(made)[:3], f"not all journaled: {case}"


def test_the_first_accept_of_a_ballot_must_be_its_sync() -> None:
    made = acceptor(1, 1, 2)
    assert made.on_accept(Accept(LOG, 2, 0, LOGS[2], False, NOTHING, [])) == Vote.NEEDS_SYNC
    assert made.on_accept(Accept(LOG, 2, 0, LOGS[2][:2], True, NOTHING, [])) == Vote.ACCEPTED
    assert made.entries == LOGS[2][:2]
    assert made.on_accept(Accept(LOG, 2, 2, LOGS[2][2:], False, NOTHING, [])) == Vote.ACCEPTED
    assert made.entries == LOGS[2]


def test_the_sync_of_a_new_ballot_drops_the_end_of_the_old_log() -> None:
    made = acceptor(1, 1, 3)
    assert made.on_accept(Accept(LOG, 2, 0, LOGS[2][:1], True, NOTHING, [])) == Vote.ACCEPTED
    assert made.entries == LOGS[2][:1] and replayed(made).entries == LOGS[2][:1]


def test_a_sync_that_starts_above_what_is_known_to_be_chosen_is_not_taken() -> None:
    made = acceptor(1, 1, 2)
    assert made.on_accept(Accept(LOG, 2, 1, LOGS[2][1:], True, NOTHING, [])) == Vote.NEEDS_SYNC
    made.learn(1, 1)
    assert made.on_accept(Accept(LOG, 2, 1, LOGS[2][1:], True, NOTHING, [])) == Vote.ACCEPTED


def test_a_late_sync_shorter_than_what_is_chosen_cuts_nothing() -> None:
    """N23: only a checkpoint without its evidence can bring an acceptor here."""
    made = acceptor(2, 2, 3)
    made.learn(3, 2)
    assert made.on_accept(Accept(LOG, 3, 0, LOGS[2][:2], True, NOTHING, [])) == Vote.NEEDS_SYNC
    assert made.entries == LOGS[2]


def test_an_accept_repeated_is_journaled_once() -> None:
    made = acceptor()
    for _ in range(3):
        made.on_accept(Accept(LOG, 1, 0, LOGS[1], True, NOTHING, []))
    assert len(journal(made)) == 1


def test_a_vote_at_a_ballot_is_a_promise_too() -> None:
    made = acceptor(1)
    made.on_accept(Accept(LOG, 3, 0, [], True, NOTHING, []))
    assert made.on_prepare(Prepare(LOG, 2, 0, 0), NOTHING).verdict == Verdict.NACK


# --------------------------------------------------------------------------------------------------- learning


def chosen_at(evidence: int, length: int, ballot: int) -> list[Entry]:
    """The ballot's log where the first `length` entries of `evidence`'s are chosen: later ones have them."""
    return LOGS[evidence][:length] + LOGS[ballot][length:] if ballot > evidence else LOGS[ballot]


@pytest.mark.parametrize("evidence", BALLOTS)
def test_what_is_learned_and_installed_is_what_was_chosen(evidence: int) -> None:
    """All states, and all pieces of a log of which all three entries are chosen at `evidence`, or fewer."""
    for chosen, promised, accepted, length, start, end in product(
        LENGTHS, BALLOTS, (0, *BALLOTS), LENGTHS, LENGTHS, LENGTHS
    ):
        if accepted > promised or (length and not accepted) or not start <= end <= chosen:
            continue
        made = Acceptor(LOG, [].append)
        log = chosen_at(evidence, chosen, accepted) if accepted else []
        if accepted:
            made.on_accept(Accept(LOG, accepted, 0, log[:length], True, NOTHING, []))
        made.on_prepare(Prepare(LOG, promised, 0, 0), NOTHING)
        made.learn(end, evidence)
        assert made.entries[: made.chosen] == LOGS[evidence][: made.chosen], "learned what was not chosen"
        made.install(start, LOGS[evidence][start:end], evidence)
        case = f"{chosen} chosen at {evidence}; {promised, accepted, length}; {start} to {end}: {state(made)}"
        assert made.entries[: made.chosen] == LOGS[evidence][: made.chosen], case
        assert made.accepted in (accepted, max(accepted, evidence)), case
        assert (
            made.entries == chosen_at(evidence, chosen, made.accepted)[: made.length]
            if made.accepted
            else True
        ), case
        assert made.evidence <= made.accepted <= made.promised, case
        if start == 0 and (accepted < evidence or length >= end or start <= length):
            assert made.chosen >= end, f"nothing was missing: {case}"
        assert state(replayed(made))[:3] == state(made)[:3], f"not all journaled: {case}"


def test_what_is_installed_drops_what_a_later_ballot_did_not_keep() -> None:
    made = acceptor(1, 1, 3)
    made.install(0, LOGS[2][:2], 2)
    assert made.entries == LOGS[2][:2]
    assert (made.accepted, made.promised, made.chosen, made.evidence) == (2, 2, 2, 2)


def test_what_is_installed_leaves_a_later_ballots_entries_alone() -> None:
    made = acceptor(3, 3, 3)
    made.install(0, LOGS[3][:1], 1)
    assert made.entries == LOGS[3]
    assert (made.accepted, made.chosen, made.evidence) == (3, 1, 1)


def test_entries_beyond_a_gap_are_not_installed() -> None:
    made = acceptor(2, 2, 1)
    made.install(2, LOGS[2][2:], 2)
    assert made.length == 1
    made = acceptor(1, 1, 2)
    made.install(1, LOGS[2][1:], 2)  # the first is not known to be chosen here
    assert state(made)[1:4] == (1, LOGS[1][:2], 0)


def test_a_restart_recalls_what_was_noted_as_chosen() -> None:
    made = replayed(acceptor(2, 2, 3))
    made.replay(Record(chosen=Chosen(LOG, 2, 2)))
    assert (made.chosen, made.evidence, made.length) == (2, 2, 3)


def test_only_executed_entries_are_given_up_and_only_once() -> None:
    made = acceptor(1, 1, 3)
    made.learn(2, 1)
    made.drop(2)
    made.drop(1)
    assert (made.base, made.length, made.entries) == (2, 3, LOGS[1][2:])
    with pytest.raises(AssertionError, match="only chosen"):
        made.drop(3)


@pytest.mark.parametrize("evidence", BALLOTS)
def test_a_checkpoint_brings_an_acceptor_nowhere_back_and_no_wrong_entry(evidence: int) -> None:
    """N23. All states, all lengths; all that the checkpoint covers is chosen in the log of `evidence`."""
    for promised, accepted, length, known, covered in product(
        BALLOTS, (0, *BALLOTS), LENGTHS, LENGTHS, LENGTHS
    ):
        if accepted > promised or (length and not accepted) or known > min(length, covered):
            continue
        made = Acceptor(LOG, [].append)
        log = chosen_at(evidence, covered, accepted) if accepted else []
        if accepted:
            made.on_accept(Accept(LOG, accepted, 0, log[:length], True, NOTHING, []))
        made.on_prepare(Prepare(LOG, promised, 0, 0), NOTHING)
        if accepted >= evidence:
            made.learn(known, evidence)
        before = state(made)
        made.cover(covered, evidence, LOGS[evidence][covered - 1].timestamp if covered else 0)
        case = f"{covered} covered at {evidence}; {promised, accepted, length, known}: {state(made)}"
        assert made.promised >= before[0] and made.accepted >= before[1], case
        assert made.evidence <= made.accepted <= made.promised, case
        assert made.chosen == covered, case
        assert made.length >= made.chosen >= made.base, case
        if covered > before[3]:
            assert made.accepted >= evidence, case
        if made.accepted == accepted:
            assert made.length >= length, f"cut at one ballot: {case}"
        if made.accepted:
            whole = chosen_at(evidence, covered, made.accepted)
            assert made.entries == whole[made.base : made.length], case


def test_what_a_checkpoint_covers_is_not_held_again_by_the_journal_above_it() -> None:
    made = acceptor()
    made.cover(2, 2, LOGS[2][1].timestamp)
    made.replay(Record(held=Held(LOG, 2, 0, LOGS[2])))
    assert (made.base, made.entries, made.chosen) == (2, LOGS[2][2:], 2)


def test_an_acceptor_that_rejoins_goes_back_in_nothing() -> None:
    for accepted, told in product((0, *BALLOTS), BALLOTS):
        made = acceptor()
        made.cover(1, accepted, SHARED.timestamp)
        made.rejoin(3, told, LOGS[told][1:])
        assert (made.promised, made.accepted) == (3, max(accepted, told))
        assert made.entries == (LOGS[told][1:] if told >= accepted else [])


def test_a_gap_in_what_is_replayed_is_noticed() -> None:
    with pytest.raises(Diverged, match="gap"):
        acceptor().replay(Record(held=Held(LOG, 2, 1, LOGS[2][1:])))


def test_an_entry_that_a_checkpoint_covers_does_not_look_like_one_never_accepted() -> None:
    made = acceptor()
    made.cover(2, 2, LOGS[2][1].timestamp)
    assert made.on_prepare(Prepare(LOG, 3, 0, 0), NOTHING).verdict == Verdict.BEHIND
    assert made.on_accept(Accept(LOG, 3, 0, LOGS[2][:1], True, NOTHING, [])) == Vote.NEEDS_SYNC
    assert made.on_prepare(Prepare(LOG, 3, 2, 0), NOTHING).verdict == Verdict.PROMISED


def test_the_last_timestamp_of_an_empty_log_is_none() -> None:
    assert acceptor().last_timestamp == 0
    assert acceptor(1, 1, 2).last_timestamp == LOGS[1][1].timestamp
