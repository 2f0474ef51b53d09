"""The training loop by hand: loss, optimizer, checkpoints, and training on retrieval itself."""
