"""The connections that others made: who leaves when there are too many."""

from typing import Any

import pytest

from paxoskv.node.connections import MAX_HUNG_UP, MAX_WAITING, Connections
from paxoskv.node.metrics import Counts
from paxoskv.wire.codec import Malformed


class Wire:
    """A connection. `user`: the peer at its other end; None: a client."""

    def __init__(self, user: int | None = None, heard: bool = False) -> None:
        self.user = user
        self.heard = heard
        self.peer = "127.0.0.1:50000"
        self.aborted = self.late = False
        self.bytes = 0

    def abort(self) -> None:
        self.aborted = True

    def stale(self, now: float) -> bool:
        return self.late

    def waiting(self) -> int:
        return self.bytes


def crowd(part: Connections, *wires: Any) -> list[Any]:
    """All of them connect; returns those that were hung up on."""
    for wire in wires:
        part.made(wire)
    return [wire for wire in wires if wire.aborted]


def test_the_oldest_connection_that_never_said_anything_leaves_first() -> None:
    part = Connections(Counts(), 3)
    wires = [Wire(heard=True), Wire(), Wire(), Wire()]
    assert crowd(part, *wires) == [wires[1]]


def test_where_all_have_said_something_the_oldest_client_leaves_and_no_peer() -> None:
    part = Connections(Counts(), 3)
    wires = [Wire(user=2, heard=True), Wire(heard=True), Wire(heard=True), Wire(user=3, heard=True)]
    assert crowd(part, *wires) == [wires[1]]


def test_peers_are_never_hung_up_on_for_being_too_many() -> None:
    part = Connections(Counts(), 2)
    assert crowd(part, *[Wire(user=peer, heard=True) for peer in range(2, 6)]) == []
    assert len(part.open) == 4


def test_who_misbehaves_is_counted_and_a_second_has_few_lines_in_the_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    counts = Counts()
    part = Connections(counts, 100)
    wires: Any = [Wire() for _ in range(MAX_HUNG_UP + 5)]
    crowd(part, *wires)
    for wire in wires[1:]:
        part.lost(wire, Malformed("no message"))
    wires[0].late = True
    part.sweep(0.0)
    log = capsys.readouterr().err
    assert log.count("event=hung-up ") == MAX_HUNG_UP and "event=hung-up-more level=" not in log
    assert "count=4" in log and log.count("event=cut-off") == 1
    assert counts.refusals == {"malformed": MAX_HUNG_UP + 4, "late_connection": 1}
    assert list(part.open) == [wires[0]]


def test_where_too_much_waits_those_clients_leave_for_whom_most_does() -> None:
    part = Connections(Counts(), 100)
    wires = [Wire() for _ in range(10)] + [Wire(user=2)]
    crowd(part, *wires)
    for number, wire in enumerate(wires):
        wire.bytes = number * MAX_WAITING // 40
    part.sweep(0.0)
    assert [wire for wire in wires if wire.aborted] == [wires[9]], "and no peer: its output has its own bound"
    assert part.counts.refusals == {"memory": 1}
    for wire in wires:
        wire.bytes = MAX_WAITING // 40
    part.sweep(1.0)
    assert part.counts.refusals == {"memory": 1}
