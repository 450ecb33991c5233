"""Compile the busiest modules with mypyc: optional, the nodes get about a third faster.

scripts/setup.sh --fast installs what it needs, and runs it.
Needs a C compiler and Python's headers (Debian: apt-get install gcc python3-dev). Takes a minute or two.
What it makes goes to build/compiled/DIGEST, and is used by server.py and client.py for as long as the
modules' text, and what the codec is made of, stay what they were.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from paxoskv import compiled, program

program.begin()

CODEC = "paxoskv/wire/kvstore_codec.py"  # made before the modules are compiled
BUILD = """
import sys
from concurrent.futures import ThreadPoolExecutor
from mypyc.build import mypycify
from setuptools import setup
from setuptools.command.build_ext import build_ext

class Parallel(build_ext):  # one C file for each module, several at a time
    def build_extension(self, extension):
        def compile(sources, output_dir, macros, include_dirs, debug, extra_postargs, depends, **_):
            macros, objects, post, options, build = compiler._setup_compile(
                output_dir, macros, include_dirs, sources, depends, extra_postargs)
            arguments = compiler._get_cc_args(options, debug, None)
            def one(name):
                compiler._compile(name, *build[name], arguments, post, options)
            with ThreadPoolExecutor() as pool:
                list(pool.map(one, sorted(objects, key=lambda name: -size(build[name][0]))))
            return objects
        from os.path import getsize as size
        compiler = self.compiler
        compiler.compile = compile
        super().build_extension(extension)

modules = mypycify(
    ["--config-file", sys.argv[1], *sys.argv[2:]], opt_level="3", debug_level="0", multi_file=True)
setup(name="compiled", py_modules=[], ext_modules=modules, cmdclass={"build_ext": Parallel},
      script_args=["-q", "build_ext", "--inplace"])
"""


def build(work: Path) -> None:
    """Translate and compile in a directory of its own. SystemExit with the compiler's words if that fails."""
    package = work / "paxoskv"  # with what the modules import without being compiled
    shutil.copytree(PROJECT / "paxoskv", package, ignore=shutil.ignore_patterns("__pycache__"))
    codec = [sys.executable, str(PROJECT / "tools" / "make_codec.py")]
    (work / CODEC).write_text(subprocess.run(codec, check=True, stdout=subprocess.PIPE, text=True).stdout)
    command = [sys.executable, "-c", BUILD, str(PROJECT / "pyproject.toml"), CODEC, *compiled.MODULES]
    done = subprocess.run(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        lines = [line for line in done.stdout.splitlines() if "warning:" not in line]
        raise SystemExit("compile.py: " + "\n".join(lines[-20:] or ["the compiler failed"]))


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    target = compiled.directory()
    if target.exists():
        return 0
    print(f"compiling {len(compiled.MODULES)} modules, a minute or two ...", file=sys.stderr)
    work = target.with_name(f"{target.name}.{os.getpid()}")
    work.mkdir(parents=True)
    made = target.with_name(f"{work.name}.made")
    try:
        build(work)
        made.mkdir()
        for library in (*work.glob("*.so"), *work.glob("paxoskv/**/*.so")):
            place = made / library.relative_to(work)
            place.parent.mkdir(parents=True, exist_ok=True)
            library.rename(place)
        if not target.exists():
            made.rename(target)
    finally:
        for leftover in (work, made):
            shutil.rmtree(leftover, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
