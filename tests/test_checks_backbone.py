"""The checks of chapter 06 accept right answers and name the misconception behind the usual wrong ones."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from optbook import OPTBackbone
from optbook.checks import NotYet
from optbook.checks import backbone as checks


def rebuilt(original, **changes):
    copy = OPTBackbone.from_config({**original.get_config(), **changes})
    copy.set_weights(original.get_weights())
    return copy


def without_one_array(original):
    copy = rebuilt(original)
    copy.layer_norm.gamma.assign(np.ones(12))
    return copy


def into_the_original(original):
    copy = OPTBackbone.from_config(original.get_config())
    original.set_weights(copy.get_weights())
    return copy


def sharing(original):
    return OPTBackboneView(original)


class OPTBackboneView(keras.Model):
    def __init__(self, original):
        super().__init__()
        self.original = original


def sharing_arrays(original):
    copy = OPTBackbone.from_config(original.get_config())
    for new, old in zip(copy.weights, original.weights):
        new.assign(old)
    return copy


def test_rebuild_accepts_a_copy():
    assert checks.rebuild(rebuilt).startswith("right: the same config")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda original: original, "the very same object"),
        (lambda original: None, "nothing written yet"),
        (sharing, "the original's own variables"),
        (lambda original: rebuilt(original, dropout=0.1), "got lost: dropout of"),
        (lambda original: rebuilt(original, dtype="float32"), "got lost: dtype of"),
        (lambda original: rebuilt(original, positions_from_mask=False), "got lost: positions_from_mask"),
        (lambda original: OPTBackbone.from_config(original.get_config()), "fresh random weights"),
        (without_one_array, "1 of 36 arrays were not copied, the first of them .'layer_norm/gamma'"),
        (sharing_arrays, "36 of 36 variables of the copy hold the original's own arrays"),
        (into_the_original, "the original's weights have changed"),
    ],
)
def test_rebuild_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        checks.rebuild(wrong)


def states(backbone, inputs):
    every = [backbone.embed(inputs["token_ids"], inputs["padding_mask"])]
    for layer in backbone.transformer_layers:
        every.append(layer(every[-1], decoder_padding_mask=inputs["padding_mask"]))
    return every


def head(backbone, every):
    return [backbone.token_embedding(state, reverse=True) for state in every]


def lens(backbone, inputs):
    return ops.stack(head(backbone, [backbone.layer_norm(state) for state in states(backbone, inputs)]))


def lens_of_the_model_output(backbone, inputs):
    every = [*states(backbone, inputs)[:-1], backbone(inputs)]
    return head(backbone, [backbone.layer_norm(state) for state in every])


def last_normalized_only(backbone, inputs):
    return head(backbone, [*states(backbone, inputs)[:-1], backbone(inputs)])


def without_mask(backbone, inputs):
    return lens(backbone, {**inputs, "padding_mask": np.ones_like(inputs["padding_mask"])})


def plainly_normalized(backbone, inputs):
    norm = layers.LayerNormalization(epsilon=1e-5)
    return head(backbone, [norm(state) for state in states(backbone, inputs)])


def test_logit_lens_accepts_the_right_function():
    assert checks.logit_lens(lens).startswith("right: 3 readings")
    assert checks.logit_lens(lambda *given: list(lens(*given))).startswith("right: 3 readings")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda backbone, inputs: head(backbone, states(backbone, inputs)), "the final norm is missing"),
        (last_normalized_only, "only the last state"),
        (lens_of_the_model_output, "normalized twice"),
        (without_mask, "padding mask did not reach"),
        (plainly_normalized, "own gamma and beta"),
        (lambda *given: ops.softmax(lens(*given)), "these are probabilities"),
        (lambda *given: ops.log_softmax(lens(*given)), "these are log-probabilities"),
        (lambda *given: ops.argmax(lens(*given), axis=-1), "one id for each token"),
        (lambda *given: lens(*given)[1:], "the embeddings are missing"),
        (lambda *given: lens(*given)[:-1], "the last layer's output is missing"),
        (lambda *given: states(*given), "you returned hidden states"),
        (lambda *given: lens(*given)[0], "the result has shape"),
        (lambda *given: lens(*given)[::-1], "reading 0 of 0 … 2 differs"),
    ],
)
def test_logit_lens_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        checks.logit_lens(wrong)


def sees_the_future(suspect):
    token_ids = np.full((1, 6), 9, "int32")
    changed = token_ids.copy()
    changed[0, -1] = 10
    first, second = (
        np.asarray(suspect({"token_ids": ids, "padding_mask": np.ones_like(ids)})) for ids in (token_ids, changed)
    )
    return not np.allclose(first[:, :-1], second[:, :-1], atol=1e-4)


def equal_with_the_same_weights(suspect, reference):
    inputs = {"token_ids": np.arange(4, 10)[None].astype("int32"), "padding_mask": np.ones((1, 6), "int32")}
    suspect.set_weights(reference.get_weights())
    return np.allclose(suspect(inputs), reference(inputs), atol=1e-3)


def verdict(suspect, reference):
    if len(suspect.weights) != len(reference.weights):
        return "untied head" if len(suspect.weights) > len(reference.weights) else "no final norm"
    if sees_the_future(suspect):
        return "sees the future"
    return "OPT" if equal_with_the_same_weights(suspect, reference) else "post-norm"


def test_diagnose_accepts_the_right_function():
    assert checks.diagnose(verdict).startswith("right: 5 models")


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ("OPT", "only because its weights do"),
        ("no final norm", "two arrays fewer"),
        ("post-norm", "counting cannot tell"),
        ("untied head", "one array more"),
        ("sees the future", "change its last token"),
    ],
)
def test_diagnose_gives_the_clue_that_was_missed(truth, message, monkeypatch):
    order = np.random.default_rng(checks.SEED).permutation(len(checks.VERDICTS))
    labels = {letter: checks.VERDICTS[index] for letter, index in zip("ABCDE", order)}  # in place of the slow models
    monkeypatch.setattr(checks, "suspects", lambda seed: (None, labels))
    answer = "post-norm" if truth != "post-norm" else "OPT"
    with pytest.raises(NotYet, match=f"taken for '{answer}'.*{message}"):
        checks.diagnose(lambda suspect, reference: answer if suspect == truth else suspect)


def test_diagnose_lists_the_answers():
    with pytest.raises(NotYet, match="answer with one of .OPT., .no final norm"):
        checks.diagnose(lambda suspect, reference: "fine")


def test_one_of_the_suspects_of_the_chapter_is_opt():
    reference, models = checks.suspects()
    assert sorted(verdict(model, reference) for model in models.values()) == sorted(checks.VERDICTS)
