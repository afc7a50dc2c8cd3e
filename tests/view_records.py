"""Attention records with known numbers for the tests of optbook.view."""

import numpy as np

import optbook

PLAIN = [["</s>", "The", "␣cat", "␣sat", "."], ["</s>", "A", "␣dog", "<pad>", "<pad>"]]
HOSTILE = [["</s>", "</script><script>boom()</script>", '<img src=x onerror="boom()">', "\u2028'\"&quot;", "\\"]]


def make_record(layers=(1, 2), heads=(0, 3, 5), tokens=PLAIN, seed=0):
    """Random causal attention, each row a softmax; ``<pad>`` counts as padding and is never looked at."""
    mask = np.array([[token != "<pad>" for token in row] for row in tokens])
    batch, length = mask.shape
    logits = 2 * np.random.default_rng(seed).standard_normal((len(layers), batch, len(heads), length, length))
    visible = np.tril(np.ones((length, length), bool)) & mask[:, None, None, :]
    weights = np.exp(np.where(visible, logits, -np.inf))
    weights /= weights.sum(axis=-1, keepdims=True)
    positions = np.broadcast_to(np.arange(length, dtype="int32"), (batch, length))
    return optbook.AttentionRecord(weights.astype("float32"), layers, heads, tokens, mask, positions + 4, positions)
