"""The replicated state: a pickledb store, and the sessions by which a repeated command is recognized.

Every node applies the same entries once each, in the same order, and so has the same state:

    store = Store("kv.json")
    results = store.apply(timestamp, owner, payload)    # one entry, an encoded Batch: a Result per command

The state depends on the entries alone, not on time, chance or the order of hashes. Applying changes only
memory: the journal makes entries durable, and this module never saves store.database.

Exactly once. A command may carry a RequestId (session, sequence, first_incomplete). For each session the
state keeps first_incomplete, which only grows, and the results of the sequences from there on. The first line
that fits decides:

    the command is invalid, see validation.py     -> INVALID, and nothing at all changes
    not all nodes are known to understand it      -> the same: what a node that does not know it answers
    the session is unknown                        -> EXPIRED, never a new session
    the sequence lies below first_incomplete      -> FORGOTTEN: it is no longer known whether it was applied
    the sequence has a result                     -> that result, not applied again
    otherwise                                     -> applied, and the result is kept

Two limits bound the table of sessions. First, a command is invalid if its sequence lies MAX_RESULTS or more
above its first_incomplete. The session's first_incomplete is never smaller than the command's, so the results
of a session always fit a window of MAX_RESULTS sequences, and a refusal does not depend on the state. Second,
there are at most MAX_SESSIONS sessions. Opening another one removes the least recently used session, where a
repeated command is a use as well.

Results hold what was read, so two more limits bound the table's size. Of a session's results at most
MAX_KEPT_BY_ONE characters are kept: beyond that the oldest are given up, and a repeat of theirs is FORGOTTEN.
Of all sessions' at most MAX_KEPT: beyond that the least recently used sessions are removed. These two hold
from format 1 on: what was kept before counts when the next result is kept.

Formats. A node of an older version answers INVALID to a verb that it does not know, and so do all: `format`
is a part of the state, and a verb above it is INVALID. It rises by the command UPGRADE. A node proposes that
when a client wants such a verb, and all nodes have said that they know it (paxoskv/node/formats.py). What the
verbs of a lower format answer, and which sessions are left, is a part of that format, with all limits.

Keys and values are text; NUL and the empty value are ordinary. No key is empty, so that save_state() can put
its bookkeeping under RESERVED_KEY = "", which is never a user's key.
"""

import hashlib
import json
import struct
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

from pickledb import PickleDB

from paxoskv.state.changes import Changes
from paxoskv.state.commands import NOT_FOUND, OK, execute, read_by, transact
from paxoskv.state.content import Content, Digest, Lease, Pieces
from paxoskv.wire.codec import Malformed, decode, encode
from paxoskv.wire.structs import (
    Answer,
    Batch,
    Command,
    CommandPlace,
    Item,
    Moved,
    Outcome,
    Range,
    RequestId,
    Result,
    Session,
    Transacted,
    Verb,
)
from paxoskv.wire.validation import (
    FORMAT,
    MAX_ENTRY_TRANSACTED,
    MAX_RESULTS,
    MAX_TRANSACTED,
    MIN_TRANSACTED,
    invalid,
)

RESERVED_KEY: Final = ""  # invalid() refuses it as a user's key
# A change of one of these belongs to a new format, as one in validation.py does.
MAX_SESSIONS: Final = 65_536
MAX_KEPT_BY_ONE: Final = 4 << 20  # characters: four of the largest results
MAX_KEPT: Final = 64 << 20
ITEM_OVERHEAD: Final = 15  # bytes that Thrift adds to the key and value of an Item in a list

_PLACE: Final = struct.Struct(">IQB")  # a hash, a timestamp, an owner

_EXPIRED: Final = Result(Outcome.EXPIRED)
_FORGOTTEN: Final = Result(Outcome.FORGOTTEN)
_INVALID: Final = Result(Outcome.INVALID)


def encode_batch(commands: Sequence[Command]) -> bytes:
    """Return the payload of an entry with these commands."""
    return encode(Batch(list(commands)))


class _Session:
    """What the state remembers of one client: its results by sequence, from `first_incomplete` on."""

    __slots__ = ("first_incomplete", "kept", "results")

    def __init__(self, first_incomplete: int, results: dict[int, Result]) -> None:
        self.first_incomplete = first_incomplete
        self.results = results
        self.kept = sum(map(_length, results.values()))  # characters in them

    def forget(self, first_incomplete: int) -> int:
        """Drop the results below this sequence, which the client has; return how many characters they held.

        It is above first_incomplete, which never shrinks.
        """
        kept_from, before = self.first_incomplete, self.kept
        for sequence in range(kept_from, min(first_incomplete, kept_from + MAX_RESULTS)):
            result = self.results.get(sequence)
            if result is not None:
                del self.results[sequence]
                if self.kept:
                    self.kept -= _length(result)
        self.first_incomplete = first_incomplete
        return before - self.kept

    def give_up(self, sequence: int) -> int:
        """Give up the oldest results, but not this sequence's, until the rest holds few enough characters.

        Return how many characters were given up.
        """
        before = self.kept
        for other, result in self.results.items():
            if self.kept <= MAX_KEPT_BY_ONE:
                break
            if other != sequence:
                self.kept -= _length(result)
                self.results[other] = _FORGOTTEN
        return before - self.kept


class Digested(NamedTuple):
    """What the store held at one moment."""

    position: tuple[int, int] = (-1, 0)  # as Store.position
    hash: int = 0  # as Store.hash
    keys: int = 0
    digest: str = ""


class Store:
    """The replicated state: a pickledb store and the sessions."""

    def __init__(self, location: str) -> None:
        """Make an empty store; `location` is pickledb's file, which is neither read nor written here."""
        self.database = PickleDB(location)
        self.position: tuple[int, int] = (0, 0)  # (timestamp, owner) of the last applied entry
        self.format = 0  # of which all nodes are known to understand the commands
        self.risen: Callable[[], None] = lambda: None  # is called when the format has
        self.settled = False  # whether a command of this format was applied: all had applied UPGRADE before
        self.addresses: dict[int, Moved] = {}  # of nodes that were replaced; another dict for each change
        self.former: dict[int, list[str]] = {}  # where they were before, but for where cluster.json says
        self.hash = 0  # CRC-32 over all that was applied so far: the entries and their outcomes
        self.changes = Changes()  # the last ones, for watches
        self._changed: list[str | None] = []  # by the entry that is being applied: keys and new values
        self._content = Content(self.database.db, self._changed)
        # The least recently used session comes first.
        self._sessions: OrderedDict[tuple[int, int, int], _Session] = OrderedDict()
        self._room = 0  # characters that the transactions of this entry may still read
        self._kept = 0  # characters in the results of all sessions
        self._named: Session | None = None  # the session of the command before, within one entry
        self._session = _Session(1, {})  # what is remembered of it

    def apply(self, timestamp: int, owner: int, payload: bytes) -> list[Result]:
        """Apply one entry, and return a result for each of its commands.

        Malformed: the payload is no Batch, and nothing was changed. Entries must come once each, in the order
        of (timestamp, owner); otherwise two sessions could get the same id.
        """
        commands: list[Command] = decode(Batch, payload).commands
        position = (timestamp, owner)
        assert position > self.position, f"entry {position} applied after {self.position}"
        self.position = position
        self._named = None
        self._room = MAX_ENTRY_TRANSACTED
        results = [self._apply(command, index) for index, command in enumerate(commands)]
        self.changes.add(timestamp, owner, self._changed, payload if self._says_all(commands) else None)
        self._changed.clear()
        place = zlib.crc32(_PLACE.pack(self.hash, timestamp, owner))
        self.hash = zlib.crc32(bytes([result.outcome for result in results]), zlib.crc32(payload, place))
        return results

    def _says_all(self, commands: list[Command]) -> bool:
        """Whether the commands alone say what has changed: each is a put that was applied."""
        if len(self._changed) != 2 * len(commands):
            return False
        for command in commands:  # noqa: SIM110 (all() would make a generator for each entry)
            if command.verb != Verb.PUT:
                return False
        return True

    def get(self, key: str) -> Result:
        """Read the key: OK and the value, or NOT_FOUND."""
        value = self._content.values.get(key)
        return NOT_FOUND if value is None else Result(Outcome.OK, value)

    def sort(self) -> Pieces:
        """Put the keys in order, which scan() needs: in pieces, while entries are applied."""
        return self._content.sort()

    def scan(self, prefix: str, start_after: str, limit: int, max_bytes: int) -> tuple[list[Item], bool]:
        """Return the first items by key with this prefix, after `start_after`: see page()."""
        return self.page(Range(prefix, after=start_after), limit, max_bytes)

    def page(self, wanted: Range, limit: int, max_bytes: int) -> tuple[list[Item], bool]:
        """Return the first items of a range, in its order, and whether more follow.

        There are at most `limit` items, of at most `max_bytes` bytes when encoded. But one item always comes,
        or a reader could not get past it.
        """
        content, without_values = self._content, wanted.keys_only
        _finish(content.sort())
        items: list[Item] = []
        for key in islice(content.within(wanted), limit + 1):
            value = "" if without_values else content.values[key]
            max_bytes -= len(key.encode()) + len(value.encode()) + ITEM_OVERHEAD
            if len(items) == limit or (max_bytes < 0 and items):
                return items, True
            items.append(Item(key, value))
        return items, False

    def count(self, wanted: Range) -> int:
        """Return how many keys the range has."""
        _finish(self._content.sort())
        return self._content.count(wanted)

    def size(self) -> int:
        """Return the number of keys."""
        return len(self._content.values)

    def digest(self) -> str:
        """Return the SHA-256, in hexadecimal, of the keys and values; it is equal if two contents are equal.

        The keys come in the order of code points. Of each, key and value are hashed: the length in bytes (8
        bytes, big-endian), then the UTF-8 form. So two different contents never give the same bytes.
        """
        return _finish(self.digest_in_pieces()).digest

    def digest_in_pieces(self) -> Generator[None, None, Digested]:
        """Make a digest of one moment, after the call, in pieces between which entries may be applied."""
        content = self._content
        yield from content.sort()
        while content is not self._content:  # meanwhile a checkpoint of another node was installed
            content = self._content
            yield from content.sort()
        digest = Digest(content)
        position, rolling, keys = self.position, self.hash, self.size()
        yield from digest.pieces()
        return Digested(position, rolling, keys, digest.sha.hexdigest())

    def state_digest(self) -> str:
        """Return the SHA-256, in hexadecimal, of the content, the sessions in their order, and the leases."""
        rest = [self._dump_sessions(), *self.leases.items()]
        return hashlib.sha256(f"{self.digest()} {json.dumps(rest)}".encode()).hexdigest()

    @property
    def leases(self) -> dict[str, Lease]:
        """The times to live, of the keys that have one; those set last are the last."""
        return self._content.leases

    @property
    def leased(self) -> deque[str]:
        """Keys whose time to live has yet to be counted down, for whoever does that to take away."""
        return self._content.leased

    def save_state(self) -> dict[str, Any]:
        """Copy the whole state into a dict fit for JSON, meant to be the `db` of a PickleDB that is saved.

        The keys are as they are; position, hash and sessions are under RESERVED_KEY.
        """
        leases = [[key, lease.ttl_ms, *lease.place] for key, lease in self.leases.items()]
        return {
            **self._content.values,
            RESERVED_KEY: {
                "position": list(self.position),
                "hash": self.hash,
                **({"leases": leases} if leases else {}),
                **({"format": self.format} if self.format else {}),
                **({"settled": True} if self.settled else {}),
                **(
                    {"addresses": [[*moved, *self.former[moved.node]] for moved in self.addresses.values()]}
                    if self.addresses
                    else {}
                ),
                "sessions": self._dump_sessions(),
            },
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Replace the whole state by one that save_state() returned.

        Malformed: this is no such state, and nothing was changed. An empty dict, which pickledb makes of a
        lost file, is no such state.
        """
        content = dict(state)
        try:
            bookkeeping = content.pop(RESERVED_KEY)
            timestamp, owner = bookkeeping["position"]
            rolling = int(bookkeeping["hash"])
            leases = {
                key: Lease(ttl_ms, (timestamp, owner, index))
                for key, ttl_ms, timestamp, owner, index in bookkeeping.get("leases", ())
            }
            format_, settled = int(bookkeeping.get("format", 0)), bool(bookkeeping.get("settled"))
            addresses = {moved[0]: Moved(*moved[:3]) for moved in bookkeeping.get("addresses", [])}
            former = {moved[0]: moved[3:] for moved in bookkeeping.get("addresses", [])}
            sessions = OrderedDict(_load_session(*session) for session in bookkeeping["sessions"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Malformed(f"state: no bookkeeping: {type(error).__name__}: {error}") from error
        self.position = (timestamp, owner)
        self.hash = rolling
        rises, self.format, self.settled = format_ > self.format, format_, settled
        self.addresses, self.former = addresses, former
        self.database.db = content
        self._content = Content(content, self._changed)
        self._content.leases, self._content.leased = leases, deque(leases)
        self.changes.forget(timestamp, owner)
        self._sessions = sessions
        self._kept = sum(session.kept for session in sessions.values())
        if rises:
            self.risen()

    def _apply(self, command: Command, index: int) -> Result:
        """Apply one command, at this index of the entry at self.position."""
        if invalid(command) is not None or (command.verb > Verb.OPEN_SESSION and self._is_too_new(command)):
            return _INVALID
        request: RequestId | None = command.request
        if request is None:
            return self._execute(command, index)
        named: Session = request.session
        if named is not self._named:  # usually all commands of an entry have the same session
            identity = (named.timestamp, named.owner, named.index)
            found = self._sessions.get(identity)
            if found is None:
                return _EXPIRED
            self._sessions.move_to_end(identity)
            self._named, self._session = named, found
        session = self._session
        first_incomplete: int = request.first_incomplete
        if first_incomplete > session.first_incomplete:
            self._kept -= session.forget(first_incomplete)
        sequence: int = request.sequence
        if sequence < session.first_incomplete:
            return _FORGOTTEN
        result = session.results.get(sequence)
        if result is None:
            result = session.results[sequence] = self._execute(command, index)
            if result is not OK and (length := _length(result)):
                session.kept += length
                self._kept += length
                if self.format:
                    self._make_room(session, sequence)
        return result

    def _make_room(self, session: _Session, sequence: int) -> None:
        """Let the results that are kept hold few enough characters, now that this one was added."""
        if session.kept > MAX_KEPT_BY_ONE:
            self._kept -= session.give_up(sequence)
        while self._kept > MAX_KEPT:  # the sessions that were used least recently
            self._kept -= self._sessions.popitem(last=False)[1].kept
            self._named = None

    def _is_too_new(self, command: Command) -> bool:
        """Whether not all nodes are known to understand the command."""
        return command.delta > FORMAT if command.verb == Verb.UPGRADE else self.format < 1

    def _execute(self, command: Command, index: int) -> Result:
        verb: int = command.verb
        if verb <= Verb.INCREMENT:
            return execute(self._content, command)
        if verb == Verb.OPEN_SESSION:
            return self._open_session(index)
        if verb == Verb.UPGRADE:
            if command.delta > self.format:
                self.format, self.settled = command.delta, False
                self.risen()
            return OK
        self.settled = True
        if verb == Verb.TRANSACTION:
            room = min(max(self._room, MIN_TRANSACTED), MAX_TRANSACTED)
            result = transact(self._content, command.transaction, (*self.position, index), room)
            self._room -= read_by(result)
            return result
        if verb == Verb.REPLACE_NODE:
            return self._replace_node(Moved(int(command.key), command.value, self.position[0]))
        return _INVALID  # no verb that this version knows: alike on every node

    def _replace_node(self, moved: Moved) -> Result:
        node, address = moved.node, moved.address
        if any(other.address == address and other.node != node for other in self.addresses.values()):
            return _INVALID  # two were asked for at once
        before = self.addresses.get(node)
        gone = [*self.former.get(node, ()), *([before.address] if before else ())]
        self.former = {**self.former, node: [text for text in gone if text != address]}
        self.addresses = {**self.addresses, node: moved}
        return OK

    def _open_session(self, index: int) -> Result:
        self._named = None
        self._sessions[(*self.position, index)] = _Session(1, {})
        if len(self._sessions) > MAX_SESSIONS:
            self._kept -= self._sessions.popitem(last=False)[1].kept
        return Result(Outcome.OK, session=Session(*self.position, index))

    def _dump_sessions(self) -> list[Any]:
        return [
            [*identity, session.first_incomplete, [_dump_result(*kept) for kept in session.results.items()]]
            for identity, session in self._sessions.items()
        ]


def _finish(work: Generator[None, None, Any]) -> Any:
    """Do all pieces of it now, and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def _length(result: Result) -> int:
    """Return how many characters a result holds."""
    return (len(result.value) if result.value is not None else 0) + (
        read_by(result) if result.transacted is not None else 0
    )


def _dump_result(sequence: int, result: Result) -> list[Any]:
    opened, transacted = result.session, result.transacted
    dumped = [
        sequence,
        result.outcome,
        result.value,
        None if opened is None else [opened.timestamp, opened.owner, opened.index],
    ]
    if transacted is not None:
        dumped.append([list(transacted.place), [list(answer) for answer in transacted.answers]])
    return dumped


def _load_result(outcome: int, value: str | None, opened: Any, transacted: Any = None) -> Result:
    session = None if opened is None else Session(*opened)
    if transacted is None:
        return Result(outcome, value, session)
    place, answers = transacted
    done = Transacted(CommandPlace(*place), [Answer(*answer) for answer in answers])
    return Result(outcome, value, session, None, done)


def _load_session(
    timestamp: int, owner: int, index: int, first_incomplete: int, results: list[Any]
) -> tuple[tuple[int, int, int], _Session]:
    kept = {sequence: _load_result(*result) for sequence, *result in results}
    return (timestamp, owner, index), _Session(first_incomplete, kept)
