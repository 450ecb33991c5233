"""A bare connection to a node, by which a test plays a client or another node, honest or not."""

import hmac
import os
import socket
import ssl
from pathlib import Path
from typing import Any, Self

from paxoskv.wire.methods import METHODS, header
from paxoskv.wire.structs import Identity
from paxoskv.wire.validation import FORMAT
from tests.harness.processes import RealCluster


class Raw:
    """A connection that speaks frames."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.socket = socket.create_connection((host, port), 60)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_hostname=host)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, name: bytes, *arguments: Any) -> None:
        """Send a call, whose answer is not waited for; EOFError if the other side has hung up."""
        try:
            self.socket.sendall(METHODS[name].call(7, *arguments))
        except OSError:
            raise EOFError from None

    def call(self, name: bytes, *arguments: Any) -> Any:
        """The answer; EOFError if the other side hangs up instead."""
        self.send(name, *arguments)
        if METHODS[name].oneway:
            return None
        length = int.from_bytes(self._exactly(4))
        frame = self._exactly(length)
        kind, answered, sequence, offset = header(frame)
        assert (answered, sequence) == (name, 7)
        return METHODS[name].answer(kind, frame, offset)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                more = self.socket.recv(size - len(data))
            except (ConnectionError, ssl.SSLError):
                more = b""
            if not more:
                raise EOFError
            data += more
        return data

    def greet(self, identity: Identity, secret: bytes | None) -> Identity:
        """Say hello as a node that knows this secret, and return the last answer; Refused may be raised."""
        nonce = os.urandom(16) if secret else None
        answer: Identity = self.call(b"hello", identity._replace(nonce=nonce))
        if secret is None or nonce is None or answer.nonce is None:
            return answer
        parts = ("caller", identity.cluster, identity.node, answer.node, identity.incarnation, identity.life)
        text = "/".join([*map(str, parts), nonce.hex(), answer.nonce.hex()])
        proof = hmac.digest(secret, text.encode(), "sha256")
        last: Identity = self.call(b"hello", identity._replace(nonce=nonce, proof=proof))
        return last


def raw(cluster: RealCluster, node: int, tls: ssl.SSLContext | None = None) -> Raw:
    """Connect to this node."""
    member = cluster.settings.member(node)
    return Raw(member.host, member.port, tls)


def secret_of(cluster: RealCluster) -> bytes | None:
    """What the nodes of this cluster share."""
    path = cluster.settings.secret
    return Path(path).read_bytes().strip() if path else None


def identity(cluster: RealCluster, node: int) -> Identity:
    """Who this node says it is: another process with its id would be refused."""
    status = cluster.status(node)
    assert status is not None
    name, digest = cluster.settings.name, cluster.settings.digest
    return Identity(name, digest, node, 1, status.life, format=FORMAT)
