"""Frames that are none, from a seeded source, and what sends very many of them to a node.

    asyncio.run(fuzz(address, groups(CLIENT_CALLS, 100_000, seed), lanes=8))

A group goes over one connection: proper frames, whatever is in them, and at its end perhaps bytes that no
frame is cut from. A node answers every frame but that, or hangs up.
"""

import asyncio
import contextlib
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from paxoskv.wire.codec import Malformed
from paxoskv.wire.methods import CALL, METHODS, ONEWAY, header
from paxoskv.wire.structs import (
    Accept,
    Action,
    Barrier,
    Command,
    Compare,
    Entry,
    Fact,
    Fetch,
    FetchCheckpoint,
    Forward,
    Identity,
    Learn,
    Origin,
    Outcome,
    Position,
    Prepare,
    Range,
    Rejoin,
    Relation,
    RequestId,
    Result,
    Session,
    Transaction,
    Verb,
)

IN_GROUP = 50  # frames in a group, at most
LAST = METHODS[b"get"].call(0x6C617374, "no such key", 2)  # a call that is answered at its turn
ANSWER = METHODS[b"get"].reply(0x6C617374, Result(Outcome.NOT_FOUND))[4:19]  # how its answer begins
PATIENCE_S = 60.0  # for a node's answers to a group

REQUEST = RequestId(Session(5, 1, 0), 3, 2)
FACT = Fact(3, 0, 0, 0)
CLIENT_CALLS: dict[bytes, tuple[Any, ...]] = {
    b"put": ("malformed/key", "value", REQUEST),
    b"get": ("malformed/key", 0),
    b"delete": ("malformed/key", REQUEST),
    b"compare_and_set": ("malformed/key", "old", "new", REQUEST),
    b"increment": ("malformed/number", 5, REQUEST),
    b"transaction": (
        Transaction(
            [Compare("malformed/key", Relation.EQUALS, "old"), Compare("malformed/none", Relation.ABSENT)],
            [Action(Verb.PUT, "malformed/key", "new"), Action(Verb.INCREMENT, "malformed/number", None, 1)],
            [Action(Verb.GET, "malformed/key")],
        ),
        REQUEST,
    ),
    b"execute": (
        [
            Command(Verb.PUT, "malformed/key", "value", None, None, REQUEST),
            Command(Verb.GET, "malformed/key"),
        ],
    ),
    b"scan_range": (
        Range("malformed/", "malformed/a", "malformed/z", "malformed/b", True, 10, True, False),
        0,
    ),
    b"scan": ("malformed/", "malformed/a", 10, 0),
    b"status": (False,),
    b"membership": (),
    b"open_session": (),
    b"read_checkpoint": (0, 0),
    b"trace": (None, 0),
}
NODE_CALLS: dict[bytes, tuple[Any, ...]] = {
    b"hello": (Identity("test", "0" * 64, 3, 1, 0),),
    b"prepare": (Prepare(3, 0, 0, 0),),
    b"accept": (Accept(3, 0, 0, [Entry(1, b"payload"), Entry(2, b"")], True, FACT, [1]),),
    b"learn": (Learn(1, [FACT, FACT], [0, 0, 0], Position(0, 0), 0),),
    b"fetch": (Fetch(3, 0),),
    b"barrier": (Barrier(1, 1),),
    b"forward": (Forward(257, Origin(1, 1, 1), b"x", 0),),
    b"fetch_checkpoint": (FetchCheckpoint(0, 0),),
    b"rejoin": (Rejoin(3, 0),),
}


# ----------------------------------------------------------------------------------- from a frame to a mutant


Mutation = Callable[[bytes, random.Random], bytes]


def flipped(frame: bytes, source: random.Random) -> bytes:
    """Some bits are other bits."""
    data = bytearray(frame)
    for _ in range(source.choice((1, 1, 2, 8))):
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return bytes(data)


def cut(frame: bytes, source: random.Random) -> bytes:
    """The end is missing, and the length says so."""
    body = frame[4 : source.randrange(5, len(frame))]
    return struct.pack(">i", len(body)) + body


def half(frame: bytes, source: random.Random) -> bytes:
    """The end is missing, and the length does not say so: the node must wait for more."""
    return frame[: source.randrange(1, len(frame))]


def forged(frame: bytes, source: random.Random) -> bytes:
    """The length is another one."""
    length = source.choice(
        (0, 1, 4, len(frame), len(frame) - 5, 2**20 + 1, 2**23 + 1, 2**31 - 1, -1, -(2**31))
    )
    return struct.pack(">i", length) + frame[4:]


def swollen(frame: bytes, source: random.Random) -> bytes:
    """A length within it is another one: of a string or a container, where the bytes happen to be one."""
    places = [at for at in range(8, len(frame) - 4) if frame[at : at + 2] == b"\0\0"] or [8]
    at = source.choice(places)
    count = source.choice((2**31 - 1, -1, 2**30, 2**24, len(frame), 2**16))
    return frame[:at] + struct.pack(">i", count) + frame[at + 4 :]


def retyped(frame: bytes, source: random.Random) -> bytes:
    """A byte that may be a field's type is another type, or none."""
    types = [at for at in range(8, len(frame)) if frame[at] in (2, 3, 6, 8, 10, 11, 12, 15)] or [8]
    data = bytearray(frame)
    data[source.choice(types)] = source.choice((1, 2, 3, 4, 6, 8, 10, 11, 12, 13, 14, 15, 16, 99, 255))
    return bytes(data)


def emptied(frame: bytes, source: random.Random) -> bytes:
    """The arguments' last fields are missing: the struct ends before them."""
    _, _, _, offset = header(frame, 4)
    body = frame[4 : source.randrange(offset, len(frame))] + b"\0" * source.choice((1, 2, 3))
    return struct.pack(">i", len(body)) + body


def garbage(frame: bytes, source: random.Random) -> bytes:
    """A frame of anything."""
    body = source.randbytes(source.randrange(1, 300))
    return struct.pack(">i", len(body)) + body


MUTATIONS = (flipped, cut, half, forged, swollen, retyped, emptied, garbage)
# Where there are to be very many: those after which the connection is of no more use are few.
MOSTLY_WHOLE = (flipped, cut, swollen, retyped, emptied) * 4 + (half, forged, garbage)


def malformed(frame: bytes) -> bool:
    """Whether these bytes do not begin with a call that a node could take for one of a peer's."""
    length = struct.unpack_from(">i", frame)[0] if len(frame) >= 4 else 0
    if not 0 < length <= len(frame) - 4:
        return True
    try:
        frame = frame[: 4 + length]
        kind, name, _, offset = header(frame, 4)
        if name not in METHODS or kind not in (CALL, ONEWAY):
            return True
        METHODS[name].arguments(frame, offset)
    except Malformed:
        return True
    return False


def mutants(
    calls: dict[bytes, tuple[Any, ...]],
    count: int,
    seed: int,
    only: bool,
    mutations: Sequence[Mutation] = MUTATIONS,
) -> Iterator[bytes]:
    """So many mutants of all calls by all mutations. `only`: none that is a proper call after all.

    (Nodes believe their peers: a flipped bit that makes another proper Accept would be a lie, not a malformed
    frame.)
    """
    source = random.Random(seed)
    names = list(calls)
    made = 0
    while made < count:
        frame = METHODS[names[made % len(names)]].call(
            source.randrange(2**31), *calls[names[made % len(names)]]
        )
        mutant = source.choice(mutations)(frame, source)
        if not only or malformed(mutant):
            made += 1
            yield mutant


# ------------------------------------------------------------------------------------------- sending them


def breaks(frame: bytes) -> bool:
    """Whether nothing can be told apart any more behind these bytes."""
    if len(frame) < 4 or struct.unpack_from(">i", frame)[0] != len(frame) - 4:
        return True
    try:
        header(frame, 4)
    except Malformed:
        return True
    return False


def groups(
    calls: dict[bytes, tuple[Any, ...]], count: int, seed: int, only: bool = False, most: int = IN_GROUP
) -> Iterator[list[bytes]]:
    """So many mutants, in groups; of each, only the last may break its connection."""
    group: list[bytes] = []
    for frame in mutants(calls, count, seed, only, MOSTLY_WHOLE):
        group.append(frame)
        if len(group) == most or breaks(frame):
            yield group
            group = []
    if group:
        yield group


async def fuzz(
    address: tuple[str, int], source: Iterator[list[bytes]], first: bytes = b"", lanes: int = 8
) -> int:
    """Send all groups, each over a connection of its own after `first`; return how many frames that were."""
    sent = 0

    async def lane() -> None:
        nonlocal sent
        for group in source:
            reader, writer = await asyncio.open_connection(*address)
            with contextlib.suppress(OSError):  # it may hang up at any time
                async with asyncio.timeout(PATIENCE_S):
                    writer.write(first + b"".join(group[:-1]) + LAST)
                    await _read_until(reader, ANSWER)
                    writer.write(group[-1])
                    writer.write_eof()
                    await _read_until(reader, None)
            writer.transport.abort()
            sent += len(group)

    await asyncio.gather(*(lane() for _ in range(lanes)))
    return sent


async def _read_until(reader: asyncio.StreamReader, answer: bytes | None) -> None:
    """Read until these bytes come, or the node hangs up."""
    tail = b""
    while data := await reader.read(1 << 16):
        tail = tail[-100:] + data
        if answer is not None and answer in tail:
            return
