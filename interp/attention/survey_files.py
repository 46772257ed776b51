"""What a survey keeps of one model: parts by layer, from which it goes on, and the tables made of them.

MODEL/model.json                     name, revision, family, shape
MODEL/parts/NAME.json                the part's settings, and the reason where it was refused
MODEL/parts/NAME-LLL.json            rows of the heads of layer LLL
MODEL/parts/NAME-LLL.safetensors     arrays of that layer
MODEL/heads.csv, heads.parquet       one row per head, the parts side by side
MODEL/eigenvalues.safetensors        arrays of all layers, by name
"""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import InputError
from interp.sealing import differences, read_json, write_json, write_sealed
from interp.typed import built

Row = dict[str, Any]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Layer:
    """What is kept of a layer in JSON: numbers of each head, null where one has no value."""

    seconds: float
    rows: tuple[dict[str, int | float | bool | None], ...]


def folder_name(model: str) -> str:
    """The folder of a model: the last component of a path, else the whole name with `-` for what folders lack."""
    path = Path(model).expanduser()
    name = path.name if path.exists() else model
    return re.sub(r"[^A-Za-z0-9._-]+", "--", name).strip("-.") or "model"


class Parts:
    """The parts of one model in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "parts"

    def open(self, name: str, settings: Mapping[str, Any]) -> None:
        """Begin or go on with a part; one that was made with other settings is refused."""
        path = self.folder / f"{name}.json"
        differ = differences(self.facts(name)["settings"], settings) if path.exists() else ""
        if not path.exists() or (differ and not self.layers(name)):  # nothing would be mixed
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, {"settings": dict(settings), "refused": None})
        elif differ:
            raise InputError(
                f"{self.folder.parent} holds the part {name!r} made with other settings ({differ}); give the "
                "same settings, or another folder"
            )

    def names(self) -> list[str]:
        """Parts that were begun, in alphabetical order."""
        return sorted(p.stem for p in self.folder.glob("*.json") if not re.search(r"-\d+$", p.stem))

    def facts(self, name: str) -> dict[str, Any]:
        """Settings, and `refused`."""
        return read_json(self.folder / f"{name}.json", "part of a survey")

    def refuse(self, name: str, reason: str) -> None:
        """Record why a part cannot be had of this model."""
        write_json(self.folder / f"{name}.json", self.facts(name) | {"refused": reason})

    def layers(self, name: str) -> list[int]:
        """Layers that are done."""
        found = (re.fullmatch(rf"{re.escape(name)}-(\d+)", path.stem) for path in self.folder.glob(f"{name}-*.json"))
        return sorted(int(match[1]) for match in found if match)

    def write(self, name: str, layer: int, rows: Sequence[Row], seconds: float, arrays: Mapping[str, Any]) -> None:
        """Keep a layer; the rows last, for they say that it is done."""
        from safetensors.numpy import save

        stem = self.folder / f"{name}-{layer:03d}"
        if arrays:
            held = {key: np.ascontiguousarray(value, dtype=np.float64) for key, value in arrays.items()}
            write_sealed(stem.with_suffix(".safetensors"), save(held))
        write_json(stem.with_suffix(".json"), {"seconds": seconds, "rows": [_plain(row) for row in rows]})

    def read(self, name: str) -> tuple[list[Row], float]:
        """Rows of all layers that are done, and the seconds they took."""
        found = [_layer(self.folder / f"{name}-{layer:03d}.json") for layer in self.layers(name)]
        return [row for part in found for row in part.rows], sum(part.seconds for part in found)

    def arrays(self) -> dict[str, dict[int, np.ndarray]]:
        """Arrays of all parts by name and layer; only of layers that are done."""
        from safetensors.numpy import load_file

        found: dict[str, dict[int, np.ndarray]] = {}
        for name in self.names():
            for layer in self.layers(name):
                path = self.folder / f"{name}-{layer:03d}.safetensors"
                for key, value in load_file(path).items() if path.exists() else ():
                    found.setdefault(key, {})[layer] = value
        return found


def _layer(path: Path) -> _Layer:
    found = built(_Layer, read_json(path, "survey"), str(path))
    if not all(type(row.get(name)) is int for row in found.rows for name in ("layer", "head")):
        raise InputError(f"{path} is damaged: a row without the numbers of its layer and head; remove the file")
    return found


def joined(tables: Sequence[Sequence[Row]]) -> list[Row]:
    """Rows with the same layer and head side by side; what a table lacks is missing, not zero."""
    found: dict[tuple[int, int], Row] = {}
    for table in tables:
        for row in table:
            found.setdefault((row["layer"], row["head"]), {}).update(row)
    return [found[key] for key in sorted(found)]


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """All columns, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def write_csv(path: Path, rows: Sequence[Row]) -> Path:
    """One line per head; empty where a cell has no value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns_of(rows), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows([{name: "" if value is None else value for name, value in row.items()} for row in rows])
    write_sealed(path, text.getvalue())
    return path


def write_parquet(path: Path, rows: Sequence[Row]) -> Path:
    """The same as parquet, nulls where a cell has no value."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise InputError(f"writing {path.name} needs pyarrow: pip install 'midlens[data]'") from error
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in columns_of(rows)}), sink)
    write_sealed(path, sink.getvalue().to_pybytes())
    return path


def write_arrays(path: Path, arrays: Mapping[str, Mapping[int, np.ndarray]]) -> Path:
    """Stacked over the layers that have them, which `layers` lists; layers of one model have equal shapes."""
    from safetensors.numpy import save

    held = {name: np.stack([of[layer] for layer in sorted(of)]) for name, of in arrays.items()}
    held |= {f"{name}.layers": np.asarray(sorted(of), np.int64) for name, of in arrays.items()}
    write_sealed(path, save({name: np.ascontiguousarray(value) for name, value in held.items()}))
    return path


def _plain(row: Mapping[str, Any]) -> Row:
    """A row as JSON has it: no NaN, no tensors."""
    found: Row = {}
    for name, value in row.items():
        number = value.item() if hasattr(value, "item") else value
        found[name] = None if isinstance(number, float) and not math.isfinite(number) else number
    return found
