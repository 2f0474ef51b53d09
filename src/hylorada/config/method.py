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
    use_dora: bool = flag(False, "weight-decomposed LoRA (peft's DoRA)")
    # Initialisation of A (B is zero): the paper's, or peft's default.
    init: str = choice("orthogonal", "kaiming")
    target_modules: list[str] = several(
        ["auto"], "names of modules, auto or attention (docs/METHODOLOGY.md, section 1)"
    )


@dataclass
class PositionBiasConfig:
    """s(p) = 1 + sigmoid(w) tanh(b[bucket(p)]) on the low-rank update (paper 2.2)."""

    enabled: str = switch("auto")
    buckets: int = number(64, "position buckets", least=1)
    # log2: the paper's; relative: equal slices of max_length.
    bucketing: str = choice("log2", "relative")


@dataclass
class LandmarkConfig:
    """h' = h + alpha_s g^T L at the final norm (paper 2.2)."""

    enabled: str = switch("auto")
    num_landmarks: int = number(8, "landmarks", least=1)
    # sequence_mean: the published form, which reads the future.
    pooling: str = choice("prefix_mean", "sequence_mean")
    position_buckets: int = number(32, "rows of the position gate", least=1, zero="no table")


@dataclass
class S2AttentionConfig:
    """Shifted sparse attention (paper 2.2)."""

    enabled: str = switch("auto")
    # Length of a segment, an even number; the shift is half of it. LongLoRA uses length / 4.
    group_size: int = number(2048, "tokens", least=2, zero="length / 4")
    # What is shifted: every second layer (the paper), or half of the heads (LongLoRA).
    shift: str = choice("layers", "heads")
    in_evaluation: bool = flag(False, "true: segments in evaluation and generation, too")
    # Layers with full attention are evenly spread (methods/s2_limits.py).
    full_layers: float = number(0.0, "share of the layers with full attention", least=0, below=1)
    # The first heads of each layer.
    full_heads: float = number(0.0, "share of the heads with full attention", least=0, below=1)
    # See training/segment_schedule.py.
    full_share: float = number(
        0.0, "share of the training steps with full attention", least=0, below=1
    )
    # Which steps full_share means.
    full_steps: str = choice("last", "first", "even")
    # Draws the segment length of each step log-uniformly, from group_size to this.
    largest_group: int = number(0, "tokens", least=4, zero="group_size in every step")


@dataclass
class SkippedPositionsConfig:
    """PoSE: training rows of at most the trained length, at positions of the long range."""

    enabled: bool = flag(
        False, "true: position ids skip; text and budget are unchanged (arXiv 2309.10400)"
    )


@dataclass
class PositionRangeConfig:
    """How the model reaches positions beyond its trained length (paper 2.2)."""

    # Initialisation of longer learned embeddings (methods/longer_rows.py): interpolated (the
    # paper's); repeated; low frequencies interpolated and high ones repeated; or the trained rows,
    # with by_parts beyond them.
    learned_init: str = choice("interpolate", "tile", "by_parts", "keep")
    rope_type: str = choice("auto", "linear", "yarn", "dynamic", "none")
    rope_factor: float = number(0.0, "factor", least=1, zero="length / trained length")


@dataclass
class MethodConfig:
    """Which components are attached to the frozen model; "auto" follows the paper's rule (2.3)."""

    name: str = label("hylorada", "name in directories and tables")
    lora: LoraConfig = part(LoraConfig)
    position_bias: PositionBiasConfig = part(PositionBiasConfig)
    landmark: LandmarkConfig = part(LandmarkConfig)
    s2_attn: S2AttentionConfig = part(S2AttentionConfig)
    position_range: PositionRangeConfig = part(PositionRangeConfig)
    skipped_positions: SkippedPositionsConfig = part(SkippedPositionsConfig)
    train_embeddings: str = switch("auto", means="whether position embeddings are trained")
    train_norms: str = switch("auto", means="whether norms are trained")
    # Other initial weights for the same method, data and order: the noise floor.
    adapter_seed: int = number(
        0, "added to the seed with which the adapter is initialised", least=0, most=2**32 - 1
    )
    # A control: the parameters of position bias and landmarks are trained and counted, but have no
    # effect.
    placebo: bool = flag(False, "true: the output of both is multiplied by 0")
    # For example {peft_type: VERA, r: 256}, with keys of that method's PeftConfig; target_modules
    # may also be auto or attention, as in method.lora.
    peft: dict[str, Any] = several(
        {}, "another method of peft instead of LoRA; empty: none", open=True
    )

    @property
    def trains(self) -> bool:
        """Whether anything is attached and trained."""
        return self.lora.enabled or bool(self.peft)
