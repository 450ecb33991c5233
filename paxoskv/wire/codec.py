"""The structs of kvstore.thrift, as named tuples, and their bytes.

Everything else imports the structs from here.

    encode(struct)        -> bytes, Thrift's strict binary protocol
    decode(type, bytes)   -> struct, or Malformed

The work is done by Thrift's C extension; where the modules are compiled, for most structs by a codec that is
made for them (tools/make_codec.py): the same bytes, in a third of the time. Without the C extension this
module refuses to load, for the pure Python protocol is thirty times slower and checks less.
"""

import contextlib
import importlib
from collections import namedtuple
from io import BytesIO
from typing import Any, Final

try:
    from thrift.protocol import fastbinary
    from thrift.protocol.TProtocol import TProtocolException
except ImportError as error:
    raise SystemExit(
        "thrift: its C extension (thrift.protocol.fastbinary) is missing: install a C compiler and the "
        "Python headers, then 'pip install --force-reinstall --no-binary thrift thrift'"
    ) from error

from paxoskv.kvstore import ttypes as generated
from paxoskv.kvstore.ttypes import Expired, Forgotten, NotDone, Refused, Unknown
from paxoskv.wire import structs
from paxoskv.wire.structs import (
    Accept,
    Accepted,
    Barrier,
    Batch,
    Chosen,
    Chunk,
    Command,
    Entry,
    Fact,
    Fetch,
    FetchCheckpoint,
    Fetched,
    Frame,
    Held,
    Identity,
    Item,
    Learn,
    LogBallot,
    LogStatus,
    Noted,
    Outcome,
    Page,
    Position,
    Prepare,
    Promise,
    Reading,
    ReadMode,
    Record,
    Recovered,
    Rejoin,
    Rejoined,
    RequestId,
    Result,
    Session,
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
    "Recovered",
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

# The same in machine code: tools/compile.py makes it. (It needs librt, which may be gone since.)
codec: Any = None
if not __file__.endswith(".py"):
    with contextlib.suppress(ImportError, ValueError):
        codec = importlib.import_module("paxoskv.wire.kvstore_codec")

# The limits of section "Input limits" of the README.
MAX_KEY_BYTES: Final = 4096
MAX_VALUE_BYTES: Final = 512 * 1024
MAX_BATCH: Final = 10_000
MAX_CLIENT_FRAME: Final = 1 << 20
MAX_NODE_FRAME: Final = 8 << 20


class Malformed(ValueError):
    """These bytes are not the struct that they should be. Nothing was done with them."""


_ENCODERS: Final[dict[Any, Any]] = {}
_DECODERS: Final[dict[Any, Any]] = {}
_NAMED_TUPLES: Final[dict[Any, Any]] = {}


def named_tuple(kind: Any) -> Any:
    """A generated struct as a named tuple: the same fields and bytes, immutable, and made in half the time.

    (The constructor of a generated immutable struct calls super().__setattr__ for each of its fields.)
    """
    make: Any = namedtuple  # (mypy follows no names that are made at run time)
    if kind not in _NAMED_TUPLES:
        names = [field[2] for field in kind.thrift_spec if field]
        fields = make(kind.__name__, names, defaults=[None] * len(names))
        members = {"__slots__": (), "__doc__": kind.__doc__}
        _adopt(kind, type(kind.__name__, (fields,), members))
    return _NAMED_TUPLES[kind]


def _spec(kind: Any) -> Any:
    """Thrift's description of a struct, with named tuples in place of structs."""
    return tuple(field and (*field[:3], _details(field[3]), field[4]) for field in kind.thrift_spec)


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


def _adopt(kind: Any, light: Any) -> None:
    """Let a named tuple stand for this generated struct."""
    light.__setattr__ = _refuse  # C fills a struct field by field unless its class has one
    light.thrift_spec = _spec(kind)
    _NAMED_TUPLES[kind] = _NAMED_TUPLES[light] = light
    if codec and kind.__name__ in codec.CODECS:
        light.__new__, _ENCODERS[light], _DECODERS[light] = codec.CODECS[kind.__name__]


for _name, _kind in vars(structs).items():
    if hasattr(_kind, "_fields"):
        _adopt(getattr(generated, _name), _kind)

Status: Any = named_tuple(generated.Status)


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
    encoder = _ENCODERS.get(struct.__class__)
    if encoder is not None:
        try:
            return encoder(struct)
        except (ValueError, TypeError, OverflowError, IndexError, AttributeError):
            pass  # C says what is wrong with it
    data: bytes = fastbinary.encode_binary(struct, [struct.__class__, struct.thrift_spec])
    return data


def decode(kind: Any, data: bytes, offset: int = 0) -> Any:
    """The struct of this generated type that begins at the offset; bytes behind it are ignored. Malformed
    otherwise.

    A field that is absent, or has another type, arrives as None where structs.py gives it a default, and in
    the arguments and results of methods: whoever takes those from outside validates them.
    """
    decoder = _DECODERS.get(kind)
    if decoder is not None:
        try:
            return decoder(kind, data, offset)
        except (ValueError, TypeError, IndexError, MemoryError):
            pass  # C says whether it is wrong
    target = kind() if kind.__hash__ is None else None  # what cannot be changed later is made at once
    try:
        struct = fastbinary.decode_binary(target, _Buffer(data, offset), [kind, kind.thrift_spec])
    except (EOFError, ValueError, OverflowError, TypeError, MemoryError, TProtocolException) as error:
        raise Malformed(f"{kind.__name__}: {type(error).__name__}: {error}") from error
    return struct if target is None else target
