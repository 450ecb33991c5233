"""What an observer of all disks sees: what is chosen, by the definition, and whether it changes."""

from typing import Any

from tests.harness.explore.world import Breach

Log = tuple[Any, ...]
Ballots = dict[int, tuple[Log, dict[int, int]]]  # by ballot: its log, and how much of it each voter holds


def held(
    quorum: int, chosen: Log, ballots: Ballots, voter: int, ballot: int, start: int, entries: Log
) -> Log:
    """A voter durably holds these entries of a ballot; return what is chosen now, or raise Breach."""
    log, votes = ballots.setdefault(ballot, ((), {}))
    if start > len(log):  # what is below is known to be chosen
        if start > len(chosen):
            raise Breach(f"{voter} accepts slot {start} of ballot {ballot}, and only {chosen} is chosen")
        log = chosen[:start]
    if log[start : start + len(entries)] != entries[: len(log) - start]:
        raise Breach(f"ballot {ballot} has two logs: {log}, and {entries} from slot {start}")
    log += entries[len(log) - start :]
    votes[voter] = max(votes.get(voter, 0), start + len(entries))
    ballots[ballot] = (log, votes)
    if len(votes) < quorum:
        return chosen
    length = sorted(votes.values())[-quorum]
    common = min(length, len(chosen))
    if log[:common] != chosen[:common]:
        raise Breach(f"chosen is {chosen}, and at ballot {ballot} {log[:length]}")
    return log[:length] if length > len(chosen) else chosen
