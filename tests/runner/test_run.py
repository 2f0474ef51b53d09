"""Whole runs in this process, on a random two-layer model."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import warnings

import pytest
import torch
from helpers.patience import wait_long_for_trackers
from helpers.tiny_runs import (
    LENGTH,
    STEPS,
    make_config,
    make_model_folder,
    make_texts,
    result,
    write_unhashed,
)
from peft import PeftModel

import hylorada
from hylorada import config as configs
from hylorada.data.token_corpus import load_token_corpus
from hylorada.errors import ConfigError, DataError, DiskError, DivergedError, IntegrityError
from hylorada.evaluation import perplexity
from hylorada.evaluation.perplexity import evaluate_perplexity
from hylorada.loading.backbone import load_backbone
from hylorada.loading.finished_run import load_run
from hylorada.process.disk import exclusive
from hylorada.records.metric_names import PERPLEXITIES
from hylorada.runner import measure
from hylorada.runner import run as run_module
from hylorada.runner.run import run
from hylorada.settings.fingerprint import fingerprint, run_name


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    return folder


@pytest.fixture(scope="module")
def done(root):
    """One run with every component, W&B offline."""
    config = make_config(root, track__kind="offline")
    with pytest.MonkeyPatch.context() as patch:
        wait_long_for_trackers(patch)
        record = run(config)
    return config, record, root / "outputs" / "main" / run_name(config)


@pytest.fixture(scope="module")
def baseline(root):
    config = make_config(root, method=baseline_method())
    return config, run(config), root / "outputs" / "main" / run_name(config)


def baseline_method():
    method = configs.MethodConfig(name="baseline", train_embeddings="false", train_norms="false")
    method.lora.enabled = False
    for part in (method.position_bias, method.landmark, method.s2_attn):
        part.enabled = "false"
    return method


def test_the_record_holds_what_the_run_was_and_found(done):
    config, record, directory = done
    assert json.loads((directory / "result.json").read_text()) == record
    assert (record["status"], record["error"]) == ("ok", None)
    assert (record["method"], record["length"], record["seed"]) == ("hylorada", LENGTH, 0)
    assert record["fingerprint"] == fingerprint(config)
    training = record["training"]
    assert training["steps"] == STEPS
    assert training["tokens"] == STEPS * 4 * (LENGTH - 1)
    assert training["tokens_per_second"] == pytest.approx(training["tokens"] / training["seconds"])
    assert training["peak_memory_bytes"] > 50 * 2**20
    assert (training["precision"], training["device"]) == ("fp32", "cpu")
    assert record["integrity"]["ok"] is True
    assert json.loads((directory / "integrity.json").read_text()) == record["integrity"]
    groups = record["parameters"]["by_group"]
    assert set(groups) == {"lora", "position_bias", "landmark", "position_embeddings", "norms"}
    assert record["parameters"]["trainable"] == sum(groups.values())
    assert set(record["provenance"]["dataset_sha256"]) == {"train", "test"}
    assert record["provenance"]["dataset"] == {
        "train": "texts train, 6 documents",
        "test": "texts test, 2 documents",
    }
    assert len(record["provenance"]["base_model_sha256"]) == 64
    for metric in record["metrics"].values():
        assert metric["window"] == LENGTH
        assert metric["split"] == "test"


def test_the_record_says_what_each_phase_took(done):
    _, record, directory = done
    seconds = result(directory)["seconds"]
    assert list(seconds) == [
        "preflight", "text", "load", "gate", "base", "training", "evaluation"
    ]  # fmt: skip
    assert all(value > 0 for value in seconds.values())
    assert seconds["training"] >= record["training"]["seconds"]


def test_a_run_whose_time_is_over_is_done_and_says_what_ended_it(done, root):
    assert "ended_by" not in done[1]["training"]
    config = make_config(root, train__max_seconds=1e-9, integrity__enabled=False)
    record = run(config)
    assert (record["status"], record["training"]["ended_by"]) == ("ok", "seconds")
    assert record["training"]["steps"] == 1
    assert set(record["metrics"]) == set(done[1]["metrics"])
    assert run(config) == record


def test_both_measurements_of_the_base_score_the_same_tokens_as_the_run(done):
    _, record, _ = done
    own = record["base"]["own_window"]["eval/ppl_sliding"]
    extended = record["base"]["extended"]
    assert (own["window"], own["convention"]) == (64, "sliding")
    assert set(extended) == set(record["metrics"]) == {"eval/ppl", "eval/ppl_sliding"}
    assert extended["eval/ppl"]["window"] == LENGTH
    assert len({m["tokens"] for m in (own, *extended.values(), *record["metrics"].values())}) == 1


def test_the_base_measured_is_the_untouched_one(done, root):
    config, record, _ = done
    base = load_backbone(config.model, torch.device("cpu"))
    corpus = load_token_corpus(config.dataset, "test", base.tokenizer)
    settings = configs.PerplexityConfig(conventions=["sliding"])
    found = evaluate_perplexity(base.model, corpus.documents, settings, 64, cover=LENGTH)
    expected = record["base"]["own_window"]["eval/ppl_sliding"]["value"]
    assert found["sliding"].ppl == pytest.approx(expected, rel=1e-5)  # other kernels, float32


def test_metrics_end_with_the_evaluation_and_the_curve_falls(done):
    _, record, directory = done
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1] == {
        "step": STEPS,
        **{name: metric["value"] for name, metric in record["metrics"].items()},
    }
    losses = [line["train/loss"] for line in lines[:-1]]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]
    assert record["training"]["final_loss"] == losses[-1]
    value = record["metrics"]["eval/ppl"]["value"]
    assert value < record["base"]["extended"]["eval/ppl"]["value"]


def test_wandb_files_lie_in_the_run_directory(done):
    assert list(done[2].glob("wandb/offline-run-*/run-*.wandb"))


def test_a_second_call_runs_nothing_and_says_so(done, capsys, monkeypatch):
    config, record, directory = done
    monkeypatch.setattr(run_module, "load_backbone", None)
    assert run(config) == record
    assert f"already done: {directory / 'result.json'}" in capsys.readouterr().err


def test_load_run_gives_the_model_that_was_measured(done):
    config, record, directory = done
    model = load_run(directory, device="cpu")
    assert isinstance(model, PeftModel)
    assert not any(module.training for module in model.modules())
    tokenizer = load_backbone(config.model, torch.device("cpu")).tokenizer
    corpus = load_token_corpus(config.dataset, "test", tokenizer)
    found = evaluate_perplexity(model, corpus.documents, config.eval.perplexity, LENGTH)
    for convention in config.eval.perplexity.conventions:
        name = PERPLEXITIES[convention]
        expected = record["metrics"][name]["value"]
        assert found[convention].ppl == pytest.approx(expected, rel=1e-5)  # other kernels, float32
    ids = torch.tensor([[5, 6, 7]])
    assert model.generate(input_ids=ids, max_new_tokens=3, do_sample=False).shape == (1, 6)


def test_a_notebook_sees_no_warning_of_adapt_or_load_run(done):
    config, _, directory = done
    base = load_backbone(config.model, torch.device("cpu")).model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_run(directory, device="cpu")
        hylorada.adapt(base, hylorada.HyloradaConfig.for_length(LENGTH, trained_length=64))


def test_plain_peft_loads_the_adapter_onto_the_unextended_base(done):
    config, _, directory = done
    base = load_backbone(config.model, torch.device("cpu")).model
    ids = torch.arange(1, 91).unsqueeze(0)
    expected = load_run(directory, device="cpu")(input_ids=ids).logits
    assert torch.equal(PeftModel.from_pretrained(base, directory / "adapter")(ids).logits, expected)


def test_the_public_name_is_this_function():
    assert hylorada.load_run is load_run


def test_baseline_trains_nothing_and_its_numbers_are_those_of_the_extended_base(baseline, done):
    _, record, directory = baseline
    assert record["metrics"] == record["base"]["extended"] == done[1]["base"]["extended"]
    assert record["parameters"]["trainable"] == 0
    assert (record["training"]["steps"], record["training"]["final_loss"]) == (0, None)
    assert record["integrity"]["ok"] is True
    assert not (directory / "adapter").exists()
    model = load_run(directory, device="cpu")
    assert model(input_ids=torch.ones(1, LENGTH, dtype=torch.long)).logits.shape[1] == LENGTH


def test_the_base_is_measured_once_for_all_runs_that_share_it(done, root, monkeypatch):
    titles = []
    real = measure.Meter.measure

    def spy(self, model, part, title, **options):
        titles.append(title)
        return real(self, model, part, title, **options)

    monkeypatch.setattr(measure.Meter, "measure", spy)
    record = run(make_config(root, train__max_steps=1, seed=1))
    assert titles == ["hylorada"]
    assert record["base"] == done[1]["base"]
    titles.clear()
    run(make_config(root, train__max_steps=1, eval__perplexity__max_blocks=1))
    assert len(titles) == 3


@pytest.mark.parametrize("length", [48, 64])
def test_up_to_its_trained_length_the_base_is_measured_once(root, tmp_path, length, capsys):
    changes = {"length__max_length": length, "method__s2_attn__group_size": 16}
    changes |= {"method__train_embeddings": "false", "train__max_steps": 1}
    record = run(make_config(root, **changes, output_root=str(tmp_path)), tmp_path / "run")
    assert record["base"]["own_window"] == {}
    assert record["base"]["extended"]["eval/ppl"]["window"] == length
    assert record["position_range"]["kind"] == "none"
    out = capsys.readouterr().out
    assert "extended" not in out
    assert "base" in out


def test_the_record_says_what_its_numbers_depend_on(done):
    _, record, _ = done
    reached = {"kind": "learned", "from": 64, "to": LENGTH, "type": "interpolate"}
    assert record["position_range"] == {**reached, "factor": LENGTH / 64}
    provenance = record["provenance"]
    assert (provenance["precision"], provenance["base_model_dtype"]) == ("fp32", "float32")
    assert len(provenance["tokenizer_sha256"]) == 64


def test_a_damaged_cache_of_the_base_is_measured_again(done, root):
    for path in (root / "outputs" / ".cache" / "base").glob("*.json"):
        path.write_text(path.read_text()[:-20])
    record = run(make_config(root, train__max_steps=1, seed=2))
    assert record["base"] == done[1]["base"]


def test_a_flipped_digit_in_the_cache_of_the_base_is_measured_again(done, root):
    flipped = 0
    for path in (root / "outputs" / ".cache" / "base").glob("*.json"):
        text = path.read_text()
        if not text.endswith("}"):  # cut off by the test above, and of another run since
            continue
        entry = json.loads(text)
        for metric in entry["value"].values():
            metric["value"], flipped = 1.0, flipped + 1
        path.write_text(json.dumps(entry))
    assert flipped
    record = run(make_config(root, train__max_steps=1, seed=5))
    assert record["base"] == done[1]["base"]


def test_the_seed_changes_the_run_and_nothing_else_does(done, root, tmp_path):
    _, record, directory = done
    torch.manual_seed(12345)  # what happened before in this process must not matter
    again = run(make_config(root), tmp_path / "again")
    assert again["metrics"] == record["metrics"]
    assert (tmp_path / "again" / "metrics.jsonl").read_bytes() == (
        directory / "metrics.jsonl"
    ).read_bytes()
    other = run(make_config(root, seed=3), tmp_path / "other")
    assert other["metrics"] != record["metrics"]


def test_the_noise_floor_is_the_same_run_with_another_adapter(done, root, tmp_path):
    """The first step, at which an adapter is the identity, sees the same data; then they part."""
    config, _, directory = done
    run(make_config(root, method__adapter_seed=1000), tmp_path / "floor")
    lines, other = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (directory, tmp_path / "floor")
    )
    trained, again = ([e for e in each if "train/loss" in e] for each in (lines, other))
    assert again[0]["train/loss"] == pytest.approx(trained[0]["train/loss"], rel=1e-6)
    assert again[-1]["train/loss"] != trained[-1]["train/loss"]
    assert [e["train/tokens"] for e in again] == [e["train/tokens"] for e in trained]
    assert fingerprint(make_config(root, method__adapter_seed=1000)) != fingerprint(config)


def test_process_state_is_put_back(root, tmp_path):
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    loggers = [list(logging.getLogger(name).handlers) for name in ("", "hylorada")]
    run(make_config(root, train__max_steps=1), tmp_path / "run")
    assert handlers == [
        signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    ]
    assert loggers == [list(logging.getLogger(name).handlers) for name in ("", "hylorada")]
    assert not torch.are_deterministic_algorithms_enabled()


def test_validation_is_measured_between_the_steps(root, tmp_path):
    run(make_config(root, train__max_steps=4, train__eval_every=2), tmp_path / "run")
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines if "validation/ppl" in line] == [2]


def test_gradient_checkpointing_changes_no_number(root, tmp_path):
    for enabled in (False, True):
        run(
            make_config(root, train__max_steps=3, train__gradient_checkpointing=enabled),
            tmp_path / str(enabled),
        )
    a, b = ((tmp_path / str(e) / "metrics.jsonl").read_bytes() for e in (False, True))
    assert a == b


def test_other_settings_of_a_base_with_the_same_weights_are_another_base(root, tmp_path, caplog):
    folder = shutil.copytree(root / "model", tmp_path / "model")
    changes = {"model__path": str(folder), "output_root": str(tmp_path), "train__max_steps": 1}
    first = run(make_config(root, **changes), tmp_path / "run")
    settings = json.loads((folder / "config.json").read_text())
    settings["layer_norm_epsilon"] = 0.5
    (folder / "config.json").write_text(json.dumps(settings))
    again = run(make_config(root, **changes, seed=1), tmp_path / "again")
    for which, name in (("extended", "eval/ppl"), ("own_window", "eval/ppl_sliding")):
        assert again["base"][which][name]["value"] != first["base"][which][name]["value"]
    one, other = (record["provenance"] for record in (first, again))
    assert one["base_model_sha256"] == other["base_model_sha256"]
    with pytest.raises(DataError, match=r"trained on other settings \(config\.json\)"):
        load_run(tmp_path / "run", device="cpu")
    # Another transformers may read the same file otherwise; an older record does not say.
    first["provenance"]["versions"]["transformers"] = "5.0.0"
    write_unhashed(tmp_path / "run", first)
    load_run(tmp_path / "run", device="cpu")
    assert "trained under transformers 5.0.0" in caplog.text
    del first["provenance"]["base_model_config_sha256"]
    write_unhashed(tmp_path / "run", first)
    caplog.clear()
    load_run(tmp_path / "run", device="cpu")
    assert "transformers" not in caplog.text


# --- what goes wrong ------------------------------------------------------------------------------


def failing(config, directory, error, match):
    with pytest.raises(error, match=match) as caught:
        run(config, directory)
    record = result(directory)
    assert record["error"] == str(caught.value)
    assert "\n" not in record["error"]
    assert not (directory / "adapter").exists()
    return record


def test_divergence_is_recorded_with_what_was_trained(root, tmp_path, capsys):
    config = make_config(root, train__lr=1e20)
    record = failing(config, tmp_path / "run", DivergedError, "lower train.lr")
    assert record["status"] == "diverged"
    assert record["training"]["skipped_steps"] == 3
    assert "Traceback" in (tmp_path / "run" / "run.log").read_text()
    assert "Traceback" not in capsys.readouterr().err


def test_a_failed_gate_stops_the_run_before_training(root, tmp_path):
    config = make_config(root, method__landmark__pooling="sequence_mean")
    record = failing(config, tmp_path / "run", IntegrityError, "causality")
    assert (record["status"], record["training"]) == ("failed", None)
    assert record["integrity"]["ok"] is False
    assert json.loads((tmp_path / "run" / "integrity.json").read_text())["ok"] is False
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_control_arm_may_leak_when_asked_to(root, tmp_path):
    config = make_config(
        root,
        method__landmark__pooling="sequence_mean",
        integrity__allow_leak=True,
        train__max_steps=1,
    )
    assert run(config, tmp_path / "run")["status"] == "ok"


def test_a_perplexity_beyond_the_range_of_floats_is_null(root, tmp_path, monkeypatch, capsys):
    real = perplexity.token_nll
    monkeypatch.setattr(perplexity, "token_nll", lambda *a, **options: 1e4 * real(*a, **options))
    changes = {"output_root": str(tmp_path), "train__max_steps": 2, "train__eval_every": 1}
    record = run(make_config(root, **changes), tmp_path / "run")
    assert result(tmp_path / "run") == record
    assert record["status"] == "ok"
    for metrics in (record["metrics"], record["base"]["extended"]):
        assert metrics["eval/ppl"]["value"] is None
        assert metrics["eval/ppl"]["sum_nll"] / metrics["eval/ppl"]["tokens"] > 1e4
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["validation/ppl"] for line in lines if "validation/ppl" in line] == [None]
    assert lines[-1] == {"step": 2, "eval/ppl": None, "eval/ppl_sliding": None}
    assert "overflow" in capsys.readouterr().out


def test_bad_input_is_one_line_and_a_record(root, tmp_path, monkeypatch):
    (tmp_path / "empty" / "train").mkdir(parents=True)
    monkeypatch.setattr("hylorada.process.device.cpu_has_bf16", lambda: False)
    cases = {
        "model": (make_config(root, model__path=str(tmp_path / "empty")), DataError, "config.json"),
        "bf16": (make_config(root, train__precision="bf16"), ConfigError, "no bf16 arithmetic"),
        "fp16": (make_config(root, train__precision="fp16"), ConfigError, "for GPUs without bf16"),
        "offload": (
            make_config(
                root, train__gradient_checkpointing=True, train__gradient_checkpointing_offload=True
            ),
            ConfigError,
            "no effect on a CPU",
        ),
        "text": (
            make_config(root, dataset__path=str(tmp_path / "empty")),
            DataError,
            "no file of a form that is read",
        ),
        "block": (
            make_config(root, length__max_length=4096),
            DataError,
            "not one block of 4096 tokens",
        ),
    }
    for name, (config, error, match) in cases.items():
        record = failing(config, tmp_path / name, error, match)
        assert record["status"] == "failed"


def test_settings_that_cannot_be_leave_no_directory(root, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.lr"):
        run(make_config(root, train__lr=-1.0), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_directory_in_use_is_refused_and_its_record_left_alone(root, tmp_path):
    with exclusive(tmp_path / "run"), pytest.raises(DiskError, match="in use by a live run"):
        run(make_config(root), tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_failed_run_is_tried_again(root, tmp_path):
    failing(make_config(root, train__lr=1e20), tmp_path / "run", DivergedError, "lower")
    assert run(make_config(root, train__max_steps=1), tmp_path / "run")["status"] == "ok"


def test_load_run_says_what_is_missing(tmp_path, done):
    _, record, directory = done
    with pytest.raises(DataError, match=r"no result\.json"):
        load_run(tmp_path)
    write_unhashed(tmp_path, {**record, "status": "interrupted"})
    with pytest.raises(DataError, match="status interrupted"):
        load_run(tmp_path)
    shutil.copytree(directory / "adapter", tmp_path / "adapter")
    record = json.loads(json.dumps(record))
    record["provenance"]["base_model_sha256"] = "0" * 64
    write_unhashed(tmp_path, record)
    with pytest.raises(DataError, match="trained on other weights"):
        load_run(tmp_path)


def test_a_document_that_is_trained_on_and_measured_is_told(root, tmp_path, caplog):
    texts = make_texts(tmp_path / "texts")
    shutil.copy(texts / "train" / "3.txt", texts / "test" / "again.txt")
    config = make_config(
        root, dataset__path=str(texts), train__max_steps=1, eval__perplexity__max_blocks=2
    )
    record = run(config, tmp_path / "run")
    assert (
        "1 of 3 documents of the test split are trained on as well (test/again.txt)" in caplog.text
    )
    assert record["provenance"]["documents_in_both"] == 1
