"""scripts/launch.sh and real ssh servers: five hosts with addresses of their own, a sixth who launches."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from paxoskv.config import load
from tests.harness import network
from tests.harness.network import CLIENT, HOSTS, Network
from tests.harness.processes import CLIENT as CLIENT_PROGRAM
from tests.harness.processes import (
    DEADLINE_S,
    PROJECT,
    SCRIPTS,
    Load,
    die_with_parent,
    eventually,
    finish,
    passes,
)

LAUNCH = SCRIPTS / "launch.sh"
UP_S = 90.0  # for setting up and starting five hosts, by a machine with nothing else to do
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    reason = network.missing()
    if reason is not None:
        pytest.skip(reason)
    before = namespaces()
    with Network(tmp_path_factory.mktemp("network")) as made:
        yield made
    assert namespaces() == before, "a namespace is left"


def namespaces() -> set[str]:
    """Those of this process."""
    listed = finish(["ip", "netns", "list"]).stdout.splitlines()
    return {line.split()[0] for line in listed if line.startswith(f"kv{os.getpid()}-")}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages as files: the hosts reach nothing but one another."""
    directory = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "-r", PROJECT / "requirements.txt"]
    began = time.monotonic()
    done = finish([*command, "-w", directory], 4 * DEADLINE_S)
    assert done.returncode == 0, done.stderr
    print(f"pip wheel: {time.monotonic() - began:.1f} s")
    return directory


class Launched:
    """A cluster of the five hosts, and the one who launches it from the sixth."""

    def __init__(self, hosts: Network, directory: Path, **settings: Any) -> None:
        self.hosts = hosts
        self.directory = directory
        self.file = hosts.cluster_file(directory, **settings)
        self.settings = load(self.file)

    def run(self, *words: str | Path | int, config: Path | None = None) -> Any:
        command = [LAUNCH, *map(str, words), "--cluster", self.file]
        command += ["--ssh-config", config or self.hosts.ssh_config]
        environment = {**os.environ, "PYTHON": sys.executable}
        return self.hosts.finish(CLIENT, command, 4 * DEADLINE_S, env=environment)

    def expect(self, code: int, *words: str | Path | int, config: Path | None = None) -> str:
        """It ends with this code; what it said."""
        done = self.run(*words, config=config)
        assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
        return str(done.stdout + done.stderr)

    def line(self, node: int, *words: str | Path | int, config: Path | None = None) -> str:
        """What the command, which fails, says of this node."""
        told = self.expect(1, *words, config=config)
        lines = [line for line in told.splitlines() if line.startswith(f"node {node} (")]
        assert len(lines) == 1 and "FAILED: " in lines[0], told
        return lines[0].partition("FAILED: ")[2]

    def client(self, *words: str) -> Any:
        """client.py on the sixth machine."""
        command = [sys.executable, CLIENT_PROGRAM, *words, "--cluster", self.file]
        return self.hosts.finish(CLIENT, command)

    def states(self) -> list[dict[str, Any]]:
        states: list[dict[str, Any]] = json.loads(self.client("status", "-o", "json").stdout)
        return states

    def applied(self) -> int:
        """Commands that the node which is furthest has applied."""
        return max(state.get("counters", {}).get("commands_applied", 0) for state in self.states())

    def host(self, node: int) -> Path:
        return self.directory / f"host-{node}"

    def pid(self, node: int) -> int:
        told = self.run("status").stdout
        found = re.search(rf"^node {node} .*: runs \(process (\d+)", told, re.MULTILINE)
        assert found, told
        return int(found[1])


# ------------------------------------------------------------------------------------------- one whole life


def test_five_hosts_are_set_up_serve_through_a_cut_network_are_restarted_and_leave_nothing_running(
    hosts: Network, wheels: Path, tmp_path: Path
) -> None:
    cluster = Launched(hosts, tmp_path)
    others = os.getloadavg()[0] / (os.cpu_count() or 1)  # what else the machine has to do: we get our share
    began = time.monotonic()
    told = cluster.expect(0, "up", "--restart", "--wheels", wheels)
    took = time.monotonic() - began
    print(f"up: {took:.1f} s")
    assert "up: all 5 nodes are ready" in told and told.count("started (process") == 5
    assert took < UP_S * max(1.0, others)
    for node in HOSTS:
        assert (cluster.host(node) / "data" / f"node-{node}" / "identity.json").exists()
        assert (cluster.host(node) / ".venv" / "bin" / "python").exists()

    it_can_be_repeated(cluster, wheels)
    a_cut_network_fails_no_operation(cluster)
    a_crashed_server_comes_back(cluster)
    a_rolling_restart_brings_new_files_and_fails_no_operation(cluster, wheels)
    a_stopped_node_is_a_half_started_cluster(cluster, wheels)
    a_lost_directory_is_told_to_rejoin(cluster, wheels)

    told = cluster.expect(0, "down")
    assert told.count("stopped") == 5
    eventually(lambda: not hosts.pids(), "nothing runs on any host")
    assert cluster.expect(0, "down").count("did not run") == 5


def it_can_be_repeated(cluster: Launched, wheels: Path) -> None:
    before = cluster.hosts.pids()
    told = cluster.expect(0, "up", "--restart", "--wheels", wheels)
    assert told.count("runs already (process") == 5 and "older files" not in told
    assert set(before) <= set(cluster.hosts.pids())
    assert cluster.expect(0, "push", "--wheels", wheels).count("has these files already") == 5
    told = cluster.expect(0, "status")
    assert told.count("restarted when it crashes") == 5
    assert [state["ready"] for state in cluster.states()] == [True] * 5
    told = cluster.expect(0, "logs", "--lines", "3")
    assert set(re.findall(r"^node (\d) \| ", told, re.MULTILINE)) == set("12345")


def a_cut_network_fails_no_operation(cluster: Launched) -> None:
    csv = cluster.directory / "load.csv"
    make = [sys.executable, SCRIPTS / "make_workload.py", "--rows", "1500", "-o", csv]
    finish(make).check_returncode()
    inside = cluster.hosts.at(CLIENT, [])
    before = cluster.applied()
    with Load(["--cluster", cluster.file], csv, "--rate", "150", prefix=inside) as load:
        eventually(lambda: cluster.applied() > before + 100, "the run is under way")
        with cluster.hosts.cut_off(3):
            assert load.running, "cut off in the middle of the run"
            passes(5)
        load.expect_success()
    assert load.summary()["operations"] == 1500
    print(f"1,500 rows with a host cut off for 5 s: {load.summary()['seconds']:.1f} s")
    eventually(lambda: all(state.get("ready") for state in cluster.states()), "node 3 is back")
    compare = [sys.executable, SCRIPTS / "compare_stores.py", "--cluster", cluster.file]
    done = cluster.hosts.finish(CLIENT, compare)
    assert done.returncode == 0 and "all stores are equal" in done.stdout, done.stdout


def a_crashed_server_comes_back(cluster: Launched) -> None:
    pid = cluster.pid(2)
    os.kill(pid, signal.SIGKILL)
    eventually(
        lambda: all(state.get("ready") for state in cluster.states()) and cluster.pid(2) != pid,
        "node 2 runs again, as another process",
    )
    assert "event=crashed" in cluster.expect(0, "logs", "--node", "2")


def a_rolling_restart_brings_new_files_and_fails_no_operation(cluster: Launched, wheels: Path) -> None:
    settings = json.loads(cluster.file.read_text())
    cluster.file.write_text(json.dumps(settings | {"request_timeout_s": 9}))
    told = cluster.expect(0, "up", "--restart", "--wheels", wheels)
    assert told.count("with older files than yours: scripts/launch.sh rolling") == 5
    before = cluster.hosts.pids()
    csv = cluster.directory / "load.csv"
    with Load(["--cluster", cluster.file], csv, prefix=cluster.hosts.at(CLIENT, [])) as load:
        told = cluster.expect(0, "rolling", "--wheels", wheels)
        load.expect_success()
    assert told.count("started (process") == 5
    assert not set(before) & set(cluster.hosts.pids())
    assert "older files" not in cluster.expect(0, "up", "--restart", "--wheels", wheels)
    assert cluster.expect(0, "status").count("restarted when it crashes") == 5


def a_stopped_node_is_a_half_started_cluster(cluster: Launched, wheels: Path) -> None:
    server, supervisor = cluster.pid(4), parent(cluster.pid(4))
    os.kill(supervisor, signal.SIGTERM)
    eventually(lambda: not {server, supervisor} & set(cluster.hosts.pids()), "node 4 has stopped")
    told = cluster.expect(1, "status")
    assert (
        "half started: 4 of 5 nodes run" in told and "does not run (has data): scripts/launch.sh up" in told
    )
    with cluster.hosts.cut_off(5):
        told = cluster.expect(1, "up", "--restart", "--wheels", wheels)
    assert "half started: 4 of 5 nodes are ready (a majority, so the cluster answers); not: 5" in told
    assert cluster.expect(0, "up", "--restart", "--wheels", wheels).count("runs already") == 5


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def a_lost_directory_is_told_to_rejoin(cluster: Launched, wheels: Path) -> None:
    cluster.expect(0, "down")
    data = cluster.host(5) / "data" / "node-5"
    data.rename(data.with_name("kept"))
    told = cluster.expect(1, "up", "--wheels", wheels)
    assert "its data directory is missing, but others have theirs" in told
    assert "scripts/launch.sh up --rejoin 5" in told and "not: 5" in told
    assert not data.exists(), "an empty directory is never made for a node that had one"
    data.with_name("kept").rename(data)
    assert "--rejoin 5" in cluster.line(5, "up", "--rejoin", "5", "--wheels", wheels), (
        "refused: it has its data"
    )
    assert "up: all 5" in cluster.expect(0, "up", "--wheels", wheels)


# ------------------------------------------------------------------------ what goes wrong, in a line per host


def test_a_host_without_a_route_is_told_and_nothing_is_begun(hosts: Network, tmp_path: Path) -> None:
    cluster = Launched(hosts, tmp_path)
    with hosts.cut_off(3):
        told = cluster.expect(1, "up")
    lines = {line[:6]: line for line in told.splitlines()}
    assert "FAILED: no route to it" in lines["node 3"]
    for node in (1, 2, 4, 5):
        assert "not started: no host that was reached has data" in lines[f"node {node}"]
        assert not (cluster.host(node) / "data").exists()
    assert "not started: none of 5 nodes is ready" in told
    assert not hosts.pids()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ssh_port": 2222}, "no ssh server listens there: start sshd, or correct ssh_port"),
        (
            {"python": "/usr/bin/python-of-nobody"},
            "there is no /usr/bin/python-of-nobody: install Python 3.11",
        ),
        ({"directory": "/proc/kv"}, "/proc/kv"),
        ({"host": "10.0.0.66", "ssh_host": "10.0.0.2"}, "10.0.0.66 is no address of this host"),
        ({"ssh_host": "no-such-host.invalid"}, "the name is unknown: correct host (or ssh_host)"),
        ({"ssh_user": "nobody-of-that-name"}, "the key is refused: put yours there: ssh-copy-id nobody-of"),
    ],
)
def test_a_setting_that_does_not_fit_the_host_is_told(
    hosts: Network, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    assert told in Launched(hosts, tmp_path, n2=changes).line(2, "up")


def test_a_refused_key_is_told_with_the_command_that_helps(hosts: Network, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(hosts.ssh_config.read_text().replace("/key\n", "/other_key\n"))
    line = Launched(hosts, tmp_path, ssh={"port": 22, "user": "root"}).line(1, "up", config=config)
    assert line == "the key is refused: put yours there: ssh-copy-id -p 22 root@10.0.0.1"


def test_the_key_that_cluster_json_names_is_used(hosts: Network, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(hosts.ssh_config.read_text().replace("/key\n", "/other_key\n"))
    cluster = Launched(hosts, tmp_path, ssh={"key": str(hosts.directory / "key")})
    assert cluster.expect(0, "down", config=config).count("did not run") == 5


def test_an_unknown_and_a_changed_host_key_are_told(hosts: Network, tmp_path: Path) -> None:
    config = tmp_path / "config"
    cluster = Launched(hosts, tmp_path)
    for known, told in (
        ("", "its host key is not known: log in once to accept it: ssh 10.0.0.1"),
        (f"10.0.0.* {(hosts.directory / 'other_key.pub').read_text()}", "ssh-keygen -R 10.0.0.1"),
    ):
        (tmp_path / "known").write_text(known)
        text = hosts.ssh_config.read_text().replace(f"{hosts.directory}/known_hosts", f"{tmp_path}/known")
        config.write_text(text)
        assert told in cluster.line(1, "up", config=config)


def test_a_python_that_is_too_old_is_told_with_its_version(hosts: Network, tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.2"\nexit 1\n')
    old.chmod(0o755)
    line = Launched(hosts, tmp_path, n4={"python": str(old)}).line(4, "up")
    assert line.startswith(f"Python too old: {old} is Python 3.9.2, 3.11 is needed")


def test_a_taken_port_is_told(hosts: Network, tmp_path: Path) -> None:
    cluster = Launched(hosts, tmp_path)
    program = (
        f"import socket, time; taken = socket.create_server(('{hosts.address(5)}', 7001)); "
        "print('there', flush=True); time.sleep(99)"
    )
    command = hosts.at(5, [sys.executable, "-c", program])
    with subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=die_with_parent) as taker:
        assert taker.stdout is not None and taker.stdout.readline() == b"there\n"
        try:
            line = cluster.line(5, "up")
        finally:
            taker.kill()
    assert line.startswith("port 7001 of 10.0.0.5 is taken by another program: end it (ss -ltnp shows it)")


def test_a_full_disk_is_told(hosts: Network, tmp_path: Path) -> None:
    cluster = Launched(hosts, tmp_path)
    cluster.host(3).mkdir()
    inside = [
        "nsenter",
        "--mount",
        "--target",
        str(hosts.servers[2].pid),
    ]  # only sshd 3 sees it
    if finish([*inside, "mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", cluster.host(3)]).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        line = cluster.line(3, "up")
    finally:
        finish([*inside, "umount", cluster.host(3)]).check_returncode()
    assert re.fullmatch(rf"disk full: 6\d MiB are free at {cluster.host(3)}, 320 are needed: make room", line)


def test_data_of_another_cluster_of_another_node_and_of_other_members_is_told(
    hosts: Network, tmp_path: Path
) -> None:
    cluster = Launched(hosts, tmp_path)
    ours = cluster.settings.digest
    directory = cluster.host(1) / "data" / "node-1"
    directory.mkdir(parents=True)
    for cluster_name, digest, node, told in (
        ("elsewhere", ours, 1, "holds the data of another cluster, 'elsewhere', not of 'launched'"),
        ("launched", ours, 2, "holds the data of node 2"),
        ("launched", "0" * 64, 1, "was made by a cluster.json with other nodes"),
    ):  # fmt: skip
        identity = {"cluster": cluster_name, "digest": digest, "node": node}
        (directory / "identity.json").write_text(json.dumps(identity))
        told_first, rest = cluster.line(1, "status"), cluster.expect(1, "up")
        assert told in told_first and told in rest
    (directory / "identity.json").unlink()
    assert "the rest of a start that failed" in cluster.line(1, "status")


def test_a_server_that_ends_at_once_is_told_with_its_own_last_line(
    hosts: Network, wheels: Path, tmp_path: Path
) -> None:
    """The packages come from the environment of the tests: `python` names one that has them."""
    tls = {"certificate": "/none.pem", "key": "/none.key", "authority": "/ca.pem"}
    cluster = Launched(hosts, tmp_path, tls=tls, ssh={"python": sys.executable})
    told = cluster.expect(1, "up")
    assert (
        told.count("FAILED: ended at once (exit code 2): server.py: cluster.json: tls.certificate: /none.pem")
        == 5
    )
    assert not (cluster.host(1) / ".venv").exists(), "an environment that has the packages is used as it is"
    assert "not started: none of 5 nodes is ready" in told


# ------------------------------------------------------------------------------ without a network of its own


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["fly"], "invalid choice: 'fly'"),
        ([], "the following arguments are required: COMMAND"),
        (["up", "--rejoin", "9"], "--rejoin: cluster.json has no node 9"),
        (["logs", "--node", "7"], "--node: cluster.json has no node 7"),
        (["logs", "--lines", "0"], "--lines: 0 is not a number of lines"),
        (["up", "--wheels", "docs"], "--wheels: there are no wheels in docs"),
        (["up", "--cluster", "nowhere.json"], "nowhere.json: No such file or directory"),
    ],
)
def test_misuse_is_told_before_any_host_is_asked(words: Sequence[str], told: str) -> None:
    given = list(words) if "--cluster" in words else [*words, "--cluster", "cluster.json"]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = finish([LAUNCH, *given], env=environment, cwd=PROJECT)
    assert done.returncode == 2 and told in done.stderr, done.stderr


def test_certificates_are_made_brought_to_each_host_and_renewed_without_a_restart(
    hosts: Network, tmp_path: Path
) -> None:
    tls = {"certificate": "certs/{name}.pem", "key": "certs/{name}.key", "authority": "certs/ca.pem"}
    cluster = Launched(hosts, tmp_path, tls=tls, ssh={"python": sys.executable})
    certs = tmp_path / "certs"
    told = cluster.expect(2, "up")
    assert f"tls: there is no {certs}/ca.pem: make it once: scripts/make_certs.sh" in told
    make = [SCRIPTS / "make_certs.sh", cluster.file, certs]
    finish(make).check_returncode()
    try:
        assert "up: all 5 nodes are ready" in cluster.expect(0, "up")
        for node in HOSTS:
            there = {
                path.name: path.stat().st_mode & 0o777 for path in (cluster.host(node) / "certs").iterdir()
            }
            assert there == dict.fromkeys(["ca.pem", f"node-{node}.pem", f"node-{node}.key"], 0o600)
        assert cluster.client("put", "key", "value").returncode == 0
        for part in ("pem", "key"):
            (certs / f"client.{part}").unlink()
            (certs / f"client.{part}").symlink_to(f"client-reader.{part}")
        assert cluster.client("get", "key").stdout == "value\n"
        assert cluster.client("put", "key", "other").returncode not in (0, 130)

        before, old = hosts.pids(), (certs / "node-1.pem").read_bytes()
        finish(make).check_returncode()
        assert cluster.expect(0, "reload").count("reads its certificates again") == 5
        assert hosts.pids() == before
        assert (cluster.host(1) / "certs" / "node-1.pem").read_bytes() != old
        for node in HOSTS:
            log = cluster.host(node) / "run" / f"node-{node}.log"
            eventually(lambda log=log: "event=reload expires_s=" in log.read_text(), "it has read them")
        eventually(lambda: all(state.get("ready") for state in cluster.states()), "all serve")
        assert cluster.client("get", "key").stdout == "value\n"
    finally:
        cluster.run("down")


def test_the_secret_is_brought_to_each_host_for_its_user_alone(hosts: Network, tmp_path: Path) -> None:
    cluster = Launched(hosts, tmp_path)
    cluster.expect(0, "push")
    secret = tmp_path / "launched.secret"
    for node in HOSTS:
        copy = cluster.host(node) / secret.name
        assert (copy.read_text(), copy.stat().st_mode & 0o777) == (secret.read_text(), 0o600)
    secret.unlink()
    assert f"secret: there is no {secret}: make it once: umask 077; head" in cluster.expect(2, "up")
    assert cluster.expect(0, "down").count("did not run") == 5, "what copies nothing needs none"


def test_a_supervisor_starts_what_crashes_again_and_what_is_refused_not(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(
        "import os, pathlib, sys\n"
        "log = pathlib.Path('log'); log.write_text(log.read_text() + ' '.join(sys.argv[1:]) + '\\n')\n"
        "pathlib.Path('d/node-1').mkdir(parents=True, exist_ok=True)\n"
        "pathlib.Path('d/node-1/identity.json').touch()\n"
        "runs = len(log.read_text().splitlines())\n"
        "os.kill(os.getpid(), 9) if runs == 1 else sys.exit(70 if runs == 2 else 2)\n"
    )
    (tmp_path / "log").write_text("")
    words = ["server.py", "--id", "1", "--data", "d", "--init"]
    done = finish([sys.executable, PROJECT / "deploy" / "supervise.py", *words], cwd=tmp_path)
    assert done.returncode == 2
    assert (tmp_path / "log").read_text().splitlines() == [
        "--id 1 --data d --init",
        "--id 1 --data d",
        "--id 1 --data d",
    ]
    assert "code=-9 restart_in_s=1" in done.stderr and "code=70 restart_in_s=2" in done.stderr


def test_the_systemd_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    """With this project in place of the one that it names."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    unit = (PROJECT / "deploy" / "multipaxos-kv@.service").read_text()
    assert "server.py --id %i --cluster cluster.json" in unit
    unit = unit.replace("/srv/multipaxos-kv/.venv/bin/python", sys.executable)
    unit = unit.replace("/srv/multipaxos-kv", str(PROJECT)).replace("User=multipaxos", "User=root")
    (tmp_path / "multipaxos-kv@.service").write_text(unit)
    done = finish(["systemd-analyze", "verify", tmp_path / "multipaxos-kv@.service"])
    assert "multipaxos" not in done.stderr, done.stderr
