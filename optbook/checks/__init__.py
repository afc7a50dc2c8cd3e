"""Checks that say what is wrong and why: parity with a reference, and the exercises of each chapter."""

from optbook.checks import decoder, masks
from optbook.checks._core import NotYet, parity

__all__ = ["NotYet", "masks", "parity", "decoder"]
