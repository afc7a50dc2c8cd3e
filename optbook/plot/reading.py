"""One token's attention: over the text, and as arcs between tokens."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection

from optbook.plot._labels import MONO, SIZE, drawable, label_axis, reach
from optbook.plot._sequence import Sequence, attention_norm, scale_options
from optbook.plot._style import PADDING, WIDTH, figure_function, new_figure, runs

INK = "magma_r"  # pale where there is little: text stays readable on it
LOOKS, IS_SEEN, CHOSEN = "#0072b2", "#d55e00", "#009e73"
EM, BRICK, STEP = 0.083, 0.24, 0.40  # inches: a character, a shaded token, from line to line
THICKEST = 7.0  # points, of an arc of attention 1
ARCS_WIDTH = WIDTH - 0.3
ALL_LINES = 8  # a text of more lines is shortened to those with attention
WORTH_A_LOOK, WRITTEN = 0.01, 0.05


@figure_function
def tokens(record, layer, head, token, row=0, hide_first=False, log=False, window=None):
    """What one token looks at and which tokens look at it, over the text and as arcs.

    Shares of 0.05 and more are written under their token; a text of more than eight lines is shortened to the lines
    with a share of 0.01 or more. What a mask closes is grey, padding is hatched. Arcs to the
    left (blue) go to what the token looks at, arcs to the right (orange) to the tokens that look at it; the wider, the
    more, and an arc onto itself is a circle.

    Parameters
    ----------
    token : int
        Its place in the sequence, from 0; it has a green frame.

    The other parameters and errors are those of `head`; ``log`` goes for shades and for the width of arcs.

    Raises
    ------
    ValueError
        For a token outside of the sequence or the window, or a token that is padding.
    """
    sequence = Sequence(record, row, hide_first, window)
    start, stop = sequence.start, sequence.stop
    if not start <= token < stop:
        raise ValueError(f"token {token} is not in {start} to {stop - 1}, the tokens shown of sequence {row}.")
    chosen = token - start
    if not sequence.real[chosen]:
        raise ValueError(f"token {token} of sequence {row} is padding, which has nothing to look at.")
    weights = sequence.map(layer, head)
    looks, seen = weights[chosen], np.where(sequence.real, weights[:, chosen], np.nan)
    norm = attention_norm(log)
    panels = []
    name = f"token {token}, “{drawable(sequence.labels[chosen], longest=20)}”,"
    for values, title, color in (
        (looks, f"what {name} looks at", LOOKS),
        (seen, f"what looks at {name[:-1]}", IS_SEEN),
    ):
        panels.append((values, title, color, _text_lines(sequence.labels, values, chosen)))
    texts = [0.36 + STEP * len(lines) for *_, lines in panels]  # inches of each panel's height
    arcs, foot = 2.0, 0.1 + reach(sequence.labels, ARCS_WIDTH)
    height = 0.3 + sum(texts) + arcs + foot + 0.75
    figure = new_figure(figsize=(WIDTH, height), layout="none")
    figure.text(0.1 / WIDTH, 1 - 0.18 / height, sequence.title(layer, head), va="center", fontsize=10)
    below = 0.3
    for (values, title, color, lines), text in zip(panels, texts):
        below += text
        ax = figure.add_axes((0, 1 - below / height, 1, text / height), xlim=(0, WIDTH), ylim=(text, 0))
        ax.axis("off")
        ax.text(0.1, 0.17, title, va="center", fontsize=9, color=color)
        _draw_text(ax, sequence, lines, values, chosen, norm)
    bottom = (foot + 0.55) / height
    ax = figure.add_axes((0.15 / WIDTH, bottom, ARCS_WIDTH / WIDTH, arcs / height))
    _draw_arcs(ax, sequence, looks, seen, chosen, norm)
    bar = figure.add_axes((0.35 / WIDTH, 0.34 / height, 2.6 / WIDTH, 0.1 / height))
    figure.colorbar(ScalarMappable(norm, INK), cax=bar, orientation="horizontal", **scale_options(log))
    bar.tick_params(labelsize=SIZE, length=2)
    figure.text(3.1 / WIDTH, 0.39 / height, "attention", va="center", fontsize=8)
    return figure


def _text_lines(labels, values, chosen):
    """The text in lines, each a list of (index, left, width in inches); a number stands for so many tokens left out.

    Of a long text only those lines stay that hold the chosen token or attention worth a look.
    """
    lines, x = [[]], 0.0
    for index, label in enumerate(labels):
        width = min(len(drawable(label, MONO)) * EM + 0.1, WIDTH - 0.2)
        if x + width > WIDTH - 0.2 and x > 0:
            lines.append([])
            x = 0.0
        lines[-1].append((index, x + 0.1, width))
        x += width + 0.04
    if len(lines) <= ALL_LINES:
        return lines
    kept = []
    for line in lines:
        if any(index == chosen or values[index] >= WORTH_A_LOOK for index, _, _ in line):
            kept.append(line)
        elif kept and isinstance(kept[-1], int):
            kept[-1] += len(line)
        else:
            kept.append(len(line))
    return kept


def _draw_text(ax, sequence, lines, values, chosen, norm):
    colors = plt.get_cmap(INK)(norm(np.nan_to_num(values)))
    for number, line in enumerate(lines):
        top = 0.32 + STEP * number
        middle = top + BRICK / 2
        if isinstance(line, int):
            ax.text(0.1, middle, f"… {line} tokens, none with {WORTH_A_LOOK} …", va="center", fontsize=8, color="0.4")
            continue
        for index, left, width in line:
            value, center = values[index], left + width / 2
            style = dict(facecolor="none" if np.isnan(value) else colors[index], edgecolor="0.8", linewidth=0.5)
            if not sequence.real[index]:
                style = {**PADDING, "edgecolor": "0.7"}
            ax.add_patch(plt.Rectangle((left, top), width, BRICK, **style))
            if index == chosen:
                ax.add_patch(plt.Rectangle((left, top), width, BRICK, facecolor="none", edgecolor=CHOSEN, linewidth=2))
            ink = "0.5" if np.isnan(value) else "white" if norm(value) > 0.55 else "black"
            label = drawable(sequence.labels[index], MONO)
            ax.text(center, middle, label, ha="center", va="center", family=MONO, fontsize=9, color=ink)
            if value >= WRITTEN:
                number_place = (center, top + BRICK + 0.065)
                ax.text(*number_place, f"{value:.2f}", ha="center", va="center", fontsize=7, color="0.25")


def _draw_arcs(ax, sequence, looks, seen, chosen, norm):
    start, angles = sequence.start, np.linspace(0, np.pi, 60)
    for values, color in ((looks, LOOKS), (seen, IS_SEEN)):
        curves, widths = [], []
        for index in np.flatnonzero(np.nan_to_num(values) > 0):
            if index == chosen and color == IS_SEEN:
                continue  # the circle is drawn once
            middle, radius = (index + chosen) / 2, abs(index - chosen) / 2
            if radius:
                curve = (middle + radius * np.cos(angles), 2 * radius * np.sin(angles))
            else:
                curve = (middle + 0.4 * np.sin(2 * angles), 0.04 * len(looks) * (1 - np.cos(2 * angles)))
            curves.append(np.column_stack(curve) + [start, 0])
            widths.append(THICKEST * float(norm(values[index])))
        ax.add_collection(LineCollection(curves, linewidths=widths, colors=color, capstyle="round"))
    ax.set(xlim=(start - 0.7, sequence.stop - 0.3), ylim=(0, 1.08 * max(chosen, len(looks) - 1 - chosen, 1)))
    ax.spines[["left"]].set_visible(False)
    ax.set_yticks([])
    label_axis(ax.xaxis, sequence.labels, sequence.real, start, ARCS_WIDTH, vertical=True)
    ax.plot([start + chosen], [0], "o", color=CHOSEN, markersize=7, clip_on=False, zorder=3)
    for first, stop in runs(~sequence.real):
        ax.axvspan(start + first - 0.5, start + stop - 0.5, **PADDING)
