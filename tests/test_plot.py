"""Every plot function returns a closed Figure that shows the numbers it was given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from optbook import AttentionRecord, plot


@pytest.fixture(autouse=True)
def nothing_stays_open():
    yield
    assert plt.get_fignums() == []


@pytest.fixture
def record():
    """Two sequences of 4 tokens, the second with two pads; layers 1 and 2, heads 0 and 3; every map different."""
    scores = np.random.default_rng(0).random((2, 2, 2, 4, 4)).astype("float32")
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=bool)
    tokens = [["</s>", "a", "b", "c"], ["</s>", "d", "<pad>", "<pad>"]]
    return AttentionRecord(scores, (1, 2), (0, 3), tokens, mask)


def images(figure):
    return [np.asarray(ax.images[0].get_array()) for ax in figure.axes if ax.images and ax.get_label() != "<colorbar>"]


def texts(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def hatched(ax):
    return [patch for patch in ax.patches if patch.get_hatch()]


def test_head_shows_the_map_of_the_asked_layer_head_and_row(record):
    figure = plot.head(record, layer=2, head=3, row=1)
    assert isinstance(figure, Figure)
    np.testing.assert_array_equal(images(figure)[0], record.scores[1, 1, 1])
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == record.tokens[1]
    assert len(hatched(ax)) == 4  # two pads, a row and a column each


def test_heads_shows_every_recorded_map_in_order(record):
    figure = plot.heads(record)
    expected = record.scores[:, 0].reshape(-1, 4, 4)
    np.testing.assert_array_equal(np.stack(images(figure)[:4]), expected)
    titles = [ax.get_title() for ax in figure.axes[:4]]
    assert titles == ["layer 1, head 0", "layer 1, head 3", "layer 2, head 0", "layer 2, head 3"]


def test_masks_shows_causal_padding_and_both_for_each_sequence(record):
    shown = images(plot.masks(record.padding_mask, record.tokens))
    causal = np.tril(np.ones((4, 4)))
    for row, real in enumerate(record.padding_mask):
        padding = np.broadcast_to(real, (4, 4))
        for panel, expected in zip(shown[3 * row :], (causal, padding, causal * padding)):
            np.testing.assert_array_equal(panel, expected)


def test_stages_writes_the_softmax_it_claims():
    scores = np.array([[2.0, 9.0], [2.0, 6.0]])
    mask = np.array([[True, False], [True, True]])
    figure = plot.stages(scores, mask, np.eye(2), ["a", "b"], head_dim=4)
    weights = images(figure)[3]
    np.testing.assert_allclose(weights, [[1, 0], [1 / (1 + np.e**2), 1 / (1 + np.e**-2)]], rtol=1e-5)
    np.testing.assert_allclose(images(figure)[4], weights, rtol=1e-5)


def test_matrices_share_one_scale_and_center_differences():
    arrays = {"small": [[0.0, 1.0]], "large": [[0.0, -4.0]]}
    shared = [ax.images[0].get_clim() for ax in plot.matrices(arrays).axes[:2]]
    assert shared == [(-4, 1), (-4, 1)]
    centered = [ax.images[0].get_clim() for ax in plot.matrices(arrays, diverging=True).axes[:2]]
    assert centered == [(-4, 4), (-4, 4)]


def test_matrices_annotate_every_cell():
    assert texts(plot.matrices({"m": [[0.25, 1.0]]}, annotate=".2f")) == ["0.25", "1.00"]


def test_pieces_writes_labels_and_numbers_on_as_many_lines_as_needed():
    figure = plot.pieces(["The", "␣old"], [133, 793])
    assert texts(figure) == ["The", "133", "␣old", "793"]
    assert plot.pieces(["a long piece"] * 30).get_figheight() > figure.get_figheight()


def test_lines_bars_and_histograms_show_their_numbers():
    (curve,) = plot.lines({"a": [3, 1, 2]}, x=[0, 5, 9]).axes[0].lines
    assert curve.get_xydata().tolist() == [[0, 3], [5, 1], [9, 2]]
    bars = plot.bars({"x": 1.0, "y": 2.5}, number=".1f")
    assert [patch.get_height() for patch in bars.axes[0].patches] == [1.0, 2.5]
    assert texts(bars) == ["1.0", "2.5"]
    drawn = plot.histograms({"a": [0.0, 1.0], "b": [0.0, 0.1]}, bins=2).axes[0]
    assert [round(patch.get_height(), 3) for patch in drawn.patches] == [1, 1, 2, 0]
