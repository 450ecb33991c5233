"""Who is a node, and what a client may do: by certificate, by the shared secret, and what is refused."""

import json
import os
import re
import shutil
import ssl
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from paxoskv.client.operations import NotDoneError
from paxoskv.client.sync import Client
from paxoskv.config import Cluster, Tls, load
from paxoskv.node.eventlog import Usage
from paxoskv.node.identity import NOTHING, OTHER, Certificates, Trust, is_loopback, read_secret
from paxoskv.wire.codec import Refused
from paxoskv.wire.connection import tls_contexts
from paxoskv.wire.structs import Accept, Entry, Fact, Identity, Learn, Position, Prepare, Rejoin
from tests.harness.certificates import Authority
from tests.harness.ports import free_port
from tests.harness.processes import SERVER, RealCluster, cluster_file, eventually, finish
from tests.harness.stranger import identity, raw, secret_of

MOST = (1 << 63) - 1  # of 64 bits
SECRET = b"known to all nodes of the cluster"
WHO = Identity("test", "d" * 64, 1, 1, 5 << 20)
ALL = ("reader", "writer", "admin")


# ------------------------------------------------------------------------------------------------- the secret


class Ends:
    """Node 1 calls node 2: what either end believes of the other after hello."""

    def __init__(self, first: bytes | None, second: bytes | None, insecure: bool = False) -> None:
        self.caller = Trust("test", 1, first, insecure=insecure)
        self.called = Trust("test", 2, second, insecure=insecure)
        self.link: Any = object()
        self.connection: Any = object()
        self.hellos: list[Identity] = []

    def meet(self) -> tuple[str | None, str | None]:
        """Why the caller refuses the one called, and the other way round."""
        hello = self.caller.introduce(self.link, WHO)
        for _ in range(2):
            self.hellos.append(hello)
            challenge = self.called.challenge(self.connection, hello, WHO._replace(node=2))
            answer = challenge or WHO._replace(node=2)
            if challenge is None:
                reason = self.called.refuses_caller(self.connection, hello)
                if reason is not None:
                    return None, reason
            response = self.caller.respond(self.link, answer, WHO)
            if not isinstance(response, Identity):
                return response, None
            hello = response
        raise AssertionError("hello goes on and on")


def test_two_nodes_with_the_same_secret_believe_each_other() -> None:
    assert Ends(SECRET, SECRET).meet() == (None, None)
    assert Ends(None, None).meet() == (None, None)


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        (SECRET, b"another one of them", (OTHER, None)),
        (SECRET, None, (NOTHING, None)),
        (None, SECRET, (None, NOTHING)),
    ],
)
def test_a_node_with_another_secret_or_none_is_refused(
    first: bytes | None, second: bytes | None, refused: tuple[str | None, str | None]
) -> None:
    assert Ends(first, second).meet() == refused


def test_where_all_are_insecure_a_node_without_the_secret_is_believed() -> None:
    """So a running cluster can be given a secret, one node after the other."""
    for first, second in ((SECRET, None), (None, SECRET), (SECRET, SECRET)):
        assert Ends(first, second, insecure=True).meet() == (None, None)


def test_a_proof_is_of_no_use_on_another_connection_for_another_node_or_twice() -> None:
    ends = Ends(SECRET, SECRET)
    ends.meet()
    proof = ends.hellos[-1]
    refuses = ends.called.refuses_caller
    assert refuses(ends.connection, proof) == OTHER, "the nonce of this connection is used up"
    other: Any = object()
    assert ends.called.challenge(other, ends.hellos[0], WHO._replace(node=2)) is not None
    assert refuses(other, proof) == OTHER, "this connection has another nonce"

    for forged in ({"node": 3}, {"incarnation": 2}, {"life": 6 << 20}, {"proof": proof.proof[::-1]}):  # type: ignore[index]
        fresh = Ends(SECRET, SECRET)
        hello = fresh.caller.introduce(fresh.link, WHO)
        challenge = fresh.called.challenge(fresh.connection, hello, WHO._replace(node=2))
        assert challenge is not None
        response = fresh.caller.respond(fresh.link, challenge, WHO)
        assert isinstance(response, Identity)
        assert fresh.called.refuses_caller(fresh.connection, response._replace(**forged)) == OTHER


def test_what_a_node_proves_when_it_is_called_proves_nothing_when_it_is_sent_back() -> None:
    """A stranger calls a node to have a proof made, and uses it as its own."""
    trust = Trust("test", 2, SECRET)
    link: Any = object()
    mirror: Any = object()
    hello = trust.introduce(link, WHO._replace(node=2))
    challenge = trust.challenge(mirror, hello._replace(node=1), WHO._replace(node=2))
    assert challenge is not None
    reflected = challenge._replace(node=1)
    assert trust.respond(link, reflected, WHO._replace(node=2)) == OTHER
    assert trust.refuses_caller(mirror, hello._replace(node=1, proof=challenge.proof)) == OTHER


def test_a_nonce_that_is_none_is_not_answered_with_a_proof() -> None:
    trust = Trust("test", 2, SECRET)
    for nonce in (None, b"", b"x" * 15, b"x" * (1 << 20)):
        assert trust.challenge(object(), WHO._replace(nonce=nonce), WHO) is None  # type: ignore[arg-type]
    assert trust.nonces == {}


def test_the_secret_is_made_once_for_all_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    with pytest.raises(Usage, match="there is no such file"):
        read_secret(path, make=False)
    secret = read_secret(path, make=True)
    assert len(secret) >= 32 and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_secret(path, make=True) == read_secret(path, make=False) == secret
    assert list(tmp_path.iterdir()) == [path]
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(Usage, match="others may use it"):
            read_secret(path, make=False)
    path.chmod(0o600)
    path.write_text("short\n")
    with pytest.raises(Usage, match="at least 16"):
        read_secret(path, make=False)


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("10.0.0.1", False)]
)
def test_what_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def beyond(directory: Path, **settings: Any) -> Any:
    """Start a node that listens beyond loopback, at an address that this machine does not have."""
    file = cluster_file(directory, 1, insecure=True)
    text = file.read_text().replace("127.0.0.1", "192.0.2.1").replace('"insecure": true', '"fsync": true')
    for field, value in settings.items():
        text = text.replace('"fsync": true', f'"fsync": true, "{field}": {value}')
    file.write_text(text)
    return finish([sys.executable, SERVER, "--id", 1, "--cluster", file, "--data", directory, "--init"])


def test_a_node_that_listens_beyond_loopback_needs_a_secret_or_tls_or_is_told_to_be_insecure(
    tmp_path: Path,
) -> None:
    done = beyond(tmp_path)
    assert done.returncode == 2 and '"insecure": true' in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "node-1").exists(), "a refused start leaves nothing behind"
    done = beyond(tmp_path, insecure="true")
    assert "event=insecure" in done.stderr and "cannot assign requested address" in done.stderr
    shutil.rmtree(tmp_path / "node-1", ignore_errors=True)
    done = beyond(tmp_path, secret='"shared"')
    assert done.returncode == 2 and "secret: " in done.stderr and "there is no such file" in done.stderr
    (tmp_path / "shared").write_bytes(SECRET)
    (tmp_path / "shared").chmod(0o600)
    assert "cannot assign requested address" in beyond(tmp_path, secret='"shared"').stderr


def test_strangers_without_the_secret_get_nowhere(tmp_path: Path) -> None:
    """They know what status() tells everybody, and send what would end a node, or the store, for ever."""
    with RealCluster(tmp_path, nodes=3) as cluster:
        secret = secret_of(cluster)
        assert secret is not None and stat.S_IMODE(os.stat(cluster.settings.secret or "").st_mode) == 0o600
        three = identity(cluster, 3)
        entry = Accept(3, 1 << 12, 0, [Entry(1, b"x")], True, Fact(3, 10**9, 1 << 12, 1 << 50), [])
        for claim in (three._replace(incarnation=1 << 62), three._replace(incarnation=2), three):
            with raw(cluster, 1) as stranger:
                with pytest.raises(Refused, match="proves nothing"):
                    stranger.greet(claim, None)
                with pytest.raises(EOFError):
                    stranger.call(b"accept", entry)
            with raw(cluster, 1) as stranger, pytest.raises(Refused, match="another one"):
                stranger.greet(claim, b"guessed it, surely")
        for name, message in (
            (b"rejoin", Rejoin(3, 5)), (b"prepare", Prepare(3, 1 << 40, 0, 0)),
            (b"learn", Learn(1 << 50, [Fact(1, 10**9, 257, 1 << 50)], [0, 0, 0], Position(0, 0), 0)),
        ):  # fmt: skip
            with raw(cluster, 1) as stranger, pytest.raises(EOFError):
                stranger.call(name, message)
                stranger.call(b"status", False)  # learn is not answered
        status = cluster.status(1)
        assert status is not None and any("secret: it" in problem for problem in status.problems)
        with raw(cluster, 1) as friend:
            assert friend.greet(three, secret).node == 1
        with cluster.client() as client:
            client.put("key", "value")
        cluster.kill(3)
        cluster.restart(3)
        assert cluster.wait_until_stores_are_equal() == {"key": "value"}


def test_senseless_claims_harm_nobody_even_where_strangers_may_call_themselves_nodes(tmp_path: Path) -> None:
    """Nothing of it becomes durable; the store takes writes, and node 3 comes back, also without its disk."""
    with RealCluster(tmp_path, nodes=3, insecure=True) as cluster:
        with cluster.client() as client:
            client.put("before", "1")
        ballots = {log: cluster_ballot(cluster, log) for log in (1, 2, 3)}
        three = identity(cluster, 3)
        far = 1 << 56
        for to in (1, 2):
            for incarnation in (1 << 62, MOST):
                claim = three._replace(incarnation=incarnation)
                with raw(cluster, to) as stranger, pytest.raises(Refused, match="implausibly high"):
                    stranger.greet(claim, None)
            with raw(cluster, to) as stranger:
                assert stranger.greet(three, None).node == to
                for _ in range(128):
                    stranger.call(b"learn", Learn(far, [], [0, 0, 0], Position(0, 0), 0))
                for log, ballot in ballots.items():
                    fact = Fact(log, 10**9, ballot, 1)
                    stranger.call(b"learn", Learn(1, [fact], [0, 0, 0], Position(0, 0), 0))
                stranger.send(b"rejoin", Rejoin(3, MOST))
                stranger.send(b"prepare", Prepare(3, MOST - 3, 0, 0))
                entries = [Entry(MOST, b"x")]
                stranger.send(b"accept", Accept(3, ballots[3] + 256, 0, entries, True, Fact(3, 0, 0, 0), []))
                stranger.call(b"status", False)  # so all of it has been read

        def counted() -> bool:
            told = [cluster.status(node) for node in (1, 2)]
            return all(status is not None and status.counters["claims_refused"] >= 131 for status in told)

        eventually(counted, "what makes no sense is counted")
        eventually(lambda: "event=senseless who=3" in cluster.nodes[1].log(), "and logged")
        for node in (1, 2, 3):
            with cluster.client() as client:
                client.put(f"after-{node}", "2")
        cluster.kill(3)
        cluster.restart(3)
        assert len(cluster.wait_until_stores_are_equal()) == 4
        cluster.kill(3)
        shutil.rmtree(cluster.data / "node-3")
        cluster.nodes[3].start("--rejoin")
        cluster.wait_until_ready([3])
        assert len(cluster.wait_until_stores_are_equal()) == 4
        assert all(" event=bug" not in cluster.nodes[node].log() for node in (1, 2, 3))


def cluster_ballot(cluster: RealCluster, log: int) -> int:
    """The ballot at which this log is led, as node 1 knows it."""
    status = cluster.status(1)
    assert status is not None
    return int(next(entry.accepted for entry in status.logs if entry.log == log))


# ----------------------------------------------------------------------------------------------- certificates


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority of the cluster "test", with the certificates of its nodes and clients, good and bad."""
    made = Authority(tmp_path_factory.mktemp("authority"))
    made.cluster()
    made.make("expired", "urn:paxoskv:test:node:3", days=(-9, -1))
    made.make("future", "urn:paxoskv:test:node:3", days=(1, 9))
    made.make("soon", "urn:paxoskv:test:node:3", days=(-1, 29))
    made.make("unnamed", cn="reports")
    made.make("elsewhere", "urn:paxoskv:other:node:3", "urn:paxoskv:other:client:admin")
    return made


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[RealCluster]:
    """Three nodes with TLS that all tests of this module may use, and none may harm."""
    tls = authority.paths("{name}") | {"roles": {"reports": "reader"}}
    directory = tmp_path_factory.mktemp("cluster")
    file = cluster_file(directory, 3, tls=tls)
    settings = json.loads(file.read_text())
    settings["nodes"][0]["metrics_port"] = free_port()
    file.write_text(json.dumps(settings))
    with RealCluster(directory, file=file) as running:
        yield running


def shows(authority: Authority, file: str) -> ssl.SSLContext:
    """The context of one who connects and shows this certificate."""
    return tls_contexts(*authority.paths(file).values())[1]


def client_with(cluster: RealCluster, authority: Authority, file: str) -> Client:
    settings = cluster.settings
    tls = Tls(**authority.paths(file))
    return Client(Cluster(settings.name, settings.nodes, tls=tls), timeout=5)


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("node-2", "node:2"), ("client-admin", "client:admin"), ("client-reader", "client:reader"),
        ("unnamed", "nobody of this cluster"), ("elsewhere", "nobody of this cluster"),
    ],
)  # fmt: skip
def test_a_certificate_that_does_not_name_node_3_does_not_speak_for_node_3(
    cluster: RealCluster, authority: Authority, file: str, names: str
) -> None:
    three = identity(cluster, 3)
    with raw(cluster, 1, shows(authority, file)) as stranger:
        with pytest.raises(Refused, match=f"it names {names}, not urn:paxoskv:test:node:3"):
            stranger.greet(three, None)
        with pytest.raises(EOFError):
            stranger.call(b"prepare", Prepare(3, 1 << 40, 0, 0))
    with raw(cluster, 1, shows(authority, "node-3")) as node:
        assert node.greet(three, None).node == 1


@pytest.mark.parametrize("file", ["client-reader", "client-admin"])
def test_a_clients_certificate_on_a_method_of_nodes_ends_the_connection(
    cluster: RealCluster, authority: Authority, file: str
) -> None:
    with raw(cluster, 1, shows(authority, file)) as stranger, pytest.raises(EOFError):
        stranger.call(b"rejoin", Rejoin(3, 5))


def test_the_role_in_a_certificate_says_what_a_client_may_do(
    cluster: RealCluster, authority: Authority
) -> None:
    may = {
        "client-reader": 1, "client-writer": 2, "client-admin": 3, "node-1": 3, "unnamed": 1, "elsewhere": 0,
    }  # fmt: skip
    for file, allowed in may.items():
        with client_with(cluster, authority, file) as client:
            calls = [
                lambda client=client: (client.get("role"), list(client.scan())),
                lambda client=client: (client.put("role", "x"), client.increment("n"), client.delete("n")),
                lambda client=client: client.checkpoint(1),
            ]
            for number, call in enumerate(calls):
                if number < allowed:
                    call()
                else:
                    with pytest.raises(NotDoneError, match="the certificate does not allow"):
                        call()
    with (
        raw(cluster, 1, shows(authority, "elsewhere")) as stranger,
        pytest.raises(Exception, match="no role"),
    ):
        stranger.call(b"status", False)


def old_tls(authority: Authority) -> ssl.SSLContext:
    context = shows(authority, "client-admin")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_who_has_no_valid_certificate_gets_no_answer_and_the_log_says_why(
    cluster: RealCluster, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    other.make("admin", "urn:paxoskv:test:client:admin")
    stranger = shows(other, "admin")
    stranger.load_verify_locations(authority.directory / "ca.pem")
    without = ssl.create_default_context(cafile=str(authority.directory / "ca.pem"))
    for context, reason in (
        (shows(authority, "expired"), "expired"), (shows(authority, "future"), "not yet valid"),
        (stranger, "issuer certificate|self-signed|signature"), (without, "did not return a certificate"),
        (old_tls(authority), "version|unsupported protocol"), (None, "wrong version number|http request"),
    ):  # fmt: skip

        def told(context: ssl.SSLContext | None = context, reason: str = reason) -> bool:
            with pytest.raises((EOFError, OSError)), raw(cluster, 1, context) as connection:
                connection.call(b"status", False)
            lines = [line for line in cluster.nodes[1].log().splitlines() if "event=handshake" in line]
            return any(part in line for line in lines for part in reason.split("|"))

        eventually(told, reason)
    with cluster.client() as client:
        client.put("good", "clients are served")


@pytest.mark.parametrize(
    ("file", "told", "own"),
    [
        ("expired", "certificate has expired", "nobody accepts it: certificate has expired"),
        ("future", "certificate is not yet valid", "nobody accepts it: certificate is not yet valid"),
        ("node-2", "it names node:2, not urn:paxoskv:test:node:3", None),
    ],
)
def test_a_node_with_a_wrong_certificate_and_its_peers_say_what_is_wrong(
    tmp_path: Path, authority: Authority, file: str, told: str, own: str | None
) -> None:
    with RealCluster(tmp_path, nodes=3, tls=authority.paths("{name}")) as cluster:
        cluster.kill(3)
        wrong = tmp_path / "wrong.json"
        text = (
            cluster.file.read_text().replace("{name}.pem", f"{file}.pem").replace("{name}.key", f"{file}.key")
        )
        wrong.write_text(text)
        cluster.nodes[3].arguments[cluster.nodes[3].arguments.index(str(cluster.file))] = str(wrong)
        cluster.nodes[3].start()

        def problems(node: int) -> str:
            status = cluster.status(node)
            return "\n".join(status.problems) if status else ""

        eventually(lambda: told in problems(1), "a peer says it")
        assert told in cluster.nodes[1].log()
        eventually(lambda: told in cluster.nodes[3].log(), "and so does the node itself")
        if own:
            assert own in cluster.nodes[3].log()
        with cluster.client() as client:
            client.put("two", "are enough")


def test_a_node_without_tls_among_others_with_it_is_told_so_at_both_ends(
    tmp_path: Path, authority: Authority
) -> None:
    with RealCluster(tmp_path, nodes=3, tls=authority.paths("{name}")) as cluster:
        cluster.kill(3)
        plain = tmp_path / "plain.json"
        settings = json.loads(cluster.file.read_text())
        del settings["tls"]
        plain.write_text(json.dumps(settings))
        cluster.nodes[3].arguments[cluster.nodes[3].arguments.index(str(cluster.file))] = str(plain)
        cluster.nodes[3].start()
        for node in (1, 3):
            log = cluster.nodes[node].log
            eventually(lambda log=log: "event=handshake" in log(), f"node {node} says that TLS has failed")
        log = cluster.nodes[3].log
        eventually(lambda: "it speaks TLS, and this side does not" in log(), "what is wrong")
        with Client(f"127.0.0.1:{cluster.settings.member(3).port}", timeout=5) as client:
            problems = "\n".join(client.status().problems)
        assert "handshake" in problems and "TLS" in problems


def test_a_reload_takes_new_certificates_and_what_was_removed_is_refused(
    tmp_path: Path, authority: Authority
) -> None:
    mine = tmp_path / "certs"
    shutil.copytree(authority.directory, mine, symlinks=True)
    paths = {name: str(mine / Path(path).name) for name, path in authority.paths("{name}").items()}
    both = Authority(tmp_path / "newer")
    both.cluster()
    bundle = (mine / "ca.pem").read_text() + (both.directory / "ca.pem").read_text()
    with RealCluster(tmp_path, nodes=3, tls=paths) as cluster:

        def reload(*nodes: int) -> None:
            for node in nodes:
                before = cluster.nodes[node].log().count("event=reload")
                cluster.nodes[node].signal(1)
                log = cluster.nodes[node].log
                eventually(lambda log=log, n=before: log().count("event=reload") > n, "it reloads")

        def connected() -> bool:
            told = [cluster.status(node) for node in (1, 2, 3)]
            return all(status is not None and len(status.connected) == 2 for status in told)

        with cluster.client() as client:
            client.put("key", "1")
            (mine / "ca.pem").write_text(bundle)
            reload(1, 2, 3)  # first all know both authorities, then the certificates change
            for node in (1, 2, 3):
                for suffix in ("pem", "key"):
                    shutil.copy(both.directory / f"node-{node}.{suffix}", mine)
                reload(node)
                eventually(connected, "all nodes are connected")
            for file in ("client-admin.pem", "client-admin.key", "ca.pem"):
                shutil.copy(both.directory / file, mine)
            reload(1, 2, 3)
            eventually(connected, "all nodes are connected")
            client.put("key", "2")
        removed = shows(authority, "client-admin")
        removed.load_verify_locations(both.directory / "ca.pem")
        with pytest.raises((EOFError, OSError)), raw(cluster, 1, removed) as connection:
            connection.call(b"status", False)
        (mine / "node-1.pem").write_text("no certificate")
        reload(1)
        assert "the certificates stay as they were" in cluster.nodes[1].log()
        with Client(load(cluster.file), timeout=30) as client:
            assert client.get("key", node=1) == "2"


def test_a_certificate_that_expires_within_30_days_is_a_problem_in_time(authority: Authority) -> None:
    def look(file: str) -> Certificates:
        return Certificates(Tls(**authority.paths(file)), "127.0.0.1")

    good, soon = look("node-3"), look("soon")
    assert good.problem() is None and 364 * 86400 < (good.seconds() or 0) < 366 * 86400
    assert "it expires at 20" in (soon.problem() or "") and (soon.seconds() or 0) < 30 * 86400
    assert look("expired").seconds() is None
    assert "IP address mismatch" in (
        Certificates(Tls(**authority.paths("node-3")), "127.0.0.2").problem() or ""
    )
    soon.looked_at = time.monotonic() - 61
    soon.expires = None
    assert "it expires at" in (soon.problem() or ""), "it looks again once a minute"


def test_the_status_and_the_metrics_tell_when_the_certificate_expires(cluster: RealCluster) -> None:
    status = cluster.status(1)
    assert status is not None and 364 * 86400 < status.certificate_s < 366 * 86400
    with urlopen(f"http://127.0.0.1:{cluster.settings.member(1).metrics_port}/metrics") as page:
        shown = re.search(r"^paxos_certificate_seconds (\S+)$", page.read().decode(), re.MULTILINE)
    assert shown is not None and 364 * 86400 < float(shown[1]) < 366 * 86400


def test_an_insecure_cluster_takes_certificates_without_names_as_before(authority: Authority) -> None:
    """Until all certificates have names; who has a name is held to it even so."""
    certificates = Certificates(Tls(**authority.paths("node-1")), "127.0.0.1")

    class Shown:
        def __init__(self, *uris: str) -> None:
            self.names = tuple(("URI", uri) for uri in uris)

        def certificate(self) -> Any:
            return {"subjectAltName": self.names, "subject": ((("commonName", "x"),),)}

    old: Any = Shown()
    client: Any = Shown("urn:paxoskv:test:client:reader")
    for insecure, role in ((True, "admin"), (False, None)):
        trust = Trust("test", 1, None, certificates, insecure)
        assert trust.role(old) == role
        assert (trust.refuses_certificate(old, 2) is None) is insecure
        assert trust.role(client) == "reader" and trust.refuses_certificate(client, 2) is not None
