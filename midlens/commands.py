"""The table of commands: what `midlens --help` lists, and where each is. Nothing is imported before it is asked for.

A new command is one row here and a class made from `midlens.console.Command` (or `Planned`).
"""

import dataclasses
import functools
import importlib
import operator
from typing import Annotated, Any, NamedTuple

from interp.errors import InputError
from midlens.console import Command


class Entry(NamedTuple):
    """One command: its words behind `midlens`, its class as `module:class`, and a line about it."""

    words: tuple[str, ...]
    target: str
    summary: str

    @property
    def name(self) -> str:
        """Its words in one."""
        return " ".join(self.words)

    def load(self) -> type[Command]:
        """Its class."""
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


def _entry(words: str, target: str, summary: str) -> Entry:
    return Entry(tuple(words.split()), f"midlens.{target}", summary)


TABLE: dict[str, tuple[Entry, ...]] = {
    "data and activations": (
        _entry("extract", "extract:Extract", "Run a model over text and store activations."),
        _entry("store", "store:Store", "Describe an activation store, or compare it with its checksums."),
        _entry("parity", "parity:Parity", "Compare every site of a model with independent implementations."),
    ),
    "sparse autoencoders": (
        _entry("discover", "discover:Discover", "From a model and text to a trained, evaluated, readable SAE."),
        _entry("train", "train:Train", "Train an SAE from an activation store, or straight from a model."),
        _entry("sweep", "sweep:Sweep", "Train many SAEs from one read of the rows, and compare them."),
        _entry("evaluate", "evaluate:Evaluate", "Evaluate an SAE on held-out activations and text."),
        _entry("primitives", "primitives:Primitives", "Features that name emotions, recipes that write them, judged."),
    ),
    "attention": (
        _entry("attention survey", "attention:Survey", "Routing and filtering of every head of one or more models."),
        _entry(
            "attention surgery", "attention:SurgeryCommand", "Perplexity against what is kept of attention's parts."
        ),
        _entry("attention train", "attention:TrainTwin", "Train a twin with S-D, standard or ELU attention."),
        _entry("attention cascade", "attention:Cascade", "Compare trained twins: ranks by layer, linearised layers."),
    ),
    "steering": (
        _entry("steer fit", "steer:Fit", "Fit a steering from contrasting texts."),
        _entry("steer apply", "steer:Apply", "Generate from prompts under a steering."),
        _entry("steer evaluate", "steer:Evaluate", "Measure steerings beside baselines; one page."),
        _entry("steer fold", "steer:Fold", "Write a steering into weights, or into a LoRA adapter."),
    ),
    "sudoku": (
        _entry("sudoku generate", "sudoku:Generate", "Puzzles with one solution each, and traces that solve them."),
        _entry("sudoku train", "sudoku:Train", "Train a solver and let it solve unseen puzzles."),
        _entry("sudoku probe", "sudoku:Probe", "Probe solvers for what they hold of the board, with controls."),
        _entry("sudoku intervene", "sudoku:Intervene", "Patch along the probes' directions."),
        _entry("sudoku circuit", "sudoku:Circuit", "Heads and neurons that choose the move."),
        _entry("sudoku report", "sudoku:Report", "One page of results."),
        _entry("sudoku demo", "sudoku:Demo", "All of it on two 4x4 solvers, in minutes on two cores."),
    ),
    "this machine": (
        _entry("bench", "bench:Bench", "How near this machine's limit extraction and SAE steps run."),
        _entry("doctor", "doctor:Doctor", "What is installed, what this machine can do, and what is wrong."),
        _entry("completion", "completion:Completion", "A script that lets a shell complete commands and options."),
    ),
}

STATUS = "Exit status: 0 done, 1 a check failed, 2 bad input, 130 interrupted (the same command again goes on)."


def entries() -> list[Entry]:
    """All commands, in the order of the table."""
    return [entry for group in TABLE.values() for entry in group]


def find(arguments: list[str]) -> Entry | None:
    """The command that arguments begin with; `None` where they ask for a list of commands (`contents`)."""
    for entry in entries():
        if tuple(arguments[: len(entry.words)]) == entry.words:
            return entry
    words = arguments[: next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))]
    inside = [entry for entry in entries() if entry.words[: len(words)] == tuple(words)]
    if inside and all(option in ("-h", "--help") for option in arguments[len(words) :]):
        return None
    if not words and arguments:
        raise InputError(f"{arguments[0]!r} stands before the command; `midlens --help` lists commands")
    of = [entry for entry in entries() if words and entry.words[0] == words[0]]
    names = list(dict.fromkeys(entry.name if of else entry.words[0] for entry in of or entries()))
    raise InputError(f"there is no command {' '.join(words[:2] if of else words[:1])!r}; there are {', '.join(names)}")


def contents(under: str | None = None) -> str:
    """The list of commands, by subject: all of them, or those of one subject."""
    usage = f"usage: midlens {under or 'COMMAND'} {'COMMAND ' if under else ''}[OPTIONS]"
    width = max(len(entry.name) for entry in entries()) + 2
    parts = [
        usage,
        "" if under else "\nA mechanistic-interpretability toolkit: activations, SAEs, attention, steering.\n",
    ]
    for subject, group in TABLE.items():
        listed = [entry for entry in group if under in (None, entry.words[0])]
        if listed:
            parts.append(f"{subject}:")
            parts += [f"  {entry.name.ljust(width)}{entry.summary}" for entry in listed]
            parts.append("")
    parts += ["Options, an example and the JSON of one: midlens COMMAND --help", STATUS]
    return "\n".join(parts) + "\n"


def options() -> object:
    """All commands in the one type from which tyro makes parsers, and so completions."""
    import tyro

    loaded = {entry: entry.load() for entry in entries()}
    below: dict[str, list[Any]] = {}
    for entry, kind in loaded.items():
        named = Annotated[kind, tyro.conf.subcommand(entry.words[-1], description=entry.summary)]
        below.setdefault(entry.words[0], []).append(named)
    chosen: list[Any] = []
    for word, kinds in below.items():
        if len(kinds) == 1:
            chosen += kinds
            continue
        inside = tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[functools.reduce(operator.or_, kinds)]]
        group = dataclasses.make_dataclass(word.title(), [("command", inside)])
        chosen.append(Annotated[group, tyro.conf.subcommand(word)])
    return functools.reduce(operator.or_, chosen)
