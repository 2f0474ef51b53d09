"""Names of metrics in records and trackers, and what they stand for."""

from __future__ import annotations

COMPARED = {"blocks": "eval/ppl", "sliding": "eval/ppl_sliding"}
"""Convention -> perplexity; arms are compared in these two alone."""

OTHERS = {"word": "eval/ppl_word", "paper": "eval/ppl_paper"}
"""Convention -> perplexity by another divisor than tokens; no change is computed from it."""

PERPLEXITIES = COMPARED | OTHERS

SUFFIXES = {"ranked": "", "generated": "_generated"}
"""Scoring -> what follows the names of retrieval metrics."""

SCORINGS = {suffix: scoring for scoring, suffix in SUFFIXES.items()}

GAIN = "context_gain/gain"
