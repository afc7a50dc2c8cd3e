"""The arithmetic behind the pictures of attention, for cells that print what a figure shows."""

import numpy as np

from optbook._validation import check_mask


def visible_keys(padding_mask, hide_first=False):
    """Which keys each query of one sequence may see: those not later than itself, real tokens all.

    Parameters
    ----------
    padding_mask : array of shape (T,)
        1 for a real token, 0 for padding.
    hide_first : bool
        Leave out the first real token, as `without_first` does.

    Returns
    -------
    boolean array of shape (T, T)
        Row t belongs to query t. The rows and the columns of padding are False.
    """
    real = check_mask("padding_mask", padding_mask)
    visible = np.tril(np.ones((len(real), len(real)), dtype=bool)) & real & real[:, None]
    if hide_first:
        visible[:, real.argmax()] = False
    return visible


def without_first(weights, padding_mask):
    """Weights as if no query had looked at the first token: its column set to 0, what is left scaled to sum to 1.

    Parameters
    ----------
    weights : array of shape (..., T, T)
        Attention on one sequence, such as ``record.weights[:, row]`` or ``record.map(layer, head, row)``.
    padding_mask : array of shape (T,)
        The first token is the first real one, also where padding stands on the left.

    Returns
    -------
    float32 array of shape (..., T, T)
        A row that had nothing but the first token, as the first token's own, is all 0. Where the first token had
        almost everything, the small rest is scaled up a lot: read such rows with care.
    """
    kept = np.array(weights, dtype="float32")
    kept[..., check_mask("padding_mask", padding_mask).argmax()] = 0.0
    total = kept.sum(axis=-1, keepdims=True)
    return np.divide(kept, total, out=np.zeros_like(kept), where=total > 0)


def entropy(weights, padding_mask, hide_first=False, normalized=False):
    """How widely each query spreads its attention.

    Parameters
    ----------
    weights : array of shape (..., T, T)
        Attention on one sequence.
    padding_mask : array of shape (T,)
    hide_first : bool
        Of the weights `without_first`.
    normalized : bool
        Divide by the most that this query could reach, the logarithm of the number of keys that it may see: 0 is all
        attention on one key, 1 the same on each, and early and late queries can be compared.

    Returns
    -------
    float32 array of shape (..., T)
        In bits (2 to this power is the number of keys that would get equal shares), or a share of the maximum. NaN
        where there is nothing to spread: for padding, for rows that sum to 0 and, if ``normalized``, for a query that
        sees a single key.
    """
    weights = without_first(weights, padding_mask) if hide_first else np.asarray(weights, dtype="float32")
    logarithms = np.log2(weights, out=np.zeros_like(weights), where=weights > 0)  # 0 · log 0 counts as 0
    spread = -(weights * logarithms).sum(axis=-1) + 0.0  # no -0.0
    keys = visible_keys(padding_mask, hide_first).sum(axis=-1)
    if normalized:
        spread = spread / np.log2(np.maximum(keys, 2))
    meaningful = (keys > int(normalized)) & (weights.sum(axis=-1) > 0)
    return np.where(meaningful, spread, np.nan).astype("float32")


def head_entropy(record, row=None, hide_first=False, window=None):
    """The normalized entropy of each recorded head: the mean over the real queries.

    Parameters
    ----------
    record : AttentionRecord
    row : int, optional
        One sequence of the batch; the queries of all of them when left out.
    hide_first : bool
        Of the weights `without_first`.
    window : (int, int), optional
        Only queries from start to stop, stop not included.

    Returns
    -------
    float64 array of shape (layers, heads)
        0 where every query looks at a single key, 1 where all spread evenly; NaN where no query sees two keys.
    """
    rows = range(len(record.tokens)) if row is None else [row]
    queries = slice(*window) if window else slice(None)
    # layer by layer: records of long texts are large
    means = []
    for weights in record.weights:
        of_rows = [entropy(weights[i], record.padding_mask[i], hide_first, normalized=True)[:, queries] for i in rows]
        per_query = np.concatenate(of_rows, axis=-1).astype("float64")  # (heads, queries)
        known = ~np.isnan(per_query)
        count = known.sum(axis=-1)
        total = np.where(known, per_query, 0.0).sum(axis=-1)
        means.append(np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0))
    return np.stack(means)


def largest_in_blocks(weights, size):
    """The largest weight of each ``size`` × ``size`` block, so that no bright cell of a long text is lost on a screen.

    Parameters
    ----------
    weights : array of shape (T, S)
        NaN is left out of a block's maximum; a block of nothing else is NaN.
    size : int

    Returns
    -------
    array of shape (ceil(T / size), ceil(S / size))
    """
    if size == 1:
        return weights
    down, across = (-(-length // size) for length in weights.shape)
    filled = np.full((down * size, across * size), -np.inf, dtype=weights.dtype)
    filled[: weights.shape[0], : weights.shape[1]] = np.where(np.isnan(weights), -np.inf, weights)
    largest = filled.reshape(down, size, across, size).max(axis=(1, 3))
    return np.where(np.isinf(largest), np.nan, largest)
