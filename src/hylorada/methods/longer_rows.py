"""How a longer table of learned position embeddings starts: `method.position_range.learned_init`.

    interpolate   old and new positions are spread over the same interval, and each new row lies
                  between its two old neighbours:  P'[i] = (1 - t) P[j] + t P[j + 1],
                  j + t = i (n - 1) / (n' - 1). Far is told from near; what a head needs to look one
                  token back is blurred by n' / n.
    tile          the old rows are repeated. Short prompts are exactly as they were, one token back
                  is one token back; positions that are n apart are one and the same.
    by_parts      the table is split by frequency along the positions: what varies over more than
                  `FASTEST_STRETCHED` tokens is interpolated, the rest is repeated. So near
                  positions differ as they did and far ones are still told apart. It is for learned
                  embeddings what YaRN's "NTK-by-parts" is for rotary ones (arXiv:2309.00071, 3.2).
    keep          the trained rows stay where they are, and the new ones are those of "by_parts". So
                  within the trained length nothing changes at all; what varies slowly jumps back
                  where the new rows begin.

Legend: N trained positions, L positions wanted, D width, F frequencies of the slow part.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Periods in tokens. On the model in assets/tiny, untrained, at 4,096 positions, 11 to 32 give
# almost the same perplexity and 8 and 64 a worse one (docs/LOG.md, 2026-11-28).
FASTEST_STRETCHED = 16


def longer_rows(rows_ND: Tensor, length: int, init: str) -> Tensor:
    """The rows of a table of `length` positions.

    Args:
        rows_ND: of the positions the model was trained on.
        length: L, above N.
        init: a choice of `method.position_range.learned_init`.

    Returns:
        [L, D]; float32 but for "tile", whose rows are the old ones.
    """
    if init == "tile":
        return _tiled(rows_ND, length)
    if init in ("by_parts", "keep"):
        slow_ND = _slow_part(rows_ND)
        fast_ND = rows_ND.double() - slow_ND
        rows_LD = (_interpolated(slow_ND, length) + _tiled(fast_ND, length)).float()
        if init == "keep":
            rows_LD[: len(rows_ND)] = rows_ND
        return rows_LD
    return _interpolated(rows_ND.float(), length)  # bf16 could not tell neighbouring rows apart


def _tiled(rows_ND: Tensor, length: int) -> Tensor:
    return rows_ND[torch.arange(length, device=rows_ND.device) % len(rows_ND)]


def _interpolated(rows_ND: Tensor, length: int) -> Tensor:
    trained = len(rows_ND)
    scaled_L = torch.arange(length, device=rows_ND.device) * (trained - 1)  # exact, as integers
    left_L = scaled_L // (length - 1)
    t_L1 = (scaled_L % (length - 1)).to(rows_ND.dtype)[:, None] / (length - 1)
    right_L = (left_L + 1).clamp(max=trained - 1)
    return torch.lerp(rows_ND[left_L], rows_ND[right_L], t_L1)


def _slow_part(rows_ND: Tensor) -> Tensor:
    """The projection onto cosines of a discrete cosine transform (DCT-II), in float64.

    Its functions go on evenly beyond both ends, so a trend along the table belongs to the slow part
    and makes no jump where the fast part is repeated.
    """
    trained = len(rows_ND)
    slow = math.ceil(2 * trained / FASTEST_STRETCHED)  # the f-th cosine has a period of 2 N / f
    at_N1 = torch.arange(trained, dtype=torch.float64, device=rows_ND.device)[:, None] + 0.5
    f_F = torch.arange(slow, dtype=torch.float64, device=rows_ND.device)
    waves_NF = torch.cos(at_N1 * (math.pi / trained) * f_F)
    waves_NF = waves_NF / waves_NF.norm(dim=0)  # they are orthogonal
    return waves_NF @ (waves_NF.T @ rows_ND.double())
