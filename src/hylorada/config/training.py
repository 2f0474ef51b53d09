"""The settings of training: task, budget, optimiser, memory."""

from __future__ import annotations

from dataclasses import dataclass

from hylorada.config.evaluation import DEPTHS
from hylorada.config.fields import choice, flag, number, part, several, text


@dataclass
class RetrievalTaskConfig:
    """Key-value retrieval as training data (`train.task=retrieval`, `train.mix`).

    Its keys differ from those generated for the evaluation, and no answer lies near a held-out
    depth; eval.lost_in_middle may then use only held-out depths.
    """

    sequences: int = number(4096, "sequences of length.max_length tokens per epoch", least=1)
    items: int = number(
        0, "pairs per example", least=1, zero="from few to as many as fit, log-uniformly"
    )
    key_style: str = choice("uuid", "hex")  # hex: 8 digits, for small models
    held_out: list[float] = several(DEPTHS, unit="depth, 0 to 1", least=0, most=1)


@dataclass
class LrScaleConfig:
    """Learning rates of parameter groups, as multiples of train.lr; the group must be trained."""

    lora_A: float = number(1.0, "times train.lr", above=0)
    lora_B: float = number(1.0, "times train.lr", above=0)  # LoRA+ (arXiv 2402.12354) uses 16
    position_bias: float = number(1.0, "times train.lr", above=0)
    landmark: float = number(1.0, "times train.lr", above=0)
    embeddings: float = number(1.0, "times train.lr", above=0)  # position and token embeddings
    norms: float = number(1.0, "times train.lr", above=0)


@dataclass
class TrainConfig:
    """The optimiser and its budget: exactly one of epochs, max_steps and max_tokens is above 0."""

    name: str = text("demo", "name of the preset, in records", changes="nothing")
    # The data set's text, or key-value retrieval examples, of which only the answers are scored.
    task: str = choice("text", "retrieval")
    retrieval: RetrievalTaskConfig = part(RetrievalTaskConfig)
    # Evenly spread among the steps of train.task=text (training/plan.py).
    mix: float = number(0.0, "share of the steps on retrieval examples", least=0, below=1)
    epochs: float = number(0.0, "epochs", above=0, zero="another budget")
    max_steps: int = number(40, "optimizer steps", least=1, zero="another budget")
    max_tokens: int = number(0, "scored tokens", least=1, zero="another budget")
    # In addition to one of these three, which determines the learning-rate schedule.
    max_seconds: float = number(0.0, "seconds in training steps", above=0, zero="no limit")
    micro_batch_size: int = number(1, "sequences per forward pass", least=1, changes="rounding")
    gradient_accumulation_steps: int = number(
        1, "forward passes per optimizer step", least=1, changes="rounding"
    )  # runs are compared if its product with micro_batch_size is the same
    lr: float = number(3e-3, "peak learning rate", above=0)  # the paper uses 2e-4
    lr_scale: LrScaleConfig = part(LrScaleConfig, changes="arm")
    # After the warm-up: cosine decay to lr * min_lr_ratio, or constant (training/optim.py).
    lr_scheduler: str = choice("cosine", "constant")
    min_lr_ratio: float = number(0.0, "share of lr", least=0, most=1)
    warmup_ratio: float = number(0.03, "share of the steps", least=0, below=1)
    weight_decay: float = number(0.01, "per step, times lr; on matrices only", least=0)
    adam_beta1: float = number(0.9, "decay per step", least=0, below=1)
    adam_beta2: float = number(0.999, "decay per step", least=0, below=1)
    adam_epsilon: float = number(1e-8, "added to the denominator", above=0)
    max_grad_norm: float = number(1.0, "norm of the gradient", above=0, zero="no clipping")
    # auto: bf16 autocast (adapters stay fp32) on a GPU that supports it, otherwise fp32. fp16 uses
    # loss scaling.
    precision: str = choice("auto", "fp32", "bf16", "fp16", remeasured=True)
    gradient_checkpointing: bool = flag(
        False, "recompute layers in the backward pass: less memory, more time", changes="rounding"
    )
    gradient_checkpointing_every: int = number(
        1, "recompute one decoder layer out of this many", least=1, changes="rounding"
    )
    gradient_checkpointing_offload: bool = flag(
        False, "keep the inputs of recomputed layers in host memory", changes="rounding"
    )
    max_nonfinite_steps: int = number(
        3, "skipped steps in a row before the run stops", least=1, changes="record"
    )
    # For a step whose loss is far above those of the 64 before it: warn, skip the step, or end the
    # run.
    loss_spike: str = choice("none", "warn", "skip", "stop")
    loss_spike_deviations: float = number(8.0, "median absolute deviations x 1.4826", above=0)
    eval_every: int = number(
        0, "steps", least=1, zero="only before and after training", changes="record"
    )
    # Needs eval_every.
    keep_best: bool = flag(
        False, "true: save the weights with the lowest validation loss instead of the last ones"
    )
    # Training ends after this many evaluations in a row without improvement. Needs eval_every.
    patience: int = number(0, "evaluations", least=1, zero="no early stopping")
    save_every: int = number(20, "steps", least=1, zero="only at the end", changes="nothing")
    keep_checkpoints: int = number(2, "checkpoints", least=1, changes="nothing")
    log_every: int = number(1, "steps between lines of metrics.jsonl", least=1, changes="nothing")
    loss_chunk: int = number(
        512, "tokens whose logits exist at a time", least=1, zero="by device", changes="rounding"
    )
    # On a GPU, according to measurements by others, 10-30 % slower; a CPU is always deterministic.
    deterministic: bool = flag(
        False, "true: bitwise reproducible on a GPU, too", changes="rounding"
    )
    # layers: torch.compile for each decoder layer in training; takes a minute or more at the start.
    compile: str = choice("none", "layers", changes="rounding")
    # Faster kernels for layers, norms and rotary embeddings, in training and evaluation (kernels/).
    frozen_kernels: bool = flag(
        True, "false: those of torch, peft and the model", changes="rounding", remeasured=True
    )
