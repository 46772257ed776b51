"""What is written is read back: parse(write(value)) == value, for values of every kind that a file of ours holds."""

import dataclasses
import json
import math
import string
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_store import word_tokenizer

from interp.corpus import Document, read_corpus
from interp.errors import InputError
from interp.jsonlines import json_objects
from interp.moments import Moments
from interp.options_file import filled, options_text, read_options
from interp.patching import PatchTable
from interp.pieces import Piece
from interp.sites import Point, Site
from interp.steering.fit_job import read_texts
from interp.steering.generation import Generated
from interp.steering.vectors import read_control_vector, steering_from_vectors, vectors_of, write_control_vector
from interp.sudoku.board import Rules
from interp.sudoku.generate import PuzzleSet
from interp.sudoku.puzzle_files import read_csv, write_csv
from interp.sudoku.solving_study import Curve
from interp.tensorfile import read_tensors, write_tensors
from interp.tokenfile import tokenize
from saes.cfg_json import from_cfg, to_cfg
from saes.config import SAEConfig
from saes.examples import Example, Feature, load_features, write_features
from saes.primitives.kept import Kept
from saes.primitives.specs import SteeringSpec, Term
from saes.sae import SAE

Property = Callable[[Callable[..., None]], Callable[..., None]]
some: Property = settings(max_examples=40, derandomize=True, deadline=None, database=None,
                          suppress_health_check=list(HealthCheck))  # fmt: skip
few: Property = settings(max_examples=12, derandomize=True, deadline=None, database=None,
                         suppress_health_check=list(HealthCheck))  # fmt: skip

# beartype, which checks annotations in tests, draws the items of a list that it looks at
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

words = st.text(max_size=12)
whole = st.integers(0, 9**9)
finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(string.ascii_letters + string.digits + "._/-", min_size=1, max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | finite | words,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(words, inside, max_size=3),
    max_leaves=8,
)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@st.composite
def sites(draw: st.DrawFn) -> Site:
    point = draw(st.sampled_from(Point))
    layer = draw(st.integers(0, 10**6)) if point.in_block else None
    return Site(point, layer, draw(st.none() | st.integers(0, 10**6)) if point.per_head else None)


@some
@given(site=sites())
def test_sites(site: Site):
    assert Site.parse(str(site)) == site
    short = site.point.short + ("" if site.layer is None else f".{site.layer}")
    assert Site.parse(short + ("" if site.head is None else f"[{site.head}]")) == site


@some
@given(count=st.integers(1, 10**9), data=st.data())
def test_pieces(count: int, data: st.DataObject):
    piece = Piece(data.draw(st.integers(1, count)), count)
    assert Piece.parse(str(piece)) == piece


@dataclass(frozen=True)
class Inner:
    rate: float
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    flag: bool
    number: int
    share: float
    text: str
    path: Path
    choice: Literal["a", "b"]
    inner: Inner
    several: tuple[float, ...]
    maybe: int | None
    never: str | None = None


plain = st.text(st.characters(exclude_characters="\x00", exclude_categories=("Cs",)), max_size=12)
options = st.builds(
    Options, st.booleans(), st.integers(-(2**62), 2**62), finite, plain, plain.map(Path), st.sampled_from("ab"),
    st.builds(Inner, finite, st.lists(plain, max_size=3).map(tuple)), st.lists(finite, max_size=3).map(tuple),
    st.none() | st.integers(0, 9),
)  # fmt: skip


@some
@given(record=options)
def test_options_as_toml(record: Options):
    with folder() as place:
        (place / "options.toml").write_text(options_text(record, title="title"), encoding="utf-8")
        read = filled(Options, read_options(place / "options.toml", Options), None)
    assert read == record


@some
@given(rows=st.lists(st.dictionaries(words, values, max_size=3), max_size=4), ascii=st.booleans())
def test_json_lines_whatever_their_texts_hold(rows: list[dict[str, Any]], ascii: bool):
    with folder() as place:
        path = place / "a.jsonl"
        path.write_bytes(b"".join(json.dumps(row, ensure_ascii=ascii).encode() + b"\n" for row in rows))
        assert [row for _, row in json_objects(path, "rows")] == rows


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_what_python_counts_as_the_end_of_a_line_does_not_end_a_text(tmp_path: Path, odd: str):
    rows = [{"text": f"one{odd}two"}, {"text": "three"}]
    raw = "".join(json.dumps(row, ensure_ascii=ord(odd) < 32) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_bytes(raw.encode())
    assert read_texts(tmp_path / "a.jsonl") == [row["text"] for row in rows]
    assert [document.text for document in read_corpus(tmp_path / "a.jsonl")] == [row["text"] for row in rows]


filled_text = st.text(min_size=1, max_size=20).filter(lambda text: text.strip())


@some
@given(texts=st.lists(filled_text, min_size=1, max_size=4))
def test_corpora(texts: list[str]):
    with folder() as place:
        rows = [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)]
        (place / "a.jsonl").write_bytes(b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in rows))
        assert [(d.id, d.text) for d in read_corpus(place / "a.jsonl")] == [(r["id"], r["text"]) for r in rows]
        (place / "a.txt").write_bytes(texts[0].encode())
        assert read_corpus(place / "a.txt")[0].text == texts[0]


@few
@given(ids=st.lists(st.text(max_size=8), min_size=1, max_size=4, unique=True), bos=st.booleans())
def test_token_files(ids: list[str], bos: bool):
    documents = [Document(one, f"w{i} w{i + 1}") for i, one in enumerate(ids)]
    with folder() as place:
        file = tokenize(documents, word_tokenizer(), place / "tokens", prepend_bos=bos)
        assert file.ids == ids and file.bos == (1 if bos else None)
        assert [file[i].tolist() for i in range(len(file))] == [[i + 4, i + 5] for i in range(len(ids))]


KINDS = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int8, torch.uint8, torch.bool)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    found = {}
    for name in draw(st.lists(names, max_size=4, unique=True)):
        shape, kind = draw(st.lists(st.integers(0, 3), max_size=3)), draw(st.sampled_from(KINDS))
        count = math.prod(shape)
        raw = draw(st.binary(min_size=count * kind.itemsize, max_size=count * kind.itemsize))
        bits = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.zeros(0, dtype=torch.uint8)
        found[name] = ((bits % 2).bool() if kind is torch.bool else bits.view(kind)).reshape(shape)
    return found


@some
@given(held=tensors(), facts=values)
def test_tensors_with_facts(held: dict[str, torch.Tensor], facts: Any):
    with folder() as place:
        write_tensors(place / "a.safetensors", held, facts)
        found, said = read_tensors(place / "a.safetensors", "thing")
    assert said == facts and found.keys() == held.keys()
    for name, tensor in held.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


@few
@given(n=st.integers(1, 6), d=st.integers(1, 4), e=st.integers(1, 3), seed=st.integers(0, 2**20))
def test_moments(n: int, d: int, e: int, seed: int):
    drawn = torch.Generator().manual_seed(seed)
    made = Moments(d, e).update(torch.randn(n, d, generator=drawn), torch.randn(n, e, generator=drawn))
    with folder() as place:
        made.save(place / "m.safetensors")
        found = Moments.load(place / "m.safetensors")
    assert (found.n, found.n_groups) == (made.n, made.n_groups)
    for name in ("mean", "z_mean", "_xx", "_xz"):
        assert torch.equal(getattr(found, name), getattr(made, name))


@some
@given(items=st.lists(st.tuples(values, values), max_size=5))
def test_kept_values(items: list[tuple[Any, Any]]):
    with folder() as place:
        kept = Kept(place / "kept.jsonl")
        for item in items:
            kept.add([item])
        again = Kept(place / "kept.jsonl")
        assert all(again.get(key) == kept.get(key) for key, _ in items)


numbers = st.integers(-9999, 9999).map(float)  # four digits are kept
shown = st.text(max_size=5)  # of a vocabulary: no lone surrogates, anything else


@st.composite
def example(draw: st.DrawFn) -> Example:
    n = draw(st.integers(1, 4))
    tokens = draw(st.lists(shown, min_size=n, max_size=n))
    activations = draw(st.lists(numbers, min_size=n, max_size=n))
    fields = {"doc_id": draw(words), "position": draw(st.integers(0, 99)), "activation": draw(numbers)}
    fields |= {"tokens": tuple(tokens), "activations": tuple(activations), "peak": draw(st.integers(0, n - 1))}
    return Example(**fields)


@st.composite
def feature(draw: st.DrawFn) -> Feature:
    n = draw(st.integers(0, 3))
    scored = st.lists(st.tuples(shown, numbers), max_size=3).map(tuple)
    edges = tuple(draw(numbers) for _ in range(n + 1)) if n else ()
    counts = tuple(draw(st.integers(0, 99)) for _ in range(n))
    own = [draw(numbers) for _ in range(3)]
    examples = tuple(draw(st.lists(example(), max_size=2)))
    return Feature(draw(st.integers(0, 9999)), *own, counts, edges, draw(scored), draw(scored), examples)


@some
@given(listed=st.lists(feature(), max_size=3))
def test_features(listed: list[Feature]):
    with folder() as place:
        write_features(place / "features.jsonl", listed)
        assert list(load_features(place / "features.jsonl")) == listed


strengths = st.floats(-10, 10, allow_nan=False)


@some
@given(
    terms=st.dictionaries(st.integers(0, 10**6), strengths, min_size=1, max_size=4),
    norm=st.floats(1e-3, 1e6),
    mode=st.sampled_from(("add", "clamp")),
    site=st.none() | sites().map(str),
    width=st.none() | st.integers(1, 10**6),
)
def test_steering_specifications(terms: dict[int, float], norm: float, mode: Any, site: str | None, width: int | None):
    spec = SteeringSpec(tuple(Term(*one) for one in terms.items()), norm, mode, site=site, n_features=width)
    assert SteeringSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@some
@given(n=st.integers(0, 4), data=st.data())
def test_generated_texts(n: int, data: st.DataObject):
    columns = [data.draw(st.lists(one, min_size=n, max_size=n).map(tuple)) for one in
               (st.text(max_size=9), finite, st.integers(0, 99), finite, finite)]  # fmt: skip
    made = Generated(*columns)
    assert Generated.from_json(json.loads(json.dumps(made.to_json()))) == made


@some
@given(places=st.lists(sites(), min_size=1, max_size=3), columns=st.integers(0, 3), b=st.integers(1, 3), data=st.data())
def test_tables_of_patches(places: list[Site], columns: int, b: int, data: st.DataObject):
    at = data.draw(st.none() | st.just(tuple(range(columns))))
    shape = (len(places), 1 if at is None else columns, b)
    cells = data.draw(st.lists(finite | st.just(math.nan), min_size=math.prod(shape), max_size=math.prod(shape)))
    ends = [np.array(data.draw(st.lists(finite, min_size=b, max_size=b))) for _ in range(2)]
    made = PatchTable("denoising", tuple(places), at, np.array(cells).reshape(shape), *ends)
    found = PatchTable.from_json(json.loads(json.dumps(made.to_json())))
    assert (found.direction, found.sites, found.positions) == (made.direction, made.sites, made.positions)
    for name in ("values", "clean", "corrupt"):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))


@some
@given(
    rows=st.lists(st.tuples(st.integers(0, 9**9), st.integers(0, 9**9), finite, finite | st.just(math.nan)), max_size=4)
)
def test_records_of_arrays(rows: list[tuple[int, int, float, float]]):
    columns = list(zip(*rows, strict=True)) or [()] * 4
    made = Curve(*(np.array(c, np.int64) for c in columns[:2]), *(np.array(c, np.float64) for c in columns[2:]))
    found = Curve.from_json(json.loads(json.dumps(made.to_json())))
    for name in ("step", "puzzles", "excess", "solved"):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))
        assert getattr(found, name).dtype == getattr(made, name).dtype


@few
@given(empty=st.sets(st.integers(0, 15), max_size=4), relabel=st.permutations([1, 2, 3, 4]))
def test_puzzles_as_csv(empty: set[int], relabel: list[int]):
    full = np.array([1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1])
    solution = np.array([relabel[digit - 1] for digit in full], np.int8)[None]
    puzzle = solution.copy()
    puzzle[0, sorted(empty)] = 0
    with folder() as place:
        write_csv(place / "p.csv", PuzzleSet(puzzle, solution))
        try:
            rules, found = read_csv(place / "p.csv")
        except InputError as error:  # the cells taken out leave more than one solution
            assert "solution" in str(error)
            return
    assert rules == Rules.of(4) and np.array_equal(found.puzzles, puzzle) and np.array_equal(found.solutions, solution)


@st.composite
def configs(draw: st.DrawFn) -> SAEConfig:
    d, f = draw(st.integers(2, 6)), draw(st.integers(1, 6))
    architecture = draw(st.sampled_from(("standard", "topk", "jumprelu", "gated")))
    kind = draw(st.sampled_from(("sae", "transcoder", "skip", "crosscoder")))
    more: dict[str, Any] = {"apply_b_dec_to_input": draw(st.booleans())}
    if kind in ("transcoder", "skip"):
        more = {"d_out": draw(st.integers(1, 5)), "skip": kind == "skip", "apply_b_dec_to_input": False}
    if kind == "crosscoder":
        more["sources"] = (1, d - 1)
    k = draw(st.integers(1, f)) if architecture == "topk" else None
    dtype = draw(st.sampled_from(("float32", "float64", "bfloat16")))
    metadata = draw(st.dictionaries(st.sampled_from(("model_name", "hook_name", "note")), values, max_size=3))
    return SAEConfig(d_in=d, d_sae=f, architecture=architecture, k=k, dtype=dtype, metadata=metadata, **more)


@some
@given(config=configs())
def test_sae_configurations(config: SAEConfig):
    found = from_cfg(json.loads(json.dumps(to_cfg(config))), "cfg.json")
    assert dataclasses.replace(found, metadata={}) == dataclasses.replace(config, metadata={})
    assert all(found.metadata[name] == value for name, value in config.metadata.items())


@few
@given(config=configs(), seed=st.integers(0, 2**20))
def test_sae_folders(config: SAEConfig, seed: int):
    sae, drawn = SAE(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in sae.weights().values():
            tensor.copy_(torch.rand(tensor.shape, generator=drawn).to(tensor.dtype))
    with folder() as place:
        sae.save(place / "sae")
        found = SAE.load(place / "sae")
    for name, tensor in sae.weights().items():
        assert torch.equal(found.weights()[name], tensor)


@few
@given(layers=st.sets(st.integers(1, 60), min_size=1, max_size=3), d=st.integers(1, 5), seed=st.integers(0, 2**20))
def test_control_vectors(layers: set[int], d: int, seed: int):
    drawn = torch.Generator().manual_seed(seed)
    made = steering_from_vectors({layer: torch.randn(d, generator=drawn) for layer in layers})
    with folder() as place:
        write_control_vector(made, place / "v.gguf", model_hint="llama")
        found = vectors_of(read_control_vector(place / "v.gguf"))
    assert found.keys() == vectors_of(made).keys()
    assert all(torch.equal(found[site], vector) for site, vector in vectors_of(made).items())
