"""What pip calls to build the package (PEP 517): setuptools, and beside the modules' text the compiled ones.

Where a C compiler and Python's headers are at hand, the wheel has the busiest modules compiled as well
(tools/compile.py): it is for this version of Python, and for this kind of machine. PAXOSKV_INTERPRETED=1 in
the environment asks for a wheel without them, which is for all.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

PROJECT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from paxoskv import compiled
from tools import compile as compiling

__all__ = [
    "build_editable", "build_sdist", "build_wheel", "get_requires_for_build_editable",
    "get_requires_for_build_sdist", "get_requires_for_build_wheel", "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]  # fmt: skip


def wanted() -> bool:
    """Whether the wheel is to have compiled modules."""
    return not os.environ.get("PAXOSKV_INTERPRETED") and compiling.lacking() is None


def get_requires_for_build_wheel(settings: Any = None) -> list[str]:
    needed = build_meta.get_requires_for_build_wheel(settings)
    for name in ("requirements.txt", "requirements-fast.txt") if wanted() else ():
        needed += (PROJECT / name).read_text().split()
    return [package for package in needed if not package.startswith("setuptools==")]  # it is there already


def build_wheel(directory: str, settings: Any = None, metadata: str | None = None) -> str:
    if wanted():
        subprocess.run([sys.executable, PROJECT / "tools" / "compile.py"], check=True)
    return build_meta.build_wheel(directory, settings, metadata)


def libraries() -> list[Path]:
    """The compiled modules that go into the wheel."""
    return sorted(compiled.directory().glob("**/*.so")) if wanted() else []


class Modules(build_py):
    """The package's modules, and the compiled ones."""

    def run(self) -> None:
        super().run()
        for library in libraries() if not self.editable_mode else ():
            place = Path(self.build_lib) / library.relative_to(compiled.directory())
            shutil.copy(library, place)


class Wheel(bdist_wheel):
    """The wheel, whose name says for which machines it is."""

    def finalize_options(self) -> None:
        if libraries():
            self.distribution.has_ext_modules = lambda: True
        super().finalize_options()
