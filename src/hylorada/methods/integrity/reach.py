"""Does shifted sparse attention run, and does the model reach the positions it is meant for?"""

from __future__ import annotations

from hylorada.architecture import anatomy
from hylorada.methods.integrity.acting import VISIBLE
from hylorada.methods.integrity.probe import Probe
from hylorada.methods.integrity.report import Check, skipped
from hylorada.methods.positions import buckets_reached
from hylorada.methods.s2_attention import s2_heads
from hylorada.methods.s2_limits import full_layers


def s2_layers(probe: Probe) -> Check:
    """The layers and heads that are to run in segments do, and it changes what a step computes."""
    name = "s2_layers"
    wanted = getattr(probe.adapter, "s2_attn_enabled", False) or bool(probe.s2_configs)
    if not wanted:
        return skipped(name, "shifted sparse attention is off")
    layers = len(anatomy.attention_modules(probe.lm))
    fully = len(full_layers(layers, getattr(probe.adapter, "s2_full_layers", 0.0)))
    taken = s2_heads(probe.model)
    count = len(taken)
    fix = "call enable_s2, or set method.s2_attn.enabled=false"
    if count != layers - fully:
        wanted = f"{count} of {layers}" + (f", not {layers - fully}," if fully else "")
        detail = f"{wanted} attention layers take shifted sparse attention; {fix}"
        return Check(name, False, count, layers - fully, detail)
    apart = bool(getattr(probe.adapter, "s2_full_heads", 0.0))
    wrong = [index for index, (some, heads) in taken.items() if (some < heads) != apart]
    if wrong:
        some, heads = taken[wrong[0]]
        asked = "fewer of them" if apart else "all of them"
        detail = f"in layer {wrong[0]} {some} of {heads} heads run in segments, not {asked}; {fix}"
        return Check(name, False, count, layers, detail)
    with probe.s2_groups(probe.length):
        full = probe.logits(training=True)
    with probe.s2_groups(probe.group_size):
        segmented = probe.logits(training=True)
        with probe.s2_settings("s2_full_heads", 0):
            without = probe.logits(training=True) if apart else full
    for other, what in ((full, "full attention"), (without, "the same without full heads")):
        change = ((segmented - other).abs().max() / full.std()).item()
        if not change > VISIBLE:
            detail = f"shifted sparse attention computes what {what} does; {fix}"
            return Check(name, False, change, VISIBLE, detail)
    rest = f", {fully} attend fully" if fully else ""
    if apart:
        some, heads = next(iter(taken.values()))
        rest = f", in {some} of {heads} heads"
    detail = f"{count} of {layers} attention layers take it{rest}"
    return Check(name, True, count, layers - fully, detail)


def position_range(probe: Probe, max_length: int) -> Check:
    """Learned position embeddings have a row for every position."""
    name = "position_range"
    found = anatomy.position_embedding(probe.lm)
    if found is None:
        form = anatomy.position_form(probe.lm)
        if form is anatomy.PositionForm.UNKNOWN:
            detail = (
                f"{type(probe.lm).__name__} has no position embeddings that fit its config; call "
                "extend_range, or use an architecture whose positions can be found"
            )
            return Check(name, False, None, max_length, detail)
        return skipped(name, f"the model has {form.value}")
    path, embedding, offset = found
    reach = min(embedding.num_embeddings, embedding.weight.shape[0]) - offset
    detail = f"{path.removesuffix('.original_module')} has rows for {reach} positions"
    if reach < max_length:
        detail += f", max_length is {max_length}; call extend_range first"
    return Check(name, reach >= max_length, reach, max_length, detail)


def position_buckets(probe: Probe, max_length: int) -> dict[str, dict[str, int]]:
    """How many buckets of each table a text of max_length tokens reaches."""
    adapter, found = probe.adapter, {}
    tables = {
        "position_bias": ("position_bias_enabled", "position_buckets"),
        "landmark": ("landmark_enabled", "landmark_position_buckets"),
    }
    for component, (switch, size) in tables.items():
        buckets = getattr(adapter, size, 0)
        if getattr(adapter, switch, False) and buckets:
            reached = buckets_reached(max_length, buckets, adapter.bucketing)
            found[component] = {"reached": reached, "of": buckets}
    return found
