"""Which nodes get anything done when some links never work: all graphs of five nodes.

The rule: **a node gets its clients' commands and reads done exactly if it has links to a quorum, itself
included**; all that is chosen in its part of the graph reaches every node of it.

Why so many links suffice, however the rest of the graph looks. Prepare, Accept and their answers go over one
link, so that the node's own ballot is established by its neighbors and itself (docs/protocol.md, "Agreeing
on one log"). Every other log q stands in its way until it knows a frontier of q past its command
(docs/protocol.md, "One order for all logs"). If q has a quorum of links, too, then q leads its log, and the
facts about it come over any path, as do clocks: whoever hears of one gossips. If not, then q can never
establish a ballot, but the node waits on q, and revokes it by the votes of its neighbors (docs/protocol.md,
"A node that holds the others up"); what q's own Prepares disturb, they disturb once per round. And what is
chosen, a quorum has accepted, so that one of the node's neighbors, or itself, can be asked for it.

Why fewer do not suffice: nobody casts a vote, or tells its clock, by way of a third node.

So somebody gets something done exactly if a majority is connected, directly or through others: of three nodes
that are connected, one has two links. That is a matter of five nodes (and three). Of seven, four in a row are
a connected majority in which no node reaches three others; there nothing is done.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, permutations
from random import Random
from typing import Any, NamedTuple

import pytest

from paxoskv.wire.structs import Command, Result, Verb
from tests.harness.linearizability import Operation, check
from tests.harness.simulator import Machine, Profile, Simulation

WITHIN = 3.0  # seconds
AGAIN = 0.1  # seconds until a client that was refused asks again
QUIET = Profile(name="graph", revoke_after=0.5, clients=0, clocks=1.0, request_timeout=WITHIN)

Graph = frozenset[tuple[int, int]]


class Wish(NamedTuple):
    """What a client of one node wants, from some moment on."""

    number: int
    node: int
    command: Command


class Clients:
    """One client for each node: it writes and reads what all others write, and asks until it is answered."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.number = 0  # of the client, for the trace
        self.began: dict[int, int] = {}
        self.open: dict[int, Wish] = {}
        self.history: list[Operation] = []

    def wish(self, wish: Wish) -> None:
        self.began[wish.number] = self.simulation.nanoseconds()
        self.open[wish.number] = wish
        self.ask(wish)

    def ask(self, wish: Wish) -> None:
        self.simulation.machines[wish.node].serve(lambda machine: self.serve(machine, wish))

    def serve(self, machine: Machine, wish: Wish) -> None:
        token = (self, wish, 0)
        if wish.command.verb == Verb.GET:
            store = machine.store
            machine.replica.read(token, lambda: store.get(wish.command.key))
        else:
            machine.replica.submit(token, [wish.command])

    def answered(self, wish: Wish, attempt: int, value: Any) -> None:
        simulation = self.simulation
        if isinstance(value, Result):
            del self.open[wish.number]
            kind = "get" if wish.command.verb == Verb.GET else "incr"
            outcome = "not_found" if value.value is None else "ok"
            self.history.append(
                Operation(
                    client=wish.node, kind=kind, key="n", value=None, expected=None,
                    delta=wish.command.delta or 0, outcome=outcome,
                    answer=value.value, call=self.began[wish.number], return_=simulation.nanoseconds(),
                )
            )  # fmt: skip
        else:
            simulation.at(simulation.now + AGAIN, self.ask, wish)


def reach(graph: Graph, node: int) -> int:
    """How many nodes this one has links to, itself included."""
    return 1 + sum(node in link for link in graph)


def part(graph: Graph, node: int) -> set[int]:
    """The nodes connected with this one, directly or through others."""
    found = {node}
    while more := {n for link in graph for n in link if set(link) & found} - found:
        found |= more
    return found


def run(graph: Graph, seed: int, nodes: int = 5) -> None:
    """One simulation on this graph, from the start of all nodes. AssertionError if the rule does not hold."""
    simulation = Simulation(seed, replace(QUIET, nodes=nodes))
    simulation.faulty = False
    for (a, b), link in simulation.network.links.items():
        link.delay = QUIET.delay
        link.blocked = int((min(a, b), max(a, b)) not in graph)
    for machine in simulation.machines.values():
        machine.start()
    clients = Clients(simulation)
    able = {node for node in simulation.nodes if reach(graph, node) >= simulation.oracle.quorum}
    for node in simulation.nodes:
        write = Wish(node, node, Command(Verb.INCREMENT, "n", delta=1))
        read = Wish(node + nodes, node, Command(Verb.GET, "n"))
        simulation.at(0.1 + node / 1000, clients.wish, write)
        simulation.at(0.12 + node / 1000, clients.wish, read)

    simulation.run_until(0.2)
    simulation.run_until(WITHIN, stop=lambda: not clients.open)
    simulation.run_until(simulation.now + 0.5)  # gossip goes round
    stuck = {wish.node for wish in clients.open.values()}
    assert stuck == set(simulation.nodes) - able, f"{sorted(graph)}: {sorted(stuck)} got nothing done"
    assert len(clients.open) == 2 * len(stuck), f"{sorted(graph)}: {clients.open} is left"
    assert check(clients.history) is None
    for node in able:
        for other in part(graph, node):
            store = simulation.machines[other].store
            assert store.index == len(simulation.oracle.applied), f"{sorted(graph)}: {other} lacks something"


def every_graph(nodes: int) -> list[Graph]:
    links = list(combinations(range(1, nodes + 1), 2))
    return [
        frozenset(link for bit, link in enumerate(links) if number >> bit & 1)
        for number in range(1 << len(links))
    ]


def renamed(graph: Graph, names: Sequence[int]) -> Graph:
    """The graph with names[0] for node 1, and so on."""
    links = ((names[a - 1], names[b - 1]) for a, b in graph)
    return frozenset((min(link), max(link)) for link in links)


def shape(graph: Graph) -> list[tuple[int, int]]:
    """The same for graphs that differ in the nodes' names only."""
    return min(sorted(renamed(graph, names)) for names in permutations(range(1, 6)))


def name(graph: Graph) -> str:
    return "-".join(f"{a}{b}" for a, b in sorted(graph)) or "none"


def shapes() -> list[Graph]:
    """The 34 graphs of five nodes that differ in more than names."""
    return [graph for graph in every_graph(5) if shape(graph) == sorted(graph)]


@pytest.mark.parametrize("graph", shapes(), ids=name)
def test_a_node_of_five_gets_something_done_if_and_only_if_it_has_links_to_a_quorum(graph: Graph) -> None:
    """Every shape, with two ways to name its nodes: they matter for whose turn it is to revoke."""
    names = Random(str(sorted(graph))).sample(range(1, 6), 5)
    run(graph, seed=1)
    run(renamed(graph, names), seed=2)


@pytest.mark.parametrize("share", range(32))
def test_so_it_is_in_all_1024_graphs(share: int, request: pytest.FixtureRequest) -> None:
    """For two minutes of a core; with --all-graphs only."""
    if not request.config.getoption("--all-graphs"):
        pytest.skip("only with --all-graphs")
    for number, graph in enumerate(every_graph(5)):
        if number % 32 == share:
            run(graph, seed=number)


@pytest.mark.parametrize("graph", every_graph(3), ids=name)
def test_so_it_is_of_three_nodes(graph: Graph) -> None:
    run(graph, seed=1, nodes=3)


def test_of_seven_nodes_a_connected_majority_is_not_enough() -> None:
    """No node of four in a row has links to three others; but of a star of four the middle has."""
    row = frozenset({(1, 2), (2, 3), (3, 4)})
    star = frozenset({(1, 2), (1, 3), (1, 4)})
    assert part(row, 1) == part(star, 1) == {1, 2, 3, 4}
    run(row, seed=1, nodes=7)  # run() holds the same rule against it: nothing is done
    run(star, seed=1, nodes=7)
