"""Bad input is answered at once and in one clear line."""

import dataclasses
import functools
import json

import h5py
import jax
import numpy as np
import pytest
from small_models import INPUTS, SIZES

import optbook
from optbook import attention_numbers, tokens

# isort: split
import keras_hub  # after optbook, which keeps TensorFlow out of it

SIZE_NAMES = list(SIZES)


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A saved folder; tests that spoil it copy it first."""
    folder = tmp_path_factory.mktemp("preset")
    optbook.OPTBackbone(**{**SIZES, "num_layers": 1}).save_to_preset(folder)
    return folder


@pytest.fixture
def spoiled(preset, tmp_path):
    for file in preset.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def assert_one_line(raised):
    message = str(raised.value)
    assert "\n" not in message and len(message) < 300 + len(message.partition(":")[0])


# Sizes and rates


@pytest.mark.parametrize("name", SIZE_NAMES)
@pytest.mark.parametrize("size", [0, -3])
def test_a_size_below_one(name, size):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, but is {size}") as raised:
        optbook.OPTBackbone(**{**SIZES, name: size})
    assert_one_line(raised)


@pytest.mark.parametrize("name", SIZE_NAMES)
@pytest.mark.parametrize("size", [4.0, "4", True, [4]])
def test_a_size_that_is_not_an_int(name, size):
    with pytest.raises(TypeError, match=f"{name} must be an int") as raised:
        optbook.OPTBackbone(**{**SIZES, name: size})
    assert_one_line(raised)


def test_numpy_integers_are_sizes():
    backbone = optbook.OPTBackbone(**{**SIZES, "num_layers": np.int64(1)})
    assert len(backbone.transformer_layers) == 1


def test_hidden_dim_that_heads_do_not_divide():
    message = "hidden_dim must be divisible by num_heads: 32 is not divisible by 5"
    with pytest.raises(ValueError, match=message) as raised:
        optbook.OPTBackbone(**{**SIZES, "num_heads": 5})
    assert_one_line(raised)


def test_an_attention_layer_alone_checks_its_heads():
    with pytest.raises(ValueError, match="30 is not divisible by 4"):
        optbook.layers.CausalSelfAttention(num_heads=4).build((1, 5, 30))


@pytest.mark.parametrize("dropout", [1, 1.0, -0.1, 1.5, float("nan")])
def test_dropout_outside_its_range(dropout):
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), but is") as raised:
        optbook.OPTBackbone(**SIZES, dropout=dropout)
    assert_one_line(raised)


@pytest.mark.parametrize("dropout", ["0.1", None])
def test_dropout_that_is_not_a_number(dropout):
    with pytest.raises(TypeError, match="dropout must be a number, but is"):
        optbook.OPTBackbone(**SIZES, dropout=dropout)


def test_max_sequence_length_none_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="max_sequence_length must be an int: the position table has one") as raised:
        optbook.OPTBackbone(**{**SIZES, "max_sequence_length": None})
    assert_one_line(raised)


# Inputs


def changed(**parts):
    return {**INPUTS["right"], **parts}


BAD_INPUTS = {
    "an id above the vocabulary": (
        changed(token_ids=np.full((3, 12), 61)),
        ValueError,
        r"token_ids must lie in 0 … 60 \(vocabulary_size 61\), but reach from 61 to 61",
    ),
    "a negative id": (changed(token_ids=np.full((3, 12), -1)), ValueError, "token_ids must lie in 0 … 60"),
    "one bad id among good ones": (
        changed(token_ids=np.where(np.arange(36).reshape(3, 12) == 35, 99, 5)),
        ValueError,
        "reach from 5 to 99",
    ),
    "float ids": (
        changed(token_ids=np.ones((3, 12), "float32")),
        TypeError,
        "token_ids must be integers, but are float32",
    ),
    "text as ids": (changed(token_ids=np.full((3, 12), "a")), TypeError, "token_ids must be integers"),
    "a mask of another length": (
        changed(padding_mask=np.ones((3, 11), "int32")),
        ValueError,
        r"padding_mask must have the shape of token_ids, \(3, 12\), but has \(3, 11\)",
    ),
    "a mask of one row": (
        changed(padding_mask=np.ones((1, 12), "int32")),
        ValueError,
        "padding_mask must have the shape",
    ),
    "a mask for attention": (
        changed(padding_mask=np.ones((3, 12, 12), "int32")),
        ValueError,
        "padding_mask must have the shape",
    ),
    "a mask to be added": (
        changed(padding_mask=np.where(INPUTS["right"]["padding_mask"], 0.0, -1e9)),
        ValueError,
        "padding_mask must hold 0 and 1, or False and True, but holds -1000000000.0",
    ),
    "a mask of halves": (changed(padding_mask=np.full((3, 12), 0.5)), ValueError, "padding_mask .* but holds 0.5"),
    "a mask that is not a number": (
        changed(padding_mask=np.full((3, 12), np.nan)),
        ValueError,
        "padding_mask .* but holds nan",
    ),
    "a mask of twos": (changed(padding_mask=np.full((3, 12), 2)), ValueError, "padding_mask .* but holds 2"),
    "a mask of text": (changed(padding_mask=np.full((3, 12), "1")), ValueError, "padding_mask .* but holds 1"),
    "no batch axis": (
        {"token_ids": np.ones(12, "int32"), "padding_mask": np.ones(12, "int32")},
        ValueError,
        r"token_ids must have shape \(batch, T\), but have \(12,\)",
    ),
    "no mask": ({"token_ids": np.ones((3, 12), "int32")}, ValueError, "missing: padding_mask"),
    "no ids": ({"padding_mask": np.ones((3, 12), "int32")}, ValueError, "missing: token_ids"),
    "an empty dict": ({}, ValueError, "missing: token_ids, padding_mask"),
    "ids without a dict": (
        np.ones((3, 12), "int32"),
        ValueError,
        "inputs must be a dict with token_ids and padding_mask",
    ),
    "a sequence too long": (
        {"token_ids": np.ones((1, 25), "int32"), "padding_mask": np.ones((1, 25), "int32")},
        ValueError,
        r"the sequence has 25 tokens, but the position table only 24 rows \(max_sequence_length\)",
    ),
}


@pytest.mark.parametrize("case", list(BAD_INPUTS))
def test_bad_inputs_of_the_backbone(backbone, case):
    inputs, error, message = BAD_INPUTS[case]
    with pytest.raises(error, match=message) as raised:
        backbone(inputs)
    assert_one_line(raised)


def test_the_highest_and_lowest_id_and_a_boolean_mask_are_fine(backbone):
    inputs = {"token_ids": np.array([[0, 60]]), "padding_mask": np.array([[True, True]])}
    assert np.isfinite(np.asarray(backbone(inputs))).all()


WRONG_MASKS = [[[0.0, -1e9]], [[0.5, 1.0]], [[float("nan"), 1.0]], [[2, 1]], [[-1, 1]]]
RECORD = optbook.AttentionRecord(
    weights=np.tril(np.ones((1, 1, 1, 2, 2), "float32")) / np.array([1, 2], "float32")[:, None],
    layers=(0,),
    heads=(0,),
    tokens=[["a", "b"]],
    padding_mask=np.ones((1, 2), bool),
    token_ids=np.ones((1, 2), "int32"),
    positions=np.array([[0, 1]], "int32"),
)
MASK_DOORS = {
    "the backbone": lambda mask: small_backbone()({"token_ids": np.full((1, 2), 5), "padding_mask": mask}),
    "record_attention": lambda mask: optbook.record_attention(
        small_backbone(), {"token_ids": np.full((1, 2), 5), "padding_mask": mask}
    ),
    "a layer": lambda mask: small_backbone().transformer_layers[0](np.ones((1, 2, 32)), decoder_padding_mask=mask),
    "masks.padding_mask": optbook.masks.padding_mask,
    "masks.combine_masks, padding": lambda mask: optbook.masks.combine_masks(
        optbook.masks.causal_mask(2), padding=mask[:, None]
    ),
    "masks.combine_masks, causal": lambda mask: optbook.masks.combine_masks(mask[None]),
    "visible_keys": lambda mask: attention_numbers.visible_keys(mask[0]),
    "without_first": lambda mask: attention_numbers.without_first(np.eye(2), mask[0]),
    "entropy": lambda mask: attention_numbers.entropy(np.eye(2), mask[0]),
    "plot.masks": lambda mask: optbook.plot.masks(mask, [["a", "b"]]),
    "plot.stages": lambda mask: optbook.plot.stages(
        np.eye(2), np.concatenate([mask, mask]), np.eye(2), ["a", "b"], head_dim=2
    ),
    "plot.piece_rows": lambda mask: optbook.plot.piece_rows({"": ["a", "b"]}, mask=mask),
    "plot.head": lambda mask: optbook.plot.head(dataclasses.replace(RECORD, padding_mask=mask), 0, 0),
    "view": lambda mask: optbook.view(dataclasses.replace(RECORD, padding_mask=mask)),
}


@functools.cache
def small_backbone():
    return optbook.OPTBackbone(**SIZES)


@pytest.mark.parametrize("door", list(MASK_DOORS))
def test_a_mask_holds_zero_and_one_at_every_door(door):
    for dtype in ("bool", "int32", "float32"):
        MASK_DOORS[door](np.array([[1, 0]], dtype))
    for values in WRONG_MASKS:
        with pytest.raises(ValueError, match="must hold 0 and 1, or False and True, but holds") as raised:
            MASK_DOORS[door](np.array(values))
        if door != "a layer":  # Keras adds to what a layer raises the arguments that it was called with
            assert_one_line(raised)


def test_a_mask_of_jax_is_looked_at_too_and_a_compiled_one_is_no_float(backbone):
    additive = jax.numpy.array([[0.0, -1e9]], "bfloat16")
    with pytest.raises(ValueError, match="but holds"):
        optbook.masks.padding_mask(additive)
    with pytest.raises(ValueError, match="must be integers or booleans where it is compiled, but is bfloat16"):
        jax.jit(optbook.masks.padding_mask)(additive)
    assert jax.jit(optbook.masks.padding_mask)(np.array([[1, 0]])).tolist() == [[[True, False]]]


# Text

TEXT_DOORS = {
    "record_attention": optbook.record_attention,
    "record_attention, a list": lambda lm, text: optbook.record_attention(lm, ["a", text]),
    "generate": lambda lm, text: optbook.generate(lm, text, max_new_tokens=2),
    "perplexity": optbook.perplexity,
    "report.text_rows": lambda lm, text: optbook.report.text_rows(lm, text, rows=1, length=2),
}


@functools.cache
def small_lm():
    """It can spell a and b and nothing else."""
    few = keras_hub.models.OPTTokenizer({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5}, [])
    return keras_hub.models.OPTCausalLM(
        small_backbone(), preprocessor=keras_hub.models.OPTCausalLMPreprocessor(few, sequence_length=24)
    )


@pytest.mark.parametrize("door", list(TEXT_DOORS))
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a" * 5 + "xb" * 300, "does not decode: of 'xbxbxbxbxbxbxbxbxbxb' at 5 its tokens give back 'bbbbbb.*'"),
        ("a\udce9", r"is no Unicode text: '\\udce9' at 1 is a lone surrogate"),
    ],
)
def test_a_text_that_cannot_be_spelled_is_refused_at_every_door(door, text, message):
    TEXT_DOORS[door](small_lm(), "ab")
    with pytest.raises(ValueError, match=message) as raised:
        TEXT_DOORS[door](small_lm(), text)
    assert_one_line(raised)


def test_no_text_and_what_is_none():
    tokenizer = small_lm().preprocessor.tokenizer
    with pytest.raises(ValueError, match="there is no text"):
        tokens.tokenize_batch(tokenizer, [])
    with pytest.raises(TypeError, match="text 1 must be a str, but is None"):
        tokens.tokenize_batch(tokenizer, ["a", None])


def test_a_report_refuses_what_is_no_text_and_ids_that_the_model_does_not_have():
    with pytest.raises(TypeError, match="text must be a str"):
        optbook.report.text_rows(small_lm(), ["ab", "ba"], rows=1, length=2)
    with pytest.raises(ValueError, match="rows must be at least 1"):
        optbook.report.text_rows(small_lm(), "ab", rows=0, length=2)
    with pytest.raises(ValueError, match="token_ids must lie in 0 … 60"):
        optbook.report.next_token_logits(small_lm(), np.array([[2, 61]]))
    with pytest.raises(ValueError, match="the sequence has 25 tokens"):
        optbook.report.next_token_logits(small_lm(), np.full((1, 25), 2))


# Presets


def assert_refused(preset, error, message, **kwargs):
    with pytest.raises(error, match=message) as raised:
        optbook.OPTBackbone.from_preset(preset, **kwargs)
    assert_one_line(raised)


def test_an_unknown_preset():
    assert_refused("opt_1t_en", ValueError, "no preset or folder is called 'opt_1t_en'; the names are optbook_700k_en")


def test_a_folder_without_a_config(tmp_path):
    assert_refused(tmp_path, ValueError, "is not a preset: it has no config.json")


def test_a_folder_of_another_model(spoiled):
    config = json.loads((spoiled / "config.json").read_text())
    config["registered_name"] = "keras_hub>GPT2Backbone"
    (spoiled / "config.json").write_text(json.dumps(config))
    assert_refused(spoiled, ValueError, "holds keras_hub>GPT2Backbone, not an OPT backbone")


def test_a_folder_of_hugging_faces(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_layer": 12}')
    assert_refused(tmp_path, ValueError, "holds a model of type 'gpt2', not an OPT")


def test_a_missing_weights_file(spoiled):
    (spoiled / "model.weights.h5").unlink()
    assert_refused(spoiled, FileNotFoundError, "has no model.weights.h5")


def test_a_missing_shard(spoiled):
    path = "/layers/token_and_position_embedding/token_embedding/vars"
    (spoiled / "model.weights.json").write_text(json.dumps({"weight_map": {path: "model_00000.weights.h5"}}))
    assert_refused(spoiled, FileNotFoundError, "has no model_00000.weights.h5")


def test_weights_that_are_missing(spoiled):
    with h5py.File(spoiled / "model.weights.h5", "r+") as file:
        del file["layers/layer_normalization/vars"]
    assert_refused(spoiled, ValueError, "layers/layer_normalization holds 0 arrays where 2 are needed")


def test_weights_of_another_shape(spoiled):
    with h5py.File(spoiled / "model.weights.h5", "r+") as file:
        group = file["layers/transformer_decoder/_self_attention_layer/query_dense/vars"]
        del group["0"]
        group["0"] = np.zeros((32, 2, 16), "float32")
    assert_refused(spoiled, ValueError, r"query_dense has shape \(32, 2, 16\) where the model has \(32, 4, 8\)")


def test_a_position_table_longer_than_the_saved_one(preset):
    assert_refused(preset, ValueError, "24 trained positions; max_sequence_length cannot be 25", max_sequence_length=25)


def test_weights_of_a_smaller_model(preset):
    assert_refused(preset, ValueError, "layers/transformer_decoder_1.* holds 0 arrays", num_layers=2)


def test_a_tokenizer_that_is_not_there(preset):
    with pytest.raises(FileNotFoundError, match="has no tokenizer: .*vocabulary.json is missing"):
        optbook.tokenizer(preset)
