"""The checks of chapter 10 accept right answers and name the misconception behind the usual wrong ones."""

import json
from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest
from scipy.special import log_softmax

import optbook
from optbook import presets
from optbook.checks import NotYet
from optbook.checks import training as checks

GOLDEN = json.loads((Path(__file__).parent / "golden" / "hf_loss.json").read_text())


def losses_of(logits, token_ids, shift=1):
    picked = np.take_along_axis(log_softmax(logits, axis=-1)[:, : -shift or None], token_ids[:, shift:, None], axis=-1)
    return -picked[..., 0]


def mean(losses, weights):
    return np.average(losses, weights=weights)


def next_token_loss(logits, token_ids, mask):
    return mean(losses_of(logits, token_ids), mask[:, 1:])


def in_place(logits, token_ids, mask):
    logits -= logits.max(axis=-1, keepdims=True)
    return next_token_loss(logits, token_ids, mask)


def backward(logits, token_ids, mask):
    picked = np.take_along_axis(log_softmax(logits, axis=-1)[:, 1:], token_ids[:, :-1, None], axis=-1)[..., 0]
    return mean(-picked, mask[:, :-1])


def by_rows(logits, token_ids, mask):
    return np.mean([mean(row, real) for row, real in zip(losses_of(logits, token_ids), mask[:, 1:])])


def not_normalized(logits, token_ids, mask):
    return mean(-np.take_along_axis(logits[:, :-1], token_ids[:, 1:, None], axis=-1)[..., 0], mask[:, 1:])


def by_exponentials(logits, token_ids, mask):
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    picked = np.take_along_axis(probabilities[:, :-1], token_ids[:, 1:, None], axis=-1)[..., 0]
    return mean(-np.log(picked), mask[:, 1:])


def from_probabilities(logits, token_ids, mask):
    losses = keras.losses.sparse_categorical_crossentropy(token_ids[:, 1:], logits[:, :-1])
    return mean(np.asarray(losses), mask[:, 1:])


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16, "float64", "O"])
def test_next_token_loss_accepts_other_numbers(dtype):
    short = np.dtype(dtype).type if dtype != "O" else float
    assert checks.next_token_loss(lambda *batch: short(next_token_loss(*batch))).startswith("right")


def test_next_token_loss_accepts_the_right_function():
    assert checks.next_token_loss(next_token_loss).startswith("right: two batches")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda z, ids, mask: mean(losses_of(z, ids, 0), mask), "without the shift"),
        (lambda z, ids, mask: mean(losses_of(z, ids, 2), mask[:, 2:]), "shifted twice"),
        (backward, "the wrong way"),
        (lambda z, ids, mask: losses_of(z, ids).mean(), "padding is counted"),
        (lambda z, ids, mask: (losses_of(z, ids) * mask[:, 1:]).mean(), "divided by all positions"),
        (lambda z, ids, mask: mean(losses_of(z, ids), mask[:, :-1]), "the mask of the inputs"),
        (by_rows, "a mean of the rows' means"),
        (lambda z, ids, mask: (losses_of(z, ids) * mask[:, 1:]).sum(), "this is the sum"),
        (lambda *batch: next_token_loss(*batch) / np.log(2), "this is in bits"),
        (lambda *batch: -next_token_loss(*batch), "the sign is wrong"),
        (lambda *batch: np.exp(next_token_loss(*batch)), "this is the perplexity"),
        (lambda z, ids, mask: -np.log(mean(np.exp(-losses_of(z, ids)), mask[:, 1:])), "before the logarithm"),
        (not_normalized, "have not been normalized"),
        (in_place, "changed what it was given"),
        (lambda z, ids, mask: losses_of(z, ids), "a loss is one number"),
        (lambda z, ids, mask: 7.0, "but your function says 7.0000"),
        (by_exponentials, "the exponential of large ones overflows"),
        (from_probabilities, "tell Keras from_logits=True"),
        (lambda z, ids, mask: (losses_of(z, ids) * mask[:, 1:]).sum() / mask.sum(), "divided by mask.sum"),
        (lambda z, ids, mask: None, "nothing written yet"),
        (lambda z, ids, mask: mean(losses_of(z, ids), mask), "stopped in the line"),
    ],
)
def test_next_token_loss_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        checks.next_token_loss(wrong)


def perplexity(losses, is_real):
    return np.exp(losses[is_real].mean())


def test_perplexity_accepts_the_right_function():
    assert checks.perplexity(perplexity).startswith("right: the perplexity of three rows")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda losses, real: 2 ** losses[real].mean(), "2 to the power of nats"),
        (lambda losses, real: np.exp(losses[real]).mean(), "exp before the mean"),
        (lambda losses, real: np.exp(losses.mean()), "padding is counted"),
        (lambda losses, real: np.exp((losses * real).mean()), "divided by all positions"),
        (lambda losses, real: np.exp(losses[real].sum()), "exp of the sum"),
        (lambda losses, real: np.exp(-losses[real].mean()), "one over the perplexity"),
        (lambda losses, real: losses[real].mean(), "this is the mean loss"),
        (lambda losses, real: np.mean([np.exp(x[r].mean()) for x, r in zip(losses, real)]), "rows' perplexities"),
        (lambda losses, real: np.exp(losses), "perplexity is one number"),
        (lambda losses, real: 7.0, "but your function says 7.0000"),
    ],
)
def test_perplexity_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        checks.perplexity(wrong)


def counted(kernels=2, a=1, b=1, layers=None, square=False, wide=False, frozen=False):
    """A function that counts the numbers of LoRA, with mistakes on request."""

    def function(num_layers, hidden_dim, num_heads, rank):
        first = hidden_dim * rank * (1 if square else num_heads)
        second = rank * (hidden_dim if square or wide else hidden_dim // num_heads)
        extra = hidden_dim**2 if frozen else 0
        return kernels * (layers or num_layers) * (a * first + b * second + extra)

    return function


def test_lora_numbers_accepts_the_right_function():
    assert checks.lora_numbers(counted()).startswith("right: 3 sizes")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (counted(wide=True), "B is counted as if"),
        (counted(square=True), "one matrix of hidden_dim"),
        (counted(b=0), "only A"),
        (counted(a=0), "only B"),
        (counted(kernels=1), "query and value: one of them is missing"),
        (counted(kernels=4), "four kernels"),
        (counted(layers=1), "one layer only"),
        (counted(frozen=True), "frozen kernels are counted"),
        (lambda *sizes: 7, "6,528 numbers, but your function says 7"),
    ],
)
def test_lora_numbers_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        checks.lora_numbers(wrong)


def test_the_numbers_of_exercise_3_are_kerashubs():
    backbone = optbook.OPTBackbone(16, num_layers=2, num_heads=4, hidden_dim=8, intermediate_dim=8)
    backbone.enable_lora(3)
    sizes = [np.prod(variable.shape) for variable in backbone.trainable_variables if "lora" in variable.name]
    assert len(sizes) == 8 and counted()(2, 8, 4, 3) == sum(sizes)


def diagnose(loss):
    token_ids = np.array([[2, 3, 4, 5, 6, 7], [2, 7, 1, 1, 1, 1]])
    mask = (token_ids != 1).astype(int)
    sure = 30.0 * np.eye(8)  # logits of a model that is sure of one token
    for shift, verdict in ((0, "not shifted"), (2, "shifted twice")):
        if loss(sure[np.roll(token_ids[:1], -shift, axis=1)], token_ids[:1], mask[:1]) < 10:
            return verdict
    flat = np.zeros((2, 6, 8))
    about_pads = flat.copy()
    about_pads[1, 1:, 1] = -30.0
    if not np.isclose(loss(flat, token_ids, mask), loss(about_pads, token_ids, mask)):
        return "counts padding"
    if not np.isclose(loss(flat, token_ids, mask), np.log(8)):
        return "divides by all positions"
    first_row_known = flat.copy()
    first_row_known[0] = sure[np.roll(token_ids[0], -1)]
    return "sound" if np.isclose(loss(first_row_known, token_ids, mask), np.log(8) / 6, rtol=1e-3) else "averages rows"


def test_diagnose_accepts_the_right_function():
    assert checks.diagnose(diagnose).startswith("right: 6 losses")


def test_the_suspects_are_one_of_each():
    verdicts = [diagnose(loss) for loss in checks.suspects().values()]
    assert sorted(verdicts) == sorted(checks.VERDICTS) and tuple(verdicts) != checks.VERDICTS


@pytest.mark.parametrize(
    ("merged", "message"),
    [
        ({"not shifted": "sound"}, "sure of one token"),
        ({"shifted twice": "not shifted"}, "sure of one token"),
        ({"counts padding": "sound"}, "what the logits say about pads"),
        ({"divides by all positions": "averages rows"}, "logits that are all 0"),
        ({"averages rows": "sound"}, "a long row be predicted well"),
        ({"sound": "fine"}, "answer with one of"),
    ],
)
def test_diagnose_names_the_confusion(merged, message):
    with pytest.raises(NotYet, match=message):
        checks.diagnose(lambda loss: merged.get(diagnose(loss), diagnose(loss)))


@pytest.mark.parametrize("name", ["sentence", "batch"])
def test_the_loss_of_exercise_1_is_hugging_faces(name):
    """On the embedded preset and the texts of the chapters; padding kept out by -100 there, by the mask here."""
    token_ids = np.array(GOLDEN[name]["token_ids"])
    mask = (token_ids != 1).astype("int32")
    lm = optbook.causal_lm(presets.DEFAULT)
    logits = np.asarray(lm({"token_ids": token_ids, "padding_mask": mask}), "float64")
    assert next_token_loss(logits, token_ids, mask) == pytest.approx(GOLDEN[name]["loss"], rel=1e-5)


def test_the_training_text_is_apart_from_the_held_out_text():
    text, held_out = (
        (presets.ASSETS / folder / "text.txt").read_text(encoding="utf-8")
        for folder in ("training_text", "held_out_text")
    )
    assert 190_000 < len(text.encode()) <= 201_000 and text.endswith("\n")
    long = {line for line in text.splitlines() if len(line) > 40}
    assert len(long) > 300 and not long & set(held_out.splitlines())
