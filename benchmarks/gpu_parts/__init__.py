"""The stages of `gpu.py`, one file a question."""
