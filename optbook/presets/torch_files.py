"""What ``torch.save`` writes, read without torch and without executing anything.

Such a file is an uncompressed zip: ``ROOT/data.pkl`` is a pickle that describes the tensors, and ``ROOT/data/KEY``
holds the bytes of one storage. A tensor is a view of a storage: an offset, a shape and strides, counted in numbers.
"""

import dataclasses
import pickletools
import struct
import zipfile
import zlib

import ml_dtypes
import numpy as np

from optbook.presets.lazy_tensors import MOST_AXES, LazyTensor

DESCRIPTION_LIMIT = 1_000_000  # bytes; that of an OPT-175B in one piece has 0.4 million
LOCAL_HEADER_BYTES = 30  # before an entry's name in a zip
ENCRYPTED = 1  # bit of an entry's flags

DTYPES = {
    "Half": "float16",
    "BFloat16": ml_dtypes.bfloat16,
    "Float": "float32",
    "Double": "float64",
    "Bool": "bool",
    "Byte": "uint8",
    "Char": "int8",
    "Short": "int16",
    "Int": "int32",
    "Long": "int64",
}


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: np.dtype
    key: str
    size: int


@dataclasses.dataclass(frozen=True)
class _View:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def torch_tensors(source):
    """The tensors of a state dict that ``torch.save`` wrote.

    Parameters
    ----------
    source : WeightFile

    Returns
    -------
    dict
        From a tensor's name to its ``LazyTensor``.

    Raises
    ------
    ValueError
        When the file is damaged, holds anything but tensors, or promises more than is in it.
    """
    try:
        entries = _entries(source)
        state = _read_pickle(_content(source, entries["data.pkl"]))
        if not isinstance(state, dict):
            raise ValueError("it holds something else than a dict of tensors.")
        return {name: _tensor(name, view, source, entries) for name, view in state.items()}
    except ValueError as error:
        raise ValueError(f"{source.path} cannot be read: {error!s:.300}") from error


def _entries(source):
    """The zip's entries by their name below ROOT."""
    start = source.read(min(source.size, 4), 0)
    if start.startswith(b"\x80"):
        raise ValueError(
            "it has the format from before torch 1.6; torch.save(torch.load(file, weights_only=True), file) renews it."
        )
    if start != b"PK\x03\x04":
        raise ValueError("it is not a file that torch.save wrote.")
    try:
        infos = zipfile.ZipFile(source.file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, OverflowError, ValueError, struct.error) as error:
        raise ValueError(f"it is damaged or cut short; fetch it again ({error}).") from error
    roots = [info.filename.removesuffix("data.pkl") for info in infos if info.filename.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"it is a zip, but torch.save writes one data.pkl, and this has {len(roots)}.")
    entries = {info.filename.removeprefix(roots[0]): info for info in infos if info.filename.startswith(roots[0])}
    if "byteorder" in entries and _content(source, entries["byteorder"]) != b"little":
        raise ValueError("its numbers are not little-endian; write it again on a little-endian machine.")
    return entries


def _content(source, entry):
    """The bytes of one of the entries that describe the tensors."""
    offset, size = _locate(source, entry)
    if size > DESCRIPTION_LIMIT:
        raise ValueError(f"{entry.filename!r:.80} has {size} bytes, more than the description of any OPT needs.")
    content = source.read(size, offset)
    if entry.CRC and zlib.crc32(content) != entry.CRC:
        raise ValueError(f"{entry.filename!r:.80} does not have its checksum: it is damaged; fetch it again.")
    return content


def _locate(source, entry):
    """Where an entry's bytes start in the file, and how many they are."""
    if (
        entry.compress_type != zipfile.ZIP_STORED
        or entry.compress_size != entry.file_size
        or entry.flag_bits & ENCRYPTED
    ):
        raise ValueError(f"{entry.filename!r:.80} is compressed or encrypted, which torch.save never does.")
    offset = entry.header_offset + LOCAL_HEADER_BYTES
    if 0 <= entry.header_offset <= source.size - LOCAL_HEADER_BYTES:
        header = source.read(LOCAL_HEADER_BYTES, entry.header_offset)
        if not header.startswith(b"PK\x03\x04"):
            raise ValueError(f"it is damaged where {entry.filename!r:.80} should start; fetch it again.")
        offset += sum(struct.unpack_from("<HH", header, 26))  # the name and the extra field
    if not 0 <= offset <= source.size - entry.file_size:
        raise ValueError(f"{entry.filename!r:.80} reaches beyond its end: it is damaged or cut short; fetch it again.")
    return offset, entry.file_size


def _tensor(name, view, source, entries):
    if not isinstance(view, _View):
        raise ValueError(f"{name!r:.80} is not a tensor.")
    storage, itemsize = view.storage, view.storage.dtype.itemsize
    entry = entries.get(f"data/{storage.key}")
    if entry is None:
        raise ValueError(f"{name!r:.80} lies in the storage {storage.key!r:.40}, which is missing.")
    start, size = _locate(source, entry)
    offset = start + view.offset * itemsize
    tensor = LazyTensor(source, offset, storage.dtype, view.shape, view.strides)
    found = min(storage.size, size // itemsize)
    if view.offset + tensor.span > found:
        raise ValueError(f"{name!r:.80} reaches beyond its storage, which has {found} numbers.")
    # torch can be told to leave checksums out; it then writes 0.
    whole = view.offset == 0 and tensor.span * itemsize == size
    return dataclasses.replace(tensor, checksum=entry.CRC) if whole else tensor


def _read_pickle(content):
    """What a state dict's pickle builds: dicts, tuples, strings, whole numbers, views of storages, and nothing else.

    Python's own unpickler calls what a file names and allocates what a file says. This one follows the few operations
    that a state dict needs; whatever else stands in the file is refused by its name.
    """
    stack, marks, memo = [], [], {}

    def take(start):
        items = tuple(stack[start:])
        del stack[start:]
        return items

    try:
        for operation, argument, _ in _operations(content):
            match operation.name:
                case "PROTO" | "FRAME":
                    pass
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(operation.name == "NEWTRUE")
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE" | "SHORT_BINUNICODE":
                    stack.append(argument)
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "MARK":
                    marks.append(len(stack))
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(take(-int(operation.name[-1])))
                case "TUPLE":
                    stack.append(take(marks.pop()))
                case "EMPTY_DICT":
                    stack.append({})
                case "SETITEM":
                    _set_items(stack[-3], take(-2))
                case "SETITEMS":
                    items = take(marks.pop())
                    _set_items(stack[-1], items)
                case "GLOBAL":
                    stack.append(_global(argument))
                case "STACK_GLOBAL":
                    stack.append(_global(" ".join(take(-2))))
                case "BINPERSID":
                    stack.append(_storage(stack.pop()))
                case "REDUCE":  # nothing but the three functions of _GLOBALS can be on the stack and be called
                    arguments, function = stack.pop(), stack.pop()
                    stack.append(function(*arguments))
                case "BUILD":  # gives a state dict its attribute _metadata, the versions of torch's layers
                    stack.pop()
                case "STOP":
                    return stack.pop()
                case name:
                    raise ValueError(f"its data.pkl holds more than tensors ({name} {argument!r:.80}).")
    except (LookupError, TypeError) as error:
        raise ValueError("its data.pkl is not that of a dict of tensors, or damaged.") from error


def _operations(content):
    try:
        yield from pickletools.genops(content)
    except ValueError as error:
        raise ValueError(f"its data.pkl is damaged; fetch it again ({error}).") from error


def _set_items(target, items):
    if not isinstance(target, dict) or not all(isinstance(key, str) for key in items[::2]):
        raise TypeError("a state dict is a dict whose keys are strings")
    target.update(zip(items[::2], items[1::2]))


def _storage(reference):
    match reference:
        case ("storage", np.dtype() as dtype, str() as key, _, int() as size):
            return _Storage(dtype, key, size)
    raise TypeError("not a reference to a storage")


def _rebuild_tensor(storage, offset, shape, strides, requires_grad, backward_hooks):
    if not (isinstance(storage, _Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)):
        raise TypeError("not a view of a storage")
    if len(shape) > MOST_AXES:
        raise ValueError(f"it has a tensor of {len(shape)} axes, more than NumPy's {MOST_AXES}.")
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("it has a tensor with a negative or missing size, stride or offset.")
    return _View(storage, offset, shape, strides)


def _rebuild_parameter(view, requires_grad, backward_hooks):
    return view


def _empty_dict():
    return {}


_GLOBALS = {
    "collections OrderedDict": _empty_dict,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
    **{f"torch {name}Storage": np.dtype(dtype) for name, dtype in DTYPES.items()},
}


def _global(name):
    if name not in _GLOBALS:
        raise ValueError(f"its data.pkl names {name.replace(' ', '.')!r:.80}, which no tensor needs: do not trust it.")
    return _GLOBALS[name]
