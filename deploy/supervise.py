#!/usr/bin/env python3
"""Runs a server and starts it again when it crashes; `scripts/launch.sh up --restart` puts it in between.

usage: supervise.py server.py --id N [OPTION of server.py ...]

A server that ends with code 0 was told to stop, with 2 it would end so again: then this ends likewise. After
anything else, a signal included, it is started again: after 1 second, then 2, 4, ... up to 30, and after
1 second again once it has run for a minute. SIGTERM and SIGINT are passed on.
"""

import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

FIRST_S, LONGEST_S = 1.0, 30.0  # pauses: short for the cluster's sake, bounded for the disk's and the log's
POLL_S = 0.1
STEADY_S = 60.0  # a run for so long was no failed start
FINAL = (0, 2)  # exit codes of server.py that a restart would not change
ONCE = ("--init", "--rejoin")  # they make the data directory, and it is there when the server comes again


def again(words: list[str], data: Path) -> list[str]:
    """The words of a restart: without the options of a first start, once there is data."""
    return [word for word in words if word not in ONCE] if (data / "identity.json").exists() else words


def data_directory(words: list[str]) -> Path:
    values = dict(itertools.pairwise(words))
    return Path(values["--data"]) / f"node-{values['--id']}"


def main(words: list[str]) -> int:
    if words in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    if "--id" not in words[:-1] or "--data" not in words[:-1]:
        print("usage: supervise.py server.py --id N --data DIR [OPTION of server.py ...]", file=sys.stderr)
        return 2
    stopping = False
    child: subprocess.Popen[bytes] | None = None

    def stop(number: int, _: object) -> None:
        nonlocal stopping
        stopping = True
        if child is not None:
            child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    pause = FIRST_S
    while True:
        began = time.monotonic()
        child = subprocess.Popen([sys.executable, *words])
        if stopping:  # told between the check and the start
            child.terminate()
        code = child.wait()
        if code in FINAL or stopping:
            return max(code, 0)
        pause = FIRST_S if time.monotonic() - began > STEADY_S else pause
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + ".000Z"
        what = f"code={code} restart_in_s={pause:g}"
        print(f"{moment} level=error event=crashed {what}", file=sys.stderr, flush=True)
        resume = time.monotonic() + pause
        while time.monotonic() < resume:
            if stopping:
                return 0
            time.sleep(POLL_S)
        pause = min(2 * pause, LONGEST_S)
        words = again(words, data_directory(words))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
