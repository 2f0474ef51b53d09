"""What a run is: a tree of plain dataclasses. `conf/` holds values, `compose.to_typed` fills it.

Nothing here imports more than the standard library, so that a mistake in a setting is found before
torch loads. A field says in its line what it is: default, unit, range, choices, and what another
value of it changes (numbers, unless it says otherwise). All rules about fields follow from that
(`config.rules`). A new key needs a line in `settings.fingerprint.IMPLIED`.
"""

from hylorada.config.evaluation import (
    DEPTHS,
    ContextGainConfig,
    EvalConfig,
    HarnessConfig,
    LostInMiddleConfig,
    PerplexityConfig,
    ShortContextConfig,
)
from hylorada.config.inputs import EMBEDDED, SPLITS, DatasetConfig, LengthConfig, ModelConfig
from hylorada.config.method import (
    LandmarkConfig,
    LoraConfig,
    MethodConfig,
    PositionBiasConfig,
    PositionRangeConfig,
    S2AttentionConfig,
)
from hylorada.config.run import IntegrityConfig, RunConfig, TrackConfig, from_dict, to_dict
from hylorada.config.training import LrScaleConfig, RetrievalTaskConfig, TrainConfig

__all__ = [
    "DEPTHS",
    "EMBEDDED",
    "SPLITS",
    "ContextGainConfig",
    "DatasetConfig",
    "EvalConfig",
    "HarnessConfig",
    "IntegrityConfig",
    "LandmarkConfig",
    "LengthConfig",
    "LoraConfig",
    "LostInMiddleConfig",
    "LrScaleConfig",
    "MethodConfig",
    "ModelConfig",
    "PerplexityConfig",
    "PositionBiasConfig",
    "PositionRangeConfig",
    "RetrievalTaskConfig",
    "RunConfig",
    "S2AttentionConfig",
    "ShortContextConfig",
    "TrackConfig",
    "TrainConfig",
    "from_dict",
    "to_dict",
]
