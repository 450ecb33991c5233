#!/usr/bin/env python3
"""Tries the other versions of Python that the package names: those of them that this machine has.

    tools/pythons.py             each in an environment of its own; the status is 1 if one of them fails
    tools/pythons.py --list      the versions that pyproject.toml names

Interpreters are looked for in the PATH, and among those of pyenv. The tests that each runs take seconds: the
state, the wire, the stories of the protocol, and real nodes.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).resolve().parent.parent
TESTS: Final = (
    "tests/state", "tests/wire/test_structs.py", "tests/protocol/test_scenarios.py",
    "tests/storage/test_journal.py", "tests/node/test_watches.py", "tests/node/test_small_machines.py",
)  # fmt: skip
# A development tool that the tests need; requirements-dev.txt says which version.
ALSO: Final = "hypothesis"


def named() -> list[str]:
    """The versions that the package names."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    return [text.rpartition(" ")[2] for text in project["classifiers"] if "Python :: 3" in text]


def interpreter(version: str) -> Path | None:
    """An interpreter of this version that works; None: there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = shutil.which(f"python{version}")
    candidates = [*sorted(pyenv.glob(f"{version}.*/bin/python")), *([Path(found)] if found else [])]
    for path in candidates:
        asked = subprocess.run([path, "-c", "import ensurepip, sys; print(*sys.version_info[:2], sep='.')"],
                               capture_output=True, text=True)  # fmt: skip
        if asked.stdout.strip() == version:
            return path
    return None


def tried(python: Path, directory: Path) -> bool:
    """Make an environment with this interpreter, and run the tests in it."""
    (also,) = (
        line for line in (PROJECT / "requirements-dev.txt").read_text().split() if line.startswith(ALSO)
    )
    subprocess.run([python, "-m", "venv", directory], check=True)
    own = directory / "bin" / "python"
    pip = [own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", PROJECT / "requirements.txt", also], check=True)
    tests = [own, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *TESTS]
    environment = {**os.environ, "PAXOSKV_INTERPRETED": "1"}  # what is compiled is for one version
    return subprocess.run(tests, cwd=PROJECT, env=environment).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Try the other versions of Python that this machine has.")
    parser.add_argument("--list", action="store_true", help="print the versions that the package names")
    if parser.parse_args().list:
        print("\n".join(named()))
        return 0
    failed = []
    for version in named():
        if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
            continue
        python = interpreter(version)
        print(f"Python {version}: {python or 'not on this machine'}", flush=True)
        if python is None:
            continue
        with tempfile.TemporaryDirectory() as directory:
            if not tried(python, Path(directory) / "venv"):
                failed.append(version)
    print(f"failed: {', '.join(failed)}" if failed else "all that were found work")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
