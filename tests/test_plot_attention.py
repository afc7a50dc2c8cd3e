"""Pictures of attention and masks show the numbers of the record, its labels and its padding, and name bad input."""

import dataclasses
import pkgutil

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib import colors, font_manager, ft2font
from matplotlib.collections import LineCollection
from records import make_record

import optbook
from optbook import attention_numbers as numbers
from optbook import plot

RECORD = make_record(lengths=(8, 5))
LEFT = make_record(lengths=(8, 5), side="left")
LONG = make_record(layers=(0,), heads=(0, 1), lengths=(600,), length=600)


@pytest.fixture(autouse=True)
def nothing_stays_open():
    yield
    assert plt.get_fignums() == []


def maps(figure):
    """The arrays of a figure's images, what is not drawn as NaN; colour bars are no images."""
    return [np.ma.filled(ax.images[0].get_array(), np.nan) for ax in figure.axes if ax.images]


def expected(record, layer, head, row=0, hide_first=False):
    """The map with NaN where a mask closes it and nothing is on it."""
    scores, real = record.map(layer, head, row), record.padding_mask[row]
    if hide_first:
        scores = numbers.without_first(scores, real)
    return np.where(numbers.visible_keys(real, hide_first) | (scores > 0), scores, np.nan)


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def hatched(ax):
    """Hatched rectangles as (left, top, width, height)."""
    return [(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in ax.patches if patch.get_hatch()]


def written(figure):
    return [text.get_text() for text in figure.findobj(plt.Text) if text.get_text()]


@pytest.mark.parametrize("record", [RECORD, LEFT], ids=["right", "left"])
@pytest.mark.parametrize("row", [0, 1])
def test_head_shows_the_map_of_the_asked_layer_head_and_row(record, row):
    figure = plot.head(record, layer=1, head=2, row=row)
    np.testing.assert_array_equal(maps(figure)[0], expected(record, 1, 2, row))
    assert "layer 1, head 2, sequence " + str(row) in written(figure)


def test_head_labels_the_tokens_and_hatches_padding_once():
    ax = plot.head(RECORD, 0, 0, row=1).axes[0]
    assert labels(ax.xaxis) == labels(ax.yaxis) == ["</s>", "The", "␣old", "␣house", "␣was", *["<pad>"] * 3]
    assert [label.get_color() for label in ax.get_xticklabels()] == ["black"] * 5 + ["0.5"] * 3
    assert hatched(ax) == [(4.5, -0.5, 3, 8), (-0.5, 4.5, 5, 3)]
    assert hatched(plot.head(RECORD, 0, 0, row=0).axes[0]) == []
    assert hatched(plot.head(LEFT, 0, 0, row=1).axes[0]) == [(-0.5, -0.5, 3, 8), (2.5, -0.5, 5, 3)]


def test_head_hides_the_first_token_on_a_logarithmic_scale_in_a_window():
    ax = (figure := plot.head(RECORD, 1, 3, hide_first=True, log=True, window=(2, 7))).axes[0]
    np.testing.assert_array_equal(maps(figure)[0], expected(RECORD, 1, 3, hide_first=True)[2:7, 2:7])
    assert isinstance(ax.images[0].norm, colors.LogNorm) and ax.images[0].norm(0.0) == 0
    assert ax.images[0].get_extent() == [1.5, 6.5, 6.5, 1.5]
    assert ax.get_xticks().tolist() == [2, 3, 4, 5, 6] and labels(ax.xaxis)[0] == "␣old"


def test_a_weight_that_no_mask_should_let_through_is_seen():
    scores = RECORD.weights.copy()
    scores[0, 0, 0, 2, 6] = 0.5
    assert maps(plot.head(dataclasses.replace(RECORD, weights=scores), 0, 0))[0][2, 6] == 0.5


def test_a_long_text_is_drawn_in_blocks_and_with_positions():
    figure = plot.head(LONG, 0, 1)
    np.testing.assert_array_equal(maps(figure)[0], numbers.largest_in_blocks(expected(LONG, 0, 1), 2))
    assert labels(figure.axes[0].xaxis)[:2] == ["0", "50"]
    assert "layer 0, head 1, each cell the largest of 2 × 2" in written(figure)
    assert labels(plot.head(LONG, 0, 1, window=(205, 300)).axes[0].xaxis)[0] == "210"


def test_heads_shows_each_head_of_the_layer_in_order():
    figure = plot.heads(RECORD, layer=1, row=1)
    for head, shown in zip(RECORD.heads, maps(figure), strict=True):
        np.testing.assert_array_equal(shown, expected(RECORD, 1, head, 1))
    assert [ax.get_title() for ax in figure.axes[:4]] == ["head 0", "head 1", "head 2", "head 3"]
    assert all(len(hatched(ax)) == 2 for ax in figure.axes[:4])


@pytest.mark.parametrize("row", [0, 1])
def test_model_lays_the_maps_out_by_layer_and_head(row):
    ax = (figure := plot.model(LEFT, row=row)).axes[0]
    (mosaic,) = maps(figure)
    assert mosaic.shape == (2 * 9 - 1, 4 * 9 - 1)  # tiles of 8 and a gap of 1
    for i, layer in enumerate(LEFT.layers):
        for j, head in enumerate(LEFT.heads):
            tile = mosaic[9 * i : 9 * i + 8, 9 * j : 9 * j + 8]
            np.testing.assert_array_equal(tile, expected(LEFT, layer, head, row))
    assert ax.get_xticks().tolist() == [3.5, 12.5, 21.5, 30.5] and labels(ax.yaxis) == ["0", "1"]
    assert len(hatched(ax)) == (0 if row == 0 else 2 * 8)


def test_model_turns_pages():
    many = make_record(layers=range(40), heads=range(33), lengths=(3,), length=3)
    ax = (figure := plot.model(many, page=3)).axes[0]
    assert "page 3 of 0 to 3" in written(figure)
    assert labels(ax.yaxis) == [str(layer) for layer in range(20, 40)]
    assert labels(ax.xaxis) == [str(head) for head in range(17, 33)]
    np.testing.assert_array_equal(maps(figure)[0][:3, :3], expected(many, 20, 17))
    with pytest.raises(ValueError, match="there is no page 4: this record takes 4, numbered from 0."):
        plot.model(many, page=4)


def test_masks_shows_causal_padding_and_both_for_each_sequence():
    figure = plot.masks(LEFT.padding_mask, LEFT.tokens)
    causal, shown = np.tril(np.ones((8, 8))), maps(figure)
    for row, real in enumerate(LEFT.padding_mask):
        padding = np.broadcast_to(real, (8, 8))
        for panel, mask in zip(shown[3 * row :], (causal, padding, causal * padding)):
            np.testing.assert_array_equal(panel, mask)
    assert [len(hatched(ax)) for ax in figure.axes] == [0, 0, 0, 2, 2, 2]
    assert [ax.get_ylabel() for ax in figure.axes[::3]] == ["sequence 0: query", "sequence 1: query"]


def test_masks_of_a_window():
    figure = plot.masks(RECORD.padding_mask, RECORD.tokens, window=(3, 6))
    np.testing.assert_array_equal(maps(figure)[5], [[1, 0, 0], [1, 1, 0], [1, 1, 0]])
    assert labels(figure.axes[3].xaxis) == ["␣house", "␣was", "<pad>"]


def test_stages_shows_all_five_and_the_softmax_it_claims():
    scores, values = np.array([[2.0, 9.0], [2.0, 6.0]]), np.arange(8.0).reshape(2, 4)
    mask = np.array([[True, False], [True, True]])
    figure = plot.stages(scores, mask, values, ["a", "b"], head_dim=4)
    products, scaled, masked, weights, output, shown_values = maps(figure)[:6]
    softmax = [[1, 0], [1 / (1 + np.e**2), 1 / (1 + np.e**-2)]]
    np.testing.assert_array_equal(products, scores)
    np.testing.assert_array_equal(scaled, scores / 2)
    np.testing.assert_array_equal(masked, [[1, np.nan], [1, 3]])
    np.testing.assert_allclose(weights, softmax, rtol=1e-5)
    np.testing.assert_allclose(output, softmax @ values, rtol=1e-5)
    np.testing.assert_array_equal(shown_values, values)


def test_stages_of_a_row_that_may_see_nothing_is_zero():
    figure = plot.stages(np.ones((2, 2)), [[False, False], [True, True]], np.eye(2), ["a", "b"], head_dim=2)
    np.testing.assert_allclose(maps(figure)[3], [[0, 0], [0.5, 0.5]])


def test_tokens_shades_and_draws_arcs_in_both_directions():
    figure = plot.tokens(RECORD, layer=1, head=2, token=4)
    scores = RECORD.map(1, 2)
    looks, seen, arcs = figure.axes[:3]
    shade = matplotlib.colormaps["magma_r"]
    bricks = [ax.patches[: len(ax.patches)] for ax in (looks, seen)]
    of_token = [[patch.get_facecolor() for patch in row if patch.get_linewidth() < 2] for row in bricks]
    assert of_token[0] == [*map(shade, scores[4, :5]), *[(0, 0, 0, 0)] * 3]
    assert of_token[1] == [*[(0, 0, 0, 0)] * 4, *map(shade, scores[4:, 4])]
    back, forth = [lines for lines in arcs.collections if isinstance(lines, LineCollection)]
    np.testing.assert_allclose(np.array(back.get_linewidths()) / 7, scores[4, :5], rtol=1e-5)
    np.testing.assert_allclose(np.array(forth.get_linewidths()) / 7, scores[5:, 4], rtol=1e-5)
    assert [round(path[:, 0].min()) for path in back.get_segments()] == [0, 1, 2, 3, 4]
    assert [round(path[:, 0].max()) for path in forth.get_segments()] == [5, 6, 7]
    numbers_written = [text for text in written(figure) if text.startswith("0.") and len(text) == 4]
    assert f"{scores[4, :5].max():.2f}" in numbers_written


def test_tokens_hatches_padding_and_leaves_its_queries_out():
    figure = plot.tokens(RECORD, 0, 0, token=2, row=1)
    assert [sum(bool(patch.get_hatch()) for patch in ax.patches) for ax in figure.axes[:3]] == [3, 3, 1]
    (_, forth) = [lines for lines in figure.axes[2].collections if isinstance(lines, LineCollection)]
    assert len(forth.get_segments()) == 2  # tokens 3 and 4; the pads after them look too, but it means nothing


def test_tokens_shortens_a_long_text_to_the_lines_that_matter():
    scores = np.zeros((1, 1, 1, 600, 600), "float32")
    scores[..., 300, 0] = 1.0
    texts = written(plot.tokens(dataclasses.replace(LONG, weights=scores, heads=(0,)), 0, 0, token=300))
    left_out = [int(text.split()[1]) for text in texts if text.startswith("…")]
    assert len(left_out) == 4 and sum(left_out) > 1000
    assert len(texts) < 200


SCORES = {role: np.linspace(0, 0.1 * (i + 1), 8).reshape(2, 4) for i, role in enumerate(plot.summaries.ROLES)}


def test_roles_draws_a_map_for_each_and_names_the_strongest_head():
    figure = plot.roles(SCORES)
    for shown, scores in zip(maps(figure), SCORES.values(), strict=True):
        np.testing.assert_array_equal(shown, scores.astype("float32"))
    assert figure.axes[2].get_title() == "induction\nmost: layer 1, head 3, 0.30"
    frame = [patch.get_xy() for patch in figure.axes[2].patches]
    assert frame == [(2.5, 0.5)]
    some = plot.roles({"induction": SCORES["induction"]}, log=True)
    assert isinstance(some.axes[0].images[0].norm, colors.LogNorm)


def test_entropy_draws_the_mean_of_each_head():
    np.testing.assert_array_equal(maps(plot.entropy(RECORD))[0], numbers.head_entropy(RECORD))
    figure = plot.entropy(RECORD, row=1, hide_first=True, window=(2, 5))
    np.testing.assert_array_equal(maps(figure)[0], numbers.head_entropy(RECORD, 1, True, (2, 5)))


def test_numbers_of_the_embedded_preset_are_those_drawn():
    record = optbook.record_attention(optbook.causal_lm("optbook_700k_en"), ["The cat, the cat.", "No."])
    figure = plot.head(record, 1, 2, row=1)
    np.testing.assert_array_equal(maps(figure)[0], expected(record, 1, 2, 1))
    assert labels(figure.axes[0].xaxis) == record.tokens[1]
    assert not any("Ġ" in text for text in written(figure))


WIDE = make_record(lengths=(12, 7), length=12)
EVERY_FIGURE = {
    "head": lambda: plot.head(WIDE, 0, 1, row=1),
    "heads": lambda: plot.heads(WIDE, 0, row=1),
    "model": lambda: plot.model(WIDE, row=1),
    "masks": lambda: plot.masks(WIDE.padding_mask, WIDE.tokens),
    "stages": lambda: plot.stages(np.eye(12), np.tri(12), np.eye(12), WIDE.tokens[0], 12),
    "tokens": lambda: plot.tokens(WIDE, 0, 1, 6),
    "roles": lambda: plot.roles(SCORES),
    "entropy": lambda: plot.entropy(WIDE),
    "pieces": lambda: plot.pieces(WIDE.tokens[0]),
    "piece_rows": lambda: plot.piece_rows({"a": WIDE.tokens[0]}),
}


@pytest.mark.parametrize("name", EVERY_FIGURE)
def test_text_is_readable_and_nothing_is_cut_off(name):
    figure = EVERY_FIGURE[name]()
    figure.draw_without_rendering()
    assert figure.get_figwidth() <= 9.0
    for text in figure.findobj(plt.Text):
        if not text.get_text() or not text.get_visible():
            continue
        assert text.get_fontsize() >= 7, text
        box = text.get_window_extent()
        assert box.x0 >= -1 and box.y0 >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, text
        font = font_manager.findfont(text.get_fontproperties())
        characters = ft2font.FT2Font(font).get_charmap()
        assert all(ord(character) in characters for character in text.get_text() if character != "\n"), text


@pytest.mark.parametrize("draw", [plot.head, plot.heads, plot.model])
def test_a_logarithmic_scale_is_not_cut_off(draw):
    figure = draw(WIDE, *{plot.head: (0, 0), plot.heads: (0,)}.get(draw, ()), log=True)
    figure.draw_without_rendering()
    assert figure.get_figwidth() <= 9.0
    assert figure.axes[-1].get_tightbbox().x1 <= figure.bbox.x1


def test_labels_show_each_character_or_its_number_and_dollars_are_no_formula():
    figure = plot.pieces(["漢", "a\u00a0b", "␣$1$", "⟨E2⟩", "⏎"])
    assert written(figure) == ["⟨U+6F22⟩", "a⟨U+00A0⟩b", "␣$1$", "⟨E2⟩", "⏎"]
    assert not any(text.get_parse_math() for text in figure.axes[0].texts)
    ticks = plot.head(WIDE, 0, 0).axes[0].get_xticklabels()
    assert "␣$1" in [tick.get_text() for tick in ticks] and not any(tick.get_parse_math() for tick in ticks)


def lightness(name):
    """Of 101 steps of a color map: the luminance that is left of it in grey."""
    rgb = matplotlib.colormaps[name](np.linspace(0, 1, 101))[:, :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def test_color_maps_can_be_read_without_color():
    assert (np.diff(lightness("viridis")) > 0).all() and (np.diff(lightness("magma_r")) < 0).all()
    diverging = lightness("RdBu_r")
    assert (np.diff(diverging[:51]) > 0).all() and (np.diff(diverging[50:]) < 0).all()
    drawn = {ax.images[0].get_cmap().name for make in EVERY_FIGURE.values() for ax in make().axes if ax.images}
    assert drawn == {"viridis", "cividis", "RdBu_r"}


def test_no_module_hides_behind_a_function():
    modules = {module.name for module in pkgutil.iter_modules(plot.__path__)}
    assert not modules & set(plot.__all__)
    assert all(callable(getattr(plot, name)) for name in plot.__all__)


NOT_PADDED = dataclasses.replace(RECORD, padding_mask=None)
SHORT_LABELS = dataclasses.replace(RECORD, tokens=[["a"], ["b"]])
WRONG_WEIGHTS = dataclasses.replace(RECORD, weights=RECORD.weights[:1])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot.head(RECORD, 7, 0), "layer 7"),
        (lambda: plot.heads(RECORD, 7), "layer 7"),
        (lambda: plot.head(RECORD, 0, 9), "head 9"),
        (lambda: plot.head(RECORD, 0, 0, row=2), "row 2 is not in this record of 2 sequences."),
        (lambda: plot.model(RECORD, row=-1), "row -1 is not in this record of 2 sequences."),
        (lambda: plot.entropy(RECORD, row=2), "row 2 is not in this record of 2 sequences."),
        (
            lambda: plot.head(RECORD, 0, 0, window=(3, 9)),
            "window (3, 9) is not in 0 to 8, the tokens of this sequence.",
        ),
        (lambda: plot.tokens(RECORD, 0, 0, 3, window=(5, 5)), "window (5, 5) is not in 0 to 8"),
        (lambda: plot.entropy(RECORD, window=(-1, 4)), "window (-1, 4) is not in 0 to 8"),
        (lambda: plot.masks(RECORD.padding_mask, RECORD.tokens, window=(0, 9)), "window (0, 9) is not in 0 to 8"),
        (lambda: plot.tokens(RECORD, 0, 0, 8), "token 8 is not in 0 to 7, the tokens shown of sequence 0."),
        (
            lambda: plot.tokens(RECORD, 0, 0, 6, row=1),
            "token 6 of sequence 1 is padding, which has nothing to look at.",
        ),
        (
            lambda: plot.head(NOT_PADDED, 0, 0),
            "this record has no padding mask; where nothing is padded it is all ones",
        ),
        (lambda: plot.head(SHORT_LABELS, 0, 0), "shape (2, 8), but the rows of tokens have lengths [1, 1]."),
        (
            lambda: plot.entropy(WRONG_WEIGHTS),
            "weights have shape (1, 2, 4, 8, 8), but layers, tokens and heads ask for",
        ),
        (lambda: plot.masks([1, 1], [["a", "b"]]), "a padding mask has shape (batch, T), not (2,)."),
        (lambda: plot.masks([[1, 1]], [["a"]]), "shape (1, 2), but the rows of tokens have lengths [1]."),
        (lambda: plot.stages(np.eye(2), np.eye(3), np.eye(2), ["a", "b"], 2), "not (2, 2), (3, 3) and (2, 2)."),
        (lambda: plot.roles({"sink": np.eye(2)}), "roles takes scores of first_token, previous_token, induction"),
        (lambda: plot.roles({**SCORES, "induction": np.eye(2)}), "all roles need scores of one shape (layers, heads)"),
    ],
)
def test_bad_input_is_named_in_one_line(draw, message):
    with pytest.raises(ValueError) as error:
        draw()
    assert message in str(error.value) and "\n" not in str(error.value)
    plt.close("all")


def test_what_is_no_record_is_named():
    with pytest.raises(TypeError, match="expected what optbook.record_attention returns, not ndarray."):
        plot.head(RECORD.weights, 0, 0)
