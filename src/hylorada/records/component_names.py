"""What can train in a model: the components by the names of records, and in words."""

from __future__ import annotations

COMPONENTS = {
    "lora": "LoRA",
    "position_bias": "position bias",
    "landmark": "landmarks",
    "position_embeddings": "position embeddings",
    "norms": "norms",
    "token_embeddings": "token embeddings",
    "other": "other",
}
"""Name in ``parameters.by_group`` -> in words, in the order in which they are shown.

`methods.parameter_groups` sorts the parameters of a model into them; tables and cards call them so.
"""


def component_words(name: str) -> str:
    """A component in words; one that is not known by the name that its record gives it."""
    return COMPONENTS.get(name, name)
