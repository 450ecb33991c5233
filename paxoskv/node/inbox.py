"""What arrives on connections: decoded, counted, and handed to the part that it is for."""

from paxoskv.node.calls import Call
from paxoskv.node.metrics import Counts
from paxoskv.node.peers import Peers
from paxoskv.node.replica import Replica
from paxoskv.node.service import EXECUTE, TOO_MANY, Service, too_many
from paxoskv.node.turns import Turns
from paxoskv.wire.codec import Malformed, NotDone
from paxoskv.wire.connection import Connection
from paxoskv.wire.methods import CALL, METHODS, ONEWAY, unknown_method


class Inbox:
    """Calls of clients and peers, and peers' answers. A turn follows each."""

    def __init__(
        self, service: Service, peers: Peers, replica: Replica, turns: Turns, counts: Counts
    ) -> None:
        self.service = service
        self.peers = peers
        self.replica = replica
        self.turns = turns
        self.counts = counts

    def answer(
        self, connection: Connection, kind: int, name: bytes, sequence: int, frame: bytes, offset: int
    ) -> None:
        """An answer of a peer, on our link to it."""
        message = self.peers.answer(connection, kind, name, frame, offset)
        if message is not None:
            self.replica.step(connection.user.user, message, None)
        self.turns.wake()

    def call(
        self, connection: Connection, kind: int, name: bytes, sequence: int, frame: bytes, offset: int
    ) -> None:
        """A call, of a client or of a peer. Malformed if a peer does not keep to the protocol."""
        method = METHODS.get(name)
        if method is None or kind not in (CALL, ONEWAY):
            self.counts.refused("unknown_method")
            connection.send(unknown_method(name, sequence))
        else:
            self.counts.frame(self.counts.received, connection.user, method.name, len(frame))
            self._dispatch(Call(connection, method, sequence), name, frame, offset)
        self.turns.wake()

    def _dispatch(self, call: Call, name: bytes, frame: bytes, offset: int) -> None:
        connection = call.connection
        if name == EXECUTE and too_many(frame, offset):
            self.service.answer(call, NotDone(TOO_MANY, True))
            return
        try:
            arguments = call.method.arguments(frame, offset)
        except Malformed as error:
            self.counts.refused("malformed_call")
            connection.send(call.method.fail(call.sequence, error))
            return
        handler = connection.methods.get(name)
        if handler is not None:
            handler(call, arguments)
        elif name == b"hello":
            self.peers.hello(call, arguments[0])
        elif call.method.service == "KeyValue":
            role = self.peers.trust.role(connection)
            may = f"its role is {role}" if role else "it names no role in this cluster"
            self.service.answer(call, NotDone(f"the certificate does not allow {name.decode()}: {may}", True))
        elif connection.user is None:
            raise Malformed("a message between nodes, but no hello")
        else:
            message = self.peers.checked(arguments[0])
            if not self.peers.introduced:
                return
            self.replica.step(connection.user, message, None if call.method.oneway else call)
            if name == b"rejoin" and message.incarnation:
                self.peers.rejoins(connection, message.incarnation)
