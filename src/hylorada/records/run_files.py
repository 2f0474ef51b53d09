"""Names of files that a run leaves and others read, and what each is."""

from __future__ import annotations

ADAPTER_SETTINGS = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

LEFT = {
    "result.json": "the record: settings, measurements and outcome; complete or absent",
    "metrics.jsonl": "a line for each logged step, validation and final measurement; the same "
    "bytes however often a run is interrupted",
    "timing.jsonl": "time and memory of the logged steps; differs between attempts",
    "integrity.json": "what the gate found, as `integrity` in the record; written before training",
    "run.log": "all messages, and the traceback of a failure",
    f"adapter/{ADAPTER_SETTINGS}": "as PEFT writes it; not for a baseline",
    f"adapter/{ADAPTER_WEIGHTS}": "trained weights",
    "adapter/README.md": "the adapter's model card, generated from the record",
    "checkpoints/step-N/": "state to resume from, with a manifest of hashes; `.bad-step-N` is a "
    "damaged one that was set aside",
    ".hydra/": "the settings as Hydra writes them: config.yaml, hydra.yaml, overrides.yaml",
    ".lock": "held by the process that is running; `.lock-owner` names it",
    ".evaluation*": "state of an interrupted measurement; removed at the end",
    "earlier-N/": "attempts before `resume=never`",
}
"""Everything in a run's directory, by name from there; `wandb/` and the like of trackers aside."""
