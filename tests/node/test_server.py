"""server.py as a process: what it refuses to start with, what it serves, and to whom.

Real nodes on loopback. Kills and load are test_processes.py's.
"""

import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from thrift.protocol.TBinaryProtocol import TBinaryProtocol, TBinaryProtocolAccelerated
from thrift.transport.TSocket import TSocket
from thrift.transport.TTransport import TFramedTransport, TTransportException

from paxoskv.client import transactions as t
from paxoskv.client.operations import ClientError, WrongCluster
from paxoskv.client.sync import Client
from paxoskv.config import load
from paxoskv.kvstore import KeyValue
from paxoskv.kvstore.ttypes import Action, Command, Compare, RequestId, Session, Transaction
from paxoskv.wire.codec import Expired, Forgotten, NotDone, Refused
from paxoskv.wire.methods import METHODS, header
from paxoskv.wire.structs import (
    Accept,
    Fact,
    Identity,
    Outcome,
    ReadMode,
    Relation,
    Verb,
)
from tests.harness.certificates import Authority
from tests.harness.linearizability import check
from tests.harness.processes import (
    DEADLINE_S,
    PROJECT,
    SERVER,
    Load,
    Process,
    Processes,
    RealCluster,
    cluster_file,
    contended,
    eventually,
    final_reads,
    finish,
    passes,
)
from tests.harness.stranger import identity, raw, secret_of


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """Three nodes that all tests of this module may use, and none may harm."""
    with RealCluster(tmp_path_factory.mktemp("cluster"), nodes=3) as running:
        yield running


def refused(arguments: list[Any], directory: Path) -> str:
    """The server ends with exit code 2 and one line on stderr, besides its log's events. Returns the line."""
    done = finish([sys.executable, SERVER, *arguments], cwd=directory)
    lines = [line for line in done.stderr.splitlines() if " event=" not in line]
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(lines) == 1 and lines[0].startswith("server.py: "), done.stderr
    return lines[0]


# ------------------------------------------------------------------------------- what it does not start with


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "line 1"),
        ("{}", "name: is missing"),
        ('{"name": "x", "nodes": []}', "nodes: 0 is not an odd number"),
        ('{"name": "x", "nodes": [{"id": 1, "host": "127.0.0.1", "port": 70000}]}', "nodes[0].port: 70000"),
        ('{"name": "x", "nodes": [{"id": 1, "host": "h", "port": 7}], "fsnyc": true}', "fsnyc"),
        (None, "No such file"),
    ],
)
def test_a_bad_cluster_file_is_told_in_one_line_with_the_file_the_field_and_the_reason(
    tmp_path: Path, content: str | None, told: str
) -> None:
    path = tmp_path / "cluster.json"
    if content is not None:
        path.write_text(content)
    line = refused(["--id", 1, "--cluster", path, "--data", tmp_path, "--init"], tmp_path)
    assert str(path) in line and told in line
    assert not (tmp_path / "node-1").exists()


def test_an_unknown_id_is_told_with_the_file(tmp_path: Path) -> None:
    path = cluster_file(tmp_path, 3)
    line = refused(["--id", 9, "--cluster", path, "--data", tmp_path, "--init"], tmp_path)
    assert str(path) in line and "nodes" in line and "9" in line


def test_without_a_role_the_usage_is_shown(tmp_path: Path) -> None:
    done = finish([sys.executable, SERVER], cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("usage: server.py")


def test_a_node_without_a_data_directory_does_not_start_unless_told_to_make_one(tmp_path: Path) -> None:
    path = cluster_file(tmp_path, 1)
    line = refused(["--id", 1, "--cluster", path, "--data", tmp_path / "data"], tmp_path)
    assert str(tmp_path / "data" / "node-1") in line and "--init" in line
    assert not (tmp_path / "data").exists(), "a refused start leaves nothing behind"


def test_init_is_done_once_and_overwrites_nothing(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=1) as cluster, cluster.client() as client:
        client.put("key", "value")
        cluster.stop()
        before = (cluster.data / "node-1" / "identity.json").read_bytes()
        line = refused([*cluster.nodes[1].arguments, "--init"], tmp_path)
        assert str(cluster.data / "node-1") in line and "--init" in line
        assert (cluster.data / "node-1" / "identity.json").read_bytes() == before
        cluster.restart(1)
        assert client.get("key") == "value"


def test_a_port_in_use_is_told_with_the_address(tmp_path: Path) -> None:
    path = cluster_file(tmp_path, 1)
    member = load(path).member(1)
    with socket.create_server((member.host, member.port)):
        line = refused(["--id", 1, "--cluster", path, "--data", tmp_path / "data", "--init"], tmp_path)
    assert str(path) in line and "port of node 1" in line
    assert f"{member.host}:{member.port}" in line and "address already in use" in line


def test_a_wrong_host_at_the_first_start_leaves_nothing_that_must_be_removed(tmp_path: Path) -> None:
    path = cluster_file(tmp_path, 1, insecure=True)
    text = path.read_text()
    path.write_text(text.replace("127.0.0.1", "192.0.2.1"))
    line = refused(["--id", 1, "--cluster", path, "--data", tmp_path / "data", "--init"], tmp_path)
    assert str(path) in line and "192.0.2.1" in line
    assert not (tmp_path / "data").exists()
    path.write_text(text)
    with RealCluster(tmp_path, file=path) as cluster, cluster.client() as client:
        client.put("key", "value")


@pytest.mark.parametrize("role", [["--id", "1", "--init"], ["--standalone"]])
def test_too_few_open_files_are_told_at_the_start(tmp_path: Path, role: list[str]) -> None:
    server = [
        sys.executable,
        SERVER,
        *role,
        "--cluster",
        cluster_file(tmp_path, 5),
        "--data",
        tmp_path / "data",
    ]
    done = finish(["sh", "-c", 'ulimit -n 41; exec "$@"', "sh", *server], cwd=tmp_path)
    assert done.returncode == 2 and not (tmp_path / "data").exists()
    needed = 42 if "--standalone" in role else 50
    assert done.stderr.startswith(f"server.py: open files: 41 are allowed, {needed} are needed")
    assert len(done.stderr.splitlines()) == 1


def test_a_second_process_on_the_same_data_directory_is_refused(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=1) as cluster:
        line = refused(cluster.nodes[1].arguments, tmp_path)
        assert str(cluster.data / "node-1" / "lock") in line and "another process" in line
        status = cluster.status(1)
        assert status is not None and status.ready, "the first one goes on"


def test_data_of_another_cluster_membership_or_node_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with RealCluster(tmp_path, nodes=3, name="ours") as cluster:
        cluster.stop()
    document = json.loads(cluster.file.read_text())

    other = tmp_path / "other.json"
    other.write_text(json.dumps(document | {"name": "theirs"}))
    line = refused(["--id", 1, "--cluster", other, "--data", data], tmp_path)
    assert "node-1/identity.json" in line and "cluster" in line and "'ours'" in line and "'theirs'" in line

    moved = json.loads(cluster.file.read_text())
    moved["nodes"][2]["host"] = "127.0.0.2"
    other.write_text(json.dumps(moved))
    line = refused(["--id", 1, "--cluster", other, "--data", data], tmp_path)
    assert "node-1/identity.json" in line and "digest" in line

    (data / "node-1").rename(data / "node-1.old")
    (data / "node-2").rename(data / "node-1")
    line = refused(["--id", 1, "--cluster", cluster.file, "--data", data], tmp_path)
    assert "node-1/identity.json" in line and "node" in line and "2" in line


def test_a_damaged_journal_is_told_with_file_and_offset_and_nothing_is_served(tmp_path: Path) -> None:
    """A node alone: there is nobody to repair itself from."""
    with RealCluster(tmp_path, nodes=1, self_repair=True) as cluster:
        with cluster.client() as client:
            for number in range(20):
                client.put(f"key-{number}", "value")
        cluster.kill(1)
        segment = min((cluster.data / "node-1" / "journal").iterdir())
        content = bytearray(segment.read_bytes())
        content[200] ^= 1  # inside one of the first frames: valid ones stand behind it
        segment.write_bytes(content)
        line = refused(cluster.nodes[1].arguments, tmp_path)
        assert str(segment) in line and "offset" in line
        assert segment.read_bytes() == content and not list(cluster.data.glob("*.damaged-*"))


# ------------------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return Authority(tmp_path_factory.mktemp("tls")).cluster()


@pytest.mark.slow
def test_a_cluster_with_tls_serves_those_of_its_authority_and_nobody_else(
    tmp_path: Path, tls: dict[str, str]
) -> None:
    with RealCluster(tmp_path, nodes=3, tls=tls) as cluster:
        with cluster.client() as client:
            use_the_library(client)
            for node in cluster.ids:
                assert client.get("a", node=node) == "w"
        theirs = Authority(tmp_path / "theirs").cluster()
        stranger = tmp_path / "stranger.json"
        stranger.write_text(json.dumps(json.loads(cluster.file.read_text()) | {"tls": theirs}))
        with Client(load(stranger), timeout=5) as client, pytest.raises(ClientError):
            client.get("a")
        with plain(cluster, 1) as client, pytest.raises((TTransportException, OSError)):
            client.get("a", None)
        cluster.wait_until_stores_are_equal()
        assert cluster.stop() == {1: 0, 2: 0, 3: 0}


@pytest.mark.parametrize("field", ["certificate", "key", "authority"])
def test_a_tls_file_that_is_missing_or_something_else_is_told(
    tmp_path: Path, tls: dict[str, str], field: str
) -> None:
    missing = str(tmp_path / "missing.pem")
    path = cluster_file(tmp_path, 1, tls=tls | {field: missing})
    arguments = ["--id", 1, "--cluster", path, "--data", tmp_path / "data", "--init"]
    line = refused(arguments, tmp_path)
    assert f"{path}: tls.{field}: {missing}: No such file" in line

    Path(missing).write_text("no certificate")
    line = refused(arguments, tmp_path)
    assert f"{path}: tls: " in line
    assert not (tmp_path / "data").exists()


# ------------------------------------------------------------------------------------------------ standalone


@contextmanager
def standalone(directory: Path) -> Iterator[tuple[Process, str]]:
    """The single server, and where it listens."""
    member = load(cluster_file(directory, 1)).nodes[0]
    address = f"{member.host}:{member.port}"
    arguments = ["--standalone", "--listen", address, "--data", directory / "data"]
    with Processes() as processes:
        server = Process("standalone", arguments, directory / "standalone.log")
        processes.all.append(server)
        server.start()
        wait_for(server, address)
        yield server, address


def wait_for(server: Process, address: str) -> None:
    def ready() -> bool:
        assert server.running, server.log(25)
        with Client(address, timeout=5) as client:
            try:
                return bool(client.status().ready)
            except ClientError:
                return False

    eventually(ready, f"{server.name} answers")


def test_the_standalone_server_serves_all_operations_and_stops_at_sigterm(tmp_path: Path) -> None:
    with standalone(tmp_path) as (server, address):
        with Client(address) as client:
            use_the_library(client)
            status = client.status(digest=True)
            assert (status.node, status.logs, status.keys) == (0, [], 2)
        assert server.stop() == 0
        assert server.log().splitlines()[-1].endswith("event=stopped")


def use_the_library(client: Client) -> None:
    """Every operation once; two keys remain."""
    client.put("a", "1")
    assert client.get("a") == client.get("a", "log") == "1"
    assert client.delete("a") is True and client.delete("a") is False
    assert client.get("a") is None
    assert client.compare_and_set("a", None, "x") == (True, "x")
    assert client.compare_and_set("a", "y", "z") == (False, "x")
    assert client.increment("n", 5) == 5 and client.increment("n", -7) == -2
    done = client.transaction([t.equals("a", "x"), t.less("n", 0)], [t.put("a", "x"), t.get("n")])
    assert done.held and [answer.value for answer in done.answers] == [None, "-2"]
    assert not client.transaction([t.exists("none")], [], [t.delete("none")]).held
    results = client.execute([Command(Verb.GET, "a"), Command(Verb.PUT, "a", "w"), Command(Verb.GET, "a")])
    assert [result.value for result in results] == ["x", None, "w"]
    assert [(item.key, item.value) for item in client.scan()] == [("a", "w"), ("n", "-2")]


@pytest.mark.slow
def test_the_standalone_server_killed_under_load_has_every_acknowledged_write(tmp_path: Path) -> None:
    with standalone(tmp_path) as (server, address):
        csv = contended(tmp_path / "load.csv", 6000, 40, seed=1)
        with Load(["--single", address], csv, "--in-flight", "8") as run, Client(address) as client:
            eventually(lambda: not run.running or client.status().clock > 300, "300 commands applied")
            server.kill()
            server.start()
            run.expect_success()
        with Client(address, timeout=90) as client:
            store = {item.key: item.value for item in client.scan()}
        operations = run.operations()
        violation = check([*operations, *final_reads(store, operations)])
        assert violation is None, str(violation)
        server.kill()
        server.start()
        wait_for(server, address)
        with Client(address) as client:
            assert {item.key: item.value for item in client.scan()} == store


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1:", ":x", "127.0.0.1:99999"])
def test_a_bad_address_to_listen_at_is_told_in_one_line(tmp_path: Path, listen: str) -> None:
    line = refused(["--standalone", "--listen", listen, "--data", tmp_path / "data"], tmp_path)
    assert "--listen" in line and listen in line


# ---------------------------------------------------------------------------------------------- plain Thrift


@contextmanager
def plain(cluster: RealCluster, node: int, protocol: Any = TBinaryProtocol) -> Iterator[Any]:
    """The generated client, as anybody would use it who knows Thrift and not this project."""
    member = cluster.settings.member(node)
    transport = TFramedTransport(TSocket(member.host, member.port))
    transport.open()
    try:
        yield KeyValue.Client(protocol(transport))
    finally:
        transport.close()


PROTOCOLS = [TBinaryProtocol, TBinaryProtocolAccelerated]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_plain_generated_thrift_client_can_do_everything(cluster: RealCluster, protocol: Any) -> None:
    key, number = f"key-{protocol.__name__}", f"number-{protocol.__name__}"
    with plain(cluster, 2, protocol) as client:
        assert client.put(key, "value", None).outcome == Outcome.OK
        for mode in (None, ReadMode.LINEARIZABLE, ReadMode.LOG, ReadMode.LOCAL):
            assert client.get(key, mode).value == "value"
        assert client.get(key, ReadMode.LOCAL).timestamp > 0
        mismatch = client.compare_and_set(key, "other", "new", None)
        assert (mismatch.outcome, mismatch.value) == (Outcome.MISMATCH, "value")
        assert client.compare_and_set(key, "value", "new", None).outcome == Outcome.OK
        assert client.compare_and_set(key, None, "newer", None).value == "new"
        assert client.increment(number, 2**40, None).value == str(2**40)
        assert client.increment(key, 1, None).outcome == Outcome.NOT_A_NUMBER
        batch = [Command(Verb.PUT, key, "batched"), Command(Verb.GET, key), Command(Verb.GET, "none")]
        assert [result.outcome for result in client.execute(batch)] == [
            Outcome.OK,
            Outcome.OK,
            Outcome.NOT_FOUND,
        ]
        changes = Transaction([Compare(key, Relation.EQUALS, "batched")], [Action(Verb.DELETE, key)], [])
        done = client.transaction(changes, None)
        assert done.outcome == Outcome.OK and done.transacted.answers[0].outcome == Outcome.OK
        assert client.transaction(changes, None).outcome == Outcome.MISMATCH
        assert client.execute([Command(Verb.TRANSACTION, transaction=changes)])[0].outcome == Outcome.MISMATCH
        with pytest.raises(NotDone, match="only nodes say UPGRADE"):
            client.execute([Command(Verb.UPGRADE, delta=1)])
        assert client.execute([]) == []
        session = client.open_session()
        assert session.owner == 2 and session.timestamp > 0
        page = client.scan(f"number-{protocol.__name__}", None, None, None)
        assert [(item.key, item.value) for item in page.items] == [(number, str(2**40))]
        assert client.delete(number, None).outcome == Outcome.OK
        assert client.delete(number, None).outcome == Outcome.NOT_FOUND
        assert client.get(number, None).outcome == Outcome.NOT_FOUND
        status = client.status(True)
        assert status.node == 2 and status.cluster == "test" and status.ready
        assert [log.log for log in status.logs] == [1, 2, 3]
        assert len(status.digest) == 64 and status.connected == [1, 3]
        assert client.status(False).digest is None


def test_what_one_node_acknowledged_every_other_node_reads(cluster: RealCluster) -> None:
    with plain(cluster, 1) as one, plain(cluster, 2) as two, plain(cluster, 3) as three:
        for number in range(20):
            one.put("shared", str(number), None)
            assert two.get("shared", None).value == str(number)
            assert three.get("shared", ReadMode.LOG).value == str(number)


def test_a_scan_goes_on_where_a_page_ended(cluster: RealCluster) -> None:
    with plain(cluster, 1) as client:
        keys = [f"page-{number:02}" for number in range(7)]
        client.execute([Command(Verb.PUT, key, "x") for key in keys])
        first = client.scan("page-", None, 4, None)
        assert [item.key for item in first.items] == keys[:4] and first.more
        rest = client.scan("page-", first.items[-1].key, 4, None)
        assert [item.key for item in rest.items] == keys[4:] and not rest.more


def test_a_repeat_with_the_same_request_id_at_another_node_is_applied_once(cluster: RealCluster) -> None:
    with plain(cluster, 1) as one, plain(cluster, 3) as three:
        session = one.open_session()
        request = RequestId(session, 1, 1)
        assert one.increment("once", 10, request).value == "10"
        assert three.increment("once", 10, request).value == "10", "the first attempt's result"
        assert one.increment("once", 10, request).value == "10"
        assert three.get("once", None).value == "10"
        assert three.increment("once", 10, RequestId(session, 2, 2)).value == "20"
        with pytest.raises(Forgotten):
            one.increment("once", 10, request)
        assert one.get("once", None).value == "20"


def test_keys_that_are_not_utf8_are_refused_by_name_and_nothing_is_written(cluster: RealCluster) -> None:
    member, put = cluster.settings.member(1), METHODS[b"put"]
    mark = "not-utf8-"
    with socket.create_connection((member.host, member.port)) as connection, plain(cluster, 1) as client:
        for sequence, wrong in enumerate((b"\xff", b"\xfe")):  # as Thrift reads them they are one key
            frame = put.call(sequence, mark + "?", "value", None)
            connection.sendall(frame.replace(mark.encode() + b"?", mark.encode() + wrong))
            answer = connection.recv(4096)
            kind, _, echoed, offset = header(answer, 4)
            with pytest.raises(NotDone) as told:
                put.answer(kind, answer, offset)
            assert (echoed, told.value) == (sequence, NotDone("key: not UTF-8", True))
        assert client.scan(mark, None, None, None).items == []
        assert client.put(mark + "\ufffd", "\ufffd", None).outcome == Outcome.OK  # this one was meant
        assert [item.key for item in client.scan(mark, None, None, None).items] == [mark + "\ufffd"]


def test_a_node_says_which_one_it_is_and_of_which_cluster(cluster: RealCluster) -> None:
    with plain(cluster, 2) as client:
        found = client.membership()
    assert (found.cluster, found.digest, found.node) == ("test", cluster.settings.digest, 2)


def test_a_client_of_another_cluster_writes_nothing_into_this_one(
    cluster: RealCluster, tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(cluster.file.read_text()) | {"name": "other"}))
    told = finish([sys.executable, PROJECT / "client.py", "put", "stray", "value", "--cluster", other])
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.count("\n") == 1 and "a node of cluster 'test', not of 'other'" in told.stderr
    told = finish([sys.executable, PROJECT / "client.py", "status", "--cluster", other])
    assert told.returncode == 2
    assert told.stdout.count("a node of cluster 'test', not of 'other'") == 3
    with cluster.client() as client:
        assert client.get("stray") is None


def test_an_unknown_session_is_expired_and_nothing_is_applied(cluster: RealCluster) -> None:
    with plain(cluster, 1) as client:
        with pytest.raises(Expired):
            client.put("expired", "value", RequestId(Session(1, 1, 99), 1, 1))
        assert client.get("expired", None).outcome == Outcome.NOT_FOUND


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_command_that_makes_no_sense_is_not_done_for_good(cluster: RealCluster, protocol: Any) -> None:
    session = Session(1, 1, 0)
    with plain(cluster, 1, protocol) as client:
        bad = [
            lambda: client.put("", "value", None),
            lambda: client.put("key", None, None),
            lambda: client.put("k" * 4097, "value", None),
            lambda: client.put("key", "v" * (512 * 1024 + 1), None),
            lambda: client.put("key", "value", RequestId(session, 0, 0)),
            lambda: client.put("key", "value", RequestId(session, 2000, 1)),
            lambda: client.get("", None),
            lambda: client.get("key", 77),
            lambda: client.get("", ReadMode.LOG),
            lambda: client.delete("", None),
            lambda: client.increment("key", None, None),
            lambda: client.execute([Command(Verb.PUT, "key", "v"), Command(99, "key")]),
            lambda: client.execute([Command(Verb.GET, "k")] * 10_001),
            lambda: client.execute(None),
            lambda: client.scan("", None, 0, None),
            lambda: client.scan("", None, 1001, None),
            lambda: client.scan("", None, None, 77),
        ]
        for number, call in enumerate(bad):
            with pytest.raises(NotDone) as caught:
                call()
            assert caught.value.permanent, f"call {number}: {caught.value.reason}"
            assert "\n" not in caught.value.reason
        assert client.get("key", None).outcome == Outcome.NOT_FOUND, "the connection is still good"


def test_the_largest_key_and_value_are_taken(cluster: RealCluster) -> None:
    with plain(cluster, 1) as one, plain(cluster, 2) as two:
        key, value = "k" * 4096, "ü" * (256 * 1024)
        assert one.put(key, value, None).outcome == Outcome.OK
        assert two.get(key, None).value == value
        one.delete(key, None)


def test_a_frame_over_the_limit_ends_its_connection_and_no_other(cluster: RealCluster) -> None:
    with plain(cluster, 1) as good, plain(cluster, 1) as bad:
        good.put("limit", "before", None)
        with pytest.raises((TTransportException, OSError)):
            bad.put("limit", "v" * (1 << 20), None)
        assert good.get("limit", None).value == "before"


# ----------------------------------------------------------------------------------------------- among nodes


def test_a_message_between_nodes_before_hello_ends_the_connection(cluster: RealCluster) -> None:
    status = cluster.status(1)
    assert status is not None
    promised = status.logs[1].promised
    takeover = Accept(2, promised + 256 * 100, 0, [], True, Fact(2, 0, 0, 0), [])
    with raw(cluster, 1) as connection, pytest.raises(EOFError):
        connection.call(b"accept", takeover)
    status = cluster.status(1)
    assert status is not None and status.logs[1].promised == promised, "it had no effect"


def test_hello_tells_strangers_what_differs_and_refuses_them(cluster: RealCluster) -> None:
    us = identity(cluster, 2)
    for stranger, told in (
        (Identity("other", us.digest, 2, 1, 0), "cluster: 'other'"),
        (Identity(us.cluster, "0" * 64, 2, 1, 0), "digest: "),
        (Identity(us.cluster, us.digest, 9, 1, 0), "node: 9"),
        (Identity(us.cluster, us.digest, 1, 1, 0), "node: 1"),
    ):
        with raw(cluster, 1) as connection, pytest.raises(Refused) as caught:
            connection.greet(stranger, secret_of(cluster))
        assert told in caught.value.reason
        assert "event=stranger" in cluster.nodes[1].log()


def test_hello_answers_a_peer_with_who_it_called(cluster: RealCluster) -> None:
    with raw(cluster, 1) as connection:
        answer = connection.greet(identity(cluster, 2), secret_of(cluster))
        assert (answer.node, answer.cluster) == (1, cluster.settings.name)


def test_a_list_of_too_many_commands_is_refused_unread(cluster: RealCluster) -> None:
    """Decoding a million commands would take so long that the others revoked the node."""
    call = bytearray(METHODS[b"execute"].call(7, [Command(Verb.GET, "k")]))
    at = call.index(b"\x0f\0\1\x0c") + 4
    call[at : at + 4] = (10_001).to_bytes(4, "big")  # which are not there: whoever looked would hang up
    with raw(cluster, 1) as connection:
        connection.socket.sendall(call)
        frame = connection._exactly(int.from_bytes(connection._exactly(4)))
        kind, _, _, offset = header(frame)
        with pytest.raises(NotDone, match="at most 10000"):
            METHODS[b"execute"].answer(kind, frame, offset)


def test_an_answer_that_no_node_asked_for_ends_its_connection_only(tmp_path: Path) -> None:
    """Something else listens where node 3 did, and answers as if it were asked what clients ask."""
    with RealCluster(tmp_path, nodes=3) as cluster:
        cluster.kill(3)
        member = cluster.settings.member(3)
        with socket.create_server((member.host, member.port)) as listener:
            listener.settimeout(60)
            for _ in range(4):
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(60)
                    connection.sendall(METHODS[b"put"].fail(1, NotDone("nobody asked", False)))
                    with contextlib.suppress(ConnectionResetError):
                        while connection.recv(65536):
                            pass
        assert cluster.nodes[1].running and cluster.nodes[2].running
        with cluster.client() as client:
            client.put("unasked", "survived")


def test_nodes_whose_cluster_files_differ_refuse_each_other_and_say_why(tmp_path: Path) -> None:
    """Three nodes; the third one's file gives another port to the second, so it is not of their cluster."""
    path = cluster_file(tmp_path, 3)
    document = json.loads(path.read_text())
    document["nodes"][1]["port"] = load(cluster_file(tmp_path / "spare", 1)).nodes[0].port
    (tmp_path / "other.json").write_text(json.dumps(document))
    with Processes() as processes:
        for node in (1, 2, 3):
            file = tmp_path / "other.json" if node == 3 else path
            arguments = ["--id", str(node), "--cluster", file, "--data", tmp_path / "data", "--init"]
            processes.all.append(Process(f"node {node}", arguments, tmp_path / f"{node}.log"))
            processes.all[-1].start()
        one, _, three = processes.all
        for process in (one, three):
            for event in ("event=stranger", "event=peer-refused"):
                eventually(
                    lambda process=process, event=event: any(
                        event in line and "digest: " in line and "cluster.json differs" in line
                        for line in process.log().splitlines()
                    ),
                    f"{process.name} says why",
                )
        with Client(load(path), timeout=90) as client:
            client.put("key", "value")  # the two that agree are a quorum
            assert client.status(1).connected == [2]
            with pytest.raises(WrongCluster, match="other nodes or addresses"):
                client.status(3)
        with Client(load(tmp_path / "other.json"), timeout=90) as client:
            assert client.status(3).connected == []
            assert client.get("key", "local", node=3) is None


@pytest.mark.slow
def test_an_idle_node_is_idle(cluster: RealCluster) -> None:
    """Less than 1 % of a core was promised; that depends on the machine, and is only printed.

    The test asserts how often the node wakes up: 20 ticks a second, and gossip 10 times a second to each peer
    and from each.
    """

    def used(pid: int) -> tuple[float, int]:
        """Seconds of processor time, and how often it went to sleep."""
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        sleeps = next(int(line.split()[1]) for line in status if line.startswith("voluntary"))
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), sleeps

    pids = {node: process.pid for node, process in cluster.nodes.items()}
    before, began = {node: used(pid) for node, pid in pids.items()}, time.monotonic()
    passes(5)
    seconds = time.monotonic() - began
    after = {node: used(pid) for node, pid in pids.items()}
    shares = {node: round(100 * (after[node][0] - before[node][0]) / seconds, 2) for node in pids}
    rates = {node: round((after[node][1] - before[node][1]) / seconds) for node in pids}
    print(f"idle over {seconds:.1f} s: % of a core {shares}, sleeps per second {rates}")
    assert max(rates.values()) < 200


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_silent_connections_keep_out_nobody_and_leave_the_journal_its_files(tmp_path: Path) -> None:
    few = ("sh", "-c", 'ulimit -n 300; exec "$@"', "sh")
    with RealCluster(tmp_path, nodes=3, where=lambda node: few if node == 1 else ()) as cluster:
        with contextlib.ExitStack() as stack, cluster.client() as client:
            member = cluster.settings.member(1)
            assert client.get("key", node=1) is None
            for _ in range(400):
                stack.enter_context(socket.create_connection((member.host, member.port)))
            busy = client._open[0]
            assert client.get("key", node=1) is None
            assert client._open[0] is busy, "who says something is not hung up"
            client.put("key", "value")
            assert client.checkpoint(1) == 1, "which needs files"
            status = cluster.status(1)
            assert status is not None and status.ready and status.connected == [2, 3]
            eventually(lambda: "event=too-many-connections" in cluster.nodes[1].log(), "it is logged")
        assert cluster.nodes[1].running


def test_where_all_connections_are_in_use_the_next_one_still_gets_its_answer(tmp_path: Path) -> None:
    few = ("sh", "-c", 'ulimit -n 300; exec "$@"', "sh")
    with RealCluster(tmp_path, nodes=1, where=lambda node: few) as cluster, contextlib.ExitStack() as stack:
        member = cluster.settings.member(1)
        for _ in range(170):  # more than the 150 that such a node takes
            connection = stack.enter_context(socket.create_connection((member.host, member.port)))
            connection.settimeout(DEADLINE_S)
            connection.sendall(METHODS[b"status"].call(1, False))
            assert connection.recv(4), "hung up instead of answered"


def test_silent_handshakes_keep_out_nobody_and_leave_the_journal_its_files(tmp_path: Path) -> None:
    few = ("sh", "-c", 'ulimit -n 256; exec "$@"', "sh")
    tls = Authority(tmp_path / "certificates").cluster()
    with RealCluster(tmp_path, nodes=3, tls=tls, where=lambda node: few if node == 1 else ()) as cluster:
        member = cluster.settings.member(1)
        with contextlib.ExitStack() as stack, cluster.client() as client:
            for _ in range(500):
                stack.enter_context(socket.create_connection((member.host, member.port)))
            assert client.get("key", node=1) is None
            client.put("key", "value")
            assert client.checkpoint(1) == 1, "which needs files"
            status = cluster.status(1)
            assert status is not None and status.ready and status.connected == [2, 3]
            files = len(list(Path(f"/proc/{cluster.nodes[1].pid}/fd").iterdir()))
            assert files < 100, "the oldest handshakes are given up"


ONE_WAY = """
import os, sys
sys.path.insert(0, {project!r})
from paxoskv.node import main
from paxoskv.wire import connection as rpc
connect = rpc.Link.__init__
def elsewhere(self, host, port, *rest, **more):
    connect(self, host, 1 if str(port) == os.environ.get("CUT_OFF") else port, *rest, **more)
rpc.Link.__init__ = elsewhere
sys.exit(main.main())
"""


def test_a_node_that_nobody_can_connect_to_serves_as_long_as_it_can_connect_to_others(tmp_path: Path) -> None:
    program = tmp_path / "one_way.py"
    program.write_text(ONE_WAY.format(project=str(PROJECT)))
    file = cluster_file(tmp_path, 3)
    port = load(file).member(1).port
    cut = ("env", f"CUT_OFF={port}")
    with RealCluster(
        tmp_path, file=file, program=program, where=lambda node: cut if node > 1 else ()
    ) as cluster:
        passes(5)  # in which a node that hears of nobody gives up
        status = cluster.status(1)
        assert status is not None and (status.state, status.connected) == ("serving", [2, 3])
        with Client(f"127.0.0.1:{port}", timeout=30) as client:
            client.put("key", "value")
            assert client.get("key") == "value"
        assert "event=majority-lost" not in cluster.nodes[1].log()


def test_a_large_block_that_was_freed_is_not_kept() -> None:
    program = """
import sys
from paxoskv.node import main
if sys.argv[1] == "yes":
    main.give_large_blocks_back()
for _ in range(2):
    block = bytes(16 * main.LARGE_BLOCK)  # the second is where the first was, if glibc has kept that
    at = id(block)
    mapped = [line.split() for line in open("/proc/self/maps")]
    del block
ranges = [[int(end, 16) for end in line[0].split("-")] for line in mapped if line[-1] == "[heap]"]
print(any(start <= at < end for start, end in ranges))
"""
    kept = [
        subprocess.run(
            [sys.executable, "-c", program, given], cwd=PROJECT, check=True, capture_output=True, text=True
        ).stdout.strip()
        for given in ("no", "yes")
    ]
    assert kept == ["True", "False"]


def test_garbage_on_the_port_ends_its_own_connection_only(cluster: RealCluster) -> None:
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x04abcd"):
        with raw(cluster, 2) as connection:
            connection.socket.sendall(garbage)
            with pytest.raises(EOFError):
                connection._exactly(1)
    with plain(cluster, 2) as client:
        assert client.put("garbage", "survived", None).outcome == Outcome.OK
