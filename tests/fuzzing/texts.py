"""Targets that are text: names, arguments, judges' answers, tables, and files of one text or one object a line."""

import contextlib
import io
import json
from pathlib import Path

from fuzzing.mutate import written
from fuzzing.registry import Prepared, target

from interp.errors import InputError


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")  # as the arguments of a program are


@target("site", "text")
def _(_: Path) -> Prepared:
    from interp.sites import Site

    def parse(data: bytes) -> None:
        site = Site.parse(_text(data))
        assert Site.parse(str(site)) == site and site.rank and repr(site)

    names = "blocks.15.hook_resid_post resid_post.15 blocks.3.attn.hook_z[5] z.3[5] hook_embed embed ln_final".split()
    return Prepared(parse, [name.encode() for name in names])


@target("place", "text")
def _(_: Path) -> Prepared:
    from saes.paired import parse_places

    def parse(data: bytes) -> None:
        places = parse_places(_text(data).split(","))
        assert parse_places(list(map(str, places))) == places

    return Prepared(parse, [b"resid_post.3", b"base:resid_post.1,chat:blocks.1.hook_resid_post"])


@target("piece_name", "text")
def _(_: Path) -> Prepared:
    from interp.pieces import Piece

    def parse(data: bytes) -> None:
        piece = Piece.parse(_text(data))
        assert Piece.parse(str(piece)) == piece and piece.folder(Path("a")) and len(piece.shards(10)) <= 10

    return Prepared(parse, [b"1/1", b" 2/4 ", b"4/4"])


@target("head_name", "text")
def _(_: Path) -> Prepared:
    from interp.attention.survey_config import parse_head

    def parse(data: bytes) -> None:
        layer, head = parse_head(_text(data))
        assert parse_head(f"{layer}.{head}") == (layer, head)

    return Prepared(parse, [b"0.0", b"5.1", b"12.30"])


@target("url", "text")
def _(_: Path) -> Prepared:
    from interp.remote import as_local, as_url

    def parse(data: bytes) -> None:
        text = _text(data)
        if (url := as_url(text)) is None:
            as_local(text)
        else:
            assert as_url(url) == url

    return Prepared(parse, [b"s3://bucket/store", b"file:///a/b", b"memory://x", b"a/b", b"s3:/bucket/store"])


@target("dtype_device", "text")
def _(_: Path) -> Prepared:
    from interp.loading import parse_device, parse_dtype

    def parse(data: bytes) -> None:
        kind, _, name = _text(data).partition(" ")
        parse_device(name) if kind == "device" else parse_dtype(name)

    return Prepared(parse, [b"device cpu", b"dtype float32", b"dtype bfloat16"])


@target("judge_answer", "text")
def _(_: Path) -> Prepared:
    from interp.judging.endpoint import read_answer
    from interp.judging.question import Question

    asked = [
        Question("Which?", ("positive", "very positive", "negative", "(a|b)*")),
        Question("How much?", ("0", "1", "2", "10"), values=(0.0, 1.0, 2.0, 10.0)),
    ]

    def parse(data: bytes) -> None:
        for question in asked:
            found = read_answer(_text(data), question)
            assert found is None or 0 <= found < len(question.options)

    return Prepared(parse, [b"positive", b"I would say: **very positive**.", b"10", b"2.5"])


@target("judge_reply", "json")
def _(folder: Path) -> Prepared:
    from interp.judging import client

    def parse(data: bytes) -> None:
        kept = client._kept(folder / "answer.json")
        assert kept is None or isinstance(kept, str)
        try:
            reply = json.loads(data)
        except (ValueError, RecursionError) as error:  # what `Client._once` makes a retry of
            raise InputError(str(error)) from None
        try:
            text, usage = client._parsed(client._checked(reply))
        except client._Retry as error:
            raise InputError(str(error)) from None
        assert isinstance(text, str)
        assert isinstance(usage, dict)

    reply = {"choices": [{"message": {"role": "assistant", "content": "yes"}}], "usage": {"prompt_tokens": 3}}
    return Prepared(parse, [written(reply), written({**reply, "answer": "yes"})], folder / "answer.json")


@target("command_line", "text", SystemExit)
def _(folder: Path) -> Prepared:
    from midlens.__main__ import parsed

    (folder / "options.toml").write_text("max_docs = 3\n")

    def parse(data: bytes) -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            parsed(_text(data).split("\n"))

    lines = ["extract\n--model\nsmollm2-135m\n--sites\nresid_post.15\n--max-tokens\n300\n--out\nx", "doctor", "bench"]
    return Prepared(parse, [line.encode() for line in lines])


@target("options_toml", "text")
def _(folder: Path) -> Prepared:
    from interp.from_text import ExtractConfig
    from interp.options_file import filled, options_text, read_options

    path = folder / "options.toml"

    def parse(_: bytes) -> None:
        values = read_options(path, ExtractConfig)
        options_text(filled(ExtractConfig, values, None))

    made = options_text(filled(ExtractConfig, {}, None))
    return Prepared(parse, [made.encode(), b'max-length = 256\nsites = ["resid_post.15"]\n'], path)


@target("puzzles_csv", "text")
def _(folder: Path) -> Prepared:
    from interp.sudoku.puzzle_files import read_csv

    path = folder / "puzzles.csv"

    def parse(_: bytes) -> None:
        rules, puzzles = read_csv(path)
        assert len(puzzles.puzzles) == len(puzzles.solutions) and puzzles.puzzles.shape[1] == rules.n_cells

    full = "1234341221434321"
    seeds = [f"puzzle,solution\n.{full[1:]},{full}\n0{full[1:]},\n", f"id,puzzle\n7,{full}\n"]
    return Prepared(parse, [seed.encode() for seed in seeds], path)


def _corpus(name: str, suffix: str, seeds: list[bytes]) -> None:
    @target(name, "jsonl" if suffix == ".jsonl" else "text")
    def _(folder: Path) -> Prepared:
        from interp.corpus import read_corpus

        path = folder / f"corpus{suffix}"

        def parse(_: bytes) -> None:
            for mode in ("raise", "replace", "skip"):
                corpus = read_corpus(path, on_invalid=mode)
                assert len(corpus) and all(document.text or document.messages for document in corpus)

        return Prepared(parse, seeds, path)


_corpus("corpus_txt", ".txt", [b"One text.\nAnd more of it.\n"])
_corpus(
    "corpus_jsonl",
    ".jsonl",
    [
        b'{"text": "one"}\n{"text": "two", "id": "b"}\n',
        b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n',
    ],
)


@target("corpus_parquet", "bytes")
def _(folder: Path) -> Prepared:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from interp.corpus import read_corpus

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["one", "two", "three"], "id": [1, 2, 3]}), sink)
    path = folder / "corpus.parquet"
    return Prepared(lambda _: read_corpus(path), [sink.getvalue().to_pybytes()], path)


@target("texts_jsonl", "jsonl")
def _(folder: Path) -> Prepared:
    from interp.steering.fit_job import read_texts

    path = folder / "texts.jsonl"

    def parse(_: bytes) -> None:
        assert all(isinstance(text, str) for text in read_texts(path))

    return Prepared(parse, [b'{"text": "one"}\n\n{"text": "two"}\n'], path)


@target("contrast_jsonl", "jsonl")
def _(folder: Path) -> Prepared:
    from interp.steering.contrast import read_contrast

    path = folder / "contrast.jsonl"
    head = {"form": "text", "source": {"name": "bad", "words": ["sad"]}, "target": {"name": "good", "description": ""}}
    rows = [
        {"text": f"{side} {split} {i}", "side": side, "template": f"t-{split}", "split": split, "pair": f"p{split}{i}"}
        for side in ("source", "target")
        for split in ("train", "held_out")
        for i in range(2)
    ]
    lines = [{"set": head}, *rows, {"text": "u", "side": "unrelated", "template": "u", "split": "train"}]

    def parse(_: bytes) -> None:
        contrast = read_contrast(path)
        turned = contrast.reversed()
        assert turned.reversed() == contrast and contrast.train.source and contrast.held_out.target
        assert all(isinstance(c.description, str) and c.name for c in contrast.concepts)

    return Prepared(parse, [b"\n".join(map(written, lines)), b"\n".join(map(written, rows))], path)


@target("templates_json", "json")
def _(folder: Path) -> Prepared:
    from interp.steering.templates import expand

    path = folder / "templates.json"
    one = {"id": "dish", "split": "train", "source": "The {dish} came {x}.", "target": "{dish} is {x}.",
           "slots": {"dish": ["stew", "curry"], "x": [["late", "soon"], "hot"]}}  # fmt: skip
    spec = {"form": "text", "source": {"name": "bad"}, "templates": [one, {"id": "o", "split": "train", "open": "Hm."}]}

    def parse(_: bytes) -> None:
        assert all(isinstance(row["text"], str) for row in expand(path) if "set" not in row)

    return Prepared(parse, [written(spec)], path)


@target("multiple_choice_jsonl", "jsonl")
def _(folder: Path) -> Prepared:
    from interp.multiple_choice import read_items

    path = folder / "items.jsonl"
    rows = [{"question": f"Q{i}?", "options": ["a", "b", "c"], "answer": i, "topic": "t"} for i in range(3)]

    def parse(_: bytes) -> None:
        assert all(item.options[item.answer] for item in read_items(path))

    return Prepared(parse, [b"\n".join(map(written, rows))], path)


@target("labelled_jsonl", "jsonl")
def _(folder: Path) -> Prepared:
    from saes.labelled import read_labelled

    path = folder / "labelled.jsonl"
    rows = [{"text": f"text {i}", "label": "ab"[i % 2], "group": f"g{i // 2}"} for i in range(12)]

    def parse(_: bytes) -> None:
        found = read_labelled(path)
        assert len(found.texts) == len(found.labels) == len(found.groups)

    return Prepared(parse, [b"\n".join(map(written, rows))], path)


@target("categories_json", "json")
def _(folder: Path) -> Prepared:
    from saes.primitives.categories import categories

    path = folder / "categories.json"

    def parse(_: bytes) -> None:
        found = categories(path)
        assert all(word.strip() for words in found.words.values() for word in words)

    return Prepared(
        parse, [written({"name": "own", "words": {"joy": ["glad", "happy day"], "fear": ["afraid"]}})], path
    )


@target("primitives_jsonl", "jsonl")
def _(folder: Path) -> Prepared:
    from saes.primitives.data import person_pairs

    path = folder / "pairs.jsonl"
    rows = [{"first": f"I go {i}.", "third": f"She goes {i}."} for i in range(3)]
    return Prepared(lambda _: person_pairs(path), [b"\n".join(map(written, rows))], path)


@target("stories_jsonl", "jsonl")
def _(folder: Path) -> Prepared:
    from saes.primitives.narrative import read_stories

    path = folder / "stories.jsonl"

    def parse(_: bytes) -> None:
        assert all(isinstance(story.text, str) for story in read_stories(path))

    return Prepared(parse, [b"".join(written({"id": f"story-{i}", "text": f"t {i}"}) + b"\n" for i in range(3))], path)


@target("chat_messages", "json")
def _(_: Path) -> Prepared:
    from toy_store import word_tokenizer

    from interp.chat import to_tokens

    tokenizer = word_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "w1 {{ m.role }} w2 {{ m.content | trim }} w3\n{% endfor %}"
    )

    def parse(data: bytes) -> None:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:  # the caller's: chats come as values
            raise InputError(str(error)) from None
        if not isinstance(value, str | list):
            raise InputError("texts come as a text or a list")
        batch = to_tokens(tokenizer, value)
        assert batch.tokens.shape == batch.template.shape and int(batch.lengths.min()) > 0

    one = [{"role": "user", "content": "w5 w6"}, {"role": "assistant", "content": " w7 "}]
    return Prepared(parse, [written(one), written("w1 w2"), written(["w1", one])])
