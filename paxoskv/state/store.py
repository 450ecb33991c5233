"""The replicated state: a pickledb store, and the sessions that make a repeated command recognizable.

Every node applies the same entries in the same order, each once, and so holds the same state:

    store = Store("kv.json")
    results = store.apply(timestamp, owner, payload)    # one entry, an encoded Batch: a Result per command

Applying depends on the entries alone: no time, no randomness, no hash order. It changes memory only: what is
durable is the journal's business, and store.database is never saved here.

Exactly once. A command may carry a RequestId (session, sequence, first_incomplete). Per session the state
keeps first_incomplete, which only grows, and the results of the sequences from there on. In this order:

    the command makes no sense, see invalid()     -> INVALID, and nothing at all changes
    the session is not known                      -> EXPIRED, never a new session
    the sequence lies below first_incomplete      -> FORGOTTEN: whether it was applied is not known any more
    the sequence has a result                     -> that result, not applied again
    else                                          -> applied, and the result is kept

Two limits bound the table. A sequence lies less than MAX_RESULTS above the first_incomplete that comes with
it, or the command is invalid: as the session's own is no smaller, its results always fit a window of
MAX_RESULTS numbers, and whether a command is refused does not depend on the state. And there are at most
MAX_SESSIONS sessions: opening one more removes the one whose last command, repeats included, lies furthest
back in the order.

Keys and values are text; NUL and the empty value are ordinary. No key is empty, so that save_state() can put
the bookkeeping under RESERVED_KEY = "", where no user's key can ever be.
"""

import hashlib
import heapq
import json
import re
import struct
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

from pickledb import PickleDB

from paxoskv.wire.codec import (
    MAX_KEY_BYTES,
    MAX_VALUE_BYTES,
    Batch,
    Command,
    Item,
    Malformed,
    Outcome,
    RequestId,
    Result,
    Session,
    Verb,
    decode,
    encode,
)

RESERVED_KEY: Final = ""  # invalid() refuses it, so that it is never a user's
MAX_RESULTS: Final = 1024  # per session: more in flight than any client needs, and a bound on its memory
MAX_SESSIONS: Final = 65_536
ITEM_OVERHEAD: Final = 15  # bytes that Thrift adds to the key and value of an Item in a list

_PLACE: Final = struct.Struct(">IQB")  # a hash, a timestamp, an owner

_VERBS: Final = frozenset(
    {Verb.PUT, Verb.GET, Verb.DELETE, Verb.COMPARE_AND_SET, Verb.INCREMENT, Verb.OPEN_SESSION}
)
_NUMBER: Final = re.compile(r"0|-?[1-9][0-9]{0,18}")  # what str(int) writes; more digits never fit 64 bits

_OK: Final = Result(Outcome.OK)
_NOT_FOUND: Final = Result(Outcome.NOT_FOUND)
_NOT_A_NUMBER: Final = Result(Outcome.NOT_A_NUMBER)
_EXPIRED: Final = Result(Outcome.EXPIRED)
_FORGOTTEN: Final = Result(Outcome.FORGOTTEN)
_INVALID: Final = Result(Outcome.INVALID)


def encode_batch(commands: Sequence[Command]) -> bytes:
    """The payload of an entry that holds these commands."""
    return encode(Batch(list(commands)))


def invalid(command: Command) -> str | None:
    """Why the command makes no sense, in one line; None if it does. Depends on the command alone."""
    if command.verb not in _VERBS:
        return "no verb, or an unknown one"
    verb: int = command.verb
    if verb != Verb.OPEN_SESSION:
        if not command.key:
            return "no key, or an empty one"
        if _longer(command.key, MAX_KEY_BYTES):
            return f"the key is longer than {MAX_KEY_BYTES} bytes"
    if verb == Verb.PUT or verb == Verb.COMPARE_AND_SET:
        if command.value is None:
            return "no value"
        if _longer(command.value, MAX_VALUE_BYTES):
            return f"the value is longer than {MAX_VALUE_BYTES} bytes"
        if command.expected is not None and _longer(command.expected, MAX_VALUE_BYTES):
            return f"the expected value is longer than {MAX_VALUE_BYTES} bytes"
    elif verb == Verb.INCREMENT and command.delta is None:
        return "no delta"
    return None if command.request is None else _invalid_request(command.request)


def _invalid_request(request: RequestId) -> str | None:
    session: Session | None = request.session
    sequence, first_incomplete = request.sequence, request.first_incomplete
    if session is None or session.timestamp is None or session.owner is None or session.index is None:
        return "the request id has no session, or part of one"
    if sequence is None or sequence < 1:
        return "no sequence, or one below 1"
    if first_incomplete is None or not 1 <= first_incomplete <= sequence:
        return "no first_incomplete, or one that is not from 1 to the sequence"
    if sequence - first_incomplete >= MAX_RESULTS:
        return f"the session has more than {MAX_RESULTS} commands without an answer"
    return None


def _longer(text: str, limit: int) -> bool:
    """Whether the UTF-8 form exceeds the limit (bytes). Most are short enough at 4 bytes a character."""
    return len(text) * 4 > limit and len(text.encode()) > limit


class _Session:
    """What is remembered of one client: `results` by sequence, all of them from `first_incomplete` on."""

    __slots__ = ("first_incomplete", "results")

    def __init__(self, first_incomplete: int, results: dict[int, Result]) -> None:
        self.first_incomplete = first_incomplete
        self.results = results

    def forget(self, first_incomplete: int) -> None:
        """Drop the results below this number: the client has them. A number below the last does nothing."""
        kept_from = self.first_incomplete
        if first_incomplete > kept_from:
            for sequence in range(kept_from, min(first_incomplete, kept_from + MAX_RESULTS)):
                self.results.pop(sequence, None)
            self.first_incomplete = first_incomplete


class Store:
    """The replicated state: a pickledb store and the sessions."""

    def __init__(self, location: str) -> None:
        """An empty store. `location` is the file of pickledb, which is neither read nor written here."""
        self.database = PickleDB(location)
        self.position: tuple[int, int] = (0, 0)  # (timestamp, owner) of the last applied entry
        self.hash = 0  # CRC-32 over all that was applied up to there: the entries and their outcomes
        self._content: dict[str, str] = self.database.db
        self._sessions: OrderedDict[tuple[int, int, int], _Session] = (
            OrderedDict()
        )  # least recently used first
        self._named: Session | None = None  # in the command before, of this entry: the last in _sessions
        self._session = _Session(1, {})

    def apply(self, timestamp: int, owner: int, payload: bytes) -> list[Result]:
        """Apply one entry: a result for each of its commands. Malformed, and no change, if it is not a Batch.

        Entries come in the order of (timestamp, owner), each once: otherwise two sessions could get one id.
        """
        commands: list[Command] = decode(Batch, payload).commands
        position = (timestamp, owner)
        assert position > self.position, f"entry {position} applied after {self.position}"
        self.position = position
        self._named = None
        results = [self._apply(command, index) for index, command in enumerate(commands)]
        place = zlib.crc32(_PLACE.pack(self.hash, timestamp, owner))
        self.hash = zlib.crc32(bytes([result.outcome for result in results]), zlib.crc32(payload, place))
        return results

    def get(self, key: str) -> Result:
        """What a read of the key answers now: OK and the value, or NOT_FOUND."""
        value = self._content.get(key)
        return _NOT_FOUND if value is None else Result(Outcome.OK, value)

    def scan(self, prefix: str, start_after: str, limit: int, max_bytes: int) -> tuple[list[Item], bool]:
        """The first `limit` items by code point with this prefix, after `start_after`; whether more follow.

        Encoded, they take at most `max_bytes`; but the first one always comes, or a reader could not get on.
        Walks over all keys: about 0.3 s for a million.
        """
        found = (key for key in self._content if key > start_after and key.startswith(prefix))
        keys = heapq.nsmallest(limit + 1, found)
        items: list[Item] = []
        for key in keys[:limit]:
            value = self._content[key]
            max_bytes -= len(key.encode()) + len(value.encode()) + ITEM_OVERHEAD
            if max_bytes < 0 and items:
                break
            items.append(Item(key, value))
        return items, len(keys) > len(items)

    def size(self) -> int:
        """How many keys there are."""
        return len(self._content)

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the keys and values: equal exactly if two stores hold the same.

        Over, for each key in the order of code points: key and value, each as its length in bytes (8 bytes,
        big-endian) and its UTF-8 form; so no two contents give the same bytes.
        """
        digest = hashlib.sha256()
        for key in sorted(self._content):
            for text in (key.encode(), self._content[key].encode()):
                digest.update(len(text).to_bytes(8, "big"))
                digest.update(text)
        return digest.hexdigest()

    def state_digest(self) -> str:
        """SHA-256, in hexadecimal, of the content and of the sessions in their order."""
        return hashlib.sha256(f"{self.digest()} {json.dumps(self._dump_sessions())}".encode()).hexdigest()

    def save_state(self) -> dict[str, Any]:
        """The whole state, fit for JSON: the keys as they are, position and sessions under RESERVED_KEY.

        A copy, meant to become `db` of a PickleDB that is then saved.
        """
        return {
            **self._content,
            RESERVED_KEY: {
                "position": list(self.position),
                "hash": self.hash,
                "sessions": self._dump_sessions(),
            },
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Replace the whole state by what save_state() gave. Malformed, and no change, if it is not that.

        An empty dict, which is what pickledb makes of a lost file, is not.
        """
        content = dict(state)
        try:
            bookkeeping = content.pop(RESERVED_KEY)
            timestamp, owner = bookkeeping["position"]
            rolling = int(bookkeeping["hash"])
            sessions = OrderedDict(_load_session(*session) for session in bookkeeping["sessions"])
        except (KeyError, TypeError, ValueError) as error:
            raise Malformed(f"state: no bookkeeping: {type(error).__name__}: {error}") from error
        self.position = (timestamp, owner)
        self.hash = rolling
        self.database.db = self._content = content
        self._sessions = sessions

    def _apply(self, command: Command, index: int) -> Result:
        """Apply one command, at this index of the entry at self.position."""
        if invalid(command) is not None:
            return _INVALID
        request: RequestId | None = command.request
        if request is None:
            return self._execute(command, index)
        named: Session = request.session
        if named is not self._named:  # else it is the one of the command before, as mostly in a batch
            identity = (named.timestamp, named.owner, named.index)
            found = self._sessions.get(identity)
            if found is None:
                return _EXPIRED
            self._sessions.move_to_end(identity)
            self._named, self._session = named, found
        session = self._session
        session.forget(request.first_incomplete)
        if request.sequence < session.first_incomplete:
            return _FORGOTTEN
        result = session.results.get(request.sequence)
        if result is None:
            result = session.results[request.sequence] = self._execute(command, index)
        return result

    def _execute(self, command: Command, index: int) -> Result:
        content, key = self._content, command.key
        verb: int = command.verb
        match verb:
            case Verb.PUT:
                content[key] = command.value
                return _OK
            case Verb.GET:
                return self.get(key)
            case Verb.DELETE:
                return _NOT_FOUND if content.pop(key, None) is None else _OK
            case Verb.COMPARE_AND_SET:
                held = content.get(key)
                if held != command.expected:
                    return Result(Outcome.MISMATCH, held)
                content[key] = command.value
                return _OK
            case Verb.INCREMENT:
                return self._increment(key, command.delta)
            case Verb.OPEN_SESSION:
                return self._open_session(index)
        raise AssertionError(f"invalid() let verb {verb} pass")

    def _increment(self, key: str, delta: int) -> Result:
        held = self._content.get(key, "0")
        if not _NUMBER.fullmatch(held) or not _fits(int(held)) or not _fits(int(held) + delta):
            return _NOT_A_NUMBER
        self._content[key] = value = str(int(held) + delta)
        return Result(Outcome.OK, value)

    def _open_session(self, index: int) -> Result:
        self._named = None
        self._sessions[(*self.position, index)] = _Session(1, {})
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return Result(Outcome.OK, session=Session(*self.position, index))

    def _dump_sessions(self) -> list[Any]:
        return [
            [*identity, session.first_incomplete, [_dump_result(*kept) for kept in session.results.items()]]
            for identity, session in self._sessions.items()
        ]


def _fits(number: int) -> bool:
    return -(1 << 63) <= number < 1 << 63


def _dump_result(sequence: int, result: Result) -> list[Any]:
    opened = result.session
    return [
        sequence,
        result.outcome,
        result.value,
        None if opened is None else [opened.timestamp, opened.owner, opened.index],
    ]


def _load_session(
    timestamp: int, owner: int, index: int, first_incomplete: int, results: list[Any]
) -> tuple[tuple[int, int, int], _Session]:
    kept = {
        sequence: Result(outcome, value, None if opened is None else Session(*opened))
        for sequence, outcome, value, opened in results
    }
    return (timestamp, owner, index), _Session(first_incomplete, kept)
