"""What all pictures share: sheet, colours, legend, the form they are kept in.

Drawn by matplotlib without a display. Colours are Okabe and Ito's, which people with a colour
vision deficiency tell apart; a method keeps its colour and line style in every picture. Text is
drawn as outlines and no date is stored, so that the same records give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hylorada.comparison.arms import Arm, Comparison
from hylorada.comparison.picture import Picture
from hylorada.comparison.subjects import Metric, agreed, bases, of_arm

# Okabe and Ito (2008), without yellow, which does not show on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_FIXED = {"lora": 0, "hylorada": 1, "longlora": 2, "rslora": 3, "dora": 4}
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
BASE = "#666666"
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": "#222222",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "svg.hashsalt": "hylorada",
    "svg.fonttype": "path",
    "path.simplify": False,
}


def method_style(arm: Arm, comparison: Comparison) -> dict[str, Any]:
    """Colour by method; dashes tell the variants of one colour apart."""
    free = [i for i in range(len(_COLOURS)) if i not in _FIXED.values()]
    others = [a for a in comparison.arms if a.method not in _FIXED and a.method != "baseline"]
    if arm.method in _FIXED:
        colour = _FIXED[arm.method]
        variant = [a for a in comparison.arms if a.method == arm.method].index(arm)
    elif arm in others:
        place = others.index(arm)
        used = {_FIXED[a.method] for a in comparison.arms if a.method in _FIXED}
        open_colours = free + [i for i in range(len(_COLOURS)) if i not in used and i not in free]
        colour = open_colours[place % len(open_colours)]
        variant = place // len(open_colours)
    else:
        return {"color": BASE, "linestyle": "-", "linewidth": 1.4}
    dashes = _DASHES[variant % len(_DASHES)]
    return {"color": _COLOURS[colour], "linestyle": dashes, "linewidth": 1.6}


def base_style(place: int) -> dict[str, Any]:
    """Of the extended base; of several, by their place, each with longer dashes."""
    return {"color": BASE, "linestyle": (0, (4 + 4 * place, 2)), "linewidth": 1.4}


def lines_of(comparison: Comparison, name: str) -> list[tuple[str, dict[str, Any], list[Metric]]]:
    """Label, style and the metrics of the seeds, bases first; only what most rows were asked."""
    rows = [(s, base_style(i)) for i, s in enumerate(bases(comparison, "extended"))]
    rows += [
        (of_arm(arm), method_style(arm, comparison))
        for arm in comparison.arms
        if arm.method != "baseline"
    ]
    wanted = agreed(comparison, name)
    lines = [(s.label, style, [m[name] for m in s.alike(name, wanted)]) for s, style in rows]
    return [line for line in lines if line[2]]


@contextmanager
def figure_and_axes() -> Iterator[tuple[Figure, Axes]]:
    """An empty sheet in the common style."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 4.2), layout="constrained")
        yield figure, figure.add_subplot()


def mean_and_range(axes: Axes, x: Any, y_SN: np.ndarray, band: float = 0.18, **style: Any) -> None:
    """A line for the mean over S seeds and, with several, a band for the range between them.

    Args:
        axes: to draw on.
        x: N places.
        y_SN: a row for each seed.
        band: its opacity.
        style: of the line.
    """
    if len(y_SN) > 1:
        low, high = y_SN.min(axis=0), y_SN.max(axis=0)
        axes.fill_between(x, low, high, color=style["color"], alpha=band, lw=0)
    axes.plot(x, y_SN.mean(axis=0), **style)


def picture(figure: Figure, name: str, caption: str) -> Picture:
    """The drawing in both of its forms."""
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Title": caption})
    figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    return Picture(name, caption, svg.getvalue(), png.getvalue())


def where(comparison: Comparison) -> str:
    """What was compared on what, for titles and captions."""
    text = f"{comparison.model} on {comparison.dataset}, {comparison.length:,} tokens"
    return f"{text} ({comparison.label})" if comparison.label else text


def finish(figure: Figure, axes: Axes, title: str, comparison: Comparison) -> None:
    """Title and legend outside the data; say so where numbers are a small model's on a CPU."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    count = len(axes.get_legend_handles_labels()[1])
    figure.legend(loc="outside lower left", ncols=min(count, 3), handlelength=2.6)
    devices = {
        run.part("training").get("device") or run.part("provenance").get("device")
        for arm in comparison.arms
        for run in arm.runs
    } - {None}
    if devices == {"cpu"}:
        axes.set_title(
            "small model on a CPU", loc="right", fontsize=8, fontweight="normal", style="italic",
            color="#666666",
        )  # fmt: skip
