"""Pictures of masks and of attention."""

import matplotlib.pyplot as plt
import numpy as np

from optbook.plot._style import DIVERGING, draw_matrix, figure_function, hatch_padding


@figure_function
def masks(padding_mask, tokens):
    """For each sequence of a batch: the causal mask, the padding mask and what is left of both.

    Parameters
    ----------
    padding_mask : array of shape (batch, T)
        1 for a real token, 0 for padding.
    tokens : list of list of str
        Labels, (batch, T).
    """
    real = np.asarray(padding_mask, dtype=bool)
    batch, length = real.shape
    causal = np.tril(np.ones((length, length), dtype=bool))
    figure, axes = plt.subplots(batch, 3, figsize=(9, 3.4 * batch), squeeze=False)
    for row in range(batch):
        padding = np.broadcast_to(real[row], (length, length))
        titles = ("causal: the key is in the past", "padding: the key is real", "both: query may attend to key")
        for ax, title, mask in zip(axes[row], titles, (causal, padding, causal & padding)):
            draw_matrix(ax, mask, tokens[row], tokens[row], title, low=0, high=1, cmap="cividis")
            ax.set_xticks(np.arange(-0.5, length), minor=True)
            ax.set_yticks(np.arange(-0.5, length), minor=True)
            ax.grid(which="minor", color="white", linewidth=0.5)
            ax.tick_params(which="minor", length=0)
            for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
                for label, is_real in zip(labels, real[row]):
                    label.set_color("black" if is_real else "0.6")
        axes[row, 0].set_ylabel("query")
        axes[row, 0].set_xlabel("key")
    return figure


@figure_function
def stages(scores, mask, values, tokens, head_dim):
    """One head, from products to output: QKᵀ, scaled, masked, softmax, weighted values.

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
    """
    scores, mask, values = np.asarray(scores, "float32"), np.asarray(mask, bool), np.asarray(values, "float32")
    scaled = scores / np.sqrt(head_dim)
    masked = np.where(mask, scaled, np.nan)
    weights = np.exp(masked - np.nanmax(masked, axis=-1, keepdims=True))
    weights = np.nan_to_num(weights / np.nansum(weights, axis=-1, keepdims=True))
    annotate = ".1f" if len(tokens) <= 8 else None
    figure, axes = plt.subplots(1, 5, figsize=(13, 3.3))
    bound = float(np.abs(scores).max())
    for ax, title, array in zip(
        axes, ("1  query · key", "2  scaled by 1/√head_dim", "3  masked"), (scores, scaled, masked)
    ):
        draw_matrix(ax, array, tokens, tokens, title, annotate, -bound, bound, cmap=DIVERGING)
        ax.set_facecolor("0.85")
    draw_matrix(axes[3], weights, tokens, tokens, "4  softmax: rows sum to 1", ".2f" if annotate else None, 0, 1)
    output = weights @ values
    draw_matrix(
        axes[4],
        output,
        title="5  weights · values",
        cmap=DIVERGING,
        low=-np.abs(output).max(),
        high=np.abs(output).max(),
    )
    axes[4].set_yticks(range(len(tokens)), tokens, fontsize=8)
    axes[4].set_xlabel("head_dim")
    for ax in axes[1:4]:
        ax.set_yticks([])
    axes[0].set_ylabel("query")
    axes[0].set_xlabel("key")
    return figure


def _draw_attention(ax, scores, tokens, real, title, ticks=True):
    labels = tokens if ticks else None
    image = draw_matrix(ax, scores, labels, labels, title, low=0, high=1)
    ax.set_aspect("equal")
    if not ticks:
        ax.set_xticks([])
        ax.set_yticks([])
    hatch_padding(ax, real)
    return image


@figure_function
def head(record, layer, head, row=0, size=5.0, mask=None):
    """The attention map of one head on one sequence: queries down, keys across, padding hatched.

    Where ``mask``, boolean of shape (T, T), is False, the map is left grey.
    """
    figure, ax = plt.subplots(figsize=(size + 0.8, size))
    scores = record.map(layer, head, row)
    if mask is not None:
        scores = np.where(mask, scores, np.nan)
        ax.set_facecolor("0.85")
    image = _draw_attention(ax, scores, record.tokens[row], record.padding_mask[row], f"layer {layer}, head {head}")
    ax.set_ylabel("query: the token that looks")
    ax.set_xlabel("key: the token looked at")
    figure.colorbar(image, ax=ax, shrink=0.8, label="attention")
    return figure


@figure_function
def heads(record, row=0, size=2.1):
    """All recorded heads on one sequence, a line of maps for each layer, without labels: for the overview."""
    figure, axes = plt.subplots(
        len(record.layers),
        len(record.heads),
        figsize=(size * len(record.heads) + 0.8, size * len(record.layers) + 0.3),
        squeeze=False,
    )
    for i, layer in enumerate(record.layers):
        for j, number in enumerate(record.heads):
            scores = record.map(layer, number, row)
            title = f"layer {layer}, head {number}"
            image = _draw_attention(
                axes[i, j], scores, record.tokens[row], record.padding_mask[row], title, ticks=False
            )
    figure.colorbar(image, ax=axes, shrink=0.8, label="attention")
    return figure
