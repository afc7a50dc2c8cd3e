"""Entropy, weights without the first token, and blocks, against values worked out by hand."""

import numpy as np
import pytest
from records import make_record

from optbook import attention_numbers as numbers

REAL = np.ones(4, dtype=bool)
SCORES = np.array([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]], "float32")


def test_visible_keys_are_real_and_not_later():
    left = np.array([0, 1, 1])
    np.testing.assert_array_equal(numbers.visible_keys(left), [[0, 0, 0], [0, 1, 0], [0, 1, 1]])
    np.testing.assert_array_equal(numbers.visible_keys(left, hide_first=True), [[0, 0, 0], [0, 0, 0], [0, 0, 1]])


def test_without_first_scales_what_is_left():
    third = 1 / 3
    expected = [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, third, third, third]]
    np.testing.assert_allclose(numbers.without_first(SCORES, REAL), expected, rtol=1e-6)
    assert SCORES[0, 0] == 1  # the record's own array is left alone


def test_without_first_takes_the_first_real_token_of_a_left_padded_row():
    weights = np.array([[0, 0, 0], [0, 1, 0], [0, 0.5, 0.5]], "float32")
    np.testing.assert_array_equal(numbers.without_first(weights, [0, 1, 1]), [[0, 0, 0], [0, 0, 0], [0, 0, 1]])


def test_entropy_in_bits_and_as_a_share_of_what_a_query_can_reach():
    np.testing.assert_allclose(numbers.entropy(SCORES, REAL), [0, 1, 0, 2], atol=1e-6)
    np.testing.assert_allclose(numbers.entropy(SCORES, REAL, normalized=True), [np.nan, 1, 0, 1], atol=1e-6)
    hidden = numbers.entropy(SCORES, REAL, hide_first=True, normalized=True)
    np.testing.assert_allclose(hidden, [np.nan, np.nan, np.nan, 1], atol=1e-6)


def test_entropy_of_padding_is_not_a_number():
    padded = numbers.entropy(SCORES, [1, 1, 1, 0])
    np.testing.assert_array_equal(np.isnan(padded), [False, False, False, True])


def test_entropy_takes_any_axes_in_front():
    record = make_record(lengths=(8, 5))
    together = numbers.entropy(record.weights[:, 1], record.padding_mask[1])
    assert together.shape == (2, 4, 8)
    np.testing.assert_array_equal(together[1, 2], numbers.entropy(record.map(1, 2, row=1), record.padding_mask[1]))


def test_head_entropy_is_the_mean_over_real_queries_of_the_asked_rows():
    record = make_record(lengths=(8, 5))
    rows = [numbers.entropy(record.map(1, 3, row), record.padding_mask[row], normalized=True) for row in (0, 1)]
    assert numbers.head_entropy(record).shape == (2, 4)
    np.testing.assert_allclose(numbers.head_entropy(record)[1, 3], np.nanmean(np.concatenate(rows)), rtol=1e-6)
    np.testing.assert_allclose(numbers.head_entropy(record, row=1)[1, 3], np.nanmean(rows[1]), rtol=1e-6)
    window = numbers.head_entropy(record, row=0, window=(2, 4))
    np.testing.assert_allclose(window[1, 3], rows[0][2:4].mean(), rtol=1e-6)


def test_head_entropy_without_any_query_that_chooses_is_not_a_number():
    assert np.isnan(numbers.head_entropy(make_record(lengths=(1,), length=1))).all()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_blocks_keep_the_largest_and_leave_out_nan(size):
    weights = np.random.default_rng(0).random((5, 5))
    weights[:2, :2] = np.nan
    blocks = numbers.largest_in_blocks(weights, size)
    count = -(-5 // size)
    assert blocks.shape == (count, count)
    for i, j in np.ndindex(blocks.shape):
        part = weights[i * size : (i + 1) * size, j * size : (j + 1) * size]
        assert np.isnan(blocks[i, j]) if np.isnan(part).all() else blocks[i, j] == np.nanmax(part)
