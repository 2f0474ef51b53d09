"""Evaluation must not cost more memory than the forward pass it is made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import sys
import numpy as np, torch
from transformers import AutoModelForCausalLM, GPT2Config
from hylorada.architecture import anatomy
from hylorada.config import PerplexityConfig
from hylorada.evaluation.perplexity import evaluate_perplexity
from hylorada.evaluation.scoring import evaluation_mode
from hylorada.records.provenance import PeakMemory

torch.set_num_threads(2)
what, length = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(
    GPT2Config(vocab_size=8192, n_positions=length, n_embd=256, n_layer=6, n_head=8)
)

class Document:
    name, words, bytes = "d", 1, 1
    def __init__(self, n):
        self.tokens = np.random.default_rng(0).integers(0, 8192, n).astype(np.uint16)

def evaluate(n, buckets=8):
    settings = PerplexityConfig(conventions=["blocks"], position_buckets=buckets)
    evaluate_perplexity(model, [Document(n + 1)], settings, n)

def forward(n):
    with evaluation_mode(model):
        ids = torch.from_numpy(Document(n).tokens.astype(np.int64))[None]
        anatomy.backbone(model)(input_ids=ids, use_cache=False)

def logits(n):
    with evaluation_mode(model):
        ids = torch.from_numpy(Document(n).tokens.astype(np.int64))[None]
        model(input_ids=ids, labels=ids, use_cache=False)

run = {"evaluate": evaluate, "forward": forward, "logits": logits}[what]
run(64)  # libraries and thread pools are loaded
# Not ru_maxrss: a process begins with that of its parent, which may have held more.
memory = PeakMemory(torch.device("cpu"))
memory.start()
before = memory.peak()
run(length)
print((memory.peak() - before) / 2**20)
"""


def peak_mib(what: str, length: int) -> float:
    """Peak resident memory above the loaded model, MiB, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, what, str(length)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="high-water mark of Linux")
def test_8k_needs_at_most_1_3_times_the_forward_pass_without_logits():
    forward, evaluate = peak_mib("forward", 8192), peak_mib("evaluate", 8192)
    assert evaluate <= 1.3 * forward, (evaluate, forward)
    # The instrument sees logits where they exist: 8192 x 8192 x 4 bytes = 256 MiB, and more.
    assert peak_mib("logits", 8192) > evaluate + 256
