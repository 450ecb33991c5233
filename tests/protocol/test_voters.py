"""Voters is about speed only: the stories end the same way where everybody votes at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = (
    "test_node",
    "test_scenarios",
    "test_more_scenarios",
    "test_rejoin",
    "test_checkpoints",
    "test_forgotten",
)
ABOUT_SPEED = (  # they count fsyncs, or look who votes at once
    "test_a_command_makes_only_a_quorum_fsync_at_once",
    "test_votes_that_can_wait_share_a_frame",
    "test_when_one_of_the_voters_dies_the_others_are_asked_at_once",
    "test_a_voter_whose_acceptor_fails_on_purpose_is_replaced_at_once",
    "test_a_node_that_does_not_vote_for_its_own_entries_asks_one_more",
    "test_the_round_trips_of_nodes_whose_votes_can_wait_are_measured_by_their_frontiers",
    "test_nobody_waits_for_the_vote_of_a_node_that_must_fetch_first",
)


@pytest.mark.slow
def test_every_story_but_those_about_speed_ends_the_same_way_where_everybody_votes_at_once() -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0",
            "-k", " and ".join(f"not {name}" for name in ABOUT_SPEED),
            *(f"tests/protocol/{file}.py" for file in FILES),
        ],
        cwd=ROOT, env={**os.environ, "EVERYBODY_VOTES": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(".") > 150
