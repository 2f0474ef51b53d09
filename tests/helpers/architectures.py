"""Small random models of the true architectures of transformers, one line each.

A family is a `model_type` that AutoModelForCausalLM knows, or a variant of one (another kind of
position, of attention, of layer). Every config class gets the small sizes that it has a field for;
a line holds what else that architecture needs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

VOCAB = 257
TRAINED = 64  # tokens

# Sizes by the names that the config classes use; None stands for the trained length.
_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 2),
    **dict.fromkeys(("decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    "num_key_value_heads": 2,
    "head_dim": 8,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), None),
    **dict.fromkeys(("context_length", "max_target_positions"), None),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts"), 4),
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "v_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 4),
    "sliding_window": 16,
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 16),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
_DELTA = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_DECODER = {"is_decoder": True}
# What `model.trained_length` puts into a config that does not say how long its texts were.
_TOLD = {"hylorada_trained_length": TRAINED}

# Family: model_type, and what its line adds.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    # learned positions
    "gpt2": ("gpt2", {}),
    "opt": ("opt", {}),
    "opt, projected": ("opt", {"word_embed_proj_dim": 16}),
    "gpt_neo": ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 16}),
    "gpt_bigcode": ("gpt_bigcode", {}),
    "biogpt": ("biogpt", {}),
    "openai-gpt": ("openai-gpt", {}),
    "bart": ("bart", _DECODER),
    "bert, decoder": ("bert", _DECODER),
    "bert, encoder": ("bert", {}),
    "megatron-bert, decoder": ("megatron-bert", _DECODER),
    "roberta, decoder": ("roberta", {**_DECODER, "pad_token_id": 1}),
    # one rotary table
    "llama": ("llama", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, window": ("mistral", {}),
    "mixtral": ("mixtral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2, window": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen2_moe": ("qwen2_moe", {}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {}),
    "vaultgemma": ("vaultgemma", {}),
    "phi": ("phi", {"partial_rotary_factor": 0.5}),
    "phi3": ("phi3", {"sliding_window": None}),
    "phimoe": ("phimoe", {"sliding_window": None}),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.5}),
    "gpt_neox_japanese": ("gpt_neox_japanese", {}),
    "falcon": ("falcon", {}),
    "falcon, new": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "olmoe": ("olmoe", {}),
    "flex_olmo": ("flex_olmo", {}),
    "deepseek_v2": ("deepseek_v2", {"head_dim": 4, "num_key_value_heads": 4}),
    "deepseek_v3": ("deepseek_v3", {"head_dim": 4, "num_key_value_heads": 4}),
    "granite": ("granite", {}),
    "granitemoe": ("granitemoe", {}),
    "cohere": ("cohere", {}),
    "cohere2": ("cohere2", {"num_hidden_layers": 4}),
    "stablelm": ("stablelm", {}),
    "starcoder2": ("starcoder2", {"sliding_window": None}),
    "persimmon": ("persimmon", {}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0]}),
    "nemotron": ("nemotron", {}),
    "helium": ("helium", {}),
    "glm": ("glm", {}),
    "glm4": ("glm4", {}),
    "glm4_moe": ("glm4_moe", {}),
    "ernie4_5": ("ernie4_5", {}),
    "ernie4_5_moe": ("ernie4_5_moe", {"moe_num_experts": 4, "moe_k": 2}),
    "exaone4": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    "exaone4, window": ("exaone4", {"layer_types": ["sliding_attention", "full_attention"]}),
    "gpt_oss": ("gpt_oss", {}),
    "llama4_text": ("llama4_text", {"intermediate_size_mlp": 48, "num_hidden_layers": 4}),
    "seed_oss": ("seed_oss", {}),
    "apertus": ("apertus", {}),
    "arcee": ("arcee", {}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {}),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", {"moe_topk": 2}),
    "dots1": ("dots1", {}),
    "diffllama": ("diffllama", {}),
    "bitnet": ("bitnet", {}),
    "nanochat": ("nanochat", {}),
    "minimax_m2": ("minimax_m2", {}),
    "jetmoe": ("jetmoe", {"kv_channels": 8}),
    "internlm3": ("internlm3", {}),
    # a rotary table for each kind of layer
    "olmo3": ("olmo3", {"layer_types": ["sliding_attention", "full_attention"]}),
    "gemma3_text": ("gemma3_text", {"layer_types": ["sliding_attention", "full_attention"]}),
    "modernbert-decoder": (
        "modernbert-decoder",
        {"layer_types": ["sliding_attention", "full_attention"], "local_attention": 16},
    ),
    "mimo_v2_flash": ("mimo_v2_flash", {"head_dim": 24}),
    "gemma4_text": ("gemma4_text", {"hidden_size_per_layer_input": 0}),
    "laguna": ("laguna", {}),
    "zaya": ("zaya", {"num_experts_per_tok": 1, "layer_types": ["hybrid_sliding", "hybrid"]}),
    # rotary tables inside attention
    "gptj": ("gptj", {"rotary_dim": 4}),
    "codegen": ("codegen", {"rotary_dim": 4}),
    "roformer": ("roformer", _DECODER),
    # computed positions
    "xglm": ("xglm", {"attention_heads": 4}),
    "ctrl": ("ctrl", {"dff": 48}),
    "pegasus": ("pegasus", _DECODER),
    "xlnet": ("xlnet", {"d_head": 8, "d_inner": 48, **_TOLD}),
    "reformer": (
        "reformer",
        {
            **_DECODER,
            "axial_pos_shape": [8, 8],
            "axial_pos_embds_dim": [16, 16],
            "attn_layers": ["local", "lsh"],
            "attention_head_size": 8,
            "feed_forward_size": 48,
            "local_attn_chunk_length": 8,
            "lsh_attn_chunk_length": 8,
            "num_buckets": 4,
        },
    ),
    # distances added to the scores
    "bloom": ("bloom", {"seq_length": TRAINED}),
    "bloom, silent": ("bloom", {}),
    "mpt": ("mpt", {}),
    "falcon, alibi": ("falcon", {"alibi": True}),
    # recurrent, and hybrids of it
    "mamba, silent": ("mamba", {"state_size": 8}),
    "mamba": ("mamba", {"state_size": 8, **_TOLD}),
    "mamba2": ("mamba2", {"num_heads": 8, "state_size": 8, "n_groups": 1, **_TOLD}),
    "rwkv": ("rwkv", {"attention_hidden_size": 32}),
    "xlstm": ("xlstm", _TOLD),
    "jamba": (
        "jamba",
        {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
         "use_mamba_kernels": False, "mamba_d_state": 8},
    ),
    "bamba": ("bamba", {**_MAMBA, "num_hidden_layers": 3, "attn_layer_indices": [1]}),
    "granitemoehybrid": ("granitemoehybrid", {**_MAMBA, "layer_types": ["mamba", "attention"]}),
    "falcon_h1": ("falcon_h1", {**_MAMBA, "mamba_d_ssm": 64}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "lfm2_moe": ("lfm2_moe", {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}),
    "qwen3_next": (
        "qwen3_next", {**_DELTA, "layer_types": ["linear_attention", "full_attention"]}
    ),
    "qwen3_5_text": (
        "qwen3_5_text", {**_DELTA, "layer_types": ["linear_attention", "full_attention"]}
    ),
    "olmo_hybrid": (
        "olmo_hybrid", {**_DELTA, "layer_types": ["linear_attention", "full_attention"]}
    ),
    "minimax": ("minimax", {"layer_types": ["linear_attention", "full_attention"]}),
    "recurrent_gemma": (
        "recurrent_gemma",
        {"num_hidden_layers": 3, "attention_window_size": 16, "lru_width": 32, **_TOLD},
    ),
    "zamba2": (
        "zamba2",
        {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3,
         "mamba_d_state": 8, "n_mamba_heads": 8, "mamba_ngroups": 1, "num_mem_blocks": 1},
    ),
}  # fmt: skip


def make_config(family: str, trained: int = TRAINED) -> Any:
    """The config of a family, small, for `trained` positions."""
    if family in _COMPOSED:
        return _COMPOSED[family](trained)
    model_type, more = FAMILIES[family]
    return _small(model_type, trained, more)


def _small(model_type: str, trained: int, more: dict[str, Any]) -> Any:
    kind = CONFIG_MAPPING[model_type]
    names = {f.name for f in dataclasses.fields(kind)}
    values = {k: trained if v is None else v for k, v in _SMALL.items() if k in names}
    return kind(**{**values, **more})


def _gemma3(trained: int) -> Any:
    text = _small("gemma3_text", trained, FAMILIES["gemma3_text"][1])
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,  # 64 patches: a table of as many rows as the text has positions
    }
    return CONFIG_MAPPING["gemma3"](
        text_config=text.to_dict(), vision_config=vision, mm_tokens_per_image=16
    )


def _got_ocr2(trained: int) -> Any:
    text = _small("qwen2", trained, {})
    vision = {
        "hidden_size": 16, "output_channels": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 64, "patch_size": 16, "mlp_dim": 24, "global_attn_indexes": [0],
        "window_size": 2,
    }  # fmt: skip
    return CONFIG_MAPPING["got_ocr2"](text_config=text.to_dict(), vision_config=vision)


# Models that read text and pictures; only the text half is used here.
_COMPOSED = {"gemma3": _gemma3, "got_ocr2": _got_ocr2}
ALL = (*FAMILIES, *_COMPOSED)


def make_zoo_model(family: str, trained: int = TRAINED, seed: int = 0) -> PreTrainedModel:
    """A random model of a family, in evaluation mode, without dropout.

    Matrices are large enough that every part moves the logits visibly.
    """
    config = make_config(family, trained)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Embedding, Conv1D)):
                module.weight.normal_(0.0, 0.12)
        for name, p in model.named_parameters():
            if p.dim() == 3 and "conv" not in name:  # experts
                p.normal_(0.0, 0.12)
            elif p.dim() == 1 and "norm" in name:
                p.add_(torch.randn_like(p) * 0.05)
    return model.eval()
