"""Commands as a user starts them, in processes of their own with streams of their own."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.patience import wait_long_for_trackers
from helpers.tiny_runs import _CONTEXT, LENGTH, finish

Streams = Callable[[], None]
"""Called in the child before the command: gives it its standard streams."""


def words_of_a_run(root: Path, *more: str) -> list[str]:
    """A run of a second in `root`, where `tiny_runs` put a model and texts; without the gate."""
    return [
        "length=512", f"length.max_length={LENGTH}", f"model={root}/model",
        "dataset=local", f"dataset.path={root}/texts", f"dataset.cache_dir={root}/cache",
        "eval=quick", "eval.perplexity.max_blocks=2", "train.max_steps=3", "method=lora",
        "threads=1", "track=off", "integrity.enabled=false", f"output_root={root}/outputs", *more,
    ]  # fmt: skip


def start(command: str, words: list[str], streams: Streams, **environment: str) -> Any:
    """Start `hylorada-<command>`."""
    process = _CONTEXT.Process(target=_child, args=(command, words, streams, environment))
    process.start()
    return process


def run_command(command: str, words: list[str], streams: Streams, **environment: str) -> int:
    """Run it to its end; its exit code."""
    return finish(start(command, words, streams, **environment))


class Into:
    """Both streams into files (or one of them), as by `> out 2> err`."""

    def __init__(self, out: Path | str, err: Path | str) -> None:
        self.out, self.err = str(out), str(err)

    def __call__(self) -> None:
        for number, path in ((1, self.out), (2, self.err)):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, number)


class Head:
    """Both streams into a pipe whose reader goes away after some lines, as by `2>&1 | head -n`."""

    def __init__(self, lines: int | str) -> None:
        self.lines = lines

    def __call__(self) -> None:
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os.close(writer)
        threading.Thread(target=self._read, args=(reader,), daemon=True).start()

    def _read(self, reader: int) -> None:
        seen = b""
        while not self._is_enough(seen):
            seen += os.read(reader, 1)
        os.close(reader)

    def _is_enough(self, seen: bytes) -> bool:
        if isinstance(self.lines, str):
            return self.lines.encode() in seen
        return seen.count(b"\n") >= self.lines


class HungUp(Head):
    """A terminal that is there, and hangs up after some lines, or words: SIGHUP, then EIO."""

    def __call__(self) -> None:
        os.setsid()
        master, slave = os.openpty()
        os.login_tty(slave) if hasattr(os, "login_tty") else _take(slave)
        threading.Thread(target=self._read, args=(master,), daemon=True).start()


class HungUpUnderNohup(HungUp):
    """The same for who started the command by nohup and left its output on the terminal."""

    def __call__(self) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        super().__call__()


def _take(slave: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for number in (0, 1, 2):
        os.dup2(slave, number)
    os.close(slave)


def closed() -> None:
    """No streams at all, as by `>&- 2>&-`."""
    os.close(1)
    os.close(2)
    sys.stdout = sys.stderr = None  # type: ignore[assignment]


def _child(command: str, words: list[str], streams: Streams, environment: dict[str, str]) -> None:
    gc.freeze()  # what was imported before the fork: a look at it would copy its pages
    os.environ.update(environment)
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(1)
    wait_long_for_trackers(pytest.MonkeyPatch())
    streams()
    from hylorada import cli

    sys.exit({"train": cli.train, "eval": cli.evaluate, "report": cli.report}[command](words))
