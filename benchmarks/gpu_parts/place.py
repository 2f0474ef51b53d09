"""Where the cells run: a GPU with real shapes, or a processor with tiny ones, by the same names."""

from __future__ import annotations

import gc
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LENGTHS = {
    "1k": (1024, 32), "2k": (2048, 48), "4k": (4096, 64), "8k": (8192, 96), "16k": (16384, 96),
    "32k": (32768, 128), "64k": (65536, 128), "128k": (131072, 160),
}  # fmt: skip
GPT2 = {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12}
SMOLLM2 = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "rope_theta": 100000.0,
}  # fmt: skip
LLAMA = {
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 500000.0,
}  # fmt: skip
SHAPES = {"gpt2": GPT2, "smollm2": SMOLLM2, "llama1b": LLAMA}
TINY_GPT2 = {"vocab_size": 97, "n_embd": 48, "n_layer": 2, "n_head": 4}
TINY_LLAMA = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "rope_theta": 10000.0,
}  # fmt: skip


@dataclass
class Place:
    """A device and the size of everything on it.

    Attributes:
        device: of every tensor.
        tiny: small shapes; the keys of the rows stay.
    """

    device: torch.device
    tiny: bool

    def tokens(self, length: str) -> int:
        """Of a named length."""
        return LENGTHS[length][self.tiny]

    @property
    def group(self) -> int:
        """Tokens in a group of shifted sparse attention."""
        return 16 if self.tiny else 2048

    @property
    def trained(self) -> int:
        """Tokens that a model without an extension reaches."""
        return 24 if self.tiny else 1024

    def shape(self, model: str) -> dict[str, Any]:
        """The sizes of a model, as its configuration takes them."""
        if self.tiny:
            return TINY_GPT2 if model == "gpt2" else TINY_LLAMA
        return SHAPES[model]

    def ids(self, model: str, length: int, seed: int = 0, rows: int = 1) -> Tensor:
        """Random token ids [rows, length]; never zeros, which multiply faster."""
        generator = torch.Generator().manual_seed(seed)
        vocabulary = self.shape(model)["vocab_size"]
        return torch.randint(1, vocabulary, (rows, length), generator=generator).to(self.device)

    def bf16(self) -> AbstractContextManager[Any]:
        """Autocast as a run has it."""
        return torch.autocast(self.device.type, torch.bfloat16)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def clean(self) -> None:
        """Give memory back; of tiny models there is none worth looking for."""
        if self.tiny:
            return
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def poison(self) -> None:
        """Fill memory that is handed out next with NaN, so that what is left unwritten shows."""
        torch.full((2**12 if self.tiny else 2**26,), float("nan"), device=self.device)

    def milliseconds(self, call: Callable[[], Any], rounds: int = 7, warm: int = 2) -> float:
        """Median time of a call, by the device's own clock."""
        for _ in range(1 if self.tiny else warm):
            call()
        return statistics.median(self.once(call)[0] for _ in range(2 if self.tiny else rounds))

    def once(self, call: Callable[[], Any]) -> tuple[float, float]:
        """(device, wall) milliseconds of one call; the same without a device clock."""
        self.wait()
        started = time.perf_counter()
        if self.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            self.wait()
            wall = (time.perf_counter() - started) * 1e3
            return begin.elapsed_time(end), wall
        call()
        wall = (time.perf_counter() - started) * 1e3
        return wall, wall

    def reset_peak(self) -> None:
        """Forget the peak of memory."""
        self.clean()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def memory(self) -> dict[str, float]:
        """MiB: peak allocated and reserved, and in use by everything on the card; zeros without."""
        if self.device.type != "cuda":
            return {"peak_mib": 0.0, "reserved_mib": 0.0, "card_mib": 0.0}
        free, total = torch.cuda.mem_get_info(self.device)
        return {
            "peak_mib": torch.cuda.max_memory_allocated(self.device) / 2**20,
            "reserved_mib": torch.cuda.max_memory_reserved(self.device) / 2**20,
            "card_mib": (total - free) / 2**20,
        }

    def allocated(self) -> float:
        """MiB that tensors take now; 0 where nobody counts."""
        if self.device.type != "cuda":
            return 0.0
        return torch.cuda.memory_allocated(self.device) / 2**20


def said(*command: str) -> str:
    """What a command prints, or nothing."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def common(device: torch.device) -> dict[str, Any]:
    """What every row says of the machine."""
    here = str(Path(__file__).parent)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        cudnn = torch.backends.cudnn.version()
    else:
        lines = (
            Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        )
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name, cudnn = models[0] if models else platform.processor(), None
    commit = said("git", "-C", here, "rev-parse", "--short", "HEAD")
    return {"device": name, "torch": torch.__version__, "cudnn": cudnn, "git": commit}
