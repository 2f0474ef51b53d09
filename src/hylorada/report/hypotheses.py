"""What the paper expects or reports, beside what was measured; its figures are no results of ours.

The paper measured GPT-2 (124M) on WikiText-2 at 512 tokens, single runs by its own convention; what
it says of longer windows it calls expected. Both are hypotheses here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hylorada.comparison.arms import Arm, Comparison
from hylorada.comparison.cells import NOT_MEASURED
from hylorada.comparison.changes import change_words, component_change, ppl_change
from hylorada.comparison.components import component_pairs
from hylorada.statistics.paired import Change, paired_change

TITLE = "What the paper expects"
LEAD = (
    "Hypotheses of the paper (sections 4.1 and 4.2), not results: at 512 tokens its single "
    "runs of GPT-2 on WikiText-2, at longer lengths its expectations. The last column is what "
    "these records measured, with this model on this text."
)
HEADINGS = ("claim", "the paper's figure (hypothesis)", "measured here")

_REPORTED, _EXPECTED = "reported, 4.1", "expected, 4.2"


@dataclass(frozen=True)
class Hypothesis:
    """One claim of the paper.

    Attributes:
        length: of the window, tokens.
        about: "hylorada" against LoRA, "lora" against the base, a component, or "memory".
        claim: in words.
        figure: what the paper says, and where.
    """

    length: int
    about: str
    claim: str
    figure: str


HYPOTHESES = (
    Hypothesis(
        512, "lora", "LoRA against the base", f"16.81 % better, 69.00 to 57.40 ({_REPORTED})"
    ),
    Hypothesis(512, "hylorada", "HyLoRADA against LoRA", f"matches ({_REPORTED})"),
    Hypothesis(512, "position_bias", "position bias added", f"3.5 % worse ({_REPORTED})"),
    Hypothesis(512, "landmark", "landmarks added", f"5.2 % worse ({_REPORTED})"),
    Hypothesis(2048, "position_bias", "position bias added", f"2 to 4 % better ({_EXPECTED})"),
    Hypothesis(4096, "hylorada", "HyLoRADA against LoRA", f"10 to 15 % better ({_EXPECTED})"),
    Hypothesis(4096, "position_bias", "position bias added", f"5 to 10 % better ({_EXPECTED})"),
    Hypothesis(4096, "landmark", "landmarks added", f"3 to 5 % better ({_EXPECTED})"),
    Hypothesis(4096, "memory", "shifted attention, memory", f"16 times less ({_EXPECTED})"),
    Hypothesis(8192, "hylorada", "HyLoRADA against LoRA", f"25 to 30 % better ({_EXPECTED})"),
    Hypothesis(8192, "memory", "shifted attention, memory", f"64 times less ({_EXPECTED})"),
)


@dataclass(frozen=True)
class Held:
    """A hypothesis beside what was measured."""

    hypothesis: Hypothesis
    where: str
    measured: str

    @property
    def cells(self) -> tuple[str, str, str]:
        """As `HEADINGS` names them."""
        return f"{self.hypothesis.claim}, {self.where}", self.hypothesis.figure, self.measured

    def tree(self) -> dict[str, Any]:
        """For programs."""
        return {
            "length": self.hypothesis.length, "claim": self.hypothesis.claim,
            "paper": self.hypothesis.figure, "measured": self.measured, "where": self.where,
        }  # fmt: skip


def held_against(comparisons: Sequence[Comparison]) -> list[Held]:
    """Each hypothesis about a length that was run, with what the records say.

    What was measured under some settings of that length is not said to be missing under the others.
    """
    found = []
    for hypothesis in HYPOTHESES:
        here = [
            Held(hypothesis, each.heading, _measured(hypothesis.about, each))
            for each in comparisons
            if each.length == hypothesis.length
        ]
        measured = [held for held in here if held.measured != NOT_MEASURED]
        if here and not measured:
            measured = [Held(hypothesis, f"length {hypothesis.length:,}", NOT_MEASURED)]
        found += measured
    return found


def _measured(about: str, comparison: Comparison) -> str:
    lora, hylorada = comparison.reference("lora"), comparison.reference("hylorada")
    if about == "lora":
        return NOT_MEASURED if lora is None else _against_base(lora)
    if about == "hylorada":
        return NOT_MEASURED if lora is None or hylorada is None else _words(hylorada, lora)
    if about == "memory":
        pairs = component_pairs(comparison).get("s2_attn", [])
        return "; ".join(filter(None, (_memory(p.with_it, p.without) for p in pairs))) or (
            NOT_MEASURED
        )
    found = [
        (pair.without.label, component_change([pair]))
        for pair in component_pairs(comparison).get(about, [])
    ]
    return (
        "; ".join(
            f"added to {label}: {change_words(change)}"
            for label, change in found
            if isinstance(change, Change)
        )
        or NOT_MEASURED
    )


def _words(arm: Arm, against: Arm) -> str:
    change = ppl_change(arm, against)
    return change if isinstance(change, str) else change_words(change)


def _against_base(arm: Arm) -> str:
    name = "eval/ppl" if arm.metrics("eval/ppl") else "eval/ppl_sliding"
    change = paired_change(arm.metrics(name), arm.base_metrics("extended", name))
    return change if isinstance(change, str) else change_words(change)


def _memory(with_it: Arm, without: Arm) -> str:
    """The ratio of peaks; on a CPU they are those of the whole process."""
    low, high = (
        max((run.part("training").get("peak_memory_bytes") or 0 for run in arm.ok), default=0)
        for arm in (with_it, without)
    )
    if not low or not high:
        return ""
    ratio, words = (high / low, "less") if high >= low else (low / high, "more")
    return f"{ratio:.2f} times {words} than {without.label}, peak in training"
