"""Does the tokenizer begin a text as it should?"""

from __future__ import annotations

from typing import Any

from hylorada.methods.integrity.probe import Probe
from hylorada.methods.integrity.report import Check, skipped

_TEXT = "the"


def tokenizer(probe: Probe, tokenizer_or_vocab_size: Any) -> Check:
    """No special token stands twice before, or after, a text.

    Documents and prompts are encoded as the tokenizer does by default. A tokenizer that adds its
    first token by its own setting and once more by its post-processor starts every one with two,
    which no model was trained on.
    """
    name = "tokenizer"
    if not callable(tokenizer_or_vocab_size):
        return skipped(name, "no tokenizer was given")
    ids = list(tokenizer_or_vocab_size(_TEXT)["input_ids"])
    special = set(tokenizer_or_vocab_size.all_special_ids)
    before, after = _leading(ids, special), _leading(ids[::-1], special)
    for where, found in (("before", before), ("after", after)):
        if len(found) > len(set(found)):
            twice = next(i for i in found if found.count(i) > 1)
            token = tokenizer_or_vocab_size.convert_ids_to_tokens(twice)
            detail = (
                f"the tokenizer puts {token!r} {found.count(twice)} times {where} a text; set "
                "add_bos_token or add_eos_token to false in its tokenizer_config.json, or mend its "
                "post-processor"
            )
            return Check(name, False, found.count(twice), 1, detail)
    count = len(before) + len(after)
    return Check(name, True, count, None, f"{count} special tokens around a text, none twice")


def _leading(ids: list[int], special: set[int]) -> list[int]:
    found = []
    for i in ids:
        if i not in special:
            break
        found.append(i)
    return found
