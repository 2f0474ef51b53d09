"""A base whose layers are shared out over real processes, against one that each has whole."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist
from helpers.families import VOCAB, make_model, tokens
from helpers.marks import LONG, SLOW, thinned
from helpers.processes import in_processes
from torch.distributed.tensor import DTensor

from hylorada.architecture import anatomy
from hylorada.errors import ConfigError
from hylorada.kernels.frozen_weights import make_fast
from hylorada.loading.sharded_base import shard_base
from hylorada.methods import HyloradaConfig, adapt, check_integrity
from hylorada.methods.integrity import check_saving
from hylorada.methods.sequence_split import split_sequences
from hylorada.training.loss import LossModel
from hylorada.training.recomputation import gradient_checkpointing
from hylorada.training.split_loss import SplitLossModel

LENGTH, TRAINED, G = 36, 18, 6
CPU = torch.device("cpu")


def _model(family, dtype=torch.float32, **options):
    base = make_model(family, TRAINED)
    if family == "gpt2":
        base.tie_weights()
    settings = {
        "r": 3, "position_bias_enabled": True, "landmark_enabled": True, "train_norms": True,
        "s2_attn_enabled": True, "s2_group_size": G, "train_embeddings": family == "gpt2",
        **options,
    }  # fmt: skip
    model = adapt(base.to(dtype), HyloradaConfig(**settings), LENGTH, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def _rows():
    ids_BN = tokens(2, LENGTH, seed=2)
    positions_BN = torch.arange(LENGTH).repeat(2, 1)
    positions_BN[0, 13:] -= 13
    return {"input_ids": ids_BN, "labels": ids_BN, "position_ids": positions_BN}


def _trained(model, loss_model, rows, checkpointing, autocast):
    """Loss and gradients."""
    model.train()
    with (
        gradient_checkpointing(model.get_base_model(), checkpointing),
        torch.autocast("cpu", autocast, enabled=autocast is not None),
    ):
        loss, _ = loss_model(**rows)
        loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return loss.detach(), found


def _asked(model, rows, checkpointing, autocast):
    """All that is asked of a model: logits, loss, gradients, generated tokens."""
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=rows["input_ids"], use_cache=False).logits
        generated = model.generate(
            input_ids=rows["input_ids"][:, :7], max_new_tokens=3 + 3 * (dist.get_rank() == 1),
            min_new_tokens=3, do_sample=False, synced_gpus=True, pad_token_id=0,
        )  # fmt: skip
    loss, gradients = _trained(model, LossModel(model), rows, checkpointing, autocast)
    return {"logits": logits, "generated": generated, "loss": loss, **gradients}


def _compared(group, family, dtype, checkpointing, autocast):
    model, rows = _model(family, dtype), _rows()
    make_fast(model, None)
    whole = _asked(model, rows, checkpointing, autocast)
    trains = [n for n, p in model.named_parameters() if p.requires_grad]
    frozen = sum(
        p.nbytes
        for layer in anatomy.decoder_layers(model)
        for p in layer.parameters()
        if not p.requires_grad
    )
    told = shard_base(model, group, CPU)
    alone = _count_whole_layers(model)
    found = _asked(model, rows, checkpointing, autocast)
    differing = [name for name, value in whole.items() if not torch.equal(value, found[name])]
    assert differing == []
    assert trains == [n for n, p in model.named_parameters() if p.requires_grad]
    assert not any(isinstance(p, DTensor) for p in model.parameters() if p.requires_grad)
    assert told.whole == frozen
    assert told.here <= frozen / dist.get_world_size(group) + 3 * 12 * 64 * 4  # rows are whole
    assert max(alone) == 1
    assert set(alone) == {1}
    return told.here, frozen


def _count_whole_layers(model):
    """How many layers are whole whenever one of them computes, in a list that grows."""
    layers, counts = anatomy.decoder_layers(model), []

    def count(*_):
        kinds = [
            any(not p.requires_grad and not isinstance(p, DTensor) for p in layer.parameters())
            for layer in layers
        ]
        counts.append(sum(kinds))

    for attention in anatomy.attention_modules(model):
        attention.register_forward_hook(count)
        attention.register_full_backward_hook(count)
    return counts


@pytest.mark.parametrize(
    ("family", "dtype", "checkpointing", "autocast"),
    [
        ("llama", torch.float32, True, None),
        pytest.param(*("gpt2", torch.bfloat16, False, torch.bfloat16), marks=pytest.mark.slow),
    ],
)
def test_a_sharded_base_gives_the_bits_of_a_whole_one(family, dtype, checkpointing, autocast):
    answers = in_processes(2, _compared, family, dtype, checkpointing, autocast)
    assert sum(here for here, _ in answers) >= answers[0][1]  # together they have all of it


# Of 20 cases CI runs 5: each family, each type and each way at least once.
@pytest.mark.parametrize(
    ("family", "dtype", "checkpointing"),
    thinned(
        itertools.product(
            ("llama", "gpt2", "opt", "gpt_neox", "qwen3"),
            (torch.float32, torch.bfloat16),
            (False, True),
        ),
        [
            ("llama", torch.bfloat16, True),
            ("gpt2", torch.float32, False),
            ("opt", torch.float32, True),
            ("gpt_neox", torch.bfloat16, False),
            ("qwen3", torch.float32, False),
        ],
        often=SLOW,
        seldom=LONG,
    ),
)
def test_every_family_on_three_processes(family, dtype, checkpointing):
    autocast = None if dtype == torch.float32 else dtype
    in_processes(3, _compared, family, dtype, checkpointing, autocast)


def _gated(group):
    model = _model("llama")
    whole = check_integrity(model, VOCAB, LENGTH)
    saved = check_saving(model, VOCAB, LENGTH)
    shard_base(model, group, CPU)
    sharded = check_integrity(model, VOCAB, LENGTH, saved=saved)
    assert whole.ok, whole.failed
    assert sharded.to_dict() == whole.to_dict()
    again = check_integrity(model, VOCAB, LENGTH)
    return again.failed


@pytest.mark.slow
def test_the_gate_finds_the_same_when_saving_was_asked_before():
    assert in_processes(2, _gated) == [["save_load"]] * 2  # which is why


def _split_and_sharded(group):
    """The sequence split and the base sharded over the same processes."""
    model, rows = _model("llama").double(), _rows()
    whole, right = _trained(model, LossModel(model), rows, True, None)
    shard_base(model, group, CPU)
    with split_sequences(model, group) as split:
        loss_model = SplitLossModel(LossModel(model), split)
        loss, gradients = _trained(model, loss_model, rows, True, None)
    for value in (loss, *gradients.values()):
        dist.all_reduce(value, group=group)
    off = [(gradients[n] - g).norm() / g.norm().clamp(min=1e-8) for n, g in right.items()]
    return float(loss / whole) - 1, float(max(off))


@pytest.mark.slow
def test_with_the_sequence_split_over_the_same_processes_it_is_exact_too():
    for loss, gradient in in_processes(2, _split_and_sharded):
        assert abs(loss) < 1e-14
        assert gradient < 1e-13


def _idle(group):
    """One process has nothing to score, and runs the model all the same."""
    model, rows = _model("gpt2"), _rows()
    shard_base(model, group, CPU)
    if dist.get_rank(group):
        rows["labels"] = torch.full_like(rows["labels"], -100)
    _, gradients = _trained(model, LossModel(model), rows, False, None)
    return max(float(g.abs().max()) for g in gradients.values())


@pytest.mark.slow
def test_a_process_without_a_scored_token_adds_nothing():
    busy, idle = in_processes(2, _idle)
    assert busy > 0
    assert idle == 0


def test_nothing_to_share_out_is_refused():
    model = make_model("llama", TRAINED)
    with pytest.raises(ConfigError, match=r"^shard_base: .* shard_base=false$"):
        shard_base(model, None, CPU)
