"""The limits of what comes from outside, and the check of a client's command."""

from typing import Final

from paxoskv.wire.structs import Command, RequestId, Session, Verb

# README.md tells these limits to users, under "What is guaranteed, and what is not".
MAX_KEY_BYTES: Final = 4096
MAX_VALUE_BYTES: Final = 512 * 1024
MAX_BATCH: Final = 10_000  # commands
MAX_CLIENT_FRAME: Final = 1 << 20  # bytes
MAX_NODE_FRAME: Final = 8 << 20  # bytes
# Results that the store remembers of a session: more commands under way than any client needs, and a bound.
MAX_RESULTS: Final = 1024

_VERBS: Final = frozenset(
    {Verb.PUT, Verb.GET, Verb.DELETE, Verb.COMPARE_AND_SET, Verb.INCREMENT, Verb.OPEN_SESSION}
)


def invalid(command: Command) -> str | None:
    """Return the reason why the command is invalid, in one line, or None; it depends on the command alone."""
    if command.verb not in _VERBS:
        return "no verb, or an unknown one"
    verb: int = command.verb
    if verb != Verb.OPEN_SESSION:
        if not command.key:
            return "no key, or an empty one"
        if _longer(command.key, MAX_KEY_BYTES):
            return f"the key is longer than {MAX_KEY_BYTES} bytes"
    if verb == Verb.PUT or verb == Verb.COMPARE_AND_SET:
        reason = _invalid_value(command)
        if reason is not None:
            return reason
    elif verb == Verb.INCREMENT and command.delta is None:
        return "no delta"
    return None if command.request is None else _invalid_request(command.request)


def _invalid_value(command: Command) -> str | None:
    if command.value is None:
        return "no value"
    if _longer(command.value, MAX_VALUE_BYTES):
        return f"the value is longer than {MAX_VALUE_BYTES} bytes"
    if command.expected is not None and _longer(command.expected, MAX_VALUE_BYTES):
        return f"the expected value is longer than {MAX_VALUE_BYTES} bytes"
    return None


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
    """Tell whether the UTF-8 form is longer than `limit` bytes; a character has at most 4 of them."""
    return len(text) * 4 > limit and len(text.encode()) > limit
