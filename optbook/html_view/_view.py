"""Turns an AttentionRecord into HTML: the numbers packed into two attributes, view.css and view.js beside them."""

import base64
import html
import json
from importlib import resources

import numpy as np

from optbook._files import replace_text
from optbook._validation import check_mask
from optbook.attention import AttentionRecord
from optbook.tokens import visible

STEPS = 65535  # a weight travels as an integer of 16 bits, off by at most half a step: 0.5 / 65535
MAX_BYTES = 2_000_000  # of weights in one view; a notebook that carries more is slow to open and to save

# Shown until the script has run: on pages that strip scripts, as GitHub does, and in a notebook not yet trusted.
FRAGMENT = """\
<div class="optbook-view" data-record="{record}" data-weights="{weights}">
<style>
{style}</style>
<div class="ob-stage"><p class="ob-fallback">{summary}. A script draws this view: run the cell, or trust the \
notebook.</p></div>
<script>
{script}</script>
</div>
"""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{summary}</title>
<style>:root {{ color-scheme: light dark; }} body {{ margin: 16px auto; max-width: 1100px; padding: 0 12px; }}</style>
</head>
<body>
{fragment}</body>
</html>
"""


class AttentionView:
    """What :func:`view` returns: a notebook shows it, ``save`` writes it as a page of its own.

    The HTML is the same for the same record, wherever it is made. Weights are rounded to 1 / 65535, so a weight in it
    is at most 0.5 / 65535 away from the record's.
    """

    def __init__(self, summary, fragment):
        self._summary, self._fragment = summary, fragment

    def __repr__(self):
        return f"<{self._summary}>"

    def _repr_html_(self):
        return self._fragment

    def save(self, path):
        """Writes a page that any browser opens, without a network. The folder must exist."""
        replace_text(path, PAGE.format(summary=html.escape(self._summary), fragment=self._fragment))


def view(record):
    """Attention to explore: every recorded head, one head enlarged, and for each token where it looks and who looks.

    The HTML needs nothing but a browser: no network, no library, no running kernel. So it also works in an exported
    notebook. Mouse, touch and keyboard do the same: Enter enlarges a head, arrow keys move among heads, tokens and
    cells of a map, Escape goes back.

    Parameters
    ----------
    record : AttentionRecord
        As :func:`optbook.record_attention` returns it.

    Returns
    -------
    AttentionView
        Shown when it is the last line of a cell; its ``save(path)`` writes a page.

    Raises
    ------
    TypeError
        For anything but an AttentionRecord.
    ValueError
        For weights outside [0, 1], and for a record whose weights would take more than 2 MB.
    """
    if not isinstance(record, AttentionRecord):
        raise TypeError(f"view takes an AttentionRecord, as record_attention returns it, not {type(record).__name__}.")
    layers, batch, heads, length, _ = record.weights.shape
    maps = layers * batch * heads
    _check_size(maps * length * (length + 1) // 2)
    if not ((record.weights >= 0) & (record.weights <= 1.001)).all():  # NaN fails too; rounding may exceed 1
        raise ValueError("attention weights lie between 0 and 1; those of this record do not.")
    causal = not np.triu(record.weights, 1).any()  # else a row that could see nothing was spread over all keys
    if not causal:
        _check_size(maps * length**2)
    content = {
        "layers": [int(layer) for layer in record.layers],  # they may have come out of an array
        "heads": [int(head) for head in record.heads],
        "tokens": [list(map(visible, row)) for row in record.tokens],
        "real": check_mask("padding_mask", record.padding_mask).astype(int).tolist(),
        "causal": causal,
    }
    sequences = f"{batch} sequences of " if batch > 1 else ""
    summary = f"attention of {layers} layers × {heads} heads on {sequences}{length} tokens"
    fragment = FRAGMENT.format(
        record=html.escape(json.dumps(content)),  # ASCII; quotes and < escaped: a label cannot leave its attribute
        weights=_packed(record.weights, causal),
        style=_asset("view.css"),
        script=_asset("view.js"),
        summary=summary,
    )
    return AttentionView(summary, fragment)


def _check_size(weights):
    size = weights * 2 * 4 // 3  # 2 bytes each, 4 characters of base64 for 3 bytes
    if size > MAX_BYTES:
        raise ValueError(
            f"the weights of this view would take {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f} MB: "
            "record fewer layers, heads, tokens or sequences, as in record_attention(..., layers=[0, 1])."
        )


def _packed(weights, causal):
    """Little-endian integers of 16 bits in base64, in the order of the axes; of a causal map only keys up to t."""
    codes = np.rint(np.minimum(weights, 1) * STEPS).astype("<u2")
    if causal:
        codes = codes[(..., *np.tril_indices(weights.shape[-1]))]
    return base64.b64encode(codes.tobytes()).decode("ascii")


def _asset(name):
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
