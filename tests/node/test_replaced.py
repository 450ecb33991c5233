"""A node that is at another address: all agree on it, and whoever holds an old file learns it."""

import json
import shutil
import signal
import sys
from pathlib import Path

import orjson
import pytest

from paxoskv import transactions
from paxoskv.client.operations import NotDoneError
from paxoskv.client.sync import Client
from paxoskv.config import Cluster, ClusterError, Member, address_text, load, parse_address
from paxoskv.node.addresses import Addresses
from paxoskv.node.eventlog import EXIT_STALE
from paxoskv.state.store import RESERVED_KEY, Store, encode_batch
from paxoskv.wire.structs import Command, Identity, Membership, Moved, Outcome, Verb
from paxoskv.wire.validation import FORMAT, invalid
from tests.harness.linearizability import check
from tests.harness.ports import free_port
from tests.harness.processes import (
    CLIENT,
    Clients,
    Process,
    RealCluster,
    eventually,
    final_reads,
    finish,
)

UPGRADE = Command(Verb.UPGRADE, delta=FORMAT)


def replace(node: int, address: str) -> Command:
    return Command(Verb.REPLACE_NODE, str(node), address)


# -------------------------------------------------------------------------------------------------- the parts


def test_an_address_is_a_part_of_the_state_and_survives_a_checkpoint() -> None:
    store, other = Store("never-written.json"), Store("never-written.json")
    store.apply(1, 1, encode_batch([UPGRADE, replace(3, "h:7"), Command(Verb.PUT, "k", "v")]))
    store.apply(2, 1, encode_batch([replace(3, "[::1]:8"), replace(2, "i:9")]))
    assert store.addresses == {3: Moved(3, "[::1]:8", 2), 2: Moved(2, "i:9", 2)}
    other.load_state(orjson.loads(orjson.dumps(store.save_state())))
    assert other.former == store.former == {3: ["h:7"], 2: []}
    assert other.addresses == store.addresses and other.state_digest() == store.state_digest()


def test_a_state_without_addresses_is_written_as_before() -> None:
    store = Store("never-written.json")
    assert "addresses" not in store.save_state()[RESERVED_KEY]
    store.load_state({RESERVED_KEY: {"position": [1, 1], "hash": 0, "sessions": []}})
    assert store.addresses == {}


def test_before_all_nodes_know_the_command_it_does_nothing() -> None:
    store = Store("never-written.json")
    (result,) = store.apply(1, 1, encode_batch([replace(3, "h:7")]))
    assert result.outcome == Outcome.INVALID and not store.addresses


@pytest.mark.parametrize(
    ("node", "address"),
    [("0", "h:7"), ("x", "h:7"), ("1234", "h:7"), ("3", ""), ("3", "h" * 400), ("3", None)],
)
def test_what_has_not_the_shape_of_an_id_and_an_address_is_invalid(node: str, address: str | None) -> None:
    assert invalid(Command(Verb.REPLACE_NODE, node, address)) is not None


class Nodes:
    """What node 1 knows of nodes 2 and 3."""

    def __init__(self) -> None:
        self.store = Store("never-written.json")
        members = {2: Member(2, "a", 7), 3: Member(3, "b", 7)}
        self.part = Addresses(self.store, "c:7", members)

    def replaced(self, node: int, address: str) -> None:
        position = self.store.position[0] + 1
        self.store.apply(position, 1, encode_batch([UPGRADE, replace(node, address)]))


def hello(node: int, address: str | None) -> Identity:
    return Identity("ours", "", node, 1, 1, address=address)


def test_a_process_is_refused_where_it_is_not_agreed_to_be() -> None:
    nodes = Nodes()
    assert nodes.part.refusal(hello(3, "b:7")) is None
    assert nodes.part.refusal(hello(3, "d:8")) is None, "a process may come before the command"
    nodes.replaced(3, "d:8")
    assert "node 3 was replaced: it is at d:8" in str(nodes.part.refusal(hello(3, "b:7")))
    assert nodes.part.refusal(hello(3, "d:8")) is None
    assert nodes.part.refusal(hello(2, "a:7")) is None
    assert nodes.part.refusal(hello(3, None)) is None, "older versions do not say where they are"
    assert nodes.part.refusal(hello(3, "e:9")) is None, "it may have moved on since: this node lags"
    nodes.replaced(3, "e:9")
    assert all(nodes.part.refusal(hello(3, address)) for address in ("b:7", "d:8"))
    nodes.replaced(3, "b:7")
    assert nodes.part.refusal(hello(3, "b:7")) is None, "it is back"
    assert all(nodes.part.refusal(hello(3, address)) for address in ("d:8", "e:9"))


def test_an_address_that_cannot_be_called_leaves_the_one_of_the_file() -> None:
    nodes = Nodes()
    nodes.replaced(3, "no address")
    assert nodes.part.of(3) == ("b", 7)


def test_of_two_nodes_that_are_moved_to_one_address_at_once_one_is_not() -> None:
    store = Store("never-written.json")
    results = store.apply(1, 1, encode_batch([UPGRADE, replace(3, "h:7"), replace(2, "h:7")]))
    assert [result.outcome for result in results] == [Outcome.OK, Outcome.OK, Outcome.INVALID]
    assert list(store.addresses) == [3]


def test_links_follow_and_each_change_is_noticed_once() -> None:
    nodes = Nodes()
    assert nodes.part.of(3) == ("b", 7) and nodes.part.look() == [] and nodes.part.moved() is None
    nodes.replaced(3, "d:8")
    assert nodes.part.look() == [3] and nodes.part.look() == [] and nodes.part.of(3) == ("d", 8)
    nodes.replaced(1, "e:9")
    assert nodes.part.look() == [], "our own address is not a peer's"
    nodes.replaced(3, "f:9")
    assert nodes.part.look() == [3] and nodes.part.moved() == [Moved(1, "e:9", 2), Moved(3, "f:9", 3)]


def test_two_nodes_are_not_at_one_address() -> None:
    nodes = Nodes()
    assert "address of node 2" in str(nodes.part.taken(3, "a:7"))
    assert "this node" in str(nodes.part.taken(3, "c:7"))
    assert nodes.part.taken(3, "d:8") is None and nodes.part.taken(3, "b:7") is None
    nodes.replaced(2, "e:9")
    assert "address of node 2" in str(nodes.part.taken(3, "e:9"))
    assert "was the address of node 2" in str(nodes.part.taken(3, "a:7"))


@pytest.mark.parametrize(
    "text", ["", "h", "h:", ":7", "h:0", "h:65536", "h:x", "-h:7", "h:\uff17", "0.0.0.0:7"]
)
def test_what_is_no_address_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        parse_address(text)


def test_a_file_with_the_first_addresses_is_one_of_the_same_cluster(tmp_path: Path) -> None:
    old = [{"id": node, "host": "10.0.0.1", "port": 7000 + node} for node in (1, 2, 3)]
    new = [*old[:2], {"id": 3, "host": "10.0.0.9", "port": 7, "first_address": "10.0.0.1:7003"}]
    files = []
    for number, nodes in enumerate((old, new, [*old[:2], {**old[2], "port": 7}])):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps({"name": "c", "nodes": nodes}))
    digests = [load(file).digest for file in files]
    assert digests[0] == digests[1] != digests[2]
    files[0].write_text(json.dumps({"name": "c", "nodes": [{**old[0], "first_address": "h"}]}))
    with pytest.raises(ClusterError, match=r"nodes\[0\].first_address.*is not HOST:PORT"):
        load(files[0])


def test_what_a_node_says_that_was_away_does_not_replace_what_was_agreed_since() -> None:
    cluster = Cluster("c", (Member(1, "a", 1), Member(2, "b", 2), Member(3, "d", 3)))
    with Client(cluster) as client:

        def learn(address: str, since: int, of: int = 1) -> str:
            client.learn(Membership("c", "", of, [Moved(3, address, since)]))
            return address_text(*client.nodes[2][1:])

        assert learn("e:7", 5) == "e:7"
        assert learn("d:3", 9) == "d:3"
        assert learn("e:7", 5) == "d:3", "node 3 was away when it came back"
        assert learn("f:7", 10) == "f:7"
        assert learn("nonsense", 11) == "f:7", "a later version may say it in another way"
        assert learn("g:7", 11, of=3) == "f:7", "it answers where it is"


# --------------------------------------------------------------------------------------------- real processes


def replacement(cluster: RealCluster, node: int, file: Path) -> Process:
    """The process of a node on another host: it has the new file, and no data."""
    arguments = ["--id", str(node), "--cluster", file, "--data", file.parent / f"host of {file.stem}"]
    process = Process(f"node {node} elsewhere", arguments, file.with_suffix(".log"))
    cluster.all.append(process)
    return process


def told_to(cluster: RealCluster, node: int, directory: Path) -> tuple[Path, str]:
    """Run `client.py replace` with the first file; return the file that it prints, and the address."""
    address = f"127.0.0.1:{free_port()}"
    done = finish([sys.executable, CLIENT, "replace", str(node), address, "--cluster", cluster.file])
    assert done.returncode == 0, done.stderr
    file = directory / f"replaced-{node}.json"
    file.write_text(done.stdout)
    return file, address


def serves(cluster: RealCluster, node: int, incarnation: int) -> bool:
    """Whether a client with the first file finds the node, and it takes commands."""
    with cluster.client(timeout=5) as client:
        client.get("any")
        try:
            status = client.status(node)
        except NotDoneError:
            return False
        return status.ready and status.incarnation >= incarnation


@pytest.mark.slow
def test_a_node_is_replaced_under_load_and_no_operation_fails(tmp_path: Path) -> None:
    with RealCluster(tmp_path) as cluster:
        with Clients(cluster, count=4) as clients:
            clients.progress(200)
            cluster.kill(3)
            file, address = told_to(cluster, 3, tmp_path)
            new = replacement(cluster, 3, file)
            new.start("--rejoin")
            eventually(lambda: serves(cluster, 3, 2), f"node 3 serves elsewhere:\n{new.log(20)}")
            clients.progress(200)
        assert not clients.failures, clients.failures
        cluster.nodes[3].start()  # the old one comes back
        assert cluster.nodes[3].wait() == EXIT_STALE
        told = cluster.nodes[3].log(5)
        assert "is a stale copy" in told and f"node 3 was replaced: it is at {address}" in told

        for node in (1, 2, 4, 5):  # all forget what they have in memory
            with cluster.client() as client:
                client.checkpoint(node)
            cluster.kill(node)
            cluster.restart(node)
        eventually(lambda: serves(cluster, 3, 2), "all have kept the address")
        cluster.kill(5)
        second, _ = told_to(cluster, 5, tmp_path)
        assert load(second).member(3) == load(file).member(3), "the file tells of both"
        replacement(cluster, 5, second).start("--rejoin")
        eventually(lambda: serves(cluster, 5, 2), "a second one is replaced")
        status = finish([sys.executable, CLIENT, "status", "--cluster", cluster.file])
        assert status.returncode == 0 and address in status.stdout, status.stdout

        history = clients.operations
        with Client(load(second)) as client:
            store = {item.key: item.value for item in client.scan()}
            assert {client.status(node).hash for node in (1, 3, 5)} == {client.status(2).hash}
        violation = check([*history, *final_reads(store, history)])
        assert violation is None, str(violation)


@pytest.mark.slow
def test_a_process_that_was_replaced_has_no_part_in_the_rejoin_of_another_node(tmp_path: Path) -> None:
    """N26. Node 3 has lost its disk; it alone hears the old process of node 4, and before the new one."""
    with RealCluster(tmp_path) as cluster:
        with cluster.client() as client:
            client.put("key", "value")
        cluster.kill(4)
        file, _ = told_to(cluster, 4, tmp_path)
        new = replacement(cluster, 4, file)
        new.start("--rejoin")
        eventually(lambda: serves(cluster, 4, 2), f"node 4 serves elsewhere:\n{new.log(20)}")
        settings = json.loads(cluster.file.read_text())
        for node in settings["nodes"]:
            if node["id"] in (1, 2, 5):  # for the old process these are where nobody listens
                node["first_address"] = address_text(node["host"], node["port"])
                node["port"] = free_port()
        alone = tmp_path / "alone.json"
        alone.write_text(json.dumps(settings))
        cluster.kill(3)
        shutil.rmtree(cluster.data / "node-3")
        new.signal(signal.SIGSTOP)
        old = replacement(cluster, 4, alone)
        old.arguments[-1] = str(cluster.data)
        old.start()
        eventually(lambda: "event=listening" in old.log(), "the old process runs")
        cluster.nodes[3].start("--rejoin")
        assert old.wait() == EXIT_STALE, "node 3 was told by others, and tells it"
        assert "is a stale copy" in old.log(5)
        status = cluster.status(3)
        assert status is not None and status.state == "rejoining", "the new process was not asked yet"
        new.signal(signal.SIGCONT)
        cluster.wait_until_ready([3])
        assert serves(cluster, 3, 2) and serves(cluster, 4, 2) and new.running


@pytest.mark.slow
def test_a_node_that_moves_with_its_data_needs_no_rejoin(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=3) as cluster, cluster.client() as client:
        client.put("key", "value")
        assert cluster.nodes[2].stop() == 0
        file, _ = told_to(cluster, 2, tmp_path)
        process = replacement(cluster, 2, file)
        process.arguments[-1] = str(cluster.data)  # the disk came along
        process.start()
        eventually(lambda: serves(cluster, 2, 1), "it goes on elsewhere")
        for _ in cluster.ids:
            assert client.get("key") == "value"
        assert client.status(2).incarnation == 1, "the client that was there before has learned it, too"
        assert client.get("key", "local", 2) == "value"

        assert process.stop() == 0  # and back again: what it holds says that it is elsewhere
        back = f"127.0.0.1:{cluster.settings.member(2).port}"
        done = finish([sys.executable, CLIENT, "replace", "2", back, "--cluster", cluster.file])
        assert done.returncode == 0, done.stderr
        cluster.nodes[2].start()
        for first in range(3):  # whichever is asked first
            with cluster.client(timeout=20, first=first) as other:
                eventually(lambda other=other: other.get("key") == "value", "it answers")  # type: ignore[misc]
        eventually(lambda: serves(cluster, 2, 1), "it goes on where it was")


@pytest.mark.slow
def test_a_node_that_lives_is_not_moved_and_none_without_which_there_is_no_quorum(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=3) as cluster, cluster.client(timeout=3) as client:
        client.put("key", "1")
        with pytest.raises(NotDoneError, match="node 3 is heard of: end it first"):
            client.replace_node(3, "127.0.0.1:9")
        cluster.kill(3)
        with cluster.client() as patient:
            patient.replace_node(3, f"127.0.0.1:{free_port()}")
        with pytest.raises(NotDoneError, match="heard of"):
            client.replace_node(2, "127.0.0.1:9")
        cluster.kill(2)
        with pytest.raises(NotDoneError, match=r"without node 2 .* no connections to a majority|no majority"):
            client.replace_node(2, "127.0.0.1:9")
        cluster.restart(2)
        with cluster.client() as patient:
            patient.put("key", "2")


@pytest.mark.slow
@pytest.mark.parametrize("known", [0, 1])
def test_a_node_that_was_away_while_others_moved_comes_back_with_its_old_file(
    tmp_path: Path, known: int
) -> None:
    """Node 1 knows of no move, or of the first one, and only nodes that have moved are there to tell it."""
    with RealCluster(tmp_path) as cluster:
        with cluster.client() as client:
            client.transaction([], [transactions.put("key", "all nodes know the new commands")])
        processes = dict(cluster.nodes)
        for number, node in enumerate([3] * known + [3, 5]):
            if number == known:
                assert cluster.nodes[1].stop() == 0
            assert processes[node].stop() == 0
            file, _ = told_to(cluster, node, tmp_path)
            processes[node] = replacement(cluster, node, file)
            processes[node].arguments[-1] = str(cluster.data)
            processes[node].start()
            eventually(lambda node=node: serves(cluster, node, 1), "it serves elsewhere")  # type: ignore[misc]
        for node in (2, 4):
            assert cluster.nodes[node].stop() == 0
        cluster.nodes[1].start()
        with Client(load(file), timeout=60) as client:
            client.put("key", "by 1, 3 and 5")
            assert client.get("key") == "by 1, 3 and 5"


@pytest.mark.slow
def test_what_cannot_be_replaced_is_refused_with_the_reason(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=3) as cluster, cluster.client(timeout=3) as client:
        taken = cluster.settings.member(2)
        for address, told in (("nowhere", "not HOST:PORT"), (f"127.0.0.1:{taken.port}", "address of node 2")):
            with pytest.raises(NotDoneError, match=told):
                client.replace_node(3, address)
        with pytest.raises(NotDoneError, match="node 9 is not another node"):
            client.replace_node(9, "127.0.0.1:9")
        with pytest.raises(NotDoneError, match="only replace_node says"):
            client.execute([replace(3, "127.0.0.1:9")])
        done = finish([sys.executable, CLIENT, "replace", "3", "foo", "--cluster", cluster.file])
        assert done.returncode == 2 and done.stderr == "client.py: replace: 'foo' is not HOST:PORT\n"
        done = finish([sys.executable, CLIENT, "replace", "9", "h:7", "--cluster", cluster.file])
        assert done.returncode == 2 and done.stderr == "client.py: replace: there is no node 9\n"
        assert client.status(1).ready
