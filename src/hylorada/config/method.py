"""The settings of a method: which components are attached to the frozen model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hylorada.config.fields import choice, flag, label, number, part, several, switch


@dataclass
class LoraConfig:
    """Low-rank adaptation (paper 2.1)."""

    enabled: bool = flag(True, "false: nothing is trained (method=baseline)")
    r: int = number(8, "rank", least=1, most=2**16)
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
    # In place: some layers, evenly spread, or the first heads of each (methods/s2_limits.py).
    full_layers: float = number(0.0, "share of the layers with full attention", least=0, below=1)
    full_heads: float = number(0.0, "share of the heads with full attention", least=0, below=1)
    # By schedule (training/segment_schedule.py): a share of the steps with full attention,
    full_share: float = number(0.0, "share of the training steps", least=0, below=1)
    full_steps: str = choice("last", "first", "even")
    # and segments drawn for each step, from group_size to this, evenly in the logarithm:
    largest_group: int = number(0, "tokens", least=4, zero="group_size in every step")


@dataclass
class SkippedPositionsConfig:
    """Training rows as short as the base knows, at positions of the long range (PoSE)."""

    enabled: bool = flag(False, "true: position ids skip; text and budget stay (arXiv 2309.10400)")


@dataclass
class PositionRangeConfig:
    """How the model reaches positions beyond its trained length (paper 2.2)."""

    # How longer learned embeddings start (methods/longer_rows.py); the paper's, the rows repeated,
    # slow parts of the table interpolated and fast ones repeated, or that beyond the trained rows:
    learned_init: str = choice("interpolate", "tile", "by_parts", "keep")
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
    skipped_positions: SkippedPositionsConfig = part(SkippedPositionsConfig)
    train_embeddings: str = switch("auto", means="the position embeddings")
    train_norms: str = switch("auto")
    # The same method, data and order with other initial weights: the noise floor.
    adapter_seed: int = number(
        0, "added to the seed that the adapter is drawn by", least=0, most=2**32 - 1
    )
    # A control, which trains and counts the parameters of position bias and landmarks in vain:
    placebo: bool = flag(False, "true: the output of both is multiplied by 0")
    # As in {peft_type: VERA, r: 256}: the keys of that method's PeftConfig; target_modules may also
    # be auto or attention, as in method.lora.
    peft: dict[str, Any] = several(
        {}, "another method of peft in the place of LoRA; empty: none", open=True
    )

    @property
    def trains(self) -> bool:
        """Whether anything is attached and trained."""
        return self.lora.enabled or bool(self.peft)
