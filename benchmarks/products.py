"""fp32 matrix products of a linear layer on this CPU: torch's own (MKL) beside oneDNN's.

    python benchmarks/products.py            # seconds; adds this processor to results/products.json

What `kernels/linear.py` relies on: that oneDNN is not slower on any processor. The two take turns,
and the shortest of the repeats counts, which other work on the machine hardly lengthens.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from hylorada.kernels.linear import fast_linear, onednn_serves

SHAPES = {
    "tiny, c_attn": (4096, 256, 768),
    "tiny, c_proj of the MLP": (4096, 1024, 256),
    "tiny, head": (256, 256, 8192),
    "GPT-2, c_attn": (1024, 768, 2304),
    "GPT-2, c_proj of the MLP": (1024, 3072, 768),
    "LoRA, A": (4096, 256, 8),
    "LoRA, B backward": (4096, 768, 8),
}
OUT = Path(__file__).parent / "results" / "products.json"


def processor() -> str:
    """Its name, with the numbers that tell one generation from another."""
    fields = dict(
        (part.strip() for part in line.split(":", 1))
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if ":" in line
    )
    return f"{fields['model name']}, family {fields['cpu family']}, model {fields['model']}"


def shortest(functions: list[Callable[[], Any]], repeats: int) -> list[float]:
    """Seconds of each, the shortest of the repeats, in turns."""
    seconds = [float("inf")] * len(functions)
    for _ in range(repeats):
        for i, function in enumerate(functions):
            started = time.perf_counter()
            function()
            seconds[i] = min(seconds[i], time.perf_counter() - started)
    return seconds


def measure(repeats: int) -> dict[str, dict[str, float]]:
    """GFLOP/s of both, by shape, for the forward product and for that with the transposed weight.

    A backward product is a forward one with a transposed view of the weight.
    """
    rows = {}
    for name, (tokens, inputs, outputs) in SHAPES.items():
        x, w = torch.randn(tokens, inputs), torch.randn(outputs, inputs)
        for suffix, weight in (("", w), (", transposed", w.t().contiguous().t())):
            pair = [lambda f=f, x=x, w=weight: f(x, w) for f in (F.linear, fast_linear)]
            work = 2e-9 * tokens * inputs * outputs
            torch_own, onednn = (work / s for s in shortest(pair, repeats))
            rows[name + suffix] = {"torch": round(torch_own, 1), "onednn": round(onednn, 1)}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if not onednn_serves(torch.device("cpu")):
        raise SystemExit("this torch has no oneDNN: there is nothing to compare")
    torch.set_num_threads(args.threads)
    rows = measure(args.repeats)
    results = json.loads(OUT.read_text()) if OUT.exists() else {}
    key = f"{processor()}, {args.threads} thread{'s' * (args.threads > 1)}"
    results[key] = {"torch": torch.__version__, "gflops": rows}
    OUT.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{key}\n\n| | torch | oneDNN | time, oneDNN / torch |\n|---|---:|---:|---:|")
    for name, row in rows.items():
        ratio = row["torch"] / row["onednn"]
        print(f"| {name} | {row['torch']:.0f} | {row['onednn']:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
