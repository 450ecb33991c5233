"""The named scenarios that scripts/trace.py records: each a script for the cluster of scenario.py.

A function with @story and a name is all that a further one needs; its docstring is what the page says above
the diagram: a title, and what happens. It makes a RecordedCluster, and returns it when the story is told.
"""

from collections.abc import Callable
from typing import NamedTuple

from paxoskv.protocol.faults import Failures
from paxoskv.protocol.node import OWN_LOGS
from paxoskv.wire.structs import Accept, Prepare
from tests.harness.recorded import RecordedCluster
from tests.harness.scenario import Answer


class Story(NamedTuple):
    """One scenario: how it is called, what happens in it, in a sentence, and the script."""

    name: str
    title: str
    text: str
    script: Callable[[str], RecordedCluster]
    way: str  # to propose, that the text is about

    def play(self, way: str | None = None) -> RecordedCluster:
        """Play it, in this way to propose or in its own."""
        return self.script(way or self.way)


STORIES: dict[str, Story] = {}

Script = Callable[[str], RecordedCluster]


def story(name: str, way: str = OWN_LOGS) -> Callable[[Script], Script]:
    def add(script: Script) -> Script:
        title, _, text = (script.__doc__ or "").partition("\n\n")
        STORIES[name] = Story(name, title.rstrip("."), " ".join(text.split()), script, way)
        return script

    return add


def begun(way: str, **settings: object) -> RecordedCluster:
    """Five nodes that are ready; what happens from now on is recorded."""
    cluster = RecordedCluster(proposing=way, **settings)
    cluster.record()
    return cluster


def answered(cluster: RecordedCluster, *answers: Answer, within_s: float = 5) -> RecordedCluster:
    """Run until these are answered, and the news of it has spread."""
    cluster.run_until(lambda: all(answer.answered() for answer in answers), within_s)
    cluster.run(0.04)
    return cluster


@story("put")
def put(way: str) -> RecordedCluster:
    """A client puts a value.

    A client asks node 2 to put color=green. Watch for the moment when three of five disks have the entry:
    from then on it is chosen, whatever happens. Node 2 knows it a message later, and answers when nothing
    earlier can come any more.
    """
    cluster = begun(way)
    return answered(cluster, cluster.put(2, "color", "green"))


@story("start")
def start(way: str) -> RecordedCluster:
    """Five nodes start.

    Each node stands for its own log (phase 1 of Paxos): it asks all for a promise, and leads when three have
    given it. From then on it may propose without asking again.
    """
    return RecordedCluster(recorded=True, proposing=way)


@story("two-proposers")
def two_proposers(way: str) -> RecordedCluster:
    """Two nodes compete for one log.

    Node 1 dies when only it and node 2 have accepted x=1. Nodes 2 and 3 both want to finish its log, and
    stand above each other. The promises make sure that whoever wins finds the entry or makes sure that it
    never was: all end with the same log.
    """
    cluster = begun(way)
    with cluster.deliver_only(Accept, to={1, 2}):
        cluster.put(1, "x", "1")
        cluster.run(0.01)
    cluster.crash(1)
    first = cluster.hold(Prepare, sender={2})
    second = cluster.hold(Accept, sender={3}, where=lambda message: message.log == 1)
    answers = [cluster.put(node, f"key{node}", "1") for node in (2, 3)]
    cluster.run_until(lambda: bool(second.held), within_s=2)  # 3 leads log 1, and its sync is on its way
    first.release()
    cluster.run(0.05)  # 2 has stood with a higher round
    second.release()
    return answered(cluster, *answers)


@story("classic-duel", "classic")
def classic_duel(way: str) -> RecordedCluster:
    """Two proposers duel, the classic way.

    All share one log, and nobody leads it for longer than for one command ("proposing": "classic"): each
    command takes a ballot of its own, with both phases. Nodes 1 and 5 get a command at the same moment. The
    lower ballot is refused: its proposer waits a little, by chance, and stands again above the other.
    """
    cluster = begun(way)
    return answered(cluster, cluster.put(1, "x", "1"), cluster.put(5, "x", "5"))


@story("forwarded", "leader")
def forwarded(way: str) -> RecordedCluster:
    """A node hands a command to the leader.

    All share one log, and node 1 leads it for all ("proposing": "leader"). A client asks node 4, which hands
    the command to node 1. Node 1 needs no promise any more: it sends its Accept at once. Node 4 answers when
    it has applied the entry itself.
    """
    cluster = begun(way)
    return answered(cluster, cluster.put(4, "color", "green"))


@story("leader-dies")
def leader_dies(way: str) -> RecordedCluster:
    """A leader dies, and its entry survives.

    Node 1 leads its log and sends x=1, but only nodes 1, 2 and 3 get it; then node 1 dies, before its client
    has an answer. A client asks node 4 to put y=2: it is chosen, and waits, for something earlier might still
    come from node 1. That is why another node stands for log 1: it finds x=1 in the promises, finishes it,
    and appends a skip.
    """
    cluster = begun(way)
    with cluster.deliver_only(Accept, to={1, 2, 3}):
        cluster.put(1, "x", "1")
        cluster.run(0.0015)
    cluster.crash(1)
    return answered(cluster, cluster.put(4, "y", "2"))


@story("revoked")
def revoked(way: str) -> RecordedCluster:
    """A dead owner's log is revoked.

    Node 1 is dead, so nobody says that nothing earlier will come from it, and node 2's entry is chosen but
    cannot be applied. Another node stands for log 1, and appends a skip, stamped far ahead. Then node 1 is
    back, and takes its log back with a higher ballot.
    """
    cluster = begun(way)
    cluster.crash(1)
    answered(cluster, cluster.put(2, "y", "2"))
    cluster.restart(1)
    cluster.run_until(lambda: cluster.core(1).ready, within_s=5)
    return answered(cluster, cluster.put(1, "x", "1"))


@story("failing-acceptors")
def failing_acceptors(way: str) -> RecordedCluster:
    """Acceptors fail at random.

    The acceptors of nodes 3, 4 and 5 ignore half of all messages, as in the original experiment. It costs
    time and repeats, and nothing else.
    """
    failures = {node: Failures(probability=0.5) for node in (3, 4, 5)}
    cluster = begun(way, seed=3, failures=failures)
    for number in range(3):
        answered(cluster, cluster.increment(1 + number, "n"))
    return cluster


@story("catch-up")
def catch_up(way: str) -> RecordedCluster:
    """A node catches up.

    Node 5 is down while the others go on. When it is back, it learns how long the logs are, fetches what it
    lacks, and applies it in the same order as everybody.
    """
    cluster = begun(way)
    cluster.crash(5)
    for number in range(3):
        answered(cluster, cluster.increment(1 + number, "n"))
    cluster.restart(5)
    cluster.assert_equal()
    cluster.run_until(lambda: cluster.core(5).ready, within_s=5)
    return answered(cluster, cluster.increment(5, "n"))


@story("minority")
def minority(way: str) -> RecordedCluster:
    """A minority is cut off.

    Nodes 4 and 5 are cut off. What a client asks of node 5 cannot be chosen there; what is asked of node 1
    can. When the cut heals, both are applied, in one order, everywhere.
    """
    cluster = begun(way)
    cluster.part([4, 5])
    lonely = cluster.put(5, "x", "minority")
    answered(cluster, cluster.put(1, "x", "majority"))
    assert not lonely.answered()
    cluster.heal()
    return answered(cluster, lonely)


@story("chain")
def chain(way: str) -> RecordedCluster:
    """The nodes are a chain.

    Only the links 1-2, 2-3, 3-4 and 4-5 work. Nodes 2, 3 and 4 still reach a majority with themselves, so
    they get things done. Nodes 1 and 5 reach two
    nodes: they wait, or somebody else finishes what they have begun.
    """
    return connected(way, {(1, 2), (2, 3), (3, 4), (4, 5)}, done=3, waits=1)


@story("star")
def star(way: str) -> RecordedCluster:
    """Only one node reaches a majority.

    Only the links of node 3 work. Node 3 alone reaches a majority, and gets things done; all others reach
    two nodes, and cannot finish anything themselves.
    """
    return connected(way, {(1, 3), (2, 3), (3, 4), (3, 5)}, done=3, waits=1)


def connected(way: str, links: set[tuple[int, int]], done: int, waits: int) -> RecordedCluster:
    """Only these links work; then one node gets its command done, the other one when all are back."""
    cluster = begun(way)
    for one in cluster.ids:
        for other in cluster.ids:
            if one < other and (one, other) not in links:
                cluster.cut(one, other)
    lonely = cluster.put(waits, "x", "waits")
    answered(cluster, cluster.put(done, "x", "done"))
    cluster.heal()
    return answered(cluster, lonely)


@story("quorum-loss")
def quorum_loss(way: str) -> RecordedCluster:
    """The majority is lost, and returns.

    Nodes 3, 4 and 5 die: two of five are no majority, so nothing can be chosen, and nothing wrong is
    answered. Node 3 returns with what is on its disk, and the waiting command is done.
    """
    cluster = begun(way)
    for node in (3, 4, 5):
        cluster.crash(node)
    waiting = cluster.put(1, "x", "1")
    cluster.run(0.2)
    assert not waiting.answered()
    cluster.restart(3)
    return answered(cluster, waiting)


@story("wiped-disk")
def wiped_disk(way: str) -> RecordedCluster:
    """A node without its disk rejoins.

    Node 5's disk is replaced by an empty one: it has forgotten its promises and votes. It may vote again
    only when every other node has told it what it may have had a part in.
    """
    cluster = begun(way)
    answered(cluster, *[cluster.put(node, f"key{node}", "1") for node in (1, 5)])
    cluster.wipe(5)
    cluster.run(0.02)
    cluster.restart(5)
    cluster.run_until(lambda: cluster.core(5).ready, within_s=5)
    return answered(cluster, cluster.put(5, "x", "5"))
