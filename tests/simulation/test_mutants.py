"""Every deliberate bug of mutants.py is caught; and what catches them finds nothing where there is no bug.

(The stories without a bug are tests of their own; the rules, each taken away, are in test_rules.py.)
"""

import pytest

from tests.harness import mutants

pytestmark = pytest.mark.slow
SEEDS = sorted({mutant.seen for mutant in mutants.MUTANTS if mutant.seen})


def test_there_are_many_different_bugs() -> None:
    everything = mutants.everything()
    assert len({mutant.name for mutant in everything}) == len(everything) >= 30


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=[mutant.name for mutant in mutants.MUTANTS])
def test_a_deliberate_bug_is_caught(mutant: mutants.Mutant) -> None:
    assert mutants.catch(mutant) is not None


@pytest.mark.parametrize(("profile", "seed"), SEEDS)
def test_a_seed_that_catches_a_bug_finds_nothing_where_there_is_none(profile: str, seed: int) -> None:
    assert mutants.simulate(profile, seed) is None
