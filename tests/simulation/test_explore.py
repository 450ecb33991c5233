"""Every schedule of small worlds, on the real code: what holds, and that planted bugs are found.

scripts/explore.py explores larger ones; docs/testing.md has a table of them.
"""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from paxoskv.config import WAYS
from tests.harness.explore.directed import Directed, known_by
from tests.harness.explore.nodes import Nodes
from tests.harness.explore.one_log import OneLog
from tests.harness.explore.replay import replay
from tests.harness.explore.search import explore
from tests.harness.explore.world import World
from tests.harness.mutants import ONLY_HERE, ROOT, everything, explore_it

MUTANTS = {mutant.name: mutant for mutant in everything()}


@pytest.mark.parametrize(
    "budgets", [{"stand": 2}, {"stand": 2, "crash": 1}, {"stand": 2, "resend": 1}], ids=lambda b: " ".join(b)
)
def test_in_one_log_whatever_is_chosen_stays_chosen(budgets: dict[str, int]) -> None:
    verdict = explore(OneLog(**budgets), workers=2, seconds=600)
    assert verdict.exhausted and verdict.breach is None
    assert verdict.states > 5000


def test_with_and_without_symmetry_the_verdict_is_the_same() -> None:
    for budgets in ({"stand": 1, "crash": 2}, {"stand": 2}):
        with_it, without = (explore(OneLog(**budgets), symmetry=on) for on in (True, False))
        assert with_it.exhausted and without.exhausted
        assert with_it.depth == without.depth
        assert with_it.states < without.states <= 6 * with_it.states, "six orders of three acceptors"


def test_with_and_without_messages_that_have_no_future_the_same_is_seen() -> None:
    for budgets in ({"stand": 1, "crash": 1, "resend": 1}, {"acceptors": 2, "stand": 2}):
        with_it, without = (explore(OneLog(**budgets), forget=on, symmetry=False) for on in (True, False))
        assert with_it.exhausted and without.exhausted
        assert with_it.states <= without.states
        assert with_it.seen == without.seen, "an observer sees other histories"


@pytest.mark.parametrize(
    "budgets",
    [{"stand": 1, "crash": 1, "resend": 1}, {"acceptors": 2, "stand": 2}],
    ids=lambda b: " ".join(b),
)
def test_messages_without_a_future_change_nothing_wherever_they_would_be_forgotten(
    budgets: dict[str, int],
) -> None:
    verdict = explore(OneLog(**budgets), check=True, seconds=600)
    assert verdict.exhausted and verdict.breach is None


def test_it_is_noticed_if_a_message_that_is_forgotten_could_have_changed_something() -> None:
    class Rash(OneLog):
        """Whatever is below a promise is forgotten, though it bears news of what is chosen."""

        def dead(self, sender, source, receiver, target, message):  # type: ignore[no-untyped-def]
            promised = target if sender >= self.alike else source
            return message.ballot < promised

    with pytest.raises(RuntimeError, match="a worker has ended"):
        explore(Rash(stand=2, acceptors=2), check=True, seconds=600)


def test_one_worker_and_two_visit_the_same_states() -> None:
    for world in (lambda: OneLog(acceptors=2), lambda: Nodes(put=1, read=1)):
        one, two = (explore(world(), workers=workers, symmetry=False) for workers in (1, 2))
        assert one.exhausted and two.exhausted
        assert one[1:4] == two[1:4], "states, steps, depth"
        assert one.seen == two.seen


LARGE = [  # worlds that are exhausted on every run of the tests, with about how many states they have
    (lambda: OneLog(stand=3), 2_400_000),
    (lambda: OneLog(stand=2, crash=3, resend=2), 390_000),
    (lambda: Nodes(proposing="classic", put=1, tick=1), 280_000),
    (lambda: Nodes(proposing="classic", put=1, wipe=1), 170_000),
    (lambda: Nodes(proposing="leader", put=1, tick=1), 400_000),
    (lambda: Nodes(put=1, tick=1), 12_000),
    (lambda: Nodes(put=1, wipe=1), 6_000),
]


@pytest.mark.slow
@pytest.mark.parametrize(("world", "states"), LARGE)
def test_larger_worlds_are_exhausted(world: Callable[[], World], states: int) -> None:
    verdict = explore(world(), workers=2, seconds=600)
    assert verdict.exhausted and verdict.breach is None
    assert verdict.states >= states


def test_three_million_states_are_visited_on_every_run_of_the_tests() -> None:
    assert sum(states for _, states in LARGE) >= 3_000_000


@pytest.mark.parametrize("budgets", [{"put": 1}, {"put": 1, "read": 1}], ids=lambda b: " ".join(b))
def test_three_whole_nodes_apply_one_order_and_read_nothing_stale(budgets: dict[str, int]) -> None:
    verdict = explore(Nodes(**budgets), workers=2, seconds=600)
    assert verdict.exhausted and verdict.breach is None
    assert verdict.states > 50


def test_checkpoints_are_made_and_what_is_in_them_is_given_up() -> None:
    for world in (Nodes(checkpoint=1), Nodes(proposing="leader", checkpoint=1)):
        verdict = explore(world, workers=2, seconds=600)
        assert verdict.exhausted and verdict.breach is None
        assert verdict.states > 100


@pytest.mark.slow
def test_a_crash_after_a_checkpoint_loses_nothing() -> None:
    verdict = explore(Nodes(proposing="leader", checkpoint=1, crash=1), workers=2, seconds=600)
    assert verdict.exhausted and verdict.breach is None
    assert verdict.states > 70_000


@pytest.mark.parametrize("proposing", ["classic", "leader"])
def test_so_they_do_with_one_log(proposing: str) -> None:
    verdict = explore(Nodes(proposing=proposing), workers=2, seconds=600)
    assert verdict.exhausted and verdict.breach is None


@pytest.mark.parametrize(
    "name",
    [
        "a quorum of votes is one node short",
        "a quorum of promises is one node short",
        "the lower ballot's log is adopted",
        "a promise is not journaled",
        "a promise does not keep from voting at a lower ballot",
    ],
)
def test_a_planted_bug_is_found(name: str) -> None:
    assert explore_it(MUTANTS[name]) is not None


@pytest.mark.parametrize(
    "name",
    [
        "without: R6: who receives an entry raises its clock before it answers",
        "R3: a reservation counts before it is durable",
        "a node says that it holds what a restart would forget",
        "a frontier may lie one below what a command needs",
        "a rejoining node votes",
        "a read trusts its own clock",
        "a deposed leader goes on",
    ],
)
def test_a_planted_bugs_schedule_breaks_a_promise_in_the_simulator_in_the_same_step(name: str) -> None:
    found = explore_it(MUTANTS[name])
    assert found is not None and ONLY_HERE not in found.by


@pytest.mark.parametrize("proposing", WAYS)
def test_the_simulator_runs_what_the_explorer_steps(proposing: str) -> None:
    """In random schedules the same messages leave."""
    for seed in range(10):
        chance = Random(seed)
        lost = seed % 2  # who has lost its disk is asked for no read in the simulator
        world = Nodes(proposing=proposing, put=2, read=1 - lost, tick=1, crash=1, wipe=lost)
        states, left, history = world.begin(), dict(world.budgets), world.nothing_seen
        simulation = Directed(world)
        for event in world.prelude:
            simulation.happens(*event)
        network: list[tuple[int, int, Any]] = []
        for _ in range(80):
            names = ["sync", *[name for name, budget in left.items() if budget]]
            own = [(process, name) for process in range(3) for name in names]
            process, what = chance.choice([*own, *[(to, (sender, it)) for sender, to, it in network]])
            sender, event = (None, what) if isinstance(what, str) else what
            step = world.step(process, states[process], event, sender)
            if step is None:
                continue
            history = world.observe(history, step.facts)
            if sender is not None:
                network.remove((sender, process, event))
            elif event in left:
                left[event] -= 1
            network += [(process, to, message) for to, message in step.sends]
            simulation.happens(process, what)
            expected = Counter((world.ids[a], world.ids[b], known_by(it[1])) for a, b, it in network)
            assert expected == Counter({key: len(of) for key, of in simulation.in_flight.items() if of})


def test_a_breach_is_told_as_the_shortest_schedule() -> None:
    class Forgetful(OneLog):
        """An acceptor's disk keeps nothing."""

        def vote(self, process, state, message, sender):  # type: ignore[no-untyped-def]
            step = super().vote(process, state, message, sender)
            state.durable = type(state)().durable
            return step

    verdict = explore(Forgetful(stand=2, crash=2), workers=2, seconds=600)
    assert verdict.breach is not None and "chosen" in verdict.breach
    assert len(verdict.schedule) == verdict.depth
    assert verdict.schedule[0].endswith(": stand")
    assert any(step.endswith(": crash") for step in verdict.schedule)
    again = Forgetful(stand=2, crash=2)
    assert replay(again, verdict.events) == verdict.breach, "the same, without the engine"
    assert replay(again, verdict.events[:-1]) is None
    assert replay(OneLog(stand=2, crash=2), verdict.events[:1]) is None


def test_the_command_says_what_it_found() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "explore.py", "one-log", "--stand", "1"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.startswith("47 states") and "exhausted: no breach" in done.stdout
    cut = subprocess.run(
        [sys.executable, ROOT / "scripts" / "explore.py", "one-log", "--stand", "3", "--states", "100"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert cut.returncode == 4 and "not exhausted" in cut.stdout
