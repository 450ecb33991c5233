"""The queue of changes: what it says is what was applied, in that order, without a gap or a repeat."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paxoskv.state.changes import BYTES, LAST, SCAN, At, Changes, at, place
from paxoskv.state.store import Store, encode_batch
from paxoskv.wire.codec import Compacted
from paxoskv.wire.structs import Change, Command, Place, RequestId, Session, Verb

ENOUGH = 1 << 20  # bytes
KEYS = ("a", "ab", "b", "ba")
Event = tuple[At, str, str | None]


def read(changes: Changes, prefix: str, after: At, limit: int, max_bytes: int = ENOUGH) -> list[Event]:
    """Page by page, all changes from there on."""
    found: list[Event] = []
    while after < changes.end:
        page, upto = changes.changes(prefix, after, limit, max_bytes)
        assert len(page) <= limit and upto > after
        found += [(at(change.place), change.key, change.value) for change in page]
        after = upto
    return found


entries = st.lists(st.lists(st.tuples(st.sampled_from(KEYS), st.none() | st.text(max_size=3)), max_size=4))


def add(changes: Changes, timestamp: int, owner: int, entry: Iterable[tuple[str, str | None]]) -> None:
    changes.add(timestamp, owner, [text for change in entry for text in change])


def characters_of(events: list[Event]) -> int:
    return sum(len(key) + len(value or "") for _, key, value in events)


@given(entries, st.sampled_from(("", "a", "ab", "c")), st.integers(1, 5), st.integers(1, 200), st.data())
def test_pages_from_any_place_on_hold_each_later_change_once_and_in_order(
    applied: list[list[tuple[str, str | None]]], prefix: str, limit: int, max_bytes: int, data: st.DataObject
) -> None:
    changes = Changes()
    told: list[Event] = []
    places = [(0, 0, LAST)]
    for number, entry in enumerate(applied, 1):
        add(changes, number, 1 + number % 3, entry)
        for index, (key, value) in enumerate(entry):
            told.append(((number, 1 + number % 3, index), key, value))
        places += [(number, 1 + number % 3, index) for index in (*range(len(entry)), LAST)]
    after = data.draw(st.sampled_from(places))
    wanted = [event for event in told if event[0] > after and event[1].startswith(prefix)]
    assert read(changes, prefix, after, limit, max_bytes) == wanted


@given(entries, st.integers(1, 6), st.integers(1, 100))
def test_what_was_dropped_is_refused_and_what_is_kept_has_no_gap(
    applied: list[list[tuple[str, str | None]]], most: int, room: int
) -> None:
    changes = Changes(most, room)
    told: list[Event] = []
    for number, entry in enumerate(applied, 1):
        add(changes, number, 1, entry)
        earlier = [event for event in told if event[0] > changes.floor]
        assert not entry or len(earlier) < most
        told += [((number, 1, index), key, value) for index, (key, value) in enumerate(entry)]
        left = [event for event in told if event[0] > changes.floor]
        assert changes.count == len(left) and characters_of(left) <= room
        assert read(changes, "", changes.floor, 3) == left
    for event in told[: max(len(told) - changes.count - 1, 0)]:  # the last that was dropped is the floor
        with pytest.raises(Compacted) as refused:
            changes.changes("", event[0], 1, ENOUGH)
        assert at(refused.value.oldest) == changes.floor


def test_no_more_is_dropped_than_must_be() -> None:
    changes = Changes(most=3)
    for number in range(1, 6):
        add(changes, number, 1, [("k", str(number))])
    assert read(changes, "", changes.floor, 3) == [((number, 1, 0), "k", str(number)) for number in (3, 4, 5)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9])
def test_a_scan_ends_after_a_piece_and_goes_on_behind_it(size: int) -> None:
    changes = Changes()
    changes.scan = 4
    for number in range(size):
        add(changes, number + 1, 1, [("needle" if number == size - 1 else "hay", "x")])
    looks, after = 0, (0, 0, LAST)
    while True:
        looks += 1
        found, after = changes.changes("needle", after, 10, ENOUGH)
        if found:
            break
    assert looks == (size + 3) // 4 and found[0].place == Place(size, 1, 0)


def test_a_piece_of_large_changes_has_few() -> None:
    changes = Changes()
    for number in range(1, 9):
        add(changes, number, 1, [("k", 3 * SCAN * BYTES // 4 * "x")])
    assert [len(changes.after((number, 1, LAST))[0]) for number in (0, 5, 6, 7)] == [2, 2, 2, 1]
    assert [changes.after((number, 1, LAST))[1] for number in (0, 5, 6, 7)] == [False, False, True, True]
    assert len(read(changes, "k", (0, 0, LAST), 10, 1 << 24)) == 8


def test_a_place_ahead_of_what_was_applied_is_kept() -> None:
    changes = Changes()
    changes.add(5, 1, [])
    assert changes.changes("", (9, 2, 0), 10, ENOUGH) == ([], (9, 2, 0))
    assert at(place((5, 1, LAST))) == (5, 1, LAST) and place((5, 1, LAST)) == Place(5, 1)


def test_only_what_changes_a_key_is_a_change_and_an_entry_numbers_them() -> None:
    store = Store("never-written.json")
    commands = [
        Command(Verb.PUT, "k", "1"),
        Command(Verb.GET, "k"),
        Command(Verb.COMPARE_AND_SET, "k", "3", "2"),
        Command(Verb.INCREMENT, "k", None, None, 4),
        Command(Verb.DELETE, "none"),
        Command(Verb.DELETE, "k"),
        Command(Verb.COMPARE_AND_SET, "k", "new"),
    ]
    store.apply(7, 2, encode_batch(commands))
    assert store.changes.changes("", (0, 0, LAST), 10, ENOUGH) == (
        [
            Change("k", Place(7, 2, 0), "1"),
            Change("k", Place(7, 2, 1), "5"),
            Change("k", Place(7, 2, 2), None),
            Change("k", Place(7, 2, 3), "new"),
        ],
        (7, 2, LAST),
    )


def test_of_an_entry_of_puts_those_are_changes_that_were_applied() -> None:
    store = Store("never-written.json")
    store.apply(1, 1, encode_batch([Command(Verb.OPEN_SESSION)]))
    first = Command(Verb.PUT, "k", "1", request=RequestId(Session(1, 1, 0), 1, 1))
    store.apply(2, 1, encode_batch([first, Command(Verb.PUT, "k", "2")]))
    store.apply(3, 1, encode_batch([first, Command(Verb.PUT, "", "no key"), Command(Verb.PUT, "k", "3")]))
    store.apply(4, 1, encode_batch([first]))
    store.apply(5, 1, encode_batch([Command(Verb.PUT, "l", ""), Command(Verb.PUT, "k", "4")]))
    assert read(store.changes, "k", (0, 0, LAST), 10) == [
        ((2, 1, 0), "k", "1"),
        ((2, 1, 1), "k", "2"),
        ((3, 1, 0), "k", "3"),
        ((5, 1, 1), "k", "4"),
    ]


def test_a_store_that_takes_over_a_state_has_no_changes_before_it() -> None:
    store, other = Store("never-written.json"), Store("never-written.json")
    store.apply(3, 1, encode_batch([Command(Verb.PUT, "k", "1")]))
    other.apply(3, 1, encode_batch([Command(Verb.PUT, "k", "1")]))
    other.apply(4, 1, encode_batch([Command(Verb.PUT, "k", "2")]))
    store.load_state(other.save_state())
    with pytest.raises(Compacted, match=r"4\.1") as refused:
        store.changes.changes("", (3, 1, LAST), 10, ENOUGH)
    assert refused.value.oldest == Place(4, 1)
    store.apply(5, 2, encode_batch([Command(Verb.PUT, "k", "3")]))
    assert read(store.changes, "", (4, 1, LAST), 10) == [((5, 2, 0), "k", "3")]
