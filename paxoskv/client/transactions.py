"""What transactions are made of, and how they are written in JSON.

    from paxoskv import Client, load, transactions as t

    with Client(load("cluster.json")) as client:
        done = client.transaction(
            [t.greater("stock", 0), t.absent("order/7")],
            [t.increment("stock", -1), t.put("order/7", "book")],
            [t.get("stock")],
        )
        done.held                                       # whether all comparisons held
        [answer.value for answer in done.answers]       # ["41", None], or how much there is

The same in JSON, as the command line takes it:

    {"compare": [{"key": "stock", "greater": 0}, {"key": "order/7", "exists": false}],
     "then": [{"increment": "stock", "by": -1}, {"put": "order/7", "value": "book"}],
     "else": [{"get": "stock"}]}
"""

import json
import math
from typing import Any, Final, NamedTuple

from paxoskv.wire.structs import Action, Answer, CommandPlace, Compare, Relation, Transaction, Verb
from paxoskv.wire.validation import MAX_TTL_MS

__all__ = [
    "absent", "delete", "differs", "equals", "exists", "get", "greater", "increment", "leased", "less", "put",
]  # fmt: skip


class Committed(NamedTuple):
    """What became of a transaction: whether its comparisons held, an Answer for each action, its place."""

    held: bool
    answers: list[Answer]
    place: CommandPlace


def equals(key: str, value: str) -> Compare:
    """The key holds this value."""
    return Compare(key, Relation.EQUALS, value)


def differs(key: str, value: str) -> Compare:
    """The key does not hold this value, or does not exist."""
    return Compare(key, Relation.DIFFERS, value)


def exists(key: str) -> Compare:
    """The key exists."""
    return Compare(key, Relation.EXISTS)


def absent(key: str) -> Compare:
    """The key does not exist."""
    return Compare(key, Relation.ABSENT)


def less(key: str, number: int) -> Compare:
    """The key holds an integer below this one."""
    return Compare(key, Relation.LESS, str(number))


def greater(key: str, number: int) -> Compare:
    """The key holds an integer above this one."""
    return Compare(key, Relation.GREATER, str(number))


def leased(key: str, place: CommandPlace) -> Compare:
    """The key has the time to live that the transaction at this place has set: nobody wrote it since."""
    return Compare(key, Relation.LEASED, None, place)


def put(key: str, value: str, ttl: float | None = None) -> Action:
    """Set the key; `ttl`: the nodes remove it after this many seconds, unless it was written again."""
    return Action(Verb.PUT, key, value, None, None if ttl is None else math.ceil(ttl * 1000))


def get(key: str) -> Action:
    """Read the key."""
    return Action(Verb.GET, key)


def delete(key: str) -> Action:
    """Remove the key."""
    return Action(Verb.DELETE, key)


def increment(key: str, delta: int = 1) -> Action:
    """Add to the integer that the key holds; if it holds none, nothing of the transaction is done."""
    return Action(Verb.INCREMENT, key, None, delta)


# --------------------------------------------------------------------------------------------------- as JSON

# By the field that says what is meant: the type of its value, and what is made of the key and the value.
_RELATIONS: Final[dict[str, tuple[type, Any]]] = {
    "equals": (str, equals),
    "differs": (str, differs),
    "exists": (bool, lambda key, there: exists(key) if there else absent(key)),
    "less": (int, less),
    "greater": (int, greater),
}
# Likewise; the field's value is the key, and a second field may hold more: its name, its type, its default.
_ACTIONS: Final[dict[str, tuple[Any, str | None, type | None, int | None]]] = {
    "put": (put, "value", str, None),  # and perhaps a time to live
    "get": (get, None, None, None),
    "delete": (delete, None, None, None),
    "increment": (increment, "by", int, 1),
}
_TYPES: Final = {str: "a text", bool: "true or false", int: "an integer"}


def parse(text: str | bytes) -> Transaction:
    """Read a transaction from JSON; ValueError says in one line what is wrong with it, and where."""
    try:
        whole = json.loads(text)
    except RecursionError:
        raise ValueError("too deep") from None
    _check_names("", whole, {"compare", "then", "else"})
    parts = []
    for name, read in (("compare", _compare), ("then", _action), ("else", _action)):
        listed = whole.get(name, [])
        if not isinstance(listed, list):
            raise ValueError(f"{name}: a list is needed")
        parts.append([read(f"{name}[{index}]: ", item) for index, item in enumerate(listed)])
    return Transaction(*parts)


def _compare(where: str, item: Any) -> Compare:
    _check_names(where, item, {"key", *_RELATIONS})
    key = _typed(where, item, "key", str)
    relation = _only(where, item, _RELATIONS)
    kind, make = _RELATIONS[relation]
    compare: Compare = make(key, _typed(where, item, relation, kind))
    return compare


def _action(where: str, item: Any) -> Action:
    _check_names(where, item, {*_ACTIONS, "value", "ttl", "by"})
    name = _only(where, item, _ACTIONS)
    make, more, kind, default = _ACTIONS[name]
    _check_names(where, item, {name, more, "ttl"} if name == "put" else {name, more})
    key = _typed(where, item, name, str)
    values = [key]
    if kind is not None and more is not None and (more in item or default is None):
        values.append(_typed(where, item, more, kind))
    if "ttl" in item:
        ttl = item["ttl"]
        if type(ttl) not in (int, float) or not 0 < ttl <= MAX_TTL_MS / 1000:
            raise ValueError(f"{where}ttl: a number of seconds is needed, above 0 and up to ten years")
        values.append(ttl)
    action: Action = make(*values)
    return action


def _check_names(where: str, item: Any, names: set[Any]) -> None:
    if not isinstance(item, dict):
        raise ValueError(f"{where}an object is needed")
    for name in item:
        if name not in names:
            raise ValueError(f"{where}unknown field {name!r}")


def _only(where: str, item: dict[str, Any], names: Any) -> str:
    """Return the one of these names that the object has."""
    found = [name for name in item if name in names]
    if len(found) != 1:
        raise ValueError(f"{where}one of {', '.join(names)} is needed")
    return found[0]


def _typed(where: str, item: dict[str, Any], name: str, kind: type) -> Any:
    value = item.get(name)
    if type(value) is not kind:
        raise ValueError(f"{where}{name}: {_TYPES[kind]} is needed")
    return value
