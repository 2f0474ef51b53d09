"""Parts of `scripts/pretrain_tiny.py`, which makes the embedded base model."""
