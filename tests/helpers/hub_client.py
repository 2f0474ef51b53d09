"""Reads data sets and models through the real clients; a process of its own, for they read the
environment (HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME) when imported.

Jobs come as JSON on stdin: {name: {"dataset": {...}, "split": ...} or {"model": {...}}}; what
became of each goes to stdout, with the limits in seconds of what the hub was asked.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import mounts

from hylorada.config import DatasetConfig
from hylorada.data import hub
from hylorada.data.readers import read_documents
from hylorada.errors import HyloradaError

ONE_AT_A_TIME = threading.Lock()
LIMITS = threading.local()
ANSWERS = "TEST_HUB_ANSWERS" in os.environ
PATIENCE = 300.0  # seconds
WITHIN = hub._within


def noting(seconds, work):
    """As what it stands for, and puts down how long it may take.

    Where every request is answered, all have the time that a loaded machine needs for thirty jobs
    at once.
    """
    LIMITS.of_this_job.append(seconds)
    return WITHIN(PATIENCE if ANSWERS else seconds, work)


def do(job: dict) -> dict:
    LIMITS.of_this_job = []
    try:
        if "check" in job:
            hub.check_model(job["check"], "")
            result = {}
        elif "model" in job:
            result = {"model": load_model(job["model"])}
        else:
            dataset = DatasetConfig(**job["dataset"])
            documents = list(read_documents(dataset, job["split"]))
            result = {"names": [d.name for d in documents], "texts": [d.text for d in documents]}
    except HyloradaError as error:
        result = {"error": type(error).__name__, "message": str(error), "code": error.exit_code}
    return result | {"limits": LIMITS.of_this_job}


def load_model(job: dict) -> dict:
    import torch

    from hylorada.config import ModelConfig
    from hylorada.loading.backbone import load_backbone

    with ONE_AT_A_TIME:  # transformers patches itself while it builds a model
        backbone = load_backbone(ModelConfig(**job), torch.device("cpu"))
    return {
        "type": type(backbone.model).__name__,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "trained_length": backbone.trained_length,
        "sum": float(sum(p.double().abs().sum() for p in backbone.model.parameters())),
        "ids": backbone.tokenizer("ab")["input_ids"],
    }


if __name__ == "__main__":
    if folder := os.environ.get("TEST_READ_ONLY"):
        mounts.own_mounts()
        mounts.mount_read_only(folder)
    jobs = json.load(sys.stdin)
    hub._within = noting
    if ANSWERS:
        hub._REQUEST = PATIENCE
    # Before there are threads.
    import datasets  # noqa: F401

    if any("model" in job for job in jobs.values()):
        import hylorada.loading.backbone  # noqa: F401
    # Side by side: most of the time goes into the clients' own waits between attempts.
    with ThreadPoolExecutor(len(jobs)) as pool:
        json.dump(dict(zip(jobs, pool.map(do, jobs.values()), strict=True)), sys.stdout)
