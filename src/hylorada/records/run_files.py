"""Names of files that a run leaves and others read."""

from __future__ import annotations

ADAPTER_SETTINGS = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
