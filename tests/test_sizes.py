"""Modules of at most 300 lines, functions of at most 40 (docstring apart): the monsters are forbidden, nothing else."""

import ast
from pathlib import Path

from tests.test_floors import FOLDERS

EXEMPT = ("figures/", "page/", "_triton.py")


def too_long(path: str, source: str) -> list[str]:
    if any(mark in path for mark in EXEMPT):
        return []
    found = [f"{path}: {n} lines"] if (n := len(source.splitlines())) > 300 else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            if lines > 40:
                found.append(f"{path}:{node.lineno} {node.name}: {lines} lines")
    return found


def test_sizes():
    root = Path(__file__).resolve().parents[1]
    files = [p for folder in FOLDERS.values() for p in sorted(folder.rglob("*.py"))]
    found = [line for p in files for line in too_long(str(p.relative_to(root)), p.read_text())]
    assert not found, "\n".join(found)


def test_a_planted_monster_is_found():
    body = "\n".join("    x = 1" for _ in range(41))
    assert too_long("a.py", f"def f():\n{body}\n") == ["a.py:1 f: 41 lines"]
    assert not too_long("a.py", 'def f():\n    """' + "line\n" * 60 + '    """\n    x = 1\n')
