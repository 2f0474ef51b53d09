from __future__ import annotations

import pytest

from hylorada.config import RunConfig
from hylorada.errors import ConfigError
from hylorada.settings.run import check_settings


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: setattr(c.method.lora, "enabled", False), "nothing trains"),
        (lambda c: setattr(c.method.s2_attn, "enabled", "auto"), "s2_attn.enabled=false"),
        (lambda c: setattr(c.dataset, "packing", "reset"), "packing=documents"),
        (lambda c: setattr(c.train, "task", "retrieval"), "train.task=text"),
        (
            lambda c: (setattr(c.train, "max_tokens", 9), setattr(c.train, "max_steps", 0)),
            "train.max_steps or train.epochs",
        ),
    ],
)
def test_what_would_undo_the_short_rows_is_refused(change, says):
    config = RunConfig()
    config.method.skipped_positions.enabled = True
    config.method.s2_attn.enabled = "false"
    check_settings(config)
    change(config)
    with pytest.raises(ConfigError, match=says):
        check_settings(config)
