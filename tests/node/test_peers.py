"""Who of the other nodes is listened to: strangers, stale copies, second processes. The core is real."""

import asyncio
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from paxoskv.config import Member
from paxoskv.node import eventlog
from paxoskv.node.addresses import Addresses
from paxoskv.node.calls import Call
from paxoskv.node.eventlog import EXIT_STALE
from paxoskv.node.formats import Formats
from paxoskv.node.identity import Trust
from paxoskv.node.metrics import Counts
from paxoskv.node.peers import BOTH_ALIVE, HELLO_WAIT, MAX_COMPLAINTS, RECENT, Complaints, Peers
from paxoskv.protocol.node import Node
from paxoskv.state.store import Store, encode_batch
from paxoskv.wire.codec import Malformed, NotDone, Refused
from paxoskv.wire.connection import Flusher
from paxoskv.wire.methods import METHODS, header
from paxoskv.wire.structs import Accepted, Command, Fact, Fetch, Identity, Verb, Vote
from paxoskv.wire.validation import MAX_NODE_FRAME

US = Identity("ours", "d" * 64, 1, 1, 0)
LIFE = 1 << 20  # one start more


class Wire:
    """A connection, and what was sent on it."""

    def __init__(self, user: Any = None, peer: str = "127.0.0.1:50000") -> None:
        self.user = user
        self.peer = peer
        self.max_frame = 0
        self.sent: list[bytes] = []
        self.closed = False

    def send(self, frame: bytes) -> bool:
        self.sent.append(frame)
        return True

    def close(self) -> None:
        self.closed = True

    def answer(self, name: bytes) -> Any:
        """What the last frame says."""
        frame = self.sent[-1][4:]
        kind, _, _, offset = header(frame)
        return METHODS[name].answer(kind, frame, offset)


class LinkTo(SimpleNamespace):
    """A link, as far as Peers knows it."""

    __hash__ = object.__hash__


class Bench:
    """The peers of node 1 of three."""

    def __init__(self) -> None:
        self.now = 0.0
        self.core = Node(1, [1, 2, 3], Random(0))
        self.core.start(0.0)
        self.counts = Counts()
        members = {node: Member(node, "127.0.0.1", node) for node in (2, 3)}
        loop: Any = SimpleNamespace(time=lambda: self.now)
        self.store = Store("never-written.json")
        self.condemned: list[str] = []
        trust = Trust("ours", 1)
        parts: Any = (US, self.core, members, Flusher(), self.counts, trust, loop, self.condemned.append,
            Formats(self.store, members, lambda _: None, self.core.report),
            Addresses(self.store, "127.0.0.1:1", members))  # fmt: skip
        self.part = Peers(*parts)
        self.part.introduced = True

    def hello(self, identity: Identity, wire: Wire | None = None) -> str | None:
        """A process connects and says who it is; returns why it is refused."""
        wire = wire or Wire()
        call: Any = Call(wire, METHODS[b"hello"], 7)  # type: ignore[arg-type]
        self.part.hello(call, identity)
        try:
            answer = wire.answer(b"hello")
        except Refused as refusal:
            return refusal.reason
        assert answer == self.part.who()
        return None

    def link(self, peer: int) -> Any:
        """Our link to a peer, which stands."""
        link = LinkTo(user=peer, refused=False, fault=None)
        link.connection = Wire(link)
        link.sent = link.connection.sent
        link.send = link.connection.send
        self.part.links[peer] = link
        return link

    def answers(self, link: Any, name: bytes, frame: bytes) -> Any:
        """A peer answers on our link; returns what is for the core."""
        kind, _, _, offset = header(frame[4:])
        return self.part.answer(link.connection, kind, name, frame[4:], offset)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def peer(node: int = 2, incarnation: int = 1, life: int = LIFE) -> Identity:
    return US._replace(node=node, incarnation=incarnation, life=life)


@pytest.mark.parametrize(
    ("stranger", "told"),
    [
        (peer()._replace(cluster="theirs"), "cluster: 'theirs', but this is 'ours'"),
        (peer()._replace(digest="0" * 64), "digest: its cluster.json differs from ours"),
        (peer(9), "node: 9 is no peer of node 1"),
        (peer(1), "node: 1 is no peer of node 1"),
    ],
)
def test_a_stranger_is_told_what_differs(bench: Bench, stranger: Identity, told: str) -> None:
    wire = Wire()
    reason = bench.hello(stranger, wire)
    assert reason is not None and reason.startswith(told)
    assert wire.user is None and bench.part.processes == {}
    assert bench.part.complaints.recent(bench.now) == [f"stranger 127.0.0.1: {reason}"]
    assert bench.counts.refusals == {"stranger": 1}


def test_a_peer_is_told_who_we_are_and_may_send_large_frames(bench: Bench) -> None:
    wire = Wire()
    assert bench.hello(peer(), wire) is None
    assert (wire.user, wire.max_frame) == (2, MAX_NODE_FRAME)
    assert bench.core.noted(2) == (1, LIFE)


def test_a_stale_copy_of_a_disk_is_refused(bench: Bench) -> None:
    assert bench.hello(peer(life=5 * LIFE)) is None
    bench.now = 10.0
    for copy in (peer(life=4 * LIFE), peer(life=5 * LIFE + 1)):
        assert "is a stale copy" in (bench.hello(copy) or "")


def test_of_two_processes_with_one_id_the_newer_is_refused_while_the_older_is_heard_of(bench: Bench) -> None:
    first = Wire(peer="127.0.0.1:1111")
    bench.hello(peer(), first)
    bench.core.contacts.heard[2] = bench.now
    reason = bench.hello(peer(life=2 * LIFE))
    assert reason == "node 2: another process with this id is alive, at 127.0.0.1:1111"
    assert bench.hello(peer()) is None, "the same process on another connection"
    bench.now += BOTH_ALIVE
    assert bench.hello(peer(life=2 * LIFE)) is None and first.closed, "the older one has been silent"


def test_of_two_processes_with_one_id_the_one_with_the_higher_incarnation_is_listened_to(
    bench: Bench,
) -> None:
    """N26. Nothing was noted of it so far: this node has lost its disk."""
    old, new, again = Wire(), Wire(), Wire()
    assert bench.hello(peer(life=9 * LIFE), old) is None
    bench.core.contacts.heard[2] = bench.now
    assert "another process" in (bench.hello(peer(incarnation=0)) or ""), (
        "one that rejoins does not replace it"
    )
    assert bench.hello(peer(incarnation=3), new) is None
    assert old.closed and not new.closed
    assert "is a stale copy" in (bench.hello(peer(life=9 * LIFE), again) or "")
    assert bench.core.noted(2) == (3, LIFE)


def test_a_process_of_which_others_tell_that_it_was_replaced_is_hung_up(bench: Bench) -> None:
    """N26."""
    old, rejoining = Wire(), Wire()
    bench.hello(peer(), old)
    bench.hello(peer(3, incarnation=0), rejoining)
    bench.core.note(2, 3, LIFE)
    bench.core.note(3, 3, LIFE)
    bench.part.tick()
    assert old.closed and not rejoining.closed


def test_a_process_that_was_replaced_is_told_that_it_is_stale_and_where_its_node_is(bench: Bench) -> None:
    bench.store.apply(
        1,
        1,
        encode_batch([Command(Verb.UPGRADE, delta=1), Command(Verb.REPLACE_NODE, "2", "elsewhere:7")]),
    )
    moved = "node 2 was replaced: it is at elsewhere:7, and this process at 127.0.0.1:2"
    here = peer(life=2 * LIFE)._replace(address="127.0.0.1:2")
    bench.core.note(2, 1, LIFE)
    assert bench.hello(here) == moved, "it was not replaced by a rejoin so far: its data is worth something"
    assert bench.core.noted(2) == (1, LIFE), "who is refused is not noted"
    bench.core.note(2, 3, LIFE)
    told = bench.hello(here) or ""
    assert "is a stale copy" in told and told.endswith(f"; {moved}")


def test_an_address_that_is_none_is_told_and_leaves_the_link_where_it_was(bench: Bench) -> None:
    link = bench.link(2)
    link.go_to = lambda host, port: None
    assert bench.hello(peer()._replace(address="nonsense")) is None
    assert bench.part.complaints.recent(bench.now) == ["address 2: 'nonsense' is not HOST:PORT"]


def test_a_second_process_is_welcome_when_the_connection_of_the_first_is_gone(bench: Bench) -> None:
    first = Wire()
    bench.hello(peer(), first)
    bench.core.contacts.heard[2] = bench.now
    bench.part.lost(first, None)  # type: ignore[arg-type]
    assert bench.hello(peer(life=2 * LIFE)) is None


def test_a_process_that_rejoins_keeps_its_connection_and_those_of_its_lost_disk_are_closed(
    bench: Bench,
) -> None:
    old, new = Wire(), Wire()
    bench.hello(peer(), old)
    bench.now += 10
    bench.hello(peer(incarnation=0, life=LIFE), new)
    bench.core.note(2, 2, 0)
    bench.part.rejoins(new, 2)  # type: ignore[arg-type]
    assert old.closed and not new.closed
    assert bench.part.processes[new] == (2, (2, LIFE))  # type: ignore[index]


def test_a_link_carries_requests_only_after_the_peer_has_said_who_it_is(bench: Bench) -> None:
    link = bench.link(2)
    request = Fetch(1, 0)
    bench.part.send(2, request, None)
    assert link.sent == []
    method = METHODS[b"hello"]
    assert bench.answers(link, b"hello", method.reply(0, peer())) is None
    assert bench.part.greeted == {2}
    bench.part.send(2, request, None)
    assert len(link.sent) == 1
    bench.part._down(link, None)
    bench.part.send(2, request, None)
    assert len(link.sent) == 1 and bench.part.processes == {}


def test_a_start_waits_until_each_peer_that_is_there_could_refuse_it(bench: Bench) -> None:
    """What peers say before goes nowhere: a disk may have forgotten what it would contradict (N25)."""
    bench.part.introduced = False
    link = bench.link(2)
    bench.link(3).refused = True  # nobody is there
    frame = METHODS[b"accept"].reply(5, Accepted(1, 257, 257, Vote.ACCEPTED, 1, Fact(2, 0, 0, 0)))

    async def start() -> None:
        task = asyncio.ensure_future(bench.part.introduce())
        await asyncio.sleep(0)
        assert not bench.part.introduced, "it waits for node 2"
        bench.answers(link, b"hello", METHODS[b"hello"].reply(0, peer()))
        assert bench.answers(link, b"accept", frame) is None
        await task
        assert bench.answers(link, b"accept", frame) is not None

    asyncio.run(start())


def test_a_start_waits_for_silent_peers_for_a_while_only(bench: Bench) -> None:
    bench.part.introduced = False
    bench.link(2)

    async def start() -> None:
        task = asyncio.ensure_future(bench.part.introduce())
        await asyncio.sleep(0)
        assert not bench.part.introduced
        bench.now = HELLO_WAIT
        await task

    asyncio.run(start())
    assert bench.part.introduced and not bench.part.greeted


def test_another_node_than_the_expected_one_is_hung_up(bench: Bench) -> None:
    link = bench.link(2)
    bench.answers(link, b"hello", METHODS[b"hello"].reply(0, peer(3)))
    assert link.connection.closed and bench.part.greeted == set()
    assert "3 answers where 2 is expected" in bench.part.complaints.recent(bench.now)[0]


def test_an_answer_that_nobody_asked_for_or_about_no_log_of_ours_is_malformed(bench: Bench) -> None:
    link = bench.link(2)
    put = METHODS[b"put"].fail(1, NotDone("nobody asked", False))
    with pytest.raises(Malformed, match="nothing that was asked"):
        bench.answers(link, b"put", put)
    bench.answers(link, b"hello", METHODS[b"hello"].reply(0, peer()))
    for log in (1, 9):
        frame = METHODS[b"accept"].reply(1, Accepted(log, 256, 256, Vote.REFUSED, 0, Fact(log, 0, 0, 0)))
        if log == 1:
            assert bench.answers(link, b"accept", frame).log == 1
        else:
            with pytest.raises(Malformed, match="no log of ours"):
                bench.answers(link, b"accept", frame)


class Ended(Exception):
    """The process would have ended."""


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise Ended

    monkeypatch.setattr(eventlog.os, "_exit", end)
    return codes


def test_a_node_that_is_told_that_it_is_a_stale_copy_ends_at_once(bench: Bench, ends: list[int]) -> None:
    frame = METHODS[b"hello"].fail(0, Refused("node 1 is a stale copy: remove its data"))
    with pytest.raises(Ended):
        bench.answers(bench.link(2), b"hello", frame)
    assert ends == [EXIT_STALE]
    assert bench.condemned == ["node 1 is a stale copy: remove its data"], "for the starts to come"


def test_who_has_not_proved_that_it_is_a_node_cannot_end_us(bench: Bench, ends: list[int]) -> None:
    """A process at the address of a node that is down answers hello, and does not know the secret."""
    bench.part.trust.secret = b"a secret of the nodes"
    link, method = bench.link(2), METHODS[b"hello"]
    bench.answers(link, b"hello", method.fail(0, Refused("node 1 is a stale copy: remove its data")))
    for _ in range(3):
        bench.answers(
            link, b"hello", method.fail(0, Refused("node 1: another process with this id is alive"))
        )
        bench.now += 2 * BOTH_ALIVE
    assert ends == [] and bench.condemned == []
    bench.part.trust.proven.add(link)
    with pytest.raises(Ended):
        bench.answers(link, b"hello", method.fail(0, Refused("node 1 is a stale copy: remove its data")))


def test_a_node_that_another_process_stands_in_for_ends_when_that_is_surely_alive(
    bench: Bench, ends: list[int]
) -> None:
    link, method = bench.link(2), METHODS[b"hello"]
    refusal = method.fail(0, Refused("node 1: another process with this id is alive, at here"))
    bench.now = 5.0
    bench.answers(link, b"hello", refusal)
    bench.now += 1.5 * BOTH_ALIVE
    bench.answers(link, b"hello", method.reply(0, peer()))  # the other one is gone, so all is well
    bench.answers(link, b"hello", refusal)
    bench.now += 1.5 * BOTH_ALIVE
    bench.answers(link, b"hello", refusal)
    assert ends == []
    bench.now += 0.5 * BOTH_ALIVE
    with pytest.raises(Ended):
        bench.answers(link, b"hello", refusal)
    assert ends == [EXIT_STALE]


def test_a_complaint_is_logged_once_a_minute_and_the_status_tells_it_for_a_while(
    capsys: pytest.CaptureFixture[str],
) -> None:
    complaints = Complaints(Counts())
    for now in (0.0, 1.0, 2.0):
        complaints.add("stranger", "127.0.0.1", "cluster: 'theirs'", now)
    complaints.add("stranger", "127.0.0.1", "digest: differs", 3.0)
    assert capsys.readouterr().err.count("event=stranger") == 2
    assert complaints.recent(3.0) == ["stranger 127.0.0.1: digest: differs"]
    assert complaints.recent(3.0 + RECENT) == []
    for now in range(10, 70):
        complaints.add("stranger", "127.0.0.1", "digest: differs", now)
    assert capsys.readouterr().err.count("event=stranger") == 1
    for turn in range(100):
        complaints.add("stranger", "127.0.0.1", f"reason {turn}", 70 + turn / 100)
    assert capsys.readouterr().err.count("event=stranger") == 1, "whoever has many reasons floods no log"
    complaints.settle("stranger", "127.0.0.1")
    assert complaints.recent(3.0) == []
    for stranger in range(2 * MAX_COMPLAINTS):
        complaints.add("stranger", stranger, "who?", 4.0)
    assert len(complaints.known) == MAX_COMPLAINTS, "what is remembered is bounded"
