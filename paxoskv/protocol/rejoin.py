"""How a node whose disk was lost comes back without contradicting what it has forgotten."""

from collections.abc import Sequence

from paxoskv.multipaxos import RESEND_AFTER, Acceptor, Learner, Proposer
from paxoskv.protocol.clock import Clock
from paxoskv.protocol.incarnations import Incarnations
from paxoskv.protocol.outbox import Outbox
from paxoskv.protocol.persistence import Persistence
from paxoskv.wire.structs import Fact, Noted, Record, Rejoin, Rejoined


def testimony(
    message: Rejoin,
    noted: int,
    mute: bool,
    acceptor: Acceptor,
    proposer: Proposer | None,
    fact: Fact,
    clock: int,
    lives: list[Noted],
) -> Rejoined:
    """Tell a node that rejoins all of one log that it may have had a part in.

    `noted`: the highest incarnation of it that is noted here; once it is, no quorum counts an older disk.
    `mute`: tell it only that, because we rejoin ourselves, or it asks with a lower one.
    `lives`: which processes speak for the other nodes, as far as we know, and which one we are.
    """
    promised, accepted = acceptor.promised, acceptor.accepted
    entries = acceptor.from_slot(acceptor.chosen)
    if proposer is not None:
        promised = max(promised, proposer.highest)
        if proposer.leading:
            accepted, entries = proposer.ballot, list(proposer.entries)
    if mute:
        promised, accepted, entries = 0, 0, []
    return Rejoined(
        message.log, message.incarnation, noted, mute,
        promised, accepted, acceptor.chosen, entries, fact, clock, lives,
    )  # fmt: skip


class Rejoining:
    """A node whose disk was lost asks what it may have promised, voted, and said of its clock.

    It must ask *every* other node: a promise that it forgot may have been counted by any of them (N3). First
    for the incarnations that they have noted; its own is to be higher than all. Once a node has noted that,
    no quorum there counts the lost disk, and its answer holds the ballots that it stood with, and the
    entries that it proposed, while that disk still counted. The highest is taken over.

    It has forgotten, too, which disks and starts of the others it must refuse. Each of them tells what it
    has noted, and only the newest process of a node counts as that node (N26): a node that was replaced has
    been noted by all others before it took part, so that any of them knows. (One of a version that does not
    tell is believed to be the newest that was greeted.)

    A node that is rejoining itself has nothing to tell; a quorum must have something. Until the end is
    durable, a node neither votes, proposes nor reads, and nothing counts that it says of its clock; but it
    learns, and fetches.
    """

    def __init__(
        self,
        me: int,
        peers: Sequence[int],
        quorum: int,
        learner: Learner,
        clock: Clock,
        incarnations: Incarnations,
        persistence: Persistence,
        outbox: Outbox,
    ) -> None:
        self.me = me
        self.peers = peers
        self.quorum = quorum
        self.acceptors = learner.acceptors
        self.logs = list(learner.acceptors)
        self.any_log = me if me in self.logs else self.logs[0]  # to name one where none is meant
        self.learner = learner
        self.clock = clock
        self.incarnations = incarnations
        self.persistence = persistence
        self.outbox = outbox
        self.noted: dict[int, int] = {}  # by peer: the incarnation of ours that it has noted
        self.answers: dict[int, dict[int, Rejoined]] = {peer: {} for peer in peers}  # by log
        self.asked_at = float("-inf")
        self.noted_by_all = False  # whether the answers were given after every node had noted us
        self.turn = 0  # with the records that end it

    def tick(self, now: float) -> None:
        """Ask those again that have not answered; when all have, take over what they say."""
        incarnation = self.incarnations.incarnation
        if not self.turn and incarnation and self.complete():
            if self.noted_by_all:
                self._take_over()
            else:  # (the new number tells the second answers from late first ones)
                self._ask_again(noted_by_all=True)
                self.incarnations.take(incarnation + 1)
        if now - self.asked_at < RESEND_AFTER:
            return
        self.asked_at = now
        if not self.incarnations.incarnation:
            for peer in self.peers:
                if peer not in self.noted:
                    self.outbox.send(peer, Rejoin(self.any_log, 0))
        else:
            for peer, log in self.missing():
                self.outbox.send_after(peer, Rejoin(log, self.incarnations.incarnation))

    def on_rejoined(self, sender: int, message: Rejoined) -> bool:
        """Hear an answer. True if it is one that counts, so that its fact is to be learned."""
        incarnation = self.incarnations.incarnation
        if message.incarnation != incarnation or self.turn:
            return False
        if not incarnation:
            self.noted[sender] = message.noted
            if len(self.noted) == len(self.peers):
                self.incarnations.take(max(2, 1 + max(self.noted.values())))
                self.asked_at = float("-inf")
            return False
        if self.incarnations.is_older(sender, message.lives):
            return False
        if message.noted > incarnation:
            self._ask_again(noted_by_all=False)
            self.incarnations.take(message.noted + 1)
            return False
        self.answers[sender][message.log] = message
        self.clock.hear(message.clock)
        return True

    def forget(self, peer: int) -> None:
        """Another process speaks for this peer: ask that."""
        self.answers[peer] = {}

    def is_done(self, turn: int) -> bool:
        """Whether the end is among the records that are durable with this turn."""
        return 0 < self.turn <= turn

    def tells(self, peer: int) -> bool:
        """Whether this peer has told its state of all logs."""
        answers = self.answers[peer]
        return len(answers) == len(self.logs) and not any(answer.rejoining for answer in answers.values())

    def missing(self) -> list[tuple[int, int]]:
        """Which peers are to be asked for which logs; those that are rejoining, again."""
        return [
            (peer, log)
            for peer, answers in self.answers.items()
            for log in self.logs
            if log not in answers or answers[log].rejoining
        ]

    def complete(self) -> bool:
        """Whether all have answered, and a quorum has told its state."""
        everybody = all(len(answers) == len(self.logs) for answers in self.answers.values())
        return everybody and sum(self.tells(peer) for peer in self.answers) >= self.quorum

    def waits(self) -> str:
        """Say what is waited for."""
        silent, empty = [], []
        for peer, answers in self.answers.items():
            if len(answers) < len(self.logs) if self.incarnations.incarnation else peer not in self.noted:
                silent.append(str(peer))
            elif any(answer.rejoining for answer in answers.values()):
                empty.append(str(peer))
        if not silent and len(self.answers) - len(empty) >= self.quorum:
            return "all other nodes have answered: catching up"
        waits = [f"no answer yet from {', '.join(silent)}"] if silent else []
        waits += [f"rejoining as well: {', '.join(empty)}"] if empty else []
        rule = f"all {len(self.answers)} other nodes must answer, {self.quorum} of them with their data"
        return f"{rule}; {'; '.join(waits)}"

    def _ask_again(self, noted_by_all: bool) -> None:
        """Ask everybody with a higher incarnation.

        Once everybody has noted us, the lost disk is counted nowhere any more. But some answers are older
        than that: a vote of the lost disk may have made a quorum since, at a node that has lost its own disk
        meanwhile and so tells nothing. The nodes that gave the other votes tell of it when asked now.

        Else somebody has noted more than it said: a late message of a disk that rejoined before us, and was
        lost too. We begin anew.
        """
        self.noted_by_all = noted_by_all
        self.answers = {peer: {} for peer in self.answers}
        if noted_by_all:  # else two processes with one id would drive each other without a pause
            self.asked_at = float("-inf")

    def _take_over(self) -> None:
        """Take over what all say of all logs, in one durable step.

        Not before we hold what they say to be chosen.
        """
        for log, acceptor in self.acceptors.items():
            if acceptor.chosen < max(max(a.start, a.fact.chosen) for a in self._of_log(log)):
                return
        for log, acceptor in self.acceptors.items():
            answers = self._of_log(log)
            best = max(answers, key=lambda answer: (answer.accepted, answer.start + len(answer.entries)))
            promised = max(answer.promised for answer in answers)
            acceptor.rejoin(promised, best.accepted, best.entries[acceptor.chosen - best.start :])
            for entry in acceptor.from_slot(acceptor.chosen):
                self.clock.see_entry(entry)
        if self.me in self.learner.logs:
            self.clock.raise_to(self.learner.logs[self.me].known)
        self.outbox.journal(Record(rejoined=True))
        self.turn = self.persistence.turn + 1

    def _of_log(self, log: int) -> list[Rejoined]:
        return [answers[log] for peer, answers in self.answers.items() if self.tells(peer)]
