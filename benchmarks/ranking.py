"""What ranking candidates costs beside reading the prompt: at most 3 x its forward pass is claimed.

    python benchmarks/ranking.py                                        # 4096 tokens, 75 candidates
    python benchmarks/ranking.py --model gpt2 --lengths 2048,8192 --arms base,hylorada

One row for each length and arm: the median seconds of a forward pass of the prompt (no cache, no
logits but the last), of the same question answered by ranking (prompt with a cache, then every
candidate), and the median ratio of the two, taken in turn. `without sharing` is what reading
prompt and candidate anew for each candidate would cost: candidates x forward pass.

Models have random weights and nothing is downloaded; the time does not depend on the weights. Run
it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 8192, "n_embd": 256, "n_layer": 6, "n_head": 8},
    "gpt2": {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12},
}
TRAINED_LENGTH = 1024
CLAIM = 3.0


def build(model_name: str, arm: str, length: int, device: str) -> Any:
    """A model that reaches the length: extended alone (base), or with every component."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from hylorada.methods import HyloradaConfig, adapt
    from hylorada.methods.position_range import extend_range

    model = GPT2LMHeadModel(
        GPT2Config(n_positions=TRAINED_LENGTH, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0,
                   **MODELS[model_name])
    )  # fmt: skip
    if arm == "base":
        extend_range(model, length)
    else:
        config = HyloradaConfig.for_length(length, trained_length=TRAINED_LENGTH)
        model = adapt(model, config, length, seed=0)
    return model.to(device).eval()


def measure(model: Any, length: int, candidates: int, tokens: int, rounds: int) -> dict[str, float]:
    """Median seconds of both, and the median of their ratio in the same round."""
    import torch

    from hylorada.architecture import anatomy
    from hylorada.architecture.logits import output_head
    from hylorada.evaluation.candidates import Prefix
    from hylorada.evaluation.scoring import evaluation_mode

    rng = random.Random(0)
    prompt = [rng.randrange(1000) for _ in range(length - tokens)]
    choices = [[rng.randrange(1000) for _ in range(tokens)] for _ in range(candidates)]

    def seconds(call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    with evaluation_mode(model) as device:
        ids = torch.tensor([prompt], device=device)

        def forward() -> Any:
            hidden = anatomy.backbone(model)(input_ids=ids, use_cache=False).last_hidden_state
            return output_head(model)(hidden[:, -1])

        def rank() -> Any:
            return Prefix(model, prompt).log_likelihoods(choices)

        forward(), rank()  # what is loaded or compiled at first use
        pairs = [(seconds(forward), seconds(rank)) for _ in range(rounds)]
    return {
        "forward_seconds": statistics.median(a for a, _ in pairs),
        "ranking_seconds": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(b / a for a, b in pairs),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--lengths", default="4096", help="tokens, with commas between")
    parser.add_argument("--arms", default="base,hylorada")
    parser.add_argument("--candidates", type=int, default=75)
    parser.add_argument("--tokens", type=int, default=24, help="of a candidate; a UUID has some 24")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    arguments = parser.parse_args()
    import torch

    torch.manual_seed(0)
    where = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    print(
        f"{arguments.model} on {arguments.device} ({where}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}): {arguments.candidates} candidates of {arguments.tokens} "
        "tokens"
    )
    print(
        f"{'length':>7} {'arm':<10} {'forward, s':>11} {'ranking, s':>11} {'ratio':>6}  claim <= 3"
    )
    rows = []
    for length in map(int, arguments.lengths.split(",")):
        for arm in arguments.arms.split(","):
            model = build(arguments.model, arm, length, arguments.device)
            row = measure(model, length, arguments.candidates, arguments.tokens, arguments.rounds)
            rows.append({"length": length, "arm": arm, **row})
            print(
                f"{length:>7} {arm:<10} {row['forward_seconds']:>11.3f} "
                f"{row['ranking_seconds']:>11.3f} {row['ratio']:>6.2f}  "
                f"at most {CLAIM:g}: {'holds' if row['ratio'] <= CLAIM else 'DOES NOT HOLD'}; "
                f"without sharing {arguments.candidates * row['forward_seconds']:.1f} s",
                flush=True,
            )
    if arguments.out:
        facts = {"torch": torch.__version__, "where": where, **vars(arguments)}
        facts["out"] = str(arguments.out)
        arguments.out.write_text(json.dumps({"settings": facts, "rows": rows}, indent=1) + "\n")
    return int(any(row["ratio"] > CLAIM for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
