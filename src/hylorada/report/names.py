"""Names of metrics in records, and what they stand for."""

from __future__ import annotations

METRICS = {"blocks": "eval/ppl", "sliding": "eval/ppl_sliding"}
"""Convention -> perplexity; arms are compared in these two alone."""

OTHERS = {"word": "eval/ppl_word", "paper": "eval/ppl_paper"}
"""Convention -> perplexity by another divisor than tokens; no change is computed from it."""

SCORINGS = {"": "ranked", "_generated": "generated"}
"""What follows the names of retrieval metrics -> the scoring."""

GAIN = "context_gain/gain"
