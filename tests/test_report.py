"""What chapter 11 measures: its parameters checked, costs watched, two models compared."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
from small_models import randomize

import optbook

# isort: split
import keras_hub  # after optbook, which keeps TensorFlow out of it

from optbook import memory, presets, report

ROOT = Path(__file__).parents[1]
GOOD = dict(
    preset="optbook_700k_en",
    dtype="bfloat16",
    sequence_length=64,
    batch_size=2,
    prompts=["The old house", "She"],
    text_file=None,
    text_characters=None,
    reference=None,
    seed=0,
)


@pytest.fixture(scope="module")
def lm():
    return optbook.causal_lm("optbook_700k_en", dtype="float32")


@pytest.fixture(scope="module")
def random_lm():
    """The sizes and the tokenizer of the embedded preset, random weights."""
    backbone = optbook.OPTBackbone.from_preset("optbook_700k_en", load_weights=False)
    randomize(backbone)
    preprocessor = keras_hub.models.OPTCausalLMPreprocessor(optbook.tokenizer("optbook_700k_en"))
    return keras_hub.models.OPTCausalLM(backbone, preprocessor=preprocessor)


def settings(**changed):
    return report.settings(**{**GOOD, **changed})


def test_good_parameters_stay_as_they_are():
    chosen = settings()
    assert {name: getattr(chosen, name) for name in GOOD} == {**GOOD, "prompts": ("The old house", "She")}


@pytest.mark.parametrize("absent", [None, "", "None", "null", " none "])
def test_what_is_left_out_has_its_default(absent):
    chosen = settings(dtype=absent, sequence_length=absent, text_file=absent, text_characters=absent, reference=absent)
    assert (chosen.dtype, chosen.sequence_length) == ("float32", 128)
    assert (chosen.text_file, chosen.text_characters, chosen.reference) == (None, None, None)
    assert len(chosen.text) > 50_000


def test_numbers_may_be_text_and_a_prompt_may_stand_alone():
    chosen = settings(sequence_length="32", batch_size="1_0", seed="7", text_characters="100", prompts="She")
    assert (chosen.sequence_length, chosen.batch_size, chosen.seed) == (32, 10, 7)
    assert chosen.prompts == ("She",)
    assert len(chosen.text) == 100


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (dict(preset="optbook_9b_en"), "preset: no preset or folder is called 'optbook_9b_en'"),
        (dict(preset=""), "preset must be the name, handle or folder of a preset, but is ''"),
        (dict(preset=7), "preset must be the name"),
        (dict(dtype="float8"), "dtype must be float32"),
        (dict(dtype=16), "dtype must be float32"),
        (dict(sequence_length=129), "sequence_length is 129, but the preset has 128 positions"),
        (dict(sequence_length=7), "sequence_length must be a whole number of at least 8, but is 7"),
        (dict(sequence_length="long"), "but is 'long'"),
        (dict(batch_size=0), "batch_size must be a whole number of at least 1, but is 0"),
        (dict(batch_size=1.5), "but is 1.5"),
        (dict(batch_size=True), "but is True"),
        (dict(batch_size=None), "but is None"),
        (dict(seed=-1), "seed must be a whole number of at least 0, but is -1"),
        (dict(text_characters=0), "text_characters must be a whole number of at least 1"),
        (dict(prompts=[]), "prompts must be a text or a list of texts"),
        (dict(prompts=["She", " "]), "none of them empty"),
        (dict(prompts=3), "prompts must be a text or a list of texts"),
        (dict(prompts="['She', 'He']"), "prompts is a list written as text"),
        (dict(text_file="missing.txt"), "there is no file 'missing.txt'"),
        (dict(text_file=3), "there is no file 3"),
        (dict(reference="optbook_9b_en"), "reference: no preset or folder is called"),
    ],
)
def test_each_bad_value_is_one_line(changed, said):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        settings(**changed)
    assert "\n" not in str(caught.value)


def test_all_bad_values_are_named_at_once():
    with pytest.raises(ValueError, match="preset") as caught:
        settings(preset="nothing", dtype="float8", sequence_length="x", batch_size=0, prompts=1, seed="")
    lines = str(caught.value).splitlines()
    assert [line.split()[0].rstrip(":") for line in lines] == [
        "preset",
        "dtype",
        "sequence_length",
        "batch_size",
        "prompts",
        "seed",
    ]


@pytest.mark.parametrize(("content", "said"), [(b"\xff\xfe\x00", "is not"), (b" \n", "is empty")])
def test_a_text_file_that_is_no_text_is_refused(tmp_path, content, said):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        settings(text_file=str(path))


def test_the_text_comes_from_the_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("Žluťoučký kůň", encoding="utf-8")
    assert settings(text_file=str(path), text_characters=9).text == "Žluťoučký"


def test_watched_returns_the_result_with_seconds_and_peak():
    def work():
        filled = np.ones(25_000_000)  # 200 MB
        time.sleep(0.1)
        return len(filled)

    _, before = report.watched(lambda: None)
    result, cost = report.watched(work)
    assert result == 25_000_000
    assert cost.seconds >= 0.1
    if not memory.this_machine().gpu:
        assert cost.peak_bytes - before.peak_bytes > 150e6


def test_watched_lets_errors_through():
    with pytest.raises(ZeroDivisionError):
        report.watched(lambda: 1 / 0)


def test_planned_peaks_count_python_on_a_cpu(monkeypatch):
    plan = memory.plan("opt_125m_en", "float32", 64)
    for gpu, needs, more in ((False, plan.on_cpu, memory.INTERPRETER), (True, plan.on_gpu, 0)):
        monkeypatch.setattr(memory, "this_machine", lambda gpu=gpu: memory.Place("here", 10**12, gpu))
        assert report.planned_peaks(plan) == {name: count + more for name, count in needs._asdict().items()}


def test_text_rows_are_stretches_of_the_text(lm):
    text = "The old house was cold, but the old house was home. " * 4
    whole = optbook.tokens.tokenize_batch(lm.preprocessor.tokenizer, text)["token_ids"][0].tolist()
    rows = report.text_rows(lm, text, rows=20, length=9, seed=3)
    assert rows.shape == (20, 9)
    assert (rows[:, 0] == lm.preprocessor.tokenizer.start_token_id).all()
    stretches = {tuple(whole[begin : begin + 8]) for begin in range(1, len(whole) - 7)}
    assert {tuple(row[1:]) for row in rows.tolist()} <= stretches
    assert len({tuple(row) for row in rows.tolist()}) > 5
    assert (report.text_rows(lm, text, 20, 9, seed=3) == rows).all()
    assert report.text_rows(lm, text, 5, len(whole)).tolist() == [whole] * 5


def test_a_text_shorter_than_a_row_is_refused(lm):
    with pytest.raises(ValueError, match=r"the text has 2 tokens, the start token included, but a row takes 9\."):
        report.text_rows(lm, "She", rows=1, length=9)


def test_logits_are_those_of_the_model(lm):
    rows = report.text_rows(lm, settings().text, 2, 16)
    expected = lm({"token_ids": rows, "padding_mask": np.ones_like(rows)})
    np.testing.assert_allclose(report.next_token_logits(lm, rows), expected, atol=1e-4)


def test_distance_is_the_divergence_from_the_reference(lm, random_lm):
    rows = report.text_rows(lm, settings().text, 2, 16)
    divergence, same_first = report.distance(random_lm, lm, rows)
    p, q = (
        np.exp(np.float64(logits)) / np.exp(np.float64(logits)).sum(axis=-1, keepdims=True)
        for logits in (report.next_token_logits(model, rows) for model in (lm, random_lm))
    )
    np.testing.assert_allclose(divergence, (p * np.log(p / q)).sum(axis=-1), rtol=1e-3)
    assert (same_first == (p.argmax(axis=-1) == q.argmax(axis=-1))).all()
    assert divergence.shape == same_first.shape == (2, 16)


def test_a_model_is_at_no_distance_from_itself(lm):
    divergence, same_first = report.distance(lm, lm, report.text_rows(lm, settings().text, 1, 16))
    assert (divergence == 0).all()
    assert same_first.all()


def test_rows_without_a_token_do_not_count(lm):
    """Published tables have more rows than the tokenizer has tokens."""
    longer = optbook.OPTBackbone(**{**presets.preset_config("optbook_700k_en"), "vocabulary_size": 2050})
    for weight, source in zip(longer.weights, lm.backbone.weights):
        value = np.asarray(source)
        extra = np.full((weight.shape[0] - value.shape[0], *value.shape[1:]), 9.0)
        weight.assign(np.concatenate([value, extra]))
    padded = keras_hub.models.OPTCausalLM(longer, preprocessor=lm.preprocessor)
    divergence, _ = report.distance(padded, lm, report.text_rows(lm, settings().text, 1, 16))
    assert divergence.max() < 1e-6


def test_the_reference_of_a_float32_report_is_its_own_model(lm):
    assert report.reference_model(settings(dtype="float32"), lm) == (lm, None)
    assert report.reference_model(settings(dtype="float32", reference="optbook_700k_en"), lm) == (lm, None)


def test_the_reference_of_a_half_type_is_the_preset_in_float32():
    half = optbook.causal_lm("optbook_700k_en", dtype="bfloat16")
    other, reason = report.reference_model(settings(), half)
    assert reason is None
    assert other is not half
    assert other.backbone.compute_dtype == "float32"
    divergence, same_first = report.distance(half, other, report.text_rows(half, settings().text, 2, 64))
    assert 1e-6 < divergence.mean() < 1e-2
    assert same_first.mean() > 0.9


def test_other_tokens_have_no_distance(lm):
    other = keras_hub.models.OPTCausalLM(
        lm.backbone, preprocessor=keras_hub.models.OPTCausalLMPreprocessor(optbook.tokenizer("opt"))
    )
    found, reason = report.reference_model(settings(reference="optbook_4m_en"), other)
    assert found is None
    assert reason == "no distance: optbook_700k_en and optbook_4m_en have different tokenizers."


def test_a_reference_that_does_not_fit_is_no_error(lm, monkeypatch):
    monkeypatch.setattr(memory, "this_machine", lambda: memory.Place("here", 1000))
    found, reason = report.reference_model(settings(), lm)
    assert found is None
    assert "needs" in reason
    assert "\n" not in reason


def test_strongest_heads_are_found():
    scores = {"induction": np.array([[0.1, 0.2, 0.0], [0.3, 0.9, 0.1]]), "first_token": np.array([[0.1, 0.5, 0.2]])}
    assert report.strongest_heads(scores) == {
        "induction": {"layer": 1, "head": 1, "score": 0.9},
        "first_token": {"layer": 0, "head": 1, "score": 0.5},
    }


@pytest.mark.parametrize(("text", "passes"), [("= 2", True), ("= 3", False)])
def test_nbval_compares_what_is_exact_in_a_record(tmp_path, text, passes):
    data = {"application/vnd.optbook.report+json": {}, "text/plain": f"seconds  ≈ 9.8e-05\ncount    {text}"}
    cell = nbformat.v4.new_code_cell("import optbook\noptbook.compare.record(seconds=1.25, count=2)", execution_count=1)
    cell.outputs = [nbformat.v4.new_output("display_data", data)]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    options = ["--nbval-sanitize-with", str(ROOT / "tests" / "nbval_sanitize.cfg"), "-p", "conftest", "-c", os.devnull]
    command = [sys.executable, "-m", "pytest", "--nbval", *options, str(tmp_path / "a.ipynb")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert result.returncode == (0 if passes else 1), result.stdout
