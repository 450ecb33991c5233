"""How every program begins, and what it says in one line where Python would show a traceback.

    from paxoskv import program

    program.begin(*program.PACKAGES)  # then come the imports that need packages

It needs nothing but the standard library: so --help works where nothing is installed.
"""

import argparse
import atexit
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Final

PROJECT: Final = Path(__file__).resolve().parent.parent
# What a program imports at once if it imports nodes or clients: see requirements.txt.
PACKAGES: Final = ("thrift", "pickledb", "orjson", "rich", "sortedcontainers")
USAGE, OUTPUT = 2, 74  # exit codes: see docs/operations.md
PATIENCE_S: Final = 2.0  # seconds after which somebody at a terminal wants to know what is waited for

_called = ""  # what the user has called, if it is not this program itself


def begin(*packages: str, called: str = "") -> None:
    """Run in .venv what needs its packages; say in one line what ends the program without being caught.

    `called`: the script that users call, if they do not call the program itself.
    """
    global _called
    _called = called or _called
    sys.excepthook = _uncaught
    atexit.register(_flush)
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if not missing:
        return
    python = PROJECT / ".venv" / "bin" / "python"
    if python.exists() and python.parent != Path(sys.executable).parent:  # so it happens once
        os.execv(python, [str(python), *sys.argv])
    if not {"-h", "--help"} & set(sys.argv):
        print(f"{name()}: the package {missing[0]} is not installed: run scripts/setup.sh", file=sys.stderr)
        sys.exit(USAGE)
    sys.meta_path.insert(0, Absent([*missing, "paxoskv.wire.methods"]))  # (that reads what Thrift has made)


def name() -> str:
    """What the user called."""
    return _called or os.path.basename(sys.argv[0])


def new_file(text: str) -> Path:
    """Return the path of a file or directory to be written; the type of an option that cannot mean stdout."""
    if text == "-":
        raise argparse.ArgumentTypeError("- would be stdout: give a name (./- for one that is called so)")
    return Path(text)


def positive(text: str) -> int:
    """The type of an option that is a whole number above 0."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


@contextmanager
def patience(text: str) -> Iterator[None]:
    """Say on a terminal what is waited for, if the block takes longer than PATIENCE_S."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    waiting = threading.Timer(PATIENCE_S, print, [f"{name()}: {text}"], {"file": sys.stderr})
    waiting.start()
    try:
        yield
    finally:
        waiting.cancel()


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, OSError):
        _unwritten(error)
    if not issubclass(kind, KeyboardInterrupt):  # that ends the process as the signal does: 130
        sys.__excepthook__(kind, error, trace)


def _flush() -> None:
    """Write what is left of the output while somebody can still be told that it cannot be."""
    try:
        if sys.stdout is not None:  # it may have been closed from the beginning
            sys.stdout.flush()
    except BrokenPipeError:  # all is done: that the reader has gone does not change the outcome
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        _unwritten(error)
    except ValueError:  # it is closed already
        pass


def _unwritten(error: OSError) -> None:
    """End: a file or the output cannot be written or read. If the reader has gone (`| head`), say nothing."""
    if isinstance(error, BrokenPipeError):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)  # as it ends other programs
    print(f"{name()}: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
    os._exit(OUTPUT)


class _Names(type):
    """Has whatever name it is asked for."""

    def __getattr__(cls, name: str) -> Any:
        return cls

    def __index__(cls) -> int:
        return 0


class Nothing(metaclass=_Names):
    """Stands for whatever an absent package has, until --help is printed."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return cls

    def __class_getitem__(cls, _: object) -> Any:
        return cls


class Absent(MetaPathFinder, Loader):
    """Finds packages that are not there, so that a program which is asked for nothing but help can begin."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        absent = {fullname, fullname.partition(".")[0]} & set(self.packages)
        return ModuleSpec(fullname, self, is_package=True) if absent else None

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = lambda name: Nothing  # type: ignore[method-assign]
