"""The corpus that is always there: the Python language reference and the docstrings of installed libraries.

Texts come from `pydoc_data.topics` and from the docstrings of the standard library, numpy, scipy, scikit-learn and
pandas, read with `ast` from the source files: nothing is imported or run. Nothing is stored in this repository either;
the exact text depends on the versions installed, which the corpus digest of every artefact records.

Cleaning: indentation removed, lines right-stripped, runs of blank lines joined, lines that only underline a heading
dropped; docstrings under 200 characters left out; of equal texts the first by id is kept. Documents are ordered by a
hash of their id, so that any prefix is a fair mixture.
"""

import ast
import hashlib
import importlib.metadata
import inspect
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from interp.cache import cache_dir, write_cached
from interp.corpus import Document, id_hash

PACKAGES = {"numpy": "numpy", "scipy": "scipy", "sklearn": "scikit-learn", "pandas": "pandas"}
SHORTEST = 200
_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "lib2to3", "site-packages", "__pycache__", "_vendor", "conftest.py"}
_FORMAT = 1


def builtin_documents() -> list[Document]:
    """All documents, in the corpus's order; read from the user cache when the same versions were read before."""
    path = cache_dir() / f"corpus-{_key()}.jsonl"
    if path.exists():
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            return [Document(name, text) for name, text in rows]
        except (ValueError, OSError):
            pass  # a damaged cache is only a cache: read the sources again
    documents = _collect()
    lines = "".join(json.dumps([d.id, d.text]) + "\n" for d in documents)
    write_cached(path, lines.encode())
    return documents


def _key() -> str:
    versions = [f"{d}=={_version(d)}" for d in PACKAGES.values()]
    text = f"{_FORMAT} {SHORTEST} python=={sys.version} {' '.join(versions)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _collect() -> list[Document]:
    found = list(_topics())
    standard = Path(sysconfig.get_paths()["stdlib"])
    for path in _files(standard):
        found += _docstrings(path, standard, "python/")
    for base in sorted({Path(sysconfig.get_paths()[key]) for key in ("purelib", "platlib")}):
        for package in PACKAGES:
            for path in _files(base / package):
                found += _docstrings(path, base, "")
    kept: dict[str, tuple[str, str]] = {}
    for name, text in sorted(found):
        kept.setdefault(hashlib.sha256(text.encode(errors="replace")).hexdigest(), (name, text))
    unique = dict(kept.values())
    return [Document(name, unique[name]) for name in sorted(unique, key=id_hash)]


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in _SKIPPED_FOLDERS)
        yield from (
            Path(folder, name) for name in sorted(names) if name.endswith(".py") and name not in _SKIPPED_FOLDERS
        )


def _topics() -> Iterator[tuple[str, str]]:
    from pydoc_data.topics import topics

    for name, text in topics.items():
        if len(cleaned := clean(text)) >= SHORTEST:
            yield f"python/reference/{name}", cleaned


def _docstrings(path: Path, base: Path, prefix: str) -> list[tuple[str, str]]:
    """(id, text) of every long enough docstring of one file; ids are `package/module:Qualified.name`."""
    module = prefix + path.relative_to(base).with_suffix("").as_posix()
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return []
    rows = []

    def visit(node: ast.AST, qualified: str) -> None:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = clean(ast.get_docstring(node, clean=False) or "")
            if len(text) >= SHORTEST:
                rows.append((module + (f":{qualified}" if qualified else ""), text))
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                visit(child, f"{qualified}.{child.name}" if qualified else child.name)

    visit(tree, "")
    return rows


_UNDERLINE = re.compile(r"^\s*([*=\-~^\"'#+.])\1{3,}\s*$")


def clean(text: str) -> str:
    """One docstring or reference page as plain text; invalid surrogates are replaced."""
    lines = [line.rstrip() for line in inspect.cleandoc(text).splitlines() if not _UNDERLINE.match(line)]
    joined = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    return joined.encode("utf-8", errors="replace").decode("utf-8")
