"""What all commands have in common: help, examples, JSON, configuration files, exit codes, completion."""

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from interp.errors import InputError
from interp.options_file import options_text, read_options
from midlens import console
from midlens.__main__ import main, parsed
from midlens.commands import TABLE, Entry, entries, find
from midlens.console import MECHANISM, Command, Planned

ALL = pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)


def example(entry: Entry) -> list[str]:
    """The words of a command's example, `midlens` left out."""
    first, *words = shlex.split(entry.load().example)
    assert first == "midlens"
    return words


def test_help_is_a_table_of_contents(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    at = [lines.index(f"{subject}:") for subject in TABLE]
    assert at == sorted(at) and err == "" and max(map(len, lines)) <= 120
    for subject, group in TABLE.items():
        start = lines.index(f"{subject}:") + 1
        listed = lines[start : start + len(group)]
        assert [line.split("  ")[1] for line in listed] == [entry.name for entry in group]
        assert all(line.endswith(entry.summary) for line, entry in zip(listed, group, strict=True))
    for word in ("Exit status: 0 done, 1 a check failed, 2 bad input, 130 interrupted", "--help"):
        assert word in out
    assert main(["steer"]) == 0
    part = capsys.readouterr().out
    assert "steer fold" in part and "sudoku demo" not in part


@ALL
def test_every_help_has_an_example_that_parses(entry: Entry, capsys: pytest.CaptureFixture[str]):
    words = example(entry)
    assert tuple(words[: len(entry.words)]) == entry.words
    assert type(parsed(words)) is entry.load()
    with pytest.raises(SystemExit) as ended:
        main([*entry.words, "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and f"  {entry.load().example}\n" in out
    assert "--json" in out and "Exit status: 0 done" in out and "With --json: " in out
    assert ("--dry-run" in out) == issubclass(entry.load(), Planned)


def test_what_costs_time_can_be_planned():
    costly = "discover extract train sweep evaluate bench".split()
    costly += ["attention survey", "steer fit", "steer evaluate", "sudoku demo"]
    planned = {entry.name for entry in entries() if issubclass(entry.load(), Planned)}
    assert planned >= set(costly)
    for name in planned:
        kind = next(entry.load() for entry in entries() if entry.name == name)
        assert kind.plan is not Planned.plan, name


@ALL
def test_a_file_of_options_equals_flags(entry: Entry, tmp_path: Path):
    """The example, and every option in turn set to another value than its default: flags, file, written file."""
    command = parsed(example(entry))
    path = tmp_path / "run.toml"
    path.write_text(options_text(command, without=MECHANISM))
    assert parsed([*entry.words, "--config", str(path)]) == command
    other, flags = command, []
    for name, value in changes(command):
        try:
            other = dataclasses.replace(other, **{name: value})
        except InputError:
            continue  # options that exclude each other
        flags += as_flags(other, name)
    path.write_text(options_text(other, without=MECHANISM))
    assert parsed([*entry.words, f"--config={path}"]) == other
    if flags:
        assert other != command and parsed([*example(entry), *flags]) == other


def changes(command: Command) -> Any:
    """(name, another value) for every option whose kind is plain."""
    for field in dataclasses.fields(command):
        value = getattr(command, field.name)
        if field.name in MECHANISM or "Positional" in str(field.type):
            continue
        if isinstance(value, bool):
            yield field.name, not value
        elif isinstance(value, int):
            yield field.name, value + 1
        elif isinstance(value, float):
            yield field.name, value / 2 + 0.01
        elif isinstance(value, Path):
            yield field.name, Path('an "odd" \\ name')
        elif isinstance(value, str) and "Literal" not in str(field.type):
            yield field.name, "other"
        elif value == () and "tuple[str" in str(field.type):
            yield field.name, ("a", "b c")


def as_flags(command: Command, name: str) -> list[str]:
    """The option as flags."""
    (field,) = (one for one in dataclasses.fields(command) if one.name == name)
    value, flag = getattr(command, name), "--" + name.replace("_", "-")
    if isinstance(value, bool):
        if "None" in str(field.type):
            return [flag, str(value)]
        return [flag if value else "--no-" + name.replace("_", "-")]
    return [flag, *map(str, value)] if isinstance(value, tuple) else [flag, str(value)]


def test_flags_win_over_the_file_and_nested_tables_reach_nested_options(tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text('out = "a"\nk = [2, 4]\nloss-tokens = 7\n[base]\nlr = 1e-3\nbatch_size = 5\n')
    plain = parsed(["sweep", "--out", "a", "--k", "2", "4", "--loss-tokens", "7", "--base.lr", "1e-3",
                    "--base.batch-size", "5"])  # fmt: skip
    assert parsed(["sweep", "--config", str(path)]) == plain
    won = parsed(["sweep", "--config", str(path), "--out", "b", "--base.batch-size", "6"])
    assert (won.out, won.base.batch_size, won.base.lr, won.k) == (Path("b"), 6, 1e-3, (2, 4))  # pyright: ignore


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("widht = 3", "there is no option 'widht'; known: device_map, max_memory,"),
        ("[base]\nwidht = 3", "there is no option 'base.widht'; known:"),
        ("json = true", "there is no option 'json'"),
        ("seeds = ['1']", "seeds[0] is a whole number, got '1'"),
        ("seeds = 1", "seeds is a list, each a whole number, got 1"),
        ("loss_tokens = true", "loss_tokens is a whole number, got True"),
        ("architectures = ['best']", "architectures[0] is one of 'topk', "),
        ("loss-tokens = 1\nloss_tokens = 2", "'loss_tokens' is given twice"),
        ("loss_tokens = ", "is no TOML: "),
    ],
)
def test_files_of_options_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str):
    (tmp_path / "run.toml").write_text(content)
    assert main(["sweep", "--out", "x", "--config", str(tmp_path / "run.toml")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.startswith("midlens: --config ") and err.count("\n") == 1


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]):
    assert main(["extract", "--config", "gone.toml"]) == 2
    assert "--config gone.toml: No such file" in capsys.readouterr().err


def test_the_present_options_are_written_and_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "run.toml"
    given = ["extract", "--out", "runs/x", "--sites", "resid_post.3", "--max-tokens", "9"]
    assert main([*given, "--write-config", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n" and parsed(["extract", "--config", str(path)]) == parsed(given)
    assert main([*given, "--write-config", "-"]) == 0
    assert capsys.readouterr().out == path.read_text()
    assert read_options(path, find(given).load(), without=MECHANISM)["max_tokens"] == 9  # pyright: ignore


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chatty(Command):
    """A command that prints, as libraries do."""

    example: ClassVar[str] = "midlens chatty"

    def run(self) -> int:
        sys.stdout.write("a library speaks\n")
        console.say("for people")
        return console.finish(Path("a"), Path("b"), figures={"x": float("nan"), "y": 2, "z": Path("q")}, status=1)


def test_under_json_only_the_result_is_on_standard_output(capsys: pytest.CaptureFixture[str]):
    from midlens.__main__ import perform

    assert perform(Chatty(), "chatty") == 1
    out, err = capsys.readouterr()
    assert out == f"a library speaks\nfor people\n{Path('a').resolve()}\n{Path('b').resolve()}\n" and err == ""
    assert perform(Chatty(json=True), "chatty") == 1
    out, err = capsys.readouterr()
    assert err == "a library speaks\nfor people\n"
    paths = [str(Path(name).resolve()) for name in "ab"]
    figures = {"x": None, "y": 2, "z": "q"}
    assert json.loads(out) == {"command": "chatty", "status": 1, "path": paths[1], "paths": paths, "figures": figures}
    assert out.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["extrct"], "there is no command 'extrct'; there are extract, store, parity,"),
        (["steer", "fti"], "there is no command 'steer fti'; there are steer fit, steer apply,"),
        (["--json", "extract"], "'--json' stands before the command"),
    ],
)
def test_commands_that_are_not_there(capsys: pytest.CaptureFixture[str], given: list[str], said: str):
    assert main(given) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1


def test_exit_codes_of_the_real_process(tmp_path: Path):
    def status(*given: str) -> int:
        return subprocess.run([sys.executable, "-m", "midlens", *given], capture_output=True).returncode

    assert status("--help") == 0
    assert status("store", "info", str(tmp_path)) == 2


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_the_bash_script_completes(tmp_path: Path):
    script = tmp_path / "midlens.bash"
    written = subprocess.run([sys.executable, "-m", "midlens", "completion", "bash"], capture_output=True, text=True)
    assert written.returncode == 0 and written.stderr == ""
    script.write_text(written.stdout)

    asked = ["ste", "steer f", "extract --max", "extract --store-dtype bf"]
    lines = [
        f"COMP_WORDS=(midlens {words}); COMP_CWORD={len(words.split())}; COMPREPLY=(); $F; echo ${{COMPREPLY[@]}}"
        for words in asked
    ]
    head = f"source {shlex.quote(str(script))}; F=$(complete -p midlens | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
    done = subprocess.run(["bash", "-c", "\n".join([head, *lines])], capture_output=True, text=True)
    found = [set(line.split()) for line in done.stdout.splitlines()]
    most = {"--max-tokens", "--max-length", "--max-memory"}
    assert found == [{"steer"}, {"fit", "fold"}, most, {"bfloat16"}], done.stderr


@pytest.mark.parametrize(("shell", "sign"), [("zsh", "#compdef midlens"), ("fish", "complete --no-files --command")])
def test_scripts_for_other_shells(capsys: pytest.CaptureFixture[str], shell: str, sign: str):
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert sign in out and "survey" in out


def test_importing_the_table_is_light():
    code = "import sys, midlens.commands; print([name for name in ('tyro', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n" and done.stderr == ""
