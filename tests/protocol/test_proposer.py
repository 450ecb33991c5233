"""The proposer: candidate, leader, and the small mathematics of quorums."""

from itertools import combinations_with_replacement, pairwise, permutations, product
from typing import Any

import pytest

from paxoskv.multipaxos import (
    RESEND_AFTER,
    RESEND_AT_MOST,
    UNCHOSEN_BYTES,
    UNCHOSEN_ENTRIES,
    Proposer,
    ballot_of,
    best_log,
    node_of,
    quorum_length,
    round_of,
)
from paxoskv.wire.structs import (
    Accepted,
    Entry,
    Fact,
    Promise,
    Verdict,
    Vote,
)

LOG = 1
ME = 2
NODES = (1, 2, 3, 4, 5)
NOTHING = Fact(LOG, 0, 0, 0)
ENTRIES = [Entry(10, b"first"), Entry(20, b"second"), Entry(30, b"third")]


def promise(proposer: Proposer, accepted: int = 0, entries: Any = (), **changes: int) -> Promise:
    message = Promise(
        LOG,
        proposer.ballot,
        proposer.start,
        Verdict.PROMISED,
        proposer.ballot,
        accepted,
        list(entries),
        NOTHING,
    )
    return Promise(**{name: changes.get(name, getattr(message, name)) for name in message._fields})


def vote(proposer: Proposer, length: int, kind: int = Vote.ACCEPTED) -> Accepted:
    return Accepted(LOG, proposer.ballot, proposer.ballot, kind, length, NOTHING)


def leader(entries: Any = (), start: int = 0) -> Proposer:
    proposer = Proposer(LOG, ME, NODES)
    proposer.prepare(start, 0, 0)
    for sender in (1, 2, 3):
        proposer.on_promise(sender, promise(proposer, 1, entries))
    assert proposer.leading
    return proposer


# ---------------------------------------------------------------------------------------------------- ballots


def test_ballots_compare_as_pairs_of_round_and_node() -> None:
    pairs = list(product((0, 1, 2, 1 << 40), (1, 2, 255)))
    assert sorted(pairs) == sorted(pairs, key=lambda pair: ballot_of(*pair))
    assert [(round_of(ballot_of(*pair)), node_of(ballot_of(*pair))) for pair in pairs] == pairs


def test_two_nodes_never_have_one_ballot() -> None:
    ballots = {ballot_of(round_, node) for round_ in range(20) for node in range(1, 256)}
    assert len(ballots) == 20 * 255


@pytest.mark.parametrize("promised", [0, ballot_of(1, 1), ballot_of(1, ME), ballot_of(1, 5), ballot_of(7, 1)])
def test_a_candidate_stands_above_all_that_it_has_seen(promised: int) -> None:
    proposer = Proposer(LOG, ME, NODES)
    record = proposer.prepare(0, promised, 0)
    assert proposer.ballot > promised
    assert node_of(proposer.ballot) == ME
    assert record.candidate.ballot == proposer.ballot
    assert record.candidate.log == LOG


def test_no_ballot_is_used_twice() -> None:
    proposer = Proposer(LOG, ME, NODES)
    ballots = []
    for _ in range(3):
        proposer.prepare(0, 0, 0)
        ballots.append(proposer.ballot)
        for sender in (1, 2, 3):
            proposer.on_promise(sender, promise(proposer))
        proposer.step_down()
    proposer.step_down(ballot_of(9, 5))
    proposer.prepare(0, 0, 0)
    assert ballots == sorted(set(ballots))
    assert proposer.ballot > ballot_of(9, 5)


def test_a_prepare_repeated_keeps_its_round() -> None:
    proposer = Proposer(LOG, ME, NODES)
    proposer.prepare(3, 0, 7)
    first, second = proposer.message(1.0), proposer.message(2.0)
    assert first == second
    assert (first.from_slot, first.wanted) == (3, 7)
    assert (proposer.prepared_at, proposer.prepares) == (2.0, 2)


# --------------------------------------------------------------------------------------------------- promises


@pytest.mark.parametrize("nodes", [1, 3, 5, 7])
def test_a_quorum_of_different_nodes_makes_a_leader(nodes: int) -> None:
    proposer = Proposer(LOG, 1, range(1, nodes + 1))
    proposer.prepare(0, 0, 0)
    for sender in range(1, nodes // 2 + 1):
        for _ in range(nodes):  # a repeated promise counts once
            assert not proposer.on_promise(sender, promise(proposer))
    assert not proposer.leading
    assert proposer.on_promise(nodes, promise(proposer))
    assert proposer.leading
    assert not proposer.preparing
    assert not proposer.established


@pytest.mark.parametrize(
    "changes", [{"ballot": 1}, {"ballot": ballot_of(9, ME)}, {"from_slot": 0}, {"from_slot": 4}]
)
def test_promises_of_another_ballot_or_start_do_not_count(changes: dict[str, int]) -> None:
    proposer = Proposer(LOG, ME, NODES)
    proposer.prepare(3, 0, 0)
    for sender in NODES:
        assert not proposer.on_promise(sender, promise(proposer, **changes))
    assert not proposer.promises


def test_promises_for_an_earlier_start_are_forgotten_on_catching_up() -> None:
    proposer = Proposer(LOG, ME, NODES)
    proposer.prepare(0, 0, 0)
    early = promise(proposer, 1, ENTRIES)
    proposer.on_promise(1, early)
    proposer.on_promise(3, early)
    proposer.restart_at(3)
    assert not proposer.on_promise(4, early)
    for sender in (1, 3):
        assert not proposer.on_promise(sender, promise(proposer, 1))
    assert proposer.on_promise(4, promise(proposer, 1))
    assert (proposer.start, proposer.entries, proposer.end) == (3, [], 3)


def test_promises_to_somebody_who_stands_no_longer_do_not_count() -> None:
    proposer = leader()
    assert not proposer.on_promise(5, promise(proposer))
    proposer.step_down()
    assert not proposer.on_promise(5, promise(proposer))


def test_the_log_of_the_highest_ballot_is_adopted_and_the_longest_of_those() -> None:
    proposer = Proposer(LOG, ME, NODES)
    proposer.prepare(0, 0, 0)
    logs = [(accepted, length) for accepted in (1, 2, 3) for length in range(4)]
    for three in combinations_with_replacement(logs, 3):
        for order in permutations(three):
            promises = [promise(proposer, accepted, ENTRIES[:length]) for accepted, length in order]
            best = best_log(promises)
            assert (best.accepted, len(best.entries)) == max(three)


def test_a_leader_begins_with_the_log_that_it_adopts() -> None:
    proposer = leader(ENTRIES[1:], start=1)
    assert (proposer.start, proposer.end, proposer.entries) == (1, 3, ENTRIES[1:])
    assert proposer.bytes == len(b"second" + b"third")


# ------------------------------------------------------------------------------------------------------ votes


def test_the_quorum_length_is_held_by_a_quorum_and_no_longer_one_is() -> None:
    for quorum, nodes in ((1, 1), (2, 3), (3, 5)):
        for count in range(nodes + 1):
            for lengths in product(range(4), repeat=count):
                found = quorum_length(lengths, quorum)
                assert found == 0 or sum(length >= found for length in lengths) >= quorum
                assert sum(length >= found + 1 for length in lengths) < quorum


def test_votes_count_per_node() -> None:
    proposer = leader(ENTRIES)
    for _ in range(5):
        assert proposer.on_accepted(1, vote(proposer, 3), 1.0) == 0
    assert not proposer.established
    assert proposer.on_accepted(2, vote(proposer, 2), 1.0) == 0
    assert proposer.on_accepted(3, vote(proposer, 1), 1.0) == 1
    assert proposer.established
    assert proposer.on_accepted(3, vote(proposer, 3), 1.0) == 2
    assert proposer.on_accepted(3, vote(proposer, 0), 1.0) == 2  # an old answer, late
    assert proposer.on_accepted(4, vote(proposer, 3), 1.0) == 3


@pytest.mark.parametrize("kind", [Vote.REFUSED, Vote.NEEDS_SYNC, Vote.WITHHELD])
def test_only_votes_count(kind: int) -> None:
    proposer = leader(ENTRIES)
    for sender in NODES:
        assert proposer.on_accepted(sender, vote(proposer, 3, kind), 1.0) == 0
    assert not proposer.established


def test_an_empty_sync_taken_by_a_quorum_establishes() -> None:
    proposer = leader()
    for sender in (1, 4):
        proposer.on_accepted(sender, vote(proposer, 0), 1.0)
    assert not proposer.established
    proposer.on_accepted(5, vote(proposer, 0), 1.0)
    assert proposer.established
    proposer.step_down()
    assert not proposer.established


def test_what_is_chosen_leaves_the_leaders_hands() -> None:
    proposer = leader(ENTRIES)
    proposer.advance(2)
    assert (proposer.start, proposer.end, proposer.entries, proposer.bytes) == (
        2,
        3,
        ENTRIES[2:],
        len(b"third"),
    )


def test_the_first_unchosen_command_is_no_no_op() -> None:
    assert leader().first_unchosen_command() is None
    assert leader([Entry(5, b"")]).first_unchosen_command() is None
    assert leader([Entry(5, b""), *ENTRIES]).first_unchosen_command() == 10


def test_what_is_unchosen_is_bounded() -> None:
    proposer = leader()
    for timestamp in range(UNCHOSEN_ENTRIES):
        assert proposer.has_room()
        proposer.append(Entry(timestamp, b"x"))
    assert not proposer.has_room()
    proposer = leader()
    for timestamp in range(4):
        assert proposer.has_room()
        proposer.append(Entry(timestamp, b"x" * (UNCHOSEN_BYTES // 4)))
    assert not proposer.has_room()


# -------------------------------------------------------------------------------------- what is due to a peer


def test_the_first_accept_is_the_sync_and_then_only_what_is_new_is_sent() -> None:
    proposer = leader(ENTRIES[:1])
    assert proposer.due(4, 1.0) == (0, True)
    assert proposer.due(4, 1.0) is None
    proposer.append(ENTRIES[1])
    assert proposer.due(4, 1.0) == (1, False)
    proposer.on_accepted(4, vote(proposer, 2), 1.0)
    assert proposer.due(4, 100.0) is None  # it holds everything


def test_an_unanswered_sync_is_sent_again_as_a_sync() -> None:
    proposer = leader(ENTRIES)
    proposer.due(4, 1.0)
    assert proposer.due(4, 1.0 + RESEND_AFTER * 0.9) is None
    assert proposer.due(4, 1.0 + RESEND_AFTER) == (0, True)


def test_a_sync_begins_at_the_leaders_chosen_length() -> None:
    proposer = leader(ENTRIES)
    proposer.advance(2)
    assert proposer.due(4, 1.0) == (2, True)


def test_what_a_peer_lacks_is_sent_again_from_where_it_stands() -> None:
    proposer = leader(ENTRIES)
    proposer.due(4, 1.0)
    proposer.on_accepted(4, vote(proposer, 1), 1.0)
    proposer.advance(2)
    assert proposer.due(4, 1.0 + RESEND_AFTER * 0.9) is None
    assert proposer.due(4, 1.0 + RESEND_AFTER) == (1, False)  # though the second is chosen


def test_new_entries_do_not_put_off_the_repetition_of_old_ones() -> None:
    proposer = leader(ENTRIES[:1])
    proposer.due(4, 1.0)
    proposer.on_accepted(4, vote(proposer, 0), 1.0)
    sent = []
    for step in range(1, 7):
        proposer.append(Entry(100 * step, b"new"))
        sent.append(proposer.due(4, 1.0 + RESEND_AFTER * step / 4))
    assert sent == [(1, False), (2, False), (3, False), (0, False), (5, False), (6, False)]


def test_who_needs_a_sync_gets_one_but_not_at_once() -> None:
    """It must fetch first."""
    proposer = leader(ENTRIES)
    proposer.due(4, 1.0)
    proposer.on_accepted(4, vote(proposer, 0, Vote.NEEDS_SYNC), 1.0)
    assert proposer.due(4, 1.0) is None
    assert proposer.due(4, 1.0 + RESEND_AFTER) == (0, True)


def test_a_peer_that_holds_no_more_than_before_is_sent_it_less_and_less_often() -> None:
    """Its disk hangs: it says at once that it holds nothing more yet."""
    proposer = leader(ENTRIES)
    proposer.due(1, 0.0)
    proposer.on_accepted(1, vote(proposer, 1), 0.0)
    now, pauses = 0.0, []
    for _ in range(5):
        began = now
        while proposer.due(1, now) is None and now < began + 2 * RESEND_AT_MOST:
            now += RESEND_AFTER / 10
            proposer.on_accepted(1, vote(proposer, 1), now)
        pauses.append(now - began)
    assert all(later > 1.5 * sooner for sooner, later in pairwise(pauses[:4]))
    proposer.on_accepted(1, vote(proposer, 2), now)
    assert proposer.couriers[1].silent == 0


def test_a_silent_peer_is_asked_ever_more_seldom_until_it_answers() -> None:
    proposer = leader(ENTRIES)
    now, sent = 1.0, []
    while now < 60:
        if proposer.due(4, now) is not None:
            sent.append(now)
        now += RESEND_AFTER / 10
    pauses = [round(later - earlier, 2) for earlier, later in pairwise(sent)]
    assert pauses == sorted(pauses)
    assert pauses[0] == pytest.approx(RESEND_AFTER, rel=0.11)
    assert pauses[-1] == pytest.approx(RESEND_AT_MOST, rel=0.11)
    proposer.on_accepted(4, vote(proposer, 0, Vote.WITHHELD), 1.0)
    assert proposer.due(4, sent[-1] + RESEND_AFTER * 1.01) is not None


def test_what_an_acceptor_lost_on_purpose_is_sent_again_at_once_but_only_once() -> None:
    proposer = leader(ENTRIES)
    proposer.due(4, 1.0)
    proposer.on_accepted(4, vote(proposer, 1), 1.0)
    assert proposer.due(4, 1.0) is None
    proposer.on_accepted(4, vote(proposer, 0, Vote.WITHHELD), 1.0)
    assert proposer.fresh
    assert proposer.due(4, 1.0) == (1, False)
    proposer.on_accepted(4, vote(proposer, 0, Vote.WITHHELD), 1.0)
    assert proposer.due(4, 1.0) is None, (
        "an acceptor that is silent for a second would be asked without a pause"
    )
    proposer.append(Entry(99, b"next"))
    assert proposer.due(4, 1.0) == (3, False)
    proposer.on_accepted(4, vote(proposer, 0, Vote.WITHHELD), 1.0)
    assert proposer.due(4, 1.0) is None, "while it is silent, the whole would be sent with each new entry"
    assert proposer.due(4, 1.0 + RESEND_AFTER) == (1, False)
    proposer.on_accepted(4, vote(proposer, 4), 1.1)
    proposer.append(Entry(100, b"last"))
    proposer.due(4, 1.1)
    proposer.on_accepted(4, vote(proposer, 0, Vote.WITHHELD), 1.1)
    assert proposer.due(4, 1.1) == (4, False)


def test_a_withheld_vote_that_overtakes_that_for_the_sync_changes_nothing() -> None:
    proposer = leader(ENTRIES)
    assert proposer.due(4, 1.0) == (0, True)
    proposer.append(Entry(99, b"next"))
    assert proposer.due(4, 1.0) == (3, False)
    proposer.on_accepted(4, vote(proposer, 0, Vote.WITHHELD), 1.0)
    proposer.on_accepted(4, vote(proposer, 3), 1.0)
    assert proposer.due(4, 1.0) is None
    proposer.append(Entry(100, b"last"))
    assert proposer.due(4, 1.0) == (4, False), "not a second sync"
