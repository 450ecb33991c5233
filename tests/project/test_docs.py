"""The documents: every command and program in them is run, as it stands there, and links lead somewhere.

The commands of one document are run in order, in a copy of the project of its own, on the machine of the one
who launches (see network.py): so the ports are free, and the five hosts have the addresses that they have in
docs/operations.md. What cannot be run there stands in ELSEWHERE, with the test that runs it.
"""

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paxoskv import config
from tests.harness import network
from tests.harness.fake_node import FakeCluster
from tests.harness.network import CLIENT, HOSTS, Network
from tests.harness.processes import DEADLINE_S, PROJECT, finish

README = PROJECT / "README.md"
DOCUMENTS = [README, *sorted(PROJECT.glob("docs/*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Commands that are not run here, and where they are instead: a test, or what runs the tests.
ELSEWHERE = {
    "scripts/demo.sh": "tests/scripts/test_scripts.py::test_the_demonstration_does_150_operations_fails_none",
    "scripts/test.sh": ".ci/run::scripts/test.sh",
    ".venv/bin/pip wheel": "tests/scripts/test_launch.py::def wheels",
    ".venv/bin/python client.py export": "tests/scripts/test_moving.py::def test_a_store_is_in_etcd",
    "python3 to_etcd.py": "tests/scripts/test_moving.py::def test_a_store_is_in_etcd",
    "scripts/trace.py": "tests/scripts/test_trace.py::test_a_scenario_is_told_in_words_and_drawn",
    "scripts/dashboard.py": "tests/scripts/test_dashboard.py::test_a_put_in_the_command_box",
    "scripts/explore.py": "tests/simulation/test_explore.py::test_the_command_says_what_it_found",
    ".venv/bin/python client.py watch": "tests/client/test_client.py::test_single_commands_print",
    ".venv/bin/python client.py replace": "tests/node/test_replaced.py::test_a_node_is_replaced_under_load",
    ".venv/bin/python server.py --id 3 --cluster shop-2.json": "tests/node/test_replaced.py::def replacement",
    "scripts/launch.sh up --restart --wheels": "tests/scripts/test_launch.py::test_five_hosts_are_set_up",
}
ENDLESS = ("--watch", "--follow")  # such commands go on until they are interrupted
ENDLESS_S = 4
PACKED = (
    "*.py",
    "*.json",
    "*.txt",
    "*.toml",
    "*.thrift",
    "*.csv",
    "gen-py",
    "paxoskv",
    "scripts",
    "bench",
    "deploy",
    "tools",
    "docs",
    "labs",
    "tests",
)


def blocks(document: Path, language: str) -> list[str]:
    return [text for name, text in FENCE.findall(document.read_text()) if name == language]


def commands(block: str) -> list[str]:
    """One for each line; lines that end with a backslash go on."""
    return [line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def elsewhere(command: str) -> bool:
    return any(command.startswith(begin) for begin in ELSEWHERE)


def script(block: str) -> str:
    """The block as a shell runs it, until something fails; without what is run elsewhere."""
    lines = []
    for command in commands(block):
        if elsewhere(command):
            continue
        if any(option in command for option in ENDLESS):
            command = f"timeout -s INT {ENDLESS_S} {command} || [ $? = 124 ]"
        lines.append(command)
    return "\n".join(lines)


def copied(directory: Path) -> Path:
    """A copy of the project, with our packages."""
    project = directory / "project"
    project.mkdir(parents=True)
    for pattern in PACKED:
        for path in PROJECT.glob(pattern):
            target = project / path.name
            if path.is_dir():
                shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(path, target)
    (project / ".venv").symlink_to(sys.prefix)
    return project


class Documented:
    """A copy of the project, on the sixth machine, in which a document's commands are run."""

    def __init__(self, hosts: Network, directory: Path) -> None:
        self.hosts = hosts
        self.project = copied(directory)
        shims = directory / "bin"  # `ssh` with the keys of these machines, not with those of the user
        shims.mkdir()
        shim = shims / "ssh"
        shim.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {hosts.ssh_config} "$@"\n')
        shim.chmod(0o755)
        self.environment = {**os.environ, "PATH": f"{shims}:{os.environ['PATH']}"}
        self.environment.pop("PYTHON", None)

    def run(self, *command: str | Path) -> None:
        done = self.hosts.finish(CLIENT, command, 4 * DEADLINE_S, cwd=self.project, env=self.environment)
        assert done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr[-3000:]}"

    def run_block(self, block: str) -> None:
        self.run("bash", "-exc", script(block))


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    reason = network.missing() or (None if shutil.which("curl") else "curl is not installed")
    if reason is not None:
        pytest.skip(reason)
    with Network(tmp_path_factory.mktemp("network")) as made:
        yield made


# --------------------------------------------------------------------------------------------------- commands


@pytest.mark.slow
def test_the_commands_of_the_readme_work_as_they_stand(hosts: Network, tmp_path: Path) -> None:
    documented = Documented(hosts, tmp_path)
    stop = [documented.project / "scripts" / "cluster.sh", "stop"]
    try:
        for block in blocks(README, "sh"):
            documented.run_block(block)
        documented.run(*stop[:1], "start")
        for program in blocks(README, "python"):
            documented.run(documented.project / ".venv" / "bin" / "python", "-c", program)
    finally:
        documented.run(*stop)


@pytest.mark.slow
def test_the_commands_of_the_operations_guide_work_on_five_hosts(hosts: Network, tmp_path: Path) -> None:
    """With its config.json, but for what is different here: one file system, the tests' key and packages."""
    documented = Documented(hosts, tmp_path)
    operations = PROJECT / "docs" / "operations.md"
    (text,) = blocks(operations, "json")
    document: dict[str, Any] = json.loads(text)
    assert [node["host"] for node in document["nodes"]] == [hosts.address(number) for number in HOSTS]
    for node in document["nodes"]:
        node.pop("ssh_port", None)
        node["directory"] = str(tmp_path / f"host-{node['id']}")
    document["ssh"] = {"python": sys.executable}
    (documented.project / "cluster.json").write_text(json.dumps(document))
    try:
        for block in blocks(operations, "sh"):
            documented.run_block(block)
    finally:
        documented.run("scripts/launch.sh", "down")
    assert not hosts.pids()


def test_every_command_is_run_here_or_by_the_test_that_is_named() -> None:
    run_here = {
        README,
        PROJECT / "docs" / "operations.md",
        PROJECT / "docs" / "tutorial.md",
    }  # see test_tutorial.py
    for document in DOCUMENTS:
        if document not in run_here:
            left = [command for block in blocks(document, "sh") for command in commands(block)]
            assert all(map(elsewhere, left)), f"{document.name}: {left}"
    shown = [c for document in DOCUMENTS for block in blocks(document, "sh") for c in commands(block)]
    for begin, place in ELSEWHERE.items():
        file, _, what = place.partition("::")
        assert what in (PROJECT / file).read_text(), f"{begin}: {place} is not there"
        assert any(command.startswith(begin) for command in shown), f"{begin} is in no document"


def test_no_command_hides_in_a_block_of_another_kind() -> None:
    for document in DOCUMENTS:
        assert {name for name, _ in FENCE.findall(document.read_text())} <= {"sh", "python", "json", "text"}
        text = FENCE.sub("", document.read_text())
        hidden = re.findall(r"^ {4}(?:\.venv/|scripts/|bench/|tools/|python3? |\$ ).*", text, re.MULTILINE)
        assert not hidden, f"{document.name}: {hidden}"


# ------------------------------------------------------------------------------------------ what else is said


def test_cluster_files_in_documents_are_read(tmp_path: Path) -> None:
    shown = [text for document in DOCUMENTS for text in blocks(document, "json")]
    assert shown
    for text in shown:
        (tmp_path / "cluster.json").write_text(text)
        assert len(config.load(tmp_path / "cluster.json").nodes) == 5


@pytest.mark.parametrize("document", [*DOCUMENTS, PROJECT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_files_of_the_project_that_a_document_names_are_there(document: Path) -> None:
    named = set(
        re.findall(
            r"`((?:paxoskv|scripts|bench|deploy|tools|tests|docs|examples)/[\w@./-]*\w)[ `]",
            document.read_text(),
        )
    )
    missing = sorted(name for name in named if not (PROJECT / name).exists())
    assert not missing


def test_the_transaction_of_the_operations_guide_prints_what_it_shows(tmp_path: Path) -> None:
    text = (PROJECT / "docs" / "operations.md").read_text().partition("\n## Transactions\n")[2]
    (_, block), (kind, shown) = FENCE.findall(text)[:2]
    assert kind == "text" and "transaction" in block
    with contextlib.closing(FakeCluster(tmp_path)) as fakes:
        nodes = [{"id": node.id, "host": node.host, "port": node.port} for node in fakes.cluster.nodes]
        (tmp_path / "cluster.json").write_text(json.dumps({"name": "fake", "nodes": nodes}))
        environment = {**os.environ, "PAXOSKV_CLUSTER": str(tmp_path / "cluster.json")}
        (tmp_path / "client.py").symlink_to(PROJECT / "client.py")
        (tmp_path / ".venv").symlink_to(sys.prefix)
        done = finish(["bash", "-ec", block], cwd=tmp_path, env=environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == shown
        assert fakes.content == {"stock": "1", "order/7": "book"} and "order/7" in fakes.store.leases


def test_messages_that_the_operations_guide_explains_are_those_that_are_said() -> None:
    table = (PROJECT / "docs" / "operations.md").read_text().partition("| line | what to do |")[2]
    said = "".join((PROJECT / "deploy" / name).read_text() for name in ("launch.py", "host.py"))
    lines = re.findall(r"^\| (.*?) \|", table.partition("\n\n")[0], re.MULTILINE)[1:]
    assert len(lines) > 10
    for line in lines:
        for message in re.findall(r"`(.*?)`", line):
            for part in filter(None, re.split(r"\.\.\.|\bN\b", message)):
                assert part.strip() in said, message
