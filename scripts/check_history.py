#!/usr/bin/env python3
"""Judge recorded histories: check_history.py FILE...

A history is what `client.py run --history FILE` writes; the format and the method are
those of tests/harness/linearizability.py.

Exit status: 0 all are linearizable; 1 one is not (a timeline shows why); 2 a file cannot be read;
4 the search grew too large to decide; 65 a file holds no history. Of several files the gravest counts: 65, 2,
1, 4.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from paxoskv import program

program.begin()

from tests.harness.linearizability import Malformed, Operation, Undecided, check, load

LINEARIZABLE, VIOLATION, UNREADABLE, UNDECIDED, MALFORMED = 0, 1, 2, 4, 65
GRAVITY = (LINEARIZABLE, UNDECIDED, VIOLATION, UNREADABLE, MALFORMED)


def main(arguments: list[str] | None = None) -> int:
    """Judge all files, print a verdict on each, return the exit status."""
    parser = argparse.ArgumentParser(description="Judge recorded histories: are they linearizable?")
    parser.add_argument("files", nargs="+", metavar="FILE", help="a history, as JSON lines")
    files: list[str] = parser.parse_args(arguments).files
    return max((judge(file) for file in files), key=GRAVITY.index)


def judge(file: str) -> int:
    """Print the verdict on one file, return its exit status."""
    try:
        operations = load(file)
    except Malformed as error:
        print(error, file=sys.stderr)
        return MALFORMED
    except OSError as error:
        print(f"{file}: {error.strerror}", file=sys.stderr)
        return UNREADABLE
    try:
        violation = check(operations)
    except Undecided as error:
        print(f"{file}: undecided: {error}", file=sys.stderr)
        return UNDECIDED
    if violation is not None:
        print(f"{file}: {violation}")
        return VIOLATION
    print(f"{file}: linearizable: {counts(operations)}")
    return LINEARIZABLE


def counts(operations: list[Operation]) -> str:
    """How much was judged, in one line."""
    outcomes = Counter(operation.outcome for operation in operations)
    keys = len({operation.key for operation in operations})
    clients = len({operation.client for operation in operations})
    listed = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    return (
        f"{len(operations)} operations on {keys} keys by {clients} clients ({listed or 'an empty history'})"
    )


if __name__ == "__main__":
    sys.exit(main())
