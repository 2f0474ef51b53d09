"""The frequency tables of rotary position embeddings, and how they are rescaled.

Most models have one table. Others have one for each kind of layer (OLMo 3, Gemma 3, ModernBERT):
`rope_parameters` is then a dict of dicts, by the same names. A table is rescaled if a layer that
uses it sees farther than the model was trained on. In a layer with a sliding window no two tokens
that see each other are farther apart than the window, whatever the length of the text: positions
beyond the trained ones bring nothing new to it, and rescaling would blur the distances it knows.
(The makers of Gemma 3 and OLMo 3 extended their own models so, too.)

A rotary module is built again from the changed config: a config changed after construction has no
effect by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hylorada.architecture import anatomy
from hylorada.errors import ConfigError, in_one_line
from hylorada.methods import rope_scaled_before
from hylorada.methods.hylorada_config import LINEAR_UP_TO

# Layers with full attention of these models use no positions; rotary ones have a window (their
# modelling files, transformers 5.23).
_FULL_ATTENTION_WITHOUT_POSITIONS = {
    "afmoe", "cohere2", "exaone4", "exaone_moe", "flint", "kolibri1",
}  # fmt: skip


@dataclass(frozen=True)
class RopeTable:
    """One table of frequencies.

    Attributes:
        path: of the module that holds it, within the transformers model.
        module: that module.
        kind: of the layers that use it; empty if all do.
        buffer: its name in the module.
        sees: tokens that a layer which uses it sees at most; None: all of the text.
    """

    path: str
    module: Any
    kind: str
    buffer: str
    sees: int | None

    @property
    def inv_freq(self) -> Tensor:
        """The frequencies in use."""
        return getattr(self.module, self.buffer)

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.path}.{self.buffer}"

    def must_follow(self, trained: int) -> bool:
        """Whether texts beyond the trained length bring distances that it does not know."""
        return self.sees is None or self.sees > trained


def rope_tables(model: nn.Module) -> list[RopeTable]:
    """All tables of the language model."""
    lm = anatomy.causal_lm(model)
    return [
        RopeTable(path, module, kind, buffer, _sees(rope_config(lm, module), kind))
        for path, module in anatomy.rotary_modules(lm)
        for kind, buffer in anatomy.rotary_tables(module).items()
    ]


def rope_config(lm: Any, module: Any) -> Any:
    """The config that a rotary module is built from."""
    return getattr(module, "config", None) or anatomy.text_config(lm.config)


def parameters_of(config: Any, kind: str) -> dict[str, Any]:
    """The settings of one table, as `rope_parameters` has them."""
    parameters = dict(getattr(config, "rope_parameters", None) or {})
    return dict(parameters.get(kind) or {}) if kind else parameters


def _sees(config: Any, kind: str) -> int | None:
    """Tokens that the layers with this table see at most; None: all."""
    windows = [_window(config, layer) for layer in _layers_with(config, kind)]
    known = [window for window in windows if window is not None]
    return max(known) if windows and len(known) == len(windows) else None


def _layers_with(config: Any, kind: str) -> Iterable[str]:
    """The kinds of the layers that use a table."""
    if kind:
        return [kind]
    types = list(getattr(config, "layer_types", None) or [])
    rotary = getattr(config, "no_rope_layers", None)  # 1 where RoPE is used
    if rotary and len(rotary) == len(types):
        types = [layer for layer, used in zip(types, rotary, strict=True) if used]
    window = getattr(config, "sliding_window", None)
    if window and config.model_type in _FULL_ATTENTION_WITHOUT_POSITIONS:
        return ["sliding_attention"]
    if not types:
        return ["sliding_attention" if window else "full_attention"]
    return [layer for layer in types if "attention" in layer and layer != "linear_attention"]


def _window(config: Any, layer: str) -> int | None:
    if "sliding" in layer:
        return getattr(config, "sliding_window", None) or None
    if "chunked" in layer:
        return getattr(config, "attention_chunk_size", None)
    return getattr(config, "attention_window_size", None)  # RecurrentGemma


@dataclass
class Rescaled:
    """What `rescale` did, and what `undo` needs."""

    type: str
    modules: dict[str, Any]
    configs: list[tuple[Any, dict[str, Any]]]


def rescale(
    lm: Any, max_length: int, trained: int, rope_type: str, factor: float, length_is_set: bool
) -> Rescaled:
    """Rescale every table that must follow, by ``factor``.

    Args:
        lm: the transformers model.
        max_length: tokens to reach.
        trained: tokens of its training.
        rope_type: "auto", "linear", "yarn" or "dynamic".
        factor: at least max_length / trained.
        length_is_set: whether the user set ``trained``; only then can a model that comes scaled
            already be scaled further.

    Raises:
        ConfigError: a table cannot be rescaled; the model is as it was.
    """
    kind = type(lm).__name__
    tables = rope_tables(lm)
    width = anatomy.text_config(lm.config).hidden_size
    ran = {table.name for table in tables if not _failure(table, width)}
    chosen = [table for table in tables if table.must_follow(trained)]
    configs = _configs(lm, [table.module for table in tables])
    before = [(config, _settings(config)) for config in configs]
    done = Rescaled(rope_type, {t.path: t.module for t in tables}, before)
    news, came, count = [], {}, trained
    for config in configs:
        parameters = copy.deepcopy(getattr(config, "rope_parameters", None) or {})
        for name in {table.kind for table in chosen}:
            own = parameters_of(config, name)
            came[name] = own.get("rope_type", "default")
            new, done.type, count = _scaled(
                kind, own, rope_type, factor, trained, max_length, length_is_set, _count(config)
            )
            parameters = {**parameters, name: new} if name else new
        news.append(parameters)
    for config, parameters in zip(configs, news, strict=True):
        config.rope_parameters = parameters
        _set_count(config, count)
    reason = _renewed(lm, done) or _amiss(lm, tables, chosen, ran, done.type, came)
    if reason:
        undo(lm, done)
        raise ConfigError(f"position_range: {reason}; use rope_type=none")
    return done


def _renewed(lm: Any, done: Rescaled) -> str:
    """Build the modules again from the changed config; why one cannot be, empty if all can."""
    for path, old in done.modules.items():
        device = next(iter(old._buffers.values())).device
        try:
            module = type(old)(config=rope_config(lm, old)).to(device)
        except Exception as error:  # whatever a modelling file raises
            reason = in_one_line(error)
            what = f"{type(old).__name__} of {type(lm).__name__}"
            return f"{what} cannot be built with this scaling ({type(error).__name__}: {reason})"
        lm.set_submodule(path, module)
    return ""


def _amiss(
    lm: Any,
    tables: list[RopeTable],
    chosen: list[RopeTable],
    ran: set[str],
    rope_type: str,
    came: dict[str, str],
) -> str:
    """What is wrong with a renewed module; empty if nothing is."""
    width = anatomy.text_config(lm.config).hidden_size
    renewed = {table.name: table for table in rope_tables(lm)}
    for table in tables:
        if table.inv_freq.is_meta:
            continue
        now = renewed[table.name]
        same = _same_frequencies(now.inv_freq, table.inv_freq)
        follows = table in chosen and rope_type != "dynamic"  # dynamic rescales when it runs
        if rope_type == "dynamic" and came.get(table.kind) not in (None, "default", "dynamic"):
            follows = not same  # instead of a scaling that may act from the first token on or not
        what = f"{type(table.module).__name__} of {type(lm).__name__}"
        if same == follows:
            return f"{what} does not follow the RoPE scaling of its config"
        failure = _failure(now, width) if table.name in ran else ""
        if failure:
            return f"{what} needs other settings than a factor ({failure})"
    return ""


def _same_frequencies(now: Tensor, before: Tensor) -> bool:
    """Equal; on a GPU to the last digits, where a power differs from that of the CPU by an ulp."""
    now = now.to(before.device, before.dtype)
    if before.device.type == "cpu":
        return torch.equal(now, before)
    return now.shape == before.shape and torch.allclose(now, before, rtol=1e-6, atol=0.0)


def present(lm: Any, done: Rescaled) -> Rescaled:
    """What a model has now where a rescaling changed it, for `undo` to put it back later."""
    modules = {path: lm.get_submodule(path) for path in done.modules}
    return Rescaled(done.type, modules, [(config, _settings(config)) for config, _ in done.configs])


def undo(lm: Any, done: Rescaled) -> None:
    """Put the modules and the configs back."""
    for path, module in done.modules.items():
        device = next(iter(lm.get_submodule(path)._buffers.values())).device
        lm.set_submodule(path, module.to(device))
    for config, settings in done.configs:
        for name, value in settings.items():
            setattr(config, name, value)


def _failure(table: RopeTable, width: int) -> str:
    """What a table's module raises when it is asked for two positions; empty if nothing."""
    device = table.inv_freq.device
    if device.type == "meta":
        return ""
    x_1TD, ids_1T = torch.zeros(1, 2, width, device=device), torch.arange(2, device=device)[None]
    try:
        with torch.no_grad():
            table.module(x_1TD, ids_1T, **({"layer_type": table.kind} if table.kind else {}))
    except Exception as error:  # whatever a modelling file raises
        return f"{type(error).__name__}: {error}"
    return ""


def _scaled(
    kind: str,
    own: dict[str, Any],
    wanted: str,
    factor: float,
    trained: int,
    length: int,
    length_is_set: bool,
    count: int,
) -> tuple[dict[str, Any], str, int]:
    """The settings of a table, scaled; the type of the scaling; the positions for the config."""
    reached = int(trained * factor)
    if length_is_set and trained <= rope_scaled_before.starts_at(own, count):
        own = rope_scaled_before.unscaled(own)
    comes = own.get("rope_type", "default") if own else None
    if comes == "default":
        rope_type = wanted if wanted != "auto" else "linear" if length <= LINEAR_UP_TO else "yarn"
        new = {**own, "rope_type": rope_type, "factor": factor}
        if rope_type == "yarn":
            new["original_max_position_embeddings"] = trained
        # for dynamic it is the length from which the scaling begins
        return new, rope_type, trained if rope_type == "dynamic" else reached
    if comes == "proportional" and wanted in ("auto", "linear"):  # a linear factor is part of it
        return {**own, "factor": own.get("factor", 1.0) * factor}, "linear", reached
    if not length_is_set:
        raise rope_scaled_before.ask(kind, own, count, length)
    new = rope_scaled_before.scaled_further(kind, own, wanted, factor, length)
    return new, str(comes), count if comes == "dynamic" else reached


def _configs(lm: Any, modules: list[Any]) -> list[Any]:
    """The config objects that the model and its rotary modules read, each once."""
    configs = [anatomy.text_config(lm.config), *(rope_config(lm, m) for m in modules)]
    return list({id(config): config for config in configs}.values())


def _settings(config: Any) -> dict[str, Any]:
    """What `rescale` changes in a config."""
    settings: dict[str, Any] = {"rope_parameters": config.rope_parameters}
    found = anatomy.position_count(config)
    return settings if found is None else {**settings, found[0]: found[1]}


def _count(config: Any) -> int:
    """The positions that a config speaks of; 0 if of none."""
    found = anatomy.position_count(config)
    return 0 if found is None else found[1]


def _set_count(config: Any, value: int) -> None:
    found = anatomy.position_count(config)
    if found is not None:
        setattr(config, found[0], value)
