"""Runs a schedule once more without the engine: one live object for each process, and no reductions."""

from collections.abc import Iterable
from typing import Any

from tests.harness.explore.world import Breach, World, frozen, told


def replay(world: World, events: Iterable[tuple[int, str | tuple[int, Any]]]) -> str | None:
    """What is wrong after these events; None if nothing is.

    An event is (process, name), or (process, (sender, message)): a message that was sent and is not gone.
    AssertionError if the schedule is none of this world.
    """
    try:
        states = world.begin()
    except Exception as error:
        return told(error)
    history, left = world.nothing_seen, dict(world.budgets)
    network: list[Any] = []
    for process, what in events:
        sender, event = (None, what) if isinstance(what, str) else what
        if sender is None:
            if event in left:
                left[event] -= 1
                assert left[event] >= 0, f"too many of {event}"
        else:
            message = (sender, process, frozen(event))
            assert message in network, f"{message} was not sent"
            if world.once:
                network.remove(message)
        try:
            step = world.step(process, states[process], event, sender)
            history = world.observe(history, step.facts if step else ())
        except Exception as error:
            return told(error) if isinstance(error, Breach) else f"{world.names[process]}: {told(error)}"
        assert step is not None, f"{what} cannot happen now"
        network += [(process, to, frozen(message)) for to, message in step.sends]
    return None
