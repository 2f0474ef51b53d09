"""A run's numbers mirrored to a tracker; the truth is metrics.jsonl."""
