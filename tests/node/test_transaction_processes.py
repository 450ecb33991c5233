"""Transactions at real nodes under kill -9: one order, each done once, and no money lost or made."""

import random
import re
from pathlib import Path

import pytest

from paxoskv import Client, NotDoneError, UnknownOutcome, transactions
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


def test_the_first_newer_command_waits_for_every_node_and_no_later_one_does(tmp_path: Path) -> None:
    """Node 3 stands still: it has said what it knows, and cannot note that its data is not to go back."""
    with (
        RealCluster(tmp_path, nodes=3, request_timeout_s=1) as cluster,
        Client(cluster.settings, timeout=4) as client,
    ):

        def done(expected: str = "done") -> bool:
            try:
                client.transaction([], [transactions.put("key", "new")])
            except (NotDoneError, UnknownOutcome) as error:
                return re.search(expected, str(error)) is not None
            return expected == "done"

        cluster.pause(3)
        refused = "not done.*node 3 (has not noted yet|is not connected)"
        eventually(lambda: done(refused), "the command waits for node 3")
        assert client.get("key") is None
        cluster.resume(3)
        eventually(done, "all nodes have noted it")
        cluster.pause(3)
        eventually(done, "a later one waits for nobody")
        cluster.kill(1, 2)
        cluster.restart(1, 2)
        eventually(done, "nor does one after a restart")
        cluster.resume(3)
