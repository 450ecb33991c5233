"""Which disk a node runs on, and which start of it: nobody may listen to a copy that has forgotten votes."""

from collections.abc import Sequence
from random import Random
from typing import Final

from paxoskv.multipaxos import Diverged
from paxoskv.protocol.outbox import Outbox
from paxoskv.wire.structs import Identity, Noted, Record, Recovered

LIFE_BITS: Final = 20  # of a life's number are random: two copies of a disk never start with the same number


class Incarnations:
    """Our own incarnation (which disk) and life (which start of it), and the highest that peers named."""

    def __init__(self, peers: Sequence[int], incarnation: int, outbox: Outbox, random: Random) -> None:
        self.outbox = outbox
        self.random = random
        self.incarnation = incarnation  # 0: a new disk in place of one that was lost
        self.life = 0  # grows
        self.recovered: list[Recovered] | None = None  # what this start found; None: it had to rejoin
        self.recovered_clock: int | None = None  # the reservation that this start has found
        self.lives: dict[int, tuple[int, int]] = dict.fromkeys(peers, (0, 0))  # by peer: (incarnation, life)

    def found(self, recovered: list[Recovered], reserved: int) -> None:
        """A start has found this on its disk."""
        self.recovered, self.recovered_clock = recovered, reserved

    def begin_life(self) -> None:
        """This disk has been started once more."""
        self.life = (self.life >> LIFE_BITS) + 1 << LIFE_BITS | self.random.getrandbits(LIFE_BITS)
        self.outbox.journal(Record(life=self.life))

    def take(self, incarnation: int) -> None:
        """This disk has this number from now on."""
        self.incarnation = incarnation
        self.outbox.journal(Record(incarnation=incarnation))

    def identify(self, identity: Identity, joined: bool) -> Identity:
        """Say who this node is: with a rejoin the incarnation rises, with each start the life.

        While it rejoins it says 0: others may not note an incarnation that is not durable yet.
        """
        return identity._replace(
            incarnation=self.incarnation if joined else 0,
            life=self.life,
            recovered=self.recovered,
            reserved=self.recovered_clock,
        )

    def refusal(self, peer: int, incarnation: int, life: int) -> str | None:
        """Say why nobody may listen to a process that claims to be this peer; None if one may.

        Incarnation 0 is rejoining, and says nothing that counts.
        An older disk, or an earlier start of the same one, is a copy that was put back: it has forgotten
        votes. The same holds for another start with the same count.
        """
        disk, last = self.lives[peer]
        older = life >> LIFE_BITS <= last >> LIFE_BITS and life != last
        if incarnation and (incarnation < disk or (incarnation == disk and older)):
            return (
                f"node {peer} is a stale copy: incarnation {incarnation}, start {life >> LIFE_BITS}, but "
                f"{disk} and {last >> LIFE_BITS} were seen: move its data aside and start it with --rejoin"
            )
        return None

    def note(self, peer: int, incarnation: int, life: int) -> bool:
        """Remember, durably, which disk and which start of it a peer has.

        True if the disk is another one: then all that the old one has said must be forgotten.
        """
        other = incarnation > self.lives[peer][0]
        self.lives[peer] = (incarnation, life)
        self.outbox.journal(Record(noted=Noted(peer, incarnation, life)))
        return other

    def told(self, me: int) -> list[Noted]:
        """Tell which disk and which start of every node we know of, our own included."""
        others = [Noted(peer, *lives) for peer, lives in self.lives.items() if any(lives)]
        return [Noted(me, self.incarnation, self.life), *others]

    def newer(self, lives: list[Noted] | None) -> list[Noted]:
        """Return what is told here of peers and is higher than what was noted of them.

        So a node that has forgotten whom it must refuse is told (N26).
        """
        return [of for of in lives or () if of.node in self.lives and of[1:] > self.lives[of.node]]

    def is_older(self, sender: int, lives: list[Noted] | None) -> bool:
        """Whether an earlier disk or start of the sender than was noted tells this; no if it does not say."""
        return any(of.node == sender and of[1:] < self.lives[sender] for of in lives or ())

    def state(self, joined: bool) -> list[Record]:
        """What must not be forgotten of all this, besides the life; `joined`: whether we do not rejoin."""
        records = []
        if self.incarnation > 1:  # taken by a rejoin
            records.append(Record(incarnation=self.incarnation))
            if joined:
                records.append(Record(rejoined=True))
        noted = [Record(noted=Noted(peer, *lives)) for peer, lives in self.lives.items() if any(lives)]
        return records + noted

    def replay(self, record: Record) -> None:
        """Recovery: a record about a peer's disk or start, or about our own."""
        if record.noted:
            if record.noted.node not in self.lives:
                raise Diverged("the journal is that of another node")
            self.lives[record.noted.node] = (record.noted.incarnation, record.noted.life)
        elif record.life is not None:
            self.life = record.life
        elif record.incarnation is not None:
            self.incarnation = record.incarnation
