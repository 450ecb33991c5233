"""Writes kvstore_codec.py, which encodes and decodes the structs of kvstore.thrift in machine code.

    tools/make_codec.py        to standard output; tools/compile.py compiles it with the other modules

For each struct there are two functions, derived from Thrift's own description of it: a writer and a reader.
(Its constructor is in tools/new_struct.c.) The reader takes what a node or Thrift's generated code
writes: the fields in the order of their numbers, and no others. About all else it raises, and
codec.decode() lets Thrift's C extension look at the same bytes: that alone decides what else is
understood, and what is malformed. So it is with a value that the writer cannot write.
"""

import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from paxoskv import program

program.begin(*program.PACKAGES)

from thrift.Thrift import TType

from paxoskv.kvstore import KeyValue
from paxoskv.wire import codec, structs

# What is seldom sent, and in nothing else: Thrift's C extension does as well.
SELDOM = frozenset({
    "Change", "FetchCheckpoint", "Identity", "LogStatus", "Membership", "Page", "Place", "Recovered",
    "Rejoin", "Rejoined", "Traced", "Watched",
})  # fmt: skip

START = '''"""Made by tools/make_codec.py: the structs of kvstore.thrift, encoded and decoded."""

from importlib import import_module
from typing import Any, Final

from librt.strings import (
    BytesWriter, read_i16_be, read_i32_be, read_i64_be, write_i32_be, write_i64_be,
)
from mypy_extensions import i64

from paxoskv.wire import structs

_new: Final[Any] = import_module("paxoskv.wire.new_struct").new  # tools/new_struct.c
adopt: Final[Any] = import_module("paxoskv.wire.new_struct").adopt


class Strange(ValueError):
    """Not what we write ourselves: perhaps right all the same."""


class Reader:
    def __init__(self, data: bytes, at: i64) -> None:
        self.data = data
        self.at = at
        self.last: Any = None  # the Session that was read last, and where it is
        self.last_at: i64 = 0


def read_bytes(data: bytes, at: i64) -> bytes:
    start = at + 4
    end = start + i64(read_i32_be(data, at))
    if not start <= end <= len(data):
        raise Strange
    return data[start:end]
'''
# The commands of a batch mostly name one session: read once, it is known by its 26 bytes.
SAME_SESSION = """
if reader.last is not None and len(data) - at >= 26:
    last_at = reader.last_at
    if (
        read_i64_be(data, at) == read_i64_be(data, last_at)
        and read_i64_be(data, at + 8) == read_i64_be(data, last_at + 8)
        and read_i64_be(data, at + 16) == read_i64_be(data, last_at + 16)
        and read_i16_be(data, at + 24) == read_i16_be(data, last_at + 24)
    ):
        reader.at = at + 26
        return reader.last
start = at
""".strip().split("\n")
NEW_SESSION = """
if at - start == 25:
    reader.last_at = start
    reader.last = _new(kind, {values})
    return reader.last
""".strip()

# By Thrift's type: how many bytes a value has, how it is read, and written.
NUMBERS = {
    TType.I32: (4, "read_i32_be(data, at + {})", "write_i32_be(writer, {})"),
    TType.I64: (8, "read_i64_be(data, at + {})", "write_i64_be(writer, {})"),
}


class Field:
    """One field of a struct: the lines that read and write it."""

    def __init__(self, spec: Any, index: int, required: bool) -> None:
        self.number, self.type, self.name, self.details = spec[:4]
        self.index = index
        self.variable = f"{self.name}_"
        self.required = required

    def kind(self) -> str:
        return _name(self.details[0])

    def reading(self) -> list[str]:
        header = self.type << 16 | self.number  # read with one byte of the value, which is always there
        if self.required:
            test = [f"if read_i32_be(data, at) >> 8 != {header}:", "    raise Strange"]
            return [*test, *self._value()]
        found = f"if data[at] == {self.type} and read_i16_be(data, at + 1) == {self.number}:"
        return [f"{self.variable}: Any = None", found, *("    " + line for line in self._value())]

    def _value(self) -> list[str]:
        name, kind = self.variable, self.type
        if kind in NUMBERS:
            size, read, _ = NUMBERS[kind]
            return [f"{name} = {read.format(3)}", f"at += {3 + size}"]
        if kind == TType.BOOL:
            return [
                "if not 0 <= data[at + 3] <= 1:",
                "    raise Strange",
                f"{name} = data[at + 3] == 1",
                "at += 4",
            ]
        if kind == TType.STRING:
            decode = ".decode()" if self.details == "UTF8" else ""
            return [
                f"{name}_ = read_bytes(data, at + 3)",
                f"{name} = {name}_{decode}",
                f"at += 7 + len({name}_)",
            ]
        if kind == TType.STRUCT:
            return [
                "reader.at = at + 3",
                f"{name} = read_{self.kind()}(reader, {_kind(self.details[0])})",
                "at = reader.at",
            ]
        element, details = self.details[0], self.details[1]
        count = [
            f"if data[at + 3] != {element}:",
            "    raise Strange",
            f"{name}_ = i64(read_i32_be(data, at + 4))",
            f"if not 0 <= {name}_ <= len(data):",
            "    raise Strange",
        ]
        if element == TType.STRUCT:
            item = f"read_{_name(details[0])}(reader, {_kind(details[0])})"
            return [
                *count,
                "reader.at = at + 8",
                f"{name} = [{item} for _ in range({name}_)]",
                "at = reader.at",
            ]
        size, read, _ = NUMBERS[element]
        item = read.format(f"8 + {size} * index")
        return [*count, f"{name} = [{item} for index in range({name}_)]", f"at += 8 + {size} * {name}_"]

    def writing(self) -> list[str]:
        lines = [f"writer.write({bytes([self.type, 0, self.number])!r})"]
        kind, value = self.type, self.variable
        if kind in NUMBERS:
            lines += [NUMBERS[kind][2].format(value)]
        elif kind == TType.BOOL:
            lines += [f"writer.append(1 if {value} else 0)"]
        elif kind == TType.STRING:
            lines += [f"{value}_: bytes = {value}" + (".encode()" if self.details == "UTF8" else "")]
            lines += [f"write_i32_be(writer, len({value}_))", f"writer.write({value}_)"]
        elif kind == TType.STRUCT:
            lines += [f"write_{self.kind()}(writer, {value})"]
        else:
            element, details = self.details[0], self.details[1]
            lines += [
                f"writer.append({element})",
                f"write_i32_be(writer, len({value}))",
                f"for item in {value}:",
            ]
            if element == TType.STRUCT:
                lines += [f"    write_{_name(details[0])}(writer, item)"]
            else:
                lines += ["    " + NUMBERS[element][2].format("item")]
        taken = f"{value}: {self._type()} = struct[{self.index}]"
        if self.required:
            return [taken, *lines]
        test = f"if struct[{self.index}] is not None:"
        return [test, f"    {taken}", *("    " + line for line in lines)]

    def _type(self) -> str:
        names = {
            TType.I32: "int",
            TType.I64: "int",
            TType.BOOL: "bool",
            TType.STRUCT: "Any",
            TType.LIST: "list[Any]",
        }
        return names.get(self.type) or ("str" if self.details == "UTF8" else "bytes")


def _name(kind: Any) -> str:
    name: str = kind.__name__
    return name


def _kind(kind: Any) -> str:
    return f"_{_name(kind)}"


def _supported(spec: Any) -> bool:
    """Whether there are lines for it: not for maps, floating point numbers, and exceptions."""
    kind, details = spec[1], spec[3]
    if kind == TType.LIST:
        return details[0] in NUMBERS or details[0] == TType.STRUCT
    if kind == TType.STRUCT:
        return not issubclass(details[0], BaseException)
    return kind in NUMBERS or kind in (TType.BOOL, TType.STRING)


def functions(name: str, spec: Any, required: set[str]) -> list[str]:
    """The text of a struct's functions. A field without lines must be absent."""
    fields = [(index, field) for index, field in enumerate(field for field in spec if field)]
    known = [Field(field, index, field[2] in required) for index, field in fields if _supported(field)]
    reading = [line for field in known for line in field.reading()]
    writing = [line for field in known for line in field.writing()]
    for index, field in fields:
        if not _supported(field):
            assert field[2] not in required, f"{name}.{field[2]}: no lines for it, but it must be there"
            reading += [f"{field[2]}_: Any = None"]
            writing += [f"if struct[{index}] is not None:", "    raise Strange"]
    values = ", ".join(f"{field[2]}_" for _, field in fields)
    before, after = [], []
    if name == "Session":
        before, after = SAME_SESSION, NEW_SESSION.format(values=values).split("\n")
    return [
        f"def read_{name}(reader: Reader, kind: Any) -> Any:",
        "    data, at = reader.data, reader.at",
        *("    " + line for line in [*before, *reading]),
        "    if data[at] != 0:",
        "        raise Strange",
        "    reader.at = at + 1",
        *("    " + line for line in after),
        f"    return _new(kind, {values})",
        "",
        "",
        f"def write_{name}(writer: BytesWriter, struct: tuple[Any, ...]) -> None:",
        *("    " + line for line in writing),
        "    writer.append(0)",
        "",
        "",
        f"def encode_{name}(struct: Any) -> bytes:",
        "    writer = BytesWriter()",
        f"    write_{name}(writer, struct)",
        "    return writer.getvalue()",
        "",
        "",
        f"def decode_{name}(kind: Any, data: bytes, offset: int) -> Any:",
        f"    return read_{name}(Reader(data, offset), kind)",
        "",
        "",
    ]


def text() -> str:
    """All of it: the typed structs but seldom ones, arguments and lists of results of what clients call."""
    lines, done = [START], []
    kinds = [
        kind for kind in vars(structs).values() if hasattr(kind, "_fields") and kind.__name__ not in SELDOM
    ]
    lines += [f"{_kind(kind)}: Final[Any] = structs.{kind.__name__}" for kind in kinds] + ["", ""]
    for kind in kinds:
        names = [field[2] for field in kind.thrift_spec if field]
        assert list(kind._fields) == names, f"{kind.__name__}: gen-py/ and structs.py differ"
        required = set(kind._fields) - set(kind._field_defaults)
        lines += functions(kind.__name__, kind.thrift_spec, required)
        done.append(kind.__name__)
    for method in ("put", "get", "delete", "compare_and_set", "increment", "transaction", "execute"):
        kind = codec.named_tuple(getattr(KeyValue, f"{method}_args"))
        lines += functions(kind.__name__, kind.thrift_spec, set())
        done.append(kind.__name__)
    kind = codec.named_tuple(KeyValue.execute_result)
    lines += functions(kind.__name__, kind.thrift_spec, set())
    done.append(kind.__name__)
    pairs = [f'    "{name}": (encode_{name}, decode_{name}),' for name in done]
    return "\n".join([*lines, "CODECS: Final[dict[str, Any]] = {", *pairs, "}", ""])


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
    else:
        print(text(), end="")
