"""Hugging Face's OPT folders, read and written a tensor at a time."""

import contextlib
import functools
import math
import operator
from pathlib import Path

import keras
import numpy as np
import safetensors.numpy

from optbook._files import replacing, write_json
from optbook._validation import check_not_quantized
from optbook.presets import tokenizer_files
from optbook.presets._pieces import Piece
from optbook.presets.weight_files import open_checkpoint

POSITION_OFFSET = 2  # rows of Hugging Face's position table that belong to padding
SHARD_BYTES = 1_000_000_000

# The values of Hugging Face's OPTConfig that a config.json may leave out, and what ours calls them.
CONFIG = {
    "vocabulary_size": ("vocab_size", 50272),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
    "hidden_dim": ("hidden_size", 768),
    "intermediate_dim": ("ffn_dim", 3072),
    "dropout": ("dropout", 0.1),
    "max_sequence_length": ("max_position_embeddings", 2048),
    "normalize_first": ("do_layer_norm_before", True),
    "embedding_dim": ("word_embed_proj_dim", None),
}
# What every OPT has; a model that differs is another architecture.
FIXED = {
    "activation_function": "relu",
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
}


def is_hugging_face(config):
    return "model_type" in config


def backbone_config(config, folder):
    """The arguments of the backbone that Hugging Face's ``config.json`` describes."""
    if config["model_type"] != "opt":
        raise ValueError(f"{folder} holds a model of type {config['model_type']!r}, not an OPT.")
    for name, value in FIXED.items():
        if config.get(name, value) != value:
            raise ValueError(f"{folder}: {name} must be {value!r} in an OPT, but its config.json has {config[name]!r}.")
    arguments = {ours: config.get(name, default) for ours, (name, default) in CONFIG.items()}
    if config.get("_remove_final_layer_norm", False) and arguments["normalize_first"]:
        raise ValueError(
            f"{folder} is a very old checkpoint without final_layer_norm.weight, which OPT needs; "
            "download a current one."
        )
    return arguments


def tensor_layout(backbone):
    """Hugging Face's name, without the prefix, and the shape there of each of our variables."""

    def dense(name, layer, inputs):
        yield f"{name}.weight", layer.kernel, (math.prod(layer.kernel.shape) // inputs, inputs)
        if layer.bias is not None:
            yield f"{name}.bias", layer.bias, (math.prod(layer.bias.shape),)

    def norm(name, layer):
        yield f"{name}.weight", layer.gamma, layer.gamma.shape
        yield f"{name}.bias", layer.beta, layer.beta.shape

    token_table, position_table = backbone.token_embedding, backbone.embeddings.position_embedding
    yield "embed_tokens.weight", token_table.embeddings, token_table.embeddings.shape
    rows, width = position_table.embeddings.shape
    yield "embed_positions.weight", position_table.embeddings, (rows + POSITION_OFFSET, width)
    if backbone.embedding_dim != backbone.hidden_dim:
        yield from dense("project_in", token_table.project_in, backbone.embedding_dim)
        yield from dense("project_out", token_table.project_out, backbone.hidden_dim)
    for index, layer in enumerate(backbone.transformer_layers):
        root, attention = f"layers.{index}", layer.self_attention
        yield from dense(f"{root}.self_attn.q_proj", attention.query_dense, backbone.hidden_dim)
        yield from dense(f"{root}.self_attn.k_proj", attention.key_dense, backbone.hidden_dim)
        yield from dense(f"{root}.self_attn.v_proj", attention.value_dense, backbone.hidden_dim)
        yield from dense(f"{root}.self_attn.out_proj", attention.output_dense, backbone.hidden_dim)
        yield from norm(f"{root}.self_attn_layer_norm", layer.self_attention_layer_norm)
        yield from dense(f"{root}.fc1", layer.feedforward_intermediate_dense, backbone.hidden_dim)
        yield from dense(f"{root}.fc2", layer.feedforward_output_dense, backbone.intermediate_dim)
        yield from norm(f"{root}.final_layer_norm", layer.feedforward_layer_norm)
    if backbone.normalize_first:
        yield from norm("final_layer_norm", backbone.layer_norm)


def _is_kernel(name):
    return name.endswith(("_proj.weight", "fc1.weight", "fc2.weight", "project_in.weight", "project_out.weight"))


@contextlib.contextmanager
def pieces(backbone, folder):
    """Every variable of the backbone with its tensor in the folder's weight files, open while the context lasts.

    Raises
    ------
    ValueError
        Naming the tensors that are missing, that have another shape, and that no OPT has; where two tensors that mean
        one variable differ; and where the output head is not the token table.
    """
    folder = Path(folder)
    with open_checkpoint(folder) as tensors:
        tensors = _without_prefixes(folder, tensors)
        head = tensors.pop("lm_head.weight", None)
        layout = {name: (variable, tuple(shape)) for name, variable, shape in tensor_layout(backbone)}
        _compare_names(folder, tensors, layout, backbone)
        if head is not None and not _are_equal(head, tensors["embed_tokens.weight"]):
            raise ValueError(
                f"{folder}: lm_head.weight differs from embed_tokens.weight, but an OPT's output head is tied."
            )
        found = []
        for name, (variable, _) in layout.items():
            read = tensors[name].read
            if name == "embed_positions.weight":
                read = functools.partial(_read_positions, read, variable.shape[0])
            found.append(Piece(variable, folder / tensors[name].file, read, transposed=_is_kernel(name)))
        yield found


def _read_positions(read, rows):
    return read()[POSITION_OFFSET : POSITION_OFFSET + rows]


def _without_prefixes(folder, tensors):
    """The same by names without what checkpoints put before them: nothing, ``decoder.`` or ``model.decoder.``."""
    full_names = {}
    for name in tensors:
        other = full_names.setdefault(name.removeprefix("model.").removeprefix("decoder."), name)
        if not _are_equal(tensors[other], tensors[name]):
            raise ValueError(f"{folder}: {other} and {name} mean the same variable of an OPT, but they differ.")
    return {bare: tensors[name] for bare, name in full_names.items()}


def _are_equal(one, other):
    place = operator.attrgetter("source", "offset", "dtype", "shape", "strides")
    if place(one) == place(other):  # torch writes shared memory once
        return True
    return one.shape == other.shape and np.array_equal(one.read(), other.read())


def _compare_names(folder, tensors, layout, backbone):
    problems = []
    if missing := [name for name in layout if name not in tensors]:
        problems.append(f"missing: {_some(missing)}")
    if unused := [name for name in tensors if name not in layout and name != "version"]:  # fairseq's, a number
        problems.append(f"not part of this OPT: {_some(unused)}")
    misshapen = []
    for name, (_, shape) in layout.items():
        found = tuple(tensors[name].shape) if name in tensors else shape
        # A position table that was asked to be shorter takes the first rows.
        fits = found[0] >= shape[0] and found[1:] == shape[1:] if name == "embed_positions.weight" else found == shape
        if not fits:
            misshapen.append(f"{name} is {found}, not {shape}")
    if integers := [name for name in layout if name in tensors and not _is_float(tensors[name])]:
        problems.append(f"not floats: {_some(integers)}")
    if misshapen:
        problems.append(f"of another shape: {_some(misshapen)}")
    if problems:
        files = {tensor.file for tensor in tensors.values()}
        where = folder / files.pop() if len(files) == 1 else folder
        raise ValueError(f"{where} does not fit an OPT of {backbone.num_layers} layers; {'; '.join(problems)}.")


def _is_float(tensor):
    return keras.backend.is_float_dtype(tensor.dtype.name)


def _some(names, most=4):
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def export(model, folder):
    """Writes a folder that ``transformers`` loads with the same logits: config, safetensors and tokenizer.

    Parameters
    ----------
    model : OPTBackbone or keras_hub.models.OPTCausalLM around one
        Only the latter brings a tokenizer to be written.
    folder : str or path
        Weights of more than 1 GB go into several files, so that no second copy of a large model is held.

    Raises
    ------
    TypeError
        For a backbone that is not ours.
    ValueError
        For a quantized one.
    """
    backbone = getattr(model, "backbone", model)
    if not hasattr(backbone, "embedding_dim"):
        raise TypeError(f"export takes an optbook.OPTBackbone or a task around one, not {type(model).__name__}.")
    check_not_quantized(backbone)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if preprocessor := getattr(model, "preprocessor", None):
        tokenizer_files.write_hugging_face(preprocessor.tokenizer, folder)
    _write_weights(backbone, folder)
    write_json(folder / "config.json", hugging_face_config(backbone))


def hugging_face_config(backbone):
    """What ``config.json`` says of a backbone."""
    arguments = backbone.get_config()
    config = {theirs: arguments.get(ours, default) for ours, (theirs, default) in CONFIG.items()}
    config["word_embed_proj_dim"] = backbone.embedding_dim
    config |= {"model_type": "opt", "architectures": ["OPTForCausalLM"], "dtype": backbone.variable_dtype, **FIXED}
    return config | {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2, "attention_dropout": 0.0}


def _write_weights(backbone, folder):
    shards, room = [[]], SHARD_BYTES
    for name, variable, shape in tensor_layout(backbone):
        size = math.prod(shape) * np.dtype(variable.dtype).itemsize
        if shards[-1] and size > room:
            shards.append([])
            room = SHARD_BYTES
        room -= size
        shards[-1].append((f"model.decoder.{name}", variable, shape))
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        several = len(shards) > 1
        file = f"model-{number:05}-of-{len(shards):05}.safetensors" if several else "model.safetensors"
        tensors = {
            name: to_hugging_face(name, keras.ops.convert_to_numpy(variable), shape) for name, variable, shape in shard
        }
        with replacing(folder / file) as partial:
            partial.write_bytes(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
        weight_map |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        size = backbone.count_params() * np.dtype(backbone.variable_dtype).itemsize
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)
    else:
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    for old in {path.name for path in folder.glob("model*.safetensors")} - set(weight_map.values()):
        (folder / old).unlink()  # of an earlier export, and perhaps read instead


def to_hugging_face(name, array, shape):
    """A variable's numbers as the tensor ``name`` of ``shape`` that Hugging Face has in its place."""
    if name.endswith("embed_positions.weight"):
        return np.concatenate([np.zeros((POSITION_OFFSET, shape[1]), array.dtype), array])
    return np.ascontiguousarray(array.reshape(shape[::-1]).T) if _is_kernel(name) else array.reshape(shape)
