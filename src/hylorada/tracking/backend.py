"""What a tracker is asked for: `Backend`, of which each tracker is one.

Every call is made by `hylorada.tracking.tracker`, in order and in a thread of its own, where it may
raise or hang: that costs the tracker alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from hylorada.config import TrackConfig


class Backend(ABC):
    """One run at a tracker. `log` and `summary` are its own; what else it can do is up to it.

    Args:
        settings: of the tracker: project, entity, tags.
        run_dir: of the run; the files of a tracker go below it.
        name: of the run.
        config: the run's settings, as plain containers and without secrets.
        group: of the runs that belong together.
    """

    def __init__(
        self, settings: TrackConfig, run_dir: Path, name: str, config: dict[str, Any], group: str
    ) -> None:
        self.settings, self.run_dir, self.name = settings, run_dir, name
        self.config, self.group = config, group

    @property
    def lacks_history(self) -> bool:
        """Whether it does not show what an earlier attempt at the run logged.

        Asked after `start`. Where it does not, that is logged again before anything else.
        """
        return True

    def start(self) -> None:  # noqa: B027
        """Called before everything else: files, connections and imports are for here."""

    def replace_earlier(self) -> None:  # noqa: B027
        """What an earlier attempt logged has been logged again."""

    @abstractmethod
    def log(self, step: int, values: dict[str, float]) -> None:
        """Show a row of numbers.

        Args:
            step: optimizer steps so far.
            values: numbers by their names, as in `train/loss`.
        """

    @abstractmethod
    def summary(self, values: dict[str, float]) -> None:
        """Show the final numbers of the run."""

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:  # noqa: B027
        """Show a small table."""

    def picture(self, name: str, png: bytes) -> None:  # noqa: B027
        """Show a picture."""

    def finish(self, exit_code: int) -> None:  # noqa: B027
        """Called after everything else."""

    def abandon(self) -> None:  # noqa: B027
        """Called in place of `finish` where a call failed or hangs, to make what hangs end."""
