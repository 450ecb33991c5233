"""A replicated key-value store: the client library's names, each imported when it is first asked for.

from paxoskv import Client, UnknownOutcome, load

with Client(load("cluster.json")) as client:
    client.put("key", "value")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paxoskv.client import transactions
    from paxoskv.client.aio import AsyncClient
    from paxoskv.client.locks import LockLost
    from paxoskv.client.operations import (
        ClientError,
        CompactedError,
        NoNodeReachable,
        NotANumber,
        NotDoneError,
        UnknownOutcome,
        WrongCluster,
    )
    from paxoskv.client.sync import Client
    from paxoskv.config import Cluster, ClusterError, load
    from paxoskv.wire.codec import Status
    from paxoskv.wire.structs import (
        Change,
        Command,
        Item,
        Outcome,
        Place,
        Result,
        Verb,
    )

__all__ = [
    "AsyncClient",
    "Change",
    "Client",
    "ClientError",
    "Cluster",
    "ClusterError",
    "Command",
    "CompactedError",
    "Item",
    "LockLost",
    "NoNodeReachable",
    "NotANumber",
    "NotDoneError",
    "Outcome",
    "Place",
    "Result",
    "Status",
    "UnknownOutcome",
    "Verb",
    "WrongCluster",
    "load",
    "transactions",
]  # fmt: skip

_HOMES = (
    "config",
    "wire.structs",
    "wire.codec",
    "client.operations",
    "client.sync",
    "client.aio",
    "client.locks",
    "client",
)


def __getattr__(name: str) -> Any:
    """Import a name of the library when it is first used, so that a node does without the client."""
    if name in __all__:
        for home in _HOMES:
            module = importlib.import_module(f"paxoskv.{home}")
            if hasattr(module, name):
                globals()[name] = getattr(module, name)
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
