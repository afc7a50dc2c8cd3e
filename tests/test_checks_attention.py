"""The checks of chapter 03 accept right answers and name the misconception behind the usual wrong ones."""

import jax
import numpy as np
import pytest
from keras import ops

from optbook.checks import NotYet
from optbook.checks import attention as checks
from optbook.layers import CausalSelfAttention


def split(x, num_heads):
    return ops.transpose(ops.reshape(x, (*x.shape[:2], num_heads, -1)), (0, 2, 1, 3))


def merge(heads):
    batch, _, length, _ = heads.shape
    return ops.reshape(ops.transpose(heads, (0, 2, 1, 3)), (batch, length, -1))


def test_split_and_merge_accepts_the_right_pair():
    assert checks.split_and_merge(split, merge).startswith("right: 3 heads")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x, n: x.reshape(2, n, 6, 4), "reshaped without a transpose"),
        (lambda x, n: x.reshape(2, 6, 4, n).transpose(0, 3, 1, 2), "dealt out one by one"),
        (lambda x, n: x.reshape(n, 2, 6, 4).swapaxes(0, 1), "sequences of the batch got mixed"),
        (lambda x, n: x.swapaxes(1, 2).reshape(2, n, 6, 4), "transposed before you split"),
        (lambda x, n: np.stack([x[..., :4]] * n, axis=1), "every head holds the same features"),
        (lambda x, n: np.asarray(split(x, n))[:, ::-1], "in reverse order"),
        (lambda x, n: np.asarray(split(x, n)) * 2, r"split: wrong at \("),
        (lambda x, n: x.reshape(2, 6, n, 4), "heads still stand behind tokens"),
        (lambda x, n: x.reshape(2, 6, 4, n), "heads come last"),
        (lambda x, n: np.asarray(split(x, n)).swapaxes(2, 3), "the last two axes are the wrong way round"),
        (lambda x, n: x.reshape(2, n, 2, 12), "each head some of the tokens"),
        (lambda x, n: np.stack([x] * n, axis=1), "each head all features"),
        (lambda x, n: x, r"split has shape \(2, 6, 12\), not \(2, 3, 6, 4\)"),
        (lambda x, n: None, "nothing written yet"),
    ],
)
def test_split_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        checks.split_and_merge(wrong, merge)


def test_split_says_that_a_round_trip_proves_nothing():
    def wrong_merge(heads):
        return heads.reshape(2, 6, 12)

    with pytest.raises(NotYet, match="without a transpose.*a round trip does not show it"):
        checks.split_and_merge(lambda x, n: x.reshape(2, n, 6, 4), wrong_merge)


@pytest.mark.parametrize(
    ("split", "merge"),
    [
        (lambda x, n: np.reshape(x, (2, 6, 3, 4)).swapaxes(1, 2), merge),
        (lambda x, n: np.reshape(x, (2, 6, 3, -1)).swapaxes(1, 2), merge),
        (split, lambda heads: np.concatenate([heads[:, h] for h in range(3)], axis=-1)),
    ],
)
def test_a_hard_coded_number_of_heads_is_refused(split, merge):
    with pytest.raises(NotYet, match="right for 3 heads only"):
        checks.split_and_merge(split, merge)


def test_other_right_pairs_are_accepted():
    def by_stacking(x, n):
        return np.stack(np.split(x, n, axis=-1), axis=1)

    assert checks.split_and_merge(by_stacking, lambda heads: np.concatenate(list(np.moveaxis(heads, 1, 0)), axis=-1))
    assert checks.split_and_merge(lambda x, n: split(x, n).tolist(), lambda heads: merge(np.asarray(heads)).tolist())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda heads: heads.reshape(2, 6, 12), "merge reshapes without a transpose"),
        (lambda heads: heads.transpose(0, 2, 3, 1).reshape(2, 6, 12), "merge puts the heads' features in turn"),
        (lambda heads: heads.sum(axis=1), "added or averaged the heads"),
        (lambda heads: heads.swapaxes(1, 2), "still apart"),
        (lambda heads: heads.reshape(2, 18, 4), "joined heads and tokens"),
        (lambda heads: np.asarray(merge(heads)) + 1, "merge: wrong at"),
    ],
)
def test_merge_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        checks.split_and_merge(split, lambda heads: wrong(np.asarray(heads)))


def weights(query, key, scale=None, axis=-1):
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return ops.softmax(ops.matmul(query, ops.swapaxes(key, -1, -2)) * scale, axis=axis)


def test_attention_weights_accepts_the_right_function():
    assert checks.attention_weights(weights).startswith("right: products scaled")


def unstable(query, key):
    exponentials = np.exp(query @ key.swapaxes(-1, -2) / query.shape[-1] ** 0.5)
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_answers_in_other_dtypes_are_right(dtype):
    assert checks.attention_weights(lambda *given: ops.cast(weights(*given), dtype)).startswith("right")
    assert checks.attention_weights(lambda *given: weights(*(ops.cast(x, dtype) for x in given))).startswith("right")
    assert checks.split_and_merge(lambda x, n: ops.cast(split(x, n), dtype), merge).startswith("right")


def causal(q, k, diagonal):
    scores = q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5
    return ops.softmax(np.where(np.tril(np.ones(scores.shape[-2:]), diagonal), scores, -1e30))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda q, k: weights(q, k, 1.0), "there is no scale"),
        (lambda q, k: weights(q, k, 1 / 4), "divided by head_dim: the spread"),
        (lambda q, k: weights(q, k, 12**-0.5), "root of hidden_dim"),
        (lambda q, k: weights(q, k, 1 / 12), "divided by hidden_dim"),
        (lambda q, k: weights(q, k, 5**-0.5), "root of the number of queries"),
        (lambda q, k: weights(q, k, 7**-0.5), "root of the number of keys"),
        (lambda q, k: weights(q, k, 3**-0.5), "root of the number of heads"),
        (lambda q, k: weights(q, k, 2.0), "multiplied by √head_dim"),
        (lambda q, k: weights(q, k, axis=-2), "runs over the queries, so columns sum to 1"),
        (lambda q, k: weights(q, k, axis=1), "runs over the heads"),
        (lambda q, k: weights(q, k, axis=(2, 3)), "runs over the whole map"),
        (lambda q, k: weights(q, k, 1.0, axis=-2), "runs over the queries, and there is no scale"),
        (lambda q, k: weights(q, k, 1.0) / 2, "scaled after the softmax"),
        (lambda q, k: q @ k.swapaxes(-1, -2) / 2, "the softmax is missing"),
        (lambda q, k: q @ k.swapaxes(-1, -2), "scale and softmax are missing"),
        (lambda q, k: np.exp(q @ k.swapaxes(-1, -2) / 2), "did not divide by its sum"),
        (lambda q, k: weights(k, q), "keys down and queries across"),
        (lambda q, k: np.sum(weights(q, k), axis=1), "every head has its own scores"),
        (lambda q, k: q, "weights has shape"),
        (lambda q, k: np.asarray(weights(q, k))[..., ::-1], "weights: wrong at"),
        (unstable, "large ones overflow the exponential"),
        (lambda q, k: weights(q, k, 0.5), "divided by 2, right for a head_dim of 4 only"),
        (lambda q, k: weights(q, k.T), "the last two axes of key must change places"),
        (lambda q, k: q @ k.T, "the last two axes of key must change places"),
        (lambda q, k: causal(q, k, 0), "you masked the future"),
        (lambda q, k: causal(q, k, k.shape[2] - q.shape[2]), "you masked the future: .* counted from the last"),
        (lambda q, k: weights(q, k)[:, :0], "weights has shape"),
        (lambda q, k: unknown_name, "stopped in the line .* with NameError"),  # noqa: F821
    ],
)
def test_attention_weights_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        checks.attention_weights(wrong)


def count(length, hidden_dim, num_heads):
    return 4 * length * hidden_dim**2 + 2 * length**2 * hidden_dim


def test_multiply_adds_accepts_the_right_function():
    assert checks.multiply_adds(count).startswith("right: a part that grows with the length")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda t, d, n: 3 * t * d**2 + 2 * t**2 * d, "output projection is missing"),
        (lambda t, d, n: 4 * t * d**2 + t**2 * d, "one of the two products over pairs"),
        (lambda t, d, n: 4 * t * d**2, "the products over pairs are missing"),
        (lambda t, d, n: 2 * t**2 * d, "the projections are missing"),
        (lambda t, d, n: 4 * t * d**2 + 2 * t**2 * d * n, "pairs with hidden_dim for every head: a head's vectors"),
        (lambda t, d, n: 4 * t * d**2 + 2 * t**2 * d // n, "pairs for one head only"),
        (lambda t, d, n: 4 * t * d**2 * n + 2 * t**2 * d, "the projections once for every head"),
        (lambda t, d, n: count(t, d, n) * n, "hidden_dim is shared"),
        (lambda t, d, n: count(t, d, n) // n, "you counted one head"),
        (lambda t, d, n: 2 * count(t, d, n), "twice too much"),
        (lambda t, d, n: 4 * d**2 + 2 * t**2 * d, "the projections of one token"),
        (lambda t, d, n: 4 * t * d**2 + t * (t + 1) * d, "only pairs that the mask allows"),
        (lambda t, d, n: count(t, d, n) + 4 * t * d, "biases are additions"),
        (lambda t, d, n: count(t, d, n) + 8 * t * d**2, "feed-forward network too"),
        (lambda t, d, n: 4 * t * d**2 + 2 * t * d, "only once in your formula"),
        (lambda t, d, n: 7, "there are 1040640 multiply-adds, not 7"),
    ],
)
def test_multiply_adds_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        checks.multiply_adds(wrong)


def test_the_count_is_what_a_layer_does():
    """Every product in the package's layer, found in its traced program."""
    layer = CausalSelfAttention(num_heads=4)
    layer.build((None, None, 8))
    total, programs = 0, [jax.make_jaxpr(layer)(np.zeros((1, 5, 8), "float32")).jaxpr]
    while programs:
        for step in programs.pop().eqns:
            if step.primitive.name == "dot_general":
                contracted = step.params["dimension_numbers"][0][0]
                total += step.outvars[0].aval.size * int(np.prod([step.invars[0].aval.shape[i] for i in contracted]))
            programs += [part.jaxpr for part in step.params.values() if hasattr(part, "jaxpr")]
    assert total == count(5, 8, 4)


def test_jupyter_shows_the_sentence_and_no_source():
    with pytest.raises(NotYet) as caught:
        checks.multiply_adds(lambda *sizes: None)
    assert caught.value._render_traceback_() == [f"NotYet: {caught.value}"]
    assert str(caught.value).startswith("nothing written yet")
