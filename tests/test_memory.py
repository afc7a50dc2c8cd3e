"""The memory plan: its formulas against built models, its limits and advice, and what a process really takes."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import SIZES

import optbook
from optbook import cli, memory, presets
from optbook.layers import weights_follow
from optbook.memory import Place
from optbook.presets import hubs

# isort: split
import keras_hub  # after optbook, which keeps TensorFlow out of it

NAMES = [one.preset for one in memory.all_plans()]
TYPES = ["float32", "bfloat16", "float16", "mixed_bfloat16"]
NARROW = dict(normalize_first=False, embedding_dim=16)  # as OPT-350m


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(hubs, "download", lambda *args, **kwargs: pytest.fail("asked the network"))


@pytest.fixture
def machine_of(monkeypatch):
    """Makes this machine one of so many free bytes."""

    def of(limit, gpu=False):
        monkeypatch.setattr(memory, "this_machine", lambda: Place("this machine", limit, gpu))

    return of


# === What there is to hold ===


@pytest.mark.parametrize(
    ("dtype", "options"), [("float32", {}), ("bfloat16", NARROW), ("float16", {}), ("mixed_bfloat16", NARROW)]
)
def test_bytes_are_those_of_a_built_model(dtype, options):
    config = {**SIZES, **options}
    plan = optbook.plan(config, dtype, sequence_length=10, batch_size=3)
    backbone = optbook.OPTBackbone(**config, dtype=dtype)
    lm = keras_hub.models.OPTCausalLM(backbone)
    token_ids = np.full((3, 10), 5, "int32")
    inputs = {"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)}
    assert plan.parameters == backbone.count_params()
    assert plan.weights == sum(weight.value.nbytes for weight in backbone.weights)
    assert plan.kv_cache == lm._build_cache(token_ids)[1].nbytes
    assert plan.logits == lm(inputs).nbytes
    assert plan.attention_maps == optbook.record_attention(backbone, inputs).weights.nbytes


def test_published_presets_by_every_name_without_network(no_network):
    for name in ("opt_1.3b_en", "kaggle://keras/opt/keras/opt_1.3b_en/3", "hf://keras/opt_1.3b_en"):
        assert optbook.plan(name, "bfloat16").weights == 2 * 1_315_753_984
    assert optbook.plan("hf://facebook/opt-1.3b").weights == 4 * 1_315_753_984
    assert [optbook.plan(name).parameters for name in ("opt_125m_en", "hf://facebook/opt-350m")] == [
        125_237_760,
        331_194_368,
    ]


def test_a_folder_and_the_defaults(tmp_path):
    optbook.OPTBackbone(**SIZES).save_to_preset(tmp_path)
    plan = optbook.plan(tmp_path)
    assert (plan.preset, plan.dtype, plan.sequence_length, plan.batch_size) == (str(tmp_path), "float32", 24, 1)
    assert plan.weights == optbook.plan(SIZES).weights
    assert optbook.plan().preset == presets.DEFAULT


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(preset="opt_1t_en"), ValueError, "no preset or folder is called 'opt_1t_en'"),
        (dict(dtype="float13"), ValueError, "dtype must be .*, but is 'float13'"),
        (dict(dtype="int8_from_float32"), ValueError, "dtype must be .*, but is 'int8_from_float32'"),
        (dict(dtype=8), ValueError, "dtype must be .*, but is 8"),
        (dict(sequence_length=129), ValueError, "has 128 positions: sequence_length cannot be 129"),
        (dict(sequence_length=0), ValueError, "sequence_length must be at least 1, but is 0"),
        (dict(batch_size=0), ValueError, "batch_size must be at least 1, but is 0"),
        (dict(batch_size=1.5), TypeError, "batch_size must be an int, but is 1.5"),
    ],
)
def test_bad_input_is_answered_in_one_line(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        optbook.plan(**arguments)
    assert "\n" not in str(caught.value)


# === What fits where ===


def test_more_of_anything_needs_more():
    plan = optbook.plan("opt_125m_en", sequence_length=512)
    for change in (dict(batch_size=2), dict(sequence_length=1024)):
        larger = dataclasses.replace(plan, **change)
        for name in ("kv_cache", "logits", "attention_maps"):
            assert getattr(larger, name) > getattr(plan, name)
        for needs, more in ((plan.on_cpu, larger.on_cpu), (plan.on_gpu, larger.on_gpu)):
            assert more.loading == needs.loading > plan.weights
            assert more.generating > needs.generating
            assert more.recording > needs.recording


def test_half_types_are_widened_on_a_cpu_only():
    single, half = optbook.plan("opt_1.3b_en"), optbook.plan("opt_1.3b_en", "bfloat16")
    assert half.on_cpu.loading < 0.6 * single.on_cpu.loading
    assert half.on_cpu.generating > single.on_cpu.generating
    assert half.on_gpu.generating < 0.7 * single.on_gpu.generating


def test_the_interpreter_counts_on_a_cpu():
    names = [place.name for place in memory.PLACES]
    assert names == ["Binder, 2 GB", "Colab CPU, 12.7 GB", "T4, 15 GB", "A100, 40 GB", "H100, 80 GB"]
    assert [place.limit / 1e9 for place in memory.PLACES] == [1.5, 12.2, 11.25, 30, 60]


def test_what_fits_is_what_is_needed_at_most():
    plan = optbook.plan("opt_125m_en")
    for gpu, needs in ((False, plan.on_cpu), (True, plan.on_gpu)):
        assert needs.loading < needs.generating < needs.recording
        assert plan.fitting(Place("here", needs.loading - 1, gpu)) == ()
        assert plan.fitting(Place("here", needs.loading, gpu)) == ("loading",)
        assert plan.fitting(Place("here", needs.generating, gpu)) == ("loading", "generating")
        assert plan.fitting(Place("here", needs.recording, gpu)) == memory.Needs._fields
    short = optbook.plan(sequence_length=1)
    assert short.on_gpu.generating < short.on_gpu.loading
    assert short.fitting(Place("here", short.on_gpu.generating, gpu=True)) == ()  # it must be loaded first


def test_known_answers():
    assert optbook.plan("opt_125m_en", sequence_length=512).fits["Binder, 2 GB"] == memory.Needs._fields
    assert optbook.plan("opt_1.3b_en").fits["Binder, 2 GB"] == ()
    assert optbook.plan("opt_6.7b_en").fits["A100, 40 GB"] == ("loading",)
    assert "recording" in optbook.plan("opt_6.7b_en", "bfloat16", sequence_length=512).fits["A100, 40 GB"]


def test_the_printed_table():
    lines = str(optbook.plan("opt_1.3b_en", "bfloat16", 512)).splitlines()
    assert lines[0] == "opt_1.3b_en, bfloat16, 1 × 512 tokens"
    assert lines[1].split() == ["parameters", "1,315,753,984"]
    assert lines[2].split() == ["weights", "2.63", "GB"]
    assert [line.split()[0].rstrip(",") for line in lines[-5:]] == ["Binder", "Colab", "T4", "A100", "H100"]
    assert lines[-5].split()[-3:] == ["no", "no", "no"]
    assert lines[-2].split()[-3:] == ["fits", "fits", "fits"]


@pytest.mark.parametrize(
    ("count", "text"), [(2_701_312, "2.70 MB"), (500_951_040, "0.50 GB"), (26_633_863_168, "26.6 GB")]
)
def test_gigabytes(count, text):
    assert memory.gigabytes(count) == text


# === Refusals and advice ===


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(NAMES),
    st.sampled_from(TYPES),
    st.sampled_from(memory.Needs._fields),
    st.integers(20, 38),
    st.booleans(),
    st.integers(1, 64),
)
def test_advice_fits_and_is_no_larger(name, dtype, activity, power, gpu, batch_size):
    place, asked = Place("here", 2**power, gpu), optbook.plan(name, dtype, batch_size=batch_size)
    if activity in asked.fitting(place):
        return
    found = memory.nearest_that_fits(asked, place, activity)
    line = memory.refusal(asked, place, activity)
    assert "\n" not in line
    if found is None:
        assert "no preset is small enough" in line
        smallest = optbook.plan(presets.DEFAULT, asked.dtype, memory.SHORT)
        assert ("generating" if activity == "loading" else activity) not in smallest.fitting(place)
        return
    assert {activity, "generating" if activity == "loading" else activity} <= set(found.fitting(place))
    assert found.preset in line or "it would fit with" in line
    assert found.parameters <= asked.parameters
    assert "it would fit." not in line


@pytest.mark.parametrize(
    ("limit", "gpu", "advice"),
    [
        (15e9, True, "it would fit with dtype='bfloat16'."),
        (12e9, True, "opt_2.7b_en would fit."),
        (12e9, False, "opt_2.7b_en would fit."),
        (15e9, False, "opt_2.7b_en would fit."),  # in bfloat16 6.7b loads here, but could not generate
        (6.5e9, True, "opt_2.7b_en would fit with dtype='bfloat16'."),
        (0.1e9, False, "optbook_4m_en would fit."),
        (1e6, False, "no preset is small enough: free some memory first."),
    ],
)
def test_a_preset_that_cannot_be_loaded_is_refused(machine_of, no_network, limit, gpu, advice):
    machine_of(limit, gpu)
    config = presets.preset_config("opt_6.7b_en", dtype="float32")
    with pytest.raises(MemoryError) as caught:
        memory.require_fit("opt_6.7b_en", config)
    needed = "28.3 GB" if gpu else "26.9 GB"
    start = f"loading opt_6.7b_en in float32 needs {needed}, but this machine has {memory.gigabytes(limit)} free; "
    assert str(caught.value) == start + advice


def test_a_preset_that_can_be_loaded_is_not_refused(machine_of):
    config = presets.preset_config("opt_6.7b_en", dtype="bfloat16")
    machine_of(memory.plan(config, "bfloat16").on_cpu.loading)
    memory.require_fit("opt_6.7b_en", config)
    memory.require_fit("small", SIZES)  # a configuration without a type takes Keras's


def test_advice_keeps_to_what_was_asked_as_long_as_it_can():
    asked = optbook.plan("opt_125m_en", batch_size=8)
    needs = dataclasses.replace(asked, batch_size=2).on_gpu.recording
    assert memory.nearest_that_fits(asked, Place("here", needs, gpu=True), "recording").batch_size == 2
    needs = dataclasses.replace(asked, batch_size=1, sequence_length=1024).on_gpu.recording
    found = memory.nearest_that_fits(asked, Place("here", needs, gpu=True), "recording")
    assert (found.preset, found.sequence_length, found.batch_size) == ("opt_125m_en", 1024, 1)


# === This machine ===


def control_group(root, limit, used, cached, version=2):
    root.mkdir(parents=True, exist_ok=True)
    names = (
        ("memory.max", "memory.current", "inactive_file")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    (root / names[0]).write_text(f"{limit}\n")
    (root / names[1]).write_text(f"{used}\n")
    (root / "memory.stat").write_text(f"anon 7\n{names[2]} {cached}\n")


@pytest.mark.parametrize(
    ("line", "groups", "version", "left"),
    [
        ("0::/", {"": (1000, 300, 50)}, 2, 750),
        ("0::/job/step", {"job": (900, 300, 0), "job/step": ("max", 300, 0)}, 2, 600),
        ("0::/named/from/outside", {"": (1000, 300, 50)}, 2, 750),
        ("0::/", {"": (100, 300, 0)}, 2, 0),
        ("4:memory:/job", {"memory": (10**18, 300, 0), "memory/job": (800, 300, 100)}, 1, 600),
    ],
)
def test_a_control_group_limits_this_machine(tmp_path, line, groups, version, left):
    own = tmp_path / "own"
    own.write_text(f"5:devices:/\n{line}\n")
    for folder, numbers in groups.items():
        control_group(tmp_path / "groups" / folder, *numbers, version)
    assert memory.this_machine(tmp_path / "groups", own) == Place("this machine", left, gpu=False)


def test_without_control_groups_the_free_memory_counts(tmp_path):
    limit = memory.this_machine(tmp_path, tmp_path / "none").limit
    assert limit == pytest.approx(psutil.virtual_memory().available, rel=0.5)


def test_a_gpu_is_this_machine(monkeypatch):
    gpu = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 1000, "bytes_in_use": 100})
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    assert memory.this_machine() == Place("this machine", 900, gpu=True)
    gpu.memory_stats = lambda: None  # a device that does not tell
    assert not memory.this_machine().gpu


# === The command line ===


def invoke(*arguments):
    return CliRunner().invoke(cli.main, ["plan", *arguments])


def test_plan_command_of_one_preset(machine_of, no_network):
    machine_of(20e9)
    result = invoke("opt_6.7b_en", "--dtype", "bfloat16", "--sequence-length", "256", "--batch-size", "2")
    assert result.exit_code == 0
    assert str(optbook.plan("opt_6.7b_en", "bfloat16", 256, 2)) in result.output
    assert "this machine" in result.output
    assert "generating opt_6.7b_en in bfloat16 needs" in result.output  # loads, but no more


def test_plan_command_fails_when_a_named_preset_cannot_be_loaded(machine_of):
    machine_of(1e9)
    result = invoke("opt_125m_en", "opt_1.3b_en")
    assert result.exit_code == 1
    assert "loading opt_1.3b_en in float32 needs" in result.output
    assert "loading opt_125m_en" not in result.output


def test_plan_command_without_a_preset_lists_all(machine_of):
    machine_of(1e9)
    result = invoke("--sequence-length", "512")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.output.splitlines() if line.split()}
    assert set(NAMES) <= set(lines)
    assert "✗" in lines["opt_1.3b_en"]
    assert "✗" not in lines["opt_125m_en"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["opt_1t_en"], "no preset or folder is called 'opt_1t_en'"),
        (["--dtype", "float13"], "but is 'float13'"),
        (["--batch-size", "0"], "batch_size must be at least 1"),
        (["--sequence-length", "0"], "sequence_length must be at least 1"),
        (["optbook_700k_en", "--sequence-length", "129"], "has 128 positions"),
        (["--batch-size", "many"], "is not a valid integer"),
    ],
)
def test_bad_use_of_the_plan_command_has_exit_code_2(arguments, said):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


# === Measured ===


def save_true_size(folder, preset, dtype):
    """A preset folder with the sizes of a published one and zeros for weights."""
    with weights_follow():
        backbone = optbook.OPTBackbone(**presets.preset_config(preset, dtype=dtype))
    backbone.save_to_preset(folder)


def measure(preset, dtype, batch_size, sequence_length, copies=1):
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "1000000",  # so that what is freed is no longer resident
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    script = Path(__file__).with_name("measured_memory.py")
    command = [sys.executable, str(script), str(preset), dtype, str(batch_size), str(sequence_length), str(copies)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


def assert_as_planned(plan, measured, tolerance=0.1):
    """Every number of the plan within a tenth of what the process took."""
    weights = measured["loading"]["held"]
    pairs = {
        "loading": (plan.on_cpu.loading, measured["loading"]["peak"]),
        "weights": (plan.weights + plan.config["num_layers"] * memory.LAYER_OBJECTS, weights),
        "generating": (plan.on_cpu.generating, weights + measured["generating"]["peak"]),
        "recording": (plan.on_cpu.recording, weights + measured["attention_maps"]["peak"]),
        **{name: (getattr(plan, name), measured[name]["held"]) for name in ("kv_cache", "logits", "attention_maps")},
    }
    off = {name: planned / found - 1 for name, (planned, found) in pairs.items()}
    assert all(abs(error) <= tolerance for error in off.values()), {
        name: f"{error:+.1%}" for name, error in off.items()
    }


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is counted as Linux counts it")
def test_the_embedded_preset_takes_what_is_planned():
    """So many copies and so large a batch that nothing is lost in the noise."""
    assert_as_planned(optbook.plan(batch_size=256), measure(presets.DEFAULT, "float32", 256, 128, copies=20))


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is counted as Linux counts it")
def test_a_true_size_preset_takes_what_is_planned(tmp_path):
    save_true_size(tmp_path, "opt_125m_en", "bfloat16")
    assert_as_planned(optbook.plan(tmp_path, "float32", 256, 2), measure(tmp_path, "float32", 2, 256))
