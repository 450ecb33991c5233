"""Reports of a workload's run: a summary, a table for people, operations.csv, and a history for checkers."""

import csv
import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, TextIO

from paxoskv.client.rows import VERBS
from paxoskv.client.workload import Done, Run

LATENCIES: Final = ("mean_s", "stddev_s", "p50_s", "p95_s", "p99_s", "p999_s", "max_s")
OUTCOMES: Final = ("ok", "not_found", "failed", "unknown")


def latency(seconds: Sequence[float]) -> dict[str, float | None]:
    """Return statistics in seconds, each None if there is no latency; percentiles are nearest ranks."""
    if not seconds:
        return dict.fromkeys(LATENCIES)
    ranked = sorted(seconds)

    def percentile(share: float) -> float:
        return ranked[max(math.ceil(share * len(ranked)), 1) - 1]

    return {
        "mean_s": statistics.fmean(ranked),
        "stddev_s": statistics.stdev(ranked) if len(ranked) > 1 else 0.0,
        "p50_s": percentile(0.50),
        "p95_s": percentile(0.95),
        "p99_s": percentile(0.99),
        "p999_s": percentile(0.999),
        "max_s": ranked[-1],
    }


def _tally(operations: Sequence[Done]) -> dict[str, Any]:
    """Count the outcomes, and measure the latencies of answered operations; failures would distort them."""
    counts = {name: sum(done.outcome == name for done in operations) for name in OUTCOMES}
    answered = [done.latency_s for done in operations if done.answered]
    return {"operations": len(operations), **counts, "latency": latency(answered)}


def summary(result: Run, malformed: int) -> dict[str, Any]:
    """Return the content of summary.json; its seconds run from the first start to the last end.

    What started in the warm-up is left out, and only counted.
    """
    operations = [d for d in result.operations if not d.started or (d.due or d.started) >= result.measured]
    total = _tally(operations)
    ends = [done.ended for done in operations if done.ended]
    seconds = (max(ends) - min(d.due or d.started for d in operations if d.started)) / 1e9 if ends else 0.0
    answered = total["ok"] + total["not_found"]
    overall = total.pop("latency")
    return {
        **total,
        "malformed": malformed,
        "warmup_operations": len(result.operations) - len(operations),
        "seconds": seconds,
        "throughput_ops_s": answered / seconds if seconds else 0.0,
        "latency": overall,
        "verbs": {verb: _tally([d for d in operations if d.row.verb == verb]) for verb in VERBS},
        "interrupted": result.interrupted,
    }


def exit_code(result: Run) -> int:
    """Return 0: all done, 130: interrupted, 3: no node reachable, 4: outcomes unknown, or 1: other failures.

    A process that died is a failure, whatever the other processes did. Otherwise an unknown outcome counts
    more than a failure, because a failed operation can simply be sent again.
    """
    outcomes = {done.outcome for done in result.operations}
    if result.interrupted:
        return 130
    if result.unreachable is not None:
        return 3
    if result.dead:
        return 1
    if "unknown" in outcomes:
        return 4
    return 1 if "failed" in outcomes else 0


def table(totals: dict[str, Any]) -> str:
    """Return the summary as a table for people; latencies are in milliseconds."""
    head = f"{'':8}{'operations':>11}{'ok':>9}{'not found':>11}{'failed':>8}{'unknown':>9}"
    head += "".join(f"{name:>9}" for name in ("mean ms", "stddev", "p50", "p95", "p99", "p99.9", "max"))
    lines = [head]
    for name, part in [("all", totals), *totals["verbs"].items()]:
        line = f"{name:8}{part['operations']:>11}{part['ok']:>9}{part['not_found']:>11}"
        line += f"{part['failed']:>8}{part['unknown']:>9}"
        line += "".join(f"{'-' if s is None else f'{s * 1000:.3f}':>9}" for s in part["latency"].values())
        lines.append(line)
    lines.append(
        f"{totals['operations']} operations, {totals['failed']} failed, {totals['unknown']} unknown, "
        f"{totals['malformed']} malformed, in {totals['seconds']:.3f} s: "
        f"{totals['throughput_ops_s']:,.0f} operations per second"
        + (" (interrupted)" if totals["interrupted"] else "")
    )
    return "\n".join(lines)


def write_operations(file: TextIO, result: Run) -> None:
    """Write operations.csv: a line for each row that was sent, or was left over by a process that died."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["index", "process", "node", "verb", "key", "start_ns", "latency_s", "outcome", "attempts"]
    )
    for done in result.operations:
        start = (done.due or done.started) + result.epoch_ns if done.started else ""
        seconds = f"{done.latency_s:.9f}" if done.ended else ""
        writer.writerow([done.number, done.process, done.node, done.row.verb, done.row.key, start, seconds,
                         done.outcome, done.attempts])  # fmt: skip


def live(ended: Sequence[Done], seconds: float) -> str:
    """Return a line about what has ended in the last seconds."""
    failed = sum(not done.answered for done in ended)
    shown = latency([done.latency_s for done in ended if done.answered])
    times = "".join(f"  {name} {1000 * (shown[f'{name}_s'] or 0):.1f} ms" for name in ("p50", "p99"))
    nodes = sorted(Counter(done.node for done in ended if done.node).items())
    each = " ".join(f"{node}: {count / seconds:,.0f}" for node, count in nodes)
    return f"{len(ended) / seconds:,.0f}/s{times}  {failed} failed  by node {each}"


def write_timeseries(file: TextIO, result: Run) -> None:
    """Write timeseries.csv: a line for each second of the run, of what ended in it."""
    seconds: dict[int, list[Done]] = {}
    for done in result.operations:
        if done.ended:
            seconds.setdefault(int((done.ended - result.began) / 1e9), []).append(done)
    nodes = sorted({done.node for done in result.operations if done.node})
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["second", "operations", *OUTCOMES, *LATENCIES, *(f"node_{node}" for node in nodes)])
    for second in range(max(seconds, default=-1) + 1):
        part = _tally(ended := seconds.get(second, []))
        times = ("" if value is None else f"{value:.6f}" for value in part["latency"].values())
        counts = Counter(done.node for done in ended)
        writer.writerow([second, len(ended), *(part[name] for name in OUTCOMES), *times,
                         *(counts[node] for node in nodes)])  # fmt: skip


def write_history(file: TextIO, result: Run, in_flight: int) -> None:
    """Write the history as JSON lines, for checkers of linearizability; times are ns by the monotonic clock.

    Operations that were not sent are left out, and reads without an answer, because they say nothing. A write
    of unknown outcome has no return: it may still happen.
    """
    for done in result.operations:
        if not done.started or (done.row.verb == "GET" and not done.ended):
            continue
        unknown = done.outcome == "unknown"
        line = {
            "client": done.process * in_flight + done.lane,
            "operation": done.row.verb.lower(),
            "key": done.row.key,
            "arguments": {"value": done.row.value} if done.row.verb == "PUT" else {},
            "answer": done.answer,
            "call_ns": done.started,
            "return_ns": None if unknown else done.ended,
            "outcome": done.outcome,
        }
        file.write(json.dumps(line) + "\n")
