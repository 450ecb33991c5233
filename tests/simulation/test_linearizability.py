"""The judge is judged: by brute force, by histories known to be bad, and by large good ones."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.harness.linearizability import (
    Malformed,
    Operation,
    Search,
    Undecided,
    Violation,
    check,
    dump,
    load,
    parse,
    timeline,
    to_json,
)

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_history.py"


# --------------------------------------------------------------------------------------- helpers: small facts


def operation(
    kind: str,
    call: int,
    return_: int | None,
    outcome: str = "ok",
    *,
    client: int = 1,
    value: str | None = None,
    expected: str | None = None,
    delta: int = 0,
    answer: str | None = None,
) -> Operation:
    return Operation(
        client=client,
        kind=kind,
        key="x",
        value=value,
        expected=expected,
        delta=delta,
        outcome=outcome,
        answer=answer,
        call=call,
        return_=return_,
    )


def put(value: str, call: int, return_: int | None, outcome: str = "ok") -> Operation:
    return operation("put", call, return_, outcome, value=value)


def get(value: str | None, call: int, return_: int) -> Operation:
    return operation("get", call, return_, "not_found" if value is None else "ok", answer=value)


def incr(delta: int, call: int, return_: int | None, answer: str | None, outcome: str = "ok") -> Operation:
    return operation("incr", call, return_, outcome, delta=delta, answer=answer)


# ------------------------------------------------------------ helpers: an atomic store, written independently


def is_int64(text: str) -> bool:
    digits = text.removeprefix("-")
    canonical = (
        digits.isascii()
        and digits.isdigit()
        and (digits == "0" or not digits.startswith("0"))
        and text != "-0"
    )
    return canonical and len(digits) < 20 and -(2**63) <= int(text) < 2**63


def do(state: str | None, op: Operation) -> tuple[str | None, str, str | None]:
    """What a store that holds the state does: the new state, the outcome, the answer."""
    match op.kind:
        case "put":
            return op.value, "ok", None
        case "get":
            return (state, "not_found", None) if state is None else (state, "ok", state)
        case "delete":
            return None, "not_found" if state is None else "ok", None
        case "cas":
            return (op.value, "ok", None) if state == op.expected else (state, "mismatch", state)
    held = "0" if state is None else state
    if not is_int64(held) or not is_int64(str(int(held) + op.delta)):
        return state, "not_a_number", None
    total = str(int(held) + op.delta)
    return total, "ok", total


def brute_force(operations: list[Operation], state: str | None = None) -> bool:
    """Whether any permutation that real time permits gives these answers, trying them all (one key)."""
    if all(op.outcome in ("unknown", "failed") for op in operations):
        return True
    for index, op in enumerate(operations):
        if op.outcome == "failed" or any(precedes(other, op) for other in operations):
            continue
        after, outcome, answer = do(state, op)
        if op.outcome not in ("unknown", outcome) or (op.outcome != "unknown" and op.answer != answer):
            continue
        if brute_force(operations[:index] + operations[index + 1 :], after):
            return True
    return False


def precedes(one: Operation, other: Operation) -> bool:
    if one.outcome in ("unknown", "failed") or one.return_ is None:
        return False
    return one.return_ < other.call


Maker = Callable[[random.Random, int, str], Operation]


def any_command(rng: random.Random, number: int, key: str) -> Operation:
    """Few values, so that they meet; numbers and others."""
    values = ["0", "1", "2", "-1", "a", "007", str(2**63 - 1)]
    kind = rng.choice(["put", "get", "get", "delete", "cas", "incr"])
    return blank(
        kind,
        key,
        value=rng.choice(values) if kind in ("put", "cas") else None,
        expected=rng.choice([*values, None]) if kind == "cas" else None,
        delta=rng.choice([-1, 0, 1, 1, 2]) if kind == "incr" else 0,
    )


def unique_write_or_get(rng: random.Random, number: int, key: str) -> Operation:
    return blank("put", key, value=f"v{number}") if rng.random() < 0.5 else blank("get", key)


def workload_command(rng: random.Random, number: int, key: str) -> Operation:
    """As clients mix them: unique values, deletes, and increments that now and then meet a number."""
    draw = rng.random()
    if draw < 0.3:
        return blank("put", key, value=f"v{number}" if draw < 0.2 else str(number))
    if draw < 0.7:
        return blank("get", key)
    if draw < 0.8:
        return blank("cas", key, expected=f"v{max(0, number - rng.randrange(8))}", value=f"v{number}")
    if draw < 0.9:
        return blank("incr", key, delta=rng.choice([1, 2]))
    return blank("delete", key)


def increment_or_get(rng: random.Random, number: int, key: str) -> Operation:
    return blank("incr", key, delta=1) if rng.random() < 0.7 else blank("get", key)


def blank(
    kind: str, key: str, value: str | None = None, expected: str | None = None, delta: int = 0
) -> Operation:
    return Operation(
        client=0, kind=kind, key=key, value=value, expected=expected, delta=delta, outcome="unknown", call=0
    )


def simulated(
    rng: random.Random,
    maker: Maker,
    size: int,
    clients: int,
    keys: int = 1,
    unknown: float = 0.0,
    failed: float = 0.0,
) -> list[Operation]:
    """A history of an atomic store: each operation happens at a random instant between call and return."""
    free_at = [rng.randrange(100) for _ in range(clients)]
    plan: list[tuple[float, Operation]] = []
    for number in range(size):
        client = min(range(clients), key=free_at.__getitem__)
        call = free_at[client] + rng.randrange(1, 30)
        end = call + rng.randrange(1, 200)
        op = maker(rng, number, f"key-{rng.randrange(keys)}")
        plan.append((rng.uniform(call, end), replace(op, client=client, call=call, return_=end)))
        free_at[client] = end
    return sorted(executed(rng, plan, unknown, failed), key=lambda op: op.call)


def executed(
    rng: random.Random, plan: list[tuple[float, Operation]], unknown: float, failed: float
) -> Iterator[Operation]:
    """Do what was planned, in the order of the instants; where the answer is lost, late or never."""
    states: dict[str, str | None] = {}
    lost = {id(op) for _, op in plan if rng.random() < unknown}
    late = [(instant + rng.randrange(2000) if id(op) in lost else instant, op) for instant, op in plan]
    for _, op in sorted(late, key=lambda pair: pair[0]):
        fate = rng.random()
        if id(op) in lost:
            if fate < 0.5:
                states[op.key] = do(states.get(op.key), op)[0]
            yield replace(op, return_=None)
        elif fate < failed:
            yield replace(op, outcome="failed")
        else:
            states[op.key], outcome, answer = do(states.get(op.key), op)
            yield replace(op, outcome=outcome, answer=answer)


# ---------------------------------------------------------------------------------------- against brute force


def test_the_checker_agrees_with_brute_force_on_10000_small_random_histories() -> None:
    rng = random.Random(1)
    good = 0
    for number in range(10_000):
        history = small_history(rng)
        expected = brute_force(history)
        good += expected
        violation = check(history)
        assert (violation is None) == expected, f"history {number}:\n{timeline(history)}"
        if violation is not None:
            assert not brute_force(list(violation.prefix)), f"prefix of history {number}"
            assert not brute_force(list(violation.core)), f"core of history {number}:\n{violation}"
    assert 2000 < good < 8000  # both verdicts are put to the test


def small_history(rng: random.Random) -> list[Operation]:
    size, clients = rng.randrange(1, 8), rng.randrange(1, 6)
    maker = rng.choice([any_command, any_command, unique_write_or_get, workload_command, increment_or_get])
    history = simulated(
        rng, maker, size, clients, unknown=rng.choice([0.0, 0.3, 0.6]), failed=rng.choice([0.0, 0.1])
    )
    for _ in range(rng.choice([0, 1, 1, 2])):
        index = rng.randrange(size)
        history[index] = garbled(rng, history, history[index])
    return history


def garbled(rng: random.Random, history: list[Operation], op: Operation) -> Operation:
    """The operation with another answer that its kind can have, often one that is right elsewhere."""
    if op.outcome in ("unknown", "failed"):
        return op
    seen = [o.value for o in history if o.value is not None] + ["0", "1", "2", "3"]
    value = rng.choice(seen)
    match op.kind, rng.random() < 0.3:
        case "put", _:
            return op
        case "get", True:
            return replace(op, outcome="not_found", answer=None)
        case "get", False:
            return replace(op, outcome="ok", answer=value)
        case "delete", _:
            return replace(op, outcome="ok" if op.outcome == "not_found" else "not_found")
        case "cas", True:
            return replace(op, outcome="ok", answer=None)
        case "cas", False:
            return replace(op, outcome="mismatch", answer=rng.choice([value, None]))
        case _, True:
            return replace(op, outcome="not_a_number", answer=None)
    return replace(op, outcome="ok", answer=value)


# --------------------------------------------------------------------------------------- what must be refused


def never_written(rng: random.Random, history: list[Operation]) -> Operation | None:
    reads = [op for op in history if op.kind == "get" and op.outcome == "ok"]
    return replace(rng.choice(reads), answer="never written") if reads else None


def from_the_future(rng: random.Random, history: list[Operation]) -> Operation | None:
    pairs = [(r, w) for r in history if r.kind == "get" and r.outcome in ("ok", "not_found")
             for w in history if w.kind == "put" and precedes(r, w)]  # fmt: skip
    read, write = rng.choice(pairs) if pairs else (None, None)
    return replace(read, outcome="ok", answer=write.value) if read and write else None


def overwritten_before(rng: random.Random, history: list[Operation]) -> Operation | None:
    writes = [op for op in history if op.kind == "put" and op.outcome == "ok"]
    reads = [op for op in history if op.kind == "get" and op.outcome in ("ok", "not_found")]
    for read in rng.sample(reads, len(reads)):
        past = [w for w in writes if precedes(w, read)]
        stale = [w for w in past if any(precedes(w, other) for other in past)]
        if stale:
            return replace(read, outcome="ok", answer=rng.choice(stale).value)
    return None


def lost_altogether(rng: random.Random, history: list[Operation]) -> Operation | None:
    """Nothing is ever deleted in these histories, so a key that has been written exists."""
    writes = [op for op in history if op.kind == "put" and op.outcome == "ok"]
    reads = [
        op
        for op in history
        if op.kind == "get" and any(precedes(w, op) for w in writes) and op.outcome == "ok"
    ]
    return replace(rng.choice(reads), outcome="not_found", answer=None) if reads else None


@pytest.mark.parametrize("corrupt", [never_written, from_the_future, overwritten_before, lost_altogether])
def test_200_registers_with_one_corrupted_read_each_are_refused(
    corrupt: Callable[[random.Random, list[Operation]], Operation | None],
) -> None:
    rng = random.Random(corrupt.__name__)
    for history, bad in corruptions(rng, unique_write_or_get, corrupt):
        assert_refused(history, bad)


def the_same_sum_twice(rng: random.Random, history: list[Operation]) -> Operation | None:
    """A counter that only grows gives each sum once."""
    sums = [op for op in history if op.kind == "incr" and op.outcome == "ok"]
    if len(sums) < 2:
        return None
    one, other = rng.sample(sums, 2)
    return replace(one, answer=other.answer)


def test_200_counters_that_gave_one_sum_twice_are_refused() -> None:
    for history, bad in corruptions(random.Random(5), increment_or_get, the_same_sum_twice):
        assert_refused(history, bad)


def corruptions(
    rng: random.Random,
    maker: Maker,
    corrupt: Callable[[random.Random, list[Operation]], Operation | None],
    wanted: int = 200,
) -> Iterator[tuple[list[Operation], Operation]]:
    """Good histories of up to 120 operations with one answer corrupted, each with that answer."""
    while wanted:
        size, clients, keys = rng.randrange(6, 120), rng.randrange(1, 9), rng.randrange(1, 3)
        history = simulated(rng, maker, size, clients, keys, unknown=rng.choice([0.0, 0.1]), failed=0.05)
        one_key = [op for op in history if op.key == "key-0"]
        bad = corrupt(rng, one_key)
        if bad is not None:
            assert check(history) is None
            yield [bad if (op.client, op.call) == (bad.client, bad.call) else op for op in history], bad
            wanted -= 1


def assert_refused(history: list[Operation], bad: Operation) -> None:
    violation = check(history)
    assert violation is not None, timeline(history)
    assert violation.key == bad.key
    assert check(violation.prefix) is not None
    assert check(violation.core) is not None
    assert len(violation.core) <= len(violation.prefix) <= len(history)
    assert bad.answer is None or json.dumps(bad.answer) in str(violation)


def forgotten(op: Operation) -> Operation:
    return replace(op, outcome="unknown", answer=None, return_=None)


def test_whatever_is_cut_off_the_shortest_failing_prefix_leaves_a_linearizable_history() -> None:
    rng = random.Random(3)
    for history, _ in corruptions(rng, unique_write_or_get, overwritten_before, wanted=50):
        violation = check(history)
        assert violation is not None
        last = max(op.return_ for op in violation.prefix if op.return_ is not None)
        shorter = [
            op if op.return_ is not None and op.return_ < last else forgotten(op) for op in violation.prefix
        ]
        assert check(shorter) is None


# --------------------------------------------------------------------------------------------- what must pass


def test_a_history_of_100000_operations_on_500_keys_is_accepted() -> None:
    history = simulated(random.Random(7), workload_command, 100_000, 50, keys=500, unknown=0.02, failed=0.01)
    assert check(history, limit=20_000) is None


@pytest.mark.parametrize(
    ("maker", "unknown"),
    [
        (unique_write_or_get, 0.0),
        (unique_write_or_get, 0.05),
        (increment_or_get, 0.0),
        (increment_or_get, 0.05),
        (workload_command, 0.0),
    ],
)
def test_one_hot_key_with_20_clients_and_2000_operations_is_accepted(maker: Maker, unknown: float) -> None:
    for seed in range(3):
        history = simulated(random.Random(seed), maker, 2000, 20, unknown=unknown, failed=0.02)
        assert check(history, limit=100_000) is None


@pytest.mark.parametrize("maker", [unique_write_or_get, increment_or_get])
@pytest.mark.parametrize("unknown", [0.0, 0.05])
def test_one_hot_key_with_a_value_out_of_nowhere_is_refused(maker: Maker, unknown: float) -> None:
    history = simulated(random.Random(11), maker, 2000, 20, unknown=unknown)
    bad = next(op for op in history[1000:] if op.kind == "get" and op.outcome == "ok")
    violation = check([replace(op, answer="nowhere") if op is bad else op for op in history], limit=500_000)
    assert violation is not None
    assert "nowhere" in str(violation)


def test_hundreds_of_unknown_writes_that_nobody_saw_do_not_make_the_search_grow() -> None:
    lost = [put(f"v{number}", 0, None, "unknown") for number in range(300)]
    lost += [operation("delete", 0, None, "unknown") for _ in range(100)]
    lost += [operation("cas", 0, None, "unknown", expected="1", value=f"w{number}") for number in range(100)]
    lost += [incr(1, 0, None, None, "unknown") for _ in range(100)]
    seen = [put("1", 1, 2), get("1", 3, 4), operation("delete", 5, 6), put("2", 7, 8), get("2", 9, 10)]
    assert check(lost + seen, limit=1_000) is None


def test_the_search_stops_at_its_limit_and_says_so() -> None:
    history = simulated(random.Random(0), workload_command, 200, 10)
    with pytest.raises(Undecided, match="more than 50 configurations"):
        check(history, limit=50)


def test_a_violation_of_one_key_is_found_although_another_is_undecided() -> None:
    history = simulated(random.Random(0), workload_command, 200, 10)
    violation = check([*history, get("1", 1, 2)], limit=50)
    assert violation is not None
    assert violation.key == "x"


# ---------------------------------------------------------------------------------------------- single points


def test_an_empty_history_is_linearizable() -> None:
    assert check([]) is None


def test_operations_that_touch_in_time_are_concurrent() -> None:
    assert check([put("1", 0, 5), get(None, 5, 6)]) is None
    assert check([put("1", 0, 5), get(None, 6, 7)]) is not None


def test_a_failed_write_must_not_be_seen_and_an_unknown_one_may_be() -> None:
    assert check([put("1", 0, 5, "failed"), get("1", 1, 9)]) is not None
    assert check([put("1", 0, 5, "unknown"), get(None, 6, 7), get("1", 8, 9)]) is None
    assert check([put("1", 0, None, "unknown"), get("1", 6, 7), get(None, 8, 9)]) is not None
    assert check([get("1", 6, 7), put("1", 8, None, "unknown")]) is not None


def test_an_unknown_increment_happens_at_most_once() -> None:
    lost = incr(1, 0, None, None, "unknown")
    assert check([lost, incr(1, 1, 2, "2")]) is None
    assert check([lost, incr(1, 1, 2, "1"), get("2", 3, 4)]) is None
    assert check([lost, incr(1, 1, 2, "3")]) is not None


def test_an_unknown_write_can_be_what_a_delete_removed() -> None:
    delete = operation("delete", 5, 6)
    assert check([put("1", 0, None, "unknown"), delete]) is None
    assert check([delete]) is not None
    assert check([put("1", 0, None, "unknown"), delete, replace(delete, call=7, return_=8)]) is not None


@pytest.mark.parametrize(
    "text", ["007", "-0", "+1", " 1", "1_0", "", "1.0", "\u0661", str(2**63), "9" * 5000]
)
def test_only_canonical_decimals_of_64_bits_can_be_incremented(text: str) -> None:
    assert check([put(text, 0, 1), incr(1, 2, 3, None, "not_a_number"), get(text, 4, 5)]) is None
    assert check([put("5", 0, 1), incr(1, 2, 3, None, "not_a_number")]) is not None
    assert check([put(text, 0, 1), incr(0, 2, 3, "1")]) is not None


def test_a_sum_beyond_64_bits_is_not_a_number_and_changes_nothing() -> None:
    top = str(2**63 - 1)
    assert check([put(top, 0, 1), incr(1, 2, 3, None, "not_a_number"), get(top, 4, 5)]) is None
    assert check([put(top, 0, 1), incr(1, 2, 3, str(2**63))]) is not None


def test_a_missing_key_counts_from_0() -> None:
    assert check([incr(0, 0, 1, "0"), get("0", 2, 3)]) is None
    assert check([incr(5, 0, 1, "5"), incr(-5, 2, 3, "0"), incr(2, 4, 5, "2")]) is None


def test_a_mismatch_with_what_was_expected_is_refused() -> None:
    cas = operation("cas", 2, 3, "mismatch", expected="1", value="2", answer="1")
    assert check([put("1", 0, 1), cas]) is not None
    assert check([put("1", 0, 1), replace(cas, expected="3")]) is None


def test_an_operation_that_contradicts_itself_is_an_error_not_a_verdict() -> None:
    with pytest.raises(ValueError, match="does not go with"):
        check([operation("get", 0, 1, "ok")])
    with pytest.raises(ValueError, match="outcome"):
        check([operation("put", 0, 1, "mismatch", value="1")])


# ------------------------------------------------------------------------------------------------ the picture


def test_the_counterexample_holds_only_what_is_needed_to_see_why() -> None:
    history = [
        put("1", 0, 10),
        get("1", 11, 12),
        put("2", 20, 30),
        get("2", 31, 32),
        get("1", 40, 50),
        get("2", 60, 70),
    ]
    violation = check(history)
    assert violation is not None
    assert [op.call for op in violation.prefix] == [0, 11, 20, 31, 40]
    assert str(violation).splitlines() == [
        'key "x" is not linearizable: of its first 5 operations, these 3 have no order:',
        "client  operation  from us (first call: 0 ns)",
        '     1  put "1"          0.000  |--|',
        '     1  put "2"          0.020        |--|',
        '     1  get: "1"         0.040              |--|',
    ]


def test_a_timeline_is_bounded_and_printable_whatever_the_values() -> None:
    history = [put("\n\u2028\x1b" * 1000, call, call + 5) for call in range(100)]
    rows = timeline(history).splitlines()
    assert rows[0] == "(60 earlier ones not shown)"
    assert len(rows) == 42
    assert all(row.isascii() and row.isprintable() and len(row) < 160 for row in rows)


def test_an_operation_without_an_end_is_drawn_open() -> None:
    assert timeline([put("1", 0, None, "unknown"), get("1", 1, 2)]).splitlines()[1].endswith("|-------->")


# -------------------------------------------------------------------------------------------------- the files


def test_a_history_survives_a_file(tmp_path: Path) -> None:
    history = simulated(random.Random(2), any_command, 500, 5, keys=3, unknown=0.1, failed=0.1)
    dump(history, tmp_path / "history.jsonl")
    assert load(tmp_path / "history.jsonl") == history


def test_a_line_has_the_documented_form() -> None:
    cas = operation("cas", 120, 450, "mismatch", expected=None, value="1", answer="7", client=3)
    assert json.loads(to_json(cas)) == {
        "client": 3, "operation": "cas", "key": "x", "arguments": {"expected": None, "value": "1"},
        "answer": {"done": False, "actual": "7"}, "call_ns": 120, "return_ns": 450, "outcome": "mismatch",
    }  # fmt: skip
    assert json.loads(to_json(operation("delete", 1, 2, "not_found")))["answer"] is False


FINE = json.loads(to_json(put("1", 3, 4)))
BAD_LINES = [
    ("", "Expecting value"),
    ("{", "Expecting property name"),
    ("[" * 100_000, "recursion"),
    ("[]", "not an object"),
    ('{"client": 1, "client": 1}', "twice"),
    (json.dumps({**FINE, "node": 1}), "unknown field"),
    (json.dumps({name: FINE[name] for name in FINE if name != "key"}), "key is missing"),
    (json.dumps({**FINE, "client": True}), "client: true is not an integer"),
    (json.dumps({**FINE, "client": 1.0}), "client: 1.0 is not an integer"),
    (json.dumps({**FINE, "key": 1}), "key: 1 is not a string"),
    (json.dumps({**FINE, "operation": "scan"}), "operation"),
    (json.dumps({**FINE, "operation": ["put"]}), "operation"),
    (json.dumps({**FINE, "arguments": {}}), "arguments: value is missing"),
    (json.dumps({**FINE, "arguments": {"value": None}}), "arguments.value: null is not a string"),
    (json.dumps({**FINE, "arguments": {"value": "1", "delta": 1}}), "arguments: unknown field"),
    (json.dumps({**FINE, "answer": "1"}), "answer"),
    (json.dumps({**FINE, "outcome": "mismatch"}), "outcome"),
    (json.dumps({**FINE, "outcome": None}), "outcome"),
    (json.dumps({**FINE, "call_ns": None}), "call_ns"),
    (json.dumps({**FINE, "return_ns": None}), "return_ns: null"),
    (json.dumps({**FINE, "return_ns": 2}), "return_ns: 2 is before"),
    (json.dumps({**FINE, "operation": "get", "arguments": {}}), "answer: null does not go with ok"),
    (json.dumps({**FINE, "operation": "delete", "arguments": {}}), "answer: null does not go with"),
    (json.dumps({**FINE, "operation": "incr", "arguments": {"delta": 2**63}, "answer": "1"}), "64 bits"),
    (json.dumps({**FINE, "operation": "cas", "arguments": {"expected": None, "value": "1"},
                 "answer": {"done": False, "actual": None}}), "answer.done"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_malformed_line_is_refused_with_its_place_and_reason(
    line: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(f"{json.dumps(FINE)}\n{line}\n", encoding="utf-8")
    with pytest.raises(Malformed) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert reason in str(caught.value)


def test_bytes_that_are_not_utf_8_are_malformed(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(b"\xff\n")
    with pytest.raises(Malformed, match=":1: "):
        load(path)


def test_what_is_written_of_unknown_outcome_has_no_answer() -> None:
    assert parse(to_json(replace(put("1", 1, None, "unknown"), answer="ignored"))).answer is None


# ------------------------------------------------------------------------------------------------- the script


def run_script(*files: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, files)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )


def test_the_script_exits_with_0_for_good_1_for_bad_and_2_for_malformed_files(tmp_path: Path) -> None:
    good, bad, malformed = tmp_path / "good", tmp_path / "bad", tmp_path / "malformed"
    dump([put("1", 0, 1), get("1", 2, 3), put("2", 4, None, "unknown")], good)
    dump([put("1", 0, 1), get(None, 2, 3)], bad)
    malformed.write_text("nonsense\n")

    fine = run_script(good)
    assert (fine.returncode, fine.stderr) == (0, "")
    assert "3 operations on 1 keys by 1 clients (2 ok, 1 unknown)" in fine.stdout

    wrong = run_script(good, bad)
    assert wrong.returncode == 1
    assert "|--|" in wrong.stdout

    broken = run_script(malformed, bad)
    assert broken.returncode == 65
    assert broken.stderr.startswith(f"{malformed}:1: ")
    assert run_script(tmp_path / "absent").returncode == 2
    assert run_script().returncode == 2


def test_the_types_can_be_imported_from_the_tests_directory() -> None:
    violation = check([get("1", 0, 1)])
    assert isinstance(violation, Violation)
    assert Search(violation.core).succeeds() is False
