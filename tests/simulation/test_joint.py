"""The judge of histories with transactions is judged: by brute force, and by histories known to be bad."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.harness.linearizability import (
    Changes,
    Joint,
    Malformed,
    Operation,
    Search,
    Undecided,
    check,
    dump,
    load,
    parse,
    to_json,
)
from tests.simulation.test_linearizability import do

KEYS = ("x", "y")
ACTION = tuple[str, str, str | None]


def single(
    kind: str, key: str, call: int, return_: int | None, outcome: str = "ok", **more: Any
) -> Operation:
    return Operation(client=1, kind=kind, key=key, call=call, return_=return_, outcome=outcome, **more)


def transaction(
    changes: Changes, call: int, return_: int | None, outcome: str = "ok", answers: tuple[Any, ...] = ()
) -> Operation:
    return Operation(
        client=1, kind="transaction", key="", call=call, return_=return_, outcome=outcome, changes=changes,
        answers=answers,
    )  # fmt: skip


def serve(state: dict[str, str | None], op: Operation) -> tuple[dict[str, str | None], str, Any]:
    """What a store does: the new state, the outcome, the answer; written independently of the judge."""
    if op.changes is None:
        after, outcome, answer = do(state[op.key], op)
        return {**state, op.key: after}, outcome, answer

    def holds(key: str, relation: str, value: str | None) -> bool:
        held = state[key]
        match relation:
            case "equals":
                return held == value
            case "differs":
                return held != value
            case "exists":
                return held is not None
            case "absent":
                return held is None
        assert value is not None
        if held is None or not held.lstrip("-").isdigit():
            return False
        return int(held) < int(value) if relation == "less" else int(held) > int(value)

    good = all(holds(*compare) for compare in op.changes.compare)
    after_, answers = dict(state), []
    for kind, key, value in op.changes.then if good else op.changes.otherwise:
        step = single(kind, key, 0, 0, value=value, delta=int(value or 0) if kind == "incr" else 0)
        held, outcome, answer = do(after_[key], step)
        if outcome == "not_a_number":
            return state, outcome, ()
        after_[key] = held
        answers.append(outcome == "ok" if kind == "delete" else answer)
    return after_, "ok" if good else "mismatch", tuple(answers)


def said(op: Operation) -> Any:
    return op.answer if op.changes is None else op.answers


def brute_force(operations: list[Operation], state: dict[str, str | None]) -> bool:
    """Whether any order that real time permits gives these answers, trying them all."""
    if all(op.outcome == "unknown" for op in operations):
        return True
    for index, op in enumerate(operations):
        if any(o.outcome != "unknown" and o.return_ is not None and o.return_ < op.call for o in operations):
            continue
        after, outcome, answer = serve(state, op)
        if op.outcome not in ("unknown", outcome) or (op.outcome != "unknown" and said(op) != answer):
            continue
        if brute_force(operations[:index] + operations[index + 1 :], after):
            return True
    return False


def anything(rng: random.Random, call: int) -> Operation:
    key = rng.choice(KEYS)
    kind = rng.choice(("put", "get", "delete", "cas", "incr", "transaction", "transaction", "transaction"))
    if kind != "transaction":
        return single(
            kind, key, call, None, value=rng.choice("12") if kind in ("put", "cas") else None,
            expected=rng.choice((None, "1", "x")) if kind == "cas" else None,
            delta=int(kind == "incr"),
        )  # fmt: skip

    def actions() -> tuple[ACTION, ...]:
        made: list[ACTION] = []
        for _ in range(rng.randrange(3)):
            what, value = rng.choice(
                (("put", "1"), ("put", "x"), ("get", None), ("delete", None), ("incr", "2"))
            )
            made.append((what, rng.choice(KEYS), value))
        return tuple(made)

    tests: list[ACTION] = [
        (rng.choice(KEYS), *rng.choice((("equals", "1"), ("differs", "x"), ("absent", None), ("less", "2"))))
        for _ in range(rng.randrange(3))
    ]
    return transaction(Changes(tuple(tests), actions(), actions()), call, None)


def history(rng: random.Random, count: int, overlap: int, lost_share: float = 0.1) -> list[Operation]:
    """What clients of an atomic store saw; some did not hear the end."""
    state: dict[str, str | None] = dict.fromkeys(KEYS)
    seen = []
    for at in range(count):
        op = anything(rng, 10 * at - rng.randrange(overlap))
        lost = rng.random() < lost_share
        done = serve(state, op) if not lost or rng.random() < 0.5 else None
        if done:
            state = done[0]
        if lost:
            seen.append(replace(op, outcome="unknown"))
        else:
            assert done is not None
            name = "answers" if op.changes is not None else "answer"
            answer = {name: done[2]}
            seen.append(replace(op, outcome=done[1], return_=10 * at + 1 + rng.randrange(overlap), **answer))
    return seen


def spoiled(rng: random.Random, operations: list[Operation]) -> list[Operation]:
    """One answer is another one."""
    index = rng.randrange(len(operations))
    op = operations[index]
    if op.kind == "get" and op.outcome == "ok":
        op = replace(op, answer="never written" if rng.random() < 0.5 else "1")
    elif op.changes is not None and any(isinstance(answer, str) for answer in op.answers):
        op = replace(op, answers=tuple("1" if isinstance(a, str) else a for a in op.answers))
    elif op.return_ is not None:
        op = replace(op, call=op.call + 30, return_=op.return_ + 30)
    return [*operations[:index], op, *operations[index + 1 :]]


def test_the_judge_agrees_with_brute_force() -> None:
    verdicts = {True: 0, False: 0}
    for seed in range(1500):
        rng = random.Random(seed)
        operations = history(rng, rng.randint(2, 6), 40)
        if seed % 3:
            operations = spoiled(rng, operations)
        expected = brute_force(operations, dict.fromkeys(KEYS))
        assert Joint(operations).succeeds() == expected, f"seed {seed}"
        verdicts[expected] += 1
    assert min(verdicts.values()) > 100, verdicts


def test_it_agrees_with_the_search_for_one_key_where_there_are_no_transactions() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        operations = [op for op in history(rng, 8, 40) if op.changes is None and op.key == "x"]
        operations = spoiled(rng, operations) if operations else []
        assert Joint(operations).succeeds() == Search(operations).succeeds(), f"seed {seed}"


def test_a_long_history_of_an_atomic_store_is_linearizable() -> None:
    assert check(history(random.Random(1), 1000, 35, 0.01)) is None


def test_a_transaction_that_others_see_half_done_is_a_violation() -> None:
    both = Changes((), (("put", "x", "1"), ("put", "y", "1")), ())
    operations = [
        transaction(both, 0, 100, answers=(None, None)),
        single("get", "x", 10, 20, answer="1"),
        single("get", "y", 30, 40, "not_found"),
    ]
    violation = check(operations)
    assert violation is not None and violation.key == "x, y"
    assert "transaction x, y" in str(violation)
    assert check([operations[0], operations[1]]) is None
    assert check([replace(operations[0], outcome="unknown"), *operations[1:]]) is not None


def test_a_transaction_of_unknown_outcome_may_have_been_done_or_not() -> None:
    both = Changes((), (("put", "x", "1"), ("put", "y", "1")), ())
    lost = transaction(both, 0, None, "unknown")
    assert check([lost, single("get", "x", 10, 20, "not_found")]) is None
    assert (
        check([lost, single("get", "x", 10, 20, answer="1"), single("get", "y", 30, 40, answer="1")]) is None
    )


def test_keys_that_no_transaction_joins_are_judged_alone() -> None:
    joined = Changes((("x", "absent", None),), (("put", "y", "1"),), ())
    operations = [
        transaction(joined, 0, 10, answers=(None,)),
        single("put", "z", 0, 10, value="1"),
        single("get", "z", 20, 30, "not_found"),
    ]
    violation = check(operations)
    assert violation is not None and violation.key == "z"


def test_more_configurations_than_the_limit_are_undecided() -> None:
    with pytest.raises(Undecided):
        Joint(history(random.Random(2), 300, 60), 50).succeeds()


def test_transactions_are_written_and_read_back(tmp_path: Path) -> None:
    operations = history(random.Random(3), 200, 30)
    dump(operations, tmp_path / "history.jsonl")
    assert load(tmp_path / "history.jsonl") == operations


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"equals"', '"like"'),
        ('["put", "y", "1"]', '["put", "y"]'),
        ('["put", "y", "1"]', '["scan", "y", null]'),
        ('"answer": [null]', '"answer": []'),
        ('"key": ""', '"key": "x"'),
        ('"else"', '"otherwise"'),
    ],
)
def test_a_line_that_is_no_transaction_is_refused(tmp_path: Path, old: str, new: str) -> None:
    line = to_json(
        transaction(Changes((("x", "equals", "0"),), (("put", "y", "1"),), ()), 0, 9, answers=(None,))
    )
    assert parse(line).changes is not None and old in line
    (tmp_path / "wrong.jsonl").write_text(line.replace(old, new))
    with pytest.raises(Malformed, match=r"wrong\.jsonl:1: "):
        load(tmp_path / "wrong.jsonl")
