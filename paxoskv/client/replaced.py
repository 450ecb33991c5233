"""The cluster's file after a node was replaced: what the new process of that node starts with."""

import json
from pathlib import Path
from typing import Any

from paxoskv.client.sync import Client
from paxoskv.config import address_text, parse_address


def described(file: str, client: Client, node: int, address: str) -> dict[str, Any]:
    """Return the file's content with all addresses as they are now, and with where each node was at first."""
    content: dict[str, Any] = json.loads(Path(file).read_text())
    now = {known.id: (known.host, known.port) for known in client.nodes} | {node: parse_address(address)}
    for member in content["nodes"]:
        before = parse_address(address_text(member["host"], member["port"]))
        if now[member["id"]] != before:
            member.setdefault("first_address", address_text(*before))
            member["host"], member["port"] = now[member["id"]]
    return content
