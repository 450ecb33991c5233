"""Whether a node can serve, and why not: the word in its status, its refusals, and its log."""

from types import SimpleNamespace
from typing import Any

import pytest

from paxoskv.node import health
from paxoskv.node.health import Health

NO_MAJORITY = "no majority: this node hears of 1 of 3 nodes, itself included"


class Bench:
    """Health with a core and a clock that do what a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(health.time, "monotonic", lambda: self.now)
        self.heard = 99.0  # when both peers were heard of
        self.report = SimpleNamespace(own=1, leads=frozenset({1}), rejoin_waits=None)
        self.core = SimpleNamespace(
            joined=True, ready=True, quorum=2, report=lambda: self.report,
            reached=lambda seconds, now: 3 if now - self.heard <= seconds else 1,
        )  # fmt: skip
        self.journal = SimpleNamespace(full=None)
        parts: Any = (self.core, self.journal)
        self.part = Health(3, *parts)
        self.logged: list[str] = []
        monkeypatch.setattr(health, "log", lambda event, *level, **fields: self.logged.append(event))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_the_state_is_the_first_thing_that_keeps_a_node_from_serving(bench: Bench) -> None:
    assert (bench.part.state(), bench.part.refuses_commands()) == ("serving", None)
    bench.part.alone = NO_MAJORITY
    assert bench.part.state() == "no-majority"
    bench.core.ready = False
    assert bench.part.state() == "starting"
    bench.core.joined = False
    assert bench.part.state() == "rejoining"
    bench.journal.full = "no room"
    assert (bench.part.state(), bench.part.refuses_commands()) == ("disk-full", "disk full: no room")
    bench.part.stopping = True
    assert (bench.part.state(), bench.part.refuses_commands()) == ("stopping", "this node is stopping")


def test_without_a_majority_requests_are_refused_until_one_is_heard_of_again(bench: Bench) -> None:
    bench.part.look()
    bench.now += 5
    assert bench.part.refuses_reads() is None, "it has not looked yet"
    bench.part.look()
    assert bench.part.refuses_reads() == bench.part.refuses_commands() == NO_MAJORITY
    bench.heard = bench.now
    assert bench.part.refuses_reads() is None and bench.part.state() == "serving", "at once"
    assert bench.logged == ["leads", "majority-lost", "majority-back"]


def test_a_node_that_stood_still_reads_first_what_others_said_meanwhile(bench: Bench) -> None:
    bench.now += 60
    bench.part.stood_still()
    bench.part.look()
    assert bench.part.alone is None
    bench.now += 3
    bench.part.look()
    assert bench.part.alone == NO_MAJORITY


def test_where_too_few_nodes_say_anything_they_are_asked_once_at_a_time(bench: Bench) -> None:
    bench.heard = bench.now
    assert not bench.part.must_ask()
    bench.now += 1
    assert bench.part.must_ask() and not bench.part.must_ask()
    bench.part.answered(None)
    assert bench.part.must_ask()
    bench.part.answered(None)
    bench.core.joined = False
    assert not bench.part.must_ask(), "it may not read"


def test_the_logs_that_a_node_leads_are_told_when_they_change(bench: Bench) -> None:
    for leads in ({1}, {1, 3}, {1}, set(), {1}):
        bench.report.leads = frozenset(leads)
        bench.part.look()
        bench.part.look()
    assert bench.logged == ["leads", "revoked", "given-back", "deposed", "leads"]


def test_what_a_rejoin_waits_for_is_told_when_it_changes(bench: Bench) -> None:
    for waits in ("no answer yet from 2, 3", "no answer yet from 3", None):
        bench.report.rejoin_waits = waits
        bench.part.look_at_rejoin()
        bench.part.look_at_rejoin()
    assert bench.logged == ["rejoining", "rejoining", "rejoined"]
