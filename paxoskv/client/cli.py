"""The command line of the client; `client.py --help` shows the commands."""

import argparse
import asyncio
import json
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

from paxoskv import program
from paxoskv.client import explain, health, report, rows, transactions, transfer, workload
from paxoskv.client.arguments import OPEN_LOOP_IN_FLIGHT, parse
from paxoskv.client.base import ATTEMPT_TIMEOUT_S, addresses_of
from paxoskv.client.operations import ClientError, NoNodeReachable, UnknownOutcome, WrongCluster
from paxoskv.client.output import (
    DATA,
    DONE,
    INTERRUPTED,
    NEGATIVE,
    OUTPUT,
    UNKNOWN,
    UNREACHABLE,
    USAGE,
    Output,
    Progress,
    remark,
    say,
)
from paxoskv.client.scanning import Scan
from paxoskv.client.sync import Client
from paxoskv.client.watching import place_text
from paxoskv.config import Cluster, ClusterError, address_text, load, parse_address
from paxoskv.wire.structs import Outcome

# Seconds to wait for a first node that accepts a connection: a cluster that was just started takes some.
FIRST_NODE_S: Final = 5.0
# Seconds between two attempts to connect meanwhile.
RETRY_S: Final = 0.1
HEALTH_FIELDS: Final = ("address", "ok", "write_s", "read_s", "error")
OUTCOMES: Final = {Outcome.OK: "ok", Outcome.NOT_FOUND: "not_found"}
# Malformed rows that are reported one by one.
MAX_TOLD: Final = 20


class UsageError(Exception):
    """An argument or a file cannot be used; the message is one line."""


class OutputError(Exception):
    """A file cannot be written; the message is one line."""


class DataError(Exception):
    """A file of operations cannot be used; the message is one line."""


@contextmanager
def _reading(file: str) -> Iterator[str]:
    """Read a file that the command line names, or stdin for "-": what messages call it, and its errors."""
    path = "stdin" if file == "-" else file
    try:
        yield path
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (ValueError, rows.WrongFile) as error:
        raise DataError(f"{path}: {error}") from None


# -------------------------------------------------------------------------------------------------- commands


def _put(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    client.put(arguments.key, arguments.value, arguments.ttl)
    output.answer("ok", {"outcome": "ok"})
    return DONE


def _get(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    value = client.get(arguments.key, arguments.read, arguments.node)
    if value is None:
        return _not_found(arguments, output)
    output.answer(output.shown(value, keep="\n\t"), {"outcome": "ok", "value": value})
    return DONE


def _delete(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    if not client.delete(arguments.key):
        return _not_found(arguments, output)
    output.answer("ok", {"outcome": "ok"})
    return DONE


def _not_found(arguments: argparse.Namespace, output: Output) -> int:
    return output.negative(f"{arguments.key!r}: not found", {"outcome": "not_found"})


def _cas(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    if arguments.absent == (len(arguments.values) == 2):
        raise UsageError("cas: give KEY EXPECTED VALUE, or KEY --absent VALUE")
    expected = None if arguments.absent else arguments.values[0]
    done, actual = client.compare_and_set(arguments.key, expected, arguments.values[-1])
    if done:
        output.answer("ok", {"outcome": "ok"})
        return DONE
    found = "does not exist" if actual is None else f"holds {actual!r}"
    mismatch = {"outcome": "mismatch", "value": actual}
    return output.negative(f"{arguments.key!r}: {found}; nothing was set", mismatch)


def _incr(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    total = client.increment(arguments.key, arguments.delta)
    output.answer(str(total), {"outcome": "ok", "value": total})
    return DONE


def _transaction(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    with _reading(arguments.file):
        wanted = transactions.parse(rows.read(arguments.file))
    done = client.transaction(*wanted)
    actions = wanted.then_do if done.held else wanted.else_do
    answers: list[dict[str, Any]] = [
        {"key": action.key, "outcome": OUTCOMES[answer.outcome], "value": answer.value}
        for action, answer in zip(actions, done.answers, strict=True)
    ]
    if output.as_json:
        output.write(json.dumps({"outcome": "then" if done.held else "else", "answers": answers}))
    else:
        output.write("then" if done.held else "else")
        for answer in answers:
            what = answer["outcome"] if answer["value"] is None else output.shown(answer["value"])
            output.write(f"{output.shown(answer['key'])}\t{what}")
    return DONE if done.held else NEGATIVE


def _scan(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    if arguments.count:
        count = client.count(
            arguments.prefix, arguments.read, arguments.node, start=arguments.start, end=arguments.end
        )
        count = count if arguments.limit is None else min(count, arguments.limit)
        output.answer(str(count), {"count": count})
        return DONE
    scan = client.scan(
        arguments.prefix, "", arguments.limit, arguments.read, arguments.node, start=arguments.start,
        end=arguments.end, reverse=arguments.reverse, keys_only=arguments.keys_only,
    )  # fmt: skip
    for item in scan:
        line, answer = output.shown(item.key), {"key": item.key}
        if not arguments.keys_only:
            line, answer = f"{line}\t{output.shown(item.value)}", {**answer, "value": item.value}
        if not output.answer(line, answer):
            break  # nobody reads it
    if not scan.of_one_state:
        remark("scan: the pages are not all of one state: keys were written meanwhile")
    return DONE


def _watch(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    watch = client.watch(arguments.prefix, arguments.after)
    if watch.place is not None:
        remark(f"watching from {place_text(watch.place)} on")
    for change in islice(watch, arguments.count):
        shown = [place_text(change.place), "delete" if change.value is None else "put"]
        shown += [output.shown(text) for text in (change.key, change.value) if text is not None]
        value = {"place": shown[0], "key": change.key, "value": change.value}
        if not output.answer("\t".join(shown), value) or not output.flush():
            break  # nobody reads it
    return DONE


def _export(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    def scan(after: str) -> Scan:
        return client.scan(arguments.prefix, after, None, arguments.read, arguments.node)

    path, last = arguments.file, None
    if path == "-":
        items = scan("")
        for item in items:
            if not output.write(transfer.line_of(item)):
                break  # nobody reads it
    else:
        try:
            with _to_export(Path(path), arguments.resume) as file:
                last = transfer.last_key(file)
                items = scan(last or "")
                count = transfer.export(items, file)
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}") from None
        except ValueError as error:
            raise DataError(f"{path}: it is no export: its last line: {error}") from None
        whole = last is None and items.of_one_state
        output.answer(f"{count:,} keys", {"keys": count, "of_one_state": whole})
    if last is not None or not items.of_one_state:
        say("export: the lines are not all of one state: keys may have been written since the first of them")
    return DONE


def _to_export(path: Path, resume: bool) -> Any:
    """Open the file of an export; one with something in it only if the export is to go on."""
    old = path.stat() if path.exists() else None
    if old is not None and not stat.S_ISREG(old.st_mode):
        raise UsageError(f"{path}: it is no regular file: give - to write to stdout")
    if old is not None and old.st_size and not resume:
        raise UsageError(f"{path}: it is there already: --resume goes on after its last line")
    return path.open("a+b")


def _import(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    with _reading(arguments.file) as path:
        try:
            with sys.stdin.buffer if arguments.file == "-" else Path(path).open("rb") as file:
                count = transfer.import_(client, file, arguments.skip)
        except transfer.Stopped as stopped:
            if stopped.lines > arguments.skip or not isinstance(stopped.cause, transfer.WrongLine):
                say(f"import: {stopped.lines:,} lines of {path} are done: go on with --skip {stopped.lines}")
            if isinstance(stopped.cause, transfer.WrongLine):
                raise DataError(f"{path}:{stopped}") from None
            raise stopped.cause from None
    output.answer(f"{count:,} keys", {"keys": count})
    return DONE


def _dump(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    for item in client.scan(read="local", node=arguments.node):
        if not output.write(json.dumps({"key": item.key, "value": item.value})):
            break  # nobody reads it
    return DONE


def _checkpoint(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    nodes = [node.id for node in client.nodes] if arguments.node is None else [arguments.node]
    failures = []
    for node in nodes:
        try:
            number = client.checkpoint(node)
        except ClientError as failure:  # the other nodes still make theirs
            failures.append(failure)
            continue
        where = "" if arguments.single else f"node {node}: "
        output.answer(f"{where}checkpoint {number}", {"node": node, "checkpoint": number})
    for error in failures[:-1]:
        output.complain(error)
    if failures:
        raise failures[-1]
    return DONE


def _replace(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    if arguments.single or arguments.id not in [node.id for node in client.nodes]:
        raise UsageError(f"replace: there is no node {arguments.id}")
    try:
        parse_address(arguments.address)
    except ValueError as error:
        raise UsageError(f"replace: {error}") from None
    client.replace_node(arguments.id, arguments.address)
    output.write(json.dumps(_file_now(arguments.cluster, client, arguments.id, arguments.address), indent=2))
    remark(f"start it with this file: server.py --id {arguments.id} --rejoin, or with the data that it had")
    return DONE


def _file_now(file: str, client: Client, node: int, address: str) -> dict[str, Any]:
    """Return the cluster's file with all addresses as they are now, and with where each node was at first."""
    content: dict[str, Any] = json.loads(Path(file).read_text())
    now = {known.id: (known.host, known.port) for known in client.nodes} | {node: parse_address(address)}
    for member in content["nodes"]:
        before = parse_address(address_text(member["host"], member["port"]))
        if now[member["id"]] != before:
            member.setdefault("first_address", address_text(*before))
            member["host"], member["port"] = now[member["id"]]
    return content


def _trace(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    if arguments.what != "show":
        output.write("\n".join(explain.switch(client, arguments.what == "on")))
        return DONE
    events, missing = explain.gathered(client)
    for event in events:
        if not output.write(json.dumps(event)):
            break  # nobody reads it
    for line in missing:
        output.complain(line)
    return NEGATIVE if missing else DONE


def _explain(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    given = [value is not None for value in (arguments.key, arguments.log, arguments.slot)]
    if given not in ([True, False, False], [False, True, True]):
        raise UsageError("explain: give KEY, or --log and --slot")
    drawn = explain.drawing(client, arguments)

    def write(text: str) -> bool:
        return output.write(output.shown(text.rstrip("\n"), keep="\n"))

    try:
        if not drawn.save(vars(arguments), write):
            write(drawn.text())
    except OSError as error:
        raise OutputError(f"{error.filename}: {error.strerror}") from None
    return DONE


def _status(arguments: argparse.Namespace, output: Output) -> int:
    """Show the state of all nodes, or of one; negative if a node is silent, not ready, or different."""

    def show(views: Sequence[health.View]) -> bool:
        if output.as_json:
            text = json.dumps(health.as_data(views))
        else:
            text = health.as_colored(views) if output.terminal else health.as_text(views)
        output.write(text)
        return output.flush()

    live = output.terminal and not output.as_json
    views = asyncio.run(health.status(
        _known(arguments), arguments.node, show, timeout=arguments.timeout, digest=arguments.digest,
        every=arguments.watch, live=live,
    ))  # fmt: skip
    if unreached := _unreached([view.error for view in views]):
        return unreached
    well = all(view.status and view.status.ready for view in views)
    return DONE if well and not any(row.differs for row in health.rows(views)) else NEGATIVE


def _health(arguments: argparse.Namespace, output: Output) -> int:
    """Try a write and a read at each node; negative if one of them fails."""
    checks = asyncio.run(health.health(_known(arguments), arguments.node or (), arguments.timeout))
    failed = [check for check in checks if check.error]
    if output.as_json:
        lines = [{"address": str(check.node), "ok": not check.error, **check._asdict()} for check in checks]
        output.write(json.dumps([{name: line[name] for name in HEALTH_FIELDS} for line in lines]))
    for check in checks:
        if check.error:
            output.complain(f"{check.node}: {check.error}")
        elif not output.as_json:
            write_ms, read_ms = 1000 * (check.write_s or 0), 1000 * (check.read_s or 0)
            output.write(f"{check.node}: write {write_ms:.1f} ms, read {read_ms:.1f} ms")
    return _unreached([check.cause for check in checks]) or (NEGATIVE if failed else DONE)


def _unreached(errors: Sequence[ClientError | None]) -> int | None:
    """Return the exit code if no node was reached; None if one was."""
    if not all(isinstance(error, NoNodeReachable) for error in errors):
        return None
    return USAGE if any(isinstance(error, WrongCluster) for error in errors) else UNREACHABLE


def _known(arguments: argparse.Namespace) -> Cluster | str:
    """Return the cluster, after checking that it has the nodes asked for and usable certificates."""
    _client(arguments).close()
    return _cluster(arguments)


def _one(
    command: Callable[[Client, argparse.Namespace, Output], int],
    arguments: argparse.Namespace,
    output: Output,
) -> int:
    """Run a single command with a client of its own."""
    with _client(arguments) as client:
        _connect(client, arguments.timeout)
        return command(client, arguments, output)


def _connect(client: Client, timeout: float) -> None:
    """Connect to the nodes; if there is none yet, wait for the first one, because one may be starting."""
    deadline = time.monotonic() + min(FIRST_NODE_S, timeout)
    told = False
    while True:
        try:
            client.connect(min(ATTEMPT_TIMEOUT_S, timeout))
            return
        except NoNodeReachable as error:
            if isinstance(error, WrongCluster) or time.monotonic() + RETRY_S > deadline:
                raise
        if not told:
            told = True
            names = ", ".join(map(str, client.nodes))
            remark(f"waiting up to {min(FIRST_NODE_S, timeout):g} s for a node to answer: {names}")
        time.sleep(RETRY_S)


def _cluster(arguments: argparse.Namespace) -> Cluster | str:
    if not arguments.single:
        return load(arguments.cluster)
    single: str = arguments.single
    try:
        addresses_of(single)
    except ValueError as error:
        raise UsageError(f"--single: {error}") from None
    return single


def _client(arguments: argparse.Namespace) -> Client:
    """Make a client, not connected yet; raise UsageError for wrong addresses, certificates or nodes."""
    try:
        client = Client(_cluster(arguments), timeout=arguments.timeout)
    except OSError as error:
        raise UsageError(f"tls: {error}") from None
    asked = getattr(arguments, "node", None)
    for node in asked if isinstance(asked, list) else [asked]:
        if node is not None and node not in [known.id for known in client.nodes]:
            raise UsageError(f"--node: there is no node {node}")
    return client


# ------------------------------------------------------------------------------------------------------- run


def _run(arguments: argparse.Namespace, output: Output) -> int:
    """Run a file of operations."""
    with _client(arguments) as client:  # so that an error in the cluster's file is reported now, and once
        operations, lost = _rows(arguments, output)
        settings, total = _settings(arguments, len(operations))
        # Opened first, so that no run begins whose results cannot be written.
        files = [(path, _open(path), write) for path, write in _results(arguments, settings.in_flight)]
        _connect(client, arguments.timeout)
    with Progress(total) as progress:
        result = workload.run(operations, settings, lambda ended: progress.show(ended, report.live))
    for error in (*result.dead, *result.errors):
        output.complain(error)
    if not result.operations and result.unreachable is not None:
        return output.error("unreachable", result.unreachable, UNREACHABLE)
    totals = report.summary(result, lost)
    written = [
        _write(path, file, partial(write, result=result, totals=totals), output)
        for path, file, write in files
    ]
    table = report.table(totals)
    output.answer(table, totals)
    if not output.flush() and not isinstance(output.failure, BrokenPipeError):
        say(table)  # a measurement is not lost because a disk is full
    code = report.exit_code(result) or (DONE if all(written) else OUTPUT)
    return code or (DATA if lost and not arguments.keep_going else DONE)


def _rows(arguments: argparse.Namespace, output: Output) -> tuple[list[rows.Row], int]:
    """Read the file; report the bad rows, and return the good ones and the number of lost ones."""
    with _reading(arguments.file) as path:
        good, bad = rows.parse(rows.read(arguments.file))
    for row in bad[:MAX_TOLD]:
        say(f"{path}:{row.line}: {row.reason}")
    lost = sum(row.lines for row in bad)
    what = f"{lost:,} malformed row{'s' * (lost != 1)}"
    if bad and (arguments.strict or not good):
        raise DataError(f"{path}: {what}; nothing was sent")
    if not good:
        raise UsageError(f"{path}: no operations in it")
    if bad:
        output.complain(f"{path}: {what} left out")
    return good, lost


def _settings(arguments: argparse.Namespace, count: int) -> tuple[workload.Settings, int | None]:
    """Return how to run this many rows, and how many operations that makes, if that is known."""
    settings = workload.Settings(
        _cluster(arguments), arguments.processes,
        arguments.in_flight or (OPEN_LOOP_IN_FLIGHT if arguments.rate else 1),
        arguments.read, arguments.timeout, bool(arguments.history),
        arguments.rate, arguments.duration, arguments.warmup,
    )  # fmt: skip
    total = workload.operations(count, settings)
    if settings.rate and settings.duration and total == workload.MAX_OPERATIONS:
        raise UsageError(f"--rate, --duration: {total:,} operations or more")
    return settings, None if settings.duration and not settings.rate else total


def _results(arguments: argparse.Namespace, in_flight: int) -> list[tuple[Path, Callable[..., object]]]:
    """Return the files to write, each with what writes it when it is given the file, result and totals."""
    files: list[tuple[Path, Callable[..., object]]] = []
    if arguments.out:
        out = Path(arguments.out)
        files += [
            (out / "operations.csv", lambda file, result, totals: report.write_operations(file, result)),
            (out / "timeseries.csv", lambda file, result, totals: report.write_timeseries(file, result)),
            (out / "summary.json",
             lambda file, result, totals: file.write(json.dumps(totals, indent=2) + "\n")),
        ]  # fmt: skip
    if arguments.history:
        files.append((
            Path(arguments.history),
            lambda file, result, totals: report.write_history(file, result, in_flight),
        ))  # fmt: skip
    return files


def _open(path: Path) -> Any:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from None


def _write(path: Path, file: Any, write: Callable[[Any], object], output: Output) -> bool:
    """Write a file of results and close it; return False if that fails."""
    try:
        with file:
            write(file)
    except OSError as error:
        output.complain(f"{path}: {error.strerror}")
        return False
    return True


_OF_KEYS: Final = {
    "put": _put, "get": _get, "delete": _delete, "cas": _cas, "incr": _incr, "transaction": _transaction,
}  # fmt: skip
_COMMANDS: Final = {
    "scan": _scan, "dump": _dump, "export": _export, "import": _import, "watch": _watch,
    "checkpoint": _checkpoint, "trace": _trace, "explain": _explain, "replace": _replace,
}  # fmt: skip

_WHOLE: Final = {"run": _run, "status": _status, "health": _health}  # these make clients of their own


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line, or these words, and return the exit code."""
    output = Output(Path(sys.argv[0]).name if words is None else "client.py")
    try:
        arguments = parse(sys.argv[1:] if words is None else words, output)
        output = Output(output.program, arguments.output == "json", getattr(arguments, "raw", False))
        return output.end(_run_command(arguments, output))
    except SystemExit as end:  # from argparse, which has said why
        return output.end(int(end.code or 0))
    except KeyboardInterrupt:
        return output.end(INTERRUPTED)


def _run_command(arguments: argparse.Namespace, output: Output) -> int:
    try:
        if arguments.command in _WHOLE:
            return _WHOLE[arguments.command](arguments, output)
        if arguments.command == "dump" and arguments.node is None and not arguments.single:
            raise UsageError("dump: --node is needed: stores are compared node by node")
        if arguments.command not in _OF_KEYS:
            return _one(_COMMANDS[arguments.command], arguments, output)
        with program.patience(f"no answer yet; gives up after {arguments.timeout:g} s in all (--timeout)"):
            return _one(_OF_KEYS[arguments.command], arguments, output)
    except WrongCluster as error:
        return output.error("wrong_cluster", f"{arguments.cluster}: {error}", USAGE)
    except NoNodeReachable as error:
        return output.error("unreachable", error, UNREACHABLE)
    except UnknownOutcome as error:
        return output.error("unknown", error, UNKNOWN)
    except ClientError as error:
        return output.error("not_done", error, NEGATIVE)
    except (UsageError, ClusterError) as error:
        return output.error("usage", error, USAGE)
    except DataError as error:
        return output.error("data", error, DATA)
    except OutputError as error:
        return output.error("output", error, OUTPUT)
