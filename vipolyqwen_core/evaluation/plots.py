"""Plots of the report, as PNG in data URIs: nothing is loaded from anywhere when the report is opened."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from vipolyqwen_core.contract import Task
from vipolyqwen_core.evaluation import results
from vipolyqwen_core.evaluation.results import PoolResult

INK: Final = "#1b2330"
MUTED: Final = "#8a94a6"
GRID: Final = "#e6e9ef"
SYSTEM_COLOURS: Final = {
    results.TRAINED: "#2563c9",
    results.PLAIN: "#7fb0f0",
    results.CHAMPION: "#7a4fc4",
    results.UNTRAINED: "#b6bfcc",
    results.BM25: "#e2a33b",
}
TASK_COLOURS: Final = {
    Task.TEXT_PAIR: "#2563c9",
    Task.INSTR: "#0f9d8a",
    Task.OCR: "#d9602b",
    Task.VQA_SINGLE: "#7a4fc4",
    Task.VQA_MULTI: "#c23b78",
}
STYLE: Final[dict[Any, Any]] = {
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.dpi": 160,
    "font.size": 9,
    "grid.color": GRID,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
"""Passed to each plot; matplotlib's global settings stay as they are."""


def loss_curves(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """Loss by step, in all and by task, from lines of metrics; None where there is none."""
    if not any(_is_number(line.get("loss")) for line in lines):
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.1), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_curve(left, lines, "loss", color=INK, lw=1.4)
        left.set(title="Training loss", xlabel="step")
        for task in Task:
            _draw_curve(
                right, lines, f"loss/{task.value}", color=TASK_COLOURS[task], lw=1.2, label=task.value
            )
        right.set(title="Loss by task (sum of its terms)", xlabel="step")
        figure.legend(loc="outside lower right", ncols=len(Task), fontsize=8)
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _data_uri(figure)


def _draw_curve(axes: Axes, lines: Sequence[Mapping[str, Any]], name: str, **style: Any) -> None:
    """A number by step; as a dot where there is one line of it, since a line through a point is not seen."""
    points = [(line["step"], line[name]) for line in lines if _is_number(line.get(name))]
    if points:
        axes.plot(*zip(*points, strict=True), marker="o" if len(points) == 1 else None, **style)


def recall_bars(pools: Sequence[PoolResult], labels: Mapping[str, str]) -> str | None:
    """Recall of each pool by system, with chance as a line across; None without pools.

    Args:
        labels: what each system is called
    """
    if not pools:
        return None
    metrics = ("recall@1", "recall@10")
    systems = [name for name in SYSTEM_COLOURS if any(name in pool.scores for pool in pools)]
    with matplotlib.rc_context(STYLE):
        inches = 0.9 + 0.13 * len(pools) * (len(systems) + 1.2)
        figure = Figure(figsize=(9, inches), layout="constrained")
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        height = 1.0 / (len(systems) + 1.2)
        places = np.arange(len(pools), dtype=np.float64)
        for axes, metric in zip(panels, metrics, strict=True):
            for i, system in enumerate(systems):
                values = [pool.scores.get(system, {}).get(metric, 0.0) for pool in pools]
                colour, label = SYSTEM_COLOURS[system], labels[system]
                axes.barh(places + i * height, values, height, color=colour, label=label)
            chance = [pool.scores[results.CHANCE].get(metric, math.nan) for pool in pools]
            ends = places - 0.5 * height, places + (len(systems) - 0.5) * height
            axes.vlines(chance, *ends, color="#c0392b", lw=1.4, label=labels[results.CHANCE])
            axes.set(xlim=(0, 1), title=metric)
            axes.grid(axis="y", visible=False)
        panels[0].set_yticks(places + (len(systems) - 1) * height / 2, [pool.name for pool in pools])
        panels[0].set_ylim(len(pools) - 1 + len(systems) * height, -height)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
        return _data_uri(figure)


def similarity_histograms(panels: Mapping[str, tuple[NDArray[np.floating], NDArray[np.floating]]]) -> str:
    """Cosines of right pairs beside cosines of other pairs of the same pool, one panel a pool."""
    columns = 3
    rows = math.ceil(len(panels) / columns)
    low = min(0.0, *(float(np.concatenate(both).min()) for both in panels.values()))
    bins = np.linspace(low, 1.0, 41)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.9 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.ravel()[len(panels) :]:
            axes.set_visible(False)
        for axes, (name, (right, other)) in zip(grid.ravel(), panels.items(), strict=False):
            for cosines, colour, label in ((other, MUTED, "other pairs"), (right, "#2563c9", "right pairs")):
                shares = np.histogram(cosines, bins)[0] / max(len(cosines), 1)
                axes.stairs(shares, bins, fill=True, color=colour, alpha=0.6, label=label)
            axes.set_ylim(bottom=0)
            axes.set_title(name, fontsize=9)
            axes.set_yticks([])
        grid[0, 0].legend(fontsize=7)
        return _data_uri(figure)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _data_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
