"""Chapter 02's checks: a right answer passes, and each usual wrong one is told its misconception."""

import numpy as np
import pytest
from keras import layers, ops

from optbook.checks import NotYet, embeddings


def count_real(mask):
    return np.maximum(np.cumsum(mask, axis=-1) - 1, 0)


@pytest.mark.parametrize(
    "right",
    [
        count_real,
        lambda mask: ops.maximum(ops.cumsum(mask, axis=-1) - 1, 0),
        lambda mask: np.where(mask == 1, np.cumsum(mask, axis=1) - 1, 0),
        lambda mask: [[max(sum(row[: t + 1]) - 1, 0) for t in range(len(row))] for row in mask.tolist()],
    ],
)
def test_positions_accepts_right_answers(right):
    assert "padding reads a row that exists" in embeddings.positions(right)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda mask: np.broadcast_to(np.arange(mask.shape[1]), mask.shape), "from the left edge"),
        (lambda mask: np.arange(mask.shape[1]) * mask, "from the left edge"),
        (lambda mask: np.cumsum(mask, axis=1), "position 1: positions start at 0"),
        (lambda mask: np.cumsum(mask, axis=1) * mask - 1 + 2, "Hugging Face's longer table"),
        (lambda mask: np.maximum(np.cumsum(mask, axis=0) - 1, 0), "down the batch"),
        (lambda mask: np.cumsum(mask).reshape(mask.shape) - 1, "runs on from one sequence"),
        (lambda mask: np.maximum(np.arange(6) - mask.argmax(axis=1)[:, None], 0), "padding in the middle"),
        (lambda mask: np.cumsum(mask, axis=1) * mask - 1, "negative position"),
        (lambda mask: np.where(mask == 1, count_real(mask), 99), "beyond the table"),
        (lambda mask: count_real(mask).astype("float32"), "must be integers"),
        (lambda mask: count_real(mask)[0], "the answer has shape"),
        (lambda mask: None, "nothing written yet"),
        (lambda mask: count_real(mask) // 2, "should get position 1, not 0"),
    ],
)
def test_positions_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        embeddings.positions(wrong)


def unit(table, axis=1):
    return table / np.linalg.norm(table, axis=axis, keepdims=True)


def ranked(scores, token_id, count):
    scores = scores.copy()
    scores[token_id] = -np.inf
    return np.argsort(-scores)[:count]


def nearest(table, token_id, count):
    return ranked(unit(table) @ unit(table)[token_id], token_id, count)


def test_neighbors_accepts_the_right_answer():
    assert "without the token itself" in embeddings.neighbors(nearest)
    assert embeddings.neighbors(lambda table, i, k: nearest(table, i, k).tolist())
    assert embeddings.neighbors(lambda table, i, k: nearest(table, i, k).astype("uint8"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda table, i, k: np.argsort(-(unit(table) @ unit(table)[i]))[:k], "among its own neighbors"),
        (lambda table, i, k: ranked(table @ table[i], i, k), "by dot product: row 7"),
        (lambda table, i, k: np.argsort(table @ table[i])[::-1][:k], "by dot product.*among its own"),
        (lambda table, i, k: np.argsort(table @ table[i])[-k:], "by dot product.*among its own"),
        (lambda table, i, k: np.argsort(-(table @ table[i]))[1 : k + 1], "by dot product"),
        (lambda table, i, k: np.argsort(-(unit(table) @ unit(table)[i]))[1 : k + 1], "leave it out by its id"),
        (lambda table, i, k: ranked(-np.linalg.norm(table - table[i], axis=1), i, k), "ranked by distance"),
        (lambda table, i, k: ranked(unit(table, 0) @ unit(table, 0)[i], i, k), "lengths of the columns"),
        (lambda table, i, k: ranked(-(unit(table) @ unit(table)[i]), i, k), "least similar"),
        (lambda table, i, k: nearest(table, i, k)[::-1], "in the wrong order"),
        (lambda table, i, k: nearest(table, 2, k), "is token_id used"),
        (lambda table, i, k: np.sort(unit(table) @ unit(table)[i])[-4:-1], "are they the similarities"),
        (lambda table, i, k: nearest(table, i, k + 1), "the answer has shape"),
        (lambda table, i, k: np.array([3, 4, 5]), "the nearest rows are"),
    ],
)
def test_neighbors_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        embeddings.neighbors(wrong)


def matmul_head(kernel_of):
    """A head that computes its kernel anew at each call."""
    return lambda embedding: lambda hidden: hidden @ kernel_of(np.asarray(embedding.embeddings))


def copied(embedding):
    kernel = np.asarray(embedding.embeddings).T
    return lambda hidden: hidden @ kernel


def overwriting(embedding):
    embedding.embeddings.assign(np.asarray(embedding.embeddings) * 2)
    return lambda hidden: embedding(hidden, reverse=True)


def half_stale(embedding):
    kernel = np.asarray(embedding.embeddings).T
    return lambda hidden: hidden @ (kernel + np.asarray(embedding.embeddings).T) / 2


def test_tied_head_accepts_right_answers():
    assert "also after" in embeddings.tied_head(lambda embedding: lambda hidden: embedding(hidden, reverse=True))
    assert embeddings.tied_head(matmul_head(np.transpose))
    for dtype in ("float16", "bfloat16"):
        assert embeddings.tied_head(lambda table, d=dtype: lambda x: ops.cast(table(x, reverse=True), d))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (copied, "kept a copy"),
        (lambda embedding: layers.Dense(7, use_bias=False), "weights of its own"),
        (matmul_head(lambda table: table.reshape(3, 7)), "reshaped the table"),
        (matmul_head(lambda table: unit(table).T), "divided the rows by their lengths"),
        (matmul_head(lambda table: table.T / 3**0.5), "divided by the root of hidden_dim"),
        (lambda embedding: lambda hidden: ops.softmax(embedding(hidden, reverse=True)), "returns probabilities"),
        (matmul_head(lambda table: table.T + 1), "dot product of a hidden state with one row"),
        (overwriting, "changed the embedding table"),
        (half_stale, "not to the new products"),
        (lambda embedding: lambda hidden: embedding(hidden), "the answer has shape"),
        (lambda embedding: embedding(np.zeros((2, 4, 3)), reverse=True), "should return a function"),
    ],
)
def test_tied_head_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        embeddings.tied_head(wrong)
