"""`make reproduce` and the targets of tables: which overlays they run, told by make itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hylorada import compose

ROOT = Path(__file__).parents[1]
OVERLAYS = {file.stem for file in (compose.conf_dir() / "experiment").glob("*.yaml")}
TABLES = [f"table-t{number}" for number in range(1, 10)]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def asked(target: str, *variables: str) -> subprocess.CompletedProcess[str]:
    """What make would do, the set-up aside."""
    words = ["make", "-n", "-o", "setup", target, *variables]
    # under `make test` a child make inherits MAKEFLAGS and MAKELEVEL, and would name its directory
    env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def overlays(text: str) -> list[str]:
    """The overlays that the printed commands run; what only plans is left out."""
    commands = [line for line in text.splitlines() if "dry_run=" not in line]
    named = re.findall(r"experiment=([\w,]+)", "\n".join(commands))
    return [name for names in named for name in names.split(",")]


@pytest.mark.parametrize(
    ("scale", "prefix"), [("tiny", ""), ("smollm2", "smollm2_"), ("gpt2", "gpt2_")]
)
def test_reproduce_runs_every_table_of_a_scale_and_reports_them(scale: str, prefix: str) -> None:
    done = asked("reproduce", f"SCALE={scale}")
    assert done.returncode == 0
    wanted = {name for name in OVERLAYS if re.match(rf"{prefix}t\d_", name)}
    assert sorted(overlays(done.stdout)) == sorted(wanted)
    folder = {"tiny": "outputs/tables"}.get(scale, f"outputs/tables_{scale}")
    assert f"hylorada-report {folder} " in done.stdout
    plan = f"experiment={','.join(sorted(wanted))} dry_run="
    assert done.stdout.count(plan) == (scale == "gpt2")  # first of all, where it takes days
    assert plan in asked("plan", f"SCALE={scale}").stdout
    with compose.opened_hydra() as hydra:
        for name in (min(wanted), max(wanted)):  # the groups of all are in presets.json
            config = compose.to_typed(compose.compose(hydra, [f"experiment={name}"]))
            assert f"{config.output_root}/{config.group}" == folder


@pytest.mark.parametrize("scale", ["tiny", "smollm2", "gpt2"])
@pytest.mark.parametrize("table", TABLES)
def test_each_table_is_a_target(table: str, scale: str) -> None:
    done = asked(table, f"SCALE={scale}", "WORDS=seed=7")
    assert done.returncode == 0
    if table == "table-t5":
        assert re.search(r"benchmarks/(step|gpu).py --", done.stdout)
    else:
        own = {"4": "2", "6": "2", "7": "2"}.get(table[-1], table[-1])
        found = overlays(done.stdout)
        assert any(re.match(rf"(smollm2_|gpt2_)?t{own}_", name) for name in found)
        assert set(found) <= OVERLAYS
        assert len(re.findall(r"experiment=[\w,]+ seed=7 \|\|", done.stdout)) == 1


@pytest.mark.parametrize("scale", ["tiny", "smollm2", "gpt2"])
def test_table_2_at_each_methods_own_rate_is_a_target(scale: str) -> None:
    done = asked("table-t2-best", f"SCALE={scale}", "WORDS=seed=7")
    assert done.returncode == 0
    prefix = "" if scale == "tiny" else f"{scale}_"
    folder = "outputs/tables_best" if scale == "tiny" else f"outputs/tables_{scale}_best"
    trained, chosen, reported = done.stdout.splitlines()
    assert trained.endswith(f"-m experiment={prefix}rates_t2_4k seed=7") or "launcher" in trained
    assert f"hylorada-eval chosen={folder} select=train.lr eval=" in chosen
    assert reported.endswith(f"hylorada-report {folder} --select train.lr")
    with compose.opened_hydra() as hydra:
        words = [f"experiment={prefix}rates_t2_4k"]
        config = compose.to_typed(compose.compose(hydra, words))
        main = compose.to_typed(compose.compose(hydra, [f"experiment={prefix}t2_main_4k"]))
    assert f"{config.output_root}/{config.group}" == folder
    assert config.eval.perplexity.split == "validation"
    assert (config.train, config.length) == (main.train, main.length)


def test_a_scale_that_there_is_not_is_refused() -> None:
    done = asked("reproduce", "SCALE=huge")
    assert done.returncode != 0
    assert "SCALE=huge: choose tiny, smollm2 or gpt2" in done.stderr
    assert not done.stdout
