"""The pictures of attention and masks look as they did: compared with tests/baseline by pytest-mpl.

Where a change is meant, and after an update of matplotlib, look at the new pictures and keep them:

    pytest tests/test_plot_images.py --mpl-generate-path=tests/baseline
"""

import dataclasses
import functools
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import pytest_mpl  # noqa: F401  (without it nothing would be compared)
from matplotlib.testing.compare import compare_images
from records import make_record

import optbook
from optbook import plot
from optbook.plot import _style

# Root mean square of the difference, of 255. The mistakes at the end of this file give 7 and more.
TOLERANCE = 5
DRAWN_WITH = "3.11"  # matplotlib brings its own freetype, and each version draws letters its own way
DPI = 60
pytestmark = pytest.mark.skipif(
    not matplotlib.__version__.startswith(DRAWN_WITH + "."),
    reason=f"the baseline was drawn with matplotlib {DRAWN_WITH}, this is {matplotlib.__version__}",
)
compared = functools.partial(
    pytest.mark.mpl_image_compare,
    baseline_dir="baseline",
    tolerance=TOLERANCE,
    savefig_kwargs={"dpi": DPI},
)
RECORD = make_record(lengths=(9, 6), length=9)
LEFT = make_record(lengths=(9, 6), length=9, side="left")
SCORES = {role: np.sin(np.arange(8.0) + i).reshape(2, 4) ** 4 for i, role in enumerate(plot.summaries.ROLES)}


@pytest.fixture(autouse=True)
def letters_by_their_outlines_alone(monkeypatch):
    """How they snap to dots differs between builds of freetype."""
    monkeypatch.setitem(_style.STYLE, "text.hinting", "none")


@compared()
def test_head():
    return plot.head(RECORD, 1, 2, row=1)


@compared()
def test_head_of_a_left_padded_row_without_the_first_token():
    return plot.head(LEFT, 1, 2, row=1, hide_first=True)


@compared()
def test_head_log_window():
    long = make_record(layers=(0,), heads=(0,), lengths=(300,), length=300)
    return plot.head(long, 0, 0, log=True, window=(100, 160))


@compared()
def test_heads():
    return plot.heads(RECORD, 1, row=1)


@compared()
def test_model():
    return plot.model(RECORD, row=1)


@compared()
def test_masks():
    return plot.masks(LEFT.padding_mask, LEFT.tokens)


@compared()
def test_stages():
    scores = 10 * np.sin(np.arange(36.0) ** 2).reshape(6, 6)
    return plot.stages(scores, np.tri(6), np.sin(np.arange(48.0)).reshape(6, 8), RECORD.tokens[0][:6], 8)


@compared()
def test_tokens():
    return plot.tokens(RECORD, 0, 1, 3, row=1)


@compared()
def test_roles():
    return plot.roles(SCORES)


@compared()
def test_entropy():
    return plot.entropy(RECORD, hide_first=True)


@compared()
def test_lines_with_levels():
    curves = {"training": 1 + 6 / np.arange(1.0, 20), "held out": 2 + 5 / np.arange(1.0, 20)}
    return plot.lines(curves, range(19), "step", "nats", levels={"ln V": 7.0, "unigram": 4.5, "bigram": 2.5})


@compared()
def test_pieces():
    return plot.pieces(RECORD.tokens[0], list(range(9)))


@compared()
def test_piece_rows():
    rows = dict(zip(("row 0", "row 1"), RECORD.tokens))
    return plot.piece_rows(rows, RECORD.token_ids.tolist(), RECORD.padding_mask, column=0.7)


@compared()
def test_head_of_the_embedded_preset():
    record = optbook.record_attention(optbook.causal_lm("optbook_700k_en"), "The old house, the old house.")
    return plot.head(record, 1, 1)


def transposed(record):
    return dataclasses.replace(record, weights=np.swapaxes(record.weights, -1, -2))


def rows_swapped(record):
    return dataclasses.replace(record, weights=record.weights[:, ::-1])


def passes(picture, folder):
    """Whether a picture, as it is drawn now, would be taken for its baseline."""
    picture().savefig(folder / "now.png", dpi=DPI)
    baseline = Path(__file__).parent / "baseline" / f"{picture.__name__}.png"
    return compare_images(baseline, folder / "now.png", TOLERANCE) is None


@pytest.mark.parametrize("spoil", [transposed, rows_swapped])
@pytest.mark.parametrize("picture", [test_head, test_heads, test_model, test_tokens, test_entropy])
def test_another_map_does_not_pass(picture, spoil, monkeypatch, tmp_path):
    monkeypatch.setitem(globals(), "RECORD", spoil(RECORD))
    assert not passes(picture, tmp_path)


@pytest.mark.parametrize("picture", [test_head, test_heads, test_model, test_masks, test_tokens])
def test_missing_hatches_do_not_pass(picture, monkeypatch, tmp_path):
    monkeypatch.setitem(_style.PADDING, "hatch", None)
    assert not passes(picture, tmp_path)
