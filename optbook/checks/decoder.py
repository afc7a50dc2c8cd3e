"""The exercises of chapter 05: LayerNorm, a decoder layer from its parts, its parameters, pre-norm to post-norm."""

import numpy as np

from optbook import layers, masks
from optbook.checks._core import NotYet, require

EPSILON = layers.LAYER_NORM_EPSILON
PADDING = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])  # of the batch that `layer` and `post_norm` try


def layer_norm(function):
    """Checks ``function(x, gamma, beta)``: LayerNorm over the last axis, epsilon 1e-5 inside the root.

    Raises `NotYet` naming the mistake: another axis, epsilon elsewhere, another spread than the standard deviation.
    """
    random = np.random.default_rng(5)
    x = random.normal(0.5, 2.0, (2, 5, 8)).astype("float32")
    x[0, 1] = 1e-3 * np.array([1, -1] * 4)  # almost constant: here it shows where epsilon stands
    gamma, beta = random.normal(1.0, 0.5, (2, 8)).astype("float32")

    def normalized(axis=-1, ddof=0, center=True, inside=EPSILON, outside=0.0, power=1.0):
        mean = x.mean(axis, keepdims=True)
        variance = x.var(axis, keepdims=True, ddof=ddof)
        return (x - mean * center) / (np.sqrt(variance + inside) ** power + outside)

    right = normalized()
    root_mean_square = np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON)
    mistakes = {
        "you normalized over the tokens, so each feature has mean 0: LayerNorm gives each token mean 0, over axis -1": (
            normalized(axis=1) * gamma + beta
        ),
        "you normalized over tokens and features together: each token has its own mean and variance, over axis -1": (
            normalized(axis=(1, 2)) * gamma + beta
        ),
        "you normalized over the whole batch at once: each token has its own mean and variance, over axis -1": (
            normalized(axis=None) * gamma + beta
        ),
        "your epsilon stands outside the root: it belongs to the variance, sqrt(variance + epsilon)": (
            normalized(inside=0.0, outside=EPSILON) * gamma + beta
        ),
        "your epsilon is missing, or so small that it does nothing: OPT's is 1e-5, inside the root": (
            normalized(inside=1e-12) * gamma + beta
        ),
        "your epsilon is 1e-3, Keras's default: OPT's is 1e-5": normalized(inside=1e-3) * gamma + beta,
        "your variance divides by hidden_dim - 1, as a sample's does: LayerNorm divides by hidden_dim": (
            normalized(ddof=1) * gamma + beta
        ),
        "you divided by the variance: divide by its square root": normalized(power=2.0) * gamma + beta,
        "you multiplied by the root in place of dividing by it": normalized(power=-1.0) * gamma + beta,
        "you divided by the spread without first subtracting the mean": normalized(center=False) * gamma + beta,
        "you divided by the root mean square, which is RMSNorm: LayerNorm subtracts the mean first": (
            x / root_mean_square * gamma + beta
        ),
        "gamma and beta are missing: the normalized vector is multiplied by gamma, then shifted by beta": right,
        "beta is missing: it is added at the end": right * gamma,
        "gamma is missing: the normalized vector is multiplied by it before beta is added": right + beta,
        "you added beta before multiplying by gamma: multiply first": (right + beta) * gamma,
    }
    _compare(_run(function, x, gamma, beta), right * gamma + beta, mistakes)
    return "right: every token by itself, over its features, epsilon inside the root, then gamma and beta"


def layer(function):
    """Checks ``function(x, parts, mask)``: a pre-norm decoder layer from the parts of a `DecoderLayer`.

    Raises `NotYet` naming the mistake: a norm or a residual in another place or left out, the mask forgotten.
    """
    parts, x, mask = _random_layer()
    norm_1, norm_2, attend, feed_forward = _functions(parts, mask)
    after_attention = x + attend(norm_1(x))
    only_attended = attend(norm_1(x))
    from_normalized = norm_1(x) + attend(norm_1(x))
    swapped = x + attend(norm_2(x))
    first_without = x + attend(x)
    blind = x + _functions(parts, None)[2](norm_1(x))
    fed_first = x + feed_forward(norm_2(x))
    mistakes = {
        "this is post-norm: you normalized after the addition; OPT normalizes what a sublayer reads, before it": (
            _post_norm(x, parts, mask)
        ),
        "the residual was added after the norm: you normalized what a sublayer wrote; normalize what it reads": (
            _residual_after_norm(x, parts, mask)
        ),
        "your residual was taken from the normalized input, in both sublayers: add to the stream itself": (
            norm_2(from_normalized) + feed_forward(norm_2(from_normalized))
        ),
        "your first residual was taken from the normalized input: add what attention writes to x itself": (
            from_normalized + feed_forward(norm_2(from_normalized))
        ),
        "your second residual was taken from the normalized input: add to the stream, not to what feed-forward reads": (
            norm_2(after_attention) + feed_forward(norm_2(after_attention))
        ),
        "both residuals are missing: a sublayer's output is added to the stream, it does not replace it": (
            feed_forward(norm_2(only_attended))
        ),
        "the residual around attention is missing: add x to what attention writes": (
            only_attended + feed_forward(norm_2(only_attended))
        ),
        "the residual around feed-forward is missing: add the stream to what it writes": (
            feed_forward(norm_2(after_attention))
        ),
        "your second residual is the layer's input, so what attention wrote is lost: add to the stream after it": (
            x + feed_forward(norm_2(after_attention))
        ),
        "your feed-forward reads the layer's input: it reads the stream after attention has been added": (
            after_attention + feed_forward(norm_2(x))
        ),
        "the feed-forward sublayer is missing: the layer stops after attention": after_attention,
        "both norms are missing: each sublayer reads a normalized stream": first_without + feed_forward(first_without),
        "the norm before attention is missing": first_without + feed_forward(norm_2(first_without)),
        "the norm before feed-forward is missing": after_attention + feed_forward(after_attention),
        "the two norms are swapped: each has its own gamma and beta": swapped + feed_forward(norm_1(swapped)),
        "you used self_attention_layer_norm twice: feed-forward has a norm of its own": (
            after_attention + feed_forward(norm_1(after_attention))
        ),
        "the order is turned round: attention comes first, feed-forward second": fed_first + attend(norm_1(fed_first)),
        "the mask was forgotten, so padding is read: attention needs it as attention_mask=mask": blind
        + feed_forward(norm_2(blind)),
    }
    _compare(_run(function, x, parts, mask), _pre_norm(x, parts, mask), mistakes)
    return "right: norm, attention, add; norm, feed-forward, add"


def post_norm(function):
    """Checks ``function(x, parts, mask)``: the same parts in post-norm order, as OPT-350m has them.

    Raises `NotYet` naming the mistake: still pre-norm, a norm or a residual in another place or left out.
    """
    parts, x, mask = _random_layer()
    norm_1, norm_2, attend, feed_forward = _functions(parts, mask)
    middle = norm_1(x + attend(x))
    unnormalized = x + attend(x)
    both = norm_1(x + attend(norm_1(x)))
    swapped = norm_2(x + attend(x))
    blind = norm_1(x + _functions(parts, None)[2](x))
    mistakes = {
        "this is still pre-norm: each sublayer reads the stream as it is, and the sum is normalized": (
            _pre_norm(x, parts, mask)
        ),
        "the residual was added after the norm: post-norm adds first and normalizes the sum": (
            _residual_after_norm(x, parts, mask)
        ),
        "both norms are missing: normalize each sum": unnormalized + feed_forward(unnormalized),
        "the norm after attention is missing: post-norm normalizes twice, once after each addition": (
            norm_2(unnormalized + feed_forward(unnormalized))
        ),
        "the norm after feed-forward is missing: post-norm normalizes twice, once after each addition": (
            middle + feed_forward(middle)
        ),
        "you normalized before the sublayers and after them: post-norm's sublayers read the stream as it is": (
            norm_2(both + feed_forward(norm_2(both)))
        ),
        "your second residual is the layer's input: it is the stream after the first norm": (
            norm_2(x + feed_forward(middle))
        ),
        "your second residual was taken before the first norm: after it, the normalized stream is the stream": (
            norm_2(unnormalized + feed_forward(middle))
        ),
        "both residuals are missing: a sublayer's output is added to the stream, it does not replace it": (
            norm_2(feed_forward(norm_1(attend(x))))
        ),
        "the two norms are swapped: each has its own gamma and beta": norm_1(swapped + feed_forward(swapped)),
        "you used self_attention_layer_norm twice: feed-forward has a norm of its own": (
            norm_1(middle + feed_forward(middle))
        ),
        "the mask was forgotten, so padding is read: attention needs it as attention_mask=mask": norm_2(
            blind + feed_forward(blind)
        ),
    }
    _compare(_run(function, x, parts, mask), _post_norm(x, parts, mask), mistakes)
    return "right: attention, add, norm; feed-forward, add, norm"


def parameters(function):
    """Checks ``function(hidden_dim, intermediate_dim)``: a dict of one layer's parameters, against Keras's count.

    Keys are ``attention``, ``feedforward`` and ``layer_norm``. Raises `NotYet` naming what was missed.
    """
    for d, i in ((16, 40), (12, 48)):
        counts = _run(function, d, i, shaped=False)
        require(
            isinstance(counts, dict) and set(counts) == {"attention", "feedforward", "layer_norm"},
            "return a dict with the keys attention, feedforward and layer_norm.",
        )
        built = layers.DecoderLayer(i, num_heads=4)
        built.build((None, None, d))
        norms = built.self_attention_layer_norm, built.feedforward_layer_norm
        dense = built.feedforward_intermediate_dense, built.feedforward_output_dense
        keras_counts = {
            "attention": built.self_attention.count_params(),
            "feedforward": sum(part.count_params() for part in dense),
            "layer_norm": sum(part.count_params() for part in norms),
        }
        mistakes = {
            "attention": {
                4 * d * d: "the four biases are missing",
                3 * (d * d + d): "that is query, key and value; the output projection is a fourth matrix with a bias",
                3 * d * d: "that is query, key and value without biases; the output projection is a fourth matrix",
                4 * 4 * (d * d + d): "you counted four full matrices for each head; heads share out hidden_dim",
            },
            "feedforward": {
                2 * d * i: "the two biases are missing",
                d * i + i: "the second matrix, back to hidden_dim, is missing",
                d * i + d: "the first matrix, out to intermediate_dim, is missing",
                2 * (d * i + i): "the second bias has hidden_dim numbers: a bias is as long as the output",
                2 * (d * i + d): "the first bias has intermediate_dim numbers: a bias is as long as the output",
                8 * d * d + 5 * d: "you took intermediate_dim for 4 × hidden_dim; use the argument",
                8 * d * d: "you took intermediate_dim for 4 × hidden_dim and left out the biases",
            },
            "layer_norm": {
                2 * d: "a layer has two norms, each with a gamma and a beta",
                d: "a layer has two norms, each with a gamma and a beta",
                6 * d: "you counted three norms; the final one belongs to the backbone, not to a layer",
                4: "gamma and beta hold one number per feature, not one per norm",
            },
        }
        for part, expected in keras_counts.items():
            reason = mistakes[part].get(counts[part], "go through its kernels, biases, gammas and betas one by one")
            sizes = f"hidden_dim={d}, intermediate_dim={i}"
            require(
                counts[part] == expected,
                f"{part}: you have {counts[part]} for {sizes}, Keras counts {expected}: {reason}.",
            )
    return "right: your formula gives Keras's count, part by part"


def _random_layer():
    """A small DecoderLayer with no weight at a special value, a batch of vectors for it and its mask."""
    random = np.random.default_rng(50)
    parts = layers.DecoderLayer(intermediate_dim=16, num_heads=2)
    parts.build((None, None, 8))
    parts.set_weights([random.normal("gamma" in weight.path, 0.5, weight.shape) for weight in parts.weights])
    x = random.normal(0.5, 2.0, (2, 5, 8)).astype("float32")
    return parts, x, masks.combine_masks(masks.causal_mask(5), masks.padding_mask(PADDING))


def _functions(parts, mask):
    return (
        parts.self_attention_layer_norm,
        parts.feedforward_layer_norm,
        lambda x: parts.self_attention(x, attention_mask=mask),
        lambda x: parts.feedforward_output_dense(parts.feedforward_intermediate_dense(x)),
    )


def _pre_norm(x, parts, mask):
    norm_1, norm_2, attend, feed_forward = _functions(parts, mask)
    x = x + attend(norm_1(x))
    return x + feed_forward(norm_2(x))


def _post_norm(x, parts, mask):
    norm_1, norm_2, attend, feed_forward = _functions(parts, mask)
    x = norm_1(x + attend(x))
    return norm_2(x + feed_forward(x))


def _residual_after_norm(x, parts, mask):
    norm_1, norm_2, attend, feed_forward = _functions(parts, mask)
    x = x + norm_1(attend(x))
    return x + norm_2(feed_forward(x))


def _run(function, *arguments, shaped=True):
    try:
        result = function(*arguments)
    except ValueError as error:
        hint = " (did you forget keepdims=True?)" if shaped and "broadcast" in str(error) else ""
        raise NotYet(f"your function stopped with a ValueError{hint}: {error}") from error
    require(result is not None, "your function returned None: its last line needs a return.")
    return result


def _compare(result, expected, mistakes):
    """Passes when the arrays are equal; otherwise names the mistake whose outcome the result is."""
    result, expected = np.asarray(result), np.asarray(expected)
    require(
        result.shape == expected.shape,
        f"your result has shape {result.shape}, not {expected.shape}: the shape of the input is kept.",
    )
    if _equal(result, expected):
        return
    for message, outcome in mistakes.items():
        require(not _equal(result, np.asarray(outcome)), f"{message}.")
    largest = float(np.abs(result - expected).max())
    raise NotYet(f"the result differs from the expected one by up to {largest:.1e}, in a way unknown here.")


def _equal(one, other):
    return np.allclose(one, other, rtol=0, atol=2e-5 * np.abs(other).max())
