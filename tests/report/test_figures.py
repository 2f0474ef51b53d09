"""Which figures the records give, and that they show what the records hold."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from helpers.records import factorial, make_record, sweep
from matplotlib.figure import Figure

from hylorada.comparison.arms import compare
from hylorada.comparison.by_length import by_length
from hylorada.comparison.collect import Record
from hylorada.comparison.picture import Picture
from hylorada.report.figures import draw_all
from hylorada.statistics.paired import paired_change, pooled_ppl, ppl_interval


def comparisons_of(records, timing=(), history=()):
    found = [Record(Path(r["name"]), r, list(history), list(timing)) for r in records]
    return compare(found)[0]


@pytest.fixture
def drawn(monkeypatch):
    """Name -> the axes of each picture; what is written of them is tested with the command."""
    kept = {}

    def picture(figure: Figure, name: str, caption: str):
        kept[name] = figure.axes[0]
        return Picture(name, caption, "", b"")

    for module in ("evaluation.perplexity_by_length", "evaluation.component_picture",
                   "evaluation.perplexity_picture", "report.figures"):  # fmt: skip
        monkeypatch.setattr(f"hylorada.{module}.picture", picture)
    return kept


def bars(axes):
    """Label -> the points of an errorbar and the ends of its bars, each [N, 2]."""
    found = {}
    for container in axes.containers:
        points = container[0].get_xydata()
        (segments,) = container[2]
        found[container.get_label()] = points, np.array(segments.get_segments())
    return found


def test_by_length_are_the_pooled_perplexities_and_the_paired_changes(drawn):
    records = sweep(lengths=(512, 2048, 4096))
    draw_all(comparisons_of(records), "lora")
    own, change = (bars(drawn[f"tiny-stdlib-{n}-by-length"]) for n in ("ppl", "difference"))
    for i, length in enumerate((512, 2048, 4096)):
        lora, hylorada = (
            {r["seed"]: r["metrics"]["eval/ppl"] for r in records
             if (r["method"], r["length"]) == (method, length)}
            for method in ("lora", "hylorada")
        )  # fmt: skip
        points, ends = own["hylorada"]
        assert points[i][0] == pytest.approx(length, rel=0.15)  # beside the others
        assert points[i][1] == pytest.approx(pooled_ppl(list(hylorada.values())))
        assert ends[i][:, 1] == pytest.approx(ppl_interval(list(hylorada.values())))
        points, ends = change["hylorada"]
        expected = paired_change(hylorada, lora)
        assert points[i][1] == pytest.approx(expected.percent)
        assert ends[i][:, 1] == pytest.approx((expected.low, expected.high))
    assert "lora" not in change
    extended = [
        r["base"]["extended"]["eval/ppl"]["value"] for r in records if r["method"] == "lora"
    ]
    assert own["base, untrained"][0][:, 1] == pytest.approx(sorted(set(extended)))


def test_costs_by_length_are_those_of_the_records(drawn):
    records = [make_record("lora", seed, length) for length in (512, 1024) for seed in (0, 1)]
    draw_all(comparisons_of(records), "lora")
    time, memory = (drawn[f"tiny-stdlib-{name}-by-length"].lines[0] for name in ("time", "memory"))
    speeds = [(512 / 2, 512 / 2 + 1), (512, 513)]
    assert time.get_ydata() == pytest.approx([(1000 / a + 1000 / b) / 2 for a, b in speeds])
    assert memory.get_ydata() == pytest.approx([901, 901])


def test_one_length_has_no_figure_by_length_and_two_ways_are_two_groups(drawn):
    draw_all(comparisons_of([make_record("lora"), make_record("hylorada")]), "lora")
    assert not [name for name in drawn if "by-length" in name]
    records = [
        make_record("lora", length=length, train__lr=lr) for length in (512, 1024) for lr in (1, 2)
    ]
    groups = by_length(comparisons_of(records))
    assert [[c.length for c in group] for group in groups] == [[512, 1024]] * 2
    assert len({group[0].label for group in groups}) == 2


def test_each_row_of_the_factorial_is_a_paired_change(drawn):
    records = factorial(seeds=3)
    draw_all(comparisons_of(records), "lora")
    axes = drawn["tiny-stdlib-4096-components"]
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert len(labels) == 10
    row = labels.index("landmarks\non hylorada_no_landmark")
    with_it, without = (
        {r["seed"]: r["metrics"]["eval/ppl"] for r in records if r["method"] == method}
        for method in ("hylorada", "hylorada_no_landmark")
    )
    point, ends = axes.containers[row][0].get_xydata()[0], axes.containers[row][2][0]
    expected = paired_change(with_it, without)
    assert point[0] == pytest.approx(expected.percent)
    assert ends.get_segments()[0][:, 0] == pytest.approx((expected.low, expected.high))


def test_by_training_time_is_where_training_ended(drawn):
    records = [make_record("lora"), make_record("hylorada")]
    records[1]["training"]["seconds"] = 50.0
    draw_all(comparisons_of(records), "lora")
    found = {c.get_label(): c[0].get_xydata()[0] for c in
             drawn["tiny-stdlib-4096-ppl-by-time"].containers}  # fmt: skip
    for record in records:
        seconds, ppl = found[record["method"]]
        assert seconds == record["training"]["seconds"]
        assert ppl == pytest.approx(record["metrics"]["eval/ppl"]["value"])


def test_variants_of_a_method_are_told_apart_without_lines(drawn):
    start = "method__position_range__learned_init"
    records = [make_record("lora", **{start: init}) for init in ("by_parts", "interpolate")]
    draw_all(comparisons_of(records), "lora")
    axes = drawn["tiny-stdlib-4096-ppl-by-time"]
    assert len({container[0].get_fillstyle() for container in axes.containers}) == 2
    assert not any(container[2] for container in axes.containers)  # one seed has no range
    many = [make_record(f"arm{i}") for i in range(20)]
    draw_all(comparisons_of(many), "lora")
    points = [c[0] for c in drawn["tiny-stdlib-4096-ppl-by-time"].containers]
    assert len({(p.get_color(), p.get_marker(), p.get_fillstyle()) for p in points}) == 20


def test_long_names_are_within_the_sheet(drawn):
    draw_all(comparisons_of([*factorial(seeds=1), make_record("rslora")]), "lora")
    for name in ("loss-by-position-blocks", "components"):
        figure = drawn[f"tiny-stdlib-4096-{name}"].figure
        figure.draw_without_rendering()
        labels = [
            *figure.axes[0].get_yticklabels(),
            *(t for each in figure.legends for t in each.get_texts()),
        ]
        boxes = [label.get_window_extent() for label in labels if label.get_text()]
        assert min(box.x0 for box in boxes) >= 0
        assert max(box.x1 for box in boxes) <= figure.bbox.x1


def test_seeds_have_the_median_time_of_the_table_and_their_range(drawn):
    records = [make_record(name, seed) for name in ("lora", "rslora") for seed in range(3)]
    for record, seconds in zip(records[:3], (20.0, 30.0, 100.0), strict=True):
        record["training"]["seconds"] = seconds
        record["training"]["tokens_per_second"] = 1000 / seconds
    slow = [make_record("lora", seed, 512) for seed in range(3)]
    draw_all(comparisons_of([*records, *slow]), "lora")
    (container,) = (
        c for c in drawn["tiny-stdlib-4096-ppl-by-time"].containers if c.get_label() == "lora"
    )
    assert container[0].get_xdata() == [30]
    assert np.ptp(container[2][0].get_segments()[0][:, 0]) == 80
    axes = drawn["tiny-stdlib-time-by-length"]
    assert axes.lines[0].get_ydata()[1] == pytest.approx(30)
    ends = axes.containers[0][2][0].get_segments()[1][:, 1]
    assert ends == pytest.approx([20, 100])


def test_with_validation_it_is_the_curve_over_the_seconds_that_passed(drawn):
    # The attempt that was killed had taken step 2 before, more slowly.
    seconds = [(1, 2.0), (2, 9.0), (2, 3.0), (3, 4.0), (4, 5.0)]
    timing = [{"step": step, "seconds": s} for step, s in seconds]
    history = [{"step": 2, "validation/ppl": 60.0}, {"step": 4, "validation/ppl": 50.0}]
    draw_all(comparisons_of([make_record("lora")], timing, history), "lora")
    (line, *_) = drawn["tiny-stdlib-4096-ppl-by-time"].lines
    assert line.get_xydata().tolist() == [[5.0, 60.0], [14.0, 50.0]]


def test_labels_beside_lines_do_not_cover_one_another(drawn):
    draw_all(comparisons_of(sweep(lengths=(512, 4096))), "lora")
    axes = drawn["tiny-stdlib-4096-loss-by-position-blocks"]
    axes.figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    assert len(boxes) == 6
    for below, above in itertools.pairwise(boxes):
        assert below.y1 <= above.y0 + 1
    assert all(math.isfinite(box.x1) and box.x1 <= axes.figure.bbox.x1 for box in boxes)


def test_labels_beside_lines_are_broken_after_underscores_alone(drawn):
    names = ("lora", "lora_embeddings_norms", "hylorada_leaky_landmark")
    draw_all(comparisons_of([make_record(name) for name in names]), "lora")
    axes = drawn["tiny-stdlib-4096-loss-by-position-blocks"]
    texts = {text.get_text() for text in axes.texts}
    assert {"lora", "lora_embeddings_\nnorms", "hylorada_leaky_\nlandmark"} <= texts


def test_many_arms_have_a_legend_below_and_the_curve_keeps_its_height(drawn):
    draw_all(comparisons_of(factorial(seeds=1)), "lora")
    axes = drawn["tiny-stdlib-4096-loss-by-position-blocks"]
    assert not axes.texts
    (legend,) = axes.figure.legends
    axes.figure.draw_without_rendering()
    assert len(legend.get_texts()) == 14
    assert axes.get_position().height * axes.figure.get_figheight() > 2
