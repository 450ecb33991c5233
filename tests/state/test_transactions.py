"""Transactions, and the formats that let a cluster learn new commands while nodes of two versions run."""

import json
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paxoskv.state import store as store_module
from paxoskv.state.store import MAX_KEPT_BY_ONE, RESERVED_KEY, Store, encode_batch
from paxoskv.wire import validation
from paxoskv.wire.codec import decode, encode
from paxoskv.wire.structs import (
    Action,
    Answer,
    Batch,
    Command,
    CommandPlace,
    Compare,
    Outcome,
    Relation,
    RequestId,
    Result,
    Session,
    Transacted,
    Transaction,
    Verb,
)
from paxoskv.wire.validation import (
    FORMAT,
    MAX_ACTIONS,
    MAX_ENTRY_TRANSACTED,
    MAX_KEY_BYTES,
    MAX_TRANSACTED,
    MAX_VALUE_BYTES,
    MIN_TRANSACTED,
    invalid,
)
from tests.state.test_store import I64_MAX, OPEN, Applier, get, put, untimed

UPGRADE = Command(Verb.UPGRADE, delta=FORMAT)


def transaction(
    compares: list[Compare] | None = None,
    then: list[Action] | None = None,
    otherwise: list[Action] | None = None,
    request: RequestId | None = None,
) -> Command:
    return Command(
        Verb.TRANSACTION,
        request=request,
        transaction=Transaction(compares or [], then or [], otherwise or []),
    )


def set_(key: str, value: str) -> Action:
    return Action(Verb.PUT, key, value)


def add(key: str, delta: int) -> Action:
    return Action(Verb.INCREMENT, key, None, delta)


@pytest.fixture
def kv() -> Applier:
    applier = Applier()
    assert applier.one(UPGRADE) == Result(Outcome.OK)
    return applier


# ------------------------------------------------------------------------------------------------ comparisons

HELD = {"text": "v", "number": "7", "low": str(-I64_MAX - 1), "padded": "07", "empty": ""}


@pytest.mark.parametrize(
    ("compare", "holds"),
    [
        (Compare("text", Relation.EQUALS, "v"), True),
        (Compare("text", Relation.EQUALS, "w"), False),
        (Compare("empty", Relation.EQUALS, ""), True),
        (Compare("absent", Relation.EQUALS, ""), False),
        (Compare("text", Relation.DIFFERS, "w"), True),
        (Compare("text", Relation.DIFFERS, "v"), False),
        (Compare("absent", Relation.DIFFERS, "v"), True),
        (Compare("empty", Relation.EXISTS), True),
        (Compare("absent", Relation.EXISTS), False),
        (Compare("absent", Relation.ABSENT), True),
        (Compare("empty", Relation.ABSENT), False),
        (Compare("number", Relation.LESS, "8"), True),
        (Compare("number", Relation.LESS, "7"), False),
        (Compare("number", Relation.GREATER, "6"), True),
        (Compare("number", Relation.GREATER, "7"), False),
        (Compare("number", Relation.LESS, "10"), True),  # as numbers, not as texts
        (Compare("low", Relation.LESS, str(I64_MAX)), True),
        (Compare("text", Relation.LESS, "8"), False),
        (Compare("padded", Relation.LESS, "8"), False),
        (Compare("absent", Relation.LESS, "8"), False),
        (Compare("absent", Relation.GREATER, "-8"), False),
    ],
)
def test_a_comparison_says_what_its_relation_means(kv: Applier, compare: Compare, holds: bool) -> None:
    kv.do(*(put(*item) for item in HELD.items()))
    result = kv.one(transaction([compare], [set_("then", "1")], [set_("else", "1")]))
    assert result.outcome == (Outcome.OK if holds else Outcome.MISMATCH)
    assert (kv.store.get("then").value, kv.store.get("else").value) == (("1", None) if holds else (None, "1"))


def test_all_comparisons_must_hold(kv: Applier) -> None:
    kv.do(put("a", "1"), put("b", "2"))
    both = [Compare("a", Relation.EQUALS, "1"), Compare("b", Relation.EQUALS, "2")]
    assert kv.one(transaction(both)).outcome == Outcome.OK
    assert kv.one(transaction([*both, Compare("c", Relation.EXISTS)])).outcome == Outcome.MISMATCH
    assert kv.one(transaction()).outcome == Outcome.OK


def test_comparisons_look_at_what_was_there_before_the_first_action(kv: Applier) -> None:
    compares = [Compare("a", Relation.ABSENT), Compare("b", Relation.ABSENT)]
    result = kv.one(transaction(compares, [set_("a", "1"), set_("b", "2")], [set_("a", "wrong")]))
    assert result.outcome == Outcome.OK
    assert (kv.store.get("a").value, kv.store.get("b").value) == ("1", "2")


# ---------------------------------------------------------------------------------------------------- actions


def test_each_action_is_done_on_what_those_before_it_have_left_and_has_its_answer(kv: Applier) -> None:
    kv.do(put("old", "x"))
    done = kv.one(
        transaction(
            [],
            [
                Action(Verb.GET, "old"),
                Action(Verb.DELETE, "old"),
                Action(Verb.DELETE, "old"),
                Action(Verb.GET, "old"),
                add("n", 5),
                add("n", -7),
                set_("new", "y"),
                Action(Verb.GET, "new"),
            ],
        )
    )
    answers = [(0, "x"), (0, None), (1, None), (1, None), (0, "5"), (0, "-2"), (0, None), (0, "y")]
    assert done == Result(
        Outcome.OK, transacted=Transacted(CommandPlace(kv.timestamp, 1, 0), [Answer(*a) for a in answers])
    )
    assert [kv.store.get(key).value for key in ("old", "n", "new")] == [None, "-2", "y"]
    assert kv.store.size() == 2


def test_a_transaction_of_which_one_action_fails_changes_nothing(kv: Applier) -> None:
    kv.do(put("text", "abc"), put("gone", "1"))
    before = kv.store.digest()
    actions = [set_("a", "1"), Action(Verb.DELETE, "gone"), add("text", 1)]
    assert kv.one(transaction([], actions)) == Result(Outcome.NOT_A_NUMBER)
    assert kv.store.digest() == before


def test_a_transaction_that_reads_too_much_changes_nothing(kv: Applier) -> None:
    kv.do(put("long", "v" * MAX_VALUE_BYTES))
    before = kv.store.digest()
    read = Action(Verb.GET, "long")
    assert kv.one(transaction([], [read, read])).outcome == Outcome.OK
    assert kv.one(transaction([], [set_("a", "1"), read, read, Action(Verb.GET, "a")])) == Result(
        Outcome.TOO_LARGE
    )
    assert kv.store.digest() == before


def test_what_may_be_read_is_counted_in_characters_and_bounded_for_an_entry(kv: Applier) -> None:
    kv.do(put("wide", "\u00e9" * (MAX_VALUE_BYTES // 2)))
    quarter = Action(Verb.GET, "wide")
    assert kv.outcome(transaction([], [quarter] * 4)) == Outcome.OK
    assert kv.outcome(transaction([], [quarter] * 5)) == Outcome.TOO_LARGE
    most = MAX_ENTRY_TRANSACTED // MAX_TRANSACTED
    outcomes = [result.outcome for result in kv.do(*[transaction([], [quarter] * 4)] * (most + 2))]
    assert outcomes == [Outcome.OK] * most + [Outcome.TOO_LARGE] * 2
    kv.do(put("small", "s" * MIN_TRANSACTED))
    small = transaction([], [Action(Verb.GET, "small")])
    *_, last = kv.do(*[transaction([], [quarter] * 4)] * most, small)
    assert last.outcome == Outcome.OK, "whatever others read"
    assert kv.outcome(transaction([], [quarter])) == Outcome.OK, "the next entry has its own allowance"


def test_a_scan_that_has_begun_sees_the_keys_of_a_transaction_in_order(kv: Applier) -> None:
    kv.do(put("b", "2"), put("d", "4"))
    assert len(kv.store.scan("", "", 10, 1000)[0]) == 2  # from here on the keys are kept in order
    kv.do(transaction([], [set_("c", "3"), Action(Verb.DELETE, "b"), set_("a", "1")]))
    assert [item.key for item in kv.store.scan("", "", 10, 1000)[0]] == ["a", "c", "d"]


# --------------------------------------------------------------------------------------- as any other command


def test_a_repeated_transaction_is_done_once_and_answered_alike_even_after_a_restart(kv: Applier) -> None:
    session = kv.open_session()
    once = transaction([Compare("a", Relation.ABSENT)], [set_("a", "1"), add("n", 1)],
                       request=RequestId(session, 1, 1))  # fmt: skip
    first = kv.one(once)
    assert first.outcome == Outcome.OK
    assert kv.one(once) == first
    restored = Applier()
    restored.timestamp = kv.timestamp
    restored.store.load_state(json.loads(json.dumps(kv.store.save_state())))
    assert restored.one(once) == first
    assert restored.store.get("n").value == "1"
    kv.timestamp = restored.timestamp - 1
    kv.do(once)
    assert restored.store.state_digest() == kv.store.state_digest()


def test_results_that_are_kept_have_a_bound_and_those_given_up_are_forgotten(
    kv: Applier,
) -> None:
    session, other = kv.open_session(), kv.open_session()
    kv.do(put("long", "v" * (MAX_VALUE_BYTES - 1)))
    reads = [
        transaction([], [Action(Verb.GET, "long")] * 2, request=RequestId(session, number, 1))
        for number in range(1, 8)
    ]
    for read in reads:
        assert kv.outcome(read) == Outcome.OK
    repeated = [kv.outcome(read) for read in reads]
    assert repeated == [Outcome.FORGOTTEN] * 3 + [Outcome.OK] * 4
    assert len(json.dumps(kv.store.save_state())) < 2 * MAX_KEPT_BY_ONE
    restored = Applier()
    restored.store.load_state(json.loads(json.dumps(kv.store.save_state())))
    restored.timestamp = kv.timestamp
    assert [restored.outcome(read) for read in reads] == repeated
    assert restored.store._kept == kv.store._kept > MAX_KEPT_BY_ONE / 2
    kv.do(put("k", "v", RequestId(session, 8, 8)))
    assert kv.store._kept == 0
    with mock.patch.object(store_module, "MAX_KEPT", MAX_VALUE_BYTES * 3):
        kv.do(transaction([], [Action(Verb.GET, "long")] * 2, request=RequestId(other, 1, 1)))
        kv.do(transaction([], [Action(Verb.GET, "long")] * 2, request=RequestId(session, 9, 9)))
    assert kv.outcome(put("k", "v", RequestId(other, 2, 1))) == Outcome.EXPIRED, "used least recently"
    assert kv.outcome(put("k", "v", RequestId(session, 10, 9))) == Outcome.OK


NONSENSE = [
    Command(Verb.TRANSACTION),
    transaction([Compare(None, Relation.EXISTS)]),
    transaction([Compare("", Relation.EXISTS)]),
    transaction([Compare("k" * (MAX_KEY_BYTES + 1), Relation.EXISTS)]),
    transaction([Compare("k")]),
    transaction([Compare("k", 0)]),
    transaction([Compare("k", Relation.GREATER + 1, "1")]),
    transaction([Compare("k", Relation.EQUALS)]),
    transaction([Compare("k", Relation.EQUALS, "v" * (MAX_VALUE_BYTES + 1))]),
    transaction([Compare("k", Relation.LESS)]),
    transaction([Compare("k", Relation.LESS, "1.5")]),
    transaction([Compare("k", Relation.GREATER, str(I64_MAX + 1))]),
    transaction([], [Action(None, "k")]),
    transaction([], [Action(Verb.PUT, None, "v")]),
    transaction([], [Action(Verb.PUT, "k")]),
    transaction([], [Action(Verb.PUT, RESERVED_KEY, "v")]),
    transaction([], [], [Action(Verb.INCREMENT, "k")]),
    transaction([], [Action(Verb.COMPARE_AND_SET, "k", "v")]),
    transaction([], [Action(Verb.OPEN_SESSION, "k")]),
    transaction([], [Action(Verb.TRANSACTION, "k")]),
    transaction([], [Action(Verb.GET, "k")] * (MAX_ACTIONS + 1)),
    transaction([Compare("k", Relation.EXISTS)] * (MAX_ACTIONS + 1)),
    transaction([], [set_("k", "v")], request=RequestId(Session(1, 1, 0), 0, 0)),
    Command(Verb.UPGRADE),
]


@pytest.mark.parametrize("command", NONSENSE, ids=range(len(NONSENSE)))
def test_a_transaction_without_sense_has_a_reason_and_changes_nothing(kv: Applier, command: Command) -> None:
    reason = invalid(command)
    assert reason is not None and "\n" not in reason
    before = kv.store.state_digest()
    assert kv.one(command) == Result(Outcome.INVALID)
    assert kv.store.state_digest() == before


def test_the_reason_names_the_place_of_what_is_wrong() -> None:
    wrong = transaction([], [set_("a", "1"), Action(Verb.INCREMENT, "n")])
    assert invalid(wrong) == "then_do[1]: no delta"
    assert invalid(transaction([Compare("k", Relation.LESS, "x")])) == (
        "compares[0]: the value is no 64-bit decimal integer"
    )


def test_lists_that_a_client_leaves_out_are_empty(kv: Applier) -> None:
    sparse = decode(Batch, encode(Batch([Command(Verb.TRANSACTION, transaction=Transaction())]))).commands[0]
    assert kv.one(sparse).outcome == Outcome.OK


keys = st.sampled_from(["a", "b", "c"])
values = st.sampled_from(["0", "1", "-5", "x", ""])
compares = st.builds(Compare, keys, st.integers(1, 4), values, st.none()) | st.builds(
    Compare, keys, st.integers(5, 6), st.sampled_from(["0", "-5", "3"]), st.none()
)
actions = (
    st.builds(Action, st.just(Verb.PUT), keys, values, st.none(), st.none())
    | st.builds(Action, st.sampled_from([Verb.GET, Verb.DELETE]), keys, st.none(), st.none(), st.none())
    | st.builds(Action, st.just(Verb.INCREMENT), keys, st.none(), st.integers(-3, 3), st.none())
)
some = st.lists(actions, max_size=5)
transactions = st.builds(transaction, st.lists(compares, max_size=3), some, some)


def reference(state: dict[str, str], wanted: Transaction) -> tuple[int, dict[str, str], list[Any]]:
    """The outcome, what is there afterwards, and the values of the answers, as plainly as it can be said."""

    def number(key: str) -> int | None:
        text = state.get(key, "none")
        return int(text) if text.lstrip("-").isdigit() else None

    def holds(key: str, relation: int, value: str) -> bool:
        if relation == Relation.LESS:
            return (found := number(key)) is not None and found < int(value)
        if relation == Relation.GREATER:
            return (found := number(key)) is not None and found > int(value)
        return {
            Relation.EQUALS: state.get(key) == value,
            Relation.DIFFERS: state.get(key) != value,
            Relation.EXISTS: key in state,
            Relation.ABSENT: key not in state,
        }[relation]

    good = all(holds(*compare[:3]) for compare in wanted.compares)
    before, state, answers = state, dict(state), []
    for verb, key, value, delta, _ in wanted.then_do if good else wanted.else_do:
        answer = None
        if verb == Verb.PUT:
            state[key] = value
        elif verb == Verb.GET:
            answer = state.get(key)
        elif verb == Verb.DELETE:
            state.pop(key, None)
        else:
            if not state.get(key, "0").lstrip("-").isdigit():
                return Outcome.NOT_A_NUMBER, before, []
            answer = state[key] = str(int(state.get(key, "0")) + delta)
        answers.append(answer)
    return (Outcome.OK if good else Outcome.MISMATCH), state, answers


@untimed
@given(st.lists(transactions, max_size=12))
def test_whatever_transactions_come_they_do_what_the_reference_says(script: list[Command]) -> None:
    kv, state = Applier(), dict[str, str]()
    kv.do(UPGRADE)
    for command in script:
        assert decode(Batch, encode_batch([command])).commands == [command]
        outcome, state, answers = reference(state, command.transaction)
        result = kv.one(command)
        assert result.outcome == outcome
        assert (
            [answer.value for answer in result.transacted.answers if outcome != Outcome.NOT_A_NUMBER]
            == (answers)
            if result.transacted
            else not answers
        )
        assert {item.key: item.value for item in kv.store.scan("", "", 10, 10_000)[0]} == state


# ---------------------------------------------------------------------------------------------------- formats


def apply_as_old(store: Store, timestamp: int, batch: list[Command]) -> list[Result]:
    """What a node of the version before transactions makes of an entry: it knows six verbs."""
    with mock.patch.object(validation, "_LAST_VERB", Verb.OPEN_SESSION):
        return store.apply(timestamp, 1, encode_batch(batch))


def test_before_the_upgrade_old_and_new_nodes_do_the_same_whatever_a_client_sends() -> None:
    old, new = Store("old"), Store("new")
    batches = [[OPEN], [put("a", "1"), transaction([], [set_("a", "2")]), get("a")]]
    for timestamp, batch in enumerate(batches, 1):
        assert apply_as_old(old, timestamp, batch) == new.apply(timestamp, 1, encode_batch(batch))
    assert old.hash == new.hash and old.state_digest() == new.state_digest()
    assert new.get("a").value == "1", "nothing of the transaction was done by anybody"


def test_after_the_upgrade_a_node_that_does_not_know_it_has_another_hash_at_once() -> None:
    old, new = Store("old"), Store("new")
    apply_as_old(old, 1, [UPGRADE])
    new.apply(1, 1, encode_batch([UPGRADE]))
    assert old.hash != new.hash, "divergence.py ends a node whose hash differs from a quorum's"


def test_a_format_that_this_version_does_not_know_is_invalid() -> None:
    store = Store("new")
    assert store.apply(1, 1, encode_batch([Command(Verb.UPGRADE, delta=FORMAT + 1)])) == [
        Result(Outcome.INVALID)
    ]
    assert store.format == 0


def test_the_format_never_falls_and_lasts() -> None:
    kv = Applier()
    kv.do(UPGRADE, Command(Verb.UPGRADE, delta=0))
    assert kv.store.format == FORMAT
    restored = Store("restored")
    restored.load_state(json.loads(json.dumps(kv.store.save_state())))
    assert restored.format == FORMAT


def test_a_checkpoint_of_a_version_without_formats_is_of_format_0() -> None:
    saved = Store("old").save_state()
    assert "format" not in saved[RESERVED_KEY], "a version without formats could read it, too"
    restored = Store("restored")
    restored.load_state(saved)
    assert restored.format == 0
