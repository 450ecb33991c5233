#!/usr/bin/env python3
"""Writes a file of operations for `client.py run`: made from a seed, or a given file repeated.

By default, as in the original experiment: of 150 rows, 80 PUT, 60 GET and 10 DELETE, on about 80 keys,
whatever the size. The first third is all PUTs; then the verbs are mixed. GET and DELETE name keys that were
put before, with the value put last. (A GET may still find nothing: the key may have been deleted.)

`--repeat FILE N` repeats the rows of a file until there are N: so the original made its larger files.

`--ycsb A` to `F` are the core workloads of the Yahoo! Cloud Serving Benchmark (Cooper and others, SoCC 2010):

    A  half GET, half PUT of keys that are there      D  95 % GET, mostly of new keys, 5 % PUT of new keys
    B  95 % GET, 5 % PUT                              E  95 % scans, 5 % PUT of new keys
    C  only GET                                       F  half GET, half GET followed by PUT of the same key

The key of rank r is as likely as 1/r^0.99 (zipfian), and ranks are dealt out to the keys at random; in D, the
newest key has the first rank. `--load` writes the PUTs of all keys, which are to be run before. A file of
operations has no scans: one is 1 to 100 GETs of neighboring keys, which all count as rows.
"""

import argparse
import csv
import itertools
import random
import sys
from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from paxoskv import program

program.begin()

PUTS, GETS, DELETES = 80, 60, 10
# Lengths of key and value, one of which is drawn for each new key.
SHAPES = ((3, 20), (4, 19), (4, 28), (5, 47), (5, 50), (8, 18), (8, 12), (9, 4), (9, 39))
OVERWRITES = 1 / 40
KEYS = 80

# Of the operations that are no GETs: what they are, and their share.
MIXES: Final = {
    "A": ("update", 0.5), "B": ("update", 0.05), "C": ("update", 0.0), "D": ("insert", 0.05),
    "E": ("insert", 0.05), "F": ("read-modify-write", 0.5),
}  # fmt: skip
SKEW: Final = 0.99
LONGEST_SCAN: Final = 100
VALUE_BYTES: Final = 100  # YCSB has ten fields of this size in a record; we have one
Row = Sequence[str]

CONSONANTS = "bcdfghjklmnprstvwxz"
VOWELS = ("a", "e", "i", "o", "u", "ae", "ah", "ee", "ei", "ie", "oh", "oo")


def word(source: random.Random, length: int) -> str:
    """A word that could be pronounced, with some capitals and digits in it."""
    text = ""
    while len(text) < length:
        syllable = source.choice(CONSONANTS) + source.choice(VOWELS)
        if source.random() < 0.15:
            syllable = syllable.capitalize()
        if source.random() < 0.15:
            syllable += source.choice("0123456789")
        text += syllable
    return text[:length]


def verbs(source: random.Random, rows: int) -> list[str]:
    """The verbs of all rows, in order."""
    everything = PUTS + GETS + DELETES
    puts = max(round(rows * PUTS / everything), min(rows, 1))
    deletes = round(rows * DELETES / everything)
    first = min(max(rows // 3, 1), puts)
    mixed = ["PUT"] * (puts - first) + ["DELETE"] * deletes + ["GET"] * (rows - puts - deletes)
    source.shuffle(mixed)
    return ["PUT"] * first + mixed


def workload(rows: int, seed: int) -> list[tuple[str, str, str]]:
    """So many rows (verb, key, value), as in the original experiment; the same for the same seed."""
    source = random.Random(seed)
    values: dict[str, str] = {}
    keys: list[str] = []
    made = []
    for verb in verbs(source, rows):
        if verb == "PUT":
            key_length, value_length = source.choice(SHAPES)
            again = keys and (len(keys) == KEYS or source.random() < OVERWRITES)
            key = source.choice(keys) if again else word(source, key_length)
            if key not in values:
                keys.append(key)
            values[key] = word(source, value_length)
        else:
            key = source.choice(keys)
        made.append((verb, key, values[key]))
    return made


def write(file: TextIO, rows: Iterable[Row]) -> None:
    """Write rows as CSV."""
    csv.writer(file, lineterminator="\n").writerows(rows)


def repeat(path: Path, rows: int) -> Iterator[Row]:
    """The rows of a file, without blank lines and comments, again and again, until there are so many."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = [row for row in csv.reader(file) if row and not row[0].lstrip().startswith("#")]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: {error}") from None
    if not found:
        raise ValueError(f"{path}: no operations in it")
    return itertools.islice(itertools.cycle(found), rows)


class Zipf:
    """Draws ranks from 0: rank r is as likely as 1/(r + 1)^SKEW."""

    def __init__(self, source: random.Random) -> None:
        self.source = source
        self.sums = [1.0]  # of the weights up to each rank

    def draw(self, ranks: int) -> int:
        """One of so many ranks."""
        while len(self.sums) < ranks:
            self.sums.append(self.sums[-1] + (len(self.sums) + 1) ** -SKEW)
        return bisect(self.sums, self.source.random() * self.sums[ranks - 1], 0, ranks - 1)


def ycsb(mix: str, records: int, seed: int) -> Iterator[Row]:
    """Operations of one of YCSB's workloads, without an end; so many keys are there already."""
    source = random.Random(seed)
    zipf = Zipf(source)
    keys = list(range(records))  # by rank
    source.shuffle(keys)
    other, share = MIXES[mix]
    while True:
        rank = zipf.draw(len(keys))
        key = len(keys) - 1 - rank if mix == "D" else keys[rank]
        if source.random() < share:
            if other == "insert":
                key = len(keys)
                keys.append(key)
            elif other == "read-modify-write":
                yield _get(key)
            yield _put(source, key)
        else:
            length = source.randint(1, LONGEST_SCAN) if mix == "E" else 1
            yield from map(_get, range(key, min(key + length, len(keys))))


def _get(key: int) -> Row:
    return "GET", f"user{key}"


def _put(source: random.Random, key: int) -> Row:
    return "PUT", f"user{key}", f"{source.getrandbits(VALUE_BYTES * 4):0{VALUE_BYTES}x}"


def rows_of(arguments: argparse.Namespace) -> Iterable[Row]:
    """What the command line asks for."""
    if arguments.repeat:
        return repeat(Path(arguments.repeat[0]), program.positive(arguments.repeat[1]))
    if arguments.load:
        source = random.Random(arguments.seed)
        return (_put(source, key) for key in range(arguments.records))
    if arguments.ycsb:
        return itertools.islice(ycsb(arguments.ycsb, arguments.records, arguments.seed), arguments.rows)
    return workload(arguments.rows, arguments.seed)


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    what, _, how = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=how, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", metavar="N", type=program.positive, default=150, help="how many (default: 150)")
    add("--seed", metavar="N", type=int, default=1, help="the same seed gives the same file (default: 1)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--repeat", nargs=2, metavar=("FILE", "N"), help="repeat a file until it has N rows")
    kind.add_argument("--ycsb", choices=MIXES, metavar="MIX", help="one of YCSB's mixes: A to F")
    add("--records", metavar="N", type=program.positive, default=1000, help="keys of YCSB (default: 1000)")
    add("--load", action="store_true", help="the PUTs to run before YCSB's operations: one for each key")
    add("-o", "--output", metavar="FILE", default="-", help="where to write it (default: -, which is stdout)")
    arguments = parser.parse_args(words)
    try:
        rows = rows_of(arguments)
        if arguments.output != "-":
            with Path(arguments.output).open("w", encoding="utf-8", newline="") as file:
                write(file, rows)
        else:
            write(sys.stdout, rows)
    except OSError as error:
        if error.filename in (None, arguments.output):  # it cannot be written
            raise
        print(f"make_workload.py: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except (ValueError, argparse.ArgumentTypeError) as error:
        print(f"make_workload.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
