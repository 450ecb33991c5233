"""Who is at the other end of a connection, by its certificate, or by a secret that the nodes share.

A certificate names whom it was made for by a URI among its subject alternative names:

    urn:paxoskv:CLUSTER:node:3             node 3 of the cluster with this name
    urn:paxoskv:CLUSTER:client:reader      a client; or writer, or admin

Without certificates, nodes that share a secret prove it to one another in hello, on every connection:

    the node that calls                                 the node that is called
      | hello(identity, nonce) --------------------------> |
      | <---------------- identity, another nonce, proof --|   wrong: the caller hangs up
      | hello(identity, nonce, proof) -------------------> |   wrong: refused, and nothing was noted
      | <---------------------------------------- identity |

A proof is an HMAC of which of the two made it, both ids, and both nonces, which nobody draws twice: so it is
of no use on another connection, to another node, or in the other direction. docs/security.md says what all
this protects against, and what not.
"""

import contextlib
import hmac
import ipaddress
import os
import socket
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from paxoskv.config import ROLES, Cluster, Tls
from paxoskv.node.eventlog import Usage, log
from paxoskv.wire.connection import Connection, Link, tls_contexts
from paxoskv.wire.structs import Identity

NOTHING: Final = "secret: it proves nothing: it has no secret, or is of an older version"
OTHER: Final = "secret: it has another one"
PREFIX: Final = "urn:paxoskv:"
MIN_SECRET: Final = 16  # bytes: nobody guesses that many, if they are random
NONCE: Final = 16  # bytes: no two of them will ever be the same
LOOK_AGAIN: Final = 60.0  # seconds between two looks whether our certificate is still one that others accept
EXPIRES_SOON: Final = 30 * 86400.0  # seconds before a certificate expires, from which on that is a problem


def is_loopback(host: str) -> bool:
    """Tell whether only processes of this machine reach this address, or all addresses of this name."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return False
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


# ------------------------------------------------------------------------------------------------- the secret


def read_secret(path: Path, make: bool) -> bytes:
    """Return the secret that the file has; Usage if it cannot be used.

    `make`: if there is no such file, make it, with a secret that nobody knows. Of several nodes that start at
    the same time one makes it, and all use that.
    """
    if make:
        own = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            own.touch(0o600)
            own.write_text(os.urandom(32).hex() + "\n")
            with contextlib.suppress(FileExistsError):
                os.link(own, path)
        except OSError as error:
            raise Usage(f"secret: {path}: {error.strerror}") from error
        finally:
            own.unlink(missing_ok=True)
    try:
        secret = path.read_bytes().strip()
        mode = path.stat().st_mode
    except FileNotFoundError:
        how = f"(umask 077; head -c 32 /dev/urandom | base64 > {path})"
        raise Usage(f"secret: {path}: there is no such file: make it once, for all nodes: {how}") from None
    except OSError as error:
        raise Usage(f"secret: {path}: {error.strerror}") from error
    if mode & 0o077:
        raise Usage(f"secret: {path}: others may use it (mode {mode & 0o777:o}): chmod 600")
    if len(secret) < MIN_SECRET:
        raise Usage(f"secret: {path}: it has {len(secret)} bytes: at least {MIN_SECRET} are needed")
    return secret


# ----------------------------------------------------------------------------------------------- certificates


class Certificates:
    """Our own certificate and its authority, as the files have them now."""

    def __init__(self, tls: Tls, host: str) -> None:
        """OSError: a file cannot be used. `host`: under this name others connect to us."""
        self.tls = tls
        self.host = host
        self.load()

    def load(self) -> None:
        """Read the files (again); OSError if one cannot be used, and nothing has changed then."""
        self.accept, self.connect = tls_contexts(self.tls.certificate, self.tls.key, self.tls.authority)
        self.look()

    def look(self) -> None:
        """Find out whether others accept our certificate: let our own two sides shake hands."""
        self.looked_at = time.monotonic()
        self.expires: float | None = None  # by time.time()
        self.fault: str | None = None  # why nobody accepts it
        try:
            own = meet(self.accept, self.connect, self.host)
            self.expires = float(ssl.cert_time_to_seconds(own["notAfter"]))
        except ssl.SSLError as error:
            self.fault = explained(error)

    def accepting(self) -> ssl.SSLContext:
        """Return the context for connections that others make."""
        return self.accept

    def seconds(self) -> float | None:
        """Return how long it is until our certificate expires, if that is known."""
        return None if self.expires is None else round(self.expires - time.time())

    def problem(self) -> str | None:
        """Say what is wrong with our certificate, or soon will be."""
        if time.monotonic() - self.looked_at > LOOK_AGAIN:
            self.look()
        if self.fault is not None:
            return f"{self.tls.certificate}: nobody accepts it: {self.fault}"
        if self.expires is not None and self.expires - time.time() < EXPIRES_SOON:
            date = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(self.expires))
            return f"{self.tls.certificate}: it expires at {date} UTC: replace it, then send SIGHUP"
        return None


def meet(accept: ssl.SSLContext, connect: ssl.SSLContext, host: str) -> dict[str, Any]:
    """Shake hands in memory; return the accepting side's certificate. ssl.SSLError: one refuses the other."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = accept.wrap_bio(there, back, server_side=True)
    client = connect.wrap_bio(back, there, server_hostname=host)
    for side in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return client.getpeercert() or {}


def explained(error: object) -> str:
    """Say in a few words why a handshake has failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return str(error) or type(error).__name__


# ------------------------------------------------------------------------------------------------------ trust


@dataclass(eq=False)
class Trust:
    """What this node demands of others, and how it proves itself to them."""

    cluster: str
    me: int
    secret: bytes | None = None
    certificates: Certificates | None = None
    insecure: bool = False  # others need prove nothing
    roles: dict[str, str] = field(default_factory=dict)  # of certificates that name none, by common name

    def __post_init__(self) -> None:
        self.nonces: dict[Connection | Link, bytes] = {}  # that we have drawn, where nothing is proved so far
        self.proven: set[Connection | Link] = set()  # whose other end has proved that it knows the secret

    def connect_tls(self) -> ssl.SSLContext | None:
        """Return the context for connections that we make."""
        return self.certificates.connect if self.certificates else None

    def lost(self, connection: Connection | Link) -> None:
        """A connection is gone, or that of a link."""
        self.nonces.pop(connection, None)
        self.proven.discard(connection)

    def role(self, connection: Connection) -> str | None:
        """Return what its certificate lets a client do; None: nothing.

        A node may do what clients may. Without certificates clients cannot be told apart.
        """
        if self.certificates is None:
            return ROLES[-1]
        names, named = self._names(connection)
        if any(name.startswith("node:") for name in names):
            return ROLES[-1]
        for role in reversed(ROLES):
            if f"client:{role}" in names:
                return role
        certificate: Any = connection.certificate() or {}
        for part in certificate.get("subject", ()):
            for kind, value in part:
                if kind == "commonName" and value in self.roles:
                    return self.roles[value]
        return ROLES[-1] if self.insecure and not named else None

    def refuses_certificate(self, connection: Connection, node: int) -> str | None:
        """Say why the other end is not this node, going by its certificate; None if it is."""
        if self.certificates is None:
            return None
        names, named = self._names(connection)
        if f"node:{node}" in names or (self.insecure and not named):
            return None
        wanted = f"{PREFIX}{self.cluster}:node:{node}"
        return f"certificate: it names {', '.join(sorted(names)) or 'nobody of this cluster'}, not {wanted}"

    def _names(self, connection: Connection) -> tuple[set[str], bool]:
        """Whom of our cluster the certificate names, and whether it names anybody of any cluster."""
        certificate: Any = connection.certificate() or {}
        uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
        ours = f"{PREFIX}{self.cluster}:"
        names = {uri.removeprefix(ours) for uri in uris if uri.startswith(ours)}
        return names, any(uri.startswith(PREFIX) for uri in uris)

    # ------------------------------------------------------------------------- the secret: whoever is called

    def challenge(self, connection: Connection, caller: Identity, own: Identity) -> Identity | None:
        """Return what a first hello is answered with, if the caller must prove itself; else None."""
        first = caller.nonce
        if self.secret is None or caller.proof is not None or first is None or len(first) != NONCE:
            return None
        nonce = self.nonces[connection] = os.urandom(NONCE)
        return own._replace(nonce=nonce, proof=self._proof("called", caller, own, first, nonce))

    def refuses_caller(self, connection: Connection, caller: Identity) -> str | None:
        """Say why a caller who is not challenged (any more) is not who it says; None if it is."""
        if self.secret is None:
            return None
        if caller.nonce is None or caller.proof is None:
            return None if self.insecure else NOTHING
        nonce = self.nonces.pop(connection, b"")
        right = self._proof("caller", caller, caller._replace(node=self.me), caller.nonce, nonce)
        return None if nonce and hmac.compare_digest(caller.proof, right) else OTHER

    # -------------------------------------------------------------------------- the secret: whoever calls

    def introduce(self, link: Link, own: Identity) -> Identity:
        """Return our first hello on a connection that we have made."""
        if self.secret is None:
            return own
        nonce = self.nonces[link] = os.urandom(NONCE)
        return own._replace(nonce=nonce)

    def may_end_us(self, link: Link) -> bool:
        """Whether the other end of this link is a node of ours, as far as it has to prove it.

        (With certificates, a link to somebody else is closed before it is used.)
        """
        return self.secret is None or self.insecure or link in self.proven

    def respond(self, link: Link, called: Identity, own: Identity) -> Identity | str | None:
        """Return our second hello, or why the answer is not from a node; None: nothing is to prove."""
        if self.secret is None or link in self.proven:
            return None
        nonce = self.nonces.pop(link, b"")
        if called.nonce is None or called.proof is None:
            return None if self.insecure else NOTHING
        right = self._proof("called", own, called, nonce, called.nonce)
        if not nonce or not hmac.compare_digest(called.proof, right):
            return OTHER
        self.proven.add(link)
        return own._replace(nonce=nonce, proof=self._proof("caller", own, called, nonce, called.nonce))

    def _proof(self, prover: str, caller: Identity, called: Identity, first: bytes, second: bytes) -> bytes:
        """Prove that we know the secret, as one of the two, on the connection with these two nonces."""
        assert self.secret is not None, "only where there is one"
        said = caller if prover == "caller" else called
        parts = (prover, self.cluster, caller.node, called.node, said.incarnation, said.life)
        text = "/".join([*map(str, parts), first.hex(), second.hex()])
        return hmac.digest(self.secret, text.encode(), "sha256")


def trust_of(settings: Cluster, me: int, file: str) -> Trust:
    """Return what node `me` demands of others, as the cluster's file says; Usage if that cannot be."""
    member = settings.member(me)
    secret, certificates = None, None
    try:
        if settings.secret:
            path = Path(settings.secret)
            local = not path.exists() and all(is_loopback(node.host) for node in settings.nodes)
            secret = read_secret(path, make=local)
        if settings.tls:
            certificates = _certificates(settings.tls.of(f"node-{me}"), member.host)
    except Usage as error:
        raise Usage(f"{file}: {error}") from None
    if settings.insecure:
        log(
            "insecure",
            "warning",
            reason="whoever connects may call itself a node",
        )
    elif not secret and not certificates and not is_loopback(member.host):
        raise Usage(
            f"{file}: node {me} listens at {member.host}, beyond this machine: give the cluster "
            '"tls" or a "secret"; or say "insecure": true, and whoever connects may call itself a node'
        )
    roles = settings.tls.roles if settings.tls else {}
    return Trust(settings.name, me, secret, certificates, settings.insecure, roles)


def _certificates(tls: Tls, host: str) -> Certificates:
    """Usage if a file cannot be used: errors of the ssl module do not name it."""
    for name in ("certificate", "key", "authority"):
        path = getattr(tls, name)
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise Usage(f"tls.{name}: {path}: {error.strerror}") from error
    try:
        return Certificates(tls, host)
    except OSError as error:
        raise Usage(f"tls: {error}") from error
