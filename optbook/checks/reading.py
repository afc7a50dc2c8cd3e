"""Exercises of chapter 08: a score from a map, the sink hidden, a mean over a padded batch, heads in a line-up."""

import numpy as np

from optbook.attention_numbers import without_first as _without_first
from optbook.checks._core import ask, compare, numbers, require, require_shape, verdict

ROLES = ("first token", "previous token", "induction", "duplicate token", "none")


def _maps(*shape, seed=0):
    """Random causal attention of shape (..., T, T): rows sum to 1."""
    weights = np.random.default_rng(seed).gamma(0.5, size=shape) + 1e-3
    weights = np.where(np.tril(np.ones(shape[-2:], bool)), weights, 0.0)
    return weights / weights.sum(axis=-1, keepdims=True)


def previous_token(function):
    """Checks ``function(weights) -> float``: of one map (T, T), the mean attention to the token just before."""
    lengths = (3, 8, 21)
    for length in lengths:
        weights = _maps(length, length, seed=length)
        answer = ask(function, weights)
        before = np.diagonal(weights, -1)
        mean = before.mean()
        mistakes = {
            "you read the diagonal itself, each token's attention to itself; the token before is one column to the "
            "left": np.diagonal(weights).mean(),
            "you read above the diagonal, where every weight is 0: a row is a query, and the token before it is in the "
            "column to the left": 0.0,
            "you divided by the number of tokens, but the first one has no token before it (index -1 is the last one, "
            "in its future)": before.sum() / length,
            "you added the weights up; the score is their mean, so that long texts do not score more": before.sum(),
            "you read the first column, attention to the first token": weights[1:, 0].mean(),
        }
        compare(
            answer,
            mean,
            mistakes,
            name="the score",
            shapes={None: "it is one number for the whole map"},
            otherwise=lambda got, length=length, right=mean: (
                f"on a map of {length} tokens the score is {right:.3f}, not {float(got):.3f}."
            ),
        )
    return f"right: maps of {', '.join(map(str, lengths))} tokens, each query but the first counted once"


def without_first(function):
    """Checks ``function(weights) -> (T, T)``: the first column set to 0 and each row scaled to sum to 1 again."""
    length = 6
    weights = _maps(length, length, seed=1)
    answer = numbers(ask(function, weights))
    keep = {None: "keep the column and set it to 0, so that rows and columns still stand for the same tokens"}
    require_shape(answer, weights.shape, "the map", keep)
    require(
        np.isfinite(answer.astype("float64")).all(),
        "there is NaN in your map: the first token sees only itself, so its row sums to 0, and 0 / 0 is not a number.",
    )
    require(not answer[:, 0].any(), "the first column must be 0 in every row.")
    removed = weights.copy()
    removed[:, 0] = 0.0
    by_columns = np.divide(removed, removed.sum(axis=0), out=np.zeros_like(removed), where=removed.sum(axis=0) > 0)
    mistakes = {
        "the rows no longer sum to 1: what the first token had is shared out among the other keys": removed,
        "you scaled the columns: a query shares out its attention, so the sums of the rows are what must be 1": (
            by_columns
        ),
        "you divided the whole map by one number: every row has a sum of its own": removed / removed.sum(),
    }
    expected = _without_first(weights, np.ones(length))

    def otherwise(got):
        if got[0].any():
            return "the first token has nothing left to look at: its row is 0."
        last = f"in your map the last row sums to {got[-1].sum():.2f}, and its largest weight is {got[-1].max():.2f}"
        return f"{last}; it should be {expected[-1].max():.2f}."

    compare(answer, expected, mistakes, otherwise=otherwise)
    return "right: the first column is 0, the rows that had something else sum to 1"


_PADDING = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1]])


def mean_to_first(function):
    """Checks ``function(weights, padding_mask) -> float``: mean attention of later real tokens to the first real one.

    ``weights`` has shape (batch, T, T), ``padding_mask`` (batch, T); every later real token of the batch counts once.
    """
    real = _PADDING.astype(bool)
    batch, length = real.shape
    weights = _maps(batch, length, length, seed=2) * real[:, None]
    total = weights.sum(axis=-1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    answer = ask(function, weights, _PADDING)
    first = real.argmax(axis=1)  # where the first real token stands
    to_first = np.take_along_axis(weights, first[:, None, None], axis=2)[..., 0]  # (batch, T)
    later = real & (np.arange(length) > first[:, None])
    expected = to_first[later].mean()
    of_each = [to_first[row][later[row]].mean() for row in range(batch)]
    not_first = np.arange(length) > first[:, None]
    mistakes = {
        "the rows of padding are in your mean: a pad looks at real tokens too, and nobody reads what it finds": [
            to_first[not_first].mean(),
            to_first.mean(),
            to_first[:, 1:].mean(),
            weights[:, :, 0].mean(),
            weights[:, 1:, 0].mean(),
        ],
        "the first token's own row is in your mean: it sees nothing but itself, so its 1 says nothing": [
            to_first[real].mean()
        ],
        "you read column 0 in every sequence: under left padding the first real token stands further right": [
            weights[:, :, 0][later].mean(),
            weights[:, :, 0][real & (np.arange(length) > 0)].mean(),
            weights[:, :, 0][real].mean(),
        ],
        "you averaged the averages of the sequences: three tokens then weigh as much as seven": [np.mean(of_each)],
        "you divided by the size of the array: count the rows that you added up, not those that are padding": [
            to_first[later].sum() / real.size
        ],
    }
    compare(
        answer,
        expected,
        {message: tuple(wrong) for message, wrong in mistakes.items()},
        name="the answer",
        shapes={None: "it is one number for the whole batch"},
        otherwise=lambda got: f"on the batch of the check the mean is {expected:.3f}, not {float(got):.3f}.",
    )
    return f"right: {int(later.sum())} of {real.size} rows counted, padding on either side left out"


def _portrait(kind, span_length, seed):
    """A made-up map (T, T) on `</s>`, a span and the same span, with some noise: one of `ROLES`, or "none" in disguise.

    As in trained models, a head with nothing to do in the first copy looks at the first token, or at itself.
    """
    length = 2 * span_length + 1
    query = np.arange(length)
    second = query > span_length
    target = {
        "first token": np.zeros(length, int),
        "previous token": np.maximum(query - 1, 0),
        "induction": np.where(second, query - span_length + 1, 0),
        "duplicate token": np.where(second, query - span_length, query),
        "itself": query,
        "two back": np.maximum(query - 2, 0),
        "first copy only": np.where(second, query, 0),
    }.get(kind)
    noise = _maps(length, length, seed=seed)
    if target is None:  # looks evenly
        even = np.tril(np.ones((length, length))) / (query[:, None] + 1)
        return 0.9 * even + 0.1 * noise
    strength = np.random.default_rng(seed).uniform(0.65, 0.9)
    return strength * np.eye(length)[target] + (1 - strength) * noise


_DISGUISES = ("even", "itself", "two back", "first copy only")


def lineup(span_length=12, seed=0):
    """Six maps (T, T) to look at, T = 2 · span_length + 1, shuffled: a dict from letter to map; two are "none"."""
    kinds = np.random.default_rng(seed).permutation([*ROLES[:-1], "itself", "even"]).tolist()
    return {letter: _portrait(kind, span_length, seed + i) for i, (letter, kind) in enumerate(zip("ABCDEF", kinds))}


def role_of(function):
    """Checks ``function(weights, span_length) -> str``, one of `ROLES`, on spans of several lengths."""
    seen = 0
    for span_length in (6, 12, 20):
        for number, kind in enumerate((*ROLES[:-1], *_DISGUISES)):
            weights = _portrait(kind, span_length, seed=100 * span_length + number)
            truth = kind if kind in ROLES else "none"
            answer = verdict(function, ROLES, weights, span_length)
            require(answer == truth, _confusion(kind, truth, answer, span_length))
            seen += 1
    return f"right: {seen} maps, spans of three lengths, {len(ROLES)} answers"


def _confusion(kind, truth, answer, span_length):
    said = f"you called {truth!r} {answer!r} (span of {span_length})"
    if {truth, answer} == {"induction", "duplicate token"}:
        return (
            f"{said}: a duplicate-token head looks span_length back, at the same token; an induction head looks at the "
            "token after it, span_length - 1 back."
        )
    if kind == "first copy only" or (answer == "first token" and truth == "induction"):
        return f"{said}: judge by the rows of the second copy; in the first there is nothing to repeat yet."
    if kind == "even":
        return f"{said}: this head looks everywhere alike. The largest of four small scores is still small."
    if kind == "itself":
        return f"{said}: this head looks at the query's own position, which is none of the four roles."
    if truth == "none":
        return f"{said}: no role gets half of the attention there."
    if answer == "none":
        return f"{said}: in the second copy this role gets more than half of the attention."
    return f"{said}."
