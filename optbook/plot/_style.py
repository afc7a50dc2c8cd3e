"""What all pictures share: colours, fonts, and how a matrix and its padding are drawn."""

import functools

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import figure

from optbook.plot._labels import SANS, drawable

CONTINUOUS = "viridis"  # perceptually uniform, readable in grey and by colour-blind eyes
DIVERGING = "RdBu_r"  # blue below zero, red above
PIECES = ("#cfe8f3", "#fde3b5", "#d9ead3", "#ead7ef", "#f9d5d3")  # pale, so that black text stays readable
PADDING = dict(facecolor="none", edgecolor="0.55", hatch="////", linewidth=0)
CLOSED = "0.88"  # what a mask leaves out
WIDTH = 9.0  # inches: at 100 dots each as wide as a notebook's output, so that no browser shrinks the labels
STYLE = {
    "text.parse_math": False,  # two dollar signs in a token, a name or a value are no formula
    "font.family": SANS,
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(color=["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]),
}


class Figure(figure.Figure):
    """A figure in this module's style, whatever style its reader has chosen for figures of their own."""

    def draw(self, renderer):
        with _style():  # tick labels and hatches come into being here
            super().draw(renderer)

    def savefig(self, fname, **kwargs):
        super().savefig(fname, **{"facecolor": "auto", "edgecolor": "auto"} | kwargs)


def _style():
    return plt.style.context(["default", STYLE])


def figure_function(function):
    """Draw in this module's style, and close the figure, so that a notebook shows what is returned, once.

    A figure that was begun before an argument was refused is closed too.
    """

    @functools.wraps(function)
    def styled(*args, **kwargs):
        with _style():
            open_before = plt.get_fignums()
            try:
                return function(*args, **kwargs)
            finally:
                for number in set(plt.get_fignums()) - set(open_before):
                    plt.close(number)

    return styled


# Every figure of this package comes from one of the two.
new_figure = functools.partial(plt.figure, FigureClass=Figure)
new_axes = functools.partial(plt.subplots, FigureClass=Figure)


def grid_of_axes(down, across, size, between=(0, 0), left=0.0, right=0.0, top=0.0, bottom=0.0):
    """A figure with a grid of axes, all lengths in inches.

    matplotlib's own layouts let titles and labels of square maps overlap where the width decides how large they are.

    Parameters
    ----------
    size : (float, float)
        Width and height of one.
    between : (float, float)
        From one column and from one line to the next.
    left, right, top, bottom : float
        Around the grid.
    """
    width = left + across * size[0] + (across - 1) * between[0] + right
    height = top + down * size[1] + (down - 1) * between[1] + bottom
    place = dict(left=left / width, right=1 - right / width, top=1 - top / height, bottom=bottom / height)
    return new_axes(
        down,
        across,
        figsize=(width, height),
        layout="none",
        squeeze=False,
        gridspec_kw=dict(wspace=between[0] / size[0], hspace=between[1] / size[1], **place),
    )


def draw_matrix(ax, values, rows=None, columns=None, title="", annotate=None, low=None, high=None, cmap=CONTINUOUS):
    values = np.asarray(values, dtype="float32")
    image = ax.imshow(
        values, cmap=cmap, vmin=low, vmax=high, aspect="equal" if rows is not None else "auto", interpolation="nearest"
    )
    ax.set_title(title)
    ax.spines[:].set_visible(False)
    if columns is not None:
        ax.set_xticks(range(len(columns)), map(drawable, columns), rotation=90, fontsize=8)
    if rows is not None:
        ax.set_yticks(range(len(rows)), map(drawable, rows), fontsize=8)
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


def hatch_padding(ax, real, left=0, top=0, unit=1.0):
    """Hatch the rows and the columns of padding in a map whose first cell is at ``left``, ``top``.

    ``real`` is True for real tokens; each is ``unit`` wide and high.
    """

    def hatch(columns, rows):
        corner = (left - 0.5 + columns[0] * unit, top - 0.5 + rows[0] * unit)
        width, height = (stop - first for first, stop in (columns, rows))
        ax.add_patch(plt.Rectangle(corner, width * unit, height * unit, **PADDING))

    for padding in runs(~real):
        hatch(padding, (0, len(real)))
        for between in runs(real):  # where a row and a column cross, one hatch is enough
            hatch(between, padding)


def runs(chosen):
    """(first, stop) of each unbroken run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(int)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))
