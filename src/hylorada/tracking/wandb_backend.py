"""W&B, offline and online: the only file that knows it.

Its client hands everything to a process of its own, wandb-core, and waits for that process in many
places without a limit, the last of them when Python exits. So a run that is given up takes its
process with it, and a run that ends well ends that process too. Neither is done where the process
belongs to other code: a notebook may have runs of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import secrets
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from hylorada.config import TrackConfig
from hylorada.tracking.backend import Backend

START_SECONDS = 11.0
"""That W&B itself waits for its process, for the server, for a login."""
FINISH_SECONDS = 8.0
"""That W&B itself waits for what is left to send."""

_SERVICE_VARIABLE = "WANDB_SERVICE"  # set by W&B while its process runs


class WandbBackend(Backend):
    """One run of W&B, whose files go into `wandb/` of the run's directory; see `Backend`."""

    offline: bool
    """Files alone, without an account or a network; `wandb sync` uploads them later."""

    def __init__(
        self, settings: TrackConfig, run_dir: Path, name: str, config: dict[str, Any], group: str
    ) -> None:
        super().__init__(settings, run_dir, name, config, group)
        self._own_service = False
        self._hooks = sys.exit, sys.excepthook
        self._thread = 0  # that starts it, by the system's number
        self._started: set[int] = set()  # processes
        self._run: Any = None

    def start(self) -> None:
        """Start the run: a new folder, under the id that the run's directory always has."""
        self._thread = threading.get_native_id()
        try:
            self._start()
        finally:
            self._started = _children(self._thread)

    def _start(self) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        self._own_service = _SERVICE_VARIABLE not in os.environ
        self._hooks = sys.exit, sys.excepthook
        import wandb

        _keep_from_the_screen()
        known = wandb.Settings.model_fields
        wanted: dict[str, Any] = {
            "silent": True,
            "quiet": True,
            "show_warnings": False,
            "show_errors": False,
            "console": "off",  # our output is not captured
            "init_timeout": START_SECONDS,
            "login_timeout": START_SECONDS,
            "x_service_wait": START_SECONDS,
            "finish_timeout": FINISH_SECONDS,
            "finish_timeout_raises": True,
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
        settings = self.settings
        self._run = wandb.init(
            mode="offline" if self.offline else "online",
            project=settings.project,
            entity=settings.entity or None,
            name=self.name,
            group=self.group or None,
            id=_run_id(self.run_dir),
            resume=None if self.offline else "allow",
            reinit="create_new",  # never into a run that other code has open
            tags=settings.tags or None,
            dir=str(self.run_dir),
            config=self.config,
            settings=wandb.Settings(**{k: v for k, v in wanted.items() if k in known}),
        )
        self._run.define_metric("*", step_metric="step")

    @property
    def lacks_history(self) -> bool:
        """Whether what an earlier attempt logged is not in this run: an offline folder is empty."""
        return self.offline or not self._run.resumed

    def replace_earlier(self) -> None:
        """Mark the folders of earlier attempts, whose numbers this one has, as done with.

        `wandb sync` passes over a folder with this marker, unless it is told not to.
        """
        own = Path(self._run.dir).parent
        for folder in sorted((self.run_dir / "wandb").glob(f"offline-run-*-{self._run.id}")):
            marker = folder / f"run-{self._run.id}.wandb.synced"
            if folder.name != own.name and not marker.exists():
                marker.write_text(f"{own.name} holds the whole run\n")

    def log(self, step: int, values: dict[str, float]) -> None:
        """A row of the history."""
        # "step" as a value and not W&B's own counter: that one refuses to go back after a resume.
        self._run.log({"step": step, **values})

    def summary(self, values: dict[str, float]) -> None:
        """Final numbers."""
        self._run.summary.update(values)

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """A small table."""
        import wandb

        self._run.log({name: wandb.Table(columns=[*columns], data=rows)})

    def picture(self, name: str, png: bytes) -> None:
        """A picture."""
        import wandb
        from PIL import Image

        self._run.log({name: wandb.Image(Image.open(io.BytesIO(png)))})

    def finish(self, exit_code: int) -> None:
        """End the run and, if it is ours, W&B's process: at exit it would be waited for."""
        self._run.finish(exit_code=exit_code)
        if self._service_is_ours():
            self._end_service()

    def abandon(self) -> None:
        """Let no part of W&B hold up this process; what it wrote stays."""
        if not self._service_is_ours():
            return
        for pid in self._processes():
            with contextlib.suppress(OSError):  # it is gone
                if os.getpgid(pid) == pid:  # W&B starts it so; with all that it has started
                    os.killpg(pid, signal.SIGKILL)
                else:
                    os.kill(pid, signal.SIGKILL)
        # Its calls fail now where they hung. This takes the wait at exit out of the way.
        with contextlib.suppress(Exception):
            self._end_service()

    def _end_service(self) -> None:
        # Each start of the service puts another layer around these.
        sys.exit, sys.excepthook = self._hooks
        try:
            sys.modules["wandb"].teardown()
        except SystemExit as error:  # what it makes of a process that did not end well
            raise ChildProcessError(f"wandb-core ended with {error.code}") from None

    def _processes(self) -> set[int]:
        """W&B's processes among our children; one that never answered it knows nothing of."""
        found = {pid for pid in self._started | _children(self._thread) if _is_ours(pid)}
        process: Any = getattr(sys.modules.get("wandb.sdk.wandb_setup"), "_singleton", None)
        for name in ("_connection", "_proc", "_process", "pid"):
            process = getattr(process, name, None)
        return found | ({process} if isinstance(process, int) else set())

    def _service_is_ours(self) -> bool:
        wandb = sys.modules.get("wandb")
        return self._own_service and wandb is not None and getattr(wandb, "run", None) is None


class _Silent:
    """`subprocess` for the module that starts W&B's process: what that says goes nowhere."""

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)

    def Popen(self, *args: Any, **options: Any) -> Any:
        nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(*args, **{**options, **nowhere})


def _keep_from_the_screen() -> None:
    """Let W&B's process write nowhere: one that crashes prints the state of all its threads.

    Its own debug log is in the run's `wandb/`.
    """
    with contextlib.suppress(ImportError):  # another layout of W&B
        starter = importlib.import_module("wandb.sdk.lib.service.service_process")
        if getattr(starter, "subprocess", None) is subprocess:
            vars(starter)["subprocess"] = _Silent()


def _run_id(run_dir: Path) -> str:
    """W&B's id of a run directory: made once, so that a continued run stays one run."""
    path = run_dir / ".wandb-id"
    if not path.exists():
        path.write_text(secrets.token_hex(4))
    return path.read_text().strip()


def _children(thread: int) -> set[int]:
    """The processes that a thread of this process has started and that are not gone; on Linux."""
    with contextlib.suppress(OSError):
        return {int(pid) for pid in Path(f"/proc/self/task/{thread}/children").read_text().split()}
    return set()


def _is_ours(pid: int) -> bool:
    """Whether a process is still a child of this one, and its number not another's by now."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        return int(stat.rpartition(")")[2].split()[1]) == os.getpid()
    return False
