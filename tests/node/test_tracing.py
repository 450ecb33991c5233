"""Live nodes record what happens when they are asked to, and explain tells it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from paxoskv import Client
from paxoskv.client import cli
from paxoskv.page.instance import about, joined, written
from tests.harness.processes import PROJECT, RealCluster, eventually

CLIENT = PROJECT / "client.py"


def client(cluster: RealCluster, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, CLIENT, words[0], "--cluster", cluster.file, *words[1:]]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60)


def recorded(cluster: RealCluster, known: Client) -> list[dict[str, Any]]:
    return joined([json.loads(event) for event in known.trace(node)[1]] for node in cluster.ids)


def test_what_a_live_cluster_has_recorded_tells_how_a_value_came_to_be(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=3) as cluster, cluster.client() as known:
        known.put("color", "red")
        refused = client(cluster, "explain", "colo")
        assert refused.returncode == cli.NEGATIVE
        assert "node 1 does not record" in refused.stderr and "trace on" in refused.stderr
        journals = client(cluster, "explain", "color")
        assert journals.returncode == 0
        assert "node 1 does not record" in journals.stdout and "trace on" in journals.stdout
        assert "has put color=red in slot 0 of log" in journals.stdout
        assert "Slot 0 is chosen, and applied there." in journals.stdout
        drawn = client(cluster, "explain", "color", "--svg", "-")
        assert drawn.stdout.startswith("<svg") and drawn.stderr == ""
        assert not re.search(r"\d ms\b", journals.stdout + drawn.stdout), "a journal holds no times"

        on = client(cluster, "trace", "on")
        assert on.stdout.splitlines() == [f"node {node}: records" for node in cluster.ids]
        for value in ("green", "blue"):
            known.put("color", value)
        known.put("other", "1")
        eventually(
            lambda: sum(e["kind"] == "applied" for e in recorded(cluster, known)) == 9, "all have applied it"
        )
        events = recorded(cluster, known)
        place = written(events, "color")
        assert place is not None and written(events, "colo") is None
        told = about(events, *place)
        kinds = [event["kind"] for event in told]
        assert kinds[0] == "asked" and told[0]["commands"] == ["put color=blue"]
        assert {"proposed", "accepted", "sent", "delivered", "journaled", "durable", "chosen"} < set(kinds)
        assert kinds.count("applied") == 3 and kinds.count("answered") == 1
        (chosen,) = (event for event in told if event["kind"] == "chosen")
        votes = {e["from"] for e in told if e["kind"] == "delivered" and e["id"] in chosen["because"]}
        assert votes | {chosen["node"]} == set(chosen["votes"]) and len(chosen["votes"]) >= 2
        sent = {event["id"] for event in told if event["kind"] == "sent"}
        assert all(event["cause"] in sent for event in told if event["kind"] == "delivered")

        page, words = tmp_path / "color.html", client(cluster, "explain", "color")
        assert "CHOSEN: put color=blue." in words.stdout and "green" not in words.stdout
        drawn = client(cluster, "explain", "color", "--html", str(page))
        assert drawn.returncode == 0 and drawn.stderr == f"{page} is written\n"
        assert '"put color=blue"' in page.read_text()
        place_words = ("--log", str(place[0]), "--slot", str(place[1]))
        again = client(cluster, "explain", *place_words).stdout
        assert again.startswith(words.stdout)  # something may have been repeated since
        assert client(cluster, "explain").returncode == cli.USAGE
        assert client(cluster, "explain", "color", "--svg", "/proc/none/a.svg").returncode == cli.OUTPUT

        cluster.kill(3)
        words = client(cluster, "explain", "color")
        assert words.returncode == 0 and "node 3" in words.stdout
        client(cluster, "trace", "off")
        told_now = client(cluster, "explain", "color")
        words = told_now.stdout
        assert told_now.returncode == 0, told_now.stderr
        assert "node 2 does not record" in words and "has put color=blue" in words and "CHOSEN" not in words


def test_nodes_whose_cluster_says_so_record_from_their_start(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=3, trace=True) as cluster, cluster.client() as known:
        known.put("color", "green")
        shown = client(cluster, "trace", "show")
        assert shown.returncode == 0
        kinds = {json.loads(line)["kind"] for line in shown.stdout.splitlines()}
        assert {"state", "stands", "promised", "leads", "asked", "chosen", "answered"} <= kinds


@pytest.mark.parametrize("way", ["classic", "leader"])
def test_a_value_is_explained_in_the_other_ways_to_propose(way: str, tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=3, trace=True, proposing=way) as cluster, cluster.client() as known:
        known.put("color", "green")
        words = client(cluster, "explain", "color").stdout
        for said in ("asks node", "proposes it.", "CHOSEN: put color=green.", "answers its client: OK."):
            assert said in words, words
        assert "stands for log 1 with ballot" in words and "have promised" in words
        assert ("gives ballot" in words) == (way == "classic"), words
