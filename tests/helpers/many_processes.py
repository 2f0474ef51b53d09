"""Runs of several processes: as commands, started, watched and signalled; and quicker, forked.

The forked ones find one another by the environment, as if torchrun had started them, and nobody
watches them.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.tiny_runs import LENGTH, finish, launch, make_config, outcome, result
from hylorada.config import RunConfig

TRAIN = "import sys; from hylorada import cli; sys.exit(cli.train())"
EVALUATE = TRAIN.replace("cli.train", "cli.evaluate")
_HERE = Path(__file__).parent
SECONDS = 280.0
PORTS = (10_000, 15_000)
"""Below those of jobs of SLURM (`process.place`), and those that Linux deals out."""


def words(root: Path, output: Path, *more: str) -> list[str]:
    """What a user types: every component trains, four micro-batches a step, two parts measured."""
    return [
        "length=512", f"length.max_length={LENGTH}", f"model={root}/model",
        "dataset=local", f"dataset.path={root}/texts", f"dataset.cache_dir={root}/cache",
        "eval=quick", "eval.perplexity.max_blocks=7", "train.max_steps=6", "method=hylorada",
        "method.position_bias.enabled=true", "method.landmark.enabled=true",
        "method.s2_attn.enabled=true", "method.s2_attn.group_size=32",
        "method.train_embeddings=true", "method.train_norms=true",
        "train.micro_batch_size=1", "train.gradient_accumulation_steps=4", "train.save_every=2",
        "train.eval_every=3", "train.lr=1e-2", "eval.lost_in_middle.enabled=false",
        "eval.short_context.max_blocks=3", "threads=1", "track=off", f"output_root={output}",
        "group=g", *more,
    ]  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    paths = [str(_HERE / "in_one_process"), *sys.path]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RANK", "WORLD_"))}
    return {
        **kept, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **more,
    }  # fmt: skip


def start(command: list[str], log: Path, **more: str) -> subprocess.Popen[bytes]:
    """A command in a group of its own, its streams in a file."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=file, env=environment(**more), start_new_session=True
        )


def train(words: list[str], log: Path, **more: str) -> subprocess.Popen[bytes]:
    return start([sys.executable, "-c", TRAIN, *words], log, **more)


def ended(process: subprocess.Popen[bytes], seconds: float = SECONDS) -> int:
    """Its exit code, negative for a signal that ended it."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        raise


def ranks_of(parent: int) -> dict[int, int]:
    """The processes of a run that this one has started: rank -> process id."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            stat = (path / "stat").read_text().rpartition(")")[2].split()
            variables = (path / "environ").read_bytes().split(b"\0")
            ranks = [int(v[5:]) for v in variables if v.startswith(b"RANK=")]
            if int(stat[1]) == parent and stat[0] != "Z" and ranks:
                found[ranks[0]] = int(path.name)
    return found


def wait_until(what: Callable[[], bool], seconds: float = SECONDS) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether a process has ended, or is only waiting to be noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def run_directory(output: Path) -> Path:
    """The one run in a folder."""
    (found,) = (p for p in (output / "g").iterdir() if p.is_dir() and p.name[0] != ".")
    return found


def lines(output: Path) -> int:
    """Lines of metrics.jsonl so far."""
    with contextlib.suppress(OSError, ValueError):
        return (run_directory(output) / "metrics.jsonl").read_bytes().count(b"\n")
    return 0


def forked_config(root: Path, output: Path, **changes: Any) -> RunConfig:
    """A run that trains every component by four micro-batches a step, with a cache of its own."""
    return make_config(
        root,
        **{
            "output_root": str(output), "method__lora__lora_dropout": 0.0,
            "train__micro_batch_size": 1, "train__gradient_accumulation_steps": 4,
            "train__max_steps": 6, "train__save_every": 2, "train__eval_every": 3,
            "eval__perplexity__max_blocks": 7, "eval__short_context__max_blocks": 3, **changes,
        },
    )  # fmt: skip


def fork(config: RunConfig, directory: Path, world: int, **environment: str) -> list[Any]:
    """Start the processes of a run."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    if world == 1:
        return [launch(config, directory, **environment)]
    port = free_port()
    return [
        launch(
            config, directory, RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port), **environment,
        )
        for rank in range(world)
    ]  # fmt: skip


def run_forked(
    config: RunConfig, directory: Path, world: int, **environment: str
) -> tuple[int, ...]:
    """Run to the end, whichever it is; the exit codes by rank."""
    return tuple(finish(each, SECONDS) for each in fork(config, directory, world, **environment))


def left_by(directory: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The bytes and the numbers of a run, which may not depend on its processes."""
    record = result(directory)
    assert record["status"] == "ok"
    assert not list(directory.glob(".evaluation*"))
    numbers = {key: record[key] for key in ("metrics", "base", "fingerprint")}
    # A card tells of versions and times.
    numbers["files"] = {k: v for k, v in record["files"].items() if not k.endswith("README.md")}
    return outcome(directory), numbers


def finished_by_command(root: Path, output: Path, *more: str, log: str = "log") -> Any:
    """What a command to its end leaves that may depend on nothing."""
    output.mkdir(exist_ok=True)
    process = train(words(root, output, *more), output / log)
    assert ended(process) == 0, (output / log).read_text()
    return left_by(run_directory(output))


def free_port() -> int:
    """A port that nobody has, of those that the system gives to nobody who asks for any port.

    It is used seconds later, by another process; until then whoever connects to something could
    have been given any other one.
    """
    drawn = random.SystemRandom()  # not as the other test process, which has the same seeds
    while True:
        port = drawn.randrange(*PORTS)
        with socket.socket() as server, contextlib.suppress(OSError):
            server.bind(("127.0.0.1", port))
            return port
