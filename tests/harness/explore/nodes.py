"""Three whole nodes, with all their logs.

Times are only these: never, long ago, now, and later. What is due when time passes is due at the event
"tick". A frame of the journal is durable at once, unless something has left that did not wait for it: then
it is pending until the event "sync", and a crash in between loses it. (A crash between two steps that have
sent nothing is the same as the first one's messages being lost.)

Each message bears the incarnation of its sender: as in the transport, what a lost disk has said is not
handed in any more once a later one is known.
"""

import pickle
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from paxoskv.multipaxos import Applied, Covered, Cut
from paxoskv.protocol.leader import Leader
from paxoskv.protocol.node import OWN_LOGS, Node
from paxoskv.protocol.own_logs import OwnLogs
from paxoskv.protocol.persistence import Persisted
from paxoskv.wire.codec import encode
from paxoskv.wire.structs import (
    Accept,
    Accepted,
    Batch,
    Command,
    FetchCheckpoint,
    Fetched,
    Learn,
    Prepare,
    Promise,
    Verb,
    Verdict,
    Vote,
)
from tests.harness.explore.freeze import Freezer
from tests.harness.explore.observer import held
from tests.harness.explore.world import Breach, Step

NOW, EARLIER, LATER = 1000.0, 1.0, 2000.0  # and 0.0: never

# What differs without a difference to come: constants, caches, statistics, and how slow somebody was.
LEFT_OUT = frozenset(
    {
        ("Acceptor", "journal"), ("Proposer", "bytes"), ("Proposer", "prepares"), ("Proposer", "wanted"),
        ("Learned", "fact"), ("Node", "claims"),
        ("Node", "round_trips"), ("Node", "divergence"), ("Node", "compaction"),
        ("Node", "witness"), ("Node", "faults"),
        ("Compaction", "measured"), ("Compaction", "compact_at"),
        ("Contacts", "heard"), ("Contacts", "newest"),

        ("OwnLogs", "losses"), ("Still", "jitter"), *[
            (way, name)
            for way in ("OwnLogs", "Classic", "Leader")
            for name in ("stands", "revocations", "random", "round_trips", "jitter")
        ],
        ("Logs", "round_trips"), ("Logs", "witness"), ("Logs", "faults"),
        ("Voters", "round_trips"), ("Voters", "slow_until"), ("Voters", "at_once"), ("Voters", "asked_up_to"),
        ("Gossip", "divergence"), ("Gossip", "last"), ("Gossip", "seen"), ("Gossip", "gossiped_at"),
        ("Revocation", "round_trips"), ("Revocation", "random"), ("Reads", "random"), ("CatchUp", "random"),
        ("CatchUp", "fetch_at"), ("Persistence", "journaled_at"), ("Persistence", "turn"),
        ("Persistence", "persisted_turn"), ("Persistence", "replayed_position"), ("Incarnations", "random"),
        ("Incarnations", "recovered"), ("Incarnations", "recovered_clock"),
        ("Incarnations", "life"), ("Node", "nodes"), ("Node", "peers"),
    }
)  # fmt: skip


class Chance:
    """In place of Random: nothing is left to chance, but that the numbers of two lives differ."""

    def __init__(self, life: int) -> None:
        self.life = life

    def getrandbits(self, bits: int) -> int:
        return self.life

    def random(self) -> float:
        return 0.5

    def uniform(self, low: float, high: float) -> float:
        return low

    def choice(self, items: Any) -> Any:
        return items[0]

    def shuffle(self, items: Any) -> None:
        pass


class Handed(NamedTuple):
    """A checkpoint: where it stands, and how many commands are in it."""

    position: tuple[int, int]
    logs: tuple[tuple[int, Covered], ...]
    clock: int
    count: int

    def cut(self) -> Cut:
        return Cut(self.position, dict(self.logs), self.clock)


class Machine:
    """A node, its disk, and what a test does with it."""

    def __init__(self, me: int, nodes: list[int], proposing: str) -> None:
        self.me = me
        self.node: Node | None = None
        self.disk = Node(
            me, nodes, Chance(0), proposing=proposing
        )  # has replayed what is durable, and never starts
        self.pending: list[tuple[list[Any], list[Any]]] = []  # records, and what waits for them
        self.applied = 0  # commands that this life knows of
        self.base = 0  # those that a restart begins with: a checkpoint has them
        self.saved: Handed | None = None  # the newest checkpoint of its own
        self.foreign: Handed | None = None  # the last one that it has taken from another
        self.life = 0
        self.proposed = 0
        self.asked = 0


class Log:
    """What the observer knows of one log."""

    def __init__(self, chosen: tuple[Any, ...], ballots: dict[int, Any], frontier: int) -> None:
        self.chosen = chosen
        self.ballots = ballots  # by number: (entries, how many of them each voter holds)
        self.frontier = frontier  # the highest that anybody was told

    def packed(self) -> tuple[Any, ...]:
        return self.chosen, tuple(sorted(self.ballots.items())), self.frontier

    def hold(self, quorum: int, voter: int, log: int, ballot: int, start: int, entries: Any) -> None:
        before = len(self.chosen)
        ballots = {number: (entry, dict(votes)) for number, (entry, votes) in self.ballots.items()}
        self.chosen = held(quorum, self.chosen, ballots, voter, ballot, start, entries)
        self.ballots = {n: (e, tuple(sorted(votes.items()))) for n, (e, votes) in ballots.items()}
        for entry in self.chosen[before:]:
            if entry.payload and entry.timestamp <= self.frontier:
                raise Breach(f"log {log}: {entry} is chosen below the frontier {self.frontier}")

    def claim(
        self,
        quorum: int,
        log: int,
        chosen: int,
        evidence: int,
        frontier: int,
        reserved: int = -1,
        ballot: int = 0,
    ) -> None:
        """Somebody is told that so many are chosen, and that no other command lies below the frontier.

        Its owner tells what it has reserved, and its ballot: it may have made the frontier from its clock.
        """
        if chosen > len(self.chosen):
            raise Breach(f"log {log}: {chosen} entries are said to be chosen, and {self.chosen} are")
        if chosen and not self.established(quorum, evidence):
            raise Breach(
                f"log {log}: {chosen} are said to be counted at {evidence}, which is not established"
            )
        for entry in self.chosen[chosen:]:
            if entry.payload and entry.timestamp <= frontier:
                raise Breach(f"log {log}: the frontier is said to be {frontier}, and {entry} comes later")
        if reserved >= 0 and frontier > max(
            [self.frontier, *[entry.timestamp for entry in self.chosen[-1:]]]
        ):
            if frontier > reserved:
                raise Breach(f"log {log}: the frontier is {frontier}, and {reserved} is reserved (R3)")
            if not self.established(quorum, ballot):
                raise Breach(f"log {log}: a frontier is made at {ballot}, which is not established (R4)")
        self.frontier = max(self.frontier, frontier)

    def established(self, quorum: int, ballot: int) -> bool:
        return ballot in self.ballots and len(self.ballots[ballot][1]) >= quorum


class Nodes:
    """The world of whole nodes."""

    alike = 0
    once = True

    def __init__(self, nodes: int = 3, proposing: str = OWN_LOGS, **budgets: int) -> None:
        self.proposing = proposing
        self.ids = list(range(1, nodes + 1))
        self.quorum = nodes // 2 + 1
        self.names = [f"node {node}" for node in self.ids]
        self.budgets = {"put": 1, "read": 0, "tick": 0, "crash": 0, "wipe": 0, "checkpoint": 0} | budgets
        self.nothing_seen: Hashable = ((), (), frozenset(), ())
        self.prelude: list[tuple[int, str | tuple[int, Any]]] = []  # what led to the beginning
        compacts = {("Node", "compaction")} if self.budgets["checkpoint"] else set()
        self.freeze = Freezer(LEFT_OUT - compacts)

    def events(self, process: int) -> list[str]:
        return ["sync", *[name for name, budget in self.budgets.items() if budget]]

    def begin(self) -> list[Any]:
        """All nodes lead their logs, and nothing is in flight."""
        machines = [Machine(me, self.ids, self.proposing) for me in self.ids]
        queue: deque[tuple[int, int, Any]] = deque()
        self.prelude = []

        def step(process: int, event: Any, sender: int | None = None) -> None:
            self.prelude.append((process, event if sender is None else (sender, event)))
            done = self.step(process, machines[process], event, sender) or Step([])
            self.nothing_seen = self.observe(self.nothing_seen, done.facts)
            queue.extend((process, to, message) for to, message in done.sends)

        for _ in range(6):
            for process, machine in enumerate(machines):
                step(process, "crash" if machine.node is None else "tick")
            while queue:
                sender, to, message = queue.popleft()
                step(to, message, sender)
                step(to, "sync")
        assert all(machine.node.ready and not machine.pending for machine in machines)
        return machines

    # ---------------------------------------------------------------------------------------------- steps

    def step(self, process: int, state: Machine, event: Any, sender: int | None) -> Step | None:
        self.sends: list[tuple[int, Any]] = []
        self.facts: list[Any] = []
        node = state.node
        noted = {} if node is None else {peer: node.noted(peer)[0] for peer in node.peers}
        known = {} if node is None else {log: a.chosen for log, a in node.acceptors.items()}
        if event == "sync":
            if not state.pending:
                return None
            self.sync(state)
        elif event in ("crash", "wipe"):
            if event == "wipe":
                state.disk = Node(state.me, self.ids, Chance(0), incarnation=0, proposing=self.proposing)
                state.base, state.saved = 0, None
            self.crash(state)
            known = {}
        elif node is None:
            return None
        elif event == "tick":
            self.all_is_due(node)
            node.tick(NOW)
            self.turn(state)
        elif event == "checkpoint":
            if state.pending or not node.drained or node.rejoining:
                return None
            self.checkpoint(state)
        elif event == "put":
            if not (node.ready and node.has_room):
                return None
            state.proposed += 1
            payload = encode(Batch([command(state.me, state.proposed)], None))
            node.propose(payload, payload)
            self.turn(state)
        elif event == "read":
            state.asked += 1
            token = (state.me, state.asked)
            self.facts.append(("asked", token))
            node.read(token)
            self.turn(state)
        else:
            peer, (incarnation, message) = self.ids[sender or 0], event
            if incarnation < node.noted(peer)[0]:
                return Step([])
            if isinstance(message, FetchCheckpoint):
                if state.saved:
                    self.sends.append((sender or 0, (node.incarnations.incarnation, state.saved)))
            elif isinstance(message, Handed):
                self.install(state, message)
            else:
                node.step(peer, message, NOW)
                self.turn(state)
        assert state.node is not None
        for log, acceptor in state.node.acceptors.items():
            if acceptor.chosen > max(known.get(log, 0), acceptor.base):
                start = max(known.get(log, 0), acceptor.base)
                entries = tuple(acceptor.from_slot(start, acceptor.chosen))
                self.facts.append(("chosen", log, start, entries))
        self.believes(state.node, noted if state.node is node else {})
        self.times(state.node, stamp)
        return Step(self.sends, tuple(self.facts))

    def believes(self, node: Node, noted: dict[int, int]) -> None:
        """Who leads knows of no higher ballot, begins where its acceptor does, and counts no lost disk."""
        for log, proposer in node.proposers.items():
            if not (proposer.leading or proposer.preparing):
                continue
            acceptor, evidence = node.acceptors[log], node.learner.logs[log].evidence
            if proposer.leading and max(acceptor.promised, evidence) > proposer.ballot:
                raise Breach(
                    f"node {node.me} leads log {log} at {proposer.ballot}, and knows of a higher ballot"
                )
            if proposer.start != acceptor.chosen:
                raise Breach(f"node {node.me} leads log {log} from {proposer.start}, not {acceptor.chosen}")
            for peer, before in noted.items():
                counted = peer in proposer.lengths or peer in proposer.promises
                if counted and node.noted(peer)[0] > before:
                    raise Breach(f"node {node.me} counts what the lost disk of node {peer} has said")

    def crash(self, state: Machine) -> None:
        state.life += 1
        state.pending, state.applied = [], state.base
        state.node = node = pickle.loads(pickle.dumps(state.disk))
        if self.budgets["checkpoint"]:
            node.compaction.keep_bytes = 0  # what a checkpoint covers is given up by the next tick
        for part in (node.way, node.incarnations, node.revocation, node.catch_up):
            part.random = Chance(state.life)
        number_rounds(node, state.life)
        node.start(NOW)
        if node.clock.time < state.disk.clock.reserved:
            raise Breach(f"node {state.me} restarts at {node.clock.time}, below its reservation (R3)")
        node.tick(NOW)
        self.turn(state)

    def checkpoint(self, state: Machine) -> None:
        """What Replica.roll() and the process that makes checkpoints do; all of it is durable at once.

        A frame notes what is applied, the next one begins a segment, and a process replays what is before it.
        """
        node = state.node
        assert node is not None
        for record in node.notes():
            state.disk.replay(record)
        made = pickle.loads(pickle.dumps(state.disk))
        made.start(NOW)
        count = state.base + len(made.drain(NOW).apply)
        cut = made.cut()
        born = 0 if state.disk.rejoining else state.disk.incarnations.incarnation
        disk = Node(state.me, self.ids, Chance(0), incarnation=born, proposing=self.proposing)
        disk.install(cut)
        disk.checkpointed(cut)
        for record in node.state():
            disk.replay(record)
        for new, old in zip(remembered(disk), remembered(state.disk), strict=True):
            if new < old:
                raise Breach(f"node {state.me}'s new segment has {new}, and before it was {old}")
        state.disk, state.base = disk, count
        state.saved = Handed(cut.position, tuple(sorted(cut.logs.items())), cut.clock, count)
        node.checkpointed(cut)

    def install(self, state: Machine, handed: Handed) -> None:
        """Another node's checkpoint is on the disk: see Replica._install()."""
        assert state.node is not None
        state.foreign = handed
        if state.node.install(handed.cut(), NOW, 1):
            state.applied = handed.count
        self.turn(state)

    def turn(self, state: Machine) -> None:
        """The loop of paxoskv/node/replica.py, without batches."""
        node, again, leaked, fresh = state.node, True, False, not state.pending
        assert node is not None
        while again:
            ready = node.drain(NOW)
            again = self.dispatch(state, ready.send)
            if ready.checkpoint_from is not None and self.budgets["checkpoint"]:
                fetch = (node.incarnations.incarnation, FetchCheckpoint(0, 0))
                self.sends.append((self.ids.index(ready.checkpoint_from), fetch))
            leaked = leaked or any(to != node.me for to, _, _ in ready.send)
            if ready.journal:
                state.pending.append((ready.journal + node.notes(), ready.send_after))
            elif ready.send_after and state.pending:
                state.pending[-1][1].extend(ready.send_after)
            else:
                again |= self.dispatch(state, ready.send_after)
            for applied in ready.apply:
                self.is_due(node, applied)
                item = (applied.timestamp, applied.owner, applied.payload)
                self.facts.append(("applied", node.me, state.applied, item))
                state.applied += 1
                if applied.token is not None:
                    self.facts.append(("acknowledged", applied.token))
            self.facts += [("answered", token, state.applied) for token in ready.reads]
        if state.pending and fresh and not leaked:
            self.sync(state)

    def sync(self, state: Machine) -> None:
        pending, state.pending = state.pending, []
        for records, _ in pending:
            for record in records:
                if record.installed is not None:
                    assert state.foreign is not None
                    if state.disk.install(state.foreign.cut()):
                        state.base = state.foreign.count
                    continue
                state.disk.replay(record)
                if record.held is not None:
                    of = record.held
                    self.facts.append(("held", state.me, of.log, of.ballot, of.start, tuple(of.entries)))
        assert state.node is not None
        for _, after in pending:
            self.dispatch(state, after)
        self.turn(state)

    def dispatch(self, state: Machine, messages: list[Any]) -> bool:
        node, own = state.node, False
        assert node is not None
        for to, message, _ in messages:
            if to == node.me:
                node.step(node.me, message, NOW)
                own = True
            else:
                self.leaves(state, message)
                self.sends.append((self.ids.index(to), (node.incarnations.incarnation, message)))
        return own

    def is_due(self, node: Node, applied: Applied) -> None:
        """No log can bring an earlier command any more."""
        for log, of in node.learner.logs.items():
            if self.proposing == OWN_LOGS and of.frontier < applied.timestamp - (log > applied.owner):
                what = f"{applied.timestamp} of log {applied.owner}"
                raise Breach(f"node {node.me} applies {what}, and the frontier of log {log} is {of.frontier}")

    def leaves(self, state: Machine, message: Any) -> None:
        """What the others will count on is on the disk; what is said of a log is for the observer."""
        ballot = getattr(message, "ballot", 0)
        assert state.node is not None
        if isinstance(message, (Prepare, Accept)):
            candidate = state.disk.proposers.get(message.log)
            if candidate is None or candidate.highest < ballot:
                raise Breach(f"node {state.me} stands with a ballot that is not durable: {message}")
        elif isinstance(message, Promise) and message.verdict == Verdict.PROMISED:
            if state.disk.acceptors[message.log].promised < ballot:
                raise Breach(f"node {state.me} promises before it is durable: {message}")
        elif isinstance(message, Accepted) and message.vote == Vote.ACCEPTED:
            if state.node.rejoining is not None:
                raise Breach(f"node {state.me} votes, and has not rejoined: {message}")
            acceptor = state.disk.acceptors[message.log]
            if (acceptor.accepted, acceptor.length) < (ballot, message.length):
                raise Breach(f"node {state.me} votes before it is durable: {message}")
            seen = max(
                [e.timestamp for e in state.node.acceptors[message.log].entries if e.payload], default=0
            )
            if self.proposing == OWN_LOGS and state.node.clock.time < seen:
                raise Breach(f"node {state.me} answers at {state.node.clock.time}, below {seen} (R6)")
        elif isinstance(message, Learn):
            for acceptor, length in zip(state.disk.acceptors.values(), message.held, strict=False):
                if length > acceptor.chosen:
                    raise Breach(
                        f"node {state.me} says that it holds {length}, and would know {acceptor.chosen}"
                    )
        elif isinstance(message, Fetched) and message.entries:
            end = message.from_slot + len(message.entries)
            self.facts.append(("claims", message.log, end, message.evidence, 0))
        facts = [message.fact] if hasattr(message, "fact") else getattr(message, "facts", None) or []
        for fact in facts:
            own = (state.disk.clock.reserved, state.node.own.ballot) if fact.log == state.me else ()
            self.facts.append(("claims", *fact, *own))

    def all_is_due(self, node: Node) -> None:
        self.times(node, lambda at: at and EARLIER)
        node.gossip.gossiped_at = dict.fromkeys(node.gossip.gossiped_at, EARLIER)

    def times(self, node: Node, change: Callable[[float], float]) -> None:
        """Change every time that a node remembers; how long ago somebody was heard of is not looked at."""
        node.contacts.heard = dict.fromkeys(node.contacts.heard, NOW)
        node.round_trips.probes.clear()
        node.round_trips.measured.clear()
        node.voters.slow_until.clear()
        node.persistence.journaled_at = change(node.persistence.journaled_at)
        if node.outbox.deferred_since is not None:
            node.outbox.deferred_since = change(node.outbox.deferred_since)
        if node.rejoining is not None and node.rejoining.asked_at > 0:
            node.rejoining.asked_at = change(node.rejoining.asked_at)
        way: Any = node.way
        parts = [getattr(way, name) for name in ("still", "handed", "reading") if hasattr(way, name)]
        for part in (way, *parts):
            for name in ("retake_at", "stand_at", "at", "asked_at", "since"):
                if (getattr(part, name, None) or 0.0) > 0:
                    setattr(part, name, change(getattr(part, name)))
        if isinstance(way, OwnLogs):
            way.reads.waited_since = change(way.reads.waited_since)
            if way.reads.round is not None:
                way.reads.round.at = change(way.reads.round.at)
        elif hasattr(way, "limit"):
            way.limit = 0.0
        for waiting in node.revocation.waiting.values():
            waiting.since, waiting.asked = change(waiting.since), change(waiting.asked)
        node.catch_up.fetching = {
            log: (change(at), whom) for log, (at, whom) in node.catch_up.fetching.items()
        }
        node.catch_up.fetch_at = node.compaction.compact_at = 0.0
        node.gossip.news_at = dict.fromkeys(node.gossip.news_at, NOW)
        node.gossip.gossiped_at = dict.fromkeys(node.gossip.gossiped_at, NOW)
        for proposer in node.proposers.values():
            proposer.prepared_at = change(proposer.prepared_at)
            for courier in proposer.couriers.values():
                courier.at, courier.silent = change(courier.at), 0

    # ------------------------------------------------------------------------------------------ comparing

    def key(self, process: int, state: Machine) -> Hashable:
        node, disk = state.node, state.disk
        if node is None:
            return "down"
        turn = node.persistence.persisted_turn
        pending = tuple(
            (
                self.freeze(records),
                tuple(
                    (
                        to,
                        self.freeze(
                            (m.turn - turn, m.reservation, m.held) if isinstance(m, Persisted) else m
                        ),
                    )
                    for to, m, _ in after
                ),
            )
            for records, after in state.pending
        )
        durable = (
            disk.clock.reserved, disk.persistence.replayed_position, self.freeze(disk.acceptors),
            tuple(sorted((log, p.highest) for log, p in disk.proposers.items())),
        )  # fmt: skip
        same = node.gossip.seen is node.learner.logs[node.own.log].fact, node.persistence.turn - turn
        return (
            self.freeze(node), same, durable, pending, state.applied, state.life, state.proposed, state.asked,
            state.base, state.saved, state.foreign if state.pending else None,
        )  # fmt: skip

    def horizon(self, process: int, state: Any, left: dict[str, int]) -> Hashable:
        return None

    def dead(self, sender: int, source: Any, receiver: int, target: Any, message: Any) -> bool:
        return False

    def renamed(self, process: int, state: Any, to: dict[int, int]) -> Any:
        return state

    def renamed_history(self, history: Any, to: dict[int, int]) -> Hashable:
        return history

    # ------------------------------------------------------------------------------------------ observing

    def observe(self, history: Any, facts: tuple[Any, ...]) -> Hashable:
        """The history: (of each log what is chosen and by whom, what is applied, acknowledged, asked)."""
        logs, applied, acknowledged, open_ = history
        table = {log: Log(chosen, dict(ballots), frontier) for log, chosen, ballots, frontier in logs}
        asked = dict(open_)
        for kind, *what in facts:
            if kind == "held":
                table.setdefault(what[1], Log((), {}, 0)).hold(self.quorum, *what)
            elif kind == "chosen":
                log, start, entries = what
                chosen = table[log].chosen if log in table else ()
                if chosen[start : start + len(entries)] != entries:
                    raise Breach(f"log {log}: {entries} from {start} are taken for chosen, and are not")
            elif kind == "claims":
                table.setdefault(what[0], Log((), {}, 0)).claim(self.quorum, *what)
            elif kind == "applied":
                applied = self.apply(applied, *what)
            elif kind == "acknowledged":
                if not any(e.payload == what[0] for log in table.values() for e in log.chosen):
                    raise Breach(f"{what[0]} is acknowledged, and not chosen")
                acknowledged |= {what[0]}
            elif kind == "asked":
                asked[what[0]] = acknowledged
            elif missing := asked.pop(what[0]) - {item[-1] for item in applied[: what[1]]}:
                raise Breach(f"the read {what[0]} misses {missing}, acknowledged before it began")
        packed = tuple((log, *table[log].packed()) for log in sorted(table))
        return packed, applied, acknowledged, tuple(sorted(asked.items()))

    def apply(self, applied: Any, node: int, index: int, item: Any) -> Any:
        if index < len(applied):
            if applied[index] != item:
                raise Breach(f"node {node} applies {item} where others have applied {applied[index]}")
            return applied
        if any(item[-1] == other[-1] for other in applied):
            raise Breach(f"node {node} applies {item} a second time")
        return (*applied, item)


def remembered(disk: Node) -> list[Any]:
    """What a restart must find, whatever segments there are: none of it goes back."""
    acceptors = [(a.promised, a.accepted, a.length) for a in disk.acceptors.values()]
    stood = [disk.way.proposer(log).highest for log in disk.acceptors]
    position = max(disk.learner.position, disk.persistence.replayed_position)
    return [*acceptors, *stood, disk.clock.reserved, position]


def number_rounds(node: Node, life: int) -> None:
    """Rounds of reads have other numbers in each life: in a server, by chance."""
    if isinstance(node.way, OwnLogs):
        node.way.reads.rounds = life << 12
    elif isinstance(node.way, Leader):
        node.way.reading.round = life << 12


def command(node: int, number: int) -> Command:
    return Command(Verb.PUT, f"{node}.{number}", f"{node}.{number}")


def stamp(at: float) -> float:
    return at if not at else EARLIER if at < NOW else NOW if at == NOW else LATER
