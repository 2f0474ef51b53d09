"""What a plan says of runs, beside what the runs then are; on a random two-layer model."""

from __future__ import annotations

import gc
import json
import math
import re
import weakref
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from helpers.commands import Into, start
from helpers.tiny_runs import (
    LENGTH,
    STEPS,
    finish,
    make_config,
    make_model_folder,
    make_texts,
    result,
)

from hylorada import cli
from hylorada.architecture import anatomy
from hylorada.architecture.labels import IGNORE
from hylorada.config import LoraConfig, MethodConfig, ModelConfig, S2AttentionConfig, to_dict
from hylorada.data.token_corpus import load_token_corpus
from hylorada.errors import ConfigError, DataError, HyloradaError, Interrupted
from hylorada.evaluation.measurement import asked_for
from hylorada.evaluation.measurements import context_gain, perplexity
from hylorada.evaluation.perplexity import evaluate_perplexity
from hylorada.loading.backbone import load_backbone, open_base
from hylorada.methods.integrity.as_trained import PARITY
from hylorada.methods.integrity.probe import DEFAULT_LENGTH
from hylorada.planning import probe
from hylorada.planning.cost import Shape, attention_span, shape_of
from hylorada.planning.earlier_runs import kind_of
from hylorada.planning.earlier_runs import validation as seconds_of_a_validation
from hylorada.planning.estimate import Rates, size
from hylorada.planning.plan import Planned, Planner
from hylorada.planning.shared import FirstParts, of_last_part
from hylorada.process.progress import Reporter
from hylorada.process.signals import Stop
from hylorada.runner.attachment import attach
from hylorada.runner.earlier_attempt import check_start
from hylorada.runner.gate import prove
from hylorada.runner.run import run
from hylorada.settings.fingerprint import run_dir
from hylorada.training.loop import Training


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    return folder


def plan(*configs, here=True) -> list[Planned]:
    planner = Planner(here, 1, Reporter().working)
    return list(planner.plan({run_dir(config): config for config in configs}))


def one(config, here=True):
    (found,) = plan(config, here=here)
    if found.refusal is not None:
        raise found.refusal
    return found.estimate


def checkpoint(config, **state) -> None:
    """As much of one as tells how far a run is."""
    hardware = state.pop("hardware", [])
    identity = {"config": to_dict(config), "hardware": hardware}
    folder = Path(run_dir(config)) / "checkpoints" / f"step-{state['step']:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").write_text(json.dumps({**state, "identity": identity}))


def everything_below(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(p), p.stat().st_mtime_ns) for p in folder.rglob("*"))


def test_a_plan_says_what_the_run_then_is_and_leaves_nothing(root):
    config = make_config(root, output_root=str(root / "said"), eval__short_context__max_blocks=2)
    estimate = one(config)
    assert not (root / "said").exists()
    assert estimate.rates.known_from.startswith("a probe")
    record = run(config)
    assert estimate.rates.trained == record["parameters"]["by_group"]
    assert (estimate.steps, estimate.steps_left) == (STEPS, record["training"]["steps"])
    assert estimate.sequences == STEPS * 4  # two micro-batches of two
    assert estimate.tokens == STEPS * 4 * LENGTH
    asked = {measurement.title for measurement in asked_for(config.eval)}
    assert set(estimate.seconds) == {"start", "gate", "base", "training"} | asked
    assert not estimate.rates.left_out
    assert all(seconds > 0 for seconds in estimate.seconds.values())
    assert estimate.total == sum(estimate.seconds.values())
    used = record["training"]["peak_memory_bytes"]
    assert 0.75 < estimate.rates.memory / used < 1.25


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_run_in_half_precision_is_probed_in_it(root, monkeypatch, precision):
    """Its gate may ask in float32 as well; here every pass that is timed takes a second."""
    monkeypatch.setattr("hylorada.process.device.has_bf16", lambda device: True)
    monkeypatch.setattr(probe, "_repeated", lambda call: (call(), 1.0)[1])
    monkeypatch.setattr(probe, "_SHORT_PASSES", 0)
    estimate = one(make_config(root, train__precision=precision))
    assert estimate.rates.known_from.startswith("a probe")
    exact = probe._EXACT_WINDOWS if precision == "bf16" else 0
    passes = probe._WINDOWS + probe._GRADIENT_PASSES + exact
    assert estimate.seconds["gate"] == pytest.approx(passes, rel=0.1)  # scored or not


@pytest.mark.slow
def test_the_gate_makes_the_passes_that_its_time_is_made_of(root, monkeypatch):
    """Where rounding goes too far to be compared, which a limit of 0 makes of any."""
    monkeypatch.setitem(PARITY, torch.bfloat16, 0.0)
    config = make_config(root, train__precision="bf16", method__lora__lora_dropout=0.0)
    backbone = load_backbone(config.model, torch.device("cpu"))
    model, _, _ = attach(config, backbone.model)
    passes: Counter[str] = Counter()

    def count(_, args, kwargs):
        rows, tokens = kwargs.get("input_ids", args[0] if args else None).shape
        exact = not torch.is_autocast_enabled("cpu")
        if tokens < LENGTH:
            passes["short"] += rows * (tokens == DEFAULT_LENGTH)
        elif not torch.is_grad_enabled():
            passes["exact" if exact else "window"] += rows
        else:
            passes["exact gradient" if exact else "gradient"] += rows

    anatomy.backbone(model).register_forward_pre_hook(count, with_kwargs=True)
    prove(model, backbone.tokenizer, config, torch.bfloat16, Stop())
    assert passes["window"] == probe._WINDOWS
    assert passes["exact"] == probe._EXACT_WINDOWS
    assert 3 * passes["gradient"] == probe._GRADIENT_PASSES
    assert 0.75 < passes["short"] / probe._SHORT_PASSES < 1.25


@pytest.mark.slow
def test_a_finished_run_tells_what_the_next_seed_takes(root):
    config = make_config(root, output_root=str(root / "earlier"), seed=3)
    record = run(config)
    before = everything_below(root / "earlier")
    other = make_config(root, output_root=str(root / "earlier"), seed=4, train__max_steps=7)
    estimate = one(other)
    assert estimate.rates.known_from == "1 finished run of this kind"
    training, seconds = record["training"], record["seconds"]
    assert estimate.seconds["training"] == pytest.approx(7 * training["seconds"] / STEPS)
    assert estimate.seconds["evaluation"] == pytest.approx(seconds["evaluation"])
    assert estimate.seconds["gate"] == pytest.approx(seconds["gate"])
    assert "base" not in estimate.seconds  # measured, for all
    assert everything_below(root / "earlier") == before
    of_another_kind = make_config(
        root, output_root=str(root / "earlier"), train__micro_batch_size=1
    )
    assert one(of_another_kind).rates.known_from.startswith("a probe")


def test_the_base_is_paid_for_once_and_kinds_are_probed_once(root):
    configs = [make_config(root, output_root=str(root / "once"), seed=seed) for seed in (0, 1)]
    first, second = (found.estimate for found in plan(*configs))
    assert first.rates is second.rates
    assert "base" in first.seconds
    assert first.total - second.total == pytest.approx(first.seconds["base"])


@pytest.mark.slow
def test_what_a_checkpoint_has_done_is_not_planned_again(root, monkeypatch):
    config = make_config(root, output_root=str(root / "half"))
    log = Training._log

    def stop_at_six(self, line, timing=None):
        log(self, line, timing)
        if line["step"] == 6:
            self.stop.requested = 15

    with monkeypatch.context() as patched:
        patched.setattr(Training, "_log", stop_at_six)
        with pytest.raises(Interrupted):
            run(config)
    estimate = one(config)
    assert (estimate.steps, estimate.steps_left) == (STEPS, STEPS - 6)
    assert estimate.seconds["training"] == pytest.approx((STEPS - 6) * estimate.rates.step)
    anew = one(make_config(root, output_root=str(root / "half"), resume="never"))
    assert anew.steps_left == STEPS


@pytest.mark.slow
def test_budgets_of_time_and_validations_are_in_it(root):
    """Whatever a kind of run takes is asked anew where only the other one validates."""
    short, plain = plan(
        make_config(root, train__max_seconds=1e-3, train__eval_every=3, train__keep_best=True),
        make_config(root),
    )
    short, plain = short.estimate, plain.estimate
    # A step is finished, and the weights after the last one are still to be judged.
    once = short.rates.step + short.rates.validation
    assert short.seconds["training"] == pytest.approx(once)
    assert short.rates.validation > 0
    assert plain.rates.validation == 0


@pytest.mark.parametrize(
    ("budget", "left", "validations"),
    [
        ({"eval_every": 3}, STEPS, 3),
        ({"eval_every": 3, "keep_best": True}, STEPS, 4),
        ({"eval_every": 5}, STEPS, 1),  # the last step is followed by the evaluation of the run
        ({"max_seconds": 1.1, "eval_every": 1}, 3, 2),
        ({"max_seconds": 100.0}, STEPS, 0),
        ({"max_seconds": 0.1}, 1, 0),
    ],
)
def test_steps_and_validations_in_the_time_there_is(root, monkeypatch, budget, left, validations):
    rates = Rates("half a second a step", step=0.5, validation=100.0)
    monkeypatch.setattr("hylorada.planning.plan.probe", lambda *_: rates)
    estimate = one(make_config(root, **{f"train__{key}": value for key, value in budget.items()}))
    assert (estimate.steps, estimate.steps_left) == (STEPS, left)
    assert estimate.in_time == (left < STEPS)
    assert estimate.tokens == left * 4 * LENGTH
    assert estimate.seconds["training"] == 0.5 * left + 100 * validations


def test_seconds_that_a_checkpoint_has_used_are_gone(root, monkeypatch):
    rates = Rates("half a second a step", step=0.5)
    monkeypatch.setattr("hylorada.planning.plan.probe", lambda *_: rates)
    config = make_config(root, output_root=str(root / "used"), train__max_seconds=3.0)
    checkpoint(config, step=4, seconds=2.0)
    estimate = one(config)
    assert (estimate.steps_left, estimate.seconds["training"]) == (2, 1.0)
    assert estimate.tokens == 6 * 4 * LENGTH


def test_a_checkpoint_of_another_device_is_refused_as_by_the_run(root, monkeypatch):
    monkeypatch.setattr("hylorada.planning.plan.probe", lambda *_: Rates("", step=0.5))
    config = make_config(root, output_root=str(root / "moved"), device="cpu")
    made_on = {"device": "cuda", "precision": "bf16"}
    checkpoint(config, step=4, hardware=[made_on])
    with pytest.raises(ConfigError, match="made on cuda in bf16, but this run would continue"):
        one(config)
    checkpoint(config, step=4, hardware=[{"device": "cpu", "precision": "fp32"}])
    assert one(config).steps_left == STEPS - 4


def test_a_kind_is_all_that_its_seconds_depend_on(root):
    plain = to_dict(make_config(root))
    for key, value in (("compile", "layers"), ("mix", 0.5), ("eval_every", 5)):
        assert kind_of(to_dict(make_config(root, **{f"train__{key}": value}))) != kind_of(plain)
    assert kind_of(to_dict(make_config(root, seed=5, train__lr=1.0))) == kind_of(plain)
    before = to_dict(make_config(root))  # a record of a version that did not have them
    del before["train"]["compile"], before["train"]["mix"]
    assert kind_of(before) == kind_of(plain)


def test_what_training_took_beside_its_steps_were_validations(root):
    settings = to_dict(make_config(root, train__eval_every=3))
    whole, continued = (
        {
            "config": settings, "training": {"steps": 10, "seconds": 20.0},
            "seconds": {"training": seconds},
        } for seconds in (26.0, 9.0)
    )  # fmt: skip
    assert seconds_of_a_validation([whole, continued]) == 2.0
    assert seconds_of_a_validation([continued]) is None


def test_a_probe_does_not_train(root):
    """A learning rate that would end the run itself is no matter of its seconds."""
    assert one(make_config(root, train__lr=1e30)).seconds["training"] > 0


def test_nothing_of_a_probe_is_kept(root, monkeypatch):
    """Or the next one of a sweep finds no memory."""
    loaded = []
    load = probe._Probe.load

    def seen(self, opened):
        load(self, opened)
        loaded.append(weakref.ref(self.backbone.model))

    monkeypatch.setattr(probe._Probe, "load", seen)
    gc.disable()
    try:
        one(make_config(root))
        assert [model() for model in loaded] == [None]
    finally:
        gc.enable()


def test_of_a_model_with_few_words_the_gate_is_timed_too(root, tmp_path):
    make_model_folder(tmp_path / "model", letters="abdeghlmptĠ")
    estimate = one(make_config(root, model=ModelConfig("few", str(tmp_path / "model"))))
    assert estimate.seconds["gate"] > 0


@pytest.mark.parametrize("trains", [True, False])
def test_what_no_part_stands_for_is_told_of_every_run(root, monkeypatch, trains):
    """What a pass takes must then be timed by itself."""
    monkeypatch.setattr(type(perplexity.MEASUREMENT), "portion", lambda *_: None)
    config = make_config(root, output_root=str(root / "unknown"))
    if not trains:
        config.method = MethodConfig("baseline", LoraConfig(enabled=False))
    estimate = one(config)
    assert estimate.rates.left_out == ["perplexity"]
    assert "perplexity" not in estimate.seconds
    assert estimate.seconds["gate"] > 0


def test_a_base_that_cannot_be_sharded_is_refused_as_by_the_run(root):
    changes = {"processes": 2, "shard_base": True, "output_root": str(root / "sharded")}
    config = make_config(root, **changes)
    config.method = MethodConfig("pissa", LoraConfig(enabled=False))
    config.method.peft = {"peft_type": "LORA", "init_lora_weights": "pissa"}
    with pytest.raises(ConfigError, match="the base would have to be loaded whole"):
        one(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset__path": "nowhere"},
        {"length__max_length": 100_000},
        {"method__lora__target_modules": ["no_such"]},
        {"eval__lost_in_middle__enabled": True},
        {"sequence_ranks": 2},
        {"shard_base": True},
    ],
)
def test_it_refuses_what_the_run_refuses_in_the_same_line(root, changes):
    if "dataset__path" in changes:
        changes = {"dataset__path": str(root / "nowhere")}
        (root / "nowhere").mkdir(exist_ok=True)
    config = make_config(root, output_root=str(root / "refused"), **changes)
    (found,) = plan(config)
    assert found.estimate is None
    assert not Path(run_dir(config)).exists()
    with pytest.raises(HyloradaError) as known:
        run(config)
    assert str(found.refusal) == str(known.value)
    assert found.refusal.exit_code == known.value.exit_code
    assert result(Path(run_dir(config)))["error"] == " ".join(str(found.refusal).split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_a_plan_for_a_gpu_that_is_not_here_says_so_and_is_refused(root):
    config = make_config(root, device="cuda")
    (found,) = plan(config)
    assert isinstance(found.refusal, ConfigError)
    assert "torch sees no CUDA device" in str(found.refusal)
    assert found.estimate.rates.known_from == "assumed: a GPU of 312 TFLOP/s at 35%"
    elsewhere = one(config, here=False)
    fp32 = one(make_config(root, device="cuda", train__precision="fp32"), here=False)
    assert fp32.seconds["training"] / elsewhere.seconds["training"] == pytest.approx(312 / 19.5)
    assert fp32.rates.memory > elsewhere.rates.memory


def test_a_model_that_only_its_weights_make_is_not_planned_for_another_machine(root, monkeypatch):
    monkeypatch.setattr("hylorada.planning.plan.without_weights", lambda *_: None)
    (found,) = plan(make_config(root, device="cuda"), here=False)
    assert isinstance(found.refusal, ConfigError)
    assert "cannot be built without its weights" in str(found.refusal)


def test_data_that_is_not_there_is_refused_elsewhere_too(root):
    (root / "empty").mkdir(exist_ok=True)
    config = make_config(root, device="cuda", dataset__path=str(root / "empty"))
    (found,) = plan(config, here=False)
    assert isinstance(found.refusal, DataError)


def test_operations_are_those_that_a_profiler_counts(root):
    from torch.utils.flop_counter import FlopCounterMode

    model = load_backbone(make_config(root).model, torch.device("cpu")).model
    model.set_attn_implementation("eager")
    ids = torch.randint(0, 100, (1, 57))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    assert shape_of(model).forward(57) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_step_costs_what_its_parts_cost():
    shape = Shape(layers=3, width=8, weights=1000, head=100, parameters=1200)
    linear, attention = 2 * 1100 * 10, 4 * 3 * 8 * 10**2
    assert shape.forward(10) == linear + attention
    assert shape.forward(10, 4) == 2 * (1000 * 10 + 100 * 4) + attention
    assert shape.step(10, 0, False, 10) == 2 * linear + 3.5 * attention
    assert shape.step(10, 7, False, 10) - shape.step(10, 0, False, 10) == 6 * 7 * 10
    assert shape.step(10, 0, True, 10) == shape.step(10, 0, False, 10) + 2 * 1000 * 10 + attention
    assert shape.step(10, 0, False, 4) == 2 * linear + 3.5 * 0.4 * attention


@pytest.mark.parametrize(
    ("settings", "span"),
    [
        ({}, 16),
        ({"group_size": 0}, 64),  # a quarter of the row
        ({"full_layers": 0.25}, 0.25 * 256 + 0.75 * 16),
        ({"full_heads": 0.25}, 0.25 * 256 + 0.75 * 16),
        ({"full_share": 0.5}, 0.5 * 256 + 0.5 * 16),
        ({"largest_group": 64}, (64 - 16) / math.log(4)),
        ({"group_size": 256}, 256),
    ],
)
def test_what_attention_meets_in_segments(settings, span):
    s2 = S2AttentionConfig(**{"group_size": 16, **settings})
    assert attention_span(s2, 256, True) == pytest.approx(span)
    assert attention_span(s2, 256, False) == 256


def corpus_of(root, config):
    return load_token_corpus(
        config.dataset, "test", open_base(config.model).tokenizer, config.model.path
    )


@pytest.mark.parametrize("conventions", [["blocks"], ["sliding"], ["blocks", "sliding"]])
def test_a_portion_of_perplexity_stands_for_all_windows(root, conventions):
    window = 48  # the model has 64 positions
    config = make_config(root, eval__perplexity__conventions=conventions)
    measurement = perplexity.MEASUREMENT
    corpus = corpus_of(root, config)
    asked = type("Sources", (), {
        "config": config, "trained_length": 64, "window": window,
        "text": lambda self, unit="documents": corpus
    })()  # fmt: skip
    asked = measurement.prepare(asked)
    portion = measurement.portion(asked, lambda tokens, scored=None: float(tokens))
    read = []

    model = load_backbone(config.model, torch.device("cpu")).model
    model.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    settings = config.eval.perplexity
    evaluate_perplexity(model, corpus.documents, settings, window)
    assert portion.tokens == sum(read)
    assert portion.share == pytest.approx(max(read) / sum(read))
    read.clear()
    part = portion.asked
    evaluate_perplexity(model, part.text.documents, part.settings, part.window)
    assert read == list(portion.passes)


def test_a_portion_of_context_gain_is_one_place(root):
    config = make_config(root)
    gain = config.eval.context_gain
    gain.contexts, gain.targets, gain.places = [8, 32], 16, 5
    corpus = corpus_of(root, config)
    asked = context_gain.Asked(gain, corpus, "test", LENGTH)
    portion = context_gain.MEASUREMENT.portion(asked, lambda tokens, scored=None: float(tokens))
    assert (portion.passes, portion.share) == ([24, 48], 1 / 5)
    assert portion.asked.settings.places == 1


@pytest.mark.slow
def test_the_command_prints_a_line_for_each_cell_and_the_sum(root, capfd, monkeypatch):
    monkeypatch.chdir(root)
    words = [
        "model=./model", "dataset=local", f"dataset.path={root / 'texts'}", "length=96",
        f"dataset.cache_dir={root / 'cache'}", "eval=quick", "track=off", "train.max_steps=2",
        "output_root=words", "threads=1",
    ]  # fmt: skip
    assert cli.train([*words, "method=lora"]) == 0
    capfd.readouterr()
    before = everything_below(root / "words")
    sweep = [*words, "-m", "method=lora,rslora", "method.lora.r=8,0", "dry_run=true"]
    assert cli.train(sweep) == 2  # r=0 is refused, as by the run
    out, err = capfd.readouterr()
    *lines, total = out.splitlines()
    assert [line.partition(":")[0].split("/")[-1][:8] for line in lines] == ["lora-96-", "rslora-9"]
    assert lines[0].endswith(": done already")
    assert "2 steps on 1,536 tokens, trains lora " in lines[1]
    assert re.fullmatch(r"4 cells, 1 done, 2 refused, 1 to run: .* on this machine, peak .*", total)
    assert err.count("method.lora.r") == 2
    assert everything_below(root / "words") == before
    assert cli.train([*words, "method=lora", "dry_run=true"]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "1 cell, 1 done, 0 to run"


@pytest.mark.slow
def test_a_plan_for_elsewhere_needs_neither_hub_nor_weights(tmp_path):
    """Two overlays of the paper's scale in one command; a cell that both have counts once."""
    words = [
        "-m", "experiment=gpt2_t2_main_4k,gpt2_t2_factorial_4k", "method=lora,hylorada", "seed=0",
        "eval=validation", f"output_root={tmp_path}/outputs",
    ]  # fmt: skip
    out, err = tmp_path / "out", tmp_path / "err"
    assert finish(start("train", [*words, "dry_run=true"], Into(out, err)), 300) == 3
    assert "openai-community/gpt2" in err.read_text()
    out.unlink()
    assert finish(start("train", [*words, "dry_run=elsewhere"], Into(out, err)), 300) == 0
    lora, hylorada, total = out.read_text().splitlines()
    sizes = [-math.log1p(-(i + 0.5) / 28_475) * 118e6 / 28_475 for i in range(28_475)]
    steps = math.ceil(3 * sum(int(size // 4096) for size in sizes) / 64)
    for line, trains in ((lora, "lora 811,008"), (hylorada, "position_embeddings 3,145,728")):
        assert f"{steps:,} steps on " in line
        assert trains in line
        assert "by published sizes" in line
    assert "LongBench" not in lora
    assert re.fullmatch(r"2 cells, 0 done, 2 to run: .* as assumed, peak [\d.]+ [MG]iB", total)
    assert not (tmp_path / "outputs").exists()


SPLIT = {
    "method__lora__lora_dropout": 0.0, "processes": 4, "sequence_ranks": 2, "device": "cuda",
    "train__micro_batch_size": 1, "train__gradient_accumulation_steps": 3,
    "train__precision": "fp32",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"processes": 3, "sequence_ranks": 2}, "does not divide the number of processes, 3"),
        ({"processes": 9}, "9 processes, but a step has 2 micro-batches"),
        ({"processes": 2, "method__lora__lora_dropout": 0.1}, "would draw its own random numbers"),
        (
            {"processes": 4, "sequence_ranks": 4, "method__s2_attn__group_size": 16},
            "24 each, which is no multiple of the group of 16",
        ),
    ],
)
def test_processes_that_cannot_be_are_refused_before_any_is_started(root, changes, told):
    """The last one by the model alone; the dropout by `check_start`, as every command has it."""
    plain = {"method__lora__lora_dropout": 0.0, "train__gradient_accumulation_steps": 2}
    config = make_config(root, **{**plain, **changes})
    if "lora_dropout" in "".join(changes):
        with pytest.raises(ConfigError, match=told):
            check_start(config, Path(run_dir(config)))
        return
    (found,) = plan(config)
    assert isinstance(found.refusal, ConfigError)
    assert told in str(found.refusal)


def test_what_each_of_several_takes_elsewhere_beside_the_arithmetic(root):
    """Four processes in groups of two; of the three micro-batches of a step a group has two."""
    group = {"method__s2_attn__group_size": 16}
    whole = one(make_config(root, **{**SPLIT, "processes": 1, "sequence_ranks": 1}, **group), False)
    split = one(make_config(root, **SPLIT, **group), here=False)
    each = one(make_config(root, **{**SPLIT, "sequence_ranks": 1, "processes": 2}, **group), False)
    assert [e.rates.processes for e in (whole, split, each)] == [1, 4, 2]
    assert split.rates.step == pytest.approx(whole.rates.step * 2 / 3 / 2)
    assert each.rates.step == pytest.approx(whole.rates.step * 2 / 3)
    assert each.rates.memory == whole.rates.memory
    assert split.rates.evaluation["perplexity"] == whole.rates.evaluation["perplexity"] / 4
    assert split.rates.gate == whole.rates.gate
    assert "of 4 processes assumed: equal shares" in split.rates.known_from
    assert "parts of 48 tokens" in split.rates.known_from
    # In the formula of `assumed` two layers keep 34 bytes a token and number in 16 bits.
    activations = 2 * 34 * LENGTH * 32 * 4 // 2
    assert whole.rates.memory - split.rates.memory == activations // 2
    # Of full attention the keys and values of the other half stay in both layers.
    full = {"method__s2_attn__enabled": "false"}
    others = 2 * 2 * 32 * 4 * LENGTH // 2
    gathered = one(make_config(root, **SPLIT, **full), here=False)
    assert gathered.rates.memory - split.rates.memory == others


def test_a_part_of_the_base_is_all_that_each_holds(root):
    more = {**SPLIT, "sequence_ranks": 1, "processes": 3}
    whole = one(make_config(root, **more), here=False)
    shared = one(make_config(root, **more, shard_base=True), here=False)
    model = load_backbone(make_config(root).model, torch.device("cpu")).model
    layers = sum(p.numel() for p in model.transformer.h.parameters()) * 4
    # A GPU computes with one of the two layers and is given the next one.
    assert whole.rates.memory - shared.rates.memory == layers - layers // 3 - 2 * layers // 2
    assert "memory computed for a part of the base" in shared.rates.known_from
    # All of them measure all, in the time of one.
    by_one = 3 * whole.rates.evaluation["perplexity"]
    assert shared.rates.evaluation["perplexity"] == pytest.approx(by_one)


def test_of_full_attention_the_last_part_has_most():
    config = make_config(Path(), **SPLIT)
    shape = Shape(layers=3, width=8, weights=1000, head=100, parameters=1200, kv_width=4)
    rates = Rates("", step=1.0, memory=1000, itemsize=2)
    of_last_part(rates, config, shape, segments=False)
    part, attention = LENGTH // 2, 3.5 * 4 * 3 * 8
    linear = 4 * 1100 * part
    assert rates.step == pytest.approx(
        (linear + attention * part * LENGTH) / (linear + attention * part * part)
    )
    assert rates.memory == 1000 + 3 * 2 * 4 * 2 * part
    rates = Rates("", step=1.0, memory=1000, itemsize=2)
    of_last_part(rates, config, shape, segments=True)
    assert (rates.step, rates.memory) == (1.0, 1000)
    config.method.s2_attn.full_heads = 0.5  # which are sent half of it
    of_last_part(rates, config, shape, segments=True)
    assert rates.memory == 1000 + 3 * 2 * 4 * 2 * part // 2


def test_a_short_sequence_is_the_first_part_of_a_long_one():
    rows = [{"input_ids": torch.arange(9), "labels": -torch.arange(9)} for _ in range(2)]
    blocks = type(
        "Blocks", (), {"length": 9, "__len__": lambda _: 2, "__getitem__": lambda _, i: rows[i]}
    )
    parts = FirstParts(blocks(), 3)
    assert (parts.length, len(parts)) == (3, 2)
    assert {name: x.tolist() for name, x in parts[1].items()} == {
        "input_ids": [0, 1, 2], "labels": [0, -1, -2]
    }  # fmt: skip
    rows[1]["labels"][:8] = IGNORE  # a question, and its answer at the end
    assert {name: x.tolist() for name, x in parts[1].items()} == {
        "input_ids": [0, 1, 2], "labels": [IGNORE, IGNORE, -8]
    }  # fmt: skip


@pytest.mark.long  # what else the process has allocated decides
def test_what_a_large_probe_has_freed_is_no_memory_of_the_next_one(root):
    one_row, many_rows = {"train__micro_batch_size": 1}, {"train__micro_batch_size": 512}
    alone, large, after = (
        found.estimate.rates.memory
        for found in plan(
            make_config(root, **one_row),
            make_config(root, **many_rows),
            make_config(root, **one_row, train__loss_chunk=64),
        )
    )
    assert large > 1.5 * alone
    assert after < 1.25 * alone


@pytest.mark.parametrize("compiles", ["none", "layers"])
def test_a_probe_compiles_where_the_run_does(root, monkeypatch, compiles):
    asked = []

    def compiled_layers(_, enabled):
        asked.append(enabled)
        return nullcontext()

    monkeypatch.setattr(probe, "compiled_layers", compiled_layers)
    assert one(make_config(root, train__compile=compiles)).rates.step > 0
    assert asked == [compiles == "layers"]


@pytest.mark.slow
def test_the_command_tells_of_each_process_and_runs_of_other_numbers_are_no_measure(
    root, capfd, monkeypatch
):
    monkeypatch.chdir(root)
    words = [
        "model=./model", "dataset=local", f"dataset.path={root / 'texts'}", "length=96",
        f"dataset.cache_dir={root / 'cache'}", "eval=quick", "track=off", "train.max_steps=2",
        "train.micro_batch_size=1", "train.gradient_accumulation_steps=4",
        "output_root=several", "threads=1", "method=lora", "method.lora.lora_dropout=0",
    ]  # fmt: skip
    assert cli.train(words) == 0
    more = ["processes=4", "sequence_ranks=2", "seed=1"]
    capfd.readouterr()
    assert cli.train([*words, *more, "dry_run=true"]) == 0
    line, total = capfd.readouterr().out.splitlines()
    assert re.search(
        r", peak [\d.]+ [MG]iB in each of 4 processes; a probe of \d+ s; of 4 processes ", line
    )
    assert "assumed: equal shares, nothing for messages" in line
    assert "parts of 48 tokens" in line
    assert re.fullmatch(r"1 cell, 0 done, 1 to run: .* peak [\d.]+ [MG]iB in all processes", total)
    assert cli.train([*words, "seed=1", "dry_run=true"]) == 0
    assert "; 1 finished run of this kind" in capfd.readouterr().out


def test_sizes_in_words():
    assert [size(2**20 * 512), size(int(2.14 * 2**30))] == ["512 MiB", "2.1 GiB"]
