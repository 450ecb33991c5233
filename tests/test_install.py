"""`pip install` of the project's directory gives programs elsewhere the client library and command line."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import DEADLINE_S, PROJECT, RealCluster, finish

PROGRAM = """
import asyncio
import sys

from paxoskv import AsyncClient, Client, Command, Outcome, Verb, load

cluster = load(sys.argv[1])
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
print(sys.modules["client"].__file__)
"""


@pytest.mark.slow
def test_an_installed_client_works_from_anywhere(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a copy: building leaves files behind
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "gen-py", *(path.name for path in PROJECT.glob("*.py"))):
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        copy(PROJECT / name, source / name)
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
        command = environment / "bin" / "multipaxos-kv"
        for words in (["get", "colour"], ["status"], ["health", "--timeout", "60"]):
            done = finish([command, words[0], "--cluster", cluster.file, *words[1:]], cwd=elsewhere)
            assert done.returncode == 0, done.stderr
        shutil.copy(cluster.file, elsewhere / "cluster.json")
        done = finish([command, "get", "colour"], cwd=elsewhere)
        assert (done.returncode, done.stdout) == (0, "blue\n"), "cluster.json of the current directory"


def test_what_is_installed_is_all_that_the_client_imports() -> None:
    """Nothing of the server comes along, and nothing that the client needs is left behind."""
    code = (
        "import sys, client; here = client.__file__.rpartition('/')[0]; "
        "print(*sorted(n for n, m in sys.modules.items() if getattr(m, '__file__', None) and "
        "m.__file__.rpartition('/')[0] == here and n != '__main__'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    listed = next(
        line
        for line in (PROJECT / "pyproject.toml").read_text().splitlines()
        if line.startswith("py-modules")
    )
    assert done.stdout.split() == [
        word.strip(' "') for word in listed.partition("[")[2].strip("]").split(",")
    ]
