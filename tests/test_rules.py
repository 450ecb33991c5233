"""Each rule's story fails when the rule is taken away: otherwise the story would not be about the rule."""

import pytest
from rules import RULES, removed


@pytest.mark.parametrize("name", RULES)
def test_without_the_rule_its_story_fails(name: str) -> None:
    with removed(name), pytest.raises(AssertionError):
        RULES[name].story()
