"""Small real GGUF files, written by llama.cpp's own package from a model of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import quantize
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

QUANTS = {
    "F32": gguf.GGMLQuantizationType.F32,
    "F16": gguf.GGMLQuantizationType.F16,
    "BF16": gguf.GGMLQuantizationType.BF16,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
    "Q4_1": gguf.GGMLQuantizationType.Q4_1,
}
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def make_llama(tied: bool = True) -> LlamaForCausalLM:
    """Rows of 32 and 64 numbers: whole blocks of every quantisation."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(1.0 if p.dim() == 1 else 0.0, 0.1)
    return model.eval()


def write_gguf(
    model: Any, path: Path, kind: str = "F32", architecture: str = "llama", **extra: Any
) -> dict[str, torch.Tensor]:
    """Write the model; the tensors as they can be read again, by transformers' names.

    Args:
        model: of `make_llama`.
        path: of the file.
        kind: of `QUANTS`, for matrices; vectors are float32, as llama.cpp writes them.
        architecture: that the file claims.
        **extra: further tensors; `settings` of the writer, `pre` of the tokenizer.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("small")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, extra.pop("pre", "gpt-2"))
    for key, value in extra.pop("settings", {}).items():
        getattr(writer, f"add_{key}")(value)
    read = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        matrix = tensor.dim() == 2
        data = _in_their_order(name, tensor, config).numpy()
        quant = QUANTS[kind if matrix else "F32"]
        stored = quantize(data, quant)
        writer.add_tensor(_their_name(name), stored, raw_dtype=quant)
        back = torch.from_numpy(gguf.dequantize(stored, quant).astype(np.float32))
        read[name] = _in_their_order(name, back, config, undo=True)
    for name, tensor in extra.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read


def _their_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{_NAMES[rest]}.weight"
    return f"{_NAMES[stem]}.weight"


def _in_their_order(
    name: str, tensor: torch.Tensor, config: Any, undo: bool = False
) -> torch.Tensor:
    """llama.cpp rotates neighbouring dimensions, transformers those of the two halves of a head."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((n for part, n in heads.items() if part in name), None)
    if count is None:
        return tensor
    half = tensor.shape[0] // count // 2
    shape = (count, half, 2, -1) if undo else (count, 2, half, -1)
    return tensor.reshape(shape).transpose(1, 2).reshape(tensor.shape).contiguous()


def _add_tokenizer(writer: gguf.GGUFWriter, pre: str) -> None:
    """Bytes, two merges, one special token: of GPT-2's kind."""
    tokens = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "al", "ph"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * (len(tokens) - 1)])
    writer.add_token_merges(["a l", "p h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
