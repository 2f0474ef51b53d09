"""A finished run and a foreign adapter, measured again, on a random two-layer model."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from helpers.tiny_runs import make_config, make_model_folder, make_texts, result, write_unhashed
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from hylorada import config as configs
from hylorada.errors import ConfigError, DataError, DiskError
from hylorada.evaluation.measurements.lost_in_middle import LostInMiddle
from hylorada.loading.backbone import load_backbone
from hylorada.loading.finished_run import load_run
from hylorada.process.disk import exclusive
from hylorada.runner import measure
from hylorada.runner.evaluate import evaluate_run
from hylorada.runner.evaluate_adapter import evaluate_adapter
from hylorada.runner.run import run
from hylorada.settings.fingerprint import run_name

WINDOW = 320


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    return folder


@pytest.fixture(scope="module")
def trained(root):
    config = small(root)
    record = run(config)
    return config, record, root / "outputs" / "main" / run_name(config)


@pytest.fixture
def finished(trained, root):
    """A copy of the finished run that a test may change."""
    config, record, directory = trained
    copy = root / "outputs" / "main" / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(directory, copy)
    return config, record, copy


def small(root, **changes):
    return make_config(
        root,
        **{
            "length__max_length": WINDOW,
            "train__max_steps": 2,
            "train__micro_batch_size": 1,
            "eval__perplexity__conventions": ["blocks"],
            **changes,
        },
    )


def retrieval(config, **changes):
    config = configs.RunConfig(**{**vars(config), "eval": configs.EvalConfig("retrieval")})
    config.eval.perplexity.conventions = []
    lim = config.eval.lost_in_middle
    lim.enabled, lim.key_style, lim.examples, lim.depths = True, "hex", 3, [0.0, 0.5, 1.0]
    for name, value in changes.items():
        setattr(lim, name, value)
    return config


def test_new_numbers_are_added_and_older_ones_stay(finished, capsys):
    config, before, directory = finished
    record = evaluate_run(directory, retrieval(config))
    assert json.loads((directory / "result.json").read_text()) == record
    assert record["metrics"]["eval/ppl"] == before["metrics"]["eval/ppl"]
    assert record["metrics"]["lim/accuracy"]["prompts"] == 9
    assert "lim/accuracy@0.5" in record["base"]["extended"]
    assert record["base"]["extended"]["eval/ppl"] == before["base"]["extended"]["eval/ppl"]
    (entry,) = record["evaluations"]
    assert set(entry["eval"]) == {"lost_in_middle"}
    assert (entry["precision"], entry["device"]) == ("fp32", "cpu")
    assert entry["replaced"] == {}
    assert record["config"]["eval"]["perplexity"] == before["config"]["eval"]["perplexity"]
    assert record["config"]["eval"]["lost_in_middle"]["examples"] == 3
    last = json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["lim/accuracy@0"] == record["metrics"]["lim/accuracy@0"]["value"]
    out = capsys.readouterr().out
    assert "right answers by depth" in out
    assert "perplexity" not in out
    assert not list(directory.glob(".evaluation*"))


def test_depths_of_other_prompts_make_way_and_are_kept(finished):
    config, _, directory = finished
    first = evaluate_run(directory, retrieval(config))["metrics"]
    first = json.loads(json.dumps(first))
    record = evaluate_run(directory, retrieval(config, depths=[0.25, 1.0], seed=1))
    depths = {name for name in record["metrics"] if name.startswith("lim/accuracy@")}
    assert depths == {"lim/accuracy@0.25", "lim/accuracy@1"}
    replaced = record["evaluations"][1]["replaced"]
    assert replaced["lim/accuracy@0"] == first["lim/accuracy@0"]
    assert replaced["lim/accuracy"] == first["lim/accuracy"]


def test_what_the_run_measured_comes_out_the_same(finished):
    config, before, directory = finished
    record = evaluate_run(directory, config)
    value = record["metrics"]["eval/ppl"]["value"]
    assert value == pytest.approx(before["metrics"]["eval/ppl"]["value"], rel=1e-6)


def test_another_text_is_named_in_the_record(finished, tmp_path):
    config, before, directory = finished
    texts = make_texts(tmp_path / "texts")
    (texts / "test" / "2.txt").write_text("another text " * 40)
    dataset = dataclasses.replace(config.dataset, path=str(texts))
    record = evaluate_run(directory, configs.RunConfig(**{**vars(config), "dataset": dataset}))
    assert before["provenance"]["dataset"]["test"] == "texts test, 2 documents"
    assert record["provenance"]["dataset"] == {
        "train": "texts train, 6 documents",
        "test": "texts test, 3 documents",
    }
    hashes, former = (r["provenance"]["dataset_sha256"] for r in (record, before))
    assert hashes["train"] == former["train"]
    assert hashes["test"] == record["evaluations"][0]["text_sha256"] != former["test"]


def test_perplexities_of_two_texts_never_stand_in_one_record(trained, root, tmp_path):
    """What is measured on another text takes the place of every convention."""
    config = small(root, eval__perplexity__conventions=["blocks", "sliding"])
    before = run(config, tmp_path / "run")
    config.eval.perplexity.conventions = ["sliding"]
    same = evaluate_run(tmp_path / "run", config)
    assert set(same["metrics"]) == {"eval/ppl", "eval/ppl_sliding"}
    texts = make_texts(tmp_path / "texts")
    (texts / "test" / "0.txt").write_text("another text " * 40)
    config.dataset = dataclasses.replace(config.dataset, path=str(texts))
    record = evaluate_run(tmp_path / "run", config)
    assert set(record["metrics"]) == set(record["base"]["extended"]) == {"eval/ppl_sliding"}
    entry = record["evaluations"][1]
    assert entry["replaced"]["eval/ppl"] == before["metrics"]["eval/ppl"]
    assert entry["replaced_base"]["extended"]["eval/ppl"] == before["base"]["extended"]["eval/ppl"]


def test_a_failure_leaves_the_record_as_it_was(finished, monkeypatch):
    config, _, directory = finished
    before = (directory / "result.json").read_bytes()

    def fail(*_, **__):
        raise DataError("no")

    monkeypatch.setattr(LostInMiddle, "measure", fail)
    with pytest.raises(DataError):
        evaluate_run(directory, retrieval(config, seed=7))
    with exclusive(directory), pytest.raises(DiskError, match="in use"):
        evaluate_run(directory, config)
    assert (directory / "result.json").read_bytes() == before


def test_only_a_finished_run_is_measured(finished, tmp_path):
    config, record, _ = finished
    with pytest.raises(DataError, match=r"no result\.json"):
        evaluate_run(tmp_path / "none", config)
    write_unhashed(tmp_path, {**record, "status": "interrupted"})
    with pytest.raises(DataError, match="not finished"):
        evaluate_run(tmp_path, config)


def foreign(root, folder, peft_config):
    base = load_backbone(small(root).model, torch.device("cpu")).model
    model = get_peft_model(base, peft_config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(str(folder))
    return folder


def test_an_adapter_of_plain_peft_gets_a_record_of_its_own(root, tmp_path, monkeypatch):
    adapter = foreign(
        root,
        tmp_path / "plain lora",
        LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM"),
    )
    record = evaluate_adapter(adapter, small(root))
    directory = root / "outputs" / "main" / record["name"]
    assert result(directory) == record
    assert record["name"].startswith("adapter-plain-lora-")
    assert record["status"] == "ok"
    assert record["parameters"]["trainable"] == 2 * 2 * (32 + 96)
    assert record["metrics"]["eval/ppl"]["window"] == WINDOW
    assert record["metrics"]["eval/ppl"]["value"] != record["base"]["extended"]["eval/ppl"]["value"]
    monkeypatch.setattr(measure.Meter, "measure_all", None)
    assert evaluate_adapter(adapter, small(root)) == record  # measured already
    with pytest.raises(DataError, match="only measured"):
        load_run(directory, device="cpu")


def test_our_own_adapter_brings_its_range_with_it(trained, root):
    config, before, directory = trained
    record = evaluate_adapter(directory / "adapter", small(root))
    assert record["method"] == f"adapter-{run_name(config)}"
    expected = before["metrics"]["eval/ppl"]["value"]
    assert record["metrics"]["eval/ppl"]["value"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ConfigError, match="made for 320 tokens"):
        evaluate_adapter(directory / "adapter", small(root, length__max_length=400))


def test_a_damaged_adapter_or_one_of_another_shape_is_one_line(finished, root, tmp_path):
    config, record, directory = finished
    weights = directory / "adapter" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-7], whole[:5], b""):
        weights.write_bytes(damaged)
        for call in (
            lambda: load_run(directory, device="cpu"),
            lambda: evaluate_run(directory, config),
            lambda: evaluate_adapter(directory / "adapter", small(root)),
        ):
            with pytest.raises(DataError, match=r"adapter_model\.safetensors: damaged") as caught:
                call()
            assert "\n" not in str(caught.value)
    weights.write_bytes(whole)
    tensors = {
        name: tensor.flatten() if "lora_A" in name else tensor
        for name, tensor in load_file(weights).items()
    }
    save_file(tensors, weights)
    write_unhashed(directory, record)  # otherwise the change itself is found
    with pytest.raises(DataError, match="does not fit model") as caught:
        load_run(directory, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["renamed", "lacking", "extra"])
def test_a_file_whose_tensors_do_not_reach_the_model_is_measured_nowhere(
    finished, root, tmp_path, change
):
    config, record, directory = finished
    write_unhashed(directory, record)  # otherwise the change itself is found
    lora = LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    plain = foreign(root, tmp_path / "plain", lora)
    shutil.copytree(directory / "adapter", tmp_path / "whole")
    for folder, call in (
        (plain, lambda: evaluate_adapter(plain, small(root))),
        (directory / "adapter", lambda: load_run(directory, device="cpu")),
        (directory / "adapter", lambda: evaluate_run(directory, config)),
    ):
        weights = folder / "adapter_model.safetensors"
        tensors = load_file(weights)
        key = next(name for name in tensors if "h.1.attn.c_attn.lora_B" in name)
        wrong = key.replace("attn.c_attn", "attention.c_attn")
        if change != "lacking":
            tensors[wrong] = tensors[key].clone()
        if change != "extra":
            del tensors[key]
        save_file(tensors, weights)
        with pytest.raises(DataError) as caught:
            call()
        message = str(caught.value)
        assert caught.value.exit_code == 3
        assert str(folder) in message
        assert ("are not in the file" in message) == (change != "extra")
        assert (f"first {wrong}" in message) == (change != "lacking")
        shutil.copytree(tmp_path / "whole", directory / "adapter", dirs_exist_ok=True)


def test_what_is_no_adapter_or_cannot_be_measured_is_one_line(root, tmp_path):
    with pytest.raises(DataError, match=r"no adapter_config\.json.*save_pretrained wrote"):
        evaluate_adapter(tmp_path, small(root))
    (tmp_path / "run/adapter").mkdir(parents=True)
    (tmp_path / "run/adapter/adapter_config.json").write_text("{}")
    with pytest.raises(DataError, match=r"give its adapter=.*run/adapter, or measure .* by run="):
        evaluate_adapter(tmp_path / "run", small(root))
    prefix = foreign(
        root, tmp_path / "prefix", PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(ConfigError, match="virtual tokens"):
        evaluate_adapter(prefix, small(root))
