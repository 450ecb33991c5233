"""Each rule's story fails when the rule is taken away: otherwise the story would not be about the rule."""

import pytest

from tests.harness import scenario
from tests.harness.rules import ROOT, RULES, documented, removed


@pytest.mark.parametrize("name", RULES)
def test_without_the_rule_its_story_fails(name: str) -> None:
    with removed(name), pytest.raises((AssertionError, scenario.Diverged)):
        RULES[name].story()


def test_the_page_about_the_protocol_names_every_rule_and_its_story() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text()
    assert page == documented(page), "run python -m tests.harness.rules"
