"""Stage 0: what the machine is and what it reaches. Floors of a step follow from that."""

from __future__ import annotations

import os
import platform
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_parts.place import Place, said
from gpu_parts.rows import Cell, Found

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
SHAPES = {"long": (1, 12, 8192, 64), "groups": (4, 12, 2048, 64)}
ATTENTION = [f"ceiling/sdpa/{shape}/{name}" for shape in SHAPES for name in BACKENDS]


def cells(place: Place) -> list[Cell]:
    """In the order of the file."""
    return [
        Cell("0", ["machine"], 2, lambda keys: machine(place)),
        Cell("0", ["ceiling/matmul", "ceiling/copy"], 3, lambda keys: ceilings(place)),
        Cell("0", ATTENTION, 8, lambda keys: attention(place, keys)),
    ]


def machine(place: Place) -> Found:
    """Versions and names."""
    packages = {}
    for name in ("torch", "transformers", "peft", "triton", "numpy", "accelerate"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    order = getattr(torch._C, "_get_sdp_priority_order", list)()
    found: dict[str, Any] = {
        "packages": packages,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "sdpa_order": [str(SDPBackend(int(n))).rpartition(".")[2] for n in order],
    }
    if place.device.type == "cuda":
        properties = torch.cuda.get_device_properties(place.device)
        found |= {
            "capability": list(torch.cuda.get_device_capability(place.device)),
            "memory_gib": properties.total_memory / 2**30,
            "processors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "nvidia_smi": said(
                "nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit",
                "--format=csv,noheader",
            ),
        }  # fmt: skip
    yield "machine", found


def ceilings(place: Place) -> Found:
    """What a product of large matrices and a copy reach."""
    n = 128 if place.tiny else 8192
    a, b = (torch.randn(n, n, device=place.device, dtype=torch.bfloat16) for _ in range(2))
    took = place.milliseconds(partial(torch.matmul, a, b), rounds=20, warm=3)
    yield "ceiling/matmul", {"tflops": 2 * n**3 / took / 1e9, "ms": took, "n": n}
    a = b = None
    size = 2**16 if place.tiny else 2**32
    source = torch.ones(size, dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    took = place.milliseconds(lambda: target.copy_(source), rounds=9)
    yield "ceiling/copy", {"tb_per_s": 2 * size / took / 1e9, "ms": took, "bytes": size}


def attention(place: Place, keys: list[str]) -> Found:
    """Causal attention in bf16, forward and backward, by each kernel that there is."""
    for key in keys:
        _, _, shape, name = key.split("/")
        B, H, N, D = SHAPES[shape]
        if place.tiny:
            H, N = 2, 64
        q, k, v = (
            torch.randn(B, H, N, D, device=place.device, dtype=torch.bfloat16, requires_grad=True)
            for _ in range(3)
        )
        grad = torch.randn_like(q)
        flops = 2 * B * H * N * N * D  # of the causal half, forward
        try:
            with sdpa_kernel(BACKENDS[name]):

                def forward(q: Any = q, k: Any = k, v: Any = v) -> Any:
                    return F.scaled_dot_product_attention(q, k, v, is_causal=True)

                def both(
                    forward: Any = forward, q: Any = q, k: Any = k, v: Any = v, grad: Any = grad
                ) -> Any:
                    return torch.autograd.grad(forward(), (q, k, v), grad)

                first = place.once(both)[1]
                there, back = place.milliseconds(forward), place.milliseconds(both)
        except RuntimeError as error:  # not on this device
            yield key, {"not_there": str(error).splitlines()[0][:200]}
            continue
        yield (
            key,
            {
                "forward_ms": there,
                "both_ms": back,
                "first_ms": first,
                "tflops": 3.5 * flops / back / 1e9,
            },
        )


def floor(
    place: Place, model: str, arm: str, length: int, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """The time a step could take at the ceilings of this machine, in ms; empty without ceilings.

    Products of frozen weights (forward, gradient of the input; with checkpointing forward again)
    and of the head, over the product's ceiling; causal attention, forward and 2.5 times that
    backward, over that of the best kernel; and per layer 22 reads or writes of [tokens, width] and
    8 of [tokens, inner width] in bf16, forward and backward, over the copy's. A model of a
    perfectly fused step, not a promise.
    """
    found = {row["key"].removeprefix("0/ceiling/"): row for row in rows if row.get("ok")}
    speeds = [
        r["tflops"] for key, r in found.items() if key.startswith("sdpa/long") and "tflops" in r
    ]
    if not speeds or not {"matmul", "copy"} <= set(found):
        return {}
    shape = place.shape(model)
    width = shape.get("n_embd") or shape["hidden_size"]
    layers = shape.get("n_layer") or shape["num_hidden_layers"]
    heads = shape.get("n_head") or shape["num_attention_heads"]
    inner = shape.get("intermediate_size", 4 * width)
    kv = shape.get("num_key_value_heads", heads) * width // heads
    linear = (
        2 * width * width
        + 2 * width * kv
        + (3 if "intermediate_size" in shape else 2) * width * inner
    )
    passes = 3 if "+ckpt" in arm else 2
    products = 2 * length * (passes * layers * linear + 2 * width * shape["vocab_size"])
    sparse = arm.startswith(("hyl", "s2")) and place.group < length
    seen = place.group if sparse else length
    scores = layers * 2 * length * seen * width * (3.5 + (passes - 2))
    moved = layers * length * (22 * width + 8 * inner) * 2 * passes / 2
    milliseconds = (
        products / found["matmul"]["tflops"] + scores / max(speeds)
    ) / 1e9 + moved / found["copy"]["tb_per_s"] / 1e9
    return {"floor_ms": milliseconds}
