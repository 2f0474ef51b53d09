"""Decoder layers as compiled graphs, each by itself, in training (`train.compile=layers`).

torch.compile joins the elementwise operations of a layer into a few kernels of its own and has one
call for all of them. The model as a whole is not traced: under a tracer transformers takes any
position ids for those of packed documents, and builds masks of n x n. Nor is evaluation, whose
prompts have many lengths.

Training sequences have one length, so each shape has graphs of its own (no dynamic shapes).

Nothing runs uncompiled without a word: a layer must become one graph (``fullgraph``), and what
torch cannot compile ends the run in one line, in the gate, before a step was made. Parameters,
their names and the layers' classes stay as they are.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hylorada.architecture import anatomy
from hylorada.errors import ConfigError

logger = logging.getLogger(__name__)

_MOST = 64  # graphs: kinds of layers, times modes and shapes; torch's own limit is 8
_OLDEST = (7, 0)  # compute capability that Triton has


class CompiledLayers:
    """The compiled layers of a model, and what has become of them.

    Attributes:
        graphs: how many were compiled.
        calls: how often one of them has run a layer forward.
    """

    def __init__(self) -> None:
        self.graphs = self.calls = 0
        self.at_rest = False

    def backend(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        """What torch.compile asks for each graph: inductor, counted."""
        import torch._dynamo

        # Dropout draws torch's own numbers, so that the gate compares like with like. Said to each
        # graph: backward is compiled later, on a GPU in a thread that has settings of its own.
        settings = {"fallback_random": True}
        inductor: Any = torch._dynamo.lookup_backend("inductor")
        run = inductor(graph, inputs, config_patches=settings)
        self.graphs += 1

        def counted(*args: Any) -> Any:
            self.calls += 1
            return run(*args)

        return counted

    def call(self, layer: nn.Module, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The layer, by its own compiled call where it trains."""
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        if self.at_rest or not layer.training:
            return layer._call_impl(*args, **kwargs)
        before, out = self.calls, None
        try:
            out = own(*args, **kwargs)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            why = " ".join(lines[:4]) or "no reason given"
            raise ConfigError(
                f"train.compile=layers: torch cannot compile {type(layer).__name__} "
                f"({type(error).__name__}: {why[:300]}); set train.compile=none"
            ) from error
        except RuntimeError as error:
            if "found no compiled frames" not in str(error):  # torch's word for what is said below
                raise
        if self.calls == before:
            raise ConfigError(
                f"train.compile=layers: torch has run {type(layer).__name__} without compiling it "
                "(is TORCHDYNAMO_DISABLE set?); unset that, or set train.compile=none"
            )
        return out

    def say(self) -> None:
        """Tell the log how many graphs there are, and how often they ran; nothing if none did."""
        if self.calls:
            logger.info("compiled layers: %d graphs, which ran %d times", self.graphs, self.calls)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Layers run as they are written inside."""
        before, self.at_rest = self.at_rest, True
        try:
            yield
        finally:
            self.at_rest = before


@contextmanager
def compiled_layers(model: nn.Module, enabled: bool = True) -> Iterator[CompiledLayers]:
    """Compile each decoder layer of a model, when it first runs in training mode inside the block.

    Args:
        model: with its adapter attached and its kernels in place.
        enabled: False: nothing is compiled.

    Raises:
        ConfigError: inside the block, from a layer that torch cannot compile as one graph, or has
            run without compiling it.
    """
    found = CompiledLayers()
    if not enabled:
        yield found
        return
    import torch._dynamo  # takes a second, and few runs need it

    layers = list(anatomy.decoder_layers(model))
    try:
        with torch._dynamo.config.patch(recompile_limit=_MOST):
            for layer in layers:
                # As nn.Module.compile, which has no undoing.
                own = torch.compile(
                    layer._call_impl, fullgraph=True, dynamic=False, backend=found.backend
                )
                layer._compiled_call_impl = functools.partial(found.call, layer, own)
            yield found
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


def refuse_without_compiler(device: torch.device) -> None:
    """Refuse to compile where there is nothing to compile with.

    Raises:
        ConfigError: no C++ compiler for a CPU, or no Triton or too old a GPU.
    """
    told = "train.compile=layers needs"
    if device.type == "cpu":
        name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(name.split()[0]) is None:
            raise ConfigError(
                f"{told} a C++ compiler on a CPU, and there is no {name} (the variable CXX names "
                "another); install one, or set train.compile=none"
            )
        return
    if importlib.util.find_spec("triton") is None:
        raise ConfigError(
            f"{told} the package triton on a GPU, which is not installed; install it, or set "
            "train.compile=none"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST:
        raise ConfigError(
            f"{told} a GPU of compute capability 7.0 or more, and this one has "
            f"{capability[0]}.{capability[1]}; set train.compile=none"
        )
