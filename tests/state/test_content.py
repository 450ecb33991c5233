"""What goes through all keys, in pieces, while they change."""

import random

import pytest

from paxoskv.state.store import Digested, Store, encode_batch
from paxoskv.wire.structs import Command, Verb


class Changing:
    """A store, a plain dict of what it must hold, and changes to both."""

    def __init__(self, seed: int) -> None:
        self.source = random.Random(seed)
        self.store = Store("never-written.json")
        self.held: dict[str, str] = {}
        self.timestamp = 0

    def change(self) -> None:
        """Apply an entry with a few random puts and removals."""
        commands = []
        for _ in range(self.source.randrange(1, 6)):
            key = f"{self.source.randrange(60):02}"
            if self.source.random() < 0.4:
                commands.append(Command(Verb.DELETE, key))
                self.held.pop(key, None)
            else:
                value = str(self.source.randrange(1000))
                commands.append(Command(Verb.PUT, key, value))
                self.held[key] = value
        self.timestamp += 1
        self.store.apply(self.timestamp, 1, encode_batch(commands))

    def digested(self) -> Digested:
        """What a digest of now must be, of a store that has never held anything else."""
        fresh = Store("never-written.json")
        fresh.apply(1, 1, encode_batch([Command(Verb.PUT, *item) for item in self.held.items()]))
        return Digested(self.store.position, self.store.hash, len(self.held), fresh.digest())


@pytest.mark.parametrize("seed", range(40))
def test_a_digest_is_that_of_one_moment_whatever_is_applied_between_its_pieces(seed: int) -> None:
    changing = Changing(seed)
    changing.store._content.piece_keys = keys = 1 + seed % 7
    for _ in range(50):
        changing.change()
    digests, moments, pieces = [], [], []
    for _ in range(2):  # two at a time
        digests.append(changing.store.digest_in_pieces())
        pieces.append(0)
    moments = [set[Digested](), set[Digested]()]
    results: dict[int, Digested] = {}
    while len(results) < 2:
        which = changing.source.randrange(2)
        if which not in results:
            moments[which].add(changing.digested())
            pieces[which] += 1
            try:
                next(digests[which])
            except StopIteration as end:
                results[which] = end.value
        changing.change()
    for which, result in results.items():
        assert pieces[which] > 60 / keys / 2
        assert result in moments[which]
    assert not changing.store._content.digests, "who is done keeps nothing more"


@pytest.mark.parametrize("seed", range(20))
def test_a_scan_sees_all_keys_in_order_though_they_change_while_they_are_put_in_order(seed: int) -> None:
    changing = Changing(seed)
    changing.store._content.piece_keys = 1 + seed % 7
    for _ in range(50):
        changing.change()
    for _ in changing.store.sort():
        changing.change()
    for _ in range(30):
        items, more = changing.store.scan("", "", 1000, 1 << 20)
        assert [(item.key, item.value) for item in items] == sorted(changing.held.items()) and not more
        changing.change()
    assert list(changing.store.sort()) == [], "they stay in order"


def test_a_piece_has_few_keys_and_few_bytes() -> None:
    store = Store("never-written.json")
    store._content.piece_keys = 10
    store.apply(1, 1, encode_batch([Command(Verb.PUT, f"{key:03}", "v") for key in range(100)]))
    assert len(list(store.sort())) == 10
    assert len(list(store.digest_in_pieces())) == 10
    store._content.piece_bytes = 15
    assert len(list(store.digest_in_pieces())) == 25, "four of four bytes each are more than fifteen"


def test_nobody_keeps_keys_in_order_for_a_store_that_nobody_scans() -> None:
    store = Store("never-written.json")
    store.apply(1, 1, encode_batch([Command(Verb.PUT, "k", "v"), Command(Verb.DELETE, "k")]))
    assert store._content.order is None


def test_a_digest_is_of_one_state_though_another_nodes_is_installed_meanwhile() -> None:
    ours, theirs = Store("ours"), Store("theirs")
    for store, value in ((ours, "old"), (theirs, "new")):
        puts = [Command(Verb.PUT, f"key{number}", value) for number in range(3000)]
        store.apply(1 if store is ours else 2, 1, encode_batch(puts))
    pieces = ours.digest_in_pieces()
    next(pieces)
    ours.load_state(theirs.save_state())
    with pytest.raises(StopIteration) as end:
        while True:
            next(pieces)
    assert end.value.value.position == theirs.position
    assert end.value.value.digest == theirs.digest()
