"""Writes checkpoints of the published sizes with random weights, to try what loading them takes without a download.

    python tools/make_checkpoints.py opt_6.7b_en --format keras-hub --dtype float32 --out build/checkpoints/6.7b

A model of any size is written with one tensor in memory. Its numbers depend on the seed and on a variable's name only,
so that the three formats hold the same model: each variable is a stretch of one block of random numbers, begun anew
where the block ends. Kernels and tables have the standard deviation of a fresh OPT, 0.02; gammas lie around 1.
"""

import functools
import json
import math
import shutil
import sys
import zlib
from pathlib import Path

import click
import h5py
import ml_dtypes
import numpy as np
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from torch_writer import write_torch_file

import optbook
from optbook._files import replacing, write_json
from optbook.layers import weights_follow
from optbook.presets import hugging_face_files, keras_hub_files, tokenizer_files
from optbook.presets.table import parameter_count, published_config

STDDEV = 0.02
BLOCK = 16_777_213  # a prime, so that no two rows of a table are equal, whatever its width
DTYPES = {"float32": np.dtype("float32"), "float16": np.dtype("float16"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
SAFETENSORS_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
SHARD_BYTES = {"keras-hub": 10 * 1024**3, "safetensors": 10 * 1000**3, "bin": 10 * 1000**3}  # as published
PREFIX = "model.decoder."


class Numbers:
    """The value of every variable of a checkpoint, from a seed and the variable's path."""

    def __init__(self, seed=0):
        self._block = STDDEV * np.random.default_rng(seed).standard_normal(BLOCK, "float32")

    def of(self, variable, dtype):
        """An array of the variable's shape, rounded to ``dtype``."""
        start, filled = zlib.crc32(variable.path.encode()) % BLOCK, 0
        values = np.empty(math.prod(variable.shape), dtype)
        mean = np.float32(1 if variable.path.endswith("gamma") else 0)
        while filled < values.size:
            stretch = self._block[start : start + values.size - filled]
            values[filled : filled + stretch.size] = stretch + mean if mean else stretch
            filled += stretch.size
            start = 0
        return values.reshape(variable.shape)


def make_checkpoint(config, file_format, dtype, folder, seed=0, shard_bytes=None, advance=lambda count: None):
    """Writes the folder of one model; config.json comes last, so that a folder with one is whole.

    Parameters
    ----------
    config : dict
        The arguments of ``OPTBackbone``.
    file_format : str
        "keras-hub", or Hugging Face's "safetensors" or "bin", which ``torch.save`` writes.
    dtype : str
        Of the numbers in the files: "float32", "float16" or "bfloat16".
    folder : str or path
    seed : int
        What the numbers depend on.
    shard_bytes : int, optional
        Most bytes of weights in one file; those of the published checkpoints when left out.
    advance : callable
        Told the number of bytes of each tensor that is written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with weights_follow():  # names and shapes are needed, not numbers
        backbone = optbook.OPTBackbone(**config, dtype=dtype, name="opt_backbone")
    numbers, dtype = Numbers(seed), DTYPES[dtype]

    def value(variable):
        advance(math.prod(variable.shape) * dtype.itemsize)
        return numbers.of(variable, dtype)

    tokenizer = _opt_tokenizer()
    shard_bytes = shard_bytes or SHARD_BYTES[file_format]
    if file_format == "keras-hub":
        tokenizer.save_to_preset(str(folder))
        _write_keras_hub(backbone, folder, dtype, value, shard_bytes)
        keras_hub_files.write_description(backbone, folder)
    else:
        tokenizer_files.write_hugging_face(tokenizer, folder)
        _write_hugging_face(backbone, folder, file_format, dtype, value, shard_bytes)
        write_json(folder / "config.json", hugging_face_files.hugging_face_config(backbone))


@functools.cache
def _opt_tokenizer():
    return optbook.tokenizer("opt")


def _write_keras_hub(backbone, folder, dtype, value, shard_bytes):
    entries = [
        (path, str(key), variable)
        for path, layer in keras_hub_files.layer_paths(backbone)
        for key, variable in enumerate(keras_hub_files.own_variables(layer))
    ]
    sizes = [math.prod(variable.shape) * dtype.itemsize for *_, variable in entries]
    shards = in_shards(entries, sizes, shard_bytes)
    weight_map = {}
    for number, shard in enumerate(shards):
        name = f"model_{number:05}.weights.h5" if len(shards) > 1 else "model.weights.h5"
        with replacing(folder / name) as partial, h5py.File(partial, "w") as file:
            file.create_group("vars")
            for path, key, variable in shard:
                keras_hub_files.write_array(file, f"{path}/vars/{key}", value(variable))
                files = weight_map.setdefault(f"/{path}/vars", [])
                if name not in files:
                    files.append(name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
        write_json(folder / "model.weights.json", index)


def _write_hugging_face(backbone, folder, file_format, dtype, value, shard_bytes):
    def tensor(name, variable, shape):
        """What the writers take: name, shape, type, and a function that makes the array."""
        return (
            PREFIX + name,
            tuple(shape),
            dtype,
            lambda: hugging_face_files.to_hugging_face(name, value(variable), shape),
        )

    tensors = [tensor(*entry) for entry in hugging_face_files.tensor_layout(backbone)]
    sizes = [math.prod(shape) * dtype.itemsize for _, shape, _, _ in tensors]
    shards = in_shards(tensors, sizes, shard_bytes)
    stem, suffix = ("model", ".safetensors") if file_format == "safetensors" else ("pytorch_model", ".bin")
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"{stem}-{number:05}-of-{len(shards):05}{suffix}" if len(shards) > 1 else stem + suffix
        write = write_safetensors_file if file_format == "safetensors" else write_torch_file
        write(folder / name, shard)
        weight_map |= {tensor_name: name for tensor_name, *_ in shard}
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
        write_json(folder / f"{stem}{suffix}.index.json", index)


def in_shards(entries, sizes, limit):
    """The entries in order, in as few lists as hold at most ``limit`` bytes each."""
    shards, room = [[]], limit
    for entry, size in zip(entries, sizes):
        if size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(entry)
        room -= size
    return shards


def write_safetensors_file(path, tensors):
    """Writes a safetensors file, tensor by tensor; the library's own function takes them all at once.

    Parameters
    ----------
    path : str or path
    tensors : list of (name, shape, dtype, values)
        ``values`` is a function without arguments that makes the array; one array is held at a time.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, dtype, _ in tensors:
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": SAFETENSORS_NAMES[dtype.name], "shape": shape, "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with replacing(path) as partial, open(partial, "wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        for _, _, _, values in tensors:
            file.write(np.ascontiguousarray(values()).reshape(-1).view(np.uint8))


@click.command()
@click.argument("preset")
@click.option("--format", "file_format", type=click.Choice(list(SHARD_BYTES)), required=True)
@click.option("--dtype", type=click.Choice(list(DTYPES)), required=True, help="Of the numbers in the files.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The folder to be made.")
@click.option("--seed", default=0, show_default=True)
def main(preset, file_format, dtype, out, seed):
    """Write a checkpoint of the size of PRESET, such as opt_1.3b_en or hf://facebook/opt-350m."""
    config = published_config(preset)
    if config is None:
        raise click.BadParameter(f"{preset!r} is no published OPT; give a name such as opt_1.3b_en.")
    size = parameter_count(**config) * DTYPES[dtype].itemsize
    out.mkdir(parents=True, exist_ok=True)
    if size > (free := shutil.disk_usage(out).free):
        raise click.ClickException(f"{preset} in {dtype} takes {size / 1e9:.1f} GB, but {free / 1e9:.1f} are free.")
    columns = TextColumn(out.name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=size)
        make_checkpoint(config, file_format, dtype, out, seed, advance=lambda count: progress.advance(task, count))


if __name__ == "__main__":
    main()
