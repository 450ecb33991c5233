"""The node's log, one line for each event; and the ways in which a node ends."""

import json
import os
import re
import sys
import time
from typing import Final, NoReturn

LEVELS: Final = ("info", "warning", "error")
MAX_LOGGED: Final = 4000  # characters of a value in the log
UNQUOTED: Final = re.compile(r"[A-Za-z0-9_.:/@%+,\[\]-]+")  # values that the log does not quote
EXIT_USAGE, EXIT_STALE, EXIT_BUG, EXIT_DISK = 2, 65, 70, 74  # exit codes; from the second on as in sysexits.h


class Usage(Exception):
    """The command line, a file or the environment is wrong: one line."""


class Log:
    """One line on stderr for each event: time, level, node and event, always; then what the event has to say.

    As text, `name=value` with a space between, the value as a JSON string unless it is plain; or as one JSON
    object. In both, whatever is not printable ASCII is escaped, and values are bounded.
    """

    def __init__(self) -> None:
        self.node = 0
        self.as_json = False
        self.lowest = 0  # index into LEVELS

    def __call__(self, event: str, level: str = "info", **fields: object) -> None:
        if LEVELS.index(level) < self.lowest:
            return
        now = time.time_ns()
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9))
        line: dict[str, object] = {"time": f"{moment}.{now // 10**6 % 1000:03}Z", "level": level}
        line |= {"node": self.node, "event": event, **fields}
        shown = {name: _shown(value) for name, value in line.items()}
        if self.as_json:
            print(json.dumps(shown), file=sys.stderr, flush=True)
        else:
            text = " ".join(f"{name}={_quoted(value)}" for name, value in shown.items())
            print(text, file=sys.stderr, flush=True)


def _shown(value: object) -> str | int | float | None:
    """Numbers as they are, everything else as bounded text."""
    return value if value is None or isinstance(value, int | float) else str(value)[:MAX_LOGGED]


def _quoted(value: object) -> str:
    text = "-" if value is None else str(value)
    return text if UNQUOTED.fullmatch(text) else json.dumps(text)


log = Log()


def end(code: int, event: str, **fields: object) -> NoReturn:
    """End the process at once: nothing that it would still do could be trusted."""
    log(event, "error", **fields)
    os._exit(code)
