"""The exercises of chapter 05: LayerNorm, a decoder layer from its parts, its parameters, pre-norm to post-norm."""

import numpy as np

from optbook import layers, masks
from optbook.checks._core import ask, compare, require

EPSILON = layers.LAYER_NORM_EPSILON
PADDING = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])  # of the batch that `layer` and `post_norm` try
_KEPT = {None: "the shape of the input is kept"}


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

    def told(**changes):
        return normalized(**changes) * gamma + beta

    right = normalized()
    root_mean_square = np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON)
    mistakes = {
        "you normalized over the tokens, so each feature has mean 0: each token must have it, over axis -1": told(
            axis=1
        ),
        "you normalized tokens and features together: each token has its own mean, over axis -1": told(axis=(1, 2)),
        "you normalized over the whole batch at once: each token has its own mean, over axis -1": told(axis=None),
        "you normalized each feature over the batch, as BatchNorm does: use axis -1": told(axis=0),
        "you normalized each feature over batch and tokens, as BatchNorm does: use axis -1": told(axis=(0, 1)),
        "your epsilon stands outside the root: it belongs to the variance, sqrt(variance + epsilon)": (
            told(inside=0.0, outside=EPSILON)
        ),
        "your epsilon is missing, or so small that it does nothing: OPT's is 1e-5, inside the root": told(inside=1e-12),
        "your epsilon is 1e-3, Keras's default: OPT's is 1e-5": told(inside=1e-3),
        "your variance divides by hidden_dim - 1, as a sample's does: LayerNorm divides by hidden_dim": told(ddof=1),
        "you divided by the variance: divide by its square root": told(power=2.0),
        "you multiplied by the root in place of dividing by it": told(power=-1.0),
        "you divided by the spread without first subtracting the mean": told(center=False),
        "you divided by the root mean square, which is RMSNorm: LayerNorm subtracts the mean first": (
            x / root_mean_square * gamma + beta
        ),
        "gamma and beta are missing: the normalized vector is multiplied by gamma, then shifted by beta": right,
        "beta is missing: it is added at the end": right * gamma,
        "gamma is missing: the normalized vector is multiplied by it before beta is added": right + beta,
        "you added beta before multiplying by gamma: multiply first": (right + beta) * gamma,
        "gamma and beta changed places: gamma multiplies, then beta is added": right * beta + gamma,
    }
    hints = {"broadcast": " (did you forget keepdims=True?)", "ncompatible": " (did you forget keepdims=True?)"}
    answer = ask(function, x, gamma, beta, hints=hints)
    compare(answer, right * gamma + beta, mistakes, tolerance=2e-5, shapes=_KEPT)
    return "right: every token by itself, over its features, epsilon inside the root, then gamma and beta"


def layer(function):
    """Checks ``function(x, parts, mask)``: a pre-norm decoder layer from the parts of a `DecoderLayer`.

    Raises `NotYet` naming the mistake: a norm or a residual in another place or left out, the mask forgotten.
    """
    parts, x, mask = _random_layer()
    n1, n2, attend, feed = _functions(parts, mask)
    seen, unnormalized, swapped, fed = x + attend(n1(x)), x + attend(x), x + attend(n2(x)), x + feed(n2(x))
    from_n1 = n1(x) + attend(n1(x))
    blind = x + _functions(parts, None)[2](n1(x))
    mistakes = {
        "this is post-norm: you normalized after the addition; OPT normalizes what a sublayer reads, before it": (
            _post_norm(x, parts, mask)
        ),
        "the residual was added after the norm: you normalized what a sublayer wrote; normalize what it reads": (
            _residual_after_norm(x, parts, mask)
        ),
        "your residual was taken from the normalized input, in both sublayers: add to the stream itself": (
            n2(from_n1) + feed(n2(from_n1))
        ),
        "your first residual was taken from the normalized input: add to x itself": from_n1 + feed(n2(from_n1)),
        "your second residual was taken from the normalized input: add to the stream": n2(seen) + feed(n2(seen)),
        "both residuals are missing: what a sublayer writes is added to the stream": feed(n2(attend(n1(x)))),
        "the residual around attention is missing: add x": attend(n1(x)) + feed(n2(attend(n1(x)))),
        "the residual around feed-forward is missing: add the stream to what it writes": feed(n2(seen)),
        "your second residual is the layer's input, so what attention wrote is lost": x + feed(n2(seen)),
        "your feed-forward reads the layer's input: it reads the stream after attention": seen + feed(n2(x)),
        "the feed-forward sublayer is missing: the layer stops after attention": seen,
        "both norms are missing: each sublayer reads a normalized stream": unnormalized + feed(unnormalized),
        "the norm before attention is missing": unnormalized + feed(n2(unnormalized)),
        "the norm before feed-forward is missing": seen + feed(seen),
        "the two norms are swapped: each has its own gamma and beta": swapped + feed(n1(swapped)),
        "you used self_attention_layer_norm twice: feed-forward has a norm of its own": seen + feed(n1(seen)),
        "the order is turned round: attention comes first, feed-forward second": fed + attend(n1(fed)),
        "the mask was forgotten, so padding is read: attention_mask=mask": blind + feed(n2(blind)),
    }
    compare(ask(function, x, parts, mask), _pre_norm(x, parts, mask), mistakes, tolerance=2e-5, shapes=_KEPT)
    return "right: norm, attention, add; norm, feed-forward, add"


def post_norm(function):
    """Checks ``function(x, parts, mask)``: the same parts in post-norm order, as OPT-350m has them.

    Raises `NotYet` naming the mistake: still pre-norm, a norm or a residual in another place or left out.
    """
    parts, x, mask = _random_layer()
    n1, n2, attend, feed = _functions(parts, mask)
    total, seen, swapped = x + attend(x), n1(x + attend(x)), n2(x + attend(x))
    both, blind = n1(x + attend(n1(x))), n1(x + _functions(parts, None)[2](x))
    mistakes = {
        "this is still pre-norm: each sublayer reads the stream as it is, and the sum is normalized": (
            _pre_norm(x, parts, mask)
        ),
        "the residual was added after the norm: post-norm adds first and normalizes the sum": (
            _residual_after_norm(x, parts, mask)
        ),
        "both norms are missing: normalize each sum": total + feed(total),
        "the norm after attention is missing: post-norm normalizes each sum": n2(total + feed(total)),
        "the norm after feed-forward is missing: post-norm normalizes each sum": seen + feed(seen),
        "you normalized before the sublayers and after them: after is enough": n2(both + feed(n2(both))),
        "your second residual is the layer's input: it is the stream after the first norm": n2(x + feed(seen)),
        "your second residual was taken before the first norm: take it after": n2(total + feed(seen)),
        "both residuals are missing: what a sublayer writes is added to the stream": n2(feed(n1(attend(x)))),
        "the two norms are swapped: each has its own gamma and beta": n1(swapped + feed(swapped)),
        "you used self_attention_layer_norm twice: feed-forward has a norm of its own": n1(seen + feed(seen)),
        "the mask was forgotten, so padding is read: attention_mask=mask": n2(blind + feed(blind)),
    }
    compare(ask(function, x, parts, mask), _post_norm(x, parts, mask), mistakes, tolerance=2e-5, shapes=_KEPT)
    return "right: attention, add, norm; feed-forward, add, norm"


def parameters(function):
    """Checks ``function(hidden_dim, intermediate_dim)``: a dict of one layer's parameters, against Keras's count.

    Keys are ``attention``, ``feedforward`` and ``layer_norm``. Raises `NotYet` naming what was missed.
    """
    for d, i in ((16, 40), (12, 48)):
        counts = ask(function, d, i)
        require(
            isinstance(counts, dict) and set(counts) == {"attention", "feedforward", "layer_norm"},
            "return a dict with the keys attention, feedforward and layer_norm.",
        )
        built = layers.DecoderLayer(i, num_heads=4)
        built.build((None, None, d))
        keras_counts = {
            "attention": [built.self_attention],
            "feedforward": [built.feedforward_intermediate_dense, built.feedforward_output_dense],
            "layer_norm": [built.self_attention_layer_norm, built.feedforward_layer_norm],
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
        for part, counted in keras_counts.items():
            expected = sum(one.count_params() for one in counted)
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
