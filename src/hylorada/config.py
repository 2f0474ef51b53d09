"""What a run is: a tree of plain dataclasses. `conf/` holds values, `compose.to_typed` fills it.

Nothing here imports more than the standard library, so that a mistake in a setting is found before
torch loads. A field says in its line what it is: default, unit, range, choices, and what another
value of it changes (numbers, unless it says otherwise). All rules about fields follow from that
(`config_rules`). A new key needs a line in `settings.fingerprint.IMPLIED`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from hylorada.config_fields import (
    choice,
    flag,
    label,
    number,
    part,
    place,
    several,
    switch,
    text,
)

EMBEDDED = "embedded"
"""``model.path`` of the model that the package ships."""
SPLITS = ("train", "validation", "test")
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of an answer in its context, from the start to the end


@dataclass
class LengthConfig:
    """A context length and the batch that suits it.

    The batch counts where train.micro_batch_size and so on refer to it; they alone change runs.
    """

    name: str = label("4k", "in directory names and tables")
    max_length: int = number(4096, "tokens of a training sequence and of the window", least=2)
    micro_batch_size: int = number(1, "sequences of a forward pass", least=1, changes="nothing")
    gradient_accumulation_steps: int = number(
        1, "forward passes of an optimizer step", least=1, changes="nothing"
    )


@dataclass
class LoraConfig:
    """Low-rank adaptation (paper 2.1)."""

    enabled: bool = flag(True, "false: nothing is trained (method=baseline)")
    r: int = number(8, "rank", least=1)
    lora_alpha: float = number(16.0, "numerator of the scale", above=0)
    lora_dropout: float = number(0.0, "probability", least=0, below=1)
    use_rslora: bool = flag(True, "scale by alpha / sqrt(r) instead of alpha / r")
    use_dora: bool = flag(False, "weight-decomposed: peft's DoRA")
    # Of A; B is zero. The paper's, or peft's default:
    init: str = choice("orthogonal", "kaiming")
    target_modules: list[str] = several(["auto"], "names of modules; auto: see methods")


@dataclass
class PositionBiasConfig:
    """s(p) = 1 + sigmoid(w) tanh(b[bucket(p)]) on the low-rank update (paper 2.2)."""

    enabled: str = switch("auto")
    buckets: int = number(64, "buckets of positions", least=1)
    # The paper's, or equal slices of max_length:
    bucketing: str = choice("log2", "relative")


@dataclass
class LandmarkConfig:
    """h' = h + alpha_s g^T L at the final norm (paper 2.2)."""

    enabled: str = switch("auto")
    num_landmarks: int = number(8, "landmarks", least=1)
    # sequence_mean: as published; reads the future.
    pooling: str = choice("prefix_mean", "sequence_mean")
    position_buckets: int = number(32, "rows of the position gate", least=1, zero="no such table")


@dataclass
class S2AttentionConfig:
    """Shifted sparse attention (paper 2.2)."""

    enabled: str = switch("auto")
    # An even number, of which half is the shift; LongLoRA has length / 4.
    group_size: int = number(2048, "tokens", least=2, zero="length / 4")
    # Every second layer (the paper), or half of the heads (LongLoRA):
    shift: str = choice("layers", "heads")
    in_evaluation: bool = flag(False, "true: also outside of training")


@dataclass
class PositionRangeConfig:
    """How the model reaches positions beyond its trained length (paper 2.2)."""

    # How longer learned embeddings start:
    learned_init: str = choice("interpolate", "tile")
    rope_type: str = choice("auto", "linear", "yarn", "dynamic", "none")
    rope_factor: float = number(0.0, "times", least=1, zero="length / trained length")


@dataclass
class MethodConfig:
    """Which components are attached to the frozen model. "auto" is the rule of the paper (2.3)."""

    name: str = label("hylorada", "in directory names and tables; a method is its settings")
    lora: LoraConfig = part(LoraConfig)
    position_bias: PositionBiasConfig = part(PositionBiasConfig)
    landmark: LandmarkConfig = part(LandmarkConfig)
    s2_attn: S2AttentionConfig = part(S2AttentionConfig)
    position_range: PositionRangeConfig = part(PositionRangeConfig)
    train_embeddings: str = switch("auto", means="the position embeddings")
    train_norms: str = switch("auto")
    # The same method, data and order with other initial weights: the noise floor.
    adapter_seed: int = number(
        0, "added to the seed that the adapter is drawn by", least=0, most=2**32 - 1
    )
    # As in {peft_type: VERA, r: 256}: the keys of that method's PeftConfig; target_modules may also
    # be auto or attention, as in method.lora.
    peft: dict[str, Any] = several(
        {}, "another method of peft in the place of LoRA; empty: none", open=True
    )

    @property
    def trains(self) -> bool:
        """Whether anything is attached and trained."""
        return self.lora.enabled or bool(self.peft)


@dataclass
class ModelConfig:
    """The frozen base model."""

    name: str = place("tiny", "label in tables; that of model=custom is its path", hub=True)
    path: str = place(EMBEDDED, "embedded, a hub id, or a local folder", hub=True)
    revision: str = text("", "of the hub; empty: main")
    attn_implementation: str = text("sdpa", "for the layers that S2 does not take: sdpa, eager")
    # Of the frozen weights: auto (the files' own on a GPU that runs bf16, float32 otherwise),
    # float32, or file (bfloat16 as it lies there; float16 becomes float32, in which runs compute).
    dtype: str = choice("auto", "float32", "file")
    # Of the linear layers below the output head: 4-bit NormalFloat, for a GPU (extra `quantized`).
    quantization: str = choice("none", "nf4")
    trained_length: int = number(
        0,
        "tokens of a text it was trained on, as it lies there",
        least=1,
        zero="as its config says",
    )


@dataclass
class DatasetConfig:
    """Where the text comes from and how it becomes blocks of tokens."""

    name: str = text("stdlib", "label in tables")
    kind: str = text("stdlib", "the name of a kind: see extensions.DATA_KINDS")
    hub_id: str = text("", "hub repository; empty: not from the hub")
    hub_config: str = text("", "configuration name in that repository")
    revision: str = text("", "commit of that repository")
    # A file or folder in the same layout:
    path: str = place("", "wins over the hub; empty: none", remeasured=True)
    text_column: str = text("text", "column that holds the text")
    tasks: list[str] = several([], "of a kind that has tasks, as longbench; empty: all present")
    # A block never crosses a document, or may, with attention and positions reset at each start:
    packing: str = choice("documents", "reset")
    max_documents: int = number(0, "documents of a split", least=1, zero="all")
    cache_dir: str = place(
        "", "tokenised blocks; empty: <user cache>/hylorada", changes="nothing", remeasured=True
    )


@dataclass
class RetrievalTaskConfig:
    """Key-value retrieval as training data (`train.task=retrieval`).

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
    eval_every: int = number(
        0, "steps", least=1, zero="only before and after training", changes="record"
    )
    save_every: int = number(20, "steps", least=1, zero="only at the end", changes="nothing")
    keep_checkpoints: int = number(2, "checkpoints", least=1, changes="nothing")
    log_every: int = number(1, "steps between lines of metrics.jsonl", least=1, changes="nothing")
    loss_chunk: int = number(512, "tokens with logits at a time", least=1, changes="rounding")
    # The same bits again on a GPU too, 10-30 % slower by others' measurements; a CPU gives them
    # anyway:
    deterministic: bool = flag(False, "false: on a GPU equal up to rounding", changes="rounding")
    # Faster kernels for frozen layers and S2's attention, in training and evaluation (kernels/):
    frozen_kernels: bool = flag(
        True, "false: torch's, peft's and the model's own", changes="rounding", remeasured=True
    )


@dataclass
class PerplexityConfig:
    """exp(sum NLL / scored tokens), by named conventions."""

    # word: per word, of a whole split; paper: the mean over WikiText's paragraphs.
    # Empty: perplexity is not measured; something else then is.
    conventions: list[str] = several(
        ["blocks", "sliding"], choices=("blocks", "sliding", "word", "paper")
    )
    split: str = choice("test", among=SPLITS)  # also of the context gain
    stride: int = number(0, "tokens, of sliding and word", least=1, zero="half a window")
    # What of a larger split is scored, in whole windows spread over it, the same for every arm:
    max_tokens: int = number(500_000, "tokens of a convention, or a window", least=1, zero="all")
    max_blocks: int = number(0, "windows of length.max_length", least=1, zero="all")
    batch_size: int = number(1, "sequences", least=1, changes="rounding")
    position_buckets: int = number(8, "equal slices of the window", least=1, changes="record")


@dataclass
class LostInMiddleConfig:
    """Whether the model finds what lies in the middle of its context: accuracy by depth.

    Each example is asked at every depth, and every arm is asked the same prompts.
    """

    enabled: bool = flag(True)
    # Key-value pairs, a passkey in filler, questions over documents:
    form: str = choice("kv", "passkey", "nq")
    # Of kv and nq:
    path: str = place("", "file in the published form; empty: generated (kv, passkey)")
    examples: int = number(40, "examples; of a file at most as many as it has", least=1)
    depths: list[float] = several(DEPTHS, unit="depth, 0 to 1", least=0, most=1)
    # Of kv with a path, 0 is as many as the file has.
    items: int = number(
        0, "pairs, lines of filler or documents in a prompt", least=1, zero="as many as fit"
    )
    # Of generated kv; hex, 8 digits, is for small models:
    key_style: str = choice("uuid", "hex")
    scorings: list[str] = several(["ranked"], choices=("ranked", "generated"))
    max_new_tokens: int = number(
        0, "tokens of an answer", least=1, zero="the longest candidate and 2, of nq 100"
    )
    seed: int = number(0, "seed of the generated examples and of the distractors", least=0)


@dataclass
class ContextGainConfig:
    """The loss of the same target tokens with more and more context before them."""

    enabled: bool = flag(False)
    # In place of those that do not fit, the most that fit:
    contexts: list[int] = several(
        [128, 256, 512, 1024, 2048, 4096, 8192], unit="tokens before the first target", least=1
    )
    targets: int = number(256, "tokens scored at each place", least=1)
    places: int = number(64, "places at most, spread over the split", least=1)


@dataclass
class HarnessConfig:
    """LongBench and RULER by lm-eval (extra `harness`), corrected to their official protocols."""

    enabled: bool = flag(False)
    tasks: list[str] = several(
        ["longbench"],
        "lm-eval's names, as longbench_trec; or longbench, longbench_e, ruler: all of a kind",
    )
    limit: int = number(0, "examples of a task, the first ones", least=1, zero="all")
    longbench_path: str = place("", "LongBench's data.zip or a folder with it; wins over the hub")
    longbench_hub_id: str = text("zai-org/LongBench", "hub repository")
    longbench_revision: str = text("5e628be450b7e67fb7ae6e201bd6d8f7056f7672", "commit of it")


@dataclass
class EvalConfig:
    """What is measured. The window is the run's max_length for every arm."""

    name: str = text("default", "the preset, in records", changes="nothing")
    perplexity: PerplexityConfig = part(PerplexityConfig)
    lost_in_middle: LostInMiddleConfig = part(LostInMiddleConfig, changes="question")
    context_gain: ContextGainConfig = part(ContextGainConfig, changes="question")
    harness: HarnessConfig = part(HarnessConfig, changes="question")
    # Of measurements that were added (docs/EXTENDING.md); {} is all defaults of one.
    measurements: dict[str, Any] = several(
        {}, "name of a measurement -> its settings", changes="question", open=True
    )


@dataclass
class TrackConfig:
    """Where the numbers are mirrored; metrics.jsonl is the truth."""

    kind: str = text("offline", "off, or the name of a tracker: see extensions.TRACKERS")
    project: str = text("hylorada", "of W&B")
    entity: str = text("", "of W&B; empty: the account's own")
    tags: list[str] = several([], "of W&B")


@dataclass
class IntegrityConfig:
    """The gate before training."""

    enabled: bool = flag(True)
    allow_leak: bool = flag(False, "true: a control arm that reads the future may run")
    probe_length: int = number(0, "tokens", least=1, zero="chosen from the method")


@dataclass
class RunConfig:
    """One run. Its fingerprint names its directory."""

    experiment: str = label("main", "the overlay's name")
    group: str = label(
        "", "first folder under output_root, and W&B's group; empty: experiment", form="optional"
    )
    output_root: str = place("outputs", "folder that holds the runs", changes="nothing")
    seed: int = number(0, "seed", least=0, most=2**32 - 1, changes="arm")
    # On another device precision and dtype follow it, so numbers are others.
    device: str = choice("auto", "cpu", "cuda", remeasured=True)
    threads: int = number(
        0, "CPU threads", least=1, zero="torch's choice", changes="rounding", remeasured=True
    )
    # Continue, or skip if done; must: fail if there is nothing to continue; start anew.
    resume: str = choice("auto", "must", "never", changes="nothing")
    # A checkpoint of another kind of device, or of another precision, is not continued here, or it
    # is, which log and record say:
    resume_on: str = choice("same", "any", changes="nothing")
    length: LengthConfig = part(LengthConfig)
    method: MethodConfig = part(MethodConfig, changes="arm")
    model: ModelConfig = part(ModelConfig)
    dataset: DatasetConfig = part(DatasetConfig)
    train: TrainConfig = part(TrainConfig)
    eval: EvalConfig = part(EvalConfig, remeasured=True)
    track: TrackConfig = part(TrackConfig, changes="nothing", remeasured=True)
    integrity: IntegrityConfig = part(IntegrityConfig, changes="record")


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The config as plain containers, for records."""
    return dataclasses.asdict(config)
