"""The settings of what is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hylorada.config.fields import choice, flag, number, part, place, several, text
from hylorada.config.inputs import SPLITS

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of an answer in its context, from the start to the end


@dataclass
class PerplexityConfig:
    """exp(sum NLL / scored tokens), by named conventions."""

    # word: per word, of a whole split; paper: the mean over WikiText's paragraphs.
    # Empty: perplexity is not measured; something else then is.
    conventions: list[str] = several(
        ["blocks", "sliding"], choices=("blocks", "sliding", "word", "paper")
    )
    split: str = choice("test", among=SPLITS)  # also of the context gain
    stride: int = number(0, "tokens, of sliding and word", least=1, zero="half a window")
    # What of a larger split is scored, in whole windows spread over it, the same for every arm:
    max_tokens: int = number(500_000, "tokens of a convention, or a window", least=1, zero="all")
    max_blocks: int = number(0, "windows of length.max_length", least=1, zero="all")
    batch_size: int = number(1, "sequences", least=1, changes="rounding")
    position_buckets: int = number(8, "equal slices of the window", least=1, changes="record")


@dataclass
class ShortContextConfig:
    """Perplexity in a window in which the base needs no extension, where `blocks` is measured."""

    max_blocks: int = number(16, "windows, spread over the split", least=1, zero="not measured")


@dataclass
class LostInMiddleConfig:
    """Whether the model finds what lies in the middle of its context: accuracy by depth.

    Each example is asked at every depth, and every arm is asked the same prompts.
    """

    enabled: bool = flag(True)
    # Key-value pairs, a passkey in filler, questions over documents:
    form: str = choice("kv", "passkey", "nq")
    # Of kv and nq:
    path: str = place("", "file in the published form; empty: generated (kv, passkey)")
    examples: int = number(40, "examples; of a file at most as many as it has", least=1)
    depths: list[float] = several(DEPTHS, unit="depth, 0 to 1", least=0, most=1)
    # Of kv with a path, 0 is as many as the file has.
    items: int = number(
        0, "pairs, lines of filler or documents in a prompt", least=1, zero="as many as fit"
    )
    # Of generated kv; hex, 8 digits, is for small models:
    key_style: str = choice("uuid", "hex")
    scorings: list[str] = several(["ranked"], choices=("ranked", "generated"))
    max_new_tokens: int = number(
        0, "tokens of an answer", least=1, zero="the longest candidate and 2, of nq 100"
    )
    seed: int = number(0, "seed of the generated examples and of the distractors", least=0)


@dataclass
class ContextGainConfig:
    """The loss of the same target tokens with more and more context before them."""

    enabled: bool = flag(False)
    # In place of those that do not fit, the most that fit:
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
        "lm-eval's names, as longbench_trec; or longbench, longbench_e, ruler: all of a kind",
    )
    limit: int = number(0, "examples of a task, the first ones", least=1, zero="all")
    longbench_path: str = place("", "LongBench's data.zip or a folder with it; wins over the hub")
    longbench_hub_id: str = text("zai-org/LongBench", "hub repository")
    longbench_revision: str = text("5e628be450b7e67fb7ae6e201bd6d8f7056f7672", "commit of it")


@dataclass
class EvalConfig:
    """What is measured. The window is the run's max_length for every arm."""

    name: str = text("default", "the preset, in records", changes="nothing")
    perplexity: PerplexityConfig = part(PerplexityConfig)
    short_context: ShortContextConfig = part(ShortContextConfig, changes="beside")
    lost_in_middle: LostInMiddleConfig = part(LostInMiddleConfig, changes="question")
    context_gain: ContextGainConfig = part(ContextGainConfig, changes="question")
    harness: HarnessConfig = part(HarnessConfig, changes="question")
    # Of measurements that were added (docs/EXTENDING.md); {} is all defaults of one.
    measurements: dict[str, Any] = several(
        {}, "name of a measurement -> its settings", changes="question", open=True
    )
