"""The published presets are what is known of them. Needs Kaggle and Hugging Face: `make test-published`."""

import numpy as np
import pytest

import optbook
from optbook.evaluation import HELD_OUT_TEXT
from optbook.presets import PUBLISHED, preset_folder, read_config
from optbook.presets.table import published_config

pytestmark = pytest.mark.network
AT_FACEBOOK = [f"hf://facebook/opt-{size}" for size in (*PUBLISHED.values(), "350m")]


@pytest.mark.parametrize("handle", [*PUBLISHED, *(f"hf://keras/{name}" for name in PUBLISHED), *AT_FACEBOOK])
def test_the_hubs_have_what_the_table_says(handle):
    """The configuration and the tokenizer; no weights are downloaded."""
    config, known = read_config(preset_folder(handle, weights=False)), published_config(handle)
    assert {name: config[name] for name in known} == known
    assert list(optbook.tokenizer(handle)("I like you.")) == [100, 101, 47, 4]


def test_the_larger_reads_better():
    """As far as this machine's memory goes."""
    text, found = HELD_OUT_TEXT.read_text(encoding="utf-8")[:20_000], []
    for name in PUBLISHED:
        try:
            lm = optbook.causal_lm(name, dtype="bfloat16")
        except MemoryError:
            break
        found.append(optbook.perplexity(lm, text).nats_per_token)
        del lm  # before the next is loaded
    assert len(found) > 1
    assert found == sorted(found, reverse=True), found


@pytest.mark.parametrize("handle", ["opt_125m_en", "hf://keras/opt_125m_en", "hf://facebook/opt-125m"])
def test_real_opt_125m(handle):
    lm = optbook.causal_lm(handle, dtype="float32")
    token_ids = np.array([[2, *np.asarray(lm.preprocessor.tokenizer("Hello my name is"))]])
    logits = np.asarray(lm({"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)}))[0]
    assert logits.argmax(axis=-1).tolist() == [100, 6, 766, 16, 1236]
    log_probabilities = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    loss = -np.mean([log_probabilities[position, token] for position, token in enumerate(token_ids[0, 1:])])
    assert loss == pytest.approx(4.0513, abs=2e-4)
    assert np.exp(loss) == pytest.approx(57.473, abs=0.02)
