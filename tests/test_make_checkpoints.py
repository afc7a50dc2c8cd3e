"""Checkpoints with random weights, written as the published ones are, and what loading one takes."""

import json
import subprocess
import sys
from pathlib import Path

import keras_hub
import numpy as np
import pytest
from click.testing import CliRunner
from small_models import SIZES

import optbook
from optbook import presets

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import make_checkpoints

FORMATS = ("keras-hub", "safetensors", "bin")
DTYPES = ("float32", "float16", "bfloat16")
OPT_350M = {**SIZES, "normalize_first": False, "embedding_dim": 16}
SHARD_BYTES = 20_000  # the models here have some 110 000


@pytest.fixture(autouse=True)
def small_block(monkeypatch):
    """Random numbers for a model this small, not for the largest."""
    monkeypatch.setattr(make_checkpoints, "BLOCK", 1_000_003)


def made(folder, file_format, dtype="float32", config=SIZES, **options):
    make_checkpoints.make_checkpoint(config, file_format, dtype, folder, **options)
    return folder


def assert_has_the_numbers(backbone, dtype, seed=0):
    """The backbone's weights are those of a checkpoint of ``dtype``, in its own type."""
    numbers = make_checkpoints.Numbers(seed)
    for weight in backbone.weights:
        expected = numbers.of(weight, make_checkpoints.DTYPES[dtype]).astype(weight.dtype)
        np.testing.assert_array_equal(weight, expected, err_msg=weight.path)


@pytest.mark.parametrize("shard_bytes", [None, SHARD_BYTES], ids=["one file", "shards"])
@pytest.mark.parametrize("config", [SIZES, OPT_350M], ids=["usual", "350m"])
@pytest.mark.parametrize("file_format", FORMATS)
def test_every_format_holds_the_same_model(tmp_path, file_format, config, shard_bytes):
    folder = made(tmp_path / "made", file_format, config=config, shard_bytes=shard_bytes)
    backbone = optbook.OPTBackbone.from_preset(folder)
    assert (backbone.normalize_first, backbone.embedding_dim) == ((config is SIZES), config.get("embedding_dim", 32))
    assert_has_the_numbers(backbone, "float32")
    files = [path.name for path in folder.iterdir()]
    assert (len([name for name in files if name.endswith((".h5", ".bin", ".safetensors"))]) > 3) == bool(shard_bytes)
    assert any("weight_map" in (folder / name).read_text() for name in files if name.endswith(".json")) == bool(
        shard_bytes
    )


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("file_format", FORMATS)
def test_every_type_loads_as_every_type(tmp_path, file_format, stored):
    folder = made(tmp_path, file_format, stored, {**SIZES, "num_layers": 1})
    for loaded in DTYPES:
        assert_has_the_numbers(optbook.OPTBackbone.from_preset(folder, dtype=loaded), stored)


@pytest.mark.parametrize("file_format", FORMATS)
def test_large_tensors_arrive_in_blocks(tmp_path, file_format):
    """A kernel of 2.7 million numbers is read in three blocks, the last one shorter and no multiple of the strip."""
    sizes = {**SIZES, "num_layers": 1, "hidden_dim": 808, "intermediate_dim": 3335}
    folder = made(tmp_path, file_format, "float32", sizes)
    for dtype in ("float32", "bfloat16"):
        assert_has_the_numbers(optbook.OPTBackbone.from_preset(folder, dtype=dtype), "float32")


def test_the_numbers():
    backbone = optbook.OPTBackbone(**{**SIZES, "hidden_dim": 256})
    numbers, others = make_checkpoints.Numbers(0), make_checkpoints.Numbers(1)
    values = {weight.path: numbers.of(weight, "float32") for weight in backbone.weights}
    assert len({value.tobytes() for value in values.values()}) == len(values)
    for weight in backbone.weights:
        value = values[weight.path]
        assert abs(value.mean() - (1 if weight.path.endswith("gamma") else 0)) < 0.005
        assert 0.016 < value.std() < 0.024
        assert not np.array_equal(value, others.of(weight, "float32"))


def test_no_two_rows_of_a_table_longer_than_the_block_are_equal(monkeypatch):
    monkeypatch.setattr(make_checkpoints, "BLOCK", 509)
    table = optbook.OPTBackbone(**SIZES).token_embedding.embeddings
    rows = make_checkpoints.Numbers().of(table, "float32")
    assert len(np.unique(rows, axis=0)) == len(rows)


@pytest.mark.parametrize("shard_bytes", [None, SHARD_BYTES], ids=["one file", "shards"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_keras_hub_loads_its_format(tmp_path, dtype, shard_bytes):
    made(tmp_path, "keras-hub", dtype, shard_bytes=shard_bytes)
    theirs = keras_hub.models.OPTBackbone.from_preset(str(tmp_path), dtype=dtype)
    ours = optbook.OPTBackbone.from_preset(tmp_path, dtype=dtype)
    assert type(theirs) is keras_hub.models.OPTBackbone
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_keras_hub_writes_the_same_index(tmp_path):
    """The same keys and layout of model.weights.json; which file an array is in depends on the order of writing."""
    made(tmp_path / "made", "keras-hub", shard_bytes=SHARD_BYTES)
    theirs = keras_hub.models.OPTBackbone.from_preset(str(tmp_path / "made"))
    theirs.save_to_preset(str(tmp_path / "theirs"), max_shard_size=SHARD_BYTES / 1024**3)
    ours, expected = (json.loads((tmp_path / name / "model.weights.json").read_text()) for name in ("made", "theirs"))
    assert ours["metadata"] == expected["metadata"]
    assert set(ours["weight_map"]) == set(expected["weight_map"])
    assert set(sum(ours["weight_map"].values(), [])) == {f"model_{number:05}.weights.h5" for number in range(7)}


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_task_with_opts_tokenizer_loads(tmp_path, file_format):
    made(tmp_path, file_format, config={**SIZES, "vocabulary_size": 50272, "num_layers": 1, "hidden_dim": 8})
    lm = optbook.causal_lm(tmp_path, sequence_length=16)
    assert lm.preprocessor.tokenizer("I like you.").tolist() == [100, 101, 47, 4]
    if file_format == "keras-hub":
        theirs = keras_hub.models.OPTCausalLM.from_preset(str(tmp_path))
        assert theirs.preprocessor.tokenizer("I like you.").tolist() == [100, 101, 47, 4]


def test_the_command(tmp_path):
    arguments = ["--format", "bin", "--dtype", "float16", "--out", str(tmp_path)]
    result = CliRunner().invoke(make_checkpoints.main, ["opt_1b", *arguments])
    assert result.exit_code == 2
    assert "'opt_1b' is no published OPT; give a name such as opt_1.3b_en." in result.output


def test_the_command_asks_for_room_first(tmp_path):
    arguments = ["--format", "bin", "--dtype", "float32", "--out", str(tmp_path)]
    result = CliRunner().invoke(make_checkpoints.main, ["hf://facebook/opt-175b", *arguments])
    assert result.exit_code == 1
    assert "hf://facebook/opt-175b in float32 takes 698.4 GB, but" in result.output
    assert not list(tmp_path.iterdir())


# In a process of its own: the peak of what loading adds to the resident memory, and that no random number is drawn.
MEASURE_LOADING = """
import gc, json, sys
import jax, psutil
import optbook
from optbook import report
resident = psutil.Process().memory_info

def refuse(*_, **__):
    raise AssertionError("a random number was drawn")

for name in ("bits", "normal", "truncated_normal", "uniform"):
    setattr(jax.random, name, refuse)
try:
    optbook.OPTBackbone.from_preset(sys.argv[1], load_weights=False)
    raise SystemExit("the trap does not work")
except AssertionError:
    pass
optbook.OPTBackbone.from_preset(optbook.presets.DEFAULT)  # what any loading needs
for folder, dtype in zip(sys.argv[1::2], sys.argv[2::2]):
    gc.collect()
    start = resident().rss
    backbone, cost = report.watched(lambda: optbook.OPTBackbone.from_preset(folder, dtype=dtype))
    print(json.dumps([cost.peak_bytes - start, sum(weight.value.nbytes for weight in backbone.weights)]))
    del backbone
"""
CONSTANT = 45_000_000  # bytes beside the weights: two kernels as the file has them, the layers and their tracing


def test_loading_holds_the_model_once(tmp_path):
    """Layers as OPT-125m's, kernels of 9 MB in the file: a second copy of the model would show."""
    sizes = {**SIZES, "num_layers": 8, "hidden_dim": 768, "intermediate_dim": 3072}
    runs = []
    for file_format in ("keras-hub", "bin"):
        folder = made(tmp_path / file_format, file_format, "float32", sizes)
        runs += [str(folder), "float32", str(folder), "bfloat16"]
    command = [sys.executable, "-c", MEASURE_LOADING, *runs]

    def measure():
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-2000:]
        return [json.loads(line) for line in result.stdout.splitlines()]

    # Memory that is freed and not given back adds to one process or the other; a second copy would to both.
    measured = list(map(min, measure(), measure()))
    size = presets.parameter_count(**sizes)
    assert [model for _, model in measured] == [4 * size, 2 * size] * 2
    for peak, model in measured:
        assert peak <= 1.15 * model + CONSTANT
