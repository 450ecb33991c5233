"""Watches at one node: who is answered when, with what, and at whose cost. Without sockets and clocks."""

from collections.abc import Callable
from typing import Any

from paxoskv.node.long_work import LongWork
from paxoskv.node.watches import AT_ONCE, MAX_OF_ONE, MAX_WATCHES, PIECE, Watches
from paxoskv.state.changes import BYTES, LAST, at
from paxoskv.state.store import Store, encode_batch
from paxoskv.wire.codec import Compacted, NotDone
from paxoskv.wire.structs import Command, Verb, Watched

WAIT_S = 5.0
BEGINNING = (0, 0, LAST)


class Call:
    """A client's call; it is its own connection."""

    def __init__(self) -> None:
        self.connection = self
        self.open = True


class Node:
    """A store and its watches, without all else that a node has."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: list[Callable[[], None]] = []
        self.answers: list[tuple[Call, Any]] = []
        self.store = Store("never-written.json")
        self.watches = Watches(
            self.store,
            LongWork(self),  # type: ignore[arg-type]
            lambda call, value: self.answers.append((call, value)),  # type: ignore[arg-type]
            lambda: self.now,
        )

    def after(self, _: float, call: Callable[[], None]) -> None:
        """Stand in for Turns.after()."""
        self.due.append(call)

    def rest(self) -> int:
        """Let all pieces of work be done; return how many there were."""
        pieces = 0
        while self.due:
            self.due.pop()()
            pieces += 1
        return pieces

    def watch(
        self, prefix: str = "", after: Any = BEGINNING, limit: int = 10, wait_s: float = WAIT_S
    ) -> Call:
        call = Call()
        self.watches.begin(call, prefix, after, limit, wait_s)  # type: ignore[arg-type]
        self.rest()
        return call

    def put(self, *keys: str) -> None:
        """One entry, and the end of its turn."""
        self.apply(*keys)
        self.watches.look()

    def apply(self, *keys: str) -> None:
        commands = [Command(Verb.PUT, key, "v") for key in keys]
        self.store.apply(self.store.position[0] + 1, 1, encode_batch(commands))

    def told(self, call: Call) -> list[str] | None:
        """The keys that a call was told; None: it was not answered."""
        answers = [value for other, value in self.answers if other is call]
        assert len(answers) <= 1, "a call has one answer"
        return [change.key for change in answers[0].changes] if answers else None


def test_what_has_changed_is_told_at_once_and_what_will_when_it_does() -> None:
    node = Node()
    node.put("a1", "b1")
    assert node.told(node.watch("a")) == ["a1"]
    waiting = node.watch("a", after=node.store.changes.end)
    node.put("b2")
    node.rest()
    assert node.told(waiting) is None
    node.put("b3", "a2", "a3")
    node.rest()
    assert node.told(waiting) == ["a2", "a3"] and node.watches.count == 0


def test_a_chain_of_watches_is_told_each_change_once() -> None:
    node = Node()
    told: list[str] = []
    after: Any = BEGINNING
    for number in range(40):
        call = node.watch("a", after, limit=2, wait_s=0.0 if number % 3 else WAIT_S)
        node.put(*[f"{'ab'[index % 2]}{number}.{index}" for index in range(number % 5)])
        node.rest()
        if node.told(call) is None:
            node.now += WAIT_S
            node.watches.tick()
            node.rest()
        answer = node.answers[-1][1]
        told += [change.key for change in answer.changes]
        after = at(answer.upto)
    while after < node.store.changes.end:
        node.watch("a", after, limit=2)
        told += [change.key for change in node.answers[-1][1].changes]
        after = at(node.answers[-1][1].upto)
    assert told == [f"a{number}.{index}" for number in range(40) for index in range(0, number % 5, 2)]


def test_a_watch_that_nothing_happens_to_learns_how_far_it_has_seen() -> None:
    node = Node()
    waiting = node.watch("a")
    node.put("b")
    node.rest()
    node.now = WAIT_S
    node.watches.tick()
    node.rest()
    assert node.answers == [(waiting, Watched([], node.answers[0][1].upto))]
    assert at(node.answers[0][1].upto) == node.store.changes.end


def test_each_watch_ends_at_its_own_time() -> None:
    node = Node()
    calls = [node.watch("a", wait_s=1 + number / 4) for number in range(8)]
    for number, call in enumerate(calls):
        node.now = 1 + number / 4
        assert len(node.answers) == number, "nobody is answered early"
        node.now += 0.1
        node.watches.tick()
        node.rest()
        assert node.answers[-1][0] is call
    assert node.watches.count == 0 and not node.watches.ends


def test_a_watch_whose_time_ends_before_it_is_served_is_answered_when_it_is() -> None:
    node = Node()
    call = Call()
    node.watches.begin(call, "a", BEGINNING, 10, 0.3)  # type: ignore[arg-type]
    node.now = 1.0
    node.watches.tick()
    node.rest()
    assert node.told(call) == [] and not node.watches.ends


def test_a_quiet_watch_outlives_the_changes_of_others() -> None:
    node = Node()
    node.store.changes.most = 3
    waiting = node.watch("a")
    for number in range(10):
        node.put(f"b{number}")
        node.rest()
    node.put("a")
    node.rest()
    assert node.told(waiting) == ["a"]


def test_more_changes_in_a_turn_than_are_kept_end_a_watch_as_compacted() -> None:
    node = Node()
    node.store.changes.most = 3
    waiting = node.watch("a")
    for keys in (("a", "b"), ("b", "b"), ("b",)):
        node.apply(*keys)
    node.watches.look()
    node.rest()
    assert [(call, type(value)) for call, value in node.answers] == [(waiting, Compacted)]


def test_an_installed_checkpoint_ends_the_watches_that_it_leaves_behind() -> None:
    node, other = Node(), Node()
    for _ in range(3):
        other.put("a")
    behind, ahead = node.watch("a"), node.watch("a", after=other.store.changes.end)
    node.store.load_state(other.store.save_state())
    node.watches.look()
    node.rest()
    assert [(call, type(value)) for call, value in node.answers] == [(behind, Compacted)]
    node.put("a9")
    node.rest()
    assert node.told(ahead) == ["a9"]


def test_a_watch_ahead_of_this_node_is_told_nothing_twice() -> None:
    node = Node()
    ahead = node.watch("a", after=(2, 1, 0))
    node.put("a1")
    node.rest()
    node.put("a2", "a3")
    node.rest()
    assert node.told(ahead) == ["a3"]


def test_a_change_costs_only_those_whom_it_concerns() -> None:
    node = Node()
    calls = [node.watch(f"{number:03}/") for number in range(1000)]
    assert node.watches.count == 1000
    scanned = 0
    changes = node.store.changes.changes

    def counted(*arguments: Any) -> Any:
        nonlocal scanned
        scanned += 1
        return changes(*arguments)

    node.store.changes.changes = counted  # type: ignore[method-assign]
    node.put("123/x")
    node.rest()
    assert node.told(calls[123]) == ["123/x"] and len(node.answers) == 1 and scanned == 1


def test_a_thousand_watches_of_one_key_are_answered_in_pieces() -> None:
    node = Node()
    for _ in range(1000):
        node.watch("a")
    node.put("a")
    assert len(node.answers) <= AT_ONCE, "whoever has put it does not wait for all of them"
    assert node.rest() >= 1000 // AT_ONCE
    assert len(node.answers) == 1000 and {len(value.changes) for _, value in node.answers} == {1}


def test_a_long_way_back_is_gone_in_pieces() -> None:
    node = Node()
    node.store.changes.scan = 8
    node.put(*["hay"] * 100, "needle")
    call = Call()
    node.watches.begin(call, "needle", BEGINNING, 10, WAIT_S)  # type: ignore[arg-type]
    assert node.told(call) is None and node.rest() >= 12
    assert node.told(call) == ["needle"]
    waiting = node.watch("needle", after=node.store.changes.end)
    node.put(*["hay"] * 20, "needle")  # more than look() looks at
    node.rest()
    assert node.told(waiting) == ["needle"]


def test_a_client_that_has_gone_is_forgotten() -> None:
    node = Node()
    node.watch("a").open = False
    node.watch("b").open = False
    node.put("a")
    node.rest()
    node.watches.sweep(None)
    node.rest()
    assert node.watches.count == 0 and not node.watches.waiting and not node.watches.lengths


def test_a_node_that_stops_or_is_cut_off_sends_its_watches_elsewhere() -> None:
    node = Node()
    calls = [node.watch("a"), node.watch("b")]
    node.watches.sweep("no majority")
    assert node.answers == [(call, NotDone("no majority", False)) for call in calls]
    assert node.watches.count == 0


def test_there_is_a_bound() -> None:
    node = Node()
    for _ in range(MAX_WATCHES):
        node.watches.begin(Call(), "a", BEGINNING, 1, WAIT_S)  # type: ignore[arg-type]
    node.watches.begin(Call(), "a", BEGINNING, 1, WAIT_S)  # type: ignore[arg-type]
    assert [type(value) for _, value in node.answers] == [NotDone]


def test_one_connection_does_not_take_the_place_of_all() -> None:
    node, greedy = Node(), Call()
    for _ in range(MAX_OF_ONE + 1):
        node.watches.begin(greedy, "a", BEGINNING, 1, WAIT_S)  # type: ignore[arg-type]
    assert [type(value) for _, value in node.answers] == [NotDone]
    node.rest()
    node.put("a")
    node.rest()
    assert len(node.answers) == MAX_OF_ONE + 1 and not node.watches.of, "what was answered counts no more"
    node.watch("a", after=node.store.changes.end)
    assert node.watches.count == 1


def test_many_lengths_of_prefixes_and_many_changes_are_not_compared_in_one_turn() -> None:
    node = Node()
    calls = [node.watch("q" * length) for length in range(1, 1001)]
    node.put(*["q" * 3] * 50)  # 50,000 beginnings
    assert len(node.watches.due) == 1000 - AT_ONCE, "all of them look for themselves, in pieces"
    node.rest()
    assert [len(node.told(call) or ()) for call in calls[:3]] == [10] * 3, "as many as they want"
    assert len(node.answers) == 3 and node.watches.count == 997
    node.put("q" * 5)
    assert len(node.watches.waiting) == 995, "few changes are compared"


def test_a_piece_ends_when_enough_was_looked_at() -> None:
    node = Node()
    node.put(*["hay"] * PIECE)
    for _ in range(20):
        node.watches.begin(Call(), "needle", BEGINNING, 1, WAIT_S)  # type: ignore[arg-type]
    looked = []
    while node.due:
        before = node.store.changes.looked
        node.due.pop()()
        looked.append(node.store.changes.looked - before)
    assert max(looked) <= PIECE and sum(looked) >= 19 * PIECE


def test_a_piece_ends_when_enough_was_told() -> None:
    node = Node()
    node.store.apply(1, 1, encode_batch([Command(Verb.PUT, "a", "v" * (PIECE * BYTES))]))
    for _ in range(20):
        node.watches.begin(Call(), "a", BEGINNING, 1, WAIT_S)  # type: ignore[arg-type]
    assert len(node.answers) == 1
    while len(node.answers) < 20:
        before = len(node.answers)
        node.due.pop()()
        assert len(node.answers) == before + 1, "one such answer is enough for a piece"


def test_nothing_is_looked_for_where_the_client_has_gone() -> None:
    node = Node()
    node.put("a")
    call = Call()
    call.open = False
    node.watches.begin(call, "a", BEGINNING, 1, WAIT_S)  # type: ignore[arg-type]
    assert node.store.changes.looked == 0 and node.watches.count == 0 and not node.answers
