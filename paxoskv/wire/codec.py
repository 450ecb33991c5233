"""Structs to bytes and back.

    encode(struct)        -> bytes, in Thrift's strict binary protocol
    decode(type, bytes)   -> struct, or Malformed

Thrift's C extension does the work. Where the modules are compiled, a codec made for our structs
(tools/make_codec.py) does it for most of them: the same bytes in a third of the time. Without the C extension
this module does not load, because Thrift's pure Python protocol is thirty times slower and checks less.
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
from paxoskv.kvstore.ttypes import Compacted, Expired, Forgotten, NotDone, Refused, Unknown
from paxoskv.wire import structs

__all__ = [
    "Compacted", "Expired", "Forgotten", "Malformed", "NotDone", "NotText", "Refused", "Status", "Unknown",
    "decode", "decode_bytes", "encode", "named_tuple",
]  # fmt: skip

# The compiled codec, which tools/compile.py makes. (Its import fails if librt has been removed since.)
codec: Any = None
if not __file__.endswith(".py"):
    with contextlib.suppress(ImportError, ValueError):
        codec = importlib.import_module("paxoskv.wire.kvstore_codec")


class Malformed(ValueError):
    """The bytes are not the struct that was expected; nothing was done with them."""


class NotText(Malformed):
    """A text is not UTF-8; the message names its field."""


_ENCODERS: Final[dict[Any, Any]] = {}
_DECODERS: Final[dict[Any, Any]] = {}
_NAMED_TUPLES: Final[dict[Any, Any]] = {}


def named_tuple(kind: Any) -> Any:
    """Return the named tuple for a generated struct; all its fields are optional.

    It has the same fields and bytes, is immutable, and is made in half the time. (The constructor of a
    generated immutable struct calls super().__setattr__ for each of its fields.)
    """
    make: Any = namedtuple  # mypy cannot follow names that are made at run time
    if kind not in _NAMED_TUPLES:
        names = [field[2] for field in kind.thrift_spec if field]
        fields = make(kind.__name__, names, defaults=[None] * len(names))
        members = {"__slots__": (), "__doc__": kind.__doc__}
        _adopt(kind, type(kind.__name__, (fields,), members))
    return _NAMED_TUPLES[kind]


def _spec(kind: Any) -> Any:
    """Return Thrift's description of a struct, with named tuples in place of generated structs."""
    return tuple(field and (*field[:3], _details(field[3]), field[4]) for field in kind.thrift_spec)


def _refuse(struct: Any, name: str, value: Any) -> None:
    raise AttributeError(f"{type(struct).__name__} cannot be changed")


def _details(details: Any) -> Any:
    """Return a field's type arguments, with named tuples in place of structs; exceptions stay exceptions."""
    if isinstance(details, list):
        kind = details[0]
        if issubclass(kind, BaseException):
            return details
        return [named_tuple(kind), named_tuple(kind).thrift_spec]
    if isinstance(details, tuple):
        return tuple(_details(part) for part in details)
    return details


def _adopt(kind: Any, light: Any) -> None:
    """Let a named tuple take the place of this generated struct."""
    light.__setattr__ = _refuse  # the C extension sets a struct's fields one by one if its class lacks this
    light.thrift_spec = _spec(kind)
    _NAMED_TUPLES[kind] = _NAMED_TUPLES[light] = light
    if codec and kind.__name__ in codec.CODECS:
        _ENCODERS[light], _DECODERS[light] = codec.CODECS[kind.__name__]
        codec.adopt(light, light._fields, len(light._fields) - len(light._field_defaults))


for _name, _kind in vars(structs).items():
    if hasattr(_kind, "_fields"):
        _adopt(getattr(generated, _name), _kind)

Status: Any = named_tuple(generated.Status)


class _Buffer:
    """The transport and the protocol that Thrift's C decoder reads from, in one; it ends with its bytes."""

    __slots__ = ("container_length_limit", "cstringio_buf", "string_length_limit")

    def __init__(self, data: bytes, offset: int) -> None:
        self.cstringio_buf = BytesIO(data)
        self.cstringio_buf.seek(offset)
        # No string or container can be longer than the whole.
        self.string_length_limit = self.container_length_limit = len(data)

    @property
    def trans(self) -> "_Buffer":
        """The transport: no attribute, because this would keep itself until garbage is collected."""
        return self

    def cstringio_refill(self, prefix: bytes, size: int) -> None:
        raise EOFError("the struct is longer than its bytes")


def decode_bytes(kind: Any, data: bytes, offset: int) -> Any:
    """Decode the struct of this type, its texts as the bytes that they are; they need not be UTF-8."""
    return fastbinary.decode_binary(None, _Buffer(data, offset), [kind, _with_bytes(kind.thrift_spec)])


def _with_bytes(details: Any) -> Any:
    """Return a description of a struct, or a part of one, in which every text is binary."""
    if isinstance(details, tuple | list):
        return type(details)(_with_bytes(part) for part in details)
    return "BINARY" if details == "UTF8" else details


def encode(struct: Any) -> bytes:
    """Encode a struct; raise ValueError, TypeError or OverflowError if a field does not fit its type."""
    encoder = _ENCODERS.get(struct.__class__)
    if encoder is not None:
        try:
            return encoder(struct)
        except (ValueError, TypeError, OverflowError, IndexError, AttributeError):
            pass  # the C extension says what is wrong
    data: bytes = fastbinary.encode_binary(struct, [struct.__class__, struct.thrift_spec])
    return data


def decode(kind: Any, data: bytes, offset: int = 0) -> Any:
    """Decode the struct of this type at the offset; raise Malformed if the bytes are none.

    Bytes after the struct are ignored. A field that is absent or has another type becomes None if structs.py
    gives it a default, or if the struct is the arguments or result of a method. The caller validates those.
    """
    decoder = _DECODERS.get(kind)
    if decoder is not None:
        try:
            return decoder(kind, data, offset)
        except (ValueError, TypeError, IndexError, MemoryError):
            pass  # the C extension decides whether the bytes are wrong
    target = kind() if kind.__hash__ is None else None  # immutable structs are made by the decoder
    try:
        struct = fastbinary.decode_binary(target, _Buffer(data, offset), [kind, kind.thrift_spec])
    except (EOFError, ValueError, OverflowError, TypeError, MemoryError, TProtocolException) as error:
        raise Malformed(f"{kind.__name__}: {type(error).__name__}: {error}") from error
    return struct if target is None else target
