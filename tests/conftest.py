"""An option of the tests, and what a run says at its end."""

import os
import signal
from typing import Any

from paxoskv import compiled

# Whoever runs this in the background may have it ignored, and so would the programs whose Ctrl-C is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


# The first start of a cluster would have the modules compiled in the background, for minutes.
if not compiled.directory().exists():
    os.environ["PAXOSKV_INTERPRETED"] = "1"


def pytest_addoption(parser: Any) -> None:
    parser.addoption(
        "--operations", type=int, default=12000, help="test_chaos.py: how many (default: %(default)s)"
    )
    parser.addoption(
        "--all-graphs", action="store_true", help="test_graphs.py: all 1,024, not one of each shape"
    )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How much was simulated, by whichever processes: see test_simulation.py."""
    found = [
        dict(report.user_properties)
        for report in terminalreporter.getreports("passed")
        if dict(report.user_properties).get("seeds")
    ]
    if found:
        seeds, events, seconds = (
            sum(each[name] for each in found) for name in ("seeds", "events", "seconds")
        )
        rate = f"{events / seconds:,.0f} events per second and core"
        terminalreporter.write_line(f"simulated: {seeds:,} seeds, {events:,} events, {rate}")
