"""The other nodes: who they are, who of them is listened to, and what is sent to them."""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Any, Final

from thrift.Thrift import TApplicationException

from paxoskv.config import WAYS, Member, parse_address
from paxoskv.node.addresses import Addresses
from paxoskv.node.calls import Call
from paxoskv.node.eventlog import EXIT_STALE, end, log
from paxoskv.node.formats import Formats
from paxoskv.node.identity import Trust, explained
from paxoskv.node.metrics import Counts
from paxoskv.protocol.core import Core
from paxoskv.protocol.outbox import Message
from paxoskv.wire.codec import Malformed, Refused
from paxoskv.wire.connection import Connection, Flusher, Link, TlsUnexpected
from paxoskv.wire.methods import METHODS, Method
from paxoskv.wire.structs import (
    Accept,
    Accepted,
    Barrier,
    Chunk,
    Fetch,
    FetchCheckpoint,
    Fetched,
    Forward,
    Forwarded,
    Identity,
    Learn,
    Prepare,
    Promise,
    Reading,
    Rejoin,
    Rejoined,
    Verdict,
    Vote,
)
from paxoskv.wire.validation import FORMAT, MAX_NODE_FRAME

RECENT: Final = 5.0  # seconds for which a complaint counts: whoever is refused comes back each second
MAX_PROBLEM: Final = 300  # characters of a complaint in the status
MAX_COMPLAINTS: Final = 1000  # strangers and refusing peers that are remembered, so as to be logged seldom
NEWS: Final = 1.0  # seconds between two lines in the log about the same stranger, for different reasons
LOG_AGAIN: Final = 60.0  # seconds after which a complaint that is still made is logged again
DAILY: Final = 86400.0  # seconds between two lines about what nobody can mend within minutes
HELLO_WAIT: Final = 0.5  # seconds that a start waits for peers to answer its hello
HELLO_LOOK: Final = 0.002  # seconds between two looks whether they have
BOTH_ALIVE: Final = 1.0  # seconds without a message from a process, after which another may take its place
STALE, ANOTHER = "is a stale copy", "another process with this id"  # refusals after which a node ends

REQUESTS: Final[dict[type, Method]] = {
    Accept: METHODS[b"accept"],
    Barrier: METHODS[b"barrier"],
    Fetch: METHODS[b"fetch"],
    FetchCheckpoint: METHODS[b"fetch_checkpoint"],
    Forward: METHODS[b"forward"],
    Learn: METHODS[b"learn"],
    Prepare: METHODS[b"prepare"],
    Rejoin: METHODS[b"rejoin"],
}
ANSWERS: Final[frozenset[Any]] = frozenset({Accepted, Reading, Fetched, Promise, Chunk, Forwarded, Rejoined})
OF_ONE_LOG: Final[frozenset[Any]] = frozenset(k for k in (*REQUESTS, *ANSWERS) if hasattr(k, "log"))

Deliver = Callable[[Connection, int, bytes, int, bytes, int], None]


class Complaints:
    """What is wrong with strangers and peers: logged once a minute, because it is tried again and again."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        # The reason, and when it was heard; the one that was logged last, and when.
        self.known: dict[tuple[str, object], tuple[object, float, object, float]] = {}

    def add(self, event: str, whom: object, reason: object, now: float, again: float = LOG_AGAIN) -> None:
        """Count it, remember it, and log it if it is new, or was not logged for `again` seconds."""
        self.counts.refused(event)
        key = (event, whom)
        if key not in self.known and len(self.known) >= MAX_COMPLAINTS:
            del self.known[next(iter(self.known))]
        *_, told, told_at = self.known.get(key, (None, now, None, -inf))
        if now - told_at >= (again if told == reason else NEWS):
            log(event, "error", who=whom, reason=reason)
            told, told_at = reason, now
        self.known[key] = (reason, now, told, told_at)

    def settle(self, event: str, whom: object) -> None:
        """It is no longer so."""
        self.known.pop((event, whom), None)

    def recent(self, now: float) -> list[str]:
        """Who refuses us, or is refused by us, at this time, and why."""
        return [
            f"{event} {whom}: {reason}"[:MAX_PROBLEM]
            for (event, whom), (reason, when, *_) in self.known.items()
            if when > now - RECENT
        ]


class Peers:
    """Our links to the peers, and which processes are listened to."""

    def __init__(
        self,
        identity: Identity,
        core: Core,
        members: dict[int, Member],
        flusher: Flusher,
        counts: Counts,
        trust: Trust,
        loop: asyncio.AbstractEventLoop,
        condemn: Callable[[str], None],
        formats: Formats,
        addresses: Addresses,
    ) -> None:
        """`members`: the peers. `trust`: what whoever calls itself one must prove.

        `condemn`: let no later start use our data, because it is a stale copy.
        """
        self.identity = identity._replace(format=FORMAT, address=addresses.own)
        self.core = core
        self.members = members
        self.flusher = flusher
        self.counts = counts
        self.trust = trust
        self.loop = loop
        self.condemn = condemn
        self.formats = formats
        self.addresses = addresses
        self.logs = frozenset(status.log for status in core.report().logs)
        self.links: dict[int, Link] = {}
        self.greeted: set[int] = set()  # peers that our link may be used to
        self.cut_off: frozenset[int] = frozenset()  # peers to which the link is cut on purpose
        self.refused: set[int] = set()  # peers that have told on our link why they refuse us, or we them
        self.processes: dict[Connection, tuple[int, tuple[int, int]]] = {}  # node, (incarnation, life)
        self.complaints = Complaints(counts)
        self.refused_at: float | None = None  # since when peers say that another process has our id
        self.sequence = 0
        self.encoded: tuple[Message, bytes] = (None, b"")  # the last request, which often goes to all peers
        self.claims_refused = 0  # implausible messages, when last looked at
        self.closed = False
        self.introduced = False  # whether all peers that are there have had the time to refuse this start

    def start(self, deliver: Deliver) -> None:
        """Begin to connect. What arrives on our links goes to deliver(), which gives it to answer()."""
        for peer in self.members:
            self.links[peer] = Link(
                *self.addresses.of(peer), self.flusher, MAX_NODE_FRAME,
                on_up=self._up, on_message=deliver, on_down=self._down,
                tls=self.trust.connect_tls(), user=peer,
            )  # fmt: skip
            self.links[peer].start()

    async def introduce(self) -> None:
        """Wait until each peer has answered our hello, or is not there; HELLO_WAIT at most.

        What peers send before is dropped, as if it were lost: a start that has forgotten something must not
        vote before those who know better have refused it (N25).
        """
        deadline = self.loop.time() + HELLO_WAIT
        while self.loop.time() < deadline and not all(
            link.refused or peer in self.greeted for peer, link in self.links.items()
        ):
            await asyncio.sleep(HELLO_LOOK)
        self.introduced = True

    def close(self) -> None:
        """Hang up on everybody."""
        self.closed = True
        for link in self.links.values():
            link.close()

    def tick(self) -> None:
        """Tell the core which peers refuse connections; hang up on those that are too old by now."""
        for connection, (peer, who) in [*self.processes.items()]:
            replaced = who[0] > 0 and who < self.core.noted(peer)  # others may have told of a later process
            if replaced or peer in self.formats.old:
                connection.close()
        for peer, link in self.links.items():
            self.core.link(peer, link.refused)

    def sweep(self, now: float) -> None:
        """About once a second: connect again to peers that dawdle; complain of what stays wrong."""
        for peer in self.addresses.look():
            log("replaced", peer=peer, address=self.addresses.store.addresses[peer].address)
            self.links[peer].go_to(*self.addresses.of(peer))
            for connection in [other for other, (node, _) in self.processes.items() if node == peer]:
                connection.close()  # whoever is at the agreed address comes back
        for link in self.links.values():
            link.stale(now)
            if link.fault is not None:
                self.complaints.add("handshake", link.user, explained(link.fault), now)
        report = self.core.report()
        if report.claims_refused > self.claims_refused:
            self.claims_refused = report.claims_refused
            self.complaints.add("senseless", *report.last_claim, now)
        certificates = self.trust.certificates
        reason = certificates.problem() if certificates else None
        if reason is not None:
            self.complaints.add("certificate", self.identity.node, reason, now, DAILY)

    def cut(self, peers: frozenset[int]) -> None:
        """Have no connection with these peers, on purpose, until others are named.

        What either side sends is lost, as where a network is cut: nobody is told that the other has ended.
        """
        self.cut_off = peers
        links = [link.connection for peer, link in self.links.items() if peer in peers]
        others = [connection for connection, (peer, _) in self.processes.items() if peer in peers]
        for connection in (*links, *others):
            if connection:
                connection.close()

    def renew(self) -> None:
        """Our certificate is another one: make all connections to and from peers again."""
        for link in self.links.values():
            link.tls = self.trust.connect_tls()
        for connection in [*self.processes]:
            connection.close()

    def handshake(self, host: str, error: Exception) -> None:
        """Whoever connected from this host could not agree with us on TLS."""
        if isinstance(error, ssl.SSLError | TlsUnexpected):  # others have hung up, or said nothing
            self.complaints.add("handshake", host, explained(error), self.loop.time())

    def who(self) -> Identity:
        """Who we are."""
        return self.core.identify(self.identity)

    def needs(self, node: int) -> str | None:
        """Say why this peer cannot be moved now; None if it is gone, and the others are a quorum."""
        if self.loop.time() - self.core.heard_at(node) < BOTH_ALIVE:
            return f"node {node} is heard of: end it first"
        if len(self.greeted - {node}) + 1 < self.core.quorum:
            return f"without node {node} this node has no connections to a majority"
        return None

    # ------------------------------------------------------------------------------------------ what is sent

    def send(self, peer: int, message: Message, call: Call | None) -> None:
        """Send a peer the answer to its call, or a request. What cannot leave is lost, and sent again."""
        if call is not None and peer not in self.formats.old:
            method = call.method
            frame = method.reply(call.sequence, message)
            call.connection.send(frame)
            kind = message.__class__
            if kind is Accepted and message.vote == Vote.REFUSED:
                self.counts.refused("accept")
            elif kind is Promise and message.verdict == Verdict.NACK:
                self.counts.refused("prepare")
        elif peer in self.greeted and peer not in self.formats.old:
            method = REQUESTS[message.__class__]
            if self.encoded[0] is not message:
                self.sequence = self.sequence + 1 & 0x7FFFFFFF
                self.encoded = (message, method.call(self.sequence, message))
            frame = self.encoded[1]
            self.links[peer].send(frame)
        else:
            return
        self.counts.frame(self.counts.sent, peer, method.name, len(frame))

    # ------------------------------------------------------------------------------------------ what arrives

    def answer(
        self, connection: Connection, kind: int, name: bytes, frame: bytes, offset: int
    ) -> Message | None:
        """Take what arrived on one of our links; return the message for the core, if it is one.

        Malformed if nobody asked for that.
        """
        link: Link = connection.user
        method = METHODS.get(name)
        if method is None or method.oneway or method.service != "Node":
            raise Malformed("an answer to nothing that was asked")
        self.counts.frame(self.counts.received, link.user, method.name, len(frame))
        try:
            message = method.answer(kind, frame, offset)
        except (Refused, TApplicationException) as error:
            reason = getattr(error, "reason", error)
            self.complaints.add("peer-refused", link.user, reason, self.loop.time())
            self.refused.add(link.user)
            connection.close()
            if isinstance(error, Refused) and self.trust.may_end_us(link):
                self._is_refused(str(reason))
            return None
        if name == b"hello":
            self._greeted(link, message)
        elif self.introduced and link.user in self.greeted and message.__class__ in ANSWERS:
            return self.checked(message)
        return None

    def checked(self, message: Message) -> Message:
        """Malformed if the message is about a log that there is none of."""
        if message.__class__ in OF_ONE_LOG and message.log not in self.logs:
            raise Malformed("a message about no log of ours")
        return message

    def hello(self, call: Call, identity: Identity) -> None:
        """A process has connected, and says who it is: it is told who we are, or why it is refused."""
        connection = call.connection
        reason = self._stranger(identity) or self.trust.refuses_certificate(connection, identity.node)
        if reason is None:
            challenge = self.trust.challenge(connection, identity, self.who())
            if challenge is not None:
                connection.send(call.method.reply(call.sequence, challenge))
                return
            reason = self.trust.refuses_caller(connection, identity) or self._listen_to(identity, connection)
        if reason is not None:
            self.complaints.add("stranger", _host(connection), reason, self.loop.time())
            connection.send(call.method.fail(call.sequence, Refused(reason)))
            return
        if identity.address is not None and identity.node in self.links:  # it knows better where it is
            self._follow(identity.node, identity.address)
        connection.user = identity.node
        connection.max_frame = MAX_NODE_FRAME
        connection.send(call.method.reply(call.sequence, self.who()))

    def _follow(self, peer: int, address: str) -> None:
        """A peer has said where it listens; a later version, perhaps, in a way that we do not know."""
        try:
            self.links[peer].go_to(*parse_address(address))
        except ValueError as error:
            self.complaints.add("address", peer, error, self.loop.time())

    def rejoins(self, connection: Connection, incarnation: int) -> None:
        """The process at the other end of this connection has taken a new incarnation."""
        node, (_, life) = self.processes[connection]
        self.processes[connection] = node, (incarnation, life)
        self._close_older(node, incarnation)

    def lost(self, connection: Connection, error: Exception | None) -> None:
        """A connection that somebody made to us is gone."""
        self._forget(connection)
        self.trust.lost(connection)
        if isinstance(error, TlsUnexpected):
            self.handshake(_host(connection), error)

    def _forget(self, connection: Connection) -> None:
        """A connection is gone. With the last one of a peer, what it has said of its version is forgotten."""
        peer, _ = self.processes.pop(connection, (0, None))
        if all(other != peer for other, _ in self.processes.values()):
            self.formats.forget(peer)

    # ------------------------------------------------------------------------------------- who is listened to

    def _stranger(self, identity: Identity) -> str | None:
        """Why this node does not belong to us, or None."""
        ours = self.identity
        if identity.cluster != ours.cluster:
            return f"cluster: {identity.cluster!r}, but this is {ours.cluster!r}"
        if identity.proposing != ours.proposing:
            ways = (identity.proposing or WAYS[0], ours.proposing or WAYS[0])
            return "proposing: its cluster.json has {!r}, ours has {!r}".format(*ways)
        if identity.digest != ours.digest:
            digests = f"{identity.digest[:12]}, ours has {ours.digest[:12]}"
            return f"digest: its cluster.json differs from ours: its membership has {digests}"
        if identity.node not in self.members:
            return f"node: {identity.node} is no peer of node {ours.node}"
        if identity.node in self.cut_off:
            return f"faults: the link of nodes {ours.node} and {identity.node} is cut on purpose"
        return None

    def _listen_to(self, identity: Identity, connection: Connection) -> str | None:
        """A process has said who it is, on this connection: why it must not be listened to, or None.

        A stale copy is told that, and ends, even if its node was replaced: it is told where that is now. Of
        two processes with one id, the one with the higher incarnation is listened to: it has taken the other
        one's place (N26). If both have the same, or one has begun to rejoin, which says 0, the newer is
        refused as long as the older one is heard of. When a later disk or start of a node has been noted,
        connections of the earlier ones are closed.
        """
        node, who = identity.node, (identity.incarnation, identity.life)
        stale, moved = self.core.refusal(identity), self.addresses.refusal(identity)
        if stale or moved:
            return "; ".join(filter(None, (stale, moved)))
        alive = self.loop.time() - self.core.heard_at(node) < BOTH_ALIVE
        for other, (peer, (disk, life)) in self.processes.items():
            replaces = 0 < disk < identity.incarnation
            if alive and not replaces and other is not connection and peer == node and life != identity.life:
                return f"node {node}: {ANOTHER} is alive, at {other.peer}"
        reason = self.core.greet(identity) or self.formats.hear(identity)
        if reason is None:
            self.processes[connection] = (node, who)
            self._close_older(node)
        return reason

    def _close_older(self, node: int, kept: int = 0) -> None:
        """What an earlier disk of a node says no longer counts, nor what an earlier start of this disk says.

        `kept`: an incarnation that is not closed. (0 is one that has begun to rejoin.)
        """
        noted = self.core.noted(node)
        for connection, (peer, who) in [*self.processes.items()]:
            if peer == node and who[0] != kept and who < noted:
                connection.close()

    # ------------------------------------------------------------------------------------------------- links

    def _up(self, link: Link) -> None:
        connection = link.connection
        assert connection, "it is up"
        self.refused.discard(link.user)
        reason = self.trust.refuses_certificate(connection, link.user)
        if reason is not None:
            self._refuse(link, reason)
            return
        link.send(METHODS[b"hello"].call(0, self.trust.introduce(link, self.who())))
        self.flusher.flush_all()

    def _greeted(self, link: Link, identity: Identity) -> None:
        """A peer has answered our hello."""
        reason = self._stranger(identity)
        if reason is None and identity.node != link.user:
            reason = f"node: {identity.node} answers where {link.user} is expected"
        if reason is None and link.connection:
            response = self.trust.respond(link, identity, self.who())
            if isinstance(response, Identity):
                link.send(METHODS[b"hello"].call(0, response))
                return
            reason = response or self._listen_to(identity, link.connection)
        if reason is not None:
            self._refuse(link, reason)
            return
        self.greeted.add(link.user)
        self.refused_at = None
        for event in ("peer-refused", "handshake"):
            self.complaints.settle(event, link.user)
        log("peer", peer=link.user)

    def _refuse(self, link: Link, reason: str) -> None:
        """Whoever answers is not the peer, or no peer that may be listened to."""
        self.complaints.add("peer-refused", link.user, reason, self.loop.time())
        self.refused.add(link.user)
        if link.connection:
            link.connection.close()

    def _is_refused(self, reason: str) -> None:
        """A stale copy must not go on; nor the second of two processes, when the first is surely alive."""
        now = self.loop.time()
        if ANOTHER in reason:
            self.refused_at = self.refused_at or now
            if now - self.refused_at < 2 * BOTH_ALIVE:
                return
        elif STALE not in reason:
            return
        else:
            with suppress(OSError):  # the next start will be refused, too, if somebody who knows is there
                self.condemn(reason)
        end(EXIT_STALE, "refused", reason=reason)

    def _down(self, link: Link, error: Exception | None) -> None:
        for connection in [other for other in self.processes if other.user is link]:
            self._forget(connection)
        self.trust.lost(link)
        if link.user in self.greeted and not self.closed:
            log("peer-lost", "warning", peer=link.user, reason=error or "it hung up")
        elif not self.closed and link.user not in self.refused:
            silent = "it hung up at our hello"
            silent += "" if link.tls else ": does it speak TLS, and we do not?"
            self.complaints.add("handshake", link.user, explained(error or silent), self.loop.time())
        self.greeted.discard(link.user)


def _host(connection: Connection) -> str:
    """Where a connection comes from, without the port, which is another one each time."""
    return connection.peer.rpartition(":")[0]
