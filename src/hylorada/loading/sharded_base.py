"""A frozen base that is too large for one process: each holds a part of its decoder layers.

torch's FSDP2 (`fully_shard`) on the frozen weights of each decoder layer: a process holds one of R
parts of them, and has one layer whole at a time, in the forward and in the backward pass. All that
trains is left out of it, so that no adapter becomes a distributed tensor: the optimizer, clipping,
checkpoints and `save_pretrained` are those of one process. The root is the decoder, through which
every path goes (training, scores, generation), and numbers are bit for bit those of a whole base.

Embeddings and head, outside the layers, stay whole in each process.

Everything that copies or replaces modules comes before: attaching the adapter, the integrity gate's
`save_load`. Processes must run the model equally often; `generate` is given ``synced_gpus=True``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hylorada.architecture import anatomy
from hylorada.errors import ConfigError


@dataclass(frozen=True)
class ShardedBase:
    """What was sharded, in bytes.

    Attributes:
        whole: of the frozen weights in the decoder layers.
        here: of this process's part of them.
        one_layer: of the largest layer, which is whole while it computes.
        kept: of all other parameters, which every process has.
    """

    whole: int
    here: int
    one_layer: int
    kept: int


def shard_base(model: nn.Module, group: Any, device: torch.device) -> ShardedBase:
    """Leave this process its part of the frozen decoder layers, in place; it cannot be undone.

    Args:
        model: a causal language model with what trains on it; on the CPU or on ``device``. Layer by
            layer, a process's part is copied to the device and the rest let go.
        group: the processes that share the base (torch.distributed); all of them call this.
        device: to run on.

    Raises:
        ConfigError: the base is packed into 4 bits, or no weight of its layers is frozen.
    """
    if anatomy.quantised_products(model):
        raise ConfigError(
            "shard_base: the base is quantised, and packed weights are not shared out; set "
            "model.quantization=none, or shard_base=false"
        )
    decoder, layers = anatomy.decoder(model), anatomy.decoder_layers(model)
    trains = {p for p in model.parameters() if p.requires_grad}
    frozen = [[p for p in layer.parameters() if p not in trains] for layer in layers]
    sizes = [sum(p.nbytes for p in members) for members in frozen]
    if not sum(sizes):
        raise ConfigError(
            "shard_base: no weight of the decoder layers is frozen, so there is nothing to share "
            "out; set shard_base=false"
        )
    mesh = DeviceMesh.from_group(group, device.type)
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=trains)
    fully_shard(decoder, mesh=mesh, ignored_params=set(model.parameters()))
    kept = [p for p in model.parameters() if not isinstance(p, DTensor)]
    for parameter in kept:  # what is ignored is not moved either
        parameter.data = parameter.data.to(device)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    here = sum(p.to_local().nbytes for p in model.parameters() if isinstance(p, DTensor))
    return ShardedBase(sum(sizes), here, max(sizes), sum(p.nbytes for p in kept))
