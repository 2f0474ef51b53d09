"""Sequences split over real processes against one process that has them whole, in float64.

The attention of whole sequences stands beside a dense reference in `test_s2_attention`.
"""

from __future__ import annotations

import contextlib
from fractions import Fraction

import pytest
import torch
import torch.distributed as dist
from helpers.families import VOCAB, make_model, tokens
from helpers.marks import LONG, SLOW, thinned
from helpers.processes import in_processes
from torch import nn
from transformers import AutoModelForCausalLM, BloomConfig, MistralConfig

from hylorada.architecture.labels import IGNORE
from hylorada.errors import ConfigError
from hylorada.methods import HyloradaConfig, adapt
from hylorada.methods.integrity import IntegrityReport
from hylorada.methods.integrity.split import check_split
from hylorada.methods.sequence_part import SequencePart, documents_of
from hylorada.methods.sequence_split import bytes_of_a_step, split_sequences
from hylorada.methods.split_limits import refuse_unsplittable
from hylorada.training.loss import LossModel
from hylorada.training.recomputation import gradient_checkpointing
from hylorada.training.split_loss import SplitLossModel

G = 6  # tokens in a group: no power of two
ROWS = 2
LOSS, GRADIENT = 1e-14, 1e-13  # relative; float64 sums in another order


def _model(family: str, length: int, **options) -> nn.Module:
    """Everything on, every parameter moved, in float64."""
    settings = {
        "r": 3, "position_bias_enabled": True, "landmark_enabled": True, "train_norms": True,
        "s2_attn_enabled": True, "s2_group_size": G, "max_length": length, **options,
    }  # fmt: skip
    if family in ("gpt2", "opt"):
        settings["train_embeddings"] = True
    model = adapt(make_model(family, length // 2), HyloradaConfig(**settings), length, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise.to(parameter.dtype), alpha=0.1)
    return model.double().train()


def _rows(length: int, packed: bool) -> dict[str, torch.Tensor]:
    """Token ids, labels with holes, and positions of documents that end anywhere."""
    ids_BN = tokens(ROWS, length, seed=2)
    labels_BN = ids_BN.clone()
    labels_BN[0, length // 3 : length // 3 + 5] = IGNORE
    rows = {"input_ids": ids_BN, "labels": labels_BN}
    if packed:
        starts = torch.zeros(ROWS, length, dtype=torch.long)
        # Inside a part, at a boundary between parts, inside a halo; one document over all parts.
        for place in (5, length // 2, length // 2 + 1, length - length // 3 - 2):
            starts[0, place] = place
        starts[1, length // 4 * 3] = length // 4 * 3
        rows["position_ids"] = torch.arange(length) - starts.cummax(1).values
    return rows


def _gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def _off(found: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """The largest error of a gradient, relative to the norm of that gradient."""
    return max(
        float((found[name] - g).norm() / g.norm().clamp(min=1e-8)) for name, g in right.items()
    )


def _compared(group, family, parts, packed, checkpointing, options):
    """Errors of loss and gradients, and the bytes sent beside those of the formula."""
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    length = world * parts * G
    model, rows = _model(family, length, **options), _rows(length, packed)
    every = int(checkpointing)
    recomputed = gradient_checkpointing(model.get_base_model(), bool(every), every or 1)
    with recomputed:
        whole_loss, whole_tokens = LossModel(model)(**rows)
        whole_loss.backward()
        whole = _gradients(model)
        model.zero_grad()
        with split_sequences(model, group) as split:
            parted = SplitLossModel(LossModel(model), split, every)
            loss, scored = parted(**rows)
            loss.backward()
    found = _gradients(model)
    for tensor in (loss.detach(), scored, *found.values()):
        dist.all_reduce(tensor, group=group)
    assert int(scored) == int(whole_tokens)
    width = 8  # bytes of a float64
    formula = bytes_of_a_step(model, ROWS, length, world, width, rank)
    return {
        "loss": abs(float(loss.detach() / whole_loss.detach()) - 1),
        "gradients": _off(found, whole),
        "sent": dict(split.sent),
        "formula": formula,
        "expected": dict(parted.formula),
    }


def _check(answers, recomputed=False):
    for answer in answers:
        assert answer["loss"] < LOSS
        assert answer["gradients"] < GRADIENT
        assert answer["sent"] == answer["expected"]
        # In three layers all, or the first and the last, compute twice what they send.
        again = {0: 0, 1: 1, 2: Fraction(2, 3)}[int(recomputed)]
        twice = ("halo", "keys and values")
        assert answer["sent"] == {
            k: v * (1 + again * (k in twice)) for k, v in answer["formula"].items()
        }


@pytest.mark.parametrize(
    ("family", "ranks", "packed", "checkpointing", "options"),
    [
        ("llama", 3, True, True, {"s2_shift": "layers"}),
        pytest.param(*("gpt2", 2, True, False, {"s2_shift": "heads"}), marks=pytest.mark.slow),
        pytest.param(
            *("llama", 3, False, True, {"s2_attn_enabled": False}), marks=pytest.mark.slow
        ),  # attention is full
        pytest.param(*("llama", 2, False, 2, {"s2_shift": "heads"}), marks=pytest.mark.slow),
        pytest.param(
            *("llama", 2, True, False, {"s2_full_layers": 0.3}), marks=pytest.mark.slow
        ),  # in one layer of three
        pytest.param(
            *("llama", 3, True, True, {"s2_full_heads": 0.5}), marks=pytest.mark.slow
        ),  # in every layer, one of two heads of keys
    ],
)
def test_split_over_processes_it_is_the_loss_and_the_gradients_of_one(
    family, ranks, packed, checkpointing, options
):
    answers = in_processes(ranks, _compared, family, 3, packed, checkpointing, options)
    _check(answers, checkpointing)


PATTERNS = (
    {"s2_shift": "layers"},
    {"s2_shift": "heads"},
    {"s2_attn_enabled": False},
    {"s2_shift": "heads", "s2_full_layers": 0.34},
    {"s2_shift": "layers", "s2_full_heads": 0.5},
    {"s2_shift": "heads", "s2_full_heads": 0.5},
    {"s2_shift": "layers", "bucketing": "relative", "landmark_position_buckets": 0},
)
FAMILIES = ("llama", "gpt2", "qwen2", "gpt_neox", "opt", "qwen3")
EVERYTHING = [
    (family, options, packed, not packed)
    for family in FAMILIES
    for options in PATTERNS
    for packed in (False, True)
    if not (packed and family == "opt")  # whose documents transformers runs into each other
]


# Of 55 cases CI runs 7: each family, each pattern and each kind of row at least once.
@pytest.mark.parametrize(
    ("family", "options", "packed", "checkpointing"),
    thinned(EVERYTHING, 8, often=SLOW, seldom=LONG),
)
def test_every_family_and_pattern_on_four_processes(family, options, packed, checkpointing):
    for parts in (1, 5):  # a part of one group, and one of several
        answers = in_processes(4, _compared, family, parts, packed, checkpointing, options)
        _check(answers, checkpointing)


def _hidden(group, packed):
    """Hidden states in evaluation, where attention is full; and whole ones inside the block."""
    length = 3 * G * dist.get_world_size(group)
    model, rows = _model("llama", length).eval(), _rows(length, packed)
    given = {k: v for k, v in rows.items() if k != "labels"}
    backbone = model.get_base_model().model
    with torch.no_grad():
        whole = backbone(**given, use_cache=False).last_hidden_state
        with split_sequences(model, group) as split:
            inside = backbone(**given, use_cache=False).last_hidden_state
            positions = rows.get("position_ids", torch.arange(length).expand(ROWS, -1))
            part = split.part(positions)
            with part.running():
                found = backbone(
                    input_ids=part.own(rows["input_ids"]), position_ids=part.own(positions),
                    use_cache=False, sequence_part=part,
                ).last_hidden_state  # fmt: skip
        after = backbone(**given, use_cache=False).last_hidden_state
    assert torch.equal(inside, whole)
    assert torch.equal(after, whole)
    return float((found - part.own(whole)).abs().max() / whole.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_in_evaluation_hidden_states_are_those_of_whole_sequences(packed):
    assert max(in_processes(2, _hidden, packed)) < LOSS


def _checked(group, wrong, packed):
    """The gate's check, after something was made wrong on purpose."""
    if wrong == "halo":
        right = SequencePart.passed

        def zeros(self, message, step, what):
            received = right(self, message, step, what)
            return received if received is None or step < 0 else torch.zeros_like(received)

        SequencePart.passed = zeros
    if wrong in ("halo gradient", "no number"):
        right = SequencePart.passed
        factor = 0.0 if wrong == "halo gradient" else torch.nan

        def without(self, message, step, what):
            received = right(self, message, step, what)
            return received if received is None or step > 0 else factor * received

        SequencePart.passed = without
    if wrong == "carry":
        SequencePart.carried = lambda self, tail: torch.zeros_like(tail)
    length = 8 * G * dist.get_world_size(group)
    model = _model("llama", length).float()
    report = IntegrityReport(length, 61)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with split_sequences(model, group) as split:
        whole = LossModel(model)
        check_split(report, model, VOCAB, split, whole, SplitLossModel(whole, split), packed=packed)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    check = report.checks["sequence_split"]
    return check.ok, check.value, check.detail


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_the_gate_passes_a_right_split(packed):
    answers = in_processes(2, _checked, "", packed)
    for ok, value, detail in answers:
        assert ok, detail
        assert value < 1e-5
    assert answers[0][1] == answers[1][1]


@pytest.mark.parametrize(
    "wrong",
    [
        "halo",
        *(pytest.param(w, marks=pytest.mark.slow) for w in ("halo gradient", "carry", "no number")),
    ],
)
def test_what_crosses_wrongly_fails_the_gate_on_every_process(wrong):
    for ok, _, detail in in_processes(2, _checked, wrong, False):
        assert not ok
        assert "something that crosses between the parts is wrong" in detail


def _llama(length, **options):
    return adapt(make_model("llama", length // 2), HyloradaConfig(**options), length, seed=0)


def test_what_cannot_be_split_is_refused_in_one_line():
    length, ranks = 48, 2
    s2 = {"s2_attn_enabled": True, "s2_group_size": 8}
    refuse_unsplittable(_llama(length, **s2), ranks, length)
    cases = [
        (_llama(length, **s2), 5, "48 tokens are no multiple of 5 processes"),
        (_llama(length, **s2), 4, "12 each, which is no multiple of the group of 8"),
        (_llama(length, rope_scaling_type="dynamic"), 2, "rope_type=dynamic"),
        (
            _llama(length, landmark_enabled=True, landmark_pooling="sequence_mean"),
            2,
            "landmark.pooling=sequence_mean reads the parts after",
        ),
        (_llama(length, lora_dropout=0.1), 2, "dropout draws for whole sequences"),
    ]
    eager = _llama(length)
    eager.get_base_model().set_attn_implementation("eager")
    cases.append((eager, 2, "attention is eager; set model.attn_implementation=sdpa"))
    bloom = AutoModelForCausalLM.from_config(
        BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4)
    )
    window = MistralConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=8,
    )  # fmt: skip
    cases += [
        (bloom, 2, "Bloom"),
        (AutoModelForCausalLM.from_config(window), 2, "attends fully"),
    ]
    for model, processes, told in cases:
        with pytest.raises(ConfigError, match=r"^sequence_ranks: .*; (set|use) ") as refusal:
            refuse_unsplittable(model, processes, length)
        assert told in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_masks_are_refused_and_so_is_a_layer_that_is_not_told_its_part():
    model, rows = _llama(24), _rows(24, False)
    with split_sequences(model, None) as split:
        with pytest.raises(ConfigError, match="attention mask"):
            SplitLossModel(LossModel(model), split)(**rows, attention_mask=torch.ones(ROWS, 24))
        part = split.part(torch.arange(24)[None])
        with part.running(), pytest.raises(ConfigError, match="not told which part"):
            LossModel(model)(**rows)
        with part.running(), pytest.raises(ConfigError, match="was given a mask"):
            model.get_base_model().model(
                input_ids=rows["input_ids"], attention_mask=torch.zeros(1, 1, 24, 24),
                sequence_part=part,
            )  # fmt: skip


def test_a_model_that_hands_nothing_down_is_refused(monkeypatch):
    model = _llama(24)
    layer = model.get_base_model().model.layers[1]
    forward = layer.forward
    monkeypatch.setattr(
        layer, "forward", lambda *a, sequence_part=None, **k: forward(*a, **k)
    )  # fmt: skip
    with (
        pytest.raises(ConfigError, match="LlamaAttention is not told"),
        contextlib.ExitStack() as s,
    ):
        s.enter_context(split_sequences(model, None))
    assert model.get_base_model().config._attn_implementation == "sdpa"


def test_documents_are_told_apart_as_transformers_does():
    positions = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 0, 1, 0]])
    assert documents_of(positions).tolist() == [[0] * 5, [0, 0, 1, 1, 2]]
    assert documents_of(positions[:1]) is None
