"""Names of files that a run leaves and others read, and what each is."""

from __future__ import annotations

ADAPTER_SETTINGS = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

LEFT = {
    "result.json": "the record: what was asked, what was measured, how it ended; whole or none",
    "metrics.jsonl": "a line for each logged step, validation and final measurement; the same "
    "bytes however often a run is interrupted",
    "timing.jsonl": "seconds and memory of the logged steps; differs between attempts",
    "integrity.json": "what the gate found, as `integrity` in the record; before training begins",
    "run.log": "everything that was said, and the traceback of a failure",
    f"adapter/{ADAPTER_SETTINGS}": "as PEFT writes it; none of a baseline",
    f"adapter/{ADAPTER_WEIGHTS}": "what was trained",
    "adapter/README.md": "the adapter's model card, made from the record",
    "checkpoints/step-N/": "state to continue from, with a manifest of hashes; `.bad-step-N` is "
    "damaged and set aside",
    ".hydra/": "the settings as Hydra writes them: config.yaml, hydra.yaml, overrides.yaml",
    ".lock": "held by the process that runs here; `.lock-owner` says which",
    ".evaluation*": "an interrupted measurement, continued by the next start; gone at the end",
    "earlier-N/": "attempts before `resume=never`",
}
"""Everything in a run's directory, by name from there; `wandb/` and the like of trackers aside."""
