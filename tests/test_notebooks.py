"""Every notebook: the pair is in step, the committed outputs are clean and small, and it runs, on each model family.

Here each runs in a clean kernel on SmolLM2, and inside this process on tiny random Llama 3.1 and Gemma 2 models that
are given as a folder; both with small sizes. `make notebooks` runs them in full.
"""

import ast
import gc
import re
from functools import partial
from pathlib import Path

import nbformat
import pytest
import torch

from notebooks.execute import complaints, drop_progress, execute, outputs, pictures, read_source, sources
from tests.browser_tab import needs_chromium
from tests.tiny_models import tiny

NAMES = [path.stem for path in sources()]
FOLDER = sources()[0].parent
STREAMS = ("stdout", "stderr")
SMALL = {"MIDLENS_NOTEBOOK_SIZE": "small"}
MACHINE = re.compile(r"/(?:home|root|tmp|work|usr|opt|var|Users)/")


@pytest.fixture(scope="session")
def folders(tmp_path_factory, smollm2_hf) -> dict[str, Path]:
    """Folders of tiny random models, each with SmolLM2's tokenizer."""
    made = {}
    for family in ("llama", "gemma2"):
        made[family] = tmp_path_factory.mktemp(family)
        model = tiny(family, vocab_size=len(smollm2_hf.tokenizer), max_position_embeddings=512)
        model.save_pretrained(made[family])
        smollm2_hf.tokenizer.save_pretrained(made[family])
    return made


def test_bars_are_dropped_and_what_is_printed_beside_them_stays():
    bar = "extract:  50%|█████     | 5/10 [00:01<00:01]\rextract: 100%|██████████| 10/10 [00:02<00:00]\n"
    cells = [nbformat.v4.new_code_cell() for _ in range(3)]
    stream = {name: partial(nbformat.v4.new_output, "stream", name=name) for name in STREAMS}
    cells[0].outputs = [stream["stdout"](text=bar)]
    cells[1].outputs = [stream["stdout"](text=f"loss 3\n{bar}  indented\n"), stream["stderr"](text=bar)]
    cells[2].outputs = [stream["stderr"](text="a warning\n")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    drop_progress(notebook)
    assert [[one.text for one in cell.outputs] for cell in cells] == [[], ["loss 3\n  indented\n"], ["a warning\n"]]
    assert complaints(notebook) == ["a warning\n"]


def committed(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


@pytest.mark.parametrize("name", NAMES)
def test_a_pair_is_in_step(name):
    shown, source = committed(name), read_source(FOLDER / f"{name}.py")
    assert [(cell.cell_type, cell.source) for cell in shown.cells] == [
        (cell.cell_type, cell.source) for cell in source.cells
    ], "run make notebooks"
    code = [cell for cell in shown.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs_are_clean_and_small(name):
    shown = committed(name)
    assert complaints(shown) == []
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 800_000
    for output in outputs(shown):
        kinds = output.get("data", {"text/plain": output.get("text", "")})
        assert not [kind for kind in kinds if "plotly" in kind or "widget" in kind], "figures are kept as pictures"
        text = "".join("".join(value) for kind, value in kinds.items() if kind.startswith("text/"))
        assert not MACHINE.search(text), text
        assert not re.search(r"\w*Warning\b", text), text


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_short_cells_between_a_question_and_what_was_seen(name):
    cells = read_source(FOLDER / f"{name}.py").cells
    assert max(len(cell.source.splitlines()) for cell in cells) <= 25
    assert cells[0].cell_type == "markdown" and "?" in cells[0].source
    assert cells[1].metadata.get("tags") == ["parameters"]
    assert 'MODEL = os.environ.get("MIDLENS_NOTEBOOK_MODEL", "smollm2-135m")' in cells[1].source
    assert cells[-1].cell_type == "markdown" and "does not show" in cells[-1].source


@pytest.mark.parametrize("name", NAMES)
def test_only_public_names_are_used(name):
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    attributes = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    used = [*names, *attributes, *".".join(modules).split(".")]
    assert [x for x in used if re.match("_[^_]", x) and x not in ("_fields", "_replace")] == []


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_in_a_clean_kernel(name):
    shown = execute(FOLDER / f"{name}.py", {**SMALL, "HF_HUB_OFFLINE": "1"}, timeout=300)
    assert any(output.output_type != "stream" for output in outputs(shown))


@pytest.mark.filterwarnings("ignore:The 'utils' module:DeprecationWarning")  # sae_lens's import, hidden in a kernel
@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_on_other_families(name, family, folders, tmp_path, monkeypatch):
    """The cells, one after the other in this process; what is displayed is made and dropped."""
    for key, value in {**SMALL, "MIDLENS_NOTEBOOK_MODEL": str(folders[family])}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    code = "\n\n".join(cell.source for cell in read_source(FOLDER / f"{name}.py").cells if cell.cell_type == "code")
    names = {"__name__": "notebook"}
    with torch.enable_grad():  # and whatever the notebook sets is undone
        exec(compile(code, f"{name}.py", "exec"), names)
    names.clear()
    gc.collect()


def test_a_cell_that_writes_to_standard_error_is_found(tmp_path):
    source = tmp_path / "99_wrong.py"
    source.write_text('# %%\nimport warnings\nwarnings.warn("look here")\n')
    with pytest.raises(RuntimeError, match=r"99_wrong\.py: .*look here"):
        execute(source)


@needs_chromium
def test_a_figure_becomes_a_picture():
    import base64
    import io

    from PIL import Image

    hidden, full = {"visible": False}, {"l": 0, "r": 0, "t": 0, "b": 0, "pad": 0}
    layout = {"height": 200, "xaxis": hidden, "yaxis": hidden | {"range": [0, 2]}, "margin": full, "bargap": 0}
    bars = {"data": [{"type": "bar", "y": [1, 2], "marker": {"color": "#ff0000"}}], "layout": layout}
    (png,) = pictures([bars])
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        width, height = picture.size
        red = sum(r > 200 > 60 > g for r, g, _ in picture.convert("RGB").get_flattened_data())
    assert width == 1075 and height == 250  # 860 by 200 at a scale of 1.25
    assert red / (width * height) == pytest.approx(0.75, abs=0.01)
