"""Points at which a test may kill the process, to prove that the same command continues exactly.

`HYLORADA_FAULT=after_step:7` sends SIGKILL to the process right after optimizer step 7. Without the
variable nothing happens. Points: mid_step, after_step, before_checkpoint, inside_checkpoint,
after_checkpoint (with the step's number), inside_evaluation (with the number of batches or prompts
of a part), before_evaluation, before_record (with 0).
"""

from __future__ import annotations

import os
import signal


def fault_point(name: str, number: int = 0) -> None:
    """Die here, as by `kill -9`, if the environment asks for this point and number."""
    if os.environ.get("HYLORADA_FAULT") == f"{name}:{number}":
        os.kill(os.getpid(), signal.SIGKILL)
