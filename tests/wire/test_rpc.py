"""The codec against the generated code; the transport against standard Thrift clients, and strangers."""

import asyncio
import contextlib
import gc
import random
import re
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop
from thrift.protocol.TBinaryProtocol import TBinaryProtocol, TBinaryProtocolAccelerated
from thrift.Thrift import TApplicationException, TMessageType
from thrift.transport.TSocket import TSocket
from thrift.transport.TSSLSocket import TSSLSocket
from thrift.transport.TTransport import TFramedTransport, TMemoryBuffer

from paxoskv.kvstore import KeyValue, Node, ttypes
from paxoskv.wire.codec import (  # fmt: skip
    Malformed,
    NotDone,
    Refused,
    Status,
    Unknown,
    encode,
)
from paxoskv.wire.connection import (  # fmt: skip
    FRAME_S,
    MESSAGES_AT_ONCE,
    OUTPUT_AT_ONCE,
    Connection,
    Flusher,
    Link,
    listen,
    tls_contexts,
)
from paxoskv.wire.methods import (  # fmt: skip
    CALL,
    EXCEPTION,
    METHODS,
    ONEWAY,
    REPLY,
    Method,
    header,
    unknown_method,
)
from paxoskv.wire.structs import (
    Accept,
    Accepted,
    Action,
    Answer,
    Barrier,
    Change,
    Chunk,
    Command,
    CommandPlace,
    Compare,
    Entry,
    Fact,
    Fetch,
    FetchCheckpoint,
    Fetched,
    Forward,
    Forwarded,
    Identity,
    Item,
    Learn,
    Membership,
    Moved,
    Origin,
    Outcome,
    Page,
    Place,
    Position,
    Prepare,
    Promise,
    Range,
    Reading,
    Rejoin,
    Rejoined,
    Relation,
    RequestId,
    Result,
    Session,
    Traced,
    Transacted,
    Transaction,
    Verb,
    Watched,
)
from tests.harness.ports import free_port

FACT = Fact(1, 20, (3 << 8) | 1, 1 << 41)
ENTRIES = [Entry(1 << 40, b"payload"), Entry((1 << 40) + 5, b"")]
IDENTITY = Identity("cluster", "digest", 3, 1, 4)
# One call of every method between nodes, and an answer to it.
BETWEEN_NODES: dict[str, tuple[Any, Any]] = {
    "hello": (IDENTITY, IDENTITY),
    "prepare": (Prepare(1, 513, 7, 0), Promise(1, 513, 7, 0, 513, 257, ENTRIES, FACT)),
    "accept": (Accept(1, 257, 5, ENTRIES, True, FACT, [2, 3]), Accepted(1, 257, 257, 0, 7, FACT)),
    "learn": (Learn(99, [FACT, FACT], [7, 8], Position(5, 2), 6), None),
    "fetch": (Fetch(2, 9), Fetched(2, 9, ENTRIES, 258, 3)),
    "barrier": (Barrier(4, 1 << 40), Reading(4, 1 << 40, [FACT], 515, 0)),
    "forward": (Forward(515, Origin(3, 1 << 21, 7), b"x", 9), Forwarded(515, Origin(3, 1 << 21, 7), True)),
    "fetch_checkpoint": (FetchCheckpoint(3, 1 << 20), Chunk(3, 1 << 21, 77, 1 << 20, b"data")),
    "rejoin": (Rejoin(2, 5), Rejoined(2, 5, 5, False, 513, 257, 7, ENTRIES, FACT, 1 << 40)),
}
REQUEST = RequestId(Session(1, 2, 3), 4, 3)
STATUS = Status(
    1, "c", "v", True, 5, Position(1, 2), 3, None, [], [1, 2], 0, 10, 20, 1.5, {"a": 1},
    9, 2.5, 1, 4, 0, "serving",
)  # fmt: skip
FROM_CLIENTS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "open_session": ((), Session(1, 2, 3)),
    "put": (("k\u00e9", "v", REQUEST), Result(Outcome.OK)),
    "get": (("k", None), Result(Outcome.OK, "v", None, 12)),
    "delete": (("k", None), Result(Outcome.NOT_FOUND)),
    "compare_and_set": (("k", None, "v", REQUEST), Result(Outcome.MISMATCH, "w")),
    "increment": (("k", -3, None), Result(Outcome.OK, "-3")),
    "transaction": (
        (
            Transaction(
                [Compare("k", Relation.EQUALS, "v"), Compare("\u00e9", Relation.ABSENT)],
                [Action(Verb.PUT, "k", "w"), Action(Verb.INCREMENT, "n", None, -3)],
                [],
            ),
            REQUEST,
        ),
        Result(0, transacted=Transacted(CommandPlace(7, 2, 3), [Answer(0), Answer(0, "-3")])),
    ),
    "execute": (([Command(Verb.PUT, "k", "v"), Command(Verb.GET, "k")],), [Result(0), Result(0, "v")]),
    "scan_range": (
        (Range("k", "k1", "k9", "k2", True, 10, True, False), 0),
        Page([Item("k", "")], True, 3, Position(3, 1), 7),
    ),
    "scan": (("k", None, 10, 0), Page([Item("k", "v")], False, 3)),
    "watch": (("k", Place(5, 2), 10, 500), Watched([Change("k", Place(6, 1, 0), "v")], Place(6, 1))),
    "checkpoint": ((), 3),
    "trace": ((True, 7), Traced(True, '{"id": 8}', 8, False)),
    "read_checkpoint": ((3, 7), Chunk(3, 7, 77, 7, b"")),
    "status": ((True,), STATUS),
    "membership": ((), Membership("c", "digest", 1, [Moved(3, "h:7", 5)])),
    "replace_node": ((3, "h:7", REQUEST), Result(Outcome.OK)),
}
EVERY_CALL = {name: ((message,), answer) for name, (message, answer) in BETWEEN_NODES.items()} | FROM_CLIENTS


def body(frame: bytes) -> tuple[int, bytes, int]:
    """The frame without its length, checked, its kind and the offset of its struct."""
    assert struct.unpack(">i", frame[:4])[0] == len(frame) - 4
    kind, _, _, offset = header(frame, 4)
    return kind, frame[4:], offset - 4


# ------------------------------------------------------------------------------------------------------ codec


def test_the_table_has_every_method_of_both_services_and_nothing_else() -> None:
    assert {method.name for method in METHODS.values()} == set(EVERY_CALL)
    assert {m.name for m in METHODS.values() if m.service == "Node"} == set(BETWEEN_NODES)
    assert [m.name for m in METHODS.values() if m.oneway] == ["learn"]
    assert METHODS[b"get"].throws == {NotDone: 1, Unknown: 2}


@pytest.mark.parametrize("name", EVERY_CALL)
def test_calls_and_replies_are_byte_for_byte_what_the_generated_code_writes(name: str) -> None:
    arguments, answer = EVERY_CALL[name]
    method = METHODS[name.encode()]
    service = KeyValue if method.service == "KeyValue" else Node

    def written(kind: int, content: Any) -> bytes:
        buffer = TMemoryBuffer()
        transport = TFramedTransport(buffer)
        protocol = TBinaryProtocol(transport, strictWrite=True)
        protocol.writeMessageBegin(name, kind, 77)
        content.write(protocol)
        protocol.writeMessageEnd()
        transport.flush()
        return bytes(buffer.getvalue())

    content = getattr(service, f"{name}_args")(*map(generated, arguments))
    assert method.call(77, *arguments) == written(ONEWAY if method.oneway else CALL, content)
    if not method.oneway:
        assert method.reply(77, answer) == written(
            REPLY, getattr(service, f"{name}_result")(generated(answer))
        )


@pytest.mark.parametrize("name", EVERY_CALL)
def test_what_is_called_and_answered_arrives(name: str) -> None:
    arguments, answer = EVERY_CALL[name]
    method = METHODS[name.encode()]
    call = method.call(-5, *arguments)
    assert header(call, 4)[:3] == (ONEWAY if method.oneway else CALL, name.encode(), -5)
    _, frame, offset = body(call)
    assert method.arguments(frame, offset) == arguments
    assert method.arguments(call, offset + 4) == arguments  # in place, behind the length
    if not method.oneway:
        assert method.answer(*body(method.reply(1, answer))) == answer


@pytest.mark.parametrize("method", METHODS.values(), ids=repr)
def test_declared_exceptions_are_raised_again(method: Method) -> None:
    for exception in method.throws:
        error = exception("a reason")  # type: ignore[call-arg]
        with pytest.raises(exception) as raised:  # type: ignore[type-var]
            method.answer(*body(method.fail(9, error)))  # type: ignore[arg-type]
        assert raised.value == error


def test_other_errors_become_application_exceptions() -> None:
    get = METHODS[b"get"]
    for error, kind in (
        (KeyError("\ud800" + "x" * 9999), TApplicationException.INTERNAL_ERROR),
        (Malformed("garbage"), TApplicationException.PROTOCOL_ERROR),
        (
            TApplicationException(TApplicationException.BAD_SEQUENCE_ID, "late"),
            TApplicationException.BAD_SEQUENCE_ID,
        ),
        (Refused("not declared by get"), TApplicationException.INTERNAL_ERROR),
    ):
        frame = get.fail(3, error)
        assert len(frame) < 2000
        with pytest.raises(TApplicationException) as raised:
            get.answer(*body(frame))
        assert raised.value.type == kind


def test_an_unknown_method_is_answered_with_its_name_and_sequence() -> None:
    frame = unknown_method(b"n\xffope", 12)
    assert header(frame, 4)[:3] == (EXCEPTION, b"n\xffope", 12)
    with pytest.raises(TApplicationException) as raised:
        METHODS[b"get"].answer(*body(frame))
    assert raised.value.type == TApplicationException.UNKNOWN_METHOD


@pytest.mark.parametrize("name", EVERY_CALL)
def test_an_empty_or_strange_reply_is_malformed(name: str) -> None:
    method = METHODS[name.encode()]
    if method.oneway:
        return
    for kind, content in ((REPLY, b"\0"), (REPLY, b""), (CALL, b"\0"), (7, b"\0"), (EXCEPTION, b"\x0b")):
        with pytest.raises(Malformed):
            method.answer(kind, content, 0)


def complete(value: Any) -> bool:
    """Whether no required field of a struct is absent, nor one of the structs in it."""
    if hasattr(value, "_fields"):
        return all(complete(getattr(value, name)) for name in required(value))
    if isinstance(value, tuple | list):
        return all(complete(part) for part in value)
    return value is not None


def required(struct: Any) -> list[str]:
    """The names of the fields that must be there: those without a default."""
    return [name for name in struct._fields if name not in struct._field_defaults]


def lacking(value: Any) -> Iterator[Any]:
    """The struct with each of its required fields, at any depth, taken away in turn."""
    for name in required(value) if hasattr(value, "_fields") else ():  # a list may hold plain numbers
        fields = {other: getattr(value, other) for other in value._fields}
        part = fields[name]
        yield type(value)(**fields | {name: None})
        if hasattr(part, "thrift_spec"):
            yield from (type(value)(**fields | {name: less}) for less in lacking(part))
        elif isinstance(part, list):
            yield from (type(value)(**fields | {name: [*part[:-1], less]}) for less in lacking(part[-1]))


@pytest.mark.parametrize("name", BETWEEN_NODES)
def test_a_message_between_nodes_that_lacks_a_field_is_malformed(name: str) -> None:
    method = METHODS[name.encode()]
    message, answer = BETWEEN_NODES[name]
    assert complete(message)
    for less in lacking(message):
        assert not complete(less)
        _, frame, offset = body(method.call(1, less))
        with pytest.raises(Malformed):
            method.arguments(frame, offset)
    with pytest.raises(Malformed):
        method.arguments(b"\0", 0)
    for less in lacking(answer) if answer else ():
        with pytest.raises(Malformed):
            method.answer(*body(method.reply(1, less)))


@pytest.mark.parametrize("name", BETWEEN_NODES)
def test_a_message_with_fields_in_another_order_or_unknown_fields_is_understood(name: str) -> None:
    method = METHODS[name.encode()]
    message, answer = BETWEEN_NODES[name]
    unknown = b"\x0b\x00\x63\x00\x00\x00\x03new"
    content = encode(message)
    assert method.arguments(unknown + b"\x0c\0\1" + content[:-1] + unknown + b"\0\0", 0) == (message,)
    assert method.arguments(b"\x0c\0\1" + unknown + content + unknown + b"\0", 0) == (message,)
    if answer:
        assert method.answer(REPLY, b"\x0c\0\0" + unknown + encode(answer) + unknown + b"\0", 0) == answer


@pytest.mark.parametrize("name", EVERY_CALL)
def test_a_cut_message_is_malformed_at_every_length(name: str) -> None:
    arguments, answer = EVERY_CALL[name]
    method = METHODS[name.encode()]
    frames = [(method.call(1, *arguments)[4:], method.arguments)]
    if not method.oneway:
        frames.append((method.reply(1, answer)[4:], lambda *where: method.answer(REPLY, *where)))
    for frame, read in frames:
        for length in range(
            len(frame) - 1
        ):  # (without its last byte, the end of the outer struct, it is whole)
            with pytest.raises(Malformed):
                _, _, _, offset = header(frame[:length])
                read(frame[:length], offset)


REPLACED = "\ufffd"  # what Thrift makes of bytes that are not UTF-8; whoever sends it means it


@pytest.mark.parametrize("wrong", [b"\xff", b"\xfe", b"\xc3", b"\xed\xa0\x80", b"ok\xf8ok"])
@pytest.mark.parametrize(
    ("name", "arguments", "field"),
    [
        ("put", (REPLACED, "v", REQUEST), "key"),
        ("put", ("k", REPLACED, REQUEST), "value"),
        ("get", (REPLACED, None), "key"),
        ("delete", (REPLACED, None), "key"),
        ("compare_and_set", (REPLACED, "v", "w", None), "key"),
        ("compare_and_set", ("k", REPLACED, "w", None), "expected"),
        ("compare_and_set", ("k", None, REPLACED, None), "value"),
        ("increment", (REPLACED, 1, None), "key"),
        ("scan", (REPLACED, "k", 1, 0), "prefix"),
        ("scan", ("k", REPLACED, 1, 0), "start_after"),
        ("execute", ([Command(Verb.GET, REPLACED)],), "commands[0].key"),
        ("execute", ([Command(Verb.GET, "k"), Command(Verb.PUT, "k", REPLACED)],), "commands[1].value"),
        ("execute", ([Command(Verb.COMPARE_AND_SET, "k", "v", REPLACED)],), "commands[0].expected"),
        ("hello", (IDENTITY._replace(cluster=REPLACED),), "identity.cluster"),
        ("hello", (IDENTITY._replace(digest=REPLACED),), "identity.digest"),
    ],
)
def test_a_text_that_is_not_utf8_is_refused_with_the_name_of_its_field(
    name: str, arguments: tuple[Any, ...], field: str, wrong: bytes
) -> None:
    method = METHODS[name.encode()]
    _, frame, offset = body(method.call(7, *arguments))
    assert method.arguments(frame, offset) == arguments
    sent, size = REPLACED.encode(), struct.pack(">i", len(wrong))
    assert frame.count(sent) == 1
    frame = frame.replace(struct.pack(">i", len(sent)) + sent, size + wrong)
    with pytest.raises(Malformed, match=re.escape(f"{field}: not UTF-8")) as caught:
        method.arguments(frame, offset)
    _, frame, offset = body(method.fail(7, caught.value))
    with pytest.raises(TApplicationException if name == "hello" else NotDone) as told:
        method.answer(REPLY if name != "hello" else EXCEPTION, frame, offset)
    if name != "hello":
        assert told.value == NotDone(f"{field}: not UTF-8", True)


def test_of_two_equal_texts_the_one_that_was_sent_otherwise_is_named() -> None:
    method = METHODS[b"execute"]
    _, frame, offset = body(method.call(7, [Command(Verb.GET, REPLACED), Command(Verb.GET, REPLACED)]))
    at = frame.rindex(REPLACED.encode())
    with pytest.raises(Malformed, match=r"commands\[1\].key: not UTF-8"):
        method.arguments(frame[:at] + b"\xff\xfe\xfd" + frame[at + 3 :], offset)


def test_the_header_takes_nothing_but_strict_binary() -> None:
    good = METHODS[b"get"].call(1, "k", None)[4:]
    assert header(good)[0] == CALL
    for bad in (
        b"",
        b"\x80\x01",
        b"\x00\x00\x00\x03get\x01\x00\x00\x00\x01\x00",  # the old, unversioned way
        b"\x82\x21\x01\x03get\x00",  # the compact protocol
        b"\x80\x02" + good[2:],
        b"\x80\x01\x00\x00" + good[4:],
        b"\x80\x01\x00\x05" + good[4:],
        b"\x80\x01\x00\x01\xff\xff\xff\xff" + good[8:],
        b"\x80\x01\x00\x01\x7f\xff\xff\xff" + good[8:],
        b"\x80\x01\x00\x01\x00\x00\x10\x00" + b"n" * 4096 + good[11:],
        b"GET / HTTP/1.1\r\n\r\n",
    ):
        with pytest.raises(Malformed):
            header(bad)


def test_flipped_bytes_are_understood_or_malformed_and_nothing_else() -> None:
    rng = random.Random(1)
    samples = []
    for name, (arguments, answer) in EVERY_CALL.items():
        method = METHODS[name.encode()]
        samples.append((method.call(1, *arguments)[4:], method))
        if not method.oneway:
            samples.append((method.reply(1, answer)[4:], method))
    for _ in range(20_000):
        good, method = rng.choice(samples)
        frame = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            frame[rng.randrange(len(frame))] = rng.randrange(256)
        with contextlib.suppress(Malformed, TApplicationException, *method.throws):
            kind, _, _, offset = header(bytes(frame))
            if kind in (CALL, ONEWAY):
                values = method.arguments(bytes(frame), offset)
                assert method.service != "Node" or complete(values[0])
            elif not method.oneway:
                value = method.answer(kind, bytes(frame), offset)
                assert method.service != "Node" or complete(value)


def test_deep_nesting_and_forged_sizes_are_malformed() -> None:
    method = METHODS[b"learn"]
    for content in (
        b"\x0c\0\1" * 300_000 + b"\0" * 300_001,
        b"\x0f\0\x63" + b"\x0f\0\0\0\1" * 100_000 + b"\0" * 10,
        b"\x0c\0\1\x0a\0\1" + b"\0" * 8 + b"\x0f\0\2\x0c\x7f\xff\xff\xff\0\0",
        b"\x0c\0\1\x0a\0\1" + b"\0" * 8 + b"\x0f\0\2\x0c\xff\xff\xff\xff\0\0",
        b"\x0c\0\1\x0b\0\x63\x7f\xff\xff\xff\0\0",
    ):
        with pytest.raises(Malformed):
            method.arguments(content, 0)


# ------------------------------------------------------------------------------- connections, with no network


class Wire(asyncio.Transport):
    """A transport whose peer reads only when the test says so."""

    def __init__(self) -> None:
        super().__init__({"peername": ("::1", 7), "socket": socket.socket()})
        self.unread = b""
        self.writes = 0
        self.state = "open"
        self.reading = True

    def write(self, data: Any) -> None:
        self.unread += data
        self.writes += 1

    def get_write_buffer_size(self) -> int:
        return len(self.unread)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        self.state = "closing"

    def abort(self) -> None:
        self.state = "aborted"


class Pair:
    """A connection on such a transport, and what it told its owner."""

    def __init__(self, max_frame: int = 1000, **options: Any) -> None:
        self.messages: list[tuple[bytes, int, bytes]] = []
        self.lost: list[Exception | None] = []
        self.flusher = Flusher()
        self.wire = Wire()
        self.connection = Connection(
            self.on_message, lambda _, error: self.lost.append(error), max_frame, self.flusher, **options
        )
        self.connection.connection_made(self.wire)

    def on_message(
        self, connection: Connection, kind: int, name: bytes, sequence: int, frame: bytes, offset: int
    ) -> None:
        assert connection is self.connection
        self.messages.append((name, sequence, frame[offset:]))


def in_a_loop(test: Callable[[], Any]) -> Callable[[], None]:
    """Run the coroutine function as a test, in a uvloop."""

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(asyncio.wait_for(test(), 60))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def gets(count: int) -> tuple[bytes, list[tuple[bytes, int, bytes]]]:
    """So many calls in a row, of various sizes, and what must arrive."""
    frames = [METHODS[b"get"].call(number, "k" * (number * 37 % 400), None) for number in range(count)]
    return b"".join(frames), [(b"get", number, frame[4 + 15 :]) for number, frame in enumerate(frames)]


@in_a_loop
async def test_frames_arrive_however_the_bytes_are_cut() -> None:
    data, expected = gets(50)
    rng = random.Random(2)
    for most in (1, 2, 3, 7, 100, 1000, len(data)):
        pair = Pair()
        position = 0
        while position < len(data):
            size = rng.randint(1, most)
            pair.connection.data_received(data[position : position + size])
            position += size
        assert pair.messages == expected
        assert not pair.lost


@in_a_loop
async def test_a_forged_length_closes_the_connection_and_earlier_frames_count() -> None:
    for length in (0, -1, -(1 << 31), 1001, (1 << 31) - 1):
        for held_back in (0, 1, 3):
            pair = Pair()
            data, expected = gets(1)
            data += struct.pack(">i", length)
            pair.connection.data_received(data[: len(data) - held_back])
            if held_back:
                pair.connection.data_received(data[len(data) - held_back :])
            assert pair.messages == expected
            assert pair.wire.state == "closing"
            pair.connection.data_received(gets(1)[0])
            assert pair.messages == expected  # nothing is read behind it
            pair.connection.connection_lost(None)
            assert isinstance(pair.lost[0], Malformed)


@in_a_loop
async def test_the_largest_frame_allowed_can_be_raised() -> None:
    pair = Pair(max_frame=100)
    frame = METHODS[b"get"].call(1, "k" * 500, None)
    pair.connection.max_frame = len(frame) - 4
    pair.connection.data_received(frame)
    assert len(pair.messages) == 1
    pair.connection.max_frame -= 1
    pair.connection.data_received(frame)
    assert len(pair.messages) == 1
    assert pair.wire.state == "closing"


@in_a_loop
async def test_malformed_out_of_the_owner_cuts_the_peer_off() -> None:
    pair = Pair()

    def on_message(*_: Any) -> None:
        raise Malformed("bad arguments")

    pair.connection = Connection(on_message, lambda _, error: pair.lost.append(error), 1000, pair.flusher)
    pair.connection.connection_made(pair.wire)
    pair.connection.data_received(gets(3)[0])
    assert pair.wire.state == "closing"


@in_a_loop
async def test_nothing_is_handed_out_after_the_owner_hung_up() -> None:
    seen = []

    def on_message(connection: Connection, *_: Any) -> None:
        seen.append(1)
        connection.close()

    connection = Connection(on_message, lambda *_: None, 1000, Flusher())
    connection.connection_made(Wire())
    connection.data_received(gets(3)[0])
    assert seen == [1]
    assert not connection.send(b"late")


@in_a_loop
async def test_connections_take_turns_however_much_one_of_them_has_sent() -> None:
    crowd, quiet = Pair(), Pair()
    data, expected = gets(300)
    crowd.connection.data_received(data)
    assert len(crowd.messages) == MESSAGES_AT_ONCE
    quiet.connection.data_received(gets(1)[0])
    assert len(quiet.messages) == 1, "after one turn of the other connection"
    crowd.connection.data_received(data[:10])  # more comes meanwhile, and in the end the rest of that
    assert len(crowd.messages) == MESSAGES_AT_ONCE and not crowd.wire.reading
    await until(lambda: crowd.messages == expected and crowd.wire.reading)
    crowd.connection.data_received(data[10:])
    await until(lambda: crowd.messages == 2 * expected)


@in_a_loop
async def test_a_turn_of_a_connection_ends_when_its_answers_are_large() -> None:
    pair = Pair()
    large = bytes(OUTPUT_AT_ONCE // 2 + 1)

    def on_message(connection: Connection, *_: Any) -> None:
        connection.send(large)

    pair.connection = Connection(on_message, lambda *_: None, 1000, pair.flusher)
    pair.connection.connection_made(pair.wire)
    pair.connection.data_received(gets(10)[0])
    pair.flusher.flush_all()
    assert len(pair.wire.unread) == 2 * len(large)


@in_a_loop
async def test_a_connection_that_is_held_passes_on_nothing_until_all_have_let_it_go() -> None:
    pair = Pair()
    data, expected = gets(3)
    pair.connection.hold()
    pair.connection.hold()
    pair.connection.data_received(data[:-1])
    pair.connection.release()
    await asyncio.sleep(0)
    assert not pair.messages and not pair.wire.reading
    pair.connection.release()
    await until(lambda: pair.wire.reading)
    assert pair.messages == expected[:2]
    pair.connection.data_received(data[-1:])
    assert pair.messages == expected


@in_a_loop
async def test_a_client_that_does_not_read_is_not_listened_to_and_is_cut_off_in_the_end() -> None:
    now = asyncio.get_running_loop().time()
    pair = Pair(answers=True)
    data, expected = gets(2)
    pair.connection.data_received(data)
    pair.connection.pause_writing()
    pair.connection.data_received(data)
    assert pair.messages == expected
    assert not pair.connection.stale(now + FRAME_S - 1)
    pair.connection.resume_writing()
    await until(lambda: pair.messages == 2 * expected)
    assert not pair.connection.stale(now + 2 * FRAME_S), "it has read"
    pair.connection.pause_writing()
    assert pair.connection.stale(now + 2 * FRAME_S) and pair.wire.state == "aborted"


@in_a_loop
async def test_a_client_whose_calls_wait_for_an_answer_is_not_taken_for_a_slow_one() -> None:
    now = asyncio.get_running_loop().time()
    pair = Pair(answers=True)
    data, expected = gets(2)
    pair.connection.hold()
    pair.connection.pause_writing()
    pair.connection.data_received(data)
    pair.connection.resume_writing()
    assert not pair.connection.stale(now + 2 * FRAME_S), "it has read, and waits for us"
    pair.connection.release()
    await until(lambda: pair.messages == expected)


@in_a_loop
async def test_a_node_that_does_not_read_is_listened_to() -> None:
    pair = Pair(answers=True, user=2)  # two that wait for each other would wait for ever
    pair.connection.pause_writing()
    data, expected = gets(2)
    pair.connection.data_received(data)
    assert pair.messages == expected


@contextlib.contextmanager
def without_garbage() -> Iterator[None]:
    """What is done in the block leaves nothing for the garbage collector, which seldom runs in a node."""
    gc.collect()
    gc.disable()
    try:
        yield
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_bytes_that_are_decoded_leave_with_the_struct_and_so_do_those_that_are_none() -> None:
    frame = METHODS[b"put"].call(1, "k", "v" * 1000, None)
    *_, offset = header(frame, 4)
    with without_garbage():
        METHODS[b"put"].arguments(frame, offset)
        for end in range(offset, len(frame)):
            with contextlib.suppress(Malformed):
                METHODS[b"put"].arguments(frame[:end], offset)


@in_a_loop
async def test_a_connection_that_was_hung_up_on_leaves_nothing_behind() -> None:
    def on_message(*_: Any) -> None:
        raise Malformed("bad arguments")

    flusher = Flusher()
    with without_garbage():
        for data in (gets(1)[0], b"\0\0\0\5junk!", b"\xff" * 8):
            connection = Connection(on_message, lambda *_: None, 1000, flusher)
            wire = Wire()
            wire.user = connection  # as real ones have it
            connection.connection_made(wire)
            connection.data_received(data)
            connection.connection_lost(None)
            wire._extra["socket"].close()
        del connection, wire


@in_a_loop
async def test_a_turn_is_one_write() -> None:
    pair = Pair()
    assert all(pair.connection.send(frame) for frame in (b"one", b"two", b"three"))
    assert pair.wire.writes == 0
    pair.flusher.flush_all()
    pair.flusher.flush_all()
    assert (pair.wire.unread, pair.wire.writes) == (b"onetwothree", 1)
    pair.connection.send(b"four")
    pair.connection.close()
    assert pair.wire.unread == b"onetwothreefour"  # close sends what was buffered


@in_a_loop
async def test_a_slow_reader_is_cut_off_and_a_lossy_connection_loses_messages_instead() -> None:
    for lossy in (False, True):
        pair = Pair(max_output=100, lossy=lossy)
        assert pair.connection.send(b"x" * 60)
        pair.flusher.flush_all()
        assert pair.connection.send(b"x" * 40)
        assert not pair.connection.send(b"x")
        assert pair.wire.state == ("open" if lossy else "aborted")
        pair.flusher.flush_all()
        assert len(pair.wire.unread) == (100 if lossy else 60)
        pair.wire.unread = b"x" * 50  # the peer reads
        assert pair.connection.send(b"x" * 50) is lossy
        assert not pair.connection.send(b"x")


@in_a_loop
async def test_peers_that_keep_us_waiting_are_cut_off() -> None:
    now = asyncio.get_running_loop().time()

    stranger = Pair()
    stranger.connection.data_received(gets(1)[0][:10])  # half a frame does not make it known
    assert not stranger.connection.stale(now + 9)
    assert stranger.connection.stale(now + 11)
    assert stranger.wire.state == "aborted"

    known = Pair()
    known.connection.data_received(gets(1)[0])
    assert not known.connection.stale(now + 1e6)
    known.connection.data_received(gets(1)[0] + b"\0")
    assert not known.connection.stale(now + 29)
    assert known.connection.stale(now + 31)
    known.connection.connection_lost(None)
    assert isinstance(known.lost[0], TimeoutError)
    assert not known.connection.stale(now + 1e6)

    leaving = Pair()
    leaving.connection.data_received(gets(1)[0])
    leaving.connection.send(b"never read")
    leaving.connection.close()
    assert leaving.wire.state == "closing"
    assert leaving.connection.stale(now + 11)
    assert leaving.wire.state == "aborted"


# ------------------------------------------------------------------------------------ servers on real sockets


class Toy:
    """A server of the client service, in a thread of its own: a dictionary."""

    def __init__(
        self, new_loop: Callable[[], asyncio.AbstractEventLoop], tls: Any = None, **options: Any
    ) -> None:
        self.data: dict[str, str] = {}
        self.lost: list[Exception | None] = []
        self.errors: list[dict[str, Any]] = []
        self.connections: set[Connection] = set()
        self.flusher = Flusher()
        self.options = options
        self.tls = tls
        self.loop = new_loop()
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self.port = 0
        started = threading.Event()
        self.thread = threading.Thread(target=self.run, args=(started,))
        self.thread.start()
        assert started.wait(30)

    def run(self, started: threading.Event) -> None:
        context = (lambda: self.tls) if self.tls else None
        server: Any = self.loop.run_until_complete(listen("127.0.0.1", 0, self.connection, context))
        self.port = server.sockets[0].getsockname()[1]
        self.loop.call_soon(started.set)
        self.loop.run_forever()
        server.close()
        for connection in list(self.connections):
            connection.abort()
        if not self.tls:
            self.loop.run_until_complete(server.wait_closed())
        while self.connections:
            self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(30)
        assert not self.thread.is_alive()
        assert not self.errors

    def connection(self) -> Connection:
        return Connection(
            self.on_message, self.on_lost, 1 << 20, self.flusher, on_made=self.connections.add, **self.options
        )

    def on_lost(self, connection: Connection, error: Exception | None) -> None:
        self.connections.remove(connection)
        self.lost.append(error)

    def on_message(
        self, connection: Connection, kind: int, name: bytes, sequence: int, frame: bytes, offset: int
    ) -> None:
        if not self.flusher.dirty:
            self.loop.call_soon(self.flusher.flush_all)
        method = METHODS.get(name)
        if method is None:
            if kind == CALL:
                connection.send(unknown_method(name, sequence))
            return
        arguments = method.arguments(frame, offset)
        if method.service != "KeyValue":
            return
        try:
            connection.send(method.reply(sequence, getattr(self, method.name)(*arguments)))
        except Exception as error:
            connection.send(method.fail(sequence, error))

    def put(self, key: str, value: str, _: Any) -> Result:
        self.data[key] = value
        return Result(Outcome.OK)

    def get(self, key: str, _: Any) -> Result:
        if key in self.data:
            return Result(Outcome.OK, self.data[key])
        return Result(Outcome.NOT_FOUND)

    def delete(self, *_: Any) -> Result:
        raise NotDone("never", True)

    def increment(self, *_: Any) -> Result:
        raise RuntimeError("a bug")

    def execute(self, commands: list[Command]) -> list[Result]:
        return [self.put(command.key, command.value, None) for command in commands]

    def status(self, digest: bool) -> Status:
        return STATUS if digest else Status(node=1)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def toy(request: pytest.FixtureRequest) -> Iterator[Toy]:
    server = Toy(request.param)
    yield server
    server.stop()


def generated(value: Any) -> Any:
    """Our named tuples as the structs that Thrift's compiler has generated, as other programs use them."""
    if isinstance(value, list):
        return [generated(part) for part in value]
    if hasattr(value, "thrift_spec") and isinstance(value, tuple):
        return getattr(ttypes, type(value).__name__)(*map(generated, value))
    return value


@contextlib.contextmanager
def standard_client(port: int, protocol: Any = TBinaryProtocol, make: Any = TSocket) -> Iterator[Any]:
    """What the Thrift tutorial would have one write."""
    transport = TFramedTransport(make("127.0.0.1", port))
    transport.open()
    try:
        yield KeyValue.Client(protocol(transport))
    finally:
        transport.close()


def eventually(condition: Callable[[], Any]) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("protocol", [TBinaryProtocol, TBinaryProtocolAccelerated])
def test_standard_thrift_clients_are_served(toy: Toy, protocol: Any) -> None:
    with standard_client(toy.port, protocol) as client:
        assert client.get("k", None).outcome == Outcome.NOT_FOUND
        assert client.put("k\u00e9", "v" * 500_000, None) == generated(Result(Outcome.OK))
        assert client.get("k\u00e9", 0).value == "v" * 500_000
        puts = generated([Command(Verb.PUT, str(n), "v") for n in range(3000)])
        assert client.execute(puts) == generated([Result(0)] * 3000)
        assert client.status(True) == generated(STATUS)
        assert client.status(None).node == 1
        with pytest.raises(NotDone) as raised:
            client.delete("k", None)
        assert raised.value == NotDone("never", True)
        with pytest.raises(TApplicationException) as failed:
            client.increment("k", 1, None)
        assert failed.value.type == TApplicationException.INTERNAL_ERROR
        assert client.get("0", None).value == "v"


def test_an_unknown_method_gets_an_answer_if_it_is_called_and_none_if_it_is_oneway(toy: Toy) -> None:
    with standard_client(toy.port) as client:
        for kind in (TMessageType.ONEWAY, TMessageType.CALL):
            client._oprot.writeMessageBegin("nope", kind, 5)
            KeyValue.status_args(True).write(client._oprot)
            client._oprot.writeMessageEnd()
            client._oprot.trans.flush()
        with pytest.raises(TApplicationException) as raised:
            client.recv_status()
        assert raised.value.type == TApplicationException.UNKNOWN_METHOD
        assert client.get("k", None).outcome == Outcome.NOT_FOUND  # and no second answer is under way


def test_a_client_that_sends_byte_by_byte_is_served(toy: Toy) -> None:
    with socket.create_connection(("127.0.0.1", toy.port)) as stranger:
        stranger.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in METHODS[b"get"].call(8, "k", None):
            stranger.sendall(bytes([byte]))
        assert stranger.recv(100) == METHODS[b"get"].reply(8, Result(Outcome.NOT_FOUND))


def test_many_calls_in_one_segment_are_answered_in_order(toy: Toy) -> None:
    calls = b"".join(METHODS[b"get"].call(number, "k", None) for number in range(5000))
    answers = b"".join(METHODS[b"get"].reply(number, Result(Outcome.NOT_FOUND)) for number in range(5000))
    with socket.create_connection(("127.0.0.1", toy.port)) as stranger:
        threading.Thread(target=stranger.sendall, args=(calls,)).start()
        received = bytearray()
        while len(received) < len(answers) and (part := stranger.recv(1 << 16)):
            received += part
    assert received == answers


def test_garbage_hurts_nobody_but_its_sender(toy: Toy) -> None:
    rng = random.Random(3)
    calls = [
        METHODS[name.encode()].call(number, *EVERY_CALL[name][0]) for number, name in enumerate(EVERY_CALL)
    ]
    with standard_client(toy.port) as client:
        for round_ in range(1500):
            garbage = bytearray(b"".join(rng.choices(calls, k=3)))
            for _ in range(rng.randint(1, 6)):
                garbage[rng.randrange(len(garbage))] = rng.randrange(256)
            with socket.create_connection(("127.0.0.1", toy.port)) as stranger, contextlib.suppress(OSError):
                stranger.sendall(garbage[: rng.randint(1, len(garbage))])
            if round_ % 50 == 0:
                client.put("mine", str(round_), None)
                assert client.get("mine", None).value == str(round_)
        eventually(lambda: len(toy.lost) == 1500)
        assert client.get("mine", None).value == "1450"
    assert not toy.errors


@pytest.mark.parametrize("length", [0, -1, (1 << 20) + 1, (1 << 31) - 1])
def test_a_forged_length_ends_the_connection(toy: Toy, length: int) -> None:
    with socket.create_connection(("127.0.0.1", toy.port)) as stranger:
        stranger.sendall(struct.pack(">i", length))
        assert stranger.recv(1) == b""
    eventually(lambda: toy.lost)
    assert isinstance(toy.lost[0], Malformed)


def test_a_client_that_does_not_read_is_cut_off_and_the_others_are_served() -> None:
    toy = Toy(uvloop.new_event_loop, max_output=2 << 20)
    toy.data["large"] = "v" * 500_000
    try:
        with socket.create_connection(("127.0.0.1", toy.port)) as stranger:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with contextlib.suppress(OSError):
                for number in range(1000):
                    stranger.sendall(METHODS[b"get"].call(number, "large", None))
            eventually(lambda: toy.lost)
            assert isinstance(toy.lost[0], TimeoutError)
            with standard_client(toy.port) as client:
                assert len(client.get("large", None).value) == 500_000
    finally:
        toy.stop()


# ------------------------------------------------------------------------------------------------------ links


async def until(condition: Callable[[], Any]) -> None:
    """Wait, in a loop, until the condition holds."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


class Caller:
    """A link, and what it told its owner."""

    def __init__(self, port: int, tls: Any = None) -> None:
        self.flusher = Flusher()
        self.events: list[str] = []
        self.answers: list[tuple[int, Any]] = []
        self.link = Link(
            "127.0.0.1", port, self.flusher, 8 << 20,
            on_up=lambda _: self.events.append("up"), on_message=self.on_message,
            on_down=lambda _, __: self.events.append("down"), tls=tls,
        )  # fmt: skip
        self.link.start()

    def on_message(
        self, connection: Connection, kind: int, name: bytes, sequence: int, frame: bytes, offset: int
    ) -> None:
        assert connection.user is self.link
        self.answers.append((sequence, METHODS[name].answer(kind, frame, offset)))

    async def get(self, sequence: int) -> Any:
        assert self.link.send(METHODS[b"get"].call(sequence, "k", None))
        self.flusher.flush_all()
        await until(lambda: self.answers and self.answers[-1][0] == sequence)
        return self.answers[-1][1]


class Answering:
    """A peer in the same loop that finds nothing, whatever is asked."""

    def __init__(self) -> None:
        self.flusher = Flusher()
        self.connections: set[Connection] = set()
        self.server: Any = None

    def connection(self) -> Connection:
        return Connection(
            self.on_message, lambda connection, _: self.connections.remove(connection), 1 << 20, self.flusher,
            on_made=self.connections.add,
        )  # fmt: skip

    def on_message(self, connection: Connection, kind: int, name: bytes, sequence: int, *_: Any) -> None:
        connection.send(METHODS[name].reply(sequence, Result(Outcome.NOT_FOUND)))
        self.flusher.flush_all()

    async def start(self, port: int, tls: Any = None) -> int:
        self.server: Any = await listen("127.0.0.1", port, self.connection, (lambda: tls) if tls else None)
        bound: int = self.server.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        self.server.close()
        for connection in self.connections:
            connection.abort()
        await until(lambda: not self.connections)


@in_a_loop
async def test_a_link_comes_back_whenever_its_peer_does_and_tells_when_it_is_refused() -> None:
    port = free_port()
    caller = Caller(port)
    await until(lambda: caller.link.refused)
    assert not caller.link.send(b"lost")
    for number in range(1, 4):
        peer = Answering()
        await peer.start(port)
        await until(lambda: caller.link.connection)
        assert not caller.link.refused
        assert (await caller.get(number)).outcome == Outcome.NOT_FOUND
        await peer.stop()
        await until(lambda: not caller.link.connection)
        await until(lambda: caller.link.refused)
        assert caller.events == ["up", "down"] * number
    caller.link.close()


@in_a_loop
async def test_a_link_that_is_closed_stays_down() -> None:
    peer = Answering()
    caller = Caller(await peer.start(0))
    await until(lambda: caller.link.connection)
    caller.link.close()
    await until(lambda: caller.events == ["up", "down"])
    assert caller.link._task is not None
    await asyncio.wait([caller.link._task])
    assert caller.link._task.cancelled()
    await peer.stop()


@in_a_loop
async def test_a_link_that_is_closed_in_the_moment_it_comes_up_goes_down_again() -> None:
    peer = Answering()
    port = await peer.start(0)
    for _ in range(20):
        events: list[str] = []

        def on_up(link: Link, events: list[str] = events) -> None:
            events.append("up")
            link.close()

        def on_down(_: Link, __: Any, events: list[str] = events) -> None:
            events.append("down")

        link = Link(
            "127.0.0.1", port, Flusher(), 1000, on_up=on_up, on_message=lambda *_: None, on_down=on_down
        )
        link.start()
        await until(lambda events=events: events == ["up", "down"])  # type: ignore[misc]
        assert link.connection is None
    await peer.stop()


@in_a_loop
async def test_a_link_whose_peer_does_not_read_loses_messages_and_stays_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        caller = Caller(silent.getsockname()[1])
        await until(lambda: caller.link.connection)
        sent = 0
        while caller.link.send(b"x" * (1 << 20)):
            caller.flusher.flush_all()
            sent += 1
            assert sent < 1000
        assert caller.events == ["up"]
        assert sent >= 32
        connection = caller.link.connection
        caller.link.close()
        if connection:
            connection.abort()
        await until(lambda: caller.events == ["up", "down"])


@in_a_loop
async def test_an_address_in_use_is_refused() -> None:
    peer = Answering()
    port = await peer.start(0)
    with pytest.raises(OSError):
        await listen("127.0.0.1", port, peer.connection)
    await peer.stop()


# -------------------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str, str]]:
    """Certificate, key and authority for 127.0.0.1, of two authorities that do not know each other."""
    if not shutil.which("openssl"):
        pytest.skip("the openssl command is missing")
    made = []
    for name in ("ours", "theirs"):
        directory = tmp_path_factory.mktemp(name)
        (directory / "extensions").write_text("subjectAltName=IP:127.0.0.1\n")
        new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        for command in (
            ["req", "-x509", *new_key, "-subj", f"/CN={name}", "-keyout", "ca.key", "-out", "ca.pem"],
            ["req", *new_key, "-subj", "/CN=node", "-keyout", "node.key", "-out", "node.csr"],
            ["x509", "-req", "-in", "node.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
             "-extfile", "extensions", "-out", "node.pem"],
        ):  # fmt: skip
            subprocess.run(["openssl", *command], cwd=directory, check=True, capture_output=True)
        made.append((str(directory / "node.pem"), str(directory / "node.key"), str(directory / "ca.pem")))
    return made


def test_tls_serves_those_with_a_certificate_of_the_authority_and_nobody_else(
    authorities: list[tuple[str, str, str]],
) -> None:
    ours, theirs = authorities
    toy = Toy(uvloop.new_event_loop, tls=tls_contexts(*ours)[0])

    def socket_of(certificate: str, key: str, authority: str) -> Callable[[str, int], Any]:
        return lambda host, port: TSSLSocket(
            host, port, cert_reqs=ssl.CERT_REQUIRED, ca_certs=authority, certfile=certificate, keyfile=key
        )

    try:
        # One that shakes no hands must not hold up the others.
        with socket.create_connection(("127.0.0.1", toy.port)):
            with standard_client(toy.port, make=socket_of(*ours)) as client:
                client.put("k", "v" * 400_000, None)
                assert client.get("k", None).value == "v" * 400_000
            for bad in (TSSLSocket, socket_of(theirs[0], theirs[1], ours[2])):
                with pytest.raises(Exception), standard_client(toy.port, make=bad) as client:  # noqa: B017
                    client.get("k", None)
            with pytest.raises(Exception), standard_client(toy.port) as client:  # noqa: B017
                client.get("k", None)
    finally:
        toy.errors.clear()  # (event loops report failed handshakes)
        toy.stop()


def test_links_speak_tls(authorities: list[tuple[str, str, str]]) -> None:
    @in_a_loop
    async def test() -> None:
        server_side, client_side = tls_contexts(*authorities[0])
        peer = Answering()
        port = await peer.start(0, server_side)
        caller = Caller(port, client_side)
        await until(lambda: caller.link.connection)
        assert (await caller.get(1)).outcome == Outcome.NOT_FOUND
        caller.link.close()
        await until(lambda: caller.events == ["up", "down"])
        await peer.stop()

    test()
