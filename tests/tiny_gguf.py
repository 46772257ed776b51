"""A tiny Qwen 2 as a GGUF file."""

from pathlib import Path


def write_qwen2_gguf(model, path: Path) -> Path:
    """The model as an F32 GGUF file with a byte-level vocabulary."""
    from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map

    config = model.config
    writer = GGUFWriter(path, "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    tokens = [chr(33 + i) for i in range(config.vocab_size - 4)] + ['!"', "<s>", "</s>", "<pad>"]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (config.vocab_size - 3) + [3] * 3)
    writer.add_token_merges(['! "'])
    names = get_tensor_name_map(MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        stem, kind = name.rsplit(".", 1)
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
