"""Reads files of operations.

    read(path) -> bytes                  "-" is stdin; what gzip has packed is unpacked
    parse(bytes) -> rows, bad rows

A file is CSV (RFC 4180, UTF-8): PUT,key,value or GET,key[,expected] or DELETE,key[,ignored]. The expected
value is not compared, because other processes write at the same time. The file may have a byte-order mark,
blank lines, # comments, a header row, and line ends of any kind. Blanks and tabs around a field do not belong
to it, unless it is in quotes; that holds for verb, key and value. Commas behind the last field mean nothing.

The module csv would say neither which fields were in quotes, nor where a quote begins that nothing closes.
"""

import errno
import gzip
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from paxoskv.wire.validation import MAX_KEY_BYTES, MAX_VALUE_BYTES

VERBS: Final = ("PUT", "GET", "DELETE")
MAX_SHOWN: Final = 20  # characters of a wrong field that an error repeats
MAX_FIELDS: Final = 3

_GZIP: Final = b"\x1f\x8b"
# How files begin that are no text, and what they are.
_KINDS: Final = (
    ((b"\xff\xfe", b"\xfe\xff"), "UTF-16: save it as UTF-8"),
    ((b"PK\3\4",), "a spreadsheet or another zip archive: save it as CSV"),
    (
        (b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"),
        "compressed: unpack it first (only gzip is unpacked here)",
    ),
)
_BLANKS: Final = " \t"
_LINE_END: Final = re.compile(r"\r\n?|\n|\Z")
# A field with the blanks around it, and what ends it: in quotes, or without.
_FIELD: Final = re.compile(
    r'[ \t]*+(?:"([^"]*+(?:""[^"]*+)*+)"[ \t]*+|([^",\r\n][^,\r\n]*+)?+)(,|\r\n?|\n|\Z)'
)
_CLOSING: Final = re.compile(r'[^"]*+(?:""[^"]*+)*+"')
# How the first row begins if its fields are separated by something else than commas.
_SEPARATED: Final = re.compile(r'[ \t"]*[A-Za-z]+[ \t"]*([;\t| ])')
_SEPARATORS: Final = {";": "semicolons", "\t": "tabs", "|": "bars", " ": "blanks"}


class Row(NamedTuple):
    """One operation of a file."""

    verb: str
    key: str
    value: str  # of a PUT; otherwise empty


class BadRow(NamedTuple):
    """A row that is no operation: its line (the first is 1), the reason, and how many lines are lost."""

    line: int
    reason: str
    lines: int = 1


class WrongFile(Exception):
    """The file as a whole holds no rows of operations; the message says what it is instead."""


def read(path: str) -> bytes:
    """Return the content of a file, or of stdin for "-"; raise OSError, or WrongFile for a damaged gzip."""
    if path == "-" and sys.stdin is None:
        raise OSError(errno.EBADF, "stdin is closed")
    data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    if not data.startswith(_GZIP):
        return data
    try:
        return gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise WrongFile(f"damaged gzip: {error}") from None


def parse(data: bytes) -> tuple[list[Row], list[BadRow]]:
    """Read the rows of a file; return the operations, and the rows that are none. Or raise WrongFile."""
    for starts, what in _KINDS:
        if data.startswith(starts):
            raise WrongFile(what)
    # Bytes that are not UTF-8 become lone surrogates, so that only the rows that hold them are refused.
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    rows: list[Row] = []
    bad: list[BadRow] = []
    first = True
    for line, found in _records(text):
        if isinstance(found, BadRow):
            bad.append(found)
            continue
        header, first = first and _is_header(found), False
        row = None if header else _row(found)
        if isinstance(row, str):
            bad.append(BadRow(line, row))
        elif row:
            rows.append(row)
    if bad and not rows:
        _check_kind(next(line for line in text.splitlines() if line.strip() and not line.startswith("#")))
    return rows, bad


def _check_kind(first: str) -> None:
    """Raise WrongFile if a first row that is no operation looks like one of another kind of file."""
    if "\0" in first:
        raise WrongFile("it has zero bytes: if it is UTF-16, save it as UTF-8")
    if first.startswith(("{", "[")):
        raise WrongFile("JSON: CSV is needed")
    if match := _SEPARATED.match(first):
        raise WrongFile(f"its fields are separated by {_SEPARATORS[match[1]]}: separate them by commas")


def _records(text: str) -> Iterator[tuple[int, list[str] | BadRow]]:
    """Return each row's line and fields, or why it is none; leave out comments and blank lines."""
    at, line = 0, 1
    while at < len(text):
        end = _LINE_END.search(text, at)
        assert end is not None, "a text ends somewhere"
        plain, start = text[at : end.start()], at
        if plain.lstrip(_BLANKS).startswith("#") or not plain.strip():
            at, line = end.end(), line + 1
        elif '"' not in plain:
            yield line, [field.strip(_BLANKS) for field in plain.split(",")]
            at, line = end.end(), line + 1
        else:
            found, at = _quoted(text, at, line)
            yield line, found
            line += _count_lines(text, start, at)


def _quoted(text: str, at: int, line: int) -> tuple[list[str] | BadRow, int]:
    """Read a row that has quotes; return its fields, or why it is none, and where the next row begins."""
    start, fields = at, []
    while match := _FIELD.match(text, at):
        quoted, unquoted, end = match.groups()
        fields.append((unquoted or "").rstrip(_BLANKS) if quoted is None else quoted.replace('""', '"'))
        at = match.end()
        if end != ",":
            return fields, at
    quote = text.index('"', at)
    opened = line + _count_lines(text, start, quote)
    closing = _CLOSING.match(text, quote + 1)
    if closing is None:
        lost = _count_lines(text, start, len(text)) + (not text.endswith(("\n", "\r")))
        reason = f"a quote opens here that nothing closes: {lost:,} lines are lost"
        return BadRow(opened, reason, lost), len(text)
    end_of_line = _LINE_END.search(text, closing.end())
    assert end_of_line is not None, "a text ends somewhere"
    lost = max(_count_lines(text, start, end_of_line.end()), 1)
    reason = (
        f"not CSV: text behind a quoted field, in line {opened + _count_lines(text, quote, closing.end())}"
    )
    if lost > 1:
        reason += f"; its quote opens here: {lost:,} lines are lost"
    return BadRow(opened, reason, lost), end_of_line.end()


def _count_lines(text: str, start: int, end: int) -> int:
    """Return how many lines end between these places."""
    return text.count("\n", start, end) + text.count("\r", start, end) - text.count("\r\n", start, end)


def _is_header(fields: Sequence[str]) -> bool:
    return len(fields) > 1 and fields[0].upper() not in VERBS and fields[1].lower() == "key"


def _row(fields: list[str]) -> Row | str:
    """Return the operation, or the reason why there is none."""
    while len(fields) > MAX_FIELDS and not fields[-1]:
        fields.pop()
    verb = fields[0].upper()
    if verb not in VERBS:
        return f"unknown verb {_shown(fields[0])} (PUT, GET and DELETE are known)"
    if len(fields) < 2 or not fields[1]:
        return f"{verb} without a key"
    if len(fields) > MAX_FIELDS:
        return f"{verb} with {len(fields)} fields (at most {MAX_FIELDS})"
    if verb == "PUT" and len(fields) < 3:
        return "PUT without a value"
    row = Row(verb, fields[1], fields[2] if verb == "PUT" else "")
    try:
        key, value = len(row.key.encode()), len(row.value.encode())
        "".join(fields).encode()
    except UnicodeEncodeError:
        return "not UTF-8"
    if key > MAX_KEY_BYTES:
        return f"a key of {key:,} bytes (at most {MAX_KEY_BYTES:,})"
    if value > MAX_VALUE_BYTES:
        return f"a value of {value:,} bytes (at most {MAX_VALUE_BYTES:,})"
    return row


def _shown(text: str) -> str:
    """Show the text in one line, escaped, and cut if it is long."""
    return ascii(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "...")
