"""What a live cluster has recorded: of one key or slot, or all of it."""

import argparse
import json
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


def gathered(client: Client) -> tuple[list[dict[str, Any]], list[str]]:
    """What all nodes have recorded, and what those who have not say."""
    traces, missing = [], []
    for node in client.nodes:
        try:
            on, events = client.trace(node.id)
        except ClientError as error:
            missing.append(f"node {node.id}: {error}")
            continue
        traces.append([json.loads(event) for event in events])
        if not on:
            missing.append(f"node {node.id} does not record")
    return joined(traces), missing


def drawing(client: Client, arguments: argparse.Namespace) -> Drawing:
    """Draw what happened to a key or a slot; Unexplained if it was not recorded."""
    events, missing = gathered(client)
    if not events:
        raise Unexplained(f"{'; '.join(missing)}: {SWITCH}")
    if arguments.key is not None:
        found = written(events, arguments.key)
        what = f"the last entry about {arguments.key!r}"
    else:
        found = arguments.log, arguments.slot
        what = "it"
    told = about(events, *found) if found else []
    if not told or found is None:
        raise Unexplained(f"{what} is not in what was recorded: {SWITCH}")
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
