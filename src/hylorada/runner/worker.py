"""One of the processes that `launch` has started: `python -m hylorada.runner.worker`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from hylorada.config import from_dict
from hylorada.errors import HyloradaError
from hylorada.process.beside import end_with
from hylorada.process.redaction import redacted_text

TASK = "HYLORADA_TASK"
"""The environment variable that says what to do, as JSON."""


def main() -> int:
    """Train or measure as `TASK` says; returns the exit code.

    An error is written where torch's agent looks for it.
    """
    task = json.loads(os.environ.pop(TASK))
    # Its directory is free at that moment: nothing may go on there.
    end_with(task["parent"], signal.SIGKILL)
    try:
        config, directory = from_dict(task["config"]), task["directory"]
        if task["kind"] == "train":
            from hylorada.runner.run import run

            run(config, directory, held=True)
        else:
            from hylorada.runner.evaluate import evaluate_run

            evaluate_run(directory, config, task["chosen"], held=True)
    except HyloradaError as error:
        _tell(str(error))
        return error.exit_code
    except Exception as error:  # its traceback is in run.log
        _tell(f"{type(error).__name__}: {error}")
        return 1
    return 0


def _tell(why: str) -> None:
    with contextlib.suppress(OSError, KeyError):
        told = {"message": redacted_text(" ".join(why.split())), "timestamp": str(int(time.time()))}
        Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
