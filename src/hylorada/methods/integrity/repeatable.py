"""Does the same text give the same logits: whatever was drawn, and whatever was asked before?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from hylorada.methods.integrity.causal import EVERYTHING
from hylorada.methods.integrity.first_difference import culprit
from hylorada.methods.integrity.probe import Probe
from hylorada.methods.integrity.report import Check

# On a GPU some kernels add in an order of their own; relative to the spread of the logits.
UNSTEADY = 1e-4


def evaluation_mode(probe: Probe) -> Check:
    """In evaluation mode nothing is drawn at random: no dropout is left on."""
    name = "evaluation_mode"
    first_TV = probe.logits()
    change = _change(first_TV, probe.logits(draw=1))
    limit = _allowed(first_TV, probe.logits) if change else 0.0
    if change <= limit:
        detail = "logits do not depend on a random draw in evaluation mode"
        return Check(name, True, change, limit, detail)
    part = culprit(
        probe.model, probe.logits, partial(probe.logits, draw=1), (1, probe.length),
        (EVERYTHING, EVERYTHING),
    )  # fmt: skip
    detail = (
        f"{part} draws at random in evaluation mode (logits move by {change:.3g}): dropout is left "
        "on; set its rate to 0, or let it follow model.eval()"
    )
    return Check(name, False, change, limit, detail)


def requests(probe: Probe) -> Check:
    """No state survives into the next request: the same text again, after another, is the same.

    In one pass in both modes, and decoded piece by piece, each time with a cache of its own.
    """
    name = "requests"
    other_1T = probe.another_text()
    asked: dict[str, Callable[[Tensor], Tensor]] = {
        "in training mode": lambda ids_1T: probe.logits(ids_1T, training=True),
        "in evaluation mode": probe.logits,
    }
    if probe.decodes:
        asked["decoding with a cache"] = partial(probe.pieces, pieces=2)
    largest = 0.0
    for how, ask in asked.items():
        with probe.s2_groups(probe.group_size):
            first_TV = ask(probe.ids_1T)
            ask(other_1T)
            change = _change(first_TV, ask(probe.ids_1T))
            if change and change > _allowed(first_TV, partial(ask, probe.ids_1T)):
                same = partial(ask, probe.ids_1T)
                part = culprit(
                    probe.model, same, same, (1, probe.length), (EVERYTHING, EVERYTHING),
                    between=partial(ask, other_1T),
                )  # fmt: skip
                detail = (
                    f"{part} keeps something of one request for the next: the same text gives "
                    f"logits that differ by {change:.3g} after another text, {how}; its state must "
                    "live in the cache of a request"
                )
                return Check(name, False, change, 0.0, detail)
        largest = max(largest, change)
    detail = "the same text gives the same logits before and after another"
    return Check(name, True, largest, 0.0, detail)


def _change(a_TV: Tensor, b_TV: Tensor) -> float:
    return float((a_TV - b_TV).abs().max())


def _allowed(first_TV: Tensor, ask: Callable[[], Tensor]) -> float:
    """How much the same computation may differ from itself: not at all on a CPU."""
    if first_TV.device.type == "cpu":
        return 0.0
    again_TV = ask()
    chance = max(_change(again_TV, ask()) for _ in range(2))
    return 10 * chance if chance <= UNSTEADY * float(first_TV.std()) else 0.0
