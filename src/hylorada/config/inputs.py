"""The settings of what a run works on: its length, base model and data set."""

from __future__ import annotations

from dataclasses import dataclass

from hylorada.config.fields import choice, label, number, place, several, text

EMBEDDED = "embedded"
"""``model.path`` of the model that the package ships."""
SPLITS = ("train", "validation", "test")


@dataclass
class LengthConfig:
    """A context length and the batch that suits it.

    The batch counts where train.micro_batch_size and so on refer to it; they alone change runs.
    """

    name: str = label("4k", "in directory names and tables")
    max_length: int = number(
        4096, "tokens of a training sequence and of the window", least=2, most=2**31 - 1
    )
    micro_batch_size: int = number(1, "sequences of a forward pass", least=1, changes="nothing")
    gradient_accumulation_steps: int = number(
        1, "forward passes of an optimizer step", least=1, changes="nothing"
    )


@dataclass
class ModelConfig:
    """The frozen base model."""

    name: str = place("tiny", "label in tables; that of model=custom is its path", hub=True)
    path: str = place(
        EMBEDDED, "embedded, fetched:NAME, a hub id, a local folder or a GGUF file", hub=True
    )
    revision: str = text("", "of the hub; empty: main")
    # Of the layers that S2 does not take. The names are transformers' own; a repository of kernels,
    # which it takes as well, is refused: its code would run here.
    attn_implementation: str = choice(
        "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"
    )
    # Of the frozen weights: auto (the files' own on a GPU that runs bf16, float32 otherwise),
    # float32, or file (bfloat16 as it lies there; float16 becomes float32, in which runs compute).
    dtype: str = choice("auto", "float32", "file")
    # Of the linear layers below the output head: 4-bit NormalFloat, for a GPU (extra `quantized`).
    quantization: str = choice("none", "nf4")
    trained_length: int = number(
        0,
        "tokens of a text it was trained on, as it lies there",
        least=1,
        zero="as its config says",
    )


@dataclass
class DatasetConfig:
    """Where the text comes from and how it becomes blocks of tokens."""

    name: str = text("stdlib", "label in tables")
    kind: str = text(
        "stdlib", "how it is read: a file of data/kinds, or of a package (docs/EXTENDING.md)"
    )
    hub_id: str = text("", "hub repository; empty: not from the hub")
    hub_config: str = text("", "configuration name in that repository")
    revision: str = text("", "commit of that repository")
    # A file or folder in the same layout:
    path: str = place("", "wins over the hub; empty: none", remeasured=True)
    text_column: str = text("text", "column that holds the text")
    tasks: list[str] = several([], "of a kind that has tasks, as longbench; empty: all present")
    # A block never crosses a document, or may, with attention and positions reset at each start:
    packing: str = choice("documents", "reset")
    max_documents: int = number(0, "documents of a split", least=1, zero="all")
    cache_dir: str = place(
        "", "tokenised blocks; empty: <user cache>/hylorada", changes="nothing", remeasured=True
    )
