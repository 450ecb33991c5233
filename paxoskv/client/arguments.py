"""What may stand on the client's command line: commands, options, and where they may stand."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from paxoskv import program
from paxoskv.client.base import TIMEOUT_S
from paxoskv.client.operations import READ_MODES
from paxoskv.client.output import DONE, EXIT_CODES, Output
from paxoskv.client.watching import parse_place
from paxoskv.wire.structs import Place
from paxoskv.wire.validation import MAX_TTL_MS

PROJECT: Final = Path(__file__).resolve().parents[2]
CLUSTER_VARIABLE: Final = "PAXOSKV_CLUSTER"

# Seconds that `status` waits for each node: long enough for a node that works.
STATUS_TIMEOUT_S: Final = 2.0
# Seconds for the write and the read of `health` together.
HEALTH_TIMEOUT_S: Final = 3.0
# Seconds that `checkpoint` waits for each node: a large store takes long.
CHECKPOINT_S: Final = 300.0
# Bounds of the options: files and memory are finite.
MAX_PROCESSES: Final = 256
MAX_IN_FLIGHT: Final = 1024
OPEN_LOOP_IN_FLIGHT: Final = 64  # with a rate, unless another number is given
MAX_RATE: Final = 1e6  # operations per second

# What some commands say of themselves in their help.
TRANSACTION: Final = """ The file is JSON:

  {"compare": [{"key": "stock", "greater": 0}, {"key": "order/7", "exists": false}],
   "then": [{"increment": "stock", "by": -1}, {"put": "order/7", "value": "book", "ttl": 3600}],
   "else": [{"get": "stock"}]}

If all comparisons hold, all of "then" is done, otherwise all of "else"; no other command comes in between.
A comparison has a key and one of: equals, differs (a text), exists (true or false), less, greater (an
integer). An action is one of: put with a value (and a ttl, in seconds, after which the key is removed), get,
delete, increment by a number (default: 1). Each of the three lists may be left out.

Prints "then" or "else", and for each action a line: its key, a tab, and the value, ok or not_found.
Exit code 1: "else" was done; or nothing at all, with a line that says why: what cannot be incremented."""
PUT: Final = """
Prints ok when a majority of the nodes has it on disk and every later read sees it. Exit code 4: it may have
been done, or not."""
SCAN: Final = """
A line is a key, a tab and its value; the lines are sorted by key. If keys are written while it reads, the
lines may not be all of one state; then it says so on a terminal."""
WATCH: Final = """
A line is the place of a change, put or delete, the key and (of a put) the value, with tabs between them.
It ends with Ctrl-C, or with --count. To go on later, at any node, give --from the last place it printed."""
REPLACE: Final = """
Stop the node first; the others go on. The cluster's file with the new address is printed: put it into a new
file, and start the node at its new place with it: `server.py --id ID --cluster NEW.json` if the node has its
data there, with --rejoin as well if its data is lost. The other nodes and all clients may keep their old
file: they learn the address from one another."""


def parse(words: Sequence[str], output: Output) -> argparse.Namespace:
    """Return what the words say; exit if they are wrong, or ask for help."""
    parser, commands = _parsers(output.program)
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what may come next
        import argcomplete

        argcomplete.autocomplete(parser)
    try:
        return parser.parse_args(_verb_first(words, commands))
    except OSError as error:  # it could not print its help
        output.fail(error)
        sys.exit(DONE)


Number = TypeVar("Number", int, float)


def _number(
    kind: Callable[[str], Number], fits: Callable[[Number], bool], what: str
) -> Callable[[str], Number]:
    """Make the type of an option: a number that fits; `what` says in an error which ones do."""

    def number(text: str) -> Number:
        with contextlib.suppress(ValueError):
            if fits(kind(text)):
                return kind(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not a number {what}")

    return number


_ttl = _number(float, lambda s: 0 < s <= MAX_TTL_MS / 1000, "of seconds, above 0 and up to ten years")
_seconds = _number(float, lambda s: 0 < s <= 86400, "of seconds, above 0 and up to a day")
_rate = _number(float, lambda rate: 0 < rate <= MAX_RATE, f"of operations per second, up to {MAX_RATE:,.0f}")


def _between(low: int, high: int) -> Callable[[str], int]:
    return _number(int, lambda number: low <= number <= high, f"from {low} to {high}")


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
    with contextlib.suppress(UnicodeEncodeError):
        word.encode()
        return word
    try:
        return os.fsencode(word).decode()  # the locale's encoding is the one to blame
    except UnicodeError:
        raise argparse.ArgumentTypeError(f"{os.fsencode(word)!r} is not UTF-8") from None


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
        texts = [action for action in self._actions if action.type is _text]
        options = [
            word for word in self._words if word.startswith("-") and word not in self._option_string_actions
        ]
        option = message.removeprefix("argument ").partition(": ")[0]
        if option.startswith("-"):  # the value of this option is wrong
            after = self._words[self._words.index(option) + 1 :][:1] if option in self._words else []
            if after and after[0] in options and any(option in action.option_strings for action in texts):
                message += f" (put one that begins with '-' behind '=': {option}={after[0]})"
        elif texts and options and "--" not in self._words:
            message += f" (put a key or value that begins with '-' behind '--': {self.prog} -- {options[0]})"
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
                        help="linearizable: sees every write that was answered before; log: the same, by an "
                             "entry in the log, which is slower; local: what one node has, which may be old "
                             "(default: linearizable)")  # fmt: skip
    if node:
        parser.add_argument("--node", metavar="ID", type=int, help="ask this node, once, and no other")


Add = Callable[..., argparse.ArgumentParser]  # adds a command: its name, what it does, and more


def _parsers(name: str) -> tuple[_Parser, dict[str, _Parser]]:
    """Make the parser of the command line, and those of the commands."""
    parser = _Parser(
        prog=name,
        description="Talk to a cluster: single commands, or whole files of operations with measurements.\n"
        "Options may stand before or after the command; COMMAND --help lists them.",
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
    _add_watch(add)
    _add_inspections(add)
    return parser, commands.choices


def _add_run(add: Add) -> None:
    run = add("run", "run a CSV file of operations, and measure them",
              "\nA row is PUT,key,value or GET,key[,expected] or DELETE,key[,ignored]. Blanks around a field "
              "do not\nbelong to it, unless it is in quotes. The file may be gzipped.")  # fmt: skip
    run.add_argument("file", metavar="FILE.csv", help="the file; - reads from stdin")
    run.add_argument("--processes", metavar="N", type=_between(1, MAX_PROCESSES), default=2,
                     help="split the rows into this many parts, sent at once (default: 2)")  # fmt: skip
    run.add_argument("--in-flight", metavar="N", type=_between(1, MAX_IN_FLIGHT),
                     help="operations that each process keeps under way; with more than 1, neighboring rows "
                          f"may overtake one another (default: 1; with --rate, {OPEN_LOOP_IN_FLIGHT})",
                     )  # fmt: skip
    run.add_argument("--rate", metavar="N", type=_rate, default=0.0,
                     help="start this many operations per second, whether or not earlier ones are done, and "
                          "count each one's latency from when it was due")  # fmt: skip
    run.add_argument("--duration", metavar="S", type=_seconds, default=0.0,
                     help="run for this many seconds after the warm-up, and repeat the rows")  # fmt: skip
    run.add_argument("--warmup", metavar="S", type=_seconds, default=0.0,
                     help="leave the first seconds out of the summary")  # fmt: skip
    _add_read(run, node=False)
    run.add_argument(
        "--out", metavar="DIR", type=program.new_file,
        help="write operations.csv, timeseries.csv and summary.json there",
    )  # fmt: skip
    run.add_argument("--history", metavar="FILE", type=program.new_file,
                     help="write a history for checkers of linearizability")  # fmt: skip
    malformed = run.add_mutually_exclusive_group()
    malformed.add_argument("--strict", action="store_true", help="send nothing at all if a row is malformed")
    malformed.add_argument("--keep-going", action="store_true",
                           help="exit with 0 although malformed rows were left out")  # fmt: skip


def _add_operations(add: Add) -> None:
    put = add("put", "set a key", PUT)
    put.add_argument("key", type=_text)
    put.add_argument("value", type=_text)
    put.add_argument("--ttl", metavar="S", type=_ttl,
                     help="remove it after this many seconds, unless it is written again")  # fmt: skip
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
    whole = add("transaction", "do actions on several keys at once, if comparisons hold", TRANSACTION)
    whole.add_argument("file", metavar="FILE|-", help="the file; - reads from stdin")
    scan = add("scan", "print all keys that begin with a prefix, and their values", SCAN)
    _add_prefix(scan)
    scan.add_argument("--start", metavar="KEY", type=_text, help="only this key and those after it")
    scan.add_argument("--end", metavar="KEY", type=_text, help="only keys before this one")
    scan.add_argument("--reverse", action="store_true", help="the last key first")
    scan.add_argument("--limit", metavar="N", type=_between(1, 2**31), help="print this many keys at most")
    what = scan.add_mutually_exclusive_group()
    what.add_argument("--keys-only", action="store_true", help="print no values")
    what.add_argument("--count", action="store_true", help="print only how many keys there are")
    _add_read(scan)
    _add_raw(scan)
    _add_transfers(add)


def _add_prefix(parser: argparse.ArgumentParser) -> None:
    """Let the prefix be given as a word or, as `export` wants it, as an option."""
    prefix = parser.add_mutually_exclusive_group()
    prefix.add_argument("prefix", nargs="?", metavar="PREFIX", type=_text, default=argparse.SUPPRESS,
                        help="how the keys begin (default: all keys)")  # fmt: skip
    prefix.add_argument("--prefix", type=_text, default="", help="the same, as an option")


def _add_transfers(add: Add) -> None:
    more = (
        '\nEach line is {"key": ..., "value": ...}. Keys that are written meanwhile may be in it or not;'
        "\ntimes to live are not. --resume continues an export that was interrupted."
    )
    out = add("export", "write all keys and values into a file, as JSON lines", more)
    out.add_argument("file", metavar="FILE|-", help="the file; - writes to stdout")
    out.add_argument("--prefix", type=_text, default="", help="only keys that begin with this")
    out.add_argument("--resume", action="store_true",
                     help="go on after the last whole line of an existing file")  # fmt: skip
    _add_read(out)
    more = "\nIf it ends early, it says how many lines to skip next time. Setting a key twice does no harm."
    into = add("import", "set the keys that an export has written to a file", more)
    into.add_argument("file", metavar="FILE|-", help="the file; - reads from stdin")
    into.add_argument("--skip", metavar="N", type=_between(0, 2**62), default=0,
                      help="leave out this many lines at the beginning")  # fmt: skip


def _place(word: str) -> Place:
    try:
        return parse_place(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _add_watch(add: Add) -> None:
    watch = add("watch", "print each change of keys that begin with a prefix, as it comes", WATCH)
    _add_prefix(watch)
    watch.add_argument("--from", metavar="PLACE", type=_place, dest="after",
                       help="begin with the first change after this place (default: after all so far)",
                       )  # fmt: skip
    watch.add_argument("--count", metavar="N", type=_between(1, 2**62), help="end after this many changes")
    _add_raw(watch)


def _add_raw(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--raw", action="store_true",
                        help="do not escape control characters on a terminal")  # fmt: skip


def _add_inspections(add: Add) -> None:
    status = add("status", "show the state of each node", timeout=STATUS_TIMEOUT_S)
    status.add_argument("--node", metavar="ID", type=int, help="this node only")
    status.add_argument("--digest", action="store_true", help="also show the hash of each node's store")
    status.add_argument("--watch", metavar="S", type=_seconds, nargs="?", const=1.0,
                        help="repeat every S seconds (default: 1), until interrupted")  # fmt: skip
    more = "\nThe write changes nothing. Exit code 0 only if both succeed at every node asked."
    check = add("health", "try a write and a linearizable read at each node", more, HEALTH_TIMEOUT_S)
    check.add_argument("--node", metavar="ID", type=int, action="append",
                       help="this node only (may be given several times)")  # fmt: skip
    checkpoint = add("checkpoint", "make every node make a checkpoint of its journal", timeout=CHECKPOINT_S)
    checkpoint.add_argument("--node", metavar="ID", type=int, help="this node only")
    more = "\nEach node keeps its last 20,000 events in memory; `off` forgets them."
    add("trace", "make all nodes record what happens, or show it as JSON lines", more).add_argument(
        "what", choices=("on", "off", "show"))  # fmt: skip
    tell = add("explain", "explain how the last value of a key was chosen, from what the nodes have recorded")
    tell.add_argument("key", metavar="KEY", nargs="?", type=_text)
    tell.add_argument("--log", metavar="P", type=_between(1, 255), help="with --slot, instead of a key")
    tell.add_argument("--slot", metavar="S", type=_between(0, 2**62), help="explain slot S of log P")
    for form in ("html", "svg", "mermaid", "json"):
        tell.add_argument(f"--{form}", metavar="FILE|-",
                          help="write it there (-: stdout) instead of printing it in words")  # fmt: skip
    replace = add("replace", "move a node to another address, without stopping the others", REPLACE)
    replace.add_argument("id", metavar="ID", type=_between(1, 255), help="the node that moves")
    replace.add_argument("address", metavar="HOST:PORT", help="where it is from now on")
    dump = add("dump", "print everything that one node has, as JSON lines; for comparing stores")
    dump.add_argument("--node", metavar="ID", type=int, help="the node (not needed with --single)")
