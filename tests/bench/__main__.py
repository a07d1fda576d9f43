"""``python -m tests.bench``: lists the benchmarks; with names, runs those."""

from __future__ import annotations

import ast
import importlib
import json
import sys
from pathlib import Path

from src import kernel_cache


def benchmarks() -> dict[str, str]:
    """{name: first line of its docstring} of every module here that has a docstring and ``run``; nothing is imported."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text())
        said = ast.get_docstring(tree)
        runs = any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body)
        if said and runs:
            found[path.stem] = said.splitlines()[0]
    return found


def main(names: list[str]) -> int:
    known = benchmarks()
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no benchmark called {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    if not names:
        for name, line in known.items():
            print(f"{name:<12} {line}")
    kernel_cache.use()
    for name in names:
        for line in importlib.import_module(f"tests.bench.{name}").run() or ():
            print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
