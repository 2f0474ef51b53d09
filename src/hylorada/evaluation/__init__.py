"""What is measured: perplexity by named conventions, and whether a context's middle is used."""
