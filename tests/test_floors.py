"""Which way imports run, read from the syntax alone: down the floors, and inside `interp` and `saes` without cycles."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"midlens_kernels": 0, "interp": 1, "saes": 2, "midlens": 3}
FOLDERS = {name: ROOT / ("kernels/midlens_kernels" if name == "midlens_kernels" else name) for name in FLOORS}
# Inside interp, the order of the design: a file may import those above it. Files not named are helpers of one of them
# and are held to the absence of cycles.
INTERP_ORDER = (
    "axes stats loop sites anatomy model loading parity corpus batching store extract bench lens effects moments "
    "probes patching judges steering attention sudoku figures page"
).split()
SAES_ORDER = "codes activations sae interop losses train bench evaluate examples primitives report".split()


def imports(source: str, *, lazy: bool = True) -> Iterator[str]:
    """Absolute module names imported; without `lazy` only those run when the module itself is imported."""
    tree = ast.parse(source)
    nodes = ast.walk(tree) if lazy else _eager(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _eager(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield child
        yield from _eager(child)


def modules(package: str) -> Iterator[tuple[str, str]]:
    folder = FOLDERS[package]
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        yield ".".join((package, *(p for p in parts if p != "__init__"))), path.read_text()


def upward(package: str, source: str) -> list[str]:
    tops = {name.split(".")[0] for name in imports(source)}
    return sorted(top for top in tops if top in FLOORS and FLOORS[top] > FLOORS[package])


def test_imports_go_down():
    wrong = [
        f"{name} imports {top}"
        for package in FLOORS
        for name, source in modules(package)
        for top in upward(package, source)
    ]
    assert not wrong, wrong


def test_a_planted_upward_import_is_found():
    assert upward("interp", "def f():\n    from saes.sae import SAE\n") == ["saes"]
    assert not upward("saes", "import interp.sites\nimport midlens_kernels\n")


def out_of_order(package: str, order: list[str], name: str, source: str) -> list[str]:
    """Imports of a file further down the listed order than the importing file itself."""
    own = name.split(".")[1] if "." in name else ""
    if own not in order:
        return []
    targets = {n.split(".")[1] for n in imports(source, lazy=False) if n.startswith(package + ".")}
    return sorted(t for t in targets if t in order and order.index(t) > order.index(own))


@pytest.mark.parametrize(("package", "order"), [("interp", INTERP_ORDER), ("saes", SAES_ORDER)])
def test_the_listed_order_holds(package: str, order: list[str]):
    wrong = [
        f"{name} imports {t}" for name, source in modules(package) for t in out_of_order(package, order, name, source)
    ]
    assert not wrong, wrong


def test_a_planted_disorder_is_found():
    assert out_of_order("saes", SAES_ORDER, "saes.codes", "from saes.train import fit\n") == ["train"]


@pytest.mark.parametrize("package", FLOORS)
def test_no_cycles(package: str):
    known = dict(modules(package))
    graph = {
        name: {n for n in imports(source, lazy=False) if n in known and n not in (name, package)}
        for name, source in known.items()
    }
    graph.pop(package, None)
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"import cycle: {error.args[1]}")
