"""`pip install` of the project's directory brings one package, with the library, the client and a node."""

import importlib
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from paxoskv import compiled
from tests.harness.ports import free_port
from tests.harness.processes import DEADLINE_S, PROJECT, RealCluster, die_with_parent, eventually, finish

PROGRAM = """
import asyncio
import sys

from paxoskv import AsyncClient, Client, Cluster, Command, Outcome, Verb, load

cluster: Cluster = load(sys.argv[1])
with Client(cluster, timeout=60) as client:
    client.put("colour", "green")
    assert client.compare_and_set("colour", "green", "blue") == (True, "blue")
    assert client.increment("visits") == 1
    assert client.execute([Command(Verb.GET, "colour")])[0].outcome == Outcome.OK


async def main() -> None:
    async with AsyncClient(cluster, timeout=60) as client:
        await asyncio.gather(*(client.put(f"key{number}", "value") for number in range(10)))
        assert [item.key async for item in client.scan("key")] == [f"key{number}" for number in range(10)]
        assert await client.get("colour") == "blue"


asyncio.run(main())
print(sys.modules["paxoskv"].__file__)
"""

INSTALLED = """
from importlib.metadata import files

print(*(next(part for part in path.parts if part != "..") for path in files("paxoskv")))
"""


def copied(source: Path) -> Path:
    """A copy of what the package is built from: building leaves files behind."""
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "multipaxos.py", "requirements.txt", "requirements-fast.txt"):
        shutil.copy(PROJECT / name, source / name)
    for name in ("gen-py", "paxoskv", "tools"):  # with the links in it, as they are
        shutil.copytree(PROJECT / name, source / name, symlinks=True)
    return source


@pytest.mark.slow
@pytest.mark.skipif(
    not compiled.directory().exists(), reason="nothing is compiled (scripts/setup.sh --fast does it)"
)
def test_a_wheel_has_the_compiled_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAXOSKV_INTERPRETED", raising=False)
    source = copied(tmp_path / "source")
    there = source / compiled.directory().relative_to(PROJECT)
    shutil.copytree(compiled.directory(), there)  # so they need not be compiled again
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", source]
    done = finish([*command, "-w", tmp_path], 4 * DEADLINE_S)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.split("-")[2] == sys.implementation.cache_tag.replace("cpython-", "cp")
    shutil.unpack_archive(wheel, tmp_path / "unpacked", "zip")
    code = "from paxoskv.node import server; from paxoskv.wire import codec; print(server.TEXT, codec.codec)"
    done = finish([sys.executable, "-c", code], cwd=tmp_path / "unpacked")
    assert done.stdout.startswith(f"compiled <module 'paxoskv.wire.kvstore_codec' from '{tmp_path}"), (
        done.stderr
    )


@pytest.mark.slow
def test_an_installed_client_works_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAXOSKV_INTERPRETED", "1")
    source = copied(tmp_path / "source")
    environment = tmp_path / "environment"
    finish([sys.executable, "-m", "venv", environment]).check_returncode()
    python = environment / "bin" / "python"
    done = finish(
        [python, "-m", "pip", "install", "--quiet", "--retries", "1", source], 4 * DEADLINE_S, cwd=tmp_path
    )
    if done.returncode and ("No matching distribution" in done.stderr or "onnection" in done.stderr):
        pytest.skip(f"pip cannot get the packages: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "program.py").write_text(PROGRAM)
    with RealCluster(tmp_path / "cluster", nodes=3) as cluster:
        done = finish([python, "program.py", cluster.file], cwd=elsewhere)
        assert done.returncode == 0, done.stderr
        assert str(environment) in done.stdout, "it is the installed one that was used"
        command = environment / "bin" / "paxoskv"
        for words in (["get", "colour"], ["status"], ["health", "--timeout", "60"]):
            done = finish([command, words[0], "--cluster", cluster.file, *words[1:]], cwd=elsewhere)
            assert done.returncode == 0, done.stderr
        shutil.copy(cluster.file, elsewhere / "cluster.json")
        done = finish([command, "get", "colour"], cwd=elsewhere)
        assert (done.returncode, done.stdout) == (0, "blue\n"), "cluster.json of the current directory"
    done = finish([python, "-c", INSTALLED], cwd=elsewhere)
    assert set(done.stdout.split()) == {"paxoskv", "paxoskv-0.1.0.dist-info", "bin"}, "no other name is taken"
    port = free_port()
    server = [environment / "bin" / "paxoskv-server", "--standalone", "--listen", f"127.0.0.1:{port}"]
    single = ["--single", f"127.0.0.1:{port}", "--timeout", "60"]
    done = finish([command, "get", *single, "colour"], cwd=elsewhere)
    assert done.stderr.startswith("paxoskv: no node can be reached")
    with subprocess.Popen([*server, "--data", "data"], cwd=elsewhere, preexec_fn=die_with_parent) as node:
        try:
            put = [command, "put", *single, "colour", "red"]
            eventually(lambda: finish(put, cwd=elsewhere).returncode == 0, "it serves")
            for words in (["get", "colour"], ["checkpoint"]):
                done = finish([command, words[0], *single, *words[1:]], cwd=elsewhere)
                assert done.returncode == 0, done.stderr
        finally:
            node.kill()


@pytest.mark.parametrize(
    "program, others",
    [("client.cli", ["node", "storage", "state", "protocol", "multipaxos"]), ("node.server", ["client"])],
)
def test_a_program_loads_no_module_of_the_other_side(program: str, others: list[str]) -> None:
    code = f"import sys, paxoskv.{program}; print(*(name for name in sys.modules if name[:7] == 'paxoskv'))"
    done = finish([sys.executable, "-c", code], cwd=PROJECT)
    done.check_returncode()
    loaded = {name.split(".")[1] for name in done.stdout.split() if "." in name}
    assert not loaded & set(others)


def test_the_commands_that_are_installed_are_there() -> None:
    scripts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == {"paxoskv", "paxoskv-server"}
    for place in scripts.values():
        module, _, function = place.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), place
