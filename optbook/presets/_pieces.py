"""A model's variables given their values one at a time, so that no second copy of the model is ever held."""

import collections
import concurrent.futures
import contextlib
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import keras
import numpy as np
import tqdm

AHEAD = 2  # arrays read at a time: one thread takes longer to fill fresh memory than a disk to read it
LARGE_FILE = 100_000_000  # bytes from which reading deserves a progress bar


class Piece(NamedTuple):
    """One variable and where its value is found.

    ``read`` gives a new array as the file holds it. ``transposed`` says that it is a kernel as (outputs, inputs).
    """

    variable: keras.Variable
    file: Path
    read: Callable[[], np.ndarray]
    transposed: bool = False


def assign(pieces):
    """Gives each variable its value; while it is brought into form, the arrays after it are read."""
    with contextlib.ExitStack() as stack:
        bars = {file: stack.enter_context(_bar(file)) for file in dict.fromkeys(piece.file for piece in pieces)}
        readers = stack.enter_context(concurrent.futures.ThreadPoolExecutor(AHEAD))
        coming = iter(pieces)
        reading = collections.deque(readers.submit(piece.read) for piece in itertools.islice(coming, AHEAD))
        for piece in pieces:
            array = reading.popleft().result()
            reading.extend(readers.submit(following.read) for following in itertools.islice(coming, 1))
            variable = piece.variable
            value = jax.device_put(array, may_alias=True)  # a CPU takes the array over as it is
            if piece.transposed or array.dtype != variable.dtype or array.shape != variable.shape:
                value = _in_form(value, variable.shape, variable.dtype, piece.transposed)
            variable.assign(value.block_until_ready())
            bars[piece.file].update(array.nbytes)


@functools.partial(jax.jit, static_argnames=("shape", "dtype", "transposed"))
def _in_form(value, shape, dtype, transposed):
    return (value.T if transposed else value).reshape(shape).astype(dtype)


def _bar(file):
    size = file.stat().st_size
    return tqdm.tqdm(total=size, desc=file.name, unit="B", unit_scale=True, disable=size < LARGE_FILE)
