"""The client library and its command line.

operations decides what to try and what to repeat; sync and aio carry that out over sockets. cli is the
command line: arguments says what may be typed, output prints, rows reads files of operations, workload runs
them, report makes tables of a run, health looks at the nodes.

May import: config, page, program, wire.
"""

import importlib
import signal


def main() -> int:
    """Run the command line; return the exit code. Ctrl-C ends it quietly, also while the rest is imported."""
    try:
        code: int = importlib.import_module("paxoskv.client.cli").main()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Python's own end is short
    except KeyboardInterrupt:
        return 130
    return code
