"""cluster.json: what is read from it, and that whatever is wrong in it is said in one line."""

import json
import os
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paxoskv.config import (
    AcceptorFailures,
    Cluster,
    ClusterError,
    Faults,
    Member,
    Ssh,
    Tls,
    load,
    load_faults,
)
from tests.harness.processes import CLIENT, SCRIPTS, SERVER, finish

untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a slow machine is no bug

SHIPPED = Path(__file__).resolve().parents[2] / "cluster.json"


def document(**changes: Any) -> dict[str, Any]:
    nodes = [{"id": i, "host": "10.0.0.1", "port": 7000 + i} for i in (1, 2, 3)]
    return {"name": "demo", "nodes": nodes} | changes


def document_with(i: int, **changes: Any) -> dict[str, Any]:
    """With changes to nodes[i]."""
    whole = document()
    whole["nodes"][i] |= changes
    return whole


def read(directory: Path, content: Any) -> Cluster:
    file = directory / "cluster.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return load(file)


# ----------------------------------------------------------------------------------------------- what is read


def test_the_shipped_file_names_five_nodes_on_loopback() -> None:
    cluster = load(SHIPPED)
    nodes = tuple(Member(i, "127.0.0.1", 7000 + i) for i in range(1, 6))
    assert cluster == Cluster("demo", nodes, secret=str(SHIPPED.parent / "demo.secret"))


def test_settings_that_are_left_out_have_defaults(tmp_path: Path) -> None:
    cluster = read(tmp_path, document())
    assert cluster.acceptor_failures == AcceptorFailures(0, 0, 0)
    assert (cluster.revoke_after_s, cluster.fsync, cluster.request_timeout_s) == (0.5, True, 10)
    assert cluster.self_repair
    assert (cluster.tls, cluster.data, cluster.ssh) == (None, "data", Ssh())


def test_every_setting_is_read(tmp_path: Path) -> None:
    ssh = {"ssh_host": "n1", "ssh_user": "paxos", "ssh_port": 2222, "directory": "/srv/kv"}
    content = document_with(0, **ssh, python="python3.11", metrics_port=9001) | {
        "ssh": {"user": "me", "port": 22, "key": "~/.ssh/key", "directory": "kv", "python": "python3"},
        "revoke_after_s": 1,
        "acceptor_failures": {"probability": 0.05, "silence_s": 1, "every_s": 5},
        "self_repair": False,
        "fsync": False,
        "request_timeout_s": 2.5,
        "tls": {
            "certificate": "{name}.pem",
            "key": "{name}.key",
            "authority": "ca.pem",
            "roles": {"reports": "reader"},
        },
        "secret": "shared",
        "insecure": True,
        "trace": True,
        "faults": "faults.json",
        "data": "elsewhere",
    }
    cluster = read(tmp_path, content)
    assert cluster.nodes[0] == Member(
        1, "10.0.0.1", 7001, ssh_host="n1", ssh_user="paxos", ssh_port=2222, directory="/srv/kv",
        python="python3.11", metrics_port=9001,
    )  # fmt: skip
    assert cluster.ssh == Ssh("me", 22, "~/.ssh/key", "kv", "python3")
    assert cluster.acceptor_failures == AcceptorFailures(0.05, 1, 5)
    assert (cluster.revoke_after_s, cluster.fsync, cluster.request_timeout_s) == (1.0, False, 2.5)
    assert not cluster.self_repair
    assert isinstance(cluster.revoke_after_s, float)
    files = [str(tmp_path / file) for file in ("{name}.pem", "{name}.key", "ca.pem")]
    assert (cluster.tls, cluster.data) == (Tls(*files, {"reports": "reader"}), "elsewhere")
    assert cluster.tls is not None and cluster.tls.of("node-3").key == str(tmp_path / "node-3.key")
    assert (cluster.secret, cluster.insecure) == (str(tmp_path / "shared"), True)
    assert cluster.trace and cluster.faults == str(tmp_path / "faults.json")


def test_a_file_of_faults_tells_which_links_are_cut_and_which_acceptors_fail(tmp_path: Path) -> None:
    file = tmp_path / "faults.json"
    assert load_faults(file) == Faults(), "there need not be one"
    file.write_text('{"cut": [[1, 3], [2, 1]], "acceptors": {"2": 0.5}}')
    faults = load_faults(file)
    assert [faults.cut_off(node) for node in (1, 2, 3, 4)] == [{2, 3}, {1}, {1}, set()]
    assert faults.acceptors == {"2": 0.5}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[", "line 1, column 2: Expecting value"),
        ('{"cut": [[1]]}', "cut: a list is not a list of pairs of nodes"),
        ('{"cut": [[1, 0]]}', "cut: 0 is not a node id (1 to 255)"),
        ('{"acceptors": {"2": 2}}', "acceptors.2: 2 is not a probability (0 to 1)"),
        ('{"links": []}', "links: a list is in no known field (known: cut, acceptors)"),
    ],
)
def test_a_wrong_file_of_faults_is_refused_in_one_line(tmp_path: Path, content: str, reason: str) -> None:
    file = tmp_path / "faults.json"
    file.write_text(content)
    with pytest.raises(ClusterError) as refusal:
        load_faults(file)
    assert str(refusal.value) == f"{file}: {reason}"


@pytest.mark.parametrize("count", [1, 3, 5, 255])
def test_any_odd_number_of_nodes_up_to_255_will_do(tmp_path: Path, count: int) -> None:
    nodes = [{"id": i, "host": "localhost", "port": 7000 + i} for i in range(1, count + 1)]
    assert len(read(tmp_path, document(nodes=nodes)).nodes) == count


@pytest.mark.parametrize(
    ("host", "known_as"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("node-1.Example.org", "node-1.example.org"),
        ("kv_1", "kv_1"),
        ("10-0-0-1.pool.net", "10-0-0-1.pool.net"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("::1", "::1"),
    ],
)
def test_a_host_is_a_name_or_an_address(tmp_path: Path, host: str, known_as: str) -> None:
    assert read(tmp_path, document_with(1, host=host)).nodes[1].host == known_as


def test_the_order_of_the_nodes_means_nothing(tmp_path: Path) -> None:
    straight = read(tmp_path, document())
    turned = read(tmp_path, document(nodes=document()["nodes"][::-1]))
    assert straight == turned
    assert straight.digest == turned.digest


def test_the_digest_is_that_of_the_membership_and_of_nothing_else(tmp_path: Path) -> None:
    digest = read(tmp_path, document()).digest
    assert len(digest) == 64
    settings = {"fsync": False, "revoke_after_s": 2, "data": "x", "acceptor_failures": {"probability": 1}}
    assert read(tmp_path, document(**settings)).digest == digest
    assert read(tmp_path, document_with(0, ssh_user="me", python="pypy")).digest == digest
    others = [
        document(name="other"),
        document_with(2, id=9),
        document_with(0, host="10.0.0.2"),
        document_with(0, port=7009),
        document(nodes=document()["nodes"][:1]),
        document(proposing="classic"),
        document(proposing="leader"),
    ]
    assert len({digest, *(read(tmp_path, other).digest for other in others)}) == 8
    assert read(tmp_path, document(proposing="own-logs")).digest == digest


def test_a_member_is_found_by_its_id(tmp_path: Path) -> None:
    cluster = read(tmp_path, document())
    assert cluster.member(2) == cluster.nodes[1]
    with pytest.raises(ClusterError, match=r"^nodes: none has the id 4$"):
        cluster.member(4)


def test_a_cluster_does_not_change(tmp_path: Path) -> None:
    cluster = read(tmp_path, document())
    with pytest.raises(FrozenInstanceError):
        cluster.name = "other"  # type: ignore[misc]


# -------------------------------------------------------------------------------------------- what is refused

TEXT = json.dumps(document())

WRONG: dict[str, tuple[Any, str]] = {
    # the file itself
    "byte-order mark": (b"\xef\xbb\xbf" + TEXT.encode(), "begins with a byte-order mark"),
    "UTF-16": (TEXT.encode("utf-16"), "not UTF-8"),
    "not UTF-8": (b'{"name": "\xff"}', "not UTF-8 (byte 10)"),
    "empty file": (b"", "line 1, column 1: "),
    "not JSON": (b'{"name":\n nope}', "line 2, column 2: "),
    "cut short": (TEXT.encode()[:-1], "line 1, column "),
    "something behind": (TEXT.encode() + b"{}", "Extra data"),
    "duplicate key": (b'{"name": "a", "name": "b"}', '"name" stands twice'),
    "duplicate key within": (
        TEXT.replace('"port": 7001', '"port": 1, "port": 1').encode(),
        '"port" stands twice',
    ),
    "NaN": (b'{"revoke_after_s": NaN}', "NaN is not JSON"),
    "endless nesting": (b"[" * 100_000, "not usable JSON"),
    "endless digits": (b"1" * 10_000, "not usable JSON"),
    "deep nesting": (b'{"nodes": 1, "name": ' + b"[" * 500 + b"]" * 500 + b"}", "name: a list is not a name"),
    # the whole
    "a list": ([], "the whole: a list is not an object"),
    "null": (None, "the whole: null is not an object"),
    "unknown field": (document(colour="red"), 'colour: "red" is in no known field (known: name, nodes, '),
    "field in two lines": (document(**{"a\nb": 1}), '"a\\nb": 1 is in no known field'),
    "no name": ({"nodes": document()["nodes"]}, "name: is missing"),
    "no nodes": ({"name": "demo"}, "nodes: is missing"),
    "name not text": (document(name=5), "name: 5 is not a name"),
    "name empty": (document(name=""), 'name: "" is not a name'),
    "name too long": (document(name="x" * 65), "... is not a name"),
    "name with newline": (document(name="demo\n"), 'name: "demo\\n" is not a name'),
    "name beyond ASCII": (document(name="d\u00e9mo"), "is not a name"),
    "data empty": (document(data=""), 'data: "" is not a text'),
    "data with NUL": (document(data="a\0"), "is not a text"),
    "data too long": (document(data="x" * 1025), "is not a text"),
    "data not text": (document(data=["x"]), "data: a list is not a text"),
    "fsync a number": (document(fsync=1), "fsync: 1 is neither true nor false"),
    "self_repair a text": (document(self_repair="no"), 'self_repair: "no" is neither true nor false'),
    "fsync a text": (document(fsync="false"), 'fsync: "false" is neither true nor false'),
    # the nodes
    "nodes an object": (document(nodes={}), "nodes: an object is not a list"),
    "zero nodes": (document(nodes=[]), "nodes: 0 is not an odd number"),
    "two nodes": (
        document(nodes=document()["nodes"][:2]),
        "nodes: 2 is not an odd number of nodes from 1 to 255",
    ),
    "257 nodes": (
        document(nodes=document()["nodes"] * 85 + document()["nodes"][:2]),
        "nodes: 257 is not an odd",
    ),
    "node a number": (document(nodes=[1]), "nodes[0]: 1 is not an object"),
    "unknown field of a node": (document_with(1, prot=7), "nodes[1].prot: 7 is in no known field"),
    "no id": (document(nodes=[{"host": "h", "port": 1}]), "nodes[0].id: is missing"),
    "no host": (document(nodes=[{"id": 1, "port": 1}]), "nodes[0].host: is missing"),
    "no port": (document(nodes=[{"id": 1, "host": "h"}]), "nodes[0].port: is missing"),
    "id 0": (document_with(0, id=0), "nodes[0].id: 0 is not a node id (1 to 255)"),
    "id 256": (document_with(0, id=256), "nodes[0].id: 256 is not a node id (1 to 255)"),
    "id true": (document_with(0, id=True), "nodes[0].id: true is not a node id"),
    "id 1.0": (document_with(0, id=1.0), "nodes[0].id: 1.0 is not a node id"),
    "id a text": (document_with(0, id="1"), 'nodes[0].id: "1" is not a node id'),
    "duplicate id": (document_with(2, id=1), "nodes[2].id: 1 is the id of nodes[0] already"),
    "port 0": (document_with(2, port=0), "nodes[2].port: 0 is not a port (1 to 65535)"),
    "port 70000": (document_with(2, port=70000), "nodes[2].port: 70000 is not a port (1 to 65535)"),
    "port a text": (document_with(2, port="7003"), 'nodes[2].port: "7003" is not a port'),
    "ssh port": (document_with(2, ssh_port=-1), "nodes[2].ssh_port: -1 is not a port"),
    "duplicate address": (
        document_with(2, port=7001),
        "nodes[2].port: 7001 at 10.0.0.1 is the port of nodes[0]",
    ),
    "duplicate, other spelling": (
        document(
            nodes=[
                {"id": 1, "host": "::1", "port": 7001},
                {"id": 2, "host": "0:0::1", "port": 7001},
                {"id": 3, "host": "::1", "port": 7003},
            ]
        ),
        "nodes[1].port: 7001 at ::1 is the port of nodes[0] already",
    ),
    "metrics port 0": (
        document_with(2, metrics_port=0),
        "nodes[2].metrics_port: 0 is not a port (1 to 65535)",
    ),
    "metrics port is its port": (
        document_with(2, metrics_port=7003),
        "nodes[2].metrics_port: 7003 at 10.0.0.1 is the port of nodes[2] already",
    ),
    "metrics port is another's port": (
        document_with(2, metrics_port=7001),
        "nodes[2].metrics_port: 7001 at 10.0.0.1 is the port of nodes[0] already",
    ),
    "port is another's metrics port": (
        document_with(0, metrics_port=7003),
        "nodes[2].port: 7003 at 10.0.0.1 is the port of nodes[0] already",
    ),
    "host a number": (document_with(0, host=10), "nodes[0].host: 10 is not a host name or IP address"),
    "host empty": (document_with(0, host=""), 'nodes[0].host: "" is not a host name'),
    "host with port": (document_with(0, host="h:7001"), 'nodes[0].host: "h:7001" is not a host name'),
    "host with space": (document_with(0, host="a b"), "is not a host name"),
    "host an option": (document_with(0, host="-oProxyCommand=x"), "is not a host name"),
    "host almost an address": (document_with(0, host="10.0.0.256"), "is not a host name"),
    "host a newline": (document_with(0, host="a\n"), "is not a host name"),
    "host too long": (document_with(0, host="a." * 126 + "ab"), "is not a host name"),
    "host everywhere": (
        document_with(0, host="0.0.0.0"),
        "is not an address at which the other nodes find this one",
    ),
    "host everywhere, IPv6": (document_with(0, host="::"), "is not an address at which"),
    "ssh user an option": (document_with(0, ssh_user="-x"), "nodes[0].ssh_user: "),
    "directory a number": (document_with(0, directory=1), "nodes[0].directory: 1 is not a text"),
    "ssh host a path": (document_with(0, ssh_host="a/b"), 'nodes[0].ssh_host: "a/b" is not a host name'),
    "python an option": (document_with(0, python="-c"), "nodes[0].python: \"-c\" begins with '-'"),
    "directory an option": (document_with(0, directory="-r"), "nodes[0].directory: \"-r\" begins with '-'"),
    "ssh a text": (document(ssh="root"), 'ssh: "root" is not an object'),
    "ssh unknown": (document(ssh={"username": "a"}), 'ssh.username: "a" is in no known field (known: user,'),
    "ssh port for all": (document(ssh={"port": 0}), "ssh.port: 0 is not a port (1 to 65535)"),
    "ssh key an option": (document(ssh={"key": "-oX"}), "ssh.key: \"-oX\" begins with '-'"),
    "ssh user for all": (document(ssh={"user": "a b"}), 'ssh.user: "a b" is not a name'),
    "ssh directory with newline": (document(ssh={"directory": "a\nb"}), "ssh.directory: "),
    "python null": (document_with(0, python=None), "nodes[0].python: null is not a text"),
    # the settings
    "proposing raft": (
        document(proposing="raft"),
        'proposing: "raft" is not a way to propose (known: ',
    ),
    "proposing a list": (document(proposing=["leader"]), "proposing: a list is not a way to propose"),
    "revoke_after_s true": (
        document(revoke_after_s=True),
        "revoke_after_s: true is not seconds (0.05 to 60)",
    ),
    "revoke_after_s 0": (document(revoke_after_s=0), "revoke_after_s: 0 is not seconds"),
    "revoke_after_s huge": (TEXT[:-1].encode() + b', "revoke_after_s": 1e999}', "is not seconds"),
    "request_timeout_s text": (document(request_timeout_s="10"), 'request_timeout_s: "10" is not seconds'),
    "request_timeout_s negative": (document(request_timeout_s=-1), "request_timeout_s: -1 is not seconds"),
    "failures a number": (document(acceptor_failures=0.1), "acceptor_failures: 0.1 is not an object"),
    "failures unknown": (document(acceptor_failures={"p": 1}), "acceptor_failures.p: 1 is in no known field"),
    "probability 2": (
        document(acceptor_failures={"probability": 2}),
        "acceptor_failures.probability: 2 is not a probability (0 to 1)",
    ),
    "silence negative": (
        document(acceptor_failures={"silence_s": -1, "every_s": 1}),
        "silence_s: -1 is not seconds",
    ),
    "always silent": (
        document(acceptor_failures={"silence_s": 2, "every_s": 2}),
        "acceptor_failures.every_s: 2.0 is not longer than silence_s (2.0)",
    ),
    "tls a text": (document(tls="yes"), 'tls: "yes" is not an object'),
    "tls in part": (document(tls={"certificate": "a", "key": "b"}), "tls.authority: is missing"),
    "tls roles": (
        document(tls={"certificate": "a", "key": "b", "authority": "c", "roles": {"x": "root"}}),
        'tls.roles.x: "root" is not a role (reader, writer, admin)',
    ),
    "secret a number": (document(secret=1), "secret: 1 is not a text"),
    "insecure a text": (document(insecure="no"), 'insecure: "no" is neither true nor false'),
    "tls unknown": (document(tls={"ca": "a"}), 'tls.ca: "a" is in no known field'),
}


@pytest.mark.parametrize(("content", "reason"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_said_in_one_short_line_that_names_file_and_field(
    tmp_path: Path, content: Any, reason: str
) -> None:
    with pytest.raises(ClusterError) as raised:
        read(tmp_path, content)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'cluster.json'}: ")
    assert reason in message
    assert message.isprintable()
    assert len(message) - len(str(tmp_path)) < 300


KINDS = (
    "byte-order mark", "UTF-16", "empty file", "not JSON", "cut short", "duplicate key", "NaN", "a list",
    "unknown field", "no name", "no nodes", "two nodes", "unknown field of a node", "no port", "id 0",
    "duplicate id", "port 70000", "duplicate address", "host with port", "host everywhere", "probability 2",
    "always silent", "tls in part", "ssh unknown", "fsync a text",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_program_refuses_a_wrong_file_with_exit_code_2_and_that_one_line(
    tmp_path: Path, kind: str
) -> None:
    """And makes nothing; for an id that the file lacks, and another cluster's file, see test_server.py."""
    content, reason = WRONG[kind]
    file = tmp_path / "cluster.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    programs: tuple[list[str | Path], ...] = (
        [sys.executable, SERVER, "--id", "1", "--init", "--data", tmp_path / "data"],
        [sys.executable, CLIENT, "put", "key", "value"],
        [SCRIPTS / "cluster.sh", "start", "--data", tmp_path / "data"],
        [SCRIPTS / "launch.sh", "up"],
    )
    environment = {**os.environ, "PYTHON": sys.executable}
    for number in (0, 1 + KINDS.index(kind) % 3):  # the server, and one of the others in turn
        done = finish([*programs[number], "--cluster", file], env=environment)
        assert done.returncode == 2 and not done.stdout
        lines = done.stderr.splitlines()
        assert len(lines) == 1 and f"{file}: " in lines[0] and reason in lines[0], done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["cluster.json"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"missing\.json: No such file or directory$"):
        load(tmp_path / "missing.json")
    with pytest.raises(ClusterError, match="Is a directory"):
        load(str(tmp_path))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
fields = [
    None,
    "id",
    "host",
    "port",
    "ssh_port",
    "python",
    "name",
    "nodes",
    "fsync",
    "tls",
    "secret",
    "insecure",
    "acceptor_failures",
]


@untimed
@given(st.sampled_from(fields), json_values)
def test_any_value_in_any_field_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, name: str | None, value: Any
) -> None:
    if name is None:
        content = value
    elif name in ("id", "host", "port", "ssh_port", "python"):
        content = document_with(0, **{name: value})
    else:
        content = document(**{name: value})
    try:
        cluster = read(tmp_path_factory.getbasetemp(), content)
    except ClusterError as error:
        assert str(error).isprintable()
    else:
        assert len(cluster.nodes) % 2 == 1
