"""What stands below the table of the family of arms: p-values, matches, the noise floor."""

from __future__ import annotations

import math
from pathlib import Path

from helpers.records import make_record, metrics
from scipy import stats

from hylorada.comparison.arms import compare
from hylorada.comparison.collect import Record
from hylorada.report.table import build_tables
from hylorada.statistics.contrasts import holm
from hylorada.statistics.paired import paired_change


def notes_of(*records) -> list[str]:
    comparisons, problems = compare([Record(Path(r["name"]), r) for r in records])
    assert not problems
    (table,) = build_tables(comparisons)
    return table.notes


def arms(seeds: int, **levels: float) -> list[dict]:
    """Runs whose perplexities lie at these losses."""
    records = []
    for method, level in levels.items():
        for seed in range(seeds):
            record = make_record(method, seed)
            record["metrics"] = metrics(level, 4096, seed, noise=0.01)
            records.append(record)
    return records


def test_the_family_is_corrected_and_named():
    records = arms(3, lora=3.9, rslora=3.899, hylorada=3.8)
    (note,) = [n for n in notes_of(*records) if "Holm-adjusted p-values" in n]
    assert note.startswith("length 4,096: PPL vs lora, Holm-adjusted p-values (2 comparisons): ")
    by_method = {
        method: {r["seed"]: r["metrics"]["eval/ppl"] for r in records if r["method"] == method}
        for method in ("lora", "rslora", "hylorada")
    }
    p = [
        paired_change(by_method[m], by_method["lora"]).log_ratio.p_value()
        for m in ("rslora", "hylorada")
    ]
    assert f"rslora {holm(p)[0]:.2f}; hylorada < 0.001." in note


def test_of_one_seed_the_p_values_say_so():
    (note,) = [
        n for n in notes_of(*arms(1, lora=3.9, hylorada=3.8)) if "Holm-adjusted p-values" in n
    ]
    assert "hylorada < 0.001 (one seed: variation between seeds is not included)." in note
    mixed = arms(1, rslora=3.85) + arms(3, lora=3.9, hylorada=3.8)
    (note,) = [n for n in notes_of(*mixed) if "Holm-adjusted p-values" in n]
    assert "(one seed of rslora: variation" in note


def test_a_match_is_shown_and_not_assumed():
    """Equal arms match only if that is known well enough: not finding a difference is no match."""
    near = arms(5, lora=3.9, rslora=3.9001, hylorada=3.8)
    for record in near:
        if record["method"] == "rslora":  # the same documents go the same way
            lora = next(r for r in near if (r["method"], r["seed"]) == ("lora", record["seed"]))
            for ours, theirs in zip(
                record["metrics"]["eval/ppl"]["by_document"],
                lora["metrics"]["eval/ppl"]["by_document"], strict=True,
            ):  # fmt: skip
                ours["sum_nll"] = theirs["sum_nll"] + 1e-4 * theirs["tokens"]
    (note,) = [n for n in notes_of(*near) if "equivalent to" in n]
    assert note.endswith("PPL equivalent to lora within 0.5 % (two one-sided tests, TOST; "
                         "Holm-adjusted p < 0.05): rslora.")  # fmt: skip
    (note,) = [n for n in notes_of(*arms(3, lora=3.9, rslora=3.901)) if "equivalent to" in n]
    assert note.endswith(": none.")


def test_without_an_interval_nothing_is_said():
    records = arms(1, lora=3.9, hylorada=3.8)
    for record in records:
        for metric in [*record["metrics"].values(), *record["base"]["extended"].values()]:
            metric["by_document"] = metric["by_document"][:2]
    notes = notes_of(*records)
    assert not any("Holm-adjusted p-" in note or "equivalent to" in note for note in notes)


def test_the_noise_floor_says_what_could_have_been_found():
    records = arms(3, rslora=3.9)
    for record in arms(3, rslora_noise_floor=3.901):
        record["config"]["method"] |= {"adapter_seed": 1000}
        records.append(record)
    records += arms(3, lora=3.95)
    (note,) = [n for n in notes_of(*records) if "noise floor: " in n]
    assert "rslora_noise_floor is rslora with another adapter seed" in note
    by_method = {
        method: {r["seed"]: r["metrics"]["eval/ppl"] for r in records if r["method"] == method}
        for method in ("rslora", "rslora_noise_floor")
    }
    change = paired_change(by_method["rslora_noise_floor"], by_method["rslora"])
    assert f"{change.percent:+.2f} % [{change.low:+.2f}, {change.high:+.2f}]. Minimum" in note
    log_ratio = change.log_ratio
    reach = stats.t.ppf(0.975, log_ratio.df) + stats.t.ppf(0.8, log_ratio.df)
    smallest = 100 * math.expm1(reach * log_ratio.se)
    assert f"Minimum detectable effect: {smallest:.2f} % (80 % power)" in note
