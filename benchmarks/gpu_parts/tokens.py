"""Token ids of a folder of texts, as the 16-bit files that stage 3 reads.

python -m gpu_parts.tokens BASE TEXTS OUT      (in benchmarks/; TEXTS has train/ and test/)
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

MOST = {"train": 12_000_000, "test": 600_000}


def main(base: str, texts: str, out: str) -> None:
    """Write OUT/train.u16 and OUT/test.u16 by the tokenizer of BASE (a folder or a GGUF file)."""
    from hylorada.config import ModelConfig
    from hylorada.loading.backbone import open_base

    tokenizer = open_base(ModelConfig("real", base)).tokenizer
    if len(tokenizer) > 2**16:
        sys.exit(f"{base}: {len(tokenizer)} tokens do not fit 16 bits")
    Path(out).mkdir(parents=True, exist_ok=True)
    for split, most in MOST.items():
        parts, count = [], 0
        for path in sorted((Path(texts) / split).glob("*.txt")):
            ids = tokenizer(path.read_text(errors="replace"), verbose=False)["input_ids"]
            parts.append(np.array(ids, dtype=np.uint16))
            count += len(ids)
            if count >= most:
                break
        if not parts:
            sys.exit(f"{texts}/{split}: no .txt file")
        np.concatenate(parts)[:most].tofile(Path(out) / f"{split}.u16")
        print(f"{out}/{split}.u16: {min(count, most):,} tokens of {len(parts)} texts")


if __name__ == "__main__":
    main(*sys.argv[1:])
