"""Watches: calls that wait until a key with their prefix changes.

A watch is a long poll. It is answered at once if the store's queue of changes has something for it, else when
that happens, or with nothing when its time is over. All that the node keeps of it is the waiting call: a
client that does not read its answers has no other call here, and one that comes back says where to go on.

After each turn look() goes through what was applied in it, and finds the calls that it concerns by the
beginnings of its keys, of those lengths that prefixes have. Their answers are made in pieces, between which
the loop does everything else: a thousand watches of one key delay nobody who writes it.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any, Final

from paxoskv.node.calls import Call
from paxoskv.node.long_work import LongWork, Work
from paxoskv.state.changes import At, place
from paxoskv.state.store import Store
from paxoskv.wire.codec import Compacted, NotDone
from paxoskv.wire.connection import Connection
from paxoskv.wire.structs import Watched

MAX_WATCHES: Final = 10_000  # calls that wait, as many as there may be connections
MAX_OF_ONE: Final = 1000  # of one connection
# Beginnings of keys that look() compares with prefixes; if there are more, all watches look for themselves.
BEGINNINGS: Final = 10_000
# What a piece may cost: changes that are unpacked, of which large ones count as several. One watch is served
# in any case: it looks at state.changes.SCAN of them, and is told PAGE, of PAGE_BYTES.
PIECE: Final = 8192
PAGE, PAGE_BYTES = 256, 256 << 10
STEP: Final = 0.01  # seconds: how exactly the end of a watch's time is kept, so that few end together
AT_ONCE: Final = 8  # watches that are answered in a piece: with more, writers wait for them


@dataclass(slots=True, eq=False)
class Watch:
    """A call that waits. Two of them are never equal."""

    call: Call
    prefix: str
    after: At  # it has seen all changes up to there
    limit: int
    until: float  # by the event loop's clock


class Watches:
    """All calls that wait for changes."""

    def __init__(
        self,
        store: Store,
        long_work: LongWork,
        answer: Callable[[Call, Any], None],
        clock: Callable[[], float],
    ) -> None:
        self.changes = store.changes
        self.long_work = long_work
        self.answer = answer
        self.clock = clock
        self.waiting: dict[str, dict[Watch, None]] = {}  # by prefix: what has seen all that look() has
        self.lengths: Counter[int] = Counter()  # of these prefixes
        self.due: deque[Watch] = deque()  # those for which there may be something, or whose time is over
        self.working = False
        self.count = 0  # of all
        self.of: Counter[Connection] = Counter()  # by connection
        self.ends: dict[int, dict[Watch, None]] = {}  # by STEP in which their time is over
        self.ended = ceil(clock() / STEP)  # the step whose watches tick() finds next
        self.seen = self.changes.end  # look() has looked at all changes up to there

    def begin(self, call: Call, prefix: str, after: At, limit: int, wait_s: float) -> None:
        """Answer the call with at most `limit` changes after this place, within about this many seconds."""
        if self.count >= MAX_WATCHES or self.of[call.connection] >= MAX_OF_ONE:
            self.answer(call, NotDone("busy: too many watches wait", False))
            return
        self.count += 1
        self.of[call.connection] += 1
        watch = Watch(call, prefix, after, limit, self.clock() + wait_s)
        self.ends.setdefault(ceil(watch.until / STEP), {})[watch] = None
        if watch.after == self.changes.end:  # the common case: there is nothing to look through
            self._serve(watch)
        else:
            self.due.append(watch)
            self._work_in_pieces()

    def look(self) -> None:
        """Entries may have been applied: find the watches that these concern."""
        seen, self.seen = self.seen, self.changes.end
        if not self.waiting or seen == self.seen:
            return
        try:
            changed, few = self.changes.after(seen)
        except Compacted:  # another node's checkpoint was installed, or there were more than are kept
            changed, few = [], False
        if not few or len(changed) >= BEGINNINGS // max(len(self.lengths), 1):
            self._all_due(seen)
        else:
            keys = {change[3] for change in changed}
            heads = {key[:length] for key in keys for length in self.lengths if length <= len(key)}
            for prefix in heads & self.waiting.keys():
                for watch in self.waiting[prefix]:
                    watch.after = max(watch.after, seen)
                self._due(prefix, [*self.waiting[prefix]])
        self._work_on()

    def tick(self) -> None:
        """No watch waits longer than it wants to.

        Those whose time is over are found one after the other, not once a second: all of them ask again.
        """
        now = self.clock() / STEP
        while self.ended <= now:
            for watch in [*self.ends.get(self.ended, ())]:
                self._wake(watch)
            self.ended += 1
        self._work_on()

    def sweep(self, refusal: str | None) -> None:
        """About once a second: no watch waits for a client that has gone.

        `refusal`: why this node does not hear of what is applied elsewhere; None: it does.
        """
        if refusal is not None:
            self.refuse(refusal)
        for watches in [*self.waiting.values()]:
            for watch in [watch for watch in watches if not watch.call.connection.open]:
                self._wake(watch)
        self._work_on()

    def _wake(self, watch: Watch) -> None:
        """Let a watch look for itself, if it waits."""
        if watch in self.waiting.get(watch.prefix, ()):
            watch.after = max(watch.after, self.seen)
            self._due(watch.prefix, [watch])

    def refuse(self, reason: str) -> None:
        """Tell all watches to go on at another node."""
        self._all_due(self.seen)
        while self.due:
            self._end(self.due.popleft(), NotDone(reason, False))

    def _all_due(self, seen: At) -> None:
        """Let all that wait look for themselves, in pieces, from this place on."""
        watches = [watch for watches in self.waiting.values() for watch in watches]
        for watch in watches:
            watch.after = max(watch.after, seen)
        self.due.extend(watches)
        self.waiting.clear()
        self.lengths.clear()

    def _due(self, prefix: str, watches: list[Watch]) -> None:
        waiting = self.waiting[prefix]
        for watch in watches:
            del waiting[watch]
        if not waiting:
            del self.waiting[prefix]
            self.lengths[len(prefix)] -= 1
            if not self.lengths[len(prefix)]:
                del self.lengths[len(prefix)]
        self.due.extend(watches)

    def _work_on(self) -> None:
        """Serve the watches that are due: a few at once, many in pieces."""
        if not self.working and len(self.due) <= AT_ONCE:
            self._piece()
        self._work_in_pieces()

    def _work_in_pieces(self) -> None:
        if self.due and not self.working:
            self.working = True
            self.long_work.begin(self._work())

    def _piece(self) -> None:
        room = PIECE
        for _ in range(min(AT_ONCE, len(self.due))):
            room -= self._serve(self.due.popleft())
            if room <= 0:
                break

    def _work(self) -> Work:
        while self.due:
            self._piece()
            yield
        self.working = False

    def _serve(self, watch: Watch) -> int:
        """Answer a watch if there is something for it, or it has no time left; else let it wait.

        Returns what that has cost.
        """
        changes, before = self.changes, self.changes.looked
        if not watch.call.connection.open:
            self._end(watch)
            return 0
        try:
            limit = min(watch.limit, PAGE)
            found, watch.after = changes.changes(watch.prefix, watch.after, limit, PAGE_BYTES)
        except Compacted as compacted:
            self._end(watch, compacted)
            return 0
        if found:
            self._end(watch, Watched(found, place(watch.after)))
        elif watch.after < changes.end:
            self.due.append(watch)
        elif watch.until <= self.clock():
            self._end(watch, Watched([], place(watch.after)))
        else:
            if watch.prefix not in self.waiting:
                self.waiting[watch.prefix] = {}
                self.lengths[len(watch.prefix)] += 1
            self.waiting[watch.prefix][watch] = None
        return changes.looked - before

    def _end(self, watch: Watch, value: Any = None) -> None:
        """Forget a watch; a value is its answer."""
        step = ceil(watch.until / STEP)
        del self.ends[step][watch]
        if not self.ends[step]:
            del self.ends[step]
        self.count -= 1
        self.of[watch.call.connection] -= 1
        if not self.of[watch.call.connection]:
            del self.of[watch.call.connection]
        if value is not None:
            self.answer(watch.call, value)
