"""The structs of kvstore.thrift, as named tuples, and their bytes.

Everything else imports the generated structs from here, so that gen-py/ is put on the path in one place.

    encode(struct)        -> bytes, Thrift's strict binary protocol
    decode(type, bytes)   -> struct, or Malformed

The work is done by Thrift's C extension; without it this module refuses to load, for the pure Python protocol
is thirty times slower and checks less.
"""

import sys
from collections import namedtuple
from io import BytesIO
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "gen-py"))

try:
    from thrift.protocol import fastbinary
    from thrift.protocol.TProtocol import TProtocolException
except ImportError as error:
    raise SystemExit(
        "thrift: its C extension (thrift.protocol.fastbinary) is missing: install a C compiler and the "
        "Python headers, then 'pip install --force-reinstall --no-binary thrift thrift'"
    ) from error

from kvstore.ttypes import (
    Accept,
    Accepted,
    Barrier,
    Batch,
    Chosen,
    Chunk,
    Command,
    Entry,
    Expired,
    Fact,
    Fetch,
    FetchCheckpoint,
    Fetched,
    Forgotten,
    Frame,
    Held,
    Identity,
    Item,
    Learn,
    LogBallot,
    LogStatus,
    NotDone,
    Noted,
    Outcome,
    Page,
    Position,
    Prepare,
    Promise,
    Reading,
    ReadMode,
    Record,
    Refused,
    Rejoin,
    Rejoined,
    RequestId,
    Result,
    Session,
    Status,
    Unknown,
    Verb,
    Verdict,
    Vote,
)

__all__ = [
    "Accept",
    "Accepted",
    "Barrier",
    "Batch",
    "Chosen",
    "Chunk",
    "Command",
    "Entry",
    "Expired",
    "Fact",
    "Fetch",
    "FetchCheckpoint",
    "Fetched",
    "Forgotten",
    "Frame",
    "Held",
    "Identity",
    "Item",
    "Learn",
    "LogBallot",
    "LogStatus",
    "Malformed",
    "NotDone",
    "Noted",
    "Outcome",
    "Page",
    "Position",
    "Prepare",
    "Promise",
    "ReadMode",
    "Reading",
    "Record",
    "Refused",
    "Rejoin",
    "Rejoined",
    "RequestId",
    "Result",
    "Session",
    "Status",
    "Unknown",
    "Verb",
    "Verdict",
    "Vote",
    "decode",
    "encode",
    "named_tuple",
]

# The limits of section "Input limits" of the README.
MAX_KEY_BYTES = 4096
MAX_VALUE_BYTES = 512 * 1024
MAX_BATCH = 10_000
MAX_CLIENT_FRAME = 1 << 20
MAX_NODE_FRAME = 8 << 20


class Malformed(ValueError):
    """These bytes are not the struct that they should be. Nothing was done with them."""


def named_tuple(kind: Any) -> Any:
    """A generated struct as a named tuple: the same fields and bytes, immutable, and made in half the time.

    (The constructor of a generated immutable struct calls super().__setattr__ for each of its fields.)
    """
    make: Any = namedtuple  # (mypy follows no names that are made at run time)
    if kind not in _NAMED_TUPLES:
        spec = tuple(field and (*field[:3], _details(field[3]), field[4]) for field in kind.thrift_spec)
        names = [field[2] for field in spec if field]
        fields = make(kind.__name__, names, defaults=[None] * len(names))
        # C fills a struct field by field unless its class has a __setattr__ of its own.
        members = {"__slots__": (), "__setattr__": _refuse, "__doc__": kind.__doc__, "thrift_spec": spec}
        light = type(kind.__name__, (fields,), members)
        _NAMED_TUPLES[kind] = _NAMED_TUPLES[light] = light
    return _NAMED_TUPLES[kind]


def _refuse(struct: Any, name: str, value: Any) -> None:
    raise AttributeError(f"{type(struct).__name__} cannot be changed")


def _details(details: Any) -> Any:
    """The type arguments of a field, with named tuples in place of structs; exceptions stay exceptions."""
    if isinstance(details, list):
        kind = details[0]
        if issubclass(kind, BaseException):
            return details
        return [named_tuple(kind), named_tuple(kind).thrift_spec]
    if isinstance(details, tuple):
        return tuple(_details(part) for part in details)
    return details


_NAMED_TUPLES: dict[Any, Any] = {}

for _name, _kind in list(globals().items()):
    if hasattr(_kind, "thrift_spec") and not issubclass(_kind, BaseException):
        globals()[_name] = named_tuple(_kind)


class _Buffer:
    """What Thrift's C decoder reads from: a transport that ends with its bytes, and its protocol in one."""

    __slots__ = ("container_length_limit", "cstringio_buf", "string_length_limit", "trans")

    def __init__(self, data: bytes, offset: int) -> None:
        self.cstringio_buf = BytesIO(data)
        self.cstringio_buf.seek(offset)
        # Nothing in it can be longer than all of it.
        self.string_length_limit = self.container_length_limit = len(data)
        self.trans = self

    def cstringio_refill(self, prefix: bytes, size: int) -> None:
        raise EOFError("the struct is longer than its bytes")


def encode(struct: Any) -> bytes:
    """The bytes of a generated struct. ValueError, TypeError or OverflowError if a field does not fit its
    type.
    """
    data: bytes = fastbinary.encode_binary(struct, [struct.__class__, struct.thrift_spec])
    return data


def decode(kind: Any, data: bytes, offset: int = 0) -> Any:
    """The struct of this generated type that begins at the offset; bytes behind it are ignored. Malformed
    otherwise.

    A field that is absent, or has another type, arrives as None: whoever takes structs from outside validates
    them.
    """
    target = kind() if kind.__hash__ is None else None  # what cannot be changed later is made at once
    try:
        struct = fastbinary.decode_binary(target, _Buffer(data, offset), [kind, kind.thrift_spec])
    except (EOFError, ValueError, OverflowError, TypeError, MemoryError, TProtocolException) as error:
        raise Malformed(f"{kind.__name__}: {type(error).__name__}: {error}") from error
    return struct if target is None else target
