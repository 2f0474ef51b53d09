"""The method as a PEFT method (paper 2.1, 2.2): rsLoRA from peft, plus what all its layers share.

    W' = W + alpha / sqrt(r) * B A,   A with orthonormal rows, B zero

peft supplies the layers (Linear, Conv1D, quantised), rsLoRA, DoRA, dropout, several adapters,
saving, loading and merging. Added here: the paper's initialisation of A; the position bias, as a
LoRA variant; the landmarks, as a hook on the decoder; the longer position range, applied before
injection so that an adapter loads onto the base model as it was; S2 attention, which follows the
active adapter; float32 copies of trained norms and embeddings.

peft has no public interface for this: all uses of its private one are in this file, `attach` and
`loaded_tensors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import ParamWrapper
from peft.utils import ModulesToSaveWrapper
from peft.utils.integrations import init_empty_weights, skip_init_on_device
from torch import Tensor, nn

from hylorada.architecture import anatomy
from hylorada.errors import ConfigError
from hylorada.methods.landmarks import Landmark, add_to_output
from hylorada.methods.loaded_tensors import reads_as_lora, refuse_unfitting
from hylorada.methods.own_range import adopt_range
from hylorada.methods.placement import resolve
from hylorada.methods.position_bias import PositionBias, PositionBiasVariant
from hylorada.methods.position_range import extend_range, restore_range
from hylorada.methods.positions import Positions
from hylorada.methods.s2_attention import S2, attention_of, disable_s2, enable_s2, use_attention

_RANGE_FIELDS = (
    "max_length", "base_trained_length", "learned_init", "rope_scaling_type", "rope_scaling_factor",
)  # fmt: skip

# In the base's config: its trained length, where the user sets it (see `anatomy.trained_length`).
_TRAINED_LENGTH = "hylorada_trained_length"


class HyloradaModel(LoraModel):
    """The tuner: what `PeftModel.base_model` is.

    Attributes:
        lora_position_bias: `PositionBias` by adapter name; saved with the adapter.
        lora_landmark: `Landmark` by adapter name; saved with the adapter.
        positions: what the attention layers publish.
        s2_layers: layers that S2 attention takes; 0 if no active adapter asks for it.
        range_report: what `extend_range` did to the model.
    """

    peft_config: dict[str, Any]
    uses_shared_state = True  # transformers' own add_adapter could not save it, and refuses

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        self.lora_position_bias = nn.ModuleDict()
        self.lora_landmark = nn.ModuleDict()
        self.positions = Positions()
        self.hook_handles: list[Any] = []
        self.injecting = False
        self.adapters_enabled = True
        self.s2_layers = 0
        self.s2_settings: dict[str, Any] | None = None
        self.range_report: Any = None
        self.marked_config: dict[str, Any] = {}  # of the base; _TRAINED_LENGTH was added to it

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False, state_dict: dict[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Resolve the config against the model, then inject and add the shared parts."""
        base, given = vars(anatomy.causal_lm(model).config), self.peft_config[adapter_name]
        if _TRAINED_LENGTH not in base and given.base_trained_length:
            base[_TRAINED_LENGTH] = given.base_trained_length
            self.marked_config = base
        config = resolve(given, model)
        config.base_trained_length = config.base_trained_length or base.get(_TRAINED_LENGTH, 0)
        self.peft_config[adapter_name] = config
        requires_grad = [(p, p.requires_grad) for p in self._shared_parameters()]
        context = init_empty_weights if low_cpu_mem_usage else nullcontext
        device = next(anatomy.decoder(model).parameters()).device
        self.injecting = True
        try:
            if config.position_bias_enabled:
                with context():
                    self.lora_position_bias[adapter_name] = _to(device, PositionBias(
                        config.position_buckets, config.bucketing, config.max_length, config.placebo
                    ))  # fmt: skip
            super().inject_adapter(
                model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict
            )
            if config.landmark_enabled:
                with context():
                    self.lora_landmark[adapter_name] = _to(device, Landmark(
                        _width(model), config.num_landmarks,
                        config.landmark_pooling, config.landmark_position_buckets,
                        config.bucketing, config.max_length, config.placebo,
                    ))  # fmt: skip
        except Exception:
            self._drop_shared(adapter_name)
            raise
        finally:
            self.injecting = False
        config.reads_as_lora = reads_as_lora(config, model, adapter_name)
        self._set_active_shared(self.active_adapters, config.inference_mode)
        for parameter, value in requires_grad:  # a new adapter does not change the others
            parameter.requires_grad_(value)
        self._place_hooks(model)
        self._follow_s2()

    def _check_new_adapter_config(self, config: Any) -> None:
        super()._check_new_adapter_config(config)
        for name, other in self.peft_config.items():
            differing = [f for f in _RANGE_FIELDS if getattr(other, f) != getattr(config, f)]
            if differing:
                raise ConfigError(
                    f"method: a model has one position range, but {differing[0]} is "
                    f"{getattr(config, differing[0])} for the new adapter and "
                    f"{getattr(other, differing[0])} for {name!r}; load it onto its own copy"
                )

        known = vars(anatomy.causal_lm(self.model).config).get(_TRAINED_LENGTH, 0)
        if config.base_trained_length != known:
            raise ConfigError(
                f"method: the adapter is for a base that was trained on "
                f"{config.base_trained_length} tokens, but model.trained_length is {known}; use one"
            )

    @skip_init_on_device  # low_cpu_mem_usage must not send the longer embeddings to the meta device
    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        super()._prepare_model(peft_config, model)
        if peft_config.max_length and self.range_report is None:
            self.range_report = extend_range(
                model, peft_config.max_length, peft_config.learned_init,
                peft_config.rope_scaling_type, peft_config.rope_scaling_factor,
            )  # fmt: skip

    def _create_and_replace(  # type: ignore[override]  # as LoraModel's
        self, lora_config: Any, adapter_name: str, target: nn.Module, target_name: str,
        parent: nn.Module, current_key: str, **kwargs: Any,
    ) -> None:  # fmt: skip
        super()._create_and_replace(
            lora_config, adapter_name, target, target_name, parent, current_key, **kwargs
        )
        layer = getattr(parent, target_name)
        if getattr(target, "parameter_name", "") == kwargs.get("parameter_name"):
            layer = target  # a wrapper that was there, maybe inside one for another parameter
        if lora_config.lora_init == "orthogonal" and adapter_name in layer.lora_A:
            _orthonormal_rows(layer.lora_A[adapter_name].weight, getattr(layer, "num_experts", 1))
        if not lora_config.position_bias_enabled or isinstance(layer, ParamWrapper):
            return
        if adapter_name in layer.lora_variant or adapter_name not in layer.lora_A:
            raise ConfigError(
                f"method: position bias cannot be combined with another variant of LoRA or with an "
                f"adapter on {type(layer.get_base_layer()).__name__} ({current_key})"
            )
        if "lora_variant" not in type(layer).forward.__code__.co_names:
            raise ConfigError(
                f"method: peft's layer for {type(layer.get_base_layer()).__name__} ({current_key}) "
                "cannot take a position bias; use another quantisation or switch position bias off"
            )
        bias, rank = self.lora_position_bias[adapter_name], layer.r[adapter_name]
        layer.lora_variant[adapter_name] = PositionBiasVariant(bias, self.positions, rank)

    # ---- hooks --------------------------------------------------------------------------------

    def _place_hooks(self, model: nn.Module) -> None:
        if self.hook_handles or not (self.lora_position_bias or self.lora_landmark):
            return
        attentions, decoder = anatomy.attention_modules(model), anatomy.decoder(model)
        publish = self.positions.publish
        self.hook_handles += [
            *(a.register_forward_pre_hook(publish, with_kwargs=True) for a in attentions),
            decoder.register_forward_pre_hook(self.positions.forget),
            decoder.register_forward_hook(self._add_landmarks, with_kwargs=True),
        ]

    def _remove_hooks(self) -> None:
        while self.hook_handles:
            self.hook_handles.pop().remove()

    def _add_landmarks(self, decoder: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if self.adapters_enabled:
            for name in self.active_adapters:
                if name in self.lora_landmark:
                    landmark: Any = self.lora_landmark[name]
                    position_ids_BT = self.positions.current()
                    output = add_to_output(
                        landmark, name, position_ids_BT, decoder, args, kwargs, output
                    )
        return output

    # ---- adapters: which is active, trainable, there at all -----------------------------------

    def _shared(self) -> list[Any]:
        return [self.lora_position_bias, self.lora_landmark]

    def _shared_parameters(self) -> list[nn.Parameter]:
        return [p for modules in self._shared() for p in modules.parameters()]

    def _drop_shared(self, adapter_name: str) -> None:
        for modules in self._shared():
            if adapter_name in modules:
                del modules[adapter_name]

    def _set_active_shared(self, names: Sequence[str], inference_mode: bool) -> None:
        for modules in self._shared():
            for name, module in modules.items():
                module.requires_grad_(name in names and not inference_mode)

    def _follow_s2(self) -> None:
        """S2 attention follows the active adapter, and rests while adapters are disabled."""
        if self.injecting or any(p.is_meta for p in self.model.parameters()):
            return  # it is proven by running the model, which must be complete
        settings = None
        for name in self.active_adapters:
            config = self.peft_config.get(name)
            settings = (config and config.s2_arguments) or settings
        if settings is None and self.s2_settings is not None:
            disable_s2(self.model)
            self.s2_layers = 0
        elif settings is not None and settings != self.s2_settings:
            self.s2_layers = enable_s2(self.model, **settings)
        self.s2_settings = settings
        if settings is not None:
            replaced = self.model.config.s2_replaced_attention
            attention = S2 if self.adapters_enabled else replaced
            if attention_of(self.model) != attention:
                use_attention(self.model, attention)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make an adapter the active one, with its shared parts and its attention."""
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        names = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        self._set_active_shared(names, inference_mode)
        self._follow_s2()

    def set_requires_grad(
        self, adapter_names: str | Sequence[str], requires_grad: bool = True
    ) -> None:
        """Freeze or thaw adapters, their shared parts included."""
        super().set_requires_grad(adapter_names, requires_grad)
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for modules in self._shared():
            for name in names:
                if name in modules:
                    modules[name].requires_grad_(requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter and its shared parts. The position range stays."""
        super().delete_adapter(adapter_name)
        self._drop_shared(adapter_name)
        if not (self.lora_position_bias or self.lora_landmark):
            self._remove_hooks()
        self._follow_s2()

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        super()._enable_adapter_layers(enabled)
        self.adapters_enabled = enabled
        self._follow_s2()

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Also trained copies of norms and embeddings become float32 (peft leaves them in bf16)."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        device = next(anatomy.decoder(self.model).parameters()).device
        for modules in self._shared():
            if adapter_name in modules:
                _to(device, modules[adapter_name])
        for module in self.model.modules() if autocast_adapter_dtype else ():
            if isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save:
                _train_in_float32(module.modules_to_save[adapter_name])
        self._follow_s2()  # after loading, the parameters are no longer on the meta device

    # ---- merging, unloading, mixed batches, loading -------------------------------------------

    def _refuse_merge(self, adapter_names: list[str] | None) -> None:
        for name in adapter_names or self.active_adapters:
            for modules, what in zip(self._shared(), ("position bias", "landmarks"), strict=True):
                if name in modules and not modules[name].is_identity():
                    raise ConfigError(
                        f"method: adapter {name!r} cannot be merged into the weights, because its "
                        f"{what} depends on the input; keep it as an adapter"
                    )

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """Merge in place, if the adapter is a pure weight update."""
        self._refuse_merge(adapter_names)
        super().merge_adapter(adapter_names, safe_merge)

    def _unload_and_optionally_merge(  # type: ignore[override]  # peft says None, returns the model
        self, merge: bool = True, progressbar: bool = False, safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:  # fmt: skip
        """Merged, it was trained in the longer range; unloaded, it is the base model as it was."""
        if merge:
            self._refuse_merge(adapter_names)
        else:
            for name, module in list(self.model.named_modules()):
                if isinstance(module, ModulesToSaveWrapper):  # peft would leave the trained copy
                    self.model.set_submodule(name, module.original_module)
        self._remove_hooks()
        if self.s2_settings is not None:
            disable_s2(self.model)
            self.s2_layers, self.s2_settings = 0, None
        model: Any = super()._unload_and_optionally_merge(
            merge, progressbar, safe_merge, adapter_names
        )
        if merge:
            adopt_range(model)
        elif self.range_report is not None:
            restore_range(model, self.range_report)
            self.range_report = None
            self.marked_config.pop(_TRAINED_LENGTH, None)
        return model

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("adapter_names") is not None and any(len(m) for m in self._shared()):
            raise ConfigError(
                "method: adapter_names mixes adapters in one batch, which position bias and "
                "landmarks do not support; run one batch per adapter"
            )
        with super()._enable_peft_forward_hooks(*args, **kwargs):
            yield

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Refuse a file that does not hold just the adapter's tensors; peft would only warn.

        `check_loaded` asks the same of every method, but has to be called; this always is.
        """
        remapped = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        of_adapter = f".{adapter_name}."
        there = set(model.state_dict())
        expected = {k for k in there if ".lora_" in k and of_adapter in k}
        refuse_unfitting(
            repr(adapter_name), sorted(expected - set(remapped)), sorted(set(remapped) - there)
        )
        return remapped


def _width(model: nn.Module) -> int:
    """Size of the hidden states that the output head reads."""
    head: Any = anatomy.output_head(model)
    return head.weight.shape[-1]


def _to(device: torch.device, module: nn.Module) -> nn.Module:
    on_meta = device.type == "meta" or any(p.is_meta for p in module.parameters())
    return module if on_meta else module.to(device)


@torch.no_grad()
def _orthonormal_rows(weight: Tensor, experts: int) -> None:
    """A [r, d_in]: random with A A^T = I (Saxe et al. 2014, as torch.nn.init.orthogonal_).

    Drawn on the CPU in float32, so that one seed gives one A on every device. Of several experts
    the matrices stand one below the other, [experts * r, d_in].
    """
    if not weight.is_meta:
        for a in weight.view(experts, -1, weight.shape[-1]):
            a.copy_(nn.init.orthogonal_(torch.empty(a.shape)))


def _train_in_float32(module: nn.Module) -> None:
    """Keep the parameters in float32 and speak the base model's dtype to its neighbours."""
    weights = [p for p in module.parameters() if p.is_floating_point()]
    if not weights or weights[0].dtype == torch.float32 or any(p.is_meta for p in weights):
        return
    dtype = weights[0].dtype
    module.to(torch.float32)
    module.register_forward_pre_hook(_inputs_to_float32)
    module.register_forward_hook(partial(_output_to, dtype))


def _inputs_to_float32(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)


def _output_to(dtype: torch.dtype, module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.to(dtype)
