"""Faults on purpose, switched by a file: links that are cut, acceptors that fail."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from paxoskv.client.operations import ClientError
from paxoskv.config import ClusterError, load_faults
from tests.harness.processes import RealCluster, eventually


def switch(file: Path, **faults: Any) -> None:
    new = file.with_suffix(".new")
    new.write_text(json.dumps(faults))
    new.replace(file)


def connected(cluster: RealCluster, node: int) -> list[int]:
    status = cluster.status(node)
    return [] if status is None else status.connected


def test_a_link_is_cut_and_healed_by_the_file_and_the_cluster_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "faults.json"
    switch(file, cut=[[1, 2]])
    with RealCluster(tmp_path, nodes=3, faults=file.name) as cluster, cluster.client() as client:
        eventually(lambda: connected(cluster, 3) == [1, 2], "node 3 hears all")
        assert (connected(cluster, 1), connected(cluster, 2)) == ([3], [3]), "cut from the start"
        client.put("color", "green")
        switch(file)
        eventually(lambda: connected(cluster, 1) == [2, 3], "the link is healed")
        switch(file, cut=[[3, 1], [3, 2]])
        eventually(lambda: not connected(cluster, 3), "node 3 is cut off")
        client.put("color", "blue")
        status = cluster.status(3)
        assert status is not None
        eventually(lambda: (s := cluster.status(3)) and s.state == "no-majority", "node 3 finds that out")
        assert any("cut on purpose" in problem for problem in status.problems)
        switch(file, cut="all")  # wrong: it stays as it is
        eventually(lambda: "is not a list of pairs" in cluster.nodes[3].log(), "it is logged")
        assert not connected(cluster, 3)
        file.unlink()
        assert cluster.wait_until_stores_are_equal() == {"color": "blue"}


def test_a_file_that_others_may_write_and_one_that_is_none_are_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "faults.json"
    switch(file, cut=[[1, 2]])
    assert load_faults(file).cut == ((1, 2),)
    for mode in (0o666, 0o662, 0o620):
        file.chmod(mode)
        with pytest.raises(ClusterError, match=r"others may write it \(mode 6"):
            load_faults(file)
    file.unlink()
    os.mkfifo(file, 0o600)  # to read it would wait for a writer
    with pytest.raises(ClusterError, match="is no regular file"):
        load_faults(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(ClusterError, match="is no regular file"):
        load_faults(file)


def test_an_acceptor_fails_for_as_long_as_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "faults.json"
    with RealCluster(tmp_path, nodes=3, faults=file.name) as cluster, cluster.client() as client:
        switch(file, acceptors={"2": 1, "3": 1})
        eventually(
            lambda: all("acceptor=1.0" in cluster.nodes[n].log() for n in (2, 3)), "two acceptors fail"
        )
        with cluster.client(timeout=1) as hasty, pytest.raises(ClientError):
            hasty.put("color", "green")  # one acceptor of three is no quorum
        switch(file)
        client.put("color", "blue")
        assert cluster.wait_until_stores_are_equal() == {"color": "blue"}


def test_where_the_clusters_file_names_no_faults_none_can_be_switched(tmp_path: Path) -> None:
    switch(tmp_path / "faults.json", cut=[[1, 2], [1, 3], [2, 3]])
    with RealCluster(tmp_path, nodes=3) as cluster:
        eventually(lambda: connected(cluster, 1) == [2, 3], "all are connected")
        assert "event=faults" not in cluster.nodes[1].log()
