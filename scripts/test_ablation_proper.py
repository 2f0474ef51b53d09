"""The paper's short-context command, as a call of `hylorada-train`: table 1 on WikiText-2.

    python scripts/test_ablation_proper.py --num_train 500 --epochs 1

Without numbers it is `hylorada-train -m experiment=gpt2_t1_ablation_512`: the whole training split,
three epochs, five seeds. Words with an equals sign go to the runs as they are (`seed=0`,
`model=tiny dataset=stdlib eval=quick`: without a hub). What is run is printed first.
"""

from __future__ import annotations

import sys

from paper_budget import run

if __name__ == "__main__":
    sys.exit(run("gpt2_t1_ablation_512", 512, __doc__))
