"""Texts and chats to tokens: the ids are the tokenizer's own, and exactly what the template wrote is marked."""

import copy

import pytest
import torch
from tokenizers import AddedToken

from interp.chat import outside, render, to_tokens
from interp.errors import InputError
from interp.model import HookedModel
from tests.tiny_models import tiny

CHAT = [
    {"role": "user", "content": "Why is the  sky blue in 1999?"},
    {"role": "assistant", "content": "Rayleigh scattering.\n\nShort waves scatter more — ≈ λ⁻⁴."},
    {"role": "user", "content": "user"},
]
GEMMA = """{{ bos_token }}{% for m in messages -%}
{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif -%}
{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}
{{- m['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
LLAMA3 = """{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\nKnowledge: December 2023\n\n<|eot_id|>' }}
{%- for m in messages -%}
{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
MARKERS = ["<start_of_turn>", "<end_of_turn>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


@pytest.fixture(scope="module", params=["smollm2", "gemma", "llama3"])
def tokenizer(request, smollm2_hf):
    """SmolLM2's tokenizer with its own template, and with templates in the manner of Gemma and Llama 3."""
    own = copy.deepcopy(smollm2_hf.tokenizer)
    if request.param != "smollm2":
        own.chat_template = {"gemma": GEMMA, "llama3": LLAMA3}[request.param]
        own.bos_token = "<|endoftext|>"
        own.add_tokens([AddedToken(marker, special=True) for marker in MARKERS], special_tokens=True)
    return own


@pytest.mark.parametrize("generation_prompt", [False, True])
def test_ids_are_the_templates_and_content_decodes_to_the_messages(tokenizer, generation_prompt):
    batch = to_tokens(tokenizer, CHAT, generation_prompt=generation_prompt)
    expected = tokenizer.apply_chat_template(
        CHAT, tokenize=True, add_generation_prompt=generation_prompt, return_dict=True
    ).input_ids
    assert batch.tokens.tolist() == [expected] and batch.lengths.tolist() == [len(expected)]
    runs: list[list[int]] = []
    for i, (token, outer) in enumerate(zip(expected, batch.template[0].tolist(), strict=True)):
        if not outer:
            if i == 0 or batch.template[0, i - 1]:
                runs.append([])
            runs[-1].append(token)
    assert [tokenizer.decode(run) for run in runs] == [message["content"] for message in CHAT]


def test_the_user_prefix_is_template_and_a_role_name_as_content_is_not(tokenizer):
    """The last message says `user`, the very word that its header holds too."""
    batch = to_tokens(tokenizer, CHAT)
    user = tokenizer.encode("user", add_special_tokens=False)[0]
    where = (batch.tokens[0] == user).nonzero().flatten().tolist()
    assert [bool(batch.template[0, i]) for i in where] == [True, True, False]


def test_trimmed_messages_are_found(tokenizer):
    chat = [{"role": "user", "content": "  hello there \n"}]
    text, spans = render(tokenizer, chat)
    assert [text[a:b].strip() for a, b in spans] == ["hello there"]


def test_many_texts_are_padded_on_the_right_with_their_lengths(tokenizer):
    items = ["One two three four five six seven", CHAT[:1], "Eins"]
    batch = to_tokens(tokenizer, items)
    for row, n, item in zip(batch.tokens, batch.lengths, items, strict=True):
        alone = to_tokens(tokenizer, item)
        assert torch.equal(row[:n], alone.tokens[0]) and bool((row[n:] == tokenizer.pad_token_id).all())
    past = torch.arange(batch.tokens.shape[1]) >= batch.lengths[:, None]
    assert bool(batch.template[past].all())
    assert not bool(batch.template[0][: batch.lengths[0]].any())


def test_bos_is_put_in_front_once(tokenizer):
    bos = tokenizer.bos_token_id
    plain = to_tokens(tokenizer, "Hello", prepend_bos=False)
    led = to_tokens(tokenizer, "Hello", prepend_bos=True)
    assert led.tokens.tolist() == [[bos, *plain.tokens[0].tolist()]] and led.template.tolist() == [[True, False]]
    chat = to_tokens(tokenizer, CHAT)
    assert torch.equal(to_tokens(tokenizer, CHAT, prepend_bos=True).tokens, chat.tokens) and chat.tokens[0, 0] == bos


def test_a_message_that_holds_the_marks_themselves(tokenizer):
    chat = [{"role": "user", "content": "midlens0end"}, {"role": "assistant", "content": "midlens1end midlensx0end"}]
    text, spans = render(tokenizer, chat)
    assert [text[a:b] for a, b in spans] == [message["content"] for message in chat]


def test_tokens_across_the_border_are_content(smollm2_hf):
    """Without special tokens around it a message may share a token with the template: `!` and `\n` with `)`."""
    plain = copy.deepcopy(smollm2_hf.tokenizer)
    plain.chat_template = "{% for m in messages %}({{ m['content'] }})\n{% endfor %}"
    chat = [{"role": "user", "content": "(well!"}]
    batch = to_tokens(plain, chat)
    pieces = [plain.decode(token) for token in batch.tokens[0]]
    kept = [piece for piece, outer in zip(pieces, batch.template[0], strict=True) if not outer]
    assert pieces == ["((", "well", "!)", "\n"] and kept == pieces[:3]


def test_outside_against_characters_one_by_one():
    spans = [(2, 5), (7, 7), (9, 12)]
    inside = {i for a, b in spans for i in range(a, b)}
    offsets = [(a, b) for a in range(14) for b in range(a, 14)]
    assert outside(spans, offsets) == [not inside.intersection(range(a, b)) for a, b in offsets]


def test_hooked_model_follows_its_preset(smollm2):
    batch = smollm2.to_tokens(["The capital of France is", CHAT])
    assert batch.tokens[0, 0] == smollm2.tokenizer("The").input_ids[0]
    assert smollm2.to_tokens("The", prepend_bos=True).tokens[0, 0] == smollm2.tokenizer.bos_token_id
    rows = smollm2.capture(batch.tokens, ["resid_post.3"], lengths=batch.lengths).popitem()[1]
    assert rows[~batch.template].shape == (int((~batch.template).sum()), 576)


def test_an_answer_to_a_chat(smollm2):
    batch = smollm2.to_tokens([{"role": "user", "content": "What is the capital of France?"}], generation_prompt=True)
    new = smollm2.generate(batch.tokens, lengths=batch.lengths, max_new_tokens=20)
    assert "Paris" in smollm2.tokenizer.decode(new[0])


def test_bad_input(smollm2_hf, tokenizer):
    with pytest.raises(InputError, match=r"came without a tokenizer"):
        HookedModel.wrap(tiny("llama")).to_tokens("Hello")
    with pytest.raises(InputError, match=r"text 1 has no tokens \(''\)"):
        to_tokens(tokenizer, ["Hello", ""])
    with pytest.raises(InputError, match=r"no texts: expected a text, a chat"):
        to_tokens(tokenizer, [])
    with pytest.raises(InputError, match=r"expected a text or a chat .* got 3"):
        to_tokens(tokenizer, ["Hello", 3])
    with pytest.raises(InputError, match=r"message 0 is .*expected a 'role' and a 'content', both text"):
        to_tokens(tokenizer, [{"role": "user", "content": None}])
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(InputError, match=r"has no chat template; use an instruction-tuned model"):
        to_tokens(bare, CHAT)
    bare.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    with pytest.raises(InputError, match=r"rewrites or drops messages"):
        to_tokens(bare, CHAT)
    bare.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(InputError, match=r"rewrites or drops messages"):
        to_tokens(bare, CHAT)
    bare.chat_template = GEMMA
    with pytest.raises(InputError, match=r"refuses this chat: System role not supported"):
        to_tokens(bare, [{"role": "system", "content": "Be brief."}])
    bare.bos_token = None
    with pytest.raises(InputError, match=r"has no beginning-of-sequence token"):
        to_tokens(bare, "Hello", prepend_bos=True)
