"""The commands: hylorada-train, hylorada-eval, hylorada-report, hylorada-export, hylorada-fetch.

Torch is imported only by a run that starts. Standard output carries results (the directory of each
run, a table); everything else goes to standard error. Whatever a user can cause ends in one line
and the exit code of `errors`.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from hylorada.commands import evaluate as evaluate_command
from hylorada.commands import export as export_command
from hylorada.commands import fetch as fetch_command
from hylorada.commands import train as train_command
from hylorada.commands.job import Stopped
from hylorada.commands.terminal_lines import complain
from hylorada.errors import HyloradaError
from hylorada.process.disk import ELSEWHERE, unforeseen_disk_error
from hylorada.process.redaction import remember
from hylorada.process.terminal import lasting_terminal


def train(argv: Sequence[str] | None = None) -> int:
    """``hylorada-train``: one run, or with ``-m`` every combination. Returns the exit code."""
    return _guarded("hylorada-train", train_command.main, argv)


def evaluate(argv: Sequence[str] | None = None) -> int:
    """``hylorada-eval``: measure a finished run or an adapter. Returns the exit code."""
    return _guarded("hylorada-eval", evaluate_command.main, argv)


def report(argv: Sequence[str] | None = None) -> int:
    """``hylorada-report DIR...``: tables and figures from records. Returns the exit code."""

    def call(words: list[str]) -> int:
        from hylorada.commands import report as report_command  # it loads what draws pictures

        return report_command.main(words)

    return _guarded("hylorada-report", call, argv)


def export(argv: Sequence[str] | None = None) -> int:
    """``hylorada-export run=DIR``: a finished run as files for others. Returns the exit code."""
    return _guarded("hylorada-export", export_command.main, argv)


def fetch(argv: Sequence[str] | None = None) -> int:
    """``hylorada-fetch NAME``: a base model into the user's cache. Returns the exit code."""
    return _guarded("hylorada-fetch", fetch_command.main, argv)


def _guarded(program: str, call: Callable[[list[str]], int], argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    with lasting_terminal():
        remember({key.lstrip("+-"): value for key, _, value in (w.partition("=") for w in words)})
        try:
            return call(words)
        except HyloradaError as error:
            complain(program, str(error))
            return error.exit_code
        except Stopped as stop:
            code, message = stop.args
            complain(program, message)
            return code
        except KeyboardInterrupt:
            complain(program, "interrupted")
            return 130
        except Exception as error:
            known = unforeseen_disk_error(error, Path(), ELSEWHERE)
            if known is not None:
                complain(program, str(known))
                return known.exit_code
            traceback.print_exc()
            complain(program, f"{type(error).__name__}: {error} (a bug in hylorada)")
            return 1
