"""Checks that say what is wrong and why: parity with a reference, and the exercises of each chapter."""

from optbook.checks import attention, backbone, decoder, embeddings, masks, presets, reading, tokens
from optbook.checks._core import NotYet, parity

__all__ = [
    "NotYet",
    "attention",
    "embeddings",
    "backbone",
    "masks",
    "parity",
    "decoder",
    "presets",
    "reading",
    "tokens",
]
