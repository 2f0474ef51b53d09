"""The commands that the paper and its README print give runs that are valid, and can be run."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.marks import LONG, SLOW, thinned

from hylorada import compose
from hylorada.command_line.overrides import rewrite
from hylorada.config import RunConfig
from hylorada.settings import check_settings

ROOT = Path(__file__).parents[1]
PAPER = {
    "ablation": "test_ablation_proper.py --num_train 500 --epochs 1",
    "landmarks": "test_landmarks.py --epochs 1 --num_train 500",
    "2k": (
        "run_benchmark.py --dataset longbench --max_length 2048 --methods lora hylorada "
        "--train_embeddings --rope_scaling_type linear --rope_scaling_factor 2.0 --epochs 3"
    ),
    "4k": (
        "run_benchmark.py --dataset longbench --max_length 4096 --methods lora hylorada --s2_attn "
        "--train_embeddings --train_norms --rope_scaling_type linear --rope_scaling_factor 4.0 "
        "--epochs 3"
    ),
    "8k": (
        "run_benchmark.py --dataset pg19 --max_length 8192 --methods lora hylorada --s2_attn "
        "--train_embeddings --train_norms --rope_scaling_type yarn --rope_scaling_factor 8.0 "
        "--batch_size 1 --grad_accum 32 --epochs 1"
    ),
}


def script(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Start a script as a user does."""
    name, *words = shlex.split(command)
    # The package of this checkout, whatever is installed.
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / name), *words],
        cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def composed(line: str) -> list[RunConfig]:
    """The runs of a printed command; of several seeds the first."""
    program, *words = shlex.split(line)
    assert program == "hylorada-train"
    with compose.opened_hydra() as hydra:
        if "-m" not in words:
            return [compose.to_typed(compose.compose(hydra, rewrite(words)))]
        asked = rewrite([*(word for word in words if word != "-m"), "seed=0"], multirun=True)
        master = compose.compose(hydra, asked, multirun=True)
        return [cell.config for cell in compose.cells(hydra, master)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[RunConfig]]:
    folder = tmp_path_factory.mktemp("scripts")
    found = {}
    for name, command in PAPER.items():
        done = script(f"{command} --print", folder)
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if line.startswith("hylorada-train")]
        found[name] = [config for line in lines for config in composed(line)]
    return found


def test_each_printed_command_is_valid_and_of_the_papers_setting(
    runs: dict[str, list[RunConfig]],
) -> None:
    for configs in runs.values():
        for config in configs:
            check_settings(config)
            assert config.model.path == "openai-community/gpt2"
            assert (config.train.lr, config.train.precision) == (2e-4, "bf16")
            assert config.train.gradient_checkpointing


@pytest.mark.parametrize(("name", "length"), [("2k", 2048), ("4k", 4096), ("8k", 8192)])
def test_the_benchmark_runs_the_methods_that_are_named(
    runs: dict[str, list[RunConfig]], name: str, length: int
) -> None:
    lora, hylorada = runs[name]
    assert (lora.method.name, hylorada.method.name) == ("lora", "hylorada")
    for config in (lora, hylorada):
        assert config.length.max_length == length
        assert config.train.epochs == (1 if name == "8k" else 3)
        batch = (config.train.micro_batch_size, config.train.gradient_accumulation_steps)
        assert batch == ((1, 32) if name == "8k" else (4, 16))
        assert config.dataset.name == ("pg19" if name == "8k" else "wikitext103")
        assert config.eval.harness.enabled == (name != "8k")
    long = "false" if name == "2k" else "true"
    assert hylorada.method.s2_attn.enabled == hylorada.method.train_norms == long
    assert hylorada.method.train_embeddings == "true"
    assert lora.method.s2_attn.enabled == lora.method.train_norms == "false"


def test_the_number_of_sequences_is_the_budget(runs: dict[str, list[RunConfig]]) -> None:
    for name, length in (("ablation", 512), ("landmarks", 2048)):
        for config in runs[name]:
            assert config.length.max_length == length
            assert (config.train.max_tokens, config.train.epochs) == (500 * (length - 1), 0)
    assert "sequence_mean" in {config.method.landmark.pooling for config in runs["landmarks"]}


def test_rope_flags_reach_a_model_that_has_it_and_are_named_where_nothing_has(
    tmp_path: Path,
) -> None:
    words = "run_benchmark.py --print --methods lora --rope_scaling_type yarn"
    with_rope = script(f"{words} --rope_scaling_factor 2 --model pythia-160m", tmp_path)
    (config,) = composed(with_rope.stdout.splitlines()[-1])
    position_range = config.method.position_range
    assert (position_range.rope_type, position_range.rope_factor) == ("yarn", 2)
    without = script(words, tmp_path)
    assert "gpt2 has no RoPE" in without.stdout
    assert "rope" not in without.stdout.splitlines()[-1]


@pytest.mark.parametrize("name", ["run_benchmark.py", "test_landmarks.py"])
def test_a_wrong_word_is_refused(tmp_path: Path, name: str) -> None:
    done = script(f"{name} --epohcs=3 --print", tmp_path)
    assert done.returncode == 2
    assert "cannot read --epohcs=3" in done.stderr


@pytest.mark.parametrize(
    ("command", "methods"),
    thinned([
        ("run_benchmark.py --methods baseline lora --max_length 128 --batch_size 2 --grad_accum 1 "
         "--epochs 0 --model tiny --dataset stdlib train.max_steps=1", {"baseline", "lora"}),
        ("test_ablation_proper.py --num_train 2 --epochs 1 method=lora,rslora_landmark seed=0 "
         "length=128", {"lora", "rslora_landmark"}),
        ("test_landmarks.py --num_train 2 --epochs 1 seed=0 length=128",
         {"hylorada_no_landmark", "hylorada_leaky_landmark"}),
    ], 3, often=SLOW, seldom=LONG),
    ids=["benchmark", "ablation", "landmarks"],
)  # fmt: skip
def test_a_script_runs(tmp_path: Path, command: str, methods: set[str]) -> None:
    small = (
        "model=tiny dataset=stdlib train.micro_batch_size=1 train.gradient_accumulation_steps=1 "
        "train.precision=fp32 track=off eval=quick eval.perplexity.max_blocks=2 threads=1"
    )
    done = script(f"{command} {small}", tmp_path)
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert {record["method"] for record in records} == methods
    assert {record["status"] for record in records} == {"ok"}
