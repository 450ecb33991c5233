"""Times to live, as the state has them: what sets one, what ends one, and what removes the key."""

import json

import pytest

from paxoskv.node.expiry import expire
from paxoskv.state.store import RESERVED_KEY, Store
from paxoskv.wire.structs import Action, Command, Compare, Outcome, Relation, Verb
from paxoskv.wire.validation import MAX_TTL_MS, invalid
from tests.state.test_store import Applier, cas, delete, incr, put
from tests.state.test_transactions import UPGRADE, transaction


def leased(key: str, ttl_ms: int, value: str = "v") -> Command:
    return transaction([], [Action(Verb.PUT, key, value, None, ttl_ms)])


@pytest.fixture
def kv() -> Applier:
    applier = Applier()
    applier.do(UPGRADE)
    return applier


def position(kv: Applier) -> tuple[int, int, int]:
    return (kv.timestamp, 1, 0)


def test_a_put_with_a_time_to_live_has_it_from_its_position_on(kv: Applier) -> None:
    done = kv.one(leased("k", 500))
    assert done.transacted.place == position(kv)
    assert kv.store.leases == {"k": (500, position(kv))}
    assert kv.store.get("k").value == "v"


@pytest.mark.parametrize(
    "write",
    [put("k", "w"), delete("k"), cas("k", "1", "w"), incr("k"), transaction([], [Action(Verb.PUT, "k", "w")]),
     transaction([], [Action(Verb.DELETE, "k")])],
)  # fmt: skip
def test_whatever_writes_the_key_again_ends_its_time_to_live(kv: Applier, write: Command) -> None:
    kv.do(leased("k", 500, "1"), leased("other", 500))
    assert kv.outcome(write) == Outcome.OK
    assert [*kv.store.leases] == ["other"]


@pytest.mark.parametrize(
    "other", [cas("k", "2", "w"), transaction([], [Action(Verb.GET, "k")]),
              transaction([Compare("k", Relation.ABSENT)], [Action(Verb.DELETE, "k")])],
)  # fmt: skip
def test_what_does_not_write_the_key_leaves_its_time_to_live(kv: Applier, other: Command) -> None:
    kv.do(leased("k", 500, "1"))
    set_at = position(kv)
    kv.do(other)
    assert kv.store.leases == {"k": (500, set_at)}


def test_an_expiry_removes_the_key_if_its_time_is_the_one_that_was_set_there(kv: Applier) -> None:
    kv.do(leased("k", 500))
    assert kv.outcome(expire("k", position(kv))) == Outcome.OK
    assert kv.store.size() == 0 and not kv.store.leases
    assert kv.outcome(expire("k", position(kv))) == Outcome.MISMATCH


@pytest.mark.parametrize("newer", [put("k", "new"), leased("k", 500, "new"), leased("k", 1, "new")])
def test_an_expiry_never_removes_a_newer_value(kv: Applier, newer: Command) -> None:
    kv.do(leased("k", 500))
    old = position(kv)
    kv.do(newer)
    assert kv.outcome(expire("k", old)) == Outcome.MISMATCH
    assert kv.store.get("k").value == "new"


def test_two_commands_of_one_entry_have_other_places(kv: Applier) -> None:
    first, _, second = kv.do(leased("k", 500), delete("k"), leased("k", 500))
    assert second.transacted.place > first.transacted.place
    assert kv.outcome(expire("k", first.transacted.place)) == Outcome.MISMATCH
    assert kv.outcome(expire("k", second.transacted.place)) == Outcome.OK


def test_times_to_live_are_in_checkpoints_in_the_order_in_which_they_were_set(kv: Applier) -> None:
    kv.do(leased("b", 1))
    kv.do(leased("a", 2))
    kv.do(leased("b", 3))
    restored = Store("never-written.json")
    restored.load_state(json.loads(json.dumps(kv.store.save_state())))
    assert [*restored.leases.items()] == [*kv.store.leases.items()]
    assert [*restored.leases] == ["a", "b"]
    assert restored.state_digest() == kv.store.state_digest()
    kv.do(delete("a"), delete("b"))
    assert "leases" not in kv.store.save_state()[RESERVED_KEY]


def test_two_states_that_differ_in_times_to_live_have_other_digests(kv: Applier) -> None:
    other = Applier()
    other.do(UPGRADE)
    kv.do(leased("k", 1))
    other.do(leased("k", 2))
    assert kv.store.digest() == other.store.digest()
    assert kv.store.state_digest() != other.store.state_digest()


@pytest.mark.parametrize(
    "command",
    [
        leased("k", 0),
        leased("k", -1),
        leased("k", MAX_TTL_MS + 1),
        transaction([Compare("k", Relation.LEASED)]),
        transaction([], [Action(Verb.INCREMENT, "k", None, 1, 1000)]),
        transaction([], [Action(Verb.GET, "k", None, None, 1000)]),
    ],
)
def test_what_makes_no_sense_has_a_reason(kv: Applier, command: Command) -> None:
    assert invalid(command) is not None
    assert kv.outcome(command) == Outcome.INVALID


def test_the_longest_time_to_live_makes_sense() -> None:
    assert invalid(leased("k", MAX_TTL_MS)) is None
