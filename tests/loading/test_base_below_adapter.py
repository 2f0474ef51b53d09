"""The base below an adapter is the base itself, bit for bit, and the run's model is left as it was.

The oracle is what the runner did before: a second copy of the base, loaded and extended.
"""

import copy
import gc
import weakref

import pytest
import torch
from helpers.families import FAMILIES, ROPE_FAMILIES, make_model, tokens
from helpers.marks import LONG, SLOW
from helpers.peft_types import (
    NOT_ON_GPT2,
    base,
    lora_variants,
    peft_types,
    save,
    trained,
    type_config,
)
from helpers.tiny_runs import make_config, make_model_folder, make_texts

from hylorada.architecture import anatomy
from hylorada.config import PositionRangeConfig
from hylorada.errors import DataError
from hylorada.kernels.frozen_layers import use_frozen_kernels
from hylorada.loading.backbone import Backbone, probe_logits
from hylorada.loading.base_below_adapter import BaseBelow
from hylorada.methods import HyloradaConfig, adapt, load_adapter
from hylorada.methods.position_range import extend_range
from hylorada.records.provenance import weights_sha256
from hylorada.runner import base_model as base_module
from hylorada.runner.run import run

pytestmark = pytest.mark.filterwarnings("ignore")  # peft comments on every odd configuration
SHORT, FAR = 64, 150
RANGE = PositionRangeConfig()


def loaded(model):
    """As `load_backbone` returns it."""
    model.requires_grad_(False).eval()
    return Backbone(
        model, None, weights_sha256(model), "", torch.float32,
        anatomy.trained_length(model.config), probe_logits(model),
    )  # fmt: skip


def logits(model, length):
    with torch.no_grad():
        return model(input_ids=tokens(2, length), use_cache=False).logits


def oracle(model, extended):
    """The logits of a copy of the base with fast kernels."""
    model = copy.deepcopy(model)
    if extended:
        extend_range(model, FAR)
    use_frozen_kernels(model)
    return logits(model, FAR if extended else SHORT)


def never():
    raise AssertionError("a second copy was loaded")


def state(model):
    """All that must not differ afterwards: which tensors, whether they train, kernels, settings."""
    lm = anatomy.causal_lm(model)
    return {
        "tensors": {n: (id(p), p.requires_grad) for n, p in model.named_parameters()},
        "buffers": [(n, id(b)) for n, b in model.named_buffers()],
        "modules": [(n, id(m), type(m), m.training) for n, m in model.named_modules()],
        "config": lm.config.to_dict(),
        "attention": lm.config._attn_implementation,
        "logits": logits(model, FAR),
    }


def unchanged(before, after):
    assert torch.equal(before.pop("logits"), after.pop("logits"))
    assert before == after


def whole_method(model, **options):
    settings = {
        "r": 2, "max_length": FAR, "position_bias_enabled": True, "landmark_enabled": True,
        "s2_attn_enabled": True, "s2_group_size": 32, "s2_in_evaluation": True,
        "train_norms": True, "train_embeddings": not anatomy.rotary_modules(model), **options,
    }  # fmt: skip
    model = adapt(model, HyloradaConfig(**settings), FAR, seed=0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    return model.train()


@pytest.mark.parametrize("family", FAMILIES)
def test_below_the_whole_method(family):
    backbone = loaded(make_model(family, SHORT))
    short, long = (oracle(backbone.model, extended) for extended in (False, True))
    model = whole_method(backbone.model)
    before = state(model)
    assert not torch.equal(before["logits"], long)
    below = BaseBelow(model, backbone, FAR, RANGE, never)
    for _ in range(2):
        with below.as_loaded() as found:
            assert torch.equal(logits(found, SHORT), short)
            assert found.config.max_position_embeddings == SHORT
        with below.extended() as found:
            assert torch.equal(logits(found, FAR), long)
        unchanged(dict(before), state(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_without_an_adapter(family):
    """method=baseline: the range is extended, and nothing else."""
    backbone = loaded(make_model(family, SHORT))
    short, long = (oracle(backbone.model, extended) for extended in (False, True))
    model = backbone.model
    extend_range(model, FAR)
    before = state(model)
    below = BaseBelow(model, backbone, FAR, RANGE, never)
    with below.extended() as found:
        assert torch.equal(logits(found, FAR), long)
    with below.as_loaded() as found:
        assert torch.equal(logits(found, SHORT), short)
    unchanged(before, state(model))


@pytest.mark.parametrize("family", ROPE_FAMILIES[:2])
def test_a_base_that_comes_with_dynamic_rope_keeps_no_memory_of_it(family):
    model = make_model(family, SHORT)
    extend_range(model, FAR, rope_type="dynamic")
    model.config.__dict__.pop("hylorada_range")
    model = type(model)(model.config).eval()
    backbone = loaded(model)
    below = BaseBelow(model, backbone, SHORT, RANGE, never)
    tables = [m.inv_freq.clone() for _, m in anatomy.rotary_modules(model)]
    with below.as_loaded() as found:
        logits(found, FAR)
    kept = [m.inv_freq for _, m in anatomy.rotary_modules(model)]
    assert all(torch.equal(a, b) for a, b in zip(kept, tables, strict=True))
    logits(model, FAR)
    used = [m.inv_freq for _, m in anatomy.rotary_modules(model)]
    assert not torch.equal(used[0], tables[0])


@pytest.mark.parametrize(
    "family", [pytest.param("llama", marks=LONG), pytest.param("gpt2", marks=SLOW)]
)
def test_below_every_method_of_peft(family, tmp_path):
    """Switched off, or where that does not lead back to the base, loaded again; never another."""
    again = []
    short, long = (oracle(base(family), extended) for extended in (False, True))
    settings = {
        **{n: type_config(n, family) for n in peft_types() if n != "POLY"},
        **lora_variants(family),
    }
    for name, config in settings.items():
        if family == "gpt2" and name in NOT_ON_GPT2:
            continue
        folder = save(trained(base(family), config), tmp_path / name.replace(" ", "_"))
        backbone = loaded(base(family))
        extend_range(backbone.model, FAR)
        model = load_adapter(backbone.model, folder)
        before = state(model)

        def load(name=name):
            again.append(name)
            return loaded(base(family))

        below = BaseBelow(model, backbone, FAR, RANGE, load)
        with below.as_loaded() as found:
            assert torch.equal(logits(found, SHORT), short), name
        with below.extended() as found:
            assert torch.equal(logits(found, FAR), long), name
        unchanged(before, state(model))
    # These change tensors of the base where they lie: its biases, or the weights they start from.
    assert again == {"llama": ["PiSSA"], "gpt2": ["all biases", "PiSSA"]}[family]


def test_an_adapter_with_another_extension_is_not_the_base_of_every_arm():
    backbone = loaded(make_model("llama", SHORT))
    long = oracle(backbone.model, True)
    model = whole_method(backbone.model, rope_scaling_type="yarn")
    again = []

    def load():
        again.append(1)
        return loaded(make_model("llama", SHORT))

    below = BaseBelow(model, backbone, FAR, RANGE, load)
    for _ in range(2):
        with below.extended() as found:
            assert torch.equal(logits(found, FAR), long)
            second = weakref.ref(found)
    assert len(again) == 1
    del found
    assert second() is not None
    below.release()
    assert second() is None


def test_a_base_that_changed_meanwhile_is_no_base():
    backbone = loaded(make_model("llama", SHORT))
    model = whole_method(backbone.model, rope_scaling_type="yarn")
    other = loaded(make_model("llama", SHORT, seed=1))
    below = BaseBelow(model, backbone, FAR, RANGE, lambda: other)
    with pytest.raises(DataError, match="its weights changed while the run was under way"):
        below.extended().__enter__()


@pytest.mark.slow
def test_a_run_loads_its_base_once(tmp_path, monkeypatch):
    """And leaves the same bytes whether the base's numbers were known or not."""
    make_model_folder(tmp_path / "model")
    make_texts(tmp_path / "texts")
    monkeypatch.setattr(base_module, "load_backbone", lambda *_: never())
    made = []
    for name in ("first", "second"):
        run(make_config(tmp_path, train__max_steps=2), tmp_path / name)
        files = ("metrics.jsonl", "adapter/adapter_model.safetensors", "integrity.json")
        made.append([(tmp_path / name / file).read_bytes() for file in files])
        gc.collect()
    assert made[0] == made[1]
