"""When a node's next turn is made."""

import asyncio
import threading
import time
from collections.abc import Callable

from paxoskv.node.turns import Turns


class Counted:
    """Turns, and how many were made; a turn plans the next one as a test says."""

    def __init__(self) -> None:
        self.turns = Turns(asyncio.get_running_loop())
        self.count = self.ticks = 0
        self.busy = False
        self.due: float | None = None
        self.turns.start(self.turn, self.tick)

    def turn(self) -> None:
        self.count += 1
        due, self.due = self.due, None
        self.turns.plan(self.busy, due)

    def tick(self) -> None:
        self.ticks += 1
        self.turn()

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.001)


def test_however_often_it_is_woken_one_turn_follows_and_none_after_the_end() -> None:
    async def run() -> None:
        counted = Counted()
        for _ in range(5):
            counted.turns.wake()
        assert counted.count == 0, "not before everything that has arrived is handed in"
        await counted.until(lambda: counted.count > 0)
        assert counted.count == 1
        counted.turns.wake()
        counted.turns.stop()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert counted.count == 1

    asyncio.run(run())


def test_a_turn_that_is_due_is_made_at_its_time_and_an_earlier_one_takes_its_place() -> None:
    async def run() -> None:
        counted = Counted()
        counted.turns.plan(False, time.monotonic() + 60)
        counted.turns.plan(False, begun := time.monotonic() + 0.02)
        counted.turns.plan(False, time.monotonic() + 50)
        await counted.until(lambda: counted.count > counted.ticks)
        assert time.monotonic() >= begun - 0.001

    asyncio.run(run())


def test_ticks_go_on_by_themselves_and_come_sooner_when_the_core_is_busy() -> None:
    async def run() -> None:
        counted = Counted()
        counted.turns.plan(False, None)
        idle = counted.turns.tick_at
        counted.busy = True
        counted.turns.plan(True, None)
        assert counted.turns.tick_at < idle
        await counted.until(lambda: counted.ticks == 3)
        counted.turns.stop()

    asyncio.run(run())


def test_what_another_thread_hands_in_runs_in_the_loop_and_a_turn_follows() -> None:
    async def run() -> Turns:
        counted = Counted()
        ran: list[int] = []
        call = lambda: ran.append(threading.get_ident())  # noqa: E731
        thread = threading.Thread(target=counted.turns.later, args=(call,))
        thread.start()
        await counted.until(lambda: counted.count > 0)
        thread.join()
        counted.turns.after(0.001, call)
        await counted.until(lambda: len(ran) == 2)
        assert set(ran) == {threading.get_ident()}
        return counted.turns

    turns = asyncio.run(run())
    turns.later(lambda: None)  # the loop is closed: nobody minds
