"""Pages of ranges of keys: those that a plain list of all keys would give."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paxoskv.state.store import Store, encode_batch
from paxoskv.wire.structs import Command, Item, Range, Verb
from tests.state.test_store import untimed

LETTERS = "ab\ud7ff\ue000\U0010ffff"  # with the last characters before and after the surrogates, and of all
names = st.text(LETTERS, max_size=3)
bounds, flags = st.none() | names, st.none() | st.booleans()
wanted = st.builds(Range, bounds, bounds, bounds, bounds, flags, st.none(), flags, st.none())


def filled(keys: set[str]) -> Store:
    store = Store("never-written.json")
    store.apply(1, 1, encode_batch([Command(Verb.PUT, key, f"of {key}") for key in keys if key]))
    return store


def naive(keys: set[str], asked: Range) -> list[str]:
    """The keys of the range, as its description says it."""
    found = [
        key
        for key in sorted(keys)
        if key
        and key.startswith(asked.prefix or "")
        and key >= (asked.start or "")
        and (asked.below is None or key < asked.below)
        and (not asked.after or (key < asked.after if asked.reverse else key > asked.after))
    ]
    return found[::-1] if asked.reverse else found


@untimed
@given(st.sets(names, max_size=20), wanted, st.integers(1, 5))
def test_a_page_has_the_first_keys_of_the_range(keys: set[str], asked: Range, limit: int) -> None:
    store, expected = filled(keys), naive(keys, asked)
    items, more = store.page(asked, limit, 1 << 20)
    assert [item.key for item in items] == expected[:limit]
    assert more == (len(expected) > limit)
    assert all(item.value == ("" if asked.keys_only else f"of {item.key}") for item in items)
    assert store.count(asked) == len(naive(keys, asked._replace(after=None)))


@untimed
@given(st.sets(names, max_size=20), wanted)
def test_pages_that_go_on_after_the_last_key_give_the_whole_range_once(keys: set[str], asked: Range) -> None:
    store, expected, found = filled(keys), naive(keys, asked), list[str]()
    while True:
        items, more = store.page(asked, 2, 1 << 20)
        found += [item.key for item in items]
        if not more:
            break
        asked = asked._replace(after=items[-1].key)
    assert found == expected


@pytest.mark.parametrize("reverse", [False, True])
def test_a_page_ends_where_its_bytes_do_but_has_one_item_at_least(reverse: bool) -> None:
    store = filled({"a", "b"})
    first = Item("b", "of b") if reverse else Item("a", "of a")
    assert store.page(Range(reverse=reverse), 10, 1) == ([first], True)
    assert len(store.page(Range(reverse=reverse, keys_only=True), 10, 40)[0]) == 2  # no values: no bytes
