"""Checks that say what is wrong and why: parity with a reference, and the exercises of each chapter."""

from optbook.checks import (
    attention,
    backbone,
    decoder,
    embeddings,
    generation,
    masks,
    presets,
    reading,
    tokens,
    training,
)
from optbook.checks._core import NotYet, parity

__all__ = [
    "NotYet",
    "attention",
    "embeddings",
    "generation",
    "backbone",
    "masks",
    "parity",
    "decoder",
    "presets",
    "reading",
    "tokens",
    "training",
]
