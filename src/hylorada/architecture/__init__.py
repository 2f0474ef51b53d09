"""What a causal language model is made of, whatever its family."""
