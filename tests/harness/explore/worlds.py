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
    one_log("2 stand, a crash, sent again", 25_000, stand=2, crash=1, resend=1),
    one_log("2 stand, one more entry", 250_000, stand=2, append=1),
    one_log("3 of 3 stand", 200_000, proposers=3, stand=3),
]
PUT = nodes("a put", 100)
LOST = nodes("a put, a lost disk", 4_000, wipe=1)
TIME = nodes("a put, time passes", 4_000, tick=1)
READ = nodes("a put, a read", 8_000, read=1)
TWO = nodes("two puts", 3_000, put=2)
CRASH = nodes("a put, a crash", 4_000, crash=1)
TWICE = nodes("a put, time passes twice", 4_000, tick=2)
SAVED = nodes("a put, a checkpoint", 600, checkpoint=1)
OWN_LOGS = [PUT, SAVED, LOST, TIME, CRASH, TWO, TWICE, READ]
PARTS = {  # in which worlds a change of only this part of the protocol could show: else in all
    "protocol.reads": [READ, nodes("a put, a read, a crash", 4_000, read=1, crash=1)],
    "protocol.rejoin": [LOST],
    "protocol.incarnations": [LOST],
    "protocol.claims": [LOST, CRASH],
    "protocol.persistence": [SAVED, TIME, CRASH, LOST],
    "protocol.compaction": [SAVED, nodes("a put, a checkpoint, time passes", 8_000, checkpoint=1, tick=1)],
    "protocol.catch_up": [TIME, TWICE, nodes("a put, time passes", 60_000, "classic", tick=1)],
    "protocol.revocation": [TIME, TWICE],
    "protocol.gossip": [TIME, TWICE],
    "protocol.commands": [PUT, TWO, TIME, CRASH],
    "protocol.clock": [PUT, READ, TIME, CRASH],
}
CLASSIC = [
    nodes("a put", 2_000, "classic"),
    nodes("a put, time passes", 10_000, "classic", tick=1),
    nodes("two puts", 10_000, "classic", put=2),
    nodes("a put, a crash", 10_000, "classic", crash=1),
    nodes("a put, a lost disk", 10_000, "classic", wipe=1),
    nodes("a put, a read", 13_500, "classic", read=1),
]
LEADER = [
    nodes("a put", 100, "leader"),
    nodes("a put, a crash", 1_000, "leader", crash=1),
    nodes("a put, a read", 2_000, "leader", read=1),
    nodes("a put, a lost disk", 2_000, "leader", wipe=1),
    nodes("two puts", 1_000, "leader", put=2),
    nodes("a put, time passes", 5_000, "leader", tick=1),
    nodes("a put, a read, a crash", 5_000, "leader", read=1, crash=1),
    nodes("two puts, a crash", 5_000, "leader", put=2, crash=1),
]

EVERY_WAY = {"multipaxos", "protocol.logs", "protocol.node", "protocol.way"}  # have much to do in classic


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
    if len(changed) == 1 and (found := PARTS.get(*changed)):
        return found
    one = ONE_LOG if "multipaxos" in changed else []
    return one + OWN_LOGS + (CLASSIC[1:-1] if changed & EVERY_WAY else [])
