"""Charts and token pieces are closed Figures that show the numbers they were given."""

import matplotlib.pyplot as plt
import pytest

from optbook import plot


@pytest.fixture(autouse=True)
def nothing_stays_open():
    yield
    assert plt.get_fignums() == []


def texts(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


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


def test_levels_are_dashed_lines_with_their_names():
    (ax,) = plot.lines({"loss": [7.0, 5.0]}, x=[0, 10], levels={"ln V": 7.6, "bigram": 5.2}).axes
    curve, *dashed = ax.lines
    assert curve.get_xydata().tolist() == [[0, 7.0], [10, 5.0]]
    assert [(set(line.get_ydata()), line.get_linestyle()) for line in dashed] == [({7.6}, "--"), ({5.2}, "--")]
    assert [(text.get_text(), text.xy[1]) for text in ax.texts] == [("ln V", 7.6), ("bigram", 5.2)]


def test_bar_groups_stand_side_by_side_under_the_first_series_labels():
    figure = plot.bar_groups({"before": {"$a$": 1.0, "b": 2.0}, "after": {"b": 3.0}})
    ax = figure.axes[0]
    before, after = ax.containers
    assert [bar.get_height() for bar in before] == [1.0, 2.0]
    assert after[1].get_height() == 3.0 and after[1].get_x() == pytest.approx(before[1].get_x() + 0.4)
    assert after[0].get_height() != after[0].get_height()  # NaN: no bar
    assert [label.get_text() for label in ax.get_xticklabels()] == ["$a$", "b"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["before", "after"]


def test_trade_offs_show_a_small_difference_as_small_and_leave_out_what_is_missing():
    points = [
        dict(group="a", kind="x", speed=1.0, loss=1.50),
        dict(group="b", kind="x", speed=4.0, loss=1.51),
        dict(group="b", kind="y", speed=2.0, loss=None),
    ]
    figure = plot.trade_offs(points, [(("speed", "speed"), ("loss", "loss"))])
    (ax,) = figure.axes
    low, high = ax.get_ylim()
    assert [high - low, (low + high) / 2] == pytest.approx([0.151, 1.505])
    drawn = [line.get_xydata().tolist() for line in ax.lines if line.get_marker() != "None"]
    assert drawn == [[[1.0, 1.5]], [[4.0, 1.51]]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "x", "y"]
