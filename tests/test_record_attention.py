"""Records: equal to running layer by layer, out of KerasHub's model too, no larger than asked, saved and read back."""

import gc
import os
import random
import subprocess
import sys
import weakref

import jax
import numpy as np
import psutil
import pytest
from small_models import INPUTS, SIZES, assert_close, make_inputs, make_pair

import optbook
from optbook import _programs, memory

# isort: split
import keras_hub  # after optbook, which keeps TensorFlow out of it

FIELDS = ("weights", "layers", "heads", "tokens", "padding_mask", "token_ids", "positions")


def run_by_layer(backbone, inputs):
    """The attention maps of every layer, each called on its own."""
    x, maps = backbone.embed(inputs["token_ids"], inputs["padding_mask"]), []
    for layer in backbone.transformer_layers:
        x, scores = layer(x, decoder_padding_mask=inputs["padding_mask"], return_attention_scores=True)
        maps.append(np.asarray(scores))
    return np.stack(maps)


@pytest.fixture(scope="module")
def causal_lm():
    """KerasHub's causal language model around its own backbone, with the embedded tokenizer."""
    tokenizer = optbook.tokenizer()
    backbone, _ = make_pair(vocabulary_size=tokenizer.vocabulary_size())
    preprocessor = keras_hub.models.OPTCausalLMPreprocessor(tokenizer, sequence_length=24)
    return keras_hub.models.OPTCausalLM(backbone, preprocessor=preprocessor)


# What is recorded


def test_a_record_equals_running_layer_by_layer(backbone, inputs):
    expected = run_by_layer(backbone, inputs)
    assert_close(optbook.record_attention(backbone, inputs).weights, expected)
    chosen = optbook.record_attention(backbone, inputs, layers=[1, 0], heads=[3, 0, 2])
    assert_close(chosen.weights, expected[[1, 0]][:, :, [3, 0, 2]])


@pytest.mark.parametrize("from_mask", [False, True], ids=["left edge", "from mask"])
def test_positions_are_those_that_the_embedding_adds(inputs, from_mask):
    _, backbone = make_pair(positions_from_mask=from_mask)
    record = optbook.record_attention(backbone, inputs, layers=[0])
    tokens, positions = (np.asarray(weight) for weight in backbone.embeddings.weights)
    embedded = backbone.embed(inputs["token_ids"], inputs["padding_mask"])
    assert_close(tokens[record.token_ids] + positions[record.positions], embedded, tolerance=1e-6)


def test_positions_under_left_padding():
    record = optbook.record_attention(make_pair(positions_from_mask=True)[1], make_inputs((5, 3), 5, "left"))
    assert record.positions.tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 1, 2]]
    record = optbook.record_attention(make_pair()[1], make_inputs((5, 3), 5, "left"))
    assert record.positions.tolist() == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("kind", ["list", "rows", "array", "jax"])
def test_token_ids_alone_are_rows_without_padding(backbone, kind):
    ids = INPUTS["unpadded"]["token_ids"][:1]
    given = {"list": ids[0].tolist(), "rows": ids.tolist(), "array": ids, "jax": jax.numpy.asarray(ids)}[kind]
    record = optbook.record_attention(backbone, given)
    assert record.padding_mask.all()
    np.testing.assert_array_equal(record.token_ids, ids)
    expected = run_by_layer(backbone, {"token_ids": ids, "padding_mask": np.ones_like(ids)})
    assert_close(record.weights, expected)


def test_a_boolean_mask_is_read_as_an_integer_one():
    _, backbone = make_pair(positions_from_mask=True)
    inputs = INPUTS["left"]
    record = optbook.record_attention(backbone, {**inputs, "padding_mask": inputs["padding_mask"].astype(bool)})
    np.testing.assert_array_equal(record.weights, optbook.record_attention(backbone, inputs).weights)


def test_a_record_keeps_its_numbers_whatever_happens_to_the_inputs(backbone):
    inputs = {name: array.copy() for name, array in INPUTS["right"].items()}
    record = optbook.record_attention(backbone, inputs)
    inputs["token_ids"][:] = 0
    np.testing.assert_array_equal(record.token_ids, INPUTS["right"]["token_ids"])
    with pytest.raises(ValueError, match="read-only"):
        record.weights[0] = 0


def test_layers_after_the_last_asked_one_are_not_run():
    _, backbone = make_pair()

    def not_to_be_run(*_args, **_kwargs):
        raise AssertionError("the last layer was run")

    backbone.transformer_layers[2].call = not_to_be_run
    assert optbook.record_attention(backbone, INPUTS["right"], layers=[1, 0]).layers == (1, 0)
    with pytest.raises(AssertionError, match="the last layer was run"):
        optbook.record_attention(backbone, INPUTS["right"], layers=[2])


def test_other_heads_and_weights_of_a_compiled_pass_are_not_compiled_again():
    _, backbone = make_pair()
    expected = optbook.record_attention(backbone, INPUTS["right"]).weights[:, :, [2]]
    optbook.record_attention(backbone, INPUTS["right"], heads=[0])
    before = _programs._compiled._cache_size()
    assert_close(optbook.record_attention(backbone, INPUTS["right"], heads=[2]).weights, expected)
    assert _programs._compiled._cache_size() == before


# KerasHub's own model


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_kerashubs_backbone_gives_what_ours_gives(inputs, dtype):
    theirs, ours = make_pair(dtype)
    expected = optbook.record_attention(ours, inputs)
    record = optbook.record_attention(theirs, inputs)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(record, name), getattr(expected, name))


def test_kerashubs_backbone_is_read_anew_after_its_weights_changed():
    theirs, ours = make_pair()
    optbook.record_attention(theirs, INPUTS["right"])
    for backbone in (theirs, ours):
        kernel = next(weight for weight in backbone.weights if weight.path.endswith("key/kernel"))
        kernel.assign(-np.asarray(kernel))
    expected = optbook.record_attention(ours, INPUTS["right"]).weights
    np.testing.assert_array_equal(optbook.record_attention(theirs, INPUTS["right"]).weights, expected)


def test_kerashubs_causal_lm_reads_text(causal_lm):
    record = optbook.record_attention(causal_lm, ["It is", "a"], layers=[2])
    assert record.tokens[1] == ["</s>", "a", "<pad>"]
    alone = optbook.record_attention(causal_lm.backbone, record.token_ids[:1], layers=[2])
    assert_close(record.weights[:, :1], alone.weights, tolerance=1e-6)


def test_reading_kerashubs_backbone_copies_no_weight_and_draws_no_random_number():
    theirs, _ = make_pair()
    gc.collect()
    before, state = {id(array) for array in jax.live_arrays()}, random.getstate()
    record = optbook.record_attention(theirs, INPUTS["right"], layers=[0], heads=[0])
    new = [array.shape for array in jax.live_arrays() if id(array) not in before]
    assert set(new) <= {record.weights.shape}  # on a CPU the record is that array; from a GPU it was copied
    assert random.getstate() == state


@pytest.mark.parametrize("which", [0, 1], ids=["KerasHub's", "ours"])
def test_a_recorded_model_can_be_forgotten(which):
    model = make_pair()[which]
    optbook.record_attention(model, INPUTS["right"])
    forgotten = weakref.ref(model)
    del model
    gc.collect()
    assert forgotten() is None


def test_kerashubs_backbone_with_other_weights_is_refused():
    theirs, _ = make_pair()
    theirs.enable_lora(2)
    with pytest.raises(ValueError, match="but lora_rank was changed"):
        optbook.record_attention(theirs, INPUTS["right"])


def test_ours_is_read_with_lora():
    _, ours = make_pair()
    ours.enable_lora(2)
    for weight in ours.weights:
        if "lora" in weight.path:
            weight.assign(np.ones(weight.shape))
    assert_close(optbook.record_attention(ours, INPUTS["right"]).weights, run_by_layer(ours, INPUTS["right"]))


# Memory

MEMORY = """
import gc, time
import jax, numpy as np, psutil
import optbook
from optbook import report

process = psutil.Process()
sizes = dict(vocabulary_size=64, num_layers=4, num_heads=12, hidden_dim=96, intermediate_dim=192, dropout=0.0)
backbone = optbook.OPTBackbone(**sizes, max_sequence_length=512)
inputs = dict(token_ids=np.full((1, 512), 5, "int32"), padding_mask=np.ones((1, 512), "int32"))
weights = [weight.value for weight in backbone.weights]
forward = jax.jit(lambda weights: backbone.stateless_call(weights, [], inputs)[0])


def growth(run):
    "The most that resident memory grew in a run, of several, and what it kept."
    peaks = []
    for _ in range(4):
        gc.collect()
        start = process.memory_info().rss
        kept, cost = report.watched(run)
        peaks.append(cost.peak_bytes - start)
        settled = []  # another thread may still be giving back what the run worked with
        for _ in range(20):
            settled.append(process.memory_info().rss - start)
            time.sleep(0.02)
        last = min(settled)
        del kept
    return max(peaks[1:]), last  # the first run compiles


plain, _ = growth(lambda: jax.block_until_ready(forward(weights)))
for asked in ({}, dict(layers=[1, 3], heads=[0, 2, 4, 6, 8, 10])):
    record = optbook.record_attention(backbone, inputs, **asked)
    size = record.weights.nbytes
    del record
    peak, kept = growth(lambda: optbook.record_attention(backbone, inputs, **asked))
    print((peak - plain) / size, kept / size)
"""


def test_memory_grows_by_what_was_asked_and_no_more():
    # With this threshold glibc gives freed arrays back at once, so that one run's leave no room for the next one's.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", MEMORY]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    for line in result.stdout.splitlines():
        peak, kept = map(float, line.split())
        assert peak <= 1.1 and kept <= 1.1, result.stdout
    assert len(result.stdout.splitlines()) == 2


ASKED, WORKING = 3 * 3 * 4 * 144 * 4, 3 * 3 * 4 * 144 * 4  # 3 layers, and 3 maps at a time; rows, heads, T², float32


def set_free_memory(monkeypatch, machine, host):
    monkeypatch.setattr(memory, "this_machine", lambda: memory.Place("a machine", machine))
    of_host = psutil.virtual_memory()._replace(available=host)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: of_host)


@pytest.mark.parametrize(
    ("machine", "host"),
    [(ASKED + WORKING - 1, 10**9), (0, 10**9), (10**9, ASKED - 1)],
    ids=["nearly enough", "nothing", "a GPU has enough, its host not"],
)
def test_what_does_not_fit_is_refused_before_it_runs(machine, host, monkeypatch):
    _, backbone = make_pair()
    backbone.transformer_layers[0].call = None  # whoever runs it fails otherwise
    set_free_memory(monkeypatch, machine, host)
    message = (
        r"^the attention of 3 layers, 4 heads, 3 rows and 12 tokens takes 0\.02 MB, and 0\.02 MB more while it is "
        r"computed, but only 0\.0\d MB are free: ask for fewer layers, heads, rows or tokens\.$"
    )
    with pytest.raises(MemoryError, match=message):
        optbook.record_attention(backbone, INPUTS["right"])


def test_what_just_fits_is_not_refused(monkeypatch, backbone):
    set_free_memory(monkeypatch, ASKED + WORKING, ASKED)
    assert optbook.record_attention(backbone, INPUTS["right"]).weights.nbytes == ASKED


# One file


def test_a_saved_record_comes_back_number_for_number(causal_lm, tmp_path):
    record = optbook.record_attention(causal_lm, ["It is \n\x00 ü", "a"], layers=[2, 0], heads=[1, 3])
    record.save(tmp_path / "record.npz")
    loaded = optbook.AttentionRecord.load(tmp_path / "record.npz")
    for name in FIELDS:
        assert type(getattr(loaded, name)) is type(getattr(record, name))
        np.testing.assert_array_equal(getattr(loaded, name), getattr(record, name), strict=True)
    assert loaded.weights.dtype == np.float32 and not loaded.weights.flags.writeable
    np.testing.assert_array_equal(loaded.map(0, 3, row=1), record.map(0, 3, row=1))
    assert [path.name for path in tmp_path.iterdir()] == ["record.npz"]


def test_numpy_alone_reads_a_saved_record(backbone, tmp_path):
    record = optbook.record_attention(backbone, INPUTS["right"], layers=[1])
    record.save(str(tmp_path / "record.npz"))
    with np.load(tmp_path / "record.npz", allow_pickle=False) as file:
        assert sorted(file) == sorted(FIELDS)
        assert file["tokens"].dtype.kind == "U" and file["tokens"].shape == (3, 12)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(backbone, tmp_path, monkeypatch):
    path = tmp_path / "record.npz"
    record = optbook.record_attention(backbone, INPUTS["right"], layers=[1])
    record.save(path)
    old = path.read_bytes()

    def full_disk(file, **_arrays):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="no space left"):
        record.save(path)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def bad_files(record, folder):
    """Contents that are no record, by what is wrong with them."""
    record.save(folder / "good.npz")
    good = (folder / "good.npz").read_bytes()
    np.save(folder / "array.npy", record.weights)
    np.savez(folder / "other.npz", weights=record.weights)
    np.savez(folder / "older.npz", scores=record.weights, **{name: vars(record)[name] for name in FIELDS[1:]})
    np.savez(folder / "pickled.npz", **{**vars(record), "tokens": np.array(record.tokens, dtype=object)})
    np.savez(folder / "mixed.npz", **{**vars(record), "layers": [0]})
    np.savez(folder / "short.npz", **{**vars(record), "tokens": [row[:3] for row in record.tokens]})
    return {
        "empty": b"",
        "text": b"not a zip file",
        "cut off": good[: len(good) // 2],
        "a flipped bit": good[:1000] + bytes([good[1000] ^ 1]) + good[1001:],
        **{path.stem: path.read_bytes() for path in folder.iterdir() if path.stem != "good"},
    }


def test_a_file_that_is_no_record(backbone, tmp_path):
    record = optbook.record_attention(backbone, INPUTS["right"], layers=[1, 2])
    files = bad_files(record, tmp_path)
    assert len(files) == 10
    for content in files.values():
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.npz is not an attention record of this version, or is") as caught:
            optbook.AttentionRecord.load(tmp_path / "bad.npz")
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*missing\.npz"):
        optbook.AttentionRecord.load(tmp_path / "missing.npz")


# Bad input


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        ([[5, 6], [5]], {}, ValueError, "rows of token ids must have one length; pad them, and give token_ids and"),
        ([], {}, ValueError, r"there are no tokens to record: token_ids have shape \(1, 0\)"),
        (np.zeros((0, 4), int), {}, ValueError, "there are no tokens to record"),
        (5.0, {}, TypeError, "token_ids must be integers, but are float64"),
        (["a", 5], {}, TypeError, "token_ids must be integers"),
        (["a", "b"], {}, ValueError, "give record_attention the OPTCausalLM to record a text"),
        ([5, 61], {}, ValueError, "token_ids must lie in 0 … 60"),
        ([5] * 25, {}, ValueError, "the sequence has 25 tokens, but the position table only 24 rows"),
        ([5], dict(layers=1), TypeError, "layers must be a list of ints, but are 1"),
        ([5], dict(heads=["0"]), TypeError, r"heads must be a list of ints, but are \['0'\]"),
        ([5], dict(layers=[]), ValueError, r"layers must name at least one, each once, but are \[\]"),
        ([5], dict(heads=[0, 1, 0]), ValueError, r"heads must name at least one, each once, but are \[0, 1, 0\]"),
    ],
)
def test_bad_input_is_answered_in_one_line(backbone, inputs, options, error, message):
    with pytest.raises(error, match=message) as caught:
        optbook.record_attention(backbone, inputs, **options)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_no_opt():
    with pytest.raises(TypeError, match="read out of an OPTBackbone, optbook's or KerasHub's, not of a .*'str'"):
        optbook.record_attention("opt_125m_en", "a text")


def test_ids_beyond_the_vocabulary_are_labelled_by_their_number(causal_lm):
    """As the last seven rows of the published models' tables."""
    tokenizer = causal_lm.preprocessor.tokenizer
    size = tokenizer.vocabulary_size()
    backbone = optbook.OPTBackbone(**{**SIZES, "vocabulary_size": size + 7})
    lm = keras_hub.models.OPTCausalLM(backbone, preprocessor=causal_lm.preprocessor)
    record = optbook.record_attention(lm, [2, size, size + 6])
    assert record.tokens == [["</s>", f"⟨id {size}⟩", f"⟨id {size + 6}⟩"]]


# Roles


@pytest.mark.parametrize("positions", [5, 24, 32, 100])
def test_head_scores_fit_the_model(positions):
    """Without a length, 64 tokens or as many as the model has positions."""
    model = optbook.OPTBackbone(**{**SIZES, "max_sequence_length": positions})
    scores = optbook.head_scores(model)
    for name, of_heads in scores.items():
        assert ((of_heads >= 0) & (of_heads <= 1)).all()  # a NaN fails too
        np.testing.assert_array_equal(of_heads, optbook.head_scores(model, length=min(64, positions))[name])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(length=25), ValueError, "length must lie in 5 … 24, the positions of the model, but is 25"),
        (dict(length=1), ValueError, "length must lie in 5 … 24"),
        (dict(length=2), ValueError, "length must lie in 5 … 24"),
        (dict(length=12.0), TypeError, "length must be an int"),
        (dict(batch_size=0), ValueError, "batch_size must be at least 1"),
    ],
)
def test_head_scores_of_no_span_are_refused(backbone, arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        optbook.head_scores(backbone, **arguments)
    assert "\n" not in str(caught.value)


def test_head_scores_of_what_is_no_opt():
    with pytest.raises(TypeError, match="attention is read out of an OPTBackbone"):
        optbook.head_scores("opt_125m_en")


@pytest.mark.parametrize("which", [0, 1], ids=["KerasHub's", "ours"])
def test_head_scores_of_either_backbone(which):
    model = make_pair()[which]
    scores = optbook.head_scores(model, length=24, batch_size=2)
    assert set(scores) == {"induction", "duplicate_token", "previous_token", "first_token"}
    span = np.random.default_rng(0).integers(4, SIZES["vocabulary_size"], (2, 11))
    rows = np.concatenate([np.full((2, 1), 2), span, span], axis=1)
    maps = run_by_layer(make_pair()[1], {"token_ids": rows, "padding_mask": np.ones_like(rows)})
    for name, offset in (("duplicate_token", 11), ("induction", 10)):
        expected = np.mean([maps[:, :, :, t, t - offset] for t in range(12, 23)], axis=(0, 2))
        assert_close(scores[name], expected)
