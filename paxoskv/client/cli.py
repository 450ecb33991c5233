"""The command line of the client; `client.py --help` shows the commands."""

import argparse
import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from paxoskv.client import explain, health, report, workload
from paxoskv.client.base import ATTEMPT_TIMEOUT_S, TIMEOUT_S, addresses_of
from paxoskv.client.operations import READ_MODES, ClientError, NoNodeReachable, UnknownOutcome
from paxoskv.client.sync import Client
from paxoskv.config import Cluster, ClusterError, load

PROJECT: Final = Path(__file__).resolve().parents[2]
PROGRAM: Final = "client.py" if (PROJECT / "client.py").exists() else "paxoskv"  # the installed command
DONE, NEGATIVE, USAGE, UNREACHABLE, UNKNOWN, INTERRUPTED = 0, 1, 2, 3, 4, 130  # see EXIT_CODES

EXIT_CODES: Final = """\
exit codes:
  0    all done
  1    a negative answer: key not found, comparison failed, some operation refused
  2    usage, or input that cannot be used
  3    nothing done, and no node can be reached
  4    the outcome of some operation is unknown: it may have been done (this beats 1)
  130  interrupted
"""

# Seconds that `status` waits for each node: long enough for a node that works.
STATUS_TIMEOUT_S: Final = 2.0
# Seconds for the write and the read of `health` together.
HEALTH_TIMEOUT_S: Final = 3.0
HEALTH_FIELDS: Final = ("address", "ok", "write_s", "read_s", "error")
# Seconds that `checkpoint` waits for each node: a large store takes long.
CHECKPOINT_S: Final = 300.0
# Bounds of the options: files and memory are finite.
MAX_PROCESSES: Final = 256
MAX_IN_FLIGHT: Final = 1024


class UsageError(Exception):
    """An argument or a file cannot be used; the message is one line."""


# ---------------------------------------------------------------------------------------------------- output


class Output:
    """Prints answers to stdout, as text or JSON, and errors to stderr (with JSON, to stdout as well)."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def answer(self, text: str, value: dict[str, Any]) -> None:
        """Print an answer, as text or JSON."""
        print(json.dumps(value) if self.as_json else text)

    def negative(self, text: str, value: dict[str, Any]) -> int:
        """Print a negative answer, as text (to stderr) or JSON; return its exit code."""
        if self.as_json:
            print(json.dumps(value))
        else:
            _complain(text)
        return NEGATIVE

    def error(self, kind: str, message: str, code: int) -> int:
        """Print an error, and return its exit code."""
        if self.as_json:
            print(json.dumps({"error": kind, "message": message, "exit_code": code}))
        _complain(message)
        return code


def _complain(message: object) -> None:
    print(f"{PROGRAM}: {message}", file=sys.stderr)


# -------------------------------------------------------------------------------------------------- commands


def _put(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    client.put(arguments.key, arguments.value)
    output.answer("ok", {"outcome": "ok"})
    return DONE


def _get(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    value = client.get(arguments.key, arguments.read, arguments.node)
    if value is None:
        return _not_found(arguments, output)
    output.answer(value, {"outcome": "ok", "value": value})
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


def _scan(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    for item in client.scan(arguments.prefix, "", arguments.limit, arguments.read, arguments.node):
        output.answer(f"{item.key}\t{item.value}", {"key": item.key, "value": item.value})
    return DONE


def _dump(client: Client, arguments: argparse.Namespace, _: Output) -> int:
    for item in client.scan(read="local", node=arguments.node):
        print(json.dumps({"key": item.key, "value": item.value}))
    return DONE


def _checkpoint(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    nodes = [node.id for node in client.nodes] if arguments.node is None else [arguments.node]
    failures = []
    for node in nodes:
        try:
            number = client.checkpoint(node)
        except ClientError as failure:  # the other nodes make theirs all the same
            failures.append(failure)
            continue
        where = "" if arguments.single else f"node {node}: "
        output.answer(f"{where}checkpoint {number}", {"node": node, "checkpoint": number})
    for error in failures[:-1]:
        _complain(error)
    if failures:
        raise failures[-1]
    return DONE


def _trace(client: Client, arguments: argparse.Namespace, _: Output) -> int:
    if arguments.what == "show":
        events, missing = explain.gathered(client)
        for event in events:
            print(json.dumps(event, ensure_ascii=False))
        for line in missing:
            _complain(line)
        return NEGATIVE if missing else DONE
    print("\n".join(explain.switch(client, arguments.what == "on")))
    return DONE


def _explain(client: Client, arguments: argparse.Namespace, _: Output) -> int:
    by_place = arguments.log is not None and arguments.slot is not None
    if by_place == (arguments.key is not None):
        raise UsageError("explain: give KEY, or --log and --slot")
    drawn = explain.drawing(client, arguments)
    try:
        if not explain.save(drawn, arguments):
            print(drawn.text(), end="")
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from None
    return DONE


def _status(arguments: argparse.Namespace) -> int:
    """Show the state of all nodes, or of one; negative if a node is silent, not ready, or different."""
    views = asyncio.run(health.status(
        _known(arguments), arguments.node, timeout=arguments.timeout, digest=arguments.digest,
        as_json=arguments.output == "json", every=arguments.watch,
    ))  # fmt: skip
    if all(isinstance(view.error, NoNodeReachable) for view in views):
        return UNREACHABLE
    well = all(view.status and view.status.ready for view in views)
    return DONE if well and not any(row.differs for row in health.rows(views)) else NEGATIVE


def _health(arguments: argparse.Namespace) -> int:
    """Try a write and a read at each node; negative if one of them fails."""
    checks = asyncio.run(health.health(_known(arguments), arguments.node or (), arguments.timeout))
    failed = [check for check in checks if check.error]
    if arguments.output == "json":
        lines = [{"address": str(check.node), "ok": not check.error, **check._asdict()} for check in checks]
        print(json.dumps([{name: line[name] for name in HEALTH_FIELDS} for line in lines]))
    for check in checks:
        if check.error:
            _complain(f"{check.node}: {check.error}")
        elif arguments.output == "text":
            write_ms, read_ms = 1000 * (check.write_s or 0), 1000 * (check.read_s or 0)
            print(f"{check.node}: write {write_ms:.1f} ms, read {read_ms:.1f} ms")
    if failed and all(check.unreachable for check in checks):
        return UNREACHABLE
    return NEGATIVE if failed else DONE


def _known(arguments: argparse.Namespace) -> Cluster | str:
    """Return the cluster, after checking that it has the nodes asked for and usable certificates."""
    cluster = _cluster(arguments)
    _client(arguments).close()
    known = [node.id for node in addresses_of(cluster)]
    asked = arguments.node if isinstance(arguments.node, list) else [arguments.node]
    for node in asked:
        if node is not None and node not in known:
            raise UsageError(f"--node: there is no node {node}")
    return cluster


def _one(command: Callable[[Client, argparse.Namespace, Output], int], arguments: argparse.Namespace) -> int:
    """Run a single command with a client of its own."""
    with _client(arguments) as client:
        node = getattr(arguments, "node", None)
        if node is not None and node not in [known.id for known in client.nodes]:
            raise UsageError(f"--node: there is no node {node}")
        client.connect(min(ATTEMPT_TIMEOUT_S, arguments.timeout))
        return command(client, arguments, Output(arguments.output == "json"))


def _client(arguments: argparse.Namespace) -> Client:
    """Make a client that is not connected yet; raise UsageError for wrong addresses or certificates."""
    try:
        return Client(_cluster(arguments), timeout=arguments.timeout)
    except OSError as error:
        raise UsageError(f"tls: {error}") from None


# ------------------------------------------------------------------------------------------------------- run


def _run(arguments: argparse.Namespace) -> int:
    """Run a file of operations."""
    output = Output(arguments.output == "json")
    _client(arguments).close()  # so that an error in the cluster's file is reported now, and once
    rows, bad = _rows(arguments)
    settings = workload.Settings(
        _cluster(arguments), arguments.processes, arguments.in_flight, arguments.read, arguments.timeout,
        bool(arguments.history),
    )  # fmt: skip
    with contextlib.ExitStack() as files:
        # Opened first, so that no run begins whose results cannot be written.
        opened = [files.enter_context(_open(path)) for path in _results(arguments)]
        with Progress(len(rows)) as progress:
            result = workload.run(rows, settings, progress.show)
        for error in (*result.dead, *result.errors):
            _complain(error)
        if not result.operations and result.unreachable is not None:
            return output.error("unreachable", result.unreachable, UNREACHABLE)
        totals = report.summary(result, bad)
        if arguments.history:
            report.write_history(opened.pop(), result, settings.in_flight)
        if arguments.out:
            report.write_operations(opened[0], result)
            opened[1].write(json.dumps(totals, indent=2) + "\n")
    output.answer(report.table(totals), totals)
    return report.exit_code(result)


def _rows(arguments: argparse.Namespace) -> tuple[list[workload.Row], int]:
    """Read the file; report the bad rows, and return the good ones and the number of bad ones."""
    path = arguments.file
    try:
        rows, bad = workload.parse(Path(path).read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    for row in bad:
        print(f"{path}:{row.line}: {row.reason}", file=sys.stderr)
    if bad and arguments.strict:
        raise UsageError(f"{path}: {len(bad)} malformed rows; nothing was sent")
    if not rows:
        raise UsageError(f"{path}: no operations in it")
    return rows, len(bad)


def _results(arguments: argparse.Namespace) -> list[Path]:
    """Return the files to write: operations.csv and summary.json, then the history, if asked for."""
    files = (
        [Path(arguments.out) / name for name in ("operations.csv", "summary.json")] if arguments.out else []
    )
    return files + ([Path(arguments.history)] if arguments.history else [])


def _open(path: Path) -> Any:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


class Progress:
    """Draws a progress bar on stderr if that is a terminal."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar

            self._bar = Bar(console=Console(stderr=True), transient=True)
            self._bar.start()
            self._bar.add_task("operations", total=self._total)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, done: int) -> None:
        """Show how many operations are done."""
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=done)


# ------------------------------------------------------------------------------------------------- arguments


def _cluster(arguments: argparse.Namespace) -> Cluster | str:
    if not arguments.single:
        return load(arguments.cluster)
    single: str = arguments.single
    try:
        addresses_of(single)
    except ValueError as error:
        raise UsageError(f"--single: {error}") from None
    return single


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= 86400:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, above 0 and up to a day")


def _between(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        with contextlib.suppress(ValueError):
            if low <= int(text) <= high:
                return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")

    return number


def _default_cluster() -> str:
    """Return the path of cluster.json beside client.py; an installed client has none beside it."""
    beside = PROJECT / "cluster.json"
    return os.path.relpath(beside) if beside.exists() else "cluster.json"


def _common(timeout: float) -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    where = common.add_mutually_exclusive_group()
    where.add_argument("--cluster", metavar="FILE", default=_default_cluster(),
                       help="the cluster's file (default: %(default)s)")  # fmt: skip
    where.add_argument("--single", metavar="HOST:PORT", help="a single server instead of a cluster")
    common.add_argument("--timeout", metavar="S", type=_seconds, default=timeout,
                        help="seconds that one operation may take (default: %(default)g)")  # fmt: skip
    common.add_argument("-o", "--output", choices=("text", "json"), default="text",
                        help="answers for people, or for machines (default: text)")  # fmt: skip
    return common


def _add_read(parser: argparse.ArgumentParser, node: bool = True) -> None:
    parser.add_argument("--read", choices=tuple(READ_MODES), default="linearizable",
                        help="linearizable: sees every write answered before; log: so too, through the log; "
                             "local: what one node has, perhaps stale (default: linearizable)")  # fmt: skip
    if node:
        parser.add_argument("--node", metavar="ID", type=int, help="ask this node, once, and no other")


Add = Callable[..., argparse.ArgumentParser]  # adds a command: its name, what it does, and more


def arguments_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Talk to a cluster: single commands, or whole files of operations with measurements.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, what: str, more: str = "", timeout: float = TIMEOUT_S) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, parents=[_common(timeout)], help=what, description=what[0].upper() + what[1:] + "." + more,
            epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip

    _add_run(add)
    _add_operations(add)
    _add_inspections(add)
    return parser


def _add_run(add: Add) -> None:
    run = add("run", "run a CSV file of operations, and measure them",
              "\nA row is PUT,key,value or GET,key[,expected] or DELETE,key[,ignored].")  # fmt: skip
    run.add_argument("file", metavar="FILE.csv")
    run.add_argument("--processes", metavar="N", type=_between(1, MAX_PROCESSES), default=2,
                     help="split the rows into this many parts, sent at once (default: 2)")  # fmt: skip
    run.add_argument("--in-flight", metavar="N", type=_between(1, MAX_IN_FLIGHT), default=1,
                     help="operations that each process keeps under way; with more than 1, neighboring rows "
                          "may overtake one another (default: 1)")  # fmt: skip
    _add_read(run, node=False)
    run.add_argument("--out", metavar="DIR", help="write operations.csv and summary.json there")
    run.add_argument("--history", metavar="FILE", help="write a history for checkers of linearizability")
    run.add_argument("--strict", action="store_true", help="send nothing at all if a row is malformed")


def _add_operations(add: Add) -> None:
    put = add("put", "set a key")
    put.add_argument("key")
    put.add_argument("value")
    get = add("get", "print the value of a key")
    get.add_argument("key")
    _add_read(get)
    add("delete", "remove a key").add_argument("key")
    cas = add("cas", "set a key if it holds what is expected")
    cas.usage = "{0} KEY EXPECTED VALUE | {0} KEY --absent VALUE".format(f"{PROGRAM} cas [options]")
    cas.add_argument("key")
    cas.add_argument("values", nargs="+", metavar="EXPECTED VALUE")
    cas.add_argument("--absent", action="store_true", help="expect that the key does not exist")
    incr = add("incr", "add to the integer that a key holds; a missing key counts as 0")
    incr.add_argument("key")
    incr.add_argument("delta", nargs="?", type=_between(-(2**63), 2**63 - 1), default=1, help="default: 1")
    scan = add("scan", "print all keys that begin with a prefix, and their values")
    scan.add_argument("prefix", nargs="?", default="")
    scan.add_argument("--limit", metavar="N", type=_between(1, 2**31), help="at most this many of them")
    _add_read(scan)


def _add_inspections(add: Add) -> None:
    status = add("status", "show the state of each node", timeout=STATUS_TIMEOUT_S)
    status.add_argument("--node", metavar="ID", type=int, help="this node only")
    status.add_argument("--digest", action="store_true", help="with the hash of each node's store")
    status.add_argument("--watch", metavar="S", type=_seconds, nargs="?", const=1.0,
                        help="again every S seconds (default: 1), until interrupted")  # fmt: skip
    more = "\nThe write changes nothing. Exit code 0 only if both succeed at every node asked."
    check = add("health", "try a write and a linearizable read at each node", more, HEALTH_TIMEOUT_S)
    check.add_argument("--node", metavar="ID", type=int, action="append",
                       help="this node only (may be given several times)")  # fmt: skip
    checkpoint = add("checkpoint", "let every node make a checkpoint of its journal", timeout=CHECKPOINT_S)
    checkpoint.add_argument("--node", metavar="ID", type=int, help="this node only")
    more = "\nIt is kept in memory, the last 20,000 events of each node; `off` forgets it."
    add("trace", "let all nodes record what happens, or show it as JSON lines", more).add_argument(
        "what", choices=("on", "off", "show"))  # fmt: skip
    tell = add("explain", "tell how the last value of a key came to be, from what the nodes have recorded")
    tell.add_argument("key", nargs="?")
    tell.add_argument("--log", metavar="P", type=_between(1, 255), help="instead of a key: a slot of a log")
    tell.add_argument("--slot", metavar="S", type=_between(0, 2**62))
    for form in explain.FORMS:
        tell.add_argument(f"--{form}", metavar="FILE", help="write it there instead of telling it in words")
    dump = add("dump", "print everything that one node has, as JSON lines; for comparing stores")
    dump.add_argument("--node", metavar="ID", type=int, help="the node (with --single not needed)")


_COMMANDS: Final = {
    "put": _put, "get": _get, "delete": _delete, "cas": _cas, "incr": _incr, "scan": _scan, "dump": _dump,
    "checkpoint": _checkpoint, "trace": _trace, "explain": _explain,
}  # fmt: skip

_WHOLE: Final = {"run": _run, "status": _status, "health": _health}  # these make clients of their own


def main(words: list[str] | None = None) -> int:
    """Run the command line, and return the exit code."""
    arguments = arguments_parser().parse_args(words)
    output = Output(arguments.output == "json")
    try:
        if arguments.command in _WHOLE:
            return _WHOLE[arguments.command](arguments)
        if arguments.command == "dump" and arguments.node is None and not arguments.single:
            raise UsageError("dump: --node is needed: stores are compared node by node")
        return _one(_COMMANDS[arguments.command], arguments)
    except NoNodeReachable as error:
        return output.error("unreachable", str(error), UNREACHABLE)
    except UnknownOutcome as error:
        return output.error("unknown", str(error), UNKNOWN)
    except ClientError as error:
        return output.error("not_done", str(error), NEGATIVE)
    except (UsageError, ClusterError) as error:
        return output.error("usage", str(error), USAGE)
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NEGATIVE
    except KeyboardInterrupt:
        return INTERRUPTED
