"""The limits of what comes from outside, and the check of a client's command."""

import re
from typing import Final

from paxoskv.wire.structs import Action, Command, Compare, Relation, RequestId, Session, Transaction, Verb

# README.md lists these limits for users, under "What is guaranteed, and what is not".
# What a command answers depends on them, and must be the same on all nodes, of whatever version. So a change
# of one, or of a check below, needs a new FORMAT: while the store's is lower, what was before holds. Batches
# and frames may change at any time. tests/state/test_old_verbs.py has what format 0 answers.
MAX_KEY_BYTES: Final = 4096
MAX_VALUE_BYTES: Final = 512 * 1024
MAX_BATCH: Final = 10_000  # commands
MAX_CLIENT_FRAME: Final = 1 << 20  # bytes
MAX_NODE_FRAME: Final = 8 << 20  # bytes
# Results that the store remembers of a session: more commands under way than any client needs, and a bound.
MAX_RESULTS: Final = 1024
MAX_ACTIONS: Final = 128  # in each list of a transaction: what etcd takes, too
MAX_TTL_MS: Final = 10 * 366 * 86_400_000  # ten years: a longer one is not needed
# Characters that a transaction may read, and all transactions of one entry. Results are kept for repeats.
MAX_TRANSACTED: Final = 1 << 20
MAX_ENTRY_TRANSACTED: Final = 8 << 20
MIN_TRANSACTED: Final = 64 << 10  # that each may, whatever others in its entry read
MAX_ADDRESS: Final = 300  # bytes of HOST:PORT
# The commands that this version knows, as Identity.format says it.
FORMAT: Final = 1

_LAST_VERB: Final = Verb.REPLACE_NODE
_ACTIONS: Final = frozenset({Verb.PUT, Verb.GET, Verb.DELETE, Verb.INCREMENT})
_RELATIONS: Final = frozenset(range(Relation.EQUALS, Relation.LEASED + 1))
_ALONE: Final = frozenset({Relation.EXISTS, Relation.ABSENT})  # relations without a value
_ID: Final = re.compile(r"[1-9][0-9]{0,2}")
_NUMBER: Final = re.compile(r"0|-?[1-9][0-9]{0,18}")  # as str(int) writes it; more digits never fit 64 bits


def number_in(text: str) -> int | None:
    """Return the 64-bit integer that the text is the one decimal form of; None if there is none."""
    if not _NUMBER.fullmatch(text):
        return None
    number = int(text)
    return number if fits(number) else None


def fits(number: int) -> bool:
    """Whether the number is one of 64 bits."""
    return -(1 << 63) <= number < 1 << 63


def invalid(command: Command) -> str | None:
    """Return the reason why the command is invalid, in one line, or None; it depends on the command alone."""
    verb: int = command.verb or 0
    if not Verb.PUT <= verb <= _LAST_VERB:
        return "no verb, or an unknown one"
    without_key = verb in (Verb.OPEN_SESSION, Verb.TRANSACTION, Verb.UPGRADE)
    reason = None if without_key else _invalid_key(command.key)
    if reason is None:
        reason = _invalid_operands(command)
    if reason is None and command.request is not None:
        reason = _invalid_request(command.request)
    return reason


def _invalid_operands(command: Command) -> str | None:
    verb: int = command.verb
    if verb == Verb.PUT or verb == Verb.COMPARE_AND_SET:  # a put needs none: format 0 looks at it
        if command.expected is not None and _longer(command.expected, MAX_VALUE_BYTES):
            return f"the expected value is longer than {MAX_VALUE_BYTES} bytes"
        return _invalid_value(command.value)
    if verb == Verb.TRANSACTION:
        return "no transaction" if command.transaction is None else _invalid_parts(command.transaction)
    if verb == Verb.REPLACE_NODE:
        return _invalid_address(command.key, command.value)
    return "no delta" if verb in (Verb.INCREMENT, Verb.UPGRADE) and command.delta is None else None


def _invalid_key(key: str | None) -> str | None:
    if not key:
        return "no key, or an empty one"
    return f"the key is longer than {MAX_KEY_BYTES} bytes" if _longer(key, MAX_KEY_BYTES) else None


def _invalid_value(value: str | None) -> str | None:
    if value is None:
        return "no value"
    return f"the value is longer than {MAX_VALUE_BYTES} bytes" if _longer(value, MAX_VALUE_BYTES) else None


def _invalid_address(node: str, address: str | None) -> str | None:
    """Check the shape alone: the node that proposes it knows what else there is to check."""
    if not _ID.fullmatch(node):
        return "the key is no id of a node"
    return None if address and not _longer(address, MAX_ADDRESS) else "no address, or too long a one"


def _invalid_parts(transaction: Transaction) -> str | None:
    """Find the first part of a transaction that is invalid; its place stands before the reason."""
    for name in Transaction._fields:
        check = _invalid_compare if name == "compares" else _invalid_action
        parts = getattr(transaction, name) or ()
        if len(parts) > MAX_ACTIONS:
            return f"{name}: {len(parts)} are more than {MAX_ACTIONS}"
        for index, part in enumerate(parts):
            reason = _invalid_key(part.key) or check(part)
            if reason is not None:
                return f"{name}[{index}]: {reason}"
    return None


def _invalid_compare(compare: Compare) -> str | None:
    if compare.relation not in _RELATIONS:
        return "no relation, or an unknown one"
    if compare.relation in _ALONE:
        return None
    if compare.relation == Relation.LEASED:
        return "no place" if compare.place is None else None
    if compare.relation in (Relation.LESS, Relation.GREATER) and number_in(compare.value or "") is None:
        return "the value is no 64-bit decimal integer"
    return _invalid_value(compare.value)


def _invalid_action(action: Action) -> str | None:
    if action.verb not in _ACTIONS:
        return "no verb, or none that a transaction may have"
    if action.ttl_ms is not None and (action.verb != Verb.PUT or not 0 < action.ttl_ms <= MAX_TTL_MS):
        return f"a time to live, but it is not 1 to {MAX_TTL_MS} ms, or of no put"
    if action.verb == Verb.PUT:
        return _invalid_value(action.value)
    return "no delta" if action.verb == Verb.INCREMENT and action.delta is None else None


def _invalid_request(request: RequestId) -> str | None:
    session: Session | None = request.session
    sequence: int = request.sequence or 0
    first_incomplete: int = request.first_incomplete or 0
    if session is None or session.timestamp is None or session.owner is None or session.index is None:
        return "the request id has no session, or part of one"
    if sequence < 1:
        return "no sequence, or one below 1"
    if not 1 <= first_incomplete <= sequence:
        return "no first_incomplete, or one that is not from 1 to the sequence"
    if sequence - first_incomplete >= MAX_RESULTS:
        return f"the session has more than {MAX_RESULTS} commands without an answer"
    return None


def _longer(text: str, limit: int) -> bool:
    """Tell whether the UTF-8 form is longer than `limit` bytes; a character has at most 4 of them."""
    return len(text) * 4 > limit and len(text.encode()) > limit
