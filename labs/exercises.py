"""The ten labs: which function is the student's, and what it must stand."""

from pathlib import Path
from typing import Final, NamedTuple

HERE: Final = Path(__file__).resolve().parent


class Lab(NamedTuple):
    """One lab. NN-name.md is its text, NN-name.py its skeleton; the function's name is the same in both."""

    number: int
    name: str
    title: str
    function: str  # the real one, which the student's replaces: "module:Class.function", below paxoskv/
    cases: tuple[str, ...]  # tests, "module.function"
    runs: tuple[str, ...]  # of the simulator: profile, first and last seed
    mutants: tuple[str, ...]  # of docs/mutants.md: answers that are wrong

    @property
    def text(self) -> Path:
        return HERE / f"{self.number:02}-{self.name}.md"

    @property
    def skeleton(self) -> Path:
        return self.text.with_suffix(".py")


ALL: Final = ("default 1-4", "lossy 1-4", "slow-disks 1-4")

LABS: Final = (
    Lab(
        1, "majority", "When is an entry chosen?", "multipaxos:quorum_length",
        (
            "test_proposer.test_the_quorum_length_is_held_by_a_quorum_and_no_longer_one_is",
            "test_proposer.test_votes_count_per_node",
            "test_essay.test_two_votes_of_two_ballots_choose_nothing_as_the_essay_tells",
        ),
        ALL,
        ("a quorum of votes is one node short",),
    ),
    Lab(
        2, "promise", "A promise survives a crash", "multipaxos:Acceptor.on_prepare",
        (
            "test_acceptor.test_a_promise_is_given_unless_a_higher_ballot_has_it",
            "test_acceptor.test_a_promise_repeated_is_journaled_once",
            "test_acceptor.test_a_refusal_shows_nothing",
            "test_acceptor.test_an_entry_given_up_does_not_look_like_one_never_accepted",
            "test_essay.test_an_entry_that_is_chosen_survives_its_proposer_as_the_essay_tells",
        ),
        ALL,
        ("a promise is not journaled", "a lower ballot is promised, too"),
    ),
    Lab(
        3, "recover", "An acceptor comes back", "multipaxos:Acceptor.replay",
        (
            "test_acceptor.test_a_restart_recalls_what_was_noted_as_chosen",
            "test_acceptor.test_what_a_checkpoint_covers_is_not_held_again_by_the_journal_above_it",
            "test_acceptor.test_a_gap_in_what_is_replayed_is_noticed",
        ),
        ("slow-disks 1-6", "crash-loops 1-3", "default 1-3"),
        ("N13: a restart forgets promises",),
    ),
    Lab(
        4, "value", "What may a new leader propose?", "multipaxos:best_log",
        (
            "test_proposer.test_the_log_of_the_highest_ballot_is_adopted_and_the_longest_of_those",
            "test_proposer.test_a_leader_begins_with_the_log_that_it_adopts",
            "test_essay.test_an_entry_that_is_chosen_survives_its_proposer_as_the_essay_tells",
            "test_essay.test_an_entry_that_no_quorum_has_is_adopted_by_whoever_sees_it",
            "test_scenarios.test_a_command_whose_result_was_given_up_is_not_applied_again",
        ),
        ALL,
        (
            "the lower ballot's log is adopted",
            "the shortest log of the highest ballot is adopted",
            "without: the highest accepted ballot wins, not the longest log",
        ),
    ),
    Lab(
        5, "vote", "What may an acceptor accept?", "multipaxos:Acceptor.on_accept",
        (
            "test_acceptor.test_whatever_arrives_a_vote_says_only_what_is_true",
            "test_acceptor.test_the_first_accept_of_a_ballot_must_be_its_sync",
            "test_acceptor.test_an_accept_repeated_is_journaled_once",
            "test_acceptor.test_a_vote_at_a_ballot_is_a_promise_too",
            "test_scenarios.test_a_sync_repeated_late_cuts_nothing",
        ),
        ALL,
        (
            "a promise does not keep from voting at a lower ballot",
            "without: N1: nothing is ever cut at one ballot",
        ),
    ),
    Lab(
        6, "ballot", "A ballot is used once", "multipaxos:Proposer.prepare",
        (
            "test_proposer.test_a_candidate_stands_above_all_that_it_has_seen",
            "test_proposer.test_no_ballot_is_used_twice",
            "test_proposer.test_a_prepare_repeated_keeps_its_round",
            "test_scenarios.test_a_ballot_that_was_led_is_never_prepared_again",
        ),
        ALL,
        ("a candidate takes the same ballot again", "two nodes share a ballot"),
    ),
    Lab(
        7, "duel", "Two proposers that block each other", "protocol.classic:Classic.lose",
        (
            "test_one_log.test_a_refused_candidate_waits_longer_each_time_and_not_for_ever",
            "test_one_log.test_five_that_compete_all_get_on",
            "test_one_log.test_a_refused_read_is_asked_again_and_is_not_stale",
        ),
        ("classic/default 1-4", "classic/lossy 1-4", "classic/slow-disks 1-2"),
        (
            "classic: who was refused stands again at once",
            "classic: pauses do not grow",
            "classic: pauses grow without end",
        ),
    ),
    Lab(
        8, "order", "Five logs, one order", "multipaxos:Learner.apply",
        (
            "test_learner.test_commands_are_applied_by_timestamp_and_then_by_owner",
            "test_learner.test_a_command_waits_until_no_log_can_bring_an_earlier_one",
            "test_learner.test_no_ops_are_passed_over_and_wait_for_nothing",
            "test_learner.test_no_command_is_applied_out_of_order",
            "test_essay.test_the_logs_are_merged_as_the_essay_draws_it",
        ),
        ALL,
        (
            "a frontier may lie one below what a command needs",
            "a frontier must lie one above what a command needs",
        ),
    ),
    Lab(
        9, "take-over", "A dead owner's log", "protocol.own_logs:OwnLogs._skip",
        (
            "test_scenarios.test_what_no_living_node_has_accepted_is_skipped",
            "test_scenarios.test_a_second_skip_lies_above_the_first",
            "test_node.test_a_skip_that_runs_out_is_renewed_by_the_revoker_that_still_leads",
        ),
        ("barely-healing 1-4", "default 1-4", "star-healing 1-2"),
        ("R1: a revoker puts a command of its own into the log that it finishes",),
    ),
    Lab(
        10, "retry", "A repeated command does no harm", "state.store:Store._apply",
        (
            "test_store.test_a_repeated_command_gets_its_first_result_and_is_not_applied_again",
            "test_store.test_a_later_sequence_that_comes_first_does_not_swallow_the_earlier_one",
            "test_store.test_a_sequence_below_the_first_incomplete_one_is_forgotten_not_applied",
            "test_store.test_an_unknown_session_is_expired_never_new",
            "test_store.test_two_sessions_do_not_share_sequences",
        ),
        ALL,
        (
            "without: N8: a command is applied once, whatever its attempts were told",
            "without: N16: results are kept by sequence",
            "results are dropped as soon as a later command is applied",
            "N7: an unknown session looks new",
        ),
    ),
)  # fmt: skip
