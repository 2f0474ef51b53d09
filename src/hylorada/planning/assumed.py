"""What a run would take on a machine that is not here, from operations and an assumption."""

from __future__ import annotations

from hylorada.config import RunConfig
from hylorada.planning.cost import Shape, attention_span
from hylorada.planning.estimate import Rates
from hylorada.planning.shared import bytes_of_others, in_segments
from hylorada.planning.text import Text

# NVIDIA's data sheet of the A100: dense bf16 and fp16, and fp32 outside of tensor cores.
_PEAK = {"bf16": 312e12, "fp16": 312e12, "auto": 312e12, "fp32": 19.5e12}
_UTILISATION = 0.35
# Bytes of activations for each token and number of the hidden state in one layer, in 16 bits
# (Korthikanti et al., arXiv 2205.05198, without the scores, which SDPA does not keep).
_ACTIVATIONS, _KEPT = 34, 2


def assumed(config: RunConfig, shape: Shape, text: Text, trained: dict[str, int]) -> Rates:
    """Rates of a GPU of the A100's kind.

    Args:
        config: the run's settings, checked.
        shape: of its base.
        text: what it reads.
        trained: values that train, by component.
    """
    precision, train = config.train.precision, config.train
    speed = _PEAK[precision] * _UTILISATION
    rates = Rates(
        f"assumed: a GPU of {_PEAK[precision] / 1e12:g} TFLOP/s at {_UTILISATION:.0%}",
        trained=trained,
    )
    length, count = config.length.max_length, sum(trained.values())
    if text.published:
        rates.known_from += f", {config.model.name} and {config.dataset.name} by published sizes"
    rates.start, rates.left_out = text.seconds, list(text.unread)
    for part in text.prepared.parts:
        portion = part.measurement.portion(part.asked, shape.forward)
        if portion is None:
            rates.left_out.append(part.measurement.title)
            continue
        seconds = sum(shape.forward(n) for n in portion.passes) / portion.share / speed
        rates.base += seconds
        if config.method.trains:
            rates.evaluation[part.measurement.title] = seconds
    if config.integrity.enabled:
        rates.gate = 5 * shape.forward(length) / speed
    if not config.method.trains:
        return rates
    if text.validation is not None:
        validation = part_cost(text.validation, shape)
        rates.validation = validation / speed
    sequences = train.micro_batch_size * train.gradient_accumulation_steps
    on = in_segments(config, text.trained_length)
    span = attention_span(config.method.s2_attn, length, on)
    step = shape.step(length, count, train.gradient_checkpointing, span)
    parts = config.sequence_ranks
    rates.step = sequences * step / speed / parts
    bytes_each = 4 if precision == "fp32" else 2
    rates.itemsize = bytes_each
    tokens = train.micro_batch_size * length // parts
    layers = 1 + shape.layers * _KEPT / _ACTIVATIONS
    kept = layers if train.gradient_checkpointing else shape.layers
    activations = kept * _ACTIVATIONS * tokens * shape.width * bytes_each // 2
    activations += bytes_of_others(config, shape, on, bytes_each)
    rates.memory = int(shape.parameters * bytes_each + 16 * count + activations)
    return rates


def part_cost(asked: object, shape: Shape) -> float:
    """Operations of a validation."""
    from hylorada.evaluation.measurements import perplexity

    portion = perplexity.MEASUREMENT.portion(asked, shape.forward)  # type: ignore[arg-type]
    return sum(shape.forward(tokens) for tokens in portion.passes) / portion.share
