"""Hugging Face's weight files, safetensors or torch's, in one piece or in shards, read a tensor at a time."""

import contextlib
import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from optbook._files import is_beside
from optbook.presets.lazy_tensors import MOST_AXES, LazyTensor, WeightFile
from optbook.presets.torch_files import torch_tensors

# The types of safetensors that NumPy has.
DTYPES = {
    "F16": "float16",
    "BF16": ml_dtypes.bfloat16,
    "F32": "float32",
    "F64": "float64",
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}
LENGTH_BYTES = 8  # a safetensors file starts with the length of its header
NOT_READ = ("flax_model.msgpack", "tf_model.h5")


@contextlib.contextmanager
def open_checkpoint(folder):
    """The tensors of a Hugging Face folder, to be read one by one while the context lasts.

    Of several kinds of files the first of these is taken: ``model.safetensors``, ``model.safetensors.index.json``,
    ``pytorch_model.bin``, ``pytorch_model.bin.index.json``.

    Parameters
    ----------
    folder : str or path

    Yields
    ------
    dict
        From a tensor's name to its ``LazyTensor``. Nothing has been read but the description of the tensors.

    Raises
    ------
    FileNotFoundError
        When there is no such file, or a shard is missing.
    ValueError
        When a file is damaged, holds anything but tensors, or promises more than is in it.
    """
    with contextlib.ExitStack() as stack:
        yield _tensors(Path(folder), stack)


def _tensors(folder, stack):
    looked_for = []
    for name, read in READERS.items():
        index = f"{name}.index.json"
        if os.path.isfile(folder / name):
            return _open(folder / name, stack, read)
        if os.path.isfile(folder / index):
            return _open_shards(folder / index, stack, read)
        looked_for += [name, index]
    found = [name for name in NOT_READ if os.path.isfile(folder / name)]
    instead = f"; {' and '.join(found)} cannot be read here" if found else ""
    raise FileNotFoundError(f"{folder} has none of {', '.join(looked_for)}{instead}.")


def _open(path, stack, read):
    return read(stack.enter_context(WeightFile(path)))


def _open_shards(index, stack, read):
    shard_of = _weight_map(index)
    shards = {}
    for shard in sorted(set(shard_of.values())):
        if not os.path.isfile(index.parent / shard):
            raise FileNotFoundError(f"{index.parent} has no {shard!r:.80}, which {index.name} names; fetch it too.")
        shards[shard] = _open(index.parent / shard, stack, read)
    for name, shard in shard_of.items():
        if name not in shards[shard]:
            raise ValueError(f"{index}: {shard} has no {name!r:.80}; the shards and the index do not belong together.")
    return {name: shards[shard][name] for name, shard in shard_of.items()}


def _weight_map(index):
    """Which shard, a file beside the index, has which tensor."""
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{index} is not a JSON file with a weight_map.") from error
    if not isinstance(shard_of, dict) or not all(isinstance(shard, str) for shard in shard_of.values()):
        raise ValueError(f"{index}: weight_map must give each tensor the name of its file.")
    for shard in shard_of.values():
        if not is_beside(shard):
            raise ValueError(f"{index} names {shard!r:.80}, but a shard must lie in the same folder.")
    return shard_of


def _safetensors(source):
    """The tensors of a safetensors file.

    The library reads the header and checks that the tensors fill the rest of the file without gaps, so that each starts
    where the one before ends. They are read from there rather than by the library, which would map the file.
    """
    tensors = {}
    try:
        with safetensors.safe_open(source.path, framework="numpy") as file:
            header_size = int.from_bytes(source.read(LENGTH_BYTES, 0), "little")
            offset = LENGTH_BYTES + header_size
            for name in file.offset_keys():
                description = file.get_slice(name)
                dtype, shape = description.get_dtype(), tuple(description.get_shape())
                if dtype not in DTYPES or len(shape) > MOST_AXES:
                    raise ValueError(f"{name!r:.80} is of type {dtype} and has {len(shape)} axes, unlike any of OPT's.")
                tensors[name] = LazyTensor(source, offset, np.dtype(DTYPES[dtype]), shape)
                offset += tensors[name].nbytes
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{source.path} cannot be read: {error!s:.300}") from error
    return tensors


READERS = {"model.safetensors": _safetensors, "pytorch_model.bin": torch_tensors}
