"""The examples: clients in other languages, built and run as examples/README.md says, against real nodes."""

import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.processes import DEADLINE_S, RealCluster

PROJECT = Path(__file__).resolve().parents[2]
EXAMPLES = PROJECT / "examples"
SAID = [
    "put", "get", "unicode", "empty value", "absent", "largest value", "one byte more", "compare", "set",
    "increment", "batch", "batch value",
]  # fmt: skip
BUILD_S = 8 * DEADLINE_S  # a C++ compiler, beside other tests


def commands(language: str) -> list[str]:
    """The commands that examples/README.md shows under this heading."""
    section = (EXAMPLES / "README.md").read_text().split(f"\n## {language}\n")[1].split("\n## ")[0]
    return re.findall(r"^    (.+)$", section, re.MULTILINE)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the examples are built from."""
    copy = tmp_path_factory.mktemp("sources")
    unwanted = shutil.ignore_patterns("node_modules", "gen-*", "package-lock.json", "kvstore.thrift")
    shutil.copytree(EXAMPLES, copy / "examples", ignore=unwanted)
    shutil.copy(PROJECT / "kvstore.thrift", copy)
    return copy


def build(sources: Path, language: str, tools: dict[str, str]) -> tuple[list[str], Path]:
    """Carry out the README's commands but the last; that one, without its arguments, and where to run it.

    `tools` are commands that are needed, and where they come from: without one of them the test is skipped.
    """
    for tool, package in tools.items():
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing (Debian: apt-get install {package})")
    enter, *steps, run = commands(language)
    directory = sources / enter.removeprefix("cd ")
    for step in steps:
        done = subprocess.run(
            step, shell=True, cwd=directory, capture_output=True, text=True, timeout=BUILD_S, check=False
        )
        if step.startswith("npm ") and done.returncode:
            pytest.skip(f"npm cannot get its packages: {done.stderr.strip().splitlines()[-1:]}")
        assert done.returncode == 0, f"{step}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return run.partition(" demo: ")[0].split(), directory


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RealCluster]:
    with RealCluster(tmp_path, nodes=3) as running:
        yield running


def use(cluster: RealCluster, command: list[str], directory: Path, prefix: str) -> None:
    """Run an example, end the node that it talks to when it waits for that, and see what it did."""
    nodes = [f"{member.host}:{member.port}" for member in cluster.settings.nodes]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [*command, prefix, *nodes], cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=errors, text=True,
        ) as child,
    ):  # fmt: skip
        assert child.stdin is not None and child.stdout is not None
        watchdog = threading.Timer(2 * DEADLINE_S, child.kill)
        watchdog.start()
        try:
            said = []
            for line in child.stdout:
                said.append(line.strip())
                if line.startswith("waiting: end "):
                    node = nodes.index(line.split()[2].rstrip(",")) + 1
                    cluster.kill(node)
                    child.stdin.write("\n")
                    child.stdin.close()
            code = child.wait(DEADLINE_S)
            errors.seek(0)
            assert code == 0, f"{said}\n{errors.read()[-3000:]}"
        finally:
            watchdog.cancel()
            child.kill()
    assert said[:-2] == [f"{step}: ok" for step in SAID]
    assert said[-1] == "failover: ok"
    text = "\U0001f994 Zürich 漢字 \U00010348"
    with cluster.client() as client:
        held = {item.key: item.value for item in client.scan(prefix)}
    assert held == {
        prefix + "key": "new", prefix + text: text, prefix + "empty": "", prefix + "n": "8",
        prefix + "largest": "\U0001f994" * 131_072,
    }  # fmt: skip


def test_python_with_nothing_but_thrift(cluster: RealCluster) -> None:
    (shown,) = commands("Python")
    words = shown.partition(" demo: ")[0].split()
    assert words[0] == ".venv/bin/python"
    code = (PROJECT / words[1]).read_text()
    ours = {path.stem for path in PROJECT.glob("*.py")}
    assert not ours & set(re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE))
    use(cluster, [sys.executable, words[1]], PROJECT, "python:")


@pytest.mark.slow
def test_javascript_with_what_npm_has(cluster: RealCluster, sources: Path) -> None:
    tools = {"node": "nodejs", "npm": "npm", "thrift": "thrift-compiler"}
    command, directory = build(sources, "Node.js", tools)
    use(cluster, command, directory, "node:")


@pytest.mark.slow
def test_cplusplus_with_what_debian_has(cluster: RealCluster, sources: Path) -> None:
    if not Path("/usr/include/thrift/Thrift.h").exists():
        pytest.skip("Thrift's library for C++ is missing (Debian: apt-get install libthrift-dev)")
    if not Path("/usr/include/boost/version.hpp").exists():
        pytest.skip(
            "boost is missing, which Thrift's library includes (Debian: apt-get install libboost-dev)"
        )
    command, directory = build(sources, "C++", {"g++": "g++", "thrift": "thrift-compiler"})
    use(cluster, command, directory, "c++:")
