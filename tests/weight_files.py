"""Weight files for the tests: written, read back, and refused."""

import contextlib
import json
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from torch_writer import write_torch_file

from optbook.presets.weight_files import open_checkpoint

TORCH_FILES = Path(__file__).parent / "golden" / "torch"
TORCH, SAFETENSORS = "pytorch_model.bin", "model.safetensors"
DTYPES = ("float16", ml_dtypes.bfloat16, "float32", "float64", "int64")
TENSORS = {
    np.dtype(dtype).name: np.random.default_rng(0).normal(scale=9, size=(3, 4)).astype(dtype) for dtype in DTYPES
} | {"scalar": np.array(1.5, "float32"), "empty": np.zeros((0, 3), "float16")}


def write(path, tensors):
    """A file of either kind, told by its name."""
    if path.suffix == ".bin":
        write_torch_file(path, [(name, array.shape, array.dtype, array) for name, array in tensors.items()])
    else:
        safetensors.numpy.save_file(tensors, path)


def write_shards(folder, file, shards):
    """Shards by name and the index that tells which tensor is in which."""
    for name, tensors in shards.items():
        write(folder / name, tensors)
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    write_index(folder, file, weight_map)


def write_index(folder, file, weight_map):
    (folder / f"{file}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def read(folder):
    with open_checkpoint(folder) as tensors:
        return {name: tensor.read() for name, tensor in tensors.items()}


def assert_same(found, expected):
    assert sorted(found) == sorted(expected)
    for name, array in found.items():
        assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape)
        np.testing.assert_array_equal(array, expected[name])


def assert_refused(folder, file, message, error=ValueError):
    with pytest.raises(error, match=message) as caught:
        read(folder)
    text = str(caught.value)
    assert file in text and "\n" not in text and len(text) < 600


@contextlib.contextmanager
def allocating_less_than(most):
    """Fails when Python and NumPy hold that many bytes more at any moment."""
    tracemalloc.start()
    try:
        yield
        allocated = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert allocated < most
