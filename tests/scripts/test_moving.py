"""The recipe of docs/etcd.md, as it stands there, with a real etcd."""

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from paxoskv import Command, Verb
from tests.harness.ports import free_port
from tests.harness.processes import PROJECT, RealCluster

DEADLINE_S = 60.0
ODD = {"": "", "NUL \0": "\0", "line\nend": "tab\t", 'q"uote\\': "\u2028", "\U0001f600": "caf\u00e9" * 1000}


def address() -> str:
    """One that nobody has."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[str]:
    """The address of an etcd with nothing in it."""
    program = shutil.which("etcd")
    if program is None:
        pytest.skip("etcd is not installed (Debian: apt-get install etcd-server)")
    here, peers = address(), address()
    options = {
        "data-dir": tmp_path / "etcd",
        "listen-client-urls": here,
        "advertise-client-urls": here,
        "listen-peer-urls": peers,
        "initial-advertise-peer-urls": peers,
        "initial-cluster": f"default={peers}",
    }
    command = [program, *(f"--{name}={value}" for name, value in options.items())]
    with (tmp_path / "etcd.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                with urllib.request.urlopen(here + "/health", timeout=5):
                    break
            except OSError:
                told = (tmp_path / "etcd.log").read_text()
                assert process.poll() is None and time.monotonic() < deadline, told
                time.sleep(0.05)
        yield here
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


def test_a_store_is_in_etcd_as_it_was_here(tmp_path: Path, etcd: str) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "etcd.md").read_text(), re.DOTALL)
    (tmp_path / "to_etcd.py").write_text(program)
    export = tmp_path / "store.jsonl"
    content = {key: value for key, value in ODD.items() if key} | {f"key {i}": str(i) for i in range(250)}
    content["long"] = "v" * (512 << 10)
    with RealCluster(tmp_path, nodes=3) as cluster, cluster.client() as client:
        client.execute([Command(Verb.PUT, key, value) for key, value in content.items() if key != "long"])
        client.put("long", content["long"])
        words = ["export", str(export), "--cluster", str(cluster.file)]
        subprocess.run([sys.executable, PROJECT / "client.py", *words], check=True, timeout=DEADLINE_S)
    moved = subprocess.run(
        [sys.executable, tmp_path / "to_etcd.py", etcd, export],
        capture_output=True, text=True, timeout=DEADLINE_S, check=True,
    )  # fmt: skip
    assert moved.stdout == f"{len(content)} keys are in etcd as they were here\n"
    body = json.dumps({"key": "AA==", "range_end": "AA==", "count_only": True}).encode()
    with urllib.request.urlopen(etcd + "/v3/kv/range", body, timeout=5) as answer:
        assert int(json.load(answer)["count"]) == len(content)
