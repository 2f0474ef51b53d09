"""Every overlay runs for real: its own length, task, methods and measurements, for one step.

A scale that needs the hub or hours is brought down to the embedded base and its text; what an
overlay asks for at its full size is what `tests/test_compose.py` checks.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from hylorada import cli, compose
from hylorada.command_line.overrides import rewrite
from hylorada.config import RunConfig
from hylorada.settings.fingerprint import run_dir

OVERLAYS = sorted(file.stem for file in (compose.conf_dir() / "experiment").glob("*.yaml"))
SHORT = ("t1_ablation_512",)
SMALL = [
    "model=tiny", "dataset=stdlib", "dataset.max_documents=0", "track=off", "threads=1",
    "train.precision=fp32", "train.epochs=0", "train.max_steps=1", "train.micro_batch_size=1",
    "train.gradient_accumulation_steps=1", "train.lr=3e-3", "eval.perplexity.max_blocks=2",
    "eval.perplexity.max_tokens=0", "eval.lost_in_middle.examples=1",
    "eval.context_gain.places=1", "eval.harness.enabled=false",
    "group=all",  # what is the same run then is made once
]  # fmt: skip


def ends(words: list[str]) -> list[RunConfig]:
    """The first and the last cell of a sweep, which differ the most; or the run that it is."""
    with compose.opened_hydra() as hydra:
        master = compose.compose(hydra, rewrite(words), multirun=True)
        if not master.hydra.sweeper.params:
            return [compose.to_typed(compose.compose(hydra, rewrite(words)))]
        cells = [cell.config for cell in compose.cells(hydra, master)]
    return [cells[0], cells[-1]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.mark.parametrize(
    "overlay",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SHORT else pytest.mark.long)
        for name in OVERLAYS
    ],
)
def test_an_overlay_runs(overlay: str, root: Path) -> None:
    words = [f"experiment={overlay}", "seed=0"]
    full = ends(words)
    words += [*SMALL, f"output_root={root}"]
    if full[0].eval.perplexity.conventions:
        words.append("eval.perplexity.conventions=[blocks]")  # others ask for WikiText or PG-19
    elif full[0].eval.harness.enabled:
        words.append("eval.lost_in_middle.enabled=true")  # the harness asks for LongBench
    if full[0].train.mix:
        words += ["train.max_steps=2", "train.mix=0.5"]  # a step of each kind
    if full[0].method.s2_attn.full_share:
        words.append("train.max_steps=4")  # of which a quarter is one
    small = ends(words)
    if len(full) > 1:
        methods = ",".join(dict.fromkeys(config.method.name for config in full))
        words += ["-m", f"method={methods}", f"length={full[0].length.name}"]
        small = [dataclasses.replace(config, length=small[0].length) for config in small]
    assert cli.train(words) == 0
    for config in small:
        record = json.loads(Path(run_dir(config), "result.json").read_text())
        assert record["status"] == "ok"
        steps = 0 if config.method.name == "baseline" else config.train.max_steps
        assert record["training"]["steps"] == steps
        assert record["metrics"]
        for metric in record["metrics"].values():
            assert math.isfinite(metric["value"])
