"""The exercises of chapter 03: heads split and merged, scaled scores, multiply-adds counted."""

import numpy as np

from optbook.checks._core import ask, compare, numbers, require, rounding

BATCH, LENGTH, NUM_HEADS, HEAD_DIM = 2, 6, 3, 4  # all different, so that a shape tells which axis is where
HIDDEN_DIM = NUM_HEADS * HEAD_DIM


def split_and_merge(split, merge):
    """Checks ``split(x, num_heads)`` and ``merge(heads)``, its inverse.

    Shapes (batch, T, hidden_dim) and (batch, num_heads, T, head_dim). Raises `NotYet` naming the mistake: no
    transpose, features dealt out one by one, heads added in place of joined.
    """
    x = np.random.default_rng(3).normal(size=(BATCH, LENGTH, HIDDEN_DIM)).astype("float32")
    right = _split(x, NUM_HEADS)
    heads = numbers(ask(split, x, NUM_HEADS))
    wrong_shapes = {
        (BATCH, LENGTH, NUM_HEADS, HEAD_DIM): "heads still stand behind tokens: swap axes 1 and 2 after the reshape",
        (BATCH, LENGTH, HEAD_DIM, NUM_HEADS): "heads come last: reshape to (…, num_heads, head_dim), then swap axes",
        (BATCH, NUM_HEADS, HEAD_DIM, LENGTH): "the last two axes are the wrong way round: T, then head_dim",
        (BATCH, NUM_HEADS, LENGTH // NUM_HEADS, HIDDEN_DIM): (
            "you gave each head some of the tokens: a head has all tokens, and head_dim of the features"
        ),
        (BATCH, NUM_HEADS, LENGTH, HIDDEN_DIM): "you gave each head all features: a head has head_dim of them",
    }
    batch_of_heads = x.reshape(NUM_HEADS, BATCH, LENGTH, HEAD_DIM).swapaxes(0, 1)
    mistakes = {
        "you reshaped without a transpose: the first rows of head 0 are pieces of token 0, and head 0 never sees the "
        "last token; reshape to (batch, T, num_heads, head_dim) first": x.reshape(right.shape),
        "the features were dealt out one by one, as with a reshape to (…, head_dim, num_heads): head 0 holds features "
        "0, 1, 2, …, head_dim - 1, all neighbors": x.reshape(BATCH, LENGTH, HEAD_DIM, NUM_HEADS).transpose(0, 3, 1, 2),
        "your reshape started with num_heads, so sequences of the batch got mixed: keep batch first": batch_of_heads,
        "you transposed before you split: reshape the features first, then swap axes": (
            x.swapaxes(1, 2).reshape(right.shape)
        ),
        "every head holds the same features: head h holds features h · head_dim and following": (
            np.stack([x[..., :HEAD_DIM]] * NUM_HEADS, axis=1)
        ),
        "the heads are in reverse order": right[:, ::-1],
    }
    hidden = "; your merge undoes it, so a round trip does not show it" if _undoes(merge, heads, x) else ""
    named = {mistake + hidden: wrong for mistake, wrong in mistakes.items()}
    compare(heads, right, named, name="split", shapes=wrong_shapes)

    wrong_shapes = {
        (BATCH, LENGTH, HEAD_DIM): "you added or averaged the heads: they are joined, num_heads · head_dim features",
        (BATCH, LENGTH, NUM_HEADS, HEAD_DIM): "the last two axes are still apart: join them with a reshape",
        (BATCH, NUM_HEADS * LENGTH, HEAD_DIM): "you joined heads and tokens: join heads and features",
    }
    mistakes = {
        "merge reshapes without a transpose: the first row of its output holds three tokens of head 0, not three heads "
        "of token 0; swap axes 1 and 2 first": right.reshape(x.shape),
        "merge puts the heads' features in turn: swap axes 1 and 2 only, so that each head's features stay neighbors": (
            right.transpose(0, 2, 3, 1).reshape(x.shape)
        ),
    }
    compare(ask(merge, right), x, mistakes, name="merge", shapes=wrong_shapes)

    other = _split(x, 2)
    fixed = {None: "right for 3 heads only: take their number from the arguments, and write no size of the check down"}
    hints = {"": "; " + fixed[None]}
    compare(ask(split, x, 2, hints=hints), other, name="split into 2 heads", shapes=fixed)
    compare(ask(merge, other, hints=hints), x, name="merge of 2 heads", shapes=fixed)
    return f"right: {NUM_HEADS} heads split off and joined again, every number in its place"


def _split(x, num_heads):
    return x.reshape(BATCH, LENGTH, num_heads, -1).swapaxes(1, 2)


def _undoes(merge, heads, x):
    try:
        compare(merge(heads.copy()), x)
    except Exception:  # the reader's function may fail in any way; this only chooses the words of another message
        return False
    return True


def attention_weights(function):
    """Checks ``function(query, key)``: softmax of the scaled scores, over the keys, without a mask.

    Shapes (batch, num_heads, T, head_dim) and (batch, num_heads, S, head_dim) to (batch, num_heads, T, S). Raises
    `NotYet` naming the mistake: another scale or none, a scale after the softmax, a softmax over another axis.
    """
    queries, keys = LENGTH - 1, LENGTH + 1
    random = np.random.default_rng(4)
    query = random.normal(0.0, 1.5, (BATCH, NUM_HEADS, queries, HEAD_DIM)).astype("float32")
    key = random.normal(0.0, 1.5, (BATCH, NUM_HEADS, keys, HEAD_DIM)).astype("float32")
    scores = np.einsum("bnth,bnsh->bnts", query, key)
    root = np.sqrt(HEAD_DIM)
    transposed = "; the last two axes of key must change places, np.swapaxes(key, -1, -2): .T turns all four round"
    hints = dict.fromkeys(("matmul", "dot_general", "contract", "broadcast"), transposed)
    weights = numbers(ask(function, query, key, hints=hints))
    wrong_shapes = {
        (BATCH, NUM_HEADS, keys, queries): "you have keys down and queries across: a row is a query, QKᵀ and not KQᵀ",
        (BATCH, NUM_HEADS, HEAD_DIM, HEAD_DIM): "you multiplied over the tokens: a score sums over head_dim",
        (BATCH, queries, keys): "the heads were added up: every head has its own scores",
    }
    scales = {
        "there is no scale": 1.0,
        "you divided by head_dim: the spread of the scores grows with its square root": HEAD_DIM,
        "you divided by the root of hidden_dim: a score has head_dim terms, so its spread is √head_dim": (
            np.sqrt(HIDDEN_DIM)
        ),
        "you divided by hidden_dim: a score has head_dim terms, and its spread is √head_dim": HIDDEN_DIM,
        "you divided by the root of the number of queries: the length has nothing to do with a score's spread": (
            np.sqrt(queries)
        ),
        "you divided by the root of the number of keys: the length has nothing to do with a score's spread": (
            np.sqrt(keys)
        ),
        "you divided by the root of the number of heads: a score has head_dim terms": np.sqrt(NUM_HEADS),
        "you multiplied by √head_dim in place of dividing": 1 / root,
    }
    mistakes = {
        "your softmax runs over the queries, so columns sum to 1 and rows do not: use the last axis, the keys": (
            _softmax(scores / root, axis=-2)
        ),
        "your softmax runs over the heads: each head's rows sum to 1, over the keys": _softmax(scores / root, axis=1),
        "your softmax runs over the whole map: every row sums to 1": _softmax(scores / root, axis=(-2, -1)),
        "your softmax runs over the queries, and there is no scale: divide by √head_dim, then softmax over the keys": (
            _softmax(scores, axis=-2)
        ),
        "you scaled after the softmax, so rows no longer sum to 1: scale the scores": _softmax(scores) / root,
        "these are scores, scaled but not yet weights: the softmax is missing": scores / root,
        "these are bare products of queries and keys: scale and softmax are missing": scores,
        "you took the exponential but did not divide by its sum: rows must sum to 1": np.exp(scores / root),
    }
    mistakes |= {mistake: _softmax(scores / scale) for mistake, scale in scales.items()}
    masked = "you masked the future: here no mask was given, so every query sees every key"
    for first, from_end in ((0, ""), (keys - queries, ", counted from the last")):
        future = np.triu(np.ones((queries, keys), bool), first + 1)
        mistakes[masked + from_end] = _softmax(np.where(future, -1e30, scores / root))
    compare(weights, _softmax(scores / root), mistakes, name="weights", shapes=wrong_shapes)

    wide = random.normal(0.0, 1.5, (2, BATCH, NUM_HEADS, LENGTH, 9)).astype("float32")
    scores_of_nine = np.einsum("bnth,bnsh->bnts", *wide)
    fixed = "you divided by 2, right for a head_dim of 4 only: take head_dim from the last axis of the arguments"
    fixed = {fixed: _softmax(scores_of_nine / 2)}
    compare(ask(function, *wide, hints=hints), _softmax(scores_of_nine / 3), fixed, name="weights at head_dim 9")

    large = numbers(ask(function, query * 20, key * 20))  # beyond the exponential, and yet finite in float16
    overflow = "right for small scores, but large ones overflow the exponential: subtract each row's maximum first."
    require(np.isfinite(large.astype("float64")).all(), overflow)
    if rounding(large) < 1e-5:
        compare(large, _softmax(scores * 400 / root), tolerance=1e-3, name="weights of large scores")
    return "right: products scaled by 1/√head_dim, a softmax over the keys, finite for large scores too"


def _softmax(scores, axis=-1):
    exponentials = np.exp(scores - scores.max(axis, keepdims=True))
    return exponentials / exponentials.sum(axis, keepdims=True)


def multiply_adds(function):
    """Checks ``function(length, hidden_dim, num_heads)``: the multiply-adds of one attention layer on one sequence.

    Four projections and two products over pairs; biases, scale and softmax are not counted. Raises `NotYet` naming
    what was left out or counted twice.
    """
    cases = [(15, 128, 4), (1, 768, 12), (2048, 2048, 32)]
    length, width, heads = (np.array(column, dtype="int64") for column in zip(*cases))
    projections, pairs = 4 * length * width**2, 2 * length**2 * width
    right = projections + pairs
    answers = numbers([ask(function, *case) for case in cases])
    mistakes = {
        "the output projection is missing: query, key, value and output make four": pairs + 3 * length * width**2,
        "one of the two products over pairs is missing: scores are one, weights times values the other": (
            projections + pairs // 2
        ),
        "the products over pairs are missing: each query meets each key": projections,
        "the projections are missing: four matrices of hidden_dim × hidden_dim, for every token": pairs,
        "you counted the products over pairs with hidden_dim for every head: a head's vectors have head_dim numbers, "
        "so all heads together have hidden_dim": projections + pairs * heads,
        "you counted the products over pairs for one head only: there are num_heads": projections + pairs // heads,
        "you counted the projections once for every head: all heads together have hidden_dim columns": (
            projections * heads + pairs
        ),
        "you counted the projections for every head, and the pairs with hidden_dim for every head: hidden_dim is "
        "shared among the heads": right * heads,
        "you counted one head: there are num_heads": right // heads,
        "this is twice too much: a multiplication and the addition that follows are one multiply-add": 2 * right,
        "you counted the projections of one token: all tokens are projected": projections // length + pairs,
        "you counted only pairs that the mask allows: the layer computes the full rectangle, then masks": (
            projections + length * (length + 1) * width
        ),
        "biases are additions without a multiplication: leave them out": right + 4 * length * width,
        "you counted the feed-forward network too: it belongs to the decoder layer": right + 8 * length * width**2,
        "the length enters the products over pairs only once in your formula: each of T queries meets T keys": (
            projections + 2 * length * width
        ),
    }

    def otherwise(answers):
        case, answer, expected = next(row for row in zip(cases, answers, right) if row[1] != row[2])
        arguments = "length {}, hidden_dim {}, num_heads {}".format(*case)
        return f"for {arguments} there are {expected} multiply-adds, not {answer:.15g}."

    compare(answers, right, mistakes, otherwise=otherwise)
    return "right: a part that grows with the length, a part that grows with its square, and no part for the heads"
