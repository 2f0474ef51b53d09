"""What every family makes of every method, as a row of docs/FAMILIES.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from helpers.architectures import TRAINED, make_zoo_model
from helpers.journey import METHODS, outcome
from hylorada.architecture import anatomy
from hylorada.errors import ConfigError
from hylorada.methods.position_range import extend_range

PAGE = Path(__file__).resolve().parents[2] / "docs" / "FAMILIES.md"
TITLES = ("family", "positions", "at twice the length", "LoRA", "LongLoRA", "HyLoRADA")

# The families of the page; the others of `architectures` are variations of these.
ROWS = (
    "gpt2", "opt", "gpt_neo", "gpt_bigcode", "biogpt", "openai-gpt", "bert, decoder", "llama",
    "mistral", "mistral, window", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_next", "gemma",
    "gemma2", "gemma3_text", "gemma3", "phi", "phi3", "phimoe", "gpt_neox", "falcon",
    "falcon, alibi", "olmo", "olmo2", "olmo3", "deepseek_v3", "granite", "cohere", "cohere2",
    "smollm3", "starcoder2", "stablelm", "glm4", "exaone4, window", "gpt_oss", "llama4_text",
    "modernbert-decoder", "gptj", "codegen", "xglm", "bloom", "bloom, silent", "mpt", "mamba",
    "rwkv", "jamba", "lfm2", "nanochat", "xlnet",
)  # fmt: skip

# The word of the page, and what the refusal says.
REASONS = {
    "window": r"limits attention to (a window|chunks)|a sliding window",
    "interface": r"goes through transformers' AttentionInterface",
    "norms": r"norms of \w+ have no parameters",
    "head": r"output head of \w+ is not its backbone's hidden states",
    "not found": r"no position embeddings that fit|keeps its positions was not found",
    "table": r"so its \d+ positions cannot be extended",
    "silent": r"does not say how long the texts of its training were",
    "scaled": r"comes scaled already",
    "rotary module": r"needs other settings than a factor",
}
_FORMS = {
    "LEARNED": "learned", "ROTARY": "rotary", "ROTARY_TABLE": "rotary, fixed",
    "SINUSOIDAL": "sinusoidal", "DISTANCES": "ALiBi", "STATE": "none", "UNKNOWN": "not found",
}  # fmt: skip
_SHORT = {
    "s2_attn": "S²", "position_bias": "bias", "landmark": "landmarks", "train_norms": "norms",
}  # fmt: skip


def row(family: str) -> list[str]:
    """The cells of a family, from running it."""
    results = {
        (method, times): outcome(make_zoo_model(family), method, TRAINED * times)
        for method in METHODS
        for times in (1, 2)
    }
    for times in (1, 2):  # the base is refused for what refuses LoRA, and for nothing else
        base, lora = results["baseline", times][0], results["lora", times][0]
        assert _word(base) == _word(lora), (family, base, lora)
    model = make_zoo_model(family)
    cells = [family, _FORMS[anatomy.position_form(model).name], _at_twice(model)]
    for method in METHODS[1:]:
        (short, left_out), (long, _) = results[method, 1], results[method, 2]
        if _word(short):
            cells.append(f"no: {_word(short)}")
            continue
        cell = f"to the trained length ({_word(long)})" if _word(long) else "yes"
        if method == "hylorada" and (parts := [_SHORT[n] for n in _SHORT if n in left_out]):
            cell += f", without {', '.join(parts)}"
        cells.append(cell)
    return cells


def _word(text: str) -> str:
    """The reason of a refusal; empty if there was none."""
    if text == "passes":
        return ""
    assert "\n" not in text, text
    words = [word for word, pattern in REASONS.items() if re.search(pattern, text)]
    assert words, f"no known reason: {text}"
    return words[0]


def _at_twice(model: Any) -> str:
    try:
        report = extend_range(model, 2 * TRAINED)
    except ConfigError as error:
        return f"no: {_word(str(error))}"
    return {"learned": "more rows", "rope": "rescaled"}.get(report.kind, "as it is")


def rows_of_page() -> dict[str, list[str]]:
    """The table of docs/FAMILIES.md, by family."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {line[0]: line for line in cells if line[0] not in (TITLES[0], "---")}


def rendered(rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [TITLES, ["---"] * len(TITLES), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
