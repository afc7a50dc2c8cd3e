"""A weight file with damaged bytes gives the numbers it held or one line that names it, whatever its format."""

import random

import h5py
import numpy as np
import pytest
import safetensors.numpy
from small_models import randomize
from weight_files import SAFETENSORS, TORCH, write

import optbook
from optbook import presets

HDF5 = "model.weights.h5"
SIZES = dict(vocabulary_size=5, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8, max_sequence_length=4)


@pytest.fixture(scope="module")
def backbone():
    backbone = optbook.OPTBackbone(**SIZES)
    randomize(backbone)
    return backbone


@pytest.fixture(scope="module")
def files(backbone, tmp_path_factory):
    """A good file of each format in a preset folder of its own."""
    root = tmp_path_factory.mktemp("good")
    backbone.save_to_preset(root / HDF5)
    for name in (SAFETENSORS, TORCH):
        optbook.export(backbone, root / name)
    write(root / TORCH / TORCH, safetensors.numpy.load_file(root / TORCH / SAFETENSORS))
    (root / TORCH / SAFETENSORS).unlink()
    return {name: root / name / name for name in (HDF5, SAFETENSORS, TORCH)}


def numbers_without_checksum(path):
    """Where in the file lie numbers whose change no reader can notice."""
    spans = []
    if path.name == HDF5:

        def add(_, item):
            if isinstance(item, h5py.Dataset):
                spans.append(range(item.id.get_offset(), item.id.get_offset() + item.nbytes))

        with h5py.File(path) as file:
            file.visititems(add)
    elif path.name == SAFETENSORS:
        content = path.read_bytes()
        spans.append(range(8 + int.from_bytes(content[:8], "little"), len(content)))
    return spans


def damage(content, untouched, generator):
    content = bytearray(content)
    kind = generator.choice(("change", "insert", "remove", "cut"))
    position = generator.randrange(len(content))
    while kind == "change" and any(position in span for span in untouched):
        position = generator.randrange(len(content))
    match kind:
        case "change":
            content[position] ^= generator.randrange(1, 256)
        case "insert":
            content[position:position] = generator.randbytes(generator.randint(1, 8))
        case "remove":
            del content[position : position + generator.randint(1, 8)]
        case "cut":
            del content[position:]
    return bytes(content)


def assert_equal_or_refused(backbone, path, expected):
    """Returns whether it was refused."""
    for variable in backbone.weights:
        variable.assign(np.zeros(variable.shape))
    try:
        presets.load_weights(backbone, path.parent)
    except (ValueError, OSError) as error:
        message = str(error)
        assert str(path) in message and "\n" not in message and len(message) < 700
        return True
    for variable, array in zip(backbone.weights, expected, strict=True):
        np.testing.assert_array_equal(variable, array)
    return False


@pytest.mark.parametrize("name", [HDF5, SAFETENSORS, TORCH])
def test_damaged_bytes(backbone, files, name):
    path = files[name]
    expected = [np.array(variable.value) for variable in backbone.weights]
    good, untouched, generator = path.read_bytes(), numbers_without_checksum(path), random.Random(0)
    try:
        refused = 0
        for _ in range(60):
            path.write_bytes(damage(good, untouched, generator))
            refused += assert_equal_or_refused(backbone, path, expected)
        assert refused > 30
    finally:
        path.write_bytes(good)
        assert not assert_equal_or_refused(backbone, path, expected)


@pytest.mark.parametrize("mark", [b"SNOD", b"HEAP", b"TREE"])
def test_hdf5_that_is_damaged_below_the_root(backbone, files, mark):
    """Each alone, from the last: where HDF5 finds it depends on what it looks up."""
    path = files[HDF5]
    expected = [np.array(variable.value) for variable in backbone.weights]
    good = path.read_bytes()
    places = [place for place in range(len(good)) if good.startswith(mark, place)]
    assert len(places) > 5
    try:
        for place in places:
            path.write_bytes(good[:place] + b"LOST" + good[place + 4 :])
            assert_equal_or_refused(backbone, path, expected)
    finally:
        path.write_bytes(good)
        assert not assert_equal_or_refused(backbone, path, expected)
