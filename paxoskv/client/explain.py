"""What a live cluster has recorded: of one key or slot, or all of it."""

import argparse
import json
from contextlib import suppress
from typing import Any

from paxoskv.client.operations import ClientError
from paxoskv.client.sync import Client
from paxoskv.page.draw import Drawing
from paxoskv.page.instance import about, joined, standing, written

SWITCH = 'switch it on with `trace on`, or "trace" in cluster.json, and repeat what is to be explained'


class Unexplained(ClientError):
    """Nobody has recorded it."""


def switch(client: Client, on: bool) -> list[str]:
    """Let all nodes record, or stop; return a line for each."""
    lines = []
    for node in client.nodes:
        try:
            client.trace(node.id, on)
            lines.append(f"node {node.id}: {'records' if on else 'does not record'}")
        except ClientError as error:
            lines.append(f"node {node.id}: {error}")
    return lines


def gathered(client: Client, held: bool = False) -> tuple[list[dict[str, Any]], list[str]]:
    """What all nodes have recorded, and what those that have not say.

    `held`: of nodes that do not record, what their journals have.
    """
    traces, missing = [], []
    for node in client.nodes:
        try:
            on, events = client.trace(node.id)
            if not on and held:
                events = client.trace(node.id, held=True)[1]
        except ClientError as error:
            missing.append(f"node {node.id}: {error}")
            continue
        traces.append([json.loads(event) for event in events])
        if not on:
            missing.append(f"node {node.id} does not record")
    return joined(traces), missing


def journals(client: Client) -> list[dict[str, Any]]:
    """What the journals of all nodes have; nodes that do not answer have been named already."""
    traces = []
    for node in client.nodes:
        with suppress(ClientError):
            traces.append([json.loads(event) for event in client.trace(node.id, held=True)[1]])
    return joined(traces)


def drawing(client: Client, arguments: argparse.Namespace) -> Drawing:
    """Draw what happened to a key or a slot; Unexplained if neither a recording nor a journal has it."""
    events, missing = gathered(client, held=True)
    found, told = of(events, arguments)
    if not told:
        events = journals(client)
        found, told = of(events, arguments)
        missing += ["what was recorded does not have it"] if told else []
    if not told:
        what = f"the last entry about {arguments.key!r}" if arguments.key is not None else "it"
        reason = f"{what} is neither in what was recorded nor in a journal: {SWITCH}"
        raise Unexplained("; ".join([*missing, reason]))
    if any(event["kind"] == "held" for event in told):
        missing.append(f"So this tells what the journals have. For all of it, {SWITCH}")
    start = told[0]["time"]
    before = [state | {"time": start} for state in standing(events, found[0], told[0]["id"])]
    header = {
        "title": f"Slot {found[1]} of log {found[0]}",
        "text": ". ".join(missing) or "All nodes have recorded it.",
        "nodes": [node.id for node in client.nodes],
        "only": found,
        "before": len(before),
    }
    lines = [json.dumps(event | {"time": event["time"] - start}) for event in before + told]
    return Drawing([json.dumps(header), *lines])


def of(
    events: list[dict[str, Any]], arguments: argparse.Namespace
) -> tuple[tuple[int, int], list[dict[str, Any]]]:
    """The log and slot that are asked for, and what happened there."""
    place = (arguments.log, arguments.slot) if arguments.key is None else written(events, arguments.key)
    return (place, about(events, *place)) if place else ((0, 0), [])
