"""Locks: a key with a time to live, which the holder of the lock has put where there was none.

    with client.lock("locks/report", ttl=10) as lock:          # async with, for AsyncClient
        write(report, fence=lock.token)

A holder that dies, or hears of no node, loses the lock when its time is over. Another one may have it then,
while the first still works. So what the lock protects must refuse a token that is smaller than one that it
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
from paxoskv.wire.structs import Compare

TTL_S: Final = 30.0
# Seconds between two attempts to take a lock that another one holds.
PAUSE_S: Final = 0.1
# Of the time to live, the part that a holder leaves unused: clocks do not run alike.
MARGIN: Final = 0.05

Step = Operation[t.Committed] | float  # to be carried out, or seconds to sleep
Steps = Generator[Step, Any, None]


def now() -> float:
    """Return the seconds of a clock that goes on while the machine is suspended, where there is one."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


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
        self._name: str | None = None  # of this holder, this time: nobody else's; None: not held
        self._until = 0.0  # by now()

    @property
    def held(self) -> bool:
        """Whether the lock is held for certain, by this process's clock."""
        return self._name is not None and now() < self._until

    def _taking(self) -> Steps:
        """Take the lock; NotDoneError if others hold it for longer than `wait` seconds."""
        if self._name is not None:
            raise RuntimeError(f"lock {self.key!r}: taken already")
        name, began = token_hex(16), now()
        # An attempt of ours whose outcome was unknown may have taken it: then it has our name.
        while not ((yield from self._put(t.absent(self.key), name)) or (yield from self._renewed(name))):
            if self.wait is not None and now() - began >= self.wait:
                raise NotDoneError(f"lock {self.key!r}: another one holds it")
            yield PAUSE_S
        self._name = name

    def _renewing(self) -> Steps:
        if self._name is None or not (yield from self._renewed(self._name)):
            self._name = None
            raise LockLost(f"lock {self.key!r}: not held any more")

    def _releasing(self) -> Steps:
        name, self._name = self._name, None
        if name is not None:
            yield self._calls.transaction([t.equals(self.key, name)], [t.delete(self.key)])

    def _renewed(self, name: str) -> Generator[Step, t.Committed, bool]:
        token = self.token
        done = yield from self._put(t.equals(self.key, name), name)
        if self._name is not None:
            self.token = token
        return done

    def _put(self, compare: Compare, name: str) -> Generator[Step, t.Committed, bool]:
        sent = now()  # the nodes count from later on
        done = yield self._calls.transaction([compare], [t.put(self.key, name, self.ttl)])
        if done.held:
            timestamp, owner, index = done.place
            self.token = (timestamp << 8 | owner) << 16 | index
            self._until = sent + self.ttl * (1 - MARGIN)
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
