"""`track=offline`: W&B's real client writing its run files, without an account or a network.

`wandb sync <run>/wandb/offline-run-*` uploads them later.
"""

from __future__ import annotations

from hylorada.tracking.wandb_backend import WandbBackend


class Backend(WandbBackend):
    """W&B's files on disk."""

    offline = True
