"""The command line of the client; `client.py --help` shows the commands."""

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from paxoskv.client import health, report, rows, workload
from paxoskv.client.base import ATTEMPT_TIMEOUT_S, TIMEOUT_S, addresses_of
from paxoskv.client.operations import READ_MODES, ClientError, NoNodeReachable, UnknownOutcome, WrongCluster
from paxoskv.client.output import (
    DATA,
    DONE,
    EXIT_CODES,
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
from paxoskv.client.sync import Client
from paxoskv.config import Cluster, ClusterError, load

PROJECT: Final = Path(__file__).resolve().parents[2]
CLUSTER_VARIABLE: Final = "PAXOSKV_CLUSTER"

# Seconds to wait for a first node that accepts a connection: a cluster that was just started takes some.
FIRST_NODE_S: Final = 5.0
# Seconds between two attempts to connect meanwhile.
RETRY_S: Final = 0.1
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
# Malformed rows that are told one by one.
MAX_TOLD: Final = 20


class UsageError(Exception):
    """An argument or a file cannot be used; the message is one line."""


class DataError(Exception):
    """A file of operations cannot be used; the message is one line."""


# -------------------------------------------------------------------------------------------------- commands


def _put(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    client.put(arguments.key, arguments.value)
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


def _scan(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    for item in client.scan(arguments.prefix, "", arguments.limit, arguments.read, arguments.node):
        line = f"{output.shown(item.key)}\t{output.shown(item.value)}"
        if not output.answer(line, {"key": item.key, "value": item.value}):
            break  # nobody reads it
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
        except ClientError as failure:  # the other nodes make theirs all the same
            failures.append(failure)
            continue
        where = "" if arguments.single else f"node {node}: "
        output.answer(f"{where}checkpoint {number}", {"node": node, "checkpoint": number})
    for error in failures[:-1]:
        output.complain(error)
    if failures:
        raise failures[-1]
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
    if all(isinstance(view.error, NoNodeReachable) for view in views):
        strangers = any(isinstance(view.error, WrongCluster) for view in views)
        return USAGE if strangers else UNREACHABLE
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


def _one(
    command: Callable[[Client, argparse.Namespace, Output], int],
    arguments: argparse.Namespace,
    output: Output,
) -> int:
    """Run a single command with a client of its own."""
    with _client(arguments) as client:
        node = getattr(arguments, "node", None)
        if node is not None and node not in [known.id for known in client.nodes]:
            raise UsageError(f"--node: there is no node {node}")
        _connect(client, arguments.timeout)
        return command(client, arguments, output)


def _connect(client: Client, timeout: float) -> None:
    """Connect to the nodes; if there is none yet, wait for the first one, for one may be starting."""
    deadline = time.monotonic() + min(FIRST_NODE_S, timeout)
    told = False
    while True:
        try:
            client.connect(min(ATTEMPT_TIMEOUT_S, timeout))
            return
        except NoNodeReachable:
            if time.monotonic() + RETRY_S > deadline:
                raise
        if not told:
            told = True
            names = ", ".join(map(str, client.nodes))
            remark(f"waiting up to {min(FIRST_NODE_S, timeout):g} s for a node to answer: {names}")
        time.sleep(RETRY_S)


def _client(arguments: argparse.Namespace) -> Client:
    """Make a client that is not connected yet; raise UsageError for wrong addresses or certificates."""
    try:
        return Client(_cluster(arguments), timeout=arguments.timeout)
    except OSError as error:
        raise UsageError(f"tls: {error}") from None


# ------------------------------------------------------------------------------------------------------- run


def _run(arguments: argparse.Namespace, output: Output) -> int:
    """Run a file of operations."""
    with _client(arguments) as client:  # so that an error in the cluster's file is reported now, and once
        operations, lost = _rows(arguments, output)
        settings = workload.Settings(
            _cluster(arguments), arguments.processes, arguments.in_flight, arguments.read, arguments.timeout,
            bool(arguments.history),
        )  # fmt: skip
        # Opened first, so that no run begins whose results cannot be written.
        files = [(path, _open(path)) for path in _results(arguments)]
        _connect(client, arguments.timeout)
    with Progress(len(operations)) as progress:
        result = workload.run(operations, settings, progress.show)
    for error in (*result.dead, *result.errors):
        output.complain(error)
    if not result.operations and result.unreachable is not None:
        return output.error("unreachable", result.unreachable, UNREACHABLE)
    totals = report.summary(result, lost)
    writers: list[Callable[[Any], object]] = []
    if arguments.out:
        writers.append(lambda file: report.write_operations(file, result))
        writers.append(lambda file: file.write(json.dumps(totals, indent=2) + "\n"))
    if arguments.history:
        writers.append(lambda file: report.write_history(file, result, settings.in_flight))
    written = [_write(path, file, write, output) for (path, file), write in zip(files, writers, strict=True)]
    table = report.table(totals)
    output.answer(table, totals)
    if not output.flush() and not isinstance(output.failure, BrokenPipeError):
        say(table)  # a measurement is not lost because a disk is full
    code = report.exit_code(result) or (DONE if all(written) else OUTPUT)
    return code or (DATA if lost and not arguments.keep_going else DONE)


def _rows(arguments: argparse.Namespace, output: Output) -> tuple[list[rows.Row], int]:
    """Read the file; report the bad rows, and return the good ones and the number of lost ones."""
    path = "stdin" if arguments.file == "-" else arguments.file
    try:
        good, bad = rows.parse(rows.read(arguments.file))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except rows.WrongFile as error:
        raise DataError(f"{path}: {error}") from None
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


def _write(path: Path, file: Any, write: Callable[[Any], object], output: Output) -> bool:
    """Write a file of results and close it; return False if that fails."""
    try:
        with file:
            write(file)
    except OSError as error:
        output.complain(f"{path}: {error.strerror}")
        return False
    return True


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


def _common(timeout: float) -> "_Parser":
    common = _Parser(add_help=False)
    where = common.add_mutually_exclusive_group()
    where.add_argument("--cluster", metavar="FILE",
                       default=os.environ.get(CLUSTER_VARIABLE) or _default_cluster(),
                       help=f"the cluster's file (default: {CLUSTER_VARIABLE} in the environment, "
                            "now %(default)s)")  # fmt: skip
    where.add_argument("--single", metavar="HOST:PORT", help="a single server instead of a cluster")
    common.add_argument("--timeout", metavar="S", type=_seconds, default=timeout,
                        help="seconds that one operation may take (default: %(default)g)")  # fmt: skip
    common.add_argument("-o", "--output", choices=("text", "json"), default="text",
                        help="answers for people, or for machines (default: text)")  # fmt: skip
    return common


def _text(word: str) -> str:
    """Return a key or value from the command line; bytes that are no text came as lone surrogates."""
    try:
        return os.fsencode(word).decode() if not word.isascii() and _has_surrogates(word) else word
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError(f"{os.fsencode(word)!r} is not UTF-8") from None


def _has_surrogates(word: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in word)


class _Parser(argparse.ArgumentParser):
    """A parser that tells how to write a key or a value that looks like an option."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._words: list[str] = [*(sys.argv[1:] if args is None else args)]
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Print usage and the error, and exit."""
        takes_text = any(action.type is _text for action in self._actions)
        options = [
            word for word in self._words if word.startswith("-") and word not in self._option_string_actions
        ]
        if takes_text and options and "--" not in self._words:
            message += (
                f" (a key or value that begins with '-' stands behind '--': {self.prog} -- {options[0]})"
            )
        super().error(message)


def _verb_first(words: Sequence[str], commands: dict[str, _Parser]) -> list[str]:
    """Move options that stand before the verb behind it, where argparse looks for them."""
    known = {
        option: action
        for parser in commands.values()
        for option, action in parser._option_string_actions.items()
    }
    at = 0
    while at < len(words) and words[at].startswith("-"):
        name, equals, _ = words[at].partition("=")
        action = known.get(name if name.startswith("--") else name[:2])
        if action is None or action.dest == "help":
            return [*words]
        whole = equals or (len(name) > 2 and not name.startswith("--")) or action.nargs is not None
        at += 1 if whole else 2
    return [*words[at : at + 1], *words[:at], *words[at + 1 :]]


def _add_read(parser: argparse.ArgumentParser, node: bool = True) -> None:
    parser.add_argument("--read", choices=tuple(READ_MODES), default="linearizable",
                        help="linearizable: sees every write answered before; log: so too, through the log; "
                             "local: what one node has, perhaps stale (default: linearizable)")  # fmt: skip
    if node:
        parser.add_argument("--node", metavar="ID", type=int, help="ask this node, once, and no other")


Add = Callable[..., argparse.ArgumentParser]  # adds a command: its name, what it does, and more


def _parsers(program: str) -> tuple[_Parser, dict[str, _Parser]]:
    """Make the parser of the command line, and those of the commands."""
    parser = _Parser(
        prog=program,
        description="Talk to a cluster: single commands, or whole files of operations with measurements.\n"
        "Options may stand before the command or behind it; COMMAND --help tells them.",
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
    return parser, commands.choices


def _add_run(add: Add) -> None:
    run = add("run", "run a CSV file of operations, and measure them",
              "\nA row is PUT,key,value or GET,key[,expected] or DELETE,key[,ignored]. Blanks around a field "
              "do not\nbelong to it, unless it is in quotes. The file may be packed by gzip.")  # fmt: skip
    run.add_argument("file", metavar="FILE.csv", help="the file; - reads from stdin")
    run.add_argument("--processes", metavar="N", type=_between(1, MAX_PROCESSES), default=2,
                     help="split the rows into this many parts, sent at once (default: 2)")  # fmt: skip
    run.add_argument("--in-flight", metavar="N", type=_between(1, MAX_IN_FLIGHT), default=1,
                     help="operations that each process keeps under way; with more than 1, neighboring rows "
                          "may overtake one another (default: 1)")  # fmt: skip
    _add_read(run, node=False)
    run.add_argument("--out", metavar="DIR", help="write operations.csv and summary.json there")
    run.add_argument("--history", metavar="FILE", help="write a history for checkers of linearizability")
    malformed = run.add_mutually_exclusive_group()
    malformed.add_argument("--strict", action="store_true", help="send nothing at all if a row is malformed")
    malformed.add_argument("--keep-going", action="store_true",
                           help="exit with 0 although malformed rows were left out")  # fmt: skip


def _add_operations(add: Add) -> None:
    put = add("put", "set a key")
    put.add_argument("key", type=_text)
    put.add_argument("value", type=_text)
    get = add("get", "print the value of a key")
    get.add_argument("key", type=_text)
    _add_read(get)
    _add_raw(get)
    add("delete", "remove a key").add_argument("key", type=_text)
    cas = add("cas", "set a key if it holds what is expected")
    cas.usage = "%(prog)s [options] KEY EXPECTED VALUE | %(prog)s [options] KEY --absent VALUE"
    cas.add_argument("key", type=_text)
    cas.add_argument("values", nargs="+", type=_text, metavar="EXPECTED VALUE")
    cas.add_argument("--absent", action="store_true", help="expect that the key does not exist")
    incr = add("incr", "add to the integer that a key holds; a missing key counts as 0")
    incr.add_argument("key", type=_text)
    incr.add_argument("delta", nargs="?", type=_between(-(2**63), 2**63 - 1), default=1, help="default: 1")
    scan = add("scan", "print all keys that begin with a prefix, and their values")
    scan.add_argument("prefix", nargs="?", type=_text, default="")
    scan.add_argument("--limit", metavar="N", type=_between(1, 2**31), help="at most this many of them")
    _add_read(scan)
    _add_raw(scan)


def _add_raw(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--raw", action="store_true",
                        help="do not escape control characters on a terminal")  # fmt: skip


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
    dump = add("dump", "print everything that one node has, as JSON lines; for comparing stores")
    dump.add_argument("--node", metavar="ID", type=int, help="the node (with --single not needed)")


_COMMANDS: Final = {
    "put": _put, "get": _get, "delete": _delete, "cas": _cas, "incr": _incr, "scan": _scan, "dump": _dump,
    "checkpoint": _checkpoint,
}  # fmt: skip

_WHOLE: Final = {"run": _run, "status": _status, "health": _health}  # these make clients of their own


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line, or these words, and return the exit code."""
    output = Output(Path(sys.argv[0]).name if words is None else "client.py")
    try:
        arguments = _parse(sys.argv[1:] if words is None else words, output)
        output = Output(output.program, arguments.output == "json", getattr(arguments, "raw", False))
        return output.end(_run_command(arguments, output))
    except SystemExit as end:  # of argparse: it has said why
        return output.end(int(end.code or 0))
    except KeyboardInterrupt:
        return output.end(INTERRUPTED)


def _parse(words: Sequence[str], output: Output) -> argparse.Namespace:
    parser, commands = _parsers(output.program)
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what may come next
        with contextlib.suppress(ImportError):
            importlib.import_module("argcomplete").autocomplete(parser)
    try:
        return parser.parse_args(_verb_first(words, commands))
    except OSError as error:  # it could not print its help
        output.fail(error)
        sys.exit(DONE)


def _run_command(arguments: argparse.Namespace, output: Output) -> int:
    try:
        if arguments.command in _WHOLE:
            return _WHOLE[arguments.command](arguments, output)
        if arguments.command == "dump" and arguments.node is None and not arguments.single:
            raise UsageError("dump: --node is needed: stores are compared node by node")
        return _one(_COMMANDS[arguments.command], arguments, output)
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
