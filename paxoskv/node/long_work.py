"""Work that takes long, for clients: it is done in pieces, between which the loop does everything else."""

from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Final

from paxoskv.node.calls import Call
from paxoskv.node.turns import Turns
from paxoskv.state.store import Digested, Store

REST: Final = 0.001  # seconds after each piece: other processes get the processor meanwhile
ANSWERS: Final = 16  # digests sent in a piece
SHARING: Final = 1000  # clients' calls for a digest, of one connection or many, beyond which nobody sends two

Work = Generator[None, None, Any]  # it yields after each piece


class LongWork:
    """Does one piece of one work, rests, and goes on with the next work: all callers in turns."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.waiting: deque[tuple[Work, Call | None]] = deque()
        self.resting = False

    def begin(self, work: Work, call: Call | None = None) -> None:
        """Do this, too: its first piece at once if nothing else is being done.

        `call`: the call that it is for. The work ends early if the connection is lost.
        """
        self.waiting.append((work, call))
        if not self.resting:
            self._piece()

    def _piece(self) -> None:
        self.resting = False
        while self.waiting and not self.resting:
            work, call = self.waiting.popleft()
            if call is None or call.connection.open:
                self.resting = True
                self.turns.after(REST, self._piece)
                if next(work, self) is not self:
                    self.waiting.append((work, call))


class Digests:
    """Makes one digest of the store at a time. All callers meanwhile share the next one.

    (They may have written what the one that is being made does not contain.) None is made if nothing was
    applied since the last.
    """

    def __init__(self, store: Store, long_work: LongWork, answer: Callable[[Call, Digested], None]) -> None:
        self.store = store
        self.long_work = long_work
        self.answer = answer
        self.asking: list[Call] = []
        self.paused: list[Call] = []  # those of them whose connections are held
        self.working = False
        self.last = Digested()
        self.made = 0

    def ask(self, call: Call) -> None:
        """Answer this call with a digest of now or later."""
        self.asking.append(call)
        if len(self.asking) > SHARING:
            call.connection.hold()
            self.paused.append(call)
        if not self.working:
            self.working = True
            self.long_work.begin(self._work())

    def _work(self) -> Work:
        while self.asking:
            calls, self.asking = self.asking, []
            paused, self.paused = self.paused, []
            if (self.store.position, self.store.hash) != self.last[:2]:
                self.last = yield from self.store.digest_in_pieces()
                self.made += 1
            for index, call in enumerate(calls, 1):
                self.answer(call, self.last)
                if index % ANSWERS == 0:
                    yield
            for call in paused:
                call.connection.release()
        self.working = False
