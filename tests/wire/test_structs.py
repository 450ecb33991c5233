"""structs.py says what kvstore.thrift says, and the codec that is made of it what Thrift's own does."""

import random
import re
import subprocess
import sys
import types
import typing
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from thrift.protocol import fastbinary
from thrift.protocol.TProtocol import TProtocolException
from thrift.Thrift import TType

from paxoskv import compiled
from paxoskv.kvstore import ttypes
from paxoskv.wire import methods, structs
from paxoskv.wire.codec import Malformed, _Buffer, decode, encode
from tools import make_codec

ROOT = Path(__file__).resolve().parents[2]
IDL = (ROOT / "kvstore.thrift").read_text()
KINDS = {name: kind for name, kind in vars(structs).items() if hasattr(kind, "_fields")}
SIZES = {TType.I32: 31, TType.I64: 63}
FROM_CLIENTS = ("Session", "RequestId", "Compare", "Action", "Transaction", "Command", "Range")


def declared(details: Any, kind: int) -> Any:
    """The type that a field of this Thrift type has here."""
    if kind == TType.STRING:
        return str if details == "UTF8" else bytes
    if kind == TType.STRUCT:
        return KINDS[details[0].__name__]
    if kind == TType.LIST:
        return list[declared(details[1], details[0])]  # type: ignore[misc]
    return {TType.I32: int, TType.I64: int, TType.BOOL: bool}[kind]


@pytest.mark.parametrize("name", KINDS)
def test_a_named_tuple_has_the_fields_types_and_absences_of_the_interface(name: str) -> None:
    fields = [field for field in getattr(ttypes, name).thrift_spec if field]
    kind = KINDS[name]
    assert kind._fields == tuple(field[2] for field in fields)
    body = re.search(rf"^struct {name} \{{(.*?)^\}}", IDL, re.MULTILINE | re.DOTALL)
    assert body is not None
    hints = typing.get_type_hints(kind)
    for number, what, field, details, _ in fields:
        if name in FROM_CLIENTS:
            assert hints[field] is Any and field in kind._field_defaults
        elif re.search(rf"^    {number}: optional ", body[1], re.MULTILINE):
            assert hints[field] == declared(details, what) | None and kind._field_defaults[field] is None
        else:
            assert hints[field] == declared(details, what) and field not in kind._field_defaults


def test_every_struct_but_the_status_has_a_named_tuple() -> None:
    assert set(re.findall(r"^struct (\w+)", IDL, re.MULTILINE)) == {*KINDS, "Status"}


def test_the_enumerations_are_those_of_the_interface() -> None:
    names = re.findall(r"^enum (\w+)", IDL, re.MULTILINE)
    assert len(names) == 6
    for name in names:
        ours = {key: value for key, value in vars(getattr(structs, name)).items() if key.isupper()}
        assert ours == getattr(ttypes, name)._NAMES_TO_VALUES


@pytest.mark.parametrize("name", KINDS)
def test_what_lacks_a_field_that_must_be_there_is_malformed(name: str) -> None:
    kind = KINDS[name]
    whole = value(random.Random(1), kind, 1.0)
    for field in kind._fields:
        cut = encode(whole._replace(**{field: None}))
        if field in kind._field_defaults:
            assert decode(kind, cut) == whole._replace(**{field: None})
        else:
            with pytest.raises(Malformed):
                decode(kind, cut)


# ------------------------------------------------------------------------------------------- the made codec


def value(rng: random.Random, kind: Any, present: float) -> Any:
    """A struct of this type with any values; what may be absent is there with this probability."""

    def one(what: int, details: Any) -> Any:
        if what in SIZES:
            return rng.choice((0, 1, -1, rng.getrandbits(SIZES[what]), ~rng.getrandbits(SIZES[what])))
        if what == TType.BOOL:
            return rng.random() < 0.5
        if what == TType.STRING:
            text = rng.choice(("", "k", "caf\u00e9", "\U0001f600" * 3, "x" * rng.randrange(300)))
            return text if details == "UTF8" else text.encode()
        if what == TType.STRUCT:
            return value(rng, details[0], present)
        return [one(details[0], details[1]) for _ in range(rng.choice((0, 1, 2, 5)))]

    fields = [field for field in kind.thrift_spec if field]
    optional = kind._field_defaults
    return kind(
        *(
            None
            if field[2] in optional and (rng.random() >= present or is_exception(field))
            else one(field[1], field[3])
            for field in fields
        )
    )


def is_exception(field: Any) -> bool:
    return field[1] == TType.STRUCT and issubclass(field[3][0], BaseException)


def by_thrift(kind: Any, data: bytes) -> Any:
    """What Thrift's C extension makes of the bytes; None if they are malformed for it."""
    try:
        return fastbinary.decode_binary(None, _Buffer(data, 0), [kind, kind.thrift_spec])
    except (EOFError, ValueError, OverflowError, TypeError, MemoryError, TProtocolException):
        return None


def check(codec: Any, seed: int, rounds: int) -> tuple[int, int]:
    """Compare the made codec with Thrift's, on random structs and on broken ones.

    Return how many were compared, and how many of the broken ones both understood.
    """
    rng = random.Random(seed)
    kinds: dict[str, Any] = {kind.__name__: kind for kind in KINDS.values()}
    for method in methods.METHODS.values():
        kinds |= {kind.__name__: kind for kind in (method.args, method.result) if kind}
    understood = 0
    for _ in range(rounds):
        name = rng.choice(sorted(codec.CODECS))
        encode, decode = codec.CODECS[name]
        kind = kinds[name]
        struct = value(rng, kind, rng.choice((0.0, 0.5, 1.0)))
        data = fastbinary.encode_binary(struct, [kind, kind.thrift_spec])
        assert encode(struct) == data, struct
        assert kind(*struct) == kind(**struct._asdict()) == struct
        assert decode(kind, b"before" + data + b"behind", 6) == struct
        assert type(decode(kind, data, 0)) is kind
        broken = bytearray(data)
        for _ in range(rng.randint(0, 3)):
            broken[rng.randrange(len(broken))] = rng.choice((0, 1, 255, rng.randrange(256)))
        broken = broken[: rng.choice((len(broken), rng.randrange(len(broken) + 1)))]
        try:
            found = decode(kind, bytes(broken), 0)
        except (ValueError, IndexError):
            continue
        assert found == by_thrift(kind, bytes(broken)), (name, bytes(broken))
        understood += 1
    return rounds, understood


WRONG: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = (
    ((1,), {}), ((1, 2, 3), {}), ((1, 2, 3, 4, 5), {}), ((1, 2, 3), {"log": 4}), ((1, 2, 3), {"other": 4}),
    ((1, 2, 3, 4), {"log": 1}), ((), {}),
)  # fmt: skip


def takes_what_a_named_tuple_takes() -> None:
    fields = structs.Fact._fields
    for positional in range(len(fields) + 1):
        named = {"".join([*name]): index for index, name in enumerate(fields) if index >= positional}
        for order in (list(named), list(named)[::-1]):
            made = structs.Fact(*range(positional), **{name: named[name] for name in order})
            assert made == (0, 1, 2, 3) and type(made) is structs.Fact
    for arguments, names in WRONG:
        with pytest.raises(TypeError):
            structs.Fact(*arguments, **names)
    assert structs.RequestId(sequence=7) == (None, 7, None) and structs.RequestId() == (None, None, None)


def takes_only_types_of_tuples(new_struct: Any) -> None:
    assert new_struct.new(structs.Fact, 1, 2, 3, 4) == structs.Fact(1, 2, 3, 4)
    for wrong in ((), (1, 2), (list, 1), (dict,)):
        with pytest.raises(TypeError):
            new_struct.new(*wrong)
    for wrong in ((), (list, ("a",), 1), (structs.Fact, ["a"], 1)):
        with pytest.raises(TypeError):
            new_struct.adopt(*wrong)


@pytest.fixture(scope="module")
def codec() -> Any:
    pytest.importorskip("librt.strings", reason="librt comes with mypy")
    module, in_c = types.ModuleType("kvstore_codec"), types.ModuleType("new_struct")
    in_c.adopt = None  # type: ignore[attr-defined]
    in_c.new = lambda kind, *fields: tuple.__new__(kind, fields)  # type: ignore[attr-defined]
    with mock.patch.dict(sys.modules, {"paxoskv.wire.new_struct": in_c}):
        exec(make_codec.text(), module.__dict__)
    return module


def test_structs_have_the_fields_that_they_must_have() -> None:
    takes_what_a_named_tuple_takes()


def test_the_made_codec_writes_and_reads_what_thrift_does(codec: Any) -> None:
    compared, understood = check(codec, 1, 20_000)
    assert understood > compared / 10, "most of what is compared is rejected"


def test_what_the_made_codec_cannot_write_is_left_to_thrift(codec: Any) -> None:
    encode, _ = codec.CODECS["Fact"]
    for wrong in (structs.Fact(1 << 31, 0, 0, 0), structs.Fact(0, 1 << 63, 0, 0), structs.Fact(0, "1", 0, 0)):  # type: ignore[arg-type]
        with pytest.raises((ValueError, TypeError, OverflowError)):
            encode(wrong)


@pytest.mark.skipif(
    not compiled.directory().exists(), reason="nothing is compiled (scripts/setup.sh --fast does it)"
)
def test_the_compiled_codec_writes_and_reads_what_thrift_does() -> None:
    code = (
        "from paxoskv import compiled; compiled.use()\n"
        "from tests.wire import test_structs; from paxoskv.wire import kvstore_codec as codec\n"
        "test_structs.test_what_the_made_codec_cannot_write_is_left_to_thrift(codec)\n"
        "print(codec.__file__.endswith('.so'), *test_structs.check(codec, 2, 100_000))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    machine, compared, understood = done.stdout.split()
    assert machine == "True" and int(understood) > int(compared) / 10


@pytest.mark.skipif(
    not compiled.directory().exists(), reason="nothing is compiled (scripts/setup.sh --fast does it)"
)
def test_structs_made_in_c_have_the_fields_that_they_must_have() -> None:
    code = (
        "from paxoskv import compiled; compiled.use()\n"
        "from tests.wire import test_structs; from paxoskv.wire import new_struct\n"
        "test_structs.takes_what_a_named_tuple_takes()\n"
        "test_structs.takes_only_types_of_tuples(new_struct)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
