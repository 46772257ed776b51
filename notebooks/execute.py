"""Notebooks as pairs: `NN_name.py` (percent format, the source) and `NN_name.ipynb` (what it showed when it was run).

    python notebooks/execute.py              run all of them in full and write every .ipynb (`make notebooks`)
    python notebooks/execute.py 01 03        only those whose name begins so

Each runs in a clean kernel and an empty folder, and a cell that raises, or writes more than progress bars to standard
error, ends the run. In the file that is written Plotly figures are pictures, so that a code host shows them and the
file stays small; a notebook run by hand shows them interactive.
"""

import base64
import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).parent
PLOTLY = "application/vnd.plotly.v1+json"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_WIDTH, _SCALE = 860, 1.25
_BAR = r"\d+%\|"
_DRAW = """async ([figure, width, scale]) => {
  const layout = {...figure.layout, paper_bgcolor: "#fff", plot_bgcolor: "#fff"};
  const own = {width: layout.width || width, height: layout.height || 300};
  return await Plotly.toImage({data: figure.data, layout}, {format: "png", scale, ...own});
}"""


def sources(wanted: Sequence[str] = ()) -> list[Path]:
    """The `.py` files of notebooks, in order; `wanted` are beginnings of their names."""
    found = sorted(HERE.glob("[0-9][0-9]_*.py"))
    return [path for path in found if not wanted or path.name.startswith(tuple(wanted))]


def read_source(path: Path) -> NotebookNode:
    """The notebook that a `.py` file describes, with no outputs and the same cell names every time."""
    notebook = jupytext.read(path)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02}"
        cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}
    notebook.metadata = NotebookNode(kernelspec=KERNEL, language_info={"name": "python"})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def execute(path: Path, environment: Mapping[str, str] | None = None, *, timeout: int = 900) -> NotebookNode:
    """Run a `.py` file's cells in a kernel of their own; `environment` is added to this process's."""
    notebook = read_source(path)
    own = {"PLOTLY_RENDERER": "plotly_mimetype", "PYTHONPATH": _with(HERE.parent), "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": folder}},
            extra_arguments=["--IPKernelApp.log_level=40"],  # warns of an unencrypted connection to itself
        )
        client.execute(env={**os.environ, **own, **(environment or {})})
    drop_progress(notebook)
    if said := complaints(notebook):
        raise RuntimeError(f"{path.name}: {said[0]}")
    return notebook


def _with(folder: Path) -> str:
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))


def outputs(notebook: NotebookNode) -> Iterator[NotebookNode]:
    """Every output of every cell."""
    for cell in notebook.cells:
        yield from cell.get("outputs", [])


def drop_progress(notebook: NotebookNode) -> None:
    """Take progress bars out of the outputs: printed lines that hold a percentage and a bar."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text = "".join(output.get("text", ""))
            if output.output_type == "stream" and re.search(_BAR, text):
                lines = text.replace("\r", "\n").splitlines(keepends=True)
                output.text = "".join(line for line in lines if line.strip() and not re.search(_BAR, line))
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.output_type != "stream" or output.text.strip()]


def complaints(notebook: NotebookNode) -> list[str]:
    """What cells wrote to standard error, and errors."""
    return [
        "".join(output.get("text", output.get("evalue", "")))
        for output in outputs(notebook)
        if output.output_type == "error" or output.get("name") == "stderr"
    ]


def with_pictures(notebook: NotebookNode) -> NotebookNode:
    """Plotly figures replaced by pictures of them."""
    found = [output.data for output in outputs(notebook) if PLOTLY in output.get("data", {})]
    for data, picture in zip(found, pictures([data[PLOTLY] for data in found]), strict=True):
        data.clear()
        data.update({"image/png": picture, "text/plain": "a Plotly figure, interactive when the notebook is run"})
    return notebook


def pictures(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """PNGs, in base64, of Plotly figures given as JSON values; drawn by a headless Chromium."""
    if not figures:
        return []
    from playwright.sync_api import sync_playwright
    from plotly.offline import get_plotlyjs

    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    with (
        sync_playwright() as playwright,
        contextlib.closing(playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])) as browser,
    ):
        page = browser.new_page()
        page.set_content("<!doctype html><meta charset='utf-8'>")
        page.add_script_tag(content=get_plotlyjs())
        drawn = [page.evaluate(_DRAW, [json.loads(json.dumps(figure)), _WIDTH, _SCALE]) for figure in figures]
    return [_smaller(url.partition(",")[2]) for url in drawn]


def _smaller(png: str) -> str:
    """The same picture in 256 colours: a third of the bytes."""
    import io

    from PIL import Image

    into = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(into, "png", optimize=True)
    return base64.b64encode(into.getvalue()).decode()


def main(wanted: Sequence[str]) -> None:
    """Run notebooks in full and write what they show."""
    for path in sources(wanted):
        sys.stdout.write(f"{path.stem}\n")
        nbformat.write(with_pictures(execute(path)), path.with_suffix(".ipynb"))


if __name__ == "__main__":
    main(sys.argv[1:])
