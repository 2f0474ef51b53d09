"""Secrets in settings, words and environment, looked for in every file and stream of real runs."""

from __future__ import annotations

import json

import pytest
from helpers.commands import Into, run_command, words_of_a_run
from helpers.marks import on_request, slow
from helpers.tiny_runs import make_model_folder, make_texts

ENVIRONMENT = {
    "HF_TOKEN": "hf_envCANARYenvCANARYenv",
    "SOME_API_KEY": "env'CANARY\"with\\quotes",
    "DATABASE_PASSWORD": "CANARY-in-password",
    "DEPLOY_SECRET": "line one CANARY\nline two CANARY",
    "HF_ENDPOINT": "http://me:CANARYinURL@127.0.0.1:9",
    "http_proxy": "http://me:CANARYproxy@127.0.0.1:9",
    "WANDB_BASE_URL": "http://me:CANARYbase@127.0.0.1:9",
    "WANDB_API_KEY": "CANARY0f" * 5,
}
HEX = "c0ffee5c" * 5  # W&B keys were 40 hexadecimal digits
TAGS = ["hf_CANARY0123456789", "sk-CANARY-0123456789abc", HEX, "github_pat_CANARY0123456789abc"]
HUB = "'https://me:CANARYhub@hub.example/x?token=CANARYquery'"
SETTINGS = [
    f"track.tags=[{','.join(TAGS)}]",
    f"track.entity={HEX}",
    "track.project='Bearer CANARYbearer'",
    f"eval.harness.longbench_hub_id={HUB}",
    "+hydra.job.env_set.MY_TOKEN=CANARYenvset",
    "dataset.name=hf_CANARYname0",
    "train.name='said CANARY-in-password here'",  # the value of a variable
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("canaries")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    return folder


def found_in(folder):
    """File and surroundings of every canary."""
    marks = [b"CANARY", HEX.encode()]
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            found += [
                f"{path}: {data[max(data.index(m) - 60, 0) :][:160]!r}" for m in marks if m in data
            ]
    return found


def streams(root):
    return Into(root / "streams.out", root / "streams.err")


def directory_of(root, group):
    (found,) = (root / "outputs" / group).glob("lora-*-*-*")
    return found


@pytest.mark.parametrize("track", [*slow("offline"), *on_request("tensorboard")])
def test_a_sweep_a_measurement_and_a_report_show_none(root, track):
    words = words_of_a_run(root, f"track={track}", f"group={track}", *SETTINGS)
    fine = [*words, "seed=0"]
    assert run_command("train", ["-m", *fine], streams(root), **ENVIRONMENT) == 0
    directory = directory_of(root, track)
    record = json.loads((directory / "result.json").read_text())
    assert record["status"] == "ok"
    assert record["config"]["track"]["tags"] == ["***"] * 4
    assert (directory / ("wandb" if track == "offline" else "tensorboard")).is_dir()
    assert "CANARY" not in (directory / ".hydra" / "overrides.yaml").read_text()
    measure = [f"run={directory}", f"track={track}", SETTINGS[0], "eval.perplexity.max_blocks=1"]
    assert run_command("eval", measure, streams(root), **ENVIRONMENT) == 0
    assert run_command("report", [str(directory)], streams(root), **ENVIRONMENT) == 0
    assert found_in(root) == []


def test_failures_show_none(root):
    failing = words_of_a_run(
        root, "dataset=wikitext2", "dataset.path=''", f"dataset.hub_id={HUB}", "group=failing",
        *SETTINGS,
    )  # fmt: skip
    wrong = ["track.token=CANARY", "+api_key=CANARY", "track.tags=[CANARY", "--token=CANARY0123"]
    assert run_command("train", failing, streams(root), **ENVIRONMENT) == 3
    assert "***" in (directory_of(root, "failing") / "run.log").read_text()
    for word in wrong:
        assert run_command("train", [word], streams(root), **ENVIRONMENT) == 2
    text = (root / "streams.err").read_text()
    assert "hylorada-train: error:" in text
    assert found_in(root) == []


@pytest.mark.slow
def test_a_killed_run_continues_with_the_true_values(root):
    words = words_of_a_run(root, "group=killed", "train.save_every=1", *SETTINGS[:-1])
    died = {"HYLORADA_FAULT": "after_step:2", **ENVIRONMENT}
    assert run_command("train", words, streams(root), **died) == -9
    state = (
        directory_of(root, "killed") / "checkpoints" / "step-00000002" / "state.json"
    ).read_text()
    assert json.loads(state)["identity"]["config"]["dataset"]["name"] == "***"
    assert run_command("train", words, streams(root), **ENVIRONMENT) == 0
    assert "continuing from step 2" in (directory_of(root, "killed") / "run.log").read_text()
    assert found_in(root) == []
