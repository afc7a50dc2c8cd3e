"""Writes the files that ``torch.save`` writes for a state dict, without torch and without holding the model.

Tests make their checkpoints with it, and tools/make_checkpoints.py those of true size.
"""

import zipfile
from typing import NamedTuple

import numpy as np

from optbook._files import replacing

STORAGE_NAMES = {
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "int64": "LongStorage",
}


class Global(NamedTuple):
    """A function or class that a pickle names."""

    module: str
    name: str


class Call(NamedTuple):
    """What a pickle lets a function return."""

    function: Global
    arguments: tuple


class Reference(NamedTuple):
    """What a pickle leaves to torch to find: a storage."""

    value: tuple


def dump(value):
    """A pickle of dicts, tuples, strings, ints, booleans and the three classes above, in protocol 2."""
    return b"\x80\x02" + _dump(value) + b"."


def _dump(value):
    match value:
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(content)]) + content
        case str():
            content = value.encode()
            return b"X" + len(content).to_bytes(4, "little") + content
        case dict():
            return b"}(" + b"".join(_dump(key) + _dump(item) for key, item in value.items()) + b"u"
        case Global():
            return f"c{value.module}\n{value.name}\n".encode()
        case Call():
            return _dump(value.function) + _dump(value.arguments) + b"R"
        case Reference():
            return _dump(value.value) + b"Q"
        case tuple():
            return b"(" + b"".join(map(_dump, value)) + b"t"
    raise TypeError(f"a state dict's pickle has no {type(value).__name__}.")


def storage(key, dtype, size):
    """A reference to the storage ``data/KEY`` of ``size`` numbers."""
    return Reference(("storage", Global("torch", STORAGE_NAMES[np.dtype(dtype).name]), key, "cpu", size))


def view(storage, offset, shape, strides):
    """A tensor: the numbers of a storage that an offset, a shape and strides pick."""
    no_hooks = Call(Global("collections", "OrderedDict"), ())
    arguments = (storage, offset, tuple(shape), tuple(strides), False, no_hooks)
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments)


def c_order(shape):
    """The strides of a contiguous tensor, in numbers."""
    return tuple(int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape)))


def write_torch_file(path, tensors, tied=None):
    """Writes a state dict, storage by storage; the file appears under its name when it is complete.

    Parameters
    ----------
    path : str or path
        Such as ``pytorch_model.bin``.
    tensors : iterable of (name, shape, dtype, values)
        ``values`` is the array or a function without arguments that makes it; one array is held at a time.
    tied : dict, optional
        From a further name to that of the tensor whose storage it shares.
    """
    state = {}
    with replacing(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for key, (name, shape, dtype, values) in enumerate(tensors):
            array = np.asarray(values() if callable(values) else values, dtype=dtype, order="C")
            if array.shape != tuple(shape):
                raise ValueError(f"{name} must have shape {tuple(shape)}, but has {array.shape}.")
            _write_entry(archive, f"data/{key}", array.reshape(-1).view(np.uint8))
            state[name] = view(storage(str(key), dtype, array.size), 0, array.shape, c_order(array.shape))
        state.update({name: state[other] for name, other in (tied or {}).items()})
        _write_entry(archive, "data.pkl", dump(state))
        _write_entry(archive, "byteorder", b"little")
        _write_entry(archive, "version", b"3\n")


def _write_entry(archive, name, content):
    entry = zipfile.ZipInfo(f"archive/{name}")  # dated 1980, so that equal tensors give equal files
    entry.file_size = len(content)  # from 2 GB on the entry needs a longer header
    with archive.open(entry, "w") as file:
        file.write(content)
