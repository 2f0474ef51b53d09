"""Mirrors a run's numbers to a tracker; the truth is metrics.jsonl.

No tracker failure ends or delays a run: every call is made in another thread, in order, waited for
no longer than a limit, and its failure is one warning and the end of tracking.

Which tracker that is, `track.kind` says: a module in `hylorada.tracking.trackers`, or of another
package (`hylorada.extensions.TRACKERS`).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hylorada.config import RunConfig, TrackConfig, to_dict
from hylorada.extensions import TRACKERS
from hylorada.process.redaction import redacted
from hylorada.settings.fingerprint import group_name
from hylorada.tracking.backend import Backend

logger = logging.getLogger(__name__)

START_SECONDS = 13.0
STUCK_SECONDS = 15.0
"""That one call may take while the run goes on."""
FINISH_SECONDS = 12.0
"""From the end of a run to the end of its tracker."""
_ABANDON_SECONDS = 5.0  # that the end of its process may take, once it was killed


class Tracker:
    """A tracker that cannot fail: after the first error it is silent.

    Args:
        settings: which tracker, and its project, entity, tags.
        run_dir: its files go below it.
        name: of the run.
        config: the run's settings, as plain containers; secrets are taken out.
        group: of the runs that belong together.
    """

    def __init__(
        self,
        settings: TrackConfig,
        run_dir: Path,
        name: str,
        config: dict[str, Any],
        group: str = "",
    ) -> None:
        self._kind = settings.kind
        self._backend: Backend | None = None
        if settings.kind == "off":
            return
        # Whoever puts a secret into its name or tags has mistaken the place.
        shown = TrackConfig(**redacted(dataclasses.asdict(settings)))
        of_kind = TRACKERS.part(settings.kind, "Backend")
        backend: Backend = of_kind(shown, run_dir, name, redacted(config), redacted(group))
        self._backend, self._calls = backend, _Calls()
        self._calls.add("start", backend.start)
        self._wait(START_SECONDS)

    @property
    def active(self) -> bool:
        """Whether anything that it is given is shown."""
        return self._backend is not None

    def log(self, line: dict[str, Any], timing: dict[str, Any] | None = None) -> None:
        """Mirror one line of metrics.jsonl: its numbers, at its step.

        Args:
            line: of metrics.jsonl.
            timing: the line of timing.jsonl that belongs to it.
        """
        if (backend := self._backend) is not None:
            values = _numbers(line) | speed(timing or {})
            step = int(values.pop("step"))
            self._add("log", lambda: backend.log(step, values))

    def replay(self, run_dir: Path, state: Mapping[str, Any]) -> None:
        """Give a tracker that does not have it what earlier attempts at this run logged.

        Args:
            run_dir: with metrics.jsonl and timing.jsonl.
            state: of the checkpoint that is continued, whose `metrics_bytes` and `timing_bytes` say
                how much of the files counts; all of them where it does not say.
        """
        if (backend := self._backend) is None or not backend.lacks_history:
            return
        sizes = state.get("metrics_bytes"), state.get("timing_bytes")
        try:
            for line, timing in history(run_dir, *sizes):
                self.log(line, timing)
        except (OSError, ValueError, LookupError, TypeError) as error:  # changed by hand
            if self._backend is not None:
                self._give_up("replay", error)
        if self._backend is not None:
            self._add("log", backend.replace_earlier)

    def summary(self, values: dict[str, Any]) -> None:
        """Set the final numbers of the run."""
        if (backend := self._backend) is not None:
            self._add("summary", lambda: backend.summary(_numbers(values)))

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Show a small table."""
        if (backend := self._backend) is not None:
            self._add("table", lambda: backend.table(name, columns, rows))

    def picture(self, name: str, png: bytes) -> None:
        """Show a picture."""
        if (backend := self._backend) is not None:
            self._add("picture", lambda: backend.picture(name, png))

    def finish(self, exit_code: int) -> None:
        """Close the tracker; what it has not sent by then stays in its files."""
        if (backend := self._backend) is not None:
            self._add("finish", lambda: backend.finish(exit_code))
            self._wait(FINISH_SECONDS)
            self._backend = None

    def _add(self, what: str, call: Callable[[], None]) -> None:
        self._calls.add(what, call)
        if (failure := self._calls.failure or self._calls.stuck(STUCK_SECONDS)) is not None:
            self._give_up(*failure)

    def _wait(self, seconds: float) -> None:
        """Wait until all that was asked for is done, or has failed."""
        if self._backend is not None:
            late = self._calls.wait(seconds)
            if (failure := self._calls.failure or late) is not None:
                self._give_up(*failure)

    def _give_up(self, what: str, error: BaseException) -> None:
        backend, self._backend = self._backend, None
        assert backend is not None
        first = (str(error).splitlines() or [""])[0][:200]
        logger.warning(
            "track=%s stopped at %s (%s: %s); the run goes on, its numbers are in metrics.jsonl",
            self._kind, what, type(error).__name__, first,
        )  # fmt: skip
        self._calls.close()
        # In a thread: it may wait for the call that hangs, which ends because of it.
        abandoning = threading.Thread(target=backend.abandon, daemon=True, name="tracker-end")
        abandoning.start()
        abandoning.join(_ABANDON_SECONDS)


Failure = tuple[str, BaseException]


class _Calls:
    """Calls made one after the other in a thread of their own, up to the first that fails."""

    def __init__(self) -> None:
        self.failure: Failure | None = None
        self._queue: queue.SimpleQueue[tuple[str, Callable[[], None]] | None] = queue.SimpleQueue()
        self._running: tuple[str, float] | None = None  # what, since when
        self._closed = False
        threading.Thread(target=self._work, daemon=True, name="tracker").start()

    def add(self, what: str, call: Callable[[], None]) -> None:
        """Have a call made after those before it."""
        self._queue.put((what, call))

    def wait(self, seconds: float) -> Failure | None:
        """Wait until every call so far is made, or one has failed; a failure if that takes long."""
        done = threading.Event()
        self._queue.put(("", done.set))
        if done.wait(seconds):
            return None
        what, _ = self._running or ("", 0.0)
        return what, TimeoutError(f"no answer within {seconds:.0f} s")

    def stuck(self, seconds: float) -> Failure | None:
        """A failure if the call that is being made takes longer than so many seconds."""
        running = self._running
        if running is None or time.monotonic() - running[1] < seconds:
            return None
        return running[0], TimeoutError(f"no answer within {seconds:.0f} s")

    def close(self) -> None:
        """Make no further call."""
        self._closed = True
        self._queue.put(None)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            what, call = item
            if what and (self._closed or self.failure is not None):
                continue
            self._running = (what, time.monotonic()) if what else None
            try:
                call()
            except BaseException as error:  # told to the run's thread; a library may want to exit
                self.failure = what, error
            self._running = None


def start_tracker(config: RunConfig, run_dir: Path, name: str) -> Tracker:
    """The tracker of a run's settings."""
    return Tracker(config.track, run_dir, name, to_dict(config), group_name(config))


def speed(timing: dict[str, Any]) -> dict[str, float]:
    """What trackers show of a line of timing.jsonl: time and tokens of a step, memory so far."""
    values: dict[str, float] = {}
    if seconds := timing.get("seconds"):
        values["efficiency/step_seconds"] = seconds
        values["efficiency/tokens_per_second"] = timing["tokens"] / seconds
    if peak := timing.get("peak_memory_bytes"):
        values["efficiency/peak_memory_mib"] = peak / 2**20
    return values


def history(
    run_dir: Path, metrics_bytes: int | None, timing_bytes: int | None
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The lines of a run's metrics.jsonl, each with the line of timing.jsonl of its step."""
    timings = {line["step"]: line for line in _lines(run_dir / "timing.jsonl", timing_bytes)}
    for line in _lines(run_dir / "metrics.jsonl", metrics_bytes):
        trained = any(key.startswith("train/") for key in line)
        yield line, timings.get(line["step"], {}) if trained else {}


def _lines(path: Path, size: int | None) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open("rb") as file:
        read = 0
        for text in file:
            read += len(text)
            if not text.endswith(b"\n") or (size is not None and read > size):
                return  # the beginning of a line that a killed attempt was writing
            yield json.loads(text)


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in values.items() if isinstance(v, int | float) and v is not None}
