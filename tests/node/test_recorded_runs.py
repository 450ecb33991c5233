"""What live nodes have recorded while some of them were killed is a run that the rules allow."""

import json
from pathlib import Path

import pytest

from paxoskv.config import WAYS
from paxoskv.page.instance import joined
from tests.harness.explore.recorded_run import Event, RecordedRun, Refused
from tests.harness.processes import Clients, RealCluster, eventually

pytestmark = pytest.mark.slow
LIFE = 1_000_000  # ids of a process's events begin so much above those of the one before


class Recordings:
    """What the processes of a cluster have recorded, those that were killed included."""

    def __init__(self, cluster: RealCluster) -> None:
        self.cluster = cluster
        self.gone: list[list[Event]] = []
        self.lives = dict.fromkeys(cluster.ids, 0)

    def of(self, node: int) -> list[Event]:
        """What the process has recorded so far."""
        shift = self.lives[node] * LIFE
        with self.cluster.client() as client:
            events = [json.loads(line) for line in client.trace(node)[1]]
        for event in events:
            event["id"] += shift
            if event.get("cause"):
                event["cause"] += shift
            if "because" in event:
                event["because"] = [cause + shift for cause in event["because"]]
        return events

    def kill(self, node: int) -> None:
        self.gone.append(self.of(node))
        self.cluster.kill(node)
        self.lives[node] += 1

    def all(self) -> list[Event]:
        return joined([*self.gone, *map(self.of, self.cluster.ids)])


@pytest.mark.parametrize("proposing", WAYS)
def test_a_run_with_kills_is_one_that_the_rules_allow(tmp_path: Path, proposing: str) -> None:
    with RealCluster(tmp_path, nodes=3, trace=True, proposing=proposing) as cluster:
        recordings = Recordings(cluster)
        with Clients(cluster, size=20) as clients:
            clients.progress(60)
            for node in (2, 3):
                recordings.kill(node)
                clients.progress(30)
                cluster.restart(node)
                cluster.wait_until_ready()
                clients.progress(60)
        eventually(lambda: len({cluster.applied()}) == 1, "it has come to rest")
        events = recordings.all()
    run = RecordedRun(events)
    checked = run.check()
    assert checked["restart"] == 5 and len(run.nodes) == 3
    assert min(checked[kind] for kind in ("promised", "accepted", "durable", "chosen", "applied")) > 0
    assert checked["chosen slots"] >= 100
    changed = [event | {"length": event["length"] + 1} if is_vote(event) else event for event in events]
    with pytest.raises(Refused, match="before it is durable"):
        RecordedRun(changed).check()


def is_vote(event: Event) -> bool:
    return event["kind"] == "sent" and event["message"] == "Accepted" and event["vote"] == "accepted"
