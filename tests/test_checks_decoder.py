"""Chapter 05's checks: the right answer passes, each usual wrong answer is told which one it is."""

import keras_hub
import numpy as np
import pytest
from keras import ops

import optbook
from optbook import checks
from optbook.checks import decoder


def right_layer_norm(x, gamma, beta):
    mean = ops.mean(x, axis=-1, keepdims=True)
    variance = ops.mean((x - mean) ** 2, axis=-1, keepdims=True)
    return (x - mean) / ops.sqrt(variance + 1e-5) * gamma + beta


def norm_with(axis=-1, ddof=0, inside=1e-5, outside=0.0, spread=np.sqrt, subtract=True):
    def function(x, gamma, beta):
        spread_of_x = spread(np.var(x, axis=axis, keepdims=True, ddof=ddof) + inside) + outside
        return (x - np.mean(x, axis=axis, keepdims=True) * subtract) / spread_of_x * gamma + beta

    return function


WRONG_NORMS = {
    "over the tokens": norm_with(axis=1),
    "normalized tokens and features together": norm_with(axis=(1, 2)),
    "whole batch": norm_with(axis=None),
    "outside the root": norm_with(inside=0.0, outside=1e-5),
    "epsilon is missing": norm_with(inside=0.0),
    "Keras's default": norm_with(inside=1e-3),
    "hidden_dim - 1": norm_with(ddof=1),
    "divided by the variance": norm_with(spread=lambda variance: variance),
    "multiplied by the root": norm_with(spread=lambda variance: variance**-0.5),
    "without first subtracting": norm_with(subtract=False),
    "RMSNorm": lambda x, gamma, beta: x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5) * gamma + beta,
    "gamma and beta are missing": lambda x, gamma, beta: right_layer_norm(x, 1.0, 0.0),
    "beta is missing": lambda x, gamma, beta: right_layer_norm(x, gamma, 0.0),
    "gamma is missing": lambda x, gamma, beta: right_layer_norm(x, 1.0, beta),
    "multiply first": lambda x, gamma, beta: (right_layer_norm(x, 1.0, 0.0) + beta) * gamma,
    "gamma and beta changed places": lambda x, gamma, beta: right_layer_norm(x, beta, gamma),
    "each feature over the batch, as BatchNorm": norm_with(axis=0),
    "over batch and tokens, as BatchNorm": norm_with(axis=(0, 1)),
    "an array of numbers is wanted": lambda x, gamma, beta: "x",
    "changed what it was given": lambda x, gamma, beta: x.__imul__(2),
    "keepdims": lambda x, gamma, beta: x - np.mean(x, axis=-1),
    "nothing written yet": lambda x, gamma, beta: None,
    "has shape": lambda x, gamma, beta: x[:, 0],
    "wrong at": lambda x, gamma, beta: 2 * x,
}


def test_layer_norm_passes():
    assert decoder.layer_norm(right_layer_norm).startswith("right")
    assert decoder.layer_norm(norm_with()).startswith("right")
    assert decoder.layer_norm(lambda *given: right_layer_norm(*given).tolist()).startswith("right")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_layer_norm_passes_in_short_numbers(dtype):
    assert decoder.layer_norm(lambda *given: ops.cast(right_layer_norm(*given), dtype)).startswith("right")
    assert decoder.layer_norm(lambda *given: right_layer_norm(*(ops.cast(one, dtype) for one in given)))
    with pytest.raises(checks.NotYet, match="epsilon is missing"):
        decoder.layer_norm(lambda *given: ops.cast(norm_with(inside=0.0)(*given), dtype))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_layers_pass_in_short_numbers(dtype):
    assert decoder.layer(lambda *given: ops.cast(wired(pre)(*given), dtype)).startswith("right")
    assert decoder.post_norm(lambda *given: ops.cast(wired(post)(*given), dtype)).startswith("right")


@pytest.mark.parametrize("words", WRONG_NORMS)
def test_layer_norm_names_the_mistake(words):
    with pytest.raises(checks.NotYet, match=words):
        decoder.layer_norm(WRONG_NORMS[words])


def wired(order):
    """A reader's layer, written in terms of the two norms, attention and feed-forward."""

    def function(x, parts, mask):
        return order(
            x,
            parts.self_attention_layer_norm,
            parts.feedforward_layer_norm,
            lambda v, mask=mask: parts.self_attention(v, attention_mask=mask),
            lambda v: parts.feedforward_output_dense(parts.feedforward_intermediate_dense(v)),
        )

    return function


def pre(x, n1, n2, a, f):
    x = x + a(n1(x))
    return x + f(n2(x))


def post(x, n1, n2, a, f):
    x = n1(x + a(x))
    return n2(x + f(x))


def after_norm(x, n1, n2, a, f):
    x = x + n1(a(x))
    return x + n2(f(x))


def normalized_residuals(x, n1, n2, a, f):
    x = n1(x)
    x = n2(x + a(x))
    return x + f(x)


def first_normalized_residual(x, n1, n2, a, f):
    x = n1(x)
    x = x + a(x)
    return x + f(n2(x))


def second_normalized_residual(x, n1, n2, a, f):
    x = n2(x + a(n1(x)))
    return x + f(x)


def norm_both_sides(x, n1, n2, a, f):
    x = n1(x + a(n1(x)))
    return n2(x + f(n2(x)))


WRONG_LAYERS = {
    "this is post-norm": post,
    "residual was added after the norm": after_norm,
    "in both sublayers": normalized_residuals,
    "first residual was taken from the normalized": first_normalized_residual,
    "second residual was taken from the normalized": second_normalized_residual,
    "both residuals are missing": lambda x, n1, n2, a, f: f(n2(a(n1(x)))),
    "residual around attention": lambda x, n1, n2, a, f: (h := a(n1(x))) + f(n2(h)),
    "residual around feed-forward": lambda x, n1, n2, a, f: f(n2(x + a(n1(x)))),
    "what attention wrote is lost": lambda x, n1, n2, a, f: x + f(n2(x + a(n1(x)))),
    "reads the layer's input": lambda x, n1, n2, a, f: x + a(n1(x)) + f(n2(x)),
    "feed-forward sublayer is missing": lambda x, n1, n2, a, f: x + a(n1(x)),
    "both norms are missing": lambda x, n1, n2, a, f: (h := x + a(x)) + f(h),
    "norm before attention is missing": lambda x, n1, n2, a, f: (h := x + a(x)) + f(n2(h)),
    "norm before feed-forward is missing": lambda x, n1, n2, a, f: (h := x + a(n1(x))) + f(h),
    "swapped": lambda x, n1, n2, a, f: pre(x, n2, n1, a, f),
    "self_attention_layer_norm twice": lambda x, n1, n2, a, f: pre(x, n1, n1, a, f),
    "turned round": lambda x, n1, n2, a, f: (h := x + f(n2(x))) + a(n1(h)),
    "mask was forgotten": lambda x, n1, n2, a, f: pre(x, n1, n2, lambda v: a(v, None), f),
    "wrong at": lambda x, n1, n2, a, f: pre(x, n1, n2, f, a),
}

WRONG_POST_NORMS = {
    "still pre-norm": pre,
    "residual was added after the norm": after_norm,
    "both norms are missing": lambda x, n1, n2, a, f: (h := x + a(x)) + f(h),
    "norm after attention is missing": lambda x, n1, n2, a, f: n2((h := x + a(x)) + f(h)),
    "norm after feed-forward is missing": lambda x, n1, n2, a, f: (h := n1(x + a(x))) + f(h),
    "before the sublayers and after": norm_both_sides,
    "is the layer's input": lambda x, n1, n2, a, f: n2(x + f(n1(x + a(x)))),
    "taken before the first norm": lambda x, n1, n2, a, f: n2((h := x + a(x)) + f(n1(h))),
    "both residuals are missing": lambda x, n1, n2, a, f: n2(f(n1(a(x)))),
    "swapped": lambda x, n1, n2, a, f: post(x, n2, n1, a, f),
    "self_attention_layer_norm twice": lambda x, n1, n2, a, f: post(x, n1, n1, a, f),
    "mask was forgotten": lambda x, n1, n2, a, f: post(x, n1, n2, lambda v: a(v, None), f),
}


def test_layer_passes_and_so_does_the_package():
    assert decoder.layer(wired(pre)).startswith("right")
    assert decoder.layer(lambda x, parts, mask: parts(x, decoder_padding_mask=decoder.PADDING)).startswith("right")


@pytest.mark.parametrize("words", WRONG_LAYERS)
def test_layer_names_the_mistake(words):
    with pytest.raises(checks.NotYet, match=words):
        decoder.layer(wired(WRONG_LAYERS[words]))


def test_post_norm_passes_and_so_does_keras_hub():
    def keras_hubs(x, parts, mask):
        theirs = keras_hub.layers.TransformerDecoder(
            parts.intermediate_dim, parts.num_heads, activation="relu", layer_norm_epsilon=1e-5
        )
        theirs.build(x.shape)
        theirs.set_weights(parts.get_weights())
        return theirs(x, decoder_padding_mask=decoder.PADDING)

    assert decoder.post_norm(wired(post)).startswith("right")
    assert decoder.post_norm(keras_hubs).startswith("right")


@pytest.mark.parametrize("words", WRONG_POST_NORMS)
def test_post_norm_names_the_mistake(words):
    with pytest.raises(checks.NotYet, match=words):
        decoder.post_norm(wired(WRONG_POST_NORMS[words]))


def count(attention=None, feedforward=None, layer_norm=None):
    def function(d, i):
        return {
            "attention": attention(d, i) if attention else 4 * (d * d + d),
            "feedforward": feedforward(d, i) if feedforward else 2 * d * i + i + d,
            "layer_norm": layer_norm(d, i) if layer_norm else 4 * d,
        }

    return function


WRONG_COUNTS = {
    "attention.*four biases": count(attention=lambda d, i: 4 * d * d),
    "attention.*output projection": count(attention=lambda d, i: 3 * (d * d + d)),
    "attention.*without biases": count(attention=lambda d, i: 3 * d * d),
    "attention.*each head": count(attention=lambda d, i: 16 * (d * d + d)),
    "attention.*one by one": count(attention=lambda d, i: 0),
    "feedforward.*two biases": count(feedforward=lambda d, i: 2 * d * i),
    "feedforward.*second matrix": count(feedforward=lambda d, i: d * i + i),
    "feedforward.*first matrix": count(feedforward=lambda d, i: d * i + d),
    "feedforward.*second bias": count(feedforward=lambda d, i: 2 * (d * i + i)),
    "feedforward.*first bias": count(feedforward=lambda d, i: 2 * (d * i + d)),
    "use the argument": count(feedforward=lambda d, i: 8 * d * d + 5 * d),
    "layer_norm.*two norms": count(layer_norm=lambda d, i: 2 * d),
    "layer_norm.*final one": count(layer_norm=lambda d, i: 6 * d),
    "layer_norm.*per feature": count(layer_norm=lambda d, i: 4),
    "keys attention": lambda d, i: 12 * d * d,
}


def test_parameters_pass_and_add_up_to_the_package():
    assert decoder.parameters(count()).startswith("right")
    sizes = optbook.presets.preset_sizes("optbook_700k_en")
    one_more = {**sizes, "num_layers": sizes["num_layers"] + 1}
    difference = optbook.presets.parameter_count(**one_more) - optbook.presets.parameter_count(**sizes)
    assert difference == sum(count()(sizes["hidden_dim"], sizes["intermediate_dim"]).values())


@pytest.mark.parametrize("words", WRONG_COUNTS)
def test_parameters_name_the_mistake(words):
    with pytest.raises(checks.NotYet, match=words):
        decoder.parameters(WRONG_COUNTS[words])
