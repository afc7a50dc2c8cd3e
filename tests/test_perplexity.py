"""Perplexity: Hugging Face's windows and numbers, one program for all of them, the text of the package."""

import gc
import math
import weakref
from pathlib import Path

import keras_hub
import numpy as np
import pytest

import optbook
from optbook import _programs, evaluation
from optbook.evaluation import HELD_OUT_TEXT, token_losses

TEXT = "She looked up, and saw that the old house was empty.\nIt had been cold for years. — Zoë"
WINDOWS = [(24, 24), (24, 12), (24, 7), (16, 5)]


@pytest.fixture(scope="module")
def lm():
    return optbook.causal_lm()


@pytest.fixture(scope="module")
def losses_by_transformers():
    with np.load(Path(__file__).parent / "golden" / "hf_perplexity.npz") as file:
        return dict(file)


@pytest.mark.parametrize("max_length, stride", WINDOWS)
def test_every_window_loses_what_it_does_in_transformers(
    golden, golden_backbone, losses_by_transformers, max_length, stride
):
    variant = "hf_opt" if golden_backbone.normalize_first else "hf_opt_350m"
    of = {
        name: losses_by_transformers[f"{variant}/{max_length}/{stride}/{name}"]
        for name in ("losses", "predicted", "perplexity", "weighted_as_page")
    }
    token_ids = losses_by_transformers["token_ids"]
    lm = keras_hub.models.OPTCausalLM(golden_backbone, preprocessor=None)
    ours, counted = token_losses(lm, token_ids, stride, max_length)
    ours[~counted] = np.nan
    ends = np.minimum(np.arange(len(of["losses"])) * stride + max_length, len(token_ids))
    assert ends[-1] == len(token_ids)
    windows = np.split(ours, ends[:-1])
    np.testing.assert_allclose([np.nanmean(window) for window in windows], of["losses"], rtol=1e-5)
    np.testing.assert_array_equal([np.isfinite(window).sum() for window in windows], of["predicted"])
    np.testing.assert_allclose(math.exp(np.nanmean(ours)), of["perplexity"], rtol=1e-4)
    weights = np.diff(ends, prepend=0) - 1
    page = math.exp(np.average([np.nanmean(window) for window in windows], weights=weights))
    np.testing.assert_allclose(page, of["weighted_as_page"], rtol=1e-4)


def test_a_short_text_is_predicted_as_its_logits_say(lm):
    tokenizer = lm.preprocessor.tokenizer
    token_ids = np.array([[2, *tokenizer(TEXT)]], "int32")
    logits = np.asarray(lm({"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)}), "float64")[0, :-1]
    likelihood = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    nats = -likelihood[np.arange(len(logits)), token_ids[0, 1:]]
    result = optbook.perplexity(lm, TEXT)
    assert result.tokens == token_ids.size - 1 == len(tokenizer(TEXT))
    assert result.nats_per_token == pytest.approx(nats.mean(), rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(nats.mean()), rel=1e-4)
    assert result.bits_per_byte == pytest.approx(nats.sum() / math.log(2) / len(TEXT.encode()), rel=1e-5)


def test_bytes_are_those_of_the_predicted_tokens(lm):
    """Where windows do not overlap, the first token of each is left out, and so are its bytes."""
    tokenizer = lm.preprocessor.tokenizer
    token_ids = np.array([2, *tokenizer(TEXT)], "int32")
    losses, counted = token_losses(lm, token_ids, 8, 8)
    left_out = np.arange(0, len(token_ids), 8)
    assert np.flatnonzero(~counted).tolist() == left_out.tolist()
    missing = sum(len(optbook.tokens.token_bytes(tokenizer, token_id)) for token_id in token_ids[left_out])
    result = optbook.perplexity(lm, TEXT, stride=8, max_length=8)
    assert missing > 0 and result.tokens == len(token_ids) - len(left_out)
    bits = losses[counted].sum() / math.log(2)
    assert result.bits_per_byte == pytest.approx(bits / (len(TEXT.encode()) - missing), rel=1e-5)


def test_a_model_that_computes_nothing_is_not_passed_over():
    lm = optbook.causal_lm()
    table = np.array(lm.backbone.embeddings.position_embedding.embeddings.value)
    table[20] = np.nan
    lm.backbone.embeddings.position_embedding.embeddings.assign(table)
    assert math.isnan(optbook.perplexity(lm, TEXT).perplexity)


@pytest.mark.filterwarnings("error")
def test_the_perplexity_of_a_model_that_diverged_is_infinite(lm):
    diverged = keras_hub.models.OPTCausalLM(lm.backbone.from_config(lm.backbone.get_config()), lm.preprocessor)
    norm = diverged.backbone.layer_norm
    norm.gamma.assign(np.full(norm.gamma.shape, 1e6))
    found = optbook.perplexity(diverged, TEXT)
    assert found.perplexity == math.inf and 709 < found.nats_per_token < math.inf


def test_keras_hubs_backbone_loses_the_same(lm):
    folder = optbook.presets.preset_folder(optbook.presets.DEFAULT)
    theirs = keras_hub.models.OPTCausalLM(
        keras_hub.models.OPTBackbone.from_preset(str(folder)), preprocessor=lm.preprocessor
    )
    assert optbook.perplexity(theirs, TEXT).perplexity == pytest.approx(
        optbook.perplexity(lm, TEXT).perplexity, rel=1e-4
    )


def test_all_windows_share_a_program_whatever_the_stride(lm):
    optbook.perplexity(lm, TEXT, max_length=16, stride=16)
    before = _programs._compiled._cache_size()
    optbook.perplexity(lm, TEXT, max_length=16, stride=5)
    optbook.perplexity(lm, TEXT[:-10], max_length=16)
    assert _programs._compiled._cache_size() == before


def test_without_a_stride_it_is_half_the_window_and_without_a_window_all_positions(lm):
    text = TEXT * 9
    assert optbook.perplexity(lm, text) == optbook.perplexity(lm, text, stride=64, max_length=128)
    assert optbook.perplexity(lm, text, max_length=31) == optbook.perplexity(lm, text, stride=15, max_length=31)


def test_the_packages_text_is_the_default_and_the_preset_predicts_it_as_its_card_says(lm):
    text = HELD_OUT_TEXT.read_text(encoding="utf-8")
    assert 50_000 < len(text.encode()) <= 60_000 and text.endswith("\n")
    result = optbook.perplexity(lm, stride=128)
    assert result == optbook.perplexity(lm, text, stride=128)
    # The card has 1.51 and 1.46 bits per byte for the two sources, windows of 128 tokens.
    assert 1.44 < result.bits_per_byte < 1.53


def test_the_script_of_the_packages_text_takes_whole_lines():
    from stories import excerpt

    lines = [f"line {number} of a text" for number in range(9000)]
    text = excerpt(lines, 29_000)
    assert "\n".join(lines).startswith(text) and text.endswith("\n")
    assert 28_970 < len(text) <= 29_000


def test_no_compiled_program_keeps_a_model_alive():
    lm = optbook.causal_lm()
    optbook.perplexity(lm, TEXT)
    alive = weakref.ref(lm)
    del lm
    gc.collect()
    assert alive() is None


def test_a_long_run_shows_its_progress(lm, monkeypatch, capsys):
    optbook.perplexity(lm, TEXT, max_length=16, stride=16)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(evaluation, "LONG", 0)
    optbook.perplexity(lm, TEXT, max_length=16, stride=16)
    assert "perplexity: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"text": ""}, ValueError, "no tokens"),
        ({"text": "</s>a", "max_length": 2, "stride": 2}, ValueError, "no tokens to predict"),
        ({"text": Path("text.txt")}, TypeError, "content of a file"),
        ({"stride": 129}, ValueError, "stride must be at most max_length, 128"),
        ({"stride": 0}, ValueError, "stride must be at least 1"),
        ({"max_length": 129}, ValueError, "2 … 128"),
        ({"max_length": 1}, ValueError, "2 … 128"),
        ({"max_length": 8.0}, TypeError, "max_length must be an int"),
    ],
)
def test_bad_input_is_answered_in_one_line(lm, arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        optbook.perplexity(lm, **{"text": TEXT, **arguments})
    assert "\n" not in str(caught.value)


def test_ids_that_the_model_does_not_have_are_refused(lm):
    large = keras_hub.models.OPTCausalLMPreprocessor(optbook.tokenizer("opt"), sequence_length=128)
    with pytest.raises(ValueError, match="token_ids must lie in 0 … 2047"):
        optbook.perplexity(keras_hub.models.OPTCausalLM(lm.backbone, preprocessor=large), "Hello world")


def test_a_model_without_text_is_refused(lm):
    with pytest.raises(TypeError, match="with a preprocessor"):
        optbook.perplexity(lm.backbone, TEXT)
