"""What the verbs of format 0 answer is for ever what the version answered that knew no other format.

Its nodes and ours are in one cluster while it is upgraded, so a difference here is a divergence there. SEEN
is what that version said. With a checkout of it at OLD, this prints it again:

    PYTHONPATH=OLD .venv/bin/python -P tests/state/test_old_verbs.py

Whoever changes a limit or an answer on purpose needs a new format, and leaves SEEN as it is.
"""

import random
from collections.abc import Iterator
from typing import Any

from paxoskv.state.store import MAX_KEPT_BY_ONE, MAX_SESSIONS, Store, encode_batch
from paxoskv.wire.structs import Command, Outcome, RequestId, Session, Verb
from paxoskv.wire.validation import FORMAT, MAX_KEY_BYTES, MAX_RESULTS, MAX_VALUE_BYTES

Entries = Iterator[list[Command]]
BIG = "x" * MAX_VALUE_BYTES
# By schedule: the hash of the entries and their outcomes, and the first digits of the content's digest. Made
# by commit bff51a4.
SEEN = {
    "mixture": ("c26a2ca4", "d218c94a22e74a18"),
    "window": ("05bf8c32", "59b7f43c80bcd9ce"),
    "kept_by_one": ("8723ab64", "5781fdc4548d49a8"),
    "kept_by_all": ("8b09e118", "7109cdf7ad358a5a"),
    "sessions": ("ed68b92d", "4a510a86930d40e2"),
}


def session(number: int) -> Session:
    """The session that was opened with this number by the first entry."""
    return Session(1, 1, number)


def mixture() -> Entries:
    """All verbs, with operands that are missing, and sizes at each limit and beyond it."""
    source = random.Random(23)

    def pick(*options: Any) -> Any:
        return options[int(source.random() * len(options))]

    def size(limit: int) -> int:
        return pick(limit, limit + 1) if source.random() < 0.02 else int(source.random() * 30)

    def text(limit: int) -> str | None:
        if source.random() < 0.05:
            return pick(None, "", "\0", "é" * (limit // 2), "é" * (limit // 2) + "x", str(1 << 63))
        return pick("x" * size(limit), str(int(source.random() * 9)))

    def request() -> RequestId | None:
        if source.random() < 0.3:
            return None
        named = pick(*[session(number) for number in range(8)], Session(1, None, 0), Session(9, 9, 9))
        sequence = int(source.random() * 40) + pick(0, 0, 0, MAX_RESULTS)
        return RequestId(named, pick(sequence, sequence, None), sequence - int(source.random() * 12))

    yield [Command(Verb.OPEN_SESSION) for _ in range(6)]
    for _ in range(1500):
        yield [
            Command(
                pick(1, 1, 2, 3, 4, 4, 5, 5, 6, 0, 77),
                pick("a", "b", "c", "n", "n", text(MAX_KEY_BYTES)),
                text(MAX_VALUE_BYTES),
                pick(None, text(MAX_VALUE_BYTES)),
                pick(None, 1, -1, int(source.random() * 100), (1 << 63) - 1),
                request(),
            )
            for _ in range(pick(1, 2, 5))
        ]


def window() -> Entries:
    """A client that waits for more answers than any may."""
    yield [Command(Verb.OPEN_SESSION)]
    for sequence in (1, MAX_RESULTS, MAX_RESULTS + 1, 2, MAX_RESULTS):
        yield [Command(Verb.INCREMENT, "n", delta=1, request=RequestId(session(0), sequence, 1))]


def kept_by_one() -> Entries:
    """One session reads more than a later version keeps of one; then its first command comes again."""
    yield [Command(Verb.OPEN_SESSION), Command(Verb.PUT, "big", BIG)]
    for sequence in range(1, 11):
        yield [Command(Verb.GET, "big", request=RequestId(session(0), sequence, 1))]
    yield [Command(Verb.GET, "big", request=RequestId(session(0), 1, 1))]


def kept_by_all() -> Entries:
    """All sessions read more than a later version keeps of all; then the first one writes."""
    yield [Command(Verb.OPEN_SESSION) for _ in range(200)]
    yield [Command(Verb.PUT, "big", BIG)]
    for number in range(200):
        request = RequestId(session(number), 1, 1)
        yield [Command(Verb.COMPARE_AND_SET, "big", "y", "no", request=request)]
    yield [Command(Verb.PUT, "k", "v", request=RequestId(session(0), 2, 2))]


def sessions() -> Entries:
    """More sessions than there may be: then those write that are gone, and those that are left."""
    yield [Command(Verb.OPEN_SESSION) for _ in range(MAX_SESSIONS)]
    yield [Command(Verb.PUT, "k", "0", request=RequestId(session(0), 1, 1))]  # it is no longer the oldest
    yield [Command(Verb.OPEN_SESSION) for _ in range(3)]
    for number in range(6):
        yield [Command(Verb.PUT, f"k{number}", "v", request=RequestId(session(number), 2, 2))]


SCHEDULES = (mixture, window, kept_by_one, kept_by_all, sessions)


def restored(store: Store) -> Store:
    """The state, as a checkpoint brings it."""
    other = Store("never-written.json")
    other.load_state(store.save_state())
    return other


def seen(entries: Entries, saved_before: int | None = None) -> tuple[str, str]:
    """Apply the entries; before one of them, a checkpoint takes the place of the state."""
    store = Store("never-written.json")
    for timestamp, commands in enumerate(entries, 1):
        if timestamp == saved_before:
            store = restored(store)
        store.apply(timestamp, 1, encode_batch(commands))
    return f"{store.hash:08x}", store.digest()[:16]


def test_an_old_verb_answers_what_the_first_version_answers() -> None:
    assert {schedule.__name__: seen(schedule()) for schedule in SCHEDULES} == SEEN


def test_an_old_verb_answers_the_same_when_the_state_came_with_a_checkpoint() -> None:
    assert {schedule.__name__: seen(schedule(), saved_before=6) for schedule in SCHEDULES} == SEEN


def test_what_was_kept_before_the_limits_held_counts_with_the_next_result_on_all_nodes_alike() -> None:
    stores = [Store("never-written.json"), Store("never-written.json")]
    reads = [Command(Verb.GET, "big", request=RequestId(session(0), number, 1)) for number in range(1, 13)]
    upgrade = Command(Verb.UPGRADE, delta=FORMAT)
    for timestamp, commands in enumerate([*kept_by_one(), [upgrade], [reads[0]], [reads[11]], reads], 1):
        first, second = (store.apply(timestamp, 1, encode_batch(commands)) for store in stores)
        assert first == second and stores[0].state_digest() == stores[1].state_digest()
        stores[1] = restored(stores[1])
        if commands == [reads[0]]:
            assert first[0].outcome == Outcome.OK, "nothing was kept since the limits hold"
    too_many = 11 - MAX_KEPT_BY_ONE // MAX_VALUE_BYTES  # ten at format 0, and the twelfth
    assert [result.outcome for result in first] == [Outcome.FORGOTTEN] * too_many + [Outcome.OK] * (
        12 - too_many
    )


if __name__ == "__main__":
    for schedule in SCHEDULES:
        print(f"    {schedule.__name__!r}: {seen(schedule())!r},".replace("'", '"'))
