"""The architecture, as far as a program can judge it: who imports whom, and how long things get.

Imports are read from the source, wherever in a module they stand. A piece of the node is a package
or module directly below `node`; `ALLOWED` says which other pieces each may import. A new piece has
to be put there, and that is the moment to think about where it belongs.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
MODULES = sorted([*PROJECT.glob("node/**/*.py"), *PROJECT.glob("cluster/**/*.py")])
MODULE_LINES_MAX = 450
FUNCTION_LINES_MAX = 60

_SHARED = {"errors", "config", "core"}
_EVERYTHING = _SHARED | {"api", "raft", "persistence", "identity"}
ALLOWED = {
    "core": set[str](),
    "errors": set[str](),
    "config": set[str](),
    "logs": set[str](),
    "api": _SHARED,
    "raft": _SHARED,
    "persistence": _SHARED,
    "identity": _SHARED | {"raft", "persistence"},
    "override": _EVERYTHING,
    "service": _EVERYTHING | {"override"},
    "__main__": _EVERYTHING | {"service", "logs"},
    "__init__": set[str](),
}

IMPURE = {
    *("aiohttp", "asyncio", "cluster", "concurrent", "ctypes", "datetime"),
    *("io", "logging", "multiprocessing", "os", "pathlib", "pysyncobj", "queue", "random"),
    *("secrets", "select", "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess", "sys"),
    *("tempfile", "threading", "time", "urllib", "uuid", "uvloop", "warnings"),
}
"""What `core` must not import: whatever does IO, reads a clock, draws a random number, or waits."""

OWNERS = {
    "pysyncobj": "node.raft",
    "sqlite3": "node.persistence",
    "aiohttp.web": "node.api",
}
"""Foreign things that only one package of the node knows."""

ELSEWHERE = {"cluster.cli"}
"""Packages whose modules are listed somewhere else, as that one says."""


def name_of(path: Path) -> str:
    """The dotted name of a module."""
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def piece_of(module: str) -> str:
    """The piece of the node that a module belongs to: `node.raft.replica` is of `raft`."""
    return module.split(".")[1]


@cache
def parsed(path: Path) -> ast.Module:
    """A module's source; every test looks at most of them."""
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[str]:
    """Everything that a module imports, dotted; `from a import b` may mean `a.b`, so it counts."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where things are"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_in(name: str, package: str) -> bool:
    """Whether a dotted name is the package or below it."""
    return name == package or name.startswith(package + ".")


def of_node(path: Path) -> bool:
    return path.relative_to(PROJECT).parts[0] == "node"


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=name_of)


NODE = [path for path in MODULES if of_node(path)]
CORE = [path for path in NODE if is_in(name_of(path), "node.core")]


@each(NODE)
def test_imports_within_the_node_point_one_way(path: Path) -> None:
    piece = piece_of(name_of(path))
    assert piece in ALLOWED, f"say in ALLOWED what node.{piece} may import"
    ours = {name.split(".")[1] for name in imports(path) if is_in(name, "node") and "." in name}
    strange = ours - ALLOWED[piece] - {piece, "__version__"}
    assert not strange, f"{piece} must not import {', '.join(sorted(strange))}"


@each(CORE)
def test_the_core_imports_nothing_that_acts_waits_or_chances(path: Path) -> None:
    assert not {name for name in imports(path) if any(is_in(name, each) for each in IMPURE)}


@each(CORE)
def test_the_core_neither_awaits_nor_opens_files(path: Path) -> None:
    waiting = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    for node in ast.walk(parsed(path)):
        assert not isinstance(node, waiting), f"line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("open", "print", "input"), f"line {node.lineno}"


@each(NODE)
def test_each_foreign_library_has_one_home(path: Path) -> None:
    for name in imports(path):
        for library, owner in OWNERS.items():
            if is_in(name, library):
                assert is_in(name_of(path), owner), f"only {owner} imports {library}"


@each(NODE)
def test_no_wait_loses_a_cancellation(path: Path) -> None:
    """`asyncio.wait_for` of Python 3.11 does, if a result comes together with it: a stop then waits
    for ever for a task that goes on. `asyncio.timeout` does not.
    """
    for node in ast.walk(parsed(path)):
        assert not (isinstance(node, ast.Attribute) and node.attr == "wait_for"), node.lineno


@each(MODULES)
def test_nodes_and_the_cluster_do_not_import_each_other(path: Path) -> None:
    other = "cluster" if of_node(path) else "node"
    assert not [name for name in imports(path) if is_in(name, other)]


@each([path for path in MODULES if path.name == "__init__.py"])
def test_a_package_that_lists_its_modules_leaves_none_out(path: Path) -> None:
    """Its first lines are the table of contents: `module`, or `    module  ` with what it does."""
    contents = ast.get_docstring(parsed(path)) or ""
    listed = set(re.findall(r"`([a-z_]+)`", contents))
    for names in re.findall(r"^    ([a-z_, ]+?)  ", contents, re.MULTILINE):
        listed.update(names.split(", "))
    inside = {one.stem for one in path.parent.glob("*.py")}
    inside |= {one.parent.name for one in path.parent.glob("*/__init__.py")}
    missing = {name for name in inside - listed if not name.startswith("__")}
    if name_of(path) not in ELSEWHERE:
        assert not missing, f"{path} does not say what is in {', '.join(sorted(missing))}"


@each(MODULES)
def test_a_module_begins_by_teaching_and_stays_short(path: Path) -> None:
    assert ast.get_docstring(parsed(path)), "has no docstring"
    assert len(path.read_text().splitlines()) < MODULE_LINES_MAX


@each(MODULES)
def test_functions_stay_short(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines < FUNCTION_LINES_MAX, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md"])
def test_what_a_document_names_is_there(document: str) -> None:
    """By its path in the project, or in `node`."""
    named = set(re.findall(r"(?<![\w/.])\w+/[\w/]+\.py\b", (PROJECT / document).read_text()))
    assert named
    places = [PROJECT, PROJECT / "node"]
    assert {path for path in named if not any((at / path).exists() for at in places)} == set()


def test_what_starts_real_nodes_is_marked_so() -> None:
    """Else it runs among the fast tests, which several processes share out among the cores."""
    for path in PROJECT.glob("tests/e2e/test_*.py"):
        assert "pytest.mark.e2e" in path.read_text(), path


def test_the_measures_would_notice() -> None:
    """A test of absences must fail when the thing is there."""
    replica = next(path for path in MODULES if name_of(path) == "node.raft.library")
    assert any(is_in(name, "pysyncobj") for name in imports(replica))
    assert len(CORE) >= 5 and len(NODE) > 30 and len(MODULES) > len(NODE)
