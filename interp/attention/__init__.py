"""The routing (skew-symmetric) and filtering (symmetric) structure of attention: weights, activations, interventions.

    heads, encoder      M = W_Q W_K^T of every head, from a model's weights
    bilinear, ranks, metrics, nulls, table      what is measured of such a product, and against what chance gives
    rope, sectors       how rotary embeddings make M depend on the offset
    operating, corpus_gram      the same of q k^T, of one input or of a corpus
    behaviour           what heads do: previous token, induction, sinks
    surgery             the model run with parts of its interaction changed
    layer_scores        symmetry and directionality of whole layers, beside published medians
    sd_attention, sd_model, sd_train      skew-minus-diagonal attention, trained beside a standard twin
    cascade, linearise, allocation        what the twins show: rank by depth, linear layers, narrower heads
    survey              all of it as one command; its page: interp.attention_report

In the manner of Jamil and Kapadia 2026, "The Routing and Filtering Structure of Attention" (arXiv 2605.18826).
"""
