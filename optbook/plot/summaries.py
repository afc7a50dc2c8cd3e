"""One number a head, over layers × heads: the roles heads play, and how widely they look."""

import matplotlib.pyplot as plt
import numpy as np

from optbook.attention_numbers import head_entropy
from optbook.plot._labels import SIZE, round_steps
from optbook.plot._sequence import attention_norm, check_record, check_window, scale_options
from optbook.plot._style import CONTINUOUS, WIDTH, figure_function, new_axes

ROLES = {
    "first_token": "first token (the sink)",
    "previous_token": "previous token",
    "induction": "induction",
    "duplicate_token": "duplicate token",
}


@figure_function
def roles(scores, log=False):
    """How much each head plays each role: one map of layers × heads for each, the strongest head framed and named.

    Parameters
    ----------
    scores : dict of arrays of shape (layers, heads)
        As `optbook.head_scores` returns them, all of its keys or some.
    log : bool
        A logarithmic scale, for weak heads: from 0.0001, and what is less is drawn as that.

    Raises
    ------
    ValueError
        For a role that is not known, and for arrays of different shapes.
    """
    arrays = {role: np.asarray(scores[role], dtype="float32") for role in ROLES if role in scores}
    unknown = [str(role) for role in scores if role not in ROLES]
    if unknown or not arrays:
        raise ValueError(f"roles takes scores of {', '.join(ROLES)}, not {', '.join(unknown) or 'none'}.")
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"all roles need scores of one shape (layers, heads), not {', '.join(map(str, shapes))}.")
    ((layers, heads),) = shapes
    across, down = min(len(arrays), 2), -(-len(arrays) // 2)
    figure, axes = new_axes(
        down, across, figsize=(WIDTH if across == 2 else 5.0, down * (_height(layers) + 0.75)), squeeze=False
    )
    for ax, (role, array) in zip(axes.flat, arrays.items()):
        image = _draw_grid(ax, array, range(layers), range(heads), attention_norm(log))
        layer, head = np.unravel_index(array.argmax(), array.shape)
        frame = dict(facecolor="none", edgecolor="#d55e00", linewidth=2, clip_on=False, zorder=3)
        ax.add_patch(plt.Rectangle((head - 0.5, layer - 0.5), 1, 1, **frame))
        ax.set_title(f"{ROLES[role]}\nmost: layer {layer}, head {head}, {array.max():.2f}", fontsize=9)
    for ax in axes.flat[len(arrays) :]:
        ax.set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02, label="mean attention", **scale_options(log))
    bar.ax.tick_params(labelsize=SIZE)
    return figure


@figure_function
def entropy(record, row=None, hide_first=False, window=None):
    """How widely each head looks: the entropy of its rows, as a share of the most that each query could reach.

    0: every query looks at a single key. 1: every query looks at all keys it may see, equally. Drawn is the mean over
    real queries, as `optbook.attention_numbers.head_entropy` returns it; a query that sees one key has no say.

    Parameters
    ----------
    record : AttentionRecord
    row : int, optional
        One sequence of the batch; all of them when left out.
    hide_first : bool
        Leave out the first token and scale rows to sum to 1 again.
    window : (int, int), optional
        Only queries from start to stop, stop not included; all their keys count.

    Raises
    ------
    ValueError
        For a row or window that the record does not have, and for a record whose parts do not fit.
    """
    check_record(record)
    if row is not None and not 0 <= row < len(record.tokens):
        raise ValueError(f"row {row} is not in this record of {len(record.tokens)} sequences.")
    start, stop = check_window(window, len(record.tokens[0]))
    means = head_entropy(record, row, hide_first, (start, stop))
    figure, ax = new_axes(figsize=(5.6, _height(len(means)) + 0.9))
    image = _draw_grid(ax, means, record.layers, record.heads, plt.Normalize(0, 1))
    notes = ["entropy of attention"]
    notes += [f"sequence {row}"] if row is not None and len(record.tokens) > 1 else []
    notes += [f"queries {start} to {stop - 1}"] if window else []
    notes += ["without the first token"] if hide_first else []
    ax.set_title(", ".join(notes))
    bar = figure.colorbar(image, ax=ax, shrink=0.9, pad=0.02, ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["0: one key", "0.5", "1: all alike"], fontsize=SIZE)
    return figure


def _height(layers):
    """Inches of a map: two or three layers stay readable, many stay on the screen."""
    return max(min(3.4, 0.5 * layers), 0.9)


def _draw_grid(ax, values, layers, heads, norm):
    image = ax.imshow(values, cmap=CONTINUOUS, norm=norm, interpolation="nearest", aspect="auto")
    ax.spines[:].set_visible(False)
    for axis, numbers in ((ax.xaxis, list(heads)), (ax.yaxis, list(layers))):
        places = range(len(numbers)) if len(numbers) <= 16 else round_steps(0, len(numbers), 10)
        axis.set_ticks(places, [str(numbers[place]) for place in places], fontsize=SIZE)
    ax.tick_params(length=0)
    ax.set_xlabel("head", fontsize=8)
    ax.set_ylabel("layer", fontsize=8)
    if values.shape[0] <= 12 and values.shape[1] <= 8:
        for (i, j), value in np.ndenumerate(values):
            if not np.isnan(value):
                color = "white" if norm(value) < 0.5 else "black"
                ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color=color)
    return image
