"""Transactions at real nodes under kill -9: one order, each done once, and no money lost or made."""

import random
from pathlib import Path

import pytest

from tests.harness.processes import RealCluster, eventually, passes
from tests.harness.tellers import Tellers


@pytest.mark.slow
def test_money_is_moved_once_in_one_order_while_nodes_are_killed(tmp_path: Path) -> None:
    source = random.Random(5)
    with RealCluster(tmp_path, nodes=5) as cluster, cluster.client() as client:
        with Tellers(cluster, client) as tellers:
            for _ in range(4):
                dead = source.sample(range(1, 6), 2)
                cluster.kill(*dead)
                passes(source.uniform(0.3, 1.0))
                cluster.restart(*dead)
            eventually(lambda: tellers.count > 300, "the tellers work")
        tellers.judge(cluster.wait_until_stores_are_equal())
