"""The sources themselves: generated code is fresh, imports point one way, the interface is documented."""

import ast
import filecmp
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PACKAGE = PROJECT / "paxoskv"
IDL = PROJECT / "kvstore.thrift"
MAX_LINE = 110
PRAGMA = re.compile(r"\s*# (?:type: ignore|noqa|fmt:).*")  # for tools, who want it on the same line

PLACES = ("paxoskv", "scripts", "bench", "deploy", "tools", "tests")
PYTHON = sorted(
    {
        *PROJECT.glob("*.py"),
        *(path.resolve() for place in PLACES for path in (PROJECT / place).rglob("*.py")),
        *PROJECT.glob("examples/*/*.py"),
    }
)  # gen-py is not ours to format
TEXTS = sorted(
    {
        *PYTHON,
        *(path for place in ("scripts", "deploy") for path in (PROJECT / place).iterdir() if path.is_file()),
        *PROJECT.glob("*.md"),
        *PROJECT.glob("*.toml"),
        *PROJECT.glob("*.json"),
        *PROJECT.glob("*.txt"),
        PROJECT / ".ci" / "run",
        PROJECT / ".gitignore",
        IDL,
    }
)


def name(path: Path) -> str:
    return str(path.relative_to(PROJECT))


# ------------------------------------------------------------------------------------------- generated code


def test_gen_py_is_what_the_thrift_compiler_generates_from_the_interface(tmp_path: Path) -> None:
    compiler = shutil.which("thrift")
    if compiler is None:
        pytest.skip("the Thrift compiler is not installed (Debian: apt-get install thrift-compiler)")
    subprocess.run([compiler, "--gen", "py:slots", "-out", tmp_path, IDL], check=True, timeout=60)
    ours = PROJECT / "gen-py"
    fresh = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    committed = {
        path.relative_to(ours)
        for path in ours.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert committed == fresh
    differing = [str(path) for path in sorted(fresh) if not filecmp.cmp(tmp_path / path, ours / path, False)]
    assert not differing, f"generate again, see CONTRIBUTING.md: {', '.join(differing)}"


# ------------------------------------------------------------------------------------------------- imports

# The rooms of the package, and modules that stand alone: who may import whom, besides itself.
ROOMS = {
    "kvstore": set(),
    "config": set(),
    "compiled": set(),
    "program": set(),
    "wire": {"kvstore"},
    "multipaxos": {"wire"},
    "protocol": {"multipaxos", "wire"},
    "state": {"wire"},
    "trace": {"kvstore", "multipaxos", "protocol", "wire"},
    "page": {"trace"},
    "storage": {"multipaxos", "protocol", "state", "wire"},
    "node": {"config", "kvstore", "multipaxos", "protocol", "state", "storage", "trace", "wire"},
    "client": {"config", "page", "program", "wire"},
}
# What they import of everybody else's packages.
FOREIGN = {
    "wire": {"thrift"},
    "state": {"pickledb", "sortedcontainers"},
    "storage": {"orjson", "pickledb"},
    "node": {"prometheus_client", "thrift"},
    "client": {"argcomplete", "rich", "thrift"},
}
# What makes a module impure: the outside world, time and randomness of their own.
IMPURE = {
    "asyncio", "concurrent", "datetime", "fcntl", "io", "logging", "multiprocessing", "os", "pathlib",
    "secrets", "select", "selectors", "shutil", "signal", "socket", "ssl", "subprocess", "tempfile",
    "threading", "time", "uuid",
}  # fmt: skip
PURE = ("multipaxos", "protocol", "state", "trace", "node.replica")


MODULES = {  # of the package: name without "paxoskv.", and file
    str(path.relative_to(PACKAGE)).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}


def room(module: str) -> str:
    return module.partition(".")[0]


def imported(path: Path) -> tuple[set[str], set[str]]:
    """What is imported anywhere in the file: our own modules as in MODULES, of others' the packages."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            inside = {f"{module}.{alias.name}" for alias in node.names}
            modules = {name for name in inside if name.removeprefix("paxoskv.") in MODULES}
            names |= modules or {module}
    own = {name.removeprefix("paxoskv.") for name in names if name.startswith("paxoskv.")}
    return own, {room(name) for name in names} - {"paxoskv"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    assert room(module) in ROOMS, "a room that nobody knows"
    own, others = imported(MODULES[module])
    assert {room(name) for name in own} <= ROOMS[room(module)] | {room(module)}
    assert others - set(sys.stdlib_module_names) <= FOREIGN.get(room(module), set())


def test_what_may_be_imported_has_no_circles_nor_have_the_modules() -> None:
    modules = {module: imported(path)[0] & set(MODULES) - {module} for module, path in MODULES.items()}
    for graph in (ROOMS, modules):
        done: set[str] = set()
        while len(done) < len(graph):
            ready = {module for module, needs in graph.items() if needs <= done} - done
            assert ready, f"a circle among {sorted(set(graph) - done)}"
            done |= ready


@pytest.mark.parametrize("directory", sorted(path.name for path in PACKAGE.iterdir() if path.is_dir()))
def test_a_room_says_what_it_may_import(directory: str) -> None:
    if directory in ("kvstore", "__pycache__"):
        return  # generated
    said = re.search(r"^May import: ([\w, ]+)\.$", (PACKAGE / directory / "__init__.py").read_text(), re.M)
    assert said is not None and set(said[1].split(", ")) == ROOMS[directory]


@pytest.mark.parametrize("door", ["server", "client"])
def test_a_door_imports_nothing_and_nobody_imports_a_door(door: str) -> None:
    own, others = imported(PROJECT / f"{door}.py")
    assert own == {"compiled", "program"} and others <= set(sys.stdlib_module_names)
    for path in PYTHON:
        assert door not in imported(path)[1], f"{name(path)} imports {door}.py"


def test_the_file_of_the_algorithm_is_imported_by_one_name_only() -> None:
    """As paxoskv.multipaxos, which is a link to it: under two names its classes would be there twice."""
    assert (PACKAGE / "multipaxos.py").resolve() == PROJECT / "multipaxos.py"
    assert not [name(path) for path in PYTHON if "multipaxos" in imported(path)[1]]


@pytest.mark.parametrize("module", [module for module in MODULES if {module, room(module)} & set(PURE)])
def test_the_protocol_and_its_loop_touch_no_socket_file_clock_or_chance_of_their_own(module: str) -> None:
    path = MODULES[module]
    assert not imported(path)[1] & IMPURE
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("open", "print", "input", "hash"), f"line {node.lineno}"
        # a Random that is handed in is fine, the module's own functions are not: they hide the seed
        if isinstance(node, ast.ImportFrom) and node.module == "random":
            assert [alias.name for alias in node.names] == ["Random"]
        if isinstance(node, ast.Import):
            assert "random" not in [alias.name for alias in node.names]


def test_the_applied_state_depends_on_no_clock_and_no_chance() -> None:
    chance = {"time", "datetime", "random", "secrets", "uuid", "threading"}
    assert not [
        module for module in MODULES if room(module) == "state" and imported(MODULES[module])[1] & chance
    ]


# ----------------------------------------------------------------------------------------------- interface


def documented_items(idl: str) -> list[tuple[int, str, bool]]:
    """Definitions, fields, enum values, methods: line, text, and whether a doc comment stands above."""
    begins = re.compile(
        r"""\s*(?: (?:struct|enum|exception|service|typedef)\s         # a definition
              | \d+:\s                                                 # a field
              | [A-Z_]+\s*=\s*\d+                                      # an enum value
              | (?:oneway\s+)?[A-Za-z<>]+\s+[a-z_]+\(                  # a method
            )""",
        re.VERBOSE,
    )
    items = []
    above = ""
    for number, line in enumerate(idl.splitlines(), start=1):
        if begins.match(line):
            items.append((number, line.strip(), above.endswith("*/")))
        if line.strip():
            above = line.strip()
    return items


def test_every_definition_field_value_method_and_exception_of_the_interface_has_a_doc_comment() -> None:
    items = documented_items(IDL.read_text())
    kinds = [text.split()[0] for _, text, _ in items]
    assert kinds.count("service") == 2 and kinds.count("exception") == 6 and len(items) > 150
    bare = [f"kvstore.thrift:{number}: {text}" for number, text, documented in items if not documented]
    assert not bare, "\n".join(bare)


def test_a_missing_doc_comment_would_be_noticed() -> None:
    idl = IDL.read_text()
    for method in ("void learn", "Result put", "1: Session session", "exception Unknown", "OK = 0"):
        line = next(line for line in idl.splitlines() if method in line)
        cut = re.sub(r"[^\n]*\*/\n(?=" + re.escape(line) + ")", "", idl, count=1)
        assert any(method in text for _, text, documented in documented_items(cut) if not documented)


def test_all_names_that_the_promise_fixes_are_in_the_interface() -> None:
    idl = IDL.read_text()
    client, node = idl.split("service KeyValue {")[1].split("service Node {")
    for method in (
        "put",
        "get",
        "delete",
        "compare_and_set",
        "increment",
        "execute",
        "open_session",
        "status",
    ):
        assert re.search(rf"\b{method}\(", client), method
    for method in ("prepare", "accept", "learn", "fetch", "barrier"):
        assert re.search(rf"\b{method}\(", node), method


# --------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_a_text_names_no_path_of_the_machine_it_was_written_on(path: Path) -> None:
    """Users' paths are in their own commands and settings; /tmp, /proc, /usr and the like are everybody's."""
    machine = re.compile(r"(?<![\w.~/-])/(?:work|home|root|Users)/\w")
    found = [
        f"{name(path)}:{number}: {line.strip()}"
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if machine.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_a_module_has_a_docstring_and_no_long_line_tab_or_space_at_an_end(path: Path) -> None:
    text = path.read_text()
    if path.name != "conftest.py":
        assert ast.get_docstring(ast.parse(text)), f"{name(path)}: no docstring"
    for number, line in enumerate(text.splitlines(), start=1):
        code = PRAGMA.sub("", line)
        assert len(code) <= MAX_LINE, f"{name(path)}:{number}: {len(code)} characters"
        assert "\t" not in line and line == line.rstrip(), f"{name(path)}:{number}: white space"
    assert text.endswith("\n") and not text.endswith("\n\n")


def test_every_test_is_named_by_a_sentence() -> None:
    """That is, by several words: what holds, not what is looked at."""
    for path in PROJECT.glob("tests/test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert node.name.count("_") >= 3, f"{name(path)}:{node.lineno}: {node.name}"


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_nothing_is_left_undone(path: Path) -> None:
    marks = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")))
    assert not marks.search(path.read_text())


def test_versions_are_pinned_and_say_the_same_everywhere() -> None:
    pins = (PROJECT / "requirements.txt").read_text().split()
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", pin) for pin in pins)
    pyproject = (PROJECT / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[(.*?)\]", pyproject, re.MULTILINE | re.DOTALL)
    assert listed is not None
    tests = {pin for pin in pins if pin.startswith("pytest==")}  # which a node does without
    assert set(re.findall(r'"(.+?)"', listed[1])) == set(pins) - tests
