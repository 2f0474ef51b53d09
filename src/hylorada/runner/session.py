"""What training and a later measurement share: the frame they work in, and the meter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from hylorada.config import RunConfig
from hylorada.disk import exclusive
from hylorada.runner.device import choose_bf16, choose_device
from hylorada.runner.ending import LogError, log_to
from hylorada.runner.measure import Meter
from hylorada.runner.progress import Reporter
from hylorada.runner.seeding import deterministic
from hylorada.runner.signals import Stop


@contextmanager
def session(directory: Path) -> Iterator[tuple[Stop, LogError]]:
    """One process in the directory, signals heard, a log, and the same numbers each time.

    Yields:
        What knows whether a signal has come, and what writes a traceback into the log.

    Raises:
        DiskError: a live process holds the directory, or it cannot be written.
    """
    stop = Stop()
    with ExitStack() as stack:
        stack.enter_context(exclusive(directory))
        stack.enter_context(stop.listening())
        log = stack.enter_context(log_to(directory / "run.log"))
        stack.enter_context(deterministic())
        yield stop, log


def make_meter(config: RunConfig, stop: Stop, reporter: Reporter) -> Meter:
    """A meter on the device and in the precision of the settings; also sets their threads.

    Raises:
        ConfigError: the hardware has no such device or precision.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    bf16 = choose_bf16(config.train.precision, device)
    return Meter(device, bf16, config.train.loss_chunk, stop, reporter)
