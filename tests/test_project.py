"""The sources themselves: generated code is fresh, imports point one way, the interface is documented."""

import ast
import filecmp
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PACKAGE = PROJECT / "paxoskv"
IDL = PROJECT / "kvstore.thrift"
MAX_LINE = 110
PRAGMA = re.compile(r"\s*# (?:type: ignore|noqa|fmt:).*")  # for tools, who want it on the same line

PYTHON = sorted(
    path
    for pattern in (
        "*.py",
        "paxoskv/*.py",
        "paxoskv/[!k]*/*.py",
        "scripts/*.py",
        "tests/*.py",
        "examples/*/*.py",
    )
    for path in PROJECT.glob(pattern)
)  # gen-py is not ours to format
TEXTS = sorted(
    {
        *PYTHON,
        *(path for path in (PROJECT / "scripts").iterdir() if path.is_file()),
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

# Who may import whom, of our own modules (section 9 of the design), and what of everybody else's.
OWN = {
    "wire.structs": set(),
    "wire.codec": {"wire.structs"},
    "wire.connection": {"wire.codec"},
    "config": set(),
    "compiled": set(),
    "multipaxos": {"wire.codec", "protocol.core"},
    "protocol.core": {"wire.codec"},
    "protocol.single": {"wire.codec", "multipaxos", "protocol.core"},
    "state.store": {"wire.codec"},
    "storage.journal": {"wire.codec"},
    "storage.checkpoint": {
        "wire.codec",
        "storage.journal",
        "multipaxos",
        "protocol.core",
        "protocol.single",
        "state.store",
    },
    "node.replica": {"wire.codec", "multipaxos", "protocol.core", "state.store"},
    "node.metrics": set(),
    "node.turns": set(),
    "node.eventlog": set(),
    "node.connections": {"node.eventlog", "node.metrics", "wire.codec", "wire.connection"},
    "node.calls": {"node.metrics", "wire.codec", "wire.connection"},
    "node.writer": {"node.eventlog", "node.metrics", "storage.journal", "wire.codec"},
    "node.checkpointing": {
        "multipaxos",
        "node.eventlog",
        "node.metrics",
        "node.turns",
        "node.writer",
        "protocol.core",
        "storage.checkpoint",
        "storage.journal",
        "wire.codec",
    },
    "node.health": {"node.eventlog", "protocol.core", "storage.journal"},
    "node.peers": {
        "config",
        "multipaxos",
        "node.calls",
        "node.eventlog",
        "node.metrics",
        "protocol.core",
        "wire.codec",
        "wire.connection",
    },
    "node.status": {
        "node.checkpointing",
        "node.connections",
        "node.health",
        "node.metrics",
        "node.peers",
        "node.replica",
        "storage.journal",
        "wire.codec",
    },
    "node.service": {
        "node.checkpointing",
        "node.health",
        "node.replica",
        "node.status",
        "state.store",
        "wire.codec",
    },
    "node.inbox": {
        "node.calls",
        "node.metrics",
        "node.peers",
        "node.replica",
        "node.service",
        "node.turns",
        "wire.codec",
        "wire.connection",
    },
    "node.server": {
        "multipaxos",
        "node.checkpointing",
        "node.eventlog",
        "node.health",
        "node.inbox",
        "node.metrics",
        "node.replica",
        "node.status",
        "node.turns",
        "node.writer",
        "wire.codec",
        "wire.connection",
    },
    "node.opening": {
        "node.eventlog",
        "protocol.core",
        "state.store",
        "storage.checkpoint",
        "storage.journal",
        "wire.codec",
    },
    "node.main": {
        "config",
        "multipaxos",
        "protocol.core",
        "protocol.single",
        "state.store",
        "storage.checkpoint",
        "storage.journal",
        "wire.codec",
        "wire.connection",
        *(
            f"node.{part}"
            for part in (
                "calls",
                "checkpointing",
                "connections",
                "eventlog",
                "health",
                "inbox",
                "opening",
                "peers",
                "replica",
                "server",
                "service",
                "status",
                "turns",
                "writer",
                "metrics",
            )
        ),
    },
    "client.operations": {"wire.codec", "wire.connection"},
    "client.sync": {"config", "client.operations", "wire.codec", "wire.connection"},
    "client.workload": {"config", "client.sync", "client.operations", "wire.codec"},
    "client.health": {"config", "client.sync", "client.operations", "wire.codec"},
    "client.cli": {
        "config",
        "client.sync",
        "client.operations",
        "wire.codec",
        "client.health",
        "client.workload",
    },
}
FOREIGN = {
    "wire.codec": {"kvstore", "thrift"},
    "state.store": {"pickledb"},
    "storage.journal": {"pickledb"},
    "storage.checkpoint": {"orjson"},
    "wire.connection": {"kvstore", "thrift"},
    "node.calls": {"kvstore"},
    "node.peers": {"thrift"},
    "node.main": {"uvloop"},
    "client.operations": {"thrift"},
    "client.workload": {"uvloop"},
    "client.cli": {"rich"},
    "node.metrics": {"prometheus_client"},
    "client.health": {"rich"},
}
# What makes a module impure: the outside world, time and randomness of their own.
IMPURE = {
    "asyncio", "concurrent", "datetime", "fcntl", "io", "logging", "multiprocessing", "os", "pathlib",
    "secrets", "select", "selectors", "shutil", "signal", "socket", "ssl", "subprocess", "tempfile",
    "threading", "time", "uuid",
}  # fmt: skip
PURE = ("multipaxos", "protocol.core", "protocol.single", "node.replica")


def path_of(module: str) -> Path:
    return PACKAGE / f"{module.replace('.', '/')}.py"


def imported(path: Path) -> set[str]:
    """What is imported anywhere in the file: our own modules without "paxoskv.", of others the first name.

    What is imported for types only is not imported when the module runs.
    """
    names = set()
    tree = ast.parse(path.read_text())
    typed = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in (node for node in ast.walk(tree) if id(node) not in typed):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            inside = {f"{module}.{alias.name}" for alias in node.names}
            names |= {one if one.removeprefix("paxoskv.") in OWN else module for one in inside}
    ours = {one.removeprefix("paxoskv.") for one in names if one.startswith("paxoskv.")}
    generated = {"kvstore"} if any(one.partition(".")[0] == "kvstore" for one in ours) else set()
    return {
        *(one for one in ours if one.partition(".")[0] != "kvstore"),
        *generated,
        *(one.partition(".")[0] for one in names if not one.startswith("paxoskv.")),
    }


def test_every_module_has_its_place_among_the_others() -> None:
    modules = {
        str(path.relative_to(PACKAGE))[:-3].replace("/", ".")
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py" and "kvstore" not in path.parts
    }
    assert modules == set(OWN)


@pytest.mark.parametrize("module", OWN)
def test_imports_point_one_way(module: str) -> None:
    names = imported(path_of(module))
    assert names & set(OWN) <= OWN[module]
    foreign = names - set(OWN) - set(sys.stdlib_module_names)
    assert foreign <= FOREIGN.get(module, set())


def test_what_may_be_imported_has_no_circles() -> None:
    done: set[str] = set()
    while len(done) < len(OWN):
        ready = {module for module, needs in OWN.items() if needs <= done} - done
        assert ready, f"a circle among {sorted(set(OWN) - done)}"
        done |= ready


@pytest.mark.parametrize("module", PURE)
def test_the_protocol_and_its_loop_touch_no_socket_file_clock_or_chance_of_their_own(module: str) -> None:
    path = path_of(module)
    assert not imported(path) & IMPURE
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("open", "print", "input", "hash"), f"line {node.lineno}"
        # a Random that is handed in is fine, the module's own functions are not: they hide the seed
        if isinstance(node, ast.ImportFrom) and node.module == "random":
            assert [alias.name for alias in node.names] == ["Random"]
        if isinstance(node, ast.Import):
            assert "random" not in [alias.name for alias in node.names]


def test_the_applied_state_depends_on_no_clock_and_no_chance() -> None:
    assert not imported(path_of("state.store")) & {
        "time",
        "datetime",
        "random",
        "secrets",
        "uuid",
        "threading",
    }


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
    assert kinds.count("service") == 2 and kinds.count("exception") == 5 and len(items) > 150
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
    assert sorted(re.findall(r'"(.+?)"', listed[1])) == sorted(pins)
