"""Stopping on a signal where the run's state is whole.

SIGTERM, SIGINT and SIGUSR1 ask the run to stop. Inside `deferred()` (training, evaluation) the run
itself looks at `requested` at each step or batch boundary; elsewhere, where nothing is lost, the
handler raises at once. A second signal ends the process without waiting for anything. SIGHUP, the
loss of the terminal, stops nothing: see `process.terminal`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from hylorada.errors import Interrupted

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stop:
    """Whether, and by which signal, the run was asked to stop."""

    def __init__(self) -> None:
        self.requested: int | None = None  # signal number
        self._deferred = 0

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self.requested is not None:
            name = signal.Signals(self.requested).name
            raise Interrupted(
                self.requested, f"stopped by {name}; run the same command again to continue"
            )

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
        try:
            for number in STOP_SIGNALS:
                signal.signal(number, self._handle)
            yield self
        finally:
            for number, handler in former.items():
                # None: it was installed outside Python and cannot be put back from here.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.requested is not None:
            os._exit(128 + number)
        self.requested = number
        if not self._deferred:
            self.check()
