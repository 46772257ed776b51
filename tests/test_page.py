"""The page's HTML: parsed with the standard library's parser, nothing in it reaches out, and no text becomes markup."""

import base64
import hashlib
import json
import math
import re
import zlib
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InputError
from interp.page import Figure, KeyValues, Metrics, Note, Page, Row, Section, Table, Tile
from interp.page.browser import LEVELS, encode
from interp.page.escape import json_block, text
from tests import report_samples as samples

HOSTILE = "</script><img src=x onerror=\"alert(1)\"><!-- & 'quoted' -->"


class Parsed(HTMLParser):
    """Elements with attributes, texts of elements by tag, and scripts by type."""

    def __init__(self, document: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[str, str, str]] = []  # type, id, body
        self._script: dict[str, str | None] | None = None
        self.feed(document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self._script = dict(attrs)
            self.scripts.append((self._script.get("type") or "", self._script.get("id") or "", ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.texts.append(data)
        else:
            kind, name, body = self.scripts[-1]
            self.scripts[-1] = (kind, name, body + data)


class Curve:
    """The least a figure has to be."""

    class layout:
        height = 200
        width = None

    def to_json(self) -> str:
        return json.dumps({"data": [{"name": HOSTILE, "y": [1, 2]}], "layout": {}})


def full_page() -> Page:
    everything = (
        Metrics([Tile(HOSTILE, HOSTILE, HOSTILE, HOSTILE)]),
        Note(HOSTILE),
        Table([HOSTILE, "n"], [[HOSTILE, 1]], title=HOSTILE),
        KeyValues({HOSTILE: HOSTILE, "group": {HOSTILE: HOSTILE}}, title=HOSTILE),
        Row([Figure(Curve(), HOSTILE, HOSTILE), Figure(Curve(), "second")]),
    )
    return Page(HOSTILE, HOSTILE, [Section(HOSTILE, everything, lead=HOSTILE)], footer=HOSTILE)


def test_hostile_text_stays_text_everywhere():
    page = Parsed(full_page().html())
    assert not [tag for tag, _ in page.elements if tag in ("img", "iframe", "object", "embed")]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    # 4 in the tile, note, column, cell, caption, key and value twice, list title, figure title and caption, section
    # title (heading, link), lead, title (head, h1), subtitle, footer.
    shown = [piece for piece in page.texts if HOSTILE in piece]
    assert len(shown) == 4 + 1 + 3 + 4 + 1 + 2 + 2 + 1 + 2 + 1 + 1
    figures = [json.loads(body) for kind, _, body in page.scripts if kind == "application/json"]
    name = figures[0]["data"][0]["name"]  # Plotly reads entities, and would make links of tags
    assert unescape(name) == HOSTILE and "<img" not in name and "<a" not in name


def test_a_page_reaches_nothing_outside_itself():
    page = Parsed(full_page().html())
    outward = [
        (tag, name, value)
        for tag, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster", "ping") and value
        if not value.startswith("#") and value != "data:,"
    ]
    assert not outward
    style = "".join(re.findall(r"<style>(.*?)</style>", full_page().html(), re.S))
    assert "@import" not in style and not re.search(r"url\(\s*['\"]?(https?:)?//", style)


def test_the_policy_allows_exactly_the_scripts_that_are_there():
    html = full_page().html()
    page = Parsed(html)
    (policy,) = [a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a]
    rules = dict(rule.strip().split(" ", 1) for rule in (policy or "").split(";"))
    assert rules["default-src"] == "'none'"
    bodies = [body for kind, _, body in page.scripts if kind == ""]
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'" for body in bodies}
    assert len(bodies) == 2  # plotly.js and the page's own
    assert set(rules["script-src"].split()) == hashes
    assert html.index("Content-Security-Policy") < html.index("<style>") < html.index("<script")


def test_ids_are_unique_and_links_lead_somewhere():
    page = Parsed(full_page().html())
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert targets and {target[1:] for target in targets if target} <= set(ids)


def test_a_page_without_figures_carries_no_plotly():
    assert len(Page("a", "b", [Note("c")]).html()) < 20_000


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [finite(item) for item in value]
    return {key: finite(item) for key, item in value.items()} if isinstance(value, dict) else value


@settings(max_examples=150, deadline=None)
@given(values)
def test_data_survive_the_page(value: object):
    page = Parsed(f"<p>before</p>{json_block(value, id='x')}<p>after</p>")
    assert json.loads(page.scripts[0][2]) == finite(value)
    assert [tag for tag, _ in page.elements] == ["p", "script", "p"]


@pytest.mark.parametrize("token", [*samples.ODD, HOSTILE, "<!--<script>", "]]>", "\u2028"])
def test_awkward_tokens_survive_the_page(token: str):
    page = Parsed(json_block([token], id="x"))
    assert json.loads(page.scripts[0][2]) == [token]
    assert len(page.elements) == 1


@given(st.text(alphabet=st.characters()))
@settings(max_examples=150, deadline=None)
def test_text_survives_but_for_what_html_cannot_hold(value: str):
    page = Parsed(f"<p title='{text(value)}'>{text(value)}</p>")
    held = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", value)
    assert "".join(page.texts) == held
    assert page.elements == [("p", {"title": held})]
    text(value).encode()


def test_a_table_of_uneven_rows_is_refused():
    with pytest.raises(InputError, match=r"table of 2 columns got a row of 1 cells: \['a'\]"):
        Table(["x", "y"], [["a"]])


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    class Broken(Note):
        def render(self, anchor: str) -> str:
            raise RuntimeError("no")

    path = tmp_path / "new" / "page.html"
    Page("a", "b", [Note("first")]).write(path)
    before = path.read_bytes()
    with pytest.raises(RuntimeError):
        Page("a", "b", [Broken("second")]).write(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


# ---- the encoding of features ---------------------------------------------------------------------------------------


def unpack(vector: dict) -> np.ndarray:
    data, kind = base64.b64decode(vector["base64"]), np.dtype("<" + vector["type"])
    if vector.get("packed"):
        planes = zlib.decompress(data)
        n = len(planes) // kind.itemsize
        data = bytes(planes[place * n + i] for i in range(n) for place in range(kind.itemsize))
    return np.frombuffer(data, dtype=kind)


def ragged(columns: dict, key: str, offsets: str = "offsets") -> list[np.ndarray]:
    flat = unpack(columns[key])
    return [flat[a:b] for a, b in pairwise(unpack(columns[offsets]))]


def test_features_survive_the_encoding():
    features = samples.features(40, seed=3)
    data = json.loads(json.dumps(encode(iter(features))))
    tokens = np.array(data["tokens"], dtype=object)
    assert unpack(data["index"]).tolist() == [f.index for f in features]
    for name, field in (("density", "density"), ("max", "max_activation"), ("mean", "mean_activation")):
        np.testing.assert_allclose(unpack(data[name]), [getattr(f, field) for f in features], rtol=1e-6)
    for got, feature in zip(ragged(data["histogram"], "counts"), features, strict=True):
        assert tuple(got) == feature.histogram
    for got, feature in zip(ragged(data["edges"], "values"), features, strict=True):
        np.testing.assert_allclose(got, feature.edges, rtol=1e-6)
    for side in ("promoted", "suppressed"):
        names, amounts = ragged(data[side], "tokens"), ragged(data[side], "values")
        for row, feature in enumerate(features):
            assert tokens[names[row]].tolist() == [token for token, _ in getattr(feature, side)]
            np.testing.assert_allclose(amounts[row], [amount for _, amount in getattr(feature, side)], rtol=2**-13)


def test_contexts_survive_the_encoding_and_levels_are_as_close_as_promised():
    features = samples.features(40, seed=4)
    data = encode(features)["examples"]
    entries = encode(features)["tokens"]
    documents = encode(features)["documents"]
    examples = [example for feature in features for example in feature.examples]
    bounds = np.cumsum([0, *(len(feature.examples) for feature in features)])
    assert unpack(data["offsets"]).tolist() == bounds.tolist()
    windows, levels = ragged(data, "tokens", "windows"), ragged(data, "levels", "windows")
    document, position, peak, scales = (unpack(data[name]) for name in ("document", "position", "peak", "scale"))
    for i, example in enumerate(examples):
        assert [entries[token] for token in windows[i]] == list(example.tokens)
        assert documents[document[i]] == example.doc_id
        assert (position[i], peak[i]) == (example.position, example.peak)
        scale, truth = float(scales[i]), np.array(example.activations)
        got = levels[i] * scale / LEVELS
        assert np.abs(got - truth).max() <= scale * (1 / LEVELS + 1e-6)
        assert ((got > 0) == (truth > 0)).all()


def test_the_least_activation_is_still_seen():
    (feature,) = samples.features(1, seed=5, dead=0.0)
    first = feature.examples[0]
    faint = replace(first, activations=(1e-9, *first.activations[1:-1], 0.0))
    levels = unpack(encode([replace(feature, examples=(faint,))])["examples"]["levels"])
    assert levels[0] == 1 and levels[-1] == 0 and levels.max() == LEVELS


def test_a_vocabulary_beyond_two_bytes_is_encoded_with_four():
    (feature,) = samples.features(1, seed=6, dead=0.0)
    wide = replace(feature, promoted=tuple((f"token {i}", 1.0) for i in range(70_000)))
    late = replace(feature, index=1, promoted=(), examples=(replace(feature.examples[0], doc_id="late"),))
    data = encode([wide, late])
    assert len(data["tokens"]) > 1 << 16
    assert [data["tokens"][i] for i in unpack(data["examples"]["tokens"])[-24:]] == list(late.examples[0].tokens)


def test_what_a_page_could_not_show_truthfully_is_refused():
    (feature,) = samples.features(1, seed=7, dead=0.0)
    example = feature.examples[0]
    with pytest.raises(InputError, match="feature 0: density is nan; expected a finite number, 0 or larger"):
        encode([replace(feature, density=math.nan)])
    with pytest.raises(InputError, match="2 histogram counts need 3 bin edges, got 2"):
        encode([replace(feature, histogram=(1, 2), edges=(0.0, 1.0))])
    with pytest.raises(InputError, match=r"24 tokens, 23 activations and peak \d+ do not fit"):
        encode([replace(feature, examples=(replace(example, activations=example.activations[1:]),))])
    with pytest.raises(InputError, match=r"activations have to be finite and 0 or larger, got \[-1.0"):
        encode([replace(feature, examples=(replace(example, activations=(-1.0,) * 24),))])
    with pytest.raises(InputError, match="two features have the same index"):
        encode([feature, feature])


def shown(data: dict, features: list) -> list[list[int]]:
    """Which of each feature's recorded contexts are on the page, by their place."""
    found = iter(zip(unpack(data["examples"]["position"]), unpack(data["examples"]["activation"]), strict=True))
    places = []
    for (a, b), feature in zip(pairwise(unpack(data["examples"]["offsets"])), features, strict=True):
        recorded = [(e.position, np.float32(e.activation)) for e in feature.examples]
        places.append([recorded.index(next(found)) for _ in range(a, b)])
    return places


@pytest.mark.parametrize("thinned", ["by the budget", "while read"])
def test_contexts_are_sampled_alike_where_they_do_not_fit(thinned):
    features = samples.features(120, seed=8)
    whole = encode(features)
    assert whole["sampled"] == {"shown": 8, "recorded": 8}
    size = len(json.dumps(whole))
    data = encode(features, budget=size // 2) if thinned == "by the budget" else encode(features, held=20_000)
    most = data["sampled"]["shown"]
    assert 1 <= most < 8 and data["sampled"]["recorded"] == 8
    if thinned == "by the budget":
        assert len(json.dumps(data)) <= size // 2
    for places, feature in zip(shown(data, features), features, strict=True):
        assert len(places) == min(most, len(feature.examples))
        assert places == sorted(set(places)) and places[:1] == ([0] if feature.examples else [])
        if most > 1 and len(feature.examples) == 8 and thinned == "by the budget":
            assert max(np.diff(places)) - min(np.diff(places)) <= 1  # evenly spaced
    for name in ("density", "histogram", "promoted"):  # only contexts are sampled
        assert data[name] == whole[name]


def test_features_that_do_not_fit_even_without_contexts_are_refused():
    features = samples.features(20, seed=9)
    with pytest.raises(
        InputError, match=r"20 features take [\d,]+ bytes without any context, more than the budget of 99"
    ):
        encode(features, budget=99)
