"""The argument of docs/protocol.md: what it cites is there, and its bugs were found where it says."""

import ast
import re
from pathlib import Path

import pytest

from tests.harness import mutants

PROJECT = Path(__file__).resolve().parents[2]
PAGE = (PROJECT / "docs" / "protocol.md").read_text()
TABLE = PAGE[PAGE.index("<!-- argument:") : PAGE.index("<!-- end of argument")]
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in TABLE.splitlines()
    if line.startswith("| ") and not line.startswith("| |")
]
INVARIANTS = re.findall(r"^\d+\. \*\*([\w ]+)\.\*\*", PAGE, re.MULTILINE)


def functions(module: str) -> set[str]:
    """The functions of a module of the package, as Class.function."""
    tree = ast.parse((PROJECT / "paxoskv" / f"{module.replace('.', '/')}.py").read_text())
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
    return found


def test_every_invariant_has_its_rows() -> None:
    assert len(INVARIANTS) == 10
    assert {row[0] for row in ROWS} == set(INVARIANTS)


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_what_a_row_cites_is_there(row: list[str]) -> None:
    _, kept_by, bug, world = row
    cited = re.findall(r"`([\w.]+)`", kept_by)
    assert cited
    for name in cited:
        module, function = split(name)
        assert function in functions(module), name
    names = {mutant.name for mutant in mutants.everything()}
    assert bug in names, bug
    found = mutants.columns((PROJECT / "docs" / "mutants.md").read_text())[bug]
    right = found == world == mutants.NOT_SHOWN or (
        found.startswith(f"{world}: ") and found.endswith(" states")
    )
    assert right, f"{bug}: {found}"


def split(name: str) -> tuple[str, str]:
    """A module of the package, and a function or a class with its method."""
    parts = name.split(".")
    last = 2 if parts[-2][0].isupper() else 1
    return ".".join(parts[:-last]), ".".join(parts[-last:])
