"""Points at which a test may send the process a signal, to prove that the same command continues.

`HYLORADA_FAULT=after_step:7` kills the process (SIGKILL) right after optimizer step 7,
`HYLORADA_FAULT=after_step:7:SIGTERM` asks it to stop there; of several processes
`HYLORADA_FAULT_RANK=1` means the second one alone. Without the variable nothing happens.
Points: mid_step, after_step, before_checkpoint, inside_checkpoint, after_checkpoint (with the
step's number), inside_evaluation (with the number of batches or prompts of a part), inside_text
(with the number of batches of documents), before_evaluation, before_record (with 0).
"""

from __future__ import annotations

import os
import signal


def fault_point(name: str, number: int = 0) -> None:
    """Send the signal here if the environment asks for this point and number."""
    point, _, chosen = os.environ.get("HYLORADA_FAULT", "").partition(":SIG")
    if point != f"{name}:{number}":
        return
    rank = os.environ.get("RANK", "0")
    if os.environ.get("HYLORADA_FAULT_RANK", rank) == rank:
        os.kill(os.getpid(), signal.Signals[f"SIG{chosen or 'KILL'}"])
