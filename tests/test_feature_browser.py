"""The feature browser in Chromium: what it finds, in which order, what it shows, against the same said in Python."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp.page import FeatureBrowser, Page, Section
from tests import report_samples as samples
from tests.browser_tab import Tab, chromium, needs_chromium

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def page(path: Path, features: list[samples.Feature]) -> Path:
    browser = FeatureBrowser(iter(features), population="30,123 held-out tokens")
    return Page("Features", "of nothing real", [Section("Features", [browser])]).write(path)


@pytest.fixture(scope="module")
def listed() -> list[samples.Feature]:
    return samples.features(300, seed=1)


@pytest.fixture(scope="module")
def path(tmp_path_factory, listed) -> Path:
    return page(tmp_path_factory.mktemp("browser") / "page.html", listed)


def matches(feature: samples.Feature, query: str, scope: str) -> bool:
    """What a search finds, said in Python: a case-insensitive substring of a text that is read off the feature."""
    wanted = query.lower()
    promoted = [token.lower() for token, _ in feature.promoted]
    contexts = ["".join(example.tokens).lower() for example in feature.examples]
    pairs = [zip(example.tokens, example.activations, strict=True) for example in feature.examples]
    active = ["".join(token if a > 0 else "\0" for token, a in window).lower() for window in pairs]
    texts = {"promoted": promoted, "contexts": contexts, "active": active, "anywhere": promoted + contexts}[scope]
    return any(wanted in part for part in texts)


def lens_score(feature: samples.Feature) -> float:
    """The largest promoted logit, as the page holds it: rounded to 12 bits of mantissa."""
    mantissa, exponent = np.frexp(max(amount for _, amount in feature.promoted))
    return float(np.floor(mantissa * 2**13 + 0.5) / 2**13 * 2.0**exponent)


def test_search_narrows_the_list(browser, path, listed):
    with Tab(browser, path) as tab:
        alive = [feature for feature in listed if feature.density > 0]
        assert tab.count == f"{len(alive)} of 300 features"
        for query, scope in (
            ("expression", "promoted"), (" expression", "active"), ("EXPRESSION_3", "contexts"), ("the of", "contexts"),
            ("日本", "anywhere"), ("</script>", "anywhere"), ("שלום", "active"), ("\\", "promoted"),
            ("no such text", "anywhere"),
        ):  # fmt: skip
            expected = [feature.index for feature in alive if matches(feature, query, scope)]
            tab.search(query, scope)
            assert tab.count == f"{len(expected)} of 300 features", (query, scope)
            assert set(tab.visible()) <= set(expected)
            assert len(expected) < len(alive)
        assert "No feature matches" in tab.page.inner_text(".rows")
        tab.search("", "anywhere")
        assert tab.count == f"{len(alive)} of 300 features"
        assert tab.quiet, tab.complaints


def test_search_by_index_and_by_the_marks_shown_for_whitespace(browser, path, listed):
    with Tab(browser, path) as tab:
        alive = next(feature.index for feature in listed if feature.density > 0 and feature.index > 100)
        tab.search(f"#{alive}")
        assert tab.visible() == [alive] and tab.chosen == alive
        tab.search(str(alive))
        assert alive in tab.visible()
        tab.search("↵", "promoted")
        newline = sum(matches(f, "\n", "promoted") for f in listed if f.density > 0)
        assert tab.count == f"{newline} of 300 features" and newline > 0


def test_filters_part_the_living_from_the_dead(browser, path, listed):
    dead = [feature.index for feature in listed if feature.density == 0]
    with Tab(browser, path) as tab:
        tab.page.click("[data-filter=dead]")
        assert tab.count == f"{len(dead)} of 300 features"
        assert sorted(tab.visible()) == dead
        assert "never fired on 30,123 held-out tokens" in tab.page.inner_text(".detail")
        tab.page.click("[data-filter=all]")
        assert tab.count == "300 of 300 features"


def test_sorting_orders_the_list(browser, path, listed):
    keys = {
        "index": lambda f: f.index,
        "density": lambda f: np.float32(f.density),
        "max": lambda f: np.float32(f.max_activation),
        "lens": lens_score,
    }
    with Tab(browser, path) as tab:
        tab.page.click("[data-filter=all]")
        tab.page.click("[data-sort=density]")
        for name, key in keys.items():
            for _ in range(2):
                tab.page.click(f"[data-sort={name}]")
                direction = tab.page.get_attribute(f"[data-sort={name}]", "data-direction")
                sign = 1 if direction == "ascending" else -1
                expected = [f.index for f in sorted(listed, key=lambda f: (sign * key(f), f.index))]
                shown = tab.visible()
                assert len(shown) > 10 and shown == expected[: len(shown)], (name, direction)
                assert tab.page.get_attribute(f"[data-sort={name}]", "aria-pressed") == "true"


SHOWN = """() => [...document.querySelectorAll(".window")].map(row => [...row.querySelectorAll(".token")].map(token => {
    const ink = token.querySelector(".ink");
    return {
        on: token.classList.contains("on"),
        peak: token.classList.contains("peak"),
        value: Number(token.dataset.value ?? 0),
        shade: Number(token.style.getPropertyValue("--a") || 0),
        ground: ink && getComputedStyle(ink).backgroundColor,
    };
}))"""


def test_contexts_highlight_what_fires_by_how_much(browser, path, listed):
    feature = max(listed, key=lambda f: f.max_activation)
    with Tab(browser, path, fragment=f"#feature-{feature.index}") as tab:
        shown = tab.page.evaluate(SHOWN)
        assert len(shown) == len(feature.examples)
        for tokens, example in zip(shown, feature.examples, strict=True):
            assert [t["on"] for t in tokens] == [a > 0 for a in example.activations]
            assert [i for i, t in enumerate(tokens) if t["peak"]] == [example.peak]
            # Four digits are shown, of a 16-bit share of the context's largest.
            values = [t["value"] for t in tokens]
            np.testing.assert_allclose(values, example.activations, rtol=6e-4, atol=example.activation / 65535)
            shades = [max(0.06, a / feature.max_activation) if a > 0 else 0 for a in example.activations]
            np.testing.assert_allclose([t["shade"] for t in tokens], shades, atol=1e-3)
            assert [t["ground"] is not None and t["ground"] != "rgba(0, 0, 0, 0)" for t in tokens] == [
                t["on"] for t in tokens
            ]
        tab.page.locator(".token.peak").first.hover()
        assert tab.page.inner_text(".tip") == f"activation {feature.max_activation:#.4g}"


def test_whitespace_and_invisible_characters_are_legible(browser, tmp_path):
    (base,) = samples.features(1, seed=9, dead=0.0)
    tokens = ("\n", "\t", " ", " word", "\u202e", "\x00", "", "שלום", "\ud800")
    example = replace(base.examples[0], tokens=tokens, activations=(1.0,) * len(tokens), peak=2)
    feature = replace(base, max_activation=1.0, examples=(example,), promoted=tuple((t, 1.0) for t in tokens))
    with Tab(browser, page(tmp_path / "page.html", [feature])) as tab:
        shown = tab.page.eval_on_selector_all(".window .token", "all => all.map(one => one.textContent)")
        assert shown == ["↵", "⇥", "␣", " word", "⟨202E⟩", "␀", "∅", "שלום", "\ufffd"]
        chips = tab.page.eval_on_selector_all(".promoted bdi", "all => all.map(one => one.textContent)")
        assert chips == ["↵", "⇥", "␣", "␣word", "⟨202E⟩", "␀", "∅", "שלום", "\ufffd"]
        assert tab.quiet, tab.complaints


def test_addresses_lead_to_features(browser, path, listed):
    dead = next(feature.index for feature in listed if feature.density == 0)
    with Tab(browser, path, fragment="#feature-123") as tab:
        assert tab.chosen == 123
        assert tab.page.locator(".option[aria-selected=true]").get_attribute("data-index") == "123"
        tab.search("expression_2", "promoted")
        tab.page.evaluate(f"location.hash = '#feature-{dead}'")
        tab.page.wait_for_function(f"document.querySelector('.detail h3').textContent === 'Feature {dead}'")
        assert dead in tab.visible() and tab.count == "300 of 300 features"
        tab.page.evaluate("location.hash = '#feature-999999'")
        tab.page.evaluate("location.hash = '#features'")
        assert tab.chosen == dead and tab.quiet


def test_the_list_is_walked_by_keys(browser, path, listed):
    order = [f.index for f in sorted(listed, key=lambda f: (-np.float32(f.max_activation), f.index)) if f.density > 0]
    with Tab(browser, path) as tab:
        tab.page.keyboard.press("/")
        assert tab.page.evaluate("document.activeElement.type") == "search"
        assert tab.page.input_value(".browser input") == ""
        tab.page.keyboard.press("ArrowDown")
        for key, place in (("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1), ("End", len(order) - 1), ("Home", 0)):
            tab.page.keyboard.press(key)
            assert tab.chosen == order[place], key
            active = tab.page.get_attribute(".rows", "aria-activedescendant")
            assert tab.page.get_attribute(f"#{active}", "data-index") == str(order[place])
            assert tab.page.evaluate("location.hash") == f"#feature-{order[place]}"
        assert tab.page.locator("button[aria-label='Previous feature']").is_disabled()
        tab.page.click("button[aria-label='Next feature']")
        assert tab.chosen == order[1]


def test_thousands_of_features_stay_light(browser, tmp_path):
    made = samples.features(512, seed=2)
    features = [replace(made[index % 512], index=index) for index in range(4608)]
    path = page(tmp_path / "page.html", features)
    assert path.stat().st_size < 15e6  # plotly.js brings five more on a whole report
    with Tab(browser, path) as tab:
        assert tab.page.locator(".option").count() < 60  # only what is near the visible part is in the document
        tab.search("expression_3", "active")
        expected = [f.index for f in features if f.density > 0 and matches(f, "expression_3", "active")]
        assert tab.count == f"{len(expected)} of 4,608 features"
        tab.search("")
        tab.page.focus(".rows")
        tab.page.keyboard.press("End")
        last = min((f for f in features if f.density > 0), key=lambda f: (np.float32(f.max_activation), -f.index))
        assert tab.chosen == last.index and tab.page.locator(".option").count() < 60
        assert tab.quiet, tab.complaints


@pytest.mark.slow
def test_a_list_of_131072_features_is_walked_and_searched(browser, tmp_path):
    made, n = samples.features(512, seed=2), 131_072
    path = page(tmp_path / "page.html", [replace(made[index % 512], index=index) for index in range(n)])
    assert path.stat().st_size < 55e6  # plotly.js brings five more on a whole report
    alive = [feature for feature in made if feature.density > 0]
    with Tab(browser, path, fragment="#feature-77777") as tab:
        assert tab.chosen == 77777 and tab.page.locator(".option").count() < 60
        tab.page.click("button:has-text('All')")
        rows, largest = tab.page.locator(".rows"), [np.float32(feature.max_activation) for feature in made]
        order = sorted(range(n), key=lambda index: (-largest[index % 512], index))
        for part in (0.25, 0.5, 1.0):  # of the way down
            rows.evaluate("(list, part) => { list.scrollTop = part * (list.scrollHeight - list.clientHeight); }", part)
            tab.page.wait_for_timeout(50)
            seen = tab.visible()
            place = order.index(seen[0])
            assert len(seen) > 10 and seen == order[place : place + len(seen)] and abs(place / n - part) < 0.01
            assert tab.page.locator(".option").count() < 60
        tab.page.focus(".rows")
        tab.page.keyboard.press("Home")
        tab.page.keyboard.press("End")
        last = min(made, key=lambda f: (np.float32(f.max_activation), -f.index))
        assert tab.chosen == n - 512 + last.index and tab.page.locator(".option").count() < 60
        tab.page.click("button:has-text('Alive')")
        tab.search("expression", "promoted")
        found = sum(matches(feature, "expression", "promoted") for feature in alive)
        assert found and tab.count == f"{found * n // 512:,} of {n:,} features"
        assert tab.quiet, tab.complaints


def test_a_text_is_found_across_tokens_but_not_across_contexts_or_silence(browser, tmp_path):
    made = samples.features(5, seed=3, dead=0.0)
    windows = [
        ((" un", "believ", "able"), (1.0, 2.0, 1.0)),
        ((" un", "believ", "able"), (1.0, 2.0, 0.0)),
        (("aab", "x", ""), (1.0, 2.0, 1.0)),
        (("aa", "a", "b"), (1.0, 2.0, 1.0)),
        (("believ", "", "able"), (1.0, 2.0, 1.0)),
    ]
    features = [
        replace(f, promoted=(), examples=(replace(f.examples[0], tokens=t, activations=a, peak=1),))
        for f, (t, a) in zip(made, windows, strict=True)
    ]
    with Tab(browser, page(tmp_path / "page.html", features)) as tab:
        for query, scope, expected in (
            ("unbelievable", "contexts", {0, 1}), ("unbelievable", "active", {0}), ("aab", "contexts", {2, 3}),
            ("ievab", "active", {0, 4}), ("able un", "contexts", set()), ("believ", "promoted", set()),
        ):  # fmt: skip
            tab.search(query, scope)
            assert set(tab.visible()) == expected, (query, scope)


def test_a_sampled_page_says_so(browser, tmp_path):
    features = samples.features(120, seed=8)
    part = FeatureBrowser(features, population="30,123 held-out tokens", budget=60_000)
    path = Page("Features", "of nothing real", [Section("Features", [part])]).write(tmp_path / "page.html")
    with Tab(browser, path) as tab:
        said = tab.page.inner_text(".sampling")
        kept = tab.page.locator(".contexts li").count()
        assert said.startswith(f"Sampled to keep this page small: {kept} of the up to 8 recorded contexts")
        assert tab.page.inner_text(".contexts-head h4").startswith(f"{kept} of up to 8 recorded contexts")
        assert 1 <= kept < 8 and tab.quiet, tab.complaints
