"""The checks of chapter 08 accept right answers and name the misconception behind the usual wrong ones."""

import numpy as np
import pytest

from optbook.checks import NotYet
from optbook.checks import reading as checks


def test_previous_token_accepts_the_right_score():
    assert checks.previous_token(lambda weights: np.diagonal(weights, -1).mean()).startswith("right: maps of 3, 8, 21")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda weights: np.diagonal(weights).mean(), "attention to itself"),
        (lambda weights: np.diagonal(weights, 1).mean(), "above the diagonal"),
        (lambda weights: np.mean([weights[t, t - 1] for t in range(len(weights))]), "no token before it"),
        (lambda weights: np.diagonal(weights, -1).sum(), "added the weights up"),
        (lambda weights: weights[1:, 0].mean(), "first column"),
        (lambda weights: np.diagonal(weights, -1), "one number for the whole map"),
        (lambda weights: np.diagonal(weights, -2).mean(), "on a map of 3 tokens the score is"),
        (lambda weights: weights.fill(0.0), "changed what it was given"),
    ],
)
def test_previous_token_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        checks.previous_token(wrong)


def hide(weights):
    kept = weights.copy()
    kept[:, 0] = 0.0
    return kept


def normalized(weights, axis=1):
    total = weights.sum(axis=axis, keepdims=True)
    return weights / np.where(total > 0, total, 1.0)


def first_row_kept(weights):
    answer = normalized(hide(weights))
    answer[0] = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    return answer


def in_place(weights):
    weights[:, 0] = 0.0
    return normalized(weights)


def test_without_first_accepts_the_right_map():
    assert checks.without_first(lambda weights: normalized(hide(weights))).startswith("right: the first column is 0")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (hide, "no longer sum to 1"),
        (lambda weights: hide(weights) / hide(weights).sum(axis=1, keepdims=True), "0 / 0 is not a number"),
        (lambda weights: normalized(hide(weights), axis=0), "scaled the columns"),
        (lambda weights: hide(weights) / hide(weights).sum(), "a sum of its own"),
        (lambda weights: normalized(weights[:, 1:]), "keep the column"),
        (lambda weights: weights, "first column must be 0"),
        (first_row_kept, "its row is 0"),
        (lambda weights: normalized(hide(weights) ** 2), "its largest weight is"),
        (in_place, "changed what it was given"),
    ],
)
def test_without_first_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        checks.without_first(wrong)


def parts(weights, padding_mask):
    """Attention to the first real token (batch, T), real tokens, and what comes after the first of them."""
    real = padding_mask.astype(bool)
    first = real.argmax(axis=1)
    after = np.arange(real.shape[1]) > first[:, None]
    return weights[np.arange(len(real)), :, first], real, after


def mean_to_first(weights, padding_mask):
    to_first, real, after = parts(weights, padding_mask)
    return to_first[real & after].mean()


def pads_counted(weights, padding_mask):
    to_first, _, after = parts(weights, padding_mask)
    return to_first[after].mean()


def first_counted(weights, padding_mask):
    to_first, real, _ = parts(weights, padding_mask)
    return to_first[real].mean()


def column_0(weights, padding_mask):
    _, real, after = parts(weights, padding_mask)
    return weights[:, :, 0][real & after].mean()


def mean_of_means(weights, padding_mask):
    to_first, real, after = parts(weights, padding_mask)
    return np.mean([row[chosen].mean() for row, chosen in zip(to_first, real & after)])


def divided_by_everything(weights, padding_mask):
    to_first, real, after = parts(weights, padding_mask)
    return (to_first * (real & after)).mean()


def masks_in_place(weights, padding_mask):
    answer = mean_to_first(weights, padding_mask)
    weights *= padding_mask[..., None]
    return answer


def test_mean_to_first_accepts_the_right_mean():
    assert checks.mean_to_first(mean_to_first).startswith("right: 11 of 21 rows")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (pads_counted, "rows of padding are in your mean"),
        (lambda weights, padding_mask: weights[:, 1:, 0].mean(), "rows of padding are in your mean"),
        (lambda weights, padding_mask: parts(weights, padding_mask)[0].mean(), "rows of padding are in your mean"),
        (first_counted, "its 1 says nothing"),
        (column_0, "under left padding"),
        (mean_of_means, "averages of the sequences"),
        (divided_by_everything, "size of the array"),
        (lambda *batch: 0.123, "the mean is"),
        (lambda *batch: parts(*batch)[0].mean(axis=1), "one number for the whole batch"),
        (masks_in_place, "changed what"),
    ],
)
def test_mean_to_first_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        checks.mean_to_first(wrong)


def role_of(weights, span_length, start=None, distance=0, least=0.5, roles=checks.ROLES[:-1]):
    """The right answer, and with other arguments a wrong one."""
    query = np.arange(span_length + 1 if start is None else start, 2 * span_length + 1)
    keys = {
        "first token": 0 * query,
        "previous token": query - 1,
        "induction": query - span_length + 1 + distance,
        "duplicate token": query - span_length + distance,
    }
    shares = {role: weights[query, np.maximum(keys[role], 0)].mean() for role in roles}
    best = max(shares, key=shares.get)
    return best if shares[best] > least else "none"


def test_role_of_accepts_the_right_function():
    assert checks.role_of(role_of).startswith("right: 24 maps")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda weights, n: role_of(weights, n, least=0.0), "called 'none'"),
        (lambda weights, n: role_of(weights, n, start=1, least=0.3), "judge by the rows of the second copy"),
        (lambda weights, n: role_of(weights, n, distance=1), "token after it, span_length - 1 back"),
        (lambda weights, n: role_of(weights, n, least=0.95), "more than half of the attention"),
        (lambda weights, n: role_of(weights, 12), None),
        (lambda weights, n: "sink", "answer with one of 'first token'"),
        (lambda weights, n: "first token", "called 'previous token' 'first token'"),
    ],
)
def test_role_of_names_the_confusion(wrong, message):
    with pytest.raises((NotYet, IndexError), match=message):
        checks.role_of(wrong)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("even", "everywhere alike"),
        ("itself", "the query's own position"),
        ("two back", "no role gets half"),
        ("first copy only", "judge by the rows of the second copy"),
    ],
)
def test_role_of_tells_what_a_disguised_head_does(kind, message):
    disguised = {checks._portrait(kind, n, 100 * n + 4 + checks._DISGUISES.index(kind)).tobytes() for n in (6, 12, 20)}

    def fooled(weights, span_length):
        return "induction" if weights.tobytes() in disguised else role_of(weights, span_length)

    with pytest.raises(NotYet, match=message):
        checks.role_of(fooled)


def test_the_lineup_holds_each_role_once_and_two_heads_without():
    answers = [role_of(weights, 12) for weights in checks.lineup().values()]
    assert sorted(answers) == sorted([*checks.ROLES, "none"])
    for weights in checks.lineup().values():
        assert weights.shape == (25, 25)
        np.testing.assert_allclose(weights.sum(axis=1), 1)
        assert not np.triu(weights, 1).any()
