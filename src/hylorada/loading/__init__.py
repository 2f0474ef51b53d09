"""Base models, adapters and finished runs, and the proof that they are the ones that were named."""
