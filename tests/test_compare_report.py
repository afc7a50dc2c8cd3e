"""Chapter 11 swept over trained and random presets: what its records say of each, and the page of the folder."""

import csv
import math
from pathlib import Path

import pytest
from make_checkpoints import make_checkpoint

import optbook
from optbook import compare

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "11_preset_report.ipynb"
TINY = dict(num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=32)
SHORT = {"sequence_length": [32], "batch_size": [2], "text_characters": [2000]}
TRAINED = "optbook_700k_en"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of the embedded preset in two dtypes, of random weights with its tokens and with OPT's, and of a mistake."""
    presets, out = tmp_path_factory.mktemp("presets"), tmp_path_factory.mktemp("runs")
    with_its_tokens, with_opt_tokens = presets / "its_tokens", presets / "opt_tokens"
    optbook.OPTBackbone(vocabulary_size=2048, **TINY).save_to_preset(with_its_tokens)
    optbook.tokenizer(TRAINED).save_to_preset(str(with_its_tokens))
    make_checkpoint({"vocabulary_size": 50272, "dropout": 0.0, **TINY}, "keras-hub", "float32", with_opt_tokens)
    random = {"preset": [str(with_its_tokens), str(with_opt_tokens)], "reference": [TRAINED], "dtype": ["float32"]}
    compare.sweep(NOTEBOOK, {"preset": [TRAINED], "dtype": ["float32", "bfloat16"], **SHORT}, out, jobs=2)
    compare.sweep(NOTEBOOK, {**random, **SHORT}, out, jobs=2)
    compare.sweep(NOTEBOOK, {"preset": [TRAINED], "dtype": ["float8"], "batch_size": ["many"]}, out)
    compare.report(out)
    return out


@pytest.fixture(scope="module")
def table(folder):
    return compare.table(folder)


@pytest.fixture(scope="module")
def runs(table):
    """The rows of the complete runs by the last part of the preset's name, and dtype."""
    return {(Path(row["preset"]).name, row["dtype"]): row for row in table.complete}


def test_every_preset_can_be_reported(table, runs):
    assert [row["error"] for row in table.rows if row["state"] == "complete"] == [None] * 4
    assert set(runs) == {
        (TRAINED, "float32"),
        (TRAINED, "bfloat16"),
        ("its_tokens", "float32"),
        ("opt_tokens", "float32"),
    }


def test_parameters_and_bytes_are_exact(runs):
    assert runs[TRAINED, "float32"]["parameters"] == 675_328
    assert runs[TRAINED, "float32"]["weights_bytes"] == 4 * 675_328
    assert runs[TRAINED, "bfloat16"]["weights_bytes"] == 2 * 675_328
    for vocabulary_size, name in ((2048, "its_tokens"), (50272, "opt_tokens")):
        expected = optbook.presets.parameter_count(vocabulary_size, **TINY)
        assert runs[name, "float32"]["parameters"] == expected


def test_random_weights_are_as_unsure_as_an_even_choice(runs):
    for vocabulary_size, name in ((2048, "its_tokens"), (50272, "opt_tokens")):
        assert math.isclose(runs[name, "float32"]["perplexity"], vocabulary_size, rel_tol=0.1)
    assert runs[TRAINED, "float32"]["perplexity"] < 60


def test_a_half_type_is_near_and_not_the_same(runs):
    assert runs[TRAINED, "float32"]["kl_nats"] == 0
    assert runs[TRAINED, "float32"]["greedy_agreement"] == 1
    assert 1e-6 < runs[TRAINED, "bfloat16"]["kl_nats"] < 1e-2
    assert 0.9 < runs[TRAINED, "bfloat16"]["greedy_agreement"] <= 1
    assert math.isclose(
        runs[TRAINED, "bfloat16"]["bits_per_byte"], runs[TRAINED, "float32"]["bits_per_byte"], rel_tol=0.01
    )


def test_random_weights_are_far_from_the_trained(runs):
    """Near ln V minus the entropy of what the trained model says."""
    assert 2 < runs["its_tokens", "float32"]["kl_nats"] < math.log(2048)
    assert runs["its_tokens", "float32"]["greedy_agreement"] < 0.1


def test_other_tokens_have_no_distance(runs):
    assert runs["opt_tokens", "float32"]["kl_nats"] is None
    assert runs["opt_tokens", "float32"]["greedy_agreement"] is None


def test_heads_of_the_trained_preset_have_roles(runs):
    trained, random = runs[TRAINED, "float32"], runs["its_tokens", "float32"]
    assert trained["heads.previous_token.score"] > 0.9
    assert random["heads.previous_token.score"] < 0.5
    assert 0 < trained["mean_attention_entropy"] < random["mean_attention_entropy"] <= 1


def test_speed_and_memory_are_there(runs):
    for row in runs.values():
        assert row["reading_tokens_per_second"] > row["writing_tokens_per_second"] > 0
        assert row["load_seconds"] > 0
        for activity in ("loading", "generating", "recording"):
            assert 100 < row[f"measured_{activity}_megabytes"] < 2000
            assert row[f"planned_{activity}_megabytes"] > 500 or optbook.memory.this_machine().gpu
        assert len(row["continuations"]) == 2


def test_bad_parameters_fail_in_the_first_cells(table):
    (failed,) = (row for row in table.rows if row["state"] == "failed")
    assert "dtype must be float32" in failed["error"]
    assert "batch_size must be a whole number of at least 1, but is 'many'" in failed["error"]
    assert failed["bits_per_byte"] is None


def test_the_page_and_the_csv_hold_all_runs(table, folder):
    lines = list(csv.DictReader((folder / "report.csv").open(encoding="utf-8")))
    assert [line["run"] for line in lines] == [row["run"] for row in table.rows]
    assert (folder / "report.html").read_text(encoding="utf-8").count('.ipynb"') >= 5
