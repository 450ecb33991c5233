"""Tables, charts and one HTML page from the samples that run.py has taken; and how two results compare.

A sample is a dict: `part` of the experiment, `system`, `x` (what varies in the part: rows, outstanding
operations, ...), `repeat`, `problem`, and what was measured (systems.py). Samples with a problem are
counted, told of, and used for nothing else.
"""

import base64
import csv
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from markdown_it import MarkdownIt  # rich brings it
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.tables import Cell, Spread, Table, markdown, shown, spread
from paxoskv.config import WAYS

Sample = dict[str, Any]

NAMES: Final = {
    "classic": "Paxos, classic",
    "leader": "Paxos, leader",
    "own-logs": "Paxos, own-logs",
    "paxos": "Paxos, own-logs, linearizable reads",
    "single": "RPC (single server)",
    "etcd": "etcd",
    "pysyncobj": "PySyncObj",
    "floor": "floor",
}
# Colours that the colour-blind can tell apart (Okabe and Ito), and markers for those who see none.
LOOKS: Final = {
    "classic": ("#D55E00", "P"),
    "leader": ("#56B4E9", "X"),
    "own-logs": ("#E69F00", "s"),
    "paxos": ("#0072B2", "o"),
    "single": ("#009E73", "^"),
    "etcd": ("#CC79A7", "D"),
    "pysyncobj": ("#555555", "v"),
    "floor": ("#000000", "*"),
}
# What the original experiment measured: Paxos and the single server, as they stand in its three tables.
ORIGINAL: Final = {
    150: {"mean_s": ("0.0195", "0.0022"), "stddev_s": ("0.01339453", "0.00111"),
          "per_process": ("51.40310118", "462.8916")},
    450: {"mean_s": ("0.0254", "0.0021"), "stddev_s": ("0.01492", "0.00113"),
          "per_process": ("39.41675866", "472.0603")},
    1500: {"mean_s": ("0.0217", "0.0022"), "stddev_s": ("0.019149511", "0.00110"),
           "per_process": ("46.07453089", "451.8850")},
    15000: {"mean_s": ("0.0302", "0.0022"), "stddev_s": ("0.014405944", "0.00110"),
            "per_process": ("33.15368483", "455.6453")},
}  # fmt: skip
COSTS: Final = {
    "prepares": "Prepares",
    "accepts": "Accepts",
    "refused": "refusals",
    "ballots": "ballots",
    "messages": "messages between nodes",
    "message_bytes": "bytes of these",
    "frames_sent": "frames sent, answers to clients included",
    "fsyncs": "fsyncs",
    "journal_bytes": "journal bytes",
    "cpu_us": "CPU us",
    "memory_bytes": "memory bytes, worst node",
}
Metric = tuple[str, str, float]  # heading, name, and what to multiply it by
TIMES: Final[tuple[Metric, ...]] = (
    ("operations per second", "throughput", 1), ("mean, ms", "mean_s", 1000),
    ("standard deviation, ms", "stddev_s", 1000), ("p50, ms", "p50_s", 1000), ("p95, ms", "p95_s", 1000),
    ("p99, ms", "p99_s", 1000), ("maximum, ms", "max_s", 1000),
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------- numbers


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
    """A metric of a sample; per_process is the throughput of one closed-loop client process."""
    if metric == "per_process":
        return 1 / sample["mean_s"] if sample.get("mean_s") else None
    outer, _, inner = metric.partition(".")
    value = sample.get(outer)
    return value.get(inner) if inner and value else value


def ratio(samples: Sequence[Sample], one: tuple[str, str, float], other: tuple[str, str, float],
          metric: str) -> Cell:  # fmt: skip
    """One point's metric over another's, repeat by repeat: what drifts with time touches both alike."""
    ones, others = (
        {s["repeat"]: value for s in good(chosen(samples, *where)) if (value := _value(s, metric))}
        for where in (one, other)
    )
    return spread([ones[repeat] / others[repeat] for repeat in sorted(ones.keys() & others.keys())])


def points(samples: Iterable[Sample], *parts: str) -> list[float]:
    """The values of x in these parts, ascending."""
    return sorted({sample["x"] for sample in samples if sample["part"] in parts})


def systems(samples: Iterable[Sample], part: str) -> list[str]:
    """The systems measured in a part, in the order of NAMES."""
    found = {sample["system"] for sample in samples if sample["part"] == part}
    return [system for system in NAMES if system in found]


def distribution(samples: Iterable[Sample]) -> list[tuple[float, float]]:
    """The median, over samples, of each quantile: (share, seconds)."""
    curves = [sample["quantiles"] for sample in good(samples) if sample.get("quantiles")]
    return [(rank[0][0], statistics.median(s for _, s in rank)) for rank in zip(*curves, strict=True)]


# ----------------------------------------------------------------------------------------------------- tables


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
    """The three tables of the original experiment: its figures beside ours, and ratio beside ratio."""
    found = {*systems(samples, "original"), *systems(samples, "tables")}
    ways = [way for way in NAMES if way in found & {*WAYS}]
    columns = [*ways, "single"]
    heads = [*ways, "RPC (single)"]
    head = ["DataLoad", "acceptors", *heads, "original's Paxos", "original's RPC",
            *(f"{way} : RPC" for way in ways), "original's Paxos : RPC"]  # fmt: skip
    tables = []
    for name, title, metric in (
        ("mean", "Average time per transaction, s", "mean_s"),
        ("stddev", "Standard deviation of the time per transaction, s", "stddev_s"),
        ("throughput", "Average throughput of one client process, operations per second", "per_process"),
    ):
        more = name == "throughput"
        rows = [
            _original_row(samples, part, x, metric, ways)
            + [
                point(samples, "tables" if n == "single" else part, n, x, "throughput")
                for n in columns * more
            ]
            for x in points(samples, "original", "tables")
            for part in ("original", "tables")
        ]
        total = [f"{name}, all processes" for name in heads * more]
        tables.append(Table(f"original-{name}", f"{title}: the original's layout", head + total, rows))
    return tables


def _original_row(
    samples: Sequence[Sample], part: str, x: float, metric: str, ways: Sequence[str]
) -> list[Cell]:
    """A row of the original's layout: with acceptors that fail, and its figures, or with healthy ones."""
    single = ("tables", "single", x)
    then = ORIGINAL.get(int(x), {}).get(metric) if part == "original" else None
    return [
        f"{x:g}",
        "fail at random" if part == "original" else "healthy",
        *(point(samples, part, way, x, metric) for way in ways),
        point(samples, *single, metric),
        *(then or ("", "")),
        *(ratio(samples, (part, way, x), single, metric) for way in ways),
        f"{float(then[0]) / float(then[1]):.3g}" if then else "",
    ]


def listing(samples: Sequence[Sample], part: str, title: str, label: str, metrics: Sequence[Metric],
            show: Callable[[float], str] = "{:g}".format, xs: Sequence[float] = ()) -> Table:  # fmt: skip
    """A part as a table: a row for each x and system, a column for each metric.

    Where they were measured, the ratio of Paxos's throughput to the system's, and the system's share of the
    floor's, follow.
    """
    names = systems(samples, part)
    over = "paxos" in names and len(names) > 1 and metrics[0][1] == "throughput"
    floor = over and "floor" in names
    head = [label, "system", *(heading for heading, _, _ in metrics)]
    head += [f"{NAMES['paxos']} : it"] * over + ["share of the floor"] * floor
    rows: list[list[Cell]] = []
    for x in xs or points(samples, part):
        for name in names:
            row: list[Cell] = [show(x), NAMES[name]]
            row += [point(samples, part, name, x, metric, scale) for _, metric, scale in metrics]
            here = (part, name, x)
            row += [ratio(samples, (part, "paxos", x), here, "throughput") if name != "paxos" else ""] * over
            row += [ratio(samples, here, (part, "floor", x), "throughput") if name != "floor" else ""] * floor
            rows.append(row)
    return Table(part, title, head, rows)


def costs(samples: Sequence[Sample], part: str, label: str) -> Table:
    """What one operation costs all nodes together, by their counters."""
    measured = [sample for sample in samples if sample["part"] == part and sample.get("cost")]
    found = {name for sample in measured for name in sample["cost"]}
    metrics = [(heading, f"cost.{name}", 1.0) for name, heading in COSTS.items() if name in found]
    title = f"Cost per operation, all nodes together, by {label}"
    return listing(measured, part, title, label, metrics)._replace(name=f"cost-{part}")


def failures_table(samples: Sequence[Sample]) -> Table:
    """What is left of the throughput where acceptors fail on purpose."""
    base = ("failures", "paxos", 0.0)
    rows: list[list[Cell]] = [
        [f"{x:.0%}", point(samples, "failures", "paxos", x, "throughput"),
         point(samples, "failures", "paxos", x, "p99_s", 1000),
         ratio(samples, ("failures", "paxos", x), base, "throughput")]
        for x in points(samples, "failures")
    ]  # fmt: skip
    head = ["messages lost", "operations per second", "p99, ms", "of that without"]
    return Table("failures", "Acceptors fail on purpose, for a share of the messages", head, rows)


def all_tables(samples: Sequence[Sample]) -> list[Table]:
    """Every table that the samples give."""
    tables = original_tables(samples) if points(samples, "original", "tables") else []
    both = (TIMES[0], TIMES[5])
    killed = (("back at 90 % of the throughput after, s", "recovered_s", 1),
              ("longest time without an answer, s", "gap_s", 1))  # fmt: skip
    batches = (("commands per second", "throughput", 1), ("p99 of a batch, ms", "p99_s", 1000))
    for part, title, label, metrics, show in (
        ("tables", "The original's operations from two closed-loop clients", "operations", TIMES, "{:g}"),
        ("scaling", "Scaling: half GET, half PUT", "outstanding", both, "{:g}"),
        ("mix", "Reads and writes at 32 outstanding operations", "share of GET", both, "{:.0%}"),
        ("batches", "execute: batches of 100 PUTs from two processes, until all nodes have applied them",
         "batches in flight, each", batches, "{:g}"),
        ("leader", "A standing leader, two closed-loop clients: half GET, half PUT, all through the log",
         "clients are at the leader (1), or at another node (0)", both, "{:g}"),
        ("fault", "A node is killed under load", "node killed", killed, "one of five, kill -9"),
    ):  # fmt: skip
        if points(samples, part):
            tables.append(listing(samples, part, title, label, metrics, show.format))
    for part, label in (("scaling", "outstanding operations"), ("original", "operations, acceptors failing"),
                        ("tables", "operations")):  # fmt: skip
        if any(sample.get("cost") for sample in samples if sample["part"] == part):
            tables.append(costs(samples, part, label))
    return tables + [failures_table(samples)] * bool(points(samples, "failures"))


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
    """One of the original's three tables as a chart: a group of bars for each number of operations."""
    figure, (axes,) = _figure(title, [("operations", unit)])
    xs = points(samples, "original", "tables")
    series: list[tuple[str, str, str, list[Cell]]] = []
    for part, more, hatch in (("original", ", acceptors failing", "//"), ("tables", "", "")):
        for name in systems(samples, part):
            if name in (*WAYS, "single"):
                cells = [point(samples, part, name, x, metric, scale) for x in xs]
                series.append((NAMES[name] + more, LOOKS[name][0], hatch, cells))
    for i, name in enumerate(("Paxos", "RPC")):
        then = [float(ORIGINAL[int(x)][metric][i]) * scale if x in ORIGINAL else None for x in xs]
        cells = ["" if value is None else spread([value]) for value in then]
        series.append((f"original's {name}", ("#999999", "#CCCCCC")[i], "", cells))
    width = 0.8 / len(series)
    for i, (label, colour, hatch, cells) in enumerate(series):
        found = [(j, cell) for j, cell in enumerate(cells) if isinstance(cell, Spread)]
        errors = [[c.median - c.low for _, c in found], [c.high - c.median for _, c in found]]
        axes.bar([j + (i - (len(series) - 1) / 2) * width for j, _ in found], [c.median for _, c in found],
                 width * 0.95, yerr=errors, capsize=2, label=label, color=colour, hatch=hatch)  # fmt: skip
    axes.set_xticks(range(len(xs)), [f"{x:,.0f}" for x in xs])
    figure.legend(loc="outside lower center", ncols=3)
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
    if points(good(samples), "original", "tables"):
        charts["mean"] = bars(samples, "mean_s", 1000, "Average time per transaction", "ms")
        charts["stddev"] = bars(samples, "stddev_s", 1000, "Standard deviation of the time", "ms")
        title = "Throughput of one client process"
        charts["throughput"] = bars(samples, "per_process", 1, title, "operations per second")
    if sizes := points(good(samples), "tables"):
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
table {{ display: block; overflow-x: auto; border-collapse: collapse; font-size: 0.85rem;
  font-variant-numeric: tabular-nums; }}
th, td {{ border: 1px solid light-dark(#ccc, #444); padding: 0.3rem 0.6rem; }}
th {{ background: light-dark(#f0f0f0, #262a30); }}
img {{ max-width: 100%; background: #fff; border-radius: 6px; margin: 0.5rem 0; }}
</style></head><body>
<h1>Measurements</h1>
{body}
</body></html>
"""
NOTE = (
    "Median of the repeats (lowest-highest). All systems ran in turn, started afresh. "
    "Runs with failed operations are marked and are part of no number. The original is a course project "
    "that compared multi-Paxos with a single RPC server; its figures stand here with all their digits. Its "
    "throughput is the reciprocal of its mean time: that of one client process. Ours is shown so, too, "
    "beside that of all client processes. Classic, leader and own-logs are our ways to propose, with reads "
    "through the log, as the original's were. Acceptors that fail at random lose 5 % of the messages, and "
    "are silent for a second, once in ten seconds on average. The floor is what the frames, wake-ups and "
    "fsyncs of own-logs cost in C, with neither protocol nor state. etcd and PySyncObj, where shown, have "
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


def text_of(samples: Sequence[Sample], tables: Sequence[Table], charts: dict[str, Figure],
            source: Callable[[str], str]) -> str:  # fmt: skip
    """Tables and charts in Markdown; a chart, which is found at its source, stands behind its table."""
    pictures = {name: f"![{figure.get_suptitle()}]({source(name)})\n" for name, figure in charts.items()}
    lines = [NOTE, ""]
    for table in tables:
        lines.append(markdown(table))
        lines += [pictures.pop(name) for name in [table.name.removeprefix("original-")] if name in pictures]
    lines += pictures.values()
    if marked := problems(samples):
        lines += ["### Runs that are not used", "", *(f"- {problem}" for problem in marked), ""]
    return "\n".join(lines)


def write(directory: Path) -> None:
    """Make tables, charts and the page of the results (results.json, manifest.json) in this directory."""
    samples: list[Sample] = json.loads((directory / "results.json").read_text())
    manifest = json.loads((directory / "manifest.json").read_text())
    tables, charts = all_tables(samples), all_charts(samples)
    for table in tables:
        write_csv(table, directory / f"{table.name}.csv")
    for name, figure in charts.items():
        figure.savefig(directory / f"{name}.svg", metadata={"Date": None})
        figure.savefig(directory / f"{name}.png", dpi=120)
    text = text_of(samples, tables, charts, "{}.png".format)
    (directory / "tables.md").write_text(text, encoding="utf-8")

    def inside(name: str) -> str:
        picture = base64.b64encode((directory / f"{name}.png").read_bytes()).decode()
        return f"data:image/png;base64,{picture}"

    facts = "".join(f"- {name}: `{json.dumps(value)}`\n" for name, value in manifest.items())
    text = text_of(samples, tables, charts, inside) + f"\n### Machine and settings\n\n{facts}"
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    (directory / "report.html").write_text(PAGE.format(body=body), encoding="utf-8")


# -------------------------------------------------------------------------------------------------- documents

IN_PERFORMANCE = (
    "original-mean", "original-stddev", "original-throughput", "tables", "scaling", "mix", "batches",
    "leader", "cost-scaling", "fault", "failures",
)  # fmt: skip
CHARTS_IN_PERFORMANCE = ("mean", "stddev", "throughput", "scaling")
CHART_IN_README = "scaling"
BEGIN, END = "<!-- measured -->", "<!-- end of measured -->"


def command(settings: dict[str, Any]) -> str:
    """The command that measures the same again."""
    options = []
    for name, value in settings.items():
        words = value if isinstance(value, list) else [value]
        if words:
            text = ",".join(f"{word:g}" if isinstance(word, float) else str(word) for word in words)
            options.append(f"--{name.replace('_', '-')} {text}")
    return " ".join(["scripts/bench.sh --readme", *options])


def summary(samples: Sequence[Sample]) -> list[Table]:
    """The table of the README: a row for each system, at the largest size of the original tables."""
    return [
        listing(samples, "tables", f"{x:,.0f} operations from two closed-loop clients", "operations",
                (TIMES[0], TIMES[1], TIMES[5]), xs=[x])
        for x in points(samples, "tables")[-1:]
    ]  # fmt: skip


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
    tables = [table for table in all_tables(samples) if table.name in IN_PERFORMANCE]
    charts = {n: figure for n, figure in all_charts(samples).items() if n in CHARTS_IN_PERFORMANCE}
    for name, figure in charts.items():
        figure.savefig(docs / "charts" / f"{name}.svg", metadata={"Date": None})
    long = [said, "", text_of(samples, tables, charts, "charts/{}.svg".format)]
    short = [said, "", *map(markdown, summary(samples))]
    if chart := charts.get(CHART_IN_README):
        short[2:2] = [f"![{chart.get_suptitle()}](docs/charts/{CHART_IN_README}.svg)", ""]
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
                layout.format(part, system, f"{x:g}", name, shown(a), shown(b), share, verdict(a, b))
            )
    if ones != others:
        lines.append(f"left out: {len(ones - others)} points that only A has, {len(others - ones)} of B")
    return "\n".join(lines)
