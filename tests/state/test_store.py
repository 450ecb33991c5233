"""The replicated state: what commands do, that repeats are done once, that equal entries give one state."""

import asyncio
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pickledb import PickleDB

from paxoskv.state import store as store_module
from paxoskv.state.store import (
    ITEM_OVERHEAD,
    MAX_SESSIONS,
    RESERVED_KEY,
    Store,
    encode_batch,
)
from paxoskv.wire import validation
from paxoskv.wire.codec import Malformed, decode, encode
from paxoskv.wire.structs import (
    Batch,
    Command,
    Item,
    Outcome,
    RequestId,
    Result,
    Session,
    Verb,
)
from paxoskv.wire.validation import MAX_KEY_BYTES, MAX_RESULTS, MAX_VALUE_BYTES, invalid

untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a slow machine is no bug

I64_MAX = (1 << 63) - 1
I64_MIN = -(1 << 63)


def put(key: str, value: str, request: RequestId | None = None) -> Command:
    return Command(Verb.PUT, key, value, request=request)


def get(key: str) -> Command:
    return Command(Verb.GET, key)


def delete(key: str) -> Command:
    return Command(Verb.DELETE, key)


def cas(key: str, expected: str | None, value: str) -> Command:
    return Command(Verb.COMPARE_AND_SET, key, value, expected)


def incr(key: str, delta: int = 1, request: RequestId | None = None) -> Command:
    return Command(Verb.INCREMENT, key, delta=delta, request=request)


OPEN = Command(Verb.OPEN_SESSION)


class Applier:
    """Gives each batch the next timestamp, as a log would."""

    def __init__(self) -> None:
        self.store = Store("never-written.json")
        self.timestamp = 0

    def do(self, *commands: Command) -> list[Result]:
        self.timestamp += 1
        return self.store.apply(self.timestamp, 1, encode_batch(commands))

    def one(self, command: Command) -> Result:
        (result,) = self.do(command)
        return result

    def outcome(self, command: Command) -> int:
        outcome: int = self.one(command).outcome
        return outcome

    def open_session(self) -> Session:
        return self.one(OPEN).session


@pytest.fixture
def kv() -> Applier:
    return Applier()


# ------------------------------------------------------------------------------------------- what commands do


def test_a_put_is_read_back_by_commands_and_by_reads(kv: Applier) -> None:
    assert kv.one(put("k", "v")) == Result(Outcome.OK)
    assert kv.one(get("k")) == Result(Outcome.OK, "v")
    assert kv.store.get("k") == Result(Outcome.OK, "v")


def test_a_missing_key_is_not_found(kv: Applier) -> None:
    assert kv.one(get("k")) == kv.store.get("k") == kv.one(delete("k")) == Result(Outcome.NOT_FOUND)


def test_a_deleted_key_is_gone(kv: Applier) -> None:
    assert kv.do(put("k", "v"), delete("k"), get("k")) == [
        Result(Outcome.OK),
        Result(Outcome.OK),
        Result(Outcome.NOT_FOUND),
    ]
    assert kv.store.size() == 0


def test_the_empty_value_is_a_value(kv: Applier) -> None:
    kv.do(put("k", ""))
    assert kv.store.get("k") == Result(Outcome.OK, "")
    assert kv.outcome(cas("k", None, "x")) == Outcome.MISMATCH
    assert kv.outcome(delete("k")) == Outcome.OK


def test_compare_and_set_changes_only_what_it_expects(kv: Applier) -> None:
    assert kv.one(cas("k", "a", "b")) == Result(Outcome.MISMATCH, None)
    assert kv.one(cas("k", None, "a")) == Result(Outcome.OK)
    assert kv.one(cas("k", None, "b")) == Result(Outcome.MISMATCH, "a")
    assert kv.one(cas("k", "x", "b")) == Result(Outcome.MISMATCH, "a")
    assert kv.store.get("k").value == "a"
    assert kv.one(cas("k", "a", "b")) == Result(Outcome.OK)
    assert kv.store.get("k").value == "b"


def test_increment_counts_a_missing_key_as_zero_and_answers_the_sum(kv: Applier) -> None:
    assert kv.one(incr("n", 5)) == Result(Outcome.OK, "5")
    assert kv.one(incr("n", -7)) == Result(Outcome.OK, "-2")
    assert kv.store.get("n").value == "-2"


@pytest.mark.parametrize("held", ["0", "7", "-1", str(I64_MAX), str(I64_MIN)])
def test_increment_takes_every_number_that_int_would_write(kv: Applier, held: str) -> None:
    kv.do(put("n", held))
    assert kv.one(incr("n", 0)) == Result(Outcome.OK, held)


@pytest.mark.parametrize(
    "held",
    [
        "",
        "x",
        " 1",
        "1 ",
        "1\n",
        "1_0",
        "+1",
        "-0",
        "-",
        "007",
        "1.0",
        "1e3",
        "٣",
        "²",
        "0x1",
        "1\0",
        "1٣",
        "9" * 5000,
    ],
)
def test_increment_takes_nothing_that_int_would_not_write(kv: Applier, held: str) -> None:
    kv.do(put("n", held))
    assert kv.one(incr("n")) == Result(Outcome.NOT_A_NUMBER)
    assert kv.store.get("n").value == held


@pytest.mark.parametrize(
    ("held", "delta"),
    [(I64_MAX, 1), (I64_MIN, -1), (I64_MAX + 1, -1), (I64_MIN - 1, 1), (1, I64_MAX), (-2, I64_MIN + 1)],
)
def test_neither_the_number_nor_the_sum_may_leave_64_bits(kv: Applier, held: int, delta: int) -> None:
    kv.do(put("n", str(held)))
    assert kv.one(incr("n", delta)) == Result(Outcome.NOT_A_NUMBER)
    assert kv.store.get("n").value == str(held)


def test_the_commands_of_an_entry_see_one_another_in_order(kv: Applier) -> None:
    results = kv.do(put("n", "1"), incr("n"), get("n"), delete("n"), incr("n"))
    assert [result.value for result in results] == [None, "2", "2", None, "1"]


@untimed
@given(st.text(min_size=1, max_size=50), st.text(max_size=50))
def test_any_text_comes_back_as_it_was(key: str, value: str) -> None:
    kv = Applier()
    assert kv.outcome(put(key, value)) == Outcome.OK
    assert kv.store.get(key) == Result(Outcome.OK, value)
    assert kv.store.scan("", "", 10, 1000) == ([Item(key, value)], False)


# -------------------------------------------------------------------------------- commands that make no sense

SESSION = Session(1, 1, 0)

NONSENSE = [
    Command(),
    Command(0, "k", "v"),
    Command(9, "k", "v"),
    Command(-1, "k", "v"),
    Command(Verb.PUT, None, "v"),
    Command(Verb.PUT, "", "v"),
    Command(Verb.PUT, "k"),
    Command(Verb.GET),
    Command(Verb.GET, ""),
    Command(Verb.DELETE, ""),
    Command(Verb.COMPARE_AND_SET, "k", None, "v"),
    Command(Verb.INCREMENT, "k"),
    Command(Verb.INCREMENT, "", delta=1),
    put("k" * (MAX_KEY_BYTES + 1), "v"),
    put("\u20ac" * (MAX_KEY_BYTES // 3 + 1), "v"),
    put("k", "v" * (MAX_VALUE_BYTES + 1)),
    put("k", "\U0001f600" * (MAX_VALUE_BYTES // 4) + "v"),
    cas("k", "v" * (MAX_VALUE_BYTES + 1), "v"),
    put("k", "v", RequestId(None, 1, 1)),
    put("k", "v", RequestId(Session(None, 1, 0), 1, 1)),
    put("k", "v", RequestId(Session(1, None, 0), 1, 1)),
    put("k", "v", RequestId(Session(1, 1, None), 1, 1)),
    put("k", "v", RequestId(SESSION, None, 1)),
    put("k", "v", RequestId(SESSION, 1, None)),
    put("k", "v", RequestId(SESSION, 0, 0)),
    put("k", "v", RequestId(SESSION, -1, -1)),
    put("k", "v", RequestId(SESSION, 1, 0)),
    put("k", "v", RequestId(SESSION, 1, 2)),
    put("k", "v", RequestId(SESSION, MAX_RESULTS + 1, 1)),
]


@pytest.mark.parametrize("command", NONSENSE, ids=range(len(NONSENSE)))
def test_a_command_without_sense_has_a_reason_and_changes_nothing(kv: Applier, command: Command) -> None:
    reason = invalid(command)
    assert reason is not None
    assert "\n" not in reason
    assert kv.open_session() == SESSION
    before = kv.store.state_digest()
    assert kv.do(command, put("other", "1")) == [Result(Outcome.INVALID), Result(Outcome.OK)]
    kv.do(delete("other"))
    assert kv.store.state_digest() == before


@pytest.mark.parametrize(
    "command",
    [
        OPEN,
        get("k" * MAX_KEY_BYTES),
        get("\U0001f600" * (MAX_KEY_BYTES // 4)),
        get("\0"),
        put("k", "v" * MAX_VALUE_BYTES),
        put("k", "\u20ac" * (MAX_VALUE_BYTES // 3)),
        cas("k", "v" * MAX_VALUE_BYTES, ""),
        cas("k", None, "v"),
        incr("k", 0),
        put("k", "v", RequestId(SESSION, 1, 1)),
        put("k", "v", RequestId(SESSION, MAX_RESULTS, 1)),
        put("k", "v", RequestId(SESSION, I64_MAX, I64_MAX)),
    ],
)
def test_a_command_at_the_limits_makes_sense(command: Command) -> None:
    assert invalid(command) is None


def test_a_verb_that_passes_validation_and_has_no_code_is_invalid_and_changes_nothing(kv: Applier) -> None:
    kv.one(Command(Verb.UPGRADE, delta=validation.FORMAT))
    unknown = Command(validation._LAST_VERB + 1, "k", "v", None, validation.FORMAT + 1)
    with mock.patch.object(store_module, "invalid", lambda command: None):
        assert kv.outcome(unknown) == Outcome.INVALID
    assert kv.store.format == validation.FORMAT


def test_the_reason_names_the_number_that_is_wrong() -> None:
    assert invalid(put("k", "v", RequestId(SESSION, 0, 0))) == "no sequence, or one below 1"
    assert "first_incomplete" in str(invalid(put("k", "v", RequestId(SESSION, 1, 0))))


def test_no_user_can_touch_the_reserved_key() -> None:
    for command in put(RESERVED_KEY, "v"), get(RESERVED_KEY), delete(RESERVED_KEY), incr(RESERVED_KEY):
        assert invalid(command) is not None


# ---------------------------------------------------------------------------------------------------- entries

requests = st.builds(
    RequestId,
    st.builds(Session, st.integers(0, I64_MAX), st.integers(1, 255), st.integers(0, 9999)),
    st.integers(I64_MIN, I64_MAX),
    st.integers(I64_MIN, I64_MAX),
)
texts = st.none() | st.text(max_size=20)
commands = st.builds(
    Command,
    st.integers(-1, Verb.OPEN_SESSION) | st.just(77),  # test_transactions.py has the others
    texts,
    texts,
    texts,
    st.none() | st.integers(I64_MIN, I64_MAX),
    st.none() | requests,
    st.none(),
)


@untimed
@given(st.lists(commands, max_size=20))
def test_a_payload_holds_exactly_its_commands(batch: list[Command]) -> None:
    assert decode(Batch, encode_batch(batch)).commands == batch
    assert decode(Batch, encode_batch(tuple(batch))).commands == batch


@untimed
@given(st.lists(st.lists(commands, max_size=5), max_size=10))
def test_whatever_can_be_decoded_is_applied_with_a_result_each_and_alike_everywhere(
    entries: list[list[Command]],
) -> None:
    first, second = Applier(), Applier()
    for batch in entries:
        results = first.do(*batch)
        assert results == second.do(*batch)
        assert len(results) == len(batch)
        for command, result in zip(batch, results, strict=True):
            assert (result.outcome == Outcome.INVALID) == (invalid(command) is not None)
    assert first.store.state_digest() == second.store.state_digest()


@pytest.mark.parametrize("payload", [b"", b"\x00", b"\xff" * 20, encode_batch([OPEN])[:-1]])
def test_a_payload_that_is_no_batch_is_malformed_and_changes_nothing(kv: Applier, payload: bytes) -> None:
    kv.do(put("k", "v"))
    before = kv.store.save_state()
    with pytest.raises(Malformed):
        kv.store.apply(9, 1, payload)
    assert kv.store.save_state() == before


def test_the_position_is_that_of_the_last_entry(kv: Applier) -> None:
    assert kv.store.position == (0, 0)
    kv.store.apply(3, 2, encode_batch([]))
    assert kv.store.position == (3, 2)
    kv.store.apply(3, 4, encode_batch([OPEN]))
    assert kv.store.position == (3, 4)


@pytest.mark.parametrize("position", [(3, 2), (3, 1), (2, 5), (0, 0)])
def test_an_entry_is_never_applied_again_or_out_of_order(kv: Applier, position: tuple[int, int]) -> None:
    kv.store.apply(3, 2, encode_batch([]))
    with pytest.raises(AssertionError, match="applied after"):
        kv.store.apply(*position, encode_batch([]))


# --------------------------------------------------------------------------------------------------- sessions


def test_a_session_is_named_by_its_place_in_the_order(kv: Applier) -> None:
    results = kv.store.apply(7, 3, encode_batch([OPEN, get("k"), OPEN]))
    assert [result.session for result in results] == [Session(7, 3, 0), None, Session(7, 3, 2)]


def test_a_repeated_command_gets_its_first_result_and_is_not_applied_again(kv: Applier) -> None:
    session = kv.open_session()
    first = kv.one(incr("n", 1, RequestId(session, 1, 1)))
    kv.do(put("n", "100"))
    assert kv.one(incr("n", 1, RequestId(session, 1, 1))) == first == Result(Outcome.OK, "1")
    assert kv.store.get("n").value == "100"


def test_a_negative_result_is_kept_like_any_other(kv: Applier) -> None:
    request = RequestId(kv.open_session(), 1, 1)
    cas_once = Command(Verb.COMPARE_AND_SET, "k", "new", "old", request=request)
    assert kv.one(cas_once) == Result(Outcome.MISMATCH)
    kv.do(put("k", "old"))
    assert kv.one(cas_once) == Result(Outcome.MISMATCH)
    assert kv.store.get("k").value == "old"


def test_a_command_without_a_session_is_applied_each_time(kv: Applier) -> None:
    assert [kv.one(incr("n")).value for _ in range(3)] == ["1", "2", "3"]


def test_a_later_sequence_that_comes_first_does_not_swallow_the_earlier_one(kv: Applier) -> None:
    session = kv.open_session()  # the trace N16: two attempts by way of two nodes
    assert kv.one(incr("n", 1, RequestId(session, 6, 5))).value == "1"
    assert kv.one(incr("n", 1, RequestId(session, 5, 5))).value == "2"


def test_a_sequence_below_the_first_incomplete_one_is_forgotten_not_applied(kv: Applier) -> None:
    session = kv.open_session()
    kv.do(incr("n", 1, RequestId(session, 1, 1)), incr("n", 1, RequestId(session, 3, 3)))
    for sequence in 1, 2:  # one that was applied, one that never was: nobody can tell any more
        assert kv.one(incr("n", 1, RequestId(session, sequence, sequence))) == Result(Outcome.FORGOTTEN)
    assert kv.store.get("n").value == "2"


def test_the_first_incomplete_sequence_never_falls(kv: Applier) -> None:
    session = kv.open_session()
    kv.do(incr("n", 1, RequestId(session, 5, 5)), incr("n", 1, RequestId(session, 6, 1)))
    assert kv.outcome(incr("n", 1, RequestId(session, 4, 1))) == Outcome.FORGOTTEN
    assert kv.outcome(incr("n", 1, RequestId(session, 5, 1))) == Outcome.OK
    assert kv.store.get("n").value == "2"


def test_an_unknown_session_is_expired_never_new(kv: Applier) -> None:
    for _ in range(2):
        assert kv.one(incr("n", 1, RequestId(Session(99, 1, 0), 1, 1))) == Result(Outcome.EXPIRED)
    assert kv.store.size() == 0


@pytest.mark.parametrize("other", [Session(2, 1, 0), Session(1, 2, 0), Session(1, 1, 1)])
def test_two_sessions_do_not_share_sequences(kv: Applier, other: Session) -> None:
    assert kv.open_session() == SESSION
    kv.store.apply(1, 2, encode_batch([OPEN]))
    kv.timestamp = 1
    kv.do(OPEN)
    kv.do(put("k", "v", RequestId(SESSION, 1, 1)))
    known = other != Session(1, 1, 1)
    expected = Result(Outcome.OK, "1") if known else Result(Outcome.EXPIRED)
    assert kv.one(incr("n", 1, RequestId(other, 1, 1))) == expected


def test_the_oldest_unused_session_makes_room_for_a_new_one() -> None:
    kv = Applier()
    with mock.patch.object(store_module, "MAX_SESSIONS", 3):
        a, b, c = (kv.open_session() for _ in range(3))
        kv.do(put("k", "v", RequestId(b, 1, 1)))
        kv.do(put("k", "v", RequestId(a, 1, 1)))
        d = kv.open_session()  # c is the one whose last command lies furthest back
        assert kv.outcome(put("k", "v", RequestId(c, 1, 1))) == Outcome.EXPIRED
        kv.do(put("k", "v", RequestId(b, 1, 1)))  # a repeat counts as use
        kv.open_session()
        assert kv.outcome(put("k", "v", RequestId(a, 2, 1))) == Outcome.EXPIRED
        for session in b, d:
            assert kv.outcome(put("k", "v", RequestId(session, 2, 1))) == Outcome.OK


def test_the_table_holds_65536_sessions(kv: Applier) -> None:
    assert MAX_SESSIONS == 65_536
    first, second = (result.session for result in kv.do(OPEN, OPEN))
    kv.do(*[OPEN] * (MAX_SESSIONS - 2))
    assert kv.outcome(put("k", "v", RequestId(first, 1, 1))) == Outcome.OK
    kv.do(OPEN)
    assert kv.outcome(put("k", "v", RequestId(first, 2, 1))) == Outcome.OK
    assert kv.outcome(put("k", "v", RequestId(second, 1, 1))) == Outcome.EXPIRED


def test_a_session_keeps_at_most_1024_results(kv: Applier) -> None:
    assert MAX_RESULTS == 1024
    session = kv.open_session()
    for sequence in range(1, 3001):
        kv.do(incr("n", 1, RequestId(session, sequence, max(1, sequence - MAX_RESULTS + 1))))
    assert kv.store.get("n").value == "3000"
    (saved,) = kv.store.save_state()[RESERVED_KEY]["sessions"]
    assert [sequence for sequence, *_ in saved[4]] == list(range(3001 - MAX_RESULTS, 3001))


def test_results_that_the_client_has_are_dropped_at_once_however_far_it_leaps(kv: Applier) -> None:
    session = kv.open_session()
    kv.do(*(incr("n", 1, RequestId(session, sequence, 1)) for sequence in range(1, MAX_RESULTS + 1)))
    kv.do(incr("n", 1, RequestId(session, I64_MAX, I64_MAX)))
    (saved,) = kv.store.save_state()[RESERVED_KEY]["sessions"]
    assert saved[3:] == [I64_MAX, [[I64_MAX, Outcome.OK, str(MAX_RESULTS + 1), None]]]


@dataclass
class Reference:
    """The rules as plainly as possible: every result ever given is kept, and looked at only if allowed."""

    max_sessions: int
    max_results: int
    now: int = 0
    counter: int = 0
    results: dict[tuple[int, int], Result] = field(default_factory=dict)
    floor: dict[int, int] = field(default_factory=dict)
    used: dict[int, int] = field(default_factory=dict)
    alive: set[int] = field(default_factory=set)

    def open(self, name: int) -> None:
        self.now += 1
        self.alive.add(name)
        self.used[name] = self.now
        self.floor[name] = 1
        if len(self.alive) > self.max_sessions:
            self.alive.remove(min(self.alive, key=self.used.__getitem__))

    def increment(self, name: int, sequence: int, first_incomplete: int) -> Result:
        self.now += 1
        if not 1 <= first_incomplete <= sequence < first_incomplete + self.max_results:
            return Result(Outcome.INVALID)
        if name not in self.alive:
            return Result(Outcome.EXPIRED)
        self.used[name] = self.now
        self.floor[name] = max(self.floor[name], first_incomplete)
        if sequence < self.floor[name]:
            return Result(Outcome.FORGOTTEN)
        if (name, sequence) not in self.results:
            self.counter += 1
            self.results[name, sequence] = Result(Outcome.OK, str(self.counter))
        return self.results[name, sequence]


small = st.integers(0, 7)
steps = st.lists(
    st.just("open") | st.just("reload") | st.tuples(st.integers(0, 5), small, small), min_size=1, max_size=60
)


@untimed
@given(steps)
def test_whatever_is_repeated_reordered_or_evicted_is_applied_once_as_the_reference_says(
    script: list[str | tuple[int, int, int]],
) -> None:
    reference = Reference(max_sessions=2, max_results=3)
    kv = Applier()
    opened: list[Session] = []
    with (
        mock.patch.object(store_module, "MAX_SESSIONS", 2),
        mock.patch.object(store_module, "MAX_RESULTS", 3),
        mock.patch.object(validation, "MAX_RESULTS", 3),
    ):
        for step in script:
            if step == "open":
                reference.open(len(opened))
                opened.append(kv.open_session())
            elif step == "reload":
                saved = json.loads(json.dumps(kv.store.save_state()))
                kv.store = Store("never-written.json")
                kv.store.load_state(saved)
            else:
                assert not isinstance(step, str)
                name, sequence, first = step
                session = opened[name] if name < len(opened) else Session(1 << 40, 1, name)
                result = kv.one(incr("n", 1, RequestId(session, sequence, first)))
                assert result == reference.increment(name, sequence, first)
                assert (kv.store.get("n").value or "0") == str(reference.counter)
            saved_sessions = kv.store.save_state()[RESERVED_KEY]["sessions"]
            assert len(saved_sessions) <= 2
            assert all(len(results) <= 3 for *_, results in saved_sessions)


@untimed
@given(st.lists(st.lists(st.just("open") | st.tuples(st.integers(0, 5), small), max_size=12), max_size=8))
def test_commands_that_share_a_session_object_are_applied_as_if_each_had_its_own(
    script: list[list[str | tuple[int, int]]],
) -> None:
    """The compiled codec gives the commands of a batch one object for one session."""
    sessions: dict[Session, Session] = {}

    def sharing(kind: Any, data: bytes) -> Any:
        commands = []
        for command in decode(kind, data).commands:
            if command.request is not None:
                session = sessions.setdefault(command.request.session, command.request.session)
                command = command._replace(request=command.request._replace(session=session))
            commands.append(command)
        return kind(commands)

    apart, shared = Applier(), Applier()
    with mock.patch.object(store_module, "MAX_SESSIONS", 2):
        for step in script:
            commands = []
            for what in step:
                if isinstance(what, str):
                    commands.append(OPEN)
                else:
                    opened, sequence = what
                    session = Session(opened // 2 + 1, 1, opened % 2)  # opened by an early entry, perhaps
                    commands.append(incr("n", 1, RequestId(session, sequence + 1, 1)))
            results = apart.do(*commands)
            with mock.patch.object(store_module, "decode", sharing):
                assert shared.do(*commands) == results
            assert shared.store.state_digest() == apart.store.state_digest()


# ------------------------------------------------------------------------------------------------------ scans


def test_a_scan_is_in_the_order_of_code_points_and_pages_on(kv: Applier) -> None:
    keys = [
        "a",
        "a\0",
        "aa",
        "b",
        "\u00e9",
        "\uffff",
        "\U0001f600",
    ]  # UTF-16 would put the last before \uffff
    kv.do(*(put(key, key + "!") for key in reversed(keys)))
    seen: list[str] = []
    more = True
    while more:
        items, more = kv.store.scan("", seen[-1] if seen else "", 2, 1000)
        assert all(item.value == item.key + "!" for item in items)
        seen += [item.key for item in items]
    assert seen == keys


def test_a_scan_keeps_to_its_prefix_and_starts_after_a_key(kv: Applier) -> None:
    kv.do(*(put(key, "v") for key in ("a", "ab", "aba", "abb", "ac", "b")))
    assert [item.key for item in kv.store.scan("ab", "", 10, 1000)[0]] == ["ab", "aba", "abb"]
    assert [item.key for item in kv.store.scan("ab", "ab", 10, 1000)[0]] == ["aba", "abb"]
    assert kv.store.scan("ab", "abb", 10, 1000) == ([], False)
    assert [item.key for item in kv.store.scan("", "abb", 10, 1000)[0]] == ["ac", "b"]


@pytest.mark.parametrize(("limit", "more"), [(1, True), (2, True), (3, False), (4, False)])
def test_a_scan_says_whether_more_items_follow_the_limit(kv: Applier, limit: int, more: bool) -> None:
    kv.do(put("a", "1"), put("b", "2"), put("c", "3"))
    items, follows = kv.store.scan("", "", limit, 1000)
    assert (len(items), follows) == (min(limit, 3), more)


def test_a_page_never_takes_more_bytes_than_allowed_but_always_gets_on(kv: Applier) -> None:
    kv.do(put("a", "\u20ac"), put("b", "2"), put("c", "3"))
    first = len(encode(Item("a", "\u20ac")))
    assert first == 1 + 3 + ITEM_OVERHEAD
    for max_bytes, count in [(0, 1), (first, 1), (2 * first - 3, 1), (2 * first - 2, 2), (1000, 3)]:
        items, more = kv.store.scan("", "", 10, max_bytes)
        assert (len(items), more) == (count, count < 3)


# ---------------------------------------------------------------------------------------------------- digests


def test_the_digest_is_the_documented_hash(kv: Applier) -> None:
    assert kv.store.digest() == hashlib.sha256().hexdigest()
    kv.do(put("\U0001f600", "2"), put("\uffff", ""), put("b", "1\0"))
    framed = b"".join(
        len(text).to_bytes(8, "big") + text
        for text in (b"b", b"1\0", "\uffff".encode(), b"", "\U0001f600".encode(), b"2")
    )
    assert kv.store.digest() == hashlib.sha256(framed).hexdigest()


@untimed
@given(
    st.dictionaries(st.text("ab\0", min_size=1, max_size=3), st.text("ab\0", max_size=3), max_size=4),
    st.dictionaries(st.text("ab\0", min_size=1, max_size=3), st.text("ab\0", max_size=3), max_size=4),
)
def test_digests_are_equal_exactly_if_the_contents_are(one: dict[str, str], two: dict[str, str]) -> None:
    first, second = Applier(), Applier()
    first.do(*(put(*item) for item in one.items()))
    second.do(*(put(*item) for item in reversed(two.items())))
    assert (first.store.digest() == second.store.digest()) == (one == two)


def test_the_state_digest_sees_sessions_their_results_and_their_order(kv: Applier) -> None:
    seen = {kv.store.state_digest()}
    content = kv.store.digest()
    a = kv.open_session()
    seen.add(kv.store.state_digest())
    kv.open_session()
    seen.add(kv.store.state_digest())
    missing = Command(Verb.DELETE, "k", request=RequestId(a, 1, 1))
    kv.do(missing)
    seen.add(kv.store.state_digest())
    kv.do(Command(Verb.DELETE, "k", request=RequestId(a, 2, 2)))
    seen.add(kv.store.state_digest())
    assert len(seen) == 5
    assert kv.store.digest() == content
    before = kv.store.state_digest()
    kv.do(put("k", "v"))
    assert kv.store.state_digest() != before


def test_the_state_digest_depends_on_which_session_was_used_last() -> None:
    digests = []
    for order in (0, 1), (1, 0):
        kv = Applier()
        opened = [kv.open_session(), kv.open_session()]
        for i in order:
            kv.do(Command(Verb.DELETE, "k", request=RequestId(opened[i], 1, 1)))
        digests.append(kv.store.state_digest())
    assert digests[0] != digests[1]


# ----------------------------------------------------------------------------------------- saving and loading


def filled() -> tuple[Applier, Session]:
    kv = Applier()
    session = kv.open_session()
    kv.do(put("k", "v\0\U0001f600"), put("\0", ""), incr("n", 1, RequestId(session, 1, 1)))
    kv.do(Command(Verb.OPEN_SESSION, request=RequestId(session, 2, 1)), cas("k", None, "x"))
    return kv, session


def test_a_saved_state_goes_through_pickledbs_file_and_comes_back_whole(tmp_path: Path) -> None:
    kv, session = filled()
    file = str(tmp_path / "kv.json")
    database = PickleDB(file)
    database.db = kv.store.save_state()
    assert database.save()
    loaded = PickleDB(file)
    assert loaded.load()
    assert {key: value for key, value in loaded.db.items() if key != RESERVED_KEY} == {
        "k": "v\0\U0001f600",
        "\0": "",
        "n": "1",
    }

    copy = Applier()
    copy.do(put("gone", "1"), OPEN)
    copy.timestamp = kv.timestamp
    copy.store.load_state(loaded.db)

    assert copy.store.position == kv.store.position == (3, 1)
    assert copy.store.size() == 3
    assert copy.store.state_digest() == kv.store.state_digest()
    assert copy.store.database.db == kv.store.database.db
    for repeat in (
        incr("n", 1, RequestId(session, 1, 1)),
        Command(Verb.OPEN_SESSION, request=RequestId(session, 2, 1)),
    ):
        assert copy.one(repeat) == kv.one(repeat)
    assert copy.one(repeat).session == Session(3, 1, 0)
    assert copy.store.state_digest() == kv.store.state_digest()


def test_a_saved_state_is_a_copy_that_later_entries_leave_alone() -> None:
    kv, session = filled()
    saved = kv.store.save_state()
    before = json.dumps(saved)
    kv.do(put("k", "changed"), incr("n", 1, RequestId(session, 3, 3)))
    assert json.dumps(saved) == before
    restored = Store("never-written.json")
    restored.load_state(saved)
    restored.apply(100, 1, encode_batch([put("k", "changed again")]))
    assert json.dumps(saved) == before


def test_the_bookkeeping_is_not_part_of_what_users_see() -> None:
    kv, _ = filled()
    before = kv.store.digest(), kv.store.size()
    saved = kv.store.save_state()
    restored = Store("never-written.json")
    restored.load_state(saved)
    for store in kv.store, restored:
        assert (store.digest(), store.size()) == before
        assert store.get(RESERVED_KEY) == Result(Outcome.NOT_FOUND)
        assert [item.key for item in store.scan("", "", 10, 1000)[0]] == ["\0", "k", "n"]


@pytest.mark.parametrize(
    "state",
    [
        {},  # pickledb's answer to a lost or empty file
        {"k": "v"},
        {RESERVED_KEY: "v"},
        {RESERVED_KEY: None},
        {RESERVED_KEY: {"position": [1, 1]}},
        {RESERVED_KEY: {"position": [1], "sessions": []}},
        {RESERVED_KEY: {"position": [1, 1], "sessions": [[1, 1, 0, 1]]}},
        {RESERVED_KEY: {"position": [1, 1], "sessions": [[1, 1, 0, 1, [[1, 0]]]]}},
    ],
)
def test_a_state_without_whole_bookkeeping_is_refused_and_changes_nothing(state: dict[str, object]) -> None:
    kv, _ = filled()
    before = kv.store.save_state()
    with pytest.raises(Malformed):
        kv.store.load_state(state)
    assert kv.store.save_state() == before


def test_applying_works_inside_an_event_loop_and_writes_no_file(tmp_path: Path) -> None:
    async def scenario() -> Result:
        store = Store(str(tmp_path / "kv.json"))
        store.apply(1, 1, encode_batch([put("k", "v")]))
        return store.get("k")

    assert asyncio.run(scenario()).value == "v"
    assert list(tmp_path.iterdir()) == []
