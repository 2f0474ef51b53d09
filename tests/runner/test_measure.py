"""Retrieval and context gain in whole runs, on a random two-layer model of bytes."""

from __future__ import annotations

import gzip
import json
import math
import signal

import pytest
import torch
from helpers.marks import slow
from helpers.patience import wait_long_for_trackers
from helpers.rigged import Characters
from helpers.tiny_runs import make_config, make_model_folder, make_texts
from helpers.unreadable import no_permission
from helpers.wandb_files import history, summary, wait_for_exit_record
from PIL import Image

from hylorada import config as configs
from hylorada.errors import DataError, DivergedError, Interrupted, OutOfMemoryError
from hylorada.evaluation import perplexity, resumable, retrieval_picture
from hylorada.evaluation.measurements.lost_in_middle import COLUMNS, LostInMiddle
from hylorada.evaluation.prompt_set import make_prompts
from hylorada.evaluation.retrieval_prompts import generate_key_values
from hylorada.loading.backbone import load_backbone, open_base
from hylorada.methods.position_range import extend_range
from hylorada.process.progress import Reporter
from hylorada.process.signals import Stop
from hylorada.runner import measure
from hylorada.runner.preparation import prepare
from hylorada.runner.run import run
from hylorada.settings.fingerprint import run_name
from hylorada.tracking import final_numbers, tracker

WINDOW = 320  # bytes: some six short pairs
DEPTHS = [0.0, 0.5, 1.0]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    make_model_folder(folder / "model")
    make_texts(folder / "texts")
    return folder


def asked(root, **changes):
    return make_config(
        root,
        **{
            "integrity__enabled": False,
            "length__max_length": WINDOW,
            "train__max_steps": 1,
            "train__micro_batch_size": 1,
            "eval__perplexity__conventions": ["blocks"],
            "eval__lost_in_middle__enabled": True,
            "eval__lost_in_middle__key_style": "hex",
            "eval__lost_in_middle__examples": 4,
            "eval__lost_in_middle__depths": DEPTHS,
            "eval__lost_in_middle__scorings": ["ranked", "generated"],
            "eval__context_gain__enabled": True,
            "eval__context_gain__contexts": [8, 32, 999],
            "eval__context_gain__targets": 16,
            "eval__context_gain__places": 3,
            **changes,
        },
    )


def test_every_convention_in_one_run(root, tmp_path):
    """The words and the paragraphs are those of the split; the base is asked the same."""
    lines = [" = A = ", "", "word " * 30, "short", "other " * 25, ""]
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.txt").write_text("\n".join(lines * 4))
    config = asked(
        root,
        dataset__kind="wikitext",
        dataset__path=str(tmp_path),
        eval__perplexity__conventions=["blocks", "sliding", "word", "paper"],
        eval__lost_in_middle__enabled=False,
        eval__context_gain__enabled=False,
    )
    record = run(config)
    for metrics in (record["metrics"], record["base"]["extended"]):
        assert set(metrics) == {"eval/ppl", "eval/ppl_sliding", "eval/ppl_word", "eval/ppl_paper"}
        word, paper = metrics["eval/ppl_word"], metrics["eval/ppl_paper"]
        assert word["words"] == len(" ".join(lines * 4).split()) + 4 * len(lines) - 1
        assert word["value"] == pytest.approx(math.exp(word["sum_nll"] / word["words"]))
        assert word["sum_nll"] == metrics["eval/ppl_sliding"]["sum_nll"]
        each = [math.exp(d["sum_nll"] / d["tokens"]) for d in paper["by_document"]]
        assert paper["value"] == pytest.approx(sum(each) / len(each))
        assert len(each) == 8  # two long lines in each of the four parts
    assert set(record["base"]["own_window"]) == {"eval/ppl_sliding", "eval/ppl_word"}


@pytest.fixture(scope="module")
def done(root):
    config = asked(root, track__kind="offline")
    with pytest.MonkeyPatch.context() as patch:
        wait_long_for_trackers(patch)
        record = run(config)
    return config, record, root / "outputs" / "main" / run_name(config)


def test_the_record_holds_accuracy_by_depth_and_context_gain_of_the_run_and_the_base(done):
    _, record, directory = done
    assert json.loads((directory / "result.json").read_text()) == record
    for metrics in (record["metrics"], record["base"]["extended"]):
        whole = metrics["lim/accuracy"]
        assert (whole["form"], whole["source"], whole["window"]) == ("kv", "generated", WINDOW)
        assert whole["chance"] == pytest.approx(1 / whole["items"])
        assert whole["prompts"] == 12
        assert whole["prompt_tokens"][1] < WINDOW
        for suffix in ("", "_generated"):
            for score in metrics[f"lim/accuracy{suffix}"]["by_depth"]:
                flat = metrics[f"lim/accuracy{suffix}@{score['depth']:g}"]
                assert flat["value"] == score["accuracy"]
                assert flat["low"] <= flat["value"] <= flat["high"]
                assert flat["prompts"] == 4
        assert metrics["lim/middle_gap"]["value"] == whole["middle_gap"]
        gain = metrics["context_gain/gain"]
        assert [s["context"] for s in gain["by_context"]] == [8, 32, 305]
        short, long = (metrics[f"context_gain/nll@{c}"]["value"] for c in (8, 305))
        assert gain["value"] == pytest.approx(short - long)
        assert gain["places"] == 2  # one in each text
    assert (
        record["metrics"]["lim/accuracy"]["prompts_sha256"]
        == record["base"]["extended"]["lim/accuracy"]["prompts_sha256"]
    )
    assert set(record["base"]["own_window"]) == {"eval/ppl_sliding"}


def test_the_last_line_of_metrics_has_every_number_by_its_name(done):
    _, record, directory = done
    last = json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(last) == {"step", *record["metrics"]}
    assert last["lim/accuracy@0.5"] == record["metrics"]["lim/accuracy@0.5"]["value"]


def test_a_run_without_perplexity_ends_well_and_the_base_is_not_measured_twice(
    done, root, capsys, monkeypatch
):
    _, first, _ = done
    titles = []
    real = LostInMiddle.measure

    def spy(self, model, asked, attempt):
        titles.append(attempt._title)
        return real(self, model, asked, attempt)

    monkeypatch.setattr(LostInMiddle, "measure", spy)
    record = run(asked(root, eval__perplexity__conventions=[], seed=1))
    assert titles == ["hylorada"]
    assert record["base"]["own_window"] == {}
    shared = record["base"]["extended"]
    assert shared == {name: first["base"]["extended"][name] for name in shared}
    out = capsys.readouterr().out
    assert "perplexity" not in out
    assert "right answers by depth, ranked (kv): 12 prompts" in out
    assert "loss of the same 32 tokens" in out


class Killed(BaseException):
    """As a process that is killed: nothing of ours takes it for a reason to save."""


@pytest.mark.parametrize("by", slow("signal", "kill"))
def test_every_part_continues_after_the_second_batch(done, root, monkeypatch, by):
    config, (_, record, _) = asked(root), done
    directory = root / by
    calls: dict[str, int] = {}
    real = resumable.Partial.boundary
    if by == "kill":
        monkeypatch.setattr(resumable, "KEEP_SECONDS", 0.0)

    def end_at_the_second(self, found):
        name = self._path.name if self._path and self._path.parent == directory else ""
        calls[name] = calls.get(name, 0) + 1
        second = bool(name) and calls[name] == 2
        if second and by == "signal":
            self._stop.requested = signal.SIGTERM
        real(self, found)
        if second:
            raise Killed

    monkeypatch.setattr(resumable.Partial, "boundary", end_at_the_second)
    ends, expected = 0, Interrupted if by == "signal" else Killed
    while True:
        try:
            again = run(config, directory)
            break
        except expected:
            ends += 1
    calls.pop("", None)  # of the base
    assert ends == len(calls) == 3
    assert sorted(calls.values()) == [2, 4, 12]  # places, blocks, prompts: none measured twice
    assert again["metrics"] == record["metrics"]
    assert not list(directory.glob(".evaluation*"))


class StopAt(Stop):
    """A signal comes before some look at it."""

    def __init__(self, looks):
        super().__init__()
        self.looks = looks

    def check(self):
        self.looks -= 1
        if not self.looks:
            self.requested = signal.SIGTERM
        super().check()


# Of 4 blocks, 12 prompts and 2 places.
@pytest.mark.parametrize("boundary", [10, *slow(2, 17)])
def test_what_was_measured_in_another_precision_is_not_continued(root, tmp_path, boundary):
    config = asked(root)
    backbone = load_backbone(config.model, torch.device("cpu"))
    extend_range(backbone.model, WINDOW)
    prepared = prepare(config, open_base(config.model), Stop())
    path = tmp_path / "partial"

    def examined(autocast, stop, path):
        meter = measure.Meter(torch.device("cpu"), autocast, 512, stop, Reporter())
        return meter.measure_all(backbone.model, prepared, "model", partial=path)

    with pytest.raises(Interrupted):
        examined(None, StopAt(boundary), path)
    assert list(tmp_path.iterdir())
    assert examined(torch.bfloat16, Stop(), path) == examined(torch.bfloat16, Stop(), None)


def test_prompts_that_do_not_fit_are_refused_before_training(root, tmp_path):
    with pytest.raises(DataError, match="not even two uuid pairs fit a window of 96"):
        run(
            asked(root, length__max_length=96, eval__lost_in_middle__key_style="uuid"),
            tmp_path / "run",
        )
    with pytest.raises(DataError, match="more than the window of 320"):
        run(asked(root, eval__lost_in_middle__items=40), tmp_path / "other")
    assert not (tmp_path / "other" / "metrics.jsonl").exists()


def test_a_published_file_says_which_pairs(tmp_path):
    path = tmp_path / "kv.jsonl.gz"
    examples = generate_key_values(5, 3)
    with gzip.open(path, "wt") as file:
        for e in examples:
            row = {"ordered_kv_records": e.records, "key": e.key, "value": e.value}
            file.write(json.dumps(row) + "\n")
    settings = configs.LostInMiddleConfig(path=str(path), examples=2, depths=[0.0, 1.0])
    found = make_prompts(settings, Characters(), 4096)
    assert [p.text for p in found.prompts] == [
        e.prompt(d, n).text for n, e in enumerate(examples[:2]) for d in (0.0, 1.0)
    ]
    assert found.items == 5
    assert found.source.startswith("kv.jsonl.gz, sha256 ")


def test_a_file_of_prompts_that_may_not_be_read_is_called_that(tmp_path):
    path = tmp_path / "kv.jsonl"
    path.write_text("{}")
    no_permission(path)
    settings = configs.LostInMiddleConfig(path=str(path))
    with pytest.raises(DataError, match=r"kv.jsonl: cannot be read \(Permission denied\); make it"):
        make_prompts(settings, Characters(), 4096)


def test_passkeys_fill_the_window_and_questions_take_a_longer_answer(tmp_path):
    settings = configs.LostInMiddleConfig(form="passkey", examples=3, depths=[0.5])
    found = make_prompts(settings, Characters(), 2000)
    assert 1800 < max(len(p.text) for p in found.prompts) <= 2000
    rows = [
        {"question": f"q{i}?", "answers": [f"a{i}"], "ctxs": [{"title": "t", "text": f"is a{i}."}]}
        for i in range(4)
    ]
    path = tmp_path / "nq.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    settings = configs.LostInMiddleConfig(
        form="nq", path=str(path), items=3, examples=2, scorings=["generated"], depths=[0.0, 1.0]
    )
    found = make_prompts(settings, Characters(), 2000)
    assert (len(found.prompts), found.items, found.max_new_tokens) == (4, 3, 100)
    assert "easier than the published task" in found.note


class Tracker(tracker.Tracker):
    active = True

    def __init__(self):
        self.got = {}

    def summary(self, values):
        self.got["summary"] = values

    def table(self, name, columns, rows):
        self.got[name] = (columns, rows)

    def picture(self, name, png):
        self.got[name] = png


def test_trackers_get_the_numbers_the_table_and_the_picture(done):
    _, record, _ = done
    tracker = Tracker()
    final_numbers.mirror(record, tracker)
    metric = record["metrics"]["lim/accuracy@0.5"]
    assert tracker.got["summary"]["lim/accuracy@0.5"] == metric["value"]
    assert "base/context_gain/nll@32" in tracker.got["summary"]
    columns, rows = tracker.got["lim/by_depth"]
    assert len(rows) == 2 * 2 * len(DEPTHS)
    row = dict(zip(columns, rows[len(rows) // 2 + 1], strict=True))
    assert (row["model"], row["depth"], row["accuracy"]) == ("hylorada", 0.5, metric["value"])
    for name in ("lim/curve", "lim/curve_generated"):
        assert tracker.got[name].startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_one_warning(done, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no font\nfamily")

    monkeypatch.setattr(retrieval_picture, "accuracy_by_depth", fail)
    tracker = Tracker()
    final_numbers.mirror(done[1], tracker)
    assert set(tracker.got) == {"summary", "lim/by_depth"}
    (warning,) = caplog.messages
    assert warning.startswith(
        "the pictures of retrieval cannot be drawn (RuntimeError: no font family)"
    )


def test_nothing_is_drawn_for_nobody(root, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(retrieval_picture, "accuracy_by_depth", lambda *_: drawn.append(1))
    assert run(asked(root), tmp_path / "run")["status"] == "ok"  # track=off
    assert not drawn


def test_wandb_holds_the_picture_the_table_and_the_summary(done):
    _, record, directory = done
    (path,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    wait_for_exit_record(path)
    metrics, found = record["metrics"], summary(path)
    for name in ("eval/ppl", "lim/accuracy@0.5", "lim/middle_gap"):
        assert found[name] == pytest.approx(metrics[name]["value"])
    shown = {name: value for row in history(path) for name, value in row.items()}
    files = path.parent / "files"
    for name in ("lim/curve", "lim/curve_generated"):
        with Image.open(files / shown[f"{name}.path"]) as image:
            assert (image.format, image.size) == ("PNG", (800, 592))
            darkest, brightest = image.convert("L").getextrema()
            assert (darkest < 64, brightest) == (True, 255)  # something is drawn
    table = json.loads((files / shown["lim/by_depth.path"]).read_text())
    assert table["columns"] == COLUMNS
    tables = LostInMiddle().tracked_tables(final_numbers.arms(record))
    assert table["data"] == tables["lim/by_depth"][1]
    assert len(table["data"]) == 2 * 2 * len(DEPTHS)


def measured(root, model, title="lora"):
    """Perplexity of a model that has something the matter with it."""
    config = asked(root, eval__lost_in_middle__enabled=False, eval__context_gain__enabled=False)
    prepared = prepare(config, open_base(config.model), Stop())
    meter = measure.make_meter(config, Stop(), Reporter())
    return meter.measure(model, prepared.parts[0], title)


def test_weights_that_have_blown_up_are_named_and_not_the_document_alone(root):
    config = asked(root)
    model = load_backbone(config.model, torch.device("cpu")).model
    extend_range(model, WINDOW)
    weight = model.transformer.h[1].mlp.c_fc.weight
    with torch.no_grad():
        weight[0, 0] = 3e38
    with pytest.raises(DivergedError, match=r"not finite on .*; the largest .* 3e\+38, in .*c_fc"):
        measured(root, model)
    with torch.no_grad():
        weight[0, 0] = math.nan
    with pytest.raises(DivergedError, match=r"c_fc\.weight holds numbers that are not finite"):
        measured(root, model)


@pytest.mark.parametrize("kind", ["device", "host"])
def test_memory_that_runs_out_in_a_measurement_has_hints_for_it(root, monkeypatch, kind):
    def full(*_words, **_named):
        raise torch.OutOfMemoryError("CUDA out of memory") if kind == "device" else MemoryError()

    config = asked(root)
    model = load_backbone(config.model, torch.device("cpu")).model
    monkeypatch.setattr("hylorada.evaluation.perplexity.token_nll", full)
    with pytest.raises(
        OutOfMemoryError, match=r"out of memory measuring lora \(perplexity"
    ) as told:
        measured(root, model)
    assert "train.loss_chunk" in str(told.value)
    assert "gradient_checkpointing" not in str(told.value)
    assert "micro_batch" not in str(told.value)


def test_rows_that_do_not_fit_together_are_measured_apart(root, monkeypatch):
    """The same numbers, from half of the rows at a time, down to one."""
    config = asked(root)
    model = load_backbone(config.model, torch.device("cpu")).model
    extend_range(model, WINDOW)
    plain, sizes = perplexity.token_nll, []

    def limited(model, ids, *words, **named):
        sizes.append(len(ids))
        if len(ids) > 1:
            raise torch.OutOfMemoryError
        return plain(model, ids, *words, **named)

    ids = torch.arange(5 * 60).reshape(5, 60) % 250
    targets = ids.roll(-1, 1)
    whole = perplexity._nll_that_fits(model, ids, targets, 16)
    monkeypatch.setattr(perplexity, "token_nll", limited)
    apart = perplexity._nll_that_fits(model, ids, targets, 16)
    assert sizes[:3] == [5, 3, 2]
    torch.testing.assert_close(whole, apart, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("precision", "bf16", "told"), [
    ("auto", False, True), ("auto", True, False), ("fp32", False, False), ("fp16", False, False)
])  # fmt: skip
def test_a_gpu_without_bf16_is_told_of_fp16(monkeypatch, caplog, precision, bf16, told):
    monkeypatch.setattr(measure, "choose_device", lambda wanted: torch.device("cuda"))
    monkeypatch.setattr("hylorada.process.device.has_bf16", lambda device: bf16)
    config = configs.RunConfig()
    config.train.precision = precision
    with caplog.at_level("INFO"):
        meter = measure.make_meter(config, Stop(), Reporter())
    assert meter.precision == {"auto": "bf16" if bf16 else "fp32"}.get(precision, precision)
    assert ("train.precision=fp16" in caplog.text) is told
