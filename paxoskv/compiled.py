"""The busiest modules in machine code. This is optional: the source stays what is read and tested.

tools/compile.py translates the modules with mypyc, unchanged, into build/compiled/DIGEST. A program that
calls use() before it imports them gets the compiled ones. If one of them has changed since, or none was ever
compiled, it gets the interpreted ones, which do the same more slowly. PAXOSKV_INTERPRETED=1 in the
environment asks for the interpreted ones.

Where a compiler is found, the first start of a cluster has them compiled in the background.
"""

import hashlib
import importlib
import os
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
COMPILED = (
    "paxoskv/multipaxos.py",
    "paxoskv/wire/*.py",
    "paxoskv/protocol/**/*.py",
    "paxoskv/state/*.py",
    "paxoskv/trace/*.py",
    "paxoskv/storage/*.py",
    "paxoskv/node/*.py",
    "paxoskv/client/operations.py",
)
SELDOM = (  # what runs once in a life, or less often
    "paxoskv/node/identity.py",
    "paxoskv/node/main.py",
    "paxoskv/node/opening.py",
    "paxoskv/node/status.py",
    "paxoskv/storage/checkpoint_process.py",
    "paxoskv/storage/data_dir.py",
)
MODULES = tuple(
    sorted(
        {
            str(path.relative_to(PROJECT))
            for pattern in COMPILED
            for path in PROJECT.glob(pattern)
            if path.name != "__init__.py"
        }
        - {*SELDOM}
    )
)
PACKAGES = tuple(sorted({module.rpartition("/")[0].replace("/", ".") for module in MODULES}))
TOOLS = (
    "tools/compile.py",
    "tools/make_codec.py",
    "tools/new_struct.c",
    "gen-py/kvstore/ttypes.py",
    "gen-py/kvstore/KeyValue.py",
)
SOURCES = (*MODULES, *TOOLS)


def directory() -> Path:
    """Where the modules are, or would be, compiled from the sources as they are, by this Python."""
    digest = hashlib.sha256(f"{sys.implementation.cache_tag} {sys.version}".encode())
    for name in SOURCES:
        digest.update((PROJECT / name).read_bytes())
    return PROJECT / "build" / "compiled" / digest.hexdigest()[:16]


def use(packages: tuple[str, ...] = PACKAGES) -> bool:
    """Let the compiled modules of these packages be found before the interpreted ones; False without any."""
    if os.environ.get("PAXOSKV_INTERPRETED") or not (PROJECT / "build" / "compiled").exists():
        return False
    path = directory()
    if not path.exists():
        return False
    sys.path.append(str(path))  # there is what all of them share
    for package in packages:
        importlib.import_module(package).__path__.insert(0, str(path / package.replace(".", "/")))
    return True
