"""The lines a run ends with say nothing that its record does not hold."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from hylorada.evaluation.measurements.perplexity import params_per_percent
from hylorada.runner.summary import summary_tables
from hylorada.tracking.final_numbers import tracked_summary

WORD = {"convention": "word", "split": "test", "tokens": 900, "words": 600}
BLOCKS = {"convention": "blocks", "split": "test", "tokens": 900}
SLIDING = {"convention": "sliding", "split": "test", "tokens": 900}


def make_record(metrics: dict, extended: dict, own_window: dict) -> dict:
    return {
        "method": "lora",
        "dataset": "stdlib",
        "length": 512,
        "metrics": metrics,
        "base": {"extended": extended, "own_window": own_window},
        "parameters": {"trainable": 1000},
        "training": {"steps": 3},
    }


def asked(settings: dict, value: float, window: int = 512, shift: float = 0.0) -> dict:
    """A metric of three documents; `shift` moves nats from the last to the first of them."""
    by_document = [
        {"name": str(i), "tokens": 300, "sum_nll": 300 * (math.log(value) + (1 - i) * shift)}
        for i in range(3)
    ]
    return {**settings, "value": value, "window": window, "by_document": by_document}


def printed(record: dict) -> dict[str, list[str]]:
    """The cells of each row, the heads of columns under "model"."""
    console = Console(file=io.StringIO(), width=140)
    for table in summary_tables(record, record["metrics"]):
        console.print(table)
    lines = [line for line in console.file.getvalue().splitlines() if line[:1] in "┃│"]
    cells = ([c.strip() for c in line.strip("┃│").replace("┃", "│").split("│")] for line in lines)
    return {first: rest for first, *rest in cells}


@pytest.fixture
def record():
    """The perplexity per word fell by 60 %, the one that is compared by 20 %."""
    return make_record(
        {"eval/ppl_word": asked(WORD, 40.0), "eval/ppl": asked(BLOCKS, 8.0)},
        {"eval/ppl_word": asked(WORD, 100.0), "eval/ppl": asked(BLOCKS, 10.0)},
        {"eval/ppl_sliding": asked(SLIDING, 9.5, 128), "eval/ppl_word": asked(WORD, 95.5, 128)},
    )


def test_the_change_is_that_of_a_convention_that_may_be_compared(record):
    rows = printed(record)
    assert rows["model"] == ["window", "word", "blocks", "sliding", "change"]
    assert rows["lora, 3 steps"] == ["512", "40.000", "8.000", "-", "-20.00 %"]
    assert params_per_percent(record) == pytest.approx(1000 / 20)
    assert tracked_summary(record)["efficiency/params_per_percent"] == pytest.approx(1000 / 20)


def test_a_gain_that_documents_do_not_agree_on_has_no_price(record):
    record["metrics"]["eval/ppl"] = asked(BLOCKS, 8.0, shift=0.3)
    assert printed(record)["lora, 3 steps"][-1] == "-20.00 %"
    assert params_per_percent(record) is None


@pytest.mark.parametrize("name", ["eval/ppl_word", "eval/ppl_paper"])
def test_no_change_is_computed_from_the_rarer_conventions(record, name):
    for metrics in (record["metrics"], record["base"]["extended"]):
        del metrics["eval/ppl"]
        metrics[name] = metrics.pop("eval/ppl_word")
    rows = printed(record)
    assert "change" not in rows["model"]
    assert not any("%" in cell for cells in rows.values() for cell in cells)
    assert rows["base, extended, untrained"][1] == "100.000"
    assert params_per_percent(record) is None
    assert "efficiency/params_per_percent" not in tracked_summary(record)


def test_the_base_as_it_is_has_every_convention_it_was_measured_in(record):
    assert printed(record)["base, as it is"][:4] == ["128", "95.500", "-", "9.500"]


def test_without_its_own_window_the_base_stands_once(record):
    record["base"]["own_window"] = {}
    rows = printed(record)
    assert "base, as it is" not in rows
    assert rows["model"] == ["window", "word", "blocks", "change"]


def test_up_to_its_trained_length_the_base_is_not_called_extended(record):
    record["position_range"] = {"kind": "none", "from": 512, "to": 512}
    rows = printed(record)
    assert "base, extended, untrained" not in rows
    assert rows["base"][0] == "512"
    record["base"]["own_window"] = {"eval/ppl_sliding": asked(SLIDING, 9.5, 1024)}
    assert "base, as it is" not in printed(record)  # longer than the run's window
    del record["position_range"]  # of an earlier version: its own window tells
    assert "base" in printed(record)


def test_skipped_steps_stand_beside_the_steps(record):
    record["training"]["skipped_steps"] = 2
    assert "lora, 3 steps, 2 skipped" in printed(record)
