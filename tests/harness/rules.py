"""Rules of the protocol, each with the change to the source that removes it and the story that then fails.

A test that passes with and without a rule says nothing about it. test_rules.py loads the changed source in
place of the real module, and sees every story here fail.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from tests.harness import scenario
from tests.protocol import test_acceptor as acceptors
from tests.protocol import test_forgotten as forgotten
from tests.protocol import test_more_scenarios as more_stories
from tests.protocol import test_node as nodes
from tests.protocol import test_replaced_nodes as replaced
from tests.protocol import test_scenarios as stories

ROOT = Path(__file__).resolve().parents[2]


CORE = "multipaxos"
Change = tuple[str, str, str]  # module, text, replacement


@dataclass(frozen=True)
class Rule:
    """The changes in the source of some modules take the rule away; `story` then fails."""

    story: Callable[[], None]
    changes: tuple[Change, ...]


def rule(story: Callable[[], None], *changes: Change) -> Rule:
    return Rule(story, changes)


RULES: dict[str, Rule] = {
    "N1: nothing is ever cut at one ballot": rule(
        stories.test_a_sync_repeated_late_cuts_nothing,
        (CORE, "if message.ballot > self.accepted:", "if message.ballot > self.accepted or message.sync:"),
    ),
    "N2: evidence is a ballot that a quorum was counted in": rule(
        stories.test_only_a_counted_quorum_is_evidence,
        (
            CORE,
            "learned.chosen, learned.evidence, learned.known\n",
            "learned.chosen, learned.acceptor.accepted, learned.known\n",
        ),
        (
            "protocol.catch_up",
            "Fetched(message.log, message.from_slot, entries, acceptor.evidence, acceptor.base)",
            "Fetched(message.log, message.from_slot, entries, acceptor.accepted, acceptor.base)",
        ),
    ),
    "N4, R4: frontiers come from established ballots only": rule(
        stories.test_no_frontier_comes_from_a_ballot_that_is_not_established,
        (CORE, "return self.leading and len(self.lengths) >= self.quorum", "return self.leading"),
    ),
    "N5, R3: a frontier never exceeds a durable reservation": rule(
        stories.test_no_frontier_comes_from_a_clock_that_a_restart_would_forget,
        ("protocol.clock", "return min(self.time, self.reserved)", "return self.time"),
    ),
    "N6: below first_incomplete nothing is applied": rule(
        stories.test_a_command_whose_result_was_given_up_is_not_applied_again,
        ("state.store", "if sequence < session.first_incomplete:", "if False:"),
    ),
    "N8: a command is applied once, whatever its attempts were told": rule(
        stories.test_not_done_speaks_of_one_attempt_only,
        ("state.store", "result = session.results.get(sequence)", "result = None"),
    ),
    "N9: a pending read waits on logs too": rule(
        stories.test_a_read_that_waits_for_a_dead_node_gets_its_answer,
        (CORE, "least = max(needed(timestamp, owner, log), read)", "least = needed(timestamp, owner, log)"),
    ),
    "N10: a refused connection revokes nobody at once": rule(
        stories.test_one_broken_link_deposes_nobody,
        (
            "protocol.revocation",
            "return now - since >= patience + slot",
            "return owner in self.contacts.refusing or now - since >= patience + slot",
        ),
    ),
    "N11: what a revoker wants may be known already": rule(
        stories.test_a_revoker_that_is_merely_behind_deposes_nobody,
        ("protocol.logs", "if message.wanted and", "if False and"),
    ),
    "N11: whoever is out of contact with a quorum deposes nobody": rule(
        stories.test_a_healed_node_deposes_nobody,
        (
            "protocol.revocation",
            "self.patience(now) / 2, now) < self.quorum:\n            waits = {}",
            "self.patience(now) / 2, now) < self.quorum:\n            pass",
        ),
    ),
    "N12: patience is measured": rule(
        stories.test_a_uniformly_slow_cluster_deposes_nobody,
        (
            "protocol.round_trips",
            "return max((seconds * 0.5 ** (now - at) for seconds, at in self.measured.values())",
            "return max((0.0 for _ in ())",
        ),
    ),
    "N16: results are kept by sequence": rule(
        stories.test_results_are_kept_by_sequence,
        (
            "state.store",
            "if sequence < session.first_incomplete:",
            "if sequence < max(session.results, default=0):",
        ),
    ),
    "N17: a round starts after the read arrived": rule(
        stories.test_a_read_does_not_share_a_round_that_began_before_it,
        (
            "protocol.reads",
            "        self.waiting.append(token)\n",
            "        (self.round.reads if self.round else self.waiting).append(token)\n",
        ),
    ),
    "N18: no frontier raises a clock": rule(
        stories.test_a_skip_does_not_drag_the_clocks_along,
        (
            "protocol.logs",
            "        if self.learner.learn(log, fact.chosen, fact.evidence, fact.frontier):\n",
            "        self.clock.raise_to(fact.frontier)\n"
            "        if self.learner.learn(log, fact.chosen, fact.evidence, fact.frontier):\n",
        ),
    ),
    "N19: a promise for another start is ignored": rule(
        stories.test_a_promise_for_an_older_start_is_not_adopted,
        (CORE, " or message.from_slot != self.start:", ":"),
    ),
    "N20: a ballot that was led is never prepared again": rule(
        stories.test_a_ballot_that_was_led_is_never_prepared_again,
        (
            CORE,
            "self.ballot = self.highest = ballot_of(round_of(self.highest) + 1, self.me)",
            "if not self.ballot or self.highest > self.ballot:\n"
            "            self.ballot = self.highest = ballot_of(round_of(self.highest) + 1, self.me)",
        ),
        (
            "protocol.own_logs",
            "        if proposer.leading:\n            if not proposer.entries:",
            "        if False:\n            if not proposer.entries:",
        ),
    ),
    "N21: a ballot is durable before its Prepare leaves": rule(
        stories.test_a_ballot_is_durable_before_anybody_hears_of_it,
        (
            "protocol.way",
            "            self.outbox.send_after(node, message)",
            "            self.outbox.send(node, message)",
        ),
    ),
    "N22: a repeated Prepare restarts nobody's wait": rule(
        stories.test_a_candidate_that_cannot_finish_keeps_nobody_from_standing,
        (
            "protocol.logs",
            "        if message.ballot > before:\n            self.way",
            "        if True:\n            self.way",
        ),
    ),
    "N22: a candidate out of contact gives up": rule(
        stories.test_a_candidate_that_hears_nobody_gives_up,
        (
            "protocol.own_logs",
            "                self.proposers[log].step_down()\n",
            "                pass\n",
        ),
    ),
    "N23: a late, short sync cuts nothing": rule(
        acceptors.test_a_late_sync_shorter_than_what_is_chosen_cuts_nothing,
        (
            CORE,
            "message.start <= self.chosen <= message.start + len(message.entries)",
            "message.start <= self.chosen",
        ),
        (
            CORE,
            "self._hold(message.ballot, self.chosen, message.entries[self.chosen - message.start :])",
            "self._hold(message.ballot, message.start, message.entries)",
        ),
    ),
    "R2: an entry is stamped above all that its log holds": rule(
        stories.test_a_late_joiner_fetches_what_it_has_missed_and_takes_its_log_back,
        (
            "protocol.clock",
            "timestamp = max(self.time, last) + 1",
            "timestamp = self.time + 1",
        ),
    ),
    "R6: who receives an entry raises its clock before it answers": rule(
        stories.test_a_command_costs_one_round_trip_and_one_fsync,
        ("protocol.logs", "self.clock.see(last, command)  # R6", "self.clock.see(last, 0)"),
    ),
    "a frontier lies below the first unchosen command": rule(
        stories.test_commands_of_all_nodes_at_once_are_applied_in_one_order,
        ("protocol.logs", "frontier = min(frontier, first - 1)", "pass"),
    ),
    "a frontier counts when the entries below it are held": rule(
        stories.test_a_late_joiner_fetches_what_it_has_missed_and_takes_its_log_back,
        (CORE, "if chosen >= learned.chosen and learned.known", "if learned.known"),
    ),
    "entries of a ballot below the evidence are not the chosen ones": rule(
        stories.test_what_no_living_node_has_accepted_is_skipped,
        (CORE, "if reached > self.chosen and self.accepted >= evidence:", "if reached > self.chosen:"),
    ),
    "a sync starts no higher than what the acceptor knows to be chosen": rule(
        acceptors.test_a_sync_that_starts_above_what_is_known_to_be_chosen_is_not_taken,
        (CORE, "not message.start <= self.chosen <= message.start", "not self.chosen <= message.start"),
    ),
    "a vote is a promise too": rule(
        acceptors.test_a_vote_at_a_ballot_is_a_promise_too,
        (CORE, "self.promised = max(self.promised, ballot)", "pass"),
    ),
    "the highest accepted ballot wins, not the longest log": rule(
        stories.test_a_command_whose_result_was_given_up_is_not_applied_again,
        (CORE, "(promise.accepted, len(promise.entries))", "len(promise.entries)"),
    ),
    "a vote leaves when it is durable": rule(
        stories.test_a_vote_leaves_only_when_it_is_durable,
        (
            "protocol.logs",
            "            self.gossip.tell_after(sender, answer, own, call)\n",
            "            self.gossip.tell(sender, answer, own, call)\n",
        ),
    ),
    "a promise leaves when it is durable": rule(
        stories.test_a_promise_leaves_only_when_it_is_durable,
        (
            "protocol.logs",
            "self.outbox.send_after(sender, promise, call)",
            "self.outbox.send(sender, promise, call)",
        ),
    ),
    "a candidate's ballot does not depend on its acceptor": rule(
        stories.test_a_candidate_whose_own_acceptor_fails_remembers_its_ballot_all_the_same,
        ("protocol.node", "proposer.highest = max(proposer.highest, record.candidate.ballot)", "pass"),
    ),
    "what may still be chosen is not proposed again": rule(
        stories.test_a_command_is_proposed_again_only_when_its_first_entry_cannot_be_chosen_any_more,
        (
            "protocol.commands",
            "if self.unsure and self.own.established:",
            "if self.unsure and self.own.leading:",
        ),
    ),
    "what is chosen and not yet applied is not proposed again": rule(
        stories.test_what_is_chosen_but_not_yet_applied_is_not_proposed_again,
        (
            "protocol.commands",
            "for entry in [*unapplied, *self.own.entries]",
            "for entry in self.own.entries",
        ),
    ),
    "votes count at one ballot only": rule(
        nodes.test_a_vote_at_an_older_ballot_does_not_count,
        ("protocol.logs", "        elif message.ballot == proposer.ballot:\n", "        else:\n"),
    ),
    "a read waits until the frontiers have reached its timestamp": rule(
        more_stories.test_a_read_waits_for_its_own_nodes_log_too,
        ("protocol.reads", "while self.dated and self.dated[0][0] <= frontier:", "while self.dated:"),
    ),
    "a read rides only on an entry that leaves after it came": rule(
        more_stories.test_a_read_does_not_ride_on_an_entry_that_left_before_it_came,
        (
            "protocol.own_logs",
            "        self.reads.ask(token)\n",
            "        pending, reads = self.commands.pending, self.reads\n"
            "        rides = reads.riding.setdefault(max(pending), []) if pending else reads.waiting\n"
            "        rides.append(token)\n",
        ),
    ),
    "a read does not wait without end for an entry to ride on": rule(
        more_stories.test_a_read_does_not_wait_without_end_for_an_entry_to_ride_on,
        (
            "protocol.reads",
            "elif self.round is None and now - self.waited_since >= RESEND_AFTER:",
            "elif False:",
        ),
    ),
    "a read whose entry is stamped anew has a round": rule(
        more_stories.test_a_read_whose_entry_is_stamped_anew_is_answered_all_the_same,
        ("protocol.own_logs", "        self.reads.log_lost()\n        if led:", "        if led:"),
    ),
    "a read's timestamp is the highest clock of a quorum": rule(
        stories.test_a_read_does_not_share_a_round_that_began_before_it,
        ("protocol.reads", "if current is None or len(current.clocks) < self.quorum:", "if current is None:"),
    ),
    "who has promised lets the candidate have its time": rule(
        stories.test_who_has_promised_to_a_revoker_lets_it_have_its_time,
        (
            "protocol.logs",
            "            self.way.promised(message.log, now)  # once",
            "            pass  # once",
        ),
    ),
    "a skip lies above all that is known of any log": rule(
        stories.test_a_second_skip_lies_above_the_first,
        (
            "protocol.clock",
            "max(self.time, self.highest, last) + SKIP",
            "self.time + SKIP",
        ),
    ),
    "a skip that runs out is renewed": rule(
        nodes.test_a_skip_that_runs_out_is_renewed_by_the_revoker_that_still_leads,
        (
            "protocol.own_logs",
            "            if not proposer.entries:\n                self._skip",
            "            if False:\n                self._skip",
        ),
    ),
    "a vote that can wait says only what is durable": rule(
        more_stories.test_a_vote_that_can_wait_says_only_what_is_durable,
        (
            "protocol.logs",
            "length = durable if deferred else acceptor.length",
            "length = acceptor.length",
        ),
    ),
    "a vote that can wait counts for the ballot whose log is durable": rule(
        more_stories.test_a_vote_that_can_wait_does_not_take_an_older_ballots_entries_for_the_newer_ones,
        (
            "protocol.logs",
            "deferred = self.me in message.lazy and ballot == message.ballot",
            "deferred = self.me in message.lazy",
        ),
    ),
    "N12: those whose votes can wait are measured, too": rule(
        more_stories.test_the_round_trips_of_nodes_whose_votes_can_wait_are_measured_by_their_frontiers,
        ("protocol.round_trips", "0 < _frontier(log, accept) <= frontier", "False"),
    ),
    "who waits too long for a vote asks those that can wait": rule(
        more_stories.test_when_one_of_the_voters_dies_the_others_are_asked_at_once,
        ("protocol.node", "            self.logs.ask_to_vote(self.voters.tick(now))\n", "            pass\n"),
    ),
    "a leader that promises to another has lost the log": rule(
        nodes.test_a_leader_whose_acceptor_promises_to_another_has_lost_the_log_at_that_moment,
        ("protocol.logs", "(proposer.leading or proposer.preparing) and promised > proposer.ballot", "False"),
    ),
    "a leader that hears of a later ballot's evidence has lost the log": rule(
        nodes.test_a_leader_that_hears_of_a_later_ballots_evidence_has_lost_the_log_at_that_moment,
        ("protocol.logs", "proposer.leading and evidence > proposer.ballot", "False"),
    ),
    "a silent peer that speaks again is sent what it lacks": rule(
        nodes.test_a_silent_peer_is_sent_what_it_lacks_when_it_speaks_again,
        ("protocol.way", "proposer.couriers[peer].silent = 0", "pass"),
    ),
    "50 ms suffice while connections are refused": rule(
        stories.test_a_node_that_refuses_connections_is_revoked_sooner,
        ("protocol.revocation", "REFUSED_AFTER if owner in self.contacts.refusing else ", ""),
    ),
    "an acceptor that fails on purpose withholds its vote": rule(
        stories.test_acceptors_that_fail_on_purpose_cost_time_and_nothing_else,
        ("protocol.logs", "Vote.WITHHELD if self.faults.fails(now) else ", ""),
    ),
    "an owner revoked often waits before it takes its log back": rule(
        nodes.test_an_owner_that_is_revoked_again_and_again_waits_longer_each_time,
        ("protocol.own_logs", "pause = 0.0 if len(self.losses) < 3 else", "pause = 0.0 if True else"),
    ),
    "N25: who has found less than its peers were told is refused": rule(
        forgotten.test_a_copy_of_a_running_nodes_data_that_is_put_back_is_refused,
        (
            "protocol.witness",
            "if refusal is None and incarnation == disk > 0 and life != last:",
            "if False:",
        ),
    ),
    "N25: who restarts knows what it had applied": rule(
        forgotten.test_two_histories_are_found_out_when_the_others_return,
        ("protocol.persistence", "if idle and self.learner.position > self.noted_position:", "if False:"),
    ),
    "N26: who rejoins is told which processes speak for the others": rule(
        replaced.test_what_only_the_process_in_place_of_a_replaced_node_knows_is_told_to_who_rejoins,
        ("protocol.node", "for process in self.incarnations.newer(message.lives):", "for process in ():"),
    ),
    "N26: whoever answers a rejoin tells what it has noted": rule(
        replaced.test_a_vote_of_the_old_process_of_a_replaced_node_counts_for_nobody,
        ("protocol.node", "self.incarnations.told(self.me),", "None,"),
    ),
}


def without(name: str) -> dict[str, ModuleType]:
    """The modules of this rule, compiled without it, in sys.modules."""
    sources: dict[str, str] = {}
    for module, text, replacement in RULES[name].changes:
        source = sources.get(module) or (ROOT / "paxoskv" / f"{module.replace('.', '/')}.py").read_text()
        assert source.count(text) == 1, f"{module}.py does not have this text once: {text!r}"
        sources[module] = source.replace(text, replacement)
    changed = {}
    for module in sorted(sources):  # who imports another one of them comes behind it
        full = f"paxoskv.{module}"
        changed[module] = sys.modules[full] = ModuleType(full)
        exec(compile(sources[module], f"<{module} without: {name}>", "exec"), changed[module].__dict__)
    return changed


@contextmanager
def removed(name: str) -> Iterator[None]:
    """In this block the stories run without the rule."""
    with pytest.MonkeyPatch.context() as patch:
        protocol = [
            key for key in sys.modules if f"{key}.".startswith(("paxoskv.multipaxos.", "paxoskv.protocol."))
        ]
        for key in protocol:  # what rests on the changed modules is imported anew
            patch.delitem(sys.modules, key)
        changed = without(name)
        if "state.store" in changed:
            patch.setattr(scenario, "store", changed["state.store"])
        patch.setattr(scenario, "protocol", importlib.import_module("paxoskv.protocol.node"))
        multipaxos = importlib.import_module("paxoskv.multipaxos")
        patch.setattr(scenario, "voters", importlib.import_module("paxoskv.protocol.voters"))
        patch.setattr(scenario, "Diverged", multipaxos.Diverged)
        patch.setattr(acceptors, "Acceptor", multipaxos.Acceptor)
        patch.setattr(nodes, "Node", scenario.protocol.Node)
        yield


def table() -> str:
    """The rules and their stories, as docs/protocol.md has them."""
    lines = ["| rule | the test that fails without it |", "|---|---|"]
    for name, rule in RULES.items():
        file = f"{rule.story.__module__.replace('.', '/')}.py"
        lines.append(f"| {name} | [`{rule.story.__name__}`](../{file}) |")
    return "\n".join(lines)


def documented(page: str) -> str:
    """The page with the table as it should be."""
    begin, end = page.index("-->", page.index("<!-- rules:")) + 3, page.index("<!-- end of rules")
    return f"{page[:begin]}\n{table()}\n{page[end:]}"


if __name__ == "__main__":
    path = ROOT / "docs" / "protocol.md"
    path.write_text(documented(path.read_text()))
