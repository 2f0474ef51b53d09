"""The arm that another one contains, by the groups that they train."""

from __future__ import annotations

from pathlib import Path

from helpers.records import factorial, make_record

from hylorada.comparison.arms import compare
from hylorada.comparison.collect import Record
from hylorada.comparison.nested import nested_in
from hylorada.report.table import build_tables


def trained(method: str, groups: dict[str, int], seed: int = 0, **settings) -> dict:
    record = make_record(method, seed, **settings)
    record["parameters"] |= {"trainable": sum(groups.values()), "by_group": groups}
    return record


def arms(*records):
    (comparison,), problems = compare([Record(Path(r["name"]), r) for r in records])
    assert not problems
    return comparison, {arm.label: arm for arm in comparison.arms}


def test_the_largest_part_is_taken_and_of_equals_the_most_alike():
    comparison, found = arms(
        trained("lora", {"lora": 100}),
        trained("rslora", {"lora": 100}),
        trained("rslora_norms", {"lora": 100, "norms": 10}, method__train_norms="true"),
        trained("rslora_both", {"lora": 100, "norms": 10, "landmark": 5},
                method__train_norms="true", method__landmark__enabled="true"),
        trained("other", {"lora": 90, "norms": 10}),
    )  # fmt: skip
    assert nested_in(found["rslora_both"], comparison) is found["rslora_norms"]
    assert nested_in(found["rslora_norms"], comparison) is found["rslora"]
    assert nested_in(found["rslora"], comparison) is None
    assert nested_in(found["other"], comparison) is None  # its LoRA is another one


def test_the_price_is_of_what_is_trained_more():
    records = [trained("rslora", {"lora": 100}, seed) for seed in range(3)]
    records += [trained("hylorada", {"lora": 100, "norms": 900}, seed) for seed in range(3)]
    comparison, _ = arms(*records)
    (table,) = build_tables([comparison], "rslora")
    row = {r.cells["method"].text: r.cells for r in table.sections[0].rows}["hylorada"]
    gain, price = row["change_reference"], row["params_per_percent"]
    assert price.value == 900 / -gain.value
    assert (price.low, price.high) == (900 / -gain.low, 900 / -gain.high)
    assert price.text.startswith(f"{price.value:,.0f} over rslora [")


def test_a_gain_that_may_be_nothing_has_no_price():
    same = make_record("rslora")["metrics"]
    records = [trained("rslora", {"lora": 100}), trained("hylorada", {"lora": 100, "norms": 900})]
    records[1]["metrics"] = same
    comparison, _ = arms(*records)
    (table,) = build_tables([comparison])
    cell = {r.cells["method"].text: r.cells for r in table.sections[0].rows}["hylorada"]
    assert cell["params_per_percent"].text == "no gain over rslora"
    assert cell["params_per_percent"].value is None


def test_what_has_no_parameters_is_not_paid_for():
    """HyLoRADA without S² gains mostly by what it leaves out, against an arm that has it."""
    comparison, found = arms(*factorial(seeds=1))
    assert nested_in(found["hylorada_no_s2"], comparison) is found["rslora_embeddings"]
    assert nested_in(found["hylorada"], comparison) is found["hylorada_no_position_bias"]
    comparison, found = arms(*(r for r in factorial(seeds=1) if not r["method"].startswith("rs")))
    assert nested_in(found["hylorada_no_s2"], comparison) is found["hylorada_no_position_bias"]
