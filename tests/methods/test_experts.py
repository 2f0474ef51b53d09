"""LoRA on the experts of a mixture: which parameters, how they start, and what cannot have it."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.shaken import shaken
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from hylorada.architecture import anatomy
from hylorada.kernels.frozen_layers import use_frozen_kernels
from hylorada.methods import HyloradaConfig, adapt, check_integrity, load_adapter
from hylorada.methods.experts import reached_experts

VOCAB = 97
COMMON = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 64, "num_experts_per_tok": 2, "pad_token_id": 0,
}  # fmt: skip
KINDS = {
    "mixtral": {"num_local_experts": 4},
    "gpt_oss": {  # stored transposed, with biases beside them
        "num_local_experts": 4, "sliding_window": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "qwen2_moe": {  # a shared expert of linear layers, with a gate of one output
        "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24,
    },
    "deepseek_v3": {  # a dense layer before the mixtures
        "num_key_value_heads": 4, "head_dim": 4, "n_routed_experts": 4, "moe_intermediate_size": 16,
        "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
        "kv_lora_rank": 8, "q_lora_rank": 8, "v_head_dim": 8, "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
    },
    "phimoe": {"num_local_experts": 4, "sliding_window": None},  # its router is a linear layer
    "jetmoe": {"num_local_experts": 4, "kv_channels": 8},  # mixtures in attention, too
}  # fmt: skip
IDS = torch.randint(1, VOCAB, (2, 40), generator=torch.Generator().manual_seed(0))


def moe(kind, seed=0):
    config = CONFIG_MAPPING[kind](**{**COMMON, **KINDS[kind]})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.12)
            elif "bias" in name:
                parameter.normal_(0.0, 0.02)
    return model


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


def wrappers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, ParamWrapper)}


@pytest.mark.parametrize("kind", KINDS)
def test_auto_adapts_all_experts_and_no_router(kind, tmp_path):
    base = moe(kind)
    bare = logits(base)
    three = {n for n, p in base.named_parameters() if p.dim() == 3}
    layers = sum(p.numel() for p in anatomy.decoder_layers(base).parameters())
    share = sum(p.numel() for n, p in base.named_parameters() if n in three) / layers
    model = adapt(base, HyloradaConfig(), seed=0)
    assert torch.equal(logits(model), bare)
    found = {
        f"{n.replace('.base_layer', '')}.{m.parameter_name}" for n, m in wrappers(model).items()
    }
    assert found == {f"base_model.model.{name}" for name in three}
    adapted = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    assert not adapted & {"gate", "router", "shared_expert_gate", "layer"}
    experts = reached_experts(model)
    assert experts.share == pytest.approx(share)
    assert experts.adapted == 1.0
    assert experts.note == f"experts are adapted: {share:.0%} of the decoder layers' parameters"
    for wrapper in wrappers(model).values():
        a = wrapper.lora_A["default"].weight
        for rows in a.view(wrapper.num_experts, 8, -1):
            assert torch.allclose(rows @ rows.T, torch.eye(8), atol=1e-5)
        assert not wrapper.lora_B["default"].weight.any()
        assert wrapper.scaling["default"] == 16 / 8**0.5

    trained = logits(shaken(model))
    assert (trained - bare).abs().max() > 1e-2
    assert torch.allclose(trained, logits(by_hand(model, moe(kind))), atol=1e-4)  # float32
    model.save_pretrained(str(tmp_path))
    assert torch.equal(logits(load_adapter(moe(kind), tmp_path)), trained)
    other = PeftModel.from_pretrained(moe(kind), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(logits(other), trained)
    use_frozen_kernels(model)
    assert torch.allclose(logits(model), trained, atol=1e-4)
    with model.disable_adapter():
        assert torch.allclose(logits(model), bare, atol=1e-4)
    assert torch.equal(logits(copy.deepcopy(other).unload()), bare)
    assert torch.allclose(logits(other.merge_and_unload()), trained, atol=1e-4)


def by_hand(model, base):
    """The base with W + scale B A written into every weight, expert by expert."""
    with torch.no_grad():
        for name, layer in model.named_modules():
            if not isinstance(layer, LoraLayer):
                continue
            path = name.removeprefix("base_model.model.").replace(".base_layer", "")
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            scale = layer.scaling["default"]
            if not isinstance(layer, ParamWrapper):
                base.get_submodule(path).weight.add_(scale * b @ a)
                continue
            weight = base.get_parameter(f"{path}.{layer.parameter_name}")
            for e in range(len(weight)):
                a_e = a[e * 8 : (e + 1) * 8]
                b_e = b[:, e :: len(weight)]  # peft keeps the experts of B side by side
                update = scale * b_e @ a_e
                weight[e] += update if update.shape == weight[e].shape else update.T
    return base


@pytest.mark.parametrize("kind", ["mixtral", "jetmoe"])
def test_every_tensor_of_the_experts_gets_a_gradient(kind):
    """Also where the text of the probe goes to few of them: an expert's rows are part of one."""
    base = moe(kind)
    model = adapt(base, HyloradaConfig(), seed=0)
    report = check_integrity(model, VOCAB, 64, probe_length=12)
    assert report.checks["gradient_coverage"].ok, report.checks["gradient_coverage"].detail
    for name in ("parameter_audit", "identity_at_start", "no_op", "save_load"):
        assert report.checks[name].ok, report.checks[name].detail
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing and base.supports_gradient_checkpointing:
            base.activation_checkpointing_enable({"use_reentrant": False})
        model.train().zero_grad()
        model(IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert gradient.any(), name
        assert torch.allclose(gradient, gradients[1][name], atol=1e-5), name


@pytest.mark.parametrize(("fields", "reason"), [
    ({"use_dora": True}, "peft's LoRA on experts has no DoRA"),
    ({"lora_dropout": 0.1}, "peft's LoRA on experts has no dropout"),
    ({"target_modules": "attention"}, "lora.target_modules names other layers"),
    ({"target_modules": ["q_proj"]}, "lora.target_modules names other layers"),
])  # fmt: skip
def test_experts_that_are_left_out_are_named_with_their_share(fields, reason):
    model = adapt(moe("mixtral"), HyloradaConfig(**fields), seed=0)
    experts = reached_experts(model)
    assert not wrappers(model)
    assert experts.adapted == 0.0
    assert experts.note == (
        f"experts are not adapted: {experts.share:.0%} of the decoder layers' parameters ({reason})"
    )
    assert model(IDS).logits.isfinite().all()


def test_the_position_bias_leaves_the_experts_alone_and_says_so():
    model = adapt(moe("mixtral"), HyloradaConfig(position_bias_enabled=True, max_length=64))
    assert "the position bias acts on the linear layers alone" in reached_experts(model).note
    variants = {type(m) for m in model.modules() if isinstance(m, LoraLayer) and m.lora_variant}
    assert ParamWrapper not in variants
    assert variants


def test_a_second_adapter_has_its_own_orthonormal_experts():
    model = adapt(moe("mixtral"), HyloradaConfig(), seed=0)
    model.add_adapter("second", HyloradaConfig(r=4))
    assert len(wrappers(model)) == 4
    for wrapper in wrappers(model).values():
        for rows in wrapper.lora_A["second"].weight.view(4, 4, -1):
            assert torch.allclose(rows @ rows.T, torch.eye(4), atol=1e-5)


def test_a_model_without_experts_has_nothing_to_say():
    assert reached_experts(AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**COMMON))) is (
        None
    )


def test_the_bare_model_of_a_baseline_has_its_share():
    assert reached_experts(moe("mixtral")).adapted == 0.0
