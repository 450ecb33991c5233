#!/usr/bin/env python3
"""Deliberate bugs. Each must be caught, by a story or by the simulator: otherwise the tests are too weak.

    tests/harness/mutants.py                         every mutant: a table of what caught it
    tests/harness/mutants.py NAME ... --jobs 2       those whose names contain one of these texts
    tests/harness/mutants.py --write docs/mutants.md the table as a page, too
    tests/harness/mutants.py --explore               which of them show where every schedule is tried

A mutant is a small change to the source of one or two modules. It runs in a process of its own, which finds
the changed copies in place of the modules; nothing else is replaced. Caught means that the story named with
it fails, or that a simulation does. Of those that the simulator catches, the seed that does it is noted
below, and tried first. If it does so no longer, because something else in the code has changed, other seeds
are tried, for SECONDS of one core at most; the table then shows the new one.

The rules of tests/harness/rules.py, each taken away, are mutants too.

Exit status: 0 all were caught; 1 some survived; 2 usage.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0  # of one core, to find a seed
WORLD_SECONDS = 60.0  # to explore one small world
COLUMNS = 5  # of the table
NOT_TRIED, NOT_SHOWN, OUTSIDE = "not tried yet", "not in these bounds", "no protocol"
ONLY_HERE = "not in the simulator"
PATIENCE = 40.0  # simulated seconds in which a mutant must come to rest; without a bug, half of them suffice

Change = tuple[str, str, str]  # module, text, replacement


@dataclass(frozen=True)
class Mutant:
    """Changes of the code, and what catches them: a story or a simulation.

    `story` is "module.function". A simulation is `seen` (profile, seed) at the latest check, else some seed
    of `profiles`.
    """

    name: str
    changes: tuple[Change, ...]
    story: str | None = None
    seen: tuple[str, int] | None = None
    profiles: tuple[str, ...] = ()


def told(name: str, story: str, *changes: Change) -> Mutant:
    """A mutant that a story catches."""
    return Mutant(name, changes, story=story)


def met(name: str, run: str, *changes: Change) -> Mutant:
    """A mutant that the simulator meets. `run`: the profile (perhaps WAY/profile) and the seed that do it."""
    profile, _, seed = run.partition(" ")
    way = profile.rpartition("/")[0]
    all_others = [f"{way}/{other}" if way else other for other in ("default", "lossy", "slow-disks")]
    others = tuple(other for other in all_others if other != profile)
    return Mutant(name, changes, seen=(profile, int(seed)), profiles=(profile, *others))


CORE = "multipaxos"
CLASSIC, LEADER, ONE_LOG = "protocol.classic", "protocol.leader", "protocol.one_log"

SYNC = "            self._files.fdatasync(handle)\n"
SET_MARK = "            self._mark.set(self._number, self._segment)\n"

MUTANTS = [
    # -- classic: one log, and a ballot for every command
    told(
        "classic: who was refused stands again at once",
        "test_one_log.test_a_refused_candidate_waits_longer_each_time_and_not_for_ever",
        (CLASSIC, "self.stand_at = now + self.limit * self.random.random()", "self.stand_at = 0.0"),
    ),
    told(
        "classic: pauses do not grow",
        "test_one_log.test_a_refused_candidate_waits_longer_each_time_and_not_for_ever",
        (CLASSIC, "min(max(2 * self.limit, first), LONGEST * first)", "first"),
    ),
    told(
        "classic: pauses grow without end",
        "test_one_log.test_a_refused_candidate_waits_longer_each_time_and_not_for_ever",
        (CLASSIC, "min(max(2 * self.limit, first), LONGEST * first)", "max(2 * self.limit, first)"),
    ),
    met(
        "classic: what was adopted is appended once more",
        "classic/default 1",
        (
            CLASSIC,
            "elif self.entry.payload is not None and not self._is_in(proposer.entries):",
            "elif self.entry.payload is not None:",
        ),
    ),
    met(
        "leader: what is chosen and not yet applied is handed over once more",
        "leader/default 1",
        (ONE_LOG, "for entry in [*unapplied, *unchosen])", "for entry in unchosen)"),
    ),
    told(
        "classic: a read rides on a ballot that is led already",
        "test_one_log.test_a_read_that_comes_while_a_ballot_is_led_waits_for_the_next_one",
        (
            CLASSIC,
            "        if self.riding:\n",
            "        self.riding, self.waiting = self.riding + self.waiting, []\n        if self.riding:\n",
        ),
    ),
    told(
        "classic: a read whose ballot is refused is answered",
        "test_one_log.test_a_refused_read_is_asked_again_and_is_not_stale",
        (
            CLASSIC,
            "        self.waiting[:0], self.riding = self.riding, []\n",
            "        self.dated.append((0, self.riding))\n        self.riding = []\n",
        ),
    ),
    told(
        "classic: a read is answered when its ballot is led",
        "test_one_log.test_a_classic_read_executes_what_its_ballot_adopts",
        (
            CLASSIC,
            "self.riding, self.waiting = self.waiting[:1], self.waiting[1:]",
            "self.outbox.ready.reads += self.waiting[:1]\n            del self.waiting[:1]",
        ),
    ),
    told(
        "classic: a ballot is given up before its entry is chosen",
        "test_one_log.test_a_command_has_a_ballot_of_its_own_and_gives_it_up",
        (
            CLASSIC,
            "if own.established and self.learner.logs[self.own.log].chosen >= own.end:",
            "if own.leading and own.lengths:",
        ),
    ),
    told(
        "classic: a ballot is kept for the next command",
        "test_one_log.test_a_command_has_a_ballot_of_its_own_and_gives_it_up",
        (CLASSIC, "        self.own.step_down()\n", ""),
    ),
    told(
        "classic: nobody finishes what a dead node has left",
        "test_one_log.test_a_dead_nodes_entry_is_finished_though_nobody_asks_for_anything",
        (ONE_LOG, "return self.acceptor.length > self.learner.logs[self.own.log].chosen", "return False"),
    ),
    told(
        "classic: commands share an entry",
        "test_one_log.test_a_classic_entry_holds_one_request",
        (CLASSIC, "    batch: ClassVar[int] = 1\n", "    batch: ClassVar[int] = 100\n"),
    ),
    told(
        "classic: another's entry with the same commands is taken for ours",
        "test_one_log.test_what_another_node_has_finished_is_not_appended_again",
        ("node.replica", "encode(Batch(commands, core.origin()))", "encode(Batch(commands))"),
    ),
    told(
        "classic: nobody asks who lives before another's entry is finished",
        "test_one_log.test_a_dead_nodes_entry_is_finished_however_short_patience_is",
        (ONE_LOG, "                self.outbox.send(peer, Barrier(0, 0))\n", "                pass\n"),
    ),
    # -- leader: one log, and one node that leads it for all
    told(
        "leader: one that is told of a higher promise leads on",
        "test_one_log.test_a_leader_that_hears_of_a_higher_promise_leads_no_more_and_its_reads_end",
        (LEADER, "if self.own.leading and message.promised > self.own.ballot:", "if False:"),
    ),
    told(
        "leader: a forward that comes again is appended again",
        "test_one_log.test_a_forward_that_comes_twice_is_done_once",
        (LEADER, "if leads and origin > self.takes.get(sender, (0, 0)):", "if leads:"),
    ),
    told(
        "leader: a forward is taken at another ballot than that which it names",
        "test_one_log.test_a_leader_takes_nothing_for_a_ballot_that_it_does_not_lead",
        (
            LEADER,
            "leads = self.own.leading and self.own.ballot == message.ballot",
            "leads = self.own.leading",
        ),
    ),
    told(
        "leader: a forward is taken from whom the adopted log is not known",
        "test_one_log.test_a_leader_takes_nothing_from_whom_its_adopted_log_is_not_known",
        (LEADER, "if message.held < self.adopted or not", "if not"),
    ),
    told(
        "leader: whether the new leader's log has it is looked up once",
        "test_one_log.test_whether_the_leader_has_taken_a_command_is_seen_in_its_log",
        (
            LEADER,
            'handed.ballot, handed.taken, handed.at = ballot, False, float("-inf")',
            'handed.ballot, handed.at = ballot, float("-inf")\n'
            "            handed.taken = self._is_in(self.acceptor.entries)",
        ),
        (
            LEADER,
            "handed.taken = self._is_in(\n            self.own",
            "handed.taken = leads and self._is_in(\n            self.own",
        ),
    ),
    told(
        "leader: what the new leader has adopted is handed to it again",
        "test_one_log.test_a_dead_leader_is_replaced_and_what_it_had_taken_is_done_once",
        (
            LEADER,
            "handed.taken = self._is_in(\n            self.own",
            "handed.taken = leads and self._is_in(\n            self.own",
        ),
    ),
    told(
        "leader: a new leader appends its own entry again",
        "test_one_log.test_a_new_leader_that_has_adopted_its_own_command_does_not_append_it_again",
        (LEADER, "if leads and not handed.taken:", "if leads:"),
    ),
    told(
        "leader: it answers reads without a quorum",
        "test_one_log.test_a_read_needs_a_quorum_that_has_promised_nothing_higher",
        (LEADER, "if ballot and holds >= self.own.quorum:", "if ballot and holds:"),
    ),
    told(
        "leader: who has promised a higher ballot counts for a read",
        "test_one_log.test_a_paused_leader_reads_nothing_stale_when_it_resumes",
        (LEADER, "sum(promised <= ballot for promised", "sum(promised > 0 for promised"),
    ),
    told(
        "leader: after a restart it vouches for its old ballot",
        "test_one_log.test_a_restarted_leader_does_not_vouch_for_its_old_ballot",
        (
            LEADER,
            "self.own.ballot if self.own.established else 0)\n\n    def answer_reads",
            "self.acceptor.accepted)\n\n    def answer_reads",
        ),
    ),
    told(
        "leader: it answers reads before it is established",
        "test_one_log.test_a_new_leader_reads_nothing_before_it_is_established",
        (
            LEADER,
            "self.own.ballot if self.own.established else 0)\n\n    def answer_reads",
            "self.own.ballot if self.own.leading else 0)\n\n    def answer_reads",
        ),
        (LEADER, "known if self.own.established else (0, 0)", "known if self.own.leading else (0, 0)"),
    ),
    told(
        "leader: an answer of an older round counts for a read",
        "test_one_log.test_no_answer_of_an_older_round_counts_for_a_read",
        (LEADER, "if message.round != self.reading.round or not", "if not"),
    ),
    told(
        "leader: a read does not wait until what the leader knows is executed",
        "test_one_log.test_a_read_answered_by_the_leader_waits_until_so_much_is_executed_here",
        (
            LEADER,
            "self.dated.append((chosen, self.reading.asking))",
            "self.dated.append((0, self.reading.asking))",
        ),
    ),
    told(
        "leader: whoever was cut off deposes it on healing",
        "test_one_log.test_whoever_was_cut_off_deposes_nobody_on_healing",
        (
            ONE_LOG,
            "        return self.contacts.reached(self.revocation.patience(now) / 2, now) >= self.own.quorum",
            "        return True",
        ),
    ),
    told(
        "leader: one that cannot finish anything is kept",
        "test_one_log.test_a_leader_that_cannot_finish_anything_is_replaced_though_all_hear_it",
        (
            LEADER,
            "return waits or any(self.reads()) or super()._is_held_up(now)",
            "return nobody",
        ),
    ),
    told(
        "leader: a candidate that has died is waited for",
        "test_one_log.test_a_candidate_that_dies_before_it_leads_is_replaced",
        (LEADER, "waits = nobody or accepted < self.acceptor.promised or", "waits ="),
    ),
    told(
        "leader: a forward that was lost is not sent again",
        "test_one_log.test_a_forward_that_was_lost_is_sent_again",
        (
            LEADER,
            "if handed.taken or now - handed.at < RESEND_AFTER:",
            "if handed.taken or handed.at > 0:",
        ),
    ),
    told(
        "leader: who has handed a command over is not told that it is chosen",
        "test_one_log.test_who_has_handed_a_command_over_hears_at_once_that_it_is_chosen",
        (LEADER, "            self.gossip.awaits(sender, self.entry.timestamp)\n", ""),
    ),
    told(
        "leader: who does not reach it keeps its clients waiting",
        "test_one_log.test_who_does_not_reach_the_leader_sends_clients_elsewhere_and_deposes_nobody",
        (LEADER, "        self.cut_off = silent\n", ""),
    ),
    # -- one log: promises and votes
    met(
        "a quorum of votes is one node short",
        "default 1",
        (CORE, "    ordered = sorted(lengths)\n", "    quorum -= 1\n    ordered = sorted(lengths)\n"),
    ),
    met(
        "a quorum of promises is one node short",
        "default 9",
        (CORE, "if len(self.promises) < self.quorum:", "if len(self.promises) < self.quorum - 1:"),
    ),
    met(
        "votes are counted, not the nodes that cast them",
        "default 1",
        (
            CORE,
            "            self.lengths[sender] = min(message.length, self.end)\n",
            "            self.lengths[sender] = min(message.length, self.end)\n"
            "        if message.vote == Vote.ACCEPTED:\n"
            "            self.lengths[-len(self.lengths)] = min(message.length, self.end)\n",
        ),
    ),
    met(
        "promises are counted, not the nodes that gave them",
        "lossy 29",
        (CORE, "self.promises[sender] = message", "self.promises[len(self.promises)] = message"),
    ),
    met(
        "the lower ballot's log is adopted",
        "slow-disks 1",
        (
            CORE,
            "return max(promises, key=lambda promise: (promise",
            "return min(promises, key=lambda promise: (promise",
        ),
    ),
    met(
        "the shortest log of the highest ballot is adopted",
        "slow-disks 1",
        (CORE, "(promise.accepted, len(promise.entries))", "(promise.accepted, -len(promise.entries))"),
    ),
    # Safe: who has promised a higher ballot accepts at none below it, and so no quorum does. A waste of time.
    told(
        "a lower ballot is promised, too",
        "test_acceptor.test_a_promise_is_given_unless_a_higher_ballot_has_it",
        (
            CORE,
            "        if message.ballot < self.promised:\n            return self._promise",
            "        if False:\n            return self._promise",
        ),
    ),
    met(
        "a promise does not keep from voting at a lower ballot",
        "lossy 1",
        (
            CORE,
            "        if message.ballot < self.promised:\n            return Vote",
            "        if False:\n            return Vote",
        ),
    ),
    met(
        "a promise is not journaled",
        "default 1",
        (CORE, "            self.journal(Record(promised=LogBallot(self.log, message.ballot)))\n", ""),
    ),
    met(
        "votes leave while what they say gathers in the next frame",
        "lossy 1",
        (
            "node.replica",
            "        elif self.when_durable and not self.records:",
            "        elif self.when_durable:",
        ),
    ),
    met(
        "a vote that can wait says what is not durable",
        "default 1",
        (
            "protocol.logs",
            "length = durable if deferred else acceptor.length",
            "length = acceptor.length",
        ),
    ),
    met(
        "a vote that can wait takes the length of an older ballot's log",
        "lossy 1",
        (
            "protocol.logs",
            "deferred = self.me in message.lazy and ballot == message.ballot",
            "deferred = self.me in message.lazy",
        ),
    ),
    told(
        "an installed checkpoint does not count as durable",
        "test_checkpoints.test_what_a_checkpoint_covers_is_durable_with_it",
        ("protocol.persistence", "                logs.update(self.acceptors)\n", "                pass\n"),
    ),
    told(
        "what a slow disk has not written is sent again and again",
        "test_proposer.test_a_peer_that_holds_no_more_than_before_is_sent_it_less_and_less_often",
        (CORE, "        elif message.length > self.lengths.get(sender, -1):  # else", "        else:  # "),
    ),
    met(
        "accepted entries are not journaled",
        "default 1",
        (CORE, "        self.journal(Record(held=Held(self.log, ballot, start, entries)))\n", ""),
    ),
    met(
        "a candidate's ballot is not journaled",
        "default 1",
        (
            "protocol.way",
            "self.outbox.journal(proposer.prepare(acceptor.chosen, acceptor.promised, wanted))",
            "proposer.prepare(acceptor.chosen, acceptor.promised, wanted)",
        ),
    ),
    met(
        "N13: a restart forgets promises",
        "slow-disks 5",
        (CORE, "self.promised = max(self.promised, record.promised.ballot)", "pass"),
    ),
    met(
        "a candidate takes the same ballot again",
        "default 1",
        (
            CORE,
            "ballot_of(round_of(self.highest) + 1, self.me)",
            "ballot_of(max(1, round_of(self.highest)), self.me)",
        ),
    ),
    met(
        "two nodes share a ballot",
        "slow-disks 2",
        (
            CORE,
            "self.ballot = self.highest = ballot_of(round_of(self.highest) + 1, self.me)",
            "self.ballot = self.highest = ballot_of(round_of(self.highest) + 1, 1)",
        ),
    ),
    met(
        "votes of an older ballot are kept",
        "slow-disks 1",
        (
            CORE,
            "        self.promises.clear()\n        self.lengths.clear()\n",
            "        self.promises.clear()\n",
        ),
        (CORE, "        self.lengths.clear()\n        self.prepares = 0\n", "        self.prepares = 0\n"),
    ),
    told(
        "promises to an older ballot are counted",
        "test_more_scenarios.test_a_promise_to_an_earlier_ballot_of_the_same_candidate_does_not_count",
        (CORE, "or message.ballot != self.ballot or message.from_slot", "or message.from_slot"),
        (
            "protocol.logs",
            "not proposer.preparing or message.ballot != proposer.ballot:",
            "not proposer.preparing:",
        ),
    ),
    met(
        "a deposed leader goes on",
        "default 1",
        ("protocol.logs", "(proposer.leading or proposer.preparing) and promised > proposer.ballot", "False"),
        (
            "protocol.logs",
            "        if message.promised > proposer.ballot:\n"
            "            self.way.lose(proposer, message.promised, now)\n        elif message.ballot",
            "        if message.ballot",
        ),
        ("protocol.logs", "proposer.leading and evidence > proposer.ballot", "False"),
    ),
    told(
        "a new ballot's sync keeps the old log's end",
        "test_acceptor.test_the_sync_of_a_new_ballot_drops_the_end_of_the_old_log",
        (
            CORE,
            "self._hold(message.ballot, self.chosen, message.entries[self.chosen - message.start :])",
            "self._hold(message.ballot, self.chosen, [*message.entries[self.chosen - message.start :],"
            " *self.entries[message.start + len(message.entries) - self.base :]])",
        ),
    ),
    told(
        "installed entries keep the old log's end",
        "test_acceptor.test_what_is_installed_drops_what_a_later_ballot_did_not_keep",
        (
            CORE,
            "self._hold(evidence, self.chosen, entries[self.chosen - start :])",
            "self._hold(evidence, self.chosen, [*entries[self.chosen - "
            "start :], *self.entries[end - self.base :]])",
        ),
    ),
    met(
        "installed entries leave the accepted ballot as it was",
        "lossy 1",
        (
            CORE,
            "self._hold(evidence, self.chosen, entries[self.chosen - start :])",
            "self._hold(self.accepted, self.chosen, entries[self.chosen - start :])",
        ),
    ),
    met(
        "unchosen entries are handed to those that fetch",
        "lossy 1",
        (
            "protocol.catch_up",
            "        if acceptor.base <= message.from_slot < acceptor.chosen:",
            "        if acceptor.base <= message.from_slot < acceptor.length:",
        ),
        (
            "protocol.catch_up",
            "acceptor.from_slot(message.from_slot, acceptor.chosen):\n                entries",
            "acceptor.from_slot(message.from_slot):\n                entries",
        ),
    ),
    met(
        "the evidence of an older length stands for a new one",
        "default 1",
        (
            CORE,
            "learned.chosen, learned.evidence = chosen, evidence",
            "learned.chosen, learned.evidence = chosen, learned.evidence or evidence",
        ),
    ),
    told(
        "an entry given up looks like one never accepted",
        "test_acceptor.test_an_entry_given_up_does_not_look_like_one_never_accepted",
        (CORE, "if message.from_slot < self.base or self", "if self"),
    ),
    told(
        "an entry given up is handed to those that fetch",
        "test_more_scenarios.test_a_peer_that_lacks_what_the_leader_has_given_up_fetches_it",
        (
            "protocol.catch_up",
            "if acceptor.base <= message.from_slot < acceptor.chosen:",
            "if message.from_slot < acceptor.chosen:",
        ),
    ),
    told(
        "a leader sends entries that it has given up",
        "test_more_scenarios.test_a_peer_that_lacks_what_the_leader_has_given_up_fetches_it",
        (
            "protocol.way",
            "start < max(acceptor.base, chosen - UNCHOSEN_ENTRIES)",
            "start < chosen - UNCHOSEN_ENTRIES",
        ),
    ),
    told(
        "what is not chosen is given up",
        "test_acceptor.test_only_executed_entries_are_given_up_and_only_once",
        (CORE, '        assert below <= self.chosen, "only chosen entries can be given up"\n', ""),
    ),
    told(
        "an Accept that was lost is not sent again",
        "test_more_scenarios.test_an_accept_that_was_lost_is_sent_again",
        (
            CORE,
            "late = now - courier.at >= min(RESEND_AFTER * (1 << courier.silent), RESEND_AT_MOST)",
            "late = False",
        ),
    ),
    told(
        "a Prepare that was lost is not sent again",
        "test_more_scenarios.test_a_prepare_that_was_lost_is_sent_again",
        (
            "protocol.way",
            "if proposer.preparing and now - proposer.prepared_at >=",
            "if False and now - proposer.prepared_at >=",
        ),
    ),
    told(
        "a fetch that was lost is not sent again",
        "test_more_scenarios.test_a_fetch_that_was_lost_goes_to_another_node",
        (
            "protocol.catch_up",
            "self.fetching[log] = (now + FETCH_AGAIN, self._another(whom))",
            'self.fetching[log] = (float("inf"), whom)',
        ),
    ),
    told(
        "a read's question that was lost is not sent again",
        "test_more_scenarios.test_a_reads_question_that_was_lost_is_sent_again",
        ("protocol.reads", "if self.round is not None and now - self.round.at >= RESEND_AFTER:", "if False:"),
    ),
    # -- checkpoints
    told(
        "an entry is given up before a frame has noted it as executed",
        "test_checkpoints.test_an_entry_is_given_up_when_all_hold_it_and_a_frame_has_noted_it",
        (
            "protocol.compaction",
            "min([noted, *(",
            "min([self.learner.logs[log].executed, *(",
        ),
    ),
    told(
        "a node says that it holds what a restart would forget",
        "test_checkpoints.test_a_node_says_that_it_holds_what_it_would_know_to_be_chosen_after_a_restart",
        (
            "protocol.persistence",
            "        self.chosen_durable = self.chosen_in_frame\n",
            "        self.chosen_durable = [acceptor.chosen for acceptor in self.acceptors.values()]\n",
        ),
    ),
    told(
        "who lacks nothing of a log waits for a checkpoint of it all the same",
        "test_checkpoints.test_who_has_given_up_more_than_its_checkpoint_has_makes_a_new_one",
        (
            "protocol.compaction",
            "acceptor.base > max(self.checkpointed_to[log], held)",
            "acceptor.base > self.checkpointed_to[log]",
        ),
    ),
    told(
        "an entry that a checkpoint covers is taken for an empty one",
        "test_acceptor.test_an_entry_that_a_checkpoint_covers_does_not_look_like_one_never_accepted",
        (CORE, "if message.from_slot < self.base or self", "if self"),
    ),
    told(
        "a checkpoint is installed without raising accepted to its evidence",
        "test_acceptor.test_a_checkpoint_brings_an_acceptor_nowhere_back_and_no_wrong_entry",
        (
            CORE,
            "        self.accepted = max(self.accepted, evidence)\n        self.promised",
            "        self.promised",
        ),
    ),
    told(
        "positions are not merged: a checkpoint's are taken",
        "test_learner.test_positions_merge_log_by_log",
        (CORE, "learned.executed = max(learned.executed, executed)", "learned.executed = executed"),
    ),
    told(
        "a checkpoint does not know the timestamp of a skip that was given up",
        "test_learner.test_a_skip_that_was_given_up_still_counts",
        (CORE, "            self.floor = self.entries[below - self.base - 1].timestamp\n", ""),
    ),
    told(
        "an older checkpoint replaces what is applied",
        "test_learner.test_a_checkpoint_takes_the_place_of_what_is_applied_only_if_it_lies_beyond",
        (CORE, "if cut.position <= self.position:", "if False:"),
    ),
    told(
        "sessions are forgotten by a checkpoint",
        "test_checkpoints.test_a_node_recovers_from_its_own_checkpoint_and_the_journal_behind_it",
        ("state.store", "        self._sessions = sessions\n", "        self._sessions = OrderedDict()\n"),
    ),
    told(
        "N13: a segment begins without promises",
        "test_checkpoints.test_a_segment_begins_with_all_that_must_not_be_forgotten",
        ("protocol.persistence", "                Record(promised=LogBallot(log, acceptor.promised)),\n", ""),
    ),
    told(
        "N13: a segment begins without the ballots that were stood with",
        "test_checkpoints.test_a_candidates_ballot_outlives_the_segment_that_it_stands_in",
        ("protocol.persistence", "for log, p in self.proposers.items()]", "for log, p in {}.items()]"),
    ),
    told(
        "a segment begins without what was applied since the last frame",
        "test_checkpoints.test_a_segment_that_begins_with_an_installed_checkpoint_leaves_out_no_entry",
        (
            "protocol.persistence",
            "[*self._notes(), Record(installed=number)]",
            "[*self.notes(), Record(installed=number)]",
        ),
    ),
    told(
        "commands that a checkpoint covers are proposed again",
        "test_checkpoints.test_commands_of_ours_that_a_checkpoint_covers_may_have_been_applied",
        (
            "protocol.commands",
            "for t in self.pending if (t, self.own.log) <= position]",
            "for t in self.pending if False]",
        ),
    ),
    told(
        "entries are given up before all nodes hold them",
        "test_checkpoints.test_an_entry_is_given_up_when_all_hold_it_and_a_frame_has_noted_it",
        ("protocol.compaction", "*(held[index] for held in self.held_by.values())", ""),
    ),
    told(
        "a node that differs goes on",
        "test_checkpoints.test_the_few_that_differ_stop_case",
        ("protocol.divergence", "if len(differ) >= self.quorum or", "if False or"),
        ("protocol.divergence", "(asked and late and len(differ) >= ours)", "False"),
    ),
    # -- between the parts
    told(
        "one more vote is deferred than may be",
        "test_more_scenarios.test_a_command_makes_only_a_quorum_fsync_at_once",
        (
            "protocol.voters",
            "if len(voters) == self.own.quorum:",
            "if len(voters) == self.own.quorum - 1:",
        ),
    ),
    told(
        "reads are not told that a checkpoint has the entry that they ride on",
        "test_checkpoints.test_reads_that_rode_on_commands_that_a_checkpoint_covers_have_a_round",
        ("protocol.own_logs", "        self.reads.log_lost()\n\n    def end_turn", "\n    def end_turn"),
    ),
    told(
        "nobody forgets what a lost disk has said",
        "test_rejoin.test_a_vote_of_the_lost_disk_does_not_count_once_its_successor_is_noted",
        (
            "protocol.node",
            "        if self.incarnations.note(peer, incarnation, life):\n            self._forget(peer)\n",
            "        self.incarnations.note(peer, incarnation, life)\n",
        ),
    ),
    # -- disks that were lost
    told(
        "N3: a rejoining node asks a quorum, not all",
        "test_rejoin.test_every_other_node_must_answer",
        ("protocol.rejoin", "return everybody and sum(", "return sum("),
    ),
    told(
        "a rejoining node trusts what it was told before all had noted it",
        "test_rejoin.test_a_vote_of_a_lost_disk_that_was_counted_after_others_had_answered_is_not_lost",
        ("protocol.rejoin", "            if self.noted_by_all:", "            if True:"),
    ),
    told(
        "a node that hears of one that is wrong, and of few others, stops",
        "test_checkpoints.test_a_healthy_node_that_is_a_little_behind_is_not_stopped_by_one_that_is_wrong",
        ("protocol.divergence", "or (asked and late and", "or (late and"),
    ),
    told(
        "rejoining nodes make up a state among themselves",
        "test_rejoin.test_three_of_five_that_lost_their_disks_do_not_make_up_a_state",
        (
            "protocol.rejoin",
            "return everybody and sum(self.tells(peer) for peer in self.answers) >= self.quorum",
            "return everybody",
        ),
    ),
    told(
        "claims that make no sense are heeded",
        "test_claims.test_what_nobody_can_have_come_to_is_refused_counted_and_changes_nothing",
        ("protocol.claims", "return reason is not None", "return False"),
    ),
    told(
        "an incarnation that nobody can have is noted",
        "test_claims.test_a_process_whose_disk_or_start_nobody_can_have_is_refused_and_not_noted",
        ("protocol.node", "self.claims.refusal(identity) or ", ""),
    ),
    told(
        "any number of entries is believed to be chosen",
        "test_claims.test_writes_go_on_when_somebody_says_that_a_thousand_million_entries_are_chosen",
        (
            "protocol.logs",
            "if fact.chosen > self.acceptors[log].length + self.catch_up.credit:",
            "if False:",
        ),
    ),
    told(
        "who has missed many skips is refused",
        "test_claims.test_honest_steps_are_never_too_high_however_many_were_missed",
        ("protocol.claims", "max(NUMBERS - known >> SHARE, SKIP)", "SKIP"),
    ),
    told(
        "a rejoining node votes",
        "test_rejoin.test_a_node_that_rejoins_has_no_part_in_anything_until_it_is_done",
        (
            "protocol.node",
            "(self.rejoining is None or kind in WHILE_REJOINING)",
            "True",
        ),
    ),
    told(
        "promises of a lost disk are counted",
        "test_rejoin.test_a_promise_of_the_lost_disk_does_not_count_once_its_successor_is_noted",
        (CORE, "        self.promises.pop(peer, None)\n", ""),
    ),
    told(
        "votes of a lost disk are counted",
        "test_rejoin.test_a_vote_of_the_lost_disk_does_not_count_once_its_successor_is_noted",
        (CORE, "        self.lengths.pop(peer, None)\n", ""),
    ),
    told(
        "a rejoining node is not told what its leader has not voted for",
        "test_rejoin.test_what_a_leader_proposed_and_has_not_voted_for_is_told",
        ("protocol.rejoin", "accepted, entries = proposer.ballot, list(proposer.entries)", "pass"),
    ),
    told(
        "a rejoining node is not told the ballots that a peer stood with",
        "test_rejoin.test_a_peer_tells_the_highest_ballot_that_it_ever_stood_with",
        ("protocol.rejoin", "promised = max(promised, proposer.highest)", "pass"),
    ),
    told(
        "a rejoining node never learns that a higher incarnation is noted",
        "test_rejoin.test_a_node_whose_incarnation_is_too_low_takes_a_higher_one_and_begins_anew",
        ("protocol.rejoin", "        if message.noted > incarnation:", "        if False:"),
    ),
    told(
        "the clock of a node that rejoined lies below what the lost one said",
        "test_rejoin.test_the_clock_is_raised_to_the_highest_that_is_told",
        (
            "protocol.rejoin",
            "        self.clock.hear(message.clock)\n        return True\n",
            "        return True\n",
        ),
    ),
    told(
        "N26: an answer to a rejoin counts whichever process gives it",
        "test_replaced_nodes."
        "test_an_answer_of_an_older_process_does_not_count_whether_it_comes_early_or_late",
        ("protocol.rejoin", "if self.incarnations.is_older(sender, message.lives):", "if False:"),
    ),
    told(
        "N26: an answer to a rejoin goes on counting when a newer process of its node is noted",
        "test_replaced_nodes."
        "test_an_answer_of_an_older_process_does_not_count_whether_it_comes_early_or_late",
        ("protocol.node", "            self.rejoining.forget(peer)\n", "            pass\n"),
    ),
    told(
        "N26: what a rejoining node is told of others is noted for this start only",
        "test_replaced_nodes.test_what_was_told_of_others_survives_a_crash_in_the_middle_of_the_rejoin",
        (
            "protocol.node",
            "            self.note(*process)\n",
            "            lives = self.incarnations.lives\n            lives[process[0]] = process[1:]\n",
        ),
    ),
    told(
        "an older start of a disk is listened to",
        "test_rejoin.test_which_processes_may_speak_for_a_node",
        ("protocol.incarnations", "(incarnation == disk and older)", "False"),
    ),
    told(
        "an older disk is listened to",
        "test_rejoin.test_a_copy_of_a_disk_that_was_replaced_is_refused",
        ("protocol.incarnations", "if incarnation and (incarnation < disk or ", "if incarnation and ("),
    ),
    # -- five logs, one order
    met(
        "R1: a revoker puts a command of its own into the log that it finishes",
        "default 2",
        (
            "protocol.own_logs",
            'proposer.append(Entry(self.clock.stamp_skip(self.learner.last_timestamp(proposer)), b""))\n',
            'theirs = next(iter(self.commands.pending.values()), (b"", None))[0]\n'
            "        skip = self.clock.stamp_skip(self.learner.last_timestamp(proposer))\n"
            "        proposer.append(Entry(skip, theirs))\n",
        ),
    ),
    told(
        "R2: an owner stamps an entry above its log, not above its clock",
        "test_more_scenarios.test_the_first_command_of_a_life_lies_above_the_frontiers_of_the_last",
        (
            "protocol.clock",
            "timestamp = max(self.time, last) + 1",
            "timestamp = last + 1",
        ),
    ),
    met(
        "R2: an owner stamps an entry above its log, not above what it has said of its clock",
        "default 1",
        (
            "protocol.clock",
            "timestamp = max(self.time, last) + 1",
            "timestamp = last + 1",
        ),
        (
            "protocol.commands",
            "timestamp = self.clock.stamp(self.learner.last_timestamp(self.own))",
            "last = (self.learner.acceptors[self.own.log].entries + self.own.entries)[-1:]\n"
            "        timestamp = self.clock.stamp(max([entry.timestamp for entry in last], default=0))",
        ),
    ),
    met(
        "R3: a reservation counts before it is durable",
        "default 1",
        (
            "protocol.clock",
            "return min(self.time, self.reserved)",
            "return min(self.time, self.reserving)",
        ),
    ),
    met(
        "R4: a candidate makes frontiers",
        "default 1",
        (
            "protocol.logs",
            "if frontier > learned.known and self.owners and self.own.established:",
            "if frontier > learned.known:",
        ),
    ),
    met(
        "R5: a client is answered when its command is chosen",
        "default 1",
        (
            "node.replica",
            "            for applied in ready.apply:\n",
            "            self._answer_early()\n            for applied in ready.apply:\n",
        ),
        (
            "node.replica",
            "    def _apply(self, applied: Applied) -> None:\n",
            "    def _answer_early(self) -> None:\n"
            "        chosen = self.core.learner.logs[self.core.me].frontier\n"
            "        held = self.core.acceptors[self.core.me]\n"
            "        for entry in held.entries[: held.chosen]:\n"
            "            payload, token = self.core.way.commands.pending.get(entry.timestamp, (None, None))\n"
            "            if token and any(request in self.open for request in token):\n"
            '                copy = Store("copy")\n'
            "                copy.load_state(self.store.save_state())\n"
            "                copy.position = (0, 0)\n"
            "                results = copy.apply(entry.timestamp, self.core.me, payload)\n"
            "                self._answer_all(token, results)\n\n"
            "    def _answer_all(self, token: Any, results: Any) -> None:\n"
            "        for request in token:\n"
            "            count = len(request.commands)\n"
            "            self._finish(request, results[:count] if request.batch else refusal(results[0]))\n"
            "            del results[:count]\n\n"
            "    def _apply(self, applied: Applied) -> None:\n",
        ),
    ),
    told(
        "R6: an answer to an Accept tells the frontier from before it",
        "test_more_scenarios.test_a_command_costs_one_round_trip_at_the_node_whose_turn_comes_last_too",
        (
            "protocol.logs",
            "        self._hear_entries(sender, message)\n",
            "        told = self.own_fact()\n        self._hear_entries(sender, message)\n",
        ),
        (
            "protocol.logs",
            "acceptor.promised, vote, length, own)",
            "acceptor.promised, vote, length, told)",
        ),
    ),
    met(
        "a frontier includes the first unchosen command",
        "default 1",
        ("protocol.logs", "frontier = min(frontier, first - 1)", "frontier = min(frontier, first)"),
    ),
    met(
        "a frontier may lie one below what a command needs",
        "default 1",
        (
            CORE,
            "if learned.frontier < needed(timestamp, owner, log):",
            "if learned.frontier < timestamp - 1:",
        ),
    ),
    told(
        "a frontier must lie one above what a command needs",
        "test_more_scenarios.test_a_command_costs_one_round_trip_at_the_node_whose_turn_comes_last_too",
        (
            CORE,
            "if learned.frontier < needed(timestamp, owner, log):",
            "if learned.frontier < timestamp + (log < owner):",
        ),
    ),
    met(
        "commands are applied in the order in which they are chosen",
        "default 1",
        (CORE, "if learned.frontier < needed(timestamp, owner, log):", "if False:"),
        (CORE, "if head <= self.position:", "if False:"),
        (
            "state.store",
            '        assert position > self.position, f"entry {position} applied after {self.position}"\n',
            "",
        ),
    ),
    told(
        "a skip raises the clock of those that receive it",
        "test_scenarios.test_a_skip_does_not_drag_the_clocks_along",
        (
            "protocol.logs",
            "self.clock.see(last, command)  # R6",
            "self.clock.see(last, last)",
        ),
    ),
    met(
        "a clock begins at zero after a restart",
        "default 1",
        (
            "protocol.clock",
            "self.time, self.reserving = max(self.time, self.reserved), self.reserved\n",
            "self.reserving = self.reserved\n",
        ),
    ),
    told(
        "a clock heard of raises nobody's",
        "test_more_scenarios.test_nodes_with_nothing_to_do_follow_the_clocks_of_others",
        (
            "protocol.clock",
            "        self.raise_to(time)\n",
            "        pass\n",
        ),
    ),
    told(
        "nobody is told of a frontier that it waits for",
        "test_more_scenarios.test_commands_of_all_nodes_at_once_are_answered_in_half_a_round_trip_more",
        (
            "protocol.gossip",
            "if self.tell_all or (told.frontier < own.frontier and told.frontier < self.awaited[peer]):",
            "if False:",
        ),
    ),
    met(
        "what was applied is applied again from one entry earlier after a restart",
        "default 1",
        (CORE, "if (entry.timestamp, log) <= position", "if (entry.timestamp, log) < position"),
    ),
    # -- proposals, reads and clients
    told(
        "commands are taken before the ballot is established",
        "test_more_scenarios.test_no_command_is_taken_before_the_ballot_is_established",
        (
            "protocol.own_logs",
            "        return self.own.established\n\n    @property\n    def in_flight",
            "        return self.own.leading\n\n    @property\n    def in_flight",
        ),
        ("protocol.own_logs", "assert self.own.established,", "assert self.own.leading,"),
    ),
    met(
        "what is chosen but not applied is proposed again",
        "lossy 8",
        (
            "protocol.commands",
            "for entry in [*unapplied, *self.own.entries]",
            "for entry in self.own.entries",
        ),
    ),
    met(
        "all that is pending is proposed again",
        "lossy 8",
        (
            "protocol.commands",
            "for timestamp in sorted(self.pending.keys() - present):",
            "for timestamp in sorted(self.pending.keys()):",
        ),
    ),
    told(
        "nothing is proposed again",
        "test_scenarios.test_an_owner_that_was_wrongly_revoked_proposes_again_what_its_log_lacks",
        (
            "protocol.commands",
            "        if self.unsure and self.own.established:\n            self._find_missing()\n",
            "",
        ),
    ),
    met(
        "a read is answered from what this node has applied",
        "default 1",
        (
            "node.replica",
            "        self.core.read(read)\n",
            "        del self.reading[read]\n        self.answer(token, question())\n",
        ),
    ),
    told(
        "a read trusts its own clock",
        "test_more_scenarios.test_a_read_goes_by_the_highest_clock_of_those_that_it_asked",
        ("protocol.reads", "timestamp = max(current.clocks.values())", "timestamp = current.clock"),
    ),
    told(
        "a read's timestamp is the lowest clock of a quorum",
        "test_more_scenarios.test_a_read_goes_by_the_highest_clock_of_those_that_it_asked",
        (
            "protocol.reads",
            "timestamp = max(current.clocks.values())",
            "timestamp = min(current.clocks.values())",
        ),
    ),
    told(
        "an old round's answers are counted",
        "test_more_scenarios.test_a_read_does_not_count_the_answers_to_an_earlier_round",
        ("protocol.reads", "message.round == self.round.number:", "message.round:"),
    ),
    told(
        "an earlier life's answers are counted",
        "test_more_scenarios.test_a_read_does_not_count_the_answers_to_a_round_of_an_earlier_life",
        ("protocol.reads", "self.rounds = random.getrandbits(48) << 12", "self.rounds = 0"),
    ),
    told(
        "a read waits for the frontiers of others only",
        "test_more_scenarios.test_a_read_waits_for_its_own_nodes_log_too",
        (
            "protocol.reads",
            "        frontier = min(log.frontier for log in self.learner.logs.values())\n",
            "        frontier = min([of.frontier for log, of in "
            "self.learner.logs.items() if log != self.me], default=0)\n",
        ),
    ),
    met(
        "a read is answered before what it waits for is applied",
        "lossy 3",
        (
            "node.replica",
            "            for applied in ready.apply:\n",
            "            while ready.reads:\n"
            "                read = ready.reads.pop(0)\n"
            "                del self.reading[read]\n"
            "                self.answer(read.token, read.question())\n"
            "            for applied in ready.apply:\n",
        ),
    ),
    met(
        "what may still be done is reported as not done",
        "impatient 1",
        (
            "node.replica",
            'self._finish(request, Unknown("no quorum has answered in time"))',
            'self._finish(request, NotDone("no quorum has answered in time", False))',
        ),
    ),
    met(
        "votes and promises leave before their frame is durable",
        "default 1",
        (
            "node.replica",
            "        self.write(records, lambda: self._durable(after), new_segment)\n",
            "        self.write(records, lambda: self._durable([]), new_segment)\n"
            "        self._dispatch(after, self.clock())\n",
        ),
    ),
    # -- sessions
    met(
        "sessions are decided when proposing",
        "default 1",
        (
            "node.replica",
            "                commands += request.commands\n",
            "                commands += [\n"
            "                    Command(c.verb, c.key, c.value, "
            "c.expected, c.delta) for c in request.commands\n"
            "                ]\n",
        ),
    ),
    met(
        "results are dropped as soon as a later command is applied",
        "default 1",
        (
            "state.store",
            "first_incomplete: int = request.first_incomplete",
            "first_incomplete: int = request.sequence",
        ),
    ),
    met(
        "a command whose result was dropped is applied again",
        "default 1",
        (
            "state.store",
            "        if sequence < session.first_incomplete:\n            return _FORGOTTEN\n",
            "        session.forget(sequence)\n",
        ),
    ),
    told(
        "N7: an unknown session looks new",
        "test_store.test_an_unknown_session_is_expired_never_new",
        (
            "state.store",
            "                return _EXPIRED\n            self._sessions",
            "                found = self._sessions[identity] = _Session(1, {})\n            self._sessions",
        ),
    ),
    told(
        "the session opened first makes room, not that used least recently",
        "test_store.test_the_oldest_unused_session_makes_room_for_a_new_one",
        ("state.store", "            self._sessions.move_to_end(identity)\n", ""),
    ),
    told(
        "a session forgets first_incomplete when it is told a lower one",
        "test_store.test_the_first_incomplete_sequence_never_falls",
        (
            "state.store",
            "        if first_incomplete > session.first_incomplete:",
            "        if first_incomplete != session.first_incomplete:",
        ),
    ),
    # -- transactions, and the formats of commands
    met(
        "a transaction's comparisons are made after its first action",
        "transactions 1",
        (
            "state.commands",
            "    held = all(_holds(content, compare) for compare in transaction.compares or ())\n"
            "    actions = (transaction.then_do if held else transaction.else_do) or ()\n",
            "    first = (transaction.then_do or [None])[0]\n"
            "    if first is not None and first.verb == Verb.PUT:\n"
            "        content.put(first.key, first.value)\n"
            "    held = all(_holds(content, compare) for compare in transaction.compares or ())\n"
            "    actions = (transaction.then_do if held else transaction.else_do) or ()\n",
        ),
    ),
    met(
        "a transaction whose comparisons do not hold does nothing",
        "transactions 1",
        (
            "state.commands",
            "transaction.then_do if held else transaction.else_do",
            "transaction.then_do if held else ()",
        ),
    ),
    met(
        "one comparison that holds is enough",
        "transactions 1",
        ("state.commands", "held = all(_holds", "held = not transaction.compares or any(_holds"),
    ),
    told(
        "an action that fails leaves those before it done",
        "test_transactions.test_a_transaction_of_which_one_action_fails_changes_nothing",
        (
            "state.commands",
            "    draft = Content({",
            "    draft = content or Content({",
        ),
    ),
    told(
        "a transaction counts as short when entries are made",
        "test_replica.test_no_command_is_longer_than_what_is_counted_for_it",
        ("node.replica", "    if command.transaction is not None:\n", "    if False:\n"),
    ),
    told(
        "the transactions of an entry may read without end",
        "test_transactions.test_what_may_be_read_is_counted_in_characters_and_bounded_for_an_entry",
        ("state.store", "            self._room -= read_by(result)\n", ""),
    ),
    told(
        "what transactions have read does not count in an answer",
        "test_long_work.test_an_answer_that_is_far_too_large_is_not_even_encoded",
        ("node.calls", 'len(result.value or "") + read_by(result)', 'len(result.value or "")'),
    ),
    told(
        "what an ended process has said of its version still counts",
        "test_formats.test_what_an_ended_process_has_said_counts_no_more",
        ("node.formats", "            self.heard[peer] = None\n", ""),
    ),
    told(
        "a request that is refused raises the format",
        "test_formats.test_a_request_that_makes_no_sense_causes_no_upgrade",
        (
            "node.service",
            "        refusal = self._refusal(commands, batch)\n        if batch",
            "        refusal = None\n        if batch",
        ),
    ),
    told(
        "a command goes on although its UPGRADE is lost",
        "test_formats.test_a_command_whose_upgrade_is_lost_was_not_done_and_may_be_tried_again",
        ("node.service", "isinstance(value, Exception) or self.store.format < FORMAT", "False"),
    ),
    told(
        "the data directory does not say that it needs a newer version",
        "test_formats.test_a_format_that_comes_with_a_checkpoint_or_the_journal_is_marked_too",
        ("node.formats", "        self.mark(self.store.format)\n", ""),
    ),
    # -- times to live, and locks
    met(
        "expiry: a newer time to live is removed with an older one's command",
        "expiring 1",
        ("state.commands", "lease is not None and lease.place == compare.place", "lease is not None"),
        ("node.expiry", "lease is not None and lease.place == place", "lease is not None"),
    ),
    met(
        "expiry: a key is removed before its time is over",
        "expiring 1",
        ("node.expiry", "now + lease.ttl_ms / 1000 + self.delay", "now + lease.ttl_ms / 8000"),
    ),
    met(
        "expiry: another write leaves the time to live",
        "expiring 1",
        (
            "state.content",
            "        self.changed.append(value)\n        if self.leases:\n",
            "        self.changed.append(value)\n        if False:\n",
        ),
    ),
    met(
        "expiry: times to live are not in the checkpoint",
        "expiring 2",
        ("state.store", "        self._content.leases, self._content.leased = leases, deque(leases)\n", ""),
    ),
    told(
        "expiry: what is lost is not proposed again",
        "test_expiry.test_what_is_still_there_is_tried_again",
        ("node.expiry", "                heapq.heappush(self.due, (now + AGAIN, key, place))\n", ""),
    ),
    told(
        "expiry: after a restart only new keys are counted down",
        "test_expiry.test_after_a_restart_the_countdown_begins_anew_with_all_keys",
        (
            "state.store",
            "        self._content.leases, self._content.leased = leases, deque(leases)\n",
            "        self._content.leases = leases\n",
        ),
    ),
    told(
        "lock: who has lost it gives back another one's",
        "test_locks.test_who_waits_gets_it_when_it_is_given_back_or_its_time_is_over",
        (
            "client.locks",
            "[t.equals(self.key, name)], [t.delete(self.key)]",
            "[t.exists(self.key)], [t.delete(self.key)]",
        ),
    ),
    told(
        "lock: the holder counts its time from the answer",
        "test_locks.test_a_holder_knows_when_its_time_may_be_over",
        ("client.locks", "self.ttl * (1 - MARGIN)", "self.ttl"),
    ),
    told(
        "two commands of one entry have the same place",
        "test_leases.test_two_commands_of_one_entry_have_other_places",
        ("state.store", "(*self.position, index), room", "(*self.position, 0), room"),
    ),
    told(
        "what results keep has no bound",
        "test_transactions.test_results_that_are_kept_have_a_bound_and_those_given_up_are_forgotten",
        ("state.store", "if session.kept > MAX_KEPT_BY_ONE:", "if False:"),
    ),
    told(
        "a newer command is proposed before all nodes have noted that they may not go back",
        "test_formats.test_a_newer_command_is_not_proposed_before_every_node_has_applied_the_upgrade",
        ("node.formats", ", (0, 0)) < self.since:", ", (0, 0)) < (0, 0):"),
    ),
    told(
        "what a peer has applied is not noted",
        "test_checkpoints.test_a_node_knows_what_its_peers_have_told_to_have_applied",
        ("protocol.divergence", "        self.applied[peer] = position\n", ""),
    ),
    told(
        "a node that goes back while the upgrade is under way is not noticed",
        "test_formats.test_a_node_that_goes_back_while_the_upgrade_is_under_way_is_waited_for",
        (
            "node.formats",
            "        hindrance, applied = self.hindrance(besides)",
            "        hindrance, applied = None",
        ),
    ),
    told(
        "that all nodes have applied the upgrade is forgotten by a restart",
        "test_formats.test_what_all_have_applied_is_remembered_so_that_later_commands_wait_for_nobody",
        ("state.store", "        self.settled = True\n", ""),
    ),
    told(
        "a node whose full disk does not take the mark goes on",
        "test_formats.test_a_full_disk_when_the_format_rises_ends_the_node_until_there_is_room",
        ("node.main", "disk_failed(JournalError(", "print(JournalError("),
    ),
    told(
        "a restored cluster believes the addresses of the old one",
        "test_checkpoint_files.test_a_restored_cluster_is_where_its_own_file_says",
        ("storage.checkpoint", ' if name != "addresses"}', "}"),
    ),
    told(
        "an older version may start on what is restored from a newer one",
        "test_checkpoint_files.test_an_older_version_may_not_start_on_what_is_restored_from_a_newer_one",
        ("storage.checkpoint", "identity._replace(format=store.format or None)", "identity"),
    ),
    told(
        "the new limits of what results keep hold for the old version's commands",
        "test_old_verbs.test_an_old_verb_answers_what_the_first_version_answers",
        ("state.store", "                if self.format:\n", "                if True:\n"),
    ),
    told(
        "a put does not look at a value that it does not need",
        "test_old_verbs.test_an_old_verb_answers_what_the_first_version_answers",
        ("wire.validation", "if verb == Verb.PUT or verb == Verb", "if verb == Verb"),
        (
            "wire.validation",
            "    if verb == Verb.TRANSACTION:\n        return",
            "    if verb == Verb.PUT:\n        return _invalid_value(command.value)\n"
            "    if verb == Verb.TRANSACTION:\n        return",
        ),
    ),
    told(
        "the result of a transaction is not in the checkpoint",
        "test_transactions.test_a_repeated_transaction_is_done_once_and_answered_alike_even_after_a_restart",
        ("state.store", "    if transacted is not None:\n        dumped", "    if False:\n        dumped"),
    ),
    met(
        "a repeated transaction is done again",
        "transactions 1",
        (
            "state.store",
            "        if result is None:\n            result = session",
            "        if result is None or command.verb == Verb.TRANSACTION:\n            result = session",
        ),
    ),
    told(
        "a transaction is applied before all nodes know it",
        "test_transactions.test_before_the_upgrade_old_and_new_nodes_do_the_same_whatever_a_client_sends",
        (
            "state.store",
            "command.verb == Verb.UPGRADE else self.format < 1",
            "command.verb == Verb.UPGRADE else False",
        ),
    ),
    told(
        "a transaction is proposed before all nodes have said that they know it",
        "test_formats.test_nothing_new_is_proposed_before_all_peers_have_said_that_they_know_it",
        ("node.formats", "            if known is None:\n", "            if False:\n"),
        ("node.formats", "            if known < FORMAT:\n", "            if (known or 1) < FORMAT:\n"),
    ),
    told(
        "an older version takes part after the upgrade",
        "test_formats.test_after_the_upgrade_an_older_version_takes_no_part",
        ("node.formats", "        if known < used:\n", "        if False:\n"),
    ),
    told(
        "the format is not in the checkpoint",
        "test_transactions.test_the_format_never_falls_and_lasts",
        (
            "state.store",
            "        rises, self.format, self.settled = format_ > self.format, format_, settled\n",
            "        rises = False\n",
        ),
    ),
    # -- watches
    met(
        "watch: a change is left out between two pages",
        "default 1",
        (
            "state.changes",
            "                return found, at(found[-1].place)\n",
            "                return found, (timestamp, owner, number)\n",
        ),
    ),
    met(
        "watch: the last change of a page is told again",
        "default 1",
        ("state.changes", "first = where[2] + 1 if", "first = where[2] if"),
    ),
    met(
        "watch: changes outlive an installed checkpoint",
        "compacting 1",
        ("state.store", "        self.changes.forget(timestamp, owner)\n", ""),
    ),
    met(
        "watch: a node goes on over changes that it has dropped",
        "busy 2",
        ("state.changes", "            self.floor = (gone, by, LAST)\n", ""),
    ),
    met(
        "watch: the number of a change depends on what a node has applied before",
        "default 1",
        ("state.store", "        self._changed.clear()\n", ""),
    ),
    met(
        "watch: a removal is no change",
        "default 1",
        ("state.content", "        self.changed += (key, None)\n", ""),
    ),
    told(
        "watch: an entry of puts has changed what all of them say",
        "test_changes.test_of_an_entry_of_puts_those_are_changes_that_were_applied",
        (
            "state.store",
            "        if len(self._changed) != 2 * len(commands):\n            return False\n",
            "        if not self._changed:\n            return False\n",
        ),
    ),
    told(
        "watch: who waits is told what it had seen",
        "test_watches.test_a_watch_ahead_of_this_node_is_told_nothing_twice",
        (
            "node.watches",
            "                    watch.after = max(watch.after, seen)\n",
            "                    watch.after = seen\n",
        ),
    ),
    told(
        "watch: who waits does not get on while others' keys change",
        "test_watches.test_a_quiet_watch_outlives_the_changes_of_others",
        (
            "node.watches",
            "                for watch in self.waiting[prefix]:\n"
            "                    watch.after = max(watch.after, seen)\n",
            "",
        ),
    ),
    told(
        "watch: only the first change of a turn wakes anybody",
        "test_watches.test_what_has_changed_is_told_at_once_and_what_will_when_it_does",
        ("node.watches", "for change in changed}", "for change in changed[:1]}"),
    ),
    told(
        "watch: who is left behind by an installed checkpoint waits on",
        "test_watches.test_an_installed_checkpoint_ends_the_watches_that_it_leaves_behind",
        ("node.watches", "changed, few = [], False", "changed, few = [], True"),
    ),
    told(
        "watch: however many beginnings of keys there are, all are compared in one turn",
        "test_watches.test_many_lengths_of_prefixes_and_many_changes_are_not_compared_in_one_turn",
        ("node.watches", "BEGINNINGS // max(len(self.lengths), 1)", "BEGINNINGS"),
    ),
    told(
        "watch: a piece looks at as much as there is",
        "test_watches.test_a_piece_ends_when_enough_was_looked_at",
        ("node.watches", "            if room <= 0:\n", "            if False:\n"),
    ),
    told(
        "replace: a node that was refused for its old version is waited for",
        "test_formats.test_a_node_that_was_refused_for_its_old_version_can_be_replaced",
        ("node.formats", "(known is None or known < self.store.format)", "known is None"),
    ),
    told(
        "watch: a piece tells as much as there is",
        "test_watches.test_a_piece_ends_when_enough_was_told",
        ("state.changes", "max(many, length // BYTES)", "many"),
    ),
    told(
        "watch: it is looked for what a client that has gone wanted",
        "test_watches.test_nothing_is_looked_for_where_the_client_has_gone",
        ("node.watches", "        if not watch.call.connection.open:\n", "        if False:\n"),
    ),
    told(
        "watch: one connection may take all places",
        "test_watches.test_one_connection_does_not_take_the_place_of_all",
        ("node.watches", " or self.of[call.connection] >= MAX_OF_ONE:", ":"),
    ),
    # -- nodes that are replaced
    told(
        "replace: a checkpoint forgets where nodes are",
        "test_replaced.test_an_address_is_a_part_of_the_state_and_survives_a_checkpoint",
        ("state.store", "self.addresses, self.former = addresses, former", "self.former = former"),
    ),
    told(
        "replace: whoever says it is the node is believed, wherever it is",
        "test_replaced.test_a_process_is_refused_where_it_is_not_agreed_to_be",
        ("node.addresses", "identity.address is None or identity.address == agreed.address", "True"),
    ),
    told(
        "replace: a node that lags refuses whoever has moved on",
        "test_replaced.test_a_process_is_refused_where_it_is_not_agreed_to_be",
        ("node.addresses", "identity.address not in self.store.former[identity.node]", "False"),
    ),
    told(
        "replace: what a node says that was away is believed",
        "test_replaced.test_what_a_node_says_that_was_away_does_not_replace_what_was_agreed_since",
        ("client.base", " or moved.since <= self._since.get(moved.node, 0)", ""),
    ),
    told(
        "replace: two nodes that are moved at once come to one address",
        "test_replaced.test_of_two_nodes_that_are_moved_to_one_address_at_once_one_is_not",
        ("state.store", "            return _INVALID  # two were asked for at once\n", "            pass\n"),
    ),
    told(
        "replace: a link stays where the node was",
        "test_replaced.test_links_follow_and_each_change_is_noticed_once",
        ("node.addresses", "        moved = self.store.addresses.get(peer)\n", "        moved = None\n"),
    ),
    told(
        "replace: only the first change is noticed",
        "test_replaced.test_links_follow_and_each_change_is_noticed_once",
        ("node.addresses", "seen.get(node) != self.seen[node]", "node not in seen"),
    ),
    told(
        "replace: two nodes may get one address",
        "test_replaced.test_two_nodes_are_not_at_one_address",
        ("node.addresses", "if other != node and address_text(*self.of(other)) == address:", "if False:"),
    ),
    # -- the state and the journal
    met(
        "compare-and-set does not compare",
        "default 1",
        ("state.commands", "            if present != command.expected:\n", "            if False:\n"),
    ),
    told(
        "a command of a batch does not see those before it",
        "test_store.test_the_commands_of_an_entry_see_one_another_in_order",
        (
            "state.store",
            "        results = [self._apply(command, index) for index, command in enumerate(commands)]",
            "        found = [self._apply(command, index) for index, "
            "command in reversed(list(enumerate(commands)))]\n"
            "        return found[::-1]",
        ),
    ),
    told(
        "N14: a torn frame is taken for a whole one",
        "test_journal.test_every_way_to_tear_a_frame_by_sectors_loses_only_that_frame",
        (
            "storage.segments",
            "intact = end <= len(data) and zlib.crc32(view[offset + OVERHEAD : end]) == body_check",
            "intact = end <= len(data)",
        ),
    ),
    told(
        "N14: frames behind a broken one are cut with it",
        "test_journal.test_a_damaged_frame_before_a_torn_one_is_damage_and_not_a_longer_torn_tail",
        (
            "storage.segments",
            "        if header and not (offset == start and header[0] == expected):\n"
            "            return offset\n",
            "",
        ),
    ),
    met(
        "a frame is not synced",
        "default 1",
        (
            "storage.journal",
            SYNC + SET_MARK,
            SET_MARK,
        ),
    ),
    told(
        "a torn tail is not cut",
        "test_journal.test_a_torn_tail_is_reported_overwritten_with_zeros_and_written_over",
        (
            "storage.journal",
            "        for part in reading.torn:\n            self._cut(part)\n",
            "",
        ),
    ),
    # -- disks that have forgotten something
    told(
        "N25: promises that were heard are forgotten",
        "test_forgotten.test_what_a_start_has_found_is_compared_with_all_that_was_heard",
        (
            "protocol.logs",
            "            self.witness.promised(sender, message.log, message.ballot)\n",
            "            pass\n",
        ),
    ),
    told(
        "N25: votes that were heard are forgotten",
        "test_forgotten.test_what_a_start_has_found_is_compared_with_all_that_was_heard",
        (
            "protocol.logs",
            "            self.witness.voted(sender, message.log, message.ballot, message.length)\n",
            "            pass\n",
        ),
    ),
    told(
        "N25: only the length of a log is compared",
        "test_forgotten.test_what_a_start_has_found_is_compared_with_all_that_was_heard",
        (
            "protocol.witness",
            "        if (found.accepted, found.length) < (ballot, length):\n",
            "        if found.length < length:\n",
        ),
    ),
    told(
        "N25: ballots that others stood with are forgotten",
        "test_forgotten.test_what_a_start_has_found_is_compared_with_all_that_was_heard",
        (
            "protocol.witness",
            "if candidates is not None and ballot > candidates[log] and node_of(ballot) == peer:",
            "if False:",
        ),
    ),
    told(
        "N25: frontiers that were made are forgotten",
        "test_forgotten.test_what_a_start_has_found_is_compared_with_all_that_was_heard",
        (
            "protocol.witness",
            "        if peer in self.claims and fact.frontier > self.claims[peer].frontier:\n",
            "        if False:\n",
        ),
    ),
    told(
        "N25: what a peer had said to hold is not compared",
        "test_forgotten.test_what_a_start_has_found_is_compared_with_all_that_was_heard",
        ("protocol.witness", "        if found.chosen < chosen:\n", "        if False:\n"),
    ),
    told(
        "N25: a start that was refused is noted",
        "test_forgotten.test_what_a_start_has_found_is_compared_with_all_that_was_heard",
        (
            "protocol.node",
            "        if refusal is None and incarnation and (incarnation, life)",
            "        if incarnation and (incarnation, life)",
        ),
    ),
    told(
        "N25: what a life has found is compared again later",
        "test_forgotten.test_what_a_life_has_found_is_asked_once_for_it_has_voted_since",
        (
            "protocol.witness",
            "incarnation == disk > 0 and life != last:",
            "incarnation == disk > 0:",
        ),
    ),
    told(
        "N25: what a lost disk had said is held against the new one",
        "test_forgotten.test_a_new_disk_is_not_held_to_what_the_lost_one_had_said",
        ("protocol.node", "        self.witness.forget(peer)\n", ""),
    ),
    told(
        "N25: a node that rejoins tells what it found",
        "test_forgotten.test_a_start_that_rejoins_says_nothing_of_what_it_found",
        (
            "protocol.node",
            "        if self.rejoining is None:\n            self.incarnations.found",
            "        if True:\n            self.incarnations.found",
        ),
    ),
    told(
        "N25: a peer that stays short of what we applied goes unnoticed",
        "test_forgotten.test_a_write_that_others_lack_is_found_out_without_any_further_command",
        ("protocol.divergence", "        if now - since >= DOUBT:\n", "        if False:\n"),
    ),
    told(
        "N25: a command that others applied where none can come goes unnoticed",
        "test_forgotten.test_two_histories_of_equal_length_are_found_out_without_any_further_command",
        (
            "protocol.node",
            "            self.divergence.applied_elsewhere(sender, now)\n",
            "            pass\n",
        ),
    ),
    told(
        "N25: a sync with another chosen entry is accepted",
        "test_forgotten.test_another_entry_where_one_is_chosen_is_a_contradiction",
        (CORE, "        self._check_same(message.start, message.entries, self.chosen)\n", ""),
    ),
    told(
        "N25: another entry at the same ballot is accepted",
        "test_forgotten.test_another_entry_where_one_is_chosen_is_a_contradiction",
        (
            CORE,
            "                self._check_same(start, message.entries, length)\n",
            "                pass\n",
        ),
    ),
    told(
        "N25: another fetched entry is accepted",
        "test_forgotten.test_another_entry_where_one_is_chosen_is_a_contradiction",
        (CORE, "        self._check_same(start, entries, self.chosen)\n", ""),
    ),
    # -- the mark of what was durable
    told(
        "N24: a damaged last frame is taken for a torn one, whatever the mark says",
        "test_journal.test_a_frame_that_was_durable_and_cannot_be_read_is_damage_though_it_is_the_last",
        ("storage.mark", "    if mark is not None and mark.number > last:\n", "    if False:\n"),
    ),
    told(
        "N24: the mark stays where recovery has put it",
        "test_journal.test_the_mark_survives_a_kill_and_a_power_cut_once_the_node_was_idle_or_stopped",
        (
            "storage.journal",
            SYNC + SET_MARK,
            SYNC,
        ),
    ),
    told(
        "N24: the mark names a frame before it is durable",
        "test_crash_states.test_no_state_that_a_power_cut_can_leave_loses_anything_acknowledged",
        (
            "storage.journal",
            SYNC + SET_MARK,
            SET_MARK + SYNC,
        ),
    ),
    told(
        "N24: the mark is never made durable",
        "test_journal.test_the_mark_survives_a_kill_and_a_power_cut_once_the_node_was_idle_or_stopped",
        ("storage.journal", "                self._mark.maintain()\n", "                pass\n"),
    ),
    told(
        "N24: a torn tail is cut though the mark is missing",
        "test_journal.test_without_a_mark_a_clean_journal_gets_one_and_a_torn_tail_is_damage",
        ("storage.mark", "    if mark is None and torn:\n", "    if False:\n"),
    ),
    told(
        "N24: the mark of another directory is believed",
        "test_journal.test_a_mark_of_another_directory_or_none_that_can_be_read_is_damage",
        ("storage.mark", "mark.segment == segment.number and mark.check != segment.check", "False"),
    ),
    # -- the parts of the server
    told(
        "who asks for a checkpoint is answered with one of before",
        "test_checkpointing.test_who_asks_while_one_is_being_made_waits_for_the_next",
        (
            "node.checkpointing",
            "        self.making, self.rolling = self.rolling, []\n",
            "        self.making, self.rolling, self.asking = [*self.rolling, *self.asking], [], []\n",
        ),
    ),
    told(
        "a state that is still being written is forgotten when a checkpoint is made",
        "test_checkpointing."
        "test_a_state_that_is_still_being_written_when_the_checkpoint_is_made_is_waited_for",
        ("node.checkpointing", "State.ROLLING if self.writing else State.IDLE", "State.IDLE"),
    ),
    told(
        "requests leave before the peer has said who it is",
        "test_peers.test_a_link_carries_requests_only_after_the_peer_has_said_who_it_is",
        ("node.peers", "        elif peer in self.greeted and", "        elif peer in self.links and"),
    ),
    told(
        "a second process with the id of one that is alive is listened to",
        "test_peers.test_of_two_processes_with_one_id_the_newer_is_refused_while_the_older_is_heard_of",
        ("node.peers", "if alive and not replaces", "if False and not replaces"),
    ),
    told(
        "N26: of two processes with one id the first to come is listened to, whatever its disk",
        "test_peers.test_of_two_processes_with_one_id_the_one_with_the_higher_incarnation_is_listened_to",
        ("node.peers", "replaces = 0 < disk < identity.incarnation", "replaces = False"),
    ),
    told(
        "N26: who others say was replaced keeps its connections",
        "test_peers.test_a_process_of_which_others_tell_that_it_was_replaced_is_hung_up",
        ("node.peers", "replaced = who[0] > 0 and who < self.core.noted(peer)", "replaced = False"),
    ),
    told(
        "a lost disk's connections stay",
        "test_peers.test_a_process_that_rejoins_keeps_its_connection_and_those_of_its_lost_disk_are_closed",
        ("node.peers", "if peer == node and who[0] != kept and who < noted:", "if False:"),
    ),
    told(
        "a node that hears of no majority takes commands",
        "test_health.test_without_a_majority_requests_are_refused_until_one_is_heard_of_again",
        ("node.health", "        return self.refuses_reads()\n", "        return None\n"),
    ),
]


# ---------------------------------------------------------------------------- one mutant, in its own process


class Catch(NamedTuple):
    """What caught a mutant: a story, or a profile of the simulator with a seed."""

    by: str
    seed: int | None
    seconds: float  # of a core
    reason: str  # the first line of what failed


def hear(story: str) -> str | None:
    """Why the story fails; None if it does not."""
    module_name, _, name = story.partition(".")
    (path,) = ROOT.glob(f"tests/*/{module_name}.py")
    module = importlib.import_module(f"tests.{path.parent.name}.{module_name}")
    function = getattr(module, name)
    if function.__code__.co_argcount or hasattr(function, "pytestmark"):
        import pytest  # not above: most mutants do without, and it takes time

        story = f"{path}::{name}"
        return f"{name} fails" if pytest.main(["-qx", "-p", "no:cacheprovider", story]) == 1 else None
    try:
        function()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also what pytest.fail() raises, which is no Exception
        return f"{type(error).__name__}: {str(error) or traceback.extract_tb(error.__traceback__)[-1].line}"
    return None


def simulate(profile: str, seed: int) -> str | None:
    """Why the simulation fails; None if it does not."""
    from tests.harness.simulator import PROFILES, Simulation, Violation

    way, _, name = profile.rpartition("/")
    hasty = replace(PROFILES[name], patience=PATIENCE, proposing=way or "own-logs")
    try:
        Simulation(seed, hasty).run()
    except Violation as violation:
        return str(violation).partition("\n")[0]
    return None


def explored(modules: list[str]) -> Catch | None:
    """Try to catch the mutant by exploring small worlds; the "seed" is the number of states that it took.

    The schedule that leads to the breach is run once more by itself, and must lead to the same; then in the
    simulator, if it has whole nodes.
    """
    from tests.harness.explore.directed import direct, possible
    from tests.harness.explore.replay import replay
    from tests.harness.explore.search import explore
    from tests.harness.explore.worlds import worlds

    began = time.process_time()
    for name, make, most in worlds(modules):
        try:
            verdict = explore(make(), seconds=WORLD_SECONDS, most=most)
        except RuntimeError:  # a bug may make nodes out of nothing, which cannot be renamed
            verdict = explore(make(), seconds=WORLD_SECONDS, most=most, symmetry=False)
        if verdict.breach:
            again = replay(make(), verdict.events)
            assert again == verdict.breach, f"{verdict.breach}, but run once more: {again}"
            if possible(make(), verdict.events):
                shown = [direct(make(), events) for events in (verdict.events, verdict.events[:-1])]
                if not shown[0] or (verdict.events and shown[1]):
                    name += f" ({ONLY_HERE})"
            return Catch(name, verdict.states, time.process_time() - began, verdict.breach)
    return None


def attempt(
    story: str | None, seen: tuple[str, int] | None, profiles: tuple[str, ...], search: bool
) -> Catch | None:
    """Try to catch the mutant whose modules this process has."""
    began = time.process_time()

    def seconds() -> float:
        return time.process_time() - began

    if story is not None:
        reason = hear(story)
        return Catch(story, None, seconds(), reason) if reason else None
    if seen is not None and (reason := simulate(*seen)):
        return Catch(*seen, seconds(), reason)
    seed = 0
    while search and seconds() < SECONDS:
        seed += 1
        for profile in profiles:
            if (profile, seed) != seen and (reason := simulate(profile, seed)):
                return Catch(profile, seed, seconds(), reason)
    return None


def use(directory: str, changed: list[str]) -> None:
    """Find the changed modules in this directory, instead of the real ones; none is imported yet."""
    sys.path.insert(0, str(ROOT))
    for package in {f"paxoskv.{module}".rpartition(".")[0] for module in changed}:
        importlib.import_module(package).__path__.insert(0, str(Path(directory, *package.split("."))))
    for module in changed:
        origin = importlib.import_module(f"paxoskv.{module}").__file__
        assert origin and Path(origin).is_relative_to(directory), f"{origin} is not the changed {module}"


def attempt_here(task: str) -> None:
    """Run in the child; `task` is JSON: the directory of the changed modules, and attempt()'s arguments."""
    directory, changed, *arguments = json.loads(task)
    use(directory, changed)
    output, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(attempt(*arguments) if arguments else explored(changed)), file=output)


def path_of(module: str) -> Path:
    """Where the source of a module of the package is."""
    return ROOT / "paxoskv" / f"{module.replace('.', '/')}.py"


def source_of(mutant: Mutant) -> dict[str, str]:
    """The changed source of each module. ValueError if a text is not there exactly once."""
    sources: dict[str, str] = {}
    for module, text, replacement in mutant.changes:
        source = sources.get(module) or path_of(module).read_text()
        if source.count(text) != 1:
            raise ValueError(f"{mutant.name}: {module}.py has this {source.count(text)} times: {text!r}")
        sources[module] = source.replace(text, replacement)
    return sources


def catch(mutant: Mutant, search: bool = True) -> Catch | None:
    """Run a mutant in a process of its own; None if it survives.

    search: try other seeds if that which is noted does not do it. RuntimeError if the process itself fails.
    """
    return in_a_process(mutant, mutant.story, mutant.seen, mutant.profiles, search)


def explore_it(mutant: Mutant) -> Catch | None:
    """Likewise, in small worlds; only the protocol is in them."""
    return in_a_process(mutant) if worlds_of(mutant) else None


def worlds_of(mutant: Mutant) -> list[Any]:
    from tests.harness.explore.worlds import worlds  # needs numpy

    return worlds(module for module, _, _ in mutant.changes)


@contextmanager
def written(mutant: Mutant) -> Iterator[tuple[str, list[str]]]:
    """A directory with the changed modules, and their names: what use() takes."""
    sources = source_of(mutant)
    with tempfile.TemporaryDirectory() as directory:
        for module, source in sources.items():
            path = Path(directory) / path_of(module).relative_to(ROOT)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        yield directory, list(sources)


def in_a_process(mutant: Mutant, *arguments: Any) -> Catch | None:
    with written(mutant) as changed:
        task = [*changed, *arguments]
        child = subprocess.run(
            [sys.executable, __file__, "--attempt", json.dumps(task)],
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True,
        )  # fmt: skip
    if child.returncode:
        raise RuntimeError(f"{mutant.name}: {child.stderr}")
    found = json.loads(child.stdout)
    return Catch(*found) if found else None


# ---------------------------------------------------------------------------------------------- all of them


def rules() -> list[Mutant]:
    """The rules of tests/harness/rules.py, each taken away."""
    from tests.harness.rules import RULES

    return [
        told(
            f"without: {name}",
            f"{rule.story.__module__.rpartition('.')[2]}.{rule.story.__name__}",
            *rule.changes,
        )
        for name, rule in RULES.items()
    ]


def everything() -> list[Mutant]:
    return [*rules(), *MUTANTS]


def results(mutants: list[Mutant], jobs: int, tell: Callable[[Mutant, Catch | None], None]) -> Iterator[str]:
    """Table rows: mutant, caught by, seed, seconds."""
    with ThreadPoolExecutor(jobs) as pool:
        for mutant, found in zip(mutants, pool.map(catch, mutants), strict=True):
            tell(mutant, found)
            by, seed, seconds = "**nothing**", None, 0.0
            if found is not None:
                by, seed, seconds, _ = found
            kind = "story" if mutant.story else "simulator, profile"
            by = by.partition(".test_")[2].replace("_", " ") if mutant.story and found else by
            seen = "" if seed is None else seed
            yield f"| {mutant.name} | {kind}: {by} | {seen} | {seconds:.1f} | {NOT_TRIED} |"


PAGE = """# Mutants: deliberate bugs, and what catches them

Made by `tests/harness/mutants.py --write docs/mutants.md`; that file has the changes. A mutant is caught by
a *story* (a test that scripts what gets lost, delayed or crashes) or by the *simulator*, with the profile and
the seed shown. Seconds are those of one core, the start of the process not included.

The last column says in which small world the bug shows when every schedule is tried, and after how many
states (`tests/harness/mutants.py --explore --write docs/mutants.md`; tests/harness/explore/worlds.py has the
bounds). Each such schedule, run once more by itself, breaks the same promise; one of whole nodes also in the
simulator, in the same step, unless it is said otherwise or has a checkpoint. Bugs that cost only time cannot
show there.

{count} mutants, {survivors} survivors.

| mutant | caught by | seed | seconds | every schedule |
|---|---|---|---|---|
{rows}

## What surviving mutants have taught

Each of these survived at first. For most a story was written (tests/protocol/test_more_scenarios.py). Some
are harmless, for another rule does their work:

- A read's timestamp may be taken from the node's own clock once a quorum has answered, for each answer
  raises it. (Not here, as nothing catches it.)
- An acceptor that also promises ballots below its promise accepts none of them, so that no quorum can: the
  candidate learns one round trip later that it is too late. (Here, because a unit test sees it.)
- The flag `sync`, and `chosen <= start + len(entries)` when one is taken: every Accept goes to the end of its
  leader's log, and what is chosen is never replaced. (Not here.)
- A torn tail that is not overwritten with zeros: the next frame lies over its header. (Here, likewise.)

One told something about the simulator: in the profile `impatient` the clients gave up before the servers did,
so that no operation ever ended by a server's "unknown". Now the servers are the first.

Missing: N15, which only a real disk can show.
"""


def tell(mutant: Mutant, found: Catch | None) -> None:
    if found is None:
        print(f"SURVIVED  {mutant.name}", flush=True)
        return
    seed = "" if found.seed is None else f" {found.seed}"
    moved = mutant.seen is not None and (found.by, found.seed) != mutant.seen
    print(f"{found.seconds:5.1f} s  {mutant.name}  <- {found.by}{seed}{' (another seed)' if moved else ''}")
    print(f"         {found.reason[:140]}", flush=True)


def explore_all(mutants: list[Mutant], jobs: int, page: Path | None) -> int:
    """Say which of them the small worlds show, and after how many states; returns the exit status.

    page: the table; each result is written into its last column at once.
    """
    count = 0
    with ThreadPoolExecutor(jobs) as pool:
        for mutant, found in zip(mutants, pool.map(explore_it, mutants), strict=True):
            count += found is not None
            what = f"{found.by}: {found.seed:,} states" if found else NOT_SHOWN
            if not worlds_of(mutant):
                what = OUTSIDE
            print(f"{mutant.name}  <- {what}{f': {found.reason[:100]}' if found else ''}", flush=True)
            if page:
                page.write_text(with_column(page.read_text(), {mutant.name: what}))
    print(f"{count} of {len(mutants)} mutants found")
    return 0


def with_column(page: str, explored: dict[str, str]) -> str:
    """The page with what these mutants' last column says."""
    lines = page.split("\n")
    for number, line in enumerate(lines):
        cells = line.split(" | ")
        if len(cells) == COLUMNS and (what := explored.get(cells[0].removeprefix("| "))):
            lines[number] = " | ".join([*cells[:-1], f"{what} |"])
    return "\n".join(lines)


def columns(page: str) -> dict[str, str]:
    """What the last column says of each mutant."""
    rows = [line.removesuffix(" |").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {row[0].removeprefix("| "): row[-1] for row in rows if len(row) == COLUMNS}


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(description="Deliberate bugs: each must be caught.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="part of a mutant's name (default: all)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default: 2)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table as Markdown")
    parser.add_argument("--explore", action="store_true", help="explore small worlds instead")
    parser.add_argument("--attempt", help=argparse.SUPPRESS)
    found = parser.parse_args(arguments)
    if found.attempt:
        attempt_here(found.attempt)
        return 0
    sys.path.insert(0, str(ROOT))
    mutants = [m for m in everything() if not found.names or any(name in m.name for name in found.names)]
    if not mutants:
        parser.error("no mutant has such a name")
    if found.explore:
        return explore_all(mutants, found.jobs, found.write)
    rows = list(results(mutants, found.jobs, tell))
    survivors = sum("**nothing**" in row for row in rows)
    if found.write:
        found.write.parent.mkdir(exist_ok=True)
        explored = columns(found.write.read_text()) if found.write.exists() else {}
        page = PAGE.format(count=len(rows), survivors=survivors, rows="\n".join(rows))
        found.write.write_text(with_column(page, explored))
    print(f"{len(rows)} mutants, {survivors} survivors")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
