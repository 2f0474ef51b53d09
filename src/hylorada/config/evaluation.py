"""The settings of what is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hylorada.config.fields import choice, flag, number, part, place, several, text
from hylorada.config.inputs import SPLITS

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of an answer in its context, from the start to the end


@dataclass
class PerplexityConfig:
    """exp(sum NLL / scored tokens), in the named conventions."""

    # docs/METHODOLOGY.md, section 9, explains each. Empty: perplexity is not measured; then
    # something else must be.
    conventions: list[str] = several(
        ["blocks", "sliding"], choices=("blocks", "sliding", "word", "paper")
    )
    split: str = choice("test", among=SPLITS)  # also used by the context gain
    stride: int = number(0, "tokens, for sliding and word", least=1, zero="half a window")
    # A larger split is scored in whole windows spread over it, the same for every method.
    max_tokens: int = number(
        500_000, "tokens per convention, at least a window", least=1, zero="all"
    )
    max_blocks: int = number(0, "windows of length.max_length", least=1, zero="all")
    batch_size: int = number(1, "sequences", least=1, changes="rounding")
    position_buckets: int = number(8, "equal slices of the window", least=1, changes="record")


@dataclass
class ShortContextConfig:
    """Perplexity in a window without extension of the base, wherever `blocks` is measured."""

    max_blocks: int = number(16, "windows, spread over the split", least=1, zero="not measured")


@dataclass
class LostInMiddleConfig:
    """Retrieval accuracy by depth: whether the model finds what lies in the middle of its context.

    Each example is asked at every depth, and every method is asked the same prompts.
    """

    enabled: bool = flag(True)
    # kv: key-value pairs; passkey: a passkey in filler text; nq: questions over several documents.
    form: str = choice("kv", "passkey", "nq")
    # For kv and nq.
    path: str = place("", "file in the published format; empty: generated (kv, passkey)")
    examples: int = number(40, "examples; from a file at most as many as it has", least=1)
    depths: list[float] = several(DEPTHS, unit="depth, 0 to 1", least=0, most=1)
    # For kv with a path, 0 means as many as the file has.
    items: int = number(
        0, "pairs, lines of filler or documents per prompt", least=1, zero="as many as fit"
    )
    # Of generated kv keys; hex (8 digits) is for small models.
    key_style: str = choice("uuid", "hex")
    scorings: list[str] = several(["ranked"], choices=("ranked", "generated"))
    max_new_tokens: int = number(
        0, "tokens per answer", least=1, zero="the longest candidate plus 2; for nq 100"
    )
    seed: int = number(0, "seed of the generated examples and of the distractors", least=0)


@dataclass
class ContextGainConfig:
    """The loss of the same target tokens with increasing context before them."""

    enabled: bool = flag(False)
    # Those that do not fit are replaced by the longest that does.
    contexts: list[int] = several(
        [128, 256, 512, 1024, 2048, 4096, 8192], unit="tokens before the first target", least=1
    )
    targets: int = number(256, "tokens scored at each place", least=1)
    places: int = number(64, "places at most, spread over the split", least=1)


@dataclass
class HarnessConfig:
    """LongBench and RULER by lm-eval (extra `harness`), corrected to their official protocols."""

    enabled: bool = flag(False)
    tasks: list[str] = several(
        ["longbench"],
        "lm-eval's names, such as longbench_trec; or longbench, longbench_e, ruler: all of them",
    )
    limit: int = number(0, "examples per task, the first ones", least=1, zero="all")
    longbench_path: str = place(
        "", "LongBench's data.zip or its folder; takes precedence over the hub"
    )
    longbench_hub_id: str = text("zai-org/LongBench", "hub repository")
    longbench_revision: str = text(
        "5e628be450b7e67fb7ae6e201bd6d8f7056f7672", "commit of that repository"
    )


@dataclass
class EvalConfig:
    """What is measured; the window is the run's max_length for every method."""

    name: str = text("default", "name of the preset, in records", changes="nothing")
    perplexity: PerplexityConfig = part(PerplexityConfig)
    short_context: ShortContextConfig = part(ShortContextConfig, changes="beside")
    lost_in_middle: LostInMiddleConfig = part(LostInMiddleConfig, changes="question")
    context_gain: ContextGainConfig = part(ContextGainConfig, changes="question")
    harness: HarnessConfig = part(HarnessConfig, changes="question")
    # For measurements of your own (docs/EXTENDING.md); {} stands for all defaults of one.
    measurements: dict[str, Any] = several(
        {}, "name of a measurement -> its settings", changes="question", open=True
    )
