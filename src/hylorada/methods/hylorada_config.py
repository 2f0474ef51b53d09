"""The configuration of the method (paper 2.3): rsLoRA and the components that come with the length.

`HyloradaConfig` is a `peft.LoraConfig`, saved as the `adapter_config.json` of an adapter. It holds
resolved switches only; "follow the length" is `for_length` here, and `adaptive_rule` for a run.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftType, TaskType
from peft.utils import CONFIG_NAME

from hylorada.config.python_arguments import real_number, shown, true_or_false, whole_number
from hylorada.config.rules import choices
from hylorada.errors import ConfigError, in_one_line

# The adaptive rule: from this length on, in tokens.
LONG_CONTEXT = 2048  # position bias, landmarks
VERY_LONG_CONTEXT = 4096  # shifted sparse attention, trained norms
LINEAR_UP_TO = 8192  # linear interpolation of rotary positions to here, YaRN beyond

NAME_IN_FILES = (
    "HYLORADA (an adapter of the Python package hylorada: install it, and import hylorada before "
    "the adapter is loaded)"
)
"""The method's name in an adapter_config.json: all that peft says where it does not know it."""

_FLAGS = (
    "position_bias_enabled", "landmark_enabled", "s2_attn_enabled", "s2_in_evaluation",
    "train_embeddings", "train_norms", "placebo", "use_rslora", "use_dora", "lora_bias",
)  # fmt: skip
_LEAST = {
    "r": 1, "position_buckets": 1, "num_landmarks": 1, "landmark_position_buckets": 0,
    "s2_group_size": 0, "max_length": 0, "base_trained_length": 0,
}  # fmt: skip
_CHOICES = {
    "lora_init": choices("method.lora.init"),
    "bucketing": choices("method.position_bias.bucketing"),
    "landmark_pooling": choices("method.landmark.pooling"),
    "s2_shift": choices("method.s2_attn.shift"),
    "rope_scaling_type": choices("method.position_range.rope_type"),
    "learned_init": choices("method.position_range.learned_init"),
}


@dataclass
class HyloradaConfig(LoraConfig):
    """A PEFT configuration. Fields beyond LoRA's carry the paper's names.

    Args:
        target_modules: "auto" (default), "attention", or what peft accepts. "auto" is, on GPT-2,
            c_attn and both c_proj: the 811K parameters that the paper counts, which leave out c_fc
            although its text says "Q, K, V, O projections and FFN layers". On every other
            architecture it is that text: all linear layers of the decoder layers, and the weights
            of their experts (`experts`; unless target_parameters is set). "attention" is the query,
            key, value and output projections (LongLoRA). Routers of experts are left alone.
        lora_init: how A starts; B is zero. "orthogonal": orthonormal rows (the paper, and not what
            peft means by `init_lora_weights="orthogonal"`, where neither holds); "kaiming": peft's
            default. `init_lora_weights` itself must stay True.
        position_bias_enabled: s(p) on the low-rank update, see `position_bias`.
        position_buckets: entries of b.
        bucketing: "log2" (the paper) or "relative" (equal slices of max_length); also of the
            landmarks' position gates.
        landmark_enabled: see `landmarks`.
        num_landmarks: K.
        landmark_pooling: "prefix_mean", or "sequence_mean" as published, which reads the future.
        landmark_position_buckets: rows of the position-gate table; 0 leaves the table out.
        s2_attn_enabled: shifted sparse attention while training, see `s2_attention`.
        s2_group_size: tokens in a group; even.
        s2_shift: "layers" (every second layer) or "heads" (half of the heads of each).
        s2_in_evaluation: also outside training.
        s2_full_layers: share of the layers that attend fully all the same, evenly spread.
        s2_full_heads: share of the heads that attend fully all the same, in every layer.
        rope_scaling_type: "auto" (linear to 8192 tokens, YaRN beyond, nothing on models without
            RoPE), "linear", "yarn", "dynamic" or "none".
        rope_scaling_factor: 0 means ceil(max_length / the model's trained length).
        learned_init: how longer learned position embeddings start: "interpolate", "tile",
            "by_parts" or "keep", see `longer_rows`.
        train_embeddings: train the position embeddings (not the token embeddings).
        train_norms: train the norms of the residual path.
        placebo: a control: the output of position bias and landmarks is multiplied by 0.
        max_length: tokens that the model must reach; its range is extended to it before the
            adapter is attached, also when the adapter is loaded. 0 leaves the range as it is.
        base_trained_length: tokens that the base was trained on, where the user has said so
            (`model.trained_length`); 0: what the base's own config says. It is saved, since the
            extension counts from there.
        chosen_by_rule: the fields that the adaptive rule chose. On a model that cannot have such a
            part they are left out; one that was set by hand is refused there.
        left_out: component -> reason, of those that the rule chose and the model cannot have.

    Attributes:
        reads_as_lora: the tuner has found nothing, on the model, that plain LoRA would do
            otherwise. Then, and without a component, what is saved is peft's own LoRA.
    """

    r: int = 8
    lora_alpha: int = 16
    use_rslora: bool = True
    target_modules: list[str] | str | None = "auto"
    task_type: TaskType | None = TaskType.CAUSAL_LM
    lora_init: str = "orthogonal"
    position_bias_enabled: bool = False
    position_buckets: int = 64
    bucketing: str = "log2"
    landmark_enabled: bool = False
    num_landmarks: int = 8
    landmark_pooling: str = "prefix_mean"
    landmark_position_buckets: int = 32
    s2_attn_enabled: bool = False
    s2_group_size: int = 2048
    s2_shift: str = "layers"
    s2_in_evaluation: bool = False
    s2_full_layers: float = 0.0
    s2_full_heads: float = 0.0
    rope_scaling_type: str = "auto"
    rope_scaling_factor: float = 0.0
    learned_init: str = "interpolate"
    train_embeddings: bool = False
    train_norms: bool = False
    placebo: bool = False
    max_length: int = 0
    base_trained_length: int = 0
    chosen_by_rule: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_values()
        try:
            super().__post_init__()
        except (TypeError, ValueError, ImportError) as error:  # peft's own refusals
            raise ConfigError(f"method: {in_one_line(error)}") from error
        self.peft_type = PeftType("HYLORADA")
        self.reads_as_lora = False
        if self.bias not in ("none", "all", "lora_only"):
            raise ConfigError(
                f"method: bias is {shown(self.bias)}; use one of none, all, lora_only"
            )
        if self.init_lora_weights is not True:
            raise ConfigError(
                f"method: init_lora_weights is {self.init_lora_weights!r}; leave it True and set "
                "lora_init to orthogonal or kaiming (every method starts as the identity)"
            )
        if self.use_dora and self.position_bias_enabled:
            raise ConfigError(
                "method: DoRA and the position bias cannot be combined (both replace the forward "
                "of a LoRA layer); switch one of use_dora and position_bias off"
            )
        if self.lora_bias and self.position_bias_enabled:
            raise ConfigError("method: lora_bias and the position bias cannot be combined")
        if self.bucketing == "relative" and self._uses_buckets() and not self.max_length:
            raise ConfigError("method: bucketing is relative to max_length; set max_length")
        if self.s2_attn_enabled:
            self._check_s2()
        gone = {"position_bias", "landmark"} & set(self.left_out)
        if self.placebo and not (self.position_bias_enabled or self.landmark_enabled or gone):
            raise ConfigError(
                "method: placebo has no effect without position_bias_enabled or landmark_enabled; "
                "switch one of them on"
            )
        for name in ("s2_in_evaluation", "s2_full_layers", "s2_full_heads"):
            if getattr(self, name) and not self.s2_attn_enabled:
                raise ConfigError(
                    f"method: {name} has no effect without s2_attn_enabled; switch both on"
                )

    def _check_values(self) -> None:
        """Each field by itself."""
        for name, among in _CHOICES.items():
            if getattr(self, name) not in among:
                raise ConfigError(
                    f"method: {name} is {shown(getattr(self, name))}; use one of {', '.join(among)}"
                )
        for name in _FLAGS:
            true_or_false(f"method: {name}", getattr(self, name))
        for name, least in _LEAST.items():
            setattr(self, name, whole_number(f"method: {name}", getattr(self, name), least))
        if real_number("method: lora_alpha", self.lora_alpha) <= 0:
            raise ConfigError(
                f"method: lora_alpha is {self.lora_alpha}; use a number above 0 (at 0 the adapter "
                "does nothing)"
            )
        if real_number("method: rope_scaling_factor", self.rope_scaling_factor) < 0:
            raise ConfigError(
                f"method: rope_scaling_factor is {self.rope_scaling_factor}; use at least 0"
            )
        for name in ("lora_dropout", "s2_full_layers", "s2_full_heads"):
            if not 0 <= real_number(f"method: {name}", getattr(self, name)) < 1:
                raise ConfigError(
                    f"method: {name} is {getattr(self, name)}; use a share from 0 to below 1"
                )
        for name, kind, what in (
            ("chosen_by_rule", list, "a list of fields"), ("left_out", dict, "a dict"),
            ("rank_pattern", dict, "a dict"), ("alpha_pattern", dict, "a dict"),
        ):  # fmt: skip
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(f"method: {name} is {shown(getattr(self, name))}; use {what}")
        self._check_names_of_modules()

    def _check_names_of_modules(self) -> None:
        """The fields of peft that say where, of which it tells only in its depths."""
        for name in ("target_modules", "exclude_modules", "modules_to_save"):
            value = getattr(self, name)
            listed = isinstance(value, list | tuple | set) and all(
                isinstance(item, str) for item in value
            )
            text = isinstance(value, str) and name != "modules_to_save"
            if not (value is None or listed or text):
                raise ConfigError(
                    f"method: {name} is {shown(value)}; use a list of names of modules"
                )
        for name in ("rank_pattern", "alpha_pattern"):
            for module, value in getattr(self, name).items():
                if not real_number(f"method: {name}[{module!r}]", value) > 0:
                    raise ConfigError(
                        f"method: {name}[{module!r}] is {value}; use a number above 0"
                    )

    def _uses_buckets(self) -> bool:
        gates = self.landmark_enabled and self.landmark_position_buckets > 0
        return self.position_bias_enabled or gates

    def _check_s2(self) -> None:
        if self.s2_group_size < 2 or self.s2_group_size % 2:
            raise ConfigError(
                f"method: s2_group_size is {self.s2_group_size}; the shift is half a group, "
                "use an even number of tokens"
            )
        if self.max_length and self.s2_group_size >= self.max_length:
            raise ConfigError(
                f"method: s2_group_size {self.s2_group_size} is not below max_length "
                f"{self.max_length}, so one group would hold everything; use a smaller group"
            )

    @classmethod
    def for_length(
        cls, max_length: int, *, trained_length: int, **overrides: Any
    ) -> HyloradaConfig:
        """The adaptive rule of the paper (2.3) for one context length.

        | component                    | on when                                    |
        | ---------------------------- | ------------------------------------------ |
        | position bias, landmarks     | max_length >= 2048                         |
        | S2 attention, trained norms  | max_length >= 4096                         |
        | trained position embeddings  | max_length > trained_length                |
        | RoPE factor                  | ceil(max_length / trained_length); linear  |
        |                              | to 8192 tokens, YaRN beyond, none at 1     |

        Args:
            max_length: tokens.
            trained_length: tokens the base model was trained on (`anatomy.trained_length`).
            **overrides: any field; what is named here wins over the rule.

        Raises:
            ConfigError: a length below 1 token.
        """
        max_length = whole_number("for_length: max_length", max_length, 1)
        trained_length = whole_number("for_length: trained_length", trained_length, 1)
        factor = math.ceil(max_length / trained_length)
        rope = "linear" if max_length <= LINEAR_UP_TO else "yarn"
        values: dict[str, Any] = {
            "max_length": max_length,
            "position_bias_enabled": max_length >= LONG_CONTEXT,
            "landmark_enabled": max_length >= LONG_CONTEXT,
            "s2_attn_enabled": max_length >= VERY_LONG_CONTEXT,
            "train_norms": max_length >= VERY_LONG_CONTEXT,
            "train_embeddings": max_length > trained_length,
            "rope_scaling_type": rope if factor > 1 else "none",
            "rope_scaling_factor": float(factor),
        }
        depends_on_model = (
            "position_bias_enabled", "landmark_enabled", "s2_attn_enabled", "train_norms",
            "train_embeddings", "rope_scaling_type",
        )  # fmt: skip
        values["chosen_by_rule"] = [n for n in depends_on_model if n not in overrides]
        return cls(**{**values, **overrides})

    @property
    def s2_arguments(self) -> dict[str, Any] | None:
        """What `s2_attention.enable_s2` is called with; None where it is off."""
        if not self.s2_attn_enabled:
            return None
        return {
            "group_size": self.s2_group_size,
            "shift": self.s2_shift,
            "in_evaluation": self.s2_in_evaluation,
            "max_length": self.max_length or None,
            "full": self.s2_full_layers,
            "share_of_heads": self.s2_full_heads,
        }

    @property
    def is_plain(self) -> bool:
        """Whether nothing but LoRA, rsLoRA or DoRA is left of the method on this model."""
        own = (
            self.position_bias_enabled or self.landmark_enabled or self.s2_attn_enabled
            or self.modules_to_save  # peft would hold these copies in the base's type
        )  # fmt: skip
        return self.reads_as_lora and not own

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write adapter_config.json: peft's own LoRA where that is the same, else this method.

        The latter carries a sentence as its name, with which peft fails where this package has not
        been imported.
        """
        super().save_pretrained(save_directory, **kwargs)
        path = Path(save_directory) / CONFIG_NAME
        settings = json.loads(path.read_text(encoding="utf-8"))
        if self.is_plain:
            known = {item.name for item in fields(LoraConfig)}
            settings = {key: value for key, value in settings.items() if key in known}
            settings["peft_type"] = "LORA"
        else:
            settings["peft_type"] = NAME_IN_FILES
        path.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values; sets as sorted lists, so that files can be compared."""
        return {k: sorted(v) if isinstance(v, set) else v for k, v in super().to_dict().items()}
