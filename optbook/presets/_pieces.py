"""A model's variables given their values one at a time, so that no second copy of the model is ever held."""

import concurrent.futures
import contextlib
import zlib
from pathlib import Path
from typing import NamedTuple

import jax
import keras
import numpy as np
import tqdm

from optbook._arrays import aligned_empty
from optbook.presets.lazy_tensors import StoredTensor

LARGE_FILE = 100_000_000  # bytes from which reading deserves a progress bar
BLOCK_BYTES = 4_000_000  # read while the block before is put in its place
STRIP = 16  # rows transposed together: so few that their lines of memory are still in the cache when they are written
ALL = slice(None)


class Piece(NamedTuple):
    """One variable and the tensor that has its value.

    ``rows`` are those of the tensor that are wanted. ``transposed`` says that it is a kernel as (outputs, inputs).
    """

    variable: keras.Variable
    file: Path
    tensor: StoredTensor
    rows: slice = ALL
    transposed: bool = False


def assign(pieces):
    """Gives each variable its value, read straight into the memory that the variable keeps on a CPU."""
    with contextlib.ExitStack() as stack:
        bars = {}
        for piece in pieces:
            if piece.file not in bars:
                bars[piece.file] = stack.enter_context(_bar(piece.file))
            value = jax.device_put(_value(piece), may_alias=True)  # a CPU takes the array over as it is
            piece.variable.assign(value.block_until_ready())  # else reading runs ahead, and arrays pile up
            bars[piece.file].update(piece.tensor.nbytes)


def _value(piece):
    """A new array with the piece's numbers in the shape and type of its variable."""
    tensor, shape, dtype = piece.tensor, piece.variable.shape, np.dtype(piece.variable.dtype)
    if tensor.dtype == dtype and piece.rows == ALL and not piece.transposed:
        return tensor.read().reshape(shape)
    value = aligned_empty(shape, dtype)
    rows = value.reshape(-1, *tensor.shape[1:])
    columns = value.reshape(-1, tensor.shape[0]) if piece.transposed else None
    for first, block in _blocks(tensor, piece.rows):
        if not piece.transposed:
            rows[first : first + len(block)] = block
            continue
        block = block.astype(dtype, copy=False)
        for start in range(0, len(block), STRIP):
            strip = block[start : start + STRIP]
            columns[:, first + start : first + start + len(strip)] = strip.T
    return value


def _blocks(tensor, rows):
    """The rows of a tensor in blocks, each with the number of its first row; the next is read while one is used."""
    if rows != ALL or tensor.nbytes <= BLOCK_BYTES or not tensor.in_order:
        yield 0, tensor.read()[rows]
        return
    total, checksum = tensor.shape[0], 0
    count = max(BLOCK_BYTES // (tensor.nbytes // total) // STRIP, 1) * STRIP
    buffers = [np.empty((count, *tensor.shape[1:]), tensor.dtype) for _ in range(2)]

    def read(number):
        nonlocal checksum
        first = number * count
        block = buffers[number % 2][: total - first]
        tensor.read_rows(block, first)
        if tensor.checksum:
            checksum = zlib.crc32(block.view(np.uint8), checksum)
        return first, block

    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        reading = reader.submit(read, 0)
        for number in range(1, -(-total // count)):
            ready, reading = reading.result(), reader.submit(read, number)
            yield ready
        yield reading.result()
    if tensor.checksum:
        tensor.check(checksum)


def _bar(file):
    size = file.stat().st_size
    return tqdm.tqdm(total=size, desc=file.name, unit="B", unit_scale=True, disable=size < LARGE_FILE)
