"""The checks of chapter 07 accept right answers and name the misconception behind the usual wrong ones."""

import json

import numpy as np
import pytest

from optbook import OPTBackbone, layers, presets
from optbook.checks import NotYet
from optbook.checks import presets as checks


def count(
    config,
    heads=1,
    bias=1,
    norm=2,
    head=0,
    extra_rows=0,
    middle=None,
    depth=None,
    positions=1,
    final=None,
    narrow=None,
    projections=1,
    projection_bias=0,
):
    """A right count, each part of which an argument can spoil."""
    width = config["hidden_dim"]
    narrow = (config.get("embedding_dim") or width) if narrow is None else narrow
    middle = config["intermediate_dim"] if middle is None else middle
    depth = config["num_layers"] if depth is None else depth
    attention = 4 * heads * (width * width + bias * width)
    feedforward = 2 * width * middle + bias * (middle + width)
    total = (1 + head) * config["vocabulary_size"] * narrow
    total += positions * (config["max_sequence_length"] + extra_rows) * width
    if narrow != width:
        total += projections * 2 * narrow * width + projection_bias * (narrow + width)
    total += depth * (attention + feedforward + 2 * norm * width)
    return total + (norm * width if (config.get("normalize_first", True) if final is None else final) else 0)


def test_parameters_accepts_the_right_count():
    assert checks.parameters(count).startswith("right: 4 configurations")


@pytest.mark.parametrize("config", [checks.PLAIN, checks.LIKE_350M], ids=["plain", "like 350m"])
def test_the_reference_is_what_keras_counts(config):
    with layers.weights_follow():
        assert OPTBackbone(**config).count_params() == presets.parameter_count(**config)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda config: count(config, heads=config["num_heads"]), "once per head"),
        (lambda config: count(config, bias=0), "the biases are missing"),
        (lambda config: count(config, norm=1), "gamma and beta"),
        (lambda config: count(config, head=1), "must not be counted again"),
        (lambda config: count(config, extra_rows=2), "two more are Hugging Face's"),
        (lambda config: count(config, middle=4 * config["hidden_dim"]), "you took 4 × hidden_dim"),
        (lambda config: count(config, depth=1), "you counted one layer"),
        (lambda config: count(config, positions=0), "the position table is missing"),
        (lambda config: count(config, final=False), "the final layer norm is missing"),
        (lambda config: count(config, final=True), "there is no final norm"),
        (lambda config: count(config, narrow=config["hidden_dim"]), "you overlooked embedding_dim:"),
        (lambda config: count(config, narrow=config["hidden_dim"], final=True), "both of OPT-350m's options"),
        (lambda config: count(config, projections=0), "they are missing"),
        (lambda config: count(config, projection_bias=1), "have no biases"),
        (
            lambda config: (
                count(config)
                + config["vocabulary_size"] * (config["hidden_dim"] - config.get("embedding_dim", config["hidden_dim"]))
            ),
            "embedding_dim wide, where that is given",
        ),
        (
            lambda config: count({**config, "normalize_first": config["normalize_first"]}),
            "KeyError: 'normalize_first'.*use .get",
        ),
        (lambda config: count(config) + 1, "Keras counts 4,512 parameters, but your function 4513"),
    ],
)
def test_parameters_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        checks.parameters(wrong)


def turned(theirs, num_heads):
    return theirs.T.reshape(theirs.shape[1], num_heads, -1)


@pytest.mark.parametrize(
    "right",
    [turned, lambda theirs, num_heads: theirs.reshape(num_heads, -1, theirs.shape[1]).transpose(2, 0, 1)],
    ids=["transposed first", "split first"],
)
def test_kernel_accepts_the_right_function(right):
    assert checks.kernel(right).startswith("right: output 4 of theirs")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda theirs, heads: theirs.reshape(12, heads, 4), "^the transpose is missing: the file"),
        (lambda theirs, heads: theirs.T.reshape(12, 4, heads), "the heads stand last"),
        (lambda theirs, heads: turned(theirs, heads).swapaxes(1, 2), "the heads stand last"),
        (lambda theirs, heads: theirs.T.reshape(12, 4, heads).swapaxes(1, 2), "^the outputs are dealt out"),
        (lambda theirs, heads: theirs.reshape(12, 4, heads).swapaxes(1, 2), "missing, and the outputs are dealt"),
        (lambda theirs, heads: theirs.reshape(heads, 4, 12), "the inputs stand last"),
        (lambda theirs, heads: turned(theirs, heads).swapaxes(0, 1), "the heads stand first"),
        (lambda theirs, heads: theirs.T, "not split yet"),
        (lambda theirs, heads: theirs.T.reshape(-1), "the kernel has shape .144,."),
        (lambda theirs, heads: turned(theirs, heads)[::-1], "the numbers are not"),
    ],
)
def test_kernel_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        checks.kernel(wrong)


def length(config, free, batch_size, itemsize, pair=2, most=None, factor=1, **left_out):
    """A right length, each part of which an argument can spoil."""
    sizes = {"num_layers": config["num_layers"], "batch_size": batch_size, "itemsize": itemsize} | left_out
    token = pair * config["hidden_dim"] * sizes["num_layers"] * sizes["batch_size"] * sizes["itemsize"]
    return min(config["max_sequence_length"] if most is None else most, int(free / (token * factor)))


def test_longest_accepts_the_right_function():
    assert checks.longest(length).startswith("right: 5 cases")
    assert checks.longest(lambda *given: np.int64(length(*given))).startswith("right: 5 cases")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda *given: length(*given, pair=1), "the key and the value"),
        (lambda *given: length(given[0], given[1], 1, given[3]), "batch_size is missing"),
        (lambda *given: length(*given, num_layers=1), "num_layers is missing"),
        (lambda *given: length(*given, factor=1 / given[0]["num_heads"]), "you counted one head"),
        (lambda *given: length(*given, factor=given[0]["num_heads"]), "counts them twice"),
        (lambda *given: length(*given[:3], 4), "here 2; you took 4"),
        (lambda *given: length(*given[:3], 1), "itemsize is missing"),
        (lambda *given: length(*given, most=10**9), "there are 2048 positions"),
        (lambda *given: length(*given) + 1, "round down"),
        (lambda *given: float(length(*given)), "a length is an int"),
        (lambda *given: length(*given) // 3, "have room for 50 tokens; your function says 16"),
    ],
)
def test_longest_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        checks.longest(wrong)


def truth(content):
    return next(verdict for one, verdict, _ in checks.config_files() if one == content)


def test_reader_accepts_the_right_function():
    assert checks.reader(truth).startswith("right: 7 folders")


@pytest.mark.parametrize(("content", "verdict", "clue"), checks.config_files())
def test_reader_gives_the_clue_that_was_missed(content, verdict, clue):
    answer = "neither" if verdict != "neither" else "optbook"
    with pytest.raises(NotYet, match=f"is read by {verdict}, not {answer}: {clue}"):
        checks.reader(lambda one: answer if one == content else truth(one))


def test_reader_lists_the_answers():
    with pytest.raises(NotYet, match="answer with one of .both., .optbook., .neither."):
        checks.reader(lambda content: "KerasHub")


@pytest.mark.parametrize(("content", "verdict", "clue"), checks.config_files())
def test_optbook_reads_what_the_check_says(content, verdict, clue, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(content))
    if verdict == "neither":
        with pytest.raises(ValueError, match="not an OPT|must be"):
            presets.read_config(tmp_path)
    else:
        assert presets.read_config(tmp_path)["hidden_dim"] in (12, 24)
