"""What a measurement that did not come to its end has found, kept so that it can continue."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hylorada.errors import Interrupted
from hylorada.process.disk import replace_file
from hylorada.process.fault_points import fault_point
from hylorada.process.redaction import redacted
from hylorada.process.signals import Stop
from hylorada.records.manifest import plain_sha256
from hylorada.records.result import parse_json

KEEP_SECONDS = 30.0
"""Of measuring that a killed process loses at most."""


class Partial:
    """The numbers of a measurement so far, in a file of its own.

    Attributes:
        done: what an earlier attempt at the same measurement left; None if there is none, or if it
            was another measurement.
    """

    def __init__(
        self,
        path: Path | None,
        identity: dict[str, Any],
        stop: Stop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look for an earlier attempt.

        Args:
            path: the file; None: nothing is kept.
            identity: all that the numbers depend on, as plain values.
            stop: whether a signal has come.
            clock: seconds.
        """
        self._path, self._stop, self._clock = path, stop, clock
        self._identity = json.loads(json.dumps(redacted(identity)))  # JSON has no tuples
        self._kept_at = clock()
        self._boundaries = 0
        self.done = self._read()

    def boundary(self, done: Callable[[], Any]) -> None:
        """Call between two batches or prompts: it keeps what was found every now and then.

        Args:
            done: makes what is to be kept.

        Raises:
            Interrupted: a signal came; everything is kept.
            DiskError: it cannot be kept.
        """
        try:
            self._stop.check()
        except Interrupted:
            self.keep(done())
            raise
        if self._path is None:
            return
        if self._clock() - self._kept_at >= KEEP_SECONDS:
            self.keep(done())
        self._boundaries += 1
        fault_point("inside_evaluation", self._boundaries)

    def keep(self, done: Any) -> None:
        """Write what was found.

        Raises:
            DiskError: full or read-only; what was kept before stands.
        """
        if self._path is not None:
            state = {"identity": self._identity, "done": done, "sha256": plain_sha256(done)}
            replace_file(self._path, json.dumps(state).encode())
            self._kept_at = self._clock()

    def remove(self) -> None:
        """Forget it: the measurement is complete."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _read(self) -> Any:
        if self._path is None:
            return None
        try:
            state = parse_json(self._path.read_bytes())
        except (OSError, ValueError):
            return None  # absent, or not what was written: measured again
        if not isinstance(state, dict) or state.get("identity") != self._identity:
            return None
        done = state.get("done")
        return done if state.get("sha256") == plain_sha256(done) else None
