"""Export and import: the keys and values as JSON Lines, each line an object with `key` and `value`.

Keys and values are texts (UTF-8); JSON escapes what is no letter, so every one of them is written and read
back as it was. Both go on where they ended: an export after the last whole line of its file, an import
after the lines that a message names. An import sets keys, and does nothing else; to do it twice does no
harm, unless somebody else has written these keys in between.
"""

import json
import os
from collections.abc import Iterable, Iterator
from io import SEEK_END
from typing import IO, Final

from paxoskv.client.operations import ClientError
from paxoskv.client.sync import Client
from paxoskv.wire.structs import Command, Item, Outcome, Verb
from paxoskv.wire.validation import MAX_CLIENT_FRAME, MAX_KEY_BYTES, MAX_RESULTS, MAX_VALUE_BYTES

# Bytes of the longest line: JSON escapes a character by six, or twelve for four bytes of it.
MAX_LINE: Final = 6 * (MAX_KEY_BYTES + MAX_VALUE_BYTES) + 100
# Bytes of keys and values that one call imports, and what a command has besides.
BATCH_BYTES: Final = MAX_CLIENT_FRAME // 2
COMMAND_BYTES: Final = 128


class WrongLine(ValueError):
    """A line that is no key and value; the message names it, and says why."""


class Stopped(Exception):
    """An import has ended early, by `cause`: so many lines of its file have been imported for certain."""

    def __init__(self, lines: int, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.lines = lines
        self.cause = cause


def line_of(item: Item) -> str:
    """Return an item's line, without its end."""
    return json.dumps({"key": item.key, "value": item.value})


def item_of(line: bytes) -> Item:
    """Read a line; ValueError says what is wrong with it."""
    try:
        fields = json.loads(line.decode())
    except RecursionError:
        raise ValueError("too deep") from None
    if not isinstance(fields, dict) or set(fields) != {"key", "value"}:
        raise ValueError('it is not {"key": ..., "value": ...}')
    for name, value in fields.items():
        if not isinstance(value, str):
            raise ValueError(f"{name}: a text is needed")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name}: half a character (a lone surrogate) is no text") from None
    return Item(fields["key"], fields["value"])


# ----------------------------------------------------------------------------------------------------- export


def last_key(file: IO[bytes]) -> str | None:
    """Return the key of the last whole line (None: there is none), and cut what follows; or ValueError."""
    size = file.seek(0, SEEK_END)
    start = max(size - 2 * MAX_LINE, 0)
    file.seek(start)
    tail = file.read()
    end = tail.rfind(b"\n") + 1
    if not end and start:
        raise ValueError("its last line is longer than any line of an export")
    file.truncate(start + end)
    file.seek(start + end)
    return item_of(tail[tail.rfind(b"\n", 0, end - 1) + 1 : end]).key if end else None


def export(items: Iterable[Item], file: IO[bytes]) -> int:
    """Write the items' lines durably; return how many there were."""
    count = 0
    for item in items:
        file.write(line_of(item).encode() + b"\n")
        count += 1
    file.flush()
    os.fsync(file.fileno())
    return count


# ----------------------------------------------------------------------------------------------------- import


def batches(file: IO[bytes], skip: int) -> Iterator[tuple[int, list[Item]]]:
    """Return the items of one call after another, and how many lines are behind them; or WrongLine."""
    number, room, items = 0, BATCH_BYTES, list[Item]()
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if number <= skip:
            continue
        try:
            if len(line) > MAX_LINE:
                raise ValueError(f"longer than {MAX_LINE:,} bytes")
            item = item_of(line)
        except ValueError as error:
            if items:
                yield number - 1, items
            raise WrongLine(f"{number}: {error}") from None
        size = COMMAND_BYTES + len(item.key.encode()) + len(item.value.encode())
        if items and (size > room or len(items) == MAX_RESULTS):
            yield number - 1, items
            items, room = [], BATCH_BYTES
        items.append(item)
        room -= size
    if number < skip:
        raise WrongLine(f"{number}: the file ends here: there are no {skip:,} lines to skip")
    if items:
        yield number, items


def import_(client: Client, file: IO[bytes], skip: int) -> int:
    """Set the keys of a file, after so many lines; return how many. Stopped says where to go on."""
    done, count = skip, 0
    try:
        for lines, items in batches(file, skip):
            results = client.execute([Command(Verb.PUT, item.key, item.value) for item in items])
            if any(result.outcome != Outcome.OK for result in results):
                raise ClientError(f"the store refused one of the lines {done + 1:,} to {lines:,}")
            done, count = lines, count + len(items)
    except (ClientError, WrongLine, KeyboardInterrupt) as error:
        raise Stopped(done, error) from error
    return count
