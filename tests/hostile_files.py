"""Attacks on the other files that are read: options, texts, steerings, adapters, results, catalogues, evaluations.

Every reader gets the same bytes that are no such file, and those with numbers and names that cannot be.
"""

from collections.abc import Callable
from pathlib import Path

from tests.hostile_samples import Attack, Open, canary, sparse

DEEP = "[" * 100_000 + "]" * 100_000
BYTES: dict[str, Callable[[Path], bytes]] = {
    "nested 100,000 deep": lambda _: DEEP.encode(),
    "objects nested 100,000 deep": lambda _: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a number of 5,000 digits": lambda _: b'{"a": ' + b"9" * 5000 + b"}",
    "a pickle that runs code": canary,
    "not UTF-8": lambda _: b'{"a": "\xff\xfe"}',
    "NULs": lambda _: b"\0" * 4096,
    "a list of lists": lambda _: b"[[], [[]]]",
    "a bare number": lambda _: b"7",
    "a bare text": lambda _: b'"evil"',
    "objects of nothing": lambda _: b"{}",
    "an object of evil": lambda _: b'{"evil": {"__class__": "os.system"}}',
    "cut short": lambda _: b'{"format": "midlens',
    "null": lambda _: b"null",
}


def _steering(path: Path) -> object:
    from interp.steering.steering import Steering

    return Steering.load(path.parent)


def _lora(path: Path) -> object:
    from interp.steering.lora import load_lora

    return load_lora(path.parent)


def _evaluation(path: Path) -> object:
    from saes.evaluation import Evaluation

    return Evaluation.load(path)


def _options(path: Path) -> object:
    from interp.options_file import read_options
    from midlens.extract import Extract

    return read_options(path, Extract)


def _catalogue(path: Path) -> object:
    from interp.sealing import read_json
    from saes.primitives.catalogue import Catalogue

    return Catalogue.from_json(read_json(path, "a catalogue of literary primitives"))


def _coverage(path: Path) -> object:
    from interp.sealing import read_json
    from saes.primitives.results import Coverage

    return Coverage.from_json(read_json(path, "a coverage of emotions"))


def _steering_evaluation(path: Path) -> object:
    from interp.steering.evaluation import SteeringEvaluation

    return SteeringEvaluation.load(path)


def _sudoku(path: Path) -> object:
    from interp.sudoku.study_files import read_result

    return read_result(path)


def _grid(path: Path) -> object:
    from saes.sweep_config import load_grids

    return load_grids(path)


def _corpus(path: Path) -> object:
    from interp.corpus import read_corpus

    return list(read_corpus(path))


def _labelled(path: Path) -> object:
    from saes.labelled import read_labelled

    return read_labelled(path)


def _items(path: Path) -> object:
    from interp.multiple_choice import read_items

    return read_items(path)


def _contrast(path: Path) -> object:
    from interp.steering.contrast import read_contrast

    return read_contrast(path)


def _templates(path: Path) -> object:
    from interp.steering.templates import expand

    return expand(path)


def _features(path: Path) -> object:
    from saes.examples import load_features

    return list(load_features(path))


def _survey(path: Path) -> object:
    from interp.attention.survey_result import ModelSurvey

    return ModelSurvey.load(path.parent)


def _puzzles(path: Path) -> object:
    from interp.sudoku.puzzle_files import read_csv

    return read_csv(path)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "steering": ("steering.json", _steering),
    "LoRA adapter": ("adapter_config.json", _lora),
    "evaluation of an SAE": ("evaluation.json", _evaluation),
    "options of a command": ("options.toml", _options),
    "catalogue of primitives": ("catalogue.json", _catalogue),
    "coverage of emotions": ("coverage.json", _coverage),
    "evaluation of steering": ("evaluation.json", _steering_evaluation),
    "result of a Sudoku study": ("result.json", _sudoku),
    "grid of a sweep": ("grid.json", _grid),
    "corpus": ("corpus.jsonl", _corpus),
    "labelled texts": ("texts.jsonl", _labelled),
    "questions": ("items.jsonl", _items),
    "contrast set": ("contrast.jsonl", _contrast),
    "templates": ("templates.json", _templates),
    "features": ("features.jsonl", _features),
    "survey of attention": ("model.json", _survey),
    "puzzles": ("puzzles.csv", _puzzles),
}
NO_ATTACK = {("grid of a sweep", "objects of nothing")}
"""A grid of nothing is the default."""


def _bytes(file: str, read: Callable[[Path], object], content: Callable[[Path], bytes]) -> Callable[[Path], Open]:
    def prepare(folder: Path) -> Open:
        path = folder / file
        path.write_bytes(content(folder))
        return lambda: read(path)

    return prepare


def _sparse(file: str, read: Callable[[Path], object]) -> Callable[[Path], Open]:
    def prepare(folder: Path) -> Open:
        sparse(folder / file, 1 << 36, b'{"a": "')
        return lambda: read(folder / file)

    return prepare


def _refused_in_words(*arguments: str) -> Open:
    """The command line: status 2 and one line on stderr count as refused."""

    def call() -> None:
        import contextlib
        import io

        from interp.errors import InputError
        from midlens.__main__ import main

        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            status = main(list(arguments))
        text = said.getvalue()
        if status == 2 and text.startswith("midlens: ") and "Traceback" not in text and "\x1b" not in text:
            raise InputError(text)
        raise RuntimeError(f"status {status}: {text!r}")

    return call


def _commands(folder: Path, name: str) -> Open:
    from tests.hostile_models import CHANGES, model_in
    from tests.hostile_stores import changed_json, store_in

    match name:
        case "store info, manifest that leads out":
            store = store_in(folder)
            changed_json(store / "manifest.json", lambda m: m["shards"][0].update(name="../../x"))
            return _refused_in_words("store", "info", str(store))
        case "store verify, manifest of a list":
            (store_in(folder) / "manifest.json").write_text("[]")
            return _refused_in_words("store", "verify", str(folder / "store"))
        case "store info, name with escape sequences":
            store = store_in(folder)
            changed_json(store / "manifest.json", lambda m: m.update(format="\x1b]0;owned\x07\x1b[2J"))
            return _refused_in_words("store", "info", str(store))
        case "extract, pickled model":
            CHANGES["weights are a pickle that runs code"](model_in(folder))
            corpus = ("--corpus", str(folder / "text.jsonl"), "--out", str(folder / "out"))
            return _refused_in_words("extract", "--model", str(folder / "model"), *corpus)
        case "extract, model with code":
            CHANGES["code in an unknown model type"](model_in(folder))
            corpus = ("--corpus", str(folder / "text.jsonl"), "--out", str(folder / "out"))
            return _refused_in_words("extract", "--model", str(folder / "model"), *corpus)
        case "options that are a pickle":
            (folder / "options.toml").write_bytes(canary(folder))
            return _refused_in_words("extract", "--config", str(folder / "options.toml"))
        case _:
            (folder / "options.toml").write_text("evil = 1\n")
            return _refused_in_words("extract", "--config", str(folder / "options.toml"))


COMMANDS = (
    "store info, manifest that leads out",
    "store verify, manifest of a list",
    "store info, name with escape sequences",
    "extract, pickled model",
    "extract, model with code",
    "options that are a pickle",
    "options that are unknown",
)


def _command(name: str) -> Callable[[Path], Open]:
    return lambda folder: _commands(folder, name)


def _linked(folder: Path) -> Open:
    """A store whose temporary file is a link to a file outside: writing it must not write there."""
    from interp.errors import InputError
    from interp.sealing import partial_name, write_json

    outside = folder.parent / "outside"
    outside.write_text("untouched")
    partial_name(folder / "manifest.json").symlink_to(outside)

    def call() -> None:
        write_json(folder / "manifest.json", {"a": 1})
        if outside.read_text() == "untouched":
            raise InputError("the link was replaced, what it leads to was left alone")

    return call


ATTACKS = [
    *(
        Attack(target, name, _bytes(file, read, content))
        for target, (file, read) in READERS.items()
        for name, content in BYTES.items()
        if (target, name) not in NO_ATTACK
    ),
    *(
        Attack(target, "a sparse file of 64 GiB", _sparse(file, read))
        for target, (file, read) in READERS.items()
        if file.endswith(".json")
    ),
    *(Attack("command line", name, _command(name)) for name in COMMANDS),
    Attack("temporary files", "a link that leads out", _linked),
]
