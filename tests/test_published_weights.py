"""The real OPT-125m gives the numbers known of it. Needs Kaggle or Hugging Face: `pytest -m network`."""

import numpy as np
import pytest

import optbook

pytestmark = pytest.mark.network


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
