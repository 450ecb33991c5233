"""The structs and enumerations of kvstore.thrift, as typed named tuples: immutable, and cheap to make.

kvstore.thrift says what each field means; a test compares it with this module. A field with a default may be
absent, and is None then. All other fields must be present, or the struct is Malformed. So a field that a
later version adds must be optional, because older nodes do not send it, and older journals do not have it.
Structs from clients may lack any field; their fields are Any, and validation.invalid() checks them.

Four structs name a place in the order of all commands, (timestamp, owner) and more:

    Position                    an entry
    CommandPlace, Session       a command of an entry: a transaction; one that has opened a session
    Place                       a change that an entry has made

Thrift's own classes have no types, and take twice as long to make. (Status has optional fields between the
others; codec.named_tuple makes it from the generated class.)
"""

from typing import Any, Final, NamedTuple


class Verb:
    PUT: Final = 1
    GET: Final = 2
    DELETE: Final = 3
    COMPARE_AND_SET: Final = 4
    INCREMENT: Final = 5
    OPEN_SESSION: Final = 6
    TRANSACTION: Final = 7
    UPGRADE: Final = 8
    REPLACE_NODE: Final = 9


class Outcome:
    OK: Final = 0
    NOT_FOUND: Final = 1
    MISMATCH: Final = 2
    NOT_A_NUMBER: Final = 3
    EXPIRED: Final = 4
    FORGOTTEN: Final = 5
    INVALID: Final = 6
    TOO_LARGE: Final = 7


class Relation:
    EQUALS: Final = 1
    DIFFERS: Final = 2
    EXISTS: Final = 3
    ABSENT: Final = 4
    LESS: Final = 5
    GREATER: Final = 6
    LEASED: Final = 7


class ReadMode:
    LINEARIZABLE: Final = 0
    LOG: Final = 1
    LOCAL: Final = 2


class Verdict:
    PROMISED: Final = 0
    NACK: Final = 1
    BEHIND: Final = 2
    COVERED: Final = 3


class Vote:
    ACCEPTED: Final = 0
    REFUSED: Final = 1
    NEEDS_SYNC: Final = 2
    WITHHELD: Final = 3


class Session(NamedTuple):
    timestamp: Any = None
    owner: Any = None
    index: Any = None


class RequestId(NamedTuple):
    session: Any = None
    sequence: Any = None
    first_incomplete: Any = None


class Position(NamedTuple):
    timestamp: int
    owner: int


class CommandPlace(NamedTuple):
    timestamp: int
    owner: int
    command: int


class Compare(NamedTuple):
    key: Any = None
    relation: Any = None
    value: Any = None
    place: Any = None


class Action(NamedTuple):
    verb: Any = None
    key: Any = None
    value: Any = None
    delta: Any = None
    ttl_ms: Any = None


class Transaction(NamedTuple):
    compares: Any = None
    then_do: Any = None
    else_do: Any = None


class Command(NamedTuple):
    verb: Any = None
    key: Any = None
    value: Any = None
    expected: Any = None
    delta: Any = None
    request: Any = None
    transaction: Any = None


class Answer(NamedTuple):
    outcome: int
    value: str | None = None


class Transacted(NamedTuple):
    place: CommandPlace
    answers: list[Answer]


class Result(NamedTuple):
    outcome: int
    value: str | None = None
    session: Session | None = None
    timestamp: int | None = None
    transacted: Transacted | None = None


class Item(NamedTuple):
    key: str
    value: str


class Page(NamedTuple):
    items: list[Item]
    more: bool
    timestamp: int
    position: Position | None = None
    keys: int | None = None


class Range(NamedTuple):
    prefix: Any = None
    start: Any = None
    below: Any = None
    after: Any = None
    reverse: Any = None
    limit: Any = None
    keys_only: Any = None
    counted: Any = None


class Place(NamedTuple):
    timestamp: int
    owner: int
    change: int | None = None


class Change(NamedTuple):
    key: str
    place: Place
    value: str | None = None


class Watched(NamedTuple):
    changes: list[Change]
    upto: Place


class Traced(NamedTuple):
    on: bool
    events: str
    last: int
    more: bool


class Chunk(NamedTuple):
    number: int
    size: int
    check: int
    offset: int
    data: bytes


class Moved(NamedTuple):
    node: int
    address: str
    since: int


class Membership(NamedTuple):
    cluster: str
    digest: str
    node: int
    moved: list[Moved] | None = None


class LogStatus(NamedTuple):
    log: int
    leader: int
    promised: int
    accepted: int
    length: int
    chosen: int
    executed: int
    frontier: int


class Entry(NamedTuple):
    timestamp: int
    payload: bytes


class Origin(NamedTuple):
    node: int
    life: int
    number: int


class Batch(NamedTuple):
    commands: list[Command]
    origin: Origin | None = None


class Fact(NamedTuple):
    log: int
    chosen: int
    evidence: int
    frontier: int


class Prepare(NamedTuple):
    log: int
    ballot: int
    from_slot: int
    wanted: int


class Promise(NamedTuple):
    log: int
    ballot: int
    from_slot: int
    verdict: int
    promised: int
    accepted: int
    entries: list[Entry]
    fact: Fact


class Accept(NamedTuple):
    log: int
    ballot: int
    start: int
    entries: list[Entry]
    sync: bool
    fact: Fact
    lazy: list[int]


class Accepted(NamedTuple):
    log: int
    ballot: int
    promised: int
    vote: int
    length: int
    fact: Fact


class Learn(NamedTuple):
    clock: int
    facts: list[Fact]
    held: list[int]
    applied: Position
    hash: int


class Fetch(NamedTuple):
    log: int
    from_slot: int


class Fetched(NamedTuple):
    log: int
    from_slot: int
    entries: list[Entry]
    evidence: int
    base: int


class FetchCheckpoint(NamedTuple):
    number: int
    offset: int


class Rejoin(NamedTuple):
    log: int
    incarnation: int


class Noted(NamedTuple):
    node: int
    incarnation: int
    life: int


class Rejoined(NamedTuple):
    log: int
    incarnation: int
    noted: int
    rejoining: bool
    promised: int
    accepted: int
    start: int
    entries: list[Entry]
    fact: Fact
    clock: int
    lives: list[Noted] | None = None


class Barrier(NamedTuple):
    round: int
    clock: int


class Reading(NamedTuple):
    round: int
    clock: int
    facts: list[Fact]
    promised: int | None = None
    leads: int | None = None


class Forward(NamedTuple):
    ballot: int
    origin: Origin
    payload: bytes
    held: int


class Forwarded(NamedTuple):
    ballot: int
    origin: Origin
    taken: bool


class Recovered(NamedTuple):
    log: int
    promised: int
    accepted: int
    length: int
    chosen: int
    candidate: int


class Identity(NamedTuple):
    cluster: str
    digest: str
    node: int
    incarnation: int
    life: int
    recovered: list[Recovered] | None = None
    reserved: int | None = None
    nonce: bytes | None = None
    proof: bytes | None = None
    proposing: str | None = None
    format: int | None = None
    address: str | None = None


class LogBallot(NamedTuple):
    log: int
    ballot: int


class Held(NamedTuple):
    log: int
    ballot: int
    start: int
    entries: list[Entry]


class Chosen(NamedTuple):
    log: int
    chosen: int
    evidence: int


class Record(NamedTuple):
    promised: LogBallot | None = None
    held: Held | None = None
    candidate: LogBallot | None = None
    reservation: int | None = None
    chosen: Chosen | None = None
    applied: Position | None = None
    noted: Noted | None = None
    installed: int | None = None
    incarnation: int | None = None
    rejoined: bool | None = None
    life: int | None = None


class Frame(NamedTuple):
    records: list[Record]
