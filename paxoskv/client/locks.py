"""Locks: a key with a time to live, which whoever holds the lock has put where there was none.

    with client.lock("locks/report", ttl=10) as lock:          # async with, for AsyncClient
        write(report, fence=lock.token)

A holder that dies, or hears of no node, loses the lock when its time is over. Another one may have it then,
while the first still works. So whoever is written to must refuse a token that is smaller than one that it
has seen: a later holder's token is always larger. (It is the place at which the lock was taken, in the
order of all commands.) `held` says, by this process's clock, whether the time may be over: then stop.
renew() begins it anew; the token stays.
"""

import asyncio
import time
from collections.abc import Callable, Generator
from secrets import token_hex
from typing import Any, Final, Self

from paxoskv.client import transactions as t
from paxoskv.client.operations import Calls, ClientError, NotDoneError, Operation
from paxoskv.wire.structs import Compare, Position

TTL_S: Final = 30.0
# Seconds between two attempts to take a lock that another one holds.
PAUSE_S: Final = 0.1
# Of the time to live, the part that a holder leaves unused: clocks do not run alike.
MARGIN: Final = 0.05

Step = Operation[t.Committed] | float  # to be carried out, or seconds to sleep
Steps = Generator[Step, Any, None]


class LockLost(ClientError):
    """The lock was not held any more: its time was over, or somebody has written its key."""


class BaseLock:
    """A lock of one holder; it must not be shared."""

    def __init__(
        self,
        run: Callable[[Operation[t.Committed]], Any],
        calls: Calls,
        key: str,
        ttl: float,
        wait: float | None,
    ) -> None:
        """`run` carries out an operation, in the client's way."""
        self._carry_out = run
        self.key = key
        self.ttl = ttl
        self.wait = wait
        self.token = 0  # grows from holder to holder; 0: never held
        self._calls = calls
        self._name = token_hex(16)  # of this holder: nobody else's
        self._position: Position | None = None  # of what has put the key last; None: not held
        self._until = 0.0  # by time.monotonic()

    @property
    def held(self) -> bool:
        """Whether the lock is held for certain, by this process's clock."""
        return self._position is not None and time.monotonic() < self._until

    def _taking(self) -> Steps:
        """Take the lock; NotDoneError if others hold it for longer than `wait` seconds."""
        if self._position is not None:
            raise RuntimeError(f"lock {self.key!r}: taken already")
        began = time.monotonic()
        while not (yield from self._put(t.absent(self.key))):
            # An attempt of ours whose outcome was unknown may have taken it.
            if (yield from self._put(t.equals(self.key, self._name))):
                break
            if self.wait is not None and time.monotonic() - began >= self.wait:
                raise NotDoneError(f"lock {self.key!r}: another one holds it")
            yield PAUSE_S
        assert self._position is not None, "it was put"
        self.token = self._position.timestamp << 8 | self._position.owner

    def _renewing(self) -> Steps:
        if self._position is None or not (yield from self._put(t.leased(self.key, self._position))):
            self._position = None
            raise LockLost(f"lock {self.key!r}: not held any more")

    def _releasing(self) -> Steps:
        position, self._position = self._position, None
        if position is not None:
            yield self._calls.transaction([t.leased(self.key, position)], [t.delete(self.key)])

    def _put(self, compare: Compare) -> Generator[Step, t.Committed, bool]:
        sent = time.monotonic()  # the nodes count from later on
        done = yield self._calls.transaction([compare], [t.put(self.key, self._name, self.ttl)])
        if done.held:
            self._position, self._until = done.position, sent + self.ttl * (1 - MARGIN)
        return done.held


class Lock(BaseLock):
    """A lock over Client."""

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock; NotDoneError: others hold it for longer than `wait` seconds."""
        self._run(self._taking())

    def renew(self) -> None:
        """Begin its time anew; LockLost: it was over."""
        self._run(self._renewing())

    def release(self) -> None:
        """Give it back, if it is still held."""
        self._run(self._releasing())

    def _run(self, steps: Steps) -> None:
        answer: t.Committed | None = None
        while (step := _next(steps, answer)) is not None:
            answer = None
            if isinstance(step, float):
                time.sleep(step)
            else:
                answer = self._carry_out(step)


class AsyncLock(BaseLock):
    """A lock over AsyncClient; its methods do what those of Lock do."""

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.release()

    async def acquire(self) -> None:
        """Do as Lock.acquire."""
        await self._run(self._taking())

    async def renew(self) -> None:
        """Do as Lock.renew."""
        await self._run(self._renewing())

    async def release(self) -> None:
        """Do as Lock.release."""
        await self._run(self._releasing())

    async def _run(self, steps: Steps) -> None:
        answer = None
        while (step := _next(steps, answer)) is not None:
            answer = await (asyncio.sleep(step) if isinstance(step, float) else self._carry_out(step))


def _next(steps: Steps, answer: Any) -> Step | None:
    """Return the next step; None: there is none."""
    try:
        return steps.send(answer)
    except StopIteration:
        return None
