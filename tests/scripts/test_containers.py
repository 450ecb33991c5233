"""The files for containers: what they say holds together, and what they start works.

There is no container engine where the tests run. So the image is put together from its Dockerfile in a root
directory of its own, and its entry point is run there; the manifests are held against their schemas; the
alerts and the dashboard against what real nodes show, by Prometheus itself where there is one.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paxoskv import config
from tests.harness.ports import free_port
from tests.harness.processes import (
    DEADLINE_S,
    PROJECT,
    Process,
    Processes,
    RealCluster,
    cluster_file,
    eventually,
)

yaml = pytest.importorskip("yaml")
DEPLOY = PROJECT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
MANIFESTS = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
DASHBOARD = json.loads((DEPLOY / "grafana.json").read_text())
RULES = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]
QUERIES = sorted({target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]})
ALERTS = {rule["alert"]: rule["expr"] for rule in RULES}


def manifest(kind: str) -> Any:
    (found,) = (document for document in MANIFESTS if document["kind"] == kind)
    return found


def program(name: str) -> str:
    """A program of Prometheus; the test is skipped if it is not there."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (Debian: apt-get install prometheus)")
    return path


# ----------------------------------------------------------------------------------------- what the files say


def test_compose_starts_the_nodes_of_its_cluster_and_mounts_files_that_are_there() -> None:
    cluster = config.load(DEPLOY / "compose.json")
    services, declared = COMPOSE["services"], COMPOSE["volumes"]
    nodes = {
        name: service for name, service in services.items() if "PAXOSKV_ID" in service.get("environment", ())
    }
    assert {(int(node["environment"]["PAXOSKV_ID"]), name) for name, node in nodes.items()} == {
        (member.id, member.host) for member in cluster.nodes
    }
    assert all(node["hostname"] == name for name, node in nodes.items())
    data = []
    for service in services.values():
        for volume in service.get("volumes", ()):
            source, target, *_ = volume.split(":")
            assert source in declared or (DEPLOY / source).is_file(), f"{source} is mounted, and not there"
            data += [source] if target == "/data" else []
    assert sorted(data) == sorted(nodes), "each node has a volume of its own"
    assert set(COMPOSE["secrets"]) == {"paxoskv"} and all(
        node["secrets"] == ["paxoskv"] for node in nodes.values()
    )
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert all(port.startswith("127.0.0.1:") for port in published), (
        "nothing is open to the network by itself"
    )
    scraped = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"][0]
    assert scraped["static_configs"][0]["targets"] == [f"{m.host}:{m.metrics_port}" for m in cluster.nodes]


@pytest.mark.parametrize("document", MANIFESTS, ids=lambda document: document["kind"])
def test_the_manifests_are_those_of_kubernetes(document: Any) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    validator.validate(document, "1.31", strict=True)


def test_the_stateful_set_has_the_nodes_of_its_cluster(tmp_path: Path) -> None:
    file = tmp_path / "cluster.json"
    file.write_text(manifest("ConfigMap")["data"]["cluster.json"])
    cluster, stateful = config.load(file), manifest("StatefulSet")
    name, service = stateful["metadata"]["name"], manifest("Service")["metadata"]["name"]
    assert stateful["spec"]["serviceName"] == service
    assert [(member.id, member.host) for member in cluster.nodes] == [
        (ordinal + 1, f"{name}-{ordinal}.{service}") for ordinal in range(stateful["spec"]["replicas"])
    ]
    container = stateful["spec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {(member.port, member.metrics_port) for member in cluster.nodes} == {
        (ports["thrift"], ports["metrics"])
    }
    volumes = stateful["spec"]["template"]["spec"]["volumes"] + [
        claim["metadata"] for claim in stateful["spec"]["volumeClaimTemplates"]
    ]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in volumes}
    assert manifest("Service")["spec"]["publishNotReadyAddresses"] is True


def copied() -> list[tuple[str, str]]:
    """What the Dockerfile copies from the project into the image, and where to."""
    pairs = []
    for line in DOCKERFILE.partition("\nFROM ")[2].splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            *sources, target = line.split()[1:]
            for source in sources:
                whole = (PROJECT / source).is_dir()
                pairs.append((source, target if whole else target.rstrip("/") + "/" + Path(source).name))
    return pairs


def test_the_image_is_given_what_dockerignore_lets_through_and_all_of_that() -> None:
    let = {line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {source for source, _ in copied()} | {"requirements.txt"} == let
    assert all((PROJECT / source).exists() for source in let)


# ------------------------------------------------------------------------------------------------- the image


def image(root: Path) -> None:
    """Put together what the Dockerfile puts into the image; Python and its packages are this machine's.

    MOUNT brings them, as an environment at /venv.
    """
    for source, target in copied():
        path = root / target.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if (PROJECT / source).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(PROJECT / source, path, symlinks=True, ignore=ignored)
        else:
            shutil.copy(PROJECT / source, path)
    for name in ("usr", "lib", "lib64", "bin", "etc", "dev", "proc", "tmp", "data", "run", "venv/bin"):
        (root / name).mkdir(parents=True)
    (root / "venv" / "pyvenv.cfg").write_text(f"home = {PYTHON.parent}\n")
    (root / "venv" / "bin" / "python").symlink_to(PYTHON)
    (root / SITE).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    os.chown(root / "data", 10001, 10001)


PYTHON = Path(sys.executable).resolve()
SITE = f"venv/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
MOUNT = """
set -e
for each in usr lib lib64 bin etc dev proc; do [ ! -d /$each ] || mount --rbind /$each "$0/$each"; done
mount --bind "$1" "$0/$2"
root=$0; shift 2
exec chroot "$root" /bin/sh -c 'cd /paxoskv && exec "$@"' sh "$@"
"""


def inside(root: Path) -> list[str]:
    """What a command begins with that runs in this root."""
    packages = str(Path(yaml.__file__).parents[1])
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", MOUNT, str(root), packages, SITE]


@pytest.fixture
def container(tmp_path: Path) -> Path:
    """The image's root directory; skipped where this process may not have one."""
    root = tmp_path / "root"
    root.mkdir()
    image(root)
    may = os.geteuid() == 0 and shutil.which("unshare")
    tried = subprocess.run([*inside(root), "/venv/bin/python", "-V"], capture_output=True) if may else None
    if tried is None or tried.returncode:
        pytest.skip("it takes root and mount namespaces to give a program another root directory")
    return root


class Containers(Processes):
    """Three containers of the image. They share one network, so their ports differ."""

    def __init__(self, root: Path, directory: Path) -> None:
        super().__init__()
        self.root = root
        file = cluster_file(directory, 3, secret="secret", insecure=False)
        settings = json.loads(file.read_text())
        for member in settings["nodes"]:
            member["metrics_port"] = free_port()
        (root / "etc-paxoskv").mkdir()
        (root / "etc-paxoskv" / "cluster.json").write_text(json.dumps(settings))
        (root / "run" / "secret").write_text("0123456789abcdef0123\n")
        (root / "run" / "secret").chmod(0o600)  # and root's
        self.nodes = {}
        for node in (1, 2, 3):
            process = Process(
                f"container {node}", [], directory / f"container-{node}.log", self.command(node)
            )
            process.program = Path("node")
            self.nodes[node] = process
        self.all += self.nodes.values()

    def command(self, node: int, start: str = "") -> list[str]:
        environment = {
            "PAXOSKV_CLUSTER": "/etc-paxoskv/cluster.json", "PAXOSKV_SECRET": "/run/secret",
            "PAXOSKV_RUN": f"/run/{node}", "PAXOSKV_START": start, "HOSTNAME": f"paxoskv-{node - 1}",
            "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        words = ["env", "-i", *[f"{name}={value}" for name, value in environment.items()]]
        return [*inside(self.root), *words, "/venv/bin/python", "deploy/entrypoint.py"]

    def run(self, node: int, *words: str, start: str = "") -> Any:
        return subprocess.run(
            [*self.command(node, start), *words], capture_output=True, text=True, timeout=DEADLINE_S
        )

    def start(self, node: int, start: str = "") -> None:
        with (self.root.parent / f"container-{node}.log").open("a") as log:
            self.nodes[node].child = subprocess.Popen(
                [*self.command(node, start), "node"], stdout=log, stderr=log
            )


@pytest.mark.slow
def test_the_entry_point_runs_a_cluster_in_a_root_of_its_own(container: Path, tmp_path: Path) -> None:
    with Containers(container, tmp_path) as containers:
        refused = containers.run(1, "node")
        assert refused.returncode == 2 and "node-1" in refused.stderr, "without data nothing is begun"
        assert "Traceback" not in refused.stderr
        assert containers.run(1, "node", start="maybe").stderr == (
            "entrypoint.py: PAXOSKV_START: 'maybe' is none of init, rejoin\n"
        )
        for node in (1, 2, 3):
            containers.start(node, "init")
        for node in (1, 2, 3):
            eventually(
                lambda node=node: containers.run(node, "ready").returncode == 0, f"container {node} is ready"
            )
        assert containers.run(2, "client", "put", "color", "green").stdout == "ok\n"
        assert {os.stat(container / "data" / f"node-{node}").st_uid for node in (1, 2, 3)} == {10001}
        assert os.stat(container / "run" / "1" / "secret").st_mode & 0o777 == 0o600
        containers.nodes[3].kill()
        assert containers.run(3, "ready").returncode == 1
        containers.start(3)
        eventually(lambda: containers.run(3, "ready").returncode == 0, "it goes on with its data")
        assert containers.run(3, "client", "get", "color", "--node", "3").stdout == "green\n"
        containers.nodes[3].kill()
        shutil.rmtree(container / "data" / "node-3")
        assert containers.run(3, "node").returncode == 2, "a volume that is gone is noticed"
        containers.start(3, "rejoin")
        eventually(lambda: containers.run(3, "ready").returncode == 0, "it has rejoined")
        assert containers.nodes[1].stop() == 0, "a signal reaches the node, which ends in peace"


# ------------------------------------------------------------------------------- the alerts and the dashboard


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RealCluster, list[int]]]:
    """A cluster that has done some work, and the ports of its metrics."""
    directory = tmp_path_factory.mktemp("scraped")
    file = cluster_file(directory, 3)
    settings = json.loads(file.read_text())
    for member in settings["nodes"]:
        member["metrics_port"] = free_port()
    file.write_text(json.dumps(settings))
    with RealCluster(directory, file=file) as cluster, cluster.client() as client:
        for number in range(50):
            client.put(f"key {number}", "value")
        client.get("key 1")
        yield cluster, [member["metrics_port"] for member in settings["nodes"]]


def names(query: str) -> set[str]:
    """The metrics that a query reads."""
    return set(re.findall(r"\b((?:paxos|process)_[a-z_]+)\b", query))


def test_each_metric_that_is_asked_for_is_one_that_a_node_shows(
    scraped: tuple[RealCluster, list[int]],
) -> None:
    page = urllib.request.urlopen(f"http://127.0.0.1:{scraped[1][0]}/metrics").read().decode()
    shown = set(re.findall(r"^([a-z_]+)[ {]", page, re.MULTILINE))
    asked = set().union(*(names(query) for query in [*QUERIES, *ALERTS.values()]))
    assert len(asked) > 20 and not asked - shown


def test_prometheus_understands_the_rules() -> None:
    done = subprocess.run(
        [program("promtool"), "check", "rules", DEPLOY / "alerts.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0 and f"{len(RULES)} rules found" in done.stdout, done.stdout + done.stderr
    config_of = [program("promtool"), "check", "config", DEPLOY / "prometheus.yml"]
    assert subprocess.run(config_of, capture_output=True).returncode == 0


def series(metric: str, values: list[str], job: str = 'job="paxoskv",') -> list[dict[str, str]]:
    return [
        {"series": f'{metric}{{{job}instance="node{number}"}}', "values": value}
        for number, value in enumerate(values, 1)
    ]


@pytest.mark.parametrize(
    ("given", "fires"),
    [
        (series("up", ["1x20"] * 5) + series("paxos_ready", ["1x20"] * 5), set()),
        (series("up", ["1x20"] * 4 + ["0x20"]) + series("paxos_ready", ["1x20"] * 4), {"PaxosNodeDown"}),
        (
            series("up", ["1x20"] * 5) + series("paxos_ready", ["1x20"] * 3 + ["0x20"] * 2),
            {"PaxosMajorityInDanger", "PaxosNodeNotReady"},
        ),
        (
            series("up", ["1x20"] * 2 + ["0x20"] * 3) + series("paxos_ready", ["1x20"] * 2),
            {"PaxosMajorityInDanger", "PaxosNoMajority", "PaxosNodeDown"},
        ),
        (series("up", ["0x20"] * 5), {"PaxosNoMajority", "PaxosNodeDown"}),
        (series("paxos_entries_applied_total", ["0+100x20"] * 2 + ["7x20"]), {"PaxosNodeStands"}),
        (series("paxos_entries_applied_total", ["7x20"] * 3), set()),
        (series("paxos_certificate_seconds", ["86400x100"]), {"PaxosCertificateExpires"}),
        (series("paxos_claims_refused_total", ["0x5 3x15"]), {"PaxosSenselessMessages"}),
    ],
)
def test_the_alerts_fire_when_they_should(tmp_path: Path, given: list[Any], fires: set[str]) -> None:
    at = "85m" if "PaxosCertificateExpires" in fires else "15m"
    # None is expected: promtool complains of those that fire.
    tests = [{"eval_time": at, "alertname": name, "exp_alerts": []} for name in sorted(ALERTS)]
    file = tmp_path / "test.yml"
    file.write_text(
        yaml.safe_dump(
            {
                "rule_files": [str(DEPLOY / "alerts.yml")],
                "evaluation_interval": "1m",
                "tests": [{"interval": "1m", "input_series": given, "alert_rule_test": tests}],
            }
        )
    )
    done = subprocess.run([program("promtool"), "test", "rules", file], capture_output=True, text=True)
    fired = set(re.findall(r"alertname: ?(\w+)", done.stdout + done.stderr))
    assert fired == fires, done.stdout + done.stderr


@pytest.mark.slow
def test_prometheus_answers_each_query_of_the_dashboard_from_real_nodes(
    scraped: tuple[RealCluster, list[int]], tmp_path: Path
) -> None:
    cluster, ports = scraped
    settings = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    settings["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in ports]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(settings))
    shutil.copy(DEPLOY / "alerts.yml", tmp_path)
    where = f"127.0.0.1:{free_port()}"
    child = subprocess.Popen(
        [program("prometheus"), f"--config.file={tmp_path / 'prometheus.yml'}",
         f"--web.listen-address={where}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"],
        stdout=subprocess.DEVNULL, stderr=(tmp_path / "prometheus.log").open("w"),
    )  # fmt: skip

    def answer(path: str, **parameters: str) -> Any:
        try:
            url = f"http://{where}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
            return json.load(urllib.request.urlopen(url))["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:  # it is starting
                return None
            pytest.fail(f"{parameters}: {error.read().decode()}")
        except OSError:
            return None

    try:
        with cluster.client() as client:

            def all_are_answered() -> bool:
                client.put("key", "value")  # so that there is a rate of everything
                answers = {query: answer("query", query=query) for query in QUERIES}
                return all(found and found["result"] for found in answers.values())

            eventually(all_are_answered, "every query has an answer", 4 * DEADLINE_S)
        groups = answer("rules")["groups"]
        assert {rule["name"]: rule["health"] for rule in groups[0]["rules"]} == dict.fromkeys(ALERTS, "ok")
    finally:
        child.terminate()
        child.wait()


def test_the_dashboard_asks_the_data_source_that_is_provisioned() -> None:
    source = yaml.safe_load((DEPLOY / "grafana" / "datasource.yml").read_text())["datasources"][0]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {source["uid"]}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    mounts = COMPOSE["services"]["grafana"]["volumes"]
    provider = yaml.safe_load((DEPLOY / "grafana" / "dashboards.yml").read_text())["providers"][0]
    assert any(provider["options"]["path"] in mount for mount in mounts if "grafana.json" in mount)
