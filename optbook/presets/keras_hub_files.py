"""KerasHub's preset folders, read and written a layer at a time."""

import contextlib
import functools
from pathlib import Path
from typing import NamedTuple

import h5py
import keras
import keras_hub
import ml_dtypes
import numpy as np

from optbook._arrays import fresh_zeros
from optbook._files import read_json, replacing, write_json
from optbook._validation import check_not_quantized
from optbook.presets._pieces import Piece
from optbook.presets.weight_files import WeightFile, weight_map

KERAS_HUB_NAME = {
    "module": "keras_hub.src.models.opt.opt_backbone",
    "class_name": "OPTBackbone",
    "registered_name": "keras_hub>OPTBackbone",
}
OUR_NAME = "optbook>OPTBackbone"
SIZE_ARGUMENTS = ("vocabulary_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim", "max_sequence_length")
OUR_OPTIONS = {"positions_from_mask", "normalize_first", "embedding_dim"}  # in a config only when they are used


def backbone_config(config, folder):
    """The arguments of the backbone that a ``config.json`` describes, KerasHub's or ours."""
    name = config.get("registered_name")
    if name not in (KERAS_HUB_NAME["registered_name"], OUR_NAME):
        raise ValueError(
            f"{folder} holds {name or config.get('model_type', 'an unknown model')}, not an OPT backbone of KerasHub's."
        )
    arguments = config.get("config")
    missing = [name for name in SIZE_ARGUMENTS if name not in arguments] if isinstance(arguments, dict) else ["config"]
    if missing:
        raise ValueError(f"{folder}: its config.json lacks {', '.join(missing)}.")
    return dict(arguments)


def layer_paths(backbone):
    """Where KerasHub keeps the variables of each of our layers, in its `model.weights.h5`.

    What KerasHub has no place for, the projections of OPT-350m, goes below the token embedding.
    """
    root = "layers/token_and_position_embedding"
    yield f"{root}/token_embedding", backbone.token_embedding
    if backbone.embedding_dim != backbone.hidden_dim:
        for name in ("project_in", "project_out"):
            yield f"{root}/token_embedding/{name}", getattr(backbone.token_embedding, name)
    yield f"{root}/position_embedding", backbone.embeddings.position_embedding
    for index, layer in enumerate(backbone.transformer_layers):
        root = "layers/transformer_decoder" + (f"_{index}" if index else "")
        for name in ("query_dense", "key_dense", "value_dense", "output_dense"):
            yield f"{root}/_self_attention_layer/{name}", getattr(layer.self_attention, name)
        for name in (
            "self_attention_layer_norm",
            "feedforward_intermediate_dense",
            "feedforward_output_dense",
            "feedforward_layer_norm",
        ):
            yield f"{root}/_{name}", getattr(layer, name)
    if backbone.normalize_first:
        yield "layers/layer_normalization", backbone.layer_norm


def own_variables(layer):
    """The variables of one of these layers, in KerasHub's order; a table's projections are layers of their own."""
    return [layer.embeddings] if hasattr(layer, "embeddings") else layer.weights


class _Array(NamedTuple):
    """An array of an HDF5 file, not yet read; ``offset`` is where its bytes start, None when they lie in chunks."""

    dataset: h5py.Dataset
    source: WeightFile
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int | None
    is_bfloat16: bool

    def read(self, rows=None):
        """The first rows, or all, in the type they were saved from."""
        rows = self.shape[0] if rows is None else rows
        array = fresh_zeros((rows, *self.shape[1:]), self.dtype)
        if self.offset is None:
            with _naming(self.source.path):
                self.dataset.read_direct(array, np.s_[:rows])
        else:  # as Keras writes it; HDF5 reads one array at a time
            self.source.read_into(array, self.offset)
        return array.view(ml_dtypes.bfloat16) if self.is_bfloat16 else array


def _arrays(file, source, path):
    """The arrays below a path of an HDF5 file by their names."""
    with _naming(source.path):
        group = file.get(path, {})
        found = {str(key): _own_array(group.get(key), file, source) for key in group}
    for key, array in found.items():
        if array is None:
            raise ValueError(f"{source.path}: {path}/{key} is no array of floats of its own.")
    return found


def _own_array(dataset, file, source):
    """An array of floats in this very file, else None: HDF5 can point to others, which a preset never does."""
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual or not dataset.ndim:
        return None
    is_bfloat16 = dataset.attrs.get("dtype") == "bfloat16" and dataset.dtype.itemsize == 2
    if dataset.file.filename != file.filename or not (dataset.dtype.kind == "f" or is_bfloat16):
        return None
    return _Array(dataset, source, dataset.shape, dataset.dtype, dataset.id.get_offset(), is_bfloat16)


@contextlib.contextmanager
def _naming(path):
    """Names the file in what HDF5 says of a damaged one, for which it has many kinds of errors."""
    try:
        yield
    except (OSError, RuntimeError, LookupError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or cut short; fetch it again ({error!s:.300}).") from error


@contextlib.contextmanager
def pieces(backbone, folder):
    """Every variable of the backbone with its array in `model.weights.h5` or in the shards of `model.weights.json`.

    The files are open while the context lasts.
    """
    folder = Path(folder)
    index = folder / "model.weights.json"
    shards = weight_map(index) if index.exists() else {}
    with contextlib.ExitStack() as stack:
        opened = {}

        def files_of(path):
            return shards.get(f"/{path}/vars", ["model.weights.h5"])

        def group(path):
            """The arrays below a path, each with the file it is in; a sharded group may lie in several."""
            merged = {}
            for name in files_of(path):
                if name not in opened:
                    if not (folder / name).exists():
                        raise FileNotFoundError(f"{folder} has no {name}.")
                    source = stack.enter_context(WeightFile(folder / name))
                    with _naming(source.path):
                        opened[name] = stack.enter_context(h5py.File(source.path, "r")), source
                # Files written by early Keras 3 call the projections _query_dense and so on.
                for candidate in dict.fromkeys((path, path.replace("_layer/", "_layer/_"))):
                    for key, array in _arrays(*opened[name], f"{candidate}/vars").items():
                        other = merged.setdefault(key, array)
                        if other is not array and not np.array_equal(other.read(), array.read()):
                            raise ValueError(
                                f"{array.source.path}: {array.dataset.name} and {other.dataset.name} of "
                                f"{other.source.path.name} mean the same variable of an OPT, but they differ."
                            )
            return merged

        found = []
        for path, layer in layer_paths(backbone):
            arrays, variables = group(path), own_variables(layer)
            needed = [str(number) for number in range(len(variables))]
            if sorted(arrays) != needed:
                files = " and ".join(str(folder / name) for name in files_of(path))
                raise ValueError(
                    f"{files}: {path} holds {len(arrays)} arrays where {len(needed)} are needed, "
                    f"called {' and '.join(needed)}."
                )
            for key, variable in zip(needed, variables):
                array = arrays[key]
                rows = array.shape[0]
                if path.endswith("position_embedding"):  # the first rows are kept of a table asked to be shorter
                    rows = min(rows, backbone.max_sequence_length)
                if (rows, *array.shape[1:]) != tuple(variable.shape):
                    raise ValueError(
                        f"{array.source.path}: {path} has shape {array.shape} where the model has "
                        f"{tuple(variable.shape)}."
                    )
                found.append(Piece(variable, array.source.path, functools.partial(array.read, rows)))
        yield found


def save_backbone(backbone, folder):
    """Writes config, metadata and weights as KerasHub does, so that either class loads the folder."""
    check_not_quantized(backbone)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "model.weights.h5") as partial, h5py.File(partial, "w") as file:
        file.create_group("vars")
        for path, layer in layer_paths(backbone):
            variables = {}
            layer.save_own_variables(variables)  # a kernel with LoRA comes merged
            for key, value in variables.items():
                write_array(file, f"{path}/vars/{key}", keras.ops.convert_to_numpy(value))
    for old in (*folder.glob("model.weights.json"), *folder.glob("model_*.weights.h5")):  # they would be read instead
        old.unlink()
    config = write_description(backbone, folder)
    # OPTCausalLM.save_to_preset has just written task.json, with the backbone's config inside.
    task_file = folder / "task.json"
    if task_file.exists():
        task = read_json(task_file)
        if task["config"].get("backbone", {}).get("registered_name") == OUR_NAME:
            task["config"]["backbone"].update({key: config[key] for key in KERAS_HUB_NAME})
            write_json(task_file, task)


def write_array(file, path, array):
    """Adds an array to an HDF5 file as Keras does."""
    dataset = file.create_dataset(path, data=array)
    if array.dtype.name == "bfloat16":  # HDF5 has no such type; Keras marks it like this
        dataset.attrs["dtype"] = "bfloat16"


def write_description(backbone, folder):
    """Writes ``metadata.json`` and, last of all files, ``config.json``, whose content is returned."""
    config = keras.saving.serialize_keras_object(backbone)
    for key in ("build_config", "compile_config"):
        config.pop(key, None)
    if not set(config["config"]) & OUR_OPTIONS:  # else the folder stays ours
        config.update(KERAS_HUB_NAME)
    metadata = {
        "keras_version": keras.__version__,
        "keras_hub_version": keras_hub.__version__,
        "parameter_count": backbone.count_params(),
        "tasks": ["CausalLM"],
    }
    write_json(folder / "metadata.json", metadata)
    write_json(folder / "config.json", config)
    return config
