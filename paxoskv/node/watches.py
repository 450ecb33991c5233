"""Watches: calls that wait until a key with their prefix changes.

A watch is a long poll. It is answered at once if the store's queue of changes has something for it, else when
that happens, or with nothing when its time is over. All that the node keeps of it is the waiting call: a
client that does not read its answers has no other call here, and whoever comes back says where to go on.

After each turn look() goes through what was applied in it, and finds the calls that it concerns by the
beginnings of its keys, of those lengths that prefixes have. Their answers are made in pieces, between which
the loop does everything else: a thousand watches of one key delay nobody who writes it.
"""

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

from paxoskv.node.calls import Call
from paxoskv.node.long_work import LongWork, Work
from paxoskv.state.changes import At, place
from paxoskv.state.store import Store
from paxoskv.wire.codec import Compacted, NotDone
from paxoskv.wire.structs import Watched
from paxoskv.wire.validation import MAX_CLIENT_FRAME

MAX_WATCHES: Final = 10_000  # calls that wait, as many as there may be connections
AT_ONCE: Final = 8  # watches that are answered in a piece: with more, whoever writes waits for them


class Watch:
    """A call that waits. Two of them are never equal."""

    __slots__ = ("after", "call", "limit", "prefix", "until")

    def __init__(self, call: Call, prefix: str, after: At, limit: int, until: float) -> None:
        self.call = call
        self.prefix = prefix
        self.after = after  # it has seen all changes up to there
        self.limit = limit
        self.until = until  # by the event loop's clock


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
        self.seen = self.changes.end  # look() has looked at all changes up to there

    def begin(self, call: Call, prefix: str, after: At, limit: int, wait_s: float) -> None:
        """Answer the call with at most `limit` changes after this place, within about so many seconds."""
        if self.count >= MAX_WATCHES:
            self.answer(call, NotDone("busy: too many watches wait", False))
            return
        self.count += 1
        self.due.append(Watch(call, prefix, after, limit, self.clock() + wait_s))
        self._work_on()

    def look(self) -> None:
        """Entries may have been applied: find the watches that these concern."""
        seen, self.seen = self.seen, self.changes.end
        if seen == self.seen or not self.waiting:
            return
        try:
            changed = self.changes.after(seen)
        except Compacted:  # another node's checkpoint was installed, or there were more than are kept
            changed = None
        if changed is None or len(changed) == self.changes.scan:
            prefixes = [*self.waiting]
        else:
            heads = {change[3][:length] for change in changed for length in self.lengths}
            prefixes = [prefix for prefix in heads if prefix in self.waiting]
        for prefix in prefixes:
            for watch in self.waiting[prefix]:
                watch.after = max(watch.after, seen)
            self._due(prefix, [*self.waiting[prefix]])
        self._work_on()

    def sweep(self, refusal: str | None) -> None:
        """About once a second: no watch waits longer than it wants to, nor for a client that has gone.

        `refusal`: why this node does not hear of what is applied elsewhere; None: it does.
        """
        if refusal is not None:
            self.refuse(refusal)
        now = self.clock()
        for prefix, watches in [*self.waiting.items()]:
            late = [watch for watch in watches if watch.until <= now or not watch.call.connection.open]
            for watch in late:
                watch.after = max(watch.after, self.seen)
            if late:
                self._due(prefix, late)
        self._work_on()

    def refuse(self, reason: str) -> None:
        """Answer all watches that they must go on at another node."""
        for prefix, watches in [*self.waiting.items()]:
            self._due(prefix, [*watches])
        while self.due:
            self._end(self.due.popleft(), NotDone(reason, False))

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
        if self.due and not self.working:
            self.working = True
            self.long_work.begin(self._work())

    def _work(self) -> Work:
        while self.due:
            for _ in range(min(AT_ONCE, len(self.due))):
                self._serve(self.due.popleft())
            yield
        self.working = False

    def _serve(self, watch: Watch) -> None:
        """Answer a watch if there is something for it, or it has no time left; else let it wait."""
        changes = self.changes
        try:
            found, watch.after = changes.changes(watch.prefix, watch.after, watch.limit, MAX_CLIENT_FRAME)
        except Compacted as compacted:
            self._end(watch, compacted)
            return
        if found or not watch.call.connection.open:
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

    def _end(self, watch: Watch, value: Any) -> None:
        self.count -= 1
        self.answer(watch.call, value)
