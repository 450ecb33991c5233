"""One log: acceptors, and candidates apart from them, each of which wants a command of its own in the log.

The classes are the real Acceptor and Proposer; what joins them here is what Logs and Way do in a
node, and no more. A step that journals is durable at once, with the messages that wait for it: a crash
before that is the same as the event not having happened, because nothing else has left. (Where something
leaves that should have waited, as in a mutant, the step stays pending until a "sync", and a crash loses
it.)
"""

import pickle
from collections.abc import Hashable
from typing import Any, NamedTuple

from paxoskv.multipaxos import Acceptor, Proposer
from paxoskv.wire.structs import Accept, Accepted, Entry, Fact, Prepare, Promise, Record, Verdict, Vote
from tests.harness.explore.observer import held
from tests.harness.explore.world import Breach, Step, frozen

NOW, EARLIER = 1000.0, 1.0  # the only times there are, beside 0.0: never
JOURNAL: list[Record] = []


def journal(record: Record) -> None:
    JOURNAL.append(record)


class Voter:
    """An acceptor, and what a restart would find of it."""

    def __init__(self) -> None:
        self.acceptor = Acceptor(0, journal)
        self.durable = Acceptor(0, journal)


class Candidate:
    def __init__(self, me: int, voters: list[int]) -> None:
        self.proposer = Proposer(0, me, voters)
        self.durable = 0  # the highest ballot that it has stood with
        self.chosen = 0
        self.evidence = 0


class Ballots(NamedTuple):
    """What decides whether a message from or to a candidate is dead."""

    durable: int  # the highest that it has stood with
    active: int  # that which it leads or prepares; 0: none
    preparing: bool
    retired: bool  # it does nothing and will do nothing


class OneLog:
    """The world of one log."""

    once = False

    def __init__(self, acceptors: int = 3, proposers: int = 2, **budgets: int) -> None:
        self.alike = acceptors
        self.voters = list(range(acceptors))
        self.quorum = acceptors // 2 + 1
        self.names = [f"acceptor {n + 1}" for n in self.voters] + [
            f"candidate {n + 1}" for n in range(proposers)
        ]
        self.budgets = {"stand": 2, "append": 0, "resend": 0, "crash": 0} | budgets
        self.nothing_seen: Hashable = ((), ())

    def begin(self) -> list[Any]:
        candidates = [Candidate(me, self.voters) for me in range(self.alike, len(self.names))]
        return [Voter() for _ in self.voters] + candidates

    def events(self, process: int) -> list[str]:
        return ["crash"] if process < self.alike else ["stand", "append", "resend", "crash"]

    # ---------------------------------------------------------------------------------------------- steps

    def step(self, process: int, state: Any, event: Any, sender: int | None) -> Step | None:
        JOURNAL.clear()
        if process < self.alike:
            return self.crash_voter(state) if event == "crash" else self.vote(process, state, event, sender)
        step = self.candidate(process, state, event, sender)
        for courier in state.proposer.couriers.values():
            courier.at, courier.silent = courier.at and NOW, 0
        return step

    def crash_voter(self, state: Voter) -> Step:
        state.acceptor = pickle.loads(pickle.dumps(state.durable))
        return Step([])

    def vote(self, process: int, state: Voter, message: Any, sender: int | None) -> Step:
        assert sender is not None
        acceptor, facts = state.acceptor, []
        answer: Promise | Accepted
        if isinstance(message, Prepare):
            answer = acceptor.on_prepare(message, Fact(0, acceptor.chosen, acceptor.evidence, 0))
            if answer.verdict == Verdict.PROMISED and message.ballot < acceptor.promised:
                raise Breach(f"{message.ballot} is promised after {acceptor.promised}")
        else:
            vote = acceptor.on_accept(message)
            before = acceptor.chosen
            acceptor.learn(message.fact.chosen, message.fact.evidence)
            if acceptor.chosen > before:
                facts.append(("chosen", tuple(acceptor.entries[: acceptor.chosen])))
            length = acceptor.length if vote == Vote.ACCEPTED else 0
            fact = Fact(0, acceptor.chosen, acceptor.evidence, 0)
            answer = Accepted(0, message.ballot, acceptor.promised, vote, length, fact)
        for record in JOURNAL:
            state.durable.replay(record)
            if record.held:
                facts.append(
                    ("held", process, record.held.ballot, record.held.start, tuple(record.held.entries))
                )
        return Step([(sender, answer)], tuple(facts))

    def candidate(self, process: int, state: Candidate, event: Any, sender: int | None) -> Step | None:
        proposer = state.proposer
        if event == "crash":
            state.proposer = Proposer(0, process, self.voters)
            state.proposer.highest = state.durable
            state.chosen = state.evidence = 0
            return Step([])
        if event == "stand":
            if proposer.preparing:
                return None
            record = proposer.prepare(0, 0, 0)
            assert record.candidate
            if record.candidate.ballot <= state.durable:
                raise Breach(
                    f"candidate {process} stands with {record.candidate.ballot} after {state.durable}"
                )
            state.durable = record.candidate.ballot
            prepare = proposer.message(NOW)
            return Step([(voter, prepare) for voter in self.voters])
        if event in ("append", "resend") and not proposer.leading:
            return None
        if event == "append":
            proposer.append(Entry(proposer.end + 1, b"%d.%d" % (process, proposer.end)))
            return Step(self.accepts(state))
        if event == "resend":
            for courier in proposer.couriers.values():
                courier.at = courier.at and EARLIER
            return Step(self.accepts(state))
        assert sender is not None
        return (
            self.promise(process, state, event, sender)
            if isinstance(event, Promise)
            else self.accepted(state, event, sender)
        )

    def promise(self, process: int, state: Candidate, message: Promise, sender: int) -> Step | None:
        proposer = state.proposer
        if not proposer.preparing or message.ballot != proposer.ballot:
            return None
        if message.verdict == Verdict.NACK:
            proposer.step_down(message.promised)
        elif message.verdict == Verdict.PROMISED and proposer.on_promise(sender, message):
            payload = b"%d" % process
            if all(entry.payload != payload for entry in proposer.entries):
                proposer.append(Entry(proposer.end + 1, payload))
            return Step(self.accepts(state))
        return Step([])

    def accepted(self, state: Candidate, message: Accepted, sender: int) -> Step | None:
        proposer = state.proposer
        if not proposer.leading:
            return None
        if message.promised > proposer.ballot:
            proposer.step_down(message.promised)
        elif message.ballot == proposer.ballot:
            chosen = proposer.on_accepted(sender, message, NOW)
            if chosen > state.chosen:
                state.chosen, state.evidence = chosen, proposer.ballot
                return Step(self.accepts(state), (("chosen", tuple(proposer.entries[:chosen])),))
        return Step([])

    def accepts(self, state: Candidate) -> list[tuple[int, Any]]:
        proposer = state.proposer
        proposer.fresh = False
        fact = Fact(0, state.chosen, state.evidence, 0)
        sends: list[tuple[int, Any]] = []
        for voter in self.voters:
            due = proposer.due(voter, NOW)
            if due is not None:
                start, sync = due
                entries = list(proposer.entries[start:])
                sends.append((voter, Accept(0, proposer.ballot, start, entries, sync, fact, [])))
        return sends

    # ------------------------------------------------------------------------------------------ comparing

    def key(self, process: int, state: Any) -> Hashable:
        if process < self.alike:
            return tuple(
                (a.promised, a.accepted, frozen(a.entries), a.chosen, a.evidence)
                for a in (state.acceptor, state.durable)
            )
        p = state.proposer
        couriers = p.couriers if p.leading else {}
        return (
            p.highest, p.ballot, p.preparing, p.leading, frozen(p.entries),
            tuple(sorted((node, frozen(promise)) for node, promise in p.promises.items())),
            tuple(sorted(p.lengths.items())),
            tuple(sorted((node, c.sent, c.at, c.again) for node, c in couriers.items())),
            state.durable, state.chosen, state.evidence,
        )  # fmt: skip

    def horizon(self, process: int, state: Any, left: dict[str, int]) -> Hashable:
        """Of an acceptor its durable promise; of a candidate its ballots, and whether it will act again."""
        if process < self.alike:
            return state.durable.promised
        proposer = state.proposer
        active = proposer.leading or proposer.preparing
        retired = not (active or left["stand"])
        return Ballots(state.durable, proposer.ballot if active else 0, proposer.preparing, retired)

    def dead(self, sender: int, source: Any, receiver: int, target: Any, message: Any) -> bool:
        """A ballot never comes again; one who leads hears of promises in any answer, however old."""
        candidate: Ballots
        candidate, promised = (source, target) if sender >= self.alike else (target, source)
        if message.ballot > candidate.durable:
            return False  # it was not sent yet
        counts = candidate.active == message.ballot
        if isinstance(message, Prepare):
            return not (counts and candidate.preparing) and message.ballot <= promised
        if isinstance(message, Accept):
            return candidate.retired and message.ballot < promised
        if isinstance(message, Promise):
            return not (counts and candidate.preparing)
        return candidate.retired or (not counts and message.promised <= candidate.durable)

    def renamed(self, process: int, state: Candidate, to: dict[int, int]) -> Candidate:
        proposer = state.proposer
        proposer.promises = {to[node]: promise for node, promise in proposer.promises.items()}
        proposer.lengths = {to[node]: length for node, length in proposer.lengths.items()}
        proposer.couriers = {to[node]: courier for node, courier in proposer.couriers.items()}
        return state

    # ------------------------------------------------------------------------------------------ observing

    def observe(self, history: Any, facts: tuple[Any, ...]) -> Hashable:
        """The history is (the chosen log, by ballot its entries and how many of them each voter holds)."""
        chosen, ballots = history
        table = {ballot: (entries, dict(votes)) for ballot, entries, votes in ballots}
        for kind, *what in facts:
            if kind == "held":
                voter, ballot, start, entries = what
                chosen = held(self.quorum, chosen, table, voter, ballot, start, entries)
            elif chosen[: len(what[0])] != what[0]:
                raise Breach(f"{what[0]} is taken for chosen; chosen is {chosen}")
        return chosen, tuple(
            (ballot, entries, tuple(sorted(votes.items())))
            for ballot, (entries, votes) in sorted(table.items())
        )

    def renamed_history(self, history: Any, to: dict[int, int]) -> Hashable:
        chosen, ballots = history
        return chosen, tuple(
            (ballot, entries, tuple(sorted((to[voter], length) for voter, length in votes)))
            for ballot, entries, votes in ballots
        )
