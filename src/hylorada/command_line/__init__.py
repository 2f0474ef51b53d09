"""The words that users type: what Hydra can read of them, and what was meant by a wrong one."""
