"""Every layer and the whole backbone equal KerasHub's: names, weights, outputs, gradients, number types."""

import inspect

import jax
import keras
import keras_hub
import ml_dtypes
import numpy as np
import pytest
from small_models import INPUTS, SIZES, assert_close, copy_weights, make_inputs, make_pair

import optbook

HALF_POLICIES = ("bfloat16", "float16", "mixed_bfloat16", "mixed_float16")
SHAPE = (3, 12, SIZES["hidden_dim"])


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def real_tokens(inputs):
    return inputs["padding_mask"].astype(bool)


def run(layer, *args, **kwargs):
    """The layer's output, compiled: numpy arrays (and dicts of them) go in as arrays, ints and bools as they are."""
    arrays = {name: value for name, value in kwargs.items() if isinstance(value, np.ndarray)}
    options = {name: value for name, value in kwargs.items() if name not in arrays}

    def call(weights, state, args, arrays):
        return layer.stateless_call(weights, state, *args, **arrays, **options)[0]

    weights, state = values(layer.trainable_variables), values(layer.non_trainable_variables)
    return jax.jit(call)(weights, state, args, arrays)


def gradients(layer, weigh, *args, **arrays):
    """Gradients of the sum of output times ``weigh``: a list by weight, and one by positional argument."""

    def loss(weights, args, state, weigh, arrays):
        return (layer.stateless_call(weights, state, *args, **arrays)[0] * weigh).sum()

    weights, state = values(layer.trainable_variables), values(layer.non_trainable_variables)
    return jax.jit(jax.grad(loss, argnums=(0, 1)))(weights, args, state, weigh, arrays)


def values(variables):
    return [variable.value for variable in variables]


def assert_gradients_close(ours, theirs, tolerance=1e-5):
    """Up to a share of each gradient's own scale, or of a twentieth of the largest where it is zero but for rounding.

    (The bias of the keys moves all scores of a row alike, and so nothing.)
    """
    assert len(ours) == len(theirs)
    floor = 0.05 * max(np.abs(array).max() for array in theirs)
    for our, their in zip(ours, theirs):
        assert our.shape == their.shape
        assert np.abs(our - their).max() <= tolerance * max(np.abs(their).max(), floor)


# Signature, configuration, weights


OUR_OPTIONS = {"positions_from_mask": False, "normalize_first": True, "embedding_dim": None}


def parameters(function):
    found = inspect.signature(function).parameters
    return [(name, parameter.kind, parameter.default) for name, parameter in found.items() if name not in OUR_OPTIONS]


@pytest.mark.parametrize("method", ["__init__", "from_preset", "save_to_preset", "get_config", "enable_lora"])
def test_signatures_and_defaults_are_keras_hubs(method):
    ours, theirs = (getattr(cls, method) for cls in (optbook.OPTBackbone, keras_hub.models.OPTBackbone))
    assert parameters(ours) == parameters(theirs)


def test_our_options_are_off_by_default():
    found = inspect.signature(optbook.OPTBackbone).parameters
    assert {name: found[name].default for name in OUR_OPTIONS} == OUR_OPTIONS


def test_presets_are_the_published_ones_and_the_embedded_ones():
    published = keras_hub.models.OPTBackbone.presets
    assert len(published) == 4
    assert {name: optbook.OPTBackbone.presets[name] for name in published} == published
    assert "optbook_700k_en" in optbook.OPTBackbone.presets


@pytest.mark.parametrize("dtype", ["float32", *HALF_POLICIES])
def test_config_is_keras_hubs_and_builds_either_class(dtype):
    theirs = keras_hub.models.OPTBackbone(**SIZES, dropout=0.2, dtype=dtype, name="opt")
    ours = optbook.OPTBackbone(**SIZES, dropout=0.2, dtype=dtype, name="opt")
    assert ours.get_config() == theirs.get_config()
    for cls in (optbook.OPTBackbone, keras_hub.models.OPTBackbone):
        assert cls.from_config(ours.get_config()).get_config() == theirs.get_config()


def test_positions_from_mask_is_kept_in_the_config():
    ours = optbook.OPTBackbone(**SIZES, positions_from_mask=True)
    assert optbook.OPTBackbone.from_config(ours.get_config()).positions_from_mask is True


@pytest.mark.parametrize("dtype", ["float32", *HALF_POLICIES])
def test_variables_have_keras_hubs_order_shapes_and_types(dtype):
    theirs, ours = make_pair(dtype)
    assert len(ours.weights) == 2 + 3 * 16 + 2
    assert [weight.shape for weight in ours.weights] == [weight.shape for weight in theirs.weights]
    assert [weight.dtype for weight in ours.weights] == [weight.dtype for weight in theirs.weights]
    assert [weight.name for weight in ours.weights] == [weight.name for weight in theirs.weights]
    assert ours.count_params() == theirs.count_params()


def test_parts_have_keras_hubs_names(pair):
    theirs, ours = pair
    for backbone in pair:
        assert backbone.token_embedding is backbone.embeddings.token_embedding
        assert len(backbone.transformer_layers) == SIZES["num_layers"]
        assert [weight.name for weight in backbone.layer_norm.weights] == ["gamma", "beta"]
    assert [layer.name for layer in ours.layers] == [layer.name for layer in theirs.layers]


def test_weights_copy_back_in_order(pair):
    theirs, ours = pair
    back = keras_hub.models.OPTBackbone(**SIZES, dropout=theirs.dropout)
    copy_weights(ours, back)
    np.testing.assert_array_equal(run(back, INPUTS["right"]), run(theirs, INPUTS["right"]))


def test_initial_kernels_are_truncated_normal_and_all_different():
    ours = optbook.OPTBackbone(**{**SIZES, "num_layers": 2, "hidden_dim": 64}, dropout=0.0)
    random = [np.asarray(weight) for weight in ours.weights if weight.name in ("kernel", "embeddings")]
    for values in random:
        assert abs(values.std() / 0.02 - 1) < 0.15
    sums = [float(values.sum()) for values in random]
    assert len(set(sums)) == len(sums)


# Layers alone


@pytest.mark.parametrize("start_index", [0, 5])
def test_embedding_forward(pair, start_index):
    theirs, ours = pair
    token_ids = INPUTS["unpadded"]["token_ids"]
    assert_close(
        run(ours.embeddings, token_ids, start_index=start_index),
        run(theirs.embeddings, token_ids, start_index=start_index),
    )


def test_embedding_gradients(pair):
    token_ids, weigh = INPUTS["unpadded"]["token_ids"], normal(*SHAPE)
    theirs, ours = (gradients(backbone.embeddings, weigh, inputs=token_ids)[0] for backbone in pair)
    assert len(ours) == 2
    assert_gradients_close(ours, theirs)


def attention_mask(inputs):
    """Causal and padding, (batch, T, S), in plain numpy; padded queries see the first key, as no row may be empty."""
    length = inputs["token_ids"].shape[1]
    mask = np.tril(np.ones((length, length), bool))[None] & real_tokens(inputs)[:, None, :]
    mask[..., 0] |= ~mask.any(axis=-1)
    return mask


def self_attention_pair(pair):
    theirs, ours = pair
    return theirs.transformer_layers[1]._self_attention_layer, ours.transformer_layers[1].self_attention


def test_attention_forward(pair, inputs):
    theirs, ours = self_attention_pair(pair)
    x, mask = normal(*SHAPE), attention_mask(inputs)
    assert_close(run(ours, x, attention_mask=mask), run(theirs, x, x, attention_mask=mask))


def test_attention_without_a_mask_is_causal(pair):
    theirs, ours = self_attention_pair(pair)
    x = normal(*SHAPE)
    assert_close(run(ours, x), run(theirs, x, x, attention_mask=attention_mask(INPUTS["unpadded"])))


def test_attention_scores(pair, inputs):
    theirs, ours = self_attention_pair(pair)
    x, mask = normal(*SHAPE), attention_mask(inputs)
    for our, their in zip(
        run(ours, x, attention_mask=mask, return_attention_scores=True),
        run(theirs, x, x, attention_mask=mask, return_attention_scores=True),
        strict=True,
    ):
        assert_close(our, their)


def test_attention_scores_far_below_zero(pair, inputs):
    """Where the best allowed score is −200, a forbidden key still takes nothing from the sum of the row."""
    x, mask = normal(*SHAPE), attention_mask(inputs)
    layers = self_attention_pair(make_pair(dropout=pair[0].dropout))
    for layer in layers:
        for name, bias in (("query", 9.0), ("key", -9.0)):  # 8 × 9 × −9 / √8 = −229, and what the kernels add
            dense = getattr(layer, f"{name}_dense", None) or getattr(layer, f"_{name}_dense")
            dense.bias.assign(np.full(dense.bias.shape, bias))
    outputs, scores = run(layers[1], x, attention_mask=mask, return_attention_scores=True)
    query, key = (np.asarray(dense(x)) for dense in (layers[1].query_dense, layers[1].key_dense))
    before_softmax = np.einsum("btnh,bsnh->bnts", query, key) / np.sqrt(8)
    best = np.where(mask[:, None], before_softmax, -np.inf).max(axis=-1)
    assert (best < -200).mean() > 0.1
    np.testing.assert_allclose(scores.sum(axis=-1), 1, atol=1e-5)
    assert (np.asarray(scores)[~np.broadcast_to(mask[:, None], scores.shape)] == 0).all()
    assert_close(outputs, run(layers[0], x, x, attention_mask=mask), tolerance=1e-3)


@pytest.mark.parametrize(("length", "index"), [(1, 5), (3, 4), (12, 0)])
def test_attention_with_a_cache(pair, length, index):
    theirs, ours = self_attention_pair(pair)
    x, cache = normal(3, length, SIZES["hidden_dim"]), normal(3, 2, 12, 4, 8, seed=1)
    mask = np.broadcast_to(index + np.arange(length)[:, None] >= np.arange(12), (3, length, 12))
    options = dict(attention_mask=mask, cache=cache, cache_update_index=index)
    for our, their in zip(run(ours, x, **options), run(theirs, x, x, **options), strict=True):
        assert_close(our, their)
    for our, their in zip(
        run(ours, x, **options, return_attention_scores=True),
        run(theirs, x, x, **options, return_attention_scores=True),
        strict=True,
    ):
        assert_close(our, their)


def test_attention_gradients(pair, inputs):
    theirs, ours = self_attention_pair(pair)
    x, weigh, mask = normal(*SHAPE), normal(*SHAPE, seed=1), attention_mask(inputs)
    by_our_weights, (by_x,) = gradients(ours, weigh, x, attention_mask=mask)
    by_their_weights, (by_query, by_value) = gradients(theirs, weigh, x, x, attention_mask=mask)
    assert_gradients_close([*by_our_weights, by_x], [*by_their_weights, by_query + by_value])


def test_decoder_layer_forward(pair, inputs):
    theirs, ours = (backbone.transformer_layers[0] for backbone in pair)
    x, mask = 0.05 * normal(*SHAPE), inputs["padding_mask"]  # so small that the epsilon of the normalization counts
    assert_close(
        run(ours, x, decoder_padding_mask=mask), run(theirs, x, decoder_padding_mask=mask), where=real_tokens(inputs)
    )


def test_decoder_layer_without_a_padding_mask(pair):
    theirs, ours = (backbone.transformer_layers[0] for backbone in pair)
    x = normal(*SHAPE)
    assert_close(run(ours, x), run(theirs, x))


@pytest.mark.parametrize(("length", "index"), [(1, 5), (3, 4), (12, 0)])
def test_decoder_layer_with_a_cache(pair, length, index):
    theirs, ours = (backbone.transformer_layers[0] for backbone in pair)
    x, cache = normal(3, length, SIZES["hidden_dim"]), normal(3, 2, 12, 4, 8, seed=1)
    options = dict(self_attention_cache=cache, self_attention_cache_update_index=index)
    for our, their in zip(run(ours, x, **options), run(theirs, x, **options), strict=True):
        assert_close(our, their)


def test_decoder_layer_gradients(pair, inputs):
    x, weigh = normal(*SHAPE), normal(*SHAPE, seed=1) * real_tokens(inputs)[..., None]
    (their_weights, (their_x,)), (our_weights, (our_x,)) = (
        gradients(backbone.transformer_layers[0], weigh, x, decoder_padding_mask=inputs["padding_mask"])
        for backbone in pair
    )
    assert_gradients_close([*our_weights, our_x], [*their_weights, their_x])


def test_dropout_acts_in_training_only(pair):
    _, ours = pair
    layer, x = ours.transformer_layers[0], normal(*SHAPE)
    np.testing.assert_array_equal(run(layer, x, training=False), run(layer, x))
    changed = not np.array_equal(run(layer, x, training=True), run(layer, x))
    assert changed == (ours.dropout > 0)


def test_dropout_is_in_keras_hubs_three_places():
    """A rate near 1 silences attention weights, attention output and feed-forward output: nothing but the residual."""
    _, ours = make_pair(dropout=1 - 1e-7)
    x = normal(*SHAPE)
    np.testing.assert_array_equal(run(ours.transformer_layers[0], x, training=True), x)


@pytest.fixture(params=["KerasHub's", "ours"])
def of_either(request):
    """Picks from a pair: what is true of dropout in KerasHub's layer is true in ours."""
    return lambda pair: pair[["KerasHub's", "ours"].index(request.param)]


def test_dropout_of_attention_weights(of_either):
    """A quarter of the weights becomes 0, the rest 4/3 of what it was; each is seen, as the values are unit vectors."""
    rate, length = 0.25, 12
    sizes = dict(num_layers=2, num_heads=1, hidden_dim=length, dropout=rate)
    _, ours = layers = self_attention_pair(make_pair(**sizes))
    unit, no_bias = np.eye(length), np.zeros((1, length))
    ours.query_dense.set_weights([0 * unit[:, None], no_bias])  # so that a query gives each key the same
    ours.value_dense.set_weights([unit[:, None], no_bias])
    ours.output_dense.set_weights([unit[None], no_bias[0]])
    copy_weights(ours, layers[0])
    layer, x = of_either(layers), np.broadcast_to(np.eye(length, dtype="float32"), (100, length, length))
    arguments = (x,) if layer is ours else (x, x)
    mask = np.broadcast_to(np.tril(np.ones((length, length), bool)), x.shape)
    seen = np.asarray(layer(*arguments, attention_mask=mask, training=True))  # (100, T, S)
    whole = np.asarray(layer(*arguments, attention_mask=mask, training=False))
    np.testing.assert_allclose(whole[0], np.tril(1 / np.arange(1, 13)[:, None] * np.ones(12)), atol=1e-6)
    kept = seen != 0
    np.testing.assert_allclose(seen[kept], whole[kept] / (1 - rate), rtol=1e-5)
    assert kept[mask].mean() == pytest.approx(1 - rate, abs=0.025)  # of 7800 weights: five standard deviations


def test_dropout_of_what_is_added_to_the_stream(of_either):
    """Attention adds 1 and feed-forward 10, each dropped on its own before the addition: the stream is never scaled."""
    rate = 0.25
    theirs, ours = layers = [model.transformer_layers[0] for model in make_pair(dropout=rate)]
    for dense, bias in ((ours.self_attention.output_dense, 1.0), (ours.feedforward_output_dense, 10.0)):
        dense.set_weights([np.zeros(dense.kernel.shape), np.full(dense.bias.shape, bias)])
    copy_weights(ours, theirs)
    x = normal(*SHAPE)
    added = np.asarray(of_either(layers)(x, training=True)) - x
    kept = 1 / (1 - rate)
    for value, share in ((0, 1 / 16), (kept, 3 / 16), (10 * kept, 3 / 16), (11 * kept, 9 / 16)):
        assert np.isclose(added, value, atol=1e-4).mean() == pytest.approx(share, abs=0.07)  # of 1152 numbers
    assert np.isclose(added[..., None], kept * np.array([0, 1, 10, 11]), atol=1e-4).any(axis=-1).all()


# The whole stack


def test_backbone_forward(pair, inputs):
    theirs, ours = pair
    assert_close(run(ours, inputs), run(theirs, inputs), where=real_tokens(inputs))


def test_backbone_forward_on_one_token_and_on_the_longest_sequence(pair):
    theirs, ours = pair
    for length in (1, SIZES["max_sequence_length"]):
        inputs = make_inputs((length,), length)
        assert_close(run(ours, inputs), run(theirs, inputs))


def test_reversed_token_embedding_gives_keras_hubs_logits(pair, inputs):
    theirs, ours = (backbone.token_embedding(run(backbone, inputs), reverse=True) for backbone in pair)
    assert ours.shape == (3, 12, SIZES["vocabulary_size"])
    assert_close(ours, theirs, where=real_tokens(inputs))


def test_backbone_gradients(pair, inputs):
    weigh = normal(*SHAPE) * real_tokens(inputs)[..., None]
    theirs, ours = (gradients(backbone, weigh, inputs=inputs)[0] for backbone in pair)
    assert_gradients_close(ours, theirs)


def test_padding_tokens_never_change_a_real_token(pair, inputs):
    _, ours = pair
    other = {**inputs, "token_ids": np.where(real_tokens(inputs), inputs["token_ids"], 7)}
    assert_close(run(ours, other), run(ours, inputs), tolerance=1e-6, where=real_tokens(inputs))


@pytest.fixture(scope="module", params=HALF_POLICIES)
def half_pair(request):
    return request.param, make_pair(request.param)


def test_half_precision_forward(half_pair, inputs):
    """Neither is the truth: both round each layer's output, so they may differ by a few units in the last place."""
    policy, (theirs, ours) = half_pair
    compute_dtype = keras.dtype_policies.get(policy).compute_dtype
    output, expected = run(ours, inputs), run(theirs, inputs)
    assert (
        keras.backend.standardize_dtype(output.dtype)
        == keras.backend.standardize_dtype(expected.dtype)
        == compute_dtype
    )
    unit = float(ml_dtypes.finfo(compute_dtype).eps)
    assert_close(output, expected, tolerance=8 * unit, where=real_tokens(inputs))
