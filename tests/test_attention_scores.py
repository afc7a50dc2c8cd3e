"""The scores of any layer: rows sum to 1, forbidden keys get exactly 0, empty rows stay finite; and their record."""

import dataclasses

import keras
import keras_hub
import numpy as np
import pytest
from small_models import INPUTS, SIZES, assert_close, make_pair

import optbook

DTYPES = ("float32", "float16", "bfloat16")


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_layer_says_beforehand_what_it_returns(dtype):
    """Symbolic inputs, as of a functional model, with and without what a layer returns on top."""
    layer = optbook.layers.DecoderLayer(8, 2, dtype=dtype)
    sequence, mask = keras.Input((5, 4)), keras.Input((5,), dtype="int32")
    for args, options in [((), {}), ((mask,), {}), ((mask,), {"return_attention_scores": True})]:
        told = keras.tree.flatten(layer(sequence, *args, **options))
        real = keras.tree.flatten(layer(np.ones((2, 5, 4)), *[np.ones((2, 5), "int32") for _ in args], **options))
        assert [(spec.shape[1:], spec.dtype) for spec in told] == [(one.shape[1:], one.dtype.name) for one in real]


@pytest.fixture(scope="module", params=DTYPES)
def model(request):
    """Our backbone in one number type."""
    return make_pair(request.param)[1]


def allowed_keys(inputs):
    """Causal and padding, (batch, 1, T, S), in plain numpy."""
    length = inputs["token_ids"].shape[1]
    causal = np.tril(np.ones((length, length), bool))
    return causal & inputs["padding_mask"].astype(bool)[:, None, None, :]


def test_rows_over_allowed_keys_sum_to_one_and_forbidden_keys_get_nothing(model, inputs):
    scores = optbook.record_attention(model, inputs).weights
    assert scores.shape == (3, 3, 4, 12, 12) and scores.dtype == np.float32
    allowed = np.broadcast_to(allowed_keys(inputs), scores.shape[1:])
    assert (scores >= 0).all()
    assert (scores[:, ~allowed] == 0).all()
    has_a_key = allowed.any(axis=-1)
    np.testing.assert_allclose(scores.sum(axis=-1)[:, has_a_key], 1, atol=1e-5)


def test_rows_without_any_key_are_zero_and_the_output_is_finite(model):
    inputs = INPUTS["left"]
    scores = optbook.record_attention(model, inputs).weights
    empty = ~np.broadcast_to(allowed_keys(inputs), scores.shape[1:]).any(axis=-1)
    assert empty.sum() == (5 + 9) * 4
    assert (scores[:, empty] == 0).all()
    assert np.isfinite(np.asarray(model(inputs)).astype("float32")).all()


def test_a_row_of_padding_alone_is_finite(model):
    inputs = {"token_ids": np.ones((1, 12), "int32"), "padding_mask": np.zeros((1, 12), "int32")}
    assert (optbook.record_attention(model, inputs).weights == 0).all()
    assert np.isfinite(np.asarray(model(inputs)).astype("float32")).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_scores_stay_finite_in_the_softmax(dtype):
    """Scores near float16's largest number: one key takes all, none becomes infinite or NaN."""
    layer = optbook.layers.CausalSelfAttention(num_heads=1, dtype=dtype)
    layer.build((1, 4, 4))
    for projection in (layer.query_dense, layer.key_dense):
        set_kernel(projection, np.eye(4))
    x = np.full((1, 4, 4), 150, dtype) * np.array([1, 0, -1, 1], dtype)[None, :, None]
    mask = np.tril(np.ones((1, 4, 4), bool))
    _, scores = layer(x, attention_mask=mask, return_attention_scores=True)
    expected = [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0.5, 0, 0, 0.5]]
    np.testing.assert_allclose(scores[0, 0], expected, atol=1e-6)


def test_scores_far_below_zero_leave_forbidden_keys_nothing(inputs):
    """Real scores of −200 and less: an allowed key still takes all, in every layer."""
    _, model = make_pair()
    for layer in model.transformer_layers:
        layer.self_attention.query_dense.bias.assign(np.full((4, 8), 30.0))
        layer.self_attention.key_dense.bias.assign(np.full((4, 8), -30.0))
    scores = optbook.record_attention(model, inputs).weights
    allowed = np.broadcast_to(allowed_keys(inputs), scores.shape[1:])
    assert (scores[:, ~allowed] == 0).all()
    np.testing.assert_allclose(scores.sum(axis=-1)[:, allowed.any(axis=-1)], 1, atol=1e-5)


def test_any_layer_alone_gives_its_scores(backbone):
    x = np.random.default_rng(0).standard_normal((3, 12, SIZES["hidden_dim"])).astype("float32")
    for layer in backbone.transformer_layers:
        output, scores = layer(x, return_attention_scores=True)
        assert scores.shape == (3, 4, 12, 12)
        assert_close(output, layer(x))


@pytest.mark.parametrize("batch", ["unpadded", "right"])
def test_record_equals_hugging_faces_maps(golden, golden_backbone, batch):
    inputs = {name: golden[f"{batch}/{name}"] for name in ("token_ids", "padding_mask")}
    assert_record_equals(optbook.record_attention(golden_backbone, inputs), golden, batch)


def test_record_follows_the_backbones_positions(golden, golden_backbone_mask_positions):
    inputs = {name: golden[f"left/{name}"] for name in ("token_ids", "padding_mask")}
    assert_record_equals(optbook.record_attention(golden_backbone_mask_positions, inputs), golden, "left")


def assert_record_equals(record, golden, batch):
    real = golden[f"{batch}/padding_mask"].astype(bool)
    np.testing.assert_array_equal(record.padding_mask, real)
    for ours, theirs in zip(record.weights, golden[f"{batch}/attention_maps"], strict=True):
        assert_close(np.swapaxes(ours, 1, 2), np.swapaxes(theirs, 1, 2), where=real)


def test_selected_layers_and_heads_are_those_of_the_full_record(backbone):
    inputs = INPUTS["right"]
    full = optbook.record_attention(backbone, inputs)
    chosen = optbook.record_attention(backbone, inputs, layers=[2, 0], heads=[3, 1])
    assert (chosen.layers, chosen.heads) == ((2, 0), (3, 1))
    assert (full.layers, full.heads) == ((0, 1, 2), (0, 1, 2, 3))
    assert_close(chosen.weights, full.weights[[2, 0]][:, :, [3, 1]], tolerance=1e-6)
    assert_close(chosen.map(0, 3, row=1), full.weights[0, 1, 3], tolerance=1e-6)
    assert not np.array_equal(chosen.map(0, 3, row=1), chosen.map(0, 1, row=1))


def test_recording_sees_changed_weights(backbone):
    """The weights are arguments of the compiled pass, not constants in it."""
    inputs, kernel = INPUTS["right"], backbone.transformer_layers[0].self_attention.key_dense.kernel
    before, old = optbook.record_attention(backbone, inputs).weights, np.asarray(kernel)
    kernel.assign(-old)
    after = optbook.record_attention(backbone, inputs).weights
    kernel.assign(old)
    assert np.abs(after - before).max() > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(layers=[3]), "there is no layer 3: the model has 3, numbered 0 to 2"),
        (dict(layers=[-1]), "there is no layer -1"),
        (dict(heads=[4]), "there is no head 4: the model has 4, numbered 0 to 3"),
    ],
)
def test_a_layer_or_head_that_is_not_there(backbone, options, message):
    with pytest.raises(ValueError, match=message):
        optbook.record_attention(backbone, INPUTS["right"], **options)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((1, 0, 0), r"layer 1, head 0 is not in this record of layers \(2,\) and heads \(0, 3\)"),
        ((2, 1, 0), "layer 2, head 1 is not in this record"),
        ((2, 0, 3), "row 3 is not in this record of 3 sequences"),
        ((2, 0, -1), "row -1 is not in this record"),
    ],
)
def test_a_map_that_is_not_in_the_record(backbone, place, message):
    record = optbook.record_attention(backbone, INPUTS["right"], layers=[2], heads=[0, 3])
    with pytest.raises(ValueError, match=message):
        record.map(*place)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(token_ids=np.full((3, 12), 61)), ValueError, "token_ids must lie in 0 … 60"),
        (dict(token_ids=np.ones((3, 12), "float32")), TypeError, "token_ids must be integers"),
        (dict(padding_mask=np.ones((3, 11), "int32")), ValueError, "padding_mask must have the shape of token_ids"),
    ],
)
def test_bad_inputs_are_answered_as_by_the_backbone(backbone, change, error, message):
    with pytest.raises(error, match=message):
        optbook.record_attention(backbone, {**INPUTS["right"], **change})


def test_text_without_a_tokenizer(backbone):
    with pytest.raises(ValueError, match="give record_attention the OPTCausalLM"):
        optbook.record_attention(backbone, "It is a truth")


def test_text_is_tokenized_padded_and_labelled():
    tokenizer = optbook.tokenizer()
    backbone = optbook.OPTBackbone(**{**SIZES, "vocabulary_size": tokenizer.vocabulary_size()})
    preprocessor = keras_hub.models.OPTCausalLMPreprocessor(tokenizer, sequence_length=24)
    lm = keras_hub.models.OPTCausalLM(backbone, preprocessor=preprocessor)
    record = optbook.record_attention(lm, ["It is", "a"], layers=[0])
    assert record.tokens[0][:2] == ["</s>", "It"]
    assert record.tokens[1][:3] == ["</s>", "a", "<pad>"]
    assert record.padding_mask[0].all()
    assert record.padding_mask[1].sum() == 2
    assert (record.weights[:, 1, :, :, 2:] == 0).all()
    alone = optbook.record_attention(lm, "a", layers=[0])
    assert alone.weights.shape == (1, 1, 4, 2, 2)
    assert_close(record.weights[:, 1:, :, :2, :2], alone.weights)


def test_ids_are_their_own_labels_without_a_tokenizer(backbone):
    record = optbook.record_attention(backbone, INPUTS["right"], layers=[0])
    assert record.tokens[2][0] == str(INPUTS["right"]["token_ids"][2, 0])


def test_a_record_cannot_be_changed_by_accident(backbone):
    record = optbook.record_attention(backbone, INPUTS["right"], layers=[0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.layers = (1,)


def test_head_scores_of_a_hand_made_head():
    """A head that looks one position back, whatever stands there, is a previous-token head and nothing else."""
    length, hidden_dim = 16, 32
    sizes = dict(vocabulary_size=61, num_layers=1, num_heads=1, hidden_dim=hidden_dim, intermediate_dim=4)
    backbone = optbook.OPTBackbone(**sizes, max_sequence_length=length)
    for weight in backbone.weights:
        if weight.name != "gamma":
            weight.assign(np.zeros(weight.shape))
    backbone.embeddings.position_embedding.set_weights([np.eye(length, hidden_dim)])  # one direction per position
    attention = backbone.transformer_layers[0].self_attention
    set_kernel(attention.key_dense, np.eye(hidden_dim))
    set_kernel(attention.query_dense, 3 * np.eye(hidden_dim, k=-1))  # the query at t is the key at t - 1
    scores = optbook.head_scores(backbone, length=length, batch_size=2)
    assert scores["previous_token"].shape == (1, 1)
    assert scores["previous_token"][0, 0] > 0.99
    assert scores["induction"][0, 0] < 0.01
    assert scores["first_token"][0, 0] < 0.01


def set_kernel(projection, matrix):
    """Of a projection with one head; no bias."""
    projection.set_weights([matrix[:, None, :], np.zeros((1, len(matrix)))])
