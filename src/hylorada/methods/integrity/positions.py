"""Do the components that look positions up get the right ones, and the right entry for them?

The oracle is integer arithmetic on Python's own numbers, independent of `methods.positions`:

    log2:      bit_length(p + 1) - 1        relative:  p * buckets // max_length
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hylorada.methods.integrity.probe import Probe
from hylorada.methods.integrity.report import Check, skipped
from hylorada.methods.landmarks import Landmark
from hylorada.methods.position_bias import PositionBias

_AT_ONCE = 2048  # positions
_SPREAD = 4.0  # of the entries put into a table, so that each gives another output


def positions(probe: Probe, max_length: int, packed: bool) -> Check:
    """Each component sees the positions of its tokens and finds the bucket that arithmetic says."""
    name = "positions"
    parts = _parts(probe)
    if not parts:
        return skipped(name, "no component looks positions up")
    wrong = _wrong_positions(probe, parts, packed)
    if wrong:
        return Check(name, False, None, None, wrong)
    for what, part in parts.items():
        expected = _buckets(probe.adapter, what, max_length)
        found = _LOOKED_UP[type(part)](copy.deepcopy(part).float().cpu(), max_length)
        off = [p for p in range(max_length) if found[p] != expected[p]]
        if off:
            p = off[0]
            detail = (
                f"{what} finds bucket {found[p]} for position {p}, which lies in bucket "
                f"{expected[p]} ({len(off)} of {max_length} positions); its table must follow "
                f"{probe.adapter.bucketing} buckets"
            )
            return Check(name, False, len(off), 0, detail)
    detail = (
        f"{' and '.join(parts)}: the bucket of each of {max_length} positions, and where they are"
    )
    return Check(name, True, 0, 0, detail)


def _parts(probe: Probe) -> dict[str, Any]:
    """The active adapter's components that have a table of positions."""
    tuner, found = getattr(probe.model, "base_model", None), {}
    for what, holder in (("position_bias", "lora_position_bias"), ("landmark", "lora_landmark")):
        modules = getattr(tuner, holder, None)
        active = probe.model.active_adapters[0] if modules is not None else ""
        if modules is not None and active in modules:
            part: Any = modules[active]
            if what == "position_bias" or (part.position_buckets and len(part.L) > 1):
                found[what] = part
    return found


def _buckets(adapter: Any, what: str, max_length: int) -> list[int]:
    """The bucket of every position, by integer arithmetic."""
    count = (
        adapter.position_buckets if what == "position_bias" else adapter.landmark_position_buckets
    )
    if adapter.bucketing == "log2":
        return [min((p + 1).bit_length() - 1, count - 1) for p in range(max_length)]
    return [min(p * count // adapter.max_length, count - 1) for p in range(max_length)]


def _bias_buckets(part: PositionBias, max_length: int) -> list[int]:
    """Which entry of b each position is scaled by: told apart by their values."""
    with torch.no_grad():
        part.b.copy_(torch.linspace(-1, 1, part.b.numel()))
        part.w.zero_()
        table_K = 1 + 0.5 * part.b.tanh()
        return _nearest(table_K, lambda p_1T: part(p_1T)[0], max_length)


def _landmark_buckets(part: Landmark, max_length: int) -> list[int]:
    """Which row of P each position is gated by: with W_g = 0 and L = (e, 0, ...), c tells it."""
    with torch.no_grad():
        entries_K = torch.linspace(-_SPREAD, _SPREAD, part.position_buckets)
        part.P.zero_()
        part.P[:, 0] = entries_K
        part.L.zero_()
        part.L[0] = 1.0
        part.W_g.zero_()
        part.alpha_s.fill_(1.0)
        table_K = part.P.softmax(-1)[:, 0]
        width = part.L.shape[1]
        return _nearest(
            table_K,
            lambda p_1T: part(torch.zeros(1, p_1T.shape[1], width), p_1T)[0][0, :, 0],
            max_length,
        )


_LOOKED_UP: dict[type, Callable[..., list[int]]] = {
    PositionBias: _bias_buckets,
    Landmark: _landmark_buckets,
}


def _nearest(table_K: Tensor, ask: Callable[[Tensor], Tensor], max_length: int) -> list[int]:
    found: list[int] = []
    for start in range(0, max_length, _AT_ONCE):
        values_T = ask(torch.arange(start, min(start + _AT_ONCE, max_length))[None])
        found += (values_T[:, None] - table_K).abs().argmin(1).tolist()
    return found


def _wrong_positions(probe: Probe, parts: dict[str, Any], packed: bool) -> str:
    """Where a component is given other positions than its tokens have; empty if nowhere."""
    n = probe.length
    cases: list[tuple[str, Callable[[], Any], list[int]]] = [
        ("in one pass", lambda: probe.logits(training=True), list(range(n)))
    ]
    if probe.decodes:
        cases.append(("with a cache", lambda: probe.pieces(probe.ids_1T), list(range(n))))
    if packed:
        cut = n // 2 + 1
        ids = [*range(cut), *range(n - cut)]
        positions_1T = torch.tensor([ids], device=probe.device)
        cases.append(("in a packed row", lambda: probe.logits(positions_BT=positions_1T), ids))
    for how, run, expected in cases:
        with _given(parts) as seen:
            run()
        for what, got in seen.items():
            if got != expected:
                at = next((i for i, pair in enumerate(zip(got, expected, strict=False))
                           if pair[0] != pair[1]), min(len(got), n))  # fmt: skip
                value = got[at] if at < len(got) else "none"
                return (
                    f"{what} is given position {value} for the token at {at} {how}; the layers "
                    "must be handed the positions of their own tokens"
                )
    return ""


@contextmanager
def _given(parts: dict[str, nn.Module]) -> Iterator[dict[str, list[int]]]:
    """The positions that each component is given, one piece of the text after the other."""
    seen: dict[str, list[int]] = {what: [] for what in parts}
    last: dict[str, list[int]] = {}

    def note(what: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = next(
            value for value in (*args, *kwargs.values())
            if isinstance(value, Tensor) and not value.is_floating_point()
        )  # fmt: skip
        piece = ids[0].tolist()
        if piece != last.get(what):  # all layers of one pass get the same
            seen[what] += piece
        last[what] = piece

    handles = [
        part.register_forward_pre_hook(
            lambda _, args, kwargs, what=what: note(what, args, kwargs), with_kwargs=True
        )
        for what, part in parts.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
