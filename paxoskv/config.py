"""Reads cluster.json, which says who the nodes are and how they behave, and checks it.

    {
      "name": "demo",                          letters, digits, '.', '_', '-'; at most 64
      "nodes": [                               an odd number of them, 1 to 255; their order means nothing
        {"id": 1,                              1 to 255
         "host": "127.0.0.1", "port": 7001,    where the node listens, and where the others find it
         "first_address": "10.0.0.3:7001",     where it was when the cluster began, if it was replaced since
         "metrics_port": 9001,                 where it serves /metrics, /healthz and /readyz; absent: nowhere
         "ssh_host": "n1",                     if ssh finds the host by another name than the nodes do
         "ssh_user": "paxos", "ssh_port": 22,  these four replace, for this node, what "ssh" says for all
         "directory": "kv", "python": "python3"}
      ],
      "ssh": {                                 how scripts/launch.sh reaches the hosts, and where things are
        "user": "paxos", "port": 22,             (if absent, as OpenSSH's configuration says)
        "key": "~/.ssh/id_ed25519",              (likewise; a file of the machine that launches)
        "directory": "multipaxos-kv",            the copy of the project; a relative path begins at home
        "python": "python3"},                    3.11 or later; used as it is if it has the packages
      "proposing": "own-logs",                 or "classic", "leader": see docs/protocol.md; never changes
      "data": "data",                          the parent of the data directories; relative to this file
      "checkpoint_mb": 64,                     MiB of journal after which a checkpoint is made
      "self_repair": true,                     false: a node with damaged data ends, and does not rejoin
      "fsync": true,                           false gives durability up, for measurements
      "revoke_after_s": 0.5,                   seconds without progress after which a log is revoked
      "request_timeout_s": 10,                 seconds that a node works on a client's request
      "acceptor_failures": {                   the acceptor role fails on purpose:
        "probability": 0.05,                     for each message with this probability,
        "silence_s": 1, "every_s": 10},          and for silence_s seconds, once in every_s seconds
      "secret": "demo.secret",                 a file by which the nodes know one another, mode 600
      "tls": {                                 or certificates, by which everybody knows everybody:
        "certificate": "certs/{name}.pem",       {name} stands for node-3 at node 3, and for client in clients
        "key": "certs/{name}.key",
        "authority": "certs/ca.pem",
        "roles": {"reports": "reader"}},         of clients' certificates that name no role, by common name
      "trace": false,                          true: each node records what happens, in memory, from its start
      "faults": "faults.json",                 a file of faults on purpose, read when it changes: see Faults
      "insecure": false                        true: others need not prove that they are nodes
    }

Paths are relative to this file. docs/security.md says what "secret", "tls" and "insecure" come to.

Only name, nodes, id, host and port are required. An unknown field is an error: if it were ignored, a setting
with a misspelled name would silently do nothing.
"""

import dataclasses
import hashlib
import ipaddress
import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Final, NoReturn

MAX_ID: Final = 255  # a ballot has 8 bits for the node
ROLES: Final = ("reader", "writer", "admin")  # of clients; each may do what the one before may
WAYS: Final = ("own-logs", "classic", "leader")  # to propose
MAX_TEXT: Final = 1024  # characters; no path or name is longer
MAX_SHOWN: Final = 60  # characters of a wrong value that an error repeats

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")  # a leading '-' would look like an option
_HOST = re.compile(r"(?=.{1,253}$)([A-Za-z0-9_]([A-Za-z0-9_-]{0,62})\.)*[A-Za-z_][A-Za-z0-9_-]{0,62}\.?")


class ClusterError(Exception):
    """The cluster's file cannot be used; the message names the file, the field and the reason in one line."""


@dataclass(frozen=True, slots=True)
class Member:
    """One node; the optional fields replace what the cluster's Ssh says."""

    id: int
    host: str
    port: int
    ssh_host: str | None = None
    ssh_user: str | None = None
    ssh_port: int | None = None
    directory: str | None = None
    python: str | None = None
    metrics_port: int | None = None
    first_address: str | None = None  # HOST:PORT, if that is another one


@dataclass(frozen=True, slots=True)
class Ssh:
    """How scripts/launch.sh reaches the hosts; None leaves a setting to OpenSSH's configuration."""

    user: str | None = None
    port: int | None = None
    key: str | None = None
    directory: str = "multipaxos-kv"
    python: str = "python3"


@dataclass(frozen=True, slots=True)
class AcceptorFailures:
    """How the acceptor role fails on purpose: by chance, and in periods of silence."""

    probability: float = 0.0
    silence_s: float = 0.0
    every_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Tls:
    """The paths of the PEM files, and what clients may do whose certificates do not say it."""

    certificate: str
    key: str
    authority: str
    roles: dict[str, str] = dataclasses.field(default_factory=dict)  # by common name

    def of(self, name: str) -> "Tls":
        """Return this with the files of one who shows a certificate: "node-3", or "client"."""
        return replace(
            self,
            certificate=self.certificate.replace("{name}", name),
            key=self.key.replace("{name}", name),
        )


@dataclass(frozen=True, slots=True)
class Cluster:
    """The content of cluster.json; `nodes` are in the order of their ids."""

    name: str
    nodes: tuple[Member, ...]
    proposing: str = WAYS[0]
    revoke_after_s: float = 0.5
    acceptor_failures: AcceptorFailures = AcceptorFailures()
    checkpoint_mb: float = 64.0
    self_repair: bool = True
    fsync: bool = True
    request_timeout_s: float = 10.0
    tls: Tls | None = None
    secret: str | None = None
    insecure: bool = False
    trace: bool = False
    faults: str | None = None
    data: str = "data"
    ssh: Ssh = Ssh()

    @property
    def digest(self) -> str:
        """Return the SHA-256, in hexadecimal, of what all nodes must agree on, and what never changes.

        That is the name, each node's id, host and port when the cluster began, and how they propose, if not
        the default.
        """
        first = [
            [node.id, *(parse_address(node.first_address) if node.first_address else (node.host, node.port))]
            for node in self.nodes
        ]
        membership: list[Any] = [self.name, first]
        if self.named_way:
            membership.append(self.named_way)
        return hashlib.sha256(json.dumps(membership).encode()).hexdigest()

    @property
    def named_way(self) -> str | None:
        """Return how the nodes propose, if that must be said: where nothing is, each has a log."""
        return None if self.proposing == WAYS[0] else self.proposing

    def member(self, node: int) -> Member:
        """Return the node with this id; raise ClusterError, without a file's name, if there is none."""
        for member in self.nodes:
            if member.id == node:
                return member
        raise ClusterError(f"nodes: none has the id {node}")


@dataclass(frozen=True, slots=True)
class Faults:
    """What fails on purpose at this time, where the cluster's file names a file for that.

    {"cut": [[1, 3]], "acceptors": {"2": 0.5}}: nodes 1 and 3 do not hear one another, and node 2's acceptor
    loses every second message.
    """

    cut: tuple[tuple[int, int], ...] = ()
    acceptors: dict[str, float] = dataclasses.field(default_factory=dict)  # probabilities, by node

    def cut_off(self, node: int) -> frozenset[int]:
        """Return the nodes to which this one has no link."""
        return frozenset(other for link in self.cut if node in link for other in link if other != node)


def data_directory(given: str | None, settings: Cluster, file: str | PathLike[str]) -> Path:
    """Return the parent of the data directories: as given, or as the cluster's file says."""
    return Path(given) if given else Path(file).parent / settings.data


def load(path: str | PathLike[str]) -> Cluster:
    """Read and check the file; raise ClusterError if it cannot be read, or contains an error."""
    try:
        settings = _cluster(_json(Path(path).read_bytes()), "")
    except OSError as error:
        raise ClusterError(f"{path}: {error.strerror}") from error
    except ClusterError as error:
        raise ClusterError(f"{path}: {error}") from error
    here = Path(path).parent
    tls, secret = settings.tls, settings.secret
    if tls:
        certificate, key, authority = (str(here / name) for name in (tls.certificate, tls.key, tls.authority))
        tls = Tls(certificate, key, authority, tls.roles)
    faults = str(here / settings.faults) if settings.faults else None
    return replace(settings, tls=tls, secret=str(here / secret) if secret else None, faults=faults)


def load_faults(path: str | PathLike[str]) -> Faults:
    """Read the file of faults: no fault if there is none; raise ClusterError if it contains an error."""
    try:
        value = _json(_private(Path(path)))
        return Faults(**_object(value, "", {}, {"cut": _links, "acceptors": _probabilities}))
    except FileNotFoundError:
        return Faults()
    except OSError as error:
        raise ClusterError(f"{path}: {error.strerror}") from error
    except ClusterError as error:
        raise ClusterError(f"{path}: {error}") from error


def _private(path: Path) -> bytes:
    """Read a regular file that only its owner may write; anything else is refused, and not waited for."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            raise ClusterError("is no regular file")
        if mode & 0o022:
            raise ClusterError(f"others may write it (mode {mode & 0o777:o}): chmod go-w")
        with open(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


def _json(data: bytes) -> Any:
    if data.startswith(b"\xef\xbb\xbf"):
        raise ClusterError("begins with a byte-order mark: save it as UTF-8 without one")
    try:
        return json.loads(data.decode(), object_pairs_hook=_pairs, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise ClusterError(f"not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ClusterError(f"line {error.lineno}, column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise ClusterError(f"not usable JSON: {error}") from error


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):  # json alone would use the last one
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ClusterError(f"{_shown(twice)} stands twice in one object")
    return fields


def _constant(name: str) -> NoReturn:
    raise ClusterError(f"{name} is not JSON")


# ----------------------------------------------------------------- checks: a value, and its place in the file

Check = Callable[[Any, str], Any]  # returns the value, checked and converted, or raises ClusterError


def _object(value: Any, where: str, required: dict[str, Check], optional: dict[str, Check]) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(where, value, "is not an object")
    checks = required | optional
    for name in value:
        if name not in checks:
            _refuse(_field(where, name), value[name], f"is in no known field (known: {', '.join(checks)})")
    for name in required:
        if name not in value:
            raise ClusterError(f"{_field(where, name)}: is missing")
    return {name: check(value[name], _field(where, name)) for name, check in checks.items() if name in value}


def _cluster(value: Any, where: str) -> Cluster:
    required: dict[str, Check] = {"name": _name, "nodes": _nodes}
    optional: dict[str, Check] = {
        "proposing": _way,
        "revoke_after_s": _number(0.05, 60, "seconds"),
        "acceptor_failures": _acceptor_failures,
        "checkpoint_mb": _number(0.01, 1 << 20, "MiB"),
        "self_repair": _boolean,
        "fsync": _boolean,
        "request_timeout_s": _number(0.1, 600, "seconds"),
        "tls": _tls,
        "secret": _text,
        "insecure": _boolean,
        "trace": _boolean,
        "faults": _text,
        "data": _text,
        "ssh": _ssh,
    }
    return Cluster(**_object(value, where, required, optional))


def _nodes(value: Any, where: str) -> tuple[Member, ...]:
    if not isinstance(value, list):
        _refuse(where, value, "is not a list")
    if len(value) % 2 == 0 or len(value) > MAX_ID:
        raise ClusterError(f"{where}: {len(value)} is not an odd number of nodes from 1 to {MAX_ID}")
    nodes = [_member(node, f"{where}[{i}]") for i, node in enumerate(value)]
    ids: dict[int, int] = {}
    addresses: dict[tuple[str, int], int] = {}
    for i, node in enumerate(nodes):
        first = ids.setdefault(node.id, i)
        if first != i:
            _refuse(f"{where}[{i}].id", node.id, f"is the id of {where}[{first}] already")
        for field, port in (("port", node.port), ("metrics_port", node.metrics_port)):
            if port is None:
                continue
            if (node.host, port) in addresses:
                first = addresses[node.host, port]
                _refuse(
                    f"{where}[{i}].{field}", port, f"at {node.host} is the port of {where}[{first}] already"
                )
            addresses[node.host, port] = i
    return tuple(sorted(nodes, key=lambda node: node.id))


def _member(value: Any, where: str) -> Member:
    required = {"id": _whole(1, MAX_ID, "a node id"), "host": _host, "port": _port}
    optional: dict[str, Check] = {
        "metrics_port": _port,
        "first_address": _address,
        "ssh_host": _host,
        "ssh_user": _name,
        "ssh_port": _port,
        "directory": _path,
        "python": _path,
    }
    return Member(**_object(value, where, required, optional))


def _ssh(value: Any, where: str) -> Ssh:
    optional: dict[str, Check] = {
        "user": _name,
        "port": _port,
        "key": _path,
        "directory": _path,
        "python": _path,
    }
    return Ssh(**_object(value, where, {}, optional))


def _acceptor_failures(value: Any, where: str) -> AcceptorFailures:
    optional = {
        "probability": _number(0, 1, "a probability"),
        "silence_s": _number(0, 3600, "seconds"),
        "every_s": _number(0, 3600, "seconds"),
    }
    failures = AcceptorFailures(**_object(value, where, {}, optional))
    if 0 < failures.silence_s >= failures.every_s:
        _refuse(f"{where}.every_s", failures.every_s, f"is not longer than silence_s ({failures.silence_s})")
    return failures


def _links(value: Any, where: str) -> tuple[tuple[int, int], ...]:
    node = _whole(1, MAX_ID, "a node id")
    if not isinstance(value, list) or not all(isinstance(link, list) and len(link) == 2 for link in value):
        _refuse(where, value, "is not a list of pairs of nodes")
    return tuple((node(one, where), node(other, where)) for one, other in value)


def _probabilities(value: Any, where: str) -> dict[str, float]:
    if not isinstance(value, dict):
        _refuse(where, value, "is not an object")
    check = _number(0, 1, "a probability")
    return {node: check(probability, _field(where, node)) for node, probability in value.items()}


def _tls(value: Any, where: str) -> Tls:
    files: dict[str, Check] = {"certificate": _text, "key": _text, "authority": _text}
    return Tls(**_object(value, where, files, {"roles": _roles}))


def _roles(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        _refuse(where, value, "is not an object")
    for name, role in value.items():
        if role not in ROLES:
            _refuse(_field(where, name), role, f"is not a role ({', '.join(ROLES)})")
    return value


def _whole(low: int, high: int, what: str) -> Check:
    def check(value: Any, where: str) -> int:
        if type(value) is not int or not low <= value <= high:  # a bool is an int to isinstance
            _refuse(where, value, f"is not {what} ({low} to {high})")
        return value

    return check


_port = _whole(1, 65535, "a port")


def _number(low: float, high: float, what: str) -> Check:
    def check(value: Any, where: str) -> float:
        if type(value) not in (int, float) or not low <= value <= high:
            _refuse(where, value, f"is not {what} ({low} to {high})")
        return float(value)

    return check


def _way(value: Any, where: str) -> str:
    if value not in WAYS:
        _refuse(where, value, f"is not a way to propose (known: {', '.join(WAYS)})")
    return str(value)


def _boolean(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        _refuse(where, value, "is neither true nor false")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= MAX_TEXT:
        _refuse(where, value, f"is not a text of 1 to {MAX_TEXT} printable characters")
    return value


def _path(value: Any, where: str) -> str:
    """Check a path; it must not look like an option of a command."""
    text = _text(value, where)
    if text.startswith("-"):
        _refuse(where, value, "begins with '-': commands would take it for an option")
    return text


def _name(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        _refuse(where, value, "is not a name (1 to 64 of A-Z a-z 0-9 . _ -, the first neither '.' nor '-')")
    return value


def _host(value: Any, where: str) -> str:
    """Check a host; return one spelling of it, so that two spellings of an address count as the same."""
    if not isinstance(value, str):
        _refuse(where, value, "is not a host name or IP address")
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        if not _HOST.fullmatch(value):
            _refuse(where, value, "is not a host name or IP address")
        return value.lower()
    if address.is_unspecified:
        _refuse(where, value, "is not an address at which the other nodes find this one")
    return str(address)


def _address(value: Any, where: str) -> str:
    """Check HOST:PORT; return one spelling of it."""
    try:
        if not isinstance(value, str):
            raise ValueError
        return address_text(*parse_address(value))
    except ValueError:
        _refuse(where, value, "is not HOST:PORT")


def address_text(host: str, port: int) -> str:
    """Return HOST:PORT; an IPv6 address is in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(text: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT; raise ValueError for other text."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of an address of a node, the host in one spelling; raise ValueError otherwise."""
    host, port = split_address(text)
    try:
        return _host(host, ""), port
    except ClusterError as error:
        raise ValueError(f"{text!r} is not HOST:PORT: {error}") from None


def _field(where: str, name: str) -> str:
    shown = name if _NAME.fullmatch(name) else _shown(name)
    return f"{where}.{shown}" if where else shown


def _refuse(where: str, value: Any, reason: str) -> NoReturn:
    raise ClusterError(f"{where or 'the whole'}: {_shown(value)} {reason}")


def _shown(value: Any) -> str:
    """Show a value in one line, escaped, and cut if it is long; lists and objects are only named."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
