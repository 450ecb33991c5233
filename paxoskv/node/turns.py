"""When the event loop makes the node's next turn: when something has arrived, or when its time has come."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final

TICK_BUSY: Final = 0.01  # seconds between ticks while the core waits for something
TICK_IDLE: Final = 0.1  # seconds between ticks while the core waits for nothing
LINGER: Final = 0.001  # seconds: the shortest time of uvloop's timers


class Turns:
    """Code that has handed something in calls wake(): one turn follows, when all that arrived is handed in.

    A tick is a turn before which the core is told that time has passed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.running = False
        self.woken = False
        self.ticker: asyncio.TimerHandle | None = None
        self.tick_at = 0.0
        self.turner: asyncio.TimerHandle | None = None  # makes a turn at turn_at, if none was made before
        self.turn_at = 0.0
        self._turn: Callable[[], None] = _nothing
        self._tick: Callable[[], None] = _nothing

    def start(self, turn: Callable[[], None], tick: Callable[[], None]) -> None:
        """Make turns, by turn(), and ticks, by tick(), from now on. Each must call plan() at its end."""
        self.running = True
        self._turn, self._tick = turn, tick

    def stop(self) -> None:
        """Make no more turns."""
        self.running = False
        if self.ticker:
            self.ticker.cancel()

    def wake(self) -> None:
        """Make one turn, soon."""
        if not self.woken:
            self.woken = True
            self.loop.call_soon(self._woken)

    def plan(self, busy: bool, due: float | None) -> None:
        """Set the timers after a turn.

        `due`: when the next turn must be made, by time.monotonic(); None: none must.
        """
        now = self.loop.time()
        at = now + (TICK_BUSY if busy else TICK_IDLE)
        if self.ticker is None or at < self.tick_at - TICK_BUSY or now >= self.tick_at:
            if self.ticker:
                self.ticker.cancel()
            self.tick_at = at
            self.ticker = self.loop.call_at(at, self._tick)
        if due is not None and (self.turner is None or due < self.turn_at - LINGER):
            if self.turner:
                self.turner.cancel()
            self.turn_at = due
            self.turner = self.loop.call_later(max(due - time.monotonic(), LINGER), self._due)

    def later(self, call: Callable[[], None]) -> None:
        """Run something in the loop, and make a turn; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the node has stopped
            self.loop.call_soon_threadsafe(self._run, call)

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Run something in the loop after this many seconds, and make a turn."""
        self.loop.call_later(seconds, self._run, call)

    def _run(self, call: Callable[[], None]) -> None:
        call()
        self.wake()

    def _woken(self) -> None:
        self.woken = False
        if self.running:
            self._turn()

    def _due(self) -> None:
        self.turner = None
        if self.running:
            self._turn()


def _nothing() -> None:
    """Before start()."""
