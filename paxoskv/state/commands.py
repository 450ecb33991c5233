"""What the commands do to the keys and values: those of one key, and transactions of many."""

from collections.abc import Iterable
from typing import Final

from paxoskv.state.content import Content, Lease
from paxoskv.wire.structs import (
    Answer,
    Command,
    CommandPlace,
    Compare,
    Outcome,
    Relation,
    Result,
    Transacted,
    Transaction,
    Verb,
)
from paxoskv.wire.validation import MAX_TRANSACTED, fits, number_in

OK: Final = Result(Outcome.OK)
NOT_FOUND: Final = Result(Outcome.NOT_FOUND)
NOT_A_NUMBER: Final = Result(Outcome.NOT_A_NUMBER)
TOO_LARGE: Final = Result(Outcome.TOO_LARGE)


def execute(content: Content, command: Command) -> Result:
    """Do a valid command of one key."""
    key = command.key
    verb: int = command.verb
    match verb:
        case Verb.PUT:
            content.put(key, command.value)
            return OK
        case Verb.GET:
            value = content.values.get(key)
            return NOT_FOUND if value is None else Result(Outcome.OK, value)
        case Verb.DELETE:
            return OK if content.remove(key) else NOT_FOUND
        case Verb.COMPARE_AND_SET:
            present = content.values.get(key)
            if present != command.expected:
                return Result(Outcome.MISMATCH, present)
            content.put(key, command.value)
            return OK
        case Verb.INCREMENT:
            found = number_in(content.values.get(key, "0"))
            if found is None or not fits(found + command.delta):
                return NOT_A_NUMBER
            total = str(found + command.delta)
            content.put(key, total)
            return Result(Outcome.OK, total)
    raise AssertionError(f"invalid() let verb {verb} pass")


def transact(
    content: Content, transaction: Transaction, place: tuple[int, int, int], room: int = MAX_TRANSACTED
) -> Result:
    """Do a valid transaction at this place: all of it, or nothing. It may read `room` characters.

    The actions are done on a draft, which holds their keys alone. It is taken over when all have succeeded.
    """
    held = all(_holds(content, compare) for compare in transaction.compares or ())
    actions = (transaction.then_do if held else transaction.else_do) or ()
    keys = [action.key for action in actions]
    draft = Content({key: content.values[key] for key in keys if key in content.values}, [])
    answers: list[Answer] = []
    for action in actions:
        result = execute(draft, Command(action.verb, action.key, action.value, None, action.delta))
        if result.outcome == Outcome.NOT_A_NUMBER:
            return result
        if result.value is not None:
            room -= len(result.value)
            if room < 0:
                return TOO_LARGE
        if action.ttl_ms is not None:
            draft.lease(action.key, Lease(action.ttl_ms, place))
        answers.append(Answer(result.outcome, result.value))
    _take_over(content, draft, dict.fromkeys(action.key for action in actions if action.verb != Verb.GET))
    outcome = Outcome.OK if held else Outcome.MISMATCH
    return Result(outcome, None, None, None, Transacted(CommandPlace(*place), answers))


def read_by(result: Result) -> int:
    """Return how many characters a transaction has read."""
    answers = result.transacted.answers if result.transacted is not None else ()
    return sum(len(answer.value) for answer in answers if answer.value is not None)


def _take_over(content: Content, draft: Content, keys: Iterable[str]) -> None:
    """Make these keys as they are in the draft."""
    for key in keys:
        value = draft.values.get(key)
        if value is None:
            content.remove(key)
        else:
            content.put(key, value)
            if key in draft.leases:
                content.lease(key, draft.leases[key])


def _holds(content: Content, compare: Compare) -> bool:
    """Whether the key is as the comparison says."""
    present = content.values.get(compare.key)
    relation: int = compare.relation
    if relation == Relation.EQUALS:
        return present == compare.value
    if relation == Relation.DIFFERS:
        return present != compare.value
    if relation == Relation.EXISTS or relation == Relation.ABSENT:
        return (present is None) == (relation == Relation.ABSENT)
    if relation == Relation.LEASED:
        lease = content.leases.get(compare.key)
        return lease is not None and lease.place == compare.place
    found, bound = number_in(present or ""), number_in(compare.value)
    if found is None or bound is None:
        return False
    return found < bound if relation == Relation.LESS else found > bound
