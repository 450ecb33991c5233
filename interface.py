"""The structs of kvstore.thrift, and their bytes.

Everything else imports the generated structs from here, so that gen-py/ is put on the path in one place.

    encode(struct)        -> bytes, Thrift's strict binary protocol
    decode(type, bytes)   -> struct, or Malformed

The work is done by Thrift's C extension; without it this module refuses to load, for the pure Python protocol
is thirty times slower and checks less.
"""

import sys
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
    Command,
    Entry,
    Expired,
    Fact,
    Fetch,
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
    Outcome,
    Page,
    Position,
    Prepare,
    Promise,
    Reading,
    ReadMode,
    Record,
    Refused,
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
    "Command",
    "Entry",
    "Expired",
    "Fact",
    "Fetch",
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
    "Outcome",
    "Page",
    "Position",
    "Prepare",
    "Promise",
    "ReadMode",
    "Reading",
    "Record",
    "Refused",
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
]

# The limits of section "Input limits" of the README.
MAX_KEY_BYTES = 4096
MAX_VALUE_BYTES = 512 * 1024
MAX_BATCH = 10_000
MAX_CLIENT_FRAME = 1 << 20
MAX_NODE_FRAME = 8 << 20


class Malformed(ValueError):
    """These bytes are not the struct that they should be. Nothing was done with them."""


class _Buffer:
    """What Thrift's C decoder reads from: a transport that ends with its bytes, and its protocol in one."""

    __slots__ = ("container_length_limit", "cstringio_buf", "string_length_limit", "trans")

    def __init__(self, data: bytes, offset: int) -> None:
        self.cstringio_buf = BytesIO(data)
        self.cstringio_buf.seek(offset)
        self.string_length_limit = self.container_length_limit = len(
            data
        )  # nothing in it can be longer than all of it
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
    target = (
        kind() if kind.__hash__ is None else None
    )  # the generated immutable structs, and only they, are hashable
    try:
        struct = fastbinary.decode_binary(target, _Buffer(data, offset), [kind, kind.thrift_spec])
    except (EOFError, ValueError, OverflowError, TypeError, MemoryError, TProtocolException) as error:
        raise Malformed(f"{kind.__name__}: {type(error).__name__}: {error}") from error
    return struct if target is None else target
