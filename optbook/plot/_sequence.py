"""One sequence of a record, as the options of the plot functions cut it out; bad input is named here."""

import functools

import numpy as np
from matplotlib import colors

from optbook._validation import check_mask
from optbook.attention import AttentionRecord
from optbook.attention_numbers import visible_keys, without_first
from optbook.plot._labels import PlainLogFormatter

FAINTEST = 1e-4  # where a logarithmic scale begins


def attention_norm(log):
    """Attention on a scale from 0 to 1, the same in every picture; with ``log`` from 0.0001, and less drawn as that."""
    return colors.LogNorm(FAINTEST, 1, clip=True) if log else colors.Normalize(0, 1)


def scale_options(log):
    """Of the colour bar beside it."""
    return {"extend": "min", "format": PlainLogFormatter()} if log else {}


def check_labels(padding_mask, tokens):
    """The mask as a boolean array (batch, T); raises ValueError unless there is a label for each of its entries."""
    real = check_mask("padding_mask", padding_mask)
    if real.ndim != 2:
        raise ValueError(f"a padding mask has shape (batch, T), not {real.shape}.")
    lengths = [len(row) for row in tokens]
    if lengths != [real.shape[1]] * len(real):
        raise ValueError(f"the padding mask has shape {real.shape}, but the rows of tokens have lengths {lengths}.")
    return real


def check_record(record):
    if not isinstance(record, AttentionRecord):
        raise TypeError(f"expected what optbook.record_attention returns, not {type(record).__name__}.")
    if record.padding_mask is None:
        raise ValueError("this record has no padding mask; where nothing is padded it is all ones, (batch, T).")
    batch, length = check_labels(record.padding_mask, record.tokens).shape
    expected = (len(record.layers), batch, len(record.heads), length, length)
    if np.shape(record.weights) != expected:
        raise ValueError(
            f"weights have shape {np.shape(record.weights)}, but layers, tokens and heads ask for {expected}."
        )


def check_window(window, length):
    """(start, stop) of a window of a sequence; all of it when there is none."""
    if window is None:
        return 0, length
    start, stop = window
    if not 0 <= start < stop <= length:
        raise ValueError(f"window {start, stop} is not in 0 to {length}, the tokens of this sequence.")
    return start, stop


class Sequence:
    """Labels, padding and maps of one row of a record, within a window.

    Attributes
    ----------
    start, stop : int
        The window.
    labels, real : list of str, boolean array
        Of its tokens.
    """

    def __init__(self, record, row, hide_first=False, window=None):
        check_record(record)
        if not 0 <= row < len(record.tokens):
            raise ValueError(f"row {row} is not in this record of {len(record.tokens)} sequences.")
        self.record, self.row, self.hide_first = record, row, hide_first
        self.start, self.stop = check_window(window, len(record.tokens[row]))
        self.labels = record.tokens[row][self.start : self.stop]
        self.real = np.asarray(record.padding_mask[row][self.start : self.stop], dtype=bool)

    @functools.cached_property
    def _visible(self):
        return visible_keys(self.record.padding_mask[self.row], self.hide_first)

    def map(self, layer, head):
        """The weights of the window, NaN where the masks close a key. A weight that is there in spite of a mask stays,
        so that a wrong mask shows."""
        weights = self.record.map(layer, head, self.row)
        if self.hide_first:
            weights = without_first(weights, self.record.padding_mask[self.row])
        drawn = np.where(self._visible | (weights != 0), weights, np.nan)
        return drawn[self.start : self.stop, self.start : self.stop]

    def title(self, layer, head=None):
        """Which map this is, and what was done to it."""
        parts = [f"layer {layer}" if head is None else f"layer {layer}, head {head}"]
        return ", ".join(parts + self.notes())

    def notes(self):
        notes = [f"sequence {self.row}"] if len(self.record.tokens) > 1 else []
        return notes + (["without the first token"] if self.hide_first else [])
