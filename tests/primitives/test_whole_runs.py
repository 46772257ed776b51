"""Whole runs of `midlens primitives` on a tiny model: what is said before, on the way and after, what is refused, what
is lost. Judges are behind a real endpoint on this machine, which counts what it is asked."""

import json
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from interp.errors import InputError
from interp.sealing import digest
from midlens.__main__ import main
from saes.primitives.categories import categories
from saes.primitives.options import PrimitivesConfig
from saes.primitives.pipeline import run_primitives
from saes.primitives.results import Coverage
from tests.chat_endpoint import ChatServer, serving
from tests.primitives.tiny_runs import digested, flags, options, save_model, save_sae

Captured = pytest.CaptureFixture[str]


class Whole(NamedTuple):
    """An undisturbed run by command: where model and SAE lie, its folder, what it said, what it asked."""

    root: Path
    out: Path
    said: list[str]
    asked: list[str]
    port: int

    def options(self, out: Path, **other: Any) -> dict[str, Any]:
        return options(self.root, out, f"http://127.0.0.1:{self.port}/v1", **other)

    def coverage(self) -> Coverage:
        return Coverage.from_json(json.loads((self.out / "coverage.json").read_text()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    root, said = tmp_path_factory.mktemp("whole"), []
    save_model(root / "llama")
    save_sae(root / "sae")
    with serving(ChatServer(digested)) as server:
        run_primitives(PrimitivesConfig(**options(root, root / "run", server.url)), say=said.append)
        return Whole(root, root / "run", said, [digest(body) for body in server.seen], server.server_address[1])


@pytest.fixture
def unfinished(whole: Whole, tmp_path: Path) -> Path:
    """A copy of the run that lacks its end."""
    out = tmp_path / "run"
    shutil.copytree(whole.out, out)
    for name in ("coverage.json", "report.html"):
        (out / name).unlink()
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the times, to which a refused call adds its own."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
            and p.name not in ("timings.json", ".lock")}  # fmt: skip


def refused(capsys: Captured, given: dict[str, Any], message: str) -> str:
    """By the function and by the command, which says the same in one line and ends with 2; returns what is printed."""
    with pytest.raises(InputError, match=message) as found:
        run_primitives(PrimitivesConfig(**given))
    capsys.readouterr()
    assert main(["primitives", *flags(given)]) == 2
    out, err = capsys.readouterr()
    assert str(found.value) in err and "Traceback" not in err and err.count("\n") == 1
    return out


def page(out: Path) -> str:
    return (out / "report.html").read_text()


def table(html: str, title: str) -> list[list[str]]:
    (body,) = re.findall(rf"<caption>{re.escape(title)}.*?<tbody>(.*?)</tbody>", html, re.S)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", body, re.S)]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


# What is said


def test_the_plan_is_said_before_any_work(whole: Whole):
    begin = next(i for i, line in enumerate(whole.said) if line.startswith("[1/7]"))
    plan = {line[:13].strip(): line[13:] for line in whole.said[:begin]}
    assert list(plan) == ["model", "sae", "emotions", "memory", "texts", "judge calls", "paid judges", "lens",
                          "writing", "budget", "state"]  # fmt: skip
    assert re.match(r"at most about [\d.]+ MiB \(model .*, unembedding .*SAE and an untrained one", plan["memory"])
    assert "minutes here" in plan["lens"] and "minutes here" in plan["writing"]
    low, high = (int(n.replace(",", "")) for n in re.match(r"([\d,]+) to ([\d,]+)", plan["judge calls"]).groups())
    assert low < high and len(whole.asked) <= high
    assert "answers are kept, none is asked for twice" in plan["paid judges"] and "a, b at http" in plan["paid judges"]


def test_the_page_says_what_was_cut_what_is_unconfirmed_and_which_words_count(whole: Whole):
    html = page(whole.out)
    facts = json.loads((whole.out / "catalogue.json").read_text())["facts"]
    rows = {row[0]: row[1:] for row in table(html, "Words: ")}
    lost = facts["words_without_token"]
    assert set(rows) == {*categories().names, "first person", "second person", "third person"}
    assert sum(int(row[1]) for row in rows.values()) == sum(map(len, lost.values())) > 0
    for name, words in lost.items():
        assert rows[name][2] == ", ".join(words)
    assert "Without a significant naming-gate" in html and "Cut to the time there was: trials: 3 of 24" in html
    n = sum(map(len, lost.values()))
    used = sum(one["usable"] for one in facts["words"].values())
    assert (
        f"      {n} of {n + used} words have no token of their own and are left out; the page lists them" in whole.said
    )


def test_what_the_endpoint_took_is_said_and_on_the_page(whole: Whole):
    n = len(whole.asked)
    used = {"answers": n, "prompt tokens": 7 * n, "completion tokens": 2 * n}
    assert f"the endpoint's part: {n} answers, {7 * n} prompt tokens, {2 * n} completion tokens" in whole.said
    (part,) = re.findall(r"<h3>Endpoint</h3><dl>(.*?)</dl>", page(whole.out))
    found = dict(zip(*(re.findall(rf"<{tag}>(.*?)</{tag}>", part) for tag in ("dt", "dd")), strict=True))
    assert {name: int(value.replace(",", "")) for name, value in found.items()} == used


# Endpoints


def test_an_endpoint_that_nobody_answers_at_is_refused_before_work(whole: Whole, tmp_path: Path, capsys: Captured):
    given = options(whole.root, tmp_path / "run", f"http://127.0.0.1:{free_port()}/v1")
    message = r"no answer from the endpoint http.*where the judges a, b should be \(.*refused.*Start it or give "
    printed = refused(capsys, given, message + r"another address \(--endpoint\); nothing has been done yet")
    assert not (tmp_path / "run").exists() and "judge calls" in printed and "[1/7]" not in printed


class _Locked(BaseHTTPRequestHandler):
    """Wants the key "right"."""

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(404 if self.headers["Authorization"] == "Bearer right" else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()


def test_a_key_that_is_missing_or_not_accepted_is_refused_before_work(
    whole: Whole, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
):
    from saes.primitives.options import check_endpoint

    monkeypatch.delenv("TINY_KEY", raising=False)
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), _Locked)) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        given = options(whole.root, tmp_path / "run", url)
        refused(capsys, given, r"asks for a key \(status 401\), and no key was given\. Name the environment variable")
        given |= {"endpoint_key": "TINY_KEY"}
        refused(capsys, given, "the environment variable TINY_KEY, for the key of http.*, is not set")
        monkeypatch.setenv("TINY_KEY", "wrong")
        refused(capsys, given, "and the key of TINY_KEY is not accepted")
        monkeypatch.setenv("TINY_KEY", "right")
        check_endpoint(PrimitivesConfig(**given))
    assert not (tmp_path / "run").exists()


def test_an_endpoint_that_dies_twice_is_paid_once_for_every_answer(
    whole: Whole, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
):
    """Once among the scenes of known emotion, once amid the search; the third call ends as if nothing had been."""
    waits: list[float] = []
    monkeypatch.setattr("interp.judging.client.time", SimpleNamespace(sleep=waits.append))
    port, out = free_port(), tmp_path / "run"
    words = ["primitives", *flags(options(whole.root, out, f"http://127.0.0.1:{port}/v1"))]
    asked: list[str] = []
    for last in (20, 50):
        with serving(ChatServer(digested, port=port, last=last)) as server:
            assert main(words) == 2
            asked += [digest(body) for body in server.seen]
        err = capsys.readouterr().err
        assert "gave no answer in 6 tries" in err and "run the same again once it answers" in err
        assert waits and not (out / "report.html").exists()
        assert len(list((out / "answers").rglob("*.json"))) == len(asked), "every answer is kept"
    assert (out / "effort.json").exists(), "the second time, the search had begun"
    with serving(ChatServer(digested, port=port)) as server:
        assert main(words) == 0
        last_asked = [digest(body) for body in server.seen]
    assert last_asked and len({*asked, *last_asked}) == len(asked) + len(last_asked), "no request was answered twice"
    assert sorted(asked + last_asked) == sorted(whole.asked)
    assert (out / "coverage.json").read_bytes() == (whole.out / "coverage.json").read_bytes()


def test_a_finished_run_needs_no_endpoint(whole: Whole, tmp_path: Path, capsys: Captured):
    shutil.copytree(whole.out, tmp_path / "run")
    assert main(["primitives", *flags(whole.options(tmp_path / "run"))]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "run" / "report.html")
    assert contents(tmp_path / "run").keys() == contents(whole.out).keys()


def test_nonsense_is_a_miss_and_is_said(whole: Whole, tmp_path: Path, capsys: Captured):
    """One judge of two talks nonsense; words of several tokens count by their first."""

    def reply(body: dict[str, Any]) -> str:
        return digested(body) if body["model"] == "a" else "I would rather not say."

    with serving(ChatServer(reply)) as server:
        given = options(whole.root, tmp_path / "run", server.url, multi_token="first")
        assert main(["primitives", *flags(given), "--json"]) == 0
    out, err = capsys.readouterr()
    coverage = Coverage.from_json(json.loads((tmp_path / "run" / "coverage.json").read_text()))
    samples = [one for cell in coverage.cells for one in cell.samples]
    n = len(samples)
    assert n and all(one.votes["b"] is None and one.yes["b"] is None for one in samples)
    for condition in (one for cell in coverage.cells for one in cell.conditions):
        own = [one for one in samples if one.condition == condition.name]
        assert (condition.failures, condition.answers) == (len(own), 2 * len(own)) and not condition.strict
        assert condition.hits == sum(one.votes["a"] == "joy" for one in own)
    assert json.loads(out)["figures"]["unusable"] == 2 * n
    assert f"unusable answers (not readable, or naming no option), each a miss: b {2 * n} of {2 * n}" in err
    assert (
        "      b: 25 of 25 answers about them were unusable (not readable, or naming no option); each is a miss" in err
    )
    html = page(tmp_path / "run")
    assert f"could not be read or named no option: b ({2 * n} of {2 * n}). Each counts as a miss" in html
    rows = {row[0]: row[1:4] for row in table(html, "Each judge")}
    assert rows == {"a": [str(n), "0", "0"], "b": [str(n)] * 3}
    assert not any("unusable" in line for line in whole.said), "nothing of it where all can be read"
    check_first_tokens(tmp_path / "run", err)


def check_first_tokens(out: Path, said: str) -> None:
    """Said, listed in the catalogue and on the page: words of several tokens that count by their first."""
    facts = json.loads((out / "catalogue.json").read_text())["facts"]
    first, lost = facts["words_by_first_token"], facts["words_without_token"]
    count = sum(map(len, first.values()))
    n = sum(one["usable"] for one in facts["words"].values()) + sum(map(len, lost.values()))
    assert count and all(" " in word for words in first.values() for word in words)
    assert f"{count} of {n} words are several tokens and count by their first; the page lists them" in said
    rows = {row[0]: row[2] for row in table(page(out), "Words: ")}
    assert all(rows[name] == ", ".join(words) for name, words in first.items())
    assert f"have a token of their own in this model and count, {count} count by their first token" in page(out)


# SAEs of elsewhere


@contextmanager
def in_place_of(folder: Path, **made: Any) -> Iterator[None]:
    """Another SAE under the same path, for a while."""
    kept = folder.with_name("kept")
    folder.rename(kept)
    try:
        save_sae(folder, **made)
        yield
    finally:
        shutil.rmtree(folder)
        kept.rename(folder)


@pytest.mark.parametrize(
    ("made", "asked", "message"),
    [
        ({"model_name": "google/gemma-2-9b-it"}, {}, r"was made for the model google/gemma-2-9b-it, and is asked to "
         r"work on .*llama\. Give the model it was made for, or insist \(force=True, --force\)"),
        ({"hook_name": "blocks.0.hook_resid_post"}, {"site": "resid_post.1"}, r"made for the site blocks\.0\.hook_"
         r"resid_post, and is asked to work on blocks\.1\.hook_resid_post\. Leave the site out \(--site\), or give an"),
        ({"d": 40}, {}, r"sae reads activations of width 40, .*llama has width 48\. Give an SAE that was trained on"),
    ],
    ids=["model", "site", "width"],
)  # fmt: skip
def test_an_sae_of_elsewhere_is_refused_and_nothing_is_lost(
    whole: Whole, unfinished: Path, capsys: Captured, made: Any, asked: Any, message: str
):
    """In the place of the one that the run was begun with, and from the beginning."""
    before = contents(unfinished)
    with in_place_of(whole.root / "sae", **made):
        printed = refused(capsys, whole.options(unfinished, **asked), message)
        assert contents(unfinished) == before and "[1/7]" not in printed
        new = unfinished.with_name("new")
        refused(capsys, whole.options(new, **asked), message)
        assert not new.exists()


def test_other_weights_under_the_same_name_are_refused_and_the_run_goes_on_with_its_own(
    whole: Whole, unfinished: Path, capsys: Captured
):
    before = contents(unfinished)
    with in_place_of(whole.root / "sae", seed=1):
        refused(capsys, whole.options(unfinished), r"the SAE .*sae has other weights than when .*run was begun, and "
                "results of both would mix. Put the earlier files back, or give another folder")  # fmt: skip
    assert contents(unfinished) == before
    run_primitives(PrimitivesConfig(**whole.options(unfinished)))  # all answers are there: nobody is asked
    assert (unfinished / "coverage.json").read_bytes() == (whole.out / "coverage.json").read_bytes()


def test_another_sae_in_the_same_folder_is_refused(whole: Whole, unfinished: Path, tmp_path: Path, capsys: Captured):
    before, other = contents(unfinished), save_sae(tmp_path / "other", seed=1)
    refused(capsys, whole.options(unfinished, sae=str(other)), r"holds a run with other options \(sae: .*sae' there, "
            r".*other' asked for\)\. Give the same options to go on with it, or another folder with --out")  # fmt: skip
    assert contents(unfinished) == before


def test_a_renamed_copy_of_the_model_is_let_through_by_force(whole: Whole, tmp_path: Path, capsys: Captured):
    made = save_sae(tmp_path / "sae", model_name="google/gemma-2-9b-it")
    given = whole.options(tmp_path / "run", sae=str(made))
    refused(capsys, given, "made for the model google/gemma-2-9b-it")
    assert main(["primitives", *flags(given), "--force", "--dry-run"]) == 0
    assert "64 features" in capsys.readouterr().out
    assert PrimitivesConfig(**given, force=True).facts() == PrimitivesConfig(**given).facts(), "a begun run may go on"


# Words and emotions


def test_unknown_emotions_are_refused_with_those_there_are(whole: Whole, tmp_path: Path, capsys: Captured):
    given = whole.options(tmp_path / "run", emotions=("joy", "hiraeth"))
    printed = refused(capsys, given, "unknown emotion 'hiraeth' in cowen-keltner-2017; known: " + ", ".join(
        categories().names) + ", or all")  # fmt: skip
    assert printed == "" and not (tmp_path / "run").exists()


def test_an_empty_word_list_is_refused(whole: Whole, tmp_path: Path, capsys: Captured):
    lists = {name: list(words) for name, words in categories().words.items()}
    (tmp_path / "words.json").write_text(json.dumps(lists | {"awe": []}))
    given = whole.options(tmp_path / "run", words=tmp_path / "words.json")
    printed = refused(capsys, given, r"words\.json: expected a list of words for 'awe', none of them empty, got \[\]")
    assert printed == "" and not (tmp_path / "run").exists()


def test_a_list_without_a_single_token_is_refused_before_an_sae_is_trained(
    whole: Whole, tmp_path: Path, capsys: Captured
):
    lists = {name: list(words) for name, words in categories().words.items()}
    (tmp_path / "words.json").write_text(json.dumps(lists | {"awe": ["wonder struck", "breath taking"]}))
    given = {"model": str(whole.root / "llama"), "words": tmp_path / "words.json", "out": tmp_path / "run",
             "site": "resid_post.1"}  # fmt: skip
    refused(capsys, given, r"no token stands for any word of 'awe' \(left out: wonder struck, breath taking\)\. Add "
            r"words that are single tokens of this model \(words, --words\), or take first tokens "
            r"\(multi_token=\"first\", --multi-token first\)")  # fmt: skip
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"config.json", "timings.json", ".lock"}
