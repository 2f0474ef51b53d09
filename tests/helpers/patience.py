"""Limits of a tracker that hold it up by nothing: a good start or end takes as long as it takes."""

from __future__ import annotations

import pytest

LONG = 120.0  # seconds; more than W&B needs on a loaded machine


def wait_long_for_trackers(patch: pytest.MonkeyPatch) -> None:
    """Until the patch is undone."""
    from hylorada.tracking import tracker, wandb_backend

    for name in ("START_SECONDS", "STUCK_SECONDS", "FINISH_SECONDS"):
        patch.setattr(tracker, name, LONG)
    for name in ("START_SECONDS", "FINISH_SECONDS"):
        patch.setattr(wandb_backend, name, LONG - 10)
