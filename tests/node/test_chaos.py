"""A history of real processes under kill -9, pauses and partitions at random, judged linearizable.

Beside it, tellers move money by transactions, and a watch follows all changes: they are of the same order.

Each node has a network namespace of its own, so that partitions are real: packets are dropped, and nobody is
told. `pytest tests/node/test_chaos.py --operations 50000` is the long run.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.linearizability import check
from tests.harness.network import CLIENT, HOSTS, Network, missing
from tests.harness.processes import Load, RealCluster, contended, eventually, final_reads, passes
from tests.harness.tellers import Tellers
from tests.harness.watching import Follower, judge_changes, replayed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing(ssh=False) is not None, reason=missing(ssh=False) or ""),
]

LAST = "z"  # the key that is put last of all
KEYS_PER = 40  # operations on one key, about: the judge looks at each key's history as a whole


@contextlib.contextmanager
def killed(cluster: RealCluster, network: Network, source: random.Random) -> Iterator[None]:
    """Two nodes end at once, and come back."""
    dead = source.sample(HOSTS, 2)
    cluster.kill(*dead)
    yield
    for node in dead:
        cluster.nodes[node].start()


@contextlib.contextmanager
def paused(cluster: RealCluster, network: Network, source: random.Random) -> Iterator[None]:
    """A node is stopped where it stands, and goes on."""
    node = source.choice(HOSTS)
    cluster.pause(node)
    yield
    cluster.resume(node)


@contextlib.contextmanager
def cut(cluster: RealCluster, network: Network, source: random.Random) -> Iterator[None]:
    """Two nodes hear nothing of the other three; clients reach all."""
    few = source.sample(HOSTS, 2)
    with network.parted(few, [node for node in HOSTS if node not in few]):
        yield


@contextlib.contextmanager
def bridged(cluster: RealCluster, network: Network, source: random.Random) -> Iterator[None]:
    """Two pairs of nodes, and one that hears all of them."""
    order = source.sample(HOSTS, 5)
    with network.parted(order[:2], order[2:4]):
        yield


FAULTS: tuple[Callable[..., contextlib.AbstractContextManager[None]], ...] = (killed, paused, cut, bridged)


def test_a_history_under_kills_pauses_and_partitions_is_linearizable(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    operations = request.config.getoption("--operations")
    with Network(tmp_path, ssh=False) as network, network.inside(CLIENT):
        file = network.cluster_file(tmp_path / "cluster")
        cluster = RealCluster(tmp_path, file=file, where=lambda node: network.at(node, []))
        with cluster, cluster.client() as client:
            csv = contended(tmp_path / "load.csv", operations, max(12, operations // KEYS_PER), seed=7)
            target = ["--cluster", cluster.file]
            began = time.monotonic()
            beginning = client.watch().place
            assert beginning is not None
            with Follower(cluster, "", beginning, LAST) as follower:
                with (
                    Tellers(cluster, client) as tellers,
                    Load(target, csv, "--in-flight", "4", "--processes", "2", timeout=120.0) as load,
                ):
                    done = disturb(cluster, network, load)
                    load.expect_success()
                client.put(LAST, LAST)
            seconds = time.monotonic() - began
            assert min(done.values()) > 0, f"the load ended before every kind of fault was tried: {done}"
            store = cluster.wait_until_stores_are_equal()
            told = follower.result()
            assert replayed(told) == store
            tellers.judge(store)
            history = load.operations()
            assert len(history) == operations
            keys = {operation.key for operation in history}
            judge_changes([change for change in told if change.key in keys], history)
            store = {key: value for key, value in store.items() if key in keys}
            violation = check([*history, *final_reads(store, history)])
            assert violation is None, str(violation)
            faults = ", ".join(f"{count} {fault.__name__}" for fault, count in done.items())
            print(f"{operations:,} operations, {tellers.count:,} of tellers, {len(told):,} changes told by "
                  f"{follower.clients:,} watches in {seconds:.0f} s, {faults}: linearizable")  # fmt: skip


def disturb(cluster: RealCluster, network: Network, load: Load) -> dict[Any, int]:
    """One fault after the other, while the load runs; return how often there was each."""
    source, done = random.Random(7), dict.fromkeys(FAULTS, 0)
    while load.running:
        fault = source.choice([each for each in FAULTS if done[each] == min(done.values())])
        with fault(cluster, network, source):
            passes(source.uniform(0.2, 2.5))
        done[fault] += 1
        eventually(
            lambda: not load.running or all((s := cluster.status(n)) and s.ready for n in HOSTS),
            "all nodes take commands again",
        )
    return done
