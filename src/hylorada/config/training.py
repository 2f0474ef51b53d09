"""The settings of training: task, budget, optimiser, memory."""

from __future__ import annotations

from dataclasses import dataclass

from hylorada.config.evaluation import DEPTHS
from hylorada.config.fields import choice, flag, number, part, several, text


@dataclass
class RetrievalTaskConfig:
    """Key-value retrieval as training data (`train.task=retrieval`, `train.mix`).

    Its keys are never those that are generated for the evaluation, and no answer lies near a depth
    that is held out; eval.lost_in_middle may ask at these depths alone.
    """

    sequences: int = number(4096, "sequences of length.max_length tokens in an epoch", least=1)
    items: int = number(
        0, "pairs in an example", least=1, zero="few to as many as fit, evenly in the logarithm"
    )
    key_style: str = choice("uuid", "hex")  # hex: 8 digits, for small models
    held_out: list[float] = several(DEPTHS, unit="depth, 0 to 1", least=0, most=1)


@dataclass
class LrScaleConfig:
    """Learning rates by group of parameters. One other than 1 is for a group that trains."""

    lora_A: float = number(1.0, "times train.lr", above=0)
    lora_B: float = number(1.0, "times train.lr", above=0)  # LoRA+ (arXiv 2402.12354) has 16
    position_bias: float = number(1.0, "times train.lr", above=0)
    landmark: float = number(1.0, "times train.lr", above=0)
    embeddings: float = number(1.0, "times train.lr", above=0)  # of positions and of tokens
    norms: float = number(1.0, "times train.lr", above=0)


@dataclass
class TrainConfig:
    """The optimiser and its budget. Exactly one of epochs, max_steps, max_tokens is above 0."""

    name: str = text("demo", "the preset, in records", changes="nothing")
    # The data set's text, or key-value examples whose answers alone are scored:
    task: str = choice("text", "retrieval")
    retrieval: RetrievalTaskConfig = part(RetrievalTaskConfig)
    # Such examples among the text of train.task=text, evenly spread (training/plan.py):
    mix: float = number(0.0, "share of the steps on retrieval examples", least=0, below=1)
    epochs: float = number(0.0, "epochs", above=0, zero="another budget")
    max_steps: int = number(40, "optimizer steps", least=1, zero="another budget")
    max_tokens: int = number(0, "scored tokens", least=1, zero="another budget")
    # Beside one of these three, which the schedule follows: the end may come before theirs.
    max_seconds: float = number(0.0, "seconds in training steps", above=0, zero="no limit")
    micro_batch_size: int = number(1, "sequences of a forward pass", least=1, changes="rounding")
    gradient_accumulation_steps: int = number(
        1, "forward passes of an optimizer step", least=1, changes="rounding"
    )  # the product of the two is compared
    lr: float = number(3e-3, "learning rate at its peak", above=0)  # the paper has 2e-4
    lr_scale: LrScaleConfig = part(LrScaleConfig)
    # After the warm-up: down to lr * min_lr_ratio, or level (training/optim.py):
    lr_scheduler: str = choice("cosine", "constant")
    min_lr_ratio: float = number(0.0, "share of lr", least=0, most=1)
    warmup_ratio: float = number(0.03, "share of the steps", least=0, below=1)
    weight_decay: float = number(0.01, "per step, times lr; on matrices only", least=0)
    adam_beta1: float = number(0.9, "decay per step", least=0, below=1)
    adam_beta2: float = number(0.999, "decay per step", least=0, below=1)
    adam_epsilon: float = number(1e-8, "added to the root", above=0)
    max_grad_norm: float = number(1.0, "norm of the gradient", above=0, zero="no clipping")
    # auto: bf16 (autocast; adapters stay fp32) on a GPU that has it. fp16 scales the loss.
    precision: str = choice("auto", "fp32", "bf16", "fp16", remeasured=True)
    gradient_checkpointing: bool = flag(False, "memory for time", changes="rounding")
    gradient_checkpointing_every: int = number(
        1, "decoder layers, of which the first is recomputed", least=1, changes="rounding"
    )
    gradient_checkpointing_offload: bool = flag(
        False, "what layers are recomputed from waits in the host's memory", changes="rounding"
    )
    max_nonfinite_steps: int = number(
        3, "skipped steps in a row before the run stops", least=1, changes="record"
    )
    # A step whose loss is far above those of the 64 before it: say so; leave it out (it counts as a
    # skipped one); or end the run.
    loss_spike: str = choice("none", "warn", "skip", "stop")
    loss_spike_deviations: float = number(8.0, "median absolute deviations x 1.4826", above=0)
    eval_every: int = number(
        0, "steps", least=1, zero="only before and after training", changes="record"
    )
    # What is saved at the end: the last weights, or those with the lowest validation loss, at an
    # evaluation (eval_every) or at the end. And when to end, since none of the last was better:
    keep_best: bool = flag(False, "true: the best by validation")
    patience: int = number(0, "evaluations", least=1, zero="no early stopping")
    save_every: int = number(20, "steps", least=1, zero="only at the end", changes="nothing")
    keep_checkpoints: int = number(2, "checkpoints", least=1, changes="nothing")
    log_every: int = number(1, "steps between lines of metrics.jsonl", least=1, changes="nothing")
    loss_chunk: int = number(
        512, "tokens with logits at a time", least=1, zero="by device", changes="rounding"
    )
    # The same bits again on a GPU too, 10-30 % slower by others' measurements; a CPU gives them
    # anyway:
    deterministic: bool = flag(False, "false: on a GPU equal up to rounding", changes="rounding")
    # Each decoder layer by torch.compile, in training: fewer launches after a minute or more.
    compile: str = choice("none", "layers", changes="rounding")
    # Faster kernels for layers, norms and rotary embedding, in training and evaluation (kernels/):
    frozen_kernels: bool = flag(
        True, "false: torch's, peft's and the model's own", changes="rounding", remeasured=True
    )
