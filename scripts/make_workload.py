#!/usr/bin/env python3
"""Writes a file of operations for `client.py run`: of any size, from a seed.

The proportions are those of the original experiment: of 150 rows, 80 PUT, 60 GET and 10 DELETE. The first
third is all PUTs; then the verbs are mixed. GET and DELETE name keys that were put before, with the value put
last. (A GET may still find nothing: the key may have been deleted.) One PUT in forty overwrites a key.
"""

import argparse
import csv
import random
import sys
from pathlib import Path
from typing import TextIO

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from paxoskv import program

program.begin()

PUTS, GETS, DELETES = 80, 60, 10
# Lengths of key and value, one of which is drawn for each new key.
SHAPES = ((3, 20), (4, 19), (4, 28), (5, 47), (5, 50), (8, 18), (8, 12), (9, 4), (9, 39))
OVERWRITES = 1 / 40

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
    """So many rows (verb, key, value); the same for the same seed."""
    source = random.Random(seed)
    values: dict[str, str] = {}
    keys: list[str] = []
    made = []
    for verb in verbs(source, rows):
        if verb == "PUT":
            key_length, value_length = source.choice(SHAPES)
            key = source.choice(keys) if keys and source.random() < OVERWRITES else word(source, key_length)
            if key not in values:
                keys.append(key)
            values[key] = word(source, value_length)
        else:
            key = source.choice(keys)
        made.append((verb, key, values[key]))
    return made


def write(file: TextIO, rows: int, seed: int) -> None:
    """Write the workload as CSV."""
    csv.writer(file, lineterminator="\n").writerows(workload(rows, seed))


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write a file of operations for `client.py run`.")
    parser.add_argument("--rows", type=int, default=150, help="how many (default: 150)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same file (default: 1)")
    parser.add_argument("-o", "--output", metavar="FILE", help="where to write it (default: stdout)")
    arguments = parser.parse_args(words)
    if arguments.rows < 1:
        parser.error("--rows: at least 1")
    if not arguments.output:
        write(sys.stdout, arguments.rows, arguments.seed)
        return 0
    try:
        with Path(arguments.output).open("w", encoding="utf-8", newline="") as file:
            write(file, arguments.rows, arguments.seed)
    except OSError as error:
        print(f"make_workload.py: {arguments.output}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
