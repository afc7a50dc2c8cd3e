"""Exercises of chapter 02: positions from a mask, nearest neighbors of a token, the tied head broken and repaired."""

import numpy as np
from keras import layers

from optbook.checks._core import require

_WITH_GAP = 2  # which row of the masks below has padding between real tokens
_MASKS = np.array(
    [[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]], "int32"
)
_TOKEN = 2  # whose neighbors are asked for


# === Exercise 1 ===


def positions(function):
    """Checks ``function(padding_mask) -> positions``, integers of shape (batch, T): real tokens counted from 0."""
    found = _array(function(_MASKS.copy()), _MASKS.shape)
    require(
        np.issubdtype(found.dtype, np.integer),
        f"positions are numbers of table rows, so they must be integers, but yours are {found.dtype}.",
    )
    real = _MASKS == 1
    counted = np.cumsum(_MASKS, axis=1)  # 1 at the first real token
    slots = np.broadcast_to(np.arange(_MASKS.shape[1]), _MASKS.shape)

    def same(answer):
        return np.array_equal(found[real], answer[real])

    require(
        not same(slots),
        "you counted slots from the left edge, padding included, as KerasHub does: count the real tokens only.",
    )
    require(not same(counted), "your first real token gets position 1: positions start at 0, so subtract 1.")
    require(
        not same(counted + 1),
        "your first real token gets position 2: those are rows of Hugging Face's longer table, offset included.",
    )
    require(
        not same(np.cumsum(_MASKS, axis=0) - 1),
        "you counted down the batch (axis 0): each sequence has positions of its own, along the last axis.",
    )
    require(
        not same(np.cumsum(_MASKS).reshape(_MASKS.shape) - 1),
        "your count runs on from one sequence into the next: give cumsum the axis of the tokens.",
    )
    if same(slots - _MASKS.argmax(axis=1)[:, None]):
        row = _MASKS[_WITH_GAP].tolist()
        require(False, f"you shift by the padding in front; with padding in the middle, {row}, the count is wrong.")
    wrong = np.argwhere((found != counted - 1) & real)
    if len(wrong):
        row, token = wrong[0].tolist()
        at, wanted = f"token {token} of the mask {_MASKS[row].tolist()}", counted[row, token] - 1
        require(False, f"{at} should get position {wanted}, not {found[row, token]}.")
    require(
        (found >= 0).all(),
        "padding gets a negative position: JAX reads -1 as the last row of the table and says nothing; use a real row.",
    )
    require(
        (found < _MASKS.shape[1]).all(), "padding gets a position beyond the table: its vector would be NaN; use a row."
    )
    return "positions: real tokens are counted from 0 wherever the padding stands, and padding reads a row that exists"


# === Exercise 2 ===


def neighbors(function):
    """Checks ``function(table, token_id, count) -> ids``: the rows of highest cosine similarity, the best first."""
    table = _neighbor_table()
    others = np.arange(len(table)) != _TOKEN
    lengths = np.linalg.norm(table, axis=1)
    dots = table @ table[_TOKEN]
    cosines = dots / lengths
    found = _array(function(table.copy(), _TOKEN, 3), (3,))

    def best(scores, among=others):
        return np.argsort(-np.where(among, scores, -np.inf))[:3]

    require(
        np.issubdtype(found.dtype, np.integer),
        f"return ids, the numbers of the rows, but yours are {found.dtype}: are they the similarities?",
    )
    require(
        _TOKEN not in found.tolist(),
        f"token {_TOKEN} is among its own neighbors: every vector is most similar to itself, so leave it out.",
    )
    require(
        not np.array_equal(found, best(dots)),
        f"you ranked by dot product: row {best(dots)[0]} wins for being long, not for pointing the same way; "
        "divide by the lengths.",
    )
    require(
        not np.array_equal(found, best(-np.linalg.norm(table - table[_TOKEN], axis=1))),
        "you ranked by distance, where a short vector is far even if it points the same way: compare directions.",
    )
    columns = table / np.linalg.norm(table, axis=0)
    require(
        not np.array_equal(found, best(columns @ columns[_TOKEN])),
        "you divided by the lengths of the columns (axis 0): a token's vector is a row, so take the norm over axis 1.",
    )
    require(
        not np.array_equal(found, best(-cosines)),
        "these are the least similar rows: argsort goes up, so the nearest stand at its end.",
    )
    wanted = best(cosines)
    require(
        not np.array_equal(found, wanted[::-1]),
        f"the right rows in the wrong order: {wanted.tolist()}, the most similar first.",
    )
    require(np.array_equal(found, wanted), f"the nearest rows are {wanted.tolist()}, not {found.tolist()}.")
    one = _array(function(table.copy(), 7, 1), (1,))
    require(one.tolist() == [4], f"the nearest row to row 7 is row 4, not {one.tolist()}: is token_id used?")
    return "neighbors: the most similar directions, best first, without the token itself"


def _neighbor_table():
    """Vectors in a plane: (length, angle in degrees) chosen so that each way to rank gives another order."""
    lengths = np.array([1, 1, 1, 1, 1, 0.4, 1, 5])
    angles = np.deg2rad([50, 210, 30, 135, 70, 38, 170, 90])
    return (lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype("float32")


# === Exercise 3 ===


def tied_head(make_head):
    """Checks ``make_head(token_embedding) -> head``, where ``head(hidden)`` gives logits, also after more training."""
    vocabulary_size, hidden_dim = 7, 3
    rng = np.random.default_rng(0)
    table = rng.normal(size=(vocabulary_size, hidden_dim)).astype("float32")
    later = rng.normal(size=table.shape).astype("float32")  # the table after an optimizer's step, so to speak
    hidden = rng.normal(size=(2, 4, hidden_dim)).astype("float32")
    token_embedding = layers.ReversibleEmbedding(vocabulary_size, hidden_dim)
    token_embedding.build()
    token_embedding.embeddings.assign(table)
    head = make_head(token_embedding)
    require(callable(head), "make_head should return a function, from hidden states to logits.")
    shape = (*hidden.shape[:2], vocabulary_size)
    before = _array(head(hidden), shape)
    require(
        np.array_equal(np.asarray(token_embedding.embeddings), table),
        "your head changed the embedding table: it should only read it.",
    )
    token_embedding.embeddings.assign(later)
    after = _array(head(hidden), shape)

    logits = hidden @ table.T
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    require(
        not _close(before.sum(axis=-1), np.ones(shape[:2])) or (before < 0).any(),
        "your head returns probabilities: logits are the dot products, before any softmax.",
    )
    require(
        not _close(before, hidden @ table.reshape(hidden_dim, vocabulary_size)),
        "you reshaped the table where it must be transposed: the shape is right, but the rows are cut up.",
    )
    require(
        not _close(before, hidden @ unit.T),
        "you divided the rows by their lengths: OPT's head takes plain dot products, so a long row scores more.",
    )
    require(
        not _close(before, logits / np.sqrt(hidden_dim)),
        "you divided by the root of hidden_dim: that belongs to attention scores, the head has no scale.",
    )
    require(
        _close(before, logits) or not _close(before, after),
        "your head has weights of its own: it is not tied, since its logits do not depend on the embedding table.",
    )
    require(_close(before, logits), "each logit should be the dot product of a hidden state with one row of the table.")
    require(
        not _close(after, logits),
        "your head kept a copy: right when it was made, but when training changed the table, it stayed behind.",
    )
    require(_close(after, hidden @ later.T), "the table changed and your logits changed, but not to the new products.")
    return "tied head: the one table read the other way, also after the table has changed"


# === What they share ===


def _array(answer, shape):
    require(answer is not None, "your function returned None: is the return missing?")
    answer = np.asarray(answer)
    require(answer.shape == shape, f"the answer should have shape {shape}, but has {answer.shape}.")
    return answer


def _close(first, second):
    return np.allclose(first, second, rtol=1e-3, atol=1e-4)
