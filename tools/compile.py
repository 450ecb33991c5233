"""Compile the busiest modules with mypyc: optional, it makes the nodes faster.

docs/performance.md has figures. scripts/setup.sh --fast installs what it needs, and runs it.
Needs a C compiler and Python's headers (Debian: apt-get install gcc python3-dev). Takes about a minute.
What it makes goes to build/compiled/DIGEST, and is used by server.py and client.py for as long as the
modules' text, and what the codec is made of, stay what they were.
"""

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from paxoskv import compiled, program

program.begin()

CODEC = "paxoskv/wire/kvstore_codec.py"  # made before the modules are compiled
BUILD = """
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from mypyc.build import mypycify
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

class Parallel(build_ext):  # one C file for each module, several at a time
    def build_extension(self, extension):
        def compile(sources, output_dir, macros, include_dirs, debug, extra_postargs, depends, **_):
            macros, objects, post, options, build = compiler._setup_compile(
                output_dir, macros, include_dirs, sources, depends, extra_postargs)
            arguments = compiler._get_cc_args(options, debug, None)
            def one(name):
                compiler._compile(name, *build[name], arguments, post, options)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(one, sorted(objects, key=lambda name: -size(build[name][0]))))
            return objects
        from os.path import getsize as size
        compiler = self.compiler
        compiler.compile = compile
        super().build_extension(extension)

modules = mypycify(
    ["--config-file", sys.argv[1], *sys.argv[2:]], opt_level="1", debug_level="0", multi_file=True)
modules.append(Extension("paxoskv.wire.new_struct", ["new_struct.c"], extra_compile_args=["-O2"]))
setup(name="compiled", py_modules=[], ext_modules=modules, cmdclass={"build_ext": Parallel},
      script_args=["-q", "build_ext", "--inplace"])
"""


def build(work: Path) -> None:
    """Translate and compile in a directory of its own. SystemExit with the compiler's words if that fails."""
    package = work / "paxoskv"  # with what the modules import without being compiled
    shutil.copytree(PROJECT / "paxoskv", package, ignore=shutil.ignore_patterns("__pycache__"))
    codec = [sys.executable, str(PROJECT / "tools" / "make_codec.py")]
    (work / CODEC).write_text(subprocess.run(codec, check=True, stdout=subprocess.PIPE, text=True).stdout)
    shutil.copy(PROJECT / "tools" / "new_struct.c", work)
    command = [sys.executable, "-c", BUILD, str(PROJECT / "pyproject.toml"), CODEC, *compiled.MODULES]
    done = subprocess.run(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        lines = [line for line in done.stdout.splitlines() if "warning:" not in line]
        raise SystemExit("compile.py: " + "\n".join(lines[-20:] or ["the compiler failed"]))


def soon() -> str:
    """Compile in the background, at low priority, for the next start, if that was never tried; say what runs.

    The answer is one line for people: "compiled", or "interpreted" and why. Nobody waits, and nothing fails.
    """
    target, log = compiled.directory(), PROJECT / "build" / "compile.log"
    by_hand = "scripts/setup.sh --fast compiles them"
    if os.environ.get("PAXOSKV_INTERPRETED"):
        return "interpreted, as PAXOSKV_INTERPRETED asks for"
    if target.exists():
        return "compiled"
    if any((PROJECT / "build" / "compiled").glob("*")) and not _busy():
        return f"interpreted: the modules have changed since they were compiled ({by_hand})"
    if Path(sys.prefix) != PROJECT / ".venv":
        return f"interpreted: this Python is not that of .venv ({by_hand})"
    lacks = lacking()
    if lacks:
        return f"interpreted: {lacks} is missing, which {by_hand} with"
    try:
        with _lock() as lock:
            if log.exists() and log.read_text().startswith(target.name):
                return f"interpreted: compiling has failed: {log} says why ({by_hand})"
            with log.open("w") as output:
                print(target.name, file=output, flush=True)
                subprocess.Popen(
                    ["nice", "-n", "19", str(PROJECT / "scripts" / "setup.sh"), "--fast"],
                    stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    start_new_session=True, pass_fds=[lock],
                )  # fmt: skip
    except BlockingIOError:
        return f"interpreted: they are being compiled, for a next start ({log})"
    except OSError as error:
        return f"interpreted: {error.filename}: {error.strerror}"
    return f"interpreted; from now on they are compiled in the background, for the next start ({log})"


def lacking() -> str | None:
    """What compiling needs and this machine has not."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"the C compiler {compiler}"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return None if header.exists() else str(header)


@contextmanager
def _lock() -> Iterator[int]:
    """Held as long as any process has the file that is handed out. BlockingIOError: somebody has it."""
    build = PROJECT / "build"
    build.mkdir(exist_ok=True)
    with (build / "compiling").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield file.fileno()


def _busy() -> bool:
    """Whether they are being compiled now, in the background."""
    try:
        with _lock():
            return False
    except OSError:
        return True


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--background", action="store_true",
        help="begin, at low priority, if that was never tried; say in one line what runs now",
    )  # fmt: skip
    if parser.parse_args().background:
        print(soon())
        return 0
    target = compiled.directory()
    if target.exists():
        return 0
    print(f"compiling {len(compiled.MODULES)} modules, about a minute ...", file=sys.stderr)
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
