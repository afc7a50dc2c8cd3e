"""Benchmark of loading: ours, KerasHub's and transformers', from the same files, with plain reading as the measure.

    make bench-load                          # opt_1.3b_en
    make bench-load PRESETS="opt_125m_en opt_2.7b_en"

The checkpoints are written to build/checkpoints, with random weights, unless they are there. Compared when installed:
transformers on torch (in another environment: set BENCH_PYTHON to its python).
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path

import click
from bench import fresh_process
from rich.console import Console
from rich.progress import track
from rich.table import Table

RUNS = 3
ROOT = Path(__file__).parents[1]
CHECKPOINTS = ROOT / "build" / "checkpoints"
STORED = {"keras-hub": "float32", "safetensors": "float16"}
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

# Imports and the start of the backend come before the clock. One number of each page is looked at, since a library may
# leave the reading of a file to the first use of its numbers.
LOAD = """
import glob, resource
import numpy as np
{imports}
unit = 1 if sys.platform == "darwin" else 1024
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begun = time.perf_counter()
{load}
seconds = time.perf_counter() - begun
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print("LOAD", json.dumps({{"seconds": seconds, "grown_mb": grown * unit / 1e6}}))
"""
READ = """
buffer = bytearray(8_000_000)
for path in glob.glob({folder!r} + "/model*"):
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
"""
KEEP = """
kept = []
for path in glob.glob({folder!r} + "/model*"):
    with open(path, "rb", buffering=0) as file:
        for start in range(0, os.path.getsize(path), 8_000_000):
            kept.append(np.empty(8_000_000, np.uint8))
            file.readinto(kept[-1])
"""
IMPORT_OURS = "import optbook, jax; optbook.OPTBackbone; jax.numpy.zeros(1).block_until_ready()"
IMPORT_KERAS_HUB = """
os.environ["KERAS_BACKEND"] = "jax"
import keras_hub, jax; jax.numpy.zeros(1).block_until_ready()
"""
LOAD_KERAS = """
model = {module}.OPTBackbone.from_preset({folder!r}, dtype={dtype!r})
for weight in model.weights:
    np.asarray(weight.value).reshape(-1)[::1024].sum()
"""
IMPORT_TRANSFORMERS = "import torch, transformers; transformers.OPTModel"
LOAD_TRANSFORMERS = """
model = transformers.AutoModel.from_pretrained({folder!r}, dtype=getattr(torch, {dtype!r}))
with torch.no_grad():
    for weight in model.parameters():
        weight.view(-1)[::1024].sum()
"""


def contenders(folders):
    """Rows of the table, as (files, who, type in memory, where it is loaded from, body, python)."""
    other = os.environ.get("BENCH_PYTHON", sys.executable)

    def keras(imports, module, folder, dtype):
        return LOAD.format(imports=imports, load=LOAD_KERAS.format(module=module, folder=str(folder), dtype=dtype))

    for file_format, folder in folders.items():
        for who, load in (("reading the files", READ), ("the same, all kept", KEEP)):
            body = LOAD.format(imports="", load=load.format(folder=str(folder)))
            yield file_format, who, "", folder, body, sys.executable
        if file_format == "keras-hub":
            for dtype in ("float32", "bfloat16"):
                ours = keras(IMPORT_OURS, "optbook", folder, dtype)
                theirs = keras(IMPORT_KERAS_HUB, "keras_hub.models", folder, dtype)
                yield file_format, "optbook", dtype, folder, ours, sys.executable
                yield file_format, "keras_hub", dtype, folder, theirs, sys.executable
        else:
            for dtype in ("float16", "float32"):
                ours = keras(IMPORT_OURS, "optbook", folder, dtype)
                load = LOAD_TRANSFORMERS.format(folder=str(folder), dtype=dtype)
                theirs = LOAD.format(imports=IMPORT_TRANSFORMERS, load=load)
                yield file_format, "optbook", dtype, folder, ours, sys.executable
                yield file_format, "transformers", dtype, folder, theirs, other


def forget(folder):
    """Drops the folder's files from the operating system's cache, so that they come from the disk again."""
    for path in folder.iterdir():
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.fsync(file)  # what is not on the disk yet cannot be dropped
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def checkpoint(preset, file_format, dtype):
    """The folder of a checkpoint with random weights, written if it is not there."""
    folder = CHECKPOINTS / f"{preset.rpartition('/')[2]}-{file_format}-{dtype}"
    if not (folder / "config.json").is_file():
        arguments = [preset, "--format", file_format, "--dtype", dtype, "--out", str(folder)]
        subprocess.run([sys.executable, ROOT / "tools" / "make_checkpoints.py", *arguments], check=True)
    return folder


def measure(rows):
    """For each row the median seconds and megabytes over fresh processes, or None where one failed; rows in turns."""
    results = [[] for _ in rows]
    for turn in track(range(RUNS), "turns", transient=True):
        order = range(len(rows)) if turn % 2 == 0 else reversed(range(len(rows)))
        for number in order:
            *_, folder, body, python = rows[number]
            forget(folder)
            measured = fresh_process(body, python)
            results[number].append(measured and measured["LOAD"])
    return [
        None if None in runs else {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for runs in results
    ]


def report(preset, rows, results):
    """A table of one preset."""
    table = Table(
        "files",
        "",
        "in memory as",
        "seconds",
        "× reading",
        "peak MB",
        "× weights",
        title=f"{preset}: medians of {RUNS} fresh processes each, files not in the cache, imports not counted",
        caption="Peak: by how much the process's largest resident memory grew, mapped files included.",
    )
    for (file_format, who, dtype, folder, _body, _python), result in zip(rows, results):
        if result is None:
            table.add_row(file_format, who, dtype, "cannot run here")
            continue
        stored = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".h5", ".safetensors"))
        if who == "reading the files":  # the first row of these
            reading = result["seconds"]
            table.add_section()
        weights = stored / BYTES[STORED[file_format]] * BYTES[dtype or STORED[file_format]]
        table.add_row(
            f"{file_format}, {stored / 1e9:.2f} GB",
            who,
            dtype,
            f"{result['seconds']:.1f}",
            f"{result['seconds'] / reading:.2f}",
            f"{result['grown_mb']:.0f}",
            f"{result['grown_mb'] * 1e6 / weights:.2f}",
        )
    Console().print(table)


@click.command()
@click.argument("presets", nargs=-1, required=True)
def main(presets):
    """Measure loading PRESETS, such as opt_1.3b_en."""
    if not hasattr(os, "posix_fadvise"):
        raise click.ClickException("this system cannot drop files from its cache; run it on Linux.")
    for preset in presets:
        folders = {file_format: checkpoint(preset, file_format, dtype) for file_format, dtype in STORED.items()}
        rows = list(contenders(folders))
        report(preset, rows, measure(rows))


if __name__ == "__main__":
    main()
