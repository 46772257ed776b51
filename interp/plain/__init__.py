"""An independent forward pass of every supported family in plain PyTorch, written from the published mathematics.

`plain_run(config, weights, tokens)` takes a configuration as a dict and a state dict; it gives the logits and every
`Site`. It shares no code with Hugging Face, transformer-lens or `interp.model`; from Hugging Face it takes only the
*names* of parameters and configuration fields. It is the truth that `midlens parity` and the tests hold a model
against, so it is written to be read: einsum with axis letters, explicit masks, a loop over layers, float64 by default.

One block, with x the residual stream (`resid_pre`), n the block's norm before its gain and γ the gain:

    a  = attention(γ₁ n(x))                                          attn_out   (Gemma 2, 3: γ n(a) is added instead)
    y  = x + a                                                       resid_mid
    m  = mlp(γ₂ n(y))                                                mlp_out    (Gemma 2, 3: γ n(m) is added instead)
    x' = y + m                                                       resid_post
    x' = x + attention(γ₁ n(x)) + mlp(γ₂ n(x))                       GPT-NeoX's parallel form; it has no resid_mid

What the sites mean (as in transformer-lens 3.9, its `TransformerBridge` over unfolded weights above all):

- `hook_embed`: token embeddings after Gemma's scaling by √d; without GPT-2's position embeddings.
- `ln1`, `ln2`, `ln_final.hook_normalized`: *before* the gain (and bias), for RMSNorm and LayerNorm alike.
- `hook_q`, `hook_k`: the projections with their bias, *before* the per-head norm of Qwen 3 and Gemma 3.
- `hook_rot_q`, `hook_rot_k`: after that norm and the rotation; GPT-2, which has no rotation, has no such site.
- `hook_attn_scores`: after scaling and soft-cap; −inf where masked. `hook_pattern`: its softmax over sources.
- `hook_z`: per-head mixture of values, before the output projection.
- `mlp.hook_pre`: what the activation is applied to (gated MLP: the gate's projection); `mlp.hook_pre_linear`: the up
  projection of a gated MLP, absent elsewhere; `mlp.hook_post`: what the down projection reads.
- `hook_attn_out`, `hook_mlp_out`: what is added to the stream: with the output bias, after Gemma's post-norms.

Sources: Vaswani et al. 2017 (attention); Zhang and Sennrich 2019 (RMSNorm); Su et al. 2021 (RoPE); Ainslie et al. 2023
(grouped queries); Shazeer 2020 (gated MLP); Radford et al. 2019 (GPT-2); Black et al. 2022 (GPT-NeoX: partial rotary,
parallel residual); Jiang et al. 2023 (Mistral: sliding window); the Llama 3 report, 2024, and Meta's reference code
(frequency scaling); the Gemma 2 and 3 reports, 2024 and 2025 (soft-caps, post-norms, alternating windows, two rotary
bases, query-key norm); the Qwen 2 and 3 reports, 2024 and 2025 (projection biases; query-key norm).
"""

from interp.plain.forward import PlainRun, plain_run

__all__ = ["PlainRun", "plain_run"]
