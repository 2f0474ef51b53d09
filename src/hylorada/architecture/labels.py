"""Labels as torch and transformers have them: the next token's number, or that it is not scored."""

IGNORE = -100
"""The label of a position that is not scored (`ignore_index` of torch's cross-entropy)."""
