"""Real processes that talk to each other over gloo, forked from the test's own."""

from __future__ import annotations

import datetime
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_CONTEXT = multiprocessing.get_context("fork")  # torch and transformers are loaded once
_WAIT = 240.0  # seconds; only a hang takes as long


def in_processes(count: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``function(group, *args)`` returns in each of ``count`` processes, by rank."""
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(count):
            ours, theirs = _CONTEXT.Pipe(duplex=False)
            arguments = (rank, count, str(Path(folder, "store")), theirs, function, args)
            process = _CONTEXT.Process(target=_work, args=arguments)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        try:
            answers = [_answer(pipe) for pipe in pipes]
        finally:
            for process in processes:
                process.join(timeout=60)
                if process.is_alive():
                    process.kill()
                    process.join()
    told = [answer for answer in answers if isinstance(answer, str)]
    assert not told, "\n".join(told)
    return [answer[0] for answer in answers]


def _answer(pipe: Any) -> Any:
    try:
        return pipe.recv() if pipe.poll(_WAIT) else "no answer"
    except EOFError:
        return "a process ended without a word"


def _work(
    rank: int, world: int, store: str, pipe: Any, function: Callable[..., Any], args: Any
) -> None:
    torch.set_num_threads(1)  # the threads of the process that was forked are not here
    try:
        dist.init_process_group(
            "gloo", store=dist.FileStore(store, world), rank=rank, world_size=world,
            timeout=datetime.timedelta(seconds=_WAIT),
        )  # fmt: skip
        answer: Any = [function(dist.group.WORLD, *args)]
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        answer = f"rank {rank}: {traceback.format_exc()}"
    pipe.send(answer)
