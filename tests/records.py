"""Attention records made up for the tests of pictures: every map different, masks obeyed as a decoder obeys them."""

import numpy as np

from optbook import AttentionRecord

WORDS = ["</s>", "The", "␣old", "␣house", "␣was", "␣$1", "⟨E2⟩", "漢", "⏎", "␣$2", "␣but", "."]


def make_record(layers=(0, 1), heads=(0, 1, 2, 3), lengths=(8,), length=8, side="right"):
    """Rows of the given real lengths, padded on one side to ``length``; the numbers are the same on every machine."""
    mask = np.zeros((len(lengths), length), dtype=bool)
    for row, real in enumerate(lengths):
        mask[row, slice(0, real) if side == "right" else slice(length - real, length)] = True
    shape = (len(layers), len(lengths), len(heads), length, length)
    values = np.arange(np.prod(shape), dtype="float64").reshape(shape)
    raw = np.sin(values * 12.9898) ** 8 + 0.02  # looks random, a few large
    visible = np.tril(np.ones((length, length), dtype=bool)) & mask[None, :, None, None, :]
    raw = np.where(visible, raw, 0.0)
    total = raw.sum(axis=-1, keepdims=True)
    weights = np.divide(raw, total, out=np.zeros_like(raw), where=total > 0).astype("float32")
    tokens = [
        [WORDS[t % len(WORDS)] if mask[row, t] else "<pad>" for t in range(length)] for row in range(len(lengths))
    ]
    ids = np.where(mask, 5, 1).astype("int32")
    positions = np.broadcast_to(np.arange(length, dtype="int32"), mask.shape)
    return AttentionRecord(
        weights=weights,
        layers=tuple(layers),
        heads=tuple(heads),
        tokens=tokens,
        padding_mask=mask,
        token_ids=ids,
        positions=positions,
    )
