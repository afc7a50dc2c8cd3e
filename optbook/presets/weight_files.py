"""Weight files: safetensors and torch's, in one piece or in shards, read a tensor at a time.

``torch.save`` writes an uncompressed zip: ``ROOT/data.pkl`` is a pickle that describes the tensors, and
``ROOT/data/KEY`` holds the bytes of one storage. A tensor is a view of a storage: an offset, a shape and strides,
counted in numbers. It is read without torch and without executing anything.
"""

import contextlib
import dataclasses
import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from optbook._arrays import fresh_zeros
from optbook._files import GIT_LFS, check_fetched, is_beside, read_json

MOST_AXES = 64  # NumPy's limit
NOT_READ = ("flax_model.msgpack", "tf_model.h5")
LENGTH_BYTES = 8  # a safetensors file starts with the length of its header
DESCRIPTION_LIMIT = 1_000_000  # bytes; that of an OPT-175B in one piece has 0.4 million
LOCAL_HEADER_BYTES = 30  # before an entry's name in a zip
ENCRYPTED = 1  # bit of an entry's flags

# The types that NumPy has, and what safetensors and torch call them.
DTYPES = (
    ("float16", "F16", "Half"),
    (ml_dtypes.bfloat16, "BF16", "BFloat16"),
    ("float32", "F32", "Float"),
    ("float64", "F64", "Double"),
    ("bool", "BOOL", "Bool"),
    ("uint8", "U8", "Byte"),
    ("int8", "I8", "Char"),
    ("int16", "I16", "Short"),
    ("int32", "I32", "Int"),
    ("int64", "I64", "Long"),
)
SAFETENSORS_DTYPES = {name: np.dtype(dtype) for dtype, name, _ in DTYPES}
TORCH_STORAGES = {f"{name}Storage": np.dtype(dtype) for dtype, _, name in DTYPES}

# What the pickle of a state dict consists of.
OPERATIONS = """
PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 UNICODE BINUNICODE SHORT_BINUNICODE PUT BINPUT
LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE EMPTY_DICT SETITEM SETITEMS GLOBAL
STACK_GLOBAL BINPERSID REDUCE BUILD
"""
OPERATIONS = frozenset(OPERATIONS.split())


class WeightFile:
    """A file of weights, open for reading any range of its bytes into the caller's memory.

    It is read and never mapped: the pages of a mapped file count as this process's memory while the mapping is open.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.file = open(self.path, "rb")  # noqa: SIM115 (__exit__ closes it)
        self.size = os.fstat(self.file.fileno()).st_size

    def __enter__(self):
        try:
            check_fetched(self.path, self.read(min(self.size, len(GIT_LFS)), 0))
        except ValueError:
            self.file.close()
            raise
        return self

    def __exit__(self, *error):
        self.file.close()

    def read_into(self, array, offset):
        """Fills a C-contiguous array with the bytes that start at ``offset``; threads may do so at once."""
        missing = array.reshape(-1).view(np.uint8)
        while missing.size:
            count = os.preadv(self.file.fileno(), [missing], offset)  # of 2 GB at most
            if not count:
                raise ValueError(f"{self.path} is cut short: {missing.size} bytes are missing; fetch it again.")
            missing, offset = missing[count:], offset + count

    def read(self, size, offset):
        """The ``size`` bytes that start at ``offset``."""
        content = np.empty(size, np.uint8)
        self.read_into(content, offset)
        return content.tobytes()


@dataclasses.dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor of Hugging Face's weight files, not yet read.

    Attributes
    ----------
    source : WeightFile
    offset : int
        Where in the file its first number starts, in bytes.
    dtype : numpy.dtype
        As stored.
    shape : tuple of int
    strides : tuple of int, optional
        How many numbers the next index of each axis lies further on; C order when left out.
    checksum : int
        CRC-32 of its bytes where the file tells it, else 0.

    Raises
    ------
    ValueError
        When it would be larger than its file, as an axis of stride 0 can make it.
    """

    source: WeightFile
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    checksum: int = 0

    def __post_init__(self):
        if max((self.nbytes, *self.shape)) > self.source.size:
            raise ValueError("it has a tensor that would be larger than the whole file.")

    @property
    def file(self):
        """Name of its file, without the folder."""
        return self.source.path.name

    @property
    def nbytes(self):
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def in_order(self):
        """Whether its numbers follow each other in C order."""
        if self.strides is None:
            return True
        expected = 1
        for size, stride in zip(self.shape[::-1], self.strides[::-1]):
            if size > 1 and stride != expected:  # the stride of an axis with a single index means nothing
                return False
            expected *= size
        return True

    @property
    def span(self):
        """How many numbers lie in the file from its first to its last."""
        if self.strides is None or 0 in self.shape:
            return math.prod(self.shape)
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides))

    def read(self):
        """A new C-contiguous array of ``shape`` and ``dtype`` that starts at a 64-byte aligned address.

        Raises
        ------
        ValueError
            When the file ends too early or the checksum does not fit.
        """
        numbers = fresh_zeros((self.span,), self.dtype)
        self.source.read_into(numbers, self.offset)
        content = numbers.view(np.uint8)
        if self.checksum and zlib.crc32(content) != self.checksum:
            raise ValueError(f"{self.source.path} is damaged: a tensor does not have its checksum; fetch it again.")
        if self.in_order:
            return numbers.reshape(self.shape)
        steps = [stride * self.dtype.itemsize if size > 1 else 0 for size, stride in zip(self.shape, self.strides)]
        ordered = fresh_zeros(self.shape, self.dtype)
        ordered[...] = np.ndarray(self.shape, self.dtype, content, strides=steps)
        return ordered


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
    files_of = weight_map(index)
    shards = {}
    for shard in sorted({file for files in files_of.values() for file in files}):
        if not os.path.isfile(index.parent / shard):
            raise FileNotFoundError(f"{index.parent} has no {shard!r:.80}, which {index.name} names; fetch it too.")
        shards[shard] = _open(index.parent / shard, stack, read)
    for name, files in files_of.items():
        if len(files) != 1 or name not in shards[files[0]]:
            where = " and ".join(files)
            raise ValueError(
                f"{index}: {where:.80} has no {name!r:.80}; the shards and the index do not belong together."
            )
    return {name: shards[file][name] for name, (file,) in files_of.items()}


def weight_map(index):
    """In which files, all beside the index, each tensor or KerasHub's group of arrays lies: a dict of lists."""
    try:
        files_of = read_json(index).get("weight_map")
    except ValueError as error:
        raise ValueError(f"{error} It should hold a weight_map.") from None
    if not isinstance(files_of, dict):
        raise ValueError(f"{index} has no weight_map.")
    files_of = {name: files if isinstance(files, list) else [files] for name, files in files_of.items()}
    for files in files_of.values():
        for file in files:
            if not isinstance(file, str):
                raise ValueError(f"{index}: weight_map must give each tensor the name of its file, not {file!r:.80}.")
            if not is_beside(file):
                raise ValueError(f"{index} names {file!r:.80}, but a shard must lie in the same folder.")
    return files_of


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
                if dtype not in SAFETENSORS_DTYPES or len(shape) > MOST_AXES:
                    raise ValueError(f"{name!r:.80} is of type {dtype} and has {len(shape)} axes, unlike any of OPT's.")
                tensors[name] = LazyTensor(source, offset, SAFETENSORS_DTYPES[dtype], shape)
                offset += tensors[name].nbytes
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{source.path} cannot be read: {error!s:.300}") from error
    return tensors


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


def _torch_tensors(source):
    """The tensors of a state dict that ``torch.save`` wrote."""
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


class _StateDict(dict):
    """A dict that is made empty and whose keys are strings: no other key of the file is ever hashed."""

    def __init__(self):
        super().__init__()

    def __setitem__(self, key, value):
        if not isinstance(key, str):
            raise TypeError("a state dict's keys are strings")
        super().__setitem__(key, value)


class _Unpickler(pickle._Unpickler):
    """Python's unpickler, in the form that is written in Python, with nothing that a state dict does without.

    The one in C cannot be told which operations there are: it calls ``__setstate__`` of whatever stands there, and
    allocates a memo as long as a file says.
    """

    dispatch = {
        ord(operation.code): pickle._Unpickler.dispatch[ord(operation.code)]
        for operation in pickletools.opcodes
        if operation.name in OPERATIONS
    }
    dispatch[ord("}")] = lambda self: self.append(_StateDict())
    dispatch[ord("b")] = lambda self: self.stack.pop()  # _metadata, the versions of torch's layers, is left out

    def find_class(self, module, name):
        if module == "torch" and name in TORCH_STORAGES:
            return TORCH_STORAGES[name]
        if f"{module}.{name}" not in FUNCTIONS:
            raise ValueError(f"its data.pkl names {f'{module}.{name}'!r:.80}, which no tensor needs: do not trust it.")
        return FUNCTIONS[f"{module}.{name}"]

    def persistent_load(self, reference):
        match reference:
            case ("storage", np.dtype() as dtype, str() as key, _, int() as size):
                return _Storage(dtype, key, size)
        raise TypeError("not a reference to a storage")


def _read_pickle(content):
    """What a state dict's pickle builds: dicts, tuples, strings, whole numbers, views of storages, and nothing else."""
    try:
        strange = next((step for step in pickletools.genops(content) if step[0].name not in OPERATIONS), None)
    except ValueError as error:
        raise ValueError(f"its data.pkl is damaged; fetch it again ({error}).") from error
    if strange:
        raise ValueError(f"its data.pkl holds more than tensors ({strange[0].name} {strange[1]!r:.80}).")
    try:
        return _Unpickler(io.BytesIO(content)).load()
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError) as error:
        raise ValueError("its data.pkl is not that of a dict of tensors, or damaged.") from error


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


# What a pickle may call.
FUNCTIONS = {
    "collections.OrderedDict": _StateDict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
}
READERS = {"model.safetensors": _safetensors, "pytorch_model.bin": _torch_tensors}
