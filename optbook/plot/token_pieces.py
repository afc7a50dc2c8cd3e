"""Pictures of a text in pieces."""

import matplotlib.pyplot as plt
import numpy as np

from optbook._validation import check_mask
from optbook.plot._labels import MONO, drawable
from optbook.plot._style import PADDING, PIECES, figure_function, new_figure


@figure_function
def pieces(labels, numbers=None, width=9.0):
    """A text as coloured token pieces, with a number (the id) under each.

    Parameters
    ----------
    labels : list of str
        As `optbook.tokens.token_label` writes them.
    numbers : list of int, optional
        Written under the pieces.
    width : float
        Inches; pieces that do not fit go to the next line.
    """
    labels = [drawable(label, MONO) for label in labels]
    em, gap = 0.095, 0.06  # inches per character, between pieces
    lines, x = [[]], 0.0
    for index, label in enumerate(labels):
        piece = max(len(label), len(str(numbers[index])) * 0.8 if numbers is not None else 0) * em + 0.12
        if x + piece > width and lines[-1]:
            lines.append([])
            x = 0.0
        lines[-1].append((index, x, piece))
        x += piece + gap
    height = 0.62 * len(lines)
    figure = new_figure(figsize=(width, height), layout="none")
    ax = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    ax.axis("off")
    for line, content in enumerate(lines):
        top = 0.62 * line + 0.05
        for index, x, piece in content:
            ax.add_patch(
                plt.Rectangle(
                    (x, top), piece, 0.3, facecolor=PIECES[index % len(PIECES)], edgecolor="0.7", linewidth=0.5
                )
            )
            middle = x + piece / 2
            ax.text(middle, top + 0.15, labels[index], ha="center", va="center", family=MONO, fontsize=10)
            if numbers is not None:
                ax.text(middle, top + 0.4, str(numbers[index]), ha="center", va="center", fontsize=7, color="0.35")
    return figure


@figure_function
def piece_rows(rows, numbers=None, mask=None, column=None):
    """Several token sequences under each other, as lines of bricks: the stages of one text, or a padded batch.

    Parameters
    ----------
    rows : dict of str to list of str
        Title and labels of each line.
    numbers : list of list of int, optional
        Written into the bricks, under the labels.
    mask : array of shape (len(rows), T), optional
        1 for a real token, 0 for padding, which is hatched.
    column : float, optional
        Inches per piece, so that equal positions stand under each other; left out, a brick is as long as its text, and
        what is still a single character stays white.

    Equal labels have equal colours.
    """
    rows = {title: [drawable(label, MONO) for label in labels] for title, labels in rows.items()}
    em, height = 0.088, 0.48 if numbers is not None else 0.34
    margin = 0.15 + 0.075 * max(map(len, rows))
    colors, extents = {}, []
    for labels in rows.values():
        for label in labels:
            if column or len(label) > 1:
                colors.setdefault(label, PIECES[len(colors) % len(PIECES)])
        extents.append(np.cumsum([margin, *(column or len(label) * em for label in labels)]))
    width = max(extent[-1] for extent in extents) + 0.05
    figure = new_figure(figsize=(width, height * len(rows)), layout="none")
    ax = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height * len(rows), 0))
    ax.axis("off")
    for line, (title, labels) in enumerate(rows.items()):
        top, middle = height * line + 0.03, height * (line + 0.5)
        ax.text(margin - 0.1, middle, title, ha="right", va="center", fontsize=8)
        real_of_line = np.ones(len(labels), bool) if mask is None else check_mask("mask", mask[line])
        for index, label in enumerate(labels):
            left, right = extents[line][index : index + 2]
            real = real_of_line[index]
            style = dict(facecolor=colors.get(label, "white"), edgecolor="0.5", linewidth=0.5)
            style = style if real else {**PADDING, "edgecolor": "0.8"}
            ax.add_patch(plt.Rectangle((left, top), right - left - 0.01, height - 0.06, **style))
            text = dict(x=(left + right) / 2, ha="center", va="center", color="black" if real else "0.3")
            shift = 0.0 if numbers is None else 0.1
            ax.text(y=middle - shift, s=label, family=MONO, fontsize=8 if column else 9, **text)
            if numbers is not None:
                ax.text(y=middle + shift, s=str(numbers[line][index]), fontsize=7, **text)
    return figure
