"""What the command line prints, and what happens if the reader has gone or the disk is full.

Answers go to stdout. In a file or a pipe they are exactly what was stored, in UTF-8. On a terminal, control
characters are escaped, because they could do anything to it, and so is what its encoding lacks. Errors go to
stderr. No output that fails ends a command: what was done is done, and the exit code tells the rest.
"""

import errno
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TextIO

DONE, NEGATIVE, USAGE, UNREACHABLE, UNKNOWN, DATA, OUTPUT, INTERRUPTED = 0, 1, 2, 3, 4, 65, 74, 130

EXIT_CODES: Final = """\
exit codes:
  0    all done
  1    a negative answer: key not found, comparison failed, some operation refused
  2    usage, or a cluster's file that cannot be used, or is that of another cluster
  3    nothing done, and no node can be reached
  4    the outcome of some operation is unknown: it may have been done (this beats 1)
  65   the file is not what it should be: rows are no operations (run --keep-going: 0), or lines no keys
  74   answers or results cannot be written: all was done, or nothing if their file cannot be opened
  130  interrupted
"""

# Control characters, and those that turn the direction of the text after them.
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def escaped(text: str, keep: str = "") -> str:
    """Escape the control characters in the text, but not those to keep."""
    return _CONTROL.sub(lambda c: c[0] if c[0] in keep else c[0].encode("unicode_escape").decode(), text)


def remark(text: str) -> None:
    """Print to stderr what only a person at a terminal wants to know."""
    if sys.stderr is not None and sys.stderr.isatty():
        say(text)


def say(text: str) -> None:
    """Print to stderr, if that is possible."""
    if sys.stderr is None:  # it was closed when the program began
        return
    try:
        print(text, file=sys.stderr)
    except OSError:
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Discard what is written to this stream, so that the end of the program does not fail too."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


class Output:
    """Prints answers to stdout, as text or JSON, and errors to stderr (with JSON, to stdout as well)."""

    def __init__(self, program: str, as_json: bool = False, raw: bool = False) -> None:
        """Make the outputs of `program`, as it was called; `raw`: control characters are not escaped."""
        self.program = program
        self.as_json = as_json
        self.failure: OSError | None = None  # nothing is printed any more
        self.terminal = sys.stdout is not None and sys.stdout.isatty()
        self._escape = self.terminal and not raw
        if isinstance(sys.stdout, io.TextIOWrapper):
            encoding = sys.stdout.encoding if self._escape else "utf-8"
            sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")

    def complain(self, message: object) -> None:
        """Print an error, in one line."""
        say(f"{self.program}: {escaped(str(message))}")

    def shown(self, text: str, keep: str = "") -> str:
        """Return the text as it may be printed to where stdout leads."""
        return escaped(text, keep) if self._escape else text

    def write(self, text: str) -> bool:
        """Print a text; return False if nobody gets it."""
        if self.failure is None:
            try:
                if sys.stdout is None:  # it was closed when the program began
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                print(text)
            except OSError as error:
                self.fail(error)
        return self.failure is None

    def flush(self) -> bool:
        """Let everything arrive that was printed; return False if it cannot."""
        if self.failure is None and sys.stdout is not None:
            try:
                sys.stdout.flush()
            except OSError as error:
                self.fail(error)
        return self.failure is None

    def fail(self, error: OSError) -> None:
        """Note that stdout takes nothing any more."""
        self.failure = error
        if sys.stdout is not None:
            _discard(sys.stdout)

    def end(self, code: int) -> int:
        """Return the exit code of a command that would end with this one if all that it printed had arrived.

        A reader that has gone wanted no more: that is no failure.
        """
        if self.flush() or isinstance(self.failure, BrokenPipeError):
            return code
        self.complain(f"stdout: {self.failure and self.failure.strerror}")
        return code or OUTPUT

    def answer(self, text: str, value: dict[str, Any]) -> bool:
        """Print an answer, as text or JSON; return False if nobody gets it."""
        return self.write(json.dumps(value) if self.as_json else text)

    def negative(self, text: str, value: dict[str, Any]) -> int:
        """Print a negative answer, as text (to stderr) or JSON; return its exit code."""
        if self.as_json:
            self.write(json.dumps(value))
        else:
            self.complain(text)
        return NEGATIVE

    def error(self, kind: str, message: object, code: int) -> int:
        """Print an error, and return its exit code."""
        if self.as_json:
            self.write(json.dumps({"error": kind, "message": str(message), "exit_code": code}))
        self.complain(message)
        return code


class Progress:
    """Draws a progress bar on stderr if that is a terminal, and beside it how the run goes."""

    def __init__(self, total: int | None) -> None:
        """Make it for so many operations; None: nobody knows how many there will be."""
        self._total = total
        self._bar: Any = None
        self._ended: list[Any] = []  # since the line was drawn
        self._drawn = time.monotonic()

    def __enter__(self) -> "Progress":
        if sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar

            self._bar = Bar(console=Console(stderr=True), transient=True)
            self._bar.start()
            self._bar.add_task("operations", total=self._total)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, ended: Sequence[Any], line: Callable[[Sequence[Any], float], str]) -> None:
        """Show what has ended since; once a second `line` says it, given that second's operations."""
        if self._bar:
            task = self._bar.task_ids[0]
            self._bar.advance(task, len(ended))
            self._ended += ended
            if (seconds := time.monotonic() - self._drawn) >= 1:
                self._bar.update(task, description=line(self._ended, seconds))
                self._ended, self._drawn = [], time.monotonic()
