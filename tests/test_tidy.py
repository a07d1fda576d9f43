"""Style and layers are tests: who may import whom, how long things may be, and what nobody writes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
LAYERS = (
    ("clock", "compiler", "error_handler", "kernel_cache"),
    ("config", "models"),
    ("shared_memory", "ring_memory", "ring_buffer", "counters", "bus", "dispatch", "life", "sole", "journal", "late_writes", "interleave",
     "store", "recordings", "data", "archive", "venue"),
    ("market_universe", "conflate", "wire", "indicators", "smc", "features", "bars", "setups", "market_state"),
    ("teacher", "student", "transfers", "risk", "slots", "portfolio", "account_view"),
    ("links", "recorder", "sockets", "silence", "gaps", "feed", "renewal", "gateway", "trade", "recovery", "preparation", "audit", "brain",
     "reconciliation",
     "system_monitor", "maintenance", "dashboard", "orchestrator", "download"),
    ("brain_process", "processes", "supervisor", "main"),
)
ROOMS = {"exchange": {"clock", "compiler", "error_handler", "config", "models", "data"}}
BANNED_NAMES = ("utils", "helpers", "common", "base", "manager")
BANNED_IMPORTS = {"time", "random", "secrets"}
LINES_MAX, FUNCTION_MAX = 600, 70


def _module(path: Path) -> str:
    return path.relative_to(ROOT / "src").parts[0].removesuffix(".py")


def _rank(name: str) -> tuple[int, int]:
    return next((row, layer.index(name)) for row, layer in enumerate(LAYERS) if name in layer)


def _imports(tree: ast.AST) -> list[tuple[str, int]]:
    """(first module name below src, line) of every import of ours."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "src":
            parts = (node.module or "").split(".")
            names = parts[1:2] or [a.name for a in node.names]
            found += [(name, node.lineno) for name in names if name != "VERSION"]
        if isinstance(node, ast.Import):
            found += [(a.name.split(".")[1], node.lineno) for a in node.names if a.name.startswith("src.")]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_below(path: Path) -> None:
    here = _module(path)
    if here == "__init__":
        return
    tree = ast.parse(path.read_text())
    for name, line in _imports(tree):
        if name == here:
            continue
        if here in ROOMS:
            assert name in ROOMS[here], f"{path}:{line}: the room {here} imports {name}"
        elif name in ROOMS:
            assert here in ("processes", "main"), f"{path}:{line}: only the composition knows the room {name}"
        else:
            assert _rank(name) < _rank(here), f"{path}:{line}: {here} imports {name}, which is not below it"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_and_functions_fit_a_head(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= LINES_MAX, f"{path} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= FUNCTION_MAX, f"{path}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nobody_writes_what_is_banned(path: Path) -> None:
    text, name = path.read_text(), path.stem
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{path} does not say what it is"
    assert name not in BANNED_NAMES, f"{path}: a name that says nothing"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and name != "clock":
            modules = {a.name for a in node.names} if isinstance(node, ast.Import) else {node.module}
            assert not modules & BANNED_IMPORTS, f"{path}:{node.lineno}: only clock reads time and makes chance"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("datetime.now", "datetime.utcnow", "datetime.today"):
            assert name == "clock", f"{path}:{node.lineno}: only clock reads time"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            assert name in ("main", "command"), f"{path}:{node.lineno}: print in the product"
        if isinstance(node, ast.ExceptHandler):
            empty = all(isinstance(b, ast.Pass | ast.Continue) for b in node.body)
            assert not empty, f"{path}:{node.lineno}: an error swallowed"
    assert not re.search(r"#.*\b(TODO|FIXME|XXX|HACK)\b", text), f"{path} has a note to oneself"


@pytest.mark.parametrize("path", [p for p in SOURCES if p.stem not in ("main", "processes")], ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_stand_at_the_top(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for inner in ast.walk(node):
                assert not isinstance(inner, ast.Import | ast.ImportFrom), f"{path}:{inner.lineno}: import inside {node.name}"


def test_the_top_level_is_as_the_owner_fixed_it() -> None:
    folders, files = {"src", "models", "data", "tests", "docs"}, {"requirements.txt", "README.md", "pyproject.toml", "Dockerfile"}
    allowed = folders | files | {"railway.toml", "nixpacks.toml"}
    found = {p.name for p in ROOT.iterdir() if not p.name.startswith(".")}
    assert found <= allowed, f"not on the owner's list: {sorted(found - allowed)}"
