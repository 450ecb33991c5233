"""Who is in contact with us, and how: heard of when, refusing connections, proposing."""

from collections.abc import Sequence
from typing import Final

GOSSIP_IDLE: Final = 0.1  # seconds between two gossip messages to a peer when there is no news
SILENT: Final = 1.5 * GOSSIP_IDLE  # seconds after which a peer that says nothing is not counted on
LONG_SILENT: Final = 3 * GOSSIP_IDLE  # seconds after which a peer that speaks again lacks what it was sent


class Contacts:
    """What we know of the peers as processes that can be reached."""

    def __init__(self, peers: Sequence[int]) -> None:
        self.heard = dict.fromkeys(peers, float("-inf"))  # by peer: when it last said anything
        self.refusing: set[int] = set()  # nothing listens there, as the transport says
        self.newest = list(peers)  # in the order of their last command entries, the newest first

    def hear(self, sender: int, now: float) -> bool:
        """A message came. True if the peer had long been silent."""
        last = self.heard.get(sender)
        if last is None:
            return False  # a message to ourselves
        self.heard[sender] = now
        return now - last > LONG_SILENT

    def proposed(self, peer: int) -> None:
        """A command entry came from it."""
        if peer != self.newest[0]:
            self.newest.remove(peer)
            self.newest.insert(0, peer)

    def link(self, peer: int, refused: bool) -> None:
        (self.refusing.add if refused else self.refusing.discard)(peer)

    def is_silent(self, peer: int, now: float) -> bool:
        return now - self.heard[peer] > SILENT

    def proposing(self, now: float) -> list[int]:
        """The peers that are not silent; the one that proposed last comes first."""
        return [peer for peer in self.newest if now - self.heard[peer] <= SILENT]

    def reached(self, seconds: float, now: float) -> int:
        """How many nodes said something in these last seconds, us included."""
        return 1 + sum(now - heard <= seconds for heard in self.heard.values())
