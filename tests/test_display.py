"""One line everywhere, a short escaped table in a notebook, and progress bars that need no widgets."""

import io
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import torch

from interp.attention.bilinear import Bilinear
from interp.display import Shown, html_table, one_line
from interp.sites import Site
from interp.steering.edits import AffineEdit, ClampEdit
from saes.sae import SAE, SAEConfig

HOSTILE = '<img src=x onerror="alert(1)">\n'


class Cells(HTMLParser):
    """The tags of a piece of HTML, and its texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


def test_facts_are_said_on_one_line_and_in_a_table():
    facts = {"rows": 12345, "share": 0.123456, "sites": ["a", "b"], "nothing": None}
    assert one_line("Thing", facts) == "Thing(rows 12,345, share 0.1235, sites a, b)"
    cells = Cells(html_table("Thing", facts))
    assert cells.texts == ["Thing", "rows", "12,345", "share", "0.1235", "sites", "a, b"]


def test_names_are_escaped_and_cut():
    facts = {HOSTILE: HOSTILE, "long": "x" * 1000}
    cells = Cells(html_table(HOSTILE, facts))
    assert set(cells.tags) == {"div", "b", "table", "tr", "th", "td"} and HOSTILE in cells.texts[0]
    assert max(map(len, cells.texts)) == 160
    assert "\n" not in one_line("Thing", facts)


@pytest.fixture
def shown(tmp_path, smollm2) -> dict[str, Shown]:
    config = SAEConfig(d_in=8, d_sae=1024, architecture="topk", k=4, metadata={"model_name": HOSTILE})
    return {
        "HookedModel": smollm2,
        "Site": Site.parse("resid_post.15"),
        "SAE": SAE(config),
        "AffineEdit": AffineEdit(torch.ones(8, 2), torch.ones(8, 2), torch.zeros(2), beta=0.5),
        "Bilinear": Bilinear(torch.ones(3, 8, 2), torch.ones(3, 8, 2)),
    }


def test_every_central_value_shows_itself(shown):
    for name, value in shown.items():
        line, page = repr(value), value._repr_html_()
        assert line.startswith(f"{name}(") and "\n" not in line and len(line) < 320, line
        cells = Cells(page)
        assert cells.texts[0] == name and set(cells.tags) == {"div", "b", "table", "tr", "th", "td"}


def test_what_they_say(shown):
    assert repr(shown["Site"]) == "Site('blocks.15.hook_resid_post')"
    site = Cells(shown["Site"]._repr_html_()).texts
    assert site[site.index("short") + 1] == "resid_post.15" and "head" not in site
    assert "z.3[5]" in Cells(Site.parse("blocks.3.attn.hook_z[5]")._repr_html_()).texts
    assert "ln_final" in Cells(Site.parse("ln_final.hook_normalized")._repr_html_()).texts
    assert repr(shown["AffineEdit"]).startswith("AffineEdit(d 8, rank 2, ") and "0.5" in repr(shown["AffineEdit"])
    assert "features 1,024, d_in 8, k 4" in repr(shown["SAE"])
    model = Cells(shown["HookedModel"]._repr_html_()).texts
    for name, value in (("layers", "30"), ("d_model", "576"), ("vocabulary", "49,152"), ("dtype", "float32")):
        assert model[model.index(name) + 1] == value
    assert "rank" not in repr(ClampEdit(torch.eye(2, 3), torch.eye(3, 2), *[torch.zeros(2)] * 3))


def test_showing_an_edit_or_an_sae_is_still_no_equality_and_no_state(shown):
    assert shown["AffineEdit"] != shown["AffineEdit"].at(0.5)
    assert "_facts" not in shown["SAE"].state_dict()


NOTEBOOK = """
import warnings; warnings.simplefilter("error")
import sys, io
from interp import progress
err = io.StringIO(); sys.stderr = err
with progress.bar(10, "work") as bar:
    for _ in range(10): bar.update(1)
sys.stderr = sys.__stderr__
assert "work" in err.getvalue() and "10.0/10.0" in err.getvalue(), err.getvalue()
assert "ipywidgets" not in sys.modules and "tqdm.auto" not in sys.modules
"""


def test_a_bar_without_a_terminal_or_widgets_is_plain_text_and_warns_of_nothing():
    done = subprocess.run([sys.executable, "-c", NOTEBOOK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_silenced_bar_writes_nothing(monkeypatch):
    from interp.progress import bar

    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    with bar(10, "work", show=False) as silent:
        silent.update(10)
    assert err.getvalue() == ""
    with bar(10, "work") as loud:
        loud.update(10)
    assert re.search(r"work: 100%", err.getvalue())


def test_in_a_notebook_a_bar_fits_its_column_and_is_one_line(monkeypatch):
    """Seen through a carriage return's eyes, as a notebook's front end shows it."""
    from interp.progress import bar

    kind = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
    err, out = kind(), kind()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(sys, "stdout", out)
    with bar(10, "a rather long label of a stage") as shown:
        shown.update(10)
    assert err.getvalue() == ""  # which a notebook shows as an error
    lines = out.getvalue().split("\n")
    assert lines[1:] == [""] and all(len(line) <= 76 for line in lines[0].split("\r"))
    assert "100%" in lines[0].split("\r")[-1]
