"""`track=wandb`: to the W&B server as the run goes."""

from __future__ import annotations

from hylorada.tracking.wandb_backend import WandbBackend


class Backend(WandbBackend):
    """A run on the W&B server."""

    offline = False
