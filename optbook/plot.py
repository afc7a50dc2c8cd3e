"""Pictures for the chapters. Every function returns a matplotlib Figure; none of them shows or saves it."""

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


def _figure(function):
    """Draw in this module's style, and close the figure, so that a notebook shows what is returned, once."""

    @functools.wraps(function)
    def styled(*args, **kwargs):
        with plt.rc_context(STYLE):
            figure = function(*args, **kwargs)
            plt.close(figure)
            return figure

    return styled


def _draw_matrix(ax, values, rows=None, columns=None, title="", annotate=None, low=None, high=None, cmap=CONTINUOUS):
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


def _hatch_padding(ax, real):
    """Hatch the rows and columns of padding."""
    size = len(real)
    for index in np.flatnonzero(~np.asarray(real, dtype=bool)):
        ax.add_patch(plt.Rectangle((index - 0.5, -0.5), 1, size, **PADDING))
        ax.add_patch(plt.Rectangle((-0.5, index - 0.5), size, 1, **PADDING))


@_figure
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
    figure, axes = plt.subplots(down, across, figsize=(size * across + 1.2, (height + 0.7) * down), squeeze=False)
    everything = np.concatenate([array.ravel() for array in arrays.values()])
    for ax in axes.flat[count:]:
        ax.set_visible(False)
    for index, (ax, (title, array)) in enumerate(zip(axes.flat, arrays.items())):
        scope = everything if shared else array
        low, high = float(np.nanmin(scope)), float(np.nanmax(scope))
        if diverging:
            high = max(abs(low), abs(high)) or 1.0
            low = -high
        image = _draw_matrix(
            ax, array, rows, columns, title, annotate, low, high, cmap=DIVERGING if diverging else CONTINUOUS
        )
        if index % across:
            ax.set_yticks([])
        if not shared:
            figure.colorbar(image, ax=ax, shrink=0.7)
    if shared:
        figure.colorbar(image, ax=axes, shrink=0.7, label=label)
    return figure


@_figure
def texts(values, written, rows, columns, xlabel="", label="", low=0.0, high=1.0):
    """A heat map with a text in each cell; ``values`` and ``written`` have shape (R, C).

    ``label`` says what the colour means, which runs from ``low`` to ``high``; ``rows`` and ``columns`` are labels.
    """
    figure, ax = plt.subplots(figsize=(0.72 * len(columns) + 2.2, 0.42 * len(rows) + 1.2))
    image = _draw_matrix(ax, values, rows, columns, low=low, high=high)
    ax.set(aspect="auto", xlabel=xlabel)
    for (i, j), value in np.ndenumerate(np.asarray(values)):
        color = "white" if value < (low + high) / 2 else "black"
        ax.text(j, i, written[i][j], ha="center", va="center", fontsize=8, color=color, clip_on=True)
    figure.colorbar(image, ax=ax, label=label, pad=0.01)
    return figure


@_figure
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
            _draw_matrix(ax, mask, tokens[row], tokens[row], title, low=0, high=1, cmap="cividis")
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


@_figure
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
        _draw_matrix(ax, array, tokens, tokens, title, annotate, -bound, bound, cmap=DIVERGING)
        ax.set_facecolor("0.85")
    _draw_matrix(axes[3], weights, tokens, tokens, "4  softmax: rows sum to 1", ".2f" if annotate else None, 0, 1)
    output = weights @ values
    _draw_matrix(
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
    image = _draw_matrix(ax, scores, labels, labels, title, low=0, high=1)
    ax.set_aspect("equal")
    if not ticks:
        ax.set_xticks([])
        ax.set_yticks([])
    _hatch_padding(ax, real)
    return image


@_figure
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


@_figure
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


@_figure
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
    figure = plt.figure(figsize=(width, height), layout="none")
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
            ax.text(x + piece / 2, top + 0.15, labels[index], ha="center", va="center", family="monospace", fontsize=10)
            if numbers is not None:
                ax.text(
                    x + piece / 2, top + 0.4, str(numbers[index]), ha="center", va="center", fontsize=7, color="0.35"
                )
    return figure


@_figure
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
    em, height = 0.088, 0.48 if numbers is not None else 0.34
    margin = 0.15 + 0.075 * max(map(len, rows))
    colors, extents = {}, []
    for labels in rows.values():
        for label in labels:
            if column or len(label) > 1:
                colors.setdefault(label, PIECES[len(colors) % len(PIECES)])
        extents.append(np.cumsum([margin, *(column or len(label) * em for label in labels)]))
    width = max(extent[-1] for extent in extents) + 0.05
    figure = plt.figure(figsize=(width, height * len(rows)), layout="none")
    ax = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height * len(rows), 0))
    ax.axis("off")
    for line, (title, labels) in enumerate(rows.items()):
        top, middle = height * line + 0.03, height * (line + 0.5)
        ax.text(margin - 0.1, middle, title, ha="right", va="center", fontsize=8)
        for index, label in enumerate(labels):
            left, right = extents[line][index : index + 2]
            real = mask is None or mask[line][index]
            style = dict(facecolor=colors.get(label, "white"), edgecolor="0.5", linewidth=0.5)
            style = style if real else {**PADDING, "edgecolor": "0.8"}
            ax.add_patch(plt.Rectangle((left, top), right - left - 0.01, height - 0.06, **style))
            text = dict(x=(left + right) / 2, ha="center", va="center", color="black" if real else "0.3")
            shift = 0.0 if numbers is None else 0.1
            ax.text(y=middle - shift, s=label, family="monospace", fontsize=8 if column else 9, **text)
            if numbers is not None:
                ax.text(y=middle + shift, s=str(numbers[line][index]), fontsize=7, **text)
    return figure


@_figure
def lines(curves, x=None, xlabel="", ylabel="", title="", log_y=False, size=(6.5, 3.2), marker=None, log_x=False):
    """Curves over a common axis; ``curves`` is a dict of name to numbers, ``x`` the common positions.

    With ``log_x`` the positions are few and each gets its tick, as for widths that double.
    """
    figure, ax = plt.subplots(figsize=size)
    for name, values in curves.items():
        ax.plot(range(len(values)) if x is None else x, values, label=name, marker=marker, markersize=4)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if log_y:
        ax.set_yscale("log")
    if log_x:
        ax.set_xscale("log", base=2)
        ax.set_xticks(x, [str(position) for position in x])
    if len(curves) > 1:
        ax.legend(frameon=False)
    return figure


@_figure
def bars(values, ylabel="", title="", number="", log_y=False, size=(6.5, 3.0)):
    """Labelled bars; ``values`` is a dict of name to number, ``number`` the format written on each bar."""
    figure, ax = plt.subplots(figsize=size)
    drawn = ax.bar(list(values), list(values.values()), color="#0072b2", width=0.6)
    ax.bar_label(drawn, [format(value, number) for value in values.values()], padding=2, fontsize=8)
    ax.set(ylabel=ylabel, title=title)
    ax.margins(y=0.12)
    if log_y:
        ax.set_yscale("log")
    return figure


@_figure
def histograms(values, bins=40, xlabel="", title="", size=(6.5, 3.0)):
    """Overlaid histograms of equal area; ``values`` is a dict of name to numbers."""
    figure, ax = plt.subplots(figsize=size)
    everything = np.concatenate([np.ravel(numbers) for numbers in values.values()])
    edges = np.linspace(everything.min(), everything.max(), bins + 1)
    for name, numbers in values.items():
        ax.hist(np.ravel(numbers), edges, density=True, alpha=0.55, label=name)
    ax.set(xlabel=xlabel, ylabel="density", title=title)
    ax.legend(frameon=False)
    return figure


@_figure
def shares(values, xlabel="share", size=(7.0, 2.8)):
    """Lying bars of length 1, cut into parts; ``values`` is a dict of bar name to a dict of part name to number."""
    figure, ax = plt.subplots(figsize=size)
    parts = list(next(iter(values.values())))
    totals = np.array([sum(bar.values()) for bar in values.values()])
    left = np.zeros(len(values))
    for part in parts:
        widths = np.array([bar[part] for bar in values.values()]) / totals
        drawn = ax.barh(list(values), widths, left=left, label=part, height=0.65, edgecolor="white")
        labels = [f"{width:.0%}" if width >= 0.04 else "" for width in widths]
        ax.bar_label(drawn, labels, label_type="center", fontsize=8, color="white")
        left += widths
    ax.set(xlim=(0, 1), xlabel=xlabel)
    ax.invert_yaxis()
    ax.legend(frameon=False, ncols=len(parts), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure
