"""What a run is: a tree of plain dataclasses. `conf/` holds values, `compose.to_typed` fills it.

Nothing here imports more than the standard library, so that a mistake in a setting is found before
torch loads. Units stand behind each field. Ranges and choices are checked in `settings`.

A field made by `aside` changes no number: it is outside of the fingerprint, and a run may be
continued under another value of it. A new key needs a line in `settings.fingerprint.IMPLIED`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

EMBEDDED = "embedded"
"""``model.path`` of the model that the package ships."""

# A component is on, off, or follows the length by the paper's adaptive rule (section 2.3).
SWITCHES = ("true", "false", "auto")
SWITCH_KEYS = (
    "method.position_bias.enabled",
    "method.landmark.enabled",
    "method.s2_attn.enabled",
    "method.train_embeddings",
    "method.train_norms",
)


_ASIDE = {"fingerprint": False}


def aside(default: Any, **more: str) -> Any:
    """A field that changes no number and no table."""
    return field(default=default, metadata=_ASIDE | more)


def place(default: str = "", *, hub: bool = False) -> Any:
    """A field that names a file or a folder, or a repository of the hub too."""
    return field(default=default, metadata={"path": "hub" if hub else "local"})


@dataclass
class LengthConfig:
    """A context length and the batch that suits it."""

    name: str = aside("4k")  # the label used in directory names and tables
    max_length: int = 4096  # tokens in a training sequence and in the evaluation window
    # What train.micro_batch_size and so on refer to; they alone count.
    micro_batch_size: int = aside(1)  # sequences in one forward pass
    gradient_accumulation_steps: int = aside(1)  # forward passes in one optimizer step


@dataclass
class LoraConfig:
    """Low-rank adaptation (paper 2.1)."""

    enabled: bool = True  # false: nothing is trained (method=baseline)
    r: int = 8  # rank
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0  # probability
    use_rslora: bool = True  # scale by alpha / sqrt(r) instead of alpha / r
    use_dora: bool = False
    init: str = "orthogonal"  # A: orthogonal (the paper) or kaiming (peft's default); B is zero
    target_modules: list[str] = field(default_factory=lambda: ["auto"])  # "auto": see methods


@dataclass
class PositionBiasConfig:
    """s(p) = 1 + sigmoid(w) tanh(b[bucket(p)]) on the low-rank update (paper 2.2)."""

    enabled: str = "auto"  # auto: at max_length >= 2048
    buckets: int = 64
    bucketing: str = "log2"  # log2 (the paper) or relative (equal slices of max_length)


@dataclass
class LandmarkConfig:
    """h' = h + alpha_s g^T L at the final norm (paper 2.2)."""

    enabled: str = "auto"  # auto: at max_length >= 2048
    num_landmarks: int = 8
    pooling: str = "prefix_mean"  # or sequence_mean: as published; reads the future
    position_buckets: int = 32  # rows of the position-gate table; 0 leaves the table out


@dataclass
class S2AttentionConfig:
    """Shifted sparse attention (paper 2.2)."""

    enabled: str = "auto"  # auto: at max_length >= 4096
    group_size: int = 2048  # tokens; even; 0 means max_length / 4 (LongLoRA's choice)
    shift: str = "layers"  # layers: every second layer (the paper); heads: half of the heads
    in_evaluation: bool = False  # true: also outside training


@dataclass
class PositionRangeConfig:
    """How the model reaches positions beyond its trained length (paper 2.2)."""

    learned_init: str = "interpolate"  # longer learned embeddings: interpolate or tile
    rope_type: str = "auto"  # auto, linear, yarn, dynamic, none
    rope_factor: float = 0.0  # 0: ceil(max_length / trained length)


@dataclass
class MethodConfig:
    """Which components are attached to the frozen model."""

    name: str = aside("hylorada")  # stands in directory names by itself
    lora: LoraConfig = field(default_factory=LoraConfig)
    position_bias: PositionBiasConfig = field(default_factory=PositionBiasConfig)
    landmark: LandmarkConfig = field(default_factory=LandmarkConfig)
    s2_attn: S2AttentionConfig = field(default_factory=S2AttentionConfig)
    position_range: PositionRangeConfig = field(default_factory=PositionRangeConfig)
    train_embeddings: str = "auto"  # position embeddings; auto: max_length > trained length
    train_norms: str = "auto"  # auto: at max_length >= 4096


@dataclass
class ModelConfig:
    """The frozen base model."""

    name: str = place(
        "tiny", hub=True
    )  # the label used in tables; that of model=custom is its path
    path: str = place("embedded", hub=True)  # "embedded", a hub id, or a local folder
    revision: str = ""  # hub revision; empty: main
    attn_implementation: str = "sdpa"  # for the layers that S2 does not take: sdpa, eager, ...
    # Of the frozen weights: auto (the files' own on a GPU that runs bf16, float32 otherwise),
    # float32, or file (bfloat16 as it lies there; float16 becomes float32, in which runs compute).
    dtype: str = "auto"
    # Tokens in the texts that it was trained on, as it lies there; 0: what its config says.
    trained_length: int = 0


@dataclass
class DatasetConfig:
    """Where the text comes from and how it becomes blocks of tokens."""

    name: str = "stdlib"
    kind: str = "stdlib"  # the name of a kind: see extensions.DATA_KINDS
    hub_id: str = ""  # hub repository; empty: not from the hub
    hub_config: str = ""  # configuration name in that repository
    revision: str = ""  # commit of that repository
    path: str = place()  # local file or folder in the same layout; wins over the hub
    text_column: str = "text"
    tasks: list[str] = field(default_factory=list)  # longbench: task names; empty: all present
    packing: str = "documents"  # documents: a block never crosses one; reset: it may, with
    #                             attention and positions reset at each document start
    max_documents: int = 0  # per split; 0: all
    cache_dir: str = aside("", path="local")  # tokenised blocks; empty: <user cache>/hylorada


@dataclass
class RetrievalTaskConfig:
    """Key-value retrieval as training data (`train.task=retrieval`).

    Its keys are never those that are generated for the evaluation, and no answer lies near a depth
    that is held out; eval.lost_in_middle may ask at these depths alone.
    """

    sequences: int = 4096  # of length.max_length tokens, in one epoch
    items: int = 0  # pairs in an example; 0: from few to as many as fit, evenly in the logarithm
    key_style: str = "uuid"  # uuid or hex, 8 digits, for small models
    held_out: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0])  # depths


@dataclass
class TrainConfig:
    """The optimiser and its budget. Exactly one of epochs, max_steps, max_tokens is above 0."""

    name: str = aside("demo")
    task: str = "text"  # text: the data set's; retrieval: key-value examples, answers scored alone
    retrieval: RetrievalTaskConfig = field(default_factory=RetrievalTaskConfig)
    epochs: float = 0.0
    max_steps: int = 40  # optimizer steps
    max_tokens: int = 0  # scored tokens
    micro_batch_size: int = 1  # sequences in one forward pass
    gradient_accumulation_steps: int = 1  # forward passes in one optimizer step
    lr: float = 3e-3  # the demo preset; the paper has 2e-4
    lr_scheduler: str = "cosine"  # cosine (to lr * min_lr_ratio) or constant
    min_lr_ratio: float = 0.0
    warmup_ratio: float = 0.03  # of the steps
    weight_decay: float = 0.01  # on matrices only
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0  # 0: no clipping
    precision: str = "auto"  # fp32, bf16 (autocast; adapters stay fp32), auto: bf16 on a GPU
    gradient_checkpointing: bool = False
    max_nonfinite_steps: int = 3  # skipped steps in a row before the run stops
    eval_every: int = 0  # steps; 0: only before and after training
    save_every: int = aside(20)  # steps between checkpoints; 0: only at the end
    keep_checkpoints: int = aside(2)
    log_every: int = aside(1)  # steps between lines of metrics.jsonl; the numbers in them stay
    loss_chunk: int = 512  # tokens whose logits exist at one time
    # Faster kernels for frozen layers and S2's attention (kernels/), in training and evaluation;
    # false: torch's, peft's and the model's own. Numbers differ by rounding.
    frozen_kernels: bool = True


@dataclass
class PerplexityConfig:
    """exp(sum NLL / scored tokens), by named conventions."""

    # blocks, sliding, word (per word, of a whole split), paper (mean over WikiText paragraphs).
    # Empty: perplexity is not measured; something else then is.
    conventions: list[str] = field(default_factory=lambda: ["blocks", "sliding"])
    split: str = "test"  # also of the context gain
    stride: int = 0  # tokens, for the sliding window and word; 0: half a window
    # What of a larger split is scored, in whole windows spread over it, the same for every arm:
    max_tokens: int = 500_000  # at most so many tokens per convention (but one window); 0: no limit
    max_blocks: int = 0  # at most so many windows of length.max_length; 0: no limit
    batch_size: int = 1  # sequences
    position_buckets: int = 8  # equal slices of the window


@dataclass
class LostInMiddleConfig:
    """Whether the model finds what lies in the middle of its context: accuracy by depth.

    Each example is asked at every depth, and every arm is asked the same prompts.
    """

    enabled: bool = True
    form: str = "kv"  # kv (key-value pairs), passkey, nq (questions over documents)
    path: str = place()  # file in the published form (kv, nq); empty: generated (kv, passkey)
    examples: int = 40  # of a file: at most as many as it has
    depths: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0])
    # Pairs, lines of filler or documents in a prompt; 0: as many as fit the window (kv and
    # passkey), or as the file has (kv with a path).
    items: int = 0
    key_style: str = "uuid"  # generated kv: uuid (published) or hex, 8 digits, for small models
    scorings: list[str] = field(default_factory=lambda: ["ranked"])  # ranked, generated
    max_new_tokens: int = 0  # of a generated answer; 0: the longest candidate and 2; nq: 100
    seed: int = 0  # of the generated examples, of the distractors


@dataclass
class ContextGainConfig:
    """The loss of the same target tokens with more and more context before them."""

    enabled: bool = False
    # Tokens before the first target; in place of those that do not fit, the most that fit.
    contexts: list[int] = field(default_factory=lambda: [128, 256, 512, 1024, 2048, 4096, 8192])
    targets: int = 256  # tokens scored at each place
    places: int = 64  # at most, spread over the split

    def fitting(self, window: int) -> list[int]:
        """The contexts that fit a window of so many tokens together with the targets.

        If some do not, the most that fit takes their place, so that the whole window is used; but
        not beside another of nearly that length.
        """
        most = window - self.targets + 1  # the last target is predicted and never read
        found = sorted({c for c in self.contexts if 1 <= c <= most})
        if any(c > most for c in self.contexts) and most > 1.25 * max(found, default=0):
            found.append(most)
        return found


@dataclass
class HarnessConfig:
    """LongBench and RULER by lm-eval (extra `harness`), corrected to their official protocols."""

    enabled: bool = False
    # lm-eval's names, as in longbench_trec or niah_single_1; longbench, longbench_e and ruler are
    # all tasks of a kind.
    tasks: list[str] = field(default_factory=lambda: ["longbench"])
    limit: int = 0  # examples of a task, the first ones; 0: all
    longbench_path: str = place()  # LongBench's data.zip, or a folder with it; wins over the hub
    longbench_hub_id: str = "zai-org/LongBench"
    longbench_revision: str = "5e628be450b7e67fb7ae6e201bd6d8f7056f7672"


@dataclass
class EvalConfig:
    """What is measured. The window is the run's max_length for every arm."""

    name: str = aside("default")
    perplexity: PerplexityConfig = field(default_factory=PerplexityConfig)
    lost_in_middle: LostInMiddleConfig = field(default_factory=LostInMiddleConfig)
    context_gain: ContextGainConfig = field(default_factory=ContextGainConfig)
    harness: HarnessConfig = field(default_factory=HarnessConfig)


@dataclass
class TrackConfig:
    """Where the numbers are mirrored; metrics.jsonl is the truth."""

    kind: str = "offline"  # off, or the name of a tracker: see extensions.TRACKERS
    project: str = "hylorada"
    entity: str = ""
    tags: list[str] = field(default_factory=list)


@dataclass
class IntegrityConfig:
    """The gate before training."""

    enabled: bool = True
    allow_leak: bool = False  # true: a control arm that reads the future may run
    probe_length: int = 0  # tokens; 0: chosen from the method


@dataclass
class RunConfig:
    """One run. Its fingerprint names its directory."""

    experiment: str = aside("main")  # the overlay's name
    group: str = aside("")  # first folder under output_root, and W&B's group; empty: experiment
    output_root: str = aside("outputs", path="local")
    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda; changes rounding, as threads does
    threads: int = 0  # CPU threads; 0: torch's choice
    # auto: continue or skip if done; must: fail if nothing to continue; never
    resume: str = aside("auto")
    # same: a checkpoint of another kind of device, or of another precision, is not continued here;
    # any: it is, which log and record say
    resume_on: str = aside("same")
    length: LengthConfig = field(default_factory=LengthConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    track: TrackConfig = field(default_factory=TrackConfig, metadata=_ASIDE)
    integrity: IntegrityConfig = field(default_factory=IntegrityConfig)  # what a record proves


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The config as plain containers, for records."""
    return dataclasses.asdict(config)


def keys_with(mark: str, value: Any) -> frozenset[str]:
    """The dotted keys of all values and parts whose metadata say so ("path" or "fingerprint")."""

    def walk(part: Any, prefix: str) -> Iterator[str]:
        for item in dataclasses.fields(part):
            key, inner = f"{prefix}{item.name}", getattr(part, item.name)
            if item.metadata.get(mark) == value:
                yield key
            if dataclasses.is_dataclass(inner):
                yield from walk(inner, f"{key}.")

    return frozenset(walk(RunConfig(), ""))


ASIDE_KEYS = keys_with("fingerprint", False)
LOCAL_KEYS = keys_with("path", "local")
HUB_KEYS = keys_with("path", "hub")
