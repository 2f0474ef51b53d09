"""Tiny random models of the six architectures that every method is tested on."""

from __future__ import annotations

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

VOCAB = 97

CONFIGS = {
    "gpt2": lambda n: GPT2Config(
        vocab_size=VOCAB,
        n_positions=n,
        n_embd=32,
        n_layer=3,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "llama": lambda n: LlamaConfig(  # grouped-query attention: 4 heads on 2
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=n,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    ),
    "qwen2": lambda n: Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        max_position_embeddings=n,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    ),
    "qwen3": lambda n: Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=n,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    ),
    "gpt_neox": lambda n: GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=n,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        rotary_pct=0.5,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "opt": lambda n: OPTConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=n,
        word_embed_proj_dim=32,
        dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    ),
}
FAMILIES = tuple(CONFIGS)
ROPE_FAMILIES = ("llama", "qwen2", "qwen3", "gpt_neox")
LEARNED_FAMILIES = ("gpt2", "opt")


def make_model(family: str, trained_length: int = 64, seed: int = 0) -> PreTrainedModel:
    """A random model with weights large enough that every part moves the logits visibly."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](trained_length))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() >= 2:
                p.normal_(0.0, 0.12)
            elif "norm" in name or "ln_" in name:
                p.add_(torch.randn_like(p) * 0.05)
    return model.eval()


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random token ids, shape [batch, length], without the pad id 0."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCAB, (batch, length), generator=generator)
