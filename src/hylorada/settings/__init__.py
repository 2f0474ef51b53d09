"""Every check of a run's settings that needs no model: ranges, choices, combinations, paths.

Standard library only, so that a wrong setting is refused before torch loads. Each message says
which setting, what is wrong with it and what to do.
"""

from __future__ import annotations

from hylorada.settings.run import check_settings, check_splits

__all__ = ["check_settings", "check_splits"]
