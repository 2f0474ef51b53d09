"""Runs in processes of this one, side by side on one machine: their cores, and their signals."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

_HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_EVERY = 0.5  # seconds
_PR_SET_PDEATHSIG = 1


def available_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def end_with(parent: int, signal_number: int) -> None:
    """Let this process get a signal when its parent, which started it, has ended.

    The kernel sends it on Linux; elsewhere a thread looks once a second.

    Args:
        parent: its process id; where it is another one's child by now, that is so already.
        signal_number: by which it ends.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal_number))
    if os.getppid() != parent:
        os.kill(os.getpid(), signal_number)
    elif sys.platform != "linux":
        threading.Thread(target=_look_after, args=(parent, signal_number), daemon=True).start()


def _look_after(parent: int, signal_number: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal_number)


@contextlib.contextmanager
def outliving(parent: int) -> Iterator[None]:
    """Inside the block this process goes on when its parent has ended; behind it it ends then.

    On Linux. A parent that is killed cannot let its idle processes go, which would wait for ever.
    """
    if sys.platform != "linux":
        yield
        return
    end_with(parent, 0)
    try:
        yield
    finally:
        end_with(parent, signal.SIGKILL)


def leave_terminal_group() -> None:
    """Let a signal of the terminal (Ctrl-C) reach the parent alone, which hands it on once.

    On Linux, where the parent finds its children. Elsewhere the terminal signals all of them.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)


@contextlib.contextmanager
def handed_on(running: Callable[[], Sequence[Path]], say: Callable[[str], None]) -> Iterator[None]:
    """Inside the block the first signal is handed to the children that run; a second one is heard.

    A run that has been told saves its state and ends. One that begins a moment later is told, too.

    Args:
        running: the directories of the runs that have begun and not ended.
        say: shows a line.
    """
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        yield
        return
    told: set[int] = set()
    over = threading.Event()
    came: list[int] = []

    def tell() -> None:
        for directory in running():
            holder = _holder(directory)
            if holder is not None and holder not in told and holder in _children():
                told.add(holder)
                with contextlib.suppress(OSError):
                    os.kill(holder, came[0])

    def keep_telling() -> None:
        while not over.is_set():
            tell()
            over.wait(_EVERY)

    def hear(number: int, _frame: FrameType | None) -> None:
        for each, handler in former.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
        came.append(number)
        say("stopping: each run saves its state; the same signal again ends them at once")
        threading.Thread(target=keep_telling, daemon=True).start()

    former: dict[signal.Signals, Any] = {each: signal.getsignal(each) for each in _HANDED_ON}
    for each in _HANDED_ON:
        signal.signal(each, hear)
    try:
        yield
    finally:
        over.set()
        for each, handler in former.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)


def _holder(directory: Path) -> int | None:
    """The process that holds a run's directory, by its note (`process.disk.exclusive`)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int((directory / ".lock-owner").read_text().split()[1])
    return None


def _children() -> set[int]:
    found: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found |= {int(number) for number in path.read_text().split()}
    return found
