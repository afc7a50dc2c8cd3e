"""What all pictures share: colours, fonts, and how a matrix and its padding are drawn."""

import functools

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

CONTINUOUS = "viridis"  # perceptually uniform, readable in grey and by colour-blind eyes
DIVERGING = "RdBu_r"  # blue below zero, red above
PIECES = ("#cfe8f3", "#fde3b5", "#d9ead3", "#ead7ef", "#f9d5d3")  # pale, so that black text stays readable
PADDING = dict(facecolor="none", edgecolor="0.55", hatch="////", linewidth=0)
STYLE = {
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(color=["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]),
}


def figure_function(function):
    """Draw in this module's style, and close the figure, so that a notebook shows what is returned, once."""

    @functools.wraps(function)
    def styled(*args, **kwargs):
        with plt.rc_context(STYLE):
            figure = function(*args, **kwargs)
            plt.close(figure)
            return figure

    return styled


def draw_matrix(ax, values, rows=None, columns=None, title="", annotate=None, low=None, high=None, cmap=CONTINUOUS):
    values = np.asarray(values, dtype="float32")
    image = ax.imshow(
        values, cmap=cmap, vmin=low, vmax=high, aspect="equal" if rows is not None else "auto", interpolation="nearest"
    )
    ax.set_title(title)
    ax.spines[:].set_visible(False)
    if columns is not None:
        ax.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    if rows is not None:
        ax.set_yticks(range(len(rows)), rows, fontsize=8)
    ax.tick_params(length=0)
    if annotate:
        middle = (image.norm.vmin + image.norm.vmax) / 2
        for (i, j), value in np.ndenumerate(values):
            if np.isnan(value):
                continue
            light = value < middle if cmap == CONTINUOUS else abs(value - middle) > (image.norm.vmax - middle) / 2
            ax.text(
                j, i, format(value, annotate), ha="center", va="center", fontsize=7, color="white" if light else "black"
            )
    return image


def hatch_padding(ax, real):
    """Hatch the rows and columns of padding."""
    size = len(real)
    for index in np.flatnonzero(~np.asarray(real, dtype=bool)):
        ax.add_patch(plt.Rectangle((index - 0.5, -0.5), 1, size, **PADDING))
        ax.add_patch(plt.Rectangle((-0.5, index - 0.5), size, 1, **PADDING))
