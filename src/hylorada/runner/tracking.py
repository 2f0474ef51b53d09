"""Mirrors a run's numbers to a tracker; the truth is metrics.jsonl.

The only file that knows W&B. No tracker failure ends or delays a run: every call is bounded in time
and caught; the first failure is one warning and the end of tracking.

`track=offline` (the default) is W&B's real client writing its run files into the run directory
without an account or a network; `wandb sync <run>/wandb/offline-run-*` uploads them later.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import logging
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from hylorada.config import TrackConfig
from hylorada.errors import Interrupted
from hylorada.redaction import redacted

logger = logging.getLogger(__name__)
T = TypeVar("T")

START_SECONDS = 15.0
FINISH_SECONDS = 30.0


class _Backend(Protocol):
    def log(self, step: int, values: dict[str, float]) -> None: ...

    def summary(self, values: dict[str, float]) -> None: ...

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None: ...

    def picture(self, name: str, png: bytes) -> None: ...

    def finish(self, exit_code: int) -> None: ...


class Tracker:
    """A tracker that cannot fail: after the first error it is silent.

    Args:
        settings: which tracker, and its project, entity, tags.
        run_dir: its files go below it.
        name: of the run.
        config: the run's settings, as plain containers; secrets are taken out.
    """

    def __init__(
        self, settings: TrackConfig, run_dir: Path, name: str, config: dict[str, Any]
    ) -> None:
        self._kind = settings.kind
        self._backend: _Backend | None = None
        if settings.kind == "off":
            return
        start = _start_tensorboard if settings.kind == "tensorboard" else _start_wandb
        self._backend = self._guard(
            "start", START_SECONDS, lambda: start(_shown(settings), run_dir, name, redacted(config))
        )

    @property
    def active(self) -> bool:
        """Whether anything that it is given is shown."""
        return self._backend is not None

    def log(self, line: dict[str, Any]) -> None:
        """Mirror one line of metrics.jsonl: its numbers, at its step."""
        if (backend := self._backend) is not None:
            values = _numbers(line)
            step = int(values.pop("step"))
            self._guard("log", START_SECONDS, lambda: backend.log(step, values))

    def summary(self, values: dict[str, Any]) -> None:
        """Set the final numbers of the run."""
        if (backend := self._backend) is not None:
            self._guard("log", START_SECONDS, lambda: backend.summary(_numbers(values)))

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Show a small table."""
        if (backend := self._backend) is not None:
            self._guard("table", START_SECONDS, lambda: backend.table(name, columns, rows))

    def picture(self, name: str, png: bytes) -> None:
        """Show a picture."""
        if (backend := self._backend) is not None:
            self._guard("picture", START_SECONDS, lambda: backend.picture(name, png))

    def finish(self, exit_code: int) -> None:
        """Close the tracker; what it has not sent by then stays in its files."""
        if (backend := self._backend) is not None:
            self._guard("finish", FINISH_SECONDS, lambda: backend.finish(exit_code))
            self._backend = None

    def _guard(self, what: str, seconds: float, call: Callable[[], T]) -> T | None:
        """The call's result; None, one warning and no more tracking if it fails or takes long."""
        try:
            return call() if what == "log" else _bounded(call, seconds)
        except Interrupted:  # a signal, while this thread waited
            raise
        except Exception as error:
            self._backend = None
            first = (str(error).splitlines() or [""])[0][:200]
            logger.warning(
                "track=%s stopped at %s (%s: %s); the run goes on, its numbers are in "
                "metrics.jsonl",
                self._kind, what, type(error).__name__, first,
            )  # fmt: skip
            return None


def _shown(settings: TrackConfig) -> TrackConfig:
    """What the tracker may write down: whoever puts a secret there has mistaken the place."""
    return TrackConfig(**redacted(dataclasses.asdict(settings)))


def _bounded(call: Callable[[], T], seconds: float) -> T:
    """Run a call in a thread and stop waiting for it after a time."""
    result: list[T] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            result.append(call())
        except BaseException as error:  # reported to the waiting thread
            failure.append(error)

    thread = threading.Thread(target=work, daemon=True, name="tracker")
    thread.start()
    thread.join(seconds)
    if failure:
        if isinstance(failure[0], Exception):
            raise failure[0]
        raise RuntimeError(f"the tracker raised {type(failure[0]).__name__}") from failure[0]
    if not result:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return result[0]


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in values.items() if isinstance(v, int | float) and v is not None}


class _Wandb:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, values: dict[str, float]) -> None:
        # "step" as a value and not W&B's own counter: that one refuses to go back after a resume.
        self._run.log({"step": step, **values})

    def summary(self, values: dict[str, float]) -> None:
        self._run.summary.update(values)

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        import wandb

        self._run.log({name: wandb.Table(columns=[*columns], data=rows)})

    def picture(self, name: str, png: bytes) -> None:
        import wandb
        from PIL import Image

        self._run.log({name: wandb.Image(Image.open(io.BytesIO(png)))})

    def finish(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)


def _start_wandb(
    settings: TrackConfig, run_dir: Path, name: str, config: dict[str, Any]
) -> _Backend:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    known = wandb.Settings.model_fields
    wanted: dict[str, Any] = {
        "silent": True,
        "quiet": True,
        "show_warnings": False,
        "show_errors": False,
        "console": "off",  # our output is not captured
        "init_timeout": START_SECONDS - 3,
        "login_timeout": START_SECONDS - 3,
        "finish_timeout": FINISH_SECONDS - 5,
        "x_service_wait": START_SECONDS - 3,
        # Neither command line nor environment, host, code, diff or package list leave the run.
        "disable_git": True,
        "disable_code": True,
        "save_code": False,
        "host": "",
        "x_disable_meta": True,
        "x_disable_machine_info": True,
        "x_disable_stats": True,
        "x_save_requirements": False,
    }
    offline = settings.kind == "offline"
    run = wandb.init(
        mode="offline" if offline else "online",
        project=settings.project,
        entity=settings.entity or None,
        name=name,
        group=config.get("group") or config.get("experiment"),
        id=_run_id(run_dir),
        resume=None if offline else "allow",
        tags=settings.tags or None,
        dir=str(run_dir),
        config=config,
        settings=wandb.Settings(**{k: v for k, v in wanted.items() if k in known}),
    )
    run.define_metric("*", step_metric="step")
    return _Wandb(run)


def _run_id(run_dir: Path) -> str:
    """W&B's id of a run directory: made once, so that a continued run stays one run."""
    path = run_dir / ".wandb-id"
    if not path.exists():
        path.write_text(secrets.token_hex(4))
    return path.read_text().strip()


class _TensorBoard:
    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._last = 0

    def log(self, step: int, values: dict[str, float]) -> None:
        self._last = step
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def summary(self, values: dict[str, float]) -> None:
        self.log(self._last, values)

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        lines = [columns, ["---"] * len(columns), *rows]
        text = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
        self._writer.add_text(name, text, self._last)

    def picture(self, name: str, png: bytes) -> None:
        import numpy as np
        from PIL import Image

        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        self._writer.add_image(name, pixels, self._last, dataformats="HWC")

    def finish(self, exit_code: int) -> None:
        self._writer.close()


def _start_tensorboard(
    settings: TrackConfig, run_dir: Path, name: str, config: dict[str, Any]
) -> _Backend:
    try:
        importlib.metadata.version("tensorboard")
    except importlib.metadata.PackageNotFoundError:
        raise RuntimeError(
            "tensorboard is not installed: pip install hylorada[tensorboard]"
        ) from None
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run_dir / "tensorboard"))
    writer.add_text("config", f"```\n{config}\n```")
    return _TensorBoard(writer)
