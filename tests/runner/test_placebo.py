"""A placebo in real runs: the numbers of the arm that it contains, and what is told of it."""

from __future__ import annotations

import json

import pytest
from helpers.marks import on_request, slow
from helpers.tiny_runs import make_config, make_model_folder, make_texts, result
from safetensors.torch import load_file

from hylorada.commands.report import main as report
from hylorada.errors import ConfigError
from hylorada.runner.run import run
from hylorada.settings import check_settings


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("placebo")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    return folder


def arm(root, name, parts, *, placebo=False, **changes):
    config = make_config(
        root, method__name=name, method__placebo=placebo, method__train_embeddings="false",
        method__train_norms="false", eval__perplexity__conventions=["blocks"],
        train__max_steps=6, **changes,
    )  # fmt: skip
    method = config.method
    method.position_bias.enabled = method.landmark.enabled = parts
    method.s2_attn.enabled = "false"
    return config


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("frozen_kernels", [*slow(True), *on_request(False)])
def test_trained_it_gives_the_bits_of_the_arm_without_its_components(root, capsys, frozen_kernels):
    folder = root / f"kernels-{frozen_kernels}"
    changes = {"train__frozen_kernels": frozen_kernels, "train__max_grad_norm": 0.0}
    arms = {
        "rslora": arm(root, "rslora", "false", **changes),
        "rslora_placebo": arm(root, "rslora_placebo", "true", placebo=True, **changes),
    }
    for name, config in arms.items():
        run(config, folder / name)
    nested, placebo = (folder / name for name in arms)
    for first, second in zip(*map(lines, (nested, placebo)), strict=True):
        # Over more tensors, of which some are zero: float32 sums in another order.
        norms = [line.pop("train/grad_norm", 1.0) for line in (first, second)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-6)
        assert first == second
    found = [load_file(d / "adapter/adapter_model.safetensors") for d in (nested, placebo)]
    assert found[0].keys() < found[1].keys()
    assert all(found[0][name].equal(found[1][name]) for name in found[0])

    record = result(placebo)
    assert record["parameters"]["placebo"] == ["position_bias", "landmark"]
    assert record["parameters"]["by_group"]["landmark"] > 0
    assert record["integrity"]["checks"]["placebo"]["value"] == 0.0
    assert "placebo" not in result(nested)["parameters"]
    capsys.readouterr()
    assert report([str(folder), "--reference", "rslora"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "rslora_placebo is a control: position bias and landmarks are attached" in shown
    (table,) = json.loads((folder / "report/table.json").read_text())
    row = next(r for r in table["sections"][0]["rows"] if r["method"]["text"] == "rslora_placebo")
    assert row["trained_position_bias"]["text"] == "65 (placebo)"
    assert row["change_reference"]["value"] == 0.0
    assert row["params_per_percent"]["value"] is None  # parameters that gain nothing have no price


def test_a_placebo_of_nothing_is_refused(root):
    with pytest.raises(ConfigError, match="placebo=true has no effect without"):
        check_settings(arm(root, "rslora", "false", placebo=True))
