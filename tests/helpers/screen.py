"""A command under a real pseudo-terminal, and what a person sees of it, by a terminal emulation."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Sequence
from pathlib import Path

import pyte

_PIECES = re.compile(rb"(?<=\n)|(?=\r(?!\n))")


def watch(
    command: Sequence[str],
    *,
    columns: int = 100,
    rows: int = 24,
    environment: dict[str, str] | None = None,
    folder: Path | None = None,
) -> tuple[int, list[str], list[list[str]]]:
    """Run a command on a terminal of its own.

    Returns:
        Its exit code, all lines at the end (those that have scrolled away, too), and the screen as
        it was after each line and before each return to the beginning of one: also where this
        process was late, and read at once what was drawn and taken away again.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", **(environment or {})}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=folder,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.5)
    stream = pyte.ByteStream(screen)
    seen: list[list[str]] = []
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        for piece in _PIECES.split(data):
            stream.feed(piece)
            seen.append([line.rstrip() for line in screen.display])
    os.close(ours)
    above = [
        "".join(line[column].data for column in range(columns)).rstrip()
        for line in screen.history.top
    ]
    lines = above + [line.rstrip() for line in screen.display]
    while lines and not lines[-1]:
        lines.pop()
    return process.wait(), lines, seen
