"""The settings of what a run works on: its length, base model and data set."""

from __future__ import annotations

from dataclasses import dataclass

from hylorada.config.fields import choice, label, number, place, several, text

EMBEDDED = "embedded"
"""``model.path`` of the model that the package ships."""
SPLITS = ("train", "validation", "test")


@dataclass
class LengthConfig:
    """A context length and a batch size that suits it.

    The batch size takes effect only through train.micro_batch_size and
    train.gradient_accumulation_steps, which refer to it by default.
    """

    name: str = label("4k", "name in directories and tables")
    max_length: int = number(
        4096, "tokens per training sequence and per window", least=2, most=2**31 - 1
    )
    micro_batch_size: int = number(1, "sequences per forward pass", least=1, changes="nothing")
    gradient_accumulation_steps: int = number(
        1, "forward passes per optimizer step", least=1, changes="nothing"
    )


@dataclass
class ModelConfig:
    """The frozen base model."""

    name: str = place("tiny", "label in tables; for model=custom its path", hub=True)
    path: str = place(
        EMBEDDED, "embedded, fetched:NAME, a hub id, a local folder or a GGUF file", hub=True
    )
    revision: str = text("", "revision on the hub; empty: main")
    # For layers without S2. The names are transformers' own; kernel repositories on the hub, which
    # transformers also accepts, are refused, because their code would be executed.
    attn_implementation: str = choice(
        "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"
    )
    # Of the frozen weights: auto (that of the files on a GPU with bf16 arithmetic, otherwise
    # float32), float32, or file (bfloat16 is kept; float16 becomes float32).
    dtype: str = choice("auto", "float32", "file")
    # Of the linear layers below the output head: 4-bit NormalFloat, GPU only (extra `quantized`).
    quantization: str = choice("none", "nf4")
    trained_length: int = number(
        0, "tokens: the length that the base was trained on", least=1, zero="as its config says"
    )


@dataclass
class DatasetConfig:
    """Where the text comes from and how it becomes blocks of tokens."""

    name: str = text("stdlib", "label in tables")
    kind: str = text(
        "stdlib", "its reader: a module of data/kinds or of another package (docs/EXTENDING.md)"
    )
    hub_id: str = text("", "hub repository; empty: not from the hub")
    hub_config: str = text("", "configuration name in that repository")
    revision: str = text("", "commit of that repository")
    # Takes precedence over the hub.
    path: str = place("", "file or folder in the same layout; empty: none", remeasured=True)
    text_column: str = text("text", "column that holds the text")
    tasks: list[str] = several([], "for kinds with tasks, such as longbench; empty: all present")
    # documents: a block never crosses a document boundary; reset: it may, and attention and
    # positions restart at each document.
    packing: str = choice("documents", "reset")
    max_documents: int = number(0, "documents per split", least=1, zero="all")
    cache_dir: str = place(
        "", "folder for tokenised text; empty: <user cache>/hylorada", changes="nothing",
        remeasured=True,
    )  # fmt: skip
