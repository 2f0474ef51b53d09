"""Best weights and early stopping, which only evaluations between the steps can act on."""

from __future__ import annotations

from hylorada.config import TrainConfig
from hylorada.errors import ConfigError
from hylorada.process.counts import number_of


def check_best(train: TrainConfig, steps: int = 0) -> None:
    """Refuse `train.keep_best` and `train.patience` where no evaluation comes early enough.

    Args:
        train: the settings of training.
        steps: of the run; 0: not known yet. Those of `train.max_steps` are known at once, those of
            epochs and tokens only with the text.

    Raises:
        ConfigError: they have no effect.
    """
    if not (train.keep_best or train.patience):
        return
    judged = f"train.patience={train.patience}" if train.patience else "train.keep_best=true"
    every = train.eval_every
    if not every:
        raise ConfigError(
            f"{judged} needs validation between the steps, and train.eval_every is 0; set it to a "
            "number of steps"
        )
    needed = train.patience + 1 if train.patience else 1
    if 0 < (train.max_steps or steps) <= needed * every:
        within = f"train.max_steps={train.max_steps}"
        if not train.max_steps:
            tokens = train.max_tokens
            budget = f"max_tokens={tokens}" if tokens else f"epochs={train.epochs:g}"
            within = f"{number_of(steps, 'step')} (train.{budget})"
        raise ConfigError(
            f"{judged} has no effect: it needs {number_of(needed, 'evaluation')} before the last "
            f"step, and train.eval_every={every} gives fewer in {within}; evaluate more often, or "
            "leave it out"
        )
