"""Tables, charts and one HTML page from the samples that run.py has taken; and how two results compare.

A sample is a dict: `part` of the experiment, `system`, `x` (what varies in the part: rows, outstanding
operations, ...), `repeat`, `problem`, and what was measured (systems.py). Samples with a problem are
counted, told of, and used for nothing else.
"""

import base64
import csv
import html
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Sample = dict[str, Any]

NAMES: Final = {
    "paxos-log": "Paxos, reads through the log",
    "paxos": "Paxos, linearizable reads",
    "single": "RPC (single server)",
    "etcd": "etcd",
    "pysyncobj": "PySyncObj",
}
# Colours that the colour-blind can tell apart (Okabe and Ito), and markers for those who see none.
LOOKS: Final = {
    "paxos-log": ("#E69F00", "s"),
    "paxos": ("#0072B2", "o"),
    "single": ("#009E73", "^"),
    "etcd": ("#CC79A7", "D"),
    "pysyncobj": ("#555555", "v"),
}
# What the original experiment measured on its five nodes: Paxos, single server, ratio. Empty: not known.
ORIGINAL: Final = {
    "mean_s": ("20-30", "", ""),
    "stddev_s": ("", "", ""),
    "throughput": ("33-51", "452-472", "0.07-0.11"),
}
COSTS: Final = {
    "frames_received": "frames received",
    "frames_sent": "frames sent to peers",
    "bytes_received": "bytes received",
    "bytes_sent": "bytes sent",
    "fsyncs": "fsyncs",
    "journal_bytes": "journal bytes",
    "cpu_us": "CPU us",
    "memory_bytes": "memory bytes, worst node",
}


# ---------------------------------------------------------------------------------------------------- numbers


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


def chosen(samples: Iterable[Sample], part: str, system: str, x: float) -> list[Sample]:
    """The samples of one point, those with problems too."""
    return [s for s in samples if (s["part"], s["system"], s["x"]) == (part, system, x)]


def good(samples: Iterable[Sample]) -> list[Sample]:
    """Those without a problem."""
    return [sample for sample in samples if not sample["problem"]]


def point(samples: Iterable[Sample], part: str, system: str, x: float, metric: str, scale: float = 1) -> Cell:
    """The spread of a metric at one point. `metric` may be of the form cost.NAME."""
    found = chosen(samples, part, system, x)
    values = [value for sample in good(found) if (value := _value(sample, metric)) is not None]
    return spread([value * scale for value in values], len(found) - len(good(found)))


def _value(sample: Sample, metric: str) -> float | None:
    outer, _, inner = metric.partition(".")
    value = sample.get(outer)
    return value.get(inner) if inner and value else value


def ratio(samples: Sequence[Sample], one: tuple[str, str, float], other: tuple[str, str, float],
          metric: str) -> Cell:  # fmt: skip
    """One point's metric over another's, repeat by repeat: what drifts with time touches both alike."""
    ones = {s["repeat"]: s[metric] for s in good(chosen(samples, *one)) if s.get(metric)}
    others = {s["repeat"]: s[metric] for s in good(chosen(samples, *other)) if s.get(metric)}
    return spread([ones[repeat] / others[repeat] for repeat in sorted(ones.keys() & others.keys())])


def points(samples: Iterable[Sample], part: str) -> list[float]:
    """The values of x in a part, ascending."""
    return sorted({sample["x"] for sample in samples if sample["part"] == part})


def systems(samples: Iterable[Sample], part: str) -> list[str]:
    """The systems measured in a part, in the order of NAMES."""
    found = {sample["system"] for sample in samples if sample["part"] == part}
    return [system for system in NAMES if system in found]


def distribution(samples: Iterable[Sample]) -> list[tuple[float, float]]:
    """The median, over samples, of each quantile: (share, seconds)."""
    curves = [sample["quantiles"] for sample in good(samples) if sample.get("quantiles")]
    return [(rank[0][0], statistics.median(s for _, s in rank)) for rank in zip(*curves, strict=True)]


# ----------------------------------------------------------------------------------------------------- tables


class Table(NamedTuple):
    """A table; the first column names the row. `digits` after the point of the other columns, one for all."""

    name: str
    title: str
    head: list[str]
    rows: list[list[Cell]]
    digits: int = 2


def shown(cell: Cell, digits: int) -> str:
    """A cell as text: median (lowest-highest), with a mark for runs that failed."""
    if isinstance(cell, str):
        return cell
    if abs(cell.median) >= 100:
        digits = 0
    text = f"{cell.median:,.{digits}f}"
    if cell.runs > 1:
        text += f" ({cell.low:,.{digits}f}-{cell.high:,.{digits}f})"
    return text + (f" [{cell.failed} failed]" if cell.failed else "")


def markdown(table: Table) -> str:
    """The table in Markdown, with its title."""
    rows = [table.head, ["---:"] * len(table.head)]
    rows += [[shown(cell, table.digits) for cell in row] for row in table.rows]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([f"### {table.title}", "", *lines, ""])


def write_csv(table: Table, path: Path) -> None:
    """The table for machines: median, lowest, highest and number of runs, each in a column of its own."""
    suffixes = ("", " low", " high", " runs", " failed")
    spreads = [any(isinstance(row[i], Spread) for row in table.rows) for i in range(len(table.head))]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = zip(table.head, spreads, strict=True)
        writer.writerow([n + s for n, many in names for s in (suffixes if many else ("",))])
        for row in table.rows:
            fields: list[object] = []
            for cell, many in zip(row, spreads, strict=True):
                values = tuple(cell) if isinstance(cell, Spread) else (cell, *[""] * 4 * many)
                fields.extend(values)
            writer.writerow(fields)


def original_tables(samples: Sequence[Sample]) -> list[Table]:
    """The three tables of the original experiment, with its figures beside ours."""
    names = systems(samples, "tables")
    ours = [name for name in names if name.startswith("paxos")] if "single" in names else []
    head = ["operations", *(NAMES[n] for n in names), *(f"{NAMES[n]} : RPC" for n in ours),
            "original Paxos", "original RPC", "original Paxos : RPC"]  # fmt: skip
    tables = []
    for name, title, metric, scale in (
        ("mean", "Average time per transaction, ms", "mean_s", 1000),
        ("stddev", "Standard deviation of the time per transaction, ms", "stddev_s", 1000),
        ("throughput", "Average throughput, operations per second", "throughput", 1),
    ):
        rows: list[list[Cell]] = []
        for x in points(samples, "tables"):
            row: list[Cell] = [f"{x:g}"]
            row += [point(samples, "tables", n, x, metric, scale) for n in names]
            row += [ratio(samples, ("tables", n, x), ("tables", "single", x), metric) for n in ours]
            rows.append([*row, *ORIGINAL[metric]])
        tables.append(Table(name, title, head, rows))
    return tables


def matrix(samples: Sequence[Sample], part: str, name: str, title: str, label: str,
           metrics: Sequence[tuple[str, str, float]], over: str = "",
           show: Callable[[float], str] = "{:g}".format) -> Table:  # fmt: skip
    """A part as a table: a row for each x, a column for each metric (heading, name, scale) and system.

    With `over`, the ratio of Paxos's throughput to that of each of the other systems follows.
    """
    names = systems(samples, part)
    others = [n for n in names if n != over] if over in names else []
    head = [label, *(f"{NAMES[n]}: {heading}" for heading, _, _ in metrics for n in names)]
    head += [f"{NAMES[over]} : {NAMES[n]}" for n in others]
    rows: list[list[Cell]] = []
    for x in points(samples, part):
        row: list[Cell] = [show(x)]
        row += [point(samples, part, n, x, metric, scale) for _, metric, scale in metrics for n in names]
        row += [ratio(samples, (part, over, x), (part, n, x), "throughput") for n in others]
        rows.append(row)
    return Table(name, title, head, rows)


def percentiles(samples: Sequence[Sample], part: str, x: float) -> Table:
    """Latency percentiles of all systems at one point."""
    metrics = ("p50_s", "p95_s", "p99_s", "max_s")
    rows: list[list[Cell]] = []
    for name in systems(samples, part):
        row: list[Cell] = [NAMES[name], *(point(samples, part, name, x, m, 1000) for m in metrics)]
        found = [s["p99_s"] / s["p50_s"] for s in good(chosen(samples, part, name, x)) if s["p50_s"]]
        rows.append([*row, spread(found)])
    title = f"Latency of {x:g} operations from two closed-loop clients, ms"
    return Table("percentiles", title, ["system", "p50", "p95", "p99", "maximum", "p99 : p50"], rows)


def costs(samples: Sequence[Sample], part: str, system: str, label: str) -> Table:
    """What one operation costs all nodes together, by their counters."""
    found = {name for s in samples if s["system"] == system for name in s.get("cost", {})}
    names = [name for name in COSTS if name in found]
    rows: list[list[Cell]] = [
        [f"{x:g}", *(point(samples, part, system, x, f"cost.{name}") for name in names)]
        for x in points(samples, part)
    ]
    title = f"Cost per operation, all nodes together: {NAMES[system]}, by {label}"
    return Table(f"cost-{part}-{system}", title, [label, *(COSTS[name] for name in names)], rows)


def faults(samples: Sequence[Sample]) -> list[Table]:
    """The tables of what happens when something fails."""
    tables = []
    if points(samples, "fault"):
        times = [point(samples, "fault", "paxos", 0, metric) for metric in ("recovered_s", "gap_s")]
        row: list[Cell] = ["one of five, kill -9", *times]
        head = ["node killed", "back at 90 % of the throughput after, s", "longest time without an answer, s"]
        tables.append(Table("fault", "A node is killed under load", head, [row]))
    if xs := points(samples, "failures"):
        base = ("failures", "paxos", 0.0)
        rows: list[list[Cell]] = [
            [f"{x:.0%}", point(samples, "failures", "paxos", x, "throughput"),
             point(samples, "failures", "paxos", x, "p99_s", 1000),
             ratio(samples, ("failures", "paxos", x), base, "throughput")]
            for x in xs
        ]  # fmt: skip
        head = ["messages lost", "operations per second", "p99, ms", "of that without"]
        tables.append(Table("failures", "Acceptors fail on purpose, for a share of the messages", head, rows))
    return tables


def all_tables(samples: Sequence[Sample]) -> list[Table]:
    """Every table that the samples give."""
    tables = []
    if sizes := points(samples, "tables"):
        tables += [*original_tables(samples), percentiles(samples, "tables", sizes[-1])]
    both = (("operations per second", "throughput", 1), ("p99, ms", "p99_s", 1000))
    if points(samples, "scaling"):
        title = "Scaling: half GET, half PUT"
        tables.append(matrix(samples, "scaling", "scaling", title, "outstanding", both, "paxos"))
    if points(samples, "mix"):
        title = "Reads and writes at 32 outstanding operations"
        tables.append(
            matrix(samples, "mix", "mix", title, "share of GET", both[:1], "paxos", "{:.0%}".format)
        )
    if points(samples, "batches"):
        title = "execute: batches of 100 PUTs from two processes, until all nodes have applied them"
        metrics = (("commands per second", "throughput", 1), ("p99 of a batch, ms", "p99_s", 1000))
        tables.append(matrix(samples, "batches", "batches", title, "batches in flight, each", metrics))
    for part, label in (("scaling", "outstanding operations"), ("tables", "operations")):
        ours = [name for name in systems(samples, part) if name in ("paxos", "single")]
        tables += [costs(samples, part, name, label) for name in ours]
    return tables + faults(samples)


# ----------------------------------------------------------------------------------------------------- charts


def line(
    axes: Axes, samples: Sequence[Sample], part: str, system: str, metric: str, scale: float = 1
) -> None:
    """A system's metric over x: medians, with the spread of the repeats as error bars."""
    cells = [(x, point(samples, part, system, x, metric, scale)) for x in points(samples, part)]
    found = [(x, cell) for x, cell in cells if isinstance(cell, Spread)]
    if found:
        errors = [[c.median - c.low for _, c in found], [c.high - c.median for _, c in found]]
        colour, marker = LOOKS[system]
        axes.errorbar([x for x, _ in found], [c.median for _, c in found], yerr=errors, label=NAMES[system],
                      color=colour, marker=marker, capsize=3)  # fmt: skip


def bars(samples: Sequence[Sample], metric: str, scale: float, title: str, unit: str) -> Figure:
    """One of the three tables as a chart: a group of bars for each number of operations."""
    figure, (axes,) = _figure(title, [("operations", unit)])
    xs, names = points(samples, "tables"), systems(samples, "tables")
    width = 0.8 / max(len(names), 1)
    for i, name in enumerate(names):
        cells = [(j, point(samples, "tables", name, x, metric, scale)) for j, x in enumerate(xs)]
        found = [(j, cell) for j, cell in cells if isinstance(cell, Spread)]
        errors = [[c.median - c.low for _, c in found], [c.high - c.median for _, c in found]]
        axes.bar([j + (i - (len(names) - 1) / 2) * width for j, _ in found], [c.median for _, c in found],
                 width * 0.95, yerr=errors, capsize=3, label=NAMES[name], color=LOOKS[name][0])  # fmt: skip
    axes.set_xticks(range(len(xs)), [f"{x:,.0f}" for x in xs])
    axes.legend()
    return figure


def cdf(samples: Sequence[Sample], x: float) -> Figure:
    """The distribution of latencies at one number of operations."""
    title = f"Latency of {x:,.0f} operations, two closed-loop clients"
    figure, (axes,) = _figure(title, [("latency, ms (logarithmic)", "share of the operations, %")])
    for name in systems(samples, "tables"):
        curve = distribution(chosen(samples, "tables", name, x))
        times, shares = [s * 1000 for _, s in curve], [share * 100 for share, _ in curve]
        axes.plot(times, shares, label=NAMES[name], color=LOOKS[name][0])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend()
    return figure


def scaling(samples: Sequence[Sample]) -> Figure:
    """Throughput and p99 over the number of outstanding operations."""
    labels = [("outstanding operations", "operations per second"), ("outstanding operations", "p99, ms")]
    figure, (left, right) = _figure("Scaling: half GET, half PUT", labels)
    for name in systems(samples, "scaling"):
        line(left, samples, "scaling", name, "throughput")
        line(right, samples, "scaling", name, "p99_s", 1000)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(points(samples, "scaling"))
        axes.xaxis.set_major_formatter("{x:g}")
    left.legend()
    return figure


def fault(samples: Sequence[Sample]) -> Figure:
    """Throughput over time while a node is killed and returns: median of the repeats, and their range."""
    figure, (axes,) = _figure("A node is killed, and returns", [("seconds", "operations per second")])
    found = good(chosen(samples, "fault", "paxos", 0))
    bins = [*zip(*(sample["rates"] for sample in found), strict=True)]
    times = [(i + 0.5) * found[0]["bin_s"] for i in range(len(bins))]
    colour = LOOKS["paxos"][0]
    axes.fill_between(times, [min(b) for b in bins], [max(b) for b in bins], color=colour, alpha=0.25,
                      linewidth=0, label="range of the runs")  # fmt: skip
    axes.plot(times, [statistics.median(b) for b in bins], color=colour, label="median")
    for moment, text, style in (("killed_s", "killed", "--"), ("returned_s", "started again", ":")):
        axes.axvline(statistics.median(s[moment] for s in found), color="black", linestyle=style, label=text)
    axes.legend()
    return figure


def failures(samples: Sequence[Sample]) -> Figure:
    """Throughput over the share of messages on which acceptors fail."""
    title = "Acceptors fail on purpose"
    figure, (axes,) = _figure(title, [("share of messages, %", "operations per second")])
    percent = [{**s, "x": s["x"] * 100} for s in samples if s["part"] == "failures"]
    line(axes, percent, "failures", "paxos", "throughput")
    axes.set_xticks(points(percent, "failures"))
    axes.xaxis.set_major_formatter("{x:g}")
    return figure


def _figure(title: str, labels: Sequence[tuple[str, str]]) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each pair of labels (x, y). All axes of values begin at zero."""
    figure = Figure(figsize=(8 if len(labels) == 1 else 12, 4.5), layout="constrained")
    figure.suptitle(title)
    panels = []
    for i, (x, y) in enumerate(labels, start=1):
        axes = figure.add_subplot(1, len(labels), i)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        panels.append(axes)
    return figure, panels


def all_charts(samples: Sequence[Sample]) -> dict[str, Figure]:
    """Every chart that the samples give, by name."""
    charts = {}
    if sizes := points(good(samples), "tables"):
        charts["mean"] = bars(samples, "mean_s", 1000, "Average time per transaction", "ms")
        charts["stddev"] = bars(samples, "stddev_s", 1000, "Standard deviation of the time", "ms")
        charts["throughput"] = bars(samples, "throughput", 1, "Throughput", "operations per second")
        charts["cdf"] = cdf(samples, sizes[-1])
    for part, chart in (("scaling", scaling), ("fault", fault), ("failures", failures)):
        if points(good(samples), part):
            charts[part] = chart(samples)
    for figure in charts.values():
        for axes in figure.axes:
            axes.set_ylim(bottom=0)
    return charts


# ----------------------------------------------------------------------------------------------------- report

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Measurements</title>
<meta name="viewport" content="width=device-width"><style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem;
  background: light-dark(#fff, #16181c); color: light-dark(#1a1a1a, #e6e6e6); }}
div {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }}
th, td {{ border: 1px solid light-dark(#ccc, #444); padding: 0.3rem 0.6rem; text-align: right; }}
th {{ background: light-dark(#f0f0f0, #262a30); }}
img {{ max-width: 100%; background: #fff; border-radius: 6px; margin: 0.5rem 0; }}
.failed {{ color: light-dark(#b00020, #ff8a80); }}
</style></head><body>
<h1>Measurements</h1>
<p>{note}</p>
{body}
<h2>Machine and settings</h2><div><table>{manifest}</table></div>
</body></html>
"""
NOTE = (
    "Median of the repeats (lowest-highest). All systems were started afresh for each run and run in turn. "
    "Runs with failed operations are marked and are part of no number. etcd and PySyncObj, where shown, have "
    "five members, too, and their own defaults; etcd's client is written in Go, and PySyncObj's operations "
    "start at two of its nodes. PySyncObj does not sync its journal to the disk."
)


def problems(samples: Iterable[Sample]) -> list[str]:
    """One line for each run that is not used."""
    return [
        f"{s['part']}, {NAMES[s['system']]}, at {s['x']:g}, repeat {s['repeat'] + 1}: {s['problem']}"
        for s in samples
        if s["problem"]
    ]


def page(tables: Sequence[Table], pictures: dict[str, bytes], manifest: dict[str, Any],
         marked: Sequence[str]) -> str:  # fmt: skip
    """The whole report in one file. A picture (PNG) stands behind the table of its name, or at the end."""
    body = []
    rest = dict(pictures)
    for table in tables:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in table.head)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(shown(cell, table.digits))}</td>" for cell in row) + "</tr>"
            for row in table.rows
        )
        body.append(f"<h2>{html.escape(table.title)}</h2><div><table><tr>{head}</tr>{rows}</table></div>")
        for name in (table.name, {"percentiles": "cdf"}.get(table.name, "")):
            if name in rest:
                body.append(_picture(name, rest.pop(name)))
    body += [_picture(name, png) for name, png in rest.items()]
    if marked:
        lines = "".join(f"<li>{html.escape(text)}</li>" for text in marked)
        body.append(f'<h2 class="failed">Runs that are not used</h2><ul>{lines}</ul>')
    facts = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(_plain(value))}</td></tr>"
        for name, value in manifest.items()
    )
    return PAGE.format(note=html.escape(NOTE), body="\n".join(body), manifest=facts)


def _picture(name: str, png: bytes) -> str:
    data = base64.b64encode(png).decode()
    return f'<p><img alt="chart: {html.escape(name)}" src="data:image/png;base64,{data}"></p>'


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def write(directory: Path) -> None:
    """Make tables, charts and the page of the results (results.json, manifest.json) in this directory."""
    samples: list[Sample] = json.loads((directory / "results.json").read_text())
    manifest = json.loads((directory / "manifest.json").read_text())
    tables, marked = all_tables(samples), problems(samples)
    for table in tables:
        write_csv(table, directory / f"{table.name}.csv")
    text = [NOTE, "", *(markdown(table) for table in tables)]
    text += ["### Runs that are not used", "", *(f"- {problem}" for problem in marked), ""] if marked else []
    (directory / "tables.md").write_text("\n".join(text), encoding="utf-8")
    pictures = {}
    for name, figure in all_charts(samples).items():
        figure.savefig(directory / f"{name}.svg", metadata={"Date": None})
        figure.savefig(directory / f"{name}.png", dpi=120)
        pictures[name] = (directory / f"{name}.png").read_bytes()
    (directory / "report.html").write_text(page(tables, pictures, manifest, marked), encoding="utf-8")


# -------------------------------------------------------------------------------------------------- documents

IN_PERFORMANCE = (
    "mean", "stddev", "throughput", "percentiles", "scaling", "mix", "batches", "fault", "failures",
)  # fmt: skip
CHARTS_IN_PERFORMANCE = ("throughput", "scaling")
CHART_IN_README = "scaling"
BEGIN, END = "<!-- measured -->", "<!-- end of measured -->"


def command(settings: dict[str, Any]) -> str:
    """The command that measures the same again."""
    options = {
        f"--{name.replace('_', '-')}": ",".join(map(str, value)) if isinstance(value, list) else f"{value:g}"
        for name, value in settings.items()
        if value != []
    }
    return " ".join(["scripts/bench.sh --readme", *(f"{name} {value}" for name, value in options.items())])


def summary(samples: Sequence[Sample]) -> list[Table]:
    """The table of the README: a row for each system, at the largest size of the original tables."""
    metrics = (("throughput", 1), ("mean_s", 1000), ("p99_s", 1000))
    head = ["system", "operations per second", "mean, ms", "p99, ms"]
    tables = []
    for x in points(samples, "tables")[-1:]:
        rows: list[list[Cell]] = [
            [NAMES[name], *(point(samples, "tables", name, x, metric, scale) for metric, scale in metrics)]
            for name in systems(samples, "tables")
        ]
        tables.append(Table("summary", f"{x:,.0f} operations from two closed-loop clients", head, rows))
    return tables


def into_documents(directory: Path, project: Path) -> None:
    """Put this result between the marks of README.md (a small table, one chart) and docs/performance.md."""
    samples: list[Sample] = json.loads((directory / "results.json").read_text())
    facts = json.loads((directory / "manifest.json").read_text())
    docs = project / "docs"
    (docs / "charts").mkdir(parents=True, exist_ok=True)
    revision = str(facts["revision"])[:10]
    where = f"nodes {facts['nodes']}, {facts['cores']} cores ({facts['processor']})"
    said = (
        f"Measured on {facts['date'][:10]} by `{command(facts['settings'])}`: revision {revision}, {where}."
    )
    short, long = [said, ""], [said, NOTE, ""]
    for name, figure in all_charts(samples).items():
        if name in CHARTS_IN_PERFORMANCE:
            figure.savefig(docs / "charts" / f"{name}.svg", metadata={"Date": None})
            long += [f"![{figure.get_suptitle()}](charts/{name}.svg)", ""]
        if name == CHART_IN_README:
            short += [f"![{figure.get_suptitle()}](docs/charts/{name}.svg)", ""]
    short += map(markdown, summary(samples))
    long += [markdown(table) for table in all_tables(samples) if table.name in IN_PERFORMANCE]
    long += [f"- not used: {problem}" for problem in problems(samples)]
    texts = {path: _between_marks(path, lines) for path, lines in (
        (project / "README.md", short), (docs / "performance.md", long))}  # fmt: skip
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


def _between_marks(document: Path, lines: Sequence[str]) -> str:
    """The document with these lines in place of those between its two marks."""
    before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{document}: no {BEGIN} followed by {END}")
    return before + "\n".join([BEGIN, "", *lines, END]) + after


# ------------------------------------------------------------------------------------------------- comparison


def verdict(one: Cell, other: Cell) -> str:
    """Whether two spreads differ by more than themselves: whether they are apart."""
    if not isinstance(one, Spread) or not isinstance(other, Spread):
        return "-"
    if min(one.runs, other.runs) < 2:
        return "one run"
    return "yes" if one.high < other.low or other.high < one.low else "no"


def compare(one: Sequence[Sample], other: Sequence[Sample]) -> str:
    """Two results side by side: every point that both have, the ratio of the medians, and the verdict."""
    layout = "{:10}{:11}{:>8}  {:13}{:>30}{:>30}{:>8}  {}"
    lines = [layout.format("part", "system", "at", "", "A", "B", "B : A", "beyond the spread")]
    ones, others = ({(s["part"], s["system"], s["x"]) for s in samples} for samples in (one, other))
    for part, system, x in sorted(ones & others):
        metrics = [("ops/s", "throughput", 1), ("mean ms", "mean_s", 1000), ("p99 ms", "p99_s", 1000)]
        if part == "fault":
            metrics = [("recovered s", "recovered_s", 1), ("gap s", "gap_s", 1)]
        for name, metric, scale in metrics:
            a, b = (point(samples, part, system, x, metric, scale) for samples in (one, other))
            both = isinstance(a, Spread) and isinstance(b, Spread) and a.median
            share = f"{b.median / a.median:.2f}" if both else "-"  # type: ignore[union-attr]
            lines.append(
                layout.format(part, system, f"{x:g}", name, shown(a, 2), shown(b, 2), share, verdict(a, b))
            )
    if ones != others:
        lines.append(f"left out: {len(ones - others)} points that only A has, {len(others - ones)} of B")
    return "\n".join(lines)
