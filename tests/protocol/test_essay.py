"""The examples at the top of multipaxos.py are played by its classes: each line there is what they do."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pytest

from paxoskv import multipaxos
from paxoskv.multipaxos import Acceptor, Learner, Proposer, best_log, node_of, round_of
from paxoskv.protocol.node import Node
from paxoskv.wire.structs import Accept, Accepted, Entry, Fact, Prepare, Promise, Verdict, Vote

ESSAY = multipaxos.__doc__ or ""
PROTOCOL = Path(__file__).resolve().parents[2] / "paxoskv" / "protocol"
LOG = 1
NODES = (1, 2, 3)
NOTHING = Fact(LOG, 0, 0, 0)
X, Y, Z, NO_OP = Entry(1, b"x"), Entry(1, b"y"), Entry(1, b"z"), Entry(1, b"")


class Play:
    """One log on three nodes; what is sent arrives at the nodes that are named, and is answered."""

    def __init__(self) -> None:
        self.acceptors = {node: Acceptor(LOG, lambda record: None) for node in NODES}
        self.candidates = {node: Proposer(LOG, node, NODES) for node in NODES}
        self.dead: set[int] = set()
        self.chosen = 0  # how far the last leader knows the log to be chosen

    def stand(self, me: int, at: tuple[int, ...]) -> list[int]:
        """Phase 1; returns the Verdicts."""
        candidate = self.candidates[me]
        candidate.prepare(0, self.acceptors[me].promised, 0)
        prepare = candidate.message(0.0)
        assert isinstance(prepare, Prepare)
        promises = {node: self.acceptors[node].on_prepare(prepare, NOTHING) for node in at}
        for node, promise in promises.items():
            if promise.verdict == Verdict.PROMISED:
                candidate.on_promise(node, promise)
            else:
                candidate.step_down(promise.promised)
        return [promise.verdict for promise in promises.values()]

    def send(self, me: int, at: tuple[int, ...]) -> list[int]:
        """Phase 2: what the leader has, to these nodes; returns the Votes, and counts them."""
        leader = self.candidates[me]
        votes = []
        for node in at:
            due = leader.due(node, 0.0)
            assert due == (0, True), "the first Accept of a ballot is its sync"
            acceptor = self.acceptors[node]
            vote = acceptor.on_accept(Accept(LOG, leader.ballot, 0, leader.entries, True, NOTHING, []))
            answer = Accepted(LOG, leader.ballot, acceptor.promised, vote, acceptor.length, NOTHING)
            self.chosen = leader.on_accepted(node, answer, 0.0)
            votes.append(vote)
        return votes

    def line(self, what: str) -> str:
        """What each acceptor holds, as the essay writes it."""
        return f"  {what:<42}{''.join(f'{self.cell(node):<15}' for node in NODES)}".rstrip()

    def cell(self, node: int) -> str:
        acceptor = self.acceptors[node]
        if node in self.dead:
            return "dead"
        held = [entry.payload.decode() or "n" for entry in acceptor.entries]
        return f"{pair(acceptor.promised)}, " + (f"{held[0]} {pair(acceptor.accepted)}" if held else "-")


def pair(ballot: int) -> str:
    return f"{round_of(ballot)}.{node_of(ballot)}"


def told(title: str) -> list[str]:
    """The lines of this example."""
    return ESSAY.partition(title)[2].split("\n\n")[0].splitlines()[1:]


def compare(title: str, play: Play, steps: Sequence[Callable[[], object]]) -> None:
    lines = told(title)
    assert len(lines) == len(steps)
    for line, step in zip(lines, steps, strict=True):
        step()
        assert line == play.line(line[2:44].rstrip())


def test_an_entry_that_is_chosen_survives_its_proposer_as_the_essay_tells() -> None:
    play = Play()

    def sends_x() -> None:
        play.candidates[1].append(X)
        assert play.send(1, (1, 2)) == [Vote.ACCEPTED, Vote.ACCEPTED]

    def dies() -> None:
        assert play.chosen == 1
        play.dead.add(1)

    def adopts() -> None:
        assert play.candidates[3].entries == [X]
        play.send(3, (2, 3))

    def chosen_again() -> None:
        assert play.chosen == 1

    steps = [
        lambda: play.stand(1, NODES),
        sends_x,
        dies,
        lambda: play.stand(3, (2, 3)),
        adopts,
        chosen_again,
    ]
    compare("**The entry survives its proposer.**", play, steps)


def test_an_entry_that_no_quorum_has_is_lost_as_the_essay_tells() -> None:
    play = Play()

    def sends_y() -> None:
        play.candidates[1].append(Y)
        play.send(1, (1,))
        assert play.chosen == 0
        play.dead.add(1)

    def sends_a_no_op() -> None:
        assert play.candidates[3].entries == []
        play.candidates[3].append(NO_OP)
        play.send(3, (2, 3))
        assert play.chosen == 1

    def is_back() -> None:
        play.dead.clear()
        assert play.stand(1, (2,)) == [Verdict.NACK]  # its next ballot, 2.1, lies below 2.3
        assert play.stand(1, NODES) == [Verdict.PROMISED] * 3

    def adopts() -> None:
        assert play.candidates[1].entries == [NO_OP]
        play.send(1, NODES)

    steps = [
        lambda: play.stand(1, NODES),
        sends_y,
        lambda: play.stand(3, (2, 3)),
        sends_a_no_op,
        is_back,
        adopts,
    ]
    compare("**The entry is lost.**", play, steps)


def test_an_entry_that_no_quorum_has_is_adopted_by_whoever_sees_it() -> None:
    play = Play()
    play.stand(1, NODES)
    play.candidates[1].append(Y)
    play.send(1, (1,))
    play.stand(3, (1, 3))
    assert play.candidates[3].entries == [Y]


def test_two_votes_of_two_ballots_choose_nothing_as_the_essay_tells() -> None:
    play = Play()
    for me, promising, entry, accepting in ((1, NODES, X, 1), (3, (2, 3), Z, 3), (1, (1, 2), None, 2)):
        while Verdict.NACK in play.stand(me, promising):
            pass  # it stands above the ballot that it was told of
        if entry is not None:
            play.candidates[me].append(entry)
        play.send(me, (accepting,))
        assert play.chosen == 0
    assert [play.cell(node) for node in NODES] == ["3.1, x 1.1", "3.1, x 3.1", "2.3, z 2.3"]
    play.stand(3, (1, 3))
    assert play.candidates[3].entries == [Z]


def test_two_candidates_can_stand_above_each_other_without_end() -> None:
    play = Play()
    for _ in range(10):
        for me in (1, 3):
            assert Verdict.PROMISED in play.stand(me, NODES)
            rival = play.candidates[4 - me]
            if rival.leading:
                rival.append(X)
                assert play.send(4 - me, NODES) == [Vote.REFUSED] * 3
    assert play.chosen == 0


def test_the_logs_are_merged_as_the_essay_draws_it() -> None:
    timestamps, *rows = ESSAY.partition("\n  timestamp")[2].split("\n\n")[0].splitlines()
    times = {timestamps.index(text): int(text) for text in timestamps.split() if text.isdecimal()}
    commands = {}  # name: (timestamp, log)
    frontiers = {}
    for log, row in enumerate(rows, start=1):
        cells = row.removeprefix(f"  log {log}  ")
        assert cells != row
        for column, timestamp in times.items():
            letter = row[column + len("  timestamp") : column + len("  timestamp") + 2].strip()
            if letter:
                commands[letter] = (timestamp, log)
        if "becomes" in row:
            frontiers[log] = int(row.partition("frontier ")[2][:2])
    assert commands == {"a": (38, 1), "b": (71, 2), "c": (88, 3), "d": (90, 2)}
    assert frontiers == {1: 90, 3: 87, 4: 90, 5: 90}

    learner = Learner({log: Acceptor(log, lambda record: None) for log in range(1, 6)})
    for log, acceptor in learner.acceptors.items():
        entries = [Entry(t, name.encode()) for name, (t, owner) in commands.items() if owner == log]
        acceptor.on_accept(Accept(log, 257, 0, entries, True, NOTHING, []))

    def learn(log: int, chosen: int, frontier: int) -> list[str]:
        learner.learn(log, chosen, 257, frontier)
        learner.settle(log)
        return [payload.decode() for _, _, payload in learner.apply()]

    learn(2, 2, 90)
    applied = [name for log in (1, 3, 4, 5) for name in learn(log, int(log == 1), frontiers[log])]
    assert applied == ["a", "b"] and learner.waits_on(0) == {3: 89}
    assert learn(3, 1, 90) == ["c", "d"]


@pytest.mark.parametrize("clock", [40, 88, 71, 12])
def test_a_clock_becomes_that_of_the_entry_before_the_answer_leaves(clock: int) -> None:
    assert f" {clock} becomes 90; frontier " in ESSAY
    node = Node(1, (1, 2, 3, 4, 5), Random(0))
    node.clock.raise_to(clock)
    node.step(2, Accept(2, 258, 0, [Entry(90, b"d")], True, Fact(2, 0, 0, 0), []), 0.0)
    assert node.clock.time == 90


def test_the_essay_names_all_answers_and_only_functions_and_files_that_are_there() -> None:
    for values in (Verdict, Vote):
        for name in (name for name in vars(values) if name.isupper()):
            assert f"\n        {name} " in ESSAY, name
    table = ESSAY.partition("**Which function is which.**")[2]
    for owner, name in (("Proposer", "due"), ("Proposer", "message")):
        assert f"`{name}`" in table and hasattr(getattr(multipaxos, owner), name)
    for owner in ("Acceptor", "Proposer", "Learner"):
        for name in table.split(f"`{owner}.")[1:]:
            assert hasattr(getattr(multipaxos, owner), name.partition("`")[0]), name
    _, elsewhere = ESSAY.split("**Elsewhere**")
    modules = re.findall(r"\w+\.py", elsewhere)
    assert modules and all((PROTOCOL / module).is_file() for module in modules)
    assert best_log([Promise(LOG, 1, 0, 0, 1, b, [], NOTHING) for b in (1, 3, 2)]).accepted == 3
