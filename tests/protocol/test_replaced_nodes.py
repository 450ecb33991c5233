"""Who speaks for a node that was replaced: its old process may live on, and a lost disk does not know better.

Node 4 was replaced, and every other node refuses its old process. Then the disk of node 3 is lost, and with
it what node 3 had noted: it listens to the old process (N26).
"""

from random import Random

from paxoskv.protocol.node import Node
from paxoskv.wire.structs import Accept, Fact, Identity, Learn, Noted, Record, Rejoin, Rejoined
from tests.harness.scenario import TICK, Cluster, Envelope, Machine
from tests.protocol.test_checkpoints import sent, tell

OLD, NEW = (1, 5 << 20), (3, 1 << 20)  # processes of node 3: (incarnation, life)


class TwoFours(Cluster):
    """The old process of node 4 has no connection but with node 3, as long as that takes it for node 4."""

    old: Machine | None = None
    lives = False  # whether the old process still runs

    def replace(self) -> None:
        """Node 4 gets another machine with an empty disk; the old process is cut off, and goes on."""
        self.old = self.machines[4]
        new = self.machines[4] = Machine(self, 4)
        new.disk, new.incarnation = 1, 0
        new.start()
        self.run_until(lambda: bool(new.core.ready), within_s=5)
        self.run(1)

    def lose_disk_of_three(self) -> None:
        self.wipe(3)
        self.lives = True
        self._tick_old()
        self.restart(3)

    def _tick_old(self) -> None:
        if self.lives and self.old is not None:
            self.old.do(self.old.tick)
            self.at(self.now + TICK, self._tick_old)

    @property
    def mistaken(self) -> bool:
        """Whether node 3 listens to the old process."""
        return self.lives and bool(self.core(3).noted(4)[0] < 2)

    def post(self, envelope: Envelope) -> None:
        ends = {envelope.sender, envelope.to}
        assert envelope.who is not None
        from_old = self.old is not None and envelope.sender == 4 and envelope.who.incarnation == 1
        if from_old == (ends == {3, 4} and self.mistaken) or envelope.to == 4:
            super().post(envelope)

    def deliver(self, envelope: Envelope) -> None:
        old = self.old
        if old is None or envelope[:2] != (3, 4) or not self.mistaken:
            super().deliver(envelope)
            return

        def arrive() -> None:
            if not old.refuses(envelope):
                old.receive(3, envelope.message)

        self.at(self.now + self.delay, lambda: old.do(arrive))


def test_what_only_the_process_in_place_of_a_replaced_node_knows_is_told_to_who_rejoins() -> None:
    """N26. The old process answers node 3's rejoin, and is gone before anything else happens."""
    cluster = TwoFours()
    cluster.put(1, "any", "value")
    cluster.replace()
    accepts = cluster.hold(Accept, sender={4}, to={1, 2, 5})
    cluster.put(4, "x", "W")
    lengths = cluster.core(4).own.lengths
    cluster.run_until(lambda: lengths[3] == lengths[4] == 1, within_s=1)  # the disk of 3 will be lost
    cluster.lose_disk_of_three()
    cluster.run_until(lambda: bool(cluster.core(3).joined), within_s=10)
    cluster.lives = False
    cluster.cut(3, 4)
    cluster.drop(sender={4}, to={2, 5})
    cluster.drop(Learn, sender={4}, to={1})
    accepts.lift()
    for envelope in accepts.held:
        if envelope.to == 1:
            cluster.deliver(envelope)  # with node 1, whose answer to node 3 came before, they are a quorum
    cluster.run(1)
    cluster.crash(4)
    cluster.crash(1)
    cluster.heal()
    assert cluster.get(2, "x") == "W", "it may have been acknowledged, and two of five are down"


def test_a_vote_of_the_old_process_of_a_replaced_node_counts_for_nobody() -> None:
    """N26. The old process lives on, and votes for what node 3 proposes once it has rejoined."""
    cluster = TwoFours()
    cluster.put(1, "any", "value")
    cluster.replace()
    cluster.lose_disk_of_three()
    cluster.run_until(lambda: bool(cluster.core(3).ready), within_s=10)
    cluster.run(1)
    with cluster.drop(sender={3}, to={2, 5}), cluster.drop(Learn, sender={3}, to={1}):
        answer = cluster.put(3, "x", "W")
        cluster.run_until(answer.answered, within_s=5)
        cluster.crash(3)
        cluster.crash(1)
    cluster.lives = False
    assert answer.ok and cluster.get(2, "x") == "W", "it was acknowledged, and two of five are down"


# ------------------------------------------------------------------------------------- what a peer tells


def rejoining() -> Node:
    """Node 1 of three, on a new disk: all have told which incarnation of it they had noted."""
    made = Node(1, (1, 2, 3), Random(1), incarnation=0)
    made.start(1.0)
    for peer in (2, 3):
        tell(made, peer, answer(1, 0, None))
    return made


def answer(log: int, incarnation: int, lives: list[Noted] | None) -> Rejoined:
    return Rejoined(log, incarnation, max(incarnation, 1), False, 0, 0, 0, [], Fact(log, 0, 0, 0), 0, lives)


def hears(made: Node, peer: int, *lives: Noted) -> None:
    """The peer answers for all logs, and tells this of the nodes."""
    for log in (1, 2, 3):
        tell(made, peer, answer(log, made.incarnations.incarnation, [*lives]))


def asked(made: Node, now: float) -> list[int]:
    """Who is asked next."""
    made.tick(now)
    return [to for to, message, _ in made.drain(now).send_after if message.__class__ is Rejoin]


def test_an_answer_of_an_older_process_does_not_count_whether_it_comes_early_or_late() -> None:
    made = rejoining()
    hears(made, 3, Noted(3, *OLD))
    assert set(asked(made, 2.0)) == {2}
    hears(made, 2, Noted(2, 1, 1 << 20), Noted(3, *NEW))
    assert set(asked(made, 3.0)) == {3}, "it has answered, but was not what it said"
    again = (0, 9 << 20)  # the old process has begun to rejoin
    for now, older in enumerate((OLD, again, (3, 1)), start=4):  # (the last is a copy of an earlier disk)
        hears(made, 3, Noted(3, *older))
        assert set(asked(made, now)) == {3} and made.incarnations.incarnation == 2
    hears(made, 3, Noted(3, *NEW))
    asked(made, 9.0)
    assert made.incarnations.incarnation == 3, "all have answered"
    hears(made, 2, Noted(2, 1, 1 << 20))
    made.note(3, 5, 0)  # it has lost its disk once more
    made.tick(10.0)
    assert Record(rejoined=True) not in made.drain(10.0).journal
    hears(made, 3, Noted(3, 5, 1 << 20))
    made.tick(11.0)
    assert Record(rejoined=True) in made.drain(11.0).journal


def test_an_answer_of_a_version_that_tells_nothing_of_others_counts() -> None:
    made = rejoining()
    for incarnation in (2, 3):
        for peer in (2, 3):
            for log in (1, 2, 3):
                tell(made, peer, answer(log, incarnation, None))
        made.tick(float(incarnation))
        assert (Record(rejoined=True) in made.drain(3.0).journal) == (incarnation == 3)


def test_what_was_told_of_others_survives_a_crash_in_the_middle_of_the_rejoin() -> None:
    made = Node(1, (1, 2, 3), Random(1), incarnation=0)
    made.start(1.0)
    records = made.drain(1.0).journal
    told = [Noted(2, 1, 1 << 20), Noted(3, *NEW), Noted(1, 7, 0), Noted(9, 7, 0)]
    for peer, lives in ((2, told), (2, told), (3, [Noted(3, *OLD), Noted(2, 1, 0)])):
        records += tell(made, peer, answer(1, 0, lives)).journal
    noted = [record.noted for record in records if record.noted]
    assert noted == told[:2], "of peers only, and only what is higher"
    later = Node(1, (1, 2, 3), Random(2), incarnation=0)
    for record in records:
        later.replay(record)
    later.start(2.0)
    assert later.noted(3) == NEW and not later.joined
    assert "is a stale copy" in (later.greet(Identity("", "", 3, *OLD)) or "")


def test_whoever_answers_tells_which_process_it_is_and_what_it_has_noted() -> None:
    made = Node(2, (1, 2, 3), Random(1))
    made.start(1.0)
    made.note(3, *NEW)
    made.drain(1.0)
    (told,) = sent(tell(made, 1, Rejoin(1, 2)), Rejoined)
    assert told.lives == [Noted(2, 1, made.incarnations.life), Noted(1, 2, 0), Noted(3, *NEW)]
