"""What may be asked of LongBench and RULER, found wrong before any model loads."""

from __future__ import annotations

import sys

import pytest

from hylorada import cli
from hylorada.config import EvalConfig, HarnessConfig, PerplexityConfig, RunConfig
from hylorada.data.kinds import longbench
from hylorada.errors import ConfigError, DataError
from hylorada.evaluation.longbench_metrics import METRICS
from hylorada.settings import check_settings, harness_tasks


def asking(*tasks, length=4096, **settings):
    config = RunConfig()
    config.length.max_length = length
    harness = HarnessConfig(True, list(tasks), **settings)
    config.eval = EvalConfig("longbench", PerplexityConfig([]), harness=harness)
    return config


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(harness_tasks, "find_spec", lambda name: object())


def test_the_tasks_are_those_of_the_data_and_of_the_metrics():
    names = [
        harness_tasks.longbench_file(t)
        for t in (*harness_tasks.LONGBENCH, *harness_tasks.LONGBENCH_E)
    ]
    assert sorted(names) == sorted(longbench.TASKS)
    assert {name.removesuffix("_e") for name in names} == set(METRICS)
    assert len(harness_tasks.RULER) == 13


def test_lm_eval_has_a_task_of_each_name():
    lm_eval = pytest.importorskip("lm_eval", reason="the extra harness is not installed")
    from lm_eval.tasks import TaskManager

    folder = f"{lm_eval.__path__[0]}/tasks"
    paths = [f"{folder}/longbench", f"{folder}/ruler"]
    known = TaskManager(include_defaults=False, include_path=paths).all_subtasks
    assert set(harness_tasks.TASKS) == set(known)


def test_groups_stand_for_their_tasks_and_metrics_have_short_names():
    tasks = harness_tasks.expand(["longbench_trec", "longbench", "niah_single_1"])
    assert len(tasks) == 22
    assert tasks[0] == "longbench_trec"
    names = ("longbench_trec_e", "ruler_vt", "niah_single_1")
    short = ["longbench/trec_e", "ruler/vt", "ruler/niah_single_1"]
    assert [harness_tasks.metric_name(name) for name in names] == short
    metrics = [*short, "longbench/trec", "longbench/average", "longbench/average_e", "eval/ppl_e"]
    groups = ["longbench_e", "ruler", "ruler", "longbench", "longbench", "longbench_e", ""]
    assert [harness_tasks.benchmark(name) for name in metrics] == groups


def test_what_can_be_asked_passes(installed):
    check_settings(asking("longbench", "longbench_e", "ruler"))
    check_settings(asking("longbench_trec", length=66))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (asking("longbench_terc"), "no 'longbench_terc'; did you mean longbench_trec"),
        (asking("hellaswag"), r"no 'hellaswag'\. There are the groups longbench"),
        (asking(), "tasks is empty"),
        (asking("longbench_trec", limit=-1), "limit is -1"),
        (asking("longbench_gov_report", length=513), "gives an answer 512 tokens"),
        (asking("longbench_trec", length=65), "leaves nothing of a window of 65"),
        (asking("ruler_vt", longbench_path="."), "no effect: no task is LongBench's"),
        (asking("longbench", longbench_hub_id=""), "longbench_hub_id are empty"),
    ],
)
def test_what_cannot_be_asked_is_one_line(installed, config, message):
    with pytest.raises(ConfigError, match=message):
        check_settings(config)


def test_data_that_is_not_there_is_one_line(installed):
    with pytest.raises(DataError, match="does not exist"):
        check_settings(asking("longbench", longbench_path="/no/such/place"))


@pytest.mark.parametrize(
    ("tasks", "package"),
    [("longbench_trec", "lm_eval"), ("niah_single_1", "nltk"), ("longbench_vcsum", "jieba")],
)
def test_a_missing_package_ends_with_code_2_before_anything_loads(
    monkeypatch, capsys, tasks, package, tmp_path
):
    monkeypatch.setitem(sys.modules, package, None)
    words = ["eval=longbench", f"eval.harness.tasks=[{tasks}]", f"output_root={tmp_path}"]
    assert cli.train(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert package in line
    assert "pip install 'hylorada[harness]'" in line
