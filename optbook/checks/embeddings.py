"""Exercises of chapter 02: positions from a mask, nearest neighbors of a token, the tied head broken and repaired."""

import numpy as np
from keras import layers

from optbook.checks._core import ask, compare, numbers, require, require_shape

_WITH_GAP = 2  # which row of the masks below has padding between real tokens
_MASKS = np.array(
    [[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]], "int32"
)
_TOKEN = 2  # whose neighbors are asked for


def positions(function):
    """Checks ``function(padding_mask) -> positions``, integers of shape (batch, T): real tokens counted from 0."""
    found = numbers(ask(function, _MASKS))
    require_shape(found, _MASKS.shape, "the answer")
    require(
        np.issubdtype(found.dtype, np.integer),
        f"positions are numbers of table rows, so they must be integers, but yours are {found.dtype}.",
    )
    real = _MASKS == 1
    counted = np.cumsum(_MASKS, axis=1)  # 1 at the first real token
    slots = np.broadcast_to(np.arange(_MASKS.shape[1]), _MASKS.shape)
    mistakes = {
        "you counted slots from the left edge, padding included, as KerasHub does: count the real tokens only": slots,
        "your first real token gets position 1: positions start at 0, so subtract 1": counted,
        "your first real token gets position 2: those are rows of Hugging Face's longer table, offset included": (
            counted + 1
        ),
        "you counted down the batch (axis 0): each sequence has positions of its own, along the last axis": (
            np.cumsum(_MASKS, axis=0) - 1
        ),
        "your count runs on from one sequence into the next: give cumsum the axis of the tokens": (
            np.cumsum(_MASKS).reshape(_MASKS.shape) - 1
        ),
        f"you shift by the padding in front; with padding in the middle, {_MASKS[_WITH_GAP].tolist()}, the count is "
        "wrong": slots - _MASKS.argmax(axis=1)[:, None],
    }

    def otherwise(answer):
        row, token = np.argwhere((found != counted - 1) & real)[0].tolist()
        at, wanted = f"token {token} of the mask {_MASKS[row].tolist()}", counted[row, token] - 1
        return f"{at} should get position {wanted}, not {found[row, token]}."

    of_real = {message: wrong[real] for message, wrong in mistakes.items()}
    compare(found[real], (counted - 1)[real], of_real, otherwise=otherwise)
    require(
        (found >= 0).all(),
        "padding gets a negative position: JAX reads -1 as the last row of the table and says nothing; use a real row.",
    )
    require(
        (found < _MASKS.shape[1]).all(), "padding gets a position beyond the table: its vector would be NaN; use a row."
    )
    return "positions: real tokens are counted from 0 wherever the padding stands, and padding reads a row that exists"


def neighbors(function):
    """Checks ``function(table, token_id, count) -> ids``: the rows of highest cosine similarity, the best first."""
    table = _neighbor_table()
    others = np.arange(len(table)) != _TOKEN
    lengths = np.linalg.norm(table, axis=1)
    dots = table @ table[_TOKEN]
    cosines = dots / lengths
    found = numbers(ask(function, table, _TOKEN, 3))
    require_shape(found, (3,), "the answer")

    def best(scores, among=others):
        return np.argsort(-np.where(among, scores, -np.inf))[:3]

    require(
        np.issubdtype(found.dtype, np.integer),
        f"return ids, the numbers of the rows, but yours are {found.dtype}: are they the similarities?",
    )
    columns = table / np.linalg.norm(table, axis=0)
    wanted = best(cosines)
    by_dots = (
        f"you ranked by dot product: row {best(dots)[0]} wins for being long, not for pointing the same way; divide by "
        "the lengths"
    )
    itself = f"token {_TOKEN} is among its own neighbors: every vector is most similar to itself, so leave it out"
    mistakes = {
        by_dots: best(dots),
        "you ranked by distance, where a short vector is far even if it points the same way: compare directions": (
            best(-np.linalg.norm(table - table[_TOKEN], axis=1))
        ),
        "you divided by the lengths of the columns (axis 0): a token's vector is a row, so take the norm over axis 1": (
            best(columns @ columns[_TOKEN])
        ),
        "these are the least similar rows: argsort goes up, so the nearest stand at its end": best(-cosines),
        f"the right rows in the wrong order: {wanted.tolist()}, the most similar first": wanted[::-1],
    }
    by_length, by_direction = np.argsort(-dots).tolist(), np.argsort(-cosines).tolist()  # the token not left out
    mistakes[f"{by_dots}; and {itself}"] = by_length[:3], by_length[2::-1]
    mistakes[f"{by_dots}; and leave the token out by its id, since it need not stand first"] = by_length[1:4]
    mistakes[itself] = by_direction[:3], by_direction[2::-1]
    otherwise = f"{itself}." if _TOKEN in found else f"the nearest rows are {wanted.tolist()}, not {found.tolist()}."
    compare(found, wanted, mistakes, otherwise=otherwise)
    one = numbers(ask(function, table, 7, 1))
    compare(one, [4], otherwise=f"the nearest row to row 7 is row 4, not {one.tolist()}: is token_id used?")
    twice = np.concatenate([table, table[_TOKEN : _TOKEN + 1]])  # the last row points as the token does
    for token, twin in ((len(table), _TOKEN), (_TOKEN, len(table))):
        first = "where two rows are equal, the first of the sorted rows need not be the token: leave it out by its id."
        require(numbers(ask(function, twice, token, 1)).tolist() == [twin], first)
    return "neighbors: the most similar directions, best first, without the token itself"


def _neighbor_table():
    """Vectors in a plane: (length, angle in degrees) chosen so that each way to rank gives another order."""
    lengths = np.array([1, 1, 1, 1, 1, 0.4, 1, 5])
    angles = np.deg2rad([50, 210, 30, 135, 70, 38, 170, 90])
    return (lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype("float32")


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
    head = ask(make_head, token_embedding)
    require(callable(head), "make_head should return a function, from hidden states to logits.")
    before = numbers(ask(head, hidden))
    unchanged = np.array_equal(np.asarray(token_embedding.embeddings), table)
    require(unchanged, "your head changed the embedding table: it should only read it.")
    token_embedding.embeddings.assign(later)
    after = numbers(ask(head, hidden))

    logits = hidden @ table.T
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    exponentials = np.exp(logits)
    reshaped = table.reshape(hidden_dim, vocabulary_size)
    mistakes = {
        "your head returns probabilities: logits are the dot products, before any softmax": (
            exponentials / exponentials.sum(axis=-1, keepdims=True)
        ),
        "you reshaped the table where it must be transposed: the shape is right, but the rows are cut up": (
            hidden @ reshaped
        ),
        "you divided the rows by their lengths: OPT's head takes plain dot products, so a long row scores more": (
            hidden @ unit.T
        ),
        "you divided by the root of hidden_dim: that belongs to attention scores, the head has no scale": (
            logits / np.sqrt(hidden_dim)
        ),
    }
    if before.shape == after.shape and np.array_equal(before, after):  # added last: a copy of the table is right before
        own = "your head has weights of its own: it is not tied, since its logits do not depend on the embedding table"
        mistakes[own] = before
    products = "each logit should be the dot product of a hidden state with one row of the table."
    compare(before, logits, mistakes, name="the answer", tolerance=1e-4, otherwise=products)
    stale = {
        "your head kept a copy: right when it was made, but when training changed the table, it stayed behind": logits
    }
    moved = "the table changed and your logits changed, but not to the new products."
    compare(after, hidden @ later.T, stale, name="the answer", tolerance=1e-4, otherwise=moved)
    return "tied head: the one table read the other way, also after the table has changed"
