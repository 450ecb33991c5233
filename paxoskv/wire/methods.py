"""The messages of the interface: each method encodes and decodes its calls and answers. No socket here.

A message is a frame: its length (big-endian), then a header and a struct in Thrift's strict binary protocol.

    +--------+---------------+-----------------+--------------+----------------------------+
    | length | 80 01 00 kind | length and name | sequence     | struct: arguments / result |
    | i32    | i32           | i32, bytes      | i32          | fields ..., 00             |
    +--------+---------------+-----------------+--------------+----------------------------+
             `------------- constant per method ------------'

The table METHODS is derived from the generated code. Answers may overtake one another: the sequence says
which call an answer belongs to.
"""

from struct import Struct
from typing import Any, Final

from thrift.Thrift import TApplicationException, TMessageType, TType

from paxoskv.kvstore import KeyValue, Node
from paxoskv.wire.codec import Malformed, NotDone, NotText, decode, decode_bytes, encode, named_tuple

CALL: Final[int] = TMessageType.CALL
REPLY: Final[int] = TMessageType.REPLY
EXCEPTION: Final[int] = TMessageType.EXCEPTION
ONEWAY: Final[int] = TMessageType.ONEWAY

# Bytes of a method's name: far more than any name has. The answer to an unknown method repeats it.
MAX_NAME_BYTES: Final = 128
# Characters of an undeclared error that an answer repeats.
MAX_REASON: Final = 200

_STRICT: Final = 0x8001  # the version of the strict binary protocol, first in every message
_START: Final = Struct(">HHi")  # version, kind, length of the name
_SEQUENCE: Final = Struct(">i")
_STOP: Final = b"\0"


def header(frame: bytes, offset: int = 0) -> tuple[int, bytes, int, int]:
    """Return kind, name, sequence, and offset of the struct, of the message at this offset; or Malformed."""
    start = offset + 8
    if len(frame) < start:
        raise Malformed("a message that ends within its header")
    kind, length = frame[offset + 3], frame[offset + 7]
    strict = frame[offset] == 0x80 and frame[offset + 1] == 1 and frame[offset + 2] == 0
    short = frame[offset + 4] == 0 and frame[offset + 5] == 0 and frame[offset + 6] == 0
    if not strict or not short or not CALL <= kind <= ONEWAY or length > MAX_NAME_BYTES:
        raise Malformed("not a message of the strict binary protocol")
    end = start + length
    if len(frame) < end + 4:
        raise Malformed("a message that ends within its header")
    return kind, frame[start:end], _SEQUENCE.unpack_from(frame, end)[0], end + 4


# TApplicationException is no generated struct; with this description it can be encoded and decoded.
_SPEC: Final = (None, (1, TType.STRING, "message", "UTF8", None), (2, TType.I32, "type", None, None))
_Failure: Final = named_tuple(type("TApplicationException", (), {"thrift_spec": _SPEC}))


def failure(name: bytes, sequence: int, kind: int, reason: str) -> bytes:
    """Return the frame of a TApplicationException; `kind` is one of its numbers."""
    text = reason.encode("utf-8", "backslashreplace").decode()
    body = encode(_Failure(text, kind))
    start = _START.pack(_STRICT, EXCEPTION, len(name)) + name + _SEQUENCE.pack(sequence)
    return _SEQUENCE.pack(len(start) + len(body)) + start + body


def unknown_method(name: bytes, sequence: int) -> bytes:
    """Return the frame that answers a call of a method that is not in METHODS."""
    reason = f"unknown method {name.decode('utf-8', 'backslashreplace')!r}"
    return failure(name, sequence, TApplicationException.UNKNOWN_METHOD, reason)


class Method:
    """One method of the interface: it encodes and decodes the messages of the method.

    `call`, `reply` and `fail` return whole frames, with the 4-byte length. A sequence is a signed 32-bit
    number. Values that do not fit the interface raise ValueError, TypeError or OverflowError.
    """

    __slots__ = (
        "_call", "_call_start", "_optional", "_reply", "_reply_start", "_texts", "_whole_argument",
        "_whole_result", "args", "name", "oneway", "result", "service", "throws",
    )  # fmt: skip

    def __init__(self, service: Any, name: str) -> None:
        self.name = name
        self.service: str = service.__name__.rpartition(".")[2]
        self.args: Any = named_tuple(getattr(service, f"{name}_args"))
        result = getattr(service, f"{name}_result", None)
        self.result: Any = result and named_tuple(result)
        self.oneway = result is None
        arguments = [field for field in self.args.thrift_spec if field]
        results = [field for field in getattr(self.result, "thrift_spec", ()) if field]
        self.throws: dict[type, int] = {field[3][0]: field[0] for field in results if field[0] != 0}
        self._whole_argument = _only_struct(arguments)
        self._whole_result = _only_struct([field for field in results if field[0] == 0])
        self._texts = _texts(self.args)
        # Clients may leave arguments out. Nodes fill all fields, and the protocol relies on that.
        self._optional = self.service != "Node"
        self._call, self._call_start = self._opening(ONEWAY if self.oneway else CALL, self._whole_argument)
        self._reply, self._reply_start = self._opening(REPLY, self._whole_result)

    def _opening(self, kind: int, whole: type | None) -> tuple[Struct, bytes]:
        """Return how a frame begins: a layout of (length, bytes, sequence, struct's start), and the bytes."""
        name = self.name.encode()
        start = _START.pack(_STRICT, kind, len(name)) + name
        return Struct(f">i{len(start)}si{3 if whole else 0}s"), start

    def __repr__(self) -> str:
        return f"<Method {self.service}.{self.name}>"

    def call(self, sequence: int, *arguments: Any) -> bytes:
        """Return the frame that calls the method; absent arguments are None."""
        start = self._call_start
        if self._whole_argument:
            body = encode(arguments[0])
            return self._call.pack(len(start) + 8 + len(body), start, sequence, _ARGUMENT) + body + _STOP
        body = encode(self.args(*arguments))
        return self._call.pack(len(start) + 4 + len(body), start, sequence, b"") + body

    def reply(self, sequence: int, value: Any) -> bytes:
        """Return the frame that answers a call with this value."""
        start = self._reply_start
        if self._whole_result:
            body = encode(value)
            return self._reply.pack(len(start) + 8 + len(body), start, sequence, _SUCCESS) + body + _STOP
        assert self.result is not None, "a oneway method has no reply"
        body = encode(self.result(value))
        return self._reply.pack(len(start) + 4 + len(body), start, sequence, b"") + body

    def fail(self, sequence: int, error: Exception) -> bytes:
        """Return the frame that answers a call with this error, declared or as TApplicationException."""
        if isinstance(error, NotText) and NotDone in self.throws:
            error = NotDone(str(error), True)
        field = self.throws.get(type(error))
        if field is not None:
            body = b"\x0c" + field.to_bytes(2, "big") + encode(error) + _STOP
            start = self._reply_start + _SEQUENCE.pack(sequence)
            return _SEQUENCE.pack(len(start) + len(body)) + start + body
        kind, reason = TApplicationException.INTERNAL_ERROR, f"{type(error).__name__}: {error}"
        if isinstance(error, TApplicationException):
            kind, reason = error.type, str(error.message)
        elif isinstance(error, Malformed):
            kind, reason = TApplicationException.PROTOCOL_ERROR, str(error)
        return failure(self.name.encode(), sequence, kind, reason[:MAX_REASON])

    def arguments(self, frame: bytes, offset: int) -> tuple[Any, ...]:
        """Decode the arguments of a call from the struct at the offset; absent ones are None.

        Malformed: the bytes are no arguments of this method, a text is not UTF-8, or a message between nodes
        lacks a field.
        """
        whole = self._whole_argument if frame.startswith(_ARGUMENT, offset) else None
        if whole:
            values: tuple[Any, ...] = (decode(whole, frame, offset + 3),)
        else:
            values = decode(self.args, frame, offset)
        if not self._optional and values[0] is None:
            raise Malformed(f"{self.name}: a field is absent")
        if self._texts and _doubtful(values, self._texts):
            raw = (
                (decode_bytes(whole, frame, offset + 3),) if whole else decode_bytes(self.args, frame, offset)
            )
            name = _not_utf8(raw, self._texts)
            if name is not None:
                raise NotText(f"{name}: not UTF-8")
        return values

    def answer(self, kind: int, frame: bytes, offset: int) -> Any:
        """Decode the value in an answer whose header says `kind`; raise a declared exception in its place.

        An answer of kind EXCEPTION raises TApplicationException. An answer without any field raises
        Malformed, and so do other bytes.
        """
        if kind != REPLY:
            raise self._exception(kind, frame, offset)
        whole = self._whole_result
        if whole and frame.startswith(_SUCCESS, offset):
            value = decode(whole, frame, offset + 3)
        else:
            value, *errors = decode(self.result, frame, offset)
            if value is None:
                declared = (error for error in errors if error is not None)
                raise next(declared, Malformed(f"{self.name}: empty reply"))
        return value

    def _exception(self, kind: int, frame: bytes, offset: int) -> Exception:
        if kind != EXCEPTION:
            return Malformed(f"{self.name}: an answer of kind {kind}")
        failure = decode(_Failure, frame, offset)
        error: Exception = TApplicationException(failure.type or 0, failure.message)
        return error


# Thrift puts this in the place of bytes that are not UTF-8, so that two keys could become one.
_REPLACEMENT: Final = "\ufffd"


def _texts(kind: Any) -> list[tuple[int, str, Any]]:
    """Return index and name of each field that is a text, or holds some, and the same of what is in it."""
    found: list[tuple[int, str, Any]] = []
    for index, (_, what, name, details, _) in enumerate(field for field in kind.thrift_spec if field):
        if what == TType.STRING and details == "UTF8":
            found.append((index, name, None))
        elif what == TType.LIST and details[0] == TType.STRUCT:
            found.append((index, name, _texts(details[1][0])))
        elif what == TType.STRUCT and _texts(details[0]):
            found.append((index, name, _texts(details[0])))
    return [field for field in found if field[2] != []]


def _doubtful(struct: Any, texts: list[tuple[int, str, Any]]) -> bool:
    """Tell whether a text in the struct has a character that may stand for bytes that are not UTF-8."""
    for index, _, inner in texts:
        value = struct[index]
        if value is None:
            continue
        if inner is None:
            if _REPLACEMENT in value:
                return True
        elif isinstance(value, list):
            if any(_doubtful(item, inner) for item in value):
                return True
        elif _doubtful(value, inner):
            return True
    return False


def _not_utf8(struct: Any, texts: list[tuple[int, str, Any]]) -> str | None:
    """Return the name of the first text that is not UTF-8, or None; all texts in the struct are bytes."""
    for index, name, inner in texts:
        values = struct[index] if isinstance(struct[index], list) else [struct[index]]
        for place, value in enumerate(values):
            where = name if values is not struct[index] else f"{name}[{place}]"
            if inner is None and value is not None:
                try:
                    value.decode()
                except UnicodeDecodeError:
                    return where
            elif inner is not None and value is not None:
                within = _not_utf8(value, inner)
                if within is not None:
                    return f"{where}.{within}"
    return None


# The beginning of a struct whose only field is itself a struct: type 12, and the field's number. After the
# inner struct come the end of the outer one, or fields that this version does not know; neither is needed.
_ARGUMENT, _SUCCESS = b"\x0c\0\1", b"\x0c\0\0"


def _only_struct(fields: list[Any]) -> type | None:
    """Return the type of the only field if it is a struct."""
    if len(fields) == 1 and fields[0][1] == TType.STRUCT:
        struct: type = fields[0][3][0]
        return struct
    return None


def _methods(*services: Any) -> dict[bytes, Method]:
    """Return all methods of the services, by their names on the wire."""
    methods: dict[bytes, Method] = {}
    for service in services:
        for name in vars(service.Iface):
            if not name.startswith("_"):
                assert name.encode() not in methods, f"two services have a method {name}"
                methods[name.encode()] = Method(service, name)
    return methods


METHODS: Final = _methods(KeyValue, Node)
