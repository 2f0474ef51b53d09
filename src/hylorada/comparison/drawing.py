"""What all pictures share: sheet, colours, labels, the form they are kept in.

Drawn by matplotlib without a display, small enough to be read on a telephone. Colours are Okabe and
Ito's, which people with a colour vision deficiency tell apart; a method keeps its colour, marker
and line style in every picture. Text is drawn as outlines and no date is stored, so that the same
records give the same bytes.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hylorada.comparison.arms import Arm, Comparison
from hylorada.comparison.picture import Picture
from hylorada.comparison.subjects import Metric, agreed, bases, of_arm

# Okabe and Ito (2008), without yellow, which does not show on white.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_FIXED = {"lora": 0, "hylorada": 1, "longlora": 2, "rslora": 3, "dora": 4}
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
_FILLS = ("full", "none", "left", "bottom")
BASE = "#666666"
INK, _DIM, _GRID, _PAPER = "#1c1e21", "#5c626b", "#e4e4e4", "#ffffff"
ON_DARK = {
    **dict(
        zip(
            _COLOURS,
            ("#4c9fe6", "#f08548", "#2fc796", "#e29cc4", "#a5dbfa", "#f2bc45", "#f2f3f5"),
            strict=True,
        )
    ),
    BASE: "#a4a9b0", INK: "#e6e7e9", _DIM: "#a9afb8", _GRID: "#2e3238", _PAPER: "#16181b",
}  # fmt: skip
"""Every colour of a drawing, and the one that takes its place on a dark page."""

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _DIM,
    "axes.labelcolor": INK,
    "axes.facecolor": _PAPER,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _DIM,
    "ytick.color": _DIM,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.markersize": 4,
    "legend.frameon": False,
    "figure.facecolor": _PAPER,
    "svg.hashsalt": "hylorada",
    "svg.fonttype": "path",
    "path.simplify": False,
}


def method_style(arm: Arm, comparison: Comparison) -> dict[str, Any]:
    """Colour and marker by method; dashes, shape and filling tell its variants apart."""
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
        return {"color": BASE, "linestyle": "-", "linewidth": 1.4, "marker": "."}
    return {
        "color": _COLOURS[colour], "linestyle": _DASHES[variant % len(_DASHES)], "linewidth": 1.6,
        "marker": _MARKERS[(colour + variant) % len(_MARKERS)],
        "fillstyle": _FILLS[variant % len(_FILLS)],
    }  # fmt: skip


def base_style(place: int) -> dict[str, Any]:
    """Of the extended base; of several, by their place, each with longer dashes."""
    return {
        "color": BASE, "linestyle": (0, (4 + 4 * place, 2)), "linewidth": 1.4, "marker": ".",
    }  # fmt: skip


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
def figure_and_axes(height: float = 3.7) -> Iterator[tuple[Figure, Axes]]:
    """An empty sheet in the common style.

    Args:
        height: in inches.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.0, height), layout="constrained")
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


def length_axis(axes: Axes, lengths: Sequence[int]) -> None:
    """The length of the window along x, each doubling as wide as the next."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlim(min(lengths) / 1.2, max(lengths) * 1.2)
    axes.set_xlabel("length, tokens")


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


def finish(figure: Figure, axes: Axes, title: str, *comparisons: Comparison) -> None:
    """Title, what it is of, and names of lines; says where numbers are a small model's on a CPU.

    Args:
        figure: the sheet.
        axes: with everything drawn.
        title: a few words.
        comparisons: what is drawn is of them; several differ in length.
    """
    first = comparisons[0]
    place = where(first) if len(comparisons) == 1 else f"{first.model} on {first.dataset}"
    devices = {
        run.part("training").get("device") or run.part("provenance").get("device")
        for comparison in comparisons
        for arm in comparison.arms
        for run in arm.runs
    } - {None}
    if devices == {"cpu"}:
        place += "; small model on a CPU"
    _name_lines(figure, axes)
    lines = textwrap.wrap(place, 62)
    figure.set_figheight(figure.get_figheight() + 0.17 * max(0, len(lines) - 2))
    figure.suptitle(title + "\n" * len(lines), x=0.01, ha="left", fontsize=11, fontweight="bold")
    figure.text(
        0.01, 1 - 19 / (72 * figure.get_figheight()), "\n".join(lines), va="top",
        fontsize=8.5, color=_DIM,
    )  # fmt: skip


_LABEL_WIDTH, _LABEL_LINES, _MOST_LABELS = 17, 2, 8
_LEGEND_WIDTH = 58


def in_lines(label: str, width: int) -> list[str]:
    """A label in lines of so many characters, broken after spaces and underscores alone."""
    lines = [""]
    for part in re.findall(r"[^\s_]*[\s_]?", label):
        if lines[-1] and len((lines[-1] + part).rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return [line.strip() for line in lines]


def _name_lines(figure: Figure, axes: Axes) -> None:
    """Labels beside the ends of lines where they are short and few, a legend otherwise."""
    handles: Any  # artists, or what errorbar leaves
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    wrapped = [in_lines(label, _LABEL_WIDTH) for label in labels]
    if len(labels) > _MOST_LABELS or any(
        len(lines) > _LABEL_LINES or max(map(len, lines)) > _LABEL_WIDTH for lines in wrapped
    ):
        columns = 2 if max(map(len, labels)) < 26 else 1
        long = [in_lines(label, _LEGEND_WIDTH) for label in labels]
        more = sum(len(lines) - 1 for lines in long)
        rows = math.ceil(len(labels) / columns)
        figure.set_figheight(figure.get_figheight() + 0.2 * rows + 0.16 * more)
        figure.legend(
            handles, ["\n".join(lines) for lines in long], loc="outside lower left",
            ncols=columns, fontsize=9,
        )  # fmt: skip
        return
    ends = []
    for handle, lines in zip(handles, wrapped, strict=True):
        line = handle[0] if isinstance(handle, tuple) else handle
        last = float(np.asarray(line.get_ydata(), dtype=float)[-1])
        at = axes.transAxes.inverted().transform(axes.transData.transform((0, last)))[1]
        ends.append(_End(float(np.clip(at, 0, 1)), line, lines))
    ends.sort(key=lambda end: end.at)
    _push_apart(ends)
    for end in ends:
        line = end.line
        axes.plot(
            [1.02, 1.05, 1.08], [end.at] * 3, transform=axes.transAxes, clip_on=False,
            color=line.get_color(), linestyle=line.get_linestyle(), marker=line.get_marker(),
            markevery=[1], linewidth=line.get_linewidth(), fillstyle=line.get_fillstyle(),
        )  # fmt: skip
        axes.text(
            1.1, end.at, "\n".join(end.lines), transform=axes.transAxes, va="center", fontsize=9,
            linespacing=1.0,
        )  # fmt: skip


@dataclass
class _End:
    """The label of a line: how high it stands, as a share of the axes, and its text."""

    at: float
    line: Any
    lines: list[str]

    @property
    def room(self) -> float:
        """What its text takes of the height."""
        return 0.062 * len(self.lines) + 0.015


def _push_apart(ends: list[_End]) -> None:
    """Move labels, each pair by half of what it overlaps, until none covers another."""
    for _ in range(300):
        for below, above in pairwise(ends):
            short = (below.room + above.room) / 2 - (above.at - below.at)
            if short > 0:
                below.at -= short / 2
                above.at += short / 2
    shift = max(0.0, -ends[0].at) - max(0.0, ends[-1].at - 1)
    for end in ends:
        end.at += shift
