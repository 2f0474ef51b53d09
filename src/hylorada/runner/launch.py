"""`processes=N`: the processes of a run on this machine, started and watched by torch's own agent.

What is ours: the settings reach them through the environment (not on disk, they may hold secrets),
their exit codes and lines come back as errors, and they end with this process.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hylorada import errors
from hylorada.config import RunConfig, to_dict
from hylorada.errors import HyloradaError, Interrupted, PeerError
from hylorada.process.log import log_file
from hylorada.process.place import place
from hylorada.process.signals import STOP_SIGNALS
from hylorada.runner.worker import TASK

SAVING = 600
"""Seconds that processes which were asked to stop may take to save."""
_BY_CODE = {
    error.exit_code: error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, HyloradaError) and error is not HyloradaError
    and error is not Interrupted
}  # fmt: skip


def starts_processes(config: RunConfig) -> bool:
    """Whether this process is to start those of the run, and is none of them."""
    return config.processes > 1 and place().world == 1


def start_processes(
    config: RunConfig, directory: Path, kind: str, chosen: Mapping[str, Any] | None = None
) -> None:
    """Train or measure a run in ``config.processes`` processes, to the end.

    Args:
        config: the run's settings.
        directory: of the run, which the caller holds (`disk.exclusive`).
        kind: ``train`` or ``evaluate``.
        chosen: why this run is measured, see `evaluate_run`.

    Raises:
        HyloradaError: what ended them, with its exit code.
        RuntimeError: a bug ended them.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    heard = [s for s in STOP_SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]  # as nohup has
    task = {
        "kind": kind,
        "config": to_dict(config),
        "directory": str(directory.absolute()),
        "chosen": chosen,
        "parent": os.getpid(),
    }
    changed = {
        TASK: json.dumps(task),
        # Otherwise processes that are started anew could meet those of before.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        **({} if "GLOO_SOCKET_IFNAME" in os.environ else _loopback()),
    }
    with (
        tempfile.TemporaryDirectory(prefix="hylorada-agent-") as folder,
        _environment(changed),
        _former_handlers(),
        _remarks_in(directory / "run.log"),
    ):
        settings = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=config.processes,
            run_id=uuid.uuid4().hex,
            logs_specs=DefaultLogsSpecs(folder),
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            signals_to_handle=",".join(s.name for s in heard),
            shutdown_timeout=SAVING,
        )
        try:
            elastic_launch(settings, sys.executable)("-m", "hylorada.runner.worker")
        except SignalException as error:
            name = signal.Signals(error.sigval).name
            raise Interrupted(
                error.sigval, f"stopped by {name}; run the same command again to continue"
            ) from None
        except ChildFailedError as error:
            raise _cause(error.failures) from None


def _cause(failures: Mapping[int, Any]) -> Exception:
    """The error that ended the processes.

    A process that lost another one, or that the agent ended, is not the cause.

    Args:
        failures: by rank, as torch's agent describes them.
    """
    rank, failure = min(
        failures.items(),
        key=lambda item: (
            item[1].exitcode == PeerError.exit_code,
            abs(item[1].exitcode) in (signal.SIGTERM, 128 + signal.SIGTERM),
            item[1].timestamp,
        ),
    )
    code, message = failure.exitcode, failure.message
    if code < 0:
        name = signal.Signals(-code).name
        error = PeerError(
            f"process {rank} was ended by {name}; run the same command again to continue"
        )
        error.exit_code = 128 - code
        return error
    if code > 128:
        return Interrupted(code - 128, message)
    return _BY_CODE.get(code, RuntimeError)(message)


def _loopback() -> dict[str, str]:
    """Have gloo listen on the loopback interface: not every container can resolve its own name."""
    names = {name for _, name in socket.if_nameindex()}
    return {"GLOO_SOCKET_IFNAME": "lo"} if "lo" in names else {}


@contextlib.contextmanager
def _environment(changed: Mapping[str, str]) -> Iterator[None]:
    # The agent sets a variable of its own.
    former = dict(os.environ)
    os.environ.update(changed)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(former)


@contextlib.contextmanager
def _former_handlers() -> Iterator[None]:
    """Put back, after the block, the signal handlers that the agent replaces."""
    former: dict[signal.Signals, Any] = {s: signal.getsignal(s) for s in STOP_SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in former.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def _remarks_in(path: Path) -> Iterator[None]:
    """Inside the block, write the agent's log messages to run.log and not to the terminal."""
    agent = logging.getLogger("torch.distributed.elastic")
    propagated, agent.propagate = agent.propagate, False
    try:
        with log_file(path, agent):
            yield
    finally:
        agent.propagate = propagated
