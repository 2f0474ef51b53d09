"""`train.task=retrieval` and `train.mix`: what they cannot stand beside."""

from __future__ import annotations

from hylorada.config import RetrievalTaskConfig, RunConfig
from hylorada.errors import ConfigError


def check_retrieval_task(config: RunConfig) -> None:
    """Refuses training on retrieval examples without effect, or that the evaluation asks again.

    Raises:
        ConfigError: naming the setting.
    """
    train, task = config.train, config.train.retrieval
    if train.task == "text" and not train.mix:
        if task != RetrievalTaskConfig():
            raise ConfigError(
                "train.retrieval has no effect with train.task=text and train.mix=0; use "
                "train=retrieval, set a share, or leave it as it is"
            )
        return
    on = f"train.mix={train.mix:g}" if train.mix else "train.task=retrieval"
    if train.mix:
        _check_mix(config, on)
    if train.max_tokens:
        raise ConfigError(
            f"train.max_tokens={train.max_tokens} cannot be kept with {on}, whose "
            "sequences differ in scored tokens; use train.max_steps or train.epochs"
        )
    if config.dataset.packing == "reset":
        why = "which packs no documents" if not train.mix else "whose examples are no documents"
        raise ConfigError(
            f"dataset.packing=reset has no effect with {on}, {why}; set dataset.packing=documents"
        )
    lim = config.eval.lost_in_middle
    if not lim.enabled:
        return
    unheld = [depth for depth in lim.depths if depth not in task.held_out]
    if unheld:
        raise ConfigError(
            f"eval.lost_in_middle.depths has {unheld[0]:g}, which is not in "
            "train.retrieval.held_out, so the model may be trained on it; use held-out depths only"
        )
    if lim.form == "kv" and not lim.path and lim.key_style != task.key_style:
        raise ConfigError(
            f"eval.lost_in_middle.key_style is {lim.key_style}, train.retrieval.key_style "
            f"{task.key_style}; set both alike"
        )


def _check_mix(config: RunConfig, on: str) -> None:
    train = config.train
    if train.task != "text":
        raise ConfigError(
            f"{on} has no effect with train.task={train.task}, where every step is on examples; "
            "set train.mix=0, or train.task=text"
        )
    if config.method.skipped_positions.enabled:
        raise ConfigError(
            f"{on}: method.skipped_positions.enabled=true would cut the examples into pieces; "
            "switch one of them off"
        )
    if train.loss_spike != "none":
        raise ConfigError(
            f"{on}: the loss of retrieval steps differs from that of text, which "
            f"train.loss_spike={train.loss_spike} would take for spikes; set it to none"
        )
    on_examples = steps_on_examples(train.max_steps, train.mix)
    if train.max_steps and not 0 < on_examples < train.max_steps:
        which = "no step" if not on_examples else "every step"
        raise ConfigError(
            f"{on} of train.max_steps={train.max_steps} puts {which} on examples; use a share "
            "that leaves steps for both, or more steps"
        )


def steps_on_examples(steps: int, share: float) -> int:
    """How many of the first steps of a run are on retrieval examples, by their share.

    They are spread evenly; before the first one are half as many as between two of them.
    """
    return int(steps * share + 0.5)
