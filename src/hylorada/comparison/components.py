"""Which arms differ by one component alone, so that what it adds can be told from all else."""

from __future__ import annotations

from dataclasses import dataclass

from hylorada.comparison.arms import Arm, Comparison, differing_settings
from hylorada.records.component_names import component_words

# Switch among the settings of a method -> what it switches on; trained groups by their own names.
_SWITCHES = {
    "position_bias.enabled": "position_bias",
    "landmark.enabled": "landmark",
    "s2_attn.enabled": "s2_attn",
    "train_embeddings": "position_embeddings",
    "train_norms": "norms",
}
_WORDS = {"s2_attn": "shifted attention"}


@dataclass(frozen=True)
class Pair:
    """Two arms of one comparison, equal but for one component.

    Attributes:
        component: its name.
        with_it: the arm that has it.
        without: the arm that has it not.
    """

    component: str
    with_it: Arm
    without: Arm

    @property
    def words(self) -> str:
        """The component, for people."""
        return _WORDS.get(self.component) or component_words(self.component)


def component_pairs(comparison: Comparison) -> dict[str, list[Pair]]:
    """Component -> the pairs of finished arms that differ by it alone, in the order of arms."""
    finished = [arm for arm in comparison.arms if arm.ok and arm.method != "baseline"]
    pairs: dict[str, list[Pair]] = {name: [] for name in _SWITCHES.values()}
    for without in finished:
        for with_it in finished:
            keys = differing_settings(with_it, without)
            name = _SWITCHES.get(keys[0]) if len(keys) == 1 else None
            if name and _has(with_it, name) and not _has(without, name):
                pairs[name].append(Pair(name, with_it, without))
    return {name: found for name, found in pairs.items() if found}


def _has(arm: Arm, component: str) -> bool:
    """Whether it was really on: `auto` follows the length."""
    run = arm.ok[0]
    if component in (run.part("parameters").get("by_group") or {}):
        return bool(run.part("parameters")["by_group"][component])
    if component != "s2_attn":
        return False
    check = (run.part("integrity").get("checks") or {}).get("s2_layers")
    if check is not None:
        return not check.get("skipped")
    switch = (run.part("config").get("method") or {}).get("s2_attn") or {}
    return switch.get("enabled") == "true"
