"""Models with random weights and the arms that train them: a step is what the run's loop does."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from gpu_parts.place import Place
from hylorada.architecture.logits import output_head
from hylorada.config import TrainConfig
from hylorada.kernels import grouped_heads
from hylorada.kernels.compiled import compiled_layers
from hylorada.kernels.frozen_layers import use_frozen_kernels
from hylorada.kernels.frozen_weights import make_fast
from hylorada.methods import HyloradaConfig, adapt
from hylorada.methods.s2_attention import enable_s2
from hylorada.training.loss import LossModel
from hylorada.training.optim import make_optimizer
from hylorada.training.recomputation import gradient_checkpointing
from hylorada.training.weights import trainable

ARMS = {
    "peft": "peft LoRA, float32 base under autocast, SDPA, the model's own loss",
    "peft-bf16": "the same on a base in bfloat16",
    "eager": "peft LoRA, eager attention, the model's own loss",
    "ours": "peft LoRA, SDPA, frozen kernels, chunked loss",
    "s2": "ours with shifted sparse attention, g = 2048",
    "hyl": "every component, g = 2048",
    "hyl-f32": "hyl with the frozen weights left in float32",
    "hyl-compiled": "hyl with each layer compiled (train.compile=layers)",
    "ours-compiled": "ours with each layer compiled",
    "hyl-nocudnn": "hyl without cuDNN's attention",
    "s2-nocudnn": "s2 without cuDNN's attention",
    "...+ckpt": "with gradient checkpointing",
    "...+ckpt+offload": "and what layers are recomputed from in the host's memory",
}
MODULES = {
    "gpt2": ["c_attn", "c_proj"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
SETTINGS = TrainConfig(max_steps=1000, lr=2e-4)


def base(place: Place, model: str, reach: int, attention: str = "sdpa", **changes: Any) -> Any:
    """A model of random weights in float32, without dropout, frozen, on the device.

    Args:
        place: where.
        model: gpt2, smollm2, llama1b.
        reach: tokens that it is made for.
        attention: implementation.
        **changes: of its configuration.
    """
    grouped_heads.use_here(place.device)  # as where a run loads its base
    shape = {**place.shape(model), **changes}
    torch.manual_seed(0)
    with torch.device(place.device):
        if model == "gpt2":
            config = GPT2Config(
                **shape, n_positions=reach, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                bos_token_id=0, eos_token_id=0, attn_implementation=attention,
            )  # fmt: skip
            made: Any = GPT2LMHeadModel(config)
        else:
            shape["rope_parameters"] = {
                "rope_type": "default",
                "rope_theta": shape.pop("rope_theta"),
            }
            config = LlamaConfig(
                **shape, max_position_embeddings=reach, tie_word_embeddings=True, bos_token_id=0,
                eos_token_id=0, pad_token_id=0, attn_implementation=attention,
            )  # fmt: skip
            made = LlamaForCausalLM(config)
    return made.requires_grad_(False)


def lora(model: str) -> LoraConfig:
    """peft's LoRA on the modules that the method takes."""
    family = "gpt2" if model == "gpt2" else "llama"
    return LoraConfig(
        r=8, lora_alpha=16, use_rslora=True, target_modules=MODULES[family],
        fan_in_fan_out=family == "gpt2", task_type="CAUSAL_LM",
    )  # fmt: skip


def every_component(place: Place, model: str, reach: int) -> HyloradaConfig:
    """What the adaptive rule gives from 4096 tokens on."""
    return HyloradaConfig(
        position_bias_enabled=True,
        landmark_enabled=True,
        s2_attn_enabled=True,
        s2_group_size=place.group,
        train_embeddings=model == "gpt2",
        train_norms=True,
        fan_in_fan_out=model == "gpt2",
        max_length=reach,
    )


def adapted(place: Place, arm: str, model: str, reach: int, **changes: Any) -> Any:
    """The model of an arm, in training mode, its kernels in place."""
    plain = arm.partition("+")[0]
    if plain.startswith("hyl"):
        under = base(place, model, place.trained, **changes)
        made: Any = adapt(under, every_component(place, model, reach), reach, seed=0)
    else:
        under = base(place, model, reach, "eager" if plain == "eager" else "sdpa", **changes)
        if plain == "peft-bf16":
            under = under.to(torch.bfloat16)
        torch.manual_seed(0)
        made = get_peft_model(under, lora(model))
    made.to(place.device).train()
    if plain.startswith("s2"):
        enable_s2(made, place.group, "layers")
    if not plain.startswith(("peft", "eager")):
        output_head(made)  # it is asked in the model's own precision, as a run asks it
    if plain == "hyl-f32":
        use_frozen_kernels(made)
    elif not plain.startswith(("peft", "eager")):
        make_fast(made, torch.bfloat16)
    return made


class Arm:
    """An arm that can make steps.

    Args:
        place: where.
        name: of `ARMS`, perhaps with +ckpt.
        model: gpt2, smollm2, llama1b.
        length: tokens in a step.
    """

    def __init__(self, place: Place, name: str, model: str, length: int) -> None:
        self.place, self.name = place, name
        self.model = adapted(place, name, model, length)
        self.own_loss = name.startswith(("peft", "eager"))
        self.loss_model: Any = None if self.own_loss else LossModel(self.model)
        self.trainables = trainable(self.model)
        self.optimizer = make_optimizer(self.trainables, SETTINGS)
        self.texts = [place.ids(model, length, seed) for seed in range(4)]
        self.steps = 0
        self.after_forward = 0.0
        self.as_long_as_it_lives = ExitStack()
        # A compiler takes longer than a rehearsal may; the tests of the package compile tiny ones.
        if "-compiled" in name and not place.tiny:
            self.as_long_as_it_lives.enter_context(compiled_layers(self.model))

    def loss(self, ids_BT: Tensor) -> Tensor:
        """Nats per token, under autocast."""
        with self.place.bf16():
            if self.own_loss:
                return self.model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss
            sum_nll, tokens = self.loss_model(ids_BT, ids_BT)
            return sum_nll / tokens

    def step(self) -> Tensor:
        """Forward, backward, clipping, AdamW."""
        ids_BT = self.texts[self.steps % len(self.texts)]
        self.steps += 1
        cudnn = torch.backends.cuda.cudnn_sdp_enabled()
        torch.backends.cuda.enable_cudnn_sdp(cudnn and "nocudnn" not in self.name)
        try:
            recomputed = "+ckpt" in self.name
            # A processor has no other memory to hold anything in.
            offload = self.name.endswith("+offload") and self.place.device.type == "cuda"
            lm = self.model.get_base_model()
            with gradient_checkpointing(lm, recomputed, offload=offload):
                loss = self.loss(ids_BT)
                self.after_forward = self.place.allocated()
                loss.backward()
        finally:
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
        torch.nn.utils.clip_grad_norm_([p for _, p in self.trainables], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def raced(place: Place, arms: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Milliseconds of each by turns; the first is timed twice a round, which shows the spread."""
    first = next(iter(arms))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in (*arms, "again")}
    for turn in range(rounds):
        names = list(arms)
        names = names[turn % len(names) :] + names[: turn % len(names)]
        for name in names:
            times[name].append(place.once(arms[name]))
        times["again"].append(place.once(arms[first]))
    found: dict[str, Any] = {}
    for name, pairs in times.items():
        device, wall = sorted(d for d, _ in pairs), [w for _, w in pairs]
        found[name] = {
            "ms": statistics.median(device),
            "iqr_ms": device[(3 * len(device)) // 4] - device[len(device) // 4]
            if len(device) > 2 else device[-1] - device[0],
            "wall_ms": statistics.median(wall),
        }  # fmt: skip
    found["spread"] = abs(found["again"]["ms"] / found[first]["ms"] - 1)
    return found
