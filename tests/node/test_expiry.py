"""The countdown of a node: never too early, once for each key, and not for ever in memory."""

from typing import Any

import pytest

from paxoskv.node.expiry import AGAIN, AT_ONCE, MOST, SPARE, TURN, TURNS, Expiry, expire
from paxoskv.node.replica import Replica
from paxoskv.protocol.single import Single
from paxoskv.state.store import Store
from paxoskv.wire.structs import Command, Outcome
from tests.state.test_leases import leased
from tests.state.test_store import Applier, delete, put
from tests.state.test_transactions import UPGRADE


class Bench:
    """A node's countdown over a store, and its clock."""

    def __init__(self, node: int = 0) -> None:
        self.kv = Applier()
        self.kv.do(UPGRADE)
        self.part = Expiry(self.kv.store, node)
        self.now = 100.0

    def lease(self, key: str, ttl_ms: int) -> tuple[int, int, int]:
        self.kv.do(leased(key, ttl_ms))
        return (self.kv.timestamp, 1, 0)

    def after(self, seconds: float) -> list[Command]:
        self.now += seconds
        return self.part.tick(self.now)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_key_is_removed_when_its_time_is_over_and_not_before(bench: Bench) -> None:
    position = bench.lease("k", 500)
    assert bench.after(0) == bench.after(0.499) == []
    assert bench.after(0.002) == [expire("k", position)]


def test_the_time_begins_when_the_node_has_noticed_the_key(bench: Bench) -> None:
    bench.lease("k", 500)
    assert bench.after(10) == [], "it may have been applied just now"
    assert bench.after(0.49) == []
    assert len(bench.after(0.02)) == 1


def test_keys_with_other_times_go_in_the_order_of_their_ends(bench: Bench) -> None:
    first, second = bench.lease("long", 900), bench.lease("short", 300)
    bench.after(0)
    assert bench.after(0.301) == [expire("short", second)]
    bench.kv.do(delete("short"))
    assert bench.after(0.601) == [expire("long", first)]


def test_a_key_that_was_written_again_is_left_alone(bench: Bench) -> None:
    bench.lease("k", 500)
    bench.after(0)
    newer = bench.lease("k", 700)
    bench.lease("gone", 500)
    bench.after(0.1)
    bench.kv.do(put("gone", "for ever"))
    assert bench.after(0.5) == []
    assert bench.after(0.201) == [expire("k", newer)]


def test_what_is_still_there_is_tried_again(bench: Bench) -> None:
    position = bench.lease("k", 1)
    bench.after(0)
    assert bench.after(1) == [expire("k", position)]
    assert bench.after(AGAIN / 2) == []
    assert bench.after(AGAIN / 2 + 0.001) == [expire("k", position)]
    bench.kv.do(expire("k", position))
    assert bench.after(AGAIN) == [] and bench.part.due == []


def test_the_nodes_have_turns() -> None:
    for node in (0, 1, 7, 8 + 3):
        bench = Bench(node)
        bench.lease("k", 1000)
        bench.after(0)
        assert bench.after(0.999 + TURN * (node % TURNS)) == []
        assert len(bench.after(0.002)) == 1


def test_many_keys_go_in_several_steps(bench: Bench) -> None:
    for number in range(MOST + 1):
        bench.lease(f"k{number}", 1)
    bench.after(0)
    assert [len(bench.after(0.01)) for _ in range(3)] == [MOST, 0, 0] or len(bench.part.due) == MOST + 1
    assert len({countdown[1] for countdown in bench.part.due}) == MOST + 1


def test_many_countdowns_begin_in_several_ticks(bench: Bench) -> None:
    for number in range(AT_ONCE + 1):
        bench.lease(f"k{number}", 60_000)
    bench.after(0)
    assert len(bench.part.due) == AT_ONCE
    bench.after(0.01)
    assert len(bench.part.due) == AT_ONCE + 1


def test_a_key_that_is_renewed_for_ever_takes_no_memory(bench: Bench) -> None:
    for _ in range(3 * SPARE):
        bench.lease("k", 3_600_000)
        bench.after(0.001)
    assert len(bench.part.due) <= SPARE + 2


def test_after_a_restart_the_countdown_begins_anew_with_all_keys(bench: Bench) -> None:
    positions = {key: bench.lease(key, 500) for key in ("a", "b")}
    bench.after(0)
    bench.after(0.4)
    restored = Store("restored")
    restored.load_state(bench.kv.store.save_state())
    part = Expiry(restored, 0)
    assert part.tick(5.0) == part.tick(5.4) == []
    assert {command.transaction.compares[0].key for command in part.tick(5.5)} == set(positions)


def test_keys_of_an_installed_checkpoint_are_counted_down_too(bench: Bench) -> None:
    bench.lease("mine", 500)
    bench.after(0)
    bench.kv.do(put("other", "1"))
    position = bench.lease("theirs", 300)
    saved = bench.kv.store.save_state()
    bench.kv.store.load_state(saved)
    bench.after(0)
    assert bench.after(0.301) == [expire("theirs", position)]


def test_a_replica_proposes_the_expiry_itself_and_answers_nobody() -> None:
    now, answers, frames = 0.0, list[Any](), list[Any]()
    store = Store("never-written.json")
    replica = Replica(
        Single(), store, lambda: now, lambda *_: None, lambda records, done, _: frames.append(done),
        lambda token, value: answers.append(value),
    )  # fmt: skip

    def settle() -> None:
        replica.turn()
        while frames:
            frames.pop(0)()

    replica.core.start(0.0)
    settle()
    replica.submit("client", [UPGRADE, leased("k", 200)], batch=True)
    settle()
    assert [result.outcome for result in answers[0]] == [Outcome.OK, Outcome.OK]
    for now in (1.0, 1.1, 1.19):  # noqa: B007 (the replica's clock)
        replica.tick()
        settle()
        assert store.get("k").value == "v"
    now = 1.21
    replica.tick()
    settle()
    assert store.size() == 0 and len(answers) == 1 and replica.pending == 0
