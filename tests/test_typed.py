"""Records from JSON: exactly the fields, each of its kind, and an error that names the place."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from interp.errors import InputError
from interp.loop import Metrics, read_metrics
from interp.plan import Plan
from interp.typed import built, fits, read_object


@dataclass(frozen=True)
class Leaf:
    weight: float
    name: str | None = None


@dataclass(frozen=True)
class Tree:
    count: int
    kind: Literal["a", "b"]
    leaves: tuple[Leaf, ...]
    pair: tuple[int, float]
    table: dict[str, list[bool]]
    anything: Any


@dataclass(frozen=True)
class Own:
    n: int

    @classmethod
    def from_json(cls, value: Any) -> "Own":
        return cls(len(value))


@dataclass(frozen=True)
class Holder:
    own: Own


GOOD: dict[str, Any] = {
    "count": 3, "kind": "b", "leaves": [{"weight": 1, "name": None}, {"weight": 0.5, "name": "x"}], "pair": [1, 2],
    "table": {"t": [True]}, "anything": {"k": [1]},
}  # fmt: skip


def test_every_field_is_built():
    found = built(Tree, GOOD, "a tree")
    assert found == Tree(3, "b", (Leaf(1.0), Leaf(0.5, "x")), (1, 2.0), {"t": [True]}, {"k": [1]})
    assert isinstance(found.leaves[0].weight, float) and isinstance(found.pair[1], float)
    assert built(Holder, {"own": "abc"}, "a holder") == Holder(Own(3))  # a class that reads itself does


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": True}, "a tree, count: expected a whole number, got True"),
        ({"count": 1.0}, "a tree, count: expected a whole number, got 1.0"),
        ({"kind": "c"}, "a tree, kind: expected one of 'a', 'b', got 'c'"),
        ({"leaves": {}}, "a tree, leaves: expected a list of values, got {}"),
        (
            {"leaves": [{"weight": "1", "name": None}]},
            r"a tree, leaves\[0\], weight: expected a finite number, got '1'",
        ),
        ({"leaves": [{"weight": 10**400, "name": None}]}, r"leaves\[0\], weight: 1000000000.* is too large a number"),
        ({"leaves": [{"name": "x"}]}, r"a tree, leaves\[0\] has name, weight; got name"),
        ({"pair": [1]}, "a tree, pair: expected 2 whole numbers, got"),
        ({"table": {"t": [1]}}, r"a tree, table, t\[0\]: expected True or False, got 1"),
        ({"more": 1}, "a tree has anything, count, kind, leaves, pair, table; got .*more"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(change: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        built(Tree, GOOD | change, "a tree")


def test_missing_fields_and_null_as_nan_only_where_asked_for():
    with pytest.raises(InputError, match="a leaf has name, weight; got weight"):
        built(Leaf, {"weight": 1.0}, "a leaf")
    assert built(Leaf, {"weight": 1.0}, "a leaf", defaults=True) == Leaf(1.0)
    with pytest.raises(InputError, match="expected a finite number, got None"):
        built(Leaf, {"weight": None, "name": None}, "a leaf")
    assert math.isnan(built(Leaf, {"weight": None, "name": None}, "a leaf", null_is_nan=True).weight)
    with pytest.raises(InputError, match="a leaf has name, weight; got None"):
        built(Leaf, None, "a leaf")


def test_fits_knows_bool_from_int_and_nan_from_numbers():
    assert fits(1, float) and fits(None, int | None) and fits([1, 2], tuple[int, ...]) and fits("a", Literal["a"])
    assert not fits(True, int) and not fits(math.nan, float) and not fits([1, "2"], tuple[int, ...])


def test_objects_and_nothing_else(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert read_object(path, "thing") == {"a": 1}
    path.write_text("[1]")
    with pytest.raises(InputError, match=r"a\.json is damaged: expected an object, got \[1\]; make the thing again"):
        read_object(path, "thing")


def test_metrics_are_read_up_to_a_line_that_was_cut_off(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]
    Metrics(path, after=1)
    assert path.read_text() == '{"step": 1, "loss": 2.0}\n'
    path.write_text('{"step": 1}\n[]\n')
    for read in (read_metrics, lambda p: Metrics(p, after=9)):
        with pytest.raises(InputError, match=r"metrics\.jsonl, line 2: expected metrics of a step, got \[\]"):
            read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_shapes": {"blocks.1.hook_resid_post": [0]}}, "a size of 0 or less"),
        ({"spec": {"dtype": "int4", "sites": ["blocks.1.hook_resid_post"]}}, "rows of .* in 'int4'"),
        ({"length": [3]}, "its lists are of different lengths"),
        ({"length": [3, 0]}, "a window that begins before its document, or one of no tokens"),
        ({"doc": [0, -1]}, "a negative or an absurd number"),
        ({"batch_windows": [2, 1]}, "its batches do not cover its 2 windows"),
        ({"shard_windows": [1]}, "its shards do not cover its 2 windows"),
        ({"batch_windows": [2], "shard_windows": [1, 2], "shard_rows": [3, 4]}, "a shard that ends inside a batch"),
    ],
)
def test_plans_that_contradict_themselves_are_refused(tmp_path: Path, change: dict[str, Any], message: str):
    site = "blocks.1.hook_resid_post"
    plan = {
        "format": "midlens-plan", "version": 1, "spec": {"dtype": "float32", "sites": [site], "model": "toy"},
        "row_shapes": {site: [4]}, "token_budget": 8, "rows_per_shard": 10, "multiple": 1, "excluded": {},
        "padding_waste": 0.0, "splits": [], "shard_rows": [7], "shard_windows": [2], "batch_windows": [1, 2],
        "doc": [0, 1], "start": [0, 0], "length": [3, 4],
    }  # fmt: skip
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert Plan.load(tmp_path / "plan.json").rows == 7
    (tmp_path / "plan.json").write_text(json.dumps(plan | change))
    with pytest.raises(InputError, match=message):
        Plan.load(tmp_path / "plan.json")
