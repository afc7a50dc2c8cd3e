"""The HTML that optbook.view makes, read without a browser; test_view_browser.py opens it in one."""

import base64
import dataclasses
import json
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from view_records import HOSTILE, make_record

import optbook
from optbook.plot._labels import drawable
from optbook.tokens import visible

HALF_A_STEP = 0.5 / 65535 + 1e-7  # 16 bits, and float32's own rounding


class Elements(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def html_of(record):
    return optbook.view(record)._repr_html_()


def attributes_of(text):
    """What the root element carries: the content and the weights as integers."""
    _, attributes = Elements(text).found[0]
    weights = np.frombuffer(base64.b64decode(attributes["data-weights"]), "<u2")
    return json.loads(attributes["data-record"]), weights


def with_weights(record, weights):
    return dataclasses.replace(record, weights=weights.astype("float32"))


def test_weights_are_the_records_up_to_half_a_step():
    record = make_record()
    content, weights = attributes_of(html_of(record))
    assert content["causal"]
    lower = np.tril_indices(5)
    shown = weights.reshape(2, 2, 3, 15) / 65535
    np.testing.assert_allclose(shown, record.weights[..., lower[0], lower[1]], rtol=0, atol=HALF_A_STEP)


def test_a_row_that_looks_ahead_is_carried_too():
    record = make_record()
    changed = record.weights.copy()
    changed[1, 1, 2, 0] = 0.2  # what a softmax makes of a row that may see nothing
    content, weights = attributes_of(html_of(with_weights(record, changed)))
    assert not content["causal"]
    np.testing.assert_allclose(weights.reshape(changed.shape) / 65535, changed, rtol=0, atol=HALF_A_STEP)


def test_labels_mask_and_numbers_of_layers_and_heads_are_the_records():
    content, _ = attributes_of(html_of(make_record(layers=tuple(np.arange(2)))))
    assert content["tokens"][1] == ["</s>", "A", "␣dog", "<pad>", "<pad>"]
    assert content["real"] == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert (content["layers"], content["heads"]) == ([0, 1], [0, 3, 5])


def test_labels_stay_data():
    text = html_of(make_record(tokens=HOSTILE))
    assert [tag for tag, _ in Elements(text).found] == ["div", "style", "div", "p", "script"]
    assert text.count("</script>") == text.count("<script>") == 1
    assert attributes_of(text)[0]["tokens"] == [list(map(visible, row)) for row in HOSTILE]


def test_invisible_characters_are_written_as_in_the_pictures():
    labels = ["a\u200bb", "\r", "\xa0", "\ufe0f"]
    shown = attributes_of(html_of(make_record(tokens=[labels])))[0]["tokens"]
    assert shown == [["a⟨U+200B⟩b", "⟨U+000D⟩", "⟨U+00A0⟩", "⟨U+FE0F⟩"]] == [list(map(drawable, labels))]


def test_the_same_record_gives_the_same_html():
    assert html_of(make_record()) == html_of(make_record())
    assert html_of(make_record()) != html_of(make_record(seed=1))


def test_nothing_is_loaded_from_elsewhere():
    text = html_of(make_record())
    for loader in ("http", "url(", "@import", "import(", "fetch(", "require", "src=", "href="):
        assert loader not in text


def test_the_text_form_says_what_is_shown():
    assert repr(optbook.view(make_record())) == "<attention of 2 layers × 3 heads on 2 sequences of 5 tokens>"
    assert repr(optbook.view(make_record(tokens=HOSTILE))) == "<attention of 2 layers × 3 heads on 5 tokens>"


def test_opt_125m_on_32_tokens_stays_below_half_a_megabyte():
    record = make_record(layers=tuple(range(12)), heads=tuple(range(12)), tokens=[["token"] * 32])
    assert len(html_of(record).encode()) < 500_000


def test_a_record_too_large_is_refused_before_it_is_packed():
    maps = np.broadcast_to(np.float32(0), (24, 1, 32, 512, 512))
    record = dataclasses.replace(make_record(tokens=[["token"] * 5]), weights=maps)
    with pytest.raises(ValueError, match=r"would take 269\.0 MB, more than 2 MB: record fewer layers.*$") as caught:
        optbook.view(record)
    assert "\n" not in str(caught.value)


def test_a_record_that_looks_ahead_is_measured_whole():
    record = make_record(layers=tuple(range(12)), heads=tuple(range(12)), tokens=[["token"] * 90])
    optbook.view(record)
    with pytest.raises(ValueError, match=r"would take 3\.1 MB"):
        optbook.view(with_weights(record, np.full(record.weights.shape, 1 / 90)))


@pytest.mark.parametrize("wrong", [1.5, -0.1, np.nan])
def test_weights_that_are_no_shares_are_refused(wrong):
    record = make_record()
    changed = record.weights.copy()
    changed[0, 0, 0, 1, 0] = wrong
    with pytest.raises(ValueError, match="between 0 and 1"):
        optbook.view(with_weights(record, changed))


def test_only_a_record_is_taken():
    with pytest.raises(TypeError, match="not ndarray"):
        optbook.view(np.zeros((5, 5)))


def test_save_writes_one_page_with_the_view_in_it(tmp_path):
    view = optbook.view(make_record())
    view.save(tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.count(view._repr_html_()) == 1


def lightness(color):
    """CIELAB's L* of an sRGB color, 0 to 100."""
    channels = np.array([int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16


@pytest.mark.parametrize(("theme", "direction"), [("light", -1), ("dark", 1)])
def test_lightness_of_the_colors_changes_by_equal_steps(theme, direction):
    script = resources.files("optbook.html_view").joinpath("view.js").read_text(encoding="utf-8")
    colors = re.findall(r"#[0-9a-f]{6}", re.search(rf"^    {theme}: \[(.*)\]", script, re.MULTILINE)[1])
    steps = direction * np.diff([lightness(color) for color in colors])
    assert len(colors) == 9
    assert steps.min() > 0.75 * steps.mean()
    assert steps.max() < 1.25 * steps.mean()


def test_nbval_compares_all_but_the_packed_weights():
    plugin = pytest.importorskip("nbval.plugin")
    rules = plugin.get_sanitize_patterns((Path(__file__).parent / "nbval_sanitize.cfg").read_text())

    def compared(text):
        for pattern, replacement in rules:
            text = re.sub(pattern, replacement, text)
        return text

    record = make_record()
    assert compared(html_of(record)) == compared(html_of(make_record(seed=1)))
    assert compared(html_of(record)) != compared(html_of(make_record(layers=(1, 3))))
    assert compared("weights sum to 1.0000") == "weights sum to 1.0000"
