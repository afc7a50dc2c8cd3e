"""Hugging Face's OPT folders: read whatever their form, refused by name where they do not fit, written as they were."""

import json

import keras_hub
import numpy as np
import pytest
import safetensors.numpy
from small_models import randomize, write_golden_folder
from test_keras_hub_presets import DTYPES, assert_same_weights, small_task
from weight_files import write, write_shards

import optbook
from optbook.presets import hugging_face_files

PREFIXES = {
    "model.decoder.": lambda name: name,
    "decoder.": lambda name: name.removeprefix("model."),
    "none": lambda name: name.removeprefix("model.decoder."),
}
SMALL = dict(vocabulary_size=16, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8)


def load_tensors(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


@pytest.fixture
def folder(golden, tmp_path):
    """The golden model's folder, to be changed by a test."""
    return write_golden_folder(golden, tmp_path)


@pytest.fixture
def tensors(folder):
    """Its tensors, to be changed and written back."""
    return load_tensors(folder)


def rewrite(folder, tensors):
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def change_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def message_of(folder):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        optbook.OPTBackbone.from_preset(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_keys_with_and_without_prefixes(golden, golden_backbone, tmp_path, prefix):
    write_golden_folder(golden, tmp_path, rename=PREFIXES[prefix])
    assert_same_weights(optbook.OPTBackbone.from_preset(tmp_path), golden_backbone)


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("asked", DTYPES)
def test_any_type_in_any_type_out(folder, golden_backbone, tensors, stored, asked):
    rewrite(folder, {name: array.astype(stored) for name, array in tensors.items()})
    loaded = optbook.OPTBackbone.from_preset(folder, dtype=asked)
    for ours, exact in zip(loaded.weights, golden_backbone.weights, strict=True):
        assert ours.dtype == asked
        expected = np.asarray(exact).astype(stored).astype(asked).astype("float32")
        np.testing.assert_array_equal(np.asarray(ours).astype("float32"), expected)


@pytest.mark.parametrize("form", ["bin", "safetensors shards", "bin shards"])
def test_every_form_of_the_weight_files(folder, golden_backbone, tensors, form):
    (folder / "model.safetensors").unlink()
    kind, _, shards = form.partition(" ")
    file = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[kind]
    if shards:
        names = sorted(tensors)
        parts = {f"{part}-{file}": {name: tensors[name] for name in names[part::3]} for part in range(3)}
        write_shards(folder, file, parts)
    else:
        write(folder / file, tensors)
    assert_same_weights(optbook.OPTBackbone.from_preset(folder), golden_backbone)


def test_a_shorter_position_table_has_the_first_rows_after_paddings_two(folder, golden_backbone, golden):
    loaded = optbook.OPTBackbone.from_preset(folder, max_sequence_length=10)
    expected = golden["weights/model.decoder.embed_positions.weight"][2:12].astype("float32")
    np.testing.assert_array_equal(loaded.embeddings.position_embedding.embeddings, expected)
    np.testing.assert_array_equal(loaded.token_embedding.embeddings, golden_backbone.token_embedding.embeddings)


def test_a_longer_position_table_is_refused(folder):
    with pytest.raises(ValueError, match="24 trained positions; max_sequence_length cannot be 25"):
        optbook.OPTBackbone.from_preset(folder, max_sequence_length=25)


def test_a_head_equal_to_the_token_table_is_taken_and_another_refused(folder, golden_backbone, tensors):
    tensors["lm_head.weight"] = tensors["model.decoder.embed_tokens.weight"].copy()
    rewrite(folder, tensors)
    assert_same_weights(optbook.OPTBackbone.from_preset(folder), golden_backbone)
    tensors["lm_head.weight"][5, 5] += 1
    rewrite(folder, tensors)
    assert "lm_head.weight differs from embed_tokens.weight" in message_of(folder)


@pytest.mark.parametrize("prefix", ["", "decoder."])
def test_two_tensors_that_mean_one_variable_must_be_equal(folder, golden_backbone, tensors, prefix):
    name = "model.decoder.layers.1.fc1.bias"
    twin = prefix + name.removeprefix("model.decoder.")
    tensors[twin] = tensors[name].astype("float32")
    rewrite(folder, tensors)
    assert_same_weights(optbook.OPTBackbone.from_preset(folder), golden_backbone)
    for changed in (tensors[name] + np.float16(1), tensors[name][1:]):
        rewrite(folder, {**tensors, twin: changed})
        message = message_of(folder)
        assert name in message and f" {twin} " in message and str(folder) in message


def test_missing_unused_and_misshapen_tensors_are_named(folder, tensors):
    del tensors["model.decoder.layers.1.fc1.bias"]
    tensors["model.decoder.layers.0.self_attn.rotary.weight"] = np.zeros(2, "float16")
    tensors["model.decoder.layers.2.fc2.weight"] = tensors["model.decoder.layers.2.fc2.weight"].T.copy()
    rewrite(folder, tensors)
    message = message_of(folder)
    assert "missing: layers.1.fc1.bias" in message
    assert "not part of this OPT: layers.0.self_attn.rotary.weight" in message
    assert "layers.2.fc2.weight is (64, 32), not (32, 64)" in message


def test_a_very_old_checkpoint_without_the_final_norm_is_told_so(folder, tensors):
    if "model.decoder.final_layer_norm.weight" not in tensors:
        pytest.skip("OPT-350m has no final normalization")
    kept = {name: array for name, array in tensors.items() if "decoder.final_layer_norm" not in name}
    rewrite(folder, kept)
    assert "missing: final_layer_norm.weight, final_layer_norm.bias" in message_of(folder)
    change_config(folder, _remove_final_layer_norm=True)
    assert "final_layer_norm.weight" in message_of(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "holds a model of type 'gpt2', not an OPT"),
        (
            {"activation_function": "gelu"},
            "activation_function must be 'relu' in an OPT, but its config.json has 'gelu'",
        ),
        ({"enable_bias": False}, "enable_bias must be True in an OPT"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings must be True in an OPT"),
    ],
)
def test_other_architectures_are_refused(folder, changes, message):
    change_config(folder, **changes)
    assert message in message_of(folder)


def test_a_config_may_leave_out_what_is_usual(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "opt"}')
    sizes = optbook.presets.preset_sizes(tmp_path)
    assert optbook.presets.parameter_count(**sizes) == 125_239_296 - 2 * 768  # Hugging Face counts padding's two rows


def test_the_350m_architecture_generates_through_keras_hub(golden_folder, golden):
    """Cached and step by step, the greedy tokens are those of the whole forward pass."""
    backbone = optbook.OPTBackbone.from_preset(golden_folder)
    lm = keras_hub.models.OPTCausalLM(backbone)
    lm.compile(sampler="greedy")
    prompt = golden["unpadded/token_ids"][:, :6]
    room = np.pad(prompt, ((0, 0), (0, 5)), constant_values=1)
    inputs = {"token_ids": room, "padding_mask": (np.arange(11) < 6) * np.ones_like(room)}
    generated = np.asarray(lm.generate(inputs, stop_token_ids=None)["token_ids"])
    ids = prompt
    for _ in range(5):
        hidden = backbone({"token_ids": ids, "padding_mask": np.ones_like(ids)})
        logits = np.asarray(backbone.token_embedding(hidden, reverse=True))[:, -1]
        ids = np.concatenate([ids, logits.argmax(-1)[:, None].astype(ids.dtype)], axis=1)
    np.testing.assert_array_equal(generated, ids)


def test_our_folder_keeps_the_architecture(golden_backbone, tmp_path):
    golden_backbone.save_to_preset(tmp_path)
    loaded = optbook.OPTBackbone.from_preset(tmp_path)
    assert_same_weights(loaded, golden_backbone)
    assert optbook.presets.parameter_count(**optbook.presets.preset_sizes(tmp_path)) == golden_backbone.count_params()


def test_export_writes_hugging_faces_tensors_and_config(golden, golden_backbone, tmp_path):
    """The tensors from which Hugging Face computed the golden logits, and the config it computed them with."""
    optbook.export(golden_backbone, tmp_path)
    written = load_tensors(tmp_path)
    expected = {name.removeprefix("weights/"): array for name, array in golden.items() if name.startswith("weights/")}
    assert sorted(written) == sorted(expected)
    for name, array in expected.items():
        ours, theirs = written[name], array.astype("float32")
        rows = slice(2, None) if name.endswith("embed_positions.weight") else slice(None)  # two rows are padding's
        assert ours.shape == theirs.shape
        np.testing.assert_array_equal(ours[rows], theirs[rows])
    config, theirs = json.loads((tmp_path / "config.json").read_text()), json.loads(str(golden["config"]))
    told_elsewhere = {"architectures", "dtype"}
    assert {name: theirs[name] for name in config if name not in told_elsewhere} == {
        name: value for name, value in config.items() if name not in told_elsewhere
    }
    assert (config["architectures"], config["dtype"]) == (["OPTForCausalLM"], "float32")


@pytest.mark.parametrize("shard_bytes", [1, 20_000, 10**9])
def test_exported_folders_come_back_in_one_file_or_many(golden_backbone, tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(hugging_face_files, "SHARD_BYTES", shard_bytes)
    optbook.export(golden_backbone, tmp_path)
    files = len(list(tmp_path.glob("*.safetensors")))
    assert {1: files in (52, 54), 20_000: 2 < files < 20, 10**9: files == 1}[shard_bytes]
    assert not list(tmp_path.glob(".partial*"))
    assert_same_weights(optbook.OPTBackbone.from_preset(tmp_path), golden_backbone)


@pytest.mark.parametrize("before, now", [(1, 10**9), (10**9, 1), (1, 20_000)])
def test_what_was_exported_last_is_loaded(golden_backbone, tmp_path, monkeypatch, before, now):
    other = optbook.OPTBackbone.from_config(golden_backbone.get_config())
    for backbone, shard_bytes in ((other, before), (golden_backbone, now)):
        monkeypatch.setattr(hugging_face_files, "SHARD_BYTES", shard_bytes)
        optbook.export(backbone, tmp_path)
    assert_same_weights(optbook.OPTBackbone.from_preset(tmp_path), golden_backbone)


def test_integers_are_not_taken_for_weights(folder, tensors):
    name = "model.decoder.layers.0.fc1.weight"
    rewrite(folder, tensors | {name: np.ones(tensors[name].shape, "int8")})
    with pytest.raises(ValueError, match=r"not floats: layers\.0\.fc1\.weight"):
        optbook.OPTBackbone.from_preset(folder)


@pytest.mark.parametrize("dtype", DTYPES)
def test_export_keeps_the_type(tmp_path, dtype):
    backbone = optbook.OPTBackbone(
        vocabulary_size=16, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8, dtype=dtype
    )
    randomize(backbone)
    optbook.export(backbone, tmp_path)
    assert {str(array.dtype) for array in load_tensors(tmp_path).values()} == {dtype}
    assert_same_weights(optbook.OPTBackbone.from_preset(tmp_path, dtype=dtype), backbone)


def test_export_of_a_task_brings_its_tokenizer(tmp_path):
    task = small_task(optbook.OPTBackbone)
    optbook.export(task, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "merges.txt",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer_config.json",
        "vocab.json",
    }
    text = "Naïve “quotes”, a tab\t, 日本語 and 🙂"
    ours, again = task.preprocessor.tokenizer, optbook.tokenizer(tmp_path)
    assert again(text).tolist() == ours(text).tolist()
    assert (again.start_token_id, again.pad_token_id, again.end_token_id) == (2, 1, 2)
    again_task = optbook.causal_lm(tmp_path, sequence_length=16)
    assert_same_weights(again_task.backbone, task.backbone)


def test_a_folder_with_tokenizer_json_alone(tmp_path):
    """The form that newer folders have: vocabulary and merges in one file, merges as pairs or as strings."""
    ours = optbook.tokenizer()
    (tmp_path / "config.json").write_text('{"model_type": "opt"}')
    with pytest.raises(FileNotFoundError, match="neither vocab.json with merges.txt nor tokenizer.json"):
        optbook.tokenizer(tmp_path)
    special = [token for token in ours.vocabulary if token.startswith("<") and token.endswith(">") and len(token) > 2]
    for merges in (ours.merges, [merge.split(" ") for merge in ours.merges]):
        vocabulary = {token: number for token, number in ours.vocabulary.items() if token not in special}
        added = [{"content": token, "id": ours.vocabulary[token]} for token in special]
        content = {"added_tokens": added, "model": {"vocab": vocabulary, "merges": merges}}
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        assert optbook.tokenizer(tmp_path)("She looked up.").tolist() == ours("She looked up.").tolist()


def test_export_refuses_a_backbone_of_keras_hubs(tmp_path):
    with pytest.raises(TypeError, match="takes an optbook.OPTBackbone"):
        optbook.export(keras_hub.models.OPTBackbone(**SMALL), tmp_path)


def test_transformers_computes_the_same_logits(golden_backbone, golden, tmp_path):
    """Where torch and transformers are installed; the golden arrays say the same without them."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    optbook.export(golden_backbone, tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        logits = model(torch.tensor(golden["unpadded/token_ids"]).long()).logits.numpy()
    np.testing.assert_allclose(logits, golden["unpadded/logits"], atol=1e-5)
