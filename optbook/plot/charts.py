"""Matrices, curves and bars of any numbers."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from optbook.plot._labels import PlainLogFormatter, name_lines
from optbook.plot._style import CONTINUOUS, DIVERGING, WIDTH, draw_matrix, figure_function, new_axes

MARKERS = "os^DvPX*"


@figure_function
def matrices(
    values, rows=None, columns=None, annotate=None, shared=True, diverging=False, size=2.6, label="", per_line=4
):
    """Heat maps side by side.

    Parameters
    ----------
    values : dict of str to array of shape (R, C)
        Title and numbers of each map.
    rows, columns : list of str, optional
        Labels of the rows and the columns, the same for all maps.
    annotate : str, optional
        A format such as ``".2f"``: write each number into its cell.
    shared : bool
        One colour scale for all maps, so that they can be compared; otherwise one each.
    diverging : bool
        Red above and blue below zero, for differences.
    size : float
        Width of one map in inches, labels not counted; its height too, unless it is labelled and wider than tall.
    label : str
        What the colour means.
    per_line : int
        Maps in a line of the figure.
    """
    arrays = {title: np.asarray(array, dtype="float32") for title, array in values.items()}
    count = len(arrays)
    across = min(count, per_line)
    down = -(-count // across)
    flattest = min(array.shape[0] / array.shape[1] for array in arrays.values()) if rows is not None else 1.0
    height = size * min(1.0, max(flattest, 0.3))  # cells are square where they have labels: no room left over
    figure, axes = new_axes(down, across, figsize=(size * across + 1.2, (height + 0.7) * down), squeeze=False)
    everything = np.concatenate([array.ravel() for array in arrays.values()])
    for ax in axes.flat[count:]:
        ax.set_visible(False)
    for index, (ax, (title, array)) in enumerate(zip(axes.flat, arrays.items())):
        scope = everything if shared else array
        low, high = float(np.nanmin(scope)), float(np.nanmax(scope))
        if diverging:
            high = max(abs(low), abs(high)) or 1.0
            low = -high
        image = draw_matrix(
            ax, array, rows, columns, title, annotate, low, high, cmap=DIVERGING if diverging else CONTINUOUS
        )
        if columns is None:
            ax.locator_params(axis="x", integer=True)  # there is no half column
        if index % across:
            ax.set_yticks([])
        if not shared:
            figure.colorbar(image, ax=ax, shrink=0.7)
    if shared:
        figure.colorbar(image, ax=axes, shrink=0.7, label=label)
    return figure


@figure_function
def texts(values, written, rows, columns, xlabel="", label="", low=0.0, high=1.0):
    """A heat map with a text in each cell; ``values`` and ``written`` have shape (R, C).

    ``label`` says what the colour means, which runs from ``low`` to ``high``; ``rows`` and ``columns`` are labels.
    """
    figure, ax = new_axes(figsize=(0.72 * len(columns) + 2.2, 0.42 * len(rows) + 1.2))
    image = draw_matrix(ax, values, rows, columns, low=low, high=high)
    ax.set(aspect="auto", xlabel=xlabel)
    for (i, j), value in np.ndenumerate(np.asarray(values)):
        color = "white" if value < (low + high) / 2 else "black"
        ax.text(j, i, written[i][j], ha="center", va="center", fontsize=8, color=color, clip_on=True)
    figure.colorbar(image, ax=ax, label=label, pad=0.01)
    return figure


@figure_function
def lines(
    curves, x=None, xlabel="", ylabel="", title="", log_y=False, size=(6.5, 3.2), marker=None, log_x=False, levels=None
):
    """Curves over a common axis; ``curves`` is a dict of name to numbers, ``x`` the common positions.

    With ``log_x`` the positions are few and each gets its tick, as for widths that double. ``levels`` is a dict of name
    to height: dashed lines to compare the curves with, named at the right.
    """
    figure, ax = new_axes(figsize=size)
    for values in curves.values():
        ax.plot(range(len(values)) if x is None else x, values, marker=marker, markersize=4)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if log_y:
        _set_log_y(ax)
    if log_x:
        ax.set_xscale("log", base=2)
        ax.set_xticks(x, [str(position) for position in x])
    for name, height in (levels or {}).items():
        ax.axhline(height, color="0.5", linestyle="--", linewidth=1, zorder=1)
        ax.annotate(
            name_lines(name), (1, height), (4, 0), ax.get_yaxis_transform(), "offset points", va="center", fontsize=8
        )
    if len(curves) > 1:
        ax.legend(ax.lines[: len(curves)], map(name_lines, curves), frameon=False)
    return figure


@figure_function
def bars(values, ylabel="", title="", number="", log_y=False, size=(6.5, 3.0)):
    """Labelled bars; ``values`` is a dict of name to number, ``number`` the format written on each bar."""
    figure, ax = new_axes(figsize=size)
    drawn = ax.bar(range(len(values)), list(values.values()), color="#0072b2", width=0.6)
    ax.set_xticks(range(len(values)), map(name_lines, values))
    ax.bar_label(drawn, [format(value, number) for value in values.values()], padding=2, fontsize=8)
    ax.set(ylabel=ylabel, title=title)
    ax.margins(y=0.12)
    if log_y:
        _set_log_y(ax)
        ax.yaxis.set_minor_formatter(NullFormatter())  # the bars have their numbers
    return figure


@figure_function
def bar_groups(series, ylabel="", title="", log_y=False, size=(9.0, 3.0)):
    """Several bars at each label, one for each series; ``series`` is a dict of name to a dict of label to number.

    The labels are those of the first series; a label that another one lacks has no bar there.
    """
    figure, ax = new_axes(figsize=size)
    labels = list(next(iter(series.values())))
    width = 0.8 / len(series)
    for index, values in enumerate(series.values()):
        places = np.arange(len(labels)) + (index - (len(series) - 1) / 2) * width
        ax.bar(places, [values.get(label, np.nan) for label in labels], width)
    ax.set_xticks(range(len(labels)), map(name_lines, labels))
    ax.set(ylabel=ylabel, title=title)
    if log_y:
        _set_log_y(ax)
    figure.legend(
        ax.containers, map(name_lines, series), loc="outside upper center", ncols=len(series), frameon=False
    )  # never over a bar
    return figure


@figure_function
def histograms(values, bins=40, xlabel="", title="", size=(6.5, 3.0)):
    """Overlaid histograms of equal area; ``values`` is a dict of name to numbers."""
    figure, ax = new_axes(figsize=size)
    everything = np.concatenate([np.ravel(numbers) for numbers in values.values()])
    edges = np.linspace(everything.min(), everything.max(), bins + 1)
    for numbers in values.values():
        ax.hist(np.ravel(numbers), edges, density=True, alpha=0.55)
    ax.set(xlabel=xlabel, ylabel="density", title=title)
    ax.legend(ax.containers, map(name_lines, values), frameon=False)
    return figure


@figure_function
def shares(values, xlabel="share", size=(7.0, 2.8)):
    """Lying bars of length 1, cut into parts; ``values`` is a dict of bar name to a dict of part name to number."""
    figure, ax = new_axes(figsize=size)
    parts = list(next(iter(values.values())))
    totals = np.array([sum(bar.values()) for bar in values.values()])
    left = np.zeros(len(values))
    for part in parts:
        widths = np.array([bar[part] for bar in values.values()]) / totals
        drawn = ax.barh(range(len(values)), widths, left=left, height=0.65, edgecolor="white")
        labels = [f"{width:.0%}" if width >= 0.04 else "" for width in widths]
        ax.bar_label(drawn, labels, label_type="center", fontsize=8, color="white")
        left += widths
    ax.set(xlim=(0, 1), xlabel=xlabel)
    ax.set_yticks(range(len(values)), map(name_lines, values))
    ax.invert_yaxis()
    ax.legend(
        ax.containers,
        map(name_lines, parts),
        frameon=False,
        ncols=len(parts),
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
    )
    return figure


@figure_function
def trade_offs(points, pairs):
    """Small multiples of the same things: one number against another, for several pairs of numbers.

    Parameters
    ----------
    points : list of dict
        Each with the numbers by name, with ``group`` (one color and one line for each) and with ``kind`` (one marker
        for each, explained if there are several). A point that lacks a number of a pair is not drawn there.
    pairs : list of ((str, str), (str, str))
        For each axes the name of the number across and what it is called, then the same for the number up.
    """
    groups, kinds = (list(dict.fromkeys(point[name] for point in points)) for name in ("group", "kind"))
    colors = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    look = {group: (colors[number % 6], "-:"[number // 6 % 2]) for number, group in enumerate(groups)}
    markers = {kind: MARKERS[number % len(MARKERS)] for number, kind in enumerate(kinds)}
    figure, axes = new_axes(1, len(pairs), figsize=(WIDTH / 3 * len(pairs), 3.3), squeeze=False)
    for ax, ((across, xlabel), (up, ylabel)) in zip(axes.flat, pairs):
        for group, (color, style) in look.items():
            own = [p for p in points if p["group"] == group and None not in (p.get(across), p.get(up))]
            ax.plot([p[across] for p in own], [p[up] for p in own], style, color=color, linewidth=1, alpha=0.6)
            for p in own:
                ax.plot(p[across], p[up], markers[p["kind"]], color=color, markersize=7)
        ax.set(xlabel=xlabel, ylabel=ylabel, xlim=_wide_enough(points, across), ylim=_wide_enough(points, up))
    keys = [(group, Line2D([], [], color=color, ls=style)) for group, (color, style) in look.items()]
    if len(kinds) > 1:
        keys += [(kind, Line2D([], [], color="0.3", ls="", marker=marker)) for kind, marker in markers.items()]
    names, drawn = zip(*keys)
    figure.legend(drawn, map(name_lines, names), loc="outside upper center", ncols=min(len(keys), 4), frameon=False)
    return figure


def _set_log_y(ax):
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(PlainLogFormatter())
    ax.yaxis.set_minor_formatter(PlainLogFormatter(labelOnlyBase=False))


def _wide_enough(points, name):
    """Limits of an axis: at least a tenth of its largest value, so that a difference of a percent looks like one."""
    values = [point[name] for point in points if point.get(name) is not None]
    low, high = min(values), max(values)
    span = max(1.25 * (high - low), 0.1 * abs(high)) or 1.0
    return (low + high - span) / 2, (low + high + span) / 2
