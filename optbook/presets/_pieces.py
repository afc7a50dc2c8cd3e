"""A model's variables given their values one at a time, so that no second copy of the model is ever held."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import keras
import tqdm

LARGE_FILE = 100_000_000  # bytes from which reading deserves a progress bar


class Piece(NamedTuple):
    """One variable and where its value is found.

    ``read`` gives an array as the file holds it. ``transposed`` says that the file has a kernel as (outputs, inputs).
    """

    variable: keras.Variable
    file: Path
    read: Callable
    transposed: bool = False


def assign(pieces):
    """Reads each piece, gives it the form and type of its variable, and lets go of it before the next."""
    with contextlib.ExitStack() as stack:
        bars = {}
        for piece in pieces:
            if piece.file not in bars:
                bars[piece.file] = stack.enter_context(_bar(piece.file))
            array = piece.read()
            bars[piece.file].update(array.nbytes)
            variable = piece.variable
            value = jax.device_put(array, may_alias=True)  # a CPU takes the array over as it is
            if piece.transposed or array.shape != variable.shape or array.dtype != variable.dtype:
                value = _arranged(value, variable.shape, variable.dtype, piece.transposed)
            variable.assign(value.block_until_ready())  # else reading runs ahead, and arrays pile up


@functools.partial(jax.jit, static_argnames=("shape", "dtype", "transposed"))
def _arranged(value, shape, dtype, transposed):
    return (value.T if transposed else value).reshape(shape).astype(dtype)


def _bar(file):
    size = file.stat().st_size
    return tqdm.tqdm(total=size, desc=file.name, unit="B", unit_scale=True, disable=size < LARGE_FILE)
