"""Masks, and the way from scores through a mask to weights."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch

from optbook._validation import check_mask
from optbook.plot._labels import SIZE, label_axis, reach
from optbook.plot._sequence import check_labels, check_window
from optbook.plot._style import (
    CLOSED,
    DIVERGING,
    PADDING,
    WIDTH,
    draw_matrix,
    figure_function,
    grid_of_axes,
    hatch_padding,
    new_axes,
)

MASK_COLORS = "cividis"  # yellow: may attend; dark blue: may not


@figure_function
def masks(padding_mask, tokens, window=None):
    """For each sequence of a batch: the causal mask, the padding mask and what is left of both.

    Parameters
    ----------
    padding_mask : array of shape (batch, T)
        1 for a real token, 0 for padding, which is hatched.
    tokens : list of list of str
        Labels, (batch, T).
    window : (int, int), optional
        Only queries and keys from start to stop, stop not included.

    Raises
    ------
    ValueError
        Where the two do not fit together, and for a window outside them.
    """
    real = check_labels(padding_mask, tokens)
    start, stop = check_window(window, real.shape[1])
    real = real[:, start:stop]
    batch, length = real.shape
    causal = np.tril(np.ones((length, length), dtype=bool))
    margin = max(reach(row[start:stop], 2.4) for row in tokens)
    side = (WIDTH - margin - 0.6) / 3
    figure, axes = grid_of_axes(
        batch, 3, (side, side), (0.12, margin + 0.55), left=margin + 0.3, right=0.06, top=0.3, bottom=margin + 0.65
    )
    for row in range(batch):
        padding = np.broadcast_to(real[row], (length, length))
        titles = ("causal: the key is not later", "padding: the key is real", "both: query may attend to key")
        for column, (ax, title, mask) in enumerate(zip(axes[row], titles, (causal, padding, causal & padding))):
            ax.imshow(
                mask.astype("float32"),
                cmap=MASK_COLORS,
                vmin=0,
                vmax=1,
                interpolation="nearest",
                extent=(start - 0.5, stop - 0.5, stop - 0.5, start - 0.5),
            )
            if length <= 40:
                for edge in np.arange(start - 0.5, stop):
                    ax.axhline(edge, color="white", linewidth=0.5)
                    ax.axvline(edge, color="white", linewidth=0.5)
            ax.set_title(title, fontsize=9)
            ax.spines[:].set_visible(False)
            hatch_padding(ax, real[row], start, start)
            labels = tokens[row][start:stop]
            label_axis(ax.xaxis, labels, real[row], start, 2.4, vertical=True)
            if column == 0:
                label_axis(ax.yaxis, labels, real[row], start, 2.4)
            else:
                ax.set_yticks([])
        axes[row, 0].set_ylabel(f"sequence {row}: query" if batch > 1 else "query")
        axes[row, 0].set_xlabel("key")
    yes, no = plt.get_cmap(MASK_COLORS)([1.0, 0.0])
    entries = [Patch(color=yes, label="may attend"), Patch(color=no, label="may not")]
    if not real.all():
        entries.append(Patch(**PADDING, label="padding"))
    figure.legend(handles=entries, loc="lower center", ncols=3, frameon=False, fontsize=8)
    return figure


@figure_function
def stages(scores, mask, values, tokens, head_dim):
    """One head, from products to output: QKᵀ, scaled, masked, softmax, and the weighted values.

    Parameters
    ----------
    scores : array of shape (T, T)
        Products of queries and keys, not yet scaled.
    mask : boolean array of shape (T, T)
        True where query t may attend to key s.
    values : array of shape (T, head_dim)
    tokens : list of str
    head_dim : int
        Scores are divided by its square root.

    Raises
    ------
    ValueError
        For shapes that do not fit together.
    """
    scores, mask, values = np.asarray(scores, "float32"), check_mask("mask", mask), np.asarray(values, "float32")
    length = len(tokens)
    if scores.shape != (length, length) or mask.shape != scores.shape or values.shape != (length, head_dim):
        raise ValueError(
            f"{length} tokens and head_dim {head_dim} need scores and mask of shape {length, length} and values of "
            f"{length, head_dim}, not {scores.shape}, {mask.shape} and {values.shape}."
        )
    scaled = scores / np.sqrt(head_dim)
    masked = np.where(mask, scaled, np.nan)
    highest = np.max(masked, axis=-1, keepdims=True, initial=-np.inf, where=mask)
    exponentials = np.where(mask, np.exp(scaled - np.where(np.isinf(highest), 0.0, highest)), 0.0)
    total = exponentials.sum(axis=-1, keepdims=True)
    weights = np.divide(exponentials, total, out=np.zeros_like(exponentials), where=total > 0)
    output = weights @ values

    few = length <= 8
    figure, axes = new_axes(2, 3, figsize=(WIDTH, 6.2))
    bound = float(np.abs(scores).max()) or 1.0
    # numbers in the cells show that scaling shrinks them; without numbers each stage needs a color scale of its own
    scaled_bound = bound if few else bound / np.sqrt(head_dim)
    largest = float(max(np.abs(values).max(), np.abs(output).max())) or 1.0
    panels = [
        ("1  query · key", scores, "z.1f", bound, DIVERGING),
        ("2  scaled by 1/√head_dim", scaled, "z.1f", scaled_bound, DIVERGING),
        ("3  masked", masked, "z.1f", scaled_bound, DIVERGING),
        ("4  softmax: each row sums to 1", weights, ".2f", 1.0, None),
        ("5  weights · values", output, None, largest, DIVERGING),
        ("the values, by key", values, None, largest, DIVERGING),
    ]
    every = np.ones(length, dtype=bool)
    for ax, (title, array, annotate, high, cmap) in zip(axes.flat, panels):
        low, chosen = (-high, {"cmap": cmap}) if cmap else (0.0, {})
        image = draw_matrix(ax, array, title=title, annotate=annotate if few else None, low=low, high=high, **chosen)
        ax.set_facecolor(CLOSED)
        if not few:
            figure.colorbar(image, ax=ax, pad=0.02, aspect=30).ax.tick_params(labelsize=SIZE)
        label_axis(ax.yaxis, tokens, every, 0, 2.1)
        if annotate:
            label_axis(ax.xaxis, tokens, every, 0, 2.1, vertical=True)
        else:
            ax.set_xlabel("head_dim", fontsize=8)
            ax.tick_params(labelsize=SIZE)
    axes[0, 0].set(ylabel="query", xlabel="key")
    return figure
