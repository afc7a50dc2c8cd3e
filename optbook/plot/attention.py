"""Attention as maps: one head, the heads of a layer, a whole model."""

import numpy as np

from optbook.attention_numbers import largest_in_blocks
from optbook.plot._labels import SIZE, label_axis, reach
from optbook.plot._sequence import Sequence, attention_norm, scale_options
from optbook.plot._style import CLOSED, CONTINUOUS, WIDTH, figure_function, grid_of_axes, hatch_padding

DOTS = 100  # per inch, on a screen
COLORBAR = 1.0  # inches at the right
PAGE = 32  # layers and heads on one page of `model`: a tile is then still 24 dots wide


def _draw_map(ax, sequence, layer, head, norm, block):
    """A map in the sequence's own positions."""
    blocks = largest_in_blocks(sequence.map(layer, head), block)
    end = sequence.start + block * len(blocks)
    image = ax.imshow(
        blocks,
        cmap=CONTINUOUS,
        norm=norm,
        interpolation="nearest",
        extent=(sequence.start - 0.5, end - 0.5, end - 0.5, sequence.start - 0.5),
    )
    ax.set(xlim=(sequence.start - 0.5, sequence.stop - 0.5), ylim=(sequence.stop - 0.5, sequence.start - 0.5), aspect=1)
    ax.set_facecolor(CLOSED)
    ax.spines[:].set_visible(False)
    hatch_padding(ax, sequence.real, sequence.start, sequence.start)
    return image


def _add_colorbar(figure, image, first, last, log):
    """To the right of a grid of axes, whose rightmost are ``first``, at the top, and ``last``."""
    right, top, bottom = first.get_position().x1, first.get_position().y1, last.get_position().y0
    place = right + 0.15 / figure.get_figwidth(), bottom, 0.15 / figure.get_figwidth(), top - bottom
    bar = figure.colorbar(image, cax=figure.add_axes(place), label="attention", **scale_options(log))
    bar.ax.tick_params(labelsize=SIZE)


def _set_title(figure, parts):
    figure.suptitle(", ".join(parts), fontsize=10, y=1 - 0.15 / figure.get_figheight(), va="center")


def _block_size(sequence, inches):
    """Tokens that share a cell, in both directions: as many as it takes for a cell to be no smaller than a dot."""
    return -(-len(sequence.labels) // int(inches * DOTS))


def _block_note(block):
    return [f"each cell the largest of {block} × {block}"] if block > 1 else []


@figure_function
def head(record, layer, head, row=0, hide_first=False, log=False, window=None):
    """The attention map of one head on one sequence: queries down, keys across.

    What the masks close is grey, unless there is weight on it all the same; padding is hatched.

    Parameters
    ----------
    record : AttentionRecord
    layer, head : int
        By their numbers in the model.
    row : int
        The sequence of the batch.
    hide_first : bool
        Leave out the first token, which often takes most of the attention, and scale each row to sum to 1 again, as
        `optbook.attention_numbers.without_first` does.
    log : bool
        A logarithmic scale, for weak attention: from 0.0001, and what is less is drawn as that.
    window : (int, int), optional
        Only queries and keys from start to stop, stop not included.

    Raises
    ------
    ValueError
        For a layer, head, row or window that the record does not have, and for a record whose parts do not fit.
    """
    sequence = Sequence(record, row, hide_first, window)
    side = 4.3
    margin = reach(sequence.labels, side)
    figure, ((ax,),) = grid_of_axes(1, 1, (side, side), left=margin + 0.3, right=COLORBAR, top=0.5, bottom=margin + 0.3)
    block = _block_size(sequence, side)
    image = _draw_map(ax, sequence, layer, head, attention_norm(log), block)
    label_axis(ax.xaxis, sequence.labels, sequence.real, sequence.start, side, vertical=True)
    label_axis(ax.yaxis, sequence.labels, sequence.real, sequence.start, side)
    _set_title(figure, [sequence.title(layer, head), *_block_note(block)])
    ax.set_ylabel("query: the token that looks")
    ax.set_xlabel("key: the token looked at")
    _add_colorbar(figure, image, ax, ax, log)
    return figure


@figure_function
def heads(record, layer, row=0, hide_first=False, log=False, window=None):
    """The maps of all recorded heads of one layer on one sequence, in one colour scale.

    Parameters and errors are those of `head`.
    """
    sequence = Sequence(record, row, hide_first, window)
    count = len(record.heads)
    across = min(count, 2 if count <= 4 else 4 if count <= 16 else 8)
    down = -(-count // across)
    side = min((WIDTH - 1.8) / across, 3.2)
    margin = reach(sequence.labels, side)
    side = min(side, (WIDTH - 0.3 - margin - COLORBAR) / across - 0.12)
    figure, axes = grid_of_axes(down, across, (side, side), (0.12, 0.4), margin + 0.3, COLORBAR, 0.6, margin + 0.3)
    norm, block = attention_norm(log), _block_size(sequence, side)
    for ax, number in zip(axes.flat, record.heads):
        image = _draw_map(ax, sequence, layer, number, norm, block)
        ax.set_title(f"head {number}", fontsize=8)
    for ax in axes.flat[count:]:
        ax.set_visible(False)
    for index, ax in enumerate(axes.flat[:count]):
        if index % across == 0:
            label_axis(ax.yaxis, sequence.labels, sequence.real, sequence.start, side)
        else:
            ax.set_yticks([])
        if index + across >= count:  # nothing below it
            label_axis(ax.xaxis, sequence.labels, sequence.real, sequence.start, side, vertical=True)
        else:
            ax.set_xticks([])
    axes[0, 0].set_ylabel("query")
    axes[-1, 0].set_xlabel("key")
    _set_title(figure, [sequence.title(layer), *_block_note(block)])
    _add_colorbar(figure, image, axes[0, -1], axes[-1, -1], log)
    return figure


@figure_function
def model(record, row=0, page=0, hide_first=False, log=False, window=None):
    """All recorded maps on one sequence as tiles, a line for each layer and a column for each head.

    For finding a head, which `head` then shows large. Tiles stay readable, as patterns, up to 32 layers × 32 heads, a
    quarter of an inch each; a larger record is cut into pages of equal shares. (A summary in one number a head is
    another picture: `entropy` and `roles`.)

    Parameters
    ----------
    page : int
        Counted from 0, through the heads first. The title says how many there are.

    The other parameters and errors are those of `head`.
    """
    sequence = Sequence(record, row, hide_first, window)
    layers, heads, note = _page(record, page)
    side = min((WIDTH - 0.5 - COLORBAR) / len(heads), 1.5)
    block = _block_size(sequence, 0.9 * side)
    tiles = [[largest_in_blocks(sequence.map(layer, head), block) for head in heads] for layer in layers]
    size = len(tiles[0][0])
    gap = max(1, round(0.07 * size))
    pitch = size + gap
    shape = (len(layers) * pitch - gap, len(heads) * pitch - gap)
    mosaic = np.full(shape, np.nan, dtype="float32")
    for i, line in enumerate(tiles):
        for j, tile in enumerate(line):
            mosaic[i * pitch : i * pitch + size, j * pitch : j * pitch + size] = tile

    lengths = (side * len(heads), side * len(layers))
    figure, ((ax,),) = grid_of_axes(1, 1, lengths, left=0.5, right=COLORBAR, top=0.75, bottom=0.1)
    image = ax.imshow(mosaic, cmap=CONTINUOUS, norm=attention_norm(log), interpolation="nearest", aspect="auto")
    ax.set_facecolor(CLOSED)
    ax.spines[:].set_visible(False)
    for i in range(len(layers)):
        for j in range(len(heads)):
            hatch_padding(ax, sequence.real, j * pitch, i * pitch, 1 / block)
    for i in range(1, len(layers)):
        ax.axhspan(i * pitch - gap - 0.5, i * pitch - 0.5, color="white", linewidth=0)
    for j in range(1, len(heads)):
        ax.axvspan(j * pitch - gap - 0.5, j * pitch - 0.5, color="white", linewidth=0)
    middle = (size - 1) / 2
    ax.set_xticks([j * pitch + middle for j in range(len(heads))], heads, fontsize=SIZE)
    ax.set_yticks([i * pitch + middle for i in range(len(layers))], layers, fontsize=SIZE)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.xaxis.set_label_position("top")
    ax.set(xlabel="head", ylabel="layer")
    _set_title(figure, [*sequence.notes(), *note, *_block_note(block)])
    _add_colorbar(figure, image, ax, ax, log)
    return figure


def _page(record, page):
    """The layers and the heads of one page, and its number in words where there are several."""
    parts = [np.array_split(numbers, -(-len(numbers) // PAGE)) for numbers in (record.layers, record.heads)]
    pages = [(layers.tolist(), heads.tolist()) for layers in parts[0] for heads in parts[1]]
    if not 0 <= page < len(pages):
        raise ValueError(f"there is no page {page}: this record takes {len(pages)}, numbered from 0.")
    note = [f"page {page} of 0 to {len(pages) - 1}"] if len(pages) > 1 else []
    return *pages[page], note
