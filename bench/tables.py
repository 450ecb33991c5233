"""Figures of several runs, and tables of them in Markdown: for run.py's report and for the experiments."""

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """Median, lowest and highest of the repeats; how many were used, and how many failed and were not."""

    median: float
    low: float
    high: float
    runs: int
    failed: int = 0


Cell = Spread | str


def spread(values: Sequence[float], failed: int = 0) -> Cell:
    """The spread of these values; a word if there are none."""
    if not values:
        return "failed" if failed else ""
    return Spread(statistics.median(values), min(values), max(values), len(values), failed)


class Table(NamedTuple):
    """A table; the first column names the row."""

    name: str
    title: str
    head: list[str]
    rows: list[list[Cell]]


def shown(cell: Cell) -> str:
    """A cell as text: median (lowest-highest), with a mark for runs that failed."""
    if isinstance(cell, str):
        return cell
    digits = max(2 - math.floor(math.log10(abs(cell.median))), 0) if cell.median else 2
    text = f"{cell.median:,.{digits}f}"
    if cell.runs > 1:
        text += f" ({cell.low:,.{digits}f}-{cell.high:,.{digits}f})"
    return text + (f" [{cell.failed} failed]" if cell.failed else "")


def lines(rows: Iterable[Sequence[Cell]]) -> Iterator[str]:
    """The lines of a table in Markdown; the first row is its head."""
    for number, row in enumerate(rows):
        yield "| " + " | ".join(map(shown, row)) + " |"
        if not number:
            yield "|" + " ---: |" * len(row)


def markdown(table: Table) -> str:
    """The table in Markdown, with its title."""
    return "\n".join([f"### {table.title}", "", *lines([table.head, *table.rows]), ""])
