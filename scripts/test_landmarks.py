"""The paper's command for landmark architectures, as a call of `hylorada-train`: table 8.

    python scripts/test_landmarks.py --epochs 1 --num_train 500

HyLoRADA at 2,048 tokens, where landmarks are on: without them, with causal ones, and with the
published ones, which read the future. Without numbers: the whole training split of WikiText-103,
three epochs, three seeds. Words with an equals sign go to the runs as they are. What is run is
printed first.
"""

from __future__ import annotations

import sys

from paper_budget import run

if __name__ == "__main__":
    sys.exit(run("gpt2_t8_controls_2k", 2048, __doc__))
