"""The busiest modules in machine code: optional, and the plain text stays the one that is read and tested.

scripts/compile.py translates them with mypyc from this very text, unchanged, into build/compiled/DIGEST. A
program that calls use() before it imports them gets those; if a module has changed since, or was never
compiled, it gets the plain ones, and does the same more slowly. MULTIPAXOS_PLAIN=1 in the environment asks
for the plain ones.
"""

import hashlib
import os
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent
MODULES = (
    "structs",
    "interface",
    "multipaxos",
    "store",
    "journal",
    "rpc",
    "replica",
    "server",
    "metrics",
    "failover",
)
MAKING = (
    "scripts/compile.py",
    "scripts/make_codec.py",
    "gen-py/kvstore/ttypes.py",
    "gen-py/kvstore/KeyValue.py",
)
SOURCES = (*(f"{module}.py" for module in MODULES), *MAKING)


def directory() -> Path:
    """Where the modules are, or would be, that were compiled from the text as it is, for this Python."""
    digest = hashlib.sha256(f"{sys.implementation.cache_tag} {sys.version}".encode())
    for name in SOURCES:
        digest.update((PROJECT / name).read_bytes())
    return PROJECT / "build" / "compiled" / digest.hexdigest()[:16]


def use() -> bool:
    """Let the compiled modules be found before the plain ones; False if there are none."""
    if os.environ.get("MULTIPAXOS_PLAIN") or not (PROJECT / "build" / "compiled").exists():
        return False
    path = directory()
    if not path.exists():
        return False
    sys.path.insert(0, str(path))
    return True
