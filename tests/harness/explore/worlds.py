"""The small worlds in which mutants are tried, the smallest first; of each, at most so many states."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.harness.explore.nodes import Nodes
from tests.harness.explore.one_log import OneLog
from tests.harness.explore.world import World


class Bounds(NamedTuple):
    """A world by its name, and how many of its states are visited."""

    name: str
    make: Callable[[], World]
    states: int


def one_log(name: str, states: int, **budgets: int) -> Bounds:
    return Bounds(f"one log, {name}", lambda: OneLog(**budgets), states)


def nodes(name: str, states: int, proposing: str = "own-logs", **budgets: int) -> Bounds:
    title = "three nodes" if proposing == "own-logs" else f"{proposing}, three nodes"
    return Bounds(f"{title}, {name}", lambda: Nodes(proposing=proposing, **budgets), states)


ONE_LOG = [
    one_log("2 stand", 10_000, stand=2),
    one_log("2 stand, a crash, sent again", 100_000, stand=2, crash=1, resend=1),
    one_log("3 of 3 stand", 100_000, proposers=3, stand=3),
]
OWN_LOGS = [
    nodes("a put", 100),
    nodes("a put, a lost disk", 10_000, wipe=1),
    nodes("a put, time passes", 15_000, tick=1),
    nodes("a put, a read", 10_000, read=1),
    nodes("two puts", 15_000, put=2),
    nodes("a put, a crash", 15_000, crash=1),
    nodes("a put, time passes twice", 30_000, tick=2),
]
CLASSIC = [
    nodes("a put", 2_000, "classic"),
    nodes("a put, a read", 15_000, "classic", read=1),
    nodes("a put, time passes", 20_000, "classic", tick=1),
    nodes("two puts", 15_000, "classic", put=2),
    nodes("a put, a crash", 20_000, "classic", crash=1),
]
LEADER = [
    nodes("a put", 100, "leader"),
    nodes("a put, a crash", 1_000, "leader", crash=1),
    nodes("a put, a read", 2_000, "leader", read=1),
    nodes("a put, a lost disk", 2_000, "leader", wipe=1),
    nodes("two puts", 1_000, "leader", put=2),
    nodes("a put, time passes", 20_000, "leader", tick=1),
    nodes("a put, a read, a crash", 20_000, "leader", read=1, crash=1),
    nodes("two puts, a crash", 20_000, "leader", put=2, crash=1),
]


def worlds(modules: Iterable[str]) -> list[Bounds]:
    """Those that a change of these modules of the package could show in; none if it is no part of them."""
    changed = set(modules)
    if not all(module == "multipaxos" or module.startswith("protocol.") for module in changed):
        return []
    if "protocol.classic" in changed:
        return CLASSIC
    if "protocol.leader" in changed:
        return LEADER
    if "protocol.one_log" in changed:
        return LEADER + CLASSIC
    return (ONE_LOG if "multipaxos" in changed else []) + OWN_LOGS
