"""Every figure is the same under every style of its reader, and writes its labels as they are, formulas or not."""

import dataclasses
import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text
from records import make_record

from optbook import plot
from optbook.plot import _style

# What no style sheet that matplotlib ships sets, and a matplotlibrc might.
WORSE = {
    "image.origin": "lower",
    "image.aspect": "auto",
    "savefig.facecolor": "black",
    "savefig.edgecolor": "red",
    "figure.constrained_layout.w_pad": 0.3,
    "axes.grid": True,
    "axes.xmargin": 0.3,
    "axes.unicode_minus": False,
    "hatch.linewidth": 4.0,
    "hatch.color": "red",
    "legend.loc": "lower left",
    "path.sketch": (2.0, 50.0, 10.0),
    "text.parse_math": True,
    "xtick.labelsize": 20,
    "ytick.color": "white",
    "xaxis.labellocation": "right",
}
NUMBERS = np.sin(np.arange(12.0)).reshape(3, 4) ** 2


def every_figure(label):
    """By the name of its function: what draws a figure with ``label`` wherever one can be, and how often that is."""
    record = make_record(lengths=(6, 8))
    record = dataclasses.replace(record, tokens=[[label] * 8] * 2)
    names = {label: 0.5, "other": 0.25}
    curves = {name: [0.5, 0.01, 30.0] for name in names}
    points = [dict(group=group, kind=kind, speed=1.0, loss=2.0) for group in names for kind in names]
    axes = dict(ylabel=label, title=label, log_y=True)
    return {
        "bar_groups": (lambda: plot.bar_groups({label: names, "b": names}, **axes), 4),
        "bars": (lambda: plot.bars(names, number=".1f", **axes), 3),
        "entropy": (lambda: plot.entropy(record), 0),
        "head": (lambda: plot.head(record, 1, 2, log=True), 16),
        "heads": (lambda: plot.heads(record, 1), 32),
        "histograms": (lambda: plot.histograms(curves, xlabel=label, title=label), 3),
        "lines": (lambda: plot.lines(curves, xlabel=label, levels={label: 1.0}, **axes), 5),
        "masks": (lambda: plot.masks(record.padding_mask, record.tokens), 64),
        "matrices": (lambda: plot.matrices({label: NUMBERS}, [label] * 3, [label] * 4, ".2f", label=label), 9),
        "model": (lambda: plot.model(record, log=True), 0),
        "piece_rows": (lambda: plot.piece_rows({label: [label] * 3}), 4),
        "pieces": (lambda: plot.pieces([label] * 3, [1, 2, 3]), 3),
        "roles": (lambda: plot.roles({"induction": NUMBERS}, log=True), 0),
        "shares": (lambda: plot.shares({label: names, "b": names}, xlabel=label), 3),
        "stages": (lambda: plot.stages(np.eye(4), np.tri(4), np.eye(4), [label] * 4, 4), 40),
        "texts": (lambda: plot.texts(NUMBERS, [[label] * 4] * 3, [label] * 3, [label] * 4, label, label), 21),
        "tokens": (lambda: plot.tokens(record, 1, 2, 5, log=True), 26),
        "trade_offs": (lambda: plot.trade_offs(points, [(("speed", label), ("loss", label))]), 4),
    }


def image(draw):
    file = io.BytesIO()
    draw().savefig(file, format="png", dpi=50)
    return file.getvalue()


def settings():
    with _style._style():
        return dict(plt.rcParams)


def test_all_figure_functions_are_here():
    assert sorted(every_figure("a")) == plot.__all__


@pytest.mark.parametrize("name", plot.__all__)
def test_no_style_changes_a_figure(name):
    draw, _ = every_figure("token")[name]
    expected = image(draw)
    with plt.style.context([*plt.style.available, WORSE]):
        assert image(draw) == expected
        made_inside = draw()
    buffer = io.BytesIO()
    made_inside.savefig(buffer, format="png", dpi=50)
    assert buffer.getvalue() == expected


@pytest.mark.parametrize("style", plt.style.available)
def test_every_style_gives_way_to_the_one_of_the_figures(style):
    expected = settings()
    with plt.style.context(style):
        theirs = dict(plt.rcParams)
        assert settings() == expected
        assert dict(plt.rcParams) == theirs  # and is there again afterwards


def test_how_large_a_file_is_remains_the_readers_choice(tmp_path):
    figure = plot.bars({"a": 1.0}, size=(2, 1))
    with plt.rc_context({"savefig.dpi": 50}):
        figure.savefig(tmp_path / "small.png")
    figure.savefig(tmp_path / "red.png", facecolor="red")
    assert plt.imread(tmp_path / "small.png").shape[:2] == (50, 100)
    assert plt.imread(tmp_path / "red.png")[0, 0].tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("label", [r"$a$ _x^2 \frac", r"_x^2 $a$ \frac"])
@pytest.mark.parametrize("name", plot.__all__)
def test_no_label_is_a_formula(name, label):
    draw, places = every_figure(label)[name]
    figure = draw()
    figure.draw_without_rendering()
    written = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    assert not any(text.get_parse_math() for text in written)
    assert not any("mathdefault" in text.get_text() for text in written)  # matplotlib's own formulas
    assert sum(label in text.get_text() for text in written) == places


def test_ticks_of_a_logarithmic_axis_are_plain_numbers():
    figure = plot.lines({"a": [0.0001, 1000.0]}, log_y=True)
    figure.draw_without_rendering()
    shown = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert [text for text in shown if float(text) in (0.0001, 0.01, 1, 100)] == ["0.0001", "0.01", "1", "100"]
