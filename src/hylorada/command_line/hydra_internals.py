"""All that is taken from Hydra beyond its public names; pyproject.toml pins its minor version.

Hydra has no public way to compose a config, look at it, and then run it: its own entry point does
that with the classes imported here (hydra-core 1.3.8, `hydra._internal.utils._run_hydra`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig

__all__ = ["Hydra", "JobReturn", "Override", "OverridesParser", "instantiate_launcher"]


def instantiate_launcher(
    hydra: Hydra, config: DictConfig, job: Callable[[DictConfig], Any]
) -> Launcher:
    """The launcher that a sweep's config names, ready to launch the job."""
    context = HydraContext(hydra.config_loader, Callbacks(config))
    return Plugins.instance().instantiate_launcher(
        hydra_context=context, task_function=job, config=config
    )
