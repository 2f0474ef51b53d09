"""Stopping on a signal where the run's state is whole.

SIGTERM, SIGINT, SIGUSR1, SIGUSR2 and SIGHUP (its terminal was closed; under nohup it is not heard)
ask the run to stop. Inside `deferred()` (training, evaluation) the run
itself looks at `requested` at each step or batch boundary; elsewhere, where nothing is lost, the
handler raises at once. A second signal ends the process without waiting for anything.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from hylorada.errors import Interrupted
from hylorada.process import requeue

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, *requeue.SIGNALS, signal.SIGHUP)
_ONE_SIGNAL = 5.0  # seconds within which another one to a process of several is the same


class Stop:
    """Whether, and by which signal, the run was asked to stop.

    Args:
        shared: whether the run has several processes. A signal that this one hears then counts,
            where signals are deferred, when all know it (`agree`), so that all stop at one place.

    Attributes:
        heard: the number of the signal that has come to this process.
        requested: that of the signal by which the run was asked to stop.
    """

    def __init__(self, shared: bool = False) -> None:
        self.shared = shared
        self.heard: int | None = None
        self.requested: int | None = None
        self._heard_at = 0.0
        self._deferred = 0
        self._saved = False

    def agree(self, number: int) -> None:
        """Take note of what the processes of a run have heard: a signal's number, or 0."""
        self.requested = self.requested or number or None

    def ending(self) -> None:
        """The run is ending by itself: a signal changes nothing any more."""
        self._deferred += 1

    def saved(self) -> None:
        """All is saved, and who ends this process now does so by a signal: none is heard."""
        self._saved = True

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self.requested is not None:
            self._interrupt(self.requested)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Signals only set `requested` inside this block: its code checks where it can stop."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stop]:
        """Install the handlers and put the former ones back; a thread cannot, and then does not."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        former: dict[signal.Signals, Any] = {s: signal.getsignal(s) for s in STOP_SIGNALS}
        if former[signal.SIGHUP] is signal.SIG_IGN:  # as nohup has it
            del former[signal.SIGHUP]
        try:
            for number in former:
                signal.signal(number, self._handle)
            yield self
        finally:
            for number, handler in former.items():
                # None: it was installed outside Python and cannot be put back from here.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._saved:
            return
        if self.heard is not None:
            # Who signals all processes and their starter, which hands it on, means one signal.
            if self.shared and time.monotonic() - self._heard_at < _ONE_SIGNAL:
                return
            os._exit(128 + number)
        self.heard, self._heard_at = number, time.monotonic()
        if not self.shared:
            self.requested = number
        if not self._deferred:
            self._interrupt(number, at_once=True)

    def _interrupt(self, number: int, at_once: bool = False) -> None:
        told = f"stopped by {signal.Signals(number).name}; run the same command again to continue"
        raise Interrupted(number, told, at_once)
