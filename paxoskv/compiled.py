"""The busiest modules in machine code: optional, and the plain text stays the one that is read and tested.

tools/compile.py translates them with mypyc from this very text, unchanged, into build/compiled/DIGEST. A
program that calls use() before it imports them gets those; if a module has changed since, or was never
compiled, it gets the plain ones, and does the same more slowly. MULTIPAXOS_PLAIN=1 in the environment asks
for the plain ones.
"""

import hashlib
import importlib
import os
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PROTOCOL = PROJECT / "paxoskv" / "protocol"
MODULES = (
    "paxoskv/wire/structs.py",
    "paxoskv/wire/codec.py",
    "paxoskv/wire/connection.py",
    "paxoskv/multipaxos.py",
    *sorted(f"paxoskv/protocol/{part.name}" for part in PROTOCOL.glob("[!_]*.py")),
    "paxoskv/state/store.py",
    "paxoskv/storage/journal.py",
    "paxoskv/node/replica.py",
    "paxoskv/node/turns.py",
    "paxoskv/node/eventlog.py",
    "paxoskv/node/writer.py",
    "paxoskv/node/checkpointing.py",
    "paxoskv/node/health.py",
    "paxoskv/node/calls.py",
    "paxoskv/node/connections.py",
    "paxoskv/node/peers.py",
    "paxoskv/node/service.py",
    "paxoskv/node/status.py",
    "paxoskv/node/inbox.py",
    "paxoskv/node/server.py",
    "paxoskv/node/metrics.py",
    "paxoskv/client/operations.py",
)
MAKING = (
    "tools/compile.py",
    "tools/make_codec.py",
    "gen-py/kvstore/ttypes.py",
    "gen-py/kvstore/KeyValue.py",
)
SOURCES = (*MODULES, *MAKING)
PACKAGES = tuple(sorted({module.rpartition("/")[0].replace("/", ".") for module in MODULES}))


def directory() -> Path:
    """Where the modules are, or would be, that were compiled from the text as it is, for this Python."""
    digest = hashlib.sha256(f"{sys.implementation.cache_tag} {sys.version}".encode())
    for name in SOURCES:
        digest.update((PROJECT / name).read_bytes())
    return PROJECT / "build" / "compiled" / digest.hexdigest()[:16]


def use(packages: tuple[str, ...] = PACKAGES) -> bool:
    """Let the compiled modules of these packages be found before the plain ones; False if there are none."""
    if os.environ.get("MULTIPAXOS_PLAIN") or not (PROJECT / "build" / "compiled").exists():
        return False
    path = directory()
    if not path.exists():
        return False
    sys.path.append(str(path))  # there is what all of them share
    for package in packages:
        importlib.import_module(package).__path__.insert(0, str(path / package.replace(".", "/")))
    return True
