"""The sources as text: nothing is too large, and every trace, rule and section that is cited can be found."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]

# What the limits hold for: files, and folders with all that is in them.
LIMITED = (
    "paxoskv/wire",
    "paxoskv/client",
    "paxoskv/state",
    "paxoskv/config.py",
    "paxoskv/node",
    "paxoskv/storage/checkpoint.py",
    "paxoskv/storage/checkpoint_process.py",
)
CLASS_LINES, CLASS_ATTRIBUTES = 375, 30
FUNCTION_LINES, FUNCTION_BRANCHES = 50, 12

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*places: str) -> list[Path]:
    """All Python files at these places."""
    found = [PROJECT / place for place in places]
    return sorted(file for path in found for file in ([path] if path.is_file() else path.rglob("*.py")))


def lines(node: ast.ClassDef | Function) -> int:
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return (node.end_lineno or 0) - first + 1


def attributes(definition: ast.ClassDef, known: dict[str, ast.ClassDef]) -> set[str]:
    """What an instance has: assigned to self anywhere, annotated in the class, in slots, or inherited."""
    names = set()
    for node in ast.walk(definition):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                names.add(node.attr)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__":
            names |= set(ast.literal_eval(node.value))
    for statement in definition.body:
        if isinstance(statement, ast.AnnAssign) and "Final" not in ast.unparse(statement.annotation):
            names.add(ast.unparse(statement.target))
    for base in definition.bases:
        parent = known.get(ast.unparse(base))
        if parent is not None:
            names |= attributes(parent, known)
    return names


def branches(function: Function) -> int:
    """How often the flow divides: each condition counts, each `and` and `or`, each loop, case and handler."""
    count = 0
    for node in ast.walk(function):
        if isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            count += len(node.ifs)
        else:
            single = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)
            count += isinstance(node, single)
    return count


def too_large(path: Path, known: dict[str, ast.ClassDef]) -> Iterator[str]:
    """Everything in the file that is beyond a limit, with its sizes."""
    for node in ast.walk(ast.parse(path.read_text())):
        place = f"{path.name}:{getattr(node, 'lineno', 0)}: {getattr(node, 'name', '')}"
        if isinstance(node, ast.ClassDef):
            size, count = lines(node), len(attributes(node, known))
            if size > CLASS_LINES or count > CLASS_ATTRIBUTES:
                yield f"{place}: {size} lines, {count} attributes"
        elif isinstance(node, Function):
            size, count = lines(node), branches(node)
            if size > FUNCTION_LINES or count > FUNCTION_BRANCHES:
                yield f"{place}: {size} lines, {count} branches"


def test_no_class_and_no_function_is_too_large_to_be_read_at_once() -> None:
    trees = [ast.parse(path.read_text()) for path in sources("multipaxos.py", "paxoskv")]
    known = {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    found = [line for path in sources(*LIMITED) for line in too_large(path, known)]
    assert not found, "\n".join(found)


def test_what_is_too_large_would_be_noticed(tmp_path: Path) -> None:
    def found(text: str) -> list[str]:
        (tmp_path / "made.py").write_text(text)
        tree = ast.parse(text)
        known = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        return list(too_large(tmp_path / "made.py", known))

    statements = "".join(f"        self.x{i} = 1\n" for i in range(20))
    one = f"class One:\n    def __init__(self):\n{statements}"
    assert not found(one)
    assert found(one + f"    def more(self):\n{statements.replace('x', 'y')}")
    assert found(one + f"class Two(One):\n    def __init__(self):\n{statements.replace('x', 'y')}")
    assert found("class One:\n" + "    x = 1\n" * CLASS_LINES)
    assert not found("def f():\n" + "    x = 1\n" * (FUNCTION_LINES - 1))
    assert found("def f():\n" + "    x = 1\n" * FUNCTION_LINES)
    for branch in ("if x: pass", "a or b", "for x in y: pass", "[x for x in y if x]", "a if b else c"):
        assert not found("def f():\n" + f"    {branch}\n" * FUNCTION_BRANCHES)
        assert found("def f():\n" + f"    {branch}\n" * (FUNCTION_BRANCHES + 1))


# ----------------------------------------------------------------------------------------------- references

TRACES = PROJECT / "docs" / "traces.md"
TEXTS = sorted(
    path
    for pattern in ("*.py", "*.md", "*.thrift", "paxoskv/**/*.py", "tests/**/*.py", "docs/*.md", "scripts/*",
                    "tools/*", "bench/**/*.py", "deploy/*", "examples/**/*.py", "labs/**/*.py")
    for path in PROJECT.glob(pattern)
    if path.is_file() and path != Path(__file__).resolve() and path.suffix in (".py", ".md", ".thrift", ".sh")
)  # fmt: skip
UNFINISHED = ("multipaxos.py", "paxoskv/multipaxos.py")  # still cites a section by its number
CITED_TRACE = re.compile(r"\bN(\d{1,2})\b(?!\s*=)")
CITED_RULE = re.compile(r"\bR(\d{1,2})\b(?!\s*=)")
CITED_SECTION = re.compile(r'\b[Ss]ections? (?:(\d[\d.]*)|"([^"]+)")(?: of (?:the )?([\w.]*\w))?')
PAPERS = ("RFC", "Paxos")
CITED_HEADING = re.compile(r'((?:docs/)?\w+\.md), "([^"]+)"')


def headings(document: Path) -> set[str]:
    return set(re.findall(r"^#+ (.+?)\s*$", document.read_text(), re.MULTILINE))


def places(pattern: re.Pattern[str]) -> Iterator[tuple[str, re.Match[str]]]:
    """All places where the texts cite something."""
    for path in TEXTS:
        text = path.read_text()
        for found in pattern.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            yield f"{path.relative_to(PROJECT)}:{line}: {found[0]}", found


def test_every_trace_that_is_cited_is_told() -> None:
    told = {heading.partition(":")[0] for heading in headings(TRACES)}
    cited = [(place, found[0]) for place, found in places(CITED_TRACE)]
    assert len(cited) > 50
    assert not [place for place, trace in cited if trace not in told]


def test_every_trace_is_told_with_its_rule_and_with_tests_that_exist() -> None:
    tests = "".join(path.read_text() for path in PROJECT.glob("tests/**/*.py"))
    _, *traces = re.split(r"^## (?=N\d)", TRACES.read_text(), flags=re.MULTILINE)
    assert [text.partition(":")[0] for text in traces] == [f"N{number + 1}" for number in range(len(traces))]
    for text in traces:
        assert "**Rule" in text and "**Test" in text, text
        for test in re.findall(r"`(test_\w+)`", text):
            assert f"def {test}(" in tests, test


def test_every_rule_that_is_cited_is_stated() -> None:
    text = (PROJECT / "multipaxos.py").read_text() + (PROJECT / "docs" / "protocol.md").read_text()
    stated = set(re.findall(r"^\W*(R\d)\b", text, re.MULTILINE))
    assert not [place for place, found in places(CITED_RULE) if found[0] not in stated]


def test_every_section_that_is_cited_is_there() -> None:
    """Our own sections are cited by their headings, for numbers go stale; a number needs a paper's name."""
    missing = []
    for place, found in places(CITED_SECTION):
        number, heading, document = found.groups()
        if place.partition(":")[0] in UNFINISHED:
            continue
        path = PROJECT / {"README": "README.md", None: "README.md"}.get(document, document)
        if document not in PAPERS if number else not path.is_file() or heading not in headings(path):
            missing.append(place)
    for place, found in places(CITED_HEADING):
        paths = [path for path in (PROJECT / found[1], PROJECT / "docs" / found[1]) if path.is_file()]
        if not paths or " ".join(found[2].split()) not in headings(paths[0]):
            missing.append(place)
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("text", ["(N99)", "N0 and N1"])
def test_a_trace_that_is_told_nowhere_would_be_noticed(text: str) -> None:
    told = {heading.partition(":")[0] for heading in headings(TRACES)}
    assert [found[0] for found in CITED_TRACE.finditer(text) if found[0] not in told]
