"""Texts, their cost and the effect on neutral text: values against independent computations."""

import numpy as np
import pytest
import torch

from interp.batching import Batch
from interp.corpus import Document
from interp.effects import compare
from interp.errors import InputError
from interp.sites import Site
from interp.steering.generation import Writing, generate_texts
from interp.steering.neutral import NeutralText, neutral_effect, prompted_effect
from interp.steering.prompts import Prompt, encode
from interp.steering.records import Records
from interp.steering.text_quality import continuation_losses, repetition, zlib_ratio

SITE = Site.parse("resid_post.10")
DOCUMENTS = [
    Document(f"d{i}", f"Number {i} of the notes says that " + "rain falls on the hills. " * 6) for i in range(6)
]


def test_repetition_counts_ngrams_seen_before():
    assert repetition("a b c d e f") == 0
    assert repetition("one two three one two three") == pytest.approx(1 / 4)  # of 4 trigrams one is a repeat
    assert repetition("no No NO no no") == pytest.approx(2 / 3)
    assert repetition("two words") == 0
    with pytest.raises(InputError, match="1 word or more"):
        repetition("x", n=0)


def test_loops_compress_and_prose_does_not():
    prose = "The ferry left the harbour before dawn, and nobody on the quay had thought to wave; gulls circled."
    assert zlib_ratio("ha " * 40) < 0.2 < 0.7 < zlib_ratio(prose)
    assert zlib_ratio("") == 1


def test_the_loss_of_a_continuation_is_that_of_one_whole_sequence(smollm2):
    texts = ["The capital of France is", "Once upon a time there"]
    batch = smollm2.to_tokens(texts)
    new = torch.tensor([[260, 1743, 30], [436, 253, 0]])
    counts = torch.tensor([3, 2])
    found = continuation_losses(smollm2, batch.tokens, batch.lengths, new, counts)
    for row in range(2):
        n, k = int(batch.lengths[row]), int(counts[row])
        whole = torch.cat([batch.tokens[row, :n], new[row, :k]])[None]
        with torch.no_grad():
            log_p = torch.log_softmax(smollm2.hf(whole).logits[0].double(), -1)
        expected = -sum(float(log_p[n - 1 + i, new[row, i]]) for i in range(k))
        assert float(found[row]) == pytest.approx(expected, rel=1e-4)


def test_texts_do_not_depend_on_the_batch_size_and_end_where_the_model_ends_them(smollm2):
    prompts = [Prompt("Name one colour."), Prompt("Say hello in one short sentence."), Prompt("Rain falls", False)]
    sampled = Writing(max_new_tokens=12, temperature=1.0, batch_size=3)
    together = generate_texts(smollm2, prompts, writing=sampled)
    alone = generate_texts(smollm2, prompts, writing=Writing(max_new_tokens=12, temperature=1.0, batch_size=1))
    assert together.texts == alone.texts
    assert together.losses == pytest.approx(alone.losses, rel=1e-3)
    assert max(together.n_tokens) <= 12 and min(together.n_tokens) >= 1
    assert all("<|im_end|>" not in text for text in together.texts)


def test_an_instruction_goes_through_the_chat_template_and_an_opening_does_not(smollm2):
    tokens, lengths = encode(smollm2, [Prompt("Rain falls"), Prompt("Rain falls", instruction=False)])
    chat, opening = (smollm2.tokenizer.decode(row[:n]) for row, n in zip(tokens, lengths, strict=True))
    assert "<|im_start|>user\nRain falls<|im_end|>" in chat and chat.endswith("<|im_start|>assistant\n")
    assert opening == "Rain falls"


def test_the_loss_behind_an_instruction_is_judged_without_it(smollm2):
    plain = [Prompt("Say hello.")]
    longer = [Prompt("Be brief.\n\nSay hello.")]
    found = generate_texts(smollm2, longer, writing=Writing(max_new_tokens=6), plain=plain)
    own = generate_texts(smollm2, longer, writing=Writing(max_new_tokens=6))
    assert found.texts == own.texts and found.losses[0] != own.losses[0]


def test_neutral_effect_of_a_whole_document_is_that_of_compare(smollm2):
    text = NeutralText.of(smollm2, DOCUMENTS, n=4, length=16, prompt=1)
    direction = torch.randn(smollm2.cfg.d_model, generator=torch.Generator().manual_seed(0))
    edits = {SITE: lambda x, where: x + direction}
    found = neutral_effect(smollm2, text, {1.0: edits})[1.0]
    rows = torch.tensor(text.rows)
    batches = [Batch(rows, torch.full((4,), 16), torch.arange(4), torch.zeros(4, dtype=torch.int64))]
    whole = compare(smollm2, batches, {"edit": edits})
    assert found.mean(found.kl) == pytest.approx(whole.kl["edit"], rel=1e-4)
    assert found.mean(found.ce_clean) == pytest.approx(whole.ce_clean, rel=1e-5)
    assert found.mean(found.delta_ce) == pytest.approx(whole.delta_ce("edit"), rel=1e-3)


def test_neutral_text_is_generated_text_to_an_edit(smollm2):
    text = NeutralText.of(smollm2, DOCUMENTS, n=2, length=14, prompt=5)
    seen = []

    def spy(x, where):
        seen.append((where.positions >= where.prompt[:, None]).sum().item())
        return x

    effect = neutral_effect(smollm2, text, {0.0: {SITE: spy}})[0.0]
    assert seen == [2 * (14 - 5)] and effect.n == (9, 9)
    assert np.abs(effect.kl).max() < 1e-5


def test_an_instruction_in_front_has_the_effect_of_longer_context(smollm2):
    text = NeutralText.of(smollm2, DOCUMENTS, n=2, length=14, prompt=5)
    found = prompted_effect(smollm2, text, "Write about the sea.")
    ahead = smollm2.to_tokens(["Write about the sea.\n\n"]).tokens[0]
    row = torch.tensor(text.rows[0])
    with torch.no_grad():
        p = torch.log_softmax(smollm2.hf(row[None]).logits[0, 4:-1].double(), -1)
        q = torch.log_softmax(smollm2.hf(torch.cat([ahead, row])[None]).logits[0, len(ahead) + 4 : -1].double(), -1)
    assert found.kl[0] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-3)


def test_short_documents_are_refused(smollm2):
    with pytest.raises(InputError, match="0 of 1 documents have 64 tokens, 2 were asked for"):
        NeutralText.of(smollm2, [Document("a", "short")], n=2)


def test_records_are_made_once_and_belong_to_their_settings(tmp_path):
    calls = []

    def make() -> list[int]:
        calls.append(1)
        return [len(calls)]

    records = Records(tmp_path / "records")
    assert records.get("a step", {"beta": 1.0, "sites": ("x",)}, make) == [1]
    assert Records(tmp_path / "records").get("a step", {"beta": 1.0, "sites": ("x",)}, make) == [1]
    assert records.get("a step", {"beta": 2.0, "sites": ("x",)}, make) == [2]
    path = records.path("a step", {"beta": 2.0, "sites": ("x",)})
    path.write_text('{"key": 1, "value": 2}')
    assert records.get("a step", {"beta": 2.0, "sites": ("x",)}, make) == [2]  # read once already
    with pytest.raises(InputError, match="no record of this evaluation; remove it"):
        Records(tmp_path / "records").get("a step", {"beta": 2.0, "sites": ("x",)}, make)
    path.write_text('{"key": ')
    with pytest.raises(InputError, match="damaged"):
        Records(tmp_path / "records").get("a step", {"beta": 2.0, "sites": ("x",)}, make)
    assert len(calls) == 2
    loose = Records(None)
    assert loose.get("a", 1, make) == loose.get("a", 1, make) == [3] and not loose.have("a", 1)
