"""What our backbone saves, KerasHub's classes load, and the other way round."""

import json
import shutil
from pathlib import Path

import h5py
import keras
import keras_hub
import numpy as np
import pytest
from small_models import INPUTS, SIZES, make_pair, randomize

import optbook
from optbook import presets

DTYPES = ("float32", "float16", "bfloat16")


def assert_same_weights(one, other):
    assert len(one.weights) == len(other.weights)
    for a, b in zip(one.weights, other.weights):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def small_task(cls):
    """A task with a tokenizer, on a small backbone of the class with random weights."""
    tokenizer = optbook.tokenizer()
    backbone = cls(**{**SIZES, "vocabulary_size": tokenizer.vocabulary_size(), "num_layers": 1})
    randomize(backbone)
    preprocessor = keras_hub.models.OPTCausalLMPreprocessor(tokenizer, sequence_length=16)
    return keras_hub.models.OPTCausalLM(backbone, preprocessor=preprocessor)


@pytest.fixture(scope="module", params=DTYPES)
def saved(request, tmp_path_factory):
    """(KerasHub's backbone, ours, KerasHub's folder, ours) of one number type."""
    theirs, ours = make_pair(request.param, num_layers=2)
    root = tmp_path_factory.mktemp("presets")
    theirs.save_to_preset(str(root / "theirs"))
    ours.save_to_preset(str(root / "ours"))
    return theirs, ours, root / "theirs", root / "ours"


@pytest.mark.parametrize("cls", [keras_hub.models.OPTBackbone, keras_hub.models.Backbone])
def test_keras_hub_loads_ours(saved, cls):
    theirs, _, _, folder = saved
    loaded = cls.from_preset(str(folder), dtype=theirs.dtype_policy)
    assert type(loaded) is keras_hub.models.OPTBackbone
    assert_same_weights(loaded, theirs)


def test_we_load_keras_hubs(saved):
    _, ours, folder, _ = saved
    loaded = optbook.OPTBackbone.from_preset(str(folder), dtype=ours.dtype_policy)
    assert type(loaded) is optbook.OPTBackbone
    assert_same_weights(loaded, ours)


def test_arrays_that_hdf5_keeps_in_chunks_load_too(saved, tmp_path):
    theirs, ours, folder, _ = saved
    shutil.copytree(folder, tmp_path / "chunked")
    with h5py.File(folder / "model.weights.h5") as whole, h5py.File(tmp_path / "chunked/model.weights.h5", "w") as file:
        arrays = []
        whole.visititems(lambda name, item: arrays.append(name) if isinstance(item, h5py.Dataset) else None)
        for name in arrays:
            chunked = file.create_dataset(name, data=whole[name][()], chunks=True, compression="gzip")
            chunked.attrs.update(whole[name].attrs)
    assert arrays
    loaded = optbook.OPTBackbone.from_preset(str(tmp_path / "chunked"), dtype=ours.dtype_policy)
    assert_same_weights(loaded, ours)


def test_we_load_ours(saved):
    _, ours, _, folder = saved
    assert_same_weights(optbook.OPTBackbone.from_preset(folder, dtype=ours.dtype_policy), ours)


def test_without_a_dtype_either_class_loads_in_keras_default_type(saved):
    theirs = keras_hub.models.OPTBackbone.from_preset(str(saved[3]))
    ours = optbook.OPTBackbone.from_preset(saved[3])
    assert_same_weights(ours, theirs)
    assert {weight.dtype for weight in ours.weights} == {"float32"}


def test_both_write_the_same_files_and_arrays(saved):
    theirs, ours = ({}, {})
    for found, folder in ((theirs, saved[2]), (ours, saved[3])):
        with h5py.File(folder / "model.weights.h5") as file:
            file.visititems(
                lambda name, item, found=found: found.update({name: item[()]}) if hasattr(item, "dtype") else None
            )
    theirs = {name: array for name, array in theirs.items() if "seed_generator" not in name}
    assert sorted(ours) == sorted(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert {path.name for path in saved[3].iterdir()} == {path.name for path in saved[2].iterdir()}


def test_configs_say_the_same(saved):
    theirs, ours = (json.loads((folder / "config.json").read_text()) for folder in saved[2:])
    for config in (theirs, ours):
        config["config"].pop("name")
    assert ours == theirs


def test_metadata_counts_the_parameters(saved):
    theirs, ours = (json.loads((folder / "metadata.json").read_text()) for folder in saved[2:])
    assert ours["parameter_count"] == theirs["parameter_count"] == saved[1].count_params()
    assert presets.parameter_count(**{**SIZES, "num_layers": 2}) == saved[1].count_params()


def test_loading_can_override_the_configuration(saved):
    loaded = optbook.OPTBackbone.from_preset(saved[3], dtype="bfloat16", dropout=0.3)
    assert loaded.dropout == 0.3
    assert {weight.dtype for weight in loaded.weights} == {"bfloat16"}
    kernel = loaded.transformer_layers[0].feedforward_output_dense.kernel
    expected = saved[1].transformer_layers[0].feedforward_output_dense.kernel
    np.testing.assert_array_equal(kernel, keras.ops.cast(expected, "bfloat16"))


def test_a_shorter_position_table_has_the_first_rows(saved):
    loaded = optbook.OPTBackbone.from_preset(saved[3], max_sequence_length=10, dtype=saved[1].dtype_policy)
    positions, expected = (backbone.embeddings.position_embedding.embeddings for backbone in (loaded, saved[1]))
    np.testing.assert_array_equal(positions, expected[:10])
    np.testing.assert_array_equal(loaded.token_embedding.embeddings, saved[1].token_embedding.embeddings)


def test_load_weights_false_leaves_the_initialization(saved):
    _, ours, _, folder = saved
    fresh = optbook.OPTBackbone.from_preset(folder, load_weights=False)
    kernel = np.asarray(fresh.transformer_layers[0].feedforward_output_dense.kernel).astype("float32")
    assert abs(kernel.std() - 0.02) < 0.005


def test_saving_leaves_no_partial_file(saved):
    assert not [path for path in saved[3].iterdir() if "partial" in path.name]


@pytest.mark.parametrize("dtype", DTYPES)
def test_we_load_shards_that_keras_hub_wrote(tmp_path, dtype):
    theirs, ours = make_pair(dtype, num_layers=2)
    theirs.save_to_preset(str(tmp_path))
    (tmp_path / "model.weights.h5").unlink()
    theirs.save_weights(tmp_path / "model.weights.json", max_shard_size=1e-5)  # GB
    assert len(list(tmp_path.glob("model_*.weights.h5"))) > 2
    assert_same_weights(optbook.OPTBackbone.from_preset(tmp_path, dtype=dtype), ours)


def test_we_load_the_names_that_early_keras_3_wrote(tmp_path):
    _, ours = make_pair(num_layers=2)
    ours.save_to_preset(tmp_path)
    with h5py.File(tmp_path / "model.weights.h5", "r+") as file:
        for decoder in ("transformer_decoder", "transformer_decoder_1"):
            group = file[f"layers/{decoder}/_self_attention_layer"]
            for name in list(group):
                group.move(name, f"_{name}")
    assert_same_weights(optbook.OPTBackbone.from_preset(tmp_path), ours)


def test_positions_from_mask_comes_back(tmp_path):
    ours = optbook.OPTBackbone(**SIZES, positions_from_mask=True)
    ours.save_to_preset(tmp_path)
    assert optbook.OPTBackbone.from_preset(tmp_path).positions_from_mask is True


def test_task_saved_by_us_loads_in_keras_hub(tmp_path):
    ours = small_task(optbook.OPTBackbone)
    ours.save_to_preset(str(tmp_path / "task"))
    theirs = keras_hub.models.OPTCausalLM.from_preset(str(tmp_path / "task"))
    assert type(theirs.backbone) is keras_hub.models.OPTBackbone
    assert theirs.preprocessor.sequence_length == 16
    assert_same_weights(theirs.backbone, ours.backbone)
    text = ["It is a truth"]
    np.testing.assert_array_equal(
        theirs.preprocessor.generate_preprocess(text)["token_ids"],
        ours.preprocessor.generate_preprocess(text)["token_ids"],
    )


def test_task_saved_by_keras_hub_loads_in_ours(tmp_path):
    theirs = small_task(keras_hub.models.OPTBackbone)
    theirs.save_to_preset(str(tmp_path / "task"))
    ours = optbook.causal_lm(tmp_path / "task", sequence_length=16)
    assert type(ours.backbone) is optbook.OPTBackbone
    assert_same_weights(ours.backbone, theirs.backbone)
    assert (
        ours.preprocessor.tokenizer("It is a truth").tolist() == theirs.preprocessor.tokenizer("It is a truth").tolist()
    )


def test_task_saved_by_us_loads_in_ours(tmp_path):
    saved = small_task(optbook.OPTBackbone)
    saved.save_to_preset(str(tmp_path / "task"))
    assert_same_weights(optbook.causal_lm(tmp_path / "task").backbone, saved.backbone)


@pytest.fixture(scope="module")
def embedded():
    """The embedded preset in KerasHub's task, loaded by path, and in ours, loaded by name."""
    theirs = keras_hub.models.OPTCausalLM.from_preset(str(presets.ASSETS / presets.DEFAULT))
    return theirs, optbook.causal_lm(presets.DEFAULT)


def test_embedded_preset_loads_by_path_in_keras_hub(embedded):
    theirs, ours = embedded
    assert type(theirs.backbone) is keras_hub.models.OPTBackbone
    assert type(ours.backbone) is optbook.OPTBackbone
    assert_same_weights(ours.backbone, theirs.backbone)


def test_embedded_backbone_loads_alone_in_keras_hub(embedded):
    backbone = keras_hub.models.OPTBackbone.from_preset(str(presets.ASSETS / presets.DEFAULT))
    assert_same_weights(backbone, embedded[0].backbone)


def test_embedded_preset_writes_the_same_text_in_both(embedded):
    texts = []
    for lm in embedded:
        lm.compile(sampler="greedy")
        texts.append(lm.generate("It is a", max_length=16))
    assert texts[0] == texts[1]
    assert texts[0].startswith("It is a") and len(texts[0]) > len("It is a")


def test_embedded_backbone_runs_on_the_small_batches(embedded):
    _, ours = embedded
    assert np.isfinite(np.asarray(ours.backbone(INPUTS["right"])).astype("float32")).all()


def test_what_was_saved_last_is_loaded_though_there_were_shards(tmp_path):
    older, newer = make_pair()[0], make_pair(num_layers=1)[1]
    older.save_to_preset(str(tmp_path))
    (tmp_path / "model.weights.h5").unlink()
    older.save_weights(tmp_path / "model.weights.json", max_shard_size=1e-5)  # GB
    newer.save_to_preset(tmp_path)
    assert_same_weights(optbook.OPTBackbone.from_preset(tmp_path), newer)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.weights.h5"]


@pytest.fixture
def ours(tmp_path):
    """A folder we saved, to be damaged."""
    make_pair()[1].save_to_preset(tmp_path / "preset")
    return tmp_path / "preset"


def elsewhere(folder):
    """The path of a token table in another HDF5 file."""
    with h5py.File(folder.parent / "elsewhere.h5", "w") as file:
        file["table"] = np.ones((SIZES["vocabulary_size"], SIZES["hidden_dim"]), "float32")
    return folder.parent / "elsewhere.h5"


def external_link(file, path, folder):
    file[path] = h5py.ExternalLink(elsewhere(folder), "/table")


def external_storage(file, path, folder):
    shape = SIZES["vocabulary_size"], SIZES["hidden_dim"]
    storage = [(str(elsewhere(folder)), 0, 4 * shape[0] * shape[1])]
    file.create_dataset(path, shape, "float32", external=storage)


def integers(file, path, folder):
    file[path] = np.ones((SIZES["vocabulary_size"], SIZES["hidden_dim"]), "int8")


@pytest.mark.parametrize("replacement", [external_link, external_storage, integers])
def test_only_floats_of_the_file_itself_are_read(ours, replacement):
    path = "layers/token_and_position_embedding/token_embedding/vars/0"
    with h5py.File(ours / "model.weights.h5", "r+") as file:
        del file[path]
        replacement(file, path, ours)
    with pytest.raises(ValueError, match=rf"model\.weights\.h5: {path} is no array of floats of its own\.$"):
        optbook.OPTBackbone.from_preset(ours)


def test_two_arrays_that_mean_one_variable_must_be_equal(ours):
    """The name of early Keras 3 beside today's."""
    root = "layers/transformer_decoder/_self_attention_layer"
    with h5py.File(ours / "model.weights.h5", "r+") as file:
        file.copy(file[f"{root}/query_dense"], f"{root}/_query_dense")
    optbook.OPTBackbone.from_preset(ours)
    with h5py.File(ours / "model.weights.h5", "r+") as file:
        file[f"{root}/_query_dense/vars/1"][...] += 1
    message = rf"model\.weights\.h5: /{root}/_query_dense/vars/1 and /{root}/query_dense/vars/1 .* but they differ\.$"
    with pytest.raises(ValueError, match=message):
        optbook.OPTBackbone.from_preset(ours)


def test_arrays_of_other_names_are_not_taken_in_their_order(ours):
    with h5py.File(ours / "model.weights.h5", "r+") as file:
        file.move("layers/layer_normalization/vars/0", "layers/layer_normalization/vars/2")
    with pytest.raises(ValueError, match="layer_normalization holds 2 arrays where 2 are needed, called 0 and 1"):
        optbook.OPTBackbone.from_preset(ours)


@pytest.mark.parametrize("file", ["../model.weights.h5", "/model.weights.h5", ".."])
def test_a_shard_lies_in_the_folder(ours, file):
    index = {"weight_map": {"/layers/layer_normalization/vars": [file]}}
    (ours / "model.weights.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="but a shard must lie in the same folder"):
        optbook.OPTBackbone.from_preset(ours)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("config.json", "", r"config\.json is damaged or cut short"),
        ("config.json", "[]", r"config\.json is damaged or cut short"),
        ("config.json", '{"registered_name": "keras_hub>OPTBackbone"}', r"its config\.json lacks config\.$"),
        (
            "config.json",
            '{"registered_name": "keras_hub>OPTBackbone", "config": {"num_layers": 2}}',
            r"lacks vocabulary_size, num_heads, hidden_dim, intermediate_dim, max_sequence_length\.$",
        ),
        ("model.weights.json", "{}", r"model\.weights\.json has no weight_map\.$"),
        ("model.weights.h5", "version https://git-lfs.github.com/spec/v1", r"model\.weights\.h5 only points to"),
        ("model.weights.h5", "\x89HDF\r\n\x1a\n and no more", r"model\.weights\.h5 is damaged or cut short"),
    ],
)
def test_a_damaged_file_is_named(ours, name, content, message):
    (ours / name).write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=message) as caught:
        optbook.OPTBackbone.from_preset(ours)
    assert str(ours) in str(caught.value) and "\n" not in str(caught.value)


def test_a_quantized_model_is_not_written(tmp_path):
    _, ours = make_pair()
    ours.quantize("int8")
    for write in (ours.save_to_preset, lambda folder: optbook.export(ours, folder)):
        with pytest.raises(ValueError, match="a quantized model cannot be written"):
            write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_path_is_a_folder_though_it_is_called_like_a_preset(ours, monkeypatch):
    monkeypatch.chdir(ours.rename(ours.with_name("opt_125m_en")).parent)
    assert presets.preset_sizes(Path("opt_125m_en"))["hidden_dim"] == SIZES["hidden_dim"]
    assert presets.preset_sizes("./opt_125m_en")["hidden_dim"] == SIZES["hidden_dim"]
    assert presets.preset_sizes("opt_125m_en")["hidden_dim"] == 768
