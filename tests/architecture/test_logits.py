"""What models do around their output head, found by running them; beside their own logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.families import FAMILIES, VOCAB, make_model, tokens
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
)

from hylorada.architecture.logits import TOLERANCE, LogitFunction, disagreement, output_head
from hylorada.errors import ConfigError
from hylorada.evaluation.candidates import Prefix
from hylorada.evaluation.scoring import evaluation_mode, token_nll
from hylorada.training.loss import LossModel

SMALL = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "head_dim": 8, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_d_head": 8}
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "num_key_value_heads": 4,
}  # fmt: skip
# name -> (settings, what must be found)
MODELS = {
    "gemma2": ({"final_logit_softcapping": 5.0}, LogitFunction(cap=5.0)),
    "gemma3_text": ({"final_logit_softcapping": None}, LogitFunction()),
    "cohere": ({"logit_scale": 0.0625}, LogitFunction(scale=0.0625)),
    "cohere2": ({"logit_scale": 0.3}, LogitFunction(scale=0.3)),
    "granite": ({"logits_scaling": 3.0}, LogitFunction(scale=1 / 3)),
    "granitemoe": ({"logits_scaling": 8.0, "num_local_experts": 4}, LogitFunction(scale=1 / 8)),
    "falcon_h1": ({"lm_head_multiplier": 0.7, **MAMBA}, LogitFunction(scale=0.7)),
    "minicpm3": ({"dim_model_base": 12, **LATENT}, LogitFunction(input_scale=12 / 32)),
    "nanochat": ({"final_logit_softcapping": 15.0}, LogitFunction(cap=15.0)),
    "recurrent_gemma": (
        {"logits_soft_cap": 4.0, "num_hidden_layers": 3, "lru_width": 32}, LogitFunction(cap=4.0),
    ),
    "llama": ({}, LogitFunction()),
}  # fmt: skip


def model_of(name: str, seed: int = 0, **changes):
    settings, _ = MODELS[name]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(name, **{**SMALL, **settings, **changes})
    )
    with torch.no_grad():  # large logits: a cap must bend them
        for p in model.parameters():
            if p.dim() == 2:
                p.normal_(0.0, 0.3)
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_loss_gradient_and_scores_are_those_of_the_models_own_logits(name):
    model = model_of(name)
    found, wanted = output_head(model).function, MODELS[name][1]
    assert found.input_scale == pytest.approx(wanted.input_scale, rel=1e-6)
    assert found.scale == pytest.approx(wanted.scale, rel=1e-6)
    assert (found.cap, found.size) == (wanted.cap, None)
    ids = tokens(2, 31)
    assert disagreement(model, ids) <= TOLERANCE[torch.float32]

    head = model.get_output_embeddings().weight
    logits = model(input_ids=ids, use_cache=False).logits.double()
    plain = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    inputs = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(plain.sum(), inputs, allow_unused=True)
    loss, count = LossModel(model, chunk=7)(ids, ids)
    torch.testing.assert_close(loss.double(), plain.sum(), rtol=1e-5, atol=0)
    assert int(count) == plain.numel()
    for parameter, got, want in zip(
        inputs, torch.autograd.grad(loss, inputs, allow_unused=True), expected, strict=True
    ):
        if want is not None:
            scale = want.abs().max().item()
            torch.testing.assert_close(got, want, rtol=1e-3, atol=2e-5 * scale)
            assert parameter is not head or want.any()

    with evaluation_mode(model):
        nll = token_nll(model, ids, chunk=11)
    torch.testing.assert_close(nll[:, :-1].flatten().double(), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite", "minicpm3"])
def test_ranked_candidates_and_adapters_see_them_too(name):
    model = model_of(name)
    ids = tokens(1, 20)
    with evaluation_mode(model):
        scores = Prefix(model, ids[0, :15].tolist()).log_likelihoods([ids[0, 15:].tolist(), [3, 4]])
        logits = model(input_ids=ids).logits[0].log_softmax(-1)
    wanted = logits[14:19].gather(1, ids[0, 15:, None]).sum()
    assert scores[0] == pytest.approx(float(wanted), rel=1e-4)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["o_proj"]))
    assert disagreement(adapted, ids) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_of_plain_models_are_the_head_bit_for_bit(family):
    model = make_model(family)
    head = output_head(model)
    assert head.function == LogitFunction()
    hidden = torch.randn(3, 32)
    assert torch.equal(head(hidden), model.get_output_embeddings()(hidden))
    assert disagreement(model, tokens(2, 17)) == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_constants_are_found_exactly_in_models_of_half_precision(dtype):
    model = model_of("granite").to(dtype)
    assert output_head(model).function.scale == pytest.approx(1 / 3, rel=1e-7)
    model = model_of("minicpm3").to(dtype)
    assert output_head(model).function.input_scale == pytest.approx(12 / 32, rel=1e-3)
    model = model_of("gemma2", final_logit_softcapping=30.0).to(dtype)
    assert output_head(model).function == LogitFunction(cap=30.0)


def test_a_cap_far_beyond_todays_logits_is_found():
    model = model_of("gemma2", final_logit_softcapping=2000.0)
    assert output_head(model).function.cap == 2000.0


class PaddedVocabulary(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits[..., :90]
        return output


class Biased(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + torch.arange(VOCAB) / VOCAB
        return output


class Clipped(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.clamp(-100, 100)
        return output


class AroundItsHead(LlamaForCausalLM):
    def forward(self, input_ids, **kwargs):
        kwargs.pop("use_cache", None)
        output = self.model(input_ids=input_ids, **kwargs)
        output.logits = output.last_hidden_state @ self.lm_head.weight.t()
        return output


class CosineHead(torch.nn.Linear):
    def forward(self, hidden):
        return F.linear(F.normalize(hidden, dim=-1), F.normalize(self.weight, dim=-1))


def own_llama(kind):
    torch.manual_seed(0)
    return kind(LlamaConfig(**SMALL)).eval()


def test_logits_for_a_part_of_the_heads_rows():
    model = own_llama(PaddedVocabulary)
    assert output_head(model).function == LogitFunction(size=90)
    ids = tokens(1, 30) % 90
    logits = model(input_ids=ids).logits[0, :-1]
    loss, _ = LossModel(model)(ids, ids)
    expected = F.cross_entropy(logits, ids[0, 1:], reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    (got,) = torch.autograd.grad(loss, [model.lm_head.weight], retain_graph=True)
    (want,) = torch.autograd.grad(expected, [model.lm_head.weight])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Biased, "neither by a factor nor by a soft cap"),
        (Clipped, "neither by a factor nor by a soft cap"),
        (AroundItsHead, "does not call its output head"),
    ],
)
def test_any_other_function_is_refused_with_its_numbers(kind, reason):
    with pytest.raises(ConfigError, match=f"model: .*{kind.__name__} .*{reason}"):
        output_head(own_llama(kind))


def test_a_head_that_is_no_linear_layer_is_refused():
    model = own_llama(LlamaForCausalLM)
    model.lm_head = CosineHead(32, VOCAB, bias=False)
    with pytest.raises(ConfigError, match=r"CosineHead.*is not a linear layer"):
        output_head(model)


def test_a_layer_between_the_backbone_and_the_head_is_refused():
    model = ModernBertDecoderForCausalLM(
        ModernBertDecoderConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64, pad_token_id=0, bos_token_id=0,
            eos_token_id=0, cls_token_id=0, sep_token_id=0,
        )
    ).eval()  # fmt: skip
    with pytest.raises(ConfigError, match="is not its backbone's hidden states"):
        output_head(model)


def test_finding_out_leaves_model_and_generator_as_they_were():
    model = make_model("llama").train()
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    output_head(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert not model.lm_head._forward_hooks
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
