"""Writes the pages of the API reference while mkdocs builds: one page per module that has a public name.

Modules beginning with an underscore are left out, as are packages that only re-export. The navigation is a file in the
form of mkdocs-literate-nav.
"""

import ast
from pathlib import Path

import mkdocs_gen_files

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"interp": "interp", "saes": "saes", "midlens_kernels": "kernels/midlens_kernels", "midlens": "midlens"}


def public(path: Path) -> bool:
    """Whether a module defines a public class, function or constant of its own."""
    body = ast.parse(path.read_text()).body
    defined = [n.name for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef)]
    defined += [t.id for n in body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)]
    defined += [n.target.id for n in body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    return any(not name.startswith("_") for name in defined) or path.name == "axes.py"


def pages() -> None:
    """One page per module, and the list of them."""
    nav = mkdocs_gen_files.Nav()
    for package, folder in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = (package, *path.relative_to(ROOT / folder).with_suffix("").parts)
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            if any(part.startswith("_") for part in parts) or not public(path):
                continue
            target = Path("reference", *parts).with_suffix(".md")
            if path.name == "__init__.py":
                target = Path("reference", *parts, "index.md")
            name = ".".join(parts)
            nav[parts] = target.relative_to("reference").as_posix()
            with mkdocs_gen_files.open(target, "w") as page:
                page.write(f"# `{name}`\n\n::: {name}\n")
    with mkdocs_gen_files.open("reference/SUMMARY.md", "w") as summary:
        summary.writelines(nav.build_literate_nav())


pages()
