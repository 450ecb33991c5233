"""The health of the cluster: `client.py status` and `client.py health`.

Both ask all nodes at the same time, so that a node that hangs delays no other. Some columns of the table come
from comparing the nodes: how far each node lags, who leads the log of a dead node, and whether two nodes that
have applied the same entries have the same content.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from paxoskv.client.aio import AsyncClient
from paxoskv.client.base import Address
from paxoskv.client.operations import ClientError, WrongCluster
from paxoskv.client.output import escaped
from paxoskv.config import Cluster
from paxoskv.wire.codec import Status
from paxoskv.wire.structs import LogStatus


class View(NamedTuple):
    """What one node says of itself, or the error that came instead."""

    node: Address
    status: Status | None
    error: ClientError | None


class Row(NamedTuple):
    """What the table says of one node by comparing all views; None means unknown."""

    node: str
    state: str  # the node's own word, "unreachable", or "another's": it is of another cluster
    leader: int | None  # the node that leads this node's own log, or the only one
    one_log: bool  # whether all nodes have but one log
    lag: int | None  # how many entries fewer than the furthest node it has applied
    differs: bool  # another node has applied the same entries and has other content


# -------------------------------------------------------------------------------------------------- status


async def ask_all(client: AsyncClient, nodes: Sequence[Address], digest: bool) -> list[View]:
    """Ask all of these nodes at the same time; those that turn out to be elsewhere, once more there."""

    async def ask(node: Address) -> View:
        try:
            return View(node, await client.status(node.id, digest), None)
        except ClientError as error:
            return View(node, None, error)

    views = list(await asyncio.gather(*(ask(node) for node in nodes)))
    now = {node.id: node for node in client.nodes}
    for index, view in enumerate(views):
        if view.error and now[view.node.id] != view.node:
            views[index] = await ask(now[view.node.id])
    return views


def rows(views: Sequence[View]) -> list[Row]:
    """Compare the views; return a row for each."""
    statuses = [view.status for view in views if view.status]
    one_log = len(views) > 1 and all(len(status.logs) == 1 for status in statuses)
    furthest = max((_executed(status) for status in statuses), default=0)
    return [
        Row(
            str(view.node),
            (view.status.state or "?") if view.status else _silence(view.error),
            _leader(view, statuses, one_log),
            one_log,
            furthest - _executed(view.status) if view.status else None,
            view.status is not None and _differs(view.status, statuses),
        )
        for view in views
    ]


def _silence(error: ClientError | None) -> str:
    return "another's" if isinstance(error, WrongCluster) else "unreachable"


def _executed(status: Status) -> int:
    return sum(log.executed for log in status.logs)


def _leader(view: View, statuses: Iterable[Status], one_log: bool) -> int | None:
    """Return the leader of the node's own log, as the node says, or the node with the highest promise."""
    own = view.status.node if view.status else view.node.id
    asked = [view.status] if view.status else statuses
    logs: list[LogStatus] = [log for status in asked for log in status.logs if one_log or log.log == own]
    return max(logs, key=lambda log: log.promised).leader if logs else None


def _differs(status: Status, statuses: Iterable[Status]) -> bool:
    return any(
        other.applied == status.applied and (other.hash != status.hash or _unlike(other, status))
        for other in statuses
    )


def _unlike(one: Status, other: Status) -> bool:
    return None not in (one.digest, other.digest) and one.digest != other.digest


HEADINGS = (
    "node", "state", "its log", "clock", "applied", "lag", "in flight", "pending", "keys", "journal",
    "checkpoint", "memory", "uptime", "version", "connected", "hash",
)  # fmt: skip


def cells(view: View, row: Row) -> list[str]:
    """Return the cells of a line of the table; a node that does not answer has only the first three."""
    status = view.status
    if status is None:
        return [row.node, row.state, _led(row, view.node.id)]
    age = status.checkpoint_age_s
    return [
        row.node, row.state, _led(row, status.node), str(status.clock),
        f"{status.applied.timestamp}/{status.applied.owner}", str(row.lag), str(status.in_flight or 0),
        str(status.pending), str(status.keys), _size(status.journal_bytes),
        "none" if age is None else f"{age:.0f} s", _size(status.memory_bytes), f"{status.uptime_s:.0f} s",
        status.version, ",".join(map(str, status.connected)) or "-",
        (status.digest or _hash(status.hash)) + (" DIFFERS" if row.differs else ""),
    ]  # fmt: skip


def _hash(value: int | None) -> str:
    return f"{value % 2**64:016x}" if value else "-"


def _led(row: Row, own: int | None) -> str:
    if row.leader is None:
        return "-"
    if row.leader != own:
        return f"led by {row.leader}" if row.one_log else f"revoked by {row.leader}"
    return "leads" if row.state not in ("starting", "rejoining", "unreachable") else "not taken over"


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def remarks(views: Iterable[View]) -> list[str]:
    """Return the lines below the table: why nodes do not answer, and the problems that nodes report."""
    lines = []
    for view in views:
        name = f"{view.node}: "
        if view.error:
            lines.append(name + escaped(str(view.error).rpartition(name)[2]))
        elif view.status:
            lines += [name + escaped(problem) for problem in view.status.problems or ()]
    return lines


def as_text(views: Sequence[View]) -> str:
    """Return the table as text, for a pipe or a file."""
    table = [list(HEADINGS), *(cells(view, row) for view, row in zip(views, rows(views), strict=True))]
    widths = [max(len(line[i]) for line in table if i < len(line)) for i in range(len(HEADINGS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip()
        for line in table
    ]
    return "\n".join([*lines, *remarks(views)])


def as_table(views: Sequence[View]) -> Any:
    """Return the table in color, for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("node", "state", "its log") else "right")
    for view, row in zip(views, rows(views), strict=True):
        well = row.state == "serving" and not row.differs
        table.add_row(*map(Text, cells(view, row)), style=None if well else "red")
    return Group(table, *(Text(line, style="red") for line in remarks(views)))


def as_colored(views: Sequence[View]) -> str:
    """Return the table as text in color, for a terminal."""
    from rich.console import Console

    console = Console()
    with console.capture() as captured:
        console.print(as_table(views))
    return captured.get().removesuffix("\n")


def as_data(views: Sequence[View]) -> list[dict[str, Any]]:
    """Return the table for programs: each node's own status, and what comparing the nodes shows."""
    return [
        {
            "address": row.node,
            "reachable": view.status is not None,
            "leader": row.leader,
            "lag": row.lag,
            "differs": row.differs,
            **(_as_dict(view.status) if view.status else {"state": row.state, "error": str(view.error)}),
        }
        for view, row in zip(views, rows(views), strict=True)
    ]


def _as_dict(struct: Any) -> Any:
    """Turn a struct, and all within it, into dicts and lists."""
    if isinstance(struct, list):
        return [_as_dict(part) for part in struct]
    if hasattr(struct, "thrift_spec"):
        return {name: _as_dict(getattr(struct, name)) for name in struct._fields}
    return dict(struct) if isinstance(struct, dict) else struct


async def status(
    cluster: Cluster | str,
    node: int | None,
    show: Callable[[Sequence[View]], bool],
    *,
    timeout: float,
    digest: bool = False,
    every: float | None = None,
    live: bool = False,
) -> Sequence[View]:
    """Show the state of all nodes, or of one; return it.

    If `every` is given, show it again every `every` seconds, until nobody looks any more: then `show` returns
    False. `live` draws it in place.
    """
    async with AsyncClient(cluster, timeout=timeout, attempt_timeout=timeout) as client:
        asked = [known for known in client.nodes if node in (None, known.id)]
        views = await ask_all(client, asked, digest)
        if every is not None and live:
            await _live(client, views, digest, every)
        while show(views) and every is not None:
            await asyncio.sleep(every)
            views = await ask_all(client, asked, digest)
        return views


async def _live(client: AsyncClient, views: Sequence[View], digest: bool, every: float) -> None:
    """Draw the table again every `every` seconds, until interrupted."""
    from rich.live import Live

    with Live(as_table(views), auto_refresh=False) as live:
        while True:
            await asyncio.sleep(every)
            views = await ask_all(client, [view.node for view in views], digest)
            live.update(as_table(views), refresh=True)


# -------------------------------------------------------------------------------------------------- health


class Check(NamedTuple):
    """The outcome of a write and a read at one node: the seconds that each took, or why one failed."""

    node: Address
    write_s: float | None
    read_s: float | None
    error: str | None
    cause: ClientError | None = None


async def health(cluster: Cluster | str, nodes: Sequence[int], timeout: float) -> list[Check]:
    """Try a write and a linearizable read at each of these nodes, or at all if none is given.

    Both together may take `timeout` seconds. The write goes the way of every command, and changes nothing:
    see Calls.probe.
    """
    async with AsyncClient(cluster, timeout=timeout, attempt_timeout=timeout) as client:
        asked = [(i, node) for i, node in enumerate(client.nodes) if not nodes or node.id in nodes]
        return list(await asyncio.gather(*(_check(client, i, node, timeout) for i, node in asked)))


async def _check(client: AsyncClient, index: int, node: Address, timeout: float) -> Check:
    began = time.monotonic()
    write_s = None
    step = "write"
    try:
        async with asyncio.timeout(timeout):
            await client.run(client.calls.probe(index))
            write_s, step = time.monotonic() - began, "read"
            await client.get("health", node=node.id)
            read_s = time.monotonic() - began - write_s
    except TimeoutError:
        return Check(node, write_s, None, f"{step}: no answer within {timeout:g} s")
    except ClientError as error:
        reason = str(error).rpartition(f"{node}: ")[2]
        return Check(node, write_s, None, f"{step}: {reason}", error)
    return Check(node, write_s, read_s, None)
